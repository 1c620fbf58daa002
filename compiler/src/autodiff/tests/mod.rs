//! Derivatives against central finite differences of the interpreter, in f64.

mod blocks;
mod golden;
mod ops;
mod rules;

use super::grad;
use crate::graph::build::Builder;
use crate::graph::interpret::random::uniform;
use crate::graph::interpret::{Contents, Options, Tensor, values};
use crate::graph::ir::*;

/// A differentiable function under test: a builder, and inputs with random contents.
pub(super) struct Case {
    pub(super) b: Builder,
    contents: Contents,
    wrt: Vec<(String, NodeId)>,
    /// Not 0: sizes of axes without a size in their name are drawn from it.
    shape: u64,
}

impl Case {
    pub(super) fn new() -> Self {
        Case::of_shape(0)
    }

    pub(super) fn of_shape(shape: u64) -> Self {
        Case { b: Builder::new("case", DType::F32), contents: Contents::new(), wrt: Vec::new(), shape }
    }

    /// The axis of this name; its size is in the name after `_`; without one it is 3, or drawn from 1..=5. `t` is time.
    pub(super) fn axis(&mut self, name: &str) -> AxisId {
        let drawn = || match self.shape {
            0 => 3,
            seed => 1 + (5.0 * uniform(seed, 9, usize::from(name.as_bytes()[0]))) as usize,
        };
        let size = name.split_once('_').map_or_else(drawn, |(_, n)| n.parse().unwrap());
        let role = if name.starts_with('t') { AxisRole::Time } else { AxisRole::Plain };
        self.b.axis(name, size, role).unwrap()
    }

    pub(super) fn axes(&mut self, names: &str) -> Vec<AxisId> {
        names.split_whitespace().map(|n| self.axis(n)).collect()
    }

    fn buffer(&mut self, name: &str, dtype: DType, axes: &str, value: impl FnMut(usize) -> f64) -> NodeId {
        let axes = self.axes(axes);
        let dims: Vec<_> = axes.iter().map(|a| self.b.size(*a)).collect();
        self.contents.insert(name.to_string(), Tensor::from_fn(&dims, value));
        let buffer = self.b.buffer(name, dtype, &axes, BufferKind::Input).unwrap();
        self.b.read(buffer).unwrap()
    }

    /// A differentiated input, uniform in `low..high`.
    pub(super) fn input(&mut self, name: &str, axes: &str, low: f64, high: f64) -> NodeId {
        let key = name.bytes().fold(17, |h: u64, c| h.wrapping_mul(31).wrapping_add(c.into()));
        let x = self.buffer(name, DType::F32, axes, |i| low + (high - low) * uniform(key, 0, i));
        self.wrt.push((name.to_string(), x));
        x
    }

    /// A differentiated input in -1..1.
    pub(super) fn x(&mut self, name: &str, axes: &str) -> NodeId {
        self.input(name, axes, -1.0, 1.0)
    }

    /// A differentiated input with given contents.
    pub(super) fn given(&mut self, name: &str, axes: &str, data: &[f64]) -> NodeId {
        let x = self.buffer(name, DType::F32, axes, |i| data[i]);
        self.wrt.push((name.to_string(), x));
        x
    }

    /// An integer input with given contents.
    pub(super) fn ints(&mut self, name: &str, axes: &str, data: &[i32]) -> NodeId {
        self.buffer(name, DType::I32, axes, |i| f64::from(data[i]))
    }

    fn objective(&self, y: NodeId, seed: &[f64], contents: &Contents) -> f64 {
        let y = values(self.b.graph(), contents, &[y], &Options::default()).unwrap();
        y[0].data.iter().zip(seed).map(|(a, b)| a * b).sum()
    }

    /// Compares every derivative of <y, seed> with central differences; every input must have one.
    pub(super) fn check(mut self, name: &str, y: NodeId) {
        let axes = self.b.axes(y).to_vec();
        let seed_buffer = self.b.buffer("seed", DType::F32, &axes, BufferKind::Input).unwrap();
        let seed = self.b.read(seed_buffer).unwrap();
        let dims: Vec<_> = axes.iter().map(|a| self.b.size(*a)).collect();
        let seeds = Tensor::from_fn(&dims, |i| 0.3 + uniform(99, 1, i));
        self.contents.insert("seed".to_string(), seeds.clone());
        let wrt: Vec<_> = self.wrt.iter().map(|(_, x)| *x).collect();
        let grads = grad(&mut self.b, &[(y, seed)], &wrt).unwrap_or_else(|e| panic!("{name}: {e}"));
        for ((input, x), dx) in self.wrt.clone().iter().zip(grads) {
            let dx = dx.unwrap_or_else(|| panic!("{name}: no derivative by {input}"));
            let order = self.b.axes(*x).to_vec();
            let dx = self.b.broadcast(dx, &order).unwrap();
            let found = values(self.b.graph(), &self.contents, &[dx], &Options::default()).unwrap().remove(0);
            for i in 0..found.data.len() {
                let h = 1e-5;
                let moved = |by: f64| {
                    let mut contents = self.contents.clone();
                    contents.get_mut(input).unwrap().data[i] += by;
                    self.objective(y, &seeds.data, &contents)
                };
                let expected = (moved(h) - moved(-h)) / (2.0 * h);
                let error = libm::fabs(found.data[i] - expected) / (1.0 + libm::fabs(expected));
                // Truncation is h^2 times a third derivative, cancellation 1e-16 / h.
                assert!(error < 1e-7, "{name}: d/d{input}[{i}] = {}, differences say {expected}", found.data[i]);
            }
        }
    }
}
