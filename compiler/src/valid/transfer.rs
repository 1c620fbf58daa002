//! How each op changes what is known: one exhaustive table.
//!
//! *Takes* a node and the labels of its operands; *gives* its label; *promises* that only shift (n >= 0), causal attention, forward
//! scan and cumsum, pads, concatenations and slices at the start keep "up to t": every other op that removes, splits, merges, sorts or
//! indexes the time axis gives "all", and any such op on the batch axis mixes rows.

use super::label::{Data, Documents, Inputs, Label, Rows, Split, Time};
use crate::graph::ir::{Attend, AttendArg, AxisId, AxisRole, Binary, BufferId, BufferKind, Graph, Node, NodeId, Op};

/// The check's view of a graph.
pub(super) struct Transfer<'a> {
    pub(super) g: &'a Graph,
    pub(super) inputs: &'a Inputs,
}

impl Transfer<'_> {
    /// Labels of all nodes.
    pub(super) fn labels(&self) -> Vec<Label> {
        let mut labels: Vec<Label> = Vec::with_capacity(self.g.nodes.len());
        for node in &self.g.nodes {
            let args: Vec<_> = node.args.iter().map(|a| labels[a.0 as usize]).collect();
            labels.push(self.label(node, &args, &labels));
        }
        labels
    }

    fn label(&self, node: &Node, args: &[Label], all: &[Label]) -> Label {
        let joined = args.iter().fold(Label::FREE, |l, a| l.join(*a));
        match &node.op {
            Op::Read(buffer) => self.read(*buffer),
            Op::Const(_) | Op::Iota(_) => Label::FREE,
            // Element by element.
            Op::Unary(_) | Op::Binary(_) | Op::Cast(_) | Op::StopGradient | Op::Broadcast | Op::Random { .. } => joined,
            // The value is the first operand's.
            Op::StraightThrough => args[0],
            Op::Select => self.select(node, args, all),
            Op::Reduce(_, over) | Op::Dot(over) => self.remove(joined, over),
            // Rows of the table by position: any of them. The index keeps its own axes.
            Op::Gather(axis) => self.remove(args[0], &[*axis]).join(args[1]),
            // Sums over all axes of the index.
            Op::ScatterAdd(_) => self.remove(joined, &self.g.nodes[node.args[0].0 as usize].ty.axes),
            // No longer an axis of positions (or of rows): what was known of it is lost.
            Op::Split(from, _) => self.remove(joined, &[*from]),
            Op::Merge(from, _) => self.remove(joined, from),
            Op::Rename(from, to) => self.renamed(joined, *from, *to),
            Op::Slice { from, to, start: 0 } => self.renamed(joined, *from, *to),
            // y[i] = x[i + start]: ahead.
            Op::Slice { from, .. } => self.remove(joined, &[*from]),
            // y[i] = x[i - start]: back.
            Op::Pad { from, to, start: 0 } => self.renamed(joined, *from, *to),
            Op::Pad { from, to, .. } => self.moved_back(joined, *from, *to),
            Op::Index(axis, _) => self.remove(joined, &[*axis]),
            Op::Place(..) => joined,
            Op::Concat(from, to) => self.concat(args, from, *to),
            Op::Shift(axis, n) => self.shift(joined, *axis, *n),
            // The axis stays, each position sums over those before it (or after).
            Op::Cumsum(axis, reverse) | Op::Scan(axis, reverse) => self.running(joined, *axis, *reverse),
            Op::Attend(how) => self.attend(how, joined, self.document(node, how, 3)),
            Op::AttendLse(how) => self.attend(how, joined, self.document(node, how, 2)),
            Op::AttendGrad(how, AttendArg::Q) => self.attend(how, joined, self.document(node, how, 6)),
            // The gradient of a key comes from later queries.
            Op::AttendGrad(how, AttendArg::K | AttendArg::V) => self.remove(joined, &[how.time, how.dim]),
            Op::CrossEntropy(axis) => self.remove(args[0], &[*axis]).join(args[1]),
            Op::CrossEntropyGrad(axis) => self.remove(args[0], &[*axis]).join(args[1]).join(args[2]),
            Op::Quantile(axis, _) => self.remove(joined, &[*axis]),
            // A column sees those visited before it, in an order that the op does not know.
            Op::FeedbackRound { .. } => self.remove(joined, &self.g.nodes[node.args[3].0 as usize].ty.axes),
            Op::TopKValues(from, _) | Op::TopKIndices(from, _) => self.remove(joined, &[*from]),
        }
    }

    fn role(&self, axis: AxisId) -> AxisRole {
        self.g.axes[axis.0 as usize].role
    }

    /// The axis of positions of a buffer.
    fn time_axis(&self, axes: &[AxisId]) -> Option<AxisId> {
        axes.iter().copied().find(|a| self.role(*a) == AxisRole::Time)
    }

    fn read(&self, id: BufferId) -> Label {
        let buffer = &self.g.buffers[id.0 as usize];
        let past = self.time_axis(&buffer.ty.axes).map_or(Time::All, Time::Past);
        let data = Label { time: past, ..Label::FREE };
        match (self.inputs.data.get(&buffer.name), buffer.kind) {
            (Some(Data::Tokens(split)), _) => Label { split: *split, ..data },
            (Some(Data::Targets(split)), _) => Label { split: *split, targets: true, ..data },
            // Ids tell where documents start, which is known at every position of one.
            (Some(Data::Document), _) => data,
            (Some(Data::Host), _) => Label::FREE,
            (None, BufferKind::Input) => {
                let plain = buffer.ty.axes.iter().all(|a| self.role(*a) == AxisRole::Plain);
                if plain { Label::FREE } else { EVERYTHING }
            }
            // Weights and states: which data made them is the business of the program's phases.
            (None, BufferKind::Param | BufferKind::State | BufferKind::Grad | BufferKind::Const) => Label::FREE,
            // Content left by an earlier run of the graph.
            (None, BufferKind::Output) => EVERYTHING,
        }
    }

    /// Axes disappear, or stop being what they were.
    fn remove(&self, label: Label, axes: &[AxisId]) -> Label {
        let mut label = label;
        for axis in axes {
            if label.time == Time::Past(*axis) {
                label = label.mixed();
            }
            if self.role(*axis) == AxisRole::Batch {
                label = label.across_rows();
            }
        }
        label
    }

    /// An axis becomes another with the same positions from the start.
    fn renamed(&self, label: Label, from: AxisId, to: AxisId) -> Label {
        if self.role(from) != self.role(to) {
            return self.remove(label, &[from]);
        }
        if label.time == Time::Past(from) { Label { time: Time::Past(to), ..label } } else { label }
    }

    /// An axis becomes another in which the positions stand later.
    fn moved_back(&self, label: Label, from: AxisId, to: AxisId) -> Label {
        let moved = self.renamed(label, from, to);
        if self.role(from) == AxisRole::Batch {
            moved.across_rows()
        } else if label.time == Time::Past(from) {
            moved.reaching_back()
        } else {
            moved
        }
    }

    /// Position i of a part stands at i plus the sizes before it, so later positions see earlier parts, never the reverse.
    fn concat(&self, args: &[Label], from: &[AxisId], to: AxisId) -> Label {
        let mut out = Label::FREE;
        for (i, (label, axis)) in args.iter().zip(from).enumerate() {
            let moved = if i == 0 { self.renamed(*label, *axis, to) } else { self.moved_back(*label, *axis, to) };
            out = out.join(moved);
        }
        out
    }

    fn shift(&self, label: Label, axis: AxisId, n: i64) -> Label {
        if n == 0 {
            return label;
        }
        if self.role(axis) == AxisRole::Batch {
            return label.across_rows();
        }
        if label.time != Time::Past(axis) {
            return label;
        }
        if n > 0 { label.reaching_back() } else { label.mixed() }
    }

    fn running(&self, label: Label, axis: AxisId, reverse: bool) -> Label {
        if self.role(axis) == AxisRole::Batch {
            return label.across_rows();
        }
        if label.time != Time::Past(axis) {
            return label;
        }
        if reverse { label.mixed() } else { label.reaching_back() }
    }

    /// `document`: the ids given are the declared ones.
    fn attend(&self, how: &Attend, label: Label, document: bool) -> Label {
        let label = self.remove(label, &[how.dim]);
        if self.role(how.time) == AxisRole::Batch {
            return label.across_rows();
        }
        match label.time {
            Time::Past(axis) if axis == how.time && how.causal => {
                if document {
                    label
                } else {
                    label.reaching_back()
                }
            }
            Time::Past(axis) if axis == how.time => label.mixed(),
            Time::None | Time::Past(_) | Time::All => label,
        }
    }

    /// True if operand n of an attention op is the declared document ids.
    fn document(&self, node: &Node, how: &Attend, n: usize) -> bool {
        how.document && node.args.get(n).is_some_and(|d| self.is_document(*d))
    }

    /// The declared ids, moved or copied.
    fn is_document(&self, x: NodeId) -> bool {
        let node = &self.g.nodes[x.0 as usize];
        match &node.op {
            Op::Read(b) => self.inputs.data.get(&self.g.buffers[b.0 as usize].name) == Some(&Data::Document),
            Op::Broadcast | Op::Rename(..) => self.is_document(node.args[0]),
            _ => false,
        }
    }

    /// `select(document == shift(document, n), shift(x, n), y)` looks back within the document only.
    fn select(&self, node: &Node, args: &[Label], all: &[Label]) -> Label {
        let joined = args[0].join(args[1]).join(args[2]);
        let shifted = |x: NodeId| {
            let n = &self.g.nodes[x.0 as usize];
            match n.op {
                Op::Shift(axis, by) if by > 0 => Some((n.args[0], axis, by)),
                _ => None,
            }
        };
        let cond = &self.g.nodes[node.args[0].0 as usize];
        let Some((x, axis, by)) = shifted(node.args[1]) else { return joined };
        if cond.op != Op::Binary(Binary::Eq) {
            return joined;
        }
        let same = |a: NodeId, b: NodeId| {
            self.is_document(a) && shifted(b).is_some_and(|(d, along, n)| d == a && along == axis && n == by)
        };
        let (a, b) = (cond.args[0], cond.args[1]);
        if !same(a, b) && !same(b, a) {
            return joined;
        }
        let clean = all[x.0 as usize].documents == Documents::Own && args[2].documents == Documents::Own;
        Label { documents: if clean { Documents::Own } else { Documents::Any }, ..joined }
    }
}

/// Nothing is known.
const EVERYTHING: Label =
    Label { time: Time::All, rows: Rows::All, targets: true, documents: Documents::Any, split: Split::Val };
