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
use crate::plan::{Builtin, Call, FEEDBACK_ROWS, Segment, Variant};
use crate::quant::feedback::{self, Lanes};

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
            (Some(builtin @ Builtin::FeedbackRound { .. }), _) => self.pool.run(call.tasks, &|thread, task| {
                // SAFETY: the plan promises arguments of the sizes that the built-in says (checked when it was loaded) and one task per group of rows;
                // groups are disjoint; the scratch has room for one group.
                unsafe { feedback_round(args, builtin, task as usize, private[thread].start().cast()) }
            }),
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
        Some(Builtin::FeedbackRound { n, .. }) => n * std::mem::size_of::<Lanes>() as u64,
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

/// Group `task` of the rows of a [`Builtin::FeedbackRound`]; other built-ins: nothing.
///
/// # Safety
/// `args` are w f32 \[rows, n\], scale f32 \[rows\], order i32 \[n\], upper f32 \[n, n\] and out f32 \[rows, n\]; the task has rows, and these of out are used
/// by nobody else; `scratch` has n [`Lanes`].
unsafe fn feedback_round(args: &Args<'_>, builtin: &Builtin, task: usize, scratch: *mut Lanes) {
    let &Builtin::FeedbackRound { rows, n, low, high } = builtin else { return };
    let (rows, n) = (rows as usize, n as usize);
    let first = task * FEEDBACK_ROWS as usize;
    let mine = (rows - first).min(FEEDBACK_ROWS as usize);
    let [w, scale, order, upper, out] = [0, 1, 2, 3, 4].map(|i| args.0[i].cast::<f32>());
    // SAFETY: the caller's promise; segments are 64-byte aligned and so are places and scratch.
    unsafe {
        use std::slice::{from_raw_parts, from_raw_parts_mut};
        feedback::round(
            from_raw_parts(w.add(first * n), mine * n),
            from_raw_parts(scale.add(first), mine),
            from_raw_parts(order.cast::<i32>(), n),
            from_raw_parts(upper, n * n),
            (low, high),
            from_raw_parts_mut(scratch, n),
            from_raw_parts_mut(out.add(first * n), mine * n),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::toy::{self, Toy};
    use crate::plan::{GraphPlan, Place};

    /// A group of 16 rows and one of 3, on two threads, against the routine called for each row alone.
    #[test]
    fn rounding_with_feedback_takes_rows_in_groups() {
        let (rows, n) = (19, 5);
        let w: Vec<f32> = (0..rows * n).map(|i| (i * 37 % 101) as f32 / 10.0 - 5.0).collect();
        let scale: Vec<f32> = (0..rows).map(|i| 0.25 + i as f32 / 8.0).collect();
        let order = [3, 0, 4, 1, 2];
        let upper: Vec<f32> =
            (0..n * n).map(|i| if i % n < i / n { f32::NAN } else { 1.0 - i as f32 / 40.0 }).collect();

        let mut code = toy::load(&Toy::default()).unwrap();
        let variant = &mut code.program.variants[0];
        let kernel = variant.kernels.len() - 1;
        let builtin = Builtin::FeedbackRound { rows: rows as u64, n: n as u64, low: -7.0, high: 7.0 };
        variant.kernels[kernel].builtin = Some(builtin);
        let lengths = [w.len(), rows, n, n * n, w.len()];
        let mut scratch = 0;
        let mut place = |n: &usize| {
            let place = Place { segment: Segment::Scratch, offset: scratch };
            scratch += (n * 4).next_multiple_of(64) as u64;
            place
        };
        let args: Vec<_> = lengths.iter().map(&mut place).collect();
        let call = Call { kernel: kernel as u32, tasks: 2, args: args.clone(), after: Vec::new() };
        let graph = GraphPlan { name: "round".into(), calls: vec![call], inputs: vec![], outputs: vec![], scratch };
        // No other graph of the toy has sizes for its last kernel now.
        variant.graphs = vec![graph];

        let mut launcher = Launcher::new(Arc::new(code), 0, 0, 2).unwrap();
        let given = [&w[..], &scale, &order.map(|c| f32::from_bits(c as u32)), &upper];
        for (values, at) in given.iter().zip(&args) {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_bits().to_le_bytes()).collect();
            launcher.memory_mut().bytes_mut(*at, bytes.len()).copy_from_slice(&bytes);
        }
        launcher.run(0);
        let mut expected = vec![0.0; w.len()];
        for (r, out) in expected.chunks_mut(n).enumerate() {
            let (w, scale) = (&w[r * n..][..n], &scale[r..=r]);
            feedback::round(w, scale, &order, &upper, (-7.0, 7.0), &mut [[0.0; 16]; 5], out);
        }
        let found = launcher.memory().bytes(args[4], w.len() * 4);
        let found: Vec<_> = found.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        assert_eq!(found, expected);
        assert!(found.iter().any(|q| q.abs() == 7.0) && found.iter().any(|q| (1.0..7.0).contains(&q.abs())));
    }
}
