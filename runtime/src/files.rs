//! Files: written whole or not at all, read up to a limit, hashed.
//!
//! *Takes* a path and what to write; *gives* nothing; *promises* that the name appears only when every byte is on disk (temporary
//! name, fsync, rename, fsync of the directory), that a failure leaves neither a half-written file nor a temporary one, and that being
//! killed at any byte leaves the old content.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// A fault to inject, for tests of crash safety: `GOLF_FAILPOINT=ACTION:PLACE:N`.
///
/// ACTION `kill` ends the process by SIGKILL, `full` makes the write fail as a full disk does; PLACE is a kind of file
/// (`checkpoint`, `weights`, `ledger`, ...) and N the bytes of it this process writes before the fault, or `step` and N the step.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<Arc<Fault>>);

#[derive(Debug)]
struct Fault {
    kill: bool,
    place: String,
    at: u64,
    written: AtomicU64,
}

impl Faults {
    /// None: what every run has.
    pub fn none() -> Faults {
        Faults(None)
    }

    /// From the environment variable's value. Error (usage): not of the form above.
    pub fn parse(text: &str) -> Result<Faults> {
        let wrong = || Error::usage(format!("GOLF_FAILPOINT={text}: expected kill|full:PLACE:N"));
        let [action, place, at] = text.split(':').collect::<Vec<_>>()[..] else { return Err(wrong()) };
        let kill = match action {
            "kill" => true,
            "full" => false,
            _ => return Err(wrong()),
        };
        let at = at.parse().map_err(|_| wrong())?;
        Ok(Faults(Some(Arc::new(Fault { kill, place: place.into(), at, written: AtomicU64::new(0) }))))
    }

    /// From `GOLF_FAILPOINT`, if set.
    pub fn from_env() -> Result<Faults> {
        std::env::var("GOLF_FAILPOINT").map_or_else(|_| Ok(Faults::none()), |text| Faults::parse(&text))
    }

    /// The process is at step `step`.
    pub fn step(&self, step: u64) {
        if self.0.as_ref().is_some_and(|f| f.kill && f.place == "step" && f.at == step) {
            kill();
        }
    }

    /// How many of `len` bytes about to be written at `place` may be before the fault, and whether it kills; `None`: all of them.
    /// A full disk stays full.
    fn cut(&self, place: &str, len: usize) -> Option<(usize, bool)> {
        let fault = self.0.as_ref().filter(|f| f.place == place)?;
        let before = fault.written.fetch_add(len as u64, Ordering::Relaxed);
        let after = before + len as u64;
        (fault.at < after).then(|| (fault.at.saturating_sub(before) as usize, fault.kill))
    }
}

fn kill() -> ! {
    let _ = signal_hook::low_level::raise(signal_hook::consts::SIGKILL);
    std::process::abort()
}

/// A file being written at some place of [`Faults`].
pub struct Sink {
    file: File,
    place: &'static str,
    faults: Faults,
}

impl Sink {
    /// Around an open file.
    pub fn new(file: File, place: &'static str, faults: &Faults) -> Sink {
        Sink { file, place, faults: faults.clone() }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Some((n, fatal)) = self.faults.cut(self.place, buf.len()) {
            self.file.write_all(&buf[..n])?;
            if fatal {
                kill();
            }
            // What write(2) says on a full disk.
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.write_all(buf)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(dir, e))
}

/// Writes `path` through `body`, atomically.
pub fn atomic(
    path: &Path,
    place: &'static str,
    faults: &Faults,
    body: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let temp = PathBuf::from(name);
    let write = || -> Result<()> {
        let file = File::create(&temp).map_err(|e| Error::io(&temp, e))?;
        let mut sink = io::BufWriter::with_capacity(1 << 20, Sink::new(file, place, faults));
        body(&mut sink)?;
        let sink = sink.into_inner().map_err(|e| Error::io(path, e.into_error()))?;
        sink.file().sync_all().map_err(|e| Error::io(path, e))?;
        fs::rename(&temp, path).map_err(|e| Error::io(path, e))
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&temp);
    })?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Writes these bytes atomically.
pub fn atomic_bytes(path: &Path, place: &'static str, faults: &Faults, bytes: &[u8]) -> Result<()> {
    atomic(path, place, faults, |w| w.write_all(bytes).map_err(|e| Error::io(path, e)))
}

/// Reads a file of at most `limit` bytes. Error (exit 1): larger; or as [`Error::io`].
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::at(path, limit, format!("expected at most {limit} bytes, found more")));
    }
    Ok(bytes)
}

/// BLAKE3 of a whole file, what `b3sum FILE` prints.
pub fn hash(path: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    File::open(path).and_then(|file| hasher.update_reader(file).map(drop)).map_err(|e| Error::io(path, e))?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_or_leaves_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        atomic_bytes(&path, "weights", &Faults::none(), b"old").unwrap();
        let full = Faults::parse("full:weights:2").unwrap();
        let e = atomic_bytes(&path, "weights", &full, b"newer").unwrap_err();
        assert_eq!(e.exit_code(), 3, "{e}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        atomic_bytes(&path, "ledger", &full, b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
    }

    #[test]
    fn bounded_and_missing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, b"12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert_eq!(read_bounded(&path, 4).unwrap_err().exit_code(), 1);
        assert_eq!(read_bounded(&dir.path().join("y"), 4).unwrap_err().exit_code(), 1);
        assert_eq!(hash(&path).unwrap(), blake3::hash(b"12345"));
        assert_eq!(hash(&dir.path().join("y")).unwrap_err().exit_code(), 1);
        assert!(
            Faults::parse("kill:x").is_err()
                && Faults::parse("stop:x:1").is_err()
                && Faults::parse("kill:x:y").is_err()
        );
    }
}
