//! Parameters and states: what a program keeps.
//!
//! *Takes* `param` and `state` statements; *gives* reads of the named buffers, and the list of declarations; *promises* unique
//! label paths, storage dtypes by precision, and that labels are the only thing a name depends on.

use super::codes;
use super::elaborate::{Declared, DeclaredState, Eval, Evaluator, Limits, Reported};
use super::scope::{FrameKind, Var};
use super::value::Value;
use crate::graph::ir::{AxisId, AxisRole, BufferKind, DType, NodeId};
use crate::optim::{Parameter, storage};
use golf_grammar::ast::{AxisUse, Expr, ExprKind, Group, ParamDecl, StateDecl, TensorDecl};
use golf_grammar::{Diagnostic, Span};
use golf_runtime::plan::Init;

/// Initial values by name.
pub const INITS: [&str; 7] = ["zeros", "ones", "fill", "normal", "uniform", "orthogonal", "rows"];

impl<'p> Evaluator<'p, '_> {
    /// `param wq[q, d] : bf16 as "c_q.weight" ~ orthogonal in matrices`
    pub fn param(&mut self, decl: &'p ParamDecl) -> Eval<()> {
        let kind = self.frames.last().map(|frame| frame.kind);
        if !matches!(kind, Some(FrameKind::Model | FrameKind::Layer)) {
            let d = Diagnostic::error(codes::PARAMETER_PLACE, "a parameter cannot be declared here").at(decl.span, "");
            self.error(d.note("parameters belong to a layer's body or to the model's body, outside methods"));
        }
        let (group, unused) = self.group(decl);
        for slot in &decl.slots {
            let made = self.param_slot(decl, slot, &group, unused);
            let value = made.map_or(Value::Broken, Value::Tensor);
            let var = Var { value, ty: None, span: slot.name.span };
            self.frame().inner().bind(slot.name.as_str(), var);
        }
        Ok(())
    }

    fn group(&mut self, decl: &'p ParamDecl) -> (String, bool) {
        let unused = decl.unused.is_some();
        let Some(group) = &decl.group else {
            if !unused {
                let d = Diagnostic::error(codes::NO_GROUP, "a parameter belongs to a group")
                    .at(decl.span.after(), "no group");
                self.error(d.hint("write `in matrices`; groups are what optimizers and quantizers select by"));
            }
            return ("unused".to_string(), true);
        };
        match self.chosen_group(group) {
            Ok(Some(name)) => (name, unused),
            Ok(None) => ("unused".to_string(), true),
            Err(Reported) => ("unused".to_string(), true),
        }
    }

    fn chosen_group(&mut self, group: &'p Group) -> Eval<Option<String>> {
        match group {
            Group::Name(name) => Ok(Some(name.name.clone())),
            Group::Unused(_) => Ok(None),
            Group::If { then, cond, otherwise } => {
                let holds = self.condition(cond)?;
                self.chosen_group(if holds { then } else { otherwise })
            }
        }
    }

    fn param_slot(&mut self, decl: &'p ParamDecl, slot: &'p TensorDecl, group: &str, unused: bool) -> Eval<NodeId> {
        let axes = match &slot.axes {
            Some(axes) => self.declared_axes(axes)?,
            None => Vec::new(),
        };
        self.distinct(&axes, slot)?;
        let dtype = self.storage_dtype(slot)?.unwrap_or(DType::F32);
        let label = match &slot.label {
            Some(label) => {
                let text = self.text(label)?;
                self.check_label(&text, label.span)?;
                text
            }
            None => slot.name.name.clone(),
        };
        let parts = self.path.iter().chain([&label]).filter(|part| !part.is_empty());
        let name = parts.cloned().collect::<Vec<_>>().join(".");
        let place = slot.label.as_ref().map_or(slot.name.span, |label| label.span);
        let init = match &decl.init {
            Some(init) => self.init(init, &axes)?,
            None => {
                let d = Diagnostic::error(
                    codes::NO_INIT,
                    format!("the parameter `{}` has no initial value", slot.name.name),
                );
                return Err(self.error(d.at(slot.span, "").hint("write `~ zeros`, `~ normal(0.02)`, `~ orthogonal` …")));
            }
        };
        if name.is_empty() {
            return Err(self.fail(codes::LABEL, place, "a parameter needs a name", "every part of its path is empty"));
        }
        if let Some(first) = self.declared.iter().find(|declared| declared.parameter.name == name) {
            let first = first.span;
            let mut d = Diagnostic::error(codes::DUPLICATE_PARAMETER, format!("two parameters are named `{name}`"))
                .at(place, "second parameter of this name");
            if first != place {
                d = d.also(first, "first parameter of this name");
            } else {
                d = d.note("both come from this line: the layer is made twice under one label");
            }
            return Err(
                self.error(d.hint("a name is the path of labels: give each instance its own, `as \"blocks.{i}\"`"))
            );
        }
        let axes: Vec<(String, usize)> =
            axes.iter().map(|axis| (self.b.axis_name(*axis).to_string(), self.b.size(*axis))).collect();
        let parameter = Parameter { name: name.clone(), axes, dtype, init, group: group.to_string(), unused };
        self.declare(parameter, place)
    }

    /// Adds a parameter and reads it.
    fn declare(&mut self, parameter: Parameter, span: Span) -> Eval<NodeId> {
        if self.declared.len() as u64 >= Limits::TURNS / 10 {
            return Err(self.limit(span, "too many parameters", String::new()));
        }
        if parameter.axes.iter().try_fold(1usize, |n, (_, size)| n.checked_mul(*size)).is_none_or(|n| n > 1 << 40) {
            return Err(self.fail(
                codes::AXIS_SIZE,
                span,
                format!("the parameter `{}` is too large", parameter.name),
                "",
            ));
        }
        let node = self.read_kept(&parameter.name, &parameter.axes, parameter.dtype, BufferKind::Param, span)?;
        self.declared.push(Declared { parameter, node, span });
        Ok(node)
    }

    /// Reads a buffer that outlives the graph.
    pub fn read_kept(
        &mut self,
        name: &str,
        axes: &[(String, usize)],
        dtype: DType,
        kind: BufferKind,
        span: Span,
    ) -> Eval<NodeId> {
        let dtype = storage(dtype, self.b.graph().compute);
        self.make(span, &[], |b| {
            let ids = axes.iter().map(|(n, size)| b.axis(n, *size, AxisRole::Plain)).collect::<Result<Vec<_>, _>>()?;
            let buffer = b.buffer(name, dtype, &ids, kind)?;
            b.read(buffer)
        })
    }

    fn declared_axes(&mut self, axes: &'p [AxisUse]) -> Eval<Vec<AxisId>> {
        let found: Vec<Eval<AxisId>> = axes
            .iter()
            .map(|axis| match &axis.size {
                None => self.axis(&axis.name),
                Some(size) => {
                    let value = self.expr(size)?;
                    let n = self.whole(value, size.span)?;
                    if !(1..Limits::AXIS).contains(&n) {
                        let message = format!("the axis `{}` would have {n} positions", axis.name.name);
                        return Err(self.fail(codes::AXIS_SIZE, size.span, message, "an axis has at least 1 position"));
                    }
                    self.local_axis(&axis.name, n as usize, AxisRole::Plain)
                }
            })
            .collect();
        let found = found.into_iter().collect::<Eval<Vec<_>>>()?;
        for (id, axis) in found.iter().zip(axes) {
            if self.b.graph().axes[id.0 as usize].role != AxisRole::Plain {
                let message = format!("a parameter cannot have the axis `{}`", axis.name.name);
                let label = "its size is that of the tokens, which differs between training and evaluation";
                return Err(self.fail(codes::NOT_HERE, axis.name.span, message, label));
            }
        }
        Ok(found)
    }

    fn distinct(&mut self, axes: &[AxisId], slot: &TensorDecl) -> Eval<()> {
        for (i, axis) in axes.iter().enumerate() {
            if axes[..i].contains(axis) {
                let name = self.b.axis_name(*axis).to_string();
                let d = Diagnostic::error(
                    codes::DUPLICATE_AXIS,
                    format!("`{}` would have the axis `{name}` twice", slot.name.name),
                );
                let d = d.at(slot.span, "").hint(format!("give one a name of its own: `axis {name}2 like {name}`"));
                return Err(self.error(d));
            }
        }
        Ok(())
    }

    fn storage_dtype(&mut self, slot: &'p TensorDecl) -> Eval<Option<DType>> {
        let Some(name) = &slot.dtype else { return Ok(None) };
        // A dtype, or a local name that holds one (a hyper-parameter of an optimizer).
        let dtype = match self.frames.last().and_then(|frame| frame.get(name.as_str())) {
            Some(Value::DType(dtype)) => dtype,
            _ => self.dtype_of(name)?,
        };
        if !dtype.is_float() {
            let message = format!("`{}` cannot be stored as {}", slot.name.name, name.name);
            return Err(self.fail(codes::TENSOR_DTYPE, name.span, message, "f32, bf16 or f16"));
        }
        Ok(Some(dtype))
    }

    /// What stands after `~`.
    fn init(&mut self, expr: &'p Expr, axes: &[AxisId]) -> Eval<Init> {
        let (name, args) = match &expr.kind {
            ExprKind::Name(name) => (name, None),
            ExprKind::Call { callee, args } => match &callee.kind {
                ExprKind::Name(name) => (name, Some(args)),
                _ => return Err(self.not_an_init(expr)),
            },
            _ => return Err(self.not_an_init(expr)),
        };
        if !INITS.contains(&name.as_str()) {
            return Err(self.not_an_init(expr));
        }
        let mut numbers = Vec::new();
        for arg in args.iter().flat_map(|args| &args.items) {
            let value = self.expr(&arg.value)?;
            numbers.push(self.real(&value, arg.value.span)?);
        }
        let init = match (name.as_str(), numbers.as_slice()) {
            ("zeros", []) => Init::Fill(0.0),
            ("ones", []) => Init::Fill(1.0),
            ("fill", [x]) => Init::Fill(*x),
            ("normal", [std]) => Init::Normal(*std),
            ("uniform", [bound]) => Init::Uniform(*bound),
            ("orthogonal", []) => Init::Orthogonal(1.0),
            ("orthogonal", [gain]) => Init::Orthogonal(*gain),
            ("rows", numbers) if !numbers.is_empty() => Init::Rows(numbers.to_vec()),
            _ => {
                let usage =
                    "zeros, ones, fill(x), normal(std), uniform(bound), orthogonal, orthogonal(gain), rows(x, y, …)";
                let d = Diagnostic::error(codes::NO_INIT, format!("wrong number of arguments for `{}`", name.name));
                return Err(self.error(d.at(expr.span, "").note(format!("initial values: {usage}"))));
            }
        };
        match &init {
            Init::Orthogonal(_) if axes.len() != 2 => {
                let message = format!("`orthogonal` needs two axes, and there are {}", axes.len());
                Err(self.fail(codes::NO_INIT, expr.span, message, ""))
            }
            Init::Rows(numbers) if axes.first().map(|axis| self.b.size(*axis)) != Some(numbers.len()) => {
                let size = axes.first().map_or(0, |axis| self.b.size(*axis));
                let message = format!("`rows` gives {} numbers for {size} positions of the first axis", numbers.len());
                Err(self.fail(codes::NO_INIT, expr.span, message, ""))
            }
            _ => Ok(init),
        }
    }

    fn not_an_init(&mut self, expr: &Expr) -> Reported {
        let d = Diagnostic::error(codes::NO_INIT, "not an initial value").at(expr.span, "");
        let d = d.note(format!("initial values: {}", INITS.join(", ")));
        let name = match &expr.kind {
            ExprKind::Name(name) => Some(name),
            ExprKind::Call { callee, .. } => match &callee.kind {
                ExprKind::Name(name) => Some(name),
                _ => None,
            },
            _ => None,
        };
        let d = match name {
            Some(name) => d.did_you_mean(name.as_str(), name.span, INITS),
            None => d,
        };
        self.error(d)
    }

    /// `state m, v ~ zeros`
    pub fn state(&mut self, decl: &'p StateDecl) -> Eval<()> {
        for slot in &decl.slots {
            let made = self.state_slot(decl, slot);
            let value = made.map_or(Value::Broken, Value::Tensor);
            let var = Var { value, ty: None, span: slot.name.span };
            self.frame().inner().bind(slot.name.as_str(), var);
        }
        Ok(())
    }

    fn state_slot(&mut self, decl: &'p StateDecl, slot: &'p TensorDecl) -> Eval<NodeId> {
        let outermost = self.frames.last().is_some_and(|frame| frame.kind == FrameKind::Stateful);
        let Some(mut context) = self.states.take().filter(|_| outermost) else {
            let message = "a state belongs to the body of an optimizer or average";
            return Err(self.fail(codes::STATE, decl.span, message, ""));
        };
        let made = self.state_of(decl, slot, &mut context);
        self.states = Some(context);
        made
    }

    fn state_of(
        &mut self,
        decl: &'p StateDecl,
        slot: &'p TensorDecl,
        context: &mut super::elaborate::StateContext<'p>,
    ) -> Eval<NodeId> {
        let axes = match &slot.axes {
            None => context.parameter.axes.clone(),
            Some(axes) => {
                let ids = self.declared_axes(axes)?;
                self.distinct(&ids, slot)?;
                ids.iter().map(|axis| (self.b.axis_name(*axis).to_string(), self.b.size(*axis))).collect()
            }
        };
        if let Some(label) = &slot.label {
            return Err(self.fail(
                codes::LABEL,
                label.span,
                "states have no labels",
                "their names are made by the compiler",
            ));
        }
        let dtype = match self.storage_dtype(slot)? {
            Some(dtype) => dtype,
            None if slot.axes.as_ref().is_some_and(Vec::is_empty) => DType::F32,
            None => context.dtype,
        };
        let ids: Vec<AxisId> = axes.iter().filter_map(|(name, _)| self.b.find_axis(name)).collect();
        let init = match &decl.init {
            None => Init::Fill(0.0),
            Some(expr) => match &expr.kind {
                ExprKind::Name(name) if *name == *context.weights && slot.axes.is_none() => {
                    Init::CopyOf(context.parameter.name.clone())
                }
                _ => self.init(expr, &ids)?,
            },
        };
        if context.states.iter().any(|state| slot.name == *state.name) {
            let message = format!("the state `{}` is declared twice", slot.name.name);
            return Err(self.fail(codes::DUPLICATE_NAME, slot.name.span, message, ""));
        }
        let shared = slot.axes.as_ref().is_some_and(Vec::is_empty);
        let buffer = if shared {
            format!("{}{}", context.shared, slot.name.name)
        } else {
            format!("{}{}.{}", context.prefix, slot.name.name, context.parameter.name)
        };
        let old = self.read_kept(&buffer, &axes, dtype, BufferKind::State, slot.span)?;
        let name = slot.name.as_str();
        context.states.push(DeclaredState { name, buffer, shared, axes, dtype, init, old, span: slot.span });
        Ok(old)
    }
}
