//! Forward: for a block of 64 queries, walk the key blocks in ascending order with a running maximum and sum per row.

use super::super::args::Args;
use super::finish::Line;
use super::mask::{Documents, Mask, where_met};
use super::pack::at_rows;
use super::tile::{ROWS, load_tile, load_word, load_words, product, store_rows, store_tile};
use super::{Shape, div_rem, head};
use crate::kernel::attend::BLOCK;
use crate::mlir::emit::{Elem, Emit, F32, F32X16, Ty, V};
use crate::mlir::{epilogue, math};

/// Score of a masked key, in base-2 units: far below any real score and finite.
const MASKED: f64 = -1e30;

/// Task = (query head over batch, block of queries).
pub(super) fn emit<'c>(e: &Emit<'c>, shape: &Shape, task: V<'c>, args: &[V<'c>], scratch: V<'c>) {
    let (k, s) = (shape.k, &shape.s);
    let n = k.accesses().len();
    let (q_rows, k_cols, v_rows) = (args[n], args[n + 1], args[n + 2]);
    let (hq, block) = div_rem(e, task, s.blocks);
    let (hkv, g) = div_rem(e, hq, k.group);
    let (b, kv) = div_rem(e, hkv, k.kv);
    let first = e.mul_n(block, BLOCK as i64);

    let out = scratch;
    let max = e.gep_const(out, Elem::F32, (BLOCK * s.dim) as i64);
    let sum = e.gep_const(max, Elem::F32, BLOCK as i64);
    let p = e.gep_const(sum, Elem::F32, (16 * BLOCK) as i64);
    e.each(0, (BLOCK * s.dim) as i64, 16, |e, i| e.store(e.zero(F32X16), e.gep(out, Elem::F32, i)));
    e.each(0, BLOCK as i64, 1, |e, i| {
        e.store(e.fconst(F32, MASKED), e.gep(max, Elem::F32, i));
        e.store(e.zero(F32X16), e.gep(sum, Elem::F32, e.mul_n(i, 16)));
    });

    let q = at_rows(e, shape, q_rows, hq, first);
    let documents = Documents::new(e, shape, args, hkv);
    let own = documents.map(|d| (d, d.range(e, block)));
    let one = |e: &Emit<'c>, j: V<'c>, masked: bool| {
        let index = e.add(e.mul_n(hkv, s.blocks as i64), j);
        let keys = e.gep(k_cols, Elem::F32, e.mul_n(index, (shape.row() * BLOCK) as i64));
        let values = e.gep(v_rows, Elem::F32, e.mul_n(index, (BLOCK / shape.per * s.dim) as i64));
        let mask = masked.then_some(Mask { first, keys: j, documents });
        e.each(0, BLOCK as i64, ROWS as i64, |e, r| step(e, shape, r, q, keys, values, [out, max, sum, p], mask));
    };
    let walk = |e: &Emit<'c>, lo: V<'c>, hi: V<'c>, masked: bool| {
        e.for_(lo, hi, e.i(1), &[], |e, j, _| {
            where_met(e, own, j, |e| one(e, j, masked));
            vec![]
        });
    };
    let (lo, edge, hi) = key_blocks(e, shape, block);
    walk(e, lo, edge, k.window.is_some() || k.document);
    walk(e, edge, hi, true);

    let y = k.epilogue.is_none().then(|| head(e, args[k.lse() - 1], shape.elem, &k.y, b, kv, g));
    let lse_at = e.add(e.mul_n(b, (k.time * k.kv * k.group) as i64), e.add(e.mul_n(kv, k.group as i64), g));
    let rows_left = e.sub(e.i(k.time as i64), first);
    let rows = e.min(rows_left, e.i(BLOCK as i64));
    e.for_(e.i(0), rows, e.i(1), &[], |e, r, _| {
        let total = e.reduce(e.load(e.gep(sum, Elem::F32, e.mul_n(r, 16)), F32X16), |a, b| e.add(a, b));
        let inverse = e.splat(e.div(e.fconst(F32, 1.0), total), 16);
        let t = e.add(first, r);
        let from = e.gep(out, Elem::F32, e.mul_n(r, s.dim as i64));
        let part = |c: usize| e.mul(e.load(e.gep_const(from, Elem::F32, c as i64), F32X16), inverse);
        if let Some(y) = y {
            let to = e.gep(y, shape.elem, e.mul_n(t, k.y.time));
            for c in (0..k.dim).step_by(16) {
                store_values(e, shape, part(c), e.gep_const(to, shape.elem, c as i64), k.dim - c);
            }
        }
        if let Some(p) = &k.epilogue {
            let results = (0..k.dim).step_by(16).map(part).collect();
            let args = Args { body: &p.body, args: &p.args, pointers: &args[k.lse() + 1..n] };
            let line = Line { k, args, heads: [b, kv, g], row: t, results };
            epilogue::store(e, &p.body, &line, &epilogue::evaluate(e, &p.body, &line));
        }
        // Natural units: (max + log2 sum) ln 2 = max ln 2 + ln sum.
        let ln = e.extract(math::log(e, e.splat(total, 16)), 0);
        let m = e.load(e.gep(max, Elem::F32, r), F32);
        let lse = e.fma(m, e.fconst(F32, std::f64::consts::LN_2), ln);
        e.store(lse, e.gep(args[k.lse()], Elem::F32, e.add(lse_at, e.mul_n(t, (k.kv * k.group) as i64))));
        vec![]
    });
}

/// Key blocks a query block sees: `lo..edge` need no causal or end mask, `edge..hi` do.
pub(super) fn key_blocks<'c>(e: &Emit<'c>, shape: &Shape, block: V<'c>) -> (V<'c>, V<'c>, V<'c>) {
    let k = shape.k;
    let lo = match k.window {
        // Oldest key of the first row: first - (window - 1).
        Some(w) => e.divu(e.max(e.add_n(e.mul_n(block, BLOCK as i64), 1 - w as i64), e.i(0)), e.i(BLOCK as i64)),
        None => e.i(0),
    };
    if k.causal {
        (lo, block, e.add_n(block, 1))
    } else {
        let whole = e.i((k.time / BLOCK) as i64);
        (lo, e.max(lo, whole), e.i(shape.s.blocks as i64))
    }
}

/// Four rows against one key block: scores, new maximum, probabilities, output.
fn step<'c>(
    e: &Emit<'c>,
    shape: &Shape,
    r: V<'c>,
    q: V<'c>,
    keys: V<'c>,
    values: V<'c>,
    state: [V<'c>; 4],
    mask: Option<Mask<'c>>,
) {
    let s = &shape.s;
    let [out, max, sum, p] = state;
    let zero = e.zero(F32X16);
    let scores = product(
        e,
        shape,
        e.i(0),
        e.i(shape.words() as i64),
        4,
        &[zero; 16],
        &|e, w, i| load_word(e, shape, q, e.add(e.mul_n(e.add_n(r, i as i64), shape.row() as i64), w)),
        &|e, w, c| load_words(e, shape, keys, e.add_n(e.mul_n(w, BLOCK as i64), 16 * c as i64)),
    );

    let scale = e.fconst(F32X16, shape.to_base2());
    let mut probabilities = Vec::with_capacity(16);
    let mut factors = Vec::with_capacity(ROWS);
    for i in 0..ROWS {
        let mut x: Vec<V> = (0..4).map(|c| e.mul(scores[4 * i + c], scale)).collect();
        let lanes: Option<Vec<V>> = mask.map(|m| {
            let row = e.add(m.first, e.add_n(r, i as i64));
            (0..4).map(|c| m.visible(e, shape, row, c)).collect()
        });
        if let Some(lanes) = &lanes {
            x = x.iter().zip(lanes).map(|(&x, &ok)| e.select(ok, x, e.fconst(F32X16, MASKED))).collect();
        }
        let best = e.max(e.max(x[0], x[1]), e.max(x[2], x[3]));
        let at = e.gep(max, Elem::F32, e.add_n(r, i as i64));
        let old = e.load(at, F32);
        let new = e.max(old, e.reduce(best, |a, b| e.max(a, b)));
        e.store(new, at);
        let new = e.splat(new, 16);
        let factor = exp2(e, e.sub(e.splat(old, 16), new));
        let row: Vec<V> = x
            .iter()
            .enumerate()
            .map(|(c, &x)| {
                let y = exp2(e, e.sub(x, new));
                lanes.as_ref().map_or(y, |l| e.select(l[c], y, zero))
            })
            .collect();
        let at = e.gep(sum, Elem::F32, e.mul_n(e.add_n(r, i as i64), 16));
        let mut total = e.mul(e.load(at, F32X16), factor);
        for &x in &row {
            total = e.add(total, x);
        }
        e.store(total, at);
        probabilities.extend(row);
        factors.push(factor);
    }
    store_rows(e, shape, &probabilities, p, e.i(0));

    let columns = s.dim / 16;
    let old = load_tile(e, out, r, s.dim, columns);
    let start: Vec<V> = old.iter().enumerate().map(|(i, &v)| e.mul(v, factors[i / columns])).collect();
    let stride = (BLOCK / shape.per) as i64;
    let next = product(
        e,
        shape,
        e.i(0),
        e.i(stride),
        columns,
        &start,
        &|e, w, i| load_word(e, shape, p, e.add_n(w, i as i64 * stride)),
        &|e, w, c| load_words(e, shape, values, e.add_n(e.mul_n(w, s.dim as i64), 16 * c as i64)),
    );
    store_tile(e, &next, out, r, s.dim, columns);
}

/// Stores up to 16 values in the storage type; `left` is how many belong to the row.
pub(super) fn store_values<'c>(e: &Emit<'c>, shape: &Shape, v: V<'c>, to: V<'c>, left: usize) {
    let n = left.min(16) as u32;
    if shape.elem == Elem::Bf16 {
        let narrow = e.to_bf16(v);
        let words = e.bitcast(narrow, Ty::vec(8, Elem::I32));
        if n == 16 { e.store(words, to) } else { e.masked_store(words, to, e.first_lanes(8, n / 2)) }
    } else if n == 16 {
        e.store(v, to);
    } else {
        e.masked_store(v, to, e.first_lanes(16, n));
    }
}

/// 2^x for x at most about 0, 2^-126 below the normal range.
pub(super) fn exp2<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    math::exp2_normal(e, e.max(x, e.fconst(F32X16, -126.0)))
}
