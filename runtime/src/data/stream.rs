//! Several shards as one stream of tokens.
//!
//! *Takes* a directory and a file pattern; *gives* the tokens of the matching shards, sorted by name, by position in their
//! concatenation; *promises* that any range costs only its own bytes: nothing is read ahead, nothing is kept.

use std::path::{Path, PathBuf};

use super::manifest::Manifest;
use super::shard::Shard;
use crate::error::{Error, Result};

/// The concatenation of the shards of one kind.
#[derive(Debug)]
pub struct TokenStream {
    shards: Vec<Shard>,
    /// Position of each shard's first token, and the total.
    starts: Vec<u64>,
    vocab: u32,
}

impl TokenStream {
    /// Opens all shards of `dir` whose names match `pattern` (`fineweb_train_*.bin`), without the byte side-cars
    /// (`fineweb_val_bytes_*.bin`) that the pattern would also match. Tokens must be below `vocab`. If the directory has a
    /// manifest, the shards must be those it lists.
    pub fn open(dir: &Path, pattern: &str, vocab: u32) -> Result<TokenStream> {
        let paths = list(dir, pattern)?;
        if paths.is_empty() {
            return Err(Error::file(dir, format!("no shard named {pattern} here")));
        }
        let shards = paths.iter().map(|p| Shard::open(p)).collect::<Result<Vec<_>>>()?;
        if let Some(manifest) = Manifest::read(dir)? {
            manifest.check_shards(dir, &shards, |name| wanted(pattern, name))?;
        }
        Self::of(shards, vocab).ok_or_else(|| Error::file(dir, format!("the shards named {pattern} hold no token")))
    }

    /// A stream over these shards in this order; `None` if they hold no token.
    pub fn of(shards: Vec<Shard>, vocab: u32) -> Option<TokenStream> {
        let mut starts = vec![0];
        starts.extend(shards.iter().scan(0, |total, s| {
            *total += s.tokens();
            Some(*total)
        }));
        (starts.last() != Some(&0)).then_some(TokenStream { shards, starts, vocab })
    }

    /// Number of tokens, at least 1.
    pub fn len(&self) -> u64 {
        self.starts[self.shards.len()]
    }

    /// Never true; for the lint that wants it beside `len`.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shards, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The exclusive bound on token ids.
    pub fn vocab(&self) -> u32 {
        self.vocab
    }

    /// Fills `out` with the tokens from `offset` on. The range must lie within the stream.
    pub fn read(&self, offset: u64, out: &mut [u16]) -> Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len()) {
            let (len, n) = (self.len(), out.len());
            return Err(Error::input(format!("the data holds {len} tokens; {offset}..+{n} were asked for")));
        }
        self.read_wrapping(offset, out)
    }

    /// Fills `out` with the tokens from `offset` on, going round to the first token after the last, as often as it takes.
    pub fn read_wrapping(&self, offset: u64, out: &mut [u16]) -> Result<()> {
        let mut at = offset % self.len();
        let mut shard = self.starts.partition_point(|&start| start <= at) - 1;
        let mut rest = out;
        while !rest.is_empty() {
            let here = (self.starts[shard + 1] - at).min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(here);
            self.shards[shard].read(at - self.starts[shard], self.vocab, part)?;
            rest = after;
            shard = (shard + 1) % self.shards.len();
            at = self.starts[shard];
        }
        Ok(())
    }

    /// Reads the first `tokens` tokens (or all) only to check them, so that a wrong token shows before any work is done.
    pub fn check(&self, tokens: u64) -> Result<()> {
        let mut block = vec![0; 1 << 18];
        let (mut at, end) = (0, self.len().min(tokens));
        while at < end {
            let n = block.len().min((end - at) as usize);
            self.read(at, &mut block[..n])?;
            at += n as u64;
        }
        Ok(())
    }
}

/// Paths of `dir` that match `pattern`, sorted by name bytes, without the side-cars `…bytes_…`.
fn list(dir: &Path, pattern: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let name = entry.map_err(|e| Error::io(dir, e))?.file_name();
        let Some(text) = name.to_str() else { continue };
        if wanted(pattern, text) {
            found.push(dir.join(&name));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether `name` is a shard of `pattern` and not a side-car.
fn wanted(pattern: &str, name: &str) -> bool {
    let side_car = pattern.replacen('*', "bytes_*", 1);
    matches(pattern, name) && (side_car == pattern || !matches(&side_car, name))
}

/// Whether `name` matches `pattern`, in which each `*` stands for any text.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::shard::header;
    use super::*;
    use proptest::prelude::*;

    /// Writes a shard file.
    pub(crate) fn write(dir: &Path, name: &str, tokens: &[u16]) {
        let mut bytes = header(tokens.len() as u32).to_vec();
        bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
        std::fs::write(dir.join(name), bytes).unwrap();
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("fineweb_val_*.bin", "fineweb_val_000000.bin", true),
            ("fineweb_val_*.bin", "fineweb_val_.bin", true),
            ("fineweb_val_*.bin", "fineweb_val.bin", false),
            ("fineweb_val_*.bin", "fineweb_val_0.bin.tmp", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("plain", "plain", true),
            ("plain", "plainer", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn sorts_and_leaves_side_cars_out() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "fineweb_val_000001.bin", &[3, 4]);
        write(dir.path(), "fineweb_val_000000.bin", &[1, 2]);
        write(dir.path(), "fineweb_val_bytes_000000.bin", &[9, 9]);
        let stream = TokenStream::open(dir.path(), "fineweb_val_*.bin", 5).unwrap();
        let mut out = [0; 4];
        stream.read(0, &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
        assert!(stream.check(u64::MAX).is_ok());
        let strict = TokenStream::open(dir.path(), "fineweb_val_*.bin", 4).unwrap();
        let text = strict.check(u64::MAX).unwrap_err().to_string();
        assert!(
            text.ends_with("fineweb_val_000001.bin, byte 1026: token 4 is not below the vocabulary of 4"),
            "{text}"
        );
        assert!(strict.check(3).is_ok());
    }

    #[test]
    fn missing_directory_missing_shards_and_empty_shards() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let text = TokenStream::open(&gone, "*.bin", 5).unwrap_err().to_string();
        assert!(text.ends_with("gone: no such file or directory"), "{text}");
        let text = TokenStream::open(dir.path(), "x_*.bin", 5).unwrap_err().to_string();
        assert!(text.ends_with("no shard named x_*.bin here"), "{text}");
        write(dir.path(), "x_0.bin", &[]);
        let text = TokenStream::open(dir.path(), "x_*.bin", 5).unwrap_err().to_string();
        assert!(text.ends_with("the shards named x_*.bin hold no token"), "{text}");
    }

    proptest! {
        /// Any range equals the same range of the tokens cycled, whatever the cuts between shards (empty shards included).
        #[test]
        fn random_access_equals_the_concatenation(
            sizes in prop::collection::vec(0usize..9, 1..5), offset in 0u64..60, len in 0usize..40,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut all = Vec::new();
            for (i, size) in sizes.iter().enumerate() {
                let tokens: Vec<u16> = (0..*size).map(|k| (all.len() + k) as u16).collect();
                write(dir.path(), &format!("t_{i}.bin"), &tokens);
                all.extend(tokens);
            }
            prop_assume!(!all.is_empty());
            let stream = TokenStream::open(dir.path(), "t_*.bin", 100).unwrap();
            let mut out = vec![0; len];
            stream.read_wrapping(offset, &mut out).unwrap();
            let expected: Vec<u16> = all.iter().copied().cycle().skip(offset as usize).take(len).collect();
            prop_assert_eq!(&out, &expected);
            prop_assert_eq!(stream.read(offset, &mut out).is_ok(), offset as usize + len <= all.len());
        }
    }
}
