//! The backward pass: row statistics, gradients of keys and values, gradients of queries.
//!
//! *Takes* q, k, v, y, the log-sum-exp and dy; *gives* dq, dk, dv; *promises* that each is the sum of one warpgroup, in a fixed order.
//!
//! With `P = exp(scale q k - lse)` and `dP = dy v`: `dS = P (dP - delta)`, `delta` the row's `dy y`; `dv = P' dy`, `dk = scale dS' q`, `dq = scale dS k`. In both loops
//! the last product of a tile runs while the scores of the next are made.

use std::f64::consts::LOG2_E;

use super::documents::{Documents, tiles};
use super::parts::{Block, Element, Mask, Place, Tensor, keys_of, pack_all, queries_of, unpack_all};
use crate::kernel::attend::{AttendKernel, Strides};
use crate::kernel::gpu::attend::{COLUMNS, DELTA_ROWS, DELTA_THREADS, Order, ROWS, Shape, padded};
use crate::mlir::emit::{Cmp, Elem, Emit, F32, I32, Ty, Unit, V};
use crate::mlir::gpu::ops;

/// Elements of a row that one thread of `delta` takes.
const LANE: usize = 8;

/// Statistics of each query row, f32 \[head, 2, padded rows\]: log-sum-exp in units of log 2 (infinite for rows that are not there or see nothing: their
/// probabilities are zero), and `dy y`.
pub(super) fn delta(unit: &Unit, k: &AttendKernel, symbol: &str) {
    unit.gpu_kernel(symbol, 4, 0, DELTA_THREADS, |e, args, _| {
        let n = |n: usize| e.iconst(I32, n as i64);
        let (y, dy, lse, out) = (args[0], args[1], args[2], args[3]);
        let tiles = padded(k) / DELTA_ROWS;
        let (head, tile) = (e.divu(ops::block(e), n(tiles)), e.remu(ops::block(e), n(tiles)));
        let (rest, group) = (e.divu(head, n(k.group)), e.remu(head, n(k.group)));
        let (batch, kv) = (e.divu(rest, n(k.kv)), e.remu(rest, n(k.kv)));
        // Threads of one row.
        let team = if k.dim <= COLUMNS { 8 } else { 16 };
        let thread = ops::thread(e, DELTA_THREADS);
        let (mine, lane) = (e.divu(thread, n(team)), e.remu(thread, n(team)));
        let column = e.mul_n(lane, LANE as i64);
        let rows = DELTA_THREADS as usize / team;
        let start = |s: &Strides| {
            let parts = [(batch, s.batch), (kv, s.kv), (group, s.group), (column, 1)];
            parts.iter().fold(e.i(s.offset), |sum, &(x, by)| e.add(sum, e.mul_n(wide(e, x), by)))
        };
        let (from_y, from_dy) = (start(&k.y), start(&k.dy));
        for pass in 0..DELTA_ROWS / rows {
            let row = e.add(e.mul_n(tile, DELTA_ROWS as i64), e.add_n(mine, (pass * rows) as i64));
            let there = e.cmp(Cmp::Lt, row, n(k.time));
            let reads = e.and(there, e.cmp(Cmp::Lt, column, n(k.dim)));
            let sum = e.if_(
                reads,
                &[F32],
                |e| {
                    let get = |p, from, s: &Strides| {
                        let at = e.gep(p, Elem::Bf16, e.add(from, e.mul_n(wide(e, row), s.time)));
                        e.from_bf16(e.load_aligned(at, Ty::vec(LANE as u32, Elem::Bf16), 16))
                    };
                    let both = e.mul(get(y, from_y, &k.y), get(dy, from_dy, &k.dy));
                    vec![e.reduce(both, |a, b| e.add(a, b))]
                },
                |e| vec![e.zero(F32)],
            )[0];
            let masks = [1, 2, 4, 8];
            let sum =
                masks[..if team == 8 { 3 } else { 4 }].iter().fold(sum, |x, &m| e.add(x, ops::shuffle_xor(e, x, m)));
            e.when(e.cmp(Cmp::Eq, lane, n(0)), |e| {
                let infinite = e.fconst(F32, f64::INFINITY);
                let stored = e.if_(
                    there,
                    &[F32],
                    |e| {
                        let at = e.add(
                            e.mul_n(e.add(e.mul_n(wide(e, batch), k.time as i64), wide(e, row)), k.kv as i64),
                            wide(e, kv),
                        );
                        let at = e.add(e.mul_n(at, k.group as i64), wide(e, group));
                        vec![e.load(e.gep(lse, Elem::F32, at), F32)]
                    },
                    |_| vec![infinite],
                )[0];
                let blind = e.cmp(Cmp::Eq, stored, e.fconst(F32, f64::NEG_INFINITY));
                let log = e.select(blind, infinite, e.mul(stored, e.fconst(F32, LOG2_E)));
                let at = e.add(e.mul_n(wide(e, head), 2 * padded(k) as i64), wide(e, row));
                let at = e.gep(out, Elem::F32, at);
                e.store(log, at);
                e.store(sum, e.gep_const(at, Elem::F32, padded(k) as i64));
            });
        }
    });
}

fn wide<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    e.zero_extend(x, Elem::I64)
}

/// `P` of one tile: elements of the accumulator, `log` the negated statistics of each.
pub(super) fn probabilities<'c>(
    e: &Emit<'c>,
    k: &AttendKernel,
    scores: &[V<'c>],
    log: impl Fn(usize) -> V<'c>,
) -> Vec<V<'c>> {
    let factor = e.fconst(F32, k.scale.get() * LOG2_E);
    scores.iter().enumerate().map(|(i, &x)| ops::exp2_approx(e, e.fma(x, factor, log(i)))).collect()
}

/// `dS / scale` of one tile.
pub(super) fn slopes<'c>(e: &Emit<'c>, p: &[V<'c>], dp: &[V<'c>], delta: impl Fn(usize) -> V<'c>) -> Vec<V<'c>> {
    p.iter().zip(dp).enumerate().map(|(i, (&p, &d))| e.mul(p, e.sub(d, delta(i)))).collect()
}

pub(super) fn times<'c>(e: &Emit<'c>, values: &[V<'c>], factor: f64) -> Vec<V<'c>> {
    let factor = e.fconst(F32, factor);
    values.iter().map(|&x| e.mul(x, factor)).collect()
}

/// Gradients of keys and values: a block owns key rows of a key/value head and meets the queries of every head of the group.
pub(super) fn keys(unit: &Unit, k: &AttendKernel, symbol: &str) {
    let s = Shape::keys(k);
    let o = Order::keys(k, &s);
    let parameters = if k.document { 9 } else { 7 };
    unit.gpu_kernel(symbol, parameters, 7, s.threads(), |e, args, maps| {
        let place = Place::new(e, k, &s, &o);
        let block = Block::start(e, &s, maps);
        let documents = k.document.then(|| Documents::new(e, k, &args[7..], place.batch));
        let kept = [Tensor::kv(k, maps[0]), Tensor::kv(k, maps[1])];
        let streams = [Tensor::q(k, maps[2]), Tensor::q(k, maps[3])];
        let results = [Tensor::kv(k, maps[5]), Tensor::kv(k, maps[6])];
        let n = |n: usize| e.iconst(I32, n as i64);
        let (lo, hi) = queries_of(e, k, place.row, s.rows(), s.step);
        let (lo, hi) = tiles(e, documents, &s, place.row, (lo, hi));
        let steps = e.mul_n(e.sub(hi, lo), k.group as i64);
        block.split(
            e,
            |e| {
                block.load_kept(e, &kept, &place);
                e.for_(n(0), steps, n(1), &[lo, n(0)], |e, i, carried| {
                    let (tile, group) = (carried[0], carried[1]);
                    let head = Place { group, ..place };
                    let row = e.mul_n(tile, s.step as i64);
                    let bar = block.refill(e, 0, i, 2 * s.tile() + s.statistics_bytes());
                    for (n, t) in streams.iter().enumerate() {
                        block.load_tile(e, (n, i), t, bar, row, &head);
                    }
                    let line = e.mul_n(head.head(e, k), 2);
                    ops::tma_load(e, block.statistics(e, i), maps[4], bar, &[row, line]);
                    let tile = e.add_n(tile, 1);
                    let wraps = e.cmp(Cmp::Ge, tile, hi);
                    vec![e.select(wraps, lo, tile), e.select(wraps, e.add_n(group, 1), group)]
                });
            },
            |e, w| {
                let first = e.add(place.row, e.mul_n(w, ROWS as i64));
                let at = Element::new(e, block.thread);
                let documents = documents.map(|d| d.rows(e, first, &at));
                let mask = Mask { k, rows: ROWS, columns: s.step, transposed: true, documents };
                let (kr, vr) = (block.left(e, 0, w), block.left(e, 1, w));
                // Gradients of two panels leave no registers for what is in flight from tile to tile, nor for unrounded probabilities.
                let overlap = s.panels == 1;
                let acc = ops::zeros(e, s.columns() as u16 / 2);
                ops::mbarrier_wait(e, block.kept(e), n(0));
                let end = e.for_(n(0), steps, n(1), &[acc, acc, lo], |e, i, carried| {
                    let (dk, dv, tile) = (carried[0], carried[1], carried[2]);
                    block.wait(e, 0, i);
                    let (q, dy) = (block.right(e, 0, i), block.right(e, 1, i));
                    ops::wgmma_fence(e);
                    let scores = block.scores(e, &kr, &q);
                    ops::wgmma_commit(e);
                    let dp = block.scores(e, &vr, &dy);
                    ops::wgmma_commit(e);
                    let statistics = Columns::new(e, &block, i, &at);
                    // The products of the tile before are done too.
                    let done = ops::wgmma_wait(e, 1, &[scores, dk, dv]);
                    let (scores, dk, dv) = (done[0], done[1], done[2]);
                    if overlap {
                        e.when(e.cmp(Cmp::Gt, i, n(0)), |e| block.free(e, 0, e.add_n(i, -1)));
                    }
                    let log = statistics.read(e, 0, true);
                    let p = probabilities(e, k, &ops::unpack(e, scores), |i| log[column(i)]);
                    let p = mask.apply(e, p, 0.0, &at, (first, e.mul_n(tile, s.step as i64)));
                    let packed = pack_all(e, &p);
                    ops::wgmma_fence(e);
                    let dv = block.combine(e, dv, &packed, &dy);
                    ops::wgmma_commit(e);
                    let dp = ops::wgmma_wait(e, 1, &[dp])[0];
                    let p = if overlap { p } else { unpack_all(e, &packed) };
                    let delta = statistics.read(e, 1, false);
                    let ds = slopes(e, &p, &ops::unpack(e, dp), |i| delta[column(i)]);
                    let packed = pack_all(e, &ds);
                    ops::wgmma_fence(e);
                    let mut sums = [block.combine(e, dk, &packed, &q), dv];
                    ops::wgmma_commit(e);
                    if !overlap {
                        let done = ops::wgmma_wait(e, 0, &sums);
                        sums = [done[0], done[1]];
                        block.free(e, 0, i);
                    }
                    let tile = e.add_n(tile, 1);
                    vec![sums[0], sums[1], e.select(e.cmp(Cmp::Ge, tile, hi), lo, tile)]
                });
                let done = ops::wgmma_wait(e, 0, &end[..2]);
                let dk = times(e, &ops::unpack(e, done[0]), k.scale.get());
                let dv = ops::unpack(e, done[1]);
                block.store(e, &[(0, dk, results[0]), (1, dv, results[1])], w, &place);
            },
        );
    });
}

/// Which of a thread's columns (two in each 8) an element of the accumulator is in.
pub(super) fn column(element: usize) -> usize {
    element / 4 * 2 + element % 2
}

/// Row statistics of a tile whose columns are query rows.
pub(super) struct Columns<'c> {
    /// Generic pointer to those of the thread's first column.
    at: V<'c>,
    /// Columns of the tile.
    step: usize,
    /// From one statistic to the other.
    apart: usize,
}

impl<'c> Columns<'c> {
    fn new(e: &Emit<'c>, block: &Block<'_, 'c>, i: V<'c>, at: &Element<'c>) -> Self {
        let base = ops::generic(e, block.statistics(e, i));
        Columns { at: e.gep(base, Elem::F32, at.column), step: block.s.step, apart: block.s.step }
    }

    /// Those of a head, read from memory, for a tile of `step` columns; the thread's first one is query `row`.
    pub fn in_memory(
        e: &Emit<'c>,
        k: &AttendKernel,
        (statistics, head): (V<'c>, V<'c>),
        row: V<'c>,
        step: usize,
    ) -> Self {
        Columns { at: statistics_at(e, k, statistics, head, row), step, apart: padded(k) }
    }

    /// One of the two statistics for each of the thread's columns.
    pub fn read(&self, e: &Emit<'c>, which: usize, negated: bool) -> Vec<V<'c>> {
        let pair = |j: usize| {
            let at = e.gep_const(self.at, Elem::F32, (which * self.apart + 8 * j) as i64);
            let two = e.load_aligned(at, Ty::vec(2, Elem::F32), 8);
            [e.extract(two, 0), e.extract(two, 1)].map(|x| if negated { e.neg(x) } else { x })
        };
        (0..self.step / 8).flat_map(pair).collect()
    }
}

/// Gradients of queries: a block owns query rows of a head.
pub(super) fn queries(unit: &Unit, k: &AttendKernel, symbol: &str) {
    let s = Shape::queries(k);
    let o = Order::queries(k, &s);
    let parameters = if k.document { 8 } else { 6 };
    unit.gpu_kernel(symbol, parameters, 5, s.threads(), |e, args, maps| {
        let place = Place::new(e, k, &s, &o);
        let block = Block::start(e, &s, maps);
        let documents = k.document.then(|| Documents::new(e, k, &args[6..], place.batch));
        let n = |n: usize| e.iconst(I32, n as i64);
        let kept = [Tensor::q(k, maps[0]), Tensor::q(k, maps[1])];
        let streams = [Tensor::kv(k, maps[2]), Tensor::kv(k, maps[3])];
        let result = Tensor::q(k, maps[4]);
        let (lo, hi) = keys_of(e, k, place.row, s.rows(), s.step);
        let (lo, hi) = tiles(e, documents, &s, place.row, (lo, hi));
        block.split(
            e,
            |e| {
                block.load_kept(e, &kept, &place);
                e.for_(n(0), e.sub(hi, lo), n(1), &[], |e, i, _| {
                    let row = e.mul_n(e.add(lo, i), s.step as i64);
                    let bar = block.refill(e, 0, i, 2 * s.tile());
                    for (n, t) in streams.iter().enumerate() {
                        block.load_tile(e, (n, i), t, bar, row, &place);
                    }
                    vec![]
                });
            },
            |e, w| {
                let first = e.add(place.row, e.mul_n(w, ROWS as i64));
                let (_, hi) = keys_of(e, k, first, ROWS, s.step);
                let (_, hi) = tiles(e, documents, &s, place.row, (lo, hi));
                let at = Element::new(e, block.thread);
                let documents = documents.map(|d| d.rows(e, first, &at));
                let mask = Mask { k, rows: ROWS, columns: s.step, transposed: false, documents };
                let (log, delta) = row_statistics(e, k, args[4], place.head(e, k), e.add(first, at.row));
                let (q, dy) = (block.left(e, 0, w), block.left(e, 1, w));
                let acc = ops::zeros(e, s.columns() as u16 / 2);
                ops::mbarrier_wait(e, block.kept(e), n(0));
                let end = e.for_(n(0), e.sub(hi, lo), n(1), &[acc], |e, i, carried| {
                    block.wait(e, 0, i);
                    let (key, value) = (block.right(e, 0, i), block.right(e, 1, i));
                    ops::wgmma_fence(e);
                    let scores = block.scores(e, &q, &key);
                    ops::wgmma_commit(e);
                    let dp = block.scores(e, &dy, &value);
                    ops::wgmma_commit(e);
                    // The product of the tile before is done too.
                    let done = ops::wgmma_wait(e, 1, &[scores, carried[0]]);
                    e.when(e.cmp(Cmp::Gt, i, n(0)), |e| block.free(e, 0, e.add_n(i, -1)));
                    let p = probabilities(e, k, &ops::unpack(e, done[0]), |i| log[i / 2 % 2]);
                    let column = e.mul_n(e.add(lo, i), s.step as i64);
                    let p = mask.apply(e, p, 0.0, &at, (first, column));
                    let dp = ops::wgmma_wait(e, 0, &[dp])[0];
                    let ds = slopes(e, &p, &ops::unpack(e, dp), |i| delta[i / 2 % 2]);
                    let packed = pack_all(e, &ds);
                    ops::wgmma_fence(e);
                    let dq = block.combine(e, done[1], &packed, &key);
                    ops::wgmma_commit(e);
                    vec![dq]
                });
                let dq = ops::wgmma_wait(e, 0, &end)[0];
                let dq = times(e, &ops::unpack(e, dq), k.scale.get());
                block.store(e, &[(0, dq, result)], w, &place);
            },
        );
    });
}

/// The first statistic of a query row of a head.
fn statistics_at<'c>(e: &Emit<'c>, k: &AttendKernel, statistics: V<'c>, head: V<'c>, row: V<'c>) -> V<'c> {
    let at = e.add(e.mul_n(wide(e, head), 2 * padded(k) as i64), wide(e, row));
    e.gep(statistics, Elem::F32, at)
}

/// Negated log-sum-exp and delta of a thread's two rows.
pub(super) fn row_statistics<'c>(
    e: &Emit<'c>,
    k: &AttendKernel,
    statistics: V<'c>,
    head: V<'c>,
    row: V<'c>,
) -> ([V<'c>; 2], [V<'c>; 2]) {
    let at = statistics_at(e, k, statistics, head, row);
    let get = |which: usize, h: i64| e.load(e.gep_const(at, Elem::F32, (which * padded(k)) as i64 + 8 * h), F32);
    ([0, 1].map(|h| e.neg(get(0, h))), [0, 1].map(|h| get(1, h)))
}
