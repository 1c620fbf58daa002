//! Attention kernels: online softmax over key blocks, grouped query heads, causal, sliding window, documents.

use super::{Access, Launch, LaunchArg};
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

impl AttendKernel {
    /// Number of arguments.
    pub fn arity(&self) -> usize {
        let fixed = match self.pass {
            Pass::Forward => 5,
            Pass::Backward => 9,
        };
        fixed + usize::from(self.document)
    }

    /// Outputs are the last two (forward) or three (backward) arguments.
    pub fn accesses(&self) -> Vec<Access> {
        let outputs = match self.pass {
            Pass::Forward => 2,
            Pass::Backward => 3,
        };
        let arity = self.arity();
        (0..arity).map(|i| if i + outputs < arity { Access::Read } else { Access::Write }).collect()
    }

    /// One function, one task per key-value head of a batch row.
    pub fn launches(&self) -> Vec<Launch> {
        let (time, group) = (self.time as u64, self.group as u64);
        let heads = (self.batch * self.kv) as u64;
        let window = self.window.map(u64::from);
        let pairs = crate::graph::ops::visible_pairs(time, self.causal, window);
        let rows = heads * time * self.dim as u64 * self.dtype.bytes() as u64;
        let (products, tensors) = match self.pass {
            Pass::Forward => (4, 2 * group + 2),
            Pass::Backward => (10, 4 * group + 4),
        };
        vec![Launch {
            entry: "main",
            tasks: heads as u32,
            args: (0..self.arity()).map(LaunchArg::Arg).collect(),
            scratch: 4 * self.dim as u64 * (2 * time.next_multiple_of(64) + 512) + 1024 * 1024,
            flops: products * pairs * heads * group * self.dim as u64,
            bytes: rows * tensors,
        }]
    }

    /// No temporaries.
    pub fn temps(&self) -> Vec<u64> {
        Vec::new()
    }
}
