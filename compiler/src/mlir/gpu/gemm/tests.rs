//! Contractions: they compile, assemble without spills, and (in the emulator) compute what the description says.
//!
//! What the plan's cost model predicts at 1.7 GHz, launches not counted, to be held against measurements (the order of the predictions is what the plan
//! uses): 98304 x 512 x 512 in 59 us (memory alone needs 48), 98304 x 1536 x 512 in 175 us, with a second output in 188 us (memory alone 168),
//! 98304 x 512 x 1536 in 241 us, gradients 1536 x 512 x 98304 in 205 us.
//! Measured on an H200 before rows of A were kept and epilogues announced (tests/reports/2026-11-27-h200.md): 332 us for the second with two outputs (a tile of
//! 128 x 128 fetches 7.3 TB/s from the second-level cache at that rate, which bounds it), 225 us for the third, 316 us with a residual's epilogue, 205 us for gradients.

mod mma;

use crate::emulate::{Code, Options};
use crate::graph::build::Builder;
use crate::graph::ir::{AxisId, AxisRole, BufferKind, DType, Graph};
use crate::kernel::epilogue::EpilogueArg;
use crate::kernel::gemm::{Gemm, Operand};
use crate::kernel::gpu::gemm::{Cut, Plan, TILES};
use crate::kernel::gpu::{Arch, SHARED, SHARED_OF_BLOCK};
use crate::kernel::{Kernel, Target};
use crate::mlir::object::{self, Job, Text};
use crate::mlir::ptxas;
use crate::mlir::tier::Tier;
use crate::schedule::trial::Trial;

/// `acc`, then outputs and arguments as the closure declares them; axes: batch indices, m, n.
fn epilogue(batch: &[usize], m: usize, n: usize, body: impl Fn(&mut Builder, &[AxisId])) -> Graph {
    let mut b = Builder::new("epilogue", DType::F32);
    let mn = [("m", m), ("n", n)].map(|(name, size)| b.axis(name, size, AxisRole::Plain).unwrap());
    let mut axes = Vec::new();
    for (i, &size) in batch.iter().enumerate() {
        axes.push(b.axis(&format!("b{i}"), size, AxisRole::Plain).unwrap());
    }
    axes.extend(mn);
    b.buffer("acc", DType::F32, &axes, BufferKind::Input).unwrap();
    body(&mut b, &axes);
    b.finish()
}

/// `out = acc`
fn plain(batch: &[usize], m: usize, n: usize, out: DType, accumulate: bool) -> Graph {
    epilogue(batch, m, n, |b, axes| {
        let acc = b.find_buffer("acc").unwrap();
        let sum = b.read(acc).unwrap();
        let out = b.buffer("out", out, axes, BufferKind::Output).unwrap();
        if accumulate { b.accumulate(out, sum) } else { b.assign(out, sum) }.unwrap();
    })
}

/// A dense result.
fn dense(batch: usize, m: usize, n: usize) -> EpilogueArg {
    EpilogueArg { offset: 0, batch: if batch > 1 { vec![(m * n) as i64] } else { vec![] }, m: n as i64, n: 1 }
}

/// A matrix of [rows, k] or [k, rows] with padded rows.
fn operand(batch: usize, rows: usize, k: usize, k_major: bool, dtype: DType, pad: usize) -> Operand {
    let (inner, outer) = if k_major { (k, rows) } else { (rows, k) };
    let pitch = (inner + pad) as i64;
    let (row, k) = if k_major { (pitch, 1) } else { (1, pitch) };
    let batch = if batch > 1 { vec![pitch * outer as i64] } else { vec![] };
    Operand { dtype, offset: pad as i64, row, k, batch }
}

pub(crate) fn gemm(batch: usize, (m, n, k): (usize, usize, usize), majors: (bool, bool), out: DType) -> Gemm {
    let pad = |inner: usize| inner.next_multiple_of(8) - inner;
    let side =
        |rows: usize, major: bool| operand(batch, rows, k, major, DType::Bf16, pad(if major { k } else { rows }));
    let (mut a, mut b) = (side(m, majors.0), side(n, majors.1));
    (a.offset, b.offset) = (0, 0);
    let extents = if batch > 1 { &[batch][..] } else { &[] };
    Gemm {
        batch: extents.to_vec(),
        m,
        n,
        k,
        a,
        b,
        compute: DType::Bf16,
        symmetric: false,
        accumulate: false,
        epilogue: plain(extents, m, n, out, false),
        args: vec![dense(batch, m, n)],
        cut: None,
        library: false,
    }
}

/// Runs Hopper's kernel in the emulator against the reference.
fn emulate(g: &Gemm, cut: Option<Cut>) {
    emulate_on(Arch::Sm90a, g, cut);
}

fn emulate_on(arch: Arch, g: &Gemm, cut: Option<Cut>) {
    let kernel = Kernel::Gemm(Gemm { cut, ..g.clone() });
    let what = || kernel.text();
    Target::Gpu(arch).check(&kernel).unwrap_or_else(|e| panic!("{e}\n{}", what()));
    let trial = Trial::new(&kernel, 1).unwrap_or_else(|e| panic!("{e}\n{}", what()));
    let code = Code::of(&kernel, arch).unwrap_or_else(|e| panic!("{e}\n{}", what()));
    for (seed, lazy) in [(0, false), (1, true)] {
        let mut args = trial.args.clone();
        let options = Options { seed, lazy, workers: 1 };
        code.run(&kernel, &mut args, &options).unwrap_or_else(|e| panic!("{e}\n{}", what()));
        trial.compare(&args).unwrap_or_else(|e| panic!("{options:?}: {e}\n{}", what()));
    }
}

fn cut(tile: usize, splits: usize, blocks: usize) -> Option<Cut> {
    Some(Cut { tile: TILES[tile], splits: Some(splits), blocks: Some(blocks) })
}

#[test]
fn majors_and_tiles() {
    let (yes, no) = (true, false);
    emulate(&gemm(1, (72, 136, 80), (yes, yes), DType::Bf16), cut(4, 1, 2));
    emulate(&gemm(1, (136, 72, 200), (yes, no), DType::F32), cut(3, 1, 1));
    emulate(&gemm(1, (130, 129, 328), (no, yes), DType::Bf16), cut(1, 1, 3));
    let mut g = gemm(1, (128, 264, 64), (no, no), DType::Bf16);
    (g.epilogue, g.args) = residual(128, 264);
    emulate(&g, cut(0, 1, 1));
}

/// Lines of tiles: an odd number of tiles in two lines of one block, so that a warpgroup's tiles straddle them; all stages kept; one stage; a batch.
#[test]
fn two_warpgroups_take_turns() {
    emulate(&gemm(1, (130, 300, 200), (true, false), DType::Bf16), cut(2, 1, 1));
    let mut g = gemm(1, (256, 256, 512), (false, true), DType::Bf16);
    (g.epilogue, g.args) = residual(256, 256);
    emulate(&g, cut(2, 1, 2));
    emulate(&gemm(3, (40, 136, 24), (true, true), DType::F32), cut(2, 1, 2));
    // A goes through the ring: seven stages in six slots, five tiles of two blocks.
    emulate(&gemm(5, (72, 96, 400), (false, true), DType::F32), cut(1, 1, 2));
}

/// What is read ahead are whole tiles of what the copy engine can address: no columns' scales, no odd widths.
#[test]
fn epilogues_are_announced() {
    let mut g = gemm(1, (256, 256, 512), (true, true), DType::Bf16);
    assert_eq!(Plan::of(&g).ahead(&g), []);
    (g.epilogue, g.args) = residual(256, 256);
    let ahead = Plan::of(&g).ahead(&g);
    assert_eq!(ahead.iter().map(|(buffer, map)| (*buffer, map.arg)).collect::<Vec<_>>(), [(1, 2)]);
    assert_eq!(ahead[0].1.dims, [256, 256]);
    g.args[0].m = 257;
    assert_eq!(Plan::of(&g).ahead(&g), []);
}

#[test]
fn ragged() {
    for (m, n, k) in [(1, 1, 1), (61, 61, 61), (65, 9, 15)] {
        emulate(&gemm(1, (m, n, k), (true, false), DType::Bf16), None);
        emulate(&gemm(1, (m, n, k), (false, true), DType::F32), None);
    }
}

/// Operands that vary along some batch indices, lie askew, or are f32.
fn batched() -> Vec<Gemm> {
    // A broadcast over the outer index, B over the inner; B's rows are not aligned to 16 bytes.
    let mut all = vec![];
    let mut g = gemm(1, (40, 24, 72), (true, false), DType::Bf16);
    g.batch = vec![2, 3];
    g.a.batch = vec![0, 40 * 72];
    g.b = Operand { dtype: DType::Bf16, offset: 3, row: 1, k: 27, batch: vec![27 * 72, 0] };
    g.epilogue = plain(&[2, 3], 40, 24, DType::Bf16, false);
    g.args = vec![EpilogueArg { offset: 0, batch: vec![3 * 40 * 24, 40 * 24], m: 24, n: 1 }];
    all.push(g);
    // f32 operands, aligned and not; more than three batch indices.
    for (k_major, pad) in [(true, 0), (false, 3)] {
        let mut g = gemm(3, (20, 16, 70), (k_major, k_major), DType::F32);
        g.a = operand(3, 20, 70, k_major, DType::F32, pad);
        g.b = operand(3, 16, 70, k_major, DType::F32, pad);
        all.push(g);
    }
    let mut g = gemm(1, (9, 8, 16), (true, true), DType::F32);
    g.batch = vec![2, 1, 2, 2, 2];
    g.a.batch = vec![1152, 7, 576, 288, 144];
    g.b.batch = vec![128, 0, 0, 0, 0];
    g.epilogue = plain(&g.batch, 9, 8, DType::F32, false);
    g.args[0].batch = vec![576, 0, 288, 144, 72];
    all.push(g);
    all
}

#[test]
fn batches_and_copies() {
    let cuts = [cut(4, 1, 4), cut(4, 1, 2), cut(4, 1, 2), None];
    batched().iter().zip(cuts).for_each(|(g, cut)| emulate(g, cut));
}

#[test]
fn pieces_of_k_and_accumulation() {
    let mut g = gemm(1, (72, 44, 500), (false, false), DType::F32);
    g.accumulate = true;
    g.epilogue = plain(&[], 72, 44, DType::F32, true);
    emulate(&g, cut(4, 1, 1));
    emulate(&g, cut(4, 3, 4));
    emulate(&gemm(2, (24, 13, 700), (true, false), DType::Bf16), cut(3, 4, 3));
}

#[test]
fn symmetric_products_read_one_operand() {
    // X X^T, and S S with S read transposed the second time, from f32.
    let mut g = gemm(1, (72, 72, 48), (true, true), DType::F32);
    g.symmetric = true;
    emulate(&g, None);
    let mut g = gemm(1, (64, 64, 64), (true, false), DType::F32);
    g.symmetric = true;
    (g.a.dtype, g.b.dtype) = (DType::F32, DType::F32);
    emulate(&g, None);
    let launches = Target::Gpu(Arch::Sm90a).launches(&Kernel::Gemm(g));
    assert_eq!(launches.iter().map(|l| l.entry).collect::<Vec<_>>(), ["cast_a", "main"]);
}

/// Every kind of argument: per row, per column, per matrix, full, transposed; positions; four outputs, one read before.
fn everything(n: usize, transposed: bool) -> Gemm {
    let (batch, m, k) = (2, 70, 40);
    let mut g = gemm(batch, (m, n, k), (true, true), DType::F32);
    g.epilogue = epilogue(&[batch], m, n, |b, axes| {
        let (bt, ma, na) = (axes[0], axes[1], axes[2]);
        let input = |b: &mut Builder, name: &str, dtype, axes: &[AxisId]| {
            let buffer = b.buffer(name, dtype, axes, BufferKind::State).unwrap();
            b.read(buffer).unwrap()
        };
        let acc = b.find_buffer("acc").and_then(|acc| b.read(acc).ok()).unwrap();
        let scale = input(b, "scale", DType::F32, &[bt, ma]);
        let bias = input(b, "bias", DType::Bf16, &[na]);
        let gain = input(b, "gain", DType::F32, &[bt]);
        let residual = input(b, "residual", DType::Bf16, axes);
        let x = b.mul(acc, scale).unwrap();
        let x = b.add(x, bias).unwrap();
        let t = b.tanh(x).unwrap();
        let t = b.mul(t, gain).unwrap();
        let y = b.add(t, residual).unwrap();
        let other = input(b, "other", DType::F32, axes);
        let y = b.add(y, other).unwrap();
        let out = b.buffer("y", DType::Bf16, axes, BufferKind::Output).unwrap();
        b.assign(out, y).unwrap();
        let zero = b.constant(0.0);
        let positive = b.binary(crate::graph::ir::Binary::Gt, x, zero).unwrap();
        let half = b.mul_const(x, 0.5).unwrap();
        let leaky = b.select(positive, x, half).unwrap();
        let out = b.buffer("leaky", DType::F32, axes, BufferKind::Output).unwrap();
        b.assign(out, leaky).unwrap();
        let total = b.buffer("total", DType::F32, axes, BufferKind::State).unwrap();
        let old = b.read(total).unwrap();
        let sum = b.add(old, t).unwrap();
        b.assign(total, sum).unwrap();
        let (row, col) = (b.iota(ma).unwrap(), b.iota(na).unwrap());
        let row = b.broadcast(row, axes).unwrap();
        let place = b.add(row, col).unwrap();
        let out = b.buffer("place", DType::I32, axes, BufferKind::Output).unwrap();
        b.assign(out, place).unwrap();
    });
    let full = dense(batch, m, n);
    let (mn, mi) = ((m * n) as i64, m as i64);
    g.args = vec![
        EpilogueArg { offset: 0, batch: vec![mi], m: 1, n: 0 },
        EpilogueArg { offset: 0, batch: vec![0], m: 0, n: 1 },
        EpilogueArg { offset: 0, batch: vec![1], m: 0, n: 0 },
        full.clone(),
        if transposed { EpilogueArg { offset: 0, batch: vec![mn], m: 1, n: mi } } else { full.clone() },
        full.clone(),
        full.clone(),
        full.clone(),
        full,
    ];
    g
}

#[test]
fn epilogues() {
    // Pairs suit the first; a transposed argument and an odd width need neighbours.
    for (n, transposed) in [(48, false), (48, true), (45, false)] {
        let g = everything(n, transposed);
        emulate(&g, if transposed { cut(3, 1, 2) } else { cut(4, 1, 8) });
    }
}

#[test]
fn plans_fill_the_machine() {
    let plan = |shape, majors| Plan::of(&gemm(1, shape, majors, DType::Bf16));
    // Activations: many tiles, rows of A kept where they fit. Gradients of weights: k in pieces. Small matrices: small tiles.
    let p = plan((98304, 512, 512), (true, true));
    assert_eq!((p.tile.kept, p.splits), (8, 1));
    let p = plan((98304, 512, 1536), (true, true));
    assert_eq!((p.tile.kept, p.tile.cols, p.splits), (0, 256, 1));
    let p = plan((512, 512, 98304), (false, false));
    assert!(p.splits * 8 >= 120 && p.tile.cols == 256, "{p:?}");
    let p = plan((512, 512, 512), (true, false));
    assert_eq!((p.tile.rows, p.splits), (64, 1));
    for tile in TILES {
        assert!(tile.blocks * (tile.shared() + SHARED_OF_BLOCK) <= SHARED, "{tile:?}");
        assert!(tile.rows <= 256 && tile.cols <= 256);
    }
}

#[test]
fn what_cannot_be_emitted_is_refused() {
    let mut g = gemm(1, (64, 64, 64), (true, true), DType::F32);
    g.compute = DType::F32;
    let why = Target::Gpu(Arch::Sm90a).check(&Kernel::Gemm(g.clone())).unwrap_err();
    assert!(why.contains("products of f32"), "{why}");
    g.compute = DType::Bf16;
    g.accumulate = true;
    let why = Target::Gpu(Arch::Sm90a).check(&Kernel::Gemm(g)).unwrap_err();
    assert!(why.contains("bare sum"), "{why}");
}

/// PTX of a kernel and what the assembler says of it, if there is one.
fn assembled(arch: Arch, g: &Gemm) -> (String, Option<ptxas::Report>) {
    let ptx = object::text(&Job { kernel: Kernel::Gemm(g.clone()), tier: Tier::Gpu(arch) }, Text::Asm).unwrap();
    let report = ptxas::find().map(|path| ptxas::assemble(&path, &ptx).unwrap_or_else(|e| panic!("{e}")));
    (ptx, report)
}

/// A residual stream: the sum, the sum scaled by column and added to a residual, and that scaled again, all stored in bf16.
fn residual(m: usize, n: usize) -> (Graph, Vec<EpilogueArg>) {
    let graph = epilogue(&[], m, n, |b, axes| {
        let input = |b: &mut Builder, name: &str, dtype, axes: &[AxisId]| {
            let buffer = b.buffer(name, dtype, axes, BufferKind::State).unwrap();
            b.read(buffer).unwrap()
        };
        let acc = b.find_buffer("acc").and_then(|acc| b.read(acc).ok()).unwrap();
        let old = input(b, "old", DType::Bf16, axes);
        let (scale, gain) = (input(b, "scale", DType::F32, &axes[1..]), input(b, "gain", DType::F32, &axes[1..]));
        let x = b.mul(acc, scale).unwrap();
        let x = b.add(x, old).unwrap();
        let y = b.mul(x, gain).unwrap();
        let y = b.add(x, y).unwrap();
        for (name, value) in [("sum", acc), ("x", x), ("y", y)] {
            let out = b.buffer(name, DType::Bf16, axes, BufferKind::Output).unwrap();
            b.assign(out, value).unwrap();
        }
    });
    let (full, column) = (dense(1, m, n), EpilogueArg { offset: 0, batch: vec![], m: 0, n: 1 });
    (graph, vec![full.clone(), column.clone(), column, full.clone(), full.clone(), full])
}

#[test]
fn products_and_epilogues_stay_in_registers() {
    // At launch; see `Tile::registers`.
    for (tile, limit) in [(0, 168), (1, 168), (2, 168), (3, 96), (4, 168)] {
        let (m, n) = (1024, 1024);
        let mut g = gemm(1, (m, n, 512), (true, tile % 2 == 0), DType::Bf16);
        (g.epilogue, g.args) = residual(m, n);
        g.cut = cut(tile, 1, 8);
        let (ptx, report) = assembled(Arch::Sm90a, &g);
        // Four products per stage and part: once peeled, once in the loop.
        assert_eq!(ptx.matches("wgmma.mma_async").count(), 8 * TILES[tile].parts());
        assert_eq!(ptx.matches("cp.async.bulk.prefetch.tensor").count(), 1);
        let Some(report) = report else {
            eprintln!("skipped: no ptxas on PATH or at GOLF_PTXAS");
            continue;
        };
        assert_eq!(report.remarks, Vec::<String>::new(), "tile {tile}");
        for (name, usage) in &report.kernels {
            // What `setmaxnreg` asks for must be there.
            let right =
                if TILES[tile].registers().is_some() { usage.registers == limit } else { usage.registers <= limit };
            assert!(right && usage.spills == 0, "tile {tile} {name}: {usage:?}");
        }
    }
}
