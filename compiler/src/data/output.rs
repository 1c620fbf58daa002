//! The data directory: shards, tokenizer and manifest, all or nothing.
//!
//! *Takes* token ids; *gives* `fineweb_train_*.bin`, `fineweb_val_*.bin`, the tokenizer and `manifest.json`; *promises* that files are
//! made in a hidden folder inside the directory and moved into place at the end, the manifest last; an error leaves nothing behind.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use golf_runtime::data::manifest::{self, Manifest, ShardEntry, Side};
use golf_runtime::data::shard::{HEADER_BYTES, SHARD_TOKENS, Shard, header};
use golf_runtime::data::tokenizer::BYTES_FILE;
use golf_runtime::error::{Error, Result};

/// Folder in which the files are made.
const PARTIAL: &str = ".partial";

/// A data directory being written.
pub(super) struct Output {
    dir: PathBuf,
    partial: PathBuf,
    /// We made the directory, and remove it on failure.
    made: bool,
    files: Vec<String>,
    done: bool,
}

/// Whether `name` is a file that a data directory consists of.
fn is_data(name: &str) -> bool {
    name == manifest::FILE
        || name == BYTES_FILE
        || name.ends_with(".model")
        || (name.starts_with("fineweb_") && name.ends_with(".bin"))
}

impl Output {
    /// Starts a directory. It may exist; if it holds data other than the file `keep` (a tokenizer that is being used), `overwrite` is needed.
    pub(super) fn create(dir: &Path, keep: Option<&Path>, overwrite: bool) -> Result<Output> {
        let made = !dir.exists();
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let old = existing(dir, keep)?;
        if let (Some(name), false) = (old.first(), overwrite) {
            let message =
                format!("{} already holds data ({name}); choose another --out or say --overwrite", dir.display());
            return Err(Error::usage(message));
        }
        let partial = dir.join(PARTIAL);
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(|e| Error::io(&partial, e))?;
        }
        fs::create_dir(&partial).map_err(|e| Error::io(&partial, e))?;
        Ok(Output { dir: dir.into(), partial, made, files: Vec::new(), done: false })
    }

    /// Adds a small file.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().map_err(|e| Error::io(&path, e))?;
        self.files.push(name.into());
        Ok(())
    }

    /// A writer of the shards of one side, `train` or `val`.
    pub(super) fn shards(&mut self, side: &'static str) -> Shards<'_> {
        Shards { output: self, side, shard_tokens: SHARD_TOKENS, current: None, entries: Vec::new(), tokens: 0 }
    }

    /// Writes the manifest and moves everything into place; data of before is removed (but for `keep`).
    pub(super) fn commit(mut self, manifest: &Manifest, keep: Option<&Path>) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(manifest).map_err(|e| Error::machine(format!("manifest: {e}")))?;
        text.push(b'\n');
        self.add(manifest::FILE, &text)?;
        // The manifest goes first and comes last: a directory with a manifest is whole.
        for name in existing(&self.dir, keep)? {
            let path = self.dir.join(name);
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
        for name in &self.files {
            let to = self.dir.join(name);
            fs::rename(self.partial.join(name), &to).map_err(|e| Error::io(&to, e))?;
        }
        File::open(&self.dir).and_then(|d| d.sync_all()).map_err(|e| Error::io(&self.dir, e))?;
        self.done = true;
        Ok(())
    }
}

/// Names of the data files in `dir`, without `keep`, the manifest first.
fn existing(dir: &Path, keep: Option<&Path>) -> Result<Vec<String>> {
    let keep = keep.and_then(|k| fs::canonicalize(k).ok());
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let kept = keep.is_some() && fs::canonicalize(entry.path()).ok() == keep;
        if is_data(&name) && !kept {
            names.push(name);
        }
    }
    names.sort_by_key(|n| (n != manifest::FILE, n.clone()));
    Ok(names)
}

impl Drop for Output {
    fn drop(&mut self) {
        // Nothing can be done about a failure here.
        let _ = fs::remove_dir_all(&self.partial);
        if self.made && !self.done {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// Writes one side's tokens into shards of [`SHARD_TOKENS`].
pub(super) struct Shards<'o> {
    output: &'o mut Output,
    side: &'static str,
    shard_tokens: u64,
    current: Option<Current>,
    entries: Vec<ShardEntry>,
    tokens: u64,
}

struct Current {
    name: String,
    path: PathBuf,
    file: BufWriter<File>,
    tokens: u64,
}

impl Shards<'_> {
    /// Appends tokens; a document may straddle shards.
    pub(super) fn push(&mut self, tokens: &[u16]) -> Result<()> {
        let mut rest = tokens;
        while !rest.is_empty() {
            if self.current.as_ref().is_some_and(|c| c.tokens == self.shard_tokens) {
                self.close()?;
            }
            let current = match &mut self.current {
                Some(current) => current,
                None => self.current.insert(Current::create(&self.output.partial, self.side, self.entries.len())?),
            };
            let n = rest.len().min((self.shard_tokens - current.tokens) as usize);
            let (part, after) = rest.split_at(n);
            let bytes: Vec<u8> = part.iter().flat_map(|t| t.to_le_bytes()).collect();
            current.file.write_all(&bytes).map_err(|e| Error::io(&current.path, e))?;
            current.tokens += n as u64;
            self.tokens += n as u64;
            rest = after;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let Some(current) = self.current.take() else { return Ok(()) };
        let Current { name, path, mut file, tokens } = current;
        let write = || {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&header(tokens as u32))?;
            file.into_inner().map_err(|e| e.into_error())?.sync_all()
        };
        write().map_err(|e| Error::io(&path, e))?;
        let blake3 = Shard::open(&path)?.hash()?.to_hex().to_string();
        self.output.files.push(name.clone());
        self.entries.push(ShardEntry { file: name, tokens, blake3 });
        Ok(())
    }

    /// Ends the side.
    pub(super) fn finish(mut self, documents: u64, text_bytes: u64) -> Result<Side> {
        self.close()?;
        Ok(Side { documents, text_bytes, tokens: self.tokens, shards: self.entries })
    }
}

impl Current {
    fn create(dir: &Path, side: &str, index: usize) -> Result<Current> {
        let name = format!("fineweb_{side}_{index:06}.bin");
        let path = dir.join(&name);
        let create = || {
            let mut file = BufWriter::with_capacity(1 << 18, File::create(&path)?);
            file.write_all(&[0; HEADER_BYTES as usize])?;
            Ok(file)
        };
        let file = create().map_err(|e| Error::io(&path, e))?;
        Ok(Current { name, path, file, tokens: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use golf_runtime::data::TokenStream;

    #[test]
    fn cuts_shards_and_moves_them_into_place() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        let mut output = Output::create(&out, None, false).unwrap();
        let mut shards = output.shards("train");
        shards.shard_tokens = 4;
        for part in [&[1u16, 2, 3][..], &[], &[4, 5, 6, 7, 8, 9]] {
            shards.push(part).unwrap();
        }
        let side = shards.finish(2, 20).unwrap();
        let counts: Vec<u64> = side.shards.iter().map(|s| s.tokens).collect();
        assert_eq!((counts, side.tokens), (vec![4, 4, 1], 9));
        assert!(!out.join("fineweb_train_000000.bin").exists());
        let manifest = Manifest {
            golf_data: 1,
            tool: String::new(),
            tokenizer: manifest::TokenizerEntry { file: String::new(), vocab: 10, blake3: String::new() },
            division: String::new(),
            train: side,
            val: Side::default(),
        };
        output.commit(&manifest, None).unwrap();
        assert!(!out.join(PARTIAL).exists());
        let stream = TokenStream::open(&out, "fineweb_train_*.bin", 10).unwrap();
        let mut all = [0; 9];
        stream.read(0, &mut all).unwrap();
        assert_eq!(all, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(stream.shards()[2].name(), "fineweb_train_000002.bin");
        let again = Output::create(&out, None, false).err().unwrap();
        assert_eq!(again.exit_code(), 2);
        assert!(
            again.to_string().ends_with("already holds data (manifest.json); choose another --out or say --overwrite")
        );
        Output::create(&out, None, true).unwrap().commit(&manifest, None).unwrap();
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new");
        let mut output = Output::create(&out, None, false).unwrap();
        output.shards("val").push(&[1, 2, 3]).unwrap();
        drop(output);
        assert!(!out.exists());
        fs::write(dir.path().join("t.model"), "x").unwrap();
        let keep = dir.path().join("t.model");
        drop(Output::create(dir.path(), Some(&keep), false).unwrap());
        assert!(keep.exists());
        assert!(Output::create(dir.path(), None, false).is_err());
        assert!(Output::create(&keep, None, false).is_err());
    }
}
