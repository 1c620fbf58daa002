//! Every element-wise op of the graph against the interpreter's scalar arithmetic.

use super::super::elementwise;
use super::super::emit::{Elem, Emit, F32X16, I32X16, V};
use super::{Random, load, tiers};
use crate::graph::ir::{Binary, DType, Unary};
use crate::graph::scalar;

/// Inputs as raw 32-bit lanes.
fn float_inputs() -> Vec<u32> {
    let mut random = Random(3);
    let edges = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, 127.4, -300.0, 3e9, -3e9, 1e-3, f32::NAN];
    edges.into_iter().chain((0..240).map(|_| (random.uniform() * 8.0) as f32)).map(f32::to_bits).collect()
}

fn int_inputs() -> Vec<u32> {
    let mut random = Random(4);
    let edges = [0, 1, -1, 2, -2, 31, 32, 33, i32::MAX, i32::MIN, i32::MAX - 1, i32::MIN + 1, 7, -7, 10240, 65536];
    edges.into_iter().chain((0..240).map(|i| (random.next() as i32) >> (i % 31))).map(|i| i as u32).collect()
}

/// The same values in another order, so that pairs vary.
fn shuffled(x: &[u32]) -> Vec<u32> {
    (0..x.len()).map(|i| x[(i * 37 + 5) % x.len()]).collect()
}

type Body = dyn for<'c> Fn(&Emit<'c>, V<'c>, V<'c>) -> V<'c>;

/// Applies `f` to 16 lanes at a time; booleans come out as 0 and 1.
fn run(float: bool, a: &[u32], b: &[u32], f: &Body) -> Vec<u32> {
    let ty = if float { F32X16 } else { I32X16 };
    let raw = |x: &[u32]| -> Vec<u8> { x.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let mut results = tiers().into_iter().map(|tier| {
        let code = load(tier, 3, |e, _, args, _| {
            e.each(0, a.len() as i64, 16, |e, i| {
                let at = |k: usize| e.gep(args[k], Elem::I32, i);
                let y = f(e, e.load(at(0), ty), e.load(at(1), ty));
                e.store(if y.ty.elem == Elem::I1 { e.zero_extend(y, Elem::I32) } else { y }, at(2));
            });
        });
        let mut args = [raw(a), raw(b), raw(a)];
        code.call("f", 1, &mut args, 0).expect("runs");
        args[2].chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("4 bytes"))).collect::<Vec<_>>()
    });
    let first = results.next().expect("a tier");
    assert!(results.all(|r| r == first), "tiers differ");
    first
}

fn value(float: bool, bits: u32) -> f64 {
    if float { f32::from_bits(bits) as f64 } else { bits as i32 as f64 }
}

/// Equal, or close in the way rounding to f32 allows (`math` tests the last digits).
fn close(got: f64, want: f64, float: bool) -> bool {
    let want = if float { want as f32 as f64 } else { want };
    got == want || (got.is_nan() && want.is_nan()) || (float && (got - want).abs() <= 5e-7 * want.abs())
}

#[test]
fn unary_ops() {
    use Unary::*;
    for (float, ops) in [
        (true, vec![Neg, Exp, Log, Tanh, Sigmoid, Sqrt, Rsqrt, Abs, Recip, Round, Floor, Sign]),
        (false, vec![Neg, Abs, Sign]),
    ] {
        let x = if float { float_inputs() } else { int_inputs() };
        for op in ops {
            let y = run(float, &x, &x, &move |e, a, _| elementwise::unary(e, op, a));
            for (&x, &y) in x.iter().zip(&y) {
                let (x, y) = (value(float, x), value(float, y));
                let want = scalar::unary(op, x, !float);
                assert!(close(y, want, float), "{op:?}({x}) = {y}, want {want}");
            }
        }
    }
}

#[test]
fn binary_ops() {
    use Binary::*;
    let comparisons = [Eq, Ne, Lt, Le, Gt, Ge];
    for (float, ops) in [
        (true, vec![Add, Sub, Mul, Div, Min, Max, Mod]),
        (false, vec![Add, Sub, Mul, Div, Min, Max, Mod, And, Or, Xor, Shl, Shr]),
    ] {
        let a = if float { float_inputs() } else { int_inputs() };
        let b = shuffled(&a);
        for op in ops.into_iter().chain(comparisons) {
            let y = run(float, &a, &b, &move |e, a, b| elementwise::binary(e, op, a, b));
            for ((&a, &b), &y) in a.iter().zip(&b).zip(&y) {
                let is_float = float && !comparisons.contains(&op);
                let (a, b, y) = (value(float, a), value(float, b), value(is_float, y));
                // `x mod y` on floats is defined by f32 steps; f64 steps differ where the quotient rounds.
                if op == Mod && float && (a / b).abs() > 1e4 {
                    continue;
                }
                let Some(want) = scalar::binary(op, a, b, !float) else { continue };
                let slack = if op == Mod && float { 2e-6 * (a.abs() + b.abs()) } else { 0.0 };
                assert!(close(y, want, is_float) || (y - want).abs() <= slack, "{op:?}({a}, {b}) = {y}, want {want}");
            }
        }
    }
}

#[test]
fn casts() {
    for (float, targets) in [
        (true, vec![DType::F32, DType::Bf16, DType::F16, DType::I32, DType::I8, DType::Bool]),
        (false, vec![DType::F32, DType::Bf16, DType::F16, DType::I32, DType::I8, DType::Bool]),
    ] {
        let x = if float { float_inputs() } else { int_inputs() };
        for to in targets {
            let y = run(float, &x, &x, &move |e, a, _| elementwise::cast(e, a, to));
            for (&x, &y) in x.iter().zip(&y) {
                let x = value(float, x);
                let y = value(to.is_float(), y);
                let want = scalar::cast(if float { x } else { x as f32 as f64 }, to);
                let want = if float || to.is_float() { want } else { scalar::cast(x, to) };
                assert!(y == want || (y.is_nan() && want.is_nan()), "{x} as {to:?} = {y}, want {want}");
            }
        }
    }
}
