//! Every GPU kernel of whole programs through NVIDIA's assembler, at the sizes and in the modules that executables carry: it takes them without a
//! remark, nothing spills where it would cost, registers and shared memory suffice, and each family is made of the instructions it is meant to
//! be made of.
#![cfg(feature = "mlir")]

mod common;

use common::model;
use golf_compiler::driver::planned;
use golf_compiler::graph::ir::DType;
use golf_compiler::kernel::gpu::Arch;
use golf_compiler::kernel::{self, Kernel, Target};
use golf_compiler::mlir::object::{self, Job};
use golf_compiler::mlir::ptxas::{self, Report};
use golf_compiler::mlir::tier::Tier;
use golf_compiler::schedule::plan::Planned;
use golf_runtime::plan::Grid;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Registers of a multiprocessor; the hardware hands them out to warps in units of 256.
const REGISTERS: u32 = 65536;

/// A module and how its entries are launched.
struct Module {
    kernel: Kernel,
    ptx: String,
    launches: Vec<(String, Grid)>,
}

/// A program's variant for a kind of GPU.
fn plan(arch: Arch, name: &str) -> Planned {
    planned(&model(name, &[]), Target::Gpu(arch), DType::Bf16).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// PTX of kernels, made anew.
fn compile(arch: Arch, kernels: &[Kernel], threads: usize) -> Vec<String> {
    let jobs: Vec<Job> = kernels.iter().map(|k| Job { kernel: k.clone(), tier: Tier::Gpu(arch) }).collect();
    let (texts, _) =
        object::compile(&jobs, &object::Options { threads, cache: None }).unwrap_or_else(|e| panic!("{e}"));
    texts.into_iter().map(|t| String::from_utf8(t).unwrap()).collect()
}

/// The modules of that variant.
fn modules(arch: Arch, name: &str) -> Vec<Module> {
    let plan = plan(arch, name);
    let texts = compile(arch, &plan.kernels, object::Options::default().threads);
    let mut launches: Vec<Vec<(String, Grid)>> = vec![vec![]; plan.kernels.len()];
    for k in &plan.variant.kernels {
        let grid = k.gpu.clone().unwrap_or_else(|| panic!("{} has no grid", k.symbol));
        launches[grid.module as usize].push((k.symbol.clone(), grid));
    }
    let all = plan.kernels.into_iter().zip(texts).zip(launches);
    all.map(|((kernel, ptx), launches)| Module { kernel, ptx, launches }).collect()
}

/// What the assembler says of each, in order, for the devices their text names, and that it takes them for these later ones.
fn assemble(tool: &Path, modules: &[Module], later: &[&str]) -> Vec<Report> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    let threads = object::Options::default().threads;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(m) = modules.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = ptxas::assemble(tool, &m.ptx);
                    let refused = |e: String| -> Report { panic!("{}: {e}\n{}", m.kernel.symbol(), m.kernel.text()) };
                    let report = report.unwrap_or_else(refused);
                    for device in later {
                        ptxas::assemble_for(tool, device, &m.ptx).unwrap_or_else(refused);
                    }
                    found.lock().unwrap().insert(m.kernel.symbol(), report);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    modules.iter().map(|m| found.remove(&m.kernel.symbol()).unwrap()).collect()
}

/// Bytes that an entry may spill, per thread. Zero with few exceptions, each with its reason.
fn spills(kernel: &Kernel, entry: &str, blocks: u32) -> u32 {
    match (kernel, entry) {
        // One block per step, which updates all small parameters of the program in a row (three kernels).
        (Kernel::Row(_), _) if blocks == 1 => 3000,
        // Three blocks share a multiprocessor: a few values of the longest rows stay in its first-level cache.
        (Kernel::Row(_), _) => 128,
        _ => 0,
    }
}

/// Bytes from which on each lane of a warp has 16 of a row.
const WARP_BYTES: usize = 512;

/// Bytes of the widest row that a kernel writes; 0 if it has no rows but sums columns or moves single numbers.
fn row_bytes(k: &kernel::row::Row) -> usize {
    let types = k.graph.effects.iter().map(|e| &k.graph.buffers[e.buffer.0 as usize].ty);
    let widest = types.map(|ty| k.inner(&ty.axes) * ty.dtype.bytes()).max();
    if k.outer.is_empty() { 0 } else { widest.unwrap_or(0) }
}

/// Instructions that make up an entry.
fn meant(arch: Arch, kernel: &Kernel, entry: &str) -> &'static [&'static str] {
    const VECTORS: &[&str] = &[".v4.b32"];
    const WARPS: &[&str] = &[
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "ldmatrix.sync.aligned.m8n8.x4",
        "cp.async.cg.shared.global",
    ];
    match (kernel, entry) {
        (Kernel::Gemm(_), "main") | (Kernel::Attend(_), "main" | "dkdv" | "dq") if arch == Arch::Sm80 => WARPS,
        (Kernel::Gemm(_), "main") => &[
            "wgmma.mma_async.sync.aligned.m64n",
            "cp.async.bulk.tensor.",
            ".shared::cluster.global",
            "mbarrier.try_wait.parity",
        ],
        // Rows that an epilogue finished are stored from registers.
        (Kernel::Attend(k), "main") if k.epilogue.is_some() => &[
            "wgmma.mma_async.sync.aligned.m64n",
            ".shared::cluster.global",
            "setmaxnreg.inc",
            "setmaxnreg.dec",
            "ex2.approx.ftz.f32",
            "ld.global.nc.v4",
            "st.global.v4",
        ],
        (Kernel::Attend(_), "main" | "dkdv" | "dq") => &[
            "wgmma.mma_async.sync.aligned.m64n",
            ".shared::cluster.global",
            ".global.shared::cta",
            "setmaxnreg.inc",
            "setmaxnreg.dec",
            "ex2.approx.ftz.f32",
            "stmatrix",
        ],
        (Kernel::Gemm(_), _) | (Kernel::Attend(_), "delta") | (Kernel::Scatter(_), "sum") => VECTORS,
        (Kernel::Row(k), _) if row_bytes(k) >= WARP_BYTES => VECTORS,
        _ => &[],
    }
}

/// PTX from an entry's name to the next.
fn body<'a>(ptx: &'a str, entry: &str) -> &'a str {
    let from = ptx.find(&format!(".entry {entry}(")).unwrap_or_else(|| panic!("no entry {entry}"));
    let rest = &ptx[from..];
    rest[1..].find(".entry ").map_or(rest, |n| &rest[..n])
}

/// Figures of one kind of entry.
#[derive(Default)]
struct Row {
    entries: usize,
    registers: u32,
    spilling: usize,
    spills: u32,
    shared: u32,
}

#[test]
fn every_kernel_of_whole_programs_assembles_as_meant() {
    let Some(tool) = ptxas::find() else {
        assert!(std::env::var_os("CI").is_none(), "no ptxas (GOLF_PTXAS or the PATH)");
        eprintln!("skipped: no ptxas (GOLF_PTXAS or the PATH)");
        return;
    };
    let mut wrong = vec![];
    let programs =
        [(Arch::Sm90a, "tiny", &[][..]), (Arch::Sm90a, "vrl11", &[]), (Arch::Sm80, "tiny", &["sm_90a", "sm_100"])];
    for (arch, name, later) in programs {
        let all = modules(arch, name);
        let mut table: BTreeMap<String, Row> = BTreeMap::new();
        for (m, report) in all.iter().zip(assemble(&tool, &all, later)) {
            let mut say =
                |entry: &str, what: String| wrong.push(format!("{name}: {entry}: {what}\n{}", m.kernel.text()));
            if !report.remarks.is_empty() {
                say(&m.kernel.symbol(), report.remarks.join("; "));
            }
            for bad in [".local", "__nv_"] {
                if m.ptx.contains(bad) {
                    say(&m.kernel.symbol(), format!("{bad} in its PTX"));
                }
            }
            for launch in Target::Gpu(arch).launches(&m.kernel) {
                let symbol = format!("{}_{}", m.kernel.symbol(), launch.entry);
                let usage = report.kernels[&symbol];
                let (_, grid) =
                    m.launches.iter().find(|l| l.0 == symbol).unwrap_or_else(|| panic!("{symbol} is never launched"));
                let warps = grid.threads.div_ceil(32);
                if warps * (32 * usage.registers).next_multiple_of(256) > REGISTERS {
                    say(&symbol, format!("{} registers for each of {} threads", usage.registers, grid.threads));
                }
                let shared = usage.shared + grid.shared;
                if shared > arch.shared_limit() {
                    say(&symbol, format!("{shared} bytes of shared memory"));
                }
                if usage.spills > spills(&m.kernel, launch.entry, launch.tasks) {
                    say(&symbol, format!("{} bytes spilled", usage.spills));
                }
                let text = body(&m.ptx, &symbol);
                for missing in meant(arch, &m.kernel, launch.entry).iter().filter(|i| !text.contains(**i)) {
                    say(&symbol, format!("has no {missing}"));
                }
                let row = table.entry(format!("{} {}", m.kernel.family(), launch.entry)).or_default();
                row.entries += 1;
                row.registers = row.registers.max(usage.registers);
                row.spilling += usize::from(usage.spills > 0);
                row.spills = row.spills.max(usage.spills);
                row.shared = row.shared.max(shared);
            }
        }
        println!(
            "{name}, {}: {} modules\n{:>18} {:>7} {:>9} {:>8} {:>11} {:>8}",
            arch.name(),
            all.len(),
            "entry",
            "kernels",
            "registers",
            "spilling",
            "bytes, most",
            "shared"
        );
        for (entry, r) in &table {
            println!(
                "{entry:>18} {:>7} {:>9} {:>8} {:>11} {:>8}",
                r.entries, r.registers, r.spilling, r.spills, r.shared
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn two_builds_give_the_same_ptx() {
    // The first few of every family.
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let mut few = plan(Arch::Sm90a, "tiny").kernels;
    few.retain(|k| {
        let n = taken.entry(k.family().to_string()).or_default();
        *n += 1;
        *n <= 3
    });
    let families: Vec<&str> = taken.keys().map(String::as_str).collect();
    assert_eq!(families, ["attend", "attend_grad", "gemm", "quantile", "row", "scatter"]);
    let (one, three) = (compile(Arch::Sm90a, &few, 1), compile(Arch::Sm90a, &few, 3));
    for ((k, a), b) in few.iter().zip(&one).zip(&three) {
        assert!(a == b, "the PTX of two builds differs:\n{}", k.text());
    }
}
