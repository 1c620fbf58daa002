//! From graphs to the plan of an executable.
//!
//! *Takes* the model and its assembled graphs; *gives* the [`Program`] and the kernels to generate; *promises* that every graph was proven legal first.

use crate::graph::ir::{AxisId, BufferKind, DType, Graph, NodeId, Op};
use crate::kernel::gpu::Arch;
use crate::kernel::gpu::tuning::Tuning;
use crate::kernel::{Kernel, Target};
use crate::lang::{Model, codes};
use crate::optim::{self, Assembly, Sizes, Source};
use crate::schedule;
use crate::schedule::plan::{Planned, StateBuffer, predicted_rss};
use crate::valid::{Inputs, LegalityError, Rule, Split, check_score, check_training, perturb};
use golf_grammar::{Diagnostic, FileId, Span};
use golf_runtime::error::Error;
use golf_runtime::plan::{self, Program};
use std::collections::BTreeMap;

/// Everything after the plan: what code generation, `--emit` and `--explain` read.
pub(super) struct Built {
    /// The plan.
    pub program: Program,
    /// Distinct kernels over all variants of the CPU; those of a GPU stand in its plan.
    pub kernels: Vec<Kernel>,
    /// One per variant, as `program.variants`.
    pub planned: Vec<Planned>,
}

impl Built {
    /// The plans for GPUs. Error: the program has none.
    pub(super) fn gpus(&self) -> Result<Vec<(&Planned, Arch)>, Error> {
        let arch = |p: &'_ Planned| if let Target::Gpu(arch) = p.target { Some(arch) } else { None };
        let found: Vec<_> = self.planned.iter().filter_map(|p| Some((p, arch(p)?))).collect();
        match found.is_empty() {
            true => Err(Error::input("this program has no GPU plan: it computes in f32 only")),
            false => Ok(found),
        }
    }
}

/// A broken rule as a message: what breaks it, where, and what the rule says.
fn illegal(e: &LegalityError, graph: &str) -> Diagnostic {
    let path = if e.origin.visit.is_empty() { String::new() } else { format!(" in `{}`", e.origin.visit) };
    let d = Diagnostic::error(codes::ILLEGAL, format!("illegal evaluation: {}{path}", e.why));
    let d = match e.origin.span {
        Some((file, start, end)) => d.at(Span::new(FileId(file), start as usize, end as usize), "breaks the rule here"),
        None => d.in_file(FileId(0)),
    };
    let number = match e.rule {
        Rule::Future | Rule::Rows | Rule::Targets => "rule 1: ",
        Rule::Normalised => "rule 2: ",
        Rule::Validation => "rule 3: ",
        Rule::Documents => "rule of the program: ",
    };
    d.note(format!("{number}{} (found in the graph `{graph}`)", e.rule.statement()))
}

/// The node whose value a graph writes to an output buffer.
fn output(g: &Graph, name: &str) -> Option<NodeId> {
    g.effects.iter().find(|e| g.buffers[e.buffer.0 as usize].name == name).map(|e| e.value)
}

/// The score's logits and vocabulary axis.
fn logits(g: &Graph) -> Option<(NodeId, AxisId)> {
    let nll = &g.nodes[output(g, "nll")?.0 as usize];
    match nll.op {
        Op::CrossEntropy(vocab) => Some((nll.args[0], vocab)),
        _ => None,
    }
}

/// Proves the scoring graph legal and that no training, averaging, calibration or packing graph touches validation data. Errors are those of the
/// first graph that breaks a rule: the others are the same mistake again.
pub(super) fn check_legality(a: &Assembly) -> Result<(), Vec<Diagnostic>> {
    for g in &a.graphs {
        let found = if g.name == "score" || g.name == "adapt.micro" {
            let Some(nll) = output(g, "nll") else {
                let d = Diagnostic::error(codes::ILLEGAL, format!("the graph `{}` has no score", g.name));
                return Err(vec![d.in_file(FileId(0))]);
            };
            // Where the score is no cross-entropy, any axis gives the right error.
            let vocab = logits(g).map_or(AxisId(0), |l| l.1);
            check_score(g, nll, vocab, &Inputs::standard(Split::Val)).map(drop)
        } else {
            check_training(g, &Inputs::standard(Split::Train))
        };
        found.map_err(|errors| errors.iter().map(|e| illegal(e, &g.name)).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The perturbation test of a small form of the model.
pub(super) fn perturbation(model: &Model, sizes: &Sizes) -> Result<(), optim::Error> {
    let sizes = optim::Sizes { score_rows: 2, window: 16, ..*sizes };
    let g = optim::score(model, &sizes, DType::F32)?;
    let (at, vocab) =
        logits(&g).ok_or_else(|| optim::Error { message: "the score is not a cross-entropy".into(), span: None })?;
    let size = g.axes[vocab.0 as usize].size;
    perturb(&g, at, &Inputs::standard(Split::Val), size, 1)
        .map_err(|e| optim::Error { message: format!("perturbation test: {e}"), span: None })
}

/// State layout: parameters, then optimiser states and averages, then adaptation.
fn states(model: &Model, a: &Assembly) -> Vec<StateBuffer> {
    let size = |axes: &[(String, usize)]| axes.iter().map(|x| x.1).collect::<Vec<_>>();
    let params = model.parameters().iter().map(|p| StateBuffer {
        name: p.name.clone(),
        dtype: optim::storage(p.dtype, a.precision),
        shape: size(&p.axes),
        init: p.init.clone(),
        param: Some((p.group.clone(), p.unused)),
    });
    let rest = a.states.iter().map(|s| StateBuffer {
        name: s.name.clone(),
        dtype: s.dtype,
        shape: size(&s.axes),
        init: s.init.clone(),
        param: None,
    });
    params.chain(rest).collect()
}

/// Tokens of a micro-batch that keep a target busy; longer rows run one by one.
fn micro_tokens(target: Target) -> usize {
    match target {
        Target::Cpu => 1024,
        // A published step's logical shard, 48 rows of 2,048: fills 132 multiprocessors and fits in memory.
        Target::Gpu(_) => 98_304,
    }
}

/// How many rows each graph runs at once on a target. On the CPU, training's choice does not show in the bits.
pub(super) fn sizes(model: &Model, target: Target) -> Sizes {
    let (t, e) = (&model.train, &model.evaluate);
    let rows = (t.batch / u64::from(t.ranks) / u64::from(t.seq)).max(1) as usize;
    let fit = |len: usize| (micro_tokens(target) / len).max(1);
    let divisor = |of: usize, most: usize| (1..=most.min(of)).rev().find(|n| of % n == 0).unwrap_or(1);
    let micro_rows = divisor(rows, fit(t.seq as usize));
    let window = e.window as usize;
    let adapt_rows = match (&e.adapt, target) {
        (Some(a), Target::Gpu(_)) => divisor(a.batch as usize, fit(window)),
        _ => 1,
    };
    let calibrate = model.quantize.calibrate.as_ref();
    Sizes {
        ranks: t.ranks,
        seq: t.seq as usize,
        micro_rows,
        window,
        score_rows: fit(window),
        adapt_rows,
        calibrate_rows: calibrate.map_or(0, |c| divisor(c.sequences as usize, micro_rows)),
        adapt: e.adapt.is_some(),
    }
}

/// The graphs of one precision at the sizes of one target.
pub(super) struct Part {
    /// For what.
    pub target: Target,
    /// Rows of its graphs.
    pub sizes: Sizes,
    /// Its graphs.
    pub assembly: Assembly,
}

impl Part {
    /// Assembles the graphs.
    pub(super) fn new(model: &Model, target: Target, precision: DType) -> Result<Part, optim::Error> {
        let sizes = sizes(model, target);
        Ok(Part { target, sizes, assembly: optim::assemble(model, &sizes, precision)? })
    }

    /// Schedules the graphs and lays out their memory.
    pub(super) fn plan(&self, model: &Model, tuning: &Tuning) -> Result<Planned, schedule::Error> {
        let s = &self.sizes;
        let (train, score) = (s.micro_rows as u32, s.score_rows as u32);
        let (adapt, calibrate) = (s.adapt_rows as u32, s.calibrate_rows as u32);
        let precision = if self.assembly.precision == DType::F32 { "f32" } else { "bf16" };
        let kind = (precision, self.target, plan::Rows { train, score, adapt, calibrate });
        schedule::plan::plan(kind, &self.assembly.graphs, &states(model, &self.assembly), tuning)
    }
}

/// Plans every part. Quantisers that a GPU does not take are left to the CPU, with a note on stderr. Any other graph of a GPU that cannot be planned is an
/// error if the user asked for the GPU; otherwise its part is left out, and a note says why.
pub(super) fn plan(
    model: &Model,
    parts: &mut Vec<Part>,
    gpu_by_name: bool,
    tuning: &Tuning,
) -> Result<Vec<Planned>, schedule::Error> {
    let mut planned = Vec::new();
    let mut kept = Vec::new();
    for mut part in parts.drain(..) {
        let mut plan = part.plan(model, tuning);
        if let Err(why) = &plan
            && part.target != Target::Cpu
            && why.graph.starts_with(plan::PACK)
        {
            eprintln!("note: packing runs on the CPU, whatever trains: {why}");
            part.assembly.graphs.retain(|g| !g.name.starts_with(plan::PACK));
            plan = part.plan(model, tuning);
        }
        match plan {
            Ok(p) => {
                planned.push(p);
                kept.push(part);
            }
            Err(why) if part.target != Target::Cpu && !gpu_by_name => {
                eprintln!("note: no code for {}: {why} (--target cpu leaves it out)", part.target.device());
            }
            Err(why) => return Err(why),
        }
    }
    *parts = kept;
    Ok(planned)
}

/// Puts the program together. The first part is the CPU's in the program's own precision.
pub(super) fn build(model: &Model, parts: &[Part], planned: Vec<Planned>) -> Built {
    let assemblies: Vec<&Assembly> = parts.iter().map(|p| &p.assembly).collect();
    let mut kernels: BTreeMap<String, Kernel> = BTreeMap::new();
    for k in planned.iter().filter(|p| p.target == Target::Cpu).flat_map(|p| &p.kernels) {
        kernels.entry(k.symbol()).or_insert_with(|| k.clone());
    }
    let program = Program {
        version: plan::PLAN_VERSION,
        name: model.name.clone(),
        source: model.source.clone(),
        prelude: model.prelude.clone(),
        overrides: model.sets.clone(),
        vocab: model.vocab as u32,
        golfc: env!("CARGO_PKG_VERSION").to_string(),
        glibc: glibc(),
        techniques: model.techniques.clone(),
        predicted_rss: planned.iter().map(|p| predicted_rss(&p.variant, THREADS)).collect(),
        flops_per_token: flops_per_token(assemblies[0]),
        tiers: ["cpu-v3", "cpu-avx512bf16"].map(|name| plan::Tier { name: name.into() }).into(),
        variants: planned.iter().map(|p| p.variant.clone()).collect(),
        train: train(model),
        quantize: quantize(model, assemblies[0]),
        evaluate: evaluate(model),
    };
    Built { program, kernels: kernels.into_values().collect(), planned }
}

/// Threads the memory prediction counts scratch for.
const THREADS: u64 = 2;

fn train(model: &Model) -> plan::Train {
    let t = &model.train;
    let average = |a: &crate::lang::settings::Average| plan::Average {
        name: a.name.clone(),
        when: a.when.clone(),
        update: format!("average.{}.update", a.name),
        finish: format!("average.{}.finish", a.name),
    };
    plan::Train {
        data: t.data.clone(),
        ranks: t.ranks,
        batch: t.batch,
        seq: t.seq,
        stop: t.stop,
        iterations: t.iterations,
        schedule: t.schedule.clone(),
        hypers: t.hypers.clone(),
        averages: t.averages.iter().map(average).collect(),
    }
}

fn quantize(model: &Model, a: &Assembly) -> plan::Quantize {
    let q = &model.quantize;
    let param = |(i, p): (usize, &optim::Parameter)| plan::PackParam {
        name: p.name.clone(),
        rule: model.pack_rule(i).to_string(),
        graph: a.packed[i].then(|| format!("{}{}", plan::PACK, p.name)),
        inverse: a.inverses[i].clone(),
    };
    let params = model.parameters.iter().enumerate().map(param).collect();
    let calibrate =
        q.calibrate.clone().map(|c| plan::Calibrate { data: c.data, sequences: c.sequences, reserve: c.reserve });
    plan::Quantize { params, codec: q.codec.clone(), level: q.level, cap: q.cap, calibrate }
}

fn evaluate(model: &Model) -> plan::Evaluate {
    let e = &model.evaluate;
    let adapt = |a: &crate::lang::settings::Adapt| plan::Adapt {
        chunk: a.chunk,
        epochs: a.epochs,
        batch: a.batch,
        hypers: a.hypers.clone(),
    };
    plan::Evaluate {
        data: e.data.clone(),
        window: e.window,
        stride: e.stride,
        limit: e.limit,
        adapt: e.adapt.as_ref().map(adapt),
    }
}

/// Floating-point operations of a training step's forward and backward pass, per token.
fn flops_per_token(a: &Assembly) -> u64 {
    let Some(g) = a.graphs.iter().find(|g| g.name == "train.micro") else { return 0 };
    let total: u64 = (0..g.nodes.len()).map(|i| crate::graph::ops::flops(g, &g.nodes[i])).sum();
    let tokens = g.buffers.iter().find(|b| b.name == "tokens" && b.kind == BufferKind::Input);
    let tokens: usize = tokens.map_or(1, |b| b.ty.axes.iter().map(|a| g.axes[a.0 as usize].size).product());
    total / tokens as u64
}

#[cfg(feature = "mlir")]
fn glibc() -> String {
    crate::package::glibc()
}

#[cfg(not(feature = "mlir"))]
fn glibc() -> String {
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::gpu::Arch;
    use crate::lang::{Input, load};
    use golf_grammar::SourceMap;

    /// The GPU's plan of a small program that quantises by `rule`.
    fn on_gpu((uses, items, rule): (&str, &str, &str), tuning: &Tuning) -> Planned {
        let text = format!(
            "use std.{{norm, optim{uses}}}\nconst vocab = 64, dim = 64, seq = 64\naxis t = seq, v = vocab, d = dim\n{items}\n\
             model(tokens: [b t]) -> logits [b t v] {{\n    param emb[v, d] ~ normal(0.02) in tables\n    \
             dot(rms_norm(gather(emb, tokens over v) over d), emb over d)\n}}\n\
             train {{ data = stream(\"a\"), batch = 64, adamw on all {{ lr = 0.01 }}, stop = 60s }}\n\
             quantize {{ {rule} on all }}\nevaluate {{ data = stream(\"b\"), window = 64, stride = 64 }}\n"
        );
        let input = Input { path: "case.golf", bytes: text.as_bytes(), sets: &[] };
        let model = load(&mut SourceMap::new(), &input).unwrap_or_else(|list| panic!("{list:?}"));
        let mut parts = vec![Part::new(&model, Target::Gpu(Arch::Sm90a), DType::Bf16).unwrap()];
        let mut planned = plan(&model, &mut parts, true, tuning).unwrap_or_else(|why| panic!("{why}"));
        planned.remove(0)
    }

    #[test]
    fn quantisers_that_a_gpu_does_not_take_are_the_cpus() {
        let packs = |program| {
            let names: Vec<String> =
                on_gpu(program, &Tuning::default()).variant.graphs.into_iter().map(|g| g.name).collect();
            assert!(names.iter().any(|n| n == "train.micro"), "{names:?}");
            names.iter().filter(|n| n.starts_with(plan::PACK)).count()
        };
        assert_eq!(packs((", quant", "", "int8")), 1);
        let odd = "quantizer odd<R, C>(w: [R C]) {\n    let turned = newton_schulz(w)\n    let scale = cast(1 / 31, f16) + 0 * cast(sum(w over C), f16)\n    \
                   let q = clamp(round(turned / scale), -31, 31)\n    (codes: cast(q, i8), scale: scale, dequant: q * scale)\n}";
        assert_eq!(packs(("", odd, "odd")), 0);
    }

    /// models/tiny.golf with calibrated quantisers.
    #[test]
    fn calibration_stands_in_the_plan() {
        let text = include_str!("../../../models/tiny.golf");
        let int6 = "int6 on matrices   { percentiles = [0.999, 0.9995, 0.9999, 0.99999, 1.0], floor = 1 / 31 }";
        let head = "gptq8 on embeddings where name == \"tok_emb.weight\"";
        let calibrate = "\n    calibrate = stream(\"fineweb_train_*.bin\") { tokens = 20 * seq, reserve = 12s }\n    int8 on embeddings";
        let changed =
            [(int6, "gptq6 on matrices { damp = 0.02 }"), ("int8 on embeddings", &*format!("{head}\n{calibrate}"))];
        let text = changed.iter().fold(text.to_string(), |text, (from, to)| {
            assert_eq!(text.matches(from).count(), 1, "{from}");
            text.replace(from, to)
        });
        let input = Input { path: "tiny.golf", bytes: text.as_bytes(), sets: &[] };
        let model = load(&mut SourceMap::new(), &input).unwrap_or_else(|list| panic!("{list:?}"));
        let targets = [(Target::Cpu, DType::Bf16), (Target::Cpu, DType::F32), (Target::Gpu(Arch::Sm90a), DType::Bf16)];
        let mut parts: Vec<_> = targets.into_iter().map(|(t, p)| Part::new(&model, t, p).unwrap()).collect();
        check_legality(&parts[0].assembly).unwrap_or_else(|list| panic!("{list:?}"));
        let planned = plan(&model, &mut parts, true, &Tuning::default()).unwrap_or_else(|why| panic!("{why}"));
        let program = build(&model, &parts, planned).program;
        // The code of a GPU is not made here.
        let variants: Vec<_> = program.variants.iter().filter(|v| v.device == "cpu").cloned().collect();
        let predicted_rss = program.predicted_rss[..variants.len()].to_vec();
        golf_runtime::check::program(&Program { variants, predicted_rss, ..program.clone() }).unwrap();

        let calibrate = program.quantize.calibrate.as_ref().unwrap();
        assert_eq!((&*calibrate.data, calibrate.sequences, calibrate.reserve), ("fineweb_train_*.bin", 20, 12.0));
        // Three layers of four different inputs (q, k and v share one), and the head.
        let mut names = vec!["tap.tok_emb.weight".to_string()];
        for part in ["attn.c_q", "attn.proj", "mlp.fc", "mlp.proj"] {
            names.extend((0..3).map(|i| format!("tap.blocks.{i}.{part}.weight")));
        }
        names.sort_unstable();
        for v in &program.variants {
            let (taps, grads): (Vec<_>, Vec<_>) = v.grads.iter().partition(|b| b.name.starts_with(plan::TAP));
            let mut found: Vec<String> = taps.iter().map(|b| b.name.clone()).collect();
            found.sort_unstable();
            assert_eq!(found, names);
            let end = |list: &[&plan::Buffer]| list.iter().map(|b| b.place.offset + b.bytes() as u64).max().unwrap();
            assert_eq!(taps.iter().map(|b| b.place.offset).min(), Some(0), "they lie where gradients lie");
            assert_eq!(v.grad_bytes, end(&taps).max(end(&grads)).next_multiple_of(64));
            let widest = taps.iter().map(|b| b.shape[0]).max();
            assert_eq!((widest, taps.iter().all(|b| b.shape[0] == b.shape[1])), (Some(384), true));
            // A micro-batch has 4 rows on the CPU and 8 on a GPU; 20 sequences are divided into 4s and 5s.
            assert_eq!(v.rows.calibrate, if v.device == "cpu" { 4 } else { 5 });
            let graph = v.graphs.iter().find(|g| g.name == "calibrate").unwrap();
            let tokens = (&*graph.inputs[0].name, &graph.inputs[0].shape[..]);
            assert_eq!(tokens, ("tokens", &[v.rows.calibrate as usize, 256][..]));
            assert_eq!((graph.inputs.len(), graph.outputs.len()), (1, 0));
            for p in &program.quantize.params {
                let Some(name) = &p.graph else { continue };
                let graph = v.graphs.iter().find(|g| g.name == *name).unwrap();
                let inputs: Vec<&str> = graph.inputs.iter().map(|b| &*b.name).collect();
                let wanted: &[&str] = if p.inverse.is_some() { &["order", "live", "upper"] } else { &[] };
                assert_eq!(inputs, wanted, "{name}");
            }
        }
        let inverse = |name: &str| {
            let p = program.quantize.params.iter().find(|p| p.name == name).unwrap();
            p.inverse.as_ref().map(|i| (&*i.tap, i.damp, i.descending))
        };
        let shared = Some(("tap.blocks.1.attn.c_q.weight", 0.02, true));
        assert_eq!([inverse("blocks.1.attn.c_v.weight"), inverse("blocks.1.attn.c_q.weight")], [shared, shared]);
        assert_eq!(inverse("tok_emb.weight"), Some(("tap.tok_emb.weight", 0.01, true)));
        assert_eq!(inverse("bigram.embed.weight"), None);
        assert_eq!(program.quantize.params.iter().filter(|p| p.inverse.is_some()).count(), 3 * 6 + 1);
    }

    #[test]
    fn a_tuning_table_makes_calls_of_a_library() {
        let program = (", quant", "", "int8");
        let own = on_gpu(program, &Tuning::default());
        assert!(own.variant.kernels.iter().all(|k| k.product.is_none() && k.gpu.is_some()));
        let bare = own.launched().into_iter().find(|k| match k {
            Kernel::Gemm(g) => crate::kernel::gpu::library::product(g).is_ok(),
            _ => false,
        });
        let symbol = bare.expect("a gradient is a bare product").symbol();
        let planned = on_gpu(program, &Tuning::parse(&format!("{symbol} cublaslt")).unwrap());
        let v = &planned.variant;
        let (i, kernel) = v.kernels.iter().enumerate().find(|(_, k)| k.product.is_some()).expect("a product");
        assert!(kernel.gpu.is_none() && kernel.symbol.ends_with("_cublaslt") && kernel.flops > 0, "{kernel:?}");
        let call = v.graphs.iter().flat_map(|g| &g.calls).find(|c| c.kernel as usize == i).expect("a call");
        assert_eq!((call.args.len(), call.tasks), (4, 1));
    }
}
