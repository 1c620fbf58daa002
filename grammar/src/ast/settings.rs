//! Sections: `train`, `quantize`, `evaluate`, and what stands in them.

use super::{Expr, Ident};
use crate::span::Span;

/// `train { … }`, `quantize { … }`, `evaluate { … }`
#[derive(Clone, Debug)]
pub struct Section {
    /// Which.
    pub kind: SectionKind,
    /// The keyword's place.
    pub kind_span: Span,
    /// What it says.
    pub settings: Settings,
}

/// The three sections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SectionKind {
    /// `train`
    Train,
    /// `quantize`
    Quantize,
    /// `evaluate`
    Evaluate,
}

impl SectionKind {
    /// The keyword that introduces it.
    pub fn keyword(self) -> &'static str {
        match self {
            SectionKind::Train => "train",
            SectionKind::Quantize => "quantize",
            SectionKind::Evaluate => "evaluate",
        }
    }
}

/// `{ key = value, NAME on GROUP { … }, phase NAME when cond { … } }`
#[derive(Clone, Debug)]
pub struct Settings {
    /// In order.
    pub entries: Vec<Entry>,
    /// With the braces.
    pub span: Span,
}

impl Settings {
    /// The `key = value` entries.
    pub fn settings(&self) -> impl Iterator<Item = &Setting> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Setting(setting) => Some(setting),
            Entry::Rule(_) | Entry::Phase(_) => None,
        })
    }

    /// The first setting of this key.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.settings().find(|setting| setting.key == *key)
    }

    /// The `NAME on GROUP` entries, in order: the first match wins.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Rule(rule) => Some(rule),
            Entry::Setting(_) | Entry::Phase(_) => None,
        })
    }

    /// The phases, in order.
    pub fn phases(&self) -> impl Iterator<Item = &Phase> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Phase(phase) => Some(phase),
            Entry::Setting(_) | Entry::Rule(_) => None,
        })
    }
}

/// One entry of a settings block.
#[derive(Clone, Debug)]
pub enum Entry {
    /// `clip = 0.3 per shard`
    Setting(Setting),
    /// `muon on matrices { lr = 0.025 }`
    Rule(Rule),
    /// `phase looped when progress >= 0.35 { loops = 2 }`
    Phase(Phase),
}

impl Entry {
    /// Its place.
    pub fn span(&self) -> Span {
        match self {
            Entry::Setting(setting) => setting.span,
            Entry::Rule(rule) => rule.span,
            Entry::Phase(phase) => phase.span,
        }
    }
}

/// `key = value`
#[derive(Clone, Debug)]
pub struct Setting {
    /// The slot's or hyper-parameter's name; may be a keyword (`state = bf16`).
    pub key: Ident,
    /// What it is set to.
    pub value: Value,
    /// The whole.
    pub span: Span,
}

/// What a setting is set to: `expr [per UNIT] [{ settings }] [else value]`. Also what `--set PATH=` takes.
#[derive(Clone, Debug)]
pub struct Value {
    /// The expression.
    pub expr: Expr,
    /// `per shard`: to what the value applies.
    pub per: Option<Ident>,
    /// `chunked(32_768) { … }`: settings of what the expression names.
    pub settings: Option<Settings>,
    /// `swa(…) else ema(…)`: instead, where the first yields nothing.
    pub otherwise: Option<Box<Value>>,
    /// The whole.
    pub span: Span,
}

impl Value {
    /// The expression, if there is nothing else.
    pub fn plain(&self) -> Option<&Expr> {
        (self.per.is_none() && self.settings.is_none() && self.otherwise.is_none()).then_some(&self.expr)
    }
}

/// `NAME on SELECTOR where COND { settings }`
#[derive(Clone, Debug)]
pub struct Rule {
    /// The optimizer, quantizer or adapter.
    pub name: Ident,
    /// After `on`: a group, `all` or `rest`, or several joined with `or`.
    pub on: Expr,
    /// After `where`: a further condition on each parameter (`numel <= 65_536`).
    pub cond: Option<Expr>,
    /// Hyper-parameters.
    pub settings: Option<Settings>,
    /// The whole.
    pub span: Span,
}

/// `phase NAME when COND { settings }`
#[derive(Clone, Debug)]
pub struct Phase {
    /// Its name.
    pub name: Ident,
    /// Evaluated on the host before each step.
    pub when: Expr,
    /// Compile-time constants that differ in this phase.
    pub settings: Settings,
    /// The whole.
    pub span: Span,
}
