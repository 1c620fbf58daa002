//! `run bench`: how fast training steps are here.
//!
//! *Takes* a session; *gives* tokens per second, milliseconds per phase and kernel family, GFLOP/s, share of the measured
//! arithmetic peak and memory, as a table or as one JSON object; *promises* real training steps on random tokens, one of them before the
//! clock starts, and, if asked for, real scoring and adaptation after them. On a GPU, kernel families are timed in one more step, call by call, which
//! takes longer than a step of graphs.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::json;

use super::args::BenchArgs;
use crate::clock::Reading;
use crate::error::{Error, Result};
use crate::eval::engine::Engine;
use crate::eval::model::Model;
use crate::exec::{Family, Session};
use crate::init::initialise;
use crate::report::output;
use crate::rng::Stream;
use crate::run::peak_rss;
use crate::train::{SEED, Stepper};

/// Seconds per phase, summed over the timed steps.
#[derive(Default)]
struct Phases {
    /// Forward and backward of all micro-batches.
    micro: f64,
    /// Clip and sum of the logical shards.
    shard: f64,
    /// Optimiser step.
    update: f64,
}

#[derive(Default)]
struct Times {
    steps: Vec<f64>,
    phases: Phases,
    families: BTreeMap<String, Family>,
    kernels: BTreeMap<String, Family>,
    /// Steps that `families` is the sum of.
    kernel_steps: u64,
}

/// Runs and prints.
pub fn bench(mut session: Session, request: &BenchArgs) -> Result<()> {
    initialise(&mut session, SEED)?;
    let tokens = Tokens::new(session.code().program.vocab);
    let times = measure(&mut session, request.steps, &tokens)?;
    let evaluation =
        if request.evaluate { Some(Evaluation::measure(&mut session, request.steps, &tokens)?) } else { None };
    let peak = session.peak();
    let measured = peak.is_none_or(|p| p.measured);
    let peak = peak.map(|p| if session.precision() == "bf16" { p.bf16 } else { p.f32 });
    let code = session.code().clone();
    let p = &code.program;
    let mut sorted = times.steps.clone();
    let step = median(&mut sorted);
    let tokens_per_second = p.train.batch as f64 / step;
    let achieved = p.flops_per_token as f64 * tokens_per_second;
    let (n, kernel_steps) = (times.steps.len() as f64, times.kernel_steps as f64);
    let predicted = p.predicted_rss[session.variant_index()];
    let phases = [("micro", times.phases.micro), ("shard", times.phases.shard), ("update", times.phases.update)];
    let families: Vec<_> = times.families.iter().map(|(name, f)| Row::new(name, f, kernel_steps, peak)).collect();
    if request.json {
        let value = json!({
            "program": p.name, "device": session.device_kind(), "machine": session.machine(), "precision": session.precision(),
            "threads": session.threads(), "tokens_per_step": p.train.batch, "step_s": times.steps, "median_step_s": step,
            "tokens_per_second": tokens_per_second, "model_gflops": achieved / 1e9,
            "model_share_of_peak": peak.map(|x| achieved / x), "peak_gflops": peak.map(|x| x / 1e9), "peak_measured": measured,
            "phase_ms": phases.iter().map(|(k, s)| (k.to_string(), s * 1e3 / n)).collect::<BTreeMap<_, _>>(),
            "families": families.iter().map(|r| (r.name.clone(), r.json())).collect::<BTreeMap<_, _>>(),
            "evaluation": evaluation.map(|e| e.json()),
            "peak_rss_bytes": peak_rss(), "predicted_rss_bytes": predicted, "device_memory_bytes": session.device_memory(),
        });
        return output::line(&value.to_string());
    }
    let source = if measured { "measured" } else { "by the data sheet" };
    let share = peak.map(|x| format!(", {:.1}% of {:.0} {source}", achieved / x * 100.0, x / 1e9)).unwrap_or_default();
    output::line(&format!(
        "{} · {} · {} {} · {} threads · {} tokens a step",
        p.name,
        session.machine(),
        session.device_kind(),
        session.precision(),
        session.threads(),
        p.train.batch
    ))?;
    output::line(&format!(
        "step {:.1} ms (median of {}, {:.1} to {:.1}) · {tokens_per_second:.0} tokens/s · {:.1} GFLOP/s of the model{share}",
        step * 1e3,
        sorted.len(),
        sorted[0] * 1e3,
        sorted[sorted.len() - 1] * 1e3,
        achieved / 1e9
    ))?;
    for (name, seconds) in phases {
        output::line(&format!("phase  {name:<14} {:>10.2} ms", seconds * 1e3 / n))?;
    }
    for line in evaluation.iter().flat_map(Evaluation::lines) {
        output::line(&line)?;
    }
    output::line("family            ms a step    calls     GFLOP/s   % of peak      GB/s")?;
    for r in &families {
        output::line(&r.line(14))?;
    }
    let mut kernels: Vec<_> = times.kernels.iter().map(|(name, f)| Row::new(name, f, kernel_steps, peak)).collect();
    kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    for r in kernels.iter().take(request.kernels) {
        output::line(&r.line(32))?;
    }
    output::line(&format!(
        "memory {:.0} MB at most, {:.0} MB predicted",
        session.device_memory().unwrap_or_else(peak_rss) as f64 / 1e6,
        predicted as f64 / 1e6
    ))
}

/// A family's figures, per step.
struct Row {
    name: String,
    ms: f64,
    calls: f64,
    gflops: f64,
    gbytes: f64,
    share: Option<f64>,
}

impl Row {
    fn new(name: &str, f: &Family, steps: f64, peak: Option<f64>) -> Row {
        let seconds = (f.nanos as f64 / 1e9).max(1e-9);
        Row {
            name: name.into(),
            ms: seconds * 1e3 / steps,
            calls: f.calls as f64 / steps,
            gflops: f.flops as f64 / seconds / 1e9,
            gbytes: f.bytes as f64 / seconds / 1e9,
            share: peak.map(|p| f.flops as f64 / seconds / p),
        }
    }

    /// One line of the table; the name takes `width` columns.
    fn line(&self, width: usize) -> String {
        let of_peak = self.share.map(|s| format!("{:.1}", s * 100.0)).unwrap_or_else(|| "-".into());
        let Row { name, ms, calls, gflops, gbytes, .. } = self;
        format!("{name:<width$} {ms:>12.3} {calls:>8.0} {gflops:>11.1} {of_peak:>11} {gbytes:>9.1}")
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "ms": self.ms, "calls": self.calls, "gflops": self.gflops, "gbytes_per_second": self.gbytes,
            "share_of_peak": self.share,
        })
    }
}

/// Random tokens.
struct Tokens {
    stream: Stream,
    vocab: u64,
}

impl Tokens {
    fn new(vocab: u32) -> Tokens {
        Tokens { stream: Stream::new(SEED, "bench tokens"), vocab: u64::from(vocab) }
    }

    fn take(&self, n: usize) -> Vec<i32> {
        let token = |i: usize| ((u64::from(self.stream.block(0, 0, i as u64)[0]) * self.vocab) >> 32) as i32;
        (0..n).map(token).collect()
    }
}

/// Sorts, and gives the middle.
fn median(x: &mut [f64]) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// What evaluation takes.
struct Evaluation {
    /// Windows that one run scores, targets that are new in each, and seconds of a run.
    windows: usize,
    stride: u64,
    score: f64,
    /// Sequences of an update of the adaptation, and its seconds.
    adapt: Option<(u32, f64)>,
}

impl Evaluation {
    /// Medians of `n` runs each, after one that does not count.
    fn measure(session: &mut Session, n: u64, tokens: &Tokens) -> Result<Evaluation> {
        let settings = session.code().program.evaluate.clone();
        let window = settings.window as usize;
        let mut model = Model::new(session)?;
        let time = |run: &mut dyn FnMut() -> Result<()>| {
            run()?;
            let once = |_| {
                let start = Instant::now();
                run().map(|()| start.elapsed().as_secs_f64())
            };
            Ok::<_, Error>(median(&mut (0..n).map(once).collect::<Result<Vec<_>>>()?))
        };
        let windows = model.rows();
        let all = tokens.take(windows * window + 1);
        let score = time(&mut || model.score(&all[..windows * window], &all[1..]).map(|_| ()))?;
        let adapt = match &settings.adapt {
            None => None,
            Some(a) => {
                let all = tokens.take(a.batch as usize * window + 1);
                Some((a.batch, time(&mut || model.adapt(&all[..all.len() - 1], &all[1..], 0, 2).map(|_| ()))?))
            }
        };
        Ok(Evaluation { windows, stride: u64::from(settings.stride), score, adapt })
    }

    fn targets_per_second(&self) -> f64 {
        (self.windows as u64 * self.stride) as f64 / self.score
    }

    fn lines(&self) -> Vec<String> {
        let Evaluation { windows, stride, score, .. } = self;
        let line = |what: String, seconds: f64| format!("{what:<21} {:>10.2} ms", seconds * 1e3);
        let rate = self.targets_per_second();
        let scored = line(format!("score  {windows} windows"), *score);
        let mut all = vec![format!("{scored} · {rate:.0} targets/s at stride {stride}")];
        all.extend(self.adapt.map(|(n, seconds)| line(format!("adapt  {n} sequences"), seconds)));
        all
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "score_windows": self.windows, "score_s": self.score, "targets_per_second": self.targets_per_second(),
            "adapt_sequences": self.adapt.map(|a| a.0), "adapt_s": self.adapt.map(|a| a.1),
        })
    }
}

fn measure(session: &mut Session, steps: u64, tokens: &Tokens) -> Result<Times> {
    let mut stepper = Stepper::new(session)?;
    let train = session.code().program.train.clone();
    let (ranks, rows, seq) = (train.ranks as usize, stepper.rows(), train.seq as usize);
    // Drawn before the clock starts: training reads tokens from memory too.
    let tokens = tokens.take(ranks * rows * seq + 1);
    let mut fill = |shard: usize, row: usize, x: &mut [i32], y: &mut [i32]| {
        let first = (shard * rows + row) * seq;
        x.copy_from_slice(&tokens[first..][..x.len()]);
        y.copy_from_slice(&tokens[first + 1..][..y.len()]);
        Ok(())
    };
    let mut times = Times { kernel_steps: steps, ..Times::default() };
    let mut one = |session: &mut Session, step: u64, times: &mut Times| {
        stepper.set_clock(step, Reading { progress: 0.0, step_time: 0.0 })?;
        session.finish()?;
        let begin = Instant::now();
        session.zero_totals()?;
        for shard in 0..ranks {
            let start = Instant::now();
            stepper.shard(session, (shard, rows), &mut fill, &mut |_| {}, &|| Ok(()))?;
            session.finish()?;
            let middle = Instant::now();
            stepper.close_shard(session)?;
            session.finish()?;
            times.phases.micro += (middle - start).as_secs_f64();
            times.phases.shard += middle.elapsed().as_secs_f64();
        }
        let start = Instant::now();
        stepper.update(session)?;
        session.finish()?;
        times.phases.update += start.elapsed().as_secs_f64();
        times.steps.push(begin.elapsed().as_secs_f64());
        Ok::<_, Error>(())
    };
    one(session, 0, &mut times)?;
    session.reset_timings();
    (times.phases, times.steps) = Default::default();
    for step in 1..=steps {
        one(session, step, &mut times)?;
    }
    if session.time_calls(true) {
        let mut other = Times { kernel_steps: 1, ..Times::default() };
        one(session, steps + 1, &mut other)?;
        session.time_calls(false);
        times.kernel_steps = 1;
    }
    times.families = session.families(|k| k.family.clone());
    times.kernels = session.families(|k| k.symbol.clone());
    Ok(times)
}
