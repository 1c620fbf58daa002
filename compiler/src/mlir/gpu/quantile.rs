//! Quantiles for GPUs.
//!
//! *Takes* a [`Quantile`]; *gives* the function of [`crate::kernel::gpu::quantile::launches`]; *promises* exact order statistics and the arithmetic stated there.

use super::ops;
use crate::graph::ir::DType;
use crate::kernel::gpu::quantile::{self, ROWS, THREADS};
use crate::kernel::quantile::Quantile;
use crate::mlir::emit::{Cmp, Elem, Emit, F32, I32, Ty, Unit, V};
use crate::mlir::memory;

/// The sign bit.
const TOP: i64 = i32::MIN as i64;

/// Emits the function.
pub fn emit(unit: &Unit, k: &Quantile, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    quantile::check(k)?;
    unit.gpu_kernel(&symbol("main"), 2, 0, THREADS as u32, |e, args, _| main(e, k, args));
    Ok(())
}

fn main<'c>(e: &Emit<'c>, k: &Quantile, args: &[V<'c>]) {
    let n = |n: usize| e.iconst(I32, n as i64);
    let thread = ops::thread(e, THREADS as u32);
    let lane = e.remu(thread, n(32));
    let row = e.add(e.mul_n(ops::block(e), ROWS as i64), e.divu(thread, n(32)));
    // A warp too many does the last row again and writes nothing.
    let exists = e.cmp(Cmp::Lt, row, n(k.rows));
    let from = e.int_cast(e.min(row, n(k.rows - 1)), Elem::I64);
    let row_of = Row { x: memory::at(e, args[0], DType::F32, e.mul_n(from, k.n as i64)), lane, n: k.n };
    let (low, weight) = k.position();
    let a = row_of.select(e, low);
    let b = if low + 1 < k.n { row_of.next(e, a, low) } else { a };
    let wide = |key| e.extend(value(e, key), Elem::F64);
    let (a, b) = (wide(a), wide(b));
    let y = e.add(a, e.mul(e.sub(b, a), e.fconst(Ty::of(Elem::F64), weight)));
    e.when(e.and(exists, e.cmp(Cmp::Eq, lane, n(0))), |e| {
        e.store(e.narrow(y, Elem::F32), memory::at(e, args[1], DType::F32, row));
    });
}

/// Integers that, unsigned, are ordered as the floats are: `-0` below `0`, NaN at the ends.
fn key<'c>(e: &Emit<'c>, bits: V<'c>) -> V<'c> {
    let sign = e.shr(bits, e.iconst(I32, 31));
    e.xor(bits, e.or(sign, e.iconst(I32, TOP)))
}

/// The float of a key.
fn value<'c>(e: &Emit<'c>, key: V<'c>) -> V<'c> {
    let positive = e.shr(key, e.iconst(I32, 31));
    let flip = e.or(e.xor(positive, e.iconst(I32, -1)), e.iconst(I32, TOP));
    e.bitcast(e.xor(key, flip), F32)
}

/// A row, as a lane of its warp sees it.
struct Row<'c> {
    x: V<'c>,
    lane: V<'c>,
    n: usize,
}

impl<'c> Row<'c> {
    /// Goes over this lane's keys.
    fn each(
        &self,
        e: &Emit<'c>,
        carried: &[V<'c>],
        f: impl FnOnce(&Emit<'c>, V<'c>, &[V<'c>]) -> Vec<V<'c>>,
    ) -> Vec<V<'c>> {
        let (end, step) = (e.iconst(I32, self.n as i64), e.iconst(I32, 32));
        e.for_(self.lane, end, step, carried, |e, i, carried| {
            let bits = e.load(e.gep(self.x, Elem::I32, i), I32);
            f(e, key(e, bits), carried)
        })
    }

    /// The key of order statistic `low`, in every lane.
    fn select(&self, e: &Emit<'c>, low: usize) -> V<'c> {
        let (zero, one, bits) = (e.iconst(I32, 0), e.iconst(I32, 1), e.iconst(I32, 32));
        let found = e.for_(zero, bits, one, &[zero], |e, i, found| {
            let bit = e.shl(one, e.sub(e.iconst(I32, 31), i));
            let larger = e.or(found[0], bit);
            let below = self.each(e, &[zero], |e, key, count| {
                vec![e.add(count[0], e.zero_extend(e.cmp(Cmp::Ult, key, larger), Elem::I32))]
            });
            let below = over_warp(e, below[0], |e, a, b| e.add(a, b));
            vec![e.select(e.cmp(Cmp::Le, below, e.iconst(I32, low as i64)), larger, found[0])]
        });
        found[0]
    }

    /// The key of order statistic `low + 1`, which there is, given that of `low`.
    fn next(&self, e: &Emit<'c>, found: V<'c>, low: usize) -> V<'c> {
        let (zero, one, most) = (e.iconst(I32, 0), e.iconst(I32, 1), e.iconst(I32, -1));
        let all = self.each(e, &[zero, most], |e, key, carried| {
            let above = e.cmp(Cmp::Ult, found, key);
            let count = e.add(carried[0], e.select(above, zero, one));
            let less = e.and(above, e.cmp(Cmp::Ult, key, carried[1]));
            vec![count, e.select(less, key, carried[1])]
        });
        let upto = over_warp(e, all[0], |e, a, b| e.add(a, b));
        let least = over_warp(e, all[1], |e, a, b| e.select(e.cmp(Cmp::Ult, a, b), a, b));
        e.select(e.cmp(Cmp::Gt, upto, e.iconst(I32, low as i64 + 1)), found, least)
    }
}

fn over_warp<'c>(e: &Emit<'c>, x: V<'c>, f: impl Fn(&Emit<'c>, V<'c>, V<'c>) -> V<'c>) -> V<'c> {
    [16, 8, 4, 2, 1].iter().fold(x, |x, &mask| f(e, x, ops::shuffle_xor(e, x, mask)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::{self, check};
    use crate::kernel::Kernel;
    use crate::kernel::gpu::Arch;
    use crate::mlir::object::{Job, Text, text};
    use crate::mlir::tests::Random;
    use crate::mlir::tier::Tier;

    fn of(k: Quantile, stage: Text) -> String {
        let job = Job { kernel: Kernel::Quantile(k), tier: Tier::Gpu(Arch::Sm90a) };
        text(&job, stage).unwrap().replace(&job.kernel.symbol(), "quantile")
    }

    #[test]
    fn one_warp_a_row() {
        insta::assert_snapshot!("quantile", of(Quantile { rows: 9, n: 40, q: 0.99 }, Text::Mlir));
    }

    #[test]
    fn ptx_rounds_each_operation_and_needs_no_memory_of_its_own() {
        let ptx = of(Quantile { rows: 1536, n: 512, q: 0.9995 }, Text::Asm);
        for wanted in ["sub.rn.f64", "mul.rn.f64", "add.rn.f64", "cvt.rn.f32.f64", "setp.lt.u32"] {
            assert!(ptx.contains(wanted), "no {wanted}:\n{ptx}");
        }
        assert!(["fma", ".local", "atom", ".shared"].iter().all(|w| !ptx.contains(w)), "{ptx}");
    }

    /// Trials against the f64 reference, in two orders each, with no tolerance.
    #[test]
    fn trials() {
        for (i, (rows, n, q)) in
            [(1, 1, 0.3), (5, 2, 0.5), (7, 33, 0.0), (3, 512, 0.9995), (4, 1536, 0.99999), (9, 128, 1.0)]
                .iter()
                .enumerate()
        {
            let kernel = Kernel::Quantile(Quantile { rows: *rows, n: *n, q: *q });
            for seed in [1, 2 + i as u64] {
                assert_eq!(check(&kernel, Arch::Sm90a, seed).unwrap_or_else(|why| panic!("{why}")), 0.0);
            }
        }
    }

    /// The total order of floats, by sign and magnitude.
    fn ordered(mut row: Vec<f32>) -> Vec<f32> {
        let rank = |x: &f32| {
            let magnitude = i64::from(x.to_bits() & 0x7fff_ffff);
            if x.is_sign_negative() { -1 - magnitude } else { magnitude }
        };
        row.sort_by_key(rank);
        row
    }

    #[test]
    fn ties_signs_and_ends() {
        let mut rng = Random(9);
        let odd = [0.0, -0.0, 1e-45, -1e-45, 1.0, -1.0, f32::MAX, f32::MIN, 3.5, f32::MIN_POSITIVE];
        let rows: Vec<Vec<f32>> = vec![
            vec![2.5; 70],
            vec![-0.0; 70],
            (0..70).map(|i| if i % 3 == 0 { -0.0 } else { 0.0 }).collect(),
            (0..70).map(|_| odd[(rng.next() % odd.len() as u64) as usize]).collect(),
            (0..70).map(|i| (i / 7) as f32 - 4.0).collect(),
            (0..70).map(|_| f32::from_bits((rng.next() as u32) & 0xbf7f_ffff)).collect(),
            (0..70).map(|i| if i < 2 { f32::NAN } else { i as f32 }).collect(),
        ];
        for q in [0.0, 0.2, 1.0 / 3.0, 0.5, 0.97, 0.999, 1.0] {
            let kernel = Kernel::Quantile(Quantile { rows: rows.len(), n: 70, q });
            let mut args =
                vec![rows.concat().iter().flat_map(|x| x.to_le_bytes()).collect(), vec![0xff; rows.len() * 4]];
            emulate::run(&kernel, Arch::Sm90a, &mut args, &emulate::Options::default())
                .unwrap_or_else(|why| panic!("{why}"));
            for (i, row) in rows.iter().enumerate() {
                let got = f32::from_le_bytes(args[1][i * 4..][..4].try_into().unwrap());
                let sorted = ordered(row.clone());
                let at = q * 69.0;
                let (a, b) = (f64::from(sorted[at as usize]), f64::from(sorted[(at as usize + 1).min(69)]));
                let want = (a + (b - a) * (at - at.trunc())) as f32;
                assert!(
                    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                    "row {i} at {q}: {got:e} {want:e}"
                );
                assert_eq!(
                    got.to_bits(),
                    golf_runtime::host::quantile(&mut row.clone(), q).to_bits(),
                    "the CPU's, row {i} at {q}"
                );
            }
        }
    }
}
