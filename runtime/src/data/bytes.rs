//! How many bytes of text a token stands for: the denominator of bits per byte.
//!
//! *Takes* a tokenizer; *gives* bytes(target, previous); *promises* the published definition: a piece counts its UTF-8 bytes; its
//! leading space counts as one more byte, but not after a boundary token (bos and the other tokens without text).

use std::path::Path;

use super::manifest::Manifest;
use super::tokenizer::{BYTES_VOCAB, Kind, SPACE, Tokenizer};
use crate::error::{Error, Result};
use crate::files;

/// Byte counts by token id; all three tables have one entry per id of the vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteTable {
    /// UTF-8 bytes without the leading space; 0 for tokens without text.
    pub base_bytes: Vec<i16>,
    /// The piece starts with a space.
    pub leading_space: Vec<bool>,
    /// The token has no text (control, unknown, unused): no space is written after it.
    pub boundary: Vec<bool>,
}

impl ByteTable {
    /// The table of the tokenizer in data directory `dir`, which must have exactly `vocab` ids and be the one that the
    /// directory's manifest names, if there is a manifest. Also gives BLAKE3 of the tokenizer's file.
    pub fn open(dir: &Path, vocab: u32) -> Result<(ByteTable, blake3::Hash)> {
        let path = Tokenizer::find(dir)?;
        let tokenizer = Tokenizer::read(&path)?;
        if tokenizer.vocab() != vocab as usize {
            return Err(Error::file(
                &path,
                format!("a tokenizer of {} ids, the program's vocabulary is {vocab}", tokenizer.vocab()),
            ));
        }
        let hash = files::hash(&path)?;
        if let Some(manifest) = Manifest::read(dir)? {
            manifest.check_tokenizer(&path, &hash)?;
        }
        Ok((ByteTable::new(&tokenizer).map_err(|message| Error::file(&path, message))?, hash))
    }

    /// The table of a tokenizer. Fails with a message if bytes cannot be counted with it.
    pub fn new(tokenizer: &Tokenizer) -> Result<ByteTable, String> {
        let model = match tokenizer {
            Tokenizer::Bytes => {
                let text = |id| id >= BYTES_VOCAB - 256;
                return Ok(ByteTable {
                    base_bytes: (0..BYTES_VOCAB).map(|id| i16::from(text(id))).collect(),
                    leading_space: vec![false; BYTES_VOCAB],
                    boundary: (0..BYTES_VOCAB).map(|id| !text(id)).collect(),
                });
            }
            Tokenizer::Model(model) => model,
        };
        if !model.pieces.iter().any(|p| p.text == SPACE && matches!(p.kind, Kind::Normal | Kind::UserDefined)) {
            return Err("no piece for a single space: a space would not count as one byte".into());
        }
        let mut table = ByteTable { base_bytes: Vec::new(), leading_space: Vec::new(), boundary: Vec::new() };
        for piece in &model.pieces {
            let (bytes, space, boundary) = match piece.kind {
                Kind::Control | Kind::Unknown | Kind::Unused => (0, false, true),
                Kind::Byte(_) => (1, false, false),
                Kind::Normal | Kind::UserDefined => {
                    let rest = piece.text.strip_prefix(SPACE);
                    (rest.unwrap_or(&piece.text).len(), rest.is_some(), false)
                }
            };
            let bytes = i16::try_from(bytes).map_err(|_| format!("a piece of {bytes} bytes"))?;
            table.base_bytes.push(bytes);
            table.leading_space.push(space);
            table.boundary.push(boundary);
        }
        Ok(table)
    }

    /// Number of ids.
    pub fn vocab(&self) -> usize {
        self.base_bytes.len()
    }

    /// Bytes of text that `target` adds after `previous`; both must be below [`ByteTable::vocab`].
    pub fn bytes(&self, target: u16, previous: u16) -> u32 {
        let (y, x) = (usize::from(target), usize::from(previous));
        self.base_bytes[y] as u32 + u32::from(self.leading_space[y] && !self.boundary[x])
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::{BOS, tests::fixtures};
    use super::super::val::ValStream;
    use super::*;

    /// Bytes of a text encoded by spm_encode = length of the text normalised by spm_normalize.
    #[test]
    fn counts_the_bytes_of_normalised_text() {
        let table = ByteTable::new(&Tokenizer::read(&fixtures().join("nfkc.model")).unwrap()).unwrap();
        let read = |name: &str| std::fs::read_to_string(fixtures().join(name)).unwrap();
        let (ids, norm) = (read("nfkc.ids"), read("nfkc.norm"));
        assert_eq!(ids.lines().count(), norm.lines().count());
        for (ids, norm) in ids.lines().zip(norm.lines()) {
            let mut previous = BOS;
            let mut bytes = 0;
            for id in ids.split_whitespace().map(|id| id.parse().unwrap()) {
                bytes += table.bytes(id, previous);
                previous = id;
            }
            // A space directly after bos does not count.
            assert_eq!(bytes as usize, norm.len() - usize::from(norm.starts_with(' ')), "{norm:?}");
        }
    }

    /// Byte counts of the published S1016 program on its golden validation stream.
    #[test]
    fn agrees_with_the_published_program() {
        #[derive(serde::Deserialize)]
        struct Expected {
            base_bytes: Vec<i16>,
            leading_space: Vec<u8>,
            boundary: Vec<u8>,
            bytes: Vec<u32>,
        }
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/bytes");
        let expected: Expected = serde_json::from_slice(&std::fs::read(dir.join("expected.json")).unwrap()).unwrap();
        let table = ByteTable {
            base_bytes: expected.base_bytes,
            leading_space: expected.leading_space.iter().map(|&b| b != 0).collect(),
            boundary: expected.boundary.iter().map(|&b| b != 0).collect(),
        };
        let val = ValStream::open(&dir, "fineweb_val_*.bin", 64, table).unwrap();
        assert_eq!(val.targets(), 1472);
        assert_eq!(val.bytes(0, 1472).unwrap(), expected.bytes);
        assert_eq!(val.summary(None).unwrap().bytes, 6573);
    }

    #[test]
    fn byte_tokenizer() {
        let table = ByteTable::new(&Tokenizer::Bytes).unwrap();
        assert_eq!(table.vocab(), 260);
        let counts: Vec<u32> = [0, 1, 2, 3, 4, 36, 259].iter().map(|&id| table.bytes(id, 70)).collect();
        assert_eq!(counts, [0, 0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn refuses_the_wrong_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(fixtures().join("nfkc.model"), dir.path().join("t.model")).unwrap();
        assert!(ByteTable::open(dir.path(), 400).is_ok());
        let text = ByteTable::open(dir.path(), 1024).unwrap_err().to_string();
        assert!(text.ends_with("t.model: a tokenizer of 400 ids, the program's vocabulary is 1024"), "{text}");
        let hash = blake3::hash(b"another");
        let manifest = format!(
            r#"{{"golf_data":1,"tool":"","tokenizer":{{"file":"t.model","vocab":400,"blake3":"{hash}"}},"division":"",
               "train":{{"documents":0,"text_bytes":0,"tokens":0,"shards":[]}},"val":{{"documents":0,"text_bytes":0,"tokens":0,"shards":[]}}}}"#
        );
        std::fs::write(dir.path().join("manifest.json"), &manifest).unwrap();
        let text = ByteTable::open(dir.path(), 400).unwrap_err().to_string();
        assert!(
            text.ends_with("t.model: not the tokenizer of this data: manifest.json names t.model with another content"),
            "{text}"
        );
        std::fs::write(dir.path().join("manifest.json"), &manifest[..30]).unwrap();
        let text = ByteTable::open(dir.path(), 400).unwrap_err().to_string();
        assert!(text.contains("manifest.json, byte 29: not a manifest: EOF"), "{text}");
        std::fs::write(dir.path().join("manifest.json"), "{\"other\": 1}").unwrap();
        assert!(ByteTable::open(dir.path(), 400).is_ok());
    }
}
