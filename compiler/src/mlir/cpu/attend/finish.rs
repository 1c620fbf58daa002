//! The epilogue: what becomes of a finished row of y.
//!
//! *Takes* a row in vectors of 16, the last one padded; *gives* the effects in memory; *promises* sums in 16 lanes, vector by vector, then by halves.

use super::super::args::Args;
use crate::graph::ir::Reduce;
use crate::kernel::attend::AttendKernel;
use crate::mlir::elementwise::{combine, identity};
use crate::mlir::emit::{Cmp, Elem, Emit, Ty, V};
use crate::mlir::epilogue::{Row, Value};

/// A row of a query head.
pub(super) struct Line<'k, 'c> {
    pub k: &'k AttendKernel,
    pub args: Args<'k, 'c>,
    /// Batch position, key/value head, number in the group.
    pub heads: [V<'c>; 3],
    /// Position.
    pub row: V<'c>,
    pub results: Vec<V<'c>>,
}

impl<'c> Line<'_, 'c> {
    /// First column and lanes that exist of every vector.
    fn vectors(&self) -> impl Iterator<Item = (i64, u32)> {
        let dim = self.k.dim;
        (0..dim).step_by(16).map(move |c| (c as i64, (dim - c).min(16) as u32))
    }
}

impl<'c> Row<'c> for Line<'_, 'c> {
    fn results(&self) -> &[V<'c>] {
        &self.results
    }

    fn load(&self, e: &Emit<'c>, buffer: usize) -> Value<'c> {
        let at = |(c, lanes)| self.args.load(e, buffer, &self.heads, Some((self.row, e.i(c))), lanes);
        match self.args.of(buffer).0.n {
            0 => Value::One(at((0, 1))),
            _ => Value::Row(self.vectors().map(at).collect()),
        }
    }

    fn iota(&self, e: &Emit<'c>, axis: u32) -> Value<'c> {
        match axis {
            0 => Value::One(e.truncate(self.row, Elem::I32)),
            1 => Value::Row(
                self.vectors().map(|(c, _)| e.add(e.iconst(Ty::vec(16, Elem::I32), c), e.iota(16))).collect(),
            ),
            axis => Value::One(e.truncate(self.heads[axis as usize - 2], Elem::I32)),
        }
    }

    fn reduce(&self, e: &Emit<'c>, kind: Reduce, row: &[V<'c>]) -> V<'c> {
        let f = |a, b| combine(e, kind, a, b);
        let inside = |(&x, (_, lanes)): (&V<'c>, (i64, u32))| match lanes {
            16 => x,
            n => e.select(e.first_lanes(16, n), x, identity(e, kind, x.ty)),
        };
        let all = row.iter().zip(self.vectors()).map(inside).reduce(f).expect("a row has a vector");
        e.reduce(all, f)
    }

    fn store(&self, e: &Emit<'c>, buffer: usize, value: &Value<'c>) {
        let (arg, ..) = self.args.of(buffer);
        let store = |e: &Emit<'c>| {
            let at = |v: V<'c>, (c, lanes)| self.args.store(e, v, buffer, &self.heads, Some((self.row, e.i(c))), lanes);
            match value {
                Value::One(x) if arg.n == 0 => at(*x, (0, 1)),
                value => value.row(e, &self.results).into_iter().zip(self.vectors()).for_each(|(v, c)| at(v, c)),
            }
        };
        match self.k.once_per_group(arg) {
            true => e.when(e.cmp(Cmp::Eq, self.heads[2], e.i(0)), store),
            false => store(e),
        }
    }
}
