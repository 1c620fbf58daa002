//! Time of the attention kernels on one thread: `cargo run --release --example attend_bench [TIME]`.
//!
//! Prints useful GFLOP/s (causal work only). Compare within one run; absolute figures of a shared machine mean little.

use golf_compiler::graph::ir::{Bits, DType};
use golf_compiler::kernel::Kernel;
use golf_compiler::kernel::attend::{AttendKernel, Pass, Strides};
use golf_compiler::mlir::jit::Loaded;
use golf_compiler::mlir::object::Job;
use golf_compiler::mlir::tier::Tier;
use std::time::Instant;

fn main() -> Result<(), String> {
    let time: usize =
        std::env::args().nth(1).map_or(Ok(1024), |a| a.parse().map_err(|_| "TIME is a number".to_string()))?;
    let (kv, group, dim) = (4usize, 2usize, 64usize);
    let q =
        Strides { offset: 0, batch: 0, time: (kv * group * dim) as i64, kv: (group * dim) as i64, group: dim as i64 };
    let k = Strides { offset: 0, batch: 0, time: (kv * dim) as i64, kv: dim as i64, group: 0 };
    for (dtype, tier) in [(DType::F32, Tier::V3), (DType::Bf16, Tier::V3), (DType::Bf16, Tier::Avx512Bf16)] {
        if !tier.runs_here() {
            continue;
        }
        for pass in [Pass::Forward, Pass::Backward] {
            let kernel = Kernel::Attend(AttendKernel {
                pass,
                batch: 1,
                time,
                kv,
                group,
                dim,
                dtype,
                scale: Bits::new(0.125),
                causal: true,
                window: None,
                document: false,
                q,
                k,
                v: k,
                y: q,
                epilogue: None,
                dy: q,
                dq: q,
                dk: k,
                dv: k,
            });
            let loaded = Loaded::build(&[Job { kernel: kernel.clone(), tier }])?;
            let (nq, nk) = (time * kv * group * dim * dtype.bytes(), time * kv * dim * dtype.bytes());
            let lse = time * kv * group * 4;
            let sizes = match pass {
                Pass::Forward => vec![nq, nk, nk, nq, lse],
                Pass::Backward => vec![nq, nk, nk, nq, lse, nq, nq, nk, nk],
            };
            let mut args: Vec<Vec<u8>> = sizes.into_iter().map(|n| vec![0u8; n]).collect();
            let mut best = f64::MAX;
            for _ in 0..5 {
                let start = Instant::now();
                loaded.run(&kernel, tier, &mut args)?;
                best = best.min(start.elapsed().as_secs_f64());
            }
            let flops: u64 = kernel.launches().iter().map(|l| l.flops).sum();
            println!(
                "{dtype:?} {} {pass:?} T={time}: {:.2} ms, {:.0} GFLOP/s (one thread, with copies)",
                tier.name(),
                best * 1e3,
                flops as f64 / best / 1e9
            );
        }
    }
    Ok(())
}
