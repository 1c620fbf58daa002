//! Syntax of the golf language: text to tree, tree to text, and the messages of every stage.
//!
//! *Takes* bytes, *gives* an [`ast::File`] or [`Diagnostic`]s, *promises*: no panic and no deep recursion on any input, time
//! about linear in its size, and all syntax errors of independent items in one run.

#![forbid(unsafe_code)]

pub mod ast;
pub mod codes;
pub mod diagnostics;
pub mod parse;
pub mod span;

pub use diagnostics::{Code, Diagnostic, Severity, Sink, nearest, render, to_json};
pub use parse::Parsed;
pub use span::{FileId, SourceMap, Span};
