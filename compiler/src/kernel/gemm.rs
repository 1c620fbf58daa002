//! Contractions: `C[m,n] = epilogue(init + sum_k A[m,k] B[k,n])`, batched.
//!
//! Every sum is one sequential FMA chain over ascending k (pairs of k in bf16 on `cpu-avx512bf16`), started from `init`: blocking never
//! shows in the bits, and continuing a chain (`accumulate`) over micro-batches equals one long chain.

use super::epilogue::{self, EpilogueArg};
use super::gpu::gemm::Cut;
use super::{Launch, LaunchArg, round_up};
use crate::graph::ir::{DType, EffectMode, Graph, Node, Op};
use std::collections::BTreeSet;

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
    /// How `sm_90a` cuts it, if a tuning table says so.
    pub cut: Option<Cut>,
    /// On `sm_90a` cuBLASLt does it, because a tuning table says so.
    pub library: bool,
}

/// How often a value of the epilogue must be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Once per block of the result: it varies along neither m nor n.
    Block,
    /// Once per row.
    Row,
    /// For every vector of a row.
    Vector,
}

/// How the result is cut into tasks. A function of the shape only: neither threads nor tiers change it, and K is never split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocking {
    /// Rows of C per task.
    pub rows: usize,
    /// Columns of C per task, a multiple of 64 (symmetric: equal to `rows`).
    pub cols: usize,
    /// Tasks along m.
    pub row_blocks: usize,
    /// Tasks along n.
    pub col_blocks: usize,
}

impl Gemm {
    /// Number of matrices.
    pub fn matrices(&self) -> usize {
        self.batch.iter().product()
    }

    /// Matrices of B that differ: one if every matrix of the batch uses the same.
    pub fn packed_matrices(&self) -> usize {
        if self.b.batch.iter().all(|&stride| stride == 0) { 1 } else { self.matrices() }
    }

    /// Columns of B that one task of `pack_b` packs.
    pub const PACK_COLS: usize = 64;

    /// Depth of B that one task of `pack_b` packs; even, a multiple of 32.
    pub const PACK_DEPTH: usize = 512;

    /// The cut into tasks: about forty or more, so that a few threads stay balanced, of at least 48 x 64.
    pub fn blocking(&self) -> Blocking {
        if self.symmetric {
            // A multiple of 16 (mirroring) and of the row tile (4 in bf16, 6 in f32).
            let rows = if self.compute == DType::Bf16 { 64 } else { 48 };
            let blocks = self.m.div_ceil(rows);
            return Blocking { rows, cols: rows, row_blocks: blocks, col_blocks: blocks };
        }
        const TASKS: usize = 40;
        let rows = 48;
        let row_blocks = self.m.div_ceil(rows);
        let wanted = TASKS.div_ceil(self.matrices() * row_blocks).clamp(1, self.n.div_ceil(64));
        let cols = round_up(self.n.div_ceil(wanted), 64);
        Blocking { rows, cols, row_blocks, col_blocks: self.n.div_ceil(cols) }
    }

    /// Tasks of one matrix.
    pub fn blocks(&self) -> usize {
        let b = self.blocking();
        if self.symmetric { b.row_blocks * (b.row_blocks + 1) / 2 } else { b.row_blocks * b.col_blocks }
    }

    /// Bytes of scratch for the task's rows of A in packed form; 0 if no tier needs it.
    pub fn packed_a_bytes(&self) -> usize {
        let as_it_lies = self.compute == DType::F32 && self.a.dtype == DType::F32 && self.a.k == 1;
        // bf16 products without `vdpbf16ps` widen A to f32 first.
        if as_it_lies { 0 } else { (round_up(self.blocking().rows, 48) * round_up(self.k, 32) + 16) * 4 }
    }

    /// Bytes of scratch for finished sums of one panel (f32, up to 66 rows of 64) and for their mirror image.
    pub const SUMS_BYTES: usize = 72 * 64 * 4;

    /// `pack_b` brings B into panels of consecutive columns, k by k; `main` multiplies and runs the epilogue.
    pub fn launches(&self) -> Vec<Launch> {
        let matrices = self.matrices();
        let operand = |rows: usize, o: &Operand| (rows * self.k * o.dtype.bytes()) as u64;
        let packed: u64 = self.temps().iter().sum();
        let mut args = vec![LaunchArg::Arg(0), LaunchArg::Temp(0)];
        args.extend((2..2 + self.args.len()).map(LaunchArg::Arg));
        let outputs = self.output_bytes();
        let products = (2 * matrices * self.m * self.n * self.k) as u64;
        let packs = self.packed_matrices() * self.n.div_ceil(Self::PACK_COLS) * self.k.div_ceil(Self::PACK_DEPTH);
        vec![
            Launch {
                entry: "pack_b",
                tasks: packs as u32,
                args: vec![LaunchArg::Arg(1), LaunchArg::Temp(0)],
                scratch: 0,
                flops: 0,
                bytes: self.packed_matrices() as u64 * operand(self.n, &self.b) + packed,
                gpu: None,
            },
            Launch {
                entry: "main",
                tasks: (matrices * self.blocks()) as u32,
                args,
                scratch: (self.packed_a_bytes() + 2 * Self::SUMS_BYTES) as u64,
                flops: if self.symmetric { products / 2 } else { products },
                bytes: matrices as u64 * operand(self.m, &self.a) + packed + outputs,
                gpu: None,
            },
        ]
    }

    /// Packed B. bf16 products need half the room where `vdpbf16ps` exists, but panels of 64 columns; both tiers must fit.
    pub fn temps(&self) -> Vec<u64> {
        let narrow = round_up(self.n, 16) * self.k * 4;
        let wide = if self.compute == DType::Bf16 { round_up(self.n, 64) * round_up(self.k, 2) * 2 } else { 0 };
        vec![(self.packed_matrices() * narrow.max(wide)) as u64]
    }

    /// Bytes of the memory that the epilogue's buffers span.
    pub fn output_bytes(&self) -> u64 {
        let one =
            |(b, a): (&crate::graph::ir::Buffer, &EpilogueArg)| a.bytes(&self.batch, (self.m, self.n), b.ty.dtype);
        self.epilogue.buffers.iter().skip(1).zip(&self.args).map(one).sum()
    }

    /// Says what an epilogue may not hold: every output varies along m and n, every op is element-wise.
    pub fn check_epilogue(&self) -> Result<(), String> {
        let body = &self.epilogue;
        for effect in &body.effects {
            let ty = &body.buffers[effect.buffer.0 as usize].ty;
            let spans = |axis: u32, extent: usize| extent == 1 || ty.axes.iter().any(|a| a.0 == axis);
            if !spans(0, self.m) || !spans(1, self.n) {
                return Err("an output of the epilogue does not vary along m and n".into());
            }
        }
        epilogue::check_ops(body, false)
    }

    /// Buffers of the epilogue that its effects read, in order, each once.
    pub fn epilogue_reads(&self) -> Vec<usize> {
        let (body, needed) = (&self.epilogue, epilogue::needs(&self.epilogue));
        let reads = body.nodes.iter().zip(&needed).filter_map(|(node, &needed)| match node.op {
            Op::Read(buffer) if needed => Some(buffer.0 as usize),
            _ => None,
        });
        let updated = body.effects.iter().filter(|f| f.mode == EffectMode::Accumulate).map(|f| f.buffer.0 as usize);
        reads.chain(updated).collect::<BTreeSet<usize>>().into_iter().collect()
    }

    /// How often a node of the epilogue must be computed.
    pub fn epilogue_level(&self, node: &Node) -> Level {
        let has = |axis: u32| node.ty.axes.iter().any(|a| a.0 == axis);
        match node.op {
            Op::Read(buffer) if buffer.0 == 0 => Level::Vector,
            _ if has(1) => Level::Vector,
            Op::Read(buffer) if self.args[buffer.0 as usize - 1].m != 0 => Level::Row,
            _ if has(0) => Level::Row,
            _ => Level::Block,
        }
    }
}
