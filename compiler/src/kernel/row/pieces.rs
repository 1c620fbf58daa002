//! Pieces: the loop nests of one step each, before nests of equal shape are merged.
//!
//! *Takes* an [`Item`] (a value to keep, reduce, scan or write out); *gives* its [`Piece`]s: spaces in which every view of the value is an
//! address expression, with loop order and vector dimension chosen; *promises* that the pieces of an item visit each of its positions once.
//!
//! Loop order: dimensions that are kept, then dimensions that are reduced or scanned; the vector dimension is the last of its kind. It is
//! the one along which most memory accesses are contiguous.

use super::eval::{Evaluator, Kept, Request, Trace, with_outer};
use super::loops::{Affine, LANES, Level, Mem, Program, Var};
use super::space::{Env, Space};
use super::values::{Kind, Output, Val, Values};
use crate::graph::ir::AxisId;
use std::collections::BTreeSet;

/// More pieces than this are not worth their code: the value that asks for cuts is kept in scratch instead.
const MOST_PIECES: usize = 8;

/// What happens to a value.
#[derive(Clone, Debug)]
pub enum Role {
    /// Element-wise, written to scratch.
    Keep,
    /// Reduced over axes.
    Reduce(Vec<AxisId>),
    /// Running along an axis, written to scratch.
    Scan(AxisId, bool),
    /// Written out.
    Output(Output),
}

/// A step.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Item {
    pub value: Val,
    pub role: Role,
    /// Where it is written, with element strides of the axes.
    pub target: Option<(Mem, Affine, Vec<(AxisId, i64)>)>,
    /// `Task` or `Row`.
    pub section: Level,
}

/// One loop nest of an item.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Piece {
    pub item: usize,
    /// Sides in loop order.
    pub space: Space,
    /// Per side: carried.
    pub carried: Vec<bool>,
    pub vector: Option<usize>,
    pub loads: Vec<(Mem, Affine, bool)>,
    pub scalars: BTreeSet<Val>,
    /// The write.
    pub store: Option<(Mem, Affine)>,
}

impl Item {
    /// Address of the write.
    pub fn store(&self, env: &Env) -> Option<(Mem, Affine)> {
        let (mem, offset, strides) = self.target.as_ref()?;
        let at = strides.iter().fold(offset.clone(), |sum, (axis, stride)| sum.plus(&env[axis], *stride));
        Some((*mem, at))
    }

    fn carried(&self, axis: AxisId) -> bool {
        match &self.role {
            Role::Reduce(over) => over.contains(&axis),
            Role::Scan(along, _) => *along == axis,
            Role::Keep | Role::Output(_) => false,
        }
    }

    /// All positions, outermost loop first.
    fn space(&self, values: &Values) -> Space {
        let sized =
            |axes: Vec<AxisId>| -> Vec<(AxisId, usize)> { axes.into_iter().map(|a| (a, values.size(a))).collect() };
        match &self.role {
            Role::Keep => Space::all(&sized(values.inner_axes(self.value))),
            Role::Scan(axis, reverse) => {
                let space = Space::all(&sized(values.inner_axes(self.value)));
                if *reverse { space.reverse(*axis) } else { space }
            }
            Role::Reduce(over) => {
                let mut axes = values.inner_axes(values.get(self.value).args[0]);
                let missing = over.iter().filter(|a| !axes.contains(a)).copied().collect::<Vec<_>>();
                axes.splice(0..0, missing);
                Space::all(&sized(axes))
            }
            Role::Output(output) => {
                let buffer = &values.row.graph.buffers[output.arg].ty.axes;
                let mut axes: Vec<(AxisId, i64)> =
                    buffer.iter().copied().zip(values.row.args[output.arg].strides.iter().copied()).collect();
                axes.retain(|(a, _)| !values.is_outer(*a));
                axes.sort_by_key(|(_, stride)| std::cmp::Reverse(stride.abs()));
                Space::all(&sized(axes.into_iter().map(|(a, _)| a).collect()))
            }
        }
    }
}

/// Makes pieces. `program` is an empty program with rows, arguments and scratch.
#[allow(missing_docs)]
pub struct Cutter<'a> {
    pub values: &'a Values<'a>,
    pub kept: &'a Kept,
    pub program: &'a Program,
}

impl Cutter<'_> {
    /// The pieces of an item.
    pub fn pieces(&self, index: usize, item: &Item) -> Result<Vec<Piece>, Request> {
        let mut work = vec![item.space(self.values)];
        let mut done = Vec::new();
        while let Some(space) = work.pop() {
            match self.trial(item, &space) {
                Ok(trace) => done.push(self.ordered(index, item, space, &trace)?),
                Err(Request::Refine { dim, inner }) => work.push(space.refine(dim, inner)),
                Err(Request::Cut { dim, at, value }) => {
                    let simple = matches!(item.role, Role::Keep | Role::Output(_));
                    let few = done.len() + work.len() + 2 <= MOST_PIECES;
                    if !simple || !(few || value == item.value) {
                        return Err(Request::Keep(value));
                    }
                    let [low, high] = space.cut(dim, at);
                    work.extend([high, low]);
                }
                Err(other) => return Err(other),
            }
        }
        Ok(done)
    }

    /// Evaluates the item in a space.
    fn trial(&self, item: &Item, space: &Space) -> Result<Trace, Request> {
        let mut e = Evaluator::new(self.values, self.kept, self.program.clone());
        e.section = item.section;
        e.begin(&space.sizes(), None);
        let env = with_outer(self.values, space.env());
        match &item.role {
            Role::Keep => {
                e.root(item.value, &env)?;
            }
            Role::Output(_) => {
                e.value(item.value, &env)?;
            }
            Role::Reduce(_) | Role::Scan(..) => {
                for &x in &self.values.get(item.value).args {
                    e.value(x, &env)?;
                }
            }
        }
        Ok(e.trace)
    }

    /// Chooses loop order and vector dimension.
    fn ordered(&self, index: usize, item: &Item, space: Space, trace: &Trace) -> Result<Piece, Request> {
        let store = item.store(&space.env());
        let accesses: Vec<&Affine> =
            trace.loads.iter().map(|(_, at, _)| at).chain(store.iter().map(|(_, at)| at)).collect();
        let by_value = |at: &Affine| at.terms.keys().any(|v| matches!(v, Var::Value(_)));
        let score = |k: usize| -> i64 {
            let of = |at: &&Affine| match at.dim(k) {
                0 => 0,
                1 if !by_value(at) => 2,
                1 => 1,
                _ => -2,
            };
            accesses.iter().map(of).sum::<i64>() * space.sides[k].size.min(LANES) as i64
        };
        let scan = matches!(item.role, Role::Scan(..));
        let free = |k: &usize| !(scan && item.carried(space.sides[*k].axis));
        let vector = (0..space.sides.len()).filter(free).max_by_key(|&k| (score(k), k));
        let mut order: Vec<usize> = (0..space.sides.len()).collect();
        order.sort_by_key(|&k| (item.carried(space.sides[k].axis), Some(k) == vector));
        let space = Space { sides: order.iter().map(|&k| space.sides[k]).collect(), start: space.start };
        let vector = vector.and_then(|v| order.iter().position(|&k| k == v));
        self.piece(index, item, space, vector)
    }

    /// A piece with given loops.
    pub fn piece(&self, index: usize, item: &Item, space: Space, vector: Option<usize>) -> Result<Piece, Request> {
        let trace = self.trial(item, &space)?;
        let carried = space.sides.iter().map(|s| item.carried(s.axis)).collect();
        let store = item.store(&with_outer(self.values, space.env()));
        Ok(Piece { item: index, space, carried, vector, loads: trace.loads, scalars: trace.scalars, store })
    }
}

/// The axes a reduction or scan runs over, as its role.
pub fn role(values: &Values, v: Val) -> Role {
    match &values.get(v).kind {
        Kind::Reduce(_, over) => Role::Reduce(over.clone()),
        Kind::Scan(axis, reverse) => Role::Scan(*axis, *reverse),
        Kind::Read(_)
        | Kind::Const(_)
        | Kind::Iota(_)
        | Kind::Unary(_)
        | Kind::Binary(_)
        | Kind::Select
        | Kind::Cast(_)
        | Kind::Split(..)
        | Kind::Merge(..)
        | Kind::Rename(..)
        | Kind::Slice { .. }
        | Kind::Pad { .. }
        | Kind::Index(..)
        | Kind::Place(..)
        | Kind::Concat(..)
        | Kind::Shift(..)
        | Kind::At(_) => Role::Keep,
    }
}
