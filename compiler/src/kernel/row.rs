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

use crate::graph::ir::{AxisId, Graph};

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
