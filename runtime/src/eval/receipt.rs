//! Receipts: an append-only, hash-chained record of a score-first evaluation.
//!
//! *Takes* what each chunk scored; *gives* the lines of `receipt.jsonl` and their strict reading; *promises* that a line commits to
//! every line before it, and that a chunk's line is written before the chunk is adapted on.
//!
//! On its own a receipt is self-consistent and complete, nothing more: whoever has the program can compute a consistent
//! forgery. Only re-execution (`verify --replay`) proves a score.

use crate::error::{Error, Result};
use crate::files;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A BLAKE3 hash as 64 hex digits.
pub type Hash = String;

/// Longest line accepted when reading, bytes.
const MAX_LINE: u64 = 1 << 20;

/// First line: what was evaluated, on what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Format version, 1.
    pub version: u32,
    /// Program name.
    pub name: String,
    /// Hash of source and prelude.
    pub program: Hash,
    /// Hash of the executable file.
    pub executable: Hash,
    /// Hash of the artifact file.
    pub artifact: Hash,
    /// Hash of the tokenizer file.
    pub tokenizer: Hash,
    /// Hashes of the validation shards, in order.
    pub val: Vec<Hash>,
    /// Device kind, e.g. `cpu-avx512bf16`.
    pub device: String,
    /// `bf16` or `f32`.
    pub precision: String,
    /// Seed of the run.
    pub seed: u64,
    /// Number of targets scored in all.
    pub targets: u64,
    /// The program limits evaluation to a part of the stream.
    pub partial: bool,
    /// Window length, tokens.
    pub window: u32,
    /// New targets per window.
    pub stride: u32,
    /// Targets per chunk.
    pub chunk: u64,
    /// Whether chunks are adapted on after they were scored.
    pub adapt: bool,
    /// Content hash of the weights before the first chunk.
    pub weights: Hash,
    /// 1 for an evaluation that was never interrupted; else how many times it was started.
    pub attempts: u32,
}

/// One scored chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkLine {
    /// Chunk number, from 0.
    pub index: u64,
    /// First target.
    pub first: u64,
    /// Number of targets.
    pub count: u64,
    /// Sum of nll in nats, stream order, f64 bits as 16 hex digits.
    pub sum_nll: String,
    /// Bytes of the targets.
    pub bytes: u64,
    /// BLAKE3 of the little-endian f32 nll in stream order.
    pub nll: Hash,
    /// BLAKE3 of the little-endian i32 targets.
    pub tokens: Hash,
    /// State the chunk was scored with.
    pub state: Hash,
    /// Hyper-parameters of the update that follows (f64 bits as hex), absent when none follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<BTreeMap<String, String>>,
    /// Content hash of the weights, every 100th chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Hash>,
    /// Hash of the previous line.
    pub prev: Hash,
}

/// Last line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Number of chunks.
    pub chunks: u64,
    /// Total nll, chunk sums added in order, f64 bits.
    pub sum_nll: String,
    /// Total bytes.
    pub bytes: u64,
    /// Content hash of the weights at the end.
    pub weights: Hash,
    /// Hash of the previous line.
    pub prev: Hash,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// First.
    Header(Header),
    /// In between.
    Chunk(ChunkLine),
    /// Last.
    End(End),
}

/// f64 bits as hex, so that the text form is exact.
pub fn hex_f64(x: f64) -> String {
    format!("{:016x}", x.to_bits())
}

/// Reads [`hex_f64`].
pub fn parse_f64(s: &str) -> Option<f64> {
    if s.len() != 16 {
        return None;
    }
    u64::from_str_radix(s, 16).ok().map(f64::from_bits)
}

/// Hash of some bytes, hex.
pub fn hash(bytes: &[u8]) -> Hash {
    blake3::hash(bytes).to_hex().to_string()
}

/// Hash of a file's content.
pub fn hash_file(path: &Path) -> Result<Hash> {
    files::hash(path).map(|h| h.to_hex().to_string())
}

/// Hash of little-endian f32 values.
pub fn hash_f32(values: &[f32]) -> Hash {
    hash(bytemuck::cast_slice(values))
}

/// Hash of little-endian i32 values.
pub fn hash_i32(values: &[i32]) -> Hash {
    hash(bytemuck::cast_slice(values))
}

/// The state after adapting on a chunk: hash(parent, chunk, hyper-parameters of the update).
pub fn next_state(parent: &str, chunk: u64, update: &BTreeMap<String, String>) -> Hash {
    let mut h = blake3::Hasher::new();
    h.update(b"golf state\n");
    h.update(parent.as_bytes());
    h.update(&chunk.to_le_bytes());
    for (name, bits) in update {
        h.update(name.as_bytes());
        h.update(b"=");
        h.update(bits.as_bytes());
        h.update(b"\n");
    }
    h.finalize().to_hex().to_string()
}

/// Writes a receipt line by line; a line is on disk at most a second after it was written.
pub struct Writer {
    path: PathBuf,
    file: File,
    prev: Hash,
    synced: Instant,
}

impl Writer {
    /// Starts a new receipt.
    pub fn create(path: &Path, header: Header) -> Result<Writer> {
        let file = File::create(path).map_err(|e| Error::io(path, e))?;
        let mut w = Writer { path: path.into(), file, prev: String::new(), synced: Instant::now() };
        w.line(&Line::Header(header))?;
        w.sync()?;
        Ok(w)
    }

    /// Continues a receipt after its last complete line `prev` (see [`read`]); the file has been cut to that line.
    pub fn resume(path: &Path, prev: Hash) -> Result<Writer> {
        let file = File::options().append(true).open(path).map_err(|e| Error::io(path, e))?;
        Ok(Writer { path: path.into(), file, prev, synced: Instant::now() })
    }

    /// Hash of the last line written.
    pub fn prev(&self) -> &str {
        &self.prev
    }

    /// Appends a chunk; its `prev` is filled in here.
    pub fn chunk(&mut self, mut line: ChunkLine) -> Result<()> {
        line.prev = self.prev.clone();
        self.line(&Line::Chunk(line))?;
        if self.synced.elapsed() > Duration::from_millis(500) { self.sync() } else { Ok(()) }
    }

    /// Appends the last line and syncs.
    pub fn end(mut self, mut end: End) -> Result<()> {
        end.prev = self.prev.clone();
        self.line(&Line::End(end))?;
        self.sync()
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|e| Error::machine(e.to_string()))?;
        self.prev = hash(text.as_bytes());
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io(&self.path, e))
    }

    fn sync(&mut self) -> Result<()> {
        self.synced = Instant::now();
        self.file.sync_data().map_err(|e| Error::io(&self.path, e))
    }
}

/// A receipt read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// First line.
    pub header: Header,
    /// Chunks in file order.
    pub chunks: Vec<ChunkLine>,
    /// Byte offset behind each line (header first).
    pub offsets: Vec<u64>,
    /// Hash of each line (header first).
    pub hashes: Vec<Hash>,
    /// Last line, if the evaluation finished.
    pub end: Option<End>,
}

/// Reads a receipt and checks the chain: kinds in order, every `prev` right, nothing after the end.
pub fn read(path: &Path) -> Result<Receipt> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut reader = BufReader::new(file);
    let mut receipt: Option<Receipt> = None;
    let (mut offset, mut prev, mut number) = (0u64, String::new(), 0u64);
    loop {
        let mut text = Vec::new();
        let n = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut text).map_err(|e| Error::io(path, e))? as u64;
        if n == 0 {
            break;
        }
        number += 1;
        let bad = |message: String| Error::at(path, offset, format!("line {number}: {message}"));
        if text.pop() != Some(b'\n') {
            return Err(bad("is cut off (no line end)".into()));
        }
        let line: Line = serde_json::from_slice(&text).map_err(|e| bad(format!("is not a receipt line: {e}")))?;
        let canonical = serde_json::to_string(&line).map_err(|e| bad(e.to_string()))?;
        if canonical.as_bytes() != text {
            return Err(bad("is not in canonical form".into()));
        }
        let this = hash(&text);
        match (line, &mut receipt) {
            (Line::Header(header), None) => {
                receipt = Some(Receipt { header, chunks: vec![], offsets: vec![], hashes: vec![], end: None });
            }
            (Line::Header(_), Some(_)) => return Err(bad("a second header".into())),
            (_, None) => return Err(bad("expected the header".into())),
            (_, Some(r)) if r.end.is_some() => return Err(bad("text after the end line".into())),
            (Line::Chunk(c), Some(r)) => {
                if c.prev != prev {
                    return Err(bad("does not follow the line before it (hash of the previous line differs)".into()));
                }
                r.chunks.push(c);
            }
            (Line::End(e), Some(r)) => {
                if e.prev != prev {
                    return Err(bad("does not follow the line before it (hash of the previous line differs)".into()));
                }
                r.end = Some(e);
            }
        }
        offset += n;
        prev = this.clone();
        if let Some(r) = &mut receipt {
            r.offsets.push(offset);
            r.hashes.push(this);
        }
    }
    receipt.ok_or_else(|| Error::file(path, "is empty: expected a receipt"))
}
