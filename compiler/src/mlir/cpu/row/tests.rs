//! Emitted row kernels against the graph interpreter, on every tier this machine has.

use crate::graph::ir::DType;
use crate::kernel::Kernel;
use crate::kernel::row::samples::{self, Sample, Sizes};
use crate::kernel::row::{lower, random};
use crate::mlir::jit::Loaded;
use crate::mlir::object::Job;
use crate::mlir::tests::tiers;
use crate::mlir::tier::Tier;

fn run(samples: &[Sample], tier: Tier, seed: u64) -> Vec<(Vec<Vec<u8>>, Vec<Vec<u8>>)> {
    let kernels: Vec<Kernel> = samples.iter().map(|s| Kernel::Row(s.row.clone())).collect();
    let mut jobs: Vec<Job> = kernels.iter().map(|k| Job { kernel: k.clone(), tier }).collect();
    jobs.sort_by_key(|j| j.kernel.symbol());
    jobs.dedup();
    let loaded = Loaded::build(&jobs).unwrap();
    let run = |(s, k): (&Sample, &Kernel)| {
        let before = s.memory(seed);
        let mut after = before.clone();
        let launch = &k.launches()[0];
        let symbol = crate::mlir::cpu::symbol(k, launch.entry, tier);
        loaded
            .call(&symbol, launch.tasks, &mut after, launch.scratch as usize)
            .unwrap_or_else(|why| panic!("{}: {why}", s.name));
        (before, after)
    };
    samples.iter().zip(&kernels).map(run).collect()
}

fn check(samples: &[Sample]) {
    for tier in tiers() {
        for (s, (before, after)) in samples.iter().zip(run(samples, tier, 3)) {
            s.compare(&before, &after).unwrap_or_else(|why| panic!("{}: {why}", tier.name()));
        }
    }
}

#[test]
fn bodies_of_models() {
    let sizes = [
        Sizes { batch: 2, time: 3, heads: 2, dim: 16, block: 2, dtype: DType::F32 },
        Sizes { batch: 1, time: 61, heads: 2, dim: 20, block: 8, dtype: DType::Bf16 },
    ];
    check(&sizes.into_iter().flat_map(samples::all).collect::<Vec<_>>());
}

#[test]
fn strides_and_offsets() {
    let s = Sizes { batch: 2, time: 3, heads: 3, dim: 21, block: 2, dtype: DType::Bf16 };
    check(&samples::all(s).iter().map(Sample::spread).collect::<Vec<_>>());
}

#[test]
fn every_op_on_ragged_rows() {
    let of = |(i, dim): (usize, usize)| {
        let dtype = [DType::F32, DType::Bf16][i % 2];
        samples::ops(Sizes { batch: 1, time: 3, heads: 1, dim, block: 2, dtype })
    };
    check(&[1, 3, 8, 15, 16, 17, 40, 61, 1000].into_iter().enumerate().map(of).collect::<Vec<_>>());
}

#[test]
fn random_bodies() {
    let shapes = [
        Sizes { batch: 2, time: 4, heads: 2, dim: 20, block: 3, dtype: DType::F32 },
        Sizes { batch: 1, time: 7, heads: 3, dim: 16, block: 7, dtype: DType::Bf16 },
        Sizes { batch: 1, time: 3, heads: 5, dim: 3, block: 1, dtype: DType::F32 },
    ];
    let all = (1000..1036).map(|seed| random::body(seed, shapes[seed as usize % 3]));
    check(&all.filter(|s| lower::lower(&s.row).is_ok()).collect::<Vec<_>>());
}

/// The memory after a run, without what only some blocks write.
fn results(samples: &[Sample], tier: Tier) -> Vec<Vec<Vec<u8>>> {
    let without_sums = |(s, (_, after)): (&Sample, (_, Vec<Vec<u8>>))| {
        after.into_iter().zip(&s.row.args).filter(|(_, a)| !a.per_task).map(|(m, _)| m).collect()
    };
    samples.iter().zip(run(samples, tier, 5)).map(without_sums).collect()
}

#[test]
fn f32_bits_are_those_of_every_tier_and_block() {
    let sizes = |block| Sizes { batch: 2, time: 5, heads: 2, dim: 20, block, dtype: DType::F32 };
    // Those that store bf16 round with the tier's own instruction, which flushes subnormals.
    let bodies =
        |block| -> Vec<Sample> { samples::all(sizes(block)).into_iter().chain([samples::ops(sizes(block))]).collect() };
    let first = results(&bodies(1), Tier::V3);
    for tier in tiers() {
        for block in [1, 3, 10] {
            for ((a, b), s) in first.iter().zip(results(&bodies(block), tier)).zip(bodies(block)) {
                assert!(*a == b, "{} on {}", s.name, tier.name());
            }
        }
    }
}

#[test]
fn code_is_small_and_readable() {
    let s = Sizes { batch: 1, time: 4, heads: 2, dim: 20, block: 2, dtype: DType::Bf16 };
    let text = |sample: Sample| {
        let job = Job { kernel: Kernel::Row(sample.row), tier: Tier::V3 };
        let symbol = job.kernel.symbol();
        crate::mlir::object::text(&job, crate::mlir::object::Text::Mlir).unwrap().replace(&symbol, "row")
    };
    insta::assert_snapshot!("rms_norm", text(samples::rms_norm(s)));
    insta::assert_snapshot!("smear", text(samples::smear(s)));
    insta::assert_snapshot!("momentum", text(samples::momentum(s)));
    insta::assert_snapshot!("embed", text(samples::embed(s)));
}

/// Not a test: `cargo test --lib -- --ignored --nocapture row::tests::rates` prints the bandwidth of every body on one thread.
#[test]
#[ignore = "a measurement, not a test"]
fn rates() {
    for dtype in [DType::Bf16, DType::F32] {
        let s = Sizes { batch: 1, time: 1024, heads: 8, dim: 64, block: 16, dtype };
        for sample in samples::all(s) {
            let kernel = Kernel::Row(sample.row.clone());
            let bytes: u64 = kernel.launches().iter().map(|l| l.bytes).sum();
            print!("{:50}", sample.name);
            for tier in tiers() {
                let tier = tier.of_kernel(&kernel);
                let loaded = Loaded::build(&[Job { kernel: kernel.clone(), tier }]).unwrap();
                let memory = sample.memory(1);
                let best = loaded.measure(&kernel, tier, &memory, 30).unwrap()[0].1.as_secs_f64();
                print!(" {:8.1} us {:6.1} GB/s", best * 1e6, bytes as f64 / best / 1e9);
            }
            println!();
        }
    }
}
