//! The program as a table of definitions: the user's file and the prelude modules it uses.
//!
//! *Takes* syntax trees; *gives* [`Program`], in which every definition has a place (module and name) and sections
//! and the model stand ready; *promises* unique names per module (duplicates are reported), resolved `use` lists, and no evaluation.

use super::codes;
use super::prelude::Prelude;
use golf_grammar::ast::{AxisDecl, ConstDecl, Def, DefKind, File, Ident, Item, ItemKind, Section, SectionKind, Use};
use golf_grammar::{Diagnostic, FileId, Sink, SourceMap, Span};
use std::collections::BTreeMap;

/// Index of a module in [`Program::modules`]; 0 is the user's file.
pub type ModuleId = usize;

/// One text with its definitions by name.
#[derive(Clone, Debug)]
pub struct Module {
    /// `main`, `std.norm`.
    pub name: String,
    /// The tree.
    pub tree: File,
    /// Constants, by item and position in its list.
    consts: BTreeMap<String, (usize, usize)>,
    /// Axes, by item and position in its list.
    axes: BTreeMap<String, (usize, usize)>,
    /// Functions, layers, optimizers and the others, by item.
    defs: BTreeMap<String, usize>,
    /// Modules whose definitions are visible, with the place of the `use`.
    pub uses: Vec<(ModuleId, Span)>,
}

/// What a top-level value name means.
#[derive(Clone, Copy, Debug)]
pub enum Global<'p> {
    /// A constant.
    Const(&'p ConstDecl),
    /// A definition.
    Def(&'p Def),
}

/// The whole program.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The user's file, then prelude modules in the order in which they are first used.
    pub modules: Vec<Module>,
    model: Option<usize>,
    sections: BTreeMap<SectionKind, usize>,
}

impl Module {
    fn new(name: &str, tree: File, sink: &mut Sink) -> Module {
        let mut module = Module {
            name: name.to_string(),
            tree,
            consts: BTreeMap::new(),
            axes: BTreeMap::new(),
            defs: BTreeMap::new(),
            uses: Vec::new(),
        };
        let mut values: BTreeMap<&str, Span> = BTreeMap::new();
        let mut axis_names: BTreeMap<&str, Span> = BTreeMap::new();
        for (index, item) in module.tree.items.iter().enumerate() {
            match &item.kind {
                ItemKind::Const(list) => {
                    for (at, decl) in list.iter().enumerate() {
                        once(sink, &mut values, &decl.name, "value");
                        module.consts.entry(decl.name.name.clone()).or_insert((index, at));
                    }
                }
                ItemKind::Axis(list) => {
                    for (at, decl) in list.iter().enumerate() {
                        once(sink, &mut axis_names, &decl.name, "axis");
                        module.axes.entry(decl.name.name.clone()).or_insert((index, at));
                    }
                }
                ItemKind::Def(def) if matches!(def.kind, DefKind::Adapter | DefKind::Init | DefKind::Filter) => {
                    let message = format!("`{}` definitions are not implemented in this golfc", def.kind.keyword());
                    sink.push(Diagnostic::error(codes::UNSUPPORTED, message).at(def.kind_span, ""));
                }
                ItemKind::Def(def) if def.kind != DefKind::Model => {
                    once(sink, &mut values, &def.name, "value");
                    module.defs.entry(def.name.name.clone()).or_insert(index);
                }
                ItemKind::Def(_) | ItemKind::Use(_) | ItemKind::Section(_) => {}
            }
        }
        module
    }

    fn item(&self, index: usize) -> &Item {
        &self.tree.items[index]
    }

    /// A top-level constant or definition of this module itself.
    pub fn own(&self, name: &str) -> Option<Global<'_>> {
        if let Some((item, at)) = self.consts.get(name)
            && let ItemKind::Const(list) = &self.item(*item).kind
        {
            return Some(Global::Const(&list[*at]));
        }
        match self.defs.get(name).map(|item| &self.item(*item).kind) {
            Some(ItemKind::Def(def)) => Some(Global::Def(def)),
            _ => None,
        }
    }

    /// A top-level axis.
    pub fn axis(&self, name: &str) -> Option<&AxisDecl> {
        let (item, at) = self.axes.get(name)?;
        match &self.item(*item).kind {
            ItemKind::Axis(list) => list.get(*at),
            _ => None,
        }
    }

    /// Names of constants and definitions.
    pub fn value_names(&self) -> impl Iterator<Item = &str> {
        self.consts.keys().chain(self.defs.keys()).map(String::as_str)
    }

    /// Names of axes.
    pub fn axis_names(&self) -> impl Iterator<Item = &str> {
        self.axes.keys().map(String::as_str)
    }

    /// Constants.
    pub fn consts(&self) -> impl Iterator<Item = &ConstDecl> {
        self.tree
            .items
            .iter()
            .filter_map(|item| if let ItemKind::Const(list) = &item.kind { Some(list) } else { None })
            .flatten()
    }

    /// Axes.
    pub fn axes(&self) -> impl Iterator<Item = &AxisDecl> {
        self.tree
            .items
            .iter()
            .filter_map(|item| if let ItemKind::Axis(list) = &item.kind { Some(list) } else { None })
            .flatten()
    }

    /// Definitions but the model.
    pub fn defs(&self) -> impl Iterator<Item = &Def> {
        self.tree.items.iter().filter_map(|item| match &item.kind {
            ItemKind::Def(def) if def.kind != DefKind::Model => Some(def),
            _ => None,
        })
    }

    /// The comment lines directly above an item, without `#`.
    pub fn doc(&self, map: &SourceMap, item: Span) -> Vec<String> {
        let Some(source) = map.get(item.file) else { return Vec::new() };
        let mut line = source.line_column(item.start).0;
        let mut lines = Vec::new();
        for comment in self.tree.comments.iter().rev().filter(|c| c.own_line && c.span.start < item.start) {
            let at = source.line_column(comment.span.start).0;
            if at + 1 != line {
                break;
            }
            line = at;
            lines.push(comment.text.trim_start_matches('#').trim().to_string());
        }
        lines.reverse();
        lines
    }
}

/// Reports a second definition of a name.
fn once<'a>(sink: &mut Sink, seen: &mut BTreeMap<&'a str, Span>, name: &'a Ident, what: &str) {
    match seen.get(name.as_str()) {
        Some(first) => sink.push(
            Diagnostic::error(codes::DUPLICATE_NAME, format!("the {what} `{}` is defined twice", name.name))
                .at(name.span, "second definition")
                .also(*first, "first definition"),
        ),
        None => {
            seen.insert(name.as_str(), name.span);
        }
    }
}

impl Program {
    /// Collects the definitions of `main` and of every prelude module it uses, directly or through others.
    pub fn new(map: &mut SourceMap, main: File, prelude: &Prelude, sink: &mut Sink) -> Program {
        let mut program = Program::default();
        let file = main.file;
        program.modules.push(Module::new("main", main, sink));
        let mut next = 0;
        while next < program.modules.len() {
            program.resolve_uses(next, map, prelude, sink);
            next += 1;
        }
        program.find_blocks(file, sink);
        program
    }

    fn resolve_uses(&mut self, from: ModuleId, map: &mut SourceMap, prelude: &Prelude, sink: &mut Sink) {
        let items = self.modules[from].tree.items.iter();
        let uses: Vec<Use> =
            items.filter_map(|item| if let ItemKind::Use(u) = &item.kind { Some(u.clone()) } else { None }).collect();
        for u in uses {
            let mut path: Vec<Ident> = u.path.clone();
            let names = match u.names {
                Some(names) => names,
                None => path.pop().into_iter().collect(),
            };
            let whole = path.iter().map(Ident::as_str).collect::<Vec<_>>();
            if whole != ["std"] {
                let at = path.first().or(names.first()).map_or(Span::default(), |name| name.span);
                sink.push(
                    Diagnostic::error(codes::UNKNOWN_MODULE, "modules live in `std`")
                        .at(at, "")
                        .hint("write `use std.norm` or `use std.{norm, attention}`"),
                );
                continue;
            }
            for name in names {
                self.use_module(from, &name, map, prelude, sink);
            }
        }
    }

    fn use_module(&mut self, from: ModuleId, name: &Ident, map: &mut SourceMap, prelude: &Prelude, sink: &mut Sink) {
        let full = format!("std.{}", name.name);
        let known = self.modules.iter().position(|module| module.name == full);
        let id = match (known, prelude.get(name.as_str())) {
            (Some(id), _) => id,
            (None, Some(text)) => {
                let file = map.add(format!("std/{}.golf", name.name), text);
                let parsed = golf_grammar::parse_file(file, text.as_bytes());
                sink.extend(parsed.diagnostics);
                let module = Module::new(&full, parsed.file, sink);
                self.modules.push(module);
                self.modules.len() - 1
            }
            (None, None) => {
                let names = prelude.names();
                sink.push(
                    Diagnostic::error(codes::UNKNOWN_MODULE, format!("there is no module `{full}`"))
                        .at(name.span, "")
                        .note(format!("modules: {}", names.join(", ")))
                        .did_you_mean(name.as_str(), name.span, names.iter().copied()),
                );
                return;
            }
        };
        if let Some((_, first)) = self.modules[from].uses.iter().find(|(other, _)| *other == id) {
            sink.push(
                Diagnostic::error(codes::DUPLICATE_NAME, format!("`{full}` is used twice"))
                    .at(name.span, "second use")
                    .also(*first, "first use"),
            );
            return;
        }
        self.modules[from].uses.push((id, name.span));
    }

    fn find_blocks(&mut self, file: FileId, sink: &mut Sink) {
        let main = &self.modules[0].tree;
        if main.items.is_empty() {
            let d = Diagnostic::error(codes::EMPTY_FILE, "the program is empty").in_file(file);
            sink.push(
                d.hint("a program has a model and the blocks train, quantize and evaluate; see models/tiny.golf"),
            );
            return;
        }
        let mut model: Option<(usize, Span)> = None;
        let mut sections: BTreeMap<SectionKind, (usize, Span)> = BTreeMap::new();
        let mut twice = |what: &str, first: Span, second: Span| {
            sink.push(
                Diagnostic::error(codes::DUPLICATE_BLOCK, format!("a program has one `{what}` block"))
                    .at(second, "second block")
                    .also(first, "first block"),
            );
        };
        for (index, item) in main.items.iter().enumerate() {
            match &item.kind {
                ItemKind::Def(def) if def.kind == DefKind::Model => match model {
                    Some((_, first)) => twice("model", first, def.kind_span),
                    None => model = Some((index, def.kind_span)),
                },
                ItemKind::Section(section) => match sections.get(&section.kind) {
                    Some((_, first)) => twice(section.kind.keyword(), *first, section.kind_span),
                    None => {
                        sections.insert(section.kind, (index, section.kind_span));
                    }
                },
                _ => {}
            }
        }
        let mut missing: Vec<&str> = Vec::new();
        if model.is_none() {
            missing.push("model");
        }
        for kind in [SectionKind::Train, SectionKind::Quantize, SectionKind::Evaluate] {
            if !sections.contains_key(&kind) {
                missing.push(kind.keyword());
            }
        }
        for name in missing {
            sink.push(
                Diagnostic::error(codes::MISSING_BLOCK, format!("the program has no `{name}` block"))
                    .in_file(file)
                    .note("one file is one run: what is not in it does not happen"),
            );
        }
        self.model = model.map(|(index, _)| index);
        self.sections = sections.into_iter().map(|(kind, (index, _))| (kind, index)).collect();
    }

    /// The forward definition.
    pub fn model(&self) -> Option<&Def> {
        match &self.modules[0].item(self.model?).kind {
            ItemKind::Def(def) => Some(def),
            _ => None,
        }
    }

    /// A settings block.
    pub fn section(&self, kind: SectionKind) -> Option<&Section> {
        match &self.modules[0].item(*self.sections.get(&kind)?).kind {
            ItemKind::Section(section) => Some(section),
            _ => None,
        }
    }

    /// What a name means at the top level of a module: its own definitions first, then those of the modules it uses.
    pub fn global(&self, module: ModuleId, name: &str) -> Option<(ModuleId, Global<'_>)> {
        if let Some(own) = self.modules[module].own(name) {
            return Some((module, own));
        }
        self.modules[module].uses.iter().find_map(|(id, _)| self.modules[*id].own(name).map(|found| (*id, found)))
    }

    /// Value names visible at the top level of a module.
    pub fn visible_values(&self, module: ModuleId) -> impl Iterator<Item = &str> {
        let used = self.modules[module].uses.iter().flat_map(|(id, _)| self.modules[*id].value_names());
        self.modules[module].value_names().chain(used)
    }
}
