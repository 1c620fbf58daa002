//! The flags.
//!
//! *Takes* nothing; *gives* the clap description and its translation into requests; *promises* the names of contracts: flags may
//! be added, none changes its meaning.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::error::{Error, Result};
use crate::eval::command as evaluation;
use crate::exec::{Device, Options};
use crate::quant::command as packing;
use crate::run::Mode;
use crate::train::{ClockRequest, Request};

/// Below the help.
pub const EXAMPLES: &str = "\
Examples:
  run all --data DIR --out DIR --seed 1      the whole job
  run train --data DIR --out DIR --steps 60  training only, by steps instead of time
  run train --data DIR --out DIR --resume    go on after an interruption
  run info                                   what this program is

Exit codes: 0 done, 1 an input is wrong, 2 usage, 3 the machine, 130/143 on signals, after a checkpoint.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "run", version, disable_help_subcommand = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train, pack, score plain, sliding and score-first adapted, report
    All {
        #[command(flatten)]
        device: DeviceArgs,
        #[command(flatten)]
        train: TrainArgs,
        #[command(flatten)]
        pack: PackArgs,
        #[command(flatten)]
        score: ScoreArgs,
    },
    /// Train, with checkpoints; leaves weights.safetensors, logs and curves in --out
    Train {
        #[command(flatten)]
        device: DeviceArgs,
        #[command(flatten)]
        train: TrainArgs,
    },
    /// Quantise and pack the weights into artifact.golfa, under the cap; programs whose quantisers are calibrated read --data first
    Pack {
        #[command(flatten)]
        device: DeviceArgs,
        /// The run's directory
        #[arg(long)]
        out: PathBuf,
        /// Weights to pack [default: OUT/weights.safetensors]
        #[arg(long)]
        weights: Option<PathBuf>,
        /// Directory with the training shards; needed if the program calibrates its quantisers (`run info` says so), else not read
        #[arg(long)]
        data: Option<PathBuf>,
        #[command(flatten)]
        pack: PackArgs,
    },
    /// Score the artifact: plain, sliding windows, then score-first adaptation with a receipt
    Score {
        #[command(flatten)]
        device: DeviceArgs,
        /// The run's directory
        #[arg(long)]
        out: PathBuf,
        /// Directory with the validation shards and the tokenizer
        #[arg(long)]
        data: PathBuf,
        /// Score these weights instead of an artifact
        #[arg(long, conflicts_with = "artifact")]
        weights: Option<PathBuf>,
        /// Artifact to score [default: OUT/artifact.golfa]
        #[arg(long)]
        artifact: Option<PathBuf>,
        #[command(flatten)]
        score: ScoreArgs,
    },
    /// Check a receipt: alone; with --data against the data; with --replay by doing it again
    Verify {
        #[command(flatten)]
        device: DeviceArgs,
        /// The run's directory
        #[arg(long)]
        out: PathBuf,
        /// Directory with the validation shards and the tokenizer
        #[arg(long)]
        data: Option<PathBuf>,
        /// Execute score and adaptation again from the artifact
        #[arg(long, requires = "data")]
        replay: bool,
        /// Compare only these chunks, A..B (those before A are executed all the same)
        #[arg(long, requires = "replay", value_parser = range)]
        chunks: Option<Range<u64>>,
    },
    /// Loss, nll and gradients of given weights on given tokens, to compare with another framework
    Probe {
        #[command(flatten)]
        device: DeviceArgs,
        #[command(flatten)]
        probe: ProbeArgs,
    },
    /// Time training steps on synthetic tokens: tokens/s, ms and GFLOP/s per kernel family, % of peak, memory
    Bench {
        #[command(flatten)]
        device: DeviceArgs,
        #[command(flatten)]
        bench: BenchArgs,
    },
    /// What this program is: parameters, device kinds, memory, graphs, techniques
    Info {
        /// Print the program's source and the prelude definitions it uses instead
        #[arg(long)]
        source: bool,
    },
}

/// Where and with what it runs.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Device")]
pub struct DeviceArgs {
    /// auto (a GPU if this program has code for one that is here), cpu, or cuda:0
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// CPU kind to run, e.g. cpu-v3 [default: the best this CPU has]
    #[arg(long, value_name = "TIER")]
    pub isa: Option<String>,
    /// Threads; results do not depend on it [default: all]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Refuse to start if the plan needs more, e.g. 6GB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// bf16 or f32 [default: what the program computes in]
    #[arg(long)]
    pub precision: Option<String>,
}

impl DeviceArgs {
    /// Error (usage): no device of that name.
    pub fn options(&self) -> Result<Options> {
        let device = match self.device.as_str() {
            "auto" => Device::Auto,
            "cpu" => Device::Cpu,
            "cuda" => Device::Cuda(0),
            other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                Some(n) => Device::Cuda(n),
                None => return Err(Error::usage(format!("--device {other}: expected auto, cpu or cuda:N"))),
            },
        };
        Ok(Options {
            device,
            precision: self.precision.clone(),
            isa: self.isa.clone(),
            threads: self.threads,
            memory: self.memory,
        })
    }
}

/// Training.
#[derive(Clone, Debug, Args)]
pub struct TrainArgs {
    /// Directory with shards and tokenizer
    #[arg(long)]
    pub data: PathBuf,
    /// Directory for everything the run leaves
    #[arg(long)]
    pub out: PathBuf,
    /// Seed of initial values [default: 1337, or the resumed run's]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Train exactly N steps, by step count instead of time
    #[arg(long, value_name = "N", conflicts_with = "clock")]
    pub steps: Option<u64>,
    /// Replay the clock of another run (its ledger.jsonl)
    #[arg(long, value_name = "TRACE")]
    pub clock: Option<PathBuf>,
    /// Go on with the run in --out
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Remove the run in --out first
    #[arg(long)]
    pub overwrite: bool,
    /// Resume on another device kind than the checkpoint's; recorded
    #[arg(long)]
    pub allow_device_change: bool,
    /// Seconds between checkpoints
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub checkpoint_every: Duration,
}

impl TrainArgs {
    /// The request.
    pub fn request(&self) -> Result<Request> {
        let clock = match (self.steps, &self.clock) {
            (Some(n), _) => Some(ClockRequest::Steps(n)),
            (None, Some(path)) => Some(ClockRequest::Trace(path.clone())),
            (None, None) => None,
        };
        Ok(Request {
            data: self.data.clone(),
            out: self.out.clone(),
            seed: self.seed,
            clock,
            mode: match (self.resume, self.overwrite) {
                (true, _) => Mode::Resume,
                (_, true) => Mode::Overwrite,
                _ => Mode::New,
            },
            allow_device_change: self.allow_device_change,
            checkpoint_every: self.checkpoint_every,
        })
    }
}

/// Packing.
#[derive(Clone, Debug, Args)]
pub struct PackArgs {
    /// Also write codes, scales and dequantised weights (q.NAME, scale.NAME, dequant.NAME)
    #[arg(long, value_name = "FILE")]
    pub codes: Option<PathBuf>,
}

impl PackArgs {
    /// The request to pack the weights of that file.
    pub fn request(&self, data: Option<PathBuf>, weights: PathBuf) -> packing::Request {
        packing::Request { data, weights, codes: self.codes.clone() }
    }
}

/// Scoring.
#[derive(Clone, Debug, Args)]
pub struct ScoreArgs {
    /// Leave out the adapted score
    #[arg(long)]
    pub no_adapt: bool,
    /// Also write the nll of every target, in stream order
    #[arg(long, value_name = "FILE")]
    pub nll: Option<PathBuf>,
}

impl ScoreArgs {
    /// The request.
    pub fn request(&self, data: PathBuf, source: evaluation::Source) -> evaluation::ScoreRequest {
        evaluation::ScoreRequest { data, source, adapt: !self.no_adapt, nll: self.nll.clone() }
    }
}

/// `probe`.
#[derive(Clone, Debug, Args)]
pub struct ProbeArgs {
    /// One F32, BF16 or F16 tensor per parameter
    #[arg(long)]
    pub weights: PathBuf,
    /// Tensor `tokens`, I32 [B, T+1]
    #[arg(long)]
    pub tokens: PathBuf,
    /// File for loss, nll, grad.NAME and, with --steps, param.NAME
    #[arg(long)]
    pub out: PathBuf,
    /// Also take N optimiser steps on the same batch, with the whole time budget ahead
    #[arg(long, value_name = "N")]
    pub steps: Option<u64>,
}

/// `bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Steps timed, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub steps: u64,
    /// Also the N kernels that took longest, by symbol (`golfc --emit=kernels` describes them)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub kernels: usize,
    /// Also what evaluation takes: runs of windows scored, and updates of the adaptation
    #[arg(long)]
    pub evaluate: bool,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `6GB`, `512MiB`, `1e9`: decimal units, binary ones with an i.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        _ => return Err("expected a size such as 6GB or 800MiB".into()),
    };
    let number: f64 = digits.parse().map_err(|_| "expected a size such as 6GB or 800MiB".to_string())?;
    let bytes = number * unit;
    if bytes.is_finite() && bytes >= 0.0 { Ok(bytes as u64) } else { Err("expected a positive size".into()) }
}

/// `60`, `0.5`, `60s`.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: Result<f64, _> = text.trim_end_matches('s').parse();
    let fits = |x: &f64| (0.0..1e9).contains(x);
    number.ok().filter(fits).map(Duration::from_secs_f64).ok_or("expected seconds, such as 60".into())
}

/// `3..7`.
fn range(text: &str) -> Result<Range<u64>, String> {
    let parse = || {
        let (a, b) = text.split_once("..")?;
        let range = a.parse().ok()?..b.parse().ok()?;
        (range.start < range.end).then_some(range)
    };
    parse().ok_or("expected A..B with A below B".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_description_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_seconds_ranges() {
        assert_eq!((size("6GB"), size("1.5GiB"), size("100")), (Ok(6_000_000_000), Ok(1_610_612_736), Ok(100)));
        assert!(size("six").is_err() && size("6XB").is_err() && size("-1GB").is_err() && size("").is_err());
        assert_eq!((seconds("60"), seconds("0.5s")), (Ok(Duration::from_secs(60)), Ok(Duration::from_millis(500))));
        assert!(seconds("-1").is_err() && seconds("x").is_err());
        assert_eq!(range("3..7"), Ok(3..7));
        assert!(range("7..3").is_err() && range("7").is_err());
    }
}
