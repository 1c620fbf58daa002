//! The copying thread: boxes of A and B into the ring, or of A into the stages that are kept.
//!
//! *Takes* the block's tiles; *gives* their stages in order, each announced on its barrier before its copies start; *promises* that no stage is written
//! before every warp that reads it has said so.

use super::{Bar, Block, Item, Place, ROW};
use crate::kernel::gpu::gemm::{DEPTH, Plan, Source};
use crate::mlir::emit::{Cmp, Elem, Emit, I32, V};
use crate::mlir::gpu::ops;

/// What is read of one operand for a tile.
struct Side<'a, 'c> {
    source: &'a Source,
    map: V<'c>,
    /// First row of A, or column of B, and how many.
    outer: V<'c>,
    extent: usize,
    /// Coordinates after the two of the matrix.
    batch: Vec<V<'c>>,
}

impl<'c> Block<'_, 'c> {
    pub(super) fn copy(&self, e: &Emit<'c>) {
        self.maps.iter().for_each(|&map| ops::tma_prefetch(e, map));
        let (tile, one) = (self.plan.tile, e.iconst(I32, 1));
        self.items(e, None, |e, item, place| {
            self.announce(e, &item);
            let side = |source, map, outer, extent| {
                let batch = self.coordinates(e, source, &item.batch);
                Side { source, map, outer, extent, batch }
            };
            let a = side(&self.plan.a, self.maps[0], item.row, tile.rows);
            let b = side(&self.plan.b, self.maps[1], item.col, tile.cols);
            let end = e.for_(item.from, item.to, one, &[place.slot, place.parity], |e, stage, at| {
                let at = Place { slot: at[0], parity: at[1] };
                let k = e.mul_n(stage, DEPTH as i64);
                if let Some(turn) = item.turn.filter(|_| tile.kept > 0) {
                    let first = e.cmp(Cmp::Eq, turn.col, e.iconst(I32, 0));
                    e.when(first, |e| {
                        let full = self.claim(e, [Bar::KeptEmpty, Bar::KeptFull], stage, turn.line, tile.stage_a());
                        self.fetch(e, &a, self.kept(e, stage), full, k);
                    });
                }
                let full = self.claim(e, [Bar::Empty, Bar::Full], at.slot, at.parity, tile.stage());
                let to = e.gep(self.smem, Elem::I8, e.mul_n(at.slot, tile.stage() as i64));
                let sides: &[&Side] = if tile.kept > 0 { &[&b] } else { &[&a, &b] };
                let place = |to, side: &&Side<'_, 'c>| {
                    self.fetch(e, side, to, full, k);
                    ops::shared_at(e, to, side.extent as i64 * ROW)
                };
                sides.iter().fold(to, place);
                let next = self.next(e, at);
                vec![next.slot, next.parity]
            });
            Place { slot: end[0], parity: end[1] }
        });
    }

    /// Waits until the stage may be written in the phase of that parity (its lowest bit), and announces its bytes; gives the barrier of the copies.
    fn claim(&self, e: &Emit<'c>, [empty, full]: [Bar; 2], at: V<'c>, phase: V<'c>, bytes: usize) -> V<'c> {
        // The first round finds every stage free: a barrier that never completed passes for parity 1.
        let one = e.iconst(I32, 1);
        ops::mbarrier_wait(e, self.bar(e, empty, at), e.and(e.xor(phase, one), one));
        let full = self.bar(e, full, at);
        ops::mbarrier_expect(e, full, e.iconst(I32, bytes as i64));
        full
    }

    /// One stage of one operand.
    fn fetch(&self, e: &Emit<'c>, side: &Side<'_, 'c>, to: V<'c>, full: V<'c>, k: V<'c>) {
        if side.source.k_major {
            ops::tma_load(e, to, side.map, full, &[&[k, side.outer], &side.batch[..]].concat());
            return;
        }
        for part in 0..(side.extent / 64) as i64 {
            let to = ops::shared_at(e, to, part * 64 * ROW);
            let outer = e.add_n(side.outer, 64 * part);
            ops::tma_load(e, to, side.map, full, &[&[outer, k], &side.batch[..]].concat());
        }
    }

    /// Where a kept stage of A lies: after the ring.
    fn kept(&self, e: &Emit<'c>, stage: V<'c>) -> V<'c> {
        let tile = self.plan.tile;
        let first = ops::shared_at(e, self.smem, (tile.stages * tile.stage()) as i64);
        e.gep(first, Elem::I8, e.mul_n(stage, tile.stage_a() as i64))
    }

    /// Tells the second-level cache what the tile's epilogue will read.
    fn announce(&self, e: &Emit<'c>, item: &Item<'c>) {
        for ((buffer, _), map) in self.plan.ahead(self.g).iter().zip(&self.maps[2..]) {
            let batch = Plan::ahead_batch(self.g, *buffer).into_iter().map(|i| item.batch[i]);
            ops::tma_ahead(e, *map, &[item.col, item.row].into_iter().chain(batch).collect::<Vec<_>>());
        }
    }

    /// The map's coordinates after the two of the matrix.
    fn coordinates(&self, e: &Emit<'c>, source: &Source, batch: &[V<'c>]) -> Vec<V<'c>> {
        if source.copied.is_none() {
            return source.batch.iter().map(|&i| batch[i]).collect();
        }
        let flat = |all: Option<V<'c>>, &i: &usize| {
            Some(all.map_or(batch[i], |all| e.add(e.mul_n(all, self.g.batch[i] as i64), batch[i])))
        };
        source.batch.iter().fold(None, flat).into_iter().collect()
    }
}
