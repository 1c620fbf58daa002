//! Optimisers and clipping, at small and at full size.

use super::{contents, same};
use crate::graph::build::Builder;
use crate::graph::ir::{AxisId, AxisRole, Binary, BufferId, BufferKind, DType, Graph, NodeId};
use crate::graph::{fold, rewrite};
use crate::kernel::gpu::Arch;
use crate::kernel::{Kernel, Target};
use crate::schedule::{Options, reference, schedule, schedule_with};

struct Update {
    b: Builder,
}

impl Update {
    fn axis(&mut self, name: &str, n: usize) -> AxisId {
        self.b.axis(name, n, AxisRole::Plain).unwrap()
    }
    fn buffer(&mut self, name: &str, dtype: DType, axes: &[AxisId], kind: BufferKind) -> (BufferId, NodeId) {
        let id = self.b.buffer(name, dtype, axes, kind).unwrap();
        (id, self.b.read(id).unwrap())
    }
    fn hyper(&mut self, name: &str) -> NodeId {
        self.buffer(name, DType::F32, &[], BufferKind::Input).1
    }

    /// Five steps of `X <- aX + (bA + cAA) X`, `A = X Xᵀ`, on the smaller side.
    fn newton_schulz(&mut self, u: NodeId, steps: usize) -> NodeId {
        let axes = self.b.axes(u).to_vec();
        let (mut r, mut c) = (axes[0], axes[1]);
        if self.b.size(r) > self.b.size(c) {
            (r, c) = (c, r);
        }
        let (r2, r3) = (self.b.twin(r), self.axis(&format!("{}~", self.b.axis_name(r)), self.b.size(r)));
        let sq = self.b.mul(u, u).unwrap();
        let norm = self.b.sum(sq, &axes).unwrap();
        let norm = self.b.sqrt(norm).unwrap();
        let norm = self.b.add_const(norm, 1e-7).unwrap();
        let x = self.b.div(u, norm).unwrap();
        let mut x = self.b.cast(x, self.b.graph().compute).unwrap();
        for _ in 0..steps {
            let xt = self.b.rename(x, r, r2).unwrap();
            let a = self.b.dot(x, xt, &[c]).unwrap();
            let a = self.b.cast(a, self.b.graph().compute).unwrap();
            let left = self.b.rename(a, r2, r3).unwrap();
            let right = self.b.rename(a, r, r3).unwrap();
            let aa = self.b.dot(left, right, &[r3]).unwrap();
            let (p, q) = (self.b.mul_const(a, -4.775).unwrap(), self.b.mul_const(aa, 2.0315).unwrap());
            let poly = self.b.add(p, q).unwrap();
            let bx = self.b.dot(poly, xt, &[r2]).unwrap();
            let ax = self.b.mul_const(x, 3.4445).unwrap();
            let next = self.b.add(ax, bx).unwrap();
            x = self.b.cast(next, self.b.graph().compute).unwrap();
        }
        x
    }

    fn muon(&mut self, name: &str, axes: &[AxisId], state: DType, g: NodeId) {
        let (w, wr) = self.buffer(name, DType::F32, axes, BufferKind::Param);
        let (m, mr) = self.buffer(&format!("muon.m.{name}"), state, axes, BufferKind::State);
        let (lr, wd, mom) = (self.hyper("lr"), self.hyper("wd"), self.hyper("momentum"));
        let a = self.b.mul(mr, mom).unwrap();
        let m2 = self.b.add(a, g).unwrap();
        let c = self.b.mul(m2, mom).unwrap();
        let u = self.b.add(g, c).unwrap();
        let u = self.newton_schulz(u, 5);
        let one = self.b.constant(1.0);
        let decay = self.b.mul(lr, wd).unwrap();
        let keep = self.b.sub(one, decay).unwrap();
        let kept = self.b.mul(wr, keep).unwrap();
        let ratio = (self.b.size(axes[0]) as f64 / self.b.size(axes[1]) as f64).max(1.0).sqrt();
        let rate = self.b.mul_const(lr, ratio).unwrap();
        let step = self.b.mul(u, rate).unwrap();
        let new = self.b.sub(kept, step).unwrap();
        self.b.assign(w, new).unwrap();
        self.b.assign(m, m2).unwrap();
    }

    fn adamw(&mut self, name: &str, dtype: DType, axes: &[AxisId], g: NodeId) {
        let (w, wr) = self.buffer(name, dtype, axes, BufferKind::Param);
        let (m, mr) = self.buffer(&format!("adamw.m.{name}"), dtype, axes, BufferKind::State);
        let (v, vr) = self.buffer(&format!("adamw.v.{name}"), dtype, axes, BufferKind::State);
        let (t, tr) = self.buffer(&format!("adamw.t.{name}"), DType::F32, &[], BufferKind::State);
        let (lr, wd) = (self.hyper("lr"), self.hyper("wd"));
        let t2 = self.b.add_const(tr, 1.0).unwrap();
        let mix = |b: &mut Builder, old: NodeId, new: NodeId, beta: f64| {
            let o = b.mul_const(old, beta).unwrap();
            let n = b.mul_const(new, 1.0 - beta).unwrap();
            b.add(o, n).unwrap()
        };
        let m2 = mix(&mut self.b, mr, g, 0.9);
        let gg = self.b.mul(g, g).unwrap();
        let v2 = mix(&mut self.b, vr, gg, 0.95);
        let correct = |b: &mut Builder, x: NodeId, beta: f64| {
            let base = b.constant(beta);
            let p = b.binary(Binary::Pow, base, t2).unwrap();
            let one = b.constant(1.0);
            let c = b.sub(one, p).unwrap();
            b.div(x, c).unwrap()
        };
        let mh = correct(&mut self.b, m2, 0.9);
        let vh = correct(&mut self.b, v2, 0.95);
        let root = self.b.sqrt(vh).unwrap();
        let root = self.b.add_const(root, 1e-8).unwrap();
        let step = self.b.div(mh, root).unwrap();
        let step = self.b.mul(step, lr).unwrap();
        let decay = self.b.mul(lr, wd).unwrap();
        let one = self.b.constant(1.0);
        let keep = self.b.sub(one, decay).unwrap();
        let kept = self.b.mul(wr, keep).unwrap();
        let new = self.b.sub(kept, step).unwrap();
        for (id, x) in [(w, new), (m, m2), (v, v2), (t, t2)] {
            self.b.assign(id, x).unwrap();
        }
    }

    /// `min(1, 0.3 / (norm + 1e-6))` over some gradients; the norm is an output.
    fn clip(&mut self, grads: &[NodeId]) -> NodeId {
        let mut total = self.b.constant(0.0);
        for g in grads {
            let sq = self.b.mul(*g, *g).unwrap();
            let axes = self.b.axes(sq).to_vec();
            let sum = if axes.is_empty() { sq } else { self.b.sum(sq, &axes).unwrap() };
            total = self.b.add(total, sum).unwrap();
        }
        let norm = self.b.sqrt(total).unwrap();
        let out = self.b.buffer("grad_norm", DType::F32, &[], BufferKind::Output).unwrap();
        self.b.assign(out, norm).unwrap();
        let eps = self.b.add_const(norm, 1e-6).unwrap();
        let limit = self.b.constant(0.3);
        let ratio = self.b.div(limit, eps).unwrap();
        let one = self.b.constant(1.0);
        self.b.min(one, ratio).unwrap()
    }
}

/// An update with `layers` layers of four matrices and some vectors.
pub(super) fn update(dim: usize, hidden: usize, layers: usize, compute: DType) -> Graph {
    let mut u = Update { b: Builder::new("train.update", compute) };
    let (d, q, e, f) = (u.axis("d", dim), u.axis("q", dim), u.axis("e", dim / 2), u.axis("f", hidden));
    let v = u.axis("v", 2 * dim);
    let mut all: Vec<(String, Vec<AxisId>)> = vec![("emb".to_string(), vec![v, d]), ("scale".to_string(), vec![])];
    for l in 0..layers {
        all.push((format!("{l}.q"), vec![q, d]));
        all.push((format!("{l}.k"), vec![e, d]));
        all.push((format!("{l}.up"), vec![f, d]));
        all.push((format!("{l}.down"), vec![d, f]));
        all.push((format!("{l}.vec"), vec![d]));
    }
    let grads: Vec<_> = all
        .iter()
        .map(|(name, axes)| u.buffer(&format!("grad.{name}"), DType::F32, axes, BufferKind::Grad).1)
        .collect();
    let c = u.clip(&grads);
    for ((name, axes), g) in all.iter().zip(grads) {
        let g = u.b.mul(g, c).unwrap();
        if axes.len() == 2 && name != "emb" {
            u.muon(name, axes, compute, g);
        } else {
            u.adamw(name, if name == "emb" { compute } else { DType::F32 }, axes, g);
        }
    }
    rewrite::clean(&fold::fold(&u.b.finish()))
}

#[test]
fn updates_equal_the_interpreter() {
    let g = update(40, 72, 1, DType::F32);
    let mut inputs = contents(&g, &[]);
    for (name, t) in &mut inputs {
        // Second moments and step counts are not negative.
        if name.starts_with("adamw.v") || name.starts_with("adamw.t") {
            t.data.iter_mut().for_each(|x| *x = x.abs());
        }
        if name == "lr" {
            t.data[0] = 0.02;
        }
    }
    same(&g, &inputs, 2e-3);
}

#[test]
fn newton_schulz_is_three_products_a_step_and_knows_symmetry() {
    let g = update(512, 1536, 2, DType::Bf16);
    let s = schedule(&g).unwrap();
    super::dump("update.txt", &super::listing(&s));
    let products: Vec<_> =
        s.steps.iter().filter_map(|x| if let Kernel::Gemm(k) = &x.kernel { Some(k) } else { None }).collect();
    assert_eq!(products.len(), 2 * 4 * 15);
    assert_eq!(products.iter().filter(|k| k.symmetric).count(), 2 * 4 * 10);
}

/// A GPU copies factors as they lie: what a chain `X <- 2 X + X (Xᵀ X)` reads element by element in f32 is stored rounded as well, by the kernel that makes it,
/// and a parameter is rounded once for both of its products. The results are the same as where each product rounds for itself.
#[test]
fn factors_on_a_gpu_lie_in_bf16() {
    let mut u = Update { b: Builder::new("g", DType::Bf16) };
    let (i, j, k) = (u.axis("i", 16), u.axis("j", 24), u.axis("k", 24));
    let mut x = u.buffer("x", DType::F32, &[i, j], BufferKind::Param).1;
    for _ in 0..2 {
        let y = u.b.rename(x, j, k).unwrap();
        let a = u.b.dot(x, y, &[i]).unwrap();
        let z = u.b.dot(y, a, &[k]).unwrap();
        let two = u.b.constant(2.0);
        let twice = u.b.mul(x, two).unwrap();
        x = u.b.add(twice, z).unwrap();
    }
    let out = u.b.buffer("out", DType::F32, &[i, j], BufferKind::Output).unwrap();
    u.b.assign(out, x).unwrap();
    let g = rewrite::clean(&fold::fold(&u.b.finish()));
    let on = |target| schedule_with(&g, &Options { target, ..Options::default() }).unwrap();
    let (cpu, gpu) = (on(Target::Cpu), on(Target::Gpu(Arch::Sm90a)));
    let factors = |s: &crate::schedule::Scheduled| -> Vec<DType> {
        let products = s.steps.iter().filter_map(|x| if let Kernel::Gemm(k) = &x.kernel { Some(k) } else { None });
        products.flat_map(|k| [k.a.dtype, k.b.dtype]).collect()
    };
    assert_eq!((factors(&gpu), gpu.steps.len()), (vec![DType::Bf16; 8], 5));
    assert!(factors(&cpu).contains(&DType::F32) && cpu.steps.len() == 4);
    let inputs = contents(&g, &[]);
    let run = |s| reference::run(s, &inputs).unwrap()["out"].data.clone();
    assert_eq!(run(&gpu), run(&cpu));
}
