//! Row kernels: element-wise work, reductions, sums over rows.

use super::{Fuse, LARGE, NEAR, SMALL, Step, empty};
use crate::graph::ir::{AxisId, NodeId, Op};
use crate::schedule::cluster::{Cluster, Kind, Refusal, elements, touched};
use crate::schedule::layout::{axes, buffer_of, is_role, numel};
use std::collections::BTreeSet;

impl Fuse<'_> {
    pub(super) fn element(&mut self, n: NodeId) -> Step<()> {
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

    pub(super) fn row_op(&mut self, n: NodeId) -> Step<()> {
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
    pub(super) fn force(&mut self, n: NodeId) -> Step<()> {
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
    pub(super) fn bases(&self, n: NodeId) -> BTreeSet<NodeId> {
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
    pub(super) fn outer_for(&self, n: NodeId) -> Vec<AxisId> {
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
    pub(super) fn column_space(&self, x: NodeId, over: &[AxisId]) -> Option<Vec<AxisId>> {
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
    pub(super) fn column_sum(&mut self, n: NodeId, outer: Vec<AxisId>) -> Step<()> {
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
}
