//! Kernels against their descriptions.
//!
//! *Takes* a kernel, or all of a program; *gives* the largest error of its emulated GPU code on random arguments, in units of what is allowed; *promises*
//! that the code ran with copies and products at once and as late as possible, with threads in different orders, and gave the same bits.

use super::{Code, Options};
use crate::kernel::Kernel;
use crate::schedule::trial::Trial;

/// Work of one kernel above which [`check_program`] passes it over, in floating-point operations or bytes: the emulator and the reference do
/// about a hundred million a second.
const LIMIT: u64 = 2_000_000_000;

/// Compares a kernel's emulated GPU code with its reference. Gives the largest difference in units of the tolerance (at most 1).
pub fn check(kernel: &Kernel, seed: u64) -> Result<f64, String> {
    let describe = |what: String| format!("{what}\n{}", kernel.text());
    let trial = Trial::new(kernel, seed)?;
    let code = Code::of(kernel).map_err(|r| describe(r.to_string()))?;
    let mut first: Option<Vec<Vec<u8>>> = None;
    let mut worst = 0f64;
    for (order, lazy) in [(0, false), (2 * seed + 1, true)] {
        let options = Options { seed: order, lazy, ..Options::default() };
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

/// Checks every distinct kernel of a program; `report` gets a line for each. Kernels that are too large to emulate are passed over and said to be.
/// Error: how many are wrong.
pub fn check_program(kernels: &[Kernel], report: &mut dyn FnMut(&str)) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    let mut wrong = 0;
    for kernel in kernels.iter().filter(|k| !matches!(k, Kernel::Host(_))) {
        let symbol = kernel.symbol();
        if !seen.insert(symbol.clone()) {
            continue;
        }
        let work: u64 = crate::kernel::gpu::launches(kernel).iter().map(|l| l.flops.max(l.bytes)).sum();
        if work > LIMIT {
            report(&format!("{symbol}: not checked, {} million operations are too many to emulate", work / 1_000_000));
            continue;
        }
        match check(kernel, 1) {
            Ok(error) => report(&format!("{symbol}: right, largest error {error:.3} of what is allowed")),
            Err(what) => {
                wrong += 1;
                report(&format!("{symbol}: wrong: {what}"));
            }
        }
    }
    match wrong {
        0 => Ok(()),
        _ => Err(format!("{wrong} of {} GPU kernels are wrong in the emulator", seen.len())),
    }
}
