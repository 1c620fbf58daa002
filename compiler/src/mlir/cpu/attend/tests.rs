//! Both passes against softmax attention written out in f64.

use crate::graph::ir::{Bits, DType};
use crate::kernel::Kernel;
use crate::kernel::attend::samples::finished;
use crate::kernel::attend::{AttendKernel, Pass, Strides};
use crate::mlir::jit;
use crate::mlir::object::{self, Job, Text};
use crate::mlir::tests::outline;
use crate::mlir::tier::Tier;
use crate::schedule::trial::Trial;

/// Dense [b, t, kv, g, d] (g = 1 for k and v).
fn dense(time: usize, kv: usize, g: usize, d: usize, grouped: bool) -> Strides {
    let (kv, g, d) = (kv as i64, g as i64, d as i64);
    let group = if grouped { d } else { 0 };
    let kv_stride = if grouped { g * d } else { d };
    Strides { offset: 0, batch: time as i64 * kv * kv_stride, time: kv * kv_stride, kv: kv_stride, group }
}

#[derive(Clone, Copy)]
struct Case {
    batch: usize,
    time: usize,
    kv: usize,
    group: usize,
    dim: usize,
    causal: bool,
    window: Option<u32>,
    documents: Ids,
}

/// How document ids run along a row.
#[derive(Clone, Copy, PartialEq)]
enum Ids {
    None,
    /// Documents of 37 positions.
    Ordered,
    /// Pieces of three documents by turns.
    Mixed,
}

impl Ids {
    fn at(self, b: usize, t: usize) -> i32 {
        match self {
            Ids::None => 0,
            Ids::Ordered => (t + 5 * b) as i32 / 37,
            Ids::Mixed => ((t + 5 * b) / 19 * 7 % 3) as i32 - 1,
        }
    }
}

fn kernel(c: Case, dtype: DType, pass: Pass) -> AttendKernel {
    let q = dense(c.time, c.kv, c.group, c.dim, true);
    let k = dense(c.time, c.kv, 1, c.dim, false);
    let none = Strides { offset: 0, batch: 0, time: 0, kv: 0, group: 0 };
    let back = pass == Pass::Backward;
    let (dy, dq, dk) = if back { (q, q, k) } else { (none, none, none) };
    AttendKernel {
        pass,
        batch: c.batch,
        time: c.time,
        kv: c.kv,
        group: c.group,
        dim: c.dim,
        dtype,
        scale: Bits::new(1.0 / (c.dim as f64).sqrt()),
        causal: c.causal,
        window: c.window,
        document: c.documents != Ids::None,
        q,
        k,
        v: k,
        y: q,
        epilogue: None,
        dy,
        dq,
        dk,
        dv: dk,
    }
}

/// Deterministic values in about [-1, 1), already rounded to the storage type.
fn values(n: usize, seed: u64, dtype: DType) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let v = ((x >> 40) as f32 / (1u64 << 23) as f32) - 1.0;
            if dtype == DType::Bf16 { half::bf16::from_f32(v).to_f32() } else { v }
        })
        .collect()
}

fn bytes(v: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::Bf16 => v.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

fn floats(b: &[u8], dtype: DType) -> Vec<f64> {
    match dtype {
        DType::Bf16 => b.chunks(2).map(|x| half::bf16::from_le_bytes([x[0], x[1]]).to_f64()).collect(),
        _ => b.chunks(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]) as f64).collect(),
    }
}

struct Reference {
    y: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dk: Vec<f64>,
    dv: Vec<f64>,
}

fn reference(c: Case, q: &[f32], k: &[f32], v: &[f32], dy: &[f32]) -> Reference {
    let (hq, scale) = (c.kv * c.group, 1.0 / (c.dim as f64).sqrt());
    let at_q = |b: usize, t: usize, h: usize| ((b * c.time + t) * hq + h) * c.dim;
    let at_k = |b: usize, t: usize, h: usize| ((b * c.time + t) * c.kv + h / c.group) * c.dim;
    let dot =
        |a: &[f32], x: usize, b: &[f32], y: usize| (0..c.dim).map(|i| a[x + i] as f64 * b[y + i] as f64).sum::<f64>();
    let mut r = Reference {
        y: vec![0.0; q.len()],
        lse: vec![0.0; c.batch * c.time * hq],
        dq: vec![0.0; q.len()],
        dk: vec![0.0; k.len()],
        dv: vec![0.0; k.len()],
    };
    for b in 0..c.batch {
        for h in 0..hq {
            for i in 0..c.time {
                let keys: Vec<usize> = (0..c.time)
                    .filter(|&j| (!c.causal || j <= i) && c.window.is_none_or(|w| (i as i64 - j as i64) < w as i64))
                    .filter(|&j| c.documents.at(b, i) == c.documents.at(b, j))
                    .collect();
                let s: Vec<f64> = keys.iter().map(|&j| dot(q, at_q(b, i, h), k, at_k(b, j, h)) * scale).collect();
                let m = s.iter().cloned().fold(f64::MIN, f64::max);
                let z: f64 = s.iter().map(|x| (x - m).exp()).sum();
                let p: Vec<f64> = s.iter().map(|x| (x - m).exp() / z).collect();
                r.lse[(b * c.time + i) * hq + h] = m + z.ln();
                let (qi, mut delta) = (at_q(b, i, h), 0.0);
                let dp: Vec<f64> = keys.iter().map(|&j| dot(dy, qi, v, at_k(b, j, h))).collect();
                for (n, &j) in keys.iter().enumerate() {
                    delta += p[n] * dp[n];
                    for x in 0..c.dim {
                        r.y[qi + x] += p[n] * v[at_k(b, j, h) + x] as f64;
                        r.dv[at_k(b, j, h) + x] += p[n] * dy[qi + x] as f64;
                    }
                }
                for (n, &j) in keys.iter().enumerate() {
                    let ds = p[n] * (dp[n] - delta) * scale;
                    for x in 0..c.dim {
                        r.dq[qi + x] += ds * k[at_k(b, j, h) + x] as f64;
                        r.dk[at_k(b, j, h) + x] += ds * q[qi + x] as f64;
                    }
                }
            }
        }
    }
    r
}

fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    let norm = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let error = found.iter().zip(expected).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    assert!(error <= tolerance * norm + 1e-6, "{what}: relative error {:e} over {tolerance:e}", error / norm);
}

fn run(kernel: AttendKernel, tier: Tier, args: &mut [Vec<u8>]) {
    jit::run(&Kernel::Attend(kernel), tier, args).unwrap();
}

/// Runs both passes and compares; gives all outputs for bit comparisons.
fn check(c: Case, dtype: DType, tier: Tier) -> Vec<Vec<u8>> {
    let (nq, nk) = (c.batch * c.time * c.kv * c.group * c.dim, c.batch * c.time * c.kv * c.dim);
    let (q, k, v, dy) = (values(nq, 1, dtype), values(nk, 2, dtype), values(nk, 3, dtype), values(nq, 4, dtype));
    let r = reference(c, &q, &k, &v, &dy);
    // f32: sums of up to a few hundred terms and a 2^x of about 1 ulp; bf16: stored results and products' operands are rounded to 8 bits.
    let (forward, backward) = if dtype == DType::Bf16 { (6e-3, 1e-2) } else { (2e-6, 5e-6) };
    let n = dtype.bytes();
    let ids: Vec<u8> =
        (0..c.batch * c.time).flat_map(|i| c.documents.at(i / c.time, i % c.time).to_le_bytes()).collect();
    let ids = (c.documents != Ids::None).then_some(ids);
    let mut args = vec![bytes(&q, dtype), bytes(&k, dtype), bytes(&v, dtype)];
    let mut back = args.clone();
    args.extend(ids.clone());
    args.extend([vec![0xff; nq * n], vec![0xff; 4 * nq / c.dim]]);
    run(kernel(c, dtype, Pass::Forward), tier, &mut args);
    let results = &args[args.len() - 2..];
    close("y", &floats(&results[0], dtype), &r.y, forward);
    close("lse", &floats(&results[1], DType::F32), &r.lse, 2e-6);
    back.extend(results.to_vec());
    back.push(bytes(&dy, dtype));
    back.extend(ids);
    back.extend([vec![0xff; nq * n], vec![0xff; nk * n], vec![0xff; nk * n]]);
    run(kernel(c, dtype, Pass::Backward), tier, &mut back);
    let results = &back[back.len() - 3..];
    for (found, (what, expected)) in results.iter().zip([("dq", &r.dq), ("dk", &r.dk), ("dv", &r.dv)]) {
        close(what, &floats(found, dtype), expected, backward);
    }
    back
}

const ONE: Case =
    Case { batch: 1, time: 64, kv: 1, group: 1, dim: 16, causal: true, window: None, documents: Ids::None };

const CASES: [Case; 9] = [
    Case { kv: 2, group: 2, dim: 64, ..ONE },
    Case { batch: 2, time: 61, group: 3, ..ONE },
    Case { time: 200, group: 2, dim: 24, window: Some(70), ..ONE },
    Case { time: 130, kv: 2, dim: 40, causal: false, ..ONE },
    Case { time: 1, dim: 8, ..ONE },
    Case { time: 150, dim: 128, ..ONE },
    Case { batch: 2, time: 200, kv: 2, group: 2, documents: Ids::Ordered, ..ONE },
    Case { batch: 2, time: 200, dim: 24, window: Some(50), documents: Ids::Mixed, ..ONE },
    Case { time: 330, causal: false, documents: Ids::Ordered, ..ONE },
];

#[test]
fn f32_matches_f64() {
    for c in CASES {
        check(c, DType::F32, Tier::V3);
    }
    // An odd head dimension.
    check(Case { dim: 13, ..CASES[1] }, DType::F32, Tier::V3);
}

#[test]
fn bf16_matches_f64_on_both_tiers() {
    for tier in Tier::ALL {
        if jit::available(tier) {
            for c in CASES {
                check(c, DType::Bf16, tier);
            }
        }
    }
}

/// Every result of an epilogue, with ragged last vectors, rows behind the end and groups.
#[test]
fn epilogues_match_the_interpreter() {
    for (dtype, tier) in [(DType::F32, Tier::V3), (DType::Bf16, Tier::V3), (DType::Bf16, Tier::Avx512Bf16)] {
        for (c, seed) in CASES.into_iter().zip(1..).filter(|_| jit::available(tier)) {
            let c = Case { dim: if dtype == DType::F32 && c.dim == 16 { 13 } else { c.dim }, ..c };
            let kernel = Kernel::Attend(finished(kernel(c, dtype, Pass::Forward), seed % 2 == 0));
            let trial = Trial::new(&kernel, seed).unwrap();
            let mut args = trial.args.clone();
            jit::run(&kernel, tier, &mut args).unwrap();
            trial.compare(&args).unwrap_or_else(|e| panic!("{tier:?}: {e}\n{}", kernel.text()));
        }
    }
}

#[test]
fn large_scores_stay_finite() {
    let c = Case { time: 70, ..ONE };
    let q: Vec<f32> = values(70 * 16, 5, DType::F32).iter().map(|x| x * 1e3).collect();
    let mut args = vec![
        bytes(&q, DType::F32),
        bytes(&q, DType::F32),
        bytes(&q, DType::F32),
        vec![0; 4 * q.len()],
        vec![0; 4 * 70],
    ];
    run(kernel(c, DType::F32, Pass::Forward), Tier::V3, &mut args);
    assert!(floats(&args[3], DType::F32).iter().chain(&floats(&args[4], DType::F32)).all(|x| x.is_finite()));
}

#[test]
fn unsupported_forms_say_so() {
    let k = kernel(Case { dim: 260, ..CASES[0] }, DType::F32, Pass::Forward);
    assert!(k.check().unwrap_err().contains("up to 256, found 260"));
    let k = kernel(Case { dim: 13, ..CASES[0] }, DType::Bf16, Pass::Forward);
    assert!(k.check().unwrap_err().contains("even head dimension"));
}

/// Whole kernels are too long to read; their loops and what stands in them are not.
#[test]
fn loops_of_both_passes() {
    let c = Case { time: 128, group: 2, ..ONE };
    for (name, pass) in [("forward", Pass::Forward), ("backward", Pass::Backward)] {
        let job = Job { kernel: Kernel::Attend(kernel(c, DType::Bf16, pass)), tier: Tier::Avx512Bf16 };
        insta::assert_snapshot!(name, outline(&object::text(&job, Text::Mlir).unwrap()));
    }
}
