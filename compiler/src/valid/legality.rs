//! The verdict: rules, proofs and errors that name the first offending op.
//!
//! *Takes* labels; *gives* a [`Proof`] or all broken rules; *promises* that a `Proof` exists only for logits that passed.

use super::label::{Documents, Inputs, Label, Rows, Split, Time};
use super::transfer::Transfer;
use crate::graph::ir::{AxisId, AxisRole, BufferKind, Graph, NodeId, Op, Origin};
use crate::graph::ops;

/// A rule of legal evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Position t sees tokens up to t only (condition 1).
    Future,
    /// A row sees itself only: overlapping windows of one batch hold each other's future (condition 1).
    Rows,
    /// Logits do not see targets (condition 1).
    Targets,
    /// Documents do not see each other, where the program says so.
    Documents,
    /// Validation data reaches `evaluate` only.
    Validation,
    /// Scores are the log-softmax over the whole vocabulary, taken by the compiler (condition 2).
    Normalised,
}

impl Rule {
    /// One line for a diagnostic.
    pub fn statement(self) -> &'static str {
        match self {
            Rule::Future => "the prediction at a position may depend on tokens up to that position only",
            Rule::Rows => {
                "a row of the batch may not depend on other rows: overlapping windows hold each other's future"
            }
            Rule::Targets => "logits may not depend on targets",
            Rule::Documents => "documents are declared isolated and may not depend on each other",
            Rule::Validation => "validation data may reach `evaluate` only",
            Rule::Normalised => "scores must be the cross-entropy of the logits over the whole vocabulary",
        }
    }
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegalityError {
    /// Which.
    pub rule: Rule,
    /// The first op that breaks it (for targets and validation data: the first that uses them).
    pub node: NodeId,
    /// From the offending op (or the input that may not be used) to the checked value.
    pub path: Vec<NodeId>,
    /// What that op does.
    pub why: String,
    /// Where it was written.
    pub origin: Origin,
}

impl std::fmt::Display for LegalityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (%{}): {}", self.why, self.node.0, self.rule.statement())
    }
}

impl std::error::Error for LegalityError {}

/// Evidence that a value of a graph passed the check; made here only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    logits: NodeId,
    label: Label,
}

impl Proof {
    /// The logits that were checked.
    pub fn logits(&self) -> NodeId {
        self.logits
    }

    /// What is known about them.
    pub fn label(&self) -> Label {
        self.label
    }
}

/// Checks logits: tokens up to t, own row, no targets, own document where isolation is declared.
pub fn check_logits(g: &Graph, logits: NodeId, inputs: &Inputs) -> Result<Proof, Vec<LegalityError>> {
    let check = Check::new(g, inputs);
    let mut rules = vec![Rule::Future, Rule::Rows, Rule::Targets];
    if inputs.isolated {
        rules.push(Rule::Documents);
    }
    let mut errors: Vec<_> = rules.into_iter().filter_map(|rule| check.rule(rule, logits)).collect();
    // With two batch axes an element belongs to two rows.
    let axes = &g.nodes[logits.0 as usize].ty.axes;
    if axes.iter().filter(|a| g.axes[a.0 as usize].role == AxisRole::Batch).count() > 1 {
        let origin = g.origins.get(logits.0 as usize).cloned().unwrap_or_default();
        let why = "the logits have two batch axes".to_string();
        errors.push(LegalityError { rule: Rule::Rows, node: logits, path: vec![logits], why, origin });
    }
    if errors.is_empty() { Ok(Proof { logits, label: check.labels[logits.0 as usize] }) } else { Err(errors) }
}

/// Checks scores: `nll` must be the cross-entropy of legal logits over the axis `vocab`, at the targets as they came in.
pub fn check_score(g: &Graph, nll: NodeId, vocab: AxisId, inputs: &Inputs) -> Result<Proof, Vec<LegalityError>> {
    let node = &g.nodes[nll.0 as usize];
    let refuse = |why: &str| {
        let origin = g.origins.get(nll.0 as usize).cloned().unwrap_or_default();
        Err(vec![LegalityError { rule: Rule::Normalised, node: nll, path: vec![nll], why: why.to_string(), origin }])
    };
    match node.op {
        Op::CrossEntropy(axis) if axis == vocab => {
            let target = &g.nodes[node.args[1].0 as usize];
            if !matches!(target.op, Op::Read(b) if g.buffers[b.0 as usize].kind == BufferKind::Input) {
                return refuse("the score is taken at computed targets");
            }
            check_logits(g, node.args[0], inputs)
        }
        Op::CrossEntropy(_) => refuse("the score is normalised over another axis than the vocabulary"),
        _ => refuse(&format!("the score is `{}`, not the cross-entropy", ops::row(&node.op).name)),
    }
}

/// Checks a graph of training, averaging, calibration or packing: nothing it writes may depend on validation data.
pub fn check_training(g: &Graph, inputs: &Inputs) -> Result<(), Vec<LegalityError>> {
    let check = Check::new(g, inputs);
    let errors: Vec<_> = g.effects.iter().filter_map(|e| check.rule(Rule::Validation, e.value)).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

struct Check<'a> {
    g: &'a Graph,
    labels: Vec<Label>,
}

impl<'a> Check<'a> {
    fn new(g: &'a Graph, inputs: &'a Inputs) -> Self {
        Check { g, labels: Transfer { g, inputs }.labels() }
    }

    /// Whether a node's label breaks a rule.
    fn broken(&self, rule: Rule, node: NodeId) -> bool {
        let label = self.labels[node.0 as usize];
        match rule {
            Rule::Future => label.time == Time::All,
            Rule::Rows => label.rows == Rows::All,
            Rule::Targets => label.targets,
            Rule::Documents => label.documents == Documents::Any,
            Rule::Validation => label.split == Split::Val,
            Rule::Normalised => false,
        }
    }

    /// The error of a rule at a value: the way back through operands that break it already, to the op that broke it first.
    fn rule(&self, rule: Rule, value: NodeId) -> Option<LegalityError> {
        if !self.broken(rule, value) {
            return None;
        }
        let mut path = vec![value];
        let mut at = value;
        // Operands have smaller ids, so this ends.
        while let Some(next) = self.node(at).args.iter().copied().find(|a| self.broken(rule, *a)) {
            path.push(next);
            at = next;
        }
        path.reverse();
        // An input that must not be used is no one's mistake; its first use is.
        let node = match (&self.node(at).op, path.get(1)) {
            (Op::Read(_), Some(user)) => *user,
            _ => at,
        };
        let origin = self.g.origins.get(node.0 as usize).cloned().unwrap_or_default();
        Some(LegalityError { rule, node, path, why: self.why(rule, at, node), origin })
    }

    fn node(&self, id: NodeId) -> &crate::graph::ir::Node {
        &self.g.nodes[id.0 as usize]
    }

    fn why(&self, rule: Rule, cause: NodeId, node: NodeId) -> String {
        let name = ops::row(&self.node(node).op).name;
        if let Op::Read(b) = self.node(cause).op {
            return format!("`{name}` uses the input `{}`", self.g.buffers[b.0 as usize].name);
        }
        match rule {
            Rule::Future => {
                format!("`{name}` lets positions along `{}` see later tokens", self.axis(node, AxisRole::Time))
            }
            Rule::Rows => format!("`{name}` mixes rows along `{}`", self.axis(node, AxisRole::Batch)),
            Rule::Documents => format!("`{name}` reaches across documents"),
            Rule::Targets | Rule::Validation | Rule::Normalised => format!("`{name}` breaks a rule"),
        }
    }

    /// Name of the axis of a role that an op's operands have.
    fn axis(&self, node: NodeId, role: AxisRole) -> String {
        let axes = self.node(node).args.iter().flat_map(|a| &self.node(*a).ty.axes);
        let named = axes.map(|a| &self.g.axes[a.0 as usize]).find(|a| a.role == role);
        named.map_or_else(|| "the stream".to_string(), |a| a.name.clone())
    }
}
