//! Backward in one pass: for each key block, all query blocks that see it; scores and probabilities are recomputed from lse.
//!
//! Per 64×64 tile: S = q kᵀ, P = 2^(S·scale·log2e − lse), dP = dy vᵀ, dS = P (dP − delta) scale; dq += dS k, dv += Pᵀ dy, dk += dSᵀ q.
//! No transpose of P or dS is needed: the A operand of Pᵀ and dSᵀ is four neighbouring words of a buffer row.

use super::forward::{exp2, store_values};
use super::mask::{Documents, Mask, where_met};
use super::pack::at_rows;
use super::tile::{ROWS, load_tile, load_word, load_words, product, store_row_pairs, store_rows, store_tile};
use super::{Shape, div_rem, head};
use crate::kernel::attend::{BLOCK, Strides};
use crate::mlir::emit::{Elem, Emit, F32, F32X16, V};

/// Task = kv head over batch.
pub(super) fn emit<'c>(e: &Emit<'c>, shape: &Shape, task: V<'c>, args: &[V<'c>], scratch: V<'c>) {
    let (k, s) = (shape.k, &shape.s);
    let n = k.accesses().len();
    let t = &args[n..];
    let (hkv, (b, kv)) = (task, div_rem(e, task, k.kv));
    let columns = s.dim / 16;

    let dk = scratch;
    let dv = e.gep_const(dk, Elem::F32, (BLOCK * s.dim) as i64);
    let tile = e.gep_const(dv, Elem::F32, (BLOCK * s.dim) as i64);
    // Probabilities and score gradients by pairs of queries, score gradients by rows (the same buffer in f32).
    let (p, ds) = (tile, e.gep_const(tile, Elem::F32, (BLOCK * BLOCK) as i64));
    let ds_rows = if shape.pairs { e.gep_const(ds, Elem::F32, (BLOCK * BLOCK) as i64) } else { ds };

    let documents = Documents::new(e, shape, args, hkv);

    let dq_words = (k.group * s.time * s.dim) as i64;
    let dq_first = e.gep(t[9], Elem::F32, e.mul_n(hkv, dq_words));
    e.each(0, dq_words, 16, |e, i| e.store(e.zero(F32X16), e.gep(dq_first, Elem::F32, i)));

    e.each(0, s.blocks as i64, 1, |e, j| {
        e.each(0, 2 * (BLOCK * s.dim) as i64, 16, |e, i| e.store(e.zero(F32X16), e.gep(dk, Elem::F32, i)));
        let index = e.add(e.mul_n(hkv, s.blocks as i64), j);
        let panel = e.mul_n(index, (shape.row() * BLOCK) as i64);
        let (keys, values) = (e.gep(t[2], Elem::F32, panel), e.gep(t[3], Elem::F32, panel));
        let key_rows = e.gep(t[4], Elem::F32, e.mul_n(index, (BLOCK / shape.per * s.dim) as i64));
        let (lo, edge, hi) = query_blocks(e, shape, j);
        let own = documents.map(|d| (d, d.range(e, j)));
        e.each(0, k.group as i64, 1, |e, g| {
            let hq = e.add(e.mul_n(hkv, k.group as i64), g);
            let one = |e: &Emit<'c>, i: V<'c>, masked: bool| {
                let first = e.mul_n(i, BLOCK as i64);
                let at = e.add(e.mul_n(hq, s.time as i64), first);
                let by_position = e.mul_n(e.divu(at, e.i(shape.per as i64)), s.dim as i64);
                let block = Block {
                    q: at_rows(e, shape, t[0], hq, first),
                    dy: at_rows(e, shape, t[1], hq, first),
                    q_by: e.gep(t[5], Elem::F32, by_position),
                    dy_by: e.gep(t[6], Elem::F32, by_position),
                    delta: e.gep(t[7], Elem::F32, at),
                    lse: e.gep(t[8], Elem::F32, at),
                    dq: e.gep(t[9], Elem::F32, e.mul_n(at, s.dim as i64)),
                };
                let mask = masked.then_some(Mask { first, keys: j, documents });
                e.each(0, BLOCK as i64, ROWS as i64, |e, r| {
                    scores(e, shape, &block, r, keys, values, [p, ds, ds_rows], mask);
                });
                // dq: four rows of dS times the keys.
                e.each(0, BLOCK as i64, ROWS as i64, |e, r| {
                    let words = (BLOCK / shape.per) as i64;
                    let start = load_tile(e, block.dq, r, s.dim, columns);
                    let sum = product(
                        e,
                        shape,
                        e.i(0),
                        e.i(words),
                        columns,
                        &start,
                        &|e, w, i| load_word(e, shape, ds_rows, e.add(e.mul_n(e.add_n(r, i as i64), words), w)),
                        &|e, w, c| load_words(e, shape, key_rows, e.add_n(e.mul_n(w, s.dim as i64), 16 * c as i64)),
                    );
                    store_tile(e, &sum, block.dq, r, s.dim, columns);
                });
                // dv and dk: four keys, contraction over the queries.
                for (to, left, right) in [(dv, p, block.dy_by), (dk, ds, block.q_by)] {
                    e.each(0, BLOCK as i64, ROWS as i64, |e, r| {
                        let start = load_tile(e, to, r, s.dim, columns);
                        let sum = product(
                            e,
                            shape,
                            e.i(0),
                            e.i((BLOCK / shape.per) as i64),
                            columns,
                            &start,
                            &|e, w, i| load_word(e, shape, left, e.add(e.mul_n(w, BLOCK as i64), e.add_n(r, i as i64))),
                            &|e, w, c| load_words(e, shape, right, e.add_n(e.mul_n(w, s.dim as i64), 16 * c as i64)),
                        );
                        store_tile(e, &sum, to, r, s.dim, columns);
                    });
                }
            };
            let walk = |e: &Emit<'c>, lo: V<'c>, hi: V<'c>, masked: bool| {
                e.for_(lo, hi, e.i(1), &[], |e, i, _| {
                    where_met(e, own, i, |e| one(e, i, masked));
                    vec![]
                });
            };
            walk(e, lo, edge, true);
            walk(e, edge, hi, k.window.is_some() || !k.causal || k.document);
        });
        let rows = e.min(e.sub(e.i(k.time as i64), e.mul_n(j, BLOCK as i64)), e.i(BLOCK as i64));
        let first = e.mul_n(j, BLOCK as i64);
        for (from, arg, strides) in [(dk, args[n - 2], &k.dk), (dv, args[n - 1], &k.dv)] {
            let to = head(e, arg, shape.elem, strides, b, kv, e.i(0));
            write_rows(e, shape, from, to, strides, first, rows);
        }
    });
    e.each(0, k.group as i64, 1, |e, g| {
        let from = e.gep(dq_first, Elem::F32, e.mul_n(g, (s.time * s.dim) as i64));
        let to = head(e, args[n - 3], shape.elem, &k.dq, b, kv, g);
        write_rows(e, shape, from, to, &k.dq, e.i(0), e.i(k.time as i64));
    });
}

/// What belongs to one block of queries of one head.
struct Block<'c> {
    q: V<'c>,
    dy: V<'c>,
    q_by: V<'c>,
    dy_by: V<'c>,
    delta: V<'c>,
    lse: V<'c>,
    dq: V<'c>,
}

/// Query blocks that see key block j: `lo..edge` need the causal mask, `edge..hi` do not.
fn query_blocks<'c>(e: &Emit<'c>, shape: &Shape, j: V<'c>) -> (V<'c>, V<'c>, V<'c>) {
    let (k, blocks) = (shape.k, e.i(shape.s.blocks as i64));
    let hi = match k.window {
        // Newest query of the last key: 64 j + 63 + window - 1.
        Some(w) => e.min(
            blocks,
            e.add_n(e.divu(e.add_n(e.mul_n(j, BLOCK as i64), (BLOCK + w as usize) as i64 - 2), e.i(BLOCK as i64)), 1),
        ),
        None => blocks,
    };
    if k.causal { (j, e.min(e.add_n(j, 1), hi), hi) } else { (e.i(0), e.i(0), hi) }
}

/// P, dP and dS of four rows against 64 keys, stored in the layouts of the three products.
fn scores<'c>(
    e: &Emit<'c>,
    shape: &Shape,
    block: &Block<'c>,
    r: V<'c>,
    keys: V<'c>,
    values: V<'c>,
    to: [V<'c>; 3],
    mask: Option<Mask<'c>>,
) {
    let [p_to, ds_to, ds_rows_to] = to;
    let zero = e.zero(F32X16);
    let words = e.i(shape.words() as i64);
    let tile = |rows: V<'c>, panel: V<'c>| {
        product(
            e,
            shape,
            e.i(0),
            words,
            4,
            &[zero; 16],
            &|e, w, i| load_word(e, shape, rows, e.add(e.mul_n(e.add_n(r, i as i64), shape.row() as i64), w)),
            &|e, w, c| load_words(e, shape, panel, e.add_n(e.mul_n(w, BLOCK as i64), 16 * c as i64)),
        )
    };
    let s = tile(block.q, keys);
    let to_base2 = e.fconst(F32X16, shape.to_base2());
    let mut p = Vec::with_capacity(16);
    for i in 0..ROWS {
        let lse = e.load(e.gep(block.lse, Elem::F32, e.add_n(r, i as i64)), F32);
        let minus = e.splat(e.neg(lse), 16);
        for c in 0..4 {
            let mut x = exp2(e, e.fma(s[4 * i + c], to_base2, minus));
            if let Some(mask) = mask {
                let row = e.add(mask.first, e.add_n(r, i as i64));
                x = e.select(mask.visible(e, shape, row, c), x, zero);
            }
            p.push(x);
        }
    }
    store_row_pairs(e, shape, &p, p_to, r);
    let dp = tile(block.dy, values);
    let scale = e.fconst(F32X16, shape.k.scale.get());
    let mut ds = Vec::with_capacity(16);
    for i in 0..ROWS {
        let delta = e.splat(e.load(e.gep(block.delta, Elem::F32, e.add_n(r, i as i64)), F32), 16);
        for c in 0..4 {
            ds.push(e.mul(e.mul(p[4 * i + c], scale), e.sub(dp[4 * i + c], delta)));
        }
    }
    store_row_pairs(e, shape, &ds, ds_to, r);
    if shape.pairs {
        store_rows(e, shape, &ds, ds_rows_to, r);
    }
}

/// Rows of `[.., padded dim]` f32 to a strided operand, rounded to the storage type.
fn write_rows<'c>(e: &Emit<'c>, shape: &Shape, from: V<'c>, to: V<'c>, strides: &Strides, first: V<'c>, rows: V<'c>) {
    e.for_(e.i(0), rows, e.i(1), &[], |e, r, _| {
        let row = e.gep(from, Elem::F32, e.mul_n(r, shape.s.dim as i64));
        let out = e.gep(to, shape.elem, e.mul_n(e.add(first, r), strides.time));
        for c in (0..shape.k.dim).step_by(16) {
            let v = e.load(e.gep_const(row, Elem::F32, c as i64), F32X16);
            store_values(e, shape, v, e.gep_const(out, shape.elem, c as i64), shape.k.dim - c);
        }
        vec![]
    });
}
