//! What a program does with the rows of attention, in attention's own kernel: closed forms, on the CPU and on the emulated GPUs.
#![cfg(feature = "mlir")]

mod common;

use common::relative;
use golf_compiler::emulate;
use golf_compiler::graph::build::Builder;
use golf_compiler::graph::interpret::{Contents, Tensor};
use golf_compiler::graph::ir::{BufferKind, DType};
use golf_compiler::kernel::{Kernel, Target, gpu::Arch};
use golf_compiler::lang::{Input, Model, load};
use golf_compiler::mlir::execute::Executable;
use golf_compiler::mlir::{object, tier::Tier};
use golf_compiler::schedule::{self, Scheduled, schedule_with};
use golf_grammar::{SourceMap, render_all};

/// Rows of two blocks of the CPU's and one and a half of the GPU's warpgroups.
const T: usize = 90;
const HEADS: usize = 4;
const HD: usize = 16;

/// With the identity for `wo` the logits are attention's result.
const PROGRAM: &str = "\
use std.{attention, optim}
const exclusive = false, gated = false, early = false
axis t = 90, v = 64, d = 32, h = 4, kv = 2, g = 2, hd = 16, q = 64, e = 32
model(tokens: [b t]) -> logits [b t v] {
    param emb[v, d] ~ normal(1)  in tables
    param wq[q, d]  ~ orthogonal in matrices
    param wk[e, d]  ~ orthogonal in matrices
    param wv[e, d]  ~ orthogonal in matrices
    param wg[h, d]  ~ zeros      in matrices if gated else unused
    param wo[v, q]  ~ orthogonal in matrices
    let x = gather(emb, tokens over v)
    let qs = split(dot(x, wq over d), q -> h hd)
    let ks = split(dot(x, wk over d), e -> kv hd)
    let vs = split(dot(x, wv over d), e -> kv hd)
    let gate = sigmoid(dot(x, wg over d) + 4)
    let y = attend(split(qs, h -> kv g), ks, vs, causal over t, hd)
    if exclusive { y = xsa(y, vs over hd) }
    if gated and not early { y = y * split(gate, h -> kv g) }
    let z = if early { merge(merge(y, kv g -> h) * gate, h hd -> q) } else { merge(y, kv g hd -> q) }
    dot(z, wo over q)
}
train { data = stream(\"a\"), batch = 90, stop = 1s, sgd on all { lr = 1 } }
quantize { f16 on all }
evaluate { data = stream(\"b\"), window = 90 }
";

fn program(sets: &[&str]) -> Model {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut map = SourceMap::new();
    let input = Input { path: "finish.golf", bytes: PROGRAM.as_bytes(), sets: &sets };
    load(&mut map, &input).unwrap_or_else(|list| panic!("{}", render_all(&map, &list, false)))
}

/// The forward graph as kernels.
fn forward(sets: &[&str], precision: DType, target: Target) -> Scheduled {
    let mut b = Builder::new("forward", precision);
    let f = program(sets).forward(&mut b, 2, T).unwrap_or_else(|list| panic!("{}", list[0].message));
    let axes = b.axes(f.logits).to_vec();
    let out = b.buffer("logits", DType::F32, &axes, BufferKind::Output).unwrap();
    b.assign(out, f.logits).unwrap();
    let options = schedule::Options { target, ..Default::default() };
    schedule_with(&b.finish(), &options).unwrap_or_else(|e| panic!("{e}"))
}

/// A number that looks random, in [-1, 1).
fn noise(i: usize) -> f64 {
    let x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((x >> 11) as f64 / (1u64 << 52) as f64) - 1.0
}

/// Weights that bf16 holds; the gate's are zero, as they are at first.
fn inputs() -> Contents {
    let mut all = Contents::new();
    all.insert("tokens".into(), Tensor::from_fn(&[2, T], |i| ((noise(i) + 1.0) * 32.0).floor()));
    for (name, rows) in [("emb", 64), ("wq", 64), ("wk", 32), ("wv", 32)] {
        let salt = 10_000 * usize::from(name.as_bytes()[1]);
        let weight = |i: usize| half::bf16::from_f64(0.6 * noise(salt + i)).to_f64();
        all.insert(name.into(), Tensor::from_fn(&[rows, 32], weight));
    }
    all.insert("wg".into(), Tensor::from_fn(&[4, 32], |_| 0.0));
    all.insert("wo".into(), Tensor::from_fn(&[64, 64], |i| f64::from(i / 64 == i % 64)));
    all
}

/// The values of a position and key/value head.
fn value(inputs: &Contents, position: usize, kv: usize) -> Vec<f64> {
    let (emb, w) = (&inputs["emb"].data, &inputs["wv"].data);
    let x = &emb[32 * inputs["tokens"].data[position] as usize..][..32];
    let one = |i: usize| w[32 * (kv * HD + i)..][..32].iter().zip(x).map(|(a, b)| a * b).sum();
    (0..HD).map(one).collect()
}

/// Whether attention has an epilogue, and whether row kernels follow it.
type Kernels = (bool, bool);
const ALONE: Kernels = (false, false);
const FINISHES: Kernels = (true, false);
const APART: Kernels = (false, true);

/// Logits on every target: name, tolerance, values.
fn logits(sets: &[&str], expected: Kernels) -> Vec<(&'static str, f64, Vec<f64>)> {
    let check = |s: &Scheduled| {
        let kernels = || s.steps.iter().map(|s| &s.kernel);
        let epilogue = kernels().any(|k| matches!(k, Kernel::Attend(k) if k.epilogue.is_some()));
        // Rows of positions; weights may be rounded anywhere.
        let row = |k: &Kernel| matches!(k, Kernel::Row(r) if !r.outer.is_empty());
        let mut after = kernels().skip_while(|k| !matches!(k, Kernel::Attend(_)));
        let found = (epilogue, after.any(row));
        assert_eq!(found, expected, "{}", kernels().map(Kernel::text).collect::<String>());
    };
    let mut all = vec![];
    for (name, precision, tolerance) in [("f32", DType::F32, 1e-5), ("bf16", DType::Bf16, 0.01)] {
        let s = forward(sets, precision, Target::Cpu);
        check(&s);
        let code = Executable::new(&s, Tier::V3, &object::Options { threads: 1, cache: None }).unwrap();
        all.push((name, tolerance, code.run(&inputs()).unwrap().0["logits"].data.clone()));
    }
    for arch in Arch::ALL {
        let s = forward(sets, DType::Bf16, Target::Gpu(arch));
        check(&s);
        let out = emulate::graph(&s, arch, &inputs(), &emulate::Options::default()).unwrap();
        all.push((arch.name(), 0.01, out["logits"].data.clone()));
    }
    all
}

/// Rows of a head: position over the batch, head, elements.
fn heads(logits: &[f64]) -> impl Iterator<Item = (usize, usize, &[f64])> {
    logits.chunks(HD).enumerate().map(|(i, row)| (i / HEADS, i % HEADS, row))
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[test]
fn nothing_is_left_along_the_own_value() {
    let inputs = inputs();
    let plain = logits(&["exclusive=true"], FINISHES).into_iter().zip(logits(&[], ALONE));
    for ((name, tolerance, z), (_, _, y)) in plain {
        let mut want = vec![];
        for ((position, head, z), (_, _, y)) in heads(&z).zip(heads(&y)) {
            let v = value(&inputs, position, head / 2);
            let length = dot(&v, &v).sqrt();
            let along = dot(z, &v) / length;
            assert!(along.abs() < tolerance, "{name}: {along} along the value at position {position} of head {head}");
            let part = dot(y, &v) / length;
            want.extend(y.iter().zip(&v).map(|(y, v)| y - part * v / length));
        }
        let off = relative(&z, &want);
        assert!(off < tolerance, "{name} is off by {off}");
        assert!(relative(&z, &y) > 0.1, "{name}: it makes no difference");
    }
}

#[test]
fn a_gate_at_first_lets_its_bias_through() {
    let plain = logits(&[], ALONE);
    // On heads of groups, and on heads merged before, which are no longer attention's rows.
    for (early, kernels) in [("early=false", FINISHES), ("early=true", APART)] {
        for ((name, tolerance, z), (_, _, y)) in logits(&["gated=true", early], kernels).iter().zip(&plain) {
            let want: Vec<f64> = y.iter().map(|y| 0.982013790037908 * y).collect();
            let off = relative(z, &want);
            assert!(off < *tolerance, "{name}, {early}, is off by {off}");
        }
    }
}
