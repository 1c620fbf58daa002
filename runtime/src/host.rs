//! Scalar work of the host in f64: schedules, conditions, quantiles.
//!
//! *Takes* a [`HostExpr`] and the clock's fields; *gives* its value; *promises* the same bits on every machine (libm in Rust, no
//! platform mathematics).

use crate::error::{Error, Result};
use crate::plan::{HostBinary, HostExpr, HostOp, HostUnary};

/// The clock fields an expression may read, by name.
pub type Fields<'a> = &'a [(&'a str, f64)];

/// Value of the expression. Error: it reads a field that is not there, or refers to a value not computed yet (a bug of the
/// compiler: plans are checked when loaded).
pub fn eval(expr: &HostExpr, clock: Fields<'_>) -> Result<f64> {
    let mut values: Vec<f64> = Vec::with_capacity(expr.ops.len());
    let broken =
        || Error::input("the plan inside this executable is damaged: a host expression refers to a later value");
    for op in &expr.ops {
        let at = |i: u32| values.get(i as usize).copied().ok_or_else(broken);
        let value = match op {
            HostOp::Const(c) => *c,
            HostOp::Clock(name) => {
                let field = clock.iter().find(|f| f.0 == name);
                field.ok_or_else(|| Error::input(format!("the schedule reads `{name}`, which does not exist here")))?.1
            }
            HostOp::Unary(op, a) => unary(*op, at(*a)?),
            HostOp::Binary(op, a, b) => binary(*op, at(*a)?, at(*b)?),
            HostOp::Select(c, a, b) => at(if at(*c)? != 0.0 { *a } else { *b })?,
        };
        values.push(value);
    }
    values.last().copied().ok_or_else(broken)
}

fn unary(op: HostUnary, a: f64) -> f64 {
    match op {
        HostUnary::Neg => -a,
        HostUnary::Exp => libm::exp(a),
        HostUnary::Log => libm::log(a),
        HostUnary::Sin => libm::sin(a),
        HostUnary::Cos => libm::cos(a),
        HostUnary::Sqrt => libm::sqrt(a),
        HostUnary::Abs => libm::fabs(a),
        // Half to even, as everywhere in the language.
        HostUnary::Round => libm::rint(a),
        HostUnary::Floor => libm::floor(a),
        HostUnary::Sign if a == 0.0 || a.is_nan() => 0.0,
        HostUnary::Sign => libm::copysign(1.0, a),
        HostUnary::Not => f64::from(a == 0.0),
        HostUnary::Tanh => libm::tanh(a),
    }
}

fn binary(op: HostBinary, a: f64, b: f64) -> f64 {
    match op {
        HostBinary::Add => a + b,
        HostBinary::Sub => a - b,
        HostBinary::Mul => a * b,
        HostBinary::Div => a / b,
        HostBinary::Min => {
            if b < a {
                b
            } else {
                a
            }
        }
        HostBinary::Max => {
            if b > a {
                b
            } else {
                a
            }
        }
        HostBinary::Pow => libm::pow(a, b),
        // The sign of the divisor, as the language's integer remainder.
        HostBinary::Mod => a - b * libm::floor(a / b),
        HostBinary::Eq => f64::from(a == b),
        HostBinary::Ne => f64::from(a != b),
        HostBinary::Lt => f64::from(a < b),
        HostBinary::Le => f64::from(a <= b),
        HostBinary::Gt => f64::from(a > b),
        HostBinary::Ge => f64::from(a >= b),
        HostBinary::And => f64::from(a != 0.0 && b != 0.0),
        HostBinary::Or => f64::from(a != 0.0 || b != 0.0),
    }
}

/// The `q`-quantile of `row` with linear interpolation between order statistics; reorders `row`. NaN counts as largest.
/// Panics on an empty row.
pub fn quantile(row: &mut [f32], q: f64) -> f32 {
    let position = q * (row.len() - 1) as f64;
    let (low, weight) = (libm::floor(position) as usize, position - libm::floor(position));
    let (_, &mut a, above) = row.select_nth_unstable_by(low, f32::total_cmp);
    let b = above.iter().copied().min_by(f32::total_cmp).unwrap_or(a);
    (f64::from(a) + (f64::from(b) - f64::from(a)) * weight) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use HostBinary as B;
    use HostOp::*;
    use HostUnary as U;

    #[test]
    fn warmdown_by_iterations() {
        // 1 until what remains is at most W steps' time, then the share of it that remains (W = 10, budget 100 s).
        let clock = |name: &str| Clock(name.into());
        let expr = HostExpr {
            ops: vec![
                Const(1.0),
                clock("progress"),
                Binary(B::Sub, 0, 1),
                clock("budget"),
                Binary(B::Mul, 2, 3),
                Const(10.0),
                clock("step_time"),
                Binary(B::Mul, 5, 6),
                Binary(B::Le, 4, 7),
                Binary(B::Div, 4, 7),
                Select(8, 9, 0),
            ],
        };
        let at = |progress: f64| eval(&expr, &[("progress", progress), ("step_time", 2.0), ("budget", 100.0)]).unwrap();
        assert_eq!((at(0.0), at(0.5)), (1.0, 1.0));
        assert!((at(0.9) - 0.5).abs() < 1e-12);
        assert_eq!(at(1.0), 0.0);
        assert!(eval(&expr, &[("progress", 0.5)]).is_err());
    }

    #[test]
    fn operators() {
        let one = |op, a: f64| eval(&HostExpr { ops: vec![Const(a), Unary(op, 0)] }, &[]).unwrap();
        let two =
            |op, a: f64, b: f64| eval(&HostExpr { ops: vec![Const(a), Const(b), Binary(op, 0, 1)] }, &[]).unwrap();
        assert_eq!(
            (one(U::Round, 2.5), one(U::Round, 3.5), one(U::Sign, -3.0), one(U::Sign, 0.0)),
            (2.0, 4.0, -1.0, 0.0)
        );
        assert_eq!((one(U::Not, 0.0), one(U::Not, 3.0), one(U::Abs, -2.0)), (1.0, 0.0, 2.0));
        assert_eq!((two(B::Mod, 7.0, 3.0), two(B::Mod, -1.0, 3.0), two(B::Mod, 100.0, 50.0)), (1.0, 2.0, 0.0));
        assert_eq!((two(B::Pow, 2.0, 10.0), two(B::Min, 1.0, 2.0), two(B::Max, 1.0, 2.0)), (1024.0, 1.0, 2.0));
        assert_eq!((two(B::And, 1.0, 0.0), two(B::Or, 1.0, 0.0), two(B::Ge, 2.0, 2.0)), (0.0, 1.0, 1.0));
        assert!(eval(&HostExpr { ops: vec![Unary(U::Neg, 0)] }, &[]).is_err());
        assert!(eval(&HostExpr { ops: vec![] }, &[]).is_err());
    }

    #[test]
    fn quantiles_interpolate() {
        let mut row = [4.0, 1.0, 3.0, 2.0, 5.0];
        assert_eq!(quantile(&mut row, 0.5), 3.0);
        assert_eq!(quantile(&mut row, 1.0), 5.0);
        assert_eq!(quantile(&mut row, 0.0), 1.0);
        assert_eq!(quantile(&mut row, 0.6), 3.4);
        assert_eq!(quantile(&mut [7.0], 0.3), 7.0);
    }
}
