//! Byte-pair encoding exactly as SentencePiece does it, and the byte tokenizer.
//!
//! *Takes* documents; *gives* their token ids, without bos; *promises* the ids of `spm_encode`.
//!
//! SentencePiece merges, over the whole text, the adjacent pair whose union is the piece of the highest score, leftmost first,
//! until no union is a piece. Two characters that no piece holds side by side are never merged across, so the text is cut there into
//! words first; a word's result does not depend on its surroundings and is remembered.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap, HashSet};

use golf_runtime::data::tokenizer::{Algorithm, Kind, Model, SPACE, Tokenizer};

use super::normalize::{Normalizer, Symbols};

/// Normalised text is cut when it is this long, bytes.
const STRETCH: usize = 1 << 16;
/// Words remembered, and the longest one, bytes.
const CACHE_WORDS: usize = 1 << 17;
const CACHE_WORD_BYTES: usize = 48;

/// An encoder with its memory of words; one per thread.
#[derive(Clone, Debug)]
pub(super) enum Encoder {
    Bytes,
    Pieces(Box<Pieces>),
}

impl Encoder {
    /// The encoder of a tokenizer. An error is the offset of the fault in the tokenizer's file, if known, and a message.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Encoder, (Option<u64>, String)> {
        match tokenizer {
            Tokenizer::Bytes => Ok(Encoder::Bytes),
            Tokenizer::Model(model) => Pieces::new(model).map(|p| Encoder::Pieces(Box::new(p))),
        }
    }

    /// Appends the ids of a document to `ids`.
    pub(super) fn encode(&mut self, text: &str, ids: &mut Vec<u16>) {
        match self {
            Encoder::Bytes => ids.extend(text.bytes().map(|b| 4 + u16::from(b))),
            Encoder::Pieces(p) => p.encode(text, ids),
        }
    }
}

/// Which characters stand side by side in some piece.
#[derive(Clone, Debug)]
struct Neighbours {
    /// Of ASCII and the space symbol, [`Neighbours::slot`] by slot.
    near: Vec<bool>,
    far: HashSet<(char, char)>,
}

impl Neighbours {
    const SLOTS: usize = 129;

    fn slot(c: char) -> Option<usize> {
        if c.is_ascii() { Some(c as usize) } else { SPACE.starts_with(c).then_some(128) }
    }

    fn of<'a>(pieces: impl Iterator<Item = &'a str>) -> Neighbours {
        let mut n = Neighbours { near: vec![false; Self::SLOTS * Self::SLOTS], far: HashSet::new() };
        for piece in pieces {
            for (a, b) in piece.chars().zip(piece.chars().skip(1)) {
                match (Self::slot(a), Self::slot(b)) {
                    (Some(a), Some(b)) => n.near[a * Self::SLOTS + b] = true,
                    _ => {
                        n.far.insert((a, b));
                    }
                }
            }
        }
        n
    }

    fn hold(&self, a: char, b: char) -> bool {
        match (Self::slot(a), Self::slot(b)) {
            (Some(a), Some(b)) => self.near[a * Self::SLOTS + b],
            _ => self.far.contains(&(a, b)),
        }
    }
}

/// Encoder of a BPE model.
#[derive(Clone, Debug)]
pub(super) struct Pieces {
    normalizer: Normalizer,
    symbols: Symbols,
    /// Pieces that text can become by merging.
    merged: HashMap<Box<str>, u16>,
    /// Control, unknown and byte pieces: found by their text before the others, but never merged to.
    reserved: HashMap<Box<str>, u16>,
    score: Vec<f32>,
    unused: Vec<bool>,
    /// Ids of `<0x00>`.. if characters without a piece become bytes.
    bytes: Option<Vec<u16>>,
    unknown: u16,
    neighbours: Neighbours,
    /// Unused pieces are taken apart again in a way that depends on the whole text: no cuts, no memory.
    whole: bool,
    merger: Merger,
    cache: HashMap<Box<str>, Box<[u16]>>,
    normal: String,
}

impl Pieces {
    fn new(model: &Model) -> Result<Pieces, (Option<u64>, String)> {
        if model.algorithm != Algorithm::Bpe {
            let found = format!("{:?}", model.algorithm).to_lowercase();
            return Err((None, format!("a {found} model, golfc encodes with BPE models only")));
        }
        let (mut merged, mut reserved) = (HashMap::new(), HashMap::new());
        let mut bytes = vec![0; 256];
        for (id, piece) in model.pieces.iter().enumerate() {
            let id = id as u16;
            if let Kind::Byte(b) = piece.kind {
                bytes[usize::from(b)] = id;
            }
            let map = match piece.kind {
                Kind::Normal | Kind::UserDefined | Kind::Unused => &mut merged,
                Kind::Unknown | Kind::Control | Kind::Byte(_) => &mut reserved,
            };
            map.insert(piece.text.clone().into_boxed_str(), id);
        }
        Ok(Pieces {
            normalizer: Normalizer::new(model).map_err(|(at, message)| (Some(at), message))?,
            symbols: Symbols::of(model),
            // Adding zero makes -0 equal to 0, as it is for SentencePiece's comparison.
            score: model.pieces.iter().map(|p| p.score + 0.0).collect(),
            unused: model.pieces.iter().map(|p| p.kind == Kind::Unused).collect(),
            bytes: model.byte_fallback.then_some(bytes),
            unknown: model.unknown,
            neighbours: Neighbours::of(merged.keys().map(|k| &**k)),
            whole: model.pieces.iter().any(|p| p.kind == Kind::Unused),
            merged,
            reserved,
            merger: Merger::default(),
            cache: HashMap::new(),
            normal: String::new(),
        })
    }

    fn encode(&mut self, text: &str, ids: &mut Vec<u16>) {
        let mut normal = std::mem::take(&mut self.normal);
        normal.clear();
        let mut progress = self.normalizer.start(text, &mut normal);
        let mut after_unknown = false;
        let mut limit = STRETCH;
        while self.normalizer.advance(&mut progress, &mut normal, if self.whole { usize::MAX } else { limit }) {
            match self.last_cut(&normal[..self.normalizer.settled(&normal)]) {
                0 => limit = 2 * normal.len(),
                cut => {
                    self.words(&normal[..cut], ids, &mut after_unknown);
                    normal.drain(..cut);
                    limit = STRETCH;
                }
            }
        }
        self.normalizer.finish(&progress, &mut normal);
        self.words(&normal, ids, &mut after_unknown);
        self.normal = normal;
    }

    /// The last place inside `text` where no piece can reach across; 0 if there is none.
    fn last_cut(&self, text: &str) -> usize {
        let mut after: Option<char> = None;
        for (at, c) in text.char_indices().rev() {
            if let Some(after) = after
                && !self.neighbours.hold(c, after)
            {
                return at + c.len_utf8();
            }
            after = Some(c);
        }
        0
    }

    /// Encodes normalised text word by word.
    fn words(&mut self, text: &str, ids: &mut Vec<u16>, after_unknown: &mut bool) {
        let mut start = 0;
        let mut before: Option<char> = None;
        for (at, c) in text.char_indices() {
            if let Some(before) = before
                && !self.whole
                && !self.neighbours.hold(before, c)
            {
                self.word(&text[start..at], ids, after_unknown);
                start = at;
            }
            before = Some(c);
        }
        if start < text.len() {
            self.word(&text[start..], ids, after_unknown);
        }
    }

    fn word(&mut self, word: &str, ids: &mut Vec<u16>, after_unknown: &mut bool) {
        if let Some(known) = self.cache.get(word) {
            append(known, self.unknown, self.bytes.is_some(), ids, after_unknown);
            return;
        }
        let mut merger = std::mem::take(&mut self.merger);
        merger.run(self, word);
        let mut found = Vec::new();
        for piece in merger.pieces(self, word) {
            let id = self.reserved.get(piece).or_else(|| self.merged.get(piece)).copied().unwrap_or(self.unknown);
            match &self.bytes {
                Some(bytes) if id == self.unknown => found.extend(piece.bytes().map(|b| bytes[usize::from(b)])),
                _ => found.push(id),
            }
        }
        self.merger = merger;
        append(&found, self.unknown, self.bytes.is_some(), ids, after_unknown);
        if word.len() <= CACHE_WORD_BYTES && !self.whole {
            if self.cache.len() == CACHE_WORDS {
                self.cache.clear();
            }
            self.cache.insert(word.into(), found.into());
        }
    }
}

/// Appends a word's ids; without byte fallback a run of unknown characters is one unknown token.
fn append(word: &[u16], unknown: u16, fallback: bool, ids: &mut Vec<u16>, after_unknown: &mut bool) {
    if fallback {
        ids.extend_from_slice(word);
        return;
    }
    for &id in word {
        if !(*after_unknown && id == unknown) {
            ids.push(id);
        }
        *after_unknown = id == unknown;
    }
}

/// A stretch of the word, in a linked list; emptied when merged into its left neighbour.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// A user-defined symbol: never merged.
    frozen: bool,
}

/// A merge that was possible when it was found.
#[derive(Clone, Copy, Debug)]
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Merge {
    fn key(&self) -> (f32, Reverse<usize>) {
        (self.score, Reverse(self.left))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Merge) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Merge) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Merge {
    /// Highest score first, then leftmost.
    fn cmp(&self, other: &Merge) -> Ordering {
        let ((a, i), (b, j)) = (self.key(), other.key());
        a.total_cmp(&b).then(i.cmp(&j))
    }
}

/// Working memory of one word's merges.
#[derive(Clone, Debug, Default)]
struct Merger {
    symbols: Vec<Symbol>,
    agenda: BinaryHeap<Merge>,
    /// For unused pieces: the length of the left part of the merge last found for them.
    parts: HashMap<u16, usize>,
}

impl Merger {
    /// Merges `word` to the end; the result is the linked list of symbols.
    fn run(&mut self, pieces: &Pieces, word: &str) {
        self.symbols.clear();
        self.agenda.clear();
        self.parts.clear();
        let mut at = 0;
        while let Some(c) = word[at..].chars().next() {
            let symbol = pieces.symbols.prefix(&word[at..]);
            let len = symbol.unwrap_or(c.len_utf8());
            let i = self.symbols.len();
            let next = (at + len < word.len()).then_some(i + 1);
            self.symbols.push(Symbol { start: at, len, previous: i.checked_sub(1), next, frozen: symbol.is_some() });
            at += len;
        }
        for right in 1..self.symbols.len() {
            self.propose(pieces, word, Some(right - 1), Some(right));
        }
        while let Some(merge) = self.agenda.pop() {
            let (left, right) = (self.symbols[merge.left], self.symbols[merge.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
                continue;
            }
            self.symbols[merge.left].len = merge.len;
            self.symbols[merge.left].next = right.next;
            self.symbols[merge.right].len = 0;
            if let Some(next) = right.next {
                self.symbols[next].previous = Some(merge.left);
            }
            self.propose(pieces, word, left.previous, Some(merge.left));
            self.propose(pieces, word, Some(merge.left), right.next);
        }
    }

    fn propose(&mut self, pieces: &Pieces, word: &str, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let (l, r) = (self.symbols[left], self.symbols[right]);
        if l.frozen || r.frozen {
            return;
        }
        let len = l.len + r.len;
        let Some(&id) = pieces.merged.get(&word[l.start..l.start + len]) else { return };
        let id = usize::from(id);
        self.agenda.push(Merge { score: pieces.score[id], left, right, len });
        if pieces.unused[id] {
            self.parts.insert(id as u16, l.len);
        }
    }

    /// The pieces of the merged word, unused ones taken apart again.
    fn pieces<'w>(&self, pieces: &Pieces, word: &'w str) -> Vec<&'w str> {
        let mut found = Vec::new();
        let mut at = self.symbols.first().map(|_| 0);
        while let Some(i) = at {
            let s = self.symbols[i];
            let mut open = vec![&word[s.start..s.start + s.len]];
            while let Some(text) = open.pop() {
                let part = pieces.merged.get(text).and_then(|id| {
                    let taken_apart = pieces.unused[usize::from(*id)] && !pieces.reserved.contains_key(text);
                    if taken_apart { self.parts.get(id) } else { None }
                });
                match part {
                    Some(&n) => open.extend([&text[n..], &text[..n]]),
                    None => found.push(text),
                }
            }
            at = s.next;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::{fixture, fixtures, model};
    use golf_runtime::data::tokenizer::{Normalizer as Settings, Piece};
    use proptest::prelude::*;

    fn encoder(name: &str) -> Encoder {
        Encoder::new(&Tokenizer::Model(model(name))).unwrap()
    }

    fn encode(encoder: &mut Encoder, text: &str) -> Vec<u16> {
        let mut ids = Vec::new();
        encoder.encode(text, &mut ids);
        ids
    }

    #[test]
    fn agrees_with_spm_encode() {
        let lines = fixture("lines.txt");
        for name in ["nfkc", "plain", "suffix"] {
            let mut encoder = encoder(name);
            // Twice: the second time from memory.
            for _ in 0..2 {
                for (line, expected) in lines.split('\n').zip(fixture(&format!("{name}.ids")).split('\n')) {
                    let expected: Vec<u16> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
                    assert_eq!(encode(&mut encoder, line), expected, "{name}: {line:?}");
                }
            }
        }
    }

    #[test]
    fn byte_tokenizer() {
        assert_eq!(encode(&mut Encoder::Bytes, "aé\0"), [4 + 97, 4 + 0xc3, 4 + 0xa9, 4]);
    }

    /// Long texts are cut into stretches; the ids are those of the text in one piece.
    #[test]
    fn stretches_do_not_show() {
        let Encoder::Pieces(mut p) = encoder("nfkc") else { unreachable!() };
        let line = "the small harbour   town — wakes 1234 before\nthe\u{3000}sun\tdoes… ";
        let text = line.repeat(3000) + &"a".repeat(200_000) + &line.repeat(100) + "   ";
        let mut ids = Vec::new();
        p.encode(&text, &mut ids);
        p.whole = true;
        let mut whole = Vec::new();
        p.encode(&text, &mut whole);
        assert_eq!(ids.len(), whole.len());
        assert!(ids == whole);
    }

    fn tiny(pieces: &[(&str, f32, Kind)]) -> Encoder {
        let special = [("<unk>", 0.0, Kind::Unknown), ("<s>", 0.0, Kind::Control)];
        let pieces = special.iter().chain(pieces).map(|&(text, score, kind)| Piece { text: text.into(), score, kind });
        let normalizer = Settings {
            name: "identity".into(),
            charsmap: Vec::new(),
            charsmap_offset: 0,
            add_dummy_prefix: false,
            remove_extra_whitespaces: false,
            escape_whitespaces: true,
            whitespace_as_suffix: false,
        };
        let pieces = pieces.collect();
        let model =
            Model { pieces, algorithm: Algorithm::Bpe, byte_fallback: false, unknown: 0, bos: Some(1), normalizer };
        Encoder::new(&Tokenizer::Model(model)).unwrap()
    }

    #[test]
    fn merges_by_score_then_leftmost() {
        use Kind::Normal as N;
        let mut e =
            tiny(&[("a", -9.0, N), ("b", -9.0, N), ("ab", -1.0, N), ("ba", 0.0, N), ("aba", -2.0, N), ("aa", -0.0, N)]);
        assert_eq!(encode(&mut e, "aba"), [6]);
        assert_eq!(encode(&mut e, "abba"), [4, 5]);
        assert_eq!(encode(&mut e, "bab"), [5, 3]);
        assert_eq!(encode(&mut e, "aaa"), [7, 2]);
        // 0 and -0 are equal: leftmost first.
        assert_eq!(encode(&mut e, "baa"), [5, 2]);
        assert_eq!(encode(&mut e, "xxyab"), [0, 4]);
        assert_eq!(encode(&mut e, "a x b"), [2, 0, 3]);
    }

    /// Unused pieces take part in merging and are taken apart afterwards.
    #[test]
    fn unused_pieces() {
        use Kind::{Normal as N, Unused as U};
        let mut e =
            tiny(&[("a", 0.0, N), ("b", 0.0, N), ("c", 0.0, N), ("ab", -1.0, U), ("abc", -2.0, N), ("abca", -3.0, U)]);
        assert_eq!(encode(&mut e, "ab"), [2, 3]);
        assert_eq!(encode(&mut e, "abc"), [6]);
        assert_eq!(encode(&mut e, "abcabc"), [6, 6]);
        assert_eq!(encode(&mut e, "abca"), [6, 2]);
    }

    /// Random texts against spm_encode itself, where it is installed.
    #[test]
    fn agrees_with_spm_encode_at_random() {
        use proptest::strategy::ValueTree;
        use std::process::{Command, Stdio};
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        let word = prop::sample::select(vec![
            "the",
            "harbour",
            " ",
            "  ",
            "\u{3000}",
            "ﬁ",
            "é",
            "e\u{301}",
            "[SEP]",
            "[MASK]",
            "<user one>",
            "▁t",
            "▁",
            "12",
            "aaa",
            "ab",
            "Straße",
            "море",
            "港の町",
            "😀",
            "\u{200d}",
            "\u{1}",
            "\t",
            "<unk>",
            "<0x41>",
            "½",
            "ｶ\u{ff9e}",
            "\u{1100}\u{1161}",
            "...",
            "Ǆ",
            "\u{feff}",
        ]);
        let line = prop::collection::vec(prop_oneof![4 => word.prop_map(String::from), 1 => "\\PC{0,3}"], 0..30);
        let lines: Vec<String> = (0..800).map(|_| line.new_tree(&mut runner).unwrap().current().concat()).collect();
        let dir = tempfile::tempdir().unwrap();
        let input = dir.path().join("lines.txt");
        std::fs::write(&input, lines.join("\n") + "\n").unwrap();
        for name in ["nfkc", "plain", "suffix"] {
            let output = Command::new("spm_encode")
                .arg(format!("--model={}", fixtures().join(format!("{name}.model")).display()))
                .args(["--output_format=id", &format!("--input={}", input.display())])
                .stderr(Stdio::null())
                .output();
            let Ok(output) = output else {
                println!("skipped: spm_encode is not installed");
                return;
            };
            let mut encoder = encoder(name);
            for (line, expected) in lines.iter().zip(String::from_utf8(output.stdout).unwrap().split('\n')) {
                let expected: Vec<u16> = expected.split_whitespace().map(|id| id.parse().unwrap()).collect();
                assert_eq!(encode(&mut encoder, line), expected, "{name}: {line:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whatever a damaged model still says, its ids are in range and there is no panic.
        #[test]
        fn survives_damage(flips in prop::collection::vec((0usize..1 << 18, 0u8..8), 1..6), plain in any::<bool>()) {
            let path = fixtures().join(if plain { "plain.model" } else { "nfkc.model" });
            let mut bytes = std::fs::read(&path).unwrap();
            let n = bytes.len();
            for (at, bit) in flips {
                bytes[at % n] ^= 1 << bit;
            }
            let Ok(model) = golf_runtime::data::tokenizer::parse(&path, &bytes) else { return Ok(()) };
            let pieces = model.pieces.len();
            if let Ok(mut encoder) = Encoder::new(&Tokenizer::Model(model)) {
                for id in encode(&mut encoder, "the harbour  of Straße\t[MASK]é e\u{301} ﬁ 😀 港の町\0") {
                    prop_assert!(usize::from(id) < pieces);
                }
            }
        }
    }
}
