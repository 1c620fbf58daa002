//! One shard file: 256 little-endian i32 (magic, version, token count, zeros), then that many little-endian u16.
//!
//! *Takes* a path; *gives* its tokens by position; *promises* that header and size were checked when it was opened and every token
//! against the vocabulary when it is read. Plain positioned reads: a shared file handle, no seek, no mapping (a mapped file that
//! is truncated under a running program kills it; a read returns an error).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;

/// First word of a shard.
pub const MAGIC: i32 = 20240520;
/// Second word of a shard.
pub const VERSION: i32 = 1;
/// Bytes before the first token.
pub const HEADER_BYTES: u64 = 1024;
/// Tokens of a full shard, as the challenge's export and `golfc data` cut them.
pub const SHARD_TOKENS: u64 = 100_000_000;

/// Bytes read at a time.
const BLOCK: usize = 1 << 16;

/// The header of a shard of `tokens` tokens; `tokens` must be below 2³¹.
pub fn header(tokens: u32) -> [u8; HEADER_BYTES as usize] {
    let mut bytes = [0; HEADER_BYTES as usize];
    for (word, value) in [MAGIC, VERSION, tokens as i32].into_iter().enumerate() {
        bytes[4 * word..4 * word + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// An open shard.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    tokens: u64,
}

impl Shard {
    /// Opens a shard and checks magic, version and that the file is exactly as long as its token count says.
    pub fn open(path: &Path) -> Result<Shard> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let size = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if size < HEADER_BYTES {
            return Err(Error::at(
                path,
                size,
                format!("a shard starts with {HEADER_BYTES} bytes of header, the file ends here"),
            ));
        }
        let mut head = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut head, 0).map_err(|e| Error::io(path, e))?;
        let word = |i: usize| i32::from_le_bytes([head[4 * i], head[4 * i + 1], head[4 * i + 2], head[4 * i + 3]]);
        if word(0) != MAGIC {
            return Err(Error::at(path, 0, format!("not a token shard: magic {MAGIC} expected, found {}", word(0))));
        }
        if word(1) != VERSION {
            return Err(Error::at(path, 4, format!("shard version {VERSION} expected, found {}", word(1))));
        }
        let Ok(tokens) = u64::try_from(word(2)) else {
            return Err(Error::at(path, 8, format!("negative token count {}", word(2))));
        };
        let expected = HEADER_BYTES + 2 * tokens;
        if size < expected {
            return Err(Error::at(
                path,
                size,
                format!("truncated: the header announces {tokens} tokens, {expected} bytes, the file ends here"),
            ));
        }
        if size > expected {
            return Err(Error::at(
                path,
                expected,
                format!("{} bytes too many: the header announces {tokens} tokens", size - expected),
            ));
        }
        Ok(Shard { path: path.into(), file, tokens })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File name without directory.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Fills `out` with the tokens from `first` on. Fails if a token is not below `vocab` or the range leaves the shard.
    pub fn read(&self, first: u64, vocab: u32, out: &mut [u16]) -> Result<()> {
        let end = first.checked_add(out.len() as u64).filter(|&end| end <= self.tokens);
        if end.is_none() {
            let message = format!("tokens {first}..+{} were asked for, the shard holds {}", out.len(), self.tokens);
            return Err(Error::file(&self.path, message));
        }
        let mut block = [0; BLOCK];
        let mut at = HEADER_BYTES + 2 * first;
        for part in out.chunks_mut(BLOCK / 2) {
            let bytes = &mut block[..2 * part.len()];
            self.file.read_exact_at(bytes, at).map_err(|e| Error::io(&self.path, e))?;
            for (i, (token, pair)) in part.iter_mut().zip(bytes.chunks_exact(2)).enumerate() {
                *token = u16::from_le_bytes([pair[0], pair[1]]);
                if u32::from(*token) >= vocab {
                    let message = format!("token {token} is not below the vocabulary of {vocab}");
                    return Err(Error::at(&self.path, at + 2 * i as u64, message));
                }
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// BLAKE3 of the whole file, what `b3sum FILE` prints.
    pub fn hash(&self) -> Result<blake3::Hash> {
        files::hash(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes of a shard, written independently of `header`.
    fn shard(tokens: &[u16]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[..8].copy_from_slice(&[0x88, 0xd8, 0x34, 0x01, 1, 0, 0, 0]);
        bytes[8..10].copy_from_slice(&[tokens.len() as u8, (tokens.len() >> 8) as u8]);
        bytes.extend(tokens.iter().flat_map(|t| [*t as u8, (*t >> 8) as u8]));
        bytes
    }

    fn open(bytes: &[u8]) -> (tempfile::TempDir, Result<Shard>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.bin");
        std::fs::write(&path, bytes).unwrap();
        let shard = Shard::open(&path);
        (dir, shard)
    }

    #[test]
    fn reads_what_was_written() {
        let tokens: Vec<u16> = (0..40_000).map(|i| i as u16).collect();
        let bytes = shard(&tokens);
        assert_eq!(bytes[..1024], header(40_000));
        let (_dir, shard) = open(&bytes);
        let shard = shard.unwrap();
        let mut out = vec![0; 35_000];
        shard.read(4_999, 65_536, &mut out).unwrap();
        assert_eq!(out, tokens[4_999..39_999]);
        assert_eq!(shard.hash().unwrap(), blake3::hash(&bytes));
        assert!(shard.read(5_001, 65_536, &mut out).is_err());
        assert!(shard.read(u64::MAX, 65_536, &mut out).is_err());
    }

    #[test]
    fn every_fault_has_its_place() {
        let good = shard(&[7, 8, 9]);
        let fault = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            edit(&mut bytes);
            let text = open(&bytes).1.unwrap_err().to_string();
            text.split_once("s.bin, ").unwrap().1.to_string()
        };
        assert_eq!(
            fault(&|b| b.truncate(100)),
            "byte 100: a shard starts with 1024 bytes of header, the file ends here"
        );
        assert_eq!(fault(&|b| b[0] = 0), "byte 0: not a token shard: magic 20240520 expected, found 20240384");
        assert_eq!(fault(&|b| b[4] = 2), "byte 4: shard version 1 expected, found 2");
        assert_eq!(fault(&|b| b[11] = 0x80), "byte 8: negative token count -2147483645");
        assert_eq!(
            fault(&|b| b.truncate(1029)),
            "byte 1029: truncated: the header announces 3 tokens, 1030 bytes, the file ends here"
        );
        assert_eq!(fault(&|b| b.push(0)), "byte 1030: 1 bytes too many: the header announces 3 tokens");
        let (_dir, shard) = open(&good);
        let text = shard.unwrap().read(1, 9, &mut [0; 2]).unwrap_err().to_string();
        assert!(text.ends_with("s.bin, byte 1028: token 9 is not below the vocabulary of 9"), "{text}");
    }

    proptest! {
        /// A flipped bit or a cut never panics, and the header's first 12 bytes and the length are always noticed.
        #[test]
        fn survives_damage(flip in 0usize..8 * 1040, cut in 0usize..=1040) {
            let good = shard(&[1, 2, 3, 4, 5, 6, 7, 8]);
            let mut bytes = good.clone();
            bytes[flip / 8] ^= 1 << (flip % 8);
            bytes.truncate(cut);
            let (_dir, shard) = open(&bytes);
            if cut < 1040 || flip < 96 {
                prop_assert!(shard.is_err());
            } else {
                let mut out = [0; 8];
                let read = shard.unwrap().read(0, 9, &mut out);
                prop_assert_eq!(read.is_err(), out.iter().any(|&t| t >= 9));
            }
        }
    }
}
