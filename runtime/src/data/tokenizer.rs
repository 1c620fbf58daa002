//! Tokenizers as files: a SentencePiece `.model`, or `tokenizer.bytes`, the marker of the byte tokenizer.
//!
//! *Takes* a path; *gives* the piece table and the settings that decide how text becomes pieces; *promises* that what it gives is
//! consistent (unique pieces, one unknown piece, all 256 byte pieces if byte fallback is on), and a place in the file where it is not.
//! The encoder lives in golfc; a running program needs the byte counts of the pieces only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::wire::{Field, Wire};
use crate::error::{Error, Result};
use crate::files;

/// File name of the byte tokenizer's marker. Its content does not matter.
pub const BYTES_FILE: &str = "tokenizer.bytes";
/// Vocabulary of the byte tokenizer: pad, bos, eos, unk, then 4 + byte.
pub const BYTES_VOCAB: usize = 260;
/// Token that starts every document in the byte tokenizer, and in the challenge's data.
pub const BOS: u16 = 1;
/// SentencePiece's visible space.
pub const SPACE: &str = "\u{2581}";

/// Largest `.model` accepted, bytes (published ones are below 1 MB).
const MODEL_LIMIT: u64 = 64 << 20;
/// Most pieces: ids are u16.
const PIECE_LIMIT: usize = 1 << 16;

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    /// `<0x41>`.
    Byte(u8),
}

/// One entry of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text, with U+2581 for spaces.
    pub text: String,
    /// Merge priority (BPE) or log probability (unigram); never NaN.
    pub score: f32,
    /// What it is.
    pub kind: Kind,
}

/// How a model cuts text; only BPE models are encoded by golfc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Algorithm {
    Unigram,
    Bpe,
    Word,
    Char,
}

/// How a model rewrites text before cutting it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normalizer {
    /// `nmt_nfkc`, `identity`, ...; for messages.
    pub name: String,
    /// u32 size of a double-array trie, the trie, NUL-terminated replacements; empty: no rule.
    pub charsmap: Vec<u8>,
    /// Where `charsmap` starts in the file.
    pub charsmap_offset: u64,
    /// A space before the first character.
    pub add_dummy_prefix: bool,
    /// Drop spaces at both ends, and all but one of a run.
    pub remove_extra_whitespaces: bool,
    /// Write spaces as U+2581.
    pub escape_whitespaces: bool,
    /// The dummy space goes to the end.
    pub whitespace_as_suffix: bool,
}

/// A SentencePiece model.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Pieces by id, at most 65,536.
    pub pieces: Vec<Piece>,
    /// How text is cut.
    pub algorithm: Algorithm,
    /// Characters without a piece become byte pieces.
    pub byte_fallback: bool,
    /// Id of the unknown piece.
    pub unknown: u16,
    /// Id of the control piece that starts a document, if the model has one.
    pub bos: Option<u16>,
    /// How text is rewritten first.
    pub normalizer: Normalizer,
}

/// Either tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub enum Tokenizer {
    /// Ids 0–3 are pad, bos, eos, unk; id 4 + b is byte b.
    Bytes,
    /// A SentencePiece model.
    Model(Model),
}

impl Tokenizer {
    /// Reads a tokenizer: the byte tokenizer if the file is named `tokenizer.bytes`, a `.model` otherwise.
    pub fn read(path: &Path) -> Result<Tokenizer> {
        let bytes = files::read_bounded(path, MODEL_LIMIT)?;
        if path.file_name().is_some_and(|name| name == BYTES_FILE) {
            return Ok(Tokenizer::Bytes);
        }
        parse(path, &bytes).map(Tokenizer::Model)
    }

    /// The one tokenizer of a data directory.
    pub fn find(dir: &Path) -> Result<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
            let path = entry.map_err(|e| Error::io(dir, e))?.path();
            if path.extension().is_some_and(|e| e == "model") || path.file_name().is_some_and(|n| n == BYTES_FILE) {
                found.push(path);
            }
        }
        found.sort();
        match found.as_slice() {
            [one] => Ok(one.clone()),
            [] => Err(Error::file(dir, format!("no tokenizer here: one *.model or {BYTES_FILE} expected"))),
            [a, b, ..] => {
                Err(Error::file(dir, format!("one tokenizer expected, found {} and {}", a.display(), b.display())))
            }
        }
    }

    /// The token that starts every document, if there is one.
    pub fn bos(&self) -> Option<u16> {
        match self {
            Tokenizer::Bytes => Some(BOS),
            Tokenizer::Model(m) => m.bos,
        }
    }

    /// Number of ids.
    pub fn vocab(&self) -> usize {
        match self {
            Tokenizer::Bytes => BYTES_VOCAB,
            Tokenizer::Model(m) => m.pieces.len(),
        }
    }
}

/// Parses a `.model`; `path` is for messages.
pub fn parse(path: &Path, bytes: &[u8]) -> Result<Model> {
    let mut model = Model {
        pieces: Vec::new(),
        algorithm: Algorithm::Unigram,
        byte_fallback: false,
        unknown: 0,
        bos: Some(BOS),
        normalizer: Normalizer {
            name: String::new(),
            charsmap: Vec::new(),
            charsmap_offset: 0,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
            whitespace_as_suffix: false,
        },
    };
    let mut wire = Wire::new(path, bytes);
    let mut seen = BTreeSet::new();
    let mut unknown = None;
    while let Some(field) = wire.next()? {
        match field.number {
            1 => {
                let id = model.pieces.len();
                if id == PIECE_LIMIT {
                    return Err(field.error(format!("more than {PIECE_LIMIT} pieces")));
                }
                let piece = piece(&field)?;
                // Text pieces and reserved ones are looked up apart.
                let reserved = matches!(piece.kind, Kind::Unknown | Kind::Control | Kind::Byte(_));
                if !seen.insert((reserved, piece.text.clone())) {
                    return Err(field.error(format!("piece {:?} is defined twice", piece.text)));
                }
                if piece.kind == Kind::Unknown && unknown.replace(id as u16).is_some() {
                    return Err(field.error("second unknown piece"));
                }
                model.pieces.push(piece);
            }
            2 => trainer(&field, &mut model)?,
            3 => normalizer(&field, &mut model.normalizer)?,
            _ => {}
        }
    }
    if model.pieces.is_empty() {
        return Err(Error::file(path, "not a SentencePiece model: no pieces"));
    }
    model.unknown = unknown.ok_or_else(|| Error::file(path, "no unknown piece"))?;
    let control = |id: &u16| model.pieces.get(usize::from(*id)).is_some_and(|p| p.kind == Kind::Control);
    model.bos = model.bos.filter(control);
    let bytes = model.pieces.iter().filter(|p| matches!(p.kind, Kind::Byte(_))).count();
    let expected = if model.byte_fallback { 256 } else { 0 };
    if bytes != expected {
        let message = format!("{bytes} byte pieces, {expected} expected with byte_fallback {}", model.byte_fallback);
        return Err(Error::file(path, message));
    }
    Ok(model)
}

fn piece(field: &Field) -> Result<Piece> {
    let (mut text, mut score, mut code) = ("", 0.0, 1);
    let mut wire = field.message()?;
    while let Some(f) = wire.next()? {
        match f.number {
            1 => text = f.text()?,
            2 => score = f.float()?,
            3 => code = f.int()?,
            _ => {}
        }
    }
    if text.is_empty() {
        return Err(field.error("empty piece"));
    }
    if score.is_nan() {
        return Err(field.error(format!("the score of piece {text:?} is not a number")));
    }
    let kind = match code {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte(
            byte_of(text).ok_or_else(|| field.error(format!("{text:?} is not a byte piece <0x00>..<0xFF>")))?,
        ),
        other => return Err(field.error(format!("unknown piece type {other}"))),
    };
    Ok(Piece { text: text.into(), score, kind })
}

/// `<0x4F>` → 0x4F; two upper-case digits exactly, so that the 256 texts are distinct.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let byte = u8::from_str_radix(digits, 16).ok()?;
    (format!("{byte:02X}") == digits).then_some(byte)
}

fn trainer(field: &Field, model: &mut Model) -> Result<()> {
    let mut wire = field.message()?;
    while let Some(f) = wire.next()? {
        match f.number {
            3 => {
                model.algorithm = match f.int()? {
                    1 => Algorithm::Unigram,
                    2 => Algorithm::Bpe,
                    3 => Algorithm::Word,
                    4 => Algorithm::Char,
                    other => return Err(f.error(format!("unknown model type {other}"))),
                }
            }
            24 => model.normalizer.whitespace_as_suffix = f.flag()?,
            41 => model.bos = u16::try_from(f.int()?).ok(),
            35 => model.byte_fallback = f.flag()?,
            _ => {}
        }
    }
    Ok(())
}

fn normalizer(field: &Field, n: &mut Normalizer) -> Result<()> {
    let mut wire = field.message()?;
    while let Some(f) = wire.next()? {
        match f.number {
            1 => n.name = f.text()?.into(),
            2 => {
                n.charsmap = f.bytes()?.into();
                n.charsmap_offset = f.offset();
            }
            3 => n.add_dummy_prefix = f.flag()?,
            4 => n.remove_extra_whitespaces = f.flag()?,
            5 => n.escape_whitespaces = f.flag()?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The folder of tokenizer fixtures (see its refresh.sh).
    pub(crate) fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/tokenizer")
    }

    #[test]
    fn reads_models_of_spm_train() {
        let Tokenizer::Model(m) = Tokenizer::read(&fixtures().join("nfkc.model")).unwrap() else { unreachable!() };
        let n = &m.normalizer;
        assert_eq!((m.pieces.len(), m.algorithm, m.byte_fallback, m.unknown), (400, Algorithm::Bpe, true, 3));
        assert_eq!(m.bos, Some(1));
        assert_eq!((n.name.as_str(), n.charsmap.len() > 100_000), ("nmt_nfkc", true));
        assert_eq!((n.add_dummy_prefix, n.remove_extra_whitespaces, n.escape_whitespaces), (false, true, true));
        let kinds: Vec<Kind> = m.pieces[..5].iter().map(|p| p.kind).collect();
        assert_eq!(kinds, [Kind::Control, Kind::Control, Kind::Control, Kind::Unknown, Kind::Byte(0)]);
        assert_eq!(m.pieces[4 + 0xab], Piece { text: "<0xAB>".into(), score: 0.0, kind: Kind::Byte(0xab) });
        let Tokenizer::Model(m) = Tokenizer::read(&fixtures().join("plain.model")).unwrap() else { unreachable!() };
        assert_eq!(
            (m.byte_fallback, m.normalizer.charsmap.len(), m.normalizer.remove_extra_whitespaces),
            (false, 0, false)
        );
        assert_eq!(m.pieces.iter().filter(|p| p.kind == Kind::UserDefined).count(), 6);
        let Tokenizer::Model(m) = Tokenizer::read(&fixtures().join("suffix.model")).unwrap() else { unreachable!() };
        assert!(m.normalizer.whitespace_as_suffix);
    }

    /// A message field: tag, length, content.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }

    fn entry(text: &str, kind: u8) -> Vec<u8> {
        field(1, &[field(1, text.as_bytes()), vec![0x18, kind]].concat())
    }

    #[test]
    fn every_fault_has_its_place() {
        let fault = |bytes: &[u8]| parse(Path::new("m"), bytes).unwrap_err().to_string();
        let unknown = entry("<unk>", 2);
        assert_eq!(fault(&[]), "m: not a SentencePiece model: no pieces");
        assert_eq!(fault(&[0x0a, 9, 1, 2]), "m, byte 2: field of 9 bytes in a message with 2 bytes left");
        assert_eq!(fault(&entry("a", 1)), "m: no unknown piece");
        assert_eq!(fault(&[entry("a", 1), entry("a", 4)].concat()), "m, byte 9: piece \"a\" is defined twice");
        assert_eq!(fault(&[unknown.clone(), entry("b", 2)].concat()), "m, byte 13: second unknown piece");
        assert_eq!(fault(&entry("", 1)), "m, byte 2: empty piece");
        assert_eq!(fault(&entry("a", 9)), "m, byte 2: unknown piece type 9");
        assert_eq!(fault(&entry("<0xaf>", 6)), "m, byte 2: \"<0xaf>\" is not a byte piece <0x00>..<0xFF>");
        assert_eq!(fault(&field(1, &field(1, &[0xff]))), "m, byte 4: field 1 should hold UTF-8 text");
        assert_eq!(
            fault(&field(1, &[0x15, 0, 0, 0xc0, 0x7f, 0x0a, 1, 97])),
            "m, byte 2: the score of piece \"a\" is not a number"
        );
        assert_eq!(
            fault(&[unknown.clone(), entry("<0x00>", 6)].concat()),
            "m: 1 byte pieces, 0 expected with byte_fallback false"
        );
        assert_eq!(fault(&[unknown.clone(), field(2, &[0x18, 7])].concat()), "m, byte 14: unknown model type 7");
        assert_eq!(fault(&[0x0a, 0xff, 0xff]), "m, byte 3: number cut off");
        assert_eq!(fault(&[0xff; 11]), "m, byte 0: number of more than ten bytes");
        assert_eq!(fault(&[0x0b]), "m, byte 0: not a protobuf message: impossible wire type");
        assert_eq!(fault(&[0x02, 0]), "m, byte 0: not a protobuf message: impossible field number");
        assert!(parse(Path::new("m"), &unknown).is_ok());
    }

    #[test]
    fn finds_the_one_tokenizer() {
        let dir = tempfile::tempdir().unwrap();
        let text = Tokenizer::find(dir.path()).unwrap_err().to_string();
        assert!(text.ends_with("no tokenizer here: one *.model or tokenizer.bytes expected"), "{text}");
        std::fs::write(dir.path().join(BYTES_FILE), "").unwrap();
        let path = Tokenizer::find(dir.path()).unwrap();
        assert_eq!(Tokenizer::read(&path).unwrap().vocab(), 260);
        std::fs::write(dir.path().join("a.model"), "").unwrap();
        assert!(Tokenizer::find(dir.path()).unwrap_err().to_string().contains("one tokenizer expected, found"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Damaged models (bits flipped, bytes cut or doubled) are an error or a consistent model, never a panic.
        #[test]
        fn survives_damage(flips in prop::collection::vec(0usize..8 * 3788, 0..4), cut in 0usize..3788, double in 0usize..3788) {
            let mut bytes = std::fs::read(fixtures().join("plain.model")).unwrap();
            for flip in &flips {
                bytes[flip / 8] ^= 1 << (flip % 8);
            }
            if cut % 2 == 0 {
                bytes.truncate(cut);
            }
            if double % 2 == 0 {
                let tail = bytes[double.min(bytes.len())..].to_vec();
                bytes.extend(tail);
            }
            if let Ok(model) = parse(Path::new("m"), &bytes) {
                prop_assert_eq!(model.pieces[usize::from(model.unknown)].kind, Kind::Unknown);
            }
        }

        /// Random bytes.
        #[test]
        fn survives_noise(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Path::new("m"), &bytes);
        }
    }
}
