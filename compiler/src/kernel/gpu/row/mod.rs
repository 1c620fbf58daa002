//! Row kernels on a GPU: how rows, and the loops inside a row, are spread over blocks and threads.
//!
//! *Takes* a [`Row`] and its loop program; *gives* a [`Layout`] and the launch; *promises* decisions that depend on the description only and not on the number of
//! rows where [`Row::code`] leaves it open.
//!
//! A block is a task (or several tiny ones). Its threads form teams; a team works on one row at a time and the rows of the block go round the teams. Inside a team the
//! positions of a nest go round the threads, [`lanes`] neighbours of the vector dimension to a thread at a time. The scratch of a row lies in shared memory, one copy
//! per team; sums over the rows of a task are kept per team and added in team order at the end.
//!
//! Kernels of one row whose nests agree on their columns are spread over many blocks ([`Spread`]); a long sum of a column is then shared by several threads.

use crate::kernel::row::Row;
pub mod resident;

use crate::kernel::row::loops::{Affine, Id, Inst, Mem, Nest, Program, Step, Var};
use crate::kernel::row::lower::lower;
use crate::kernel::{Launch, round_up};
use golf_runtime::plan::Grid;
use std::collections::BTreeSet;

/// Threads of a warp.
const WARP: usize = 32;
/// Elements of a row for one thread of a team.
const ELEMENTS: usize = 16;
/// Shared memory that leaves room for several blocks on a multiprocessor.
const COMFORTABLE: usize = 64 << 10;

/// A kernel of one row over several blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Columns of a block: positions of the free dimensions.
    pub columns: usize,
    /// Threads that share the carried dimensions of a column.
    pub ranks: usize,
    /// Lanes are fixed to one.
    pub single: bool,
}

/// Where an entry of the scratch lies: bytes from the start of the block's or of the team's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Place {
    Block(usize),
    Team(usize),
    /// In registers, see [`resident`].
    Registers,
}

/// The geometry of a row kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Threads of a block.
    pub threads: usize,
    /// Threads of a team.
    pub team: usize,
    /// Blocks.
    pub blocks: usize,
    /// Rows of a block: those of a task, or more where tasks are tiny and may be put together.
    pub rows: usize,
    /// Set for kernels of one row over several blocks.
    pub spread: Option<Spread>,
    /// One per scratch of the program.
    pub places: Vec<Place>,
    /// Bytes before the first team's part.
    pub block_bytes: usize,
    /// Bytes of a team's part.
    pub team_bytes: usize,
    /// Bytes inside a team's part at which threads exchange parts of sums.
    pub exchange: usize,
    /// Scratch that accumulates over the rows of a task.
    pub sums: BTreeSet<usize>,
}

impl Layout {
    /// The geometry of a program.
    pub fn of(row: &Row, p: &Program) -> Result<Layout, String> {
        let sums = sums(p);
        let mut layout = match Spread::of(p, &sums) {
            Some((spread, blocks)) => Layout {
                threads: spread.columns * spread.ranks,
                team: spread.columns * spread.ranks,
                blocks,
                spread: Some(spread),
                ..Layout::empty(sums)
            },
            None => {
                let work = nests(&p.row).map(|n| width(p, n)).max().unwrap_or(1);
                let one = p.rows() == 1;
                let (each, most, target) = match (one, row.block >= 512) {
                    (true, _) => (4, 256, 256),
                    (false, false) => (ELEMENTS, 256, 256),
                    (false, true) => (ELEMENTS, 256, 512),
                };
                let team = power_below(work / each).clamp(WARP, most);
                let most = (target / team).max(1);
                let rows = if may_regroup(row, p) { row.block.max(most) } else { row.block };
                let teams = if one { 1 } else { most.min(rows) };
                Layout { threads: team * teams, team, blocks: p.rows().div_ceil(rows), rows, ..Layout::empty(sums) }
            }
        };
        layout.place(p);
        while layout.shared() > COMFORTABLE && layout.threads > layout.team {
            layout.threads = (layout.threads / layout.team).div_ceil(2) * layout.team;
        }
        if layout.shared() > super::Arch::Sm90a.shared_limit() as usize {
            return Err(format!("a row needs {} bytes of shared memory", layout.shared()));
        }
        Ok(layout)
    }

    fn empty(sums: BTreeSet<usize>) -> Layout {
        Layout {
            threads: 0,
            team: 0,
            blocks: 1,
            rows: 1,
            spread: None,
            places: Vec::new(),
            block_bytes: 0,
            team_bytes: 0,
            exchange: 0,
            sums,
        }
    }

    /// Teams of a block.
    pub fn teams(&self) -> usize {
        self.threads / self.team
    }

    /// Dynamic shared memory of a block, bytes.
    pub fn shared(&self) -> usize {
        self.block_bytes + self.team_bytes * self.teams()
    }

    /// Blocks that should share a multiprocessor: of 24 warps some compute while others wait for memory, and 80 registers are left for a thread; 16 warps
    /// where a thread has values of many arguments at hand. 1 for kernels of one row, whose few threads may have all the registers there are.
    pub fn resident(&self, k: &Row) -> usize {
        if k.outer.is_empty() {
            return 1;
        }
        let warps = if k.args.len() <= 8 { 24 } else { 16 };
        let shared = super::SHARED / (self.shared() + super::SHARED_OF_BLOCK);
        (warps * WARP / self.threads).min(shared).max(1)
    }

    /// Lays out the scratch. What the task section writes is shared by all rows.
    fn place(&mut self, p: &Program) {
        let common: BTreeSet<usize> = nests(&p.task).flat_map(|n| &n.stores).filter_map(|s| scratch(s.mem)).collect();
        let stays = match self.spread {
            Some(_) => BTreeSet::new(),
            None => resident::resident(p, &|n| self.lanes(p, n, self.team), self.team),
        };
        let (mut block, mut team) = (0, 0);
        for (i, s) in p.scratch.iter().enumerate() {
            if stays.contains(&i) {
                self.places.push(Place::Registers);
                continue;
            }
            let bytes = round_up(s.len * s.lane.dtype().bytes(), 64);
            let (end, place): (&mut usize, fn(usize) -> Place) =
                if common.contains(&i) { (&mut block, Place::Block) } else { (&mut team, Place::Team) };
            self.places.push(place(*end));
            *end += bytes;
        }
        self.exchange = team;
        let reductions = |steps: &[Step]| nests(steps).map(|n| carried(p, n).len()).sum::<usize>();
        let count = reductions(&p.row).max(reductions(&p.task));
        let parts = match self.spread {
            Some(s) if s.ranks > 1 => s.ranks * s.columns,
            Some(_) => 0,
            // The task section is the work of the whole block.
            None if self.threads > WARP && (self.team > WARP || reductions(&p.task) > 0) => self.threads / WARP,
            None => 0,
        };
        team += round_up(count * parts * 4, 64);
        (self.block_bytes, self.team_bytes) = (block, team);
    }

    /// Lanes of a nest that `threads` threads work on.
    pub fn lanes(&self, p: &Program, nest: &Nest, threads: usize) -> usize {
        match self.spread {
            Some(s) if s.single => 1,
            Some(_) => lanes(p, nest, 1),
            None => lanes(p, nest, threads),
        }
    }
}

/// Neighbours of the vector dimension that one thread takes: 16 bytes of the narrowest memory walked contiguously, fewer if threads would have nothing to do.
pub fn lanes(p: &Program, nest: &Nest, threads: usize) -> usize {
    let Some(v) = nest.vector else { return 1 };
    let (mut contiguous, mut scattered, mut most) = (0, 0, 4);
    for (mem, at) in accesses(p, nest) {
        match at.dim(v) {
            _ if varying(p, at) => scattered += 1,
            0 => {}
            1 => {
                contiguous += 1;
                if matches!(mem, Mem::Arg(_)) && p.dtype(mem).bytes() < 4 {
                    most = 8;
                }
            }
            _ => scattered += 1,
        }
    }
    if scattered > contiguous {
        return 1;
    }
    let items = if v < free(nest) { product(nest, 0..free(nest)) } else { product(nest, 0..nest.dims.len()) };
    let fits = |w: &usize| nest.dims[v].size.is_multiple_of(*w) && (*w == 1 || items / w >= threads);
    [8, 4, 2, 1].into_iter().filter(|w| *w <= most).find(fits).unwrap_or(1)
}

/// Threads that share one result of a nest that reduces its vector dimension: `chunks` parts, `results` results, `team` threads. More than a warp only if it is
/// the whole team and there is one result. `stores` says that the nest also writes element by element, which must not happen twice; else every warp may do all of a
/// short sum, which saves the wait for the others. Where rows are read again (`again`) a thread keeps to its own part of them.
pub fn group(chunks: usize, results: usize, team: usize, stores: bool, again: bool) -> usize {
    let wanted = chunks.next_power_of_two();
    let short = if again { WARP } else { 8 * WARP };
    if results == 1 && (wanted > short || stores) { team } else { wanted.min(WARP).min(team) }
}

/// Number of loops that are not carried.
pub fn free(nest: &Nest) -> usize {
    nest.dims.iter().position(|d| d.carried).unwrap_or(nest.dims.len())
}

/// Positions of some loops.
pub fn product(nest: &Nest, dims: std::ops::Range<usize>) -> usize {
    nest.dims[dims].iter().map(|d| d.size).product()
}

/// The reductions and scans of a nest.
pub fn carried(p: &Program, nest: &Nest) -> Vec<Id> {
    nest.body.iter().copied().filter(|&id| matches!(p.def(id).inst, Inst::Reduce(..) | Inst::Scan(..))).collect()
}

/// Whether a nest has scans.
pub fn scans(p: &Program, nest: &Nest) -> bool {
    nest.body.iter().any(|&id| matches!(p.def(id).inst, Inst::Scan(..)))
}

/// Whether a nest's threads keep to their column: no sum crosses threads.
pub fn by_columns(p: &Program, nest: &Nest) -> bool {
    carried(p, nest).is_empty() || scans(p, nest) || nest.vector.is_some_and(|v| v < free(nest))
}

/// Every load and store of a nest.
pub fn accesses<'a>(p: &'a Program, nest: &'a Nest) -> impl Iterator<Item = (Mem, &'a Affine)> {
    loads(p, &nest.body).chain(nest.stores.iter().map(|s| (s.mem, &s.at)))
}

/// The loads among some values.
pub fn loads<'a>(p: &'a Program, ids: &'a [Id]) -> impl Iterator<Item = (Mem, &'a Affine)> {
    ids.iter().filter_map(|&id| match &p.def(id).inst {
        Inst::Load(mem, at) => Some((*mem, at)),
        _ => None,
    })
}

/// Whether an address depends on a value that differs between lanes.
pub fn varying(p: &Program, at: &Affine) -> bool {
    at.values().any(|id| p.def(id).varies)
}

fn nests(steps: &[Step]) -> impl Iterator<Item = &Nest> {
    steps.iter().filter_map(|s| if let Step::Nest(n) = s { Some(n) } else { None })
}

fn scratch(mem: Mem) -> Option<usize> {
    if let Mem::Scratch(i) = mem { Some(i) } else { None }
}

/// Scratch that the task section zeroes.
fn sums(p: &Program) -> BTreeSet<usize> {
    p.task.iter().filter_map(|s| if let Step::Zero(i) = s { Some(*i) } else { None }).collect()
}

/// Positions of a nest that threads can share.
fn width(p: &Program, nest: &Nest) -> usize {
    if by_columns(p, nest) && !carried(p, nest).is_empty() {
        product(nest, 0..free(nest))
    } else {
        product(nest, 0..nest.dims.len())
    }
}

/// Whether a block may take other rows than a task's: nothing is counted by tasks, and the function knows how many rows there are ([`Row::code`] leaves two tasks
/// where it must not).
fn may_regroup(row: &Row, p: &Program) -> bool {
    p.end.is_empty() && p.rows() != 2 * p.block && row.code() == *row
}

fn power_below(n: usize) -> usize {
    if n == 0 { 1 } else { 1 << n.ilog2() }
}

impl Spread {
    /// How a program of one row can be spread over blocks, which cannot wait for each other: no sum crosses columns, and what one nest leaves for another (or
    /// reads and overwrites) belongs to the same column.
    fn of(p: &Program, sums: &BTreeSet<usize>) -> Option<(Spread, usize)> {
        let simple = p.task.iter().all(|s| matches!(s, Step::Def(_))) && p.end.is_empty() && sums.is_empty();
        if p.rows() != 1 || !simple {
            return None;
        }
        let list: Vec<&Nest> = nests(&p.row).collect();
        if list.iter().any(|n| !by_columns(p, n) || scans(p, n)) {
            return None;
        }
        let uniform: Vec<Id> =
            p.task.iter().chain(&p.row).filter_map(|s| if let Step::Def(id) = s { Some(*id) } else { None }).collect();
        let mut single = list.iter().any(|n| !carried(p, n).is_empty());
        let columns = |n: &Nest| -> Vec<usize> { n.dims[..free(n)].iter().map(|d| d.size).collect() };
        let of_column = |n: &Nest, at: &Affine| at.terms.keys().all(|v| matches!(v, Var::Dim(k) if *k < free(n)));
        for (i, writer) in list.iter().enumerate() {
            for s in &writer.stores {
                if loads(p, &uniform).any(|(mem, _)| mem == s.mem) {
                    return None;
                }
                for (j, reader) in list.iter().enumerate() {
                    for (_, at) in loads(p, &reader.body).filter(|(mem, _)| *mem == s.mem) {
                        if *at != s.at || columns(reader) != columns(writer) {
                            return None;
                        }
                        if i != j {
                            single = true;
                            if !of_column(reader, at) || s.depth != free(writer) {
                                return None;
                            }
                        }
                    }
                }
            }
        }
        let mut spread = Spread { columns: 256, ranks: 1, single };
        let chain = list.iter().filter(|n| !carried(p, n).is_empty()).map(|n| product(n, free(n)..n.dims.len())).max();
        if let Some(chain) = chain {
            spread = Spread { columns: WARP, ranks: power_below(chain / 4).clamp(1, 16), single };
        }
        let items = |n: &&Nest| {
            let lanes = if single { 1 } else { lanes(p, n, 1) };
            product(n, 0..if chain.is_some() { free(n) } else { n.dims.len() }) / lanes
        };
        let most = list.iter().map(items).max()?;
        let blocks = most.div_ceil(spread.columns);
        (blocks > 1 || spread.ranks > 1).then_some((spread, blocks))
    }
}

/// Says why no emitter would take the kernel.
pub fn check(k: &Row) -> Result<(), String> {
    k.check()?;
    Layout::of(k, &lower(k)?).map(|_| ())
}

/// The one function.
pub fn launches(k: &Row) -> Vec<Launch> {
    let layout = lower(k).and_then(|p| Layout::of(k, &p));
    let mut launches = k.launches();
    for launch in &mut launches {
        launch.scratch = 0;
        if let Ok(layout) = &layout {
            launch.tasks = layout.blocks as u32;
            launch.gpu = Some(Grid {
                module: 0,
                threads: layout.threads as u32,
                shared: layout.shared() as u32,
                maps: Vec::new(),
            });
        }
    }
    launches
}

/// Row kernels need no temporaries.
pub fn temps(_: &Row) -> Vec<u64> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ir::DType;
    use crate::kernel::row::samples::{self, Sizes};

    fn layout(sample: samples::Sample) -> Layout {
        let p = lower(&sample.row).unwrap();
        Layout::of(&sample.row, &p).unwrap()
    }

    #[test]
    fn a_warp_per_row_of_512() {
        let s = Sizes { batch: 8, time: 256, heads: 8, dim: 64, block: 16, dtype: DType::Bf16 };
        let l = layout(samples::rms_norm(s));
        assert_eq!((l.team, l.threads, l.blocks, l.shared()), (32, 256, 128, 0));
    }

    #[test]
    fn code_does_not_know_the_rows() {
        let of = |batch| {
            let s = Sizes { batch, time: 1, heads: 8, dim: 64, block: 16, dtype: DType::Bf16 };
            let row = samples::rms_norm_grad(s).row;
            let l = Layout::of(&row, &lower(&row).unwrap()).unwrap();
            (Layout { blocks: 0, ..l.clone() }, l.blocks)
        };
        assert_eq!(of(32).0, of(320).0);
        assert_eq!((of(32).1, of(320).1), (2, 20));
    }

    #[test]
    fn tiny_tasks_share_a_block() {
        let s = Sizes { batch: 8, time: 256, heads: 8, dim: 64, block: 1, dtype: DType::Bf16 };
        let l = layout(samples::smear(s));
        assert_eq!((l.rows, l.blocks, l.threads), (8, 256, 256));
    }

    #[test]
    fn groups() {
        assert_eq!(group(8, 8, 32, false, true), 8);
        assert_eq!(group(64, 1, 32, false, true), 32);
        assert_eq!(group(8, 1, 64, false, true), 8);
        assert_eq!(group(8, 1, 64, true, true), 64);
        assert_eq!(group(1, 1, 32, false, true), 1);
        assert_eq!((group(128, 1, 256, false, true), group(128, 1, 256, false, false)), (256, 32));
    }
}
