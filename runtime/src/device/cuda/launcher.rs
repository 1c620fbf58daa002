//! Running a variant's graphs on a GPU.
//!
//! *Takes* [`Code`], a variant for a GPU and a device; *gives* [`GpuLauncher`], which owns the memory and runs graphs by index; *promises* that a graph's
//! calls are ordered as the plan's [`Call::after`] says, that graphs, copies and zeroing happen in the order asked for, and nothing at run
//! time that was not fixed when the program was compiled: the same bits every time.
//!
//! Every graph is one CUDA graph. With `GOLF_SYNC=1` in the environment calls are launched one by one instead, each waited for, so that a
//! failing kernel is named, and scratch memory starts as NaN. For `bench`, calls are launched one by one between events.

use std::sync::Arc;
use std::time::Duration;

use super::gpu::{Allocation, Event, Function, Gpu, Graph, Launch, Work};
use super::{leave, modules};
use crate::device::code::Code;
use crate::device::launch::Timing;
use crate::error::{Error, Result};
use crate::plan::{Call, Place, Segment, Variant};
use crate::report::output;

/// Time for one kernel with `GOLF_SYNC=1`.
const PATIENCE: Duration = Duration::from_secs(20);

/// How graphs run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// As CUDA graphs.
    Graphs,
    /// Call by call between events.
    Timed,
    /// Call by call, each waited for.
    Checked,
}

/// Memory and code of one variant on one GPU.
pub struct GpuLauncher {
    code: Arc<Code>,
    variant: usize,
    /// State, Grad, Scratch, Const.
    segments: [Allocation; 4],
    launches: Vec<Vec<Work>>,
    graphs: Vec<Option<Graph>>,
    mode: Mode,
    /// Mode when nothing is timed.
    usual: Mode,
    events: Vec<Event>,
    timings: Vec<Timing>,
    gpu: Gpu,
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

impl GpuLauncher {
    /// Allocates everything and assembles the code. Errors (exit 3): the device is of another kind, has not enough memory, or its driver is too old.
    pub fn new(code: Arc<Code>, variant: usize, gpu: Gpu) -> Result<GpuLauncher> {
        let v = &code.program.variants[variant];
        gpu.fits(&v.device)?;
        let segments = allocate(&gpu, v)?;
        gpu.upload(&segments[index(Segment::Const)], 0, &v.constants)?;
        let texts: Vec<&str> = v.modules.iter().map(String::as_str).collect();
        let loaded = gpu.load_all(&texts, &mut modules::progress(gpu.name()))?;
        // None where cuBLASLt does the work.
        let mut functions: Vec<Option<(Function, u32, u32)>> = Vec::with_capacity(v.kernels.len());
        for k in &v.kernels {
            if k.product.is_some() {
                functions.push(None);
                continue;
            }
            let Some(grid) = &k.gpu else {
                return Err(Error::input(format!(
                    "the plan inside this executable is damaged: {} has no grid",
                    k.symbol
                )));
            };
            let function = loaded[grid.module as usize].function(&k.symbol, grid.threads, grid.shared)?;
            functions.push(Some((function, grid.threads, grid.shared)));
        }
        let address = |p: &Place| segments[index(p.segment)].address() + p.offset;
        let launch = |call: &Call| -> Result<Work> {
            let pointers: Vec<u64> = call.args.iter().map(address).collect();
            let kernel = &v.kernels[call.kernel as usize];
            let Some((function, threads, shared)) = functions[call.kernel as usize].clone() else {
                let at: Option<[u64; 4]> = pointers.try_into().ok();
                return match (&kernel.product, at) {
                    (Some(product), Some(at)) => gpu.product(&kernel.symbol, product, at),
                    _ => unreachable!("the plan was checked"),
                };
            };
            let maps = kernel.gpu.iter().flat_map(|g| &g.maps);
            let maps = maps.map(|m| gpu.map(m, pointers[m.arg as usize])).collect::<Result<_>>()?;
            Ok(Work::Kernel(Launch { function, blocks: call.tasks, threads, shared, pointers, maps }))
        };
        let launches = v.graphs.iter().map(|g| g.calls.iter().map(launch).collect());
        let launches = launches.collect::<Result<Vec<Vec<Work>>>>()?;
        let mode = match std::env::var("GOLF_SYNC") {
            Ok(on) if on != "0" && !on.is_empty() => Mode::Checked,
            _ => Mode::Graphs,
        };
        if mode == Mode::Checked {
            let scratch = &segments[index(Segment::Scratch)];
            gpu.fill(scratch, 0, scratch.bytes(), 0xff)?;
        }
        let timings = vec![Timing::default(); v.kernels.len()];
        let graphs = v.graphs.iter().map(|_| None).collect();
        gpu.synchronize()?;
        let mut made = GpuLauncher {
            code,
            variant,
            segments,
            launches,
            graphs,
            mode,
            usual: mode,
            events: Vec::new(),
            timings,
            gpu,
        };
        made.prepare()?;
        Ok(made)
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes of the segments together.
    pub fn memory(&self) -> u64 {
        self.segments.iter().map(Allocation::bytes).sum()
    }

    /// Bytes at a place. Panics outside the segment: plans are checked when loaded.
    pub fn read(&self, place: Place, len: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; len];
        self.gpu.download(&self.segments[index(place.segment)], place.offset, &mut out)?;
        Ok(out)
    }

    /// Replaces bytes at a place. Panics outside the segment: plans are checked when loaded.
    pub fn write(&mut self, place: Place, bytes: &[u8]) -> Result<()> {
        self.gpu.upload(&self.segments[index(place.segment)], place.offset, bytes)
    }

    /// Zeroes byte ranges (start, end) of a segment. Panics outside the segment.
    pub fn zero(&mut self, segment: Segment, ranges: &[(usize, usize)]) -> Result<()> {
        let to = &self.segments[index(segment)];
        ranges.iter().try_for_each(|&(start, end)| self.gpu.fill(to, start as u64, (end - start) as u64, 0))
    }

    /// Waits until everything asked for is done.
    pub fn finish(&self) -> Result<()> {
        self.gpu.synchronize()
    }

    /// Makes every graph ready, so that the first run of one takes no longer than the others.
    fn prepare(&mut self) -> Result<()> {
        let graphs = if self.mode == Mode::Graphs { self.launches.len() } else { 0 };
        (0..graphs).try_for_each(|i| self.build(i))
    }

    fn build(&mut self, i: usize) -> Result<()> {
        if self.graphs[i].is_none() && !self.launches[i].is_empty() {
            let calls = &self.code.program.variants[self.variant].graphs[i].calls;
            let after: Vec<&[u32]> = calls.iter().map(|c| &c.after[..]).collect();
            self.graphs[i] = Some(self.gpu.graph(&self.launches[i], &after)?);
        }
        Ok(())
    }

    /// Starts graph `i` of the variant. Panics if there is none.
    pub fn run(&mut self, i: usize) -> Result<()> {
        match self.mode {
            Mode::Graphs => {
                self.build(i)?;
                self.graphs[i].as_ref().map_or(Ok(()), Graph::launch)
            }
            Mode::Timed => self.timed(i),
            Mode::Checked => self.checked(i),
        }
    }

    fn checked(&self, i: usize) -> Result<()> {
        let graph = &self.code.program.variants[self.variant].graphs[i].name;
        for (n, launch) in self.launches[i].iter().enumerate() {
            let at = |what: &str| format!("{graph}, call {n}, {}: {what}", launch.name());
            let ended = self.gpu.work(launch).and_then(|()| self.gpu.wait(PATIENCE));
            if !ended.map_err(|e| Error::machine(at(&e.to_string())))? {
                output::warn(&format!("error: {}", at(&format!("does not end within {PATIENCE:?}"))));
                leave(3);
            }
        }
        Ok(())
    }

    fn timed(&mut self, i: usize) -> Result<()> {
        let launches = &self.launches[i];
        while self.events.len() <= launches.len() {
            self.events.push(self.gpu.event()?);
        }
        for (launch, event) in launches.iter().zip(&self.events) {
            event.record()?;
            self.gpu.work(launch)?;
        }
        self.events[launches.len()].record()?;
        self.gpu.synchronize()?;
        let calls = &self.code.program.variants[self.variant].graphs[i].calls;
        for (call, pair) in calls.iter().zip(self.events.windows(2)) {
            let timing = &mut self.timings[call.kernel as usize];
            timing.calls += 1;
            timing.nanos += (pair[0].until(&pair[1])? * 1e6) as u64;
        }
        Ok(())
    }

    /// Whether calls are launched one by one and timed from here on. Gaps between launches count to the call before them.
    pub fn time_calls(&mut self, on: bool) {
        self.mode = if on { Mode::Timed } else { self.usual };
    }

    /// Time per kernel of the variant since the last [`GpuLauncher::reset_timings`], while [`GpuLauncher::time_calls`] was on.
    pub fn timings(&self) -> &[Timing] {
        &self.timings
    }

    /// Starts the account anew.
    pub fn reset_timings(&mut self) {
        self.timings.fill(Timing::default());
    }
}

fn index(segment: Segment) -> usize {
    match segment {
        Segment::State => 0,
        Segment::Grad => 1,
        Segment::Scratch => 2,
        Segment::Const => 3,
    }
}

/// The segments. Error (exit 3): not enough memory, with the plan's figures.
fn allocate(gpu: &Gpu, v: &Variant) -> Result<[Allocation; 4]> {
    let scratch = v.graphs.iter().map(|g| g.scratch).max().unwrap_or(0);
    let sizes = [v.state_bytes, v.grad_bytes, scratch, v.constants.len() as u64];
    let (free, total) = gpu.memory()?;
    let alloc = |i: usize| -> Result<Allocation> {
        gpu.alloc(sizes[i])?.ok_or_else(|| {
            let need = sizes.iter().fold(0u64, |a, &b| a.saturating_add(b));
            Error::machine(format!(
                "out of memory on {}: {} needed (parameters and optimiser state {}, gradients {}, activations {}), {} of {} free; \
                 compile with smaller train.batch or seq",
                gpu.name(),
                mb(need),
                mb(sizes[0]),
                mb(sizes[1]),
                mb(sizes[2]),
                mb(free),
                mb(total)
            ))
        })
    };
    Ok([alloc(0)?, alloc(1)?, alloc(2)?, alloc(3)?])
}
