//! What expressions evaluate to while compiling.
//!
//! *Takes* nothing; *gives* [`Value`] and how to name one in a message; *promises* value semantics: a list or tuple that is
//! changed is a new one.

use super::builtin::Builtin;
use super::program::ModuleId;
use super::scope::Scope;
use crate::graph::build::Builder;
use crate::graph::infer::dtype_name;
use crate::graph::ir::{AxisId, DType, NodeId};
use golf_grammar::Span;
use golf_grammar::ast::{Def, DefKind};
use golf_runtime::plan::Init;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Which clock a settings block sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// `train.schedule`: `step`, `progress`, `step_time`, `budget`.
    Schedule,
    /// Hyper-parameters and averages of `train`: the same and `scale`, the schedule's result.
    Train,
    /// `evaluate.adapt`: `chunk`, `chunks`.
    Adapt,
}

/// A layer with its parameters, made once, applied as often as wanted.
#[derive(Debug)]
pub struct Instance<'p> {
    /// Its definition.
    pub def: &'p Def,
    /// Where that stands.
    pub module: ModuleId,
    /// Names of the layer's arguments and body.
    pub scope: Rc<RefCell<Scope<'p>>>,
    /// Label path, without a final point.
    pub path: String,
    /// Applications so far.
    pub visits: Cell<usize>,
}

/// A slot definition with its hyper-parameters, such as `warmdown(iterations: 3500)`.
#[derive(Debug)]
pub struct Partial<'p> {
    /// Its definition.
    pub def: &'p Def,
    /// Where that stands.
    pub module: ModuleId,
    /// Hyper-parameters by name, in the order of the signature.
    pub hypers: Vec<(&'p str, Value<'p>)>,
    /// Where it was written.
    pub span: Span,
}

/// A definition, its module and its hyper-parameters.
pub type SlotRef<'a, 'p> = (&'p Def, ModuleId, &'a [(&'p str, Value<'p>)]);

/// A compile-time value.
#[derive(Clone, Debug)]
pub enum Value<'p> {
    /// Could not be computed; the reason has been reported.
    Broken,
    /// `none`
    None,
    /// `true`, `false`
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text.
    Str(Rc<str>),
    /// `bf16` and the others.
    DType(DType),
    /// `causal`, `full`
    Mask(bool),
    /// An axis given as an argument.
    Axis(AxisId),
    /// `q -> kv g hd`
    AxisMap(Rc<(Vec<AxisId>, Vec<AxisId>)>),
    /// A value of the graph.
    Tensor(NodeId),
    /// A scalar the host computes at run time; index into the evaluator's host expressions.
    Host(u32),
    /// The clock.
    Clock(Clock),
    /// `[9, 10]`
    List(Rc<Vec<Value<'p>>>),
    /// `(a, b)`, `(codes: q, scale: s)`
    Tuple(Rc<Vec<(Option<&'p str>, Value<'p>)>>),
    /// `0..n`
    Range(i64, i64),
    /// A definition.
    Def(&'p Def, ModuleId),
    /// A function the compiler provides.
    Builtin(&'static Builtin),
    /// A layer.
    Instance(Rc<Instance<'p>>),
    /// A slot definition with its hyper-parameters.
    Partial(Rc<Partial<'p>>),
    /// An initial value.
    Init(Init),
}

impl<'p> Value<'p> {
    /// The empty tuple: what a statement gives.
    pub fn unit() -> Value<'p> {
        Value::Tuple(Rc::new(Vec::new()))
    }

    /// Text.
    pub fn string(text: &str) -> Value<'p> {
        Value::Str(Rc::from(text))
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Int(x) => Some(*x as f64),
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// What it is, for a message: `an integer`, `a tensor [b t d]`.
    pub fn describe(&self, b: &Builder) -> String {
        match self {
            Value::Broken => "a broken value".to_string(),
            Value::None => "`none`".to_string(),
            Value::Bool(x) => format!("`{x}`"),
            Value::Int(x) => format!("the integer {x}"),
            Value::Float(x) => format!("the number {x}"),
            Value::Str(text) => format!("the string \"{text}\""),
            Value::DType(dtype) => format!("the dtype {}", dtype_name(*dtype)),
            Value::Mask(causal) => format!("the mask `{}`", if *causal { "causal" } else { "full" }),
            Value::Axis(axis) => format!("the axis `{}`", b.axis_name(*axis)),
            Value::AxisMap(_) => "an axis map".to_string(),
            Value::Tensor(node) => tensor(b, *node),
            Value::Host(_) => "a scalar of the clock".to_string(),
            Value::Clock(_) => "the clock".to_string(),
            Value::List(items) => format!("a list of {}", items.len()),
            Value::Tuple(items) if items.is_empty() => "nothing".to_string(),
            Value::Tuple(items) => format!("a tuple of {}", items.len()),
            Value::Range(from, to) => format!("the range {from}..{to}"),
            Value::Def(def, _) => format!("the {} `{}`", def.kind.keyword(), def.name.name),
            Value::Builtin(builtin) => format!("the function `{}`", builtin.name),
            Value::Instance(instance) => format!("an instance of `{}`", instance.def.name.name),
            Value::Partial(partial) => format!("the {} `{}`", partial.def.kind.keyword(), partial.def.name.name),
            Value::Init(_) => "an initial value".to_string(),
        }
    }

    /// The definition and its hyper-parameters, if it is a slot of this kind: written with or without parentheses.
    pub fn slot(&self, kind: DefKind) -> Option<SlotRef<'_, 'p>> {
        match self {
            Value::Def(def, module) if def.kind == kind => Some((def, *module, &[])),
            Value::Partial(partial) if partial.def.kind == kind => Some((partial.def, partial.module, &partial.hypers)),
            _ => None,
        }
    }
}

/// `a tensor [b t d]`, `an i32 tensor [b t]`
pub fn tensor(b: &Builder, node: NodeId) -> String {
    let axes = axes(b, b.axes(node));
    match b.dtype(node) {
        dtype if dtype.is_float() => format!("a tensor {axes}"),
        DType::I32 | DType::I8 => format!("an {} tensor {axes}", dtype_name(b.dtype(node))),
        dtype => format!("a {} tensor {axes}", dtype_name(dtype)),
    }
}

/// `[b t d]`
pub fn axes(b: &Builder, axes: &[AxisId]) -> String {
    let names: Vec<&str> = axes.iter().map(|axis| b.axis_name(*axis)).collect();
    format!("[{}]", names.join(" "))
}
