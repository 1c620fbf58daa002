//! Which values cross kernels, and which are computed again where they are needed.
//!
//! *Takes* [`Clusters`]; *gives* a [`Body`] per kernel that is left; *promises* that everything a kernel reads is stored by another one,
//! that nothing is stored in vain, and that the estimated cost of the result is no higher than that of storing everything.
//!
//! The cost of a kernel is the bytes it reads and writes plus a tenth of its element-wise operations plus [`LAUNCH`]. Starting from "store whatever
//! another kernel needs", values are taken out of memory one at a time or in groups that derive from one other value, as long as that pays.

use super::Error;
use super::cluster::{Clusters, Depth, Kind, Use, Walk, can_inline, is_attention};
use super::contract::Digits;
use super::layout::{View, axes, buffer_of, numel};
use crate::graph::ir::{Graph, NodeId, Op};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that could move in the time it takes to start a kernel on all threads.
const LAUNCH: f64 = 20_000.0;
/// Cost of one operation, in bytes.
const OPERATION: f64 = 0.1;
/// A value is large if it has more than 1/8 of the elements of the largest one around.
const LARGE: usize = 8;
/// Arguments of a row kernel and of an epilogue at most, when recomputing is what adds them.
const MOST_ARGS: (usize, usize) = (48, 16);
/// Values of a body at most, when recomputing is what adds them.
const MOST_NODES: usize = 300;

/// What one kernel computes, reads and writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    /// Values stored for other kernels.
    pub stored: BTreeSet<NodeId>,
    /// Effects, by number.
    pub effects: BTreeSet<usize>,
    /// Column sums left as partial sums, by their `Reduce` node.
    pub columns: BTreeSet<NodeId>,
    /// What is done about every value.
    pub uses: BTreeMap<NodeId, Use>,
    /// Values in computable order.
    pub order: Vec<NodeId>,
    /// Epilogues: where the axes of values are.
    pub digits: BTreeMap<NodeId, Digits>,
    /// Stored values and `Read`s it needs, operands of anchors included.
    pub reads: BTreeSet<NodeId>,
    /// Column sums it finishes.
    pub finishes: BTreeSet<NodeId>,
    cost: f64,
}

impl Body {
    /// Whether the kernel has anything to write.
    pub fn alive(&self) -> bool {
        !(self.stored.is_empty() && self.effects.is_empty() && self.columns.is_empty())
    }
}

/// Decides and gives the bodies by cluster. With `recompute` off everything that another kernel needs is stored.
pub(super) fn store(clusters: &mut Clusters<'_>, recompute: bool) -> Result<Vec<Body>, Error> {
    let mut s = Store::new(clusters)?;
    if recompute {
        s.improve();
    }
    let Store { now, inlined, .. } = s;
    clusters.inlined = inlined;
    Ok(now.bodies)
}

/// Bodies and who reads what.
#[derive(Debug, Default)]
struct State {
    bodies: Vec<Body>,
    /// Clusters that read a value, or (true) finish a column sum.
    users: BTreeMap<Need, BTreeSet<usize>>,
}

/// A value, or (true) the partial sums behind it.
type Need = (NodeId, bool);

/// What [`Store::settle`] changed, in order, so that it can be taken back.
#[derive(Debug, Default)]
struct Journal {
    bodies: Vec<(usize, Body)>,
    /// The cluster that cannot compute what it would have to.
    failed: Option<usize>,
    users: Vec<(Need, usize, bool)>,
}

struct Store<'c, 'p> {
    c: &'c Clusters<'p>,
    /// Nodes by cluster.
    homed: Vec<Vec<NodeId>>,
    /// Effects by cluster.
    effects: Vec<BTreeSet<usize>>,
    /// Buffers that some effect writes.
    written: BTreeSet<crate::graph::ir::BufferId>,
    /// Clusters that leave partial sums, by column sum.
    sources: BTreeMap<NodeId, usize>,
    /// Values that anchors need in memory.
    fixed: BTreeSet<NodeId>,
    inlined: BTreeSet<NodeId>,
    now: State,
    /// How often the body of a cluster, or who reads its values, has changed.
    changes: Vec<u32>,
    /// Groups that were tried in vain, with the clusters that had a say and their changes by then.
    vain: BTreeMap<BTreeSet<NodeId>, Vec<(usize, u32)>>,
}

impl<'c, 'p> Store<'c, 'p> {
    fn new(c: &'c Clusters<'p>) -> Result<Self, Error> {
        let mut homed = vec![Vec::new(); c.list.len()];
        for i in 0..c.g().nodes.len() as u32 {
            if let Some(home) = c.home(NodeId(i)) {
                homed[home].push(NodeId(i));
            }
        }
        let mut effects = vec![BTreeSet::new(); c.list.len()];
        for (i, e) in c.p.effects.iter().enumerate() {
            match c.home(e.value) {
                Some(home) => effects[home].insert(i),
                None => return Err(Error::new(&c.g().name, format!("effect {i} has a value that no kernel computes"))),
            };
        }
        let written = c.p.effects.iter().map(|e| e.buffer).collect();
        let columns =
            |(i, k): (usize, &super::cluster::Cluster)| k.columns.iter().map(move |n| (*n, i)).collect::<Vec<_>>();
        let mut s = Store {
            c,
            homed,
            effects,
            written,
            sources: c.list.iter().enumerate().filter(|(_, k)| k.alive).flat_map(columns).collect(),
            fixed: BTreeSet::new(),
            inlined: BTreeSet::new(),
            now: State::default(),
            changes: vec![0; c.list.len()],
            vain: BTreeMap::new(),
        };
        let start: BTreeSet<_> = (0..c.list.len()).filter(|i| !s.effects[*i].is_empty()).collect();
        let mut state = State { bodies: vec![Body::default(); c.list.len()], users: BTreeMap::new() };
        let settled = s.settle(&mut state, start, &BTreeSet::new(), &mut Journal::default(), &|_, _, _| true);
        settled.map_err(|why| Error::new(&c.g().name, why))?;
        s.now = state;
        for (i, _) in s.now.bodies.iter().enumerate().filter(|(_, b)| b.alive()) {
            s.fixed.extend(operands(c, i, &s.homed[i]).into_iter().map(|v| v.base));
        }
        Ok(s)
    }

    /// Recomputes bodies until they agree with who reads what. Stops with an error at the first body that cannot be, or that does not
    /// `suit` in place of the body before.
    fn settle(
        &self,
        state: &mut State,
        start: BTreeSet<usize>,
        also: &BTreeSet<NodeId>,
        journal: &mut Journal,
        suits: &dyn Fn(usize, &Body, &Body) -> bool,
    ) -> Result<(), String> {
        let mut todo = start;
        while let Some(c) = todo.pop_last() {
            let body = self.body(c, state, also).inspect_err(|_| journal.failed = Some(c))?;
            let old = std::mem::replace(&mut state.bodies[c], body);
            let (before, after) = (old.needs(), state.bodies[c].needs());
            let suited = suits(c, &old, &state.bodies[c]);
            journal.bodies.push((c, old));
            for n in before.difference(&after) {
                let users = state.users.entry(*n).or_default();
                users.remove(&c);
                journal.users.push((*n, c, false));
                if users.is_empty() {
                    todo.extend(self.provider(*n));
                }
            }
            for n in after.difference(&before) {
                let users = state.users.entry(*n).or_default();
                if users.is_empty() {
                    todo.extend(self.provider(*n));
                }
                users.insert(c);
                journal.users.push((*n, c, true));
            }
            if !suited {
                return Err(format!("kernel {c} would read too much"));
            }
        }
        Ok(())
    }

    fn undo(state: &mut State, journal: Journal) {
        for (c, body) in journal.bodies.into_iter().rev() {
            state.bodies[c] = body;
        }
        for (n, c, inserted) in journal.users.into_iter().rev() {
            let users = state.users.entry(n).or_default();
            if inserted {
                users.remove(&c);
            } else {
                users.insert(c);
            }
        }
    }

    /// The cluster that has to write something for a value that others need.
    fn provider(&self, (n, partial): Need) -> Option<usize> {
        if partial { self.sources.get(&n).copied() } else { self.c.home(n) }
    }

    fn body(&self, c: usize, state: &State, also: &BTreeSet<NodeId>) -> Result<Body, String> {
        let cluster = &self.c.list[c];
        let used = |n: NodeId, partial: bool| state.users.get(&(n, partial)).is_some_and(|u| !u.is_empty());
        let stored = self.homed[c].iter().copied().filter(|n| used(*n, false));
        let mut body = Body {
            stored: stored.collect(),
            effects: self.effects[c].clone(),
            columns: cluster.columns.iter().copied().filter(|n| used(*n, true)).collect(),
            ..Body::default()
        };
        if !body.alive() {
            return Ok(body);
        }
        let g = self.c.g();
        match &cluster.kind {
            Kind::Row { .. } | Kind::Gemm { .. } | Kind::Attend { rows: Some(_) } => {
                let mut walk = Walk::new(self.c, c, Depth::Full, also);
                let fail = |r: super::cluster::Refusal| format!("kernel {c}: %{} {}", r.node.0, r.why);
                let mut roots: BTreeSet<_> = body.stored.clone();
                roots.extend(body.effects.iter().map(|e| self.c.p.effects[*e].value));
                // Attention gives it beside the rows.
                roots.retain(|n| !matches!(g.nodes[n.0 as usize].op, Op::AttendLse(_)));
                for n in &roots {
                    walk.root(*n).map_err(fail)?;
                }
                for n in &body.columns {
                    walk.visit(g.nodes[n.0 as usize].args[0], &Digits::new()).map_err(fail)?;
                }
                let Walk { uses, order, digits, .. } = walk;
                body.reads =
                    uses.values().filter_map(|u| if let Use::Leaf(v) = u { Some(v.base) } else { None }).collect();
                body.finishes = uses.iter().filter(|(_, u)| matches!(u, Use::Partial(_))).map(|(n, _)| *n).collect();
                (body.uses, body.order, body.digits) = (uses, order, digits);
            }
            Kind::Attend { rows: None } | Kind::Scatter | Kind::Quantile | Kind::Feedback => {}
        }
        body.reads.extend(operands(self.c, c, &self.homed[c]).into_iter().map(|v| v.base));
        body.cost = self.cost(&body);
        Ok(body)
    }

    fn cost(&self, body: &Body) -> f64 {
        let g = self.c.g();
        let bytes = |n: NodeId| (numel(g, axes(g, n)) * self.c.p.storage[n.0 as usize].bytes()) as f64;
        let mut seen: BTreeMap<NodeId, f64> = BTreeMap::new();
        let mut flops = 0.0;
        for (n, what) in &body.uses {
            match what {
                Use::Leaf(v) => {
                    let real: usize =
                        v.axes.iter().filter(|(_, s)| *s != 0).map(|(a, _)| super::layout::size(g, *a)).product();
                    let size = (real * self.c.p.storage[v.base.0 as usize].bytes()) as f64;
                    *seen.entry(v.base).or_default() += size;
                }
                Use::Compute => flops += crate::graph::ops::flops(g, &g.nodes[n.0 as usize]) as f64,
                Use::Partial(_) | Use::Acc => {}
            }
        }
        let reads: f64 = seen.iter().map(|(n, b)| b.min(bytes(*n))).sum();
        let writes: f64 = body.stored.iter().map(|n| bytes(*n)).sum();
        reads + writes + OPERATION * flops + LAUNCH
    }

    // ---- improving ----

    fn improve(&mut self) {
        for _ in 0..3 {
            let before = self.inlined.len();
            let stored: Vec<_> = self.now.bodies.iter().flat_map(|b| b.stored.iter().copied()).collect();
            for n in stored.into_iter().collect::<BTreeSet<_>>().into_iter().rev() {
                if self.may_inline(n) {
                    self.attempt(&BTreeSet::from([n]));
                }
            }
            for c in (0..self.c.list.len()).rev() {
                let computed: Vec<_> =
                    self.now.bodies[c].order.iter().copied().filter(|n| self.c.home(*n) == Some(c)).collect();
                for p in computed {
                    let group = self.derived(c, p);
                    if group.len() > 1 {
                        self.attempt(&group);
                    }
                }
            }
            if self.inlined.len() == before {
                break;
            }
        }
    }

    fn is_stored(&self, n: NodeId) -> bool {
        self.c.home(n).is_some_and(|c| self.now.bodies[c].stored.contains(&n))
    }

    fn may_inline(&self, n: NodeId) -> bool {
        can_inline(&self.c.g().nodes[n.0 as usize].op)
            && !matches!(self.c.g().nodes[n.0 as usize].op, Op::StopGradient)
            && !self.fixed.contains(&n)
            && !self.inlined.contains(&n)
            && self.is_stored(n)
    }

    /// The stored values of a cluster that could be computed from `p`, with everything on the way.
    fn derived(&self, c: usize, p: NodeId) -> BTreeSet<NodeId> {
        if self.is_stored(p) {
            return BTreeSet::new();
        }
        let g = self.c.g();
        let mut from_p = BTreeSet::from([p]);
        for n in self.now.bodies[c].order.iter().filter(|n| self.c.home(**n) == Some(c)) {
            let node = &g.nodes[n.0 as usize];
            let derived = node.args.iter().any(|a| from_p.contains(a));
            if derived && can_inline(&node.op) && !self.fixed.contains(n) {
                from_p.insert(*n);
            }
        }
        let ends: BTreeSet<_> = from_p.iter().copied().filter(|n| *n != p && self.may_inline(*n)).collect();
        if ends.len() < 2 {
            return BTreeSet::new();
        }
        // What lies between p and the ends.
        let mut needed = ends;
        for n in from_p.iter().rev() {
            if needed.contains(n) {
                let args = &g.nodes[n.0 as usize].args;
                needed.extend(args.iter().copied().filter(|a| *a != p && from_p.contains(a) && !self.is_stored(*a)));
            }
        }
        needed
    }

    /// Takes some values out of memory if that makes the kernels cheaper.
    fn attempt(&mut self, group: &BTreeSet<NodeId>) {
        // Nothing that had a say has changed: the answer is the same.
        if self.vain.get(group).is_some_and(|seen| seen.iter().all(|(c, changes)| self.changes[*c] == *changes)) {
            return;
        }
        let mut also = std::mem::take(&mut self.inlined);
        let new: Vec<_> = group.iter().copied().filter(|n| also.insert(*n)).collect();
        let start = group.iter().filter_map(|n| self.now.users.get(&(*n, false))).flatten().copied().collect();
        let mut state = std::mem::take(&mut self.now);
        let mut journal = Journal::default();
        let suits = |c: usize, old: &Body, new: &Body| self.acceptable(c, old, new);
        let settled = self.settle(&mut state, start, &also, &mut journal, &suits).is_ok();
        let good = settled && {
            let mut gain = 0.0;
            let mut first = BTreeSet::new();
            journal.bodies.iter().filter(|(c, _)| first.insert(*c)).all(|(c, old)| {
                let new = &state.bodies[*c];
                gain += cost_of(old) - cost_of(new);
                self.acceptable(*c, old, new)
            }) && gain > 1e-9
        };
        let providers = journal.users.iter().filter_map(|(need, ..)| self.provider(*need));
        let homes = group.iter().filter_map(|n| self.c.home(*n));
        let bodies = journal.bodies.iter().map(|(c, _)| *c).chain(journal.failed);
        let touched: BTreeSet<_> = bodies.chain(providers).chain(homes).collect();
        if good {
            touched.iter().for_each(|c| self.changes[*c] += 1);
        } else {
            Self::undo(&mut state, journal);
            new.iter().for_each(|n| {
                also.remove(n);
            });
            self.vain.insert(group.clone(), touched.into_iter().map(|c| (c, self.changes[c])).collect());
        }
        self.inlined = also;
        self.now = state;
    }

    /// A kernel may compute more than before, but not read more large values, nor buffers that another one writes.
    fn acceptable(&self, c: usize, old: &Body, new: &Body) -> bool {
        let g = self.c.g();
        let volatile = |b: &Body| -> BTreeSet<NodeId> {
            let written = |n: &NodeId| buffer_of(g, *n).is_some_and(|b| self.written.contains(&b));
            b.reads.iter().copied().filter(written).collect()
        };
        let elements = |n: &NodeId| numel(g, axes(g, *n));
        let largest = new.reads.iter().chain(&old.reads).map(elements).max().unwrap_or(0);
        let large = |b: &Body| b.reads.iter().filter(|n| elements(n) * LARGE > largest).count();
        let grew = new.reads.len() > old.reads.len();
        let most = match self.c.list[c].kind {
            Kind::Gemm { .. } | Kind::Attend { .. } => MOST_ARGS.1,
            _ => MOST_ARGS.0,
        };
        let shifts = |b: &Body| {
            let shift = |n: &&NodeId| matches!(g.nodes[n.0 as usize].op, Op::Shift(..)) && b.uses[*n] == Use::Compute;
            b.order.iter().filter(shift).count()
        };
        volatile(new).is_subset(&volatile(old))
            // A shift reads its operand once more.
            && (!old.alive() || shifts(new) <= shifts(old))
            && (!old.alive() || large(new) <= large(old))
            && !(grew && new.reads.len() + new.stored.len() + new.effects.len() > most)
            && !(new.order.len() > old.order.len() && new.order.len() > MOST_NODES)
    }
}

impl Body {
    /// Values of others that it needs, column sums included.
    fn needs(&self) -> BTreeSet<Need> {
        let whole = self.reads.iter().map(|n| (*n, false));
        whole.chain(self.finishes.iter().map(|n| (*n, true))).collect()
    }
}

fn cost_of(b: &Body) -> f64 {
    if b.alive() { b.cost } else { 0.0 }
}

/// Operands of an anchor cluster.
pub(super) fn operands(c: &Clusters<'_>, cluster: usize, homed: &[NodeId]) -> Vec<View> {
    let g: &Graph = c.g();
    let of = |n: &NodeId| g.nodes[n.0 as usize].args.iter().filter_map(|a| c.p.layouts.view(g, *a)).collect::<Vec<_>>();
    match &c.list[cluster].kind {
        Kind::Row { .. } => Vec::new(),
        Kind::Gemm { frame, .. } => vec![frame.a.clone(), frame.b.clone()],
        Kind::Attend { .. } => homed.iter().filter(|n| is_attention(&g.nodes[n.0 as usize].op)).flat_map(of).collect(),
        Kind::Scatter | Kind::Quantile | Kind::Feedback => homed.iter().flat_map(of).collect(),
    }
}
