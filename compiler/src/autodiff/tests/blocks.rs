//! Composite functions: the pieces of a transformer and one whole block.

use super::Case;
use crate::graph::ir::*;

/// x / sqrt(mean x^2 + eps)
fn rms_norm(c: &mut Case, x: NodeId, over: AxisId) -> NodeId {
    let b = &mut c.b;
    let square = b.mul(x, x).unwrap();
    let mean = b.mean(square, &[over]).unwrap();
    let mean = b.add_const(mean, 1e-3).unwrap();
    let scale = b.rsqrt(mean).unwrap();
    b.mul(x, scale).unwrap()
}

/// Half-split rotation of the first four dims of d_6 at positions t_5.
fn rope(c: &mut Case, x: NodeId) -> NodeId {
    let (t, d, r, rest, pair, freq) =
        (c.axis("t_5"), c.axis("d_6"), c.axis("rot_4"), c.axis("rest_2"), c.axis("pair_2"), c.axis("freq_2"));
    let b = &mut c.b;
    let position = b.iota(t).unwrap();
    let position = b.cast(position, DType::F32).unwrap();
    let number = b.iota(freq).unwrap();
    let number = b.cast(number, DType::F32).unwrap();
    let base = b.constant(0.1);
    let rate = b.pow(base, number).unwrap();
    let angle = b.outer(Binary::Mul, position, rate).unwrap();
    let (sin, cos) = (b.sin(angle).unwrap(), b.cos(angle).unwrap());
    let rotated = b.slice(x, d, r, 0).unwrap();
    let kept = b.slice(x, d, rest, 4).unwrap();
    let halves = b.split(rotated, r, &[pair, freq]).unwrap();
    let (p, q) = (b.index(halves, pair, 0).unwrap(), b.index(halves, pair, 1).unwrap());
    let (pc, qs, ps, qc) =
        (b.mul(p, cos).unwrap(), b.mul(q, sin).unwrap(), b.mul(p, sin).unwrap(), b.mul(q, cos).unwrap());
    let (first, second) = (b.add(pc, qs).unwrap(), b.sub(qc, ps).unwrap());
    b.concat(&[first, second, kept], &[freq, freq, rest], d).unwrap()
}

/// y - <y, v/|v|> v/|v|
fn xsa(c: &mut Case, y: NodeId, v: NodeId, over: AxisId) -> NodeId {
    let b = &mut c.b;
    let square = b.mul(v, v).unwrap();
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

/// 3 tanh(x / 3)
fn softcap(c: &mut Case, x: NodeId) -> NodeId {
    let x = c.b.mul_const(x, 1.0 / 3.0).unwrap();
    let x = c.b.tanh(x).unwrap();
    c.b.mul_const(x, 3.0).unwrap()
}

#[test]
fn rms_norm_with_gain() {
    let mut c = Case::new();
    let (x, gain) = (c.x("x", "a_2 t_5 d_6"), c.x("gain", "d_6"));
    let d = c.axis("d_6");
    let n = rms_norm(&mut c, x, d);
    let y = c.b.mul(n, gain).unwrap();
    c.check("rms_norm", y);
}

#[test]
fn rotary_embedding() {
    let mut c = Case::new();
    let x = c.x("x", "a_2 t_5 d_6");
    let y = rope(&mut c, x);
    c.check("rope", y);
}

#[test]
fn exclusive_self_attention() {
    let mut c = Case::new();
    let (y, v) = (c.x("y", "t_5 g_2 d_6"), c.x("v", "t_5 d_6"));
    let d = c.axis("d_6");
    let z = xsa(&mut c, y, v, d);
    c.check("xsa", z);
}

#[test]
fn softcapped_cross_entropy() {
    let mut c = Case::new();
    let (x, w) = (c.x("x", "t_5 d_6"), c.input("w", "v_7 d_6", -4.0, 4.0));
    let (d, v, t) = (c.axis("d_6"), c.axis("v_7"), c.axis("t_5"));
    let target = c.ints("target", "t_5", &[0, 6, 3, 3, 1]);
    let logits = c.b.dot(x, w, &[d]).unwrap();
    let logits = softcap(&mut c, logits);
    let nll = c.b.cross_entropy(logits, target, v).unwrap();
    let loss = c.b.mean(nll, &[t]).unwrap();
    c.check("softcapped cross-entropy", loss);
}

#[test]
fn smear_gate_and_shift() {
    let mut c = Case::new();
    let (x, gate) = (c.x("x", "a_2 t_5 d_6"), c.x("gate", "d_6"));
    let t = c.axis("t_5");
    let before = c.b.shift(x, t, 1).unwrap();
    let g = c.b.sigmoid(gate).unwrap();
    let (now, then) = (c.b.sub(x, before).unwrap(), before);
    let y = c.b.mul(now, g).unwrap();
    let y = c.b.add(y, then).unwrap();
    c.check("smear", y);
}

/// Embedding, rotary grouped attention with value mixing and XSA, squared leaky MLP, tied head with softcap, mean loss.
#[test]
fn a_whole_block() {
    let mut c = Case::new();
    let table = c.x("table", "v_7 d_6");
    let tokens = c.ints("tokens", "n_2 t_5", &[0, 3, 6, 1, 1, 2, 5, 4, 0, 6]);
    let targets = c.ints("targets", "n_2 t_5", &[3, 6, 1, 1, 2, 5, 4, 0, 6, 1]);
    let (wq, wk, wv, wo) = (c.x("wq", "q_12 e_6"), c.x("wk", "d_6 e_6"), c.x("wv", "d_6 e_6"), c.x("wo", "e_6 q_12"));
    let (up, down) = (c.x("up", "f_8 e_6"), c.x("down", "e_6 f_8"));
    let (gain, scale) = (c.input("gain", "g_2", 1.0, 2.0), c.input("scale", "e_6", 0.5, 1.5));
    let [v, d, e, q, g, f, t, n] = ["v_7", "d_6", "e_6", "q_12", "g_2", "f_8", "t_5", "n_2"].map(|name| c.axis(name));

    // [n t e]
    let x = c.b.gather(table, tokens, v).unwrap();
    let x = c.b.rename(x, d, e).unwrap();
    let h = rms_norm(&mut c, x, e);
    let qs = c.b.dot(h, wq, &[e]).unwrap();
    let qs = c.b.split(qs, q, &[g, d]).unwrap();
    let qs = rms_norm(&mut c, qs, d);
    let qs = rope(&mut c, qs);
    let qs = c.b.mul(qs, gain).unwrap();
    let ks = c.b.dot(h, wk, &[e]).unwrap();
    let ks = rms_norm(&mut c, ks, d);
    let ks = rope(&mut c, ks);
    let vs = c.b.dot(h, wv, &[e]).unwrap();
    let how = Attend { time: t, dim: d, scale: Bits::new(0.4), causal: true, window: None, document: false };
    let y = c.b.attend(how, qs, ks, vs, None).unwrap();
    let y = xsa(&mut c, y, vs, d);
    let y = c.b.merge(y, &[g, d], q).unwrap();
    let y = c.b.dot(y, wo, &[q]).unwrap();
    let y = c.b.mul(y, scale).unwrap();
    let x = c.b.add(x, y).unwrap();

    let h = rms_norm(&mut c, x, e);
    let h = c.b.dot(h, up, &[e]).unwrap();
    let zero = c.b.constant(0.0);
    let positive = c.b.ge(h, zero).unwrap();
    let low = c.b.mul_const(h, 0.5).unwrap();
    let h = c.b.select(positive, h, low).unwrap();
    let h = c.b.mul(h, h).unwrap();
    let h = c.b.dot(h, down, &[f]).unwrap();
    let x = c.b.add(x, h).unwrap();

    let x = rms_norm(&mut c, x, e);
    let x = c.b.rename(x, e, d).unwrap();
    let logits = c.b.dot(x, table, &[d]).unwrap();
    let logits = softcap(&mut c, logits);
    let nll = c.b.cross_entropy(logits, targets, v).unwrap();
    let loss = c.b.mean(nll, &[n, t]).unwrap();
    c.check("block", loss);
}
