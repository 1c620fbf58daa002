//! Rounding with feedback on a GPU: a warp for each row.
//!
//! *Takes* a [`Feedback`]; *gives* its launch; *promises* the bits of the CPU's.
//!
//! A row's weights lie in shared memory in the order of their visits. Every lane computes the code and the error of a visit, then each takes its share of the later
//! columns; the factor's row is read by all warps at about the same time, so mostly from the cache.

use crate::kernel::Launch;
use crate::kernel::feedback::Feedback;
use golf_runtime::plan::Grid;

/// Rows of a block: few, so that the rows of one matrix are spread over all multiprocessors.
pub const ROWS: usize = 4;
/// Threads of a block.
pub const THREADS: usize = ROWS * 32;
/// Later columns that a lane takes at once.
pub const BATCH: usize = 8;

/// Floats of shared memory of a row: its columns, and what the last batch takes beyond them.
pub fn width(k: &Feedback) -> usize {
    k.n + 32 * (BATCH - 1)
}

/// Says why no emitter would take the kernel. Elements are counted in 32 bits.
pub fn check(k: &Feedback) -> Result<(), String> {
    let most = i32::MAX as usize - THREADS;
    let fits = |rows: usize| rows.checked_mul(k.n).is_some_and(|n| (1..=most).contains(&n));
    if !fits(k.rows) || !fits(k.n) {
        return Err(format!("rounding with feedback of {} rows of {} columns", k.rows, k.n));
    }
    Ok(())
}

/// The generated function: `main`.
pub fn launches(k: &Feedback) -> Vec<Launch> {
    let mut launches = k.launches();
    for launch in &mut launches {
        launch.tasks = k.rows.div_ceil(ROWS) as u32;
        launch.scratch = 0;
        let shared = (ROWS * width(k) * 4) as u32;
        launch.gpu = Some(Grid { module: 0, threads: THREADS as u32, shared, maps: Vec::new() });
    }
    launches
}
