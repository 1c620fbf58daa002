//! Text normalisation exactly as SentencePiece does it before cutting a text into pieces.
//!
//! *Takes* text, a stretch at a time; *gives* normalised text; *promises* SentencePiece's order of things: user-defined symbols pass
//! untouched, then the longest rule, then the character itself; spaces are dropped and escaped on the results.

use std::collections::BTreeSet;

use golf_runtime::data::tokenizer::{Kind, Model, SPACE};

use super::charsmap::Charsmap;

/// The user-defined symbols of a model, matched longest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Symbols {
    set: BTreeSet<String>,
    /// Lengths in bytes, longest first.
    lengths: Vec<usize>,
    /// First bytes.
    first: BTreeSet<u8>,
}

impl Symbols {
    pub(super) fn of(model: &Model) -> Symbols {
        let set: BTreeSet<String> =
            model.pieces.iter().filter(|p| p.kind == Kind::UserDefined).map(|p| p.text.clone()).collect();
        let lengths: BTreeSet<usize> = set.iter().map(String::len).collect();
        let first = set.iter().map(|s| s.as_bytes()[0]).collect();
        Symbols { set, lengths: lengths.into_iter().rev().collect(), first }
    }

    /// Length of the longest symbol that `text` starts with.
    pub(super) fn prefix(&self, text: &str) -> Option<usize> {
        if !text.bytes().next().is_some_and(|b| self.first.contains(&b)) {
            return None;
        }
        self.lengths.iter().copied().find(|&n| text.get(..n).is_some_and(|head| self.set.contains(head)))
    }
}

/// A model's normaliser.
#[derive(Clone, Debug)]
pub(super) struct Normalizer {
    charsmap: Option<Charsmap>,
    symbols: Symbols,
    dummy_prefix: bool,
    dummy_suffix: bool,
    remove_extra: bool,
    space: &'static str,
}

/// A text on its way: what is left of it, and what the last result was.
#[derive(Debug)]
pub(super) struct Progress<'t> {
    rest: &'t str,
    after_space: bool,
    /// Nothing was left after the leading spaces: the result is empty, without dummy spaces.
    empty: bool,
}

impl Normalizer {
    /// The normaliser of a model. An error is the offset of the fault in the model's file and a message.
    pub(super) fn new(model: &Model) -> Result<Normalizer, (u64, String)> {
        let n = &model.normalizer;
        let charsmap = match n.charsmap.is_empty() {
            true => None,
            false => Some(Charsmap::parse(&n.charsmap).map_err(|(at, m)| (n.charsmap_offset + at, m))?),
        };
        Ok(Normalizer {
            charsmap,
            symbols: Symbols::of(model),
            dummy_prefix: n.add_dummy_prefix && !n.whitespace_as_suffix,
            dummy_suffix: n.add_dummy_prefix && n.whitespace_as_suffix,
            remove_extra: n.remove_extra_whitespaces,
            space: if n.escape_whitespaces { SPACE } else { " " },
        })
    }

    /// Result for the start of `text` (not empty) and how many bytes of it that covers.
    fn prefix<'t>(&'t self, text: &'t str) -> (&'t str, usize) {
        if let Some(n) = self.symbols.prefix(text) {
            return (&text[..n], n);
        }
        if let Some((n, replacement)) = self.charsmap.as_ref().and_then(|map| map.longest(text.as_bytes())) {
            // A rule of a damaged model may end inside a character; the character then stays as it is.
            if text.is_char_boundary(n) {
                return (replacement, n);
            }
        }
        let n = text.chars().next().map_or(0, char::len_utf8);
        (&text[..n], n)
    }

    /// Begins a text: drops leading spaces, writes the dummy space.
    pub(super) fn start<'t>(&self, text: &'t str, out: &mut String) -> Progress<'t> {
        let mut rest = text;
        while self.remove_extra && !rest.is_empty() {
            let (result, n) = self.prefix(rest);
            if result != " " {
                break;
            }
            rest = &rest[n..];
        }
        let empty = rest.is_empty();
        if self.dummy_prefix && !empty {
            out.push_str(self.space);
        }
        Progress { rest, after_space: self.remove_extra, empty }
    }

    /// Normalises on until `out` holds at least `limit` bytes or the text is at its end; true if there is more.
    pub(super) fn advance(&self, p: &mut Progress<'_>, out: &mut String, limit: usize) -> bool {
        while !p.rest.is_empty() {
            if out.len() >= limit {
                return true;
            }
            let (mut result, n) = self.prefix(p.rest);
            if p.after_space {
                result = result.trim_start_matches(' ');
            }
            if !result.is_empty() {
                for (i, part) in result.split(' ').enumerate() {
                    if i > 0 {
                        out.push_str(self.space);
                    }
                    out.push_str(part);
                }
                p.after_space = self.remove_extra && result.ends_with(' ');
            }
            p.rest = &p.rest[n..];
        }
        false
    }

    /// Length of `out` without the trailing spaces that [`Normalizer::finish`] might still remove.
    pub(super) fn settled(&self, out: &str) -> usize {
        if self.remove_extra { out.trim_end_matches(self.space).len() } else { out.len() }
    }

    /// Ends a text: drops trailing spaces, writes the dummy space of suffix models.
    pub(super) fn finish(&self, p: &Progress<'_>, out: &mut String) {
        out.truncate(self.settled(out));
        if self.dummy_suffix && !p.empty {
            out.push_str(self.space);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tests::{fixture, model};

    fn normalize(name: &str, text: &str, limit: usize) -> String {
        let n = Normalizer::new(&model(name)).unwrap();
        let mut out = String::new();
        let mut p = n.start(text, &mut out);
        let mut whole = String::new();
        let mut held = 0;
        while n.advance(&mut p, &mut out, limit.max(held + 1)) {
            let settled = n.settled(&out);
            whole.extend(out.drain(..settled));
            held = out.len();
        }
        whole += &out;
        n.finish(&p, &mut whole);
        whole
    }

    /// Lines against spm_normalize, in one go and in stretches of a few bytes.
    #[test]
    fn agrees_with_spm_normalize() {
        let (lines, expected) = (fixture("lines.txt"), fixture("nfkc.norm"));
        for (line, expected) in lines.split('\n').zip(expected.split('\n')) {
            for limit in [usize::MAX, 1, 7] {
                assert_eq!(normalize("nfkc", line, limit).replace(SPACE, " "), expected, "{line:?}");
            }
        }
    }

    #[test]
    fn spaces_by_flags() {
        assert_eq!(normalize("nfkc", "  a \n\t b  ", 9), "a▁b");
        assert_eq!(normalize("plain", "  a  b ", 9), "▁▁▁a▁▁b▁");
        assert_eq!(normalize("plain", " ", 9), "▁▁");
        assert_eq!(normalize("suffix", "  a  b ", 9), "a▁b▁");
        assert_eq!(normalize("suffix", "   ", 9), "");
        assert_eq!(normalize("plain", "", 9), "");
    }

    #[test]
    fn symbols_longest_first() {
        let s = Symbols::of(&model("plain"));
        assert_eq!(s.prefix("[MASK][MASK]x"), Some(12));
        assert_eq!(s.prefix("[MASK][MAS"), Some(6));
        assert_eq!((s.prefix("[MAS"), s.prefix(""), s.prefix("▁t")), (None, None, Some(4)));
    }
}
