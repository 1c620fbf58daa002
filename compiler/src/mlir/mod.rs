//! Code generation through MLIR (cargo feature `mlir`).
//!
//! *Takes* [`crate::kernel::Kernel`] descriptions; *gives* object code per CPU tier and PTX; *promises* that nothing here depends on
//! the model: equal descriptions give equal bytes, on any host and with any number of threads.
//!
//! [`sys`] holds all foreign calls, [`emit`] the typed builder kernels are written with, [`math`] the elementary functions, [`cpu`] and [`gpu`] the kernel
//! families, [`passes`] the lowering, [`object`] the parallel compilation and its cache, [`jit`] runs kernels in this process.

pub mod cpu;
pub mod elementwise;
pub mod emit;
mod epilogue;
pub mod execute;
pub mod gpu;
pub mod jit;
pub mod math;
pub mod memory;
pub mod object;
pub mod passes;
pub mod ptxas;
pub mod rows;
pub mod sys;
pub mod tier;

#[cfg(test)]
mod tests;
