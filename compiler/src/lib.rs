//! golfc as a library: one module per stage, in data-flow order.
#![deny(unsafe_code)]

pub mod autodiff;
pub mod data;
pub mod driver;
#[cfg(feature = "mlir")]
pub mod emulate;
pub mod graph;
pub mod kernel;
pub mod lang;
#[cfg(feature = "mlir")]
pub mod mlir;
pub mod optim;
#[cfg(feature = "mlir")]
pub mod package;
pub mod schedule;
pub mod target;
pub mod valid;
