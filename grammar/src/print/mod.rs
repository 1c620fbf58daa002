//! The canonical form of a program, for `golfc --fmt`.
//!
//! *Takes* a tree and the text it was read from. *Gives* text. *Promises*: the same tree when read again, every comment kept,
//! and nothing changes when it is formatted again. Four blanks a level, 120 columns; what stood on several lines in braces
//! stays so; neighbouring settings and parameters are aligned; one blank line at most, and one around every definition.

mod doc;
mod expr;

use crate::ast::*;
use crate::diagnostics::Diagnostic;
use crate::span::{FileId, Span};
use doc::Doc;

/// The canonical form of a tree that [`parse_file`](crate::parse_file) read from `text` without errors.
pub fn format(text: &str, file: &File) -> String {
    if file.items.is_empty() && file.comments.is_empty() {
        return String::new();
    }
    let mut printer = Printer { text, comments: &file.comments, next: 0, last: 0 };
    let doc = printer.file(file);
    doc::set(&doc)
}

/// Reads and formats a text.
pub fn format_bytes(file: FileId, bytes: &[u8]) -> Result<String, Vec<Diagnostic>> {
    let tree = crate::parse_file(file, bytes).into_result()?;
    Ok(format(&String::from_utf8_lossy(bytes), &tree))
}

/// Tree to documents. Comments are taken in order of place while nodes are visited in order of place.
struct Printer<'a> {
    text: &'a str,
    comments: &'a [Comment],
    /// The first comment not yet printed.
    next: usize,
    /// Where the last printed statement or comment ended in the text.
    last: usize,
}

/// An element of a bracketed list with the comments around it.
struct Element {
    before: Vec<String>,
    doc: Doc,
    after: Option<String>,
}

impl Printer<'_> {
    /// The next comment if it starts before `offset`.
    fn pending(&self, offset: usize) -> Option<&Comment> {
        self.comments.get(self.next).filter(|comment| (comment.span.start as usize) < offset)
    }

    /// The texts of all comments before `offset`.
    fn comments_before(&mut self, offset: usize) -> Vec<String> {
        let mut list = Vec::new();
        while let Some(comment) = self.pending(offset) {
            list.push(comment.text.clone());
            self.last = comment.span.end as usize;
            self.next += 1;
        }
        list
    }

    /// The comment that follows `end` on its line with nothing but separators between.
    fn comment_after(&mut self, end: usize) -> Option<String> {
        let comment = self.comments.get(self.next)?;
        let start = comment.span.start as usize;
        let between = self.text.get(end..start)?;
        if !between.chars().all(|c| matches!(c, ' ' | '\t' | ',' | ';')) {
            return None;
        }
        let text = comment.text.clone();
        self.last = comment.span.end as usize;
        self.next += 1;
        Some(text)
    }

    /// Whether an empty line stands between the last printed thing and `offset`.
    fn blank_before(&self, offset: usize) -> bool {
        self.text.get(self.last..offset).is_some_and(|text| text.bytes().filter(|byte| *byte == b'\n').count() > 1)
    }

    fn multiline(&self, span: Span) -> bool {
        self.text.get(span.range()).is_some_and(|text| text.contains('\n'))
    }

    // ---- lines

    fn file(&mut self, file: &File) -> Doc {
        let mut out = Vec::new();
        let mut big = false;
        for item in &file.items {
            let is_big = matches!(item.kind, ItemKind::Def(_) | ItemKind::Section(_));
            let start = item.span.start as usize;
            let first = self.pending(start).map_or(start, |comment| comment.span.start as usize);
            let parted = self.text.get(self.last..start).is_some_and(|text| {
                let mut blank = text.split('\n').map(|line| line.trim().is_empty());
                blank.next();
                blank.next_back();
                blank.any(|blank| blank)
            });
            let forced = (big || is_big) && !parted && !self.blank_before(first);
            self.line(&mut out, item.span, forced, |printer| printer.item(item));
            big = is_big;
        }
        self.tail(&mut out, self.text.len());
        Doc::Cat(out)
    }

    /// Starts a line for something at `offset`, after an empty one if the text has one.
    fn start_line(&mut self, out: &mut Vec<Doc>, offset: usize, forced: bool) {
        if out.is_empty() {
            return;
        }
        out.push(Doc::Hard);
        if forced || self.blank_before(offset) {
            out.push(Doc::Hard);
        }
    }

    /// The comments before `offset`, each on a line.
    fn comment_lines(&mut self, out: &mut Vec<Doc>, offset: usize, mut forced: bool) {
        while let Some(comment) = self.pending(offset) {
            let (start, end) = (comment.span.start as usize, comment.span.end as usize);
            let text = comment.text.clone();
            self.start_line(out, start, std::mem::take(&mut forced));
            out.push(Doc::Text(text));
            self.last = end;
            self.next += 1;
        }
    }

    /// One statement, setting or item with the comments before and behind it.
    fn line(&mut self, out: &mut Vec<Doc>, span: Span, forced: bool, build: impl FnOnce(&mut Self) -> Doc) {
        let (start, end) = (span.start as usize, span.end as usize);
        let commented = self.pending(start).is_some();
        self.comment_lines(out, start, forced);
        let blank = (forced && !commented) || self.blank_before(start);
        self.last = start;
        let doc = build(self);
        // Comments inside it for which there was no place go before it.
        let mut first = true;
        for text in self.comments_before(end) {
            if !out.is_empty() {
                out.push(Doc::Hard);
            }
            if blank && std::mem::take(&mut first) && !out.is_empty() {
                out.push(Doc::Hard);
            }
            out.push(Doc::Text(text));
        }
        if !out.is_empty() {
            out.push(Doc::Hard);
            if blank && first {
                out.push(Doc::Hard);
            }
        }
        out.push(doc);
        self.last = end;
        out.extend(self.comment_after(end).map(Doc::Comment));
    }

    /// The comments left before the end of a block.
    fn tail(&mut self, out: &mut Vec<Doc>, end: usize) {
        self.comment_lines(out, end, false);
    }

    /// `{`, lines, `}` with `fill` writing the lines.
    fn braces(&mut self, span: Span, fill: impl FnOnce(&mut Self, &mut Vec<Doc>)) -> Doc {
        let start = span.start as usize + 1;
        let mut parts = vec![Doc::text("{")];
        parts.extend(self.comment_after(start).map(Doc::Comment));
        let mut lines = Vec::new();
        fill(self, &mut lines);
        self.tail(&mut lines, span.end as usize);
        if !lines.is_empty() {
            lines.insert(0, Doc::Hard);
        }
        parts.push(Doc::nest(lines));
        parts.push(Doc::Hard);
        parts.push(Doc::text("}"));
        self.last = span.end as usize;
        Doc::Cat(parts)
    }

    // ---- items

    fn item(&mut self, item: &Item) -> Doc {
        match &item.kind {
            ItemKind::Use(item) => {
                let names = |list: &[Ident], by: &str| list.iter().map(Ident::as_str).collect::<Vec<_>>().join(by);
                let path = names(&item.path, ".");
                let Some(list) = &item.names else { return Doc::Text(format!("use {path}")) };
                let mut inner = vec![Doc::Soft];
                for (index, name) in list.iter().enumerate() {
                    let comma = if index + 1 < list.len() { "," } else { "" };
                    let one = Doc::Text(format!("{}{comma}", name.name));
                    inner.push(if index == 0 { one } else { Doc::group(vec![Doc::Line, one]) });
                }
                Doc::group(vec![Doc::Text(format!("use {path}.{{")), Doc::nest(inner), Doc::Soft, Doc::text("}")])
            }
            ItemKind::Const(list) => self.consts(list),
            ItemKind::Axis(list) => self.axes(list),
            ItemKind::Def(def) => self.def(def),
            ItemKind::Section(section) => {
                let settings = self.settings(&section.settings, true);
                Doc::Cat(vec![Doc::Text(format!("{} ", section.kind.keyword())), settings])
            }
        }
    }

    /// `a, b, c`: line ends stay where they are, and more are made where needed.
    fn declarations<T>(
        &mut self,
        word: &str,
        list: &[T],
        span: impl Fn(&T) -> Span,
        build: impl Fn(&mut Self, &T) -> Doc,
    ) -> Doc {
        let mut rest = Vec::new();
        let mut end = None;
        for (index, one) in list.iter().enumerate() {
            let at = span(one);
            let broken = end.is_some_and(|end: u32| self.text[end as usize..at.start as usize].contains('\n'));
            let comments = self.comments_before(at.start as usize);
            // A line cannot end before the first, which has no comma before it.
            let start = match index {
                0 => Doc::text(" "),
                _ if broken || !comments.is_empty() => Doc::Hard,
                _ => Doc::Line,
            };
            let mut parts = vec![start];
            for text in comments {
                parts.extend([Doc::Text(text), Doc::Hard]);
            }
            parts.push(build(self, one));
            let more = index + 1 < list.len();
            parts.extend(more.then(|| Doc::text(",")));
            rest.push(Doc::group(parts));
            if more {
                rest.extend(self.comment_after(at.end as usize).map(Doc::Comment));
            }
            end = Some(at.end);
        }
        Doc::Cat(vec![Doc::text(word), Doc::nest(rest)])
    }

    fn consts(&mut self, list: &[ConstDecl]) -> Doc {
        let build = |printer: &mut Self, decl: &ConstDecl| {
            let ty = decl.ty.as_ref().map_or(String::new(), |ty| format!(": {}", printer.ty(ty)));
            let value = printer.expr(&decl.value);
            Doc::Cat(vec![Doc::Text(format!("{}{ty} = ", decl.name.name)), value])
        };
        self.declarations("const", list, |decl| decl.span, build)
    }

    fn axes(&mut self, list: &[AxisDecl]) -> Doc {
        let build = |printer: &mut Self, decl: &AxisDecl| match &decl.size {
            AxisSize::Like(other) => Doc::Text(format!("{} like {}", decl.name.name, other.name)),
            AxisSize::Value { value, rounding } => {
                let value = printer.expr(value);
                let rounding = rounding.map_or("", |(rounding, _)| match rounding {
                    Rounding::Floor => " floor",
                    Rounding::Ceil => " ceil",
                });
                Doc::Cat(vec![Doc::Text(format!("{} = ", decl.name.name)), value, Doc::text(rounding)])
            }
        };
        self.declarations("axis", list, |decl| decl.span, build)
    }

    fn def(&mut self, def: &Def) -> Doc {
        let apply = def.kind == DefKind::Fn && def.name.span == def.kind_span;
        let head = match (apply, def.kind) {
            (true, _) | (_, DefKind::Model) => def.name.name.clone(),
            (false, kind) => format!("{} {}", kind.keyword(), def.name.name),
        };
        let signature = self.signature(&def.sig);
        let body = self.block(&def.body, &def.methods, false);
        Doc::Cat(vec![Doc::Text(head), signature, Doc::text(" "), Doc::group(vec![body])])
    }

    fn signature(&mut self, sig: &Signature) -> Doc {
        let axes = if sig.axes.is_empty() {
            String::new()
        } else {
            format!("<{}>", sig.axes.iter().map(Ident::as_str).collect::<Vec<_>>().join(", "))
        };
        let semi = if sig.hypers.is_empty() { usize::MAX } else { sig.params.len() };
        let all: Vec<&Param> = sig.params.iter().chain(&sig.hypers).collect();
        let mut elements = Vec::new();
        for param in &all {
            let doc = |printer: &mut Self| printer.param(param);
            elements.push(self.element(param.span, doc));
        }
        let close = sig.result.as_ref().map_or(sig.span.end, |output| output.ty.span.start) as usize;
        let mut inner = if semi == 0 { vec![Doc::text(";"), Doc::Line] } else { vec![Doc::Soft] };
        let count = elements.len();
        for (index, element) in elements.into_iter().enumerate() {
            let separator = match index + 1 {
                next if next == semi => Some(";"),
                next if next < count => Some(","),
                _ => None,
            };
            Self::push_element(&mut inner, element, separator);
        }
        self.push_comments(&mut inner, close);
        let result = sig.result.as_ref().map_or(String::new(), |output| {
            let name = output.name.as_ref().map_or(String::new(), |name| format!("{} ", name.name));
            format!(" -> {name}{}", self.ty(&output.ty))
        });
        let params = Doc::group(vec![Doc::text("("), Doc::nest(inner), Doc::Soft, Doc::text(")")]);
        Doc::Cat(vec![Doc::Text(axes), params, Doc::Text(result)])
    }

    fn param(&mut self, param: &Param) -> Doc {
        let optional = if param.optional { "?" } else { "" };
        let ty = param.ty.as_ref().map_or(String::new(), |ty| format!(": {}", self.ty(ty)));
        let mut parts = vec![Doc::Text(format!("{}{optional}{ty}", param.name.name))];
        if let Some(value) = &param.default {
            parts.extend([Doc::text(" = "), self.expr(value)]);
        }
        Doc::Cat(parts)
    }

    /// Types are never broken: they are short.
    fn ty(&self, ty: &Type) -> String {
        match &ty.kind {
            TypeKind::Name(name) => name.name.clone(),
            TypeKind::Optional(inner) => format!("{}?", self.ty(inner)),
            TypeKind::Tensor { dtype, rest, axes } => {
                let dtype = dtype.as_ref().map_or(String::new(), |dtype| format!("{} ", dtype.name));
                let rest = rest.map(|_| "..").into_iter();
                let axes = rest.chain(axes.iter().map(Ident::as_str)).collect::<Vec<_>>().join(" ");
                format!("{dtype}[{axes}]")
            }
            TypeKind::Tuple(fields) => {
                let field = |field: &TypeField| {
                    let name = field.name.as_ref().map_or(String::new(), |name| format!("{}: ", name.name));
                    format!("{name}{}", self.ty(&field.ty))
                };
                format!("({})", fields.iter().map(field).collect::<Vec<_>>().join(", "))
            }
        }
    }

    // ---- statements

    /// `{ … }` of statements and methods. On one line, if it was, holds one statement and fits, unless `broken`.
    fn block(&mut self, block: &Block, methods: &[Def], broken: bool) -> Doc {
        let commented = self.pending(block.span.end as usize).is_some();
        if block.stmts.is_empty() && methods.is_empty() && !commented {
            return Doc::text("{}");
        }
        let single = block.stmts.len() == 1 && methods.is_empty() && !commented && !self.multiline(block.span);
        if let ([stmt], true, false) = (block.stmts.as_slice(), single, broken) {
            let inner = self.stmt(stmt);
            return Doc::Cat(vec![Doc::text("{"), Doc::nest(vec![Doc::Line, inner]), Doc::Line, Doc::text("}")]);
        }
        self.braces(block.span, |printer, lines| {
            let mut methods = methods.iter().peekable();
            let start = |def: &Def| def.kind_span.start;
            for stmt in &block.stmts {
                while let Some(def) = methods.next_if(|def| start(def) < stmt.span.start) {
                    printer.line(lines, def.kind_span.to(def.body.span), false, |printer| printer.def(def));
                }
                printer.line(lines, stmt.span, false, |printer| printer.stmt(stmt));
            }
            for def in methods {
                printer.line(lines, def.kind_span.to(def.body.span), false, |printer| printer.def(def));
            }
        })
    }

    fn stmt(&mut self, stmt: &Stmt) -> Doc {
        match &stmt.kind {
            StmtKind::Let { pattern, ty, value } => {
                let ty = ty.as_ref().map_or(String::new(), |ty| format!(": {}", self.ty(ty)));
                let head = format!("let {}{ty} = ", self.pattern(pattern));
                Doc::Cat(vec![Doc::Text(head), self.expr(value)])
            }
            StmtKind::Rebind { target, value } => {
                Doc::Cat(vec![Doc::Text(format!("{} = ", self.pattern(target))), self.expr(value)])
            }
            StmtKind::Const(list) => self.consts(list),
            StmtKind::Axis(list) => self.axes(list),
            StmtKind::Param(decl) => {
                let word = if decl.unused.is_some() { "unused param" } else { "param" };
                let mut parts = self.tensors(word, &decl.slots, decl.init.as_ref());
                if let Some(group) = &decl.group {
                    parts.extend([Doc::text(" "), Doc::Mark('i'), Doc::text("in ")]);
                    self.group(group, &mut parts);
                }
                Doc::Cat(parts)
            }
            StmtKind::State(decl) => Doc::Cat(self.tensors("state", &decl.slots, decl.init.as_ref())),
            StmtKind::For { pattern, iter, body } => {
                let head = format!("for {} in ", self.pattern(pattern));
                let iter = self.expr(iter);
                let body = self.block(body, &[], false);
                Doc::Cat(vec![Doc::Text(head), iter, Doc::text(" "), Doc::group(vec![body])])
            }
            StmtKind::Expr(expr) => self.expr(expr),
        }
    }

    fn pattern(&self, pattern: &Pattern) -> String {
        match &pattern.kind {
            PatternKind::Name(name) => name.name.clone(),
            PatternKind::Ignore => "_".to_string(),
            PatternKind::Tuple(parts) => {
                format!("({})", parts.iter().map(|part| self.pattern(part)).collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn tensors(&mut self, word: &str, slots: &[TensorDecl], init: Option<&Expr>) -> Vec<Doc> {
        let mut parts = vec![Doc::Text(word.to_string())];
        for (index, slot) in slots.iter().enumerate() {
            let start = if index == 0 { Doc::text(" ") } else { Doc::Line };
            let mut one = vec![start, Doc::text(slot.name.as_str())];
            if let Some(axes) = &slot.axes {
                one.push(Doc::text("["));
                for (index, axis) in axes.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    one.push(Doc::Text(format!("{comma}{}", axis.name.name)));
                    if let Some(size) = &axis.size {
                        one.extend([Doc::text(": "), self.expr(size)]);
                    }
                }
                one.push(Doc::text("]"));
            }
            if let Some(dtype) = &slot.dtype {
                one.push(Doc::Text(format!(" : {}", dtype.name)));
            }
            let label = slot.label.as_ref().map(|label| self.string(label));
            if index + 1 < slots.len() {
                let label = label.map_or(String::new(), |label| format!(" as {label}"));
                one.push(Doc::Text(format!("{label},")));
                parts.push(Doc::nest(vec![Doc::group(one)]));
            } else {
                parts.push(Doc::nest(vec![Doc::group(one)]));
                if let Some(label) = label {
                    parts.extend([Doc::text(" "), Doc::Mark('a'), Doc::Text(format!("as {label}"))]);
                }
            }
        }
        if let Some(init) = init {
            parts.extend([Doc::text(" "), Doc::Mark('~'), Doc::text("~ "), self.expr(init)]);
        }
        parts
    }

    fn group(&mut self, group: &Group, parts: &mut Vec<Doc>) {
        match group {
            Group::Name(name) => parts.push(Doc::text(name.as_str())),
            Group::Unused(_) => parts.push(Doc::text("unused")),
            Group::If { then, cond, otherwise } => {
                self.group(then, parts);
                parts.push(Doc::text(" if "));
                parts.push(self.expr(cond));
                parts.push(Doc::text(" else "));
                self.group(otherwise, parts);
            }
        }
    }

    // ---- settings

    /// `{ … }` of settings: on one line if they were and fit, unless `broken`.
    fn settings(&mut self, settings: &Settings, broken: bool) -> Doc {
        let commented = self.pending(settings.span.end as usize).is_some();
        if settings.entries.is_empty() && !commented {
            return Doc::text("{}");
        }
        if broken || commented || self.multiline(settings.span) {
            return self.braces(settings.span, |printer, lines| {
                for entry in &settings.entries {
                    printer.line(lines, entry.span(), false, |printer| printer.entry(entry));
                }
            });
        }
        let mut inner = vec![Doc::Line];
        for (index, entry) in settings.entries.iter().enumerate() {
            if index > 0 {
                inner.extend([Doc::Choice(",", ""), Doc::Line]);
            }
            inner.push(self.entry(entry));
        }
        Doc::group(vec![Doc::text("{"), Doc::nest(inner), Doc::Line, Doc::text("}")])
    }

    fn entry(&mut self, entry: &Entry) -> Doc {
        match entry {
            Entry::Setting(setting) => {
                let key = Doc::Text(format!("{} ", setting.key.name));
                let mut parts = vec![key, Doc::Mark('='), Doc::text("= ")];
                self.value(&setting.value, &mut parts);
                Doc::Cat(parts)
            }
            Entry::Rule(rule) => {
                let head = Doc::Text(format!("{} ", rule.name.name));
                let mut parts = vec![head, Doc::Mark('o'), Doc::text("on "), self.expr(&rule.on)];
                if let Some(cond) = &rule.cond {
                    parts.extend([Doc::text(" where "), self.expr(cond)]);
                }
                if let Some(settings) = &rule.settings {
                    parts.extend([Doc::text(" "), Doc::Mark('{'), self.settings(settings, false)]);
                }
                Doc::Cat(parts)
            }
            Entry::Phase(phase) => {
                let when = self.expr(&phase.when);
                let head = Doc::Text(format!("phase {} when ", phase.name.name));
                let settings = self.settings(&phase.settings, false);
                Doc::Cat(vec![head, when, Doc::text(" "), Doc::Mark('{'), settings])
            }
        }
    }

    fn value(&mut self, value: &Value, parts: &mut Vec<Doc>) {
        parts.push(self.expr(&value.expr));
        if let Some(per) = &value.per {
            parts.push(Doc::Text(format!(" per {}", per.name)));
        }
        if let Some(settings) = &value.settings {
            parts.extend([Doc::text(" "), self.settings(settings, false)]);
        }
        if let Some(otherwise) = &value.otherwise {
            parts.push(Doc::text(" else "));
            self.value(otherwise, parts);
        }
    }

    // ---- bracketed lists

    fn element(&mut self, span: Span, build: impl FnOnce(&mut Self) -> Doc) -> Element {
        let before = self.comments_before(span.start as usize);
        let doc = build(self);
        let after = self.comment_after(span.end as usize);
        Element { before, doc, after }
    }

    /// Adds an element and, if there is one, its separator and the place for a line end after it.
    fn push_element(inner: &mut Vec<Doc>, element: Element, separator: Option<&'static str>) {
        for text in element.before {
            inner.extend([Doc::Text(text), Doc::Hard]);
        }
        inner.push(element.doc);
        inner.push(separator.map_or(Doc::Choice("", ","), Doc::text));
        inner.extend(element.after.map(Doc::Comment));
        if separator.is_some() {
            inner.push(Doc::Line);
        }
    }

    /// The comments left before a closing bracket.
    fn push_comments(&mut self, inner: &mut Vec<Doc>, end: usize) {
        for text in self.comments_before(end) {
            inner.extend([Doc::Hard, Doc::Text(text)]);
        }
    }
}
