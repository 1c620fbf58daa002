//! Rules about sums, reductions and contractions. Those that change the order of additions say so.

use crate::graph::build::Builder;
use crate::graph::ir::{AxisId, Binary, Node, NodeId, Op, Reduce};

fn inner(b: &Builder, node: &Node) -> Option<Node> {
    node.args.first().map(|x| b.node(*x).clone())
}

/// Pads of disjoint stretches that fill the axis, added up, are a concatenation.
pub(super) fn sum_of_pads(b: &mut Builder, node: &Node) -> Option<NodeId> {
    if node.op != Op::Binary(Binary::Add) {
        return None;
    }
    let mut stretches: Vec<(usize, AxisId, NodeId)> = Vec::new();
    let mut along = None;
    let mut open = node.args.clone();
    while let Some(x) = open.pop() {
        let n = b.node(x);
        match n.op {
            Op::Binary(Binary::Add) if n.args.iter().all(|a| b.axes(*a).len() == n.ty.axes.len()) => {
                open.extend(&n.args)
            }
            Op::Pad { from, to, start } if along.is_none_or(|a| a == to) => {
                along = Some(to);
                stretches.push((start, from, n.args[0]));
            }
            _ => return None,
        }
    }
    stretches.sort_by_key(|(start, ..)| *start);
    let mut end = 0;
    for (start, from, _) in &stretches {
        if *start != end {
            return None;
        }
        end += b.size(*from);
    }
    let along = along?;
    if end != b.size(along) {
        return None;
    }
    let (parts, from): (Vec<_>, Vec<_>) = stretches.iter().map(|(_, from, x)| (*x, *from)).unzip();
    let y = b.concat(&parts, &from, along).ok()?;
    b.broadcast(y, &node.ty.axes).ok()
}

/// Places at every position of an axis, added up and merged with another, are a concatenation:
/// `merge(place(x, p = 0) + place(y, p = 1), p r -> q) == concat(x, y)`.
pub(super) fn merge_of_places(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Merge(parts, whole) = &node.op else { return None };
    let [axis, rest] = parts[..] else { return None };
    let mut at: Vec<Option<NodeId>> = vec![None; b.size(axis)];
    let mut open = node.args.clone();
    while let Some(x) = open.pop() {
        let n = b.node(x);
        match n.op {
            Op::Binary(Binary::Add) if n.args.iter().all(|a| b.axes(*a).len() == n.ty.axes.len()) => {
                open.extend(&n.args)
            }
            Op::Place(along, i) if along == axis && at[i].is_none() => at[i] = Some(n.args[0]),
            _ => return None,
        }
    }
    let stretches = at.into_iter().collect::<Option<Vec<_>>>()?;
    let y = b.concat(&stretches, &vec![rest; stretches.len()], *whole).ok()?;
    b.broadcast(y, &node.ty.axes).ok()
}

/// Over repeated axes a sum is a product by their size, an extreme is the value: `sum(broadcast x over A B) == n_B sum(x over A)`.
pub(super) fn reduce_of_broadcast(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Reduce(op, over) = &node.op else { return None };
    let wide = inner(b, node)?;
    if wide.op != Op::Broadcast {
        return None;
    }
    let x = wide.args[0];
    let own = b.axes(x).to_vec();
    let (kept, repeated): (Vec<_>, Vec<_>) = over.iter().partition(|a| own.contains(a));
    let mut y = b.reduce(*op, x, &kept).ok()?;
    if *op == Reduce::Sum {
        let copies: usize = repeated.iter().map(|a| b.size(*a)).product();
        y = b.mul_const(y, copies as f64).ok()?;
    }
    b.broadcast(y, &node.ty.axes).ok()
}

/// `sum(sum(x over A) over B) == sum(x over A B)`, likewise extremes. Changes the order of additions.
pub(super) fn reduce_of_reduce(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Reduce(op, over) = &node.op else { return None };
    let first = inner(b, node)?;
    match &first.op {
        Op::Reduce(same, before) if same == op => b.reduce(*op, first.args[0], &[&before[..], over].concat()).ok(),
        _ => None,
    }
}

/// Zeros do not count: `sum(pad(x, f -> t) over t) == sum(x over f)`, `sum(place(x, t) over t) == x`.
pub(super) fn sum_of_padded(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Reduce(Reduce::Sum, over) = &node.op else { return None };
    let padded = inner(b, node)?;
    let x = *padded.args.first()?;
    let y = match padded.op {
        Op::Pad { from, to, .. } if over.contains(&to) => {
            let over: Vec<_> = over.iter().map(|a| if *a == to { from } else { *a }).collect();
            b.sum(x, &over).ok()?
        }
        Op::Place(axis, _) if over.contains(&axis) => {
            let over: Vec<_> = over.iter().filter(|a| **a != axis).copied().collect();
            b.sum(x, &over).ok()?
        }
        _ => return None,
    };
    b.broadcast(y, &node.ty.axes).ok()
}

/// A factor without the summed axes comes out: `sum(x * c over A) == sum(x over A) * c`. Rounds once more, multiplies less.
pub(super) fn sum_of_scaled(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Reduce(Reduce::Sum, over) = &node.op else { return None };
    let product = inner(b, node)?;
    if product.op != Op::Binary(Binary::Mul) || over.is_empty() || !node.ty.dtype.is_float() {
        return None;
    }
    for (x, factor) in [(product.args[0], product.args[1]), (product.args[1], product.args[0])] {
        let free = b.axes(factor).iter().all(|a| !over.contains(a));
        // The other operand must carry the product's axes, or fewer positions would be counted.
        if free && b.axes(x).len() == product.ty.axes.len() {
            let sum = b.sum(x, over).ok()?;
            return b.mul(sum, factor).ok();
        }
    }
    None
}

/// Storage order of operands does not matter: `dot(transpose x, y) == dot(x, y)`.
pub(super) fn dot_of_transposed(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Dot(over) = &node.op else { return None };
    let plain = |b: &Builder, x: NodeId| {
        let n = b.node(x);
        if n.op == Op::Broadcast && b.axes(n.args[0]).len() == n.ty.axes.len() { n.args[0] } else { x }
    };
    let (x, y) = (plain(b, node.args[0]), plain(b, node.args[1]));
    if [x, y] == node.args[..] {
        return None;
    }
    b.dot_as(x, y, over, &node.ty.axes).ok()
}

/// A name that only the contraction sees is not needed: `dot(rename(x, a -> c), rename(y, a -> c) over c) == dot(x, y over a)`.
pub(super) fn dot_of_renamed(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Dot(over) = &node.op else { return None };
    let (p, q) = (b.node(node.args[0]).clone(), b.node(node.args[1]).clone());
    match (&p.op, &q.op) {
        (Op::Rename(a, c), Op::Rename(also, too)) if a == also && c == too && over.contains(c) => {
            let over: Vec<_> = over.iter().map(|x| if x == c { *a } else { *x }).collect();
            b.dot_as(p.args[0], q.args[0], &over, &node.ty.axes).ok()
        }
        _ => None,
    }
}

/// `dot(broadcast x, y)`: summed axes that x lacks are summed in y first, others are repeated afterwards. Changes the order of additions.
pub(super) fn dot_of_broadcast(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Dot(over) = &node.op else { return None };
    for (wide, other) in [(node.args[0], node.args[1]), (node.args[1], node.args[0])] {
        let n = b.node(wide).clone();
        if n.op != Op::Broadcast || b.axes(n.args[0]).len() == n.ty.axes.len() {
            continue;
        }
        let x = n.args[0];
        let (kept, repeated): (Vec<_>, Vec<_>) = over.iter().partition(|a| b.axes(x).contains(a));
        let other = b.sum(other, &repeated).ok()?;
        let y = b.dot(x, other, &kept).ok()?;
        return b.broadcast(y, &node.ty.axes).ok();
    }
    None
}

/// A contraction in which an operand has no axis of its own is no matrix product: `dot(x, y over K) == sum(x * y over K)`; nor is one
/// over nothing: `dot(x, y over) == x * y`. Leaves contractions to matrix kernels, these to row kernels.
pub(super) fn dot_without_matrix(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Dot(over) = &node.op else { return None };
    let (x, y) = (node.args[0], node.args[1]);
    let free = |x: NodeId, y: NodeId| b.axes(x).iter().any(|a| !over.contains(a) && !b.axes(y).contains(a));
    if free(x, y) && free(y, x) && !over.is_empty() {
        return None;
    }
    let product = b.outer(Binary::Mul, x, y).ok()?;
    let sum = b.sum(product, over).ok()?;
    b.broadcast(sum, &node.ty.axes).ok()
}
