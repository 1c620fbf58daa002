//! Epilogues: the body of a cluster over the index space of a kernel's results.
//!
//! *Takes* a cluster with results at hand (a contraction, attention); *gives* the program and the addressing of what it reads and writes; *promises* the form that
//! [`crate::kernel::epilogue`] asks for.

use super::cluster::{Use, is_elementwise};
use super::contract::{Digits, Place, Space};
use super::layout::{View, dense};
use super::lower::{Lower, Memory, Slot, placed, split_offset};
use super::store::Body;
use crate::graph::build::Builder;
use crate::graph::error::TypeError;
use crate::graph::ir::{AxisId, AxisRole, BufferId, BufferKind, DType, Graph, NodeId, Op, Type};
use crate::kernel::epilogue::EpilogueArg;
use std::collections::BTreeMap;

/// Addressing that identifies an argument.
type Key = (Memory, i64, Vec<i64>, i64, i64);

/// An epilogue under construction.
pub(super) struct Epilogue<'g> {
    g: &'g Graph,
    b: Builder,
    space: &'g Space,
    /// Axis of each place.
    axis: BTreeMap<Place, AxisId>,
    value: BTreeMap<NodeId, NodeId>,
    keys: Vec<Key>,
    slots: Vec<Slot>,
    args: Vec<EpilogueArg>,
}

impl Lower<'_, '_> {
    /// Everything that a body reads and computes.
    pub(super) fn values(&mut self, out: &mut Epilogue<'_>, body: &Body) -> Result<(), String> {
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
        Ok(())
    }

    /// A value that other kernels read.
    pub(super) fn stored(&mut self, out: &mut Epilogue<'_>, n: NodeId, body: &Body) -> Result<(), String> {
        let g = self.c.g();
        let memory = self.value(n);
        let view = View { base: n, offset: 0, axes: dense(g, &self.c.p.layouts.order(g, n)) };
        out.write(n, (memory, self.c.p.storage[n.0 as usize]), &view, &body.digits[&n], None)
    }
}

/// A type error as the end of a sentence.
pub(super) fn text(e: TypeError) -> String {
    format!("its epilogue does not type: {e}")
}

impl<'g> Epilogue<'g> {
    /// Over an index space; buffer 0 is what it starts from.
    pub(super) fn new(g: &'g Graph, space: &'g Space) -> Result<Self, TypeError> {
        let mut b = Builder::new("epilogue", DType::F32);
        let mut axis = BTreeMap::new();
        let mut places = vec![Place::M, Place::N];
        places.extend((0..space.batch.len()).map(Place::Batch));
        for place in places {
            let name = format!("a{}", axis.len());
            axis.insert(place, b.axis(&name, space.group(place).size, AxisRole::Plain)?);
        }
        // As of every value, axes of size 1 are left out.
        let all: Vec<_> = space.places().iter().filter(|p| space.group(**p).size != 1).map(|p| axis[p]).collect();
        b.buffer("acc", DType::F32, &all, BufferKind::State)?;
        let value = BTreeMap::new();
        Ok(Epilogue { g, b, space, axis, value, keys: Vec::new(), slots: Vec::new(), args: Vec::new() })
    }

    /// What a node of the graph is in the program.
    pub(super) fn value(&self, n: NodeId) -> Option<NodeId> {
        self.value.get(&n).copied()
    }

    /// The program, the addressing of its buffers 1.. , and what they are.
    pub(super) fn finish(self) -> (Graph, Vec<EpilogueArg>, Vec<Slot>) {
        (super::lower::tidy(self.b.finish(), "epilogue"), self.args, self.slots)
    }

    /// Axes of the places that a value varies over, batch indices first.
    fn axes(&self, digits: &Digits) -> Vec<AxisId> {
        let varies = |p: &Place| digits.values().any(|d| d.place == *p);
        self.space.places().into_iter().filter(varies).map(|p| self.axis[&p]).collect()
    }

    fn arg(&mut self, memory: Memory, view: &View, dtype: DType, digits: &Digits) -> Result<BufferId, String> {
        let strides = self.space.linear(self.g, view, digits).ok_or("an epilogue argument is not linear in m and n")?;
        let (batch, m, n) = placed(self.space, &strides);
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
            Op::Reduce(r, _) => {
                let n = self.axis[&Place::N];
                let mut x = args[0];
                if !self.b.axes(x).contains(&n) {
                    let all = [self.b.axes(x), &[n]].concat();
                    x = self.b.broadcast(x, &all)?;
                }
                self.b.reduce(*r, x, &[n])
            }
            op if is_elementwise(op) => self.b.push(op.clone(), &args, None),
            // Only relabellings are left.
            _ => Ok(args[0]),
        }
    }

    /// Writes a value; `accumulate` says whether to add, and whether the chain itself starts from the old content.
    pub(super) fn write(
        &mut self,
        n: NodeId,
        (memory, dtype): (Memory, DType),
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
