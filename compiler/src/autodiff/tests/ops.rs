//! One case per op (more where shapes matter), and the proof that no op is missing.

use super::Case;
use crate::graph::ir::*;
use crate::graph::ops::{Derivative, ROWS, row};
use std::collections::BTreeSet;

type Build = fn(&mut Case) -> NodeId;

fn unary(c: &mut Case, op: Unary, low: f64, high: f64) -> NodeId {
    let x = c.input("x", "a_2 t b_1", low, high);
    c.b.unary(op, x).unwrap()
}

/// Both operands vary; the second lacks an axis.
fn binary(c: &mut Case, op: Binary, low: f64, high: f64) -> NodeId {
    let x = c.input("x", "a_2 b c_1", low, high);
    let y = c.input("y", "b", low, high);
    c.b.binary(op, x, y).unwrap()
}

fn how(c: &mut Case, causal: bool, window: Option<u32>, document: bool) -> Attend {
    let (time, dim) = (c.axis("t_5"), c.axis("d_4"));
    Attend { time, dim, scale: Bits::new(0.7), causal, window, document }
}

fn attend(c: &mut Case, causal: bool, window: Option<u32>, document: bool) -> NodeId {
    let how = how(c, causal, window, document);
    // Axes in unusual orders; g_3 is the group.
    let q = c.x("q", "t_5 n_2 g_3 d_4");
    let k = c.x("k", "n_2 t_5 d_4");
    let v = c.x("v", "d_4 n_2 t_5");
    let document = document.then(|| c.ints("document", "t_5", &[0, 0, 1, 1, 1]));
    c.b.attend(how, q, k, v, document).unwrap()
}

const CASES: &[(&str, Build)] = &[
    ("read", |c| c.x("x", "a_2")),
    ("neg", |c| unary(c, Unary::Neg, -1.0, 1.0)),
    ("exp", |c| unary(c, Unary::Exp, -1.0, 1.0)),
    ("log", |c| unary(c, Unary::Log, 0.5, 2.0)),
    ("tanh", |c| unary(c, Unary::Tanh, -1.0, 1.0)),
    ("sigmoid", |c| unary(c, Unary::Sigmoid, -2.0, 2.0)),
    ("sin", |c| unary(c, Unary::Sin, -3.0, 3.0)),
    ("cos", |c| unary(c, Unary::Cos, -3.0, 3.0)),
    ("sqrt", |c| unary(c, Unary::Sqrt, 0.5, 2.0)),
    ("rsqrt", |c| unary(c, Unary::Rsqrt, 0.5, 2.0)),
    ("abs", |c| unary(c, Unary::Abs, -1.0, 1.0)),
    ("recip", |c| unary(c, Unary::Recip, 0.5, 2.0)),
    ("add", |c| binary(c, Binary::Add, -1.0, 1.0)),
    ("sub", |c| binary(c, Binary::Sub, -1.0, 1.0)),
    ("mul", |c| binary(c, Binary::Mul, -1.0, 1.0)),
    ("div", |c| binary(c, Binary::Div, 0.5, 2.0)),
    ("min", |c| binary(c, Binary::Min, -1.0, 1.0)),
    ("max", |c| binary(c, Binary::Max, -1.0, 1.0)),
    ("pow", |c| binary(c, Binary::Pow, 0.5, 2.0)),
    ("mod", |c| binary(c, Binary::Mod, 0.5, 2.0)),
    ("the smaller operand first", |c| {
        let (x, y) = (c.x("x", "b"), c.x("y", "a_2 b"));
        let z = c.b.sub(x, y).unwrap();
        c.b.mul(x, z).unwrap()
    }),
    ("a square", |c| {
        let x = c.x("x", "a_2 b");
        c.b.mul(x, x).unwrap()
    }),
    ("a constant power of any sign", |c| {
        let x = c.x("x", "a_2 b");
        let three = c.b.constant(3.0);
        c.b.pow(x, three).unwrap()
    }),
    ("select", |c| {
        let (x, y) = (c.x("x", "a_2 b"), c.x("y", "b"));
        let i = c.ints("i", "a_2 b", &[0, 1, 0, 1, 1, 0]);
        let one = c.b.int(1);
        let cond = c.b.eq(i, one).unwrap();
        c.b.select(cond, x, y).unwrap()
    }),
    ("cast", |c| {
        // Value y = x^2, whose slope the differences see; the derivative can only come through the cast of y.
        let x = c.x("x", "a_2");
        let y = c.b.mul(x, x).unwrap();
        let rounded = c.b.cast(y, DType::Bf16).unwrap();
        c.b.straight_through(y, rounded).unwrap()
    }),
    ("straight_through", |c| {
        // Value -x, whose slope the differences see; the derivative can only come from the second operand.
        let x = c.x("x", "a_2");
        let y = c.b.neg(x).unwrap();
        let stopped = c.b.stop_gradient(y).unwrap();
        c.b.straight_through(stopped, y).unwrap()
    }),
    ("broadcast", |c| {
        let x = c.x("x", "b a_2");
        let to = c.axes("a_2 e_4 b");
        c.b.broadcast(x, &to).unwrap()
    }),
    ("sum", |c| {
        let x = c.x("x", "a_2 b e_4");
        let over = c.axes("e_4 a_2");
        let y = c.b.sum(x, &over).unwrap();
        c.b.mul(y, y).unwrap()
    }),
    ("reduce_max", |c| {
        let x = c.x("x", "a_2 b e_4");
        let over = c.axes("a_2 e_4");
        c.b.reduce_max(x, &over).unwrap()
    }),
    ("reduce_min", |c| {
        let x = c.x("x", "a_2 b e_4");
        let over = c.axes("b");
        c.b.reduce_min(x, &over).unwrap()
    }),
    ("dot", |c| {
        let (x, y) = (c.x("x", "a_2 b k_5"), c.x("y", "k_5 n_4"));
        let over = c.axes("k_5");
        c.b.dot(x, y, &over).unwrap()
    }),
    ("dot with batch axes and two summed axes", |c| {
        let (x, y) = (c.x("x", "j_2 a_2 h_2 k_5"), c.x("y", "k_5 h_2 n_4 j_2"));
        let over = c.axes("k_5 j_2");
        let order = c.axes("n_4 a_2 h_2");
        c.b.dot_as(x, y, &over, &order).unwrap()
    }),
    ("dot of a value with itself", |c| {
        let x = c.x("x", "a_2 k_5");
        let (a, a2) = (c.axis("a_2"), c.axis("other_2"));
        let y = c.b.rename(x, a, a2).unwrap();
        let over = c.axes("k_5");
        c.b.dot(x, y, &over).unwrap()
    }),
    ("dot to a scalar, and with nothing summed", |c| {
        let (x, y) = (c.x("x", "a_2 k_1"), c.x("y", "k_1 a_2"));
        let over = c.axes("k_1 a_2");
        let z = c.b.dot(x, y, &over).unwrap();
        let w = c.x("w", "b");
        let outer = c.b.dot(x, w, &[]).unwrap();
        c.b.mul(outer, z).unwrap()
    }),
    ("gather", |c| {
        let table = c.x("table", "d_2 v_4");
        let index = c.ints("index", "n_2 t", &[1, 3, 1, 0, 1, 3]);
        let v = c.axis("v_4");
        c.b.gather(table, index, v).unwrap()
    }),
    ("scatter_add", |c| {
        let src = c.x("src", "d_2 t n_2");
        let index = c.ints("index", "n_2 t", &[1, 3, 1, 0, 1, 3]);
        let v = c.axis("v_4");
        c.b.scatter_add(index, src, v).unwrap()
    }),
    ("split", |c| {
        let x = c.x("x", "a_2 q_6");
        let (q, to) = (c.axis("q_6"), c.axes("h_2 e_3"));
        c.b.split(x, q, &to).unwrap()
    }),
    ("merge", |c| {
        let x = c.x("x", "h_2 a_2 e_3");
        let (q, from) = (c.axis("q_6"), c.axes("e_3 h_2"));
        c.b.merge(x, &from, q).unwrap()
    }),
    ("rename", |c| {
        let x = c.x("x", "t a_2");
        let (t, s) = (c.axis("t"), c.axis("s"));
        c.b.rename(x, t, s).unwrap()
    }),
    ("slice", |c| {
        let x = c.x("x", "a_5 b");
        let (from, to) = (c.axis("a_5"), c.axis("e_2"));
        c.b.slice(x, from, to, 2).unwrap()
    }),
    ("pad", |c| {
        let x = c.x("x", "b e_2");
        let (from, to) = (c.axis("e_2"), c.axis("a_5"));
        c.b.pad(x, from, to, 1).unwrap()
    }),
    ("index", |c| {
        let x = c.x("x", "a_2 m_3 b");
        let m = c.axis("m_3");
        c.b.index(x, m, 1).unwrap()
    }),
    ("place", |c| {
        let x = c.x("x", "a_2 b");
        let (m, order) = (c.axis("m_3"), c.axes("b m_3 a_2"));
        c.b.place(x, m, 2, &order).unwrap()
    }),
    ("concat", |c| {
        let (x, y, z) = (c.x("x", "a_2 i_1 b"), c.x("y", "b j_2 a_2"), c.x("z", "a_2 i_1 b"));
        let (from, to) = (c.axes("i_1 j_2 i_1"), c.axis("k_4"));
        c.b.concat(&[x, y, z], &from, to).unwrap()
    }),
    ("shift", |c| {
        let x = c.x("x", "a_2 t_5 b");
        let t = c.axis("t_5");
        c.b.shift(x, t, 2).unwrap()
    }),
    ("shift ahead, beyond the end", |c| {
        let x = c.x("x", "t_5 b");
        let t = c.axis("t_5");
        let (near, far) = (c.b.shift(x, t, -1).unwrap(), c.b.shift(x, t, -7).unwrap());
        c.b.add(near, far).unwrap()
    }),
    ("cumsum", |c| {
        let x = c.x("x", "a_2 t_5 b");
        let t = c.axis("t_5");
        let (y, z) = (c.b.cumsum(x, t, false).unwrap(), c.b.cumsum(x, t, true).unwrap());
        c.b.mul(y, z).unwrap()
    }),
    ("scan", |c| {
        let (a, x) = (c.x("a", "n_2 t_5 d_2"), c.x("x", "n_2 t_5 d_2"));
        let t = c.axis("t_5");
        c.b.scan(a, x, t, false).unwrap()
    }),
    ("scan from the end", |c| {
        let (a, x) = (c.x("a", "t_5 d_2"), c.x("x", "n_2 t_5 d_2"));
        let t = c.axis("t_5");
        c.b.scan(a, x, t, true).unwrap()
    }),
    ("scan with a constant decay", |c| {
        let (a, x) = (c.x("a", "d_2"), c.x("x", "t_5 d_2"));
        let t = c.axis("t_5");
        c.b.scan(a, x, t, false).unwrap()
    }),
    ("scan of a small input", |c| {
        let (a, x) = (c.x("a", "t_5 d_2"), c.x("x", "t_5"));
        let t = c.axis("t_5");
        c.b.scan(a, x, t, false).unwrap()
    }),
    ("attend", |c| attend(c, true, None, false)),
    ("attend to everything", |c| attend(c, false, None, false)),
    ("attend in a window", |c| attend(c, true, Some(2), false)),
    ("attend ahead and in a window", |c| attend(c, false, Some(2), false)),
    ("attend in documents", |c| attend(c, true, Some(4), true)),
    ("cross_entropy", |c| {
        let x = c.x("x", "v_4 n_2 t");
        let target = c.ints("target", "t n_2", &[0, 3, 2, 2, 1, 0]);
        let v = c.axis("v_4");
        c.b.cross_entropy(x, target, v).unwrap()
    }),
    ("top_k_values", |c| {
        let x = c.x("x", "a_2 e_5 b");
        let (from, to) = (c.axis("e_5"), c.axis("k_2"));
        c.b.top_k_values(x, from, to).unwrap()
    }),
];

#[test]
fn every_derivative_agrees_with_finite_differences() {
    for (name, build) in CASES {
        let mut case = Case::new();
        let y = build(&mut case);
        case.check(name, y);
    }
}

/// Cases whose axes may have any size; in the last, g is the group.
const ANY_SHAPE: &[(&str, Build)] = &[
    ("div", |c| {
        let (x, y) = (c.input("x", "a b c", 0.5, 2.0), c.input("y", "c a", 0.5, 2.0));
        c.b.div(x, y).unwrap()
    }),
    ("reduce_max", |c| {
        let (x, over) = (c.x("x", "a b c"), c.axes("c a"));
        c.b.reduce_max(x, &over).unwrap()
    }),
    ("dot", |c| {
        let (x, y) = (c.x("x", "m k h j"), c.x("y", "j h n k"));
        let (over, order) = (c.axes("j k"), c.axes("n h m"));
        c.b.dot_as(x, y, &over, &order).unwrap()
    }),
    ("scan", |c| {
        let (a, x, t) = (c.x("a", "t d"), c.x("x", "d n t"), c.axis("t"));
        c.b.scan(a, x, t, true).unwrap()
    }),
    ("shift and cumsum", |c| {
        let (x, t) = (c.x("x", "a t d"), c.axis("t"));
        let y = c.b.shift(x, t, 2).unwrap();
        let y = c.b.cumsum(y, t, false).unwrap();
        c.b.mul(x, y).unwrap()
    }),
    ("cross_entropy", |c| {
        let (x, v) = (c.x("x", "n v t"), c.axis("v"));
        let (n, t) = (c.axis("n"), c.axis("t"));
        let (rows, classes) = (c.b.size(n) * c.b.size(t), c.b.size(v) as i32);
        let ids: Vec<_> = (0..rows as i32).map(|i| (i * 7 + 1) % classes).collect();
        let target = c.ints("target", "n t", &ids);
        c.b.cross_entropy(x, target, v).unwrap()
    }),
    ("attend", |c| {
        let (q, k, v) = (c.x("q", "n t g d"), c.x("k", "n t d"), c.x("v", "t n d"));
        let (time, dim) = (c.axis("t"), c.axis("d"));
        let how = Attend { time, dim, scale: Bits::new(0.7), causal: true, window: Some(3), document: false };
        c.b.attend(how, q, k, v, None).unwrap()
    }),
];

#[test]
fn derivatives_agree_at_random_shapes() {
    for (name, build) in ANY_SHAPE {
        for seed in 1..=6 {
            let mut case = Case::of_shape(seed);
            let y = build(&mut case);
            case.check(name, y);
        }
    }
}

/// Ops that are zero by convention; `rules.rs` has a test for each of them.
pub(super) const ZERO: &[&str] = &[
    "const",
    "iota",
    "round",
    "floor",
    "sign",
    "not",
    "and",
    "or",
    "xor",
    "shl",
    "shr",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "stop_gradient",
    "top_k_indices",
    "random",
];

/// Ops without a derivative; `rules.rs` has a test for each of them.
pub(super) const UNDEFINED: &[&str] =
    &["attend_lse", "attend_grad", "cross_entropy_grad", "quantile", "feedback_round"];

#[test]
fn every_op_is_tested() {
    let mut seen = BTreeSet::new();
    for (_, build) in CASES {
        let mut case = Case::new();
        build(&mut case);
        seen.extend(case.b.graph().nodes.iter().map(|n| row(&n.op).name));
    }
    for r in ROWS {
        let class = match r.derivative {
            Derivative::Rule => seen.contains(r.name),
            Derivative::Zero => ZERO.contains(&r.name),
            Derivative::Undefined => UNDEFINED.contains(&r.name),
        };
        assert!(class, "`{}` has no test of its derivative", r.name);
    }
}
