//! Contractions for `sm_90a`: bulk copies into a ring of stages, warpgroup products out of it, epilogue in registers.
//!
//! *Takes* a [`Gemm`]; *gives* the functions of [`crate::kernel::gpu::gemm::launches`]; *promises* one fixed order of every sum, and stores to exactly the
//! elements that the description names.
//!
//! A block is one or two multiplying warpgroups and a copying warp (in the widest tiles a warpgroup, which gives most of its registers to the others). Stage s of
//! the ring has two barriers: `full[s]` completes when the copies have landed, `empty[s]` when every multiplying warp has read it. All of them walk over the same
//! tiles and stages, so each knows (slot, parity) for itself: the parity flips when the slot wraps around. Ragged edges cost nothing here: the copy engine reads zeros beyond the edges, and the epilogue does not store there.
//!
//! Where two warpgroups take turns ([`crate::kernel::gpu::gemm::Tile::turns`]), each has a barrier `turn` that the other one completes when it has given out its
//! products: sums of one are stored while the other multiplies. Where A is kept, its stages have pairs of barriers too, which complete once per line of tiles.
//!
//! [`copy`] is the copying thread, [`multiply`] the others, [`sums`] what becomes of finished sums, by [`epilogue`]; [`flat`] are the launches before and after.

mod copy;
mod epilogue;
mod flat;
pub mod mma;
mod multiply;
mod sums;
#[cfg(test)]
pub(crate) mod tests;

use super::ops::{self, WARP};
use crate::kernel::gemm::Gemm;
use crate::kernel::gpu::gemm::{DEPTH, GROUP, Plan, blocks, check};
use crate::mlir::emit::{Cmp, Elem, Emit, I32, I64, Unit, V};
pub(super) use sums::Quad;

/// Bytes of a row of a stage.
const ROW: i64 = 128;

/// Emits the functions of [`crate::kernel::gpu::gemm::launches`].
pub fn emit(unit: &Unit, g: &Gemm, name: &dyn Fn(&str) -> String) -> Result<(), String> {
    check(g)?;
    let plan = Plan::of(g);
    let shape = (plan.tile.threads(), plan.tile.blocks as u32);
    launches(unit, g, &plan, (2 + plan.ahead(g).len(), shape), name, |e, args, maps| {
        Block::new(e, g, &plan, &args[2..], maps).run(e);
    });
    Ok(())
}

/// The functions of a contraction around the `body` of the main one, which has this many tensor maps and this shape (threads, blocks a multiprocessor holds).
fn launches<T>(
    unit: &Unit,
    g: &Gemm,
    plan: &Plan<T>,
    (maps, shape): (usize, (u32, u32)),
    name: &dyn Fn(&str) -> String,
    body: impl for<'c> FnOnce(&Emit<'c>, &[V<'c>], &[V<'c>]),
) {
    ops::declare_shared(unit);
    flat::casts(unit, g, plan, name);
    let outputs = if plan.splits > 1 { 1 } else { g.args.len() };
    unit.gpu_kernel_shared(&name("main"), 2 + outputs, maps, shape, body);
    if plan.splits > 1 {
        flat::reduce(unit, &name("reduce"), g, plan);
    }
}

/// Splits a matrix number (i32) into batch indices, outermost first.
fn batch_indices<'c>(e: &Emit<'c>, g: &Gemm, matrix: V<'c>) -> Vec<V<'c>> {
    let mut rest = matrix;
    let mut indices: Vec<V> = g
        .batch
        .iter()
        .rev()
        .map(|&extent| {
            let extent = e.iconst(I32, extent as i64);
            let index = e.remu(rest, extent);
            rest = e.divu(rest, extent);
            index
        })
        .collect();
    indices.reverse();
    indices
}

/// What a block works on next.
struct Item<'c> {
    /// First row and column of C.
    row: V<'c>,
    col: V<'c>,
    /// Batch indices, and their number.
    batch: Vec<V<'c>>,
    matrix: V<'c>,
    /// Stages of k: from, to (not included).
    from: V<'c>,
    to: V<'c>,
    /// Which piece of k.
    piece: V<'c>,
    /// Where warpgroups take turns.
    turn: Option<Turn<'c>>,
}

/// What a number stands for: piece of k, then matrix, then tile of so many rows and columns; tiles go by groups of `group` row tiles, in a group column by column.
fn item<'c, T>(
    e: &Emit<'c>,
    g: &Gemm,
    plan: &Plan<T>,
    (tile, group): ((usize, usize), usize),
    number: V<'c>,
) -> Item<'c> {
    let (rows, cols) = (g.m.div_ceil(tile.0), g.n.div_ceil(tile.1));
    let c = |n: usize| e.iconst(I32, n as i64);
    let (rest, at) = (e.divu(number, c(rows * cols)), e.remu(number, c(rows * cols)));
    let (piece, matrix) = (e.divu(rest, c(g.matrices())), e.remu(rest, c(g.matrices())));
    let nth = e.divu(at, c(group * cols));
    let within = e.sub(at, e.mul(nth, c(group * cols)));
    let first = e.mul(nth, c(group));
    let height = match rows % group {
        0 => c(group),
        _ => e.min(e.sub(c(rows), first), c(group)),
    };
    let row = e.add(first, e.remu(within, height));
    let from = e.mul(piece, c(plan.piece));
    let stages = c(g.k.div_ceil(DEPTH));
    Item {
        row: e.mul(row, c(tile.0)),
        col: e.mul(e.divu(within, height), c(tile.1)),
        batch: batch_indices(e, g, matrix),
        matrix,
        from,
        to: if plan.splits == 1 { stages } else { e.min(e.add(from, c(plan.piece)), stages) },
        piece,
        turn: None,
    }
}

/// A tile among those of a block whose warpgroups take turns, all i32.
#[derive(Clone, Copy)]
struct Turn<'c> {
    /// Its number: even ones are the first warpgroup's, odd ones the second's.
    number: V<'c>,
    /// Line of tiles, counted by this block; lines are single tiles unless A is kept.
    line: V<'c>,
    /// Place in the line.
    col: V<'c>,
}

/// Position in the ring: slot, and the parity of the phase in which it is filled.
#[derive(Clone, Copy)]
struct Place<'c> {
    slot: V<'c>,
    parity: V<'c>,
}

/// The barriers of a block, in the order in which they lie.
#[derive(Clone, Copy)]
enum Bar {
    /// The stage of the ring has landed; has been read.
    Full,
    Empty,
    /// The kept stage of A has landed; has been read for the last time.
    KeptFull,
    KeptEmpty,
    /// The warpgroup may multiply.
    Turn,
}

/// Values that all parts of the kernel share.
struct Block<'k, 'c> {
    g: &'k Gemm,
    plan: &'k Plan,
    outputs: &'k [V<'c>],
    maps: &'k [V<'c>],
    smem: V<'c>,
    /// See [`Bar`].
    barriers: V<'c>,
    thread: V<'c>,
    warp: V<'c>,
}

impl<'k, 'c> Block<'k, 'c> {
    fn new(e: &Emit<'c>, g: &'k Gemm, plan: &'k Plan, outputs: &'k [V<'c>], maps: &'k [V<'c>]) -> Self {
        let smem = ops::shared_memory(e);
        let barriers = ops::shared_at(e, smem, (plan.tile.shared() - 8 * plan.tile.barriers()) as i64);
        let thread = ops::thread(e, plan.tile.threads());
        let warp = ops::uniform(e, e.divu(thread, e.iconst(I32, WARP.into())));
        Block { g, plan, outputs, maps, smem, barriers, thread, warp }
    }

    /// First barrier of a kind, and how many there are.
    fn bars(&self, kind: Bar) -> (usize, usize) {
        let (stages, kept) = (self.plan.tile.stages, self.plan.tile.kept);
        match kind {
            Bar::Full => (0, stages),
            Bar::Empty => (stages, stages),
            Bar::KeptFull => (2 * stages, kept),
            Bar::KeptEmpty => (2 * stages + kept, kept),
            Bar::Turn => (2 * stages + 2 * kept, if self.plan.tile.turns { 2 } else { 0 }),
        }
    }

    /// Number `i` (i32) of the barriers of a kind.
    fn bar(&self, e: &Emit<'c>, kind: Bar, i: V<'c>) -> V<'c> {
        e.gep_const(e.gep(self.barriers, Elem::I64, i), Elem::I64, self.bars(kind).0 as i64)
    }

    fn run(&self, e: &Emit<'c>) {
        let tile = self.plan.tile;
        let warps = 4 * tile.consumers() as u32;
        e.when(ops::is_thread(e, self.thread, 0), |e| {
            // Arrivals: the copying thread announces, every warp that reads says so, every warp of the other warpgroup gives the turn.
            let arrivals = [
                (Bar::Full, 1),
                (Bar::Empty, 4 * tile.sharing() as u32),
                (Bar::KeptFull, 1),
                (Bar::KeptEmpty, warps),
                (Bar::Turn, 4),
            ];
            for (kind, count) in arrivals {
                let (first, number) = self.bars(kind);
                for i in first..first + number {
                    ops::mbarrier_init(e, e.gep_const(self.barriers, Elem::I64, i as i64), count);
                }
            }
            ops::mbarrier_init_fence(e);
        });
        ops::barrier(e);
        let copies = e.cmp(Cmp::Ge, self.warp, e.iconst(I32, warps.into()));
        e.if_(
            copies,
            &[],
            |e| {
                if let Some((few, _)) = tile.registers() {
                    ops::set_registers(e, few, false);
                }
                let first = ops::is_thread(e, self.thread, (warps * WARP).into());
                e.when(first, |e| self.copy(e));
                vec![]
            },
            |e| {
                if let Some((_, many)) = tile.registers() {
                    ops::set_registers(e, many, true);
                }
                self.multiply(e);
                vec![]
            },
        );
    }

    /// Calls `body` for every tile of this block, or of one warpgroup where they take turns; the position in the ring is carried along.
    fn items(
        &self,
        e: &Emit<'c>,
        warpgroup: Option<V<'c>>,
        body: impl Fn(&Emit<'c>, Item<'c>, Place<'c>) -> Place<'c>,
    ) {
        let c = |n: usize| e.iconst(I32, n as i64);
        let (items, blocks) = (c(self.plan.items(self.g)), c(blocks(self.g, self.plan) as usize));
        let (zero, block) = (c(0), ops::block(e));
        if !self.plan.tile.turns {
            e.for_(block, items, blocks, &[zero, zero], |e, item, place| {
                let place = body(e, self.item(e, item, None), Place { slot: place[0], parity: place[1] });
                vec![place.slot, place.parity]
            });
            return;
        }
        let cols = c(if self.plan.tile.kept > 0 { self.plan.tiles(self.g).1 } else { 1 });
        let (stages, slots) = (c(self.g.k.div_ceil(DEPTH)), c(self.plan.tile.stages));
        let lines = e.divu(e.sub(e.add(items, e.add_n(blocks, -1)), block), blocks);
        let step = c(if warpgroup.is_some() { 2 } else { 1 });
        e.for_(warpgroup.unwrap_or(zero), e.mul(lines, cols), step, &[], |e, number, _| {
            let line = e.divu(number, cols);
            let turn = Turn { number, line, col: e.sub(number, e.mul(line, cols)) };
            // All tiles before this one took as many stages.
            let position = e.mul(number, stages);
            let parity = e.and(e.divu(position, slots), e.iconst(I32, 1));
            let tile = e.add(e.mul(e.add(block, e.mul(line, blocks)), cols), turn.col);
            body(e, self.item(e, tile, Some(turn)), Place { slot: e.remu(position, slots), parity });
            vec![]
        });
    }

    /// Tiles go by groups of row tiles, in a group column by column; line by line where A is kept.
    fn item(&self, e: &Emit<'c>, number: V<'c>, turn: Option<Turn<'c>>) -> Item<'c> {
        let group = if self.plan.tile.kept > 0 { 1 } else { GROUP };
        let tile = (self.plan.tile.rows, self.plan.tile.cols);
        Item { turn, ..item(e, self.g, self.plan, (tile, group), number) }
    }

    fn next(&self, e: &Emit<'c>, at: Place<'c>) -> Place<'c> {
        let slot = e.add_n(at.slot, 1);
        let wraps = e.cmp(Cmp::Eq, slot, e.iconst(I32, self.plan.tile.stages as i64));
        let flipped = e.xor(at.parity, e.iconst(I32, 1));
        Place { slot: e.select(wraps, e.iconst(I32, 0), slot), parity: e.select(wraps, flipped, at.parity) }
    }
}

/// 64-bit offsets: index times stride.
fn scaled<'c>(e: &Emit<'c>, index: V<'c>, stride: i64) -> V<'c> {
    debug_assert_eq!(index.ty, I32);
    let wide = e.zero_extend(index, Elem::I64);
    debug_assert_eq!(wide.ty, I64);
    e.mul_n(wide, stride)
}
