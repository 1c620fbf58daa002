//! A program that keeps the documents of a row apart, on the interpreter, the CPU and the emulated GPU, against the same documents in rows of
//! their own and plain causal attention.
#![cfg(feature = "mlir")]

mod common;

use common::{distance, relative, token_inputs};
use golf_compiler::emulate;
use golf_compiler::graph::interpret::{Contents, Tensor, interpret};
use golf_compiler::graph::ir::{BufferKind, DType, Graph};
use golf_compiler::kernel::{Target, gpu::Arch};
use golf_compiler::lang::{Input, Model, load};
use golf_compiler::mlir::execute::Executable;
use golf_compiler::mlir::{object, tier::Tier};
use golf_compiler::optim::{Sizes, assemble};
use golf_compiler::schedule::{self, Scheduled, schedule_with};
use golf_grammar::{SourceMap, render_all};

/// Tokens of a row: several blocks of every kernel.
const T: usize = 150;

/// Token 1 begins a document.
const PROGRAM: &str = "\
use std.{norm, optim}
const vocab = 24, dim = 32, seq = 150, apart = true
axis t = seq, v = vocab, d = dim, h = 4, kv = 2, g = 2, hd = 8, q = 32, e = 16
model(tokens: [b t]) -> logits [b t v] {
    param emb[v, d] ~ normal(1)  in tables
    param wq[q, d]  ~ orthogonal in matrices
    param wk[e, d]  ~ orthogonal in matrices
    param wv[e, d]  ~ orthogonal in matrices
    param wo[d, q]  ~ orthogonal in matrices
    let ids = if apart { cumsum(cast(tokens == 1, i32) over t) } else { none }
    let x = rms_norm(gather(emb, tokens over v) over d)
    let qs = rms_norm(split(dot(x, wq), q -> h hd) over hd)
    let ks = rms_norm(split(dot(x, wk), e -> kv hd) over hd)
    let vs = split(dot(x, wv), e -> kv hd)
    let y = attend(split(qs, h -> kv g), ks, vs, causal, scale: 1, document: ids over t, hd)
    dot(rms_norm(x + dot(merge(y, kv g hd -> q), wo) over d), emb over d)
}
train { data = stream(\"a\"), batch = 150, stop = 1s, sgd on all { lr = 1 } }
quantize { f16 on all }
evaluate { data = stream(\"b\"), window = 150 }
";

fn program(sets: &[&str]) -> Model {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let mut map = SourceMap::new();
    let input = Input { path: "documents.golf", bytes: PROGRAM.as_bytes(), sets: &sets };
    load(&mut map, &input).unwrap_or_else(|list| panic!("{}", render_all(&map, &list, false)))
}

/// The training graph on `rows` rows.
fn micro(m: &Model, rows: usize, precision: DType) -> Graph {
    let sizes = Sizes {
        ranks: 1,
        seq: T,
        micro_rows: rows,
        window: T,
        score_rows: 1,
        adapt_rows: 1,
        calibrate_rows: 0,
        adapt: false,
    };
    let a = assemble(m, &sizes, precision).unwrap_or_else(|e| panic!("{}", e.message));
    a.graphs.into_iter().find(|g| g.name == "train.micro").unwrap()
}

fn scheduled(g: &Graph, target: Target) -> Scheduled {
    schedule_with(g, &schedule::Options { target, ..Default::default() }).unwrap_or_else(|e| panic!("{e}"))
}

/// A number that looks random, in [0, 1).
fn noise(i: usize) -> f64 {
    let x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x >> 11) as f64 / (1u64 << 53) as f64
}

/// A document: its first token is 1, no other is.
fn document(number: usize, length: usize) -> Vec<f64> {
    let token = |i: usize| if i == 0 { 1.0 } else { (2.0 + 22.0 * noise(1000 * number + i)).floor() };
    (0..length).map(token).collect()
}

/// Rows of T tokens and a last target, from parts.
fn inputs(rows: &[Vec<f64>]) -> Contents {
    let all: Vec<f64> = rows.iter().flat_map(|r| r.iter().copied().chain(std::iter::repeat(7.0)).take(T + 1)).collect();
    let mut inputs = token_inputs(&Tensor::new(&[rows.len(), T + 1], all).unwrap());
    for (name, dims) in [("emb", [24, 32]), ("wq", [32, 32]), ("wk", [16, 32]), ("wv", [16, 32]), ("wo", [32, 32])] {
        let weight = |i: usize| {
            let x = (noise(i + 10_000 * name.len() + usize::from(name.as_bytes()[1])) - 0.5) * 0.6;
            f64::from(half::bf16::from_f64(x).to_f32())
        };
        inputs.insert(name.to_string(), Tensor::from_fn(&dims, weight));
    }
    inputs.insert("scale".to_string(), Tensor::new(&[], vec![1.0 / (rows.len() * T) as f64]).unwrap());
    inputs
}

const LENGTHS: [usize; 4] = [70, 5, 75, 150];

/// Two rows: three documents, and one as long as the row.
fn together() -> Contents {
    let d: Vec<_> = LENGTHS.iter().enumerate().map(|(n, length)| document(n, *length)).collect();
    inputs(&[[&d[0][..], &d[1], &d[2]].concat(), d[3].clone()])
}

/// Losses of the documents of [`together`] in rows of their own, as they follow each other there. The last token of a document is left out: its target
/// is the next one's first.
fn expected() -> Vec<Option<f64>> {
    let rows: Vec<_> = LENGTHS.iter().enumerate().map(|(n, length)| document(n, *length)).collect();
    let g = micro(&program(&["apart=false"]), rows.len(), DType::F32);
    let nll = interpret(&g, &inputs(&rows)).unwrap()["nll"].data.clone();
    let one = |n: usize| (0..LENGTHS[n]).map(move |i| (n, i));
    (0..LENGTHS.len()).flat_map(one).map(|(n, i)| (i + 1 < LENGTHS[n]).then(|| nll[n * T + i])).collect()
}

/// Losses found where there is one to compare with, and those expected.
fn compared(found: &[f64]) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(found.len(), 2 * T);
    found.iter().zip(expected()).filter_map(|(x, y)| Some((*x, y?))).unzip()
}

#[test]
fn documents_of_one_row_have_the_losses_of_rows_of_their_own() {
    let m = program(&[]);
    // In real numbers, then in f32 and in bf16 on the CPU, then in bf16 on the GPU.
    let exact = interpret(&micro(&m, 2, DType::F32), &together()).unwrap();
    let (found, want) = compared(&exact["nll"].data);
    assert!(distance(&found, &want) < 1e-12, "{}", distance(&found, &want));
    let mixed = interpret(&micro(&program(&["apart=false"]), 2, DType::F32), &together()).unwrap();
    assert!(distance(&compared(&mixed["nll"].data).0, &want) > 0.1, "documents make no difference");
    for (precision, tolerance) in [(DType::F32, 1e-5), (DType::Bf16, 0.03)] {
        let s = scheduled(&micro(&m, 2, precision), Target::Cpu);
        let code = Executable::new(&s, Tier::V3, &object::Options { threads: 1, cache: None }).unwrap();
        let found = code.run(&together()).unwrap().0;
        close(&found, &exact, &want, tolerance);
    }
    let s = scheduled(&micro(&m, 2, DType::Bf16), Target::Gpu(Arch::Sm90a));
    let found = emulate::graph(&s, Arch::Sm90a, &together(), &emulate::Options::default()).unwrap();
    close(&found, &exact, &want, 0.03);
}

/// Losses against rows of their own, gradients against the interpreter.
fn close(found: &Contents, exact: &Contents, want: &[f64], tolerance: f64) {
    let off = distance(&compared(&found["nll"].data).0, want);
    assert!(off < tolerance, "losses are off by {off}");
    let gradients: Vec<&String> = exact.keys().filter(|name| name.starts_with("grad.")).collect();
    assert_eq!(gradients.len(), 5);
    for name in gradients {
        let off = relative(&found[name].data, &exact[name].data);
        assert!(off < tolerance, "{name} is off by {off}");
    }
}

#[test]
fn a_few_steps_train_it_as_the_interpreter_does() {
    let g = micro(&program(&[]), 2, DType::F32);
    let s = scheduled(&g, Target::Cpu);
    let code = Executable::new(&s, Tier::V3, &object::Options { threads: 1, cache: None }).unwrap();
    let run = |inputs: &Contents| code.run(inputs).unwrap().0;
    let exact = |inputs: &Contents| interpret(&g, inputs).unwrap();
    let losses = |step: &dyn Fn(&Contents) -> Contents| -> Vec<f64> {
        let mut state = together();
        let one = |_| {
            let out = step(&state);
            for b in g.buffers.iter().filter(|b| b.kind == BufferKind::Param) {
                let gradient = &out[&format!("grad.{}", b.name)].data;
                let weights = &mut state.get_mut(&b.name).unwrap().data;
                weights.iter_mut().zip(gradient).for_each(|(w, g)| *w -= 0.5 * g);
            }
            out["nll"].data.iter().sum::<f64>() / (2 * T) as f64
        };
        (0..4).map(one).collect()
    };
    let (found, want) = (losses(&run), losses(&exact));
    assert!(distance(&found, &want) < 1e-4, "{found:?} {want:?}");
    assert!(want[3] < want[0] - 0.1, "{want:?}");
}
