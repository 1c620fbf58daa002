//! Taps: what parameters are multiplied with in the model.
//!
//! *Takes* a forward pass and the name of a parameter; *gives* the other operands of its contractions ([`Tap`]), or why they are not one thing
//! ([`Untapped`]); *promises* to count every contraction that the logits need, each visit of a loop for itself, and none that they do not need.

use crate::graph::build::{Builder, Made};
use crate::graph::fold::live;
use crate::graph::ir::{AxisId, Graph, NodeId, Op};
use crate::graph::{error::TypeError, ops};

/// What a parameter is multiplied with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The contracted axis.
    pub axis: AxisId,
    /// The other operands, in order of the graph. Each has the axis, and no other axis of the parameter.
    pub inputs: Vec<NodeId>,
}

/// Where the sums of squares of a tap are kept: an f32 buffer \[n, n\]. Parameters that are multiplied with the same have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapBuffer {
    /// Name of the buffer.
    pub name: String,
    /// The contracted axis: name and size n.
    pub axis: (String, usize),
}

impl TapBuffer {
    /// Axes of the buffer: the contracted one, and its twin.
    pub fn axes(&self) -> [(String, usize); 2] {
        [self.axis.clone(), (format!("{}'", self.axis.0), self.axis.1)]
    }
}

/// Why a parameter has no tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untapped {
    /// The logits do not need it.
    Unread,
    /// No contraction reads it, but this op (the first, and no look-up if there is another).
    Op(&'static str),
    /// A contraction runs over these axes at once.
    Several(Vec<AxisId>),
    /// Contractions run over these two axes in different places.
    Different(AxisId, AxisId),
    /// The other operand of a contraction has this axis of the parameter too: each position is multiplied with something else.
    Shared(AxisId),
}

impl Untapped {
    /// The reason, as the end of a sentence about the parameter.
    pub fn why(&self, g: &Graph) -> String {
        let name = |a: &AxisId| format!("`{}`", g.axes[a.0 as usize].name);
        match self {
            Untapped::Unread => "the logits do not depend on it".to_string(),
            Untapped::Op("gather") => "its rows are looked up, and it is multiplied with nothing".to_string(),
            Untapped::Op(op) => format!("no contraction reads it as it is, only `{op}` does"),
            Untapped::Several(axes) => {
                let names = axes.iter().map(name).collect::<Vec<_>>().join(" and ");
                format!("it is contracted over {} axes at once, {names}", axes.len())
            }
            Untapped::Different(a, b) => {
                format!("it is contracted over {} in one place and over {} in another", name(a), name(b))
            }
            Untapped::Shared(a) => format!("it is multiplied with something else at each position of {}", name(a)),
        }
    }
}

/// What the logits multiply a parameter with.
pub fn tap(g: &Graph, logits: NodeId, parameter: &str) -> Result<Tap, Untapped> {
    let live = live(g, [logits]);
    let is = |x: &NodeId| match g.nodes[x.0 as usize].op {
        Op::Read(b) => g.buffers[b.0 as usize].name == parameter,
        _ => false,
    };
    let mut tap: Option<Tap> = None;
    let mut other = Untapped::Unread;
    for node in g.nodes.iter().enumerate().filter(|(i, _)| live[*i]).map(|(_, n)| n) {
        let Some(at) = node.args.iter().position(is) else { continue };
        let Op::Dot(over) = &node.op else {
            if matches!(other, Untapped::Unread | Untapped::Op("gather")) {
                other = Untapped::Op(ops::row(&node.op).name);
            }
            continue;
        };
        let (own, input) = (&g.nodes[node.args[at].0 as usize].ty.axes, node.args[1 - at]);
        let [axis] = over[..] else { return Err(Untapped::Several(over.clone())) };
        let theirs = &g.nodes[input.0 as usize].ty.axes;
        if let Some(shared) = own.iter().find(|a| **a != axis && theirs.contains(a)) {
            return Err(Untapped::Shared(*shared));
        }
        let tap = tap.get_or_insert_with(|| Tap { axis, inputs: Vec::new() });
        if tap.axis != axis {
            return Err(Untapped::Different(tap.axis, axis));
        }
        if !tap.inputs.contains(&input) {
            tap.inputs.push(input);
        }
    }
    tap.ok_or(other)
}

/// The buffer of a tap: that of the first parameter with an equal one among `known`, which grows.
pub fn buffer(g: &Graph, tap: Tap, parameter: &str, known: &mut Vec<(Tap, TapBuffer)>) -> TapBuffer {
    if let Some((_, buffer)) = known.iter().find(|(other, _)| *other == tap) {
        return buffer.clone();
    }
    let axis = &g.axes[tap.axis.0 as usize];
    let name = format!("{}{parameter}", golf_runtime::plan::TAP);
    let buffer = TapBuffer { name, axis: (axis.name.clone(), axis.size) };
    known.push((tap, buffer.clone()));
    buffer
}

/// The sum of squares of a tap \[n, n\]: x xᵀ, over everything but the contracted axis and over all places.
pub fn squares(b: &mut Builder, tap: &Tap) -> Made {
    let twin = b.twin(tap.axis);
    let mut total: Option<NodeId> = None;
    for x in &tap.inputs {
        let over: Vec<AxisId> = b.axes(*x).iter().copied().filter(|a| *a != tap.axis).collect();
        let y = b.rename(*x, tap.axis, twin)?;
        let square = b.dot_as(*x, y, &over, &[tap.axis, twin])?;
        total = Some(match total {
            None => square,
            Some(t) => b.add(t, square)?,
        });
    }
    total.ok_or_else(|| TypeError::Invalid { op: "tap", why: "it has no inputs".to_string() })
}
