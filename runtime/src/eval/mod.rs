//! Legal evaluation: exact partitions, score-first adaptation, receipts, verification.

pub mod command;
pub mod engine;
pub mod model;
pub mod protocol;
pub mod receipt;
pub mod score;
#[cfg(test)]
mod tests;
pub mod verify;
pub mod window;
