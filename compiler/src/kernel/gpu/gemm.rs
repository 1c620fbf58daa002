//! Contractions on a GPU.
//!
//! *Takes* a [`Gemm`] whose products are bf16; *gives* its [`Plan`]: tile, cut of k, how the bulk copy engine reads the operands, and the launches; *promises*
//! that all of it is a function of the shape, so that sums are always added in the same order.
//!
//! Launches, in order: `cast_a`, `cast_b` (operands that the copy engine cannot read as they lie: f32, or not aligned to 16 bytes), `main`, and, where k is cut
//! (few tiles, deep k), `reduce`. A symmetric product reads one operand twice; all of its tiles are computed, for small matrices fill no more than one wave. A tile of C belongs to one block, whose last warp (or warpgroup) copies stages of [`DEPTH`] k of A and B into a ring in shared memory while its
//! warpgroups multiply, 64 rows each. Blocks are persistent and take tiles in a fixed order.
//!
//! Two warpgroups may also take tiles in turn ([`Tile::turns`]): one multiplies while the other runs its epilogue. Where k is short, fetching A and B for every
//! tile asks more of the second-level cache than it gives: then a block also keeps its rows of A for a whole line of tiles ([`Tile::kept`]), and only B goes
//! through the ring.
//!
//! What an epilogue reads is announced to the second-level cache when the tile's products begin ([`Plan::ahead`]).

mod cut;
pub mod mma;

pub use cut::{Cut, TILES, Tile};

use super::PROCESSORS;
use crate::graph::ir::{DType, EffectMode, Op};
use crate::kernel::gemm::{Gemm, Operand};
use crate::kernel::{Launch, LaunchArg, round_up};
use golf_runtime::plan::{Grid, TensorMap};

/// k per stage: 64 bf16 are the 128 bytes over which shared memory is swizzled.
pub const DEPTH: usize = 64;
/// Threads of `cast_a`, `cast_b` and `reduce`.
pub const FLAT_THREADS: u32 = 256;
/// Elements that a thread of those launches, and of an epilogue, handles at a time.
pub const VECTOR: usize = 8;
/// Row tiles visited before the next column tile: what runs at the same time then shares rows of A and columns of B in the second-level cache.
pub const GROUP: usize = 8;

/// How the bulk copy engine reads an operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// k is contiguous (otherwise m or n is).
    pub k_major: bool,
    /// Extents: contiguous index, other index.
    pub extents: (usize, usize),
    /// Batch indices along which the operand varies, by number; one coordinate of the map each, unless it was copied: then one coordinate for all.
    pub batch: Vec<usize>,
    /// It is copied to a dense bf16 temporary first; rows of the copy are this many elements apart.
    pub copied: Option<usize>,
}

impl Source {
    fn of(g: &Gemm, o: &Operand, rows: usize) -> Source {
        let k_major = o.k == 1;
        let extents = if k_major { (g.k, rows) } else { (rows, g.k) };
        let pitch = if k_major { o.row } else { o.k };
        let batch = varying(g, &o.batch);
        let aligned = |elements: i64| elements >= 0 && elements % 8 == 0;
        let direct = o.dtype == DType::Bf16
            && batch.len() <= 3
            && aligned(o.offset)
            && (extents.1 == 1 || aligned(pitch) && pitch > 0)
            && batch.iter().all(|&i| aligned(o.batch[i]));
        let copied = (!direct).then(|| round_up(extents.0, VECTOR));
        Source { k_major, extents, batch, copied }
    }

    /// Matrices that differ.
    pub fn matrices(&self, g: &Gemm) -> usize {
        self.batch.iter().map(|&i| g.batch[i]).product()
    }

    /// Rows of the copy, all matrices together.
    pub fn copied_rows(&self, g: &Gemm) -> usize {
        self.matrices(g) * self.extents.1
    }

    /// Bytes of the copy.
    fn temp(&self, g: &Gemm) -> Option<u64> {
        self.copied.map(|pitch| (self.copied_rows(g) * pitch * 2) as u64)
    }

    /// The map, reading boxes of `rows` (of the tile) by [`DEPTH`] k: one box if k is contiguous, boxes of 64 rows otherwise.
    fn map(&self, g: &Gemm, o: &Operand, arg: u32, rows: usize) -> TensorMap {
        let pitch = if self.k_major { o.row } else { o.k };
        let mut dims = vec![self.extents.0 as u64, self.extents.1 as u64];
        let mut strides = Vec::new();
        match self.copied {
            Some(pitch) => {
                strides.push(pitch as u64 * 2);
                if !self.batch.is_empty() {
                    dims.push(self.matrices(g) as u64);
                    strides.push((self.extents.1 * pitch) as u64 * 2);
                }
            }
            None => {
                // The stride of a single row means nothing, but must be valid.
                strides.push(if self.extents.1 == 1 { 16 } else { pitch as u64 * 2 });
                for &i in &self.batch {
                    dims.push(g.batch[i] as u64);
                    strides.push(o.batch[i] as u64 * 2);
                }
            }
        }
        let mut tile = if self.k_major { vec![DEPTH as u32, rows as u32] } else { vec![64, DEPTH as u32] };
        tile.resize(dims.len(), 1);
        let offset = if self.copied.is_some() { 0 } else { o.offset as u64 * 2 };
        TensorMap { arg, offset, dtype: DType::Bf16, dims, strides, tile, swizzle: 128 }
    }
}

/// Batch indices along which something with these strides varies, by number.
fn varying(g: &Gemm, strides: &[i64]) -> Vec<usize> {
    (0..g.batch.len()).filter(|&i| g.batch[i] > 1 && strides[i] != 0).collect()
}

/// Everything about a contraction's launches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<T = Tile> {
    /// Cut of C.
    pub tile: T,
    /// Pieces of k; above 1 their sums go to a temporary and `reduce` adds them.
    pub splits: usize,
    /// Stages per piece; the last piece may have fewer.
    pub piece: usize,
    /// Operand A.
    pub a: Source,
    /// Operand B.
    pub b: Source,
}

impl Plan {
    /// The plan of a contraction that [`check`] takes.
    pub fn of(g: &Gemm) -> Plan {
        let stages = g.k.div_ceil(DEPTH);
        let mut best: Option<(usize, Tile, usize)> = None;
        for tile in TILES.into_iter().filter(|&tile| g.cut.is_none_or(|cut| cut.tile == tile)) {
            // Pieces shorter than 8 stages are not worth a second launch.
            let most = (stages / 8).clamp(1, 64);
            let (least, most) = g.cut.and_then(|cut| cut.splits).map_or((1, most), |n| (n, n));
            for splits in least..=most {
                let cost = cost(g, tile, splits);
                if tile.suits(stages, splits, g.n.div_ceil(tile.cols)) && best.is_none_or(|(least, ..)| cost < least) {
                    best = Some((cost, tile, splits));
                }
            }
        }
        let (_, tile, splits) = best.unwrap_or((0, TILES[1], 1));
        Plan::with(g, tile, splits)
    }

    /// Says why a contraction cannot be cut so.
    pub fn suits(g: &Gemm, cut: Cut) -> Result<(), String> {
        let stages = g.k.div_ceil(DEPTH);
        let splits = cut.splits.unwrap_or(1);
        if splits > stages || !cut.tile.suits(stages, splits, g.n.div_ceil(cut.tile.cols)) {
            return Err(format!("{cut} does not suit {}x{}x{}", g.m, g.n, g.k));
        }
        Ok(())
    }

    /// Tiles along m and n.
    pub fn tiles(&self, g: &Gemm) -> (usize, usize) {
        (g.m.div_ceil(self.tile.rows), g.n.div_ceil(self.tile.cols))
    }

    /// Pieces of work of `main`, numbered by piece of k, then matrix, then tile, or line of tiles where A is kept.
    pub fn items(&self, g: &Gemm) -> usize {
        let (rows, cols) = self.tiles(g);
        self.splits * g.matrices() * rows * if self.tile.kept > 0 { 1 } else { cols }
    }

    /// What the epilogue of `main` reads that varies over the whole tile and that the copy engine can address: (buffer, boxes of a tile).
    pub fn ahead(&self, g: &Gemm) -> Vec<(usize, TensorMap)> {
        if self.splits > 1 {
            return Vec::new();
        }
        let mut buffers: Vec<usize> = g.epilogue_reads();
        buffers.retain(|&b| b > 0);
        buffers.into_iter().filter_map(|b| Some((b, self.ahead_of(g, b)?))).collect()
    }

    fn ahead_of(&self, g: &Gemm, buffer: usize) -> Option<TensorMap> {
        let (arg, dtype) = (&g.args[buffer - 1], g.epilogue.buffers[buffer].ty.dtype);
        let bytes = dtype.bytes() as i64;
        let aligned = |elements: i64| elements >= 0 && elements * bytes % 16 == 0;
        let batch = Plan::ahead_batch(g, buffer);
        let fits = arg.n == 1
            && arg.m > 0
            && [DType::F32, DType::Bf16].contains(&dtype)
            && batch.len() <= 3
            && [arg.offset, arg.m].into_iter().chain(batch.iter().map(|&i| arg.batch[i])).all(aligned);
        fits.then(|| {
            let mut dims = vec![g.n as u64, g.m as u64];
            let mut strides = vec![(arg.m * bytes) as u64];
            for &i in &batch {
                dims.push(g.batch[i] as u64);
                strides.push((arg.batch[i] * bytes) as u64);
            }
            let mut tile = vec![self.tile.cols as u32, self.tile.rows as u32];
            tile.resize(dims.len(), 1);
            let offset = (arg.offset * bytes) as u64;
            TensorMap { arg: 1 + buffer as u32, offset, dtype, dims, strides, tile, swizzle: 0 }
        })
    }

    /// Batch indices along which an epilogue's argument varies: the coordinates after the two of the matrix in its map of [`Plan::ahead`].
    pub fn ahead_batch(g: &Gemm, buffer: usize) -> Vec<usize> {
        varying(g, &g.args[buffer - 1].batch)
    }

    /// Distance of the rows of partial sums, elements.
    pub fn partial_pitch(g: &Gemm) -> usize {
        round_up(g.n, VECTOR)
    }

    /// Elements of partial sums of one piece of k.
    pub fn partial(g: &Gemm) -> usize {
        g.matrices() * g.m * Plan::partial_pitch(g)
    }
}

impl<T> Plan<T> {
    /// The plan with a given cut.
    fn with(g: &Gemm, tile: T, splits: usize) -> Plan<T> {
        let stages = g.k.div_ceil(DEPTH);
        let piece = stages.div_ceil(splits);
        let a = Source::of(g, &g.a, g.m);
        // Symmetric means that both operands are one matrix, however the second is addressed.
        let b = if g.symmetric { a.clone() } else { Source::of(g, &g.b, g.n) };
        Plan { tile, splits: stages.div_ceil(piece), piece, a, b }
    }

    fn temps(&self, g: &Gemm) -> Vec<u64> {
        let partial = (self.splits > 1).then(|| (self.splits * Plan::partial(g) * 4) as u64);
        let b = if g.symmetric { None } else { self.b.temp(g) };
        [self.a.temp(g), b, partial].into_iter().flatten().collect()
    }

    /// All launches, `main` of so many blocks.
    fn launches(&self, g: &Gemm, blocks: u32, grid: Grid) -> Vec<Launch> {
        let mut temps = (0..).map(LaunchArg::Temp);
        let mut next = || temps.next().unwrap_or(LaunchArg::Temp(0));
        let mut all = Vec::new();
        let mut operands: Vec<LaunchArg> = Vec::new();
        for (entry, source, o, arg) in [("cast_a", &self.a, &g.a, 0), ("cast_b", &self.b, &g.b, 1)] {
            if let (true, [first]) = (g.symmetric, &operands[..]) {
                operands.push(*first);
                continue;
            }
            let arg = LaunchArg::Arg(arg);
            if source.copied.is_none() {
                operands.push(arg);
                continue;
            }
            let temp = next();
            let (rows, width) = (source.copied_rows(g), source.extents.0);
            let bytes = (rows * width * (o.dtype.bytes() + 2)) as u64;
            all.push(flat(entry, rows * width.div_ceil(VECTOR), vec![arg, temp], 0, bytes));
            operands.push(temp);
        }
        let outputs = (2..2 + g.args.len()).map(LaunchArg::Arg);
        let partial = (self.splits > 1).then(next);
        let mut args = operands;
        match partial {
            Some(temp) => args.push(temp),
            None => args.extend(outputs.clone()),
        }
        let operand = |s: &Source| s.matrices(g) * s.extents.0 * s.extents.1 * 2;
        let results = g.output_bytes();
        let stored = if self.splits > 1 { (self.splits * Plan::partial(g) * 4) as u64 } else { results };
        all.push(Launch {
            entry: "main",
            tasks: blocks,
            args,
            scratch: 0,
            flops: 2 * (g.matrices() * g.m * g.n * g.k) as u64,
            bytes: (operand(&self.a) + operand(&self.b)) as u64 + stored,
            gpu: Some(grid),
        });
        if let Some(temp) = partial {
            let args = [temp].into_iter().chain(outputs).collect();
            let sums = (self.splits * Plan::partial(g)) as u64;
            all.push(flat("reduce", Plan::partial(g) / VECTOR, args, sums, 4 * sums + results));
        }
        all
    }
}

/// Estimated cycles: only their order matters. Fewest wins.
fn cost(g: &Gemm, tile: Tile, splits: usize) -> usize {
    let piece = g.k.div_ceil(DEPTH).div_ceil(splits);
    let cols = g.n.div_ceil(tile.cols);
    let lines = g.matrices() * g.m.div_ceil(tile.rows) * splits;
    let each = if tile.kept > 0 { lines.div_ceil(PROCESSORS) * cols } else { (lines * cols).div_ceil(PROCESSORS) };
    // A thousand cycles pass between asking for a stage and having it.
    let waiting = 1000 / ((tile.stages - 1) * each.min(tile.blocks));
    let tile_products = piece * tile.stage_cycles().max(waiting);
    // A multiprocessor's share of the memory's rate is about 18 bytes per cycle.
    let elements = (tile.rows * tile.cols) as u64;
    let moved = if splits > 1 { 4 * elements } else { g.output_bytes() * elements / (g.matrices() * g.m * g.n) as u64 };
    let epilogue = 1000 + moved as usize / 18;
    let main = match each.min(if tile.turns { 2 } else { tile.blocks }) {
        1 => each * (tile_products + epilogue),
        // One multiplies while the other finishes: in turn, or by chance where blocks share a multiprocessor, which hides about half.
        _ if tile.turns => each * tile_products.max((tile_products + epilogue) / 2) + epilogue,
        _ => each * (tile_products.max(epilogue) + tile_products.min(epilogue) / 2) + epilogue,
    };
    // Partial sums are written and read, and a launch takes a while.
    let reduce = if splits == 1 { 0 } else { 4000 + splits * Plan::partial(g) * 8 / (PROCESSORS * 20) };
    main + reduce
}

/// Says why no emitter would take the kernel.
pub fn check(g: &Gemm) -> Result<(), String> {
    let fail = |why: String| Err(format!("gemm {}x{}x{}: {why}", g.m, g.n, g.k));
    if g.compute != DType::Bf16 {
        return fail("products of f32 are not generated for GPUs, only bf16 (tensor cores) with f32 sums".into());
    }
    for (name, o) in [("A", &g.a), ("B", &g.b)] {
        if ![DType::F32, DType::Bf16].contains(&o.dtype) {
            return fail(format!("operand {name} is {:?}, not f32 or bf16", o.dtype));
        }
        if o.row != 1 && o.k != 1 {
            return fail(format!("operand {name} is contiguous along neither of its axes"));
        }
        if o.batch.len() != g.batch.len() {
            return fail(format!("operand {name} has {} batch strides, not {}", o.batch.len(), g.batch.len()));
        }
    }
    if g.m == 0 || g.n == 0 || g.k == 0 || g.matrices() == 0 {
        return fail("an extent is 0".into());
    }
    let largest = i32::MAX as usize / 512;
    if g.k > i32::MAX as usize / 2 || g.matrices() * g.m.div_ceil(64) * g.n.div_ceil(64) > largest {
        return fail("too large for 32-bit tile numbers".into());
    }
    if g.symmetric && g.m != g.n {
        return fail("symmetric but not square".into());
    }
    if let Some(cut) = g.cut {
        Plan::suits(g, cut)?;
    }
    epilogue(g).or_else(fail)
}

/// What every epilogue may hold, and of accumulating ones only the bare sum.
fn epilogue(g: &Gemm) -> Result<(), String> {
    g.check_epilogue()?;
    let body = &g.epilogue;
    let bare = |effect: &crate::graph::ir::Effect| {
        effect.mode == EffectMode::Accumulate
            && matches!(body.nodes[effect.value.0 as usize].op, Op::Read(b) if b.0 == 0)
            && body.buffers[effect.buffer.0 as usize].ty.dtype == DType::F32
    };
    match &body.effects[..] {
        [effect] if g.accumulate && !g.symmetric && bare(effect) => Ok(()),
        _ if !g.accumulate => Ok(()),
        _ => Err("accumulate needs the bare sum as its only effect, added to an f32 buffer".into()),
    }
}

/// The generated functions.
pub fn launches(g: &Gemm) -> Vec<Launch> {
    let plan = Plan::of(g);
    let b = if g.symmetric { &g.a } else { &g.b };
    let sides = [(&plan.a, &g.a, plan.tile.rows), (&plan.b, b, plan.tile.cols)];
    let mut maps: Vec<TensorMap> =
        sides.iter().enumerate().map(|(i, (s, o, rows))| s.map(g, o, i as u32, *rows)).collect();
    maps.extend(plan.ahead(g).into_iter().map(|(_, map)| map));
    let grid = Grid { module: 0, threads: plan.tile.threads(), shared: plan.tile.shared() as u32, maps };
    plan.launches(g, blocks(g, &plan), grid)
}

/// Blocks of `main`.
pub fn blocks(g: &Gemm, plan: &Plan) -> u32 {
    let most = g.cut.and_then(|cut| cut.blocks).unwrap_or(PROCESSORS * plan.tile.blocks);
    plan.items(g).min(most) as u32
}

/// A launch with one thread for each of `vectors`.
fn flat(entry: &'static str, vectors: usize, args: Vec<LaunchArg>, flops: u64, bytes: u64) -> Launch {
    let tasks = vectors.div_ceil(FLAT_THREADS as usize) as u32;
    let gpu = Some(Grid { module: 0, threads: FLAT_THREADS, shared: 0, maps: Vec::new() });
    Launch { entry, tasks, args, scratch: 0, flops, bytes, gpu }
}

/// Bytes of each temporary.
pub fn temps(g: &Gemm) -> Vec<u64> {
    Plan::of(g).temps(g)
}
