//! Places in source text.
//!
//! *Takes* nothing, *gives* [`Span`], [`FileId`] and the [`SourceMap`] that turns them back into names, lines and columns.
//! *Promises*: a span is a byte range of exactly one text; every text given to the compiler (the program, a prelude file,
//! a `--set` argument) has its own [`FileId`], so a message about a prelude line shows the prelude.

use std::fmt;

/// Number of a text in a [`SourceMap`], in the order of [`SourceMap::add`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FileId(pub u32);

/// A byte range `start..end` of one text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    /// The text.
    pub file: FileId,
    /// First byte.
    pub start: u32,
    /// One past the last byte; equal to `start` for a place between two bytes.
    pub end: u32,
}

impl Span {
    /// The range `start..end` of `file`. Offsets are bytes; texts are at most 1 MB, so `u32` is enough.
    pub fn new(file: FileId, start: usize, end: usize) -> Self {
        let clamp = |offset: usize| u32::try_from(offset).unwrap_or(u32::MAX);
        Self { file, start: clamp(start), end: clamp(end.max(start)) }
    }

    /// The smallest span that covers both; `other` must be of the same file, else `self` is returned.
    pub fn to(self, other: Span) -> Span {
        if self.file != other.file {
            return self;
        }
        Span { file: self.file, start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// The empty span just after this one: where something is missing.
    pub fn after(self) -> Span {
        Span { start: self.end, ..self }
    }

    /// The empty span at this one's start.
    pub fn before(self) -> Span {
        Span { end: self.start, ..self }
    }

    /// The bytes as an index range.
    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}..{}", self.file.0, self.start, self.end)
    }
}

/// One text and its name.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    text: String,
    /// Byte offset of the first byte of each line.
    lines: Vec<u32>,
}

impl Source {
    /// The name shown in messages: a path, `std/norm.golf`, or `--set train.stop`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text; offsets of spans count in it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// One-based line and column (in characters) of a byte offset. Offsets past the end give the end.
    pub fn line_column(&self, offset: u32) -> (usize, usize) {
        let mut offset = (offset as usize).min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line = self.lines.partition_point(|&start| start as usize <= offset).saturating_sub(1);
        let start = self.lines.get(line).copied().unwrap_or(0) as usize;
        (line + 1, self.text[start..offset].chars().count() + 1)
    }

    /// The text under a span, or `""` when the span does not fit this text.
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.range()).unwrap_or("")
    }
}

/// All texts of one compilation.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    sources: Vec<Source>,
}

impl SourceMap {
    /// No texts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text and gives its number.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> FileId {
        let text = text.into();
        let mut lines = vec![0];
        lines.extend(text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i as u32 + 1));
        let id = FileId(self.sources.len() as u32);
        self.sources.push(Source { name: name.into(), text, lines });
        id
    }

    /// Adds bytes that may not be UTF-8: every byte that is not part of a character becomes one `?`, so offsets stay
    /// what they were and a message can point at the bad byte.
    pub fn add_bytes(&mut self, name: impl Into<String>, bytes: &[u8]) -> FileId {
        let mut text = String::with_capacity(bytes.len());
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '?'));
        }
        self.add(name, text)
    }

    /// The text with this number, if it is one of this map.
    pub fn get(&self, file: FileId) -> Option<&Source> {
        self.sources.get(file.0 as usize)
    }

    /// The text under a span, or `""` for an unknown file or range.
    pub fn slice(&self, span: Span) -> &str {
        self.get(span.file).map_or("", |source| source.slice(span))
    }

    /// `name:line:column` of a span's start.
    pub fn place(&self, span: Span) -> String {
        match self.get(span.file) {
            Some(source) => {
                let (line, column) = source.line_column(span.start);
                format!("{}:{line}:{column}", source.name())
            }
            None => "<unknown>".to_string(),
        }
    }
}
