//! Row kernels on the CPU: loop programs written as vectors of 16 lanes.
//!
//! *Takes* a [`Row`]; *gives* its function; *promises* the loop program's order of operations, so that f32 results have the same bits on
//! every tier, and that memory outside of the addressed elements is not touched.
//!
//! A vector loop is a loop over whole vectors and one copy of its body for the last lanes. Addresses are built outside in: a pointer per
//! memory and prefix of loops, so that inner loops only add their own counter.

mod access;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use crate::kernel::row::Row;
use crate::kernel::row::loops::{Affine, Id, Inst, LANES, Lane, Mem, Nest, Program, Step, Var};
use crate::kernel::row::lower::lower;
use crate::mlir::elementwise;
use crate::mlir::emit::{Elem, Emit, Ty, Unit, V};
use crate::mlir::rows::{elem, positions};

/// Emits the function `main`.
pub fn emit(unit: &Unit, row: &Row, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    let program = lower(row)?;
    unit.kernel(&symbol("main"), row.args.len(), |e, task, args, scratch| {
        let mut w = Writer {
            p: &program,
            task,
            args: args.to_vec(),
            scratch,
            outer: vec![],
            dims: vec![],
            values: vec![None; program.defs.len()],
            pointers: vec![HashMap::new()],
        };
        w.program(e);
    });
    Ok(())
}

/// The state of writing a function.
struct Writer<'p, 'c> {
    p: &'p Program,
    task: V<'c>,
    args: Vec<V<'c>>,
    scratch: V<'c>,
    /// Positions along the outer axes.
    outer: Vec<V<'c>>,
    /// Loop counters of the nest; the vector dimension's is the position of lane 0.
    dims: Vec<V<'c>>,
    /// Definitions: a vector if it varies, else a scalar.
    values: Vec<Option<V<'c>>>,
    /// Pointers by memory and prefix of the address, one map per open region.
    pointers: Vec<HashMap<(Mem, Affine), V<'c>>>,
}

fn lane_ty(lane: Lane, varies: bool) -> Ty {
    if varies { Ty::vec(LANES as u32, elem(lane)) } else { Ty::of(elem(lane)) }
}

impl<'c> Writer<'_, 'c> {
    fn program(&mut self, e: &Emit<'c>) {
        let p = self.p;
        self.steps(e, &p.task);
        let (rows, block) = (p.rows() as i64, p.block as i64);
        if rows == 1 {
            self.outer = vec![e.i(0); p.outer.len()];
            self.steps(e, &p.row);
        } else {
            let first = e.mul_n(self.task, block);
            let count = match rows % block {
                0 => e.i(block),
                _ => e.min(e.sub(e.i(rows), first), e.i(block)),
            };
            e.for_(e.i(0), count, e.i(1), &[], |e, i, _| {
                self.outer = positions(e, &p.outer, e.add(first, i));
                self.pointers.push(HashMap::new());
                self.steps(e, &p.row);
                self.pointers.pop();
                vec![]
            });
        }
        self.steps(e, &p.end);
    }

    fn steps(&mut self, e: &Emit<'c>, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Def(id) => self.define(e, None, *id, LANES as u32),
                Step::Zero(i) => self.zero(e, *i),
                Step::Nest(nest) => {
                    self.dims.clear();
                    self.pointers.push(HashMap::new());
                    self.level(e, nest, 0, vec![], LANES as u32);
                    self.pointers.pop();
                }
            }
        }
    }

    /// Zeroes scratch, which is laid out in multiples of 64 bytes.
    fn zero(&mut self, e: &Emit<'c>, i: usize) {
        let s = &self.p.scratch[i];
        let words = crate::kernel::round_up(s.len * s.lane.dtype().bytes(), 64) as i64 / 4;
        let base = e.gep_const(self.scratch, Elem::I8, s.offset as i64);
        e.each(0, words, LANES as i64, |e, at| {
            e.store(e.zero(Ty::vec(LANES as u32, Elem::I32)), e.gep(base, Elem::I32, at));
        });
    }

    /// Everything inside `depth` loops of a nest. `carried` are the accumulators of its reductions and scans, in body order.
    fn level(&mut self, e: &Emit<'c>, nest: &Nest, depth: usize, carried: Vec<V<'c>>, active: u32) -> Vec<V<'c>> {
        let from = nest.dims.iter().position(|d| d.carried).unwrap_or(nest.dims.len());
        let mut carried = if depth == from { self.identities(e, nest) } else { carried };
        let here: Vec<Id> = nest.body.iter().copied().filter(|&id| self.p.depth(id) == depth).collect();
        for &id in &here {
            if !self.is_carried(id) {
                self.define(e, Some(nest), id, active);
            }
        }
        if depth == nest.dims.len() {
            carried = self.accumulate(e, nest, &carried, active);
        } else {
            self.prepare(e, nest, depth);
            let size = nest.dims[depth].size as i64;
            if nest.vector == Some(depth) {
                let whole = size / LANES as i64 * LANES as i64;
                if whole > 0 {
                    carried = self.repeat(e, nest, depth, (whole, LANES as i64), &carried, LANES as u32);
                }
                if whole < size {
                    self.dims.push(e.i(whole));
                    self.pointers.push(HashMap::new());
                    carried = self.level(e, nest, depth + 1, carried, (size - whole) as u32);
                    self.pointers.pop();
                    self.dims.pop();
                }
            } else {
                carried = self.repeat(e, nest, depth, (size, 1), &carried, active);
            }
        }
        if depth == from {
            self.finish(e, nest, &carried);
            carried = vec![];
        }
        for s in nest.stores.iter().filter(|s| s.depth == depth) {
            self.store(e, nest, s, active);
        }
        carried
    }

    /// The loop at `depth`; `active` are the lanes of its body.
    fn repeat(
        &mut self,
        e: &Emit<'c>,
        nest: &Nest,
        depth: usize,
        (end, step): (i64, i64),
        carried: &[V<'c>],
        active: u32,
    ) -> Vec<V<'c>> {
        e.for_(e.i(0), e.i(end), e.i(step), carried, |e, i, carried| {
            self.dims.push(i);
            self.pointers.push(HashMap::new());
            let next = self.level(e, nest, depth + 1, carried.to_vec(), active);
            self.pointers.pop();
            self.dims.pop();
            next
        })
    }

    fn is_carried(&self, id: Id) -> bool {
        matches!(self.p.def(id).inst, Inst::Reduce(..) | Inst::Scan(..))
    }

    /// Reductions by lanes accumulate into 16 lanes although their result is uniform.
    fn by_lanes(nest: &Nest) -> bool {
        nest.vector.is_some_and(|v| nest.dims[v].carried)
    }

    fn identities(&self, e: &Emit<'c>, nest: &Nest) -> Vec<V<'c>> {
        let carried = nest.body.iter().filter(|&&id| self.is_carried(id));
        carried
            .map(|&id| {
                let def = self.p.def(id);
                let ty = lane_ty(def.lane, def.varies || Self::by_lanes(nest));
                match def.inst {
                    Inst::Reduce(kind, _) => elementwise::identity(e, kind, ty),
                    _ => e.zero(ty),
                }
            })
            .collect()
    }

    fn accumulate(&mut self, e: &Emit<'c>, nest: &Nest, carried: &[V<'c>], active: u32) -> Vec<V<'c>> {
        let ids: Vec<Id> = nest.body.iter().copied().filter(|&id| self.is_carried(id)).collect();
        let mut next = vec![];
        for (&id, &old) in ids.iter().zip(carried) {
            let vector = old.ty.lanes > 0;
            match &self.p.def(id).inst {
                Inst::Reduce(kind, x) => {
                    let mut x = self.operand(e, *x, vector);
                    if Self::by_lanes(nest) && active < LANES as u32 {
                        x = e.select(e.first_lanes(LANES as u32, active), x, elementwise::identity(e, *kind, x.ty));
                    }
                    next.push(elementwise::combine(e, *kind, old, x));
                }
                Inst::Scan(a, b) => {
                    let scaled = match a {
                        Some(a) => e.mul(self.operand(e, *a, vector), old),
                        None => old,
                    };
                    let value = e.add(scaled, self.operand(e, *b, vector));
                    self.values[id.0 as usize] = Some(value);
                    next.push(value);
                }
                _ => {}
            }
        }
        next
    }

    /// Results of the reductions.
    fn finish(&mut self, e: &Emit<'c>, nest: &Nest, carried: &[V<'c>]) {
        let ids: Vec<Id> = nest.body.iter().copied().filter(|&id| self.is_carried(id)).collect();
        for (&id, &sum) in ids.iter().zip(carried) {
            if let Inst::Reduce(kind, _) = self.p.def(id).inst {
                let result = match Self::by_lanes(nest) {
                    true => e.reduce(sum, |a, b| elementwise::combine(e, kind, a, b)),
                    false => sum,
                };
                self.values[id.0 as usize] = Some(result);
            }
        }
    }

    /// A definition as a scalar or as a vector.
    fn operand(&self, e: &Emit<'c>, id: Id, vector: bool) -> V<'c> {
        let v = self.values[id.0 as usize].expect("operands are defined before their uses");
        if !vector || v.ty.lanes > 0 {
            return v;
        }
        let def = self.p.def(id);
        if let Inst::Const(x) = def.inst {
            return elementwise::constant(e, x.get(), lane_ty(def.lane, true));
        }
        e.splat(v, LANES as u32)
    }

    fn define(&mut self, e: &Emit<'c>, nest: Option<&Nest>, id: Id, active: u32) {
        let def = self.p.def(id);
        let arg = |id: &Id| self.operand(e, *id, def.varies);
        let value = match &def.inst {
            Inst::Const(x) => elementwise::constant(e, x.get(), lane_ty(def.lane, false)),
            Inst::Index(at) => self.index(e, nest, at),
            Inst::Load(mem, at) => self.load(e, nest, *mem, at, active),
            Inst::Unary(op, a) => elementwise::unary(e, *op, arg(a)),
            Inst::Binary(op, a, b) => elementwise::binary(e, *op, arg(a), arg(b)),
            Inst::Select(c, a, b) => e.select(arg(c), arg(a), arg(b)),
            Inst::Cast(to, a) => elementwise::cast(e, arg(a), *to),
            Inst::Reduce(..) | Inst::Scan(..) => return,
        };
        self.values[id.0 as usize] = Some(value);
    }

    /// The value of an address expression, as I32.
    fn index(&self, e: &Emit<'c>, nest: Option<&Nest>, at: &Affine) -> V<'c> {
        let mut sum = e.i(at.constant);
        for (&var, &c) in &at.terms {
            sum = e.add(sum, e.mul_n(self.variable(e, var), c));
        }
        let first = e.truncate(sum, Elem::I32);
        match nest.and_then(|n| n.vector).map(|v| at.dim(v)) {
            Some(c) if c != 0 => {
                let lanes = e.iota(LANES as u32);
                e.add(e.splat(first, LANES as u32), e.mul_n(lanes, c))
            }
            _ => first,
        }
    }

    /// A uniform variable as i64.
    fn variable(&self, e: &Emit<'c>, var: Var) -> V<'c> {
        match var {
            Var::Task => self.task,
            Var::Outer(k) => self.outer[k],
            Var::Dim(k) => self.dims[k],
            Var::Value(id) => e.int_cast(self.operand(e, id, false), Elem::I64),
        }
    }

    /// Inside how many loops a variable is known.
    fn depth(&self, var: Var) -> usize {
        match var {
            Var::Task | Var::Outer(_) => 0,
            Var::Dim(k) => k + 1,
            Var::Value(id) => self.p.depth(id),
        }
    }
}
