//! Row kernels as MLIR and PTX: they read as meant, move 16 bytes per access and keep to registers.

use crate::graph::ir::DType;
use crate::kernel::Kernel;
use crate::kernel::gpu::row::Layout;
use crate::kernel::row::lower::lower;
use crate::kernel::row::samples::{self, Sample, Sizes};
use crate::mlir::object::{self, Job, Text};
use crate::mlir::tier::Tier;

fn text(sample: &Sample, stage: Text) -> String {
    let job = Job { kernel: Kernel::Row(sample.row.clone()), tier: Tier::Sm90a };
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
    let mut all = samples::all(MODEL);
    all.push(samples::ops(Sizes { batch: 1, time: 3, heads: 1, dim: 61, block: 2, dtype: DType::F32 }));
    for sample in all {
        let ptx = text(&sample, Text::Asm);
        for bad in [".local", "__nv_", "call.uni"] {
            assert!(!ptx.contains(bad), "{}: {bad} in\n{ptx}", sample.name);
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
