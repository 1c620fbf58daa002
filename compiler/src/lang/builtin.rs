//! The functions the compiler provides: the graph's operations under their names in the language, and a few on sizes.
//!
//! *Takes* evaluated arguments; *gives* a value; *promises* one row per function in [`TABLE`], with its usage and meaning, so that
//! the reference documentation and the messages cannot disagree with what is implemented. Everything with a name in a paper is in
//! the prelude, not here.

use super::codes;
use super::elaborate::{Eval, Evaluator, Reported};
use super::ops::{ELEMENTARY, Elementary, Operand};
use super::types;
use super::value::Value;
use crate::graph::ir::{Attend, AxisId, AxisRole, Binary, Bits, BufferKind, DType, NodeId, Op, Reduce};
use golf_grammar::{Diagnostic, Span};
use std::rc::Rc;

/// How an argument is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An expression.
    Any,
    /// The name of an axis.
    Axis,
    /// `q -> h hd`
    Map,
}

/// A parameter of a built-in function.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// How its argument is read.
    pub kind: Kind,
    /// Must be given.
    pub required: bool,
}

/// How many axes stand after `over`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// None.
    None,
    /// Any number.
    Any,
    /// So many.
    Exactly(usize),
}

/// What a call hands over.
pub struct Given<'p> {
    /// The call.
    pub span: Span,
    /// Arguments by parameter.
    pub args: Vec<Option<(Value<'p>, Span)>>,
    /// Axes after `over`.
    pub over: Vec<(AxisId, Span)>,
    /// The function's name.
    pub name: &'static str,
}

/// A function.
pub struct Builtin {
    /// Its name.
    pub name: &'static str,
    /// How it is called.
    pub usage: &'static str,
    /// What it gives.
    pub doc: &'static str,
    /// Its parameters.
    pub params: &'static [Param],
    /// Its axes.
    pub over: Over,
    /// What it does.
    pub run: for<'p, 'a, 'b> fn(&'a mut Evaluator<'p, 'b>, &'a Given<'p>) -> Eval<Value<'p>>,
}

impl std::fmt::Debug for Builtin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

const fn any(name: &'static str) -> Param {
    Param { name, kind: Kind::Any, required: true }
}
const fn optional(name: &'static str) -> Param {
    Param { name, kind: Kind::Any, required: false }
}
const fn axis(name: &'static str) -> Param {
    Param { name, kind: Kind::Axis, required: true }
}
const fn map(name: &'static str) -> Param {
    Param { name, kind: Kind::Map, required: true }
}

macro_rules! table {
    ($($name:literal ($($param:expr),*) $over:expr, $usage:literal, $doc:literal, $run:expr;)*) => {
        /// All functions.
        pub static TABLE: &[Builtin] = &[
            $(Builtin { name: $name, usage: $usage, doc: $doc, params: &[$($param),*], over: $over, run: $run }),*
        ];
    };
}

table! {
    // Element by element. The axes of one operand contain those of the other.
    "exp" (any("x")) Over::None, "exp(x)", "e^x", |e, g| e.elementary_of(g);
    "log" (any("x")) Over::None, "log(x)", "natural logarithm", |e, g| e.elementary_of(g);
    "tanh" (any("x")) Over::None, "tanh(x)", "hyperbolic tangent", |e, g| e.elementary_of(g);
    "sigmoid" (any("x")) Over::None, "sigmoid(x)", "1 / (1 + e^-x)", |e, g| e.elementary_of(g);
    "sin" (any("x")) Over::None, "sin(x)", "sine", |e, g| e.elementary_of(g);
    "cos" (any("x")) Over::None, "cos(x)", "cosine", |e, g| e.elementary_of(g);
    "sqrt" (any("x")) Over::None, "sqrt(x)", "square root", |e, g| e.elementary_of(g);
    "rsqrt" (any("x")) Over::None, "rsqrt(x)", "1 / sqrt(x)", |e, g| e.elementary_of(g);
    "abs" (any("x")) Over::None, "abs(x)", "absolute value; its derivative at 0 is 0", |e, g| e.elementary_of(g);
    "round" (any("x")) Over::None, "round(x)", "nearest whole number, half to even; derivative 0", |e, g| e.elementary_of(g);
    "floor" (any("x")) Over::None, "floor(x)", "largest whole number not above; derivative 0", |e, g| e.elementary_of(g);
    "sign" (any("x")) Over::None, "sign(x)", "-1, 0 or 1; derivative 0", |e, g| e.elementary_of(g);
    "min" (any("x"), optional("y")) Over::Any, "min(x, y), min(x over d)", "the smaller, or the smallest along axes", |e, g| e.extreme(g, false);
    "max" (any("x"), optional("y")) Over::Any, "max(x, y), max(x over d)", "the larger, or the largest along axes", |e, g| e.extreme(g, true);
    "select" (any("condition"), any("x"), any("y")) Over::None, "select(condition, x, y)", "x where the condition holds, else y", |e, g| e.select(g);
    "xor" (any("x"), any("y")) Over::None, "xor(x, y)", "exclusive or of integers or booleans", |e, g| e.xor(g);
    "outer" (any("x"), any("y")) Over::None, "outer(x, y)", "product of every pair: the axes of both", |e, g| e.outer(g);
    "cast" (any("x"), any("dtype")) Over::None, "cast(x, f16)", "rounded to a dtype", |e, g| e.cast(g);
    "stop_gradient" (any("x")) Over::None, "stop_gradient(x)", "x with derivative zero", |e, g| e.one(g, |b, x| b.stop_gradient(x));
    "straight_through" (any("f"), any("x")) Over::None, "straight_through(f, x)", "the value of f with the derivative of x", |e, g| e.straight_through(g);
    // Along axes.
    "sum" (any("x")) Over::Any, "sum(x over d), sum(x)", "sum along the axes, or along all of them", |e, g| e.reduce(g, Reduce::Sum);
    "dot" (any("x"), any("y")) Over::Any, "dot(x, y over d)", "sum of products along the axes; other shared axes stay", |e, g| e.dot(g);
    "gather" (any("table"), any("index")) Over::Exactly(1), "gather(table, index over v)", "rows of a table by i32 index along the axis", |e, g| e.gather(g);
    "scatter_add" (any("index"), any("x"), axis("axis")) Over::None, "scatter_add(index, x, v)", "rows of x summed by index into the new axis", |e, g| e.scatter_add(g);
    "shift" (any("x"), any("n")) Over::Exactly(1), "shift(x, n over t)", "y[t] = x[t - n], zero outside", |e, g| e.shift(g);
    "cumsum" (any("x"), optional("reverse")) Over::Exactly(1), "cumsum(x over t)", "running sum", |e, g| e.cumsum(g);
    "scan" (any("a"), any("b"), optional("reverse")) Over::Exactly(1), "scan(a, b over t)", "h[t] = a[t] h[t-1] + b[t]", |e, g| e.scan(g);
    "attend" (any("q"), any("k"), any("v"), any("mask"), optional("window"), optional("scale"), optional("document")) Over::Exactly(2),
        "attend(q, k, v, causal over t, hd)",
        "softmax attention over positions t with scores along hd times scale (1/sqrt(size(hd))); axes of q that k lacks are query groups; `window: n` keeps to n positions, `document: ids` to those of the same i32 id", |e, g| e.attend(g);
    "quantile" (any("x"), any("q")) Over::Exactly(1), "quantile(x, 0.999 over c)", "quantile along the axis, linear between order statistics", |e, g| e.quantile(g);
    "top_k" (any("x"), map("axes")) Over::None, "top_k(x, e -> k)", "the largest size(k) values along e, descending", |e, g| e.top_k(g, false);
    "top_k_index" (any("x"), map("axes")) Over::None, "top_k_index(x, e -> k)", "their positions, i32", |e, g| e.top_k(g, true);
    "iota" (axis("axis")) Over::None, "iota(t)", "position along an axis, i32", |e, g| e.iota(g);
    "feedback_round" (any("w"), any("scale"), any("order"), any("upper"), any("low"), any("high")) Over::None, "feedback_round(w, scale, order, upper, low, high)",
        "codes round(w / scale) from low to high, the columns [c] one after another in the i32 order [c]; the error of the j-th, divided by upper[j, j], times upper[j, k] is taken from the k-th for all k > j (upper [c k])", |e, g| e.feedback_round(g);
    "inverse_factor" (any("inputs"), any("damp"), optional("descending")) Over::None, "inverse_factor(inputs, damp, descending)",
        "of a quantizer's second input H [c k], computed by the host: (order, live, upper) with order [c] the columns in the order of rounding (by descending diagonal, or as they are), live [c] 0 where nothing came in, upper [c k] with inverse(H + damp mean(diagonal)) = transpose(upper) upper in that order", |e, g| e.inverse_factor(g);
    // Axes.
    "split" (any("x"), map("axes")) Over::None, "split(x, q -> h hd)", "one axis into several, outermost first", |e, g| e.split(g);
    "merge" (any("x"), map("axes")) Over::None, "merge(x, h hd -> q)", "several axes into one, outermost first", |e, g| e.merge(g);
    "rename" (any("x"), map("axes")) Over::None, "rename(x, t -> s)", "another name for an axis, of the same size", |e, g| e.rename(g);
    "slice" (any("x"), map("axes"), any("start")) Over::None, "slice(x, d -> part, start)", "size(part) positions of d from start", |e, g| e.slice(g);
    "concat" (any("parts"), map("axes")) Over::None, "concat([x, y], a b -> d)", "parts side by side along d; part i has the i-th axis", |e, g| e.concat(g);
    "broadcast" (any("x")) Over::Any, "broadcast(x over h)", "repeated along further axes", |e, g| e.broadcast(g);
    "size" (axis("axis")) Over::None, "size(d)", "number of positions of an axis", |e, g| g.axis(e, 0).map(|axis| Value::Int(e.b.size(axis) as i64));
    "rows" (any("x")) Over::None, "rows(w)", "size of the first axis of a two-axis tensor", |e, g| e.extent(g, 0);
    "cols" (any("x")) Over::None, "cols(w)", "size of the second axis of a two-axis tensor", |e, g| e.extent(g, 1);
    "require" (any("condition"), any("message")) Over::None, "require(condition, \"message\")", "stops with the message unless the condition holds while compiling", |e, g| e.require(g);
    "numel" (any("x")) Over::None, "numel(x)", "number of elements", |e, g| g.tensor(e, 0).map(|x| Value::Int(e.b.numel(x) as i64));
}

/// Names of values that every program has.
const WORDS: [&str; 10] = ["f32", "bf16", "f16", "i32", "i8", "bool", "causal", "full", "pi", "inf"];

/// A value that every program has.
pub fn predefined<'p>(name: &str) -> Option<Value<'p>> {
    if let Some(builtin) = TABLE.iter().find(|builtin| builtin.name == name) {
        return Some(Value::Builtin(builtin));
    }
    Some(match name {
        "causal" => Value::Mask(true),
        "full" => Value::Mask(false),
        "pi" => Value::Float(std::f64::consts::PI),
        "inf" => Value::Float(f64::INFINITY),
        _ => Value::DType(types::dtype(name)?),
    })
}

/// All predefined names.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|builtin| builtin.name).chain(WORDS)
}

impl<'p> Given<'p> {
    fn get(&self, at: usize) -> Option<&(Value<'p>, Span)> {
        self.args.get(at).and_then(Option::as_ref)
    }

    pub(super) fn operand(&self, at: usize) -> Operand<'p> {
        match self.get(at) {
            Some((value, span)) => Operand { value: value.clone(), span: *span },
            None => Operand { value: Value::None, span: self.span },
        }
    }

    pub(super) fn span(&self, at: usize) -> Span {
        self.get(at).map_or(self.span, |(_, span)| *span)
    }

    fn tensor(&self, e: &mut Evaluator<'p, '_>, at: usize) -> Eval<NodeId> {
        let x = self.operand(at);
        match &x.value {
            Value::Tensor(node) => Ok(*node),
            Value::Int(_) | Value::Float(_) => Ok(e.b.constant(x.value.number().unwrap_or(f64::NAN))),
            Value::None => Err(e.is_none(x.span)),
            other => {
                let found = other.describe(e.b);
                let d = Diagnostic::error(codes::WRONG_KIND, format!("`{}` needs a tensor here", self.name));
                Err(e.error(d.at(x.span, format!("this is {found}")).expected_found("a tensor", found)))
            }
        }
    }

    fn axis(&self, e: &mut Evaluator<'p, '_>, at: usize) -> Eval<AxisId> {
        match self.get(at) {
            Some((Value::Axis(axis), _)) => Ok(*axis),
            _ => Err(e.fail(codes::WRONG_KIND, self.span(at), format!("`{}` needs an axis here", self.name), "")),
        }
    }

    fn map(&self, e: &mut Evaluator<'p, '_>, at: usize) -> Eval<Rc<(Vec<AxisId>, Vec<AxisId>)>> {
        match self.get(at) {
            Some((Value::AxisMap(map), _)) => Ok(map.clone()),
            _ => Err(e.fail(codes::WRONG_KIND, self.span(at), format!("`{}` needs an axis map here", self.name), "")),
        }
    }

    /// An axis map of `from` to `to` many axes.
    fn map_of(
        &self,
        e: &mut Evaluator<'p, '_>,
        at: usize,
        one_from: bool,
        one_to: bool,
    ) -> Eval<(Vec<AxisId>, Vec<AxisId>)> {
        let map = self.map(e, at)?;
        if (one_from && map.0.len() != 1) || (one_to && map.1.len() != 1) {
            let side = if one_from && map.0.len() != 1 { "left" } else { "right" };
            let message = format!("`{}` takes one axis on the {side} of the arrow", self.name);
            return Err(e.fail(codes::OVER, self.span(at), message, ""));
        }
        Ok((map.0.clone(), map.1.clone()))
    }

    fn int(&self, e: &mut Evaluator<'p, '_>, at: usize) -> Eval<i64> {
        let x = self.operand(at);
        e.whole(x.value, x.span)
    }

    pub(super) fn flag(&self, e: &mut Evaluator<'p, '_>, at: usize) -> Eval<bool> {
        match self.get(at) {
            None => Ok(false),
            Some((Value::Bool(x), _)) => Ok(*x),
            Some((other, span)) => {
                let found = other.describe(e.b);
                Err(e.fail(codes::WRONG_KIND, *span, "true or false is needed here", format!("this is {found}")))
            }
        }
    }

    fn over(&self) -> Vec<AxisId> {
        self.over.iter().map(|(axis, _)| *axis).collect()
    }
}

impl<'p> Evaluator<'p, '_> {
    fn elementary_of(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let Some(f) = ELEMENTARY.iter().find(|f: &&Elementary| f.name == g.name) else { return Err(Reported) };
        self.elementary(f, &g.operand(0), g.span)
    }

    fn one(
        &mut self,
        g: &Given<'p>,
        f: impl FnOnce(&mut crate::graph::build::Builder, NodeId) -> crate::graph::build::Made,
    ) -> Eval<Value<'p>> {
        let x = g.tensor(self, 0)?;
        self.make(g.span, &[(x, g.span(0))], |b| f(b, x)).map(Value::Tensor)
    }

    fn reduce(&mut self, g: &Given<'p>, op: Reduce) -> Eval<Value<'p>> {
        let x = g.tensor(self, 0)?;
        let over = if g.over.is_empty() { self.b.axes(x).to_vec() } else { g.over() };
        self.make(g.span, &[(x, g.span(0))], |b| b.reduce(op, x, &over)).map(Value::Tensor)
    }

    fn extreme(&mut self, g: &Given<'p>, largest: bool) -> Eval<Value<'p>> {
        if g.get(1).is_none() {
            if g.over.is_empty() {
                let message = format!("`{}` needs a second operand, or axes after `over`", g.name);
                return Err(self.fail(codes::MISSING_ARGUMENT, g.span, message, ""));
            }
            return self.reduce(g, if largest { Reduce::Max } else { Reduce::Min });
        }
        if let Some((_, at)) = g.over.first() {
            let message = format!("`{}` of two operands takes no `over`", g.name);
            return Err(self.fail(codes::OVER, *at, message, ""));
        }
        let (x, y) = (g.operand(0), g.operand(1));
        match (&x.value, &y.value) {
            (Value::Tensor(a), other) | (other, Value::Tensor(a)) => {
                let anchor = if let Value::Tensor(b) = other { *b } else { *a };
                let (a, b) = (self.beside(&x, anchor)?, self.beside(&y, *a)?);
                let op = if largest { Binary::Max } else { Binary::Min };
                self.elementwise(op, (a, x.span), (b, y.span), g.span)
            }
            (Value::Host(_), _) | (_, Value::Host(_)) => self.host_extreme(largest, &x, &y),
            (Value::Int(a), Value::Int(b)) => Ok(Value::Int(if largest { *a.max(b) } else { *a.min(b) })),
            (Value::None, _) => Err(self.is_none(x.span)),
            (_, Value::None) => Err(self.is_none(y.span)),
            (a, b) => match (a.number(), b.number()) {
                (Some(a), Some(b)) => Ok(Value::Float(if largest == (b > a) { b } else { a })),
                _ => Err(self.wrong_kinds(g.name, g.span, &[&x, &y])),
            },
        }
    }

    fn select(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let cond = g.operand(0);
        let (x, y) = (g.operand(1), g.operand(2));
        match &cond.value {
            Value::Bool(c) => return Ok(if *c { x.value } else { y.value }),
            Value::Host(c) => {
                let (a, b) = (self.host_scalar(&x.value, x.span)?, self.host_scalar(&y.value, y.span)?);
                return Ok(Value::Host(self.host.push(golf_runtime::plan::HostOp::Select(*c, a, b))));
            }
            _ => {}
        }
        let c = g.tensor(self, 0)?;
        let (a, b) = match (&x.value, &y.value) {
            (Value::Tensor(a), _) => (*a, self.beside(&y, *a)?),
            (_, Value::Tensor(b)) => (self.beside(&x, *b)?, *b),
            _ => (g.tensor(self, 1)?, g.tensor(self, 2)?),
        };
        self.joinable((a, x.span), (b, y.span), g.span)?;
        let wider = if self.b.axes(b).len() > self.b.axes(a).len() { (b, y.span) } else { (a, x.span) };
        self.joinable((c, cond.span), wider, g.span)?;
        let operands = [(c, cond.span), (a, x.span), (b, y.span)];
        self.make(g.span, &operands, |builder| builder.select(c, a, b)).map(Value::Tensor)
    }

    fn xor(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, y) = (g.operand(0), g.operand(1));
        match (&x.value, &y.value) {
            (Value::Tensor(a), other) | (other, Value::Tensor(a)) => {
                let anchor = if let Value::Tensor(b) = other { *b } else { *a };
                let (a, b) = (self.beside(&x, anchor)?, self.beside(&y, *a)?);
                self.elementwise(Binary::Xor, (a, x.span), (b, y.span), g.span)
            }
            (Value::Int(a), Value::Int(b)) => Ok(Value::Int(a ^ b)),
            (Value::Bool(a), Value::Bool(b)) => Ok(Value::Bool(a ^ b)),
            _ => Err(self.wrong_kinds("xor", g.span, &[&x, &y])),
        }
    }

    fn outer(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, y) = (g.tensor(self, 0)?, g.tensor(self, 1)?);
        self.make(g.span, &[(x, g.span(0)), (y, g.span(1))], |b| b.outer(Binary::Mul, x, y)).map(Value::Tensor)
    }

    fn cast(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let dtype = match g.operand(1).value {
            Value::DType(dtype) => dtype,
            other => {
                let found = other.describe(self.b);
                return Err(self.fail(
                    codes::WRONG_KIND,
                    g.span(1),
                    "a dtype is needed here",
                    format!("this is {found}"),
                ));
            }
        };
        self.one(g, |b, x| b.cast(x, dtype))
    }

    fn straight_through(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (f, x) = (g.tensor(self, 0)?, g.tensor(self, 1)?);
        self.make(g.span, &[(f, g.span(0)), (x, g.span(1))], |b| b.straight_through(f, x)).map(Value::Tensor)
    }

    fn dot(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, y) = (g.tensor(self, 0)?, g.tensor(self, 1)?);
        let over = if g.over.is_empty() { vec![self.only_shared(x, y, g)?] } else { g.over() };
        self.make(g.span, &[(x, g.span(0)), (y, g.span(1))], |b| b.dot(x, y, &over)).map(Value::Tensor)
    }

    /// The one axis a tensor shares with a parameter.
    fn only_shared(&mut self, x: NodeId, y: NodeId, g: &Given<'p>) -> Eval<AxisId> {
        let shared: Vec<AxisId> = self.b.axes(x).iter().copied().filter(|axis| self.b.axes(y).contains(axis)).collect();
        let parameter = |node: NodeId| match &self.b.node(node).op {
            Op::Read(buffer) => self.b.graph().buffers[buffer.0 as usize].kind == BufferKind::Param,
            _ => false,
        };
        let with_parameter = parameter(x) || parameter(y);
        if let ([axis], true) = (shared.as_slice(), with_parameter) {
            return Ok(*axis);
        }
        let message = match shared.len() {
            0 => "the operands of `dot` share no axis".to_string(),
            1 => "`dot` of two tensors needs `over`".to_string(),
            n => format!("the operands of `dot` share {n} axes: `over` must say which to sum"),
        };
        let mut d = Diagnostic::error(codes::AMBIGUOUS_DOT, message).at(g.span, "");
        for (at, node) in [(0, x), (1, y)] {
            d = d.also(g.span(at), format!("this is {}", super::value::tensor(self.b, node)));
        }
        if let Some(axis) = shared.first() {
            d = d.hint(format!("write `dot(x, y over {})`", self.b.axis_name(*axis)));
        }
        Err(self.error(d.note("with a parameter, `over` may be left out when exactly one axis is shared")))
    }

    fn gather(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (table, index, over) = (g.tensor(self, 0)?, g.tensor(self, 1)?, g.over());
        self.make(g.span, &[(table, g.span(0)), (index, g.span(1))], |b| b.gather(table, index, over[0]))
            .map(Value::Tensor)
    }

    fn scatter_add(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (index, x, axis) = (g.tensor(self, 0)?, g.tensor(self, 1)?, g.axis(self, 2)?);
        self.make(g.span, &[(index, g.span(0)), (x, g.span(1))], |b| b.scatter_add(index, x, axis)).map(Value::Tensor)
    }

    fn shift(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, n, over) = (g.tensor(self, 0)?, g.int(self, 1)?, g.over());
        self.make(g.span, &[(x, g.span(0))], |b| b.shift(x, over[0], n)).map(Value::Tensor)
    }

    fn cumsum(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, reverse, over) = (g.tensor(self, 0)?, g.flag(self, 1)?, g.over());
        self.make(g.span, &[(x, g.span(0))], |b| b.cumsum(x, over[0], reverse)).map(Value::Tensor)
    }

    fn scan(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (a, x, reverse, over) = (g.tensor(self, 0)?, g.tensor(self, 1)?, g.flag(self, 2)?, g.over());
        self.make(g.span, &[(a, g.span(0)), (x, g.span(1))], |b| b.scan(a, x, over[0], reverse)).map(Value::Tensor)
    }

    fn attend(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (q, k, v, over) = (g.tensor(self, 0)?, g.tensor(self, 1)?, g.tensor(self, 2)?, g.over());
        let causal = match g.operand(3).value {
            Value::Mask(causal) => causal,
            other => {
                let found = other.describe(self.b);
                return Err(self.fail(
                    codes::WRONG_KIND,
                    g.span(3),
                    "the mask is `causal` or `full`",
                    format!("this is {found}"),
                ));
            }
        };
        let window = match g.get(4) {
            None | Some((Value::None, _)) => None,
            Some(_) => {
                let n = g.int(self, 4)?;
                let window = u32::try_from(n).ok().filter(|n| *n > 0);
                if window.is_none() {
                    return Err(self.fail(
                        codes::WRONG_KIND,
                        g.span(4),
                        "a window is a positive number of positions",
                        "",
                    ));
                }
                window
            }
        };
        let (time, dim) = (over[0], over[1]);
        let scale = match g.get(5) {
            None => 1.0 / libm::sqrt(self.b.size(dim) as f64),
            Some((value, span)) => {
                let (value, span) = (value.clone(), *span);
                self.real(&value, span)?
            }
        };
        let document = match g.get(6) {
            None | Some((Value::None, _)) => None,
            Some(_) => Some(self.document_ids(g, time)?),
        };
        let how = Attend { time, dim, scale: Bits::new(scale), causal, window, document: document.is_some() };
        let operands = [(q, g.span(0)), (k, g.span(1)), (v, g.span(2))];
        self.make(g.span, &operands, |b| b.attend(how, q, k, v, document)).map(Value::Tensor)
    }

    /// `document` of `attend`: i32 along the positions, and the batch if it has them.
    fn document_ids(&mut self, g: &Given<'p>, time: AxisId) -> Eval<NodeId> {
        let ids = g.tensor(self, 6)?;
        let axes = self.b.axes(ids);
        let placed = axes.contains(&time) && axes.iter().all(|a| *a == time || self.role(*a) == AxisRole::Batch);
        if placed && self.node_dtype(ids) == DType::I32 {
            return Ok(ids);
        }
        let found = g.operand(6).value.describe(self.b);
        let time = self.b.axis_name(time);
        let message =
            format!("`document` of `attend` is an i32 id for each position of `{time}`, the same in all heads");
        let d = Diagnostic::error(codes::WRONG_KIND, message).at(g.span(6), format!("this is {found}"));
        Err(self
            .error(d.hint(format!("number them by their first token: `cumsum(cast(tokens == 1, i32) over {time})`"))))
    }

    fn quantile(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, over) = (g.tensor(self, 0)?, g.over());
        let (value, at) = (g.operand(1).value, g.span(1));
        let q = self.real(&value, at)?;
        self.make(g.span, &[(x, g.span(0))], |b| b.quantile(x, over[0], q)).map(Value::Tensor)
    }

    fn feedback_round(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let mut operand = |at| g.tensor(self, at).map(|x| (x, g.span(at)));
        let operands = [operand(0)?, operand(1)?, operand(2)?, operand(3)?];
        let mut code = |at| self.real(&g.operand(at).value, g.span(at));
        let (low, high) = (code(4)?, code(5)?);
        let [(w, _), (scale, _), (order, at), (upper, _)] = operands;
        let [axis] = self.b.axes(order)[..] else {
            let found = super::value::tensor(self.b, order);
            let d = Diagnostic::error(codes::WRONG_KIND, "the order of columns has one axis");
            return Err(self.error(d.at(at, format!("this is {found}")).expected_found("an i32 tensor [c]", found)));
        };
        self.make(g.span, &operands, |b| b.feedback_round(w, scale, order, upper, axis, low, high)).map(Value::Tensor)
    }

    fn top_k(&mut self, g: &Given<'p>, positions: bool) -> Eval<Value<'p>> {
        let (x, (from, to)) = (g.tensor(self, 0)?, g.map_of(self, 1, true, true)?);
        self.make(g.span, &[(x, g.span(0))], |b| {
            if positions { b.top_k_indices(x, from[0], to[0]) } else { b.top_k_values(x, from[0], to[0]) }
        })
        .map(Value::Tensor)
    }

    fn iota(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let axis = g.axis(self, 0)?;
        self.make(g.span, &[], |b| b.iota(axis)).map(Value::Tensor)
    }

    fn split(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, (from, to)) = (g.tensor(self, 0)?, g.map_of(self, 1, true, false)?);
        self.make(g.span, &[(x, g.span(0))], |b| b.split(x, from[0], &to)).map(Value::Tensor)
    }

    fn merge(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, (from, to)) = (g.tensor(self, 0)?, g.map_of(self, 1, false, true)?);
        self.make(g.span, &[(x, g.span(0))], |b| b.merge(x, &from, to[0])).map(Value::Tensor)
    }

    fn rename(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, (from, to)) = (g.tensor(self, 0)?, g.map_of(self, 1, true, true)?);
        self.make(g.span, &[(x, g.span(0))], |b| b.rename(x, from[0], to[0])).map(Value::Tensor)
    }

    fn slice(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (x, (from, to), start) = (g.tensor(self, 0)?, g.map_of(self, 1, true, true)?, g.int(self, 2)?);
        let Ok(start) = usize::try_from(start) else {
            return Err(self.fail(codes::INDEX_RANGE, g.span(2), "a slice starts at 0 or later", ""));
        };
        self.make(g.span, &[(x, g.span(0))], |b| b.slice(x, from[0], to[0], start)).map(Value::Tensor)
    }

    fn concat(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let (from, to) = g.map_of(self, 1, false, true)?;
        let items = match g.operand(0).value {
            Value::List(items) => items,
            other => {
                let found = other.describe(self.b);
                return Err(self.fail(
                    codes::WRONG_KIND,
                    g.span(0),
                    "`concat` takes a list of tensors",
                    format!("this is {found}"),
                ));
            }
        };
        let mut parts = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item {
                Value::Tensor(node) => parts.push(*node),
                other => {
                    let found = other.describe(self.b);
                    return Err(self.fail(
                        codes::WRONG_KIND,
                        g.span(0),
                        "`concat` takes a list of tensors",
                        format!("it has {found}"),
                    ));
                }
            }
        }
        if parts.is_empty() || parts.len() != from.len() {
            let message = format!("{} parts and {} axes on the left of the arrow", parts.len(), from.len());
            return Err(self.fail(codes::OVER, g.span, message, "each part has its own axis"));
        }
        self.make(g.span, &[], |b| b.concat(&parts, &from, to[0])).map(Value::Tensor)
    }

    fn broadcast(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let x = g.tensor(self, 0)?;
        let mut axes = self.b.axes(x).to_vec();
        axes.extend(g.over());
        self.make(g.span, &[(x, g.span(0))], |b| b.broadcast(x, &axes)).map(Value::Tensor)
    }

    fn extent(&mut self, g: &Given<'p>, at: usize) -> Eval<Value<'p>> {
        let x = g.tensor(self, 0)?;
        match self.b.axes(x) {
            axes if axes.len() == 2 => Ok(Value::Int(self.b.size(axes[at]) as i64)),
            _ => {
                let found = super::value::tensor(self.b, x);
                let message = format!("`{}` needs a tensor with two axes", g.name);
                Err(self.fail(codes::WRONG_KIND, g.span(0), message, format!("this is {found}")))
            }
        }
    }

    fn require(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        match (g.operand(0).value, g.operand(1).value) {
            (Value::Bool(true), _) => Ok(Value::unit()),
            (Value::Bool(false), Value::Str(text)) => {
                let main = self.program.modules[0].tree.file;
                let site = self.sites.iter().rev().find(|site| site.file == main).copied();
                let d = Diagnostic::error(codes::REQUIRED, text.to_string());
                Err(self.error(match site {
                    Some(site) => d.at(site, "").also(g.span, "required here"),
                    None => d.at(g.span, "required here"),
                }))
            }
            (Value::Bool(_), other) | (other, _) => {
                let found = other.describe(self.b);
                let message = "`require` takes a condition known while compiling and a string";
                Err(self.fail(codes::WRONG_KIND, g.span, message, format!("this is {found}")))
            }
        }
    }

    /// Role of an axis (legality and parameters ask).
    pub fn role(&self, axis: AxisId) -> AxisRole {
        self.b.graph().axes[axis.0 as usize].role
    }

    /// Dtype of a node.
    pub fn node_dtype(&self, node: NodeId) -> DType {
        self.b.dtype(node)
    }
}
