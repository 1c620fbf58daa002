//! Where the machine is touched: memory, threads, generated code, CPU features.
//!
//! *Takes* the table the generated object defines; *gives* safe types over it ([`Code`], [`Pool`], [`Memory`], [`cuda`]); *promises* to
//! be the only place of this crate with `unsafe`, each with the reason it is sound.

#![allow(unsafe_code)]

mod code;
pub mod cuda;
mod entry;
mod launch;
mod memory;
mod peak;
mod pool;
pub mod tier;
#[cfg(test)]
pub mod toy;
pub mod trials;

pub use code::{Code, pack};
pub use launch::{Launcher, Timing};
pub use memory::Memory;
pub use peak::{HOPPER, Peak};
pub use pool::Pool;
