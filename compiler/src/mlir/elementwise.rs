//! The graph's element-wise operations on values of any shape.
//!
//! *Takes* operations of [`crate::graph::ir`] and operands typed f32, i32 or i1; *gives* the result; *promises* one meaning of every operation in all
//! kernel families: row bodies and epilogues call these, nothing else.

use super::emit::{Cmp, Elem, Emit, Ty, V};
use super::math;
use crate::graph::ir::{Binary, DType, Node, Op, Reduce, Unary};

/// Element of a value inside a kernel: all floats are f32, narrower integers i32, booleans i1.
pub fn value_elem(dtype: DType) -> Elem {
    match dtype {
        DType::F32 | DType::Bf16 | DType::F16 => Elem::F32,
        DType::I32 | DType::I8 => Elem::I32,
        DType::Bool => Elem::I1,
    }
}

/// A node of an epilogue that reads nothing, its operands given by number.
pub fn node<'c>(e: &Emit<'c>, node: &Node, arg: impl Fn(usize) -> V<'c>) -> V<'c> {
    match &node.op {
        Op::Const(x) => match node.ty.dtype {
            DType::I32 | DType::I8 => e.iconst(Ty::of(Elem::I32), x.get() as i64),
            DType::Bool => e.iconst(Ty::of(Elem::I1), (x.get() != 0.0) as i64),
            _ => e.fconst(Ty::of(Elem::F32), x.get()),
        },
        Op::Unary(op) => unary(e, *op, arg(0)),
        Op::Binary(op) => binary(e, *op, arg(0), arg(1)),
        Op::Select => e.select(arg(0), arg(1), arg(2)),
        Op::Cast(to) => cast(e, arg(0), *to),
        Op::Broadcast | Op::StraightThrough | Op::StopGradient => arg(0),
        other => unreachable!("{other:?} was refused by `check_ops`"),
    }
}

/// One operand.
pub fn unary<'c>(e: &Emit<'c>, op: Unary, x: V<'c>) -> V<'c> {
    match op {
        Unary::Neg => e.neg(x),
        Unary::Exp => math::exp(e, x),
        Unary::Log => math::log(e, x),
        Unary::Tanh => math::tanh(e, x),
        Unary::Sigmoid => math::sigmoid(e, x),
        Unary::Sin => math::sin(e, x),
        Unary::Cos => math::cos(e, x),
        Unary::Sqrt => math::sqrt(e, x),
        Unary::Rsqrt => math::rsqrt(e, x),
        Unary::Abs => e.abs(x),
        Unary::Recip => math::recip(e, x),
        Unary::Round => e.round_even(x),
        Unary::Floor => e.floor(x),
        Unary::Sign => sign(e, x),
        Unary::Not => e.xor(x, e.iconst(x.ty, -1)),
    }
}

fn sign<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    let zero = e.zero(x.ty);
    let (one, minus) = match x.ty.elem.is_float() {
        true => (e.fconst(x.ty, 1.0), e.fconst(x.ty, -1.0)),
        false => (e.iconst(x.ty, 1), e.iconst(x.ty, -1)),
    };
    let y = e.select(e.cmp(Cmp::Lt, x, zero), minus, zero);
    e.select(e.cmp(Cmp::Gt, x, zero), one, y)
}

/// Two operands of one type; comparisons give i1.
pub fn binary<'c>(e: &Emit<'c>, op: Binary, mut a: V<'c>, mut b: V<'c>) -> V<'c> {
    if a.ty.elem == Elem::I1 && matches!(op, Binary::Lt | Binary::Le | Binary::Gt | Binary::Ge) {
        // As signed integers of one bit, true would be less than false.
        (a, b) = (e.zero_extend(a, Elem::I32), e.zero_extend(b, Elem::I32));
    }
    match op {
        Binary::Add => e.add(a, b),
        Binary::Sub => e.sub(a, b),
        Binary::Mul => e.mul(a, b),
        Binary::Div if a.ty.elem.is_float() => math::div(e, a, b),
        Binary::Div => floor_quotient(e, a, b),
        Binary::Min => e.min(a, b),
        Binary::Max => e.max(a, b),
        Binary::Pow => math::pow(e, a, b),
        Binary::Mod => modulo(e, a, b),
        Binary::And => e.and(a, b),
        Binary::Or => e.or(a, b),
        Binary::Xor => e.xor(a, b),
        // Shift counts wrap at the width, as on the machine.
        Binary::Shl => e.shl(a, e.and(b, e.iconst(b.ty, 31))),
        Binary::Shr => e.shr(a, e.and(b, e.iconst(b.ty, 31))),
        Binary::Eq => e.cmp(Cmp::Eq, a, b),
        Binary::Ne => e.cmp(Cmp::Ne, a, b),
        Binary::Lt => e.cmp(Cmp::Lt, a, b),
        Binary::Le => e.cmp(Cmp::Le, a, b),
        Binary::Gt => e.cmp(Cmp::Gt, a, b),
        Binary::Ge => e.cmp(Cmp::Ge, a, b),
    }
}

/// Remainder with the sign of the divisor; floats: `a - b * floor(a / b)`.
fn modulo<'c>(e: &Emit<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
    if a.ty.elem.is_float() {
        return e.sub(a, e.mul(b, e.floor(e.div(a, b))));
    }
    e.sub(a, e.mul(floor_quotient(e, a, b), b))
}

/// `floor(a / b)` of i32. Through f64, where it is exact (the quotient is at least 1/|b| away from an integer it does not equal, its
/// rounding error at most 2^-22/|b|), vectorises, and does not trap: division by zero gives some number.
fn floor_quotient<'c>(e: &Emit<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
    let wide = |x| e.to_float(x, Elem::F64);
    let q = e.floor(e.div(wide(a), wide(b)));
    e.to_int(clamp(e, q, -2147483648.0, 2147483647.0), Elem::I32)
}

/// What a reduction starts from.
pub fn identity<'c>(e: &Emit<'c>, kind: Reduce, ty: Ty) -> V<'c> {
    let float = ty.elem.is_float();
    match kind {
        Reduce::Sum => e.zero(ty),
        Reduce::Max if float => e.fconst(ty, f64::NEG_INFINITY),
        Reduce::Min if float => e.fconst(ty, f64::INFINITY),
        Reduce::Max => e.iconst(ty, i32::MIN as i64),
        Reduce::Min => e.iconst(ty, i32::MAX as i64),
    }
}

/// One step of a reduction.
pub fn combine<'c>(e: &Emit<'c>, kind: Reduce, a: V<'c>, b: V<'c>) -> V<'c> {
    let op = match kind {
        Reduce::Sum => Binary::Add,
        Reduce::Max => Binary::Max,
        Reduce::Min => Binary::Min,
    };
    binary(e, op, a, b)
}

/// A number, floats rounded to f32.
pub fn constant<'c>(e: &Emit<'c>, x: f64, ty: Ty) -> V<'c> {
    if ty.elem.is_float() { e.fconst(ty, x as f32 as f64) } else { e.iconst(ty, x as i64) }
}

/// Rounds a value to a dtype and gives it back in the value type of that dtype.
pub fn cast<'c>(e: &Emit<'c>, x: V<'c>, to: DType) -> V<'c> {
    use Elem::{F32, I1, I32};
    match (x.ty.elem, to) {
        (F32, DType::F32) | (I32, DType::I32) | (I1, DType::Bool) => x,
        (F32, DType::Bf16) => e.from_bf16(e.to_bf16(x)),
        (F32, DType::F16) => e.extend(e.narrow(x, Elem::F16), F32),
        (F32, DType::I32) => {
            // 2147483520 is the largest f32 below 2^31.
            let n = e.to_int(clamp(e, x, -2147483648.0, 2147483520.0), I32);
            let over = e.cmp(Cmp::Ge, x, e.fconst(x.ty, 2147483648.0));
            e.select(over, e.iconst(n.ty, i32::MAX as i64), n)
        }
        (F32, DType::I8) => e.to_int(clamp(e, x, -128.0, 127.0), I32),
        (I32, DType::I8) => e.max(e.min(x, e.iconst(x.ty, 127)), e.iconst(x.ty, -128)),
        (I1, DType::I32 | DType::I8) => e.zero_extend(x, I32),
        (F32 | I32, DType::Bool) => e.cmp(Cmp::Ne, x, e.zero(x.ty)),
        (I1, _) => cast(e, e.to_float(e.zero_extend(x, I32), F32), to),
        (I32, _) => cast(e, e.to_float(x, F32), to),
        (elem, to) => panic!("cast of {elem:?} to {to:?}: values inside kernels are f32, i32 or i1"),
    }
}

/// Into `low..=high`; NaN becomes 0, so that a following conversion to an integer is defined.
fn clamp<'c>(e: &Emit<'c>, x: V<'c>, low: f64, high: f64) -> V<'c> {
    let x = e.select(e.cmp(Cmp::Uno, x, x), e.zero(x.ty), x);
    e.max(e.min(x, e.fconst(x.ty, high)), e.fconst(x.ty, low))
}
