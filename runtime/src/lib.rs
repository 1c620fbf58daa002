//! The runtime linked into every executable that golfc makes.

pub mod data;
pub mod error;
pub mod eval;
pub mod plan;
pub mod quant;
