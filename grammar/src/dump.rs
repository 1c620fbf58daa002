//! The tree as text, for `--emit=ast` and for tests.
//!
//! *Takes* a tree, *gives* lines: items and statements indented by two blanks a level, expressions in prefix form so that
//! precedence shows. *Promises*: equal dumps mean equal trees, places, comments and redundant parentheses apart.

use std::fmt::Write;

use crate::ast::*;

/// The whole file.
pub fn dump(file: &File) -> String {
    let mut out = Dump { text: String::new(), depth: 0 };
    file.items.iter().for_each(|item| out.item(item));
    out.text
}

/// One expression on one line, except for the blocks of `if`.
pub fn dump_expr(expr: &Expr) -> String {
    Dump { text: String::new(), depth: 0 }.expr(expr)
}

/// What `--set PATH=` takes.
pub fn dump_value(value: &Value) -> String {
    let mut out = Dump { text: String::new(), depth: 0 };
    let text = out.value(value);
    out.line(text.as_str());
    out.text
}

struct Dump {
    text: String,
    depth: usize,
}

fn join<T>(list: &[T], separator: &str, show: impl FnMut(&T) -> String) -> String {
    list.iter().map(show).collect::<Vec<_>>().join(separator)
}

fn names(list: &[Ident]) -> String {
    join(list, " ", |ident| ident.name.clone())
}

impl Dump {
    fn line(&mut self, text: &str) {
        for part in text.lines() {
            let _ = writeln!(self.text, "{:width$}{part}", "", width = 2 * self.depth);
        }
    }

    /// Runs `inner` one level further in and takes what it wrote.
    fn nested(&mut self, inner: impl FnOnce(&mut Self)) -> String {
        let mut out = Dump { text: String::new(), depth: 1 };
        inner(&mut out);
        out.text.trim_end().to_string()
    }

    fn item(&mut self, item: &Item) {
        match &item.kind {
            ItemKind::Use(item) => {
                let inner = item.names.as_ref().map_or(String::new(), |list| format!(" {{{}}}", names(list)));
                self.line(&format!("use {}{inner}", join(&item.path, ".", |ident| ident.name.clone())));
            }
            ItemKind::Const(list) => self.consts(list),
            ItemKind::Axis(list) => self.axes(list),
            ItemKind::Def(def) => self.def(def),
            ItemKind::Section(section) => {
                self.line(section.kind.keyword());
                self.settings(&section.settings);
            }
        }
    }

    fn consts(&mut self, list: &[ConstDecl]) {
        for decl in list {
            let ty = decl.ty.as_ref().map_or(String::new(), |ty| format!(": {}", self.ty(ty)));
            let value = self.expr(&decl.value);
            self.line(&format!("const {}{ty} = {value}", decl.name.name));
        }
    }

    fn axes(&mut self, list: &[AxisDecl]) {
        for decl in list {
            let size = match &decl.size {
                AxisSize::Like(other) => format!("like {}", other.name),
                AxisSize::Value { value, rounding } => {
                    let rounding = rounding.map_or("", |(rounding, _)| match rounding {
                        Rounding::Floor => " floor",
                        Rounding::Ceil => " ceil",
                    });
                    format!("= {}{rounding}", self.expr(value))
                }
            };
            self.line(&format!("axis {} {size}", decl.name.name));
        }
    }

    fn def(&mut self, def: &Def) {
        let name = if def.name == def.kind.keyword() { String::new() } else { format!(" {}", def.name.name) };
        let sig = self.signature(&def.sig);
        self.line(&format!("{}{name}{sig}", def.kind.keyword()));
        self.depth += 1;
        self.stmts(&def.body);
        def.methods.iter().for_each(|method| self.def(method));
        self.depth -= 1;
    }

    fn signature(&mut self, sig: &Signature) -> String {
        let axes = if sig.axes.is_empty() { String::new() } else { format!("<{}>", names(&sig.axes)) };
        let params = join(&sig.params, ", ", |param| self.param(param));
        let hypers = join(&sig.hypers, ", ", |param| self.param(param));
        let semi = if hypers.is_empty() { "" } else { "; " };
        let result = sig.result.as_ref().map_or(String::new(), |output| {
            let name = output.name.as_ref().map_or(String::new(), |name| format!("{} ", name.name));
            format!(" -> {name}{}", self.ty(&output.ty))
        });
        format!("{axes}({params}{semi}{hypers}){result}")
    }

    fn param(&mut self, param: &Param) -> String {
        let optional = if param.optional { "?" } else { "" };
        let ty = param.ty.as_ref().map_or(String::new(), |ty| format!(": {}", self.ty(ty)));
        let default = param.default.as_ref().map_or(String::new(), |value| format!(" = {}", self.expr(value)));
        format!("{}{optional}{ty}{default}", param.name.name)
    }

    fn ty(&self, ty: &Type) -> String {
        match &ty.kind {
            TypeKind::Name(name) => name.name.clone(),
            TypeKind::Optional(inner) => format!("{}?", self.ty(inner)),
            TypeKind::Tensor { dtype, rest, axes } => {
                let dtype = dtype.as_ref().map_or(String::new(), |dtype| format!("{} ", dtype.name));
                let rest = match (rest, axes.is_empty()) {
                    (None, _) => "",
                    (Some(_), true) => "..",
                    (Some(_), false) => ".. ",
                };
                format!("{dtype}[{rest}{}]", names(axes))
            }
            TypeKind::Tuple(fields) => {
                let field = |field: &TypeField| {
                    let name = field.name.as_ref().map_or(String::new(), |name| format!("{}: ", name.name));
                    format!("{name}{}", self.ty(&field.ty))
                };
                format!("({})", join(fields, ", ", field))
            }
        }
    }

    fn stmts(&mut self, block: &Block) {
        block.stmts.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match &stmt.kind {
            StmtKind::Let { pattern, ty, value } => {
                let ty = ty.as_ref().map_or(String::new(), |ty| format!(": {}", self.ty(ty)));
                let value = self.expr(value);
                self.line(&format!("let {}{ty} = {value}", self.pattern(pattern)));
            }
            StmtKind::Rebind { target, value } => {
                let value = self.expr(value);
                self.line(&format!("rebind {} = {value}", self.pattern(target)));
            }
            StmtKind::Const(list) => self.consts(list),
            StmtKind::Axis(list) => self.axes(list),
            StmtKind::Param(decl) => {
                let unused = if decl.unused.is_some() { "unused " } else { "" };
                let slots = join(&decl.slots, ", ", |slot| self.tensor(slot));
                let init = decl.init.as_ref().map_or(String::new(), |init| format!(" ~ {}", self.expr(init)));
                let group = decl.group.as_ref().map_or(String::new(), |group| format!(" in {}", self.group(group)));
                self.line(&format!("{unused}param {slots}{init}{group}"));
            }
            StmtKind::State(decl) => {
                let slots = join(&decl.slots, ", ", |slot| self.tensor(slot));
                let init = decl.init.as_ref().map_or(String::new(), |init| format!(" ~ {}", self.expr(init)));
                self.line(&format!("state {slots}{init}"));
            }
            StmtKind::For { pattern, iter, body } => {
                let iter = self.expr(iter);
                self.line(&format!("for {} in {iter}", self.pattern(pattern)));
                self.depth += 1;
                self.stmts(body);
                self.depth -= 1;
            }
            StmtKind::Expr(expr) => {
                let text = self.expr(expr);
                self.line(&text);
            }
        }
    }

    fn pattern(&self, pattern: &Pattern) -> String {
        match &pattern.kind {
            PatternKind::Name(name) => name.name.clone(),
            PatternKind::Ignore => "_".to_string(),
            PatternKind::Tuple(parts) => format!("({})", join(parts, ", ", |part| self.pattern(part))),
        }
    }

    fn tensor(&mut self, decl: &TensorDecl) -> String {
        let axis = |dump: &mut Self, axis: &AxisUse| {
            let size = axis.size.as_ref().map_or(String::new(), |size| format!(": {}", dump.expr(size)));
            format!("{}{size}", axis.name.name)
        };
        let axes =
            decl.axes.as_ref().map_or(String::new(), |axes| format!("[{}]", join(axes, ", ", |a| axis(self, a))));
        let dtype = decl.dtype.as_ref().map_or(String::new(), |dtype| format!(" : {}", dtype.name));
        let label = decl.label.as_ref().map_or(String::new(), |label| format!(" as {}", self.string(label)));
        format!("{}{axes}{dtype}{label}", decl.name.name)
    }

    fn group(&mut self, group: &Group) -> String {
        match group {
            Group::Name(name) => name.name.clone(),
            Group::Unused(_) => "unused".to_string(),
            Group::If { then, cond, otherwise } => {
                format!("(if {} {} {})", self.expr(cond), self.group(then), self.group(otherwise))
            }
        }
    }

    fn expr(&mut self, expr: &Expr) -> String {
        match &expr.kind {
            ExprKind::Int(value) => value.to_string(),
            ExprKind::Float(value) => format!("{value:?}"),
            ExprKind::Duration(value) => format!("{value:?}s"),
            ExprKind::Bool(value) => value.to_string(),
            ExprKind::None => "none".to_string(),
            ExprKind::Str(text) => self.string(text),
            ExprKind::Name(name) => name.name.clone(),
            ExprKind::Tuple(fields) => {
                let mut text = "(tuple".to_string();
                for field in fields {
                    let name = field.name.as_ref().map_or(String::new(), |name| format!("{}: ", name.name));
                    text += &format!(" {name}{}", self.expr(&field.value));
                }
                text + ")"
            }
            ExprKind::List(items) => {
                let items = join(items, "", |item| format!(" {}", self.expr(item)));
                format!("(list{items})")
            }
            ExprKind::Comprehension(parts) => {
                let cond = parts.cond.as_ref().map_or(String::new(), |cond| format!(" if {}", self.expr(cond)));
                let (value, iter) = (self.expr(&parts.value), self.expr(&parts.iter));
                format!("(each {value} for {} in {iter}{cond})", self.pattern(&parts.pattern))
            }
            ExprKind::AxisMap { from, to } => format!("(map {} -> {})", names(from), names(to)),
            ExprKind::Call { callee, args } => format!("(call {}{})", self.expr(callee), self.args(args)),
            ExprKind::Method { receiver, name, args } => {
                format!("(method {} .{}{})", self.expr(receiver), name.name, self.args(args))
            }
            ExprKind::Field { base, name } => format!("(field {} .{})", self.expr(base), name.name),
            ExprKind::Index { base, items } => {
                let mut text = format!("(index {}", self.expr(base));
                for item in items {
                    let axis = item.axis.as_ref().map_or(String::new(), |axis| format!("{} = ", axis.name));
                    text += &format!(" [{axis}{}]", self.expr(&item.at));
                }
                text + ")"
            }
            ExprKind::Unary { op, operand, .. } => format!("({} {})", op.symbol(), self.expr(operand)),
            ExprKind::Binary { op, lhs, rhs, .. } => {
                format!("({} {} {})", op.symbol(), self.expr(lhs), self.expr(rhs))
            }
            ExprKind::Coalesce { value, otherwise } => format!("(?? {} {})", self.expr(value), self.expr(otherwise)),
            ExprKind::Range { start, end } => format!("(.. {} {})", self.expr(start), self.expr(end)),
            ExprKind::Label { value, label } => format!("(as {} {})", self.expr(value), self.string(label)),
            ExprKind::If(parts) => self.if_expr(parts),
        }
    }

    /// `(if cond`, the indented block, `else`, the indented block, `)`.
    fn if_expr(&mut self, parts: &If) -> String {
        let mut text = format!("(if {}\n", self.expr(&parts.cond));
        text += &self.nested(|inner| inner.stmts(&parts.then));
        let mut otherwise = &parts.otherwise;
        while let Some(branch) = otherwise {
            match branch {
                Else::Block(block) => {
                    text += "\nelse\n";
                    text += &self.nested(|inner| inner.stmts(block));
                    break;
                }
                Else::If(parts) => {
                    text += &format!("\nelse if {}\n", self.expr(&parts.cond));
                    text += &self.nested(|inner| inner.stmts(&parts.then));
                    otherwise = &parts.otherwise;
                }
            }
        }
        text + ")"
    }

    fn args(&mut self, args: &Args) -> String {
        let mut text = String::new();
        for arg in &args.items {
            let name = arg.name.as_ref().map_or(String::new(), |name| format!("{}: ", name.name));
            text += &format!(" {name}{}", self.expr(&arg.value));
        }
        if !args.over.is_empty() {
            text += &format!(" over {}", names(&args.over));
        }
        text
    }

    fn string(&mut self, string: &Str) -> String {
        let mut text = "\"".to_string();
        for part in &string.parts {
            match part {
                StrPart::Text(part) => text += &escape(part),
                StrPart::Expr(expr) => text += &format!("{{{}}}", self.expr(expr)),
            }
        }
        text + "\""
    }

    fn settings(&mut self, settings: &Settings) {
        self.depth += 1;
        for entry in &settings.entries {
            match entry {
                Entry::Setting(setting) => {
                    let value = self.value(&setting.value);
                    self.line(&format!("{} = {value}", setting.key.name));
                }
                Entry::Rule(rule) => {
                    let cond = rule.cond.as_ref().map_or(String::new(), |cond| format!(" where {}", self.expr(cond)));
                    let on = self.expr(&rule.on);
                    self.line(&format!("rule {} on {on}{cond}", rule.name.name));
                    if let Some(settings) = &rule.settings {
                        self.settings(settings);
                    }
                }
                Entry::Phase(phase) => {
                    let when = self.expr(&phase.when);
                    self.line(&format!("phase {} when {when}", phase.name.name));
                    self.settings(&phase.settings);
                }
            }
        }
        self.depth -= 1;
    }

    fn value(&mut self, value: &Value) -> String {
        let per = value.per.as_ref().map_or(String::new(), |per| format!(" per {}", per.name));
        let mut text = format!("{}{per}", self.expr(&value.expr));
        if let Some(settings) = &value.settings {
            let inner = self.nested(|inner| {
                inner.depth = 0;
                inner.settings(settings);
            });
            text += &format!("\n{inner}");
        }
        if let Some(otherwise) = &value.otherwise {
            text += &format!("\nelse {}", self.value(otherwise));
        }
        text
    }
}

/// Text as it stands between quotes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '{' => out.push_str("\\{"),
            _ => out.push(c),
        }
    }
    out
}
