//! What calibration gathers, against sums written out here: the graph `calibrate` on the interpreter, as kernels of the CPU, and on the emulated GPU.

mod common;

use common::relative;
use golf_compiler::graph::interpret::{Contents, Tensor, interpret};
use golf_compiler::graph::ir::{BufferKind, DType, EffectMode, Graph};
use golf_compiler::graph::{text, verify::verify};
use golf_compiler::lang::{Input, Model, load};
use golf_compiler::optim::{Sizes, assemble};
use golf_grammar::{SourceMap, render_all};

const T: usize = 24;
const V: usize = 40;
const D: usize = 32;
const Q: usize = 48;
const F: usize = 64;

/// The MLP is visited twice; `wq` and `wk` are multiplied with the same, `wo` with their product; `emb` and `lone` are looked up too, and `lone` is not
/// calibrated. What nothing reads any more (the second `dot` with `wo`) does not count.
const PROGRAM: &str = "\
use std.{mlp, optim}
const seq = 24
axis t = seq, v = 40, d = 32, q = 48, f = 64
quantizer weighed<R, C, K>(w: [R C], inputs: [C K]; damp = 0.01) {
    let (order, live, upper) = inverse_factor(inputs, damp, true)
    let scale = cast(max(abs(w) over C) + 0 * sum(upper) + 0 * sum(cast(order, f32)), f16)
    let q = round(w * live / scale)
    (codes: cast(q, i8), scale: scale, dequant: q * scale)
}
model(tokens: [b t]) -> logits [b t v] {
    param emb[v, d]  ~ zeros in tables
    param lone[v, d] ~ zeros in rest_of_it
    param wq[q, d]   ~ zeros in matrices
    param wk[q, d]   ~ zeros in matrices
    param wo[d, q]   ~ zeros in matrices
    let mlp = mlp(d, f, slope: 0.5) as \"mlp\"
    let x = gather(emb, tokens over v) + 0 * gather(lone, tokens over v)
    x = x + mlp(x)
    x = x + mlp(x)
    let y = dot(x, wq) * dot(x, wk)
    let _ = dot(2 * y, wo)
    x = x + dot(y, wo over q)
    dot(x, emb over d) + 0 * dot(x, lone over d)
}
train { data = stream(\"a\"), batch = 48, stop = 1s, compute = bf16, sgd on all { lr = 1 } }
quantize { weighed on matrices or tables, f16 on rest, calibrate = stream(\"c\") { tokens = 96 } }
evaluate { data = stream(\"b\"), window = 24 }
";

fn program(sets: &[&str]) -> Model {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut map = SourceMap::new();
    let input = Input { path: "calibrate.golf", bytes: PROGRAM.as_bytes(), sets: &sets };
    load(&mut map, &input).unwrap_or_else(|list| panic!("{}", render_all(&map, &list, false)))
}

fn graphs(precision: DType) -> Vec<Graph> {
    let sizes = Sizes {
        ranks: 1,
        seq: T,
        micro_rows: 2,
        window: T,
        score_rows: 1,
        adapt_rows: 1,
        calibrate_rows: 2,
        adapt: false,
    };
    assemble(&program(&[]), &sizes, precision).unwrap_or_else(|e| panic!("{}", e.message)).graphs
}

fn calibrate(precision: DType) -> Graph {
    graphs(precision).into_iter().find(|g| g.name == "calibrate").expect("the program calibrates")
}

/// A number that looks random, in [-1, 1), a multiple of 1/8: the embeddings are what they are in bf16 too.
fn noise(i: usize) -> f64 {
    let x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((x >> 60) as f64) / 8.0 - 1.0
}

/// Parameters by name.
fn weights() -> Contents {
    let some = |seed: usize, dims: &[usize], by: f64| Tensor::from_fn(dims, |i| by * noise(seed + i));
    Contents::from([
        ("emb".to_string(), some(0, &[V, D], 1.0)),
        ("lone".to_string(), some(5000, &[V, D], 1.0)),
        ("wq".to_string(), some(10_000, &[Q, D], 0.125)),
        ("wk".to_string(), some(20_000, &[Q, D], 0.125)),
        ("wo".to_string(), some(30_000, &[D, Q], 0.125)),
        ("mlp.fc.weight".to_string(), some(40_000, &[F, D], 0.125)),
        ("mlp.proj.weight".to_string(), some(50_000, &[D, F], 0.125)),
    ])
}

fn tokens(seed: usize) -> Tensor {
    Tensor::from_fn(&[2, T], |i| ((seed + 7 * i + i * i) % V) as f64)
}

/// `w x`
fn times(w: &Tensor, x: &[f64]) -> Vec<f64> {
    w.data.chunks(x.len()).map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

fn add(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(a, b)| a + b).collect()
}

/// Sums of squares of what each tapped parameter is multiplied with, over these tokens, in f64.
fn expected(w: &Contents, all: &[&Tensor]) -> Contents {
    let sizes = [("emb", D), ("wq", D), ("wo", Q), ("mlp.fc.weight", D), ("mlp.proj.weight", F)];
    let mut sums: Contents =
        sizes.iter().map(|(name, n)| (format!("tap.{name}"), Tensor::fill(&[*n, *n], 0.0))).collect();
    let mut square = |name: &str, x: &[f64]| {
        let sum = sums.get_mut(&format!("tap.{name}")).unwrap();
        for (i, row) in sum.data.chunks_mut(x.len()).enumerate() {
            row.iter_mut().zip(x).for_each(|(h, y)| *h += x[i] * y);
        }
    };
    for id in all.iter().flat_map(|t| &t.data).map(|id| *id as usize) {
        let mut x = w["emb"].data[id * D..(id + 1) * D].to_vec();
        for _ in 0..2 {
            square("mlp.fc.weight", &x);
            let up = times(&w["mlp.fc.weight"], &x);
            let h: Vec<f64> = up.iter().map(|u| if *u >= 0.0 { u * u } else { 0.25 * u * u }).collect();
            square("mlp.proj.weight", &h);
            x = add(&x, &times(&w["mlp.proj.weight"], &h));
        }
        square("wq", &x);
        let (q, k) = (times(&w["wq"], &x), times(&w["wk"], &x));
        let y: Vec<f64> = q.iter().zip(&k).map(|(a, b)| a * b).collect();
        square("wo", &y);
        square("emb", &add(&x, &times(&w["wo"], &y)));
    }
    sums
}

/// Runs a graph on a batch, after sums of another, and compares with the sums of both.
fn agrees(run: impl Fn(&Contents) -> Contents, tolerance: f64, what: &str) {
    let (a, b) = (tokens(3), tokens(11));
    let mut contents = weights();
    contents.extend(expected(&weights(), &[&a]));
    contents.insert("tokens".to_string(), b.clone());
    let found = run(&contents);
    for (name, sum) in &expected(&weights(), &[&a, &b]) {
        let off = relative(&found[name].data, &sum.data);
        assert!(off <= tolerance, "{what}: {name} is {off:.2e} off");
    }
}

#[test]
fn settings_of_calibration_have_defaults_and_can_be_set() {
    let said = |sets: &[&str]| {
        let c = program(sets).quantize.calibrate.unwrap();
        (c.data, c.sequences, c.reserve)
    };
    let stream = |name: &str, sequences: u64, reserve: f64| (name.to_string(), sequences, reserve);
    // 2% of the second that `train.stop` gives.
    assert_eq!(said(&[]), stream("c", 4, 0.02));
    let more = ["quantize.calibrate.tokens=seq", "quantize.calibrate.reserve=0.5s", "quantize.calibrate.pattern=\"d\""];
    assert_eq!(said(&more), stream("d", 1, 0.5));
    let bare = "quantize.calibrate=stream(\"e\")";
    assert_eq!(said(&[bare]), stream("e", 128, 0.02));
    assert_eq!(said(&[bare, "quantize.calibrate.tokens=48"]), stream("e", 2, 0.02));
}

#[test]
fn calibration_sums_the_squares_of_what_parameters_are_multiplied_with() {
    let g = calibrate(DType::F32);
    let mut written: Vec<&str> = g
        .effects
        .iter()
        .map(|e| {
            assert_eq!(e.mode, EffectMode::Accumulate);
            assert_eq!(g.buffers[e.buffer.0 as usize].kind, BufferKind::Grad);
            g.buffers[e.buffer.0 as usize].name.as_str()
        })
        .collect();
    written.sort_unstable();
    // `wk` shares with `wq`; nothing else survives, above all no logits.
    assert_eq!(written, ["tap.emb", "tap.mlp.fc.weight", "tap.mlp.proj.weight", "tap.wo", "tap.wq"]);
    agrees(|x| interpret(&g, x).unwrap(), 1e-12, "interpreter");
}

#[test]
fn graphs_of_calibration_and_packing_can_be_printed_and_read_back() {
    let all = graphs(DType::Bf16);
    for g in all.iter().filter(|g| g.name == "calibrate" || g.name.starts_with("pack.")) {
        verify(g).unwrap();
        let again = text::parse(&text::print(g)).unwrap_or_else(|e| panic!("{}: {e}", g.name));
        assert_eq!(again, *g, "{}", g.name);
    }
    let inputs = |name: &str| -> Vec<String> {
        let g = all.iter().find(|g| g.name == name).unwrap();
        let size = |b: &golf_compiler::graph::ir::Buffer| -> Vec<usize> {
            b.ty.axes.iter().map(|a| g.axes[a.0 as usize].size).collect()
        };
        let mine = g.buffers.iter().filter(|b| b.kind == BufferKind::Input);
        mine.map(|b| format!("{} {:?} {:?}", b.name, b.ty.dtype, size(b))).collect()
    };
    assert_eq!(inputs("pack.wo"), ["order I32 [48]", "live F32 [48]", "upper F32 [48, 48]"]);
    assert_eq!(inputs("pack.wk"), ["order I32 [32]", "live F32 [32]", "upper F32 [32, 32]"]);
}

#[cfg(feature = "mlir")]
mod kernels {
    use super::*;
    use golf_compiler::emulate;
    use golf_compiler::kernel::{Kernel, Target, gpu::Arch};
    use golf_compiler::mlir::execute::Executable;
    use golf_compiler::mlir::{object, tier::Tier};
    use golf_compiler::schedule::{self, Scheduled, schedule_with};

    /// Every sum is a contraction that continues the chain of its buffer: seven, as the MLP is visited twice.
    fn scheduled(target: Target, precision: DType) -> Scheduled {
        let options = schedule::Options { target, ..Default::default() };
        let s = schedule_with(&calibrate(precision), &options).unwrap_or_else(|e| panic!("{e}"));
        let chains = s.steps.iter().filter(|s| matches!(&s.kernel, Kernel::Gemm(g) if g.accumulate)).count();
        assert_eq!(chains, 7, "{target:?}");
        s
    }

    #[test]
    fn kernels_agree_with_the_sums() {
        // bf16 rounds what is multiplied: 2^-9 at most for each factor, before and inside the layers.
        for (precision, tolerance) in [(DType::F32, 1e-5), (DType::Bf16, 1e-2)] {
            let s = scheduled(Target::Cpu, precision);
            let options = object::Options { threads: 1, cache: None };
            let code = Executable::new(&s, Tier::V3, &options).unwrap();
            agrees(|x| code.run(x).unwrap().0, tolerance, "CPU");
        }
        for arch in Arch::ALL {
            let s = scheduled(Target::Gpu(arch), DType::Bf16);
            let run = |x: &Contents| emulate::graph(&s, arch, x, &emulate::Options::default());
            agrees(|x| run(x).unwrap_or_else(|e| panic!("{e}")), 1e-2, arch.name());
        }
    }
}
