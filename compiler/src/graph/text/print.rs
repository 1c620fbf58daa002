//! Printing.
//!
//! *Takes* a graph; *gives* text; *promises* one line per item in index order.

use crate::graph::infer::dtype_name;
use crate::graph::ir::{
    Attend, AttendArg, AxisId, AxisRole, BufferId, BufferKind, EffectMode, Graph, NodeId, Op, Origin, Type,
};
use crate::graph::ops;
use std::fmt::Write;

/// The whole graph.
pub fn print(g: &Graph) -> String {
    print_with(g, |_| Vec::new())
}

/// The whole graph with notes under node lines, each as `    ^ note` (lines that [`super::parse`] skips).
pub fn print_with(g: &Graph, notes: impl Fn(NodeId) -> Vec<String>) -> String {
    let p = Printer { g, names: Names::Own };
    let mut out = format!("graph {} {}\n", word(&g.name), dtype_name(g.compute));
    // Writing to a string cannot fail.
    for axis in &g.axes {
        let role = match axis.role {
            AxisRole::Batch => " batch",
            AxisRole::Time => " time",
            AxisRole::Plain => "",
        };
        let _ = writeln!(out, "axis {} {}{role}", word(&axis.name), axis.size);
    }
    for (i, buffer) in g.buffers.iter().enumerate() {
        let _ = write!(out, "{} {} : {}", kind_name(buffer.kind), word(&buffer.name), p.ty(&buffer.ty));
        if let Some(values) = g.constants.get(&BufferId(i as u32)) {
            out.push_str(" =");
            values.iter().for_each(|v| {
                let _ = write!(out, " {}", number(*v));
            });
        }
        out.push('\n');
    }
    for i in 0..g.nodes.len() {
        let id = NodeId(i as u32);
        let _ = write!(out, "{}", p.node(id));
        match g.origins.get(i) {
            Some(origin) if *origin != Origin::default() => {
                let _ = writeln!(out, "  {}", place(origin));
            }
            _ => out.push('\n'),
        }
        for note in notes(id) {
            let _ = writeln!(out, "    ^ {note}");
        }
    }
    for effect in &g.effects {
        let _ = writeln!(out, "{} {} %{}", mode_name(effect.mode), p.buffer(effect.buffer), effect.value.0);
    }
    out
}

/// One node's line, without its origin.
pub fn print_node(g: &Graph, id: NodeId) -> String {
    Printer { g, names: Names::Own }.node(id)
}

/// A key for equal computations: axes become `a0..` and buffers `p0..` in order, names, roles, kinds, table contents and origins are left
/// out. Two graphs with the same key do the same to the same dtypes and extents.
pub fn canonical(g: &Graph) -> String {
    let p = Printer { g, names: Names::Numbers };
    let mut out = format!("{}\n", dtype_name(g.compute));
    for axis in &g.axes {
        let _ = write!(out, "{} ", axis.size);
    }
    out.push('\n');
    for buffer in &g.buffers {
        let _ = writeln!(out, "{}", p.ty(&buffer.ty));
    }
    for i in 0..g.nodes.len() {
        let _ = writeln!(out, "{}", p.node(NodeId(i as u32)));
    }
    for effect in &g.effects {
        let _ = writeln!(out, "{} {} %{}", mode_name(effect.mode), p.buffer(effect.buffer), effect.value.0);
    }
    out
}

enum Names {
    Own,
    Numbers,
}

struct Printer<'a> {
    g: &'a Graph,
    names: Names,
}

impl Printer<'_> {
    fn axis(&self, a: AxisId) -> String {
        match (&self.names, self.g.axes.get(a.0 as usize)) {
            (Names::Own, Some(axis)) => word(&axis.name),
            _ => format!("a{}", a.0),
        }
    }

    fn axes(&self, axes: &[AxisId]) -> String {
        axes.iter().map(|a| self.axis(*a)).collect::<Vec<_>>().join(" ")
    }

    fn buffer(&self, b: BufferId) -> String {
        match (&self.names, self.g.buffers.get(b.0 as usize)) {
            (Names::Own, Some(buffer)) => word(&buffer.name),
            _ => format!("p{}", b.0),
        }
    }

    fn ty(&self, ty: &Type) -> String {
        format!("{} [{}]", dtype_name(ty.dtype), self.axes(&ty.axes))
    }

    fn node(&self, id: NodeId) -> String {
        let node = &self.g.nodes[id.0 as usize];
        let args = node.args.iter().map(|a| format!("%{}", a.0)).collect::<Vec<_>>().join(", ");
        let attributes = self.attributes(&node.op);
        let separator = if args.is_empty() || attributes.is_empty() { "" } else { "; " };
        format!("%{} = {}({args}{separator}{attributes}) : {}", id.0, ops::row(&node.op).name, self.ty(&node.ty))
    }

    fn attributes(&self, op: &Op) -> String {
        match op {
            Op::Read(b) => self.buffer(*b),
            Op::Const(x) => number(x.get()),
            Op::Iota(a) => self.axis(*a),
            // The dtype of a cast is the node's.
            Op::Unary(_)
            | Op::Binary(_)
            | Op::Select
            | Op::Cast(_)
            | Op::StopGradient
            | Op::StraightThrough
            | Op::Broadcast => String::new(),
            Op::Reduce(_, over) | Op::Dot(over) => format!("over {}", self.axes(over)).trim_end().to_string(),
            Op::Gather(a) | Op::CrossEntropy(a) | Op::CrossEntropyGrad(a) => format!("over {}", self.axis(*a)),
            Op::ScatterAdd(a) => format!("into {}", self.axis(*a)),
            Op::Split(from, to) => format!("{} -> {}", self.axis(*from), self.axes(to)),
            Op::Merge(from, to) | Op::Concat(from, to) => format!("{} -> {}", self.axes(from), self.axis(*to)),
            Op::Rename(from, to) | Op::TopKValues(from, to) | Op::TopKIndices(from, to) => {
                format!("{} -> {}", self.axis(*from), self.axis(*to))
            }
            Op::Slice { from, to, start } | Op::Pad { from, to, start } => {
                format!("{} -> {} at {start}", self.axis(*from), self.axis(*to))
            }
            Op::Index(a, at) | Op::Place(a, at) => format!("{} at {at}", self.axis(*a)),
            Op::Shift(a, n) => format!("{} by {n}", self.axis(*a)),
            Op::Cumsum(a, reverse) | Op::Scan(a, reverse) => {
                format!("{}{}", self.axis(*a), if *reverse { " reverse" } else { "" })
            }
            Op::Attend(how) | Op::AttendLse(how) => self.how(how),
            Op::AttendGrad(how, which) => {
                let which = match which {
                    AttendArg::Q => "q",
                    AttendArg::K => "k",
                    AttendArg::V => "v",
                };
                format!("{which} {}", self.how(how))
            }
            Op::Quantile(a, q) => format!("{} at {}", self.axis(*a), number(q.get())),
            Op::FeedbackRound { axis, low, high } => {
                format!("{} from {} to {}", self.axis(*axis), number(low.get()), number(high.get()))
            }
            Op::Random { key, normal } => format!("{} {key}", if *normal { "normal" } else { "uniform" }),
        }
    }

    fn how(&self, how: &Attend) -> String {
        let mut out = format!("{} {} scale {}", self.axis(how.time), self.axis(how.dim), number(how.scale.get()));
        if how.causal {
            out.push_str(" causal");
        }
        if let Some(window) = how.window {
            let _ = write!(out, " window {window}");
        }
        if how.document {
            out.push_str(" document");
        }
        out
    }
}

/// Shortest decimal that reads back to the same bits.
fn number(x: f64) -> String {
    if libm::fabs(x) < 1e15 && x == libm::trunc(x) && (x != 0.0 || x.is_sign_positive()) {
        format!("{x}")
    } else {
        format!("{x:?}")
    }
}

/// A name, quoted if need be.
pub(super) fn word(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.@'-".contains(c);
    if !name.is_empty() && name.chars().all(plain) && name != "->" {
        return name.to_string();
    }
    let escaped: String = name
        .chars()
        .flat_map(|c| match c {
            '"' => vec!['\\', '"'],
            '\\' => vec!['\\', '\\'],
            '\n' => vec!['\\', 'n'],
            c => vec![c],
        })
        .collect();
    format!("\"{escaped}\"")
}

fn place(origin: &Origin) -> String {
    let mut out = "@".to_string();
    if let Some((file, start, end)) = origin.span {
        let _ = write!(out, " {file}:{start}..{end}");
    }
    if !origin.visit.is_empty() {
        let _ = write!(out, " {}", word(&origin.visit));
    }
    out
}

pub(super) fn kind_name(kind: BufferKind) -> &'static str {
    match kind {
        BufferKind::Param => "param",
        BufferKind::Grad => "grad",
        BufferKind::State => "state",
        BufferKind::Input => "input",
        BufferKind::Output => "output",
        BufferKind::Const => "const",
    }
}

pub(super) fn mode_name(mode: EffectMode) -> &'static str {
    match mode {
        EffectMode::Assign => "assign",
        EffectMode::Accumulate => "accumulate",
    }
}
