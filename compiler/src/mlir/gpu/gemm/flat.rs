//! The launches around the products: copies of operands in bf16, and the addition of partial sums.
//!
//! *Takes* an operand (or partial sums); *gives* one function with a thread for every 8 consecutive elements; *promises* accesses of 16 bytes where the
//! operand's strides allow it.

use super::epilogue::{Lanes, Program};
use super::{batch_indices, ops, scaled};
use crate::graph::ir::DType;
use crate::kernel::gemm::{Gemm, Operand};
use crate::kernel::gpu::gemm::{FLAT_THREADS, Plan, Source, VECTOR};
use crate::mlir::emit::{Cmp, Elem, Emit, I32, Ty, Unit, V};
use crate::mlir::memory;

const LANES: u32 = VECTOR as u32;

/// Runs `body` with the number of this thread's vector, if there is one.
fn each_vector<'c>(e: &Emit<'c>, vectors: usize, body: impl FnOnce(&Emit<'c>, V<'c>)) {
    let thread = ops::thread(e, FLAT_THREADS);
    let number = e.add(e.mul_n(ops::block(e), FLAT_THREADS.into()), thread);
    if vectors.is_multiple_of(FLAT_THREADS as usize) {
        return body(e, number);
    }
    e.when(e.cmp(Cmp::Lt, number, e.iconst(I32, vectors as i64)), |e| body(e, number));
}

/// The copies of operands that need one.
pub(super) fn casts<T>(unit: &Unit, g: &Gemm, plan: &Plan<T>, name: &dyn Fn(&str) -> String) {
    for (entry, source, operand) in [("cast_a", &plan.a, &g.a), ("cast_b", &plan.b, &g.b)] {
        if let Some(pitch) = source.copied.filter(|_| entry == "cast_a" || !g.symmetric) {
            cast(unit, &name(entry), g, source, operand, pitch);
        }
    }
}

/// `to[matrix, row, ..] = bf16(from[..])`: rows along the operand's contiguous index, `pitch` elements apart.
fn cast(unit: &Unit, symbol: &str, g: &Gemm, source: &Source, operand: &Operand, pitch: usize) {
    let (width, rows) = source.extents;
    let per_row = width.div_ceil(VECTOR);
    let stride = if source.k_major { operand.row } else { operand.k };
    let elem = memory::storage_elem(operand.dtype);
    let bits = Ty::of(elem).int();
    // Elements per access.
    let mut wide = 16 / elem.bytes() as i64;
    let strides = source.batch.iter().map(|&i| operand.batch[i]);
    for stride in strides.chain([operand.offset, if rows > 1 { stride } else { 0 }]) {
        while stride % wide != 0 {
            wide /= 2;
        }
    }
    unit.gpu_kernel(symbol, 2, 0, FLAT_THREADS, |e, args, _| {
        each_vector(e, source.copied_rows(g) * per_row, |e, number| {
            let c = |n: usize| e.iconst(I32, n as i64);
            let (line, col) = (e.divu(number, c(per_row)), e.remu(number, c(per_row)));
            let (mut matrix, row) = (e.divu(line, c(rows)), e.remu(line, c(rows)));
            let mut from = e.gep_const(args[0], elem, operand.offset);
            for &i in source.batch.iter().rev() {
                let extent = c(g.batch[i]);
                from = e.gep(from, elem, scaled(e, e.remu(matrix, extent), operand.batch[i]));
                matrix = e.divu(matrix, extent);
            }
            let col = e.mul_n(col, VECTOR as i64);
            from = e.gep(from, elem, e.add(scaled(e, row, stride), scaled(e, col, 1)));
            let to = e.gep(args[1], Elem::Bf16, e.add(scaled(e, line, pitch as i64), scaled(e, col, 1)));
            let tail = width % VECTOR;
            if tail == 0 {
                return eight(e, from, to, operand.dtype, wide);
            }
            let last = e.cmp(Cmp::Eq, col, c(width - tail));
            e.if_(
                last,
                &[],
                |e| {
                    let one = |i| if i < tail { e.load(e.gep_const(from, elem, i as i64), bits) } else { e.zero(bits) };
                    store_rounded(e, &(0..VECTOR).map(one).collect::<Vec<_>>(), to, operand.dtype);
                    vec![]
                },
                |e| {
                    eight(e, from, to, operand.dtype, wide);
                    vec![]
                },
            );
        });
    });
}

/// Copies 8 elements, `wide` per access.
fn eight<'c>(e: &Emit<'c>, from: V<'c>, to: V<'c>, dtype: DType, wide: i64) {
    let elem = memory::storage_elem(dtype);
    let ty = Ty::vec(wide as u32, elem).int();
    let part = |lane: i64| {
        let x = e.load_aligned(e.gep_const(from, elem, lane), ty, wide as usize * elem.bytes());
        (0..wide as u32).map(|i| e.extract(x, i)).collect::<Vec<_>>()
    };
    let parts: Vec<V> = (0..VECTOR as i64).step_by(wide as usize).flat_map(part).collect();
    store_rounded(e, &parts, to, dtype);
}

/// Stores the bits of 8 elements of `dtype`, rounded to bf16.
fn store_rounded<'c>(e: &Emit<'c>, parts: &[V<'c>], to: V<'c>, dtype: DType) {
    let bits = e.op1("vector.from_elements", parts, Ty::vec(LANES, parts[0].ty.elem), &[]);
    let x = memory::widen(e, e.bitcast(bits, bits.ty.with(memory::storage_elem(dtype))), dtype);
    e.store_aligned(e.to_bf16(x), to, 16);
}

/// Adds the pieces' sums in their order and runs the epilogue.
pub(super) fn reduce<T>(unit: &Unit, symbol: &str, g: &Gemm, plan: &Plan<T>) {
    let pitch = Plan::partial_pitch(g);
    let partial = Plan::partial(g);
    unit.gpu_kernel(symbol, 1 + g.args.len(), 0, FLAT_THREADS, |e, args, _| {
        let program = Program::new(g, &args[1..]);
        each_vector(e, partial / VECTOR, |e, number| {
            let c = |n: usize| e.iconst(I32, n as i64);
            let at = e.gep(args[0], Elem::F32, scaled(e, number, VECTOR as i64));
            let load = |piece: usize| {
                let part = |lane: i64| {
                    let at = e.gep_const(at, Elem::F32, (piece * partial) as i64 + lane);
                    e.load_aligned(at, Ty::vec(4, Elem::F32), 16)
                };
                e.concat(part(0), part(4))
            };
            let sums = (1..plan.splits).fold(load(0), |sum, piece| e.add(sum, load(piece)));
            let (line, col) = (e.divu(number, c(pitch / VECTOR)), e.remu(number, c(pitch / VECTOR)));
            let (matrix, row) = (e.divu(line, c(g.m)), e.remu(line, c(g.m)));
            let col = e.mul_n(col, VECTOR as i64);
            let block = program.block(e, &batch_indices(e, g, matrix));
            let of_row = program.row(e, &block, row, col, None);
            let tail = g.n % VECTOR;
            if tail == 0 {
                return program.vector(e, &of_row, 0, Lanes::Row(LANES), sums);
            }
            e.if_(
                e.cmp(Cmp::Eq, col, c(g.n - tail)),
                &[],
                |e| {
                    program.vector(e, &of_row, 0, Lanes::Row(tail as u32), sums);
                    vec![]
                },
                |e| {
                    program.vector(e, &of_row, 0, Lanes::Row(LANES), sums);
                    vec![]
                },
            );
        });
    });
}
