//! The runtime linked into every executable that golfc makes.

#[cfg(test)]
extern crate self as golf_runtime; // the examples are tested in here

pub mod check;
pub mod cli;
pub mod clock;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod exec;
pub mod files;
pub mod host;
pub mod init;
pub mod orthogonal;
pub mod plan;
pub mod quant;
pub mod report;
pub mod rng;
pub mod run;
pub mod safetensors;
pub mod signals;
pub mod state;
pub mod train;
pub mod trial;
pub mod validate;
