//! Emitted row kernels against the graph interpreter, on every tier this machine has.

use crate::graph::ir::DType;
use crate::kernel::Kernel;
use crate::kernel::row::samples::{self, Sample, Sizes};
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
        loaded.run(k, tier, &mut after).unwrap_or_else(|why| panic!("{}: {why}", s.name));
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
