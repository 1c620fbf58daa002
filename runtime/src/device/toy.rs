//! A program made by hand, for tests without generated code: a bigram model whose table of logits is learnt by momentum SGD.
//!
//! logits\[t\] = table\[token\[t\]\] + bias. Every graph a program can have is here (two logical shards with a clip each, two averages,
//! score, adaptation, packing), so that the runtime is tested for real. Kernels are plain Rust in the generated code's calling
//! convention; tasks are table rows, which only they write.

use std::sync::Arc;

use half::{bf16, f16};

use super::code::{Code, pack};
use super::cuda::fake;
use crate::plan::*;
use crate::quant::feedback;

/// Vocabulary of the bytes tokenizer.
pub const V: usize = 260;
/// Tokens per row, and window.
pub const T: usize = 8;
/// Rows per run of a graph.
pub const ROWS: usize = 2;
const N: usize = T * ROWS;

/// What tests vary.
#[derive(Clone, Debug)]
pub struct Toy {
    /// Logical shards.
    pub ranks: u32,
    /// Tokens a step.
    pub batch: u64,
    /// Budget, seconds.
    pub stop: f64,
    /// Scored targets.
    pub limit: Option<u64>,
    /// Also variants for a GPU, whose code the fake driver of tests runs.
    pub gpu: bool,
    /// Those of a GPU hold the quantiser too.
    pub gpu_packs: bool,
    /// The table's quantiser has feedback, from a calibration on so many sequences.
    pub sequences: Option<u64>,
    /// Seconds kept for calibration.
    pub reserve: f64,
}

/// Damping of the toy's quantiser with feedback.
pub const DAMP: f64 = 0.05;
/// Columns below this are nothing's input.
pub const DEAD: usize = 4;

impl Default for Toy {
    fn default() -> Toy {
        Toy {
            ranks: 2,
            batch: 64,
            stop: 1000.0,
            limit: None,
            gpu: false,
            gpu_packs: true,
            sequences: None,
            reserve: 0.0,
        }
    }
}

/// The pointer of argument `i` as an array of `n` elements.
///
/// # Safety
/// As the plan below promises: the argument has that type and length, and no other task writes what this one uses.
unsafe fn arg<'a, E>(args: *const *mut u8, i: usize, n: usize) -> &'a mut [E] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut((*args.add(i)).cast::<E>(), n) }
}

/// ln(sum(exp(l))) of table row plus bias.
fn log_sum(w: &[f32], b: &[bf16]) -> f32 {
    let l = w.iter().zip(b).map(|(w, b)| w + b.to_f32());
    let max = l.clone().fold(f32::MIN, f32::max);
    max + libm::logf(l.map(|x| libm::expf(x - max)).sum::<f32>())
}

macro_rules! kernels {
    ($($(#[$doc:meta])* fn $name:ident($task:ident, $args:ident) $body:block)*) => {
        $($(#[$doc])* unsafe extern "C" fn $name($task: u64, $args: *const *mut u8, _scratch: *mut u8) {
            let $task = $task as usize;
            // SAFETY: argument types and lengths are those of the plan in this file; a task touches its own row only.
            unsafe { $body }
        })*
        const ENTRIES: &[(&str, KernelFn)] = &[$((stringify!($name), $name)),*];
    };
}

kernels! {
    /// tokens, targets, scale, table, bias, grad.table, nll: forward and backward of the positions whose token is `r`.
    fn micro(r, args) {
        let (x, y) = (arg::<i32>(args, 0, N), arg::<i32>(args, 1, N));
        let scale = arg::<f32>(args, 2, 1)[0];
        let (w, b) = (&arg::<f32>(args, 3, V * V)[r * V..][..V], arg::<bf16>(args, 4, V));
        let g = &mut arg::<f32>(args, 5, V * V)[r * V..][..V];
        let lse = log_sum(w, b);
        for i in (0..N).filter(|&i| x[i] as usize == r) {
            let y = y[i] as usize;
            *(*args.add(6)).cast::<f32>().add(i) = lse - (w[y] + b[y].to_f32());
            for c in 0..V {
                g[c] += scale * (libm::expf(w[c] + b[c].to_f32() - lse) - f32::from(u8::from(c == y)));
            }
        }
    }
    /// tokens, targets, table, bias, nll.
    fn score(r, args) {
        let (x, y) = (arg::<i32>(args, 0, N), arg::<i32>(args, 1, N));
        let (w, b) = (&arg::<f32>(args, 2, V * V)[r * V..][..V], arg::<bf16>(args, 3, V));
        let lse = log_sum(w, b);
        for i in (0..N).filter(|&i| x[i] as usize == r) {
            let y = y[i] as usize;
            *(*args.add(4)).cast::<f32>().add(i) = lse - (w[y] + b[y].to_f32());
        }
    }
    /// grad.table, grad.bias: a bias's gradient is its column's sum.
    fn bias_grad(c, args) {
        let g = arg::<f32>(args, 0, V * V);
        *(*args.add(1)).cast::<f32>().add(c) = (0..V).map(|r| g[r * V + c]).sum();
    }
    /// grad.table, grad.bias, norm, coefficient: clip at 1.
    fn norm(_t, args) {
        let square: f64 = arg::<f32>(args, 0, V * V).iter().chain(arg::<f32>(args, 1, V).iter()).map(|&g| f64::from(g * g)).sum();
        let norm = libm::sqrt(square);
        arg::<f32>(args, 2, 1)[0] = norm as f32;
        arg::<f32>(args, 3, 1)[0] = (1.0 / (norm + 1e-6)).min(1.0) as f32;
    }
    /// grad.table, grad.bias, coefficient, total.table, total.bias: row V is the bias. Two shards.
    fn add_half(r, args) {
        let k = arg::<f32>(args, 2, 1)[0] / 2.0;
        let (g, t) = if r < V {
            (&arg::<f32>(args, 0, V * V)[r * V..][..V], &mut arg::<f32>(args, 3, V * V)[r * V..][..V])
        } else {
            (&*arg::<f32>(args, 1, V), arg::<f32>(args, 4, V))
        };
        t.iter_mut().zip(g).for_each(|(t, g)| *t += k * g);
    }
    /// grad.table, grad.bias, coefficient: the clip in place, for one shard.
    fn clip(r, args) {
        let k = arg::<f32>(args, 2, 1)[0];
        let g = if r < V { &mut arg::<f32>(args, 0, V * V)[r * V..][..V] } else { arg::<f32>(args, 1, V) };
        g.iter_mut().for_each(|g| *g *= k);
    }
    /// lr, momentum, gradient of table and of bias, m of table and of bias, table, bias.
    fn update(r, args) {
        let (lr, momentum) = (arg::<f32>(args, 0, 1)[0], arg::<f32>(args, 1, 1)[0]);
        if r < V {
            let (g, m) = (&arg::<f32>(args, 2, V * V)[r * V..][..V], &mut arg::<f32>(args, 4, V * V)[r * V..][..V]);
            let w = &mut arg::<f32>(args, 6, V * V)[r * V..][..V];
            for c in 0..V {
                m[c] = momentum * m[c] + g[c];
                w[c] -= lr * m[c];
            }
        } else {
            let (g, m, b) = (arg::<f32>(args, 3, V), arg::<f32>(args, 5, V), arg::<bf16>(args, 7, V));
            for c in 0..V {
                m[c] = momentum * m[c] + g[c];
                b[c] = bf16::from_f32(b[c].to_f32() - lr * m[c]);
            }
        }
    }
    /// table, sum, count.
    fn swa(r, args) {
        let (w, s) = (&arg::<f32>(args, 0, V * V)[r * V..][..V], &mut arg::<f32>(args, 1, V * V)[r * V..][..V]);
        s.iter_mut().zip(w).for_each(|(s, w)| *s += w);
        if r == 0 {
            arg::<f32>(args, 2, 1)[0] += 1.0;
        }
    }
    /// sum, count, table.
    fn swa_finish(r, args) {
        let n = arg::<f32>(args, 1, 1)[0];
        let (s, w) = (&arg::<f32>(args, 0, V * V)[r * V..][..V], &mut arg::<f32>(args, 2, V * V)[r * V..][..V]);
        w.iter_mut().zip(s).for_each(|(w, s)| *w = s / n);
    }
    /// table, ema.
    fn ema(r, args) {
        let (w, e) = (&arg::<f32>(args, 0, V * V)[r * V..][..V], &mut arg::<f32>(args, 1, V * V)[r * V..][..V]);
        e.iter_mut().zip(w).for_each(|(e, w)| *e = 0.9 * *e + 0.1 * w);
    }
    /// from, to.
    fn copy(r, args) {
        arg::<f32>(args, 1, V * V)[r * V..][..V].copy_from_slice(&arg::<f32>(args, 0, V * V)[r * V..][..V]);
    }
    /// x, |x|.
    fn abs(r, args) {
        let (x, y) = (&arg::<f32>(args, 0, V * V)[r * V..][..V], &mut arg::<f32>(args, 1, V * V)[r * V..][..V]);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x.abs());
    }
    /// x, row maximum: on the CPU the runtime's.
    fn most(r, args) {
        let x = &arg::<f32>(args, 0, V * V)[r * V..][..V];
        arg::<f32>(args, 1, V)[r] = x.iter().copied().fold(0.0, f32::max);
    }
    /// x, row maximum, codes, scale, dequant: int6 by rows.
    fn int6(r, args) {
        let x = &arg::<f32>(args, 0, V * V)[r * V..][..V];
        let scale = f16::from_f32((arg::<f32>(args, 1, V)[r] / 31.0).max(1e-4));
        *(*args.add(3)).cast::<f16>().add(r) = scale;
        let (codes, back) = (&mut arg::<i8>(args, 2, V * V)[r * V..][..V], &mut arg::<f32>(args, 4, V * V)[r * V..][..V]);
        for c in 0..V {
            codes[c] = libm::rintf(x[c] / scale.to_f32()).clamp(-31.0, 31.0) as i8;
            back[c] = f32::from(codes[c]) * scale.to_f32();
        }
    }
    /// tokens, table, tap.table: x = the table's row of a token, without the first columns; row `r` of the sum of x x.
    fn calibrate(r, args) {
        let (x, w) = (arg::<i32>(args, 0, N), arg::<f32>(args, 1, V * V));
        let h = &mut arg::<f32>(args, 2, V * V)[r * V..][..V];
        for token in x.iter().filter(|_| r >= DEAD) {
            let x = &w[*token as usize * V..][..V];
            (DEAD..V).for_each(|c| h[c] += x[r] * x[c]);
        }
    }
    /// x, row maximum, order, live, upper, codes, scale, dequant: int6 by rows with feedback.
    fn feedback(r, args) {
        let scale = f16::from_f32((arg::<f32>(args, 1, V)[r] / 31.0).max(1e-4));
        *(*args.add(6)).cast::<f16>().add(r) = scale;
        let (order, live, upper) = (arg::<i32>(args, 2, V), arg::<f32>(args, 3, V), arg::<f32>(args, 4, V * V));
        let x: Vec<f32> = arg::<f32>(args, 0, V * V)[r * V..][..V].iter().zip(&*live).map(|(x, l)| x * l).collect();
        let scale = scale.to_f32();
        let back = &mut arg::<f32>(args, 7, V * V)[r * V..][..V];
        feedback::round(&x, &[scale], order, upper, (-31.0, 31.0), &mut vec![[0.0; _]; V], back);
        for (code, back) in arg::<i8>(args, 5, V * V)[r * V..][..V].iter_mut().zip(back) {
            *code = *back as i8;
            *back *= scale;
        }
    }
}

/// Hands out places of one segment.
struct Layout {
    segment: Segment,
    next: u64,
}

impl Layout {
    fn new(segment: Segment) -> Layout {
        Layout { segment, next: 0 }
    }

    fn buffer(&mut self, name: &str, dtype: DType, shape: &[usize]) -> Buffer {
        let place = Place { segment: self.segment, offset: self.next };
        let b = Buffer { name: name.into(), dtype, shape: shape.to_vec(), place };
        self.next = (self.next + b.bytes() as u64).next_multiple_of(64);
        b
    }

    fn f32(&mut self, name: &str, shape: &[usize]) -> Buffer {
        self.buffer(name, DType::F32, shape)
    }
}

fn call(kernel: &str, tasks: usize, args: &[&Buffer]) -> Call {
    let index = ENTRIES.iter().position(|e| e.0 == kernel).unwrap_or(ENTRIES.len());
    Call { kernel: index as u32, tasks: tasks as u32, args: args.iter().map(|b| b.place).collect(), after: Vec::new() }
}

/// A few operations as a host expression, the last being the value.
pub fn expr(ops: Vec<HostOp>) -> HostExpr {
    HostExpr { ops }
}

fn graph(name: &str, scratch: u64, inputs: &[&Buffer], outputs: &[&Buffer], calls: Vec<Call>) -> GraphPlan {
    let list = |b: &[&Buffer]| b.iter().map(|b| (*b).clone()).collect();
    GraphPlan { name: name.into(), calls, inputs: list(inputs), outputs: list(outputs), scratch }
}

fn variant(toy: &Toy, precision: &str) -> Variant {
    let mut s = Layout::new(Segment::State);
    let table = s.f32("table.weight", &[V, V]);
    let bias = s.buffer("bias", DType::Bf16, &[V]);
    let rows = s.f32("unused.mix", &[2, 3]);
    let turn = s.f32("unused.turn", &[6, 4]);
    let (m, m_bias) = (s.f32("sgd.m.table.weight", &[V, V]), s.f32("sgd.m.bias", &[V]));
    let (sum, count) = (s.f32("average.swa.table.weight", &[V, V]), s.f32("average.swa.count", &[]));
    let e = s.f32("average.ema.table.weight", &[V, V]);
    let (am, am_bias) = (s.f32("adapt.m.table.weight", &[V, V]), s.f32("adapt.m.bias", &[V]));
    let mut g = Layout::new(Segment::Grad);
    let (gt, gb) = (g.f32("grad.table.weight", &[V, V]), g.f32("grad.bias", &[V]));
    let one = toy.ranks == 1;
    let (tt, tb) =
        if one { (gt.clone(), gb.clone()) } else { (g.f32("total.table.weight", &[V, V]), g.f32("total.bias", &[V])) };
    let mut x = Layout::new(Segment::Scratch);
    let (tokens, targets) = (x.buffer("tokens", DType::I32, &[ROWS, T]), x.buffer("targets", DType::I32, &[ROWS, T]));
    let (scale, nll) = (x.f32("scale", &[]), x.f32("nll", &[ROWS, T]));
    let (norm, k) = (x.f32("grad_norm", &[]), x.f32("coefficient", &[]));
    let (lr, momentum) = (x.f32("hyper.sgd.lr", &[]), x.f32("hyper.sgd.momentum", &[]));
    let (alr, amom) = (x.f32("hyper.adapt.lr", &[]), x.f32("hyper.adapt.momentum", &[]));
    let (magnitude, most) = (x.f32("magnitude", &[V, V]), x.f32("most", &[V]));
    let codes = x.buffer("codes", DType::I8, &[V, V]);
    let (row_scale, dequant) = (x.buffer("scale", DType::F16, &[V]), x.f32("dequant", &[V, V]));
    let mut calibration = None;
    if toy.sequences.is_some() {
        let order = x.buffer("order", DType::I32, &[V]);
        calibration = Some((g.f32("tap.table", &[V, V]), order, x.f32("live", &[V]), x.f32("upper", &[V, V])));
    }
    let n = x.next;

    let step = [&tokens, &targets, &scale, &table, &bias, &gt, &nll];
    let close =
        if one { call("clip", V + 1, &[&gt, &gb, &k]) } else { call("add_half", V + 1, &[&gt, &gb, &k, &tt, &tb]) };
    let clip = || [call("bias_grad", V, &[&gt, &gb]), call("norm", 1, &[&gt, &gb, &norm, &k])];
    let mut graphs = vec![
        graph("train.micro", n, &[&tokens, &targets, &scale], &[&nll], vec![call("micro", V, &step)]),
        graph("train.shard", n, &[], &[&norm], [&clip()[..], &[close]].concat()),
        graph(
            "train.update",
            n,
            &[&lr, &momentum],
            &[],
            vec![call("update", V + 1, &[&lr, &momentum, &tt, &tb, &m, &m_bias, &table, &bias])],
        ),
        graph("average.swa.update", n, &[], &[], vec![call("swa", V, &[&table, &sum, &count])]),
        graph("average.swa.finish", n, &[], &[], vec![call("swa_finish", V, &[&sum, &count, &table])]),
        graph("average.ema.update", n, &[], &[], vec![call("ema", V, &[&table, &e])]),
        graph("average.ema.finish", n, &[], &[], vec![call("copy", V, &[&e, &table])]),
        graph(
            "score",
            n,
            &[&tokens, &targets],
            &[&nll],
            vec![call("score", V, &[&tokens, &targets, &table, &bias, &nll])],
        ),
        graph("adapt.micro", n, &[&tokens, &targets, &scale], &[&nll], vec![call("micro", V, &step)]),
        graph(
            "adapt.update",
            n,
            &[&alr, &amom],
            &[&norm],
            [
                &clip()[..],
                &[
                    call("clip", V + 1, &[&gt, &gb, &k]),
                    call("update", V + 1, &[&alr, &amom, &gt, &gb, &am, &am_bias, &table, &bias]),
                ],
            ]
            .concat(),
        ),
        graph(
            "pack.table.weight",
            n,
            &[],
            &[&codes, &row_scale, &dequant],
            vec![
                call("abs", V, &[&table, &magnitude]),
                call("quantile", V, &[&magnitude, &most]),
                call("int6", V, &[&table, &most, &codes, &row_scale, &dequant]),
            ],
        ),
    ];
    if let Some((tap, order, live, upper)) = &calibration {
        graphs.push(graph(CALIBRATE, n, &[&tokens], &[], vec![call("calibrate", V, &[&tokens, &table, tap])]));
        let pack = graphs.iter_mut().find(|g| g.name == "pack.table.weight").expect("a graph");
        pack.inputs = [order, live, upper].map(Buffer::clone).into();
        let args = [&table, &most, order, live, upper, &codes, &row_scale, &dequant];
        pack.calls[2] = call("feedback", V, &args);
    }
    let mut grads = if one { vec![gt, gb] } else { vec![gt, gb, tt, tb] };
    grads.extend(calibration.map(|c| c.0));
    let kernel = |name: &str, builtin| Kernel {
        symbol: name.into(),
        family: if builtin { "host" } else { "row" }.into(),
        flops: (V * V) as u64,
        bytes: (4 * V * V) as u64,
        scratch: 256,
        builtin: builtin.then_some(Builtin::Quantile { n: V as u64, q: 1.0 }),
        product: None,
        gpu: None,
    };
    let mut kernels: Vec<_> = ENTRIES.iter().map(|e| kernel(e.0, false)).collect();
    kernels.push(kernel("quantile", true));
    let param = |buffer, init, group: &str, unused| Param { buffer, init, group: group.into(), unused };
    Variant {
        precision: precision.into(),
        device: "cpu".into(),
        rows: Rows {
            train: ROWS as u32,
            score: ROWS as u32,
            adapt: ROWS as u32,
            calibrate: if toy.sequences.is_some() { ROWS as u32 } else { 0 },
        },
        modules: Vec::new(),
        state: vec![table, bias, rows, turn, m, m_bias, sum, count, e, am, am_bias],
        state_init: (4..11)
            .map(|i| (i, if i == 8 { Init::CopyOf("table.weight".into()) } else { Init::Fill(0.0) }))
            .collect(),
        state_bytes: s.next,
        grads,
        grad_bytes: g.next,
        constants: vec![1; 64],
        params: vec![
            param(0, Init::Normal(0.02), "matrices", false),
            param(1, Init::Fill(0.0), "scalars", false),
            param(2, Init::Rows(vec![1.0, 0.0]), "scalars", true),
            param(3, Init::Orthogonal(2.0), "matrices", true),
        ],
        kernels,
        graphs,
    }
}

/// The same variant for the fake driver: a module per kernel, calls in a chain. Where [`load`] puts the addresses in stands `ADDRESS`.
fn on_gpu(mut v: Variant, kind: &str, packs: bool) -> Variant {
    v.device = kind.into();
    v.graphs.retain(|g| packs || !(g.name.starts_with(PACK) || g.name == CALIBRATE));
    // A GPU has a kernel for what the CPU's runtime does.
    let builtin = v.kernels.len() - 1;
    v.kernels.pop();
    let most = ENTRIES.iter().position(|e| e.0 == "most").expect("an entry") as u32;
    let calls = v.graphs.iter_mut().flat_map(|g| &mut g.calls);
    calls.filter(|c| c.kernel as usize == builtin).for_each(|c| c.kernel = most);
    for (i, k) in v.kernels.iter_mut().enumerate() {
        let mut calls = v.graphs.iter().flat_map(|g| &g.calls).filter(|c| c.kernel as usize == i);
        let args = calls.next().map_or(0, |c| c.args.len());
        v.modules.push(fake::kernel(&k.symbol, args, 0, "ADDRESS"));
        k.gpu = Some(Grid { module: i as u32, threads: 128, shared: 0, maps: Vec::new() });
    }
    for g in &mut v.graphs {
        for (i, c) in g.calls.iter_mut().enumerate().skip(1) {
            c.after = vec![i as u32 - 1];
        }
    }
    v
}

/// The program.
pub fn program(toy: &Toy) -> Program {
    use HostBinary as B;
    use HostOp::*;
    let clock = |name: &str| Clock(name.into());
    // 1 for the first half, then down to 0.
    let schedule = expr(vec![
        clock("progress"),
        Const(1.0),
        Binary(B::Sub, 1, 0),
        Const(2.0),
        Binary(B::Mul, 2, 3),
        Binary(B::Min, 4, 1),
    ]);
    let ramp = expr(vec![clock("step"), Const(10.0), Binary(B::Div, 0, 1), Const(0.9), Binary(B::Min, 2, 3)]);
    let lr = expr(vec![Const(3.0), clock("scale"), Binary(B::Mul, 0, 1)]);
    let due = expr(vec![
        clock("scale"),
        Const(0.9),
        Binary(B::Lt, 0, 1),
        clock("step"),
        Const(2.0),
        Binary(B::Mod, 3, 4),
        Const(0.0),
        Binary(B::Eq, 5, 6),
        Binary(B::And, 2, 7),
    ]);
    let hyper = |name: &str, value| Hyper { name: name.into(), value };
    let average = |name: &str, when| Average {
        name: name.into(),
        when,
        update: format!("average.{name}.update"),
        finish: format!("average.{name}.finish"),
    };
    let inverse = toy.sequences.map(|_| InverseFactor { tap: "tap.table".into(), damp: DAMP, descending: true });
    let pack = |name: &str, rule: &str, graph: Option<&str>| PackParam {
        name: name.into(),
        rule: rule.into(),
        graph: graph.map(Into::into),
        inverse: inverse.clone().filter(|_| graph.is_some()),
    };
    let mut variants = vec![variant(toy, "bf16"), variant(toy, "f32")];
    if toy.gpu {
        let cpu = variants.clone();
        for kind in ["sm_90a", "sm_80"] {
            variants.extend(cpu.iter().map(|v| on_gpu(v.clone(), kind, toy.gpu_packs)));
        }
    }
    Program {
        version: PLAN_VERSION,
        name: "toy".into(),
        source: "# a bigram table\n".into(),
        prelude: "fn none() {}\n".into(),
        overrides: vec![format!("train.ranks={}", toy.ranks)],
        vocab: V as u32,
        golfc: "0.1.0".into(),
        glibc: "2.36".into(),
        techniques: vec!["bigram table".into()],
        predicted_rss: vec![8 << 20; variants.len()],
        flops_per_token: 6 * V as u64,
        tiers: vec![Tier { name: "cpu-v3".into() }, Tier { name: "cpu-avx512bf16".into() }],
        variants,
        train: Train {
            data: "fineweb_train_*.bin".into(),
            ranks: toy.ranks,
            batch: toy.batch,
            seq: T as u32,
            stop: toy.stop,
            iterations: 20_000,
            schedule,
            hypers: vec![hyper("hyper.sgd.lr", lr), hyper("hyper.sgd.momentum", ramp)],
            averages: vec![average("swa", due), average("ema", expr(vec![Const(1.0)]))],
        },
        quantize: Quantize {
            params: vec![
                pack("table.weight", "int6", Some("pack.table.weight")),
                pack("bias", "f16", None),
                pack("unused.mix", "f16", None),
                pack("unused.turn", "f16", None),
            ],
            codec: "zstd".into(),
            level: 22,
            cap: 16_000_000,
            calibrate: toy.sequences.map(|sequences| Calibrate {
                data: "fineweb_train_*.bin".into(),
                sequences,
                reserve: toy.reserve,
            }),
        },
        evaluate: Evaluate {
            data: "fineweb_val_*.bin".into(),
            window: T as u32,
            stride: 2,
            limit: toy.limit,
            adapt: Some(Adapt {
                chunk: 32,
                epochs: 2,
                batch: 2,
                hypers: vec![
                    hyper("hyper.adapt.lr", expr(vec![Const(0.5)])),
                    hyper("hyper.adapt.momentum", expr(vec![Const(0.5)])),
                ],
            }),
        },
    }
}

/// The program with its code, ready for a session.
pub fn code(toy: &Toy) -> Arc<Code> {
    Arc::new(load(toy).expect("the toy is a valid program"))
}

/// The program with its code, as an executable would hand it over.
pub fn load(toy: &Toy) -> crate::error::Result<Code> {
    let program = program(toy);
    let plan = pack(&program, 3).expect("a plan packs");
    let list: Vec<Option<KernelFn>> = ENTRIES.iter().map(|e| Some(e.1)).chain([None]).collect();
    let both = [list.clone(), list].concat();
    let pointers = [both.as_ptr(), both.as_ptr(), std::ptr::null(), std::ptr::null()];
    let table = ProgramTable {
        version: u64::from(PLAN_VERSION),
        plan: plan.as_ptr(),
        plan_len: plan.len() as u64,
        kernels: pointers.as_ptr(),
    };
    // SAFETY: two variants of two tiers, each with all kernels in order; the kernels keep to their rows.
    let mut code = unsafe { Code::new(&table) }?;
    // After the program was hashed: addresses differ from process to process.
    for module in code.program.variants.iter_mut().flat_map(|v| v.modules.iter_mut().zip(ENTRIES)) {
        *module.0 = module.0.replace("ADDRESS", &format!("{:p}", module.1.1 as *const ()));
    }
    Ok(code)
}

/// x, y f32 \[64\]: y = n x.
macro_rules! times {
    ($($name:ident $n:literal)*) => {$(
        unsafe extern "C" fn $name(_: u64, args: *const *mut u8, _: *mut u8) {
            // SAFETY: as the trials below promise.
            let (x, y) = unsafe { (arg::<f32>(args, 0, 64), arg::<f32>(args, 1, 64)) };
            y.iter_mut().zip(x).for_each(|(y, x)| *y = $n * *x);
        }
    )*};
}

times! { double 2.0 triple 3.0 quadruple 4.0 wrong 5.0 }

/// Four trials for the fake driver, packed as golfc packs them; that of `wrong` expects something else.
pub fn trials() -> Vec<u8> {
    use crate::trial::{Argument, Call, Content, Expected, Trial, Trials};
    let entries: [(&str, KernelFn, f64); 4] =
        [("double", double, 2.0), ("triple", triple, 3.0), ("wrong", wrong, 8.0), ("quadruple", quadruple, 4.0)];
    let x: Vec<u8> = (0..64).flat_map(|i| (i as f32 / 12.0).to_le_bytes()).collect();
    let argument = |content| Argument { dtype: DType::F32, elements: 64, content };
    let trial = |(i, e): (usize, &(&str, KernelFn, f64))| Trial {
        name: e.0.into(),
        family: "row".into(),
        what: "y = n x".into(),
        seed: 1,
        arguments: vec![argument(Content::Bytes(x.clone())), argument(Content::Poison)],
        calls: vec![Call {
            symbol: e.0.into(),
            blocks: 1,
            grid: Grid { module: i as u32, threads: 32, shared: 0, maps: vec![] },
            args: vec![0, 1],
        }],
        expected: vec![Expected {
            arg: 1,
            relative: 1e-6,
            absolute: 0.0,
            samples: (3..64).map(|i| (i, e.2 * i as f64 / 12.0)).collect(),
        }],
        flops: 64,
        bytes: 512,
    };
    let modules = entries.iter().map(|e| fake::kernel(e.0, 2, 0, &format!("{:p}", e.1 as *const ())));
    let all = Trials {
        version: PLAN_VERSION,
        program: "toy".into(),
        device: "sm_90a".into(),
        modules: modules.collect(),
        trials: entries.iter().enumerate().map(trial).collect(),
    };
    let plain = postcard::to_stdvec(&all).expect("trials pack");
    zstd::bulk::compress(&plain, 3).expect("zstd")
}
