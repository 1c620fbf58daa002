//! The epilogue: the fused element-wise program on finished sums in registers.
//!
//! *Takes* sums of 8 columns of one row; *gives* the effects in memory; *promises* each output element written exactly once, nothing beyond the
//! edges touched, and accesses as wide as the argument's strides allow, up to 16 bytes. What does not vary along n is computed once per row, what varies along
//! neither m nor n once per tile.
//!
//! The 8 columns are neighbours, or the pairs that a lane holds of 32 ([`Lanes`]). With pairs, four lanes cover whole sectors of a row of f32 as they are; of bf16
//! they exchange 16-byte vectors, half as much as the sums would be.

use super::scaled;
use super::sums::Quad;
use crate::graph::ir::{DType, Effect, EffectMode, Graph, Node, Op};
use crate::kernel::epilogue::{self, EpilogueArg};
use crate::kernel::gemm::{Gemm, Level};
use crate::kernel::gpu::gemm::VECTOR;
use crate::mlir::emit::{Elem, Emit, I32, Ty, V};
use crate::mlir::{elementwise, memory};

const LANES: u32 = VECTOR as u32;

/// An epilogue ready to be emitted (as often as needed).
pub(super) struct Program<'k, 'c> {
    pub(super) g: &'k Gemm,
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
    quad: Option<Quad<'c>>,
}

/// Which columns a vector of 8 holds.
#[derive(Clone, Copy)]
pub(super) enum Lanes<'c> {
    /// Neighbours, of which this many exist.
    Row(u32),
    /// Columns `8 j + 2 q + (0, 1)` for j below 4 of lane q of four. What exists: `blocks` of 8 columns, and the q-th such block (`vector`); `None`: it does.
    Pairs { blocks: [Option<V<'c>>; 4], vector: Option<V<'c>> },
}

/// Where a value is computed.
#[derive(Clone, Copy)]
struct Spot<'a, 'c> {
    pointers: &'a [V<'c>],
    batch: &'a [V<'c>],
    row: Option<V<'c>>,
    vector: Option<Vector<'c>>,
}

/// A vector's place in its row.
#[derive(Clone, Copy)]
struct Vector<'c> {
    /// Column of the first lane.
    col: V<'c>,
    /// Elements beyond the pointers' column.
    from: i64,
    lanes: Lanes<'c>,
    sums: V<'c>,
    quad: Option<Quad<'c>>,
}

impl<'k, 'c> Program<'k, 'c> {
    /// The program of a description that [`crate::kernel::gpu::gemm::check`] takes.
    pub(super) fn new(g: &'k Gemm, args: &'k [V<'c>]) -> Self {
        let levels = g.epilogue.nodes.iter().map(|node| g.epilogue_level(node)).collect();
        Program { g, args, needed: epilogue::needs(&g.epilogue), levels }
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

    /// Whether vectors of pairs suit every argument; otherwise they must be neighbours.
    pub(super) fn pairs(&self) -> bool {
        let suits = |buffer: usize| {
            let (arg, dtype) = self.arg(buffer);
            match dtype.bytes() {
                _ if arg.n == 0 => true,
                4 => arg.n == 1 && self.width(buffer) >= 2,
                2 => arg.n == 1 && (self.exchanges(buffer) || arg.m == 0 && self.width(buffer) >= 2),
                _ => false,
            }
        };
        self.g.n.is_multiple_of(VECTOR) && (1..=self.args.len()).all(suits)
    }

    /// Whether lanes of a quad access 16 bytes each of a buffer and exchange them, when they hold pairs.
    fn exchanges(&self, buffer: usize) -> bool {
        let (arg, dtype) = self.arg(buffer);
        dtype.bytes() == 2 && arg.n == 1 && arg.m != 0 && self.width(buffer) == LANES
    }

    /// What varies along m only, at `row` (which exists). The vectors to come start at column `col`, or, in a quad, at this lane's place after it.
    pub(super) fn row(
        &self,
        e: &Emit<'c>,
        block: &OfBlock<'c>,
        row: V<'c>,
        col: V<'c>,
        quad: Option<Quad<'c>>,
    ) -> OfRow<'c> {
        let after = |n: i64| quad.map_or(col, |quad| e.add(col, e.mul_n(quad.quarter, n)));
        let col = if self.pairs() { after(2) } else { after(VECTOR as i64) };
        let start = |(i, &base): (usize, &V<'c>)| {
            let (arg, dtype) = self.arg(i + 1);
            let elem = memory::storage_elem(dtype);
            let col = if self.exchanges(i + 1) { after(VECTOR as i64) } else { col };
            let terms =
                [(row, arg.m), (col, arg.n)].map(|(index, stride)| (stride != 0).then(|| scaled(e, index, stride)));
            match terms {
                [Some(m), Some(n)] => e.gep(base, elem, e.add(m, n)),
                [Some(x), None] | [None, Some(x)] => e.gep(base, elem, x),
                [None, None] => base,
            }
        };
        let pointers: Vec<V> = block.pointers.iter().enumerate().map(start).collect();
        self.of_row(
            e,
            block,
            OfRow { values: block.values.clone(), pointers, batch: block.batch.clone(), row, col, quad },
        )
    }

    /// The row `rows` below another: its pointers need no registers of their own.
    pub(super) fn below(&self, e: &Emit<'c>, block: &OfBlock<'c>, above: &OfRow<'c>, rows: i64) -> OfRow<'c> {
        let shift = |(i, &base): (usize, &V<'c>)| {
            let (arg, dtype) = self.arg(i + 1);
            e.gep_const(base, memory::storage_elem(dtype), rows * arg.m)
        };
        let pointers = above.pointers.iter().enumerate().map(shift).collect();
        let row = e.add_n(above.row, rows);
        self.of_row(
            e,
            block,
            OfRow { values: block.values.clone(), pointers, batch: above.batch.clone(), row, ..*above },
        )
    }

    fn of_row(&self, e: &Emit<'c>, block: &OfBlock<'c>, mut of_row: OfRow<'c>) -> OfRow<'c> {
        let mut values = block.values.clone();
        let spot = Spot { pointers: &of_row.pointers, batch: &block.batch, row: Some(of_row.row), vector: None };
        self.evaluate(e, Level::Row, spot, &mut values);
        of_row.values = values;
        of_row
    }

    /// Everything else, and the effects, for 8 columns that start `from` columns after the row's first vector.
    pub(super) fn vector(&self, e: &Emit<'c>, row: &OfRow<'c>, from: i64, lanes: Lanes<'c>, sums: V<'c>) {
        let mut values = row.values.clone();
        let vector = Some(Vector { col: e.add_n(row.col, from), from, lanes, sums, quad: row.quad });
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
            Op::Read(buffer) if buffer.0 == 0 => spot.vector.expect("sums vary").sums,
            Op::Read(buffer) => self.load(e, buffer.0 as usize, spot),
            Op::Iota(axis) => match axis.0 {
                0 => spot.row.expect("m is known in a row"),
                1 => {
                    let at = spot.vector.expect("n is known in a vector");
                    let lane = |lane| e.iconst(I32, at.offset(lane));
                    let lanes: Vec<V> = (0..LANES).map(lane).collect();
                    let lanes = e.op1("vector.from_elements", &lanes, Ty::vec(LANES, Elem::I32), &[]);
                    e.add(e.splat(at.col, LANES), lanes)
                }
                axis => spot.batch[axis as usize - 2],
            },
            _ => elementwise::node(e, node, arg),
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
        let Some(at) = spot.vector.filter(|_| arg.n != 0) else {
            return memory::load_scalar(e, pointer, dtype);
        };
        let bits = Ty::of(elem).int();
        let mut raw: Option<V> = None;
        for part in self.parts(buffer, at) {
            let ty = Ty::vec(part.lanes, bits.elem);
            let address = |e: &Emit<'c>| e.gep_const(pointer, elem, part.at * arg.n);
            let load = |e: &Emit<'c>| match part.lanes {
                1 => e.splat(e.load(address(e), bits), 1),
                n => e.load_aligned(address(e), ty, n as usize * elem.bytes()),
            };
            let x = match (part.exists, part.inside) {
                (false, _) => e.zero(ty),
                (true, None) => load(e),
                (true, Some(inside)) => e.if_(inside, &[ty], |e| vec![load(e)], |e| vec![e.zero(ty)])[0],
            };
            raw = Some(raw.map_or(x, |all| e.concat(all, x)));
        }
        let mut raw = raw.expect("at least one part");
        if let (Some(quad), Lanes::Pairs { .. }, true) = (at.quad, at.lanes, self.exchanges(buffer)) {
            raw = exchange(e, quad, raw);
        }
        memory::widen(e, e.bitcast(raw, raw.ty.with(elem)), dtype)
    }

    fn store(&self, e: &Emit<'c>, effect: &Effect, value: V<'c>, spot: Spot<'_, 'c>) {
        let buffer = effect.buffer.0 as usize;
        let (arg, dtype) = self.arg(buffer);
        let elem = memory::storage_elem(dtype);
        let at = spot.vector.expect("effects run on vectors");
        let whole = |v: V<'c>| if v.ty.lanes == 0 { e.splat(v, LANES) } else { v };
        let mut v = whole(value);
        if effect.mode == EffectMode::Accumulate {
            v = e.add(whole(self.load(e, buffer, spot)), v);
        }
        let mut raw = memory::narrow(e, v, dtype);
        if let (Some(quad), Lanes::Pairs { .. }, true) = (at.quad, at.lanes, self.exchanges(buffer)) {
            raw = exchange(e, quad, raw);
        }
        let mut lane = 0;
        for part in self.parts(buffer, at) {
            let store = |e: &Emit<'c>| {
                let address = e.gep_const(spot.pointers[buffer - 1], elem, part.at * arg.n);
                match part.lanes {
                    1 => e.store(e.extract(raw, lane), address),
                    n => e.store_aligned(e.lanes(raw, lane, n), address, n as usize * elem.bytes()),
                }
            };
            match (part.exists, part.inside) {
                (false, _) => {}
                (true, None) => store(e),
                (true, Some(inside)) => e.when(inside, store),
            }
            lane += part.lanes;
        }
    }

    /// The accesses that cover a vector of a buffer that varies along n, in the order of its lanes.
    fn parts(&self, buffer: usize, at: Vector<'c>) -> Vec<Part<'c>> {
        let (arg, _) = self.arg(buffer);
        let widest = if arg.n == 1 { self.width(buffer) } else { 1 };
        let whole = |lanes: u32| (0..LANES).step_by(lanes as usize).map(move |lane| (lane, lanes));
        match at.lanes {
            Lanes::Row(count) => {
                let one =
                    |(lane, lanes)| Part { at: at.from + i64::from(lane), lanes, exists: lane < count, inside: None };
                whole(if count == LANES { widest } else { 1 }).map(one).collect()
            }
            Lanes::Pairs { vector, .. } if self.exchanges(buffer) => {
                vec![Part { at: at.from, lanes: LANES, exists: true, inside: vector }]
            }
            Lanes::Pairs { blocks, .. } => {
                let one = |(lane, lanes): (u32, u32)| {
                    let inside = blocks[lane as usize / 2];
                    Part { at: at.from + at.offset(lane), lanes, exists: true, inside }
                };
                whole(widest.min(2)).map(one).collect()
            }
        }
    }
}

/// One access of a vector.
struct Part<'c> {
    /// Columns beyond the pointers' column.
    at: i64,
    lanes: u32,
    /// Known not to exist otherwise.
    exists: bool,
    /// Whether it exists, if that is known at run time only.
    inside: Option<V<'c>>,
}

impl Vector<'_> {
    /// Columns of a lane beyond the first.
    fn offset(&self, lane: u32) -> i64 {
        match self.lanes {
            Lanes::Row(_) => lane.into(),
            Lanes::Pairs { .. } => (8 * (lane / 2) + lane % 2).into(),
        }
    }
}

/// 8 elements of 2 bytes: pairs of a quad to neighbours, or back.
fn exchange<'c>(e: &Emit<'c>, quad: Quad<'c>, v: V<'c>) -> V<'c> {
    let words = e.bitcast(v, Ty::vec(4, Elem::I32));
    let words = quad.transpose(e, [0, 1, 2, 3].map(|i| e.extract(words, i)));
    e.bitcast(e.op1("vector.from_elements", &words, Ty::vec(4, Elem::I32), &[]), v.ty)
}
