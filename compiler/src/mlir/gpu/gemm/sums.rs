//! Finished sums: to memory as they lie, or through the epilogue.
//!
//! *Takes* the sums of a warp; *gives* stores; *promises* each element of the tile that exists exactly once.

use super::Item;
use super::epilogue::{Lanes, Program};
use crate::kernel::gemm::Gemm;
use crate::kernel::gpu::gemm::{Plan, VECTOR};
use crate::mlir::emit::{Cmp, Elem, Emit, I32, Ty, V};
use crate::mlir::gpu::ops;

impl<'c> Sums<'c> {
    /// Partial sums go to memory as they lie: pairs of columns.
    pub(super) fn store_partial(&self, e: &Emit<'c>, g: &Gemm, to: V<'c>, item: &Item<'c>) {
        let pitch = Plan::partial_pitch(g) as i64;
        let wide = |x| e.zero_extend(x, Elem::I64);
        let matrix = e.add(e.mul_n(item.piece, g.matrices() as i64), item.matrix);
        let first = e.mul_n(e.remu(self.lane, e.iconst(I32, 4)), 2);
        for line in 0..self.lines() {
            let row = self.row(e, line);
            let start = e.mul_n(e.add(e.mul_n(wide(matrix), g.m as i64), wide(row)), pitch);
            let at = e.add(start, wide(e.add(item.col, first)));
            let at = e.gep(to, Elem::F32, at);
            let inside = e.cmp(Cmp::Lt, row, e.iconst(I32, g.m as i64));
            for j in 0..self.columns() / 8 {
                let pair = self.pair(line, j);
                let col = e.add_n(item.col, 8 * j as i64);
                let inside = e.and(inside, e.cmp(Cmp::Lt, col, e.iconst(I32, pitch)));
                let x = e.op1("vector.from_elements", &pair, Ty::vec(2, Elem::F32), &[]);
                e.when(inside, |e| e.store_aligned(x, e.gep_const(at, Elem::F32, 8 * j as i64), 8));
            }
        }
    }

    /// Runs the epilogue on 8 columns of 32 at a time: as the lanes hold them where every argument allows it, otherwise 8 neighbours after an exchange.
    /// Tiles have so many rows and columns, of which the sums may be a part.
    pub(super) fn finish(
        &self,
        e: &Emit<'c>,
        program: &Program<'_, 'c>,
        item: &Item<'c>,
        (rows, cols): (usize, usize),
    ) {
        let g = program.g;
        let c = |n: usize| e.iconst(I32, n as i64);
        let quad = Quad::new(e, self.lane);
        let of_block = program.block(e, &item.batch);
        let ragged = !g.n.is_multiple_of(cols);
        let row = |row| program.row(e, &of_block, row, item.col, Some(quad));
        let lines: Vec<_> = if g.m.is_multiple_of(rows) {
            let first = row(self.row(e, 0));
            let below = (1..self.lines()).map(|line| program.below(e, &of_block, &first, self.offset(line)));
            let below: Vec<_> = below.collect();
            [first].into_iter().chain(below).map(|row| (row, None)).collect()
        } else {
            let guarded = |line| {
                // Rows beyond the last read what the last one reads, and store nothing.
                let at = self.row(e, line);
                (row(e.min(at, c(g.m - 1))), Some(e.cmp(Cmp::Lt, at, c(g.m))))
            };
            (0..self.lines()).map(guarded).collect()
        };
        let first = e.add(item.col, e.mul_n(quad.quarter, VECTOR as i64));
        // All rows of a span in turn: what varies along n only is then read once, and forgotten soon.
        let places = (0..self.columns() / 32).flat_map(|span| (0..self.lines()).map(move |line| (span, line)));
        for (span, line) in places {
            if self.scarce && line % 2 == 0 && (span, line) != (0, 0) {
                // Keeps the assembler from reading ahead for more of the tile than the registers hold beside its sums.
                ops::warp_barrier(e);
            }
            let (of_row, inside) = &lines[line];
            let from = 32 * span as i64;
            let both = |yes| inside.map_or(yes, |inside| e.and(inside, yes));
            // Guard of 8 columns that start at column `first` of the span.
            let guard = |first: V<'c>| match ragged {
                true => Some(both(e.cmp(Cmp::Le, e.add(first, c(32 * span + VECTOR)), c(g.n)))),
                false => *inside,
            };
            if program.pairs() {
                let blocks = [0, 1, 2, 3].map(|j| guard(e.add_n(item.col, j * VECTOR as i64)));
                let lanes = Lanes::Pairs { blocks, vector: guard(first) };
                program.vector(e, of_row, from, lanes, self.pairs(e, line, span));
                continue;
            }
            let x = self.gather(e, line, span, quad);
            let whole = |e: &Emit<'c>| program.vector(e, of_row, from, Lanes::Row(VECTOR as u32), x);
            match guard(first) {
                Some(guard) => e.when(guard, whole),
                None => whole(e),
            }
            let tail = g.n % VECTOR;
            if tail != 0 {
                let last = both(e.cmp(Cmp::Eq, e.add_n(first, from), c(g.n - tail)));
                e.when(last, |e| program.vector(e, of_row, from, Lanes::Row(tail as u32), x));
            }
        }
    }
}

/// A warp's finished sums: 16 rows of every part, see [`ops::wgmma`] for which lane holds what.
pub(super) struct Sums<'c> {
    /// By part.
    pub(super) parts: Vec<Vec<V<'c>>>,
    /// Rows from part to part.
    pub(super) spacing: usize,
    /// There are few registers beside them.
    pub(super) scarce: bool,
    pub(super) lane: V<'c>,
    /// First row.
    pub(super) row: V<'c>,
}

impl<'c> Sums<'c> {
    /// Rows of which this lane holds something.
    fn lines(&self) -> usize {
        2 * self.parts.len()
    }

    /// How far one of them is below the first.
    fn offset(&self, line: usize) -> i64 {
        (self.spacing * (line / 2) + 8 * (line % 2)) as i64
    }

    /// Columns of the sums.
    fn columns(&self) -> usize {
        2 * self.parts[0].len()
    }

    /// Row of one of them.
    fn row(&self, e: &Emit<'c>, line: usize) -> V<'c> {
        e.add_n(e.add(self.row, e.divu(self.lane, e.iconst(I32, 4))), self.offset(line))
    }

    /// What the lane holds of columns `8 j ..`: two at `8 j + 2 q`.
    fn pair(&self, line: usize, j: usize) -> [V<'c>; 2] {
        let at = 4 * j + 2 * (line % 2);
        [self.parts[line / 2][at], self.parts[line / 2][at + 1]]
    }

    /// The four pairs of columns `32 span ..` in one vector.
    fn pairs(&self, e: &Emit<'c>, line: usize, span: usize) -> V<'c> {
        let x: Vec<V> = (0..4).flat_map(|j| self.pair(line, 4 * span + j)).collect();
        e.op1("vector.from_elements", &x, Ty::vec(VECTOR as u32, Elem::F32), &[])
    }

    /// 8 consecutive columns of columns `32 span ..`: lane q of four gets the q-th eight.
    fn gather(&self, e: &Emit<'c>, line: usize, span: usize, quad: Quad<'c>) -> V<'c> {
        let x: Vec<[V; 2]> = (0..4).map(|j| self.pair(line, 4 * span + j)).collect();
        let [low, high] = [0, 1].map(|c| quad.transpose(e, [x[0][c], x[1][c], x[2][c], x[3][c]]));
        let x: Vec<V> = low.into_iter().zip(high).flat_map(|(a, b)| [a, b]).collect();
        e.op1("vector.from_elements", &x, Ty::vec(VECTOR as u32, Elem::F32), &[])
    }
}

/// Four neighbouring lanes, which hold the same rows.
#[derive(Clone, Copy)]
pub(in crate::mlir::gpu) struct Quad<'c> {
    /// This lane's number in its quad.
    pub(in crate::mlir::gpu) quarter: V<'c>,
    /// Its two bits.
    bits: [V<'c>; 2],
}

impl<'c> Quad<'c> {
    pub(in crate::mlir::gpu) fn new(e: &Emit<'c>, lane: V<'c>) -> Self {
        let quarter = e.remu(lane, e.iconst(I32, 4));
        let bits = [1, 2].map(|n| e.cmp(Cmp::Ne, e.and(quarter, e.iconst(I32, n)), e.iconst(I32, 0)));
        Quad { quarter, bits }
    }

    /// Lane q's x\[j\] becomes lane j's x\[q\]: halves are exchanged with the neighbour at distance 1, then 2. All lanes of the warp call it.
    pub(in crate::mlir::gpu) fn transpose(&self, e: &Emit<'c>, mut x: [V<'c>; 4]) -> [V<'c>; 4] {
        for (odd, distance) in self.bits.into_iter().zip([1, 2]) {
            for low in (0..4).filter(|j| j & distance == 0) {
                let high = low + distance;
                let (a, b) = (x[low], x[high]);
                let got = ops::shuffle_xor(e, e.select(odd, a, b), distance as i64);
                x[low] = e.select(odd, got, a);
                x[high] = e.select(odd, b, got);
            }
        }
        x
    }
}
