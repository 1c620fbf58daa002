//! The stream loader of training: which tokens row r of logical shard s sees at step n.
//!
//! *Takes* the training stream and the program's `batch`, `ranks`, `seq`; *gives* rows of `seq + 1` tokens (inputs are the first
//! `seq`, targets the last); *promises* that a row depends on (step, shard, row) alone.
//!
//! The stream runs over the shards forever. Each step takes `ranks` spans of n + 1 tokens, n = batch / ranks, one after the other; a
//! span is n / seq rows that share their boundary tokens. The transition from one span to the next is never trained, as in the
//! published loader, whose order this is for every world size (there, 8 / world size micro-steps take the same spans).

use super::stream::TokenStream;
use crate::error::{Error, Result};

/// Rows by (step, shard, row).
#[derive(Debug)]
pub struct Loader {
    stream: TokenStream,
    ranks: usize,
    rows: usize,
    seq: usize,
}

impl Loader {
    /// A loader of `batch` tokens a step in `ranks` logical shards of rows of `seq` tokens; `batch` must be a multiple of `ranks * seq`.
    pub fn new(stream: TokenStream, batch: u64, ranks: u32, seq: u32) -> Result<Loader> {
        let row_tokens = u64::from(ranks) * u64::from(seq);
        if batch == 0 || row_tokens == 0 || !batch.is_multiple_of(row_tokens) {
            return Err(Error::input(format!(
                "a batch of {batch} tokens is not a multiple of {ranks} ranks of rows of {seq} tokens"
            )));
        }
        let rows =
            usize::try_from(batch / row_tokens).map_err(|_| Error::input(format!("batch {batch} is too large")))?;
        Ok(Loader { stream, ranks: ranks as usize, rows, seq: seq as usize })
    }

    /// The stream behind it.
    pub fn stream(&self) -> &TokenStream {
        &self.stream
    }

    /// Logical shards of a batch.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// Rows of one logical shard in one step.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens of a row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Tokens of the stream that one step passes over, `ranks * (n + 1)`.
    pub fn step_tokens(&self) -> u64 {
        self.ranks as u64 * self.span()
    }

    fn span(&self) -> u64 {
        (self.rows * self.seq) as u64 + 1
    }

    /// Position in the stream of the first token of a row.
    fn position(&self, step: u64, shard: usize, row: usize) -> u64 {
        let spans = u128::from(step) * self.ranks as u128 + shard as u128;
        let tokens = spans * u128::from(self.span()) + (row * self.seq) as u128;
        (tokens % u128::from(self.stream.len())) as u64
    }

    /// The `seq + 1` tokens of row `row` (below [`Loader::rows`]) of shard `shard` (below [`Loader::ranks`]) at step `step` (from 0).
    pub fn row(&self, step: u64, shard: usize, row: usize) -> Result<Vec<u16>> {
        let mut tokens = vec![0; self.seq + 1];
        self.stream.read_wrapping(self.position(step, shard, row), &mut tokens)?;
        Ok(tokens)
    }

    /// Fills the inputs of a micro-batch: rows `first_row..` as `inputs` and `targets`, both \[B, seq\], B = `inputs.len() / seq`.
    pub fn fill(
        &self,
        step: u64,
        shard: usize,
        first_row: usize,
        inputs: &mut [i32],
        targets: &mut [i32],
    ) -> Result<()> {
        let rows = inputs.chunks_exact_mut(self.seq).zip(targets.chunks_exact_mut(self.seq));
        for (i, (x, y)) in rows.enumerate() {
            let tokens = self.row(step, shard, first_row + i)?;
            for (t, (x, y)) in x.iter_mut().zip(y).enumerate() {
                *x = i32::from(tokens[t]);
                *y = i32::from(tokens[t + 1]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::stream::tests::write;
    use super::*;
    use proptest::prelude::*;

    pub fn loader(tokens: usize, batch: u64, ranks: u32, seq: u32) -> (tempfile::TempDir, Loader) {
        let dir = tempfile::tempdir().unwrap();
        let all: Vec<u16> = (0..tokens as u16).collect();
        let (a, b) = all.split_at(tokens / 3);
        write(dir.path(), "fineweb_train_000000.bin", a);
        write(dir.path(), "fineweb_train_000001.bin", b);
        let stream = TokenStream::open(dir.path(), "fineweb_train_*.bin", 65_536).unwrap();
        let loader = Loader::new(stream, batch, ranks, seq).unwrap();
        (dir, loader)
    }

    #[test]
    fn closed_form() {
        // 2 ranks of 2 rows of 3 tokens: spans of 7, 14 tokens a step. Token = position mod 50.
        let (_dir, loader) = loader(50, 12, 2, 3);
        assert_eq!((loader.rows(), loader.ranks(), loader.step_tokens()), (2, 2, 14));
        assert_eq!(loader.row(0, 0, 0).unwrap(), [0, 1, 2, 3]);
        assert_eq!(loader.row(0, 0, 1).unwrap(), [3, 4, 5, 6]);
        assert_eq!(loader.row(0, 1, 0).unwrap(), [7, 8, 9, 10]);
        assert_eq!(loader.row(1, 0, 0).unwrap(), [14, 15, 16, 17]);
        assert_eq!(loader.row(3, 1, 0).unwrap(), [49, 0, 1, 2]);
        let last = u64::MAX;
        let expected = ((u128::from(last) * 14) % 50) as u16;
        assert_eq!(loader.row(last, 0, 0).unwrap()[0], expected);
        let (mut x, mut y) = ([0; 6], [0; 6]);
        loader.fill(0, 1, 0, &mut x, &mut y).unwrap();
        assert_eq!((x, y), ([7, 8, 9, 10, 11, 12], [8, 9, 10, 11, 12, 13]));
    }

    #[test]
    fn refuses_a_ragged_batch() {
        let (dir, _) = loader(50, 12, 2, 3);
        for (batch, ranks, seq) in [(13, 2, 3), (0, 2, 3), (12, 0, 3), (12, 2, 0)] {
            let stream = TokenStream::open(dir.path(), "fineweb_train_*.bin", 65_536).unwrap();
            assert_eq!(Loader::new(stream, batch, ranks, seq).unwrap_err().exit_code(), 1);
        }
    }

    proptest! {
        /// The published loader, executed: one cursor that only moves forward and wraps.
        #[test]
        fn equals_a_sequential_cursor(tokens in 3usize..200, rows in 1u64..4, ranks in 1u32..9, seq in 1u32..9) {
            let (_dir, loader) = loader(tokens, rows * u64::from(ranks * seq), ranks, seq);
            let mut cursor = (0..tokens as u16).cycle();
            let n = rows as usize * seq as usize;
            for step in 0..4 {
                for shard in 0..ranks as usize {
                    let span: Vec<u16> = cursor.by_ref().take(n + 1).collect();
                    for row in 0..rows as usize {
                        let at = row * seq as usize;
                        prop_assert_eq!(&loader.row(step, shard, row).unwrap(), &span[at..=at + seq as usize]);
                    }
                }
            }
        }
    }
}
