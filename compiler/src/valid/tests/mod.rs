//! Legal and illegal graphs, judged by the proof and by the perturbation test.

mod documents;
mod ops;

use super::label::{Inputs, Split};
use super::{Rule, check_logits, perturb};
use crate::graph::build::Builder;
use crate::graph::ir::*;

/// A model under construction: x [b t d] from an embedding, logits from a head.
pub(super) struct Model {
    pub(super) b: Builder,
    pub(super) n: AxisId,
    pub(super) t: AxisId,
    pub(super) d: AxisId,
    pub(super) v: AxisId,
    pub(super) x: NodeId,
}

pub(super) const VOCAB: usize = 7;

impl Model {
    pub(super) fn new() -> Self {
        let mut b = Builder::new("score", DType::F32);
        let n = b.axis("b", 2, AxisRole::Batch).unwrap();
        let t = b.axis("t", 6, AxisRole::Time).unwrap();
        let d = b.axis("d", 4, AxisRole::Plain).unwrap();
        let v = b.axis("v", VOCAB, AxisRole::Plain).unwrap();
        let tokens = b.buffer("tokens", DType::I32, &[n, t], BufferKind::Input).unwrap();
        let table = b.buffer("table", DType::F32, &[v, d], BufferKind::Param).unwrap();
        let (tokens, table) = (b.read(tokens).unwrap(), b.read(table).unwrap());
        let x = b.gather(table, tokens, v).unwrap();
        Model { b, n, t, d, v, x }
    }

    pub(super) fn input(&mut self, name: &str, axes: &[AxisId]) -> NodeId {
        let buffer = self.b.buffer(name, DType::I32, axes, BufferKind::Input).unwrap();
        self.b.read(buffer).unwrap()
    }

    pub(super) fn param(&mut self, name: &str, axes: &[AxisId]) -> NodeId {
        let buffer = self.b.buffer(name, DType::F32, axes, BufferKind::Param).unwrap();
        self.b.read(buffer).unwrap()
    }

    pub(super) fn axis(&mut self, name: &str, size: usize, role: AxisRole) -> AxisId {
        self.b.axis(name, size, role).unwrap()
    }

    pub(super) fn how(&self) -> Attend {
        Attend { time: self.t, dim: self.d, scale: Bits::new(0.5), causal: true, window: None, document: false }
    }

    /// Logits [b t v] from a value [.. d]; a value without batch or time axis is repeated.
    pub(super) fn head(&mut self, y: NodeId) -> NodeId {
        // The residual stream makes sure that every case depends on its own tokens too.
        let (axes, x) = (self.b.axes(self.x).to_vec(), self.x);
        let y = self.b.broadcast(y, &axes).unwrap();
        let y = self.b.add(x, y).unwrap();
        let y = self.b.tanh(y).unwrap();
        let head = self.param("head", &[self.v, self.d]);
        self.b.dot(y, head, &[self.d]).unwrap()
    }
}

/// Rules that the proof says logits break.
pub(super) fn broken(g: &Graph, logits: NodeId, inputs: &Inputs) -> Vec<Rule> {
    check_logits(g, logits, inputs).err().unwrap_or_default().iter().map(|e| e.rule).collect()
}

/// True if no bit moves.
pub(super) fn steady(g: &Graph, logits: NodeId, inputs: &Inputs) -> bool {
    perturb(g, logits, inputs, VOCAB, 11).is_ok()
}

pub(super) fn inputs() -> Inputs {
    Inputs::standard(Split::Val)
}
