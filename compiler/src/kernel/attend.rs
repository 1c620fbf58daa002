//! Attention kernels: online softmax over key blocks, grouped query heads, causal, sliding window, documents; with an epilogue on the finished rows.
//!
//! An epilogue is worth what it keeps out of memory. A layer at 98,304 tokens with 8 heads of 64 in bf16 has 100 MB of y. Where nothing but the epilogue needs y
//! (scoring) a write and a read of it and a kernel are saved, predicted 0.06 ms at 3.5 TB/s; where the derivative needs it, the read and the kernel, 0.03 ms. What
//! the epilogue reads beside is what the row kernel read, but a value without the group's axis comes once per query head instead of once, from cache. Nothing
//! covers its latency at the end of a block: on Hopper about 1 us for each of the 32 blocks that follow each other on a multiprocessor.

#[cfg(all(test, feature = "mlir"))]
pub(crate) mod samples;

use super::epilogue::{Epilogue, EpilogueArg, check_ops};
use super::{Access, Launch, LaunchArg, round_up};
use crate::graph::ir::{Bits, DType, EffectMode};

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
    /// Args: q, k, v, [document], y, lse. With an epilogue: q, k, v, [document], lse, the epilogue's buffers but the pseudo-buffer.
    Forward,
    /// Args: q, k, v, y, lse, dy, [document], dq, dk, dv.
    Backward,
}

/// An attention kernel. `lse` is f32, natural log units, dense [batch, time, kv, group].
#[derive(Clone, Debug, PartialEq)]
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
    /// All zero with an epilogue.
    pub y: Strides,
    /// What becomes of the rows of y (forward only): y itself is stored if that is an effect of it. m is the position, n the head dimension, batch indices
    /// are batch, kv head, group. Results may lack n, and the group: then the first of the group writes.
    pub epilogue: Option<Box<Epilogue>>,
    /// Backward only (else all zero).
    pub dy: Strides,
    pub dq: Strides,
    pub dk: Strides,
    pub dv: Strides,
}

/// Positions per block of keys and of queries.
pub const BLOCK: usize = 64;

/// Sizes of the packed temporaries, in 4-byte words, the same on every tier (a word is an f32 or a pair of bf16; layouts are sized for f32).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Blocks of [`BLOCK`] positions.
    pub blocks: usize,
    /// Padded positions.
    pub time: usize,
    /// Padded head dimension: words of a packed row, a multiple of 16.
    pub dim: usize,
    /// Heads of keys and values over the batch.
    pub kv: usize,
    /// Heads of queries over the batch.
    pub q: usize,
}

impl AttendKernel {
    /// What this family does not do, as a sentence for the user.
    pub fn check(&self) -> Result<(), String> {
        if self.dim > 256 {
            return Err(format!("attention on the CPU takes head dimensions up to 256, found {}", self.dim));
        }
        if self.dtype == DType::Bf16 && self.dim % 2 == 1 {
            return Err(format!(
                "attention in bf16 needs an even head dimension, found {}; --precision f32 takes any",
                self.dim
            ));
        }
        self.check_epilogue()
    }

    /// Says what an epilogue may not hold.
    pub fn check_epilogue(&self) -> Result<(), String> {
        let Some(epilogue) = &self.epilogue else { return Ok(()) };
        if self.pass == Pass::Backward {
            return Err("the gradients of attention have no epilogue".into());
        }
        let body = &epilogue.body;
        check_ops(body, true)?;
        for effect in &body.effects {
            let arg = &epilogue.args[effect.buffer.0 as usize - 1];
            let spans = |axis: u32, extent: usize| extent == 1 || arg.stride(axis) != 0;
            if effect.mode != EffectMode::Assign || !spans(0, self.time) || !spans(2, self.batch) || !spans(3, self.kv)
            {
                return Err(
                    "a result of attention's epilogue has to be written for every position and key/value head".into()
                );
            }
            if !matches!(arg.n, 0 | 1) {
                return Err("a result of attention's epilogue has to be contiguous along the head dimension".into());
            }
        }
        Ok(())
    }

    /// Extents of an epilogue's batch indices.
    pub fn heads(&self) -> [usize; 3] {
        [self.batch, self.kv, self.group]
    }

    /// Whether one query head of a group writes this argument of the epilogue for all.
    pub fn once_per_group(&self, arg: &EpilogueArg) -> bool {
        self.group > 1 && arg.batch[2] == 0
    }

    /// Number of arguments.
    pub fn arity(&self) -> usize {
        self.accesses().len()
    }

    /// Number of the first argument that is written.
    pub fn first_result(&self) -> usize {
        self.accesses().iter().take_while(|a| **a == Access::Read).count()
    }

    /// Number of the argument with the log-sum-exp that the forward pass writes. Arguments of an epilogue follow it.
    pub fn lse(&self) -> usize {
        self.first_result() + usize::from(self.epilogue.is_none())
    }

    /// Number of the argument with the document ids, i32 dense [batch, time].
    pub fn documents(&self) -> Option<usize> {
        self.document.then(|| self.first_result() - 1)
    }

    /// Padded sizes.
    pub fn sizes(&self) -> Sizes {
        let time = round_up(self.time, BLOCK);
        let kv = self.batch * self.kv;
        Sizes { blocks: time / BLOCK, time, dim: round_up(self.dim, 16), kv, q: kv * self.group }
    }

    /// Bytes of each temporary.
    ///
    /// Forward: q rows, k transposed by block, v. Backward: q rows, dy rows, k and v transposed by block, k, q and dy by position, delta, lse, dq in f32.
    /// Then, with documents, the ids of each key/value head's positions.
    pub fn temps(&self) -> Vec<u64> {
        let s = self.sizes();
        let (rows_q, rows_kv) = (s.q * s.time * s.dim, s.kv * s.time * s.dim);
        let mut words = match self.pass {
            Pass::Forward => vec![rows_q, rows_kv, rows_kv],
            Pass::Backward => {
                vec![rows_q, rows_q, rows_kv, rows_kv, rows_kv, rows_q, rows_q, s.q * s.time, s.q * s.time, rows_q]
            }
        };
        words.extend(self.document.then_some(s.kv * s.time));
        words.into_iter().map(|w| 4 * w as u64).collect()
    }

    /// How each argument is used, in order.
    pub fn accesses(&self) -> Vec<Access> {
        let document = if self.document { 1 } else { 0 };
        let (reads, writes) = match self.pass {
            Pass::Forward => (3 + document, if self.epilogue.is_none() { 2 } else { 1 }),
            Pass::Backward => (6 + document, 3),
        };
        let mut all = [vec![Access::Read; reads], vec![Access::Write; writes]].concat();
        // Buffer 0 is the pseudo-buffer of y.
        all.extend(self.epilogue.iter().flat_map(|p| super::body_accesses(&p.body).into_iter().skip(1)));
        all
    }

    /// Bytes of y, or of what the epilogue reads and writes.
    pub fn result_bytes(&self) -> u64 {
        match &self.epilogue {
            None => (self.sizes().q * self.time * self.dim * self.dtype.bytes()) as u64,
            Some(p) => p.buffers().map(|(dtype, a)| a.bytes(&self.heads(), (self.time, self.dim), dtype)).sum(),
        }
    }

    /// Bytes of thread-private scratch of the main launch.
    pub fn scratch(&self) -> u64 {
        let dim = self.sizes().dim;
        let words = match self.pass {
            // Output rows, running maximum, running sum (16 lanes), probabilities of four rows.
            Pass::Forward => BLOCK * dim + BLOCK + BLOCK * 16 + 4 * BLOCK,
            // dk, dv, probabilities and score gradients by query, score gradients by row.
            Pass::Backward => 2 * BLOCK * dim + 3 * BLOCK * BLOCK,
        };
        4 * words as u64
    }

    /// Pack, then the tiles.
    pub fn launches(&self) -> Vec<Launch> {
        let s = self.sizes();
        let args: Vec<LaunchArg> = (0..self.accesses().len())
            .map(LaunchArg::Arg)
            .chain((0..self.temps().len()).map(LaunchArg::Temp))
            .collect();
        let pairs = crate::graph::ops::visible_pairs(self.time as u64, self.causal, self.window.map(u64::from));
        let products = match self.pass {
            Pass::Forward => 2,
            Pass::Backward => 5,
        };
        let flops = 2 * products * pairs * (self.dim * s.q) as u64;
        let head = (self.time * self.dim * self.dtype.bytes()) as u64;
        let (y, moved) = (s.q as u64 * head, (s.q * 2 + s.kv * 2) as u64 * head);
        let tasks = match self.pass {
            Pass::Forward => s.q * s.blocks,
            Pass::Backward => s.kv,
        };
        let launch = |entry, tasks: usize, scratch, flops, bytes| Launch {
            entry,
            tasks: tasks as u32,
            args: args.clone(),
            scratch,
            flops,
            bytes,
            gpu: None,
        };
        vec![
            launch("pack", s.kv * s.blocks, (4 * BLOCK * s.dim) as u64, 0, 2 * moved),
            launch("main", tasks, self.scratch(), flops, 2 * moved - y + self.result_bytes()),
        ]
    }
}
