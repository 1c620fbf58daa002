//! The emulator on small hand-written kernels, right and wrong.

use golf_runtime::plan::{DType, Grid, TensorMap};

use super::launch::print;
use super::{Code, Options};
use crate::mlir::emit::{Elem, Emit, F32, I32, I64, PTR, Ty, Unit, V};
use crate::mlir::gpu::ops::*;
use crate::mlir::{passes, tier::Tier};

/// Compiles a kernel named `k`.
fn code(args: usize, maps: usize, threads: u32, body: impl for<'a> FnOnce(&Emit<'a>, &[V<'a>], &[V<'a>])) -> Code {
    let context = passes::context();
    let unit = Unit::new(&context, Tier::Sm90a);
    declare_shared(&unit);
    unit.gpu_kernel("k", args, maps, threads, body);
    let module = unit.module();
    passes::verify(&context, &module).expect("verifies");
    Code::of_text(&print(&module).expect("prints")).expect("compiles")
}

fn modes() -> Vec<Options> {
    [(0, false), (0, true), (1, false), (2, true)].map(|(seed, lazy)| Options { seed, lazy, workers: 2 }).to_vec()
}

/// Runs in every mode; the modes must agree.
fn run(code: &Code, blocks: u32, grid: &Grid, args: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
    let mut first = None;
    for options in modes() {
        let mut mine = args.to_vec();
        code.call("k", blocks, grid, &mut mine, &options)?;
        let first = first.get_or_insert_with(|| mine.clone());
        if *first != mine {
            return Err(format!("{options:?} gives other results"));
        }
    }
    first.ok_or_else(|| "no modes".into())
}

fn f32s(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn grid(threads: u32, shared: u32, maps: Vec<TensorMap>) -> Grid {
    Grid { module: 0, threads, shared, maps }
}

/// Sum of a row of `4 threads` floats, added to each of them: through shuffles, shared memory and a barrier.
fn row_sum(threads: u32, with_barrier: bool) -> Code {
    code(2, 0, threads, move |e, args, _| {
        let t = thread(e, threads);
        let wide = e.zero_extend(t, Elem::I64);
        let row = e.mul_n(e.zero_extend(block(e), Elem::I64), i64::from(4 * threads));
        let index = e.add(row, e.mul_n(wide, 4));
        let x = e.load_aligned(e.gep(args[0], Elem::F32, index), Ty::vec(4, Elem::F32), 16);
        let mut sum = e.reduce(x, |a, b| e.add(a, b));
        for mask in [16, 8, 4, 2, 1] {
            sum = e.add(sum, shuffle_xor(e, sum, mask));
        }
        let shared = generic(e, shared_memory(e));
        let warp = e.shru(wide, e.iconst(I64, 5));
        let lane = e.and(t, e.iconst(I32, 31));
        e.when(is_thread(e, lane, 0), |e| e.store(sum, e.gep(shared, Elem::F32, warp)));
        if with_barrier {
            barrier(e);
        }
        let all = (0..threads / 32).map(|w| e.load(e.gep_const(shared, Elem::F32, w.into()), F32));
        let total = all.reduce(|a, b| e.add(a, b)).expect("a warp");
        let y = e.add(x, e.splat(total, 4));
        e.store_aligned(y, e.gep(args[1], Elem::F32, index), 16);
    })
}

#[test]
fn row_through_shuffles_and_shared_memory() {
    let x: Vec<f32> = (0..3 * 512).map(|i| (i % 7) as f32).collect();
    let args = [f32s(&x), f32s(&vec![0.0; x.len()])];
    let got = run(&row_sum(128, true), 3, &grid(128, 64, vec![]), &args).expect("runs");
    for (row, y) in x.chunks(512).zip(floats(&got[1]).chunks(512)) {
        let sum: f32 = row.iter().sum();
        assert!(row.iter().zip(y).all(|(x, y)| x + sum == *y));
    }
    // One row more than there is.
    let far = run(&row_sum(128, true), 4, &grid(128, 64, vec![]), &args).expect_err("out of bounds");
    assert!(far.contains("16 bytes at byte 6144 of argument 0, which has 6144"), "{far}");
    // Less shared memory than used.
    let few = run(&row_sum(128, true), 1, &grid(128, 8, vec![]), &args).expect_err("out of bounds");
    assert!(few.contains("not inside the launch's 8 bytes"), "{few}");
    // Without the barrier.
    let early = run(&row_sum(128, false), 3, &grid(128, 64, vec![]), &args).map(|a| floats(&a[1]));
    assert!(early.is_err() || early.is_ok_and(|y| y.iter().any(|v| v.is_nan())));
}

#[test]
fn threads_that_never_meet() {
    let k = code(0, 0, 64, |e, _, _| {
        let t = thread(e, 64);
        e.when(is_thread(e, t, 0), barrier);
    });
    let why = run(&k, 1, &grid(64, 0, vec![]), &[]).expect_err("hangs");
    assert!(why.contains("waits at barrier 0, where 1 of 64 threads are"), "{why}");
}

#[test]
fn approximations_and_bf16() {
    let k = code(2, 0, 32, |e, args, _| {
        let at = |p| e.gep(p, Elem::F32, e.zero_extend(thread(e, 32), Elem::I64));
        let x = e.load(at(args[0]), F32);
        let y = e.add(exp2_approx(e, log2_approx(e, x)), e.mul(rsqrt_approx(e, x), recip_approx(e, x)));
        let y = fmax(e, y, e.fconst(F32, 0.5));
        e.store(e.extend(e.to_bf16(y), Elem::F32), at(args[1]));
    });
    let x: Vec<f32> = (1..33).map(|i| i as f32 * 0.37).collect();
    let got = run(&k, 1, &grid(32, 0, vec![]), &[f32s(&x), vec![0; 128]]).expect("runs");
    for (x, y) in x.iter().zip(floats(&got[1])) {
        let want = (x + 1.0 / (x.sqrt() * x)).max(0.5);
        assert!((want - y).abs() <= want / 256.0 && y.to_bits() & 0xffff == 0, "{x}: {y}, {want}");
    }
    let _ = (PTR, DType::F32);
}
