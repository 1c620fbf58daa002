//! Rate of the contraction kernels on one thread: `cargo run --release --example gemm_bench [M N K]`.
//!
//! For each dtype and layout (NT: both operands contiguous along k; NN: B along n; TN: A along m, B along n) the rate of the product alone and with
//! packing. Compare within one run; absolute figures of a shared machine mean little.

use golf_compiler::graph::build::Builder;
use golf_compiler::graph::ir::{AxisRole, BufferKind, DType, Graph};
use golf_compiler::kernel::Kernel;
use golf_compiler::kernel::epilogue::EpilogueArg;
use golf_compiler::kernel::gemm::{Gemm, Operand};
use golf_compiler::mlir::jit::Loaded;
use golf_compiler::mlir::object::Job;
use golf_compiler::mlir::tier::Tier;

fn copy(m: usize, n: usize, out: DType) -> Graph {
    let mut b = Builder::new("copy", DType::F32);
    let mut make = || {
        let axes = [b.axis("m", m, AxisRole::Plain)?, b.axis("n", n, AxisRole::Plain)?];
        let acc = b.buffer("acc", DType::F32, &axes, BufferKind::Input)?;
        let out = b.buffer("out", out, &axes, BufferKind::Output)?;
        let sum = b.read(acc)?;
        b.assign(out, sum)
    };
    make().expect("a copy has no type error");
    b.finish()
}

fn main() -> Result<(), String> {
    let number = |a: String| a.parse().map_err(|_| format!("{a} is not a number"));
    let given: Vec<usize> = std::env::args().skip(1).map(number).collect::<Result<_, _>>()?;
    let shapes = match given[..] {
        [m, n, k] => vec![(m, n, k)],
        _ => vec![
            (2048, 512, 512),
            (1024, 512, 512),
            (1024, 1536, 512),
            (1024, 512, 1536),
            (512, 512, 1024),
            (1536, 512, 1024),
        ],
    };
    for (m, n, k) in shapes {
        for (dtype, tier) in [(DType::F32, Tier::V3), (DType::Bf16, Tier::V3), (DType::Bf16, Tier::Avx512Bf16)] {
            if !tier.runs_here() {
                continue;
            }
            for (layout, a_k, b_k) in [("NT", true, true), ("NN", true, false), ("TN", false, false)] {
                let operand = |outer: usize, along_k: bool| {
                    let (row, k) = if along_k { (k as i64, 1) } else { (1, outer as i64) };
                    Operand { dtype, offset: 0, row, k, batch: vec![] }
                };
                report(layout, operand(m, a_k), operand(n, b_k), (m, n, k), dtype, tier, false)?;
            }
            if m == k || n == k {
                let x = Operand { dtype, offset: 0, row: n as i64, k: 1, batch: vec![] };
                report("XX'", x.clone(), x, (n, n, n), dtype, tier, true)?;
            }
        }
    }
    Ok(())
}

fn report(
    layout: &str,
    a: Operand,
    b: Operand,
    (m, n, k): (usize, usize, usize),
    dtype: DType,
    tier: Tier,
    symmetric: bool,
) -> Result<(), String> {
    let kernel = Kernel::Gemm(Gemm {
        batch: vec![],
        m,
        n,
        k,
        a,
        b,
        compute: dtype,
        symmetric,
        accumulate: false,
        epilogue: copy(m, n, dtype),
        args: vec![EpilogueArg { offset: 0, batch: vec![], m: n as i64, n: 1 }],
        cut: None,
        library: false,
    });
    let loaded = Loaded::build(&[Job { kernel: kernel.clone(), tier }])?;
    // Random content: constant data runs at a higher clock.
    let mut state = 1u32;
    let mut fill = |elements: usize| -> Vec<u8> {
        let mut bytes = Vec::with_capacity(elements * dtype.bytes());
        for _ in 0..elements {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            let x = (state >> 8) as f32 / 8388608.0 - 1.0;
            match dtype {
                DType::F32 => bytes.extend(x.to_le_bytes()),
                _ => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
            }
        }
        bytes
    };
    let args = [fill(m * k), fill(n * k), fill(m * n)];
    let times = loaded.measure(&kernel, tier, &args, 20)?;
    let flops = 2.0 * (m * n * k) as f64;
    let all: f64 = times.iter().map(|t| t.1.as_secs_f64()).sum();
    let main = times.last().map_or(all, |t| t.1.as_secs_f64());
    println!(
        "{m}x{n}x{k} {layout} {dtype:?} {}: {:.0} GFLOP/s, with packing {:.0}",
        tier.name(),
        flops / main / 1e9,
        flops / all / 1e9
    );
    Ok(())
}
