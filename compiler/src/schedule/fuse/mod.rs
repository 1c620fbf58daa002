//! Which node is computed in which kernel.
//!
//! *Takes* a prepared graph; *gives* [`Clusters`]; *promises* that the clusters can be put in an order, that each is a legal kernel,
//! and that the choice depends on the graph only.
//!
//! Nodes are taken in order. Anchors (contractions, attention, scatter-adds, host routines) open clusters of their own. Element-wise work joins the
//! cluster of its latest operand, be it a row kernel or the epilogue of a contraction, unless that would make a cycle or is not allowed there;
//! reductions join row kernels only. Cheap functions of one stored value stay loose: every kernel computes them for itself.

use super::Error;
use super::cluster::{
    Cluster, Clusters, Depth, Kind, Refusal, Spot, Use, Walk, can_inline, covers, elements, is_elementwise, relabelled,
    row_legal, touched,
};
use super::contract::{self, Digits, Place};
use super::layout::{View, axes, buffer_of, dense, is_role, numel};
use super::prepare::{Prepared, is_move};
use crate::graph::ir::{AxisId, Graph, NodeId, Op, Reduce};
use std::collections::{BTreeMap, BTreeSet};

/// Vectors and matrices up to this many elements are one row.
const SMALL: usize = 4096;
/// Nodes homed in one cluster at most.
const MOST_NODES: usize = 400;
/// Clusters that look at the same memory are joined if their nodes are at most this far apart.
const NEAR: u32 = 100;
/// Large activations that an epilogue reads at most, and large matrices. Reading more gains nothing, and keeping epilogues alike over layers
/// keeps the number of kernels small.
const EPILOGUE_OPERANDS: (usize, usize) = (1, 2);
/// A leaf is large for a value if it has more than 1/8 of its elements.
const LARGE: usize = 8;

/// Assigns nodes to clusters. Without `fuse` every node is its own kernel.
pub(super) fn fuse(p: &Prepared, fuse: bool) -> Result<Clusters<'_>, Error> {
    let n = p.graph.nodes.len();
    let clusters = Clusters {
        p,
        list: Vec::new(),
        spot: vec![Spot::Loose; n],
        inlined: BTreeSet::new(),
        late: BTreeMap::new(),
        refused: BTreeMap::new(),
    };
    let mut f = Fuse {
        c: clusters,
        fuse,
        stored: stored(p),
        passed: 0,
        loose: vec![Chain::default(); n],
        count: BTreeMap::new(),
        attends: BTreeMap::new(),
        reach: Reach::default(),
        root: (0..n as u32).map(NodeId).collect(),
        written: BTreeMap::new(),
        outputs: BTreeMap::new(),
    };
    for (i, output) in p.effects.iter().enumerate() {
        f.outputs.entry(output.value).or_default().push(i);
    }
    for i in 0..n as u32 {
        f.passed = i;
        f.node(NodeId(i)).map_err(|r| {
            let name = crate::graph::ops::row(&p.graph.nodes[r.node.0 as usize].op).name;
            Error::new(&p.graph.name, format!("no kernel can compute %{} ({name}): {}", r.node.0, r.why))
        })?;
    }
    Ok(f.c)
}

/// What a loose value costs.
#[derive(Clone, Debug, Default)]
struct Chain {
    /// Large stored values it is computed from.
    leaves: BTreeSet<NodeId>,
    /// Floating-point operations of everything loose behind it.
    flops: u64,
    /// Nodes behind it.
    nodes: usize,
}

/// Values that some kernel needs in memory, whatever else is decided.
fn stored(p: &Prepared) -> BTreeSet<NodeId> {
    let g = &p.graph;
    let mut out = BTreeSet::new();
    for node in &g.nodes {
        let operands = match node.op {
            Op::Dot(_)
            | Op::ScatterAdd(_)
            | Op::Attend(_)
            | Op::AttendLse(_)
            | Op::AttendGrad(..)
            | Op::Quantile(..) => &node.args[..],
            Op::Shift(..) | Op::Gather(_) => &node.args[..1],
            _ => &[],
        };
        out.extend(operands.iter().filter_map(|a| p.layouts.view(g, *a)).map(|v| v.base));
    }
    out
}

struct Fuse<'p> {
    c: Clusters<'p>,
    fuse: bool,
    /// Values that have to be stored.
    stored: BTreeSet<NodeId>,
    /// Nodes up to here have been placed or left loose.
    passed: u32,
    loose: Vec<Chain>,
    /// Nodes homed, by cluster.
    count: BTreeMap<usize, usize>,
    /// Attention clusters by operands.
    attends: BTreeMap<Vec<NodeId>, usize>,
    reach: Reach,
    /// The one large value that an element-wise value derives from, or itself.
    root: Vec<NodeId>,
    /// Outputs by cluster.
    written: BTreeMap<usize, Vec<usize>>,
    /// Outputs by value.
    outputs: BTreeMap<NodeId, Vec<usize>>,
}

type Step<T> = Result<T, Refusal>;

impl Fuse<'_> {
    fn g(&self) -> &Graph {
        self.c.g()
    }

    fn node(&mut self, n: NodeId) -> Step<()> {
        let node = self.g().nodes[n.0 as usize].clone();
        match &node.op {
            Op::Read(_) | Op::Const(_) | Op::Iota(_) => Ok(()),
            Op::Dot(_) => self.gemm(n),
            Op::Attend(_) | Op::AttendLse(_) | Op::AttendGrad(..) => self.attend(n),
            Op::ScatterAdd(_) => self.anchor(n, Kind::Scatter).map(|_| ()),
            Op::Quantile(..) => self.anchor(n, Kind::Host).map(|_| ()),
            Op::Shift(..) => {
                self.in_memory(node.args[0])?;
                self.effect_home(n)
            }
            Op::Gather(_) => {
                self.in_memory(node.args[0])?;
                self.row_op(n)
            }
            Op::Reduce(Reduce::Sum, over) => match self.column_space(node.args[0], over) {
                Some(outer) => self.column_sum(n, outer),
                None => self.row_op(n),
            },
            op if is_move(op) => self.movement(n),
            op if is_elementwise(op) => self.element(n),
            _ => self.row_op(n),
        }
    }

    // ---- anchors ----

    fn gemm(&mut self, n: NodeId) -> Step<()> {
        let frame = contract::frame(self.g(), &self.c.p.layouts, n)
            .map_err(|copy| Refusal { node: n, why: format!("operand {}: {}", copy.operand, copy.why) })?;
        let digits = BTreeMap::from([(n, frame.digits(self.g()))]);
        self.anchor(n, Kind::Gemm { dot: n, frame: Box::new(frame), digits })?;
        Ok(())
    }

    fn attend(&mut self, n: NodeId) -> Step<()> {
        let node = self.g().nodes[n.0 as usize].clone();
        // `AttendLse` has no v: the cluster is found by q and k.
        let mut key = node.args.clone();
        match node.op {
            Op::Attend(_) => {
                key.remove(2);
            }
            Op::AttendGrad(..) => key.push(n_args_marker()),
            _ => {}
        }
        if let Some(c) = self.attends.get(&key).copied()
            && self.fits_attend(c, n)
        {
            for arg in &node.args {
                self.in_memory(*arg)?;
            }
            let deps = self.sources(&node.args);
            if !deps.contains(&c) && !deps.iter().any(|d| self.reach.needs(*d, c)) {
                self.home(n, c, deps);
                return Ok(());
            }
        }
        let c = self.anchor(n, Kind::Attend)?;
        self.attends.insert(key, c);
        Ok(())
    }

    /// An attention kernel computes each of its results once, all with one set of attributes.
    fn fits_attend(&self, c: usize, n: NodeId) -> bool {
        let g = self.g();
        let how = |n: usize| match &g.nodes[n].op {
            Op::Attend(a) => Some((*a, 0)),
            Op::AttendLse(a) => Some((*a, 1)),
            Op::AttendGrad(a, which) => Some((*a, 2 + *which as usize)),
            _ => None,
        };
        let Some((mine, part)) = how(n.0 as usize) else { return false };
        let homed = (0..n.0 as usize).filter(|i| self.c.spot[*i] == Spot::In(c));
        homed.filter_map(how).all(|(a, p)| a == mine && p != part)
    }

    /// A cluster around an anchor: its operands have to be in memory.
    fn anchor(&mut self, n: NodeId, kind: Kind) -> Step<usize> {
        let args = self.g().nodes[n.0 as usize].args.clone();
        for arg in &args {
            self.in_memory(*arg)?;
        }
        let deps = self.sources(&args);
        Ok(self.open(n, kind, deps))
    }

    /// Makes sure that some kernel stores the value this one looks at.
    fn in_memory(&mut self, x: NodeId) -> Step<()> {
        let base = self.c.p.layouts.view(self.g(), x).map(|v| v.base).unwrap_or(x);
        if buffer_of(self.g(), base).is_some() || self.c.home(base).is_some() { Ok(()) } else { self.force(base) }
    }

    // ---- loose values and moves ----

    /// A move of something in memory is free; of a value being computed it is computed along; of a loose value it stays loose.
    fn movement(&mut self, n: NodeId) -> Step<()> {
        let arg = self.g().nodes[n.0 as usize].args[0];
        if let Some(c) = self.c.home(arg)
            && self.fuse
            && self.join(n, c)
        {
            return Ok(());
        }
        match self.c.p.layouts.view(self.g(), n) {
            Some(v) if buffer_of(self.g(), v.base).is_some() || self.c.home(v.base).is_some() => {
                self.note(n);
                self.effect_home(n)
            }
            _ => {
                let roles = touched(self.g(), n).iter().any(|a| is_role(self.g(), *a));
                if roles || self.outputs.contains_key(&n) {
                    self.in_memory(n)?;
                    return self.effect_home(n);
                }
                self.note(n);
                Ok(())
            }
        }
    }

    /// Records what computing a loose node costs.
    fn note(&mut self, n: NodeId) {
        let mine = elements(self.g(), n);
        let node = self.g().nodes[n.0 as usize].clone();
        let mut chain = Chain { flops: crate::graph::ops::flops(self.g(), &node), nodes: 1, ..Chain::default() };
        if let Some(v) = self.c.p.layouts.view(self.g(), n)
            && v.base != n
        {
            chain.flops = 0;
            if elements(self.g(), n) > 1 {
                chain.leaves.insert(v.base);
            }
        } else {
            for arg in &node.args {
                let behind = &self.loose[arg.0 as usize];
                chain.flops += behind.flops;
                chain.nodes += behind.nodes;
                let own = buffer_of(self.g(), *arg).is_some() || self.c.home(*arg).is_some();
                let large = |x: NodeId| elements(self.g(), x) * LARGE > mine;
                if own && large(*arg) {
                    chain.leaves.insert(*arg);
                }
                chain.leaves.extend(behind.leaves.iter().copied().filter(|x| large(*x)));
            }
        }
        self.loose[n.0 as usize] = chain;
    }

    /// Whether a value is better computed wherever it is needed.
    fn stays_loose(&mut self, n: NodeId) -> bool {
        if !self.fuse
            || !can_inline(&self.g().nodes[n.0 as usize].op)
            || self.outputs.contains_key(&n)
            || self.stored.contains(&n)
        {
            return false;
        }
        self.note(n);
        let mine = elements(self.g(), n);
        let Chain { leaves, flops, nodes } = &self.loose[n.0 as usize];
        let cheap = leaves.len() <= 1 && *flops <= 6 * mine as u64 && *nodes <= 16;
        cheap || mine <= SMALL && *nodes <= 24 && leaves.len() <= 2 && !self.has_time(n)
    }

    fn has_time(&self, n: NodeId) -> bool {
        axes(self.g(), n).iter().any(|a| is_role(self.g(), *a))
    }

    /// A loose value that is written to a buffer needs a kernel.
    fn effect_home(&mut self, n: NodeId) -> Step<()> {
        if self.outputs.contains_key(&n) && self.c.home(n).is_none() { self.force(n) } else { Ok(()) }
    }

    // ---- row work ----

    fn element(&mut self, n: NodeId) -> Step<()> {
        let args = self.g().nodes[n.0 as usize].args.clone();
        let near: BTreeSet<_> = args.iter().flat_map(|a| self.soft(*a)).collect();
        if self.fuse && self.join_any(n, &near) {
            return Ok(());
        }
        // A broadcast of something small that another kernel computed is for its users to make.
        let spread = self.g().nodes[n.0 as usize].op == Op::Broadcast
            && elements(self.g(), args[0]) * LARGE <= elements(self.g(), n);
        if (near.is_empty() || spread) && self.stays_loose(n) {
            return Ok(());
        }
        self.force(n)
    }

    fn row_op(&mut self, n: NodeId) -> Step<()> {
        let args = self.g().nodes[n.0 as usize].args.clone();
        let near: BTreeSet<_> = args.iter().flat_map(|a| self.soft(*a)).collect();
        if self.fuse && self.join_any(n, &near) { Ok(()) } else { self.force(n) }
    }

    /// Joins the latest of some clusters that takes the node, and merges the others into it where possible.
    fn join_any(&mut self, n: NodeId, near: &BTreeSet<usize>) -> bool {
        let Some(c) = near.iter().rev().copied().find(|c| self.join(n, *c)) else { return false };
        for other in near.iter().copied().filter(|o| *o != c) {
            self.merge(other, c);
        }
        true
    }

    /// A row cluster for a node: one near by that reads the same memory, or a new one.
    fn force(&mut self, n: NodeId) -> Step<()> {
        let outer = self.outer_for(n);
        for _ in 0..64 {
            if self.fuse
                && let Some(c) = self.sibling(n, &outer)
                && self.join(n, c)
            {
                return Ok(());
            }
            let kind = Kind::Row { outer: outer.clone() };
            let at = self.c.list.len();
            self.c.list.push(empty(kind));
            match self.check(n, at) {
                Ok(deps) => {
                    self.home(n, at, deps);
                    return Ok(());
                }
                Err(refusal) => {
                    self.c.list.pop();
                    if refusal.node == n || self.c.home(refusal.node).is_some() {
                        return Err(refusal);
                    }
                    // A loose operand that cannot be computed here gets its own kernel.
                    self.in_memory(refusal.node)?;
                }
            }
        }
        Err(Refusal { node: n, why: "its operands need too many kernels".to_string() })
    }

    /// A cluster over the same rows that reads one of the large values this node reads.
    fn sibling(&self, n: NodeId, outer: &[AxisId]) -> Option<usize> {
        let bases = self.bases(n);
        let near = |c: &Cluster| n.0.abs_diff(c.span.1) <= NEAR || n.0.abs_diff(c.span.0) <= NEAR;
        (0..self.c.list.len()).rev().take(256).find(|c| {
            let cluster = &self.c.list[*c];
            cluster.alive
                && matches!(&cluster.kind, Kind::Row { outer: o } if o == outer)
                && near(cluster)
                && cluster.bases.intersection(&bases).next().is_some()
                && self.check(n, *c).is_ok()
        })
    }

    /// Large values in memory that a node reads, through loose ones and through what derives from one other value.
    fn bases(&self, n: NodeId) -> BTreeSet<NodeId> {
        let mine = elements(self.g(), n);
        let mut out = BTreeSet::new();
        let mut todo = self.g().nodes[n.0 as usize].args.clone();
        let mut seen = BTreeSet::new();
        while let Some(x) = todo.pop() {
            if !seen.insert(x) {
                continue;
            }
            match self.c.p.layouts.view(self.g(), x).map(|v| v.base) {
                Some(b) if buffer_of(self.g(), b).is_some() || self.c.home(b).is_some() => {
                    if elements(self.g(), b) * LARGE > mine {
                        out.insert(self.root[b.0 as usize]);
                    }
                }
                _ => todo.extend(&self.g().nodes[x.0 as usize].args),
            }
        }
        out
    }

    /// Rows for a node: batch and time; without them the first axis of what is not small; never an axis the op needs whole.
    fn outer_for(&self, n: NodeId) -> Vec<AxisId> {
        let g = self.g();
        let node = &g.nodes[n.0 as usize];
        if let Op::Gather(_) = node.op {
            return axes(g, node.args[1]).to_vec();
        }
        let touched = touched(g, n);
        let free: Vec<_> = node.ty.axes.iter().copied().filter(|a| !touched.contains(a)).collect();
        let roles: Vec<_> = free.iter().copied().filter(|a| is_role(g, *a)).collect();
        let needs_role = touched.iter().any(|a| is_role(g, *a));
        if needs_role {
            // Along the whole time axis: keep rows short.
            return free;
        }
        if !roles.is_empty() {
            return roles;
        }
        let largest = node.args.iter().map(|a| elements(g, *a)).chain([numel(g, &node.ty.axes)]).max();
        if largest.unwrap_or(0) <= SMALL { Vec::new() } else { free.into_iter().take(1).collect() }
    }

    // ---- column sums ----

    /// The rows a sum runs over, if it is a sum over all rows of some row space.
    fn column_space(&self, x: NodeId, over: &[AxisId]) -> Option<Vec<AxisId>> {
        let g = self.g();
        let outer = match self.c.home(x).and_then(|c| self.c.outer(c)) {
            Some(outer) => outer.to_vec(),
            None => {
                let all = axes(g, x);
                let roles: Vec<_> = all.iter().copied().filter(|a| is_role(g, *a)).collect();
                if !roles.is_empty() {
                    roles
                } else if numel(g, all) <= SMALL {
                    Vec::new()
                } else {
                    all.iter().copied().take(1).collect()
                }
            }
        };
        let whole = !outer.is_empty() && outer.iter().all(|a| over.contains(a));
        (whole && numel(g, &outer) > 1).then_some(outer)
    }

    /// Partial sums in the cluster of the operand, finished in a later one.
    fn column_sum(&mut self, n: NodeId, outer: Vec<AxisId>) -> Step<()> {
        let x = self.g().nodes[n.0 as usize].args[0];
        let source = match self.c.home(x) {
            Some(c) if self.c.outer(c) == Some(&outer[..]) => c,
            _ => self.reader(x, outer)?,
        };
        self.c.list[source].columns.insert(n);
        let finish = if self.fuse { self.finisher(n, source) } else { None };
        match finish {
            Some(c) => self.home(n, c, BTreeSet::from([source])),
            None => {
                let kept = axes(self.g(), n).to_vec();
                let outer = if numel(self.g(), &kept) <= SMALL { Vec::new() } else { kept[..1].to_vec() };
                self.open(n, Kind::Row { outer }, BTreeSet::from([source]));
            }
        }
        Ok(())
    }

    /// A row cluster that has `x` at hand without homing it.
    fn reader(&mut self, x: NodeId, outer: Vec<AxisId>) -> Step<usize> {
        let at = self.c.list.len();
        self.c.list.push(empty(Kind::Row { outer: outer.clone() }));
        let check = self.check_value(x, at);
        self.c.list.pop();
        let deps = match check {
            Ok(deps) => deps,
            Err(refusal) if self.c.home(refusal.node).is_none() => {
                self.in_memory(refusal.node)?;
                return self.reader(x, outer);
            }
            Err(refusal) => return Err(refusal),
        };
        let bases = self.value_bases(x);
        let near = |c: &Cluster| x.0.abs_diff(c.span.1) <= NEAR;
        let found = (0..at).rev().take(256).find(|c| {
            let cluster = &self.c.list[*c];
            self.fuse
                && cluster.alive
                && matches!(&cluster.kind, Kind::Row { outer: o } if *o == outer)
                && near(cluster)
                && cluster.bases.intersection(&bases).next().is_some()
                && self.check_value(x, *c).is_ok()
        });
        let c = found.unwrap_or_else(|| {
            self.c.list.push(empty(Kind::Row { outer }));
            at
        });
        deps.iter().for_each(|d| self.reach.add(c, *d));
        let cluster = &mut self.c.list[c];
        cluster.deps.extend(deps.iter().copied().filter(|d| *d != c));
        cluster.bases.extend(bases);
        cluster.span = (cluster.span.0.min(x.0), cluster.span.1.max(x.0));
        Ok(c)
    }

    fn value_bases(&self, x: NodeId) -> BTreeSet<NodeId> {
        match self.c.p.layouts.view(self.g(), x).map(|v| v.base) {
            Some(b) if buffer_of(self.g(), b).is_some() || self.c.home(b).is_some() => BTreeSet::from([b]),
            _ => self.bases(x),
        }
    }

    /// The open cluster that finishes other column sums of the same kernel, if nothing stands between.
    fn finisher(&self, n: NodeId, source: usize) -> Option<usize> {
        (source + 1..self.c.list.len()).find(|c| {
            let cluster = &self.c.list[*c];
            cluster.alive
                && matches!(&cluster.kind, Kind::Row { outer } if outer.is_empty())
                && cluster.deps.len() == 1
                && cluster.deps.contains(&source)
                && cluster.columns.is_empty()
                && elements(self.g(), n) <= SMALL
        })
    }

    // ---- joining ----

    /// Clusters whose values an operand is, or is computed from on the way.
    fn soft(&self, x: NodeId) -> BTreeSet<usize> {
        match self.c.spot[x.0 as usize] {
            Spot::In(c) => BTreeSet::from([c]),
            Spot::Loose => {
                let base = self.c.p.layouts.view(self.g(), x).map(|v| v.base);
                if base.is_some_and(|b| buffer_of(self.g(), b).is_some() || self.c.home(b).is_some()) {
                    return BTreeSet::new();
                }
                if matches!(self.g().nodes[x.0 as usize].op, Op::Shift(..)) {
                    return BTreeSet::new();
                }
                self.g().nodes[x.0 as usize].args.iter().flat_map(|a| self.soft(*a)).collect()
            }
        }
    }

    /// All clusters that have to run before these values can be used.
    fn sources(&self, args: &[NodeId]) -> BTreeSet<usize> {
        let mut out = BTreeSet::new();
        let mut todo = args.to_vec();
        let mut seen = BTreeSet::new();
        while let Some(x) = todo.pop() {
            if !seen.insert(x) {
                continue;
            }
            match self.c.spot[x.0 as usize] {
                Spot::In(c) => {
                    out.insert(c);
                }
                Spot::Loose => todo.extend(&self.g().nodes[x.0 as usize].args),
            }
        }
        out
    }

    /// Clusters a node needs if it is computed in `c`; an error if it cannot be.
    fn check(&self, n: NodeId, c: usize) -> Step<BTreeSet<usize>> {
        let g = self.g();
        let none = BTreeSet::new();
        let refuse = |why: &str| Refusal { node: n, why: why.to_string() };
        let digits = match &self.c.list[c].kind {
            Kind::Row { outer } => {
                row_legal(g, n, outer).map_err(|why| refuse(&why))?;
                let mine = axes(g, n);
                if !outer.iter().all(|a| mine.contains(a)) {
                    return Err(refuse("lacks a row axis of the kernel"));
                }
                let space = self.outer_for(n);
                if space.len() > outer.len() && outer.iter().all(|a| space.contains(a)) {
                    return Err(refuse("has more row axes than the kernel"));
                }
                Digits::new()
            }
            Kind::Gemm { .. } => self.epilogue_digits(n, c)?,
            Kind::Attend | Kind::Scatter | Kind::Host => return Err(refuse("comes from a kernel that fuses nothing")),
        };
        if self.count.get(&c).copied().unwrap_or(0) >= MOST_NODES {
            return Err(refuse("would make the kernel too large"));
        }
        if !self.apart(&self.targets(n), self.written.get(&c).unwrap_or(&Vec::new())) {
            return Err(refuse("goes to a buffer that the kernel writes already"));
        }
        let mut walk = Walk::new(&self.c, c, Depth::New, &none);
        walk.operands(n, &digits)?;
        if matches!(self.c.list[c].kind, Kind::Gemm { .. }) {
            let mut bases: BTreeSet<_> = self.bases(n).into_iter().filter(|b| self.c.home(*b) != Some(c)).collect();
            bases.extend(&self.c.list[c].bases);
            let most = if self.has_time(n) { EPILOGUE_OPERANDS.0 } else { EPILOGUE_OPERANDS.1 };
            if bases.len() > most {
                return Err(refuse("would make the epilogue read another large value"));
            }
        }
        self.needs(walk, n, c)
    }

    /// Clusters needed by `c` if it has to have `x` at hand without homing it.
    fn check_value(&self, x: NodeId, c: usize) -> Step<BTreeSet<usize>> {
        let none = BTreeSet::new();
        let mut walk = Walk::new(&self.c, c, Depth::New, &none);
        walk.visit(x, &Digits::new())?;
        self.needs(walk, x, c)
    }

    /// The clusters whose values a walk found in memory, if waiting for them makes no cycle.
    fn needs(&self, walk: Walk<'_>, n: NodeId, c: usize) -> Step<BTreeSet<usize>> {
        let leaf = |what: &Use| match what {
            Use::Leaf(v) => self.c.home(v.base),
            _ => None,
        };
        let deps: BTreeSet<_> = walk.uses.values().filter_map(leaf).collect();
        match deps.iter().find(|d| self.reach.needs(**d, c)) {
            Some(_) => Err(Refusal { node: n, why: "needs a kernel that waits for this one".to_string() }),
            None => Ok(deps),
        }
    }

    /// Where the axes of an epilogue node are, if it can be one.
    fn epilogue_digits(&self, n: NodeId, c: usize) -> Step<Digits> {
        let g = self.g();
        let refuse = |why: &str| Refusal { node: n, why: why.to_string() };
        let Kind::Gemm { frame, digits, .. } = &self.c.list[c].kind else {
            return Err(refuse("is no contraction"));
        };
        let node = &g.nodes[n.0 as usize];
        let full = node.args.iter().find_map(|a| digits.get(a).filter(|d| covers(frame, d)));
        let full = full.ok_or_else(|| refuse("has no operand over the whole result"))?;
        let mine =
            if is_elementwise(&node.op) { full.clone() } else { relabelled(g, n, full).map_err(|why| refuse(&why))? };
        let known = |a: &AxisId| super::layout::size(g, *a) == 1 || mine.contains_key(a);
        if !node.ty.axes.iter().all(known) || !covers(frame, &mine) {
            return Err(refuse("has axes that the product has not"));
        }
        let writes = |view: &View| frame.linear(g, view, &mine).is_some_and(|s| s.get(&Place::N) == Some(&1));
        let own = View { base: n, offset: 0, axes: dense(g, &self.c.p.layouts.order(g, n)) };
        if !writes(&own) {
            return Err(refuse("would be stored across the product's rows"));
        }
        if !self.targets(n).iter().all(|o| writes(&self.c.p.effects[*o].view())) {
            return Err(refuse("goes to a buffer stored across the product's rows"));
        }
        Ok(mine)
    }

    /// Outputs of a value.
    fn targets(&self, n: NodeId) -> Vec<usize> {
        self.outputs.get(&n).cloned().unwrap_or_default()
    }

    /// Whether no output of one list may touch one of the other.
    fn apart(&self, a: &[usize], b: &[usize]) -> bool {
        let all = &self.c.p.effects;
        a.iter().all(|x| b.iter().all(|y| all[*x].apart(&all[*y], self.g())))
    }

    fn join(&mut self, n: NodeId, c: usize) -> bool {
        match self.check(n, c) {
            Ok(deps) => {
                if let Ok(mine) = self.epilogue_digits(n, c)
                    && let Kind::Gemm { digits, .. } = &mut self.c.list[c].kind
                {
                    digits.insert(n, mine);
                }
                self.home(n, c, deps);
                true
            }
            Err(refusal) => {
                let about = if refusal.node == n { "" } else { "an operand " };
                self.c.refused.entry(n).or_insert((c, format!("{about}{}", refusal.why)));
                false
            }
        }
    }

    fn home(&mut self, n: NodeId, c: usize, deps: BTreeSet<usize>) {
        if n.0 < self.passed {
            self.c.late.insert(n, self.c.list.len());
        }
        self.c.spot[n.0 as usize] = Spot::In(c);
        *self.count.entry(c).or_default() += 1;
        let targets = self.targets(n);
        self.written.entry(c).or_default().extend(targets);
        // Operands of an anchor are no operands of its epilogue.
        let own = matches!(self.c.list[c].kind, Kind::Gemm { dot, .. } if dot == n);
        let bases = if own { BTreeSet::new() } else { self.bases(n) };
        if can_inline(&self.g().nodes[n.0 as usize].op) && bases.len() == 1 {
            self.root[n.0 as usize] = bases.first().copied().unwrap_or(n);
        }
        let bases: Vec<_> = bases.into_iter().filter(|b| self.c.home(*b) != Some(c)).collect();
        deps.iter().for_each(|d| self.reach.add(c, *d));
        let cluster = &mut self.c.list[c];
        cluster.deps.extend(deps.into_iter().filter(|d| *d != c));
        cluster.bases.extend(bases);
        cluster.span = (cluster.span.0.min(n.0), cluster.span.1.max(n.0));
    }

    fn open(&mut self, n: NodeId, kind: Kind, deps: BTreeSet<usize>) -> usize {
        let c = self.c.list.len();
        self.c.list.push(empty(kind));
        self.home(n, c, deps);
        c
    }

    /// Merges a row cluster into another over the same rows, if neither needs the other.
    fn merge(&mut self, from: usize, into: usize) {
        let same = match (self.c.outer(from), self.c.outer(into)) {
            (Some(a), Some(b)) => a == b,
            _ => false,
        };
        let count = |c| self.count.get(&c).copied().unwrap_or(0);
        let none = Vec::new();
        let written = |c| self.written.get(&c).unwrap_or(&none);
        let between = from.min(into)..from.max(into);
        if !self.apart(written(from), written(into)) || self.c.late.values().any(|l| between.contains(&(l - 1))) {
            return;
        }
        if !same
            || count(from) + count(into) > MOST_NODES
            || self.reach.needs(from, into)
            || self.needs_beyond(into, from)
        {
            return;
        }
        self.c.spot.iter_mut().filter(|s| **s == Spot::In(from)).for_each(|s| *s = Spot::In(into));
        let Cluster { deps, columns, bases, span, .. } = std::mem::replace(&mut self.c.list[from], empty(Kind::Host));
        self.c.list[from].alive = false;
        let moved = self.count.remove(&from).unwrap_or(0);
        *self.count.entry(into).or_default() += moved;
        let targets = self.written.remove(&from).unwrap_or_default();
        self.written.entry(into).or_default().extend(targets);
        let cluster = &mut self.c.list[into];
        cluster.deps.extend(deps);
        cluster.columns.extend(columns);
        cluster.bases.extend(bases);
        cluster.span = (cluster.span.0.min(span.0), cluster.span.1.max(span.1));
        for cluster in &mut self.c.list {
            if cluster.deps.remove(&from) {
                cluster.deps.insert(into);
            }
        }
        self.c.list[into].deps.remove(&into);
        let deps: Vec<_> = self.c.list[into].deps.iter().copied().collect();
        deps.iter().for_each(|d| self.reach.add(into, *d));
        for c in (0..self.c.list.len()).filter(|c| *c != into && *c != from) {
            if self.reach.needs(c, from) {
                self.reach.add(c, into);
            }
        }
    }

    /// Whether `into` needs `from` other than by reading values it could compute itself.
    fn needs_beyond(&self, into: usize, from: usize) -> bool {
        let deps: Vec<_> = self.c.list[into].deps.iter().copied().filter(|d| *d != from).collect();
        deps.iter().any(|d| self.reach.needs(*d, from)) || self.reach.needs(into, from) && self.hard(into, from)
    }

    /// Whether a cluster reads a value of another from memory in a way that only memory allows, or finishes its column sums.
    fn hard(&self, into: usize, from: usize) -> bool {
        let g = self.g();
        if self.c.list[from].columns.iter().any(|n| self.c.home(*n) == Some(into)) {
            return true;
        }
        let (lo, hi) = self.c.list[into].span;
        // Every path from a node of `into` to a value of `from` must consist of homed or inlinable steps inside a row.
        (lo..=hi).map(NodeId).filter(|n| self.c.home(*n) == Some(into)).any(|n| {
            let node = &g.nodes[n.0 as usize];
            let through_memory = |a: &NodeId| self.c.home(*a).is_none() || matches!(node.op, Op::Gather(_));
            node.args.iter().any(|a| through_memory(a) && self.sources(&[*a]).contains(&from))
        })
    }
}

/// Who needs whom, directly or not, as one bit set per cluster.
#[derive(Clone, Debug, Default)]
struct Reach {
    sets: Vec<Vec<u64>>,
}

impl Reach {
    /// Whether `d` needs `c` (a cluster needs itself).
    fn needs(&self, d: usize, c: usize) -> bool {
        d == c || self.sets.get(d).and_then(|s| s.get(c / 64)).is_some_and(|w| w >> (c % 64) & 1 == 1)
    }

    /// Records that `d` needs `c`.
    fn add(&mut self, d: usize, c: usize) {
        if d == c || self.needs(d, c) {
            return;
        }
        let most = d.max(c);
        if self.sets.len() <= most {
            self.sets.resize(most + 1, Vec::new());
        }
        let mut news = self.sets[c].clone();
        set(&mut news, c);
        for x in 0..self.sets.len() {
            if self.needs(x, d) {
                let mine = &mut self.sets[x];
                if mine.len() < news.len() {
                    mine.resize(news.len(), 0);
                }
                mine.iter_mut().zip(&news).for_each(|(a, b)| *a |= b);
            }
        }
    }
}

fn set(bits: &mut Vec<u64>, i: usize) {
    if bits.len() <= i / 64 {
        bits.resize(i / 64 + 1, 0);
    }
    bits[i / 64] |= 1 << (i % 64);
}

fn empty(kind: Kind) -> Cluster {
    Cluster {
        kind,
        deps: BTreeSet::new(),
        columns: BTreeSet::new(),
        bases: BTreeSet::new(),
        span: (u32::MAX, 0),
        alive: true,
    }
}

/// Tells keys of gradient attention from keys of forward attention.
fn n_args_marker() -> NodeId {
    NodeId(u32::MAX)
}
