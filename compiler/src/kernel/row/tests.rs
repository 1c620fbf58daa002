//! Loop programs against the graph interpreter.

use super::loops::Program;
use super::samples::{self, Sample, Sizes};
use super::{lower, run};
use crate::graph::ir::DType;

fn lowered(sample: &Sample) -> Program {
    lower::lower(&sample.row).unwrap_or_else(|why| panic!("{}: {why}", sample.name))
}

fn try_out(sample: &Sample) {
    let program = lowered(sample);
    let before = sample.memory(7);
    let mut after = before.clone();
    if let Err(why) = run::run(&program, &mut after).and_then(|()| sample.compare(&before, &after)) {
        panic!("{}: {why}\n{program}", sample.name);
    }
}

const SHAPES: [Sizes; 7] = [
    Sizes { batch: 2, time: 3, heads: 2, dim: 8, block: 2, dtype: DType::F32 },
    Sizes { batch: 1, time: 5, heads: 3, dim: 16, block: 5, dtype: DType::Bf16 },
    Sizes { batch: 2, time: 4, heads: 1, dim: 17, block: 3, dtype: DType::F32 },
    Sizes { batch: 1, time: 61, heads: 5, dim: 3, block: 8, dtype: DType::F32 },
    Sizes { batch: 1, time: 3, heads: 2, dim: 40, block: 1, dtype: DType::Bf16 },
    Sizes { batch: 1, time: 1, heads: 1, dim: 61, block: 1, dtype: DType::F32 },
    Sizes { batch: 2, time: 2, heads: 1, dim: 2, block: 4, dtype: DType::F32 },
];

#[test]
fn bodies_of_models_equal_the_interpreter() {
    for s in SHAPES {
        for sample in samples::all(s) {
            try_out(&sample);
        }
    }
}
