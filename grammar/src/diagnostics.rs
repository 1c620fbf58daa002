//! What went wrong, where, and what to do about it.
//!
//! *Takes* places and sentences from any stage, *gives* text in rustc's style or one JSON object per line.
//! *Promises*: rendering never fails; a span that fits no text is shown without a snippet.
//!
//! A stage makes a [`Diagnostic`] like this and pushes it into a [`Sink`], so that all its errors are reported in one run:
//!
//! ```
//! use golf_grammar::{Code, Diagnostic, FileId, Span};
//! let span = Span::new(FileId(0), 4, 7);
//! let d = Diagnostic::error(Code(123), "axes do not match")
//!     .at(span, "this is `[b t d]`")
//!     .also(span, "this is `[b t e]`")
//!     .expected_found("axis `d`", "axis `e`")
//!     .hint("rename one of them: `rename(x, e -> d)`");
//! assert_eq!(d.code.to_string(), "GOLF0123");
//! ```

use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Patch, Renderer, Snippet};
use serde_json::{Value, json};

use crate::span::{FileId, Source, SourceMap, Span};

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// The program is not accepted.
    Error,
    /// The program is accepted, but probably not what was meant.
    Warning,
}

impl Severity {
    /// `error`, `warning`
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// The number of a kind of message, shown as `GOLF0123`. 1–99 belong to this crate ([`crate::codes`]), the others to the
/// compiler's stages. A code keeps its meaning for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Code(pub u16);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GOLF{:04}", self.0)
    }
}

/// A place with a remark.
#[derive(Clone, PartialEq, Debug)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// The remark; may be empty.
    pub text: String,
    /// The place the message is about (`^^^`), not one that explains it (`---`).
    pub primary: bool,
}

/// Advice.
#[derive(Clone, PartialEq, Debug)]
pub struct Hint {
    /// What to do.
    pub text: String,
    /// The same as an edit: replace the bytes of the span by the string.
    pub fix: Option<(Span, String)>,
}

/// One message to the user.
#[derive(Clone, PartialEq, Debug)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// Its number.
    pub code: Code,
    /// One sentence in lower case, without a full stop.
    pub message: String,
    /// Places; the first primary one is where the message is.
    pub labels: Vec<Label>,
    /// The text it is about, when no place in it can be shown.
    pub file: Option<FileId>,
    /// What was wanted.
    pub expected: Option<String>,
    /// What was there instead.
    pub found: Option<String>,
    /// Facts that help to understand.
    pub notes: Vec<String>,
    /// Advice.
    pub hints: Vec<Hint>,
}

impl Diagnostic {
    /// An error.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code,
            message: message.into(),
            labels: Vec::new(),
            file: None,
            expected: None,
            found: None,
            notes: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// A warning.
    pub fn warning(code: Code, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// The place it is about. `text` may be empty.
    #[must_use]
    pub fn at(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into(), primary: true });
        self
    }

    /// Another place that explains it.
    #[must_use]
    pub fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label { span, text: text.into(), primary: false });
        self
    }

    /// The text it is about, when no place in it can be shown.
    #[must_use]
    pub fn in_file(mut self, file: FileId) -> Self {
        self.file = Some(file);
        self
    }

    /// What was wanted and what was there. Shown as a note unless the message or a label says what was wanted.
    #[must_use]
    pub fn expected_found(mut self, expected: impl Into<String>, found: impl Into<String>) -> Self {
        self.expected = Some(expected.into());
        self.found = Some(found.into());
        self
    }

    /// A fact that helps to understand.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    /// Advice.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(Hint { text: text.into(), fix: None });
        self
    }

    /// Advice that is an edit: replace `span` by `replacement`.
    #[must_use]
    pub fn fix(mut self, text: impl Into<String>, span: Span, replacement: impl Into<String>) -> Self {
        self.hints.push(Hint { text: text.into(), fix: Some((span, replacement.into())) });
        self
    }

    /// "did you mean …", if a candidate is near `name`.
    #[must_use]
    pub fn did_you_mean<'a>(self, name: &str, span: Span, candidates: impl IntoIterator<Item = &'a str>) -> Self {
        match nearest(name, candidates) {
            Some(near) => self.fix(format!("did you mean `{near}`?"), span, near),
            None => self,
        }
    }

    /// The place it is about: the first primary label, else the first label.
    pub fn span(&self) -> Option<Span> {
        self.labels.iter().find(|label| label.primary).or(self.labels.first()).map(|label| label.span)
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// Collects the diagnostics of a stage.
#[derive(Clone, Debug, Default)]
pub struct Sink {
    list: Vec<Diagnostic>,
}

impl Sink {
    /// Nothing wrong yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one; an exact repetition is dropped.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if !self.list.contains(&diagnostic) {
            self.list.push(diagnostic);
        }
    }

    /// Adds several.
    pub fn extend(&mut self, diagnostics: impl IntoIterator<Item = Diagnostic>) {
        diagnostics.into_iter().for_each(|diagnostic| self.push(diagnostic));
    }

    /// Whether any of them is an error.
    pub fn has_errors(&self) -> bool {
        self.list.iter().any(Diagnostic::is_error)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All of them in order of place (file, then offset); those without a place first.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.list.sort_by_key(|diagnostic| diagnostic.span().map(|span| (span.file, span.start)));
        self.list
    }

    /// `value`, or everything collected if there was an error.
    pub fn into_result<T>(self, value: T) -> Result<T, Vec<Diagnostic>> {
        if self.has_errors() { Err(self.finish()) } else { Ok(value) }
    }
}

/// Longest line shown whole, in bytes; of longer ones a window around the place is shown.
const LONG_LINE: usize = 400;

/// Part of a text around some labels.
struct Window<'a> {
    text: &'a str,
    /// Offset of `text` in the source.
    start: usize,
    /// Line number of its first line.
    line: usize,
}

impl<'a> Window<'a> {
    /// Whole lines from two before the first to two after the last span; less of lines that are very long.
    fn around(source: &'a Source, spans: &[Span]) -> Self {
        let text = source.text();
        let first = spans.iter().map(|span| span.start as usize).min().unwrap_or(0).min(text.len());
        let last = spans.iter().map(|span| span.end as usize).max().unwrap_or(0).clamp(first, text.len());
        let floor = |mut at: usize| {
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let (first, last) = (floor(first), floor(last));
        let line_start = |at: usize| text[..at].rfind('\n').map_or(0, |i| i + 1);
        let line_end = |at: usize| text[at..].find('\n').map_or(text.len(), |i| at + i);
        let mut start = line_start(first);
        let mut end = line_end(last);
        let too_long = text[start..end].split('\n').any(|line| line.len() > LONG_LINE);
        if too_long {
            start = start.max(floor(first.saturating_sub(60)));
            end = end.min(floor((first + 120).min(text.len()))).max(start);
        } else {
            for _ in 0..2 {
                start = line_start(start.saturating_sub(1));
                end = line_end((end + 1).min(text.len()));
            }
            if text[start..end].split('\n').any(|line| line.len() > LONG_LINE) {
                start = line_start(first);
                end = line_end(last);
            }
        }
        Window { text: &text[start..end], start, line: source.line_column(start as u32).0 }
    }

    /// The span inside this window.
    fn range(&self, span: Span) -> std::ops::Range<usize> {
        let clamp = |at: u32| {
            let mut at = (at as usize).saturating_sub(self.start).min(self.text.len());
            while !self.text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = clamp(span.start);
        start..clamp(span.end).max(start)
    }
}

/// The text of one diagnostic in rustc's style, without a final newline.
pub fn render(map: &SourceMap, diagnostic: &Diagnostic, color: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let code = diagnostic.code.to_string();
    let mut main: Group<'_> = level.primary_title(clean(&diagnostic.message)).id(code).elements(None::<Origin<'_>>);

    // One snippet per text, the text of the first primary label first.
    let mut files: Vec<FileId> = diagnostic.span().map(|span| span.file).into_iter().collect();
    for label in &diagnostic.labels {
        if !files.contains(&label.span.file) {
            files.push(label.span.file);
        }
    }
    for &file in &files {
        let Some(source) = map.get(file) else { continue };
        let labels: Vec<&Label> = diagnostic.labels.iter().filter(|label| label.span.file == file).collect();
        let window = Window::around(source, &labels.iter().map(|label| label.span).collect::<Vec<_>>());
        let mut snippet = Snippet::source(window.text).line_start(window.line).path(source.name());
        for label in labels {
            let kind = if label.primary { AnnotationKind::Primary } else { AnnotationKind::Context };
            let mut annotation = kind.span(window.range(label.span));
            if !label.text.is_empty() {
                annotation = annotation.label(clean(&label.text));
            }
            snippet = snippet.annotation(annotation);
        }
        main = main.element(snippet);
    }
    if files.is_empty()
        && let Some(source) = diagnostic.file.and_then(|file| map.get(file))
    {
        main = main.element(Origin::path(source.name()));
    }
    let said = |what: &str| {
        diagnostic.message.contains(what) || diagnostic.labels.iter().any(|label| label.text.contains(what))
    };
    if let (Some(expected), Some(found)) = (&diagnostic.expected, &diagnostic.found)
        && !said(expected)
    {
        main = main.element(Level::NOTE.message(format!("expected {}\n   found {}", clean(expected), clean(found))));
    }
    for note in &diagnostic.notes {
        main = main.element(Level::NOTE.message(clean(note)));
    }

    let mut groups = Vec::new();
    for hint in &diagnostic.hints {
        match hint.fix.as_ref().and_then(|(span, text)| Some((*span, text, map.get(span.file)?))) {
            Some((span, text, source)) => {
                let window = Window::around(source, &[span]);
                let patch = Patch::new(window.range(span), text.as_str());
                let snippet = Snippet::source(window.text).line_start(window.line).path(source.name()).patch(patch);
                groups.push(Level::HELP.secondary_title(clean(&hint.text)).element(snippet));
            }
            None => main = main.element(Level::HELP.message(clean(&hint.text))),
        }
    }
    groups.insert(0, main);
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let text = renderer.render(&groups);
    let text: String = text.chars().map(|c| if drives_terminal(c) { '\u{fffd}' } else { c }).collect();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// Characters of the source that the renderer lets through though they steer a terminal or turn its writing direction.
fn drives_terminal(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text fit for a terminal: control characters (which can come from the program) as `\u{1b}`.
fn clean(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() && c != '\n' {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        out
    })
}

/// All diagnostics, one after the other with an empty line between.
pub fn render_all(map: &SourceMap, diagnostics: &[Diagnostic], color: bool) -> String {
    diagnostics.iter().map(|diagnostic| render(map, diagnostic, color) + "\n").collect::<Vec<_>>().join("\n")
}

/// One JSON object on one line, without a newline. Lines and columns count from 1, columns in characters; `start` and
/// `end` are byte offsets.
pub fn to_json(map: &SourceMap, diagnostic: &Diagnostic) -> String {
    let place = |span: Span| -> Value {
        match map.get(span.file) {
            Some(source) => {
                let (line, column) = source.line_column(span.start);
                let (end_line, end_column) = source.line_column(span.end);
                json!({
                    "file": source.name(), "start": span.start, "end": span.end,
                    "line": line, "column": column, "end_line": end_line, "end_column": end_column,
                })
            }
            None => Value::Null,
        }
    };
    let labels: Vec<Value> = diagnostic
        .labels
        .iter()
        .map(|label| json!({ "place": place(label.span), "text": label.text, "primary": label.primary }))
        .collect();
    let hints: Vec<Value> = diagnostic
        .hints
        .iter()
        .map(|hint| match &hint.fix {
            Some((span, text)) => json!({ "text": hint.text, "place": place(*span), "replacement": text }),
            None => json!({ "text": hint.text }),
        })
        .collect();
    let file = diagnostic.span().map(|span| span.file).or(diagnostic.file).and_then(|file| map.get(file));
    json!({
        "severity": diagnostic.severity.name(),
        "code": diagnostic.code.to_string(),
        "message": diagnostic.message,
        "file": file.map(Source::name),
        "place": diagnostic.span().map(place),
        "labels": labels,
        "expected": diagnostic.expected,
        "found": diagnostic.found,
        "notes": diagnostic.notes,
        "hints": hints,
    })
    .to_string()
}

/// The candidate nearest to `name` in spelling, if one is near enough to be worth suggesting: at most one edit for every
/// three characters (insert, delete, replace, swap neighbours; case counts half). Ties go to the first candidate.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted: Vec<char> = name.chars().take(64).collect();
    // Twice the number of edits, so that a change of case can cost one.
    let limit = 2 * wanted.len().div_ceil(3);
    candidates
        .into_iter()
        .filter(|candidate| *candidate != name && !candidate.is_empty())
        .filter_map(|candidate| {
            let other: Vec<char> = candidate.chars().take(64).collect();
            let cost = distance(&wanted, &other);
            (cost <= limit && cost < 2 * wanted.len().max(other.len())).then_some((cost, candidate))
        })
        .min_by_key(|(cost, _)| *cost)
        .map(|(_, candidate)| candidate)
}

/// Twice the Damerau–Levenshtein distance (neighbouring swaps count as one edit); a change of case costs 1.
fn distance(a: &[char], b: &[char]) -> usize {
    let same = |x: char, y: char| x.to_lowercase().eq(y.to_lowercase());
    let width = b.len() + 1;
    let mut table = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i * width + j] = match (i, j) {
                (0, _) => 2 * j,
                (_, 0) => 2 * i,
                _ => {
                    let (x, y) = (a[i - 1], b[j - 1]);
                    let replace = if x == y { 0 } else { 1 + usize::from(!same(x, y)) };
                    let mut best = table[(i - 1) * width + j - 1] + replace;
                    best = best.min(table[(i - 1) * width + j] + 2).min(table[i * width + j - 1] + 2);
                    if i > 1 && j > 1 && x == b[j - 2] && a[i - 2] == y {
                        best = best.min(table[(i - 2) * width + j - 2] + 2);
                    }
                    best
                }
            };
        }
    }
    table[a.len() * width + b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_slips_of_the_finger() {
        let names = ["layer", "heads", "kv_heads", "rms_norm", "d"];
        assert_eq!(nearest("leyer", names), Some("layer"));
        assert_eq!(nearest("layre", names), Some("layer"));
        assert_eq!(nearest("kvheads", names), Some("kv_heads"));
        assert_eq!(nearest("RMS_norm", names), Some("rms_norm"));
        assert_eq!(nearest("optimizer", names), None);
        assert_eq!(nearest("x", names), None);
        assert_eq!(nearest("layer", names), None, "the name itself is no suggestion");
    }

    #[test]
    fn distance_is_twice_the_edits() {
        let d = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!(d("", "abc"), 6);
        assert_eq!(d("abc", "abc"), 0);
        assert_eq!(d("abc", "acb"), 2);
        assert_eq!(d("abc", "aBc"), 1);
        assert_eq!(d("kitten", "sitting"), 6);
    }

    #[test]
    fn places_in_unknown_texts_do_no_harm() {
        let map = SourceMap::new();
        let d = Diagnostic::error(Code(1), "lost").at(Span::new(FileId(7), 3, 9), "here");
        assert!(render(&map, &d, false).contains("error[GOLF0001]: lost"));
        assert!(to_json(&map, &d).contains("\"place\":null"));
    }
}
