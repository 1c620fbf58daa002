//! Running graphs.
//!
//! *Takes* [`Code`], a variant, a tier, a thread count; *gives* a [`Launcher`] that owns the memory and runs graphs by index;
//! *promises* calls in the plan's order, each complete before the next, results independent of the number of threads, and a
//! time account per kernel.

use std::sync::Arc;
use std::time::Instant;

use super::code::Code;
use super::memory::{Block, Memory, address};
use super::pool::Pool;
use crate::error::{Error, Result};
use crate::plan::{Builtin, Call, Segment, Variant};

/// What a kernel has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Calls.
    pub calls: u64,
    /// Their wall time together, nanoseconds.
    pub nanos: u64,
}

/// One thread's private scratch. Only its thread number's tasks use it.
struct Private(*mut u8);

// SAFETY: `Pool::run` never runs two tasks with one thread number at the same time, and each scratch is used under one number.
unsafe impl Sync for Private {}

impl Private {
    fn start(&self) -> *mut u8 {
        self.0
    }
}

/// One call's argument pointers.
struct Args<'a>(&'a [*mut u8]);

// SAFETY: the pointers are to buffers of which tasks, by the plan's promise, write disjoint parts and read only what no other
// task of the call writes.
unsafe impl Sync for Args<'_> {}

impl Args<'_> {
    fn pointers(&self) -> *const *mut u8 {
        self.0.as_ptr()
    }
}

/// Memory, threads and code of one variant on one tier.
pub struct Launcher {
    code: Arc<Code>,
    variant: usize,
    tier: usize,
    memory: Memory,
    pool: Pool,
    /// One block per thread, kept for `private`, which points into them.
    _scratch: Vec<Block>,
    private: Vec<Private>,
    timings: Vec<Timing>,
    args: Vec<*mut u8>,
}

impl Launcher {
    /// Allocates everything. Error (exit 3): not enough memory or threads.
    pub fn new(code: Arc<Code>, variant: usize, tier: usize, threads: usize) -> Result<Launcher> {
        let v = &code.program.variants[variant];
        let scratch = v.graphs.iter().map(|g| g.scratch).max().unwrap_or(0);
        let sizes = [v.state_bytes, v.grad_bytes, scratch, v.constants.len() as u64];
        let mb = |b: u64| format!("{:.1} MB", b as f64 / 1e6);
        let predicted = code.program.predicted_rss.get(variant).copied().unwrap_or(0);
        let needs = format!(
            "parameters and optimiser state {}, gradients {}, activations {}; the plan predicts {} in all",
            mb(sizes[0]),
            mb(sizes[1]),
            mb(sizes[2]),
            mb(predicted)
        );
        let mut memory = Memory::new(sizes, &needs)?;
        memory.segment_mut(Segment::Const).copy_from_slice(&v.constants);
        let pool = Pool::new(threads).map_err(|e| Error::machine(format!("cannot start {threads} threads: {e}")))?;
        let private = v.kernels.iter().map(|k| k.scratch.max(builtin_scratch(k.builtin.as_ref()))).max().unwrap_or(0);
        let mut scratch = (0..pool.threads())
            .map(|_| Block::new(private as usize))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|e| Error::machine(format!("out of memory for the threads' scratch of {}: {e}", mb(private))))?;
        let private = scratch.iter_mut().map(|b| Private(b.bytes_mut().as_mut_ptr())).collect();
        let timings = vec![Timing::default(); v.kernels.len()];
        Ok(Launcher { code, variant, tier, memory, pool, _scratch: scratch, private, timings, args: Vec::new() })
    }

    /// The variant this runs.
    pub fn variant(&self) -> &Variant {
        &self.code.program.variants[self.variant]
    }

    /// The segments.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The segments.
    pub fn memory_mut(&mut self) -> &mut Memory {
        &mut self.memory
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The threads, for host work between graphs.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Time per kernel of the variant since the last [`Launcher::reset_timings`].
    pub fn timings(&self) -> &[Timing] {
        &self.timings
    }

    /// Starts the account anew.
    pub fn reset_timings(&mut self) {
        self.timings.fill(Timing::default());
    }

    /// Zeroes byte ranges (start, end) of a segment, on all threads. Panics outside the segment.
    pub fn zero(&mut self, segment: Segment, ranges: &[(usize, usize)]) {
        /// Bytes zeroed by one task.
        const PIECE: usize = 1 << 20;
        let whole = self.memory.segment_mut(segment);
        let mut pieces: Vec<&mut [u8]> = Vec::new();
        let (mut rest, mut at) = (whole, 0);
        for &(start, end) in ranges {
            let (head, tail) = rest.split_at_mut(end - at);
            pieces.extend(head[start - at..].chunks_mut(PIECE));
            (rest, at) = (tail, end);
        }
        self.pool.each(&mut pieces, &|_, piece| piece.fill(0));
    }

    /// Runs graph `index` of the variant. Panics if there is none.
    pub fn run(&mut self, index: usize) {
        let code = self.code.clone();
        let bases = self.memory.bases();
        for call in &code.program.variants[self.variant].graphs[index].calls {
            let start = Instant::now();
            self.call(&code, call, &bases);
            let timing = &mut self.timings[call.kernel as usize];
            timing.calls += 1;
            timing.nanos += start.elapsed().as_nanos() as u64;
        }
    }

    fn call(&mut self, code: &Code, call: &Call, bases: &[*mut u8; 4]) {
        self.args.clear();
        self.args.extend(call.args.iter().map(|place| address(bases, place)));
        let kernel = &code.program.variants[self.variant].kernels[call.kernel as usize];
        let (args, private) = (&Args(&self.args), &self.private);
        match (&kernel.builtin, code.entry(self.variant, self.tier, call.kernel as usize)) {
            (Some(Builtin::Quantile { n, q }), _) => {
                let (n, q) = (*n as usize, *q);
                self.pool.run(call.tasks, &|thread, task| {
                    // SAFETY: the plan promises x f32 [tasks, n] and out f32 [tasks] (checked against the segments' sizes
                    // when it was loaded); rows are disjoint; the scratch has room for one row.
                    unsafe { quantile(args, n, q, task as usize, private[thread].start().cast()) }
                });
            }
            (None, Some(entry)) => self.pool.run(call.tasks, &|thread, task| {
                // SAFETY: `Code::new`'s caller promised that this is sound for tasks of this call.
                unsafe { entry(task, args.pointers(), private[thread].start()) }
            }),
            (None, None) => unreachable!("Code::new checked that every kernel has an entry"),
        }
    }
}

/// Bytes of scratch a built-in needs per thread.
fn builtin_scratch(builtin: Option<&Builtin>) -> u64 {
    match builtin {
        Some(Builtin::Quantile { n, .. }) => n * 4,
        None => 0,
    }
}

/// Row `row` of [`Builtin::Quantile`].
///
/// # Safety
/// `args` are x f32 \[rows, n\] and out f32 \[rows\] with `row < rows`, row `row` of both used by nobody else; `scratch` has n f32.
unsafe fn quantile(args: &Args<'_>, n: usize, q: f64, row: usize, scratch: *mut f32) {
    // SAFETY: the caller's promise; segments are 64-byte aligned and so are places.
    let (x, copy, out) = unsafe {
        let x = std::slice::from_raw_parts(args.0[0].cast::<f32>().add(row * n), n);
        (x, std::slice::from_raw_parts_mut(scratch, n), &mut *args.0[1].cast::<f32>().add(row))
    };
    copy.copy_from_slice(x);
    *out = crate::host::quantile(copy, q);
}
