//! Effects as writes of strided regions.
//!
//! *Takes* the effects of a graph; *gives* [`Output`]s; *promises* the same buffer contents up to the rounding of sums.
//!
//! `buffer += a + b` is `buffer += a; buffer += b` where a or b is a contraction or a scatter-add, so that its sum continues the buffer's
//! own chain; `buffer += place(x)` and `buffer += pad(x)` add x to the region it is placed at and leave the zeros out.

use super::contract::{self, Frame};
use super::layout::{self, View, axes, size};
use super::prepare::{Prepare, is_move, same_set};
use crate::graph::error::TypeError;
use crate::graph::ir::{AxisId, Binary, BufferId, DType, Effect, EffectMode, Graph, NodeId, Op};
use std::collections::BTreeMap;

/// A value written to a region of a buffer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Output {
    /// Target.
    pub buffer: BufferId,
    /// Value.
    pub value: NodeId,
    /// Assign or accumulate.
    pub mode: EffectMode,
    /// First element of the region.
    pub offset: i64,
    /// Element stride of each axis of the value.
    pub strides: Vec<(AxisId, i64)>,
}

impl Output {
    /// The region as a view.
    pub fn view(&self) -> View {
        View { base: self.value, offset: self.offset, axes: self.strides.clone() }
    }

    /// Whether two regions certainly have no element in common.
    pub fn apart(&self, other: &Output, g: &Graph) -> bool {
        let end = |o: &Output| o.offset + o.strides.iter().map(|(a, s)| (size(g, *a) as i64 - 1) * s).sum::<i64>();
        self.buffer != other.buffer || end(self) < other.offset || end(other) < self.offset
    }
}

type Outcome = Result<(), TypeError>;

impl Prepare {
    /// Adds the outputs of an effect.
    pub(super) fn effect(&mut self, effect: &Effect, out: &mut Vec<Output>) -> Outcome {
        let g = self.b.graph();
        let ty = &g.buffers[effect.buffer.0 as usize].ty;
        let strides = layout::dense(g, &ty.axes);
        let float = ty.dtype.is_float();
        let whole = Output { buffer: effect.buffer, value: effect.value, mode: effect.mode, offset: 0, strides };
        if effect.mode == EffectMode::Accumulate && float {
            self.accumulate(whole, out)
        } else {
            self.write(whole, out)
        }
    }

    /// `region += value`, term by term where that helps.
    fn accumulate(&mut self, region: Output, out: &mut Vec<Output>) -> Outcome {
        let mut terms = Vec::new();
        self.terms(region.value, &mut terms);
        // Values to add to one region, by region.
        let mut parts: Vec<(Output, Vec<NodeId>)> = Vec::new();
        for x in terms {
            let part = self.unplaced(Output { value: x, ..region.clone() });
            let place = |o: &Output| (o.offset, o.strides.iter().copied().collect::<BTreeMap<_, _>>());
            match parts.iter_mut().find(|(o, _)| place(o) == place(&part)) {
                Some((_, values)) => values.push(part.value),
                None => parts.push((part.clone(), vec![part.value])),
            }
        }
        let anchor = |this: &Self, x: &NodeId| matches!(this.b.node(*x).op, Op::Dot(_) | Op::ScatterAdd(_));
        for (part, values) in parts {
            if values.len() == 1 && part.value != region.value {
                // What was placed may itself be a sum.
                self.accumulate(part, out)?;
                continue;
            }
            let (chains, rest): (Vec<_>, Vec<_>) = values.into_iter().partition(|x| anchor(self, x));
            for value in chains {
                self.write(Output { value, ..part.clone() }, out)?;
            }
            let mut sum = None;
            for x in rest {
                sum = Some(match sum {
                    None => x,
                    Some(s) => self.b.add(s, x)?,
                });
            }
            if let Some(value) = sum {
                self.write(Output { value, ..part }, out)?;
            }
        }
        Ok(())
    }

    /// The region of a larger one that a placed value does not leave at zero.
    fn unplaced(&self, mut o: Output) -> Output {
        loop {
            let node = self.b.node(o.value);
            match &node.op {
                Op::Place(axis, at) => {
                    let stride = o.view().stride(*axis);
                    o.offset += stride * *at as i64;
                    o.strides.retain(|(a, _)| a != axis);
                }
                Op::Pad { from, to, start } => {
                    o.offset += o.view().stride(*to) * *start as i64;
                    o.strides.iter_mut().filter(|(a, _)| a == to).for_each(|(a, _)| *a = *from);
                }
                _ => return o,
            }
            o.value = node.args[0];
        }
    }

    /// The terms of a sum of equally shaped values.
    fn terms(&self, x: NodeId, out: &mut Vec<NodeId>) {
        let node = self.b.node(x);
        let whole = |a: &NodeId| same_set(self.b.axes(*a), &node.ty.axes);
        if node.op == Op::Binary(Binary::Add) && node.args.iter().all(whole) {
            node.args.iter().for_each(|a| self.terms(*a, out));
        } else {
            out.push(x);
        }
    }

    /// An output whose value some kernel can write there; other values are stored by a copy of theirs.
    fn write(&mut self, mut o: Output, out: &mut Vec<Output>) -> Outcome {
        let g = self.b.graph();
        let dtype = g.buffers[o.buffer.0 as usize].ty.dtype;
        let direct = match self.b.node(o.value).op {
            Op::Dot(_) => contract::frame(g, &self.layouts, o.value).is_ok_and(|f| contract_writes(g, &f, &o)),
            Op::ScatterAdd(_) => {
                let own: BTreeMap<_, _> = layout::dense(g, &self.layouts.order(g, o.value)).into_iter().collect();
                let dense = o.strides.iter().all(|(a, s)| size(g, *a) == 1 || own[a] == *s);
                dense && dtype == DType::F32 && o.offset % 16 == 0
            }
            Op::Read(_) | Op::Const(_) | Op::Iota(_) | Op::Attend(_) | Op::AttendLse(_) | Op::AttendGrad(..) => false,
            Op::Quantile(..) | Op::FeedbackRound { .. } | Op::Shift(..) | Op::Gather(_) => false,
            ref op => !is_move(op),
        };
        if !direct {
            let mut order: Vec<_> = o.strides.iter().map(|(a, s)| (std::cmp::Reverse(*s), *a)).collect();
            order.sort_unstable();
            let order = order.into_iter().map(|(_, a)| a).collect();
            let dtype = if dtype.is_float() { DType::F32 } else { dtype };
            o.value = self.store(o.value, order, dtype)?;
        }
        out.push(o);
        Ok(())
    }
}

/// Whether a contraction's result can be written straight to a region: n has to run along memory.
fn contract_writes(g: &Graph, frame: &Frame, o: &Output) -> bool {
    debug_assert!(same_set(axes(g, o.value), &o.strides.iter().map(|s| s.0).collect::<Vec<_>>()));
    let linear = frame.linear(g, &o.view(), &frame.digits(g));
    linear.is_some_and(|s| s.get(&contract::Place::N) == Some(&1))
}
