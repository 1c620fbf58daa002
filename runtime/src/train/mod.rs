//! Training.
//!
//! *Takes* a [`Session`], data and a clock; *gives* trained weights in the session, `weights.safetensors` and the ledger of how
//! they came about; *promises* that weights are a function of program, seed, data, device kind and clock trace, whatever the
//! number of threads, of interruptions and of resumptions.
//!
//! One step: for each logical shard its micro-batches (`train.micro`), then `train.shard`; then `train.update`; then the averages
//! that are due. The state segment changes only in the last two, so between micro-batches a signal can still save the last
//! step's state.

mod step;
#[cfg(test)]
pub(crate) mod tests;
mod trainer;

use std::path::PathBuf;
use std::time::Duration;

pub use step::{Outcome, Stepper};
use trainer::Trainer;

use crate::clock::{self, Clock, Kind, Source};
use crate::data::{Loader, TokenStream};
use crate::error::{Error, Result};
use crate::exec::Session;
use crate::files::Faults;
use crate::quant::calibrate;
use crate::report::ledger;
use crate::report::record::Start;
use crate::run::{self, Mode, Run, start};
use crate::signals::Signals;
use crate::validate;

/// Seed when none is given: the challenge's.
pub const SEED: u64 = 1337;

/// Training tokens looked at before training begins; the others are checked as they are read.
const CHECKED: u64 = 1 << 23;

/// What the command line asks of training.
#[derive(Clone, Debug)]
pub struct Request {
    /// `--data`.
    pub data: PathBuf,
    /// `--out`.
    pub out: PathBuf,
    /// `--seed`; a resumed run's own when absent.
    pub seed: Option<u64>,
    /// `--steps` or `--clock`; wall time, or a resumed run's own, when absent.
    pub clock: Option<ClockRequest>,
    /// `--resume`, `--overwrite`.
    pub mode: Mode,
    /// `--allow-device-change`.
    pub allow_device_change: bool,
    /// Time between checkpoints.
    pub checkpoint_every: Duration,
}

/// See [`Request::clock`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClockRequest {
    /// `--steps N`.
    Steps(u64),
    /// `--clock FILE`.
    Trace(PathBuf),
}

/// Trains, or goes on training, or finds that training is done; leaves the trained weights in the session.
pub fn train(session: Session, request: &Request, signals: Signals, faults: Faults) -> Result<Run> {
    let code = session.code().clone();
    let p = &code.program;
    let stream = TokenStream::open(&request.data, &p.train.data, p.vocab)?;
    stream.check(CHECKED)?;
    validate::check(p, &request.data)?;
    calibrate::open(p, Some(&request.data))?;
    let data = fingerprint(&stream)?;
    let loader = Loader::new(stream, p.train.batch, p.train.ranks, p.train.seq)?;
    let resuming = run::prepare(&request.out, request.mode)?;
    let before = if resuming { ledger::entries(&request.out)? } else { Vec::new() };
    let old = start(&before);
    let (source, kind) = source(request, old.as_ref(), p.train.iterations)?;
    let seed = request.seed.or(old.as_ref().map(|s| s.seed)).unwrap_or(SEED);
    let new = Start {
        program: p.name.clone(),
        hash: code.hash.to_hex().to_string(),
        golfc: p.golfc.clone(),
        overrides: p.overrides.clone(),
        seed,
        device: session.device_kind().into(),
        machine: session.machine(),
        precision: session.precision().into(),
        threads: session.threads(),
        clock: kind,
        parameters: session.params().iter().map(|b| b.numel() as u64).sum(),
        data,
    };
    if let Some(old) = &old {
        same_run(old, &new, request)?;
    }
    let mut trainer = Trainer::new(session, new, loader, request, signals, faults, old.is_some().then_some(before))?;
    trainer.clock = Clock::new(source, p.budget(), trainer.elapsed);
    trainer.run()
}

/// Where time comes from: as asked, else as the run that is resumed did, else the wall clock.
fn source(request: &Request, old: Option<&Start>, iterations: u64) -> Result<(Source, Kind)> {
    let steps = |n: u64| {
        if n > iterations {
            return Err(Error::usage(format!("--steps {n}: the program stops at {iterations} steps")));
        }
        Ok((Source::Steps(n), Kind::Steps(n)))
    };
    match (&request.clock, old.map(|o| &o.clock)) {
        (Some(ClockRequest::Steps(n)), _) => steps(*n),
        (Some(ClockRequest::Trace(path)), _) => {
            let trace = clock::read_trace(path)?;
            let kind = Kind::Trace(clock::hash(&trace).to_hex().to_string());
            Ok((Source::Trace(trace), kind))
        }
        (None, Some(Kind::Steps(n))) => steps(*n),
        (None, Some(Kind::Trace(_))) => {
            Err(Error::usage("this run replays a clock trace: give the same --clock to resume it"))
        }
        (None, Some(Kind::Wall) | None) => Ok((Source::Wall, Kind::Wall)),
    }
}

/// A resumed run must be the same run. Error (exit 1 or 2): it is not.
fn same_run(old: &Start, new: &Start, request: &Request) -> Result<()> {
    let out = request.out.display();
    if old.hash != new.hash {
        let (a, b) = (&old.hash[..old.hash.len().min(12)], &new.hash[..12]);
        return Err(Error::file(
            &request.out,
            format!("holds a run of program {} {a}, this is {} {b}", old.program, new.program),
        ));
    }
    for (flag, a, b) in [
        ("--seed", old.seed.to_string(), new.seed.to_string()),
        ("--precision", old.precision.clone(), new.precision.clone()),
        ("the clock", format!("{:?}", old.clock).to_lowercase(), format!("{:?}", new.clock).to_lowercase()),
    ] {
        if a != b {
            return Err(Error::usage(format!("--resume: the run in {out} was started with {flag} {a}, not {b}")));
        }
    }
    if old.data != new.data {
        return Err(Error::file(&request.data, format!("not the training shards the run in {out} was started with")));
    }
    Ok(())
}

/// Identity of the training shards that costs no reading of gigabytes: names, sizes, first and last tokens of each.
fn fingerprint(stream: &TokenStream) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for shard in stream.shards() {
        hasher.update(shard.name().as_bytes()).update(&[0]).update(&shard.tokens().to_le_bytes());
        let mut ends = vec![0u16; shard.tokens().min(4096) as usize];
        for first in [0, shard.tokens() - ends.len() as u64] {
            shard.read(first, stream.vocab(), &mut ends)?;
            ends.iter().for_each(|t| {
                hasher.update(&t.to_le_bytes());
            });
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}
