//! Tiles of bf16 in shared memory for every GPU since Ampere: copied there by the threads of a block (`cp.async`), read as fragments by its warps (`ldmatrix`), which
//! multiply them (`mma.sync`).
//!
//! *Takes* pointers and places; *gives* copies and fragments; *promises* zeros where a tile reaches beyond its matrix, and no two lanes on one bank.
//!
//! A tile is lines of one or more panels of 64 columns: column c of line l lies in panel c / 64 at byte 128 l, its 16-byte part c / 8 % 8 exchanged
//! with l % 8 (exclusive or). Eight lines of one part, or eight parts of one line, then meet every bank once.

use super::ops::{self, WARP};
use crate::mlir::emit::{Cmp, Elem, Emit, I32, V};

/// Columns of a panel, and bytes of its lines.
pub(super) const COLUMNS: usize = 64;
pub(super) const ROW: usize = 2 * COLUMNS;
/// Elements of a 16-byte part.
const PART: usize = 8;
/// Rows, and k, of a fragment.
pub(super) const FRAGMENT: usize = 16;

/// How the threads of a block share the copy of a tile. Each takes the same part of every [`Copier::step`]-th line.
#[derive(Clone, Copy)]
pub(super) struct Copier<'c> {
    lines: usize,
    parts: usize,
    threads: usize,
    /// This thread's first line, and its part. i32.
    line: V<'c>,
    part: V<'c>,
    /// Byte of the tile where its first part goes.
    to: V<'c>,
}

impl<'c> Copier<'c> {
    /// For tiles of so many lines and columns, a multiple of 64, by all of so many threads.
    pub(super) fn new(e: &Emit<'c>, thread: V<'c>, threads: u32, lines: usize, columns: usize) -> Self {
        let (parts, threads) = (columns / PART, threads as usize);
        debug_assert!(
            parts.is_power_of_two() && lines.is_multiple_of(threads / parts) && (threads / parts).is_multiple_of(8)
        );
        let c = |n: usize| e.iconst(I32, n as i64);
        let (line, part) = (e.divu(thread, c(parts)), e.remu(thread, c(parts)));
        let panel = e.mul_n(e.shru(part, c(3)), (lines * ROW) as i64);
        let place = e.xor(e.and(part, c(7)), e.and(line, c(7)));
        let to = e.add(panel, e.add(e.mul_n(line, ROW as i64), e.mul_n(place, 16)));
        Copier { lines, parts, threads, line, part, to }
    }

    /// Lines between those of a thread: a multiple of 8, which leaves the exchange of parts as it is.
    fn step(&self) -> usize {
        self.threads / self.parts
    }

    /// Elements from the tile's first to this thread's first, i64.
    pub(super) fn offset(&self, e: &Emit<'c>, pitch: i64) -> V<'c> {
        let wide = |x| e.zero_extend(x, Elem::I64);
        e.add(e.mul_n(wide(self.line), pitch), wide(e.mul_n(self.part, PART as i64)))
    }

    /// Starts the copies of a tile to `to`, from this thread's first element at `from`; its lines are `pitch` elements apart. Of the tile exist so many `lines` and
    /// `columns` (i32, below 1: none); `None`: all.
    pub(super) fn copy(
        &self,
        e: &Emit<'c>,
        to: V<'c>,
        (from, pitch): (V<'c>, i64),
        (lines, columns): (Option<V<'c>>, Option<V<'c>>),
    ) {
        let c = |n: usize| e.iconst(I32, n as i64);
        let to = e.gep(to, Elem::I8, self.to);
        let bytes = columns.map(|columns| {
            let left = e.sub(columns, e.mul_n(self.part, PART as i64));
            e.mul_n(e.max(e.min(left, c(PART)), c(0)), 2)
        });
        for i in 0..self.lines / self.step() {
            let ahead = i * self.step();
            let exists = lines.map(|lines| e.cmp(Cmp::Lt, e.add_n(self.line, ahead as i64), lines));
            let count = match (exists, bytes) {
                (None, bytes) => bytes,
                (Some(yes), bytes) => Some(e.select(yes, bytes.unwrap_or(c(16)), c(0))),
            };
            let from = e.gep_const(from, Elem::Bf16, ahead as i64 * pitch);
            ops::copy(e, ops::shared_at(e, to, (ahead * ROW) as i64), from, count);
        }
    }
}

/// Where a lane finds its part of the fragments of a tile.
#[derive(Clone, Copy)]
pub(super) struct Reader<'c> {
    /// Bytes from the tile's start, for each block of 16 columns of a panel.
    blocks: [V<'c>; 4],
    /// Columns are the rows of fragments, lines their k.
    turned: bool,
    /// Bytes of a panel.
    panel: usize,
}

impl<'c> Reader<'c> {
    /// For fragments at or beyond line and column `first` (i32) of tiles of so many lines. The column is a multiple of as many columns as are read from there in
    /// one panel.
    pub(super) fn new(e: &Emit<'c>, thread: V<'c>, lines: usize, turned: bool, first: (V<'c>, V<'c>)) -> Self {
        let c = |n: i64| e.iconst(I32, n);
        let lane = e.and(thread, c(i64::from(WARP) - 1));
        let (eighth, low) = (e.shru(lane, c(3)), e.and(lane, c(7)));
        let (odd, half) = (e.and(eighth, c(1)), e.shru(eighth, c(1)));
        // Lane l gives the address of line l % 8 of tile l / 8 of four: k advances from one pair of tiles to the next, rows inside of a pair.
        let (down, right) = if turned { (half, odd) } else { (odd, half) };
        let line = e.add(first.0, e.add(e.mul_n(down, 8), low));
        let part = e.and(e.shru(first.1, c(3)), c(7));
        let place = e.xor(e.xor(part, right), low);
        let panel = lines * ROW;
        let start = e.add(e.mul_n(line, ROW as i64), e.mul_n(e.shru(first.1, c(6)), panel as i64));
        let blocks = [0, 2, 4, 6].map(|b| e.add(start, e.mul_n(e.xor(place, c(b)), 16)));
        Reader { blocks, turned, panel }
    }

    /// The fragment `lines` blocks of 16 lines and `columns` blocks of 16 columns further, as [`ops::mma`] takes A: rows 0 and 8 for k 0, then for k 8.
    pub(super) fn fragment(&self, e: &Emit<'c>, tile: V<'c>, lines: usize, columns: usize) -> [V<'c>; 4] {
        let at = e.gep(tile, Elem::I8, self.blocks[columns % 4]);
        let at = ops::shared_at(e, at, (lines * FRAGMENT * ROW + columns / 4 * self.panel) as i64);
        ops::load_matrix(e, at, self.turned)
    }

    /// The fragment of 16 rows `row` for 16 k `k`, each counted from the first.
    pub(super) fn at(&self, e: &Emit<'c>, tile: V<'c>, row: usize, k: usize) -> [V<'c>; 4] {
        if self.turned { self.fragment(e, tile, k, row) } else { self.fragment(e, tile, row, k) }
    }
}

/// `sums + A B` on 16 rows, 16 k, and the 16 columns whose fragment (with columns as its rows) is `b`: elements as [`ops::wgmma`] gives them, of columns 0 and 8.
pub(super) fn multiply<'c>(e: &Emit<'c>, sums: &mut [V<'c>], a: [V<'c>; 4], b: [V<'c>; 4]) {
    for (half, sums) in sums.chunks_exact_mut(4).enumerate() {
        let c = [sums[0], sums[1], sums[2], sums[3]];
        sums.copy_from_slice(&ops::mma(e, a, [b[half], b[half + 2]], c));
    }
}
