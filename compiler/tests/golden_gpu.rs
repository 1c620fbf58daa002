//! The whole training step of vrl11 in bf16 as GPU kernels, on the emulator, against what the published program computes in bf16
//! (tests/golden/S1016h): loss and every gradient within 2 of the units that case.json defines, the published program's own bf16-to-f32
//! distance. And its quantisers, which give the CPU's bits.
#![cfg(feature = "mlir")]

mod common;

use common::{S1016H, model, relative, repository, safetensors, token_inputs};
use golf_compiler::emulate::{self, Options};
use golf_compiler::graph::interpret::{Contents, Tensor};
use golf_compiler::graph::ir::{BufferKind, DType};
use golf_compiler::graph::text::canonical;
use golf_compiler::kernel::Target;
use golf_compiler::kernel::gpu::Arch;
use golf_compiler::mlir::{execute::Executable, object, tier::Tier};
use golf_compiler::optim::{Assembly, Sizes, assemble};
use golf_compiler::schedule::{self, schedule_with};
use golf_runtime::plan::PACK;
use std::collections::BTreeSet;

fn assembly() -> Assembly {
    let sizes = Sizes {
        ranks: 1,
        seq: 128,
        micro_rows: 1,
        window: 128,
        score_rows: 1,
        adapt_rows: 1,
        calibrate_rows: 0,
        adapt: true,
    };
    assemble(&model("vrl11", &S1016H), &sizes, DType::Bf16).unwrap_or_else(|e| panic!("{}", e.message))
}

#[test]
fn the_emulated_step_is_the_published_one_within_its_own_rounding() {
    step(Arch::Sm90a);
}

#[test]
fn so_is_the_step_of_every_gpu_since_ampere() {
    step(Arch::Sm80);
}

fn step(arch: Arch) {
    let case: serde_json::Value =
        serde_json::from_slice(&std::fs::read(repository("tests/golden/S1016h/case.json")).unwrap()).unwrap();
    let golden = safetensors("tests/golden/S1016h/forward_bf16.safetensors");
    let a = assembly();
    let graph = a.graphs.iter().find(|g| g.name == "train.micro").unwrap();
    let options = schedule::Options { target: Target::Gpu(arch), ..Default::default() };
    let s = schedule_with(graph, &options).unwrap_or_else(|e| panic!("{e}"));
    let mut inputs = token_inputs(&safetensors("tests/golden/S1016h/tokens.safetensors")["tokens"]);
    inputs.extend(safetensors("tests/golden/S1016h/weights.safetensors"));
    inputs.insert("scale".to_string(), Tensor::new(&[], vec![1.0 / 128.0]).unwrap());
    for b in graph.buffers.iter().filter(|b| b.kind == BufferKind::Param) {
        assert!(inputs.contains_key(&b.name), "no weights for {}", b.name);
    }
    let got = emulate::graph(&s, arch, &inputs, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let nll = &got["nll"].data;
    let loss = nll.iter().sum::<f64>() / nll.len() as f64;
    let rule = &case["recommended_tolerances"]["bf16"];
    let off = (loss - golden["loss"].data[0]).abs();
    assert!(off <= rule["loss_abs"].as_f64().unwrap(), "loss {loss}, published {}", golden["loss"].data[0]);
    let mut worst = (0.0, String::new());
    let mut count = 0;
    for (name, unit) in case["bf16_unit"].as_object().unwrap() {
        let Some(want) = golden.get(&format!("grad.{name}")) else { continue };
        let Some(grad) = got.get(&format!("grad.{name}")) else {
            assert!(case["no_gradient_tensors"].as_array().unwrap().iter().any(|n| n == name), "no gradient of {name}");
            continue;
        };
        let units = relative(&grad.data, &want.data) / unit.as_f64().unwrap();
        assert!(units <= 2.0, "gradient of {name}: {units:.2} units");
        count += 1;
        if units > worst.0 {
            worst = (units, name.clone());
        }
    }
    assert!(count > 130, "{count} gradients");
    println!("loss off {off:.5}, worst gradient {} at {:.2} units of 2", worst.1, worst.0);
}

/// One quantiser of each shape and rule, on the CPU and emulated: the same codes and scales. Sums of squared errors, by which a percentile is chosen, are
/// added in another order on a GPU; here no two of them are so close that it shows.
#[test]
fn emulated_quantisers_give_the_bits_of_the_cpu() {
    let weights = safetensors("tests/golden/S1016h/weights.safetensors");
    let (mut seen, mut emulated) = (BTreeSet::new(), 0);
    for g in assembly().graphs.iter().filter(|g| g.name.starts_with(PACK) && seen.insert(canonical(g))) {
        let name = &g.name[PACK.len()..];
        let inputs = Contents::from([(name.to_string(), weights[name].clone())]);
        let schedule = |target| {
            let options = schedule::Options { target, ..Default::default() };
            schedule_with(g, &options).unwrap_or_else(|e| panic!("{e}"))
        };
        let options = object::Options { threads: 1, cache: None };
        let cpu = schedule(Target::Cpu);
        let (want, _) = Executable::new(&cpu, Tier::V3, &options).and_then(|x| x.run(&inputs)).unwrap();
        let gpu = schedule(Target::Gpu(Arch::Sm90a));
        for step in &gpu.steps {
            let job = object::Job { kernel: step.kernel.code(), tier: Tier::Gpu(Arch::Sm90a) };
            let code = object::text(&job, object::Text::Mlir).unwrap();
            assert!(!code.contains("approx"), "{}", step.kernel.text());
        }
        let got = emulate::graph(&gpu, Arch::Sm90a, &inputs, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        for output in ["codes", "scale"] {
            assert!(got[output].data == want[output].data, "{output} of {name}");
        }
        assert!(want["codes"].data.iter().any(|c| *c != 0.0), "{name}");
        emulated += 1;
    }
    assert!(emulated > 5, "{emulated} quantisers");
}
