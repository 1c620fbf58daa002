//! Attention on a GPU: blocks of one loading warpgroup and two or three computing ones, 64 rows each.
//!
//! *Takes* an [`AttendKernel`]; *gives* its launches, tensor maps and shared memory layouts; *promises* grids and orders of sums that depend on
//! the shapes alone.
//!
//! | launch | block | kept in shared memory | streamed |
//! |---|---|---|---|
//! | `documents`, if they are kept apart | batch position | | |
//! | `main` (forward) | query rows of a head | q | k, v |
//! | `delta` | [`DELTA_ROWS`] query rows of a head | | |
//! | `dkdv` | key rows of a key/value head | k, v | q, dy, statistics of every head of the group |
//! | `dq` | query rows of a head | q, dy | k, v |
//!
//! The backward pass makes the probabilities twice (seven products where five would do) so that every sum has one owner: no atomics, no
//! order that depends on timing. Rows of shared memory tiles hold 64 columns (128 bytes, swizzled); wider heads are two such panels, narrower ones are
//! padded with zeros by the copy engine.

pub mod mma;

use golf_runtime::plan::{DType as PlanType, Grid, TensorMap};

use super::Arch;
use crate::graph::ir::DType;
use crate::graph::ops::visible_pairs;
use crate::kernel::attend::{AttendKernel, Pass, Strides};
use crate::kernel::{Launch, LaunchArg, round_up};

/// Rows of one warpgroup.
pub const ROWS: usize = 64;
/// Columns of a panel: one swizzled row of 128 bytes.
pub const COLUMNS: usize = 64;
/// Query rows of a `delta` block.
pub const DELTA_ROWS: usize = 128;
/// Threads of a `delta` block.
pub const DELTA_THREADS: u32 = 256;
/// Threads of a `documents` block.
pub const DOCUMENT_THREADS: u32 = 256;
/// i32 that `documents` says of each [`ROWS`] positions.
pub const SPAN_WORDS: usize = 4;

/// Bytes of keys and values that blocks running at the same time should share in the second-level cache.
const CACHED: usize = 16 << 20;

/// A launch of loading and computing warpgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Panels of 64 columns: 1 or 2.
    pub panels: usize,
    /// Computing warpgroups.
    pub consumers: usize,
    /// Tensors of which the block's rows stay in shared memory.
    pub kept: usize,
    /// Rows of a streamed tile.
    pub step: usize,
    /// Tiles in flight of each of the two streamed tensors, a power of two.
    pub stages: usize,
    /// The two streams have barriers of their own.
    pub apart: bool,
    /// Every stage has [`Shape::step`] pairs of row statistics.
    pub statistics: bool,
}

impl Shape {
    /// The forward pass.
    pub fn forward(k: &AttendKernel) -> Shape {
        let panels = k.dim.div_ceil(COLUMNS);
        let (consumers, stages) = if panels == 1 { (3, 4) } else { (2, 2) };
        Shape { panels, consumers, kept: 1, step: 128, stages, apart: true, statistics: false }
    }

    /// Gradients of keys and values.
    pub fn keys(k: &AttendKernel) -> Shape {
        let panels = k.dim.div_ceil(COLUMNS);
        Shape { panels, consumers: 2, kept: 2, step: 64, stages: 4, apart: false, statistics: true }
    }

    /// Gradients of queries.
    pub fn queries(k: &AttendKernel) -> Shape {
        let panels = k.dim.div_ceil(COLUMNS);
        let step = if panels == 1 { 128 } else { 64 };
        Shape { panels, consumers: 2, kept: 2, step, stages: 2, apart: false, statistics: false }
    }

    /// Threads of a block.
    pub fn threads(&self) -> u32 {
        128 * (1 + self.consumers as u32)
    }
    /// Rows of a block.
    pub fn rows(&self) -> usize {
        ROWS * self.consumers
    }
    /// Columns in shared memory.
    pub fn columns(&self) -> usize {
        COLUMNS * self.panels
    }
    /// Registers of a loading and of a computing thread: all 65536 are given away.
    pub fn registers(&self) -> (u32, u32) {
        if self.consumers == 2 { (24, 240) } else { (32, 160) }
    }

    /// Bytes of one panel of a warpgroup's kept rows.
    pub fn kept_panel(&self) -> usize {
        ROWS * COLUMNS * 2
    }
    /// Bytes of one panel of a streamed tile.
    pub fn panel(&self) -> usize {
        self.step * COLUMNS * 2
    }
    /// Bytes of a streamed tile.
    pub fn tile(&self) -> usize {
        self.panels * self.panel()
    }
    /// Where the rows of kept tensor `n` of computing warpgroup 0 are; the other warpgroups' follow.
    pub fn kept_at(&self, n: usize) -> usize {
        n * self.consumers * self.panels * self.kept_panel()
    }
    /// Where the tiles of streamed tensor `n` are, stage after stage.
    pub fn stream_at(&self, n: usize) -> usize {
        self.kept_at(self.kept) + n * self.stages * self.tile()
    }
    /// Where the statistics are, stage after stage.
    pub fn statistics_at(&self) -> usize {
        self.stream_at(2)
    }
    /// Bytes of one stage of statistics.
    pub fn statistics_bytes(&self) -> usize {
        if self.statistics { 8 * self.step } else { 0 }
    }
    /// Where the barriers are: kept tensors' first, then for each stream `full` of every stage, `empty` of every stage.
    pub fn barriers_at(&self) -> usize {
        self.statistics_at() + self.stages * self.statistics_bytes()
    }
    /// Number of barriers.
    pub fn barriers(&self) -> usize {
        1 + 2 * self.stages * if self.apart { 2 } else { 1 }
    }
    /// Bytes of shared memory.
    pub fn shared(&self) -> usize {
        self.barriers_at() + 8 * self.barriers()
    }
}

/// How blocks are numbered: chunks of key/value heads whose keys and values fit the cache, in them tiles, the heavy ones first, in them heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Tiles of a head.
    pub tiles: usize,
    /// Key/value heads of a chunk; divides their number.
    pub chunk: usize,
    /// Heads that a block's number tells apart for each key/value head: the group, or 1.
    pub group: usize,
    /// Later tiles are heavier.
    pub late: bool,
}

impl Order {
    /// Of a launch whose blocks own query rows.
    pub fn queries(k: &AttendKernel, s: &Shape) -> Order {
        Order { group: k.group, late: true, ..Order::keys(k, s) }
    }
    /// Of a launch whose blocks own key rows.
    pub fn keys(k: &AttendKernel, s: &Shape) -> Order {
        let heads = k.batch * k.kv;
        let wanted = (CACHED / (4 * k.time * k.dim)).max(1);
        let chunk = (1..=heads.min(wanted)).rev().find(|n| heads.is_multiple_of(*n)).unwrap_or(1);
        Order { tiles: k.time.div_ceil(s.rows()), chunk, group: 1, late: false }
    }
    /// Blocks.
    pub fn blocks(&self, k: &AttendKernel) -> usize {
        self.tiles * k.batch * k.kv * self.group
    }
}

/// Rows of statistics of one head: padded to whole blocks of every launch.
pub fn padded(k: &AttendKernel) -> usize {
    round_up(k.time, DELTA_ROWS)
}

/// Prepared document ids of one batch position: padded to whole blocks of every launch.
pub fn positions(k: &AttendKernel) -> usize {
    round_up(k.time, 6 * ROWS)
}

/// Says why no emitter would take the kernel.
pub fn check(k: &AttendKernel) -> Result<(), String> {
    if k.dtype != DType::Bf16 {
        return Err("attention on a GPU takes bf16; compile with --precision bf16".into());
    }
    if k.dim > 2 * COLUMNS || !k.dim.is_multiple_of(8) {
        return Err(format!(
            "attention on a GPU takes head dimensions that are multiples of 8 up to 128, found {}",
            k.dim
        ));
    }
    let scale = k.scale.get();
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(format!("attention on a GPU needs a positive scale, found {scale}"));
    }
    if k.window == Some(0) {
        return Err("attention needs a window of at least one position".into());
    }
    let blocks = k.batch * k.kv * k.group * padded(k);
    if k.time > 1 << 24 || blocks > i32::MAX as usize {
        return Err(format!("attention on a GPU takes up to {} rows of all heads, found {blocks}", i32::MAX));
    }
    let tensors: &[(&str, &Strides, usize)] = match k.pass {
        // The results of an epilogue have rules of their own.
        Pass::Forward if k.epilogue.is_some() => &[("q", &k.q, k.group), ("k", &k.k, 1), ("v", &k.v, 1)],
        Pass::Forward => &[("q", &k.q, k.group), ("k", &k.k, 1), ("v", &k.v, 1), ("y", &k.y, k.group)],
        Pass::Backward => &[
            ("q", &k.q, k.group),
            ("k", &k.k, 1),
            ("v", &k.v, 1),
            ("y", &k.y, k.group),
            ("dy", &k.dy, k.group),
            ("dq", &k.dq, k.group),
            ("dk", &k.dk, 1),
            ("dv", &k.dv, 1),
        ],
    };
    for (name, s, group) in tensors {
        let moves = [(s.time, k.time), (s.kv, k.kv), (s.group, *group), (s.batch, k.batch)];
        if s.offset < 0
            || s.offset % 8 != 0
            || moves.iter().any(|&(stride, n)| n > 1 && (stride <= 0 || stride % 8 != 0))
        {
            return Err(format!(
                "attention on a GPU needs rows of {name} at multiples of 16 bytes: its strides over time, key/value heads, group and batch are \
                 {}, {}, {}, {} elements from {}",
                s.time, s.kv, s.group, s.batch, s.offset
            ));
        }
    }
    check_epilogue(k)
}

/// Says why no emitter would take the epilogue.
fn check_epilogue(k: &AttendKernel) -> Result<(), String> {
    k.check_epilogue()?;
    let Some(epilogue) = &k.epilogue else { return Ok(()) };
    // Of a head dimension of 128 each takes 32 registers for each of two rows, beside the 64 of y.
    let (most, peak) = (if k.dim <= COLUMNS { 4 } else { 3 }, epilogue.peak());
    if peak > most {
        return Err(format!(
            "an epilogue of attention has registers for {most} rows beside its own, needed are {peak}"
        ));
    }
    for (dtype, arg) in epilogue.buffers().filter(|(_, arg)| arg.n != 0) {
        let unit = match dtype.bytes() {
            2 => 8,
            4 => 2,
            _ => return Err(format!("an epilogue of attention takes no rows of {dtype:?}")),
        };
        let moves = arg.batch.iter().zip(k.heads()).filter(|(_, n)| *n > 1).map(|(s, _)| *s);
        if arg.n != 1 || moves.chain([arg.offset, arg.m]).any(|s| s % unit != 0) {
            return Err(format!(
                "an epilogue of attention needs rows at multiples of {unit} elements: strides over batch, key/value heads and group are {:?}, over \
                 time {}, along the head dimension {}, from {}",
                arg.batch, arg.m, arg.n, arg.offset
            ));
        }
    }
    Ok(())
}

/// A tensor as dim, time, then those of key/value head, group and batch that have more than one position: see [`axes`].
fn map(k: &AttendKernel, arg: usize, s: &Strides, group: usize, rows: usize) -> TensorMap {
    let mut dims = vec![k.dim as u64, k.time as u64];
    // A single position's stride means nothing, but must be valid.
    let time = if k.time > 1 { s.time } else { round_up(k.dim, 8) as i64 };
    let mut strides = vec![2 * time as u64];
    for (n, stride) in [(k.kv, s.kv), (group, s.group), (k.batch, s.batch)] {
        if n > 1 {
            dims.push(n as u64);
            strides.push(2 * stride as u64);
        }
    }
    let mut tile = vec![1; dims.len()];
    (tile[0], tile[1]) = (COLUMNS as u32, rows as u32);
    TensorMap { arg: arg as u32, offset: 2 * s.offset as u64, dtype: PlanType::Bf16, dims, strides, tile, swizzle: 128 }
}

/// Which of (key/value head, group, batch) a tensor's map has as dimensions.
pub fn axes(k: &AttendKernel, group: usize) -> [bool; 3] {
    [k.kv > 1, group > 1, k.batch > 1]
}

/// The row statistics f32 \[head, 2, [`padded`]\]: log-sum-exp in units of log 2, delta.
fn statistics_map(k: &AttendKernel, arg: usize, rows: usize) -> TensorMap {
    let (heads, time) = ((k.batch * k.kv * k.group) as u64, padded(k) as u64);
    TensorMap {
        arg: arg as u32,
        offset: 0,
        dtype: PlanType::F32,
        dims: vec![time, 2 * heads],
        strides: vec![4 * time],
        tile: vec![rows as u32, 2],
        swizzle: 0,
    }
}

fn launch(entry: &'static str, blocks: usize, args: Vec<LaunchArg>, (flops, bytes): (u64, u64), gpu: Grid) -> Launch {
    debug_assert!(gpu.shared <= Arch::Sm90a.shared_limit(), "shared memory of {entry}: {}", gpu.shared);
    Launch { entry, tasks: blocks as u32, args, scratch: 0, flops, bytes, gpu: Some(gpu) }
}

fn grid(s: &Shape, maps: Vec<TensorMap>) -> Grid {
    Grid { module: 0, threads: s.threads(), shared: s.shared() as u32, maps }
}

/// The generated functions.
pub fn launches(k: &AttendKernel) -> Vec<Launch> {
    use LaunchArg::{Arg, Temp};
    let heads = (k.batch * k.kv * k.group) as u64;
    // One product of all visible pairs; one pass over a tensor of queries and of keys.
    let product = 2 * visible_pairs(k.time as u64, k.causal, k.window.map(u64::from)) * k.dim as u64 * heads;
    let q = 2 * heads * (k.time * k.dim) as u64;
    let kv = q / k.group as u64;
    let statistics = 8 * heads * k.time as u64;
    let g = k.group;
    // What `documents` leaves follows the other arguments.
    let documents = k.documents().map(|given| {
        let bytes = 4 * (k.batch * (k.time + positions(k))) as u64;
        let args = [vec![Arg(given)], prepared(k)].concat();
        let grid = Grid { module: 0, threads: DOCUMENT_THREADS, shared: 0, maps: vec![] };
        launch("documents", k.batch, args, (0, bytes), grid)
    });
    let with = |args: Vec<LaunchArg>| [args, prepared(k)].concat();
    let first_result = k.first_result();
    let result = |n| Arg(first_result + n);
    let mut all: Vec<Launch> = documents.into_iter().collect();
    match k.pass {
        Pass::Forward => {
            let s = Shape::forward(k);
            let mut maps = vec![map(k, 0, &k.q, g, ROWS), map(k, 1, &k.k, 1, s.step), map(k, 2, &k.v, 1, s.step)];
            let work = (2 * product, q + 2 * kv + k.result_bytes() + statistics / 2);
            let mut args = vec![Arg(0), Arg(1), Arg(2)];
            match &k.epilogue {
                None => {
                    maps.push(map(k, 3, &k.y, g, ROWS));
                    args.extend([result(0), result(1)]);
                }
                Some(_) => args.extend((k.lse()..k.arity()).map(Arg)),
            }
            let args = with(args);
            all.push(launch("main", Order::queries(k, &s).blocks(k), args, work, grid(&s, maps)));
        }
        Pass::Backward => {
            let delta = launch(
                "delta",
                heads as usize * padded(k) / DELTA_ROWS,
                vec![Arg(3), Arg(5), Arg(4), Temp(0)],
                (q, 2 * q + 2 * statistics),
                Grid { module: 0, threads: DELTA_THREADS, shared: 0, maps: vec![] },
            );
            let s = Shape::keys(k);
            let maps = vec![
                map(k, 0, &k.k, 1, ROWS),
                map(k, 1, &k.v, 1, ROWS),
                map(k, 2, &k.q, g, s.step),
                map(k, 3, &k.dy, g, s.step),
                statistics_map(k, 4, s.step),
                map(k, 5, &k.dk, 1, ROWS),
                map(k, 6, &k.dv, 1, ROWS),
            ];
            // What is made twice (scores and dP) counts once.
            let keys = launch(
                "dkdv",
                Order::keys(k, &s).blocks(k),
                with(vec![Arg(1), Arg(2), Arg(0), Arg(5), Temp(0), result(1), result(2)]),
                (4 * product, 2 * q + 4 * kv + statistics),
                grid(&s, maps),
            );
            let s = Shape::queries(k);
            let maps = vec![
                map(k, 0, &k.q, g, ROWS),
                map(k, 1, &k.dy, g, ROWS),
                map(k, 2, &k.k, 1, s.step),
                map(k, 3, &k.v, 1, s.step),
                map(k, 5, &k.dq, g, ROWS),
            ];
            let queries = launch(
                "dq",
                Order::queries(k, &s).blocks(k),
                with(vec![Arg(0), Arg(5), Arg(1), Arg(2), Temp(0), result(0)]),
                (product, 3 * q + 2 * kv + statistics),
                grid(&s, maps),
            );
            all.extend([delta, keys, queries]);
        }
    }
    all
}

/// Bytes of each temporary: the row statistics of the backward pass, then what `documents` leaves.
pub fn temps(k: &AttendKernel) -> Vec<u64> {
    let mut all = match k.pass {
        Pass::Forward => vec![],
        Pass::Backward => vec![8 * (k.batch * k.kv * k.group * padded(k)) as u64],
    };
    if k.document {
        let ids = 4 * (k.batch * positions(k)) as u64;
        all.extend([ids, ids / ROWS as u64 * SPAN_WORDS as u64]);
    }
    all
}

/// The temporaries that `documents` writes: ids i32 \[batch, [`positions`]\], then [`SPAN_WORDS`] i32 for each [`ROWS`] of them.
fn prepared(k: &AttendKernel) -> Vec<LaunchArg> {
    let first = usize::from(k.pass == Pass::Backward);
    if k.document { vec![LaunchArg::Temp(first), LaunchArg::Temp(first + 1)] } else { vec![] }
}
