//! Elementary functions against libm in f64, over random and special arguments, on every tier.

use super::super::emit::{Elem, Emit, F32, F32X16, V};
use super::super::math;
use super::{Random, bytes, floats, load, tiers};

type Unary = for<'c> fn(&Emit<'c>, V<'c>) -> V<'c>;

/// Applies `f` to `x` on 16 lanes, and on scalars for the first 16 values.
fn apply(f: Unary, x: &[f32]) -> Vec<Vec<f32>> {
    assert_eq!(x.len() % 16, 0);
    let n = x.len() as i64;
    tiers()
        .into_iter()
        .map(|tier| {
            let code = load(tier, 2, |e, _, args, _| {
                e.each(0, n, 16, |e, i| {
                    let v = e.load(e.gep(args[0], Elem::F32, i), F32X16);
                    e.store(f(e, v), e.gep(args[1], Elem::F32, i));
                });
                e.each(0, 16, 1, |e, i| {
                    let v = e.load(e.gep(args[0], Elem::F32, i), F32);
                    e.store(f(e, v), e.gep(args[1], Elem::F32, i));
                });
            });
            let mut args = [bytes(x), bytes(&vec![0.0; x.len()])];
            code.call("f", 1, &mut args, 0).expect("runs");
            floats(&args[1])
        })
        .collect()
}

/// Distance of `got` from `want` in units of f32 spacing at `want`.
fn ulps(got: f32, want: f64) -> f64 {
    let rounded = want as f32;
    if got.to_bits() == rounded.to_bits() || (got.is_nan() && rounded.is_nan()) {
        return 0.0;
    }
    if !got.is_finite() || !rounded.is_finite() {
        return f64::INFINITY;
    }
    let exponent = (rounded.abs().max(f32::MIN_POSITIVE).to_bits() >> 23) as i32 - 127;
    (got as f64 - want).abs() / libm::exp2((exponent - 23) as f64)
}

fn check(name: &str, f: Unary, reference: fn(f64) -> f64, mut x: Vec<f32>, limit: f64) {
    for special in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, -1.0, f32::MIN_POSITIVE, 1e-45, -1e-45]
    {
        x.push(special);
    }
    while x.len() % 16 != 0 {
        x.push(0.5);
    }
    let results = apply(f, &x);
    for y in &results {
        for (&x, &y) in x.iter().zip(y) {
            let want = reference(x as f64);
            assert!(ulps(y, want) <= limit, "{name}({x:e}) = {y:e}, want {want:e}: {} ulp", ulps(y, want));
            if want == 0.0 && name != "sin" {
                assert_eq!(y.is_sign_negative(), want.is_sign_negative(), "{name}({x:e}): sign of zero");
            }
        }
    }
    let first: Vec<u32> = results[0].iter().map(|y| y.to_bits()).collect();
    for y in &results {
        assert!(y.iter().map(|y| y.to_bits()).zip(&first).all(|(a, &b)| a == b), "{name}: tiers differ");
    }
}

fn uniform(low: f64, high: f64) -> Vec<f32> {
    let mut random = Random(7);
    (0..20000).map(|_| (low + (high - low) * (random.uniform() + 1.0) / 2.0) as f32).collect()
}

/// Positive numbers of every magnitude.
fn logarithmic() -> Vec<f32> {
    let mut random = Random(8);
    (0..20000).map(|_| f32::from_bits((random.next() % 0x7f80_0000) as u32)).collect()
}

#[test]
fn exp() {
    check("exp", math::exp, libm::exp, uniform(-110.0, 95.0), 1.5);
    check("exp", math::exp, libm::exp, uniform(-1.0, 1.0), 1.5);
}

#[test]
fn exp2_of_normal_range() {
    let x = uniform(-126.0, 127.0);
    for y in apply(math::exp2_normal, &x) {
        for (&x, &y) in x.iter().zip(&y) {
            assert!(ulps(y, libm::exp2(x as f64)) <= 1.5, "exp2({x}) = {y}");
        }
    }
}

#[test]
fn log() {
    check("log", math::log, libm::log, logarithmic(), 1.5);
    check("log", math::log, libm::log, uniform(0.5, 2.0), 1.5);
}

#[test]
fn tanh() {
    check("tanh", math::tanh, libm::tanh, uniform(-12.0, 12.0), 4.0);
    check("tanh", math::tanh, libm::tanh, uniform(-0.1, 0.1), 4.0);
}

#[test]
fn sigmoid() {
    check("sigmoid", math::sigmoid, |x| 1.0 / (1.0 + libm::exp(-x)), uniform(-100.0, 100.0), 2.5);
}

#[test]
fn sin_and_cos() {
    for range in [1.0, 100.0, 1e5, 4e6] {
        check("sin", math::sin, libm::sin, uniform(-range, range), 4.0);
        check("cos", math::cos, libm::cos, uniform(-range, range), 4.0);
    }
}

#[test]
fn pow() {
    let mut random = Random(9);
    let mut pairs: Vec<(f32, f32)> = (0..8000)
        .map(|_| (f32::from_bits((random.next() % 0x7f80_0000) as u32), (random.uniform() * 3.0) as f32))
        .collect();
    let special = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 0.5, -0.5, 1e30, -1e30, 16777217.0];
    let odd = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for a in special.into_iter().chain(odd) {
        for b in special.into_iter().chain(odd) {
            pairs.push((a, b));
        }
    }
    while pairs.len() % 16 != 0 {
        pairs.push((2.0, 0.5));
    }
    let n = pairs.len();
    for tier in tiers() {
        let code = load(tier, 3, |e, _, args, _| {
            e.each(0, n as i64, 16, |e, i| {
                let at = |k: usize| e.gep(args[k], Elem::F32, i);
                e.store(math::pow(e, e.load(at(0), F32X16), e.load(at(1), F32X16)), at(2));
            });
        });
        let (a, b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
        let mut args = [bytes(&a), bytes(&b), bytes(&vec![0.0; n])];
        code.call("f", 1, &mut args, 0).expect("runs");
        for ((a, b), y) in pairs.iter().zip(floats(&args[2])) {
            let want = libm::pow(*a as f64, *b as f64);
            assert!(ulps(y, want) <= 1.0, "pow({a:e}, {b:e}) = {y:e}, want {want:e}");
        }
    }
}
