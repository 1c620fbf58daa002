//! Reverse mode: derivatives as more nodes of the same graph.
//!
//! *Takes* a builder, output nodes with the derivative of the objective by each (the seeds), and the nodes asked for; *gives* the
//! derivative of the objective by each of those, or `None` where every path is cut or zero by rule; *promises* one rule per op
//! ([`rules`]), checked against finite differences, and contributions summed in one order: users from last to first, operands of
//! one user from left to right.
//!
//! Conventions: integers and booleans carry no derivative; round, floor, sign and comparisons have zero; abs'(0) = 0; min and max
//! give it to the first operand on ties, reductions of that name to the first extremal position; a cast between floats passes it
//! through unrounded; `straight_through` gives it to its second operand; `stop_gradient` cuts it.

mod rules;
#[cfg(test)]
mod tests;

use crate::graph::build::Builder;
use crate::graph::error::TypeError;
use crate::graph::ir::{NodeId, Op, Origin};
use crate::graph::ops::{self, Derivative};
use std::collections::BTreeMap;

/// Why there is no derivative.
#[derive(Clone, Debug, PartialEq)]
pub enum GradError {
    /// A path to a wanted node goes through an op that has none.
    Undefined {
        /// The op's node.
        node: NodeId,
        /// Its name.
        op: &'static str,
        /// Where it was written.
        origin: Origin,
    },
    /// A seed does not have the axes of its output.
    Seed {
        /// The output.
        node: NodeId,
        /// The mismatch.
        error: TypeError,
    },
    /// A rule built an ill-typed node: a fault of the compiler.
    Rule {
        /// The node whose rule it was.
        node: NodeId,
        /// The complaint.
        error: TypeError,
    },
}

impl std::fmt::Display for GradError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GradError::Undefined { node, op, .. } => {
                write!(f, "`{op}` (%{}) has no derivative, but a parameter reaches the loss through it", node.0)
            }
            GradError::Seed { node, error } => write!(f, "the seed of %{} does not fit: {error}", node.0),
            GradError::Rule { node, error } => write!(f, "internal: derivative rule of %{}: {error}", node.0),
        }
    }
}

impl std::error::Error for GradError {}

/// Derivatives of `sum over outputs of <output, seed>` by each node of `wrt`. A seed's axes are its output's (in any order).
/// The results have the axes of their nodes, not always in the same storage order.
pub fn grad(b: &mut Builder, outputs: &[(NodeId, NodeId)], wrt: &[NodeId]) -> Result<Vec<Option<NodeId>>, GradError> {
    let end = outputs.iter().map(|(y, _)| y.0 as usize + 1).max().unwrap_or(0);
    let active = active(b, wrt, end);
    let mut sums: BTreeMap<NodeId, NodeId> = BTreeMap::new();
    for (y, seed) in outputs {
        check_seed(b, *y, *seed)?;
        contribute(b, &mut sums, *y, *seed).map_err(|error| GradError::Seed { node: *y, error })?;
    }
    let before = b.origin().clone();
    let mut result = Ok(());
    for id in (0..end as u32).rev().map(NodeId) {
        let Some(g) = sums.get(&id).copied() else { continue };
        if !active[id.0 as usize] {
            continue;
        }
        let origin = b.origin_of(id);
        b.set_origin(origin);
        result = step(b, &active, &mut sums, id, g);
        if result.is_err() {
            break;
        }
    }
    b.set_origin(before);
    result?;
    Ok(wrt.iter().map(|x| if active.get(x.0 as usize) == Some(&true) { sums.get(x).copied() } else { None }).collect())
}

/// Nodes below `end` that depend on a wanted node through floats and ops that pass a derivative.
fn active(b: &Builder, wrt: &[NodeId], end: usize) -> Vec<bool> {
    let mut active = vec![false; end];
    for (i, node) in b.graph().nodes[..end].iter().enumerate() {
        let asked = wrt.contains(&NodeId(i as u32));
        let passes = ops::row(&node.op).derivative != Derivative::Zero;
        let reached = node.args.iter().enumerate().any(|(n, a)| active[a.0 as usize] && rules::passes(&node.op, n));
        active[i] = node.ty.dtype.is_float() && (asked || passes && reached);
    }
    active
}

fn check_seed(b: &Builder, y: NodeId, seed: NodeId) -> Result<(), GradError> {
    let (left, right) = (b.axes(y), b.axes(seed));
    let fits = left.len() == right.len() && left.iter().all(|a| right.contains(a));
    let error = if !fits {
        let names = |axes: &[_]| axes.iter().map(|a| b.axis_name(*a).to_string()).collect();
        TypeError::Axes { op: "grad", left: names(left), right: names(right) }
    } else if !b.dtype(y).is_float() || !b.dtype(seed).is_float() {
        let found = vec![b.dtype(y), b.dtype(seed)];
        TypeError::DType { op: "grad", expected: "floats".to_string(), found }
    } else {
        return Ok(());
    };
    Err(GradError::Seed { node: y, error })
}

fn contribute(b: &mut Builder, sums: &mut BTreeMap<NodeId, NodeId>, x: NodeId, g: NodeId) -> Result<(), TypeError> {
    let sum = match sums.get(&x) {
        Some(sum) => b.add(*sum, g)?,
        None => g,
    };
    sums.insert(x, sum);
    Ok(())
}

/// Applies the rule of one node and hands its contributions on.
fn step(
    b: &mut Builder,
    active: &[bool],
    sums: &mut BTreeMap<NodeId, NodeId>,
    id: NodeId,
    g: NodeId,
) -> Result<(), GradError> {
    let node = b.node(id).clone();
    let wanted: Vec<bool> =
        node.args.iter().enumerate().map(|(n, a)| active[a.0 as usize] && rules::passes(&node.op, n)).collect();
    if !wanted.contains(&true) {
        return Ok(());
    }
    let row = ops::row(&node.op);
    if row.derivative == Derivative::Undefined {
        return Err(GradError::Undefined { node: id, op: row.name, origin: b.origin_of(id) });
    }
    let fault = |error| GradError::Rule { node: id, error };
    let parts = rules::Local { b, node: &node, y: id, g, wanted: &wanted }.rule().map_err(fault)?;
    for (n, part) in parts {
        if wanted[n] {
            contribute(b, sums, node.args[n], part).map_err(fault)?;
        }
    }
    Ok(())
}

/// True if an op is one that can be differentiated or is zero by convention; `Read` counts.
pub fn has_rule(op: &Op) -> bool {
    ops::row(op).derivative != Derivative::Undefined
}
