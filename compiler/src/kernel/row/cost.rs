//! Which values are worth a trip through scratch.
//!
//! *Takes* the evaluations of an attempt; *gives* the value whose repeated computation costs most; *promises* nothing but a better program.
//!
//! Units are roughly cycles of a 16-lane operation on two 256-bit pipes.

use super::eval::Evaluator;
use super::loops::{LANES, Level};
use super::values::{Kind, Val, Values};
use crate::graph::ir::{Binary, DType, Unary};
use std::collections::{BTreeMap, BTreeSet};

/// Gathers evaluations.
pub struct Costs<'a> {
    values: &'a Values<'a>,
    keep: &'a BTreeSet<Val>,
    invariant: &'a BTreeSet<Val>,
    /// Elements computed per task. A uniform value costs as much as a vector.
    times: BTreeMap<Val, usize>,
}

/// A new nest has to save at least this much.
const LEAST: usize = 16;

impl<'a> Costs<'a> {
    /// No evaluations yet.
    pub fn new(values: &'a Values<'a>, keep: &'a BTreeSet<Val>, invariant: &'a BTreeSet<Val>) -> Self {
        Costs { values, keep, invariant, times: BTreeMap::new() }
    }

    fn rows(&self) -> usize {
        let rows: usize = self.values.row.outer.iter().map(|&a| self.values.size(a)).product();
        rows.min(self.values.row.block)
    }

    /// Counts the evaluations of the nest that was written last.
    pub fn add(&mut self, e: &Evaluator, section: Level) {
        let rows = if section == Level::Row { self.rows() } else { 1 };
        for &(v, level, varies) in &e.trace.computed {
            let Level::Loop(depth) = level else { continue };
            let lanes = if varies { 1 } else { LANES };
            *self.times.entry(v).or_insert(0) += rows * lanes * e.bounds.dims[..depth].iter().product::<usize>();
        }
    }

    /// The value whose keeping saves most.
    pub fn best(&self) -> Option<Val> {
        let mut best: Option<(usize, Val)> = None;
        for (&v, &elements) in &self.times {
            let times = elements.div_ceil(LANES);
            if self.keep.contains(&v) {
                continue;
            }
            let rows = if self.invariant.contains(&v) { 1 } else { self.rows() };
            let needed = rows * self.values.numel(v).div_ceil(LANES);
            let cost = self.inline(v);
            let (now, then) = (times * cost, needed * (cost + 1) + times);
            if now > then + LEAST * rows && best.is_none_or(|(saved, _)| now - then >= saved) {
                best = Some((now - then, v));
            }
        }
        best.map(|(_, v)| v)
    }

    /// Cost of computing a value from memory, once per vector.
    fn inline(&self, v: Val) -> usize {
        let mut seen = BTreeSet::new();
        let mut work = vec![v];
        let mut sum = 0;
        while let Some(x) = work.pop() {
            let value = self.values.get(x);
            // What does not vary inside a row is computed outside of the loops.
            if !seen.insert(x) || self.values.numel(x) == 1 {
                continue;
            }
            if x != v && self.keep.contains(&x) {
                sum += 1;
                continue;
            }
            sum += own(&value.kind, self.values);
            work.extend(&value.args);
        }
        sum
    }
}

fn own(kind: &Kind, values: &Values) -> usize {
    match kind {
        Kind::Read(arg) => match values.row.graph.buffers[*arg].ty.dtype {
            DType::F32 | DType::I32 => 1,
            DType::Bf16 | DType::F16 | DType::I8 | DType::Bool => 2,
        },
        Kind::Unary(op) => match op {
            Unary::Neg | Unary::Abs | Unary::Not | Unary::Round | Unary::Floor => 1,
            Unary::Sign => 3,
            Unary::Recip => 10,
            Unary::Sqrt => 12,
            Unary::Rsqrt => 20,
            Unary::Exp => 14,
            Unary::Log => 18,
            Unary::Tanh | Unary::Sigmoid => 22,
            Unary::Sin | Unary::Cos => 25,
        },
        Kind::Binary(op) => match op {
            Binary::Div => 10,
            Binary::Mod => 14,
            Binary::Pow => 40,
            Binary::Add
            | Binary::Sub
            | Binary::Mul
            | Binary::Min
            | Binary::Max
            | Binary::And
            | Binary::Or
            | Binary::Xor
            | Binary::Shl
            | Binary::Shr
            | Binary::Eq
            | Binary::Ne
            | Binary::Lt
            | Binary::Le
            | Binary::Gt
            | Binary::Ge => 1,
        },
        Kind::Select => 1,
        Kind::Cast(DType::Bf16 | DType::F16) => 6,
        Kind::Cast(_) => 2,
        Kind::Const(_)
        | Kind::Iota(_)
        | Kind::Split(..)
        | Kind::Merge(..)
        | Kind::Rename(..)
        | Kind::Slice { .. }
        | Kind::Index(..)
        | Kind::Pad { .. }
        | Kind::Place(..)
        | Kind::Concat(..) => 0,
        Kind::Shift(..) => 1,
        Kind::At(_) => 2,
        Kind::Reduce(..) | Kind::Scan(..) => 1,
    }
}
