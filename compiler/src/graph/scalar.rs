//! Arithmetic of single values: what each element-wise op means, in f64.
//!
//! *Takes* numbers (integers and booleans as exact f64); *gives* the result of an op; *promises* the same bits on every host: only
//! `libm` functions and IEEE basic operations are used.

use super::ir::{Binary, DType, Unary};

/// Rounds to a dtype, as [`super::ir::Op::Cast`] does. Narrow floats round through f32, as the generated code does.
pub fn cast(x: f64, to: DType) -> f64 {
    match to {
        DType::F32 => f64::from(x as f32),
        DType::Bf16 => half::bf16::from_f32(x as f32).to_f64(),
        DType::F16 => half::f16::from_f32(x as f32).to_f64(),
        DType::I32 => f64::from(x as i32),
        DType::I8 => f64::from(x as i8),
        DType::Bool => truth(x != 0.0),
    }
}

/// 1 for true, 0 for false.
pub fn truth(b: bool) -> f64 {
    if b { 1.0 } else { 0.0 }
}

/// `1 / (1 + exp(-x))` without overflow.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + libm::exp(-x))
    } else {
        let e = libm::exp(x);
        e / (1.0 + e)
    }
}

/// One-operand op on a value; `integer` when the operand is I32.
pub fn unary(op: Unary, x: f64, integer: bool) -> f64 {
    match op {
        Unary::Neg if integer => f64::from((x as i32).wrapping_neg()),
        Unary::Abs if integer => f64::from((x as i32).wrapping_abs()),
        Unary::Neg => -x,
        Unary::Abs => libm::fabs(x),
        Unary::Exp => libm::exp(x),
        Unary::Log => libm::log(x),
        Unary::Tanh => libm::tanh(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::Sin => libm::sin(x),
        Unary::Cos => libm::cos(x),
        Unary::Sqrt => libm::sqrt(x),
        Unary::Rsqrt => 1.0 / libm::sqrt(x),
        Unary::Recip => 1.0 / x,
        Unary::Round => libm::rint(x),
        Unary::Floor => libm::floor(x),
        Unary::Sign => {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                0.0
            }
        }
        Unary::Not => truth(x == 0.0),
    }
}

/// Two-operand op on values; `integer` when the operands are not floats. `None`: integer division by zero.
pub fn binary(op: Binary, a: f64, b: f64, integer: bool) -> Option<f64> {
    let (i, j) = (a as i32, b as i32);
    let int = |x: i32| Some(f64::from(x));
    match op {
        Binary::Add if integer => int(i.wrapping_add(j)),
        Binary::Sub if integer => int(i.wrapping_sub(j)),
        Binary::Mul if integer => int(i.wrapping_mul(j)),
        Binary::Div if integer => {
            let exact = i64::from(i).checked_div(i64::from(j))?;
            let floor = if exact * i64::from(j) != i64::from(i) && (i < 0) != (j < 0) { exact - 1 } else { exact };
            int(floor as i32)
        }
        Binary::Mod if integer => {
            let rest = i64::from(i).checked_rem(i64::from(j))?;
            let rest = if rest != 0 && (rest < 0) != (j < 0) { rest + i64::from(j) } else { rest };
            int(rest as i32)
        }
        Binary::Add => Some(a + b),
        Binary::Sub => Some(a - b),
        Binary::Mul => Some(a * b),
        Binary::Div => Some(a / b),
        Binary::Mod => Some(a - b * libm::floor(a / b)),
        Binary::Min => Some(if b < a { b } else { a }),
        Binary::Max => Some(if b > a { b } else { a }),
        Binary::Pow => Some(libm::pow(a, b)),
        Binary::And => int(i & j),
        Binary::Or => int(i | j),
        Binary::Xor => int(i ^ j),
        Binary::Shl => int(i.wrapping_shl(j as u32)),
        Binary::Shr => int(i.wrapping_shr(j as u32)),
        Binary::Eq => Some(truth(a == b)),
        Binary::Ne => Some(truth(a != b)),
        Binary::Lt => Some(truth(a < b)),
        Binary::Le => Some(truth(a <= b)),
        Binary::Gt => Some(truth(a > b)),
        Binary::Ge => Some(truth(a >= b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_division_floors_and_the_remainder_has_the_divisor_sign() {
        for (a, b, div, rest) in [(7, 2, 3, 1), (-7, 2, -4, 1), (7, -2, -4, -1), (-7, -2, 3, -1), (6, 3, 2, 0)] {
            assert_eq!(binary(Binary::Div, f64::from(a), f64::from(b), true), Some(f64::from(div)));
            assert_eq!(binary(Binary::Mod, f64::from(a), f64::from(b), true), Some(f64::from(rest)));
            assert_eq!(a, b * div + rest);
        }
        assert_eq!(binary(Binary::Div, 1.0, 0.0, true), None);
        assert_eq!(binary(Binary::Mod, 1.0, 0.0, true), None);
    }

    #[test]
    fn integers_wrap() {
        assert_eq!(binary(Binary::Mul, 65536.0, 65536.0, true), Some(0.0));
        assert_eq!(binary(Binary::Add, 2147483647.0, 1.0, true), Some(-2147483648.0));
        assert_eq!(binary(Binary::Xor, -1.0, 1.0, true), Some(-2.0));
    }

    #[test]
    fn casts_round_to_nearest_even() {
        assert_eq!(cast(1.0 + 1.0 / 256.0, DType::Bf16), 1.0);
        assert_eq!(cast(1.0 + 3.0 / 256.0, DType::Bf16), 1.0 + 4.0 / 256.0);
        assert_eq!(cast(65520.0, DType::F16), f64::INFINITY);
        assert_eq!(cast(16777217.0, DType::F32), 16777216.0);
        assert_eq!(cast(-2.9, DType::I32), -2.0);
        assert_eq!(cast(300.0, DType::I8), 127.0);
        assert_eq!(cast(f64::NAN, DType::I32), 0.0);
    }

    #[test]
    fn round_is_half_to_even() {
        assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5].map(|x| unary(Unary::Round, x, false)), [0.0, 2.0, 2.0, 0.0, -2.0]);
    }
}
