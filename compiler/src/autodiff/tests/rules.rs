//! Conventions: what is zero, what is cut, who gets the derivative on ties, what is an error.

use super::Case;
use super::ops::{UNDEFINED, ZERO};
use crate::autodiff::{GradError, grad};
use crate::graph::interpret::{Options, values};
use crate::graph::ir::*;
use crate::graph::ops::row;

/// d sum(y) / dx, `None` if there is none.
fn slope(c: &mut Case, y: NodeId, x: NodeId) -> Option<Vec<f64>> {
    let axes = c.b.axes(y).to_vec();
    let one = c.b.fill(1.0, &axes).unwrap();
    let dx = grad(&mut c.b, &[(y, one)], &[x]).unwrap()[0]?;
    let order = c.b.axes(x).to_vec();
    let dx = c.b.broadcast(dx, &order).unwrap();
    Some(values(c.b.graph(), &c.contents, &[dx], &Options::default()).unwrap().remove(0).data)
}

#[test]
fn zero_by_convention_is_none() {
    let mut tested = Vec::new();
    for name in ZERO {
        let mut c = Case::new();
        let x = c.x("x", "a_3");
        let (a, k) = (c.axis("a_3"), c.axis("k_2"));
        let b = &mut c.b;
        let i = b.cast(x, DType::I32).unwrap();
        let zero = b.constant(0.0);
        let cond = b.ge(x, zero).unwrap();
        let node = match *name {
            "const" => zero,
            "iota" => b.iota(a).unwrap(),
            "round" => b.round(x).unwrap(),
            "floor" => b.floor(x).unwrap(),
            "sign" => b.sign(x).unwrap(),
            "not" => b.not(cond).unwrap(),
            "and" => b.and(i, i).unwrap(),
            "or" => b.or(i, i).unwrap(),
            "xor" => b.xor(i, i).unwrap(),
            "shl" => b.shl(i, i).unwrap(),
            "shr" => b.shr(i, i).unwrap(),
            "eq" => b.eq(x, zero).unwrap(),
            "ne" => b.ne(x, zero).unwrap(),
            "lt" => b.lt(x, zero).unwrap(),
            "le" => b.le(x, zero).unwrap(),
            "gt" => b.gt(x, zero).unwrap(),
            "ge" => cond,
            "stop_gradient" => b.stop_gradient(x).unwrap(),
            "top_k_indices" => b.top_k_indices(x, a, k).unwrap(),
            "random" => {
                let counter = b.reduce_max(i, &[a]).unwrap();
                b.random(1, true, counter, &[a]).unwrap()
            }
            other => panic!("no case for {other}"),
        };
        tested.push(row(&b.node(node).op).name);
        let y = b.cast(node, DType::F32).unwrap();
        assert_eq!(slope(&mut c, y, x), None, "{name}");
    }
    assert_eq!(tested, ZERO);
}

#[test]
fn undefined_derivatives_name_the_op() {
    for name in UNDEFINED {
        let mut c = Case::new();
        let (time, dim) = (c.axis("t_5"), c.axis("d_4"));
        let how = Attend { time, dim, scale: Bits::new(1.0), causal: true, window: None, document: false };
        let x = c.x("x", "t_5 d_4");
        let target = c.ints("target", "t_5", &[0, 1, 2, 3, 0]);
        let b = &mut c.b;
        let lse = b.attend_lse(how, x, x, None).unwrap();
        let y = match *name {
            "attend_lse" => lse,
            "attend_grad" => b.attend_grad(how, AttendArg::Q, &[x, x, x, x, lse, x]).unwrap(),
            "cross_entropy_grad" => b.cross_entropy_grad(x, target, lse, dim).unwrap(),
            "quantile" => b.quantile(x, dim, 0.5).unwrap(),
            "feedback_round" => {
                let (visits, order) = (b.twin(dim), b.iota(dim).unwrap());
                let upper = b.fill(1.0, &[dim, visits]).unwrap();
                b.feedback_round(x, lse, order, upper, dim, -3.0, 3.0).unwrap()
            }
            other => panic!("no case for {other}"),
        };
        let axes = b.axes(y).to_vec();
        let one = b.fill(1.0, &axes).unwrap();
        let error = grad(b, &[(y, one)], &[x]).unwrap_err();
        assert!(matches!(&error, GradError::Undefined { op, .. } if op == name), "{error}");
        assert!(error.to_string().contains(name));
        // Not on the way to anything asked for: no error.
        assert_eq!(grad(b, &[(y, one)], &[target]).unwrap(), [None]);
    }
}

#[test]
fn ties_go_to_the_first() {
    let mut c = Case::new();
    let (x, y) = (c.given("x", "a_3", &[1.0, 2.0, 3.0]), c.given("y", "a_3", &[1.0, 3.0, 2.0]));
    let max = c.b.max(x, y).unwrap();
    let min = c.b.min(x, y).unwrap();
    assert_eq!(slope(&mut c, max, x), Some(vec![1.0, 0.0, 1.0]));
    assert_eq!(slope(&mut c, max, y), Some(vec![0.0, 1.0, 0.0]));
    assert_eq!(slope(&mut c, min, x), Some(vec![1.0, 1.0, 0.0]));
    assert_eq!(slope(&mut c, min, y), Some(vec![0.0, 0.0, 1.0]));
}

#[test]
fn reductions_give_to_the_first_extreme_position() {
    let mut c = Case::new();
    let x = c.given("x", "a_2 b_3", &[1.0, 5.0, 5.0, 5.0, 0.0, 0.0]);
    let (a, b) = (c.axis("a_2"), c.axis("b_3"));
    let y = c.b.reduce_max(x, &[a, b]).unwrap();
    assert_eq!(slope(&mut c, y, x), Some(vec![0.0, 1.0, 0.0, 0.0, 0.0, 0.0]));
    // The order of the list is the order of the search.
    let y = c.b.reduce_max(x, &[b, a]).unwrap();
    assert_eq!(slope(&mut c, y, x), Some(vec![0.0, 0.0, 0.0, 1.0, 0.0, 0.0]));
    let y = c.b.reduce_min(x, &[b]).unwrap();
    assert_eq!(slope(&mut c, y, x), Some(vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0]));
}

#[test]
fn abs_is_flat_at_zero_and_powers_are_finite_there() {
    let mut c = Case::new();
    let x = c.given("x", "a_3", &[-2.0, 0.0, 2.0]);
    let y = c.b.abs(x).unwrap();
    assert_eq!(slope(&mut c, y, x), Some(vec![-1.0, 0.0, 1.0]));
    let two = c.b.constant(2.0);
    let y = c.b.pow(x, two).unwrap();
    assert_eq!(slope(&mut c, y, x), Some(vec![-4.0, 0.0, 4.0]));
}

#[test]
fn leaky_takes_the_upper_branch_at_zero() {
    // leaky(x) = x >= 0 ? x : x / 2
    let mut c = Case::new();
    let x = c.given("x", "a_3", &[-2.0, 0.0, 2.0]);
    let zero = c.b.constant(0.0);
    let cond = c.b.ge(x, zero).unwrap();
    let half = c.b.mul_const(x, 0.5).unwrap();
    let y = c.b.select(cond, x, half).unwrap();
    assert_eq!(slope(&mut c, y, x), Some(vec![0.5, 1.0, 1.0]));
}

#[test]
fn straight_through_and_casts_pass_it_on() {
    let mut c = Case::new();
    let x = c.given("x", "a_3", &[0.4, 0.6, 1.0 + 1.0 / 512.0]);
    let rounded = c.b.round(x).unwrap();
    let y = c.b.straight_through(rounded, x).unwrap();
    let y = c.b.mul(y, y).unwrap();
    assert_eq!(slope(&mut c, y, x), Some(vec![0.0, 2.0, 2.0]), "2 round(x)");
    let half = c.b.cast(x, DType::Bf16).unwrap();
    let y = c.b.mul(half, half).unwrap();
    let d = slope(&mut c, y, x).unwrap();
    assert_eq!(d[2], 2.0, "twice the rounded value, itself not rounded again");
}

#[test]
fn top_k_ties_take_the_lower_index() {
    let mut c = Case::new();
    let x = c.given("x", "a_4", &[1.0, 7.0, 7.0, 7.0]);
    let (a, k) = (c.axis("a_4"), c.axis("k_2"));
    let y = c.b.top_k_values(x, a, k).unwrap();
    assert_eq!(slope(&mut c, y, x), Some(vec![0.0, 1.0, 1.0, 0.0]));
}

#[test]
fn contributions_add_up_over_outputs_and_users() {
    let mut c = Case::new();
    let x = c.given("x", "a_2", &[3.0, 4.0]);
    let y = c.b.mul(x, x).unwrap();
    let z = c.b.mul_const(x, 5.0).unwrap();
    let a = c.axis("a_2");
    let one = c.b.fill(1.0, &[a]).unwrap();
    let two = c.b.fill(2.0, &[a]).unwrap();
    let dx = grad(&mut c.b, &[(y, one), (z, two), (y, one)], &[x, y]).unwrap();
    let dx: Vec<_> = dx.into_iter().map(Option::unwrap).collect();
    let found = values(c.b.graph(), &c.contents, &dx, &Options::default()).unwrap();
    assert_eq!(found[0].data, [2.0 * 6.0 + 10.0, 2.0 * 8.0 + 10.0]);
    assert_eq!(found[1].data, [2.0, 2.0]);
}

#[test]
fn a_wrong_seed_is_an_error() {
    let mut c = Case::new();
    let x = c.x("x", "a_2");
    let one = c.b.constant(1.0);
    let error = grad(&mut c.b, &[(x, one)], &[x]).unwrap_err();
    assert!(matches!(error, GradError::Seed { .. }));
}

#[test]
fn derivatives_carry_the_origin_of_their_node() {
    let mut c = Case::new();
    let x = c.x("x", "a_2");
    c.b.set_origin(Origin { span: Some((1, 2, 3)), visit: "blocks.4".to_string() });
    let y = c.b.tanh(x).unwrap();
    c.b.set_origin(Origin::default());
    let a = c.axis("a_2");
    let seed = c.b.fill(2.0, &[a]).unwrap();
    let dx = grad(&mut c.b, &[(y, seed)], &[x]).unwrap()[0].unwrap();
    assert_eq!(c.b.origin_of(dx).visit, "blocks.4");
    assert_eq!(*c.b.origin(), Origin::default());
}
