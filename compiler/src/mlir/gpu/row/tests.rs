//! Row kernels as MLIR and PTX: they read as meant, move 16 bytes per access and keep to registers.

use crate::emulate;
use crate::graph::ir::DType;
use crate::kernel::Kernel;
use crate::kernel::gpu::Arch;
use crate::kernel::gpu::row::Layout;
use crate::kernel::row::lower::lower;
use crate::kernel::row::random;
use crate::kernel::row::samples::{self, Body, Fill, Sample, Sizes};
use crate::mlir::object::{self, Job, Text};
use crate::mlir::ptxas;
use crate::mlir::tier::Tier;

fn text(sample: &Sample, stage: Text) -> String {
    let job = Job { kernel: Kernel::Row(sample.row.clone()), tier: Tier::Gpu(Arch::Sm90a) };
    let symbol = job.kernel.symbol();
    let text = object::text(&job, stage).unwrap_or_else(|why| panic!("{}: {why}", sample.name));
    text.replace(&symbol, "row")
}

/// Rows like those of a model 512 wide.
const MODEL: Sizes = Sizes { batch: 4, time: 64, heads: 8, dim: 64, block: 16, dtype: DType::Bf16 };

#[test]
fn mlir_reads_like_the_loops() {
    let s = Sizes { batch: 1, time: 4, heads: 2, dim: 64, block: 2, dtype: DType::Bf16 };
    insta::assert_snapshot!("rms_norm", text(&samples::rms_norm(s), Text::Mlir));
    insta::assert_snapshot!("momentum", text(&samples::momentum(s), Text::Mlir));
}

#[test]
fn contiguous_rows_move_sixteen_bytes_and_are_read_once() {
    let ptx = text(&samples::rms_norm(MODEL), Text::Asm);
    let count = |what: &str| ptx.matches(what).count();
    // 16 elements of x in two accesses, their gains in four, although the norm and the product are two nests.
    assert_eq!((count("ld.global.nc.v4.b32"), count("ld.global"), count("st.global.v4.b32")), (6, 6, 2), "{ptx}");
    assert_eq!((count("shfl.sync.bfly"), count("bar.")), (5, 0), "{ptx}");
}

#[test]
fn every_body_compiles_without_library_or_local_memory() {
    let clean = |sample: &Sample| {
        let ptx = text(sample, Text::Asm);
        for bad in [".local", "__nv_", "call.uni"] {
            assert!(!ptx.contains(bad), "{}: {bad} in\n{ptx}", sample.name);
        }
        ptx
    };
    clean(&samples::ops(Sizes { batch: 1, time: 3, heads: 1, dim: 61, block: 2, dtype: DType::F32 }));
    for sample in samples::all(MODEL) {
        let ptx = clean(&sample);
        if let Some(tool) = ptxas::find() {
            let report = ptxas::assemble(&tool, &ptx).unwrap_or_else(|why| panic!("{}: {why}", sample.name));
            // So that three blocks share a multiprocessor, a few values of the longest rows may go to its first-level cache.
            assert!(report.kernels.values().all(|k| k.spills <= 100), "{}: {report:?}", sample.name);
        }
    }
}

#[test]
fn sums_over_rows_wait_for_all_teams() {
    let sample = samples::rms_norm_grad(MODEL);
    let layout = Layout::of(&sample.row, &lower(&sample.row).unwrap()).unwrap();
    let ptx = text(&sample, Text::Asm);
    assert!(layout.teams() > 1 && ptx.matches("bar.sync").count() >= 2, "{layout:?}\n{ptx}");
}

/// Runs samples on the emulator and compares with the interpreter; other thread orders must give the same bits.
fn emulate(samples: &[Sample]) {
    for s in samples {
        let kernel = Kernel::Row(s.row.clone());
        let code = emulate::Code::of(&kernel, Arch::Sm90a).unwrap_or_else(|why| panic!("{}: {why}", s.name));
        let before = s.memory(3);
        let run = |seed| {
            let mut after = before.clone();
            let options = emulate::Options { seed, lazy: seed > 0, ..Default::default() };
            code.run(&kernel, &mut after, &options).unwrap_or_else(|why| panic!("{}: {why}", s.name));
            after
        };
        let after = run(0);
        s.compare(&before, &after).unwrap_or_else(|why| panic!("{why}"));
        assert!(run(7) == after, "{}: depends on the order of threads", s.name);
    }
}

/// Sums of partial sums by column, added to what is there, and a row's own mean.
fn partials(tasks: usize, dim: usize) -> Sample {
    let mut body = Body::new(Sizes { batch: 1, time: 1, heads: 1, dim, block: 1, dtype: DType::F32 });
    let (t, d) = (body.axis("t", tasks), body.axis("d", dim));
    let p = body.input("p", DType::F32, &[t, d], Fill::Real);
    let old = body.input("old", DType::F32, &[d], Fill::Real);
    let b = &mut body.b;
    let sum = b.sum(p, &[t]).unwrap();
    let square = b.mul(p, p).unwrap();
    let squares = b.sum(square, &[t]).unwrap();
    let new = b.add(sum, old).unwrap();
    let scaled = b.mul(squares, new).unwrap();
    body.output("squares", DType::F32, &[d], scaled);
    body.update("old", new);
    body.finish(&format!("partials {tasks}"))
}

#[test]
fn bodies_of_models_emulated() {
    let sizes = [
        Sizes { batch: 2, time: 3, heads: 2, dim: 16, block: 2, dtype: DType::F32 },
        Sizes { batch: 1, time: 61, heads: 2, dim: 20, block: 8, dtype: DType::Bf16 },
    ];
    emulate(&sizes.into_iter().flat_map(samples::all).collect::<Vec<_>>());
}

#[test]
fn wide_rows_emulated() {
    let s = Sizes { batch: 2, time: 13, heads: 8, dim: 64, block: 16, dtype: DType::Bf16 };
    emulate(&samples::all(s));
    // Two and four warps to a row, one row, and more rows to a task than threads care for.
    let other = |batch, heads, block| Sizes { batch, time: 5, heads, dim: 64, block, dtype: DType::F32 };
    for s in [other(1, 24, 3), other(1, 48, 2), Sizes { time: 1, ..other(1, 4, 1) }, other(160, 2, 512)] {
        emulate(&[samples::rms_norm_grad(s), samples::rope_grad(s), samples::loss(s, true), samples::adamw(s)]);
    }
}

#[test]
fn spread_emulated() {
    let s = Sizes { batch: 2, time: 3, heads: 3, dim: 21, block: 2, dtype: DType::Bf16 };
    emulate(&samples::all(s).iter().step_by(2).map(Sample::spread).collect::<Vec<_>>());
}

#[test]
fn ops_emulated() {
    for (i, dim) in [1, 8, 61, 1000].into_iter().enumerate() {
        let dtype = [DType::F32, DType::Bf16][i % 2];
        emulate(&[samples::ops(Sizes { batch: 1, time: 3, heads: 1, dim, block: 2, dtype })]);
    }
}

#[test]
fn random_emulated() {
    let shapes = [
        Sizes { batch: 2, time: 4, heads: 2, dim: 20, block: 3, dtype: DType::F32 },
        Sizes { batch: 1, time: 7, heads: 3, dim: 16, block: 7, dtype: DType::Bf16 },
        Sizes { batch: 1, time: 3, heads: 5, dim: 3, block: 1, dtype: DType::F32 },
    ];
    let all = (1000..1015).map(|seed| random::body(seed, shapes[seed as usize % 3]));
    emulate(&all.filter(|s| lower(&s.row).is_ok()).collect::<Vec<_>>());
}

#[test]
fn one_row_emulated() {
    emulate(&[partials(64, 512), partials(5, 20), partials(37, 70), partials(3, 1), partials(700, 33)]);
}
