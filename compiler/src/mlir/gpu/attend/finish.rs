//! The epilogue: what becomes of finished rows of y, in registers.
//!
//! *Takes* a warp's rows as products leave them: a lane holds pairs of columns of two rows, four lanes a row; *gives* the effects in memory; *promises* accesses
//! of 16 bytes to rows of 2-byte elements, sums in a fixed order, nothing touched behind the last position.

use super::parts::{Element, Place, least, over_quad};
use crate::graph::ir::{DType, Reduce};
use crate::kernel::attend::AttendKernel;
use crate::kernel::epilogue::{Epilogue, EpilogueArg};
use crate::mlir::elementwise::combine;
use crate::mlir::emit::{Cmp, Elem, Emit, I32, Ty, V};
use crate::mlir::epilogue::{self, Row, Value};
use crate::mlir::gpu::gemm::Quad;
use crate::mlir::memory;

/// Columns that four lanes hold in four words each.
const SPAN: usize = 32;
const WORDS: Ty = Ty::vec(4, Elem::I32);

/// Runs the epilogue on a warp's `values` (elements as of an accumulator, of columns from 0), the thread's at `at` from row `first`. All lanes of the warp
/// call it.
pub(super) fn finish<'c>(
    e: &Emit<'c>,
    (k, p): (&AttendKernel, &Epilogue),
    pointers: &[V<'c>],
    place: &Place<'c>,
    (at, first): (&Element<'c>, V<'c>),
    values: &[V<'c>],
) {
    let n = |n: usize| e.iconst(I32, n as i64);
    let heads = [place.batch, place.kv, place.group];
    let quad = Quad::new(e, e.divu(at.column, n(2)));
    let start = |((dtype, arg), &base): ((DType, &EpilogueArg), &V<'c>)| {
        let elem = memory::storage_elem(dtype);
        let moves = heads.iter().zip(&arg.batch).filter(|(_, stride)| **stride != 0);
        let index = |&x: &V<'c>, stride: i64| e.mul_n(e.zero_extend(x, Elem::I64), stride);
        moves.fold(e.gep_const(base, elem, arg.offset), |base, (x, &stride)| e.gep(base, elem, index(x, stride)))
    };
    let starts: Vec<V> = p.buffers().zip(pointers).map(start).collect();
    let lines = [0, 1].map(|half| {
        let row = e.add_n(e.add(first, at.row), 8 * half as i64);
        let inside = e.cmp(Cmp::Lt, row, n(k.time));
        // Rows behind the end work on the last one.
        let row = least(e, row, n(k.time - 1));
        let mine: Vec<V> = (0..k.dim / 4).map(|i| values[4 * (i / 2) + 2 * half + i % 2]).collect();
        let results = e.op1("vector.from_elements", &mine, Ty::vec(mine.len() as u32, Elem::F32), &[]);
        Line { k, p, starts: &starts, heads, quad, inside, row, results: [results] }
    });
    // Stores are branches: what the second row reads would wait behind those of the first.
    let values = lines.each_ref().map(|line| epilogue::evaluate(e, &p.body, line));
    lines.iter().zip(&values).for_each(|(line, values)| epilogue::store(e, &p.body, line, values));
}

/// Stores a row of 2-byte elements; `line` is where this lane's eight columns of the first [`SPAN`] go, word j what it holds of columns `8 j ..`. Four lanes
/// exchange theirs, so that each stores 16 bytes.
pub(super) fn store_words<'c>(
    e: &Emit<'c>,
    quad: Quad<'c>,
    line: V<'c>,
    (inside, dim): (V<'c>, usize),
    word: impl Fn(usize) -> V<'c>,
) {
    for span in 0..dim.div_ceil(SPAN) {
        let words = quad.transpose(e, [0, 1, 2, 3].map(|j| word(4 * span + j)));
        let words = e.op1("vector.from_elements", &words, WORDS, &[]);
        let exists = part_of(e, quad, span, dim).map_or(inside, |part| e.and(inside, part));
        e.when(exists, |e| e.store_aligned(words, e.gep_const(line, Elem::Bf16, (SPAN * span) as i64), 16));
    }
}

/// Whether a row has this lane's 8 columns of a span; `None`: it has.
fn part_of<'c>(e: &Emit<'c>, quad: Quad<'c>, span: usize, dim: usize) -> Option<V<'c>> {
    let first = |e: &Emit<'c>| e.add_n(e.mul_n(quad.quarter, 8), (SPAN * span) as i64);
    (!dim.is_multiple_of(SPAN)).then(|| e.cmp(Cmp::Lt, first(e), e.iconst(I32, dim as i64)))
}

/// One of a thread's rows: columns `8 j + 2 q + (0, 1)` of lane q of four.
struct Line<'k, 'c> {
    k: &'k AttendKernel,
    p: &'k Epilogue,
    /// Where the head's first row lies in every buffer 1.. .
    starts: &'k [V<'c>],
    heads: [V<'c>; 3],
    quad: Quad<'c>,
    /// Whether the row exists.
    inside: V<'c>,
    row: V<'c>,
    results: [V<'c>; 1],
}

impl<'c> Line<'_, 'c> {
    fn buffer(&self, buffer: usize) -> (&EpilogueArg, DType) {
        (&self.p.args[buffer - 1], self.p.body.buffers[buffer].ty.dtype)
    }

    /// The row in a buffer, `column` columns on.
    fn at(&self, e: &Emit<'c>, buffer: usize, column: V<'c>) -> V<'c> {
        let (arg, dtype) = self.buffer(buffer);
        let elem = memory::storage_elem(dtype);
        let row = match arg.m {
            0 => self.starts[buffer - 1],
            m => e.gep(self.starts[buffer - 1], elem, e.mul_n(e.zero_extend(self.row, Elem::I64), m)),
        };
        if arg.n == 0 { row } else { e.gep(row, elem, column) }
    }

    /// First column of the lane's pairs, and of the eights that it exchanges.
    fn columns(&self, e: &Emit<'c>) -> [V<'c>; 2] {
        [2, 8].map(|n| e.mul_n(self.quad.quarter, n))
    }

    fn lanes(&self) -> u32 {
        self.k.dim as u32 / 4
    }

    /// What the lane holds of a row of 2-byte elements.
    fn load_words(&self, e: &Emit<'c>, line: V<'c>) -> V<'c> {
        let mut words = vec![];
        for span in 0..self.k.dim.div_ceil(SPAN) {
            let load = |e: &Emit<'c>| e.load_aligned(e.gep_const(line, Elem::Bf16, (SPAN * span) as i64), WORDS, 16);
            let got = match part_of(e, self.quad, span, self.k.dim) {
                None => load(e),
                Some(exists) => e.if_(exists, &[WORDS], |e| vec![load(e)], |e| vec![e.zero(WORDS)])[0],
            };
            words.extend(self.quad.transpose(e, [0, 1, 2, 3].map(|i| e.extract(got, i))));
        }
        words.truncate(self.k.dim / 8);
        e.op1("vector.from_elements", &words, Ty::vec(words.len() as u32, Elem::I32), &[])
    }
}

impl<'c> Row<'c> for Line<'_, 'c> {
    fn results(&self) -> &[V<'c>] {
        &self.results
    }

    fn load(&self, e: &Emit<'c>, buffer: usize) -> Value<'c> {
        let (arg, dtype) = self.buffer(buffer);
        let elem = memory::storage_elem(dtype);
        let [pair, eight] = self.columns(e);
        if arg.n == 0 {
            return Value::One(memory::load_scalar(e, self.at(e, buffer, pair), dtype));
        }
        let raw = if elem.bytes() == 2 {
            let words = self.load_words(e, self.at(e, buffer, eight));
            e.bitcast(words, Ty::vec(self.lanes(), elem))
        } else {
            let line = self.at(e, buffer, pair);
            let two = |j| e.load_aligned(e.gep_const(line, elem, 8 * j), Ty::vec(2, elem), 8);
            (0..self.k.dim as i64 / 8).map(two).reduce(|a, b| e.concat(a, b)).expect("a row has columns")
        };
        Value::Row(vec![memory::widen(e, raw, dtype)])
    }

    fn iota(&self, e: &Emit<'c>, axis: u32) -> Value<'c> {
        match axis {
            0 => Value::One(self.row),
            1 => {
                let column = |i: u32| e.add_n(self.columns(e)[0], i64::from(8 * (i / 2) + i % 2));
                let all: Vec<V> = (0..self.lanes()).map(column).collect();
                Value::Row(vec![e.op1("vector.from_elements", &all, Ty::vec(self.lanes(), Elem::I32), &[])])
            }
            axis => Value::One(self.heads[axis as usize - 2]),
        }
    }

    fn reduce(&self, e: &Emit<'c>, kind: Reduce, row: &[V<'c>]) -> V<'c> {
        let f = |a, b| combine(e, kind, a, b);
        // Two chains: enough beside the other row's.
        let chain = |c: u32| (c..self.lanes()).step_by(2).map(|i| e.extract(row[0], i)).reduce(f).expect("two columns");
        over_quad(e, f(chain(0), chain(1)), f)
    }

    fn store(&self, e: &Emit<'c>, buffer: usize, value: &Value<'c>) {
        let (arg, dtype) = self.buffer(buffer);
        let elem = memory::storage_elem(dtype);
        let [pair, eight] = self.columns(e);
        let mut writes = self.inside;
        if self.k.once_per_group(arg) {
            writes = e.and(writes, e.cmp(Cmp::Eq, self.heads[2], e.iconst(I32, 0)));
        }
        if let (Value::One(x), 0) = (value, arg.n) {
            let writes = e.and(writes, e.cmp(Cmp::Eq, self.quad.quarter, e.iconst(I32, 0)));
            return e.when(writes, |e| memory::store_scalar(e, *x, self.at(e, buffer, pair), dtype));
        }
        let raw = memory::narrow(e, value.row(e, &self.results)[0], dtype);
        if elem.bytes() == 2 {
            let words = e.bitcast(raw, Ty::vec(self.lanes() / 2, Elem::I32));
            let word = |j: usize| if j < self.k.dim / 8 { e.extract(words, j as u32) } else { e.iconst(I32, 0) };
            return store_words(e, self.quad, self.at(e, buffer, eight), (writes, self.k.dim), word);
        }
        e.when(writes, |e| {
            let line = self.at(e, buffer, pair);
            for j in 0..self.lanes() / 2 {
                e.store_aligned(e.lanes(raw, 2 * j, 2), e.gep_const(line, elem, 8 * i64::from(j)), 8);
            }
        });
    }
}
