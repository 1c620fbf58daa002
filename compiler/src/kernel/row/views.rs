//! Views that need no computation: values that lie in an argument or in scratch as strided memory.
//!
//! *Takes* a value; *gives* its memory and strides by axis, if it is an argument, kept, or split, merged, renamed, sliced or indexed from such.

use super::eval::Evaluator;
use super::loops::{Affine, Mem, Var};
use super::space::Env;
use super::values::{Kind, Val};
use crate::graph::ir::AxisId;
use std::collections::BTreeMap;

/// A strided view of a memory.
pub(super) struct Layout {
    pub mem: Mem,
    offset: i64,
    strides: BTreeMap<AxisId, i64>,
    /// The read or kept value it views.
    pub source: Val,
}

impl Layout {
    /// Address at these positions, and whether it is in another row than the one computed. `None`: scratch holds no such row.
    pub fn address(&self, e: &Evaluator, env: &Env) -> Option<(Affine, bool)> {
        let mut at = Affine::constant(self.offset);
        for (axis, stride) in &self.strides {
            at = at.plus(env.get(axis)?, *stride);
        }
        let axes = &e.values.get(self.source).axes;
        let mut foreign = false;
        for (k, outer) in e.values.row.outer.iter().enumerate() {
            let own = axes.contains(outer) && env[outer] == Affine::var(Var::Outer(k), 1);
            foreign |= !own && e.program.rows() > 1;
            // Scratch holds the current row only.
            if axes.contains(outer) && !own && matches!(self.mem, Mem::Scratch(_)) {
                return None;
            }
        }
        Some((at, foreign))
    }
}

impl Evaluator<'_> {
    /// How a value lies in memory if it is an argument, kept, or a view of such.
    fn layout(&self, v: Val) -> Option<Layout> {
        if let Some(slot) = self.kept.slots.get(&v) {
            let strides = slot.strides.iter().copied().collect();
            return Some(Layout { mem: Mem::Scratch(slot.scratch), offset: 0, strides, source: v });
        }
        self.view(v)
    }

    /// As [`Evaluator::layout`], but through the value's own operation even if it is kept.
    pub(super) fn view(&self, v: Val) -> Option<Layout> {
        let value = self.values.get(v);
        let of = |i: usize| self.layout(value.args[i]);
        match &value.kind {
            Kind::Read(n) => {
                let spec = &self.values.row.args[*n];
                let axes = &self.values.row.graph.buffers[*n].ty.axes;
                let strides = axes.iter().copied().zip(spec.strides.iter().copied());
                let strides = strides.filter(|(_, stride)| *stride != 0).collect();
                Some(Layout { mem: Mem::Arg(*n), offset: spec.offset, strides, source: v })
            }
            Kind::Split(from, to) => {
                let mut l = of(0)?;
                let mut stride = l.strides.remove(from)?;
                for axis in to.iter().rev() {
                    l.strides.insert(*axis, stride);
                    stride *= self.values.size(*axis) as i64;
                }
                Some(l)
            }
            Kind::Merge(from, to) => {
                let mut l = of(0)?;
                let mut next: Option<i64> = None;
                let mut unit = None;
                for axis in from.iter().rev() {
                    let stride = l.strides.remove(axis)?;
                    let size = self.values.size(*axis) as i64;
                    if size == 1 {
                        continue;
                    }
                    if next.is_some_and(|n| n != stride) {
                        return None;
                    }
                    unit = unit.or(Some(stride));
                    next = Some(stride * size);
                }
                l.strides.insert(*to, unit.unwrap_or(1));
                Some(l)
            }
            Kind::Rename(from, to) => {
                let mut l = of(0)?;
                let stride = l.strides.remove(from)?;
                l.strides.insert(*to, stride);
                Some(l)
            }
            Kind::Slice { from, to, start } => {
                let mut l = of(0)?;
                let stride = l.strides.remove(from)?;
                l.offset += stride * *start as i64;
                l.strides.insert(*to, stride);
                Some(l)
            }
            Kind::Index(axis, at) => {
                let mut l = of(0)?;
                let stride = l.strides.remove(axis)?;
                l.offset += stride * *at as i64;
                Some(l)
            }
            Kind::Const(_)
            | Kind::Iota(_)
            | Kind::Unary(_)
            | Kind::Binary(_)
            | Kind::Select
            | Kind::Cast(_)
            | Kind::Reduce(..)
            | Kind::Pad { .. }
            | Kind::Place(..)
            | Kind::Concat(..)
            | Kind::Shift(..)
            | Kind::At(_)
            | Kind::Scan(..) => None,
        }
    }
}
