//! Calls: functions, layers, methods, slots with hyper-parameters, built-in functions.
//!
//! *Takes* a callee and arguments; *gives* its value; *promises* that arguments are evaluated once, in order, in the caller's
//! scope, that defaults are evaluated in the callee's, and that every misplaced argument of a call is reported.

use super::builtin::{Builtin, Given, Kind, Over};
use super::codes;
use super::elaborate::{Eval, Evaluator, Limits, Reported};
use super::program::ModuleId;
use super::scope::{Frame, FrameKind, Scope, Var};
use super::value::{Instance, Partial, Value};
use crate::graph::ir::AxisId;
use golf_grammar::ast::{Args, Def, DefKind, Expr, ExprKind, Ident, Param, Signature, TypeKind};
use golf_grammar::{Diagnostic, Span};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A value given for a parameter from Rust: by an optimiser slot, for instance.
pub type GivenValue<'p> = (Value<'p>, Span);

impl<'p> Evaluator<'p, '_> {
    /// `f(x)`
    pub fn call(&mut self, whole: &'p Expr, callee: &'p Expr, args: &'p Args) -> Eval<Value<'p>> {
        let value = self.expr(callee)?;
        match value {
            Value::Def(def, module) => self.call_def(def, module, args, whole.span),
            Value::Builtin(builtin) => self.call_builtin(builtin, args, whole.span),
            Value::Instance(instance) => {
                let Some(apply) = instance.def.method("apply") else {
                    let message = format!("the layer `{}` has no `apply`", instance.def.name.name);
                    let d = Diagnostic::error(codes::UNKNOWN_METHOD, message).at(callee.span, "");
                    return Err(self.error(d.also(instance.def.name.span, "defined here")));
                };
                self.apply(&instance, apply, args, whole.span)
            }
            other => {
                let found = other.describe(self.b);
                let d = Diagnostic::error(codes::NOT_CALLABLE, format!("{found} cannot be called"));
                Err(self.error(d.at(callee.span, format!("this is {found}"))))
            }
        }
    }

    fn call_def(&mut self, def: &'p Def, module: ModuleId, args: &'p Args, span: Span) -> Eval<Value<'p>> {
        match def.kind {
            DefKind::Fn => {
                let frame = self.arguments(def, Frame::new(module, FrameKind::Function), args, span)?;
                self.run(def, frame, span)
            }
            DefKind::Layer => self.construct(def, module, args, span),
            DefKind::Model => {
                Err(self.fail(codes::NOT_CALLABLE, span, "the model is not called: the compiler does that", ""))
            }
            _ => self.partial(def, module, args, span),
        }
    }

    /// Runs a definition's body in a frame that holds its arguments.
    pub fn run(&mut self, def: &'p Def, frame: Frame<'p>, span: Span) -> Eval<Value<'p>> {
        if self.calls >= Limits::CALLS {
            let label = format!("`{}` has been entered {} calls deep", def.name.name, Limits::CALLS);
            return Err(self.limit(span, "the recursion does not end", label));
        }
        self.turns(span, 1)?;
        self.calls += 1;
        self.frames.push(frame);
        self.sites.push(span);
        let rounding = self.rounding.take();
        let value = self.block(&def.body).and_then(|value| match &def.sig.result {
            Some(result) => {
                let at = def.body.split_value().1.map_or(def.body.span, |value| value.span);
                self.check(value, &result.ty, at, &mut Vec::new())
            }
            None => Ok(value),
        });
        self.rounding = rounding;
        self.sites.pop();
        self.frames.pop();
        self.calls -= 1;
        value
    }

    /// Makes a layer: its parameters and the names of its body.
    fn construct(&mut self, def: &'p Def, module: ModuleId, args: &'p Args, span: Span) -> Eval<Value<'p>> {
        let makes = |kind| matches!(kind, FrameKind::Model | FrameKind::Layer | FrameKind::Function);
        if !self.frames.iter().skip(1).all(|frame| makes(frame.kind)) || !self.inside(FrameKind::Model) {
            let d =
                Diagnostic::error(codes::PARAMETER_PLACE, format!("the layer `{}` cannot be made here", def.name.name));
            let d = d
                .at(span, "")
                .note("layers are made in the model's body or in another layer's body, once; a method applies them");
            return Err(self.error(d));
        }
        if self.calls >= Limits::CALLS {
            let label = format!("`{}` has been entered {} calls deep", def.name.name, Limits::CALLS);
            return Err(self.limit(span, "the recursion does not end", label));
        }
        let frame = self.arguments(def, Frame::new(module, FrameKind::Layer), args, span)?;
        self.calls += 1;
        self.frames.push(frame);
        self.sites.push(span);
        let rounding = self.rounding.take();
        // The body's names stay visible to the methods, so it runs without a scope of its own.
        self.frame().scopes.push(Scope::default());
        let _ = self.body(&def.body);
        self.rounding = rounding;
        self.sites.pop();
        let mut scope = Scope::default();
        if let Some(frame) = self.frames.pop() {
            frame.scopes.into_iter().for_each(|inner| scope.absorb(inner));
        }
        self.calls -= 1;
        let path = self.path.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(".");
        let scope = Rc::new(RefCell::new(scope));
        Ok(Value::Instance(Rc::new(Instance { def, module, scope, path, visits: Cell::new(0) })))
    }

    /// Applies a method of a layer.
    fn apply(&mut self, instance: &Rc<Instance<'p>>, method: &'p Def, args: &'p Args, span: Span) -> Eval<Value<'p>> {
        let mut frame = Frame::new(instance.module, FrameKind::Method);
        frame.outer = Some(instance.scope.clone());
        let frame = self.arguments(method, frame, args, span)?;
        instance.visits.set(instance.visits.get() + 1);
        let visit = match instance.visits.get() {
            1 => instance.path.clone(),
            n => format!("{}@{n}", instance.path),
        };
        self.visit.push(visit);
        let value = self.run(method, frame, span);
        self.visit.pop();
        value
    }

    /// `skips.push(x)`, `value.at(tokens)`
    pub fn method(&mut self, whole: &'p Expr, receiver: &'p Expr, name: &'p Ident, args: &'p Args) -> Eval<Value<'p>> {
        let value = self.expr(receiver)?;
        match value {
            Value::List(items) => self.list_method(whole, receiver, name, args, items),
            Value::Instance(instance) => match instance.def.method(name.as_str()) {
                Some(method) => self.apply(&instance, method, args, whole.span),
                None => {
                    let message = format!("the layer `{}` has no method `{}`", instance.def.name.name, name.name);
                    let names: Vec<&str> = instance.def.methods.iter().map(|m| m.name.as_str()).collect();
                    let d = Diagnostic::error(codes::UNKNOWN_METHOD, message).at(name.span, "");
                    let d = d.also(instance.def.name.span, "defined here");
                    Err(self.error(d.did_you_mean(name.as_str(), name.span, names)))
                }
            },
            other => {
                let found = other.describe(self.b);
                let d = Diagnostic::error(codes::UNKNOWN_METHOD, format!("{found} has no method `{}`", name.name));
                let mut d = d.at(name.span, "").also(receiver.span, format!("this is {found}"));
                if self.lookup(name.as_str()).is_some() {
                    d = d.hint(format!("`{0}` is a function: write `{0}(x, …)`", name.name));
                }
                Err(self.error(d))
            }
        }
    }

    fn list_method(
        &mut self,
        whole: &'p Expr,
        receiver: &'p Expr,
        name: &'p Ident,
        args: &'p Args,
        items: Rc<Vec<Value<'p>>>,
    ) -> Eval<Value<'p>> {
        let given: Vec<&'p Expr> = args.positional().collect();
        let wanted = match name.as_str() {
            "push" => 1,
            "pop" => 0,
            _ => {
                let d = Diagnostic::error(codes::UNKNOWN_METHOD, format!("a list has no method `{}`", name.name));
                let d = d.at(name.span, "").note("lists have `push(x)`, `pop()` and the field `len`");
                return Err(self.error(d.did_you_mean(name.as_str(), name.span, ["push", "pop", "len"])));
            }
        };
        if given.len() != wanted || args.items.len() != wanted || !args.over.is_empty() {
            let message =
                format!("`{}` of a list takes {wanted} argument{}", name.name, if wanted == 1 { "" } else { "s" });
            return Err(self.fail(codes::TOO_MANY_ARGUMENTS, args.span, message, ""));
        }
        let ExprKind::Name(variable) = &receiver.kind else {
            let message = format!("`{}` changes a list that has a name", name.name);
            return Err(self.fail(codes::NOT_HERE, receiver.span, message, "not a name"));
        };
        let mut list = items.as_ref().clone();
        let result = match given.first() {
            Some(item) => {
                self.turns(whole.span, 1)?;
                list.push(self.expr(item)?);
                Value::unit()
            }
            None => match list.pop() {
                Some(last) => last,
                None => {
                    let d = Diagnostic::error(codes::INDEX_RANGE, format!("`{}` is empty", variable.name));
                    return Err(self.error(d.at(whole.span, "nothing to pop").hint("test `skips.len > 0` first")));
                }
            },
        };
        self.assign(variable, Value::List(Rc::new(list)), whole.span)?;
        Ok(result)
    }

    /// `warmdown(iterations: 3500)`: a slot's definition with its hyper-parameters.
    fn partial(&mut self, def: &'p Def, module: ModuleId, args: &'p Args, span: Span) -> Eval<Value<'p>> {
        let hypers: Vec<&'p Param> = def.sig.hypers.iter().collect();
        let matched = self.match_arguments(def, &hypers, args, span)?;
        let mut given = Vec::new();
        let mut failed = false;
        for (param, arg) in hypers.iter().zip(matched) {
            let Some(arg) = arg else { continue };
            match self.argument(param, arg) {
                Ok(value) => given.push((param.name.as_str(), value)),
                Err(Reported) => failed = true,
            }
        }
        if failed {
            return Err(Reported);
        }
        Ok(Value::Partial(Rc::new(Partial { def, module, hypers: given, span })))
    }

    // ---- arguments ----

    /// Which argument each parameter gets; misplaced ones are reported.
    fn match_arguments(
        &mut self,
        def: &'p Def,
        params: &[&'p Param],
        args: &'p Args,
        span: Span,
    ) -> Eval<Vec<Option<&'p Expr>>> {
        let mut matched: Vec<Option<&'p Expr>> = vec![None; params.len()];
        let mut failed = false;
        for (index, arg) in args.items.iter().enumerate() {
            let at = match &arg.name {
                None if index < params.len() => index,
                None => {
                    let message = format!(
                        "`{}` takes {} argument{}",
                        def.name.name,
                        params.len(),
                        if params.len() == 1 { "" } else { "s" }
                    );
                    let d = Diagnostic::error(codes::TOO_MANY_ARGUMENTS, message).at(arg.value.span, "one too many");
                    self.error(d.also(def.sig.span, "declared here"));
                    failed = true;
                    break;
                }
                Some(name) => match params.iter().position(|param| *name == *param.name.as_str()) {
                    Some(at) => at,
                    None => {
                        let names: Vec<&str> = params.iter().map(|param| param.name.as_str()).collect();
                        let message = format!("`{}` has no parameter `{}`", def.name.name, name.name);
                        let d = Diagnostic::error(codes::UNKNOWN_ARGUMENT, message).at(name.span, "");
                        let d = d.also(def.sig.span, "declared here").did_you_mean(name.as_str(), name.span, names);
                        self.error(d);
                        failed = true;
                        continue;
                    }
                },
            };
            if let Some(first) = matched[at] {
                let message = format!("`{}` is given twice", params[at].name.name);
                let d = Diagnostic::error(codes::ARGUMENT_TWICE, message).at(arg.value.span, "second value");
                self.error(d.also(first.span, "first value"));
                failed = true;
                continue;
            }
            matched[at] = Some(&arg.value);
        }
        let _ = span;
        if failed { Err(Reported) } else { Ok(matched) }
    }

    /// The value of an argument; a name means an axis where the parameter is declared as one.
    fn argument(&mut self, param: &Param, arg: &'p Expr) -> Eval<Value<'p>> {
        let wants_axis =
            param.ty.as_ref().is_some_and(|ty| matches!(&ty.kind, TypeKind::Name(name) if *name == "axis"));
        match (&arg.kind, wants_axis) {
            (ExprKind::Name(name), true) => match self.find_axis(name.as_str()) {
                Some(axis) => axis.map(Value::Axis),
                None => match self.lookup(name.as_str()) {
                    Some(value) => value,
                    None => self.axis(name).map(Value::Axis),
                },
            },
            (ExprKind::AxisMap { .. }, _) => Err(self.fail(
                codes::NOT_HERE,
                arg.span,
                "an axis map is an argument of split, merge, rename, slice and concat",
                "",
            )),
            _ => self.expr(arg),
        }
    }

    /// Evaluates the arguments of a call and binds them in the callee's frame.
    fn arguments(&mut self, def: &'p Def, frame: Frame<'p>, args: &'p Args, span: Span) -> Eval<Frame<'p>> {
        let sig = &def.sig;
        let params: Vec<&'p Param> = sig.params.iter().chain(&sig.hypers).collect();
        let matched = self.match_arguments(def, &params, args, span);
        let over: Vec<Eval<AxisId>> = args.over.iter().map(|name| self.axis(name)).collect();
        let mut given: Vec<Option<Eval<GivenValue<'p>>>> = Vec::with_capacity(params.len());
        match &matched {
            Ok(matched) => {
                for (param, arg) in params.iter().zip(matched) {
                    given.push(arg.map(|arg| self.argument(param, arg).map(|value| (value, arg.span))));
                }
            }
            Err(Reported) => return Err(Reported),
        }
        if !over.is_empty() && over.len() != sig.axes.len() {
            let wanted = match sig.axes.len() {
                0 => format!("`{}` takes no axes", def.name.name),
                1 => format!("`{}` takes one axis after `over`", def.name.name),
                n => format!("`{}` takes {n} axes after `over`", def.name.name),
            };
            let d = Diagnostic::error(codes::OVER, wanted).at(args.over.first().map_or(span, |name| name.span), "");
            return Err(self.error(d.also(sig.span, "declared here")));
        }
        let over = over.into_iter().collect::<Eval<Vec<_>>>()?;
        let given = given.into_iter().map(Option::transpose).collect::<Eval<Vec<_>>>()?;
        self.bind_arguments(def, frame, &over, given, span)
    }

    /// Binds evaluated arguments in the callee's frame: checks types, finds axis parameters, evaluates defaults.
    pub fn bind_arguments(
        &mut self,
        def: &'p Def,
        mut frame: Frame<'p>,
        over: &[AxisId],
        given: Vec<Option<GivenValue<'p>>>,
        span: Span,
    ) -> Eval<Frame<'p>> {
        let sig: &'p Signature = &def.sig;
        frame.incoming.extend(over);
        for (value, _) in given.iter().flatten() {
            self.collect_axes(value, &mut frame.incoming);
        }
        let mut open: Vec<&'p str> = sig.axes.iter().map(Ident::as_str).collect();
        for (name, axis) in sig.axes.iter().zip(over) {
            frame.inner().bind_axis(name.as_str(), *axis);
            open.retain(|open| *name != *open);
        }
        self.frames.push(frame);
        self.sites.push(span);
        let mut failed = false;
        for (param, value) in sig.params.iter().chain(&sig.hypers).zip(given) {
            failed |= self.bind_param(def, param, value, &mut open, span).is_err();
        }
        if !failed && let Some(axis) = open.first() {
            let message = format!("the axis `{axis}` of `{}` is not given", def.name.name);
            let d = Diagnostic::error(codes::OVER, message).at(span, "").also(sig.span, "declared here");
            let names: Vec<&str> = sig.axes.iter().map(Ident::as_str).collect();
            self.error(d.hint(format!(
                "name the axes: `{}(… over {})`",
                def.name.name,
                names.join(", ").to_lowercase()
            )));
            failed = true;
        }
        self.sites.pop();
        match self.frames.pop() {
            Some(frame) if !failed => Ok(frame),
            _ => Err(Reported),
        }
    }

    fn bind_param(
        &mut self,
        def: &'p Def,
        param: &'p Param,
        value: Option<GivenValue<'p>>,
        open: &mut Vec<&'p str>,
        span: Span,
    ) -> Eval<()> {
        let optional = param.optional || param.ty.as_ref().is_some_and(|ty| matches!(ty.kind, TypeKind::Optional(_)));
        let (value, at) = match (value, &param.default) {
            (Some(given), _) => given,
            (None, Some(default)) => (self.expr(default)?, default.span),
            (None, None) if optional => (Value::None, param.span),
            (None, None) => {
                let message = format!("`{}` needs a value for `{}`", def.name.name, param.name.name);
                let d = Diagnostic::error(codes::MISSING_ARGUMENT, message)
                    .at(span, format!("`{}` is not given", param.name.name));
                return Err(self.error(d.also(param.span, "declared here, without a default")));
            }
        };
        let value = match (&param.ty, &value) {
            (_, Value::None) if param.optional => value,
            (Some(ty), _) => self.check(value, ty, at, open)?,
            (None, _) => value,
        };
        if let Value::Axis(axis) = value {
            self.frame().inner().bind_axis(param.name.as_str(), axis);
        }
        let var = Var { value, ty: param.ty.as_ref(), span: param.name.span };
        self.frame().inner().bind(param.name.as_str(), var);
        Ok(())
    }

    fn collect_axes(&self, value: &Value<'p>, out: &mut Vec<AxisId>) {
        match value {
            Value::Tensor(node) => out.extend(self.b.axes(*node)),
            Value::Axis(axis) => out.push(*axis),
            Value::List(items) => items.iter().for_each(|item| self.collect_axes(item, out)),
            Value::Tuple(items) => items.iter().for_each(|(_, item)| self.collect_axes(item, out)),
            _ => {}
        }
    }

    // ---- built-in functions ----

    fn call_builtin(&mut self, builtin: &'static Builtin, args: &'p Args, span: Span) -> Eval<Value<'p>> {
        let mut given: Vec<Option<GivenValue<'p>>> = vec![None; builtin.params.len()];
        let mut failed = false;
        for (index, arg) in args.items.iter().enumerate() {
            let at = match &arg.name {
                None if index < builtin.params.len() => Some(index),
                None => {
                    let n = builtin.params.len();
                    let message = format!("`{}` takes {n} argument{}", builtin.name, if n == 1 { "" } else { "s" });
                    let d = Diagnostic::error(codes::TOO_MANY_ARGUMENTS, message).at(arg.value.span, "one too many");
                    self.error(d.note(format!("`{}`: {}", builtin.usage, builtin.doc)));
                    failed = true;
                    break;
                }
                Some(name) => builtin.params.iter().position(|param| *name == *param.name),
            };
            let Some(at) = at else {
                let name = arg.name.as_ref().map_or("", Ident::as_str);
                let names = builtin.params.iter().map(|param| param.name);
                let message = format!("`{}` has no parameter `{name}`", builtin.name);
                let at = arg.name.as_ref().map_or(arg.value.span, |name| name.span);
                let d = Diagnostic::error(codes::UNKNOWN_ARGUMENT, message).at(at, "");
                self.error(d.note(format!("`{}`: {}", builtin.usage, builtin.doc)).did_you_mean(name, at, names));
                failed = true;
                continue;
            };
            if let Some((_, first)) = &given[at] {
                let message = format!("`{}` is given twice", builtin.params[at].name);
                let d = Diagnostic::error(codes::ARGUMENT_TWICE, message)
                    .at(arg.value.span, "second value")
                    .also(*first, "first value");
                self.error(d);
                failed = true;
                continue;
            }
            match self.builtin_argument(builtin.params[at].kind, &arg.value) {
                Ok(value) => given[at] = Some((value, arg.value.span)),
                Err(Reported) => failed = true,
            }
        }
        let over: Vec<Eval<(AxisId, Span)>> =
            args.over.iter().map(|name| self.axis(name).map(|axis| (axis, name.span))).collect();
        let over = over.into_iter().collect::<Eval<Vec<_>>>();
        if failed {
            return Err(Reported);
        }
        let over = over?;
        let (least, most) = match builtin.over {
            Over::None => (0, 0),
            Over::Any => (0, usize::MAX),
            Over::Exactly(n) => (n, n),
        };
        if over.len() < least || over.len() > most {
            let at = args.over.first().map_or(span, |name| name.span);
            let message = match builtin.over {
                Over::None => format!("`{}` takes no `over`", builtin.name),
                Over::Any | Over::Exactly(1) => format!("`{}` needs one axis after `over`", builtin.name),
                Over::Exactly(n) => format!("`{}` needs {n} axes after `over`", builtin.name),
            };
            let d = Diagnostic::error(codes::OVER, message).at(at, "");
            return Err(self.error(d.note(format!("`{}`: {}", builtin.usage, builtin.doc))));
        }
        if let Some((param, _)) =
            builtin.params.iter().zip(&given).find(|(param, value)| param.required && value.is_none())
        {
            let message = format!("`{}` needs a value for `{}`", builtin.name, param.name);
            let d =
                Diagnostic::error(codes::MISSING_ARGUMENT, message).at(span, format!("`{}` is not given", param.name));
            return Err(self.error(d.note(format!("`{}`: {}", builtin.usage, builtin.doc))));
        }
        (builtin.run)(self, &Given { span, args: given, over, name: builtin.name })
    }

    fn builtin_argument(&mut self, kind: Kind, arg: &'p Expr) -> Eval<Value<'p>> {
        match (kind, &arg.kind) {
            (Kind::Axis, ExprKind::Name(name)) => match self.find_axis(name.as_str()) {
                Some(axis) => axis.map(Value::Axis),
                None => self.axis(name).map(Value::Axis),
            },
            (Kind::Map, _) | (_, ExprKind::AxisMap { .. })
                if !matches!((kind, &arg.kind), (Kind::Map, ExprKind::AxisMap { .. })) =>
            {
                let message = if kind == Kind::Map {
                    "an axis map such as `q -> h hd` is needed here"
                } else {
                    "an axis map cannot stand here"
                };
                Err(self.fail(codes::NOT_HERE, arg.span, message, ""))
            }
            _ => self.expr(arg),
        }
    }
}
