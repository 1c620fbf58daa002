//! The same for every GPU since Ampere.

use super::*;
use crate::kernel::gpu::gemm::mma;

fn emulate(g: &Gemm, cut: Option<Cut>) {
    emulate_on(Arch::Sm80, g, cut);
}

/// Tiles as large as those of a cut for Hopper.
fn cut(tile: usize, splits: usize) -> Option<Cut> {
    let large = |t: &crate::kernel::gpu::gemm::Tile| (t.rows, t.cols) == (mma::TILES[tile].rows, mma::TILES[tile].cols);
    TILES.into_iter().find(large).map(|tile| Cut { tile, splits: Some(splits), blocks: None })
}

#[test]
fn majors_and_tiles() {
    for (i, majors) in [(true, true), (true, false), (false, true), (false, false)].into_iter().enumerate() {
        // Whole tiles and k beyond the ring; then nothing is a multiple of anything.
        emulate(&gemm(1, (64, 128, 256), majors, DType::Bf16), cut(1, 1));
        emulate(&gemm(1, (130, 37, 75), majors, if i % 2 == 0 { DType::F32 } else { DType::Bf16 }), cut(0, 1));
    }
    let mut g = gemm(1, (128, 136, 64), (true, false), DType::Bf16);
    (g.epilogue, g.args) = residual(128, 136);
    emulate(&g, cut(0, 1));
}

#[test]
fn ragged() {
    for (m, n, k) in [(1, 1, 1), (61, 61, 61), (65, 9, 15)] {
        emulate(&gemm(1, (m, n, k), (true, false), DType::Bf16), None);
        emulate(&gemm(1, (m, n, k), (false, true), DType::F32), None);
    }
}

#[test]
fn batches_copies_and_pieces() {
    for g in batched() {
        emulate(&g, None);
    }
    let mut g = gemm(1, (72, 44, 500), (false, false), DType::F32);
    g.accumulate = true;
    g.epilogue = plain(&[], 72, 44, DType::F32, true);
    emulate(&g, cut(1, 1));
    emulate(&g, cut(1, 3));
    emulate(&gemm(2, (24, 13, 700), (true, false), DType::Bf16), cut(1, 4));
    let mut g = gemm(1, (72, 72, 48), (true, true), DType::F32);
    g.symmetric = true;
    emulate(&g, None);
}

#[test]
fn epilogues() {
    for (tile, n, transposed) in [(0, 48, false), (1, 48, true), (1, 45, false)] {
        emulate(&everything(n, transposed), cut(tile, 1));
    }
}

#[test]
fn plans_fill_the_machine() {
    let plan = |shape, majors| mma::plan(&gemm(1, shape, majors, DType::Bf16));
    let p = plan((98304, 512, 512), (true, true));
    assert_eq!((p.tile.rows, p.splits), (128, 1));
    let p = plan((512, 512, 98304), (false, false));
    assert!(p.tile.rows == 128 && p.splits * 16 >= 100, "{p:?}");
    let p = plan((512, 512, 512), (true, false));
    assert_eq!((p.tile.rows, p.splits), (64, 1));
    for tile in mma::TILES {
        // A multiprocessor of the smallest device has 100 KiB; each block takes 1 KiB for itself.
        assert!(tile.blocks * (tile.shared() + 1024) <= 100 << 10, "{tile:?}");
    }
}

#[test]
fn products_and_epilogues_stay_in_registers() {
    for (tile, majors) in [(0, (true, true)), (0, (false, false)), (1, (true, false))] {
        let (m, n) = (1024, 1024);
        let mut g = gemm(1, (m, n, 512), majors, DType::Bf16);
        (g.epilogue, g.args) = residual(m, n);
        g.cut = cut(tile, 1);
        let (ptx, report) = assembled(Arch::Sm80, &g);
        let (rows, cols) = mma::TILES[tile].part();
        // Per stage four steps of k; fragments are 16 x 16.
        assert_eq!(
            ptx.matches("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32").count(),
            4 * rows / 16 * cols / 8
        );
        assert_eq!(ptx.matches("ldmatrix.sync.aligned.m8n8.x4").count(), 4 * (rows + cols) / 16);
        assert!(ptx.contains("cp.async.cg.shared.global") && !ptx.contains(".local"), "{ptx}");
        let Some(report) = report else {
            eprintln!("skipped: no ptxas on PATH or at GOLF_PTXAS");
            continue;
        };
        assert_eq!(report.remarks, Vec::<String>::new(), "tile {tile}");
        for (name, usage) in &report.kernels {
            assert_eq!((usage.spills, usage.stack), (0, 0), "tile {tile} {name}: {usage:?}");
        }
    }
}
