//! Packing: operands in the order and dtype in which the register tile reads them.
//!
//! *Takes* an operand in memory; *gives* B as panels `[column / cols][step][cols]` and a task's rows of A as `[row][k]` or
//! `[row / group][step][group]`; *promises* to read only the operand's own elements. Columns and rows beyond the edge repeat the last one (their
//! sums are dropped); an odd k is completed with a zero, which adds nothing.

use super::super::super::emit::{Cmp, Elem, Emit, V};
use super::super::super::memory;
use super::{Plan, SourceA};
use crate::graph::ir::DType;
use crate::kernel::gemm::{Gemm, Operand};

impl Plan<'_> {
    /// `lanes` consecutive elements (the first `n` of them) as f32, rounded to the compute dtype.
    fn load<'c>(&self, e: &Emit<'c>, ptr: V<'c>, dtype: DType, lanes: u32, n: u32) -> V<'c> {
        let v = memory::load(e, ptr, dtype, lanes, n);
        if self.g.compute == DType::Bf16 && dtype == DType::F32 { e.from_bf16(e.to_bf16(v)) } else { v }
    }

    /// `lanes` consecutive elements as bf16.
    fn load_bf16<'c>(&self, e: &Emit<'c>, ptr: V<'c>, dtype: DType, lanes: u32, n: u32) -> V<'c> {
        match dtype {
            DType::Bf16 => memory::load_raw(e, ptr, dtype, lanes, n),
            _ => e.to_bf16(memory::load(e, ptr, dtype, lanes, n)),
        }
    }

    /// 16 steps along k of one row, ready for a transpose: 16 f32, or 16 pairs as i32. `n` elements of k exist.
    fn along_k<'c>(&self, e: &Emit<'c>, ptr: V<'c>, dtype: DType, n: u32) -> V<'c> {
        if self.tile.pair == 1 {
            return self.load(e, ptr, dtype, 16, n);
        }
        let v = self.load_bf16(e, ptr, dtype, 32, n);
        e.bitcast(v, crate::mlir::emit::I32X16)
    }

    /// 16 rows or columns at one step, contiguous in memory: 16 f32, or 16 pairs as i32. `second`: the step's second k exists.
    fn across<'c>(&self, e: &Emit<'c>, ptr: V<'c>, o: &Operand, lanes: u32, n: u32, second: bool) -> V<'c> {
        if self.tile.pair == 1 {
            return self.load(e, ptr, o.dtype, lanes, n);
        }
        let even = self.load_bf16(e, ptr, o.dtype, lanes, n);
        let odd = match second {
            true => {
                let next = e.gep_const(ptr, memory::storage_elem(o.dtype), o.k);
                self.load_bf16(e, next, o.dtype, lanes, n)
            }
            false => e.zero(even.ty),
        };
        let pairs = e.interleave(even, odd);
        e.bitcast(pairs, crate::mlir::emit::Ty::vec(lanes, Elem::I32))
    }

    /// One task: up to 64 columns, up to [`Gemm::PACK_DEPTH`] of k, of one matrix.
    pub(super) fn pack_b<'c>(&self, e: &Emit<'c>, task: V<'c>, b: V<'c>, out: V<'c>) {
        let (g, tile) = (self.g, self.tile);
        let (groups, depths) = (g.n.div_ceil(Gemm::PACK_COLS) as i64, g.k.div_ceil(Gemm::PACK_DEPTH) as i64);
        let depth = e.remu(task, e.i(depths));
        let rest = e.divu(task, e.i(depths));
        let group = e.remu(rest, e.i(groups));
        let matrix = e.divu(rest, e.i(groups));
        let storage = memory::storage_elem(g.b.dtype);
        let batch: Vec<_> = self.batch(e, matrix).into_iter().zip(g.b.batch.iter().copied()).collect();
        let b = self.address(e, b, storage, g.b.offset, &batch);
        let out = e.gep(out, tile.elem(), e.mul_n(matrix, (g.n.div_ceil(tile.cols) * tile.panel(g.k)) as i64));
        let k = e.mul_n(depth, Gemm::PACK_DEPTH as i64);
        let k_end = e.min(e.add_n(k, Gemm::PACK_DEPTH as i64), e.i(g.k as i64));
        let j = e.mul_n(group, Gemm::PACK_COLS as i64);
        let j_end = e.min(e.add_n(j, Gemm::PACK_COLS as i64), e.i(g.n as i64));
        // Where column j, the first of 16, goes at a step.
        let column = |e: &Emit<'c>, j: V<'c>| {
            let panel = e.mul_n(e.divu(j, e.i(tile.cols as i64)), tile.panel(g.k) as i64);
            e.gep(out, tile.elem(), e.add(panel, e.remu(j, e.i(tile.cols as i64))))
        };
        if g.b.k == 1 {
            e.for_(j, j_end, e.i(16), &[], |e, j, _| {
                let out = column(e, j);
                self.transpose_columns(e, b, j, k, k_end, &|e, step| {
                    e.gep(out, tile.elem(), e.mul_n(step, tile.cols as i64))
                });
                vec![]
            });
            return;
        }
        let outs = |e: &Emit<'c>, lanes: &[usize]| -> Vec<V<'c>> {
            (0..lanes.len()).map(|q| column(e, e.add_n(j, 16 * q as i64))).collect()
        };
        // All columns of the task at each step, so that a line of B is read once; the last group of columns may be ragged.
        let copy = |e: &Emit<'c>, columns: usize| {
            let mut lanes = vec![16; columns / 16];
            lanes.extend((columns % 16 != 0).then_some(columns % 16));
            self.copy_columns(e, e.gep(b, storage, j), k, k_end, &lanes, &outs(e, &lanes));
        };
        let tail = g.n % Gemm::PACK_COLS;
        match (g.n >= Gemm::PACK_COLS, tail) {
            (true, 0) => copy(e, Gemm::PACK_COLS),
            (false, _) => copy(e, tail),
            (true, _) => {
                let whole = e.cmp(Cmp::Lt, group, e.i(groups - 1));
                e.if_(
                    whole,
                    &[],
                    |e| {
                        copy(e, Gemm::PACK_COLS);
                        vec![]
                    },
                    |e| {
                        copy(e, tail);
                        vec![]
                    },
                );
            }
        }
    }

    /// B contiguous along k: 16 columns by 16 steps at a time through a transpose.
    fn transpose_columns<'c>(
        &self,
        e: &Emit<'c>,
        b: V<'c>,
        j: V<'c>,
        k: V<'c>,
        k_end: V<'c>,
        to: &dyn Fn(&Emit<'c>, V<'c>) -> V<'c>,
    ) {
        let (g, tile) = (self.g, self.tile);
        let storage = memory::storage_elem(g.b.dtype);
        let last = e.i(g.n as i64 - 1);
        let columns: Vec<V> =
            (0..16).map(|t| e.gep(b, storage, e.mul_n(e.min(e.add_n(j, t), last), g.b.row))).collect();
        let chunk = 16 * tile.pair;
        let block = |e: &Emit<'c>, k: V<'c>, n: usize| {
            let lines: Vec<V> =
                columns.iter().map(|&c| self.along_k(e, e.gep(c, storage, k), g.b.dtype, n as u32)).collect();
            let steps = e.transpose16(&lines);
            let step = e.divu(k, e.i(tile.pair as i64));
            for (t, &line) in steps.iter().enumerate().take(tile.steps(n)) {
                e.store(line, to(e, e.add_n(step, t as i64)));
            }
        };
        self.chunks(e, k, k_end, chunk, block);
    }

    /// B contiguous along n: step by step, groups of 16 columns (`lanes` of them exist) side by side.
    fn copy_columns<'c>(&self, e: &Emit<'c>, b: V<'c>, k: V<'c>, k_end: V<'c>, lanes: &[usize], outs: &[V<'c>]) {
        let (g, tile) = (self.g, self.tile);
        let storage = memory::storage_elem(g.b.dtype);
        self.chunks(e, k, k_end, tile.pair, |e, k, n| {
            let from = e.gep(b, storage, e.mul_n(k, g.b.k));
            let step = e.mul_n(e.divu(k, e.i(tile.pair as i64)), tile.cols as i64);
            for (q, (&lanes, &out)) in lanes.iter().zip(outs).enumerate() {
                let ptr = e.gep_const(from, storage, 16 * q as i64);
                let v = self.across(e, ptr, &g.b, 16, lanes as u32, n == tile.pair);
                e.store(v, e.gep(out, tile.elem(), step));
            }
        });
    }

    /// Runs `body(k, n)` for chunks of `chunk` along k from `k` to `k_end`; the ragged end of the whole depth, if there is one, as
    /// a chunk of its own size. `k` is a multiple of `chunk`.
    fn chunks<'c>(&self, e: &Emit<'c>, k: V<'c>, k_end: V<'c>, chunk: usize, body: impl Fn(&Emit<'c>, V<'c>, usize)) {
        let tail = self.g.k % chunk;
        let whole = e.i((self.g.k - tail) as i64);
        e.for_(k, e.min(k_end, whole), e.i(chunk as i64), &[], |e, k, _| {
            body(e, k, chunk);
            vec![]
        });
        if tail != 0 {
            e.when(e.cmp(Cmp::Eq, k_end, e.i(self.g.k as i64)), |e| body(e, whole, tail));
        }
    }

    /// Packs the task's rows of A into scratch, if the tile cannot read them where they are. `a` points to the task's first row.
    pub(super) fn pack_a<'c>(&self, e: &Emit<'c>, a: V<'c>, rows: V<'c>, out: V<'c>) {
        match self.source {
            SourceA::Memory => {}
            SourceA::Rows => self.convert_rows(e, a, rows, out),
            SourceA::Groups(width) => self.group_rows(e, a, rows, out, width),
        }
    }

    /// A contiguous along k: rows stay rows, rounded and widened or narrowed.
    fn convert_rows<'c>(&self, e: &Emit<'c>, a: V<'c>, rows: V<'c>, out: V<'c>) {
        let (g, tile) = (self.g, self.tile);
        let storage = memory::storage_elem(g.a.dtype);
        let length = (tile.steps(g.k) * tile.pair) as i64;
        let elem = if tile.pair == 2 { Elem::Bf16 } else { Elem::F32 };
        e.for_(e.i(0), rows, e.i(1), &[], |e, r, _| {
            let from = e.gep(a, storage, e.mul_n(r, g.a.row));
            let to = e.gep(out, elem, e.mul_n(r, length));
            self.chunks(e, e.i(0), e.i(g.k as i64), 16, |e, k, n| {
                let ptr = e.gep(from, storage, k);
                let target = e.gep(to, elem, k);
                // The scratch has room for whole vectors after the last row; the zero after an odd k is part of the vector.
                let v = match tile.pair {
                    2 => self.load_bf16(e, ptr, g.a.dtype, 16, n as u32),
                    _ => self.load(e, ptr, g.a.dtype, 16, n as u32),
                };
                let kept = (tile.steps(n) * tile.pair) as u32;
                e.store(if kept < 16 { e.lanes(v, 0, kept) } else { v }, target);
            });
            vec![]
        });
    }

    /// A contiguous along m: `width` rows of a step side by side, group after group, each [`Plan::group`] elements long.
    fn group_rows<'c>(&self, e: &Emit<'c>, a: V<'c>, rows: V<'c>, out: V<'c>, width: usize) {
        let block = self.g.blocking().rows;
        let full = |e: &Emit<'c>| self.full_block(e, a, out, width);
        let ragged = |e: &Emit<'c>| self.ragged_block(e, a, rows, out, width);
        match (self.g.m >= block, self.g.m.is_multiple_of(block)) {
            (true, true) => full(e),
            (false, _) => ragged(e),
            (true, false) => {
                let whole = e.cmp(Cmp::Eq, rows, e.i(block as i64));
                e.if_(
                    whole,
                    &[],
                    |e| {
                        full(e);
                        vec![]
                    },
                    |e| {
                        ragged(e);
                        vec![]
                    },
                );
            }
        }
    }

    /// All rows of a block at once, so that each line of A is read once. Six lanes cost two loads and two stores, eight cost one each: every
    /// group but the last takes two lanes too many, which the next step (or the two spare elements after the group) receives.
    fn full_block<'c>(&self, e: &Emit<'c>, a: V<'c>, out: V<'c>, width: usize) {
        let (g, tile) = (self.g, self.tile);
        let storage = memory::storage_elem(g.a.dtype);
        let rows = g.blocking().rows;
        self.chunks(e, e.i(0), e.i(g.k as i64), tile.pair, |e, k, depth| {
            let from = e.gep(a, storage, e.mul_n(k, g.a.k));
            let to = e.gep(out, tile.elem(), e.mul_n(e.divu(k, e.i(tile.pair as i64)), width as i64));
            let place = |e: &Emit<'c>, group: usize| e.gep_const(to, tile.elem(), group as i64 * self.group(width));
            for r in (0..rows).step_by(width) {
                let lanes = if width == 6 && r + width < rows { 8 } else { width } as u32;
                let v = self.across(e, e.gep_const(from, storage, r as i64), &g.a, lanes, lanes, depth == tile.pair);
                e.store(v, place(e, r / width));
            }
        });
    }

    /// The last, smaller block: group by group, the last group with the rows that are left.
    fn ragged_block<'c>(&self, e: &Emit<'c>, a: V<'c>, rows: V<'c>, out: V<'c>, width: usize) {
        let (g, tile) = (self.g, self.tile);
        let storage = memory::storage_elem(g.a.dtype);
        let group = |e: &Emit<'c>, r: V<'c>, n: usize| {
            let from = e.gep(a, storage, r);
            let to = e.gep(out, tile.elem(), e.mul_n(e.divu(r, e.i(width as i64)), self.group(width)));
            self.chunks(e, e.i(0), e.i(g.k as i64), tile.pair, |e, k, depth| {
                let ptr = e.gep(from, storage, e.mul_n(k, g.a.k));
                let v = self.across(e, ptr, &g.a, width as u32, n as u32, depth == tile.pair);
                e.store(v, e.gep(to, tile.elem(), e.mul_n(e.divu(k, e.i(tile.pair as i64)), width as i64)));
            });
        };
        let tail = g.m % width;
        let whole = e.mul_n(e.divu(rows, e.i(width as i64)), width as i64);
        e.for_(e.i(0), whole, e.i(width as i64), &[], |e, r, _| {
            group(e, r, width);
            vec![]
        });
        if tail != 0 {
            group(e, whole, tail);
        }
    }

    /// Elements from one group of packed rows of A to the next.
    pub(super) fn group(&self, width: usize) -> i64 {
        (self.tile.steps(self.g.k) * width + if width == 6 { 2 } else { 0 }) as i64
    }
}
