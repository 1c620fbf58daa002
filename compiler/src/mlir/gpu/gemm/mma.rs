//! Contractions for every GPU since Ampere: copies by all threads into a ring of stages, products by warps out of it, epilogue in registers.
//!
//! *Takes* a [`Gemm`]; *gives* the functions of [`gpu::gemm::mma::launches`](mma::launches); *promises* one fixed order of every sum, and stores to exactly the
//! elements that the description names.
//!
//! While the warps multiply a stage, the next ones are on their way. One barrier per stage tells that the oldest has landed for all threads, and that its predecessor,
//! whose place is filled next, has been read by all.

use super::epilogue::Program;
use super::sums::Sums;
use super::{Item, item, launches, scaled};
use crate::kernel::gemm::{Gemm, Operand};
use crate::kernel::gpu::gemm::mma::{self, Tile};
use crate::kernel::gpu::gemm::{DEPTH, GROUP, Plan, Source, check};
use crate::mlir::emit::{Cmp, Elem, Emit, F32, I32, Unit, V};
use crate::mlir::gpu::ops::{self, WARP};
use crate::mlir::gpu::tile::{COLUMNS, Copier, FRAGMENT, ROW, Reader, multiply};

/// Emits the functions of [`mma::launches`].
pub fn emit(unit: &Unit, g: &Gemm, name: &dyn Fn(&str) -> String) -> Result<(), String> {
    check(g)?;
    let plan = mma::plan(g);
    let shape = (plan.tile.threads(), plan.tile.blocks as u32);
    launches(unit, g, &plan, (0, shape), name, |e, args, _| main(e, g, &plan, args));
    Ok(())
}

/// One operand of a block.
struct Side<'c> {
    /// k is contiguous: lines of its tiles are rows of C (or columns), columns of its tiles are k. Otherwise the other way round.
    k_major: bool,
    copier: Copier<'c>,
    reader: Reader<'c>,
    /// This thread's first element for k = 0; elements from line to line.
    from: (V<'c>, i64),
    /// Rows (or columns) of C that exist from the tile's first on; `None`: all.
    exist: Option<V<'c>>,
    /// Byte of a stage at which it begins.
    at: usize,
}

/// Where an operand lies: its place among the kernel's arguments, in a stage, and in C.
struct Place<'c> {
    arg: V<'c>,
    at: usize,
    /// Rows (or columns) of C, and of a tile.
    extents: (usize, usize),
    /// The tile's first of them, and this warp's first in the tile.
    first: V<'c>,
    part: V<'c>,
}

impl<'c> Side<'c> {
    fn new(
        e: &Emit<'c>,
        g: &Gemm,
        (source, o): (&Source, &Operand),
        p: Place<'c>,
        batch: &[V<'c>],
        (thread, threads): (V<'c>, u32),
    ) -> Self {
        let c = |n: usize| e.iconst(I32, n as i64);
        let stride = if source.k_major { o.row } else { o.k };
        let (offset, pitch) = match source.copied {
            // Copies of all matrices that differ follow each other.
            Some(pitch) => {
                let number = source.batch.iter().fold(c(0), |all, &i| e.add(e.mul_n(all, g.batch[i] as i64), batch[i]));
                (scaled(e, number, (source.extents.1 * pitch) as i64), pitch as i64)
            }
            None => {
                let of = |sum, &i: &usize| e.add(sum, scaled(e, batch[i], o.batch[i]));
                (source.batch.iter().fold(e.i(o.offset), of), stride)
            }
        };
        let (lines, columns) = if source.k_major { (p.extents.1, COLUMNS) } else { (DEPTH, p.extents.1) };
        let copier = Copier::new(e, thread, threads, lines, columns);
        let first = scaled(e, p.first, if source.k_major { pitch } else { 1 });
        let from = e.gep(p.arg, Elem::Bf16, e.add(e.add(offset, first), copier.offset(e, pitch)));
        let part = if source.k_major { (p.part, c(0)) } else { (c(0), p.part) };
        let ragged = !p.extents.0.is_multiple_of(p.extents.1);
        Side {
            k_major: source.k_major,
            copier,
            reader: Reader::new(e, thread, lines, !source.k_major, part),
            from: (from, pitch),
            exist: ragged.then(|| e.sub(c(p.extents.0), p.first)),
            at: p.at,
        }
    }

    /// Starts the copies of stage `stage` (i32) to the stage at `to`; so many k exist from there on.
    fn copy(&self, e: &Emit<'c>, to: V<'c>, stage: V<'c>, k: Option<V<'c>>) {
        let step = if self.k_major { 1 } else { self.from.1 } * DEPTH as i64;
        let from = e.gep(self.from.0, Elem::Bf16, scaled(e, stage, step));
        let exist = if self.k_major { (self.exist, k) } else { (k, self.exist) };
        self.copier.copy(e, ops::shared_at(e, to, self.at as i64), (from, self.from.1), exist);
    }

    /// Fragments of step `step` of the stage at `stage`.
    fn fragments(&self, e: &Emit<'c>, stage: V<'c>, rows: usize, step: usize) -> Vec<[V<'c>; 4]> {
        let tile = ops::shared_at(e, stage, self.at as i64);
        (0..rows / FRAGMENT).map(|row| self.reader.at(e, tile, row, step)).collect()
    }
}

fn main<'c>(e: &Emit<'c>, g: &Gemm, plan: &Plan<Tile>, args: &[V<'c>]) {
    let tile = plan.tile;
    let c = |n: usize| e.iconst(I32, n as i64);
    let thread = ops::thread(e, tile.threads());
    let warp = ops::uniform(e, e.divu(thread, c(WARP as usize)));
    let (rows, cols) = tile.part();
    let row = e.mul_n(e.divu(warp, c(tile.warps.1)), rows as i64);
    let col = e.mul_n(e.remu(warp, c(tile.warps.1)), cols as i64);
    let item = item(e, g, plan, ((tile.rows, tile.cols), GROUP), ops::block(e));
    let side = |which: (&Source, &Operand), place| Side::new(e, g, which, place, &item.batch, (thread, tile.threads()));
    let b = if g.symmetric { &g.a } else { &g.b };
    let place = Place { arg: args[0], at: 0, extents: (g.m, tile.rows), first: item.row, part: row };
    let left = side((&plan.a, &g.a), place);
    let place = Place { arg: args[1], at: tile.rows * ROW, extents: (g.n, tile.cols), first: item.col, part: col };
    let right = side((&plan.b, b), place);

    let smem = ops::shared_memory(e);
    let at = |e: &Emit<'c>, slot: V<'c>| e.gep(smem, Elem::I8, e.mul_n(slot, tile.stage() as i64));
    let fetch = |e: &Emit<'c>, stage: V<'c>, slot: V<'c>| {
        e.when(e.cmp(Cmp::Lt, stage, item.to), |e| {
            let k = (!g.k.is_multiple_of(DEPTH)).then(|| e.sub(c(g.k), e.mul_n(stage, DEPTH as i64)));
            [&left, &right].into_iter().for_each(|side| side.copy(e, at(e, slot), stage, k));
        });
        // Also without copies: waits count groups.
        ops::copy_commit(e);
    };
    let ahead = tile.stages - 1;
    (0..ahead).for_each(|s| fetch(e, e.add_n(item.from, s as i64), c(s)));
    let width = cols / 2;
    let carried = [vec![e.zero(F32); rows / FRAGMENT * width], vec![c(0), c(ahead)]].concat();
    let end = e.for_(item.from, item.to, c(1), &carried, |e, stage, carried| {
        let (sums, slots) = carried.split_at(carried.len() - 2);
        ops::copy_wait(e, ahead as u32 - 1);
        ops::barrier(e);
        fetch(e, e.add_n(stage, ahead as i64), slots[1]);
        let mut sums = sums.to_vec();
        let stage = at(e, slots[0]);
        for step in 0..DEPTH / FRAGMENT {
            let (a, b) = (left.fragments(e, stage, rows, step), right.fragments(e, stage, cols, step));
            for (sums, &a) in sums.chunks_exact_mut(width).zip(&a) {
                sums.chunks_exact_mut(8).zip(&b).for_each(|(sums, &b)| multiply(e, sums, a, b));
            }
        }
        let next = |slot: V<'c>| {
            let slot = e.add_n(slot, 1);
            e.select(e.cmp(Cmp::Eq, slot, c(tile.stages)), c(0), slot)
        };
        [sums, slots.iter().map(|&slot| next(slot)).collect()].concat()
    });
    ops::copy_wait(e, 0);
    let sums = Sums {
        parts: end[..end.len() - 2].chunks_exact(width).map(<[V]>::to_vec).collect(),
        spacing: FRAGMENT,
        scarce: false,
        lane: e.and(thread, c(WARP as usize - 1)),
        row: e.add(item.row, row),
    };
    let item = Item { col: e.add(item.col, col), ..item };
    match plan.splits {
        1 => sums.finish(e, &Program::new(g, &args[2..]), &item, (tile.rows, tile.cols)),
        _ => sums.store_partial(e, g, args[2], &item),
    }
}
