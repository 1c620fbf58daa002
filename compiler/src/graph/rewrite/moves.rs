//! Rules about ops that move data.

use super::{is_zero, zeros};
use crate::graph::build::Builder;
use crate::graph::ir::{AxisId, Node, NodeId, Op};

/// The operand's node.
fn inner(b: &Builder, node: &Node) -> Option<Node> {
    node.args.first().map(|x| b.node(*x).clone())
}

/// `move(broadcast x) == broadcast x` for a move along axes that x does not have: rename, split, merge, slice, index.
pub(super) fn move_of_broadcast(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let moved: Vec<AxisId> = match &node.op {
        Op::Rename(from, _) | Op::Slice { from, .. } | Op::Index(from, _) | Op::Split(from, _) => vec![*from],
        Op::Merge(from, _) => from.clone(),
        _ => return None,
    };
    let wide = inner(b, node)?;
    if wide.op != Op::Broadcast {
        return None;
    }
    let x = wide.args[0];
    if b.axes(x).iter().any(|a| moved.contains(a)) {
        return None;
    }
    b.broadcast(x, &node.ty.axes).ok()
}

/// Moves of zeros that fill with zeros: shift, pad, place, concat, running sums, scatter-add.
pub(super) fn move_of_zeros(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let moved: &[NodeId] = match node.op {
        Op::Shift(..) | Op::Pad { .. } | Op::Place(..) | Op::Concat(..) | Op::Cumsum(..) => &node.args,
        Op::ScatterAdd(_) => &node.args[1..],
        _ => return None,
    };
    if moved.iter().all(|x| is_zero(b, *x)) { zeros(b, node) } else { None }
}

/// `slice(slice(x, i), j) == slice(x, i + j)`.
pub(super) fn slice_of_slice(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Slice { from: middle, to, start } = node.op else { return None };
    let outer = inner(b, node)?;
    match outer.op {
        Op::Slice { from, to: through, start: first } if through == middle => {
            b.slice(outer.args[0], from, to, first + start).ok()
        }
        _ => None,
    }
}

/// A slice that lies in one part of a concatenation is a slice of that part.
pub(super) fn slice_of_concat(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Slice { from: whole, to, start } = node.op else { return None };
    let joined = inner(b, node)?;
    let Op::Concat(parts, along) = &joined.op else { return None };
    if *along != whole {
        return None;
    }
    let mut first = 0;
    for (part, x) in parts.iter().zip(&joined.args) {
        let end = first + b.size(*part);
        if start >= first && start + b.size(to) <= end {
            let y = b.slice(*x, *part, to, start - first).ok()?;
            return b.broadcast(y, &node.ty.axes).ok();
        }
        first = end;
    }
    None
}

/// A slice inside the padded stretch is a slice of the operand, one outside it is zero.
pub(super) fn slice_of_pad(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Slice { from: whole, to, start } = node.op else { return None };
    let padded = inner(b, node)?;
    let Op::Pad { from, to: along, start: first } = padded.op else { return None };
    if along != whole {
        return None;
    }
    let (end, last) = (start + b.size(to), first + b.size(from));
    if start >= first && end <= last {
        return b.slice(padded.args[0], from, to, start - first).ok();
    }
    if end <= first || start >= last { zeros(b, node) } else { None }
}

/// `index(place(x, i), i) == x`, `index(place(x, i), j) == 0`.
pub(super) fn index_of_place(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Index(axis, at) = node.op else { return None };
    let placed = inner(b, node)?;
    match placed.op {
        Op::Place(along, there) if along == axis && there == at => b.broadcast(placed.args[0], &node.ty.axes).ok(),
        Op::Place(along, _) if along == axis => zeros(b, node),
        _ => None,
    }
}

/// `index(slice(x, i), j) == index(x, i + j)`.
pub(super) fn index_of_slice(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Index(axis, at) = node.op else { return None };
    let slice = inner(b, node)?;
    match slice.op {
        Op::Slice { from, to, start } if to == axis => b.index(slice.args[0], from, start + at).ok(),
        _ => None,
    }
}

/// One position of the outer of two split axes is a stretch: `index(split(x, q -> p r), p = i) == slice(x, q -> r, i size(r))`.
pub(super) fn index_of_split(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Index(axis, at) = node.op else { return None };
    let split = inner(b, node)?;
    match &split.op {
        Op::Split(whole, parts) if parts.len() == 2 && parts[0] == axis => {
            let start = at * b.size(parts[1]);
            b.slice(split.args[0], *whole, parts[1], start).ok()
        }
        _ => None,
    }
}

/// One position of a concatenation is one position of one part.
pub(super) fn index_of_concat(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Index(axis, at) = node.op else { return None };
    let joined = inner(b, node)?;
    let Op::Concat(parts, along) = &joined.op else { return None };
    if *along != axis {
        return None;
    }
    let mut first = 0;
    for (part, x) in parts.iter().zip(&joined.args) {
        if at < first + b.size(*part) {
            let y = b.index(*x, *part, at - first).ok()?;
            return b.broadcast(y, &node.ty.axes).ok();
        }
        first += b.size(*part);
    }
    None
}

/// The other direction of [`index_of_split`]: `merge(place(x, p = i), p r -> q) == pad(x, r -> q, i size(r))`.
pub(super) fn merge_of_place(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Merge(parts, whole) = &node.op else { return None };
    let placed = inner(b, node)?;
    match placed.op {
        Op::Place(axis, at) if parts.len() == 2 && parts[0] == axis => {
            let start = at * b.size(parts[1]);
            let y = b.pad(placed.args[0], parts[1], *whole, start).ok()?;
            b.broadcast(y, &node.ty.axes).ok()
        }
        _ => None,
    }
}

/// `concat(concat(x, y), z) == concat(x, y, z)`, wherever the inner one stands.
pub(super) fn concat_of_concat(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Concat(from, to) = &node.op else { return None };
    let (mut parts, mut axes) = (Vec::new(), Vec::new());
    for (x, axis) in node.args.iter().zip(from) {
        let inner = b.node(*x);
        match &inner.op {
            Op::Concat(more, along) if along == axis => {
                parts.extend(&inner.args);
                axes.extend(more);
            }
            _ => {
                parts.push(*x);
                axes.push(*axis);
            }
        }
    }
    if parts.len() == node.args.len() {
        return None;
    }
    let y = b.concat(&parts, &axes, *to).ok()?;
    b.broadcast(y, &node.ty.axes).ok()
}

/// `split(split(x, a -> b c), b -> d e) == split(x, a -> d e c)`.
pub(super) fn split_of_split(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Split(middle, to) = &node.op else { return None };
    let outer = inner(b, node)?;
    let Op::Split(whole, parts) = &outer.op else { return None };
    if !parts.contains(middle) {
        return None;
    }
    let parts: Vec<_> = parts.iter().flat_map(|p| if p == middle { to.clone() } else { vec![*p] }).collect();
    b.split(outer.args[0], *whole, &parts).ok()
}

/// `merge(merge(x, a b -> c), c d -> e) == merge(x, a b d -> e)`.
pub(super) fn merge_of_merge(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Merge(from, whole) = &node.op else { return None };
    let outer = inner(b, node)?;
    let Op::Merge(parts, middle) = &outer.op else { return None };
    if !from.contains(middle) {
        return None;
    }
    let from: Vec<_> = from.iter().flat_map(|p| if p == middle { parts.clone() } else { vec![*p] }).collect();
    let y = b.merge(outer.args[0], &from, *whole).ok()?;
    b.broadcast(y, &node.ty.axes).ok()
}

/// `shift(shift(x, m), n) == shift(x, m + n)` in one direction; a shift by the whole axis gives zeros.
pub(super) fn shift_of_shift(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let Op::Shift(axis, n) = node.op else { return None };
    if n.unsigned_abs() as usize >= b.size(axis) {
        return zeros(b, node);
    }
    let first = inner(b, node)?;
    match first.op {
        Op::Shift(along, m) if along == axis && (m > 0) == (n > 0) => b.shift(first.args[0], axis, m + n).ok(),
        _ => None,
    }
}
