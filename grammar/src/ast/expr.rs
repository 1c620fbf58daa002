//! Expressions, strings, calls and operators.

use super::{Block, Ident, Pattern};
use crate::span::Span;

/// An expression and where it stands.
#[derive(Clone, Debug)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Its place, with its parentheses.
    pub span: Span,
    /// Written in parentheses. Only the formatter cares.
    pub parens: bool,
}

/// The kinds of expression.
#[derive(Clone, Debug)]
pub enum ExprKind {
    /// `786_432`, `0x9E37`, `0b11`
    Int(i64),
    /// `0.5`, `1e-12`: anything with a point or an exponent.
    Float(f64),
    /// `600s`, `10min`, `2h`, `500ms`: in seconds.
    Duration(f64),
    /// `true`, `false`
    Bool(bool),
    /// `none`
    None,
    /// `"blocks.{i}"`
    Str(Str),
    /// A value, function, layer, dtype or axis.
    Name(Ident),
    /// `(a, b)`, `(a,)`, `()`, `(codes: q, scale: s)`
    Tuple(Vec<TupleField>),
    /// `[9, 10]`
    List(Vec<Expr>),
    /// `[block(i) as "blocks.{i}" for i in 0..layers if keep(i)]`
    Comprehension(Box<Comprehension>),
    /// `q -> kv g hd`, `kv g hd -> q`, `t -> s`: axes to axes; only as an argument.
    AxisMap {
        /// Left of the arrow; at least one.
        from: Vec<Ident>,
        /// Right of the arrow; at least one.
        to: Vec<Ident>,
    },
    /// `f(x, eps: 1e-6 over d)`, `blocks[i](x)`
    Call {
        /// What is called.
        callee: Box<Expr>,
        /// With what.
        args: Args,
    },
    /// `value.at(tokens, i)`, `skips.pop()`
    Method {
        /// Left of the point.
        receiver: Box<Expr>,
        /// Right of the point.
        name: Ident,
        /// With what.
        args: Args,
    },
    /// `skips.len`, `clock.progress`
    Field {
        /// Left of the point.
        base: Box<Expr>,
        /// Right of the point.
        name: Ident,
    },
    /// `blocks[i]`, `mix[m = 0]`, `x[t = 0..n, h = 1]`
    Index {
        /// What is indexed.
        base: Box<Expr>,
        /// At least one.
        items: Vec<IndexItem>,
    },
    /// `-x`, `not c`
    Unary {
        /// Which.
        op: UnaryOp,
        /// Place of the operator.
        op_span: Span,
        /// On what.
        operand: Box<Expr>,
    },
    /// `a + b` and the other infix operators, `??` and `..` apart.
    Binary {
        /// Which.
        op: BinaryOp,
        /// Place of the operator.
        op_span: Span,
        /// Left.
        lhs: Box<Expr>,
        /// Right.
        rhs: Box<Expr>,
    },
    /// `v0 ?? raw`: the value of an optional, or else.
    Coalesce {
        /// The optional.
        value: Box<Expr>,
        /// Instead of `none`.
        otherwise: Box<Expr>,
    },
    /// `0..layers`: from start up to and without end.
    Range {
        /// First.
        start: Box<Expr>,
        /// One past the last.
        end: Box<Expr>,
    },
    /// `attention(index) as "attn"`: names an instance for the paths of its parameters.
    Label {
        /// The instance.
        value: Box<Expr>,
        /// Its part of the path.
        label: Str,
    },
    /// `if c { a } else { b }`; `if v0 { … }` also unwraps an optional inside.
    If(Box<If>),
}

/// A string, in pieces.
#[derive(Clone, Debug)]
pub struct Str {
    /// Text and interpolated expressions in order; empty for `""`.
    pub parts: Vec<StrPart>,
    /// With the quotes.
    pub span: Span,
}

impl Str {
    /// The text, if nothing is interpolated.
    pub fn as_text(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [StrPart::Text(text)] => Some(text),
            _ => None,
        }
    }
}

/// A piece of a string.
#[derive(Clone, Debug)]
pub enum StrPart {
    /// Text with its escapes resolved.
    Text(String),
    /// `{expr}`
    Expr(Expr),
}

/// One part of a tuple.
#[derive(Clone, Debug)]
pub struct TupleField {
    /// Its name, where written: `(codes: q, scale: s)`.
    pub name: Option<Ident>,
    /// Its value.
    pub value: Expr,
}

/// `value for pattern in iter if cond`
#[derive(Clone, Debug)]
pub struct Comprehension {
    /// One element.
    pub value: Expr,
    /// The loop names.
    pub pattern: Pattern,
    /// The range or list.
    pub iter: Expr,
    /// Which to keep.
    pub cond: Option<Expr>,
}

/// What stands between the parentheses of a call.
#[derive(Clone, Debug)]
pub struct Args {
    /// Positional and named arguments in order; the parser refuses a positional one after a named one.
    pub items: Vec<Arg>,
    /// The axes after `over`.
    pub over: Vec<Ident>,
    /// With the parentheses.
    pub span: Span,
}

impl Args {
    /// The named argument, if given.
    pub fn named(&self, name: &str) -> Option<&Expr> {
        self.items.iter().find(|arg| arg.name.as_ref().is_some_and(|n| *n == *name)).map(|arg| &arg.value)
    }

    /// The arguments without a name.
    pub fn positional(&self) -> impl Iterator<Item = &Expr> {
        self.items.iter().filter(|arg| arg.name.is_none()).map(|arg| &arg.value)
    }
}

/// `value` or `name: value`
#[derive(Clone, Debug)]
pub struct Arg {
    /// Its name, where written.
    pub name: Option<Ident>,
    /// Its value.
    pub value: Expr,
}

/// What stands in the brackets of an index.
#[derive(Clone, Debug)]
pub struct IndexItem {
    /// `m` of `[m = 0]`; `None` indexes a list.
    pub axis: Option<Ident>,
    /// A position, or a range (`[t = 0..n]`).
    pub at: Expr,
}

/// `if cond { … } else …`
#[derive(Clone, Debug)]
pub struct If {
    /// A compile-time condition, an optional, or a run-time boolean where the stage allows one.
    pub cond: Expr,
    /// When it holds.
    pub then: Block,
    /// When it does not.
    pub otherwise: Option<Else>,
    /// From `if` to the last brace.
    pub span: Span,
}

/// What follows `else`.
#[derive(Clone, Debug)]
pub enum Else {
    /// `else { … }`
    Block(Block),
    /// `else if …`
    If(Box<If>),
}

/// Prefix operators.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum UnaryOp {
    /// `-`
    Neg,
    /// `not`
    Not,
}

impl UnaryOp {
    /// As written.
    pub fn symbol(self) -> &'static str {
        match self {
            UnaryOp::Neg => "-",
            UnaryOp::Not => "not",
        }
    }
}

/// Infix operators.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum BinaryOp {
    /// `or`
    Or,
    /// `and`
    And,
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `|` on integers
    BitOr,
    /// `&` on integers (exclusive or is the function `xor`)
    BitAnd,
    /// `<<`
    Shl,
    /// `>>`
    Shr,
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`: real division
    Div,
    /// `//`: exact integer division
    IntDiv,
    /// `%`
    Rem,
    /// `^`: power
    Pow,
}

impl BinaryOp {
    /// As written.
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Or => "or",
            BinaryOp::And => "and",
            BinaryOp::Eq => "==",
            BinaryOp::Ne => "!=",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::BitOr => "|",
            BinaryOp::BitAnd => "&",
            BinaryOp::Shl => "<<",
            BinaryOp::Shr => ">>",
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::IntDiv => "//",
            BinaryOp::Rem => "%",
            BinaryOp::Pow => "^",
        }
    }
}
