//! Rounding with feedback ([`crate::graph::ir::Op::FeedbackRound`]): what codes of quantisers that know their inputs come from.
//!
//! Every operation is in f32 and rounded once, in the order of the op's definition: quotient, rounding to even, bounds, product, difference, quotient; then for each
//! later column a product and a difference. A code is a decision, and one that falls the other way changes all that follow, so the order of operations is part of
//! the description and every implementation gives the same bits. On the CPU it is a routine of the runtime, [`golf_runtime::quant::feedback`].

use super::{Launch, LaunchArg};
use golf_runtime::plan::{Builtin, FEEDBACK_ROWS};

/// Codes from `low` to `high` of `rows` rows of `n` weights. Arguments: w f32 \[rows, n\], scale f32 \[rows\], order i32 \[n\], upper f32 \[n, n\], of which only the
/// diagonal and what is right of it is read, out f32 \[rows, n\]. Orders outside of 0..n are clamped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Feedback {
    /// Rows.
    pub rows: usize,
    /// Columns, at least 1.
    pub n: usize,
    /// Least code.
    pub low: f32,
    /// Largest code.
    pub high: f32,
}

impl Feedback {
    /// The CPU's routine.
    pub fn builtin(&self) -> Builtin {
        Builtin::FeedbackRound { rows: self.rows as u64, n: self.n as u64, low: self.low, high: self.high }
    }

    pub(super) fn launches(&self) -> Vec<Launch> {
        let (rows, n) = (self.rows as u64, self.n as u64);
        vec![Launch {
            entry: "main",
            tasks: rows.div_ceil(FEEDBACK_ROWS) as u32,
            args: (0..5).map(LaunchArg::Arg).collect(),
            scratch: n * 4 * FEEDBACK_ROWS,
            // A product and a difference for each pair of columns.
            flops: rows * n * n,
            bytes: (2 * rows * n + rows + n + n * (n + 1) / 2) * 4,
            gpu: None,
        }]
    }
}
