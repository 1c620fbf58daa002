//! Pairs to expressions.
//!
//! *Takes* the flat chains of operands and operators that the grammar gives, *gives* expressions nested by precedence,
//! *promises* a tree at most [`MAX_DEPTH`] levels high.

use super::build::Builder;
use super::{MAX_DEPTH, Node, Parts, Rule, only};
use crate::ast::*;
use crate::span::Span;
use crate::{explain, number};

impl<'i> Builder<'_, '_> {
    /// Goes `levels` down; `false`, with a message, when that is too deep. The caller takes them off again.
    pub(super) fn enter(&mut self, levels: usize, node: &Node<'i>) -> bool {
        if self.depth + levels > MAX_DEPTH {
            self.sink.push(explain::too_long(self.span(node), self.depth + levels, MAX_DEPTH));
            return false;
        }
        self.depth += levels;
        true
    }

    pub(super) fn expr(&mut self, node: Node<'i>) -> Expr {
        let span = self.span(&node);
        let mut parts = Parts::of(node);
        let value = self.chain(parts.need(Rule::chain));
        match parts.opt(Rule::string) {
            Some(label) => {
                let label = self.string(label);
                Expr { kind: ExprKind::Label { value: Box::new(value), label }, span, parens: false }
            }
            None => value,
        }
    }

    /// `operand (infix operand)*` by precedence.
    pub(super) fn chain(&mut self, node: Node<'i>) -> Expr {
        let span = self.span(&node);
        let mut parts = Vec::new();
        let mut levels = 1;
        for part in Parts::of(node.clone()) {
            if part.as_rule() == Rule::infix {
                parts.push(part);
                levels += 1;
            } else {
                let before = parts.len();
                parts.extend(Parts::of(part));
                levels += parts.len() - before - 1;
            }
        }
        if !self.enter(levels, &node) {
            return Expr { kind: ExprKind::None, span, parens: false };
        }
        let mut climber = Climber { parts: parts.into_iter().peekable() };
        let expr = climber.climb(self, 0);
        self.depth -= levels;
        expr
    }

    pub(super) fn primary(&mut self, node: Node<'i>) -> Expr {
        let span = self.span(&node);
        let kind = match node.as_rule() {
            Rule::number => match number::parse(node.as_str()) {
                Ok(kind) => kind,
                Err(problem) => {
                    self.sink.push(problem.at(span, ""));
                    ExprKind::Int(0)
                }
            },
            Rule::string => ExprKind::Str(self.string(node)),
            Rule::constant => match node.as_str() {
                "none" => ExprKind::None,
                word => ExprKind::Bool(word == "true"),
            },
            Rule::name => ExprKind::Name(self.ident(node)),
            Rule::list => self.list(node),
            Rule::tuple => return self.tuple(node),
            _ => ExprKind::If(Box::new(self.if_expr(node))),
        };
        Expr { kind, span, parens: false }
    }

    /// A parenthesised expression, or a tuple: the comma decides.
    pub(super) fn tuple(&mut self, node: Node<'i>) -> Expr {
        let span = self.span(&node);
        let comma = node.clone().into_inner().any(|node| node.as_rule() == Rule::comma);
        let mut fields: Vec<TupleField> = Parts::of(node)
            .map(|node| {
                let mut parts = Parts::of(node);
                let name = self.maybe(parts.opt(Rule::word));
                TupleField { name, value: self.expr(parts.need(Rule::expr)) }
            })
            .collect();
        match fields.pop() {
            Some(TupleField { name: None, value }) if !comma => Expr { span, parens: true, ..value },
            last => {
                fields.extend(last);
                Expr { kind: ExprKind::Tuple(fields), span, parens: false }
            }
        }
    }

    pub(super) fn list(&mut self, node: Node<'i>) -> ExprKind {
        let mut parts = Parts::of(node);
        let mut items: Vec<Expr> = parts.many(Rule::expr).into_iter().map(|node| self.expr(node)).collect();
        let Some(node) = parts.opt(Rule::comprehension) else { return ExprKind::List(items) };
        let value = items.pop().unwrap_or_else(|| unreachable!("a comprehension follows a value"));
        let mut parts = Parts::of(node);
        let pattern = self.pattern(parts.need(Rule::pattern));
        let iter = self.chain(parts.need(Rule::chain));
        let cond = parts.opt(Rule::chain).map(|node| self.chain(node));
        ExprKind::Comprehension(Box::new(Comprehension { value, pattern, iter, cond }))
    }

    pub(super) fn if_expr(&mut self, node: Node<'i>) -> If {
        let end = self.span(&node);
        let mut parts = Parts::of(node.clone());
        let arms = parts.many(Rule::if_arm);
        let levels = arms.len();
        let last = parts.opt(Rule::block).map(|node| Else::Block(self.block(node)));
        let deep = !self.enter(levels, &node);
        let mut built = Vec::new();
        for arm in if deep { arms.into_iter().take(1) } else { arms.into_iter().take(levels) } {
            let span = self.span(&arm).to(end.after());
            let mut parts = Parts::of(arm);
            let cond = self.chain(parts.need(Rule::chain));
            let then = self.block(parts.need(Rule::block));
            built.push(If { cond, then, otherwise: None, span });
        }
        if !deep {
            self.depth -= levels;
        }
        let mut built = built.into_iter().rev();
        let mut chain = built.next().unwrap_or_else(|| unreachable!("an `if` has an arm"));
        chain.otherwise = last;
        for arm in built {
            chain = If { otherwise: Some(Else::If(Box::new(chain))), ..arm };
        }
        chain
    }

    pub(super) fn string(&mut self, node: Node<'i>) -> Str {
        let span = self.span(&node);
        let mut parts: Vec<StrPart> = Vec::new();
        for node in Parts::of(node) {
            let text = match node.as_rule() {
                Rule::interp => {
                    let value = self.expr(only(node));
                    parts.push(StrPart::Expr(value));
                    continue;
                }
                Rule::str_escape => match &node.as_str()[1..] {
                    "n" => "\n".to_string(),
                    "t" => "\t".to_string(),
                    plain @ ("\\" | "\"" | "{" | "}") => plain.to_string(),
                    _ => {
                        self.sink.push(explain::bad_escape(self.span(&node), node.as_str()));
                        continue;
                    }
                },
                _ => node.as_str().to_string(),
            };
            match parts.last_mut() {
                Some(StrPart::Text(before)) => before.push_str(&text),
                _ => parts.push(StrPart::Text(text)),
            }
        }
        Str { parts, span }
    }

    pub(super) fn args(&mut self, node: Node<'i>) -> Args {
        let mut args = Args { items: Vec::new(), over: Vec::new(), span: self.span(&node) };
        for node in Parts::of(node) {
            if node.as_rule() == Rule::over {
                for node in Parts::of(node) {
                    match node.as_rule() {
                        Rule::named_arg => args.items.push(self.arg(node)),
                        _ => args.over.push(self.ident(node)),
                    }
                }
            } else {
                let arg = self.arg(node);
                if let (None, Some(Arg { name: Some(before), .. })) = (&arg.name, args.items.last()) {
                    self.sink.push(explain::positional_after_named(arg.value.span, before));
                }
                args.items.push(arg);
            }
        }
        args
    }

    pub(super) fn arg(&mut self, node: Node<'i>) -> Arg {
        let mut parts = Parts::of(node);
        let name = self.maybe(parts.opt(Rule::word));
        let value = match parts.opt(Rule::axis_map) {
            Some(node) => {
                let span = self.span(&node);
                let (mut from, mut to, mut right) = (Vec::new(), Vec::new(), false);
                for node in node.into_inner() {
                    match node.as_rule() {
                        Rule::arrow => right = true,
                        Rule::ident if right => to.push(self.ident(node)),
                        Rule::ident => from.push(self.ident(node)),
                        _ => {}
                    }
                }
                Expr { kind: ExprKind::AxisMap { from, to }, span, parens: false }
            }
            None => self.expr(parts.need(Rule::expr)),
        };
        Arg { name, value }
    }

    /// `base` with one `(…)`, `[…]` or `.name` after it. `next` is the call after a `.name`, if there is one.
    pub(super) fn postfix(&mut self, base: Expr, node: Node<'i>, call: Option<Node<'i>>) -> Expr {
        let span = base.span.to(self.span(call.as_ref().unwrap_or(&node)));
        let boxed = Box::new(base);
        let kind = match node.as_rule() {
            Rule::args => ExprKind::Call { callee: boxed, args: self.args(node) },
            Rule::field => {
                let name = self.ident(only(node));
                match call {
                    Some(args) => ExprKind::Method { receiver: boxed, name, args: self.args(args) },
                    None => ExprKind::Field { base: boxed, name },
                }
            }
            _ => {
                let one = |node| {
                    let mut parts = Parts::of(node);
                    IndexItem { axis: self.maybe(parts.opt(Rule::ident)), at: self.expr(parts.need(Rule::expr)) }
                };
                ExprKind::Index { base: boxed, items: Parts::of(node).map(one).collect() }
            }
        };
        Expr { kind, span, parens: false }
    }
}

/// Operands, prefixes, postfixes and infixes of one expression, in order.
struct Climber<'i> {
    parts: std::iter::Peekable<std::vec::IntoIter<Node<'i>>>,
}

/// How tightly `not` and `-` bind (see [`infix`]).
const NOT: u8 = 3;
const MINUS: u8 = 11;

/// An infix operator: how tightly it binds, and whether `a op b op c` is `a op (b op c)`.
fn infix(symbol: &str) -> (Infix, u8, bool) {
    use BinaryOp::*;
    let (op, level) = match symbol {
        "or" => (Or, 1),
        "and" => (And, 2),
        "==" => (Eq, 4),
        "!=" => (Ne, 4),
        "<" => (Lt, 4),
        "<=" => (Le, 4),
        ">" => (Gt, 4),
        ">=" => (Ge, 4),
        ".." => return (Infix::Range, 5, false),
        "??" => return (Infix::Coalesce, 6, true),
        "|" => (BitOr, 7),
        "&" => (BitAnd, 8),
        "<<" => (Shl, 9),
        ">>" => (Shr, 9),
        "+" => (Add, 10),
        "-" => (Sub, 10),
        "*" => (Mul, 11),
        "/" => (Div, 11),
        "//" => (IntDiv, 11),
        "%" => (Rem, 11),
        _ => return (Infix::Binary(Pow), 13, true),
    };
    (Infix::Binary(op), level, false)
}

#[derive(Clone, Copy)]
enum Infix {
    Binary(BinaryOp),
    Range,
    Coalesce,
}

/// The levels at which operators do not chain: comparisons and `..`.
const COMPARE: u8 = 4;
const RANGE: u8 = 5;

impl<'i> Climber<'i> {
    /// An expression whose infix operators bind at least as tightly as `least`.
    fn climb(&mut self, builder: &mut Builder<'_, '_>, least: u8) -> Expr {
        let mut lhs = self.operand(builder);
        let mut before: Option<(u8, Span)> = None;
        while let Some(next) = self.parts.peek() {
            let (infix, level, right) = infix(next.as_str().trim_end());
            if level < least {
                break;
            }
            let op_span = builder.span(next);
            self.parts.next();
            if let Some((COMPARE | RANGE, first)) = before.filter(|(before, _)| *before == level) {
                builder.sink.push(explain::chained(first, op_span, level == RANGE));
            }
            before = Some((level, op_span));
            let rhs = self.climb(builder, if right { level } else { level + 1 });
            let span = lhs.span.to(rhs.span);
            let (lhs_box, rhs) = (Box::new(lhs), Box::new(rhs));
            let kind = match infix {
                Infix::Binary(op) => ExprKind::Binary { op, op_span, lhs: lhs_box, rhs },
                Infix::Range => ExprKind::Range { start: lhs_box, end: rhs },
                Infix::Coalesce => ExprKind::Coalesce { value: lhs_box, otherwise: rhs },
            };
            lhs = Expr { kind, span, parens: false };
        }
        lhs
    }

    fn next(&mut self) -> Node<'i> {
        self.parts.next().unwrap_or_else(|| unreachable!("an operator has an operand"))
    }

    fn operand(&mut self, builder: &mut Builder<'_, '_>) -> Expr {
        let node = self.next();
        let span = builder.span(&node);
        if node.as_rule() == Rule::prefix {
            let (op, level) =
                if node.as_str().starts_with('-') { (UnaryOp::Neg, MINUS + 1) } else { (UnaryOp::Not, NOT) };
            let operand = Box::new(self.climb(builder, level));
            let whole = span.to(operand.span);
            return Expr { kind: ExprKind::Unary { op, op_span: span, operand }, span: whole, parens: false };
        }
        let mut expr = builder.primary(node);
        while let Some(node) =
            self.parts.next_if(|node| matches!(node.as_rule(), Rule::args | Rule::index | Rule::field))
        {
            let call = match node.as_rule() {
                Rule::field => self.parts.next_if(|node| node.as_rule() == Rule::args),
                _ => None,
            };
            expr = builder.postfix(expr, node, call);
        }
        expr
    }
}
