//! Nests of loops over the threads of a crew.
//!
//! Three ways: element-wise nests hand their positions round the threads; nests that sum along other dimensions than the vector's give every thread its columns; nests
//! that sum along the vector dimension give a result to a group of threads, who add up in a butterfly (and across warps through shared memory).
//!
//! Few rounds are written out so that their loads overlap; a thread without work in the last round is kept from writing, and where threads meet (shuffles, barriers)
//! it computes along.

use super::{Writer, elem, wide};
use crate::kernel::gpu::row::{by_columns, carried, free, group, product, resident};
use crate::kernel::row::loops::{Id, Inst, Nest};
use crate::mlir::elementwise;
use crate::mlir::emit::{Cmp, Elem, Emit, F32, I32, Ty, V};
use crate::mlir::gpu::ops;

/// A condition for writing: none is always.
type Active<'c> = Option<V<'c>>;

/// One step of a chain: position, whether it exists, accumulators before; gives those after.
type Link<'a, 'p, 'c> = dyn FnMut(&mut Writer<'p, 'c>, &Emit<'c>, V<'c>, Active<'c>, Vec<V<'c>>) -> Vec<V<'c>> + 'a;

fn both<'c>(e: &Emit<'c>, a: Active<'c>, b: Active<'c>) -> Active<'c> {
    match (a, b) {
        (Some(a), Some(b)) => Some(e.and(a, b)),
        (a, b) => a.or(b),
    }
}

impl<'p, 'c> Writer<'p, 'c> {
    /// Writes a nest.
    pub(super) fn nest(&mut self, e: &Emit<'c>, nest: &Nest) {
        self.prepare(e, nest);
        self.dims.clear();
        if nest.dims.is_empty() && carried(self.p, nest).is_empty() {
            self.straight(e, nest);
        } else if carried(self.p, nest).is_empty() {
            self.map(e, nest);
        } else if by_columns(self.p, nest) {
            self.columns(e, nest);
        } else {
            self.reduce(e, nest);
        }
        self.dims.clear();
        self.lanes = 1;
    }

    fn copies(&self, nest: &Nest) -> usize {
        resident::copies(nest, self.lanes as usize)
    }

    /// Says which round of an even nest is written next.
    fn round(&mut self, number: usize) {
        if let Some((_, round)) = &mut self.even {
            *round = number;
        }
    }

    /// The first thread of the crew, and of those that share its column.
    fn leader(&self, e: &Emit<'c>) -> Active<'c> {
        let zero = e.zero(I32);
        let first = e.cmp(Cmp::Eq, self.crew.rank, zero);
        both(e, Some(first), self.first_share(e))
    }

    fn first_share(&self, e: &Emit<'c>) -> Active<'c> {
        self.crew.share.map(|(number, _)| e.cmp(Cmp::Eq, number, e.zero(I32)))
    }

    fn when(&mut self, e: &Emit<'c>, active: Active<'c>, body: impl FnOnce(&mut Self, &Emit<'c>)) {
        match active {
            Some(active) => e.when(active, |e| body(self, e)),
            None => body(self, e),
        }
    }

    /// Stores outside of all loops.
    fn straight(&mut self, e: &Emit<'c>, nest: &Nest) {
        for &id in &nest.body {
            self.define(e, Some(nest), id);
        }
        let leader = self.leader(e);
        self.when(e, leader, |w, e| {
            for s in &nest.stores {
                w.store(e, nest, s);
            }
        });
    }

    /// Loop counters from a position among loops `from..to`, the vector dimension counted in lanes.
    fn decompose(&self, e: &Emit<'c>, nest: &Nest, dims: std::ops::Range<usize>, at: V<'c>) -> Vec<V<'c>> {
        let mut rest = at;
        let mut counters = vec![];
        for k in dims.clone().rev() {
            let lanes = if nest.vector == Some(k) { self.lanes as usize } else { 1 };
            let size = (nest.dims[k].size / lanes) as i64;
            let (mut counter, n) = (rest, e.iconst(I32, size));
            if k > dims.start {
                counter = e.remu(rest, n);
                rest = e.divu(rest, n);
            }
            counters.push(e.mul_n(counter, lanes as i64));
        }
        counters.reverse();
        counters
    }

    /// Positions of some loops, the vector dimension counted in lanes.
    fn positions(&self, nest: &Nest, dims: std::ops::Range<usize>) -> usize {
        let lanes = if nest.vector.is_some_and(|v| dims.contains(&v)) { self.lanes as usize } else { 1 };
        product(nest, dims) / lanes
    }

    /// Runs `body` for `total` items, `size` threads numbered `rank` taking one each per round. In the last round of a total that does not come out even, the
    /// condition says who has an item (the others get the last one).
    fn rounds(
        &mut self,
        e: &Emit<'c>,
        (total, size, rank): (usize, usize, V<'c>),
        copies: usize,
        body: &mut dyn FnMut(&mut Self, &Emit<'c>, V<'c>, Active<'c>),
    ) {
        let full = total / size;
        if full <= copies {
            for round in 0..full {
                if total > 1 {
                    self.round(round);
                }
                body(self, e, e.add_n(rank, (round * size) as i64), None);
            }
        } else {
            let (zero, end, one) = (e.zero(I32), e.iconst(I32, full as i64), e.iconst(I32, 1));
            e.for_(zero, end, one, &[], |e, round, _| {
                body(self, e, e.add(rank, e.mul_n(round, size as i64)), None);
                vec![]
            });
        }
        if total % size > 0 {
            let item = e.add_n(rank, (full * size) as i64);
            let last = e.iconst(I32, total as i64 - 1);
            let active = e.cmp(Cmp::Le, item, last);
            body(self, e, e.min(item, last), Some(active));
        }
    }

    /// Accumulates over `n` positions, this thread taking `rank`, `rank + stride`, ...
    fn chain(
        &mut self,
        e: &Emit<'c>,
        (n, stride, rank): (usize, usize, V<'c>),
        copies: usize,
        mut sums: Vec<V<'c>>,
        link: &mut Link<'_, 'p, 'c>,
    ) -> Vec<V<'c>> {
        let full = n / stride;
        let looped = if full <= copies { 0 } else { full / copies * copies };
        if looped > 0 {
            let (zero, end, step) = (e.zero(I32), e.iconst(I32, looped as i64), e.iconst(I32, copies as i64));
            sums = e.for_(zero, end, step, &sums, |e, first, sums| {
                let first = e.add(rank, e.mul_n(first, stride as i64));
                let mut sums = sums.to_vec();
                for copy in 0..copies {
                    sums = link(self, e, e.add_n(first, (copy * stride) as i64), None, sums);
                }
                sums
            });
        }
        for k in looped..full {
            if n > stride {
                self.round(k);
            }
            sums = link(self, e, e.add_n(rank, (k * stride) as i64), None, sums);
        }
        if n % stride > 0 {
            let k = e.add_n(rank, (full * stride) as i64);
            let last = e.iconst(I32, n as i64 - 1);
            let active = e.cmp(Cmp::Le, k, last);
            sums = link(self, e, e.min(k, last), Some(active), sums);
        }
        sums
    }

    // ---- element by element ----

    fn map(&mut self, e: &Emit<'c>, nest: &Nest) {
        let all = 0..nest.dims.len();
        let total = self.positions(nest, all.clone());
        let crew = (total, self.crew.size, self.crew.rank);
        let copies = self.copies(nest);
        let first = self.first_share(e);
        self.rounds(e, crew, copies, &mut |w, e, item, active| {
            let active = both(e, active, first);
            w.when(e, active, |w, e| {
                w.dims = w.decompose(e, nest, all.clone(), item);
                for &id in &nest.body {
                    w.define(e, Some(nest), id);
                }
                for s in &nest.stores {
                    w.store(e, nest, s);
                }
            });
        });
    }

    // ---- a thread per column ----

    fn columns(&mut self, e: &Emit<'c>, nest: &Nest) {
        let free = free(nest);
        let total = self.positions(nest, 0..free);
        let crew = (total, self.crew.size, self.crew.rank);
        let copies = self.copies(nest);
        match self.crew.share {
            // Those who share a column meet at a barrier.
            Some(share) => self.rounds(e, crew, 1, &mut |w, e, item, active| {
                w.column(e, nest, item, (active, Some(share), copies));
            }),
            None => self.rounds(e, crew, 1, &mut |w, e, item, active| {
                w.when(e, active, |w, e| w.column(e, nest, item, (None, None, copies)));
            }),
        }
    }

    fn column(
        &mut self,
        e: &Emit<'c>,
        nest: &Nest,
        item: V<'c>,
        (active, share, copies): (Active<'c>, Option<(V<'c>, usize)>, usize),
    ) {
        let (free, depth) = (free(nest), nest.dims.len());
        let counters = self.decompose(e, nest, 0..free, item);
        self.dims = counters.clone();
        self.define_to(e, nest, 0, free);
        let identities = self.identities(e, nest, |def_varies| def_varies);
        let (rank, ranks) = share.unwrap_or((e.zero(I32), 1));
        let n = self.positions(nest, free..depth);
        let sums = self.chain(e, (n, ranks, rank), copies, identities, &mut |w, e, k, exists, sums| {
            w.dims = [counters.clone(), w.decompose(e, nest, free..depth, k)].concat();
            w.define_to(e, nest, free + 1, depth);
            let sums = w.accumulate(e, nest, exists, &sums);
            let writes = both(e, active, exists);
            w.store_deeper(e, nest, free, writes);
            sums
        });
        self.dims = counters;
        let sums = match share {
            Some((_, ranks)) if ranks > 1 => self.add_shares(e, nest, ranks, &sums),
            _ => sums,
        };
        self.results(nest, &sums);
        let writes = both(e, active, share.and_then(|_| self.first_share(e)));
        self.store_at(e, nest, free, writes);
    }

    /// Adds up what the threads that share a column have, in their order, through shared memory.
    fn add_shares(&mut self, e: &Emit<'c>, nest: &Nest, ranks: usize, sums: &[V<'c>]) -> Vec<V<'c>> {
        let columns = self.l.threads / ranks;
        let thread = ops::thread(e, self.l.threads as u32);
        let base = self.exchange(e, sums.len(), self.l.threads);
        let part = (self.l.threads * 4) as i64;
        for (i, &sum) in sums.iter().enumerate() {
            let at = e.gep(e.gep_const(base, Elem::I8, i as i64 * part), Elem::I32, thread);
            e.store(self.as_word(e, sum), at);
        }
        ops::barrier(e);
        let column = e.remu(thread, e.iconst(I32, columns as i64));
        let ids = carried(self.p, nest);
        let all = sums.iter().zip(&ids).enumerate().map(|(i, (&sum, &id))| {
            let first = e.gep(e.gep_const(base, Elem::I8, i as i64 * part), Elem::I32, column);
            let get = |r: usize| {
                let word = e.load(e.gep_const(first, Elem::I32, (r * columns) as i64), self.word(sum.ty));
                self.from_word(e, word, sum.ty)
            };
            (1..ranks).fold(get(0), |all, r| self.combined(e, id, all, get(r)))
        });
        all.collect()
    }

    // ---- a group of threads per result ----

    fn reduce(&mut self, e: &Emit<'c>, nest: &Nest) {
        let (free, depth) = (free(nest), nest.dims.len());
        let (results, chunks) = (self.positions(nest, 0..free), self.positions(nest, free..depth));
        let stores = nest.stores.iter().any(|s| s.depth > free);
        let size = group(chunks, results, self.crew.size, stores, self.p.rows() > 1);
        let groups = self.crew.size / size;
        let threads = e.iconst(I32, size as i64);
        let (number, lane) = match groups {
            1 => (e.zero(I32), self.crew.rank),
            _ => (e.divu(self.crew.rank, threads), e.remu(self.crew.rank, threads)),
        };
        let first = (size > 1).then(|| e.cmp(Cmp::Eq, lane, e.zero(I32)));
        let copies = self.copies(nest);
        self.rounds(e, (results, groups, number), copies, &mut |w, e, item, active| {
            let counters = w.decompose(e, nest, 0..free, item);
            w.dims = counters.clone();
            w.define_to(e, nest, 0, free);
            let wide = nest.vector.is_some();
            let identities = w.identities(e, nest, |_| wide);
            let each = if results == 1 { copies } else { (copies * groups / results).clamp(1, copies) };
            let sums = w.chain(e, (chunks, size, lane), each, identities, &mut |w, e, k, exists, sums| {
                w.dims = [counters.clone(), w.decompose(e, nest, free..depth, k)].concat();
                w.define_to(e, nest, free + 1, depth);
                let sums = w.accumulate(e, nest, exists, &sums);
                let writes = both(e, active, exists);
                w.store_deeper(e, nest, free, writes);
                sums
            });
            w.dims = counters;
            let sums = w.butterfly(e, nest, size, &sums);
            w.results(nest, &sums);
            let writes = both(e, active, first);
            w.store_at(e, nest, free, writes);
        });
    }

    /// From each thread's sums to those of its group of `size`, in every thread of it.
    fn butterfly(&mut self, e: &Emit<'c>, nest: &Nest, size: usize, sums: &[V<'c>]) -> Vec<V<'c>> {
        let ids = carried(self.p, nest);
        let mut sums: Vec<V> = sums.to_vec();
        for (sum, &id) in sums.iter_mut().zip(&ids) {
            if sum.ty.lanes > 0 {
                *sum = e.reduce(*sum, |a, b| self.combined(e, id, a, b));
            }
            let mut mask = size.min(ops::WARP as usize) / 2;
            while mask > 0 {
                let other = self.from_word(e, ops::shuffle_xor(e, self.as_word(e, *sum), mask as i64), sum.ty);
                *sum = self.combined(e, id, *sum, other);
                mask /= 2;
            }
        }
        let warps = size / ops::WARP as usize;
        if warps <= 1 {
            return sums;
        }
        let base = self.exchange(e, sums.len(), warps);
        let thirty_two = e.iconst(I32, ops::WARP.into());
        let (warp, lane) = (e.divu(self.crew.rank, thirty_two), e.remu(self.crew.rank, thirty_two));
        e.when(e.cmp(Cmp::Eq, lane, e.zero(I32)), |e| {
            for (i, &sum) in sums.iter().enumerate() {
                let at = e.gep(e.gep_const(base, Elem::I32, (i * warps) as i64), Elem::I32, warp);
                e.store(self.as_word(e, sum), at);
            }
        });
        self.crew.barrier(e);
        self.forget();
        let add = |(i, (&sum, &id)): (usize, (&V<'c>, &Id))| {
            let get = |w: usize| {
                let word = e.load(e.gep_const(base, Elem::I32, (i * warps + w) as i64), self.word(sum.ty));
                self.from_word(e, word, sum.ty)
            };
            (1..warps).fold(get(0), |all, w| self.combined(e, id, all, get(w)))
        };
        sums.iter().zip(&ids).enumerate().map(add).collect()
    }

    /// Room in shared memory for `count` sums of `parts` threads or warps, not used before in this row.
    fn exchange(&mut self, e: &Emit<'c>, count: usize, parts: usize) -> V<'c> {
        let base = self.team_scratch.expect("programs that exchange have shared memory");
        let at = self.l.exchange + 4 * self.slot;
        self.slot += count * parts;
        debug_assert!(self.l.exchange + 4 * self.slot <= self.l.team_bytes, "room for exchanges");
        e.gep_const(base, Elem::I8, at as i64)
    }

    // ---- parts of a nest ----

    /// Computes the values of loops `from..=to`, in order.
    fn define_to(&mut self, e: &Emit<'c>, nest: &Nest, from: usize, to: usize) {
        for &id in &nest.body {
            if (from..=to).contains(&self.p.depth(id)) && !self.is_carried(id) {
                self.define(e, Some(nest), id);
            }
        }
    }

    fn store_at(&mut self, e: &Emit<'c>, nest: &Nest, depth: usize, active: Active<'c>) {
        if nest.stores.iter().any(|s| s.depth == depth) {
            self.when(e, active, |w, e| {
                for s in nest.stores.iter().filter(|s| s.depth == depth) {
                    w.store(e, nest, s);
                }
            });
        }
    }

    fn store_deeper(&mut self, e: &Emit<'c>, nest: &Nest, depth: usize, active: Active<'c>) {
        if nest.stores.iter().any(|s| s.depth > depth) {
            self.when(e, active, |w, e| {
                for s in nest.stores.iter().filter(|s| s.depth > depth) {
                    w.store(e, nest, s);
                }
            });
        }
    }

    /// What the sums start from, in all lanes where `varies` says so of the definition.
    fn identities(&self, e: &Emit<'c>, nest: &Nest, varies: impl Fn(bool) -> bool) -> Vec<V<'c>> {
        let start = |id: Id| {
            let def = self.p.def(id);
            let ty = if varies(def.varies) { wide(elem(def.lane), self.lanes) } else { Ty::of(elem(def.lane)) };
            match def.inst {
                Inst::Reduce(kind, _) => elementwise::identity(e, kind, ty),
                _ => e.zero(ty),
            }
        };
        carried(self.p, nest).into_iter().map(start).collect()
    }

    /// One step of every sum and scan; a step that does not exist changes nothing.
    fn accumulate(&mut self, e: &Emit<'c>, nest: &Nest, exists: Active<'c>, sums: &[V<'c>]) -> Vec<V<'c>> {
        let mut next = vec![];
        for (id, &old) in carried(self.p, nest).into_iter().zip(sums) {
            let vector = old.ty.lanes > 0;
            match &self.p.def(id).inst {
                Inst::Reduce(kind, x) => {
                    let mut x = self.operand(e, *x, vector);
                    if let Some(exists) = exists {
                        x = e.select(exists, x, elementwise::identity(e, *kind, x.ty));
                    }
                    next.push(self.combined(e, id, old, x));
                }
                Inst::Scan(a, b) => {
                    let old = a.map_or(old, |a| e.mul(self.operand(e, a, vector), old));
                    let new = e.add(old, self.operand(e, *b, vector));
                    self.values[id.0 as usize] = Some(new);
                    next.push(new);
                }
                _ => {}
            }
        }
        next
    }

    fn results(&mut self, nest: &Nest, sums: &[V<'c>]) {
        for (id, &sum) in carried(self.p, nest).into_iter().zip(sums) {
            if matches!(self.p.def(id).inst, Inst::Reduce(..)) {
                self.values[id.0 as usize] = Some(sum);
            }
        }
    }

    fn combined(&self, e: &Emit<'c>, id: Id, a: V<'c>, b: V<'c>) -> V<'c> {
        match self.p.def(id).inst {
            Inst::Reduce(kind, _) => elementwise::combine(e, kind, a, b),
            _ => e.add(a, b),
        }
    }

    // ---- values as words, for shuffles and exchanges ----

    fn word(&self, ty: Ty) -> Ty {
        if ty.elem == Elem::F32 { F32 } else { I32 }
    }

    fn as_word(&self, e: &Emit<'c>, x: V<'c>) -> V<'c> {
        if x.ty.elem == Elem::I1 { e.zero_extend(x, Elem::I32) } else { x }
    }

    fn from_word(&self, e: &Emit<'c>, x: V<'c>, ty: Ty) -> V<'c> {
        if ty.elem == Elem::I1 { e.truncate(x, Elem::I1) } else { x }
    }
}
