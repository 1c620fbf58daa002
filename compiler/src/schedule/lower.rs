//! From clusters to kernel descriptions.
//!
//! *Takes* clusters and their bodies; *gives* one [`Lowered`] per kernel: description, arguments, the nodes computed; *promises* canonical
//! descriptions (names by order of first use, offsets in the argument where alignment allows), so that equal work has equal text.

use super::Error;
use super::cluster::{Clusters, Kind, is_attention};
use super::contract::{Place, Space};
use super::layout::{View, axes, buffer_of, dense, numel, size};
use super::prepare::attend_axes;
use super::store::Body;
use crate::graph::ir::{Attend, AttendArg, AxisId, BufferId, DType, Effect, EffectMode, Graph, Node, NodeId, Op};
use crate::kernel::epilogue::Epilogue;
use crate::kernel::{Kernel, attend, feedback, quantile, scatter};
use std::collections::{BTreeMap, BTreeSet};

/// Byte alignment of every argument pointer.
const ALIGN: i64 = 64;

/// Memory that an argument points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Memory {
    /// A buffer of the graph.
    Buffer(BufferId),
    /// A value stored by a kernel.
    Value(NodeId),
    /// Partial sums of a column sum.
    Partial(NodeId),
    /// The value of an effect (by number) that has to wait before it may be written.
    Waiting(usize),
    /// A result that nobody wants: cluster and number.
    Unused(usize, usize),
}

/// A name for people.
pub(super) fn name(memory: Memory) -> String {
    match memory {
        Memory::Buffer(b) => format!("buffer {}", b.0),
        Memory::Value(n) => format!("%{}", n.0),
        Memory::Partial(n) => format!("%{} partial", n.0),
        Memory::Waiting(e) => format!("effect {e}"),
        Memory::Unused(c, i) => format!("unused {c}.{i}"),
    }
}

/// An argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    /// Where.
    pub memory: Memory,
    /// Bytes from its start, a multiple of 64.
    pub offset: u64,
}

/// A kernel with its arguments.
#[derive(Clone, Debug)]
pub(super) struct Lowered {
    /// What to run.
    pub kernel: Kernel,
    /// On what.
    pub args: Vec<Slot>,
    /// Nodes whose values it computes (recomputed ones too).
    pub nodes: Vec<NodeId>,
    /// Smallest node that it exists for: kernels run in this order where data allow.
    pub key: u32,
    /// Effects it applies.
    pub effects: Vec<usize>,
}

/// Where and how an effect is written.
pub(super) struct Target {
    pub memory: Memory,
    pub dtype: DType,
    pub mode: EffectMode,
    /// The region.
    pub view: View,
}

/// Sizes of scratch values: dtype and number of elements.
pub(super) type Sizes = BTreeMap<Memory, (DType, usize)>;

/// What lowering needs and collects.
pub(super) struct Lower<'a, 'p> {
    pub c: &'a Clusters<'p>,
    pub bodies: &'a [Body],
    /// Rows per task of row clusters.
    pub blocks: Vec<usize>,
    /// Effects that may not be written in place.
    pub waiting: &'a BTreeSet<usize>,
    /// Nodes known to be symmetric matrices.
    pub symmetric: Vec<Option<(AxisId, AxisId)>>,
    pub target: crate::kernel::Target,
    pub sizes: Sizes,
}

/// Most tasks of a row kernel that leaves partial sums: every task leaves a row of them, and has to be worth it.
pub(super) fn partial_tasks(target: crate::kernel::Target) -> usize {
    match target {
        crate::kernel::Target::Cpu => 64,
        // Several blocks on each of 132 multiprocessors.
        crate::kernel::Target::Gpu(_) => 1024,
    }
}

/// Lowers every kernel that is left, in cluster order, then the delayed effects.
pub(super) fn lower(
    c: &Clusters<'_>,
    bodies: &[Body],
    waiting: &BTreeSet<usize>,
    target: crate::kernel::Target,
) -> Result<(Vec<Lowered>, Sizes), Error> {
    let partials = partial_tasks(target);
    let blocks = (0..c.list.len()).map(|i| block(c, i, &bodies[i], partials)).collect();
    let symmetric = super::symmetry::symmetric(c.g());
    let mut l = Lower { c, bodies, blocks, waiting, symmetric, target, sizes: Sizes::new() };
    let mut out = Vec::new();
    for i in 0..c.list.len() {
        if bodies[i].alive() {
            let lowered = l.cluster(i).map_err(|why| Error::new(&c.g().name, format!("kernel {i}: {why}")))?;
            out.push(lowered);
        }
    }
    for effect in waiting {
        out.push(l.delayed(*effect).map_err(|why| Error::new(&c.g().name, why))?);
    }
    Ok((out, l.sizes))
}

/// Rows per task of a cluster. Depends on shapes only.
fn block(c: &Clusters<'_>, cluster: usize, body: &Body, partials: usize) -> usize {
    let Some(outer) = c.outer(cluster) else { return 1 };
    let g = c.g();
    let inner =
        |n: &NodeId| -> usize { axes(g, *n).iter().filter(|a| !outer.contains(a)).map(|a| size(g, *a)).product() };
    let work = body.order.iter().map(inner).max().unwrap_or(1);
    rows_per_task(numel(g, outer), work, (!body.columns.is_empty()).then_some(partials))
}

/// Rows per task: some thousand elements, a power of two so that shapes share code; with partial sums at most `partials` tasks.
pub(super) fn rows_per_task(rows: usize, work: usize, partials: Option<usize>) -> usize {
    let least = partials.map_or(1, |most| rows.div_ceil(most));
    let block = (8192 / work.max(1)).max(least).max(1);
    if block >= rows { rows.max(1) } else { block.next_power_of_two().min(rows) }
}

/// Splits an element offset into whole alignment units (bytes, for the pointer) and the rest (elements, for the description).
pub(super) fn split_offset(elements: i64, dtype: DType) -> (u64, i64) {
    let unit = ALIGN / dtype.bytes() as i64;
    let whole = elements.div_euclid(unit);
    ((whole * ALIGN) as u64, elements - whole * unit)
}

impl Lower<'_, '_> {
    fn cluster(&mut self, i: usize) -> Result<Lowered, String> {
        match &self.c.list[i].kind {
            Kind::Row { .. } => self.row(i),
            Kind::Gemm { .. } => self.gemm(i),
            Kind::Attend { .. } => self.attend(i),
            Kind::Scatter => self.scatter(i),
            Kind::Quantile => self.quantile(i),
            Kind::Feedback => self.feedback(i),
        }
    }

    /// Memory of a base value.
    pub fn memory(&mut self, base: NodeId) -> Memory {
        match buffer_of(self.c.g(), base) {
            Some(b) => Memory::Buffer(b),
            None => self.value(base),
        }
    }

    /// Scratch memory of a stored value.
    pub fn value(&mut self, n: NodeId) -> Memory {
        let g = self.c.g();
        let memory = Memory::Value(n);
        self.sizes.insert(memory, (self.c.p.storage[n.0 as usize], numel(g, axes(g, n))));
        memory
    }

    /// Where an effect is written: its region of the buffer, or memory to wait in (f32 for floats, dense in the value's order).
    pub fn target(&mut self, effect: usize) -> Target {
        let g = self.c.g();
        let p = self.c.p;
        let o = &p.effects[effect];
        let dtype = g.buffers[o.buffer.0 as usize].ty.dtype;
        if !self.waiting.contains(&effect) {
            return Target { memory: Memory::Buffer(o.buffer), dtype, mode: o.mode, view: o.view() };
        }
        let dtype = if dtype.is_float() { DType::F32 } else { dtype };
        let memory = Memory::Waiting(effect);
        self.sizes.insert(memory, (dtype, numel(g, axes(g, o.value))));
        let order = self.c.p.layouts.order(g, o.value);
        let view = View { base: o.value, offset: 0, axes: dense(g, &order) };
        Target { memory, dtype, mode: EffectMode::Assign, view }
    }

    /// Smallest node among what a cluster produces.
    pub fn key(&self, i: usize) -> u32 {
        let body = &self.bodies[i];
        let effects = body.effects.iter().map(|e| self.c.p.effects[*e].value);
        body.stored.iter().copied().chain(effects).chain(body.columns.iter().copied()).map(|n| n.0).min().unwrap_or(0)
    }

    pub fn finish(&self, i: usize, kernel: Kernel, args: Vec<Slot>) -> Lowered {
        let body = &self.bodies[i];
        let computed = |n: &NodeId| matches!(body.uses.get(n), Some(u) if !matches!(u, super::cluster::Use::Leaf(_)));
        let mut nodes: Vec<_> = body.order.iter().copied().filter(computed).collect();
        nodes.extend(body.columns.iter().copied());
        Lowered { kernel, args, nodes, key: self.key(i), effects: body.effects.iter().copied().collect() }
    }

    /// A whole value as an argument.
    fn whole(&mut self, x: NodeId) -> Result<Slot, String> {
        let view = self.c.p.layouts.view(self.c.g(), x).ok_or("an operand is not in memory")?;
        let dtype = self.c.p.storage[view.base.0 as usize];
        let (offset, rest) = split_offset(view.offset, dtype);
        if rest != 0 {
            return Err("an operand starts inside a cache line".to_string());
        }
        Ok(Slot { memory: self.memory(view.base), offset })
    }

    // ---- anchors ----

    fn homed(&self, i: usize) -> Vec<NodeId> {
        (0..self.c.g().nodes.len() as u32).map(NodeId).filter(|n| self.c.home(*n) == Some(i)).collect()
    }

    fn attend(&mut self, i: usize) -> Result<Lowered, String> {
        let g = self.c.g();
        let mut homed = self.homed(i);
        homed.retain(|n| is_attention(&g.nodes[n.0 as usize].op));
        let first = &g.nodes[homed[0].0 as usize];
        let (how, pass) = match first.op {
            Op::Attend(a) | Op::AttendLse(a) => (a, attend::Pass::Forward),
            Op::AttendGrad(a, _) => (a, attend::Pass::Backward),
            _ => return Err("no attention in an attention kernel".to_string()),
        };
        let find = |want: &dyn Fn(&Op) -> bool| homed.iter().copied().find(|n| want(&g.nodes[n.0 as usize].op));
        let (q, k) = (first.args[0], first.args[1]);
        let ((batch, kv), group) = attend_axes(g, &how, axes(g, q), axes(g, k));
        let shape = Heads { how, batch, kv, group };
        let mut kernel = attend::AttendKernel {
            pass,
            batch: numel(g, &shape.batch),
            time: size(g, how.time),
            kv: numel(g, &shape.kv),
            group: numel(g, &shape.group),
            dim: size(g, how.dim),
            dtype: g.compute,
            scale: how.scale,
            causal: how.causal,
            window: how.window,
            document: how.document,
            ..nothing()
        };
        let mut args = Vec::new();
        let document = how.document.then(|| first.args[first.args.len() - 1]);
        match pass {
            attend::Pass::Forward => {
                let y = find(&|op| matches!(op, Op::Attend(_)));
                let lse = find(&|op| matches!(op, Op::AttendLse(_)));
                // Only the log-sum-exp is wanted: any tensor of the right shape can stand for the values.
                let v = y.map_or(k, |y| g.nodes[y.0 as usize].args[2]);
                kernel.q = self.operand(q, &shape, &mut args)?;
                kernel.k = self.operand(k, &shape, &mut args)?;
                kernel.v = self.operand(v, &shape, &mut args)?;
                if let Some(d) = document {
                    args.push(self.whole(d)?);
                }
                let (epilogue, more) = self.finished(i)?.unzip();
                kernel.epilogue = epilogue;
                if kernel.epilogue.is_none() {
                    kernel.y = self.result(i, 0, y, q, &shape, &mut args)?;
                }
                let rows = kernel.batch * kernel.time * kernel.kv * kernel.group;
                args.push(self.result_memory(i, 1, lse, DType::F32, rows));
                args.extend(more.unwrap_or_default());
            }
            attend::Pass::Backward => {
                kernel.q = self.operand(q, &shape, &mut args)?;
                kernel.k = self.operand(k, &shape, &mut args)?;
                kernel.v = self.operand(first.args[2], &shape, &mut args)?;
                kernel.y = self.operand(first.args[3], &shape, &mut args)?;
                args.push(self.whole(first.args[4])?);
                kernel.dy = self.operand(first.args[5], &shape, &mut args)?;
                if let Some(d) = document {
                    args.push(self.whole(d)?);
                }
                let part = |arg| find(&move |op| matches!(op, Op::AttendGrad(_, a) if *a == arg));
                kernel.dq = self.result(i, 0, part(AttendArg::Q), q, &shape, &mut args)?;
                kernel.dk = self.result(i, 1, part(AttendArg::K), k, &shape, &mut args)?;
                kernel.dv = self.result(i, 2, part(AttendArg::V), k, &shape, &mut args)?;
            }
        }
        let mut lowered = self.finish(i, Kernel::Attend(kernel), args);
        homed.retain(|n| !lowered.nodes.contains(n));
        lowered.nodes = [homed, lowered.nodes].concat();
        Ok(lowered)
    }

    /// What attention makes of its rows, if anything, and the arguments.
    fn finished(&mut self, i: usize) -> Result<Option<(Box<Epilogue>, Vec<Slot>)>, String> {
        let g = self.c.g();
        let body = &self.bodies[i];
        let given = |n: &NodeId| is_attention(&g.nodes[n.0 as usize].op);
        let Some(p) = self.c.list[i].kind.epilogue() else { return Ok(None) };
        if body.effects.is_empty() && body.stored.iter().all(given) {
            return Ok(None);
        }
        let mut out = super::lower_epilogue::Epilogue::new(g, p.space).map_err(super::lower_epilogue::text)?;
        self.values(&mut out, body)?;
        for n in body.stored.iter().filter(|n| body.digits.contains_key(n)) {
            self.stored(&mut out, *n, body)?;
        }
        for e in &body.effects {
            let value = self.c.p.effects[*e].value;
            let target = self.target(*e);
            out.write(value, (target.memory, target.dtype), &target.view, &body.digits[&value], None)?;
        }
        let (body, args, slots) = out.finish();
        Ok(Some((Box::new(Epilogue { body, args }), slots)))
    }

    /// An attention operand: its strides, and the argument.
    fn operand(&mut self, x: NodeId, shape: &Heads, args: &mut Vec<Slot>) -> Result<attend::Strides, String> {
        let view = self.c.p.layouts.view(self.c.g(), x).ok_or("an attention operand is not in memory")?;
        let dtype = self.c.p.storage[view.base.0 as usize];
        if dtype != self.c.g().compute {
            return Err(format!("an attention operand is stored as {dtype:?}"));
        }
        let memory = self.memory(view.base);
        let (offset, rest) = split_offset(view.offset, dtype);
        args.push(Slot { memory, offset });
        self.strides(&View { offset: rest, ..view }, shape)
    }

    fn strides(&self, view: &View, shape: &Heads) -> Result<attend::Strides, String> {
        let g = self.c.g();
        let along = |list: &[AxisId]| {
            let parts: Vec<_> = list
                .iter()
                .filter(|a| view.axes.iter().any(|(x, _)| x == *a))
                .map(|a| (size(g, *a), view.stride(*a)))
                .collect();
            if parts.iter().all(|(n, _)| *n == 1) {
                return Ok(0);
            }
            super::layout::merged(&parts).ok_or("attention axes do not merge".to_string())
        };
        Ok(attend::Strides {
            offset: view.offset,
            batch: along(&shape.batch)?,
            time: view.stride(shape.how.time),
            kv: along(&shape.kv)?,
            group: along(&shape.group)?,
        })
    }

    /// A result of attention: the node if it is wanted, else memory like that of `like`.
    fn result(
        &mut self,
        cluster: usize,
        number: usize,
        node: Option<NodeId>,
        like: NodeId,
        shape: &Heads,
        args: &mut Vec<Slot>,
    ) -> Result<attend::Strides, String> {
        let g = self.c.g();
        let wanted = node.filter(|n| self.bodies[cluster].stored.contains(n));
        args.push(self.result_memory(cluster, number, wanted, g.compute, numel(g, axes(g, like))));
        let group = if axes(g, like).iter().any(|a| shape.group.contains(a)) { &shape.group[..] } else { &[] };
        let order = [&shape.batch[..], &[shape.how.time], &shape.kv, group, &[shape.how.dim]].concat();
        let view = View { base: like, offset: 0, axes: dense(g, &order) };
        self.strides(&view, shape)
    }

    fn result_memory(
        &mut self,
        cluster: usize,
        number: usize,
        node: Option<NodeId>,
        dtype: DType,
        count: usize,
    ) -> Slot {
        let memory = match node.filter(|n| self.bodies[cluster].stored.contains(n)) {
            Some(n) => self.value(n),
            None => {
                let memory = Memory::Unused(cluster, number);
                self.sizes.insert(memory, (dtype, count));
                memory
            }
        };
        Slot { memory, offset: 0 }
    }

    fn scatter(&mut self, i: usize) -> Result<Lowered, String> {
        let g = self.c.g();
        let n = self.homed(i)[0];
        let node = &g.nodes[n.0 as usize];
        let (index, src) = (node.args[0], node.args[1]);
        let rows = numel(g, axes(g, index));
        let base = self.c.p.layouts.view(g, src).ok_or("the source of a scatter is not in memory")?.base;
        let body = &self.bodies[i];
        let direct = body.effects.first().copied().filter(|_| body.effects.len() == 1 && body.stored.is_empty());
        let (table, accumulate) = match direct {
            Some(e) => {
                let t = self.target(e);
                let (offset, _) = split_offset(t.view.offset, t.dtype);
                (Slot { memory: t.memory, offset }, t.mode == EffectMode::Accumulate)
            }
            None if body.effects.is_empty() => (Slot { memory: self.value(n), offset: 0 }, false),
            None => return Err("a scatter-add is written twice".to_string()),
        };
        let kernel = Kernel::Scatter(scatter::Scatter {
            rows,
            width: numel(g, axes(g, src)) / rows.max(1),
            size: axes(g, n).first().map_or(1, |a| size(g, *a)),
            src: self.c.p.storage[base.0 as usize],
            accumulate,
        });
        let args = vec![self.whole(index)?, self.whole(src)?, table];
        let mut lowered = self.finish(i, kernel, args);
        lowered.nodes = vec![n];
        Ok(lowered)
    }

    fn quantile(&mut self, i: usize) -> Result<Lowered, String> {
        let g = self.c.g();
        let n = self.homed(i)[0];
        let node = &g.nodes[n.0 as usize];
        let Op::Quantile(axis, q) = &node.op else { return Err("is no quantile".to_string()) };
        let rows = numel(g, axes(g, n));
        let kernel = Kernel::Quantile(quantile::Quantile { rows, n: size(g, *axis), q: q.get() });
        let args = vec![self.whole(node.args[0])?, Slot { memory: self.value(n), offset: 0 }];
        let mut lowered = self.finish(i, kernel, args);
        lowered.nodes = vec![n];
        Ok(lowered)
    }

    fn feedback(&mut self, i: usize) -> Result<Lowered, String> {
        let g = self.c.g();
        let n = self.homed(i)[0];
        let node = &g.nodes[n.0 as usize];
        let Op::FeedbackRound { axis, low, high } = &node.op else {
            return Err("does not round with feedback".to_string());
        };
        let columns = size(g, *axis);
        let rows = numel(g, axes(g, n)) / columns;
        let (low, high) = (low.get() as f32, high.get() as f32);
        let kernel = Kernel::Feedback(feedback::Feedback { rows, n: columns, low, high });
        let mut args = node.args.iter().map(|a| self.whole(*a)).collect::<Result<Vec<_>, _>>()?;
        args.push(Slot { memory: self.value(n), offset: 0 });
        let mut lowered = self.finish(i, kernel, args);
        lowered.nodes = vec![n];
        Ok(lowered)
    }
}

/// Head axes of an attention.
struct Heads {
    how: Attend,
    batch: Vec<AxisId>,
    kv: Vec<AxisId>,
    group: Vec<AxisId>,
}

fn nothing() -> attend::AttendKernel {
    let zero = attend::Strides { offset: 0, batch: 0, time: 0, kv: 0, group: 0 };
    attend::AttendKernel {
        pass: attend::Pass::Forward,
        batch: 1,
        time: 1,
        kv: 1,
        group: 1,
        dim: 1,
        dtype: DType::F32,
        scale: crate::graph::ir::Bits::new(1.0),
        causal: false,
        window: None,
        document: false,
        q: zero,
        k: zero,
        v: zero,
        y: zero,
        epilogue: None,
        dy: zero,
        dq: zero,
        dk: zero,
        dv: zero,
    }
}

/// Stride of each place of an index space.
pub(super) fn placed(space: &Space, strides: &BTreeMap<Place, i64>) -> (Vec<i64>, i64, i64) {
    let at = |p: Place| strides.get(&p).copied().unwrap_or(0);
    ((0..space.batch.len()).map(|i| at(Place::Batch(i))).collect(), at(Place::M), at(Place::N))
}

/// A body as part of a description: no origins, axes and buffers kept, values that nothing needs dropped.
pub(super) fn tidy(g: Graph, name: &str) -> Graph {
    let mut live = vec![false; g.nodes.len()];
    g.effects.iter().for_each(|e| live[e.value.0 as usize] = true);
    for i in (0..g.nodes.len()).rev() {
        if live[i] {
            g.nodes[i].args.iter().for_each(|a| live[a.0 as usize] = true);
        }
    }
    let mut map = BTreeMap::new();
    let mut out =
        Graph { name: name.to_string(), nodes: Vec::new(), effects: Vec::new(), origins: Vec::new(), ..g.clone() };
    for (i, node) in g.nodes.iter().enumerate().filter(|(i, _)| live[*i]) {
        map.insert(NodeId(i as u32), NodeId(out.nodes.len() as u32));
        let args = node.args.iter().map(|a| map[a]).collect();
        out.nodes.push(Node { op: node.op.clone(), args, ty: node.ty.clone() });
    }
    out.effects = g.effects.iter().map(|e| Effect { value: map[&e.value], ..*e }).collect();
    out
}
