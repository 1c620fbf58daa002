//! Clusters: the kernels in the making, and what may be computed inside one.
//!
//! *Takes* a prepared graph and an assignment of nodes to clusters; *gives* [`Walk`], which follows a value back to what a cluster must
//! read, and says why a value cannot be computed there; *promises* that what it accepts is allowed by the kernel contracts.

use super::contract::{Digit, Digits, Frame, Place, Space};
use super::layout::{View, axes, buffer_of, numel, size};
use super::prepare::{Prepared, is_move};
use crate::graph::ir::{AxisId, Graph, NodeId, Op};
use crate::kernel::is_own_kernel;
use std::collections::{BTreeMap, BTreeSet};

/// What a cluster will become.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// A row kernel over these axes.
    Row {
        /// Iterated axes, outermost first.
        outer: Vec<AxisId>,
    },
    /// A contraction with its epilogue.
    Gemm {
        /// The `Dot`.
        dot: NodeId,
        /// Its index space.
        frame: Box<Frame>,
        /// Axes of the homed nodes in the index space.
        digits: BTreeMap<NodeId, Digits>,
    },
    /// One attention kernel: `Attend` and `AttendLse`, or up to three `AttendGrad`s.
    Attend {
        /// What else is homed in it: work on the finished rows of its `Attend`.
        rows: Option<Box<Finish>>,
    },
    /// A scatter-add.
    Scatter,
    /// A host routine.
    Quantile,
    /// Rounding with feedback.
    Feedback,
}

/// The epilogue of attention.
#[derive(Clone, Debug)]
pub(super) struct Finish {
    /// The `Attend`.
    pub y: NodeId,
    /// Its index space.
    pub space: Space,
    /// Axes of the homed nodes, attention's own but y aside, in the index space.
    pub digits: BTreeMap<NodeId, Digits>,
}

/// The epilogue of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epilogue<'k> {
    /// The value it starts from.
    pub results: NodeId,
    /// The index space.
    pub space: &'k Space,
    /// Axes of the homed nodes in the index space.
    pub digits: &'k BTreeMap<NodeId, Digits>,
    /// Whether whole rows are at hand, so that reductions along n can be made.
    pub rows: bool,
}

impl Kind {
    /// The kernel's epilogue; rows have none, attention only where something was fused to it.
    pub fn epilogue(&self) -> Option<Epilogue<'_>> {
        match self {
            Kind::Gemm { dot, frame, digits } => {
                Some(Epilogue { results: *dot, space: &frame.space, digits, rows: false })
            }
            Kind::Attend { rows: Some(f) } => {
                Some(Epilogue { results: f.y, space: &f.space, digits: &f.digits, rows: true })
            }
            Kind::Row { .. } | Kind::Attend { rows: None } | Kind::Scatter | Kind::Quantile | Kind::Feedback => None,
        }
    }

    /// Family name, as of kernels.
    pub fn family(&self) -> &'static str {
        match self {
            Kind::Row { .. } => "row",
            Kind::Gemm { .. } => "gemm",
            Kind::Attend { .. } => "attend",
            Kind::Scatter => "scatter",
            Kind::Quantile => "quantile",
            Kind::Feedback => "feedback",
        }
    }
}

/// A kernel in the making.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    /// Family and space.
    pub kind: Kind,
    /// Clusters whose results are needed first.
    pub deps: BTreeSet<usize>,
    /// Column sums over its rows, by their `Reduce` node; a later cluster finishes them.
    pub columns: BTreeSet<NodeId>,
    /// Large values read, to find clusters that look at the same memory.
    pub bases: BTreeSet<NodeId>,
    /// Smallest and largest node id homed here.
    pub span: (u32, u32),
    /// False after being merged into another.
    pub alive: bool,
}

/// Where a node is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    /// Wherever it is needed.
    Loose,
    /// In this cluster.
    In(usize),
}

/// The assignment.
#[derive(Clone, Debug)]
pub(super) struct Clusters<'p> {
    /// The graph.
    pub p: &'p Prepared,
    /// All clusters, also dead ones.
    pub list: Vec<Cluster>,
    /// By node.
    pub spot: Vec<Spot>,
    /// The view each node is, as [`super::layout::Layouts::view`] says; asked for too often to work it out every time.
    pub views: Vec<Option<View>>,
    /// Homed nodes that other clusters compute again instead of reading.
    pub inlined: BTreeSet<NodeId>,
    /// Values that were loose at first, and the first cluster that came after they got a home.
    pub late: BTreeMap<NodeId, usize>,
    /// Why a node did not join the cluster of an operand: that cluster, the reason.
    pub refused: BTreeMap<NodeId, (usize, String)>,
}

/// Why a value cannot be computed in a cluster.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The value that is in the way.
    pub node: NodeId,
    /// The reason.
    pub why: String,
}

/// What a cluster does about a value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Use {
    /// Reads it from memory.
    Leaf(View),
    /// Finishes this column sum from the partial sums of the cluster given.
    Partial(usize),
    /// The product itself.
    Acc,
    /// Computes it.
    Compute,
}

/// How far [`Walk`] follows values of its own cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Stops at values homed in the cluster (they are known to be fine).
    New,
    /// All the way.
    Full,
}

/// Follows values back from what a cluster has to produce.
pub(super) struct Walk<'a> {
    clusters: &'a Clusters<'a>,
    cluster: usize,
    depth: Depth,
    /// Nodes to treat as inlined besides [`Clusters::inlined`].
    also: &'a BTreeSet<NodeId>,
    /// Every value met, and what is done about it.
    pub uses: BTreeMap<NodeId, Use>,
    /// Values in the order in which they can be computed.
    pub order: Vec<NodeId>,
    /// Epilogues: where the axes of each value are.
    pub digits: BTreeMap<NodeId, Digits>,
}

impl Clusters<'_> {
    /// The graph.
    pub fn g(&self) -> &Graph {
        &self.p.graph
    }

    /// The cluster a node is homed in.
    pub fn home(&self, n: NodeId) -> Option<usize> {
        match self.spot[n.0 as usize] {
            Spot::In(c) => Some(c),
            Spot::Loose => None,
        }
    }

    /// The view a node is, if it needs no computing in `cluster`: its base lies in memory before the cluster runs.
    pub fn leaf(&self, n: NodeId, cluster: usize, inlined: impl Fn(NodeId) -> bool) -> Option<&View> {
        // Clusters that are older than a value's home compute it for themselves.
        let early = |x: NodeId| self.late.get(&x).is_some_and(|from| cluster < *from);
        let stored = |x: NodeId| match self.spot[x.0 as usize] {
            Spot::In(home) => home != cluster && !inlined(x) && !early(x),
            Spot::Loose => buffer_of(self.g(), x).is_some(),
        };
        self.views[n.0 as usize].as_ref().filter(|v| stored(v.base))
    }

    /// Outer axes of a row cluster.
    pub fn outer(&self, cluster: usize) -> Option<&[AxisId]> {
        match &self.list[cluster].kind {
            Kind::Row { outer } => Some(outer),
            _ => None,
        }
    }
}

impl<'a> Walk<'a> {
    /// A walk for one cluster.
    pub fn new(clusters: &'a Clusters<'a>, cluster: usize, depth: Depth, also: &'a BTreeSet<NodeId>) -> Self {
        Walk { clusters, cluster, depth, also, uses: BTreeMap::new(), order: Vec::new(), digits: BTreeMap::new() }
    }

    /// Follows a value that the cluster has to produce.
    pub fn root(&mut self, n: NodeId) -> Result<(), Refusal> {
        let known = self.epilogue().and_then(|p| p.digits.get(&n).cloned());
        self.visit(n, &known.unwrap_or_default())
    }

    /// Follows the operands of a node that is about to be homed in the cluster, its axes being at these places.
    pub fn operands(&mut self, n: NodeId, digits: &Digits) -> Result<(), Refusal> {
        self.compute(n, true, digits)
    }

    fn epilogue(&self) -> Option<Epilogue<'a>> {
        self.clusters.list[self.cluster].kind.epilogue()
    }

    /// Follows a value with its axes at given places of an epilogue's index space (ignored by row clusters).
    pub fn visit(&mut self, n: NodeId, digits: &Digits) -> Result<(), Refusal> {
        let g = self.clusters.g();
        let epilogue = self.epilogue();
        let mine: Digits = if epilogue.is_some() {
            digits.iter().filter(|(a, _)| axes(g, n).contains(a)).map(|(a, d)| (*a, *d)).collect()
        } else {
            Digits::new()
        };
        if self.uses.contains_key(&n) {
            return if self.digits.get(&n).is_none_or(|d| *d == mine) {
                Ok(())
            } else {
                Err(refuse(n, "is needed along two different indices"))
            };
        }
        let home = self.clusters.home(n);
        let inlined = |x: NodeId| self.clusters.inlined.contains(&x) || self.also.contains(&x);
        let here = home == Some(self.cluster);
        if here && epilogue.is_some_and(|p| p.digits.get(&n).is_some_and(|d| *d != mine)) {
            return Err(refuse(n, "is needed along other indices than it is computed along"));
        }
        let what = if here && self.depth == Depth::New {
            Use::Compute
        } else if let Some(source) = self.column_source(n).filter(|_| here) {
            Use::Partial(source)
        } else if let Some(view) = self.clusters.leaf(n, self.cluster, inlined) {
            self.check_leaf(n, view, &mine)?;
            Use::Leaf(view.clone())
        } else if here && epilogue.is_some_and(|p| p.results == n) {
            Use::Acc
        } else {
            self.compute(n, here, &mine)?;
            Use::Compute
        };
        if epilogue.is_some() {
            self.digits.insert(n, mine);
        }
        self.uses.insert(n, what);
        self.order.push(n);
        Ok(())
    }

    /// The cluster whose rows a homed column sum adds up.
    fn column_source(&self, n: NodeId) -> Option<usize> {
        let list = &self.clusters.list;
        if !matches!(self.clusters.g().nodes[n.0 as usize].op, Op::Reduce(..)) {
            return None;
        }
        list[self.cluster].deps.iter().copied().find(|d| list[*d].columns.contains(&n))
    }

    fn check_leaf(&self, n: NodeId, view: &View, digits: &Digits) -> Result<(), Refusal> {
        let Some(p) = self.epilogue() else { return Ok(()) };
        match p.space.linear(self.clusters.g(), view, digits) {
            Some(_) => Ok(()),
            None => Err(refuse(n, "is not addressed by one stride along m and one along n")),
        }
    }

    fn compute(&mut self, n: NodeId, here: bool, digits: &Digits) -> Result<(), Refusal> {
        let g = self.clusters.g();
        let node = &g.nodes[n.0 as usize];
        if !here && !can_inline(&node.op) {
            return Err(refuse(n, "is computed elsewhere"));
        }
        let epilogue = self.epilogue();
        match &self.clusters.list[self.cluster].kind {
            Kind::Row { outer } => row_legal(g, n, outer).map_err(|why| refuse(n, &why))?,
            _ if epilogue.is_none() => return Err(refuse(n, "this family fuses nothing")),
            _ => {}
        }
        let inlined = |x: NodeId| self.clusters.inlined.contains(&x) || self.also.contains(&x);
        // These look at other rows, so their operand has to be in memory.
        if matches!(node.op, Op::Shift(..) | Op::Gather(_))
            && self.clusters.leaf(node.args[0], self.cluster, inlined).is_none()
        {
            return Err(refuse(node.args[0], "has to be in memory, because other rows of it are read"));
        }
        let inner = match epilogue {
            Some(p) => epilogue_operand(g, p, n, digits).map_err(|why| refuse(n, &why))?,
            None => Digits::new(),
        };
        for arg in &node.args {
            self.visit(*arg, &inner)?;
        }
        Ok(())
    }
}

fn refuse(node: NodeId, why: &str) -> Refusal {
    Refusal { node, why: why.to_string() }
}

/// Ops cheap and local enough to be computed in every kernel that wants them.
pub(super) fn can_inline(op: &Op) -> bool {
    match op {
        Op::Const(_) | Op::Iota(_) | Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Broadcast => true,
        Op::Shift(..) | Op::StopGradient | Op::Concat(..) | Op::Pad { .. } | Op::Place(..) => true,
        op => is_move(op),
    }
}

/// Element-wise, or nothing at all.
pub(super) fn is_elementwise(op: &Op) -> bool {
    matches!(op, Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) | Op::Broadcast | Op::StopGradient)
}

/// What attention kernels are made for.
pub(super) fn is_attention(op: &Op) -> bool {
    matches!(op, Op::Attend(_) | Op::AttendLse(_) | Op::AttendGrad(..))
}

/// Axes that an op treats as a whole, so that it cannot be computed position by position along them.
pub(super) fn touched(g: &Graph, n: NodeId) -> Vec<AxisId> {
    let node = &g.nodes[n.0 as usize];
    match &node.op {
        Op::Reduce(_, over) | Op::Dot(over) => over.clone(),
        Op::Split(a, to) => std::iter::once(*a).chain(to.iter().copied()).collect(),
        Op::Merge(from, a) | Op::Concat(from, a) => from.iter().copied().chain([*a]).collect(),
        Op::Rename(a, b) | Op::TopKValues(a, b) | Op::TopKIndices(a, b) => vec![*a, *b],
        Op::Slice { from, to, .. } | Op::Pad { from, to, .. } => vec![*from, *to],
        Op::Index(a, _) | Op::Place(a, _) | Op::Cumsum(a, _) | Op::Scan(a, _) => vec![*a],
        Op::CrossEntropy(a) | Op::CrossEntropyGrad(a) | Op::Quantile(a, _) => vec![*a],
        Op::FeedbackRound { axis, .. } => vec![*axis],
        Op::Gather(_) => axes(g, node.args[0]).to_vec(),
        Op::ScatterAdd(a) => vec![*a],
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
        | Op::Shift(..)
        | Op::Random { .. }
        | Op::Attend(_)
        | Op::AttendLse(_)
        | Op::AttendGrad(..) => Vec::new(),
    }
}

/// Whether a row kernel over these axes can compute a node, operands aside.
pub(super) fn row_legal(g: &Graph, n: NodeId, outer: &[AxisId]) -> Result<(), String> {
    let node = &g.nodes[n.0 as usize];
    let name = |a: &AxisId| g.axes[a.0 as usize].name.clone();
    if let Some(axis) = touched(g, n).iter().find(|a| outer.contains(a)) {
        return Err(format!("needs the whole axis `{}`, but rows run along it", name(axis)));
    }
    match &node.op {
        Op::Shift(axis, _) if !outer.contains(axis) => {
            Err(format!("shifts along `{}`, which is no row axis", name(axis)))
        }
        Op::Gather(_) => {
            let index = axes(g, node.args[1]);
            if index.len() == outer.len() && index.iter().all(|a| outer.contains(a)) {
                Ok(())
            } else {
                Err("gathers with an index that is not one per row".to_string())
            }
        }
        // Random numbers are counted along the type's own order.
        Op::Random { .. } if node.ty.axes.get(..outer.len()) != Some(outer) => {
            Err("counts its elements across the rows".to_string())
        }
        op if is_own_kernel(op) => Err("is a kernel of its own".to_string()),
        _ => Ok(()),
    }
}

/// Places of the operands' axes of an epilogue op, from those of its result.
fn epilogue_operand(g: &Graph, p: Epilogue<'_>, n: NodeId, digits: &Digits) -> Result<Digits, String> {
    let node = &g.nodes[n.0 as usize];
    match &node.op {
        op if is_elementwise(op) => Ok(digits.clone()),
        Op::Const(_) => Ok(Digits::new()),
        Op::Reduce(_, over) if p.rows => {
            let size = p.space.n.size;
            match &over[..] {
                [a] if super::layout::size(g, *a) == size && digits.values().all(|d| d.place != Place::N) => {
                    let mut out = digits.clone();
                    out.insert(*a, Digit { place: Place::N, stride: 1, size });
                    Ok(out)
                }
                _ => Err("reduces along something else than the rows at hand".to_string()),
            }
        }
        Op::Iota(a) => match digits.get(a) {
            _ if size(g, *a) == 1 => Ok(Digits::new()),
            Some(d) if d.stride == 1 && d.size == p.space.group(d.place).size => Ok(Digits::new()),
            _ => Err("counts along a part of an index".to_string()),
        },
        Op::Rename(from, to) => Ok(renamed(digits, *to, *from)),
        Op::Split(from, to) => {
            let mut out = digits.clone();
            let real: Vec<_> = to.iter().copied().filter(|a| size(g, *a) != 1).collect();
            to.iter().for_each(|a| {
                out.remove(a);
            });
            if let Some(whole) = joined(digits, &real) {
                out.insert(*from, whole?);
            }
            Ok(out)
        }
        Op::Merge(from, to) => {
            let mut out = digits.clone();
            let Some(whole) = out.remove(to) else { return Ok(out) };
            let mut stride = whole.stride;
            for a in from.iter().rev() {
                let n = size(g, *a);
                if n != 1 {
                    out.insert(*a, Digit { place: whole.place, stride, size: n });
                }
                stride *= n;
            }
            Ok(out)
        }
        _ => Err("is neither element-wise nor a relabelling".to_string()),
    }
}

/// Places of a relabelling's result, from those of its operand.
pub(super) fn relabelled(g: &Graph, n: NodeId, digits: &Digits) -> Result<Digits, String> {
    let node = &g.nodes[n.0 as usize];
    match &node.op {
        Op::Rename(from, to) => Ok(renamed(digits, *from, *to)),
        Op::Split(from, to) => {
            let mut out = digits.clone();
            let Some(whole) = out.remove(from) else { return Ok(out) };
            let mut stride = whole.stride;
            for a in to.iter().rev() {
                let n = size(g, *a);
                if n != 1 {
                    out.insert(*a, Digit { place: whole.place, stride, size: n });
                }
                stride *= n;
            }
            Ok(out)
        }
        Op::Merge(from, to) => {
            let mut out = digits.clone();
            from.iter().for_each(|a| {
                out.remove(a);
            });
            let real: Vec<_> = from.iter().copied().filter(|a| size(g, *a) != 1).collect();
            if let Some(whole) = joined(digits, &real) {
                out.insert(*to, whole?);
            }
            Ok(out)
        }
        _ => Err("is neither element-wise nor a relabelling".to_string()),
    }
}

fn renamed(digits: &Digits, from: AxisId, to: AxisId) -> Digits {
    digits.iter().map(|(a, d)| (if *a == from { to } else { *a }, *d)).collect()
}

/// The one digit that neighbouring digits (outermost first) make up.
fn joined(digits: &Digits, axes: &[AxisId]) -> Option<Result<Digit, String>> {
    let last = digits.get(axes.last()?)?;
    let mut whole = Digit { size: 1, ..*last };
    for axis in axes.iter().rev() {
        match digits.get(axis) {
            Some(d) if d.place == whole.place && d.stride == whole.stride * whole.size => whole.size *= d.size,
            _ => return Some(Err("merges indices that are no neighbours".to_string())),
        }
    }
    Some(Ok(whole))
}

/// True when the axes of a node cover the whole index space.
pub(super) fn covers(space: &Space, digits: &Digits) -> bool {
    space.places().into_iter().all(|place: Place| {
        let product: usize = digits.values().filter(|d| d.place == place).map(|d| d.size).product();
        product == space.group(place).size
    })
}

/// Elements of a node.
pub(super) fn elements(g: &Graph, n: NodeId) -> usize {
    numel(g, axes(g, n))
}
