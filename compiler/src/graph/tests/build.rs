//! Types, errors and simplifications of the builder.

use crate::graph::build::Builder;
use crate::graph::error::TypeError;
use crate::graph::ir::*;

struct Fixture {
    b: Builder,
    t: AxisId,
    d: AxisId,
    q: AxisId,
    x: NodeId,
    w: NodeId,
}

/// x [t d], w [q d]
fn fixture() -> Fixture {
    let mut b = Builder::new("test", DType::F32);
    let t = b.axis("t", 6, AxisRole::Time).unwrap();
    let d = b.axis("d", 4, AxisRole::Plain).unwrap();
    let q = b.axis("q", 8, AxisRole::Plain).unwrap();
    let x = b.buffer("x", DType::Bf16, &[t, d], BufferKind::Input).unwrap();
    let w = b.buffer("w", DType::F32, &[q, d], BufferKind::Param).unwrap();
    let (x, w) = (b.read(x).unwrap(), b.read(w).unwrap());
    Fixture { b, t, d, q, x, w }
}

#[test]
fn result_types_follow_the_named_axes() {
    let Fixture { mut b, t, d, q, x, w } = fixture();
    assert_eq!(b.ty(x), &Type { dtype: DType::F32, axes: vec![t, d] });
    let y = b.dot(x, w, &[d]).unwrap();
    assert_eq!(b.axes(y), [t, q]);
    let y = b.dot_as(x, w, &[d], &[q, t]).unwrap();
    assert_eq!(b.axes(y), [q, t]);
    let h = b.axis("h", 2, AxisRole::Plain).unwrap();
    let e = b.axis("e", 4, AxisRole::Plain).unwrap();
    let s = b.split(y, q, &[h, e]).unwrap();
    assert_eq!(b.axes(s), [h, e, t]);
    let u = b.axis("u", 12, AxisRole::Plain).unwrap();
    let m = b.merge(s, &[t, h], u).unwrap();
    assert_eq!(b.axes(m), [u, e]);
    let mean = b.mean(x, &[d]).unwrap();
    assert_eq!(b.axes(mean), [t]);
    let sum = b.add(mean, x).unwrap();
    assert_eq!(b.axes(sum), [t, d], "the larger operand's order, wherever it stands");
    let lt = b.lt(x, mean).unwrap();
    assert_eq!(b.dtype(lt), DType::Bool);
}

#[test]
fn an_accidental_outer_product_names_both_sides() {
    let Fixture { mut b, x, w, .. } = fixture();
    let e = b.add(x, w).unwrap_err();
    assert_eq!(e.to_string(), "add: axes [t d] and [q d] do not agree; the first lacks [q]; the second lacks [t]");
    assert_eq!(e.missing(), (vec!["q".to_string()], vec!["t".to_string()]));
    assert!(b.outer(Binary::Mul, x, w).is_ok());
}

#[test]
fn wrong_operands_are_errors() {
    let Fixture { mut b, t, d, q, x, w } = fixture();
    let one = b.int(1);
    assert!(matches!(b.add(x, one), Err(TypeError::DType { .. })));
    assert!(matches!(b.exp(one), Err(TypeError::DType { .. })));
    assert!(matches!(b.dot(x, w, &[t]), Err(TypeError::MissingAxis { .. })));
    assert!(matches!(b.rename(x, t, d), Err(TypeError::Size { .. })));
    assert!(matches!(b.index(x, t, 6), Err(TypeError::Invalid { .. })));
    assert!(matches!(b.axis("t", 7, AxisRole::Time), Err(TypeError::Redeclared { .. })));
    assert!(matches!(b.axis("t", 6, AxisRole::Plain), Err(TypeError::Redeclared { .. })));
    assert!(matches!(b.axis("empty", 0, AxisRole::Plain), Err(TypeError::Invalid { .. })));
    assert!(matches!(b.buffer("x", DType::F32, &[t, d], BufferKind::Input), Err(TypeError::Redeclared { .. })));
    assert!(matches!(b.buffer("y", DType::F32, &[t, t], BufferKind::Input), Err(TypeError::DuplicateAxis { .. })));
    let e = b.split(x, d, &[q]).unwrap_err();
    assert_eq!(e.to_string(), "split: the axis `d` has size 4, but 8 is needed");
    assert!(matches!(b.quantile(x, d, 1.5), Err(TypeError::Invalid { .. })));
    assert!(matches!(b.constant_of(DType::I8, 128.0), Err(TypeError::Invalid { .. })));
}

#[test]
fn rounding_with_feedback_checks_its_operands() {
    let Fixture { mut b, t, d, q, w, x } = fixture();
    let visits = b.twin(d);
    let (scale, order) = (b.reduce_max(w, &[d]).unwrap(), b.iota(d).unwrap());
    let upper = b.fill(1.0, &[visits, d]).unwrap();
    let made = b.feedback_round(w, scale, order, upper, d, -31.0, 31.0).unwrap();
    assert_eq!(b.ty(made), &Type { dtype: DType::F32, axes: vec![q, d] });
    let times = b.iota(t).unwrap();
    let (oblong, flat) = (b.fill(1.0, &[d, q]).unwrap(), b.fill(1.0, &[d]).unwrap());
    let mut why = |w, scale, order, upper, axis, low, high| {
        b.feedback_round(w, scale, order, upper, axis, low, high).unwrap_err().to_string()
    };
    for (found, expected) in [
        (why(w, scale, order, upper, t, -1.0, 1.0), "feedback_round: no axis `t` in [q d]"),
        (why(w, w, order, upper, d, -1.0, 1.0), "feedback_round: axes [q] and [q d] do not agree; the first lacks [d]"),
        (
            why(x, scale, order, upper, d, -1.0, 1.0),
            "feedback_round: axes [t] and [q] do not agree; the first lacks [q]; the second lacks [t]",
        ),
        (
            why(w, scale, times, upper, d, -1.0, 1.0),
            "feedback_round: axes [d] and [t] do not agree; the first lacks [t]; the second lacks [d]",
        ),
        (why(w, scale, scale, upper, d, -1.0, 1.0), "feedback_round: expected i32, found f32, f32, f32, f32"),
        (why(w, scale, order, order, d, -1.0, 1.0), "feedback_round: expected floats, found f32, f32, i32, i32"),
        (why(w, scale, order, oblong, d, -1.0, 1.0), "feedback_round: the axis `q` has size 8, but 4 is needed"),
        (
            why(w, scale, order, flat, d, -1.0, 1.0),
            "feedback_round: the factor must have `d` and one other axis, not [d]",
        ),
        (
            why(w, scale, order, upper, d, 2.0, 1.0),
            "feedback_round: codes must lie between two numbers, the lower one first, not 2 and 1",
        ),
        (
            why(w, scale, order, upper, d, f64::NEG_INFINITY, 1.0),
            "feedback_round: codes must lie between two numbers, the lower one first, not -inf and 1",
        ),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn effects_are_checked() {
    let Fixture { mut b, t, d, x, w, .. } = fixture();
    let input = b.find_buffer("x").unwrap();
    let w_buffer = b.find_buffer("w").unwrap();
    assert!(matches!(b.assign(input, x), Err(TypeError::Invalid { .. })), "inputs are read-only");
    assert!(matches!(b.assign(w_buffer, x), Err(TypeError::Axes { .. })));
    b.accumulate(w_buffer, w).unwrap();
    assert!(matches!(b.assign(w_buffer, w), Err(TypeError::Invalid { .. })), "written twice");
    let out = b.buffer("out", DType::I8, &[d, t], BufferKind::Output).unwrap();
    assert!(matches!(b.assign(out, x), Err(TypeError::DType { .. })));
    let codes = b.cast(x, DType::I8).unwrap();
    b.assign(out, codes).unwrap();
}

#[test]
fn identical_nodes_exist_once() {
    let Fixture { mut b, x, .. } = fixture();
    let (y, z) = (b.exp(x).unwrap(), b.exp(x).unwrap());
    assert_eq!(y, z);
    let n = b.graph().nodes.len();
    let mut again = Builder::extend(b.finish());
    assert_eq!(again.exp(x).unwrap(), y);
    assert_eq!(again.graph().nodes.len(), n);
}

#[test]
fn origins_are_stamped_on_new_nodes_only() {
    let Fixture { mut b, x, .. } = fixture();
    let place = |n| Origin { span: Some((0, n, n + 1)), visit: format!("blocks.{n}") };
    b.set_origin(place(1));
    let y = b.exp(x).unwrap();
    b.set_origin(place(2));
    assert_eq!(b.exp(x).unwrap(), y);
    let z = b.log(y).unwrap();
    assert_eq!(b.origin_of(x), Origin::default());
    assert_eq!(b.origin_of(y), place(1));
    assert_eq!(b.origin_of(z), place(2));
}

#[test]
fn neutral_and_double_operations_vanish() {
    let Fixture { mut b, t, d, q, x, w } = fixture();
    let (zero, one) = (b.constant(0.0), b.constant(1.0));
    for y in [b.add(x, zero), b.add(zero, x), b.sub(x, zero), b.mul(one, x), b.div(x, one), b.pow(x, one)] {
        assert_eq!(y.unwrap(), x);
    }
    let ones = b.fill(1.0, &[t, d]).unwrap();
    assert_eq!(b.mul(ones, x).unwrap(), x);
    let mean = b.mean(x, &[d]).unwrap();
    assert_ne!(b.mul(ones, mean).unwrap(), mean, "the product has more axes");
    let neg = b.neg(x).unwrap();
    assert_eq!(b.neg(neg).unwrap(), x);
    let t2 = b.twin(t);
    let renamed = b.rename(x, t, t2).unwrap();
    assert_eq!(b.rename(renamed, t2, t).unwrap(), x);
    let (h, e) = (b.axis("h", 2, AxisRole::Plain).unwrap(), b.axis("e", 4, AxisRole::Plain).unwrap());
    let s = b.split(w, q, &[h, e]).unwrap();
    assert_eq!(b.merge(s, &[h, e], q).unwrap(), w);
    let u = b.axis("u", 8, AxisRole::Plain).unwrap();
    let swapped = b.merge(s, &[e, h], u).unwrap();
    assert_ne!(swapped, w);
    let yes = b.boolean(true);
    assert_eq!(b.select(yes, x, neg).unwrap(), x);
    assert_eq!(b.shift(x, t, 0).unwrap(), x);
    let half = b.cast(x, DType::Bf16).unwrap();
    assert_eq!(b.cast(half, DType::Bf16).unwrap(), half);
}

#[test]
fn scalars_fold() {
    let mut b = Builder::new("test", DType::F32);
    let (x, y) = (b.constant(3.0), b.constant(4.0));
    let xy = b.mul(x, y).unwrap();
    let root = b.sqrt(xy).unwrap();
    assert_eq!(b.const_value(root), Some(libm::sqrt(12.0)));
    let (i, j) = (b.int(-7), b.int(0));
    let two = b.int(2);
    let half = b.div(i, two).unwrap();
    assert_eq!(b.const_value(half), Some(-4.0));
    let undefined = b.div(i, j).unwrap();
    assert_eq!(b.const_value(undefined), None, "division by zero is left for the verifier of values");
}

#[test]
fn an_operand_need_not_be_broadcast() {
    let Fixture { mut b, t, d, x, .. } = fixture();
    let mean = b.mean(x, &[d]).unwrap();
    let wide = b.broadcast(mean, &[t, d]).unwrap();
    let (direct, through) = (b.sub(x, mean).unwrap(), b.sub(x, wide).unwrap());
    assert_eq!(direct, through);
}

#[test]
fn attention_types() {
    let mut b = Builder::new("test", DType::F32);
    let n = b.axis("b", 2, AxisRole::Batch).unwrap();
    let t = b.axis("t", 5, AxisRole::Time).unwrap();
    let kv = b.axis("kv", 2, AxisRole::Plain).unwrap();
    let g = b.axis("g", 3, AxisRole::Plain).unwrap();
    let d = b.axis("hd", 4, AxisRole::Plain).unwrap();
    let q = b.buffer("q", DType::F32, &[n, t, kv, g, d], BufferKind::Input).unwrap();
    let k = b.buffer("k", DType::F32, &[n, t, kv, d], BufferKind::Input).unwrap();
    let doc = b.buffer("doc", DType::I32, &[n, t], BufferKind::Input).unwrap();
    let (q, k, doc) = (b.read(q).unwrap(), b.read(k).unwrap(), b.read(doc).unwrap());
    let how = Attend { time: t, dim: d, scale: Bits::new(0.5), causal: true, window: None, document: false };
    let y = b.attend(how, q, k, k, None).unwrap();
    assert_eq!(b.axes(y), b.axes(q));
    let lse = b.attend_lse(how, q, k, None).unwrap();
    assert_eq!(b.axes(lse), [n, t, kv, g]);
    let dk = b.attend_grad(how, AttendArg::K, &[q, k, k, y, lse, y]).unwrap();
    assert_eq!(b.axes(dk), b.axes(k));
    assert!(b.attend(how, q, k, k, Some(doc)).is_err(), "a document without saying so");
    assert!(b.attend(Attend { document: true, ..how }, q, k, k, Some(doc)).is_ok());
    assert!(
        matches!(b.attend(how, k, q, q, None), Err(TypeError::Axes { .. })),
        "keys may not have axes that queries lack"
    );
}
