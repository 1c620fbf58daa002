//! What the text means: precedence, line ends, strings, and the corners of the grammar.

use golf_grammar::ast::{ExprKind, ItemKind, StmtKind};
use golf_grammar::dump::{dump, dump_expr, dump_value};
use golf_grammar::{FileId, parse_expr, parse_file, parse_value};

fn expr(text: &str) -> String {
    match parse_expr(FileId(0), text.as_bytes()) {
        Ok(expr) => dump_expr(&expr),
        Err(errors) => format!("error: {}", errors[0].message),
    }
}

fn file(text: &str) -> String {
    match parse_file(FileId(0), text.as_bytes()).into_result() {
        Ok(file) => dump(&file),
        Err(errors) => format!("error: {}", errors[0].message),
    }
}

#[test]
fn operators_bind_as_written_in_the_language() {
    let cases = [
        ("a + b * c", "(+ a (* b c))"),
        ("a - b - c", "(- (- a b) c)"),
        ("a / b // c % d * e", "(* (% (// (/ a b) c) d) e)"),
        ("2 ^ 3 ^ 2", "(^ 2 (^ 3 2))"),
        ("2^-23", "(^ 2 (- 23))"),
        ("-2^2", "(- (^ 2 2))"),
        ("-a * b", "(* (- a) b)"),
        ("-a.b(c)[d]", "(- (index (method a .b c) [d]))"),
        ("not a == b and c", "(and (not (== a b)) c)"),
        ("a or b and c", "(or a (and b c))"),
        ("a + 1 < b", "(< (+ a 1) b)"),
        ("a ?? b ?? c", "(?? a (?? b c))"),
        ("a ?? b + c", "(?? a (+ b c))"),
        ("a ?? 0 > 3", "(> (?? a 0) 3)"),
        ("0..n - 1", "(.. 0 (- n 1))"),
        ("a | b & c << 1 + 2", "(| a (& b (<< c (+ 1 2))))"),
        ("(a + b) * c", "(* (+ a b) c)"),
        ("1..2", "(.. 1 2)"),
        ("a-1", "(- a 1)"),
        ("1-1", "(- 1 1)"),
        ("1e-3-1", "(- 0.001 1)"),
        ("f(x) as \"a\"", "(as (call f x) \"a\")"),
    ];
    for (text, tree) in cases {
        assert_eq!(expr(text), tree, "{text}");
    }
}

#[test]
fn calls_indices_tuples_and_lists() {
    let cases = [
        ("rms_norm(x over d)", "(call rms_norm x over d)"),
        ("rope(x, 16, base: 2 over t, hd)", "(call rope x 16 base: 2 over t hd)"),
        ("rope(x over t, hd, base: 2)", "(call rope x base: 2 over t hd)"),
        ("iota(over t)", "(call iota over t)"),
        ("f(a, b,)", "(call f a b)"),
        ("f(in: 1, state: 2)", "(call f in: 1 state: 2)"),
        ("split(x, q -> kv g hd)", "(call split x (map q -> kv g hd))"),
        ("merge(x, kv g hd -> q)", "(call merge x (map kv g hd -> q))"),
        ("mix[m = 0]", "(index mix [m = 0])"),
        ("x[t = 0..n, h = 1]", "(index x [t = (.. 0 n)] [h = 1])"),
        ("blocks[i](x)", "(call (index blocks [i]) x)"),
        ("a.b.c(d).e", "(field (method (field a .b) .c d) .e)"),
        ("(a)(b)", "(call a b)"),
        ("()", "(tuple)"),
        ("(a,)", "(tuple a)"),
        ("(a, b)", "(tuple a b)"),
        ("(codes: q, scale: s)", "(tuple codes: q scale: s)"),
        ("(codes: q)", "(tuple codes: q)"),
        ("[]", "(list)"),
        ("[1, 2,]", "(list 1 2)"),
        ("[f(i) for i in 0..n]", "(each (call f i) for i in (.. 0 n))"),
        ("[a for (a, _) in xs if a > 1]", "(each a for (a, _) in xs if (> a 1))"),
        ("[f(i) as \"b.{i + 1}\" for i in xs]", "(each (as (call f i) \"b.{(+ i 1)}\") for i in xs)"),
        ("if a { 1 } else { 2 } + 3", "(+ (if a\n  1\nelse\n  2) 3)"),
        ("if a { 1 } else if b { 2 } else { 3 }", "(if a\n  1\nelse if b\n  2\nelse\n  3)"),
        ("\"a\\n\\t\\\"\\\\\\{}\"", "\"a\\n\\t\\\"\\\\\\{}\""),
    ];
    for (text, tree) in cases {
        assert_eq!(expr(text), tree, "{text}");
    }
}

#[test]
fn what_cannot_be_written() {
    let cases = [
        ("a < b < c", "comparisons cannot be chained"),
        ("0..1..2", "ranges cannot be chained"),
        ("(,)", "expected an expression or `)`, found `,`"),
        ("x[]", "expected an expression, found `]`"),
        ("f(a: 1, b)", "an argument without a name after one with a name"),
        ("if a", "expected `{`, found the end of the text"),
        ("a b", "expected the end of the text, found `b`"),
        ("let", "expected an expression, found the keyword `let`"),
    ];
    for (text, message) in cases {
        assert_eq!(expr(text), format!("error: {message}"), "{text}");
    }
}

#[test]
fn a_line_ends_a_statement_unless_it_cannot() {
    let one = "fn f() {\n    let a = b +\n        c\n    g(\n        a\n    )\n    (a, b)\n}";
    let tree = "fn f()\n  let a = (+ b c)\n  (call g a)\n  (tuple a b)\n";
    assert_eq!(file(one), tree);
    assert_eq!(file("fn f() { let a = b + c; g(a); (a, b) }"), tree);
    assert_eq!(
        file("fn f()\n{\n    if a\n    {\n        b\n    }\n    else\n    {\n        c\n    }\n}"),
        "fn f()\n  (if a\n    b\n  else\n    c)\n"
    );
    assert_eq!(file("fn f() {\n    a = b\n    (c, d)\n}"), "fn f()\n  rebind a = b\n  (tuple c d)\n");
    assert_eq!(file("fn f() {\n    (a, b) = c\n    (a)\n}"), "fn f()\n  rebind (a, b) = c\n  a\n");
}

#[test]
fn words_of_the_language_are_names_where_they_can_be() {
    let text = "fn f(state, init, model; on, apply) {\n    state = init\n    apply\n}\ntrain { state = 1, in = 2, phase = 3, train = 4 }";
    let tree = "fn f(state, init, model; on, apply)\n  rebind state = init\n  apply\ntrain\n  state = 1\n  in = 2\n  phase = 3\n  train = 4\n";
    assert_eq!(file(text), tree);
}

#[test]
fn definitions_keep_their_parts() {
    let text = "quantizer int6<A>(w: [.. A], tap?: list; clip = 3) -> (codes: i8 [.. A], scale: f32 [..])? {\n    state m[r: 2] : f32 ~ zeros\n    fn dequant(c) { c }\n    unused param a, b[d] as \"x\" ~ ones in g if c else h if d else unused\n    (codes: w)\n}";
    let parsed = parse_file(FileId(0), text.as_bytes());
    assert_eq!(
        dump(&parsed.file),
        "quantizer int6<A>(w: [.. A], tap?: list; clip = 3) -> (codes: i8 [.. A], scale: f32 [..])?\n  state m[r: 2] : f32 ~ zeros\n  unused param a, b[d] as \"x\" ~ ones in (if c g (if d h unused))\n  (tuple codes: w)\n  fn dequant(c)\n    c\n"
    );
    let ItemKind::Def(def) = &parsed.file.items[0].kind else { panic!("a definition") };
    assert_eq!(&text[def.kind_span.range()], "quantizer");
    assert_eq!(
        &text[def.sig.span.range()],
        "<A>(w: [.. A], tap?: list; clip = 3) -> (codes: i8 [.. A], scale: f32 [..])?"
    );
    assert!(def.method("dequant").is_some() && def.method("apply").is_none());
    let (before, value) = def.body.split_value();
    assert_eq!(before.len(), 2);
    assert_eq!(&text[value.expect("a value").span.range()], "(codes: w)");
}

#[test]
fn places_do_not_include_blanks_or_comments() {
    let text = "fn f() {\n    let a = g ( x )   # why\n    a\n}";
    let parsed = parse_file(FileId(0), text.as_bytes());
    let ItemKind::Def(def) = &parsed.file.items[0].kind else { panic!("a definition") };
    let stmt = &def.body.stmts[0];
    assert_eq!(&text[stmt.span.range()], "let a = g ( x )");
    let StmtKind::Let { value, .. } = &stmt.kind else { panic!("a let") };
    assert_eq!(&text[value.span.range()], "g ( x )");
    let ExprKind::Call { callee, args } = &value.kind else { panic!("a call") };
    assert_eq!((&text[callee.span.range()], &text[args.span.range()]), ("g", "( x )"));
    assert_eq!(parsed.file.comments[0].text, "# why");
    assert!(!parsed.file.comments[0].own_line);
}

#[test]
fn settings() {
    let text = "train {\n    a = 0.3 per shard\n    muon on x or y where numel <= 65_536 { lr = 1,\n        wd = 2 }\n    f16 on rest\n    phase looped when progress >= 0.35 { loops = 2 }\n    b = swa(1) { c = 1 } else d else none\n}";
    let tree = "train\n  a = 0.3 per shard\n  rule muon on (or x y) where (<= numel 65536)\n    lr = 1\n    wd = 2\n  rule f16 on rest\n  phase looped when (>= progress 0.35)\n    loops = 2\n  b = (call swa 1)\n    c = 1\n  else d\n  else none\n";
    assert_eq!(file(text), tree);
    let value = parse_value(FileId(0), b"warmdown(fraction: 0.5)").expect("a value");
    assert!(value.plain().is_some());
    assert_eq!(dump_value(&value), "(call warmdown fraction: 0.5)\n");
}
