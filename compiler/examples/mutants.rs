//! How many wrong GPU kernels the emulator notices.
//!
//! `golfc program.golf --emit graph=a.txt,grad=b.txt`, then `cargo run --example mutants -- [--step N] [--family NAME] a.txt b.txt`: every distinct kernel
//! of the graphs that is small enough is changed in one place at a time; every change that passes for right is printed, at the end the share
//! noticed.

use std::collections::BTreeSet;

use golf_compiler::emulate::mutate::survey;
use golf_compiler::graph::text::parse;
use golf_compiler::kernel::gpu::Arch;
use golf_compiler::kernel::{Kernel, Target};
use golf_compiler::schedule::{Options, schedule_with};

/// Work of the largest kernel tried, in floating-point operations: every mutant runs twice.
const LIMIT: u64 = 50_000_000;

fn main() -> Result<(), String> {
    let (mut step, mut family, mut files) = (1, None, vec![]);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--step" => step = args.next().and_then(|n| n.parse().ok()).ok_or("--step takes a number")?,
            "--family" => family = args.next(),
            _ => files.push(arg),
        }
    }
    let (mut seen, mut tried, mut missed) = (BTreeSet::new(), 0, 0);
    for file in &files {
        let text = std::fs::read_to_string(file).map_err(|e| format!("{file}: {e}"))?;
        let graph = parse(&text).map_err(|e| format!("{file}: {e:?}"))?;
        let options = Options { target: Target::Gpu(Arch::Sm90a), ..Options::default() };
        let scheduled = schedule_with(&graph, &options).map_err(|e| format!("{file}: {e:?}"))?;
        for kernel in scheduled.steps.iter().map(|s| &s.kernel) {
            let wanted = family.as_deref().is_none_or(|f| f == kernel.family()) && !matches!(kernel, Kernel::Host(_));
            let work: u64 = Target::Gpu(Arch::Sm90a).launches(kernel).iter().map(|l| l.flops).sum();
            if !wanted || work > LIMIT || !seen.insert(kernel.symbol()) {
                continue;
            }
            let found = survey(kernel, 1, step)?;
            println!("{}: {} of {} noticed", kernel.symbol(), found.tried - found.missed.len(), found.tried);
            found.missed.iter().for_each(|m| println!("  missed: {m}"));
            tried += found.tried;
            missed += found.missed.len();
        }
    }
    println!("{} of {tried} mutants noticed", tried - missed);
    Ok(())
}
