//! Randomly generated graphs: whatever the builder accepts, the schedule has to get right.

use super::{contents, same};
use crate::graph::build::Builder;
use crate::graph::interpret::interpret;
use crate::graph::ir::{Attend, AxisId, AxisRole, Binary, Bits, BufferKind, DType, Graph, NodeId, Op, Reduce, Unary};
use proptest::prelude::*;

struct Maker {
    b: Builder,
    state: u64,
    floats: Vec<NodeId>,
    axes: Vec<AxisId>,
    ids: NodeId,
    table: AxisId,
}

impl Maker {
    fn new(seed: u64) -> Maker {
        let mut b = Builder::new("random", DType::F32);
        let mut axis = |name: &str, n: usize, role| b.axis(name, n, role).unwrap();
        let p = AxisRole::Plain;
        let rows = 1 + (seed % 3) as usize;
        let bt = axis("b", rows, AxisRole::Batch);
        let t = axis("t", 7, AxisRole::Time);
        let (d, h, hd, e) = (axis("d", 6, p), axis("h", 2, p), axis("hd", 3, p), axis("e", 4, p));
        let (m, n) = (axis("m", 70, p), axis("n", 66, p));
        let v = axis("v", 9, p);
        let ids = b.buffer("ids", DType::I32, &[bt, t], BufferKind::Input).unwrap();
        let ids = b.read(ids).unwrap();
        let mut floats = Vec::new();
        let shapes: &[&[AxisId]] = &[
            &[bt, t, d],
            &[bt, t, d],
            &[bt, t, h, hd],
            &[bt, t],
            &[t, d],
            &[d],
            &[e, d],
            &[d, e],
            &[m, n],
            &[m, n],
            &[n, m],
            &[m],
            &[v, d],
            &[],
        ];
        for (i, shape) in shapes.iter().enumerate() {
            let kind = if i % 3 == 0 { BufferKind::Param } else { BufferKind::Input };
            let id = b.buffer(&format!("x{i}"), DType::F32, shape, kind).unwrap();
            floats.push(b.read(id).unwrap());
        }
        Maker { b, state: seed, floats, axes: vec![bt, t, d, h, hd, e, m, n], ids, table: v }
    }

    fn below(&mut self, n: usize) -> usize {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.state >> 33) as usize) % n.max(1)
    }

    fn pick(&mut self) -> NodeId {
        // Recent values more often.
        let n = self.floats.len();
        let i = if self.below(2) == 0 { n - 1 - self.below(n.min(8)) } else { self.below(n) };
        self.floats[i]
    }

    fn some_axes(&mut self, x: NodeId) -> Vec<AxisId> {
        let all = self.b.axes(x).to_vec();
        all.into_iter().filter(|_| self.below(2) == 0).collect()
    }

    fn step(&mut self) {
        let x = self.pick();
        let y = self.pick();
        let axes = self.b.axes(x).to_vec();
        let made = match self.below(24) {
            0..=4 => {
                let op = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max, Binary::Min][self.below(5)];
                if self.below(4) == 0 { self.b.outer(op, x, y) } else { self.b.binary(op, x, y) }
            }
            5..=7 => {
                let op = [Unary::Tanh, Unary::Sigmoid, Unary::Neg, Unary::Abs, Unary::Sin][self.below(5)];
                self.b.unary(op, x)
            }
            8 => self.b.mul_const(x, 0.5),
            9 | 10 => {
                let over = self.some_axes(x);
                let op = [Reduce::Sum, Reduce::Sum, Reduce::Max, Reduce::Min][self.below(4)];
                let r = self.b.reduce(op, x, &over);
                match r {
                    Ok(r) => self.b.mul_const(r, 0.1),
                    e => e,
                }
            }
            11..=13 => {
                let other = self.b.axes(y).to_vec();
                let shared: Vec<_> = axes.iter().copied().filter(|a| other.contains(a)).collect();
                let over: Vec<_> = shared.into_iter().filter(|_| self.below(3) > 0).collect();
                let made = self.b.dot(x, y, &over);
                match made {
                    Ok(z) if self.b.axes(z).len() <= 4 => {
                        let mut order = self.b.axes(z).to_vec();
                        if self.below(3) == 0 {
                            order.reverse();
                        }
                        self.b.dot_as(x, y, &over, &order).and_then(|z| self.b.mul_const(z, 0.2))
                    }
                    other => other,
                }
            }
            14 => self.b.split(x, self.axes[2], &[self.axes[3], self.axes[4]]),
            15 => self.b.merge(x, &[self.axes[3], self.axes[4]], self.axes[2]),
            16 => {
                let Some(from) = axes.get(self.below(axes.len())).copied() else { return };
                let twin = self.b.twin(from);
                self.b.rename(x, from, twin)
            }
            17 => {
                let Some(from) = axes.get(self.below(axes.len())).copied() else { return };
                let (n, role) = (self.b.size(from), self.b.graph().axes[from.0 as usize].role);
                if n < 3 {
                    return;
                }
                let name = format!("{}-", self.b.axis_name(from));
                let Ok(part) = self.b.axis(&name, n - 2, role) else { return };
                let start = self.below(3);
                let cut = self.b.slice(x, from, part, start);
                if self.below(2) == 0 { cut } else { cut.and_then(|c| self.b.pad(c, part, from, start)) }
            }
            18 => {
                let Some(axis) = axes.get(self.below(axes.len())).copied() else { return };
                let n = self.below(4) as i64 - 2;
                self.b.shift(x, axis, n)
            }
            19 => {
                let Some(axis) = axes.get(self.below(axes.len())).copied() else { return };
                let at = self.below(self.b.size(axis));
                let one = self.b.index(x, axis, at);
                if self.below(2) == 0 { one } else { one.and_then(|o| self.b.place(o, axis, at, &axes)) }
            }
            20 => {
                let Some(axis) = axes.get(self.below(axes.len())).copied() else { return };
                let sum = self.b.cumsum(x, axis, self.state % 2 == 0);
                sum.and_then(|s| self.b.mul_const(s, 0.2))
            }
            21 => {
                if self.below(2) == 0 || !axes.contains(&self.table) {
                    let rest = [self.axes[0], self.axes[1]];
                    if !rest.iter().all(|a| axes.contains(a)) {
                        return;
                    }
                    self.b.scatter_add(self.ids, x, self.table).and_then(|s| self.b.mul_const(s, 0.3))
                } else {
                    self.b.gather(x, self.ids, self.table)
                }
            }
            22 => {
                let (t, hd) = (self.axes[1], self.axes[4]);
                let document = self.below(2) == 0;
                let how = Attend { time: t, dim: hd, scale: Bits::new(0.6), causal: true, window: None, document };
                self.b.attend(how, x, y, y, document.then_some(self.ids))
            }
            _ => {
                let zero = self.b.constant(0.1);
                let Ok(positive) = self.b.gt(self.floats[0], zero) else { return };
                self.b.select(positive, x, y)
            }
        };
        if let Ok(z) = made
            && self.b.numel(z) <= 20_000
            && self.b.axes(z).len() <= 5
            && self.b.dtype(z).is_float()
        {
            self.floats.push(z);
        }
    }

    fn finish(mut self) -> Graph {
        let first = 14;
        let n = self.floats.len();
        for i in 0..6 {
            let low = first.min(n - 1);
            let at = if i == 0 { n - 1 } else { low + self.below(n - low) };
            let x = self.floats[at];
            let axes = self.b.axes(x).to_vec();
            let mut order = axes.clone();
            if self.below(4) == 0 {
                order.reverse();
            }
            let kind = [BufferKind::Output, BufferKind::Grad][self.below(2)];
            let dtype = [DType::F32, DType::F32, DType::Bf16][self.below(3)];
            let id = self.b.buffer(&format!("out{i}"), dtype, &order, kind).unwrap();
            let done = if kind == BufferKind::Grad { self.b.accumulate(id, x) } else { self.b.assign(id, x) };
            done.unwrap();
        }
        // A parameter is replaced by a value of its shape, if there is one: reads must come before.
        for name in ["x0", "x3", "x6", "x9"] {
            let id = self.b.find_buffer(name).unwrap();
            let mut own = self.b.graph().buffers[id.0 as usize].ty.axes.clone();
            own.sort_unstable();
            let fits = |x: &&NodeId| {
                let mut axes = self.b.axes(**x).to_vec();
                axes.sort_unstable();
                axes == own && !matches!(self.b.node(**x).op, Op::Read(_))
            };
            if let Some(x) = self.floats.iter().rev().find(fits).copied() {
                self.b.assign(id, x).unwrap();
            }
        }
        self.b.finish()
    }
}

fn check(seed: u64, steps: usize) {
    let mut m = Maker::new(seed);
    for _ in 0..steps {
        m.step();
    }
    let g = m.finish();
    let inputs = contents(&g, &[("ids", 9)]);
    let Ok(expected) = interpret(&g, &inputs) else { return };
    if expected.values().any(|t| t.data.iter().any(|x| !x.is_finite() || x.abs() > 1e4)) {
        return;
    }
    same(&g, &inputs, 1e-2);
}

/// 96 cases, or as many as `PROPTEST_CASES` says. A failure prints its seed; nothing is written.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(96);
    ProptestConfig { cases, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn random_graphs(seed in 0u64..u64::MAX, steps in 5usize..60) {
        check(seed, steps);
    }
}

#[test]
fn one_seed() {
    let Ok(seed) = std::env::var("SEED") else { return };
    let steps = std::env::var("STEPS").unwrap().parse().unwrap();
    let mut m = Maker::new(seed.parse().unwrap());
    for _ in 0..steps {
        m.step();
    }
    let g = m.finish();
    eprintln!("{}", crate::graph::text::print(&g));
    check(seed.parse().unwrap(), steps);
}
