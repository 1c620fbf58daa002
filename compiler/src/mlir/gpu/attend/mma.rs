//! Attention for every GPU since Ampere: tiles copied by the threads, products by warps, probabilities in registers.
//!
//! *Takes* an [`AttendKernel`]; *gives* the functions of [`attend::mma::launches`]; *promises* the sums of Hopper's kernels in the same order.
//!
//! Four warps hold what a warpgroup of Hopper holds, so masks, softmax and statistics are shared with it. The streamed tiles have two places each: while one tile
//! is worked on the next one is copied, and one barrier per tile separates the two.

use super::backward::{Columns, column, delta, probabilities, row_statistics, slopes, times};
use super::documents::{self, Documents, tiles};
use super::finish::{finish, store_words};
use super::forward::{Rows, log_sum_exp, lse, parameters, scaled, softmax};
use super::parts::{Element, Mask, Place, keys_of, over_quad, pack_all, queries_of, unpack_all};
use crate::kernel::attend::{AttendKernel, Pass, Strides};
use crate::kernel::gpu::attend::{self, Order, ROWS, Shape};
use crate::mlir::emit::{Cmp, Elem, Emit, F32, I32, Unit, V};
use crate::mlir::gpu::gemm::Quad;
use crate::mlir::gpu::ops;
use crate::mlir::gpu::tile::{Copier, FRAGMENT, Reader, multiply};

/// Emits the functions of [`attend::mma::launches`].
pub fn emit(unit: &Unit, k: &AttendKernel, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    attend::check(k)?;
    ops::declare_shared(unit);
    if k.document {
        documents::emit(unit, k, &symbol("documents"));
    }
    // What that launch leaves follows the other arguments.
    let more = if k.document { 2 } else { 0 };
    match k.pass {
        Pass::Forward => {
            let threads = attend::mma::threads(&attend::mma::forward(k));
            unit.gpu_kernel(&symbol("main"), parameters(k), 0, threads, |e, args, _| forward(e, k, args));
        }
        Pass::Backward => {
            let threads = attend::mma::threads(&attend::mma::backward(k));
            delta(unit, k, &symbol("delta"));
            unit.gpu_kernel(&symbol("dkdv"), 7 + more, 0, threads, |e, args, _| keys(e, k, args));
            unit.gpu_kernel(&symbol("dq"), 6 + more, 0, threads, |e, args, _| queries(e, k, args));
        }
    }
    Ok(())
}

/// A tensor of a head: its first element, and elements from position to position.
#[derive(Clone, Copy)]
struct Tensor<'c> {
    at: V<'c>,
    pitch: i64,
}

impl<'c> Tensor<'c> {
    fn new(e: &Emit<'c>, at: V<'c>, s: &Strides, p: &Place<'c>) -> Self {
        let heads = [(p.batch, s.batch), (p.kv, s.kv), (p.group, s.group)];
        let wide = |x| e.zero_extend(x, Elem::I64);
        let offset = heads.iter().fold(e.i(s.offset), |sum, &(x, by)| e.add(sum, e.mul_n(wide(x), by)));
        Tensor { at: e.gep(at, Elem::Bf16, offset), pitch: s.time }
    }

    fn row(&self, e: &Emit<'c>, row: V<'c>) -> V<'c> {
        e.gep(self.at, Elem::Bf16, e.mul_n(e.zero_extend(row, Elem::I64), self.pitch))
    }
}

/// What a block's threads know.
struct Block<'k, 'c> {
    k: &'k AttendKernel,
    s: Shape,
    memory: V<'c>,
    thread: V<'c>,
    /// First row of this thread's four warps, and where its elements are.
    first: V<'c>,
    at: Element<'c>,
    /// The warp's rows of kept tensors; lines of streamed ones as rows of a right operand, and as its k.
    left: Reader<'c>,
    across: Reader<'c>,
    down: Reader<'c>,
    /// Of kept and of streamed tensors.
    copiers: [Copier<'c>; 2],
}

impl<'k, 'c> Block<'k, 'c> {
    fn new(e: &Emit<'c>, k: &'k AttendKernel, s: Shape, place: &Place<'c>) -> Self {
        let threads = attend::mma::threads(&s);
        let thread = ops::thread(e, threads);
        let zero = e.iconst(I32, 0);
        let warp = ops::uniform(e, e.shru(thread, e.iconst(I32, 5)));
        let reader = |lines, turned, line| Reader::new(e, thread, lines, turned, (line, zero));
        let group = e.shru(warp, e.iconst(I32, 2));
        Block {
            k,
            s,
            memory: ops::shared_memory(e),
            thread,
            first: e.add(place.row, e.mul_n(group, ROWS as i64)),
            at: Element::new(e, thread),
            left: reader(s.rows(), false, e.mul_n(warp, FRAGMENT as i64)),
            across: reader(s.step, false, zero),
            down: reader(s.step, true, zero),
            copiers: [s.rows(), s.step].map(|lines| Copier::new(e, thread, threads, lines, s.columns())),
        }
    }

    /// Starts the copy of `lines` rows from `row`; what lies beyond the last row or column is zero.
    fn copy(&self, e: &Emit<'c>, to: V<'c>, (copier, lines): (&Copier<'c>, usize), t: &Tensor<'c>, row: V<'c>) {
        let time = e.iconst(I32, self.k.time as i64);
        let exist = (!self.k.time.is_multiple_of(lines)).then(|| e.sub(time, row));
        let columns = (self.k.dim != self.s.columns()).then(|| e.iconst(I32, self.k.dim as i64));
        let from = e.gep(t.row(e, row), Elem::Bf16, copier.offset(e, t.pitch));
        copier.copy(e, to, (from, t.pitch), (exist, columns));
    }

    /// Where kept tensor `n` lies.
    fn kept(&self, e: &Emit<'c>, n: usize) -> V<'c> {
        ops::shared_at(e, self.memory, self.s.kept_at(n) as i64)
    }

    /// Where tile `i` of streamed tensor `n` lies.
    fn tile(&self, e: &Emit<'c>, n: usize, i: V<'c>) -> V<'c> {
        let base = ops::shared_at(e, self.memory, self.s.stream_at(n) as i64);
        e.gep(base, Elem::I8, e.mul_n(e.and(i, e.iconst(I32, 1)), self.s.tile() as i64))
    }

    /// Starts the copies of the block's rows of the kept tensors.
    fn keep(&self, e: &Emit<'c>, tensors: &[Tensor<'c>], row: V<'c>) {
        for (n, t) in tensors.iter().enumerate() {
            self.copy(e, self.kept(e, n), (&self.copiers[0], self.s.rows()), t, row);
        }
    }

    /// Starts the copies of tile `i` of the streamed tensors, which begins at `row`, and closes the group of all copies so far.
    fn stream(&self, e: &Emit<'c>, i: V<'c>, tensors: [Tensor<'c>; 2], row: V<'c>) {
        for (n, t) in tensors.iter().enumerate() {
            self.copy(e, self.tile(e, n, i), (&self.copiers[1], self.s.step), t, row);
        }
        ops::copy_commit(e);
    }

    /// Waits for tile `i`, for everybody to be done with the one before, and starts to copy the next one in its place by `stream`, if there is one.
    fn turn(&self, e: &Emit<'c>, i: V<'c>, steps: V<'c>, stream: impl FnOnce(&Emit<'c>, V<'c>)) {
        ops::copy_wait(e, 0);
        ops::barrier(e);
        let next = e.add_n(i, 1);
        e.when(e.cmp(Cmp::Lt, next, steps), |e| stream(e, next));
    }

    /// Fragments of the warp's rows of kept tensor `n`, by 16 columns.
    fn rows(&self, e: &Emit<'c>, n: usize) -> impl Fn(usize) -> [V<'c>; 4] {
        let (tile, left, e) = (self.kept(e, n), self.left, e.clone());
        move |step| left.at(&e, tile, 0, step)
    }

    /// `A B^T` over the head dimension: 16 rows by [`Shape::step`].
    fn scores(&self, e: &Emit<'c>, a: impl Fn(usize) -> [V<'c>; 4], tile: V<'c>) -> Vec<V<'c>> {
        let mut sums = vec![e.zero(F32); self.s.step / 2];
        for step in 0..self.s.columns() / FRAGMENT {
            let a = a(step);
            for (row, sums) in sums.chunks_exact_mut(8).enumerate() {
                multiply(e, sums, a, self.across.at(e, tile, row, step));
            }
        }
        sums
    }

    /// `sums + A B`: A in registers (16 rows by [`Shape::step`]), the tile's lines are the contraction.
    fn combine(&self, e: &Emit<'c>, sums: &[V<'c>], a: &[V<'c>], tile: V<'c>) -> Vec<V<'c>> {
        let mut sums = sums.to_vec();
        for (step, a) in a.chunks_exact(4).enumerate() {
            for (column, sums) in sums.chunks_exact_mut(8).enumerate() {
                multiply(e, sums, [a[0], a[1], a[2], a[3]], self.down.at(e, tile, column, step));
            }
        }
        sums
    }

    /// Zeros of [`Shape::columns`] sums.
    fn zeros(&self, e: &Emit<'c>) -> Vec<V<'c>> {
        vec![e.zero(F32); self.s.columns() / 2]
    }

    /// Writes a warp's results as bf16: four lanes exchange what they have of 32 columns, so that each stores 16 bytes.
    fn store(&self, e: &Emit<'c>, values: &[V<'c>], t: &Tensor<'c>) {
        let n = |n: usize| e.iconst(I32, n as i64);
        let quad = Quad::new(e, e.and(self.thread, n(31)));
        let column = e.mul_n(quad.quarter, 8);
        for half in 0..2 {
            let row = e.add_n(e.add(self.first, self.at.row), 8 * half as i64);
            let inside = e.cmp(Cmp::Lt, row, n(self.k.time));
            let line = e.gep(t.row(e, row), Elem::Bf16, column);
            let word = |pair: usize| {
                let at = 4 * pair + 2 * half;
                ops::pack_bf16(e, values[at], values[at + 1])
            };
            store_words(e, quad, line, (inside, self.k.dim), word);
        }
    }
}

/// A block of query rows, which walks over the keys and values that they see.
struct Walk<'k, 'c> {
    block: Block<'k, 'c>,
    place: Place<'c>,
    mask: Mask<'k, 'c>,
    streams: [Tensor<'c>; 2],
    /// First tile, and how many.
    lo: V<'c>,
    steps: V<'c>,
}

impl<'k, 'c> Walk<'k, 'c> {
    /// Starts the copies of the kept tensors and of the first tile. `kept` are arguments by number, so are the keys (the values follow) and the first of the
    /// documents.
    fn start(
        e: &Emit<'c>,
        k: &'k AttendKernel,
        s: Shape,
        args: &[V<'c>],
        (kept, keys, ids): (&[(usize, &Strides)], usize, usize),
    ) -> Self {
        let place = Place::new(e, k, &s, &Order::queries(k, &s));
        let block = Block::new(e, k, s, &place);
        let documents = k.document.then(|| Documents::new(e, k, &args[ids..], place.batch));
        let tensor = |arg: usize, s: &Strides| Tensor::new(e, args[arg], s, &place);
        let streams = [tensor(keys, &k.k), tensor(keys + 1, &k.v)];
        let (lo, hi) = keys_of(e, k, place.row, s.rows(), s.step);
        let (lo, hi) = tiles(e, documents, &s, place.row, (lo, hi));
        let steps = e.sub(hi, lo);
        let documents = documents.map(|d| d.rows(e, block.first, &block.at));
        let mask = Mask { k, rows: ROWS, columns: s.step, transposed: false, documents };
        let kept: Vec<Tensor> = kept.iter().map(|&(arg, s)| tensor(arg, s)).collect();
        block.keep(e, &kept, place.row);
        let walk = Walk { block, place, mask, streams, lo, steps };
        walk.stream(e, e.iconst(I32, 0));
        walk
    }

    /// First row of tile `i`.
    fn row(&self, e: &Emit<'c>, i: V<'c>) -> V<'c> {
        e.mul_n(e.add(self.lo, i), self.block.s.step as i64)
    }

    fn stream(&self, e: &Emit<'c>, i: V<'c>) {
        self.block.stream(e, i, self.streams, self.row(e, i));
    }

    /// [`Block::turn`]
    fn turn(&self, e: &Emit<'c>, i: V<'c>) {
        self.block.turn(e, i, self.steps, |e, next| self.stream(e, next));
    }

    /// [`Mask::apply`] on the warp's rows and tile `i`.
    fn mask(&self, e: &Emit<'c>, values: Vec<V<'c>>, with: f64, i: V<'c>) -> Vec<V<'c>> {
        self.mask.apply(e, values, with, &self.block.at, (self.block.first, self.row(e, i)))
    }
}

fn forward<'c>(e: &Emit<'c>, k: &AttendKernel, args: &[V<'c>]) {
    let s = attend::mma::forward(k);
    let n = |n: i64| e.iconst(I32, n);
    let walk = Walk::start(e, k, s, args, (&[(0, &k.q)], 1, args.len() - 2));
    let (block, place, steps) = (&walk.block, &walk.place, walk.steps);
    ops::copy_wait(e, 0);
    ops::barrier(e);
    let q: Vec<[V; 4]> = (0..s.columns() / FRAGMENT).map(block.rows(e, 0)).collect();
    let (low, zero) = (e.fconst(F32, f64::NEG_INFINITY), e.zero(F32));
    let width = s.columns() / 2;
    let carried = [block.zeros(e), vec![low, low, zero, zero]].concat();
    let end = e.for_(n(0), steps, n(1), &carried, |e, i, carried| {
        let (sums, rows) = carried.split_at(width);
        let rows = Rows { max: [rows[0], rows[1]], sum: [rows[2], rows[3]] };
        walk.turn(e, i);
        let scores = block.scores(e, |step| q[step], block.tile(e, 0, i));
        let scores = walk.mask(e, scores, f64::NEG_INFINITY, i);
        let (p, rows, scale) = softmax(e, k, scores, rows);
        let sums = block.combine(e, &scaled(e, sums, scale), &pack_all(e, &p), block.tile(e, 1, i));
        [sums, rows.max.to_vec(), rows.sum.to_vec()].concat()
    });
    let (sums, rows) = end.split_at(width);
    let sum = [rows[2], rows[3]].map(|x| over_quad(e, x, |a, b| e.add(a, b)));
    // A row that sees no key is zero; its log-sum-exp is minus infinity.
    let inverse = sum.map(|x| e.select(e.cmp(Cmp::Gt, x, zero), ops::recip_approx(e, x), zero));
    log_sum_exp(e, k, (args[lse(k)], place), (&block.at, block.first), ([rows[0], rows[1]], sum));
    let values = scaled(e, sums, inverse);
    match &k.epilogue {
        None => block.store(e, &values, &Tensor::new(e, args[3], &k.y, place)),
        Some(p) => finish(e, (k, p), &args[lse(k) + 1..], place, (&block.at, block.first), &values),
    }
}

/// Gradients of keys and values: scores are made transposed, keys are rows.
fn keys<'c>(e: &Emit<'c>, k: &AttendKernel, args: &[V<'c>]) {
    let s = attend::mma::backward(k);
    let place = Place::new(e, k, &s, &Order::keys(k, &s));
    let n = |n: usize| e.iconst(I32, n as i64);
    let block = Block::new(e, k, s, &place);
    let documents = k.document.then(|| Documents::new(e, k, &args[7..], place.batch));
    let tensor = |arg: usize, s: &Strides| Tensor::new(e, args[arg], s, &place);
    let (lo, hi) = queries_of(e, k, place.row, s.rows(), s.step);
    let (lo, hi) = tiles(e, documents, &s, place.row, (lo, hi));
    let steps = e.mul_n(e.sub(hi, lo), k.group as i64);
    let row = |e: &Emit<'c>, tile| e.mul_n(tile, s.step as i64);
    let streams = |e: &Emit<'c>, group| {
        let head = Place { group, ..place };
        [Tensor::new(e, args[2], &k.q, &head), Tensor::new(e, args[3], &k.dy, &head)]
    };
    let documents = documents.map(|d| d.rows(e, block.first, &block.at));
    let mask = Mask { k, rows: ROWS, columns: s.step, transposed: true, documents };
    block.keep(e, &[tensor(0, &k.k), tensor(1, &k.v)], place.row);
    block.stream(e, n(0), streams(e, n(0)), row(e, lo));
    let width = s.columns() / 2;
    let carried = [block.zeros(e), block.zeros(e), vec![lo, n(0)]].concat();
    let end = e.for_(n(0), steps, n(1), &carried, |e, i, carried| {
        let (dk, rest) = carried.split_at(width);
        let (dv, rest) = rest.split_at(width);
        let (tile, group) = (rest[0], rest[1]);
        let next = e.add_n(tile, 1);
        let wraps = e.cmp(Cmp::Ge, next, hi);
        let (next, next_group) = (e.select(wraps, lo, next), e.select(wraps, e.add_n(group, 1), group));
        block.turn(e, i, steps, |e, i| block.stream(e, i, streams(e, next_group), row(e, next)));
        let (q, dy) = (block.tile(e, 0, i), block.tile(e, 1, i));
        let head = Place { group, ..place }.head(e, k);
        let statistics = {
            let first = e.add(row(e, tile), block.at.column);
            Columns::in_memory(e, k, (args[4], head), first, s.step)
        };
        let scores = block.scores(e, block.rows(e, 0), q);
        let log = statistics.read(e, 0, true);
        let p = probabilities(e, k, &scores, |i| log[column(i)]);
        let packed = pack_all(e, &mask.apply(e, p, 0.0, &block.at, (block.first, row(e, tile))));
        let dv = block.combine(e, dv, &packed, dy);
        let dp = block.scores(e, block.rows(e, 1), dy);
        let delta = statistics.read(e, 1, false);
        let ds = slopes(e, &unpack_all(e, &packed), &dp, |i| delta[column(i)]);
        let dk = block.combine(e, dk, &pack_all(e, &ds), q);
        [dk, dv, vec![next, next_group]].concat()
    });
    block.store(e, &times(e, &end[..width], k.scale.get()), &tensor(5, &k.dk));
    block.store(e, &end[width..2 * width], &tensor(6, &k.dv));
}

/// Gradients of queries.
fn queries<'c>(e: &Emit<'c>, k: &AttendKernel, args: &[V<'c>]) {
    let s = attend::mma::backward(k);
    let walk = Walk::start(e, k, s, args, (&[(0, &k.q), (1, &k.dy)], 2, 6));
    let (block, place, steps) = (&walk.block, &walk.place, walk.steps);
    let n = |n: i64| e.iconst(I32, n);
    let at = e.add(block.first, block.at.row);
    let (log, delta) = row_statistics(e, k, args[4], place.head(e, k), at);
    let end = e.for_(n(0), steps, n(1), &block.zeros(e), |e, i, sums| {
        walk.turn(e, i);
        let (key, value) = (block.tile(e, 0, i), block.tile(e, 1, i));
        let scores = block.scores(e, block.rows(e, 0), key);
        let p = probabilities(e, k, &scores, |i| log[i / 2 % 2]);
        let p = walk.mask(e, p, 0.0, i);
        let dp = block.scores(e, block.rows(e, 1), value);
        let ds = slopes(e, &p, &dp, |i| delta[i / 2 % 2]);
        block.combine(e, sums, &pack_all(e, &ds), key)
    });
    block.store(e, &times(e, &end, k.scale.get()), &Tensor::new(e, args[5], &k.dq, place));
}
