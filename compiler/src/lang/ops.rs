//! Operators on values: compile-time numbers, scalars of the clock, tensors.
//!
//! *Takes* operands with their places; *gives* the result; *promises* exact integers (overflow is an error), `libm` for the rest,
//! and that two tensors meet element by element only when the axes of one contain those of the other.

use super::codes;
use super::elaborate::{Eval, Evaluator, Reported};
use super::value::{Value, axes, tensor};
use crate::graph::ir::{Binary, DType, NodeId, Unary};
use golf_grammar::ast::{BinaryOp, Rounding};
use golf_grammar::{Diagnostic, Span};
use golf_runtime::plan::{HostBinary, HostOp, HostUnary};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct Operand<'p> {
    /// The value.
    pub value: Value<'p>,
    /// Its place.
    pub span: Span,
}

impl<'p> Evaluator<'p, '_> {
    /// An infix operator.
    pub fn binary(
        &mut self,
        op: BinaryOp,
        op_span: Span,
        x: Operand<'p>,
        y: Operand<'p>,
        span: Span,
    ) -> Eval<Value<'p>> {
        for side in [&x, &y] {
            if matches!(side.value, Value::None) && !matches!(op, BinaryOp::Eq | BinaryOp::Ne) {
                return Err(self.is_none(side.span));
            }
        }
        match (&x.value, &y.value) {
            (Value::Tensor(_), _) | (_, Value::Tensor(_)) => self.tensor_binary(op, op_span, &x, &y, span),
            (Value::Host(_), _) | (_, Value::Host(_)) => self.host_binary(op, op_span, &x, &y),
            (Value::Int(a), Value::Int(b)) => self.int_binary(op, *a, *b, span, (&x, &y), op_span),
            (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_)) => {
                let (a, b) = (x.value.number().unwrap_or(f64::NAN), y.value.number().unwrap_or(f64::NAN));
                self.float_binary(op, a, b, span, (&x, &y), op_span)
            }
            (Value::Bool(a), Value::Bool(b)) => match op {
                BinaryOp::And => Ok(Value::Bool(*a && *b)),
                BinaryOp::Or => Ok(Value::Bool(*a || *b)),
                BinaryOp::Eq => Ok(Value::Bool(a == b)),
                BinaryOp::Ne => Ok(Value::Bool(a != b)),
                _ => Err(self.wrong_kinds(op.symbol(), op_span, &[&x, &y])),
            },
            (Value::Str(a), Value::Str(b)) if op == BinaryOp::Eq => Ok(Value::Bool(a == b)),
            (Value::Str(a), Value::Str(b)) if op == BinaryOp::Ne => Ok(Value::Bool(a != b)),
            (Value::DType(a), Value::DType(b)) if op == BinaryOp::Eq => Ok(Value::Bool(a == b)),
            (Value::DType(a), Value::DType(b)) if op == BinaryOp::Ne => Ok(Value::Bool(a != b)),
            (Value::None, other) | (other, Value::None) if op == BinaryOp::Eq => {
                Ok(Value::Bool(matches!(other, Value::None)))
            }
            (Value::None, other) | (other, Value::None) if op == BinaryOp::Ne => {
                Ok(Value::Bool(!matches!(other, Value::None)))
            }
            _ => Err(self.wrong_kinds(op.symbol(), op_span, &[&x, &y])),
        }
    }

    /// A value is needed and `none` is there.
    pub fn is_none(&mut self, span: Span) -> Reported {
        self.error(
            Diagnostic::error(codes::OPTIONAL, "this is `none`, and a value is needed")
                .at(span, "none")
                .hint("give something instead with `x ?? 0`, or unwrap it with `if x { … }`"),
        )
    }

    /// An operation does not know values of these kinds.
    pub fn wrong_kinds(&mut self, what: &str, at: Span, operands: &[&Operand<'p>]) -> Reported {
        let kinds: Vec<String> = operands.iter().map(|x| x.value.describe(self.b)).collect();
        let mut d = Diagnostic::error(codes::WRONG_KIND, format!("`{what}` does not apply to {}", kinds.join(" and ")))
            .at(at, "");
        for (operand, kind) in operands.iter().zip(&kinds) {
            d = d.also(operand.span, format!("this is {kind}"));
        }
        self.error(d)
    }

    fn arithmetic(&mut self, span: Span, message: &str) -> Reported {
        self.fail(codes::ARITHMETIC, span, message, "")
    }

    fn int_binary(
        &mut self,
        op: BinaryOp,
        a: i64,
        b: i64,
        span: Span,
        sides: (&Operand<'p>, &Operand<'p>),
        op_span: Span,
    ) -> Eval<Value<'p>> {
        let result = match op {
            BinaryOp::Add => a.checked_add(b),
            BinaryOp::Sub => a.checked_sub(b),
            BinaryOp::Mul => a.checked_mul(b),
            BinaryOp::IntDiv => return self.exact_division(a, b, span),
            BinaryOp::Rem if b == 0 => return Err(self.arithmetic(span, "division by zero")),
            BinaryOp::Rem => a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
            BinaryOp::Pow if b >= 0 => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            BinaryOp::Shl => u32::try_from(b).ok().and_then(|b| a.checked_mul(1i64.checked_shl(b)?)),
            BinaryOp::Shr => u32::try_from(b).ok().and_then(|b| a.checked_shr(b)),
            BinaryOp::BitAnd => Some(a & b),
            BinaryOp::BitOr => Some(a | b),
            BinaryOp::Eq => return Ok(Value::Bool(a == b)),
            BinaryOp::Ne => return Ok(Value::Bool(a != b)),
            BinaryOp::Lt => return Ok(Value::Bool(a < b)),
            BinaryOp::Le => return Ok(Value::Bool(a <= b)),
            BinaryOp::Gt => return Ok(Value::Bool(a > b)),
            BinaryOp::Ge => return Ok(Value::Bool(a >= b)),
            BinaryOp::Div | BinaryOp::Pow => return self.float_binary(op, a as f64, b as f64, span, sides, op_span),
            BinaryOp::And | BinaryOp::Or => return Err(self.wrong_kinds(op.symbol(), op_span, &[sides.0, sides.1])),
        };
        result.map(Value::Int).ok_or_else(|| self.arithmetic(span, "the result does not fit 64 bits"))
    }

    fn exact_division(&mut self, a: i64, b: i64, span: Span) -> Eval<Value<'p>> {
        if b == 0 {
            return Err(self.arithmetic(span, "division by zero"));
        }
        let (Some(rest), Some(cut)) = (a.checked_rem(b), a.checked_div(b)) else {
            return Err(self.arithmetic(span, "the result does not fit 64 bits"));
        };
        let below = if rest != 0 && (rest < 0) != (b < 0) { cut - 1 } else { cut };
        match self.rounding {
            _ if rest == 0 => Ok(Value::Int(cut)),
            Some(Rounding::Floor) => Ok(Value::Int(below)),
            Some(Rounding::Ceil) => Ok(Value::Int(below + 1)),
            None => Err(self.error(
                Diagnostic::error(codes::INEXACT_DIVISION, format!("{a} // {b} is not a whole number"))
                    .at(span, format!("{a} = {b} * {below} + {}", a - b * below))
                    .hint("`//` is exact division; write `axis k = a // b floor`, or `floor(a / b)`"),
            )),
        }
    }

    fn float_binary(
        &mut self,
        op: BinaryOp,
        a: f64,
        b: f64,
        span: Span,
        sides: (&Operand<'p>, &Operand<'p>),
        op_span: Span,
    ) -> Eval<Value<'p>> {
        let result = match op {
            BinaryOp::Add => a + b,
            BinaryOp::Sub => a - b,
            BinaryOp::Mul => a * b,
            BinaryOp::Div if b == 0.0 => return Err(self.arithmetic(span, "division by zero")),
            BinaryOp::Div => a / b,
            BinaryOp::Rem if b == 0.0 => return Err(self.arithmetic(span, "division by zero")),
            BinaryOp::Rem => a - b * libm::floor(a / b),
            BinaryOp::Pow => libm::pow(a, b),
            BinaryOp::Eq => return Ok(Value::Bool(a == b)),
            BinaryOp::Ne => return Ok(Value::Bool(a != b)),
            BinaryOp::Lt => return Ok(Value::Bool(a < b)),
            BinaryOp::Le => return Ok(Value::Bool(a <= b)),
            BinaryOp::Gt => return Ok(Value::Bool(a > b)),
            BinaryOp::Ge => return Ok(Value::Bool(a >= b)),
            BinaryOp::IntDiv => {
                let d = Diagnostic::error(codes::WRONG_KIND, "`//` divides whole numbers").at(op_span, "");
                return Err(self.error(d.hint("`/` is real division")));
            }
            BinaryOp::And | BinaryOp::Or | BinaryOp::BitAnd | BinaryOp::BitOr | BinaryOp::Shl | BinaryOp::Shr => {
                return Err(self.wrong_kinds(op.symbol(), op_span, &[sides.0, sides.1]));
            }
        };
        if result.is_nan() {
            return Err(self.arithmetic(span, "the result is not a number"));
        }
        Ok(Value::Float(result))
    }

    // ---- host scalars ----

    /// A scalar as a host expression.
    pub fn host_scalar(&mut self, value: &Value<'p>, span: Span) -> Eval<u32> {
        match value {
            Value::Host(at) => Ok(*at),
            Value::Int(_) | Value::Float(_) => Ok(self.host.constant(value.number().unwrap_or(f64::NAN))),
            Value::Bool(x) => Ok(self.host.constant(if *x { 1.0 } else { 0.0 })),
            other => {
                let found = other.describe(self.b);
                let d = Diagnostic::error(codes::CLOCK, "a number or a scalar of the clock is needed here");
                Err(self.error(d.at(span, format!("this is {found}")).expected_found("a scalar", found)))
            }
        }
    }

    fn host_binary(&mut self, op: BinaryOp, op_span: Span, x: &Operand<'p>, y: &Operand<'p>) -> Eval<Value<'p>> {
        let host = match op {
            BinaryOp::Add => HostBinary::Add,
            BinaryOp::Sub => HostBinary::Sub,
            BinaryOp::Mul => HostBinary::Mul,
            BinaryOp::Div => HostBinary::Div,
            BinaryOp::Rem => HostBinary::Mod,
            BinaryOp::Pow => HostBinary::Pow,
            BinaryOp::Eq => HostBinary::Eq,
            BinaryOp::Ne => HostBinary::Ne,
            BinaryOp::Lt => HostBinary::Lt,
            BinaryOp::Le => HostBinary::Le,
            BinaryOp::Gt => HostBinary::Gt,
            BinaryOp::Ge => HostBinary::Ge,
            BinaryOp::And => HostBinary::And,
            BinaryOp::Or => HostBinary::Or,
            BinaryOp::IntDiv | BinaryOp::BitAnd | BinaryOp::BitOr | BinaryOp::Shl | BinaryOp::Shr => {
                return Err(self.wrong_kinds(op.symbol(), op_span, &[x, y]));
            }
        };
        let (a, b) = (self.host_scalar(&x.value, x.span), self.host_scalar(&y.value, y.span));
        Ok(Value::Host(self.host.push(HostOp::Binary(host, a?, b?))))
    }

    /// `min` and `max` of scalars.
    pub fn host_extreme(&mut self, largest: bool, x: &Operand<'p>, y: &Operand<'p>) -> Eval<Value<'p>> {
        let (a, b) = (self.host_scalar(&x.value, x.span), self.host_scalar(&y.value, y.span));
        let op = if largest { HostBinary::Max } else { HostBinary::Min };
        Ok(Value::Host(self.host.push(HostOp::Binary(op, a?, b?))))
    }

    // ---- tensors ----

    /// The operand as a node beside `other`: numbers become constants of its dtype.
    pub fn beside(&mut self, x: &Operand<'p>, other: NodeId) -> Eval<NodeId> {
        let dtype = self.b.dtype(other);
        match &x.value {
            Value::Tensor(node) => Ok(*node),
            Value::Int(_) | Value::Float(_) if dtype.is_float() => {
                Ok(self.b.constant(x.value.number().unwrap_or(f64::NAN)))
            }
            Value::Int(n) if dtype == DType::I32 => match i32::try_from(*n) {
                Ok(n) => Ok(self.b.int(n)),
                Err(_) => Err(self.arithmetic(x.span, "the number does not fit 32 bits")),
            },
            Value::Bool(v) if dtype == DType::Bool => Ok(self.b.boolean(*v)),
            Value::None => Err(self.is_none(x.span)),
            Value::Float(_) if dtype == DType::I32 => {
                let d = Diagnostic::error(codes::TENSOR_DTYPE, "a number with a fraction beside an i32 tensor")
                    .at(x.span, "not a whole number")
                    .hint("convert the tensor: `cast(x, f32)`");
                Err(self.error(d))
            }
            other_kind => {
                let found = other_kind.describe(self.b);
                let beside = tensor(self.b, other);
                let d = Diagnostic::error(codes::WRONG_KIND, format!("{found} beside {beside}"));
                Err(self.error(d.at(x.span, format!("this is {found}")).expected_found("a tensor or a number", found)))
            }
        }
    }

    fn tensor_binary(
        &mut self,
        op: BinaryOp,
        op_span: Span,
        x: &Operand<'p>,
        y: &Operand<'p>,
        span: Span,
    ) -> Eval<Value<'p>> {
        if let (Value::Host(_), _) | (_, Value::Host(_)) = (&x.value, &y.value) {
            let d = Diagnostic::error(codes::CLOCK, "a scalar of the clock meets a tensor here").at(op_span, "");
            return Err(self
                .error(d.hint("only hyper-parameters carry the clock into tensors: give it to the optimizer as one")));
        }
        let (anchor_x, anchor_y) = match (&x.value, &y.value) {
            (Value::Tensor(a), Value::Tensor(b)) => (*a, *b),
            (Value::Tensor(a), _) => (*a, *a),
            (_, Value::Tensor(b)) => (*b, *b),
            _ => return Err(self.wrong_kinds(op.symbol(), op_span, &[x, y])),
        };
        if op == BinaryOp::Pow
            && let Value::Tensor(node) = x.value
            && let Some(power) = y.value.number()
        {
            return self.power(node, power, x.span, span);
        }
        let (a, b) = (self.beside(x, anchor_y)?, self.beside(y, anchor_x)?);
        let float = self.b.dtype(a).is_float();
        let op = match op {
            BinaryOp::Add => Binary::Add,
            BinaryOp::Sub => Binary::Sub,
            BinaryOp::Mul => Binary::Mul,
            BinaryOp::Div if float => Binary::Div,
            BinaryOp::Div => {
                let d = Diagnostic::error(codes::TENSOR_DTYPE, "`/` is real division, and this is an integer tensor");
                let d = d.at(op_span, "").also(x.span, format!("this is {}", tensor(self.b, a)));
                return Err(
                    self.error(d.hint("convert with `cast(x, f32)`, or use `//`, which rounds down on i32 tensors"))
                );
            }
            BinaryOp::IntDiv if !float => Binary::Div,
            BinaryOp::IntDiv => {
                let d = Diagnostic::error(codes::TENSOR_DTYPE, "`//` divides whole numbers").at(op_span, "");
                return Err(self.error(d.hint("write `floor(x / y)`")));
            }
            BinaryOp::Rem => Binary::Mod,
            BinaryOp::Pow => Binary::Pow,
            BinaryOp::Eq => Binary::Eq,
            BinaryOp::Ne => Binary::Ne,
            BinaryOp::Lt => Binary::Lt,
            BinaryOp::Le => Binary::Le,
            BinaryOp::Gt => Binary::Gt,
            BinaryOp::Ge => Binary::Ge,
            BinaryOp::And | BinaryOp::BitAnd => Binary::And,
            BinaryOp::Or | BinaryOp::BitOr => Binary::Or,
            BinaryOp::Shl => Binary::Shl,
            BinaryOp::Shr => Binary::Shr,
        };
        self.elementwise(op, (a, x.span), (b, y.span), span)
    }

    /// An element-wise operation of two tensors.
    pub fn elementwise(&mut self, op: Binary, x: (NodeId, Span), y: (NodeId, Span), span: Span) -> Eval<Value<'p>> {
        self.joinable(x, y, span)?;
        self.make(span, &[x, y], |b| b.binary(op, x.0, y.0)).map(Value::Tensor)
    }

    /// Reports two operands of which neither has all axes of the other.
    pub fn joinable(&mut self, x: (NodeId, Span), y: (NodeId, Span), span: Span) -> Eval<()> {
        let (left, right) = (self.b.axes(x.0).to_vec(), self.b.axes(y.0).to_vec());
        let only_left: Vec<_> = left.iter().copied().filter(|axis| !right.contains(axis)).collect();
        let only_right: Vec<_> = right.iter().copied().filter(|axis| !left.contains(axis)).collect();
        if only_left.is_empty() || only_right.is_empty() {
            return Ok(());
        }
        let shared = left.iter().any(|axis| right.contains(axis));
        let (left, right) = (axes(self.b, &left), axes(self.b, &right));
        let (extra_left, extra_right) = (axes(self.b, &only_left), axes(self.b, &only_right));
        let one_each = only_left.len() == 1 && only_right.len() == 1;
        let same_size = one_each && self.b.size(only_left[0]) == self.b.size(only_right[0]);
        let code = if one_each && shared { codes::AXES_DIFFER } else { codes::OUTER_PRODUCT };
        let message = if code == codes::AXES_DIFFER {
            format!("the axes {left} and {right} do not agree")
        } else {
            format!("{left} and {right}: this would be an outer product")
        };
        let mut d = Diagnostic::error(code, message)
            .at(span, format!("the first lacks {extra_right}, the second lacks {extra_left}"))
            .also(x.1, format!("this is {}", tensor(self.b, x.0)))
            .also(y.1, format!("this is {}", tensor(self.b, y.0)))
            .note("element by element, the axes of one operand must contain those of the other");
        if same_size {
            let (from, to) = (self.b.axis_name(only_right[0]), self.b.axis_name(only_left[0]));
            d = d.hint(format!("if they are the same, rename one: `rename(y, {from} -> {to})`"));
        }
        Err(self.error(d.hint("if every pair is meant, write `outer(x, y)`")))
    }

    /// `x ^ n`: multiplications for small whole powers, roots for halves.
    fn power(&mut self, x: NodeId, n: f64, at: Span, span: Span) -> Eval<Value<'p>> {
        let operands = [(x, at)];
        let float = self.b.dtype(x).is_float();
        let node = if n == 1.0 {
            Ok(x)
        } else if n == 2.0 {
            self.make(span, &operands, |b| b.mul(x, x))
        } else if n == 3.0 {
            self.make(span, &operands, |b| b.mul(x, x).and_then(|square| b.mul(square, x)))
        } else if n == 4.0 {
            self.make(span, &operands, |b| b.mul(x, x).and_then(|square| b.mul(square, square)))
        } else if float && n == 0.5 {
            self.make(span, &operands, |b| b.sqrt(x))
        } else if float && n == -0.5 {
            self.make(span, &operands, |b| b.rsqrt(x))
        } else if float && n == -1.0 {
            self.make(span, &operands, |b| b.recip(x))
        } else {
            self.make(span, &operands, |b| b.binary_const(Binary::Pow, x, n))
        };
        node.map(Value::Tensor)
    }

    /// `-x`
    pub fn negate(&mut self, x: Operand<'p>, span: Span) -> Eval<Value<'p>> {
        match x.value {
            Value::Int(a) => {
                a.checked_neg().map(Value::Int).ok_or_else(|| self.arithmetic(span, "the result does not fit 64 bits"))
            }
            Value::Float(a) => Ok(Value::Float(-a)),
            Value::Host(at) => Ok(Value::Host(self.host.push(HostOp::Unary(HostUnary::Neg, at)))),
            Value::Tensor(node) => self.make(span, &[(node, x.span)], |b| b.neg(node)).map(Value::Tensor),
            Value::None => Err(self.is_none(x.span)),
            _ => Err(self.wrong_kinds("-", span, &[&x])),
        }
    }

    /// `not x`
    pub fn not(&mut self, x: Operand<'p>, op_span: Span, span: Span) -> Eval<Value<'p>> {
        match x.value {
            Value::Bool(a) => Ok(Value::Bool(!a)),
            Value::Host(at) => Ok(Value::Host(self.host.push(HostOp::Unary(HostUnary::Not, at)))),
            Value::Tensor(node) => self.make(span, &[(node, x.span)], |b| b.not(node)).map(Value::Tensor),
            Value::None => Ok(Value::Bool(true)),
            _ => Err(self.wrong_kinds("not", op_span, &[&x])),
        }
    }

    /// A function of one number.
    pub fn elementary(&mut self, f: &Elementary, x: &Operand<'p>, span: Span) -> Eval<Value<'p>> {
        match &x.value {
            Value::Int(_) | Value::Float(_) => {
                let value = (f.number)(x.value.number().unwrap_or(f64::NAN));
                if value.is_nan() {
                    return Err(self.arithmetic(span, "the result is not a number"));
                }
                let whole =
                    f.whole || (matches!(x.value, Value::Int(_)) && matches!(f.tensor, Unary::Abs | Unary::Sign));
                Ok(if whole && libm::fabs(value) < 9.0e15 { Value::Int(value as i64) } else { Value::Float(value) })
            }
            Value::Host(at) => match f.host {
                Some(op) => Ok(Value::Host(self.host.push(HostOp::Unary(op, *at)))),
                None => Err(self.fail(
                    codes::CLOCK,
                    span,
                    format!("`{}` is not available for scalars of the clock", f.name),
                    "",
                )),
            },
            Value::Tensor(node) => {
                let (node, op) = (*node, f.tensor);
                self.make(span, &[(node, x.span)], |b| b.unary(op, node)).map(Value::Tensor)
            }
            Value::None => Err(self.is_none(x.span)),
            _ => Err(self.wrong_kinds(f.name, span, &[x])),
        }
    }
}

/// A function of one number, in its three forms.
pub struct Elementary {
    /// Its name.
    pub name: &'static str,
    /// On a compile-time number.
    pub number: fn(f64) -> f64,
    /// On a tensor.
    pub tensor: Unary,
    /// On the host.
    pub host: Option<HostUnary>,
    /// A compile-time result is an integer.
    pub whole: bool,
}

/// All of them.
pub const ELEMENTARY: &[Elementary] = &[
    Elementary { name: "exp", number: libm::exp, tensor: Unary::Exp, host: Some(HostUnary::Exp), whole: false },
    Elementary { name: "log", number: libm::log, tensor: Unary::Log, host: Some(HostUnary::Log), whole: false },
    Elementary { name: "tanh", number: libm::tanh, tensor: Unary::Tanh, host: Some(HostUnary::Tanh), whole: false },
    Elementary {
        name: "sigmoid",
        number: crate::graph::scalar::sigmoid,
        tensor: Unary::Sigmoid,
        host: None,
        whole: false,
    },
    Elementary { name: "sin", number: libm::sin, tensor: Unary::Sin, host: Some(HostUnary::Sin), whole: false },
    Elementary { name: "cos", number: libm::cos, tensor: Unary::Cos, host: Some(HostUnary::Cos), whole: false },
    Elementary { name: "sqrt", number: libm::sqrt, tensor: Unary::Sqrt, host: Some(HostUnary::Sqrt), whole: false },
    Elementary { name: "rsqrt", number: |x| 1.0 / libm::sqrt(x), tensor: Unary::Rsqrt, host: None, whole: false },
    Elementary { name: "abs", number: libm::fabs, tensor: Unary::Abs, host: Some(HostUnary::Abs), whole: false },
    Elementary { name: "round", number: libm::rint, tensor: Unary::Round, host: Some(HostUnary::Round), whole: true },
    Elementary { name: "floor", number: libm::floor, tensor: Unary::Floor, host: Some(HostUnary::Floor), whole: true },
    Elementary { name: "sign", number: sign, tensor: Unary::Sign, host: Some(HostUnary::Sign), whole: true },
];

fn sign(x: f64) -> f64 {
    f64::from(i8::from(x > 0.0) - i8::from(x < 0.0))
}
