//! The builder's operations: they verify, lower to PTX, and `ptxas` takes it where there is one.

use super::attend::tests::{Case, finishing, kernel};
use super::gemm::tests::gemm;
use super::ops::*;
use crate::graph::ir::DType;
use crate::kernel::Kernel;
use crate::kernel::attend::Pass;
use crate::kernel::feedback::Feedback;
use crate::kernel::gpu::Arch;
use crate::kernel::row::samples::{self, Sizes};
use crate::kernel::scatter::Scatter;
use crate::mlir::emit::{Elem, Emit, F32, I32, I64, Ty, Unit, V};
use crate::mlir::object::{Job, Text};
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

/// The lines that `show` keeps, in order; equal neighbours are one line with their number.
fn outline(text: &str, show: impl Fn(&str) -> Option<String>) -> String {
    let mut lines: Vec<(String, usize)> = vec![];
    for line in text.lines().filter_map(show) {
        match lines.last_mut() {
            Some((last, n)) if *last == line && !line.ends_with('}') => *n += 1,
            _ => lines.push((line, 1)),
        }
    }
    let one = |(line, n): &(String, usize)| if *n == 1 { line.clone() } else { format!("{line} x {n}") };
    lines.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Of MLIR: functions, control flow, and operations of the GPU and of memory, without their operands.
fn outline_of_mlir(text: &str) -> String {
    outline(text, |line| {
        let t = line.trim_start();
        let indent = &line[..line.len() - t.len()];
        let (_, operation) = t.split_once(" = ").filter(|_| t.starts_with('%')).unwrap_or(("", t));
        let name = operation.split([' ', '(']).next().unwrap_or_default();
        let shown =
            ["scf.for", "scf.if", "scf.while", "nvvm.", "llvm.func", "llvm.load", "llvm.store", "llvm.intr.masked"];
        match name {
            "}" => Some(format!("{indent}{}", operation.split(" attributes").next().unwrap_or(operation))),
            "llvm.inline_asm" => {
                let asm = operation.split('"').nth(1).unwrap_or_default();
                Some(format!("{indent}{}", asm.split(' ').next().unwrap_or_default()))
            }
            _ if shown.iter().any(|s| name.starts_with(s)) => Some(format!("{indent}{name}")),
            _ => None,
        }
    })
}

/// Of PTX: entries, labels, branches, and instructions that move data, wait, exchange or multiply, without their operands.
fn outline_of_ptx(text: &str) -> String {
    let shown = [
        "ld.global",
        "st.global",
        "ld.shared",
        "st.shared",
        "mbarrier",
        "cp.",
        "wgmma",
        "fence",
        "bar.",
        "barrier",
        "setmaxnreg",
        "stmatrix",
        "ldmatrix",
        "mma.",
        "shfl",
        "prefetch",
        "ret",
    ];
    outline(text, |line| {
        let t = line.trim();
        let (guard, t) =
            t.split_once(' ').filter(|(g, _)| g.starts_with('@')).map_or(("", t), |(_, t)| ("@ ", t.trim()));
        let name = t.split([' ', '\t', ';']).next().unwrap_or_default();
        match name {
            _ if t.starts_with(".visible .entry") => Some(t.trim_end_matches('(').to_string()),
            ".reqntid" | ".minnctapersm" | ".maxnreg" => Some(format!("  {t}")),
            _ if t.starts_with('$') && t.ends_with(':') => Some(t.to_string()),
            // Loops around waits are part of the wait.
            "bra" | "bra.uni" if t.contains('$') => Some(format!(
                "    {guard}bra {}",
                t.split_whitespace().last().unwrap_or_default().trim_end_matches(';')
            )),
            _ if shown.iter().any(|s| name.starts_with(s)) => Some(format!("    {guard}{name}")),
            _ => None,
        }
    })
}

/// Both outlines of a kernel, its symbol replaced by a name.
fn outlines(name: &str, kernel: Kernel) {
    let symbol = kernel.symbol();
    let job = Job { kernel, tier: Tier::Gpu(Arch::Sm90a) };
    let text = |stage| object::text(&job, stage).unwrap_or_else(|e| panic!("{name}: {e}")).replace(&symbol, name);
    insta::assert_snapshot!(format!("{name}_mlir"), outline_of_mlir(&text(Text::Mlir)));
    insta::assert_snapshot!(format!("{name}_ptx"), outline_of_ptx(&text(Text::Asm)));
}

#[test]
fn kernels_read_as_meant() {
    let s = Sizes { batch: 4, time: 64, heads: 8, dim: 64, block: 16, dtype: DType::Bf16 };
    outlines("row", Kernel::Row(samples::rms_norm_grad(s).row));
    outlines(
        "scatter",
        Kernel::Scatter(Scatter { rows: 4096, width: 64, size: 16, src: DType::Bf16, accumulate: true }),
    );
    outlines("feedback", Kernel::Feedback(Feedback { rows: 512, n: 2048, low: -31.0, high: 31.0 }));
    let mut g = gemm(1, (256, 256, 128), (true, false), DType::F32);
    g.cut = Some("128x128-turns".parse().unwrap());
    outlines("gemm_turns", Kernel::Gemm(g.clone()));
    // Copies of an operand, partial sums.
    g.a.dtype = DType::F32;
    g.cut = Some("64x64/2".parse().unwrap());
    outlines("gemm_pieces", Kernel::Gemm(g));
    let c = Case { batch: 1, time: 256, kv: 1, group: 1, dim: 64, causal: true, window: None, document: false };
    outlines("attend_forward", kernel(c, Pass::Forward));
    outlines("attend_backward", kernel(c, Pass::Backward));
    outlines("attend_finishing", finishing(c, true));
}
