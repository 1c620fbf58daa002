//! How many wrong kernels with tensor cores the emulator notices. `make test-long` runs the whole survey, `make test` a part of it.

use super::*;
use crate::graph::ir::DType;
use crate::kernel::attend::{Pass, samples};
use crate::kernel::gpu::gemm::{Cut, TILES};
use crate::mlir::gpu::attend::tests::{Case, kernel};
use crate::mlir::gpu::gemm::tests::gemm;

/// Share of the mutants that matter which must be noticed.
const SHARE: f64 = 0.95;

/// Surveys a kernel and prints what was found, as rows of a table and lists.
fn report(name: &str, kernel: &Kernel, step: usize) -> Survey {
    let survey = survey(kernel, 1, step).unwrap_or_else(|e| panic!("{name}: {e}"));
    let (caught, tried, missed) = (survey.caught, survey.tried(), survey.missed.len());
    let equivalent: usize = survey.equivalent.values().sum();
    println!("| {name} | {tried} | {caught} | {equivalent} | {missed} | {:.1}% |", 100.0 * survey.share());
    survey.equivalent.iter().for_each(|(reason, n)| println!("  equivalent: {n} of {name}: {reason}"));
    survey.missed.iter().for_each(|what| println!("  missed: {name}: {what}"));
    survey
}

/// A contraction cut by one of [`TILES`]: a few tiles of C in one block, ragged on every side, together deep enough to go around the ring twice.
fn contraction(tile: usize, step: usize) -> Survey {
    let t = TILES[tile];
    let majors = [(true, false), (false, true), (true, true), (false, false)][tile % 4];
    let mut g = gemm(1, (2 * t.rows - 8, 2 * t.cols - 8, 456), majors, DType::F32);
    g.cut = Some(Cut { tile: t, splits: Some(1), blocks: Some(1) });
    report(&format!("contraction, {t}"), &Kernel::Gemm(g), step)
}

/// Attention long enough to go around every ring; `finished`: with an epilogue.
fn attention(pass: Pass, dim: usize, finished: bool) -> Survey {
    let c = Case { batch: 1, time: 650, kv: 1, group: 1, dim, causal: true, window: None, document: false };
    let name = format!("attention, {pass:?}, head {dim}{}", if finished { ", with an epilogue" } else { "" });
    let kernel = match kernel(c, pass) {
        Kernel::Attend(k) if finished => Kernel::Attend(samples::finished(k, true)),
        kernel => kernel,
    };
    report(&name.to_lowercase(), &kernel, 1)
}

#[test]
fn a_part_of_the_survey() {
    let found = contraction(TILES.len() - 1, 4);
    assert!(found.tried() > 20 && found.share() >= SHARE, "{found:#?}");
}

#[test]
#[ignore = "minutes: make test-long"]
fn whole_survey_contractions() {
    for tile in 0..TILES.len() {
        let found = contraction(tile, 1);
        assert!(found.share() >= SHARE, "{found:#?}");
    }
}

#[test]
#[ignore = "minutes: make test-long"]
fn whole_survey_attention() {
    for dim in [64, 128] {
        for (pass, finished) in [(Pass::Forward, false), (Pass::Forward, true), (Pass::Backward, false)] {
            let found = attention(pass, dim, finished);
            assert!(found.share() >= SHARE, "{found:#?}");
        }
    }
}
