//! The training loop of one process.
//!
//! *Takes* a fresh or an interrupted run; *gives* it trained; *promises* that the ledger has a step's clock before the step uses it, and
//! that whatever ends the process, at most the work since the last checkpoint is lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Outcome, Request, Stepper};
use crate::clock::{self, Clock, Kind, Reading, Source, Tick};
use crate::data::{Loader, Prefetch};
use crate::error::{Error, Result};
use crate::exec::Session;
use crate::files::{self, Faults};
use crate::host;
use crate::init::initialise;
use crate::report::record::{Start, Step};
use crate::report::{Entry, Ledger, Record, ledger, output, progress::Progress};
use crate::run::{Run, WEIGHTS, load_weights, peak_rss};
use crate::signals::Signals;
use crate::state::{self, Manifest};
use crate::validate::validate;

pub(super) struct Trainer {
    run: Run,
    start: Start,
    loader: Arc<Loader>,
    stepper: Stepper,
    pub(super) clock: Clock,
    /// Time used by earlier processes.
    pub(super) elapsed: Duration,
    every: Duration,
    last_save: Instant,
    /// Step of the newest checkpoint on disk.
    saved: Option<u64>,
    step: u64,
    averages: BTreeMap<String, u64>,
    /// Readings of steps 0.., one more than `step` if the next one was taken already.
    trace: Vec<Reading>,
    /// How often the run was started.
    attempt: u32,
    /// Training and everything after it had ended before.
    done: bool,
    data: PathBuf,
}

impl Trainer {
    /// Initialises, or restores if `before` are the entries of the run to resume.
    pub(super) fn new(
        session: Session,
        start: Start,
        loader: Loader,
        request: &Request,
        signals: Signals,
        faults: Faults,
        before: Option<Vec<Entry>>,
    ) -> Result<Trainer> {
        let out = request.out.clone();
        let stepper = Stepper::new(&session)?;
        let averages = session.code().program.train.averages.iter().map(|a| (a.name.clone(), 0)).collect();
        let ledger = match &before {
            None => Ledger::create(&out, &faults)?,
            Some(_) => Ledger::reopen(&out, None, &faults)?,
        };
        let seed = start.seed;
        let run = Run { session, out, seed, ledger, signals, faults };
        let mut trainer = Trainer {
            run,
            start,
            loader: Arc::new(loader),
            stepper,
            clock: Clock::new(Source::Steps(0), 1.0, Duration::ZERO),
            elapsed: Duration::ZERO,
            every: request.checkpoint_every,
            last_save: Instant::now(),
            saved: None,
            step: 0,
            averages,
            trace: Vec::new(),
            attempt: 1,
            done: false,
            data: request.data.clone(),
        };
        let restored = match &before {
            Some(entries) => trainer.restore(entries, request.allow_device_change)?,
            None => false,
        };
        if !restored {
            initialise(&mut trainer.run.session, seed)?;
            let start = trainer.start.clone();
            trainer.run.say(Record::Run(start))?;
            if trainer.attempt > 1 {
                trainer.resumed()?;
            }
        }
        Ok(trainer)
    }

    /// Goes back to the last checkpoint; false if there is none and the run has to begin again.
    fn restore(&mut self, entries: &[Entry], allow_device_change: bool) -> Result<bool> {
        let start = self.start.clone();
        let fits = |m: &Manifest, path: &Path| {
            if (m.version, m.program.as_str(), m.seed, m.data.as_str(), m.precision.as_str())
                != (state::VERSION, &start.hash, start.seed, &start.data, &start.precision)
            {
                return Err(Error::file(path, "belongs to another program, seed, precision or data"));
            }
            if m.device != start.device && !allow_device_change {
                let (a, b) = (&m.device, &start.device);
                return Err(Error::file(
                    path,
                    format!("was computed on {a}, this is {b}: --allow-device-change goes on"),
                ));
            }
            Ok(())
        };
        let mut notices = Vec::new();
        let out = self.run.out.clone();
        let found = self.run.session.fill_state(|state| state::load(&out, state, &fits, &mut notices))?;
        notices.iter().for_each(|n| output::warn(n));
        let attempts = entries.iter().filter_map(|e| match &e.record {
            Record::Resume { attempt, .. } => Some(*attempt),
            _ => None,
        });
        self.attempt = attempts.max().unwrap_or(1) + 1;
        let Some((manifest, progress)) = found else {
            output::warn("nothing was saved yet: the run begins again");
            self.run.ledger = Ledger::create(&out, &self.run.faults)?;
            return Ok(false);
        };
        self.done = self.finished(entries)?;
        if !self.done {
            self.run.ledger = Ledger::reopen(&out, Some(progress.ledger_bytes), &self.run.faults)?;
        }
        let ticks = self.run.ledger.entries()?.into_iter().filter_map(|e| match e.record {
            Record::Clock(tick) => Some(tick),
            _ => None,
        });
        self.trace = ticks.filter_map(|t| t.reading()).collect();
        let of_checkpoint = self.trace.get(..manifest.step as usize);
        if of_checkpoint.map(|t| clock::hash(t).to_hex().to_string()) != Some(manifest.trace) {
            return Err(Error::file(
                out.join(ledger::LEDGER),
                "its clock trace is not the one the checkpoint was made with",
            ));
        }
        self.step = manifest.step;
        self.saved = Some(manifest.step);
        self.averages = manifest.averages;
        self.elapsed = Duration::from_nanos(progress.elapsed_ns);
        if self.done {
            load_weights(&mut self.run.session, &out.join(WEIGHTS))?;
        } else {
            for text in notices {
                self.run.ledger.add(Record::Note { text })?;
            }
            self.resumed()?;
        }
        Ok(true)
    }

    fn resumed(&mut self) -> Result<()> {
        let device = self.start.device.clone();
        self.run.say(Record::Resume { step: self.step, attempt: self.attempt, device })
    }

    /// Whether the ledger says that training ended, and its weights are there.
    fn finished(&self, entries: &[Entry]) -> Result<bool> {
        let said = entries.iter().rev().find_map(|e| match &e.record {
            Record::Trained { weights, .. } => Some(weights.clone()),
            _ => None,
        });
        let path = self.run.out.join(WEIGHTS);
        Ok(said.is_some_and(|said| files::hash(&path).is_ok_and(|h| h.to_hex().as_str() == said)))
    }

    pub(super) fn run(mut self) -> Result<Run> {
        if self.done {
            output::line(&format!("training had ended after {} steps", self.step))?;
            return Ok(self.run);
        }
        self.last_save = Instant::now();
        match self.steps() {
            Ok(of) => self.finish(of),
            Err(e @ (Error::Interrupted { .. } | Error::Closed)) => {
                self.save()?;
                if let Error::Interrupted { signal } = e {
                    output::warn(&format!(
                        "interrupted by signal {signal} after {} steps; --resume goes on",
                        self.step
                    ));
                }
                Err(e)
            }
            Err(e) => Err(e),
        }
    }

    /// Steps until the clock says stop. Gives N.
    fn steps(&mut self) -> Result<u64> {
        let code = self.run.session.code().clone();
        let p = &code.program.train;
        let tokens = p.batch;
        let mut progress = Progress::new("train");
        let cap = match self.start.clock {
            Kind::Steps(n) => n,
            Kind::Wall | Kind::Trace(_) => p.iterations,
        };
        let rows = self.run.session.variant().rows.train as usize;
        let mut data = Prefetch::start(self.loader.clone(), self.step, rows)?;
        loop {
            self.run.signals.check()?;
            let Some(reading) = self.reading()? else { return Ok(cap) };
            if self.step >= cap {
                return Ok(cap);
            }
            if reading.progress >= 1.0 {
                let ms = self.clock.elapsed().as_secs_f64() * 1e3;
                self.run
                    .note(format!("stopping_early: wallclock_cap train_time:{ms:.0}ms step:{}/{cap}", self.step))?;
                return Ok(cap);
            }
            self.run.faults.step(self.step);
            let begin = Instant::now();
            let (outcome, scale) = self.one(reading, &mut data)?;
            let record = Record::Step(Step {
                step: self.step,
                of: cap,
                loss: outcome.loss,
                grad_norm: outcome.grad_norm,
                scale,
                train_ms: self.clock.elapsed().as_secs_f64() * 1e3,
                tokens,
                step_ms: begin.elapsed().as_secs_f64() * 1e3,
            });
            let line = self.run.ledger.add(record)?.unwrap_or_default();
            let expected = self.clock.expected(self.step, reading).unwrap_or(cap).min(cap).max(self.step);
            let share = reading.progress.max(self.step as f64 / cap.max(1) as f64);
            progress.update(self.step, expected, share, &line, self.step <= 10 || self.step == cap)?;
            if !outcome.loss.is_finite() {
                let loss = outcome.loss;
                return Err(Error::input(format!("the loss is {loss} at step {}: training diverged", self.step)));
            }
            if self.last_save.elapsed() >= self.every {
                self.save()?;
            }
        }
    }

    /// The clock before the next step, recorded before anything uses it; `None`: a trace ends here.
    fn reading(&mut self) -> Result<Option<Reading>> {
        if let Some(taken) = self.trace.get(self.step as usize) {
            return Ok(Some(*taken));
        }
        let Some(reading) = self.clock.read(self.step) else { return Ok(None) };
        self.run.ledger.add(Record::Clock(Tick::new(self.step, reading)))?;
        self.trace.push(reading);
        Ok(Some(reading))
    }

    /// One step and the averages after it.
    fn one(&mut self, reading: Reading, data: &mut Prefetch) -> Result<(Outcome, f64)> {
        let scale = self.stepper.set_clock(self.step, reading)?;
        let (step, signals) = (self.step, self.run.signals.clone());
        let mut fill = |shard: usize, row: usize, x: &mut [i32], y: &mut [i32]| data.fill((step, shard, row), x, y);
        let outcome = self.stepper.step(&mut self.run.session, &mut fill, &|| signals.check())?;
        self.step += 1;
        let code = self.run.session.code().clone();
        let train = &code.program.train;
        let mut clock = self.stepper.clock(self.step, reading);
        clock.push(("scale", scale));
        for (average, &(update, _)) in train.averages.iter().zip(&self.stepper.graphs.averages) {
            if host::eval(&average.when, &clock)? != 0.0 {
                self.run.session.run(update)?;
                *self.averages.entry(average.name.clone()).or_default() += 1;
            }
        }
        Ok((outcome, scale))
    }

    /// Writes a checkpoint of the state after `step` steps, unless that is on disk already.
    fn save(&mut self) -> Result<()> {
        self.last_save = Instant::now();
        if self.saved == Some(self.step) {
            return Ok(());
        }
        let begin = Instant::now();
        self.run.ledger.sync()?;
        let s = &self.start;
        let manifest = Manifest {
            version: state::VERSION,
            name: s.program.clone(),
            program: s.hash.clone(),
            precision: s.precision.clone(),
            device: s.device.clone(),
            seed: s.seed,
            data: s.data.clone(),
            step: self.step,
            averages: self.averages.clone(),
            trace: clock::hash(&self.trace[..self.step as usize]).to_hex().to_string(),
            bytes: 0,
            blake3: String::new(),
        };
        let elapsed_ns = self.clock.elapsed().as_nanos() as u64;
        let progress = state::Progress { elapsed_ns, ledger_bytes: self.run.ledger.len() };
        let state = self.run.session.state()?;
        state::write(&self.run.out, manifest, &progress, &state, &self.run.faults)?;
        let bytes = state.len() as u64;
        drop(state);
        self.saved = Some(self.step);
        let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
        self.run.ledger.add(Record::Checkpoint { step: self.step, bytes, milliseconds })?;
        self.last_save = Instant::now();
        Ok(())
    }

    /// After the last step: checkpoint, average, weights, validation, picture.
    fn finish(mut self, of: u64) -> Result<Run> {
        let train_ms = self.clock.elapsed().as_secs_f64() * 1e3;
        self.save()?;
        let code = self.run.session.code().clone();
        let train = &code.program.train;
        let used = |name: &String| self.averages.get(name).is_some_and(|&n| n > 0);
        let average = train.averages.iter().position(|a| used(&a.name));
        if let Some(i) = average {
            self.run.session.run(self.stepper.graphs.averages[i].1)?;
        }
        let path = self.run.out.join(WEIGHTS);
        self.run.save_weights(&path)?;
        let mut run = self.run;
        validate(&mut run, &self.data, (self.step, of), train_ms)?;
        run.say(Record::Trained {
            steps: self.step,
            of,
            train_ms,
            average: average.map(|i| train.averages[i].name.clone()),
            weights: files::hash(&path)?.to_hex().to_string(),
            peak_rss: peak_rss(),
        })?;
        run.ledger.sync()?;
        run.draw()?;
        Ok(run)
    }
}
