//! Pairs to items, statements and settings.
//!
//! *Takes* what pest found, *gives* the tree, *promises* that every node has its place and that recursion is bounded.

use super::{Node, Parts, Rule, only};
use crate::ast::*;
use crate::diagnostics::Sink;
use crate::explain;
use crate::scan::Scan;
use crate::span::Span;

/// Pairs to tree.
pub(super) struct Builder<'s, 'a> {
    pub(super) scan: &'s Scan<'a>,
    /// Offset of the chunk in the text.
    pub(super) base: usize,
    pub(super) sink: &'s mut Sink,
    /// Levels above the node being built.
    pub(super) depth: usize,
}

impl<'i> Builder<'_, '_> {
    pub(super) fn span(&self, node: &Node<'i>) -> Span {
        // pest counts the blanks after an absent optional part.
        let span = node.as_span();
        let start = self.base + span.start();
        Span::new(self.scan.file, start, start + span.as_str().trim_end().len())
    }

    pub(super) fn ident(&self, node: Node<'i>) -> Ident {
        Ident { name: node.as_str().to_string(), span: self.span(&node) }
    }

    pub(super) fn idents(&self, node: Node<'i>) -> Vec<Ident> {
        Parts::of(node).map(|node| self.ident(node)).collect()
    }

    /// `ident` of an optional part.
    pub(super) fn maybe(&self, node: Option<Node<'i>>) -> Option<Ident> {
        node.map(|node| self.ident(node))
    }

    // ---- items

    pub(super) fn item(&mut self, node: Node<'i>) -> Item {
        let span = self.span(&node);
        let node = only(node);
        let kind = match node.as_rule() {
            Rule::use_item => {
                let mut parts = Parts::of(node);
                let path = parts.many(Rule::word).into_iter().map(|node| self.ident(node)).collect();
                ItemKind::Use(Use { path, names: parts.opt(Rule::use_names).map(|names| self.idents(names)) })
            }
            Rule::const_list => ItemKind::Const(self.consts(node)),
            Rule::axis_list => ItemKind::Axis(self.axes(node)),
            Rule::def => ItemKind::Def(self.def(node)),
            _ => ItemKind::Section(self.section(node)),
        };
        Item { kind, span }
    }

    pub(super) fn consts(&mut self, node: Node<'i>) -> Vec<ConstDecl> {
        let one = |node: Node<'i>| {
            let span = self.span(&node);
            let mut parts = Parts::of(node);
            let name = self.ident(parts.need(Rule::ident));
            let ty = parts.opt(Rule::r#type).map(|node| self.ty(node));
            ConstDecl { name, ty, value: self.expr(parts.need(Rule::expr)), span }
        };
        Parts::of(node).map(one).collect()
    }

    pub(super) fn axes(&mut self, node: Node<'i>) -> Vec<AxisDecl> {
        let one = |node: Node<'i>| {
            let span = self.span(&node);
            let mut parts = Parts::of(node);
            let name = self.ident(parts.need(Rule::ident));
            let size = match parts.opt(Rule::ident) {
                Some(like) => AxisSize::Like(self.ident(like)),
                None => {
                    let value = self.expr(parts.need(Rule::expr));
                    let rounding = parts.opt(Rule::rounding).map(|node| {
                        let kind = if node.as_str() == "floor" { Rounding::Floor } else { Rounding::Ceil };
                        (kind, self.span(&node))
                    });
                    AxisSize::Value { value, rounding }
                }
            };
            AxisDecl { name, size, span }
        };
        Parts::of(node).map(one).collect()
    }

    pub(super) fn def(&mut self, node: Node<'i>) -> Def {
        let mut parts = Parts::of(node);
        let (kind, kind_span, name) = match parts.immediate(Rule::kw_model) {
            Some(word) => (DefKind::Model, self.span(&word), self.ident(word)),
            None => {
                let word = parts.need(Rule::def_kind);
                let kind = DefKind::ALL.into_iter().find(|kind| kind.keyword() == word.as_str());
                let kind = kind.unwrap_or_else(|| unreachable!("the grammar has another kind: {word:?}"));
                (kind, self.span(&word), self.ident(parts.need(Rule::ident)))
            }
        };
        let sig = self.signature(parts.need(Rule::signature));
        let (body, methods) = self.body(parts.need(Rule::def_body));
        Def { kind, kind_span, name, sig, body, methods }
    }

    /// The body of a definition: its statements, and its methods apart.
    pub(super) fn body(&mut self, node: Node<'i>) -> (Block, Vec<Def>) {
        let span = self.span(&node);
        let (mut stmts, mut methods) = (Vec::new(), Vec::new());
        for node in Parts::of(node) {
            if node.as_rule() == Rule::method {
                methods.push(self.method(node));
            } else {
                stmts.push(self.stmt(node));
            }
        }
        self.check_unused(&stmts);
        (Block { stmts, span }, methods)
    }

    pub(super) fn method(&mut self, node: Node<'i>) -> Def {
        let mut parts = Parts::of(node);
        let (kind_span, name) = match parts.immediate(Rule::kw_apply) {
            Some(word) => (self.span(&word), self.ident(word)),
            None => {
                let word = parts.need(Rule::kw_fn);
                (self.span(&word), self.ident(parts.need(Rule::ident)))
            }
        };
        let sig = self.signature(parts.need(Rule::signature));
        let body = self.block(parts.need(Rule::block));
        Def { kind: DefKind::Fn, kind_span, name, sig, body, methods: Vec::new() }
    }

    pub(super) fn signature(&mut self, node: Node<'i>) -> Signature {
        let span = self.span(&node);
        let mut parts = Parts::of(node);
        let axes = parts.opt(Rule::axis_params).map(|node| self.idents(node)).unwrap_or_default();
        let mut lists =
            Parts::of(parts.need(Rule::params)).map(|list| Parts::of(list).map(|p| self.param(p)).collect());
        let params = lists.next().unwrap_or_default();
        let hypers = lists.next().unwrap_or_default();
        let result = parts.opt(Rule::output).map(|node| {
            let mut parts = Parts::of(node);
            Output { name: self.maybe(parts.opt(Rule::ident)), ty: self.ty(parts.need(Rule::r#type)) }
        });
        Signature { axes, params, hypers, result, span }
    }

    pub(super) fn param(&mut self, node: Node<'i>) -> Param {
        let span = self.span(&node);
        let mut parts = Parts::of(node);
        let name = self.ident(parts.need(Rule::ident));
        let optional = parts.immediate(Rule::question).is_some();
        let ty = parts.opt(Rule::r#type).map(|node| self.ty(node));
        let default = parts.opt(Rule::expr).map(|node| self.expr(node));
        Param { name, optional, ty, default, span }
    }

    pub(super) fn ty(&mut self, node: Node<'i>) -> Type {
        let span = self.span(&node);
        let mut parts = Parts::of(node);
        let node = parts.next().unwrap_or_else(|| unreachable!("empty type"));
        let inner = self.span(&node);
        let kind = match node.as_rule() {
            Rule::tensor_type => {
                let mut parts = Parts::of(node);
                let dtype = self.maybe(parts.opt(Rule::dtype));
                let rest = parts.opt(Rule::rest).map(|node| self.span(&node));
                TypeKind::Tensor { dtype, rest, axes: parts.map(|node| self.ident(node)).collect() }
            }
            Rule::tuple_type => TypeKind::Tuple(
                Parts::of(node)
                    .map(|node| {
                        let mut parts = Parts::of(node);
                        let name = self.maybe(parts.opt(Rule::ident));
                        TypeField { name, ty: self.ty(parts.need(Rule::r#type)) }
                    })
                    .collect(),
            ),
            _ => TypeKind::Name(self.ident(node)),
        };
        if inner.end == span.end {
            return Type { kind, span };
        }
        Type { kind: TypeKind::Optional(Box::new(Type { kind, span: inner })), span }
    }

    // ---- statements

    pub(super) fn block(&mut self, node: Node<'i>) -> Block {
        let span = self.span(&node);
        let stmts: Vec<Stmt> = Parts::of(node).map(|node| self.stmt(node)).collect();
        self.check_unused(&stmts);
        Block { stmts, span }
    }

    /// Statements that compute and drop a value.
    pub(super) fn check_unused(&mut self, stmts: &[Stmt]) {
        let Some((_, before)) = stmts.split_last() else { return };
        for (index, stmt) in before.iter().enumerate() {
            let StmtKind::Expr(expr) = &stmt.kind else { continue };
            if !matches!(expr.kind, ExprKind::If(_) | ExprKind::Call { .. } | ExprKind::Method { .. }) {
                self.sink.push(explain::unused_value(expr, index > 0));
            }
        }
    }

    pub(super) fn stmt(&mut self, node: Node<'i>) -> Stmt {
        let span = self.span(&node);
        let node = only(node);
        let rule = node.as_rule();
        let kind = match rule {
            Rule::const_list => StmtKind::Const(self.consts(node)),
            Rule::axis_list => StmtKind::Axis(self.axes(node)),
            Rule::expr => StmtKind::Expr(self.expr(node)),
            Rule::let_stmt | Rule::rebind => {
                let mut parts = Parts::of(node);
                let target = self.pattern(parts.need(Rule::pattern));
                let ty = parts.opt(Rule::r#type).map(|node| self.ty(node));
                let value = self.expr(parts.need(Rule::expr));
                match rule {
                    Rule::let_stmt => StmtKind::Let { pattern: target, ty, value },
                    _ => StmtKind::Rebind { target, value },
                }
            }
            Rule::for_stmt => {
                let mut parts = Parts::of(node);
                let pattern = self.pattern(parts.need(Rule::pattern));
                let iter = self.chain(parts.need(Rule::chain));
                StmtKind::For { pattern, iter, body: self.block(parts.need(Rule::block)) }
            }
            _ => {
                let mut parts = Parts::of(node);
                let unused = parts.immediate(Rule::kw_unused).map(|node| self.span(&node));
                let slots = parts.many(Rule::tensor_decl).into_iter().map(|node| self.tensor(node)).collect();
                let init = parts.opt(Rule::init).map(|node| self.chain(only(node)));
                match rule {
                    Rule::state_stmt => StmtKind::State(StateDecl { slots, init, span }),
                    _ => {
                        let group = parts.opt(Rule::group).map(|node| self.group(node));
                        StmtKind::Param(ParamDecl { unused, slots, init, group, span })
                    }
                }
            }
        };
        Stmt { kind, span }
    }

    pub(super) fn pattern(&mut self, node: Node<'i>) -> Pattern {
        let span = self.span(&node);
        let node = only(node);
        let kind = match node.as_rule() {
            Rule::wildcard => PatternKind::Ignore,
            Rule::ident => PatternKind::Name(self.ident(node)),
            _ => PatternKind::Tuple(Parts::of(node).map(|node| self.pattern(node)).collect()),
        };
        Pattern { kind, span }
    }

    pub(super) fn tensor(&mut self, node: Node<'i>) -> TensorDecl {
        let span = self.span(&node);
        let mut parts = Parts::of(node);
        let name = self.ident(parts.need(Rule::ident));
        let axes = parts.opt(Rule::axes).map(|node| {
            let one = |node| {
                let mut parts = Parts::of(node);
                let name = self.ident(parts.need(Rule::ident));
                AxisUse { name, size: parts.opt(Rule::expr).map(|node| self.expr(node)) }
            };
            Parts::of(node).map(one).collect()
        });
        let dtype = self.maybe(parts.opt(Rule::ident));
        let label = parts.opt(Rule::string).map(|node| self.string(node));
        TensorDecl { name, axes, dtype, label, span }
    }

    /// `a if c else b if d else e`, nested to the right.
    pub(super) fn group(&mut self, node: Node<'i>) -> Group {
        let leaf = |ident: Ident| if ident == "unused" { Group::Unused(ident.span) } else { Group::Name(ident) };
        let names: Vec<Node<'i>> = Parts::of(node.clone()).filter(|node| node.as_rule() == Rule::ident).collect();
        let conds: Vec<Node<'i>> = Parts::of(node.clone()).filter(|node| node.as_rule() == Rule::chain).collect();
        let mut names = names.into_iter().rev().map(|node| leaf(self.ident(node)));
        let mut group = names.next().unwrap_or_else(|| unreachable!("empty group"));
        let thens: Vec<Group> = names.collect();
        if !self.enter(conds.len(), &node) {
            return group;
        }
        for (then, cond) in thens.into_iter().zip(conds.clone().into_iter().rev()) {
            let cond = Box::new(self.chain(cond));
            group = Group::If { then: Box::new(then), cond, otherwise: Box::new(group) };
        }
        self.depth -= conds.len();
        group
    }

    // ---- train, quantize, evaluate

    pub(super) fn section(&mut self, node: Node<'i>) -> Section {
        let mut parts = Parts::of(node);
        let word = parts.need(Rule::section_kind);
        let kind = match word.as_str() {
            "train" => SectionKind::Train,
            "quantize" => SectionKind::Quantize,
            _ => SectionKind::Evaluate,
        };
        Section { kind, kind_span: self.span(&word), settings: self.settings(parts.need(Rule::settings)) }
    }

    pub(super) fn settings(&mut self, node: Node<'i>) -> Settings {
        let span = self.span(&node);
        Settings { entries: Parts::of(node).map(|node| self.entry(node)).collect(), span }
    }

    pub(super) fn entry(&mut self, node: Node<'i>) -> Entry {
        let span = self.span(&node);
        let rule = node.as_rule();
        let mut parts = Parts::of(node);
        match rule {
            Rule::setting => {
                let key = self.ident(parts.need(Rule::word));
                Entry::Setting(Setting { key, value: self.value(parts.need(Rule::value)), span })
            }
            Rule::choice => {
                let name = self.ident(parts.need(Rule::ident));
                let on = self.chain(parts.need(Rule::chain));
                let cond = parts.opt(Rule::chain).map(|node| self.chain(node));
                let settings = parts.opt(Rule::settings).map(|node| self.settings(node));
                Entry::Rule(crate::ast::Rule { name, on, cond, settings, span })
            }
            _ => {
                let name = self.ident(parts.need(Rule::ident));
                let when = self.chain(parts.need(Rule::chain));
                Entry::Phase(Phase { name, when, settings: self.settings(parts.need(Rule::settings)), span })
            }
        }
    }

    /// `a else b else c`, nested to the right.
    pub(super) fn value(&mut self, node: Node<'i>) -> Value {
        let end = self.span(&node).after();
        let parts: Vec<Node<'i>> = Parts::of(node.clone()).collect();
        let levels = parts.len();
        let count = if self.enter(levels, &node) { levels } else { 1 };
        let simple: Vec<Value> = parts.into_iter().take(count).map(|node| self.simple_value(node)).collect();
        if count == levels {
            self.depth -= levels;
        }
        let nest = |after: Option<Value>, value: Value| {
            let span = value.span.to(end);
            Some(Value { otherwise: after.map(Box::new), span, ..value })
        };
        simple.into_iter().rev().fold(None, nest).unwrap_or_else(|| unreachable!("empty value"))
    }

    pub(super) fn simple_value(&mut self, node: Node<'i>) -> Value {
        let span = self.span(&node);
        let mut parts = Parts::of(node);
        let expr = self.expr(parts.need(Rule::expr));
        let per = self.maybe(parts.opt(Rule::word));
        let settings = parts.opt(Rule::settings).map(|node| self.settings(node));
        Value { expr, per, settings, otherwise: None, span }
    }
}
