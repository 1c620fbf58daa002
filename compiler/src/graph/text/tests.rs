//! Round trips and readable errors.

use super::{canonical, parse, print};
use crate::graph::build::Builder;
use crate::graph::ir::*;
use crate::graph::ops::{BINARY, ROWS, UNARY, row};
use std::collections::BTreeSet;

/// A graph in which every op of the table occurs.
pub(crate) fn everything() -> Graph {
    let mut b = Builder::new("every op", DType::Bf16);
    let n = b.axis("b", 2, AxisRole::Batch).unwrap();
    let t = b.axis("t", 4, AxisRole::Time).unwrap();
    let s = b.axis("t'", 4, AxisRole::Time).unwrap();
    let [d, e, h, k, two] = [("d", 6), ("e", 3), ("head count", 2), ("k", 2), ("m.2", 8)]
        .map(|(n, s)| b.axis(n, s, AxisRole::Plain).unwrap());
    let xb = b.buffer("x", DType::Bf16, &[n, t, d], BufferKind::Param).unwrap();
    let ib = b.buffer("odd \"name\"\\\n", DType::I32, &[n, t], BufferKind::Input).unwrap();
    let cb = b.const_buffer(DType::F32, &[k], vec![0.1, f64::NEG_INFINITY]).unwrap();
    let (x, i, c) = (b.read(xb).unwrap(), b.read(ib).unwrap(), b.read(cb).unwrap());
    let zero = b.constant(-0.0);
    let tiny = b.constant(1.5e-300);
    let cond = b.lt(x, zero).unwrap();
    for op in UNARY {
        let _ = b.unary(op, x).or_else(|_| b.unary(op, i)).or_else(|_| b.unary(op, cond)).unwrap();
    }
    b.set_origin(Origin { span: Some((3, 14, 15)), visit: "blocks.4@2".to_string() });
    for op in BINARY {
        let _ = b.binary(op, x, tiny).or_else(|_| b.binary(op, i, i)).unwrap();
    }
    b.set_origin(Origin { span: None, visit: "a visit".to_string() });
    b.select(cond, x, zero).unwrap();
    b.set_origin(Origin { span: Some((0, 1, 2)), visit: String::new() });
    b.iota(t).unwrap();
    let codes = b.cast(x, DType::I8).unwrap();
    b.stop_gradient(x).unwrap();
    b.set_origin(Origin::default());
    b.straight_through(x, x).unwrap();
    b.broadcast(c, &[k, e]).unwrap();
    for op in [Reduce::Sum, Reduce::Max, Reduce::Min] {
        b.reduce(op, x, &[n, d]).unwrap();
    }
    let xs = b.rename(x, t, s).unwrap();
    b.dot_as(x, xs, &[d], &[t, s, n]).unwrap();
    b.dot(x, c, &[]).unwrap();
    let rows = b.gather(x, i, d);
    assert!(rows.is_err(), "n and t would occur twice");
    let first = b.index(x, t, 3).unwrap();
    let first = b.index(first, n, 0).unwrap();
    b.gather(first, i, d).unwrap();
    b.scatter_add(i, x, two).unwrap();
    let halves = b.split(x, d, &[h, e]).unwrap();
    b.merge(halves, &[e, h], d).unwrap();
    let part = b.slice(x, d, e, 2).unwrap();
    b.pad(part, e, d, 1).unwrap();
    b.place(first, k, 1, &[k, d]).unwrap();
    b.concat(&[x, halves], &[t, t], two).unwrap_err();
    b.concat(&[x, x], &[t, t], two).unwrap();
    b.shift(x, t, -3).unwrap();
    b.cumsum(x, t, true).unwrap();
    b.scan(x, x, t, false).unwrap();
    b.scan(x, x, t, true).unwrap();
    let how = Attend { time: t, dim: d, scale: Bits::new(0.1), causal: true, window: Some(3), document: true };
    let y = b.attend(how, x, x, x, Some(i)).unwrap();
    let lse = b.attend_lse(how, x, x, Some(i)).unwrap();
    for which in [AttendArg::Q, AttendArg::K, AttendArg::V] {
        b.attend_grad(how, which, &[x, x, x, y, lse, x, i]).unwrap();
    }
    b.attend(Attend { window: None, causal: false, document: false, ..how }, x, x, x, None).unwrap();
    let nll = b.cross_entropy(x, i, d).unwrap();
    b.cross_entropy_grad(x, i, nll, d).unwrap();
    b.quantile(x, d, 0.99).unwrap();
    let (visits, order, scale) = (b.twin(d), b.iota(d).unwrap(), b.reduce_max(x, &[d]).unwrap());
    let upper = b.fill(1.0, &[d, visits]).unwrap();
    b.feedback_round(x, scale, order, upper, d, -31.0, 31.5).unwrap();
    b.top_k_values(x, d, k).unwrap();
    b.top_k_indices(x, d, k).unwrap();
    let counter = b.int(7);
    b.random(u64::MAX, true, counter, &[k]).unwrap();
    b.random(3, false, counter, &[k, t]).unwrap();
    let out = b.buffer("out", DType::I8, &[n, t, d], BufferKind::Output).unwrap();
    b.assign(out, codes).unwrap();
    let grad = b.buffer("grad.x", DType::F32, &[d, n, t], BufferKind::Grad).unwrap();
    b.accumulate(grad, y).unwrap();
    b.buffer("s", DType::F16, &[], BufferKind::State).unwrap();
    b.finish()
}

#[test]
fn print_and_parse_are_inverse() {
    let g = everything();
    let names: BTreeSet<_> = g.nodes.iter().map(|n| row(&n.op).name).collect();
    let missing: Vec<_> = ROWS.iter().map(|r| r.name).filter(|n| !names.contains(n)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let text = print(&g);
    let back = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(print(&back), text);
    assert_eq!(back, g);
}

#[test]
fn the_text_is_readable() {
    let mut b = Builder::new("train.micro", DType::Bf16);
    let n = b.axis("b", 2, AxisRole::Batch).unwrap();
    let t = b.axis("t", 8, AxisRole::Time).unwrap();
    let d = b.axis("d", 4, AxisRole::Plain).unwrap();
    let q = b.axis("q", 16, AxisRole::Plain).unwrap();
    let x = b.buffer("x", DType::Bf16, &[n, t, d], BufferKind::Input).unwrap();
    let w = b.buffer("w", DType::F32, &[q, d], BufferKind::Param).unwrap();
    let y = b.buffer("y", DType::F32, &[n, t, q], BufferKind::Output).unwrap();
    let (x, w) = (b.read(x).unwrap(), b.read(w).unwrap());
    b.set_origin(Origin { span: Some((0, 120, 131)), visit: "blocks.4@2".to_string() });
    let z = b.dot(x, w, &[d]).unwrap();
    let z = b.mul_const(z, 0.5).unwrap();
    b.assign(y, z).unwrap();
    let text = "\
graph train.micro bf16
axis b 2 batch
axis t 8 time
axis d 4
axis q 16
input x : bf16 [b t d]
param w : f32 [q d]
output y : f32 [b t q]
%0 = read(x) : f32 [b t d]
%1 = read(w) : f32 [q d]
%2 = dot(%0, %1; over d) : f32 [b t q]  @ 0:120..131 blocks.4@2
%3 = const(0.5) : f32 []  @ 0:120..131 blocks.4@2
%4 = mul(%2, %3) : f32 [b t q]  @ 0:120..131 blocks.4@2
assign y %4
";
    assert_eq!(print(b.graph()), text);
}

#[test]
fn canonical_forgets_names_only() {
    let make = |name: &str, axis: &str, size: usize, factor: f64| {
        let mut b = Builder::new(name, DType::F32);
        let a = b.axis(axis, size, AxisRole::Plain).unwrap();
        let x = b.buffer(&format!("{name}.in"), DType::F32, &[a], BufferKind::Input).unwrap();
        let y = b.buffer(&format!("{name}.out"), DType::F32, &[a], BufferKind::Output).unwrap();
        b.set_origin(Origin { span: None, visit: name.to_string() });
        let z = b.read(x).unwrap();
        let z = b.mul_const(z, factor).unwrap();
        b.assign(y, z).unwrap();
        canonical(b.graph())
    };
    assert_eq!(make("one", "d", 4, 2.0), make("two", "q", 4, 2.0));
    assert_ne!(make("one", "d", 4, 2.0), make("one", "d", 5, 2.0));
    assert_ne!(make("one", "d", 4, 2.0), make("one", "d", 4, 2.5));
}

#[test]
fn errors_name_the_line() {
    for (text, expected) in [
        ("", "line 1: expected `graph NAME DTYPE`"),
        ("graph g f33", "line 1: expected a dtype, found `f33`"),
        ("graph g f32\n\naxis d four", "line 3: expected a number, found `four`"),
        ("graph g f32\n%0 = iota(d) : i32 [d]", "line 2: no axis is called `d`"),
        ("graph g f32\naxis d 4\n%1 = iota(d) : i32 [d]", "line 3: expected %0, found %1"),
        ("graph g f32\naxis d 4\n%0 = neg(%0) : f32 [d]", "line 3: %0 is not defined above"),
        ("graph g f32\naxis d 4\n%0 = iota(d) : i32 [d", "line 3: expected `]`, found the end of the line"),
        ("graph g f32\naxis d 4\n%0 = wave(d) : i32 [d]", "line 3: no op is called `wave`"),
        ("graph g f32\naxis d 4 time 3", "line 2: unexpected `3`"),
        ("graph g f32\nparam \"x : f32 []", "line 2: a quoted name does not end"),
        ("graph g f32\nassign x %0", "line 2: no buffer is called `x`"),
    ] {
        assert_eq!(parse(text).unwrap_err().to_string(), expected);
    }
}
