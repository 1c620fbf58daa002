//! Whether a node may be computed in a cluster, and what follows if it is.

use super::{EPILOGUE_OPERANDS, Fuse, MOST_NODES, Step, empty};
use crate::graph::ir::{AxisId, NodeId, Op};
use crate::schedule::cluster::{
    Cluster, Depth, Kind, Refusal, Spot, Use, Walk, can_inline, covers, is_elementwise, relabelled, row_legal,
};
use crate::schedule::contract::{Digits, Place};
use crate::schedule::layout::{View, axes, buffer_of, dense, size};
use std::collections::BTreeSet;

impl Fuse<'_> {
    /// Clusters whose values an operand is, or is computed from on the way.
    pub(super) fn soft(&self, x: NodeId) -> BTreeSet<usize> {
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
    pub(super) fn sources(&self, args: &[NodeId]) -> BTreeSet<usize> {
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
    pub(super) fn check(&self, n: NodeId, c: usize) -> Step<BTreeSet<usize>> {
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
            Kind::Attend { .. } | Kind::Scatter | Kind::Quantile | Kind::Feedback => {
                return Err(refuse("comes from a kernel that fuses nothing"));
            }
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
    pub(super) fn check_value(&self, x: NodeId, c: usize) -> Step<BTreeSet<usize>> {
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
        let known = |a: &AxisId| size(g, *a) == 1 || mine.contains_key(a);
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
    pub(super) fn targets(&self, n: NodeId) -> Vec<usize> {
        self.outputs.get(&n).cloned().unwrap_or_default()
    }

    /// Whether no output of one list may touch one of the other.
    fn apart(&self, a: &[usize], b: &[usize]) -> bool {
        let all = &self.c.p.effects;
        a.iter().all(|x| b.iter().all(|y| all[*x].apart(&all[*y], self.g())))
    }

    pub(super) fn join(&mut self, n: NodeId, c: usize) -> bool {
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

    pub(super) fn home(&mut self, n: NodeId, c: usize, deps: BTreeSet<usize>) {
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

    pub(super) fn open(&mut self, n: NodeId, kind: Kind, deps: BTreeSet<usize>) -> usize {
        let c = self.c.list.len();
        self.c.list.push(empty(kind));
        self.home(n, c, deps);
        c
    }

    /// Merges a row cluster into another over the same rows, if neither needs the other.
    pub(super) fn merge(&mut self, from: usize, into: usize) {
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
        self.unite(from, into);
    }

    /// Everything of one cluster becomes another's.
    pub(super) fn unite(&mut self, from: usize, into: usize) {
        self.c.spot.iter_mut().filter(|s| **s == Spot::In(from)).for_each(|s| *s = Spot::In(into));
        let Cluster { deps, columns, bases, span, .. } =
            std::mem::replace(&mut self.c.list[from], empty(Kind::Quantile));
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
