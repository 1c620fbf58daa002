//! The validation loss at the end of training.
//!
//! *Takes* the weights in a run's session and the validation shards; *gives* mean nll and bits per byte over contiguous windows
//! (specification 1.5), recorded; *promises* sums in f64 in stream order, and nothing of validation flowing back into training.

use std::path::Path;
use std::time::Instant;

use crate::data::{ByteTable, ValStream};
use crate::error::{Error, Result};
use crate::plan::Program;
use crate::report::Record;
use crate::report::record::Validation;
use crate::run::Run;

/// Tokens looked at before training begins.
const CHECKED: u64 = 1 << 23;

/// Opens the validation stream of a program. Errors (exit 1): no shards, no tokenizer or not this program's, too few tokens.
fn open(p: &Program, data: &Path) -> Result<ValStream> {
    let (table, _) = ByteTable::open(data, p.vocab)?;
    ValStream::open(data, &p.evaluate.data, p.evaluate.window, table)
}

/// Finds out before training whether validation will be possible after it.
pub fn check(p: &Program, data: &Path) -> Result<()> {
    open(p, data)?.stream().check(CHECKED)
}

/// Scores the first `evaluate.limit` targets and records the result as `final`, `(step, of)` being training's place.
pub fn validate(run: &mut Run, data: &Path, (step, of): (u64, u64), train_ms: f64) -> Result<()> {
    let begin = Instant::now();
    let code = run.session.code().clone();
    let p = &code.program;
    let val = open(p, data)?;
    let summary = val.summary(p.evaluate.limit)?;
    let sum = nll(run, &val, summary.targets)?;
    let loss = sum / summary.targets as f64;
    run.say(Record::Validation(Validation {
        name: "final".into(),
        step,
        of,
        loss,
        bpb: sum / (std::f64::consts::LN_2 * summary.bytes as f64),
        targets: summary.targets,
        bytes: summary.bytes,
        partial: p.evaluate.limit.is_some_and(|limit| limit < val.targets()),
        seconds: begin.elapsed().as_secs_f64(),
        unigram: Some(summary.unigram_entropy),
        train_ms,
    }))
}

/// Sum of nll over the first `count` targets, windows one after the other.
fn nll(run: &mut Run, val: &ValStream, count: u64) -> Result<f64> {
    let code = run.session.code().clone();
    let e = &code.program.evaluate;
    let (window, rows) = (e.window as usize, run.session.variant().rows.score as usize);
    let graph = run.session.graph("score")?;
    let (tokens, targets) = (run.session.input(graph, "tokens")?, run.session.input(graph, "targets")?);
    let out = run.session.output(graph, "nll")?;
    let (mut x, mut y) = (vec![0; rows * window], vec![0; rows * window]);
    let (mut sum, mut first) = (0.0, 0u64);
    while first < count {
        run.signals.check()?;
        x.fill(0);
        y.fill(0);
        // Whole windows: the stream's length is a multiple of them.
        let n = ((rows * window) as u64).min(val.targets() - first) as usize;
        let stream = val.tokens(first, n)?;
        for i in 0..n {
            (x[i], y[i]) = (i32::from(stream[i]), i32::from(stream[i + 1]));
        }
        run.session.write_i32(&tokens, &x)?;
        run.session.write_i32(&targets, &y)?;
        run.session.run(graph)?;
        let wanted = n.min((count - first) as usize);
        sum = run.session.read_f32(&out)?[..wanted].iter().fold(sum, |s, &l| s + f64::from(l));
        first += n as u64;
    }
    if !sum.is_finite() {
        return Err(Error::input(format!("the validation loss is {sum}: the weights do not give a probability")));
    }
    Ok(sum)
}
