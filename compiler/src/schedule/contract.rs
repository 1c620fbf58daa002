//! Contractions as matrix products: which axes are m, n, k or batch, with one stride each.
//!
//! *Takes* a `Dot` node and the layouts of its operands; *gives* a [`Frame`], or says which operand must be copied into which order
//! first; *promises* that n is the innermost index of the result and that every operand has stride 1 along k or along m (n).

use super::layout::{Layouts, View, axes, dense, merged, size};
use crate::graph::ir::{AxisId, Graph, NodeId, Op};
use std::collections::BTreeMap;

/// One flat index of a product: a batch index, m or n.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Number of positions.
    pub size: usize,
    /// Axes that make it up, outermost first.
    pub axes: Vec<AxisId>,
}

/// Which group an axis belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A batch index by number.
    Batch(usize),
    /// The row index.
    M,
    /// The column index.
    N,
}

/// How an axis is read off a group's flat index: `(index / stride) % size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digit {
    /// The group.
    pub place: Place,
    /// Flat positions per step.
    pub stride: usize,
    /// Extent.
    pub size: usize,
}

/// Where the axes of a value are in an index space. Axes of size 1 are left out.
pub(super) type Digits = BTreeMap<AxisId, Digit>;

/// The index space of results: of a product, or of attention (whose m is the position, n the head dimension).
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// Batch indices, outermost first.
    pub batch: Vec<Group>,
    /// Row index.
    pub m: Group,
    /// Column index.
    pub n: Group,
}

/// A contraction as `batch x (m, n, k)`.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// Operand with m.
    pub a: View,
    /// Operand with n.
    pub b: View,
    /// Everything but k.
    pub space: Space,
    /// Contracted length.
    pub k: usize,
    /// Strides of k in A and B.
    pub k_strides: (i64, i64),
}

/// Why a `Dot` is not a product as it stands: copy this operand into this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    /// Operand number of the node.
    pub operand: usize,
    /// Order of the copy's axes.
    pub order: Vec<AxisId>,
    /// What is wrong.
    pub why: String,
}

impl std::ops::Deref for Frame {
    type Target = Space;
    fn deref(&self) -> &Space {
        &self.space
    }
}

impl Space {
    /// The group of a place.
    pub fn group(&self, place: Place) -> &Group {
        match place {
            Place::Batch(i) => &self.batch[i],
            Place::M => &self.m,
            Place::N => &self.n,
        }
    }

    /// All places: batch indices, m, n.
    pub fn places(&self) -> Vec<Place> {
        let mut all: Vec<_> = (0..self.batch.len()).map(Place::Batch).collect();
        all.extend([Place::M, Place::N]);
        all
    }

    /// The result's axes.
    pub fn digits(&self, g: &Graph) -> Digits {
        let mut out = Digits::new();
        for place in self.places() {
            let mut stride = 1;
            for axis in self.group(place).axes.iter().rev() {
                let n = size(g, *axis);
                if n != 1 {
                    out.insert(*axis, Digit { place, stride, size: n });
                }
                stride *= n;
            }
        }
        out
    }

    /// Stride of a view along each place, if it is linear in every flat index; axes are located by `digits`.
    pub fn linear(&self, g: &Graph, view: &View, digits: &Digits) -> Option<BTreeMap<Place, i64>> {
        let mut out = BTreeMap::new();
        let real: Vec<_> = view.axes.iter().filter(|(a, _)| size(g, *a) != 1).collect();
        for place in self.places() {
            let mut parts = Vec::new();
            for (axis, stride) in &real {
                let digit = digits.get(axis)?;
                if digit.place == place {
                    parts.push((digit.stride, digit.size, *stride));
                }
            }
            parts.sort_unstable();
            let Some((_, _, unit)) = parts.first().copied() else {
                out.insert(place, 0);
                continue;
            };
            let mut next = 1;
            for (stride, n, s) in &parts {
                if *stride != next || *s != unit * next as i64 {
                    return None;
                }
                next *= n;
            }
            if next != self.group(place).size {
                return None;
            }
            out.insert(place, unit);
        }
        Some(out)
    }
}

/// The storage order a `Dot`'s result needs so that its innermost axis is free in one operand: `None` if the default has it.
pub(super) fn result_order(g: &Graph, layouts: &Layouts, dot: NodeId) -> Option<Vec<AxisId>> {
    let node = &g.nodes[dot.0 as usize];
    let order = layouts.order(g, dot);
    let (x, y) = (axes(g, node.args[0]), axes(g, node.args[1]));
    let shared = |a: &AxisId| x.contains(a) && y.contains(a);
    match order.iter().rev().find(|a| size(g, **a) != 1) {
        Some(last) if shared(last) => {
            let mut out: Vec<_> = order.iter().copied().filter(&shared).collect();
            out.extend(order.iter().copied().filter(|a| !shared(a) && x.contains(a)));
            out.extend(order.iter().copied().filter(|a| !shared(a) && y.contains(a)));
            Some(out)
        }
        _ => None,
    }
}

/// The frame of a `Dot` whose operands both have free axes of size above 1.
pub(super) fn frame(g: &Graph, layouts: &Layouts, dot: NodeId) -> Result<Frame, Copy> {
    let node = &g.nodes[dot.0 as usize];
    let Op::Dot(over) = &node.op else { unreachable!("only called on Dot") };
    let order = layouts.order(g, dot);
    let last = order.iter().rev().find(|a| size(g, **a) != 1);
    let swap = last.is_some_and(|a| axes(g, node.args[0]).contains(a));
    let (ia, ib) = if swap { (1, 0) } else { (0, 1) };
    let own = |i: usize, j: usize| -> Vec<AxisId> {
        let (mine, other) = (axes(g, node.args[i]), axes(g, node.args[j]));
        order.iter().copied().filter(|a| mine.contains(a) && !other.contains(a)).collect()
    };
    let (m_axes, n_axes) = (own(ia, ib), own(ib, ia));
    let shared: Vec<_> = order.iter().copied().filter(|a| !m_axes.contains(a) && !n_axes.contains(a)).collect();
    let copy = |operand: usize, free: &[AxisId], over: &[AxisId], why: &str| Copy {
        operand,
        order: [&shared[..], free, over].concat(),
        why: why.to_string(),
    };
    let a = layouts.view(g, node.args[ia]).ok_or_else(|| copy(ia, &m_axes, over, "is not stored"))?;
    let b = layouts.view(g, node.args[ib]).ok_or_else(|| copy(ib, &n_axes, over, "is not stored"))?;
    let c: BTreeMap<_, _> = dense(g, &order).into_iter().collect();

    // k: one order of the contracted axes for which both operands have one stride.
    let mut k_axes = over.clone();
    k_axes.sort_by_key(|x| (-a.stride(*x), x.0));
    let along = |v: &View, list: &[AxisId]| -> Vec<_> { list.iter().map(|x| (size(g, *x), v.stride(*x))).collect() };
    let ka = merged(&along(&a, &k_axes)).ok_or_else(|| copy(ia, &m_axes, over, "contracted axes do not merge"))?;
    let kb = merged(&along(&b, &k_axes)).ok_or_else(|| copy(ib, &n_axes, &k_axes, "contracted axes do not merge"))?;

    let mut batch: Vec<Group> = Vec::new();
    let mut flat = |v: &View, list: &[AxisId]| -> Group {
        // The longest suffix (in the result's order) along which operand and result both have one stride.
        let mut start = list.len();
        while start > 0 {
            let tail = &list[start - 1..];
            let in_c: Vec<_> = tail.iter().map(|x| (size(g, *x), c[x])).collect();
            if merged(&along(v, tail)).is_none() || merged(&in_c).is_none() {
                break;
            }
            start -= 1;
        }
        for axis in list[..start].iter().filter(|x| size(g, **x) != 1) {
            batch.push(Group { size: size(g, *axis), axes: vec![*axis] });
        }
        let axes: Vec<_> = list[start..].to_vec();
        Group { size: axes.iter().map(|x| size(g, *x)).product(), axes }
    };
    let m = flat(&a, &m_axes);
    let n = flat(&b, &n_axes);
    for axis in shared.iter().filter(|x| size(g, **x) != 1) {
        batch.push(Group { size: size(g, *axis), axes: vec![*axis] });
    }
    // Batch indices in the result's order.
    batch.sort_by_key(|x| std::cmp::Reverse(c[&x.axes[0]]));

    let k: usize = over.iter().map(|x| size(g, *x)).product();
    for (i, v, group, k_stride, free) in [(ia, &a, &m, ka, &m_axes), (ib, &b, &n, kb, &n_axes)] {
        let row = merged(&along(v, &group.axes)).unwrap_or(0);
        if row != 1 && k_stride != 1 || row == 0 || k_stride == 0 {
            return Err(copy(i, free, &k_axes, "has stride 1 along neither index"));
        }
    }
    Ok(Frame { a, b, space: Space { batch, m, n }, k, k_strides: (ka, kb) })
}
