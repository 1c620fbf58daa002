//! The graph IR: types, op table, builder, text form, verifier, interpreter.

pub mod build;
mod build_ops;
pub mod error;
pub mod fold;
pub mod infer;
pub mod interpret;
pub mod ir;
pub mod ops;
pub mod rewrite;
pub mod scalar;
mod simplify;
#[cfg(test)]
mod tests;
pub mod text;
pub mod verify;
