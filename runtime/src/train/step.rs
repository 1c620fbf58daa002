//! One training step as a sequence of graphs.
//!
//! *Takes* a [`Session`] and tokens; *gives* the loss and, in the session, gradients or updated weights; *promises* the order that
//! the documentation of [`crate::plan::Variant`] states, sums in f64 in row order.

use crate::clock::Reading;
use crate::error::Result;
use crate::exec::{GraphId, Session};
use crate::host;
use crate::plan::{Average, Buffer, Hyper, Train};

/// The graphs of one training step and their host-side buffers.
pub(super) struct Graphs {
    micro: GraphId,
    shard: Option<GraphId>,
    update: GraphId,
    tokens: Buffer,
    targets: Buffer,
    scale: Buffer,
    nll: Buffer,
    /// Update and finish of each average.
    pub(super) averages: Vec<(GraphId, GraphId)>,
}

impl Graphs {
    fn find(session: &Session, train: &Train) -> Result<Graphs> {
        let micro = session.graph("train.micro")?;
        let average = |a: &Average| Ok((session.graph(&a.update)?, session.graph(&a.finish)?));
        Ok(Graphs {
            micro,
            shard: session.find_graph("train.shard"),
            update: session.graph("train.update")?,
            tokens: session.input(micro, "tokens")?,
            targets: session.input(micro, "targets")?,
            scale: session.input(micro, "scale")?,
            nll: session.output(micro, "nll")?,
            averages: train.averages.iter().map(average).collect::<Result<_>>()?,
        })
    }
}

/// Forward, backward and update of one batch: what `train`, `probe` and `bench` share.
pub struct Stepper {
    pub(super) graphs: Graphs,
    train: Train,
    /// Seconds that training may take.
    budget: f64,
    /// Set by [`Stepper::set_clock`] to be written before the graphs that take them.
    hypers: Vec<(String, f32)>,
}

/// What a batch gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Mean nll, nats per token.
    pub loss: f64,
    /// Gradient norm before the clip, if computed: the mean over shards if each has its own.
    pub grad_norm: Option<f64>,
}

/// Fills `tokens` and `targets` \[rows, seq\] for (shard, first row).
pub type Fill<'a> = &'a mut dyn FnMut(usize, usize, &mut [i32], &mut [i32]) -> Result<()>;

impl Stepper {
    /// For this session's program.
    pub fn new(session: &Session) -> Result<Stepper> {
        let p = &session.code().program;
        let (train, budget) = (p.train.clone(), p.budget());
        Ok(Stepper { graphs: Graphs::find(session, &train)?, train, budget, hypers: Vec::new() })
    }

    /// Rows of one logical shard.
    pub fn rows(&self) -> usize {
        (self.train.batch / u64::from(self.train.ranks) / u64::from(self.train.seq)) as usize
    }

    /// The clock's fields after `step` steps, without `scale`.
    pub(super) fn clock(&self, step: u64, r: Reading) -> Vec<(&'static str, f64)> {
        vec![("step", step as f64), ("progress", r.progress), ("step_time", r.step_time), ("budget", self.budget)]
    }

    /// Evaluates the schedule and the hypers at `step` (steps done before this one). Gives the schedule's value.
    pub fn set_clock(&mut self, step: u64, r: Reading) -> Result<f64> {
        let t = &self.train;
        let mut clock = self.clock(step, r);
        let scale = host::eval(&t.schedule, &clock)?;
        clock.push(("scale", scale));
        let value = |h: &Hyper| Ok((h.name.clone(), host::eval(&h.value, &clock)? as f32));
        self.hypers = t.hypers.iter().map(value).collect::<Result<_>>()?;
        Ok(scale)
    }

    fn run(&self, session: &mut Session, graph: GraphId) -> Result<()> {
        for (name, value) in &self.hypers {
            if let Some(buffer) = session.find_input(graph, name) {
                session.write_scalar(&buffer, *value)?;
            }
        }
        session.run(graph)
    }

    /// Gradient of the mean loss over `rows` rows of shard `shard` into `grad.*`; gives the sum of nll, and each to `nll`. `pause` is asked
    /// before every micro-batch.
    pub fn shard(
        &mut self,
        session: &mut Session,
        (shard, rows): (usize, usize),
        fill: Fill<'_>,
        nll: &mut dyn FnMut(&[f32]),
        pause: &dyn Fn() -> Result<()>,
    ) -> Result<f64> {
        let micro = session.variant().rows.train as usize;
        let (g, seq) = (&self.graphs, self.train.seq as usize);
        let (mut x, mut y) = (vec![0; micro * seq], vec![0; micro * seq]);
        let scale = (1.0 / (rows * seq) as f64) as f32;
        session.zero_grads()?;
        let mut sum = 0.0;
        let mut take = |session: &Session| {
            let out = session.read_f32(&g.nll)?;
            sum = out.iter().fold(sum, |s, &l| s + f64::from(l));
            nll(&out);
            Ok(())
        };
        for first in (0..rows).step_by(micro) {
            pause()?;
            // While a GPU is at work on the micro-batch before.
            fill(shard, first, &mut x, &mut y)?;
            if first > 0 {
                take(session)?;
            }
            session.write_i32(&g.tokens, &x)?;
            session.write_i32(&g.targets, &y)?;
            session.write_scalar(&g.scale, scale)?;
            session.run(g.micro)?;
        }
        take(session)?;
        Ok(sum)
    }

    /// What follows a shard's micro-batches: clip and sum. Gives its gradient norm, if the program computes one here.
    pub fn close_shard(&self, session: &mut Session) -> Result<Option<f64>> {
        let Some(shard) = self.graphs.shard else { return Ok(None) };
        self.run(session, shard)?;
        norm(session, shard)
    }

    /// Optimiser step on the totals. Gives the gradient norm, if the program computes one here.
    pub fn update(&self, session: &mut Session) -> Result<Option<f64>> {
        self.run(session, self.graphs.update)?;
        norm(session, self.graphs.update)
    }

    /// One whole step after [`Stepper::set_clock`].
    pub fn step(&mut self, session: &mut Session, fill: Fill<'_>, pause: &dyn Fn() -> Result<()>) -> Result<Outcome> {
        let (ranks, rows) = (self.train.ranks as usize, self.rows());
        session.zero_totals()?;
        let (mut sum, mut norms) = (0.0, Vec::new());
        for shard in 0..ranks {
            sum += self.shard(session, (shard, rows), fill, &mut |_| {}, pause)?;
            norms.extend(self.close_shard(session)?);
        }
        pause()?;
        let last = self.update(session)?;
        let mean = (!norms.is_empty()).then(|| norms.iter().sum::<f64>() / norms.len() as f64);
        Ok(Outcome { loss: sum / (ranks * rows * self.train.seq as usize) as f64, grad_norm: last.or(mean) })
    }
}

fn norm(session: &Session, graph: GraphId) -> Result<Option<f64>> {
    let Some(buffer) = session.find_output(graph, "grad_norm") else { return Ok(None) };
    Ok(session.read_f32(&buffer)?.first().map(|&x| f64::from(x)))
}
