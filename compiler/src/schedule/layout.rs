//! Where elements lie: axis orders and dtypes of stored values, strided views of them.
//!
//! *Takes* a graph and the overrides of [`Layouts`]; *gives* the storage order, the storage dtype and, for chains of moves (split, merge,
//! rename, slice, index), the strides into the value they look at; *promises* that every answer depends on the graph only.

use crate::graph::ir::{AxisId, AxisRole, BufferId, DType, Graph, NodeId, Op};
pub(super) use crate::graph::ir::{axes, numel, size};
use std::collections::BTreeMap;

/// A strided look at a base value (a `Read`, or a value that some kernel stores densely in its [`Layouts::order`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct View {
    /// The value looked at.
    pub base: NodeId,
    /// Elements from the start of the base.
    pub offset: i64,
    /// Element stride of each axis, in the order of the viewing node's type.
    pub axes: Vec<(AxisId, i64)>,
}

impl View {
    /// Stride of an axis, 0 if the view has no such axis.
    pub fn stride(&self, axis: AxisId) -> i64 {
        self.axes.iter().find(|(a, _)| *a == axis).map_or(0, |(_, s)| *s)
    }
}

/// Deviations from the default storage of values.
#[derive(Clone, Debug, Default)]
pub(super) struct Layouts {
    /// Storage orders that differ from the default.
    pub order: BTreeMap<NodeId, Vec<AxisId>>,
    /// Storage dtypes that differ from the default.
    pub storage: BTreeMap<NodeId, DType>,
}

/// True for batch and time axes.
pub(super) fn is_role(g: &Graph, axis: AxisId) -> bool {
    g.axes[axis.0 as usize].role != AxisRole::Plain
}

/// Row-major strides of axes in this order.
pub(super) fn dense(g: &Graph, order: &[AxisId]) -> Vec<(AxisId, i64)> {
    let mut stride = 1;
    let mut out: Vec<_> = order
        .iter()
        .rev()
        .map(|a| {
            let here = stride;
            stride *= size(g, *a) as i64;
            (*a, here)
        })
        .collect();
    out.reverse();
    out
}

/// The buffer a node reads, if it is a `Read`.
pub(super) fn buffer_of(g: &Graph, n: NodeId) -> Option<BufferId> {
    match g.nodes[n.0 as usize].op {
        Op::Read(b) => Some(b),
        _ => None,
    }
}

impl Layouts {
    /// Storage order of a value: of a `Read` the buffer's; of others the override, or batch and time axes first, then the rest as typed.
    pub fn order(&self, g: &Graph, n: NodeId) -> Vec<AxisId> {
        if let Some(b) = buffer_of(g, n) {
            return g.buffers[b.0 as usize].ty.axes.clone();
        }
        if let Some(order) = self.order.get(&n) {
            return order.clone();
        }
        roles_first(g, axes(g, n))
    }

    /// The strided view that a node is, if it is a move of a base value or a base value itself.
    pub fn view(&self, g: &Graph, n: NodeId) -> Option<View> {
        let node = &g.nodes[n.0 as usize];
        let inner = |this: &Self| this.view(g, node.args[0]);
        match &node.op {
            Op::Rename(from, to) => {
                let mut v = inner(self)?;
                v.axes.iter_mut().filter(|(a, _)| a == from).for_each(|(a, _)| *a = *to);
                Some(v)
            }
            Op::Slice { from, to, start } => {
                let mut v = inner(self)?;
                v.offset += v.stride(*from) * *start as i64;
                v.axes.iter_mut().filter(|(a, _)| a == from).for_each(|(a, _)| *a = *to);
                Some(v)
            }
            Op::Index(axis, at) => {
                let mut v = inner(self)?;
                v.offset += v.stride(*axis) * *at as i64;
                v.axes.retain(|(a, _)| a != axis);
                Some(v)
            }
            Op::Split(from, to) => {
                let mut v = inner(self)?;
                let stride = v.stride(*from);
                let at = v.axes.iter().position(|(a, _)| a == from)?;
                let parts = dense(g, to).into_iter().map(|(a, s)| (a, s * stride));
                v.axes.splice(at..=at, parts);
                Some(v)
            }
            Op::Merge(from, to) => {
                let mut v = inner(self)?;
                let parts: Vec<_> = from.iter().map(|a| (size(g, *a), v.stride(*a))).collect();
                // Not side by side in memory: elements have to be brought together, which makes a value of its own.
                let Some(stride) = merged(&parts) else { return Some(self.own(g, n)) };
                let at = v.axes.iter().position(|(a, _)| from.contains(a))?;
                v.axes[at] = (*to, stride);
                v.axes.retain(|(a, _)| !from.contains(a));
                Some(v)
            }
            Op::Const(_) | Op::Iota(_) => None,
            _ => Some(self.own(g, n)),
        }
    }

    /// A value as it is stored if a kernel stores it.
    fn own(&self, g: &Graph, n: NodeId) -> View {
        View { base: n, offset: 0, axes: self.dense_as(g, n) }
    }

    /// Strides of a base value, listed in the order of its type.
    fn dense_as(&self, g: &Graph, n: NodeId) -> Vec<(AxisId, i64)> {
        let strides: BTreeMap<_, _> = dense(g, &self.order(g, n)).into_iter().collect();
        axes(g, n).iter().map(|a| (*a, strides[a])).collect()
    }
}

/// Batch and time axes first, otherwise as given.
pub(super) fn roles_first(g: &Graph, axes: &[AxisId]) -> Vec<AxisId> {
    let (mut first, rest): (Vec<_>, Vec<_>) = axes.iter().copied().partition(|a| is_role(g, *a));
    first.extend(rest);
    first
}

/// The one stride of several (size, stride) pairs, outermost first, walked as one index; sizes of 1 do not matter.
pub(super) fn merged(parts: &[(usize, i64)]) -> Option<i64> {
    let mut real = parts.iter().filter(|(n, _)| *n != 1).rev();
    let Some((n, stride)) = real.next() else { return Some(1) };
    let mut next = stride * *n as i64;
    for (n, s) in real {
        if *s != next {
            return None;
        }
        next = s * *n as i64;
    }
    Some(*stride)
}

/// The default storage dtype of a value (see the storage rule in the module documentation of [`super`]).
pub(super) fn storage_rule(g: &Graph, n: NodeId, only_contracted: bool) -> DType {
    let ty = &g.nodes[n.0 as usize].ty;
    if ty.dtype != DType::F32 {
        return ty.dtype;
    }
    let time = ty.axes.iter().any(|a| g.axes[a.0 as usize].role == AxisRole::Time);
    let inner: usize = ty.axes.iter().filter(|a| !is_role(g, **a)).map(|a| size(g, *a)).product();
    if only_contracted || time && inner >= 32 { g.compute } else { DType::F32 }
}
