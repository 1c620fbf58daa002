//! Scalars that the host computes at run time from the clock: schedules, ramps, conditions.
//!
//! *Takes* operations on the clock's fields; *gives* a [`HostExpr`] for any of them; *promises* that constants are folded with
//! `libm` and equal operations exist once.

use golf_runtime::plan::{HostBinary, HostExpr, HostOp, HostUnary};

/// Operations so far; operands have smaller indices.
#[derive(Clone, Debug, Default)]
pub struct HostArena {
    ops: Vec<HostOp>,
}

impl HostArena {
    /// An operation; found again if it exists, folded if its operands are constants.
    pub fn push(&mut self, op: HostOp) -> u32 {
        let op = self.fold(&op).map_or(op, HostOp::Const);
        if let Some(at) = self.ops.iter().position(|known| same(known, &op)) {
            return at as u32;
        }
        self.ops.push(op);
        (self.ops.len() - 1) as u32
    }

    /// A constant.
    pub fn constant(&mut self, x: f64) -> u32 {
        self.push(HostOp::Const(x))
    }

    /// The number, if it is a constant.
    pub fn value(&self, at: u32) -> Option<f64> {
        match self.ops.get(at as usize) {
            Some(HostOp::Const(x)) => Some(*x),
            _ => None,
        }
    }

    fn fold(&self, op: &HostOp) -> Option<f64> {
        match op {
            HostOp::Const(_) | HostOp::Clock(_) => None,
            HostOp::Unary(unary, x) => Some(apply_unary(*unary, self.value(*x)?)),
            HostOp::Binary(binary, x, y) => Some(apply_binary(*binary, self.value(*x)?, self.value(*y)?)),
            HostOp::Select(c, x, y) => {
                if self.value(*c)? != 0.0 {
                    self.value(*x)
                } else {
                    self.value(*y)
                }
            }
        }
    }

    /// The operations one of them needs, itself last.
    pub fn extract(&self, root: u32) -> HostExpr {
        let mut needed = vec![false; self.ops.len()];
        let mut stack = vec![root as usize];
        while let Some(at) = stack.pop() {
            if at < needed.len() && !needed[at] {
                needed[at] = true;
                stack.extend(operands(&self.ops[at]).into_iter().map(|x| x as usize));
            }
        }
        let mut place = vec![0; self.ops.len()];
        let mut ops = Vec::new();
        for (at, op) in self.ops.iter().enumerate().filter(|(at, _)| needed[*at]) {
            place[at] = ops.len() as u32;
            let moved = |x: &u32| place[*x as usize];
            ops.push(match op {
                HostOp::Const(x) => HostOp::Const(*x),
                HostOp::Clock(field) => HostOp::Clock(field.clone()),
                HostOp::Unary(unary, x) => HostOp::Unary(*unary, moved(x)),
                HostOp::Binary(binary, x, y) => HostOp::Binary(*binary, moved(x), moved(y)),
                HostOp::Select(c, x, y) => HostOp::Select(moved(c), moved(x), moved(y)),
            });
        }
        HostExpr { ops }
    }
}

/// The constant expression.
pub fn constant(x: f64) -> HostExpr {
    HostExpr { ops: vec![HostOp::Const(x)] }
}

fn operands(op: &HostOp) -> Vec<u32> {
    match op {
        HostOp::Const(_) | HostOp::Clock(_) => Vec::new(),
        HostOp::Unary(_, x) => vec![*x],
        HostOp::Binary(_, x, y) => vec![*x, *y],
        HostOp::Select(c, x, y) => vec![*c, *x, *y],
    }
}

fn same(a: &HostOp, b: &HostOp) -> bool {
    match (a, b) {
        (HostOp::Const(x), HostOp::Const(y)) => x.to_bits() == y.to_bits(),
        _ => a == b,
    }
}

/// A host operation on a number.
pub fn apply_unary(op: HostUnary, x: f64) -> f64 {
    match op {
        HostUnary::Neg => -x,
        HostUnary::Exp => libm::exp(x),
        HostUnary::Log => libm::log(x),
        HostUnary::Sin => libm::sin(x),
        HostUnary::Cos => libm::cos(x),
        HostUnary::Sqrt => libm::sqrt(x),
        HostUnary::Abs => libm::fabs(x),
        HostUnary::Round => libm::rint(x),
        HostUnary::Floor => libm::floor(x),
        HostUnary::Sign => f64::from(i8::from(x > 0.0) - i8::from(x < 0.0)),
        HostUnary::Not => truth(x == 0.0),
        HostUnary::Tanh => libm::tanh(x),
    }
}

/// A host operation on two numbers.
pub fn apply_binary(op: HostBinary, x: f64, y: f64) -> f64 {
    match op {
        HostBinary::Add => x + y,
        HostBinary::Sub => x - y,
        HostBinary::Mul => x * y,
        HostBinary::Div => x / y,
        HostBinary::Min => {
            if y < x {
                y
            } else {
                x
            }
        }
        HostBinary::Max => {
            if y > x {
                y
            } else {
                x
            }
        }
        HostBinary::Pow => libm::pow(x, y),
        HostBinary::Mod => x - y * libm::floor(x / y),
        HostBinary::Eq => truth(x == y),
        HostBinary::Ne => truth(x != y),
        HostBinary::Lt => truth(x < y),
        HostBinary::Le => truth(x <= y),
        HostBinary::Gt => truth(x > y),
        HostBinary::Ge => truth(x >= y),
        HostBinary::And => truth(x != 0.0 && y != 0.0),
        HostBinary::Or => truth(x != 0.0 || y != 0.0),
    }
}

fn truth(b: bool) -> f64 {
    if b { 1.0 } else { 0.0 }
}

/// The value of an expression for clock fields given by name (used by tests and by `--explain`).
pub fn evaluate(expr: &HostExpr, clock: impl Fn(&str) -> f64) -> f64 {
    let mut values: Vec<f64> = Vec::with_capacity(expr.ops.len());
    for op in &expr.ops {
        let at = |x: &u32| values.get(*x as usize).copied().unwrap_or(f64::NAN);
        values.push(match op {
            HostOp::Const(x) => *x,
            HostOp::Clock(field) => clock(field),
            HostOp::Unary(unary, x) => apply_unary(*unary, at(x)),
            HostOp::Binary(binary, x, y) => apply_binary(*binary, at(x), at(y)),
            HostOp::Select(c, x, y) => {
                if at(c) != 0.0 {
                    at(x)
                } else {
                    at(y)
                }
            }
        });
    }
    values.last().copied().unwrap_or(f64::NAN)
}
