//! Syntax of the golf language: text to tree, tree to text, and the messages of every stage.
//!
//! *Takes* bytes, *gives* an [`ast::File`] or [`Diagnostic`]s, *promises*: no panic and no deep recursion on any input, time
//! about linear in its size, and all syntax errors of independent items in one run.

#![forbid(unsafe_code)]

pub mod ast;
pub mod codes;
pub mod diagnostics;
pub mod dump;
mod explain;
mod number;
pub mod parse;
pub mod print;
mod scan;
pub mod span;

pub use diagnostics::{Code, Diagnostic, Severity, Sink, nearest, render, render_all, to_json};
pub use parse::{Parsed, parse_expr, parse_file, parse_value};
pub use scan::{ITEM_WORDS, KEYWORDS, MAX_BYTES, MAX_NESTING};
pub use span::{FileId, SourceMap, Span};
