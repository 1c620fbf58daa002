//! The epilogue: the fused element-wise program on finished sums in registers.
//!
//! *Takes* sums of 8 consecutive columns of one row; *gives* the effects in memory; *promises* each output element written exactly once, nothing beyond the
//! edges touched, and accesses as wide as the argument's strides allow, up to 16 bytes. What does not vary along n is computed once per row, what varies along
//! neither m nor n once per tile.

use super::scaled;
use crate::graph::ir::{DType, Effect, EffectMode, Graph, Node, Op};
use crate::kernel::gemm::{EpilogueArg, Gemm};
use crate::kernel::gpu::gemm::VECTOR;
use crate::mlir::emit::{Emit, F32, I1, I32, Ty, V};
use crate::mlir::{elementwise, memory};

const LANES: u32 = VECTOR as u32;

/// How often a value must be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Block,
    Row,
    Vector,
}

/// An epilogue ready to be emitted (as often as needed).
pub(super) struct Program<'k, 'c> {
    g: &'k Gemm,
    /// Pointers of buffers 1.. .
    args: &'k [V<'c>],
    needed: Vec<bool>,
    levels: Vec<Level>,
}

/// Values of a tile, and where its matrix starts in every buffer 1.. .
pub(super) struct OfBlock<'c> {
    values: Vec<Option<V<'c>>>,
    pointers: Vec<V<'c>>,
    batch: Vec<V<'c>>,
}

/// Values of a row, and where its first vector lies in every buffer 1.. .
pub(super) struct OfRow<'c> {
    values: Vec<Option<V<'c>>>,
    pointers: Vec<V<'c>>,
    batch: Vec<V<'c>>,
    row: V<'c>,
    col: V<'c>,
}

/// Where a value is computed.
#[derive(Clone, Copy)]
struct Spot<'a, 'c> {
    pointers: &'a [V<'c>],
    batch: &'a [V<'c>],
    row: Option<V<'c>>,
    /// First column, elements beyond the pointers' column, how many columns exist, sums.
    vector: Option<(V<'c>, i64, u32, V<'c>)>,
}

impl<'k, 'c> Program<'k, 'c> {
    /// The program of a description that [`crate::kernel::gpu::gemm::check`] takes.
    pub(super) fn new(g: &'k Gemm, args: &'k [V<'c>]) -> Self {
        let body = &g.epilogue;
        let mut needed = vec![false; body.nodes.len()];
        body.effects.iter().for_each(|effect| needed[effect.value.0 as usize] = true);
        for (i, node) in body.nodes.iter().enumerate().rev() {
            if needed[i] {
                node.args.iter().for_each(|a| needed[a.0 as usize] = true);
            }
        }
        let levels = body.nodes.iter().map(|node| level(g, node)).collect();
        Program { g, args, needed, levels }
    }

    fn body(&self) -> &'k Graph {
        &self.g.epilogue
    }

    /// What varies along neither m nor n.
    pub(super) fn block(&self, e: &Emit<'c>, batch: &[V<'c>]) -> OfBlock<'c> {
        let start = |(i, &base): (usize, &V<'c>)| {
            let (arg, dtype) = self.arg(i + 1);
            let elem = memory::storage_elem(dtype);
            let terms = batch.iter().zip(&arg.batch).filter(|(_, stride)| **stride != 0);
            let at = |base, (&index, &stride): (&V<'c>, &i64)| e.gep(base, elem, scaled(e, index, stride));
            terms.fold(e.gep_const(base, elem, arg.offset), at)
        };
        let pointers: Vec<V> = self.args.iter().enumerate().map(start).collect();
        let mut values = vec![None; self.body().nodes.len()];
        let spot = Spot { pointers: &pointers, batch, row: None, vector: None };
        self.evaluate(e, Level::Block, spot, &mut values);
        OfBlock { values, pointers, batch: batch.to_vec() }
    }

    /// What varies along m only, at `row` (which exists); `col` is the first column of the vectors to come.
    pub(super) fn row(&self, e: &Emit<'c>, block: &OfBlock<'c>, row: V<'c>, col: V<'c>) -> OfRow<'c> {
        let start = |(i, &base): (usize, &V<'c>)| {
            let (arg, dtype) = self.arg(i + 1);
            let elem = memory::storage_elem(dtype);
            let terms =
                [(row, arg.m), (col, arg.n)].map(|(index, stride)| (stride != 0).then(|| scaled(e, index, stride)));
            match terms {
                [Some(m), Some(n)] => e.gep(base, elem, e.add(m, n)),
                [Some(x), None] | [None, Some(x)] => e.gep(base, elem, x),
                [None, None] => base,
            }
        };
        let pointers: Vec<V> = block.pointers.iter().enumerate().map(start).collect();
        let mut values = block.values.clone();
        let spot = Spot { pointers: &pointers, batch: &block.batch, row: Some(row), vector: None };
        self.evaluate(e, Level::Row, spot, &mut values);
        OfRow { values, pointers, batch: block.batch.clone(), row, col }
    }

    /// Everything else, and the effects, for the first `lanes` of 8 columns that start `from` columns after the row's first vector.
    pub(super) fn vector(&self, e: &Emit<'c>, row: &OfRow<'c>, from: i64, lanes: u32, sums: V<'c>) {
        let mut values = row.values.clone();
        let vector = Some((e.add_n(row.col, from), from, lanes, sums));
        let spot = Spot { pointers: &row.pointers, batch: &row.batch, row: Some(row.row), vector };
        self.evaluate(e, Level::Vector, spot, &mut values);
        for effect in &self.body().effects {
            let value = values[effect.value.0 as usize].expect("evaluated");
            self.store(e, effect, value, spot);
        }
    }

    fn evaluate(&self, e: &Emit<'c>, level: Level, spot: Spot<'_, 'c>, values: &mut [Option<V<'c>>]) {
        for (i, node) in self.body().nodes.iter().enumerate() {
            if self.needed[i] && self.levels[i] == level {
                values[i] = Some(self.node(e, node, level, spot, values));
            }
        }
    }

    fn node(&self, e: &Emit<'c>, node: &Node, level: Level, spot: Spot<'_, 'c>, values: &[Option<V<'c>>]) -> V<'c> {
        let arg = |i: usize| {
            let v = values[node.args[i].0 as usize].expect("operands come first");
            if level == Level::Vector && v.ty.lanes == 0 { e.splat(v, LANES) } else { v }
        };
        match &node.op {
            Op::Read(buffer) if buffer.0 == 0 => spot.vector.expect("sums vary").3,
            Op::Read(buffer) => self.load(e, buffer.0 as usize, spot),
            Op::Const(x) => match node.ty.dtype {
                DType::I32 | DType::I8 => e.iconst(I32, x.get() as i64),
                DType::Bool => e.iconst(I1, (x.get() != 0.0) as i64),
                _ => e.fconst(F32, x.get()),
            },
            Op::Iota(axis) => match axis.0 {
                0 => spot.row.expect("m is known in a row"),
                1 => e.add(e.splat(spot.vector.expect("n is known in a vector").0, LANES), e.iota(LANES)),
                axis => spot.batch[axis as usize - 2],
            },
            Op::Unary(op) => elementwise::unary(e, *op, arg(0)),
            Op::Binary(op) => elementwise::binary(e, *op, arg(0), arg(1)),
            Op::Select => e.select(arg(0), arg(1), arg(2)),
            Op::Cast(to) => elementwise::cast(e, arg(0), *to),
            Op::Broadcast | Op::StraightThrough | Op::StopGradient => arg(0),
            other => unreachable!("{other:?} was refused by `check`"),
        }
    }

    fn arg(&self, buffer: usize) -> (&'k EpilogueArg, DType) {
        (&self.g.args[buffer - 1], self.body().buffers[buffer].ty.dtype)
    }

    /// Elements that one access may cover: all of a vector's addresses are multiples of that many elements.
    fn width(&self, buffer: usize) -> u32 {
        let (arg, dtype) = self.arg(buffer);
        let mut width = (16 / dtype.bytes() as u32).min(LANES);
        let extents = self.g.batch.iter().zip(&arg.batch).filter(|(n, _)| **n > 1).map(|(_, s)| *s);
        let row = if self.g.m > 1 { arg.m } else { 0 };
        for stride in extents.chain([arg.offset, row]) {
            while stride % i64::from(width) != 0 {
                width /= 2;
            }
        }
        width
    }

    /// An argument at a spot: a scalar if it does not vary along n.
    fn load(&self, e: &Emit<'c>, buffer: usize, spot: Spot<'_, 'c>) -> V<'c> {
        let (arg, dtype) = self.arg(buffer);
        let elem = memory::storage_elem(dtype);
        let pointer = spot.pointers[buffer - 1];
        let Some((_, from, lanes, _)) = spot.vector.filter(|_| arg.n != 0) else {
            return memory::load_scalar(e, pointer, dtype);
        };
        let at = |lane: u32| e.gep_const(pointer, elem, (from + i64::from(lane)) * arg.n);
        let bits = Ty::of(elem).int();
        let mut raw: Option<V> = None;
        let width = if arg.n == 1 && lanes == LANES { self.width(buffer) } else { 1 };
        if width == 1 {
            let one = |lane| if lane < lanes { e.load(at(lane), bits) } else { e.zero(bits) };
            let parts: Vec<V> = (0..LANES).map(one).collect();
            raw = Some(e.op1("vector.from_elements", &parts, Ty::vec(LANES, bits.elem), &[]));
        } else {
            for lane in (0..LANES).step_by(width as usize) {
                let part = e.load_aligned(at(lane), Ty::vec(width, bits.elem), width as usize * elem.bytes());
                raw = Some(raw.map_or(part, |all| e.concat(all, part)));
            }
        }
        let raw = raw.expect("at least one part");
        memory::widen(e, e.bitcast(raw, raw.ty.with(elem)), dtype)
    }

    fn store(&self, e: &Emit<'c>, effect: &Effect, value: V<'c>, spot: Spot<'_, 'c>) {
        let buffer = effect.buffer.0 as usize;
        let (arg, dtype) = self.arg(buffer);
        let elem = memory::storage_elem(dtype);
        let (_, from, lanes, _) = spot.vector.expect("effects run on vectors");
        let whole = |v: V<'c>| if v.ty.lanes == 0 { e.splat(v, LANES) } else { v };
        let mut v = whole(value);
        if effect.mode == EffectMode::Accumulate {
            v = e.add(whole(self.load(e, buffer, spot)), v);
        }
        let raw = memory::narrow(e, v, dtype);
        let at = |lane: u32| e.gep_const(spot.pointers[buffer - 1], elem, (from + i64::from(lane)) * arg.n);
        let width = if arg.n == 1 && lanes == LANES { self.width(buffer) } else { 1 };
        if width == 1 {
            (0..lanes).for_each(|lane| e.store(e.extract(raw, lane), at(lane)));
            return;
        }
        for lane in (0..LANES).step_by(width as usize) {
            e.store_aligned(e.lanes(raw, lane, width), at(lane), width as usize * elem.bytes());
        }
    }
}

/// The level of a node, from the axes of its type and, for reads, from how the buffer is addressed.
fn level(g: &Gemm, node: &Node) -> Level {
    let has = |axis: u32| node.ty.axes.iter().any(|a| a.0 == axis);
    match node.op {
        Op::Read(buffer) if buffer.0 == 0 => Level::Vector,
        _ if has(1) => Level::Vector,
        Op::Read(buffer) if g.args[buffer.0 as usize - 1].m != 0 => Level::Row,
        _ if has(0) => Level::Row,
        _ => Level::Block,
    }
}
