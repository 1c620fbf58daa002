//! Slots at work: optimizer steps, averages and quantisers as nodes.
//!
//! *Takes* a rule or average and a parameter; *gives* new weights, states, codes; *promises* that states are complete (what a
//! definition declares is what is kept), that a shared state depends on no parameter, and that results have the axes they must have.

use super::codes;
use super::elaborate::{DeclaredState, Eval, Evaluator, Reported, StateContext};
use super::program::ModuleId;
use super::rules::{Slot, clock_of, definition, hyper_buffer, keyed, lr_scale, prefix_of, rule_values};
use super::scope::{Frame, FrameKind, Scope};
use super::value::{Clock, SlotRef, Value};
use crate::graph::ir::{BufferKind, DType, NodeId};
use crate::optim::taps::TapBuffer;
use crate::optim::{Parameter, Phase, Quantised, State, Updated};
use golf_grammar::ast::{Def, DefKind, Settings};
use golf_grammar::{Diagnostic, Span};
use golf_runtime::plan::HostExpr;
use std::cell::RefCell;
use std::rc::Rc;

impl<'p> Evaluator<'p, '_> {
    /// A frame with a slot definition's inputs and hyper-parameters.
    fn slot_frame(
        &mut self,
        slot: (&'p Def, ModuleId),
        kind: FrameKind,
        inputs: &[(Value<'p>, Span)],
        hypers: &[(&'p str, Value<'p>)],
        at: Span,
    ) -> Eval<Frame<'p>> {
        let (def, module) = slot;
        if inputs.len() < def.sig.params.len()
            && def.sig.params[inputs.len()..].iter().any(|p| !p.optional && p.default.is_none())
        {
            let names = def.sig.params.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
            let message = format!("`{}` asks for more than a {} is given", def.name.name, def.kind.keyword());
            let d =
                Diagnostic::error(codes::MISSING_ARGUMENT, message).at(def.sig.span, format!("it asks for: {names}"));
            return Err(self.error(d.note(format!("a {} is given {}", def.kind.keyword(), slot_inputs(def.kind)))));
        }
        let mut given: Vec<Option<(Value<'p>, Span)>> =
            inputs.iter().take(def.sig.params.len()).cloned().map(Some).collect();
        given.resize(def.sig.params.len(), None);
        for param in &def.sig.hypers {
            let value = hypers.iter().find(|(name, _)| param.name == **name).map(|(_, value)| (value.clone(), at));
            given.push(value);
        }
        self.bind_arguments(def, Frame::new(module, kind), &[], given, at)
    }

    /// Runs a slot definition that is a pure function.
    pub fn run_slot(
        &mut self,
        def: &'p Def,
        module: ModuleId,
        inputs: &[(Value<'p>, Span)],
        hypers: &[(&'p str, Value<'p>)],
        at: Span,
    ) -> Eval<Value<'p>> {
        let frame = self.slot_frame((def, module), FrameKind::Slot, inputs, hypers, at)?;
        self.run(def, frame, at)
    }

    /// Runs the body of a definition with states and keeps its names.
    fn run_stateful(&mut self, def: &'p Def, frame: Frame<'p>, context: StateContext<'p>, at: Span) -> Eval<Scope<'p>> {
        self.states = Some(context);
        self.visit.push(self.states.as_ref().map_or(String::new(), |c| c.parameter.name.clone()));
        self.frames.push(frame);
        self.sites.push(at);
        let before = self.failures;
        let value = self.body(&def.body);
        self.sites.pop();
        let mut scope = Scope::default();
        if let Some(frame) = self.frames.pop() {
            frame.scopes.into_iter().for_each(|inner| scope.absorb(inner));
        }
        self.visit.pop();
        match value {
            Ok(_) if self.failures == before => Ok(scope),
            _ => {
                self.states = None;
                Err(Reported)
            }
        }
    }

    /// The value of a name of a finished body, as a node.
    fn result_node(&mut self, scope: &Scope<'p>, name: &str, at: Span) -> Eval<NodeId> {
        match scope.get(name).map(|var| var.value.clone()) {
            Some(Value::Tensor(node)) => Ok(node),
            Some(value @ (Value::Int(_) | Value::Float(_))) => Ok(self.b.constant(value.number().unwrap_or(f64::NAN))),
            Some(Value::Broken) | None => Err(Reported),
            Some(other) => {
                let found = other.describe(self.b);
                Err(self.fail(
                    codes::STATE,
                    at,
                    format!("`{name}` must be a tensor in the end"),
                    format!("it is {found}"),
                ))
            }
        }
    }

    /// The states of a finished body with their new values; `inputs` must not reach those without axes.
    fn new_states(
        &mut self,
        scope: &Scope<'p>,
        declared: Vec<DeclaredState<'p>>,
        inputs: &[NodeId],
    ) -> Eval<Vec<State>> {
        let mut out = Vec::with_capacity(declared.len());
        for state in declared {
            let value = self.result_node(scope, state.name, state.span)?;
            if state.shared && inputs.iter().any(|input| self.depends(value, *input)) {
                let message =
                    format!("the state `{}` has no axes, so it is shared by all parameters of the rule", state.name);
                let d =
                    Diagnostic::error(codes::STATE, message).at(state.span, "but its new value depends on one of them");
                return Err(self.error(d.hint("give it an axis: `state n[one: 1] ~ zeros`")));
            }
            out.push(State { name: state.buffer, axes: state.axes, dtype: state.dtype, init: state.init, value });
        }
        Ok(out)
    }

    fn depends(&self, value: NodeId, on: NodeId) -> bool {
        let mut seen = vec![false; value.0 as usize + 1];
        let mut stack = vec![value];
        while let Some(node) = stack.pop() {
            if node == on {
                return true;
            }
            if node.0 > on.0 && !std::mem::replace(&mut seen[node.0 as usize], true) {
                stack.extend(&self.b.node(node).args);
            }
        }
        false
    }

    /// Runs something on behalf of a parameter.
    fn on_behalf<T>(&mut self, parameter: &Parameter, f: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.subject.replace(parameter.name.clone());
        let result = f(self);
        self.subject = before;
        result
    }

    /// One step of the rule of a parameter.
    pub fn optimizer_step(
        &mut self,
        settings: &'p Settings,
        phase: Phase,
        rule: usize,
        parameter: &Parameter,
        (w, g): (NodeId, NodeId),
    ) -> Eval<Updated> {
        self.on_behalf(parameter, |e| e.step_of(settings, phase, rule, parameter, (w, g)))
    }

    fn step_of(
        &mut self,
        settings: &'p Settings,
        phase: Phase,
        rule: usize,
        parameter: &Parameter,
        (w, g): (NodeId, NodeId),
    ) -> Eval<Updated> {
        let Some((rule, key)) = keyed(settings).into_iter().nth(rule) else { return Err(Reported) };
        let (def, module) = definition(self, rule, DefKind::Optimizer)?;
        let scale = lr_scale(self, settings, phase)?;
        let values = rule_values(self, rule, def, Some(clock_of(phase)), scale)?;
        let mut hypers = Vec::with_capacity(values.hypers.len());
        for (name, value) in values.hypers {
            hypers.push((name, self.scalar_input(value, &hyper_buffer(phase, &key, name), rule.span)?));
        }
        let bf16 = self.b.graph().compute == DType::Bf16;
        let g = match values.gradient {
            DType::Bf16 if bf16 => self.make(rule.span, &[(g, rule.span)], |b| b.cast(g, DType::Bf16))?,
            _ => g,
        };
        let inputs = [(Value::Tensor(w), rule.span), (Value::Tensor(g), rule.span)];
        let frame = self.slot_frame((def, module), FrameKind::Stateful, &inputs, &hypers, rule.span)?;
        let prefix = prefix_of(phase);
        let context = StateContext {
            prefix: format!("{prefix}{}.", def.name.name),
            shared: format!("{prefix}{key}."),
            weights: def.sig.params.first().map_or("w", |p| p.name.as_str()),
            parameter: parameter.clone(),
            dtype: values.state,
            states: Vec::new(),
        };
        let weights = context.weights;
        let scope = self.run_stateful(def, frame, context, rule.span)?;
        let declared = self.states.take().map(|context| context.states).unwrap_or_default();
        let new = self.result_node(&scope, weights, def.name.span)?;
        if new == w {
            let d = Diagnostic::error(
                codes::STATE,
                format!("the optimizer `{}` does not change `{weights}`", def.name.name),
            );
            return Err(
                self.error(d.at(def.name.span, "").hint(format!("give it a new value: `{weights} = {weights} - …`")))
            );
        }
        self.same_axes(new, w, weights, def)?;
        let states = self.new_states(&scope, declared, &[w, g])?;
        Ok(Updated { weights: new, states })
    }

    fn same_axes(&mut self, new: NodeId, old: NodeId, name: &str, def: &Def) -> Eval<()> {
        let fits = self.b.axes(new).len() == self.b.axes(old).len()
            && self.b.axes(old).iter().all(|a| self.b.axes(new).contains(a));
        if fits {
            return Ok(());
        }
        let (was, is) = (super::value::tensor(self.b, old), super::value::tensor(self.b, new));
        let d = Diagnostic::error(codes::AXES_DIFFER, format!("`{name}` ends as {is}, and it was {was}"));
        Err(self.error(d.at(def.name.span, "").expected_found(was, is)))
    }

    /// A scalar of the clock as an input of the graph.
    fn scalar_input(&mut self, value: Value<'p>, name: &str, at: Span) -> Eval<Value<'p>> {
        match value {
            Value::Host(id) => match self.host.value(id) {
                Some(x) => Ok(Value::Float(x)),
                None => self
                    .make(at, &[], |b| {
                        let buffer = b.buffer(name, DType::F32, &[], BufferKind::Input)?;
                        b.read(buffer)
                    })
                    .map(Value::Tensor),
            },
            other => Ok(other),
        }
    }

    /// Codes, scale and dequantised weights of a parameter; `None`: stored as fp16. `prefix` stands before the names of inputs that the host computes.
    pub fn quantizer(
        &mut self,
        settings: &'p Settings,
        rule: usize,
        parameter: &Parameter,
        (w, tap): (NodeId, Option<&TapBuffer>),
        prefix: &str,
    ) -> Eval<Option<Quantised>> {
        self.on_behalf(parameter, |e| e.quantised(settings, rule, parameter, (w, tap), prefix))
    }

    fn quantised(
        &mut self,
        settings: &'p Settings,
        rule: usize,
        parameter: &Parameter,
        (w, tap): (NodeId, Option<&TapBuffer>),
        prefix: &str,
    ) -> Eval<Option<Quantised>> {
        let Some((rule, def, module)) = self.quantizer_of(settings, rule)? else { return Ok(None) };
        let values = rule_values(self, rule, def, None, None)?;
        let mut inputs = vec![(Value::Tensor(w), rule.span)];
        let mut own = None;
        if let Some(tap) = tap {
            let node = self.read_kept(&tap.name, &tap.axes(), DType::F32, BufferKind::Grad, rule.span)?;
            inputs.push((Value::Tensor(node), rule.span));
            own = Some((node, tap.name.clone()));
        }
        self.visit.push(parameter.name.clone());
        let (result, inverse) =
            self.quantizing(own, prefix, |e| e.run_slot(def, module, &inputs, &values.hypers, rule.span));
        self.visit.pop();
        let result = result?;
        let mut part = |name: &str| match &result {
            Value::Tuple(items) => match items.iter().find(|(n, _)| *n == Some(name)) {
                Some((_, Value::Tensor(node))) => Ok(*node),
                _ => Err(self.not_quantised(def, name)),
            },
            _ => Err(self.not_quantised(def, name)),
        };
        let (codes, scale, dequant) = (part("codes"), part("scale"), part("dequant"));
        let out = Quantised { codes: codes?, scale: scale?, dequant: dequant?, inverse };
        if self.b.dtype(out.codes) != DType::I8 {
            let found = super::value::tensor(self.b, out.codes);
            return Err(self.fail(
                codes::TENSOR_DTYPE,
                def.name.span,
                "codes are stored as i8: `cast(q, i8)`",
                format!("here they are {found}"),
            ));
        }
        self.same_axes(out.codes, w, "codes", def)?;
        self.same_axes(out.dequant, w, "dequant", def)?;
        Ok(Some(out))
    }

    fn not_quantised(&mut self, def: &Def, part: &str) -> Reported {
        let message = format!("the quantizer `{}` does not give `{part}` as a tensor", def.name.name);
        let d = Diagnostic::error(codes::ARGUMENT_TYPE, message).at(def.body.span.before(), "");
        self.error(d.hint("end with `(codes: cast(q, i8), scale: s, dequant: q * s)`"))
    }

    // ---- averages ----

    /// Runs the body of an average; what it keeps is in the scope.
    fn average_body(
        &mut self,
        slot: SlotRef<'_, 'p>,
        name: &str,
        parameter: &Parameter,
        w: NodeId,
        at: Span,
    ) -> Eval<(Rc<RefCell<Scope<'p>>>, StateContext<'p>)> {
        let (def, module, hypers) = slot;
        let inputs = [(Value::Tensor(w), at), (Value::Clock(Clock::Train), at)];
        let frame = self.slot_frame((def, module), FrameKind::Stateful, &inputs, hypers, at)?;
        let context = StateContext {
            prefix: format!("average.{name}."),
            shared: format!("average.{name}."),
            weights: def.sig.params.first().map_or("w", |p| p.name.as_str()),
            parameter: parameter.clone(),
            dtype: DType::F32,
            states: Vec::new(),
        };
        let scope = self.run_stateful(def, frame, context, at)?;
        match self.states.take() {
            Some(context) => Ok((Rc::new(RefCell::new(scope)), context)),
            None => Err(Reported),
        }
    }

    /// Runs a method of an average on its names.
    fn average_method(
        &mut self,
        (def, module): (&'p Def, ModuleId),
        method: &str,
        scope: &Rc<RefCell<Scope<'p>>>,
        context: StateContext<'p>,
    ) -> Eval<(Value<'p>, StateContext<'p>)> {
        let Some(found) = def.method(method) else {
            let d = Diagnostic::error(
                codes::UNKNOWN_METHOD,
                format!("the average `{}` has no `fn {method}()`", def.name.name),
            );
            return Err(
                self.error(d.at(def.name.span, "").note("an average has the methods `when`, `update` and `finish`"))
            );
        };
        let mut frame = Frame::new(module, FrameKind::Method);
        frame.outer = Some(scope.clone());
        let frame = self.bind_arguments(
            found,
            frame,
            &[],
            vec![None; found.sig.params.len() + found.sig.hypers.len()],
            found.name.span,
        )?;
        self.states = Some(context);
        let value = self.run(found, frame, found.name.span);
        let context = self.states.take();
        match (value, context) {
            (Ok(value), Some(context)) => Ok((value, context)),
            _ => Err(Reported),
        }
    }

    /// New states of an average after a step.
    pub fn average_update(
        &mut self,
        slot: &Slot<'p>,
        name: &str,
        parameter: &Parameter,
        w: NodeId,
    ) -> Eval<Vec<State>> {
        let (def, module, hypers) = slot;
        let at = def.name.span;
        let (scope, context) = self.average_body((def, *module, hypers), name, parameter, w, at)?;
        let (_, context) = self.average_method((def, *module), "update", &scope, context)?;
        let scope = scope.borrow().clone();
        self.new_states(&scope, context.states, &[w])
    }

    /// The averaged weights.
    pub fn average_finish(&mut self, slot: &Slot<'p>, name: &str, parameter: &Parameter, w: NodeId) -> Eval<NodeId> {
        let (def, module, hypers) = slot;
        let at = def.name.span;
        let (scope, context) = self.average_body((def, *module, hypers), name, parameter, w, at)?;
        let weights = context.weights;
        self.average_method((def, *module), "finish", &scope, context)?;
        let scope = scope.borrow().clone();
        let new = self.result_node(&scope, weights, at)?;
        self.same_axes(new, w, weights, def)?;
        Ok(new)
    }
}

/// When an average takes the weights in.
pub fn average_when<'p>(
    e: &mut Evaluator<'p, '_>,
    slot: SlotRef<'_, 'p>,
    name: &str,
    parameter: &Parameter,
    at: Span,
) -> Eval<HostExpr> {
    let (def, module, _) = slot;
    let w = e.read_kept(&parameter.name, &parameter.axes, parameter.dtype, BufferKind::Param, at)?;
    let (scope, context) = e.average_body(slot, name, parameter, w, at)?;
    let (value, _) = e.average_method((def, module), "when", &scope, context)?;
    let span = def.method("when").map_or(at, |m| m.name.span);
    let id = e.host_scalar(&value, span)?;
    Ok(e.host.extract(id))
}

/// What the compiler hands to a slot.
fn slot_inputs(kind: DefKind) -> &'static str {
    match kind {
        DefKind::Optimizer => "the weights and their gradient, (w, g)",
        DefKind::Average => "the weights and the clock, (w, clock)",
        DefKind::Quantizer => {
            "the weights, (w), or with them the sums of squares of what they are multiplied with, (w, inputs)"
        }
        DefKind::Schedule => "the clock, (clock)",
        DefKind::Fn | DefKind::Layer | DefKind::Model | DefKind::Adapter | DefKind::Init | DefKind::Filter => "nothing",
    }
}
