//! Whatever the bytes, reading ends soon, on a small stack, with a tree or with messages that can be shown.

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use golf_grammar::dump::dump;
use golf_grammar::{Diagnostic, SourceMap, parse_expr, parse_file, parse_value, print, render, to_json};
use proptest::prelude::*;

/// Stack of a test thread: half of what Rust gives a thread, an eighth of what Linux gives a program.
const STACK: usize = 1 << 20;

/// Reads bytes in every way there is and checks what comes out. Gives the codes of the file's messages.
fn read(bytes: &[u8]) -> Vec<String> {
    let mut map = SourceMap::new();
    let file = map.add_bytes("t.golf", bytes);
    let parsed = parse_file(file, bytes);
    let codes = parsed.diagnostics.iter().map(|d| d.code.to_string()).collect();
    assert!(parsed.diagnostics.len() <= 50);
    show(&map, bytes, &parsed.diagnostics);
    if let Ok(tree) = parsed.clone().into_result() {
        let text = std::str::from_utf8(bytes).expect("only UTF-8 is accepted");
        let once = print::format(text, &tree);
        let again = parse_file(file, once.as_bytes()).into_result().expect("formatted text can be read");
        assert_eq!(dump(&tree), dump(&again));
        assert_eq!(once, print::format(&once, &again));
    }
    for errors in [parse_value(file, bytes).err(), parse_expr(file, bytes).err()].into_iter().flatten() {
        assert!(!errors.is_empty());
        show(&map, bytes, &errors);
    }
    codes
}

fn show(map: &SourceMap, bytes: &[u8], diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        for label in &diagnostic.labels {
            assert!(label.span.start <= label.span.end && label.span.end as usize <= bytes.len(), "{diagnostic:?}");
        }
        let text = render(map, diagnostic, false);
        assert!(text.contains(&diagnostic.code.to_string()));
        assert!(text.len() < 20_000, "a message of {} bytes", text.len());
        assert!(text.lines().all(|line| !line.chars().any(|c| c.is_control())), "control characters in a message");
        assert!(!to_json(map, diagnostic).contains('\n'));
    }
}

/// Reads on a small stack; fails when it takes longer than any sane machine needs.
fn read_in_time(name: &str, text: String) -> Vec<String> {
    let (sender, receiver) = mpsc::channel();
    let worker = thread::Builder::new().stack_size(STACK).spawn(move || sender.send(read(text.as_bytes())));
    let codes = receiver.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{name}: no answer"));
    worker.expect("a thread").join().expect("no panic").expect("sent");
    codes
}

/// Programs made to hurt: deep, long, repetitive.
fn nasty() -> Vec<(&'static str, String)> {
    let around = |open: &str, count: usize, middle: &str, close: &str| {
        format!("{}{middle}{}", open.repeat(count), close.repeat(count))
    };
    let a = |text: String| format!("const a = {text}");
    let f = |text: String| format!("fn f() {{ {text} }}");
    vec![
        ("open brackets", a("(".repeat(100_000))),
        ("nested brackets", a(around("(", 100_000, "1", ")"))),
        ("nested lists", a(around("[", 100_000, "1", "]"))),
        ("nested blocks", around("{", 100_000, "", "}")),
        ("mixed brackets", a(around("([{", 30_000, "", ")]}"))),
        ("closing brackets", ")".repeat(900_000)),
        ("pairs after an open one", a(format!("({}", "()".repeat(400_000)))),
        ("open items", "fn f() {\n".repeat(100_000)),
        ("as deep as allowed", a(around("(", 128, "1", ")"))),
        ("deep and wrong", a(around("(", 128, "1 1", ")"))),
        ("deep calls", a(around("f(a, b: x[", 64, "1 1", "])"))),
        ("deep ifs", f(around("if a { x = if b { 1 } else { b\n", 60, "= =", "}}"))),
        ("deep ifs in conditions", f(around("if ", 380, "a", " { b }"))),
        ("deep ifs in defaults", format!("layer f() {{ {} }}", around("apply(x = if a { ", 40, "= =", " })"))),
        ("deep settings", format!("train {}", around("{ a = b ", 120, "x", "}"))),
        ("deep types", format!("fn f(x: {}) {{}}", around("(a: ", 120, "1", ")"))),
        ("deep patterns", f(format!("let {} = 1", around("(a, ", 120, "b", ")")))),
        ("not quite a pattern", f(format!("{} == 1", around("(", 120, "b", ")")))),
        ("open interpolation", a(format!("\"{}\"", "{(".repeat(100_000)))),
        ("sums", a(format!("1{}", " + 1".repeat(200_000)))),
        ("powers", a(format!("1{}", " ^ 1".repeat(200_000)))),
        ("signs", a(format!("{}1", "-".repeat(900_000)))),
        ("nots", a(format!("{}1", "not ".repeat(200_000)))),
        ("fields", a(format!("x{}", ".a".repeat(400_000)))),
        ("calls", a(format!("x{}", "()".repeat(400_000)))),
        ("else ifs", f(format!("if a {{ 1 }}{}", " else if a { 1 }".repeat(50_000)))),
        ("else groups", f(format!("param w ~ x in a{}", " if b else c".repeat(70_000)))),
        ("else values", format!("train {{ a = b{} }}", " else b".repeat(100_000))),
        ("as long as allowed", f(format!("1{}", " + 1".repeat(399)))),
        ("empty lines", "\n".repeat(900_000)),
        ("empty lines before a brace", format!("fn f(){}{{}}", "\n".repeat(900_000))),
        ("comments", "# x\n".repeat(200_000)),
        ("words", "a ".repeat(400_000)),
        ("words as arguments", a(format!("f({})", "a ".repeat(400_000)))),
        ("words and an arrow", a(format!("f({} ->)", "a ".repeat(400_000)))),
        ("lines", "a\n".repeat(400_000)),
        ("bad characters", "@".repeat(900_000)),
        ("lines of bad characters", "@\n".repeat(400_000)),
        ("quotes", "\"".repeat(900_001)),
        ("lines of quotes", "\"\n".repeat(400_000)),
        ("interpolations", a(format!("\"{}\"", "{a}".repeat(200_000)))),
        ("a long word", format!("const {}", "a".repeat(900_000))),
        ("a long number", a("1".repeat(900_000))),
        ("many items", "const a = 1\n".repeat(50_000)),
        ("many bad items", "const a = = 1\n".repeat(60_000)),
        ("a long list", a(format!("[{}]", "1, ".repeat(150_000)))),
        ("a long list and a mistake", a(format!("[{}1 1]", "1, ".repeat(200_000)))),
        ("many axes", a(format!("f(x over {}t)", "t, ".repeat(100_000)))),
    ]
}

#[test]
fn nasty_programs_are_read_in_time() {
    for (name, text) in nasty() {
        assert!(text.len() <= 1_000_000, "{name} is too long to be a test");
        read_in_time(name, text);
    }
}

#[test]
fn a_hundred_thousand_brackets_are_one_message() {
    for open in ["(", "[", "{"] {
        let text = format!("const a = {}\nconst b = 1\nconst c = = 2\n", open.repeat(100_000));
        assert_eq!(read_in_time(open, text), ["GOLF0003", "GOLF0007"], "and the items after it are read");
    }
}

#[test]
fn ten_megabytes_of_noise_are_one_message() {
    let mut random = common::Random::new(1);
    let noise: Vec<u8> = (0..10_000_000).map(|_| random.next() as u8).collect();
    assert_eq!(read(&noise), ["GOLF0002"]);
    assert_eq!(read(&noise[..900_000]), ["GOLF0001"]);
}

const TOKENS: &[&str] = &[
    "(", ")", "[", "]", "{", "}", ",", ";", ":", ".", "..", "->", "=", "==", "+", "-", "*", "/", "//", "^", "??",
    "\"a\"", "\"b{i}\"", "1", "2.5", "3s", "a", "b", "if", "else", "for", "in", "let", "param", "state", "fn", "layer",
    "model", "train", "use", "const", "axis", "over", "as", "not", "and", "or", "none", "true", "on", "where", "phase",
    "\n", "# c\n", "~", "?", "<", ">", "apply", "\"", "\"{", "é", "\u{1b}", "\t", "\r\n", "\\",
];

/// A program with a few random edits: bytes cut out, doubled, moved, replaced by a token, or the end cut off.
fn mutated(seed: u64) -> String {
    let mut random = common::Random::new(seed);
    let mut text = match random.below(3) {
        0 => include_str!("data/vrl11.golf").to_string(),
        _ => common::program(random.next()),
    };
    for _ in 0..1 + random.below(4) {
        let mut at = |text: &str| {
            let mut at = random.below(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let (one, other) = (at(&text), at(&text));
        let (start, end) = (one.min(other), one.max(other).min(one.min(other) + 200));
        let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
        let part = text[start..end].to_string();
        match random.below(6) {
            0 => text.replace_range(start..end, ""),
            1 => text.insert_str(end, &part),
            2 => {
                text.replace_range(start..end, "");
                let mut at = random.below(text.len() + 1);
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                text.insert_str(at, &part);
            }
            3 if start > 20 => text.truncate(start),
            _ => text.insert_str(start, random.pick(TOKENS)),
        }
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        read(&bytes);
    }

    #[test]
    fn random_ascii(text in "[ -~\n\t]{0,300}") {
        read(text.as_bytes());
    }

    #[test]
    fn random_text(text in ".{0,200}") {
        read(text.as_bytes());
    }

    #[test]
    fn random_tokens(tokens in proptest::collection::vec(proptest::sample::select(TOKENS), 0..150), by in "[ \n]?") {
        read(tokens.join(&by).as_bytes());
    }

    #[test]
    fn random_tokens_in_a_body(tokens in proptest::collection::vec(proptest::sample::select(TOKENS), 0..12)) {
        read(format!("layer l() {{\n    let a = 1\n    {}\n}}\n", tokens.join(" ")).as_bytes());
    }

    #[test]
    fn mutated_programs(seed in any::<u64>()) {
        read(mutated(seed).as_bytes());
    }
}

/// Every beginning of a real program.
#[test]
fn truncated_programs() {
    let text = include_str!("data/vrl11.golf");
    for end in (0..text.len()).step_by(7).filter(|end| text.is_char_boundary(*end)) {
        read(&text.as_bytes()[..end]);
    }
}
