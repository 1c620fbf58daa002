//! Rules: which optimizer or quantizer takes which parameters, with which hyper-parameters.
//!
//! *Takes* `NAME on GROUP where COND { … }` entries and parameters; *gives* the rule of each parameter ([`Rules`]) and host scalars;
//! *promises* that the first rule that matches wins, that every parameter is covered, and that no rule is without effect.

use super::codes;
use super::elaborate::{Eval, Evaluator, Reported};
use super::program::{Global, ModuleId};
use super::scope::Var;
use super::value::{Clock, Value};
use crate::graph::ir::DType;
use crate::optim::{Parameter, Phase};
use golf_grammar::Diagnostic;
use golf_grammar::ast::{BinaryOp, Def, DefKind, Entry, Expr, ExprKind, Ident, Rule, Settings};
use golf_runtime::plan::{HostBinary, HostOp, Hyper};

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
pub(super) struct RuleValues<'p> {
    pub(super) hypers: Vec<(&'p str, Value<'p>)>,
    pub(super) gradient: DType,
    pub(super) state: DType,
}

/// The clock a phase's hyper-parameters see.
pub(super) fn clock_of(phase: Phase) -> Clock {
    match phase {
        Phase::Train => Clock::Train,
        Phase::Adapt => Clock::Adapt,
    }
}

/// Before the names of a phase's states and host scalars.
pub(super) fn prefix_of(phase: Phase) -> &'static str {
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
    for (index, (rule, key)) in keyed(settings).into_iter().enumerate() {
        let groups = match groups(e, &rule.on) {
            Ok(groups) => groups,
            Err(Reported) => {
                failed = true;
                continue;
            }
        };
        let words: Vec<&str> = groups.iter().map(|group| group.as_str()).collect();
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
pub(super) fn definition<'p>(e: &mut Evaluator<'p, '_>, rule: &'p Rule, kind: DefKind) -> Eval<(&'p Def, ModuleId)> {
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
pub(super) fn rule_values<'p>(
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
pub(super) fn lr_scale<'p>(e: &mut Evaluator<'p, '_>, settings: &'p Settings, phase: Phase) -> Eval<Option<u32>> {
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

pub(super) fn hyper_buffer(phase: Phase, key: &str, name: &str) -> String {
    format!("hyper.{}{key}.{name}", prefix_of(phase))
}

/// The host scalars of a phase's rules.
pub fn hypers<'p>(e: &mut Evaluator<'p, '_>, settings: &'p Settings, phase: Phase) -> Eval<Vec<Hyper>> {
    let scale = lr_scale(e, settings, phase)?;
    let mut out = Vec::new();
    let mut failed = false;
    let rules = keyed(settings);
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

/// Rules with their keys, `muon.matrices`, numbered where two would be equal.
pub(super) fn keyed(settings: &Settings) -> Vec<(&Rule, String)> {
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
