//! Both passes on the emulator against the graph interpreter; what `ptxas` makes of them.

use crate::emulate;
use crate::graph::ir::{Bits, DType};
use crate::kernel::Kernel;
use crate::kernel::attend::{AttendKernel, Pass, Strides};
use crate::mlir::object::{self, Job, Options};
use crate::mlir::tier::Tier;

#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    time: usize,
    kv: usize,
    group: usize,
    dim: usize,
    causal: bool,
    window: Option<u32>,
}

/// Dense \[b, t, kv, g, d\] for q, \[b, kv, t, d\] for k, \[b, t, kv, 2, d\] with v second.
fn kernel(c: Case, pass: Pass) -> Kernel {
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
        document: false,
        q,
        k,
        v,
        y: q,
        dy,
        dq,
        dk,
        dv,
    })
}

const CASES: [Case; 6] = [
    Case { batch: 1, time: 61, kv: 1, group: 2, dim: 64, causal: true, window: None },
    Case { batch: 1, time: 320, kv: 1, group: 1, dim: 64, causal: true, window: None },
    Case { batch: 2, time: 140, kv: 1, group: 1, dim: 128, causal: true, window: None },
    Case { batch: 1, time: 260, kv: 1, group: 1, dim: 64, causal: true, window: Some(70) },
    Case { batch: 1, time: 130, kv: 2, group: 1, dim: 24, causal: false, window: None },
    Case { batch: 1, time: 1, kv: 1, group: 1, dim: 8, causal: true, window: None },
];

fn emulated(pass: Pass) {
    for (i, c) in CASES.into_iter().enumerate() {
        let error = emulate::check(&kernel(c, pass), 1 + i as u64).unwrap_or_else(|e| panic!("{e}"));
        assert!(error <= 1.0);
    }
}

#[test]
fn forward_in_the_emulator() {
    emulated(Pass::Forward);
}

#[test]
fn backward_in_the_emulator() {
    emulated(Pass::Backward);
}

fn ptx(kernel: &Kernel) -> String {
    let jobs = [Job { kernel: kernel.clone(), tier: Tier::Sm90a }];
    let (mut all, _) = object::compile(&jobs, &Options { threads: 1, cache: None }).expect("compiles");
    String::from_utf8(all.remove(0)).expect("ptx is text")
}

#[test]
fn dump() {
    for dim in [64, 128] {
        for pass in [Pass::Forward, Pass::Backward] {
            let c = Case { batch: 16, time: 2048, kv: 4, group: 2, dim, causal: true, window: None };
            std::fs::write(format!("/tmp/m/attend_{dim}_{pass:?}.ptx"), ptx(&kernel(c, pass))).unwrap();
        }
    }
}
