//! The runtime linked into every executable that golfc makes.

pub mod check;
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
pub mod rng;
pub mod safetensors;
