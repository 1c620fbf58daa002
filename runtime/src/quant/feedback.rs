//! Rounding with feedback: weights become codes column by column, and the error of each column is taken out of those that come later.
//!
//! *Takes* up to [`FEEDBACK_ROWS`] rows, their scales, the order of the columns and a triangular factor; *gives* codes; *promises* f32 operations, each
//! rounded once and done in the stated order (no fused multiply-add, true division), so that every machine and every GPU gives the same bits.
//!
//! Visit j = 0, 1, ... is of column c = order\[j\]: `q = clamp(round(w[c] / scale), low, high)` with halves to even, `e = (w[c] - q scale) / upper[j, j]`,
//! then `w[order[k]] -= e upper[j, k]` for all k > j. Rows do not see each other, so they are computed side by side: one vector operation for all of them.

use crate::plan::FEEDBACK_ROWS;

/// One number of each row.
pub type Lanes = [f32; FEEDBACK_ROWS as usize];

/// Rounds `scale.len()` rows (at most [`FEEDBACK_ROWS`]) of `order.len()` columns from `w` to `out`. `upper` is a square matrix of which the part
/// below the diagonal is not read; `values` has room for one [`Lanes`] per column. Orders outside of the columns are clamped into them.
pub fn round(
    w: &[f32],
    scale: &[f32],
    order: &[i32],
    upper: &[f32],
    (low, high): (f32, f32),
    values: &mut [Lanes],
    out: &mut [f32],
) {
    let (rows, n) = (scale.len(), order.len());
    let column = |j: usize| (order[j].max(0) as usize).min(n - 1);
    // Lanes without a row compute on harmless numbers.
    let mut step: Lanes = [1.0; _];
    step[..rows].copy_from_slice(scale);
    for (j, value) in values.iter_mut().enumerate() {
        *value = [0.0; _];
        value[..rows].iter_mut().enumerate().for_each(|(r, v)| *v = w[r * n + column(j)]);
    }
    for (j, factors) in upper.chunks_exact(n).enumerate() {
        let (visited, later) = values.split_at_mut(j + 1);
        let (x, diagonal) = (&visited[j], factors[j]);
        let (mut code, mut error): (Lanes, Lanes) = ([0.0; _], [0.0; _]);
        for r in 0..x.len() {
            code[r] = (x[r] / step[r]).round_ties_even().clamp(low, high);
            error[r] = (x[r] - code[r] * step[r]) / diagonal;
        }
        for (value, factor) in later.iter_mut().zip(&factors[j + 1..]) {
            value.iter_mut().zip(&error).for_each(|(v, e)| *v -= e * factor);
        }
        code[..rows].iter().enumerate().for_each(|(r, q)| out[r * n + column(j)] = *q);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(w: &[f32], scale: &[f32], order: &[i32], upper: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; w.len()];
        round(w, scale, order, upper, (-2.0, 2.0), &mut vec![[f32::NAN; 16]; order.len()], &mut out);
        out
    }

    /// By hand, visits 2, 0, 1. Row 0 in units of 1: column 2 is 0.75: code 1, error -0.25 / 2; column 0 becomes 1 + 0.125 * 4 = 1.5: code 2, error -0.5 / 1;
    /// column 1 becomes -2.25 + 0.125 * 1 + 0.5 * 3 = -0.625: code -1. Row 1 in units of 8: -20 is -2.5 steps: to even -2, error -4 / 2; 8 + 2 * 4 is code 2
    /// without error; 24 + 2 * 1 is 3.25 steps: cut to 2.
    #[test]
    fn errors_go_to_later_columns() {
        let below = f32::NAN;
        let upper = [2.0, 4.0, 1.0, below, 1.0, 3.0, below, below, 5.0];
        let w = [1.0, -2.25, 0.75, 8.0, 24.0, -20.0];
        assert_eq!(codes(&w, &[1.0, 8.0], &[2, 0, 1], &upper), [2.0, -1.0, 1.0, 2.0, 2.0, -2.0]);
        // The same from every row of a task.
        let (many, scales) = (w.repeat(8), [1.0, 8.0].repeat(8));
        assert_eq!(codes(&many, &scales, &[2, 0, 1], &upper), [2.0, -1.0, 1.0, 2.0, 2.0, -2.0].repeat(8));
    }

    /// The product is rounded before it is subtracted. Column 0 has error a = 1 + 2^-23; a a rounded is 1 + 2^-22, so nothing is left of column 1, and column 2
    /// stays half a step, which goes to even 0. A fused multiply-add leaves -2^-46, hence an error of -2^-23, and column 2 above the half.
    #[test]
    fn products_are_rounded() {
        let (a, unit) = (1.0 + f32::EPSILON, f32::EPSILON);
        let upper = [1.0, a, 0.0, 0.0, unit, 4.0, 0.0, 0.0, 1.0];
        assert_eq!(codes(&[a, 1.0 + 2.0 * unit, 2.0], &[4.0], &[0, 1, 2], &upper), [0.0; 3]);
    }

    #[test]
    fn orders_beyond_the_columns_stay_inside() {
        let upper = [1.0, 0.0, 0.0, 1.0];
        assert_eq!(codes(&[1.0, -1.0], &[1.0], &[i32::MIN, i32::MAX], &upper), [1.0, -1.0]);
    }
}
