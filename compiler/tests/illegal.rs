//! golfc itself on programs it must refuse: illegal evaluations with their near misses, and bad input of every kind.
//!
//! Each refusal is checked as a user meets it: the exit code, a message that says what and where, no panic, and no file left behind.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

const HEADER: &str = "\
use std.{norm, optim, quant}
const vocab = 16, dim = 8, seq = 8
axis t = seq, v = vocab, d = dim
";

/// The parts of a small right program that a case changes.
#[derive(Clone, Copy)]
struct Program<'a> {
    items: &'a str,
    inputs: &'a str,
    body: &'a str,
    train: &'a str,
    quantize: &'a str,
    evaluate: &'a str,
}

const RIGHT: Program = Program {
    items: "",
    inputs: "tokens: [b t]",
    body: "",
    train: "data = stream(\"train_*.bin\")",
    quantize: "int8 on all",
    evaluate: "",
};

impl Program<'_> {
    fn text(&self) -> String {
        format!(
            "{HEADER}{}\nmodel({}) -> logits [b t v] {{\n    param emb[v, d] ~ normal(0.02) in tables\n    \
             let x = gather(emb, tokens over v)\n{}\n    dot(rms_norm(x over d), emb over d)\n}}\n\
             train {{ {}, batch = 64, adamw on all {{ lr = 0.01 }}, stop = 60s }}\nquantize {{ {} }}\n\
             evaluate {{ data = stream(\"val_*.bin\"), window = 8, stride = 4{} }}\n",
            self.items, self.inputs, self.body, self.train, self.quantize, self.evaluate
        )
    }
}

/// What golfc did.
struct Outcome {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs golfc in a folder.
fn golfc(dir: &Path, arguments: &[&str]) -> Outcome {
    let out = Command::new(env!("CARGO_BIN_EXE_golfc")).args(arguments).current_dir(dir).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    Outcome { code: out.status.code(), out: text(out.stdout), err: text(out.stderr) }
}

/// Names in a folder.
fn names(dir: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

/// golfc must refuse: this exit code, so many errors, each of these texts in the message, nothing on stdout, no panic, no new file.
fn refused(dir: &TempDir, arguments: &[&str], code: i32, errors: usize, texts: &[&str]) {
    let before = names(dir.path());
    let found = golfc(dir.path(), arguments);
    let what = format!("golfc {}\n{}{}", arguments.join(" "), found.out, found.err);
    assert_eq!(found.code, Some(code), "{what}");
    assert_eq!(found.err.lines().filter(|l| l.starts_with("error")).count(), errors, "number of errors: {what}");
    for text in texts {
        assert!(found.err.contains(text), "does not say `{text}`: {what}");
    }
    assert!(!found.err.contains("panicked"), "{what}");
    assert_eq!(found.out, "", "{what}");
    assert_eq!(names(dir.path()), before, "files left behind: {what}");
}

/// A folder with one program, `case.golf`.
fn folder(text: impl AsRef<[u8]>) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("case.golf"), text).unwrap();
    dir
}

/// The program is refused with one error that names the rule and shows the line that holds `line`.
fn illegal(program: Program, rule: &str, line: &str) {
    let text = program.text();
    let number = 1 + text.lines().position(|l| l.contains(line)).unwrap_or_else(|| panic!("no line `{line}`"));
    let place = format!("case.golf:{number}:");
    for flags in [&["--check"][..], &["-o", "x"]] {
        refused(&folder(&text), &[&["case.golf"], flags].concat(), 1, 1, &[rule, &place, line]);
    }
}

/// The program is accepted, and the perturbation test agrees.
fn legal(program: Program) {
    let found = golfc(folder(program.text()).path(), &["case.golf", "--check-legality"]);
    assert_eq!((found.code, found.err.as_str()), (Some(0), ""), "{}", program.text());
}

const FUTURE: &str = "rule 1: the prediction at a position may depend on tokens up to that position only";
const SCORED_FIRST: &str = "rule 3: the state that scores a token must never have seen it";

#[test]
fn adapting_before_scoring_is_refused() {
    let adapt = ", adapt = chunked(8) { sgd on all { lr = 0.1 }, order = adapt_first }";
    illegal(Program { evaluate: adapt, ..RIGHT }, SCORED_FIRST, "order = adapt_first");
    legal(Program { evaluate: ", adapt = chunked(8) { sgd on all { lr = 0.1 }, order = score_first }", ..RIGHT });
    legal(Program { evaluate: ", adapt = chunked(8) { sgd on all { lr = 0.1 } }", ..RIGHT });
}

#[test]
fn targets_in_the_logits_are_refused() {
    let rule = "targets, positions to come and data of other files cannot enter";
    illegal(Program { inputs: "tokens: [b t], targets: [b t]", ..RIGHT }, rule, "targets: [b t]");
    // The target of a position is the next token: under that name too.
    let next = "    let target = shift(tokens, -1 over t)\n    x = x + gather(emb, target over v)";
    illegal(Program { body: next, ..RIGHT }, FUTURE, "shift(tokens, -1 over t)");
    let before = "    let before = shift(tokens, 1 over t)\n    x = x + gather(emb, before over v)";
    legal(Program { body: before, ..RIGHT });
}

#[test]
fn future_tokens_through_split_and_merge_are_refused() {
    let items = "axis c = 4, i = 2";
    let pairs = "    let pairs = split(x, t -> c i)\n    x = x + merge(broadcast(pairs[i = 1] over i), c i -> t)";
    illegal(Program { items, body: pairs, ..RIGHT }, FUTURE, "split(x, t -> c i)");
    let merged = "    let flat = merge(x, t d -> w)\n    x = x + split(dot(mix, flat over w), u -> t d)";
    let items = "axis w = 64, u = 64";
    let body = format!("    param mix[u, w] ~ zeros in tables\n{merged}");
    illegal(Program { items, body: &body, ..RIGHT }, FUTURE, "merge(x, t d -> w)");
    // The same on channels is what heads are.
    let heads = "    let heads = split(x, d -> c i)\n    x = x + merge(broadcast(heads[i = 1] over i), c i -> d)";
    legal(Program { items: "axis c = 4, i = 2", body: heads, ..RIGHT });
}

#[test]
fn statistics_over_positions_are_refused() {
    // Through the prelude: the line shown is the user's.
    illegal(Program { body: "    x = x - mean(x over t)", ..RIGHT }, FUTURE, "mean(x over t)");
    illegal(Program { body: "    x = x / max(1, max(abs(x) over t))", ..RIGHT }, FUTURE, "max(abs(x) over t)");
    illegal(Program { body: "    x = x + cumsum(x over t, reverse: true)", ..RIGHT }, FUTURE, "reverse: true");
    let rows = "rule 1: a row of the batch may not depend on other rows";
    illegal(Program { body: "    x = x - mean(x over b)", ..RIGHT }, rows, "mean(x over b)");
    // Of channels, of what came before, of numbers that are no tokens.
    legal(Program { body: "    x = x - mean(x over d)", ..RIGHT });
    legal(Program { body: "    x = x + cumsum(x over t)", ..RIGHT });
    legal(Program { body: "    x = x / sum(cast(iota(t), f32) over t)", ..RIGHT });
}

#[test]
fn attention_to_later_positions_is_refused() {
    illegal(Program { body: "    x = x + attend(x, x, x, full over t, d)", ..RIGHT }, FUTURE, "full over t");
    let by_hand = "    let keys = rename(x, t -> s)\n    x = x + dot(dot(x, keys over d), keys over s)";
    illegal(Program { items: "axis s like t", body: by_hand, ..RIGHT }, FUTURE, "dot(x, keys over d)");
    legal(Program { body: "    x = x + attend(x, x, x, causal over t, d)", ..RIGHT });
}

#[test]
fn validation_data_in_training_or_calibration_is_refused() {
    let train = "data = stream(\"*.bin\")";
    illegal(Program { train, ..RIGHT }, "rule 3: a token may be trained on only after it was scored", train);
    let quantize = "int8 on all, calibrate = stream(\"val_0*.bin\")";
    illegal(Program { quantize, ..RIGHT }, "rule 3: validation data may only be scored", "calibrate");
    let trained = "gptq8 on all, calibrate = stream(\"train_0*.bin\")";
    legal(Program { quantize: trained, ..RIGHT });
    // Other files, even of a similar name.
    legal(Program { train: "data = stream(\"xval_*.bin\")", ..RIGHT });
}

#[test]
fn wrong_programs_have_one_clear_message_each() {
    let case = |program: Program, errors: usize, texts: &[&str]| {
        refused(&folder(program.text()), &["case.golf", "-o", "x"], 1, errors, texts);
    };
    case(Program { body: "    x = rms_nrom(x over d)", ..RIGHT }, 1, &["rms_nrom", "rms_norm", "case.golf:8:9"]);
    // An axis that one side lacks; then two that neither has of the other.
    let items = "axis f = 4";
    let body = "    param w[f] ~ zeros in tables\n    x = x + attend(x, w, x, causal over t, d)";
    case(Program { items, body, ..RIGHT }, 1, &["case.golf:9:", "[f]", "attend"]);
    let body = "    param w[f] ~ zeros in tables\n    x = x * sum(x * w over f)";
    case(Program { items, body, ..RIGHT }, 1, &["case.golf:9:", "[b t d]", "[f]", "outer"]);
    // Two items, a comma missing in each.
    let text =
        RIGHT.text().replace("vocab = 16, dim", "vocab = 16 dim").replace("batch = 64, adamw", "batch = 64 adamw");
    refused(
        &folder(text),
        &["case.golf", "-o", "x"],
        1,
        2,
        &["case.golf:2:17", "case.golf:11:49", "a comma is missing here"],
    );
    case(Program { train: "data = stream(\"train_*.bin\"), seed = 3", ..RIGHT }, 1, &["case.golf:11:", "`seed`"]);
}

#[test]
fn files_that_are_no_programs_have_one_clear_message_each() {
    let compile = ["case.golf", "-o", "x"];
    refused(&folder(""), &compile, 1, 1, &["case.golf", "the program is empty"]);
    refused(&folder("# nothing but a comment\n"), &compile, 1, 1, &["case.golf", "the program is empty"]);
    // Noise from a fixed generator; the length alone is reason enough, and without it the bytes are.
    let mut state = 1u64;
    let noise: Vec<u8> = (0..10_000_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect();
    refused(&folder(&noise), &compile, 1, 1, &["case.golf", "10000000 bytes long"]);
    refused(&folder(&noise[..100_000]), &compile, 1, 1, &["case.golf", "UTF-8"]);
    refused(&folder("(".repeat(100_000)), &compile, 1, 1, &["case.golf:1:", "nest"]);
    refused(
        &folder("model(tokens: [b t]) { ".to_string() + &"[".repeat(100_000)),
        &compile,
        1,
        1,
        &["case.golf:1:", "nest"],
    );
    refused(&folder("model(tokens: [b t]) -> logits [b t v] {\n"), &compile, 1, 1, &["case.golf:1:40", "closed"]);
}

#[test]
fn wrong_commands_have_one_clear_message_each() {
    let dir = folder(RIGHT.text());
    let case = |arguments: &[&str], code: i32, texts: &[&str]| refused(&dir, arguments, code, 1, texts);
    case(&["nowhere/case.golf", "-o", "x"], 1, &["nowhere/case.golf"]);
    case(&["nowhere.golf", "--check"], 1, &["nowhere.golf"]);
    case(&[".", "--check"], 1, &["directory"]);
    case(&["case.golf", "--emit=graph=nowhere/graph"], 1, &["nowhere/graph"]);
    case(&["case.golf", "--set", "dims=16", "-o", "x"], 1, &["dims", "dim"]);
    case(&["case.golf", "--set", "dim=", "-o", "x"], 1, &["dim="]);
    case(&["case.golf", "--set", "train.batch=7", "-o", "x"], 1, &["7"]);
    case(&["case.golf", "--nonsense"], 2, &["--nonsense"]);
    case(&["case.golf", "--emit=grph"], 2, &["grph"]);
    case(&["case.golf", "--target", "sm_10", "-o", "x"], 2, &["sm_10"]);
    case(&[], 2, &["FILE"]);
    case(&["data", "--tokenizer", "bytes", "--out", "d", "nowhere"], 1, &["nowhere"]);
    case(&["data", "--tokenizer", "nowhere.model", "--out", "d", "case.golf"], 1, &["nowhere.model"]);
    if cfg!(feature = "mlir") {
        case(&["case.golf", "-o", "nowhere/x"], 1, &["nowhere"]);
    }
}

#[test]
fn a_closed_standard_output_is_a_quiet_end() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tiny.golf");
    let mut child = Command::new(env!("CARGO_BIN_EXE_golfc"))
        .args([model, "--emit=graph=-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Dropping the reader closes the pipe while most of the graph is still to be written.
    BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
    assert!(line.contains("score"), "{line}");
}

#[test]
fn messages_for_editors_are_one_object_a_line() {
    let dir = folder(Program { body: "    x = x - mean(x over t)\n    let y = nothing", ..RIGHT }.text());
    let found = golfc(dir.path(), &["case.golf", "--check", "--error-format=json"]);
    assert_eq!((found.code, found.out.as_str()), (Some(1), ""));
    for line in found.err.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(object["code"].is_string() && object["message"].is_string(), "{line}");
    }
    assert!(found.err.lines().count() >= 1);
}
