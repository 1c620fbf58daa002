//! Rules about element-wise ops.

use super::{is_zero, uniform};
use crate::graph::build::Builder;
use crate::graph::ir::{Binary, DType, Node, NodeId, Op, Unary};

/// Once derivatives are taken: `stop_gradient(x) == x`, `straight_through(f, x) == f`.
pub(super) fn value_only(_: &mut Builder, node: &Node) -> Option<NodeId> {
    matches!(node.op, Op::StopGradient | Op::StraightThrough).then(|| node.args[0])
}

/// `x + (-y) == x - y`, `(-x) + y == y - x`, `x - (-y) == x + y`.
pub(super) fn add_of_negative(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Binary(op @ (Binary::Add | Binary::Sub)) = node.op else { return None };
    let negated = |b: &Builder, x: NodeId| match b.node(x).op {
        Op::Unary(Unary::Neg) => Some(b.node(x).args[0]),
        _ => None,
    };
    let (x, y) = (node.args[0], node.args[1]);
    match (op, negated(b, x), negated(b, y)) {
        (Binary::Add, _, Some(y)) => b.sub(x, y).ok(),
        (Binary::Add, Some(x), None) => b.sub(y, x).ok(),
        (Binary::Sub, _, Some(y)) => b.add(x, y).ok(),
        _ => None,
    }
}

/// `(-x) y == -(x y)`, `x (-y) == -(x y)`, `(-x) / y == -(x / y)`: signs move outwards, where sums absorb them.
pub(super) fn product_of_negative(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Binary(op @ (Binary::Mul | Binary::Div)) = node.op else { return None };
    if !node.ty.dtype.is_float() {
        return None;
    }
    let (x, y) = (b.node(node.args[0]).clone(), b.node(node.args[1]).clone());
    let product = if x.op == Op::Unary(Unary::Neg) {
        b.binary(op, x.args[0], node.args[1])
    } else if y.op == Op::Unary(Unary::Neg) {
        b.binary(op, node.args[0], y.args[0])
    } else {
        return None;
    };
    let product = product.ok()?;
    b.neg(product).ok()
}

/// `-(x - y) == y - x`, `-(x * c) == x * -c` for a constant c.
pub(super) fn negative_of_difference(b: &mut Builder, node: &Node) -> Option<NodeId> {
    if node.op != Op::Unary(Unary::Neg) || !node.ty.dtype.is_float() {
        return None;
    }
    let inner = b.node(node.args[0]).clone();
    match inner.op {
        Op::Binary(Binary::Sub) => b.sub(inner.args[1], inner.args[0]).ok(),
        Op::Binary(Binary::Mul) => {
            let [x, c] = [inner.args[0], inner.args[1]];
            match (uniform(b, x), uniform(b, c)) {
                (_, Some(value)) if b.axes(x).len() == node.ty.axes.len() => b.mul_const(x, -value).ok(),
                (Some(value), _) if b.axes(c).len() == node.ty.axes.len() => b.mul_const(c, -value).ok(),
                _ => None,
            }
        }
        _ => None,
    }
}

/// `x^2 == x x`, `x^3 == x x x`, `x^-1 == 1/x`, `x^0.5 == sqrt x`, `x^-0.5 == 1/sqrt x`, `x^0 == 1`.
pub(super) fn small_power(b: &mut Builder, node: &Node) -> Option<NodeId> {
    if node.op != Op::Binary(Binary::Pow) {
        return None;
    }
    let x = node.args[0];
    let power = uniform(b, node.args[1])?;
    let y = if power == 2.0 || power == 3.0 {
        let square = b.mul(x, x).ok()?;
        if power == 2.0 { square } else { b.mul(square, x).ok()? }
    } else if power == -1.0 {
        b.recip(x).ok()?
    } else if power == 0.5 {
        b.sqrt(x).ok()?
    } else if power == -0.5 {
        b.rsqrt(x).ok()?
    } else if power == 0.0 {
        b.constant(1.0)
    } else {
        return None;
    };
    b.broadcast(y, &node.ty.axes).ok()
}

/// `select(not c, x, y) == select(c, y, x)`.
pub(super) fn select_of_not(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let cond = b.node(node.args.first().copied()?).clone();
    if node.op != Op::Select || cond.op != Op::Unary(Unary::Not) {
        return None;
    }
    b.select(cond.args[0], node.args[2], node.args[1]).ok()
}

/// `select(c, x, 0) * k == select(c, x * k, 0)` for a finite constant k; likewise with the zero first.
pub(super) fn scaled_select(b: &mut Builder, node: &Node) -> Option<NodeId> {
    if node.op != Op::Binary(Binary::Mul) {
        return None;
    }
    for (select, factor) in [(node.args[0], node.args[1]), (node.args[1], node.args[0])] {
        let inner = b.node(select).clone();
        let Some(k) = uniform(b, factor).filter(|k| k.is_finite()) else { continue };
        if inner.op != Op::Select || inner.ty.axes.len() != node.ty.axes.len() {
            continue;
        }
        let (cond, x, y) = (inner.args[0], inner.args[1], inner.args[2]);
        if is_zero(b, y) {
            let x = b.mul_const(x, k).ok()?;
            return b.select(cond, x, y).ok();
        }
        if is_zero(b, x) {
            let y = b.mul_const(y, k).ok()?;
            return b.select(cond, x, y).ok();
        }
    }
    None
}

/// `select(c, x, 0) + select(c, 0, y) == select(c, x, y)`.
pub(super) fn sum_of_selects(b: &mut Builder, node: &Node) -> Option<NodeId> {
    if node.op != Op::Binary(Binary::Add) {
        return None;
    }
    let (p, q) = (b.node(node.args[0]).clone(), b.node(node.args[1]).clone());
    if p.op != Op::Select || q.op != Op::Select || p.args[0] != q.args[0] || p.ty.axes.len() != q.ty.axes.len() {
        return None;
    }
    let (cond, [px, py], [qx, qy]) = (p.args[0], [p.args[1], p.args[2]], [q.args[1], q.args[2]]);
    let y = if is_zero(b, py) && is_zero(b, qx) {
        b.select(cond, px, qy).ok()?
    } else if is_zero(b, px) && is_zero(b, qy) {
        b.select(cond, qx, py).ok()?
    } else {
        return None;
    };
    b.broadcast(y, &node.ty.axes).ok()
}

/// Rounding what is already of that precision: `cast_d(read of a d buffer) == read`; and `cast_narrow(cast_f32 x) == cast_narrow x`.
pub(super) fn cast_of_rounded(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Cast(to) = node.op else { return None };
    let x = node.args[0];
    match b.node(x).op {
        Op::Read(buffer) if to.is_float() && b.graph().buffers[buffer.0 as usize].ty.dtype == to => Some(x),
        Op::Cast(DType::F32) if matches!(to, DType::Bf16 | DType::F16) && b.dtype(b.node(x).args[0]).is_float() => {
            let x = b.node(x).args[0];
            b.cast(x, to).ok()
        }
        _ => None,
    }
}

/// `f(broadcast x) == broadcast(f x)`; with two operands, when both are broadcasts (or one is and the other has fewer axes) and
/// the axes of one contain the other's.
pub(super) fn elementwise_of_broadcast(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let inner = |b: &Builder, x: NodeId| if b.node(x).op == Op::Broadcast { b.node(x).args[0] } else { x };
    let all = node.ty.axes.len();
    match node.op {
        Op::Unary(_) | Op::Cast(_) => {
            let x = inner(b, node.args[0]);
            if b.axes(x).len() == all {
                return None;
            }
            let y = b.push(node.op.clone(), &[x], None).ok()?;
            b.broadcast(y, &node.ty.axes).ok()
        }
        Op::Binary(_) => {
            let (x, y) = (inner(b, node.args[0]), inner(b, node.args[1]));
            if b.axes(x).len() == all || b.axes(y).len() == all {
                return None;
            }
            // Fails, and the rule does not apply, when neither contains the other.
            let z = b.push(node.op.clone(), &[x, y], None).ok()?;
            b.broadcast(z, &node.ty.axes).ok()
        }
        _ => None,
    }
}
