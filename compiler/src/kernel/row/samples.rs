//! Row bodies that models are made of, and the memory to run them on: shared by the tests of the loop programs and of the emitters.

#![allow(missing_docs)]

use super::{Row, RowArg};
use crate::autodiff;
use crate::graph::build::{Builder, Made};
use crate::graph::ir::{AxisId, AxisRole, Binary, BufferId, BufferKind, DType, NodeId, Unary};
use std::collections::BTreeMap;

/// What a buffer is filled with.
#[derive(Clone, Copy, Debug)]
pub enum Fill {
    /// Numbers in -2..2.
    Real,
    /// Numbers in 0.1..2.
    Positive,
    /// Integers in 0..n.
    Below(i32),
    /// All of them this number.
    Exactly(f64),
}

/// A row kernel and how to try it.
#[derive(Clone, Debug)]
pub struct Sample {
    pub name: String,
    pub row: Row,
    pub fills: BTreeMap<String, Fill>,
}

/// Sizes of a sample.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub batch: usize,
    pub time: usize,
    pub heads: usize,
    pub dim: usize,
    pub block: usize,
    /// Storage of activations.
    pub dtype: DType,
}

/// A body under construction.
pub struct Body {
    pub b: Builder,
    pub s: Sizes,
    pub outer: Vec<AxisId>,
    fills: BTreeMap<String, Fill>,
    per_task: Vec<BufferId>,
}

impl Body {
    pub fn new(s: Sizes) -> Self {
        Body { b: Builder::new("row", s.dtype), s, outer: vec![], fills: BTreeMap::new(), per_task: vec![] }
    }

    /// A body over the rows of a batch.
    pub fn tokens(s: Sizes) -> Self {
        let mut body = Body::new(s);
        let b = body.b.axis("b", s.batch, AxisRole::Batch).unwrap();
        let t = body.b.axis("t", s.time, AxisRole::Time).unwrap();
        body.outer = vec![b, t];
        body
    }

    pub fn axis(&mut self, name: &str, size: usize) -> AxisId {
        self.b.axis(name, size, AxisRole::Plain).unwrap()
    }

    /// The outer axes followed by others.
    pub fn rows(&self, inner: &[AxisId]) -> Vec<AxisId> {
        [&self.outer[..], inner].concat()
    }

    pub fn input(&mut self, name: &str, dtype: DType, axes: &[AxisId], fill: Fill) -> NodeId {
        let id = self.b.buffer(name, dtype, axes, BufferKind::Param).unwrap();
        self.fills.insert(name.to_string(), fill);
        self.b.read(id).unwrap()
    }

    /// An activation with the outer axes.
    pub fn activation(&mut self, name: &str, inner: &[AxisId]) -> NodeId {
        let axes = self.rows(inner);
        self.input(name, self.s.dtype, &axes, Fill::Real)
    }

    pub fn output(&mut self, name: &str, dtype: DType, axes: &[AxisId], value: NodeId) {
        let id = self.b.buffer(name, dtype, axes, BufferKind::Output).unwrap();
        self.b.assign(id, value).unwrap();
    }

    /// An activation written out.
    pub fn write(&mut self, name: &str, inner: &[AxisId], value: NodeId) {
        let axes = self.rows(inner);
        self.output(name, self.s.dtype, &axes, value);
    }

    /// In-place update of a buffer that is read.
    pub fn update(&mut self, name: &str, value: NodeId) {
        let id = self.b.find_buffer(name).unwrap();
        self.b.assign(id, value).unwrap();
    }

    /// Sum over the outer axes.
    pub fn column(&mut self, name: &str, value: NodeId) {
        let inner: Vec<AxisId> = self.b.axes(value).to_vec();
        let id = self.b.buffer(name, DType::F32, &inner, BufferKind::Output).unwrap();
        self.b.assign(id, value).unwrap();
        self.per_task.push(id);
    }

    pub fn finish(self, name: &str) -> Sample {
        let graph = self.b.finish();
        let args = graph
            .buffers
            .iter()
            .enumerate()
            .map(|(i, buffer)| {
                let mut strides = vec![1i64; buffer.ty.axes.len()];
                for k in (1..strides.len()).rev() {
                    strides[k - 1] = strides[k] * graph.axes[buffer.ty.axes[k].0 as usize].size as i64;
                }
                RowArg { offset: 0, strides, per_task: self.per_task.contains(&BufferId(i as u32)) }
            })
            .collect();
        let s = self.s;
        let name = format!("{name} {:?} b{} t{} h{} d{} block{}", s.dtype, s.batch, s.time, s.heads, s.dim, s.block);
        Sample { name, row: Row { graph, outer: self.outer, block: s.block, args, exact: false }, fills: self.fills }
    }
}

/// `x / rms(x)` over an axis.
pub fn rms(b: &mut Builder, x: NodeId, axis: AxisId) -> Made {
    let square = b.mul(x, x)?;
    let mean = b.mean(square, &[axis])?;
    let mean = b.add_const(mean, 1e-6)?;
    let r = b.rsqrt(mean)?;
    b.mul(x, r)
}

/// Norm with a gain.
pub fn rms_norm(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let x = body.activation("x", &[d]);
    let g = body.input("g", DType::F32, &[d], Fill::Real);
    let n = rms(&mut body.b, x, d).unwrap();
    let y = body.b.mul(n, g).unwrap();
    body.write("y", &[d], y);
    body.finish("rms_norm")
}

/// Its gradients.
pub fn rms_norm_grad(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let x = body.activation("x", &[d]);
    let g = body.input("g", DType::F32, &[d], Fill::Real);
    let dy = body.activation("dy", &[d]);
    let n = rms(&mut body.b, x, d).unwrap();
    let y = body.b.mul(n, g).unwrap();
    let grads = autodiff::grad(&mut body.b, &[(y, dy)], &[x, g]).unwrap();
    body.write("dx", &[d], grads[0].unwrap());
    body.column("dg", grads[1].unwrap());
    body.finish("rms_norm_grad")
}

/// Query norm per head, rotation of the first dims, gain per head.
fn rotate(body: &mut Body) -> (NodeId, NodeId, NodeId, AxisId) {
    let (h, e) = (body.s.heads, body.s.dim);
    let rotated = (e / 4).max(1) * 2;
    let half = rotated / 2;
    let (q, h, d) = (body.axis("q", h * e), body.axis("h", h), body.axis("e", e));
    let (r, r2) = (body.axis("r", half), body.axis("r2", half));
    let rest = (e > rotated).then(|| body.axis("rest", e - rotated));
    let t = body.outer[1];
    let x = body.activation("x", &[q]);
    let cos = body.input("cos", DType::F32, &[t, r], Fill::Real);
    let sin = body.input("sin", DType::F32, &[t, r], Fill::Real);
    let gain = body.input("gain", DType::F32, &[h], Fill::Real);
    let b = &mut body.b;
    let x4 = b.split(x, q, &[h, d]).unwrap();
    let n = rms(b, x4, d).unwrap();
    let x1 = b.slice(n, d, r, 0).unwrap();
    let x2 = b.slice(n, d, r2, half).unwrap();
    let x2 = b.rename(x2, r2, r).unwrap();
    let full = b.axes(x1).to_vec();
    let (cos, sin) = (b.broadcast(cos, &full).unwrap(), b.broadcast(sin, &full).unwrap());
    let (a1, a2) = (b.mul(x1, cos).unwrap(), b.mul(x2, sin).unwrap());
    let y1 = b.add(a1, a2).unwrap();
    let (a1, a2) = (b.mul(x2, cos).unwrap(), b.mul(x1, sin).unwrap());
    let y2 = b.sub(a1, a2).unwrap();
    let y2 = b.rename(y2, r, r2).unwrap();
    let y = match rest {
        Some(rest) => {
            let tail = b.slice(n, d, rest, rotated).unwrap();
            b.concat(&[y1, y2, tail], &[r, r2, rest], d).unwrap()
        }
        None => b.concat(&[y1, y2], &[r, r2], d).unwrap(),
    };
    let y = b.mul(y, gain).unwrap();
    let y = b.merge(y, &[h, d], q).unwrap();
    (x, gain, y, q)
}

pub fn rope(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let (_, _, y, q) = rotate(&mut body);
    body.write("y", &[q], y);
    body.finish("rope")
}

pub fn rope_grad(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let (x, gain, y, q) = rotate(&mut body);
    let dy = body.activation("dy", &[q]);
    let grads = autodiff::grad(&mut body.b, &[(y, dy)], &[x, gain]).unwrap();
    body.write("dx", &[q], grads[0].unwrap());
    body.column("dgain", grads[1].unwrap());
    body.finish("rope_grad")
}

/// Removes from each head's output its part along the value of its group; two query heads share a value.
fn exclude(body: &mut Body) -> (NodeId, NodeId, NodeId, AxisId, AxisId, AxisId) {
    let (kv, g) = (body.s.heads, 2);
    let (h, k, g, e) = (body.axis("h", kv * g), body.axis("k", kv), body.axis("g", g), body.axis("e", body.s.dim));
    let y = body.activation("y", &[h, e]);
    let v = body.activation("v", &[k, e]);
    let b = &mut body.b;
    let y4 = b.split(y, h, &[k, g]).unwrap();
    let square = b.mul(v, v).unwrap();
    let norm = b.sum(square, &[e]).unwrap();
    let norm = b.add_const(norm, 1e-6).unwrap();
    let r = b.rsqrt(norm).unwrap();
    let vn = b.mul(v, r).unwrap();
    let p = b.mul(y4, vn).unwrap();
    let p = b.sum(p, &[e]).unwrap();
    let full = b.axes(y4).to_vec();
    let p = b.broadcast(p, &full).unwrap();
    let part = b.mul(p, vn).unwrap();
    let z = b.sub(y4, part).unwrap();
    let z = b.merge(z, &[k, g], h).unwrap();
    (y, v, z, h, k, e)
}

pub fn xsa(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let (_, _, z, h, _, e) = exclude(&mut body);
    body.write("z", &[h, e], z);
    body.finish("xsa")
}

pub fn xsa_grad(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let (y, v, z, h, k, e) = exclude(&mut body);
    let dz = body.activation("dz", &[h, e]);
    let grads = autodiff::grad(&mut body.b, &[(z, dz)], &[y, v]).unwrap();
    body.write("dy", &[h, e], grads[0].unwrap());
    body.write("dv", &[k, e], grads[1].unwrap());
    body.finish("xsa_grad")
}

/// Blend with the previous position.
pub fn smear(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let x = body.activation("x", &[d]);
    let gate = body.input("gate", DType::F32, &[d], Fill::Real);
    let t = body.outer[1];
    let b = &mut body.b;
    let g = b.sigmoid(gate).unwrap();
    let prev = b.shift(x, t, 1).unwrap();
    let step = b.sub(prev, x).unwrap();
    let step = b.mul(step, g).unwrap();
    let y = b.add(x, step).unwrap();
    body.write("y", &[d], y);
    body.finish("smear")
}

pub fn smear_grad(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let x = body.activation("x", &[d]);
    let gate = body.input("gate", DType::F32, &[d], Fill::Real);
    let dy = body.activation("dy", &[d]);
    let t = body.outer[1];
    let b = &mut body.b;
    let g = b.sigmoid(gate).unwrap();
    let prev = b.shift(x, t, 1).unwrap();
    let step = b.sub(prev, x).unwrap();
    let step = b.mul(step, g).unwrap();
    let y = b.add(x, step).unwrap();
    let grads = autodiff::grad(b, &[(y, dy)], &[x, g]).unwrap();
    body.write("dx", &[d], grads[0].unwrap());
    body.column("dg", grads[1].unwrap());
    body.finish("smear_grad")
}

/// `leaky_relu(u, 0.5)^2` and its derivative times `dh`.
pub fn leaky(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let u = body.activation("u", &[d]);
    let dh = body.activation("dh", &[d]);
    let b = &mut body.b;
    let zero = b.constant(0.0);
    let positive = b.binary(Binary::Gt, u, zero).unwrap();
    let half = b.mul_const(u, 0.5).unwrap();
    let l = b.select(positive, u, half).unwrap();
    let h = b.mul(l, l).unwrap();
    let grads = autodiff::grad(b, &[(h, dh)], &[u]).unwrap();
    body.write("h", &[d], h);
    body.write("du", &[d], grads[0].unwrap());
    body.finish("leaky")
}

/// Residual mix and norm: two outputs.
pub fn mix(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let two = body.axis("two", 2);
    let x = body.activation("x", &[d]);
    let x0 = body.activation("x0", &[d]);
    let m = body.input("mix", DType::F32, &[two, d], Fill::Real);
    let b = &mut body.b;
    let (m0, m1) = (b.index(m, two, 0).unwrap(), b.index(m, two, 1).unwrap());
    let (a, c) = (b.mul(x, m0).unwrap(), b.mul(x0, m1).unwrap());
    let z = b.add(a, c).unwrap();
    let n = rms(b, z, d).unwrap();
    body.write("z", &[d], z);
    body.write("n", &[d], n);
    body.finish("mix")
}

/// Its gradients.
pub fn mix_grad(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let two = body.axis("two", 2);
    let x = body.activation("x", &[d]);
    let x0 = body.activation("x0", &[d]);
    let m = body.input("mix", DType::F32, &[two, d], Fill::Real);
    let (dz, dn) = (body.activation("dz", &[d]), body.activation("dn", &[d]));
    let b = &mut body.b;
    let (m0, m1) = (b.index(m, two, 0).unwrap(), b.index(m, two, 1).unwrap());
    let (a, c) = (b.mul(x, m0).unwrap(), b.mul(x0, m1).unwrap());
    let z = b.add(a, c).unwrap();
    let n = rms(b, z, d).unwrap();
    let grads = autodiff::grad(b, &[(z, dz), (n, dn)], &[x, x0, m0, m1]).unwrap();
    body.write("dx", &[d], grads[0].unwrap());
    body.write("dx0", &[d], grads[1].unwrap());
    body.column("dm0", grads[2].unwrap());
    body.column("dm1", grads[3].unwrap());
    body.finish("mix_grad")
}

/// Softcap and cross-entropy, loss and gradient.
pub fn loss(s: Sizes, grad: bool) -> Sample {
    let mut body = Body::tokens(s);
    let classes = s.heads * s.dim;
    let v = body.axis("v", classes);
    let l = body.activation("logits", &[v]);
    let axes = body.rows(&[]);
    let target = body.input("target", DType::I32, &axes, Fill::Below(classes as i32));
    let b = &mut body.b;
    let z = b.mul_const(l, 1.0 / 15.0).unwrap();
    let z = b.tanh(z).unwrap();
    let z = b.mul_const(z, 15.0).unwrap();
    let nll = b.cross_entropy(z, target, v).unwrap();
    if grad {
        let axes = body.rows(&[]);
        let weight = body.input("weight", DType::F32, &axes, Fill::Real);
        let grads = autodiff::grad(&mut body.b, &[(nll, weight)], &[l]).unwrap();
        body.write("dlogits", &[v], grads[0].unwrap());
        body.output("nll", DType::F32, &axes, nll);
        return body.finish("loss_grad");
    }
    let axes = body.rows(&[]);
    body.output("nll", DType::F32, &axes, nll);
    body.finish("loss")
}

/// AdamW on a matrix, in place, rows outside.
pub fn adamw(s: Sizes) -> Sample {
    let mut body = Body::new(s);
    let (r, c) = (body.axis("r", s.time), body.axis("c", s.heads * s.dim));
    body.outer = vec![r];
    let w = body.input("w", DType::F32, &[r, c], Fill::Real);
    let m = body.input("m", DType::F32, &[r, c], Fill::Real);
    let v = body.input("v", DType::F32, &[r, c], Fill::Positive);
    let g = body.input("g", DType::F32, &[r, c], Fill::Real);
    let lr = body.input("lr", DType::F32, &[], Fill::Exactly(0.01));
    let correct = body.input("correct", DType::F32, &[], Fill::Exactly(0.3));
    let b = &mut body.b;
    let (a, p) = (b.mul_const(m, 0.9).unwrap(), b.mul_const(g, 0.1).unwrap());
    let m2 = b.add(a, p).unwrap();
    let square = b.mul(g, g).unwrap();
    let (a, p) = (b.mul_const(v, 0.99).unwrap(), b.mul_const(square, 0.01).unwrap());
    let v2 = b.add(a, p).unwrap();
    let scaled = b.div(v2, correct).unwrap();
    let root = b.sqrt(scaled).unwrap();
    let root = b.add_const(root, 1e-8).unwrap();
    let step = b.div(m2, root).unwrap();
    let step = b.mul(step, lr).unwrap();
    let decay = b.mul_const(lr, -0.04).unwrap();
    let decay = b.add_const(decay, 1.0).unwrap();
    let w2 = b.mul(w, decay).unwrap();
    let w2 = b.sub(w2, step).unwrap();
    body.update("m", m2);
    body.update("v", v2);
    body.update("w", w2);
    body.finish("adamw")
}

/// Momentum with Nesterov look-ahead, rounded update, squares per task.
pub fn momentum(s: Sizes) -> Sample {
    let mut body = Body::new(s);
    let (r, c) = (body.axis("r", s.time), body.axis("c", s.heads * s.dim));
    body.outer = vec![r];
    let m = body.input("m", DType::F32, &[r, c], Fill::Real);
    let g = body.input("g", DType::F32, &[r, c], Fill::Real);
    let mu = body.input("mu", DType::F32, &[], Fill::Exactly(0.95));
    let b = &mut body.b;
    let a = b.mul(m, mu).unwrap();
    let m2 = b.add(a, g).unwrap();
    let a = b.mul(m2, mu).unwrap();
    let u = b.add(a, g).unwrap();
    let square = b.mul(u, u).unwrap();
    let sum = b.sum(square, &[r, c]).unwrap();
    body.update("m", m2);
    body.output("u", DType::Bf16, &[r, c], u);
    body.column("squares", sum);
    body.finish("momentum")
}

/// Buffers that are read by several loops and overwritten, each other's inputs, a transposed and a scalar one among them.
pub fn in_place(s: Sizes) -> Sample {
    let mut body = Body::new(s);
    let (r, h, e) = (body.axis("r", s.time), body.axis("h", s.heads), body.axis("e", s.dim));
    body.outer = vec![r];
    let w = body.input("w", DType::F32, &[r, h, e], Fill::Real);
    let v = body.input("v", s.dtype, &[r, h, e], Fill::Real);
    let u = body.input("u", DType::F32, &[r, e], Fill::Real);
    let ema = body.input("ema", DType::F32, &[r], Fill::Positive);
    let b = &mut body.b;
    let square = b.mul(w, w).unwrap();
    let mean = b.mean(square, &[h, e]).unwrap();
    let scale = b.rsqrt(mean).unwrap();
    let w2 = b.mul(w, scale).unwrap();
    let columns = b.sum(w, &[h]).unwrap();
    let u2 = b.add(u, columns).unwrap();
    let v2 = b.mul(v, u).unwrap();
    let v2 = b.mul(v2, ema).unwrap();
    let (old, new) = (b.mul_const(ema, 0.9).unwrap(), b.mul_const(mean, 0.1).unwrap());
    let ema2 = b.add(old, new).unwrap();
    body.update("ema", ema2);
    body.update("u", u2);
    body.update("w", w2);
    body.update("v", v2);
    body.finish("in_place")
}

/// Division by a norm whose partial sums another kernel left.
pub fn normalise(s: Sizes) -> Sample {
    let mut body = Body::new(s);
    let (r, c, p) = (body.axis("r", s.time), body.axis("c", s.heads * s.dim), body.axis("p", 5));
    body.outer = vec![r];
    let u = body.input("u", DType::F32, &[r, c], Fill::Real);
    let squares = body.input("squares", DType::F32, &[p], Fill::Positive);
    let b = &mut body.b;
    let sum = b.sum(squares, &[p]).unwrap();
    let norm = b.sqrt(sum).unwrap();
    let norm = b.add_const(norm, 1e-7).unwrap();
    let y = b.div(u, norm).unwrap();
    body.output("y", DType::Bf16, &[r, c], y);
    body.finish("normalise")
}

/// Rows to six bits with a given clip.
pub fn quantise(s: Sizes) -> Sample {
    let mut body = Body::new(s);
    let (r, c) = (body.axis("r", s.time), body.axis("c", s.heads * s.dim));
    body.outer = vec![r];
    let w = body.input("w", DType::F32, &[r, c], Fill::Real);
    let clip = body.input("clip", DType::F32, &[r], Fill::Positive);
    let b = &mut body.b;
    let scale = b.mul_const(clip, 1.0 / 31.0).unwrap();
    let scale = b.binary_const(Binary::Max, scale, 1e-7).unwrap();
    let scale = b.cast(scale, DType::F16).unwrap();
    let q = b.div(w, scale).unwrap();
    let q = b.binary_const(Binary::Min, q, 31.0).unwrap();
    let q = b.binary_const(Binary::Max, q, -32.0).unwrap();
    let q = b.round(q).unwrap();
    let codes = b.cast(q, DType::I8).unwrap();
    let deq = b.mul(q, scale).unwrap();
    body.output("codes", DType::I8, &[r, c], codes);
    body.output("scale", DType::F16, &[r], scale);
    body.output("dequant", DType::F32, &[r, c], deq);
    body.finish("quantise")
}

/// Token embedding plus a hashed bigram table, then a norm.
pub fn embed(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let (vocab, buckets) = (body.axis("vocab", 50), body.axis("buckets", 37));
    let axes = body.rows(&[]);
    let tokens = body.input("tokens", DType::I32, &axes, Fill::Below(50));
    let table = body.input("table", s.dtype, &[vocab, d], Fill::Real);
    let bigrams = body.input("bigrams", s.dtype, &[buckets, d], Fill::Real);
    let scale = body.input("scale", DType::F32, &[], Fill::Exactly(0.05));
    let t = body.outer[1];
    let b = &mut body.b;
    let x = b.gather(table, tokens, vocab).unwrap();
    let prev = b.shift(tokens, t, 1).unwrap();
    let (k1, k2, n) = (b.int(36313), b.int(27191), b.int(37));
    let (h1, h2) = (b.mul(tokens, k1).unwrap(), b.mul(prev, k2).unwrap());
    let h = b.binary(Binary::Xor, h1, h2).unwrap();
    let h = b.binary(Binary::Mod, h, n).unwrap();
    let y = b.gather(bigrams, h, buckets).unwrap();
    let y = b.mul(y, scale).unwrap();
    let z = b.add(x, y).unwrap();
    let z = rms(b, z, d).unwrap();
    body.write("z", &[d], z);
    body.output("hash", DType::I32, &axes, h);
    body.finish("embed")
}

/// A transposed copy that rounds.
pub fn transpose(s: Sizes) -> Sample {
    let mut body = Body::new(s);
    let (r, c) = (body.axis("r", s.time), body.axis("c", s.heads * s.dim));
    body.outer = vec![c];
    let x = body.input("x", DType::F32, &[r, c], Fill::Real);
    body.output("y", s.dtype, &[c, r], x);
    body.finish("transpose")
}

/// Running sums along the last and along another axis, sums over the first inner axis, extremes.
pub fn running(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let (h, e) = (body.axis("h", s.heads), body.axis("e", s.dim));
    let x = body.activation("x", &[h, e]);
    let b = &mut body.b;
    let across = b.cumsum(x, e, false).unwrap();
    let down = b.cumsum(x, h, true).unwrap();
    let half = b.mul_const(x, 0.25).unwrap();
    let scan = b.scan(half, x, e, true).unwrap();
    let columns = b.sum(x, &[h]).unwrap();
    let all = b.reduce_max(x, &[h, e]).unwrap();
    let least = b.reduce_min(x, &[h]).unwrap();
    let y = b.add(across, columns).unwrap();
    let y = b.add(y, all).unwrap();
    let y = b.mul(y, least).unwrap();
    let f32s = body.rows(&[h, e]);
    body.output("y", DType::F32, &f32s, y);
    body.output("down", DType::F32, &f32s, down);
    body.output("scan", DType::F32, &f32s, scan);
    body.finish("running")
}

/// The largest per head and their positions, values that occur twice included.
pub fn best(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let (h, e, two) = (body.axis("h", s.heads), body.axis("e", s.dim), body.axis("two", 2));
    let x = body.activation("x", &[h, e]);
    let axes = body.rows(&[h, e]);
    let i = body.input("i", DType::I32, &axes, Fill::Below(3));
    let b = &mut body.b;
    let y = b.add_const(x, 1.0).unwrap();
    let y = b.top_k_values(y, e, two).unwrap();
    let at = b.top_k_indices(i, e, two).unwrap();
    let axes = body.rows(&[h, two]);
    body.output("y", DType::F32, &axes, y);
    body.output("at", DType::I32, &axes, at);
    body.finish("best")
}

/// Pads, places, shifts inside a row, slices and concatenations that do not line up with vectors.
pub fn puzzle(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let (h, e) = (body.axis("h", s.heads), body.axis("e", s.dim));
    let (wide, tall, two) = (body.axis("wide", s.dim + 5), body.axis("tall", s.heads + 1), body.axis("two", 2));
    let (flat, e2) = (body.axis("flat", s.heads * (s.dim + 5)), body.axis("both", 2 * s.dim));
    let part = body.axis("part", s.dim.div_ceil(2));
    let x = body.activation("x", &[h, e]);
    let y = body.activation("y", &[h, e]);
    let b = &mut body.b;
    let padded = b.pad(x, e, wide, 3).unwrap();
    let m = b.merge(padded, &[h, wide], flat).unwrap();
    let rows = [b.axes(x)[0], b.axes(x)[1]];
    let placed = b.place(m, two, 1, &[&rows[..], &[two, flat]].concat()).unwrap();
    let shifted = b.shift(y, e, -2).unwrap();
    let down = b.shift(x, h, 1).unwrap();
    let z = b.add(shifted, down).unwrap();
    let ranks = b.iota(e).unwrap();
    let ranks = b.cast(ranks, DType::F32).unwrap();
    let z = b.mul(z, ranks).unwrap();
    let z = b.pad(z, h, tall, 0).unwrap();
    let c = b.concat(&[x, y], &[e, e], e2).unwrap();
    let cs = b.sum(c, &[e2]).unwrap();
    let first = b.slice(c, e2, part, s.dim / 2).unwrap();
    let mx = b.reduce_max(first, &[part]).unwrap();
    let sum = b.add(cs, mx).unwrap();
    let axes = |body: &Body, inner: &[AxisId]| body.rows(inner);
    let (a1, a2, a3) = (axes(&body, &[two, flat]), axes(&body, &[tall, e]), axes(&body, &[h]));
    body.output("placed", DType::F32, &a1, placed);
    body.output("z", DType::F32, &a2, z);
    body.output("sum", DType::F32, &a3, sum);
    body.finish("puzzle")
}

/// Every element-wise op on every kind of value it takes, one output each.
pub fn ops(s: Sizes) -> Sample {
    let mut body = Body::tokens(s);
    let d = body.axis("d", s.heads * s.dim);
    let axes = body.rows(&[d]);
    let x = body.activation("x", &[d]);
    let y = body.input("y", s.dtype, &[d], Fill::Positive);
    let p = body.input("p", DType::F32, &axes, Fill::Positive);
    let i = body.input("i", DType::I32, &axes, Fill::Below(1000));
    let j = body.input("j", DType::I32, &[d], Fill::Below(9));
    let c = body.input("c", DType::I8, &axes, Fill::Below(100));
    let h = body.input("h", DType::F16, &axes, Fill::Real);
    let f = body.input("f", DType::Bool, &axes, Fill::Below(2));
    let b = &mut body.b;
    let down = b.int(500);
    let k = b.sub(i, down).unwrap();
    let one = b.int(1);
    let j = b.add(j, one).unwrap();
    let mut out: Vec<(NodeId, DType)> = vec![];
    for op in crate::graph::ops::UNARY {
        let of = match op {
            Unary::Not => vec![f],
            Unary::Log | Unary::Sqrt | Unary::Rsqrt | Unary::Recip => vec![p],
            Unary::Neg | Unary::Abs | Unary::Sign => vec![x, k],
            _ => vec![x],
        };
        for a in of {
            let v = b.unary(op, a).unwrap();
            out.push((v, DType::F32));
        }
    }
    for op in crate::graph::ops::BINARY {
        let of = match op {
            Binary::Pow => vec![(p, x)],
            Binary::And | Binary::Or | Binary::Xor => vec![(k, j), (f, f)],
            Binary::Shl | Binary::Shr => vec![(k, j)],
            _ => vec![(x, y), (k, j)],
        };
        for (u, v) in of {
            let v = b.binary(op, u, v).unwrap();
            out.push((v, DType::F32));
        }
    }
    for to in [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::I8, DType::Bool] {
        let scaled = b.mul_const(x, 100.0).unwrap();
        for v in [x, scaled, k, c, h, f] {
            let v = b.cast(v, to).unwrap();
            out.push((v, DType::F32));
        }
    }
    let v = b.select(f, x, y).unwrap();
    out.push((v, DType::Bf16));
    let v = b.select(f, k, j).unwrap();
    out.push((v, DType::I32));
    let mut done = vec![];
    for (n, (v, float)) in out.into_iter().enumerate() {
        if done.contains(&v) {
            continue;
        }
        done.push(v);
        let dtype = match body.b.dtype(v) {
            DType::F32 => float,
            other => other,
        };
        let v = body.b.broadcast(v, &axes).unwrap();
        body.output(&format!("out{n}"), dtype, &axes, v);
    }
    body.finish("ops")
}

/// All bodies at one size.
pub fn all(s: Sizes) -> Vec<Sample> {
    vec![
        rms_norm(s),
        rms_norm_grad(s),
        rope(s),
        rope_grad(s),
        xsa(s),
        xsa_grad(s),
        smear(s),
        smear_grad(s),
        leaky(s),
        mix(s),
        mix_grad(s),
        loss(s, false),
        loss(s, true),
        adamw(s),
        momentum(s),
        in_place(s),
        normalise(s),
        quantise(s),
        embed(s),
        transpose(s),
        running(s),
        puzzle(s),
        best(s),
    ]
}
