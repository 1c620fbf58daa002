//! Statements: binding names, loops, giving names new values.
//!
//! *Takes* blocks; *gives* their values; *promises* that a statement that fails leaves its names in a state in which the rest can
//! still be checked.

use super::codes;
use super::elaborate::{Eval, Evaluator, Limits, Reported};
use super::scope::{Scope, Var};
use super::value::Value;
use golf_grammar::ast::{Block, Expr, Ident, Pattern, PatternKind, Stmt, StmtKind};
use golf_grammar::{Diagnostic, Span};

impl<'p> Evaluator<'p, '_> {
    /// Runs a block in a scope of its own and gives its value.
    pub fn block(&mut self, block: &'p Block) -> Eval<Value<'p>> {
        self.frame().scopes.push(Scope::default());
        let value = self.body(block);
        self.frame().scopes.pop();
        value
    }

    /// Runs the statements of a block in the innermost scope and gives the block's value.
    pub fn body(&mut self, block: &'p Block) -> Eval<Value<'p>> {
        let (before, value) = block.split_value();
        for stmt in before {
            self.statement(stmt);
        }
        match value {
            Some(value) => self.expr(value),
            None => Ok(Value::unit()),
        }
    }

    fn statement(&mut self, stmt: &'p Stmt) {
        // Errors have been reported; what the statement would have bound is bound to a broken value.
        let _ = match &stmt.kind {
            StmtKind::Let { pattern, ty, value } => {
                let result = self.expr(value).and_then(|v| match ty {
                    Some(ty) => self.check(v, ty, value.span, &mut Vec::new()),
                    None => Ok(v),
                });
                let ty = if matches!(pattern.kind, PatternKind::Name(_)) { ty.as_ref() } else { None };
                self.bind(pattern, result.unwrap_or(Value::Broken), value.span, ty)
            }
            StmtKind::Rebind { target, value } => {
                // The new value would have had the type of the old: with the old one, what follows can still be checked.
                match self.expr(value) {
                    Ok(result) => self.rebind(target, result, value.span),
                    Err(Reported) => self.spoil(target),
                }
            }
            StmtKind::Const(list) => {
                for decl in list {
                    let value = self.const_value(decl).unwrap_or(Value::Broken);
                    let var = Var { value, ty: decl.ty.as_ref(), span: decl.name.span };
                    self.frame().inner().bind(decl.name.as_str(), var);
                }
                Ok(())
            }
            StmtKind::Axis(list) => {
                for decl in list {
                    if let Ok((size, role)) = self.axis_size(decl) {
                        let _ = self.local_axis(&decl.name, size, role);
                    }
                }
                Ok(())
            }
            StmtKind::Param(decl) => self.param(decl),
            StmtKind::State(decl) => self.state(decl),
            StmtKind::For { pattern, iter, body } => self.repeat(pattern, iter, body),
            StmtKind::Expr(expr) => self.expr(expr).map(|_| ()),
        };
    }

    fn repeat(&mut self, pattern: &'p Pattern, iter: &'p Expr, body: &'p Block) -> Eval<()> {
        for item in self.items(iter)? {
            self.turns(iter.span, 1)?;
            self.frame().scopes.push(Scope::default());
            let _ = self.bind(pattern, item, iter.span, None).and_then(|()| self.block(body));
            self.frame().scopes.pop();
            if self.stopped {
                return Err(Reported);
            }
        }
        Ok(())
    }

    /// The elements of a range or list.
    pub fn items(&mut self, iter: &'p Expr) -> Eval<Vec<Value<'p>>> {
        match self.expr(iter)? {
            Value::Range(from, to) => {
                let n = to.saturating_sub(from).max(0) as u64;
                if n > Limits::TURNS {
                    self.turns(iter.span, n)?;
                }
                Ok((from..to).map(Value::Int).collect())
            }
            Value::List(items) => Ok(items.as_ref().clone()),
            other => {
                let found = other.describe(self.b);
                Err(self.error(
                    Diagnostic::error(codes::WRONG_KIND, "a loop runs over a range or a list")
                        .at(iter.span, format!("this is {found}"))
                        .expected_found("a range such as `0..n`, or a list", found),
                ))
            }
        }
    }

    /// Binds the names of a pattern.
    pub fn bind(
        &mut self,
        pattern: &'p Pattern,
        value: Value<'p>,
        at: Span,
        ty: Option<&'p golf_grammar::ast::Type>,
    ) -> Eval<()> {
        match &pattern.kind {
            PatternKind::Ignore => Ok(()),
            PatternKind::Name(name) => {
                let var = Var { value, ty, span: name.span };
                self.frame().inner().bind(name.as_str(), var);
                Ok(())
            }
            PatternKind::Tuple(parts) => {
                let values = self.parts(pattern, parts.len(), value, at);
                let failed = values.is_err();
                let values = values.unwrap_or_else(|_| vec![Value::Broken; parts.len()]);
                for (part, value) in parts.iter().zip(values) {
                    self.bind(part, value, at, None)?;
                }
                if failed { Err(Reported) } else { Ok(()) }
            }
        }
    }

    fn parts(&mut self, pattern: &Pattern, n: usize, value: Value<'p>, at: Span) -> Eval<Vec<Value<'p>>> {
        let values: Vec<Value<'p>> = match &value {
            Value::Broken => return Err(Reported),
            Value::Tuple(items) => items.iter().map(|(_, value)| value.clone()).collect(),
            Value::List(items) => items.as_ref().clone(),
            _ => Vec::new(),
        };
        if values.len() == n {
            return Ok(values);
        }
        let found = value.describe(self.b);
        Err(self.error(
            Diagnostic::error(codes::PATTERN, format!("{n} names for {found}"))
                .at(pattern.span, format!("{n} names"))
                .also(at, format!("this is {found}"))
                .expected_found(format!("a tuple of {n}"), found),
        ))
    }

    fn rebind(&mut self, target: &'p Pattern, value: Value<'p>, at: Span) -> Eval<()> {
        match &target.kind {
            PatternKind::Ignore => Ok(()),
            PatternKind::Name(name) => self.assign(name, value, at),
            PatternKind::Tuple(parts) => {
                let values = self.parts(target, parts.len(), value, at);
                let values = values.unwrap_or_else(|_| vec![Value::Broken; parts.len()]);
                for (part, value) in parts.iter().zip(values) {
                    self.rebind(part, value, at)?;
                }
                Ok(())
            }
        }
    }

    /// After an error in the new value: what could have been `none` or a list before is unknown now.
    fn spoil(&mut self, target: &'p Pattern) -> Eval<()> {
        match &target.kind {
            PatternKind::Name(name) => {
                if let Some(frame) = self.frames.last_mut()
                    && let Some(var) = frame.scopes.iter_mut().rev().find_map(|scope| scope.get_mut(name.as_str()))
                    && (var.optional() || matches!(var.value, Value::List(_)))
                {
                    var.value = Value::Broken;
                }
            }
            PatternKind::Ignore => {}
            PatternKind::Tuple(parts) => {
                for part in parts {
                    let _ = self.spoil(part);
                }
            }
        }
        Err(Reported)
    }

    /// Gives a visible local name a new value of the same type.
    pub fn assign(&mut self, name: &'p Ident, value: Value<'p>, at: Span) -> Eval<()> {
        let old =
            self.frames.last().and_then(|f| f.scopes.iter().rev().find_map(|scope| scope.get(name.as_str()).cloned()));
        let stateful = self.states.is_some();
        let outer = self.frames.last().and_then(|f| f.outer.clone()).filter(|_| stateful);
        let old = old.or_else(|| outer.as_ref().and_then(|outer| outer.borrow().get(name.as_str()).cloned()));
        let Some(old) = old else { return Err(self.cannot_rebind(name)) };
        if !matches!(old.value, Value::Broken) && !matches!(value, Value::Broken) && !self.same_type(&old, &value) {
            let (was, is) = (old.value.describe(self.b), value.describe(self.b));
            let mut d = Diagnostic::error(codes::REBIND, format!("`{}` cannot change its type", name.name))
                .at(at, format!("this is {is}"))
                .also(old.span, format!("`{}` is {was}", name.name))
                .expected_found(was, is);
            if matches!(old.value, Value::None) || matches!(value, Value::None) {
                d = d.hint(format!("declare it as an optional: `let {}: [b t d]? = none`", name.name));
            } else {
                d = d.hint("use `let` for a new name");
            }
            self.error(d);
            return Err(Reported);
        }
        let value = match (old.ty, value) {
            (_, Value::Broken) => Value::Broken,
            (Some(ty), value) => self.check(value, ty, at, &mut Vec::new()).unwrap_or(Value::Broken),
            (None, value) => value,
        };
        if let Some(frame) = self.frames.last_mut()
            && let Some(var) = frame.scopes.iter_mut().rev().find_map(|scope| scope.get_mut(name.as_str()))
        {
            var.value = value;
        } else if let Some(outer) = outer
            && let Some(var) = outer.borrow_mut().get_mut(name.as_str())
        {
            var.value = value;
        }
        Ok(())
    }

    fn cannot_rebind(&mut self, name: &Ident) -> Reported {
        let fixed = self.lookup(name.as_str()).is_some();
        let message = if fixed {
            format!("`{}` is fixed here and cannot be given a new value", name.name)
        } else {
            format!("there is no local name `{}` to give a new value", name.name)
        };
        let mut d = Diagnostic::error(codes::REBIND, message).at(name.span, "");
        if fixed {
            d = d.note("constants, definitions and the names of a layer's body do not change");
        } else {
            let names = self.visible_values();
            d = d.did_you_mean(name.as_str(), name.span, names.iter().map(String::as_str));
        }
        self.error(d.hint(format!("`let {} = …` declares a new name", name.name)))
    }

    fn same_type(&self, old: &Var<'p>, new: &Value<'p>) -> bool {
        if old.optional() {
            // The declared type is checked afterwards.
            return true;
        }
        match (&old.value, new) {
            (Value::Int(_) | Value::Float(_), Value::Int(_) | Value::Float(_) | Value::Host(_)) => true,
            // A number is a tensor without axes, and sums often start from one.
            (Value::Int(_) | Value::Float(_), Value::Tensor(_)) => true,
            (Value::Host(_), Value::Int(_) | Value::Float(_)) => true,
            (Value::Tensor(x), Value::Tensor(y)) => {
                let (x, y) = (self.b.ty(*x), self.b.ty(*y));
                let kind = |d: crate::graph::ir::DType| if d.is_float() { crate::graph::ir::DType::F32 } else { d };
                kind(x.dtype) == kind(y.dtype)
                    && x.axes.len() == y.axes.len()
                    && x.axes.iter().all(|axis| y.axes.contains(axis))
            }
            (x, y) => std::mem::discriminant(x) == std::mem::discriminant(y),
        }
    }
}
