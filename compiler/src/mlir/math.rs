//! Elementary functions as polynomials on f32 scalars or vectors.
//!
//! *Takes* values of any number of f32 lanes; *gives* values; *promises* at most 2 ulp for exp, log, exp2, sigmoid and 4 ulp for tanh, sin, cos, pow
//! against the exact result, IEEE behaviour at 0, ±inf, NaN, overflow and subnormal results (inputs may be subnormal too), and the same
//! bits on every tier: only exactly rounded operations, FMA where written, no library call.
//!
//! A GPU's special function unit is quicker and good to about 1e-6: where [`Emit::approximate`] says so, exp, sigmoid, tanh, division and roots use it; subnormals are flushed.
//!
//! Coefficients are minimax fits (Remez exchange in 40-digit arithmetic, relative error weights, rounded to f32), computed for this file; the
//! fit's own error is noted beside each. Range reductions are Cody and Waite's ("Software Manual for the Elementary Functions", 1980).

use super::emit::{Cmp, Elem, Emit, V};
use super::gpu::ops;

/// 1.5 * 2^23: adding and subtracting it rounds |x| < 2^22 to the nearest integer, half to even, and leaves the integer in the low bits.
const ROUND: f64 = 12582912.0;

/// exp(r) = 1 + r + r^2 q(r) on |r| <= ln2/2; error 3.3e-9.
const EXP: [f64; 5] =
    [0.4999999403953552, 0.16666515171527863, 0.04166845604777336, 0.008369418792426586, 0.0013813144760206342];
/// exp2(f) = 1 + f q(f) on |f| <= 1/2; error 2.8e-9.
const EXP2: [f64; 6] = [
    0.6931472420692444,
    0.24022652208805084,
    0.05550306290388107,
    0.00961767416447401,
    0.0013408184750005603,
    0.0001559873198857531,
];
/// log(1 + f) = f - f^2/2 + f^3 q(f) for 1 + f in [sqrt(1/2), sqrt(2)]; error 5.8e-9.
const LOG: [f64; 8] = [
    0.3333333134651184,
    -0.2500081956386566,
    0.20001226663589478,
    -0.16623356938362122,
    0.14201758801937103,
    -0.13160182535648346,
    0.12761574983596802,
    -0.07634493708610535,
];
/// sin(r) = r + r^3 q(r^2) on |r| <= pi/4; error 4.1e-9.
const SIN: [f64; 3] = [-0.16666653752326965, 0.008332112804055214, -0.00019508741388563067];
/// cos(r) = 1 - r^2/2 + r^4 q(r^2) on |r| <= pi/4; error 2.9e-10.
const COS: [f64; 3] = [0.041666653007268906, -0.001388760400004685, 2.4457094696117565e-05];

const LOG2_E: f64 = 1.4426950216293335;
/// ln 2 = LN2_HIGH + LN2_LOW; HIGH has 15 bits, so that n * HIGH is exact for |n| < 2^9.
const LN2_HIGH: f64 = 0.693145751953125;
const LN2_LOW: f64 = 1.428606765330187e-06;

/// `q(x)` by Horner's rule with FMA, coefficients ascending.
fn polynomial<'c>(e: &Emit<'c>, x: V<'c>, q: &[f64]) -> V<'c> {
    let mut sum = e.fconst(x.ty, q[q.len() - 1]);
    for &c in q[..q.len() - 1].iter().rev() {
        sum = e.fma(sum, x, e.fconst(x.ty, c));
    }
    sum
}

/// Nearest integer of `x * factor` as float and as i32 lanes; |x * factor| < 2^22.
fn round_scaled<'c>(e: &Emit<'c>, x: V<'c>, factor: f64) -> (V<'c>, V<'c>) {
    let magic = e.fconst(x.ty, ROUND);
    let shifted = e.fma(x, e.fconst(x.ty, factor), magic);
    let n = e.sub(e.bitcast(shifted, x.ty.int()), e.iconst(x.ty.int(), (ROUND as f32).to_bits() as i64));
    (e.sub(shifted, magic), n)
}

/// 2^n for i32 n in -126..=127.
fn power_of_two<'c>(e: &Emit<'c>, n: V<'c>) -> V<'c> {
    let c = |k| e.iconst(n.ty, k);
    e.bitcast(e.shl(e.add(n, c(127)), c(23)), n.ty.with(Elem::F32))
}

/// x = n ln2 + r: gives r and n.
fn reduce_exp<'c>(e: &Emit<'c>, x: V<'c>) -> (V<'c>, V<'c>) {
    let (nf, n) = round_scaled(e, x, LOG2_E);
    let r = e.fma(nf, e.fconst(x.ty, -LN2_HIGH), x);
    (e.fma(nf, e.fconst(x.ty, -LN2_LOW), r), n)
}

/// Whether f32 functions use the special function unit.
fn approximate<'c>(e: &Emit<'c>, x: V<'c>) -> bool {
    e.approximate && x.ty.elem == Elem::F32
}

/// A function of scalars on every lane.
fn each_lane<'c>(e: &Emit<'c>, x: V<'c>, f: impl Fn(&Emit<'c>, V<'c>) -> V<'c>) -> V<'c> {
    if x.ty.lanes == 0 {
        return f(e, x);
    }
    (0..x.ty.lanes).fold(e.zero(x.ty), |all, lane| e.insert(f(e, e.extract(x, lane)), all, lane))
}

/// e^x by the special function unit. The rounding of `x log2 e` costs |x| / 1e7 of the result.
fn exp_approx<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    each_lane(e, e.mul(x, e.fconst(x.ty, LOG2_E)), ops::exp2_approx)
}

/// 1 / x.
pub fn recip<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    if approximate(e, x) { each_lane(e, x, ops::recip_approx) } else { e.div(e.fconst(x.ty, 1.0), x) }
}

/// a / b of floats.
pub fn div<'c>(e: &Emit<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
    if approximate(e, b) { e.mul(a, each_lane(e, b, ops::recip_approx)) } else { e.div(a, b) }
}

/// 1 / sqrt x.
pub fn rsqrt<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    if approximate(e, x) { each_lane(e, x, ops::rsqrt_approx) } else { e.div(e.fconst(x.ty, 1.0), e.sqrt(x)) }
}

/// Square root.
pub fn sqrt<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    // 1 / (1 / sqrt x) is right at 0 and infinity too.
    if approximate(e, x) { each_lane(e, x, |e, x| ops::recip_approx(e, ops::rsqrt_approx(e, x))) } else { e.sqrt(x) }
}

/// Series of tanh x / x in x^2 after 1: below 1/4 its rest is under 4e-7.
const TANH: [f64; 3] = [-1.0 / 3.0, 2.0 / 15.0, -17.0 / 315.0];

/// tanh|x| = 1 - 2 / (1 + e^(2|x|)), which loses digits near 0: there a series.
fn tanh_approx<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    let f = |v| e.fconst(x.ty, v);
    let a = e.abs(x);
    let t = each_lane(e, e.mul(a, f(2.0 * LOG2_E)), ops::exp2_approx);
    let far = e.fma(recip(e, e.add(t, f(1.0))), f(-2.0), f(1.0));
    let square = e.mul(x, x);
    let near = e.fma(e.mul(square, a), polynomial(e, square, &TANH), a);
    e.copysign(e.select(e.cmp(Cmp::Lt, a, f(0.25)), near, far), x)
}

/// e^x.
pub fn exp<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    if approximate(e, x) {
        return exp_approx(e, x);
    }
    // Beyond these the result is inf or 0 anyway; NaN passes both.
    let x = e.max(e.min(x, e.fconst(x.ty, 89.0)), e.fconst(x.ty, -104.0));
    let (r, n) = reduce_exp(e, x);
    let p = e.fma(polynomial(e, r, &EXP), e.mul(r, r), r);
    let p = e.add(p, e.fconst(x.ty, 1.0));
    // 2^n in two factors: n reaches 128 and -150.
    let half = e.shr(n, e.iconst(n.ty, 1));
    let p = e.mul(p, power_of_two(e, half));
    e.mul(p, power_of_two(e, e.sub(n, half)))
}

/// 2^x for -126 <= x <= 127 (callers clamp): what attention uses. No special cases, 1 ulp.
pub fn exp2_normal<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    let (nf, n) = round_scaled(e, x, 1.0);
    let f = e.sub(x, nf);
    let p = e.fma(polynomial(e, f, &EXP2), f, e.fconst(x.ty, 1.0));
    // Adding n to the exponent field: p is in [0.7, 1.5), the result stays normal.
    let bits = e.add(e.bitcast(p, x.ty.int()), e.shl(n, e.iconst(n.ty, 23)));
    e.bitcast(bits, x.ty)
}

/// Natural logarithm.
pub fn log<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    let (ty, int) = (x.ty, x.ty.int());
    let f = |v| e.fconst(ty, v);
    // Subnormals are scaled by 2^23.
    let tiny = e.cmp(Cmp::Lt, x, f(f32::MIN_POSITIVE as f64));
    let scaled = e.select(tiny, e.mul(x, f(8388608.0)), x);
    let bits = e.bitcast(scaled, int);
    // m = x / 2^n in [sqrt(1/2), sqrt(2)).
    let low = e.iconst(int, std::f32::consts::FRAC_1_SQRT_2.to_bits() as i64);
    let n = e.shr(e.sub(bits, low), e.iconst(int, 23));
    let m = e.bitcast(e.sub(bits, e.shl(n, e.iconst(int, 23))), ty);
    let n = e.select(tiny, e.sub(n, e.iconst(int, 23)), n);
    let nf = e.to_float(n, Elem::F32);
    let t = e.sub(m, f(1.0));
    let square = e.mul(t, t);
    let y = e.mul(e.mul(square, t), polynomial(e, t, &LOG));
    let y = e.fma(nf, f(LN2_LOW), y);
    let y = e.fma(square, f(-0.5), y);
    let y = e.fma(nf, f(LN2_HIGH), e.add(t, y));
    // 0 gives -inf, negative NaN, inf inf, NaN NaN.
    let y = e.select(e.cmp(Cmp::Lt, x, f(f64::INFINITY)), y, x);
    let y = e.select(e.cmp(Cmp::Eq, x, f(0.0)), f(f64::NEG_INFINITY), y);
    e.select(e.cmp(Cmp::Lt, x, f(0.0)), f(f64::NAN), y)
}

/// Hyperbolic tangent: with t = e^(-2|x|) - 1, tanh|x| = -t / (t + 2).
pub fn tanh<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    if approximate(e, x) {
        return tanh_approx(e, x);
    }
    let ty = x.ty;
    // tanh(10) rounds to 1.
    let a = e.min(e.abs(x), e.fconst(ty, 10.0));
    let (r, n) = reduce_exp(e, e.mul(a, e.fconst(ty, -2.0)));
    let p = e.fma(polynomial(e, r, &EXP), e.mul(r, r), r);
    let scale = power_of_two(e, n);
    let t = e.fma(scale, p, e.sub(scale, e.fconst(ty, 1.0)));
    e.copysign(e.div(t, e.add(t, e.fconst(ty, 2.0))), x)
}

/// 1 / (1 + e^-x): with t = e^-|x|, 1 / (1 + t) or t / (1 + t), so that nothing overflows and small results stay accurate.
pub fn sigmoid<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    let one = e.fconst(x.ty, 1.0);
    if approximate(e, x) {
        return recip(e, e.add(exp(e, e.neg(x)), one));
    }
    let t = exp(e, e.neg(e.abs(x)));
    let numerator = e.select(e.cmp(Cmp::Lt, x, e.zero(x.ty)), t, one);
    e.div(numerator, e.add(one, t))
}

/// Sine (`quarter` 0) or cosine (`quarter` 1). |x| < 2^22; beyond, the result has no meaning but is finite for finite x.
fn sin_cos<'c>(e: &Emit<'c>, x: V<'c>, quarter: i64) -> V<'c> {
    let (ty, int) = (x.ty, x.ty.int());
    let (nf, n) = round_scaled(e, x, std::f64::consts::FRAC_2_PI);
    // pi/2 in three parts of 24 bits; each product is exact inside the FMA.
    let mut r = x;
    for part in [-1.5707963705062866, 4.371138828673793e-08, 1.7151245100058819e-15] {
        r = e.fma(nf, e.fconst(ty, part), r);
    }
    let square = e.mul(r, r);
    let sin = e.fma(polynomial(e, square, &SIN), e.mul(square, r), r);
    let cos = e.fma(polynomial(e, square, &COS), square, e.fconst(ty, -0.5));
    let cos = e.fma(cos, square, e.fconst(ty, 1.0));
    let n = e.add(n, e.iconst(int, quarter));
    let odd = e.cmp(Cmp::Ne, e.and(n, e.iconst(int, 1)), e.zero(int));
    let v = e.select(odd, cos, sin);
    let sign = e.shl(e.and(n, e.iconst(int, 2)), e.iconst(int, 30));
    e.bitcast(e.xor(e.bitcast(v, int), sign), ty)
}

/// Sine, |x| < 2^22; the sine of -0 is +0.
pub fn sin<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    sin_cos(e, x, 0)
}

/// Cosine, |x| < 2^22.
pub fn cos<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    sin_cos(e, x, 1)
}

/// a^b as C's `pow`. Computed as e^(b ln|a|) in f64, so that one rounding to f32 remains.
pub fn pow<'c>(e: &Emit<'c>, a: V<'c>, b: V<'c>) -> V<'c> {
    let ty = a.ty;
    let wide = ty.with(Elem::F64);
    let (f, d) = (|v| e.fconst(ty, v), |v| e.fconst(wide, v));
    let magnitude = e.abs(a);
    let ln = log_f64(e, e.extend(magnitude, Elem::F64));
    let ln = e.select(e.cmp(Cmp::Eq, magnitude, f(0.0)), d(f64::NEG_INFINITY), ln);
    let ln = e.select(e.cmp(Cmp::Eq, magnitude, f(f64::INFINITY)), d(f64::INFINITY), ln);
    let product = e.mul(e.extend(b, Elem::F64), ln);
    let clamped = e.max(e.min(product, d(90.0)), d(-110.0));
    let y = e.narrow(exp_f64(e, clamped), Elem::F32);
    // Negative base: integers only, the sign of odd ones.
    let whole = e.cmp(Cmp::Eq, e.floor(b), b);
    let half = e.mul(b, f(0.5));
    let odd = e.and(whole, e.cmp(Cmp::Ne, e.floor(half), half));
    let negative = e.cmp(Cmp::Lt, e.bitcast(a, ty.int()), e.zero(ty.int()));
    let y = e.select(e.and(negative, odd), e.neg(y), y);
    let finite_negative = e.and(e.cmp(Cmp::Lt, a, f(0.0)), e.cmp(Cmp::Gt, a, f(f64::NEG_INFINITY)));
    let fraction = e.cmp(Cmp::Ne, e.floor(b), b);
    let y = e.select(e.and(finite_negative, fraction), f(f64::NAN), y);
    let y = e.select(e.cmp(Cmp::Uno, a, b), f(f64::NAN), y);
    // |a| = 1 with b = ±inf came out as 0 * inf.
    let infinite = e.cmp(Cmp::Eq, e.abs(b), f(f64::INFINITY));
    let y = e.select(e.and(e.cmp(Cmp::Eq, magnitude, f(1.0)), infinite), f(1.0), y);
    let one = e.or(e.cmp(Cmp::Eq, b, f(0.0)), e.cmp(Cmp::Eq, a, f(1.0)));
    e.select(one, f(1.0), y)
}

/// ln x in f64 for normal positive x, to 1e-10: the series 2 artanh((m - 1) / (m + 1)).
fn log_f64<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    let (ty, int) = (x.ty, x.ty.int());
    let f = |v| e.fconst(ty, v);
    let bits = e.bitcast(x, int);
    let low = e.iconst(int, std::f64::consts::FRAC_1_SQRT_2.to_bits() as i64);
    let n = e.shr(e.sub(bits, low), e.iconst(int, 52));
    let m = e.bitcast(e.sub(bits, e.shl(n, e.iconst(int, 52))), ty);
    // |n| < 2^10: the same rounding trick, backwards, converts it (AVX2 has no 64-bit conversion).
    let magic = 6755399441055744.0f64;
    let nf = e.sub(e.bitcast(e.add(n, e.iconst(int, magic.to_bits() as i64)), ty), f(magic));
    let s = e.div(e.sub(m, f(1.0)), e.add(m, f(1.0)));
    let square = e.mul(s, s);
    let series: Vec<f64> = (0..7).map(|i| 2.0 / (2 * i + 1) as f64).collect();
    let y = e.mul(s, polynomial(e, square, &series));
    e.fma(nf, f(std::f64::consts::LN_2), y)
}

/// e^x in f64 for |x| <= 120, to 1e-11 relative.
fn exp_f64<'c>(e: &Emit<'c>, x: V<'c>) -> V<'c> {
    let (ty, int) = (x.ty, x.ty.int());
    let f = |v| e.fconst(ty, v);
    let magic = f(6755399441055744.0);
    let shifted = e.fma(x, f(std::f64::consts::LOG2_E), magic);
    let n = e.sub(e.bitcast(shifted, int), e.bitcast(magic, int));
    let r = e.fma(e.sub(shifted, magic), f(-std::f64::consts::LN_2), x);
    let mut factorial = 1.0;
    let series: Vec<f64> = (0..10)
        .map(|i| {
            factorial *= if i == 0 { 1.0 } else { i as f64 };
            1.0 / factorial
        })
        .collect();
    let p = polynomial(e, r, &series);
    let scale = e.bitcast(e.shl(e.add(n, e.iconst(int, 1023)), e.iconst(int, 52)), ty);
    e.mul(p, scale)
}
