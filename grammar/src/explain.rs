//! What a syntax error says.
//!
//! *Takes* the scanned text, the place where the grammar gave up and what it wanted there. *Gives* a diagnostic that names the
//! usual mistake where it knows one: a missing comma, `=` for `:`, an operator at the start of a line, a keyword as a name.

use crate::ast::{Expr, ExprKind, Ident, UnaryOp};
use crate::codes;
use crate::diagnostics::Diagnostic;
use crate::scan::{Chunk, ITEM_WORDS, KEYWORDS, Scan, Token, TokenKind};
use crate::span::Span;

/// What the grammar can want, beyond plain tokens.
pub(crate) const NAME: &str = "a name";
pub(crate) const EXPR: &str = "an expression";
pub(crate) const OPERATOR: &str = "an operator";
pub(crate) const STMT: &str = "a statement";
pub(crate) const ENTRY: &str = "a setting";
pub(crate) const LINE_END: &str = "the end of the line";
pub(crate) const ENTRY_END: &str = "`,` or the end of the line";
pub(crate) const ITEM_END: &str = "the end of the item";
pub(crate) const TEXT_END: &str = "the end of the text";

/// Words of other languages and what they are called here.
const FOREIGN: [(&str, &str); 14] = [
    ("def", "fn"),
    ("func", "fn"),
    ("function", "fn"),
    ("class", "layer"),
    ("module", "layer"),
    ("struct", "layer"),
    ("import", "use"),
    ("from", "use"),
    ("include", "use"),
    ("optimiser", "optimizer"),
    ("quantiser", "quantizer"),
    ("quantise", "quantize"),
    ("eval", "evaluate"),
    ("dim", "axis"),
];

/// The surroundings of an error.
struct Context<'s> {
    scan: &'s Scan<'s>,
    /// The token the grammar could not use; `None` at the end of the chunk.
    found: Option<Token>,
    /// The one before, if it is of this chunk.
    before: Option<Token>,
    /// The one after `found`.
    after: &'s str,
    /// The bracket the error stands in.
    inside: Option<Token>,
    /// What could stand there, without operators unless there is nothing else.
    expected: Vec<&'static str>,
    /// Operators could stand there: an operand has just ended.
    operator: bool,
}

impl<'s> Context<'s> {
    fn text(&self, token: Option<Token>) -> &'s str {
        token.map_or("", |token| &self.scan.text[token.start..token.end])
    }

    fn wants(&self, what: &str) -> bool {
        self.expected.contains(&what)
    }

    fn same_line(&self) -> bool {
        match (self.before, self.found) {
            (Some(before), Some(found)) => !self.scan.text[before.end..found.start].contains('\n'),
            _ => false,
        }
    }

    /// Whether `found` could begin an operand.
    fn operand(&self) -> bool {
        self.found.is_some_and(|token| match token.kind {
            TokenKind::Number | TokenKind::Str => true,
            TokenKind::Word => {
                let word = self.text(self.found);
                !KEYWORDS.contains(&word) || matches!(word, "if" | "not" | "true" | "false" | "none")
            }
            _ => false,
        })
    }
}

/// The grammar gave up at byte `at` of the text, where it wanted `expected`.
pub(crate) fn unexpected(scan: &Scan<'_>, chunk: Chunk, at: usize, mut expected: Vec<&'static str>) -> Diagnostic {
    let operator = expected.contains(&OPERATOR);
    if operator {
        // After an operand a call, an index or a field could follow too; that goes without saying.
        expected.retain(|name| !matches!(*name, "`(`" | "`[`" | "`.`" | "`as`"));
    }
    if expected.iter().any(|name| *name != OPERATOR) {
        expected.retain(|name| *name != OPERATOR);
    }
    if expected.contains(&STMT) {
        expected.retain(|name| *name != LINE_END && *name != "`;`");
    }
    let index = scan.token_at(at);
    let token = |index: usize| scan.tokens.get(index).copied();
    let found = token(index).filter(|token| token.start < chunk.end);
    if let Some(string) = found.filter(|token| token.start < at && token.kind == TokenKind::Str) {
        return in_string(scan, string, at, &expected);
    }
    let before = index.checked_sub(1).and_then(token).filter(|token| token.start >= chunk.start);
    let mut open: Vec<Token> = Vec::new();
    for &token in scan.tokens[scan.token_at(chunk.start)..index].iter().filter(|token| token.kind == TokenKind::Punct) {
        match scan.slice(token) {
            "(" | "[" | "{" => open.push(token),
            ")" | "]" | "}" => drop(open.pop()),
            _ => {}
        }
    }
    let after = token(index + 1).filter(|token| token.start < chunk.end).map_or("", |token| scan.slice(token));
    let context = Context { scan, found, before, after, inside: open.last().copied(), expected, operator };
    missing_comma(&context).or_else(|| reserved(&context)).unwrap_or_else(|| plain(&context, chunk))
}

/// A list of alternatives in words.
fn alternatives(expected: &[&str]) -> String {
    match expected {
        [] => "something else".to_string(),
        [one] => (*one).to_string(),
        [several @ .., last] => format!("{} or {last}", several.join(", ")),
    }
}

/// A token in words.
fn describe(scan: &Scan<'_>, token: Token) -> String {
    let text = scan.slice(token);
    match token.kind {
        TokenKind::Newline => "the end of the line".to_string(),
        TokenKind::Str => "a string".to_string(),
        TokenKind::Word if KEYWORDS.contains(&text) => format!("the keyword `{text}`"),
        TokenKind::Word | TokenKind::Number if text.len() > 40 => format!("`{}…`", &text[..40]),
        _ => format!("`{text}`"),
    }
}

/// An operand follows an operand where a comma could stand.
fn missing_comma(context: &Context<'_>) -> Option<Diagnostic> {
    let (before, found) = (context.before?, context.found?);
    let comma = context.wants("`,`");
    let entry = context.wants(ENTRY_END) && context.same_line() && matches!(context.after, "=" | "on");
    // Outside brackets (`const a = 1 b = 2`) only a further declaration shows that a comma was meant.
    let listed = comma && (context.inside.is_some() || matches!(context.after, "=" | "like" | "[" | ":"));
    let ended = match before.kind {
        TokenKind::Word | TokenKind::Number | TokenKind::Str => true,
        _ => matches!(context.text(context.before), ")" | "]" | "}" | "?"),
    };
    // `param w[d] ones` lacks a `~`.
    let slot = context.wants("`~`") && !matches!(context.after, "[" | ":" | "," | "~");
    if !(entry || listed) || slot || !ended || !context.operand() {
        return None;
    }
    let what = describe(context.scan, found);
    let place = context.scan.span(before).after();
    Some(
        Diagnostic::error(codes::MISSING_COMMA, format!("expected `,`, found {what}"))
            .at(place, "a comma is missing here")
            .also(context.scan.span(found), "")
            .expected_found("`,`", what)
            .fix("add the comma", place, ","),
    )
}

/// A keyword where a name is wanted.
fn reserved(context: &Context<'_>) -> Option<Diagnostic> {
    let found = context.found.filter(|token| token.kind == TokenKind::Word)?;
    let word = context.text(context.found);
    let name = context.wants(NAME) && !context.wants(EXPR) && !context.wants(STMT) && !context.operator;
    if !name || !KEYWORDS.contains(&word) {
        return None;
    }
    Some(
        Diagnostic::error(codes::RESERVED_WORD, format!("expected a name, found the keyword `{word}`"))
            .at(context.scan.span(found), "keywords cannot be names")
            .expected_found(NAME, format!("the keyword `{word}`"))
            .hint(format!("another name will do, such as `{word}_`")),
    )
}

/// Everything else: what was expected and found, with a hint where one is known.
fn plain(context: &Context<'_>, chunk: Chunk) -> Diagnostic {
    let scan = context.scan;
    let (span, what) = match context.found {
        Some(token) => (scan.span(token), describe(scan, token)),
        None => {
            let rest = scan.text[chunk.end..].trim_start();
            let what = if rest.is_empty() { "the end of the text" } else { "the end of the item" };
            (Span::new(scan.file, chunk.end, chunk.end), what.to_string())
        }
    };
    let mut expected = context.expected.clone();
    // Where a line may end, much else may stand; say only what helps.
    if expected.len() > 4 {
        expected.retain(|name| *name != "`over`" && *name != "`as`" && *name != "`for`");
    }
    let mut wanted = alternatives(&expected);
    if expected.contains(&ENTRY_END) && expected.len() > 1 {
        wanted = wanted.replace(ENTRY_END, LINE_END);
    }
    let mut diagnostic = Diagnostic::error(codes::SYNTAX, format!("expected {wanted}, found {what}"))
        .at(span, format!("expected {wanted}"))
        .expected_found(wanted, what);
    if let Some(open) = context.inside.filter(|_| context.found.is_some()) {
        let close = match context.text(context.inside) {
            "(" => "`)`",
            "[" => "`]`",
            _ => "`}`",
        };
        let line = |at: usize| scan.text[..at].rfind('\n');
        if context.wants(close) && line(open.start) != line(span.start as usize) {
            diagnostic = diagnostic.also(scan.span(open), "inside this");
        }
    }
    advise(diagnostic, context, span)
}

/// The hint for a known mistake.
fn advise(diagnostic: Diagnostic, context: &Context<'_>, span: Span) -> Diagnostic {
    let found = context.text(context.found);
    let before = context.text(context.before);
    let line_start = context.before.is_some_and(|token| token.kind == TokenKind::Newline);
    match (before, found) {
        ("(", "*") | ("*", "*") | (_, "**") => diagnostic.hint("power is written `^`"),
        ("&", "&") => diagnostic.hint("write `and`"),
        ("|", "|") => diagnostic.hint("write `or`"),
        (_, "!") => diagnostic.hint("write `not`"),
        ("+" | "-" | "*" | "/" | "//" | "%", "=") => {
            diagnostic.hint(format!("there is no `{before}=`; write `x = x {before} …`"))
        }
        ("return", _) => diagnostic.hint("there is no `return`: the last expression of a block is its value"),
        ("elif" | "elsif" | "elseif", _) => diagnostic.hint("write `else if`"),
        ("while" | "loop", _) => diagnostic.hint("loops are `for i in 0..n { … }`, unrolled while compiling"),
        ("var" | "mut", _) if context.same_line() => diagnostic.hint("write `let`"),
        (_, "=") if context.text(context.inside) == "(" && context.operator => {
            let blank = context.before.map_or(span, |before| context.scan.span(before).after().to(span));
            diagnostic.fix("arguments are named with `:`", blank, ":")
        }
        (_, "=") if context.wants("`{`") => diagnostic.fix("`=` binds a name; `==` compares", span, "=="),
        (_, ":") if context.wants("`=`") && context.text(context.inside) == "{" => {
            let blank = context.before.map_or(span, |before| context.scan.span(before).after().to(span));
            diagnostic.fix("settings are written with `=`", blank, " =")
        }
        (_, "as") if context.wants("`in`") => diagnostic.hint("the label of a parameter stands before the `~`"),
        (_, "{") if context.operator && context.wants(LINE_END) && before == ")" => {
            diagnostic.hint("a method is written `fn name(…) { … }`; `apply` needs no `fn`")
        }
        _ if context.wants("`~`") && context.operand() => diagnostic.hint("an initial value stands after `~`"),
        (_, "=>") => diagnostic.hint("write `->`"),
        (_, "else") if context.wants(STMT) => diagnostic.hint("`else` follows the `}` of an `if`"),
        (_, "apply") => diagnostic.hint("`apply(…) { … }` stands directly in the body of a layer or slot"),
        _ if line_start && is_infix(found) => {
            diagnostic.hint("a line goes on where it ends with an operator; put this one at the end of the line before")
        }
        _ if context.wants(LINE_END) && context.same_line() && (context.operand() || found == "let") => {
            diagnostic.hint("each statement stands on a line of its own, or after `;`")
        }
        _ => diagnostic,
    }
}

/// Whether a token can only go on with an expression begun before it.
fn is_infix(text: &str) -> bool {
    matches!(text, "+" | "*" | "/" | "//" | "%" | "^" | "<" | "<=" | ">" | ">=" | "==" | "!=" | "<<" | ">>" | "&" | "|")
        || matches!(text, "??" | ".." | "and" | "or" | "." | ",")
}

/// An error between the quotes of a string.
fn in_string(scan: &Scan<'_>, string: Token, at: usize, expected: &[&str]) -> Diagnostic {
    let c = scan.text[at..].chars().next().unwrap_or('"');
    let wanted = alternatives(expected);
    Diagnostic::error(codes::SYNTAX, format!("expected {wanted} inside `{{…}}` of a string, found `{c}`"))
        .at(Span::new(scan.file, at, at + c.len_utf8()), format!("expected {wanted}"))
        .also(scan.span(string), "in this string")
        .expected_found(wanted, format!("`{c}`"))
        .hint("write `\\{` for a brace that is text")
}

/// The chunk does not begin with an item word. `before` is the chunk before it.
pub(crate) fn not_an_item(scan: &Scan<'_>, chunk: Chunk, before: Option<Chunk>) -> Option<Diagnostic> {
    let index = scan.token_at(chunk.start);
    let token = *scan.tokens.get(index)?;
    let word = scan.slice(token);
    if ITEM_WORDS.contains(&word) {
        return None;
    }
    let next = scan.tokens.get(index + 1).map_or("", |token| scan.slice(*token));
    let what = describe(scan, token);
    let span = scan.span(token);
    let diagnostic = Diagnostic::error(codes::UNKNOWN_ITEM, format!("expected an item, found {what}"))
        .at(span, "no item starts like this")
        .expected_found("an item", what);
    let listing = before.filter(|before| {
        let first = scan.tokens.get(scan.token_at(before.start)).map_or("", |token| scan.slice(*token));
        matches!(first, "const" | "axis") && matches!(next, "=" | "like") && !before.broken
    });
    if let (Some(before), TokenKind::Word) = (listing, token.kind) {
        let place = Span::new(scan.file, before.end, before.end);
        return Some(
            Diagnostic::error(codes::MISSING_COMMA, format!("expected an item, found `{word}`"))
                .at(span, "no item starts like this")
                .also(place, "a comma is missing here, if the list goes on")
                .expected_found("an item", format!("`{word}`"))
                .fix("add the comma", place, ","),
        );
    }
    if token.kind != TokenKind::Word {
        return Some(diagnostic.note(format!("items begin with one of: {}", ITEM_WORDS.join(", "))));
    }
    if let Some((_, ours)) = FOREIGN.iter().find(|(foreign, _)| *foreign == word) {
        return Some(diagnostic.fix(format!("here it is called `{ours}`"), span, *ours));
    }
    let near = crate::nearest(word, ITEM_WORDS);
    Some(match (word, next, near) {
        ("let" | "param" | "state" | "for" | "if" | "apply" | "phase", _, _) => {
            diagnostic.hint("statements stand inside a definition; at the top only `const` and `axis` declare values")
        }
        (_, "=", None) => diagnostic.fix("constants are declared with `const`", span.before(), "const "),
        (_, _, Some(near)) => diagnostic.fix(format!("did you mean `{near}`?"), span, near),
        _ => diagnostic.note(format!("items begin with one of: {}", ITEM_WORDS.join(", "))),
    })
}

/// An expression, or nesting of them, is too large.
pub(crate) fn too_long(span: Span, levels: usize, most: usize) -> Diagnostic {
    Diagnostic::error(codes::TOO_LONG, format!("this is {levels} operations deep; at most {most} are allowed"))
        .at(Span { end: span.end.min(span.start + 40), ..span }, "it starts here")
        .hint("name parts of it with `let`")
}

/// A statement computes a value and drops it. `follows`: another statement stands before it.
pub(crate) fn unused_value(expr: &Expr, follows: bool) -> Diagnostic {
    let diagnostic = Diagnostic::error(codes::UNUSED_VALUE, "the value of this statement is not used")
        .at(expr.span, "computed and dropped");
    match &expr.kind {
        ExprKind::Unary { op: UnaryOp::Neg, .. } if follows && !expr.parens => diagnostic.hint(
            "to go on with the line before, end that line with `-`: a line that starts with `-` is a new statement",
        ),
        ExprKind::Binary { op: crate::ast::BinaryOp::Eq, .. } => {
            diagnostic.hint("`==` compares; `=` gives a new value")
        }
        _ => diagnostic.hint("bind it with `let`, make it the last line of the block, or remove it"),
    }
}

/// `\q`
pub(crate) fn bad_escape(span: Span, text: &str) -> Diagnostic {
    Diagnostic::error(codes::BAD_ESCAPE, format!("`{text}` is not an escape sequence"))
        .at(span, "")
        .note("the escapes are `\\\\`, `\\\"`, `\\n`, `\\t`, `\\{` and `\\}`")
}

/// `f(a: 1, 2)`
pub(crate) fn positional_after_named(span: Span, before: &Ident) -> Diagnostic {
    Diagnostic::error(codes::POSITIONAL_AFTER_NAMED, "an argument without a name after one with a name")
        .at(span, "this has no name")
        .also(before.span, "this has one")
        .hint("arguments without names come first")
}

/// `a < b < c`, `a..b..c`
pub(crate) fn chained(first: Span, second: Span, range: bool) -> Diagnostic {
    let (what, hint) = match range {
        true => ("range", "a range is `start..end`"),
        false => ("comparison", "write `a < b and b < c`"),
    };
    Diagnostic::error(codes::CHAINED_COMPARISON, format!("{what}s cannot be chained"))
        .at(second, format!("second {what}"))
        .also(first, format!("first {what}"))
        .hint(hint)
}
