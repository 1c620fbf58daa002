//! Contractions on every GPU since Ampere, by products of warps.
//!
//! *Takes* a [`Gemm`] that [`super::check`] takes; *gives* its [`plan`] and launches; *promises* the launches of Hopper with another `main`, all of it a
//! function of the shape.
//!
//! A block of `main` has one tile of C and one piece of k. Its threads copy stages of [`DEPTH`] k of A and B into a ring in shared memory, and its warps multiply
//! what was asked for [`Tile::stages`] - 1 stages ago.

use super::{DEPTH, Plan};
use crate::kernel::Launch;
use crate::kernel::gemm::Gemm;
use golf_runtime::plan::Grid;

/// Multiprocessors that work is spread over (A100).
const PROCESSORS: usize = 108;

/// How a block cuts C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows of C: 64 or 128.
    pub rows: usize,
    /// Columns of C: 64 or 128.
    pub cols: usize,
    /// Warps along the rows, and along the columns: each has 32 columns, and 32 or 64 rows.
    pub warps: (usize, usize),
    /// Stages of the ring.
    pub stages: usize,
    /// Blocks that share a multiprocessor.
    pub blocks: usize,
}

/// The cuts there are. Shared memory for so many blocks is there on every device.
pub const TILES: [Tile; 2] = [
    Tile { rows: 128, cols: 128, warps: (2, 4), stages: 3, blocks: 1 },
    Tile { rows: 64, cols: 64, warps: (2, 2), stages: 3, blocks: 2 },
];

impl Tile {
    /// Threads per block.
    pub fn threads(self) -> u32 {
        (32 * self.warps.0 * self.warps.1) as u32
    }
    /// Rows and columns of a warp.
    pub fn part(self) -> (usize, usize) {
        (self.rows / self.warps.0, self.cols / self.warps.1)
    }
    /// Bytes of one stage: rows of A, then columns of B.
    pub fn stage(self) -> usize {
        (self.rows + self.cols) * DEPTH * 2
    }
    /// Bytes of shared memory.
    pub fn shared(self) -> usize {
        self.stages * self.stage()
    }
}

/// The plan of a contraction. A cut that is given stands for the tile as large as its own.
pub fn plan(g: &Gemm) -> Plan<Tile> {
    // Pieces shorter than 8 stages are not worth a second launch.
    let most = (g.k.div_ceil(DEPTH) / 8).clamp(1, 64);
    let (least, most) = g.cut.and_then(|cut| cut.splits).map_or((1, most), |n| (n, n));
    let meant = |tile: &Tile| g.cut.is_none_or(|cut| (cut.tile.rows, cut.tile.cols) == (tile.rows, tile.cols));
    let cuts = TILES.into_iter().filter(meant).flat_map(|tile| (least..=most).map(move |splits| (tile, splits)));
    let best = cuts.min_by_key(|&(tile, splits)| cost(g, tile, splits));
    let (tile, splits) = best.unwrap_or((TILES[0], 1));
    Plan::with(g, tile, splits)
}

/// Estimated cycles: only their order matters. Fewest wins.
fn cost(g: &Gemm, tile: Tile, splits: usize) -> usize {
    let piece = g.k.div_ceil(DEPTH).div_ceil(splits);
    let items = g.matrices() * g.m.div_ceil(tile.rows) * g.n.div_ceil(tile.cols) * splits;
    let each = items.div_ceil(PROCESSORS);
    // A multiprocessor multiplies 1024 pairs a cycle and gets about 40 bytes a cycle from the second-level cache, a thousand cycles after it asked.
    let waiting = 1000 / ((tile.stages - 1) * each.min(tile.blocks));
    let products = piece * (tile.rows * tile.cols / 16).max(tile.stage() / 40).max(waiting);
    let epilogue = 1000 + tile.rows * tile.cols / 8;
    // Partial sums are written and read, and a launch takes a while.
    let reduce = if splits == 1 { 0 } else { 4000 + splits * Plan::partial(g) * 8 / (PROCESSORS * 15) };
    each * (products + epilogue) + reduce
}

/// Blocks of `main`.
fn blocks(g: &Gemm, plan: &Plan<Tile>) -> usize {
    plan.splits * g.matrices() * g.m.div_ceil(plan.tile.rows) * g.n.div_ceil(plan.tile.cols)
}

/// The generated functions.
pub fn launches(g: &Gemm) -> Vec<Launch> {
    let plan = plan(g);
    let shared = plan.tile.shared() as u32;
    let grid = Grid { module: 0, threads: plan.tile.threads(), shared, maps: Vec::new() };
    plan.launches(g, blocks(g, &plan) as u32, grid)
}

/// Bytes of each temporary.
pub fn temps(g: &Gemm) -> Vec<u64> {
    plan(g).temps(g)
}
