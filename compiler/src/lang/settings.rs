//! The blocks `train`, `quantize` and `evaluate`: every slot checked, every default written here once.
//!
//! *Takes* a program whose parameters are known; *gives* [`Train`], [`Quantize`], [`Evaluate`] as plain data; *promises* that each
//! setting is known, stands once, has a value its slot can take, and that sizes fit each other. Rules (`muon on matrices`) are in
//! [`super::rules`].

use super::calibrate::Calibrate;
use super::codes;
use super::elaborate::{Eval, Evaluator, Reported};
use super::host;
use super::rules::{self, Rules};
use super::scope::Var;
use super::slots;
use super::value::{Clock, Value};
use crate::graph::ir::DType;
use crate::optim::taps::TapBuffer;
use crate::optim::{Parameter, Phase};
use golf_grammar::ast::{self, DefKind, Entry, ExprKind, Section, SectionKind, Setting, Settings};
use golf_grammar::{Diagnostic, Span};
use golf_runtime::plan::{HostExpr, Hyper};

/// `train { … }`
#[derive(Clone, Debug)]
pub struct Train {
    /// Shard pattern.
    pub data: String,
    /// Logical shards of a batch.
    pub ranks: u32,
    /// Tokens per step.
    pub batch: u64,
    /// Tokens per row: the size of the model's time axis.
    pub seq: u32,
    /// Dtype of activations and contraction operands.
    pub compute: DType,
    /// Step cap.
    pub iterations: u64,
    /// Seconds.
    pub stop: f64,
    /// Learning-rate multiplier.
    pub schedule: HostExpr,
    /// Largest gradient norm, and whether it applies to each logical shard.
    pub clip: Option<(f64, bool)>,
    /// Optimizers.
    pub rules: Rules,
    /// Host scalars of the optimizers.
    pub hypers: Vec<Hyper>,
    /// Averages in order of preference.
    pub averages: Vec<Average>,
}

/// One average of `train.average`.
#[derive(Clone, Debug)]
pub struct Average {
    /// Its definition's name, made unique.
    pub name: String,
    /// After which steps it takes the weights in.
    pub when: HostExpr,
}

/// `quantize { … }`
#[derive(Clone, Debug)]
pub struct Quantize {
    /// Quantizers.
    pub rules: Rules,
    /// Compressor.
    pub codec: String,
    /// Its level.
    pub level: i32,
    /// Largest artifact with source, bytes.
    pub cap: u64,
    /// Training data that quantizers are calibrated on.
    pub calibrate: Option<Calibrate>,
    /// For each parameter whose quantizer takes inputs: where they are.
    pub taps: Vec<Option<TapBuffer>>,
}

/// `evaluate { … }`
#[derive(Clone, Debug)]
pub struct Evaluate {
    /// Shard pattern.
    pub data: String,
    /// Tokens per window.
    pub window: u32,
    /// Targets newly scored per window.
    pub stride: u32,
    /// Score at most this many targets.
    pub limit: Option<u64>,
    /// Adaptation.
    pub adapt: Option<Adapt>,
}

/// `adapt = chunked(n) { … }`
#[derive(Clone, Debug)]
pub struct Adapt {
    /// Targets per chunk.
    pub chunk: u64,
    /// Passes over a chunk.
    pub epochs: u32,
    /// Sequences per update.
    pub batch: u32,
    /// Largest gradient norm.
    pub clip: Option<f64>,
    /// Optimizers.
    pub rules: Rules,
    /// Host scalars of the optimizers.
    pub hypers: Vec<Hyper>,
}

/// Slots of each block, in the order of the documentation.
pub const TRAIN: [&str; 9] = ["data", "ranks", "batch", "compute", "iterations", "clip", "schedule", "stop", "average"];
/// See [`TRAIN`].
pub const QUANTIZE: [&str; 3] = ["pack", "cap", "calibrate"];
/// See [`TRAIN`].
pub const EVALUATE: [&str; 5] = ["data", "window", "stride", "limit", "adapt"];
/// See [`TRAIN`].
pub const ADAPT: [&str; 5] = ["epochs", "batch", "clip", "schedule", "order"];
/// See [`TRAIN`].
pub const CALIBRATE: [&str; 2] = ["tokens", "reserve"];

/// The slots of a block.
pub fn slots(kind: SectionKind) -> &'static [&'static str] {
    match kind {
        SectionKind::Train => &TRAIN,
        SectionKind::Quantize => &QUANTIZE,
        SectionKind::Evaluate => &EVALUATE,
    }
}

/// The slots of the settings that belong to a slot's value: `adapt = chunked(n) { … }`.
pub fn nested(slot: &str) -> &'static [&'static str] {
    match slot {
        "adapt" => &ADAPT,
        "calibrate" => &CALIBRATE,
        _ => &[],
    }
}

impl<'p> Evaluator<'p, '_> {
    /// Unknown slots, slots set twice, and what this golfc does not implement.
    pub fn check_slots(&mut self, settings: &'p Settings, block: &str, known: &[&str]) {
        let mut seen: Vec<&Setting> = Vec::new();
        for entry in &settings.entries {
            match entry {
                Entry::Setting(setting) => {
                    let key = &setting.key;
                    if !known.contains(&key.as_str()) {
                        let d = Diagnostic::error(
                            codes::UNKNOWN_SETTING,
                            format!("`{block}` has no setting `{}`", key.name),
                        );
                        let d = d.at(key.span, "").note(format!("settings: {}", known.join(", ")));
                        self.error(d.did_you_mean(key.as_str(), key.span, known.iter().copied()));
                    }
                    if let Some(first) = seen.iter().find(|first| first.key.name == key.name) {
                        let first = first.key.span;
                        let d = Diagnostic::error(codes::SETTING_TWICE, format!("`{}` is set twice", key.name));
                        self.error(d.at(key.span, "second value").also(first, "first value"));
                    }
                    seen.push(setting);
                }
                Entry::Phase(phase) => {
                    let d = Diagnostic::error(codes::UNSUPPORTED, "phases are not implemented in this golfc");
                    self.error(d.at(phase.span, ""));
                }
                Entry::Rule(_) => {}
            }
        }
    }

    /// Runs something at the top level with `clock` visible.
    pub fn with_clock<T>(&mut self, clock: Clock, at: Span, f: impl FnOnce(&mut Self) -> T) -> T {
        self.on_top(0, |e| {
            let var = Var { value: Value::Clock(clock), ty: None, span: at };
            e.frame().inner().bind("clock", var);
            f(e)
        })
    }

    pub(super) fn bad(&mut self, setting: &Setting, wanted: &str, found: String) -> Reported {
        let d = Diagnostic::error(codes::BAD_SETTING, format!("`{}` cannot be {found}", setting.key.name));
        self.error(d.at(setting.value.expr.span, "").expected_found(wanted, found))
    }

    fn missing<T>(&mut self, section: Span, block: &str, key: &str, example: &str) -> Eval<T> {
        let d = Diagnostic::error(codes::MISSING_SETTING, format!("`{block}` does not say `{key}`"));
        Err(self.error(d.at(section, "").hint(format!("write `{key} = {example}`"))))
    }

    /// A plain value: no `per`, no settings, no `else`.
    pub(super) fn plain(&mut self, setting: &'p Setting) -> Eval<Value<'p>> {
        if setting.value.plain().is_none() {
            let message = format!("`{}` takes a plain value", setting.key.name);
            return Err(self.fail(
                codes::BAD_SETTING,
                setting.value.span,
                message,
                "no `per`, `else` or settings here",
            ));
        }
        self.expr(&setting.value.expr)
    }

    pub(super) fn whole_setting(&mut self, setting: &'p Setting, least: i64, most: i64) -> Eval<i64> {
        let value = self.plain(setting)?;
        match value {
            Value::Int(x) if (least..=most).contains(&x) => Ok(x),
            other => {
                let found = other.describe(self.b);
                Err(self.bad(setting, &format!("a whole number from {least} to {most}"), found))
            }
        }
    }

    fn int(
        &mut self,
        settings: &'p Settings,
        key: &str,
        default: Option<i64>,
        least: i64,
        most: i64,
    ) -> Eval<Option<i64>> {
        match settings.get(key) {
            None => Ok(default),
            Some(setting) => self.whole_setting(setting, least, most).map(Some),
        }
    }

    /// `stream("fineweb_train_*.bin")`
    fn stream(&mut self, settings: &'p Settings, block: &str, at: Span, example: &str) -> Eval<(String, Span)> {
        let Some(setting) = settings.get("data") else {
            return self.missing(at, block, "data", &format!("stream(\"{example}\")"));
        };
        self.stream_of(setting)
    }

    pub(super) fn stream_of(&mut self, setting: &'p Setting) -> Eval<(String, Span)> {
        let argument = self.slot_call(setting, "stream", 1)?;
        match argument.first().and_then(|expr| *expr) {
            Some(expr) => match self.expr(expr)? {
                Value::Str(text) if !text.is_empty() && !text.contains(['/', '\\', '\0']) => {
                    Ok((text.to_string(), setting.span))
                }
                other => {
                    let found = other.describe(self.b);
                    Err(self.bad(setting, "a file name pattern without directories", found))
                }
            },
            None => Err(self.bad(setting, "stream(\"PATTERN\")", "without a pattern".to_string())),
        }
    }

    /// The arguments of `name(…)` in a slot that takes only that, and perhaps settings.
    fn slot_call(&mut self, setting: &'p Setting, name: &str, params: usize) -> Eval<Vec<Option<&'p ast::Expr>>> {
        let (value, key) = (&setting.value, setting.key.as_str());
        let settings = value.settings.is_some() && nested(key).is_empty();
        if value.per.is_some() || value.otherwise.is_some() || settings {
            let message = format!("`{key}` takes `{name}(…)` and nothing behind it");
            let what =
                if nested(key).is_empty() { "no `per`, `else` or settings here" } else { "no `per` or `else` here" };
            return Err(self.fail(codes::BAD_SETTING, value.span, message, what));
        }
        let mut given = vec![None; params];
        match &setting.value.expr.kind {
            ExprKind::Name(callee) if *callee == *name => Ok(given),
            ExprKind::Call { callee, args } if matches!(&callee.kind, ExprKind::Name(callee) if *callee == *name) => {
                if args.items.len() > params || !args.over.is_empty() || args.items.iter().any(|arg| arg.name.is_some())
                {
                    let message =
                        format!("`{name}` takes {params} argument{} here", if params == 1 { "" } else { "s" });
                    return Err(self.fail(codes::TOO_MANY_ARGUMENTS, args.span, message, ""));
                }
                for (slot, arg) in given.iter_mut().zip(&args.items) {
                    *slot = Some(&arg.value);
                }
                Ok(given)
            }
            _ => {
                let d = Diagnostic::error(codes::BAD_SETTING, format!("`{}` takes `{name}(…)`", setting.key.name));
                Err(self
                    .error(d.at(setting.value.expr.span, "").expected_found(format!("`{name}(…)`"), "something else")))
            }
        }
    }

    /// A schedule on its clock: a number, a slot, or an expression of the clock.
    pub fn on_clock(&mut self, value: Value<'p>, clock: Clock, at: Span) -> Eval<Value<'p>> {
        let Some((def, module, hypers)) = value.slot(DefKind::Schedule) else { return Ok(value) };
        let hypers: Vec<_> = hypers.to_vec();
        self.run_slot(def, module, &[(Value::Clock(clock), at)], &hypers, at)
    }

    /// A schedule that multiplies learning rates.
    pub fn schedule(&mut self, settings: &'p Settings, clock: Clock) -> Eval<Option<u32>> {
        let Some(setting) = settings.get("schedule") else { return Ok(None) };
        let value = self.plain(setting)?;
        if matches!(value, Value::None) {
            return Ok(None);
        }
        let at = setting.value.expr.span;
        match self.on_clock(value, clock, at)? {
            value @ (Value::Host(_) | Value::Int(_) | Value::Float(_)) => self.host_scalar(&value, at).map(Some),
            other => {
                let found = other.describe(self.b);
                Err(self.bad(setting, "a schedule such as `warmdown(fraction: 0.5)`, a number, or `none`", found))
            }
        }
    }

    fn clip(&mut self, settings: &'p Settings, shards: bool) -> Eval<Option<(f64, bool)>> {
        let Some(setting) = settings.get("clip") else { return Ok(None) };
        if setting.value.settings.is_some() || setting.value.otherwise.is_some() {
            return Err(self.fail(
                codes::BAD_SETTING,
                setting.value.span,
                "`clip` is a number, or a number `per shard`",
                "",
            ));
        }
        let per_shard = match &setting.value.per {
            None => false,
            Some(unit) if shards && *unit == "shard" => true,
            Some(unit) => {
                let d = Diagnostic::error(codes::BAD_SETTING, format!("a clip cannot be per {}", unit.name))
                    .at(unit.span, "");
                let wanted = if shards { "`per shard`, or nothing for the whole gradient" } else { "a number" };
                return Err(self.error(d.expected_found(wanted, format!("`per {}`", unit.name))));
            }
        };
        match self.expr(&setting.value.expr)? {
            Value::None => Ok(None),
            value => match value.number() {
                Some(x) if x > 0.0 => Ok(Some((x, per_shard))),
                _ => {
                    let found = value.describe(self.b);
                    Err(self.bad(setting, "a positive number, or `none`", found))
                }
            },
        }
    }

    /// `train { … }`
    pub fn train(&mut self, section: &'p Section, seq: usize, params: &[Parameter]) -> Eval<Train> {
        let settings = &section.settings;
        let at = section.kind_span;
        self.check_slots(settings, "train", &TRAIN);
        let data = self.stream(settings, "train", at, "fineweb_train_*.bin");
        let ranks = self.int(settings, "ranks", Some(1), 1, 65_536);
        let batch = match self.int(settings, "batch", None, 1, 1 << 40) {
            Ok(None) => self.missing(at, "train", "batch", "524_288"),
            other => other.map(|n| n.unwrap_or(1)),
        };
        let iterations = self.int(settings, "iterations", Some(20_000), 1, 1 << 40);
        let compute = self.compute(settings);
        let stop = self.stop(settings, at);
        let clip = self.clip(settings, true);
        let schedule = self.with_clock(Clock::Schedule, at, |e| e.schedule(settings, Clock::Schedule));
        let rules = rules::optimizers(self, settings, Phase::Train, params);
        let hypers = rules::hypers(self, settings, Phase::Train);
        let averages = self.averages(settings, params);
        let (ranks, batch) = (ranks?.unwrap_or(1), batch?);
        let ranks = self.check_batch(settings, ranks, batch, seq as i64)?;
        Ok(Train {
            data: data?.0,
            ranks: ranks as u32,
            batch: batch as u64,
            seq: seq as u32,
            compute: compute?,
            iterations: iterations?.unwrap_or(20_000) as u64,
            stop: stop?,
            schedule: schedule?.map_or_else(|| host::constant(1.0), |at| self.host.extract(at)),
            clip: clip?,
            rules: rules?,
            hypers: hypers?,
            averages: averages?,
        })
    }

    fn compute(&mut self, settings: &'p Settings) -> Eval<DType> {
        let Some(setting) = settings.get("compute") else { return Ok(DType::F32) };
        match self.plain(setting)? {
            Value::DType(dtype @ (DType::F32 | DType::Bf16)) => Ok(dtype),
            other => {
                let found = other.describe(self.b);
                Err(self.bad(setting, "`bf16` or `f32`", found))
            }
        }
    }

    fn stop(&mut self, settings: &'p Settings, at: Span) -> Eval<f64> {
        let Some(setting) = settings.get("stop") else { return self.missing(at, "train", "stop", "600s") };
        let value = self.plain(setting)?;
        match value.number() {
            Some(x) if x > 0.0 && x <= 1.0e9 => Ok(x),
            _ => {
                let found = value.describe(self.b);
                Err(self.bad(setting, "a duration such as `600s`", found))
            }
        }
    }

    /// Tokens of a step are whole rows. Rows that do not divide over the ranks are divided over fewer, with a warning.
    fn check_batch(&mut self, settings: &'p Settings, ranks: i64, batch: i64, seq: i64) -> Eval<i64> {
        let at = settings.get("batch").map_or(settings.span, |setting| setting.span);
        let rows = self.whole_rows("a batch", batch, seq, at)?;
        let fits = (1..=ranks).rev().find(|n| rows % n == 0).unwrap_or(1);
        if fits != ranks {
            let d = Diagnostic::warning(
                codes::SIZES,
                format!(
                    "{rows} rows cannot be divided over {ranks} ranks: the batch is taken as {fits} logical shard{}",
                    if fits == 1 { "" } else { "s" }
                ),
            );
            self.error(
                d.at(at, format!("{batch} tokens are {rows} rows of {seq}"))
                    .hint(format!("set `train.ranks={fits}`, or a larger batch")),
            );
        }
        Ok(fits)
    }

    /// How many rows of `seq` tokens there are in `tokens`.
    pub(super) fn whole_rows(&mut self, what: &str, tokens: i64, seq: i64, at: Span) -> Eval<i64> {
        if tokens % seq == 0 {
            return Ok(tokens / seq);
        }
        let down = tokens / seq * seq;
        let near = if down == 0 { seq } else { down };
        let d = Diagnostic::error(codes::SIZES, format!("{what} of {tokens} tokens is not a whole number of rows"));
        let d = d.at(at, format!("rows have {seq} tokens"));
        Err(self.error(d.hint(format!("the nearest sizes are {near} and {}", near + seq))))
    }

    fn averages(&mut self, settings: &'p Settings, params: &[Parameter]) -> Eval<Vec<Average>> {
        let mut out: Vec<Average> = Vec::new();
        let Some(first) = params.iter().find(|p| !p.unused) else { return Ok(out) };
        for value in average_values(settings) {
            let Some((def, module, hypers)) = self.average_slot(value)? else { continue };
            let mut name = def.name.name.clone();
            for n in 2.. {
                if !out.iter().any(|average| average.name == name) {
                    break;
                }
                name = format!("{}{n}", def.name.name);
            }
            let when = slots::average_when(self, (def, module, &hypers), &name, first, value.span)?;
            out.push(Average { name, when });
        }
        Ok(out)
    }

    /// The definition of one average of the chain.
    pub fn average_slot(&mut self, value: &'p ast::Value) -> Eval<Option<rules::Slot<'p>>> {
        if value.per.is_some() || value.settings.is_some() {
            return Err(self.fail(codes::BAD_SETTING, value.span, "an average takes no `per` and no settings", ""));
        }
        let (found, at) = (self.expr(&value.expr)?, value.expr.span);
        match &found {
            Value::None => Ok(None),
            value => match value.slot(DefKind::Average) {
                Some((def, module, hypers)) => Ok(Some((def, module, hypers.to_vec()))),
                None => {
                    let found = found.describe(self.b);
                    let d = Diagnostic::error(codes::BAD_SETTING, format!("`average` cannot be {found}"));
                    Err(self.error(d.at(at, "").expected_found("an average such as `ema(0.997)`, or `none`", found)))
                }
            },
        }
    }

    /// `quantize { … }`, but for the taps. `seq`: tokens of a row; `stop`: seconds of training, where known.
    pub fn quantize(
        &mut self,
        section: &'p Section,
        (seq, stop): (usize, Option<f64>),
        params: &[Parameter],
    ) -> Eval<Quantize> {
        let settings = &section.settings;
        self.check_slots(settings, "quantize", &QUANTIZE);
        let calibrate = self.calibrate(settings, seq as u64, stop);
        let rules = rules::quantizers(self, settings, params);
        let level = self.pack(settings);
        let cap = self.int(settings, "cap", Some(16_000_000), 1, 1 << 50);
        Ok(Quantize {
            rules: rules?,
            codec: "zstd".to_string(),
            level: level?,
            cap: cap?.unwrap_or(16_000_000) as u64,
            calibrate: calibrate?,
            taps: Vec::new(),
        })
    }

    fn pack(&mut self, settings: &'p Settings) -> Eval<i32> {
        let Some(setting) = settings.get("pack") else { return Ok(22) };
        let argument = self.slot_call(setting, "zstd", 1)?;
        match argument.first().and_then(|expr| *expr) {
            None => Ok(22),
            Some(expr) => match self.expr(expr)? {
                Value::Int(level @ 1..=22) => Ok(level as i32),
                other => {
                    let found = other.describe(self.b);
                    Err(self.bad(setting, "a level from 1 to 22", found))
                }
            },
        }
    }

    /// `evaluate { … }`
    pub fn evaluate(&mut self, section: &'p Section, seq: usize, params: &[Parameter]) -> Eval<Evaluate> {
        let settings = &section.settings;
        let at = section.kind_span;
        self.check_slots(settings, "evaluate", &EVALUATE);
        if let Some(rule) = settings.rules().next() {
            self.fail(
                codes::UNKNOWN_SETTING,
                rule.span,
                "`evaluate` has no rules of its own",
                "optimizers stand in `adapt = chunked(…) { … }`",
            );
        }
        let data = self.stream(settings, "evaluate", at, "fineweb_val_*.bin");
        let window = self.int(settings, "window", Some(seq as i64), 1, 1 << 24);
        let window = window.map(|n| n.unwrap_or(seq as i64));
        let stride = match &window {
            Ok(window) => self.int(settings, "stride", Some(*window), 1, *window).map(|n| n.unwrap_or(*window)),
            Err(Reported) => Err(Reported),
        };
        let limit = match settings.get("limit") {
            None => Ok(None),
            Some(setting) if matches!(setting.value.expr.kind, ExprKind::None) => Ok(None),
            Some(setting) => self.whole_setting(setting, 1, 1 << 50).map(|n| Some(n as u64)),
        };
        let adapt = match settings.get("adapt") {
            None => Ok(None),
            Some(setting) => self.adapt(setting, params),
        };
        let (window, stride, adapt) = (window?, stride?, adapt?);
        let place = |key: &str| settings.get(key).map_or(settings.span, |setting| setting.span);
        if window % stride != 0 {
            let d = Diagnostic::error(codes::SIZES, format!("the stride {stride} does not divide the window {window}"));
            return Err(
                self.error(d.at(place("stride"), "").note("every target is scored exactly once only if it does"))
            );
        }
        if let Some(adapt) = &adapt
            && adapt.chunk % stride as u64 != 0
        {
            let message = format!("the stride {stride} does not divide the chunk {}", adapt.chunk);
            let d = Diagnostic::error(codes::SIZES, message).at(place("adapt"), "");
            return Err(self.error(d.note("a window belongs to one chunk only if it does")));
        }
        Ok(Evaluate { data: data?.0, window: window as u32, stride: stride as u32, limit: limit?, adapt })
    }

    /// `order = score_first` is what there is; the other order can be written so that it can be refused.
    fn order(&mut self, settings: &'p Settings) -> Eval<()> {
        let Some(setting) = settings.get("order") else { return Ok(()) };
        match &setting.value.expr.kind {
            ExprKind::Name(word) if *word == "score_first" => Ok(()),
            ExprKind::Name(word) if *word == "adapt_first" => {
                let d = Diagnostic::error(codes::ILLEGAL, "a chunk would be adapted on before it is scored");
                let d = d.at(setting.span, "").note(
                    "rule 3: the state that scores a token must never have seen it; every chunk is scored first, and adapted on afterwards",
                );
                Err(self.error(d))
            }
            _ => {
                let d = Diagnostic::error(codes::BAD_SETTING, "`order` is `score_first`").at(setting.value.span, "");
                Err(self.error(d))
            }
        }
    }

    fn adapt(&mut self, setting: &'p Setting, params: &[Parameter]) -> Eval<Option<Adapt>> {
        if matches!(setting.value.expr.kind, ExprKind::None) {
            return Ok(None);
        }
        let argument = self.slot_call(setting, "chunked", 1)?;
        let Some(expr) = argument.first().and_then(|expr| *expr) else {
            return Err(self.bad(setting, "`chunked(TARGETS)`", "without a chunk size".to_string()));
        };
        let chunk = match self.expr(expr)? {
            Value::Int(n) if n >= 1 => n as u64,
            other => {
                let found = other.describe(self.b);
                return Err(self.bad(setting, "a positive number of targets", found));
            }
        };
        let Some(settings) = &setting.value.settings else {
            let d = Diagnostic::error(codes::MISSING_SETTING, "adaptation needs an optimizer").at(setting.span, "");
            return Err(self.error(d.hint("write `chunked(32_768) { sgd on all { lr = 0.002, momentum = 0.9 } }`")));
        };
        self.check_slots(settings, "adapt", &ADAPT);
        self.order(settings)?;
        let epochs = self.int(settings, "epochs", Some(1), 1, 1000);
        let batch = self.int(settings, "batch", Some(32), 1, 65_536);
        let clip = self.clip(settings, false);
        let rules = rules::optimizers(self, settings, Phase::Adapt, params);
        let hypers = rules::hypers(self, settings, Phase::Adapt);
        Ok(Some(Adapt {
            chunk,
            epochs: epochs?.unwrap_or(1) as u32,
            batch: batch?.unwrap_or(32) as u32,
            clip: clip?.map(|(limit, _)| limit),
            rules: rules?,
            hypers: hypers?,
        }))
    }
}

/// The chain `swa(…) else ema(…)`.
pub fn average_values(settings: &Settings) -> Vec<&ast::Value> {
    let mut out = Vec::new();
    let mut next = settings.get("average").map(|setting| &setting.value);
    while let Some(value) = next {
        out.push(value);
        next = value.otherwise.as_deref();
    }
    out
}

/// The settings in which a phase's optimizers stand.
pub fn phase_settings(section: &Section, phase: Phase) -> Option<&Settings> {
    match phase {
        Phase::Train => Some(&section.settings),
        Phase::Adapt => section.settings.get("adapt")?.value.settings.as_ref(),
    }
}

/// Whether two file patterns (with `*` and `?`) can match one name.
pub fn patterns_meet(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // meet[i][j]: the rests a[i..] and b[j..] can match one string.
    let mut meet = vec![vec![false; b.len() + 1]; a.len() + 1];
    for i in (0..=a.len()).rev() {
        for j in (0..=b.len()).rev() {
            meet[i][j] = match (a.get(i), b.get(j)) {
                (None, None) => true,
                (Some('*'), _) => meet[i + 1][j] || (j < b.len() && meet[i][j + 1]),
                (_, Some('*')) => meet[i][j + 1] || (i < a.len() && meet[i + 1][j]),
                (Some('?'), Some(_)) | (Some(_), Some('?')) => meet[i + 1][j + 1],
                (Some(x), Some(y)) => x == y && meet[i + 1][j + 1],
                _ => false,
            };
        }
    }
    meet[0][0]
}
