//! `run pack` and its part of `run all`.

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::run::Run;

/// What the command line asks of packing.
#[derive(Clone, Debug)]
pub struct Request {
    /// File for `q.NAME`, `scale.NAME` and `dequant.NAME`.
    pub codes: Option<PathBuf>,
}

/// Packs the weights in the session into the run's `artifact.golfa`.
pub fn pack(_run: &mut Run, _request: &Request) -> Result<()> {
    Err(Error::input("pack: not implemented in this build"))
}
