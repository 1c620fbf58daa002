//! Quantiles of rows: what scales of quantisers come from.
//!
//! `out[r] = a + (b - a) w` in f64, rounded once to f32, where a and b are the order statistics number `floor(q (n - 1))` and the next of row r and w
//! is the rest of `q (n - 1)`. Order is that of the bits (NaN above, -0 below 0), so every implementation gives the same bits. On the CPU it is a
//! routine of the runtime, [`golf_runtime::host::quantile`].

use super::{Launch, LaunchArg};

/// Quantile `q` (0 to 1) of each of `rows` rows of `n` f32. Arguments: x \[rows, n\], out \[rows\].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// Rows.
    pub rows: usize,
    /// Elements of a row, at least 1.
    pub n: usize,
    /// Which quantile.
    pub q: f64,
}

impl Quantile {
    /// Number of the lower order statistic and the weight of the next one.
    pub fn position(&self) -> (usize, f64) {
        let position = self.q * (self.n - 1) as f64;
        let low = libm::floor(position);
        (low as usize, position - low)
    }

    pub(super) fn launches(&self) -> Vec<Launch> {
        let (rows, n) = (self.rows as u64, self.n as u64);
        vec![Launch {
            entry: "main",
            tasks: self.rows as u32,
            args: vec![LaunchArg::Arg(0), LaunchArg::Arg(1)],
            scratch: n * 4,
            // Selection, roughly.
            flops: rows * n * 20,
            bytes: rows * (n + 1) * 4,
            gpu: None,
        }]
    }
}
