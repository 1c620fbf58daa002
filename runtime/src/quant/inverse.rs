//! The factor of an inverse that quantisers with feedback read: see [`InverseFactor`].
//!
//! *Takes* the sum of squares H f32 \[n, n\] of a parameter's inputs, of which only the upper triangle (row <= column) is read; *gives* the order of
//! the columns, which of them live, and U; *promises* arithmetic in f64, and bits that depend neither on the number of threads nor on the machine.
//!
//! With H = R transpose(R), R upper triangular (a Cholesky factorisation from the last row backwards), inverse(H) = transpose(U) U for
//! U = inverse(R), so H itself is never inverted: a third of the work. R and U come out of one sweep over square tiles of the upper triangle, in place, k
//! from the last diagonal tile to the first:
//! - X = inverse(R\[k, k\]), where R\[k, k\] is the factor of A\[k, k\];
//! - N\[i\] = -A\[i, k\] transpose(X) for i < k, which is -R\[i, k\]; U\[k, k\] = X and U\[k, j\] = X A\[k, j\] for j > k are row k of the result;
//! - for i < k: A\[i, j\] -= N\[i\] transpose(N\[j\]) for i <= j < k, what is left to factorise; A\[i, k\] = N\[i\] X and A\[i, j\] += N\[i\] U\[k, j\]
//!   for j > k, the rows of U to be.

use crate::device::Pool;
use crate::plan::InverseFactor;

/// Rows and columns of a tile: three of them are 96 KB.
const SIDE: usize = 64;

/// What a quantiser's graph is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Column that each visit rounds, \[n\].
    pub order: Vec<i32>,
    /// 0 for columns that nothing ever came in through, else 1, \[n\].
    pub live: Vec<f32>,
    /// U \[n, n\], axes in visiting order.
    pub upper: Vec<f32>,
}

/// Row-major \[SIDE, SIDE\].
type Matrix = Vec<f64>;

/// A tile of the upper triangle.
struct Tile {
    row: usize,
    column: usize,
    x: Matrix,
}

/// What step k of the sweep leaves for its last part, per row and column of tiles.
struct Panel {
    /// N\[i\], for rows above k.
    left: Matrix,
    /// What N is multiplied with in column j: -transpose(N\[j\]), X or U\[k, j\].
    right: Matrix,
}

impl Factor {
    /// The factor for `h` \[n, n\], n at least 1. `None`: with that much damping H is not positive definite (or not finite).
    pub fn new(h: &[f32], n: usize, how: &InverseFactor, pool: &mut Pool) -> Option<Factor> {
        let (order, live, tiles) = solve(h, n, how, pool)?;
        let side = n.div_ceil(SIDE);
        let mut upper = vec![0.0; n * n];
        let mut rows: Vec<&mut [f32]> = upper.chunks_mut(SIDE * n).collect();
        pool.each(&mut rows, &|row, out| {
            for (i, out) in out.chunks_mut(n).enumerate() {
                for (column, out) in out.chunks_mut(SIDE).enumerate().skip(row) {
                    let x = &tiles[number(row, column, side)].x[i * SIDE..];
                    out.iter_mut().zip(x).for_each(|(out, &x)| *out = x as f32);
                }
            }
        });
        let fits = (0..n).all(|j| upper[j * n + j] > 0.0) && upper.iter().all(|x| x.is_finite());
        fits.then(|| Factor { order: order.iter().map(|&c| c as i32).collect(), live, upper })
    }
}

/// Order, live columns, and the tiles of U.
fn solve(h: &[f32], n: usize, how: &InverseFactor, pool: &mut Pool) -> Option<(Vec<usize>, Vec<f32>, Vec<Tile>)> {
    let mut diagonal: Vec<f64> = (0..n).map(|c| f64::from(h[c * n + c])).collect();
    let live = diagonal.iter().map(|&d| if d == 0.0 { 0.0 } else { 1.0 }).collect();
    diagonal.iter_mut().filter(|d| **d == 0.0).for_each(|d| *d = 1.0);
    let damping = how.damp * diagonal.iter().sum::<f64>() / n as f64;
    diagonal.iter_mut().for_each(|d| *d += damping);
    let mut order: Vec<usize> = (0..n).collect();
    if how.descending {
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    }
    let at = |i: usize, j: usize| match (order.get(i), order.get(j)) {
        (Some(&a), Some(&b)) if a == b => diagonal[a],
        (Some(&a), Some(&b)) => f64::from(h[a.min(b) * n + a.max(b)]),
        // The last tiles are filled up with rows of the identity, which stay what they are and change nothing else.
        _ => f64::from(u8::from(i == j)),
    };
    let side = n.div_ceil(SIDE);
    let places = (0..side).flat_map(|row| (row..side).map(move |column| (row, column)));
    let mut tiles: Vec<Tile> = places.map(|(row, column)| Tile { row, column, x: Matrix::new() }).collect();
    pool.each(&mut tiles, &|_, tile| {
        let elements = (0..SIDE * SIDE).map(|e| (tile.row * SIDE + e / SIDE, tile.column * SIDE + e % SIDE));
        tile.x = elements.map(|(i, j)| if i <= j { at(i, j) } else { 0.0 }).collect();
    });
    sweep(&mut tiles, side, pool)?;
    Some((order, live, tiles))
}

/// Place in the list of the tiles of the upper triangle, row after row.
fn number(row: usize, column: usize, side: usize) -> usize {
    row * side - row * row.saturating_sub(1) / 2 + column - row
}

/// Replaces A by U, see the module's head. `None`: a pivot is not positive and finite.
fn sweep(tiles: &mut [Tile], side: usize, pool: &mut Pool) -> Option<()> {
    let zeros = || vec![0.0; SIDE * SIDE];
    let mut panels: Vec<Panel> = (0..side).map(|_| Panel { left: zeros(), right: zeros() }).collect();
    for k in (0..side).rev() {
        let x = &mut tiles[number(k, k, side)].x;
        invert(x)?;
        let x = x.clone();
        let minus_turned = turned(&x, -1.0);
        pool.each(&mut panels, &|j, panel| {
            if j < k {
                panel.left.fill(0.0);
                multiply_add(&mut panel.left, &tiles[number(j, k, side)].x, &minus_turned);
                panel.right = turned(&panel.left, -1.0);
            } else if j == k {
                panel.right.clone_from(&x);
            } else {
                panel.right.fill(0.0);
                multiply_add(&mut panel.right, &x, &tiles[number(k, j, side)].x);
            }
        });
        let (above, rest) = tiles.split_at_mut(number(k, k, side));
        pool.each(above, &|_, tile| {
            if tile.column == k {
                tile.x.fill(0.0);
            }
            multiply_add(&mut tile.x, &panels[tile.row].left, &panels[tile.column].right);
        });
        for (tile, panel) in rest.iter_mut().zip(&panels[k..]) {
            tile.x.clone_from(&panel.right);
        }
    }
    Some(())
}

/// The sweep within one tile, of which what lies below the diagonal is not read, and zero afterwards. `None`: a pivot is not positive and finite.
fn invert(a: &mut [f64]) -> Option<()> {
    let mut row = [0.0; SIDE];
    for k in (0..SIDE).rev() {
        let pivot = a[k * SIDE + k];
        if !(pivot > 0.0 && pivot < f64::INFINITY) {
            return None;
        }
        let x = 1.0 / libm::sqrt(pivot);
        for j in 0..SIDE {
            row[j] = x * if j < k { a[j * SIDE + k] } else { a[k * SIDE + j] };
        }
        row[k] = x;
        for i in 0..k {
            a[i * SIDE + k] = 0.0;
            for j in i..SIDE {
                a[i * SIDE + j] -= row[i] * row[j];
            }
        }
        row[..k].fill(0.0);
        a[k * SIDE..][..SIDE].copy_from_slice(&row);
    }
    Some(())
}

/// Rows as columns, times `factor`.
fn turned(a: &[f64], factor: f64) -> Matrix {
    (0..SIDE * SIDE).map(|e| factor * a[e % SIDE * SIDE + e / SIDE]).collect()
}

/// c += a b.
fn multiply_add(c: &mut [f64], a: &[f64], b: &[f64]) {
    /// Rows and columns of c whose sums are kept in registers.
    const BLOCK: (usize, usize) = (4, 4);
    for i in (0..SIDE).step_by(BLOCK.0) {
        for j in (0..SIDE).step_by(BLOCK.1) {
            let mut sums = [[0.0; BLOCK.1]; BLOCK.0];
            for p in 0..SIDE {
                let b = &b[p * SIDE + j..][..BLOCK.1];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = a[(i + r) * SIDE + p];
                    sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                let c = &mut c[(i + r) * SIDE + j..][..BLOCK.1];
                c.iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn how(damp: f64, descending: bool) -> InverseFactor {
        InverseFactor { tap: "tap.x".into(), damp, descending }
    }

    fn factor(h: &[f32], n: usize, damp: f64, descending: bool) -> Option<Factor> {
        Factor::new(h, n, &how(damp, descending), &mut Pool::new(2).unwrap())
    }

    /// Sums of squares of 2 n + 1 normal inputs, input c times `scale(c)`.
    fn squares(n: usize, scale: impl Fn(usize) -> f64) -> Vec<f32> {
        let stream = Stream::new(n as u64, "inputs");
        let x = |t: usize, c: usize| stream.normal_pair((t * n + c) as u64)[0] * scale(c);
        let inputs: Vec<Vec<f64>> = (0..2 * n + 1).map(|t| (0..n).map(|c| x(t, c)).collect()).collect();
        let sum = |i: usize, j: usize| inputs.iter().map(|x| x[i] * x[j]).sum::<f64>() as f32;
        (0..n * n).map(|e| sum(e / n, e % n)).collect()
    }

    /// transpose(U) U H = I, H damped and reordered by plain loops; the rest of U is zero; and what is handed out is U rounded.
    #[test]
    fn its_square_is_the_inverse() {
        for n in [1, 2, 3, 63, 64, 65, 130, 200] {
            let h = squares(n, |c| 1.0 + (c * 7 % 5) as f64);
            let mean = (0..n).map(|c| f64::from(h[c * n + c])).sum::<f64>() / n as f64;
            for descending in [false, true] {
                let (order, live, tiles) = solve(&h, n, &how(0.01, descending), &mut Pool::new(2).unwrap()).unwrap();
                assert_eq!(live, vec![1.0; n]);
                let side = n.div_ceil(SIDE);
                let u = |i: usize, j: usize| match (i / SIDE, j / SIDE) {
                    (row, column) if row <= column => tiles[number(row, column, side)].x[i % SIDE * SIDE + j % SIDE],
                    _ => 0.0,
                };
                let damped = |i: usize, j: usize| {
                    let sum = f64::from(h[order[i] * n + order[j]]);
                    if i == j { sum + 0.01 * mean } else { sum }
                };
                let mut worst = 0.0f64;
                for j in 0..n {
                    let uh: Vec<f64> = (0..n).map(|i| (0..n).map(|k| u(i, k) * damped(k, j)).sum()).collect();
                    for i in 0..n {
                        let product: f64 = (0..n).map(|k| u(k, i) * uh[k]).sum();
                        worst = worst.max((product - f64::from(u8::from(i == j))).abs());
                    }
                }
                assert!(worst < 1e-9, "{n} {descending}: {worst}");
                let f = factor(&h, n, 0.01, descending).unwrap();
                for (i, j) in (0..n * n).map(|e| (e / n, e % n)) {
                    assert_eq!(f.upper[i * n + j], u(i, j) as f32, "{n} {i} {j}");
                    assert!(if i > j { u(i, j) == 0.0 } else { i < j || u(i, j) > 0.0 }, "{n} {i} {j}");
                }
                assert_eq!(f.order.iter().map(|&c| c as usize).collect::<Vec<_>>(), order);
            }
        }
    }

    #[test]
    fn columns_by_descending_diagonal_and_ties_by_number() {
        let diagonal = [2.0, 0.0, 3.0, 2.0, 5.0, 1.0];
        let h: Vec<f32> = (0..36).map(|e| if e % 7 == 0 { diagonal[e / 7] } else { 0.0 }).collect();
        let f = factor(&h, 6, 0.5, true).unwrap();
        // Column 1 is dead and counts as 1, before column 5, whose diagonal is 1.
        assert_eq!(f.order, [4, 2, 0, 3, 1, 5]);
        assert_eq!(f.live, [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
        let mean = (2.0 + 1.0 + 3.0 + 2.0 + 5.0 + 1.0) / 6.0;
        for (visit, diagonal) in [5.0, 3.0, 2.0, 2.0, 1.0, 1.0].into_iter().enumerate() {
            let expected = (1.0 / libm::sqrt(diagonal + 0.5 * mean)) as f32;
            assert!((f.upper[visit * 7] - expected).abs() < 1e-7, "{visit}");
        }
        assert_eq!(factor(&h, 6, 0.5, false).unwrap().order, [0, 1, 2, 3, 4, 5]);
    }

    /// A dead column has zeros beside its diagonal and leaves the others' factor what it is without it, but for the damping.
    #[test]
    fn a_dead_column_touches_no_other() {
        let n = 70;
        let whole = squares(n, |c| f64::from(u8::from(c != 66)));
        let f = factor(&whole, n, 0.0, false).unwrap();
        let keep: Vec<usize> = (0..n).filter(|&c| c != 66).collect();
        let part: Vec<f32> =
            keep.iter().flat_map(|&i| keep.iter().map(move |&j| (i, j))).map(|(i, j)| whole[i * n + j]).collect();
        let expected = factor(&part, n - 1, 0.0, false).unwrap();
        assert_eq!((f.live[66], f.upper[66 * n + 66]), (0.0, 1.0));
        for (i, &a) in keep.iter().enumerate() {
            for (j, &b) in keep.iter().enumerate() {
                let (found, expected) = (f.upper[a * n + b], expected.upper[i * (n - 1) + j]);
                assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1e-3), "{a} {b}: {found} {expected}");
            }
            assert_eq!((f.upper[a * n + 66], f.upper[66 * n + a]), (0.0, 0.0));
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads_nor_on_the_lower_triangle() {
        let n = 200;
        let h = squares(n, |c| 1.0 + (c % 3) as f64);
        let mut half = h.clone();
        (0..n * n).filter(|e| e / n > e % n).for_each(|e| half[e] = f32::NAN);
        let expected = Factor::new(&h, n, &how(0.01, true), &mut Pool::new(1).unwrap()).unwrap();
        for threads in [1, 2, 3, 7] {
            let found = Factor::new(&half, n, &how(0.01, true), &mut Pool::new(threads).unwrap()).unwrap();
            assert!(found == expected, "{threads} threads");
        }
    }

    #[test]
    fn what_has_no_factor_is_refused() {
        let n = 130;
        let good = squares(n, |_| 1.0);
        for (row, column) in [(0, 0), (3, 100), (129, 129)] {
            for bad in [f32::NAN, f32::INFINITY, -1e9] {
                let mut h = good.clone();
                h[row * n + column] = bad;
                assert!(factor(&h, n, 0.01, true).is_none(), "{row} {column} {bad}");
            }
        }
        // One input only: rank 1, which damping mends.
        let flat = vec![1.0; n * n];
        assert!(factor(&flat, n, 0.0, false).is_none());
        assert!(factor(&flat, n, 0.01, false).is_some());
        assert!(factor(&vec![0.0; n * n], n, 0.0, false).unwrap().live.iter().all(|&x| x == 0.0));
    }
}
