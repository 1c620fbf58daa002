//! Attention's epilogues: row kernels that do nothing but finish rows of attention.
//!
//! *Takes* the clusters of all nodes; *gives* the same with such row kernels in the attention kernel whose result they read; *promises* that what is left is
//! legal, and that no kernel moves more than before.
//!
//! A row kernel joins as a whole or not at all: then everything it reads and gives is known. It may do element-wise work on values over the axes of attention's
//! result and reduce along the head dimension; what it reads lies at the same position. Key/value heads and the group are two indices: work on heads that were
//! merged before stays apart. Reading a value once per query head that has no such axis must not cost more than the read of attention's result that is saved.

use super::{Fuse, Step};
use crate::graph::ir::{EffectMode, NodeId, Op};
use crate::schedule::cluster::{Depth, Finish, Kind, Refusal, Spot, Use, Walk, relabelled};
use crate::schedule::contract::{Digits, Group, Place, Space};
use crate::schedule::layout::{View, axes, dense, numel, size};
use crate::schedule::prepare::{attend_axes, is_move};
use std::collections::{BTreeMap, BTreeSet};

impl Fuse<'_> {
    /// Lets every row kernel that can join the attention kernel it reads from; attention in `plain` stays alone, for the reason given.
    pub(super) fn finish_rows(&mut self, plain: &BTreeMap<NodeId, String>) {
        let attends: Vec<_> = (0..self.g().nodes.len() as u32)
            .map(NodeId)
            .filter(|n| matches!(self.g().nodes[n.0 as usize].op, Op::Attend(_)))
            .filter_map(|n| Some((n, self.c.home(n)?)))
            .collect();
        for (y, into) in attends {
            let reads = |c: &usize| {
                let cluster = &self.c.list[*c];
                cluster.alive && matches!(cluster.kind, Kind::Row { .. }) && cluster.deps.contains(&into)
            };
            for from in (0..self.c.list.len()).filter(reads).collect::<Vec<_>>() {
                let homed = self.homed(from);
                let outcome = match plain.get(&y) {
                    Some(why) => Err(Refusal { node: y, why: why.clone() }),
                    None => self.absorb(y, &homed, (from, into)),
                };
                match outcome {
                    Ok(()) => self.c.refused.retain(|n, _| !homed.contains(n)),
                    Err(r) => {
                        let tried = |n: &&NodeId| self.c.refused.get(n).is_some_and(|(c, _)| *c == into);
                        if let Some(n) = homed.iter().find(tried).or(homed.first()) {
                            let name = crate::graph::ops::row(&self.g().nodes[r.node.0 as usize].op).name;
                            let why = format!("is in a row kernel of which %{} ({name}) {}", r.node.0, r.why);
                            self.c.refused.insert(*n, (into, why));
                        }
                    }
                }
            }
        }
    }

    fn homed(&self, c: usize) -> Vec<NodeId> {
        (0..self.g().nodes.len() as u32).map(NodeId).filter(|n| self.c.home(*n) == Some(c)).collect()
    }

    /// Moves a row cluster's nodes to the attention cluster of `y`.
    fn absorb(&mut self, y: NodeId, homed: &[NodeId], (from, into): (usize, usize)) -> Step<()> {
        let refuse = |node: NodeId, why: &str| Err(Refusal { node, why: why.to_string() });
        let first = homed.first().copied().unwrap_or(y);
        if !self.c.list[from].columns.is_empty() {
            return refuse(first, "leaves sums over its rows");
        }
        let between = from.min(into)..from.max(into);
        if self.c.late.values().any(|l| between.contains(&(l - 1))) {
            return refuse(first, "got its kernel late");
        }
        let deps: Vec<_> = self.c.list[from].deps.iter().copied().filter(|d| *d != into).collect();
        if deps.iter().any(|d| self.reach.needs(*d, into)) {
            return refuse(first, "needs a kernel that waits for attention");
        }
        let mut rows = match &self.c.list[into].kind {
            Kind::Attend { rows: Some(f) } => f.as_ref().clone(),
            _ => {
                let space = self.space(y);
                let digits = BTreeMap::from([(y, space.digits(self.g()))]);
                Finish { y, space, digits }
            }
        };
        let places = self.places(&rows, homed);
        // What only looks at another value needs no kernel.
        let looks = |n: &NodeId| {
            is_move(&self.g().nodes[n.0 as usize].op)
                && self.c.views[n.0 as usize].as_ref().is_some_and(|v| v.base != *n)
        };
        let (moves, values): (Vec<_>, Vec<_>) = homed.iter().copied().partition(looks);
        if let Some(n) = moves.iter().find(|n| self.outputs.contains_key(n)) {
            return refuse(*n, "is stored in another order");
        }
        for n in &values {
            let digits = self.places_of(*n, &rows.space, &places)?;
            rows.digits.insert(*n, digits);
        }
        let before = std::mem::replace(&mut self.c.list[into].kind, Kind::Attend { rows: Some(Box::new(rows)) });
        moves.iter().for_each(|n| self.c.spot[n.0 as usize] = Spot::Loose);
        values.iter().for_each(|n| self.c.spot[n.0 as usize] = Spot::In(into));
        match self.sources_of(y, &values, into) {
            Ok(more) => {
                more.iter().for_each(|d| self.reach.add(into, *d));
                self.c.list[into].deps.extend(more);
                self.unite(from, into);
                Ok(())
            }
            Err(refusal) => {
                self.c.list[into].kind = before;
                homed.iter().for_each(|n| self.c.spot[n.0 as usize] = Spot::In(from));
                Err(refusal)
            }
        }
    }

    /// The index space of attention's result.
    fn space(&self, y: NodeId) -> Space {
        let g = self.g();
        let node = &g.nodes[y.0 as usize];
        let Op::Attend(how) = &node.op else { unreachable!("only called on Attend") };
        let ((batch, kv), group) = attend_axes(g, how, axes(g, node.args[0]), axes(g, node.args[1]));
        let one = |axes: Vec<_>| Group { size: numel(g, &axes), axes };
        Space { batch: [batch, kv, group].map(one).to_vec(), m: one(vec![how.time]), n: one(vec![how.dim]) }
    }

    /// Where axes are in the index space: those of `y`, and of values that relabel it on the way to `homed`.
    fn places(&self, rows: &Finish, homed: &[NodeId]) -> Digits {
        let g = self.g();
        let mut places = rows.space.digits(g);
        let last = homed.last().map_or(0, |n| n.0);
        for n in (rows.y.0 + 1..=last).map(NodeId) {
            let node = &g.nodes[n.0 as usize];
            let known = |x: &NodeId| axes(g, *x).iter().all(|a| size(g, *a) == 1 || places.contains_key(a));
            if matches!(node.op, Op::Rename(..) | Op::Split(..) | Op::Merge(..)) && known(&node.args[0]) {
                for (axis, digit) in relabelled(g, n, &places).unwrap_or_default() {
                    places.entry(axis).or_insert(digit);
                }
            }
        }
        places
    }

    /// Places of a value's axes, if attention could store it.
    fn places_of(&self, n: NodeId, space: &Space, places: &Digits) -> Step<Digits> {
        let g = self.g();
        let refuse = |why: &str| Refusal { node: n, why: why.to_string() };
        let real = axes(g, n).iter().filter(|a| size(g, **a) != 1);
        let mine: Option<Digits> = real.map(|a| Some((*a, *places.get(a)?))).collect();
        let mine = mine.ok_or_else(|| refuse("has axes that attention's result has not"))?;
        let writes = |view: &View| {
            let strides = space.linear(g, view, &mine);
            strides.is_some_and(|s| matches!(s[&Place::N], 0 | 1))
        };
        let own = View { base: n, offset: 0, axes: dense(g, &self.c.p.layouts.order(g, n)) };
        let outputs = self.targets(n);
        let effects = || outputs.iter().map(|o| &self.c.p.effects[*o]);
        if effects().any(|o| o.mode != EffectMode::Assign) {
            return Err(refuse("is added to a buffer"));
        }
        if !writes(&own) || !effects().all(|o| writes(&o.view())) {
            return Err(refuse("would be stored across attention's rows"));
        }
        Ok(mine)
    }

    /// Clusters that values moved to attention need, if it can compute them and that moves no more than before.
    fn sources_of(&self, y: NodeId, values: &[NodeId], into: usize) -> Step<BTreeSet<usize>> {
        let g = self.g();
        let none = BTreeSet::new();
        let mut walk = Walk::new(&self.c, into, Depth::Full, &none);
        for n in values {
            walk.root(*n)?;
        }
        let all = numel(g, axes(g, y));
        let mut deps = BTreeSet::new();
        let mut repeated = 0;
        for (n, what) in &walk.uses {
            let Use::Leaf(view) = what else { continue };
            if let Some(home) = self.c.home(view.base) {
                if self.reach.needs(home, into) {
                    return Err(Refusal {
                        node: *n,
                        why: "is computed by a kernel that waits for attention".to_string(),
                    });
                }
                deps.insert(home);
            }
            // What does not vary over positions stays in the first-level cache.
            if self.has_time(*n) && walk.digits[n].values().any(|d| d.place == Place::N) {
                repeated += all - numel(g, axes(g, *n));
            }
        }
        if repeated > all {
            return Err(Refusal { node: y, why: "would read too much once per query head".to_string() });
        }
        Ok(deps)
    }
}
