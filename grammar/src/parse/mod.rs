//! Bytes to syntax tree.
//!
//! *Takes* the bytes of a program, or of one expression (`--set`). *Gives* the tree and diagnostics. *Promises*: no panic and
//! no deep recursion on any input, time about linear in its size, one error for each broken item. This module is
//! the only one that names rules of `golf.pest`; what an error message says is decided in `explain`.

use pest::Parser;
use pest::error::{ErrorVariant, InputLocation};
use pest::iterators::{Pair, Pairs};

mod build;
mod chain;

use crate::ast::{Comment, Expr, File, Value};
use crate::codes;
use crate::diagnostics::{Diagnostic, Sink};
use crate::explain;
use crate::scan::{self, Chunk, MAX_ERRORS, Scan};
use crate::span::{FileId, Span};

/// Most levels a tree may have: nested brackets, and operations of one expression that depend on each other.
pub const MAX_DEPTH: usize = 400;

/// The parser pest makes from the grammar, in a module of its own because it is public and undocumented.
mod rules {
    #![allow(missing_docs)]
    #[derive(pest_derive::Parser)]
    #[grammar = "golf.pest"]
    pub(super) struct Golf;
}
use build::Builder;
use rules::{Golf, Rule};

/// What [`parse_file`] gives.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The items that could be read.
    pub file: File,
    /// Errors and warnings in order of place; empty when all is well.
    pub diagnostics: Vec<Diagnostic>,
}

impl Parsed {
    /// The tree, or the diagnostics if any is an error.
    pub fn into_result(self) -> Result<File, Vec<Diagnostic>> {
        if self.diagnostics.iter().any(Diagnostic::is_error) { Err(self.diagnostics) } else { Ok(self.file) }
    }
}

/// Reads a program or prelude file. The text is `bytes`; `file` is its number in the caller's
/// [`SourceMap`](crate::SourceMap).
pub fn parse_file(file: FileId, bytes: &[u8]) -> Parsed {
    let mut tree = File { file, items: Vec::new(), comments: Vec::new() };
    let text = match scan::decode(file, bytes) {
        Ok(text) => text,
        Err(diagnostic) => return Parsed { file: tree, diagnostics: vec![diagnostic] },
    };
    let mut sink = Sink::new();
    let scan = scan::scan(file, text, false, &mut sink);
    tree.comments = comments(&scan);
    for (index, &chunk) in scan.chunks.iter().enumerate() {
        if chunk.broken {
            continue;
        }
        if sink.len() >= MAX_ERRORS {
            break;
        }
        let before = index.checked_sub(1).map(|index| scan.chunks[index]);
        if let Some(diagnostic) = explain::not_an_item(&scan, chunk, before) {
            sink.push(diagnostic);
            continue;
        }
        let Some(pair) = run(&scan, chunk, Rule::item_entry, &mut sink) else { continue };
        let mut builder = Builder { scan: &scan, base: chunk.start, sink: &mut sink, depth: 0 };
        let before = builder.sink.len();
        let item = builder.item(only(pair));
        // A warning does not cost the item.
        if builder.sink.len() == before || !sink.has_errors() {
            tree.items.push(item);
        }
    }
    let mut diagnostics = sink.finish();
    if diagnostics.len() > MAX_ERRORS {
        diagnostics.truncate(MAX_ERRORS);
    }
    if diagnostics.len() == MAX_ERRORS
        && let Some(last) = diagnostics.pop()
    {
        diagnostics.push(last.note(format!("these are the first {MAX_ERRORS} errors; there may be more")));
    }
    Parsed { file: tree, diagnostics }
}

/// Reads what stands on the right of a setting or of `--set PATH=`: an expression with what may follow it there.
pub fn parse_value(file: FileId, bytes: &[u8]) -> Result<Value, Vec<Diagnostic>> {
    single(file, bytes, Rule::value_entry, |builder, pair| builder.value(pair))
}

/// Reads one expression.
pub fn parse_expr(file: FileId, bytes: &[u8]) -> Result<Expr, Vec<Diagnostic>> {
    single(file, bytes, Rule::expr_entry, |builder, pair| builder.expr(pair))
}

fn single<T>(
    file: FileId,
    bytes: &[u8],
    entry: Rule,
    build: impl FnOnce(&mut Builder<'_, '_>, Node<'_>) -> T,
) -> Result<T, Vec<Diagnostic>> {
    let text = scan::decode(file, bytes).map_err(|diagnostic| vec![diagnostic])?;
    let mut sink = Sink::new();
    let scan = scan::scan(file, text, true, &mut sink);
    let chunk = scan.chunks.first().copied().unwrap_or(Chunk { start: 0, end: 0, broken: false });
    if sink.has_errors() {
        return Err(sink.finish());
    }
    let Some(pair) = run(&scan, chunk, entry, &mut sink) else { return Err(sink.finish()) };
    let value = build(&mut Builder { scan: &scan, base: chunk.start, sink: &mut sink, depth: 0 }, only(pair));
    sink.into_result(value)
}

/// Runs pest on one chunk; a failure becomes a diagnostic.
fn run<'s>(scan: &'s Scan<'_>, chunk: Chunk, entry: Rule, sink: &mut Sink) -> Option<Node<'s>> {
    let error = match Golf::parse(entry, &scan.blanked[chunk.start..chunk.end]) {
        Ok(mut pairs) => return pairs.next(),
        Err(error) => error,
    };
    let at = chunk.start
        + match error.location {
            InputLocation::Pos(at) | InputLocation::Span((at, _)) => at,
        };
    sink.push(match error.variant {
        ErrorVariant::ParsingError { positives, .. } => {
            let mut expected: Vec<&'static str> = Vec::new();
            for name in positives.into_iter().filter_map(name) {
                if !expected.contains(&name) {
                    expected.push(name);
                }
            }
            // Where a phase can stand, the other settings can; they begin with a name.
            if let Some(phase) = expected.iter().position(|name| *name == "`phase`") {
                expected[phase] = explain::ENTRY;
                expected.retain(|name| *name != explain::NAME);
            }
            if entry != Rule::item_entry {
                expected
                    .iter_mut()
                    .filter(|name| **name == explain::ITEM_END)
                    .for_each(|name| *name = explain::TEXT_END);
            }
            explain::unexpected(scan, chunk, at, expected)
        }
        // pest's own guard of the stack; the scanner's limit on nesting comes first on any stack of half a megabyte.
        ErrorVariant::CustomError { message } => {
            Diagnostic::error(codes::TOO_DEEP, message).at(Span::new(scan.file, chunk.start, chunk.end), "in this item")
        }
    });
    None
}

/// What a rule is called in a message; `None` for what is never worth naming.
fn name(rule: Rule) -> Option<&'static str> {
    Some(match rule {
        Rule::item | Rule::use_item | Rule::def | Rule::section | Rule::def_kind | Rule::section_kind => "an item",
        Rule::const_list | Rule::axis_list => "a declaration",
        Rule::word | Rule::ident | Rule::wildcard => explain::NAME,
        Rule::const_decl | Rule::axis_decl | Rule::tensor_decl | Rule::axis_use | Rule::param => explain::NAME,
        Rule::pattern | Rule::tuple_pattern | Rule::type_field | Rule::use_names => explain::NAME,
        Rule::member | Rule::method | Rule::stmt | Rule::let_stmt | Rule::param_stmt | Rule::state_stmt => {
            explain::STMT
        }
        Rule::for_stmt | Rule::rebind => explain::STMT,
        Rule::def_body | Rule::block => "`{`",
        Rule::settings | Rule::lbrace => "`{`",
        Rule::signature | Rule::params | Rule::lparen => "`(`",
        Rule::param_list => "a parameter",
        Rule::axis_params | Rule::langle => "`<`",
        Rule::axes | Rule::lbracket => "`[`",
        Rule::output | Rule::r#type | Rule::tensor_type | Rule::tuple_type | Rule::type_name | Rule::dtype => "a type",
        Rule::rest => "`..`",
        Rule::expr | Rule::chain | Rule::operand | Rule::primary | Rule::name | Rule::constant => explain::EXPR,
        Rule::tuple | Rule::tuple_field | Rule::list | Rule::if_expr | Rule::number | Rule::string => explain::EXPR,
        Rule::arg | Rule::named_arg | Rule::index_item | Rule::if_arm | Rule::prefix | Rule::kw_not => explain::EXPR,
        Rule::value | Rule::simple_value => explain::EXPR,
        Rule::infix | Rule::postfix | Rule::args | Rule::index | Rule::field | Rule::minus => explain::OPERATOR,
        Rule::comprehension => "`for`",
        Rule::over | Rule::kw_over => "`over`",
        Rule::axis_map | Rule::arrow => "`->`",
        Rule::any_setting | Rule::setting | Rule::choice | Rule::phase => explain::ENTRY,
        Rule::rounding => return None,
        Rule::init | Rule::tilde => "`~`",
        Rule::group => "a group",
        Rule::sep | Rule::newline | Rule::nl => explain::LINE_END,
        Rule::entry_sep => explain::ENTRY_END,
        Rule::EOI => explain::ITEM_END,
        Rule::rparen => "`)`",
        Rule::rbracket => "`]`",
        Rule::rbrace => "`}`",
        Rule::rangle => "`>`",
        Rule::comma => "`,`",
        Rule::semi => "`;`",
        Rule::colon => "`:`",
        Rule::dot => "`.`",
        Rule::eq => "`=`",
        Rule::question => return None,
        Rule::kw_use => "`use`",
        Rule::kw_const => "`const`",
        Rule::kw_axis => "`axis`",
        Rule::kw_like => "`like`",
        Rule::kw_fn => "`fn`",
        Rule::kw_apply => "`apply`",
        Rule::kw_model => "`model`",
        Rule::kw_let => "`let`",
        Rule::kw_param => "`param`",
        Rule::kw_unused => "`unused`",
        Rule::kw_state => "`state`",
        Rule::kw_for => "`for`",
        Rule::kw_in => "`in`",
        Rule::kw_if => "`if`",
        Rule::kw_else => "`else`",
        Rule::kw_and | Rule::kw_or => explain::OPERATOR,
        Rule::kw_as => "`as`",
        Rule::kw_on => "`on`",
        Rule::kw_where => "`where`",
        Rule::kw_phase => "`phase`",
        Rule::kw_when => "`when`",
        Rule::kw_per => "`per`",
        Rule::interp | Rule::str_text | Rule::str_escape => "text",
        Rule::item_entry | Rule::value_entry | Rule::expr_entry | Rule::WHITESPACE => return None,
        Rule::rebind_ahead | Rule::pattern_text | Rule::axis_map_ahead => return None,
        Rule::keyword | Rule::word_start | Rule::word_char | Rule::digits => return None,
    })
}

fn comments(scan: &Scan<'_>) -> Vec<Comment> {
    scan.comments
        .iter()
        .map(|&span| {
            let line = scan.text[..span.start as usize].rfind('\n').map_or(0, |i| i + 1);
            let text = scan.text[span.range()].trim_end();
            Comment {
                text: text.to_string(),
                span: Span::new(scan.file, span.start as usize, span.start as usize + text.len()),
                own_line: scan.text[line..span.start as usize].trim_start_matches('\u{feff}').trim().is_empty(),
            }
        })
        .collect()
}

type Node<'i> = Pair<'i, Rule>;

/// The one node inside another that is not punctuation.
fn only(node: Node<'_>) -> Node<'_> {
    let position = node.as_span().start();
    Parts::of(node).next().unwrap_or_else(|| unreachable!("empty node at {position}"))
}

/// The parts of a node without its punctuation and keywords, unless asked for.
struct Parts<'i>(std::iter::Peekable<Pairs<'i, Rule>>);

impl<'i> Parts<'i> {
    fn of(node: Node<'i>) -> Self {
        Self(node.into_inner().peekable())
    }

    fn is_token(rule: Rule) -> bool {
        use Rule::*;
        matches!(rule, lparen | rparen | lbracket | rbracket | lbrace | rbrace | langle | rangle | comma | semi | colon)
            || matches!(rule, dot | eq | tilde | arrow | question | sep | newline | entry_sep | EOI)
            || matches!(rule, kw_use | kw_const | kw_axis | kw_like | kw_fn | kw_model | kw_let | kw_param | kw_state)
            || matches!(rule, kw_for | kw_in | kw_if | kw_else | kw_as | kw_over | kw_on | kw_where | kw_phase)
            || matches!(rule, kw_when | kw_per | kw_apply | kw_unused | rebind_ahead | axis_map_ahead)
    }

    /// The next part, if it is of this rule; punctuation before it is skipped, unless it is itself asked for.
    fn opt(&mut self, rule: Rule) -> Option<Node<'i>> {
        while let Some(next) = self.0.peek() {
            if next.as_rule() == rule {
                return self.0.next();
            }
            if !Self::is_token(next.as_rule()) {
                return None;
            }
            self.0.next();
        }
        None
    }

    /// The next part if it is exactly the next node; nothing is skipped.
    fn immediate(&mut self, rule: Rule) -> Option<Node<'i>> {
        self.0.next_if(|node| node.as_rule() == rule)
    }

    /// The next part, which the grammar promises to be of this rule.
    fn need(&mut self, rule: Rule) -> Node<'i> {
        self.opt(rule).unwrap_or_else(|| unreachable!("the grammar promises {rule:?}"))
    }

    /// All next parts of this rule.
    fn many(&mut self, rule: Rule) -> Vec<Node<'i>> {
        std::iter::from_fn(|| self.opt(rule)).collect()
    }
}

impl<'i> Iterator for Parts<'i> {
    type Item = Node<'i>;

    fn next(&mut self) -> Option<Node<'i>> {
        self.0.find(|node| !Self::is_token(node.as_rule()))
    }
}
