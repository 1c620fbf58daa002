//! Contractions: `C[m,n] = epilogue(init + sum_k A[m,k] B[k,n])`, batched.
//!
//! Every sum is one sequential FMA chain over ascending k (pairs of k in bf16 on `cpu-avx512bf16`), started from `init`: blocking never
//! shows in the bits, and continuing a chain (`accumulate`) over micro-batches equals one long chain.

use crate::graph::ir::{DType, Graph};

/// A matrix operand in memory. For operand A `row` is the stride of m; for operand B of n. One of `row`, `k` is 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Storage dtype: `F32` or `Bf16`.
    pub dtype: DType,
    /// Elements from the pointer to the first element.
    pub offset: i64,
    /// Element stride of the outer (m or n) index.
    pub row: i64,
    /// Element stride of k.
    pub k: i64,
    /// Element stride of each batch index.
    pub batch: Vec<i64>,
}

/// An epilogue argument: addressed by (batch.., m, n) strides; 0 where it does not vary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EpilogueArg {
    #[allow(missing_docs)]
    pub offset: i64,
    #[allow(missing_docs)]
    pub batch: Vec<i64>,
    #[allow(missing_docs)]
    pub m: i64,
    #[allow(missing_docs)]
    pub n: i64,
}

/// A contraction. Arguments: A, B, then the epilogue's buffers except the pseudo-buffer 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Gemm {
    /// Extents of the batch indices.
    pub batch: Vec<usize>,
    #[allow(missing_docs)]
    pub m: usize,
    #[allow(missing_docs)]
    pub n: usize,
    #[allow(missing_docs)]
    pub k: usize,
    /// Operand A.
    pub a: Operand,
    /// Operand B.
    pub b: Operand,
    /// Operands are rounded to this (`F32` or `Bf16`) before multiplying; sums are f32.
    pub compute: DType,
    /// A and B are the same matrix (`C = A Aᵀ` or `Aᵀ A`), or the result is known to be symmetric: compute the lower blocks and mirror.
    pub symmetric: bool,
    /// The single effect of the epilogue is `Accumulate` into an f32 buffer: its content starts the chains.
    pub accumulate: bool,
    /// Element-wise program over axes `m` (0) and `n` (1) (and batch axes after them). Buffer 0 is the pseudo-buffer `acc` (f32 [m,n]): the finished sum.
    /// Allowed ops: Read, Const, Iota, Unary, Binary, Select, Cast, Broadcast, StraightThrough, StopGradient. Effects are the outputs (several allowed).
    pub epilogue: Graph,
    /// Addressing of the epilogue's buffers 1.., in order.
    pub args: Vec<EpilogueArg>,
}
