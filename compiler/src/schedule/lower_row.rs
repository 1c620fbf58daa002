//! Row kernels: the body of a cluster as a graph over its own axes.
//!
//! *Takes* a row cluster; *gives* its [`Row`]; *promises* the form that [`crate::kernel::row`] asks for: values have all outer axes first, or
//! none; reads that vary over some of them are addressed with stride 0 along the others.

use super::cluster::{Kind, Use};
use super::layout::{View, axes, dense, numel, size};
use super::lower::{Lower, Lowered, Memory, Slot, Target, split_offset};
use crate::graph::build::Builder;
use crate::graph::error::TypeError;
use crate::graph::ir::{AxisId, AxisRole, BufferId, BufferKind, DType, EffectMode, Graph, NodeId, Op, Reduce, Type};
use crate::kernel::Kernel;
use crate::kernel::row::{Row, RowArg};
use std::collections::BTreeMap;

/// Addressing that identifies an argument: memory, elements from its start, stride by body axis.
type Key = (Memory, i64, BTreeMap<AxisId, i64>);

/// A body under construction.
struct Body<'g> {
    g: &'g Graph,
    b: Builder,
    /// Body axes by graph axis.
    axis: BTreeMap<AxisId, AxisId>,
    /// Graph axes iterated, and the body's.
    outer: Vec<AxisId>,
    rows: Vec<AxisId>,
    value: BTreeMap<NodeId, NodeId>,
    keys: Vec<Key>,
    slots: Vec<Slot>,
    args: Vec<RowArg>,
}

impl Lower<'_, '_> {
    /// The row kernel of a cluster.
    pub(super) fn row(&mut self, i: usize) -> Result<Lowered, String> {
        let Kind::Row { outer } = &self.c.list[i].kind else { return Err("is no row kernel".to_string()) };
        let g = self.c.g();
        let body = &self.bodies[i];
        let mut out = Body::new(g, outer);
        for n in &body.order {
            let value = match &body.uses[n] {
                Use::Leaf(view) => {
                    let memory = self.memory(view.base);
                    let dtype = self.c.p.storage[view.base.0 as usize];
                    out.leaf(*n, view, memory, dtype).map_err(text)?
                }
                Use::Partial(source) => {
                    let rows = numel(g, self.c.outer(*source).unwrap_or_default());
                    let tasks = rows.div_ceil(self.blocks[*source]);
                    self.partial(*n, tasks);
                    out.partial(*n, tasks).map_err(text)?
                }
                Use::Compute => out.compute(*n).map_err(text)?,
                Use::Acc => return Err("a product in a row kernel".to_string()),
            };
            out.value.insert(*n, value);
        }
        for n in &body.stored {
            let memory = self.value(*n);
            let view = View { base: *n, offset: 0, axes: dense(g, &self.c.p.layouts.order(g, *n)) };
            out.write(*n, memory, self.c.p.storage[n.0 as usize], &view, EffectMode::Assign).map_err(text)?;
        }
        for e in &body.effects {
            let p = self.c.p;
            let effect = &p.effects[*e];
            let Target { memory, dtype, mode, view } = self.target(*e);
            out.write(effect.value, memory, dtype, &view, mode).map_err(text)?;
        }
        let rows = numel(g, outer);
        for n in &body.columns {
            let tasks = rows.div_ceil(self.blocks[i]);
            let memory = self.partial(*n, tasks);
            out.column(*n, memory).map_err(text)?;
        }
        let Body { b, rows, slots, args, .. } = out;
        let row = Row {
            graph: super::lower::tidy(b.finish(), "row"),
            outer: rows,
            block: self.blocks[i],
            args,
            exact: self.exact(),
        };
        let row = super::flatten::flatten(&row).unwrap_or(row);
        Ok(self.finish(i, Kernel::Row(row), slots))
    }

    /// A GPU's graph that computes in f32 asks for the CPU's bits: a quantiser, whose codes are to be the same whatever packs. Graphs in bf16 take
    /// what the special function unit gives.
    fn exact(&self) -> bool {
        self.target != crate::kernel::Target::Cpu && self.c.g().compute == DType::F32
    }

    /// Memory of the partial sums of a column sum: one row per task.
    fn partial(&mut self, n: NodeId, tasks: usize) -> Memory {
        let g = self.c.g();
        self.sizes.insert(Memory::Partial(n), (DType::F32, tasks * numel(g, axes(g, n))));
        Memory::Partial(n)
    }

    /// The kernel that writes an effect that had to wait.
    pub(super) fn delayed(&mut self, effect: usize) -> Result<Lowered, String> {
        let p = self.c.p;
        let e = &p.effects[effect];
        let g = self.c.g();
        let Target { memory, dtype, view, .. } = self.target(effect);
        let order = self.c.p.layouts.order(g, e.value);
        let outer: Vec<_> = if numel(g, &order) <= 4096 { Vec::new() } else { order[..1].to_vec() };
        let block = super::lower::rows_per_task(numel(g, &outer), numel(g, &order) / numel(g, &outer), None);
        let mut out = Body::new(g, &outer);
        let value = out.leaf(e.value, &view, memory, dtype).map_err(text)?;
        out.value.insert(e.value, value);
        let dtype = g.buffers[e.buffer.0 as usize].ty.dtype;
        out.write(e.value, Memory::Buffer(e.buffer), dtype, &e.view(), e.mode).map_err(text)?;
        let Body { b, rows, slots, args, .. } = out;
        let row = Row { graph: super::lower::tidy(b.finish(), "row"), outer: rows, block, args, exact: self.exact() };
        let row = super::flatten::flatten(&row).unwrap_or(row);
        Ok(Lowered { kernel: Kernel::Row(row), args: slots, nodes: Vec::new(), key: u32::MAX, effects: vec![effect] })
    }
}

fn text(e: TypeError) -> String {
    format!("its body does not type: {e}")
}

impl<'g> Body<'g> {
    fn new(g: &'g Graph, outer: &[AxisId]) -> Self {
        let mut body = Body {
            g,
            b: Builder::new("row", DType::F32),
            axis: BTreeMap::new(),
            outer: outer.to_vec(),
            rows: Vec::new(),
            value: BTreeMap::new(),
            keys: Vec::new(),
            slots: Vec::new(),
            args: Vec::new(),
        };
        body.rows = outer.iter().map(|a| body.axis(*a)).collect();
        body
    }

    /// The body's axis for a graph axis.
    fn axis(&mut self, a: AxisId) -> AxisId {
        if let Some(known) = self.axis.get(&a) {
            return *known;
        }
        let name = format!("a{}", self.b.graph().axes.len());
        let new = self.b.fresh_axis(&name, size(self.g, a), AxisRole::Plain);
        self.axis.insert(a, new);
        new
    }

    fn axes(&mut self, list: &[AxisId]) -> Vec<AxisId> {
        list.iter().map(|a| self.axis(*a)).collect()
    }

    /// Axes of a type in the body: all outer axes if it has any of them, then the others.
    fn promoted(&mut self, list: &[AxisId], full: bool) -> Vec<AxisId> {
        let any = full || list.iter().any(|a| self.outer.contains(a));
        let inner: Vec<_> = list.iter().copied().filter(|a| !self.outer.contains(a)).collect();
        let inner = self.axes(&inner);
        if any { [&self.rows[..], &inner].concat() } else { inner }
    }

    /// The argument for some memory addressed this way; strides by body axis. Gives its buffer.
    fn arg(
        &mut self,
        memory: Memory,
        offset: i64,
        axes: &[AxisId],
        strides: Vec<i64>,
        dtype: DType,
    ) -> Result<BufferId, TypeError> {
        let by_axis: BTreeMap<_, _> = axes.iter().copied().zip(strides.iter().copied()).collect();
        let key = (memory, offset, by_axis);
        if let Some(i) = self.keys.iter().position(|k| *k == key) {
            return Ok(BufferId(i as u32));
        }
        let (pointer, rest) = split_offset(offset, dtype);
        let name = format!("p{}", self.keys.len());
        let id = self.b.buffer(&name, dtype, axes, BufferKind::State)?;
        self.keys.push(key);
        self.slots.push(Slot { memory, offset: pointer });
        self.args.push(RowArg { offset: rest, strides, per_task: false });
        Ok(id)
    }

    fn leaf(&mut self, n: NodeId, view: &View, memory: Memory, dtype: DType) -> Result<NodeId, TypeError> {
        let typed: Vec<_> = axes(self.g, n).to_vec();
        let list = self.promoted(&typed, false);
        let mut strides = vec![0; list.len()];
        for (axis, stride) in &view.axes {
            let mine = self.axis(*axis);
            if let Some(at) = list.iter().position(|a| *a == mine) {
                strides[at] = *stride;
            }
        }
        let buffer = self.arg(memory, view.offset, &list, strides, dtype)?;
        self.b.read(buffer)
    }

    /// Reads partial sums and adds them, in task order.
    fn partial(&mut self, n: NodeId, tasks: usize) -> Result<NodeId, TypeError> {
        let kept: Vec<_> = axes(self.g, n).to_vec();
        let name = format!("a{}", self.b.graph().axes.len());
        let task = self.b.fresh_axis(&name, tasks, AxisRole::Plain);
        let count = numel(self.g, &kept) as i64;
        let list = self.promoted(&kept, false);
        let by_axis: BTreeMap<_, _> = dense(self.g, &kept).into_iter().map(|(a, s)| (self.axis[&a], s)).collect();
        let at = list.iter().take_while(|a| self.rows.contains(a)).count();
        let mut order = list.clone();
        order.insert(at, task);
        let strides =
            order.iter().map(|a| if *a == task { count } else { by_axis.get(a).copied().unwrap_or(0) }).collect();
        let buffer = self.arg(Memory::Partial(n), 0, &order, strides, DType::F32)?;
        let read = self.b.read(buffer)?;
        self.b.reduce(Reduce::Sum, read, &[task])
    }

    fn compute(&mut self, n: NodeId) -> Result<NodeId, TypeError> {
        let node = &self.g.nodes[n.0 as usize];
        let args: Vec<_> = node.args.iter().map(|a| self.value[a]).collect();
        let full = args.iter().any(|a| self.rows.first().is_some_and(|r| self.b.axes(*a).contains(r)));
        let one = |this: &mut Self, a: &AxisId| this.axis(*a);
        let op = match &node.op {
            Op::StopGradient | Op::StraightThrough => return Ok(args[0]),
            Op::Iota(a) => {
                let axis = one(self, a);
                let count = self.b.iota(axis)?;
                let rows = self.rows.clone();
                return if rows.contains(&axis) { self.b.broadcast(count, &rows) } else { Ok(count) };
            }
            Op::Broadcast | Op::Place(..) | Op::Random { .. } | Op::Const(_) => {
                let axes = self.promoted(&node.ty.axes, full);
                let op = match &node.op {
                    Op::Place(a, at) => Op::Place(one(self, a), *at),
                    op => op.clone(),
                };
                return self.b.push(op, &args, Some(&Type { dtype: node.ty.dtype, axes }));
            }
            Op::Reduce(r, over) => Op::Reduce(*r, self.axes(over)),
            Op::Split(a, to) => Op::Split(one(self, a), self.axes(to)),
            Op::Merge(from, a) => Op::Merge(self.axes(from), one(self, a)),
            Op::Concat(from, a) => Op::Concat(self.axes(from), one(self, a)),
            Op::Rename(a, b) => Op::Rename(one(self, a), one(self, b)),
            Op::Slice { from, to, start } => Op::Slice { from: one(self, from), to: one(self, to), start: *start },
            Op::Pad { from, to, start } => Op::Pad { from: one(self, from), to: one(self, to), start: *start },
            Op::Index(a, at) => Op::Index(one(self, a), *at),
            Op::Gather(a) => Op::Gather(one(self, a)),
            Op::Shift(a, by) => Op::Shift(one(self, a), *by),
            Op::Cumsum(a, reverse) => Op::Cumsum(one(self, a), *reverse),
            Op::Scan(a, reverse) => Op::Scan(one(self, a), *reverse),
            Op::CrossEntropy(a) => Op::CrossEntropy(one(self, a)),
            Op::CrossEntropyGrad(a) => Op::CrossEntropyGrad(one(self, a)),
            Op::TopKValues(a, b) => Op::TopKValues(one(self, a), one(self, b)),
            Op::TopKIndices(a, b) => Op::TopKIndices(one(self, a), one(self, b)),
            op @ (Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_)) => op.clone(),
            op @ (Op::Read(_)
            | Op::Dot(_)
            | Op::ScatterAdd(_)
            | Op::Attend(_)
            | Op::AttendLse(_)
            | Op::AttendGrad(..)
            | Op::Quantile(..)
            | Op::FeedbackRound { .. }) => {
                let why = "has no place in a row kernel".to_string();
                return Err(TypeError::Invalid { op: crate::graph::ops::row(op).name, why });
            }
        };
        self.b.push(op, &args, None)
    }

    /// Writes a value to memory with the strides of a view.
    fn write(
        &mut self,
        n: NodeId,
        memory: Memory,
        dtype: DType,
        view: &View,
        mode: EffectMode,
    ) -> Result<(), TypeError> {
        let mut value = self.value[&n];
        let mut list = self.b.axes(value).to_vec();
        if list.len() < self.rows.len() + axes(self.g, n).iter().filter(|a| !self.outer.contains(a)).count() {
            // The value does not vary over the rows (a constant): write it to each.
            list = self.promoted(axes(self.g, n), true);
            value = self.b.broadcast(value, &list)?;
        }
        let by_axis: BTreeMap<_, _> = view.axes.iter().map(|(a, s)| (self.axis(*a), *s)).collect();
        let strides = list.iter().map(|a| by_axis.get(a).copied().unwrap_or(0)).collect();
        let buffer = self.arg(memory, view.offset, &list, strides, dtype)?;
        match mode {
            EffectMode::Assign => self.b.assign(buffer, value),
            EffectMode::Accumulate => self.b.accumulate(buffer, value),
        }
    }

    /// Writes this task's part of a column sum.
    fn column(&mut self, n: NodeId, memory: Memory) -> Result<(), TypeError> {
        let node = &self.g.nodes[n.0 as usize];
        let Op::Reduce(r, over) = &node.op else {
            return Err(TypeError::Invalid { op: "sum", why: "a column sum is no reduction".to_string() });
        };
        let over = self.axes(over);
        let value = self.b.reduce(*r, self.value[&node.args[0]], &over)?;
        let kept: Vec<_> = node.ty.axes.clone();
        let by_axis: BTreeMap<_, _> = dense(self.g, &kept).into_iter().map(|(a, s)| (self.axis(a), s)).collect();
        let list = self.b.axes(value).to_vec();
        let strides = list.iter().map(|a| by_axis.get(a).copied().unwrap_or(0)).collect();
        let buffer = self.arg(memory, 0, &list, strides, DType::F32)?;
        if let Some(arg) = self.args.get_mut(buffer.0 as usize) {
            arg.per_task = true;
        }
        self.b.assign(buffer, value)
    }
}
