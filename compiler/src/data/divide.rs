//! Which documents are for training and which for validation, and their order.
//!
//! *Takes* the index of documents; *gives* two lists in the order of their hashes (a shuffle that the text alone decides); *promises*
//! two sides with text, or an error.

use golf_runtime::error::{Error, Result};

use super::documents::{Document, Source};

/// A document or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) document: Document,
    /// Bytes of its text.
    pub(super) range: std::ops::Range<usize>,
}

impl Part {
    fn whole(document: &Document) -> Part {
        Part { document: *document, range: 0..document.text as usize }
    }
}

/// Both sides.
#[derive(Clone, Debug)]
pub(super) struct Division {
    pub(super) train: Vec<Part>,
    pub(super) val: Vec<Part>,
    /// How it was done, for the manifest.
    pub(super) how: String,
}

/// Divides: a document is for validation when its hash, read as a fraction of its range, is below `fraction` (in (0, 1)). If a side
/// stays empty, the last `fraction` of the text, cut at a line end, is for validation.
pub(super) fn divide(mut documents: Vec<Document>, sources: &[Source], fraction: f64) -> Result<Division> {
    documents.sort_unstable_by_key(|d| (d.hash, d.source, d.offset));
    let percent = fraction * 100.0;
    // The documents are sorted by hash, so validation is a prefix.
    let first_train = documents.partition_point(|d| position(d) < fraction);
    if first_train > 0 && first_train < documents.len() {
        let (val, train) = documents.split_at(first_train);
        let parts = |side: &[Document]| side.iter().map(Part::whole).collect();
        return Ok(Division {
            train: parts(train),
            val: parts(val),
            how: format!("{percent}% of the documents, by hash"),
        });
    }
    let total: u64 = documents.iter().map(|d| u64::from(d.text)).sum();
    let cut = total.saturating_sub(((total as f64 * fraction) as u64).max(1));
    let (mut train, mut val) = (Vec::new(), Vec::new());
    let mut before = 0;
    for document in &documents {
        let len = u64::from(document.text);
        if before + len <= cut {
            train.push(Part::whole(document));
        } else if before >= cut && !train.is_empty() {
            val.push(Part::whole(document));
        } else {
            let text = sources[document.source as usize].read(document)?;
            let at = line_end(&text, cut.saturating_sub(before) as usize);
            for (side, range) in [(&mut train, 0..at), (&mut val, at..text.len())] {
                if !text[range.clone()].trim().is_empty() {
                    side.push(Part { document: *document, range });
                }
            }
        }
        before += len;
    }
    if train.is_empty() || val.is_empty() {
        return Err(Error::input(format!("{total} bytes of text are too few to divide into training and validation")));
    }
    Ok(Division { train, val, how: format!("the last {percent}% of the text, cut at a line end") })
}

/// A document's hash as a fraction in [0, 1).
fn position(document: &Document) -> f64 {
    let h = document.hash;
    let high = u64::from_be_bytes([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]]);
    // 53 bits, exactly.
    (high >> 11) as f64 / (1u64 << 53) as f64
}

/// The last place at or before `at` that is not inside a character.
pub(super) fn char_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

/// The end of the last line that ends at or before `at`; failing that of the first line after it; failing that the end of the last
/// word or character before it.
fn line_end(text: &str, at: usize) -> usize {
    let at = char_boundary(text, at.max(1));
    let before = text[..at].rfind('\n').map(|n| n + 1);
    let after = text[at..].find('\n').map(|n| at + n + 1).filter(|&n| !text[n..].trim().is_empty());
    let word = text[..at].rfind(' ').map(|n| n + 1);
    before.or(after).or(word).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::super::documents::sources;
    use super::*;

    fn of(texts: &[&str], fraction: f64) -> Result<(Vec<String>, Vec<String>, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.jsonl");
        let lines: Vec<String> = texts.iter().map(|t| serde_json::json!({ "text": t }).to_string()).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let sources = sources(&[path], &[])?;
        let mut found = Vec::new();
        sources[0].scan(0, None, &mut found)?;
        let d = divide(found, &sources, fraction)?;
        let read = |parts: &[Part]| {
            parts.iter().map(|p| sources[0].read(&p.document).unwrap()[p.range.clone()].to_string()).collect::<Vec<_>>()
        };
        Ok((read(&d.train), read(&d.val), d.how))
    }

    #[test]
    fn by_hash_whatever_the_order() {
        let texts: Vec<String> = (0..400).map(|i| format!("document {i}")).collect();
        let mut refs: Vec<&str> = texts.iter().map(String::as_str).collect();
        let (train, val, how) = of(&refs, 0.05).unwrap();
        assert_eq!(how, "5% of the documents, by hash");
        assert_eq!(train.len() + val.len(), 400);
        // Binomial(400, 0.05): mean 20, standard deviation 4.4.
        assert!((7..=33).contains(&val.len()), "{}", val.len());
        let key = |t: &String| *blake3::hash(t.as_bytes()).as_bytes();
        assert!(train.is_sorted_by_key(key) && val.is_sorted_by_key(key));
        assert!(val.iter().all(|t| f64::from(key(t)[0]) / 256.0 < 0.05));
        refs.reverse();
        assert_eq!(of(&refs, 0.05).unwrap(), (train, val, how));
    }

    #[test]
    fn last_part_cut_at_a_line_end() {
        let lines: String = (10..50).map(|i| format!("line {i}\n")).collect();
        let (train, val, how) = of(&[&lines], 0.05).unwrap();
        assert_eq!(how, "the last 5% of the text, cut at a line end");
        assert_eq!((train.concat() + &val.concat(), val.concat().as_str()), (lines, "line 48\nline 49\n"));
        assert_eq!(of(&["one two three four"], 0.3).unwrap().1, ["three four"]);
        assert_eq!(of(&["onetwothreefour\n"], 0.3).unwrap().1, ["our\n"]);
        assert_eq!(of(&["éé"], 0.01).unwrap().1, ["é"]);
        assert_eq!(
            of(&["a\n"], 0.5).unwrap_err().to_string(),
            "2 bytes of text are too few to divide into training and validation"
        );
        assert!(of(&[" "], 0.5).is_err());
    }

    #[test]
    fn never_an_empty_side() {
        for n in 1..6 {
            let texts: Vec<String> = (0..n).map(|i| format!("a {i}\nb\n")).collect();
            let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
            for fraction in [0.001, 0.5, 0.999] {
                let (train, val, _) = of(&refs, fraction).unwrap();
                assert!(!train.is_empty() && !val.is_empty());
                let bytes: usize = train.iter().chain(&val).map(String::len).sum();
                assert_eq!(bytes, texts.concat().len(), "{n} {fraction}");
            }
        }
    }
}
