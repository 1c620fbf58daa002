//! The published system of PR #1016 at small size, written by hand against the builder: loss, logits and every gradient, through the
//! derivative, constant folding, the rewrites and the interpreter, against values computed by its own PyTorch program.

use crate::autodiff::grad;
use crate::graph::build::Builder;
use crate::graph::interpret::{Contents, Tensor, interpret};
use crate::graph::ir::*;
use crate::graph::rewrite::clean;
use crate::graph::verify::verify;
use crate::valid::{Inputs, Split, check_score, perturb};
use golf_runtime::safetensors::Reader;
use std::path::Path;

const LAYERS: usize = 11;
const EPS: f64 = 1.1920928955078125e-07;

fn open(name: &str) -> Reader {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/S1016");
    Reader::open(&folder.join(name)).unwrap()
}

fn floats(file: &Reader, name: &str) -> Vec<f64> {
    file.f32(name).unwrap().into_iter().map(f64::from).collect()
}

/// The model under construction; axes named as in the published program's comments.
struct Net {
    b: Builder,
    params: Vec<(String, NodeId)>,
    n: AxisId,
    t: AxisId,
    d: AxisId,
}

impl Net {
    fn new(rows: usize, len: usize) -> Net {
        let mut b = Builder::new("train.micro", DType::F32);
        let n = b.axis("b", rows, AxisRole::Batch).unwrap();
        let t = b.axis("t", len, AxisRole::Time).unwrap();
        let d = b.axis("d", 64, AxisRole::Plain).unwrap();
        Net { b, params: Vec::new(), n, t, d }
    }

    fn axis(&mut self, name: &str, size: usize) -> AxisId {
        self.b.axis(name, size, AxisRole::Plain).unwrap()
    }

    fn param(&mut self, name: &str, axes: &[AxisId]) -> NodeId {
        let buffer = self.b.buffer(name, DType::F32, axes, BufferKind::Param).unwrap();
        let x = self.b.read(buffer).unwrap();
        self.params.push((name.to_string(), x));
        x
    }

    fn mul(&mut self, x: NodeId, y: NodeId) -> NodeId {
        self.b.mul(x, y).unwrap()
    }

    fn add(&mut self, x: NodeId, y: NodeId) -> NodeId {
        self.b.add(x, y).unwrap()
    }

    /// x over its root mean square.
    fn norm(&mut self, x: NodeId, over: AxisId) -> NodeId {
        let square = self.mul(x, x);
        let mean = self.b.mean(square, &[over]).unwrap();
        let mean = self.b.add_const(mean, EPS).unwrap();
        let scale = self.b.rsqrt(mean).unwrap();
        self.mul(x, scale)
    }

    /// Half-split rotation of the first 8 of 16 dims, base 10000.
    fn rope(&mut self, x: NodeId) -> NodeId {
        let (hd, r, rest) = (self.axis("hd", 16), self.axis("r", 4), self.axis("rest", 8));
        let b = &mut self.b;
        let i = b.iota(r).unwrap();
        let i = b.cast(i, DType::F32).unwrap();
        let power = b.mul_const(i, -0.25).unwrap();
        let base = b.constant(10_000.0);
        let rate = b.pow(base, power).unwrap();
        let at = b.iota(self.t).unwrap();
        let at = b.cast(at, DType::F32).unwrap();
        let angle = b.outer(Binary::Mul, at, rate).unwrap();
        let (sin, cos) = (b.sin(angle).unwrap(), b.cos(angle).unwrap());
        let (p, q, kept) =
            (b.slice(x, hd, r, 0).unwrap(), b.slice(x, hd, r, 4).unwrap(), b.slice(x, hd, rest, 8).unwrap());
        let (pc, qs) = (b.mul(p, cos).unwrap(), b.mul(q, sin).unwrap());
        let (ps, qc) = (b.mul(p, sin).unwrap(), b.mul(q, cos).unwrap());
        let (first, second) = (b.add(pc, qs).unwrap(), b.sub(qc, ps).unwrap());
        b.concat(&[first, second, kept], &[r, r, rest], hd).unwrap()
    }

    /// (36313 id) xor (27191 id before) mod 63, 63 at the start of a row.
    fn bigram(&mut self, tokens: NodeId) -> NodeId {
        let (buckets, e) = (self.axis("buckets", 64), self.axis("bigram", 32));
        let table = self.param("bigram.embed.weight", &[buckets, e]);
        let proj = self.param("bigram.proj.weight", &[self.d, e]);
        let scale = self.param("bigram.scale", &[]);
        let b = &mut self.b;
        let before = b.shift(tokens, self.t, 1).unwrap();
        let now = b.binary_const(Binary::Mul, tokens, 36313.0).unwrap();
        let before = b.binary_const(Binary::Mul, before, 27191.0).unwrap();
        let hash = b.xor(now, before).unwrap();
        let hash = b.binary_const(Binary::Mod, hash, 63.0).unwrap();
        let (at, zero, last) = (b.iota(self.t).unwrap(), b.int(0), b.int(63));
        let start = b.eq(at, zero).unwrap();
        let bucket = b.select(start, last, hash).unwrap();
        let rows = b.gather(table, bucket, buckets).unwrap();
        let x = b.dot(rows, proj, &[e]).unwrap();
        b.mul(x, scale).unwrap()
    }

    /// Attention of one layer on its normed input; gives the output and the raw values.
    fn attention(&mut self, l: usize, x: NodeId, v0: Option<NodeId>, ve: Option<NodeId>) -> (NodeId, NodeId) {
        let name = |part: &str| format!("blocks.{l}.attn.{part}");
        let (q, e, h, kv, g, hd, m) = (
            self.axis("q", 64),
            self.axis("e", 32),
            self.axis("h", 4),
            self.axis("kv", 2),
            self.axis("g", 2),
            self.axis("hd", 16),
            self.axis("m", 2),
        );
        let d = self.d;
        let wq = self.param(&name("c_q.weight"), &[q, d]);
        let wk = self.param(&name("c_k.weight"), &[e, d]);
        let wv = self.param(&name("c_v.weight"), &[e, d]);
        let wo = self.param(&name("proj.weight"), &[d, q]);
        let gain = self.param(&name("q_gain"), &[h]);
        let mix = self.param(&name("vr_lambda"), &[m]);
        let b = &mut self.b;
        let qs = b.dot(x, wq, &[d]).unwrap();
        let qs = b.split(qs, q, &[h, hd]).unwrap();
        let ks = b.dot(x, wk, &[d]).unwrap();
        let ks = b.split(ks, e, &[kv, hd]).unwrap();
        let mut raw = b.dot(x, wv, &[d]).unwrap();
        if let Some(ve) = ve {
            raw = b.add(raw, ve).unwrap();
        }
        let raw = b.split(raw, e, &[kv, hd]).unwrap();
        let mut v = raw;
        if let Some(v0) = v0 {
            let (old, new) = (b.index(mix, m, 0).unwrap(), b.index(mix, m, 1).unwrap());
            let (old, new) = (b.mul(v0, old).unwrap(), b.mul(raw, new).unwrap());
            v = b.add(old, new).unwrap();
        }
        let qs = self.norm(qs, hd);
        let qs = self.rope(qs);
        let qs = self.mul(qs, gain);
        let ks = self.norm(ks, hd);
        let ks = self.rope(ks);
        let qs = self.b.split(qs, h, &[kv, g]).unwrap();
        let how = Attend { time: self.t, dim: hd, scale: Bits::new(0.25), causal: true, window: None, document: false };
        let mut y = self.b.attend(how, qs, ks, v, None).unwrap();
        if l >= 7 {
            y = self.xsa(y, v, hd);
        }
        let y = self.b.merge(y, &[kv, g, hd], q).unwrap();
        (self.b.dot(y, wo, &[q]).unwrap(), raw)
    }

    /// y - (y . v/|v|) v/|v|
    fn xsa(&mut self, y: NodeId, v: NodeId, over: AxisId) -> NodeId {
        let square = self.mul(v, v);
        let b = &mut self.b;
        let sum = b.sum(square, &[over]).unwrap();
        let norm = b.sqrt(sum).unwrap();
        let floor = b.constant(1e-12);
        let norm = b.max(norm, floor).unwrap();
        let n = b.div(v, norm).unwrap();
        let yn = b.mul(y, n).unwrap();
        let along = b.sum(yn, &[over]).unwrap();
        let part = b.outer(Binary::Mul, along, n).unwrap();
        b.sub(y, part).unwrap()
    }

    fn block(&mut self, l: usize, x: NodeId, x0: NodeId, v0: Option<NodeId>, ve: Option<NodeId>) -> (NodeId, NodeId) {
        let name = |part: &str| format!("blocks.{l}.{part}");
        let (f, m, d) = (self.axis("f", 192), self.axis("m", 2), self.d);
        let ln = 1.0 / libm::sqrt((l + 1) as f64);
        let mix = self.param(&name("resid_mix"), &[m, d]);
        let (now, first) = (self.b.index(mix, m, 0).unwrap(), self.b.index(mix, m, 1).unwrap());
        let (now, first) = (self.mul(x, now), self.mul(x0, first));
        let x = self.add(now, first);
        let h = self.norm(x, d);
        let h = self.b.mul_const(h, ln).unwrap();
        let (o, raw) = self.attention(l, h, v0, ve);
        let scale = self.param(&name("attn_scale"), &[d]);
        let o = self.mul(o, scale);
        let x = self.add(x, o);
        let h = self.norm(x, d);
        let h = self.b.mul_const(h, ln).unwrap();
        let (up, down) = (self.param(&name("mlp.fc.weight"), &[f, d]), self.param(&name("mlp.proj.weight"), &[d, f]));
        let scale = self.param(&name("mlp_scale"), &[d]);
        let b = &mut self.b;
        let u = b.dot(h, up, &[d]).unwrap();
        let zero = b.constant(0.0);
        let positive = b.ge(u, zero).unwrap();
        let low = b.mul_const(u, 0.5).unwrap();
        let u = b.select(positive, u, low).unwrap();
        let u = b.mul(u, u).unwrap();
        let y = b.dot(u, down, &[f]).unwrap();
        let y = self.mul(y, scale);
        (self.add(x, y), raw)
    }

    /// Logits [b t v] and the vocabulary axis.
    fn forward(&mut self) -> (NodeId, AxisId) {
        let (v, e, w, k) = (self.axis("v", 96), self.axis("e", 32), self.axis("ve", 40), self.axis("skip", 5));
        let d = self.d;
        let tokens = self.b.buffer("tokens", DType::I32, &[self.n, self.t], BufferKind::Input).unwrap();
        let tokens = self.b.read(tokens).unwrap();
        let table = self.param("tok_emb.weight", &[v, d]);
        let embedded = self.b.gather(table, tokens, v).unwrap();
        let bigram = self.bigram(tokens);
        let x = self.add(embedded, bigram);
        let x = self.norm(x, d);
        let gate = self.param("smear.gate", &[d]);
        let gate = self.b.sigmoid(gate).unwrap();
        let before = self.b.shift(x, self.t, 1).unwrap();
        let step = self.b.sub(before, x).unwrap();
        let step = self.mul(step, gate);
        let x0 = self.add(x, step);

        let ve_table = self.param("ve_shared.embed.weight", &[v, w]);
        let ve_proj = self.param("ve_shared.proj.weight", &[e, w]);
        let ve_scale = self.param("ve_shared.scale", &[]);
        let ve = self.b.gather(ve_table, tokens, v).unwrap();
        let ve = self.b.dot(ve, ve_proj, &[w]).unwrap();
        let ve = self.mul(ve, ve_scale);

        let skip = self.param("skip_weights", &[k, d]);
        let (mut x, mut v0, mut skips) = (x0, None, Vec::new());
        for l in 0..LAYERS {
            if l >= 5
                && let Some(s) = skips.pop()
            {
                let weight = self.b.index(skip, k, l - 5).unwrap();
                let s = self.mul(s, weight);
                x = self.add(x, s);
            }
            let mut own = None;
            if l >= 9 {
                let one = self.axis("one", 1);
                let scale = self.param(&format!("ve_layer_scales.{}", l - 9), &[one]);
                let scale = self.b.index(scale, one, 0).unwrap();
                own = Some(self.mul(ve, scale));
            }
            let (y, raw) = self.block(l, x, x0, v0, own);
            x = y;
            v0 = v0.or(Some(raw));
            if l < 5 {
                skips.push(x);
            }
        }
        let x = self.norm(x, d);
        let z = self.b.dot(x, table, &[d]).unwrap();
        let z = self.b.mul_const(z, 1.0 / 30.0).unwrap();
        let z = self.b.tanh(z).unwrap();
        (self.b.mul_const(z, 30.0).unwrap(), v)
    }
}

/// ||x - y|| / ||y||
fn distance(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len());
    let square = |v: f64| v * v;
    let (error, size) = x.iter().zip(y).fold((0.0, 0.0), |(e, s), (x, y)| (e + square(x - y), s + square(*y)));
    libm::sqrt(error / size)
}

#[test]
fn loss_logits_and_gradients_of_the_published_system() {
    let (rows, len) = (2, 64);
    let mut net = Net::new(rows, len);
    let (logits, v) = net.forward();
    let (n, t) = (net.n, net.t);
    let targets = net.b.buffer("targets", DType::I32, &[n, t], BufferKind::Input).unwrap();
    let targets = net.b.read(targets).unwrap();
    let nll = net.b.cross_entropy(logits, targets, v).unwrap();
    let loss = net.b.mean(nll, &[n, t]).unwrap();

    let weights = open("weights.safetensors");
    let mut contents = Contents::new();
    for name in weights.entries().keys() {
        let shape = &weights.entry(name).unwrap().shape;
        contents.insert(name.clone(), Tensor::new(shape, floats(&weights, name)).unwrap());
    }
    let tokens = open("tokens.safetensors").i32("tokens").unwrap();
    let part = |from: usize| Tensor::from_fn(&[rows, len], |i| f64::from(tokens[i / len * (len + 1) + i % len + from]));
    contents.insert("tokens".to_string(), part(0));
    contents.insert("targets".to_string(), part(1));
    assert_eq!(net.params.len(), contents.len() - 2, "every stored parameter is used");

    let b = &mut net.b;
    let one = b.constant(1.0);
    let wrt: Vec<_> = net.params.iter().map(|(_, x)| *x).collect();
    let grads = grad(b, &[(loss, one)], &wrt).unwrap();
    let mut outputs = vec![("loss".to_string(), loss), ("nll".to_string(), nll), ("logits".to_string(), logits)];
    for ((name, _), dx) in net.params.iter().zip(grads) {
        match dx {
            Some(dx) => outputs.push((format!("grad.{name}"), dx)),
            None => assert_eq!(name, "blocks.0.attn.vr_lambda", "the one parameter without a gradient"),
        }
    }
    for (name, value) in &outputs {
        let mut axes = b.axes(*value).to_vec();
        if let Some(param) = name.strip_prefix("grad.") {
            axes = b.graph().buffers[b.find_buffer(param).unwrap().0 as usize].ty.axes.clone();
        }
        let out = b.buffer(name, DType::F32, &axes, BufferKind::Output).unwrap();
        b.assign(out, *value).unwrap();
    }
    let graph = b.graph();
    verify(graph).unwrap();
    let short = clean(graph);
    verify(&short).unwrap();
    assert!(short.nodes.len() < graph.nodes.len());
    let found = interpret(&short, &contents).unwrap();

    // Tolerances of the stored fp32 values (twenty times their distance to fp64), see tests/golden/README.md.
    let golden = open("forward.safetensors");
    let largest = |name: &str| {
        let pairs = found[name].data.iter().zip(floats(&golden, name));
        pairs.fold(0.0, |m: f64, (x, y)| libm::fmax(m, libm::fabs(x - y)))
    };
    assert!(largest("loss") < 2e-6 * 6.4);
    assert!(largest("nll") < 9e-5);
    assert!(largest("logits") < 9e-5);
    for (name, _) in outputs.iter().filter(|(name, _)| name.starts_with("grad.")) {
        let error = distance(&found[name].data, &floats(&golden, name));
        assert!(error < 3e-5, "{name}: {error}");
    }
}

#[test]
fn the_published_system_is_legal() {
    let mut net = Net::new(2, 12);
    let (logits, v) = net.forward();
    let targets = net.b.buffer("targets", DType::I32, &[net.n, net.t], BufferKind::Input).unwrap();
    let targets = net.b.read(targets).unwrap();
    let nll = net.b.cross_entropy(logits, targets, v).unwrap();
    let graph = net.b.finish();
    let inputs = Inputs::standard(Split::Val);
    assert_eq!(check_score(&graph, nll, v, &inputs).unwrap().logits(), logits);
    perturb(&graph, logits, &inputs, 96, 1).unwrap();
}
