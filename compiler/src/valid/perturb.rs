//! The perturbation test: change what must not matter, compare bits.
//!
//! *Takes* a graph (built small), the logits and what the inputs hold; *gives* `Ok` or the first [`Leak`]; *promises* nothing about what it
//! did not try: it is evidence beside the proof, found by running the interpreter on random weights.

use super::label::{Data, Inputs};
use crate::graph::interpret::random::{normal, uniform};
use crate::graph::interpret::{Contents, InterpretError, Options, Tensor, values};
use crate::graph::ir::{AxisId, AxisRole, BufferKind, DType, Graph, NodeId};

/// A logit that changed though it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// Row of the batch.
    pub row: usize,
    /// Position whose logits changed, at most `kept`.
    pub position: usize,
    /// Tokens after this position (and all other rows) were changed.
    pub kept: usize,
}

impl std::fmt::Display for Leak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the logits of row {} at position {} changed when tokens after position {} and other rows did",
            self.row, self.position, self.kept
        )
    }
}

/// Why the test failed.
#[derive(Clone, Debug, PartialEq)]
pub enum PerturbError {
    /// The logits depend on what they may not see.
    Leak(Leak),
    /// The graph could not be run.
    Interpret(InterpretError),
    /// The logits have no axis of positions.
    NoTime,
}

impl std::fmt::Display for PerturbError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PerturbError::Leak(leak) => leak.fmt(f),
            PerturbError::Interpret(error) => error.fmt(f),
            PerturbError::NoTime => f.write_str("the logits have no time axis"),
        }
    }
}

impl std::error::Error for PerturbError {}

/// Runs the graph on random small weights and random tokens below `vocab`, then again with every later token, every later or present
/// target and every other row changed, for the first, a middle and the last but one position of each row. Logits up to that position
/// must keep their bits.
pub fn perturb(g: &Graph, logits: NodeId, inputs: &Inputs, vocab: usize, seed: u64) -> Result<(), PerturbError> {
    let axes = &g.nodes[logits.0 as usize].ty.axes;
    let find = |role| axes.iter().copied().find(|a| g.axes[a.0 as usize].role == role);
    let time = find(AxisRole::Time).ok_or(PerturbError::NoTime)?;
    let batch = find(AxisRole::Batch);
    let size = |a: AxisId| g.axes[a.0 as usize].size;
    let world = World { g, inputs, vocab, seed };
    let run = |contents: &Contents| {
        let found = values(g, contents, &[logits], &Options::default()).map_err(PerturbError::Interpret)?;
        Ok(found.into_iter().next().unwrap_or_else(|| Tensor::scalar(0.0)))
    };
    let base = world.contents();
    let before = run(&base)?;
    let length = size(time);
    let mut kept: Vec<_> = [0, length / 2, length.saturating_sub(2)].into_iter().filter(|t| *t < length).collect();
    kept.dedup();
    for row in 0..batch.map_or(1, size) {
        for &kept in &kept {
            let after = run(&world.changed(&base, row, kept))?;
            for (i, (x, y)) in before.data.iter().zip(&after.data).enumerate() {
                let at = |axis| place(g, axes, i, axis);
                let position = at(time);
                if batch.is_none_or(|b| at(b) == row) && position <= kept && x.to_bits() != y.to_bits() {
                    return Err(PerturbError::Leak(Leak { row, position, kept }));
                }
            }
        }
    }
    Ok(())
}

/// Index along one axis of element `i` of a tensor stored along `axes`.
fn place(g: &Graph, axes: &[AxisId], i: usize, axis: AxisId) -> usize {
    let size = |a: &AxisId| g.axes[a.0 as usize].size;
    let inner: usize = axes.iter().skip_while(|a| **a != axis).skip(1).map(size).product();
    i / inner % size(&axis)
}

struct World<'a> {
    g: &'a Graph,
    inputs: &'a Inputs,
    vocab: usize,
    seed: u64,
}

impl World<'_> {
    /// Random contents of every buffer: weights of standard deviation 0.3, tokens, one document per half row.
    fn contents(&self) -> Contents {
        let mut out = Contents::new();
        for (n, buffer) in self.g.buffers.iter().enumerate() {
            if buffer.kind == BufferKind::Const {
                continue;
            }
            let axes = &buffer.ty.axes;
            let dims: Vec<_> = axes.iter().map(|a| self.g.axes[a.0 as usize].size).collect();
            let key = self.seed.wrapping_mul(0x9E37_79B9).wrapping_add(n as u64);
            let token = |i| libm::floor(uniform(key, 0, i) * self.vocab as f64);
            let half = |i| {
                let time = axes.iter().find(|a| self.g.axes[a.0 as usize].role == AxisRole::Time);
                time.map_or(0, |t| place(self.g, axes, i, *t) * 2 / self.g.axes[t.0 as usize].size)
            };
            let tensor = Tensor::from_fn(&dims, |i| match (self.inputs.data.get(&buffer.name), buffer.ty.dtype) {
                (Some(Data::Tokens(_) | Data::Targets(_)), _) => token(i),
                (Some(Data::Document), _) => half(i) as f64,
                (_, DType::I32) => 0.0,
                (_, DType::I8 | DType::Bool) => libm::floor(2.0 * uniform(key, 0, i)),
                _ => 0.3 * normal(key, 0, i),
            });
            out.insert(buffer.name.clone(), tensor);
        }
        out
    }

    /// The contents with everything changed that the logits of `row` up to `kept` may not see.
    fn changed(&self, base: &Contents, row: usize, kept: usize) -> Contents {
        let mut out = base.clone();
        for buffer in &self.g.buffers {
            // Logits at t may see token t, but target t is token t + 1.
            let last = match self.inputs.data.get(&buffer.name) {
                Some(Data::Tokens(_)) => kept + 1,
                Some(Data::Targets(_)) => kept,
                Some(Data::Document | Data::Host) | None => continue,
            };
            let axes = &buffer.ty.axes;
            let find = |role| axes.iter().copied().find(|a| self.g.axes[a.0 as usize].role == role);
            let (time, batch) = (find(AxisRole::Time), find(AxisRole::Batch));
            let Some(tensor) = out.get_mut(&buffer.name) else { continue };
            for (i, value) in tensor.data.iter_mut().enumerate() {
                let own = batch.is_none_or(|b| place(self.g, axes, i, b) == row);
                let seen = time.is_some_and(|t| place(self.g, axes, i, t) < last);
                if !(own && seen) {
                    // Any other token.
                    let vocab = self.vocab as f64;
                    let step = 1.0 + libm::floor(uniform(self.seed, 1, i) * (vocab - 1.0).max(0.0));
                    let moved = *value + step;
                    *value = if moved >= vocab { moved - vocab } else { moved };
                }
            }
        }
        out
    }
}
