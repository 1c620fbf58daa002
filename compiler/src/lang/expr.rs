//! Expressions.
//!
//! *Takes* syntax; *gives* values; *promises* nothing beyond [`super::elaborate`]. Operators are in [`super::ops`].

use super::codes;
use super::elaborate::{Eval, Evaluator, Limits, Reported};
use super::ops::Operand;
use super::scope::FrameKind;
use super::value::{Clock, Value};
use crate::graph::ir::{DType, NodeId};
use golf_grammar::ast::{BinaryOp, Comprehension, Else, Expr, ExprKind, Ident, If, IndexItem, Str, StrPart, UnaryOp};
use golf_grammar::{Diagnostic, Span};
use golf_runtime::plan::HostOp;
use std::rc::Rc;

impl<'p> Evaluator<'p, '_> {
    /// The value of an expression.
    pub fn expr(&mut self, expr: &'p Expr) -> Eval<Value<'p>> {
        self.enter(expr.span)?;
        let value = self.expr_kind(expr);
        self.leave();
        value
    }

    fn expr_kind(&mut self, expr: &'p Expr) -> Eval<Value<'p>> {
        match &expr.kind {
            ExprKind::Int(x) => Ok(Value::Int(*x)),
            ExprKind::Float(x) | ExprKind::Duration(x) => Ok(Value::Float(*x)),
            ExprKind::Bool(x) => Ok(Value::Bool(*x)),
            ExprKind::None => Ok(Value::None),
            ExprKind::Str(text) => self.text(text).map(|text| Value::string(&text)),
            ExprKind::Name(name) => self.name(name),
            ExprKind::Tuple(fields) => {
                let mut items = Vec::with_capacity(fields.len());
                for field in fields {
                    items.push((field.name.as_ref().map(Ident::as_str), self.expr(&field.value)));
                }
                let items: Eval<Vec<_>> = items.into_iter().map(|(name, value)| Ok((name, value?))).collect();
                Ok(Value::Tuple(Rc::new(items?)))
            }
            ExprKind::List(items) => {
                let items: Vec<Eval<Value<'p>>> = items.iter().map(|item| self.expr(item)).collect();
                Ok(Value::List(Rc::new(items.into_iter().collect::<Eval<Vec<_>>>()?)))
            }
            ExprKind::Comprehension(inner) => self.comprehension(inner),
            ExprKind::AxisMap { from, to } => {
                let mut axes = |names: &'p [Ident]| -> Eval<Vec<_>> {
                    let axes: Vec<_> = names.iter().map(|name| self.axis(name)).collect();
                    axes.into_iter().collect()
                };
                let (from, to) = (axes(from), axes(to));
                Ok(Value::AxisMap(Rc::new((from?, to?))))
            }
            ExprKind::Call { callee, args } => self.call(expr, callee, args),
            ExprKind::Method { receiver, name, args } => self.method(expr, receiver, name, args),
            ExprKind::Field { base, name } => {
                let value = self.expr(base)?;
                self.field(value, base.span, name)
            }
            ExprKind::Index { base, items } => {
                let mut value = self.expr(base)?;
                for item in items {
                    value = self.index(value, base.span, item, expr.span)?;
                }
                Ok(value)
            }
            ExprKind::Unary { op, op_span, operand } => {
                let value = self.expr(operand)?;
                self.unary(*op, *op_span, Operand { value, span: operand.span }, expr.span)
            }
            ExprKind::Binary { op, op_span, lhs, rhs } => self.infix(expr, *op, *op_span, lhs, rhs),
            ExprKind::Coalesce { value, otherwise } => match self.expr(value)? {
                Value::None => self.expr(otherwise),
                value => Ok(value),
            },
            ExprKind::Range { start, end } => {
                let (from, to) = (self.expr(start), self.expr(end));
                let (from, to) = (self.whole(from?, start.span)?, self.whole(to?, end.span)?);
                Ok(Value::Range(from, to))
            }
            ExprKind::Label { value, label } => self.label(value, label),
            ExprKind::If(inner) => self.if_value(inner),
        }
    }

    /// An integer.
    pub fn whole(&mut self, value: Value<'p>, span: Span) -> Eval<i64> {
        match value {
            Value::Int(x) => Ok(x),
            other => {
                let found = other.describe(self.b);
                let d = Diagnostic::error(codes::WRONG_KIND, "a whole number is needed here");
                Err(self.error(d.at(span, format!("this is {found}")).expected_found("an integer", found)))
            }
        }
    }

    /// A compile-time number.
    pub fn real(&mut self, value: &Value<'p>, span: Span) -> Eval<f64> {
        match value.number() {
            Some(x) => Ok(x),
            None => {
                let found = value.describe(self.b);
                let d = Diagnostic::error(codes::WRONG_KIND, "a number known while compiling is needed here");
                Err(self.error(d.at(span, format!("this is {found}")).expected_found("a number", found)))
            }
        }
    }

    fn name(&mut self, name: &'p Ident) -> Eval<Value<'p>> {
        if let Some(value) = self.lookup(name.as_str()) {
            return value;
        }
        if let Some(axis) = self.find_axis(name.as_str()) {
            return axis.map(Value::Axis);
        }
        let names = self.visible_values();
        Err(self.error(
            Diagnostic::error(codes::UNKNOWN_NAME, format!("there is no value `{}` here", name.name))
                .at(name.span, "not found")
                .did_you_mean(name.as_str(), name.span, names.iter().map(String::as_str)),
        ))
    }

    /// The text of a string with its interpolations.
    pub fn text(&mut self, text: &'p Str) -> Eval<String> {
        let mut out = String::new();
        for part in &text.parts {
            match part {
                StrPart::Text(piece) => out.push_str(piece),
                StrPart::Expr(expr) => match self.expr(expr)? {
                    Value::Int(x) => out.push_str(&x.to_string()),
                    Value::Float(x) => out.push_str(&x.to_string()),
                    Value::Bool(x) => out.push_str(&x.to_string()),
                    Value::Str(x) => out.push_str(&x),
                    other => {
                        let found = other.describe(self.b);
                        let message = "only numbers, booleans and strings can stand in a string";
                        return Err(self.fail(codes::WRONG_KIND, expr.span, message, format!("this is {found}")));
                    }
                },
            }
            if out.len() > Limits::TEXT {
                return Err(self.limit(text.span, "a string grows without bounds", String::new()));
            }
        }
        Ok(out)
    }

    fn comprehension(&mut self, inner: &'p Comprehension) -> Eval<Value<'p>> {
        let mut out = Vec::new();
        let mut failed = false;
        for item in self.items(&inner.iter)? {
            self.turns(inner.iter.span, 1)?;
            self.frame().scopes.push(super::scope::Scope::default());
            let value = self.bind(&inner.pattern, item, inner.iter.span, None).and_then(|()| self.element(inner));
            self.frame().scopes.pop();
            match value {
                Ok(Some(value)) => out.push(value),
                Ok(None) => {}
                Err(Reported) => failed = true,
            }
        }
        if failed { Err(Reported) } else { Ok(Value::List(Rc::new(out))) }
    }

    fn element(&mut self, inner: &'p Comprehension) -> Eval<Option<Value<'p>>> {
        if let Some(cond) = &inner.cond
            && !self.condition(cond)?
        {
            return Ok(None);
        }
        self.expr(&inner.value).map(Some)
    }

    /// A compile-time boolean.
    pub fn condition(&mut self, cond: &'p Expr) -> Eval<bool> {
        let value = self.expr(cond)?;
        match value {
            Value::Bool(x) => Ok(x),
            other => Err(self.not_a_condition(&other, cond.span)),
        }
    }

    fn not_a_condition(&mut self, value: &Value<'p>, span: Span) -> Reported {
        let found = value.describe(self.b);
        let d = Diagnostic::error(codes::CONDITION, "a condition is true or false while compiling")
            .at(span, format!("this is {found}"))
            .expected_found("a boolean", &found);
        let d = match value {
            Value::Tensor(_) => d.hint("choose between tensors element by element with `select(condition, a, b)`"),
            Value::Int(_) | Value::Float(_) => d.hint("compare it: `x != 0`"),
            _ => d,
        };
        self.error(d)
    }

    fn if_value(&mut self, inner: &'p If) -> Eval<Value<'p>> {
        let cond = self.expr(&inner.cond)?;
        let holds = match &cond {
            // An optional: a value is there, or not.
            Value::None => false,
            _ if self.is_optional(&inner.cond) => true,
            Value::Bool(x) => *x,
            Value::Host(at) => return self.host_if(inner, *at),
            Value::Tensor(node) if self.b.dtype(*node) != DType::Bool => true,
            Value::List(_) | Value::Tuple(_) | Value::Str(_) | Value::Instance(_) | Value::DType(_) => true,
            other => return Err(self.not_a_condition(other, inner.cond.span)),
        };
        if holds {
            return self.block(&inner.then);
        }
        match &inner.otherwise {
            Some(Else::Block(block)) => self.block(block),
            Some(Else::If(next)) => self.if_value(next),
            None => Ok(Value::unit()),
        }
    }

    /// A name declared `T?`.
    fn is_optional(&self, expr: &Expr) -> bool {
        match &expr.kind {
            ExprKind::Name(name) => {
                self.frames.last().and_then(|frame| frame.var(name.as_str())).is_some_and(|var| var.optional())
            }
            _ => false,
        }
    }

    /// `if` on a scalar of the clock: both branches are expressions, the host selects.
    fn host_if(&mut self, inner: &'p If, cond: u32) -> Eval<Value<'p>> {
        let then = self.block(&inner.then)?;
        let otherwise = match &inner.otherwise {
            Some(Else::Block(block)) => self.block(block)?,
            Some(Else::If(next)) => self.if_value(next)?,
            None => {
                return Err(self.fail(codes::CLOCK, inner.span, "a condition on the clock needs an `else`", ""));
            }
        };
        let (x, y) = (self.host_scalar(&then, inner.then.span)?, self.host_scalar(&otherwise, inner.span)?);
        Ok(Value::Host(self.host.push(HostOp::Select(cond, x, y))))
    }

    fn infix(&mut self, expr: &'p Expr, op: BinaryOp, op_span: Span, lhs: &'p Expr, rhs: &'p Expr) -> Eval<Value<'p>> {
        let left = self.expr(lhs);
        // The right side is not looked at when the left decides.
        match (op, &left) {
            (BinaryOp::And, Ok(Value::Bool(false))) => return Ok(Value::Bool(false)),
            (BinaryOp::Or, Ok(Value::Bool(true))) => return Ok(Value::Bool(true)),
            _ => {}
        }
        let right = self.expr(rhs);
        let left = Operand { value: left?, span: lhs.span };
        let right = Operand { value: right?, span: rhs.span };
        self.binary(op, op_span, left, right, expr.span)
    }

    fn field(&mut self, value: Value<'p>, base: Span, name: &'p Ident) -> Eval<Value<'p>> {
        let fields: Vec<&str> = match &value {
            Value::List(items) => {
                if name == "len" {
                    return Ok(Value::Int(items.len() as i64));
                }
                vec!["len"]
            }
            Value::Tuple(items) => {
                if let Some((_, found)) = items.iter().find(|(n, _)| n.is_some_and(|n| *name == *n)) {
                    return Ok(found.clone());
                }
                items.iter().filter_map(|(n, _)| *n).collect()
            }
            Value::Clock(clock) => {
                let fields = clock_fields(*clock);
                if fields.contains(&name.as_str()) {
                    return Ok(Value::Host(self.host.push(HostOp::Clock(name.name.clone()))));
                }
                let d = Diagnostic::error(codes::CLOCK, format!("the clock has no field `{}` here", name.name));
                let d = d.at(name.span, "").note(format!("fields: {}", fields.join(", ")));
                return Err(self.error(d.did_you_mean(name.as_str(), name.span, fields.iter().copied())));
            }
            _ => Vec::new(),
        };
        let found = value.describe(self.b);
        let mut d = Diagnostic::error(codes::UNKNOWN_FIELD, format!("{found} has no field `{}`", name.name))
            .at(name.span, "")
            .also(base, format!("this is {found}"));
        if fields.is_empty() {
            d = d.note("fields are those of lists (`len`), named tuples and the clock");
        }
        Err(self.error(d.did_you_mean(name.as_str(), name.span, fields)))
    }

    fn index(&mut self, value: Value<'p>, base: Span, item: &'p IndexItem, whole: Span) -> Eval<Value<'p>> {
        match (&item.axis, value) {
            (Some(axis), Value::Tensor(node)) => {
                let axis_id = self.axis(axis)?;
                match self.expr(&item.at)? {
                    Value::Int(at) => {
                        let size = self.b.size(axis_id);
                        if at < 0 || at as usize >= size {
                            let message = format!("position {at} is outside the axis `{}`", axis.name);
                            return Err(self.fail(
                                codes::INDEX_RANGE,
                                item.at.span,
                                message,
                                format!("it has {size} positions"),
                            ));
                        }
                        self.pick(node, base, axis_id, at as usize, whole)
                    }
                    Value::Range(from, to) => {
                        let d = Diagnostic::error(codes::NOT_HERE, "a part of an axis is a new axis and needs a name")
                            .at(item.at.span, format!("positions {from}..{to}"))
                            .hint(format!(
                                "declare `axis part = {}` and write `slice(x, {} -> part, {from})`",
                                to.saturating_sub(from),
                                axis.name
                            ));
                        Err(self.error(d))
                    }
                    other => self.whole(other, item.at.span).map(Value::Int),
                }
            }
            (None, Value::List(items)) => {
                let at = self.expr(&item.at)?;
                let at = self.whole(at, item.at.span)?;
                match usize::try_from(at).ok().and_then(|at| items.get(at)) {
                    Some(found) => Ok(found.clone()),
                    None => {
                        let message = format!("position {at} is outside the list");
                        Err(self.fail(
                            codes::INDEX_RANGE,
                            item.at.span,
                            message,
                            format!("it has {} elements", items.len()),
                        ))
                    }
                }
            }
            (axis, other) => {
                let found = other.describe(self.b);
                let mut d = Diagnostic::error(codes::WRONG_KIND, format!("{found} cannot be indexed like this"));
                d = d.at(base, format!("this is {found}"));
                d = match (axis, &other) {
                    (None, Value::Tensor(_)) => d.hint("name the axis: `x[m = 0]`"),
                    (Some(_), Value::List(_)) => d.hint("lists are indexed by position: `blocks[i]`"),
                    _ => d,
                };
                Err(self.error(d))
            }
        }
    }

    fn pick(
        &mut self,
        node: NodeId,
        base: Span,
        axis: crate::graph::ir::AxisId,
        at: usize,
        span: Span,
    ) -> Eval<Value<'p>> {
        self.make(span, &[(node, base)], |b| b.index(node, axis, at)).map(Value::Tensor)
    }

    fn label(&mut self, value: &'p Expr, label: &'p Str) -> Eval<Value<'p>> {
        let text = self.text(label)?;
        self.check_label(&text, label.span)?;
        self.path.push(text);
        let made = self.expr(value);
        self.path.pop();
        match made? {
            Value::Instance(instance) => Ok(Value::Instance(instance)),
            other => {
                let found = other.describe(self.b);
                let d = Diagnostic::error(codes::LABEL, "a label names a layer where it is made");
                Err(self.error(d.at(value.span, format!("this is {found}")).expected_found("a layer instance", found)))
            }
        }
    }

    /// Labels become parts of parameter names, file names and keys.
    pub fn check_label(&mut self, text: &str, span: Span) -> Eval<()> {
        let fine =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if text.is_empty() || text.split('.').all(fine) {
            return Ok(());
        }
        let message = format!("\"{text}\" is not a label");
        Err(self.fail(codes::LABEL, span, message, "letters, digits, `_`, `-`, and single points between them"))
    }

    /// `-x`, `not x`
    fn unary(&mut self, op: UnaryOp, op_span: Span, x: Operand<'p>, span: Span) -> Eval<Value<'p>> {
        match op {
            UnaryOp::Neg => self.negate(x, span),
            UnaryOp::Not => self.not(x, op_span, span),
        }
    }

    /// Whether a frame of this kind runs.
    pub fn inside(&self, kind: FrameKind) -> bool {
        self.frames.iter().any(|frame| frame.kind == kind)
    }
}

/// Fields of the clock.
pub fn clock_fields(clock: Clock) -> &'static [&'static str] {
    match clock {
        Clock::Schedule => &["step", "progress", "step_time", "budget"],
        Clock::Train => &["step", "progress", "step_time", "budget", "scale"],
        Clock::Adapt => &["chunk", "chunks"],
    }
}
