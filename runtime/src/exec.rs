//! One program, one precision, one device: memory and the graphs that run in it.
//!
//! *Takes* [`Code`] and [`Options`]; *gives* a [`Session`]: run a graph by name, write its inputs, read its outputs and any state;
//! *promises* checked shapes and dtypes at every crossing between host and program, and results that do not depend on the
//! number of threads.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::{bf16, f16};

use crate::device::{Code, Launcher, Peak, tier};
use crate::error::{Error, Result};
use crate::plan::{Buffer, DType, Segment, Variant};

/// What the command line says about the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `bf16` or `f32`; the program's own compute precision when absent.
    pub precision: Option<String>,
    /// Device kind; the best one when absent.
    pub isa: Option<String>,
    /// Threads; as many as the process may use when absent.
    pub threads: Option<usize>,
    /// Bytes the plan's figure may not exceed.
    pub memory: Option<u64>,
}

/// A graph of the session, by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GraphId(usize);

/// Time and work of one kernel family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// Kernel calls.
    pub calls: u64,
    /// Wall time, nanoseconds.
    pub nanos: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes that had to be read and written.
    pub bytes: u64,
}

/// A variant of the program, loaded and ready.
pub struct Session {
    code: Arc<Code>,
    variant: usize,
    tier: usize,
    launcher: Launcher,
    /// Ranges of the gradient segment by prefix (`grad.`, `total.`), merged where they touch.
    gradients: BTreeMap<&'static str, Vec<(usize, usize)>>,
}

impl Session {
    /// Allocates the segments (zeroed; parameters are not initialised). Errors: usage (unknown precision or device kind, no
    /// threads); machine (CPU too old, not enough memory or less allowed than the plan says).
    pub fn new(code: Arc<Code>, options: &Options) -> Result<Session> {
        let p = &code.program;
        let variant = match &options.precision {
            None => 0,
            Some(name) => {
                p.variants.iter().position(|v| &v.precision == name && v.device == "cpu").ok_or_else(|| {
                    let have: Vec<_> = p.variants.iter().map(|v| v.precision.as_str()).collect();
                    Error::usage(format!("--precision {name}: this program was compiled for {}", have.join(", ")))
                })?
            }
        };
        let tier = tier::choose(&p.tiers, options.isa.as_deref())?;
        let predicted = p.predicted_rss[variant];
        if let Some(limit) = options.memory.filter(|&l| l < predicted) {
            let (plan, limit) = (gb(predicted), gb(limit));
            return Err(Error::machine(format!(
                "--memory {limit}: training this program in {} takes {plan} by its plan; compile it with smaller train.batch, seq or dim",
                p.variants[variant].precision
            )));
        }
        let threads = match options.threads {
            Some(n @ 1..=1024) => n,
            Some(n) => return Err(Error::usage(format!("--threads {n}: expected 1 to 1024"))),
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        };
        let gradients = ["grad.", "total."].map(|prefix| (prefix, ranges(&p.variants[variant], prefix))).into();
        let launcher = Launcher::new(code.clone(), variant, tier, threads)?;
        Ok(Session { code, variant, tier, launcher, gradients })
    }

    /// The program and its code.
    pub fn code(&self) -> &Arc<Code> {
        &self.code
    }

    /// Index of the variant.
    pub fn variant_index(&self) -> usize {
        self.variant
    }

    /// The variant.
    pub fn variant(&self) -> &Variant {
        &self.code.program.variants[self.variant]
    }

    /// `bf16`, `f32`.
    pub fn precision(&self) -> &str {
        &self.variant().precision
    }

    /// The device kind, as recorded everywhere: `cpu-v3`, ...
    pub fn device_kind(&self) -> &str {
        &self.code.program.tiers[self.tier].name
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.launcher.threads()
    }

    /// Measured arithmetic ceiling of this session's threads.
    pub fn peak(&mut self) -> Option<Peak> {
        let kind = self.device_kind().to_string();
        Peak::measure(self.launcher.pool(), &kind)
    }

    /// The graph of that name. Error: the program has none (the caller asks for something the program does not do).
    pub fn graph(&self, name: &str) -> Result<GraphId> {
        self.find_graph(name).ok_or_else(|| Error::input(format!("this program has no graph `{name}`")))
    }

    /// The graph of that name, if there is one.
    pub fn find_graph(&self, name: &str) -> Option<GraphId> {
        self.variant().graphs.iter().position(|g| g.name == name).map(GraphId)
    }

    /// Runs a graph to its end.
    pub fn run(&mut self, graph: GraphId) {
        self.launcher.run(graph.0);
    }

    /// An input of a graph.
    pub fn input(&self, graph: GraphId, name: &str) -> Result<Buffer> {
        let g = &self.variant().graphs[graph.0];
        let found = g.inputs.iter().find(|b| b.name == name).cloned();
        found.ok_or_else(|| Error::input(format!("graph `{}` has no input `{name}`", g.name)))
    }

    /// An input of a graph, if it has one of that name.
    pub fn find_input(&self, graph: GraphId, name: &str) -> Option<Buffer> {
        self.variant().graphs[graph.0].inputs.iter().find(|b| b.name == name).cloned()
    }

    /// An output of a graph.
    pub fn output(&self, graph: GraphId, name: &str) -> Result<Buffer> {
        let g = &self.variant().graphs[graph.0];
        let missing = || Error::input(format!("graph `{}` has no output `{name}`", g.name));
        self.find_output(graph, name).ok_or_else(missing)
    }

    /// An output of a graph, if it has one of that name.
    pub fn find_output(&self, graph: GraphId, name: &str) -> Option<Buffer> {
        self.variant().graphs[graph.0].outputs.iter().find(|b| b.name == name).cloned()
    }

    /// A buffer of the state (`blocks.0.attn.c_q.weight`, `adamw.m.…`) or gradient segment (`grad.…`).
    pub fn buffer(&self, name: &str) -> Result<Buffer> {
        let v = self.variant();
        let found = v.state.iter().chain(&v.grads).find(|b| b.name == name).cloned();
        found.ok_or_else(|| Error::input(format!("this program has no parameter or state `{name}`")))
    }

    /// The parameters' buffers, in state order.
    pub fn params(&self) -> Vec<Buffer> {
        let v = self.variant();
        v.params.iter().map(|p| v.state[p.buffer as usize].clone()).collect()
    }

    /// Writes i32 elements. Panics on another dtype or length: the plan was checked, so that is a bug of the caller.
    pub fn write_i32(&mut self, buffer: &Buffer, x: &[i32]) {
        assert!(buffer.dtype == DType::I32 && buffer.numel() == x.len(), "{} takes {:?}", buffer.name, buffer.shape);
        self.bytes_mut(buffer).copy_from_slice(bytemuck::cast_slice(x));
    }

    /// Writes f32 values, rounded to the buffer's floating dtype. Error: not a floating buffer, or another length.
    pub fn write_f32(&mut self, buffer: &Buffer, x: &[f32]) -> Result<()> {
        if x.len() != buffer.numel() {
            let (name, shape, n) = (&buffer.name, &buffer.shape, x.len());
            return Err(Error::input(format!("{name} has shape {shape:?}, {n} values were given")));
        }
        let dtype = buffer.dtype;
        let out = self.bytes_mut(buffer);
        match dtype {
            DType::F32 => out.copy_from_slice(bytemuck::cast_slice(x)),
            DType::Bf16 => {
                let out: &mut [bf16] = bytemuck::cast_slice_mut(out);
                out.iter_mut().zip(x).for_each(|(o, &x)| *o = bf16::from_f32(x));
            }
            DType::F16 => {
                let out: &mut [f16] = bytemuck::cast_slice_mut(out);
                out.iter_mut().zip(x).for_each(|(o, &x)| *o = f16::from_f32(x));
            }
            DType::I32 => {
                let out: &mut [i32] = bytemuck::cast_slice_mut(out);
                out.iter_mut().zip(x).for_each(|(o, &x)| *o = x as i32);
            }
            DType::I8 | DType::Bool => return Err(Error::input(format!("{} is not a floating buffer", buffer.name))),
        }
        Ok(())
    }

    /// One f32 number into a scalar input.
    pub fn write_scalar(&mut self, buffer: &Buffer, x: f32) -> Result<()> {
        self.write_f32(buffer, &[x])
    }

    /// The elements as f32 (exact for every dtype but large I32).
    pub fn read_f32(&self, buffer: &Buffer) -> Vec<f32> {
        let bytes = self.bytes(buffer);
        match buffer.dtype {
            DType::F32 => bytemuck::cast_slice(bytes).to_vec(),
            DType::Bf16 => bytemuck::cast_slice::<u8, bf16>(bytes).iter().map(|x| x.to_f32()).collect(),
            DType::F16 => bytemuck::cast_slice::<u8, f16>(bytes).iter().map(|x| x.to_f32()).collect(),
            DType::I32 => bytemuck::cast_slice::<u8, i32>(bytes).iter().map(|&x| x as f32).collect(),
            DType::I8 => bytes.iter().map(|&x| f32::from(x as i8)).collect(),
            DType::Bool => bytes.iter().map(|&x| f32::from(x)).collect(),
        }
    }

    /// The elements of an I8 buffer. Panics on another dtype.
    pub fn read_i8(&self, buffer: &Buffer) -> Vec<i8> {
        assert_eq!(buffer.dtype, DType::I8, "{}", buffer.name);
        bytemuck::cast_slice(self.bytes(buffer)).to_vec()
    }

    /// A buffer's bytes in memory.
    pub fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.launcher.memory().bytes(buffer.place, buffer.bytes())
    }

    /// A buffer's bytes in memory.
    pub fn bytes_mut(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.launcher.memory_mut().bytes_mut(buffer.place, buffer.bytes())
    }

    /// The whole state segment: what a checkpoint is.
    pub fn state(&self) -> &[u8] {
        self.launcher.memory().segment(Segment::State)
    }

    /// The whole state segment.
    pub fn state_mut(&mut self) -> &mut [u8] {
        self.launcher.memory_mut().segment_mut(Segment::State)
    }

    /// Zeroes every `grad.*`.
    pub fn zero_grads(&mut self) {
        self.zero("grad.");
    }

    /// Zeroes every `total.*`.
    pub fn zero_totals(&mut self) {
        self.zero("total.");
    }

    fn zero(&mut self, prefix: &str) {
        if let Some(ranges) = self.gradients.get(prefix) {
            self.launcher.zero(Segment::Grad, ranges);
        }
    }

    /// Time and work by kernel family since [`Session::reset_timings`].
    pub fn families(&self) -> BTreeMap<String, Family> {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        for (kernel, t) in self.variant().kernels.iter().zip(self.launcher.timings()) {
            let f = families.entry(kernel.family.clone()).or_default();
            f.calls += t.calls;
            f.nanos += t.nanos;
            f.flops += t.calls * kernel.flops;
            f.bytes += t.calls * kernel.bytes;
        }
        families.retain(|_, f| f.calls > 0);
        families
    }

    /// Starts the time account anew.
    pub fn reset_timings(&mut self) {
        self.launcher.reset_timings();
    }
}

/// `x` as it comes back after being stored in that dtype.
pub fn through(dtype: DType, x: f32) -> f32 {
    match dtype {
        DType::F32 | DType::I32 | DType::I8 | DType::Bool => x,
        DType::Bf16 => bf16::from_f32(x).to_f32(),
        DType::F16 => f16::from_f32(x).to_f32(),
    }
}

fn gb(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

/// Byte ranges of the gradient buffers with that prefix, touching ones (up to the padding between them) merged.
fn ranges(v: &Variant, prefix: &str) -> Vec<(usize, usize)> {
    let mut all: Vec<_> = (v.grads.iter().filter(|b| b.name.starts_with(prefix)))
        .map(|b| (b.place.offset as usize, b.place.offset as usize + b.bytes()))
        .collect();
    all.sort_unstable();
    let mut merged: Vec<(usize, usize)> = Vec::new();
    for (start, end) in all {
        match merged.last_mut() {
            Some(last) if start < last.1 + 64 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}
