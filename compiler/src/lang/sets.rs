//! `--set PATH=EXPR`: overrides, as edits of the source text.
//!
//! *Takes* a program text and overrides; *gives* the text with each value replaced in place, or inserted where the file does not say
//! it; *promises* that the result is what is compiled and counted, and that messages about replaced text point at the `--set`.
//!
//! A path is a constant (`layers`), a layer's constant (`block.ln`), or block.slot\[.argument\] (`train.stop`,
//! `train.schedule.fraction`), block.rule.setting (`train.muon.lr`), block.rule.group.setting (`train.adamw.scalars.lr`), and
//! `evaluate.adapt.…` with the same inside.

use super::codes;
use super::settings;
use golf_grammar::ast::{
    Args, Def, Entry, Expr, ExprKind, File, ItemKind, Rule, Section, SectionKind, Setting, Settings, StmtKind, Value,
};
use golf_grammar::{Diagnostic, FileId, SourceMap, Span, nearest, parse_file, parse_value};

/// The text after all overrides.
#[derive(Clone, Debug)]
pub struct Overridden {
    /// The text.
    pub text: String,
    /// Replaced places: byte range in the text, the `--set` it came from and where the expression starts there.
    pub edits: Vec<Edit>,
}

/// A replaced place.
#[derive(Clone, Debug)]
pub struct Edit {
    start: usize,
    end: usize,
    file: FileId,
    from: usize,
    /// Length of its PATH.
    path: usize,
    /// How many of the text's first bytes are not of the `--set` (`limit = ` of an insertion).
    lead: usize,
}

/// A change of the text: replace the range; `lead` is what stands before EXPR in the new text.
struct Change {
    start: usize,
    end: usize,
    lead: String,
    tail: String,
}

/// One parsed override.
struct Override<'a> {
    path: Vec<&'a str>,
    expr: &'a str,
    file: FileId,
    /// Offset of EXPR in the `--set` text.
    from: usize,
    span: Span,
    value: Value,
}

/// Applies the overrides in order. `tree` is the tree of `text`; prelude names of arguments are found with `hypers` (definition name
/// to its hyper-parameter names, in order).
pub fn apply(
    map: &mut SourceMap,
    name: &str,
    text: &str,
    sets: &[String],
    hypers: &dyn Fn(&File, &str) -> Vec<String>,
) -> Result<Overridden, Vec<Diagnostic>> {
    let mut out = Overridden { text: text.to_string(), edits: Vec::new() };
    let mut errors = Vec::new();
    for set in sets {
        let file = map.add("--set", set.clone());
        let over = match parse(set, file) {
            Ok(over) => over,
            Err(list) => {
                errors.extend(list);
                continue;
            }
        };
        // The text was parsed without errors, and values replace values: it still does.
        let parsed = parse_file(FileId(u32::MAX), out.text.as_bytes()).into_result();
        let Ok(tree) = parsed else {
            let d = Diagnostic::error(codes::SET_SYNTAX, format!("`{set}` makes {name} unreadable")).at(over.span, "");
            errors.push(d);
            break;
        };
        match changes(&tree, &over, hypers) {
            Ok(changes) => edit(&mut out, &over, changes),
            Err(d) => errors.push(d),
        }
    }
    if errors.is_empty() { Ok(out) } else { Err(errors) }
}

fn parse(set: &str, file: FileId) -> Result<Override<'_>, Vec<Diagnostic>> {
    let whole = Span::new(file, 0, set.len());
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let Some((path, expr)) = set.split_once('=').filter(|(path, _)| path.trim().split('.').all(word)) else {
        let d = Diagnostic::error(codes::SET_SYNTAX, "an override is PATH=EXPR").at(whole, "");
        return Err(vec![d.hint("for example `--set layers=9` or `--set train.stop=60s`")]);
    };
    let from = path.len() + 1;
    // Offsets of the expression are those in the whole `--set` text: blanks stand for the path.
    let padded = format!("{}{expr}", " ".repeat(from));
    let value = parse_value(file, padded.as_bytes())?;
    // The value alone: blanks and comments around it stay out of the program.
    let (from, expr) = (value.span.start as usize, set.get(value.span.range()).unwrap_or(expr));
    let span = Span::new(file, 0, path.len());
    Ok(Override { path: path.trim().split('.').collect(), expr, file, from, span, value })
}

/// Makes the changes, last first, and keeps the places of earlier edits right.
fn edit(out: &mut Overridden, over: &Override<'_>, mut changes: Vec<Change>) {
    changes.sort_by_key(|change| std::cmp::Reverse(change.start));
    for change in changes {
        let new = format!("{}{}{}", change.lead, over.expr, change.tail);
        let removed = change.end - change.start;
        out.text.replace_range(change.start..change.end, &new);
        out.edits.retain(|old| old.end <= change.start || old.start >= change.end);
        for old in &mut out.edits {
            if old.start >= change.end {
                old.start = old.start + new.len() - removed;
                old.end = old.end + new.len() - removed;
            }
        }
        let end = change.start + new.len();
        out.edits.push(Edit {
            start: change.start,
            end,
            file: over.file,
            from: over.from,
            path: over.span.end as usize,
            lead: change.lead.len(),
        });
    }
}

/// Points places in replaced text at the `--set` they came from.
pub fn relocate(diagnostics: &mut [Diagnostic], program: FileId, edits: &[Edit]) {
    let moved = |span: &mut Span| {
        if span.file != program {
            return;
        }
        let (start, end) = (span.start as usize, span.end as usize);
        let Some(edit) = edits.iter().find(|edit| edit.start <= start && end <= edit.end) else { return };
        let from = |at: usize| edit.from + at.saturating_sub(edit.start + edit.lead);
        *span = if end <= edit.start + edit.lead {
            // The name of an inserted setting: show the path.
            Span::new(edit.file, 0, edit.path)
        } else {
            Span::new(edit.file, from(start), from(end))
        };
    };
    for d in diagnostics {
        for label in &mut d.labels {
            moved(&mut label.span);
        }
        for hint in &mut d.hints {
            if let Some((span, _)) = &mut hint.fix {
                moved(span);
            }
        }
    }
}

type Found = Result<Vec<Change>, Diagnostic>;

fn changes(tree: &File, over: &Override<'_>, hypers: &dyn Fn(&File, &str) -> Vec<String>) -> Found {
    let section = [SectionKind::Train, SectionKind::Quantize, SectionKind::Evaluate]
        .into_iter()
        .find(|kind| over.path.first() == Some(&kind.keyword()));
    match section {
        Some(kind) => {
            let found = tree.items.iter().find_map(|item| match &item.kind {
                ItemKind::Section(section) if section.kind == kind => Some(section),
                _ => None,
            });
            match found {
                Some(section) => in_section(tree, section, over, hypers),
                None => Err(unknown(over, format!("the program has no `{}` block", kind.keyword()), &[])),
            }
        }
        None => in_constants(tree, over),
    }
}

fn unknown(over: &Override<'_>, message: String, candidates: &[String]) -> Diagnostic {
    let mut d = Diagnostic::error(codes::SET_PATH, message).at(over.span, "");
    if !candidates.is_empty() {
        d = d.note(format!("there are: {}", candidates.join(", ")));
    }
    let last = over.path.last().copied().unwrap_or_default();
    match nearest(last, candidates.iter().map(String::as_str)) {
        Some(near) => d.hint(format!("did you mean `{near}`?")),
        None => d,
    }
}

fn replace(span: Span) -> Change {
    Change { start: span.start as usize, end: span.end as usize, lead: String::new(), tail: String::new() }
}

/// Top-level constants, and constants of a definition's body.
fn in_constants(tree: &File, over: &Override<'_>) -> Found {
    if over.value.plain().is_none() {
        return Err(Diagnostic::error(codes::SET_SYNTAX, "a constant takes a plain expression").at(over.value.span, ""));
    }
    match over.path.as_slice() {
        [name] => {
            let decls = tree
                .items
                .iter()
                .filter_map(|item| if let ItemKind::Const(list) = &item.kind { Some(list) } else { None });
            let decls: Vec<_> = decls.flatten().collect();
            if let Some(decl) = decls.iter().find(|decl| decl.name == **name) {
                return Ok(vec![replace(decl.value.span)]);
            }
            let mut names: Vec<String> = decls.iter().map(|decl| decl.name.name.clone()).collect();
            names.extend(["train".to_string(), "quantize".to_string(), "evaluate".to_string()]);
            Err(unknown(over, format!("there is no constant `{name}`"), &names))
        }
        [def, name] => {
            let defs: Vec<&Def> = tree
                .items
                .iter()
                .filter_map(|item| if let ItemKind::Def(def) = &item.kind { Some(def) } else { None })
                .collect();
            let Some(found) = defs.iter().find(|d| d.name == **def) else {
                let names: Vec<String> = ["train", "quantize", "evaluate"].iter().map(|s| s.to_string()).collect();
                return Err(unknown(over, format!("there is no block or definition `{def}`"), &names));
            };
            let consts = found
                .body
                .stmts
                .iter()
                .filter_map(|stmt| if let StmtKind::Const(list) = &stmt.kind { Some(list) } else { None });
            let consts: Vec<_> = consts.flatten().collect();
            match consts.iter().find(|decl| decl.name == **name) {
                Some(decl) => Ok(vec![replace(decl.value.span)]),
                None => {
                    let names: Vec<String> = consts.iter().map(|decl| decl.name.name.clone()).collect();
                    Err(unknown(over, format!("`{def}` has no constant `{name}`"), &names))
                }
            }
        }
        _ => Err(unknown(over, format!("there is no constant `{}`", over.path.join(".")), &[])),
    }
}

fn in_section(
    tree: &File,
    section: &Section,
    over: &Override<'_>,
    hypers: &dyn Fn(&File, &str) -> Vec<String>,
) -> Found {
    let block = section.kind.keyword();
    let slots = settings::slots(section.kind);
    in_settings(tree, &section.settings, &over.path[1..], (block, slots), over, hypers)
}

/// `slot`, `slot.argument`, `rule.setting`, `rule.group.setting` inside some settings.
fn in_settings(
    tree: &File,
    settings: &Settings,
    path: &[&str],
    (block, slots): (&str, &[&str]),
    over: &Override<'_>,
    hypers: &dyn Fn(&File, &str) -> Vec<String>,
) -> Found {
    let Some((first, rest)) = path.split_first() else {
        return Err(unknown(over, format!("`{block}` is a block: name one of its settings"), &strings(slots)));
    };
    let rules: Vec<&Rule> = settings.rules().filter(|rule| rule.name == **first).collect();
    if !rules.is_empty() {
        return in_rules(&rules, rest, over);
    }
    match (settings.get(first), rest) {
        (Some(setting), []) => {
            let value = &setting.value;
            // A number instead of a number: what stands behind (`per shard`) stays.
            let plain =
                over.value.plain().is_some() && value.per.is_some() && !matches!(over.value.expr.kind, ExprKind::None);
            Ok(vec![replace(if plain { value.expr.span } else { value.span })])
        }
        (None, []) if slots.contains(first) => Ok(vec![insert(settings, first)]),
        (Some(setting), [argument]) => in_value(tree, setting, argument, over, hypers),
        (Some(setting), rest) if setting.value.settings.is_some() => match &setting.value.settings {
            Some(inner) => in_settings(tree, inner, rest, (first, settings::nested(first)), over, hypers),
            None => Err(unknown(over, format!("`{block}.{first}` has no settings"), &[])),
        },
        (None, [_, ..]) if slots.contains(first) => {
            Err(unknown(over, format!("the program does not set `{block}.{first}`"), &[]))
        }
        _ => {
            let mut names = strings(slots);
            names.extend(settings.rules().map(|rule| rule.name.name.clone()));
            Err(unknown(over, format!("`{block}` has no setting `{first}`"), &names))
        }
    }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// A setting of every rule of one name.
fn in_rules(rules: &[&Rule], rest: &[&str], over: &Override<'_>) -> Found {
    let (rules, key) = match rest {
        [key] => (rules.to_vec(), key),
        [group, key] => {
            let of = |rule: &&Rule| matches!(&rule.on.kind, ExprKind::Name(name) if *name == **group);
            (rules.iter().copied().filter(of).collect(), key)
        }
        _ => (Vec::new(), &""),
    };
    if rules.is_empty() {
        return Err(unknown(over, format!("there is no rule setting `{}`", over.path.join(".")), &[]));
    }
    Ok(rules.iter().map(|rule| rule_change(rule, key)).collect())
}

fn rule_change(rule: &Rule, key: &str) -> Change {
    match &rule.settings {
        Some(settings) => match settings.get(key) {
            Some(setting) => replace(setting.value.span),
            None => insert(settings, key),
        },
        None => {
            let at = rule.span.end as usize;
            Change { start: at, end: at, lead: format!(" {{ {key} = "), tail: " }".to_string() }
        }
    }
}

/// `key = EXPR` at the end of a block.
fn insert(settings: &Settings, key: &str) -> Change {
    match settings.entries.last() {
        // On a line of its own where the entries have lines of their own.
        Some(last) => {
            let at = last.span().end as usize;
            Change { start: at, end: at, lead: format!(", {key} = "), tail: String::new() }
        }
        None => {
            let at = settings.span.start as usize + 1;
            Change { start: at, end: at, lead: format!(" {key} = "), tail: " ".to_string() }
        }
    }
}

/// An argument of a slot's value: a setting inside its braces, of the rules there, or an argument of the call.
fn in_value(
    tree: &File,
    setting: &Setting,
    argument: &str,
    over: &Override<'_>,
    hypers: &dyn Fn(&File, &str) -> Vec<String>,
) -> Found {
    let value = &setting.value;
    let nested = settings::nested(setting.key.as_str());
    let mut known: Vec<String> = strings(nested);
    if value.settings.is_none() && nested.contains(&argument) {
        let at = value.span.end as usize;
        return Ok(vec![Change { start: at, end: at, lead: format!(" {{ {argument} = "), tail: " }".to_string() }]);
    }
    if let Some(settings) = &value.settings {
        if let Some(setting) = settings.get(argument) {
            return Ok(vec![replace(setting.value.span)]);
        }
        if nested.contains(&argument) {
            return Ok(vec![insert(settings, argument)]);
        }
        let mut found = Vec::new();
        for entry in &settings.entries {
            let Entry::Rule(rule) = entry else { continue };
            let names = hypers(tree, rule.name.as_str());
            if names.iter().any(|name| name == argument)
                || rule.settings.as_ref().is_some_and(|s| s.get(argument).is_some())
            {
                found.push(rule_change(rule, argument));
            }
            known.extend(names);
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    match &value.expr.kind {
        ExprKind::Call { callee, args } => {
            let ExprKind::Name(name) = &callee.kind else {
                return Err(unknown(over, "this slot has no arguments".to_string(), &known));
            };
            let params = match name.as_str() {
                "chunked" => vec!["chunk".to_string()],
                "stream" => vec!["pattern".to_string()],
                "zstd" => vec!["level".to_string()],
                name => hypers(tree, name),
            };
            match params.iter().position(|param| param == argument) {
                Some(at) => Ok(vec![argument_change(args, argument, at)]),
                None => {
                    known.extend(params);
                    Err(unknown(over, format!("`{}` has no argument `{argument}`", name.name), &known))
                }
            }
        }
        ExprKind::Name(name) if hypers(tree, name.as_str()).iter().any(|param| param == argument) => {
            let at = value.expr.span.end as usize;
            Ok(vec![Change { start: at, end: at, lead: format!("({argument}: "), tail: ")".to_string() }])
        }
        _ => Err(unknown(over, format!("there is no `{}`", over.path.join(".")), &known)),
    }
}

fn argument_change(args: &Args, name: &str, at: usize) -> Change {
    let named = args.items.iter().find(|arg| arg.name.as_ref().is_some_and(|n| *n == *name)).map(|arg| &arg.value);
    let positional: Option<&Expr> = args.items.get(at).filter(|arg| arg.name.is_none()).map(|arg| &arg.value);
    match named.or(positional) {
        Some(expr) => replace(expr.span),
        None => {
            let end = args.span.end as usize - 1;
            let comma = if args.items.is_empty() { "" } else { ", " };
            Change { start: end, end, lead: format!("{comma}{name}: "), tail: String::new() }
        }
    }
}
