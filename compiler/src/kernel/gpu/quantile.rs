//! Quantiles on a GPU: a warp for each row.
//!
//! *Takes* a [`Quantile`]; *gives* its launch; *promises* the bits of the CPU's.
//!
//! The order statistic is found bit by bit from the top: of the two values that a bit leaves, the larger one if no more elements lie below it than the
//! statistic's number. That is 32 passes over a row that mostly lies in the cache, and counts need neither shared memory nor atomics.

use crate::kernel::Launch;
use crate::kernel::quantile::Quantile;
use golf_runtime::plan::Grid;

/// Threads of a block.
pub const THREADS: usize = 128;
/// Rows of a block.
pub const ROWS: usize = THREADS / 32;

/// Says why no emitter would take the kernel.
pub fn check(k: &Quantile) -> Result<(), String> {
    let most = i32::MAX as usize - THREADS;
    if k.n == 0 || k.rows == 0 || k.n > most || k.rows > most {
        return Err(format!("quantiles of {} rows of {} elements", k.rows, k.n));
    }
    Ok(())
}

/// The generated function: `main`.
pub fn launches(k: &Quantile) -> Vec<Launch> {
    let mut launches = k.launches();
    for launch in &mut launches {
        launch.tasks = k.rows.div_ceil(ROWS) as u32;
        launch.scratch = 0;
        // Key, comparison and count of each element and bit.
        launch.flops = (k.rows * k.n * 33 * 3) as u64;
        launch.gpu = Some(Grid { module: 0, threads: THREADS as u32, shared: 0, maps: Vec::new() });
    }
    launches
}
