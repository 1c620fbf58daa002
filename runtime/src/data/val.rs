//! The validation stream: what is predicted, in which order, and how many bytes each prediction is worth.
//!
//! *Takes* the validation shards, the evaluation length S and the byte table; *gives* inputs, targets and bytes by position;
//! *promises* the published truncation: of n tokens, `floor((n-1)/S)·S` are targets and one more is the first input.
//!
//! Target i is token i + 1 of the stream and is predicted from tokens `..=i`.

use std::path::Path;

use super::bytes::ByteTable;
use super::stream::TokenStream;
use crate::error::{Error, Result};

/// Tokens read at a time by the scans.
const BLOCK: u64 = 1 << 18;

/// The truncated validation stream.
#[derive(Debug)]
pub struct ValStream {
    stream: TokenStream,
    table: ByteTable,
    targets: u64,
}

/// Totals over a range of targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Number of targets.
    pub targets: u64,
    /// Bytes of text they stand for.
    pub bytes: u64,
    /// Entropy of the targets' frequencies, nats per token: what a model that knows only how often each token occurs would lose.
    pub unigram_entropy: f64,
}

impl ValStream {
    /// Opens the shards of `dir` that match `pattern`; `seq` is S, the evaluation length; `table` has one entry per id.
    pub fn open(dir: &Path, pattern: &str, seq: u32, table: ByteTable) -> Result<ValStream> {
        let stream = TokenStream::open(dir, pattern, table.vocab() as u32)?;
        let targets = (stream.len() - 1) / u64::from(seq.max(1)) * u64::from(seq.max(1));
        if targets == 0 {
            let n = stream.len();
            return Err(Error::file(
                dir,
                format!("{n} validation tokens, at least {} needed to score {seq}", u64::from(seq) + 1),
            ));
        }
        Ok(ValStream { stream, table, targets })
    }

    /// Number of targets, a multiple of the evaluation length.
    pub fn targets(&self) -> u64 {
        self.targets
    }

    /// The stream behind it (all of it, tail included).
    pub fn stream(&self) -> &TokenStream {
        &self.stream
    }

    /// The byte table.
    pub fn table(&self) -> &ByteTable {
        &self.table
    }

    /// The `count + 1` tokens around targets `first..first + count`: inputs are all but the last, targets all but the first.
    pub fn tokens(&self, first: u64, count: usize) -> Result<Vec<u16>> {
        if first.checked_add(count as u64).is_none_or(|end| end > self.targets) {
            let n = self.targets;
            return Err(Error::input(format!("targets {first}..+{count} were asked for, validation has {n}")));
        }
        let mut tokens = vec![0; count + 1];
        self.stream.read(first, &mut tokens)?;
        Ok(tokens)
    }

    /// Bytes of each of the targets `first..first + count`.
    pub fn bytes(&self, first: u64, count: usize) -> Result<Vec<u32>> {
        let tokens = self.tokens(first, count)?;
        Ok(tokens.windows(2).map(|pair| self.table.bytes(pair[1], pair[0])).collect())
    }

    /// Totals over the first `limit` targets (all if `None`).
    pub fn summary(&self, limit: Option<u64>) -> Result<Summary> {
        let targets = limit.unwrap_or(self.targets).min(self.targets);
        let mut counts = vec![0u64; self.table.vocab()];
        let (mut first, mut bytes) = (0, 0u64);
        while first < targets {
            let count = BLOCK.min(targets - first);
            for pair in self.tokens(first, count as usize)?.windows(2) {
                counts[usize::from(pair[1])] += 1;
                bytes += u64::from(self.table.bytes(pair[1], pair[0]));
            }
            first += count;
        }
        let total = targets as f64;
        let entropy = counts.iter().filter(|&&c| c > 0).map(|&c| c as f64 / total * libm::log(total / c as f64)).sum();
        Ok(Summary { targets, bytes, unigram_entropy: entropy })
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::tests::write;
    use super::super::tokenizer::Tokenizer;
    use super::*;

    fn open(tokens: &[u16], seq: u32) -> Result<ValStream> {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = tokens.split_at(tokens.len() / 2);
        write(dir.path(), "fineweb_val_000000.bin", a);
        write(dir.path(), "fineweb_val_000001.bin", b);
        ValStream::open(dir.path(), "fineweb_val_*.bin", seq, ByteTable::new(&Tokenizer::Bytes).unwrap())
    }

    #[test]
    fn truncates_as_published() {
        for (n, seq, targets) in [(9, 4, 8), (8, 4, 4), (5, 4, 4), (6, 1, 5), (2, 1, 1)] {
            assert_eq!(open(&vec![5; n], seq).unwrap().targets(), targets, "{n} {seq}");
        }
        let text = open(&[5; 4], 4).unwrap_err().to_string();
        assert!(text.ends_with("4 validation tokens, at least 5 needed to score 4"), "{text}");
    }

    #[test]
    fn bytes_and_entropy() {
        // bos a b b b bos a b b (tail: c)
        let v = open(&[1, 101, 102, 102, 102, 1, 101, 102, 102, 103], 8).unwrap();
        assert_eq!(v.tokens(3, 2).unwrap(), [102, 102, 1]);
        assert_eq!(v.bytes(0, 8).unwrap(), [1, 1, 1, 1, 0, 1, 1, 1]);
        let s = v.summary(None).unwrap();
        assert_eq!((s.targets, s.bytes), (8, 7));
        // Targets: bos once, a twice, b five times of eight.
        let expected = (8f64.ln() + 2.0 * 4f64.ln() + 5.0 * 1.6f64.ln()) / 8.0;
        assert!((s.unigram_entropy - expected).abs() < 1e-15, "{}", s.unigram_entropy);
        assert_eq!(v.summary(Some(4)).unwrap().bytes, 4);
        assert!(v.tokens(8, 1).is_err() && v.tokens(u64::MAX, 2).is_err());
    }
}
