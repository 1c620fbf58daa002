//! Contractions: `C[m,n] = epilogue(init + sum_k A[m,k] B[k,n])`, batched.
//!
//! Every sum is one sequential FMA chain over ascending k (pairs of k in bf16 on `cpu-avx512bf16`), started from `init`: blocking never
//! shows in the bits, and continuing a chain (`accumulate`) over micro-batches equals one long chain.

use super::{Launch, LaunchArg, round_up};
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
    /// Its type is `[batch.., m, n]`; every other buffer has the axes it varies over, in that order.
    /// Allowed ops: Read, Const, Iota, Unary, Binary, Select, Cast, Broadcast, StraightThrough, StopGradient. Effects are the outputs (several allowed).
    pub epilogue: Graph,
    /// Addressing of the epilogue's buffers 1.., in order.
    pub args: Vec<EpilogueArg>,
}

impl Gemm {
    /// Number of matrices.
    pub fn matrices(&self) -> usize {
        self.batch.iter().product()
    }

    /// Packing of B, then the products.
    pub fn launches(&self) -> Vec<Launch> {
        let matrices = self.matrices();
        let operand = |rows: usize, o: &Operand| (rows * self.k * o.dtype.bytes()) as u64;
        let packed: u64 = self.temps().iter().sum();
        let mut args = vec![LaunchArg::Arg(0), LaunchArg::Temp(0)];
        args.extend((2..2 + self.args.len()).map(LaunchArg::Arg));
        let outputs: u64 =
            self.epilogue.buffers.iter().skip(1).zip(&self.args).map(|(b, a)| self.arg_bytes(b.ty.dtype, a)).sum();
        let products = (2 * matrices * self.m * self.n * self.k) as u64;
        vec![
            Launch {
                entry: "pack_b",
                tasks: (matrices * self.n.div_ceil(64)) as u32,
                args: vec![LaunchArg::Arg(1), LaunchArg::Temp(0)],
                scratch: 0,
                flops: 0,
                bytes: matrices as u64 * operand(self.n, &self.b) + packed,
            },
            Launch {
                entry: "main",
                tasks: (matrices * self.m.div_ceil(64)) as u32,
                args,
                scratch: (64 * self.k.max(64) * 4 + 64 * 64 * 4) as u64,
                flops: if self.symmetric { products / 2 } else { products },
                bytes: matrices as u64 * operand(self.m, &self.a) + packed + outputs,
            },
        ]
    }

    /// Packed B.
    pub fn temps(&self) -> Vec<u64> {
        let width = if self.compute == DType::Bf16 { 2 } else { 4 };
        vec![(self.matrices() * round_up(self.n, 64) * round_up(self.k, 2) * width) as u64]
    }

    /// Bytes of the memory that an epilogue buffer spans.
    fn arg_bytes(&self, dtype: DType, arg: &EpilogueArg) -> u64 {
        let extent = |stride: i64, size: usize| if stride == 0 { 1 } else { size };
        let batch: usize = arg.batch.iter().zip(&self.batch).map(|(s, n)| extent(*s, *n)).product();
        (batch * extent(arg.m, self.m) * extent(arg.n, self.n) * dtype.bytes()) as u64
    }
}
