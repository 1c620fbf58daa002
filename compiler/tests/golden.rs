//! vrl11 against what the published system of PR #1016 computes (tests/golden/S1016), through the f64 interpreter.
//!
//! The graphs are those of the assembly, at precision f32; the interpreter computes them in f64, so differences are those of the
//! published fp32 run, and the tolerances are its recommended ones.

mod common;

use common::{S1016, distance, model, relative, safetensors, token_inputs};
use golf_compiler::graph::interpret::{Contents, Tensor, interpret};
use golf_compiler::graph::ir::{BufferKind, DType, Graph};
use golf_compiler::lang::Model;
use golf_compiler::optim::{Assembly, Sizes, assemble};
use golf_runtime::plan::Init;
use std::collections::BTreeMap;

fn case() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(common::repository("tests/golden/S1016/case.json")).unwrap()).unwrap()
}

fn tolerance(name: &str) -> f64 {
    case()["recommended_tolerances"][name].as_f64().unwrap()
}

fn assembled(m: &Model) -> Assembly {
    let sizes = Sizes {
        ranks: 1,
        seq: 64,
        micro_rows: 2,
        window: 64,
        score_rows: 2,
        adapt_rows: 2,
        calibrate_rows: 0,
        adapt: true,
    };
    assemble(m, &sizes, DType::F32).unwrap_or_else(|e| panic!("{}", e.message))
}

fn graph<'a>(a: &'a Assembly, name: &str) -> &'a Graph {
    a.graphs.iter().find(|g| g.name == name).unwrap_or_else(|| panic!("no graph {name}"))
}

fn golden(file: &str) -> BTreeMap<String, Tensor> {
    safetensors(&format!("tests/golden/S1016/{file}.safetensors"))
}

/// Runs a graph with what it needs from `contents`.
fn run(g: &Graph, contents: &Contents) -> Contents {
    let wanted = g.buffers.iter().filter(|b| b.kind != BufferKind::Const);
    let inputs = wanted.filter_map(|b| contents.get(&b.name).map(|t| (b.name.clone(), t.clone()))).collect();
    interpret(g, &inputs).unwrap_or_else(|e| panic!("{}: {e}", g.name))
}

#[test]
fn parameters_are_those_of_the_published_system() {
    let m = model("vrl11", &S1016);
    let weights = golden("weights");
    assert_eq!(m.parameters.len(), weights.len());
    for p in &m.parameters {
        let dims: Vec<usize> = p.axes.iter().map(|(_, n)| *n).collect();
        assert_eq!(weights.get(&p.name).map(|w| &w.dims), Some(&dims), "{}", p.name);
    }
    // Groups: the optimiser each parameter has.
    for (name, group) in case()["parameter_groups"].as_object().unwrap() {
        let p = m.parameters.iter().find(|p| p.name == *name).unwrap();
        let wanted = match group.as_str().unwrap() {
            "muon" => "matrices",
            "tok" => "embeddings",
            _ if p.unused => "unused",
            _ => "scalars",
        };
        assert_eq!(p.group, wanted, "{name}");
    }
}

#[test]
fn loss_nll_gradients_and_optimizer_steps_agree() {
    let m = model("vrl11", &S1016);
    let a = assembled(&m);
    let weights = golden("weights");
    let mut state: Contents = weights.clone();
    state.extend(token_inputs(&golden("tokens")["tokens"]));
    state.insert("scale".to_string(), Tensor::scalar(1.0 / 128.0));
    for s in &a.states {
        let dims: Vec<usize> = s.axes.iter().map(|(_, n)| *n).collect();
        let init = match &s.init {
            Init::Fill(x) => Tensor::fill(&dims, *x),
            Init::CopyOf(name) => weights[name].clone(),
            other => panic!("{other:?}"),
        };
        state.insert(s.name.clone(), init);
    }
    let (micro, update) = (graph(&a, "train.micro"), graph(&a, "train.update"));
    let forward = golden("forward");
    let steps = golden("optim_f32");
    for step in 1..=3 {
        let out = run(micro, &state);
        let loss = out["nll"].data.iter().sum::<f64>() / 128.0;
        let published = steps["losses"].data[step - 1];
        assert!((loss - published).abs() < 2e-6 * published, "step {step}: loss {loss}, published {published}");
        if step == 1 {
            compare_gradients(&out, &forward);
        }
        let mut with_gradients = state.clone();
        with_gradients.extend(out.into_iter().filter(|(name, _)| name.starts_with("grad.")));
        let after = run(update, &with_gradients);
        let norm = after["grad_norm"].data[0];
        let published = steps["grad_norms"].data[step - 1];
        assert!((norm - published).abs() < 1e-5 * published, "step {step}: norm {norm}, published {published}");
        state.extend(after.into_iter().filter(|(name, _)| !name.starts_with("grad")));
        if step != 2 {
            compare_steps(&m, &state, &weights, &steps, step);
        }
    }
}

fn compare_gradients(out: &Contents, forward: &BTreeMap<String, Tensor>) {
    let nll = distance(&out["nll"].data, &forward["nll"].data);
    assert!(nll < tolerance("nll_abs"), "nll differs by {nll}");
    let limit = tolerance("grad_rel_l2_per_tensor");
    let mut compared = 0;
    for (name, published) in forward.iter().filter(|(name, _)| name.starts_with("grad.")) {
        let Some(found) = out.get(name) else {
            assert_eq!(name, "grad.blocks.0.attn.vr_lambda");
            assert!(published.data.iter().all(|x| *x == 0.0));
            continue;
        };
        let error = relative(&found.data, &published.data);
        assert!(error < limit, "{name}: {error}");
        compared += 1;
    }
    assert_eq!(compared, 131);
}

fn compare_steps(m: &Model, state: &Contents, before: &Contents, steps: &BTreeMap<String, Tensor>, step: usize) {
    for p in &m.parameters {
        let published = &steps[&format!("step{step}.param.{}", p.name)];
        let change =
            |after: &Tensor| -> Vec<f64> { after.data.iter().zip(&before[&p.name].data).map(|(x, y)| x - y).collect() };
        let error = relative(&change(&state[&p.name]), &change(published));
        let rule = if p.group == "matrices" { "muon" } else { "adamw" };
        let limit = tolerance(&format!("optim_f32_step{step}_{rule}_update_rel_l2"));
        assert!(error < limit, "step {step}, {}: {error}", p.name);
    }
}

#[test]
fn quantisers_give_the_published_codes() {
    let m = model("vrl11", &S1016);
    let a = assembled(&m);
    let (weights, quant) = (golden("weights"), golden("quant"));
    let mut compared = 0;
    for p in &m.parameters {
        let Some(codes) = quant.get(&format!("q.{}", p.name)) else { continue };
        let out = run(graph(&a, &format!("pack.{}", p.name)), &weights);
        assert_eq!(out["codes"].data, codes.data, "{}", p.name);
        assert_eq!(out["scale"].data, quant[&format!("scale.{}", p.name)].data, "{}", p.name);
        let error = distance(&out["dequant"].data, &quant[&format!("dequant.{}", p.name)].data);
        assert!(error < 1e-6, "{}: {error}", p.name);
        compared += 1;
    }
    assert_eq!(compared, 27);
}
