//! Deterministic scatter-add: `table[index[i], :] += src[i, :]` for i ascending. Args: index I32 [rows], src [rows, width], table f32 [size, width].
//! Tasks split the width, never the rows, so the order of additions is fixed.

use super::{Launch, LaunchArg};
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

impl Scatter {
    /// One function; tasks of 64 columns.
    pub fn launches(&self) -> Vec<Launch> {
        let (rows, width, size) = (self.rows as u64, self.width as u64, self.size as u64);
        let touched = if self.accumulate { 2 * rows.min(size) } else { size + rows };
        vec![Launch {
            entry: "main",
            tasks: self.width.div_ceil(64) as u32,
            args: (0..3).map(LaunchArg::Arg).collect(),
            scratch: 0,
            flops: rows * width,
            bytes: rows * 4 + rows * width * self.src.bytes() as u64 + touched * width * 4,
            gpu: None,
        }]
    }
}
