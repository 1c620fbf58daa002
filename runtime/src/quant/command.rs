//! `run pack` and its part of `run all`.

use std::path::PathBuf;

use super::{calibrate, pack as packing};
use crate::clock::Kind;
use crate::data::Loader;
use crate::error::{Error, Result};
use crate::files;
use crate::plan::Program;
use crate::report::progress::Progress;
use crate::report::record::Calibration;
use crate::report::{Record, ledger, submission};
use crate::run::{ARTIFACT, Run, start};

/// What the command line asks of packing.
#[derive(Clone, Debug)]
pub struct Request {
    /// `--data`: where training shards lie, for programs that calibrate.
    pub data: Option<PathBuf>,
    /// File of the weights in the session.
    pub weights: PathBuf,
    /// File for `q.NAME`, `scale.NAME` and `dequant.NAME`.
    pub codes: Option<PathBuf>,
}

/// The sequences that calibration takes, if the program calibrates: asked for first, so that what is missing is said before any work.
pub fn open(p: &Program, request: &Request) -> Result<Option<Loader>> {
    calibrate::open(p, request.data.as_deref())
}

/// Calibrates on `sequences` if the program does, packs the weights in the session into the run's `artifact.golfa`, records the byte counts and enforces the cap.
pub fn pack(run: &mut Run, request: &Request, sequences: Option<Loader>) -> Result<()> {
    let code = run.session.code().clone();
    let p = &code.program;
    let signals = run.signals.clone();
    // A GPU whose code lacks a graph that packing runs lends its weights.
    let mut lent = if packing::has_graphs(&run.session) { None } else { run.session.on_cpu()? };
    if lent.is_some() {
        let device = run.session.device_kind();
        run.note(format!("pack:on the CPU, for this program has no {device} code for its quantisers"))?;
    }
    if let Some(sequences) = sequences {
        let seconds = calibrate::calibrate(lent.as_mut().unwrap_or(&mut run.session), sequences, &signals)?;
        let record = calibration(run, p, request, seconds)?;
        run.say(Record::Calibrated(record))?;
    }
    let mut progress = Progress::new("pack");
    let packed = packing::quantise(lent.as_mut().unwrap_or(&mut run.session), &mut |done, of| {
        signals.check()?;
        let (d, n) = (done as u64, of as u64);
        progress.update(d, n, d as f64 / n as f64, &format!("pack:{d}/{n} tensors"), false)
    })?;
    drop((lent, progress));
    if let Some(path) = &request.codes {
        packing::save_codes(&run.session, p, &packed, path, &run.faults)?;
    }
    let path = run.out.join(ARTIFACT);
    let bytes_model = packing::write(p, &packed, &path, &run.faults)?;
    let executable = std::env::current_exe()
        .and_then(std::fs::metadata)
        .map_err(|e| Error::machine(format!("own executable: {e}")))?;
    run.say(Record::Packed {
        bytes_model,
        bytes_code: packing::code_bytes(p),
        bytes_executable: executable.len(),
        cap: p.quantize.cap,
        artifact: crate::eval::receipt::hash_file(&path)?,
    })?;
    submission::publish(&run.out, p, &ledger::entries(&run.out)?, &run.faults)
}

/// The record of a calibration that took so many seconds.
fn calibration(run: &Run, p: &Program, request: &Request, seconds: f64) -> Result<Calibration> {
    let sequences = p.quantize.calibrate.as_ref().map_or(0, |c| c.sequences);
    let mut taps: Vec<&str> = p.quantize.params.iter().filter_map(|q| q.inverse.as_ref().map(|i| &i.tap[..])).collect();
    taps.sort_unstable();
    taps.dedup();
    // How long training took means something for its own weights, if it went by the clock on the wall.
    let entries = run.ledger.entries()?;
    let trained = entries.iter().rev().find_map(|e| match &e.record {
        Record::Trained { train_ms, weights, .. } => Some((train_ms / 1e3, weights)),
        _ => None,
    });
    let by_the_wall = start(&entries).is_some_and(|s| s.clock == Kind::Wall);
    let train_seconds = match trained.filter(|_| by_the_wall) {
        Some((s, weights)) if files::hash(&request.weights)?.to_hex().as_str() == weights => Some(s),
        _ => None,
    };
    Ok(Calibration {
        tokens: sequences * u64::from(p.train.seq),
        sequences,
        matrices: taps.len() as u64,
        seconds,
        train_seconds,
        stop: p.train.stop,
    })
}
