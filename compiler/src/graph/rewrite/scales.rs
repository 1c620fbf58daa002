//! Scales around contractions: where a layer's result is scaled per channel, `a + s * dot(y, W)`, its derivative as it is taken scales and reads large values once more.
//!
//! *Takes* a graph after [`super::clean`]; *gives* an equal one in which contractions take unscaled operands; *promises* equal values up to the rounding of sums. It is not
//! among the rules, for it looks at all users of a value, and gradients of scaled parameters no longer continue one chain of sums.
//!
//! With d the derivative of the scaled sum, over rows r:
//! - `dot(d * s, W)` is `dot(d, s * W)`: the scale goes to the smaller operand;
//! - `dot(d * s, y over r)` is `s * G`, `G = dot(d, y over r)`: or to the smaller result;
//! - `sum(d * dot(y, W over k) over r)`, the derivative of s, is `sum(W * G over k)`: rows of the layer's result are not needed again.
//!
//! So neither `d * s` nor the layer's result is stored for the backward pass.

use crate::graph::build::{Builder, Made};
use crate::graph::fold::{dead_code, keep, rebuild};
use crate::graph::ir::{AxisId, Binary, Graph, Node, NodeId, Op, Reduce, axes, numel};
use std::collections::BTreeSet;

/// One value is small beside another with this many times its elements.
const SMALL: usize = 8;

/// Moves scales out of the way of contractions.
pub fn unscale(g: &Graph) -> Graph {
    let scaled = scaled(g);
    let g = rebuild(g, |b, id, node| {
        let side = g.nodes[id.0 as usize].args.iter().position(|x| is_dot(node) && scaled.contains(x));
        side.and_then(|side| without_scale(b, node, side)).unwrap_or_else(|| keep(b, node))
    });
    let g = rebuild(&g, |b, id, node| {
        let found = scale_gradient(&g, &g.nodes[id.0 as usize]);
        found.and_then(|found| found.make(b, node).ok()).unwrap_or_else(|| keep(b, node))
    });
    dead_code(&g)
}

fn is_dot(node: &Node) -> bool {
    matches!(node.op, Op::Dot(_))
}

fn within(a: &[AxisId], b: &[AxisId]) -> bool {
    a.iter().all(|x| b.contains(x))
}

/// The factors of a product, the one with more axes first.
fn factors(g: &Graph, product: NodeId) -> Option<(NodeId, NodeId)> {
    let node = &g.nodes[product.0 as usize];
    let Op::Binary(Binary::Mul) = node.op else { return None };
    let (x, y) = (node.args[0], node.args[1]);
    Some(if axes(g, x).len() < axes(g, y).len() { (y, x) } else { (x, y) })
}

/// Where the scale of a contraction's operand goes.
enum Goes {
    Operand,
    Result,
}

/// Where scale `s` of `x` goes, which a contraction multiplies with `other`; `None`: nowhere where it is less work.
fn goes(g: &Graph, dot: &Node, (x, s): (NodeId, NodeId), other: NodeId) -> Option<Goes> {
    let Op::Dot(over) = &dot.op else { return None };
    let small = |few: &[AxisId]| numel(g, few) * SMALL <= numel(g, axes(g, x));
    let s = axes(g, s);
    if within(s, axes(g, other)) && small(axes(g, other)) {
        Some(Goes::Operand)
    } else if !s.iter().any(|a| over.contains(a)) && small(&dot.ty.axes) {
        Some(Goes::Result)
    } else {
        None
    }
}

/// Scaled values that nothing but contractions reads, all of which can do without the scale. Where the unscaled value has no other reader, or the scale is one number,
/// it costs nothing where the value is made.
fn scaled(g: &Graph) -> BTreeSet<NodeId> {
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); g.nodes.len()];
    for (i, node) in g.nodes.iter().enumerate() {
        node.args.iter().for_each(|x| users[x.0 as usize].push(i));
    }
    let written: BTreeSet<NodeId> = g.effects.iter().map(|e| e.value).collect();
    let mut found = BTreeSet::new();
    for (i, of) in users.iter().enumerate() {
        let id = NodeId(i as u32);
        let read = !of.is_empty() && !written.contains(&id);
        let worth = |(x, s): &(NodeId, NodeId)| read && users[x.0 as usize].len() > 1 && !axes(g, *s).is_empty();
        let Some(parts) = factors(g, id).filter(worth) else { continue };
        let fine = |user: &usize| {
            let node = &g.nodes[*user];
            let other = node.args.iter().find(|x| **x != id);
            other.is_some_and(|other| !found.contains(other) && goes(g, node, parts, *other).is_some())
        };
        if of.iter().all(fine) {
            found.insert(id);
        }
    }
    found
}

/// A contraction of the unscaled value, and the scale where it goes.
fn without_scale(b: &mut Builder, dot: &Node, side: usize) -> Option<NodeId> {
    let g = b.graph();
    let (x, s) = factors(g, dot.args[side])?;
    let other = dot.args[1 - side];
    let goes = goes(g, dot, (x, s), other)?;
    let Op::Dot(over) = &dot.op else { return None };
    let product = |b: &mut Builder, other: NodeId| {
        let (x, y) = if side == 0 { (x, other) } else { (other, x) };
        b.dot_as(x, y, over, &dot.ty.axes)
    };
    match goes {
        Goes::Operand => b.mul(other, s).and_then(|other| product(b, other)),
        Goes::Result => product(b, other).and_then(|y| b.mul(y, s)),
    }
    .ok()
}

/// A sum over rows of `d * dot(y, W over k)` where the graph has `dot(d, y over rows)`.
struct ScaleGradient {
    /// Which operand of the product d is, and which of the contraction y.
    d: usize,
    y: usize,
    /// Whether d is the first operand of `dot(d, y over rows)`, and its axes.
    d_first: bool,
    order: Vec<AxisId>,
}

fn scale_gradient(g: &Graph, sum: &Node) -> Option<ScaleGradient> {
    let Op::Reduce(Reduce::Sum, rows) = &sum.op else { return None };
    let product = &g.nodes[sum.args[0].0 as usize];
    let Op::Binary(Binary::Mul) = product.op else { return None };
    [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().find_map(|(d, y)| {
        let (d_id, result) = (product.args[d], &g.nodes[product.args[1 - d].0 as usize]);
        let Op::Dot(k) = &result.op else { return None };
        let (y_id, w) = (result.args[y], result.args[1 - y]);
        // The other way round it would be just as true.
        let small = numel(g, axes(g, w)) * SMALL <= numel(g, &product.ty.axes);
        let shape = small
            && axes(g, d_id).len() == result.ty.axes.len()
            && within(axes(g, d_id), &result.ty.axes)
            && axes(g, y_id).len() == rows.len() + k.len()
            && within(rows, axes(g, y_id))
            && !axes(g, w).iter().any(|a| rows.contains(a));
        let over_rows = |n: &&Node| match &n.op {
            Op::Dot(over) => over.len() == rows.len() && within(over, rows),
            _ => false,
        };
        let of = |n: &&Node| n.args == [d_id, y_id] || n.args == [y_id, d_id];
        let gradient = g.nodes.iter().filter(|_| shape).find(|n| over_rows(n) && of(n))?;
        Some(ScaleGradient { d, y, d_first: gradient.args[0] == d_id, order: gradient.ty.axes.clone() })
    })
}

impl ScaleGradient {
    /// The sum from the gradient of W, in the graph that is being made.
    fn make(&self, b: &mut Builder, sum: &Node) -> Made {
        let product = b.node(sum.args[0]).clone();
        let result = b.node(product.args[1 - self.d]).clone();
        let (d, y, w) = (product.args[self.d], result.args[self.y], result.args[1 - self.y]);
        let (Op::Reduce(_, rows), Op::Dot(k)) = (&sum.op, &result.op) else { return Ok(keep(b, sum)) };
        let (first, second) = if self.d_first { (d, y) } else { (y, d) };
        let gradient = b.dot_as(first, second, rows, &self.order)?;
        let terms = b.mul(w, gradient)?;
        b.sum(terms, k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autodiff::grad;
    use crate::graph::interpret::random::uniform;
    use crate::graph::interpret::{Contents, Tensor, interpret};
    use crate::graph::ir::{AxisRole, BufferKind, DType};
    use crate::graph::rewrite::clean;
    use crate::graph::verify::verify;

    /// Derivatives of `x + s dot(y, W)` with respect to all four, for 40 rows; `also`: the scaled derivative is written too.
    fn layer(also: bool) -> (Graph, Contents) {
        let mut b = Builder::new("layer", DType::F32);
        let mut contents = Contents::new();
        let [r, d, k] = [("r", 40), ("d", 3), ("k", 2)].map(|(name, n)| b.axis(name, n, AxisRole::Plain).unwrap());
        let mut reads = Vec::new();
        for (key, (name, axes)) in
            [("x", vec![r, d]), ("s", vec![d]), ("y", vec![r, k]), ("w", vec![d, k])].into_iter().enumerate()
        {
            let dims: Vec<_> = axes.iter().map(|a| b.size(*a)).collect();
            contents.insert(name.into(), Tensor::from_fn(&dims, |i| uniform(key as u64, 0, i) - 0.5));
            let buffer = b.buffer(name, DType::F32, &axes, BufferKind::Input).unwrap();
            reads.push(b.read(buffer).unwrap());
        }
        let [x, s, y, w] = reads[..] else { unreachable!() };
        let result = b.dot(y, w, &[k]).unwrap();
        let result = b.mul(result, s).unwrap();
        let sum = b.add(x, result).unwrap();
        // A loss whose derivative is neither of the parts.
        let seed = b.mul(sum, x).unwrap();
        for (name, g) in ["x", "s", "y", "w"].into_iter().zip(grad(&mut b, &[(sum, seed)], &reads).unwrap()) {
            let g = g.unwrap();
            let axes = b.axes(g).to_vec();
            let out = b.buffer(&format!("grad.{name}"), DType::F32, &axes, BufferKind::Output).unwrap();
            b.assign(out, g).unwrap();
        }
        if also {
            let scaled = b.mul(seed, s).unwrap();
            let out = b.buffer("scaled", DType::F32, &[r, d], BufferKind::Output).unwrap();
            b.assign(out, scaled).unwrap();
        }
        (clean(&b.finish()), contents)
    }

    /// How many products of two values have the size of the layer's result.
    fn large_products(g: &Graph) -> usize {
        let large = |n: &&Node| n.op == Op::Binary(Binary::Mul) && numel(g, &n.ty.axes) == 120;
        g.nodes.iter().filter(large).count()
    }

    #[test]
    fn gradients_of_a_scaled_layer_take_neither_scaled_values_nor_its_result() {
        let (g, contents) = layer(false);
        let new = unscale(&g);
        verify(&new).unwrap();
        let (before, after) = (interpret(&g, &contents).unwrap(), interpret(&new, &contents).unwrap());
        for name in ["grad.x", "grad.s", "grad.y", "grad.w"] {
            for (a, b) in before[name].data.iter().zip(&after[name].data) {
                assert!((a - b).abs() < 1e-13 * a.abs().max(1.0), "{name}: {a} {b}");
            }
        }
        // seed = sum x, and the forward pass's s result: neither d s nor d result.
        assert_eq!((large_products(&g), large_products(&new)), (4, 2));
        let count = |g: &Graph| contractions(g).count();
        assert_eq!((count(&g), count(&new)), (3, 3));
        let rows = |n: &Node| matches!(&n.op, Op::Reduce(_, over) if numel(&new, over) == 40);
        assert!(!new.nodes.iter().any(rows), "the derivative of s is no sum over rows");
        assert_eq!(unscale(&new), new);
    }

    /// `0.5 x` and `t x`, where nothing else reads x.
    #[test]
    fn scales_that_cost_nothing_stay() {
        for scale in [None, Some("t")] {
            let mut b = Builder::new("g", DType::F32);
            let [r, d, k] = [("r", 40), ("d", 3), ("k", 2)].map(|(name, n)| b.axis(name, n, AxisRole::Plain).unwrap());
            let mut read = |name: &str, axes: &[AxisId]| {
                let buffer = b.buffer(name, DType::F32, axes, BufferKind::Input).unwrap();
                b.read(buffer).unwrap()
            };
            let (x, w, t) = (read("x", &[r, d]), read("w", &[k, d]), read("t", &[d]));
            let scale = if scale.is_some() { t } else { b.constant(0.5) };
            let scaled = b.mul(x, scale).unwrap();
            let y = b.dot(scaled, w, &[d]).unwrap();
            let mut all = vec![y];
            if scale != t {
                all.push(b.dot(x, w, &[d]).unwrap());
            }
            for (i, y) in all.into_iter().enumerate() {
                let out = b.buffer(&format!("out{i}"), DType::F32, &[r, k], BufferKind::Output).unwrap();
                b.assign(out, y).unwrap();
            }
            let g = b.finish();
            assert_eq!(unscale(&g), dead_code(&g));
        }
    }

    #[test]
    fn a_scaled_value_that_is_needed_anyway_is_used() {
        let (g, contents) = layer(true);
        let new = unscale(&g);
        assert_eq!(large_products(&new), large_products(&g));
        assert_eq!(interpret(&new, &contents).unwrap(), interpret(&g, &contents).unwrap());
    }

    fn contractions(g: &Graph) -> impl Iterator<Item = &Node> {
        g.nodes.iter().filter(|n| is_dot(n))
    }
}
