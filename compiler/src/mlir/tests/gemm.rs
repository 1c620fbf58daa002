//! Contractions against chains computed here: bit for bit where the chain is defined (f32, and bf16 products widened), within rounding elsewhere.

use super::super::object::{self, Job, Text};
use super::super::{jit, tier::Tier};
use super::{Random, bytes, floats, tiers};
use crate::graph::build::Builder;
use crate::graph::interpret::{Tensor, interpret};
use crate::graph::ir::{AxisRole, BufferKind, DType, Graph};
use crate::kernel::Kernel;
use crate::kernel::epilogue::EpilogueArg;
use crate::kernel::gemm::{Gemm, Operand};

/// A matrix of the test in memory: [outer, k] or [k, outer], rows padded, after an offset.
struct Matrix {
    operand: Operand,
    bytes: Vec<u8>,
    /// Value at (matrix, outer, k), as stored.
    values: Vec<f32>,
}

fn to_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

fn store(dtype: DType, x: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => bytes(x),
        DType::Bf16 => x.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => unreachable!("tests use f32 and bf16"),
    }
}

fn load(dtype: DType, x: &[u8]) -> Vec<f32> {
    match dtype {
        DType::F32 => floats(x),
        DType::Bf16 => x.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
        _ => unreachable!("tests use f32 and bf16"),
    }
}

fn matrix(random: &mut Random, batch: usize, outer: usize, k: usize, k_contiguous: bool, dtype: DType) -> Matrix {
    let (rows, cols) = if k_contiguous { (outer, k) } else { (k, outer) };
    let (offset, pitch) = (5, cols + 3);
    // The last row is not padded: reading beyond it would be noticed only by luck, so it ends the buffer.
    let one = rows * pitch;
    let mut data = vec![f32::NAN; offset + batch * one - 3];
    let mut values = vec![0.0; batch * outer * k];
    for b in 0..batch {
        for r in 0..rows {
            for c in 0..cols {
                let x = random.uniform() as f32;
                let x = if dtype == DType::Bf16 { to_bf16(x) } else { x };
                data[offset + b * one + r * pitch + c] = x;
                let (o, kk) = if k_contiguous { (r, c) } else { (c, r) };
                values[(b * outer + o) * k + kk] = x;
            }
        }
    }
    let (row, kk) = if k_contiguous { (pitch as i64, 1) } else { (1, pitch as i64) };
    let strides = if batch > 1 { vec![one as i64] } else { vec![] };
    let operand = Operand { dtype, offset: offset as i64, row, k: kk, batch: strides };
    Matrix { operand, bytes: store(dtype, &data), values }
}

/// `acc`, then outputs and arguments as the closure declares them; axes m, n and, if there is a batch, b.
fn epilogue(g: (usize, usize, usize), body: impl Fn(&mut Builder, &[crate::graph::ir::AxisId])) -> Graph {
    let (batch, m, n) = g;
    let mut b = Builder::new("epilogue", DType::F32);
    let m = b.axis("m", m, AxisRole::Plain).expect("axis");
    let n = b.axis("n", n, AxisRole::Plain).expect("axis");
    let mut axes = vec![m, n];
    if batch > 1 {
        axes.insert(0, b.axis("b", batch, AxisRole::Plain).expect("axis"));
    }
    b.buffer("acc", DType::F32, &axes, BufferKind::Input).expect("buffer");
    body(&mut b, &axes);
    b.finish()
}

/// `out = acc`.
fn plain(batch: usize, m: usize, n: usize, out: DType, accumulate: bool) -> Graph {
    epilogue((batch, m, n), |b, axes| {
        let acc = b.find_buffer("acc").expect("acc");
        let sum = b.read(acc).expect("read");
        let out = b.buffer("out", out, axes, BufferKind::Output).expect("buffer");
        if accumulate { b.accumulate(out, sum) } else { b.assign(out, sum) }.expect("effect");
    })
}

fn dense(batch: usize, m: usize, n: usize) -> EpilogueArg {
    EpilogueArg { offset: 0, batch: if batch > 1 { vec![(m * n) as i64] } else { vec![] }, m: n as i64, n: 1 }
}

/// One FMA chain in f32 over ascending k, from `init`.
fn chain(a: &[f32], b: &[f32], init: f32, round: bool) -> f32 {
    let r = |x: f32| if round { to_bf16(x) } else { x };
    a.iter().zip(b).fold(init, |sum, (&a, &b)| r(a).mul_add(r(b), sum))
}

/// Tiers with code of their own for the kernel.
fn code_tiers(kernel: &Kernel) -> Vec<Tier> {
    tiers().into_iter().filter(|t| t.of_kernel(kernel) == *t).collect()
}

struct Case {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    /// A and B contiguous along k.
    a_k: bool,
    b_k: bool,
    a: DType,
    b: DType,
    compute: DType,
    out: DType,
    accumulate: bool,
}

impl Case {
    fn f32(m: usize, n: usize, k: usize, a_k: bool, b_k: bool) -> Case {
        let f = DType::F32;
        Case { batch: 1, m, n, k, a_k, b_k, a: f, b: f, compute: f, out: f, accumulate: false }
    }
    fn bf16(m: usize, n: usize, k: usize, a_k: bool, b_k: bool) -> Case {
        let h = DType::Bf16;
        Case { a: h, b: h, compute: h, ..Case::f32(m, n, k, a_k, b_k) }
    }

    fn check(&self) {
        let &Case { batch, m, n, k, .. } = self;
        let mut random = Random((m * 1000003 + n * 1009 + k) as u64);
        let a = matrix(&mut random, batch, m, k, self.a_k, self.a);
        let b = matrix(&mut random, batch, n, k, self.b_k, self.b);
        let g = Gemm {
            batch: if batch > 1 { vec![batch] } else { vec![] },
            m,
            n,
            k,
            a: a.operand,
            b: b.operand,
            compute: self.compute,
            symmetric: false,
            accumulate: self.accumulate,
            epilogue: plain(batch, m, n, self.out, self.accumulate),
            args: vec![dense(batch, m, n)],
            cut: None,
            library: false,
        };
        let kernel = Kernel::Gemm(g);
        let old: Vec<f32> = (0..batch * m * n).map(|_| random.uniform() as f32).collect();
        for tier in code_tiers(&kernel) {
            let mut args = [a.bytes.clone(), b.bytes.clone(), store(self.out, &old)];
            jit::run(&kernel, tier, &mut args).unwrap_or_else(|e| panic!("{m}x{n}x{k}: {e}"));
            let got = load(self.out, &args[2]);
            let exact = tier.of_kernel(&kernel) == Tier::V3;
            for i in 0..batch * m * n {
                let (row, col) = (i / n, (i / (m * n)) * n + i % n);
                let (x, y) = (&a.values[row * k..(row + 1) * k], &b.values[col * k..(col + 1) * k]);
                let init = if self.accumulate { old[i] } else { 0.0 };
                let bf16 = self.compute == DType::Bf16;
                let want = chain(x, y, init, bf16);
                let want = if self.out == DType::Bf16 { to_bf16(want) } else { want };
                let place = || format!("{m}x{n}x{k} {:?} on {tier:?} at {i}: {} but {want}", self.compute, got[i]);
                if exact {
                    assert_eq!(got[i].to_bits(), want.to_bits(), "{}", place());
                } else {
                    let size: f32 = x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum::<f32>() + init.abs();
                    let last = if self.out == DType::Bf16 { want.abs() / 128.0 } else { 0.0 };
                    assert!((got[i] - want).abs() <= 1e-6 * size + last, "{}", place());
                }
            }
        }
    }
}

#[test]
fn ragged_shapes() {
    for (m, n, k) in
        [(1, 1, 1), (3, 5, 4), (4, 16, 5), (61, 61, 61), (16, 64, 64), (65, 100, 192), (5, 1000, 3), (100, 65, 300)]
    {
        for (a_k, b_k) in [(true, true), (true, false), (false, false), (false, true)] {
            Case::f32(m, n, k, a_k, b_k).check();
            Case::bf16(m, n, k, a_k, b_k).check();
        }
    }
}

#[test]
fn deep_sums_are_one_chain_whatever_the_blocking() {
    Case::f32(7, 70, 2100, true, true).check();
    Case::f32(50, 20, 1025, false, false).check();
    Case::bf16(7, 70, 2101, true, true).check();
    Case::bf16(50, 20, 1026, false, false).check();
}

#[test]
fn operands_are_rounded_to_the_compute_dtype() {
    let (f, h) = (DType::F32, DType::Bf16);
    for (a, b) in [(f, h), (h, f), (f, f)] {
        for (a_k, b_k) in [(true, true), (false, false)] {
            Case { a, b, ..Case::bf16(33, 40, 37, a_k, b_k) }.check();
        }
    }
    Case { a: h, b: h, ..Case::f32(33, 40, 37, true, false) }.check();
    Case { a: h, b: h, ..Case::f32(33, 40, 37, false, true) }.check();
}

#[test]
fn batches_outputs_and_accumulation() {
    Case { batch: 3, ..Case::f32(13, 21, 34, true, true) }.check();
    Case { batch: 3, out: DType::Bf16, ..Case::bf16(13, 21, 34, false, false) }.check();
    Case { accumulate: true, ..Case::f32(50, 70, 300, false, false) }.check();
    Case { accumulate: true, batch: 2, ..Case::bf16(13, 21, 34, false, false) }.check();
    // Wide enough that a task has several panels and n is split.
    Case::f32(96, 400, 20, true, true).check();
    Case::bf16(96, 400, 20, true, true).check();
}

#[test]
fn symmetric_products_equal_full_ones() {
    for n in [1, 16, 48, 64, 100, 130] {
        for k_contiguous in [true, false] {
            for compute in [DType::F32, DType::Bf16] {
                let mut random = Random(n as u64);
                let x = matrix(&mut random, 2, n, 70, k_contiguous, compute);
                let mut g = Gemm {
                    batch: vec![2],
                    m: n,
                    n,
                    k: 70,
                    a: x.operand.clone(),
                    b: x.operand.clone(),
                    compute,
                    symmetric: true,
                    accumulate: false,
                    epilogue: plain(2, n, n, DType::F32, false),
                    args: vec![dense(2, n, n)],
                    cut: None,
                    library: false,
                };
                for tier in code_tiers(&Kernel::Gemm(g.clone())) {
                    let results: Vec<Vec<u8>> = [true, false]
                        .map(|symmetric| {
                            g.symmetric = symmetric;
                            let mut args = [x.bytes.clone(), x.bytes.clone(), vec![0xAA; 2 * n * n * 4]];
                            jit::run(&Kernel::Gemm(g.clone()), tier, &mut args).expect("runs");
                            args[2].clone()
                        })
                        .to_vec();
                    assert!(results[0] == results[1], "n = {n}, {compute:?}, {tier:?}");
                }
            }
        }
    }
}

/// A program with every kind of argument: per row, per column, per matrix, full, transposed; three outputs.
#[test]
fn epilogues_follow_the_interpreter() {
    let (batch, m, n, k) = (2, 19, 37, 8);
    let graph = epilogue((batch, m, n), |b, axes| {
        let (bt, ma, na) = (axes[0], axes[1], axes[2]);
        let input = |b: &mut Builder, name: &str, dtype, axes: &[crate::graph::ir::AxisId]| {
            let buffer = b.buffer(name, dtype, axes, BufferKind::Input).expect("buffer");
            b.read(buffer).expect("read")
        };
        let acc = input(b, "acc", DType::F32, axes);
        let scale = input(b, "scale", DType::F32, &[bt, ma]);
        let bias = input(b, "bias", DType::Bf16, &[na]);
        let gain = input(b, "gain", DType::F32, &[bt]);
        let residual = input(b, "residual", DType::Bf16, axes);
        let x = b.mul(acc, scale).expect("mul");
        let x = b.add(x, bias).expect("add");
        let t = b.tanh(x).expect("tanh");
        let t = b.mul(t, gain).expect("mul");
        let y = b.add(t, residual).expect("add");
        let out = b.buffer("y", DType::Bf16, axes, BufferKind::Output).expect("buffer");
        b.assign(out, y).expect("effect");
        let zero = b.constant(0.0);
        let positive = b.binary(crate::graph::ir::Binary::Gt, x, zero).expect("gt");
        let half = b.mul_const(x, 0.5).expect("mul");
        let leaky = b.select(positive, x, half).expect("select");
        // Stored transposed: [b, n, m] in memory.
        let out = b.buffer("leaky", DType::F32, axes, BufferKind::Output).expect("buffer");
        b.assign(out, leaky).expect("effect");
        let out = b.buffer("total", DType::F32, axes, BufferKind::State).expect("buffer");
        b.accumulate(out, t).expect("effect");
    });
    let mut random = Random(11);
    let a = matrix(&mut random, batch, m, k, true, DType::F32);
    let b = matrix(&mut random, batch, n, k, true, DType::F32);
    let full = dense(batch, m, n);
    let (mn, mi, ni) = ((m * n) as i64, m as i64, n as i64);
    let args = vec![
        EpilogueArg { offset: 0, batch: vec![mi], m: 1, n: 0 },
        EpilogueArg { offset: 0, batch: vec![0], m: 0, n: 1 },
        EpilogueArg { offset: 0, batch: vec![1], m: 0, n: 0 },
        full.clone(),
        full.clone(),
        EpilogueArg { offset: 0, batch: vec![mn], m: 1, n: mi },
        full,
    ];
    let _ = ni;
    let g = Gemm {
        batch: vec![batch],
        m,
        n,
        k,
        a: a.operand.clone(),
        b: b.operand.clone(),
        compute: DType::F32,
        symmetric: false,
        accumulate: false,
        epilogue: graph.clone(),
        args,
        cut: None,
        library: false,
    };
    let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| to_bf16(random.uniform() as f32)).collect() };
    let inputs = [draw(batch * m), draw(n), draw(batch), draw(batch * m * n), draw(batch * m * n)];
    let acc: Vec<f64> = (0..batch * m * n)
        .map(|i| {
            let (row, col) = (i / n, (i / (m * n)) * n + i % n);
            let (x, y) = (&a.values[row * k..][..k], &b.values[col * k..][..k]);
            x.iter().zip(y).map(|(&x, &y)| x as f64 * y as f64).sum()
        })
        .collect();
    let tensor = |dims: &[usize], x: &[f32]| Tensor::new(dims, x.iter().map(|&x| x as f64).collect()).expect("shape");
    let dims = [batch, m, n];
    let contents = [
        ("acc".to_string(), Tensor::new(&dims, acc).expect("shape")),
        ("scale".to_string(), tensor(&[batch, m], &inputs[0])),
        ("bias".to_string(), tensor(&[n], &inputs[1])),
        ("gain".to_string(), tensor(&[batch], &inputs[2])),
        ("residual".to_string(), tensor(&dims, &inputs[3])),
        ("total".to_string(), tensor(&dims, &inputs[4])),
    ];
    let want = interpret(&graph, &contents.into_iter().collect()).expect("interprets");
    for tier in tiers() {
        let count = batch * m * n;
        let mut args = [
            a.bytes.clone(),
            b.bytes.clone(),
            bytes(&inputs[0]),
            store(DType::Bf16, &inputs[1]),
            bytes(&inputs[2]),
            store(DType::Bf16, &inputs[3]),
            vec![0xFF; count * 2],
            vec![0xFF; count * 4],
            bytes(&inputs[4]),
        ];
        jit::run(&Kernel::Gemm(g.clone()), tier, &mut args).expect("runs");
        let (y, leaky, total) = (load(DType::Bf16, &args[6]), floats(&args[7]), floats(&args[8]));
        for i in 0..count {
            let (bt, row, col) = (i / (m * n), i / n % m, i % n);
            let check = |name: &str, got: f32, tolerance: f64| {
                let want = want[name].data[i];
                assert!((got as f64 - want).abs() <= tolerance, "{name}[{i}] = {got}, want {want}");
            };
            check("y", y[i], 0.01);
            check("leaky", leaky[(bt * n + col) * m + row], 1e-5);
            check("total", total[i], 1e-5);
        }
    }
}

#[test]
fn descriptions_it_cannot_emit_are_refused() {
    let mut random = Random(1);
    let a = matrix(&mut random, 1, 4, 4, true, DType::F32);
    let mut g = Gemm {
        batch: vec![],
        m: 4,
        n: 4,
        k: 4,
        a: a.operand.clone(),
        b: a.operand,
        compute: DType::F32,
        symmetric: false,
        accumulate: true,
        epilogue: plain(1, 4, 4, DType::F32, false),
        args: vec![dense(1, 4, 4)],
        cut: None,
        library: false,
    };
    let refuse = |g: &Gemm| object::text(&Job { kernel: Kernel::Gemm(g.clone()), tier: Tier::V3 }, Text::Mlir).err();
    assert!(refuse(&g).expect("accumulate without accumulation").contains("accumulate"));
    g.accumulate = false;
    g.a.row = 4;
    g.a.k = 4;
    assert!(refuse(&g).expect("strided operand").contains("contiguous"));
}

#[test]
fn snapshots() {
    let mut random = Random(1);
    let (m, n, k) = (16, 64, 64);
    for (name, dtype, tier) in [("f32", DType::F32, Tier::V3), ("bf16", DType::Bf16, Tier::Avx512Bf16)] {
        let g = Gemm {
            batch: vec![],
            m,
            n,
            k,
            a: matrix(&mut random, 1, m, k, true, dtype).operand,
            b: matrix(&mut random, 1, n, k, false, dtype).operand,
            compute: dtype,
            symmetric: false,
            accumulate: false,
            epilogue: plain(1, m, n, DType::F32, false),
            args: vec![dense(1, m, n)],
            cut: None,
            library: false,
        };
        let kernel = Kernel::Gemm(g);
        let symbol = kernel.symbol();
        let text = object::text(&Job { kernel, tier }, Text::Mlir).expect("emits").replace(&symbol, "gemm");
        insta::assert_snapshot!(name, text);
    }
}
