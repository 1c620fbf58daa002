//! The codes of this crate's messages, with what they mean: the table behind `golfc --explain-code`.
//!
//! Every stage keeps a table like this of its own range; a code is never reused.

use crate::diagnostics::Code;

/// What a code means.
pub struct CodeInfo {
    /// The code.
    pub code: Code,
    /// A few words.
    pub title: &'static str,
    /// What it means and what to do.
    pub text: &'static str,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $title:literal, $text:literal;)*) => {
        $(#[doc = $title] pub const $name: Code = Code($number);)*
        /// Every code of this crate, in order.
        pub const CODES: &[CodeInfo] = &[$(CodeInfo { code: $name, title: $title, text: $text }),*];
    };
}

codes! {
    NOT_UTF8 = 1, "text is not UTF-8",
        "A golf program is UTF-8 text. The message shows the first byte that is part of no character; \
         save the file as UTF-8, or check that it is the file you meant.";
    TOO_LARGE = 2, "text is larger than 1 MB",
        "Programs are at most 1,000,000 bytes. A program is one file a person reads; data belongs in data files.";
    TOO_DEEP = 3, "brackets nest more than 128 deep",
        "Brackets may nest 128 deep. Name the inner parts with `let`.";
    UNCLOSED = 4, "a bracket is never closed",
        "An opening bracket has no closing one. The message shows the opening bracket and the place where the closing \
         one was missed: the next item that starts at the left margin, or the end of the text.";
    MISMATCHED = 5, "a bracket is closed by one of another kind, or was never opened",
        "Brackets close in the reverse order in which they open. The message shows the closing bracket and the \
         opening one it meets.";
    UNCLOSED_STRING = 6, "a string is not closed on its line",
        "A string ends on the line on which it starts. Write `\\n` for a line break inside it and `\\\"` for a quote.";
    SYNTAX = 7, "unexpected text",
        "The grammar has no place for what stands here. The message says what could stand there instead.";
    MISSING_COMMA = 8, "a comma is missing",
        "Elements of a list, arguments, and settings on one line are separated by commas.";
    UNKNOWN_ITEM = 9, "not an item",
        "A program is a sequence of items, each introduced by a keyword: use, const, axis, fn, layer, model, optimizer, \
         average, quantizer, adapter, schedule, init, filter, train, quantize, evaluate.";
    BAD_NUMBER = 10, "not a number that can be held",
        "Integers go up to 9,223,372,036,854,775,807; numbers with a point or an exponent must be finite in 64 bits. \
         Durations are a number and one of ms, s, min, h.";
    CHAINED_COMPARISON = 11, "comparisons cannot be chained",
        "`a < b < c` is not `a < b and b < c`; write the latter.";
    TOO_LONG = 12, "an expression is too large",
        "One expression may hold about 400 operations that depend on each other. Name parts of it with `let`.";
    UNUSED_VALUE = 13, "a value is not used",
        "A statement that only computes a value has no effect, unless it is the last one of its block: then it is the \
         block's value. Bind it with `let`, or remove it.";
    BAD_ESCAPE = 14, "not an escape sequence",
        "In a string, `\\` is followed by one of `\\ \" n t { }`.";
    POSITIONAL_AFTER_NAMED = 15, "a positional argument after a named one",
        "Arguments without a name come first.";
    UNEXPECTED_CHARACTER = 16, "a character that no token starts with",
        "Outside comments and strings a program is plain ASCII.";
    RESERVED_WORD = 17, "a keyword where a name is wanted",
        "Keywords cannot name values, axes, functions or layers. They can be setting keys and argument names.";
}

/// The table's row for a code of this crate.
pub fn explain(code: Code) -> Option<&'static CodeInfo> {
    CODES.iter().find(|info| info.code == code)
}
