//! The emulator on small hand-written kernels, right and wrong.

use golf_runtime::plan::{DType, Grid, TensorMap};

use super::launch::print;
use super::{Code, Options};
use crate::kernel::gpu::Arch;
use crate::mlir::emit::{Elem, Emit, F32, F32X16, I32, I64, Ty, Unit, V};
use crate::mlir::gpu::ops::*;
use crate::mlir::{passes, tier::Tier};

/// Compiles a kernel named `k`.
fn code(args: usize, maps: usize, threads: u32, body: impl for<'a> FnOnce(&Emit<'a>, &[V<'a>], &[V<'a>])) -> Code {
    let context = passes::context();
    let unit = Unit::new(&context, Tier::Gpu(Arch::Sm90a));
    declare_shared(&unit);
    unit.gpu_kernel("k", args, maps, threads, body);
    let module = unit.module();
    passes::verify(&context, &module).expect("verifies");
    Code::of_text(&print(&module).expect("prints"), Arch::Sm90a).expect("compiles")
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
}

// ---- tensor tiles ----

fn bf16s(x: &[f32]) -> Vec<u8> {
    x.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect()
}

fn bf16_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// Small whole numbers: exact in bf16, sums exact in f32.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + i / 11 * 5 + seed) % 9) as f32 - 4.0).collect()
}

/// A row-major matrix of bf16 in tiles of `rows` rows of 64 columns, swizzled.
fn tile_map(arg: u32, matrix: [u64; 2], rows: u32) -> TensorMap {
    TensorMap {
        arg,
        offset: 0,
        dtype: DType::Bf16,
        dims: vec![matrix[1], matrix[0]],
        strides: vec![2 * matrix[1]],
        tile: vec![64, rows],
        swizzle: 128,
    }
}

/// What a kernel of [`product`] does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    Phase,
    Count,
    FewBytes,
    ManyBytes,
    NoWait,
    NoProductWait,
    NoCommit,
    NoFence,
    Stride,
    NoBarrier,
}

/// `C[64, 128] = A[64, 64] B[64, 128]`, f32. A is stored [m, k] or [k, m], B [n, k] or [k, n]; each in tiles of 64 columns.
fn product(a: Major, b: Major, bug: Bug) -> (Code, Grid) {
    let k = code(3, 2, 128, move |e, args, maps| {
        let smem = shared_memory(e);
        let t = thread(e, 128);
        let first = is_thread(e, t, 0);
        let (at_b, bar) = (shared_at(e, smem, 8192), shared_at(e, smem, 8192 + 16384));
        e.when(first, |e| {
            mbarrier_init(e, bar, if bug == Bug::Count { 2 } else { 1 });
            mbarrier_init_fence(e);
        });
        if bug != Bug::NoBarrier {
            barrier(e);
        }
        let number = |n: i64| e.iconst(I32, n);
        let last = is_thread(e, t, if bug == Bug::NoBarrier { 127 } else { 0 });
        e.when(last, |e| {
            let bytes = match bug {
                Bug::FewBytes => 16384,
                Bug::ManyBytes => 32768,
                _ => 24576,
            };
            mbarrier_expect(e, bar, number(bytes));
            tma_load(e, smem, maps[0], bar, &[number(0), number(0)]);
            let halves: &[(i64, i64, i64)] = match b {
                // 128 rows of 64 k: one tile.
                Major::K => &[(0, 0, 0)],
                // 64 k of 128 columns: two.
                Major::Mn => &[(0, 0, 0), (8192, 64, 0)],
            };
            for &(to, x, y) in halves {
                tma_load(e, shared_at(e, at_b, to), maps[1], bar, &[number(x), number(y)]);
            }
        });
        if bug != Bug::NoWait {
            mbarrier_wait(e, bar, number(i64::from(bug == Bug::Phase)));
        }
        let stride = if bug == Bug::Stride { 512 } else { 1024 };
        let operand = |major: Major, step: i64| match major {
            Major::K => (32 * step, descriptor_bits(16, stride)),
            Major::Mn => (1024 * 2 * step, descriptor_bits(8192, stride)),
        };
        if bug != Bug::NoFence {
            wgmma_fence(e);
        }
        let mut acc = zeros(e, 64);
        for step in 0..4 {
            let (da, bits_a) = operand(a, step);
            let (db, bits_b) = operand(b, step);
            let da = descriptor(e, shared_address(e, shared_at(e, smem, da)), bits_a);
            let db = descriptor(e, shared_address(e, shared_at(e, at_b, db)), bits_b);
            acc = wgmma(e, acc, false, (da, a), (db, b));
        }
        if bug != Bug::NoCommit {
            wgmma_commit(e);
        }
        let acc = if bug == Bug::NoProductWait { acc } else { wgmma_wait(e, 0, &[acc])[0] };
        store_accumulator(e, acc, t, args[0], 128);
    });
    let b_map = match b {
        Major::K => tile_map(2, [128, 64], 128),
        Major::Mn => tile_map(2, [64, 128], 64),
    };
    (k, grid(128, 32768, vec![tile_map(1, [64, 64], 64), b_map]))
}

/// Stores an accumulator of a warpgroup, row-major.
fn store_accumulator<'c>(e: &Emit<'c>, acc: V<'c>, t: V<'c>, to: V<'c>, columns: i64) {
    let number = |n: i64| e.iconst(I32, n);
    let lane = e.and(t, number(31));
    let row = e.add(e.mul_n(e.shru(t, number(5)), 16), e.shru(lane, number(2)));
    let column = e.mul_n(e.and(lane, number(3)), 2);
    for (i, x) in unpack(e, acc).into_iter().enumerate() {
        let (j, h, c) = (i as i64 / 4, i as i64 / 2 % 2, i as i64 % 2);
        let at = e.add(e.mul_n(e.add_n(row, 8 * h), columns), e.add_n(column, 8 * j + c));
        e.store(x, e.gep(to, Elem::F32, at));
    }
}

/// Row-major `a[m, k] b[k, n]`.
fn plain(a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<f32> {
    let one = |i: usize| (0..k).map(|q| a[i / n * k + q] * b[q * n + i % n]).sum();
    (0..m * n).map(one).collect()
}

fn transposed(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// Runs a product kernel on fixed numbers; gives the result and what it should be.
fn multiply(a: Major, b: Major, bug: Bug) -> (Result<Vec<f32>, String>, Vec<f32>) {
    let (x, y) = (numbers(64 * 64, 1), numbers(64 * 128, 2));
    let (k, grid) = product(a, b, bug);
    let lay = |v: &[f32], columns, flip: bool| bf16s(&if flip { transposed(v, columns) } else { v.to_vec() });
    let args = [vec![0xff; 64 * 128 * 4], lay(&x, 64, a == Major::Mn), lay(&y, 128, b == Major::K)];
    (run(&k, 1, &grid, &args).map(|got| floats(&got[0])), plain(&x, &y, [64, 128, 64]))
}

#[test]
fn products_of_all_majors() {
    for a in [Major::K, Major::Mn] {
        for b in [Major::K, Major::Mn] {
            let (got, want) = multiply(a, b, Bug::None);
            assert_eq!(got.expect("runs"), want, "{a:?} {b:?}");
        }
    }
}

/// The lanes that speak for their warps complete a barrier right after giving out products: the others have not missed its phase.
#[test]
fn lanes_of_a_warp_give_out_products_together() {
    let k = code(1, 0, 128, |e, args, _| {
        let number = |n: i64| e.iconst(I32, n);
        let (smem, t) = (shared_memory(e), thread(e, 128));
        let bar = shared_at(e, smem, 8192);
        e.when(is_thread(e, t, 0), |e| {
            mbarrier_init(e, bar, 4);
            mbarrier_init_fence(e);
        });
        let mine = e.gep(generic(e, smem), Elem::I8, e.mul_n(t, 64));
        e.store_aligned(e.zero(F32X16), mine, 16);
        async_fence(e);
        barrier(e);
        // True until the first phase is complete, false from then on.
        mbarrier_wait(e, bar, number(1));
        wgmma_fence(e);
        let d = descriptor(e, shared_address(e, smem), descriptor_bits(16, 1024));
        let acc = wgmma(e, zeros(e, 32), true, (d, Major::K), (d, Major::K));
        wgmma_commit(e);
        e.when(is_thread(e, e.and(t, number(31)), 0), |e| mbarrier_arrive(e, bar));
        let acc = wgmma_wait(e, 0, &[acc])[0];
        store_accumulator(e, acc, t, args[0], 64);
    });
    let got = run(&k, 1, &grid(128, 8200, vec![]), &[vec![0xff; 64 * 64 * 4]]).expect("runs");
    assert!(floats(&got[0]).iter().all(|x| *x == 0.0));
}

#[test]
fn wrong_products_are_noticed() {
    let expect = |bug, part: &str| match multiply(Major::K, Major::Mn, bug).0 {
        Err(why) => assert!(why.contains(part), "{bug:?}: {why}"),
        Ok(_) => panic!("{bug:?} is not noticed"),
    };
    expect(Bug::Phase, "no thread can go on");
    expect(Bug::Count, "lacks 1 of 2 arrivals");
    expect(Bug::ManyBytes, "8192 bytes");
    expect(Bug::NoWait, "with nothing to order the two");
    expect(Bug::NoFence, "without a fence");
    expect(Bug::NoCommit, "before it has waited");
    expect(Bug::NoProductWait, "before it has waited");
    expect(Bug::NoBarrier, "initialised");
    for bug in [Bug::Stride, Bug::FewBytes] {
        let (got, want) = multiply(Major::K, Major::Mn, bug);
        assert!(got.is_err() || got.is_ok_and(|got| got != want), "{bug:?} is not noticed");
    }
}

#[test]
fn fragments_and_stores() {
    // D = A by TMA, through ldmatrix into registers, times B (n-major); D rounded through stmatrix and a TMA store.
    let k = code(4, 3, 128, |e, args, maps| {
        let smem = shared_memory(e);
        let (at_b, bar) = (shared_at(e, smem, 8192), shared_at(e, smem, 16384));
        let t = thread(e, 128);
        let first = is_thread(e, t, 0);
        let number = |n: i64| e.iconst(I32, n);
        e.when(first, |e| {
            mbarrier_init(e, bar, 1);
            mbarrier_init_fence(e);
            tma_prefetch(e, maps[0]);
        });
        barrier(e);
        e.when(first, |e| {
            mbarrier_expect(e, bar, number(16384));
            tma_load(e, smem, maps[0], bar, &[number(0), number(0)]);
            tma_load(e, at_b, maps[1], bar, &[number(0), number(0)]);
        });
        mbarrier_wait(e, bar, number(0));
        let (warp, lane) = (e.shru(t, number(5)), e.and(t, number(31)));
        // Address of lane l for the four tiles of 16 rows and 16 columns from column `c`: rows l % 16, columns c + 8 (l / 16).
        let row = e.add(e.mul_n(warp, 16), e.and(lane, number(15)));
        let at = |step: i64| {
            let column = e.add_n(e.mul_n(e.shru(lane, number(4)), 16), 32 * step);
            let mixed = e.xor(column, e.mul_n(e.and(row, number(7)), 16));
            e.gep(smem, Elem::I8, e.add(e.mul_n(row, 128), mixed))
        };
        let bits = descriptor_bits(8192, 1024);
        let a: Vec<[V; 4]> = (0..4).map(|step| load_matrix(e, at(step), false)).collect();
        wgmma_fence(e);
        let mut acc = zeros(e, 32);
        for (step, a) in a.into_iter().enumerate() {
            let db = descriptor(e, shared_address(e, shared_at(e, at_b, 2048 * step as i64)), bits);
            acc = wgmma_registers(e, acc, step == 0, a, (db, Major::Mn));
        }
        wgmma_commit(e);
        let acc = wgmma_wait(e, 0, &[acc])[0];
        store_accumulator(e, acc, t, args[0], 64);
        barrier(e);
        let x = unpack(e, acc);
        for step in 0..4 {
            let p = |i: usize| pack_bf16(e, x[8 * step + 2 * i], x[8 * step + 2 * i + 1]);
            store_matrix(e, at(step as i64), [p(0), p(1), p(2), p(3)], false);
        }
        async_fence(e);
        named_barrier(e, number(1), 128);
        e.when(first, |e| {
            tma_store(e, maps[2], smem, &[number(0), number(0)]);
            tma_store_commit(e);
            tma_store_wait(e, 0, true);
        });
    });
    // The matrices are smaller than their tiles: the rest reads as zero and is not written.
    let (x, y) = (numbers(60 * 56, 3), numbers(56 * 48, 4));
    let maps = vec![tile_map(1, [60, 56], 64), tile_map(2, [56, 48], 64), tile_map(3, [60, 48], 64)];
    let args = [vec![0xff; 64 * 64 * 4], bf16s(&x), bf16s(&y), vec![0xff; 60 * 48 * 2]];
    let got = run(&k, 1, &grid(128, 32768, maps), &args).expect("runs");
    let want = plain(&x, &y, [60, 48, 56]);
    let (wide, narrow) = (floats(&got[0]), bf16_floats(&got[3]));
    for (i, w) in want.iter().enumerate() {
        assert_eq!(wide[i / 48 * 64 + i % 48], *w, "{i}");
        assert_eq!(narrow[i], half::bf16::from_f32(*w).to_f32(), "{i}");
    }
    assert_eq!(wide[63 * 64], 0.0);
}

#[test]
fn warp_products() {
    let k = code(3, 0, 32, |e, args, _| {
        let t = thread(e, 32);
        let (g, q) = (e.shru(t, e.iconst(I32, 2)), e.mul_n(e.and(t, e.iconst(I32, 3)), 2));
        let pair = |matrix: usize, row: i64, k: i64| {
            let at = e.add(e.mul_n(e.add_n(g, row), 16), e.add_n(q, k));
            e.load(e.gep(args[matrix], Elem::Bf16, at), I32)
        };
        let a = [pair(0, 0, 0), pair(0, 8, 0), pair(0, 0, 8), pair(0, 8, 8)];
        let b = [pair(1, 0, 0), pair(1, 0, 8)];
        let c = mma(e, a, b, [e.fconst(F32, 1.0); 4]);
        for (i, c) in c.into_iter().enumerate() {
            let at = e.add(e.mul_n(e.add_n(g, 8 * (i as i64 / 2)), 8), e.add_n(q, i as i64 % 2));
            e.store(c, e.gep(args[2], Elem::F32, at));
        }
    });
    let (x, y) = (numbers(256, 5), numbers(128, 6));
    let got = run(&k, 1, &grid(32, 0, vec![]), &[bf16s(&x), bf16s(&transposed(&y, 8)), vec![0; 512]]).expect("runs");
    let want: Vec<f32> = plain(&x, &y, [16, 8, 16]).iter().map(|v| v + 1.0).collect();
    assert_eq!(floats(&got[2]), want);
}

/// 64 threads copy 16 bytes each to shared memory, of which those that exist of `count` are read, and each takes what the thread opposite has copied.
fn copied(wait: bool, with_barrier: bool, counted: bool) -> Code {
    code(2, 0, 64, move |e, args, _| {
        let t = thread(e, 64);
        let place = |i| e.mul_n(i, 16);
        let smem = shared_memory(e);
        let left = e.sub(e.iconst(I32, 1000), place(t));
        let count = e.max(e.min(left, e.iconst(I32, 16)), e.iconst(I32, 0));
        copy(e, e.gep(smem, Elem::I8, place(t)), e.gep(args[0], Elem::I8, place(t)), counted.then_some(count));
        copy_commit(e);
        copy_commit(e);
        copy_wait(e, if wait { 1 } else { 2 });
        if with_barrier {
            barrier(e);
        }
        let other = e.gep(generic(e, smem), Elem::I8, place(e.xor(t, e.iconst(I32, 63))));
        e.store_aligned(e.load_aligned(other, Ty::vec(4, Elem::I32), 16), e.gep(args[1], Elem::I8, place(t)), 16);
        copy_wait(e, 0);
    })
}

#[test]
fn copies_of_threads() {
    let bytes: Vec<u8> = (0..1000).map(|i| (i * 7 % 251) as u8).collect();
    let grid = grid(64, 1024, vec![]);
    let got = run(&copied(true, true, true), 1, &grid, &[bytes.clone(), vec![0xff; 1024]]).expect("runs");
    for (i, &b) in got[1].iter().enumerate() {
        let from = (63 - i / 16) * 16 + i % 16;
        assert_eq!(b, bytes.get(from).copied().unwrap_or(0), "{i}");
    }
    let fails = |k: Code, part: &str| {
        let why = run(&k, 1, &grid, &[bytes.clone(), vec![0xff; 1024]]).expect_err(part);
        assert!(why.contains(part), "{part}: {why}");
    };
    fails(copied(true, true, false), "16 bytes at byte 992 of argument 0");
    fails(copied(true, false, true), "with nothing to order the two");
    fails(copied(false, true, true), "with nothing to order the two");
}
