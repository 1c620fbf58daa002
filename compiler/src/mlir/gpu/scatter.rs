//! Scatter-add for GPUs.
//!
//! *Takes* a [`Scatter`]; *gives* the functions of [`crate::kernel::gpu::scatter::launches`]; *promises* the order of additions stated there, no atomics, and indices
//! clamped into the table.

use super::ops;
use crate::graph::ir::DType;
use crate::kernel::gpu::scatter::{self, Layout, SUM_THREADS};
use crate::kernel::scatter::Scatter;
use crate::mlir::emit::{Cmp, Elem, Emit, I32, Ty, Unit, V};
use crate::mlir::memory;

/// Source rows in flight per thread.
const BATCH: usize = 8;

/// Emits the functions.
pub fn emit(unit: &Unit, k: &Scatter, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    scatter::check(k)?;
    let l = Layout::of(k);
    ops::declare_shared(unit);
    unit.gpu_kernel(&symbol("main"), 3, 0, l.threads as u32, |e, args, _| {
        Block::new(e, k, &l).main(e, args);
    });
    if l.segments() > 1 {
        unit.gpu_kernel(&symbol("sum"), 2, 0, SUM_THREADS as u32, |e, args, _| sum(e, k, &l, args));
    }
    Ok(())
}

/// What a thread of the first launch knows about itself.
struct Block<'k, 'c> {
    k: &'k Scatter,
    l: &'k Layout,
    thread: V<'c>,
    /// First table row and segment of the block.
    row: V<'c>,
    segment: V<'c>,
    /// The thread's first column in the table and whether the table has it.
    column: V<'c>,
    inside: Option<V<'c>>,
    /// Shared memory: the thread's columns of the block's part of the table, the list, the counts.
    sums: V<'c>,
    list: V<'c>,
    counts: V<'c>,
}

impl<'k, 'c> Block<'k, 'c> {
    fn new(e: &Emit<'c>, k: &'k Scatter, l: &'k Layout) -> Self {
        let n = |n: usize| e.iconst(I32, n as i64);
        let (thread, block) = (ops::thread(e, l.threads as u32), ops::block(e));
        let (piece, rest) = (e.remu(block, n(l.grid[0])), e.divu(block, n(l.grid[0])));
        let (group, segment) = (e.remu(rest, n(l.grid[1])), e.divu(rest, n(l.grid[1])));
        let mine = e.mul_n(thread, l.lanes as i64);
        let column = e.add(e.mul_n(piece, l.columns() as i64), mine);
        let ragged = !k.width.is_multiple_of(l.columns());
        let base = ops::generic(e, ops::shared_memory(e));
        Block {
            k,
            l,
            thread,
            row: e.mul_n(group, l.rows as i64),
            segment,
            column,
            inside: ragged.then(|| e.cmp(Cmp::Lt, column, n(k.width))),
            sums: e.gep(base, Elem::F32, mine),
            list: e.gep_const(base, Elem::I8, l.list() as i64),
            counts: e.gep_const(base, Elem::I8, l.counts() as i64),
        }
    }

    fn main(&self, e: &Emit<'c>, args: &[V<'c>]) {
        let l = self.l;
        for row in 0..=l.rows {
            self.put(e, row, e.zero(self.ty()));
        }
        let found = self.collect(e, args[0]);
        ops::barrier(e);
        self.add_rows(e, args[1], found);
        // Every thread reads back its own columns: no barrier.
        let guarded = |e: &Emit<'c>| self.write(e, args[2]);
        match self.inside {
            Some(inside) => e.when(inside, guarded),
            None => guarded(e),
        }
    }

    fn ty(&self) -> Ty {
        if self.l.lanes > 1 { Ty::vec(self.l.lanes as u32, Elem::F32) } else { Ty::of(Elem::F32) }
    }

    fn put(&self, e: &Emit<'c>, row: usize, v: V<'c>) {
        let at = e.gep_const(self.sums, Elem::F32, (row * self.l.columns()) as i64);
        e.store_aligned(v, at, self.l.lanes * 4);
    }

    /// Lists the entries of the segment that fall on the block's rows: position in the segment, and the row times 65,536. Gives how many there are.
    fn collect(&self, e: &Emit<'c>, index: V<'c>) -> V<'c> {
        let (l, per) = (self.l, Layout::VECTOR);
        let n = |n: usize| e.iconst(I32, n as i64);
        let warps = l.threads / 32;
        let (lane, warp) = (e.remu(self.thread, n(32)), e.divu(self.thread, n(32)));
        let start = e.mul_n(self.segment, l.segment as i64);
        let end = e.min(e.add_n(start, l.segment as i64), n(self.k.rows));
        let chunk = per * l.threads;
        let (zero, one) = (n(0), n(1));
        let found = e.for_(zero, n(l.segment.div_ceil(chunk)), one, &[zero], |e, i, found| {
            let first = e.add(e.mul_n(i, chunk as i64), e.mul_n(self.thread, per as i64));
            let hits: Vec<(V, V, V)> = (0..per)
                .map(|j| {
                    let at = e.add_n(first, j as i64);
                    let position = e.add(start, at);
                    let exists = e.cmp(Cmp::Lt, position, end);
                    let entry = e.load(e.gep(index, Elem::I32, e.min(position, n(self.k.rows - 1))), I32);
                    let row = e.sub(e.max(e.min(entry, n(self.k.size - 1)), zero), self.row);
                    let hit = e.and(exists, e.cmp(Cmp::Ult, row, n(l.rows)));
                    (at, row, hit)
                })
                .collect();
            let count = hits.iter().fold(zero, |sum, (_, _, hit)| e.add(sum, e.zero_extend(*hit, Elem::I32)));
            // Counts of the lanes up to this one, then of the warps before.
            let mut upto = count;
            for distance in [1, 2, 4, 8, 16] {
                let other = ops::shuffle_from(e, upto, e.max(e.add_n(lane, -distance), zero));
                let there = e.cmp(Cmp::Ge, lane, e.iconst(I32, distance));
                upto = e.add(upto, e.select(there, other, zero));
            }
            e.when(e.cmp(Cmp::Eq, lane, n(31)), |e| e.store(upto, e.gep(self.counts, Elem::I32, warp)));
            ops::barrier(e);
            let (mut before, mut all) = (found[0], found[0]);
            for w in 0..warps {
                let count = e.load(e.gep_const(self.counts, Elem::I32, w as i64), I32);
                let earlier = e.cmp(Cmp::Lt, n(w), warp);
                before = e.add(before, e.select(earlier, count, zero));
                all = e.add(all, count);
            }
            let mut to = e.add(before, e.sub(upto, count));
            for (at, row, hit) in hits {
                e.when(hit, |e| {
                    let entry = e.or(at, e.shl(row, n(16)));
                    e.store(entry, e.gep(self.list, Elem::I32, to));
                });
                to = e.add(to, e.zero_extend(hit, Elem::I32));
            }
            // The next round overwrites the counts.
            ops::barrier(e);
            vec![all]
        });
        found[0]
    }

    /// Adds the listed source rows to the part of the table, in order, several loads at a time.
    fn add_rows(&self, e: &Emit<'c>, src: V<'c>, found: V<'c>) {
        let (k, l) = (self.k, self.l);
        let n = |n: usize| e.iconst(I32, n as i64);
        let last = e.add_n(found, -1);
        // A column outside of the table reads the last one.
        let column = match self.inside {
            Some(_) => e.min(self.column, n(k.width - l.lanes)),
            None => self.column,
        };
        let start = e.int_cast(e.mul_n(self.segment, l.segment as i64), Elem::I64);
        e.for_(n(0), found, n(BATCH), &[], |e, i, _| {
            let rows: Vec<(V, V)> = (0..BATCH)
                .map(|j| {
                    let at = e.add_n(i, j as i64);
                    let entry = e.load(e.gep(self.list, Elem::I32, e.min(at, last)), I32);
                    let position = e.zero_extend(e.and(entry, n(0xffff)), Elem::I64);
                    let from = e.mul_n(e.add(start, position), k.width as i64);
                    let from = memory::at(e, memory::at(e, src, k.src, from), k.src, column);
                    let exists = e.cmp(Cmp::Le, at, last);
                    // What is read once too often goes to the row after the last.
                    let row = e.select(exists, e.shru(entry, n(16)), n(l.rows));
                    (row, self.source(e, from))
                })
                .collect();
            for (row, x) in rows {
                let at = e.gep(self.sums, Elem::F32, e.mul_n(row, l.columns() as i64));
                let old = e.load_aligned(at, self.ty(), l.lanes * 4);
                e.store_aligned(e.add(old, x), at, l.lanes * 4);
            }
            vec![]
        });
    }

    fn source(&self, e: &Emit<'c>, from: V<'c>) -> V<'c> {
        let (dtype, lanes) = (self.k.src, self.l.lanes);
        match lanes {
            1 => memory::load_scalar(e, from, dtype),
            _ => {
                let ty = Ty::vec(lanes as u32, memory::storage_elem(dtype));
                memory::widen(e, e.load_aligned(from, ty, lanes * dtype.bytes()), dtype)
            }
        }
    }

    /// The block's part to the table, or to its segment's table.
    fn write(&self, e: &Emit<'c>, table: V<'c>) {
        let (k, l) = (self.k, self.l);
        let width = k.width as i64;
        let several = l.segments() > 1;
        let table = match several {
            true => {
                let segment = e.int_cast(self.segment, Elem::I64);
                e.gep(table, Elem::F32, e.mul_n(segment, k.size as i64 * width))
            }
            false => table,
        };
        let first = e.gep(table, Elem::F32, e.add(e.mul_n(self.row, width), self.column));
        let one = |e: &Emit<'c>, row: usize| {
            let from = e.gep_const(self.sums, Elem::F32, (row * l.columns()) as i64);
            let mut sum = e.load_aligned(from, self.ty(), l.lanes * 4);
            let to = e.gep_const(first, Elem::F32, row as i64 * width);
            if k.accumulate && !several {
                sum = e.add(e.load_aligned(to, self.ty(), l.lanes * 4), sum);
            }
            e.store_aligned(sum, to, l.lanes * 4);
        };
        let whole = k.size.is_multiple_of(l.rows);
        for row in 0..l.rows {
            if whole {
                one(e, row);
            } else {
                let exists = e.cmp(Cmp::Lt, e.add_n(self.row, row as i64), e.iconst(I32, k.size as i64));
                e.when(exists, |e| one(e, row));
            }
        }
    }
}

/// The second launch: every element's segments, ascending.
fn sum<'c>(e: &Emit<'c>, k: &Scatter, l: &Layout, args: &[V<'c>]) {
    let numel = k.size * k.width;
    let lanes = if numel.is_multiple_of(Layout::VECTOR) { Layout::VECTOR } else { 1 };
    let thread = e.add(e.mul_n(ops::block(e), SUM_THREADS as i64), ops::thread(e, SUM_THREADS as u32));
    for piece in 0..Layout::VECTOR / lanes {
        // Without vectors the threads take neighbours, a quarter of the block's elements at a time.
        let at = match lanes {
            1 => {
                let block = e.mul_n(ops::block(e), (SUM_THREADS * Layout::VECTOR) as i64);
                let inside = e.add_n(ops::thread(e, SUM_THREADS as u32), (piece * SUM_THREADS) as i64);
                e.add(block, inside)
            }
            _ => e.mul_n(thread, lanes as i64),
        };
        let ty = if lanes > 1 { Ty::vec(lanes as u32, Elem::F32) } else { Ty::of(Elem::F32) };
        e.when(e.cmp(Cmp::Lt, at, e.iconst(I32, numel as i64)), |e| {
            let parts = e.gep(args[0], Elem::F32, at);
            let get = |s: usize| e.load_aligned(e.gep_const(parts, Elem::F32, (s * numel) as i64), ty, 4 * lanes);
            let mut sum = get(0);
            for s in 1..l.segments() {
                sum = e.add(sum, get(s));
            }
            let to = memory::at(e, args[1], DType::F32, at);
            if k.accumulate {
                sum = e.add(e.load_aligned(to, ty, 4 * lanes), sum);
            }
            e.store_aligned(sum, to, 4 * lanes);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate;
    use crate::kernel::Kernel;
    use crate::kernel::gpu::Arch;
    use crate::kernel::row::run::{read, write};
    use crate::mlir::object::{Job, Text, text};
    use crate::mlir::tests::Random;
    use crate::mlir::tier::Tier;

    fn of(k: Scatter, stage: Text) -> String {
        let job = Job { kernel: Kernel::Scatter(k), tier: Tier::Gpu(Arch::Sm90a) };
        let symbol = job.kernel.symbol();
        text(&job, stage).unwrap().replace(&symbol, "scatter")
    }

    #[test]
    fn one_segment_writes_the_table() {
        let k = Scatter { rows: 61, width: 34, size: 7, src: DType::Bf16, accumulate: true };
        insta::assert_snapshot!("scatter", of(k, Text::Mlir));
    }

    #[test]
    fn a_published_embedding() {
        let k = Scatter { rows: 98_304, width: 512, size: 1024, src: DType::Bf16, accumulate: true };
        let ptx = of(k, Text::Asm);
        assert!(ptx.contains("scatter_main") && ptx.contains("scatter_sum"), "{ptx}");
        assert!(ptx.contains("ld.global.nc.v4") && !ptx.contains(".local") && !ptx.contains("atom"), "{ptx}");
    }

    /// Rows added in f32 in the stated order are the expected bits.
    #[test]
    fn rows_are_added_in_order() {
        let mut rng = Random(4);
        let all = [
            (61, 1, 7, DType::F32),
            (61, 17, 7, DType::Bf16),
            (300, 64, 9, DType::Bf16),
            (61, 130, 7, DType::F32),
            (9000, 34, 70, DType::Bf16),
            (130, 600, 3, DType::F16),
        ];
        for (i, (rows, width, size, src)) in all.into_iter().enumerate() {
            let k = Scatter { rows, width, size, src, accumulate: i % 2 == 0 };
            let l = Layout::of(&k);
            let mut args = vec![vec![0; rows * 4], vec![0; rows * width * src.bytes()], vec![0; size * width * 4]];
            for i in 0..rows {
                // A few indices lie outside and are clamped.
                write(&mut args[0], DType::I32, i, (rng.next() % (size as u64 + 2)) as f64 - 1.0).unwrap();
            }
            for i in 0..rows * width {
                write(&mut args[1], src, i, rng.uniform()).unwrap();
            }
            for i in 0..size * width {
                write(&mut args[2], DType::F32, i, rng.uniform()).unwrap();
            }
            let mut parts = vec![vec![0f32; size * width]; l.segments()];
            for row in 0..rows {
                let at = read(&args[0], DType::I32, row).unwrap().clamp(0.0, size as f64 - 1.0) as usize;
                for c in 0..width {
                    parts[row / l.segment][at * width + c] += read(&args[1], src, row * width + c).unwrap() as f32;
                }
            }
            let mut expected = args[2].clone();
            for i in 0..size * width {
                let sum = parts[1..].iter().fold(parts[0][i], |sum, p| sum + p[i]);
                let old = read(&args[2], DType::F32, i).unwrap() as f32;
                write(&mut expected, DType::F32, i, if k.accumulate { old + sum } else { sum } as f64).unwrap();
            }
            let kernel = Kernel::Scatter(k.clone());
            let code = emulate::Code::of(&kernel, Arch::Sm90a).unwrap();
            for seed in [0, 7] {
                let mut got = args.clone();
                let options = emulate::Options { seed, lazy: seed > 0, ..Default::default() };
                code.run(&kernel, &mut got, &options).unwrap_or_else(|why| panic!("{k:?}: {why}"));
                assert!(got[2] == expected, "{k:?}");
            }
        }
    }
}
