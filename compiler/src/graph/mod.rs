//! The graph IR: types, op table, text form, verifier, interpreter.

pub mod ir;
