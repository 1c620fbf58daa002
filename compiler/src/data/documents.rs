//! Documents of text files, found in one pass and read again one at a time.
//!
//! *Takes* files and directories; *gives* an index of documents (place, length, hash of the text) and any document's text; *promises*
//! memory of one document per thread plus 40 bytes per document, and a place in the file for what is not UTF-8 or not JSON.
//!
//! A `.jsonl` holds one document a line, in its field `text`; an `.html` or `.htm` file is one document without its markup; any other
//! file is one document, or several between separators.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use golf_runtime::error::{Error, Result};

use super::html;

/// Largest document, bytes.
const LIMIT: usize = 1 << 30;
/// Extensions taken from directories.
const EXTENSIONS: [&str; 7] = ["htm", "html", "jsonl", "md", "rst", "text", "txt"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Html,
    Lines,
}

/// A file of documents.
#[derive(Clone, Debug)]
pub(super) struct Source {
    path: PathBuf,
    format: Format,
    /// Size when it was found, bytes.
    pub(super) size: u64,
}

/// Where a document lies, and the hash of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document {
    /// First 16 bytes of BLAKE3 of the text.
    pub(super) hash: [u8; 16],
    /// Byte offset in the file.
    pub(super) offset: u64,
    /// Index of the file.
    pub(super) source: u32,
    /// Bytes in the file.
    pub(super) len: u32,
    /// Bytes of text.
    pub(super) text: u32,
}

fn hash(text: &str) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    hash
}

/// All files named by `paths`; directories are searched for files with a text extension, without following links and without
/// the files and directories named in `except`.
pub(super) fn sources(paths: &[PathBuf], except: &[String]) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        let before = found.len();
        if meta.is_dir() {
            walk(path, except, &mut found)?;
            if found.len() == before {
                let known = EXTENSIONS.join(", .");
                return Err(Error::file(path, format!("no text here (files ending in .{known} are read)")));
            }
        } else {
            found.push(source(path.clone(), meta.len()));
        }
    }
    if found.len() > u32::MAX as usize {
        return Err(Error::input(format!("{} files are too many", found.len())));
    }
    Ok(found)
}

fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

fn source(path: PathBuf, size: u64) -> Source {
    let format = match extension(&path).as_str() {
        "html" | "htm" => Format::Html,
        "jsonl" => Format::Lines,
        _ => Format::Text,
    };
    Source { path, format, size }
}

fn walk(dir: &Path, except: &[String], found: &mut Vec<Source>) -> Result<()> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        entries.push(entry.map_err(|e| Error::io(dir, e))?);
    }
    entries.sort_by_key(|e| e.file_name());
    for entry in entries {
        let path = entry.path();
        if except.iter().any(|name| entry.file_name() == name.as_str()) {
            continue;
        }
        let meta = entry.metadata().map_err(|e| Error::io(&path, e))?;
        if meta.is_dir() {
            walk(&path, except, found)?;
        } else if meta.is_file() && EXTENSIONS.contains(&extension(&path).as_str()) {
            found.push(source(path, meta.len()));
        }
    }
    Ok(())
}

impl Source {
    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Finds the documents of this file, the `index`-th; documents of white space only are left out.
    pub(super) fn scan(&self, index: u32, separator: Option<&str>, found: &mut Vec<Document>) -> Result<()> {
        let mut file = File::open(&self.path).map_err(|e| Error::io(&self.path, e))?;
        let mut add = |offset: u64, raw: &[u8]| -> Result<()> {
            let text = self.text(offset, raw)?;
            if !text.trim().is_empty() {
                let (len, text_len) = (raw.len() as u32, text.len() as u32);
                found.push(Document { hash: hash(&text), offset, source: index, len, text: text_len });
            }
            Ok(())
        };
        match (self.format, separator) {
            (Format::Lines, _) => self.split(&file, b"\n", &mut add),
            (Format::Text, Some(separator)) => self.split(&file, separator.as_bytes(), &mut add),
            (Format::Html, _) | (Format::Text, None) => {
                let mut raw = Vec::new();
                file.by_ref().take(LIMIT as u64 + 1).read_to_end(&mut raw).map_err(|e| Error::io(&self.path, e))?;
                self.check_length(0, raw.len())?;
                add(0, &raw)
            }
        }
    }

    fn check_length(&self, offset: u64, len: usize) -> Result<()> {
        if len <= LIMIT {
            return Ok(());
        }
        let message = "a document of more than 1 GiB; divide the file, or say how with --separator";
        Err(Error::at(&self.path, offset, message))
    }

    /// Calls `add` with every part between separators and its offset.
    fn split(&self, file: &File, separator: &[u8], add: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let last = separator[separator.len() - 1];
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let (mut part, mut offset) = (Vec::new(), 0);
        loop {
            // Bounded, so that a file without separators does not fill the memory.
            let room = (LIMIT + separator.len() + 1 - part.len()) as u64;
            let n = reader.by_ref().take(room).read_until(last, &mut part).map_err(|e| Error::io(&self.path, e))?;
            if part.ends_with(separator) {
                add(offset, &part[..part.len() - separator.len()])?;
                offset += part.len() as u64;
                part.clear();
            } else if n == 0 {
                return add(offset, &part);
            }
            self.check_length(offset, part.len())?;
        }
    }

    /// The text of a document that starts at `offset`.
    fn text(&self, offset: u64, raw: &[u8]) -> Result<String> {
        let utf8 = std::str::from_utf8(raw)
            .map_err(|e| Error::at(&self.path, offset + e.valid_up_to() as u64, "not UTF-8 text"))?;
        Ok(match self.format {
            Format::Text => utf8.to_string(),
            Format::Html => html::text(utf8),
            Format::Lines if utf8.trim().is_empty() => String::new(),
            Format::Lines => {
                #[derive(serde::Deserialize)]
                struct Line {
                    text: String,
                }
                let line: Line = serde_json::from_str(utf8).map_err(|e| {
                    let message = format!("a JSON object with a string \"text\" on every line expected: {e}");
                    Error::at(&self.path, offset + e.column().saturating_sub(1) as u64, message)
                })?;
                line.text
            }
        })
    }

    /// Reads a document again. Fails if the file is no longer what was scanned.
    pub(super) fn read(&self, document: &Document) -> Result<String> {
        let file = File::open(&self.path).map_err(|e| Error::io(&self.path, e))?;
        let mut raw = vec![0; document.len as usize];
        file.read_exact_at(&mut raw, document.offset).map_err(|e| Error::io(&self.path, e))?;
        let text = self.text(document.offset, &raw)?;
        if hash(&text) != document.hash {
            return Err(Error::at(&self.path, document.offset, "the file changed while it was being read"));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Texts of a file of this name and content, read back by place.
    fn texts(name: &str, content: &[u8], separator: Option<&str>) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let sources = sources(&[path], &[])?;
        let mut found = Vec::new();
        sources[0].scan(0, separator, &mut found)?;
        found.iter().map(|d| sources[0].read(d)).collect()
    }

    #[test]
    fn formats() {
        assert_eq!(texts("a.txt", b"one\ntwo", None).unwrap(), ["one\ntwo"]);
        assert_eq!(texts("a.txt", b" \n", None).unwrap(), [""; 0]);
        assert_eq!(texts("a.txt", b"one<|end|>two<|end|>", Some("<|end|>")).unwrap(), ["one", "two"]);
        assert_eq!(texts("a.txt", b"one\n\n\ntwo", Some("\n\n")).unwrap(), ["one", "\ntwo"]);
        assert_eq!(texts("a.html", b"<p>x &lt; y", Some("x")).unwrap(), ["x < y\n"]);
        let lines = b"{\"text\": \"a\\nb\", \"id\": 3}\n\n{\"text\":\"c\"}";
        assert_eq!(texts("a.jsonl", lines, None).unwrap(), ["a\nb", "c"]);
    }

    #[test]
    fn every_fault_has_its_place() {
        let fault = |name, content: &[u8], separator| {
            let text = texts(name, content, separator).unwrap_err().to_string();
            text.split_once(&format!("{name}, ")).unwrap().1.to_string()
        };
        assert_eq!(fault("a.txt", b"ab\xffcd", None), "byte 2: not UTF-8 text");
        assert_eq!(fault("a.txt", b"a--b--\xff", Some("--")), "byte 6: not UTF-8 text");
        let text = fault("a.jsonl", b"{\"text\":\"a\"}\n{\"text\":7}\n", None);
        assert!(
            text.starts_with("byte 21: a JSON object with a string \"text\" on every line expected: invalid type"),
            "{text}"
        );
        let dir = tempfile::tempdir().unwrap();
        let text = sources(&[dir.path().into()], &[]).unwrap_err().to_string();
        assert!(
            text.ends_with("no text here (files ending in .htm, .html, .jsonl, .md, .rst, .text, .txt are read)"),
            "{text}"
        );
        assert!(sources(&[dir.path().join("x")], &[]).unwrap_err().to_string().ends_with("no such file or directory"));
    }

    #[test]
    fn notices_a_changed_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.txt"), "before").unwrap();
        std::fs::write(dir.path().join("b.png"), "not text").unwrap();
        std::fs::write(dir.path().join("c.txt"), "left out").unwrap();
        let sources = sources(&[dir.path().into()], &["c.txt".into()]).unwrap();
        assert_eq!(sources.len(), 1);
        let mut found = Vec::new();
        sources[0].scan(0, None, &mut found).unwrap();
        std::fs::write(dir.path().join("b.txt"), "behind").unwrap();
        assert!(
            sources[0].read(&found[0]).unwrap_err().to_string().ends_with("the file changed while it was being read")
        );
    }

    proptest! {
        /// Splitting equals `str::split`.
        #[test]
        fn splits_like_str(parts in prop::collection::vec("[ab=]{0,6}", 1..8), separator in "[=b]{1,3}") {
            let text = parts.join(&separator);
            let expected: Vec<&str> = text.split(&*separator).filter(|t| !t.is_empty()).collect();
            prop_assert_eq!(texts("a", text.as_bytes(), Some(&separator)).unwrap(), expected);
        }
    }
}
