//! The command line of an executable.
//!
//! *Takes* the arguments and the program; *gives* the exit code; *promises* the contract's codes (0 done, 1 an input is wrong, 2
//! usage, 3 the machine, 130 and 143 after a signal), one clear line on standard error for a failure, and a quiet 0 when nobody
//! reads standard output any more. A panic is a bug and says so (exit code 101).

mod args;
mod bench;
mod info;
mod probe;
#[cfg(test)]
mod tests;
pub mod trials;

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use clap::{CommandFactory, FromArgMatches};

use crate::device::Code;
use crate::error::{Error, Result};
use crate::eval::command as evaluation;
use crate::exec::Session;
use crate::files::Faults;
use crate::quant::command as packing;
use crate::report::output;
use crate::run::{ARTIFACT, Run, WEIGHTS, load_weights};
use crate::signals::Signals;
use crate::train::train;

/// Runs the command in `args` (the first is the executable's own name) on the program that `load` gives. Gives the exit code.
pub fn main(args: Vec<OsString>, load: impl FnOnce() -> Result<Code>) -> i32 {
    let work = std::panic::AssertUnwindSafe(|| {
        // First, so that a closed pipe is an error of the write from the first line on.
        let signals = Signals::install()?;
        command(args, Arc::new(load()?), signals)
    });
    match std::panic::catch_unwind(work) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            if !matches!(error, Error::Closed | Error::Interrupted { .. }) {
                output::warn(&format!("error: {error}"));
            }
            error.exit_code()
        }
        Err(_) => {
            output::warn("error: this is a bug in golf's runtime; please report it with the message above");
            101
        }
    }
}

/// Parses and runs.
fn command(args: Vec<OsString>, code: Arc<Code>, signals: Signals) -> Result<()> {
    let p = &code.program;
    let about = format!(
        "{} — one language-model run, compiled by golfc {}: {} trains it, packs it under {} bytes, scores it and adapts it.",
        p.name, p.golfc, "this executable", p.quantize.cap
    );
    let mut clap = args::Cli::command().about(about).after_help(args::EXAMPLES);
    if args.len() < 2 {
        return output::text(&clap.render_long_help().to_string());
    }
    let parsed = clap.try_get_matches_from_mut(args).and_then(|m| args::Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) if !e.use_stderr() => return output::text(&e.render().to_string()),
        Err(e) => {
            let text = e.render().to_string();
            return Err(Error::usage(text.trim_start_matches("error: ").trim_end()));
        }
    };
    let faults = Faults::from_env()?;
    Cmd { code, faults, signals }.run(cli.command)
}

/// A command at work.
struct Cmd {
    code: Arc<Code>,
    faults: Faults,
    signals: Signals,
}

impl Cmd {
    fn run(self, command: args::Command) -> Result<()> {
        match command {
            args::Command::Info { source } => info::info(&self.code, source),
            args::Command::Train { device, train } => self.train(&device, &train).map(drop),
            args::Command::All { device, train, pack, score } => self.all(&device, &train, &pack, &score),
            args::Command::Pack { device, out, weights, data, pack } => {
                let request = pack.request(data, weights.unwrap_or_else(|| out.join(WEIGHTS)));
                let sequences = packing::open(&self.code.program, &request)?;
                let mut session = self.session(&device)?;
                load_weights(&mut session, &request.weights)?;
                packing::pack(&mut self.attach(session, &out)?, &request, sequences)
            }
            args::Command::Score { device, out, data, weights, artifact, score } => {
                let source = match (weights, artifact) {
                    (Some(w), _) => evaluation::Source::Weights(w),
                    (None, Some(a)) => evaluation::Source::Artifact(a),
                    (None, None) => evaluation::Source::Artifact(out.join(ARTIFACT)),
                };
                let mut session = self.session(&device)?;
                let request = score.request(data, source);
                let opened = evaluation::open(&mut session, &request)?;
                evaluation::score(&mut self.attach(session, &out)?, &request, opened)
            }
            args::Command::Verify { device, out, data, replay, chunks } => {
                let options = device.options()?;
                let request = evaluation::VerifyRequest { out, data, replay, chunks, options };
                evaluation::verify(&self.code, &request, &self.signals)
            }
            args::Command::Probe { device, probe } => probe::probe(self.session(&device)?, &probe, &self.faults),
            args::Command::Bench { device, bench } => bench::bench(self.session(&device)?, &bench),
        }
    }

    fn session(&self, device: &args::DeviceArgs) -> Result<Session> {
        Session::new(self.code.clone(), &device.options()?)
    }

    fn attach(&self, session: Session, out: &Path) -> Result<Run> {
        Run::attach(session, out, self.signals.clone(), self.faults.clone())
    }

    fn train(&self, device: &args::DeviceArgs, request: &args::TrainArgs) -> Result<Run> {
        train(self.session(device)?, &request.request()?, self.signals.clone(), self.faults.clone())
    }

    fn all(
        &self,
        device: &args::DeviceArgs,
        train: &args::TrainArgs,
        pack: &args::PackArgs,
        score: &args::ScoreArgs,
    ) -> Result<()> {
        let mut run = self.train(device, train)?;
        let pack = pack.request(Some(train.data.clone()), run.out.join(WEIGHTS));
        let sequences = packing::open(&self.code.program, &pack)?;
        packing::pack(&mut run, &pack, sequences)?;
        let source = evaluation::Source::Artifact(run.out.join(ARTIFACT));
        evaluation::all(&mut run, &score.request(train.data.clone(), source))?;
        run.draw()
    }
}
