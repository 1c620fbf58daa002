//! Which matrices are known to be symmetric.
//!
//! *Takes* a graph; *gives*, for each node, a pair of its axes that can be swapped without changing the value; *promises* nothing about
//! symmetry that arises by chance of the data.
//!
//! `X Xᵀ` is symmetric, `S S` is if S is (`(S S)ᵀ = Sᵀ Sᵀ`), and so is every element-wise function of values symmetric in the same axes.

use crate::graph::ir::{AxisId, Graph, NodeId, Op};

/// A pair of axes.
type Pair = Option<(AxisId, AxisId)>;

/// The symmetric pair of every node.
pub(super) fn symmetric(g: &Graph) -> Vec<Pair> {
    let mut out: Vec<Pair> = Vec::with_capacity(g.nodes.len());
    for i in 0..g.nodes.len() {
        let pair = of_node(g, NodeId(i as u32), &out);
        out.push(pair);
    }
    out
}

fn of_node(g: &Graph, n: NodeId, known: &[Pair]) -> Pair {
    let node = &g.nodes[n.0 as usize];
    let of = |x: &NodeId| known[x.0 as usize];
    match &node.op {
        Op::Unary(_) | Op::Cast(_) | Op::StopGradient => of(&node.args[0]),
        Op::Binary(_) | Op::Select | Op::StraightThrough => {
            let (r, s) = node.args.iter().find_map(of)?;
            let fits = |x: &NodeId| {
                let axes = &g.nodes[x.0 as usize].ty.axes;
                let flat = !axes.contains(&r) && !axes.contains(&s);
                flat || of(x) == Some((r, s)) || of(x) == Some((s, r))
            };
            node.args.iter().all(fits).then_some((r, s))
        }
        Op::Rename(from, to) => {
            let (r, s) = of(&node.args[0])?;
            let new = |a: AxisId| if a == *from { *to } else { a };
            Some((new(r), new(s)))
        }
        Op::Dot(over) => dot(g, node.args[0], node.args[1], over, known),
        _ => None,
    }
}

/// `x [r, k..]`, `y [s, k..]` with y equal to x under r -> s.
fn dot(g: &Graph, x: NodeId, y: NodeId, over: &[AxisId], known: &[Pair]) -> Pair {
    let (xa, ya) = (&g.nodes[x.0 as usize].ty.axes, &g.nodes[y.0 as usize].ty.axes);
    let own = |a: &[AxisId], b: &[AxisId]| -> Vec<AxisId> { a.iter().copied().filter(|i| !b.contains(i)).collect() };
    let (m, n) = (own(xa, ya), own(ya, xa));
    let ([r], [s]) = (&m[..], &n[..]) else { return None };
    if xa.len() != over.len() + 1 || ya.len() != over.len() + 1 {
        return None;
    }
    let (bx, nx) = origin(g, x);
    let (by, ny) = origin(g, y);
    if bx != by {
        return None;
    }
    // Base axis that a viewing axis stands for.
    let base = |names: &[(AxisId, AxisId)], a: AxisId| names.iter().find(|(_, now)| *now == a).map(|(b, _)| *b);
    let swapped = |a: AxisId| match known[bx.0 as usize] {
        Some((p, q)) if a == p => q,
        Some((p, q)) if a == q => p,
        _ => a,
    };
    let pairs: Vec<_> = over.iter().map(|k| (*k, *k)).chain([(*r, *s)]).collect();
    let plain = pairs.iter().all(|(i, j)| base(&nx, *i) == base(&ny, *j));
    let mirrored = pairs.iter().all(|(i, j)| base(&nx, *i).map(swapped) == base(&ny, *j));
    (plain || mirrored).then_some((*r, *s))
}

/// What a chain of renames looks at: the value, and (its axis, name now).
fn origin(g: &Graph, x: NodeId) -> (NodeId, Vec<(AxisId, AxisId)>) {
    let node = &g.nodes[x.0 as usize];
    match &node.op {
        Op::Rename(from, to) => {
            let (base, mut names) = origin(g, node.args[0]);
            names.iter_mut().filter(|(_, now)| now == from).for_each(|(_, now)| *now = *to);
            (base, names)
        }
        _ => (x, node.ty.axes.iter().map(|a| (*a, *a)).collect()),
    }
}
