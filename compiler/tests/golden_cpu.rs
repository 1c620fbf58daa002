//! The executable golfc makes of vrl11 against what the published system of PR #1016 computes (tests/golden/S1016), at `--precision f32`.
//!
//! Everything goes through the command lines a user has: `golfc`, then `probe`, `pack` and `score` of the executable. Tolerances are the
//! `recommended_tolerances` of case.json. The worst difference of each comparison is printed (`cargo test -- --nocapture`).
#![cfg(feature = "mlir")]

mod common;

use common::{S1016, distance, relative, repository, safetensors_at};
use golf_compiler::graph::interpret::Tensor;
use golf_runtime::files::Faults;
use golf_runtime::safetensors::{self, save_all};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

type Tensors = BTreeMap<String, Tensor>;

fn json(file: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(repository(&format!("tests/golden/S1016/{file}.json"))).unwrap()).unwrap()
}

fn tolerance(name: &str) -> f64 {
    json("case")["recommended_tolerances"][name].as_f64().unwrap_or_else(|| panic!("case.json has no tolerance {name}"))
}

fn golden(file: &str) -> Tensors {
    safetensors_at(&path(file))
}

fn path(file: &str) -> PathBuf {
    repository(&format!("tests/golden/S1016/{file}.safetensors")).canonicalize().unwrap()
}

/// A folder of this test, empty.
fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden_cpu").join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Runs a program that must succeed.
fn succeed(program: &Path, arguments: &[&str]) {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(
        out.status.success(),
        "{} {}: {}\n{}{}",
        program.display(),
        arguments.join(" "),
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Compiles a program; gives the executable.
fn compile(dir: &Path, file: &Path, sets: &[&str]) -> PathBuf {
    let out = dir.join("run");
    let mut arguments = vec![file.to_str().unwrap(), "--precision", "f32", "-o", out.to_str().unwrap()];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    succeed(Path::new(env!("CARGO_BIN_EXE_golfc")), &arguments);
    out
}

/// vrl11 at the sizes of S1016, compiled once for all tests.
fn vrl11() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let adapt = ["chunk=128", "lr=0.01", "epochs=2", "batch=32"].map(|a| format!("evaluate.adapt.{a}"));
        let sets: Vec<&str> = S1016.into_iter().chain(adapt.iter().map(String::as_str)).collect();
        compile(&folder("vrl11"), &repository("models/vrl11.golf"), &sets)
    })
}

/// A probe of the golden weights and tokens.
fn probe(dir: &Path, name: &str, more: &[&str]) -> Tensors {
    let out = dir.join(name);
    let (weights, tokens) = (path("weights"), path("tokens"));
    let mut arguments =
        vec!["probe", "--weights", weights.to_str().unwrap(), "--tokens", tokens.to_str().unwrap(), "--out"];
    arguments.push(out.to_str().unwrap());
    arguments.extend(more);
    if !more.contains(&"--precision") {
        arguments.extend(["--precision", "f32"]);
    }
    succeed(vrl11(), &arguments);
    safetensors_at(&out)
}

/// The largest of some differences, with its name.
#[derive(Default)]
struct Worst {
    value: f64,
    name: String,
    count: usize,
    over: Vec<String>,
}

impl Worst {
    fn add(&mut self, name: &str, value: f64, limit: f64) {
        self.count += 1;
        if value > limit || value.is_nan() {
            self.over.push(format!("{name}: {value:.3e}, allowed {limit:.0e}"));
        }
        if value > self.value || value.is_nan() || self.name.is_empty() {
            (self.value, self.name) = (value, name.to_string());
        }
    }

    /// Says what the worst is, and fails if anything was over its limit.
    fn check(&self, what: &str) {
        println!("{what}: {} compared, worst {:.3e} ({})", self.count, self.value, self.name);
        assert!(
            self.over.is_empty(),
            "{what}: {} of {} too far off\n{}",
            self.over.len(),
            self.count,
            self.over.join("\n")
        );
    }
}

#[test]
fn loss_nll_and_every_gradient_agree() {
    let found = probe(&folder("gradients"), "probe.safetensors", &[]);
    let published = golden("forward");
    let mut worst = Worst::default();
    worst.add("loss", relative(&found["loss"].data, &published["loss"].data), tolerance("loss_rel"));
    worst.check("loss, relative");
    let mut worst = Worst::default();
    worst.add("nll", distance(&found["nll"].data, &published["nll"].data), tolerance("nll_abs"));
    worst.check("nll, absolute");
    let mut worst = Worst::default();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (name, gradient) in published.iter().filter(|(name, _)| name.starts_with("grad.")) {
        let Some(mine) = found.get(name) else { panic!("probe gives no {name}") };
        assert_eq!(mine.dims, gradient.dims, "{name}");
        // A gradient that is zero by rule must be exactly that; `relative` is then the absolute size.
        let limit = if gradient.data.iter().all(|x| *x == 0.0) { 0.0 } else { tolerance("grad_rel_l2_per_tensor") };
        worst.add(name, relative(&mine.data, &gradient.data), limit);
        ours.extend_from_slice(&mine.data);
        theirs.extend_from_slice(&gradient.data);
    }
    worst.check("gradients, relative l2");
    assert_eq!(worst.count, 132);
    let mut worst = Worst::default();
    worst.add("all gradients", relative(&ours, &theirs), tolerance("grad_rel_l2_all"));
    worst.check("all gradients as one vector, relative l2");
}

/// The update of each parameter, p - p0.
fn updates<'a>(after: &'a Tensors, prefix: &'a str, before: &'a Tensors) -> impl Fn(&str) -> Vec<f64> + 'a {
    move |name| {
        let p = after.get(&format!("{prefix}{name}")).unwrap_or_else(|| panic!("no {prefix}{name}"));
        p.data.iter().zip(&before[name].data).map(|(x, y)| x - y).collect()
    }
}

fn steps_agree(steps: usize) {
    let n = steps.to_string();
    let found = probe(&folder(&format!("steps{steps}")), "probe.safetensors", &["--steps", &n]);
    let (published, before) = (golden("optim_f32"), golden("weights"));
    let groups = json("case")["parameter_groups"].clone();
    let mut worst = Worst::default();
    for i in 0..steps {
        let scalar = |t: &Tensors, name: &str| vec![t[name].data[i]];
        let loss = relative(&scalar(&found, "losses"), &scalar(&published, "losses"));
        worst.add(&format!("loss of step {}", i + 1), loss, tolerance("loss_rel"));
        let norm = relative(&scalar(&found, "grad_norms"), &scalar(&published, "grad_norms"));
        worst.add(&format!("gradient norm of step {}", i + 1), norm, tolerance("grad_rel_l2_all"));
    }
    worst.check(&format!("losses and gradient norms of {steps} steps, relative"));
    let prefix = format!("step{steps}.param.");
    let (ours, theirs) = (updates(&found, "param.", &before), updates(&published, &prefix, &before));
    let mut by_rule: BTreeMap<&str, Worst> = BTreeMap::new();
    let mut absolute = Worst::default();
    for (name, group) in groups.as_object().unwrap() {
        let rule = if group == "muon" { "muon" } else { "adamw" };
        let (mine, right) = (ours(name), theirs(name));
        // What no optimiser steps stays as it is, bit for bit.
        let still = right.iter().all(|x| *x == 0.0);
        let limit = if still { 0.0 } else { tolerance(&format!("optim_f32_step{steps}_{rule}_update_rel_l2")) };
        by_rule.entry(rule).or_default().add(name, relative(&mine, &right), limit);
        absolute.add(name, distance(&mine, &right), tolerance(&format!("optim_f32_step{steps}_param_abs")));
    }
    assert_eq!(by_rule["muon"].count + by_rule["adamw"].count, before.len());
    by_rule.iter().for_each(|(rule, worst)| worst.check(&format!("{rule} updates after {steps} steps, relative l2")));
    absolute.check(&format!("parameters after {steps} steps, absolute"));
}

#[test]
fn parameter_updates_after_one_step_agree() {
    steps_agree(1);
}

#[test]
fn parameter_updates_after_three_steps_agree() {
    steps_agree(3);
}

#[test]
fn f32_bits_depend_neither_on_threads_nor_on_the_cpu_kind() {
    let dir = folder("bits");
    let first = probe(&dir, "a", &["--steps", "1", "--threads", "1", "--isa", "cpu-v3"]);
    let mut others = vec![vec!["--steps", "1", "--threads", "3", "--isa", "cpu-v3"]];
    if std::arch::is_x86_feature_detected!("avx512bf16") {
        others.push(vec!["--steps", "1", "--threads", "2", "--isa", "cpu-avx512bf16"]);
    }
    for (i, more) in others.iter().enumerate() {
        let other = probe(&dir, &i.to_string(), more);
        assert_eq!(first.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
        for (name, tensor) in &first {
            let bits = |t: &Tensor| t.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(tensor), bits(&other[name]), "{name} with {more:?}");
        }
    }
}

/// Codes and scales of every tensor in `names` against the golden ones; dequantised values where codes agree.
fn quantised_agree(found: &Tensors, published: &Tensors, names: &[(String, String)]) {
    let (mut codes, mut scales, mut values) = (Worst::default(), Worst::default(), Worst::default());
    for (ours, theirs) in names {
        let get = |kind: &str| {
            let mine = found.get(&format!("{kind}.{ours}")).unwrap_or_else(|| panic!("pack gives no {kind}.{ours}"));
            let right = &published[&format!("{kind}.{theirs}")];
            assert_eq!(mine.dims, right.dims, "{kind}.{ours}");
            (mine, right)
        };
        let (q, right) = get("q");
        let wrong = q.data.iter().zip(&right.data).filter(|(a, b)| a != b).count();
        codes.add(ours, wrong as f64 / q.data.len() as f64, tolerance("quant_code_mismatch_fraction"));
        let (s, right) = get("scale");
        let differ = |(a, b): &(&f64, &f64)| a != b;
        let rows = s.data.iter().zip(&right.data).filter(differ).count();
        // fp16 values one unit apart: equal as integers but for one.
        let bits = |x: f64| i32::from(half::f16::from_f64(x).to_bits());
        let apart = s.data.iter().zip(&right.data).map(|(a, b)| (bits(*a) - bits(*b)).abs()).max().unwrap_or(0);
        assert!(apart <= 1, "{ours}: a scale is {apart} fp16 units off");
        scales.add(ours, rows as f64 / s.data.len() as f64, 0.01);
        let (d, right) = get("dequant");
        let row = d.data.len() / s.data.len();
        let same = |i: &usize| q.data[*i] == published[&format!("q.{theirs}")].data[*i];
        let agree = |i: &usize| s.data[i / row] == published[&format!("scale.{theirs}")].data[i / row];
        let off = |i: usize| (d.data[i] - right.data[i]).abs();
        values.add(ours, (0..d.data.len()).filter(same).filter(agree).map(off).fold(0.0, f64::max), 0.0);
    }
    codes.check("codes, fraction that differs");
    scales.check("scales, fraction of rows that differ");
    values.check("dequantised values, absolute");
}

#[test]
fn packing_gives_the_published_codes() {
    let dir = folder("codes");
    let (out, codes, weights) = (dir.join("out"), dir.join("codes"), path("weights"));
    let text = |p: &Path| p.to_str().unwrap().to_string();
    let arguments = ["pack", "--out", &text(&out), "--weights", &text(&weights), "--codes", &text(&codes)];
    succeed(vrl11(), &[&arguments[..], &["--precision", "f32"]].concat());
    let published = golden("quant");
    let names: Vec<(String, String)> = published
        .keys()
        .filter_map(|k| k.strip_prefix("q."))
        .filter(|name| !name.starts_with("extra."))
        .map(|name| (name.to_string(), name.to_string()))
        .collect();
    assert_eq!(names.len(), 27);
    quantised_agree(&safetensors_at(&codes), &published, &names);
    assert!(out.join("artifact.golfa").metadata().unwrap().len() > 100_000);
}

/// A program whose only other parameters are two copies of the heavy-tailed matrix, one for each quantiser.
const HEAVY: &str = "\
use std.{optim, quant}
const vocab = 16, dim = 16, seq = 16
axis t = seq, v = vocab, d = dim, r = 48, c = 160
model(tokens: [b t]) -> logits [b t v] {
    param emb[v, d] ~ normal(0.02) in tables
    param six[r, c] ~ zeros in matrices
    param eight[r, c] ~ zeros in embeddings
    let x = gather(emb, tokens over v) * (1 + sum(six) + sum(eight))
    dot(x, emb over d)
}
train { data = stream(\"train_*.bin\"), batch = 16, stop = 1s, sgd on all { lr = 1 } }
quantize {
    int6 on matrices { percentiles = [0.999, 0.9995, 0.9999, 0.99999, 1.0], floor = 1 / 31 }
    int8 on embeddings { percentile = 0.9999984 }
    f16 on rest
}
evaluate { data = stream(\"val_*.bin\"), window = 16 }
";

#[test]
fn packing_a_heavy_tailed_matrix_gives_the_published_codes() {
    let dir = folder("heavy");
    let (file, weights, codes) = (dir.join("heavy.golf"), dir.join("weights"), dir.join("codes"));
    std::fs::write(&file, HEAVY).unwrap();
    let program = compile(&dir, &file, &[]);
    let published = golden("quant");
    let heavy: Vec<f32> = published["weight.extra.heavy"].data.iter().map(|x| *x as f32).collect();
    let tensors = [
        ("emb".to_string(), vec![16, 16], safetensors::Tensor::F32(vec![0.5; 256])),
        ("six".to_string(), vec![48, 160], safetensors::Tensor::F32(heavy.clone())),
        ("eight".to_string(), vec![48, 160], safetensors::Tensor::F32(heavy)),
    ];
    save_all(&weights, "weights", &Faults::none(), &tensors).unwrap();
    let text = |p: &Path| p.to_str().unwrap().to_string();
    let out = dir.join("out");
    succeed(&program, &["pack", "--out", &text(&out), "--weights", &text(&weights), "--codes", &text(&codes)]);
    let names = [("six", "extra.heavy"), ("eight", "extra.int8")].map(|(a, b)| (a.to_string(), b.to_string()));
    quantised_agree(&safetensors_at(&codes), &published, &names);
}

/// A SentencePiece model whose pieces have the given byte counts, leading spaces and boundaries.
fn tokenizer(base: &[f64], space: &[f64], boundary: &[f64]) -> Vec<u8> {
    let field = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
    let mut out = Vec::new();
    for id in 0..base.len() {
        // Texts without a space before them, of one byte and of more, unlike each other; the single space is U+2581 alone.
        let body: String = match base[id] as usize {
            0 => String::new(),
            1 => char::from(b'!' + id as u8 % 94).to_string(),
            2 => char::from_u32(0x100 + id as u32).unwrap().to_string(),
            n => format!("{id:03}{}", "x".repeat(n - 3)),
        };
        let (text, kind) = match (boundary[id] != 0.0, space[id] != 0.0) {
            // Type 2 is the unknown piece, 3 a control piece.
            (true, _) => (format!("<control {id}>"), if id == 3 { 2 } else { 3 }),
            (_, true) => (format!("\u{2581}{body}"), 1),
            _ => (body, 1),
        };
        out.extend(field(1, &[field(1, text.as_bytes()), vec![0x18, kind]].concat()));
    }
    out
}

/// A data directory with the golden validation stream and a tokenizer of its byte tables.
fn data(dir: &Path, eval: &Tensors) -> PathBuf {
    let data = dir.join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::copy(repository("tests/golden/S1016/val.bin"), data.join("fineweb_val_000000.bin")).unwrap();
    let tables = ["base_bytes", "leading_space", "boundary"].map(|name| eval[name].data.as_slice());
    std::fs::write(data.join("golden.model"), tokenizer(tables[0], tables[1], tables[2])).unwrap();
    data
}

#[test]
fn sliding_and_adapted_scores_agree() {
    let dir = folder("score");
    let eval = golden("eval");
    let text = |p: &Path| p.to_str().unwrap().to_string();
    let (data, out, nll, weights) = (data(&dir, &eval), dir.join("out"), dir.join("nll"), path("weights"));
    let files = ["--data", &text(&data), "--out", &text(&out), "--weights", &text(&weights), "--nll", &text(&nll)];
    succeed(vrl11(), &[&["score", "--precision", "f32"][..], &files].concat());
    let found = safetensors_at(&nll);
    let published = json("eval")["fp32"].clone();
    let (mut losses, mut sums) = (Worst::default(), Worst::default());
    let bytes: f64 = eval["bytes"].data.iter().sum();
    for name in ["sliding", "ttt"] {
        let key = format!("{name}.nll");
        let limit = tolerance(&format!("eval_{name}_nll_abs"));
        losses.add(&key, distance(&found[&key].data, &eval[&key].data), limit);
        let bpb = found[&key].data.iter().sum::<f64>() / bytes / std::f64::consts::LN_2;
        let off = (bpb - published[name]["bpb"].as_f64().unwrap()).abs();
        sums.add(&format!("{name} bpb"), off, tolerance(&format!("eval_{name}_bpb_abs")));
    }
    losses.check("nll of every target, absolute");
    sums.check("bits per byte, absolute");
    // Every update of the adaptation: its loss is a mean of nll, its norm one of gradients.
    let mut updates = Worst::default();
    let loss = distance(&found["ttt.train_losses"].data, &eval["ttt.train_losses"].data);
    updates.add("loss, absolute", loss, tolerance("eval_ttt_nll_abs"));
    let norm = relative(&found["ttt.grad_norms"].data, &eval["ttt.grad_norms"].data);
    updates.add("gradient norm, relative", norm, tolerance("grad_rel_l2_per_tensor"));
    updates.check("updates of the adaptation");

    // The receipt: chunks, learning rates, exact bytes.
    let receipt = std::fs::read_to_string(out.join("receipt.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = receipt.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let number = |v: &serde_json::Value| f64::from_bits(u64::from_str_radix(v.as_str().unwrap(), 16).unwrap());
    let chunks: Vec<_> = lines.iter().filter(|l| l.get("sum_nll").is_some() && l.get("index").is_some()).collect();
    assert_eq!(chunks.len(), 12);
    let (mut worst, mut first) = (Worst::default(), 0);
    for (i, chunk) in chunks.iter().enumerate() {
        let (sum, count) = (number(&chunk["sum_nll"]), chunk["count"].as_f64().unwrap());
        let off = (sum - eval["ttt.chunk_nll_sums"].data[i]).abs() / count;
        worst.add(&format!("mean of chunk {i}"), off, tolerance("eval_ttt_nll_abs"));
        let bytes: f64 = eval["bytes"].data[first..first + count as usize].iter().sum();
        assert_eq!(chunk["bytes"].as_f64().unwrap(), bytes, "bytes of chunk {i}");
        first += count as usize;
        let rate = chunk["update"].as_object().and_then(|u| u.iter().find(|(k, _)| k.ends_with(".lr")));
        match eval["ttt.lr"].data.get(i) {
            // Computed in f64 by both; printed cosines differ in the last digits.
            Some(lr) => assert!((number(rate.unwrap().1) - lr).abs() < 1e-12, "learning rate of chunk {i}"),
            None => assert!(rate.is_none(), "the last chunk must not be trained on"),
        }
    }
    worst.check("chunks of the receipt, absolute");
    assert_eq!(first, 1472);
}
