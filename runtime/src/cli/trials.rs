//! The executable of `golfc --emit-check`: tries kernels on the GPU of the machine.
//!
//! *Takes* packed [`Trials`] and the command line; *gives* a line per kernel, a summary, and the exit code: 0 all right, 1 some wrong, 2 usage, 3 no fitting
//! GPU; *promises* that a kernel which kills or blocks the device costs no other its trial: the work is done by child processes, and the next
//! one goes on after the kernel at which the last one ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use clap::Parser;
use serde::{Deserialize, Serialize};

use crate::device::cuda::{Gpu, leave, progress};
use crate::device::trials::{Failure, Outcome, attempt};
use crate::error::{Error, Result};
use crate::report::output;
use crate::trial::Trials;

/// For a child that says nothing: assembling all kernels included.
const SILENCE: Duration = Duration::from_secs(120);
/// Children that may be lost.
const LOSSES: usize = 60;

/// Tries kernels on this machine's GPU against expectations computed in f64 when this executable was made
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Args {
    /// GPU number
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Only kernels whose name or family contains this; may be given more than once
    #[arg(long)]
    only: Vec<String>,
    /// Leaves out that many kernels at the start
    #[arg(long, default_value_t = 0)]
    skip: usize,
    /// Only failures and the summary
    #[arg(long)]
    quiet: bool,
    /// Seconds that a kernel may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    limit: f64,
    /// List the kernels instead
    #[arg(long)]
    list: bool,
    /// At work for a parent, from this trial on
    #[arg(long, hide = true)]
    from: Option<usize>,
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|s| (0.001..1e6).contains(s)).ok_or("expected seconds".into())
}

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// The device.
    On(String),
    Starts(usize),
    Right(usize, Outcome),
    Wrong(usize, String),
    Lost(usize, String),
    /// Nothing can be tried here: the message.
    Nothing(String),
    End,
}

/// Runs the command in `args` (the first is the executable's own name). `child` makes the command that does the work from a trial on.
pub fn main(args: Vec<OsString>, load: impl FnOnce() -> Result<Trials>, child: &dyn Fn(&[String]) -> Command) -> i32 {
    let run = || -> Result<i32> {
        let args = match Args::try_parse_from(args) {
            Ok(args) => args,
            Err(e) if !e.use_stderr() => return output::text(&e.render().to_string()).map(|()| 0),
            Err(e) => return Err(Error::usage(e.render().to_string().trim_start_matches("error: ").trim_end())),
        };
        let trials = check(load()?)?;
        match args.from {
            Some(from) => work(&args, &trials, from).map(|()| 0),
            None => supervise(&args, &trials, child),
        }
    };
    run().unwrap_or_else(|e| {
        output::warn(&format!("error: {e}"));
        e.exit_code()
    })
}

/// Error (exit 1): a number is out of range, so the executable is damaged.
fn check(trials: Trials) -> Result<Trials> {
    let sound = trials.trials.iter().all(|t| {
        let n = t.arguments.len();
        let calls = t.calls.iter().all(|c| {
            c.args.iter().all(|&a| (a as usize) < n) && c.grid.maps.iter().all(|m| (m.arg as usize) < c.args.len())
        });
        calls && t.expected.iter().all(|e| (e.arg as usize) < n)
    });
    if sound { Ok(trials) } else { Err(Error::input("the trials inside this executable are damaged")) }
}

fn chosen(args: &Args, trials: &Trials) -> Vec<usize> {
    let fits = |i: &usize| {
        let t = &trials.trials[*i];
        args.only.is_empty() || args.only.iter().any(|n| t.name.contains(n) || t.family.contains(n))
    };
    (args.skip..trials.trials.len()).filter(fits).collect()
}

/// The child's part: trials `from..` in order, a line of JSON each.
fn work(args: &Args, trials: &Trials, from: usize) -> Result<()> {
    let say = |said: &Said| output::line(&serde_json::to_string(said).unwrap_or_default());
    let open = || -> Result<Gpu> {
        let gpu = Gpu::open(args.device)?;
        gpu.fits(&trials.device)?;
        Ok(gpu)
    };
    let gpu = match open() {
        Ok(gpu) => gpu,
        Err(e) => return say(&Said::Nothing(e.to_string())),
    };
    say(&Said::On(gpu.describe()))?;
    let mine: Vec<usize> = chosen(args, trials).into_iter().filter(|&i| i >= from).collect();
    // Only the code that is still needed.
    let needed = |m: u32| mine.iter().any(|&i| trials.trials[i].calls.iter().any(|c| c.grid.module == m));
    let kept: Vec<usize> = (0..trials.modules.len()).filter(|&m| needed(m as u32)).collect();
    let texts: Vec<&str> = kept.iter().map(|&m| trials.modules[m].as_str()).collect();
    let loaded = match gpu.load_each(&texts, &mut progress(gpu.name())) {
        Ok(loaded) => loaded,
        Err(e) => return say(&Said::Nothing(e.to_string())),
    };
    let mut modules: Vec<_> = trials.modules.iter().map(|_| Err(Error::input("not loaded"))).collect();
    kept.into_iter().zip(loaded).for_each(|(m, l)| modules[m] = l);
    let limit = Duration::from_secs_f64(args.limit);
    for i in mine {
        say(&Said::Starts(i))?;
        match attempt(&gpu, &trials.trials[i], &modules, limit) {
            Ok(outcome) => say(&Said::Right(i, outcome))?,
            Err(Failure::Wrong(why)) => say(&Said::Wrong(i, why))?,
            Err(Failure::Lost(why)) => {
                say(&Said::Lost(i, why))?;
                leave(0);
            }
        }
    }
    say(&Said::End)
}

/// Results so far.
#[derive(Default)]
struct Tally {
    quiet: bool,
    failed: Vec<String>,
    families: BTreeMap<String, (usize, usize, f64, f64)>,
}

impl Tally {
    fn add(&mut self, trials: &Trials, i: usize, result: Result<Outcome, String>) -> Result<()> {
        let t = &trials.trials[i];
        let family = self.families.entry(t.family.clone()).or_default();
        family.1 += 1;
        match result {
            Ok(o) => {
                family.0 += 1;
                family.2 = family.2.max(o.worst);
                family.3 += o.ms;
                if self.quiet {
                    return Ok(());
                }
                let seconds = o.ms.max(1e-6) / 1e3;
                let (gflops, gbytes) = (t.flops as f64 / seconds / 1e9, t.bytes as f64 / seconds / 1e9);
                output::line(&format!(
                    "ok      {:<28} worst {:>5.2}  {:>9.1} us {gflops:>9.0} GFLOP/s {gbytes:>7.0} GB/s  {}",
                    t.name,
                    o.worst,
                    o.ms * 1e3,
                    t.what
                ))
            }
            Err(why) => {
                let line = format!("FAILED  {:<28} {why}\n        {}", t.name, t.what);
                self.failed.push(line.clone());
                output::line(&line)
            }
        }
    }

    fn summary(&self) -> Result<i32> {
        output::line("")?;
        for (name, (right, all, worst, ms)) in &self.families {
            output::line(&format!(
                "{name:<12} {right:>4} of {all} right, worst {worst:.2} of what is allowed, {ms:.3} ms"
            ))?;
        }
        for line in &self.failed {
            output::line(line)?;
        }
        let (right, all) = self.families.values().fold((0, 0), |(a, b), f| (a + f.0, b + f.1));
        output::line(&format!("{right} of {all} kernels right"))?;
        Ok(i32::from(right < all))
    }
}

/// Starts children until every trial has had its turn.
fn supervise(args: &Args, trials: &Trials, child: &dyn Fn(&[String]) -> Command) -> Result<i32> {
    let all = chosen(args, trials);
    output::line(&format!("{} kernels of {} for {}", all.len(), trials.program, trials.device))?;
    if args.list {
        for &i in &all {
            let t = &trials.trials[i];
            output::line(&format!("{:<12} {:<28} {}", t.family, t.name, t.what))?;
        }
        return Ok(0);
    }
    let mut tally = Tally { quiet: args.quiet, ..Tally::default() };
    let mut introduced = false;
    let (mut next, mut losses) = (0, 0);
    while all.iter().any(|&i| i >= next) {
        let mut flags =
            vec![format!("--from={next}"), format!("--device={}", args.device), format!("--limit={}", args.limit)];
        flags.extend(args.only.iter().map(|n| format!("--only={n}")));
        let mut process = child(&flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::machine(format!("cannot start a process: {e}")))?;
        let stdout = process.stdout.take();
        let (send, receive) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|o| BufReader::new(o).lines()).map_while(|l| l.ok()) {
                // Other words may stand before or between.
                let said =
                    line.find('{').or(line.find('"')).and_then(|at| serde_json::from_str::<Said>(&line[at..]).ok());
                if said.is_some_and(|s| send.send(s).is_err()) {
                    return;
                }
            }
        });
        let (mut at, mut ended) = (None, None);
        loop {
            match receive.recv_timeout(SILENCE) {
                Ok(Said::On(device)) if introduced => drop(device),
                Ok(Said::On(device)) => {
                    output::line(&format!("on {device}"))?;
                    introduced = true;
                }
                Ok(Said::Starts(i)) => at = Some(i),
                Ok(Said::Right(i, outcome)) => {
                    tally.add(trials, i, Ok(outcome))?;
                    (at, next) = (None, i + 1);
                }
                Ok(Said::Wrong(i, why)) => {
                    tally.add(trials, i, Err(why))?;
                    (at, next) = (None, i + 1);
                }
                Ok(Said::Lost(_, why)) => ended = Some(why),
                Ok(Said::Nothing(why)) => return Err(Error::machine(why)),
                Ok(Said::End) => next = trials.trials.len(),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    ended = Some(format!("the process said nothing for {SILENCE:?}"));
                    let _ = process.kill();
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = process.wait().map_err(|e| Error::machine(format!("waiting for a process: {e}")))?;
        let _ = reader.join();
        if next < trials.trials.len() {
            let why = ended.unwrap_or_else(|| format!("the process ended: {status}"));
            let Some(i) = at.or(all.iter().copied().find(|&i| i >= next)) else { break };
            tally.add(trials, i, Err(why))?;
            (next, losses) = (i + 1, losses + 1);
            if losses > LOSSES {
                return Err(Error::machine("the GPU was lost too often: given up"));
            }
        }
    }
    tally.summary()
}
