//! The whole training step of vrl11 in bf16 as GPU kernels, on the emulator, against what the published program computes in bf16
//! (tests/golden/S1016h): loss and every gradient within 2 of the units that case.json defines, the published program's own bf16-to-f32
//! distance.
#![cfg(feature = "mlir")]

mod common;

use common::{S1016H, model, relative, repository, safetensors, token_inputs};
use golf_compiler::emulate::{self, Options};
use golf_compiler::graph::interpret::Tensor;
use golf_compiler::graph::ir::{BufferKind, DType};
use golf_compiler::kernel::Target;
use golf_compiler::kernel::gpu::Arch;
use golf_compiler::optim::{Sizes, assemble};
use golf_compiler::schedule::{self, schedule_with};

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
    let m = model("vrl11", &S1016H);
    let sizes = Sizes { ranks: 1, seq: 128, micro_rows: 1, window: 128, score_rows: 1, adapt_rows: 1, adapt: true };
    let a = assemble(&m, &sizes, DType::Bf16).unwrap_or_else(|e| panic!("{}", e.message));
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
