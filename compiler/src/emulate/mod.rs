//! The emulator: GPU kernels on this CPU, so that every one of them is tested where there is no GPU.
//!
//! *Takes* kernels as `mlir::gpu` emits them; *gives* their results, or a [`Report`] of what the hardware would do wrong or forbid; *promises* the
//! layouts of the hardware bit by bit: descriptors, swizzles, fragments, tensor maps, barriers and their phases.
//!
//! [`lower`] turns GPU operations into calls, [`launch`] compiles and runs, [`block`] holds one block whose threads are fibers, [`calls`] has the
//! functions that generated code calls, [`barrier`], [`copy`], [`piece`], [`product`], [`fragment`] do the operations and [`memory`] checks addresses.
//!
//! Asynchronous work runs either at once or as late as its waits allow ([`Options::lazy`]), threads in any order ([`Options::seed`]): a kernel is
//! right if it is right in all of them. Uninitialised memory is NaN.
//!
//! Not modelled: the rounding of tensor cores (sums are f32, in order) and of the special function unit (exact here), bank conflicts, register
//! pressure, clusters, the order in which different blocks' writes become visible.

mod barrier;
mod block;
mod calls;
pub mod check;
mod copy;
mod fragment;
mod graph;
mod groups;
pub mod launch;
pub mod lower;
mod memory;
mod multiply;
pub mod mutate;
mod order;
mod piece;
mod product;
pub mod text;

#[cfg(test)]
mod tests;

pub use check::{check, check_program};
pub use graph::graph;
pub use launch::{Code, Options, Report, run};
