//! `score` and `verify`: the protocol applied to a run's files.
//!
//! *Takes* a [`Run`] and the user's choices; *gives* recorded scores, the receipt and the published files; *promises* that validation data is only ever
//! scored, or adapted on after it was scored.

use super::model::Model;
use super::protocol::{self, Files};
use super::receipt::{self, Header};
use super::score::{AdaptPlan, Stream, Totals, score_all};
use super::verify;
use super::window::Windows;
use crate::data::{ByteTable, ValStream};
use crate::device::Code;
use crate::error::{Error, Result};
use crate::exec::{Options, Session};
use crate::plan::{Evaluate, Program};
use crate::quant::pack;
use crate::report::progress::Progress;
use crate::report::record::{Record, Validation};
use crate::report::{ledger, output, submission};
use crate::run::{ARTIFACT, Run, load_weights};
use crate::safetensors::{self, Tensor};
use crate::signals::Signals;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Chunk of the receipt when nothing is adapted, targets.
const PLAIN_CHUNK: u64 = 32_768;

/// What is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Weights of a file.
    Weights(PathBuf),
    /// Weights as evaluation gets them.
    Artifact(PathBuf),
}

/// What the command line asks of scoring.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// `--data`.
    pub data: PathBuf,
    /// What is scored.
    pub source: Source,
    /// Whether to adapt (if the program does).
    pub adapt: bool,
    /// File for the nll of every target.
    pub nll: Option<PathBuf>,
}

/// What the command line asks of verification.
#[derive(Clone, Debug)]
pub struct VerifyRequest {
    /// `--out`.
    pub out: PathBuf,
    /// `--data`.
    pub data: Option<PathBuf>,
    /// `--replay`.
    pub replay: bool,
    /// `--chunks A..B`.
    pub chunks: Option<Range<u64>>,
    /// Device, for a replay.
    pub options: Options,
}

/// The validation stream of a data directory, in memory.
struct ValData {
    tokens: Vec<i32>,
    bytes: Vec<u16>,
    targets: u64,
    partial: bool,
    unigram: f64,
    tokenizer: String,
    shards: Vec<String>,
}

impl ValData {
    fn open(p: &Program, data: &Path) -> Result<ValData> {
        let e = &p.evaluate;
        let (table, tokenizer) = ByteTable::open(data, p.vocab)?;
        let val = ValStream::open(data, &e.data, e.window, table)?;
        let summary = val.summary(e.limit)?;
        let targets = summary.targets;
        // Windows may read past the last scored target, never past the stream.
        let read = (targets + u64::from(e.window)).min(val.targets());
        let tokens: Vec<i32> = val.tokens(0, read as usize)?.into_iter().map(i32::from).collect();
        let bytes = val.bytes(0, targets as usize)?.into_iter().map(|b| b.min(u32::from(u16::MAX)) as u16).collect();
        let shards = val.stream().shards().iter().map(|s| Ok(s.hash()?.to_hex().to_string())).collect::<Result<_>>()?;
        let partial = targets < val.targets();
        Ok(ValData {
            tokens,
            bytes,
            targets,
            partial,
            unigram: summary.unigram_entropy,
            tokenizer: tokenizer.to_hex().to_string(),
            shards,
        })
    }

    fn stream(&self) -> Stream<'_> {
        Stream { tokens: &self.tokens, bytes: &self.bytes, targets: self.targets }
    }
}

fn windows(e: &Evaluate, targets: u64) -> Windows {
    Windows { targets, window: e.window.into(), stride: e.stride.into() }
}

fn adapt_plan(e: &Evaluate, targets: u64, adapt: bool) -> Option<AdaptPlan> {
    let a = e.adapt.as_ref().filter(|_| adapt)?;
    Some(AdaptPlan {
        window: e.window as usize,
        chunk: a.chunk,
        chunks: targets.div_ceil(a.chunk),
        epochs: a.epochs,
        batch: a.batch as usize,
    })
}

/// Loads what is to be scored; gives the hash of its file.
fn load(session: &mut Session, source: &Source) -> Result<String> {
    match source {
        Source::Weights(path) => load_weights(session, path).and_then(|()| receipt::hash_file(path)),
        Source::Artifact(path) => pack::load(session, path).and_then(|()| receipt::hash_file(path)),
    }
}

fn header(run: &mut Run, val: &ValData, artifact: String, plan: Option<&AdaptPlan>) -> Result<Header> {
    let code = run.session.code().clone();
    let p = &code.program;
    let executable = std::env::current_exe().map_err(|e| Error::machine(format!("own executable: {e}")))?;
    Ok(Header {
        version: 1,
        name: p.name.clone(),
        program: blake3::Hash::from_bytes(pack::program_hash(p)).to_hex().to_string(),
        executable: receipt::hash_file(&executable)?,
        artifact,
        tokenizer: val.tokenizer.clone(),
        val: val.shards.clone(),
        device: run.session.device_kind().into(),
        precision: run.session.precision().into(),
        seed: run.seed,
        targets: val.targets,
        partial: val.partial,
        window: p.evaluate.window,
        stride: p.evaluate.stride,
        chunk: plan.map_or(PLAIN_CHUNK, |a| a.chunk),
        adapt: plan.is_some(),
        weights: String::new(),
        attempts: 1,
    })
}

/// What a score reads, read and found good before anything is written.
pub struct Opened {
    val: ValData,
    artifact: String,
}

/// Opens the data and loads the weights.
pub fn open(session: &mut Session, o: &ScoreRequest) -> Result<Opened> {
    let val = ValData::open(&session.code().clone().program, &o.data)?;
    Ok(Opened { val, artifact: load(session, &o.source)? })
}

/// Plain, sliding and (unless told not to) score-first adapted score of the weights, with a receipt for the last of them.
pub fn score(run: &mut Run, o: &ScoreRequest, opened: Opened) -> Result<()> {
    let code = run.session.code().clone();
    let e = &code.program.evaluate;
    let Opened { val, artifact } = opened;
    let plan = adapt_plan(e, val.targets, o.adapt);
    let header = header(run, &val, artifact, plan.as_ref())?;
    run.note(format!(
        "score:{} targets{} unigram_entropy:{:.4}",
        val.targets,
        if val.partial { " partial" } else { "" },
        val.unigram
    ))?;

    let mut published: Vec<(String, Vec<usize>, Tensor)> = Vec::new();
    let stream = val.stream();
    for (name, stride) in [("plain", e.window), ("sliding", e.stride)] {
        let begin = Instant::now();
        let w = Windows { stride: stride.into(), ..windows(e, val.targets) };
        let mut progress = Progress::new(name);
        let (mut done, mut failed, signals) = (0, Ok(()), run.signals.clone());
        let mut note = |n: u64| {
            done += n;
            if failed.is_ok() {
                let share = done as f64 / val.targets as f64;
                failed = signals.check().and_then(|()| {
                    progress.update(done, val.targets, share, &format!("{name}:{done}/{}", val.targets), false)
                });
            }
        };
        let (nll, totals) = score_all(&mut Model::new(&mut run.session)?, &stream, &w, &mut note)?;
        failed?;
        record(run, name, &totals, &val, begin)?;
        published.push((format!("{name}.nll"), vec![nll.len()], Tensor::F32(nll)));
    }

    let name = if plan.is_some() { "adapted" } else { "recorded" };
    let begin = Instant::now();
    let mut progress = Progress::new(name);
    let mut failed = Ok(());
    let mut note = |done: u64, totals: &Totals| {
        if failed.is_ok() {
            let line = format!("{name}:{done}/{} bpb:{:.5}", val.targets, totals.bpb());
            failed = progress.update(done, val.targets, done as f64 / val.targets as f64, &line, false);
        }
    };
    let files = Files::of(&run.out);
    let outcome = protocol::evaluate(
        &mut Model::new(&mut run.session)?,
        &stream,
        &windows(e, val.targets),
        plan.as_ref(),
        header,
        &files,
        &mut note,
    )?;
    failed?;
    if outcome.attempts > 1 {
        run.note(format!(
            "evaluation attempts: {} (interrupted ones in {})",
            outcome.attempts,
            files.aborted.display()
        ))?;
    }
    if plan.is_some() {
        record(run, name, &outcome.totals, &val, begin)?;
        published.push(("ttt.nll".into(), vec![outcome.nll.len()], Tensor::F32(outcome.nll)));
        let updates =
            |f: &dyn Fn(&(f64, f64)) -> f64| outcome.updates.iter().map(|u| f(u) as f32).collect::<Vec<f32>>();
        let n = vec![outcome.updates.len()];
        published.push(("ttt.train_losses".into(), n.clone(), Tensor::F32(updates(&|u| u.0))));
        published.push(("ttt.grad_norms".into(), n, Tensor::F32(updates(&|u| u.1))));
    }
    if let Some(path) = &o.nll {
        safetensors::save_all(path, "nll", &run.faults, &published)?;
    }
    submission::publish(&run.out, &code.program, &ledger::entries(&run.out)?, &run.faults)
}

fn record(run: &mut Run, name: &str, totals: &Totals, val: &ValData, begin: Instant) -> Result<()> {
    let (step, of, train_ms) = submission::trained(&ledger::entries(&run.out)?);
    run.say(Record::Validation(Validation {
        name: name.into(),
        step,
        of,
        loss: totals.loss(),
        bpb: totals.bpb(),
        targets: totals.targets,
        bytes: totals.bytes,
        partial: val.partial,
        seconds: begin.elapsed().as_secs_f64(),
        unigram: Some(val.unigram),
        train_ms,
    }))
}

/// Checks a receipt, level by level, and prints what each level proves.
pub fn verify(code: &Arc<Code>, o: &VerifyRequest, signals: &Signals) -> Result<()> {
    let p = &code.program;
    let files = Files::of(&o.out);
    let (r, totals) = verify::alone(&files.receipt, &files.nll)?;
    let h = &r.header;
    let partial = if h.partial { " partial" } else { "" };
    let (chunks, bpb) = (r.chunks.len(), totals.bpb());
    output::line(&format!(
        "receipt of {} on {} ({}): {} targets in {chunks} chunks, bpb {bpb:.8}{partial}",
        h.name, h.device, h.precision, totals.targets
    ))?;
    if files.aborted.exists() {
        output::line(&format!("{} holds the lines of interrupted attempts", files.aborted.display()))?;
    }
    output::line(
        "level a passed: self-consistent and complete. It proves nothing against someone who computes a consistent forgery.",
    )?;
    let Some(data) = &o.data else { return Ok(()) };

    if h.program != blake3::Hash::from_bytes(pack::program_hash(p)).to_hex().as_str() {
        return Err(Error::file(&files.receipt, "is of another program (source, overrides or prelude differ)"));
    }
    let val = ValData::open(p, data)?;
    if h.tokenizer != val.tokenizer || h.val != val.shards {
        return Err(Error::file(&files.receipt, format!("is of other data than {}", data.display())));
    }
    let (stream, w) = (val.stream(), windows(&p.evaluate, val.targets));
    verify::against_data(&files.receipt, &r, &stream, &w)?;
    output::line(
        "level b passed: tokens, byte counts, order and exact-once partition recomputed from the data. It does not prove the losses.",
    )?;
    if !o.replay {
        return Ok(());
    }

    let artifact = o.out.join(ARTIFACT);
    if receipt::hash_file(&artifact)? != h.artifact {
        return Err(Error::file(&artifact, "is not the artifact the receipt names"));
    }
    let range = o.chunks.clone().unwrap_or(0..chunks as u64);
    if range.start >= range.end || range.end > chunks as u64 {
        return Err(Error::usage(format!(
            "--chunks {}..{}: the receipt has chunks 0..{chunks}",
            range.start, range.end
        )));
    }
    let mut session = Session::new(code.clone(), &o.options)?;
    pack::load(&mut session, &artifact)?;
    let nll = protocol::read_nll(&files.nll, h.targets)?;
    let same = h.device == session.device_kind() && h.precision == session.precision();
    let plan = adapt_plan(&p.evaluate, val.targets, h.adapt);
    let (mut progress, mut failed) = (Progress::new("replay"), Ok(()));
    let mut note = |done: u64| {
        if failed.is_ok() {
            let share = done as f64 / val.targets as f64;
            let line = format!("replay:{done}/{}", val.targets);
            failed = signals.check().and_then(|()| progress.update(done, val.targets, share, &line, false));
        }
    };
    let mut model = Model::new(&mut session)?;
    let replay = verify::Request {
        path: &files.receipt,
        receipt: &r,
        nll: &nll,
        stream: &stream,
        windows: &w,
        plan: plan.as_ref(),
        same_device: same,
        range: range.clone(),
    };
    let found = verify::replay(&replay, &mut model, &mut note)?;
    failed?;
    let what = if range == (0..chunks as u64) {
        "all chunks".to_string()
    } else {
        format!("chunks {}..{}", range.start, range.end)
    };
    let how = if found.same_bits {
        "equal bits".into()
    } else {
        format!("bpb differs by {:.2e} on another device kind", found.difference)
    };
    output::line(&format!(
        "level c passed: {what} re-executed from the artifact, {how}; bpb {:.8}. This proves the score.",
        found.totals.bpb()
    ))
}

/// The scores of `run all`; what an interrupted evaluation of other weights left is not resumed.
pub fn all(run: &mut Run, request: &ScoreRequest) -> Result<()> {
    let opened = open(&mut run.session, request)?;
    score(run, request, opened)
}
