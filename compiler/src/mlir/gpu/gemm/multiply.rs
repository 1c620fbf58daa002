//! The multiplying warpgroups.
//!
//! *Takes* the stages that [`super::copy`] brings; *gives* the sums of every tile to [`super::sums`]; *promises* ascending k in every sum, and that a
//! stage is given back only when its products are complete.

use super::epilogue::Program;
use super::sums::Sums;
use super::{Bar, Block, Place, ROW, Turn};
use crate::kernel::gpu::gemm::{DEPTH, Source};
use crate::mlir::emit::{Cmp, Elem, Emit, I32, V};
use crate::mlir::gpu::ops::{self, Major, WARP};

/// Bytes of the eight rows over which the swizzle repeats.
const ATOM: i64 = 8 * ROW;
/// k of one product.
const STEP: usize = 16;

/// Where a warpgroup finds its operands.
struct Reader<'c> {
    /// Descriptors of the first stage.
    a: V<'c>,
    b: V<'c>,
    /// Whether this lane speaks for its warp.
    leads: V<'c>,
}

impl<'c> Block<'_, 'c> {
    pub(super) fn multiply(&self, e: &Emit<'c>) {
        let (tile, one) = (self.plan.tile, e.iconst(I32, 1));
        let lane = e.remu(self.thread, e.iconst(I32, WARP.into()));
        let group = e.divu(self.warp, e.iconst(I32, 4));
        // Warpgroups share a tile, or take turns; `within` is the warp's place among those that share.
        let (mine, within) = match tile.turns {
            true => (Some(group), e.remu(self.warp, e.iconst(I32, 4))),
            false => (None, self.warp),
        };
        let reader = self.reader(e, group, lane);
        let program = Program::new(self.g, self.outputs);
        self.items(e, mine, |e, item, place| {
            let turn = item.turn.map(|turn| (turn, group));
            self.wait_turn(e, turn);
            let zeros = vec![ops::zeros(e, tile.cols as u16 / 2); tile.parts()];
            let first = self.products(e, &reader, zeros, true, place, item.from, item.turn);
            let next = self.next(e, place);
            let carried = [&first[..], &[next.slot, next.parity, place.slot]].concat();
            let end = e.for_(e.add(item.from, one), item.to, one, &carried, |e, stage, c| {
                let (sums, at) = c.split_at(tile.parts());
                let (at, before) = (Place { slot: at[0], parity: at[1] }, at[2]);
                let sums = self.products(e, &reader, sums.to_vec(), false, at, stage, item.turn);
                // All but the newest products are complete: the slot before may be filled again.
                ops::wgmma_wait(e, 1, &[]);
                self.release(e, &reader, before, e.add_n(stage, -1), item.turn);
                let next = self.next(e, at);
                [&sums[..], &[next.slot, next.parity, at.slot]].concat()
            });
            let (sums, at) = end.split_at(tile.parts());
            self.give_turn(e, turn, &reader);
            let sums = ops::wgmma_wait(e, 0, sums);
            self.release(e, &reader, at[2], e.add_n(item.to, -1), item.turn);
            let row = e.add(item.row, e.mul_n(within, 16));
            let parts = sums.into_iter().map(|s| ops::unpack(e, s)).collect();
            let sums = Sums { parts, spacing: 64, scarce: tile.turns, lane, row };
            if self.plan.splits > 1 {
                sums.store_partial(e, self.g, self.outputs[0], &item);
            } else {
                sums.finish(e, &program, &item, (tile.rows, tile.cols));
            }
            Place { slot: at[0], parity: at[1] }
        });
    }

    fn reader(&self, e: &Emit<'c>, group: V<'c>, lane: V<'c>) -> Reader<'c> {
        let tile = self.plan.tile;
        let base = ops::shared_address(e, self.smem);
        // 64 rows of A are 8192 bytes in both layouts.
        let (a, b) = match (tile.kept > 0, tile.turns) {
            (true, _) => (e.add_n(base, (tile.stages * tile.stage()) as i64), base),
            (false, true) => (base, e.add_n(base, tile.stage_a() as i64)),
            (false, false) => (e.add(base, e.mul_n(group, 64 * ROW)), e.add_n(base, tile.stage_a() as i64)),
        };
        Reader {
            a: ops::descriptor(e, a, bits(&self.plan.a)),
            b: ops::descriptor(e, b, bits(&self.plan.b)),
            leads: e.cmp(Cmp::Eq, lane, e.iconst(I32, 0)),
        }
    }

    /// The products of one stage, a group of their own.
    #[allow(clippy::too_many_arguments)]
    fn products(
        &self,
        e: &Emit<'c>,
        reader: &Reader<'c>,
        mut sums: Vec<V<'c>>,
        first: bool,
        at: Place<'c>,
        stage: V<'c>,
        turn: Option<Turn<'c>>,
    ) -> Vec<V<'c>> {
        let tile = self.plan.tile;
        // Addresses in descriptors count 16 bytes; shared memory is too small for a carry out of the field.
        let shifted = |d, i, bytes: usize| e.add(d, e.zero_extend(e.mul_n(i, bytes as i64 / 16), Elem::I64));
        ops::mbarrier_wait(e, self.bar(e, Bar::Full, at.slot), at.parity);
        let b = shifted(reader.b, at.slot, tile.stage());
        let a = match turn.filter(|_| tile.kept > 0) {
            None => shifted(reader.a, at.slot, tile.stage()),
            Some(turn) => {
                let parity = e.and(turn.line, e.iconst(I32, 1));
                ops::mbarrier_wait(e, self.bar(e, Bar::KeptFull, stage), parity);
                shifted(reader.a, stage, tile.stage_a())
            }
        };
        ops::wgmma_fence(e);
        for step in 0..DEPTH / STEP {
            let side = |d: V<'c>, source: &Source| {
                let (bytes, major) = match source.k_major {
                    true => (STEP as i64 * 2, Major::K),
                    false => (STEP as i64 * ROW, Major::Mn),
                };
                (e.add_n(d, step as i64 * bytes / 16), major)
            };
            let b = side(b, &self.plan.b);
            for (part, sum) in sums.iter_mut().enumerate() {
                let a = e.add_n(a, part as i64 * 64 * ROW / 16);
                *sum = ops::wgmma(e, *sum, first && step == 0, side(a, &self.plan.a), b);
            }
        }
        ops::wgmma_commit(e);
        sums
    }

    /// Gives a slot of the ring back, and the kept stage after the last tile of a line that this warpgroup has.
    fn release(&self, e: &Emit<'c>, reader: &Reader<'c>, slot: V<'c>, stage: V<'c>, turn: Option<Turn<'c>>) {
        e.when(reader.leads, |e| {
            ops::mbarrier_arrive(e, self.bar(e, Bar::Empty, slot));
            let Some(turn) = turn.filter(|_| self.plan.tile.kept > 0) else { return };
            let cols = e.iconst(I32, self.plan.tiles(self.g).1 as i64);
            let last = e.cmp(Cmp::Ge, e.add_n(turn.col, 2), cols);
            e.when(last, |e| ops::mbarrier_arrive(e, self.bar(e, Bar::KeptEmpty, stage)));
        });
    }

    /// Waits for the turn of this warpgroup (i32), which the first one has at the start.
    fn wait_turn(&self, e: &Emit<'c>, turn: Option<(Turn<'c>, V<'c>)>) {
        let Some((turn, group)) = turn else { return };
        let one = e.iconst(I32, 1);
        let nth = e.shru(turn.number, one);
        // A barrier that never completed passes for parity 1.
        let parity = e.and(e.add(nth, e.sub(one, group)), one);
        ops::mbarrier_wait(e, self.bar(e, Bar::Turn, group), parity);
    }

    /// Gives the turn to the other warpgroup: all products of this tile are under way.
    fn give_turn(&self, e: &Emit<'c>, turn: Option<(Turn<'c>, V<'c>)>, reader: &Reader<'c>) {
        let Some((_, group)) = turn else { return };
        let other = e.xor(group, e.iconst(I32, 1));
        e.when(reader.leads, |e| ops::mbarrier_arrive(e, self.bar(e, Bar::Turn, other)));
    }
}

/// See [`ops::descriptor_bits`].
fn bits(source: &Source) -> i64 {
    // Mn-major: the next 64 of m or n are the next box.
    let leading = if source.k_major { 16 } else { 64 * ROW };
    ops::descriptor_bits(leading as u32, ATOM as u32)
}
