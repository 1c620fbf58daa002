//! Brings a graph into the form the schedule works on.
//!
//! *Takes* any verified graph; *gives* an equal one in which: only needed nodes are left; identities (`StopGradient`, `StraightThrough`,
//! transpositions, exact casts) are gone; contractions without free axes on both sides are products and sums; shifts of plain axes are slices and
//! pads; sums of contractions and scatters into a gradient are separate effects; operands of anchors lie in memory as their kernels
//! need them. Copies that are needed for that are `StopGradient` nodes: here, and nowhere else, `StopGradient` means *store this*.
//! *Promises* the same buffer contents, up to rounding.

use super::Error;
use super::contract;
use super::layout::{self, Layouts, axes, buffer_of, is_role, numel, size};
use super::outputs::Output;
use crate::graph::build::{Builder, Made};
use crate::graph::fold::live;
use crate::graph::ir::{Attend, AxisId, AxisRole, Binary, DType, Effect, Graph, Node, NodeId, Op, Reduce};
use crate::kernel::Target;
use std::collections::{BTreeMap, BTreeSet};

/// A prepared graph.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// The graph; its effect list is empty.
    pub graph: Graph,
    /// Writes in order; a buffer may be accumulated into several times.
    pub effects: Vec<Output>,
    /// Storage orders and dtypes that differ from the default.
    pub layouts: Layouts,
    /// Storage dtype of every node.
    pub storage: Vec<DType>,
}

/// Prepares a graph for a target.
pub(super) fn prepare(g: &Graph, target: Target) -> Result<Prepared, Error> {
    let fail = |e: crate::graph::error::TypeError| Error::new(&g.name, format!("while preparing: {e}"));
    let empty = Graph { nodes: Vec::new(), effects: Vec::new(), origins: Vec::new(), ..g.clone() };
    let (layouts, map, wide) = (Layouts::default(), BTreeMap::new(), BTreeSet::new());
    let mut p = Prepare { b: Builder::extend(empty), layouts, map, wide };
    let live = live(g, g.effects.iter().map(|e| e.value));
    let mut orders = wanted_orders(g);
    // Kernels of a CPU convert operands while they pack them; those of a GPU copy them as they lie.
    let wide = if target == Target::Cpu { BTreeSet::new() } else { wide_values(g) };
    for (i, node) in g.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
        let id = NodeId(i as u32);
        p.b.set_origin(g.origins.get(i).cloned().unwrap_or_default());
        let new = p.node(node, orders.remove(&id)).map_err(fail)?;
        p.map.insert(id, new);
        if wide.contains(&id) {
            p.wide.insert(new);
        }
    }
    let mut effects = Vec::new();
    for effect in &g.effects {
        p.effect(&Effect { value: p.map[&effect.value], ..*effect }, &mut effects).map_err(fail)?;
    }
    let Prepare { b, layouts, .. } = p;
    let prepared = Prepared { graph: b.finish(), effects, layouts, storage: Vec::new() };
    Ok(sweep(prepared))
}

/// Storage orders that users of a value would like: that of the buffer it goes to, or of the element-wise result it is part of.
fn wanted_orders(g: &Graph) -> BTreeMap<NodeId, Vec<AxisId>> {
    let mut orders: BTreeMap<NodeId, Vec<AxisId>> = BTreeMap::new();
    let direct: BTreeMap<_, _> = g.effects.iter().rev().map(|e| (e.value, e.buffer)).collect();
    for (i, node) in g.nodes.iter().enumerate().rev() {
        let id = NodeId(i as u32);
        if let Some(b) = direct.get(&id) {
            orders.insert(id, g.buffers[b.0 as usize].ty.axes.clone());
        }
        if matches!(node.op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_)) {
            let order = orders.get(&id).unwrap_or(&node.ty.axes).clone();
            for arg in node.args.iter().filter(|a| same_set(axes(g, **a), &order) && !direct.contains_key(a)) {
                orders.insert(*arg, order.clone());
            }
        }
    }
    // The default already has batch and time axes first.
    orders.retain(|n, order| *order != layout::roles_first(g, axes(g, *n)) && *order == layout::roles_first(g, order));
    orders
}

/// Drops nodes that nothing needs any more and decides storage dtypes.
fn sweep(p: Prepared) -> Prepared {
    let live = live(&p.graph, p.effects.iter().map(|e| e.value));
    let mut map = BTreeMap::new();
    let mut graph = Graph { nodes: Vec::new(), origins: Vec::new(), effects: Vec::new(), ..p.graph.clone() };
    for (i, node) in p.graph.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
        map.insert(NodeId(i as u32), NodeId(graph.nodes.len() as u32));
        let args = node.args.iter().map(|a| map[a]).collect();
        graph.nodes.push(Node { op: node.op.clone(), args, ty: node.ty.clone() });
        graph.origins.push(p.graph.origins.get(i).cloned().unwrap_or_default());
    }
    let moved = |id: &NodeId| map.get(id).copied();
    let layouts = Layouts {
        order: p.layouts.order.iter().filter_map(|(n, o)| Some((moved(n)?, o.clone()))).collect(),
        storage: p.layouts.storage.iter().filter_map(|(n, d)| Some((moved(n)?, *d))).collect(),
    };
    let effects: Vec<_> = p.effects.iter().map(|e| Output { value: map[&e.value], ..e.clone() }).collect();
    let contracted = only_contracted(&graph, effects.iter().map(|e| e.value));
    let storage = (0..graph.nodes.len() as u32)
        .map(NodeId)
        .map(|n| match (buffer_of(&graph, n), layouts.storage.get(&n)) {
            (Some(b), _) => graph.buffers[b.0 as usize].ty.dtype,
            (None, Some(d)) => *d,
            (None, None) => layout::storage_rule(&graph, n, contracted.contains(&n)),
        })
        .collect();
    Prepared { graph, effects, layouts, storage }
}

/// Values that are used by contractions and by nothing else.
fn only_contracted(g: &Graph, written: impl Iterator<Item = NodeId>) -> BTreeSet<NodeId> {
    let n = g.nodes.len();
    let mut used = vec![false; n];
    let mut other = vec![false; n];
    written.for_each(|value| other[value.0 as usize] = true);
    for (i, node) in g.nodes.iter().enumerate().rev() {
        // A move counts as what its own users do with it.
        let fine = matches!(node.op, Op::Dot(_)) || is_move(&node.op) && used[i] && !other[i];
        for arg in &node.args {
            used[arg.0 as usize] = true;
            other[arg.0 as usize] |= !fine;
        }
    }
    (0..n).filter(|i| used[*i] && !other[*i]).map(|i| NodeId(i as u32)).collect()
}

/// Values that will lie in f32 where contractions take [`Graph::compute`].
fn wide_values(g: &Graph) -> BTreeSet<NodeId> {
    let contracted = only_contracted(g, g.effects.iter().map(|e| e.value));
    let stored = |n: NodeId| match buffer_of(g, n) {
        Some(b) => g.buffers[b.0 as usize].ty.dtype,
        None => layout::storage_rule(g, n, contracted.contains(&n)),
    };
    let all = (0..g.nodes.len() as u32).map(NodeId);
    all.filter(|n| g.compute != DType::F32 && stored(*n) == DType::F32).collect()
}

/// Ops that only move or rename elements.
pub(super) fn is_move(op: &Op) -> bool {
    matches!(op, Op::Split(..) | Op::Merge(..) | Op::Rename(..) | Op::Slice { .. } | Op::Index(..))
}

/// A graph being brought into form.
pub(super) struct Prepare {
    pub b: Builder,
    pub layouts: Layouts,
    map: BTreeMap<NodeId, NodeId>,
    /// Values that contractions take rounded: once, by the kernel that stores them if there is one, and not in every contraction.
    wide: BTreeSet<NodeId>,
}

impl Prepare {
    fn node(&mut self, node: &Node, wanted: Option<Vec<AxisId>>) -> Made {
        let args: Vec<_> = node.args.iter().map(|a| self.map[a]).collect();
        match &node.op {
            Op::StopGradient | Op::StraightThrough => Ok(args[0]),
            Op::Cast(DType::F32) if self.b.dtype(args[0]).is_float() => Ok(args[0]),
            Op::Cast(d) if self.is_exact(args[0], *d) => Ok(args[0]),
            Op::Broadcast if same_set(self.b.axes(args[0]), &node.ty.axes) => Ok(args[0]),
            Op::Shift(axis, n) if !is_role(self.b.graph(), *axis) => self.plain_shift(args[0], *axis, *n),
            Op::Reduce(r, over) => self.reduce(*r, args[0], over),
            Op::Dot(over) => self.dot(args[0], args[1], over, &node.ty.axes, wanted),
            Op::Attend(a) | Op::AttendLse(a) | Op::AttendGrad(a, _) => self.attend(node, a, args),
            Op::ScatterAdd(axis) => self.scatter(args[0], args[1], *axis),
            Op::Quantile(axis, _) => {
                let mut order: Vec<_> = self.b.axes(args[0]).iter().copied().filter(|a| a != axis).collect();
                let rest = order.clone();
                order.push(*axis);
                let x = self.store(args[0], order, DType::F32)?;
                let id = self.b.push(node.op.clone(), &[x], None)?;
                self.layouts.order.insert(id, rest);
                self.layouts.storage.insert(id, DType::F32);
                Ok(id)
            }
            Op::FeedbackRound { axis, .. } => self.feedback(node, *axis, args),
            Op::Merge(from, _) if !self.merges(args[0], from) => {
                // The merged axes have to be neighbours in memory.
                let mut order: Vec<_> = self.b.axes(args[0]).iter().copied().filter(|a| !from.contains(a)).collect();
                let at = order.iter().take_while(|a| is_role(self.b.graph(), **a)).count();
                order.splice(at..at, from.iter().copied());
                let dtype = self.default_storage(args[0]);
                let x = self.store(args[0], order, dtype)?;
                self.b.push(node.op.clone(), &[x], None)
            }
            _ => self.b.push(node.op.clone(), &args, Some(&node.ty)),
        }
    }

    fn default_storage(&self, n: NodeId) -> DType {
        layout::storage_rule(self.b.graph(), n, false)
    }

    /// A merge is a move unless it is of batch or time axes that do not lie side by side; inside a row any merge can be computed.
    fn merges(&self, x: NodeId, from: &[AxisId]) -> bool {
        let g = self.b.graph();
        if !from.iter().any(|a| is_role(g, *a)) {
            return true;
        }
        let Some(v) = self.layouts.view(g, x) else { return false };
        let parts: Vec<_> = from.iter().map(|a| (size(g, *a), v.stride(*a))).collect();
        layout::merged(&parts).is_some()
    }

    /// Rounding to this dtype changes nothing: the value was read from a buffer of it.
    fn is_exact(&self, x: NodeId, d: DType) -> bool {
        let g = self.b.graph();
        let Some(v) = self.layouts.view(g, x) else { return false };
        buffer_of(g, v.base).is_some_and(|b| g.buffers[b.0 as usize].ty.dtype == d) && d.is_float()
    }

    /// A node that makes some kernel store `x` densely in this order and dtype.
    pub(super) fn store(&mut self, x: NodeId, order: Vec<AxisId>, dtype: DType) -> Made {
        let mut id = x;
        loop {
            id = self.b.push(Op::StopGradient, &[id], None)?;
            let taken = self.layouts.order.get(&id).zip(self.layouts.storage.get(&id));
            match taken {
                Some((o, d)) if *o == order && *d == dtype => return Ok(id),
                Some(_) => {}
                None => break,
            }
        }
        self.layouts.order.insert(id, order);
        self.layouts.storage.insert(id, dtype);
        Ok(id)
    }

    /// `shift(x, n)` of a plain axis is a slice placed elsewhere.
    fn plain_shift(&mut self, x: NodeId, axis: AxisId, n: i64) -> Made {
        let total = self.b.size(axis);
        let by = n.unsigned_abs() as usize;
        if by == 0 {
            return Ok(x);
        }
        if by >= total {
            let dtype = self.b.dtype(x);
            let zero = self.b.constant_of(dtype, 0.0)?;
            let list = self.b.axes(x).to_vec();
            return self.b.broadcast(zero, &list);
        }
        let part = self.b.fresh_axis("shifted", total - by, AxisRole::Plain);
        let (from, to) = if n > 0 { (0, by) } else { (by, 0) };
        let cut = self.b.slice(x, axis, part, from)?;
        self.b.pad(cut, part, axis, to)
    }

    /// Reductions over axes inside and outside of rows: inside first.
    fn reduce(&mut self, r: Reduce, x: NodeId, over: &[AxisId]) -> Made {
        let g = self.b.graph();
        let all = self.b.axes(x);
        let roles: Vec<_> = all.iter().copied().filter(|a| is_role(g, *a)).collect();
        let outer: Vec<_> = if roles.is_empty() { all.first().copied().into_iter().collect() } else { roles };
        let (out, inner): (Vec<_>, Vec<_>) = over.iter().copied().partition(|a| outer.contains(a));
        // A sum over all of them is a column sum and stays one node.
        let column = r == Reduce::Sum && out.len() == outer.len();
        if column || out.is_empty() || inner.is_empty() {
            return self.b.reduce(r, x, over);
        }
        let x = self.b.reduce(r, x, &inner)?;
        self.b.reduce(r, x, &out)
    }

    fn dot(&mut self, x: NodeId, y: NodeId, over: &[AxisId], order: &[AxisId], wanted: Option<Vec<AxisId>>) -> Made {
        let (mut x, mut y) = (self.rounded_operand(x)?, self.rounded_operand(y)?);
        let g = self.b.graph();
        let own = |x: NodeId, y: NodeId| -> Vec<AxisId> {
            axes(g, x).iter().copied().filter(|a| !axes(g, y).contains(a)).collect()
        };
        let (m, n) = (own(x, y), own(y, x));
        if numel(g, &m) == 1 || numel(g, &n) == 1 || numel(g, over) == 1 {
            return self.small_dot(x, y, over, order);
        }
        (x, y) = (self.narrow_operand(x)?, self.narrow_operand(y)?);
        let dot = self.b.dot_as(x, y, over, order)?;
        if let Some(order) = wanted {
            self.layouts.order.insert(dot, order);
        }
        if let Some(order) = contract::result_order(self.b.graph(), &self.layouts, dot) {
            self.layouts.order.insert(dot, order);
        }
        let mut dot = dot;
        // Operands that do not lie right are copied, at most once each for strides and for dtype.
        for _ in 0..4 {
            let result = self.layouts.order.get(&dot).cloned();
            let wrong = match contract::frame(self.b.graph(), &self.layouts, dot) {
                Err(copy) => Some((copy.operand, copy.order)),
                Ok(_) => (0..2).find(|i| !self.multiplies(if *i == 0 { x } else { y })).map(|i| {
                    let arg = if i == 0 { x } else { y };
                    (i, layout::roles_first(self.b.graph(), self.b.axes(arg)))
                }),
            };
            let Some((operand, copy_order)) = wrong else { return Ok(dot) };
            let dtype = self.b.graph().compute;
            let arg = if operand == 0 { &mut x } else { &mut y };
            *arg = self.store(*arg, copy_order, dtype)?;
            dot = self.b.dot_as(x, y, over, order)?;
            if let Some(order) = result {
                self.layouts.order.insert(dot, order);
            }
        }
        Ok(dot)
    }

    /// Whether a contraction can take the stored dtype of this operand.
    fn multiplies(&self, x: NodeId) -> bool {
        let g = self.b.graph();
        let Some(v) = self.layouts.view(g, x) else { return true };
        let dtype = match buffer_of(g, v.base) {
            Some(b) => g.buffers[b.0 as usize].ty.dtype,
            None => self.layouts.storage.get(&v.base).copied().unwrap_or(self.b.dtype(v.base)),
        };
        matches!(dtype, DType::F32 | DType::Bf16)
    }

    /// `dot(cast(x), y) == dot(x, y)`: the contraction rounds its operands itself. Only worth it when x lies in a buffer already.
    fn rounded_operand(&mut self, x: NodeId) -> Made {
        let node = self.b.node(x).clone();
        let g = self.b.graph();
        match node.op {
            Op::Cast(d) if d == g.compute => {
                let in_buffer = |v: layout::View| buffer_of(g, v.base).is_some();
                if self.layouts.view(g, node.args[0]).is_some_and(in_buffer) { Ok(node.args[0]) } else { Ok(x) }
            }
            _ if is_move(&node.op) => {
                let inner = self.rounded_operand(node.args[0])?;
                self.moved(x, inner)
            }
            _ => Ok(x),
        }
    }

    /// A move `x` of another value of the same type.
    fn moved(&mut self, x: NodeId, inner: NodeId) -> Made {
        let node = self.b.node(x).clone();
        if inner == node.args[0] { Ok(x) } else { self.b.push(node.op, &[inner], None) }
    }

    /// An operand of a contraction in [`Graph::compute`], where it would lie in f32: a cast that all contractions share.
    fn narrow_operand(&mut self, x: NodeId) -> Made {
        if self.wide.contains(&x) {
            let order = self.layouts.order.get(&x).cloned();
            let cast = self.b.cast(x, self.b.graph().compute)?;
            self.layouts.order.extend(order.map(|order| (cast, order)));
            return Ok(cast);
        }
        let node = self.b.node(x).clone();
        if !is_move(&node.op) {
            return Ok(x);
        }
        let inner = self.narrow_operand(node.args[0])?;
        self.moved(x, inner)
    }

    /// A contraction with nothing to multiply: an outer product, or a sum of element-wise products.
    fn small_dot(&mut self, x: NodeId, y: NodeId, over: &[AxisId], order: &[AxisId]) -> Made {
        let mut all = self.b.axes(x).to_vec();
        for axis in self.b.axes(y) {
            if !all.contains(axis) {
                all.push(*axis);
            }
        }
        let roles = layout::roles_first(self.b.graph(), &all);
        let wide = if numel(self.b.graph(), self.b.axes(x)) >= numel(self.b.graph(), self.b.axes(y)) { x } else { y };
        let narrow = if wide == x { y } else { x };
        let wide = if self.b.axes(wide).len() == all.len() { wide } else { self.b.broadcast(wide, &roles)? };
        let product = self.b.binary(Binary::Mul, wide, narrow)?;
        let sum = self.reduce(Reduce::Sum, product, over)?;
        debug_assert!(same_set(self.b.axes(sum), order));
        Ok(sum)
    }

    fn attend(&mut self, node: &Node, a: &Attend, args: Vec<NodeId>) -> Made {
        let grad = matches!(node.op, Op::AttendGrad(..));
        let k_axes = self.b.axes(args[1]).to_vec();
        let (shared, group) = attend_axes(self.b.graph(), a, self.b.axes(args[0]), &k_axes);
        let (batch, kv) = shared;
        let order = |time: bool, group: &[AxisId], dim: bool| -> Vec<AxisId> {
            let time = if time { vec![a.time] } else { vec![] };
            let dim = if dim { vec![a.dim] } else { vec![] };
            [&batch[..], &time, &kv, group, &dim].concat()
        };
        let mut new = Vec::new();
        for (i, arg) in args.iter().enumerate() {
            let document = a.document && i + 1 == args.len();
            let lse = grad && i == 4;
            let (want, dtype) = if document {
                (order(true, &[], false).into_iter().filter(|x| !kv.contains(x)).collect(), DType::I32)
            } else if lse {
                (order(true, &group, false), DType::F32)
            } else {
                (order(true, if i == 1 || i == 2 { &[] } else { &group }, true), self.b.graph().compute)
            };
            new.push(self.attend_operand(*arg, want, dtype, lse || document, (&batch, &kv, &group))?);
        }
        let id = self.b.push(node.op.clone(), &new, None)?;
        let lse = matches!(node.op, Op::AttendLse(_));
        let like_k =
            matches!(node.op, Op::AttendGrad(_, crate::graph::ir::AttendArg::K | crate::graph::ir::AttendArg::V));
        self.layouts.order.insert(id, order(true, if like_k { &[] } else { &group }, !lse));
        self.layouts.storage.insert(id, if lse { DType::F32 } else { self.b.graph().compute });
        Ok(id)
    }

    /// An attention operand in memory: as it is if its strides fit, else a copy in the order wanted.
    fn attend_operand(
        &mut self,
        x: NodeId,
        want: Vec<AxisId>,
        dtype: DType,
        dense: bool,
        (batch, kv, group): (&[AxisId], &[AxisId], &[AxisId]),
    ) -> Made {
        let mut x = x;
        if !same_set(self.b.axes(x), &want) {
            x = self.b.broadcast(x, &want)?;
        }
        let g = self.b.graph();
        let Some(v) = self.layouts.view(g, x) else { return self.store(x, want, dtype) };
        let parts = |list: &[AxisId]| -> Vec<_> { list.iter().map(|a| (size(g, *a), v.stride(*a))).collect() };
        let fits = if dense {
            let strides = layout::dense(g, &want);
            v.offset == 0 && strides.iter().all(|(a, s)| size(g, *a) == 1 || v.stride(*a) == *s)
        } else {
            let unit = want.last().is_some_and(|a| size(g, *a) == 1 || v.stride(*a) == 1);
            let mine = |list: &[AxisId]| -> Vec<_> { list.iter().copied().filter(|a| want.contains(a)).collect() };
            unit && [batch, kv, group].iter().all(|list| layout::merged(&parts(&mine(list))).is_some())
        };
        let stored = match buffer_of(g, v.base) {
            Some(b) => Some(g.buffers[b.0 as usize].ty.dtype),
            None if is_f32(g, v.base) => self.layouts.storage.get(&v.base).copied(),
            None => Some(self.b.dtype(v.base)),
        };
        if fits && stored == Some(dtype) {
            return Ok(x);
        }
        if fits && stored.is_none() {
            self.layouts.storage.insert(v.base, dtype);
            return Ok(x);
        }
        self.store(x, want, dtype)
    }

    /// Weights, factor and result with the columns innermost, everything in f32 (scales are often kept narrower).
    fn feedback(&mut self, node: &Node, axis: AxisId, mut args: Vec<NodeId>) -> Made {
        let without = |x: NodeId| -> Vec<AxisId> { self.b.axes(x).iter().copied().filter(|a| *a != axis).collect() };
        let (rows, visits) = (without(args[0]), without(args[3]));
        let columns = [&rows[..], &[axis]].concat();
        let orders = [columns.clone(), rows, vec![axis], [&[axis], &visits[..]].concat()];
        for (i, order) in orders.into_iter().enumerate() {
            let dtype = if i == 2 { DType::I32 } else { DType::F32 };
            args[i] = self.attend_operand(args[i], order, dtype, true, (&[], &[], &[]))?;
        }
        let id = self.b.push(node.op.clone(), &args, None)?;
        self.layouts.order.insert(id, columns);
        self.layouts.storage.insert(id, DType::F32);
        Ok(id)
    }

    fn scatter(&mut self, index: NodeId, src: NodeId, axis: AxisId) -> Made {
        let g = self.b.graph();
        let rows = layout::roles_first(g, self.b.axes(index));
        let rest: Vec<_> = self.b.axes(src).iter().copied().filter(|a| !rows.contains(a)).collect();
        let order = [&rows[..], &rest[..]].concat();
        let index = self.dense_operand(index, rows, DType::I32)?;
        let dtype = if is_f32(self.b.graph(), src) { self.default_storage(src) } else { DType::F32 };
        let src = self.dense_operand(src, order, dtype)?;
        let id = self.b.scatter_add(index, src, axis)?;
        self.layouts.order.insert(id, [&[axis], &rest[..]].concat());
        self.layouts.storage.insert(id, DType::F32);
        Ok(id)
    }

    /// `x` if it lies densely in this order, else a copy.
    fn dense_operand(&mut self, x: NodeId, order: Vec<AxisId>, dtype: DType) -> Made {
        let g = self.b.graph();
        if let Some(v) = self.layouts.view(g, x) {
            let whole = buffer_of(g, v.base)
                .is_none_or(|b| matches!(g.buffers[b.0 as usize].ty.dtype, DType::F32 | DType::Bf16 | DType::I32));
            let strides = layout::dense(g, &order);
            let fits = v.offset == 0 && strides.iter().all(|(a, s)| size(g, *a) == 1 || v.stride(*a) == *s);
            if fits && whole {
                return Ok(x);
            }
        }
        self.store(x, order, dtype)
    }
}

/// Batch (role batch) and key-value axes of an attention, and the group axes that only queries have.
pub(super) fn attend_axes(
    g: &Graph,
    a: &Attend,
    q: &[AxisId],
    k: &[AxisId],
) -> ((Vec<AxisId>, Vec<AxisId>), Vec<AxisId>) {
    let shared = k.iter().copied().filter(|x| *x != a.time && *x != a.dim);
    let group = q.iter().copied().filter(|x| !k.contains(x)).collect();
    (shared.partition(|x| g.axes[x.0 as usize].role == AxisRole::Batch), group)
}

fn is_f32(g: &Graph, n: NodeId) -> bool {
    g.nodes[n.0 as usize].ty.dtype == DType::F32
}

pub(super) fn same_set(a: &[AxisId], b: &[AxisId]) -> bool {
    a.len() == b.len() && a.iter().all(|x| b.contains(x))
}
