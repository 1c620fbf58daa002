//! Random matrices with orthonormal rows or columns.
//!
//! *Takes* a stream of normals and a shape; *gives* the matrix in f64; *promises* Haar distribution and bits that depend on the
//! stream and the shape only.
//!
//! The Q of the QR factorisation of a normal matrix, signs chosen so that R's diagonal is positive (without that Q is not
//! Haar-distributed: Mezzadri, Notices of the AMS 54, 2007), which is what the published systems' `orthogonal_` computes; wide
//! matrices through their transpose. Householder reflections; columns are taken one at a time through panels of reflectors, so
//! that a column stays in the first-level cache and a panel in the second.

use crate::rng::Stream;

/// Reflectors in a panel: 32 of length 2048 are 512 KB.
const PANEL: usize = 32;

/// Row-major [rows, cols], from elements 0, 1, ... of the stream.
pub fn orthogonal(stream: &Stream, rows: usize, cols: usize) -> Vec<f64> {
    let wide = rows < cols;
    let (long, short) = if wide { (cols, rows) } else { (rows, cols) };
    let normal = |element: usize| stream.normal_pair(element as u64 / 2)[element % 2];
    // columns[k] has `long` elements: a row of a wide matrix, a column of a tall one.
    let mut columns: Vec<Vec<f64>> = vec![vec![0.0; long]; short];
    for r in 0..rows {
        for c in 0..cols {
            let (k, i) = if wide { (r, c) } else { (c, r) };
            columns[k][i] = normal(r * cols + c);
        }
    }
    let q = orthonormalise(columns);
    let mut out = vec![0.0; rows * cols];
    for (k, column) in q.iter().enumerate() {
        for (i, &x) in column.iter().enumerate() {
            out[if wide { k * cols + i } else { i * cols + k }] = x;
        }
    }
    out
}

/// The Q of `a`'s QR factorisation with a positive diagonal of R. `a`: columns of equal length, at least as long as there are
/// columns, of full rank.
fn orthonormalise(mut a: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = a.len();
    let mut reflectors: Vec<Reflector> = Vec::with_capacity(n);
    for panel in (0..n).step_by(PANEL) {
        let end = (panel + PANEL).min(n);
        for k in panel..end {
            for r in &reflectors[panel..k] {
                r.apply(&mut a[k]);
            }
            reflectors.push(Reflector::new(k, &a[k]));
        }
        for column in &mut a[end..] {
            for r in &reflectors[panel..end] {
                r.apply(column);
            }
        }
    }
    // Column j of Q is H0 H1 ... Hj applied to its unit vector: later reflectors leave it alone.
    for (j, column) in a.iter_mut().enumerate() {
        column.fill(0.0);
        // Reflector j maps its column to -sign · ‖·‖, so R's diagonal is negative where the sign is positive: turn Q's column.
        column[j] = reflectors[j].turn;
    }
    for panel in (0..n).step_by(PANEL).rev() {
        let end = (panel + PANEL).min(n);
        for (j, column) in a.iter_mut().enumerate().skip(panel) {
            for r in reflectors[panel..end.min(j + 1)].iter().rev() {
                r.apply(column);
            }
        }
    }
    a
}

/// x ← x - scale · v (v·x) on elements `first..`.
struct Reflector {
    first: usize,
    v: Vec<f64>,
    scale: f64,
    /// Sign of what the reflection leaves on the diagonal.
    turn: f64,
}

impl Reflector {
    /// The reflection that clears `column` below element `first`.
    fn new(first: usize, column: &[f64]) -> Reflector {
        let mut v = column[first..].to_vec();
        let norm = libm::sqrt(dot(&v, &v));
        let sign = libm::copysign(1.0, v[0]);
        v[0] += sign * norm;
        let square = dot(&v, &v);
        let scale = if square > 0.0 { 2.0 / square } else { 0.0 };
        Reflector { first, v, scale, turn: -sign }
    }

    fn apply(&self, x: &mut [f64]) {
        let x = &mut x[self.first..];
        let factor = -self.scale * dot(&self.v, x);
        x.iter_mut().zip(&self.v).for_each(|(x, v)| *x += factor * v);
    }
}

/// Inner product in one fixed order: eight running sums, then their sum.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7])) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gram_error(q: &[f64], rows: usize, cols: usize) -> f64 {
        let at = |r: usize, c: usize| q[r * cols + c];
        let n = rows.min(cols);
        let mut worst = 0.0f64;
        for i in 0..n {
            for j in 0..=i {
                let inner: f64 = if rows <= cols {
                    (0..cols).map(|c| at(i, c) * at(j, c)).sum()
                } else {
                    (0..rows).map(|r| at(r, i) * at(r, j)).sum()
                };
                worst = worst.max((inner - f64::from(i == j)).abs());
            }
        }
        worst
    }

    #[test]
    fn rows_or_columns_are_orthonormal() {
        for (rows, cols) in [(1, 1), (1, 5), (5, 1), (8, 8), (70, 33), (33, 70), (64, 64), (129, 65)] {
            let q = orthogonal(&Stream::new(3, "q"), rows, cols);
            assert!(gram_error(&q, rows, cols) < 1e-13, "{rows}x{cols}");
        }
    }

    /// QᵀA is R: upper triangular with a positive diagonal. Fails for a wrong sign or order of reflections.
    #[test]
    fn is_the_q_of_qr_with_positive_diagonal() {
        let (rows, cols) = (45, 40);
        let stream = Stream::new(11, "a");
        let a = |r: usize, c: usize| stream.normal_pair((r * cols + c) as u64 / 2)[(r * cols + c) % 2];
        let q = orthogonal(&stream, rows, cols);
        for i in 0..cols {
            for j in 0..cols {
                let r: f64 = (0..rows).map(|k| q[k * cols + i] * a(k, j)).sum();
                match i.cmp(&j) {
                    std::cmp::Ordering::Greater => assert!(r.abs() < 1e-12, "R[{i},{j}] = {r}"),
                    std::cmp::Ordering::Equal => assert!(r > 0.0, "R[{i},{i}] = {r}"),
                    std::cmp::Ordering::Less => {}
                }
            }
        }
    }
}
