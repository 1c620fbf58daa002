//! The command line of an executable made by `golfc --emit-check`: tries kernels on a GPU.
//!
//! *Takes* the arguments and the [`Trials`]; *gives* one line per kernel and the exit code (0 all passed, 1 a kernel is wrong, 2 usage, 3 the
//! machine); *promises* that every kernel runs twice on fresh memory, must give what the f64 reference gave within its tolerance, and the same bits
//! both times.

use std::ffi::OsString;

use clap::Parser;

use crate::device::cuda::{Allocation, Gpu, Launch, Module};
use crate::error::{Error, Result};
use crate::report::output;
use crate::trial::{Trial, Trials};

/// Tries every kernel of a program where it runs, against the f64 reference.
#[derive(Parser)]
#[command(name = "check")]
struct Cli {
    /// Number of the GPU.
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Only kernels whose name or family contains this.
    #[arg(long)]
    only: Option<String>,
    /// Leaves out that many kernels at the start.
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Timed runs per kernel; the shortest is shown.
    #[arg(long, default_value_t = 5)]
    repeat: u32,
    /// Only failures and the summary.
    #[arg(long)]
    quiet: bool,
}

/// Runs the command line. Gives the exit code.
pub fn main(args: Vec<OsString>, load: impl FnOnce() -> Result<Trials>) -> i32 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return if e.use_stderr() { 2 } else { 0 };
        }
    };
    let done = load().and_then(|trials| all(&cli, &trials));
    match done {
        Ok(0) => 0,
        Ok(_) => 1,
        Err(Error::Closed) => 0,
        Err(e) => {
            output::warn(&format!("error: {e}"));
            e.exit_code()
        }
    }
}

/// Runs all; gives the number that failed.
fn all(cli: &Cli, trials: &Trials) -> Result<usize> {
    let gpu = Gpu::open(cli.device)?;
    gpu.fits(&trials.device)?;
    output::text(&format!("{} kernels of {} on {}\n", trials.trials.len(), trials.program, gpu.describe()))?;
    let texts: Vec<&str> = trials.modules.iter().map(String::as_str).collect();
    let modules = gpu.load_all(&texts, &mut |_, _| ())?;
    let wanted = |t: &Trial| cli.only.as_ref().is_none_or(|w| t.name.contains(w) || t.family.contains(w));
    let (mut passed, mut failed) = (0, 0);
    for (i, trial) in trials.trials.iter().enumerate().skip(cli.skip).filter(|(_, t)| wanted(t)) {
        let broken = |e: Error| Error::machine(format!("{e} (kernel number {i}: --skip {} goes on after it)", i + 1));
        match one(cli, &gpu, &modules, trial).map_err(broken)? {
            Ok((worst, micros)) => {
                passed += 1;
                let rate = |n: u64| n as f64 / micros / 1e3;
                if !cli.quiet {
                    output::text(&format!(
                        "ok     {:<30} {worst:5.2} of tolerance {micros:9.1} us {:9.1} GFLOP/s {:8.1} GB/s  {}\n",
                        trial.name,
                        rate(trial.flops),
                        rate(trial.bytes),
                        trial.what
                    ))?;
                }
            }
            Err(why) => {
                failed += 1;
                output::text(&format!("FAILED {:<30} {why}  {}\n", trial.name, trial.what))?;
            }
        }
    }
    output::text(&format!("{passed} passed, {failed} failed\n"))?;
    Ok(failed)
}

/// Worst difference in units of the tolerance and microseconds, or what is wrong. The outer error ends everything: a kernel that breaks the device's
/// context leaves nothing to go on with.
fn one(cli: &Cli, gpu: &Gpu, modules: &[Module], trial: &Trial) -> Result<std::result::Result<(f64, f64), String>> {
    let named = |e: Error| Error::machine(format!("{}: {e}", trial.name));
    let mut memory: Vec<Allocation> = Vec::new();
    for a in &trial.arguments {
        let bytes = a.elements * a.dtype.bytes() as u64;
        memory.push(gpu.alloc(bytes)?.ok_or_else(|| Error::machine(format!("{bytes} bytes of GPU memory refused")))?);
    }
    let contents: Vec<Vec<u8>> = trial.arguments.iter().enumerate().map(|(i, a)| a.bytes(trial.seed, i)).collect();
    let fresh = || -> Result<()> { memory.iter().zip(&contents).try_for_each(|(to, bytes)| gpu.upload(to, 0, bytes)) };
    let launch = |c: &crate::trial::Call| -> Result<Launch> {
        let function = modules[c.grid.module as usize].function(&c.symbol, c.grid.threads, c.grid.shared)?;
        let pointers: Vec<u64> = c.args.iter().map(|a| memory[*a as usize].address()).collect();
        let maps = c.grid.maps.iter().map(|m| gpu.map(m, pointers[m.arg as usize])).collect::<Result<_>>()?;
        Ok(Launch { function, blocks: c.blocks, threads: c.grid.threads, shared: c.grid.shared, pointers, maps })
    };
    let launches = trial.calls.iter().map(launch).collect::<Result<Vec<_>>>().map_err(named)?;
    let run = || launches.iter().try_for_each(|l| gpu.launch(l));
    let mut results: Vec<Vec<Vec<u8>>> = Vec::new();
    for _ in 0..2 {
        fresh()?;
        run().and_then(|()| gpu.synchronize()).map_err(named)?;
        let read = |e: &crate::trial::Expected| {
            let mut out = vec![0; contents[e.arg as usize].len()];
            gpu.download(&memory[e.arg as usize], 0, &mut out).map(|()| out)
        };
        results.push(trial.expected.iter().map(read).collect::<Result<_>>()?);
    }
    let mut worst: f64 = 0.0;
    for (e, after) in trial.expected.iter().zip(&results[0]) {
        match e.compare(trial.arguments[e.arg as usize].dtype, after) {
            Ok(off) => worst = worst.max(off),
            Err(why) => return Ok(Err(why)),
        }
    }
    if results[0] != results[1] {
        return Ok(Err("two runs gave different bits".to_string()));
    }
    let mut best = f64::INFINITY;
    for _ in 0..cli.repeat {
        best = best.min(gpu.time(run)?);
    }
    Ok(Ok((worst, best * 1e3)))
}
