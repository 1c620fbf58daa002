//! What survives the process: checkpoints.
//!
//! *Takes* the state segment and where training stands; *gives* it back later; *promises* that a checkpoint appears whole or not
//! at all, that the last two are kept, and that a damaged one is noticed and passed over for the one before.
//!
//! A checkpoint is a directory `checkpoint/step-00000060/`:
//! - `state.bin`: the state segment, byte for byte;
//! - `manifest.json`: what it is ([`Manifest`]); the same bits for the same program, seed, data, device kind and clock trace;
//! - `progress.json`: what carries wall times and therefore is not bit-stable ([`Progress`]).
//!
//! Both JSON files end with a line that holds the BLAKE3 of what precedes it.

mod manifest;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

pub use manifest::{Manifest, Progress, VERSION};

use crate::error::{Error, Result};
use crate::files::{Faults, Sink, sync_dir};

/// Directory of a run that holds its checkpoints.
pub const DIR: &str = "checkpoint";
const STATE: &str = "state.bin";
const MANIFEST: &str = "manifest.json";
const PROGRESS: &str = "progress.json";
/// Name while being written.
const TEMP: &str = ".writing";
/// Checkpoints kept.
const KEEP: usize = 2;
/// Bytes written and hashed at a time.
const BLOCK: usize = 4 << 20;

fn name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Steps of the checkpoints in `dir`, newest first. A missing directory has none.
fn list(dir: &Path) -> Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(dir, e))?,
    };
    let mut steps = Vec::new();
    for entry in entries {
        let file = entry.map_err(|e| Error::io(dir, e))?.file_name();
        let step = file.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse().ok());
        steps.extend(step.filter(|&s| name(s).as_str() == file));
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// Writes the checkpoint `manifest` of `out`; `manifest.bytes` and `manifest.blake3` are filled in here. Then removes all but
/// the last two.
pub fn write(out: &Path, mut manifest: Manifest, progress: &Progress, state: &[u8], faults: &Faults) -> Result<()> {
    let dir = out.join(DIR);
    if fs::symlink_metadata(&dir).is_err() {
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        sync_dir(out)?;
    }
    let temp = dir.join(TEMP);
    remove(&temp)?;
    let body = || -> Result<()> {
        fs::create_dir(&temp).map_err(|e| Error::io(&temp, e))?;
        let mut hasher = blake3::Hasher::new();
        file(&temp.join(STATE), faults, state, &mut |block| {
            hasher.update(block);
        })?;
        manifest.bytes = state.len() as u64;
        manifest.blake3 = hasher.finalize().to_hex().to_string();
        file(&temp.join(MANIFEST), faults, &manifest::seal(&manifest)?, &mut |_| {})?;
        file(&temp.join(PROGRESS), faults, &manifest::seal(progress)?, &mut |_| {})?;
        sync_dir(&temp)?;
        let target = dir.join(name(manifest.step));
        remove(&target)?;
        fs::rename(&temp, &target).map_err(|e| Error::io(&target, e))?;
        sync_dir(&dir)
    };
    let mut body = body;
    body().inspect_err(|_| {
        let _ = fs::remove_dir_all(&temp);
    })?;
    for step in list(&dir)?.into_iter().skip(KEEP) {
        remove(&dir.join(name(step)))?;
    }
    Ok(())
}

/// Writes one file to disk in blocks, showing each to `see`.
fn file(path: &Path, faults: &Faults, bytes: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<()> {
    let io = |e| Error::io(path, e);
    let mut sink = Sink::new(File::create(path).map_err(io)?, "checkpoint", faults);
    for block in bytes.chunks(BLOCK) {
        see(block);
        sink.write_all(block).map_err(io)?;
    }
    sink.file().sync_all().map_err(io)
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(dir, e)),
        _ => Ok(()),
    }
}

/// Reads the newest usable checkpoint of `out` into `state` (the whole state segment).
///
/// `Ok(None)`: there is none, nothing was ever saved. Damaged ones are passed over, each with a line in `notices`, and removed
/// once a usable one is found. `fits` may refuse a readable checkpoint for good (another program, another seed). Errors: no checkpoint
/// is usable (exit 1); the machine.
pub fn load(
    out: &Path,
    state: &mut [u8],
    fits: &dyn Fn(&Manifest, &Path) -> Result<()>,
    notices: &mut Vec<String>,
) -> Result<Option<(Manifest, Progress)>> {
    let dir = out.join(DIR);
    remove(&dir.join(TEMP))?;
    let steps = list(&dir)?;
    let mut damaged: Vec<PathBuf> = Vec::new();
    for step in &steps {
        let path = dir.join(name(*step));
        match open(&path, *step, state, fits)? {
            Ok(found) => {
                damaged.iter().try_for_each(|d| remove(d))?;
                return Ok(Some(found));
            }
            Err(why) => {
                notices.push(format!("checkpoint passed over: {why}"));
                damaged.push(path);
            }
        }
    }
    match damaged.first() {
        None => Ok(None),
        Some(_) => {
            Err(Error::file(&dir, format!("no checkpoint is usable ({}); --overwrite starts anew", notices.join("; "))))
        }
    }
}

/// The outer error ends the run, the inner one passes this checkpoint over.
#[allow(clippy::type_complexity)]
fn open(
    path: &Path,
    step: u64,
    state: &mut [u8],
    fits: &dyn Fn(&Manifest, &Path) -> Result<()>,
) -> Result<Result<(Manifest, Progress), Error>> {
    let small = || -> Result<(Manifest, Progress)> {
        let manifest: Manifest = manifest::unseal(&path.join(MANIFEST))?;
        let progress: Progress = manifest::unseal(&path.join(PROGRESS))?;
        if manifest.step != step {
            return Err(Error::file(path.join(MANIFEST), format!("is of step {}", manifest.step)));
        }
        Ok((manifest, progress))
    };
    let (manifest, progress) = match small() {
        Ok(found) => found,
        Err(e @ Error::Input { .. }) => return Ok(Err(e)),
        Err(e) => return Err(e),
    };
    fits(&manifest, path)?;
    let file = path.join(STATE);
    if manifest.bytes != state.len() as u64 {
        return Ok(Err(Error::file(&file, format!("{} bytes, expected {}", manifest.bytes, state.len()))));
    }
    let read = || -> Result<()> {
        let mut input = File::open(&file).map_err(|e| Error::io(&file, e))?;
        let size = input.metadata().map_err(|e| Error::io(&file, e))?.len();
        if size != manifest.bytes {
            let (want, at) = (manifest.bytes, size.min(manifest.bytes));
            return Err(Error::at(&file, at, format!("has {size} bytes, expected {want}")));
        }
        let mut hasher = blake3::Hasher::new();
        for block in state.chunks_mut(BLOCK) {
            input.read_exact(block).map_err(|e| Error::io(&file, e))?;
            hasher.update(block);
        }
        if hasher.finalize().to_hex().as_str() != manifest.blake3 {
            return Err(Error::file(&file, "its content is not what was written (BLAKE3 differs)"));
        }
        Ok(())
    };
    let mut read = read;
    match read() {
        Ok(()) => Ok(Ok((manifest, progress))),
        Err(e @ Error::Input { .. }) => Ok(Err(e)),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(step: u64) -> Manifest {
        Manifest { step, ..manifest::tests::example() }
    }

    fn save(out: &Path, step: u64, state: &[u8]) {
        write(out, manifest(step), &Progress { elapsed_ns: step, ledger_bytes: 0 }, state, &Faults::none()).unwrap();
    }

    type Found = Result<Option<(Manifest, Progress)>>;

    fn restore(out: &Path, len: usize) -> (Found, Vec<u8>, Vec<String>) {
        let (mut state, mut notices) = (vec![0; len], Vec::new());
        let found = load(out, &mut state, &|_, _| Ok(()), &mut notices);
        (found, state, notices)
    }

    #[test]
    fn comes_back_and_keeps_two() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(restore(dir.path(), 3).0.unwrap(), None);
        for step in [5, 9, 120] {
            save(dir.path(), step, &[step as u8; 10]);
        }
        assert_eq!(list(&dir.path().join(DIR)).unwrap(), [120, 9]);
        let (found, state, notices) = restore(dir.path(), 10);
        let (m, p) = found.unwrap().unwrap();
        assert_eq!((m.step, p.elapsed_ns, state, notices.len()), (120, 120, vec![120; 10], 0));
    }

    #[test]
    fn falls_back_when_the_newest_is_damaged() {
        for (file, change) in [
            (STATE, "flip"),
            (MANIFEST, "flip"),
            (PROGRESS, "flip"),
            (STATE, "short"),
            (MANIFEST, "short"),
            (PROGRESS, "short"),
            (STATE, "gone"),
            (MANIFEST, "gone"),
            (PROGRESS, "gone"),
            (STATE, "long"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            save(dir.path(), 1, &[1; 5000]);
            save(dir.path(), 2, &[2; 5000]);
            let path = dir.path().join(DIR).join(name(2)).join(file);
            let mut bytes = fs::read(&path).unwrap();
            match change {
                "flip" => bytes[20] ^= 4,
                "short" => bytes.truncate(30),
                "long" => bytes.push(0),
                _ => {}
            }
            fs::write(&path, bytes).unwrap();
            if change == "gone" {
                fs::remove_file(&path).unwrap();
            }
            let (found, state, notices) = restore(dir.path(), 5000);
            assert_eq!((found.unwrap().unwrap().0.step, state[7], notices.len()), (1, 1, 1), "{file} {change}");
            assert_eq!(list(&dir.path().join(DIR)).unwrap(), [1]);
        }
    }

    #[test]
    fn nothing_usable_is_an_error_and_others_checkpoints_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), 1, &[1; 50]);
        fs::write(dir.path().join(DIR).join(name(1)).join(STATE), [0; 50]).unwrap();
        let (found, _, _) = restore(dir.path(), 50);
        assert_eq!(found.unwrap_err().exit_code(), 1);
        save(dir.path(), 2, &[1; 50]);
        let no = load(dir.path(), &mut [0; 50], &|_, p| Err(Error::file(p, "another program's")), &mut Vec::new());
        assert!(no.unwrap_err().to_string().contains("another program's"));
    }

    #[test]
    fn a_full_disk_leaves_the_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), 1, &[1; 5000]);
        for bytes in [0, 1, 4999, 5000, 5001, 5400] {
            let full = Faults::parse(&format!("full:checkpoint:{bytes}")).unwrap();
            let e = write(dir.path(), manifest(2), &Progress { elapsed_ns: 0, ledger_bytes: 0 }, &[2; 5000], &full)
                .unwrap_err();
            assert_eq!(e.exit_code(), 3, "{e}");
            let left: Vec<_> = fs::read_dir(dir.path().join(DIR)).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(left, ["step-00000001"]);
        }
    }
}
