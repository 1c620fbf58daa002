//! The forward pass.
//!
//! *Takes* q, k, v; *gives* y and the log-sum-exp; *promises* every row's sums in the order of its keys.
//!
//! Step i of a warpgroup: start `S = q k_i`, start `O += P v_(i-1)`; when S is there, the softmax of S runs while the tensor cores do the second; then O
//! is scaled to the new maximum and S becomes P.

use std::f64::consts::{LN_2, LOG2_E};

use super::documents::{Documents, tiles};
use super::finish::finish;
use super::parts::{Block, Element, Mask, Place, Tensor, keys_of, over_quad, pack_all};
use crate::kernel::attend::AttendKernel;
use crate::kernel::gpu::attend::{Order, ROWS, Shape};
use crate::mlir::emit::{Cmp, Elem, Emit, F32, I32, Unit, V};
use crate::mlir::gpu::ops;

/// Streams of the block's ring.
const K: usize = 0;
const V_: usize = 1;

/// Emits the launch.
pub(super) fn emit(unit: &Unit, k: &AttendKernel, symbol: &str) {
    let s = Shape::forward(k);
    let o = Order::queries(k, &s);
    let (parameters, maps) = (parameters(k), if k.epilogue.is_none() { 4 } else { 3 });
    unit.gpu_kernel(symbol, parameters, maps, s.threads(), |e, args, maps| {
        let place = Place::new(e, k, &s, &o);
        let block = Block::start(e, &s, maps);
        let documents = k.document.then(|| Documents::new(e, k, &args[parameters - 2..], place.batch));
        let q = Tensor::q(k, maps[0]);
        let streams = [Tensor::kv(k, maps[1]), Tensor::kv(k, maps[2])];
        block.split(
            e,
            |e| {
                block.load_kept(e, &[q], &place);
                let (lo, hi) = keys_of(e, k, place.row, s.rows(), s.step);
                let (lo, hi) = tiles(e, documents, &s, place.row, (lo, hi));
                e.for_(e.iconst(I32, 0), e.sub(hi, lo), e.iconst(I32, 1), &[], |e, i, _| {
                    let row = e.mul_n(e.add(lo, i), s.step as i64);
                    for (n, t) in streams.iter().enumerate() {
                        let bar = block.refill(e, n, i, s.tile());
                        block.load_tile(e, (n, i), t, bar, row, &place);
                    }
                    vec![]
                });
            },
            |e, w| Softmax { k, block: &block, place: &place, documents, w }.run(e, args, maps),
        );
    });
}

/// Pointers of the launch: q, k, v, y, the log-sum-exp, documents; with an epilogue its buffers after the log-sum-exp instead of y before.
pub(super) fn parameters(k: &AttendKernel) -> usize {
    k.epilogue.as_ref().map_or(5, |p| 4 + p.args.len()) + if k.document { 2 } else { 0 }
}

/// The log-sum-exp among them.
pub(super) fn lse(k: &AttendKernel) -> usize {
    if k.epilogue.is_none() { 4 } else { 3 }
}

/// One computing warpgroup.
struct Softmax<'a, 'c> {
    k: &'a AttendKernel,
    block: &'a Block<'a, 'c>,
    place: &'a Place<'c>,
    documents: Option<Documents<'c>>,
    w: V<'c>,
}

/// Maximum so far (of unscaled scores) and this thread's part of the sum so far, of its two rows.
#[derive(Clone, Copy)]
pub(super) struct Rows<'c> {
    pub max: [V<'c>; 2],
    pub sum: [V<'c>; 2],
}

impl<'c> Softmax<'_, 'c> {
    fn run(&self, e: &Emit<'c>, args: &[V<'c>], maps: &[V<'c>]) {
        let (k, block, s) = (self.k, self.block, self.block.s);
        let n = |n: i64| e.iconst(I32, n);
        let first = e.add(self.place.row, e.mul_n(self.w, ROWS as i64));
        let (lo, _) = keys_of(e, k, self.place.row, s.rows(), s.step);
        // A warpgroup whose rows all lie behind the end computes zeros that are not stored.
        let (_, hi) = keys_of(e, k, first, ROWS, s.step);
        let (lo, hi) = tiles(e, self.documents, s, self.place.row, (lo, hi));
        let steps = e.sub(hi, lo);
        let q = block.left(e, 0, self.w);
        let at = Element::new(e, block.thread);
        let documents = self.documents.map(|d| d.rows(e, first, &at));
        let mask = Mask { k, rows: ROWS, columns: s.step, transposed: false, documents };
        let masked = |e: &Emit<'c>, scores, i| {
            let column = e.mul_n(e.add(lo, i), s.step as i64);
            mask.apply(e, ops::unpack(e, scores), f64::NEG_INFINITY, &at, (first, column))
        };

        ops::mbarrier_wait(e, block.kept(e), n(0));
        block.wait(e, K, n(0));
        ops::wgmma_fence(e);
        let scores = block.scores(e, &q, &block.right(e, K, n(0)));
        ops::wgmma_commit(e);
        let scores = ops::wgmma_wait(e, 0, &[scores])[0];
        block.free(e, K, n(0));
        let (low, zero) = (e.fconst(F32, f64::NEG_INFINITY), e.zero(F32));
        let start = Rows { max: [low; 2], sum: [zero; 2] };
        let (p, rows, _) = softmax(e, k, masked(e, scores, n(0)), start);
        let p = pack_all(e, &p);
        block.wait(e, V_, n(0));

        let acc = ops::zeros(e, s.columns() as u16 / 2);
        let count = p.len();
        let carried = [vec![acc], p, rows.max.to_vec(), rows.sum.to_vec()].concat();
        let end = e.for_(n(1), steps, n(1), &carried, |e, i, carried| {
            let (acc, p) = (carried[0], &carried[1..=count]);
            let rest = &carried[1 + count..];
            let rows = Rows { max: [rest[0], rest[1]], sum: [rest[2], rest[3]] };
            let before = e.add_n(i, -1);
            block.wait(e, K, i);
            ops::wgmma_fence(e);
            let scores = block.scores(e, &q, &block.right(e, K, i));
            ops::wgmma_commit(e);
            let acc = block.combine(e, acc, p, &block.right(e, V_, before));
            ops::wgmma_commit(e);
            let scores = ops::wgmma_wait(e, 1, &[scores])[0];
            block.free(e, K, i);
            let (p, rows, scale) = softmax(e, k, masked(e, scores, i), rows);
            // The assembler moves arithmetic behind the end of the products, but not over this loop, which ends at once: it must wait for the tile anyway.
            block.wait(e, V_, i);
            // Rounded only when the product has read the old ones: both sets do not fit the registers.
            let both = ops::wgmma_wait(e, 0, &[acc, ops::pack(e, &p)]);
            block.free(e, V_, before);
            let acc = ops::pack(e, &scaled(e, &ops::unpack(e, both[0]), scale));
            let p = pack_all(e, &ops::unpack(e, both[1]));
            [vec![acc], p, rows.max.to_vec(), rows.sum.to_vec()].concat()
        });
        let (acc, p) = (end[0], &end[1..=count]);
        let rest = &end[1 + count..];
        let last = e.add_n(steps, -1);
        ops::wgmma_fence(e);
        let acc = block.combine(e, acc, p, &block.right(e, V_, last));
        ops::wgmma_commit(e);
        let acc = ops::wgmma_wait(e, 0, &[acc])[0];

        let sum = [rest[2], rest[3]].map(|x| over_quad(e, x, |a, b| e.add(a, b)));
        // A row that sees no key is zero; its log-sum-exp is minus infinity.
        let inverse = sum.map(|x| e.select(e.cmp(Cmp::Gt, x, zero), ops::recip_approx(e, x), zero));
        let values = scaled(e, &ops::unpack(e, acc), inverse);
        log_sum_exp(e, k, (args[lse(k)], self.place), (&at, first), ([rest[0], rest[1]], sum));
        match &k.epilogue {
            None => block.store(e, &[(0, values, Tensor::q(k, maps[3]))], self.w, self.place),
            Some(p) => finish(e, (k, p), &args[lse(k) + 1..], self.place, (&at, first), &values),
        }
    }
}

/// Probabilities relative to the new maximum, the rows' new state, and what the old state was multiplied by.
pub(super) fn softmax<'c>(
    e: &Emit<'c>,
    k: &AttendKernel,
    scores: Vec<V<'c>>,
    old: Rows<'c>,
) -> (Vec<V<'c>>, Rows<'c>, [V<'c>; 2]) {
    let factor = e.fconst(F32, k.scale.get() * LOG2_E);
    let low = e.fconst(F32, f64::NEG_INFINITY);
    let (mut p, mut rows, mut scale) = (scores.clone(), old, old.max);
    for (h, scale) in scale.iter_mut().enumerate() {
        let mine: Vec<usize> = (0..scores.len()).filter(|i| i / 2 % 2 == h).collect();
        let lanes = |f: &dyn Fn(V<'c>, V<'c>) -> V<'c>, x: &[V<'c>]| -> V<'c> {
            // Four chains: enough to hide the latency, few registers.
            let mut chains: Vec<V<'c>> = mine[..4].iter().map(|&i| x[i]).collect();
            mine[4..].iter().enumerate().for_each(|(n, &i)| chains[n % 4] = f(chains[n % 4], x[i]));
            f(f(chains[0], chains[1]), f(chains[2], chains[3]))
        };
        let most = lanes(&|a, b| ops::fmax(e, a, b), &scores);
        let most = over_quad(e, most, |a, b| ops::fmax(e, a, b));
        let max = ops::fmax(e, old.max[h], most);
        // A row that has seen no key yet: every probability is 2^(-inf - 0), zero.
        let finite =
            if k.window.is_some() || k.document { e.select(e.cmp(Cmp::Eq, max, low), e.zero(F32), max) } else { max };
        let shift = e.neg(e.mul(finite, factor));
        *scale = ops::exp2_approx(e, e.fma(old.max[h], factor, shift));
        for &i in &mine {
            p[i] = ops::exp2_approx(e, e.fma(scores[i], factor, shift));
        }
        rows.max[h] = max;
        rows.sum[h] = e.fma(old.sum[h], *scale, lanes(&|a, b| e.add(a, b), &p));
    }
    (p, rows, scale)
}

/// Natural units, f32 \[batch, time, kv, group\]; one lane of four writes.
pub(super) fn log_sum_exp<'c>(
    e: &Emit<'c>,
    k: &AttendKernel,
    (lse, p): (V<'c>, &Place<'c>),
    (at, first): (&Element<'c>, V<'c>),
    (max, sum): ([V<'c>; 2], [V<'c>; 2]),
) {
    let factor = e.fconst(F32, k.scale.get() * LOG2_E);
    let heads = (k.kv * k.group) as i64;
    let head = e.add(e.mul_n(p.kv, k.group as i64), p.group);
    for h in 0..2 {
        let row = e.add_n(e.add(first, at.row), 8 * h as i64);
        let writes = e.cmp(Cmp::Eq, at.column, e.iconst(I32, 0));
        let writes = e.and(writes, e.cmp(Cmp::Lt, row, e.iconst(I32, k.time as i64)));
        let x = e.fma(max[h], factor, ops::log2_approx(e, sum[h]));
        let x = e.mul(x, e.fconst(F32, LN_2));
        e.when(writes, |e| {
            let index = e.add(e.mul_n(e.add(e.mul_n(p.batch, k.time as i64), row), heads), head);
            e.store(x, e.gep(lse, Elem::F32, index));
        });
    }
}

/// An accumulator's elements times a factor per row.
pub(super) fn scaled<'c>(e: &Emit<'c>, values: &[V<'c>], factor: [V<'c>; 2]) -> Vec<V<'c>> {
    values.iter().enumerate().map(|(i, &x)| e.mul(x, factor[i / 2 % 2])).collect()
}
