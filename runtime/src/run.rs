//! A run: one program at work in one output directory.
//!
//! *Takes* a [`Session`] and `--out`; *gives* the [`Run`] that training, packing and scoring share: session, ledger, signals;
//! *promises* that a directory which already holds a run is not touched without being told to.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::exec::Session;
use crate::files::{self, Faults};
use crate::plan::DType;
use crate::report::{self, Ledger, Record, curve, ledger, output};
use crate::safetensors::{Dtype, Entry, Reader, save};
use crate::signals::Signals;
use crate::state;

/// File name of the trained weights.
pub const WEIGHTS: &str = "weights.safetensors";
/// File name of the packed weights.
pub const ARTIFACT: &str = "artifact.golfa";
/// File name of the picture.
pub const CURVE: &str = "curve.svg";

/// Everything a run may leave in its directory: what `--overwrite` removes.
const FILES: [&str; 14] = [
    ledger::LEDGER,
    ledger::LOG,
    ledger::METRICS,
    ledger::EVENTS,
    CURVE,
    WEIGHTS,
    state::DIR,
    ARTIFACT,
    "receipt.jsonl",
    "receipt.aborted.jsonl",
    "nll.f32",
    "evaluation.state",
    "submission.json",
    "README.md",
];

/// What to do with a directory that holds a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Refuse it.
    New,
    /// Go on with it.
    Resume,
    /// Remove it first.
    Overwrite,
}

/// What the parts of a command share.
pub struct Run {
    /// The model in memory.
    pub session: Session,
    /// `--out`.
    pub out: PathBuf,
    /// Seed of the run.
    pub seed: u64,
    /// What happened so far, and where more is written.
    pub ledger: Ledger,
    /// Asked between pieces of work.
    pub signals: Signals,
    /// Faults to inject.
    pub faults: Faults,
}

impl Run {
    /// A run that is already there (or an empty directory, which is made): for `pack`, `score`, `verify`. The seed is the one its
    /// ledger names, 0 without one.
    pub fn attach(session: Session, out: &Path, signals: Signals, faults: Faults) -> Result<Run> {
        fs::create_dir_all(out).map_err(|e| Error::io(out, e))?;
        let there = ledger::exists(out);
        let ledger = if there { Ledger::reopen(out, None, &faults)? } else { Ledger::create(out, &faults)? };
        let start = if there { start(&ledger::entries(out)?) } else { None };
        let seed = start.map_or(0, |s| s.seed);
        Ok(Run { session, out: out.into(), seed, ledger, signals, faults })
    }

    /// Records, and prints the record's line.
    pub fn say(&mut self, record: Record) -> Result<()> {
        match self.ledger.add(record)? {
            Some(line) => output::line(&line),
            None => Ok(()),
        }
    }

    /// Records a line of text and prints it.
    pub fn note(&mut self, text: impl Into<String>) -> Result<()> {
        self.say(Record::Note { text: text.into() })
    }

    /// Draws `curve.svg` from the ledger, if it has steps.
    pub fn draw(&self) -> Result<()> {
        match curve::svg(&self.ledger.entries()?) {
            Some(svg) => files::atomic_bytes(&self.out.join(CURVE), "curve", &self.faults, svg.as_bytes()),
            None => Ok(()),
        }
    }

    /// Writes the parameters, all as F32 (which holds every storage dtype exactly), in state order.
    pub fn save_weights(&self, path: &Path) -> Result<()> {
        let params = self.session.params();
        let heads: Vec<_> = params.iter().map(|b| (b.name.clone(), Entry::new(Dtype::F32, &b.shape))).collect();
        save(path, "weights", &self.faults, &heads, &mut |i, out| {
            let values = self.session.read_f32(&params[i])?;
            out.write_all(bytemuck::cast_slice(&values)).map_err(|e| Error::io(path, e))
        })
    }
}

/// Puts the tensors of a weights file into the parameters. Error (exit 1): a parameter without tensor, a tensor without
/// parameter, another shape, a dtype that is not floating.
pub fn load_weights(session: &mut Session, path: &Path) -> Result<()> {
    let reader = Reader::open(path)?;
    let params = session.params();
    let missing: Vec<_> =
        params.iter().filter(|b| !reader.entries().contains_key(&b.name)).map(|b| b.name.as_str()).collect();
    let strange: Vec<_> =
        reader.entries().keys().filter(|n| !params.iter().any(|b| &b.name == *n)).map(String::as_str).collect();
    if !missing.is_empty() || !strange.is_empty() {
        let part = |what: &str, names: &[&str]| match names {
            [] => String::new(),
            [first, ..] => format!(" {} {what}, the first `{first}`;", names.len()),
        };
        let (a, b) =
            (part("parameters are missing", &missing), part("tensors are no parameter of this program", &strange));
        return Err(Error::file(
            path,
            format!("not the weights of this program:{a}{b} {} expected in all", params.len()),
        ));
    }
    for b in &params {
        let shape = &reader.entry(&b.name)?.shape;
        if shape != &b.shape {
            return Err(Error::file(path, format!("tensor `{}` has shape {shape:?}, expected {:?}", b.name, b.shape)));
        }
        assert!(matches!(b.dtype, DType::F32 | DType::Bf16 | DType::F16), "parameters are floating");
        session.write_f32(b, &reader.f32(&b.name)?)?;
    }
    Ok(())
}

/// The record a run began with.
pub fn start(entries: &[report::Entry]) -> Option<report::record::Start> {
    entries.iter().find_map(|e| if let Record::Run(s) = &e.record { Some(s.clone()) } else { None })
}

/// Makes `out` fit to begin a run in, or finds one to resume (true). Error (usage): it holds a run and `mode` is
/// [`Mode::New`].
pub fn prepare(out: &Path, mode: Mode) -> Result<bool> {
    let there = |name: &&&str| fs::symlink_metadata(out.join(name)).is_ok();
    let found = FILES.iter().find(there);
    match (mode, found) {
        (Mode::New, Some(name)) => {
            let out = out.display();
            return Err(Error::usage(format!(
                "--out {out} already holds a run ({name}): --resume goes on with it, --overwrite starts anew"
            )));
        }
        (Mode::Overwrite, Some(_)) => FILES.iter().filter(|n| there(n)).try_for_each(|name| {
            let path = out.join(name);
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|e| Error::io(&path, e))
        })?,
        (Mode::Resume, _) if ledger::exists(out) => return Ok(true),
        (Mode::Resume, Some(name)) => {
            return Err(Error::file(out, format!("holds {name} but no {}: there is no run to resume", ledger::LEDGER)));
        }
        (_, None) => fs::create_dir_all(out).map_err(|e| Error::io(out, e))?,
    }
    Ok(false)
}

/// Most memory this process has held, bytes (VmHWM); 0 where the kernel does not say.
pub fn peak_rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// CPU model as the kernel names it.
pub fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':'));
    line.map_or("unknown CPU".into(), |(_, name)| name.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_a_run_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        assert!(!prepare(&out, Mode::New).unwrap());
        assert!(!prepare(&out, Mode::New).unwrap());
        fs::write(out.join(WEIGHTS), b"w").unwrap();
        fs::write(out.join("mine.txt"), b"m").unwrap();
        let e = prepare(&out, Mode::New).unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("weights.safetensors"), "{e}");
        assert_eq!(prepare(&out, Mode::Resume).unwrap_err().exit_code(), 1);
        assert!(!prepare(&out, Mode::Overwrite).unwrap());
        assert!(!out.join(WEIGHTS).exists() && out.join("mine.txt").exists());
        fs::write(out.join(ledger::LEDGER), b"").unwrap();
        assert!(prepare(&out, Mode::Resume).unwrap());
    }

    #[test]
    fn knows_its_memory() {
        assert!(peak_rss() > 1 << 20);
    }
}
