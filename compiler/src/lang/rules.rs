//! Rules: which optimizer or quantizer takes which parameters, with which hyper-parameters, and running them.
//!
//! *Takes* `NAME on GROUP where COND { … }` entries and parameters; *gives* the rule of each parameter ([`Rules`]), host scalars, and
//! the nodes of a step, an average or a quantisation; *promises* that the first rule that matches wins, that every parameter is
//! covered, that no rule is without effect, and that states are complete: what a definition declares is what is kept.

use super::codes;
use super::elaborate::{DeclaredState, Eval, Evaluator, Reported, StateContext};
use super::program::{Global, ModuleId};
use super::scope::{Frame, FrameKind, Scope, Var};
use super::value::{Clock, Value};
use crate::graph::ir::{BufferKind, DType, NodeId};
use crate::optim::{Parameter, Phase, Quantised, State, Updated};
use golf_grammar::ast::{BinaryOp, Def, DefKind, Entry, Expr, ExprKind, Ident, Rule, Settings};
use golf_grammar::{Diagnostic, Span};
use golf_runtime::plan::{HostBinary, HostExpr, HostOp, Hyper};
use std::cell::RefCell;
use std::rc::Rc;

/// A definition with the hyper-parameters given to it.
pub type Slot<'p> = (&'p Def, ModuleId, Vec<(&'p str, Value<'p>)>);

/// The rules of a block.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Definition name and key (`muon.matrices`, unique in the block), by rule.
    pub list: Vec<(String, String)>,
    /// The rule of each parameter.
    pub chosen: Vec<Option<usize>>,
}

/// Settings of a rule that are not hyper-parameters of its optimizer: dtypes of the gradient it is given and of its states.
const ATTRIBUTES: [&str; 2] = ["gradient", "state"];

/// What a rule says, evaluated.
struct RuleValues<'p> {
    hypers: Vec<(&'p str, Value<'p>)>,
    gradient: DType,
    state: DType,
}

/// The clock a phase's hyper-parameters see.
fn clock_of(phase: Phase) -> Clock {
    match phase {
        Phase::Train => Clock::Train,
        Phase::Adapt => Clock::Adapt,
    }
}

/// Before the names of a phase's states and host scalars.
fn prefix_of(phase: Phase) -> &'static str {
    match phase {
        Phase::Train => "",
        Phase::Adapt => "adapt.",
    }
}

/// The optimizers of a phase. In training every parameter that is not `unused` needs one.
pub fn optimizers<'p>(
    e: &mut Evaluator<'p, '_>,
    settings: &'p Settings,
    phase: Phase,
    params: &[Parameter],
) -> Eval<Rules> {
    let rules = select(e, settings, params, false)?;
    if phase == Phase::Train {
        covered(e, settings, params, &rules, "optimizer")?;
    }
    Ok(rules)
}

/// The quantizers. Every parameter needs one, unused ones too.
pub fn quantizers<'p>(e: &mut Evaluator<'p, '_>, settings: &'p Settings, params: &[Parameter]) -> Eval<Rules> {
    let rules = select(e, settings, params, true)?;
    covered(e, settings, params, &rules, "quantizer")?;
    for rule in settings.rules().filter(|rule| rule.name == "f16") {
        if let Some(settings) = &rule.settings
            && !settings.entries.is_empty()
        {
            e.fail(codes::UNKNOWN_SETTING, settings.span, "`f16` stores values as they are and has no settings", "");
        }
    }
    Ok(rules)
}

fn covered<'p>(
    e: &mut Evaluator<'p, '_>,
    settings: &Settings,
    params: &[Parameter],
    rules: &Rules,
    what: &str,
) -> Eval<()> {
    let everything = what == "quantizer";
    let open: Vec<&Parameter> = params
        .iter()
        .zip(&rules.chosen)
        .filter(|(p, rule)| rule.is_none() && (everything || !p.unused))
        .map(|(p, _)| p)
        .collect();
    let Some(first) = open.first() else { return Ok(()) };
    let message = match open.len() {
        1 => format!("no {what} takes the parameter `{}`", first.name),
        n => format!("no {what} takes {n} parameters, `{}` among them", first.name),
    };
    let d = Diagnostic::error(codes::UNCOVERED, message).at(settings.span.before(), "");
    let groups: std::collections::BTreeSet<&str> = open.iter().map(|p| p.group.as_str()).collect();
    let groups = groups.into_iter().collect::<Vec<_>>().join(", ");
    Err(e.error(d.note(format!("they are in: {groups}")).hint("add a rule for them, or `… on rest`")))
}

/// Chooses a rule for each parameter.
fn select<'p>(
    e: &mut Evaluator<'p, '_>,
    settings: &'p Settings,
    params: &[Parameter],
    unused_too: bool,
) -> Eval<Rules> {
    let mut rules = Rules { list: Vec::new(), chosen: vec![None; params.len()] };
    let mut failed = false;
    for (index, rule) in settings.rules().enumerate() {
        let groups = match groups(e, &rule.on) {
            Ok(groups) => groups,
            Err(Reported) => {
                failed = true;
                continue;
            }
        };
        let words: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
        let mut key = format!("{}.{}", rule.name.name, words.join("_or_"));
        for n in 2.. {
            if !rules.list.iter().any(|(_, known)| *known == key) {
                break;
            }
            key = format!("{}.{}{n}", rule.name.name, words.join("_or_"));
        }
        rules.list.push((rule.name.name.clone(), key));
        let eligible = |p: &Parameter| unused_too || !p.unused;
        for group in &groups {
            let wide = *group == "all" || *group == "rest";
            if !wide && !params.iter().any(|p| eligible(p) && group.as_str() == p.group) {
                failed = true;
                unknown_group(e, group, params, unused_too);
            }
        }
        let (mut base, mut free, mut taken) = (0, 0, 0);
        for (at, p) in params.iter().enumerate().filter(|(_, p)| eligible(p)) {
            let in_group = groups.iter().any(|group| *group == "all" || *group == "rest" || group.as_str() == p.group);
            if !in_group {
                continue;
            }
            base += 1;
            if rules.chosen[at].is_some() {
                continue;
            }
            free += 1;
            match holds(e, rule, p) {
                Ok(true) => {
                    rules.chosen[at] = Some(index);
                    taken += 1;
                }
                Ok(false) => {}
                Err(Reported) => {
                    failed = true;
                    break;
                }
            }
        }
        if base > 0 && taken == 0 && !failed {
            never_applies(e, rule, free, &words);
        }
    }
    if failed { Err(Reported) } else { Ok(rules) }
}

fn never_applies(e: &mut Evaluator<'_, '_>, rule: &Rule, free: usize, words: &[&str]) {
    let message = format!("the rule `{} on {}` takes no parameter", rule.name.name, words.join(" or "));
    // Sizes may decide about conditions and about what is left for `rest`: a warning, so that a scaled model still compiles.
    let d = if free > 0 || words == ["rest"] {
        Diagnostic::warning(codes::EMPTY_SELECTOR, message)
    } else {
        Diagnostic::error(codes::EMPTY_SELECTOR, message)
    };
    let label = if free > 0 { "its condition holds for none" } else { "earlier rules take all of them" };
    e.error(d.at(rule.span, label).note("the first rule that matches wins"));
}

fn unknown_group(e: &mut Evaluator<'_, '_>, group: &Ident, params: &[Parameter], unused_too: bool) {
    let known: std::collections::BTreeSet<&str> =
        params.iter().filter(|p| unused_too || !p.unused).map(|p| p.group.as_str()).collect();
    let d = Diagnostic::error(codes::UNKNOWN_GROUP, format!("no parameter is in a group `{}`", group.name))
        .at(group.span, "");
    let names = known.iter().copied().collect::<Vec<_>>().join(", ");
    e.error(d.note(format!("groups: {names}; `all` and `rest` select across groups")).did_you_mean(
        group.as_str(),
        group.span,
        known,
    ));
}

/// The groups of a selector: one name, or several joined with `or`.
fn groups<'p>(e: &mut Evaluator<'p, '_>, on: &'p Expr) -> Eval<Vec<&'p Ident>> {
    match &on.kind {
        ExprKind::Name(name) => Ok(vec![name]),
        ExprKind::Binary { op: BinaryOp::Or, lhs, rhs, .. } => {
            let mut left = groups(e, lhs)?;
            left.extend(groups(e, rhs)?);
            Ok(left)
        }
        _ => {
            let d = Diagnostic::error(
                codes::UNKNOWN_GROUP,
                "a selector is a group, `all`, `rest`, or several joined with `or`",
            );
            Err(e.error(d.at(on.span, "").hint("conditions stand after `where`")))
        }
    }
}

/// The condition of a rule for a parameter.
fn holds<'p>(e: &mut Evaluator<'p, '_>, rule: &'p Rule, p: &Parameter) -> Eval<bool> {
    let Some(cond) = &rule.cond else { return Ok(true) };
    e.on_top(0, |e| {
        let sizes: Vec<i64> = p.axes.iter().map(|(_, size)| *size as i64).collect();
        let values = [
            ("numel", Value::Int(p.numel() as i64)),
            ("rank", Value::Int(sizes.len() as i64)),
            ("rows", Value::Int(sizes.first().copied().unwrap_or(1))),
            ("cols", Value::Int(sizes.get(1).copied().unwrap_or(1))),
            ("name", Value::string(&p.name)),
            ("group", Value::string(&p.group)),
        ];
        for (name, value) in values {
            e.frame().inner().bind(name, Var { value, ty: None, span: rule.span });
        }
        e.condition(cond)
    })
}

/// The definition a rule names.
fn definition<'p>(e: &mut Evaluator<'p, '_>, rule: &'p Rule, kind: DefKind) -> Eval<(&'p Def, ModuleId)> {
    let program = e.program;
    match program.global(0, rule.name.as_str()) {
        Some((module, Global::Def(def))) if def.kind == kind => Ok((def, module)),
        _ => {
            let message = format!("there is no {} `{}`", kind.keyword(), rule.name.name);
            Err(e.fail(codes::UNKNOWN_RULE, rule.name.span, message, ""))
        }
    }
}

/// Evaluates what a rule says. `lr` given as a number is multiplied by the schedule; given as a function of the clock it is taken as it is.
fn rule_values<'p>(
    e: &mut Evaluator<'p, '_>,
    rule: &'p Rule,
    def: &'p Def,
    clock: Option<Clock>,
    scale: Option<u32>,
) -> Eval<RuleValues<'p>> {
    let mut out = RuleValues { hypers: Vec::new(), gradient: DType::F32, state: DType::F32 };
    let mut failed = false;
    let attributes: &[&str] = if clock.is_some() { &ATTRIBUTES } else { &[] };
    let entries = rule.settings.iter().flat_map(|settings| &settings.entries);
    let mut seen: Vec<&Ident> = Vec::new();
    for entry in entries {
        let Entry::Setting(setting) = entry else {
            e.fail(codes::UNKNOWN_SETTING, entry.span(), "a rule contains settings only", "");
            failed = true;
            continue;
        };
        let key = &setting.key;
        if let Some(first) = seen.iter().find(|first| first.name == key.name) {
            let d = Diagnostic::error(codes::SETTING_TWICE, format!("`{}` is set twice", key.name));
            e.error(d.at(key.span, "second value").also(first.span, "first value"));
            failed = true;
            continue;
        }
        seen.push(key);
        let hyper = def.sig.hypers.iter().find(|param| param.name.name == key.name);
        if hyper.is_none() && !attributes.contains(&key.as_str()) {
            let names: Vec<&str> =
                def.sig.hypers.iter().map(|p| p.name.as_str()).chain(attributes.iter().copied()).collect();
            let d = Diagnostic::error(
                codes::UNKNOWN_SETTING,
                format!("`{}` has no hyper-parameter `{}`", def.name.name, key.name),
            );
            let d = d.at(key.span, "").note(format!("it has: {}", names.join(", ")));
            e.error(d.did_you_mean(key.as_str(), key.span, names));
            failed = true;
            continue;
        }
        if setting.value.plain().is_none() {
            e.fail(codes::BAD_SETTING, setting.value.span, format!("`{}` takes a plain value", key.name), "");
            failed = true;
            continue;
        }
        let at = setting.value.expr.span;
        let value = match clock {
            Some(clock) => e.with_clock(clock, at, |e| {
                let value = e.expr(&setting.value.expr)?;
                e.on_clock(value, clock, at)
            }),
            None => e.on_top(0, |e| e.expr(&setting.value.expr)),
        };
        let Ok(value) = value else {
            failed = true;
            continue;
        };
        match hyper {
            Some(param) => out.hypers.push((param.name.as_str(), value)),
            None => match value {
                Value::DType(dtype @ (DType::F32 | DType::Bf16)) if key == "gradient" => out.gradient = dtype,
                Value::DType(dtype @ (DType::F32 | DType::Bf16)) => out.state = dtype,
                other => {
                    let found = other.describe(e.b);
                    let d = Diagnostic::error(codes::BAD_SETTING, format!("`{}` cannot be {found}", key.name));
                    e.error(d.at(at, "").expected_found("`bf16` or `f32`", found));
                    failed = true;
                }
            },
        }
    }
    if let Some(scale) = scale {
        for (name, value) in &mut out.hypers {
            if *name == "lr"
                && let Some(lr) = value.number()
            {
                let lr = e.host.constant(lr);
                *value = Value::Host(e.host.push(HostOp::Binary(HostBinary::Mul, lr, scale)));
            }
        }
    }
    if failed { Err(Reported) } else { Ok(out) }
}

/// What multiplies learning rates in a phase.
fn lr_scale<'p>(e: &mut Evaluator<'p, '_>, settings: &'p Settings, phase: Phase) -> Eval<Option<u32>> {
    let clock = match phase {
        Phase::Train => Clock::Schedule,
        Phase::Adapt => Clock::Adapt,
    };
    let schedule = e.with_clock(clock, settings.span, |e| e.schedule(settings, clock))?;
    Ok(match (phase, schedule) {
        (_, None) => None,
        // The runtime evaluates the schedule once per step and hands the result on.
        (Phase::Train, Some(_)) => Some(e.host.push(HostOp::Clock("scale".to_string()))),
        (Phase::Adapt, Some(at)) => Some(at),
    })
}

fn hyper_buffer(phase: Phase, key: &str, name: &str) -> String {
    format!("hyper.{}{key}.{name}", prefix_of(phase))
}

/// The host scalars of a phase's rules.
pub fn hypers<'p>(e: &mut Evaluator<'p, '_>, settings: &'p Settings, phase: Phase) -> Eval<Vec<Hyper>> {
    let scale = lr_scale(e, settings, phase)?;
    let mut out = Vec::new();
    let mut failed = false;
    let rules = select_keys(settings);
    for (rule, key) in rules {
        let Ok((def, _)) = definition(e, rule, DefKind::Optimizer) else {
            failed = true;
            continue;
        };
        let Ok(values) = rule_values(e, rule, def, Some(clock_of(phase)), scale) else {
            failed = true;
            continue;
        };
        for (name, value) in values.hypers {
            if let Value::Host(at) = value
                && e.host.value(at).is_none()
            {
                out.push(Hyper { name: hyper_buffer(phase, &key, name), value: e.host.extract(at) });
            }
        }
    }
    if failed { Err(Reported) } else { Ok(out) }
}

/// Rules with their keys, as [`select`] makes them.
fn select_keys(settings: &Settings) -> Vec<(&Rule, String)> {
    let mut out: Vec<(&Rule, String)> = Vec::new();
    for rule in settings.rules() {
        let mut words = Vec::new();
        selector_words(&rule.on, &mut words);
        let stem = format!("{}.{}", rule.name.name, words.join("_or_"));
        let mut key = stem.clone();
        for n in 2.. {
            if !out.iter().any(|(_, known)| *known == key) {
                break;
            }
            key = format!("{stem}{n}");
        }
        out.push((rule, key));
    }
    out
}

fn selector_words<'a>(on: &'a Expr, words: &mut Vec<&'a str>) {
    match &on.kind {
        ExprKind::Name(name) => words.push(name.as_str()),
        ExprKind::Binary { lhs, rhs, .. } => {
            selector_words(lhs, words);
            selector_words(rhs, words);
        }
        _ => {}
    }
}

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
        let Some((rule, key)) = select_keys(settings).into_iter().nth(rule) else { return Err(Reported) };
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

    /// Codes, scale and dequantised weights of a parameter; `None`: stored as fp16.
    pub fn quantizer(
        &mut self,
        settings: &'p Settings,
        rule: usize,
        parameter: &Parameter,
        w: NodeId,
    ) -> Eval<Option<Quantised>> {
        self.on_behalf(parameter, |e| e.quantised(settings, rule, parameter, w))
    }

    fn quantised(
        &mut self,
        settings: &'p Settings,
        rule: usize,
        parameter: &Parameter,
        w: NodeId,
    ) -> Eval<Option<Quantised>> {
        let Some(rule) = settings.rules().nth(rule) else { return Err(Reported) };
        if rule.name == "f16" && !matches!(self.program.global(0, "f16"), Some((_, Global::Def(_)))) {
            return Ok(None);
        }
        let (def, module) = definition(self, rule, DefKind::Quantizer)?;
        let values = rule_values(self, rule, def, None, None)?;
        self.visit.push(parameter.name.clone());
        let result = self.run_slot(def, module, &[(Value::Tensor(w), rule.span)], &values.hypers, rule.span);
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
        let out = Quantised { codes: codes?, scale: scale?, dequant: dequant? };
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
        slot: (&'p Def, ModuleId, &[(&'p str, Value<'p>)]),
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
    slot: (&'p Def, ModuleId, &[(&'p str, Value<'p>)]),
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
        DefKind::Quantizer => "the weights, (w)",
        DefKind::Schedule => "the clock, (clock)",
        DefKind::Fn | DefKind::Layer | DefKind::Model | DefKind::Adapter | DefKind::Init | DefKind::Filter => "nothing",
    }
}
