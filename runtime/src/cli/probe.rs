//! `run probe`: what this program computes for given weights and tokens.
//!
//! *Takes* weights and tokens as safetensors; *gives* `loss`, `nll` \[B, T\], `grad.NAME` of the mean loss over the whole batch
//! (`ranks = 1`, before any clip; zeros for a parameter that gets none) and, with `--steps N`, `param.NAME` after N optimiser
//! steps on that batch with `losses` and `grad_norms`; *promises* the training form of the graphs, nothing simplified.
//!
//! The clock of the steps has the whole budget ahead (`progress` and `step_time` 0), so that schedules stand at their start and
//! only what depends on `step` moves.

use super::args::ProbeArgs;
use crate::clock::Reading;
use crate::error::{Error, Result};
use crate::exec::Session;
use crate::files::Faults;
use crate::report::output;
use crate::run::load_weights;
use crate::safetensors::{Reader, Tensor, save_all};
use crate::train::Stepper;

/// Rows of tokens \[B, T+1\].
struct Tokens {
    all: Vec<i32>,
    rows: usize,
    seq: usize,
}

impl Tokens {
    /// Error: not \[B, T+1\] for this program's batch and sequence length, or a token outside the vocabulary.
    fn read(request: &ProbeArgs, session: &Session) -> Result<Tokens> {
        let p = &session.code().program;
        let (rows, seq) = ((p.train.batch / u64::from(p.train.seq)) as usize, p.train.seq as usize);
        let reader = Reader::open(&request.tokens)?;
        let shape = &reader.entry("tokens")?.shape;
        if shape != &[rows, seq + 1] {
            return Err(Error::file(
                &request.tokens,
                format!(
                    "tokens have shape {shape:?}, this program takes [{rows}, {}]: compile with --set seq=T --set train.batch=B*T",
                    seq + 1
                ),
            ));
        }
        let all = reader.i32("tokens")?;
        if let Some(i) = all.iter().position(|&t| !(0..p.vocab as i32).contains(&t)) {
            let (token, vocab) = (all[i], p.vocab);
            return Err(Error::file(
                &request.tokens,
                format!("tokens[{i}] is {token}, not in the vocabulary of {vocab}"),
            ));
        }
        Ok(Tokens { all, rows, seq })
    }

    fn fill(&self, first: usize, x: &mut [i32], y: &mut [i32]) {
        for (i, (x, y)) in x.chunks_exact_mut(self.seq).zip(y.chunks_exact_mut(self.seq)).enumerate() {
            let row = &self.all[(first + i) * (self.seq + 1)..][..self.seq + 1];
            x.copy_from_slice(&row[..self.seq]);
            y.copy_from_slice(&row[1..]);
        }
    }
}

/// Runs the probe and writes `--out`.
pub fn probe(mut session: Session, request: &ProbeArgs, faults: &Faults) -> Result<()> {
    load_weights(&mut session, &request.weights)?;
    let tokens = Tokens::read(request, &session)?;
    initial_states(&mut session)?;
    let mut stepper = Stepper::new(&session)?;
    let count = tokens.rows * tokens.seq;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    let mut out = Vec::new();
    for step in 0..request.steps.unwrap_or(1).max(1) {
        stepper.set_clock(step, Reading { progress: 0.0, step_time: 0.0 })?;
        let mut nll = Vec::with_capacity(count);
        let mut fill = |_: usize, first: usize, x: &mut [i32], y: &mut [i32]| {
            tokens.fill(first, x, y);
            Ok(())
        };
        let sum =
            stepper.shard(&mut session, (0, tokens.rows), &mut fill, &mut |n| nll.extend_from_slice(n), &|| Ok(()))?;
        let loss = sum / count as f64;
        losses.push(loss as f32);
        if step == 0 {
            output::line(&format!("loss {loss:.6} over {count} targets"))?;
            out.push(("loss".to_string(), vec![], Tensor::F32(vec![loss as f32])));
            out.push(("nll".to_string(), vec![tokens.rows, tokens.seq], Tensor::F32(nll)));
            gradients(&session, &mut out)?;
        }
        if request.steps.unwrap_or(0) > 0 {
            // A program of several logical shards sees the batch as that many equal shards.
            session.zero_totals()?;
            let mut norm = None;
            for _ in 0..session.code().program.train.ranks {
                norm = stepper.close_shard(&mut session)?;
            }
            norms.push(stepper.update(&mut session)?.or(norm).unwrap_or(f64::NAN) as f32);
        }
    }
    if request.steps.unwrap_or(0) > 0 {
        out.push(("losses".into(), vec![losses.len()], Tensor::F32(losses)));
        out.push(("grad_norms".into(), vec![norms.len()], Tensor::F32(norms)));
        for b in session.params() {
            out.push((format!("param.{}", b.name), b.shape.clone(), Tensor::F32(session.read_f32(&b)?)));
        }
    }
    save_all(&request.out, "probe", faults, &out)
}

fn gradients(session: &Session, out: &mut Vec<(String, Vec<usize>, Tensor)>) -> Result<()> {
    for b in session.params() {
        let name = format!("grad.{}", b.name);
        let values = match session.buffer(&name) {
            Ok(g) => session.read_f32(&g)?,
            Err(_) => vec![0.0; b.numel()],
        };
        out.push((name, b.shape.clone(), Tensor::F32(values)));
    }
    Ok(())
}

/// Optimiser states as training finds them (averages that start from the weights are not used here).
fn initial_states(session: &mut Session) -> Result<()> {
    let code = session.code().clone();
    let v = &code.program.variants[session.variant_index()];
    for (index, how) in &v.state_init {
        let buffer = &v.state[*index as usize];
        if let crate::plan::Init::Fill(x) = how {
            session.write_f32(buffer, &vec![*x as f32; buffer.numel()])?;
        }
    }
    Ok(())
}
