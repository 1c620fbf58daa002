//! What a query does not see: later keys, keys out of the window, keys behind the end, keys of other documents.
//!
//! *Takes* a tile of 64 queries and 64 keys, and the packed document ids; *gives* visible lanes, and whether a tile has any as far as documents go;
//! *promises* that a tile left out has nothing to be seen: the ids of its queries and of its keys lie in ranges that do not meet.

use super::Shape;
use crate::kernel::attend::BLOCK;
use crate::mlir::emit::{Cmp, Elem, Emit, I32X16, Ty, V};

/// The packed ids of a head's positions.
#[derive(Clone, Copy)]
pub(super) struct Documents<'c> {
    ids: V<'c>,
}

/// Smallest and largest id of a block.
pub(super) type Range<'c> = (V<'c>, V<'c>);

impl<'c> Documents<'c> {
    /// Of key/value head `hkv` over the batch: the last temporary. None where documents are not kept apart.
    pub fn new(e: &Emit<'c>, shape: &Shape, args: &[V<'c>], hkv: V<'c>) -> Option<Self> {
        let ids = *args.last().filter(|_| shape.k.document)?;
        Some(Documents { ids: e.gep(ids, Elem::I32, e.mul_n(hkv, shape.s.time as i64)) })
    }

    /// Copies the given ids of batch position `b` for the block of positions from `first`; those behind the end get the last one's.
    pub fn pack(&self, e: &Emit<'c>, shape: &Shape, given: V<'c>, b: V<'c>, first: V<'c>) {
        let time = shape.k.time as i64;
        let given = e.gep(given, Elem::I32, e.mul_n(b, time));
        e.each(0, BLOCK as i64, 1, |e, r| {
            let t = e.add(first, r);
            let id = e.load(e.gep(given, Elem::I32, e.min(t, e.i(time - 1))), Ty::of(Elem::I32));
            e.store(id, e.gep(self.ids, Elem::I32, t));
        });
    }

    fn vector(&self, e: &Emit<'c>, block: V<'c>, q: usize) -> V<'c> {
        e.load(e.gep(self.ids, Elem::I32, e.add_n(e.mul_n(block, BLOCK as i64), 16 * q as i64)), I32X16)
    }

    /// Of a block.
    pub fn range(&self, e: &Emit<'c>, block: V<'c>) -> Range<'c> {
        let v = [0, 1, 2, 3].map(|q| self.vector(e, block, q));
        let low = e.min(e.min(v[0], v[1]), e.min(v[2], v[3]));
        let high = e.max(e.max(v[0], v[1]), e.max(v[2], v[3]));
        (e.reduce(low, |a, b| e.min(a, b)), e.reduce(high, |a, b| e.max(a, b)))
    }
}

/// Runs `body` for block `other` if it may share a document with a block of this range; always where documents are not kept apart.
pub(super) fn where_met<'c>(
    e: &Emit<'c>,
    own: Option<(Documents<'c>, Range<'c>)>,
    other: V<'c>,
    body: impl FnOnce(&Emit<'c>),
) {
    let Some((documents, (low, high))) = own else { return body(e) };
    let (from, to) = documents.range(e, other);
    e.when(e.and(e.cmp(Cmp::Le, from, high), e.cmp(Cmp::Ge, to, low)), body);
}

/// A tile in which some keys are hidden.
#[derive(Clone, Copy)]
pub(super) struct Mask<'c> {
    /// First query.
    pub first: V<'c>,
    /// Block of keys.
    pub keys: V<'c>,
    /// Ids, where documents are kept apart.
    pub documents: Option<Documents<'c>>,
}

impl<'c> Mask<'c> {
    /// Lanes of column vector `q` that the query at a position may see.
    pub fn visible(&self, e: &Emit<'c>, shape: &Shape, position: V<'c>, q: usize) -> V<'c> {
        let k = shape.k;
        let narrow = |v: V<'c>| e.splat(e.truncate(v, Elem::I32), 16);
        let column = e.add(narrow(e.add_n(e.mul_n(self.keys, BLOCK as i64), 16 * q as i64)), e.iota(16));
        let row = narrow(position);
        let mut ok = if k.causal {
            e.cmp(Cmp::Le, column, row)
        } else {
            e.cmp(Cmp::Lt, column, e.iconst(I32X16, k.time as i64))
        };
        if let Some(w) = k.window {
            ok = e.and(ok, e.cmp(Cmp::Lt, e.sub(row, column), e.iconst(I32X16, w as i64)));
        }
        if let Some(d) = &self.documents {
            let own = e.splat(e.load(e.gep(d.ids, Elem::I32, position), Ty::of(Elem::I32)), 16);
            ok = e.and(ok, e.cmp(Cmp::Eq, d.vector(e, self.keys, q), own));
        }
        ok
    }
}
