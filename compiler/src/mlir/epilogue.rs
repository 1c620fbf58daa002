//! Epilogues of kernels that have whole rows of results at hand.
//!
//! *Takes* a body and one row as a target holds it; *gives* the effects; *promises* every value computed once per row, those that do not vary along n as one number.

use super::elementwise;
use super::emit::{Emit, V};
use crate::graph::ir::{Graph, Op, Reduce};
use crate::kernel::epilogue::needs;

/// A value of the body at one row.
#[derive(Clone)]
pub(super) enum Value<'c> {
    /// The same along n.
    One(V<'c>),
    /// What this code has of the row, in vectors.
    Row(Vec<V<'c>>),
}

impl<'c> Value<'c> {
    /// As vectors of as many lanes as `like`.
    pub fn row(&self, e: &Emit<'c>, like: &[V<'c>]) -> Vec<V<'c>> {
        match self {
            Value::One(x) => like.iter().map(|v| e.splat(*x, v.ty.lanes)).collect(),
            Value::Row(all) => all.clone(),
        }
    }
}

/// One row of a kernel's results.
pub(super) trait Row<'c> {
    /// The results.
    fn results(&self) -> &[V<'c>];
    /// What a buffer holds at the row.
    fn load(&self, e: &Emit<'c>, buffer: usize) -> Value<'c>;
    /// Positions along an axis, i32.
    fn iota(&self, e: &Emit<'c>, axis: u32) -> Value<'c>;
    /// Reduces a whole row.
    fn reduce(&self, e: &Emit<'c>, kind: Reduce, row: &[V<'c>]) -> V<'c>;
    /// Stores to a buffer.
    fn store(&self, e: &Emit<'c>, buffer: usize, value: &Value<'c>);
}

/// The body's values at a row, by node, where they are needed.
pub(super) fn evaluate<'c>(e: &Emit<'c>, body: &Graph, row: &impl Row<'c>) -> Vec<Option<Value<'c>>> {
    let needed = needs(body);
    let mut values: Vec<Option<Value>> = Vec::with_capacity(body.nodes.len());
    for (node, needed) in body.nodes.iter().zip(needed) {
        let arg = |i: usize| values[node.args[i].0 as usize].as_ref().expect("operands come first");
        let value = match &node.op {
            _ if !needed => None,
            Op::Read(buffer) if buffer.0 == 0 => Some(Value::Row(row.results().to_vec())),
            Op::Read(buffer) => Some(row.load(e, buffer.0 as usize)),
            Op::Iota(axis) => Some(row.iota(e, axis.0)),
            Op::Reduce(kind, _) => Some(Value::One(row.reduce(e, *kind, &arg(0).row(e, row.results())))),
            _ => {
                let alike = (0..node.args.len()).all(|i| matches!(arg(i), Value::One(_)));
                let part = |vector: usize| {
                    let operand = |i: usize| match arg(i) {
                        Value::One(x) if alike => *x,
                        x => x.row(e, row.results())[vector],
                    };
                    elementwise::node(e, node, operand)
                };
                Some(if alike { Value::One(part(0)) } else { Value::Row((0..row.results().len()).map(part).collect()) })
            }
        };
        values.push(value);
    }
    values
}

/// Stores what [`evaluate`] gave.
pub(super) fn store<'c>(e: &Emit<'c>, body: &Graph, row: &impl Row<'c>, values: &[Option<Value<'c>>]) {
    for effect in &body.effects {
        let value = values[effect.value.0 as usize].as_ref().expect("evaluated");
        row.store(e, effect.buffer.0 as usize, value);
    }
}
