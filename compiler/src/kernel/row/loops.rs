//! Loop programs: what one task of a row kernel does, as explicit loops over addresses, independent of the target.
//!
//! *Takes* nothing; *gives* the IR between [`super::lower`] and the emitters, its text form, and the index arithmetic both need;
//! *promises* that a printed program can be read as pseudo-code: every loop, load, rounding and accumulation is visible.
//!
//! A [`Program`] runs its `task` steps once, its `row` steps for every row of the task, then its `end` steps. Values ([`Def`]) are
//! 16 virtual lanes wide where they vary along a nest's vector dimension and uniform elsewhere.

use crate::graph::ir::{Binary, Bits, DType, Reduce, Unary};
use std::collections::BTreeMap;
use std::fmt;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Index of a [`Def`] in [`Program::defs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u32);

/// What a lane holds. Narrow floats are widened when loaded, `I8` is held as `I32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Lane {
    F32,
    I32,
    Bool,
}

impl Lane {
    /// The lane type that holds values of a dtype.
    pub fn of(dtype: DType) -> Lane {
        match dtype {
            DType::F32 | DType::Bf16 | DType::F16 => Lane::F32,
            DType::I32 | DType::I8 => Lane::I32,
            DType::Bool => Lane::Bool,
        }
    }
    /// The dtype of scratch memory for such lanes.
    pub fn dtype(self) -> DType {
        match self {
            Lane::F32 => DType::F32,
            Lane::I32 => DType::I32,
            Lane::Bool => DType::Bool,
        }
    }
}

/// A variable of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Var {
    /// Number of the task.
    Task,
    /// Position along an outer axis.
    Outer(usize),
    /// Counter of a loop of the nest.
    Dim(usize),
    /// A computed I32.
    Value(Id),
}

/// `constant + sum of coefficient * variable`, in elements. No coefficient is 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Affine {
    pub constant: i64,
    pub terms: BTreeMap<Var, i64>,
}

impl Affine {
    /// A number.
    pub fn constant(n: i64) -> Self {
        Affine { constant: n, terms: BTreeMap::new() }
    }
    /// `factor * var`
    pub fn var(var: Var, factor: i64) -> Self {
        Affine::constant(0).plus(&Affine { constant: 0, terms: BTreeMap::from([(var, 1)]) }, factor)
    }
    /// `self + factor * other`
    pub fn plus(mut self, other: &Affine, factor: i64) -> Self {
        self.constant += factor * other.constant;
        for (&var, &c) in &other.terms {
            *self.terms.entry(var).or_insert(0) += factor * c;
        }
        self.terms.retain(|_, c| *c != 0);
        self
    }
    /// Coefficient of a loop counter, 0 if absent.
    pub fn dim(&self, k: usize) -> i64 {
        self.terms.get(&Var::Dim(k)).copied().unwrap_or(0)
    }
    /// The computed values it uses.
    pub fn values(&self) -> impl Iterator<Item = Id> + '_ {
        self.terms.keys().filter_map(|v| if let Var::Value(id) = v { Some(*id) } else { None })
    }
}

/// A memory the program reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mem {
    /// Argument of the kernel.
    Arg(usize),
    /// Entry of [`Program::scratch`].
    Scratch(usize),
}

/// How the lanes of an access lie in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All lanes use one element.
    Uniform,
    /// Lane after lane.
    Contiguous,
    /// Lane l lies `stride * l` elements and `coefficient * value[l]` elements for each listed value away.
    Scattered(i64, Vec<(Id, i64)>),
}

/// How a value is computed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Inst {
    /// A number, converted to the lane type.
    Const(Bits),
    /// The value of an address expression, as I32.
    Index(Affine),
    /// An element, widened to the lane type.
    Load(Mem, Affine),
    /// Element-wise.
    Unary(Unary, Id),
    /// Element-wise.
    Binary(Binary, Id, Id),
    /// Element-wise.
    Select(Id, Id, Id),
    /// Round to a dtype, result in its lane type.
    Cast(DType, Id),
    /// Accumulates over the nest's carried dimensions; the result is there when those loops have ended.
    Reduce(Reduce, Id),
    /// `h = a * h + b` along the carried dimension, starting from 0; a is 1 if absent.
    Scan(Option<Id>, Id),
}

/// Where a value is computed: once per task, once per row, or inside the first `n` loops of its nest. Ordered from outside inwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Level {
    Task,
    Row,
    Loop(usize),
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Def {
    pub inst: Inst,
    pub lane: Lane,
    pub level: Level,
    /// Differs between the lanes of the nest's vector dimension.
    pub varies: bool,
}

/// A loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Trip count.
    pub size: usize,
    /// Reductions and scans of the nest are carried over it. Carried dimensions come last, except that a vector dimension that is not
    /// carried may stand right before them.
    pub carried: bool,
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Store {
    pub mem: Mem,
    pub at: Affine,
    pub value: Id,
    /// Add to the old content instead of replacing it.
    pub add: bool,
    /// Inside how many loops.
    pub depth: usize,
}

/// Loops around a list of values and stores. Values come in dependency order; at each depth the order is: values, the next loop, results of
/// reductions, stores.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Nest {
    /// Outermost first; empty: straight-line stores.
    pub dims: Vec<Dim>,
    /// The dimension whose positions are lanes.
    pub vector: Option<usize>,
    pub body: Vec<Id>,
    pub stores: Vec<Store>,
}

/// A step of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Step {
    /// A uniform value.
    Def(Id),
    Nest(Nest),
    /// Zeroes an entry of the scratch.
    Zero(usize),
}

/// Private memory of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Scratch {
    pub lane: Lane,
    /// Elements.
    pub len: usize,
    /// Bytes from the thread's scratch pointer, a multiple of 64.
    pub offset: usize,
}

/// One task of a row kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Program {
    /// Sizes of the iterated axes.
    pub outer: Vec<usize>,
    /// Rows per task.
    pub block: usize,
    /// Storage dtypes of the arguments.
    pub args: Vec<DType>,
    pub scratch: Vec<Scratch>,
    pub defs: Vec<Def>,
    pub task: Vec<Step>,
    pub row: Vec<Step>,
    pub end: Vec<Step>,
}

impl Program {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.outer.iter().product()
    }
    /// Number of tasks.
    pub fn tasks(&self) -> usize {
        self.rows().div_ceil(self.block)
    }
    /// Bytes of scratch a thread needs.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch
            .iter()
            .map(|s| crate::kernel::round_up(s.offset + s.len * s.lane.dtype().bytes(), 64))
            .max()
            .unwrap_or(0)
    }
    /// A value.
    pub fn def(&self, id: Id) -> &Def {
        &self.defs[id.0 as usize]
    }
    /// Inside how many loops of its nest a value is computed (a reduction: becomes available).
    pub fn depth(&self, id: Id) -> usize {
        match self.def(id).level {
            Level::Task | Level::Row => 0,
            Level::Loop(n) => n,
        }
    }
    /// How the lanes of an access lie in memory, inside a nest.
    pub fn shape(&self, nest: Option<&Nest>, at: &Affine) -> Shape {
        let Some(vector) = nest.and_then(|n| n.vector) else { return Shape::Uniform };
        let varying = |(var, c): (&Var, &i64)| match var {
            Var::Value(id) if self.def(*id).varies => Some((*id, *c)),
            _ => None,
        };
        let values: Vec<(Id, i64)> = at.terms.iter().filter_map(varying).collect();
        match at.dim(vector) {
            0 if values.is_empty() => Shape::Uniform,
            1 if values.is_empty() => Shape::Contiguous,
            stride => Shape::Scattered(stride, values),
        }
    }
    /// Storage dtype of a memory.
    pub fn dtype(&self, mem: Mem) -> DType {
        match mem {
            Mem::Arg(i) => self.args[i],
            Mem::Scratch(i) => self.scratch[i].lane.dtype(),
        }
    }
}

impl fmt::Display for Mem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mem::Arg(i) => write!(f, "arg{i}"),
            Mem::Scratch(i) => write!(f, "tmp{i}"),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl fmt::Display for Affine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        for (var, c) in &self.terms {
            let name = match var {
                Var::Task => "task".to_string(),
                Var::Outer(i) => format!("row{i}"),
                Var::Dim(i) => format!("i{i}"),
                Var::Value(id) => id.to_string(),
            };
            text.push(if *c == 1 { name } else { format!("{c}*{name}") });
        }
        if self.constant != 0 || text.is_empty() {
            text.push(self.constant.to_string());
        }
        f.write_str(&text.join(" + "))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rows {:?}, {} per task", self.outer, self.block)?;
        for (i, d) in self.args.iter().enumerate() {
            writeln!(f, "arg{i}: {d:?}")?;
        }
        for (i, s) in self.scratch.iter().enumerate() {
            writeln!(f, "tmp{i}: {:?}[{}]", s.lane, s.len)?;
        }
        for (name, steps) in [("task", &self.task), ("row", &self.row), ("end", &self.end)] {
            if steps.is_empty() {
                continue;
            }
            writeln!(f, "{name}:")?;
            for step in steps {
                match step {
                    Step::Def(id) => self.write_def(f, *id, 1)?,
                    Step::Zero(i) => writeln!(f, "  tmp{i} = 0")?,
                    Step::Nest(nest) => self.write_nest(f, nest)?,
                }
            }
        }
        Ok(())
    }
}

impl Program {
    fn write_nest(&self, f: &mut fmt::Formatter<'_>, nest: &Nest) -> fmt::Result {
        self.write_depth(f, nest, 0)
    }

    fn write_depth(&self, f: &mut fmt::Formatter<'_>, nest: &Nest, depth: usize) -> fmt::Result {
        let here = |id: &&Id| self.depth(**id) == depth;
        let result = |id: &&Id| matches!(self.def(**id).inst, Inst::Reduce(..));
        for id in nest.body.iter().filter(here).filter(|id| !result(id)) {
            self.write_def(f, *id, depth + 1)?;
        }
        if let Some(dim) = nest.dims.get(depth) {
            let lanes = if nest.vector == Some(depth) { " by lanes" } else { "" };
            let carried = if dim.carried { " carrying" } else { "" };
            writeln!(f, "{}for i{depth} < {}{lanes}{carried}:", "  ".repeat(depth + 1), dim.size)?;
            self.write_depth(f, nest, depth + 1)?;
        }
        for id in nest.body.iter().filter(here).filter(result) {
            self.write_def(f, *id, depth + 1)?;
        }
        for s in nest.stores.iter().filter(|s| s.depth == depth) {
            let how = if s.add { "+=" } else { "=" };
            writeln!(f, "{}{}[{}] {how} {}", "  ".repeat(depth + 1), s.mem, s.at, s.value)?;
        }
        Ok(())
    }

    fn write_def(&self, f: &mut fmt::Formatter<'_>, id: Id, indent: usize) -> fmt::Result {
        let def = self.def(id);
        write!(f, "{}{id} = ", "  ".repeat(indent))?;
        let name = |x: &dyn fmt::Debug| format!("{x:?}").to_lowercase();
        match &def.inst {
            Inst::Const(x) => match def.lane {
                Lane::F32 => write!(f, "{:?}", x.get() as f32),
                Lane::I32 | Lane::Bool => write!(f, "{}", x.get()),
            },
            Inst::Index(at) => write!(f, "index {at}"),
            Inst::Load(mem, at) => write!(f, "{mem}[{at}]"),
            Inst::Unary(op, a) => write!(f, "{} {a}", name(op)),
            Inst::Binary(op, a, b) => write!(f, "{} {a} {b}", name(op)),
            Inst::Select(c, a, b) => write!(f, "select {c} {a} {b}"),
            Inst::Cast(to, a) => write!(f, "{} {a}", name(to)),
            Inst::Reduce(kind, a) => write!(f, "reduce {} {a}", name(kind)),
            Inst::Scan(a, b) => match a {
                Some(a) => write!(f, "scan {a} {b}"),
                None => write!(f, "scan 1 {b}"),
            },
        }?;
        writeln!(f)
    }
}
