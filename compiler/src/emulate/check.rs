//! Kernels against their descriptions.
//!
//! *Takes* a kernel, or all of a program; *gives* the largest error of its emulated GPU code on random arguments, in units of what is allowed; *promises*
//! that the code ran with copies and products at once and as late as possible, with threads in different orders, and gave the same bits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{Code, Options};
use crate::kernel::gpu::Arch;
use crate::kernel::{Kernel, Target, gpu};
use crate::schedule::trial::{self, Trial};

/// Compares a kernel's emulated GPU code with its reference. Gives the largest difference in units of the tolerance (at most 1).
pub fn check(kernel: &Kernel, arch: Arch, seed: u64) -> Result<f64, String> {
    let trial = Trial::new(kernel, seed)?;
    compare((kernel, arch), &trial, seed, Options::default().workers)
}

fn compare((kernel, arch): (&Kernel, Arch), trial: &Trial, seed: u64, workers: usize) -> Result<f64, String> {
    let describe = |what: String| format!("{what}\n{}", kernel.text());
    let code = Code::of(kernel, arch).map_err(|r| describe(r.to_string()))?;
    let mut first: Option<Vec<Vec<u8>>> = None;
    let mut worst = 0f64;
    for (order, lazy) in [(0, false), (2 * seed + 1, true)] {
        let options = Options { seed: order, lazy, workers };
        let mut args = trial.args.clone();
        code.run(kernel, &mut args, &options).map_err(|r| describe(format!("{r}\n  ({options:?})")))?;
        let error = trial.compare(&args).map_err(|what| describe(format!("{what}\n  ({options:?})")))?;
        worst = worst.max(error);
        match &first {
            None => first = Some(args),
            Some(earlier) if *earlier != args => {
                return Err(describe(format!("results differ from those in another order\n  ({options:?})")));
            }
            Some(_) => {}
        }
    }
    Ok(worst)
}

/// What became of a kernel, as a line; true: it is wrong.
fn line(kernel: &Kernel, arch: Arch) -> (String, bool) {
    let symbol = format!("{} {}", arch.name(), kernel.symbol());
    if let Err(why) = gpu::check(arch, kernel) {
        return (format!("{symbol}: wrong: {why}"), true);
    }
    if Target::Gpu(arch).product(kernel).is_some() {
        return (format!("{symbol}: not checked, cuBLASLt does it"), false);
    }
    let work: u64 = gpu::launches(arch, kernel).iter().map(|l| l.flops.max(l.bytes)).sum();
    if work > trial::limit(kernel) {
        return (
            format!("{symbol}: not checked, {} million operations are too many to emulate", work / 1_000_000),
            false,
        );
    }
    match Trial::new(kernel, 1) {
        Err(why) => (format!("{symbol}: not checked, {why}"), false),
        Ok(trial) => match compare((kernel, arch), &trial, 1, 1) {
            Ok(error) => (format!("{symbol}: right, largest error {error:.3} of what is allowed"), false),
            Err(what) => (format!("{symbol}: wrong: {what}"), true),
        },
    }
}

/// Checks kernels, several at a time; `report` gets a line for each, in order. Kernels that are too large to emulate are
/// passed over and said to be. Error: how many are wrong.
pub fn check_program(kernels: &[(&Kernel, Arch)], report: &mut dyn FnMut(&str)) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let (send, receive) = mpsc::channel();
    let mut wrong = 0;
    std::thread::scope(|scope| {
        for _ in 0..Options::default().workers.clamp(1, kernels.len().max(1)) {
            let (send, next) = (send.clone(), &next);
            scope.spawn(move || {
                loop {
                    let position = next.fetch_add(1, Ordering::Relaxed);
                    let Some((kernel, arch)) = kernels.get(position) else { break };
                    // If nobody listens the result is of no use.
                    let _ = send.send((position, line(kernel, *arch)));
                }
            });
        }
        drop(send);
        let mut early = BTreeMap::new();
        let mut due = 0;
        for (position, result) in receive {
            early.insert(position, result);
            while let Some((text, bad)) = early.remove(&due) {
                report(&text);
                wrong += usize::from(bad);
                due += 1;
            }
        }
    });
    match wrong {
        0 => Ok(()),
        _ => Err(format!("{wrong} of {} GPU kernels are wrong in the emulator", kernels.len())),
    }
}
