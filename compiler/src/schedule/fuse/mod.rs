//! Which node is computed in which kernel.
//!
//! *Takes* a prepared graph; *gives* [`Clusters`]; *promises* that the clusters can be put in an order, that each is a legal kernel,
//! and that the choice depends on the graph only.
//!
//! Nodes are taken in order. Anchors (contractions, attention, scatter-adds, host routines) open clusters of their own. Element-wise work joins the
//! cluster of its latest operand, be it a row kernel or the epilogue of a contraction, unless that would make a cycle or is not allowed there;
//! reductions join row kernels only. Cheap functions of one stored value stay loose: every kernel computes them for itself. At last, row kernels that finish
//! rows of attention become its epilogues ([`finish`]).

mod finish;
mod join;
mod reach;
mod rows;

use super::Error;
use super::cluster::{Cluster, Clusters, Kind, Refusal, Spot, can_inline, elements, is_elementwise, touched};
use super::contract;
use super::layout::{axes, buffer_of, is_role};
use super::prepare::{Prepared, is_move};
use crate::graph::ir::{Graph, NodeId, Op, Reduce};
use crate::kernel::is_own_kernel;
use reach::Reach;
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

/// Assigns nodes to clusters. Without `fuse` every node is its own kernel. Attention in `plain` gets no epilogue, for these reasons.
pub(super) fn fuse<'p>(p: &'p Prepared, fuse: bool, plain: &BTreeMap<NodeId, String>) -> Result<Clusters<'p>, Error> {
    let n = p.graph.nodes.len();
    let clusters = Clusters {
        p,
        list: Vec::new(),
        spot: vec![Spot::Loose; n],
        views: (0..n as u32).map(|i| p.layouts.view(&p.graph, NodeId(i))).collect(),
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
    if fuse {
        f.finish_rows(plain);
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
        let operands = match &node.op {
            op if is_own_kernel(op) => &node.args[..],
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
            Op::Quantile(..) => self.anchor(n, Kind::Quantile).map(|_| ()),
            Op::FeedbackRound { .. } => self.anchor(n, Kind::Feedback).map(|_| ()),
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
        let c = self.anchor(n, Kind::Attend { rows: None })?;
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
