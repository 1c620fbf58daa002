//! Scatter-add on a GPU: how the table and the index are cut into blocks.
//!
//! *Takes* a [`Scatter`]; *gives* its [`Layout`] and launches; *promises* sums in a fixed order: index entries ascending inside a segment, then the segments ascending.
//!
//! A block owns some rows of the table, some columns, and a segment of the index. It lists the entries of its segment that fall on its rows, in order, then adds
//! those rows of the source to its part of the table in shared memory, every thread its own columns. With one segment the block writes the table; with several it
//! leaves its part in a temporary, and a second launch adds the segments.

use crate::kernel::scatter::Scatter;
use crate::kernel::{Launch, LaunchArg, round_up};
use golf_runtime::plan::Grid;

/// Threads of a block of the second launch; each adds up [`Layout::VECTOR`] elements.
pub const SUM_THREADS: usize = 256;

/// The geometry of a scatter-add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Neighbouring columns of a thread.
    pub lanes: usize,
    /// Threads of a block.
    pub threads: usize,
    /// Table rows of a block.
    pub rows: usize,
    /// Blocks along the columns, the table's rows, the segments.
    pub grid: [usize; 3],
    /// Index entries of a segment, a multiple of 4 (the last segment may have fewer).
    pub segment: usize,
}

impl Layout {
    /// Index entries a thread looks at in one go, and elements it adds up in the second launch.
    pub const VECTOR: usize = 4;

    /// The geometry of a kernel.
    pub fn of(k: &Scatter) -> Layout {
        let lanes = if k.width.is_multiple_of(2) { 2 } else { 1 };
        let threads = round_up(k.width / lanes, 32).min(256);
        let columns = threads * lanes;
        // A part of the table of 32 KB and a list of 24 KB: four blocks fit on a multiprocessor.
        let rows = (8192 / columns).clamp(1, 64).min(k.size.max(1));
        // Hot rows: a segment is short enough that adding all of it to one row takes no longer than the other rows' share.
        let segments = (k.rows / 4096).clamp(1, 16);
        let segment = round_up(k.rows.div_ceil(segments), Layout::VECTOR).max(Layout::VECTOR);
        let grid = [k.width.div_ceil(columns).max(1), k.size.div_ceil(rows).max(1), k.rows.div_ceil(segment).max(1)];
        Layout { lanes, threads, rows, grid, segment }
    }

    /// Columns of a block.
    pub fn columns(&self) -> usize {
        self.threads * self.lanes
    }

    /// Segments of the index.
    pub fn segments(&self) -> usize {
        self.grid[2]
    }

    /// Bytes of shared memory before the list: the block's part of the table and a row that takes what is too much.
    pub fn list(&self) -> usize {
        (self.rows + 1) * self.columns() * 4
    }

    /// Bytes before the warps' counts.
    pub fn counts(&self) -> usize {
        self.list() + self.segment * 4
    }

    /// Shared memory of a block, bytes.
    pub fn shared(&self) -> usize {
        round_up(self.counts() + self.threads / 32 * 4, 16)
    }
}

/// Says why no emitter would take the kernel.
pub fn check(k: &Scatter) -> Result<(), String> {
    if !k.src.is_float() {
        return Err(format!("scatter-add of {:?}", k.src));
    }
    let l = Layout::of(k);
    if l.segment > 1 << 16 {
        return Err(format!("scatter-add of {} rows in one kernel", k.rows));
    }
    Ok(())
}

/// The generated functions: `main`, and `sum` if there are several segments.
pub fn launches(k: &Scatter) -> Vec<Launch> {
    let l = Layout::of(k);
    let several = l.segments() > 1;
    let mut launches = k.launches();
    let grid = |threads, shared| Some(Grid { module: 0, threads, shared, maps: Vec::new() });
    for launch in &mut launches {
        launch.tasks = l.grid.iter().product::<usize>() as u32;
        launch.gpu = grid(l.threads as u32, l.shared() as u32);
        if several {
            launch.args = vec![LaunchArg::Arg(0), LaunchArg::Arg(1), LaunchArg::Temp(0)];
        }
    }
    if several {
        let numel = (k.size * k.width) as u64;
        launches.push(Launch {
            entry: "sum",
            tasks: (k.size * k.width).div_ceil(SUM_THREADS * Layout::VECTOR) as u32,
            args: vec![LaunchArg::Temp(0), LaunchArg::Arg(2)],
            scratch: 0,
            flops: numel * l.segments() as u64,
            bytes: numel * 4 * (l.segments() as u64 + 1 + u64::from(k.accumulate)),
            gpu: grid(SUM_THREADS as u32, 0),
        });
    }
    launches
}

/// Bytes of each temporary: one table per segment, if there are several.
pub fn temps(k: &Scatter) -> Vec<u64> {
    match Layout::of(k).segments() {
        1 => Vec::new(),
        n => vec![(n * k.size * k.width * 4) as u64],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ir::DType;

    #[test]
    fn many_rows_are_cut_into_segments() {
        let k = Scatter { rows: 98_304, width: 512, size: 1024, src: DType::Bf16, accumulate: true };
        let l = Layout::of(&k);
        assert_eq!((l.threads, l.rows, l.grid, l.segment), (256, 16, [1, 64, 16], 6144));
        assert_eq!(launches(&k).len(), 2);
        let few = Scatter { rows: 61, width: 17, size: 7, ..k };
        assert_eq!((launches(&few).len(), temps(&few).len()), (1, 0));
    }
}
