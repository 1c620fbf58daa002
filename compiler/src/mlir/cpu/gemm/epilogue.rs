//! The epilogue: the fused element-wise program on finished sums.
//!
//! *Takes* a panel of sums in scratch and where it lies in C; *gives* the effects in memory; *promises* each output element written exactly once,
//! nothing beyond the edges touched. Values that do not vary along n are computed once per row, those that vary along neither once per panel.

use super::super::super::elementwise;
use super::super::super::emit::{Cmp, Elem, Emit, F32X16, I32X16, V};
use super::super::args::Args;
use crate::graph::ir::{Effect, EffectMode, Graph, Node, Op};
use crate::kernel::epilogue;
use crate::kernel::gemm::{Gemm, Level};

/// Rows and columns of C that a panel of sums holds.
#[derive(Clone, Copy)]
pub(super) struct Window<'c> {
    pub(super) i: V<'c>,
    pub(super) j: V<'c>,
    pub(super) rows: V<'c>,
    pub(super) cols: V<'c>,
}

/// An epilogue ready to be emitted (as often as needed).
pub(super) struct Program<'k, 'c> {
    g: &'k Gemm,
    args: Args<'k, 'c>,
    needed: Vec<bool>,
    levels: Vec<Level>,
}

/// Where a vector of the panel lies: row of C, first column of C, how many lanes exist.
struct Spot<'c> {
    row: V<'c>,
    col: V<'c>,
    lanes: u32,
    sums: V<'c>,
}

impl<'k, 'c> Program<'k, 'c> {
    /// Checks that every op is one that epilogues may hold.
    pub(super) fn new(g: &'k Gemm, args: &'k [V<'c>]) -> Result<Self, String> {
        g.check_epilogue().map_err(|why| format!("gemm {}x{}x{}: {why}", g.m, g.n, g.k))?;
        let levels = g.epilogue.nodes.iter().map(|node| g.epilogue_level(node)).collect();
        let args = Args { body: &g.epilogue, args: &g.args, pointers: args };
        Ok(Program { g, args, needed: epilogue::needs(&g.epilogue), levels })
    }

    fn body(&self) -> &'k Graph {
        &self.g.epilogue
    }

    /// Runs the program over a panel; `width` is the distance between its rows in scratch.
    pub(super) fn run(&self, e: &Emit<'c>, batch: &[V<'c>], at: Window<'c>, sums: V<'c>, width: usize) {
        let mut values: Vec<Option<V<'c>>> = vec![None; self.body().nodes.len()];
        self.evaluate(e, Level::Block, batch, None, &mut values);
        e.for_(e.i(0), at.rows, e.i(1), &[], |e, r, _| {
            let row = e.add(at.i, r);
            let line = e.gep(sums, Elem::F32, e.mul_n(r, width as i64));
            let mut values = values.clone();
            let spot = Spot { row, col: at.j, lanes: 0, sums: line };
            self.evaluate(e, Level::Row, batch, Some(&spot), &mut values);
            self.vectors(e, at, |e, c, lanes| {
                let mut values = values.clone();
                let sums = e.gep(line, Elem::F32, c);
                let spot = Spot { row, col: e.add(at.j, c), lanes, sums };
                self.evaluate(e, Level::Vector, batch, Some(&spot), &mut values);
                for effect in &self.body().effects {
                    let value = values[effect.value.0 as usize].expect("evaluated");
                    self.store(e, effect, value, batch, &spot);
                }
            });
            vec![]
        });
    }

    /// Copies the old content of the accumulated buffer into the sums.
    pub(super) fn read_target(&self, e: &Emit<'c>, batch: &[V<'c>], at: Window<'c>, sums: V<'c>, width: usize) {
        let buffer = self.body().effects[0].buffer.0 as usize;
        e.for_(e.i(0), at.rows, e.i(1), &[], |e, r, _| {
            let row = e.add(at.i, r);
            self.vectors(e, at, |e, c, lanes| {
                let to = e.gep(sums, Elem::F32, e.add(e.mul_n(r, width as i64), c));
                let spot = Spot { row, col: e.add(at.j, c), lanes, sums: to };
                let old = self.load(e, buffer, batch, &spot);
                e.store(old, to);
            });
            vec![]
        });
    }

    /// Calls `body(column, lanes)` for the vectors of one row; only the last of a ragged edge has fewer than 16 lanes.
    fn vectors(&self, e: &Emit<'c>, at: Window<'c>, body: impl Fn(&Emit<'c>, V<'c>, u32)) {
        let tail = (self.g.n % 16) as u32;
        let whole = e.mul_n(e.divu(at.cols, e.i(16)), 16);
        e.for_(e.i(0), whole, e.i(16), &[], |e, c, _| {
            body(e, c, 16);
            vec![]
        });
        if tail != 0 {
            e.when(e.cmp(Cmp::Ne, whole, at.cols), |e| body(e, whole, tail));
        }
    }

    /// Computes every needed value of one level.
    fn evaluate(
        &self,
        e: &Emit<'c>,
        level: Level,
        batch: &[V<'c>],
        spot: Option<&Spot<'c>>,
        values: &mut [Option<V<'c>>],
    ) {
        for (i, node) in self.body().nodes.iter().enumerate() {
            if self.needed[i] && self.levels[i] == level {
                values[i] = Some(self.node(e, node, level, batch, spot, values));
            }
        }
    }

    fn node(
        &self,
        e: &Emit<'c>,
        node: &Node,
        level: Level,
        batch: &[V<'c>],
        spot: Option<&Spot<'c>>,
        values: &[Option<V<'c>>],
    ) -> V<'c> {
        let arg = |i: usize| {
            let v = values[node.args[i].0 as usize].expect("operands come first");
            if level == Level::Vector && v.ty.lanes == 0 { e.splat(v, 16) } else { v }
        };
        match &node.op {
            Op::Read(buffer) if buffer.0 == 0 => e.load(spot.expect("sums vary").sums, F32X16),
            Op::Read(buffer) => match spot {
                Some(spot) => self.load(e, buffer.0 as usize, batch, spot),
                None => self.args.load(e, buffer.0 as usize, batch, None, 0),
            },
            Op::Iota(axis) => match (axis.0, spot) {
                (0, Some(spot)) => e.truncate(spot.row, Elem::I32),
                (1, Some(spot)) => e.add(e.splat(e.truncate(spot.col, Elem::I32), 16), e.iota(16)),
                (axis, _) => e.truncate(batch[axis as usize - 2], Elem::I32),
            },
            _ => elementwise::node(e, node, arg),
        }
    }

    /// An argument at a spot: one number if it does not vary along n.
    fn load(&self, e: &Emit<'c>, buffer: usize, batch: &[V<'c>], spot: &Spot<'c>) -> V<'c> {
        self.args.load(e, buffer, batch, Some((spot.row, spot.col)), spot.lanes)
    }

    fn store(&self, e: &Emit<'c>, effect: &Effect, value: V<'c>, batch: &[V<'c>], spot: &Spot<'c>) {
        let buffer = effect.buffer.0 as usize;
        let mut v = if value.ty.lanes == 0 { e.splat(value, 16) } else { value };
        if effect.mode == EffectMode::Accumulate && !self.g.accumulate {
            let old = self.load(e, buffer, batch, spot);
            v = e.add(if old.ty.lanes == 0 { e.splat(old, 16) } else { old }, v);
        }
        self.args.store(e, v, buffer, batch, Some((spot.row, spot.col)), spot.lanes);
    }
}

/// Iota along n must have as many i32 lanes as a vector of sums.
const _: () = assert!(I32X16.lanes == F32X16.lanes);
