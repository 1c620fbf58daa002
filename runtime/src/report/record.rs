//! The records of a ledger and what each becomes elsewhere.
//!
//! *Takes* a [`Record`]; *gives* its log line, its metrics and its scalars; *promises* to be pure: the same ledger gives the same
//! derived files.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::{Kind, Tick};

/// A record and when it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Unix time, seconds.
    pub time: f64,
    /// What happened.
    #[serde(flatten)]
    pub record: Record,
}

/// What can happen in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// The run begins: what it is, on what.
    Run(Start),
    /// A reading of the clock, written before its step uses it.
    Clock(Tick),
    /// A step ended.
    Step(Step),
    /// A checkpoint was written.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// Bytes of the state.
        bytes: u64,
        /// What it took.
        milliseconds: f64,
    },
    /// Another process goes on with the run.
    Resume {
        /// Steps done at the checkpoint it starts from.
        step: u64,
        /// How often the run was started, this time included.
        attempt: u32,
        /// Device kind.
        device: String,
    },
    /// Training has ended.
    Trained {
        /// Steps done.
        steps: u64,
        /// N of the step lines.
        of: u64,
        /// Wall time of training, milliseconds.
        train_ms: f64,
        /// Name of the weight average now in the parameters, if any.
        average: Option<String>,
        /// BLAKE3 of `weights.safetensors`.
        weights: String,
        /// Most memory the process held, bytes.
        peak_rss: u64,
    },
    /// Loss over validation.
    Validation(Validation),
    /// What contractions read was gathered for the quantisers.
    Calibrated(Calibration),
    /// The artifact was written.
    Packed {
        /// Bytes of `artifact.golfa`.
        bytes_model: u64,
        /// Bytes of source and prelude definitions.
        bytes_code: u64,
        /// Bytes of the executable.
        bytes_executable: u64,
        /// What `bytes_model + bytes_code` may not exceed.
        cap: u64,
        /// BLAKE3 of the artifact.
        artifact: String,
    },
    /// A line for the log.
    Note {
        /// The line.
        text: String,
    },
}

/// See [`Record::Run`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Program name.
    pub program: String,
    /// BLAKE3 of the plan.
    pub hash: String,
    /// golfc's version.
    pub golfc: String,
    /// Overrides of the program, `PATH=EXPR`.
    pub overrides: Vec<String>,
    /// Seed.
    pub seed: u64,
    /// Device kind.
    pub device: String,
    /// CPU model, as the kernel names it.
    pub machine: String,
    /// `bf16` or `f32`.
    pub precision: String,
    /// Threads.
    pub threads: usize,
    /// Where time comes from.
    pub clock: Kind,
    /// Number of parameters.
    pub parameters: u64,
    /// Fingerprint of the training shards.
    pub data: String,
}

/// See [`Record::Step`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Steps done, this one included.
    pub step: u64,
    /// N.
    pub of: u64,
    /// Mean nll of the step's targets before its update, nats.
    pub loss: f64,
    /// Gradient norm before the clip (mean over logical shards if each has its own); absent if the program computes none.
    pub grad_norm: Option<f64>,
    /// The schedule's multiplier.
    pub scale: f64,
    /// Wall time of training so far, milliseconds.
    pub train_ms: f64,
    /// Tokens of one step.
    pub tokens: u64,
    /// Wall time of this step, milliseconds.
    pub step_ms: f64,
}

/// See [`Record::Validation`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// What was scored how: `final` (end of training, contiguous windows), `plain`, `sliding`, `adapted`.
    pub name: String,
    /// Steps done.
    pub step: u64,
    /// N.
    pub of: u64,
    /// Mean nll, nats per token.
    pub loss: f64,
    /// Bits per byte.
    pub bpb: f64,
    /// Targets scored.
    pub targets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// True if `evaluate.limit` left targets out.
    pub partial: bool,
    /// What it took, seconds.
    pub seconds: f64,
    /// Unigram entropy of the scored targets, nats per token, where it was computed.
    pub unigram: Option<f64>,
    /// Wall time of training, milliseconds.
    pub train_ms: f64,
}

/// See [`Record::Calibrated`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Training tokens looked at.
    pub tokens: u64,
    /// In so many sequences.
    pub sequences: u64,
    /// Sums of squares gathered.
    pub matrices: u64,
    /// What it took, seconds.
    pub seconds: f64,
    /// What training the same weights took, seconds; absent where steps or a trace stood for the clock, or other weights were packed.
    pub train_seconds: Option<f64>,
    /// The program's time for both, seconds.
    pub stop: f64,
}

impl Calibration {
    /// Seconds left of the program's time when both were done; negative: they took longer.
    pub fn left(&self) -> Option<f64> {
        self.train_seconds.map(|train| self.stop - train - self.seconds)
    }

    /// Says so where training and calibration took longer than the program's time.
    pub fn late(&self) -> Option<String> {
        let over = -self.left().filter(|&left| left < 0.0)?;
        let both = self.stop + over;
        Some(format!(
            "PAST THE DEADLINE: training and calibration together took {both:.1}s, {over:.1}s more than train.stop = {}s allows; \
             a larger `reserve` of `calibrate` ends training earlier",
            self.stop
        ))
    }
}

fn average(ms: f64, steps: u64) -> f64 {
    ms / steps.max(1) as f64
}

impl Record {
    /// The line of `train.log`, in the challenge's form where it has one.
    pub fn line(&self) -> Option<String> {
        Some(match self {
            Record::Clock(_) | Record::Checkpoint { .. } => return None,
            Record::Run(s) => format!(
                "golf {} · program {} ({}) · {} parameters · seed {} · {} {} · {} threads · {}{}",
                s.golfc,
                s.program,
                &s.hash[..s.hash.len().min(12)],
                s.parameters,
                s.seed,
                s.device,
                s.precision,
                s.threads,
                s.machine,
                s.overrides.iter().map(|o| format!("\n--set {o}")).collect::<String>()
            ),
            Record::Step(s) => format!(
                "step:{}/{} train_loss:{:.4} train_time:{:.0}ms step_avg:{:.2}ms",
                s.step,
                s.of,
                s.loss,
                s.train_ms,
                average(s.train_ms, s.step)
            ),
            Record::Resume { step, attempt, device } => {
                format!("resumed:step {step} attempt:{attempt} device:{device}")
            }
            Record::Trained { steps, of, train_ms, average: name, peak_rss, .. } => format!(
                "trained:steps {steps}/{of} train_time:{train_ms:.0}ms step_avg:{:.2}ms average:{} peak_rss:{:.0}MB",
                average(*train_ms, *steps),
                name.as_deref().unwrap_or("none"),
                *peak_rss as f64 / 1e6
            ),
            Record::Validation(v) if v.name == "final" => format!(
                "step:{}/{} val_loss:{:.4} val_bpb:{:.4} train_time:{:.0}ms step_avg:{:.2}ms{}{}",
                v.step,
                v.of,
                v.loss,
                v.bpb,
                v.train_ms,
                average(v.train_ms, v.step),
                v.unigram.map(|u| format!(" unigram_entropy:{u:.4}")).unwrap_or_default(),
                if v.partial { " partial" } else { "" }
            ),
            Record::Validation(v) => format!(
                "{} val_loss:{:.8} val_bpb:{:.8} targets:{} bytes:{} eval_time:{:.0}ms{}",
                v.name,
                v.loss,
                v.bpb,
                v.targets,
                v.bytes,
                v.seconds * 1e3,
                if v.partial { " partial" } else { "" }
            ),
            Record::Calibrated(c) => {
                let deadline = match (c.late(), c.left()) {
                    (Some(late), _) => format!(" ({late})"),
                    (None, Some(left)) => format!(" ({left:.1}s before the deadline)"),
                    (None, None) => String::new(),
                };
                format!("calibrate:{} tokens, {} matrices, {:.1}s{deadline}", c.tokens, c.matrices, c.seconds)
            }
            Record::Packed { bytes_model, bytes_code, bytes_executable, cap, .. } => format!(
                "artifact bytes_model:{bytes_model} bytes_code:{bytes_code} total:{} cap:{cap} bytes_executable:{bytes_executable}",
                bytes_model + bytes_code
            ),
            Record::Note { text } => text.clone(),
        })
    }

    /// The object of `metrics.jsonl`.
    pub fn metrics(&self) -> Option<Value> {
        match self {
            Record::Step(s) => Some(json!({
                "step": s.step, "train_loss": s.loss, "grad_norm": s.grad_norm, "lr_scale": s.scale, "train_ms": s.train_ms,
                "step_ms": s.step_ms, "tokens_per_second": tokens_per_second(s),
            })),
            Record::Validation(v) => Some(json!({
                "step": v.step, "score": v.name, "val_loss": v.loss, "val_bpb": v.bpb, "targets": v.targets, "partial": v.partial,
            })),
            _ => None,
        }
    }

    /// Step and (tag, value) for TensorBoard.
    pub fn scalars(&self) -> Option<(u64, Vec<(String, f64)>)> {
        match self {
            Record::Step(s) => {
                let mut all = vec![
                    ("train/loss".to_string(), s.loss),
                    ("train/lr_scale".to_string(), s.scale),
                    ("train/tokens_per_second".to_string(), tokens_per_second(s)),
                ];
                all.extend(s.grad_norm.map(|g| ("train/grad_norm".to_string(), g)));
                Some((s.step, all))
            }
            Record::Validation(v) => {
                Some((v.step, vec![(format!("val/{}/loss", v.name), v.loss), (format!("val/{}/bpb", v.name), v.bpb)]))
            }
            _ => None,
        }
    }
}

fn tokens_per_second(s: &Step) -> f64 {
    if s.step_ms > 0.0 { s.tokens as f64 / s.step_ms * 1e3 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenges_step_line() {
        let step = Step {
            step: 200,
            of: 20_000,
            loss: 2.345_678,
            grad_norm: None,
            scale: 1.0,
            train_ms: 19_432.4,
            tokens: 786_432,
            step_ms: 97.0,
        };
        let line = Record::Step(step).line().unwrap();
        assert_eq!(line, "step:200/20000 train_loss:2.3457 train_time:19432ms step_avg:97.16ms");
    }

    #[test]
    fn a_calibration_says_how_it_stands_with_the_deadline() {
        let at = |train_seconds| Calibration {
            tokens: 131_072,
            sequences: 64,
            matrices: 12,
            seconds: 3.12,
            train_seconds,
            stop: 600.0,
        };
        let line = |train| Record::Calibrated(at(train)).line().unwrap();
        assert_eq!(line(None), "calibrate:131072 tokens, 12 matrices, 3.1s");
        assert_eq!(line(Some(587.7)), "calibrate:131072 tokens, 12 matrices, 3.1s (9.2s before the deadline)");
        let late = line(Some(600.86));
        assert!(
            late.contains(
                "PAST THE DEADLINE: training and calibration together took 604.0s, 4.0s more than train.stop = 600s"
            ),
            "{late}"
        );
        assert_eq!((at(Some(596.8)).late(), at(Some(596.9)).late().is_some()), (None, true));
    }

    #[test]
    fn entries_round_trip() {
        let entry = Entry { time: 1.5, record: Record::Note { text: "x".into() } };
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(text, r#"{"time":1.5,"kind":"note","text":"x"}"#);
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry);
    }
}
