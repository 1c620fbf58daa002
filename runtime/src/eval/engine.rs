//! What evaluation needs of a model, as a trait, so that protocols and receipts are tested without generated code.

use crate::error::Result;
use std::collections::BTreeMap;

/// A model with weights that can be scored and adapted.
pub trait Engine {
    /// Windows per run of `score`.
    fn rows(&self) -> usize;
    /// `tokens` and `targets` are `[rows, window]`, row-major; gives nll in nats, the same shape. Does not change the weights.
    fn score(&mut self, tokens: &[i32], targets: &[i32]) -> Result<Vec<f32>>;
    /// One update on `tokens`/`targets` `[n, window]` (n sequences, mean loss over all of their tokens) with the hyper-parameters
    /// of chunk `chunk` of `chunks`. Gives the mean loss before the update and the gradient norm before the clip.
    fn adapt(&mut self, tokens: &[i32], targets: &[i32], chunk: u64, chunks: u64) -> Result<(f64, f64)>;
    /// The hyper-parameters of the update after a chunk, by name.
    fn hypers(&self, chunk: u64, chunks: u64) -> BTreeMap<String, f64>;
    /// BLAKE3 (hex) of all parameters in state order, as stored.
    fn weights_hash(&mut self) -> Result<String>;
    /// Everything an interrupted evaluation needs to go on: parameters and adaptation state.
    fn snapshot(&mut self) -> Result<Vec<u8>>;
    /// Puts a snapshot back.
    fn restore(&mut self, snapshot: &[u8]) -> Result<()>;
}
