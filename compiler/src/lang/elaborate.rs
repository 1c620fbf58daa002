//! The evaluator: statements, names, axes. Expressions are in [`super::expr`], calls in [`super::call`].
//!
//! *Takes* a [`Program`] and a graph builder; *gives* values, and nodes in the graph for everything that is a tensor; *promises*
//! that a mistake becomes one diagnostic and the rest is still evaluated, that evaluation ends ([`Limits`]), and that the same
//! program makes the same graph.
//!
//! Staging: numbers, lists, functions and layers exist here only. A name whose value could not be computed is bound to
//! [`Value::Broken`], and whatever uses it fails silently, so that one mistake gives one message.

use super::codes;
use super::host::HostArena;
use super::program::{Global, ModuleId, Program};
use super::scope::{Frame, FrameKind, Scope, Var};
use super::value::{Value, tensor};
use crate::graph::build::Builder;
use crate::graph::error::TypeError;
use crate::graph::ir::{AxisId, AxisRole, NodeId, Origin};
use crate::optim::Parameter;
use golf_grammar::ast::{
    AxisDecl, AxisSize, Block, ConstDecl, Expr, Ident, Pattern, PatternKind, Rounding, Stmt, StmtKind,
};
use golf_grammar::{Code, Diagnostic, Sink, Span};
use golf_runtime::plan::Init;
use std::collections::{BTreeMap, BTreeSet};

/// Proof that a diagnostic was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported;

/// A value, or nothing because the reason has been reported.
pub type Eval<T> = Result<T, Reported>;

/// Where evaluation stops.
pub struct Limits;

impl Limits {
    /// Calls inside calls.
    pub const CALLS: usize = 200;
    /// Expressions inside expressions, over all running calls.
    pub const DEPTH: usize = 6000;
    /// Loop turns and list elements in one evaluation.
    pub const TURNS: u64 = 1_000_000;
    /// Nodes of one graph.
    pub const NODES: usize = 4_000_000;
    /// Characters of one string.
    pub const TEXT: usize = 65_536;
    /// Positions of one axis.
    pub const AXIS: i64 = 1 << 31;
    /// Errors after which nothing more is evaluated.
    pub const ERRORS: usize = 50;
}

/// Unique graph names for axes by declaring place, size and copy, kept over all evaluations of a program.
#[derive(Clone, Debug, Default)]
pub struct AxisNames {
    table: BTreeMap<(Span, usize, usize), String>,
    taken: BTreeSet<String>,
}

impl AxisNames {
    /// Keeps a name for one axis.
    pub fn reserve(&mut self, name: &str) {
        self.taken.insert(name.to_string());
    }

    fn name(&mut self, site: Span, stem: &str, size: usize, copy: usize) -> String {
        if let Some(name) = self.table.get(&(site, size, copy)) {
            return name.clone();
        }
        let mut name = stem.to_string();
        let mut n = 0;
        while self.taken.contains(&name) {
            n += 1;
            name = format!("{stem}.{n}");
        }
        self.taken.insert(name.clone());
        self.table.insert((site, size, copy), name.clone());
        name
    }
}

/// A parameter as declared.
#[derive(Clone, Debug)]
pub struct Declared {
    /// What others see.
    pub parameter: Parameter,
    /// Its node in this graph.
    pub node: NodeId,
    /// Where it is declared.
    pub span: Span,
}

/// A state as declared by a running optimizer or average.
#[derive(Clone, Debug)]
pub struct DeclaredState<'p> {
    /// Its name in the program text.
    pub name: &'p str,
    /// Buffer name.
    pub buffer: String,
    /// Declared with `[]`: one for all parameters of the rule.
    pub shared: bool,
    /// Axes, by name and size.
    pub axes: Vec<(String, usize)>,
    /// Storage dtype.
    pub dtype: crate::graph::ir::DType,
    /// Initial value.
    pub init: Init,
    /// Its content before the step.
    pub old: NodeId,
    /// Where it is declared.
    pub span: Span,
}

/// What states of a running slot belong to.
#[derive(Clone, Debug)]
pub struct StateContext<'p> {
    /// Before the state's name: `muon.`, `adapt.sgd.`, `average.ema.`.
    pub prefix: String,
    /// Before the name of a state that the parameters of a rule share: `adapt.adamw.scalars.`.
    pub shared: String,
    /// What the definition calls the weights: its first input.
    pub weights: &'p str,
    /// The parameter: its name and axes.
    pub parameter: Parameter,
    /// Dtype of states with axes that declare none.
    pub dtype: crate::graph::ir::DType,
    /// States so far.
    pub states: Vec<DeclaredState<'p>>,
}

/// One evaluation over one graph.
pub struct Evaluator<'p, 'b> {
    /// The program.
    pub program: &'p Program,
    /// The graph.
    pub b: &'b mut Builder,
    /// Messages.
    pub sink: Sink,
    /// Names of local axes.
    pub names: AxisNames,
    /// Host scalars.
    pub host: HostArena,
    /// Parameters so far.
    pub declared: Vec<Declared>,
    /// States of the running slot.
    pub states: Option<StateContext<'p>>,
    /// Labels of the layers being made.
    pub path: Vec<String>,
    pub(super) frames: Vec<Frame<'p>>,
    pub(super) calls: usize,
    pub(super) rounding: Option<Rounding>,
    pub(super) visit: Vec<String>,
    /// Places of the running calls.
    pub(super) sites: Vec<Span>,
    depth: usize,
    turns: u64,
    stopped: bool,
    reported: BTreeSet<(u16, Option<Span>)>,
    /// Errors so far, repeated ones too.
    pub(super) failures: usize,
    /// The parameter whose optimizer, average or quantizer runs.
    pub(super) subject: Option<String>,
    consts: BTreeMap<(ModuleId, &'p str), Option<Eval<Value<'p>>>>,
    axes: BTreeMap<(ModuleId, String), Option<Eval<AxisId>>>,
}

impl<'p, 'b> Evaluator<'p, 'b> {
    /// An evaluator at the top level of the user's file.
    pub fn new(program: &'p Program, b: &'b mut Builder, names: AxisNames) -> Self {
        Evaluator {
            program,
            b,
            sink: Sink::new(),
            names,
            host: HostArena::default(),
            declared: Vec::new(),
            states: None,
            path: Vec::new(),
            frames: vec![Frame::new(0, FrameKind::Top)],
            calls: 0,
            rounding: None,
            visit: Vec::new(),
            sites: Vec::new(),
            depth: 0,
            turns: 0,
            stopped: false,
            reported: BTreeSet::new(),
            failures: 0,
            subject: None,
            consts: BTreeMap::new(),
            axes: BTreeMap::new(),
        }
    }

    // ---- messages ----

    /// Gives a diagnostic; a second one of the same code at the same place is dropped (a layer made eleven times).
    pub fn error(&mut self, mut diagnostic: Diagnostic) -> Reported {
        // Inside the prelude, show the user's line that led there.
        let main = self.program.modules[0].tree.file;
        if diagnostic.labels.iter().all(|label| label.span.file != main)
            && let Some(site) = self.sites.iter().rev().find(|site| site.file == main)
        {
            diagnostic = diagnostic.also(*site, "reached from here");
        }
        self.failures += usize::from(diagnostic.is_error());
        if self.reported.insert((diagnostic.code.0, diagnostic.span())) {
            if let Some(subject) = &self.subject {
                diagnostic = diagnostic.note(format!("for the parameter `{subject}`"));
            }
            self.sink.push(diagnostic);
        }
        if self.reported.len() >= Limits::ERRORS {
            self.stopped = true;
        }
        Reported
    }

    /// A diagnostic with one place.
    pub fn fail(&mut self, code: Code, span: Span, message: impl Into<String>, label: impl Into<String>) -> Reported {
        self.error(Diagnostic::error(code, message).at(span, label))
    }

    /// Stops everything: a limit is reached.
    pub fn limit(&mut self, span: Span, message: &str, label: String) -> Reported {
        let reported = self.fail(codes::LIMIT, span, message, label);
        self.stopped = true;
        reported
    }

    /// Counts one step of nesting; to be undone with [`Evaluator::leave`].
    pub fn enter(&mut self, span: Span) -> Eval<()> {
        if self.stopped {
            return Err(Reported);
        }
        if self.depth >= Limits::DEPTH {
            return Err(self.limit(span, "expressions and calls nest too deeply", "here".to_string()));
        }
        self.depth += 1;
        Ok(())
    }

    /// Ends a step of nesting.
    pub fn leave(&mut self) {
        self.depth -= 1;
    }

    /// Counts loop turns.
    pub fn turns(&mut self, span: Span, n: u64) -> Eval<()> {
        self.turns = self.turns.saturating_add(n);
        if self.turns > Limits::TURNS {
            let label = format!("more than {} turns in all", Limits::TURNS);
            return Err(self.limit(span, "loops are unrolled while compiling; this is too many turns", label));
        }
        if self.b.graph().nodes.len() > Limits::NODES {
            let label = format!("more than {} operations", Limits::NODES);
            return Err(self.limit(span, "the graph is too large", label));
        }
        Ok(())
    }

    // ---- the graph ----

    /// Makes a node; a type error becomes a diagnostic that shows the operands.
    pub fn make(
        &mut self,
        span: Span,
        operands: &[(NodeId, Span)],
        f: impl FnOnce(&mut Builder) -> Result<NodeId, TypeError>,
    ) -> Eval<NodeId> {
        let visit = self.visit.last().cloned().unwrap_or_default();
        self.b.set_origin(Origin { span: Some((span.file.0, span.start, span.end)), visit });
        f(self.b).map_err(|error| self.type_error(span, operands, &error))
    }

    fn type_error(&mut self, span: Span, operands: &[(NodeId, Span)], error: &TypeError) -> Reported {
        let (code, hint) = match error {
            TypeError::Axes { .. } => (codes::AXES_DIFFER, None),
            TypeError::MissingAxis { .. } => (codes::MISSING_AXIS, None),
            TypeError::DuplicateAxis { axis, .. } => {
                let hint = format!(
                    "declare `axis {axis}2 like {axis}` and rename one operand: `rename(x, {axis} -> {axis}2)`"
                );
                (codes::DUPLICATE_AXIS, Some(hint))
            }
            TypeError::Size { .. } => (codes::AXIS_SIZE, None),
            TypeError::DType { .. } => {
                (codes::TENSOR_DTYPE, Some("convert with `cast(x, f32)` or `cast(x, i32)`".to_string()))
            }
            TypeError::Arity { .. } | TypeError::Redeclared { .. } | TypeError::Invalid { .. } => (codes::TENSOR, None),
        };
        let mut d = Diagnostic::error(code, error.to_string()).at(span, "");
        for (node, place) in operands {
            d = d.also(*place, format!("this is {}", tensor(self.b, *node)));
        }
        if let Some(hint) = hint {
            d = d.hint(hint);
        }
        self.error(d)
    }

    // ---- names ----

    /// The running definition.
    pub fn frame(&mut self) -> &mut Frame<'p> {
        if self.frames.is_empty() {
            self.frames.push(Frame::new(0, FrameKind::Top));
        }
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }

    /// The module whose text is running.
    pub fn module(&self) -> ModuleId {
        self.frames.last().map_or(0, |frame| frame.module)
    }

    /// What a value name means here, or `None`.
    pub fn lookup(&mut self, name: &str) -> Option<Eval<Value<'p>>> {
        if let Some(value) = self.frames.last().and_then(|frame| frame.get(name)) {
            return Some(if matches!(value, Value::Broken) { Err(Reported) } else { Ok(value) });
        }
        let program = self.program;
        match program.global(self.module(), name) {
            Some((module, Global::Const(decl))) => return Some(self.constant(module, decl)),
            Some((module, Global::Def(def))) => return Some(Ok(Value::Def(def, module))),
            None => {}
        }
        super::builtin::predefined(name).map(Ok)
    }

    /// The value of a top-level constant.
    pub fn constant(&mut self, module: ModuleId, decl: &'p ConstDecl) -> Eval<Value<'p>> {
        let key = (module, decl.name.as_str());
        match self.consts.get(&key) {
            Some(Some(known)) => return known.clone(),
            Some(None) => {
                return Err(self.fail(
                    codes::CYCLE,
                    decl.name.span,
                    format!("`{}` is defined by itself", decl.name.name),
                    "",
                ));
            }
            None => {}
        }
        self.consts.insert(key, None);
        let value = self.on_top(module, |e| e.const_value(decl));
        self.consts.insert(key, Some(value.clone()));
        value
    }

    fn const_value(&mut self, decl: &'p ConstDecl) -> Eval<Value<'p>> {
        let value = self.expr(&decl.value)?;
        match &decl.ty {
            Some(ty) => self.check(value, ty, decl.value.span, &mut Vec::new()),
            None => Ok(value),
        }
    }

    /// Runs something at the top level of a module.
    pub fn on_top<T>(&mut self, module: ModuleId, f: impl FnOnce(&mut Self) -> T) -> T {
        self.frames.push(Frame::new(module, FrameKind::Top));
        let rounding = self.rounding.take();
        let result = f(self);
        self.rounding = rounding;
        self.frames.pop();
        result
    }

    /// The axis of a name where an axis is meant.
    pub fn axis(&mut self, name: &'p Ident) -> Eval<AxisId> {
        match self.find_axis(name.as_str()) {
            Some(found) => found,
            None => {
                let names = self.visible_axes();
                let mut d = Diagnostic::error(codes::UNKNOWN_AXIS, format!("there is no axis `{}` here", name.name))
                    .at(name.span, "not an axis")
                    .did_you_mean(name.as_str(), name.span, names.iter().map(String::as_str));
                if self.frames.last().is_some_and(|frame| frame.get(name.as_str()).is_some()) {
                    d = d.note("a value has this name, but axes and values are two namespaces");
                }
                Err(self.error(d))
            }
        }
    }

    /// The axis of a name, or `None`.
    pub fn find_axis(&mut self, name: &str) -> Option<Eval<AxisId>> {
        if let Some(axis) = self.frames.last().and_then(|frame| frame.axis(name)) {
            return Some(Ok(axis));
        }
        let module = self.module();
        let key = (module, name.to_string());
        match self.axes.get(&key) {
            Some(Some(known)) => return Some(*known),
            Some(None) => {
                let span = self.program.modules[module].axis(name).map_or(Span::default(), |decl| decl.name.span);
                return Some(Err(self.fail(codes::CYCLE, span, format!("the axis `{name}` is defined by itself"), "")));
            }
            None => {}
        }
        let program = self.program;
        let decl = program.modules[module].axis(name)?;
        self.axes.insert(key.clone(), None);
        let axis = self.on_top(module, |e| {
            let (size, role) = e.axis_size(decl)?;
            let made = e.b.axis(name, size, role);
            made.map_err(|error| e.fail(codes::TENSOR, decl.span, error.to_string(), ""))
        });
        self.axes.insert(key, Some(axis));
        Some(axis)
    }

    /// Fixes a top-level axis of the user's file (batch and time of a graph).
    pub fn set_axis(&mut self, name: &str, axis: AxisId) {
        self.axes.insert((0, name.to_string()), Some(Ok(axis)));
    }

    fn visible_axes(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        if let Some(frame) = self.frames.last() {
            names.extend(frame.scopes.iter().flat_map(|scope| scope.axes().iter().map(|(name, _)| name.to_string())));
            if let Some(outer) = &frame.outer {
                names.extend(outer.borrow().axes().iter().map(|(name, _)| name.to_string()));
            }
        }
        let module = self.module();
        names.extend(self.program.modules[module].axis_names().map(str::to_string));
        names.extend(self.axes.keys().filter(|(m, _)| *m == module).map(|(_, name)| name.clone()));
        names
    }

    /// Value names that could have been meant, for suggestions.
    pub fn visible_values(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        if let Some(frame) = self.frames.last() {
            names.extend(frame.scopes.iter().flat_map(|scope| scope.values().iter().map(|(name, _)| name.to_string())));
            if let Some(outer) = &frame.outer {
                names.extend(outer.borrow().values().iter().map(|(name, _)| name.to_string()));
            }
        }
        names.extend(self.program.visible_values(self.module()).map(str::to_string));
        names.extend(super::builtin::names().map(str::to_string));
        names
    }

    /// Size and role of a declared axis.
    pub fn axis_size(&mut self, decl: &'p AxisDecl) -> Eval<(usize, AxisRole)> {
        match &decl.size {
            AxisSize::Like(name) => {
                let axis = self.axis(name)?;
                let like = &self.b.graph().axes[axis.0 as usize];
                Ok((like.size, like.role))
            }
            AxisSize::Value { value, rounding } => {
                let before = std::mem::replace(&mut self.rounding, rounding.as_ref().map(|(r, _)| *r));
                let size = self.expr(value);
                self.rounding = before;
                Ok((self.positions(size?, value.span, &decl.name.name)?, AxisRole::Plain))
            }
        }
    }

    fn positions(&mut self, size: Value<'p>, span: Span, name: &str) -> Eval<usize> {
        match size {
            Value::Int(n) if (1..Limits::AXIS).contains(&n) => Ok(n as usize),
            Value::Int(n) => {
                let message = format!("the axis `{name}` would have {n} positions");
                Err(self.fail(codes::AXIS_SIZE, span, message, "an axis has at least 1 position, and fewer than 2^31"))
            }
            other => {
                let found = other.describe(self.b);
                Err(self.error(
                    Diagnostic::error(
                        codes::WRONG_KIND,
                        format!("the size of the axis `{name}` is not a whole number"),
                    )
                    .at(span, format!("this is {found}"))
                    .expected_found("an integer", found),
                ))
            }
        }
    }

    /// Declares a local axis: a name of its own, different from every axis that came in as an argument.
    pub fn local_axis(&mut self, name: &'p Ident, size: usize, role: AxisRole) -> Eval<AxisId> {
        for copy in 0.. {
            let unique = self.names.name(name.span, name.as_str(), size, copy);
            let axis = match self.b.axis(&unique, size, role) {
                Ok(axis) => axis,
                Err(error) => return Err(self.fail(codes::TENSOR, name.span, error.to_string(), "")),
            };
            if !self.frame().incoming.contains(&axis) {
                self.frame().inner().bind_axis(name.as_str(), axis);
                return Ok(axis);
            }
        }
        Err(Reported)
    }

    // ---- statements ----

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
