//! Plain, sliding and score-first adapted scoring.
//!
//! *Takes* an [`Engine`] and a validation stream; *gives* nll per target in stream order and the sums; *promises* that each target is scored exactly
//! once, with weights that never saw it: an unscored chunk is a type that can only be scored, once, and only a scored chunk can be adapted on.

use super::engine::Engine;
use super::window::{Window, Windows, chunk};
use crate::error::{Error, Result};
use std::ops::Range;

/// The validation stream, its byte counts, and what part of it is scored.
pub struct Stream<'a> {
    /// Tokens; target i is token i + 1.
    pub tokens: &'a [i32],
    /// Bytes of each target, `bytes[i]` for target i.
    pub bytes: &'a [u16],
    /// Number of targets scored, at most `tokens.len() - 1`.
    pub targets: u64,
}

/// Sums over some targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Sum of nll in nats, f64 in stream order.
    pub sum_nll: f64,
    /// Number of targets.
    pub targets: u64,
    /// Bytes of the targets.
    pub bytes: u64,
}

impl Totals {
    /// Mean nll, nats per token.
    pub fn loss(&self) -> f64 {
        self.sum_nll / self.targets as f64
    }
    /// Bits per byte: sum of nll / (ln 2 * bytes).
    pub fn bpb(&self) -> f64 {
        self.sum_nll / (std::f64::consts::LN_2 * self.bytes as f64)
    }
    /// Adds one after the other, so that chunk sums add up to exactly what the receipt says.
    pub fn add(&mut self, other: &Totals) {
        self.sum_nll += other.sum_nll;
        self.targets += other.targets;
        self.bytes += other.bytes;
    }
}

/// State of a chunk that has not been scored.
pub struct Unscored;
/// State of a chunk whose nll are known and recorded.
pub struct Scored {
    /// nll of the chunk's targets in stream order.
    pub nll: Vec<f32>,
    /// Its sums.
    pub totals: Totals,
}

/// A range of targets in one of two states; the state can only go forward.
pub struct Chunk<S> {
    /// Number of the chunk.
    pub index: u64,
    /// Its targets.
    pub targets: Range<u64>,
    /// `Unscored` or `Scored`.
    pub state: S,
}

/// The chunks of a stream, in order; each can be taken once.
pub fn chunks(targets: u64, size: u64, from: u64) -> impl Iterator<Item = Chunk<Unscored>> {
    (from..targets.div_ceil(size)).map(move |c| Chunk { index: c, targets: chunk(targets, size, c), state: Unscored })
}

impl Chunk<Unscored> {
    /// Scores the chunk's windows with the engine's current weights. Consumes the unscored chunk: it cannot be scored again.
    ///
    /// A window belongs to the chunk of its first scored target (specification 5.1), so when the stride does not divide the chunk the scored range
    /// of the last window may reach into the next chunk; `done` is how far scoring has come and makes the partition exact.
    pub fn score(
        self,
        engine: &mut dyn Engine,
        stream: &Stream,
        windows: &Windows,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Chunk<Scored>> {
        let owned = windows.scoring(self.targets.clone());
        let mut nll = Vec::new();
        let rows = engine.rows() as u64;
        let mut k = owned.start;
        while k < owned.end {
            let batch: Vec<Window> = (k..(k + rows).min(owned.end)).map(|i| windows.get(i)).collect();
            score_windows(engine, stream, windows.window as usize, &batch, &mut nll)?;
            k += batch.len() as u64;
            progress(batch.iter().map(|w| w.scored.end - w.scored.start).sum());
        }
        let first = if owned.is_empty() { self.targets.start } else { windows.get(owned.start).scored.start };
        let targets = first..first + nll.len() as u64;
        let mut totals = Totals::default();
        for (i, &x) in targets.clone().zip(&nll) {
            if !x.is_finite() {
                return Err(Error::input(format!(
                    "the loss of target {i} is {x}: the weights do not give a probability"
                )));
            }
            totals.sum_nll += x as f64;
            totals.bytes += stream.bytes[i as usize] as u64;
        }
        totals.targets = nll.len() as u64;
        Ok(Chunk { index: self.index, targets, state: Scored { nll, totals } })
    }
}

impl Chunk<Scored> {
    /// Trains on the chunk: `epochs` passes over its whole sequences of `window` targets, `batch` sequences per update (specification 5.1).
    /// Only a scored chunk has this method. Gives (loss, gradient norm) per update.
    pub fn adapt(&self, engine: &mut dyn Engine, stream: &Stream, plan: &AdaptPlan) -> Result<Vec<(f64, f64)>> {
        let window = plan.window;
        let range = chunk(stream.targets, plan.chunk, self.index);
        let sequences = ((range.end - range.start) / window as u64) as usize;
        let mut done = Vec::new();
        for _ in 0..plan.epochs {
            for first in (0..sequences).step_by(plan.batch) {
                let n = plan.batch.min(sequences - first);
                let start = range.start as usize + first * window;
                let tokens = &stream.tokens[start..start + n * window];
                let targets = &stream.tokens[start + 1..start + 1 + n * window];
                done.push(engine.adapt(tokens, targets, self.index, plan.chunks)?);
            }
        }
        Ok(done)
    }
}

/// How chunks are trained on.
#[derive(Clone, Copy, Debug)]
pub struct AdaptPlan {
    /// Tokens per sequence.
    pub window: usize,
    /// Targets per chunk.
    pub chunk: u64,
    /// Number of chunks of the stream; the last one is never trained on.
    pub chunks: u64,
    /// Passes.
    pub epochs: u32,
    /// Sequences per update.
    pub batch: usize,
}

/// Runs some windows and appends the nll of their scored targets.
fn score_windows(
    engine: &mut dyn Engine,
    stream: &Stream,
    window: usize,
    batch: &[Window],
    nll: &mut Vec<f32>,
) -> Result<()> {
    let rows = engine.rows();
    let (mut tokens, mut targets) = (vec![0i32; rows * window], vec![0i32; rows * window]);
    for (r, w) in batch.iter().enumerate() {
        let start = w.start as usize;
        let n = window.min(stream.tokens.len() - 1 - start);
        tokens[r * window..r * window + n].copy_from_slice(&stream.tokens[start..start + n]);
        targets[r * window..r * window + n].copy_from_slice(&stream.tokens[start + 1..start + 1 + n]);
    }
    let out = engine.score(&tokens, &targets)?;
    for (r, w) in batch.iter().enumerate() {
        let from = r * window + (w.scored.start - w.start) as usize;
        nll.extend_from_slice(&out[from..from + (w.scored.end - w.scored.start) as usize]);
    }
    Ok(())
}

/// Scores all targets without adapting. `stride = window` is the plain (non-overlapping) score.
pub fn score_all(
    engine: &mut dyn Engine,
    stream: &Stream,
    windows: &Windows,
    progress: &mut dyn FnMut(u64),
) -> Result<(Vec<f32>, Totals)> {
    let whole = Chunk { index: 0, targets: 0..stream.targets, state: Unscored };
    let scored = whole.score(engine, stream, windows, progress)?;
    Ok((scored.state.nll, scored.state.totals))
}
