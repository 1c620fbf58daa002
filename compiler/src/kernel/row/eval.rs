//! Values at positions: turns a value of the value graph, at given address expressions of its axes, into definitions of a loop program.
//!
//! *Takes* a value and an [`Env`]; *gives* the [`Id`] of its definition, placed as far out (task, row, loop) as its variables allow,
//! or a [`Request`] for a different space; *promises* that equal definitions exist once per place.

use super::loops::{Affine, Def, Id, Inst, Lane, Level, Mem, Program, Step, Var};
use super::space::{Bounds, Division, Env};
use super::values::{Kind, Val, Values};
use crate::graph::ir::{AxisId, Binary, Bits};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Why a value could not be written down at these positions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Request {
    /// Loop `dim` must become two, the inner one of `inner` iterations.
    Refine { dim: usize, inner: usize },
    /// Loop `dim` must be cut at an iteration, or else the value be kept in scratch.
    Cut { dim: usize, at: usize, value: Val },
    /// The value must be kept in scratch.
    Keep(Val),
    /// The body is outside what row kernels can do.
    Refuse(String),
}

/// Scratch of a kept value: element strides of its inner axes.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Slot {
    pub scratch: usize,
    pub strides: Vec<(AxisId, i64)>,
}

impl Slot {
    /// Address of an element.
    pub fn at(&self, env: &Env) -> Affine {
        self.strides.iter().fold(Affine::constant(0), |sum, (axis, stride)| sum.plus(&env[axis], *stride))
    }
}

/// Values that are computed by steps of their own: kept in scratch, or (reductions to a scalar) in a definition.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Kept {
    pub slots: BTreeMap<Val, Slot>,
    /// Reductions without inner axes.
    pub scalars: BTreeSet<Val>,
    /// Kept values that are the same for all rows.
    pub invariant: BTreeSet<Val>,
}

/// What an evaluation touched.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Loads; the flag says that the element belongs to another row than the one being computed.
    pub loads: Vec<(Mem, Affine, bool)>,
    /// Reductions to a scalar.
    pub scalars: BTreeSet<Val>,
    /// Element-wise values computed and the level and lane-variation of their definition.
    pub computed: Vec<(Val, Level, bool)>,
}

// Look-up only: their order is never observed.
type Known = HashMap<(Inst, Lane), Id>;
type Memo = HashMap<(Val, Vec<Affine>), Id>;

/// Writes definitions into a program.
pub struct Evaluator<'a> {
    pub(super) values: &'a Values<'a>,
    pub(super) kept: &'a Kept,
    /// The program so far; finished nests and definitions outside of nests are appended to the section's steps.
    pub program: Program,
    /// Definitions of finished reductions to a scalar.
    pub results: BTreeMap<Val, Id>,
    /// Section being written: `Task` or `Row`.
    pub section: Level,
    /// Trip counts of the current nest.
    pub bounds: Bounds,
    /// Its vector dimension.
    pub vector: Option<usize>,
    /// Its definitions.
    pub body: Vec<Id>,
    /// What was touched since the nest began.
    pub trace: Trace,
    known: BTreeMap<Level, Known>,
    outer_memo: Memo,
    memo: Memo,
    stored: HashMap<(Mem, Affine), Id>,
}

type Made = Result<Id, Request>;

/// Adds the address expressions of the outer axes.
pub fn with_outer(values: &Values, mut env: Env) -> Env {
    for (k, &axis) in values.row.outer.iter().enumerate() {
        env.insert(axis, Affine::var(Var::Outer(k), 1));
    }
    env
}

impl<'a> Evaluator<'a> {
    /// A writer for an empty program with the given scratch.
    pub fn new(values: &'a Values<'a>, kept: &'a Kept, program: Program) -> Self {
        Evaluator {
            values,
            kept,
            bounds: Bounds { outer: program.outer.clone(), dims: Vec::new() },
            program,
            results: BTreeMap::new(),
            section: Level::Task,
            vector: None,
            body: Vec::new(),
            trace: Trace::default(),
            known: BTreeMap::new(),
            outer_memo: HashMap::new(),
            memo: HashMap::new(),
            stored: HashMap::new(),
        }
    }

    /// Starts a nest.
    pub fn begin(&mut self, dims: &[usize], vector: Option<usize>) {
        self.bounds.dims = dims.to_vec();
        self.vector = vector;
        self.body.clear();
        self.trace = Trace::default();
        self.memo.clear();
        self.stored.clear();
        self.known.retain(|level, _| *level <= Level::Row);
    }

    /// The definition of a value at these positions.
    pub fn value(&mut self, v: Val, env: &Env) -> Made {
        let key = self.key(v, env)?;
        if let Some(&id) = self.memo.get(&key).or_else(|| self.outer_memo.get(&key)) {
            return Ok(id);
        }
        // At another row, kept element-wise values are computed again.
        let stepwise = matches!(self.values.get(v).kind, Kind::Reduce(..) | Kind::Scan(..));
        let slot = self.kept.slots.get(&v).filter(|_| stepwise || self.same_row(v, env).is_ok()).cloned();
        let id = if let Some(slot) = slot {
            self.same_row(v, env)?;
            let at = slot.at(env);
            self.load(Mem::Scratch(slot.scratch), at, self.values.get(v).lane, false, v)
        } else if self.kept.scalars.contains(&v) {
            self.same_row(v, env)?;
            self.trace.scalars.insert(v);
            match self.results.get(&v) {
                Some(&id) => id,
                None => {
                    // A trial evaluation: any definition at the right level will do.
                    let level = if self.kept.invariant.contains(&v) { Level::Task } else { Level::Row };
                    let id = self.define(Inst::Const(Bits::new(f64::NAN)), self.values.get(v).lane, level, false);
                    self.results.insert(v, id);
                    id
                }
            }
        } else {
            self.compute(v, env)?
        };
        self.remember(key, id);
        Ok(id)
    }

    /// Computes a value even though it is kept, so that it can be stored.
    pub fn root(&mut self, v: Val, env: &Env) -> Made {
        let key = self.key(v, env)?;
        let id = self.compute(v, env)?;
        self.remember(key, id);
        Ok(id)
    }

    /// Notes that this nest stores `id`: loads of the same elements become `id`.
    pub fn stored(&mut self, mem: Mem, at: Affine, id: Id) {
        self.stored.insert((mem, at), id);
    }

    fn key(&self, v: Val, env: &Env) -> Result<(Val, Vec<Affine>), Request> {
        let at = |a: &AxisId| {
            env.get(a).cloned().ok_or_else(|| {
                let name = self.values.name(*a);
                Request::Refuse(format!(
                    "a value of a row kernel varies along `{name}`, which is not an axis of its result"
                ))
            })
        };
        Ok((v, self.values.get(v).axes.iter().map(at).collect::<Result<_, _>>()?))
    }

    fn remember(&mut self, key: (Val, Vec<Affine>), id: Id) {
        // What a loop counter means ends with its nest, even if the result does not depend on it.
        let counted = key.1.iter().any(|at| at.terms.keys().any(|v| matches!(v, Var::Dim(_))));
        let outer = !counted && self.program.def(id).level <= Level::Row;
        if outer { &mut self.outer_memo } else { &mut self.memo }.insert(key, id);
    }

    /// Scratch and reductions hold the current row only.
    fn same_row(&self, v: Val, env: &Env) -> Result<(), Request> {
        for (k, axis) in self.values.row.outer.iter().enumerate() {
            if self.values.get(v).axes.contains(axis) && env[axis] != Affine::var(Var::Outer(k), 1) {
                let name = self.values.name(*axis);
                return Err(Request::Refuse(format!(
                    "a shift along the outer axis `{name}` of a value that is not computed element by element"
                )));
            }
        }
        Ok(())
    }

    fn compute(&mut self, v: Val, env: &Env) -> Made {
        let value = self.values.get(v).clone();
        let arg = |i: usize| value.args[i];
        let moved = |axis: AxisId, e: Affine| {
            let mut env = env.clone();
            env.insert(axis, e);
            env
        };
        match &value.kind {
            Kind::Read(n) => {
                let spec = &self.values.row.args[*n];
                let axes = &self.values.row.graph.buffers[*n].ty.axes;
                let mut at = Affine::constant(spec.offset);
                for (axis, stride) in axes.iter().zip(&spec.strides).filter(|(_, stride)| **stride != 0) {
                    at = at.plus(&env[axis], *stride);
                }
                let own = |(k, a): (usize, &AxisId)| value.axes.contains(a) && env[a] == Affine::var(Var::Outer(k), 1);
                let foreign = self.program.rows() > 1 && !self.values.row.outer.iter().enumerate().all(own);
                Ok(self.load(Mem::Arg(*n), at, value.lane, foreign, v))
            }
            Kind::Const(x) => Ok(self.push(Inst::Const(*x), value.lane)),
            Kind::Iota(axis) => Ok(self.index(&env[axis])),
            Kind::Unary(op) => {
                let a = self.value(arg(0), env)?;
                let id = self.push(Inst::Unary(*op, a), value.lane);
                self.computed(v, id)
            }
            Kind::Binary(op) => {
                let (a, b) = (self.value(arg(0), env)?, self.value(arg(1), env)?);
                // x + 0 appears wherever padded gradients are added up.
                let zero = |e: &Self, id: Id| e.program.def(id).inst == Inst::Const(Bits::new(0.0));
                if *op == Binary::Add && value.lane != Lane::Bool {
                    if zero(self, a) {
                        return Ok(b);
                    }
                    if zero(self, b) {
                        return Ok(a);
                    }
                }
                let id = self.push(Inst::Binary(*op, a, b), value.lane);
                self.computed(v, id)
            }
            Kind::Select => {
                let (c, a, b) = (self.value(arg(0), env)?, self.value(arg(1), env)?, self.value(arg(2), env)?);
                let id = self.push(Inst::Select(c, a, b), value.lane);
                self.computed(v, id)
            }
            Kind::Cast(to) => {
                let a = self.value(arg(0), env)?;
                let id = self.push(Inst::Cast(*to, a), value.lane);
                self.computed(v, id)
            }
            Kind::Split(from, to) => {
                let e = to.iter().fold(Affine::constant(0), |sum, a| {
                    Affine::constant(0).plus(&sum, self.values.size(*a) as i64).plus(&env[a], 1)
                });
                self.value(arg(0), &moved(*from, e))
            }
            Kind::Merge(from, to) => self.merge(v, from, *to, env),
            Kind::Rename(from, to) => self.value(arg(0), &moved(*from, env[to].clone())),
            Kind::Slice { from, to, start } => {
                let e = env[to].clone().plus(&Affine::constant(1), *start as i64);
                self.value(arg(0), &moved(*from, e))
            }
            Kind::Index(axis, at) => self.value(arg(0), &moved(*axis, Affine::constant(*at as i64))),
            Kind::Pad { from, to, start } => {
                let (start, size) = (*start as i64, self.values.size(*from) as i64);
                match self.within(v, &env[to], start, start + size)? {
                    true => self.value(arg(0), &moved(*from, env[to].clone().plus(&Affine::constant(1), -start))),
                    false => Ok(self.zero(value.lane)),
                }
            }
            Kind::Place(axis, at) => match self.within(v, &env[axis], *at as i64, *at as i64 + 1)? {
                true => self.value(arg(0), env),
                false => Ok(self.zero(value.lane)),
            },
            Kind::Concat(from, to) => {
                let mut start = 0;
                for (i, axis) in from.iter().enumerate() {
                    let end = start + self.values.size(*axis) as i64;
                    if self.within(v, &env[to], start, end)? {
                        let e = env[to].clone().plus(&Affine::constant(1), -start);
                        return self.value(arg(i), &moved(*axis, e));
                    }
                    start = end;
                }
                Err(Request::Refuse("a position outside of a concatenation".into()))
            }
            Kind::Shift(axis, n) => self.shift(v, *axis, *n, env),
            Kind::At(axis) => {
                let index = self.value(arg(1), env)?;
                let index = self.clamp(index, self.values.size(*axis) as i64);
                self.value(arg(0), &moved(*axis, Affine::var(Var::Value(index), 1)))
            }
            Kind::Reduce(..) | Kind::Scan(..) => Err(Request::Keep(v)),
        }
    }

    fn computed(&mut self, v: Val, id: Id) -> Made {
        let def = self.program.def(id);
        self.trace.computed.push((v, def.level, def.varies));
        Ok(id)
    }

    /// Whether the expression lies in `low..high` everywhere; a request for a cut where that changes.
    fn within(&self, v: Val, e: &Affine, low: i64, high: i64) -> Result<bool, Request> {
        let (first, last) = self.bounds.range(e).ok_or(Request::Keep(v))?;
        if first >= low && last < high {
            return Ok(true);
        }
        if last < low || first >= high {
            return Ok(false);
        }
        let boundary = if first < low { low } else { high };
        match self.bounds.crossing(e, boundary) {
            Some((dim, at)) => Err(Request::Cut { dim, at, value: v }),
            None => Err(Request::Keep(v)),
        }
    }

    fn merge(&mut self, v: Val, from: &[AxisId], to: AxisId, env: &Env) -> Made {
        if let Some(layout) = self.view(v)
            && let Some((at, foreign)) = layout.address(self, env)
        {
            return Ok(self.load(layout.mem, at, self.values.get(v).lane, foreign, layout.source));
        }
        let mut env = env.clone();
        let mut e = env[&to].clone();
        for axis in from.iter().skip(1).rev() {
            match self.bounds.divide(&e, self.values.size(*axis) as i64) {
                Division::Done(q, r) => {
                    env.insert(*axis, r);
                    e = q;
                }
                Division::Refine { dim, inner } => return Err(Request::Refine { dim, inner }),
                Division::Stuck => return Err(Request::Keep(v)),
            }
        }
        if let Some(&first) = from.first() {
            env.insert(first, e);
        }
        self.value(self.values.get(v).args[0], &env)
    }

    fn shift(&mut self, v: Val, axis: AxisId, n: i64, env: &Env) -> Made {
        let (x, lane) = (self.values.get(v).args[0], self.values.get(v).lane);
        let size = self.values.size(axis) as i64;
        let source = env[&axis].clone().plus(&Affine::constant(1), -n);
        let by_loop = env[&axis].terms.keys().all(|v| matches!(v, Var::Dim(_)));
        let mut env = env.clone();
        if by_loop {
            let (low, high) = (n.clamp(0, size), (size + n).clamp(0, size));
            return match low < high && self.within(v, &env[&axis], low, high)? {
                true => {
                    env.insert(axis, source);
                    self.value(x, &env)
                }
                false => Ok(self.zero(lane)),
            };
        }
        let source = self.index(&source);
        let inside = self.clamp(source, size);
        env.insert(axis, Affine::var(Var::Value(inside), 1));
        // Scratch has no other rows: what cannot be computed here on the way has to be kept after the shift.
        let moved = self.value(x, &env).map_err(|request| match request {
            Request::Keep(_) => Request::Keep(v),
            Request::Cut { dim, at, .. } => Request::Cut { dim, at, value: v },
            other => other,
        })?;
        let valid = self.push(Inst::Binary(Binary::Eq, source, inside), Lane::Bool);
        let zero = self.zero(lane);
        Ok(self.push(Inst::Select(valid, moved, zero), lane))
    }

    /// An I32 limited to `0..size`, so that no address leaves its buffer.
    fn clamp(&mut self, index: Id, size: i64) -> Id {
        let low = self.push(Inst::Const(Bits::new(0.0)), Lane::I32);
        let high = self.push(Inst::Const(Bits::new((size - 1) as f64)), Lane::I32);
        let index = self.push(Inst::Binary(Binary::Max, index, low), Lane::I32);
        self.push(Inst::Binary(Binary::Min, index, high), Lane::I32)
    }

    fn index(&mut self, e: &Affine) -> Id {
        if e.terms.is_empty() {
            return self.push(Inst::Const(Bits::new(e.constant as f64)), Lane::I32);
        }
        self.push(Inst::Index(e.clone()), Lane::I32)
    }

    fn zero(&mut self, lane: Lane) -> Id {
        self.push(Inst::Const(Bits::new(0.0)), lane)
    }

    fn load(&mut self, mem: Mem, at: Affine, lane: Lane, foreign: bool, v: Val) -> Id {
        self.trace.loads.push((mem, at.clone(), foreign));
        if let Some(&id) = self.stored.get(&(mem, at.clone())) {
            return id;
        }
        // The content of scratch, and of arguments that are also written, changes from row to row.
        let least = match mem {
            Mem::Arg(n) if !self.values.in_place(n) => Level::Task,
            Mem::Scratch(_) if self.kept.invariant.contains(&v) => Level::Task,
            _ => Level::Row,
        };
        self.push_from(Inst::Load(mem, at), lane, least)
    }

    /// Adds a definition as far out as its operands allow, or finds it.
    pub fn push(&mut self, inst: Inst, lane: Lane) -> Id {
        self.push_from(inst, lane, Level::Task)
    }

    fn push_from(&mut self, inst: Inst, lane: Lane, least: Level) -> Id {
        let (mut level, mut varies) = (least, false);
        let mut depends = |l: Level, v: bool| {
            level = level.max(l);
            varies |= v;
        };
        let operand = |id: &Id| (self.program.def(*id).level, self.program.def(*id).varies);
        match &inst {
            Inst::Const(_) => {}
            Inst::Index(at) | Inst::Load(_, at) => {
                for var in at.terms.keys() {
                    match var {
                        Var::Task => depends(Level::Task, false),
                        Var::Outer(_) => depends(Level::Row, false),
                        Var::Dim(k) => depends(Level::Loop(k + 1), self.vector == Some(*k)),
                        Var::Value(id) => depends(operand(id).0, operand(id).1),
                    }
                }
            }
            Inst::Unary(_, a) | Inst::Cast(_, a) | Inst::Reduce(_, a) => depends(operand(a).0, operand(a).1),
            Inst::Binary(_, a, b) => [a, b].map(operand).into_iter().for_each(|(l, v)| depends(l, v)),
            Inst::Select(a, b, c) => [a, b, c].map(operand).into_iter().for_each(|(l, v)| depends(l, v)),
            Inst::Scan(a, b) => a.iter().chain([b]).map(operand).for_each(|(l, v)| depends(l, v)),
        }
        // In the task section everything is computed once.
        let level = if level == Level::Row { self.section } else { level };
        if let Some(&id) = self.known.entry(level).or_default().get(&(inst.clone(), lane)) {
            return id;
        }
        let id = self.define(inst.clone(), lane, level, varies);
        self.known.entry(level).or_default().insert((inst, lane), id);
        match level {
            Level::Task => self.program.task.push(Step::Def(id)),
            Level::Row => self.program.row.push(Step::Def(id)),
            Level::Loop(_) => self.body.push(id),
        }
        id
    }

    /// Adds a definition without placing it.
    pub fn define(&mut self, inst: Inst, lane: Lane, level: Level, varies: bool) -> Id {
        let id = Id(self.program.defs.len() as u32);
        self.program.defs.push(Def { inst, lane, level, varies });
        id
    }
}
