//! Documents: a query sees the keys of its own document only.
//!
//! *Takes* ids i32 \[batch, time\] in any order; *gives* the launch `documents`, which prepares them, and what the other launches ask: which tiles to
//! visit, which to mask, which elements to hide; *promises* that a tile left out has nothing to be seen: its ids and those of the block's rows lie
//! in ranges that do not meet.
//!
//! Ranges are of [`ROWS`] positions, a span. Ids that grow along the row leave just the tiles that share a document with the block; others are as
//! right, but may visit tiles in between.

use super::parts::{Element, div_up, least, most};
use crate::kernel::attend::AttendKernel;
use crate::kernel::gpu::attend::{DOCUMENT_THREADS, ROWS, SPAN_WORDS, Shape, positions};
use crate::mlir::emit::{Cmp, Elem, Emit, I32, Ty, Unit, V};
use crate::mlir::gpu::ops;

const PAIR: Ty = Ty::vec(2, Elem::I32);

/// Emits the launch: a block for each batch position.
pub(super) fn emit(unit: &Unit, k: &AttendKernel, symbol: &str) {
    unit.gpu_kernel(symbol, 3, 0, DOCUMENT_THREADS, |e, args, _| {
        let n = |n: i64| e.iconst(I32, n);
        let (thread, batch) = (ops::thread(e, DOCUMENT_THREADS), ops::block(e));
        let given = e.gep(args[0], Elem::I32, e.mul_n(e.zero_extend(batch, Elem::I64), k.time as i64));
        let d = Documents::new(e, k, &args[1..], batch);
        let (warp, lane) = (e.shru(thread, n(5)), e.and(thread, n(31)));
        let spans = n((positions(k) / ROWS) as i64);
        // A warp takes a span, a lane two of its positions; those behind the end repeat the last one's id.
        e.for_(warp, spans, n(i64::from(DOCUMENT_THREADS / ops::WARP)), &[], |e, span, _| {
            let first = e.add(e.mul_n(span, ROWS as i64), e.mul_n(lane, 2));
            let to = e.gep(d.ids, Elem::I32, first);
            let [a, b] = [0, 1].map(|i| {
                let at = least(e, e.add_n(first, i), n(k.time as i64 - 1));
                let id = e.load(e.gep(given, Elem::I32, at), I32);
                e.store(id, e.gep_const(to, Elem::I32, i));
                id
            });
            let low = over_warp(e, least(e, a, b), |x, y| least(e, x, y));
            let high = over_warp(e, most(e, a, b), |x, y| most(e, x, y));
            e.when(ops::is_thread(e, lane, 0), |e| {
                let to = d.span(e, span);
                e.store(low, to);
                e.store(high, e.gep_const(to, Elem::I32, 1));
            });
            vec![]
        });
        ops::barrier(e);
        // A thread takes a span: the first and one past the last whose range meets its own.
        e.for_(thread, spans, n(DOCUMENT_THREADS.into()), &[], |e, span, _| {
            let own = d.span(e, span);
            let (low, high) = pair(e, own);
            let found = e.for_(n(0), spans, n(1), &[spans, n(0)], |e, other, found| {
                let (from, to) = pair(e, d.span(e, other));
                let meets = e.and(e.cmp(Cmp::Le, from, high), e.cmp(Cmp::Ge, to, low));
                vec![e.select(meets, least(e, found[0], other), found[0]), e.select(meets, e.add_n(other, 1), found[1])]
            });
            e.store(found[0], e.gep_const(own, Elem::I32, 2));
            e.store(found[1], e.gep_const(own, Elem::I32, 3));
            vec![]
        });
    });
}

/// Reduces over the lanes of a warp.
fn over_warp<'c>(e: &Emit<'c>, x: V<'c>, f: impl Fn(V<'c>, V<'c>) -> V<'c>) -> V<'c> {
    [1, 2, 4, 8, 16].into_iter().fold(x, |x, mask| f(x, ops::shuffle_xor(e, x, mask)))
}

/// Two neighbouring i32.
fn pair<'c>(e: &Emit<'c>, at: V<'c>) -> (V<'c>, V<'c>) {
    let two = e.load_aligned(at, PAIR, 8);
    (e.extract(two, 0), e.extract(two, 1))
}

/// The prepared ids of a block's batch position.
#[derive(Clone, Copy)]
pub(super) struct Documents<'c> {
    ids: V<'c>,
    /// [`SPAN_WORDS`] each: smallest id, largest id, first span whose range meets this one's, one past the last.
    spans: V<'c>,
}

impl<'c> Documents<'c> {
    /// `temps`: the two temporaries that the launch writes.
    pub fn new(e: &Emit<'c>, k: &AttendKernel, temps: &[V<'c>], batch: V<'c>) -> Self {
        let batch = e.zero_extend(batch, Elem::I64);
        let at = |base, words: usize| e.gep(base, Elem::I32, e.mul_n(batch, words as i64));
        let n = positions(k);
        Documents { ids: at(temps[0], n), spans: at(temps[1], n / ROWS * SPAN_WORDS) }
    }

    fn span(&self, e: &Emit<'c>, n: V<'c>) -> V<'c> {
        e.gep(self.spans, Elem::I32, e.mul_n(n, SPAN_WORDS as i64))
    }
    fn span_of(&self, e: &Emit<'c>, position: V<'c>) -> V<'c> {
        self.span(e, e.divu(position, e.iconst(I32, ROWS as i64)))
    }

    /// Of a warpgroup's rows from `first`, the thread's at `at`.
    pub fn rows(&self, e: &Emit<'c>, first: V<'c>, at: &Element<'c>) -> Rows<'c> {
        let range = pair(e, self.span_of(e, first));
        let mine = e.gep(self.ids, Elem::I32, e.add(first, at.row));
        let column = e.gep(self.ids, Elem::I32, at.column);
        Rows { all: *self, range, mine: [0, 8].map(|i| e.load(e.gep_const(mine, Elem::I32, i), I32)), column }
    }
}

/// Of the tiles `lo .. hi` that a block visits, those from the first to the last that may share a document with its rows, from `row` on. All of them
/// where documents are not kept apart.
pub(super) fn tiles<'c>(
    e: &Emit<'c>,
    documents: Option<Documents<'c>>,
    s: &Shape,
    row: V<'c>,
    (lo, hi): (V<'c>, V<'c>),
) -> (V<'c>, V<'c>) {
    let Some(d) = documents else { return (lo, hi) };
    let own = d.span_of(e, row);
    let reach = |i: usize| pair(e, e.gep_const(own, Elem::I32, (i * SPAN_WORDS + 2) as i64));
    let (first, end) = (1..s.consumers).map(reach).fold(reach(0), |(a, b), (c, d)| (least(e, a, c), most(e, b, d)));
    // Tiles are one or several spans, or a part of one.
    let (first, end) = match s.step / ROWS {
        0 => (e.mul_n(first, (ROWS / s.step) as i64), e.mul_n(end, (ROWS / s.step) as i64)),
        spans => (e.divu(first, e.iconst(I32, spans as i64)), div_up(e, end, spans)),
    };
    (most(e, lo, first), least(e, hi, end))
}

/// A warpgroup's rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'c> {
    all: Documents<'c>,
    range: (V<'c>, V<'c>),
    /// Ids of the thread's rows.
    mine: [V<'c>; 2],
    /// Ids from the thread's first column of the first tile.
    column: V<'c>,
}

impl<'c> Rows<'c> {
    /// Whether any of the `count` positions from `first` (whole spans, or inside of one) may be of another document than any of the rows.
    pub fn differ(&self, e: &Emit<'c>, first: V<'c>, count: usize) -> V<'c> {
        let at = self.all.span_of(e, first);
        let range = |i: usize| pair(e, e.gep_const(at, Elem::I32, (i * SPAN_WORDS) as i64));
        let (low, high) = (1..count / ROWS).map(range).fold(range(0), |(a, b), (c, d)| (least(e, a, c), most(e, b, d)));
        // Ranges of one id, the same one: each begins where the other ends.
        e.or(e.cmp(Cmp::Ne, low, self.range.1), e.cmp(Cmp::Ne, high, self.range.0))
    }

    /// Whether the elements (row h, column c) of eight columns' part of an accumulator are of one document: `[h][c]`, columns from `column`.
    pub fn same(&self, e: &Emit<'c>, column: V<'c>, eight: usize) -> [[V<'c>; 2]; 2] {
        let at = e.gep_const(e.gep(self.column, Elem::I32, column), Elem::I32, 8 * eight as i64);
        let ids = pair(e, at);
        self.mine.map(|mine| [e.cmp(Cmp::Eq, ids.0, mine), e.cmp(Cmp::Eq, ids.1, mine)])
    }
}
