//! The prelude against formulas written out here, and against golden data where there is some.

mod common;

use common::{distance, relative, safetensors};
use golf_compiler::graph::build::Builder;
use golf_compiler::graph::interpret::{Contents, Options, Tensor, interpret, values};
use golf_compiler::graph::ir::{BufferKind, DType, Graph, NodeId};
use golf_compiler::lang::{Input, Model, load};
use golf_compiler::optim::{Phase, read_buffer};
use golf_grammar::{SourceMap, render_all};
use golf_runtime::device::Pool;
use golf_runtime::plan::InverseFactor;
use golf_runtime::quant::inverse::Factor;

const T: usize = 5;
const D: usize = 8;

/// A program whose `model` has the given body after `x` \[b t d\]; `train` and `quantize` blocks are given or the plain ones.
struct Text<'a> {
    uses: &'a str,
    items: &'a str,
    body: &'a str,
    train: &'a str,
    quantize: &'a str,
}

const PLAIN: Text<'static> =
    Text { uses: "", items: "", body: "", train: "sgd on all { lr = 1 }", quantize: "f16 on all" };

impl Text<'_> {
    fn model(&self) -> Model {
        let text = format!(
            "use std.{{optim{}}}\naxis t = {T}, v = 6, d = {D}\n{}\n\
             model(tokens: [b t]) -> logits [b t v] {{\n\
             param emb[v, d] ~ zeros in tables\nlet x = gather(emb, tokens over v)\n{}\ndot(x, emb over d)\n}}\n\
             train {{ data = stream(\"a\"), batch = {T}, stop = 1s, {} }}\nquantize {{ {} }}\n\
             evaluate {{ data = stream(\"b\"), window = {T} }}\n",
            self.uses, self.items, self.body, self.train, self.quantize
        );
        let mut map = SourceMap::new();
        let input = Input { path: "case.golf", bytes: text.as_bytes(), sets: &[] };
        load(&mut map, &input).unwrap_or_else(|list| panic!("{}", render_all(&map, &list, false)))
    }
}

/// A number that looks random, in [-1, 1).
fn noise(i: usize) -> f64 {
    let x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((x >> 11) as f64 / (1u64 << 52) as f64) - 1.0
}

fn table() -> Tensor {
    Tensor::from_fn(&[6, D], noise)
}

const TOKENS: [usize; T] = [3, 1, 5, 5, 2];

/// Logits of one row, from parameters by name.
fn logits(m: &Model, params: &[(&str, Tensor)]) -> Vec<f64> {
    let mut b = Builder::new("forward", DType::F32);
    let f = m.forward(&mut b, 1, T).unwrap_or_else(|list| panic!("{}", list[0].message));
    let mut inputs: Contents = params.iter().map(|(name, t)| (name.to_string(), t.clone())).collect();
    inputs.insert("tokens".to_string(), Tensor::from_fn(&[1, T], |i| TOKENS[i] as f64));
    inputs.insert("emb".to_string(), table());
    values(&b.finish(), &inputs, &[f.logits], &Options::default()).unwrap()[0].data.clone()
}

/// The embedded tokens \[t\]\[d\].
fn embedded() -> Vec<Vec<f64>> {
    TOKENS.iter().map(|id| table().data[id * D..(id + 1) * D].to_vec()).collect()
}

/// Logits of given activations \[t\]\[d\].
fn head(x: &[Vec<f64>]) -> Vec<f64> {
    let e = table().data;
    x.iter().flat_map(|row| (0..6).map(|v| (0..D).map(|d| row[d] * e[v * D + d]).sum()).collect::<Vec<f64>>()).collect()
}

fn close(a: &[f64], b: &[f64]) {
    assert!(distance(a, b) < 1e-12, "{}", distance(a, b));
}

#[test]
fn rms_norm_divides_by_the_root_mean_square() {
    let m = Text { uses: ", norm", body: "x = rms_norm(x over d)", ..PLAIN }.model();
    let x = embedded();
    let y: Vec<Vec<f64>> = x
        .iter()
        .map(|row| {
            let mean = row.iter().map(|v| v * v).sum::<f64>() / D as f64;
            row.iter().map(|v| v / (mean + f64::powi(2.0, -23)).sqrt()).collect()
        })
        .collect();
    close(&logits(&m, &[]), &head(&y));
}

#[test]
fn softmax_and_the_soft_cap_are_what_their_names_say() {
    let m = Text { uses: ", norm, embed", body: "x = softcap(softmax(10 * x over d), 0.25)", ..PLAIN }.model();
    let y: Vec<Vec<f64>> = embedded()
        .iter()
        .map(|row| {
            let sum: f64 = row.iter().map(|v| (10.0 * v).exp()).sum();
            row.iter().map(|v| 0.25 * ((10.0 * v).exp() / sum / 0.25).tanh()).collect()
        })
        .collect();
    close(&logits(&m, &[]), &head(&y));
}

#[test]
fn rope_rotates_the_first_dims_in_halves() {
    for dims in [4, 8] {
        let body = format!("x = rope(x, {dims}, 100 over t, d)");
        let m = Text { uses: ", attention", body: &body, ..PLAIN }.model();
        let mut y = embedded();
        for (t, row) in y.iter_mut().enumerate() {
            let half = dims / 2;
            for i in 0..half {
                let angle = t as f64 * f64::powf(100.0, -2.0 * i as f64 / dims as f64);
                let (a, b) = (row[i], row[i + half]);
                row[i] = a * angle.cos() + b * angle.sin();
                row[i + half] = b * angle.cos() - a * angle.sin();
            }
        }
        close(&logits(&m, &[]), &head(&y));
    }
}

#[test]
fn xsa_leaves_nothing_along_the_own_value() {
    let body = "axis two = 2\nlet y = outer(x, broadcast(1 over two))\nlet v = shift(x, 1 over t) + x\n\
                let z = xsa(y, v over d)\nx = x * sum(dot(z, v over d) over two) + 0.5 * sum(z over two)";
    let m = Text { uses: ", attention", body, ..PLAIN }.model();
    let x = embedded();
    let y: Vec<Vec<f64>> = (0..T)
        .map(|t| {
            let v: Vec<f64> = (0..D).map(|d| x[t][d] + if t > 0 { x[t - 1][d] } else { 0.0 }).collect();
            let vv: f64 = v.iter().map(|a| a * a).sum();
            let xv: f64 = v.iter().zip(&x[t]).map(|(a, b)| a * b).sum();
            // The first term of the body is zero: the projection on v is gone.
            (0..D).map(|d| x[t][d] - xv / vv * v[d]).collect()
        })
        .collect();
    close(&logits(&m, &[]), &head(&y));
}

#[test]
fn the_smear_gate_mixes_in_the_position_before() {
    let body = "let smear = smear_gate(d) as \"smear\"\nx = smear(x over t)";
    let m = Text { uses: ", embed", body, train: "sgd on all { lr = 1 }", ..PLAIN }.model();
    let gate = Tensor::from_fn(&[D], |i| 3.0 * noise(100 + i));
    let x = embedded();
    let y: Vec<Vec<f64>> = (0..T)
        .map(|t| {
            (0..D)
                .map(|d| {
                    let g = 1.0 / (1.0 + (-gate.data[d]).exp());
                    (1.0 - g) * x[t][d] + if t > 0 { g * x[t - 1][d] } else { 0.0 }
                })
                .collect()
        })
        .collect();
    close(&logits(&m, &[("smear.gate", gate)]), &head(&y));
}

#[test]
fn the_bigram_hash_picks_the_published_row() {
    let body = "let bigram = bigram_hash(7, 3, d) as \"bigram\"\nx = bigram(tokens over t)";
    let m = Text { uses: ", embed", body, ..PLAIN }.model();
    let table = Tensor::from_fn(&[7, 3], |i| noise(200 + i));
    let proj = Tensor::from_fn(&[D, 3], |i| noise(300 + i));
    let y: Vec<Vec<f64>> = (0..T)
        .map(|t| {
            // Spec 2.11: int32 arithmetic, the last row at the first position.
            let row = match t {
                0 => 6,
                _ => {
                    ((36313i32.wrapping_mul(TOKENS[t] as i32) ^ 27191i32.wrapping_mul(TOKENS[t - 1] as i32)) % 6)
                        as usize
                }
            };
            let dot = |d: usize| (0..3).map(|c| table.data[row * 3 + c] * proj.data[d * 3 + c]).sum::<f64>();
            (0..D).map(|d| 0.05 * dot(d)).collect()
        })
        .collect();
    let scale = Tensor::scalar(0.05);
    let params =
        [("bigram.embed.weight", table.clone()), ("bigram.proj.weight", proj.clone()), ("bigram.scale", scale)];
    close(&logits(&m, &params), &head(&y));
}

#[test]
fn the_mlp_squares_a_leaky_rectifier() {
    let body = "axis f = 3\nlet mlp = mlp(d, f) as \"mlp\"\nx = mlp(x)";
    let m = Text { uses: ", mlp", body, ..PLAIN }.model();
    let (up, down) = (Tensor::from_fn(&[3, D], |i| noise(400 + i)), Tensor::from_fn(&[D, 3], |i| noise(500 + i)));
    let y: Vec<Vec<f64>> = embedded()
        .iter()
        .map(|row| {
            let h: Vec<f64> = (0..3)
                .map(|f| {
                    let u: f64 = (0..D).map(|d| row[d] * up.data[f * D + d]).sum();
                    if u >= 0.0 { u * u } else { 0.25 * u * u }
                })
                .collect();
            (0..D).map(|d| (0..3).map(|f| h[f] * down.data[d * 3 + f]).sum()).collect()
        })
        .collect();
    close(&logits(&m, &[("mlp.fc.weight", up.clone()), ("mlp.proj.weight", down.clone())]), &head(&y));
}

/// Adds a step of the first parameter and gives the builder with the result.
fn step(m: &Model) -> (Builder, NodeId) {
    let mut b = Builder::new("step", DType::F32);
    let p = &m.parameters[0];
    let w = read_buffer(&mut b, &p.name, &p.axes, DType::F32, BufferKind::Param).unwrap();
    let g = read_buffer(&mut b, "g", &p.axes, DType::F32, BufferKind::Grad).unwrap();
    let updated = m.update(&mut b, Phase::Train, 0, (w, g)).unwrap().unwrap();
    (b, updated.weights)
}

#[test]
fn newton_schulz_agrees_with_the_published_one() {
    let golden = safetensors("tests/golden/S1016/muon.safetensors");
    for shape in ["tall", "wide", "square"] {
        let input = &golden[&format!("in.{shape}")];
        let (r, c) = (input.dims[0], input.dims[1]);
        let items = format!("axis r = {r}, c = {c}\noptimizer ns(w, g; lr) {{ w = newton_schulz(g) + 0 * lr * w }}");
        // The matrix must be stepped, so it must be reached: as a scale of x.
        let body = "param mat[r, c] ~ zeros in matrices\nx = x * (1 + sum(mat))";
        let train = "ns on matrices { lr = 1 }, sgd on rest { lr = 1 }";
        let m = Text { items: &items, body, train, ..PLAIN }.model();
        let index = m.parameters.iter().position(|p| p.name == "mat").unwrap();
        let mut b = Builder::new("step", DType::F32);
        let p = &m.parameters[index];
        let w = read_buffer(&mut b, &p.name, &p.axes, DType::F32, BufferKind::Param).unwrap();
        let g = read_buffer(&mut b, "g", &p.axes, DType::F32, BufferKind::Grad).unwrap();
        let new = m.update(&mut b, Phase::Train, index, (w, g)).unwrap().unwrap().weights;
        let inputs =
            Contents::from([("mat".to_string(), Tensor::fill(&[r, c], 0.0)), ("g".to_string(), input.clone())]);
        let found = values(&b.finish(), &inputs, &[new], &Options::default()).unwrap();
        let error = relative(&found[0].data, &golden[&format!("f32.plain.{shape}")].data);
        assert!(error < 3e-5, "{shape}: {error}");
    }
}

#[test]
fn sgd_with_momentum() {
    let m = Text { train: "sgd on all { lr = 0.5, momentum = 0.9 }", ..PLAIN }.model();
    let (b, new) = step(&m);
    let (w, g) = (table(), Tensor::from_fn(&[6, D], |i| noise(600 + i)));
    let buffer = Tensor::from_fn(&[6, D], |i| noise(700 + i));
    let inputs = Contents::from([
        ("emb".to_string(), w.clone()),
        ("g".to_string(), g.clone()),
        ("sgd.m.emb".to_string(), buffer.clone()),
    ]);
    let found = values(&b.finish(), &inputs, &[new], &Options::default()).unwrap();
    let wanted: Vec<f64> = (0..6 * D).map(|i| w.data[i] - 0.5 * (0.9 * buffer.data[i] + g.data[i])).collect();
    close(&found[0].data, &wanted);
}

#[test]
fn averages_have_their_closed_forms() {
    let train = "sgd on all { lr = 1 }, average = swa(every: 2, below: 0.5) else ema(0.75)";
    let m = Text { uses: ", average", train, ..PLAIN }.model();
    let p = &m.parameters[0];
    // Weights of three steps.
    let steps: Vec<Tensor> = (0..3).map(|s| Tensor::from_fn(&[6, D], |i| noise(1000 * s + i))).collect();
    for (average, prefix) in [(0, "average.swa."), (1, "average.ema.")] {
        let mut state = Contents::new();
        for name in ["total.emb", "mean.emb"] {
            state.insert(
                format!("{prefix}{name}"),
                if name == "mean.emb" { steps[0].clone() } else { Tensor::fill(&[6, D], 0.0) },
            );
        }
        state.insert(format!("{prefix}count"), Tensor::scalar(0.0));
        for w in &steps {
            let mut b = Builder::new("average", DType::F32);
            let node = read_buffer(&mut b, &p.name, &p.axes, DType::F32, BufferKind::Param).unwrap();
            for s in m.average_update(&mut b, average, 0, node).unwrap() {
                let axes: Vec<_> = s.axes.iter().map(|(n, _)| b.find_axis(n).unwrap()).collect();
                let buffer = b.buffer(&s.name, s.dtype, &axes, BufferKind::State).unwrap();
                b.assign(buffer, s.value).unwrap();
            }
            let g = b.finish();
            let mut inputs: Contents =
                g.buffers.iter().filter_map(|x| state.get(&x.name).map(|t| (x.name.clone(), t.clone()))).collect();
            inputs.insert("emb".to_string(), w.clone());
            let after = interpret(&g, &inputs).unwrap();
            state.extend(after.into_iter().filter(|(name, _)| name.starts_with(prefix)));
        }
        let mut b = Builder::new("finish", DType::F32);
        let node = read_buffer(&mut b, &p.name, &p.axes, DType::F32, BufferKind::Param).unwrap();
        let new = m.average_finish(&mut b, average, 0, node).unwrap();
        let g = b.finish();
        let mut inputs: Contents =
            g.buffers.iter().filter_map(|x| state.get(&x.name).map(|t| (x.name.clone(), t.clone()))).collect();
        inputs.insert("emb".to_string(), steps[2].clone());
        let found = values(&g, &inputs, &[new], &Options::default()).unwrap();
        let wanted: Vec<f64> = (0..6 * D)
            .map(|i| {
                let (a, b, c) = (steps[0].data[i], steps[1].data[i], steps[2].data[i]);
                if average == 0 {
                    (a + b + c) / 3.0
                } else {
                    0.75 * (0.75 * (0.75 * a + 0.25 * a) + 0.25 * b) + 0.25 * c
                }
            })
            .collect();
        close(&found[0].data, &wanted);
    }
}

/// The quantiser of a parameter as a graph, and what the host computes for it.
fn packing(m: &Model, name: &str) -> (Graph, Option<InverseFactor>) {
    let index = m.parameters.iter().position(|p| p.name == name).unwrap();
    let mut b = Builder::new("pack", DType::F32);
    let p = &m.parameters[index];
    let node = read_buffer(&mut b, &p.name, &p.axes, DType::F32, BufferKind::Param).unwrap();
    let q = m.quantise(&mut b, index, node).unwrap().unwrap();
    for (name, node, dtype) in
        [("codes", q.codes, DType::I8), ("scale", q.scale, DType::F16), ("dequant", q.dequant, DType::F32)]
    {
        let axes = b.axes(node).to_vec();
        let out = b.buffer(name, dtype, &axes, BufferKind::Output).unwrap();
        b.assign(out, node).unwrap();
    }
    (b.finish(), q.inverse)
}

/// What the graph of a quantiser gives on the interpreter and on the emulated GPU.
fn packed(g: &Graph, inputs: &Contents) -> Vec<(&'static str, Contents)> {
    let all = vec![("interpreter", interpret(g, inputs).unwrap())];
    #[cfg(feature = "mlir")]
    let all = {
        use golf_compiler::{emulate, kernel::Target, kernel::gpu::Arch, schedule};
        let options = schedule::Options { target: Target::Gpu(Arch::Sm90a), ..Default::default() };
        let s = schedule::schedule_with(g, &options).unwrap();
        let gpu = emulate::graph(&s, Arch::Sm90a, inputs, &emulate::Options::default());
        [all, vec![("emulated GPU", gpu.unwrap_or_else(|e| panic!("{e}")))]].concat()
    };
    all
}

#[test]
fn quantisers_agree_on_a_matrix_with_a_heavy_tail() {
    let golden = safetensors("tests/golden/S1016/quant.safetensors");
    let w = &golden["weight.extra.heavy"];
    let rules = [
        ("int6 on tables { percentiles = [0.999, 0.9995, 0.9999, 0.99999, 1.0], floor = 1 / 31 }", "extra.heavy"),
        ("int8 on tables { percentile = 0.9999984 }", "extra.int8"),
    ];
    for (rule, name) in rules {
        let quantize = format!("{rule}, f16 on rest");
        let items = format!("axis r = {}, c = {}", w.dims[0], w.dims[1]);
        let body = "param heavy[r, c] ~ zeros in tables\nx = x * (1 + sum(heavy))";
        let m = Text { uses: ", quant", items: &items, body, quantize: &quantize, ..PLAIN }.model();
        let (g, _) = packing(&m, "heavy");
        for (what, found) in packed(&g, &Contents::from([("heavy".to_string(), w.clone())])) {
            assert_eq!(found["codes"].data, golden[&format!("q.{name}")].data, "{what}");
            assert_eq!(found["scale"].data, golden[&format!("scale.{name}")].data, "{what}");
            assert!(distance(&found["dequant"].data, &golden[&format!("dequant.{name}")].data) < 1e-6, "{what}");
        }
    }
}

/// Codes of the published program S1541, from its weights and its sums of squares.
#[test]
fn calibrated_quantisers_agree_with_the_published_ones() {
    let golden = safetensors("tests/golden/S1541/quant.safetensors");
    let weights = safetensors("tests/golden/S1541/weights.safetensors");
    let cases = [
        ("extra.heavy", "gptq6 on matrices", 31.0),
        ("blocks.3.mlp.proj.weight", "gptq6 on matrices { deviations = 12.85 }", 31.0),
        ("tok_emb.weight", "gptq8 on matrices", 127.0),
    ];
    for (name, rule, most) in cases {
        let mut w = golden.get(&format!("weight.{name}")).unwrap_or_else(|| &weights[name]).clone();
        let (rows, n) = (w.dims[0], w.dims[1]);
        let (mut codes, mut scales) =
            (golden[&format!("q.{name}")].data.clone(), golden[&format!("scale.{name}")].data.clone());
        if name == "extra.heavy" {
            // A row of zeros has codes of 0, and the least scale.
            w.data[5 * n..6 * n].fill(0.0);
            codes[5 * n..6 * n].fill(0.0);
            scales[5] = f64::powi(2.0, -24);
        }
        let m = Text {
            uses: ", quant",
            items: &format!("axis r = {rows}, c = {n}"),
            body: "param mat[r, c] ~ zeros in matrices\nlet wide = broadcast(sum(x over d) over c)\nx = x * (1 + sum(dot(wide, mat) over r))",
            quantize: &format!("{rule}, f16 on rest, calibrate = stream(\"c\")"),
            ..PLAIN
        }
        .model();
        let (g, how) = packing(&m, "mat");
        let how = how.unwrap();
        assert_eq!((how.tap.as_str(), how.damp, how.descending), ("tap.mat", 0.01, true));
        let h: Vec<f32> = golden[&format!("hessian.{name}")].data.iter().map(|x| *x as f32).collect();
        let factor = Factor::new(&h, n, &how, &mut Pool::new(1).unwrap()).unwrap();
        let inputs = Contents::from([
            ("mat".to_string(), w.clone()),
            ("order".to_string(), Tensor::from_fn(&[n], |j| f64::from(factor.order[j]))),
            ("live".to_string(), Tensor::from_fn(&[n], |c| f64::from(factor.live[c]))),
            ("upper".to_string(), Tensor::from_fn(&[n, n], |i| f64::from(factor.upper[i]))),
        ]);
        assert!(codes.iter().any(|c| c.abs() > most / 8.0), "{name}: small codes only");
        for (what, found) in packed(&g, &inputs) {
            assert_eq!(found["scale"].data, scales, "{name}, {what}");
            let off = found["codes"].data.iter().zip(&codes).filter(|(a, b)| a != b).count();
            assert!(off * 1000 <= rows * n, "{name}, {what}: {off} of {} codes", rows * n);
            for (i, x) in found["dequant"].data.iter().enumerate() {
                let wanted = found["codes"].data[i] * scales[i / n];
                assert!((x - wanted).abs() <= 1e-7 * wanted.abs(), "{name}, {what}: {i}");
            }
        }
    }
}

#[test]
fn the_deviation_is_unbiased() {
    let m = Text { uses: ", norm", body: "x = x * deviation(x over d)", ..PLAIN }.model();
    let y: Vec<Vec<f64>> = embedded()
        .iter()
        .map(|row| {
            let mean = row.iter().sum::<f64>() / D as f64;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / (D - 1) as f64;
            row.iter().map(|v| v * variance.sqrt()).collect()
        })
        .collect();
    close(&logits(&m, &[]), &head(&y));
}
