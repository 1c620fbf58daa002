//! Random row bodies: chains over a pool of values, every kind of view, reductions, gathers, losses.
//!
//! Values stay of order 1 (sums are means, products are halved), so that the f64 interpreter and f32 code agree closely.

#![allow(missing_docs)]

use super::samples::{Body, Fill, Sample, Sizes};
use super::trial::Rng;
use crate::graph::ir::{AxisId, Binary, DType, NodeId, Op, Reduce, Unary};

struct Maker {
    body: Body,
    rng: Rng,
    /// Float values.
    pool: Vec<NodeId>,
    fresh: usize,
}

/// The body of a seed.
pub fn body(seed: u64, s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let (h, e) = (body.axis("h", s.heads), body.axis("e", s.dim));
    let (vocab, t) = (body.axis("vocab", 9), body.outer[1]);
    let x = body.activation("x", &[h, e]);
    let rows = body.rows(&[]);
    let full = body.rows(&[h, e]);
    let y = body.input("y", DType::F32, &full, Fill::Real);
    let p = body.input("p", DType::F32, &[e], Fill::Real);
    let q = body.input("q", s.dtype, &[h, e], Fill::Real);
    let r = body.input("r", DType::F32, &rows, Fill::Real);
    let angle = body.input("angle", DType::F32, &[t, e], Fill::Real);
    let index = body.input("index", DType::I32, &rows, Fill::Below(9));
    let table = body.input("table", s.dtype, &[vocab, e], Fill::Real);
    let label = body.input("label", DType::I32, &rows, Fill::Below(s.dim as i32));
    let gathered = body.b.gather(table, index, vocab).unwrap();
    let mut m = Maker { body, rng: Rng(seed), pool: vec![x, y, p, q, r, angle, gathered], fresh: 0 };
    let steps = 8 + m.rng.below(20);
    for _ in 0..steps {
        m.step(label);
    }
    m.outputs();
    m.body.finish(&format!("random{seed}"))
}

impl Maker {
    fn pick(&mut self) -> NodeId {
        // Young values more often, so that chains become deep.
        let n = self.pool.len();
        let i = self.rng.below(n).max(self.rng.below(n)).max(self.rng.below(n));
        self.pool[i]
    }

    fn inner(&self, x: NodeId) -> Vec<AxisId> {
        self.body.b.axes(x).iter().copied().filter(|a| !self.body.outer.contains(a)).collect()
    }

    fn an_axis(&mut self, x: NodeId) -> Option<AxisId> {
        let inner = self.inner(x);
        (!inner.is_empty()).then(|| inner[self.rng.below(inner.len())])
    }

    fn new_axis(&mut self, size: usize) -> AxisId {
        self.fresh += 1;
        let name = format!("n{}", self.fresh);
        self.body.axis(&name, size)
    }

    /// The value, about half as large.
    fn calm(&mut self, x: NodeId, factor: f64) -> NodeId {
        self.body.b.mul_const(x, factor).unwrap()
    }

    fn step(&mut self, label: NodeId) {
        let x = self.pick();
        let made = match self.rng.below(16) {
            0..=2 => self.unary(x),
            3..=6 => self.binary(x),
            7 => self.select(x),
            8 | 9 => self.reduce(x),
            10 => self.reshape(x),
            11 => self.window(x),
            12 => self.shift(x),
            13 => self.join(x),
            14 => self.running(x),
            _ => self.loss(label),
        };
        if let Some(v) = made {
            let numel: usize = self.inner(v).iter().map(|a| self.body.b.size(*a)).product();
            if numel <= 4096 {
                self.pool.push(v);
            }
        }
    }

    fn unary(&mut self, x: NodeId) -> Option<NodeId> {
        let ops = [Unary::Neg, Unary::Tanh, Unary::Sigmoid, Unary::Sin, Unary::Cos, Unary::Abs];
        let n = self.rng.below(ops.len() + 4);
        let b = &mut self.body.b;
        if let Some(op) = ops.get(n) {
            return b.unary(*op, x).ok();
        }
        let x = b.tanh(x).ok()?;
        let positive = b.abs(x).ok()?;
        let positive = b.add_const(positive, 0.5).ok()?;
        match n - ops.len() {
            0 => b.exp(x).ok(),
            1 => b.log(positive).ok(),
            2 => b.rsqrt(positive).ok(),
            _ => b.recip(positive).ok(),
        }
    }

    fn binary(&mut self, x: NodeId) -> Option<NodeId> {
        let y = self.pick();
        let op = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Min, Binary::Max][self.rng.below(5)];
        let z = self.body.b.outer(op, x, y).ok()?;
        Some(self.calm(z, 0.75))
    }

    fn select(&mut self, x: NodeId) -> Option<NodeId> {
        let (y, z) = (x, self.pick());
        // Only inputs are compared: they are exact, so that rounding never decides.
        let (i, j) = (self.rng.below(6), self.rng.below(6));
        let c = self.body.b.outer(Binary::Lt, self.pool[i], self.pool[j]).ok()?;
        let axes = self.body.b.axes(c).to_vec();
        let all = |m: &Self, z: NodeId| m.body.b.axes(z).iter().all(|a| axes.contains(a));
        if !all(self, z) {
            return None;
        }
        let (y, z) = (self.body.b.broadcast(y, &axes).ok()?, self.body.b.broadcast(z, &axes).ok()?);
        self.body.b.select(c, y, z).ok()
    }

    fn reduce(&mut self, x: NodeId) -> Option<NodeId> {
        let mut over = self.inner(x);
        over.retain(|_| self.rng.below(2) == 0);
        if over.is_empty() {
            over.extend(self.an_axis(x));
        }
        if over.is_empty() {
            return None;
        }
        match self.rng.below(4) {
            0 => self.body.b.reduce(Reduce::Max, x, &over).ok(),
            1 => self.body.b.reduce(Reduce::Min, x, &over).ok(),
            _ => self.body.b.mean(x, &over).ok(),
        }
    }

    fn reshape(&mut self, x: NodeId) -> Option<NodeId> {
        let mut axes = self.inner(x);
        if axes.len() >= 2 && self.rng.below(2) == 0 {
            if self.rng.below(3) == 0 {
                axes.reverse();
            }
            let from = &axes[..2];
            let to = self.new_axis(from.iter().map(|a| self.body.b.size(*a)).product());
            return self.body.b.merge(x, from, to).ok();
        }
        let axis = self.an_axis(x)?;
        let size = self.body.b.size(axis);
        let divisors: Vec<usize> = (2..=size).filter(|n| size % n == 0).collect();
        if divisors.is_empty() {
            return None;
        }
        let n = divisors[self.rng.below(divisors.len())];
        let (outer, inner) = (self.new_axis(size / n), self.new_axis(n));
        self.body.b.split(x, axis, &[outer, inner]).ok()
    }

    fn window(&mut self, x: NodeId) -> Option<NodeId> {
        let axis = self.an_axis(x)?;
        let size = self.body.b.size(axis);
        match self.rng.below(4) {
            0 => {
                let n = 1 + self.rng.below(size);
                let start = self.rng.below(size - n + 1);
                let to = self.new_axis(n);
                self.body.b.slice(x, axis, to, start).ok()
            }
            1 => {
                let n = size + self.rng.below(7);
                let start = self.rng.below(n - size + 1);
                let to = self.new_axis(n);
                self.body.b.pad(x, axis, to, start).ok()
            }
            2 => {
                let at = self.rng.below(size);
                self.body.b.index(x, axis, at).ok()
            }
            _ => {
                let new = self.new_axis(3);
                let mut order = self.body.b.axes(x).to_vec();
                let at = order.len() - self.rng.below(self.inner(x).len() + 1);
                order.insert(at, new);
                let at = self.rng.below(3);
                self.body.b.place(x, new, at, &order).ok()
            }
        }
    }

    fn shift(&mut self, x: NodeId) -> Option<NodeId> {
        let n = self.rng.below(5) as i64 - 2;
        let t = self.body.outer[1];
        // Along the rows only what is computed element by element.
        let stepwise = self.depends_on_steps(x);
        let axis = match self.body.b.axes(x).contains(&t) && !stepwise && self.rng.below(2) == 0 {
            true => t,
            false => self.an_axis(x)?,
        };
        self.body.b.shift(x, axis, n).ok()
    }

    fn depends_on_steps(&self, x: NodeId) -> bool {
        let node = self.body.b.node(x);
        let own = matches!(
            node.op,
            Op::Reduce(..) | Op::Cumsum(..) | Op::Scan(..) | Op::CrossEntropy(_) | Op::CrossEntropyGrad(_)
        );
        own || node.args.iter().any(|a| self.depends_on_steps(*a))
    }

    fn join(&mut self, x: NodeId) -> Option<NodeId> {
        let axis = self.an_axis(x)?;
        let y = self.pick();
        let z = if self.body.b.axes(y) == self.body.b.axes(x) { y } else { x };
        let to = self.new_axis(2 * self.body.b.size(axis));
        self.body.b.concat(&[x, z], &[axis, axis], to).ok()
    }

    fn running(&mut self, x: NodeId) -> Option<NodeId> {
        let axis = self.an_axis(x)?;
        let reverse = self.rng.below(2) == 0;
        let half = self.calm(x, 0.3);
        let factor = 1.0 / self.body.b.size(axis) as f64;
        match self.rng.below(2) {
            0 => {
                let sum = self.body.b.cumsum(half, axis, reverse).ok()?;
                Some(self.calm(sum, factor))
            }
            _ => {
                let x = self.body.b.tanh(half).ok()?;
                self.body.b.scan(x, half, axis, reverse).ok()
            }
        }
    }

    fn loss(&mut self, label: NodeId) -> Option<NodeId> {
        let e = self.body.b.find_axis("e")?;
        let candidates: Vec<NodeId> = self
            .pool
            .iter()
            .copied()
            .filter(|x| {
                let axes = self.body.b.axes(*x);
                axes.contains(&e) && axes.len() == self.body.outer.len() + 1 && self.inner(*x).len() == 1
            })
            .collect();
        if candidates.is_empty() {
            return None;
        }
        let x = candidates[self.rng.below(candidates.len())];
        if self.rng.below(2) == 0 {
            let nll = self.body.b.cross_entropy(x, label, e).ok()?;
            return Some(self.calm(nll, 0.3));
        }
        let r = self.body.b.find_buffer("r")?;
        let g = self.body.b.read(r).ok()?;
        self.body.b.cross_entropy_grad(x, label, g, e).ok()
    }

    fn outputs(&mut self) {
        let n = 1 + self.rng.below(4);
        let mut done: Vec<NodeId> = vec![];
        for i in 0..n {
            let x = if i == 0 { self.pool[self.pool.len() - 1] } else { self.pick() };
            let reads = matches!(self.body.b.node(x).op, Op::Read(_));
            if done.contains(&x) || reads && i > 0 {
                continue;
            }
            done.push(x);
            let inner = self.inner(x);
            if self.rng.below(5) == 0 {
                let axes = self.body.rows(&inner);
                let wide = self.body.b.broadcast(x, &axes).unwrap();
                let outer = self.body.outer.clone();
                let sum = self.body.b.sum(wide, &outer).unwrap();
                // The builder may turn the sum of a broadcast into a product.
                if matches!(&self.body.b.node(sum).op, Op::Reduce(..)) {
                    self.body.column(&format!("column{i}"), sum);
                }
                continue;
            }
            let dtype = [DType::F32, DType::F32, DType::Bf16, DType::F16][self.rng.below(4)];
            let axes = self.body.rows(&inner);
            let wide = self.body.b.broadcast(x, &axes).unwrap();
            self.body.output(&format!("out{i}"), dtype, &axes, wide);
        }
        if self.body.b.graph().effects.is_empty() {
            let x = self.pool[0];
            let inner = self.inner(x);
            self.body.write("out", &inner, x);
        }
    }
}
