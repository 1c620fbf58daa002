//! Time as an input.
//!
//! *Takes* the wall clock, `--steps N` or a recorded trace; *gives* per step the two numbers that training may know of time; *promises*
//! that a reading is a pure function of the trace: whoever replays the trace makes the same decisions.
//!
//! Reading i is taken before step i (from 0), and one more after the last step: training stops at the first reading with
//! `progress` >= 1 ("after a step, if elapsed >= budget, finish"), at the step cap, or at the end of the trace.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Largest trace file accepted, bytes: half a million steps of a ledger.
const LIMIT: u64 = 256 << 20;

/// What a step may know of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Time used / budget.
    pub progress: f64,
    /// Mean time of the steps so far, seconds; 0 before the first.
    pub step_time: f64,
}

/// A line of a clock trace. The decimals are for people, the bits are what counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tick {
    /// Steps done when this was read.
    pub step: u64,
    /// Time used / budget.
    pub progress: f64,
    /// Seconds.
    pub step_time: f64,
    /// Hex bits of the two, as f64.
    pub bits: [String; 2],
}

impl Tick {
    /// The line of a reading.
    pub fn new(step: u64, r: Reading) -> Tick {
        let bits = [r.progress, r.step_time].map(|x| format!("{:016x}", x.to_bits()));
        Tick { step, progress: r.progress, step_time: r.step_time, bits }
    }

    /// The reading of a line; `None` if the bits are not two finite non-negative numbers.
    pub fn reading(&self) -> Option<Reading> {
        let parse = |text: &String| {
            let x = f64::from_bits(u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16)?);
            (x.is_finite() && x >= 0.0).then_some(x)
        };
        Some(Reading { progress: parse(&self.bits[0])?, step_time: parse(&self.bits[1])? })
    }
}

/// Where readings come from.
#[derive(Debug)]
pub enum Source {
    /// The wall clock.
    Wall,
    /// `--steps N`: progress = step / N, step_time = budget / N.
    Steps(u64),
    /// `--clock TRACE`.
    Trace(Vec<Reading>),
}

/// How a run's clock is chosen, for records: a resumed run must go on with the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The wall clock.
    Wall,
    /// `--steps N`.
    Steps(u64),
    /// `--clock TRACE`, by the BLAKE3 of its readings.
    Trace(String),
}

/// The clock of a training run.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    /// Seconds.
    budget: f64,
    started: Instant,
    before: Duration,
}

impl Clock {
    /// A clock over `budget` seconds, of which earlier processes of the run have used `before`. Starts now.
    pub fn new(source: Source, budget: f64, before: Duration) -> Clock {
        Clock { source, budget, started: Instant::now(), before }
    }

    /// The reading before step `step`; `None`: the trace ends here.
    pub fn read(&self, step: u64) -> Option<Reading> {
        match &self.source {
            Source::Wall if step == 0 => Some(Reading { progress: 0.0, step_time: 0.0 }),
            Source::Wall => {
                let elapsed = self.elapsed().as_secs_f64();
                Some(Reading { progress: elapsed / self.budget, step_time: elapsed / step as f64 })
            }
            Source::Steps(0) => None,
            Source::Steps(n) => Some(Reading { progress: step as f64 / *n as f64, step_time: self.budget / *n as f64 }),
            Source::Trace(trace) => trace.get(step as usize).copied(),
        }
    }

    /// Wall time of training so far, over all processes of the run: what logs show, whatever the source.
    pub fn elapsed(&self) -> Duration {
        self.before + self.started.elapsed()
    }

    /// Steps expected in all, if that is known or can be guessed from a reading.
    pub fn expected(&self, step: u64, r: Reading) -> Option<u64> {
        match &self.source {
            Source::Steps(n) => Some(*n),
            Source::Trace(trace) => Some(trace.len().saturating_sub(1) as u64),
            Source::Wall if r.progress > 0.0 => Some((step as f64 / r.progress) as u64),
            Source::Wall => None,
        }
    }
}

/// Reads the trace in a file: the `clock` lines of a run's `ledger.jsonl`; other lines are passed over. Steps must count up from 0.
pub fn read_trace(path: &Path) -> Result<Vec<Reading>> {
    let bytes = crate::files::read_bounded(path, LIMIT)?;
    parse_trace(&bytes).map_err(|(offset, why)| Error::at(path, offset, why))
}

/// See [`read_trace`]; the error is the offset and what is wrong there.
fn parse_trace(bytes: &[u8]) -> Result<Vec<Reading>, (u64, String)> {
    #[derive(Deserialize)]
    struct Line {
        kind: String,
        #[serde(flatten)]
        rest: serde_json::Map<String, serde_json::Value>,
    }
    let (mut trace, mut offset) = (Vec::new(), 0u64);
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let here = offset;
        offset += line.len() as u64;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let parsed: Line =
            serde_json::from_slice(line).map_err(|e| (here, format!("not a line of a clock trace: {e}")))?;
        if parsed.kind != "clock" {
            continue;
        }
        let tick: Tick =
            serde_json::from_value(parsed.rest.into()).map_err(|e| (here, format!("not a clock line: {e}")))?;
        let reading = tick.reading().ok_or_else(|| (here, "the clock's bits are not two times".to_string()))?;
        if tick.step != trace.len() as u64 {
            return Err((here, format!("step {} where {} was expected", tick.step, trace.len())));
        }
        trace.push(reading);
    }
    if trace.is_empty() {
        return Err((offset, "holds no clock line".into()));
    }
    Ok(trace)
}

/// Content hash of readings, continued: what a checkpoint says about the trace that led to it.
pub fn hash(readings: &[Reading]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for r in readings {
        hasher.update(&r.progress.to_bits().to_le_bytes()).update(&r.step_time.to_bits().to_le_bytes());
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(readings: &[Reading]) -> Vec<u8> {
        let mut text = b"{\"kind\":\"run\",\"name\":\"x\"}\n".to_vec();
        for (i, r) in readings.iter().enumerate() {
            let mut line = serde_json::to_value(Tick::new(i as u64, *r)).unwrap();
            line["kind"] = "clock".into();
            text.extend(serde_json::to_vec(&line).unwrap());
            text.push(b'\n');
        }
        text
    }

    #[test]
    fn steps_replace_the_clock() {
        let clock = Clock::new(Source::Steps(4), 600.0, Duration::ZERO);
        assert_eq!(clock.read(1), Some(Reading { progress: 0.25, step_time: 150.0 }));
        assert_eq!(clock.read(4).unwrap().progress, 1.0);
        assert_eq!(Clock::new(Source::Steps(0), 600.0, Duration::ZERO).read(0), None);
    }

    #[test]
    fn wall_time_continues_after_a_resume() {
        let clock = Clock::new(Source::Wall, 100.0, Duration::from_secs(50));
        let r = clock.read(10).unwrap();
        assert!((0.5..0.6).contains(&r.progress) && (5.0..6.0).contains(&r.step_time), "{r:?}");
        assert!(clock.elapsed() >= Duration::from_secs(50));
        assert_eq!(
            Clock::new(Source::Wall, 100.0, Duration::ZERO).read(0),
            Some(Reading { progress: 0.0, step_time: 0.0 })
        );
    }

    #[test]
    fn refuses_gaps_and_nonsense() {
        let r = Reading { progress: 0.5, step_time: 1.0 };
        let good = lines(&[r, r, r]);
        assert_eq!(parse_trace(&good).unwrap(), [r, r, r]);
        let text = String::from_utf8(good).unwrap();
        for (from, to, why) in [
            ("\"step\":1", "\"step\":2", "step 2 where 1"),
            ("3fe0000000000000", "7ff0000000000000", "not two times"),
            ("3fe0000000000000", "bfe0000000000000", "not two times"),
            ("\"step\":1", "\"stop\":1", "not a clock line"),
        ] {
            let (offset, found) = parse_trace(text.replacen(from, to, 2).as_bytes()).unwrap_err();
            assert!(found.contains(why) && offset > 0, "{found}");
        }
        assert!(parse_trace(b"").unwrap_err().1.contains("no clock line"));
        assert!(parse_trace(b"hello\n").unwrap_err().1.contains("not a line"));
    }

    proptest! {
        #[test]
        fn traces_come_back_bit_for_bit(values in prop::collection::vec((0.0f64..1e9, 0.0f64..1e300), 1..20)) {
            let readings: Vec<_> = values.into_iter().map(|(progress, step_time)| Reading { progress, step_time }).collect();
            prop_assert_eq!(parse_trace(&lines(&readings)).unwrap(), readings);
        }

        #[test]
        fn noise_is_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_trace(&bytes);
        }

        #[test]
        fn damaged_traces_do_not_panic(at in 0usize..400, with in any::<u8>()) {
            let mut text = lines(&[Reading { progress: 0.5, step_time: 1.0 }; 3]);
            let at = at % text.len();
            text[at] = with;
            let _ = parse_trace(&text);
        }
    }
}
