//! Legal evaluation: exact partitions, score-first adaptation, receipts, verification.

pub mod engine;
pub mod protocol;
pub mod receipt;
pub mod score;
pub mod window;
