//! Algebraic rewrites that make graphs, above all derivatives, short.
//!
//! *Takes* a graph after differentiation; *gives* one with the same effects; *promises* equal values: exactly where a rule only moves
//! or chooses, up to the rounding of sums where one says so. Rules look at one node and its operands, are written with their
//! algebra above them, and are listed in [`RULES`]; each has a case of its name in the tests.
//!
//! Rules may drop `stop_gradient` and `straight_through`, so derivatives must have been taken before.

mod arithmetic;
mod moves;
mod scales;
mod sums;
#[cfg(test)]
mod tests;

pub use scales::unscale;

use super::build::Builder;
use super::fold::{dead_code, fold, keep, rebuild};
use super::ir::{Graph, Node, NodeId, Op};

/// A rule: what takes the node's place, with the same set of axes; `None` where it does not apply.
pub type Rule = fn(&mut Builder, &Node) -> Option<NodeId>;

/// All rules, tried in order.
pub const RULES: &[(&str, Rule)] = &[
    ("value_only", arithmetic::value_only),
    ("add_of_negative", arithmetic::add_of_negative),
    ("negative_of_difference", arithmetic::negative_of_difference),
    ("product_of_negative", arithmetic::product_of_negative),
    ("small_power", arithmetic::small_power),
    ("select_of_not", arithmetic::select_of_not),
    ("scaled_select", arithmetic::scaled_select),
    ("sum_of_selects", arithmetic::sum_of_selects),
    ("cast_of_rounded", arithmetic::cast_of_rounded),
    ("elementwise_of_broadcast", arithmetic::elementwise_of_broadcast),
    ("move_of_broadcast", moves::move_of_broadcast),
    ("move_of_zeros", moves::move_of_zeros),
    ("slice_of_slice", moves::slice_of_slice),
    ("slice_of_concat", moves::slice_of_concat),
    ("slice_of_pad", moves::slice_of_pad),
    ("index_of_place", moves::index_of_place),
    ("index_of_slice", moves::index_of_slice),
    ("index_of_split", moves::index_of_split),
    ("index_of_concat", moves::index_of_concat),
    ("merge_of_place", moves::merge_of_place),
    ("concat_of_concat", moves::concat_of_concat),
    ("split_of_split", moves::split_of_split),
    ("merge_of_merge", moves::merge_of_merge),
    ("shift_of_shift", moves::shift_of_shift),
    ("sum_of_pads", sums::sum_of_pads),
    ("merge_of_places", sums::merge_of_places),
    ("reduce_of_broadcast", sums::reduce_of_broadcast),
    ("reduce_of_reduce", sums::reduce_of_reduce),
    ("sum_of_padded", sums::sum_of_padded),
    ("sum_of_scaled", sums::sum_of_scaled),
    ("dot_of_transposed", sums::dot_of_transposed),
    ("dot_of_renamed", sums::dot_of_renamed),
    ("dot_of_broadcast", sums::dot_of_broadcast),
    ("dot_without_matrix", sums::dot_without_matrix),
];

/// Constant folding and all rules until nothing changes, then removal of dead nodes.
pub fn clean(g: &Graph) -> Graph {
    fixpoint(g, |g| fold(&pass(g, RULES)))
}

/// Passes after which rewriting stops in any case. Rules make graphs smaller or move broadcasts outwards, so a few suffice.
const PASSES: usize = 16;

fn fixpoint(g: &Graph, step: impl Fn(&Graph) -> Graph) -> Graph {
    let mut g = dead_code(g);
    for _ in 0..PASSES {
        let next = step(&g);
        let done = next == g;
        g = next;
        if done {
            break;
        }
    }
    g
}

/// One walk over all nodes.
fn pass(g: &Graph, rules: &[(&str, Rule)]) -> Graph {
    let mut out = rebuild(g, |b, _, node| {
        let mut id = keep(b, node);
        // A chain of rules at one node is short; what a rule leaves inside is met in the next pass.
        for _ in 0..PASSES {
            let node = b.node(id).clone();
            match rules.iter().find_map(|(_, rule)| rule(b, &node)) {
                Some(next) if next != id => id = next,
                _ => break,
            }
        }
        id
    });
    // An effect takes its value in any storage order.
    for effect in &mut out.effects {
        while is_transposition(&out.nodes, effect.value) {
            effect.value = out.nodes[effect.value.0 as usize].args[0];
        }
    }
    out
}

fn is_transposition(nodes: &[Node], x: NodeId) -> bool {
    let node = &nodes[x.0 as usize];
    node.op == Op::Broadcast && nodes[node.args[0].0 as usize].ty.axes.len() == node.ty.axes.len()
}

/// Every element is this number.
fn uniform(b: &Builder, x: NodeId) -> Option<f64> {
    b.const_value(x)
}

fn is_zero(b: &Builder, x: NodeId) -> bool {
    uniform(b, x) == Some(0.0)
}

/// Zeros of a node's type.
fn zeros(b: &mut Builder, node: &Node) -> Option<NodeId> {
    let zero = b.constant_of(node.ty.dtype, 0.0).ok()?;
    b.broadcast(zero, &node.ty.axes).ok()
}
