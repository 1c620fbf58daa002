//! Contractions for `sm_90a`: bulk copies into a ring of stages, warpgroup products out of it, epilogue in registers.
//!
//! *Takes* a [`Gemm`]; *gives* the functions of [`crate::kernel::gpu::gemm::launches`]; *promises* one fixed order of every sum, and stores to exactly the
//! elements that the description names.
//!
//! A block is one or two multiplying warpgroups and a copying warp (in the widest tile a warpgroup, which gives most of its registers to the others). Stage s of
//! the ring has two barriers: `full[s]` completes when the copies have landed, `empty[s]` when every multiplying warp has read it. All of them walk over the same
//! tiles and stages, so each keeps (slot, parity) for itself: the parity flips when the slot wraps around. Ragged edges cost nothing here: the copy engine reads zeros beyond the edges, and the epilogue does not store there.

mod epilogue;
mod flat;
#[cfg(test)]
mod tests;

use super::ops::{self, Major, WARP};
use crate::kernel::gemm::Gemm;
use crate::kernel::gpu::gemm::{DEPTH, GROUP, Plan, Source, VECTOR};
use crate::mlir::emit::{Cmp, Elem, Emit, I32, I64, Ty, Unit, V};
use epilogue::{Lanes, Program};

/// Bytes of a row of a stage, and of the eight rows over which the swizzle repeats.
const ROW: i64 = 128;
const ATOM: i64 = 8 * ROW;
/// k of one product.
const STEP: usize = 16;

/// Emits the functions of [`crate::kernel::gpu::gemm::launches`].
pub fn emit(unit: &Unit, g: &Gemm, name: &dyn Fn(&str) -> String) -> Result<(), String> {
    crate::kernel::gpu::gemm::check(g)?;
    let plan = Plan::of(g);
    ops::declare_shared(unit);
    for (entry, source, operand) in [("cast_a", &plan.a, &g.a), ("cast_b", &plan.b, &g.b)] {
        if let Some(pitch) = source.copied.filter(|_| entry == "cast_a" || !g.symmetric) {
            flat::cast(unit, &name(entry), g, source, operand, pitch);
        }
    }
    let outputs = if plan.splits > 1 { 1 } else { g.args.len() };
    let shape = (plan.tile.threads(), plan.tile.blocks as u32);
    unit.gpu_kernel_shared(&name("main"), 2 + outputs, 2, shape, |e, args, maps| {
        Block::new(e, g, &plan, &args[2..], maps).run(e);
    });
    if plan.splits > 1 {
        flat::reduce(unit, &name("reduce"), g, &plan);
    }
    Ok(())
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
}

/// Position in the ring: slot, and the parity of the phase in which it is filled.
#[derive(Clone, Copy)]
struct Place<'c> {
    slot: V<'c>,
    parity: V<'c>,
}

/// Values that all parts of the kernel share.
struct Block<'k, 'c> {
    g: &'k Gemm,
    plan: &'k Plan,
    outputs: &'k [V<'c>],
    maps: &'k [V<'c>],
    smem: V<'c>,
    /// Barriers `full`, then `empty`.
    barriers: V<'c>,
    thread: V<'c>,
    warp: V<'c>,
}

impl<'k, 'c> Block<'k, 'c> {
    fn new(e: &Emit<'c>, g: &'k Gemm, plan: &'k Plan, outputs: &'k [V<'c>], maps: &'k [V<'c>]) -> Self {
        let smem = ops::shared_memory(e);
        let barriers = ops::shared_at(e, smem, (plan.tile.stages * plan.tile.stage()) as i64);
        let thread = ops::thread(e, plan.tile.threads());
        let warp = ops::uniform(e, e.divu(thread, e.iconst(I32, WARP.into())));
        Block { g, plan, outputs, maps, smem, barriers, thread, warp }
    }

    fn run(&self, e: &Emit<'c>) {
        let tile = self.plan.tile;
        let warps = 4 * tile.consumers() as u32;
        e.when(ops::is_thread(e, self.thread, 0), |e| {
            for s in 0..tile.stages as i64 {
                ops::mbarrier_init(e, e.gep_const(self.barriers, Elem::I64, s), 1);
                ops::mbarrier_init(e, e.gep_const(self.barriers, Elem::I64, s + tile.stages as i64), warps);
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

    /// Calls `body` for every piece of work of this block; the position in the ring is carried along.
    fn items(&self, e: &Emit<'c>, body: impl Fn(&Emit<'c>, Item<'c>, Place<'c>) -> Place<'c>) {
        let items = e.iconst(I32, self.plan.items(self.g) as i64);
        let blocks = e.iconst(I32, crate::kernel::gpu::gemm::blocks(self.g, self.plan).into());
        let zero = e.iconst(I32, 0);
        e.for_(ops::block(e), items, blocks, &[zero, zero], |e, item, place| {
            let place = body(e, self.item(e, item), Place { slot: place[0], parity: place[1] });
            vec![place.slot, place.parity]
        });
    }

    /// Tiles go by groups of row tiles, in a group column by column.
    fn item(&self, e: &Emit<'c>, number: V<'c>) -> Item<'c> {
        let (g, plan) = (self.g, self.plan);
        let (rows, cols) = plan.tiles(g);
        let c = |n: usize| e.iconst(I32, n as i64);
        let (rest, at) = (e.divu(number, c(rows * cols)), e.remu(number, c(rows * cols)));
        let (piece, matrix) = (e.divu(rest, c(g.matrices())), e.remu(rest, c(g.matrices())));
        let group = e.divu(at, c(GROUP * cols));
        let within = e.sub(at, e.mul(group, c(GROUP * cols)));
        let first = e.mul(group, c(GROUP));
        let height = match rows % GROUP {
            0 => c(GROUP),
            _ => e.min(e.sub(c(rows), first), c(GROUP)),
        };
        let row = e.add(first, e.remu(within, height));
        let from = e.mul(piece, c(plan.piece));
        let stages = c(g.k.div_ceil(DEPTH));
        Item {
            row: e.mul(row, c(plan.tile.rows)),
            col: e.mul(e.divu(within, height), c(plan.tile.cols)),
            batch: batch_indices(e, g, matrix),
            matrix,
            from,
            to: if plan.splits == 1 { stages } else { e.min(e.add(from, c(plan.piece)), stages) },
            piece,
        }
    }

    fn full(&self, e: &Emit<'c>, slot: V<'c>) -> V<'c> {
        e.gep(self.barriers, Elem::I64, slot)
    }

    fn empty(&self, e: &Emit<'c>, slot: V<'c>) -> V<'c> {
        e.gep_const(self.full(e, slot), Elem::I64, self.plan.tile.stages as i64)
    }

    fn next(&self, e: &Emit<'c>, at: Place<'c>) -> Place<'c> {
        let slot = e.add_n(at.slot, 1);
        let wraps = e.cmp(Cmp::Eq, slot, e.iconst(I32, self.plan.tile.stages as i64));
        let flipped = e.xor(at.parity, e.iconst(I32, 1));
        Place { slot: e.select(wraps, e.iconst(I32, 0), slot), parity: e.select(wraps, flipped, at.parity) }
    }

    // ---- the copying thread ----

    fn copy(&self, e: &Emit<'c>) {
        self.maps.iter().for_each(|&map| ops::tma_prefetch(e, map));
        let one = e.iconst(I32, 1);
        self.items(e, |e, item, place| {
            let sides = [
                (&self.plan.a, self.maps[0], item.row, self.plan.tile.rows),
                (&self.plan.b, self.maps[1], item.col, self.plan.tile.cols),
            ];
            let batch = sides.map(|(source, ..)| self.coordinates(e, source, &item.batch));
            let end = e.for_(item.from, item.to, one, &[place.slot, place.parity], |e, stage, at| {
                let at = Place { slot: at[0], parity: at[1] };
                // The first round finds every slot free: a barrier that never completed passes for parity 1.
                ops::mbarrier_wait(e, self.empty(e, at.slot), e.xor(at.parity, one));
                let full = self.full(e, at.slot);
                ops::mbarrier_expect(e, full, e.iconst(I32, self.plan.tile.stage() as i64));
                let mut to = e.gep(self.smem, Elem::I8, e.mul_n(at.slot, self.plan.tile.stage() as i64));
                let k = e.mul_n(stage, DEPTH as i64);
                for ((source, map, outer, extent), batch) in sides.iter().zip(&batch) {
                    if source.k_major {
                        ops::tma_load(e, to, *map, full, &[&[k, *outer], &batch[..]].concat());
                    } else {
                        for part in 0..(*extent / 64) as i64 {
                            let to = ops::shared_at(e, to, part * 64 * ROW);
                            let outer = e.add_n(*outer, 64 * part);
                            ops::tma_load(e, to, *map, full, &[&[outer, k], &batch[..]].concat());
                        }
                    }
                    to = ops::shared_at(e, to, *extent as i64 * ROW);
                }
                let next = self.next(e, at);
                vec![next.slot, next.parity]
            });
            Place { slot: end[0], parity: end[1] }
        });
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

    // ---- the multiplying warpgroups ----

    fn multiply(&self, e: &Emit<'c>) {
        let tile = self.plan.tile;
        let one = e.iconst(I32, 1);
        let lane = e.remu(self.thread, e.iconst(I32, WARP.into()));
        let leads = e.cmp(Cmp::Eq, lane, e.iconst(I32, 0));
        let release = |e: &Emit<'c>, slot| e.when(leads, |e| ops::mbarrier_arrive(e, self.empty(e, slot)));
        // One warpgroup's 64 rows of A are 8192 bytes in both layouts.
        let group = e.divu(self.warp, e.iconst(I32, 4));
        let base = ops::shared_address(e, self.smem);
        let a = e.add(base, e.mul_n(group, 64 * ROW));
        let b = e.add_n(base, tile.rows as i64 * ROW);
        let a = ops::descriptor(e, a, self.bits(&self.plan.a));
        let b = ops::descriptor(e, b, self.bits(&self.plan.b));
        let products = |e: &Emit<'c>, mut acc: V<'c>, first: bool, at: Place<'c>| {
            ops::mbarrier_wait(e, self.full(e, at.slot), at.parity);
            // Addresses in descriptors count 16 bytes; shared memory is too small for a carry out of the field.
            let slot = e.zero_extend(e.mul_n(at.slot, tile.stage() as i64 / 16), Elem::I64);
            let (a, b) = (e.add(a, slot), e.add(b, slot));
            ops::wgmma_fence(e);
            for s in 0..DEPTH / STEP {
                let side = |d: V<'c>, source: &Source| {
                    let (step, major) = match source.k_major {
                        true => (STEP as i64 * 2, Major::K),
                        false => (STEP as i64 * ROW, Major::Mn),
                    };
                    (e.add_n(d, s as i64 * step / 16), major)
                };
                acc = ops::wgmma(e, acc, first && s == 0, side(a, &self.plan.a), side(b, &self.plan.b));
            }
            ops::wgmma_commit(e);
            acc
        };
        let program = Program::new(self.g, self.outputs);
        self.items(e, |e, item, place| {
            let acc = products(e, ops::zeros(e, tile.cols as u16 / 2), true, place);
            let next = self.next(e, place);
            let carried = [acc, next.slot, next.parity, place.slot];
            let end = e.for_(e.add(item.from, one), item.to, one, &carried, |e, _, c| {
                let at = Place { slot: c[1], parity: c[2] };
                let acc = products(e, c[0], false, at);
                // All but the newest products are complete: the slot before may be filled again.
                ops::wgmma_wait(e, 1, &[]);
                release(e, c[3]);
                let next = self.next(e, at);
                vec![acc, next.slot, next.parity, at.slot]
            });
            let acc = ops::wgmma_wait(e, 0, &end[..1])[0];
            release(e, end[3]);
            let sums = Sums { values: ops::unpack(e, acc), lane, row: e.add(item.row, e.mul_n(self.warp, 16)) };
            if self.plan.splits > 1 {
                self.store_partial(e, &item, &sums);
            } else {
                self.finish(e, &program, &item, &sums);
            }
            Place { slot: end[1], parity: end[2] }
        });
    }

    /// See [`ops::descriptor_bits`].
    fn bits(&self, source: &Source) -> i64 {
        // Mn-major: the next 64 of m or n are the next box.
        let leading = if source.k_major { 16 } else { 64 * ROW };
        ops::descriptor_bits(leading as u32, ATOM as u32)
    }

    /// Partial sums go to memory as they lie: pairs of columns.
    fn store_partial(&self, e: &Emit<'c>, item: &Item<'c>, sums: &Sums<'c>) {
        let (g, tile) = (self.g, self.plan.tile);
        let pitch = Plan::partial_pitch(g) as i64;
        let wide = |x| e.zero_extend(x, Elem::I64);
        let matrix = e.add(e.mul_n(item.piece, g.matrices() as i64), item.matrix);
        let pair = e.mul_n(e.remu(sums.lane, e.iconst(I32, 4)), 2);
        for half in 0..2 {
            let row = sums.row(e, half);
            let line = e.mul_n(e.add(e.mul_n(wide(matrix), g.m as i64), wide(row)), pitch);
            let at = e.add(line, wide(e.add(item.col, pair)));
            let at = e.gep(self.outputs[0], Elem::F32, at);
            let inside = e.cmp(Cmp::Lt, row, e.iconst(I32, g.m as i64));
            for j in 0..tile.cols / 8 {
                let col = e.add_n(item.col, 8 * j as i64);
                let inside = e.and(inside, e.cmp(Cmp::Lt, col, e.iconst(I32, pitch)));
                let x = &sums.values[4 * j + 2 * half..][..2];
                let x = e.op1("vector.from_elements", x, Ty::vec(2, Elem::F32), &[]);
                e.when(inside, |e| e.store_aligned(x, e.gep_const(at, Elem::F32, 8 * j as i64), 8));
            }
        }
    }

    /// Runs the epilogue on 8 columns of 32 at a time: as the lanes hold them where every argument allows it, otherwise 8 neighbours after an exchange.
    fn finish(&self, e: &Emit<'c>, program: &Program<'k, 'c>, item: &Item<'c>, sums: &Sums<'c>) {
        let (g, tile) = (self.g, self.plan.tile);
        let c = |n: usize| e.iconst(I32, n as i64);
        let quad = Quad::new(e, sums.lane);
        let of_block = program.block(e, &item.batch);
        let ragged = !g.n.is_multiple_of(tile.cols);
        let rows = [0, 1].map(|half| sums.row(e, half));
        let halves = if g.m.is_multiple_of(tile.rows) {
            let upper = program.row(e, &of_block, rows[0], item.col, Some(quad));
            let lower = program.below(e, &of_block, &upper, 8);
            [(upper, None), (lower, None)]
        } else {
            rows.map(|row| {
                // Rows beyond the last read what the last one reads, and store nothing.
                let inside = e.cmp(Cmp::Lt, row, c(g.m));
                (program.row(e, &of_block, e.min(row, c(g.m - 1)), item.col, Some(quad)), Some(inside))
            })
        };
        let first = e.add(item.col, e.mul_n(quad.quarter, VECTOR as i64));
        // Both rows of a span in turn: what varies along n only is then read once, and forgotten soon.
        for (span, half) in (0..tile.cols / 32).flat_map(|span| [(span, 0), (span, 1)]) {
            let (of_row, inside) = &halves[half];
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
                program.vector(e, of_row, from, lanes, sums.pairs(e, half, span));
                continue;
            }
            let x = sums.gather(e, half, span, quad);
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

/// A warp's finished sums: 16 rows, see [`ops::wgmma`] for which lane holds what.
struct Sums<'c> {
    values: Vec<V<'c>>,
    lane: V<'c>,
    /// First row.
    row: V<'c>,
}

impl<'c> Sums<'c> {
    /// Row of this lane's sums, upper (0) or lower (1) half.
    fn row(&self, e: &Emit<'c>, half: usize) -> V<'c> {
        e.add_n(e.add(self.row, e.divu(self.lane, e.iconst(I32, 4))), 8 * half as i64)
    }

    /// What a lane holds of columns `32 span ..`: pairs at `8 j + 2 q`, j below 4.
    fn pair(&self, half: usize, span: usize) -> impl Fn(usize) -> [V<'c>; 2] {
        move |j| {
            let at = 4 * (4 * span + j) + 2 * half;
            [self.values[at], self.values[at + 1]]
        }
    }

    /// [`Sums::pair`] in one vector.
    fn pairs(&self, e: &Emit<'c>, half: usize, span: usize) -> V<'c> {
        let x: Vec<V> = (0..4).flat_map(self.pair(half, span)).collect();
        e.op1("vector.from_elements", &x, Ty::vec(VECTOR as u32, Elem::F32), &[])
    }

    /// 8 consecutive columns of columns `32 span ..`: lane q of four gets the q-th eight.
    fn gather(&self, e: &Emit<'c>, half: usize, span: usize, quad: Quad<'c>) -> V<'c> {
        let x: Vec<[V; 2]> = (0..4).map(self.pair(half, span)).collect();
        let [low, high] = [0, 1].map(|c| quad.transpose(e, [x[0][c], x[1][c], x[2][c], x[3][c]]));
        let x: Vec<V> = low.into_iter().zip(high).flat_map(|(a, b)| [a, b]).collect();
        e.op1("vector.from_elements", &x, Ty::vec(VECTOR as u32, Elem::F32), &[])
    }
}

/// Four neighbouring lanes, which hold the same rows.
#[derive(Clone, Copy)]
struct Quad<'c> {
    /// This lane's number in its quad.
    quarter: V<'c>,
    /// Its two bits.
    bits: [V<'c>; 2],
}

impl<'c> Quad<'c> {
    fn new(e: &Emit<'c>, lane: V<'c>) -> Self {
        let quarter = e.remu(lane, e.iconst(I32, 4));
        let bits = [1, 2].map(|n| e.cmp(Cmp::Ne, e.and(quarter, e.iconst(I32, n)), e.iconst(I32, 0)));
        Quad { quarter, bits }
    }

    /// Lane q's x\[j\] becomes lane j's x\[q\]: halves are exchanged with the neighbour at distance 1, then 2. All lanes of the warp call it.
    fn transpose(&self, e: &Emit<'c>, mut x: [V<'c>; 4]) -> [V<'c>; 4] {
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

/// 64-bit offsets: index times stride.
fn scaled<'c>(e: &Emit<'c>, index: V<'c>, stride: i64) -> V<'c> {
    debug_assert_eq!(index.ty, I32);
    let wide = e.zero_extend(index, Elem::I64);
    debug_assert_eq!(wide.ty, I64);
    e.mul_n(wide, stride)
}
