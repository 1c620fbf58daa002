//! Attention kernels: online softmax over key blocks, grouped query heads, causal, sliding window, documents.

use crate::graph::ir::{Bits, DType};

/// Element strides of one operand over (batch, time, kv head, group); `dim` is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Strides {
    pub offset: i64,
    pub batch: i64,
    pub time: i64,
    pub kv: i64,
    /// 0 for k and v.
    pub group: i64,
}

/// Forward or backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Args: q, k, v, [document], y, lse.
    Forward,
    /// Args: q, k, v, y, lse, dy, [document], dq, dk, dv.
    Backward,
}

/// An attention kernel. `lse` is f32, natural log units, dense [batch, time, kv, group].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct AttendKernel {
    pub pass: Pass,
    pub batch: usize,
    pub time: usize,
    pub kv: usize,
    pub group: usize,
    pub dim: usize,
    /// Storage dtype of all tensors but lse, and of the products' operands.
    pub dtype: DType,
    pub scale: Bits,
    pub causal: bool,
    pub window: Option<u32>,
    pub document: bool,
    pub q: Strides,
    pub k: Strides,
    pub v: Strides,
    pub y: Strides,
    /// Backward only (else all zero).
    pub dy: Strides,
    pub dq: Strides,
    pub dk: Strides,
    pub dv: Strides,
}
