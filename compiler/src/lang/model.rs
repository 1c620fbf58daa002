//! The model: a checked program, ready to be lowered as often as needed.
//!
//! *Takes* a source text; *gives* [`Model`]: parameters, settings, and functions that add the forward pass, optimizer steps,
//! averages and quantisers to a graph; *promises* that all of them have been elaborated once, so that what can go wrong has been
//! reported, and that equal calls add equal nodes.

use super::axes::AxisNames;
use super::codes;
use super::elaborate::{Declared, Eval, Evaluator, Reported};
use super::prelude::Prelude;
use super::program::Program;
use super::resolve::{self, Name, Space};
use super::scope::{Frame, FrameKind, Var};
use super::sets::{self, Edit};
use super::settings::{self, Evaluate, Quantize, Train};
use super::value::Value;
use crate::graph::build::Builder;
use crate::graph::ir::{AxisId, AxisRole, BufferKind, DType, Graph, NodeId, Op};
use crate::graph::ops::{self, Derivative};
use crate::optim::{Forward, Parameter, Phase, Quantised, State, Updated};
use golf_grammar::ast::{AxisDecl, DefKind, File, Ident, ItemKind, SectionKind, TypeKind};
use golf_grammar::{Diagnostic, FileId, Sink, SourceMap, Span};
use std::collections::BTreeSet;

/// Stack of the evaluating thread: deep programs are refused long before it is used up.
const STACK: usize = 256 << 20;

/// What to compile.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Name shown in messages; its stem names the program.
    pub path: &'a str,
    /// The text.
    pub bytes: &'a [u8],
    /// `PATH=EXPR` overrides.
    pub sets: &'a [String],
}

/// A checked program.
#[derive(Clone, Debug)]
pub struct Model {
    /// Stem of the file name.
    pub name: String,
    /// The text after `--set`.
    pub source: String,
    /// Every prelude definition the program uses.
    pub prelude: String,
    /// The overrides.
    pub sets: Vec<String>,
    /// What each prelude definition used is called in the comment above it.
    pub techniques: Vec<String>,
    /// Warnings.
    pub warnings: Vec<Diagnostic>,
    /// Size of the vocabulary axis.
    pub vocab: usize,
    /// Parameters in declaration order.
    pub parameters: Vec<Parameter>,
    /// Where each is declared.
    pub places: Vec<Span>,
    /// `train`
    pub train: Train,
    /// `quantize`
    pub quantize: Quantize,
    /// `evaluate`
    pub evaluate: Evaluate,
    program: Program,
    names: AxisNames,
    file: FileId,
    edits: Vec<Edit>,
}

/// Reads, checks and elaborates a program with the prelude of this golfc. Texts are added to `map`, so that the diagnostics can be
/// rendered whether it succeeds or not.
pub fn load(map: &mut SourceMap, input: &Input<'_>) -> Result<Model, Vec<Diagnostic>> {
    load_with(map, input, &Prelude::std())
}

/// [`load`] with another prelude.
pub fn load_with(map: &mut SourceMap, input: &Input<'_>, prelude: &Prelude) -> Result<Model, Vec<Diagnostic>> {
    let mut file = map.add_bytes(input.path, input.bytes);
    let mut tree = golf_grammar::parse_file(file, input.bytes).into_result()?;
    let text = map.get(file).map_or(String::new(), |source| source.text().to_string());
    let mut overridden = sets::Overridden { text, edits: Vec::new() };
    if !input.sets.is_empty() {
        unused_as_written(map, tree, prelude)?;
        let hypers = |tree: &File, name: &str| hyper_names(tree, prelude, name);
        overridden = sets::apply(map, input.path, &overridden.text, input.sets, &hypers)?;
        file = map.add(input.path, overridden.text.clone());
        tree = golf_grammar::parse_file(file, overridden.text.as_bytes()).into_result()?;
    }
    let edits = overridden.edits.clone();
    check(map, input, prelude, (file, tree, overridden)).map_err(|mut list| {
        sets::relocate(&mut list, file, &edits);
        list
    })
}

/// Items without effect in the program before `--set`.
fn unused_as_written(map: &SourceMap, tree: File, prelude: &Prelude) -> Result<(), Vec<Diagnostic>> {
    let (mut map, mut sink) = (map.clone(), Sink::new());
    let program = Program::new(&mut map, tree, prelude, &mut sink);
    if program.modules[0].tree.items.is_empty() || sink.has_errors() {
        // Said again, with everything else, about the text after `--set`.
        return Ok(());
    }
    resolve::resolve(&program, true, &mut sink);
    let unused: Vec<Diagnostic> = sink.finish().into_iter().filter(|d| d.code == codes::UNUSED_ITEM).collect();
    if unused.is_empty() { Ok(()) } else { Err(unused) }
}

/// Names of the hyper-parameters of a definition, in the file or anywhere in the prelude.
fn hyper_names(tree: &File, prelude: &Prelude, name: &str) -> Vec<String> {
    let of = |tree: &File| {
        tree.items.iter().find_map(|item| match &item.kind {
            ItemKind::Def(def) if def.name == *name => {
                Some(def.sig.hypers.iter().map(|p| p.name.name.clone()).collect())
            }
            _ => None,
        })
    };
    let in_prelude = || {
        prelude.names().into_iter().find_map(|module| {
            let text = prelude.get(module)?;
            of(&golf_grammar::parse_file(FileId(u32::MAX), text.as_bytes()).file)
        })
    };
    of(tree).or_else(in_prelude).unwrap_or_default()
}

/// Runs something that may recurse deeply on a thread with room for it.
fn with_stack<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let spawned =
            std::thread::Builder::new().name("elaborate".to_string()).stack_size(STACK).spawn_scoped(scope, f);
        match spawned.map(|thread| thread.join()) {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            // No thread to be had: the machine is out of memory, and so are we.
            Err(error) => std::panic::resume_unwind(Box::new(format!("cannot start a thread: {error}"))),
        }
    })
}

fn check(
    map: &mut SourceMap,
    input: &Input<'_>,
    prelude: &Prelude,
    (file, tree, overridden): (FileId, File, sets::Overridden),
) -> Result<Model, Vec<Diagnostic>> {
    let mut sink = Sink::new();
    let program = Program::new(map, tree, prelude, &mut sink);
    if program.modules[0].tree.items.is_empty() {
        return Err(sink.finish());
    }
    let reached = resolve::resolve(&program, input.sets.is_empty(), &mut sink);
    if sink.has_errors() {
        return Err(sink.finish());
    }
    let built = with_stack(|| elaborate(&program));
    let mut built = match built {
        Ok(built) => built,
        Err(list) => {
            sink.extend(list);
            return Err(sink.finish());
        }
    };
    sink.extend(std::mem::take(&mut built.warnings));
    if sink.has_errors() {
        return Err(sink.finish());
    }
    let stem = std::path::Path::new(input.path).file_stem().and_then(|s| s.to_str()).unwrap_or("program");
    let (prelude_text, techniques) = used_prelude(&program, map, &reached);
    let mut warnings = sink.finish();
    sets::relocate(&mut warnings, file, &overridden.edits);
    Ok(Model {
        name: stem.to_string(),
        source: overridden.text,
        prelude: prelude_text,
        sets: input.sets.to_vec(),
        techniques,
        warnings,
        vocab: built.vocab,
        places: built.declared.iter().map(|d| d.span).collect(),
        parameters: built.declared.into_iter().map(|d| d.parameter).collect(),
        train: built.train,
        quantize: built.quantize,
        evaluate: built.evaluate,
        names: built.names,
        program,
        file,
        edits: overridden.edits,
    })
}

/// Texts of the prelude definitions reached, and the title of the comment above each.
fn used_prelude(program: &Program, map: &SourceMap, reached: &BTreeSet<Name>) -> (String, Vec<String>) {
    let (mut text, mut techniques) = (String::new(), Vec::new());
    for (id, module) in program.modules.iter().enumerate().skip(1) {
        for item in &module.tree.items {
            let names: Vec<(Space, &str)> = match &item.kind {
                ItemKind::Def(def) => vec![(Space::Value, def.name.as_str())],
                ItemKind::Const(list) => list.iter().map(|decl| (Space::Value, decl.name.as_str())).collect(),
                ItemKind::Axis(list) => list.iter().map(|decl| (Space::Axis, decl.name.as_str())).collect(),
                ItemKind::Use(_) | ItemKind::Section(_) => Vec::new(),
            };
            if !names.iter().any(|(space, name)| reached.contains(&(id, *space, name.to_string()))) {
                continue;
            }
            text.push_str(map.slice(item.span));
            text.push('\n');
            let doc = module.doc(map, item.span);
            if !doc.is_empty() {
                techniques.push(title(&doc.join(" ")).to_string());
            }
        }
    }
    (text, techniques)
}

/// What stands before the first colon or the end of the first sentence.
fn title(text: &str) -> &str {
    let colons = text.match_indices(": ");
    let stops =
        text.match_indices(". ").filter(|(i, _)| text[..*i].ends_with(|c: char| c.is_alphanumeric() || c == ')'));
    let end = colons.chain(stops).map(|(i, _)| i).min();
    end.map_or(text.trim_end_matches('.'), |end| &text[..end])
}

/// What the first elaboration gives.
struct Built {
    declared: Vec<Declared>,
    vocab: usize,
    train: Train,
    quantize: Quantize,
    evaluate: Evaluate,
    names: AxisNames,
    warnings: Vec<Diagnostic>,
}

/// Elaborates everything once.
fn elaborate(program: &Program) -> Result<Built, Vec<Diagnostic>> {
    let mut names = AxisNames::default();
    for module in &program.modules {
        module.axis_names().for_each(|name| names.reserve(name));
    }
    if let Some(batch) = resolve::batch_axis(program) {
        names.reserve(batch);
    }
    let mut b = Builder::new("check", DType::F32);
    let mut e = Evaluator::new(program, &mut b, names);
    let seq = e.sequence();
    let forward = seq.and_then(|seq| e.forward(1, seq));
    let mut declared = std::mem::take(&mut e.declared);
    if let Ok(forward) = &forward
        && !e.sink.has_errors()
    {
        e.reachability(forward.logits, &declared);
    }
    if e.sink.has_errors() {
        return Err(e.sink.finish());
    }
    let (Ok(seq), Ok(forward)) = (seq, forward) else { return Err(e.sink.finish()) };
    let vocab = e.b.size(forward.vocab);
    let parameters: Vec<Parameter> = declared.iter().map(|d| d.parameter.clone()).collect();
    let section = |kind| program.section(kind);
    let train = section(SectionKind::Train).ok_or(Reported).and_then(|s| e.train(s, seq, &parameters));
    let stop = train.as_ref().ok().map(|t| t.stop);
    let quantize = section(SectionKind::Quantize).ok_or(Reported).and_then(|s| {
        let q = e.quantize(s, (seq, stop), &parameters)?;
        let taps = e.taps(&s.settings, (&q.rules, q.calibrate.as_ref()), &declared, forward.logits)?;
        Ok(Quantize { taps, ..q })
    });
    let evaluate = section(SectionKind::Evaluate).ok_or(Reported).and_then(|s| e.evaluate(s, seq, &parameters));
    if let (Ok(train), Ok(evaluate)) = (&train, &evaluate)
        && settings::patterns_meet(&train.data, &evaluate.data)
    {
        e.validation_data(&train.data, &evaluate.data);
    }
    let (Ok(train), Ok(quantize), Ok(evaluate)) = (train, quantize, evaluate) else { return Err(e.sink.finish()) };
    e.rehearse(&parameters, &train, &quantize, &evaluate);
    if e.sink.has_errors() {
        return Err(e.sink.finish());
    }
    let names = std::mem::take(&mut e.names);
    declared.shrink_to_fit();
    Ok(Built { declared, vocab, train, quantize, evaluate, names, warnings: std::mem::take(&mut e.sink).finish() })
}

impl<'p> Evaluator<'p, '_> {
    /// The two axes of the model's tokens, as written.
    fn token_axes(&mut self) -> Eval<(&'p Ident, &'p Ident)> {
        let program = self.program;
        let Some(model) = program.model() else { return Err(Reported) };
        if let Some(extra) = model.sig.params.get(1).or(model.sig.hypers.first()) {
            let d = Diagnostic::error(codes::ILLEGAL, "the model sees the tokens and nothing else")
                .at(extra.span, "one input too many");
            let d = d.note("logits may depend on the artifact and the tokens up to their position only (rule 1): targets, positions to come and data of other files cannot enter");
            return Err(self.error(d));
        }
        let axes = match model.sig.params.first().and_then(|p| p.ty.as_ref()).map(|ty| &ty.kind) {
            Some(TypeKind::Tensor { axes, rest: None, .. }) if axes.len() == 2 => axes,
            _ => {
                let d = Diagnostic::error(codes::ARGUMENT_TYPE, "the model takes tokens with a batch and a time axis");
                return Err(self.error(d.at(model.sig.span, "").hint("write `model(tokens: [b t]) -> logits [b t v]`")));
            }
        };
        Ok((&axes[0], &axes[1]))
    }

    /// Tokens per row in training: the declared size of the time axis.
    fn sequence(&mut self) -> Eval<usize> {
        let (batch, time) = self.token_axes()?;
        let program = self.program;
        if let Some(decl) = program.modules[0].axis(batch.as_str()) {
            let d = Diagnostic::error(
                codes::NOT_HERE,
                format!("the axis `{}` is the rows of a batch and has no size in the program", batch.name),
            );
            return Err(self.error(d.at(decl.span, "remove this").also(batch.span, "the first axis of the tokens")));
        }
        let Some(decl): Option<&AxisDecl> = program.modules[0].axis(time.as_str()) else {
            let d = Diagnostic::error(codes::UNKNOWN_AXIS, format!("the time axis `{}` has no size", time.name))
                .at(time.span, "");
            return Err(
                self.error(d.hint(format!("declare it: `axis {} = seq`, the tokens of a training row", time.name)))
            );
        };
        self.on_top(0, |e| e.axis_size(decl)).map(|(size, _)| size)
    }

    /// Adds the forward pass for `rows` rows of `len` tokens, reading the input buffer `tokens`.
    pub fn forward(&mut self, rows: usize, len: usize) -> Eval<Forward> {
        let program = self.program;
        let Some(model) = program.model() else { return Err(Reported) };
        let (batch_name, time_name) = self.token_axes()?;
        let at = model.sig.span;
        let mut axis = |name: &Ident, size: usize, role: AxisRole| -> Eval<AxisId> {
            let made = self.b.axis(name.as_str(), size, role);
            made.map_err(|error| self.fail(codes::TENSOR, name.span, error.to_string(), ""))
        };
        let batch = axis(batch_name, rows, AxisRole::Batch)?;
        let time = axis(time_name, len, AxisRole::Time)?;
        self.set_axis(batch_name.as_str(), batch);
        self.set_axis(time_name.as_str(), time);
        let tokens = self.make(at, &[], |b| {
            let buffer = b.buffer("tokens", DType::I32, &[batch, time], BufferKind::Input)?;
            b.read(buffer)
        })?;
        let Some(param) = model.sig.params.first() else { return Err(Reported) };
        let mut frame = Frame::new(0, FrameKind::Model);
        frame.inner().bind(param.name.as_str(), Var { value: Value::Tensor(tokens), ty: None, span: param.name.span });
        self.frames.push(frame);
        let value = self.block(&model.body);
        let place = model.body.split_value().1.map_or(model.body.span, |value| value.span);
        let value = value.and_then(|value| match &model.sig.result {
            Some(result) => self.check(value, &result.ty, place, &mut Vec::new()),
            None => Ok(value),
        });
        self.frames.pop();
        let logits = match value? {
            Value::Tensor(node) => node,
            other => {
                let found = other.describe(self.b);
                let d = Diagnostic::error(codes::ARGUMENT_TYPE, "the model must end with its logits");
                return Err(self.error(d.at(place, format!("this is {found}")).expected_found("logits [b t v]", found)));
            }
        };
        let axes = self.b.axes(logits).to_vec();
        let rest: Vec<AxisId> = axes.iter().copied().filter(|a| *a != batch && *a != time).collect();
        let float = self.b.dtype(logits).is_float();
        match rest.as_slice() {
            [vocab] if axes.len() == 3 && float => Ok(Forward { logits, vocab: *vocab, batch, time }),
            _ => {
                let found = super::value::tensor(self.b, logits);
                let d = Diagnostic::error(
                    codes::ARGUMENT_TYPE,
                    "the logits have the axes of the tokens and one more, the vocabulary",
                );
                Err(self.error(d.at(place, format!("this is {found}")).expected_found("logits [b t v]", found)))
            }
        }
    }

    /// Every parameter is reached by the loss, or declared unused.
    fn reachability(&mut self, logits: NodeId, declared: &[Declared]) {
        let reached = differentiable(self.b.graph(), logits);
        for d in declared {
            let name = &d.parameter.name;
            match (reached[d.node.0 as usize], d.parameter.unused) {
                (false, false) => {
                    let e = Diagnostic::error(
                        codes::UNREACHED_PARAMETER,
                        format!("no path of the loss reaches the parameter `{name}`"),
                    );
                    let e = e
                        .at(d.span, "")
                        .hint("use it, remove it, or declare it `unused param`: kept and counted, never stepped");
                    self.error(e.note(
                        "operations with derivative zero (rounding, comparisons, indices, stop_gradient) end a path",
                    ));
                }
                (true, true) => {
                    let e = Diagnostic::error(
                        codes::USED_UNUSED,
                        format!("`{name}` is declared unused, but the loss depends on it"),
                    );
                    self.error(e.at(d.span, "").hint("give it a group instead"));
                }
                _ => {}
            }
        }
    }

    fn validation_data(&mut self, train: &str, val: &str) {
        let program = self.program;
        let place =
            |kind| program.section(kind).and_then(|s| s.settings.get("data")).map_or(Span::default(), |s| s.span);
        let d = Diagnostic::error(
            codes::VALIDATION_DATA,
            format!("training would read validation data: `{train}` and `{val}` name the same files"),
        );
        let d = d.at(place(SectionKind::Train), "trained on").also(place(SectionKind::Evaluate), "scored");
        self.error(d.note(
            "rule 3: a token may be trained on only after it was scored, and that is what `evaluate.adapt` does",
        ));
    }

    /// Runs every optimizer, average and quantizer on every parameter once.
    fn rehearse(&mut self, parameters: &[Parameter], train: &Train, quantize: &Quantize, evaluate: &Evaluate) {
        let program = self.program;
        let sections =
            [SectionKind::Train, SectionKind::Evaluate, SectionKind::Quantize].map(|kind| program.section(kind));
        let [Some(train_section), Some(evaluate_section), Some(quantize_section)] = sections else { return };
        for (index, p) in parameters.iter().enumerate() {
            let Ok(w) = self.read_kept(&p.name, &p.axes, p.dtype, BufferKind::Param, Span::default()) else { continue };
            let Ok(g) =
                self.read_kept(&format!("grad.{}", p.name), &p.axes, DType::F32, BufferKind::Grad, Span::default())
            else {
                continue;
            };
            let phases = [
                (Phase::Train, train_section, Some(&train.rules)),
                (Phase::Adapt, evaluate_section, evaluate.adapt.as_ref().map(|a| &a.rules)),
            ];
            for (phase, section, rules) in phases {
                let rule = rules.and_then(|rules| rules.chosen.get(index).copied().flatten());
                if let (Some(rule), Some(settings)) = (rule, settings::phase_settings(section, phase)) {
                    let _ = self.optimizer_step(settings, phase, rule, p, (w, g));
                }
            }
            if !p.unused {
                self.rehearse_averages(train_section, train, p, w);
            }
            if let Some(rule) = quantize.rules.chosen.get(index).copied().flatten() {
                // One graph for all parameters here: the inputs of each need names of their own.
                let (tap, prefix) = (quantize.taps[index].as_ref(), format!("{}.", p.name));
                let _ = self.quantizer(&quantize_section.settings, rule, p, (w, tap), &prefix);
            }
        }
    }

    fn rehearse_averages(&mut self, section: &'p golf_grammar::ast::Section, train: &Train, p: &Parameter, w: NodeId) {
        for (value, average) in settings::average_values(&section.settings).into_iter().zip(&train.averages) {
            if let Ok(Some(slot)) = self.average_slot(value) {
                let _ = self.average_update(&slot, &average.name, p, w);
                let _ = self.average_finish(&slot, &average.name, p, w);
            }
        }
    }
}

/// Which nodes a change of which changes the value, by the derivative.
fn differentiable(g: &Graph, value: NodeId) -> Vec<bool> {
    let mut reached = vec![false; g.nodes.len()];
    let mut stack = vec![value];
    while let Some(id) = stack.pop() {
        let node = &g.nodes[id.0 as usize];
        if !node.ty.dtype.is_float() || std::mem::replace(&mut reached[id.0 as usize], true) {
            continue;
        }
        if ops::row(&node.op).derivative == Derivative::Zero {
            continue;
        }
        match &node.op {
            Op::StraightThrough => stack.extend(node.args.get(1)),
            _ => stack.extend(&node.args),
        }
    }
    reached
}

impl Model {
    /// Runs an evaluation over a graph.
    fn on<T: Send>(
        &self,
        b: &mut Builder,
        f: impl FnOnce(&mut Evaluator<'_, '_>) -> Eval<T> + Send,
    ) -> Result<T, Vec<Diagnostic>> {
        with_stack(|| {
            let mut e = Evaluator::new(&self.program, b, self.names.clone());
            let value = f(&mut e);
            match value {
                Ok(value) if !e.sink.has_errors() => Ok(value),
                _ => Err(e.sink.finish()),
            }
        })
        .map_err(|mut list| {
            sets::relocate(&mut list, self.file, &self.edits);
            list
        })
    }

    /// Adds the forward pass for `rows` rows of `len` tokens.
    pub fn forward(&self, b: &mut Builder, rows: usize, len: usize) -> Result<Forward, Vec<Diagnostic>> {
        self.on(b, |e| e.forward(rows, len))
    }

    /// Adds the optimizer step of a parameter. `None`: no rule takes it.
    pub fn update(
        &self,
        b: &mut Builder,
        phase: Phase,
        index: usize,
        (w, g): (NodeId, NodeId),
    ) -> Result<Option<Updated>, Vec<Diagnostic>> {
        let rules = match phase {
            Phase::Train => Some(&self.train.rules),
            Phase::Adapt => self.evaluate.adapt.as_ref().map(|a| &a.rules),
        };
        let rule = rules.and_then(|rules| rules.chosen.get(index).copied().flatten());
        let kind = if phase == Phase::Train { SectionKind::Train } else { SectionKind::Evaluate };
        let (Some(rule), Some(p)) = (rule, self.parameters.get(index)) else { return Ok(None) };
        self.on(b, |e| {
            let settings = e.program.section(kind).and_then(|section| settings::phase_settings(section, phase));
            match settings {
                Some(settings) => e.optimizer_step(settings, phase, rule, p, (w, g)).map(Some),
                None => Ok(None),
            }
        })
    }

    fn average<T: Send>(
        &self,
        b: &mut Builder,
        average: usize,
        f: impl for<'p> FnOnce(&mut Evaluator<'p, '_>, &super::rules::Slot<'p>, &str) -> Eval<T> + Send,
    ) -> Result<T, Vec<Diagnostic>> {
        self.on(b, |e| {
            let name = self.train.averages.get(average).map(|a| a.name.clone()).ok_or(Reported)?;
            let section = e.program.section(SectionKind::Train).ok_or(Reported)?;
            let mut slots = Vec::new();
            for value in settings::average_values(&section.settings) {
                slots.extend(e.average_slot(value)?);
            }
            let slot = slots.get(average).ok_or(Reported)?;
            f(e, slot, &name)
        })
    }

    /// Adds the new states of an average for a parameter.
    pub fn average_update(
        &self,
        b: &mut Builder,
        average: usize,
        index: usize,
        w: NodeId,
    ) -> Result<Vec<State>, Vec<Diagnostic>> {
        let p = &self.parameters[index];
        self.average(b, average, |e, slot, name| e.average_update(slot, name, p, w))
    }

    /// Adds the averaged weights of a parameter.
    pub fn average_finish(
        &self,
        b: &mut Builder,
        average: usize,
        index: usize,
        w: NodeId,
    ) -> Result<NodeId, Vec<Diagnostic>> {
        let p = &self.parameters[index];
        self.average(b, average, |e, slot, name| e.average_finish(slot, name, p, w))
    }

    /// Adds codes, scale and dequantised weights of a parameter; `None`: stored as fp16.
    pub fn quantise(&self, b: &mut Builder, index: usize, w: NodeId) -> Result<Option<Quantised>, Vec<Diagnostic>> {
        let rule = self.quantize.rules.chosen.get(index).copied().flatten();
        let (Some(rule), Some(p)) = (rule, self.parameters.get(index)) else { return Ok(None) };
        self.on(b, |e| match e.program.section(SectionKind::Quantize) {
            Some(section) => e.quantizer(&section.settings, rule, p, (w, self.quantize.taps[index].as_ref()), ""),
            None => Ok(None),
        })
    }

    /// Name of the packing rule of a parameter.
    pub fn pack_rule(&self, index: usize) -> &str {
        let rule = self.quantize.rules.chosen.get(index).copied().flatten();
        rule.and_then(|rule| self.quantize.rules.list.get(rule)).map_or("f16", |(name, _)| name.as_str())
    }

    /// Number of parameters' elements, unused ones too.
    pub fn numel(&self) -> usize {
        self.parameters.iter().map(Parameter::numel).sum()
    }

    /// Names of the optimizers, quantizers and averages in use (for generated descriptions).
    pub fn slot_names(&self) -> Vec<(DefKind, String)> {
        let mut out: Vec<(DefKind, String)> = Vec::new();
        out.extend(self.train.rules.list.iter().map(|(name, _)| (DefKind::Optimizer, name.clone())));
        out.extend(self.train.averages.iter().map(|a| (DefKind::Average, a.name.clone())));
        out.extend(self.quantize.rules.list.iter().map(|(name, _)| (DefKind::Quantizer, name.clone())));
        out.dedup();
        out
    }
}

impl crate::optim::Source for Model {
    fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    fn forward(&self, b: &mut Builder, rows: usize, len: usize) -> Result<Forward, crate::optim::Error> {
        Model::forward(self, b, rows, len).map_err(first)
    }

    fn clip(&self, phase: Phase) -> Option<(f64, bool)> {
        match phase {
            Phase::Train => self.train.clip,
            Phase::Adapt => self.evaluate.adapt.as_ref().and_then(|a| a.clip).map(|limit| (limit, false)),
        }
    }

    fn update(
        &self,
        b: &mut Builder,
        phase: Phase,
        index: usize,
        w: NodeId,
        g: NodeId,
    ) -> Result<Option<Updated>, crate::optim::Error> {
        Model::update(self, b, phase, index, (w, g)).map_err(first)
    }

    fn averages(&self) -> Vec<String> {
        self.train.averages.iter().map(|a| a.name.clone()).collect()
    }

    fn average_update(
        &self,
        b: &mut Builder,
        average: usize,
        index: usize,
        w: NodeId,
    ) -> Result<Vec<State>, crate::optim::Error> {
        Model::average_update(self, b, average, index, w).map_err(first)
    }

    fn average_finish(
        &self,
        b: &mut Builder,
        average: usize,
        index: usize,
        w: NodeId,
    ) -> Result<NodeId, crate::optim::Error> {
        Model::average_finish(self, b, average, index, w).map_err(first)
    }

    fn tap(&self, index: usize) -> Option<&str> {
        self.quantize.taps[index].as_ref().map(|tap| tap.name.as_str())
    }

    fn quantise(&self, b: &mut Builder, index: usize, w: NodeId) -> Result<Option<Quantised>, crate::optim::Error> {
        Model::quantise(self, b, index, w).map_err(first)
    }
}

/// The first diagnostic as an assembly error.
fn first(list: Vec<Diagnostic>) -> crate::optim::Error {
    let d = list.into_iter().next();
    let message = d.as_ref().map_or_else(|| "elaboration failed".to_string(), |d| d.message.clone());
    let span = d.and_then(|d| d.span()).map(|s| (s.file.0, s.start, s.end));
    crate::optim::Error { message, span }
}
