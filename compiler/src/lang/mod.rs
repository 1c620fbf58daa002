//! The language: from a syntax tree to a [`Model`] that can be lowered.
//!
//! *Takes* a program text and overrides; *gives* a [`Model`] or diagnostics; *promises* that a program that loads has been elaborated
//! whole, and that nothing of it is silently without effect.
//!
//! The road: [`sets`] edits the text, [`program`] collects definitions, [`resolve`] checks names, [`elaborate`] (with [`stmt`],
//! [`expr`], [`ops`], [`axes`], [`call`], [`builtin`], [`types`], [`params`]) evaluates and makes nodes, [`settings`], [`rules`] and [`calibrate`] read the
//! blocks, [`slots`] runs what fills them, [`model`] holds the result.

pub mod axes;
pub mod builtin;
pub mod calibrate;
pub mod call;
pub mod codes;
pub mod elaborate;
pub mod expr;
pub mod host;
pub mod model;
pub mod ops;
pub mod params;
pub mod prelude;
pub mod program;
pub mod resolve;
pub mod rules;
pub mod scope;
pub mod sets;
pub mod settings;
pub mod slots;
pub mod stmt;
pub mod types;
pub mod value;

pub use model::{Input, Model, load, load_with};
