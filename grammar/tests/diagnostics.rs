//! What messages look like, whole and to the column: one file of mistakes, one snapshot.

use std::path::Path;

use golf_grammar::{Code, Diagnostic, FileId, SourceMap, Span, parse_expr, parse_file, parse_value, render, to_json};

fn snapshot(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/errors");
    let bytes = std::fs::read(folder.join(format!("{name}.golf"))).expect("the input exists");
    let mut map = SourceMap::new();
    let file = map.add_bytes(format!("{name}.golf"), &bytes);
    let text = golf_grammar::render_all(&map, &parse_file(file, &bytes).diagnostics, false);
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

macro_rules! snapshots {
    ($($name:ident),*) => { $(#[test] fn $name() { snapshot(stringify!($name)); })* };
}

snapshots!(commas, items, brackets, names, operators, statements, literals);

/// Messages of one text, `code message @ line:column`.
fn messages(text: &str) -> Vec<String> {
    let mut map = SourceMap::new();
    let file = map.add("t.golf", text);
    let show = |d: &Diagnostic| {
        let place = d.span().map_or("-".to_string(), |span| map.place(span).replace("t.golf:", ""));
        format!("{} {} @ {place}", d.code, d.message)
    };
    parse_file(file, text.as_bytes()).diagnostics.iter().map(show).collect()
}

#[test]
fn two_broken_items_give_two_errors() {
    let text = "fn f(x) {\n    g(x 1)\n}\nconst ok = 2\nfn h(x) {\n    [1 2]\n}\n";
    assert_eq!(messages(text), ["GOLF0008 expected `,`, found `1` @ 2:8", "GOLF0008 expected `,`, found `2` @ 6:7"]);
}

#[test]
fn what_can_be_read_is_given_beside_the_errors() {
    let parsed = parse_file(FileId(0), b"const a = 1\nconst b = = 2\nfn f() { a }\n");
    assert_eq!(parsed.file.items.len(), 2);
    assert_eq!(parsed.diagnostics.len(), 1);
}

#[test]
fn the_outside_of_the_language_is_refused() {
    assert_eq!(messages("const a = \u{0}"), ["GOLF0016 unexpected character `\\u{0}` @ 1:11"]);
    let parsed = parse_file(FileId(0), b"const a = \xff\xfe");
    assert_eq!(parsed.diagnostics[0].message, "the text is not UTF-8: byte 10 is 0xff");
    let parsed = parse_file(FileId(0), &vec![b' '; 1_000_001]);
    assert_eq!(parsed.diagnostics[0].code, Code(2));
    let deep = format!("const a = {}1{}", "(".repeat(129), ")".repeat(129));
    assert_eq!(messages(&deep), ["GOLF0003 brackets nest more than 128 deep @ 1:139"]);
    let allowed = format!("const a = {}1{}", "(".repeat(128), ")".repeat(128));
    assert!(messages(&allowed).is_empty());
    assert!(messages("").is_empty(), "an empty text is a program without items; what it lacks, later stages say");
}

#[test]
fn long_expressions_are_refused() {
    let chain = |count: usize| format!("const a = 1{}", " + 1".repeat(count));
    assert!(messages(&chain(399)).is_empty());
    assert_eq!(messages(&chain(400)), ["GOLF0012 this is 401 operations deep; at most 400 are allowed @ 1:11"]);
}

#[test]
fn at_most_fifty_errors_are_given() {
    let parsed = parse_file(FileId(0), "const = 1\n".repeat(1000).as_bytes());
    assert_eq!(parsed.diagnostics.len(), 50);
    assert!(parsed.diagnostics[49].notes[0].contains("first 50 errors"));
}

#[test]
fn a_value_for_set_reads_like_a_setting() {
    let mut map = SourceMap::new();
    map.add("models/x.golf", "");
    let text = "swa(every: 50 below: 0.2) else ema(0.997)";
    let file = map.add("--set train.average", text);
    let errors = parse_value(file, text.as_bytes()).expect_err("a comma is missing");
    insta::assert_snapshot!(render(&map, &errors[0], false), @r"
    error[GOLF0008]: expected `,`, found `below`
     --> --set train.average:1:14
      |
    1 | swa(every: 50 below: 0.2) else ema(0.997)
      |              ^-----
      |              |
      |              a comma is missing here
      |
    help: add the comma
      |
    1 | swa(every: 50, below: 0.2) else ema(0.997)
      |              +
    ");
    for (text, message) in [
        ("", "expected an expression, found the end of the text"),
        ("1 2", "expected the end of the text, `else`, `per` or `{`, found `2`"),
        ("(1", "this `(` is never closed"),
        (
            "warmdown(fraction: 0.5)\n const a = 1",
            "expected the end of the text, `else`, `per` or `{`, found the keyword `const`",
        ),
    ] {
        let errors = parse_value(file, text.as_bytes()).expect_err("broken");
        assert_eq!(errors[0].message, message);
    }
    assert!(parse_expr(file, b"1 per shard").is_err());
    assert!(parse_expr(file, b" 2^-23 # small").is_ok());
}

#[test]
fn messages_span_several_texts() {
    let mut map = SourceMap::new();
    let prelude = map.add("std/norm.golf", "fn rms_norm<A>(x: [.. A], eps = 2^-23) {\n    x\n}\n");
    let program = map.add("model.golf", "fn f(x) {\n    rms_nrom(x, 1, 2 over d)\n}\n");
    let diagnostic = Diagnostic::error(Code(123), "`rms_norm` takes 2 arguments, 3 were given")
        .at(Span::new(program, 29, 30), "one too many")
        .also(Span::new(prelude, 3, 11), "declared here")
        .expected_found("2 arguments", "3 arguments")
        .note("`over d` fills the axis parameter `A`")
        .hint("remove it")
        .did_you_mean("rms_nrom", Span::new(program, 14, 22), ["layer_norm", "rms_norm"]);
    insta::assert_snapshot!(render(&map, &diagnostic, false));
    insta::assert_snapshot!(to_json(&map, &diagnostic));
    assert!(render(&map, &diagnostic, true).contains("\u{1b}["), "colours when asked for");
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let mut map = SourceMap::new();
    let text = "const a = \"\u{1b}[31m\" 1\nfn f() { \"\\\u{1b}\" }";
    let file = map.add("t.golf", text);
    let diagnostics = parse_file(file, text.as_bytes()).diagnostics;
    assert_eq!(diagnostics.len(), 2);
    for diagnostic in &diagnostics {
        assert!(!render(&map, diagnostic, false).contains('\u{1b}'), "{}", render(&map, diagnostic, false));
    }
}
