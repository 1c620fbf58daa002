//! The register tile: `C[4, 16 nv] += A[4, words] B[words, 16 nv]`, A as broadcast words, B as vectors.

use super::Shape;
use crate::mlir::emit::{Elem, Emit, F32X16, I32X16, Ty, V};

/// Rows of a tile.
pub(super) const ROWS: usize = 4;

/// Runs the contraction over words `lo..hi` for `columns` vectors of 16 (any number; done in pieces that fit the registers).
/// `acc[r * columns + q]` are the starting sums, `a(e, p, r)` the word of row r at contraction index p, `b(e, p, q)` vector q of row p.
pub(super) fn product<'c>(
    e: &Emit<'c>,
    shape: &Shape,
    lo: V<'c>,
    hi: V<'c>,
    columns: usize,
    acc: &[V<'c>],
    a: &dyn Fn(&Emit<'c>, V<'c>, usize) -> V<'c>,
    b: &dyn Fn(&Emit<'c>, V<'c>, usize) -> V<'c>,
) -> Vec<V<'c>> {
    let mut out = acc.to_vec();
    for first in (0..columns).step_by(shape.nv) {
        let nv = shape.nv.min(columns - first);
        let carried: Vec<V> = (0..ROWS * nv).map(|i| acc[(i / nv) * columns + first + i % nv]).collect();
        let done = e.for_(lo, hi, e.i(1), &carried, |e, p, c| {
            let bs: Vec<V> = (0..nv).map(|q| operand(e, shape, b(e, p, first + q))).collect();
            let mut next = Vec::with_capacity(c.len());
            for r in 0..ROWS {
                let word = a(e, p, r);
                let w = operand(e, shape, e.splat(word, 16));
                for (q, &bq) in bs.iter().enumerate() {
                    let sum = c[r * nv + q];
                    next.push(if shape.pairs { e.dot_bf16(sum, w, bq) } else { e.fma(w, bq, sum) });
                }
            }
            next
        });
        for (i, v) in done.into_iter().enumerate() {
            out[(i / nv) * columns + first + i % nv] = v;
        }
    }
    out
}

fn operand<'c>(e: &Emit<'c>, shape: &Shape, v: V<'c>) -> V<'c> {
    if shape.pairs { e.bitcast(v, Ty::vec(32, Elem::Bf16)) } else { v }
}

/// 16 words at a word index.
pub(super) fn load_words<'c>(e: &Emit<'c>, shape: &Shape, base: V<'c>, index: V<'c>) -> V<'c> {
    e.load(e.gep(base, Elem::F32, index), if shape.pairs { I32X16 } else { F32X16 })
}

/// One word at a word index.
pub(super) fn load_word<'c>(e: &Emit<'c>, shape: &Shape, base: V<'c>, index: V<'c>) -> V<'c> {
    e.load(e.gep(base, Elem::F32, index), Ty::of(shape.word()))
}

/// Four rows of vectors at `base[(row + r) * stride + 16 q]` (f32).
pub(super) fn load_tile<'c>(e: &Emit<'c>, base: V<'c>, row: V<'c>, stride: usize, columns: usize) -> Vec<V<'c>> {
    each(e, base, row, stride, columns).into_iter().map(|p| e.load(p, F32X16)).collect()
}

/// Stores what [`load_tile`] loads.
pub(super) fn store_tile<'c>(e: &Emit<'c>, tile: &[V<'c>], base: V<'c>, row: V<'c>, stride: usize, columns: usize) {
    for (v, p) in tile.iter().zip(each(e, base, row, stride, columns)) {
        e.store(*v, p);
    }
}

fn each<'c>(e: &Emit<'c>, base: V<'c>, row: V<'c>, stride: usize, columns: usize) -> Vec<V<'c>> {
    let first = e.gep(base, Elem::F32, e.mul_n(row, stride as i64));
    (0..ROWS)
        .flat_map(|r| (0..columns).map(move |q| (r, q)))
        .map(|(r, q)| e.gep_const(first, Elem::F32, (r * stride + 16 * q) as i64))
        .collect()
}

/// Stores four rows of 64 values as words by row: `base[row + r][64 / per]`, pairs along the columns.
pub(super) fn store_rows<'c>(e: &Emit<'c>, shape: &Shape, tile: &[V<'c>], base: V<'c>, row: V<'c>) {
    let columns = tile.len() / ROWS;
    let stride = 16 * columns / shape.per;
    let first = e.gep(base, Elem::F32, e.mul_n(row, stride as i64));
    for r in 0..ROWS {
        for q in 0..columns {
            let v = tile[r * columns + q];
            let v = if shape.pairs { e.to_bf16(v) } else { v };
            e.store(v, e.gep_const(first, Elem::F32, (r * stride + 16 * q / shape.per) as i64));
        }
    }
}

/// Stores four rows as words by pairs of rows: `base[(row + r) / per][columns]`, pairs along the rows.
pub(super) fn store_row_pairs<'c>(e: &Emit<'c>, shape: &Shape, tile: &[V<'c>], base: V<'c>, row: V<'c>) {
    if !shape.pairs {
        return store_rows(e, shape, tile, base, row);
    }
    let columns = tile.len() / ROWS;
    let first = e.gep(base, Elem::F32, e.mul_n(row, (16 * columns / 2) as i64));
    for r in (0..ROWS).step_by(2) {
        for q in 0..columns {
            let (a, b) = (e.to_bf16(tile[r * columns + q]), e.to_bf16(tile[(r + 1) * columns + q]));
            e.store(e.interleave(a, b), e.gep_const(first, Elem::F32, (r / 2 * 16 * columns + 16 * q) as i64));
        }
    }
}
