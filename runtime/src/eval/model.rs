//! The generated model as an [`Engine`].
//!
//! *Takes* a [`Session`] whose parameters are loaded; *gives* scoring and adaptation through the plan's graphs; *promises* that scoring reads the
//! weights and never writes them, and that adaptation state starts from its declared initial values.

use super::engine::Engine;
use crate::error::{Error, Result};
use crate::exec::{GraphId, Session};
use crate::host;
use crate::plan::{Buffer, Hyper, Init};
use std::collections::BTreeMap;

/// State buffers of adaptation start with this.
const ADAPT_STATE: &str = "adapt.";

/// A session seen as a scorable, adaptable model.
pub struct Model<'s> {
    session: &'s mut Session,
    rows: usize,
    window: usize,
    score: GraphIo,
    adapt: Option<AdaptIo>,
    /// Parameters and adaptation state: what a snapshot holds.
    state: Vec<Buffer>,
}

/// A graph with its token buffers.
struct GraphIo {
    graph: GraphId,
    tokens: Buffer,
    targets: Buffer,
    nll: Buffer,
}

impl GraphIo {
    fn of(session: &Session, name: &str) -> Result<GraphIo> {
        let graph = session.graph(name)?;
        let (tokens, targets) = (session.input(graph, "tokens")?, session.input(graph, "targets")?);
        Ok(GraphIo { graph, tokens, targets, nll: session.output(graph, "nll")? })
    }
}

struct AdaptIo {
    micro: GraphIo,
    scale: Buffer,
    update: GraphId,
    hypers: Vec<(Buffer, Hyper)>,
    grad_norm: Option<Buffer>,
}

impl<'s> Model<'s> {
    /// Looks the graphs up and puts the adaptation state to its initial values.
    pub fn new(session: &'s mut Session) -> Result<Model<'s>> {
        let code = session.code().clone();
        let evaluate = &code.program.evaluate;
        let score = GraphIo::of(session, "score")?;
        let adapt = match &evaluate.adapt {
            None => None,
            Some(settings) => {
                let (micro, update) = (GraphIo::of(session, "adapt.micro")?, session.graph("adapt.update")?);
                let scale = session.input(micro.graph, "scale")?;
                let hypers = settings
                    .hypers
                    .iter()
                    .map(|h| Ok((session.input(update, &h.name)?, h.clone())))
                    .collect::<Result<_>>()?;
                let grad_norm = session.find_output(update, "grad_norm");
                Some(AdaptIo { micro, scale, update, hypers, grad_norm })
            }
        };
        let mut state = session.params();
        for (index, init) in session.variant().state_init.clone() {
            let buffer = session.variant().state[index as usize].clone();
            if buffer.name.starts_with(ADAPT_STATE) {
                let Init::Fill(value) = init else {
                    return Err(Error::input(format!("{}: adaptation state must start from a constant", buffer.name)));
                };
                session.write_f32(&buffer, &vec![value as f32; buffer.numel()])?;
                state.push(buffer);
            }
        }
        let rows = session.variant().rows.score as usize;
        Ok(Model { session, rows, window: evaluate.window as usize, score, adapt, state })
    }
}

impl Engine for Model<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn score(&mut self, tokens: &[i32], targets: &[i32]) -> Result<Vec<f32>> {
        self.session.write_i32(&self.score.tokens, tokens)?;
        self.session.write_i32(&self.score.targets, targets)?;
        self.session.run(self.score.graph)?;
        self.session.read_f32(&self.score.nll)
    }

    fn adapt(&mut self, tokens: &[i32], targets: &[i32], chunk: u64, chunks: u64) -> Result<(f64, f64)> {
        let hypers = self.hypers(chunk, chunks);
        let Some(a) = &self.adapt else { return Err(Error::input("this program declares no adaptation")) };
        let per_run = self.session.variant().rows.adapt as usize * self.window;
        if tokens.len() % per_run != 0 {
            return Err(Error::input(format!(
                "{} tokens are no whole number of micro-batches of {per_run}",
                tokens.len()
            )));
        }
        self.session.zero_grads()?;
        let mut sum = 0.0;
        for (x, y) in tokens.chunks(per_run).zip(targets.chunks(per_run)) {
            self.session.write_i32(&a.micro.tokens, x)?;
            self.session.write_i32(&a.micro.targets, y)?;
            self.session.write_scalar(&a.scale, 1.0 / tokens.len() as f32)?;
            self.session.run(a.micro.graph)?;
            sum = self.session.read_f32(&a.micro.nll)?.iter().fold(sum, |s, &l| s + f64::from(l));
        }
        for (buffer, h) in &a.hypers {
            self.session.write_scalar(buffer, hypers[&h.name] as f32)?;
        }
        self.session.run(a.update)?;
        let norm = match &a.grad_norm {
            Some(b) => f64::from(self.session.read_f32(b)?[0]),
            None => 0.0,
        };
        Ok((sum / tokens.len() as f64, norm))
    }

    fn hypers(&self, chunk: u64, chunks: u64) -> BTreeMap<String, f64> {
        let clock = [("chunk", chunk as f64), ("chunks", chunks as f64)];
        let Some(a) = &self.adapt else { return BTreeMap::new() };
        // A schedule that reads a field which does not exist here was refused when compiling.
        a.hypers.iter().map(|(_, h)| (h.name.clone(), host::eval(&h.value, &clock).unwrap_or(f64::NAN))).collect()
    }

    fn weights_hash(&mut self) -> Result<String> {
        let mut h = blake3::Hasher::new();
        for p in self.session.params() {
            h.update(p.name.as_bytes());
            h.update(&[0]);
            h.update(&self.session.read_bytes(&p)?);
        }
        Ok(h.finalize().to_hex().to_string())
    }

    fn snapshot(&mut self) -> Result<Vec<u8>> {
        let mut all = Vec::with_capacity(self.state.iter().map(Buffer::bytes).sum());
        for b in &self.state {
            all.extend_from_slice(&self.session.read_bytes(b)?);
        }
        Ok(all)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<()> {
        let total: usize = self.state.iter().map(Buffer::bytes).sum();
        if snapshot.len() != total {
            return Err(Error::input(format!(
                "the evaluation's snapshot has {} bytes, expected {total}",
                snapshot.len()
            )));
        }
        let mut rest = snapshot;
        for b in &self.state {
            let (head, tail) = rest.split_at(b.bytes());
            self.session.write_bytes(b, head)?;
            rest = tail;
        }
        Ok(())
    }
}
