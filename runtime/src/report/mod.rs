//! What a run tells people: everything derived from one ledger.
//!
//! *Takes* records; *gives* `ledger.jsonl` and, from it alone, `train.log`, `metrics.jsonl`, TensorBoard events and `curve.svg`;
//! *promises* that no number is written twice by hand: a derived file can be deleted and made again.

pub mod curve;
pub mod ledger;
pub mod output;
pub mod progress;
pub mod record;
pub mod submission;
pub mod tensorboard;

pub use ledger::Ledger;
pub use record::{Entry, Record};
