//! The evaluator: its state, its limits, names and messages. The parts are in [`super::stmt`],
//! [`super::expr`], [`super::call`], [`super::axes`].
//!
//! *Takes* a [`Program`] and a graph builder; *gives* values, and nodes in the graph for everything that is a tensor; *promises*
//! that a mistake becomes one diagnostic and the rest is still evaluated, that evaluation ends ([`Limits`]), and that the same
//! program makes the same graph.
//!
//! Staging: numbers, lists, functions and layers exist here only. A name whose value could not be computed is bound to
//! [`Value::Broken`], and whatever uses it fails silently, so that one mistake gives one message.

use super::axes::AxisNames;
use super::calibrate::Quantizing;
use super::codes;
use super::host::HostArena;
use super::program::{Global, ModuleId, Program};
use super::scope::{Frame, FrameKind};
use super::value::{Value, tensor};
use crate::graph::build::Builder;
use crate::graph::error::TypeError;
use crate::graph::ir::{AxisId, NodeId, Origin};
use crate::optim::Parameter;
use golf_grammar::ast::{ConstDecl, Rounding};
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
    /// The running quantizer.
    pub quantizing: Option<Quantizing>,
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
    pub(super) stopped: bool,
    reported: BTreeSet<(u16, Option<Span>)>,
    /// Errors so far, repeated ones too.
    pub(super) failures: usize,
    /// The parameter whose optimizer, average or quantizer runs.
    pub(super) subject: Option<String>,
    consts: BTreeMap<(ModuleId, &'p str), Option<Eval<Value<'p>>>>,
    pub(super) axes: BTreeMap<(ModuleId, String), Option<Eval<AxisId>>>,
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
            quantizing: None,
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
        // What the prelude makes was written by the user where the prelude is called.
        let main = self.program.modules[0].tree.file;
        let place = self.sites.iter().rev().find(|site| span.file != main && site.file == main).unwrap_or(&span);
        self.b.set_origin(Origin { span: Some((place.file.0, place.start, place.end)), visit });
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

    pub(super) fn const_value(&mut self, decl: &'p ConstDecl) -> Eval<Value<'p>> {
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
}
