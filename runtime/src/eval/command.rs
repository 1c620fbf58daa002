//! `run score`, `run verify` and their part of `run all`.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::device::Code;
use crate::error::{Error, Result};
use crate::exec::Options;
use crate::run::Run;
use crate::signals::Signals;

/// What is scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Weights of a file.
    Weights(PathBuf),
    /// Weights as evaluation gets them.
    Artifact(PathBuf),
}

/// What the command line asks of scoring.
#[derive(Clone, Debug)]
pub struct ScoreRequest {
    /// `--data`.
    pub data: PathBuf,
    /// What is scored.
    pub source: Source,
    /// Whether to adapt (if the program does).
    pub adapt: bool,
    /// File for the nll of every target.
    pub nll: Option<PathBuf>,
}

/// What the command line asks of verification.
#[derive(Clone, Debug)]
pub struct VerifyRequest {
    /// `--out`.
    pub out: PathBuf,
    /// `--data`.
    pub data: Option<PathBuf>,
    /// `--replay`.
    pub replay: bool,
    /// `--chunks A..B`.
    pub chunks: Option<Range<u64>>,
    /// Device, for a replay.
    pub options: Options,
}

/// The scores of `run all`: plain, sliding, adapted; then the report.
pub fn all(_run: &mut Run, _request: &ScoreRequest) -> Result<()> {
    Err(Error::input("score: not implemented in this build"))
}

/// One score.
pub fn score(_run: &mut Run, _request: &ScoreRequest) -> Result<()> {
    Err(Error::input("score: not implemented in this build"))
}

/// Checks a receipt.
pub fn verify(_code: &Arc<Code>, _request: &VerifyRequest, _signals: &Signals) -> Result<()> {
    Err(Error::input("verify: not implemented in this build"))
}
