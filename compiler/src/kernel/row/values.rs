//! The value graph of a row body: the graph's nodes with losses written out, broadcasts gone and equal values shared.
//!
//! *Takes* a row body; *gives* [`Values`]; *promises* that every value lists exactly the axes it really varies along, in the
//! storage order of the node it came from, and that operands come first.

use super::Row;
use super::loops::Lane;
use crate::graph::ir::{AxisId, Binary, Bits, DType, EffectMode, Graph, Node, Op, Reduce, Unary};
use std::collections::HashMap;

/// Index of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Val(pub u32);

/// What a value is. Views change which axes index the operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Kind {
    /// Argument number.
    Read(usize),
    Const(Bits),
    Iota(AxisId),
    Unary(Unary),
    Binary(Binary),
    Select,
    Cast(DType),
    /// Over these axes, outermost first in the operand's storage order; the operand need not vary along them.
    Reduce(Reduce, Vec<AxisId>),
    Split(AxisId, Vec<AxisId>),
    Merge(Vec<AxisId>, AxisId),
    Rename(AxisId, AxisId),
    Slice {
        from: AxisId,
        to: AxisId,
        start: usize,
    },
    Pad {
        from: AxisId,
        to: AxisId,
        start: usize,
    },
    Index(AxisId, usize),
    Place(AxisId, usize),
    Concat(Vec<AxisId>, AxisId),
    Shift(AxisId, i64),
    /// `(x, index)`: x at a computed position of an axis, clamped into it.
    At(AxisId),
    /// `(b)` or `(a, b)`: `h = a * h + b` along an axis.
    Scan(AxisId, bool),
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Value {
    pub kind: Kind,
    pub args: Vec<Val>,
    pub lane: Lane,
    /// Axes it varies along, in storage order.
    pub axes: Vec<AxisId>,
}

/// A write of the body.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Output {
    /// Argument number.
    pub arg: usize,
    pub value: Val,
    pub add: bool,
    pub per_task: bool,
}

/// The value graph.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Values<'a> {
    pub row: &'a Row,
    pub list: Vec<Value>,
    pub outputs: Vec<Output>,
    /// Sizes of axes that only the value graph has; they are numbered after the body's.
    pub extra: Vec<usize>,
}

impl<'a> Values<'a> {
    /// Builds the value graph of a row body. Errors name the op and why it cannot be in a row kernel.
    pub fn of(row: &'a Row) -> Result<Self, String> {
        let mut b = Build {
            values: Values { row, list: Vec::new(), outputs: Vec::new(), extra: Vec::new() },
            known: HashMap::new(),
        };
        let graph = &row.graph;
        let mut map: Vec<Result<Val, String>> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            let args: Result<Vec<Val>, String> = node.args.iter().map(|a| map[a.0 as usize].clone()).collect();
            // Nodes that only a per-task effect uses are errors until that effect is made.
            map.push(args.and_then(|args| b.node(graph, node, &args)));
        }
        for effect in &graph.effects {
            let arg = effect.buffer.0 as usize;
            let per_task = row.args.get(arg).ok_or("an effect without an argument")?.per_task;
            let value = if per_task {
                b.per_task(&map, effect.value.0 as usize)?
            } else {
                map[effect.value.0 as usize].clone()?
            };
            b.values.outputs.push(Output { arg, value, add: effect.mode == EffectMode::Accumulate, per_task });
        }
        Ok(b.values)
    }

    /// A value.
    pub fn get(&self, v: Val) -> &Value {
        &self.list[v.0 as usize]
    }

    /// Number of positions of an axis.
    pub fn size(&self, axis: AxisId) -> usize {
        let own = &self.row.graph.axes;
        own.get(axis.0 as usize).map_or_else(|| self.extra[axis.0 as usize - own.len()], |a| a.size)
    }

    /// Name of an axis, for messages.
    pub fn name(&self, axis: AxisId) -> &str {
        self.row.graph.axes.get(axis.0 as usize).map_or("other", |a| &a.name)
    }

    /// Whether rows are numbered by this axis.
    pub fn is_outer(&self, axis: AxisId) -> bool {
        self.row.outer.contains(&axis)
    }

    /// The axes inside a row that a value varies along.
    pub fn inner_axes(&self, v: Val) -> Vec<AxisId> {
        self.get(v).axes.iter().copied().filter(|&a| !self.is_outer(a)).collect()
    }

    /// Elements per row.
    pub fn numel(&self, v: Val) -> usize {
        self.inner_axes(v).iter().map(|&a| self.size(a)).product()
    }

    /// Arguments that are both read and written.
    pub fn in_place(&self, arg: usize) -> bool {
        self.outputs.iter().any(|o| o.arg == arg) && self.list.iter().any(|v| v.kind == Kind::Read(arg))
    }
}

struct Build<'a> {
    values: Values<'a>,
    // Look-up only: its order is never observed.
    known: HashMap<Value, Val>,
}

impl Build<'_> {
    fn push(&mut self, kind: Kind, args: &[Val], lane: Lane, axes: Vec<AxisId>) -> Val {
        let value = Value { kind, args: args.to_vec(), lane, axes };
        if let Some(&v) = self.known.get(&value) {
            return v;
        }
        let v = Val(self.values.list.len() as u32);
        self.values.list.push(value.clone());
        self.known.insert(value, v);
        v
    }

    /// Axes of an element-wise result: the union, the operand with most axes first.
    fn union(&self, args: &[Val]) -> Vec<AxisId> {
        let mut lists: Vec<&[AxisId]> = args.iter().map(|&a| &self.values.get(a).axes[..]).collect();
        lists.sort_by_key(|l| std::cmp::Reverse(l.len()));
        let mut axes: Vec<AxisId> = Vec::new();
        for &a in lists.into_iter().flatten() {
            if !axes.contains(&a) {
                axes.push(a);
            }
        }
        axes
    }

    /// An element-wise value whose axes are stored in the order of `like`, as far as it has them.
    fn each(&mut self, kind: Kind, args: &[Val], lane: Lane, like: &[AxisId]) -> Val {
        let mut axes = self.union(args);
        axes.sort_by_key(|a| like.iter().position(|b| a == b).unwrap_or(usize::MAX));
        self.push(kind, args, lane, axes)
    }

    fn constant(&mut self, x: f64, lane: Lane) -> Val {
        self.push(Kind::Const(Bits::new(x)), &[], lane, Vec::new())
    }

    fn node(&mut self, g: &Graph, node: &Node, args: &[Val]) -> Result<Val, String> {
        let lane = Lane::of(node.ty.dtype);
        let like = &node.ty.axes;
        let of = |b: &Self, i: usize| b.values.get(args[i]).clone();
        // A view of a value that does not vary along the view's axis is the value itself.
        let replaced = |x: &Value, from: &[AxisId], to: &[AxisId]| -> Option<Vec<AxisId>> {
            if !x.axes.iter().any(|a| from.contains(a)) {
                return None;
            }
            let mut axes: Vec<AxisId> = x.axes.iter().copied().filter(|a| !from.contains(a)).collect();
            axes.extend(to);
            axes.sort_by_key(|a| like.iter().position(|b| a == b).unwrap_or(usize::MAX));
            Some(axes)
        };
        let view = |b: &mut Self, kind: Kind, from: &[AxisId], to: &[AxisId]| {
            let x = of(b, 0);
            match replaced(&x, from, to) {
                Some(axes) => b.push(kind, args, lane, axes),
                None => args[0],
            }
        };
        // Axes that appear whether or not the operand varies along them.
        let with = |b: &Self, i: usize, drop: &[AxisId], add: &[AxisId]| {
            let mut axes: Vec<AxisId> =
                of(b, i).axes.into_iter().filter(|a| !drop.contains(a) && !add.contains(a)).collect();
            axes.extend(add);
            axes.sort_by_key(|a| like.iter().position(|b| a == b).unwrap_or(usize::MAX));
            axes
        };
        self.no_outer(&node.op)?;
        Ok(match &node.op {
            Op::Read(b) => {
                let (axes, strides) = (&g.buffers[b.0 as usize].ty.axes, &self.values.row.args[b.0 as usize].strides);
                let varying = axes.iter().zip(strides).filter(|(_, stride)| **stride != 0).map(|(a, _)| *a);
                self.push(Kind::Read(b.0 as usize), &[], lane, varying.collect())
            }
            Op::Const(x) => self.push(Kind::Const(*x), &[], lane, Vec::new()),
            Op::Iota(axis) => self.push(Kind::Iota(*axis), &[], lane, vec![*axis]),
            Op::Unary(u) => self.each(Kind::Unary(*u), args, lane, like),
            Op::Binary(o) => self.each(Kind::Binary(*o), args, lane, like),
            Op::Select => self.each(Kind::Select, args, lane, like),
            Op::Cast(to) => match (of(self, 0).lane, to) {
                (Lane::F32, DType::F32) | (Lane::I32, DType::I32) | (Lane::Bool, DType::Bool) => args[0],
                _ => self.each(Kind::Cast(*to), args, lane, like),
            },
            Op::StopGradient | Op::Broadcast | Op::StraightThrough => args[0],
            Op::Reduce(kind, over) => {
                let operand = &g.nodes[node.args[0].0 as usize].ty.axes;
                self.reduce(*kind, args[0], over, operand)?
            }
            Op::Gather(axis) => {
                let index = of(self, 1);
                let mut axes: Vec<AxisId> = of(self, 0).axes.into_iter().filter(|a| a != axis).collect();
                axes.retain(|a| !index.axes.contains(a));
                axes.extend(&index.axes);
                axes.sort_by_key(|a| like.iter().position(|b| a == b).unwrap_or(usize::MAX));
                self.push(Kind::At(*axis), args, lane, axes)
            }
            Op::Split(from, to) => view(self, Kind::Split(*from, to.clone()), &[*from], to),
            Op::Merge(from, to) => {
                // All positions of `to` are needed even if the operand varies along only some of `from`.
                view(self, Kind::Merge(from.clone(), *to), from, &[*to])
            }
            Op::Rename(from, to) => view(self, Kind::Rename(*from, *to), &[*from], &[*to]),
            Op::Slice { from, to, start } => {
                view(self, Kind::Slice { from: *from, to: *to, start: *start }, &[*from], &[*to])
            }
            Op::Pad { from, to, start } => {
                let axes = with(self, 0, &[*from], &[*to]);
                self.push(Kind::Pad { from: *from, to: *to, start: *start }, args, lane, axes)
            }
            Op::Index(axis, at) => view(self, Kind::Index(*axis, *at), &[*axis], &[]),
            Op::Place(axis, at) => {
                let axes = with(self, 0, &[], &[*axis]);
                self.push(Kind::Place(*axis, *at), args, lane, axes)
            }
            Op::Concat(from, to) => {
                let mut axes = self.union(args);
                axes.retain(|a| !from.contains(a));
                axes.push(*to);
                axes.sort_by_key(|a| like.iter().position(|b| a == b).unwrap_or(usize::MAX));
                self.push(Kind::Concat(from.clone(), *to), args, lane, axes)
            }
            Op::Shift(axis, n) => {
                let axes = with(self, 0, &[], &[*axis]);
                self.push(Kind::Shift(*axis, *n), args, lane, axes)
            }
            Op::Cumsum(axis, reverse) => {
                let axes = with(self, 0, &[], &[*axis]);
                self.push(Kind::Scan(*axis, *reverse), args, lane, axes)
            }
            Op::Scan(axis, reverse) => {
                let mut axes = self.union(args);
                if !axes.contains(axis) {
                    axes.push(*axis);
                }
                axes.sort_by_key(|a| like.iter().position(|b| a == b).unwrap_or(usize::MAX));
                self.push(Kind::Scan(*axis, *reverse), args, lane, axes)
            }
            Op::CrossEntropy(axis) => {
                let operand = &g.nodes[node.args[0].0 as usize].ty.axes;
                let (_, _, lse) = self.softmax(args[0], *axis, operand)?;
                let mut axes: Vec<AxisId> = of(self, 0).axes;
                axes.retain(|a| a != axis);
                let target = of(self, 1);
                axes.retain(|a| !target.axes.contains(a));
                axes.extend(&target.axes);
                axes.sort_by_key(|a| like.iter().position(|b| a == b).unwrap_or(usize::MAX));
                let picked = self.push(Kind::At(*axis), args, Lane::F32, axes);
                self.each(Kind::Binary(Binary::Sub), &[lse, picked], Lane::F32, like)
            }
            Op::CrossEntropyGrad(axis) => {
                let operand = &g.nodes[node.args[0].0 as usize].ty.axes;
                let (e, sum, _) = self.softmax(args[0], *axis, operand)?;
                let scale = self.each(Kind::Unary(Unary::Recip), &[sum], Lane::F32, like);
                let p = self.each(Kind::Binary(Binary::Mul), &[e, scale], Lane::F32, like);
                let iota = self.push(Kind::Iota(*axis), &[], Lane::I32, vec![*axis]);
                let hit = self.each(Kind::Binary(Binary::Eq), &[iota, args[1]], Lane::Bool, like);
                let (one, zero) = (self.constant(1.0, Lane::F32), self.constant(0.0, Lane::F32));
                let hot = self.each(Kind::Select, &[hit, one, zero], Lane::F32, like);
                let d = self.each(Kind::Binary(Binary::Sub), &[p, hot], Lane::F32, like);
                self.each(Kind::Binary(Binary::Mul), &[d, args[2]], Lane::F32, like)
            }
            Op::TopKValues(from, to) => self.top(args[0], *from, *to, like, false),
            Op::TopKIndices(from, to) => self.top(args[0], *from, *to, like, true),
            Op::Dot(_)
            | Op::ScatterAdd(_)
            | Op::Attend(_)
            | Op::AttendLse(_)
            | Op::AttendGrad(..)
            | Op::Quantile(..)
            | Op::FeedbackRound { .. }
            | Op::Random { .. } => {
                let name = crate::graph::ops::row(&node.op).name;
                return Err(format!("`{name}` cannot be part of a row kernel"));
            }
        })
    }

    /// Views and scans must leave the outer axes alone.
    fn no_outer(&self, op: &Op) -> Result<(), String> {
        let axes: Vec<AxisId> = match op {
            Op::Split(a, to) => [&[*a], &to[..]].concat(),
            Op::Merge(from, to) => [&[*to], &from[..]].concat(),
            Op::Rename(a, b) => vec![*a, *b],
            Op::Slice { from, to, .. } | Op::Pad { from, to, .. } => vec![*from, *to],
            Op::Index(a, _) | Op::Place(a, _) | Op::Cumsum(a, _) | Op::Scan(a, _) => vec![*a],
            Op::Gather(a) | Op::CrossEntropy(a) | Op::CrossEntropyGrad(a) => vec![*a],
            Op::Concat(from, to) => [&[*to], &from[..]].concat(),
            Op::TopKValues(from, to) | Op::TopKIndices(from, to) => vec![*from, *to],
            Op::Read(_)
            | Op::Const(_)
            | Op::Iota(_)
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Select
            | Op::Cast(_)
            | Op::StopGradient
            | Op::StraightThrough
            | Op::Broadcast
            | Op::Reduce(..)
            | Op::Dot(_)
            | Op::ScatterAdd(_)
            | Op::Shift(..)
            | Op::Attend(_)
            | Op::AttendLse(_)
            | Op::AttendGrad(..)
            | Op::Quantile(..)
            | Op::FeedbackRound { .. }
            | Op::Random { .. } => return Ok(()),
        };
        match axes.iter().find(|&&a| self.values.is_outer(a)) {
            None => Ok(()),
            Some(&a) => Err(format!(
                "`{}` of a row kernel on the outer axis `{}`",
                crate::graph::ops::row(op).name,
                self.values.name(a)
            )),
        }
    }

    fn reduce(&mut self, kind: Reduce, x: Val, over: &[AxisId], operand: &[AxisId]) -> Result<Val, String> {
        if let Some(a) = over.iter().find(|&&a| self.values.is_outer(a)) {
            let name = self.values.name(*a);
            return Err(format!("a reduction over the outer axis `{name}` that is not a per-task output"));
        }
        let value = self.values.get(x).clone();
        // A maximum over an axis along which nothing changes is the value itself; a sum still counts.
        let counted = |a: &AxisId| over.contains(a) && (kind == Reduce::Sum || value.axes.contains(a));
        let over: Vec<AxisId> = operand.iter().copied().filter(counted).collect();
        if over.is_empty() {
            return Ok(x);
        }
        let axes = value.axes.iter().copied().filter(|a| !over.contains(a)).collect();
        Ok(self.push(Kind::Reduce(kind, over), &[x], value.lane, axes))
    }

    /// `(exp(x - max), their sum, log-sum-exp)` along an axis.
    fn softmax(&mut self, x: Val, axis: AxisId, operand: &[AxisId]) -> Result<(Val, Val, Val), String> {
        let max = self.reduce(Reduce::Max, x, &[axis], operand)?;
        let z = self.each(Kind::Binary(Binary::Sub), &[x, max], Lane::F32, operand);
        let e = self.each(Kind::Unary(Unary::Exp), &[z], Lane::F32, operand);
        let sum = self.reduce(Reduce::Sum, e, &[axis], operand)?;
        let log = self.each(Kind::Unary(Unary::Log), &[sum], Lane::F32, operand);
        let lse = self.each(Kind::Binary(Binary::Add), &[max, log], Lane::F32, operand);
        Ok((e, sum, lse))
    }

    /// The largest values along `from`, or their positions: the rank of a value is the number of values before it, and result k is the
    /// one of rank k. Quadratic in the size of `from`: meant for tens of positions.
    fn top(&mut self, x: Val, from: AxisId, to: AxisId, like: &[AxisId], positions: bool) -> Val {
        let other = AxisId((self.values.row.graph.axes.len() + self.values.extra.len()) as u32);
        self.values.extra.push(self.values.size(from));
        let value = self.values.get(x).clone();
        let axes: Vec<AxisId> = value.axes.iter().map(|&a| if a == from { other } else { a }).collect();
        let y = if axes == value.axes { x } else { self.push(Kind::Rename(from, other), &[x], value.lane, axes) };
        let i = self.push(Kind::Iota(from), &[], Lane::I32, vec![from]);
        let j = self.push(Kind::Iota(other), &[], Lane::I32, vec![other]);
        let mut both = |op, a, b| self.each(Kind::Binary(op), &[a, b], Lane::Bool, like);
        let (larger, equal, earlier) = (both(Binary::Gt, y, x), both(Binary::Eq, y, x), both(Binary::Lt, j, i));
        let tie = both(Binary::And, equal, earlier);
        let before = both(Binary::Or, larger, tie);
        let before = self.each(Kind::Cast(DType::I32), &[before], Lane::I32, like);
        let ranks = self.values.get(before).axes.iter().copied().filter(|a| *a != other).collect();
        let rank = self.push(Kind::Reduce(Reduce::Sum, vec![other]), &[before], Lane::I32, ranks);
        let k = self.push(Kind::Iota(to), &[], Lane::I32, vec![to]);
        let hit = self.each(Kind::Binary(Binary::Eq), &[rank, k], Lane::Bool, like);
        let (what, lane) = if positions { (i, Lane::I32) } else { (x, value.lane) };
        let zero = self.constant(0.0, lane);
        let picked = self.each(Kind::Select, &[hit, what, zero], lane, like);
        let axes = self.values.get(picked).axes.iter().copied().filter(|a| *a != from).collect();
        self.push(Kind::Reduce(Reduce::Sum, vec![from]), &[picked], lane, axes)
    }

    /// The part of a per-task sum that one row contributes.
    fn per_task(&mut self, map: &[Result<Val, String>], node: usize) -> Result<Val, String> {
        let g = &self.values.row.graph;
        let node = &g.nodes[node];
        let Op::Reduce(Reduce::Sum, over) = &node.op else {
            return Err("a per-task output that is not a sum over the outer axes".into());
        };
        if !self.values.row.outer.iter().all(|a| over.contains(a)) {
            return Err("a per-task output that does not sum over all outer axes".into());
        }
        let operand = node.args[0];
        let inner: Vec<AxisId> = over.iter().copied().filter(|&a| !self.values.is_outer(a)).collect();
        let x = map[operand.0 as usize].clone()?;
        self.reduce(Reduce::Sum, x, &inner, &g.nodes[operand.0 as usize].ty.axes)
    }
}
