//! Loads and stores of row kernels: contiguous vectors, uniform elements, and lanes one by one where memory is strided or indexed.

use super::Writer;
use crate::kernel::row::loops::{Affine, Inst, LANES, Mem, Nest, Shape, Store, Var};
use crate::mlir::emit::{Elem, Emit, V};
use crate::mlir::memory::{self, storage_elem};

impl<'c> Writer<'_, 'c> {
    /// The pointer of lane 0 without the constant and without values that vary between lanes, as far as the first `depth` loops know it.
    fn pointer(&mut self, e: &Emit<'c>, mem: Mem, at: &Affine, depth: usize) -> V<'c> {
        let uniform = |var: &Var| !matches!(var, Var::Value(id) if self.p.def(*id).varies);
        let known: Vec<(Var, i64)> =
            at.terms.iter().filter(|(v, _)| uniform(v) && self.depth(**v) <= depth).map(|(v, c)| (*v, *c)).collect();
        let key = (mem, Affine { constant: 0, terms: known.iter().copied().collect() });
        if let Some(&p) = self.pointers.iter().rev().find_map(|region| region.get(&key)) {
            return p;
        }
        let elem = storage_elem(self.p.dtype(mem));
        let (mine, _): (Vec<_>, Vec<_>) = known.iter().partition(|(v, _)| self.depth(*v) == depth);
        let mut pointer = match (depth, mem) {
            (0, Mem::Arg(i)) => self.args[i],
            (0, Mem::Scratch(i)) => e.gep_const(self.scratch, Elem::I8, self.p.scratch[i].offset as i64),
            _ => self.pointer(e, mem, at, depth - 1),
        };
        let mut sum: Option<V> = None;
        for (var, c) in mine {
            let term = e.mul_n(self.variable(e, var), c);
            sum = Some(sum.map_or(term, |s| e.add(s, term)));
        }
        if let Some(index) = sum {
            pointer = e.gep(pointer, elem, index);
        }
        if let Some(region) = self.pointers.last_mut() {
            region.insert(key, pointer);
        }
        pointer
    }

    /// Computes, outside of the loop at `depth`, what the addresses inside share.
    pub(super) fn prepare(&mut self, e: &Emit<'c>, nest: &Nest, depth: usize) {
        let mut inside: Vec<(Mem, Affine)> = vec![];
        for &id in &nest.body {
            if let Inst::Load(mem, at) = &self.p.def(id).inst {
                inside.push((*mem, at.clone()));
            }
        }
        inside.extend(nest.stores.iter().map(|s| (s.mem, s.at.clone())));
        for (mem, at) in inside {
            let deepest = at.terms.keys().map(|v| self.depth(*v)).max().unwrap_or(0);
            if deepest > depth {
                self.pointer(e, mem, &at, depth);
            }
        }
    }

    fn first(&mut self, e: &Emit<'c>, mem: Mem, at: &Affine) -> V<'c> {
        let depth = self.dims.len();
        let pointer = self.pointer(e, mem, at, depth);
        e.gep_const(pointer, storage_elem(self.p.dtype(mem)), at.constant)
    }

    /// Pointers of single lanes.
    fn lanes(&mut self, e: &Emit<'c>, mem: Mem, at: &Affine, shape: &Shape, active: u32) -> Vec<V<'c>> {
        let elem = storage_elem(self.p.dtype(mem));
        let first = self.first(e, mem, at);
        let Shape::Scattered(stride, values) = shape else { return vec![first] };
        (0..active)
            .map(|lane| {
                let mut pointer = e.gep_const(first, elem, stride * lane as i64);
                for &(id, c) in values {
                    let index = e.int_cast(e.extract(self.operand(e, id, true), lane), Elem::I64);
                    pointer = e.gep(pointer, elem, e.mul_n(index, c));
                }
                pointer
            })
            .collect()
    }

    /// Loads a value: the first `active` lanes, or one element if it is uniform.
    pub(super) fn load(&mut self, e: &Emit<'c>, nest: Option<&Nest>, mem: Mem, at: &Affine, active: u32) -> V<'c> {
        let dtype = self.p.dtype(mem);
        let shape = self.p.shape(nest, at);
        match shape {
            Shape::Uniform => memory::load_scalar(e, self.first(e, mem, at), dtype),
            Shape::Contiguous => memory::load(e, self.first(e, mem, at), dtype, LANES as u32, active),
            Shape::Scattered(..) => memory::load_lanes(e, &self.lanes(e, mem, at, &shape, active), dtype),
        }
    }

    /// Writes a store.
    pub(super) fn store(&mut self, e: &Emit<'c>, nest: &Nest, s: &Store, active: u32) {
        let dtype = self.p.dtype(s.mem);
        let shape = match nest.vector {
            Some(v) if v < s.depth => self.p.shape(Some(nest), &s.at),
            _ => Shape::Uniform,
        };
        let mut value = self.operand(e, s.value, !matches!(shape, Shape::Uniform));
        match shape {
            Shape::Uniform => {
                let pointer = self.first(e, s.mem, &s.at);
                if s.add {
                    value = e.add(memory::load_scalar(e, pointer, dtype), value);
                }
                memory::store_scalar(e, value, pointer, dtype);
            }
            Shape::Contiguous => {
                let pointer = self.first(e, s.mem, &s.at);
                if s.add {
                    value = e.add(memory::load(e, pointer, dtype, LANES as u32, active), value);
                }
                memory::store(e, value, pointer, dtype, active);
            }
            Shape::Scattered(..) => {
                if s.add {
                    value = e.add(self.load(e, Some(nest), s.mem, &s.at, active), value);
                }
                memory::store_lanes(e, value, &self.lanes(e, s.mem, &s.at, &shape, active), dtype);
            }
        }
    }
}
