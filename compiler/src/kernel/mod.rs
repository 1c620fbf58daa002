//! Kernel descriptions: what the schedule asks for and an emitter writes.
//!
//! *Takes* nothing; *gives* one plain-data description per kernel family; *promises* that equal descriptions mean equal code, so
//! that a description's [`Kernel::symbol`] (a hash of its text) identifies the generated functions and equal kernels are
//! emitted once.
//!
//! A description names its arguments by position only. A kernel may need several launches (pack, then multiply): each
//! [`Launch`] is one generated function, its tasks are independent, launches run in order. Fused element-wise work is carried as a small
//! [`Graph`] over the kernel's own axes, so there is one semantics (the graph interpreter's) for everything that is fused.

pub mod attend;
pub mod gemm;
pub mod row;
pub mod scatter;

use crate::graph::ir::DType;

/// One generated function of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Suffix of the symbol: `pack_b`, `main`, ...
    pub entry: &'static str,
    /// Number of independent tasks.
    pub tasks: u32,
    /// Pointers, in order.
    pub args: Vec<LaunchArg>,
    /// Private scratch bytes per thread.
    pub scratch: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that must move.
    pub bytes: u64,
}

/// A pointer of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaunchArg {
    /// Argument of the kernel.
    Arg(usize),
    /// Temporary of the kernel, see [`Kernel::temps`].
    Temp(usize),
}

/// Whether a kernel reads or writes an argument (for ordering and liveness).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Access {
    Read,
    Write,
    /// Reads the old content and writes the new one.
    Update,
}

/// A kernel of any family.
#[derive(Clone, Debug, PartialEq)]
pub enum Kernel {
    /// Row-wise chains with reductions, gathers, losses.
    Row(row::Row),
    /// Contractions with fused epilogue.
    Gemm(gemm::Gemm),
    /// Attention, forward or backward.
    Attend(attend::AttendKernel),
    /// Deterministic scatter-add.
    Scatter(scatter::Scatter),
    /// Implemented by the runtime.
    Host(golf_runtime::plan::Builtin),
}

/// Rounds up to a multiple.
pub fn round_up(x: usize, to: usize) -> usize {
    x.div_ceil(to) * to
}

/// The dtype of the plan for a graph dtype.
pub fn plan_dtype(d: DType) -> golf_runtime::plan::DType {
    use golf_runtime::plan::DType as P;
    match d {
        DType::F32 => P::F32,
        DType::Bf16 => P::Bf16,
        DType::F16 => P::F16,
        DType::I32 => P::I32,
        DType::I8 => P::I8,
        DType::Bool => P::Bool,
    }
}
