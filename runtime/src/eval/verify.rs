//! The three levels of `verify`.
//!
//! *Takes* a receipt (and, level by level, the data and the program); *gives* what was proven; *promises* to say what each level does not prove.

use super::engine::Engine;
use super::protocol::{expected_states, read_nll, update_record};
use super::receipt::{self, ChunkLine, Receipt};
use super::score::{AdaptPlan, Stream, Totals, chunks};
use super::window::Windows;
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;

/// Largest difference of bpb accepted when replaying on another device kind.
pub const BPB_TOLERANCE: f64 = 2e-4;

/// Level (a): the receipt alone. Chain, completeness, order, sums, state ids, and the nll file it commits to.
pub fn alone(path: &Path, nll_path: &Path) -> Result<(Receipt, Totals)> {
    let r = receipt::read(path)?;
    let bad = |i: usize, message: String| Error::file(path, format!("chunk line {i}: {message}"));
    let Some(end) = &r.end else {
        return Err(Error::file(path, "has no end line: the evaluation did not finish or lines were cut off"));
    };
    let count: u64 = r.chunks.iter().map(|c| c.count).sum();
    if count != r.header.targets {
        return Err(Error::file(path, format!("expected {} targets, found {count}", r.header.targets)));
    }
    let nll = read_nll(nll_path, count)?;
    let states = expected_states(&r.header, &r.chunks);
    let (mut next, mut totals) = (0u64, Totals::default());
    for (i, c) in r.chunks.iter().enumerate() {
        if c.index != i as u64 {
            return Err(bad(i, format!("expected chunk {i}, found chunk {}", c.index)));
        }
        if c.first != next {
            return Err(bad(i, format!("expected first target {next}, found {}", c.first)));
        }
        if c.state != states[i] {
            return Err(bad(i, "the state it was scored with does not follow from the chunks before".into()));
        }
        let last = i + 1 == r.chunks.len();
        if c.update.is_some() != (r.header.adapt && !last) {
            return Err(bad(i, "adaptation is not as the header says".into()));
        }
        let values = &nll[next as usize..(next + c.count) as usize];
        if receipt::hash_f32(values) != c.nll {
            return Err(bad(i, format!("the losses in {} are not the ones it commits to", nll_path.display())));
        }
        let sum: f64 = values.iter().map(|&x| x as f64).sum();
        if receipt::hex_f64(sum) != c.sum_nll {
            return Err(bad(i, "the sum is not the sum of its losses".into()));
        }
        totals.add(&Totals { sum_nll: sum, targets: c.count, bytes: c.bytes });
        next += c.count;
    }
    if end.chunks != r.chunks.len() as u64
        || end.sum_nll != receipt::hex_f64(totals.sum_nll)
        || end.bytes != totals.bytes
    {
        return Err(Error::file(path, "the totals of the end line are not the sums of the chunks"));
    }
    Ok((r, totals))
}

/// Level (b): with the data. Tokens, byte counts, order and exact-once partition are recomputed from the validation shards.
pub fn against_data(path: &Path, r: &Receipt, stream: &Stream, windows: &Windows) -> Result<()> {
    let bad = |i: usize, message: &str| Error::file(path, format!("chunk line {i}: {message}"));
    if r.header.targets != stream.targets {
        return Err(Error::file(
            path,
            format!("scores {} targets, the data and program have {}", r.header.targets, stream.targets),
        ));
    }
    let mut next = 0u64;
    let expected = stream.targets.div_ceil(r.header.chunk);
    if expected != r.chunks.len() as u64 {
        return Err(Error::file(path, format!("expected {expected} chunks, found {}", r.chunks.len())));
    }
    for (i, (c, chunk)) in r.chunks.iter().zip(chunks(stream.targets, r.header.chunk, 0)).enumerate() {
        let owned = windows.scoring(chunk.targets.clone());
        let count: u64 = owned.map(|k| windows.get(k)).map(|w| w.scored.end - w.scored.start).sum();
        if c.first != next || c.count != count {
            return Err(bad(i, "does not score the targets of its windows exactly once"));
        }
        let range = next as usize..(next + count) as usize;
        if receipt::hash_i32(&stream.tokens[range.start + 1..range.end + 1]) != c.tokens {
            return Err(bad(i, "the targets are not those of the validation data"));
        }
        let bytes: u64 = stream.bytes[range].iter().map(|&b| b as u64).sum();
        if bytes != c.bytes {
            return Err(bad(i, &format!("counts {} bytes, the tokenizer's table gives {bytes}", c.bytes)));
        }
        next += count;
    }
    Ok(())
}

/// What a replay found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Replay {
    /// Sums of the re-executed chunks.
    pub totals: Totals,
    /// Every loss had the same bits.
    pub same_bits: bool,
    /// bpb of the replayed chunks minus the receipt's.
    pub difference: f64,
}

/// What is replayed.
pub struct Request<'a> {
    /// The receipt's file, for messages.
    pub path: &'a Path,
    /// The receipt, which has passed levels (a) and (b).
    pub receipt: &'a Receipt,
    /// The losses it commits to.
    pub nll: &'a [f32],
    /// The data.
    pub stream: &'a Stream<'a>,
    /// Its windows.
    pub windows: &'a Windows,
    /// How chunks are adapted on, if at all.
    pub plan: Option<&'a AdaptPlan>,
    /// Same device kind and precision: bits must agree.
    pub same_device: bool,
    /// Chunks compared.
    pub range: Range<u64>,
}

/// Level (c): score and adaptation re-executed from the artifact's weights (already loaded in `engine`). Chunks before the range are executed
/// as well (their updates lead to the state), only those inside are compared. Same device kind: equal bits; else |Δbpb| ≤ 2e-4.
pub fn replay(q: &Request, engine: &mut dyn Engine, note: &mut dyn FnMut(u64)) -> Result<Replay> {
    let Request { path, receipt: r, nll, stream, windows, plan, same_device, range } = q;
    let fail = |message: String| Error::file(path, message);
    if engine.weights_hash()? != r.header.weights {
        return Err(fail("the artifact's weights are not the ones the evaluation started from".into()));
    }
    let (mut totals, mut claimed, mut same_bits) = (Totals::default(), Totals::default(), true);
    let count = stream.targets.div_ceil(r.header.chunk);
    for unscored in chunks(stream.targets, r.header.chunk, 0).take_while(|c| c.index < range.end) {
        let line: &ChunkLine = &r.chunks[unscored.index as usize];
        let inside = range.contains(&unscored.index);
        let adapt = plan.filter(|_| unscored.index + 1 < count);
        if adapt.map(|p| update_record(engine, p, unscored.index)) != line.update {
            return Err(fail(format!("chunk {}: the update's hyper-parameters are not the program's", unscored.index)));
        }
        let scored = unscored.score(engine, stream, windows, &mut |_| {})?;
        if inside {
            let old = &nll[line.first as usize..(line.first + line.count) as usize];
            let equal = old.iter().map(|x| x.to_bits()).eq(scored.state.nll.iter().map(|x| x.to_bits()));
            if *same_device && !equal {
                let worst = old.iter().zip(&scored.state.nll).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                return Err(fail(format!("chunk {}: re-executed losses differ (by up to {worst:e} nats)", line.index)));
            }
            same_bits &= equal;
            totals.add(&scored.state.totals);
            let sum = receipt::parse_f64(&line.sum_nll).unwrap_or(f64::NAN);
            claimed.add(&Totals { sum_nll: sum, targets: line.count, bytes: line.bytes });
        }
        note(scored.targets.end);
        if let Some(p) = adapt {
            scored.adapt(engine, stream, p)?;
        }
    }
    let difference = totals.bpb() - claimed.bpb();
    if !*same_device && !(difference.abs() <= BPB_TOLERANCE) {
        return Err(fail(format!("re-executed bpb differs by {difference:e}, more than {BPB_TOLERANCE:e}")));
    }
    Ok(Replay { totals, same_bits, difference })
}
