//! Trials of kernels can fail: a kernel that does nothing passes none of them.
#![cfg(feature = "mlir")]

mod common;

use common::{S1016H, model};
use golf_compiler::driver::planned;
use golf_compiler::emulate;
use golf_compiler::graph::ir::DType;
use golf_compiler::kernel::gpu::Arch;
use golf_compiler::kernel::{Kernel, Target};
use golf_compiler::schedule::trial::Trial;
use std::sync::atomic::{AtomicUsize, Ordering};

const GPU: Target = Target::Gpu(Arch::Sm90a);

/// Overrides that make models/tiny.golf tinier.
const TINY: [&str; 4] = ["seq=64", "train.batch=128", "train.ranks=1", "evaluate.window=64"];

/// Operations, or bytes moved, of the largest kernel tried.
const WORK: u64 = 20_000_000;

/// Kernels of a program's GPU variant that are small enough to be tried often.
fn kernels(name: &str, sets: &[&str]) -> Vec<Kernel> {
    let plan = planned(&model(name, sets), GPU, DType::Bf16).unwrap_or_else(|e| panic!("{name}: {e}"));
    let work = |k: &Kernel| GPU.launches(k).iter().map(|l| l.flops.max(l.bytes)).sum::<u64>();
    plan.launched().into_iter().filter(|k| work(k) <= WORK).cloned().collect()
}

/// Does `work` for every kernel, several at a time.
fn each(kernels: &[Kernel], work: impl Fn(&Kernel) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..emulate::Options::default().workers {
            scope.spawn(|| {
                while let Some(kernel) = kernels.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(kernel);
                }
            });
        }
    });
}

#[test]
fn a_kernel_that_does_nothing_passes_no_trial() {
    let all = kernels("tiny", &TINY);
    assert!(all.len() > 150, "{} kernels", all.len());
    each(&all, |kernel| {
        let trial = Trial::new(kernel, 1).unwrap_or_else(|e| panic!("{e}\n{}", kernel.text()));
        assert!(trial.compare(&trial.args).is_err(), "nothing is enough for\n{}", kernel.text());
    });
}

/// Every family: eight seeds, copies and products at once and late, threads in order and shuffled; always right and the same bits.
#[test]
#[ignore = "minutes: make test-long"]
fn every_kernel_in_many_orders() {
    for (name, sets) in [("tiny", &TINY[..]), ("vrl11", &S1016H)] {
        let all = kernels(name, sets);
        println!("{name}: {} kernels", all.len());
        each(&all, |kernel| {
            let say = |e: String| -> Vec<Vec<u8>> { panic!("{e}\n{}", kernel.text()) };
            let code = emulate::Code::of(kernel, Arch::Sm90a).unwrap_or_else(|e| panic!("{e}\n{}", kernel.text()));
            for seed in 1..=8 {
                let trial = Trial::new(kernel, seed).unwrap_or_else(|e| panic!("{e}\n{}", kernel.text()));
                let run = |order, lazy| {
                    let mut args = trial.args.clone();
                    let options = emulate::Options { seed: order, lazy, workers: 1 };
                    match code.run(kernel, &mut args, &options) {
                        Ok(()) => args,
                        Err(report) => say(format!("{report}\n{options:?}")),
                    }
                };
                let first = run(0, false);
                trial.compare(&first).map_err(say).unwrap();
                for (order, lazy) in [(0, true), (seed, false), (100 + seed, true)] {
                    assert!(run(order, lazy) == first, "order {order}, {lazy}: other bits\n{}", kernel.text());
                }
            }
        });
    }
}
