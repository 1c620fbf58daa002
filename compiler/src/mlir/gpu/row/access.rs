//! Values of row kernels: operands, address arithmetic, loads and stores.
//!
//! An address is a pointer that is the same for the row (i64 arithmetic, once per row) plus an offset inside the row (i32 where it is known to fit).

use super::{Writer, elem, wide};
use crate::graph::ir::{Binary, DType, Unary};
use crate::kernel::gpu::row::resident::each_lane;
use crate::kernel::gpu::row::{Place, accesses};
use crate::kernel::row::loops::{Affine, Id, Inst, Mem, Nest, Shape, Store, Var};
use crate::mlir::elementwise;
use crate::mlir::emit::{Elem, Emit, I32, Ty, V};
use crate::mlir::memory::{self, narrow, storage_elem, widen};

/// Widest access of a thread, bytes.
const WIDEST: u64 = 16;

impl<'c> Writer<'_, 'c> {
    /// A definition as a scalar or in all lanes.
    pub(super) fn operand(&self, e: &Emit<'c>, id: Id, vector: bool) -> V<'c> {
        let v = self.values[id.0 as usize].expect("operands are defined before their uses");
        if !vector || v.ty.lanes > 0 || self.lanes == 1 {
            return v;
        }
        let def = self.p.def(id);
        if let Inst::Const(x) = def.inst {
            return elementwise::constant(e, x.get(), wide(elem(def.lane), self.lanes));
        }
        e.splat(v, self.lanes)
    }

    pub(super) fn define(&mut self, e: &Emit<'c>, nest: Option<&Nest>, id: Id) {
        let def = self.p.def(id);
        let arg = |id: &Id| self.operand(e, *id, def.varies);
        let value = match &def.inst {
            Inst::Const(x) => elementwise::constant(e, x.get(), Ty::of(elem(def.lane))),
            Inst::Index(at) => self.index(e, nest, at),
            Inst::Load(mem, at) => self.load(e, nest, *mem, at),
            Inst::Unary(op, a) => elementwise::unary(e, *op, arg(a)),
            Inst::Binary(op, a, b) => {
                let (x, y) = (arg(a), arg(b));
                match self.p.def(*b).inst {
                    _ if *op == Binary::Div && x.ty.elem.is_float() && self.is_rounded(id) => e.div(x, y),
                    // A reciprocal known now saves the division: 1 ulp.
                    Inst::Const(c)
                        if e.approximate
                            && *op == Binary::Div
                            && reciprocal(c.get()).is_some()
                            && x.ty.elem.is_float() =>
                    {
                        e.mul(x, e.fconst(x.ty, reciprocal(c.get()).unwrap_or(1.0)))
                    }
                    _ => elementwise::binary(e, *op, x, y),
                }
            }
            Inst::Select(c, a, b) => e.select(arg(c), arg(a), arg(b)),
            Inst::Cast(to, a) => elementwise::cast(e, arg(a), *to),
            Inst::Reduce(..) | Inst::Scan(..) => return,
        };
        self.values[id.0 as usize] = Some(value);
    }

    /// Whether a value is rounded to an integer somewhere: a quotient that is one must come out as one.
    fn is_rounded(&self, id: Id) -> bool {
        self.p.defs.iter().any(|def| match def.inst {
            Inst::Unary(Unary::Floor | Unary::Round, x) => x == id,
            Inst::Cast(to, x) => x == id && !to.is_float(),
            _ => false,
        })
    }

    /// The value of an address expression, as I32.
    fn index(&self, e: &Emit<'c>, nest: Option<&Nest>, at: &Affine) -> V<'c> {
        let mut sum = e.iconst(I32, at.constant);
        let mut lanes: Vec<V> = vec![];
        for (&var, &c) in &at.terms {
            let term = match var {
                Var::Task => e.truncate(self.task, Elem::I32),
                Var::Outer(k) => e.truncate(self.outer[k], Elem::I32),
                Var::Dim(k) => self.dims[k],
                Var::Value(id) => self.operand(e, id, false),
            };
            let term = e.mul_n(term, c);
            if term.ty.lanes > 0 {
                lanes.push(term);
            } else {
                sum = e.add(sum, term);
            }
        }
        let step = nest.and_then(|n| n.vector).map_or(0, |v| at.dim(v));
        if self.lanes > 1 && step != 0 {
            lanes.push(e.mul_n(e.iota(self.lanes), step));
        }
        if !lanes.is_empty() {
            sum = e.splat(sum, self.lanes);
        }
        lanes.into_iter().fold(sum, |sum, x| e.add(sum, x))
    }

    // ---- addresses ----

    /// Whether a variable is the same for the whole row.
    fn of_row(&self, var: Var) -> bool {
        match var {
            Var::Task | Var::Outer(_) => true,
            Var::Dim(_) => false,
            Var::Value(id) => self.outside(id),
        }
    }

    /// The pointer that the row's variables make; computed by [`Writer::prepare`] where it is used inside a loop.
    fn base(&mut self, e: &Emit<'c>, mem: Mem, at: &Affine) -> V<'c> {
        let terms = at.terms.iter().filter(|(v, _)| self.of_row(**v)).map(|(v, c)| (*v, *c)).collect();
        let key = (mem, Affine { constant: 0, terms });
        if let Some(&p) = self.pointers.iter().rev().find_map(|region| region.get(&key)) {
            return p;
        }
        let mut sum: Option<V> = None;
        for (&var, &c) in &key.1.terms {
            let term = match var {
                Var::Task => self.task,
                Var::Outer(k) => self.outer[k],
                Var::Dim(_) => unreachable!("not of the row"),
                Var::Value(id) => e.int_cast(self.operand(e, id, false), Elem::I64),
            };
            let term = e.mul_n(term, c);
            sum = Some(sum.map_or(term, |s| e.add(s, term)));
        }
        let mut pointer = self.memory(e, mem);
        if let Some(index) = sum {
            pointer = e.gep(pointer, storage_elem(self.p.dtype(mem)), index);
        }
        if let Some(region) = self.pointers.last_mut() {
            region.insert(key, pointer);
        }
        pointer
    }

    /// Computes, outside of a nest's loops, what its addresses share.
    pub(super) fn prepare(&mut self, e: &Emit<'c>, nest: &Nest) {
        let p = self.p;
        for (mem, at) in accesses(p, nest) {
            if !self.adds_teams(mem) && !self.in_registers(mem) {
                self.base(e, mem, at);
            }
        }
    }

    /// The address of lane 0, without values that vary between lanes.
    fn first(&mut self, e: &Emit<'c>, nest: Option<&Nest>, mem: Mem, at: &Affine) -> V<'c> {
        let storage = storage_elem(self.p.dtype(mem));
        let mut pointer = self.base(e, mem, at);
        let mut far = at.constant.abs();
        for (var, c) in &at.terms {
            if let (Var::Dim(k), Some(nest)) = (var, nest) {
                far += c.abs() * nest.dims[*k].size as i64;
            }
        }
        let narrow = far < 1 << 28;
        let mut sum: Option<V> = None;
        for (&var, &c) in at.terms.iter().filter(|(v, _)| !self.of_row(**v)) {
            let term = match var {
                Var::Dim(k) if narrow => e.mul_n(self.dims[k], c),
                Var::Dim(k) => e.mul_n(e.int_cast(self.dims[k], Elem::I64), c),
                Var::Value(id) => {
                    let value = self.operand(e, id, false);
                    if value.ty.lanes == 0 {
                        let index = e.mul_n(e.int_cast(value, Elem::I64), c);
                        pointer = e.gep(pointer, storage, index);
                    }
                    continue;
                }
                Var::Task | Var::Outer(_) => continue,
            };
            sum = Some(sum.map_or(term, |s| e.add(s, term)));
        }
        if let Some(index) = sum {
            pointer = e.gep(pointer, storage, index);
        }
        e.gep_const(pointer, storage, at.constant)
    }

    fn shape(&self, nest: Option<&Nest>, at: &Affine) -> Shape {
        if self.lanes == 1 { Shape::Uniform } else { self.p.shape(nest, at) }
    }

    /// Bytes that divide the address of lane 0 of a contiguous access. Pointers of arguments and scratch are multiples of 64.
    fn alignment(&self, nest: &Nest, mem: Mem, at: &Affine) -> usize {
        let vector = nest.vector.unwrap_or(usize::MAX);
        let step =
            |(var, c): (&Var, &i64)| c.unsigned_abs() * if *var == Var::Dim(vector) { self.lanes as u64 } else { 1 };
        let all = at.terms.iter().map(step).chain([at.constant.unsigned_abs(), WIDEST]);
        let power = all.map(u64::trailing_zeros).min().unwrap_or(0);
        let bytes = self.p.dtype(mem).bytes() as u64;
        ((bytes << power.min(4)).min(WIDEST)) as usize
    }

    /// Pointers of single lanes.
    fn lanes_at(&mut self, e: &Emit<'c>, nest: Option<&Nest>, mem: Mem, at: &Affine, shape: &Shape) -> Vec<V<'c>> {
        let storage = storage_elem(self.p.dtype(mem));
        let first = self.first(e, nest, mem, at);
        let Shape::Scattered(stride, values) = shape else { return vec![first] };
        (0..self.lanes)
            .map(|lane| {
                let mut pointer = e.gep_const(first, storage, stride * lane as i64);
                for &(id, c) in values {
                    let index = e.int_cast(e.extract(self.operand(e, id, true), lane), Elem::I64);
                    pointer = e.gep(pointer, storage, e.mul_n(index, c));
                }
                pointer
            })
            .collect()
    }

    // ---- loads and stores ----

    fn adds_teams(&self, mem: Mem) -> bool {
        self.ending && matches!(mem, Mem::Scratch(i) if self.l.sums.contains(&i))
    }

    fn in_registers(&self, mem: Mem) -> bool {
        matches!(mem, Mem::Scratch(i) if self.l.places[i] == Place::Registers)
    }

    /// Loads a value: all lanes, or one element if it is uniform.
    pub(super) fn load(&mut self, e: &Emit<'c>, nest: Option<&Nest>, mem: Mem, at: &Affine) -> V<'c> {
        if let Some(kept) = self.recall(mem, at) {
            return kept;
        }
        if !self.adds_teams(mem) {
            return self.load_once(e, nest, mem, at);
        }
        let mine = self.team_scratch;
        let mut sum: Option<V> = None;
        for team in 0..self.l.teams() {
            self.team_scratch = mine.map(|s| e.gep_const(s, Elem::I8, (team * self.l.team_bytes) as i64));
            // Pointers of another team's part are not for reuse.
            self.pointers.push(Default::default());
            let part = self.load_once(e, nest, mem, at);
            self.pointers.pop();
            sum = Some(sum.map_or(part, |s| e.add(s, part)));
        }
        self.team_scratch = mine;
        sum.expect("a block has a team")
    }

    fn load_once(&mut self, e: &Emit<'c>, nest: Option<&Nest>, mem: Mem, at: &Affine) -> V<'c> {
        let dtype = self.p.dtype(mem);
        let shape = self.shape(nest, at);
        match (&shape, nest) {
            (Shape::Contiguous, Some(nest)) => {
                let align = self.alignment(nest, mem, at);
                let pointer = self.first(e, Some(nest), mem, at);
                widen(e, e.load_aligned(pointer, Ty::vec(self.lanes, storage_elem(dtype)), align), dtype)
            }
            (Shape::Scattered(..), _) => {
                let storage = storage_elem(dtype);
                let mut all = e.zero(Ty::vec(self.lanes, storage));
                for (lane, pointer) in self.lanes_at(e, nest, mem, at, &shape).into_iter().enumerate() {
                    all = e.insert(e.load(pointer, Ty::of(storage)), all, lane as u32);
                }
                widen(e, all, dtype)
            }
            (Shape::Uniform | Shape::Contiguous, _) => {
                let pointer = self.first(e, nest, mem, at);
                memory::load_scalar(e, pointer, dtype)
            }
        }
    }

    /// Writes a store.
    pub(super) fn store(&mut self, e: &Emit<'c>, nest: &Nest, s: &Store) {
        let dtype: DType = self.p.dtype(s.mem);
        let shape = match nest.vector {
            Some(v) if v < s.depth => self.shape(Some(nest), &s.at),
            _ => Shape::Uniform,
        };
        let mut value = self.operand(e, s.value, !matches!(shape, Shape::Uniform));
        if let (Some((loops, round)), Mem::Scratch(_)) = (&self.even, s.mem)
            && !s.add
            && s.depth == nest.dims.len()
            && each_lane(nest, &s.at)
        {
            self.kept.insert((s.mem, s.at.clone(), loops.clone(), *round), value);
        }
        if self.in_registers(s.mem) {
            return;
        }
        let pointer = self.first(e, Some(nest), s.mem, &s.at);
        match shape {
            Shape::Uniform => {
                if s.add {
                    value = e.add(memory::load_scalar(e, pointer, dtype), value);
                }
                memory::store_scalar(e, value, pointer, dtype);
            }
            Shape::Contiguous => {
                let align = self.alignment(nest, s.mem, &s.at);
                if s.add {
                    let old = e.load_aligned(pointer, Ty::vec(self.lanes, storage_elem(dtype)), align);
                    value = e.add(widen(e, old, dtype), value);
                }
                e.store_aligned(narrow(e, value, dtype), pointer, align);
            }
            Shape::Scattered(..) => {
                if s.add {
                    value = e.add(self.load_once(e, Some(nest), s.mem, &s.at), value);
                }
                let raw = narrow(e, value, dtype);
                for (lane, pointer) in self.lanes_at(e, Some(nest), s.mem, &s.at, &shape).into_iter().enumerate() {
                    e.store(e.extract(raw, lane as u32), pointer);
                }
            }
        }
    }
}

/// 1 / x as f32, if that is a normal number.
fn reciprocal(x: f64) -> Option<f64> {
    let r = (1.0 / (x as f32 as f64)) as f32;
    r.is_normal().then_some(r as f64)
}
