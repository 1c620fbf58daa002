//! Loop programs against the graph interpreter.

use super::loops::Program;
use super::samples::{self, Sample, Sizes};
use super::{lower, random, run};
use crate::graph::ir::{Binary, DType};

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

/// Random bodies, but for the very few (one in thousands) whose shifted views of views do not fit loops: these are refused, not wrong.
#[test]
fn random_bodies_equal_the_interpreter() {
    let mut refused = 0;
    for seed in 0..400 {
        let sample = random::body(seed, SHAPES[seed as usize % SHAPES.len()]);
        match lower::lower(&sample.row) {
            Err(why) if why.contains("do not fit loops") => refused += 1,
            _ => try_out(&sample),
        }
    }
    assert!(refused <= 1, "{refused} refused");
}

/// Addresses with gaps, another storage order and an offset.
#[test]
fn strides_and_offsets() {
    for s in SHAPES {
        for sample in samples::all(s) {
            try_out(&sample.spread());
        }
    }
}

#[test]
fn every_op_on_ragged_rows() {
    for (i, dim) in [1, 3, 8, 15, 16, 17, 40, 61, 1000].into_iter().enumerate() {
        let dtype = [DType::F32, DType::Bf16][i % 2];
        try_out(&samples::ops(Sizes { batch: 1, time: 3, heads: 1, dim, block: 2, dtype }));
    }
}

fn refusal(make: impl FnOnce(&mut samples::Body)) -> String {
    let mut body = samples::Body::tokens(SHAPES[0]);
    make(&mut body);
    lower::lower(&body.finish("refused").row).expect_err("refused")
}

#[test]
fn what_row_kernels_cannot_do_is_named() {
    let over_rows = refusal(|body| {
        let d = body.axis("d", 4);
        let x = body.activation("x", &[d]);
        let outer = body.outer.clone();
        let sum = body.b.sum(x, &outer).unwrap();
        let y = body.b.outer(Binary::Mul, x, sum).unwrap();
        body.write("y", &[d], y);
    });
    assert!(over_rows.contains("outer axis `b`"), "{over_rows}");
    let shifted = refusal(|body| {
        let d = body.axis("d", 4);
        let x = body.activation("x", &[d]);
        let sum = body.b.sum(x, &[d]).unwrap();
        let t = body.outer[1];
        let y = body.b.shift(sum, t, 1).unwrap();
        body.write("y", &[], y);
    });
    assert!(shifted.contains("shift along the outer axis `t`"), "{shifted}");
    let other_rows = refusal(|body| {
        let d = body.axis("d", 4);
        let x = body.activation("x", &[d]);
        let t = body.outer[1];
        let y = body.b.shift(x, t, 1).unwrap();
        body.update("x", y);
    });
    assert!(other_rows.contains("reads other rows"), "{other_rows}");
    let random = refusal(|body| {
        let d = body.axis("d", 4);
        let counter = body.b.int(3);
        let axes = body.rows(&[d]);
        let y = body.b.random(1, false, counter, &axes).unwrap();
        body.write("y", &[d], y);
    });
    assert!(random.contains("`random` cannot be part"), "{random}");
    let missing = refusal(|body| {
        let d = body.axis("d", 4);
        let p = body.input("p", DType::F32, &[d], samples::Fill::Real);
        body.output("y", DType::F32, &[d], p);
    });
    assert!(missing.contains("every row along `b`"), "{missing}");
}

/// Loops over the same positions become one, dear values are computed once, addresses fold.
#[test]
fn programs_are_readable() {
    let s = Sizes { batch: 1, time: 4, heads: 4, dim: 32, block: 2, dtype: DType::Bf16 };
    insta::assert_snapshot!("mix", lowered(&samples::mix(s)).to_string());
    insta::assert_snapshot!("rope", lowered(&samples::rope(s)).to_string());
    insta::assert_snapshot!("loss_grad", lowered(&samples::loss(s, true)).to_string());
    insta::assert_snapshot!("adamw", lowered(&samples::adamw(s)).to_string());
}
