//! Splits a text into items before pest sees it.
//!
//! *Takes* bytes. *Gives* a [`Scan`]: the same text with everything blanked that the grammar must not see, its tokens, its
//! comments, and the byte ranges of its items. *Promises*: one pass, no recursion; offsets in the blanked text are offsets
//! in the source; brackets in an unbroken item balance and nest at most [`MAX_NESTING`] deep.
//!
//! A line ends a statement unless a bracket `(` or `[` is open, the line ends with an operator or a comma, or the next one
//! begins with `{` or `else`; every other line end is blanked, as are comments. Each line end that is left at bracket depth
//! zero ends an item. So a bad item spoils nothing but itself.

use std::cell::OnceCell;

use crate::codes;
use crate::diagnostics::{Diagnostic, Sink};
use crate::span::{FileId, Span};

/// Largest text, in bytes.
pub const MAX_BYTES: usize = 1_000_000;

/// Deepest nesting of brackets.
pub const MAX_NESTING: usize = 128;

/// Words that introduce an item.
pub const ITEM_WORDS: [&str; 16] = [
    "use",
    "const",
    "axis",
    "fn",
    "layer",
    "model",
    "optimizer",
    "average",
    "quantizer",
    "adapter",
    "schedule",
    "init",
    "filter",
    "train",
    "quantize",
    "evaluate",
];

/// Words that cannot be names.
pub const KEYWORDS: [&str; 19] = [
    "use", "const", "axis", "fn", "layer", "let", "param", "if", "else", "for", "in", "and", "or", "not", "over", "as",
    "true", "false", "none",
];

/// Most errors given for one text; reading stops there.
pub const MAX_ERRORS: usize = 50;

/// What a token is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TokenKind {
    /// Letters, digits and `_`, not beginning with a digit.
    Word,
    /// Begins with a digit.
    Number,
    /// With its quotes.
    Str,
    /// An operator or a bracket.
    Punct,
    /// A line end.
    Newline,
    /// A `#` comment.
    Comment,
    /// A character that begins no token; a message has been given.
    Bad,
}

/// A token as a byte range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// The byte range of one item, or of something that should be one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// A message about it has been given already; not worth parsing.
    pub(crate) broken: bool,
}

/// What the scanner gives.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    pub(crate) file: FileId,
    /// The source.
    pub(crate) text: &'a str,
    /// The source, as many bytes, with blanks for comments and for line ends that end nothing.
    pub(crate) blanked: String,
    /// All tokens but comments and blanked line ends.
    pub(crate) tokens: Vec<Token>,
    pub(crate) comments: Vec<Span>,
    pub(crate) chunks: Vec<Chunk>,
}

impl Scan<'_> {
    /// The index of the first token that ends after `offset`.
    pub(crate) fn token_at(&self, offset: usize) -> usize {
        self.tokens.partition_point(|token| token.end <= offset)
    }

    /// A token's text.
    pub(crate) fn slice(&self, token: Token) -> &str {
        &self.text[token.start..token.end]
    }

    /// A token's place.
    pub(crate) fn span(&self, token: Token) -> Span {
        Span::new(self.file, token.start, token.end)
    }
}

/// Checks size and encoding.
pub(crate) fn decode(file: FileId, bytes: &[u8]) -> Result<&str, Diagnostic> {
    if bytes.len() > MAX_BYTES {
        let message = format!("the text is {} bytes long; at most {MAX_BYTES} are allowed", bytes.len());
        return Err(Diagnostic::error(codes::TOO_LARGE, message).in_file(file));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Diagnostic::error(codes::NOT_UTF8, format!("the text is not UTF-8: byte {at} is 0x{:02x}", bytes[at]))
            .at(Span::new(file, at, at + 1), "no character starts like this")
    })
}

/// Splits a text. With `whole`, the text is one chunk whatever its lines (a single expression).
pub(crate) fn scan<'a>(file: FileId, text: &'a str, whole: bool, sink: &mut Sink) -> Scan<'a> {
    let mut lexer = Lexer { text, file, at: 0, depth: 0, tokens: Vec::new(), faults: Vec::new() };
    lexer.run();
    let Lexer { tokens, faults, .. } = lexer;
    // Brackets are taken at their word first; only when that fails are items recognised by their place at the left margin.
    let mut splitter = Splitter::new(file, text, &tokens, whole, false);
    splitter.run();
    if !splitter.errors.is_empty() {
        splitter = Splitter::new(file, text, &tokens, whole, true);
        splitter.run();
    }
    let Splitter { mut chunks, blanked, kept, errors, .. } = splitter;
    for (at, diagnostic) in faults {
        // Several in one item are mostly one mistake.
        let index = chunks.partition_point(|chunk| chunk.end <= at);
        match chunks.get_mut(index).filter(|chunk| chunk.start <= at) {
            Some(chunk) if chunk.broken => continue,
            Some(chunk) => chunk.broken = true,
            None => {}
        }
        sink.push(diagnostic);
    }
    let comments = tokens
        .iter()
        .filter(|token| token.kind == TokenKind::Comment)
        .map(|token| Span::new(file, token.start, token.end))
        .collect();
    sink.extend(errors);
    // Every blank is one ASCII byte for one byte, so this cannot fail.
    let blanked = String::from_utf8(blanked).unwrap_or_default();
    Scan { file, text, blanked, tokens: kept, comments, chunks }
}

/// Text to tokens.
struct Lexer<'a> {
    text: &'a str,
    file: FileId,
    at: usize,
    /// Open brackets, for the limit inside strings.
    depth: usize,
    tokens: Vec<Token>,
    /// Errors inside tokens, with their offsets.
    faults: Vec<(usize, Diagnostic)>,
}

/// Operators of several characters, longest first where one begins another.
const OPERATORS: [&str; 11] = ["->", "..", "??", "//", "<=", ">=", "==", "!=", "<<", ">>", "**"];

/// Whether a byte can stand in a word.
pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl Lexer<'_> {
    fn byte(&self, at: usize) -> u8 {
        self.text.as_bytes().get(at).copied().unwrap_or(0)
    }

    fn run(&mut self) {
        while self.at < self.text.len() {
            let start = self.at;
            let kind = match self.byte(start) {
                b' ' | b'\t' | b'\r' => {
                    self.at += 1;
                    continue;
                }
                b'\n' => {
                    self.at += 1;
                    TokenKind::Newline
                }
                b'#' => {
                    self.skip_while(|byte| byte != b'\n');
                    TokenKind::Comment
                }
                b'"' => {
                    self.string();
                    TokenKind::Str
                }
                b'0'..=b'9' => {
                    self.number();
                    TokenKind::Number
                }
                byte if is_word(byte) => {
                    self.skip_while(is_word);
                    TokenKind::Word
                }
                _ if start == 0 && self.text.starts_with('\u{feff}') => {
                    self.at += '\u{feff}'.len_utf8();
                    continue;
                }
                _ if self.punct() => TokenKind::Punct,
                _ => TokenKind::Bad,
            };
            self.tokens.push(Token { kind, start, end: self.at });
        }
    }

    fn skip_while(&mut self, keep: impl Fn(u8) -> bool) {
        while self.at < self.text.len() && keep(self.byte(self.at)) {
            self.at += 1;
        }
    }

    fn fault(&mut self, at: usize, diagnostic: Diagnostic) {
        if self.faults.len() < MAX_ERRORS {
            self.faults.push((at, diagnostic));
        }
    }

    /// A number with whatever clings to it, so that `3x` is one bad number and not two tokens.
    fn number(&mut self) {
        let start = self.at;
        self.skip_while(is_word);
        let prefixed = self.byte(start) == b'0' && matches!(self.byte(start + 1), b'x' | b'b');
        if prefixed {
            return;
        }
        if self.byte(self.at) == b'.' && self.byte(self.at + 1).is_ascii_digit() {
            self.at += 1;
            self.skip_while(is_word);
        }
        let signed = matches!(self.byte(self.at), b'+' | b'-') && self.byte(self.at + 1).is_ascii_digit();
        if signed && matches!(self.byte(self.at - 1), b'e' | b'E') {
            self.at += 1;
            self.skip_while(is_word);
        }
    }

    /// A string up to its closing quote. Brackets inside `{…}` count towards the nesting limit.
    fn string(&mut self) {
        let start = self.at;
        self.at += 1;
        let mut inner: Vec<usize> = Vec::new();
        loop {
            match self.byte(self.at) {
                b'"' if inner.is_empty() => {
                    self.at += 1;
                    return;
                }
                b'"' => {
                    let diagnostic = Diagnostic::error(codes::UNCLOSED, "a `{` in a string is never closed")
                        .at(Span::new(self.file, inner[0], inner[0] + 1), "opened here")
                        .also(Span::new(self.file, self.at, self.at + 1), "the string ends here")
                        .hint("a string cannot stand inside `{…}` of another; write `\\{` for a brace that is text");
                    self.fault(start, diagnostic);
                    self.at += 1;
                    return;
                }
                b'\n' | 0 if self.at >= self.text.len() || self.byte(self.at) == b'\n' => {
                    let diagnostic = Diagnostic::error(codes::UNCLOSED_STRING, "a string is not closed on its line")
                        .at(Span::new(self.file, start, start + 1), "it starts here")
                        .also(Span::new(self.file, self.at, self.at), "the line ends here");
                    self.fault(start, diagnostic);
                    return;
                }
                b'\\' if inner.is_empty() && self.byte(self.at + 1) != b'\n' => self.at += 2,
                b'{' | b'(' | b'[' if !inner.is_empty() || self.byte(self.at) == b'{' => {
                    inner.push(self.at);
                    self.at += 1;
                    if self.depth + inner.len() > MAX_NESTING {
                        let at = self.at - 1;
                        self.fault(start, too_deep(self.file, at, inner[0]));
                        self.skip_while(|byte| byte != b'"' && byte != b'\n');
                        return;
                    }
                }
                b'}' | b')' | b']' => {
                    inner.pop();
                    self.at += 1;
                }
                _ => self.at += 1,
            }
            self.at = self.at.min(self.text.len());
            while !self.text.is_char_boundary(self.at) {
                self.at += 1;
            }
        }
    }

    /// An operator or bracket; `false`, with a message, for a character that is none.
    fn punct(&mut self) -> bool {
        let rest = &self.text[self.at..];
        if let Some(operator) = OPERATORS.iter().find(|operator| rest.starts_with(**operator)) {
            self.at += operator.len();
            return true;
        }
        let c = rest.chars().next().unwrap_or('\0');
        let start = self.at;
        self.at += c.len_utf8();
        match c {
            '(' | '[' | '{' => self.depth += 1,
            ')' | ']' | '}' => self.depth = self.depth.saturating_sub(1),
            _ if "+-*/%^<>=|&~,:;.?!".contains(c) => {}
            _ => {
                let shown: String = if c.is_control() { c.escape_unicode().collect() } else { c.to_string() };
                let span = Span::new(self.file, start, self.at);
                let mut diagnostic =
                    Diagnostic::error(codes::UNEXPECTED_CHARACTER, format!("unexpected character `{shown}`"))
                        .at(span, "no token starts with this");
                if let Some(plain) = look_alike(c) {
                    diagnostic = diagnostic.fix(format!("write `{plain}`"), span, plain);
                }
                self.fault(start, diagnostic);
                return false;
            }
        }
        true
    }
}

/// What was meant by a character that looks like one of ours.
fn look_alike(c: char) -> Option<&'static str> {
    Some(match c {
        '“' | '”' | '„' | '\'' | '‘' | '’' | '`' => "\"",
        '−' | '–' | '—' => "-",
        '×' | '·' | '∗' => "*",
        '÷' => "/",
        '≤' => "<=",
        '≥' => ">=",
        '≠' => "!=",
        '→' => "->",
        '…' => "..",
        '\u{a0}' | '\u{2009}' | '\u{202f}' | '\u{3000}' => " ",
        _ => return None,
    })
}

fn too_deep(file: FileId, at: usize, first: usize) -> Diagnostic {
    Diagnostic::error(codes::TOO_DEEP, format!("brackets nest more than {MAX_NESTING} deep"))
        .at(Span::new(file, at, at + 1), "one too many")
        .also(Span::new(file, first, first + 1), "the outermost opens here")
        .hint("name the inner parts with `let`")
}

/// Tokens to chunks.
struct Splitter<'a> {
    file: FileId,
    text: &'a str,
    tokens: &'a [Token],
    whole: bool,
    /// Whether an item word at the left margin ends whatever is still open.
    recover: bool,
    blanked: Vec<u8>,
    /// Tokens the grammar sees.
    kept: Vec<Token>,
    chunks: Vec<Chunk>,
    errors: Vec<Diagnostic>,
    /// Offsets of open brackets.
    open: Vec<usize>,
    /// Offsets of matched brackets of the current chunk, for guesses about a missing one.
    pairs: Vec<(usize, usize)>,
    /// Start and end of the current chunk's tokens.
    current: Option<(usize, usize)>,
    /// A bracket error has been reported in the current chunk.
    broken: bool,
    /// For each token, the index of the next one that is neither a line end nor a comment.
    next: Vec<usize>,
    /// Start of each line and how far it is indented; made when first asked for.
    indents: OnceCell<Vec<(usize, usize)>>,
}

impl<'a> Splitter<'a> {
    fn new(file: FileId, text: &'a str, tokens: &'a [Token], whole: bool, recover: bool) -> Self {
        let mut next = vec![tokens.len(); tokens.len()];
        for index in (1..tokens.len()).rev() {
            let skipped = matches!(tokens[index].kind, TokenKind::Newline | TokenKind::Comment);
            next[index - 1] = if skipped { next[index] } else { index };
        }
        Self {
            file,
            text,
            tokens,
            whole,
            recover,
            blanked: Vec::with_capacity(text.len()),
            kept: Vec::with_capacity(tokens.len()),
            chunks: Vec::new(),
            errors: Vec::new(),
            open: Vec::new(),
            pairs: Vec::new(),
            current: None,
            broken: false,
            next,
            indents: OnceCell::new(),
        }
    }

    fn slice(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |token| &self.text[token.start..token.end])
    }

    fn span(&self, at: usize) -> Span {
        Span::new(self.file, at, at + 1)
    }

    fn run(&mut self) {
        for index in 0..self.tokens.len() {
            let token = self.tokens[index];
            match token.kind {
                TokenKind::Comment => continue,
                TokenKind::Newline => {
                    if self.ends_statement(index) {
                        if self.open.is_empty() {
                            self.finish_chunk(None);
                        } else {
                            self.keep(token);
                        }
                    }
                    continue;
                }
                TokenKind::Word if self.starts_item(index) => self.finish_chunk(Some(token)),
                TokenKind::Punct => self.bracket(token),
                TokenKind::Word | TokenKind::Number | TokenKind::Str | TokenKind::Bad => {}
            }
            self.keep(token);
            let start = self.current.map_or(token.start, |(start, _)| start);
            self.current = Some((start, token.end));
        }
        self.finish_chunk(None);
        self.blanked.resize(self.text.len(), b' ');
    }

    /// Copies a token to where it was.
    fn keep(&mut self, token: Token) {
        self.blanked.resize(token.start, b' ');
        self.blanked.extend_from_slice(&self.text.as_bytes()[token.start..token.end]);
        self.kept.push(token);
    }

    /// Whether the line end at this index ends a statement.
    fn ends_statement(&self, index: usize) -> bool {
        if self.whole && self.open.is_empty() {
            return false;
        }
        if matches!(self.open.last().map(|&at| self.text.as_bytes()[at]), Some(b'(' | b'[')) {
            return false;
        }
        let before = self.kept.last().map_or("", |token| &self.text[token.start..token.end]);
        let continues = matches!(
            before,
            "+" | "-" | "*" | "/" | "//" | "%" | "^" | "<" | "<=" | ">" | ">=" | "==" | "!=" | "<<" | ">>" | "&" | "|"
        ) || matches!(before, "??" | ".." | "->" | "=" | "~" | "," | ":" | "." | "!" | "**")
            || matches!(before, "and" | "or" | "not" | "over" | "in" | "as" | "if" | "else" | "for" | "let");
        if continues && self.current.is_some() {
            return false;
        }
        !matches!(self.slice(self.next[index]), "{" | "else")
    }

    /// Whether the word at this index begins an item whatever came before: an item word at the left margin, outside
    /// brackets (or, when recovering, anywhere), followed by what can follow it.
    fn starts_item(&self, index: usize) -> bool {
        let token = self.tokens[index];
        let margin = token.start == 0 || self.text.as_bytes()[token.start - 1] == b'\n';
        let anywhere = self.recover || self.open.is_empty();
        let word = |index: usize| self.tokens.get(index).is_some_and(|token| token.kind == TokenKind::Word);
        let opens = |index: usize| matches!(self.slice(index), "(" | "<");
        let follows = match self.slice(index) {
            "use" | "const" | "axis" | "fn" | "layer" => word(index + 1),
            "train" | "quantize" | "evaluate" => self.slice(index + 1) == "{",
            "model" => opens(index + 1),
            // These can be names too.
            _ => word(index + 1) && !KEYWORDS.contains(&self.slice(index + 1)) && opens(index + 2),
        };
        margin && anywhere && follows && !self.whole && ITEM_WORDS.contains(&self.slice(index))
    }

    /// Ends the current chunk, before the item word `next` or at the end of the text.
    fn finish_chunk(&mut self, next: Option<Token>) {
        if let Some(&open) = self.open.last()
            && !self.broken
        {
            self.error(self.unclosed(open, next));
        }
        if let Some((start, end)) = self.current.take() {
            self.chunks.push(Chunk { start, end, broken: self.broken });
        }
        self.open.clear();
        self.pairs.clear();
        self.broken = false;
    }

    /// Reports the one bracket error of the current chunk.
    fn error(&mut self, diagnostic: Diagnostic) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(diagnostic);
        }
        self.broken = true;
    }

    fn bracket(&mut self, token: Token) {
        let at = token.start;
        let close = match self.text.as_bytes()[at] {
            b'(' | b'[' | b'{' => {
                self.open.push(at);
                if self.open.len() > MAX_NESTING && !self.broken {
                    self.error(too_deep(self.file, at, self.open[0]));
                }
                return;
            }
            close @ (b')' | b']' | b'}') if token.end == at + 1 => close,
            _ => return,
        };
        let matches = |open: usize| matching(self.text.as_bytes()[open]) == close;
        match self.open.last().copied() {
            Some(open) if matches(open) => {
                self.open.pop();
                self.pairs.push((open, at));
            }
            Some(open) => {
                // Closing an outer bracket: the inner one was forgotten. Closing nothing: it is one too many.
                let deep = self.open.len() > MAX_NESTING;
                let outer = if deep { None } else { self.open.iter().rposition(|&open| matches(open)) };
                if !self.broken {
                    self.error(self.mismatched(open, at, outer.map(|index| self.open[index])));
                }
                if let Some(index) = outer {
                    self.open.truncate(index);
                }
            }
            None if !self.broken => {
                let what = char::from(close);
                self.error(
                    Diagnostic::error(codes::MISMATCHED, format!("this `{what}` closes nothing"))
                        .at(self.span(at), "no bracket is open here"),
                );
            }
            None => {}
        }
    }

    fn mismatched(&self, open: usize, at: usize, outer: Option<usize>) -> Diagnostic {
        let (found, opened) = (&self.text[at..=at], &self.text[open..=open]);
        let wanted = char::from(matching(self.text.as_bytes()[open]));
        let message = format!("expected `{wanted}`, found `{found}`");
        let mut diagnostic = Diagnostic::error(codes::MISMATCHED, message)
            .at(self.span(at), format!("this does not close `{opened}`"))
            .also(self.span(open), format!("this `{opened}` is never closed"))
            .expected_found(format!("`{wanted}`"), format!("`{found}`"));
        if let Some(outer) = outer {
            diagnostic = diagnostic.also(self.span(outer), format!("`{found}` would close this one"));
        }
        diagnostic
    }

    fn unclosed(&self, open: usize, next: Option<Token>) -> Diagnostic {
        let opened = &self.text[open..=open];
        let wanted = char::from(matching(self.text.as_bytes()[open]));
        let end = self.current.map_or(open + 1, |(_, end)| end);
        let (place, what) = match next {
            Some(token) => {
                let word = &self.text[token.start..token.end];
                let text = format!("expected `{wanted}` before this item");
                ((Span::new(self.file, token.start, token.end), text), format!("the item `{word}`"))
            }
            None => {
                ((Span::new(self.file, end, end), format!("expected `{wanted}` here")), "the end of the text".into())
            }
        };
        let mut diagnostic = Diagnostic::error(codes::UNCLOSED, format!("this `{opened}` is never closed"))
            .at(self.span(open), "opened here")
            .also(place.0, place.1)
            .expected_found(format!("`{wanted}`"), what);
        if let Some(&(inner, close)) = self.pairs.iter().find(|(open, close)| self.indent(*close) < self.indent(*open))
        {
            diagnostic = diagnostic
                .also(self.span(inner), "perhaps this is the one that was left open,")
                .also(self.span(close), "since what closes it is indented less");
        }
        diagnostic
    }

    /// Blanks at the start of the line on which an offset lies.
    fn indent(&self, at: usize) -> usize {
        let lines = self.indents.get_or_init(|| {
            let mut start = 0;
            let mut lines = Vec::new();
            for line in self.text.split_inclusive('\n') {
                lines.push((start, line.bytes().take_while(|byte| matches!(byte, b' ' | b'\t')).count()));
                start += line.len();
            }
            lines
        });
        let line = lines.partition_point(|(start, _)| *start <= at);
        line.checked_sub(1).map_or(0, |line| lines[line].1)
    }
}

/// The bracket that closes an opening one.
fn matching(open: u8) -> u8 {
    match open {
        b'(' => b')',
        b'[' => b']',
        _ => b'}',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &str) -> (Vec<String>, Vec<String>) {
        let mut sink = Sink::new();
        let scan = scan(FileId(0), text, false, &mut sink);
        assert_eq!(scan.blanked.len(), text.len(), "blanking keeps offsets");
        let chunks = scan
            .chunks
            .iter()
            .map(|chunk| format!("{}{}", if chunk.broken { "!" } else { "" }, &scan.blanked[chunk.start..chunk.end]))
            .collect();
        (chunks, sink.finish().into_iter().map(|d| format!("{} {}", d.code, d.message)).collect())
    }

    #[test]
    fn lines_end_items_unless_they_go_on() {
        let (items, errors) = chunks("const a = 1,\n  b = 2 +\n  3\nfn f(x,\n  y)\n{ x }\n# end\n");
        assert_eq!(items, ["const a = 1,   b = 2 +   3", "fn f(x,   y) { x }"]);
        assert!(errors.is_empty());
    }

    #[test]
    fn line_ends_stay_inside_braces_only() {
        let (items, _) = chunks("fn f() {\n  g(\n1)  # one\n  [2\n]\n}");
        assert_eq!(items, ["fn f() {\n  g( 1)       \n  [2 ]\n}"]);
    }

    #[test]
    fn strings_hide_brackets_and_comments() {
        let (items, errors) = chunks("const a = \"([{i}# \\\" }\"\nconst b = 1");
        assert_eq!(items, ["const a = \"([{i}# \\\" }\"", "const b = 1"]);
        assert!(errors.is_empty(), "{errors:?}");
    }

    #[test]
    fn a_forgotten_bracket_spoils_one_item() {
        let (items, errors) = chunks("fn f() {\n  g(1\n}\nfn h() {\nfn i() { 1 }\n");
        assert_eq!(items, ["!fn f() {\n  g(1 }", "!fn h() {", "fn i() { 1 }"]);
        assert_eq!(errors, ["GOLF0005 expected `)`, found `}`", "GOLF0004 this `{` is never closed"]);
    }

    #[test]
    fn a_trailing_comma_does_not_swallow_the_next_item() {
        let (items, _) = chunks("const a = 1,\nlayer b() {\n}");
        assert_eq!(items, ["const a = 1,", "layer b() {\n}"]);
    }
}
