//! Bytes to syntax tree.

use crate::ast;
use crate::diagnostics::Diagnostic;

/// Most levels a tree may have.
pub const MAX_DEPTH: usize = 512;

/// What [`parse_file`] gives.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The items that could be read.
    pub file: ast::File,
    /// Errors and warnings in order of place; empty when all is well.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// The tree, or the diagnostics if any is an error.
    pub fn into_result(self) -> Result<ast::File, Vec<Diagnostic>> {
        if self.diagnostics.iter().any(Diagnostic::is_error) { Err(self.diagnostics) } else { Ok(self.file) }
    }
}
