//! Row kernels: fused element-wise chains with reductions over the inside of a row, gathers, losses, column sums.
//!
//! The body is a [`Graph`] whose axes are split in two: `outer` axes are iterated row by row, all others lie inside a row and
//! are handled by vector loops. A value may vary along any of them; the order of axes in types does not matter. A `Reduce(Sum, ..)` over *all*
//! outer axes (and possibly inner ones) may only be the value of a per-task effect; no other op may reduce, view or gather along an
//! outer axis, except `Shift`, whose operand must then be computed element by element (no reduction in between).
//!
//! Ops allowed in a body: Read, Const, Iota, Unary, Binary, Select, Cast, StopGradient, StraightThrough, Broadcast, Reduce, Split,
//! Merge, Rename, Slice, Pad, Index, Place, Concat on inner axes, Gather, CrossEntropy and CrossEntropyGrad along an inner axis, Shift along any
//! axis, Cumsum, Scan, TopKValues and TopKIndices along an inner axis. Gather indices and targets are clamped into the axis. Integer division by zero gives 0.
//!
//! A `Read` may have axes that its buffer does not vary along: their stride is 0. A buffer may be read and be the target of an effect with the
//! same addressing (in-place update): then every read must be of the row being written. Different arguments must not overlap.
//! `Random` is refused by [`lower::lower`].
//!
//! Rounding: values are f32; `Read` widens, effects round once to the buffer's dtype. Order of sums, in terms of the loops of the lowered
//! program ([`lower::lower`], which depends on the descriptor only): if the vector dimension is reduced, 16 lanes (lane = position mod 16) accumulate in
//! ascending order and are then added by halving (lane i += lane i+8, then i+4, i+2, i+1); otherwise every element is one ascending chain.
//! Column sums: rows of a task in ascending order. A GPU has its own fixed order, see [`crate::kernel::gpu::row`].

pub mod cost;
pub mod eval;
pub mod loops;
pub mod lower;
pub mod pieces;
#[cfg(test)]
pub mod random;
pub mod run;
#[cfg(test)]
pub mod samples;
pub mod space;
#[cfg(test)]
mod tests;
pub mod tidy;
#[cfg(test)]
pub mod trial;
pub mod values;
mod views;

use super::{Launch, LaunchArg, is_own_kernel};
use crate::graph::ir::{AxisId, BufferId, EffectMode, Graph, Op};

/// How an argument is addressed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowArg {
    /// Elements from the argument's pointer to the value's first element.
    pub offset: i64,
    /// Element stride of each axis of the buffer's type, in the type's order.
    pub strides: Vec<i64>,
    /// Only for effects: the value is this task's sum over the outer axes and is written at `task * numel` (buffer type: inner axes only).
    pub per_task: bool,
}

/// A row kernel. `graph.buffers[i]` is argument i and is addressed by `args[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The body, with canonical axis and buffer names (`a0`, `p0`, ...).
    pub graph: Graph,
    /// Iterated axes, outermost first; may be empty (one row).
    pub outer: Vec<AxisId>,
    /// Rows per task.
    pub block: usize,
    /// Addressing, one per buffer of the body.
    pub args: Vec<RowArg>,
    /// On a GPU: functions and divisions rounded as on the CPU, not by the special function unit.
    pub exact: bool,
}

impl Row {
    /// Number of rows: positions of the outer axes.
    pub fn rows(&self) -> usize {
        self.outer.iter().map(|a| self.graph.axes[a.0 as usize].size).product()
    }

    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.rows().div_ceil(self.block.max(1))
    }

    /// Elements of a value that lie in one row.
    pub fn inner(&self, axes: &[AxisId]) -> usize {
        axes.iter().filter(|a| !self.outer.contains(a)).map(|a| self.graph.axes[a.0 as usize].size).product()
    }

    /// The same kernel over two tasks' rows. When rows are a multiple of the block and the body does not ask for the position along the
    /// outermost axis, a generated function does not know how many there are: it runs rows `task * block` to `(task + 1) * block`.
    pub fn code(&self) -> Row {
        let rest: usize = self.outer.iter().skip(1).map(|a| self.graph.axes[a.0 as usize].size).product();
        let Some(first) = self.outer.first().copied() else { return self.clone() };
        let asked = |n: &crate::graph::ir::Node| match n.op {
            Op::Iota(a) | Op::Shift(a, _) => a == first,
            Op::Random { .. } => true,
            _ => false,
        };
        let whole = self.rows().is_multiple_of(self.block) && (2 * self.block).is_multiple_of(rest);
        if !whole || self.rows() < 2 || self.graph.nodes.iter().any(asked) {
            return self.clone();
        }
        let mut out = self.clone();
        // At least two: the positions along the other axes are remainders only if the first is more than one.
        out.graph.axes[first.0 as usize].size = (2 * self.block / rest).max(2);
        out
    }

    /// Says what is wrong if the body breaks the rules of this module's documentation.
    pub fn check(&self) -> Result<(), String> {
        let g = &self.graph;
        if self.args.len() != g.buffers.len() || self.block == 0 {
            return Err("a row kernel needs one addressing per buffer and at least one row per task".to_string());
        }
        let outer = self.outer.len();
        let full = |axes: &[AxisId]| axes.len() >= outer && axes[..outer] == self.outer[..];
        let none = |axes: &[AxisId]| !axes.iter().any(|a| self.outer.contains(a));
        for (i, node) in g.nodes.iter().enumerate() {
            let axes = &node.ty.axes;
            let counter = matches!(node.op, Op::Iota(_)) && axes.len() == 1;
            let column = matches!(&node.op, Op::Reduce(_, over) if self.outer.iter().all(|a| over.contains(a)));
            let per_task =
                |e: &crate::graph::ir::Effect| e.value.0 as usize == i && self.args[e.buffer.0 as usize].per_task;
            if column && outer > 0 && full(&g.nodes[node.args[0].0 as usize].ty.axes) && !g.effects.iter().any(per_task)
            {
                return Err(format!("%{i} adds up rows but is no partial sum"));
            }
            if !full(axes) && !none(axes) && !counter {
                return Err(format!("%{i} has some of the outer axes only"));
            }
            let first = node.args.first().map(|a| &g.nodes[a.0 as usize]);
            match &node.op {
                Op::Shift(a, _) if !self.outer.contains(a) || !matches!(first.map(|n| &n.op), Some(Op::Read(_))) => {
                    return Err(format!("%{i} shifts something else than a read along an outer axis"));
                }
                Op::Gather(_) => {
                    let read = matches!(first.map(|n| &n.op), Some(Op::Read(_)));
                    let index = &g.nodes[node.args[1].0 as usize].ty.axes;
                    if !read || !first.is_some_and(|n| none(&n.ty.axes)) || *index != self.outer {
                        return Err(format!("%{i} gathers from no table or with no row index"));
                    }
                }
                op if is_own_kernel(op) => {
                    return Err(format!("%{i} is no row work"));
                }
                _ => {}
            }
        }
        for effect in &g.effects {
            let buffer = &g.buffers[effect.buffer.0 as usize].ty.axes;
            let per_task = self.args[effect.buffer.0 as usize].per_task;
            if !per_task && outer > 0 && !full(buffer) || per_task && !none(buffer) {
                return Err(format!("the target {} does not fit the rows", g.buffers[effect.buffer.0 as usize].name));
            }
        }
        Ok(())
    }

    /// The one function. A body that [`lower::lower`] refuses has no scratch; emitting it is an error.
    pub fn launches(&self) -> Vec<Launch> {
        let mut bytes = 0;
        for (i, buffer) in self.graph.buffers.iter().enumerate() {
            let axes = buffer.ty.axes.iter().zip(&self.args[i].strides).filter(|(_, s)| **s != 0);
            let numel: usize = axes.map(|(a, _)| self.graph.axes[a.0 as usize].size).product();
            let times = |e: &crate::graph::ir::Effect| 1 + u64::from(e.mode == EffectMode::Accumulate);
            let writes: u64 = self.graph.effects.iter().filter(|e| e.buffer.0 as usize == i).map(times).sum();
            let reads = u64::from(self.graph.nodes.iter().any(|n| n.op == Op::Read(BufferId(i as u32))));
            let tasks = if self.args[i].per_task { self.tasks() as u64 } else { 1 };
            bytes += numel as u64 * buffer.ty.dtype.bytes() as u64 * (reads + writes) * tasks;
        }
        vec![Launch {
            entry: "main",
            tasks: self.tasks() as u32,
            args: (0..self.graph.buffers.len()).map(LaunchArg::Arg).collect(),
            scratch: lower::lower(self).map_or(0, |p| p.scratch_bytes() as u64),
            flops: self.graph.nodes.iter().map(|n| crate::graph::ops::flops(&self.graph, n)).sum(),
            bytes,
            gpu: None,
        }]
    }
}
