//! Rounding with feedback for GPUs.
//!
//! *Takes* a [`Feedback`]; *gives* the function of [`crate::kernel::gpu::feedback::launches`]; *promises* the operations that [`crate::kernel::feedback`] states, none fused
//! or approximated.

use super::ops;
use crate::graph::ir::DType;
use crate::kernel::feedback::Feedback;
use crate::kernel::gpu::feedback::{self, BATCH, ROWS, THREADS, width};
use crate::mlir::emit::{Cmp, Elem, Emit, F32, I32, Unit, V};
use crate::mlir::memory;

/// Emits the function.
pub fn emit(unit: &Unit, k: &Feedback, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    feedback::check(k)?;
    ops::declare_shared(unit);
    unit.gpu_kernel(&symbol("main"), 5, 0, THREADS as u32, |e, args, _| main(&e.exact(), k, args));
    Ok(())
}

fn main<'c>(e: &Emit<'c>, k: &Feedback, args: &[V<'c>]) {
    let n = |n: usize| e.iconst(I32, n as i64);
    let at = |arg: usize, index| memory::at(e, args[arg], DType::F32, index);
    let thread = ops::thread(e, THREADS as u32);
    let (lane, warp) = (e.remu(thread, n(32)), e.divu(thread, n(32)));
    let row = e.add(e.mul_n(ops::block(e), ROWS as i64), warp);
    // A warp too many does the last row again and writes nothing.
    let writes = e.and(e.cmp(Cmp::Lt, row, n(k.rows)), e.cmp(Cmp::Eq, lane, n(0)));
    let row = e.min(row, n(k.rows - 1));
    let first = e.mul_n(row, k.n as i64);
    let step = e.load(at(1, row), F32);
    // The row's weights by visit.
    let left = e.gep(ops::generic(e, ops::shared_memory(e)), Elem::F32, e.mul_n(warp, width(k) as i64));
    let column = |e: &Emit<'c>, visit| {
        let given = e.load(memory::at(e, args[2], DType::I32, visit), I32);
        e.add(first, e.max(e.min(given, n(k.n - 1)), n(0)))
    };
    e.for_(lane, n(k.n), n(32), &[], |e, visit, _| {
        let x = e.load(memory::at(e, args[0], DType::F32, column(e, visit)), F32);
        e.store(x, e.gep(left, Elem::F32, visit));
        vec![]
    });
    ops::warp_barrier(e);
    e.for_(n(0), n(k.n), n(1), &[], |e, visit, _| {
        let x = e.load(e.gep(left, Elem::F32, visit), F32);
        let factors = memory::at(e, args[3], DType::F32, e.mul_n(visit, k.n as i64));
        let factor = |e: &Emit<'c>, visit| e.load(memory::at(e, factors, DType::F32, visit), F32);
        let code = e.round_even(e.div(x, step));
        let code = e.min(e.max(code, e.fconst(F32, k.low.into())), e.fconst(F32, k.high.into()));
        let error = e.div(e.sub(x, e.mul(code, step)), factor(e, visit));
        e.when(writes, |e| e.store(code, memory::at(e, args[4], DType::F32, column(e, visit))));
        let later = e.add(e.add_n(visit, 1), lane);
        e.for_(later, n(k.n), n(32 * BATCH), &[], |e, from, _| {
            let visits: Vec<_> = (0..BATCH).map(|i| e.add_n(from, 32 * i as i64)).collect();
            // Visits beyond the last have a factor and a place that nothing is read from.
            let factors: Vec<_> = visits.iter().map(|&v| factor(e, e.min(v, n(k.n - 1)))).collect();
            let places: Vec<_> = visits.iter().map(|&v| e.gep(left, Elem::F32, v)).collect();
            let values: Vec<_> = places.iter().map(|&at| e.load(at, F32)).collect();
            for ((at, value), factor) in places.into_iter().zip(values).zip(factors) {
                e.store(e.sub(value, e.mul(error, factor)), at);
            }
            vec![]
        });
        ops::warp_barrier(e);
        vec![]
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulate::{self, check};
    use crate::kernel::Kernel;
    use crate::kernel::gpu::{self, Arch};
    use crate::mlir::object::{Job, Text, text};
    use crate::mlir::ptxas;
    use crate::mlir::tier::Tier;
    use crate::schedule::trial::Trial;
    use golf_runtime::quant;

    fn kernel(rows: usize, n: usize) -> Kernel {
        Kernel::Feedback(Feedback { rows, n, low: -31.0, high: 31.0 })
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
    }

    #[test]
    fn ptx_rounds_each_operation_and_is_assembled() {
        for arch in Arch::ALL {
            let ptx = text(&Job { kernel: kernel(512, 2048), tier: Tier::Gpu(arch) }, Text::Asm).unwrap();
            for wanted in ["div.rn.f32", "cvt.rni.f32.f32", "mul.rn.f32", "sub.rn.f32", "bar.warp.sync"] {
                assert!(ptx.contains(wanted), "no {wanted}:\n{ptx}");
            }
            assert!(["fma", "approx", ".local", "atom", "ftz"].iter().all(|w| !ptx.contains(w)), "{ptx}");
            match ptxas::find() {
                None => eprintln!("skipped: no ptxas on PATH or at GOLF_PTXAS"),
                Some(tool) => {
                    let report = ptxas::assemble(&tool, &ptx).unwrap_or_else(|why| panic!("{why}"));
                    let usage = report.kernels.values().next().expect("a kernel");
                    assert!(usage.spills == 0 && usage.stack == 0 && usage.registers <= 64, "{usage:?}");
                }
            }
        }
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        assert_eq!(gpu::check(Arch::Sm80, &kernel(9, 6112)), Ok(()));
        let why = gpu::check(Arch::Sm80, &kernel(9, 6113)).unwrap_err();
        assert_eq!(why, "a block needs 101392 bytes of shared memory; sm_80 has 101376");
        assert_eq!(gpu::check(Arch::Sm90a, &kernel(9, 6113)), Ok(()));
        let why = gpu::check(Arch::Sm90a, &kernel(1 << 20, 1 << 12)).unwrap_err();
        assert_eq!(why, "rounding with feedback of 1048576 rows of 4096 columns");
    }

    /// The reference's bits and the runtime's, in two orders of threads each: rows and columns around the sizes of groups, warps and batches.
    #[test]
    fn trials() {
        for (i, (rows, n)) in [(1, 1), (5, 2), (16, 31), (17, 33), (3, 257), (9, 300)].into_iter().enumerate() {
            let (kernel, seed) = (kernel(rows, n), 1 + i as u64);
            for arch in Arch::ALL {
                assert_eq!(check(&kernel, arch, seed).unwrap_or_else(|why| panic!("{why}")), 0.0);
            }
            let trial = Trial::new(&kernel, seed).unwrap();
            let (w, scale, upper) = (floats(&trial.args[0]), floats(&trial.args[1]), floats(&trial.args[3]));
            let order: Vec<_> = trial.args[2].as_chunks().0.iter().map(|x| i32::from_le_bytes(*x)).collect();
            let (mut values, mut out) = (vec![Default::default(); n], vec![0.0; rows * n]);
            for ((w, scale), out) in w.chunks(16 * n).zip(scale.chunks(16)).zip(out.chunks_mut(16 * n)) {
                quant::feedback::round(w, scale, &order, &upper, (-31.0, 31.0), &mut values, out);
            }
            assert_eq!(out, floats(&trial.outputs[0].expected), "{rows} rows of {n}");
            let hit = |low: f32, high: f32| out.iter().any(|q| (low..=high).contains(&q.abs()));
            assert!(n < 31 || hit(31.0, 31.0) && hit(5.0, 30.0) && hit(1.0, 1.0), "all kinds of codes: {out:?}");
        }
    }

    /// Without correlations nothing is fed: codes are the weights' nearest multiples, halves to even, whatever the order.
    #[test]
    fn halves_go_to_even_and_nothing_is_fed_by_a_diagonal() {
        let (rows, n) = (3, 40);
        let step = [0.5, 4.0, 0.0625f32];
        let w: Vec<f32> = (0..rows * n).map(|i| ((i % n) as f32 - 20.0) * 2.5 * step[i / n]).collect();
        let upper = (0..n * n).map(|i| if i % n == i / n { 3.0f32 } else { 0.0 });
        let order = (0..n as i32).map(|j| j * 17 % 40);
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let mut args = vec![
            bytes(&w),
            bytes(&step),
            order.flat_map(i32::to_le_bytes).collect(),
            bytes(&upper.collect::<Vec<_>>()),
            vec![0xff; rows * n * 4],
        ];
        emulate::run(&kernel(rows, n), Arch::Sm90a, &mut args, &emulate::Options::default())
            .unwrap_or_else(|why| panic!("{why}"));
        // (i - 20) 2.5: whole or a half, 2 of 4 halves of each kind.
        let code = |i: i32| {
            let twice = (i % 40 - 20) * 5;
            let down = twice.div_euclid(2);
            let even = if twice % 2 == 0 || down % 2 == 0 { down } else { down + 1 };
            even.clamp(-31, 31) as f32
        };
        assert_eq!(floats(&args[4]), (0..120).map(code).collect::<Vec<_>>());
    }
}
