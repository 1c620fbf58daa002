//! Row kernels: fused element-wise chains with reductions over the inside of a row, gathers, losses, column sums.
//!
//! The body is a [`Graph`] whose axes are split in two: `outer` axes are iterated row by row, all others lie inside a row and
//! are handled by vector loops. Every value either has all outer axes (in the order of `outer`, first in its type) or none of them
//! (row-invariant), with one exception: a `Reduce(Sum, ..)` over *all* outer axes (and possibly inner ones), which may only be the value of a `PerTask` effect.
//!
//! Ops allowed in a body: Read, Const, Iota, Unary, Binary, Select, Cast, StopGradient, StraightThrough, Broadcast, Reduce, Split,
//! Merge, Rename, Slice, Pad, Index, Place, Concat on inner axes, Gather from a row-invariant Read with an index value that has no
//! inner axes, CrossEntropy and CrossEntropyGrad over an inner axis, Shift over an outer axis when its operand is a Read, Cumsum over an inner axis.
//!
//! Rounding: values are f32; `Read` widens, effects round once to the buffer's dtype. Sums over inner axes: 16 virtual lanes over the
//! innermost reduced axis (lane = position mod 16, lanes accumulate in ascending order), then the fixed tree
//! ((0+8)+(4+12))+((2+10)+(6+14)) + (...odd...) i.e. halving: lane i += lane i+8, then i+4, i+2, i+1. Column sums: rows of a task in ascending order.

//!
//! More about the body:
//! - An `Iota` over an outer axis has the type `[axis]` and is only used by `Broadcast`s to types with all outer axes.
//! - A `Read` may have axes that its buffer does not vary over: their stride is 0. Offsets of slices are in [`RowArg::offset`].
//! - A buffer may be read and be the target of an effect with the same addressing (in-place update): an element is loaded before it
//!   is stored, and never loaded again after that.
//! - A `Broadcast` to the same set of axes in another order is the identity (axes have names).
//! - `Scan`, `TopKValues`, `TopKIndices` over an inner axis and `Random` may also occur; an emitter that has none of them says so.
//! - `Gather`: the outer axes are exactly the axes of the index.

use super::{Launch, LaunchArg};
use crate::graph::ir::{AxisId, EffectMode, Graph, Op};

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

    /// The one function.
    pub fn launches(&self) -> Vec<Launch> {
        let rows = self.rows() as u64;
        let mut flops = 0;
        let mut scratch = 0u64;
        for node in &self.graph.nodes {
            let inner = self.inner(&node.ty.axes) as u64;
            if !matches!(node.op, Op::Read(_) | Op::Const(_)) {
                flops += crate::graph::ops::flops(&self.graph, node);
                // Room for every value of a row, in f32, whole vectors.
                scratch += (inner * 4).next_multiple_of(64);
            }
        }
        let mut bytes = 0;
        for (i, buffer) in self.graph.buffers.iter().enumerate() {
            let numel: usize = buffer
                .ty
                .axes
                .iter()
                .zip(&self.args[i].strides)
                .filter(|(_, s)| **s != 0)
                .map(|(a, _)| self.graph.axes[a.0 as usize].size)
                .product();
            let times = |e: &crate::graph::ir::Effect| 1 + u64::from(e.mode == EffectMode::Accumulate);
            let writes: u64 = self.graph.effects.iter().filter(|e| e.buffer.0 as usize == i).map(times).sum();
            let reads =
                u64::from(self.graph.nodes.iter().any(|n| n.op == Op::Read(crate::graph::ir::BufferId(i as u32))));
            let tasks = if self.args[i].per_task { self.tasks() as u64 } else { 1 };
            bytes += numel as u64 * buffer.ty.dtype.bytes() as u64 * (reads + writes) * tasks;
        }
        debug_assert!(rows > 0);
        vec![Launch {
            entry: "main",
            tasks: self.tasks() as u32,
            args: (0..self.graph.buffers.len()).map(LaunchArg::Arg).collect(),
            scratch,
            flops,
            bytes,
        }]
    }
}
