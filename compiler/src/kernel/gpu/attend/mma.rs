//! Attention on every GPU since Ampere: blocks of eight warps, 16 rows each.
//!
//! *Takes* an [`AttendKernel`]; *gives* its launches and shared memory layouts; *promises* the launches of Hopper with other grids: grids and orders of sums
//! depend on the shapes alone.
//!
//! Of a [`Shape`] the parts that copy, barriers and statistics are not used; "warpgroups" are four warps that hold 64 rows as those of Hopper do.

use super::{COLUMNS, Order, Shape};
use crate::kernel::Launch;
use crate::kernel::attend::AttendKernel;
use golf_runtime::plan::Grid;

/// The forward pass: q stays, k and v are streamed.
pub fn forward(k: &AttendKernel) -> Shape {
    shape(k, 1, 64)
}

/// A launch of the backward pass: `dkdv` keeps k and v, `dq` keeps q and dy.
pub fn backward(k: &AttendKernel) -> Shape {
    // Two panels leave fewer registers and less shared memory.
    shape(k, 2, if k.dim <= COLUMNS { 64 } else { 32 })
}

fn shape(k: &AttendKernel, kept: usize, step: usize) -> Shape {
    let panels = k.dim.div_ceil(COLUMNS);
    Shape { panels, consumers: 2, kept, step, stages: 2, apart: false, statistics: false }
}

/// Threads of a block.
pub fn threads(s: &Shape) -> u32 {
    128 * s.consumers as u32
}

/// The generated functions.
pub fn launches(k: &AttendKernel) -> Vec<Launch> {
    let mut all = super::launches(k);
    for launch in &mut all {
        let (s, order) = match launch.entry {
            "main" => (forward(k), Order::queries(k, &forward(k))),
            "dkdv" => (backward(k), Order::keys(k, &backward(k))),
            "dq" => (backward(k), Order::queries(k, &backward(k))),
            // `delta` and `documents` work on rows in memory only.
            _ => continue,
        };
        launch.tasks = order.blocks(k) as u32;
        let shared = s.statistics_at() as u32;
        launch.gpu = Some(Grid { module: 0, threads: threads(&s), shared, maps: Vec::new() });
    }
    all
}
