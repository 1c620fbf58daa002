//! Runs a loop program on bytes: the reference for emitters, lane by lane.
//!
//! *Takes* a [`Program`] and the arguments' memory; *gives* their memory after all tasks; *promises* the emitted code's order of operations.
//! Elementary functions are computed in f64 and rounded, so they differ from the emitted polynomials in the last bits.

use super::loops::{Affine, Def, Id, Inst, LANES, Lane, Mem, Nest, Program, Step, Var};
use crate::graph::ir::{Binary, DType, Reduce};
use crate::graph::scalar;

/// One register: the lanes of a vector, all equal when the value is uniform.
type Lanes = [f64; LANES];

/// Runs all tasks. An argument is the bytes of its memory; addresses outside of it are an error.
pub fn run(p: &Program, args: &mut [Vec<u8>]) -> Result<(), String> {
    for task in 0..p.tasks() {
        let mut m = Machine {
            p,
            args,
            scratch: p.scratch.iter().map(|s| vec![0xaa; s.len * s.lane.dtype().bytes()]).collect(),
            registers: vec![[f64::NAN; LANES]; p.defs.len()],
            task,
            outer: vec![0; p.outer.len()],
            dims: Vec::new(),
        };
        m.steps(&p.task)?;
        for row in task * p.block..((task + 1) * p.block).min(p.rows()) {
            let mut rest = row;
            for k in (0..p.outer.len()).rev() {
                m.outer[k] = rest % p.outer[k];
                rest /= p.outer[k];
            }
            m.steps(&p.row)?;
        }
        m.steps(&p.end)?;
    }
    Ok(())
}

/// Reads element `i` of a memory.
pub fn read(bytes: &[u8], dtype: DType, i: usize) -> Option<f64> {
    let b = bytes.get(i * dtype.bytes()..(i + 1) * dtype.bytes())?;
    Some(match dtype {
        DType::F32 => f32::from_le_bytes(b.try_into().ok()?) as f64,
        DType::Bf16 => half::bf16::from_le_bytes(b.try_into().ok()?).to_f64(),
        DType::F16 => half::f16::from_le_bytes(b.try_into().ok()?).to_f64(),
        DType::I32 => i32::from_le_bytes(b.try_into().ok()?) as f64,
        DType::I8 => b[0] as i8 as f64,
        DType::Bool => scalar::truth(b[0] != 0),
    })
}

/// Writes element `i` of a memory, rounding to its dtype.
pub fn write(bytes: &mut [u8], dtype: DType, i: usize, x: f64) -> Option<()> {
    let b = bytes.get_mut(i * dtype.bytes()..(i + 1) * dtype.bytes())?;
    match dtype {
        DType::F32 => b.copy_from_slice(&(x as f32).to_le_bytes()),
        DType::Bf16 => b.copy_from_slice(&half::bf16::from_f32(x as f32).to_le_bytes()),
        DType::F16 => b.copy_from_slice(&half::f16::from_f32(x as f32).to_le_bytes()),
        DType::I32 => b.copy_from_slice(&(x as i32).to_le_bytes()),
        DType::I8 => b[0] = x as i8 as u8,
        DType::Bool => b[0] = u8::from(x != 0.0),
    }
    Some(())
}

struct Machine<'a> {
    p: &'a Program,
    args: &'a mut [Vec<u8>],
    scratch: Vec<Vec<u8>>,
    registers: Vec<Lanes>,
    task: usize,
    outer: Vec<usize>,
    /// Loop counters of the nest; the vector dimension's is the position of lane 0.
    dims: Vec<usize>,
}

impl Machine<'_> {
    fn steps(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            match step {
                Step::Def(id) => {
                    self.define(*id, &Nest { dims: vec![], vector: None, body: vec![], stores: vec![] })?
                }
                Step::Zero(i) => self.scratch[*i].fill(0),
                Step::Nest(nest) => {
                    self.dims = vec![0; nest.dims.len()];
                    self.nest(nest, 0)?;
                }
            }
        }
        Ok(())
    }

    fn nest(&mut self, nest: &Nest, depth: usize) -> Result<(), String> {
        let here: Vec<Id> = nest.body.iter().copied().filter(|&id| self.p.depth(id) == depth).collect();
        let result = |p: &Program, id: Id| matches!(p.def(id).inst, Inst::Reduce(..));
        let carried_from = nest.dims.iter().position(|d| d.carried).unwrap_or(nest.dims.len());
        if depth == carried_from {
            for &id in &nest.body {
                match self.p.def(id).inst {
                    Inst::Reduce(kind, _) => {
                        self.registers[id.0 as usize] = [identity(kind, self.p.def(id).lane); LANES]
                    }
                    Inst::Scan(..) => self.registers[id.0 as usize] = [0.0; LANES],
                    _ => {}
                }
            }
        }
        for &id in here.iter().filter(|&&id| !result(self.p, id)) {
            self.define(id, nest)?;
        }
        if depth == nest.dims.len() {
            self.accumulate(nest);
        } else {
            let step = if nest.vector == Some(depth) { LANES } else { 1 };
            for i in (0..nest.dims[depth].size).step_by(step) {
                self.dims[depth] = i;
                self.nest(nest, depth + 1)?;
            }
            self.dims[depth] = 0;
        }
        for &id in here.iter().filter(|&&id| result(self.p, id)) {
            self.finish(id, nest);
        }
        for s in nest.stores.iter().filter(|s| s.depth == depth) {
            let (value, dtype) = (self.registers[s.value.0 as usize], self.p.dtype(s.mem));
            let lanes =
                if nest.vector.is_some_and(|v| s.at.dim(v) != 0 && v < s.depth) { self.active(nest) } else { 1 };
            for lane in 0..lanes {
                let at = self.address(&s.at, nest, lane);
                let mut x = value[lane];
                let memory = self.memory(s.mem);
                if s.add {
                    let old =
                        usize::try_from(at).ok().and_then(|at| read(memory, dtype, at)).ok_or("load out of bounds")?;
                    x = match dtype {
                        DType::I32 | DType::I8 | DType::Bool => {
                            scalar::binary(Binary::Add, old, x, true).unwrap_or(0.0)
                        }
                        DType::F32 | DType::Bf16 | DType::F16 => (old as f32 + x as f32) as f64,
                    };
                }
                let at = usize::try_from(at).map_err(|_| "store out of bounds")?;
                write(memory, dtype, at, x).ok_or_else(|| format!("store out of bounds: {} {at}", s.mem))?;
            }
        }
        Ok(())
    }

    /// Lanes of the current vector that exist.
    fn active(&self, nest: &Nest) -> usize {
        nest.vector.map_or(1, |v| (nest.dims[v].size - self.dims[v]).min(LANES))
    }

    fn memory(&mut self, mem: Mem) -> &mut Vec<u8> {
        match mem {
            Mem::Arg(i) => &mut self.args[i],
            Mem::Scratch(i) => &mut self.scratch[i],
        }
    }

    fn address(&self, at: &Affine, nest: &Nest, lane: usize) -> i64 {
        let mut n = at.constant;
        for (var, c) in &at.terms {
            n += c * match var {
                Var::Task => self.task as i64,
                Var::Outer(k) => self.outer[*k] as i64,
                Var::Dim(k) => (self.dims[*k] + if nest.vector == Some(*k) { lane } else { 0 }) as i64,
                Var::Value(id) => self.registers[id.0 as usize][lane] as i64,
            };
        }
        n
    }

    fn define(&mut self, id: Id, nest: &Nest) -> Result<(), String> {
        let Def { inst, lane, varies, .. } = self.p.def(id).clone();
        let active = if varies { self.active(nest) } else { LANES };
        let mut out = [0.0; LANES];
        for l in 0..active {
            let get = |id: &Id| self.registers[id.0 as usize][l];
            let x = match &inst {
                Inst::Const(x) => x.get(),
                Inst::Index(at) => self.address(at, nest, l) as f64,
                Inst::Load(mem, at) => {
                    let (at, dtype) = (self.address(at, nest, l), self.p.dtype(*mem));
                    let memory = match mem {
                        Mem::Arg(i) => &self.args[*i],
                        Mem::Scratch(i) => &self.scratch[*i],
                    };
                    let x = usize::try_from(at).ok().and_then(|at| read(memory, dtype, at));
                    x.ok_or_else(|| format!("load out of bounds: {mem}[{at}]"))?
                }
                Inst::Unary(op, a) => scalar::unary(*op, get(a), self.p.def(*a).lane == Lane::I32),
                Inst::Binary(op, a, b) => {
                    let integer = self.p.def(*a).lane != Lane::F32;
                    match scalar::binary(*op, get(a), get(b), integer) {
                        // One rounding per operation, as the emitted code has.
                        Some(_) if *op == Binary::Mod && !integer => {
                            let (a, b) = (get(a) as f32, get(b) as f32);
                            (a - b * libm::floorf(a / b)) as f64
                        }
                        Some(x) => x,
                        None => 0.0,
                    }
                }
                Inst::Select(c, a, b) => {
                    if get(c) != 0.0 {
                        get(a)
                    } else {
                        get(b)
                    }
                }
                Inst::Cast(to, a) => scalar::cast(get(a), *to),
                Inst::Scan(a, b) => {
                    let old = self.registers[id.0 as usize][l];
                    let product = a.as_ref().map_or(old, |a| (get(a) as f32 * old as f32) as f64);
                    match lane {
                        Lane::F32 => (product as f32 + get(b) as f32) as f64,
                        Lane::I32 | Lane::Bool => scalar::binary(Binary::Add, product, get(b), true).unwrap_or(0.0),
                    }
                }
                Inst::Reduce(..) => continue,
            };
            out[l] = if lane == Lane::F32 { x as f32 as f64 } else { x };
        }
        if !matches!(inst, Inst::Reduce(..)) {
            self.registers[id.0 as usize] = out;
        }
        Ok(())
    }

    fn accumulate(&mut self, nest: &Nest) {
        let active = self.active(nest);
        for &id in &nest.body {
            let def = self.p.def(id);
            let Inst::Reduce(kind, x) = def.inst else { continue };
            let by_lanes = nest.vector.is_some_and(|v| nest.dims[v].carried);
            let lanes = if by_lanes { active } else { LANES };
            for l in 0..lanes {
                let (old, x) = (self.registers[id.0 as usize][l], self.registers[x.0 as usize][l]);
                self.registers[id.0 as usize][l] = combine(kind, def.lane, old, x);
            }
        }
    }

    fn finish(&mut self, id: Id, nest: &Nest) {
        let def = self.p.def(id);
        let Inst::Reduce(kind, _) = def.inst else { return };
        if nest.vector.is_some_and(|v| nest.dims[v].carried) {
            let mut lanes = self.registers[id.0 as usize];
            let mut n = LANES / 2;
            while n > 0 {
                for l in 0..n {
                    lanes[l] = combine(kind, def.lane, lanes[l], lanes[l + n]);
                }
                n /= 2;
            }
            self.registers[id.0 as usize] = [lanes[0]; LANES];
        }
    }
}

fn identity(kind: Reduce, lane: Lane) -> f64 {
    match (kind, lane) {
        (Reduce::Sum, _) => 0.0,
        (Reduce::Max, Lane::F32) => f64::NEG_INFINITY,
        (Reduce::Min, Lane::F32) => f64::INFINITY,
        (Reduce::Max, _) => i32::MIN as f64,
        (Reduce::Min, _) => i32::MAX as f64,
    }
}

fn combine(kind: Reduce, lane: Lane, a: f64, b: f64) -> f64 {
    let op = match kind {
        Reduce::Sum => Binary::Add,
        Reduce::Max => Binary::Max,
        Reduce::Min => Binary::Min,
    };
    let x = scalar::binary(op, a, b, lane != Lane::F32).unwrap_or(0.0);
    if lane == Lane::F32 { x as f32 as f64 } else { x }
}
