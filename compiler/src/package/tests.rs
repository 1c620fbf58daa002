//! The whole way from a plan to a running process, with a program of one kernel.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use golf_runtime::plan::{
    self, Buffer, Call, Evaluate, GraphPlan, HostExpr, HostOp, PLAN_VERSION, Place, Program, Quantize, Segment, Train,
    Variant,
};

use super::link;
use crate::graph::build::Builder;
use crate::graph::ir::{AxisRole, BufferKind, DType};
use crate::kernel::Kernel;
use crate::kernel::epilogue::EpilogueArg;
use crate::kernel::gemm::{Gemm, Operand};
use crate::mlir::object::Options;

/// `y = a b` of 4 x 4 matrices.
fn kernel(compute: DType) -> Kernel {
    let mut b = Builder::new("copy", DType::F32);
    let axes = ["m", "n"].map(|name| b.axis(name, 4, AxisRole::Plain).expect("axis"));
    let acc = b.buffer("acc", DType::F32, &axes, BufferKind::Input).expect("buffer");
    let out = b.buffer("out", DType::F32, &axes, BufferKind::Output).expect("buffer");
    let sum = b.read(acc).expect("read");
    b.assign(out, sum).expect("effect");
    let operand = Operand { dtype: DType::F32, offset: 0, row: 4, k: 1, batch: vec![] };
    Kernel::Gemm(Gemm {
        batch: vec![],
        m: 4,
        n: 4,
        k: 4,
        a: operand.clone(),
        b: operand,
        compute,
        symmetric: false,
        accumulate: false,
        epilogue: b.finish(),
        args: vec![EpilogueArg { offset: 0, batch: vec![], m: 4, n: 1 }],
        cut: None,
        library: false,
    })
}

fn variant(kernel: &Kernel) -> Variant {
    let place = |offset| Place { segment: Segment::Scratch, offset };
    let buffer = |name: &str, dtype, shape: &[usize], offset| Buffer {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
        place: place(offset),
    };
    let (i, f) = (plan::DType::I32, plan::DType::F32);
    let launches = kernel.launches();
    let call = |(k, l): (usize, &crate::kernel::Launch)| Call {
        kernel: k as u32,
        tasks: l.tasks,
        args: l.args.iter().map(|_| place(4096)).collect(),
        after: vec![],
    };
    let graph = |name: &str| GraphPlan {
        name: name.into(),
        calls: launches.iter().enumerate().map(call).collect(),
        inputs: vec![buffer("tokens", i, &[1, 4], 0), buffer("targets", i, &[1, 4], 64), buffer("scale", f, &[], 128)],
        outputs: vec![buffer("nll", f, &[1, 4], 192)],
        scratch: 1 << 16,
    };
    let kernels = launches
        .iter()
        .map(|l| plan::Kernel {
            symbol: format!("{}_{}", kernel.symbol(), l.entry),
            family: kernel.family().into(),
            flops: l.flops,
            bytes: l.bytes,
            scratch: l.scratch,
            builtin: None,
            product: None,
            gpu: None,
        })
        .collect();
    Variant {
        precision: "f32".into(),
        device: "cpu".into(),
        rows: plan::Rows { train: 1, score: 1, adapt: 1, calibrate: 0 },
        modules: vec![],
        state: vec![],
        state_init: vec![],
        state_bytes: 0,
        grads: vec![],
        grad_bytes: 0,
        constants: vec![],
        params: vec![],
        kernels,
        graphs: ["train.micro", "train.update", "score"].map(graph).to_vec(),
    }
}

fn program(kernel: &Kernel) -> Program {
    let one = || HostExpr { ops: vec![HostOp::Const(1.0)] };
    Program {
        version: PLAN_VERSION,
        name: "fourbyfour".into(),
        source: "# nothing\n".into(),
        prelude: String::new(),
        overrides: vec![],
        vocab: 4,
        golfc: "test".into(),
        glibc: super::glibc(),
        techniques: vec![],
        predicted_rss: vec![1 << 20],
        flops_per_token: 1,
        tiers: crate::mlir::tier::Tier::ALL.map(|t| plan::Tier { name: t.name().into() }).to_vec(),
        variants: vec![variant(kernel)],
        train: Train {
            data: "train_*.bin".into(),
            ranks: 1,
            batch: 4,
            seq: 4,
            stop: 1.0,
            iterations: 1,
            schedule: one(),
            hypers: vec![],
            averages: vec![],
        },
        quantize: Quantize { params: vec![], codec: "zstd".into(), level: 3, cap: 1000, calibrate: None },
        evaluate: Evaluate { data: "val_*.bin".into(), window: 4, stride: 4, limit: None, adapt: None },
    }
}

fn uncached(threads: usize) -> Options {
    Options { threads, cache: None }
}

#[test]
fn an_executable_runs_in_an_empty_environment_and_needs_three_libraries() {
    let dir = tempfile::tempdir().expect("a directory");
    let kernel = kernel(DType::Bf16);
    let exe = dir.path().join("run");
    let timings = link(&program(&kernel), &[], &[kernel], &exe, &uncached(1)).expect("links");
    assert!(timings.compiled == 2 && timings.stages.contains_key("link"), "{timings:?}");
    let size = std::fs::metadata(&exe).expect("exists");
    assert!(size.len() < 30_000_000 && size.permissions().mode() & 0o111 != 0, "{size:?}");
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    let output = Command::new(&exe).arg("info").env_clear().current_dir(&empty).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("fourbyfour"), "{output:?}");
    let ldd = Command::new("ldd").arg(&exe).output().expect("ldd runs");
    let text = String::from_utf8_lossy(&ldd.stdout).into_owned();
    let allowed = ["linux-vdso", "libc.so", "libm.so", "libgcc_s.so", "ld-linux"];
    assert!(text.lines().all(|l| allowed.iter().any(|a| l.contains(a))), "{text}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("reads").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 2, "temporary files left: {left:?}");
}

#[test]
fn the_same_program_gives_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a directory");
    let kernel = kernel(DType::Bf16);
    let cache = dir.path().join("cache");
    let mut all = Vec::new();
    let mut make = |name: &str, options: &Options, cached: usize| {
        let place = dir.path().join(name);
        std::fs::create_dir_all(&place).expect("a directory");
        let exe = place.join(format!("{name}.out"));
        let timings = link(&program(&kernel), &[], &[kernel.clone(), kernel.clone()], &exe, options).expect("links");
        assert_eq!((timings.cached, timings.compiled), (cached, 2 - cached), "{name}");
        all.push(std::fs::read(&exe).expect("reads"));
    };
    make("one", &uncached(1), 0);
    make("two", &uncached(2), 0);
    let with_cache = Options { threads: 2, cache: Some(cache.clone()) };
    make("cold", &with_cache, 0);
    make("warm", &with_cache, 2);
    // One entry shortened, the other with a flipped bit.
    let entries: Vec<_> = std::fs::read_dir(&cache).expect("reads").map(|e| e.expect("entry").path()).collect();
    assert_eq!(entries.len(), 2);
    for (i, entry) in entries.iter().enumerate() {
        let mut bytes = std::fs::read(entry).expect("reads");
        if i == 0 {
            bytes.truncate(100);
        } else {
            bytes[200] ^= 1;
        }
        std::fs::write(entry, bytes).expect("writes");
    }
    make("damaged", &with_cache, 0);
    make("repaired", &with_cache, 2);
    assert!(all.iter().all(|b| *b == all[0]));
}

#[test]
fn failures_name_their_cause_and_leave_the_old_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = super::run_linker(dir.path(), "/nonexistent/cc".as_ref()).expect_err("no such driver");
    assert!(missing.exit_code() == 3 && missing.to_string().contains("install a C compiler"), "{missing}");
    let nothing = super::run_linker(dir.path(), "cc".as_ref()).expect_err("nothing to link");
    assert!(nothing.exit_code() == 3 && nothing.to_string().contains("failed to link"), "{nothing}");
    let old = dir.path().join("old");
    std::fs::write(&old, "old").expect("writes");
    let broken = super::link_objects(&[b"not an object".to_vec()], b"!<arch>\n", &old).expect_err("does not link");
    assert_eq!(broken.exit_code(), 3, "{broken}");
    assert_eq!(std::fs::read(&old).expect("reads"), b"old");
    let kernel = kernel(DType::F32);
    let nowhere = dir.path().join("no/such/directory/run");
    let error =
        link(&program(&kernel), &[], std::slice::from_ref(&kernel), &nowhere, &uncached(1)).expect_err("no directory");
    assert!(error.exit_code() == 1 && error.to_string().contains("no/such/directory"), "{error}");
    let error = link(&program(&kernel), &[], &[], Path::new("x"), &uncached(1)).expect_err("a kernel is missing");
    assert!(error.to_string().contains("which no kernel defines"), "{error}");
}
