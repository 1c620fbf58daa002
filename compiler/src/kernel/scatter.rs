//! Deterministic scatter-add: `table[index[i], :] += src[i, :]` for i ascending. Args: index I32 [rows], src [rows, width], table f32 [size, width].
//! Tasks split the width, never the rows, so the order of additions is fixed.

use crate::graph::ir::DType;

/// A scatter-add.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scatter {
    /// Number of index entries.
    pub rows: usize,
    /// Elements per row.
    pub width: usize,
    /// Rows of the table.
    pub size: usize,
    /// Dtype of `src`; the table is f32.
    pub src: DType,
    /// Start from the table's content (`Accumulate`) or from zero (`Assign`).
    pub accumulate: bool,
}
