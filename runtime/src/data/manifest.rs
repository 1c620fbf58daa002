//! `manifest.json`: what `golfc data` says about the directory it wrote.
//!
//! *Takes* a data directory; *gives* the manifest, if there is one (published challenge data has none); *promises* to notice a
//! tokenizer that is not the one the shards were made with, and shards that were exchanged or lost.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::shard::Shard;
use crate::error::{Error, Result};

/// File name in a data directory.
pub const FILE: &str = "manifest.json";
/// Largest manifest accepted, bytes.
const LIMIT: u64 = 64 << 20;

/// The whole manifest. Holds no paths and no times: the same text gives the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout of this file, 1.
    pub golf_data: u32,
    /// What wrote it, `golfc 0.1.0`.
    pub tool: String,
    /// The tokenizer.
    pub tokenizer: TokenizerEntry,
    /// How documents were divided, e.g. `5% by hash` or `last 5% of the text`.
    pub division: String,
    /// Training side.
    pub train: Side,
    /// Validation side.
    pub val: Side,
}

/// The tokenizer's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenizerEntry {
    /// Name in the directory.
    pub file: String,
    /// Number of ids.
    pub vocab: u32,
    /// BLAKE3 of the file, hex.
    pub blake3: String,
}

/// One side of the division.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Documents, each with one bos token.
    pub documents: u64,
    /// UTF-8 bytes of their text.
    pub text_bytes: u64,
    /// Tokens, bos included.
    pub tokens: u64,
    /// Files, in stream order.
    pub shards: Vec<ShardEntry>,
}

/// One shard file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Name in the directory.
    pub file: String,
    /// Tokens in it.
    pub tokens: u64,
    /// BLAKE3 of the file, hex.
    pub blake3: String,
}

impl Manifest {
    /// The manifest of `dir`; `None` if there is no such file or another program's.
    pub fn read(dir: &Path) -> Result<Option<Manifest>> {
        let path = dir.join(FILE);
        let size = match std::fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, e)),
        };
        if size > LIMIT {
            return Err(Error::at(&path, LIMIT, "larger than any manifest: 64 MiB"));
        }
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let wrong = |e: serde_json::Error| {
            let lines = bytes.split(|&b| b == b'\n').take(e.line().saturating_sub(1));
            let offset = lines.map(|l| l.len() + 1).sum::<usize>() + e.column().saturating_sub(1);
            Error::at(&path, offset as u64, format!("not a manifest: {e}"))
        };
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(wrong)?;
        match value.get("golf_data").map(|v| v.as_u64()) {
            None => Ok(None),
            Some(Some(1)) => serde_json::from_slice(&bytes).map(Some).map_err(wrong),
            Some(_) => Err(Error::file(&path, "written by a newer golfc: golf_data 1 expected")),
        }
    }

    /// Fails unless the tokenizer at `path` with content hash `hash` is the one the shards were made with.
    pub fn check_tokenizer(&self, path: &Path, hash: &blake3::Hash) -> Result<()> {
        if self.tokenizer.blake3 == hash.to_hex().as_str() {
            return Ok(());
        }
        let message =
            format!("not the tokenizer of this data: {FILE} names {} with another content", self.tokenizer.file);
        Err(Error::file(path, message))
    }

    /// Fails unless `shards` are exactly the listed ones whose names `wanted` accepts, by name and token count (contents are not
    /// read).
    pub fn check_shards(&self, dir: &Path, shards: &[Shard], wanted: impl Fn(&str) -> bool) -> Result<()> {
        let mut listed: Vec<_> = self.train.shards.iter().chain(&self.val.shards).filter(|e| wanted(&e.file)).collect();
        for shard in shards {
            let Some(at) = listed.iter().position(|e| e.file == shard.name()) else {
                return Err(Error::file(shard.path(), format!("not listed in {FILE}")));
            };
            let entry = listed.remove(at);
            if entry.tokens != shard.tokens() {
                let message = format!("{} tokens, {} according to {FILE}", shard.tokens(), entry.tokens);
                return Err(Error::at(shard.path(), 8, message));
            }
        }
        match listed.first() {
            Some(lost) => Err(Error::file(dir, format!("{} is missing; {FILE} lists it", lost.file))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::{TokenStream, tests::write};
    use super::*;

    #[test]
    fn notices_lost_and_exchanged_shards() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, "a_0.bin", &[1, 2]);
        write(dir, "a_1.bin", &[3]);
        write(dir, "b_0.bin", &[4]);
        let shards = [("a_0.bin", 2), ("a_1.bin", 1)];
        let shards = shards.map(|(file, tokens)| ShardEntry { file: file.into(), tokens, blake3: String::new() });
        let manifest = Manifest {
            golf_data: 1,
            tool: "golfc".into(),
            tokenizer: TokenizerEntry { file: "t".into(), vocab: 9, blake3: String::new() },
            division: "5% by hash".into(),
            train: Side { shards: shards.into(), ..Side::default() },
            val: Side::default(),
        };
        std::fs::write(dir.join(FILE), serde_json::to_vec(&manifest).unwrap()).unwrap();
        assert_eq!(Manifest::read(dir).unwrap(), Some(manifest));
        let fault = |pattern| TokenStream::open(dir, pattern, 9).unwrap_err().to_string();
        assert!(TokenStream::open(dir, "a_*.bin", 9).is_ok());
        assert!(fault("b_*.bin").ends_with("b_0.bin: not listed in manifest.json"));
        write(dir, "a_1.bin", &[3, 4]);
        assert!(fault("a_*.bin").ends_with("a_1.bin, byte 8: 2 tokens, 1 according to manifest.json"));
        std::fs::remove_file(dir.join("a_1.bin")).unwrap();
        assert!(fault("a_*.bin").ends_with("a_1.bin is missing; manifest.json lists it"));
    }
}
