//! Programs that nobody would write: whatever the text, golfc answers with a model or with diagnostics, and in bounded time.

mod common;

use golf_compiler::lang::{Input, load};
use golf_grammar::{SourceMap, render_all};

/// Loads a text; gives the number of errors. Panics are what this test is about.
fn errors(text: &[u8]) -> usize {
    let mut map = SourceMap::new();
    match load(&mut map, &Input { path: "hostile.golf", bytes: text, sets: &[] }) {
        Ok(m) => {
            render_all(&map, &m.warnings, false);
            0
        }
        Err(list) => {
            assert!(list.iter().any(|d| d.is_error()), "refused without an error");
            render_all(&map, &list, false);
            list.len()
        }
    }
}

/// Words, numbers, strings and single signs of a text.
fn tokens(text: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || c == '_' || c == '.' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            out.push(std::mem::take(&mut word));
        }
        out.push(c.to_string());
    }
    out.push(word);
    out
}

#[test]
fn mutated_programs_never_panic() {
    let path = common::repository("models/tiny.golf");
    let text = std::fs::read_to_string(path).unwrap();
    // Comments out, so that changes hit code.
    let text: String = text.lines().map(|line| format!("{}\n", line.split('#').next().unwrap_or(""))).collect();
    let source = tokens(&text);
    let words: Vec<usize> = (0..source.len()).filter(|i| !source[*i].trim().is_empty()).collect();
    let mut state = 20_240_520u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut refused = 0;
    for round in 0..250 {
        let mut list = source.clone();
        for _ in 0..1 + round % 3 {
            let (at, other) = (words[random(words.len())], words[random(words.len())]);
            match random(5) {
                0 => list[at] = String::new(),
                1 => list[at] = source[other].clone(),
                2 => list.swap(at, other),
                3 => list[at] = format!("{} {}", source[at], source[other]),
                _ => {
                    list[at] = ["0", "-1", "none", "1e300", "9_223_372_036_854_775_807", "[]", "()", "\"\""][random(8)]
                        .to_string()
                }
            }
        }
        refused += usize::from(errors(list.concat().as_bytes()) > 0);
    }
    assert!(refused > 150, "only {refused} of 250 mutated programs were refused");
}

/// A program around some items and lines of the model.
fn around(items: &str, body: &str) -> String {
    format!(
        "use std.optim\naxis t = 4, v = 6, d = 8\n{items}\nmodel(tokens: [b t]) -> logits [b t v] {{\n\
         param emb[v, d] ~ zeros in tables\nlet x = gather(emb, tokens over v)\n{body}\ndot(x, emb over d)\n}}\n\
         train {{ data = stream(\"a\"), batch = 4, stop = 1s, sgd on all {{ lr = 1 }} }}\n\
         quantize {{ f16 on all }}\nevaluate {{ data = stream(\"b\"), window = 4 }}\n"
    )
}

#[test]
fn deep_and_long_programs_end() {
    let sum = vec!["x"; 300].join(" + ");
    assert_eq!(errors(around("", &format!("x = {sum}")).as_bytes()), 0);
    let nested = format!("x = {}x{}", "sqrt(".repeat(100), ")".repeat(100));
    assert_eq!(errors(around("", &nested).as_bytes()), 0);
    // Two hundred calls, each inside a hundred brackets: deeper than any program, not deeper than the stack.
    let deep = format!("fn f(n) {{ {}f(n + 1){} }}", "(1 + ".repeat(100), ")".repeat(100));
    assert!(errors(around(&deep, "x = x * f(0)").as_bytes()) > 0);
    let twice = "fn f(n) { if n == 0 { 1 } else { f(n - 1) + f(n - 1) } }";
    assert!(errors(around(twice, "x = x * f(60)").as_bytes()) > 0, "exponential recursion is cut off");
    let long = "fn f(s, n) { if n == 0 { s } else { f(\"{s}{s}\", n - 1) } }";
    let label = "layer l() {\nparam w[d] ~ ones in tables\napply(x) { w * x }\n}";
    let body = "let y = l() as f(\"ab\", 60)";
    assert!(errors(around(&format!("{long}\n{label}"), body).as_bytes()) > 0);
    let text = format!("{long}\n{label}");
    assert!(
        errors(around(&text, "let y = l() as \"{f(\"a\", 60)}\"\nx = y(x)").as_bytes()) > 0,
        "strings do not grow for ever"
    );
    let blocks: String = (0..2000)
        .map(|i| format!("const c{i} = {}\n", if i == 0 { "1".into() } else { format!("c{} + 1", i - 1) }))
        .collect();
    assert_eq!(errors(around(&blocks, "x = x * c1999").as_bytes()), 0);
    let lists = "let l: list = [1]\nfor i in 0..3000 { l.push(l) }\nx = x * l.len";
    errors(around("", lists).as_bytes());
}

#[test]
fn large_sizes_are_refused_or_accepted_without_memory() {
    assert!(errors(around("axis big = 4_000_000_000", "x = x * size(big)").as_bytes()) > 0);
    let body = "axis p = 2_000_000_000\naxis r = 2_000_000_000\nparam w[p, r] ~ zeros in tables\nx = x * sum(w)";
    assert!(errors(around("", body).as_bytes()) > 0);
    let body = "axis p = 1_000_000_000\nparam w[p] ~ zeros in tables\nx = x * sum(w)";
    assert_eq!(errors(around("", body).as_bytes()), 0);
}
