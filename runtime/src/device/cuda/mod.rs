//! NVIDIA GPUs, through the driver alone.
//!
//! *Takes* PTX texts and plans; *gives* [`Gpu`] with memory, code and launches (also for code outside any program: trials), and
//! [`GpuLauncher`], a variant's memory and graphs on a device; *promises* that nothing of CUDA is linked or needed to build, and that every way in
//! which a machine may lack a fitting GPU is an error with exit code 3 that says which.

mod cublaslt;
mod driver;
mod dynamic;
#[cfg(test)]
pub mod fake;
mod gpu;
mod launcher;
mod modules;
#[cfg(test)]
mod tests;

pub use driver::leave;
pub use gpu::{Allocation, Event, Function, Gpu, Graph, Launch, Map, Module, Work};
pub use launcher::GpuLauncher;
pub use modules::progress;
