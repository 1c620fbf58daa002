//! The graphs themselves, one method each.

use super::{Assembly, Error, Parameter, Phase, Sizes, Source, State, read_buffer, storage, taps};
use crate::autodiff;
use crate::graph::build::Builder;
use crate::graph::ir::{AxisId, AxisRole, BufferKind, DType, Graph, NodeId};
use crate::graph::{fold, rewrite};
use golf_runtime::plan::InverseFactor;

/// What the clip adds to a norm before dividing (PyTorch's `clip_grad_norm_`).
const CLIP_EPS: f64 = 1e-6;

pub(super) struct Assembler<'a> {
    source: &'a dyn Source,
    sizes: Sizes,
    precision: DType,
    graphs: Vec<Graph>,
    states: Vec<State>,
    adapt_from: usize,
    packed: Vec<bool>,
    inverses: Vec<Option<InverseFactor>>,
}

impl<'a> Assembler<'a> {
    pub(super) fn new(source: &'a dyn Source, sizes: Sizes, precision: DType) -> Self {
        Assembler {
            source,
            sizes,
            precision,
            graphs: vec![],
            states: vec![],
            adapt_from: 0,
            packed: vec![],
            inverses: vec![],
        }
    }

    pub(super) fn finish(self) -> Assembly {
        Assembly {
            precision: self.precision,
            graphs: self.graphs,
            states: self.states,
            adapt_from: self.adapt_from,
            packed: self.packed,
            inverses: self.inverses,
        }
    }

    fn builder(&self, name: &str) -> Builder {
        Builder::new(name, self.precision)
    }

    fn push(&mut self, b: Builder) {
        self.graphs.push(rewrite::clean(&fold::fold(&b.finish())));
    }

    fn parameters(&self) -> impl Iterator<Item = (usize, &'a Parameter)> + use<'a> {
        self.source.parameters().iter().enumerate().filter(|(_, p)| !p.unused)
    }

    fn weights(&self, b: &mut Builder, p: &Parameter) -> Result<NodeId, Error> {
        read_buffer(b, &p.name, &p.axes, storage(p.dtype, self.precision), BufferKind::Param)
    }

    /// Loss, nll and gradients of some rows: adds to `grad.NAME`.
    pub(super) fn micro(&mut self, name: &str, rows: usize, len: usize) -> Result<(), Error> {
        let mut b = self.builder(name);
        let (nll, axes) = self.loss(&mut b, rows, len)?;
        let scale = scalar_input(&mut b, "scale")?;
        let seed = b.broadcast(scale, &axes)?;
        let mut reads = Vec::new();
        for (_, p) in self.parameters() {
            reads.push((p, self.weights(&mut b, p)?));
        }
        let wrt: Vec<NodeId> = reads.iter().map(|r| r.1).collect();
        let grads = autodiff::grad(&mut b, &[(nll, seed)], &wrt)?;
        for ((p, w), g) in reads.into_iter().zip(grads) {
            let Some(g) = g else {
                return Err(Error {
                    message: format!(
                        "no path of the loss reaches parameter `{}`; declare it `unused` or remove it",
                        p.name
                    ),
                    span: None,
                });
            };
            let axes = b.axes(w).to_vec();
            let buffer = b.buffer(&format!("grad.{}", p.name), DType::F32, &axes, BufferKind::Grad)?;
            b.accumulate(buffer, g)?;
        }
        self.push(b);
        Ok(())
    }

    /// Forward pass and cross-entropy; the nll goes to the output buffer `nll`.
    fn loss(&self, b: &mut Builder, rows: usize, len: usize) -> Result<(NodeId, Vec<AxisId>), Error> {
        let f = self.source.forward(b, rows, len)?;
        let axes = vec![f.batch, f.time];
        let targets = b.buffer("targets", DType::I32, &axes, BufferKind::Input)?;
        let targets = b.read(targets)?;
        let nll = b.cross_entropy(f.logits, targets, f.vocab)?;
        let out = b.buffer("nll", DType::F32, &axes, BufferKind::Output)?;
        b.assign(out, nll)?;
        Ok((nll, axes))
    }

    /// Reads one gradient buffer of a parameter (`grad` or `total`).
    fn gradient(&self, b: &mut Builder, which: &str, p: &Parameter) -> Result<NodeId, Error> {
        read_buffer(b, &format!("{which}.{}", p.name), &p.axes, DType::F32, BufferKind::Grad)
    }

    /// `min(1, c / (norm + 1e-6))` over all gradients, and the norm as an output.
    fn clip(&self, b: &mut Builder, which: &str, limit: Option<f64>) -> Result<Option<NodeId>, Error> {
        let mut total: Option<NodeId> = None;
        for (_, p) in self.parameters() {
            let g = self.gradient(b, which, p)?;
            let axes = b.axes(g).to_vec();
            let squares = b.mul(g, g)?;
            let sum = if axes.is_empty() { squares } else { b.sum(squares, &axes)? };
            total = Some(match total {
                None => sum,
                Some(t) => b.add(t, sum)?,
            });
        }
        let Some(total) = total else { return Ok(None) };
        let norm = b.sqrt(total)?;
        let out = b.buffer("grad_norm", DType::F32, &[], BufferKind::Output)?;
        b.assign(out, norm)?;
        let Some(limit) = limit else { return Ok(None) };
        let eps = b.constant(CLIP_EPS);
        let denominator = b.add(norm, eps)?;
        let limit = b.constant(limit);
        let ratio = b.div(limit, denominator)?;
        let one = b.constant(1.0);
        Ok(Some(b.min(one, ratio)?))
    }

    /// With several logical shards: clips one shard's gradient if declared so and adds it to the total.
    pub(super) fn shard(&mut self) -> Result<(), Error> {
        if self.sizes.ranks == 1 {
            return Ok(());
        }
        let per_shard = self.source.clip(Phase::Train).filter(|c| c.1).map(|c| c.0);
        let mut b = self.builder("train.shard");
        let coefficient = match per_shard {
            Some(limit) => self.clip(&mut b, "grad", Some(limit))?,
            None => None,
        };
        let share = b.constant(1.0 / self.sizes.ranks as f64);
        for (_, p) in self.parameters() {
            let mut g = self.gradient(&mut b, "grad", p)?;
            let axes = b.axes(g).to_vec();
            if let Some(c) = coefficient {
                g = b.mul(g, c)?;
            }
            g = b.mul(g, share)?;
            let total = b.buffer(&format!("total.{}", p.name), DType::F32, &axes, BufferKind::Grad)?;
            b.accumulate(total, g)?;
        }
        self.push(b);
        Ok(())
    }

    /// The optimiser step of a phase.
    pub(super) fn update(&mut self, phase: Phase) -> Result<(), Error> {
        let (name, sharded) = match phase {
            Phase::Train => ("train.update", self.sizes.ranks > 1),
            Phase::Adapt => ("adapt.update", false),
        };
        let mut b = self.builder(name);
        let which = if sharded { "total" } else { "grad" };
        // A clip per shard has already happened when there are several shards; with one shard both kinds are the same.
        let limit = self.source.clip(phase).filter(|c| !(sharded && c.1)).map(|c| c.0);
        let coefficient = self.clip(&mut b, which, limit)?;
        for (index, p) in self.parameters() {
            let w = self.weights(&mut b, p)?;
            let mut g = self.gradient(&mut b, which, p)?;
            if let Some(c) = coefficient {
                g = b.mul(g, c)?;
            }
            let Some(updated) = self.source.update(&mut b, phase, index, w, g)? else { continue };
            self.write(&mut b, p, updated.weights)?;
            self.write_states(&mut b, updated.states)?;
        }
        self.push(b);
        Ok(())
    }

    fn write(&self, b: &mut Builder, p: &Parameter, value: NodeId) -> Result<(), Error> {
        let axes = axis_ids(b, &p.axes)?;
        let buffer = b.buffer(&p.name, storage(p.dtype, self.precision), &axes, BufferKind::Param)?;
        Ok(b.assign(buffer, value)?)
    }

    fn write_states(&mut self, b: &mut Builder, states: Vec<State>) -> Result<(), Error> {
        for s in states {
            let axes = axis_ids(b, &s.axes)?;
            let dtype = storage(s.dtype, self.precision);
            let buffer = b.buffer(&s.name, dtype, &axes, BufferKind::State)?;
            // A state that the parameters of a rule share comes with every one of them, with the same value.
            if !b.graph().effects.iter().any(|e| e.buffer == buffer && e.value == s.value) {
                b.assign(buffer, s.value)?;
            }
            if !self.states.iter().any(|old| old.name == s.name) {
                self.states.push(State { dtype, ..s });
            }
        }
        Ok(())
    }

    /// `average.NAME.update` and `average.NAME.finish`.
    pub(super) fn averages(&mut self) -> Result<(), Error> {
        for (a, name) in self.source.averages().into_iter().enumerate() {
            let mut b = self.builder(&format!("average.{name}.update"));
            for (index, p) in self.parameters() {
                let w = self.weights(&mut b, p)?;
                let states = self.source.average_update(&mut b, a, index, w)?;
                self.write_states(&mut b, states)?;
            }
            self.push(b);
            let mut b = self.builder(&format!("average.{name}.finish"));
            for (index, p) in self.parameters() {
                let w = self.weights(&mut b, p)?;
                let averaged = self.source.average_finish(&mut b, a, index, w)?;
                self.write(&mut b, p, averaged)?;
            }
            self.push(b);
        }
        Ok(())
    }

    /// `score`: nll of some windows.
    pub(super) fn score(&mut self) -> Result<(), Error> {
        let mut b = self.builder("score");
        self.loss(&mut b, self.sizes.score_rows, self.sizes.window)?;
        self.push(b);
        Ok(())
    }

    /// `adapt.micro` and `adapt.update`.
    pub(super) fn adapt(&mut self) -> Result<(), Error> {
        self.adapt_from = self.states.len();
        if !self.sizes.adapt {
            return Ok(());
        }
        self.micro("adapt.micro", self.sizes.adapt_rows, self.sizes.window)?;
        self.update(Phase::Adapt)
    }

    /// `calibrate`: the forward pass of some rows as in training; what the parameters of calibrated quantisers are multiplied with is squared and added to
    /// `tap.NAME`.
    pub(super) fn calibrate(&mut self) -> Result<(), Error> {
        if self.sizes.calibrate_rows == 0 {
            return Ok(());
        }
        let mut b = self.builder(golf_runtime::plan::CALIBRATE);
        let logits = self.source.forward(&mut b, self.sizes.calibrate_rows, self.sizes.seq)?.logits;
        for (index, p) in self.source.parameters().iter().enumerate() {
            // Parameters that share a buffer are multiplied with the same: it is filled once.
            let Some(name) = self.source.tap(index).filter(|name| b.find_buffer(name).is_none()) else { continue };
            let tap = taps::tap(b.graph(), logits, &p.name)
                .map_err(|e| Error { message: format!("`{}`: {}", p.name, e.why(b.graph())), span: None })?;
            let squares = taps::squares(&mut b, &tap)?;
            let axes = b.axes(squares).to_vec();
            let buffer = b.buffer(name, DType::F32, &axes, BufferKind::Grad)?;
            b.accumulate(buffer, squares)?;
        }
        self.push(b);
        Ok(())
    }

    /// `pack.NAME` for every parameter that a quantiser takes. Quantisers compute in f32 whatever the program does.
    pub(super) fn pack(&mut self) -> Result<(), Error> {
        for (index, p) in self.source.parameters().iter().enumerate() {
            let mut b = Builder::new(&format!("{}{}", golf_runtime::plan::PACK, p.name), DType::F32);
            let w = self.weights(&mut b, p)?;
            let q = self.source.quantise(&mut b, index, w)?;
            self.packed.push(q.is_some());
            self.inverses.push(q.as_ref().and_then(|q| q.inverse.clone()));
            let Some(q) = q else { continue };
            for (name, node, dtype) in
                [("codes", q.codes, DType::I8), ("scale", q.scale, DType::F16), ("dequant", q.dequant, DType::F32)]
            {
                let axes: Vec<AxisId> = if name == "scale" { b.axes(node).to_vec() } else { b.axes(w).to_vec() };
                let out = b.buffer(name, dtype, &axes, BufferKind::Output)?;
                b.assign(out, node)?;
            }
            self.push(b);
        }
        Ok(())
    }
}

fn axis_ids(b: &mut Builder, axes: &[(String, usize)]) -> Result<Vec<AxisId>, Error> {
    Ok(axes.iter().map(|(n, s)| b.axis(n, *s, AxisRole::Plain)).collect::<Result<Vec<_>, _>>()?)
}

/// Reads the host-written f32 scalar of this name.
fn scalar_input(b: &mut Builder, name: &str) -> Result<NodeId, Error> {
    let buffer = b.buffer(name, DType::F32, &[], BufferKind::Input)?;
    Ok(b.read(buffer)?)
}
