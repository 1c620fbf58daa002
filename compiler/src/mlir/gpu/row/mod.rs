//! Row kernels for GPUs: loop programs spread over the threads of blocks.
//!
//! *Takes* a [`Row`]; *gives* its function; *promises* the loop program's values up to the order of sums, which is fixed by the geometry
//! ([`Layout`]), and that memory outside of the addressed elements is not touched.
//!
//! The threads that work on one nest are its [`Crew`]. Nests are written by [`nest`], loads and stores by [`access`].

mod access;
mod nest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use super::ops;
use crate::kernel::gpu::row::resident::{Even, even};
use crate::kernel::gpu::row::{Layout, Place, loads};
use crate::kernel::row::Row;
use crate::kernel::row::loops::{Affine, Id, Inst, Level, Mem, Program, Step};
use crate::kernel::row::lower::lower;
use crate::mlir::emit::{Elem, Emit, I32, Ty, Unit, V};
use crate::mlir::rows::{elem, positions};

/// Emits the functions of [`crate::kernel::gpu::row::launches`].
pub fn emit(unit: &Unit, row: &Row, symbol: &dyn Fn(&str) -> String) -> Result<(), String> {
    let program = lower(row)?;
    let layout = Layout::of(row, &program)?;
    if layout.shared() > 0 {
        ops::declare_shared(unit);
    }
    let shape = (layout.threads as u32, layout.resident(row) as u32);
    unit.gpu_kernel_shared(&symbol("main"), row.args.len(), 0, shape, |e, args, _| {
        let e = &if row.exact { e.exact() } else { e.clone() };
        Writer::new(e, &program, &layout, args).program(e);
    });
    Ok(())
}

/// The threads that work on a nest.
#[derive(Clone)]
struct Crew<'c> {
    /// This thread's number among those with different columns, i32.
    rank: V<'c>,
    /// How many there are.
    size: usize,
    /// Threads that share a column's chain: this one's number and how many.
    share: Option<(V<'c>, usize)>,
    sync: Sync<'c>,
}

/// How a crew waits for itself.
#[derive(Clone)]
enum Sync<'c> {
    Warp,
    /// Barrier number and threads.
    Named(V<'c>, u32),
    Block,
}

impl<'c> Crew<'c> {
    fn barrier(&self, e: &Emit<'c>) {
        match self.sync {
            Sync::Warp => ops::warp_barrier(e),
            Sync::Named(id, threads) => ops::named_barrier(e, id, threads),
            Sync::Block => ops::barrier(e),
        }
    }
}

/// The state of writing a function.
struct Writer<'p, 'c> {
    p: &'p Program,
    l: &'p Layout,
    /// Number of the task, i64.
    task: V<'c>,
    args: Vec<V<'c>>,
    /// The block's scratch and this team's, generic pointers.
    block_scratch: Option<V<'c>>,
    team_scratch: Option<V<'c>>,
    crew: Crew<'c>,
    /// Positions along the outer axes, i64.
    outer: Vec<V<'c>>,
    /// Loop counters of the nest, i32; the vector dimension's is the position of lane 0.
    dims: Vec<V<'c>>,
    /// Lanes of the nest.
    lanes: u32,
    /// Definitions: a vector if it varies and the nest has several lanes, else a scalar.
    values: Vec<Option<V<'c>>>,
    /// Pointers by memory and the part of the address that is the same for the row, one map per open region.
    pointers: Vec<HashMap<(Mem, Affine), V<'c>>>,
    /// Memory read and written since the last barrier.
    read: BTreeSet<Mem>,
    written: BTreeSet<Mem>,
    /// Next free place to exchange sums at.
    slot: usize,
    /// Loads of sums add up the teams'.
    ending: bool,
    /// The loops of the nest, if its positions go round evenly, and the round being written.
    even: Option<(Even, usize)>,
    /// What this thread stored at its positions of such nests.
    kept: HashMap<(Mem, Affine, Even, usize), V<'c>>,
}

/// The type of `lanes` lanes.
fn wide(elem: Elem, lanes: u32) -> Ty {
    if lanes > 1 { Ty::vec(lanes, elem) } else { Ty::of(elem) }
}

impl<'p, 'c> Writer<'p, 'c> {
    fn new(e: &Emit<'c>, p: &'p Program, l: &'p Layout, args: &[V<'c>]) -> Self {
        let thread = ops::thread(e, l.threads as u32);
        let block = ops::block(e);
        let shared = (l.shared() > 0).then(|| ops::generic(e, ops::shared_memory(e)));
        let (task, crew) = match l.spread {
            Some(s) => {
                let columns = e.iconst(I32, s.columns as i64);
                let (column, share) = if s.ranks > 1 {
                    (e.remu(thread, columns), Some((e.divu(thread, columns), s.ranks)))
                } else {
                    (thread, None)
                };
                let rank = e.add(e.mul(block, columns), column);
                (e.i(0), Crew { rank, size: s.columns * l.blocks, share, sync: Sync::Block })
            }
            None => {
                let crew = Crew { rank: thread, size: l.threads, share: None, sync: Sync::Block };
                (e.zero_extend(block, Elem::I64), crew)
            }
        };
        Writer {
            p,
            l,
            task,
            args: args.to_vec(),
            block_scratch: shared,
            team_scratch: shared.map(|s| e.gep_const(s, Elem::I8, l.block_bytes as i64)),
            crew,
            outer: vec![],
            dims: vec![],
            lanes: 1,
            values: vec![None; p.defs.len()],
            pointers: vec![HashMap::new()],
            read: BTreeSet::new(),
            written: BTreeSet::new(),
            slot: 0,
            ending: false,
            even: None,
            kept: HashMap::new(),
        }
    }

    fn program(&mut self, e: &Emit<'c>) {
        let p = self.p;
        let thread = self.crew.rank;
        let block = (self.crew.clone(), self.team_scratch);
        self.steps(e, &p.task);
        // Teams have other positions than the whole block.
        self.kept.clear();
        let team = self.divide(e, thread);
        // What the task section wrote is for every team.
        if p.task.iter().any(|s| !matches!(s, Step::Def(_))) {
            for &i in &self.l.sums {
                self.zero(e, i);
            }
            ops::barrier(e);
            self.forget();
        }
        self.slot = 0;
        if p.rows() == 1 {
            self.outer = vec![e.i(0); p.outer.len()];
            self.steps(e, &p.row);
        } else {
            self.rows(e, team);
        }
        if !p.end.is_empty() {
            ops::barrier(e);
            self.forget();
            (self.crew, self.team_scratch) = block;
            self.ending = true;
            self.kept.clear();
            self.steps(e, &p.end);
        }
    }

    /// From the whole block to the thread's team; gives its number, i32.
    fn divide(&mut self, e: &Emit<'c>, thread: V<'c>) -> V<'c> {
        let (team, teams) = (self.l.team, self.l.teams());
        if teams == 1 {
            return e.zero(I32);
        }
        let size = e.iconst(I32, team as i64);
        let (number, rank) = (e.divu(thread, size), e.remu(thread, size));
        let sync = match team as u32 {
            ops::WARP => Sync::Warp,
            threads => Sync::Named(e.add_n(number, 1), threads),
        };
        self.crew = Crew { rank, size: team, share: None, sync };
        if let Some(scratch) = self.team_scratch {
            let bytes = e.mul_n(number, self.l.team_bytes as i64);
            self.team_scratch = Some(e.gep(scratch, Elem::I8, bytes));
        }
        number
    }

    /// The rows of the block, going round the teams.
    fn rows(&mut self, e: &Emit<'c>, team: V<'c>) {
        let p = self.p;
        let (rows, block, teams) = (p.rows() as i64, self.l.rows as i64, self.l.teams() as i64);
        let first = e.mul_n(self.task, block);
        let team = e.zero_extend(team, Elem::I64);
        if rows % block == 0 && block == teams {
            self.row(e, e.add(first, team));
            return;
        }
        let count = match rows % block {
            0 => e.i(block),
            _ => e.min(e.sub(e.i(rows), first), e.i(block)),
        };
        e.for_(team, count, e.i(teams), &[], |e, i, _| {
            self.row(e, e.add(first, i));
            // The next row overwrites this one's scratch.
            let shared = |(i, place): (usize, &Place)| *place != Place::Registers && !self.l.sums.contains(&i);
            if self.l.places.iter().enumerate().any(shared) || self.slot > 0 {
                self.crew.barrier(e);
            }
            vec![]
        });
    }

    fn row(&mut self, e: &Emit<'c>, row: V<'c>) {
        let p = self.p;
        self.outer = positions(e, &p.outer, row);
        self.pointers.push(HashMap::new());
        self.steps(e, &p.row);
        self.pointers.pop();
    }

    fn steps(&mut self, e: &Emit<'c>, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Def(id) => {
                    let ids = [*id];
                    self.await_memory(e, loads(self.p, &ids).map(|(mem, _)| mem).collect(), BTreeSet::new());
                    self.define(e, None, *id);
                }
                // Sums are zeroed by the threads that add to them.
                Step::Zero(_) => {}
                Step::Nest(nest) => {
                    let lanes = self.l.lanes(self.p, nest, self.crew.size);
                    let loops = match self.l.spread {
                        Some(_) => None,
                        None => even(self.p, nest, lanes, self.crew.size),
                    };
                    self.lanes = lanes as u32;
                    self.even = loops.map(|loops| (loops, 0));
                    // What this thread has kept does not come from memory.
                    let read = loads(self.p, &nest.body).filter(|(mem, at)| self.recall(*mem, at).is_none());
                    let read = read.map(|(mem, _)| mem).collect();
                    let written = nest.stores.iter().map(|s| s.mem).collect();
                    self.await_memory(e, read, written);
                    self.nest(e, nest);
                    self.even = None;
                }
            }
        }
    }

    /// What this thread stored earlier at its position of this round.
    fn recall(&self, mem: Mem, at: &Affine) -> Option<V<'c>> {
        let (loops, round) = self.even.clone()?;
        self.kept.get(&(mem, at.clone(), loops, round)).copied()
    }

    fn zero(&mut self, e: &Emit<'c>, i: usize) {
        let s = &self.p.scratch[i];
        let base = self.memory(e, Mem::Scratch(i));
        let (rank, step) = (e.zero_extend(self.crew.rank, Elem::I64), e.i(self.crew.size as i64));
        e.for_(rank, e.i(s.len as i64), step, &[], |e, at, _| {
            e.store(e.zero(Ty::of(elem(s.lane))), e.gep(base, elem(s.lane), at));
            vec![]
        });
    }

    /// Puts a barrier before a step that reads what other threads may have written, or overwrites what they may still read, since the last one. Arguments count too:
    /// an update in place may come after a reduction over the same row.
    fn await_memory(&mut self, e: &Emit<'c>, read: BTreeSet<Mem>, written: BTreeSet<Mem>) {
        // A thread adds to its own columns of a sum; spread kernels keep to their columns altogether.
        let shared = |mem: &Mem| !matches!(mem, Mem::Scratch(i) if self.l.sums.contains(i));
        let conflict = self.l.spread.is_none()
            && (read.intersection(&self.written).any(shared) || written.intersection(&self.read).any(shared));
        if conflict {
            self.crew.barrier(e);
            self.forget();
        }
        self.read.extend(read);
        self.written.extend(written);
    }

    fn forget(&mut self) {
        self.read.clear();
        self.written.clear();
    }

    /// First byte of a memory: arguments, or a piece of the scratch.
    fn memory(&self, e: &Emit<'c>, mem: Mem) -> V<'c> {
        match mem {
            Mem::Arg(i) => self.args[i],
            Mem::Scratch(i) => {
                let (base, at) = match self.l.places[i] {
                    Place::Block(at) => (self.block_scratch, at),
                    Place::Team(at) => (self.team_scratch, at),
                    Place::Registers => panic!("scratch {i} is kept in registers"),
                };
                e.gep_const(base.expect("programs with scratch have shared memory"), Elem::I8, at as i64)
            }
        }
    }

    /// Whether a definition is known before the nest.
    fn outside(&self, id: Id) -> bool {
        matches!(self.p.def(id).level, Level::Task | Level::Row)
    }

    fn is_carried(&self, id: Id) -> bool {
        matches!(self.p.def(id).inst, Inst::Reduce(..) | Inst::Scan(..))
    }
}
