//! Contractions: operands and epilogue of a cluster.
//!
//! *Takes* a contraction cluster; *gives* its [`Gemm`]; *promises* that the epilogue is an element-wise program over m, n and the batch
//! indices, and that a bare accumulation continues the chain of its buffer.

use super::cluster::{Kind, Use, is_elementwise};
use super::contract::{Digits, Frame, Place};
use super::layout::{View, dense, size};
use super::lower::{Lower, Lowered, Memory, Slot, placed, split_offset};
use crate::graph::build::Builder;
use crate::graph::error::TypeError;
use crate::graph::ir::{AxisId, AxisRole, BufferId, BufferKind, DType, EffectMode, Graph, NodeId, Op, Type};
use crate::kernel::Kernel;
use crate::kernel::gemm::{EpilogueArg, Gemm, Operand};
use std::collections::BTreeMap;

/// Addressing that identifies an argument.
type Key = (Memory, i64, Vec<i64>, i64, i64);

struct Epilogue<'g> {
    g: &'g Graph,
    b: Builder,
    frame: &'g Frame,
    /// Axis of each place.
    axis: BTreeMap<Place, AxisId>,
    value: BTreeMap<NodeId, NodeId>,
    keys: Vec<Key>,
    slots: Vec<Slot>,
    args: Vec<EpilogueArg>,
}

impl Lower<'_, '_> {
    /// The contraction of a cluster.
    pub(super) fn gemm(&mut self, i: usize) -> Result<Lowered, String> {
        let Kind::Gemm { dot, frame, .. } = &self.c.list[i].kind else { return Err("is no contraction".to_string()) };
        let g = self.c.g();
        let body = &self.bodies[i];
        let mut slots = Vec::new();
        let a = self.factor(frame, &frame.a, Place::M, frame.k_strides.0, &mut slots)?;
        let b = self.factor(frame, &frame.b, Place::N, frame.k_strides.1, &mut slots)?;
        let mut out = Epilogue::new(g, frame).map_err(text)?;
        for n in &body.order {
            let digits = &body.digits[n];
            let value = match &body.uses[n] {
                Use::Acc => out.b.read(BufferId(0)).map_err(text)?,
                Use::Leaf(view) => {
                    let memory = self.memory(view.base);
                    let dtype = self.c.p.storage[view.base.0 as usize];
                    out.leaf(view, memory, dtype, digits)?
                }
                Use::Compute => out.compute(*n, digits).map_err(text)?,
                Use::Partial(_) => return Err("a column sum in an epilogue".to_string()),
            };
            out.value.insert(*n, value);
        }
        let acc = out.value.get(dot).copied();
        let single = body.stored.is_empty() && body.effects.len() == 1;
        let mut accumulate = false;
        for n in &body.stored {
            let memory = self.value(*n);
            let view = View { base: *n, offset: 0, axes: dense(g, &self.c.p.layouts.order(g, *n)) };
            out.write(*n, memory, self.c.p.storage[n.0 as usize], &view, &body.digits[n], None)?;
        }
        for e in &body.effects {
            let p = self.c.p;
            let effect = &p.effects[*e];
            let super::lower::Target { memory, dtype, mode, view } = self.target(*e);
            let bare = single && dtype == DType::F32 && out.value.get(&effect.value).copied() == acc;
            accumulate = mode == EffectMode::Accumulate && bare;
            let mode = match mode {
                EffectMode::Assign => None,
                EffectMode::Accumulate => Some(bare),
            };
            out.write(effect.value, memory, dtype, &view, &body.digits[&effect.value], mode)?;
        }
        let results = body.stored.iter().copied().chain(body.effects.iter().map(|e| self.c.p.effects[*e].value));
        let pair = self.symmetric[dot.0 as usize].filter(|(r, s)| {
            frame.m.axes == [*r] && frame.n.axes == [*s] || frame.m.axes == [*s] && frame.n.axes == [*r]
        });
        // Nothing is known about the old content of a buffer that is added to.
        let adds = body.effects.iter().any(|e| self.c.p.effects[*e].mode == EffectMode::Accumulate);
        let symmetric =
            pair.is_some() && !adds && results.into_iter().all(|n| same_pair(self.symmetric[n.0 as usize], pair));
        let Epilogue { b: builder, slots: more, args, .. } = out;
        slots.extend(more);
        let kernel = Gemm {
            batch: frame.batch.iter().map(|x| x.size).collect(),
            m: frame.m.size,
            n: frame.n.size,
            k: frame.k,
            a,
            b,
            compute: g.compute,
            symmetric,
            accumulate,
            epilogue: super::lower::tidy(builder.finish(), "epilogue"),
            args,
            cut: None,
            library: false,
        };
        let mut lowered = self.finish(i, Kernel::Gemm(kernel), slots);
        if !lowered.nodes.contains(dot) {
            lowered.nodes.push(*dot);
        }
        Ok(lowered)
    }

    /// A matrix operand: strides along its free index, k and the batch indices.
    fn factor(
        &mut self,
        frame: &Frame,
        view: &View,
        free: Place,
        k: i64,
        slots: &mut Vec<Slot>,
    ) -> Result<Operand, String> {
        let g = self.c.g();
        let dtype = self.c.p.storage[view.base.0 as usize];
        if !matches!(dtype, DType::F32 | DType::Bf16) {
            return Err(format!("an operand is stored as {dtype:?}"));
        }
        let along = |place: Place| {
            let list = &frame.group(place).axes;
            let has = list.iter().any(|a| view.axes.iter().any(|(x, _)| x == a));
            let parts: Vec<_> = list.iter().map(|a| (size(g, *a), view.stride(*a))).collect();
            if has { super::layout::merged(&parts).ok_or("operand axes do not merge") } else { Ok(0) }
        };
        let (pointer, offset) = split_offset(view.offset, dtype);
        let memory = self.memory(view.base);
        slots.push(Slot { memory, offset: pointer });
        let batch = (0..frame.batch.len()).map(|i| along(Place::Batch(i))).collect::<Result<_, _>>()?;
        Ok(Operand { dtype, offset, row: along(free)?, k, batch })
    }
}

fn same_pair(a: Option<(AxisId, AxisId)>, b: Option<(AxisId, AxisId)>) -> bool {
    match (a, b) {
        (Some((r, s)), Some((x, y))) => (r, s) == (x, y) || (r, s) == (y, x),
        _ => false,
    }
}

fn text(e: TypeError) -> String {
    format!("its epilogue does not type: {e}")
}

impl<'g> Epilogue<'g> {
    fn new(g: &'g Graph, frame: &'g Frame) -> Result<Self, TypeError> {
        let mut b = Builder::new("epilogue", DType::F32);
        let mut axis = BTreeMap::new();
        let mut places = vec![Place::M, Place::N];
        places.extend((0..frame.batch.len()).map(Place::Batch));
        for place in places {
            let name = format!("a{}", axis.len());
            axis.insert(place, b.axis(&name, frame.group(place).size, AxisRole::Plain)?);
        }
        let all: Vec<_> = frame.places().iter().map(|p| axis[p]).collect();
        b.buffer("acc", DType::F32, &all, BufferKind::State)?;
        let value = BTreeMap::new();
        Ok(Epilogue { g, b, frame, axis, value, keys: Vec::new(), slots: Vec::new(), args: Vec::new() })
    }

    /// Axes of the places that a value varies over, batch indices first.
    fn axes(&self, digits: &Digits) -> Vec<AxisId> {
        let varies = |p: &Place| digits.values().any(|d| d.place == *p);
        self.frame.places().into_iter().filter(varies).map(|p| self.axis[&p]).collect()
    }

    fn arg(&mut self, memory: Memory, view: &View, dtype: DType, digits: &Digits) -> Result<BufferId, String> {
        let strides = self.frame.linear(self.g, view, digits).ok_or("an epilogue argument is not linear in m and n")?;
        let (batch, m, n) = placed(self.frame, &strides);
        let key = (memory, view.offset, batch.clone(), m, n);
        if let Some(i) = self.keys.iter().position(|k| *k == key) {
            return Ok(BufferId(i as u32 + 1));
        }
        let (pointer, offset) = split_offset(view.offset, dtype);
        let axes = self.axes(digits);
        let id = self.b.buffer(&format!("p{}", self.keys.len() + 1), dtype, &axes, BufferKind::State).map_err(text)?;
        self.keys.push(key);
        self.slots.push(Slot { memory, offset: pointer });
        self.args.push(EpilogueArg { offset, batch, m, n });
        Ok(id)
    }

    fn leaf(&mut self, view: &View, memory: Memory, dtype: DType, digits: &Digits) -> Result<NodeId, String> {
        let buffer = self.arg(memory, view, dtype, digits)?;
        self.b.read(buffer).map_err(text)
    }

    fn compute(&mut self, n: NodeId, digits: &Digits) -> Result<NodeId, TypeError> {
        let node = &self.g.nodes[n.0 as usize];
        let args: Vec<_> = node.args.iter().map(|a| self.value[a]).collect();
        match &node.op {
            Op::StopGradient | Op::StraightThrough => Ok(args[0]),
            Op::Const(_) => self.b.push(node.op.clone(), &[], Some(&Type { dtype: node.ty.dtype, axes: Vec::new() })),
            Op::Iota(a) => match digits.get(a) {
                Some(d) => {
                    let axis = self.axis[&d.place];
                    self.b.iota(axis)
                }
                None => Ok(self.b.int(0)),
            },
            Op::Broadcast => {
                let axes = self.axes(digits);
                self.b.broadcast(args[0], &axes)
            }
            op if is_elementwise(op) => self.b.push(op.clone(), &args, None),
            // Only relabellings are left.
            _ => Ok(args[0]),
        }
    }

    /// Writes a value; `accumulate` says whether to add, and whether the chain itself starts from the old content.
    fn write(
        &mut self,
        n: NodeId,
        memory: Memory,
        dtype: DType,
        view: &View,
        digits: &Digits,
        accumulate: Option<bool>,
    ) -> Result<(), String> {
        let mut value = self.value[&n];
        let all = self.axes(digits);
        if self.b.axes(value).len() < all.len() {
            value = self.b.broadcast(value, &all).map_err(text)?;
        }
        let buffer = self.arg(memory, view, dtype, digits)?;
        match accumulate {
            None => self.b.assign(buffer, value).map_err(text),
            Some(true) => self.b.accumulate(buffer, value).map_err(text),
            Some(false) => {
                let old = self.b.read(buffer).map_err(text)?;
                let sum = self.b.add(old, value).map_err(text)?;
                self.b.assign(buffer, sum).map_err(text)
            }
        }
    }
}
