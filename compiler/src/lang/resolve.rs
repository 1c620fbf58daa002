//! Names before evaluation: every name means something, and everything written is needed.
//!
//! *Takes* a [`Program`]; *gives* diagnostics and the set of definitions the run needs; *promises* to look at every line,
//! evaluated or not, so that a wrong name in a branch not taken is found too. Nothing is evaluated.

use super::builtin;
use super::codes;
use super::params::INITS;
use super::program::{Global, ModuleId, Program};
use golf_grammar::ast::{
    Args, AxisDecl, AxisSize, AxisUse, Block, Def, DefKind, Else, Entry, Expr, ExprKind, Group, Ident, If, ItemKind,
    Param, Pattern, PatternKind, Section, SectionKind, Settings, Signature, Stmt, StmtKind, Str, StrPart, TensorDecl,
    Type, TypeKind, Value,
};
use golf_grammar::{Diagnostic, Sink, Span};
use std::collections::{BTreeMap, BTreeSet};

/// The two namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// Constants, functions, layers and the others.
    Value,
    /// Axes.
    Axis,
}

/// A top-level name.
pub type Name = (ModuleId, Space, String);

/// Names a rule's `where` sees.
pub const PREDICATE: [&str; 6] = ["numel", "rank", "rows", "cols", "name", "group"];

/// Slots that take a word of their own: a loader, codec, protocol or order. The settings stage checks it.
const SLOT_WORDS: [&str; 5] = ["data", "calibrate", "pack", "adapt", "order"];

/// Checks all names; gives the top-level names that the model and the blocks need. With `whole`, what nothing needs is an error: so for
/// the program as written, but not after `--set`, which may well leave something without use.
pub fn resolve(program: &Program, whole: bool, sink: &mut Sink) -> BTreeSet<Name> {
    let mut graph: BTreeMap<Name, BTreeSet<Name>> = BTreeMap::new();
    let mut roots: BTreeSet<Name> = BTreeSet::new();
    for (id, module) in program.modules.iter().enumerate() {
        for decl in module.consts() {
            let mut walk = Walk::new(program, id, sink);
            walk.in_block(|w| {
                w.expr(&decl.value);
                w.optional_type(decl.ty.as_ref());
            });
            graph.insert((id, Space::Value, decl.name.name.clone()), walk.refs);
        }
        for decl in module.axes() {
            let mut walk = Walk::new(program, id, sink);
            walk.in_block(|w| w.axis_decl(decl));
            graph.insert((id, Space::Axis, decl.name.name.clone()), walk.refs);
        }
        for def in module.defs() {
            let mut walk = Walk::new(program, id, sink);
            walk.def(def);
            graph.insert((id, Space::Value, def.name.name.clone()), walk.refs);
        }
        for item in &module.tree.items {
            let mut walk = Walk::new(program, id, sink);
            match &item.kind {
                ItemKind::Def(def) if def.kind == DefKind::Model => walk.def(def),
                ItemKind::Section(section) => walk.section(section),
                _ => continue,
            }
            roots.extend(walk.refs);
        }
    }
    let mut reached = BTreeSet::new();
    let mut stack: Vec<Name> = roots.into_iter().collect();
    while let Some(name) = stack.pop() {
        if reached.insert(name.clone()) {
            stack.extend(graph.get(&name).into_iter().flatten().cloned());
        }
    }
    // A wrong name may be what leaves another without use.
    if whole && !sink.has_errors() {
        unused(program, &graph, &reached, sink);
    }
    reached
}

/// Reports items of the user's file that nothing needs. What only such an item needs is not reported again.
fn unused(program: &Program, graph: &BTreeMap<Name, BTreeSet<Name>>, reached: &BTreeSet<Name>, sink: &mut Sink) {
    if program.model().is_none() {
        return;
    }
    let wanted: BTreeSet<&Name> =
        graph.iter().filter(|(name, _)| !reached.contains(*name)).flat_map(|(_, refs)| refs).collect();
    let main = &program.modules[0];
    let items = main
        .consts()
        .map(|decl| (Space::Value, "constant", &decl.name))
        .chain(main.axes().map(|decl| (Space::Axis, "axis", &decl.name)))
        .chain(main.defs().map(|def| (Space::Value, def.kind.keyword(), &def.name)));
    for (space, what, name) in items {
        let key = (0, space, name.name.clone());
        if !reached.contains(&key) && !wanted.contains(&key) {
            sink.push(
                Diagnostic::error(codes::UNUSED_ITEM, format!("the {what} `{}` has no effect", name.name))
                    .at(name.span, "nothing that runs needs it")
                    .hint("remove it, or use it: a setting without effect is a mistake waiting to be believed"),
            );
        }
    }
    for (id, span) in &main.uses {
        if !reached.iter().any(|(module, _, _)| module == id) {
            sink.push(
                Diagnostic::error(codes::UNUSED_ITEM, format!("nothing of `{}` is used", program.modules[*id].name))
                    .at(*span, "")
                    .hint("remove it from the `use` list"),
            );
        }
    }
}

/// A local name.
struct Local {
    span: Span,
    used: bool,
    /// What to say when nothing reads it; `None`: nothing.
    what: Option<&'static str>,
}

#[derive(Default)]
struct Scope<'p> {
    values: BTreeMap<&'p str, Local>,
    axes: BTreeSet<&'p str>,
}

struct Walk<'p, 's> {
    program: &'p Program,
    module: ModuleId,
    sink: &'s mut Sink,
    scopes: Vec<Scope<'p>>,
    refs: BTreeSet<Name>,
}

impl<'p, 's> Walk<'p, 's> {
    fn new(program: &'p Program, module: ModuleId, sink: &'s mut Sink) -> Self {
        Walk { program, module, sink, scopes: Vec::new(), refs: BTreeSet::new() }
    }

    fn in_block(&mut self, f: impl FnOnce(&mut Self)) {
        self.scopes.push(Scope::default());
        f(self);
        let Some(scope) = self.scopes.pop() else { return };
        // The prelude has its own tests.
        if self.module != 0 {
            return;
        }
        for (name, local) in scope.values {
            if let Some(what) = local.what
                && !local.used
                && !name.starts_with('_')
            {
                self.sink.push(
                    Diagnostic::warning(codes::UNUSED_LOCAL, format!("the {what} `{name}` is never read"))
                        .at(local.span, "")
                        .hint("remove it, or begin its name with `_`"),
                );
            }
        }
    }

    fn declare(&mut self, name: &'p Ident, what: Option<&'static str>) {
        let Some(scope) = self.scopes.last_mut() else { return };
        if let Some(first) = scope.values.get(name.as_str()) {
            self.sink.push(
                Diagnostic::error(codes::DUPLICATE_NAME, format!("`{}` is declared twice in one block", name.name))
                    .at(name.span, "second declaration")
                    .also(first.span, "first declaration")
                    .hint(format!("`{} = …` gives it a new value", name.name)),
            );
            return;
        }
        scope.values.insert(name.as_str(), Local { span: name.span, used: false, what });
    }

    fn declare_axis(&mut self, name: &'p Ident) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.axes.insert(name.as_str());
        }
    }

    /// Marks a value name; false if it is none.
    fn find_value(&mut self, name: &str) -> bool {
        for scope in self.scopes.iter_mut().rev() {
            if let Some(local) = scope.values.get_mut(name) {
                local.used = true;
                return true;
            }
        }
        if let Some((module, _)) = self.program.global(self.module, name) {
            self.refs.insert((module, Space::Value, name.to_string()));
            return true;
        }
        builtin::predefined(name).is_some()
    }

    /// Marks an axis name; false if it is none.
    fn find_axis(&mut self, name: &str) -> bool {
        if self.scopes.iter().rev().any(|scope| scope.axes.contains(name)) {
            // An axis parameter given as an ordinary argument is a value too.
            for scope in self.scopes.iter_mut().rev() {
                if let Some(local) = scope.values.get_mut(name) {
                    local.used = true;
                }
            }
            return true;
        }
        if self.program.modules[self.module].axis(name).is_some() {
            self.refs.insert((self.module, Space::Axis, name.to_string()));
            return true;
        }
        self.module == 0 && batch_axis(self.program) == Some(name)
    }

    fn axis(&mut self, name: &'p Ident) {
        if self.find_axis(name.as_str()) {
            return;
        }
        let mut names: Vec<&str> = self.scopes.iter().flat_map(|scope| scope.axes.iter().copied()).collect();
        names.extend(self.program.modules[self.module].axis_names());
        let d = Diagnostic::error(codes::UNKNOWN_AXIS, format!("there is no axis `{}` here", name.name));
        let mut d = d.at(name.span, "not an axis").did_you_mean(name.as_str(), name.span, names);
        if self.module == 0 && token_axis(self.program, 1) == Some(name.as_str()) {
            d = d.hint(format!("declare it: `axis {} = seq`, the number of tokens in a training row", name.name));
        }
        if self.scopes.iter().any(|scope| scope.values.contains_key(name.as_str())) {
            d = d.note("a value has this name, but axes and values are two namespaces");
        }
        self.sink.push(d);
    }

    fn name(&mut self, name: &'p Ident) {
        if self.find_value(name.as_str()) || self.find_axis(name.as_str()) {
            return;
        }
        let program = self.program;
        let mut names: Vec<&str> = self.scopes.iter().flat_map(|scope| scope.values.keys().copied()).collect();
        names.extend(program.visible_values(self.module));
        names.extend(builtin::names().map(|name| -> &str { name }));
        names.extend(program.modules[self.module].axis_names());
        let mut d = Diagnostic::error(codes::UNKNOWN_NAME, format!("there is no value `{}` here", name.name))
            .at(name.span, "not found");
        let near = golf_grammar::nearest(name.as_str(), names.iter().copied()).is_some();
        d = d.did_you_mean(name.as_str(), name.span, names);
        if !near && let Some(module) = self.elsewhere(name.as_str()) {
            d = d.hint(format!("`{module}` defines it: `use {module}`"));
        }
        self.sink.push(d);
    }

    /// The prelude module that defines a name but is not used.
    fn elsewhere(&self, name: &str) -> Option<String> {
        let std = super::prelude::Prelude::std();
        let defines = |text: &str| {
            text.lines().any(|line| {
                line.split_once(' ').is_some_and(|(kind, rest)| {
                    let known = DefKind::ALL.iter().any(|k| k.keyword() == kind);
                    known && rest.strip_prefix(name).is_some_and(|after| after.starts_with(['(', '<']))
                })
            })
        };
        let found = std.names().into_iter().find(|module| std.get(module).is_some_and(defines))?;
        Some(format!("std.{found}"))
    }

    // ---- definitions ----

    fn def(&mut self, def: &'p Def) {
        self.in_block(|w| {
            w.signature(&def.sig, def.kind);
            w.in_block(|w| {
                w.stmts(&def.body);
                for method in &def.methods {
                    w.in_block(|w| {
                        w.signature(&method.sig, method.kind);
                        w.block(&method.body);
                    });
                }
            });
        });
    }

    fn signature(&mut self, sig: &'p Signature, kind: DefKind) {
        for axis in &sig.axes {
            self.declare_axis(axis);
        }
        for (index, param) in sig.params.iter().chain(&sig.hypers).enumerate() {
            self.optional_type(param.ty.as_ref());
            if let Some(default) = &param.default {
                self.expr(default);
            }
            if takes_axis(param) {
                self.declare_axis(&param.name);
            }
            // What a slot hands over may be left unread.
            let handed = kind != DefKind::Fn && kind != DefKind::Layer && index < sig.params.len();
            self.declare(&param.name, (!handed).then_some("parameter"));
        }
        if let Some(result) = &sig.result {
            self.ty(&result.ty);
        }
    }

    fn optional_type(&mut self, ty: Option<&'p Type>) {
        if let Some(ty) = ty {
            self.ty(ty);
        }
    }

    fn ty(&mut self, ty: &'p Type) {
        match &ty.kind {
            TypeKind::Tensor { axes, .. } => axes.iter().for_each(|axis| self.axis(axis)),
            TypeKind::Name(_) => {}
            TypeKind::Optional(inner) => self.ty(inner),
            TypeKind::Tuple(fields) => fields.iter().for_each(|field| self.ty(&field.ty)),
        }
    }

    // ---- statements ----

    fn block(&mut self, block: &'p Block) {
        self.in_block(|w| w.stmts(block));
    }

    fn stmts(&mut self, block: &'p Block) {
        for stmt in &block.stmts {
            self.stmt(stmt);
        }
    }

    fn stmt(&mut self, stmt: &'p Stmt) {
        match &stmt.kind {
            StmtKind::Let { pattern, ty, value } => {
                self.expr(value);
                self.optional_type(ty.as_ref());
                self.pattern(pattern, "name");
            }
            StmtKind::Rebind { target, value } => {
                self.expr(value);
                self.target(target);
            }
            StmtKind::Const(list) => {
                for decl in list {
                    self.expr(&decl.value);
                    self.optional_type(decl.ty.as_ref());
                    self.declare(&decl.name, Some("constant"));
                }
            }
            StmtKind::Axis(list) => {
                for decl in list {
                    self.axis_decl(decl);
                    self.declare_axis(&decl.name);
                }
            }
            StmtKind::Param(decl) => {
                decl.slots.iter().for_each(|slot| self.tensor_decl(slot));
                if let Some(init) = &decl.init {
                    self.init(init);
                }
                if let Some(group) = &decl.group {
                    self.group(group);
                }
                decl.slots.iter().for_each(|slot| self.declare(&slot.name, None));
            }
            StmtKind::State(decl) => {
                decl.slots.iter().for_each(|slot| self.tensor_decl(slot));
                if let Some(init) = &decl.init {
                    self.init(init);
                }
                decl.slots.iter().for_each(|slot| self.declare(&slot.name, Some("state")));
            }
            StmtKind::For { pattern, iter, body } => {
                self.expr(iter);
                self.in_block(|w| {
                    w.pattern(pattern, "loop name");
                    w.block(body);
                });
            }
            StmtKind::Expr(expr) => self.expr(expr),
        }
    }

    fn pattern(&mut self, pattern: &'p Pattern, what: &'static str) {
        match &pattern.kind {
            PatternKind::Name(name) => self.declare(name, Some(what)),
            PatternKind::Ignore => {}
            PatternKind::Tuple(parts) => parts.iter().for_each(|part| self.pattern(part, what)),
        }
    }

    fn target(&mut self, pattern: &'p Pattern) {
        match &pattern.kind {
            // The evaluator says more about names that cannot be given a new value.
            PatternKind::Name(name) => {
                let local = self.scopes.iter().rev().any(|scope| scope.values.contains_key(name.as_str()));
                if !local
                    && self.program.global(self.module, name.as_str()).is_none()
                    && builtin::predefined(name.as_str()).is_none()
                {
                    self.name(name);
                }
            }
            PatternKind::Ignore => {}
            PatternKind::Tuple(parts) => parts.iter().for_each(|part| self.target(part)),
        }
    }

    fn axis_decl(&mut self, decl: &'p AxisDecl) {
        match &decl.size {
            AxisSize::Value { value, .. } => self.expr(value),
            AxisSize::Like(name) => self.axis(name),
        }
    }

    fn tensor_decl(&mut self, slot: &'p TensorDecl) {
        for AxisUse { name, size } in slot.axes.iter().flatten() {
            match size {
                Some(size) => {
                    self.expr(size);
                    self.declare_axis(name);
                }
                None => self.axis(name),
            }
        }
        if let Some(dtype) = &slot.dtype {
            // A dtype, or a name that holds one.
            let _ = self.find_value(dtype.as_str());
        }
        if let Some(label) = &slot.label {
            self.text(label);
        }
    }

    fn init(&mut self, init: &'p Expr) {
        match &init.kind {
            ExprKind::Name(name) if INITS.contains(&name.as_str()) => {}
            ExprKind::Call { callee, args } => match &callee.kind {
                ExprKind::Name(name) if INITS.contains(&name.as_str()) => self.args(args),
                // Not an initial value: said by the evaluator, with the list of those there are.
                ExprKind::Name(_) => self.args(args),
                _ => self.expr(init),
            },
            ExprKind::Name(name) => {
                let _ = self.find_value(name.as_str());
            }
            _ => self.expr(init),
        }
    }

    fn group(&mut self, group: &'p Group) {
        if let Group::If { then, cond, otherwise } = group {
            self.expr(cond);
            self.group(then);
            self.group(otherwise);
        }
    }

    // ---- expressions ----

    fn text(&mut self, text: &'p Str) {
        for part in &text.parts {
            if let StrPart::Expr(expr) = part {
                self.expr(expr);
            }
        }
    }

    fn args(&mut self, args: &'p Args) {
        args.items.iter().for_each(|arg| self.expr(&arg.value));
        args.over.iter().for_each(|axis| self.axis(axis));
    }

    fn expr(&mut self, expr: &'p Expr) {
        match &expr.kind {
            ExprKind::Int(_) | ExprKind::Float(_) | ExprKind::Duration(_) | ExprKind::Bool(_) | ExprKind::None => {}
            ExprKind::Str(text) => self.text(text),
            ExprKind::Name(name) => self.name(name),
            ExprKind::Tuple(fields) => fields.iter().for_each(|field| self.expr(&field.value)),
            ExprKind::List(items) => items.iter().for_each(|item| self.expr(item)),
            ExprKind::Comprehension(inner) => {
                self.expr(&inner.iter);
                self.in_block(|w| {
                    w.pattern(&inner.pattern, "loop name");
                    if let Some(cond) = &inner.cond {
                        w.expr(cond);
                    }
                    w.expr(&inner.value);
                });
            }
            ExprKind::AxisMap { from, to } => from.iter().chain(to).for_each(|axis| self.axis(axis)),
            ExprKind::Call { callee, args } => {
                self.expr(callee);
                self.args(args);
            }
            ExprKind::Method { receiver, args, .. } => {
                self.expr(receiver);
                self.args(args);
            }
            ExprKind::Field { base, .. } => self.expr(base),
            ExprKind::Index { base, items } => {
                self.expr(base);
                for item in items {
                    if let Some(axis) = &item.axis {
                        self.axis(axis);
                    }
                    self.expr(&item.at);
                }
            }
            ExprKind::Unary { operand, .. } => self.expr(operand),
            ExprKind::Binary { lhs, rhs, .. } => {
                self.expr(lhs);
                self.expr(rhs);
            }
            ExprKind::Coalesce { value, otherwise } => {
                self.expr(value);
                self.expr(otherwise);
            }
            ExprKind::Range { start, end } => {
                self.expr(start);
                self.expr(end);
            }
            ExprKind::Label { value, label } => {
                self.expr(value);
                self.text(label);
            }
            ExprKind::If(inner) => self.if_expr(inner),
        }
    }

    fn if_expr(&mut self, inner: &'p If) {
        self.expr(&inner.cond);
        self.block(&inner.then);
        match &inner.otherwise {
            Some(Else::Block(block)) => self.block(block),
            Some(Else::If(next)) => self.if_expr(next),
            None => {}
        }
    }

    // ---- settings ----

    fn section(&mut self, section: &'p Section) {
        self.in_block(|w| {
            if let Some(scope) = w.scopes.last_mut() {
                let clock = Local { span: section.kind_span, used: true, what: None };
                scope.values.insert("clock", clock);
            }
            w.settings(&section.settings, section.kind);
        });
    }

    fn settings(&mut self, settings: &'p Settings, section: SectionKind) {
        for entry in &settings.entries {
            match entry {
                Entry::Setting(setting) => self.value(setting.key.as_str(), &setting.value, section),
                Entry::Rule(rule) => {
                    self.rule_name(&rule.name, section);
                    if let Some(cond) = &rule.cond {
                        self.in_block(|w| {
                            if let Some(scope) = w.scopes.last_mut() {
                                for name in PREDICATE {
                                    scope.values.insert(name, Local { span: rule.span, used: true, what: None });
                                }
                            }
                            w.expr(cond);
                        });
                    }
                    if let Some(settings) = &rule.settings {
                        self.settings(settings, section);
                    }
                }
                // Not implemented: said by the settings stage.
                Entry::Phase(_) => {}
            }
        }
    }

    fn value(&mut self, key: &str, value: &'p Value, section: SectionKind) {
        match &value.expr.kind {
            ExprKind::Call { callee, args } => match &callee.kind {
                ExprKind::Name(_) if SLOT_WORDS.contains(&key) => self.args(args),
                _ => self.expr(&value.expr),
            },
            ExprKind::Name(_) if SLOT_WORDS.contains(&key) => {}
            _ => self.expr(&value.expr),
        }
        if let Some(settings) = &value.settings {
            self.settings(settings, section);
        }
        if let Some(otherwise) = &value.otherwise {
            self.value(key, otherwise, section);
        }
    }

    fn rule_name(&mut self, name: &'p Ident, section: SectionKind) {
        let kind = if section == SectionKind::Quantize { DefKind::Quantizer } else { DefKind::Optimizer };
        let is = |found: Option<(ModuleId, Global<'p>)>| match found {
            Some((module, Global::Def(def))) if def.kind == kind => Some(module),
            _ => None,
        };
        if let Some(module) = is(self.program.global(self.module, name.as_str())) {
            self.refs.insert((module, Space::Value, name.name.clone()));
            return;
        }
        if kind == DefKind::Quantizer && name == "f16" {
            return;
        }
        let candidates: Vec<&str> = self
            .program
            .visible_values(self.module)
            .filter(|n| is(self.program.global(self.module, n)).is_some())
            .collect();
        let mut d = Diagnostic::error(codes::UNKNOWN_RULE, format!("there is no {} `{}`", kind.keyword(), name.name));
        d = d.at(name.span, "").did_you_mean(name.as_str(), name.span, candidates.iter().copied());
        d = match self.elsewhere(name.as_str()) {
            Some(module) => d.hint(format!("`{module}` defines it: `use {module}`")),
            None if candidates.is_empty() => d,
            None => d.note(format!("there are: {}", candidates.join(", "))),
        };
        self.sink.push(d);
    }
}

/// Whether a parameter is declared `: axis`.
fn takes_axis(param: &Param) -> bool {
    param.ty.as_ref().is_some_and(|ty| matches!(&ty.kind, TypeKind::Name(name) if *name == "axis"))
}

/// The axis of rows: the first of the model's tokens. It has no size in the program.
pub fn batch_axis(program: &Program) -> Option<&str> {
    token_axis(program, 0)
}

fn token_axis(program: &Program, at: usize) -> Option<&str> {
    let tokens = program.model()?.sig.params.first()?;
    match &tokens.ty.as_ref()?.kind {
        TypeKind::Tensor { axes, .. } => axes.get(at).map(Ident::as_str),
        _ => None,
    }
}
