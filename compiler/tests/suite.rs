//! Wrong programs and what golfc says about them: tests/suite/*.golf, each with several cases, against one snapshot per file.
//!
//! A case is `=== name` and a text, in which `@header` (`@plain`: without quantizers), `@model`, `@train`, `@quantize`,
//! `@evaluate` and `@blocks` (the last three) stand for parts of a small right program, `@weighed` for a quantizer that takes inputs, lines between `@body` and `@end` for a model that has them in the middle, and
//! `@set PATH=EXPR` for an override. Refresh with `INSTA_UPDATE=always cargo test --test suite`, and read the difference.

mod common;

use golf_compiler::lang::{Input, load};
use golf_grammar::{SourceMap, render_all};

const HEADER: &str = "\
use std.{norm, optim, quant}
const vocab = 16, dim = 8, seq = 8
axis t = seq, v = vocab, d = dim
";
const BEFORE: &str = "\
model(tokens: [b t]) -> logits [b t v] {
    param emb[v, d] ~ normal(0.02) in matrices
    let x = gather(emb, tokens over v)
";
const AFTER: &str = "\
    dot(rms_norm(x over d), emb over d)
}
";
const TRAIN: &str =
    "train { data = stream(\"train_*.bin\"), batch = 64, adamw on matrices { lr = 0.01 }, stop = 60s }\n";
const QUANTIZE: &str = "quantize { int8 on all }\n";
const EVALUATE: &str = "evaluate { data = stream(\"val_*.bin\"), window = 8, stride = 4 }\n";

/// A quantizer that takes inputs.
const WEIGHED: &str = "\
quantizer weighed<R, C, K>(w: [R C], inputs: [C K]) {
    let q = round(w) + 0 * sum(inputs)
    (codes: cast(q, i8), scale: cast(1 + 0 * max(abs(w) over C), f16), dequant: q)
}
";

/// The program of a case and its overrides.
fn program(case: &str) -> (String, Vec<String>) {
    let (mut text, mut sets) = (String::new(), Vec::new());
    for line in case.lines() {
        match line.trim() {
            "@header" => text.push_str(HEADER),
            "@plain" => text.push_str(&HEADER.replace(", quant", "")),
            "@weighed" => text.push_str(WEIGHED),
            "@model" => text.push_str(&format!("{BEFORE}{AFTER}")),
            "@train" => text.push_str(TRAIN),
            "@quantize" => text.push_str(QUANTIZE),
            "@evaluate" => text.push_str(EVALUATE),
            "@blocks" => text.push_str(&format!("{TRAIN}{QUANTIZE}{EVALUATE}")),
            "@body" => text.push_str(BEFORE),
            "@end" => text.push_str(AFTER),
            other => match other.strip_prefix("@set ") {
                Some(set) => sets.push(set.to_string()),
                None => {
                    text.push_str(line);
                    text.push('\n');
                }
            },
        }
    }
    (text, sets)
}

fn verdict(case: &str) -> String {
    let (text, sets) = program(case);
    let mut map = SourceMap::new();
    let input = Input { path: "case.golf", bytes: text.as_bytes(), sets: &sets };
    match load(&mut map, &input) {
        Err(list) => render_all(&map, &list, false),
        Ok(m) if m.warnings.is_empty() => "accepted\n".to_string(),
        Ok(m) => format!("accepted, with warnings\n{}", render_all(&map, &m.warnings, false)),
    }
}

fn check(file: &str) {
    let text = std::fs::read_to_string(common::repository(&format!("tests/suite/{file}.golf"))).unwrap();
    let mut out = String::new();
    for case in text.split("\n=== ").skip(1) {
        let (name, body) = case.split_once('\n').unwrap();
        out.push_str(&format!("=== {name}\n{}\n", verdict(body).trim_end()));
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true, snapshot_path => "../../tests/suite" }, {
        insta::assert_snapshot!(file, out);
    });
}

#[test]
fn names() {
    check("names");
}

#[test]
fn calls() {
    check("calls");
}

#[test]
fn values() {
    check("values");
}

#[test]
fn tensors() {
    check("tensors");
}

#[test]
fn parameters() {
    check("parameters");
}

#[test]
fn settings() {
    check("settings");
}

#[test]
fn calibration() {
    check("calibration");
}

#[test]
fn overrides() {
    check("overrides");
}

#[test]
fn every_code_of_the_language_occurs() {
    let all: String = ["names", "calls", "values", "tensors", "parameters", "settings", "calibration", "overrides"]
        .iter()
        .map(|file| std::fs::read_to_string(common::repository(&format!("tests/suite/{file}.snap"))).unwrap())
        .collect();
    let missing: Vec<String> = golf_compiler::lang::codes::CODES
        .iter()
        .filter(|info| !all.contains(&info.code.to_string()))
        .map(|info| format!("{} {}", info.code, info.text))
        .collect();
    assert!(missing.is_empty(), "no case gives:\n{}", missing.join("\n"));
}
