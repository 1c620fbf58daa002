//! Simplifications the builder makes at once, because nobody could want the longer form.
//!
//! *Takes* a typed node not yet in the graph; *gives* an equal existing or simpler node; *promises* the same set of axes and the same
//! values (up to the sign of zero). Larger rewrites are in [`super::rewrite`].

use super::build::Builder;
use super::ir::{Binary, Bits, DType, Node, NodeId, Op, Unary};
use super::scalar;

type Rule = fn(&mut Builder, &Node) -> Option<NodeId>;

/// All rules, tried in order.
const RULES: &[(&str, Rule)] = &[
    ("fold_scalar", fold_scalar),
    ("neutral_operand", neutral_operand),
    ("drop_broadcast_operand", drop_broadcast_operand),
    ("double_inverse", double_inverse),
    ("select_decided", select_decided),
    ("identity_move", identity_move),
    ("double_move", double_move),
    ("cast_again", cast_again),
];

/// A simpler node equal to `node`, if a rule knows one.
pub(super) fn simplify(b: &mut Builder, node: &Node) -> Option<NodeId> {
    RULES.iter().find_map(|(_, rule)| rule(b, node))
}

fn scalar_of(b: &Builder, x: NodeId) -> Option<f64> {
    match b.node(x).op {
        Op::Const(v) => Some(v.get()),
        _ => None,
    }
}

/// `f(c, d) == constant` for scalar constants.
fn fold_scalar(b: &mut Builder, node: &Node) -> Option<NodeId> {
    if !node.ty.axes.is_empty() {
        return None;
    }
    let arg = |i: usize| node.args.get(i).and_then(|x| scalar_of(b, *x));
    let integer = |i: usize| !b.dtype(node.args[i]).is_float();
    let value = match &node.op {
        Op::Unary(u) => scalar::unary(*u, arg(0)?, integer(0)),
        Op::Binary(op) => scalar::binary(*op, arg(0)?, arg(1)?, integer(0))?,
        Op::Select => {
            if arg(0)? != 0.0 {
                arg(1)?
            } else {
                arg(2)?
            }
        }
        Op::Cast(to) => scalar::cast(arg(0)?, *to),
        _ => return None,
    };
    Some(b.intern(Node { op: Op::Const(Bits::new(value)), args: Vec::new(), ty: node.ty.clone() }))
}

/// `x + 0 == x`, `x - 0 == x`, `x * 1 == x`, `x / 1 == x`, `x ^ 1 == x`, `true and x == x`, `false or x == x`.
fn neutral_operand(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Binary(op) = node.op else { return None };
    let (x, y) = (node.args[0], node.args[1]);
    let boolean = b.dtype(x) == DType::Bool;
    let (neutral, both_sides) = match op {
        Binary::Add => (0.0, true),
        Binary::Mul => (1.0, true),
        Binary::Sub | Binary::Shl | Binary::Shr => (0.0, false),
        Binary::Div | Binary::Pow => (1.0, false),
        Binary::Or | Binary::Xor => (0.0, true),
        Binary::And => (if boolean { 1.0 } else { -1.0 }, true),
        _ => return None,
    };
    let keeps = |b: &Builder, x: NodeId| b.axes(x).len() == node.ty.axes.len();
    if b.const_value(y) == Some(neutral) && keeps(b, x) {
        return Some(x);
    }
    if both_sides && b.const_value(x) == Some(neutral) && keeps(b, y) {
        return Some(y);
    }
    None
}

/// `broadcast(x) op y == x op y` when y has all the axes already.
fn drop_broadcast_operand(b: &mut Builder, node: &Node) -> Option<NodeId> {
    if !matches!(node.op, Op::Binary(_) | Op::Select | Op::Scan(..)) {
        return None;
    }
    for (i, arg) in node.args.iter().enumerate() {
        if b.node(*arg).op != Op::Broadcast {
            continue;
        }
        let others = node.args.iter().enumerate().filter(|(j, _)| *j != i);
        let mut covered = others.map(|(_, other)| b.axes(*other).len());
        if covered.any(|n| n == node.ty.axes.len()) {
            let mut args = node.args.clone();
            args[i] = b.node(*arg).args[0];
            return b.push(node.op.clone(), &args, None).ok();
        }
    }
    None
}

/// `neg(neg x) == x`, `not(not x) == x`, `recip(recip x) == x`, `f(f x) == f x` for round, floor, sign, abs.
fn double_inverse(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Unary(outer) = node.op else { return None };
    let arg = node.args[0];
    let inner = b.node(arg);
    if inner.op != node.op {
        return None;
    }
    match outer {
        Unary::Neg | Unary::Not | Unary::Recip => Some(inner.args[0]),
        Unary::Round | Unary::Floor | Unary::Sign | Unary::Abs => Some(arg),
        _ => None,
    }
}

/// `select(true, x, y) == x`, `select(false, x, y) == y`, `select(c, x, x) == x`.
fn select_decided(b: &mut Builder, node: &Node) -> Option<NodeId> {
    if node.op != Op::Select {
        return None;
    }
    let (x, y) = (node.args[1], node.args[2]);
    let chosen = match b.const_value(node.args[0]) {
        Some(c) if c != 0.0 => x,
        Some(_) => y,
        None if x == y => x,
        None => return None,
    };
    b.broadcast(chosen, &node.ty.axes).ok()
}

/// Moves that move nothing: reduce over no axes, same rename, shift by 0, split and merge of one axis, whole slice.
fn identity_move(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let x = *node.args.first()?;
    match &node.op {
        Op::Broadcast if b.axes(x) == node.ty.axes => Some(x),
        Op::Reduce(_, over) if over.is_empty() => Some(x),
        Op::Rename(from, to) if from == to => Some(x),
        Op::Shift(_, 0) => Some(x),
        Op::Split(from, to) if to.len() == 1 => b.rename(x, *from, to[0]).ok(),
        Op::Merge(from, to) if from.len() == 1 => b.rename(x, from[0], *to).ok(),
        Op::Concat(from, to) if from.len() == 1 => b.rename(x, from[0], *to).ok(),
        Op::Slice { from, to, .. } | Op::Pad { from, to, .. } if b.size(*from) == b.size(*to) => {
            b.rename(x, *from, *to).ok()
        }
        _ => None,
    }
}

/// Two moves in a row that are one: broadcast of broadcast, rename of rename, split of merge, merge of split.
fn double_move(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let inner = b.node(*node.args.first()?).clone();
    let x = *inner.args.first()?;
    match (&node.op, &inner.op) {
        (Op::Broadcast, Op::Broadcast) => b.broadcast(x, &node.ty.axes).ok(),
        (Op::Rename(middle, to), Op::Rename(from, named)) if middle == named => b.rename(x, *from, *to).ok(),
        (Op::Split(_, to), Op::Merge(from, _)) if to == from => b.broadcast(x, &node.ty.axes).ok(),
        (Op::Merge(from, to), Op::Split(whole, parts)) if from == parts => b.rename(x, *whole, *to).ok(),
        _ => None,
    }
}

/// `cast_d(x) == x` if x has dtype d, or d is F32 and x a narrower float; a cast to the same dtype twice is one.
fn cast_again(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Cast(to) = node.op else { return None };
    let x = node.args[0];
    let from = b.dtype(x);
    // A value typed F32 is a real number until it is rounded by a cast or by storage, so only a cast makes it an f32 value.
    let exact = match to {
        DType::F32 => matches!(from, DType::Bf16 | DType::F16) || b.node(x).op == Op::Cast(DType::F32),
        _ => from == to,
    };
    exact.then_some(x)
}
