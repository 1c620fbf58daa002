//! Calibration: what quantizers are told about the values their parameters are multiplied with.
//!
//! *Takes* `calibrate = stream(…) { … }` and the quantizers of a program; *gives* [`Calibrate`], the tap of every parameter whose quantizer has a second
//! input, and the host step that a quantizer asks for; *promises* that neither `calibrate` nor a second input stands without the other, and that every tap
//! is one thing: contractions of the parameter as it is, over its last axis.

use super::builtin::Given;
use super::codes;
use super::elaborate::{Declared, Eval, Evaluator, Reported};
use super::program::{Global, ModuleId};
use super::rules::{Rules, definition};
use super::settings::{CALIBRATE, patterns_meet};
use super::value::Value;
use crate::graph::ir::{BufferKind, DType, NodeId};
use crate::optim::taps::{self, TapBuffer};
use golf_grammar::ast::{Def, DefKind, ExprKind, Rule, SectionKind, Setting, Settings};
use golf_grammar::{Diagnostic, Span};
use golf_runtime::plan::InverseFactor;
use std::rc::Rc;

/// Sequences that are read where `tokens` is not given.
const SEQUENCES: u64 = 128;

/// Share of the training time that is kept where `reserve` is not given.
const RESERVE: f64 = 0.02;

/// `calibrate = stream(…) { tokens = …, reserve = … }`
#[derive(Clone, Debug, PartialEq)]
pub struct Calibrate {
    /// Shard pattern.
    pub data: String,
    /// Rows of the model's time axis that are read.
    pub sequences: u64,
    /// Seconds of `train.stop` that training leaves for it.
    pub reserve: f64,
}

/// A quantizer at work.
#[derive(Clone, Debug)]
pub struct Quantizing {
    /// Its second input and the buffer that is.
    tap: Option<(NodeId, String)>,
    /// Before the names of inputs that the host computes.
    prefix: String,
    /// The host step it has asked for.
    pub inverse: Option<InverseFactor>,
}

/// A rule and the quantizer that it names.
pub(super) type Quantizer<'p> = (&'p Rule, &'p Def, ModuleId);

/// Whether a quantizer is told about the values its parameter is multiplied with.
fn takes_inputs(def: &Def) -> bool {
    def.sig.params.len() > 1
}

impl<'p> Evaluator<'p, '_> {
    /// `quantize.calibrate`: rows of `seq` tokens, in the time `stop` (`None`: not known because `train` is wrong). Never validation data.
    pub fn calibrate(&mut self, settings: &'p Settings, seq: u64, stop: Option<f64>) -> Eval<Option<Calibrate>> {
        let Some(setting) = settings.get("calibrate") else { return Ok(None) };
        if setting.value.plain().is_some_and(|value| matches!(value.kind, ExprKind::None)) {
            return Ok(None);
        }
        let (data, at) = self.stream_of(setting)?;
        let program = self.program;
        let scored = program.section(SectionKind::Evaluate).and_then(|s| s.settings.get("data"));
        if let Some(scored) = scored
            && let Ok((val, place)) = self.stream_of(scored)
            && patterns_meet(&data, &val)
        {
            let message = format!("calibration would read validation data: `{data}` and `{val}` name the same files");
            let d = Diagnostic::error(codes::VALIDATION_DATA, message).at(at, "calibrated on").also(place, "scored");
            return Err(
                self.error(d.note("rule 3: validation data may only be scored, and adapted on after it was scored"))
            );
        }
        let mut sequences = SEQUENCES;
        let mut reserve = stop.map_or(0.0, |stop| RESERVE * stop);
        if let Some(inner) = &setting.value.settings {
            self.check_slots(inner, "calibrate", &CALIBRATE);
            if let Some(rule) = inner.rules().next() {
                let hint = "quantizers stand in `quantize` itself";
                self.fail(codes::UNKNOWN_SETTING, rule.span, "`calibrate` has no rules of its own", hint);
            }
            let tokens = match inner.get("tokens") {
                None => Ok(None),
                Some(tokens) => self.calibration_tokens(tokens, seq).map(Some),
            };
            let kept = match inner.get("reserve") {
                None => Ok(None),
                Some(kept) => self.reserve(kept, stop).map(Some),
            };
            sequences = tokens?.unwrap_or(sequences);
            reserve = kept?.unwrap_or(reserve);
        }
        Ok(Some(Calibrate { data, sequences, reserve }))
    }

    fn calibration_tokens(&mut self, setting: &'p Setting, seq: u64) -> Eval<u64> {
        let tokens = self.whole_setting(setting, 1, 1 << 50)?;
        Ok(self.whole_rows("a calibration", tokens, seq as i64, setting.span)? as u64)
    }

    fn reserve(&mut self, setting: &'p Setting, stop: Option<f64>) -> Eval<f64> {
        let value = self.plain(setting)?;
        match (value.number(), stop) {
            (Some(x), Some(stop)) if x >= stop => {
                let message = format!("a reserve of {x} s leaves nothing of the {stop} s of training");
                let d = Diagnostic::error(codes::SIZES, message).at(setting.span, "kept for calibration");
                let program = self.program;
                let stop = program.section(SectionKind::Train).and_then(|s| s.settings.get("stop"));
                Err(self.error(match stop {
                    Some(stop) => d.also(stop.span, "the whole time"),
                    None => d,
                }))
            }
            (Some(x), _) if x >= 0.0 => Ok(x),
            _ => {
                let found = value.describe(self.b);
                Err(self.bad(setting, "a duration such as `12s`, of `train.stop`", found))
            }
        }
    }

    /// The quantizer of a rule; `None`: `f16`, which stores values as they are.
    pub(super) fn quantizer_of(&mut self, settings: &'p Settings, rule: usize) -> Eval<Option<Quantizer<'p>>> {
        let Some(rule) = settings.rules().nth(rule) else { return Err(Reported) };
        if rule.name == "f16" && !matches!(self.program.global(0, "f16"), Some((_, Global::Def(_)))) {
            return Ok(None);
        }
        definition(self, rule, DefKind::Quantizer).map(|(def, module)| Some((rule, def, module)))
    }

    /// The tap of each parameter, in a graph with the forward pass.
    pub fn taps(
        &mut self,
        settings: &'p Settings,
        (rules, calibrate): (&Rules, Option<&Calibrate>),
        declared: &[Declared],
        logits: NodeId,
    ) -> Eval<Vec<Option<TapBuffer>>> {
        let mut out = vec![None; declared.len()];
        let mut known = Vec::new();
        let mut failed = false;
        let mut any = false;
        for index in 0..rules.list.len() {
            let Ok(quantizer) = self.quantizer_of(settings, index) else {
                failed = true;
                continue;
            };
            let taken: Vec<usize> = (0..declared.len()).filter(|i| rules.chosen[*i] == Some(index)).collect();
            let Some(quantizer) = quantizer.filter(|(_, def, _)| takes_inputs(def) && !taken.is_empty()) else {
                continue;
            };
            any = true;
            if calibrate.is_none() {
                self.not_calibrated(quantizer);
                failed = true;
                continue;
            }
            let mut wrong = Vec::new();
            for i in taken {
                match self.tap(&declared[i], logits) {
                    Ok(tap) => {
                        out[i] = Some(taps::buffer(self.b.graph(), tap, &declared[i].parameter.name, &mut known));
                    }
                    Err(why) => wrong.push((&declared[i], why)),
                }
            }
            if !wrong.is_empty() {
                self.untapped(quantizer, &wrong);
                failed = true;
            }
        }
        if !any
            && !failed
            && let Some(setting) = settings.get("calibrate").filter(|_| calibrate.is_some())
        {
            let message = "`calibrate` has no effect: no quantizer in use takes inputs";
            let d = Diagnostic::error(codes::CALIBRATION, message).at(setting.span, "nothing is calibrated");
            let d = d.note(
                "a calibrated quantizer has a second input: `quantizer NAME<R, C, K>(w: [R C], inputs: [C K]; …)`",
            );
            return Err(self.error(d.hint("remove it, or name such a quantizer in a rule")));
        }
        if failed { Err(Reported) } else { Ok(out) }
    }

    fn not_calibrated(&mut self, (rule, def, _): Quantizer<'p>) {
        let message =
            format!("the quantizer `{}` takes inputs, and `quantize` does not say `calibrate`", def.name.name);
        let d = Diagnostic::error(codes::CALIBRATION, message).at(rule.name.span, "calibrated");
        let d = d.also(def.sig.params[1].span, "what the parameter is multiplied with, over some training data");
        let program = self.program;
        let train = program.section(SectionKind::Train).and_then(|s| s.settings.get("data"));
        let data = train.and_then(|data| self.stream_of(data).ok());
        let data = data.map_or_else(|| "fineweb_train_*.bin".to_string(), |(data, _)| data);
        self.error(d.hint(format!("write `calibrate = stream(\"{data}\")` in `quantize`")));
    }

    /// The tap of a parameter, or why it has none that a quantizer could use.
    fn tap(&self, declared: &Declared, logits: NodeId) -> Result<taps::Tap, String> {
        let p = &declared.parameter;
        let tap = taps::tap(self.b.graph(), logits, &p.name).map_err(|why| why.why(self.b.graph()))?;
        let (axis, last) = (self.b.axis_name(tap.axis), p.axes.last().map_or("", |(name, _)| name));
        if axis != last {
            return Err(format!(
                "it is contracted over `{axis}`, and a quantizer's inputs are along the last axis, here `{last}`"
            ));
        }
        Ok(tap)
    }

    fn untapped(&mut self, (rule, def, _): Quantizer<'p>, wrong: &[(&Declared, String)]) {
        let Some((first, why)) = wrong.first() else { return };
        let (name, p) = (&def.name.name, &first.parameter);
        let message = match wrong.len() {
            1 => format!("the quantizer `{name}` cannot take `{}`: {why}", p.name),
            n => format!("the quantizer `{name}` cannot take {n} parameters, `{}` among them: {why}", p.name),
        };
        let label = "takes what a parameter is multiplied with";
        let mut d = Diagnostic::error(codes::UNTAPPED, message).at(rule.name.span, label);
        let mut places: Vec<Span> = Vec::new();
        for (declared, why) in wrong {
            if !places.contains(&declared.span) {
                places.push(declared.span);
                let label = if wrong.len() == 1 { "declared here" } else { why };
                d = d.also(declared.span, label);
            }
        }
        let (it, group) = (if wrong.len() == 1 { "it" } else { "them" }, &p.group);
        self.error(d.hint(format!(
            "use another quantizer for {it}, in a rule before this one: `NAME on {group} where name == \"{}\"`",
            p.name
        )));
    }

    /// Runs something as the quantizer whose second input is `tap`; gives the host step it has asked for.
    pub(super) fn quantizing<T>(
        &mut self,
        tap: Option<(NodeId, String)>,
        prefix: &str,
        f: impl FnOnce(&mut Self) -> T,
    ) -> (T, Option<InverseFactor>) {
        self.quantizing = Some(Quantizing { tap, prefix: prefix.to_string(), inverse: None });
        let result = f(self);
        (result, self.quantizing.take().and_then(|q| q.inverse))
    }

    /// `inverse_factor(inputs, damp, descending)`
    pub(super) fn inverse_factor(&mut self, g: &Given<'p>) -> Eval<Value<'p>> {
        let x = g.operand(0);
        let Some(running) = self.quantizing.clone() else {
            let message = "`inverse_factor` belongs to a quantizer";
            let d = Diagnostic::error(codes::NOT_HERE, message).at(g.span, "");
            return Err(self.error(d.note("the host computes it between calibration and packing")));
        };
        let own = running.tap.filter(|(node, _)| matches!(x.value, Value::Tensor(x) if x == *node));
        let Some((node, tap)) = own else {
            let found = x.value.describe(self.b);
            let message = "`inverse_factor` takes the quantizer's second input as it is";
            let d = Diagnostic::error(codes::WRONG_KIND, message).at(x.span, format!("this is {found}"));
            let d = d.expected_found("the second input of the quantizer", found);
            return Err(self.error(
                d.note("the host computes it from the sums that calibration leaves, before the quantizer runs"),
            ));
        };
        let (value, at) = (g.operand(1).value, g.span(1));
        let damp = self.real(&value, at)?;
        if !(damp >= 0.0 && damp.is_finite()) {
            let d = Diagnostic::error(codes::WRONG_KIND, format!("a damping of {damp} is not possible"));
            return Err(self.error(d.at(at, "").expected_found("a number of at least 0", damp.to_string())));
        }
        let descending = g.flag(self, 2)?;
        if running.inverse.is_some() {
            let d = Diagnostic::error(codes::NOT_HERE, "a quantizer has one `inverse_factor`").at(g.span, "the second");
            return Err(self.error(d.hint("give its result a name, and use that twice")));
        }
        if let Some(running) = &mut self.quantizing {
            running.inverse = Some(InverseFactor { tap, damp, descending });
        }
        let axes = self.b.axes(node).to_vec();
        let mut input = |name: &'static str, dtype, rank: usize| {
            let (full, axes) = (format!("{}{name}", running.prefix), &axes[..rank]);
            let made = self.make(g.span, &[], |b| {
                let buffer = b.buffer(&full, dtype, axes, BufferKind::Input)?;
                b.read(buffer)
            });
            made.map(|node| (Some(name), Value::Tensor(node)))
        };
        let parts = [input("order", DType::I32, 1)?, input("live", DType::F32, 1)?, input("upper", DType::F32, 2)?];
        Ok(Value::Tuple(Rc::new(parts.to_vec())))
    }
}
