//! Packing: every operand of a block of 64 positions becomes zero-padded words in the layouts the tiles read.
//!
//! - rows: `[head][position][row words]`, pairs along the head dimension: A operands;
//! - transposed: `[head][block][row words][64 positions]`: B operands of scores;
//! - by position: `[head][position / per][padded dim]`, pairs along positions: B operands of the other products. In f32 these are the rows.

use super::mask::Documents;
use super::tile::load_words;
use super::{Shape, div_rem, head};
use crate::kernel::attend::{BLOCK, Pass, Strides};
use crate::mlir::emit::{Cmp, Elem, Emit, F32, F32X16, I32X16, Ty, V};

/// Task = (batch and kv head, block).
pub(super) fn emit<'c>(e: &Emit<'c>, shape: &Shape, task: V<'c>, args: &[V<'c>], scratch: V<'c>) {
    let k = shape.k;
    let (hkv, block) = div_rem(e, task, shape.s.blocks);
    let (b, kv) = div_rem(e, hkv, k.kv);
    let first = e.mul_n(block, BLOCK as i64);
    let zero = e.i(0);
    let source = |arg: V<'c>, s: &Strides, g: V<'c>| head(e, arg, shape.elem, s, b, kv, g);
    if let (Some(given), Some(d)) = (k.documents(), Documents::new(e, shape, args, hkv)) {
        d.pack(e, shape, args[given], b, first);
    }
    match k.pass {
        Pass::Forward => {
            let t = &args[k.accesses().len()..];
            rows(e, shape, source(args[1], &k.k, zero), &k.k, first, scratch);
            transposed(e, shape, scratch, t[1], hkv, block);
            rows(e, shape, source(args[2], &k.v, zero), &k.v, first, scratch);
            by_position(e, shape, scratch, t[2], hkv, first);
            e.each(0, k.group as i64, 1, |e, g| {
                let hq = e.add(e.mul_n(hkv, k.group as i64), g);
                let q = head(e, args[0], shape.elem, &k.q, b, kv, g);
                rows(e, shape, q, &k.q, first, at_rows(e, shape, t[0], hq, first));
            });
        }
        Pass::Backward => {
            let t = &args[k.accesses().len()..];
            rows(e, shape, source(args[1], &k.k, zero), &k.k, first, scratch);
            transposed(e, shape, scratch, t[2], hkv, block);
            by_position(e, shape, scratch, t[4], hkv, first);
            rows(e, shape, source(args[2], &k.v, zero), &k.v, first, scratch);
            transposed(e, shape, scratch, t[3], hkv, block);
            e.each(0, k.group as i64, 1, |e, g| {
                let hq = e.add(e.mul_n(hkv, k.group as i64), g);
                let source = |arg, s| head(e, arg, shape.elem, s, b, kv, g);
                for (arg, s, by_row, by_pos) in [(args[0], &k.q, t[0], t[5]), (args[5], &k.dy, t[1], t[6])] {
                    let to = at_rows(e, shape, by_row, hq, first);
                    rows(e, shape, source(arg, s), s, first, to);
                    by_position(e, shape, to, by_pos, hq, first);
                }
                let lse = e.add(
                    e.mul_n(e.add(e.mul_n(b, k.time as i64), zero), (k.kv * k.group) as i64),
                    e.add(e.mul_n(kv, k.group as i64), g),
                );
                statistics(
                    e,
                    shape,
                    source(args[3], &k.y),
                    source(args[5], &k.dy),
                    e.gep(args[4], Elem::F32, lse),
                    first,
                    hq,
                    t[7],
                    t[8],
                );
            });
        }
    }
}

/// Address of a packed row.
pub(super) fn at_rows<'c>(e: &Emit<'c>, shape: &Shape, base: V<'c>, head: V<'c>, position: V<'c>) -> V<'c> {
    let index = e.add(e.mul_n(head, shape.s.time as i64), position);
    e.gep(base, Elem::F32, e.mul_n(index, shape.row() as i64))
}

/// 64 positions from `first` as words at `to`; positions beyond the end and columns beyond the head dimension are zero.
fn rows<'c>(e: &Emit<'c>, shape: &Shape, source: V<'c>, s: &Strides, first: V<'c>, to: V<'c>) {
    let zero = e.zero(if shape.pairs { I32X16 } else { F32X16 });
    e.each(0, BLOCK as i64, 1, |e, r| {
        let t = e.add(first, r);
        let out = e.gep(to, Elem::F32, e.mul_n(r, shape.row() as i64));
        let inside = e.cmp(Cmp::Lt, t, e.i(shape.k.time as i64));
        let from = e.gep(source, shape.elem, e.mul_n(t, s.time));
        for c in (0..shape.row()).step_by(16) {
            let v = e.if_(inside, &[zero.ty], |e| vec![words(e, shape, from, c)], |_| vec![zero]);
            e.store(v[0], e.gep_const(out, Elem::F32, c as i64));
        }
    });
}

/// Words `c..c + 16` of a row of the head dimension.
fn words<'c>(e: &Emit<'c>, shape: &Shape, row: V<'c>, c: usize) -> V<'c> {
    let n = (shape.words() - c).min(16) as u32;
    let first = e.gep_const(row, shape.elem, (c * shape.per) as i64);
    let masked = |ty: Ty, n: u32| {
        if n == ty.lanes { e.load(first, ty) } else { e.masked_load(first, e.first_lanes(ty.lanes, n), e.zero(ty)) }
    };
    match (shape.pairs, shape.elem) {
        (true, _) => masked(I32X16, n),
        (false, Elem::Bf16) => {
            // An even head dimension: whole pairs.
            let v = masked(Ty::vec(8, Elem::I32), n / 2);
            e.from_bf16(e.bitcast(v, Ty::vec(16, Elem::Bf16)))
        }
        _ => masked(F32X16, n),
    }
}

/// One row's 16 f32 values from element `c` (for statistics).
fn values<'c>(e: &Emit<'c>, shape: &Shape, row: V<'c>, c: usize) -> V<'c> {
    let n = (shape.k.dim - c).min(16) as u32;
    let first = e.gep_const(row, shape.elem, c as i64);
    let masked = |ty: Ty, n: u32| {
        if n == ty.lanes { e.load(first, ty) } else { e.masked_load(first, e.first_lanes(ty.lanes, n), e.zero(ty)) }
    };
    if shape.elem == Elem::Bf16 {
        e.from_bf16(e.bitcast(masked(Ty::vec(8, Elem::I32), n / 2), Ty::vec(16, Elem::Bf16)))
    } else {
        masked(F32X16, n)
    }
}

/// Packed rows of one block to `[row words][64]` by 16×16 transposes of words.
fn transposed<'c>(e: &Emit<'c>, shape: &Shape, from: V<'c>, to: V<'c>, head: V<'c>, block: V<'c>) {
    let index = e.add(e.mul_n(head, shape.s.blocks as i64), block);
    let to = e.gep(to, Elem::F32, e.mul_n(index, (shape.row() * BLOCK) as i64));
    e.each(0, BLOCK as i64, 16, |e, r| {
        e.each(0, shape.row() as i64, 16, |e, c| {
            let tile: Vec<V> = (0..16)
                .map(|i| load_words(e, shape, from, e.add(e.mul_n(e.add_n(r, i), shape.row() as i64), c)))
                .collect();
            for (i, v) in e.transpose16(&tile).into_iter().enumerate() {
                let at = e.add(e.mul_n(e.add_n(c, i as i64), BLOCK as i64), r);
                e.store(v, e.gep(to, Elem::F32, at));
            }
        });
    });
}

/// Packed rows of 64 positions to `[position / per][padded dim]`.
fn by_position<'c>(e: &Emit<'c>, shape: &Shape, from: V<'c>, to: V<'c>, head: V<'c>, first: V<'c>) {
    let dim = shape.s.dim;
    let index = e.add(e.mul_n(head, shape.s.time as i64), first);
    let to = e.gep(to, Elem::F32, e.mul_n(e.divu(index, e.i(shape.per as i64)), dim as i64));
    e.each(0, BLOCK as i64, shape.per as i64, |e, r| {
        let out = e.gep(to, Elem::F32, e.mul_n(e.divu(r, e.i(shape.per as i64)), dim as i64));
        let row = e.gep(from, Elem::F32, e.mul_n(r, shape.row() as i64));
        for c in (0..dim).step_by(16) {
            let v = if shape.pairs {
                let half = |i: usize| {
                    e.load(e.gep_const(row, Elem::Bf16, (2 * i * shape.row() + c) as i64), Ty::vec(16, Elem::Bf16))
                };
                e.interleave(half(0), half(1))
            } else {
                e.load(e.gep_const(row, Elem::F32, c as i64), F32X16)
            };
            e.store(v, e.gep_const(out, Elem::F32, c as i64));
        }
    });
}

/// `delta = sum(y * dy)` and lse in base-2 units for 64 rows; zero beyond the end.
#[allow(clippy::too_many_arguments)]
fn statistics<'c>(
    e: &Emit<'c>,
    shape: &Shape,
    y: V<'c>,
    dy: V<'c>,
    lse: V<'c>,
    first: V<'c>,
    hq: V<'c>,
    delta_to: V<'c>,
    lse_to: V<'c>,
) {
    let k = shape.k;
    e.each(0, BLOCK as i64, 1, |e, r| {
        let t = e.add(first, r);
        let inside = e.cmp(Cmp::Lt, t, e.i(k.time as i64));
        let out = e.if_(
            inside,
            &[F32, F32],
            |e| {
                let (yr, dyr) =
                    (e.gep(y, shape.elem, e.mul_n(t, k.y.time)), e.gep(dy, shape.elem, e.mul_n(t, k.dy.time)));
                let mut acc = e.zero(F32X16);
                for c in (0..k.dim).step_by(16) {
                    acc = e.fma(values(e, shape, yr, c), values(e, shape, dyr, c), acc);
                }
                let l = e.load(e.gep(lse, Elem::F32, e.mul_n(t, (k.kv * k.group) as i64)), F32);
                vec![e.reduce(acc, |a, b| e.add(a, b)), e.mul(l, e.fconst(F32, std::f64::consts::LOG2_E))]
            },
            |e| vec![e.fconst(F32, 0.0), e.fconst(F32, 0.0)],
        );
        let index = e.add(e.mul_n(hq, shape.s.time as i64), t);
        e.store(out[0], e.gep(delta_to, Elem::F32, index));
        e.store(out[1], e.gep(lse_to, Elem::F32, index));
    });
}
