//! The ledger and the files derived from it.
//!
//! *Takes* records; *gives* `ledger.jsonl` (append-only, one [`Entry`] a line) and beside it `train.log`, `metrics.jsonl` and
//! `events.out.tfevents.golf`, each a function of the ledger; *promises* that a record is with the operating system when
//! [`Ledger::add`] returns (so a killed process loses none), that a full disk leaves no half line, and that a resumed run's files hold
//! exactly what led to its checkpoint.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::record::{Entry, Record};
use super::tensorboard;
use crate::error::{Error, Result};
use crate::files::{Faults, Sink};

/// File name of the ledger.
pub const LEDGER: &str = "ledger.jsonl";
/// File name of the log.
pub const LOG: &str = "train.log";
/// File name of the metrics.
pub const METRICS: &str = "metrics.jsonl";
/// File name of the TensorBoard events. One name for all attempts: a resumed run continues the file.
pub const EVENTS: &str = "events.out.tfevents.golf";
/// Largest ledger read, bytes.
const LIMIT: u64 = 256 << 20;

/// A file that only grows, by whole pieces.
struct Appended {
    path: PathBuf,
    sink: Sink,
    len: u64,
}

impl Appended {
    /// `keep` bytes of what is there.
    fn open(path: PathBuf, keep: u64, faults: &Faults) -> Result<Appended> {
        let open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            file.set_len(keep)?;
            file.seek(SeekFrom::Start(keep))?;
            Ok(file)
        };
        let file = open().map_err(|e| Error::io(&path, e))?;
        Ok(Appended { path, sink: Sink::new(file, "ledger", faults), len: keep })
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.sink.write_all(bytes).map_err(|e| {
            // Leave no half line. If even that fails, the next reading cuts it off.
            let _ = self.sink.file().set_len(self.len);
            Error::io(&self.path, e)
        })?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// The ledger of one run, open for appending.
pub struct Ledger {
    ledger: Appended,
    log: Appended,
    metrics: Appended,
    events: Appended,
}

impl Ledger {
    /// A new, empty ledger in `out`, which exists.
    pub fn create(out: &Path, faults: &Faults) -> Result<Ledger> {
        let open = |name: &str| Appended::open(out.join(name), 0, faults);
        let mut ledger =
            Ledger { ledger: open(LEDGER)?, log: open(LOG)?, metrics: open(METRICS)?, events: open(EVENTS)? };
        ledger.events.add(&tensorboard::version(now()))?;
        Ok(ledger)
    }

    /// Goes on with the ledger in `out`: keeps its first `keep` bytes (`None`: all whole lines) and makes the derived files anew.
    pub fn reopen(out: &Path, keep: Option<u64>, faults: &Faults) -> Result<Ledger> {
        let path = out.join(LEDGER);
        let (entries, whole) = read(&path, keep)?;
        let mut ledger = Ledger::create_derived(out, whole, faults)?;
        for entry in &entries {
            ledger.derive(entry)?;
        }
        Ok(ledger)
    }

    fn create_derived(out: &Path, keep: u64, faults: &Faults) -> Result<Ledger> {
        // Not the same as `create`: the ledger itself keeps its lines.
        let open = |name: &str| Appended::open(out.join(name), 0, faults);
        let ledger = Appended::open(out.join(LEDGER), keep, faults)?;
        let mut ledger = Ledger { ledger, log: open(LOG)?, metrics: open(METRICS)?, events: open(EVENTS)? };
        ledger.events.add(&tensorboard::version(0.0))?;
        Ok(ledger)
    }

    /// Appends a record and what follows from it. Gives its log line.
    pub fn add(&mut self, record: Record) -> Result<Option<String>> {
        let entry = Entry { time: now(), record };
        let mut line = serde_json::to_vec(&entry).map_err(|e| Error::machine(format!("ledger: {e}")))?;
        line.push(b'\n');
        self.ledger.add(&line)?;
        self.derive(&entry)
    }

    fn derive(&mut self, entry: &Entry) -> Result<Option<String>> {
        if let Some(metrics) = entry.record.metrics() {
            self.metrics.add(format!("{metrics}\n").as_bytes())?;
        }
        if let Some((step, values)) = entry.record.scalars() {
            self.events.add(&tensorboard::scalars(entry.time, step, &values))?;
        }
        let line = entry.record.line();
        if let Some(line) = &line {
            self.log.add(format!("{line}\n").as_bytes())?;
        }
        Ok(line)
    }

    /// Bytes of the ledger so far.
    pub fn len(&self) -> u64 {
        self.ledger.len
    }

    /// True before the first record.
    pub fn is_empty(&self) -> bool {
        self.ledger.len == 0
    }

    /// Everything so far is on disk when this returns.
    pub fn sync(&self) -> Result<()> {
        let all = [&self.ledger, &self.log, &self.metrics, &self.events];
        all.into_iter().try_for_each(|a| a.sink.file().sync_data().map_err(|e| Error::io(&a.path, e)))
    }

    /// All records so far.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        Ok(read(&self.ledger.path, Some(self.ledger.len))?.0)
    }
}

/// The entries of the ledger of `out` (whole lines only) and how many bytes they are.
pub fn entries(out: &Path) -> Result<Vec<Entry>> {
    Ok(read(&out.join(LEDGER), None)?.0)
}

/// Whether `out` holds a ledger.
pub fn exists(out: &Path) -> bool {
    fs::symlink_metadata(out.join(LEDGER)).is_ok()
}

fn read(path: &Path, keep: Option<u64>) -> Result<(Vec<Entry>, u64)> {
    let mut bytes = crate::files::read_bounded(path, LIMIT)?;
    match keep {
        Some(keep) if keep > bytes.len() as u64 => {
            let have = bytes.len() as u64;
            return Err(Error::at(path, have, format!("ends before byte {keep}, which the checkpoint counts on")));
        }
        Some(keep) => bytes.truncate(keep as usize),
        // A process that was killed may have left part of a line.
        None => bytes.truncate(bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1)),
    }
    let (mut entries, mut offset) = (Vec::new(), 0);
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let wrong = |e: serde_json::Error| Error::at(path, offset, format!("not a line of a ledger: {e}"));
        entries.push(serde_json::from_slice(line).map_err(wrong)?);
        offset += line.len() as u64;
    }
    Ok((entries, offset))
}

/// Unix time, seconds.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(text: &str) -> Record {
        Record::Note { text: text.into() }
    }

    #[test]
    fn truncates_to_the_checkpoint_and_derives_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::create(dir.path(), &Faults::none()).unwrap();
        assert_eq!(ledger.add(note("one")).unwrap().as_deref(), Some("one"));
        let keep = ledger.len();
        ledger.add(note("two")).unwrap();
        drop(ledger);
        let mut ledger = Ledger::reopen(dir.path(), Some(keep), &Faults::none()).unwrap();
        ledger.add(note("three")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(LOG)).unwrap(), "one\nthree\n");
        assert_eq!(ledger.entries().unwrap().len(), 2);
        assert!(Ledger::reopen(dir.path(), Some(1 << 20), &Faults::none()).is_err());
    }

    #[test]
    fn a_half_line_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::create(dir.path(), &Faults::none()).unwrap();
        ledger.add(note("one")).unwrap();
        let path = dir.path().join(LEDGER);
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(b"{\"time\":1,\"ki");
        fs::write(&path, bytes).unwrap();
        let ledger = Ledger::reopen(dir.path(), None, &Faults::none()).unwrap();
        assert_eq!(ledger.entries().unwrap().len(), 1);
        assert_eq!(fs::metadata(&path).unwrap().len(), ledger.len());
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::parse("full:ledger:200").unwrap();
        let mut ledger = Ledger::create(dir.path(), &faults).unwrap();
        let e = (0..100).find_map(|i| ledger.add(note(&i.to_string())).err()).unwrap();
        assert_eq!(e.exit_code(), 3, "{e}");
        assert!(entries(dir.path()).is_ok());
        for name in [LEDGER, LOG] {
            let text = fs::read(dir.path().join(name)).unwrap();
            assert!(text.is_empty() || text.ends_with(b"\n"), "{name}");
        }
    }
}
