//! Transformer blocks, losses and optimisers, written as the language elaborates them.

use super::{compare, contents, families, listing, same};
use crate::autodiff;
use crate::graph::build::Builder;
use crate::graph::interpret::interpret;
use crate::graph::ir::{Attend, AxisId, AxisRole, Binary, Bits, BufferKind, DType, Graph, Node, NodeId, Op, Reduce};
use crate::graph::{fold, rewrite};
use crate::kernel::gpu::Arch;
use crate::kernel::{Kernel, Target};
use crate::schedule::prepare::is_move;
use crate::schedule::{Options, Scheduled, schedule, schedule_with};

/// Sizes of a model with every technique of models/vrl11.golf.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub rows: usize,
    pub time: usize,
    pub vocab: usize,
    pub dim: usize,
    pub heads: usize,
    pub kv: usize,
    pub rope: usize,
    pub hidden: usize,
    pub layers: usize,
    pub xsa: usize,
    pub buckets: usize,
    pub side: usize,
}

pub(crate) const TINY: Size = Size {
    rows: 2,
    time: 61,
    vocab: 50,
    dim: 48,
    heads: 4,
    kv: 2,
    rope: 4,
    hidden: 96,
    layers: 3,
    xsa: 1,
    buckets: 37,
    side: 40,
};

pub(crate) const VRL11: Size = Size {
    rows: 1,
    time: 2048,
    vocab: 1024,
    dim: 512,
    heads: 8,
    kv: 4,
    rope: 16,
    hidden: 1536,
    layers: 11,
    xsa: 4,
    buckets: 3072,
    side: 128,
};

pub(crate) struct Model {
    pub b: Builder,
    size: Size,
    params: Vec<(String, NodeId)>,
    compute: DType,
    bt: AxisId,
    t: AxisId,
    d: AxisId,
    h: AxisId,
    kv: AxisId,
    g: AxisId,
    hd: AxisId,
    q: AxisId,
    e: AxisId,
    f: AxisId,
    v: AxisId,
    two: AxisId,
}

impl Model {
    pub fn new(name: &str, size: Size, compute: DType) -> Model {
        let mut b = Builder::new(name, compute);
        let hd = size.dim / size.heads;
        let mut axis = |name: &str, n: usize, role| b.axis(name, n, role).unwrap();
        let p = AxisRole::Plain;
        Model {
            bt: axis("b", size.rows, AxisRole::Batch),
            t: axis("t", size.time, AxisRole::Time),
            d: axis("d", size.dim, p),
            h: axis("h", size.heads, p),
            kv: axis("kv", size.kv, p),
            g: axis("g", size.heads / size.kv, p),
            hd: axis("hd", hd, p),
            q: axis("q", size.dim, p),
            e: axis("e", size.kv * hd, p),
            f: axis("f", size.hidden, p),
            v: axis("v", size.vocab, p),
            two: axis("m", 2, p),
            b,
            size,
            params: Vec::new(),
            compute,
        }
    }

    fn param(&mut self, name: &str, axes: &[AxisId]) -> NodeId {
        let id = self.b.buffer(name, DType::F32, axes, BufferKind::Param).unwrap();
        let x = self.b.read(id).unwrap();
        self.params.push((name.to_string(), x));
        x
    }

    fn table(&mut self, name: &str, axes: &[AxisId]) -> NodeId {
        let id = self.b.buffer(name, self.compute, axes, BufferKind::Param).unwrap();
        let x = self.b.read(id).unwrap();
        self.params.push((name.to_string(), x));
        x
    }

    fn input(&mut self, name: &str, dtype: DType, axes: &[AxisId]) -> NodeId {
        let id = self.b.buffer(name, dtype, axes, BufferKind::Input).unwrap();
        self.b.read(id).unwrap()
    }

    fn rms(&mut self, x: NodeId, over: AxisId) -> NodeId {
        let sq = self.b.mul(x, x).unwrap();
        let mean = self.b.mean(sq, &[over]).unwrap();
        let eps = self.b.add_const(mean, 2f64.powi(-23)).unwrap();
        let r = self.b.rsqrt(eps).unwrap();
        self.b.mul(x, r).unwrap()
    }

    /// Half-split rotation of the first `rope` positions of hd.
    fn rope(&mut self, x: NodeId) -> NodeId {
        let (r, hd) = (self.size.rope, self.b.size(self.hd));
        let half = self.b.axis("r2", r / 2, AxisRole::Plain).unwrap();
        let rest = self.b.axis("rest", hd - r, AxisRole::Plain).unwrap();
        let t = self.b.iota(self.t).unwrap();
        let t = self.b.cast(t, DType::F32).unwrap();
        let i = self.b.iota(half).unwrap();
        let i = self.b.cast(i, DType::F32).unwrap();
        let i = self.b.mul_const(i, -2.0 / r as f64).unwrap();
        let base = self.b.constant(22082.0);
        let base = self.b.broadcast(base, &[half]).unwrap();
        let freq = self.b.binary(Binary::Pow, base, i).unwrap();
        let angle = self.b.outer(Binary::Mul, t, freq).unwrap();
        let (c, s) = (self.b.cos(angle).unwrap(), self.b.sin(angle).unwrap());
        let a = self.b.slice(x, self.hd, half, 0).unwrap();
        let b = self.b.slice(x, self.hd, half, r / 2).unwrap();
        let pass = self.b.slice(x, self.hd, rest, r).unwrap();
        let (ac, bs) = (self.b.mul(a, c).unwrap(), self.b.mul(b, s).unwrap());
        let (a_s, bc) = (self.b.mul(a, s).unwrap(), self.b.mul(b, c).unwrap());
        let first = self.b.add(ac, bs).unwrap();
        let second = self.b.sub(bc, a_s).unwrap();
        self.b.concat(&[first, second, pass], &[half, half, rest], self.hd).unwrap()
    }

    fn xsa(&mut self, y: NodeId, v: NodeId) -> NodeId {
        let sq = self.b.mul(v, v).unwrap();
        let norm = self.b.sum(sq, &[self.hd]).unwrap();
        let norm = self.b.sqrt(norm).unwrap();
        let floor = self.b.constant(1e-12);
        let norm = self.b.max(norm, floor).unwrap();
        let n = self.b.div(v, norm).unwrap();
        let p = self.b.mul(y, n).unwrap();
        let along = self.b.sum(p, &[self.hd]).unwrap();
        let axes = self.b.axes(y).to_vec();
        let wide = self.b.broadcast(along, &axes).unwrap();
        let part = self.b.mul(wide, n).unwrap();
        self.b.sub(y, part).unwrap()
    }

    fn attention(&mut self, layer: usize, n: NodeId, v0: Option<NodeId>, ve: Option<NodeId>) -> (NodeId, NodeId) {
        let name = |s: &str| format!("blocks.{layer}.attn.{s}");
        let wq = self.param(&name("c_q.weight"), &[self.q, self.d]);
        let wk = self.param(&name("c_k.weight"), &[self.e, self.d]);
        let wv = self.param(&name("c_v.weight"), &[self.e, self.d]);
        let wo = self.param(&name("proj.weight"), &[self.d, self.q]);
        let gain = self.param(&name("q_gain"), &[self.h]);
        let qs = self.b.dot(n, wq, &[self.d]).unwrap();
        let qs = self.b.split(qs, self.q, &[self.h, self.hd]).unwrap();
        let ks = self.b.dot(n, wk, &[self.d]).unwrap();
        let ks = self.b.split(ks, self.e, &[self.kv, self.hd]).unwrap();
        let mut raw = self.b.dot(n, wv, &[self.d]).unwrap();
        if let Some(ve) = ve {
            raw = self.b.add(raw, ve).unwrap();
        }
        let raw = self.b.split(raw, self.e, &[self.kv, self.hd]).unwrap();
        let vs = match v0 {
            None => raw,
            Some(v0) => {
                let mix = self.param(&name("vr_lambda"), &[self.two]);
                let (m0, m1) = (self.b.index(mix, self.two, 0).unwrap(), self.b.index(mix, self.two, 1).unwrap());
                let (a, b) = (self.b.mul(v0, m0).unwrap(), self.b.mul(raw, m1).unwrap());
                self.b.add(a, b).unwrap()
            }
        };
        let qs = self.rms(qs, self.hd);
        let qs = self.rope(qs);
        let qs = self.b.mul(qs, gain).unwrap();
        let ks = self.rms(ks, self.hd);
        let ks = self.rope(ks);
        let how = Attend {
            time: self.t,
            dim: self.hd,
            scale: Bits::new(1.0 / (self.b.size(self.hd) as f64).sqrt()),
            causal: true,
            window: None,
            document: false,
        };
        let qs = self.b.split(qs, self.h, &[self.kv, self.g]).unwrap();
        let mut y = self.b.attend(how, qs, ks, vs, None).unwrap();
        if layer + self.size.xsa >= self.size.layers {
            y = self.xsa(y, vs);
        }
        let y = self.b.merge(y, &[self.kv, self.g, self.hd], self.q).unwrap();
        (self.b.dot(y, wo, &[self.q]).unwrap(), raw)
    }

    fn mlp(&mut self, layer: usize, n: NodeId) -> NodeId {
        let up = self.param(&format!("blocks.{layer}.mlp.fc.weight"), &[self.f, self.d]);
        let down = self.param(&format!("blocks.{layer}.mlp.proj.weight"), &[self.d, self.f]);
        let u = self.b.dot(n, up, &[self.d]).unwrap();
        let zero = self.b.constant(0.0);
        let pos = self.b.ge(u, zero).unwrap();
        let half = self.b.mul_const(u, 0.5).unwrap();
        let z = self.b.select(pos, u, half).unwrap();
        let z = self.b.mul(z, z).unwrap();
        self.b.dot(z, down, &[self.f]).unwrap()
    }

    fn block(
        &mut self,
        layer: usize,
        x: NodeId,
        x0: NodeId,
        v0: Option<NodeId>,
        ve: Option<NodeId>,
    ) -> (NodeId, NodeId) {
        let name = |s: &str| format!("blocks.{layer}.{s}");
        let mix = self.param(&name("resid_mix"), &[self.two, self.d]);
        let attn_scale = self.param(&name("attn_scale"), &[self.d]);
        let mlp_scale = self.param(&name("mlp_scale"), &[self.d]);
        let ln = 1.0 / ((layer + 1) as f64).sqrt();
        let (m0, m1) = (self.b.index(mix, self.two, 0).unwrap(), self.b.index(mix, self.two, 1).unwrap());
        let (a, c) = (self.b.mul(x, m0).unwrap(), self.b.mul(x0, m1).unwrap());
        let a = self.b.add(a, c).unwrap();
        let n = self.rms(a, self.d);
        let n = self.b.mul_const(n, ln).unwrap();
        let (o, raw) = self.attention(layer, n, v0, ve);
        let o = self.b.mul(o, attn_scale).unwrap();
        let a = self.b.add(a, o).unwrap();
        let n = self.rms(a, self.d);
        let n = self.b.mul_const(n, ln).unwrap();
        let m = self.mlp(layer, n);
        let m = self.b.mul(m, mlp_scale).unwrap();
        (self.b.add(a, m).unwrap(), raw)
    }

    /// Hash of this token and the one before; the last bucket at the first position.
    fn buckets(&mut self, tokens: NodeId) -> NodeId {
        let before = self.b.shift(tokens, self.t, 1).unwrap();
        let a = self.b.binary_const(Binary::Mul, tokens, 36313.0).unwrap();
        let c = self.b.binary_const(Binary::Mul, before, 27191.0).unwrap();
        let x = self.b.binary(Binary::Xor, a, c).unwrap();
        let hash = self.b.binary_const(Binary::Mod, x, (self.size.buckets - 1) as f64).unwrap();
        let at = self.b.iota(self.t).unwrap();
        let first = self.b.binary_const(Binary::Eq, at, 0.0).unwrap();
        let axes = [self.bt, self.t];
        let first = self.b.broadcast(first, &axes).unwrap();
        let last = self.b.int(self.size.buckets as i32 - 1);
        let last = self.b.broadcast(last, &axes).unwrap();
        self.b.select(first, last, hash).unwrap()
    }

    pub fn forward(&mut self) -> NodeId {
        let tokens = self.input("tokens", DType::I32, &[self.bt, self.t]);
        let emb = self.table("tok_emb.weight", &[self.v, self.d]);
        let buckets = self.b.axis("buckets", self.size.buckets, AxisRole::Plain).unwrap();
        let side = self.b.axis("side", self.size.side, AxisRole::Plain).unwrap();
        let skips = self.b.axis("k", self.size.layers / 2, AxisRole::Plain).unwrap();
        let bigram = self.table("bigram.embed.weight", &[buckets, side]);
        let proj = self.param("bigram.proj.weight", &[self.d, side]);
        let scale = self.param("bigram.scale", &[]);
        let gate = self.param("smear.gate", &[self.d]);
        let ve_table = self.table("ve.embed.weight", &[self.v, side]);
        let ve_proj = self.param("ve.proj.weight", &[self.e, side]);
        let ve_scale = self.param("ve.scale", &[]);
        let skip = self.param("skip_weights", &[skips, self.d]);
        let x = self.b.gather(emb, tokens, self.v).unwrap();
        let hash = self.buckets(tokens);
        let big = self.b.gather(bigram, hash, buckets).unwrap();
        let big = self.b.dot(big, proj, &[side]).unwrap();
        let big = self.b.mul(big, scale).unwrap();
        let x = self.b.add(x, big).unwrap();
        let x = self.rms(x, self.d);
        let g = self.b.sigmoid(gate).unwrap();
        let one = self.b.constant(1.0);
        let keep = self.b.sub(one, g).unwrap();
        let prev = self.b.shift(x, self.t, 1).unwrap();
        let (a, c) = (self.b.mul(x, keep).unwrap(), self.b.mul(prev, g).unwrap());
        let x0 = self.b.add(a, c).unwrap();
        let ve = self.b.gather(ve_table, tokens, self.v).unwrap();
        let ve = self.b.dot(ve, ve_proj, &[side]).unwrap();
        let ve = self.b.mul(ve, ve_scale).unwrap();
        let (mut x, mut v0, mut stack) = (x0, None, Vec::new());
        let half = self.size.layers / 2;
        for i in 0..self.size.layers {
            if i >= half && !stack.is_empty() {
                let s: NodeId = stack.pop().unwrap();
                let w = self.b.index(skip, skips, i - half).unwrap();
                let s = self.b.mul(s, w).unwrap();
                x = self.b.add(x, s).unwrap();
            }
            let here = if i + 2 >= self.size.layers {
                let s = self.param(&format!("ve.scales.{i}"), &[]);
                Some(self.b.mul(ve, s).unwrap())
            } else {
                None
            };
            let (y, raw) = self.block(i, x, x0, v0, here);
            x = y;
            v0 = v0.or(Some(raw));
            if i < half {
                stack.push(x);
            }
        }
        let x = self.rms(x, self.d);
        let z = self.b.dot(x, emb, &[self.d]).unwrap();
        let z = self.b.mul_const(z, 1.0 / 30.0).unwrap();
        let z = self.b.tanh(z).unwrap();
        self.b.mul_const(z, 30.0).unwrap()
    }

    pub fn loss(&mut self) -> NodeId {
        let logits = self.forward();
        let targets = self.input("targets", DType::I32, &[self.bt, self.t]);
        let nll = self.b.cross_entropy(logits, targets, self.v).unwrap();
        let out = self.b.buffer("nll", DType::F32, &[self.bt, self.t], BufferKind::Output).unwrap();
        self.b.assign(out, nll).unwrap();
        nll
    }

    pub fn score(size: Size, compute: DType) -> Graph {
        let mut m = Model::new("score", size, compute);
        m.loss();
        rewrite::clean(&fold::fold(&m.b.finish()))
    }

    pub fn micro(size: Size, compute: DType) -> Graph {
        let mut m = Model::new("train.micro", size, compute);
        let nll = m.loss();
        let scale = m.input("scale", DType::F32, &[]);
        let seed = m.b.broadcast(scale, &[m.bt, m.t]).unwrap();
        let wrt: Vec<_> = m.params.iter().map(|p| p.1).collect();
        let grads = autodiff::grad(&mut m.b, &[(nll, seed)], &wrt).unwrap();
        for ((name, x), g) in m.params.clone().into_iter().zip(grads) {
            let axes = m.b.axes(x).to_vec();
            let grad = m.b.buffer(&format!("grad.{name}"), DType::F32, &axes, BufferKind::Grad).unwrap();
            m.b.accumulate(grad, g.unwrap_or_else(|| panic!("{name} has no gradient"))).unwrap();
        }
        rewrite::clean(&fold::fold(&m.b.finish()))
    }
}

fn count(s: &Scheduled, family: &str) -> usize {
    families(s).iter().filter(|f| **f == family).count()
}

#[test]
fn scoring_gives_the_interpreters_nll() {
    let g = Model::score(TINY, DType::F32);
    let inputs = contents(&g, &[("tokens", 50), ("targets", 50)]);
    same(&g, &inputs, 1e-4);
}

#[test]
fn training_gives_the_interpreters_gradients() {
    let g = Model::micro(TINY, DType::F32);
    let inputs = contents(&g, &[("tokens", 50), ("targets", 50)]);
    same(&g, &inputs, 1e-3);
}

#[test]
fn training_in_bf16_is_near() {
    // A GPU takes heads of 16, and moves scales where there are many rows.
    let gpu = Size { dim: 64, ..MANY_ROWS };
    for (size, target) in [(TINY, Target::Cpu), (gpu, Target::Gpu(Arch::Sm90a))] {
        let g = Model::micro(size, DType::Bf16);
        let inputs = contents(&g, &[("tokens", 50), ("targets", 50)]);
        let expected = interpret(&g, &inputs).unwrap();
        let s = schedule_with(&g, &Options { target, ..Options::default() }).unwrap();
        compare(&g, &s, &inputs, &expected, 0.15);
    }
}

/// A size at which activations are large beside parameters.
const MANY_ROWS: Size = Size { rows: 16, layers: 2, ..TINY };

/// The scales of a block's two results and the results themselves are not read again in its backward pass: on a GPU, where the gradient of a parameter need not be one
/// chain of sums.
#[test]
fn scales_leave_the_backward_pass_of_a_gpu() {
    let g = Model::micro(MANY_ROWS, DType::F32);
    let rows = rewrite::unscale(&g);
    let products = |g: &Graph| g.nodes.iter().filter(|n| matches!(n.op, Op::Dot(_))).count();
    assert_eq!(products(&rows), products(&g));
    let sums = |g: &Graph| g.nodes.iter().filter(|n| column_sum(g, n)).count();
    assert_eq!(sums(&rows) + 2 * MANY_ROWS.layers, sums(&g));
    let inputs = contents(&g, &[("tokens", 50), ("targets", 50)]);
    let (before, after) = (interpret(&g, &inputs).unwrap(), interpret(&rows, &inputs).unwrap());
    for effect in &g.effects {
        let name = &g.buffers[effect.buffer.0 as usize].name;
        let largest = before[name].data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (a, b) in before[name].data.iter().zip(&after[name].data) {
            assert!((a - b).abs() <= 1e-9 * largest, "{name}: {a} {b}");
        }
    }
}

/// A sum over all rows of a batch.
fn column_sum(g: &Graph, n: &Node) -> bool {
    let role = |a: &AxisId| g.axes[a.0 as usize].role;
    matches!(&n.op, Op::Reduce(Reduce::Sum, over) if [AxisRole::Batch, AxisRole::Time].iter().all(|r| over.iter().any(|a| role(a) == *r)))
}

/// Steps between one attention kernel and the next, and between the backward ones: what a block costs.
fn per_block(s: &Scheduled, family: &str) -> Vec<usize> {
    let at: Vec<_> = families(s).iter().enumerate().filter(|(_, f)| **f == family).map(|(i, _)| i).collect();
    at.windows(2).map(|w| w[1] - w[0]).collect()
}

#[test]
fn a_block_takes_few_kernels() {
    let score = schedule(&Model::score(VRL11, DType::Bf16)).unwrap();
    assert!(per_block(&score, "attend").iter().all(|n| *n <= 14), "{:?}", per_block(&score, "attend"));
    assert!(score.steps.len() <= 136);
    // What follows attention in the last four layers is part of it: from there to the product of its result nothing runs.
    let finishing = |s: &Scheduled| {
        let epilogue = |k: &Kernel| matches!(k, Kernel::Attend(k) if k.epilogue.is_some());
        let after = s.steps.windows(2).filter(|w| w[1].kernel.family() == "gemm");
        after.filter(|w| epilogue(&w[0].kernel)).count()
    };
    assert_eq!(finishing(&score), 4);
    let micro = schedule(&Model::micro(VRL11, DType::Bf16)).unwrap();
    super::dump("micro.txt", &listing(&micro));
    assert!(per_block(&micro, "attend").iter().all(|n| *n <= 14), "{:?}", per_block(&micro, "attend"));
    assert!(per_block(&micro, "attend_grad").iter().all(|n| *n <= 26), "{:?}", per_block(&micro, "attend_grad"));
    assert!(micro.steps.len() <= 406);
    assert_eq!(finishing(&micro), 4);
}

#[test]
fn every_contraction_is_a_product_without_copies() {
    for g in [Model::score(VRL11, DType::Bf16), Model::micro(VRL11, DType::Bf16), Model::micro(VRL11, DType::F32)] {
        let s = schedule(&g).unwrap();
        let dots = g.nodes.iter().filter(|n| matches!(n.op, Op::Dot(_))).count();
        assert_eq!(count(&s, "gemm"), dots);
        for step in &s.steps {
            // A row kernel that only moves a value: reads, writes, nothing in between.
            let Kernel::Row(row) = &step.kernel else { continue };
            let works = row.graph.nodes.iter().any(|n| !matches!(n.op, Op::Read(_) | Op::Broadcast) && !is_move(&n.op));
            assert!(works, "{}", step.kernel.text());
        }
    }
}
