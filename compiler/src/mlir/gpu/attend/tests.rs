//! Both passes on the emulator against the graph interpreter; what `ptxas` makes of them.

use crate::emulate::{Code, Options};
use crate::graph::ir::{Bits, DType, EffectMode};
use crate::kernel::attend::samples::finished;
use crate::kernel::attend::{AttendKernel, Pass, Strides};
use crate::kernel::epilogue::Epilogue;
use crate::kernel::gpu::Arch;
use crate::kernel::{Kernel, Target};
use crate::mlir::object::{self, Job};
use crate::mlir::{ptxas, tier::Tier};
use crate::schedule::trial::{Output, Trial};
use golf_runtime::trial;

/// A small form of attention.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub batch: usize,
    pub time: usize,
    pub kv: usize,
    pub group: usize,
    pub dim: usize,
    pub causal: bool,
    pub window: Option<u32>,
    pub document: bool,
}

/// Dense \[b, t, kv, g, d\] for q, \[b, kv, t, d\] for k, \[b, t, kv, 2, d\] with v second.
pub(crate) fn kernel(c: Case, pass: Pass) -> Kernel {
    let (t, kv, g, d) = (c.time as i64, c.kv as i64, c.group as i64, c.dim as i64);
    let q = Strides { offset: 0, batch: t * kv * g * d, time: kv * g * d, kv: g * d, group: d };
    let k = Strides { offset: 0, batch: kv * t * d, time: d, kv: t * d, group: 0 };
    let v = Strides { offset: d, batch: t * kv * 2 * d, time: kv * 2 * d, kv: 2 * d, group: 0 };
    let none = Strides { offset: 0, batch: 0, time: 0, kv: 0, group: 0 };
    let back = pass == Pass::Backward;
    let (dy, dq, dk, dv) = if back { (q, q, k, v) } else { (none, none, none, none) };
    Kernel::Attend(AttendKernel {
        pass,
        batch: c.batch,
        time: c.time,
        kv: c.kv,
        group: c.group,
        dim: c.dim,
        dtype: DType::Bf16,
        scale: Bits::new(1.0 / (c.dim as f64).sqrt()),
        causal: c.causal,
        window: c.window,
        document: c.document,
        q,
        k,
        v,
        y: q,
        epilogue: None,
        dy,
        dq,
        dk,
        dv,
    })
}

const ONE: Case = Case { batch: 1, time: 61, kv: 1, group: 1, dim: 64, causal: true, window: None, document: false };

/// The second and third go around every ring; the fourth begins inside a tile; the last have padded heads of one and two panels.
const CASES: [Case; 10] = [
    Case { group: 2, ..ONE },
    Case { time: 520, ..ONE },
    Case { time: 270, dim: 128, ..ONE },
    Case { time: 260, window: Some(70), ..ONE },
    Case { batch: 2, time: 130, kv: 2, dim: 24, causal: false, ..ONE },
    Case { time: 1, dim: 8, ..ONE },
    Case { kv: 2, dim: 32, ..ONE },
    Case { time: 70, group: 2, dim: 48, ..ONE },
    Case { kv: 2, dim: 80, ..ONE },
    Case { time: 70, group: 2, dim: 96, ..ONE },
];

/// Tiles left out at both ends and in the middle; every other mask beside this one; rows behind the end.
const DOCUMENTS: [Case; 4] = [
    Case { time: 520, document: true, ..ONE },
    Case { batch: 2, time: 270, group: 2, window: Some(70), document: true, ..ONE },
    Case { batch: 2, time: 300, dim: 128, document: true, ..ONE },
    Case { batch: 2, time: 400, kv: 2, dim: 24, causal: false, document: true, ..ONE },
];

/// Copies and products at once and as late as possible: right, and the same bits.
fn emulated(arch: Arch, kernel: &Kernel, seed: u64) {
    let trial = Trial::new(kernel, seed).unwrap();
    let code = Code::of(kernel, arch).unwrap_or_else(|r| panic!("{r}"));
    let run = |seed, lazy| {
        let mut args = trial.args.clone();
        let options = Options { seed, lazy, ..Options::default() };
        code.run(kernel, &mut args, &options).unwrap_or_else(|r| panic!("{r}\n{}", kernel.text()));
        args
    };
    let args = run(0, false);
    trial.compare(&args).unwrap_or_else(|e| panic!("{e}\n{}", kernel.text()));
    let lse = |arg: usize| matches!(kernel, Kernel::Attend(k) if k.pass == Pass::Forward && k.lse() == arg);
    for o in &trial.outputs {
        let bound = if lse(o.arg) { 1e-6 } else { 5e-3 };
        assert!(difference(o, &args[o.arg]) <= bound, "argument {} of\n{}", o.arg, kernel.text());
    }
    assert!(run(6 + seed, true) == args, "results depend on the order of threads:\n{}", kernel.text());
}

/// Norm of the error in units of the norm.
fn difference(o: &Output, got: &[u8]) -> f64 {
    let read = |b: &[u8]| -> Vec<f64> {
        let width = o.dtype.bytes();
        b.chunks(width).map(|x| trial::element(o.dtype, x)).map(|x| if x.is_nan() { 0.0 } else { x }).collect()
    };
    let (want, got) = (read(&o.expected), read(got));
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut want.iter().zip(&got).map(|(a, b)| a - b));
    if error == 0.0 { 0.0 } else { error / norm(&mut want.iter().copied()) }
}

#[test]
fn forward_in_the_emulator() {
    for arch in Arch::ALL {
        CASES.into_iter().zip(1..).for_each(|(c, seed)| emulated(arch, &kernel(c, Pass::Forward), seed));
    }
}

#[test]
fn backward_in_the_emulator() {
    for arch in Arch::ALL {
        CASES.into_iter().zip(1..).for_each(|(c, seed)| emulated(arch, &kernel(c, Pass::Backward), seed));
    }
}

/// Ids in order (even seeds of a trial) and out of order.
#[test]
fn documents_in_the_emulator() {
    for c in DOCUMENTS {
        for pass in [Pass::Forward, Pass::Backward] {
            for seed in [2, 3] {
                Arch::ALL.into_iter().for_each(|arch| emulated(arch, &kernel(c, pass), seed));
            }
        }
    }
}

/// A forward pass that finishes its rows.
pub(crate) fn finishing(c: Case, all: bool) -> Kernel {
    let Kernel::Attend(k) = kernel(c, Pass::Forward) else { unreachable!() };
    Kernel::Attend(finished(k, all))
}

/// Every width with every form of mask; of some only the last result is stored, of others all.
#[test]
fn epilogues_in_the_emulator() {
    let some = [CASES[0], CASES[2], CASES[3], CASES[4], CASES[7], CASES[9], DOCUMENTS[1], DOCUMENTS[2]];
    for arch in Arch::ALL {
        for (c, seed) in some.into_iter().zip(1..) {
            emulated(arch, &finishing(c, seed % 2 == 0), seed);
        }
    }
}

fn ptx(arch: Arch, kernel: &Kernel) -> String {
    let jobs = [Job { kernel: kernel.clone(), tier: Tier::Gpu(arch) }];
    let (mut all, _) = object::compile(&jobs, &object::Options { threads: 1, cache: None }).expect("compiles");
    String::from_utf8(all.remove(0)).expect("ptx is text")
}

/// Both head widths: products on tensor cores, nothing spilled, no products waited for one by one. Needs the assembler.
#[test]
fn ptxas_finds_nothing_to_say() {
    let Some(assembler) = ptxas::find() else {
        eprintln!("skipped: no ptxas (GOLF_PTXAS or the PATH)");
        return;
    };
    let forms = [(64, false), (128, false), (64, true), (128, true)];
    for (arch, (dim, document)) in Arch::ALL.into_iter().flat_map(|arch| forms.map(|form| (arch, form))) {
        let c = Case { batch: 4, time: 2048, kv: 4, group: 2, dim, document, ..ONE };
        for kernel in [kernel(c, Pass::Forward), kernel(c, Pass::Backward), finishing(c, false), finishing(c, true)] {
            let report = ptxas::assemble(&assembler, &ptx(arch, &kernel)).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(report.kernels.len(), Target::Gpu(arch).launches(&kernel).len());
            for (name, usage) in &report.kernels {
                assert_eq!(
                    (usage.spills, usage.stack),
                    (0, 0),
                    "{name}, {arch:?}, head dimension {dim}, documents: {document}"
                );
            }
            // C7519 is a fence put before the first product, outside the loop.
            let remarks: Vec<_> = report.remarks.iter().filter(|r| !r.contains("C7519")).collect();
            assert!(remarks.is_empty(), "{arch:?}: {remarks:?}\n{}", kernel.text());
        }
    }
}

#[test]
fn instructions() {
    let text = ptx(Arch::Sm90a, &kernel(CASES[0], Pass::Forward));
    for i in [
        "wgmma.mma_async.sync.aligned.m64n128k16",
        "wgmma.mma_async.sync.aligned.m64n64k16",
        "cp.async.bulk.tensor.3d.shared::cluster.global",
        "setmaxnreg.inc.sync.aligned.u32",
        "stmatrix",
        "cp.async.bulk.tensor.3d.global.shared::cta",
    ] {
        assert!(text.contains(i), "no {i}");
    }
    assert!(!text.contains("__nv_"), "no library");
}

#[test]
fn instructions_of_warps() {
    let text = ptx(Arch::Sm80, &kernel(CASES[0], Pass::Forward));
    for i in
        ["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "ldmatrix.sync.aligned.m8n8.x4.trans", "cp.async.cg"]
    {
        assert!(text.contains(i), "no {i}");
    }
    assert!(!text.contains("__nv_") && !text.contains("mbarrier"), "{text}");
}

#[test]
fn unsupported_forms_say_so() {
    let refusal = |change: &dyn Fn(&mut AttendKernel)| {
        let Kernel::Attend(mut k) = kernel(CASES[0], Pass::Backward) else { unreachable!() };
        change(&mut k);
        Target::Gpu(Arch::Sm90a).check(&Kernel::Attend(k)).expect_err("refused")
    };
    assert!(refusal(&|k| k.dtype = DType::F32).contains("--precision bf16"));
    assert!(refusal(&|k| k.dim = 136).contains("up to 128, found 136"));
    assert!(refusal(&|k| k.dim = 12).contains("multiples of 8"));
    assert!(refusal(&|k| k.scale = Bits::new(-1.0)).contains("positive scale"));
    assert!(refusal(&|k| k.dy.time = 129).contains("rows of dy at multiples of 16 bytes"));
    let refusal = |change: &dyn Fn(&mut Epilogue)| {
        let Kernel::Attend(mut k) = finishing(CASES[0], false) else { unreachable!() };
        k.epilogue.iter_mut().for_each(|p| change(p));
        Target::Gpu(Arch::Sm80).check(&Kernel::Attend(k)).expect_err("refused")
    };
    assert!(refusal(&|p| p.args[0].m = 68).contains("rows at multiples of 8 elements"));
    assert!(refusal(&|p| p.args[2].offset = 1).contains("rows at multiples of 2 elements"));
    assert!(refusal(&|p| p.args[3].m = 0).contains("every position"));
    assert!(refusal(&|p| p.body.effects[0].mode = EffectMode::Accumulate).contains("every position"));
}
