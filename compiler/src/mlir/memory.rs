//! Vectors of any storage dtype in and out of memory.
//!
//! *Takes* pointers and dtypes; *gives* lanes as kernels compute with them (f32, i32, i1) and back; *promises* to touch exactly the `n` elements
//! named. `n` is known when emitting, so tails need no run-time masks.

use super::elementwise::value_elem;
use super::emit::{Cmp, Elem, Emit, Ty, V};
use crate::graph::ir::DType;

/// Element in memory.
pub fn storage_elem(dtype: DType) -> Elem {
    match dtype {
        DType::F32 => Elem::F32,
        DType::Bf16 => Elem::Bf16,
        DType::F16 => Elem::F16,
        DType::I32 => Elem::I32,
        DType::I8 | DType::Bool => Elem::I8,
    }
}

/// Address of element `index` of an array of `dtype`.
pub fn at<'c>(e: &Emit<'c>, base: V<'c>, dtype: DType, index: V<'c>) -> V<'c> {
    e.gep(base, storage_elem(dtype), index)
}

/// Loads one element.
pub fn load_scalar<'c>(e: &Emit<'c>, ptr: V<'c>, dtype: DType) -> V<'c> {
    widen(e, e.load(ptr, Ty::of(storage_elem(dtype))), dtype)
}

/// Stores one element.
pub fn store_scalar<'c>(e: &Emit<'c>, v: V<'c>, ptr: V<'c>, dtype: DType) {
    e.store(as_integer(e, narrow(e, v, dtype)), ptr);
}

/// 16-bit floats as integers: x86-64-v3 has no registers for them, and LLVM would call a conversion function when it takes them apart.
fn as_integer<'c>(e: &Emit<'c>, v: V<'c>) -> V<'c> {
    if v.ty.elem.bytes() == 2 { e.bitcast(v, v.ty.int()) } else { v }
}

/// Loads the first `n <= lanes` of `lanes` elements, the others are 0.
pub fn load<'c>(e: &Emit<'c>, ptr: V<'c>, dtype: DType, lanes: u32, n: u32) -> V<'c> {
    widen(e, load_raw(e, ptr, dtype, lanes, n), dtype)
}

/// As [`load`], in storage form.
pub fn load_raw<'c>(e: &Emit<'c>, ptr: V<'c>, dtype: DType, lanes: u32, n: u32) -> V<'c> {
    let elem = storage_elem(dtype);
    let ty = Ty::vec(lanes, elem);
    if n >= lanes {
        e.load(ptr, ty)
    } else if elem.bytes() == 4 {
        e.masked_load(ptr, e.first_lanes(lanes, n), e.zero(ty))
    } else {
        e.bitcast(load_pieces(e, ptr, ty.int(), n), ty)
    }
}

/// Stores the first `n <= lanes` lanes.
pub fn store<'c>(e: &Emit<'c>, v: V<'c>, ptr: V<'c>, dtype: DType, n: u32) {
    let raw = as_integer(e, narrow(e, v, dtype));
    if n >= raw.ty.lanes {
        e.store(raw, ptr);
    } else if raw.ty.elem.bytes() == 4 {
        e.masked_store(raw, ptr, e.first_lanes(raw.ty.lanes, n));
    } else {
        for (start, count) in pieces(n) {
            e.store(e.lanes(raw, start, count), e.gep_const(ptr, raw.ty.elem, start as i64));
        }
    }
}

/// Loads one element per pointer into the first of 16 lanes.
pub fn load_lanes<'c>(e: &Emit<'c>, pointers: &[V<'c>], dtype: DType) -> V<'c> {
    let elem = storage_elem(dtype);
    let bits = Ty::of(elem).int();
    let mut v = e.zero(Ty::vec(16, bits.elem));
    for (lane, &pointer) in pointers.iter().enumerate() {
        v = e.insert(e.load(pointer, bits), v, lane as u32);
    }
    widen(e, e.bitcast(v, v.ty.with(elem)), dtype)
}

/// Stores the first lanes, one per pointer.
pub fn store_lanes<'c>(e: &Emit<'c>, v: V<'c>, pointers: &[V<'c>], dtype: DType) {
    let bits = as_integer(e, narrow(e, v, dtype));
    for (lane, &pointer) in pointers.iter().enumerate() {
        e.store(e.extract(bits, lane as u32), pointer);
    }
}

/// `n` as a sum of powers of two, largest first: (start, count).
fn pieces(n: u32) -> Vec<(u32, u32)> {
    let mut start = 0;
    let mut out = vec![];
    for bit in (0..32).rev().map(|b| 1u32 << b).filter(|b| n & b != 0) {
        out.push((start, bit));
        start += bit;
    }
    out
}

fn load_pieces<'c>(e: &Emit<'c>, ptr: V<'c>, ty: Ty, n: u32) -> V<'c> {
    let mut whole = e.zero(ty);
    for (start, count) in pieces(n) {
        let piece = e.load(e.gep_const(ptr, ty.elem, start as i64), Ty::vec(count, ty.elem));
        let spread: Vec<i64> = (0..ty.lanes as i64).map(|i| if i < count as i64 { i } else { -1 }).collect();
        let piece = e.shuffle(piece, piece, &spread);
        let pick: Vec<i64> = (0..ty.lanes)
            .map(|i| if (start..start + count).contains(&i) { (ty.lanes + i - start) as i64 } else { i as i64 })
            .collect();
        whole = e.shuffle(whole, piece, &pick);
    }
    whole
}

/// Storage form to value form.
pub fn widen<'c>(e: &Emit<'c>, v: V<'c>, dtype: DType) -> V<'c> {
    match dtype {
        DType::F32 | DType::I32 => v,
        DType::Bf16 => e.from_bf16(v),
        DType::F16 => e.extend(v, Elem::F32),
        DType::I8 => e.int_cast(v, Elem::I32),
        DType::Bool => e.cmp(Cmp::Ne, v, e.zero(v.ty)),
    }
}

/// Value form to storage form, rounding to nearest even.
pub fn narrow<'c>(e: &Emit<'c>, v: V<'c>, dtype: DType) -> V<'c> {
    assert_eq!(v.ty.elem, value_elem(dtype), "stored as {dtype:?}");
    match dtype {
        DType::F32 | DType::I32 => v,
        DType::Bf16 => e.to_bf16(v),
        DType::F16 => e.narrow(v, Elem::F16),
        DType::I8 => e.int_cast(v, Elem::I8),
        DType::Bool => e.zero_extend(v, Elem::I8),
    }
}
