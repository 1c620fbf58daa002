//! The recorded evaluation: chunks scored in order, a receipt line each, adaptation only afterwards; resumable.
//!
//! *Takes* an [`Engine`], a [`Stream`] and the header of the receipt; *gives* the nll of every target; *promises* that a line is written before
//! its update starts, and that an interrupted evaluation goes on from its last snapshot with the same bits (the lines after the snapshot
//! move to `receipt.aborted.jsonl`, and attempts are counted).

use super::engine::Engine;
use super::receipt::{self, ChunkLine, End, Header, Writer};
use super::score::{AdaptPlan, Stream, Totals, chunks};
use super::window::Windows;
use crate::error::{Error, Result};
use crate::files::{self, Faults};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a finished evaluation knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// nll per target, stream order.
    pub nll: Vec<f32>,
    /// Sums, chunk by chunk.
    pub totals: Totals,
    /// Sums per chunk.
    pub chunks: Vec<Totals>,
    /// (loss, gradient norm) of every update.
    pub updates: Vec<(f64, f64)>,
    /// How often the evaluation was started.
    pub attempts: u32,
}

/// Where the evaluation writes.
#[derive(Clone, Debug)]
pub struct Files {
    /// `receipt.jsonl`.
    pub receipt: PathBuf,
    /// `receipt.aborted.jsonl`.
    pub aborted: PathBuf,
    /// nll of all scored targets, little-endian f32.
    pub nll: PathBuf,
    /// State to resume from.
    pub snapshot: PathBuf,
}

impl Files {
    /// The usual names under a run's folder.
    pub fn of(out: &Path) -> Files {
        Files {
            receipt: out.join("receipt.jsonl"),
            aborted: out.join("receipt.aborted.jsonl"),
            nll: out.join("nll.f32"),
            snapshot: out.join("evaluation.state"),
        }
    }
}

/// How often a snapshot is written.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);
/// Weights are hashed into the receipt every this many chunks.
const WEIGHTS_EVERY: u64 = 100;

/// Content hash number 0 of a state: the weights an evaluation starts from.
fn first_state(weights: &str) -> String {
    receipt::next_state(weights, u64::MAX, &BTreeMap::new())
}

/// Hyper-parameters as the receipt writes them.
pub fn update_record(engine: &dyn Engine, plan: &AdaptPlan, chunk: u64) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        engine.hypers(chunk, plan.chunks).into_iter().map(|(k, v)| (k, receipt::hex_f64(v))).collect();
    all.insert("epochs".into(), receipt::hex_f64(plan.epochs as f64));
    all.insert("batch".into(), receipt::hex_f64(plan.batch as f64));
    all
}

/// State ids along a receipt: the id each chunk must have been scored with.
pub fn expected_states(header: &Header, lines: &[ChunkLine]) -> Vec<String> {
    let mut state = first_state(&header.weights);
    let mut all = Vec::new();
    for line in lines {
        all.push(state.clone());
        if let Some(update) = &line.update {
            state = receipt::next_state(&state, line.index, update);
        }
    }
    all
}

/// Content of the snapshot file: receipt position and engine state.
struct Snapshot {
    chunk: u64,
    receipt_offset: u64,
    prev: String,
    state: String,
    engine: Vec<u8>,
}

impl Snapshot {
    fn write(&self, path: &Path) -> Result<()> {
        let head = serde_json::json!({"chunk": self.chunk, "receipt_offset": self.receipt_offset, "prev": self.prev, "state": self.state,
            "engine": self.engine.len(), "hash": receipt::hash(&self.engine)});
        let mut bytes = serde_json::to_vec(&head).map_err(|e| Error::machine(e.to_string()))?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.engine);
        files::atomic_bytes(path, "evaluation", &Faults::none(), &bytes)
    }

    /// `None` when there is no usable snapshot: the evaluation then starts over.
    fn read(path: &Path) -> Option<Snapshot> {
        let bytes = fs::read(path).ok()?;
        let end = bytes.iter().position(|&b| b == b'\n')?;
        let head: serde_json::Value = serde_json::from_slice(&bytes[..end]).ok()?;
        let engine = bytes[end + 1..].to_vec();
        if head["hash"].as_str()? != receipt::hash(&engine) {
            return None;
        }
        Some(Snapshot {
            chunk: head["chunk"].as_u64()?,
            receipt_offset: head["receipt_offset"].as_u64()?,
            prev: head["prev"].as_str()?.into(),
            state: head["state"].as_str()?.into(),
            engine,
        })
    }
}

/// Runs (or goes on with) the recorded evaluation. `note` receives (targets done, running totals) after each chunk.
pub fn evaluate(
    engine: &mut dyn Engine,
    stream: &Stream,
    windows: &Windows,
    plan: Option<&AdaptPlan>,
    mut header: Header,
    files: &Files,
    note: &mut dyn FnMut(u64, &Totals),
) -> Result<Outcome> {
    let size = header.chunk;
    let count = stream.targets.div_ceil(size);
    header.weights = engine.weights_hash()?;
    let mut state = first_state(&header.weights);
    let (mut nll, mut per_chunk, mut totals, mut updates, mut first) =
        (Vec::new(), Vec::new(), Totals::default(), Vec::new(), 0);

    let resumed = resume(&mut header, files)?;
    let mut writer = match resumed {
        Some((snapshot, lines)) => {
            engine.restore(&snapshot.engine)?;
            nll = read_nll(&files.nll, lines.iter().map(|l| l.count).sum())?;
            for line in &lines {
                let sum = receipt::parse_f64(&line.sum_nll)
                    .ok_or_else(|| Error::file(&files.receipt, "a sum is not a number"))?;
                let t = Totals { sum_nll: sum, targets: line.count, bytes: line.bytes };
                totals.add(&t);
                per_chunk.push(t);
            }
            (first, state) = (snapshot.chunk, snapshot.state);
            Writer::resume(&files.receipt, snapshot.prev)?
        }
        None => {
            truncate(&files.nll, 0)?;
            Writer::create(&files.receipt, header.clone())?
        }
    };
    let mut nll_file =
        fs::File::options().append(true).create(true).open(&files.nll).map_err(|e| Error::io(&files.nll, e))?;
    let mut saved = Instant::now();

    for unscored in chunks(stream.targets, size, first) {
        let index = unscored.index;
        let scored = unscored.score(engine, stream, windows, &mut |_| {})?;
        nll_file.write_all(bytemuck::cast_slice(&scored.state.nll)).map_err(|e| Error::io(&files.nll, e))?;
        let adapt = plan.filter(|_| index + 1 < count);
        let update = adapt.map(|p| update_record(engine, p, index));
        let range = scored.targets.clone();
        writer.chunk(ChunkLine {
            index,
            first: range.start,
            count: range.end - range.start,
            sum_nll: receipt::hex_f64(scored.state.totals.sum_nll),
            bytes: scored.state.totals.bytes,
            nll: receipt::hash_f32(&scored.state.nll),
            tokens: receipt::hash_i32(&stream.tokens[range.start as usize + 1..range.end as usize + 1]),
            state: state.clone(),
            weights: if index > 0 && index % WEIGHTS_EVERY == 0 { Some(engine.weights_hash()?) } else { None },
            update: update.clone(),
            prev: String::new(),
        })?;
        totals.add(&scored.state.totals);
        per_chunk.push(scored.state.totals);
        nll.extend_from_slice(&scored.state.nll);
        note(range.end, &totals);
        if let (Some(p), Some(update)) = (adapt, &update) {
            updates.extend(scored.adapt(engine, stream, p)?);
            state = receipt::next_state(&state, index, update);
        }
        if saved.elapsed() > SNAPSHOT_EVERY && index + 1 < count {
            nll_file.sync_data().map_err(|e| Error::io(&files.nll, e))?;
            let offset = fs::metadata(&files.receipt).map_err(|e| Error::io(&files.receipt, e))?.len();
            Snapshot {
                chunk: index + 1,
                receipt_offset: offset,
                prev: writer.prev().into(),
                state: state.clone(),
                engine: engine.snapshot()?,
            }
            .write(&files.snapshot)?;
            saved = Instant::now();
        }
    }
    nll_file.sync_data().map_err(|e| Error::io(&files.nll, e))?;
    writer.end(End {
        chunks: count,
        sum_nll: receipt::hex_f64(totals.sum_nll),
        bytes: totals.bytes,
        weights: engine.weights_hash()?,
        prev: String::new(),
    })?;
    let _ = fs::remove_file(&files.snapshot);
    Ok(Outcome { nll, totals, chunks: per_chunk, updates, attempts: header.attempts })
}

/// Looks for an interrupted evaluation of the same thing. Counts the attempt; cuts receipt and nll back to the snapshot.
fn resume(header: &mut Header, files: &Files) -> Result<Option<(Snapshot, Vec<ChunkLine>)>> {
    let Ok(text) = fs::read(&files.receipt) else { return Ok(None) };
    // A torn last line is what kill -9 leaves behind: set it aside with the other aborted lines.
    let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |p| p + 1);
    if whole < text.len() {
        truncate(&files.receipt, whole as u64)?;
    }
    let Ok(old) = receipt::read(&files.receipt) else { return Ok(None) };
    if old.end.is_some() {
        return Ok(None); // a finished evaluation is simply done again
    }
    // An empty line ends each aborted attempt, so the file also counts them.
    let snapshot = Snapshot::read(&files.snapshot)
        .filter(|_| Header { attempts: header.attempts, ..old.header.clone() } == *header);
    let keep = snapshot.as_ref().map_or(0, |s| s.receipt_offset.min(whole as u64));
    let mut aborted =
        fs::File::options().append(true).create(true).open(&files.aborted).map_err(|e| Error::io(&files.aborted, e))?;
    aborted
        .write_all(&text[keep as usize..whole])
        .and_then(|_| aborted.write_all(b"\n"))
        .map_err(|e| Error::io(&files.aborted, e))?;
    header.attempts = 1 + fs::read(&files.aborted)
        .map_or(0, |t| t.split(|&b| b == b'\n').filter(|l| l.is_empty()).count() as u32 - 1);
    let Some(snapshot) = snapshot else { return Ok(None) };
    let n = old.offsets.iter().position(|&o| o == snapshot.receipt_offset);
    match n {
        // Line n is the last one kept; line 0 is the header.
        Some(n) if old.hashes[n] == snapshot.prev && n as u64 == snapshot.chunk => {
            truncate(&files.receipt, keep)?;
            let lines = old.chunks[..n].to_vec();
            truncate(&files.nll, 4 * lines.iter().map(|l| l.count).sum::<u64>())?;
            Ok(Some((snapshot, lines)))
        }
        _ => Ok(None),
    }
}

fn truncate(path: &Path, len: u64) -> Result<()> {
    let file =
        fs::File::options().write(true).create(true).truncate(false).open(path).map_err(|e| Error::io(path, e))?;
    file.set_len(len).map_err(|e| Error::io(path, e))
}

/// Reads `count` f32 values; the file must hold exactly those.
pub fn read_nll(path: &Path, count: u64) -> Result<Vec<f32>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 != 4 * count {
        return Err(Error::file(path, format!("expected {count} losses of 4 bytes, found {} bytes", bytes.len())));
    }
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}
