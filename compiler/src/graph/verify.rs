//! The verifier: every rule of [`super::ir`], checked.
//!
//! *Takes* any graph, also a hand-written one; *gives* all violations with their places, and a listing that shows them under the guilty
//! lines; *promises* that a graph that passes has a meaning: the interpreter can run it and later stages need not check again.

use super::build::check_effect;
use super::infer;
use super::ir::{AxisId, BufferId, BufferKind, DType, Graph, NodeId, Op, Type};
use std::collections::BTreeSet;

/// Where a rule is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The graph as a whole.
    Graph,
    /// An axis.
    Axis(AxisId),
    /// A buffer.
    Buffer(BufferId),
    /// A node.
    Node(NodeId),
    /// An effect, by position.
    Effect(usize),
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// Where.
    pub place: Place,
    /// What.
    pub what: String,
}

impl std::fmt::Display for VerifyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.place {
            Place::Graph => write!(f, "graph: {}", self.what),
            Place::Axis(a) => write!(f, "axis {}: {}", a.0, self.what),
            Place::Buffer(b) => write!(f, "buffer {}: {}", b.0, self.what),
            Place::Node(n) => write!(f, "%{}: {}", n.0, self.what),
            Place::Effect(i) => write!(f, "effect {i}: {}", self.what),
        }
    }
}

/// All broken rules, in order of place.
pub fn verify(g: &Graph) -> Result<(), Vec<VerifyError>> {
    let mut v = Verifier { g, errors: Vec::new() };
    v.graph();
    v.axes();
    v.buffers();
    v.nodes();
    v.effects();
    if v.errors.is_empty() { Ok(()) } else { Err(v.errors) }
}

/// The graph's text with each error under the line of its node; other errors come first.
pub fn listing(g: &Graph, errors: &[VerifyError]) -> String {
    let elsewhere = errors.iter().filter(|e| !matches!(e.place, Place::Node(_)));
    let head: String = elsewhere.map(|e| format!("^ {e}\n")).collect();
    let notes = |id| errors.iter().filter(|e| e.place == Place::Node(id)).map(|e| e.what.clone()).collect();
    head + &super::text::print_with(g, notes)
}

struct Verifier<'a> {
    g: &'a Graph,
    errors: Vec<VerifyError>,
}

impl Verifier<'_> {
    fn report(&mut self, place: Place, what: impl Into<String>) {
        self.errors.push(VerifyError { place, what: what.into() });
    }

    fn graph(&mut self) {
        if !matches!(self.g.compute, DType::F32 | DType::Bf16) {
            self.report(Place::Graph, "the compute dtype must be f32 or bf16");
        }
        if self.g.origins.len() > self.g.nodes.len() {
            self.report(Place::Graph, "there are more origins than nodes");
        }
        for id in self.g.constants.keys() {
            if self.g.buffers.get(id.0 as usize).is_none_or(|b| b.kind != BufferKind::Const) {
                self.report(Place::Buffer(*id), "only const buffers have values");
            }
        }
    }

    fn axes(&mut self) {
        let mut names = BTreeSet::new();
        for (i, axis) in self.g.axes.iter().enumerate() {
            let place = Place::Axis(AxisId(i as u32));
            if axis.size == 0 {
                self.report(place, "the size must be at least 1");
            }
            if !names.insert(&axis.name) {
                self.report(place, format!("the name `{}` is taken", axis.name));
            }
        }
    }

    fn buffers(&mut self) {
        let mut names = BTreeSet::new();
        for (i, buffer) in self.g.buffers.iter().enumerate() {
            let id = BufferId(i as u32);
            let place = Place::Buffer(id);
            if !names.insert(&buffer.name) {
                self.report(place, format!("the name `{}` is taken", buffer.name));
            }
            if !self.known(&buffer.ty) {
                self.report(place, "an axis does not exist or occurs twice");
                continue;
            }
            match (buffer.kind, self.g.constants.get(&id)) {
                (BufferKind::Const, None) => self.report(place, "a const buffer needs values"),
                (BufferKind::Const, Some(values)) if values.len() != self.numel(&buffer.ty) => {
                    let what = format!("{} values for {} elements", values.len(), self.numel(&buffer.ty));
                    self.report(place, what);
                }
                _ => {}
            }
        }
    }

    fn nodes(&mut self) {
        for (i, node) in self.g.nodes.iter().enumerate() {
            let place = Place::Node(NodeId(i as u32));
            if let Some(late) = node.args.iter().find(|a| a.0 as usize >= i) {
                self.report(place, format!("the operand %{} is not defined above", late.0));
                continue;
            }
            if !self.known(&node.ty) {
                self.report(place, "an axis does not exist or occurs twice");
                continue;
            }
            if let Op::Read(b) = node.op
                && self.g.buffers.get(b.0 as usize).is_some_and(|b| !self.known(&b.ty))
            {
                continue;
            }
            match infer::result(self.g, &node.op, &node.args, Some(&node.ty)) {
                Err(error) => self.report(place, error.to_string()),
                Ok(ty) if ty != node.ty => {
                    let what = format!("the type is {}, but should be {}", self.show(&node.ty), self.show(&ty));
                    self.report(place, what);
                }
                Ok(_) => {}
            }
        }
    }

    fn effects(&mut self) {
        let mut written = BTreeSet::new();
        for (i, effect) in self.g.effects.iter().enumerate() {
            if let Err(error) = check_effect(self.g, "effect", effect) {
                self.report(Place::Effect(i), error.to_string());
            }
            if !written.insert(effect.buffer) {
                self.report(Place::Effect(i), "the buffer is written twice");
            }
        }
    }

    fn known(&self, ty: &Type) -> bool {
        let mut seen = BTreeSet::new();
        ty.axes.iter().all(|a| (a.0 as usize) < self.g.axes.len() && seen.insert(a))
    }

    fn numel(&self, ty: &Type) -> usize {
        ty.axes.iter().map(|a| self.g.axes[a.0 as usize].size).product()
    }

    fn show(&self, ty: &Type) -> String {
        let names: Vec<_> = ty.axes.iter().map(|a| self.g.axes[a.0 as usize].name.as_str()).collect();
        format!("{} [{}]", infer::dtype_name(ty.dtype), names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::text::parse;

    fn errors(text: &str) -> Vec<String> {
        let g = parse(text).unwrap();
        verify(&g).err().unwrap_or_default().iter().map(ToString::to_string).collect()
    }

    const HEAD: &str =
        "graph g f32\naxis a 2\naxis b 3\ninput x : f32 [a b]\ninput i : i32 [a]\noutput y : f32 [b a]\n";

    #[test]
    fn a_good_graph_passes() {
        let text = format!("{HEAD}%0 = read(x) : f32 [a b]\n%1 = exp(%0) : f32 [a b]\nassign y %1\n");
        assert_eq!(errors(&text), [""; 0]);
    }

    #[test]
    fn every_rule_is_checked() {
        for (lines, expected) in [
            ("%0 = read(x) : f32 [b a]", "%0: the type is f32 [b a], but should be f32 [a b]"),
            ("%0 = read(x) : bf16 [a b]", "%0: the type is bf16 [a b], but should be f32 [a b]"),
            ("%0 = read(x) : f32 [a a]", "%0: an axis does not exist or occurs twice"),
            ("%0 = read(i) : i32 [a]\n%1 = exp(%0) : f32 [a]", "%1: exp: expected floats, found i32"),
            ("%0 = const(0.5) : i32 []", "%0: const: 0.5 is not a value of i32"),
            (
                "%0 = read(x) : f32 [a b]\n%1 = sum(%0; over a a) : f32 [b]",
                "%1: sum: the axis `a` would occur twice in [a a]",
            ),
            ("%0 = read(x) : f32 [a b]\nassign x %0", "effect 0: effect: the buffer `x` is read-only (Input)"),
            ("%0 = read(x) : f32 [a b]\nassign y %0\naccumulate y %0", "effect 1: the buffer is written twice"),
            (
                "%0 = read(i) : i32 [a]\nassign y %0",
                "effect 0: effect: axes [b a] and [a] do not agree; the second lacks [b]",
            ),
            ("axis a 4", "axis 2: the name `a` is taken"),
            ("axis c 0", "axis 2: the size must be at least 1"),
            ("param x : f32 []", "buffer 3: the name `x` is taken"),
            ("const c : f32 [a]", "buffer 3: a const buffer needs values"),
            ("const c : f32 [a] = 1", "buffer 3: 1 values for 2 elements"),
            ("param c : f32 [a] = 1 2", "buffer 3: only const buffers have values"),
        ] {
            assert_eq!(errors(&format!("{HEAD}{lines}\n")), [expected], "{lines}");
        }
        assert_eq!(errors("graph g i8"), ["graph: the compute dtype must be f32 or bf16"]);
    }

    #[test]
    fn late_operands_and_unknown_axes_are_reported() {
        let mut g = parse(&format!("{HEAD}%0 = read(x) : f32 [a b]\n%1 = exp(%0) : f32 [a b]\n")).unwrap();
        g.nodes[1].args[0] = NodeId(1);
        g.nodes[0].ty.axes[0] = AxisId(9);
        g.origins.resize(3, crate::graph::ir::Origin::default());
        let found: Vec<_> = verify(&g).unwrap_err().iter().map(ToString::to_string).collect();
        let expected = [
            "graph: there are more origins than nodes",
            "%0: an axis does not exist or occurs twice",
            "%1: the operand %1 is not defined above",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn the_listing_puts_errors_under_their_lines() {
        let g = parse(&format!("{HEAD}%0 = read(x) : f32 [b a]\n")).unwrap();
        let listing = listing(&g, &verify(&g).unwrap_err());
        assert!(listing.ends_with("%0 = read(x) : f32 [b a]\n    ^ the type is f32 [b a], but should be f32 [a b]\n"));
    }

    #[test]
    fn built_graphs_pass() {
        verify(&crate::graph::text::everything()).unwrap();
    }
}
