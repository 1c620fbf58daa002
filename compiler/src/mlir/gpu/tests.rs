//! The builder's operations: they verify, lower to PTX, and `ptxas` takes it where there is one.

use super::ops::*;
use crate::kernel::gpu::Arch;
use crate::mlir::emit::{Elem, Emit, F32, I32, I64, Ty, Unit, V};
use crate::mlir::{object, passes, tier::Tier};

/// PTX of a hand-written kernel.
fn ptx(args: usize, maps: usize, threads: u32, body: impl for<'a> FnOnce(&Emit<'a>, &[V<'a>], &[V<'a>])) -> String {
    let context = passes::context();
    let unit = Unit::new(&context, Tier::Gpu(Arch::Sm90a));
    declare_shared(&unit);
    unit.gpu_kernel("kernel", args, maps, threads, body);
    let bytes = object::compile_unit(&context, unit, "kernel", Tier::Gpu(Arch::Sm90a)).expect("compiles");
    String::from_utf8(bytes).expect("ptx is text")
}

fn holds(ptx: &str, instructions: &[&str]) {
    for i in instructions {
        assert!(ptx.contains(i), "no {i} in\n{ptx}");
    }
}

#[test]
fn row_of_four_floats() {
    let text = ptx(2, 0, 128, |e, args, _| {
        let i = e.zero_extend(thread(e, 128), Elem::I64);
        let at = |p| e.gep(p, Elem::F32, e.mul(i, e.iconst(I64, 4)));
        let x = e.load_aligned(at(args[0]), Ty::vec(4, Elem::F32), 16);
        let sum = shuffle_xor(e, e.reduce(x, |a, b| e.add(a, b)), 16);
        let y = e.mul(x, e.splat(exp2_approx(e, rsqrt_approx(e, sum)), 4));
        e.store_aligned(y, at(args[1]), 16);
    });
    holds(&text, &["ld.global.nc.v4", "st.global.v4", "shfl.sync.bfly", "ex2.approx.ftz.f32", ".reqntid 128"]);
    assert!(!text.contains("__nv_"), "no library: {text}");
}

#[test]
fn a_tile_by_tma_and_wgmma() {
    let text = ptx(1, 2, 128, |e, args, maps| {
        let smem = shared_memory(e);
        let bar = shared_at(e, smem, 32768);
        let t = thread(e, 128);
        let first = is_thread(e, t, 0);
        e.when(first, |e| {
            mbarrier_init(e, bar, 1);
            mbarrier_init_fence(e);
            tma_prefetch(e, maps[0]);
        });
        barrier(e);
        e.when(first, |e| {
            mbarrier_expect(e, bar, e.iconst(I32, 32768));
            let zero = e.iconst(I32, 0);
            tma_load(e, smem, maps[0], bar, &[zero, zero]);
            tma_load(e, shared_at(e, smem, 16384), maps[1], bar, &[zero, zero]);
        });
        mbarrier_wait(e, bar, e.iconst(I32, 0));
        let bits = descriptor_bits(16, 1024);
        let a = descriptor(e, shared_address(e, smem), bits);
        let b = descriptor(e, shared_address(e, shared_at(e, smem, 16384)), bits);
        wgmma_fence(e);
        let acc = wgmma(e, zeros(e, 32), true, (a, Major::K), (b, Major::K));
        wgmma_commit(e);
        let acc = wgmma_wait(e, 0, &[acc])[0];
        let x = unpack(e, acc);
        let p = |i: usize| pack_bf16(e, x[2 * i], x[2 * i + 1]);
        wgmma_fence(e);
        let acc = wgmma_registers(e, acc, false, [p(0), p(1), p(2), p(3)], (b, Major::Mn));
        wgmma_commit(e);
        let acc = wgmma_wait(e, 0, &[acc])[0];
        let x = unpack(e, acc);
        let p = |i: usize| pack_bf16(e, x[2 * i], x[2 * i + 1]);
        store_matrix(e, smem, [p(0), p(1), p(2), p(3)], false);
        async_fence(e);
        named_barrier(e, e.iconst(I32, 1), 128);
        e.when(first, |e| {
            let zero = e.iconst(I32, 0);
            tma_store(e, maps[1], smem, &[zero, zero]);
            tma_store_commit(e);
            tma_store_wait(e, 0, true);
        });
        let m = load_matrix(e, smem, true);
        let f = e.fconst(F32, 0.0);
        let c = mma(e, m, [m[0], m[1]], [f; 4]);
        e.store(c[0], args[0]);
    });
    holds(
        &text,
        &[
            "mbarrier.init",
            "cp.async.bulk.tensor.2d.shared::cluster.global",
            "mbarrier.try_wait.parity",
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16",
            "wgmma.wait_group.sync.aligned 0",
            "stmatrix",
            "fence.proxy.async",
            "cp.async.bulk.tensor.2d.global.shared::cta",
            "mma.sync.aligned.m16n8k16",
            ".extern .shared .align 1024",
        ],
    );
    assert_eq!(Arch::Sm90a.shared_limit(), 232448);
}
