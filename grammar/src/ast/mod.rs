//! The syntax tree of a golf program.
//!
//! *Takes* nothing, *gives* plain data, *promises*: every node carries its [`Span`]; names are as written (nothing is
//! resolved, checked or folded); the tree is at most [`crate::parse::MAX_DEPTH`] levels high, so recursive walks are safe.
//!
//! Axis names and value names are two namespaces, and the text does not always tell which is meant (`size(k)`, `mlp(f)`):
//! an axis given as an ordinary argument is an [`ExprKind::Name`]. After `over`, in `[m = 0]`, in `q -> h hd` and in types
//! a name is always an axis.

mod expr;
mod settings;

use crate::span::{FileId, Span};

pub use expr::*;
pub use settings::*;

/// A name and where it stands.
#[derive(Clone, Debug)]
pub struct Ident {
    /// The name as written.
    pub name: String,
    /// Its place.
    pub span: Span,
}

impl Ident {
    /// The name as `&str`.
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl PartialEq<str> for Ident {
    fn eq(&self, other: &str) -> bool {
        self.name == other
    }
}

impl PartialEq<&str> for Ident {
    fn eq(&self, other: &&str) -> bool {
        self.name == *other
    }
}

/// One source text: a program, or one file of the prelude.
#[derive(Clone, Debug)]
pub struct File {
    /// Which text.
    pub file: FileId,
    /// Its items in order. After errors: those that could be read.
    pub items: Vec<Item>,
    /// Every comment in order, for the formatter and for documentation.
    pub comments: Vec<Comment>,
}

/// `# text`, up to the end of its line.
#[derive(Clone, Debug)]
pub struct Comment {
    /// Text with its `#`, without trailing blanks.
    pub text: String,
    /// Its place.
    pub span: Span,
    /// Nothing but blanks stands before it on its line.
    pub own_line: bool,
}

/// A top-level item.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// From its keyword to its last token.
    pub span: Span,
}

/// The kinds of item.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a program has tens of items; a box would be in every walker's way")]
pub enum ItemKind {
    /// `use std.{norm, attention}`
    Use(Use),
    /// `const vocab = 1024, dim = 512`
    Const(Vec<ConstDecl>),
    /// `axis v = vocab, s like t`
    Axis(Vec<AxisDecl>),
    /// `fn`, `layer`, `model`, `optimizer` and the other definitions.
    Def(Def),
    /// `train { … }`, `quantize { … }`, `evaluate { … }`
    Section(Section),
}

/// `use std.norm` (`names` empty) or `use std.{norm, attention}`.
#[derive(Clone, Debug)]
pub struct Use {
    /// `std`, or `std norm`; at least one.
    pub path: Vec<Ident>,
    /// The names in braces; `None` without braces.
    pub names: Option<Vec<Ident>>,
}

/// `name: type = value`
#[derive(Clone, Debug)]
pub struct ConstDecl {
    /// The constant's name.
    pub name: Ident,
    /// Its type, where written.
    pub ty: Option<Type>,
    /// Its value.
    pub value: Expr,
    /// The whole.
    pub span: Span,
}

/// `d = dim`, `k = layers // 2 floor`, `s like t`
#[derive(Clone, Debug)]
pub struct AxisDecl {
    /// The axis's name.
    pub name: Ident,
    /// Its size.
    pub size: AxisSize,
    /// The whole.
    pub span: Span,
}

/// How an axis gets its size.
#[derive(Clone, Debug)]
pub enum AxisSize {
    /// `= value`, `= value floor`, `= value ceil`
    Value {
        /// The size.
        value: Expr,
        /// What to do when a `//` in `value` does not divide exactly; `None`: an error.
        rounding: Option<(Rounding, Span)>,
    },
    /// `like t`: a second name for an axis of the same size.
    Like(Ident),
}

/// Rounding of an inexact `//` in an axis size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    /// Towards minus infinity.
    Floor,
    /// Towards plus infinity.
    Ceil,
}

/// A definition: `KIND NAME<AXES>(PARAMS; HYPERS) -> RESULT { BODY }`.
#[derive(Clone, Debug)]
pub struct Def {
    /// Which slot or role.
    pub kind: DefKind,
    /// The keyword's place.
    pub kind_span: Span,
    /// Its name; for `model`, which has none, the word `model`; for methods `apply` or the name after `fn`.
    pub name: Ident,
    /// Axis parameters, parameters, result.
    pub sig: Signature,
    /// Statements; the last one's expression is the value. A layer's body runs once per instance.
    pub body: Block,
    /// `apply(…) { … }` and `fn name(…) { … }` inside the body, in order. Each has `kind` [`DefKind::Fn`].
    pub methods: Vec<Def>,
}

impl Def {
    /// The method of this name, if it has one (`apply` is one).
    pub fn method(&self, name: &str) -> Option<&Def> {
        self.methods.iter().find(|method| method.name == *name)
    }
}

/// What a definition defines. Everything but `Fn`, `Layer` and `Model` fills a slot of `train`, `quantize` or `evaluate`,
/// or of a parameter (`Init`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DefKind {
    /// `fn`: inlined where it is called.
    Fn,
    /// `layer`: a constructor of parameters, with `apply`.
    Layer,
    /// `model`: the one forward definition.
    Model,
    /// `optimizer name(w, g; hyper…)`
    Optimizer,
    /// `average name(w, clock; …)`
    Average,
    /// `quantizer name(w, tap?; …)`
    Quantizer,
    /// `adapter name(x; …)`
    Adapter,
    /// `schedule name(clock; …)`
    Schedule,
    /// `init name(shape, key; …)`
    Init,
    /// `filter name(g; …)`: gradient filters such as clipping.
    Filter,
}

impl DefKind {
    /// Every kind.
    pub const ALL: [DefKind; 10] = [
        DefKind::Fn,
        DefKind::Layer,
        DefKind::Model,
        DefKind::Optimizer,
        DefKind::Average,
        DefKind::Quantizer,
        DefKind::Adapter,
        DefKind::Schedule,
        DefKind::Init,
        DefKind::Filter,
    ];

    /// The keyword that introduces it.
    pub fn keyword(self) -> &'static str {
        match self {
            DefKind::Fn => "fn",
            DefKind::Layer => "layer",
            DefKind::Model => "model",
            DefKind::Optimizer => "optimizer",
            DefKind::Average => "average",
            DefKind::Quantizer => "quantizer",
            DefKind::Adapter => "adapter",
            DefKind::Schedule => "schedule",
            DefKind::Init => "init",
            DefKind::Filter => "filter",
        }
    }
}

/// `<A, B>(x: [.. A], eps = 2^-23; lr, wd) -> logits [b t v]`
#[derive(Clone, Debug)]
pub struct Signature {
    /// Axis parameters in `<…>`, filled by `over` at a call.
    pub axes: Vec<Ident>,
    /// Parameters before `;`.
    pub params: Vec<Param>,
    /// Hyper-parameters after `;` (empty without one).
    pub hypers: Vec<Param>,
    /// What it gives.
    pub result: Option<Output>,
    /// From `<` or `(` to the end of the result.
    pub span: Span,
}

/// `-> type` or `-> name type`
#[derive(Clone, Debug)]
pub struct Output {
    /// The name before the type (`-> logits [b t v]`).
    pub name: Option<Ident>,
    /// The type.
    pub ty: Type,
}

/// `name`, `name?`, `name: type`, `name = default`, `name: type = default`
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name.
    pub name: Ident,
    /// `name?`: may be left out, and is then `none`. (An optional type, `x: T?`, is in `ty`.)
    pub optional: bool,
    /// Its type, where written.
    pub ty: Option<Type>,
    /// Its default, where written.
    pub default: Option<Expr>,
    /// The whole.
    pub span: Span,
}

/// A type and where it stands.
#[derive(Clone, Debug)]
pub struct Type {
    /// What it is.
    pub kind: TypeKind,
    /// Its place.
    pub span: Span,
}

/// The kinds of type.
#[derive(Clone, Debug)]
pub enum TypeKind {
    /// `[b t d]`, `[.. A]`, `bf16 [v d]`
    Tensor {
        /// The dtype's name, where written.
        dtype: Option<Ident>,
        /// Place of `..`: further axes are allowed and kept.
        rest: Option<Span>,
        /// The named axes in written order.
        axes: Vec<Ident>,
    },
    /// `int`, `float`, `bool`, `string`, `list`, `axis`, a dtype alone: a word, not resolved here.
    Name(Ident),
    /// `T?`
    Optional(Box<Type>),
    /// `([b t d], [b t kv hd])`, `(codes: i8 [r c], scale: f32 [r])`
    Tuple(Vec<TypeField>),
}

/// One part of a tuple type.
#[derive(Clone, Debug)]
pub struct TypeField {
    /// Its name, where written.
    pub name: Option<Ident>,
    /// Its type.
    pub ty: Type,
}

/// `{ statement … }`
#[derive(Clone, Debug)]
pub struct Block {
    /// The statements.
    pub stmts: Vec<Stmt>,
    /// With the braces.
    pub span: Span,
}

impl Block {
    /// The statements before the value, and the value: the last statement if it is an expression.
    pub fn split_value(&self) -> (&[Stmt], Option<&Expr>) {
        match self.stmts.split_last() {
            Some((Stmt { kind: StmtKind::Expr(value), .. }, before)) => (before, Some(value)),
            _ => (&self.stmts, None),
        }
    }
}

/// A statement and where it stands.
#[derive(Clone, Debug)]
pub struct Stmt {
    /// What it is.
    pub kind: StmtKind,
    /// Its place.
    pub span: Span,
}

/// The kinds of statement.
#[derive(Clone, Debug)]
pub enum StmtKind {
    /// `let x: type = value`, `let (o, raw) = value`
    Let {
        /// The new names.
        pattern: Pattern,
        /// The type, where written.
        ty: Option<Type>,
        /// The value.
        value: Expr,
    },
    /// `x = value`, `(x, y) = value`: gives visible names a new value of the same type.
    Rebind {
        /// The names.
        target: Pattern,
        /// The value.
        value: Expr,
    },
    /// `const a = 1, b = 2`
    Const(Vec<ConstDecl>),
    /// `axis k = layers // 2 floor`
    Axis(Vec<AxisDecl>),
    /// `param …`
    Param(ParamDecl),
    /// `state m ~ zeros`
    State(StateDecl),
    /// `for i in 0..n { … }`, unrolled
    For {
        /// The loop names.
        pattern: Pattern,
        /// The range or list.
        iter: Expr,
        /// What is repeated.
        body: Block,
    },
    /// An expression. The last statement of a block gives its value; elsewhere the parser lets through only what can
    /// have an effect: `if`, a call, a method call (`skips.push(x)`).
    Expr(Expr),
}

/// Names on the left of `=` or after `for`.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// What it is.
    pub kind: PatternKind,
    /// Its place.
    pub span: Span,
}

/// The kinds of pattern.
#[derive(Clone, Debug)]
pub enum PatternKind {
    /// `x`
    Name(Ident),
    /// `_`
    Ignore,
    /// `(x, y)`
    Tuple(Vec<Pattern>),
}

/// `unused param a[d], b[d] : bf16 as "label" ~ init in group`
#[derive(Clone, Debug)]
pub struct ParamDecl {
    /// Place of a leading `unused`: kept, counted, never stepped.
    pub unused: Option<Span>,
    /// What is declared; at least one. They share `init` and `group`.
    pub slots: Vec<TensorDecl>,
    /// After `~`.
    pub init: Option<Expr>,
    /// After `in`.
    pub group: Option<Group>,
    /// The whole.
    pub span: Span,
}

/// `state m, v ~ zeros`: a tensor kept from step to step.
#[derive(Clone, Debug)]
pub struct StateDecl {
    /// What is declared; at least one. Without axes: those of the first input of the definition (`w`).
    pub slots: Vec<TensorDecl>,
    /// After `~`.
    pub init: Option<Expr>,
    /// The whole.
    pub span: Span,
}

/// `emb[v, d] : bf16 as "tok_emb.weight"`
#[derive(Clone, Debug)]
pub struct TensorDecl {
    /// Its name.
    pub name: Ident,
    /// Its axes in storage order; `None` without brackets (a scalar for `param`).
    pub axes: Option<Vec<AxisUse>>,
    /// After `:`.
    pub dtype: Option<Ident>,
    /// After `as`: its own part of the parameter's name.
    pub label: Option<Str>,
    /// The whole.
    pub span: Span,
}

/// An axis of a parameter: `d`, or `m: 2`, which also gives the size.
#[derive(Clone, Debug)]
pub struct AxisUse {
    /// The axis.
    pub name: Ident,
    /// Its size, where given here.
    pub size: Option<Expr>,
}

/// Which group a parameter belongs to.
#[derive(Clone, Debug)]
pub enum Group {
    /// `in scalars`
    Name(Ident),
    /// `in unused`
    Unused(Span),
    /// `in scalars if index > 0 else unused`
    If {
        /// When the condition holds.
        then: Box<Group>,
        /// A compile-time condition.
        cond: Box<Expr>,
        /// When it does not.
        otherwise: Box<Group>,
    },
}
