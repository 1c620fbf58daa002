//! Contractions: packed B, a register tile over the whole depth, the epilogue on finished sums.
//!
//! *Takes* a [`Gemm`] and a tier; *gives* its two functions, `pack_b` and `main`; *promises* that every sum is one chain in ascending k whatever
//! the blocking, that tasks write disjoint parts of C, and that nothing outside the operands is read or written (ragged edges included).
//!
//! Two register tiles, one code: [`Tile::f32`] is 6 rows x 16 columns (12 of the 16 ymm registers hold sums), [`Tile::bf16`] 4 rows x 64 columns (16 of
//! the 32 zmm registers) with `vdpbf16ps` on pairs of k. A step of the inner loop loads the columns of B from the packed panel and broadcasts one
//! element of A per row, straight from memory where A is contiguous along k, else from a packed copy of the task's rows.

mod epilogue;
mod pack;

use super::super::emit::{Cmp, Elem, Emit, F32X16, I64, PTR, Ty, Unit, V};
use super::super::memory;
use super::super::tier::Tier;
use super::symbol;
use crate::graph::ir::{DType, EffectMode, Op};
use crate::kernel::Kernel;
use crate::kernel::gemm::Gemm;

/// The register tile and how operands are fed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tile {
    /// Rows of C.
    rows: usize,
    /// Columns of C: the width of a packed panel.
    cols: usize,
    /// k per step: 2 for `vdpbf16ps`.
    pair: usize,
    /// Steps of k between visits to the sums in scratch, so that a panel's slice stays in the first-level cache.
    depth: usize,
}

impl Tile {
    const fn f32() -> Tile {
        Tile { rows: 6, cols: 16, pair: 1, depth: 256 }
    }
    const fn bf16() -> Tile {
        Tile { rows: 4, cols: 64, pair: 2, depth: 256 }
    }
    fn of(g: &Gemm, tier: Tier) -> Tile {
        match (g.compute, tier) {
            (DType::Bf16, Tier::Avx512Bf16) => Tile::bf16(),
            // Symmetric blocks are 64 rows high on both tiers, which 6 does not divide.
            (DType::Bf16, Tier::V3) if g.symmetric => Tile { rows: 4, ..Tile::f32() },
            _ => Tile::f32(),
        }
    }
    /// Element of packed operands: f32, or a pair of bf16 as i32.
    fn elem(self) -> Elem {
        if self.pair == 2 { Elem::I32 } else { Elem::F32 }
    }
    /// Steps over a depth of `k`.
    fn steps(self, k: usize) -> usize {
        k.div_ceil(self.pair)
    }
    /// Elements of one packed panel.
    fn panel(self, k: usize) -> usize {
        self.steps(k) * self.cols
    }
}

/// How the tile reads A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SourceA {
    /// From memory: contiguous along k, already in the compute dtype.
    Memory,
    /// From scratch, row by row: contiguous along k, converted.
    Rows,
    /// From scratch, step by step: groups of this many rows.
    Groups(usize),
}

impl SourceA {
    fn of(g: &Gemm, tile: Tile) -> SourceA {
        let direct = if tile.pair == 2 { DType::Bf16 } else { DType::F32 };
        match (g.a.k == 1, tile.pair) {
            (true, _) if g.a.dtype == direct && g.k.is_multiple_of(tile.pair) && g.compute == direct => SourceA::Memory,
            (true, _) => SourceA::Rows,
            (false, 2) => SourceA::Groups(16),
            (false, _) => SourceA::Groups(tile.rows),
        }
    }
}

/// Everything the emitters of one kernel share.
pub(super) struct Plan<'k> {
    g: &'k Gemm,
    tile: Tile,
    source: SourceA,
}

/// What a task works on, as run-time values.
struct Task<'c> {
    /// One index per batch extent.
    batch: Vec<V<'c>>,
    /// Which matrix of the packed B.
    matrix: V<'c>,
    /// First row and number of rows.
    i: V<'c>,
    rows: V<'c>,
    /// First column and the column after the last.
    j: V<'c>,
    j_end: V<'c>,
}

/// Emits `pack_b` and `main`.
pub fn emit(unit: &Unit, kernel: &Kernel, g: &Gemm, tier: Tier) -> Result<(), String> {
    check(g)?;
    let tile = Tile::of(g, tier);
    let plan = Plan { g, tile, source: SourceA::of(g, tile) };
    unit.kernel(&symbol(kernel, "pack_b", tier), 2, |e, task, args, _| plan.pack_b(e, task, args[0], args[1]));
    let mut result = Ok(());
    unit.kernel(&symbol(kernel, "main", tier), 2 + g.args.len(), |e, task, args, scratch| {
        result = plan.main(e, task, args, scratch);
    });
    result
}

/// Refuses descriptions that the emitter does not cover.
fn check(g: &Gemm) -> Result<(), String> {
    let fail = |why: &str| Err(format!("gemm {}x{}x{}: {why}", g.m, g.n, g.k));
    if ![DType::F32, DType::Bf16].contains(&g.compute) {
        return fail("products are f32 or bf16");
    }
    for (name, o) in [("A", &g.a), ("B", &g.b)] {
        if ![DType::F32, DType::Bf16].contains(&o.dtype) {
            return fail(&format!("operand {name} is {:?}, not f32 or bf16", o.dtype));
        }
        if o.row != 1 && o.k != 1 {
            return fail(&format!("operand {name} is contiguous along neither of its axes"));
        }
    }
    if g.m == 0 || g.n == 0 || g.k == 0 {
        return fail("an extent is 0");
    }
    if g.symmetric && g.m != g.n {
        return fail("symmetric but not square");
    }
    if g.accumulate {
        let plain = match &g.epilogue.effects[..] {
            [effect] => {
                effect.mode == EffectMode::Accumulate
                    && matches!(g.epilogue.nodes[effect.value.0 as usize].op, Op::Read(b) if b.0 == 0)
                    && g.epilogue.buffers[effect.buffer.0 as usize].ty.dtype == DType::F32
            }
            _ => false,
        };
        if !plain || g.symmetric {
            return fail("accumulate needs the bare sum as its only effect, added to an f32 buffer");
        }
    }
    Ok(())
}

impl Plan<'_> {
    /// Splits a matrix number into batch indices.
    fn batch<'c>(&self, e: &Emit<'c>, matrix: V<'c>) -> Vec<V<'c>> {
        let mut rest = matrix;
        let mut indices: Vec<V> = self
            .g
            .batch
            .iter()
            .rev()
            .map(|&extent| {
                let index = e.remu(rest, e.i(extent as i64));
                rest = e.divu(rest, e.i(extent as i64));
                index
            })
            .collect();
        indices.reverse();
        indices
    }

    /// `base + offset + sum index * stride`, in elements of `elem`.
    fn address<'c>(&self, e: &Emit<'c>, base: V<'c>, elem: Elem, offset: i64, terms: &[(V<'c>, i64)]) -> V<'c> {
        let base = e.gep_const(base, elem, offset);
        let mut sum: Option<V> = None;
        for &(index, stride) in terms.iter().filter(|(_, stride)| *stride != 0) {
            let term = e.mul_n(index, stride);
            sum = Some(sum.map_or(term, |s| e.add(s, term)));
        }
        sum.map_or(base, |s| e.gep(base, elem, s))
    }

    fn main<'c>(&self, e: &Emit<'c>, task: V<'c>, args: &[V<'c>], scratch: V<'c>) -> Result<(), String> {
        let (g, tile) = (self.g, self.tile);
        let blocks = e.i(g.blocks() as i64);
        let matrix = e.divu(task, blocks);
        let task = self.decode(e, matrix, e.remu(task, blocks));
        let batch: Vec<(V, i64)> = task.batch.iter().copied().zip(g.a.batch.iter().copied()).collect();
        let a = self.address(e, args[0], memory::storage_elem(g.a.dtype), g.a.offset, &batch);
        let a = self.address(e, a, memory::storage_elem(g.a.dtype), 0, &[(task.i, g.a.row)]);
        let packed_a = scratch;
        let sums = e.gep_const(scratch, Elem::I8, g.packed_a_bytes() as i64);
        let mirror = e.gep_const(sums, Elem::I8, Gemm::SUMS_BYTES as i64);
        self.pack_a(e, a, task.rows, packed_a);
        let b = e.gep(args[1], tile.elem(), e.mul_n(task.matrix, (g.n.div_ceil(tile.cols) * tile.panel(g.k)) as i64));
        let program = epilogue::Program::new(g, &args[2..])?;
        e.for_(task.j, task.j_end, e.i(tile.cols as i64), &[], |e, j, _| {
            let panel = e.divu(j, e.i(tile.cols as i64));
            let panel = e.gep(b, tile.elem(), e.mul_n(panel, tile.panel(g.k) as i64));
            let width = e.min(e.sub(task.j_end, j), e.i(tile.cols as i64));
            self.start(e, &program, &task, j, width, sums);
            e.each(0, tile.steps(g.k) as i64, tile.depth as i64, |e, p| {
                let depth = e.min(e.sub(e.i(tile.steps(g.k) as i64), p), e.i(tile.depth as i64));
                let b = e.gep(panel, tile.elem(), e.mul_n(p, tile.cols as i64));
                e.for_(e.i(0), task.rows, e.i(tile.rows as i64), &[], |e, r, _| {
                    let a = self.rows_of_a(e, if self.source == SourceA::Memory { a } else { packed_a }, &task, r, p);
                    self.micro(e, &a, b, depth, e.gep(sums, Elem::F32, e.mul_n(r, tile.cols as i64)));
                    vec![]
                });
            });
            let at = epilogue::Window { i: task.i, j, rows: task.rows, cols: width };
            program.run(e, &task.batch, at, sums, tile.cols);
            if g.symmetric {
                e.when(e.cmp(Cmp::Ne, task.i, task.j), |e| {
                    let rows = e.mul_n(e.divu(e.add_n(task.rows, 15), e.i(16)), 16);
                    self.transpose(e, sums, rows, mirror);
                    let at = epilogue::Window { i: j, j: task.i, rows: width, cols: task.rows };
                    program.run(e, &task.batch, at, mirror, g.blocking().rows);
                });
            }
            vec![]
        });
        Ok(())
    }

    /// Which part of C a task computes. Symmetric: block (I, J) with J <= I, numbered row by row.
    fn decode<'c>(&self, e: &Emit<'c>, matrix: V<'c>, block: V<'c>) -> Task<'c> {
        let g = self.g;
        let blocking = g.blocking();
        let (row, col) = if g.symmetric {
            // I is the largest integer with I (I + 1) / 2 <= block: exact in f64 for any block number below 2^50.
            let f64x = Ty::of(Elem::F64);
            let wide = e.to_float(e.add_n(e.mul_n(block, 8), 1), Elem::F64);
            let root = e.mul(e.sub(e.sqrt(wide), e.fconst(f64x, 1.0)), e.fconst(f64x, 0.5));
            let row = e.to_int(root, Elem::I64);
            (row, e.sub(block, e.divu(e.mul(row, e.add_n(row, 1)), e.i(2))))
        } else {
            let cols = e.i(blocking.col_blocks as i64);
            (e.divu(block, cols), e.remu(block, cols))
        };
        let i = e.mul_n(row, blocking.rows as i64);
        let j = e.mul_n(col, blocking.cols as i64);
        let rows = e.min(e.sub(e.i(g.m as i64), i), e.i(blocking.rows as i64));
        let j_end = e.min(e.add_n(j, blocking.cols as i64), e.i(g.n as i64));
        let packed = if g.packed_matrices() == 1 { e.i(0) } else { matrix };
        Task { batch: self.batch(e, matrix), matrix: packed, i, rows, j, j_end }
    }

    /// Fills the sums of a panel with zero, or with the old content of C when its chains continue.
    fn start<'c>(
        &self,
        e: &Emit<'c>,
        program: &epilogue::Program<'_, 'c>,
        task: &Task<'c>,
        j: V<'c>,
        width: V<'c>,
        sums: V<'c>,
    ) {
        let tile = self.tile;
        let (zero, vectors) = (e.f(0.0), (tile.cols / 16) as i64);
        let tiles = e.divu(e.add_n(task.rows, tile.rows as i64 - 1), e.i(tile.rows as i64));
        e.for_(e.i(0), e.mul_n(tiles, tile.rows as i64), e.i(1), &[], |e, r, _| {
            let row = e.gep(sums, Elem::F32, e.mul_n(r, tile.cols as i64));
            (0..vectors).for_each(|q| e.store(zero, e.gep_const(row, Elem::F32, 16 * q)));
            vec![]
        });
        if self.g.accumulate {
            let at = epilogue::Window { i: task.i, j, rows: task.rows, cols: width };
            program.read_target(e, &task.batch, at, sums, tile.cols);
        }
    }

    /// The pointers from which the tile broadcasts, one per row, at step `p`; and the distance between steps in elements.
    fn rows_of_a<'c>(&self, e: &Emit<'c>, a: V<'c>, task: &Task<'c>, r: V<'c>, p: V<'c>) -> (Vec<V<'c>>, i64) {
        let (g, tile) = (self.g, self.tile);
        let elem = tile.elem();
        match self.source {
            SourceA::Memory | SourceA::Rows => {
                // Rows beyond the task's last read it once more; their sums are dropped.
                let last = e.add_n(task.rows, -1);
                let stride = match self.source {
                    SourceA::Memory => g.a.row,
                    _ => (tile.steps(g.k) * tile.pair) as i64,
                };
                let storage = if tile.pair == 2 { Elem::Bf16 } else { Elem::F32 };
                let rows = (0..tile.rows)
                    .map(|t| {
                        let row = e.min(e.add_n(r, t as i64), last);
                        e.gep(e.gep(a, storage, e.mul_n(row, stride)), elem, p)
                    })
                    .collect();
                (rows, 1)
            }
            SourceA::Groups(width) => {
                let w = width as i64;
                let group = e.mul_n(e.divu(r, e.i(w)), self.group(width));
                let base = e.gep(a, elem, e.add(e.add(group, e.remu(r, e.i(w))), e.mul_n(p, w)));
                ((0..tile.rows).map(|t| e.gep_const(base, elem, t as i64)).collect(), w)
            }
        }
    }

    /// The register tile: continues `rows x cols` sums in scratch over `depth` steps.
    fn micro<'c>(&self, e: &Emit<'c>, a: &(Vec<V<'c>>, i64), b: V<'c>, depth: V<'c>, sums: V<'c>) {
        let tile = self.tile;
        let elem = tile.elem();
        let vectors = tile.cols / 16;
        let place = |r: usize, q: usize| e.gep_const(sums, Elem::F32, (r * tile.cols + 16 * q) as i64);
        let cells: Vec<(usize, usize)> = (0..tile.rows).flat_map(|r| (0..vectors).map(move |q| (r, q))).collect();
        let init: Vec<V> = cells.iter().map(|&(r, q)| e.load(place(r, q), F32X16)).collect();
        let done = e.for_(e.i(0), depth, e.i(1), &init, |e, p, sums| {
            let row = e.gep(b, elem, e.mul_n(p, tile.cols as i64));
            let columns: Vec<V> = (0..vectors)
                .map(|q| self.operand(e, e.load(e.gep_const(row, elem, 16 * q as i64), Ty::vec(16, elem))))
                .collect();
            let mut next = Vec::with_capacity(sums.len());
            for (r, pointer) in a.0.iter().enumerate() {
                let scalar = e.load(e.gep(*pointer, elem, e.mul_n(p, a.1)), Ty::of(elem));
                let x = self.operand(e, e.splat(scalar, 16));
                for (q, &y) in columns.iter().enumerate() {
                    let sum = sums[r * vectors + q];
                    next.push(if tile.pair == 2 { e.dot_bf16(sum, x, y) } else { e.fma(x, y, sum) });
                }
            }
            next
        });
        for (&(r, q), &v) in cells.iter().zip(&done) {
            e.store(v, place(r, q));
        }
    }

    /// A loaded vector as the multiplier wants it.
    fn operand<'c>(&self, e: &Emit<'c>, v: V<'c>) -> V<'c> {
        if self.tile.pair == 2 { e.bitcast(v, Ty::vec(32, Elem::Bf16)) } else { v }
    }

    /// `mirror[c][r] = sums[r][c]` for `rows` (a multiple of 16) rows of one panel; rows of the mirror are a block wide.
    fn transpose<'c>(&self, e: &Emit<'c>, sums: V<'c>, rows: V<'c>, mirror: V<'c>) {
        let (cols, block) = (self.tile.cols as i64, self.g.blocking().rows as i64);
        e.for_(e.i(0), rows, e.i(16), &[], |e, r, _| {
            e.each(0, cols, 16, |e, c| {
                let from = e.gep(sums, Elem::F32, e.add(e.mul_n(r, cols), c));
                let lines: Vec<V> = (0..16).map(|t| e.load(e.gep_const(from, Elem::F32, t * cols), F32X16)).collect();
                let to = e.gep(mirror, Elem::F32, e.add(e.mul_n(c, block), r));
                for (t, line) in e.transpose16(&lines).into_iter().enumerate() {
                    e.store(line, e.gep_const(to, Elem::F32, t as i64 * block));
                }
            });
            vec![]
        });
    }
}

/// Types that loop counters and pointers must have; kept here so that a change of the builder breaks loudly.
const _: () = assert!(I64.lanes == 0 && PTR.lanes == 0);
