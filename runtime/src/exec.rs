//! One program, one precision, one device: memory and the graphs that run in it.
//!
//! *Takes* [`Code`] and [`Options`]; *gives* a [`Session`]: run a graph by name, write its inputs, read its outputs and any state;
//! *promises* checked shapes and dtypes at every crossing between host and program, and results that do not depend on the
//! number of threads.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use half::{bf16, f16};

use crate::device::cuda::{Gpu, GpuLauncher};
use crate::device::{Code, HOPPER, Launcher, Peak, Timing, tier};
use crate::error::{Error, Result};
use crate::plan::{Buffer, DType, Kernel, Place, Program, Segment, TAP, Variant};

/// Where a program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// On a GPU if the program holds code for one and a fitting one is there, else on the CPU.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On the GPU of this number, or not at all.
    Cuda(u32),
}

/// What the command line says about the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// CPU or GPU.
    pub device: Device,
    /// `bf16` or `f32`; the program's own compute precision when absent.
    pub precision: Option<String>,
    /// CPU kind; the best one when absent.
    pub isa: Option<String>,
    /// Threads; as many as the process may use when absent.
    pub threads: Option<usize>,
    /// Bytes the plan's figure may not exceed.
    pub memory: Option<u64>,
}

/// First byte of the state segment.
const STATE: Place = Place { segment: Segment::State, offset: 0 };

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

/// Memory and code, by device.
enum Backend {
    Cpu(Box<Launcher>),
    Gpu(Box<GpuLauncher>),
}

/// A variant of the program, loaded and ready.
pub struct Session {
    code: Arc<Code>,
    variant: usize,
    /// Device kind, as recorded.
    kind: String,
    threads: usize,
    backend: Backend,
    /// Ranges of the gradient segment by prefix (`grad.`, `total.`, `tap.`), merged where they touch.
    gradients: BTreeMap<&'static str, Vec<(usize, usize)>>,
}

/// Kinds of GPU that the program holds code for.
const GPU: &str = "sm_";

/// The variants for a precision and a kind of device: `cpu`, or GPUs (any `sm_*`), the best for a device that runs several first.
fn variants_for(p: &Program, precision: &str, gpu: bool) -> Vec<usize> {
    let fits = |&i: &usize| p.variants[i].precision == precision && p.variants[i].device.starts_with(GPU) == gpu;
    (0..p.variants.len()).filter(fits).collect()
}

/// The GPU to use, if one is to be used. Errors: asked for by name and not to be had.
fn choose_gpu(p: &Program, precision: &str, options: &Options) -> Result<Option<(usize, Gpu)>> {
    let variants = variants_for(p, precision, true);
    let open = |ordinal: u32| {
        let gpu = Gpu::open(ordinal)?;
        let kinds: Vec<&str> = variants.iter().map(|&v| &p.variants[v].device[..]).collect();
        let variant = variants[gpu.choose(&kinds)?];
        Ok::<_, Error>((variant, gpu))
    };
    match (options.device, variants.is_empty()) {
        (Device::Cpu, _) | (Device::Auto, true) => Ok(None),
        // Naming a CPU kind asks for the CPU.
        (Device::Auto, false) if options.isa.is_some() => Ok(None),
        (Device::Auto, false) => match open(0) {
            Ok(found) => Ok(Some(found)),
            Err(why) => {
                // A machine without a driver has no GPU to speak of; the header says what runs.
                if Gpu::driver_installed() {
                    crate::report::output::warn(&format!("on the CPU: {why}"));
                }
                Ok(None)
            }
        },
        (Device::Cuda(n), true) => {
            let other = p.variants.iter().find(|v| v.device.starts_with(GPU));
            Err(Error::machine(match other {
                None => format!(
                    "--device cuda:{n}: this program holds no code for a GPU (compile it with --target cpu,sm_90a,sm_80); --device cpu runs it here"
                ),
                Some(v) => format!(
                    "--device cuda:{n}: this program holds GPU code in {} only, not in {precision}",
                    v.precision
                ),
            }))
        }
        (Device::Cuda(_), false) if options.isa.is_some() => {
            Err(Error::usage("--isa names a CPU kind, --device a GPU: one of them"))
        }
        (Device::Cuda(n), false) => open(n).map(Some),
    }
}

impl Session {
    /// Allocates the segments (zeroed; parameters are not initialised). Errors: usage (unknown precision or device kind, no
    /// threads); machine (CPU too old, no fitting GPU where one was asked for, not enough memory or less allowed than the plan says).
    pub fn new(code: Arc<Code>, options: &Options) -> Result<Session> {
        let p = &code.program;
        let precision = options.precision.clone().unwrap_or_else(|| p.variants[0].precision.clone());
        let Some(&on_cpu) = variants_for(p, &precision, false).first() else {
            let have: Vec<_> =
                p.variants.iter().filter(|v| !v.device.starts_with(GPU)).map(|v| v.precision.as_str()).collect();
            return Err(Error::usage(format!(
                "--precision {precision}: this program was compiled for {}",
                have.join(", ")
            )));
        };
        let gpu = choose_gpu(p, &precision, options)?;
        let variant = gpu.as_ref().map_or(on_cpu, |g| g.0);
        let tier = if gpu.is_none() { Some(tier::choose(&p.tiers, options.isa.as_deref())?) } else { None };
        let predicted = p.predicted_rss[variant];
        if let Some(limit) = options.memory.filter(|&l| l < predicted) {
            let (plan, limit) = (gb(predicted), gb(limit));
            return Err(Error::machine(format!(
                "--memory {limit}: training this program in {precision} takes {plan} by its plan; compile it with smaller train.batch, seq or dim",
            )));
        }
        let threads = match options.threads {
            Some(n @ 1..=1024) => n,
            Some(n) => return Err(Error::usage(format!("--threads {n}: expected 1 to 1024"))),
            None => std::thread::available_parallelism().map_or(1, |n| n.get()),
        };
        let gradients = ["grad.", "total.", TAP].map(|prefix| (prefix, ranges(&p.variants[variant], prefix))).into();
        let (kind, backend) = match (gpu, tier) {
            (Some((_, gpu)), _) => {
                let launcher = GpuLauncher::new(code.clone(), variant, gpu)?;
                (p.variants[variant].device.clone(), Backend::Gpu(Box::new(launcher)))
            }
            (None, tier) => {
                let tier = tier.unwrap_or_default();
                (
                    p.tiers[tier].name.clone(),
                    Backend::Cpu(Box::new(Launcher::new(code.clone(), variant, tier, threads)?)),
                )
            }
        };
        Ok(Session { code, variant, kind, threads, backend, gradients })
    }

    /// A session of the same program and precision on the CPU with the same parameters. `None`: this one is on the CPU.
    pub fn on_cpu(&self) -> Result<Option<Session>> {
        if let Backend::Cpu(_) = self.backend {
            return Ok(None);
        }
        let options = Options {
            device: Device::Cpu,
            precision: Some(self.precision().into()),
            threads: Some(self.threads),
            ..Options::default()
        };
        let mut cpu = Session::new(self.code.clone(), &options)?;
        for b in self.params() {
            let to = cpu.buffer(&b.name)?;
            cpu.write_f32(&to, &self.read_f32(&b)?)?;
        }
        Ok(Some(cpu))
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

    /// The device kind, as recorded everywhere: `cpu-v3`, `sm_90a`, ...
    pub fn device_kind(&self) -> &str {
        &self.kind
    }

    /// The hardware in words: CPU model, or GPU and driver.
    pub fn machine(&self) -> String {
        match &self.backend {
            Backend::Cpu(_) => crate::run::machine(),
            Backend::Gpu(l) => l.gpu().describe(),
        }
    }

    /// Bytes held on the GPU; `None` on the CPU.
    pub fn device_memory(&self) -> Option<u64> {
        match &self.backend {
            Backend::Cpu(_) => None,
            Backend::Gpu(l) => Some(l.memory()),
        }
    }

    /// CPU threads in use.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Arithmetic ceiling: of this session's threads, measured; of Hopper by its data sheet, of other GPUs not known.
    pub fn peak(&mut self) -> Option<Peak> {
        match &mut self.backend {
            Backend::Cpu(l) => Peak::measure(l.pool(), &self.kind),
            Backend::Gpu(_) => (self.kind == "sm_90a").then_some(HOPPER),
        }
    }

    /// The graph of that name. Error: the program has none (the caller asks for something the program does not do).
    pub fn graph(&self, name: &str) -> Result<GraphId> {
        self.find_graph(name).ok_or_else(|| Error::input(format!("this program has no graph `{name}`")))
    }

    /// The graph of that name, if there is one.
    pub fn find_graph(&self, name: &str) -> Option<GraphId> {
        self.variant().graphs.iter().position(|g| g.name == name).map(GraphId)
    }

    /// Runs a graph. On a GPU it is started, in order with all that is asked of the session: a read waits for it, and may report its failure.
    pub fn run(&mut self, graph: GraphId) -> Result<()> {
        match &mut self.backend {
            Backend::Cpu(l) => l.run(graph.0),
            Backend::Gpu(l) => return l.run(graph.0),
        }
        Ok(())
    }

    /// Waits for everything started.
    pub fn finish(&self) -> Result<()> {
        match &self.backend {
            Backend::Cpu(_) => Ok(()),
            Backend::Gpu(l) => l.finish(),
        }
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
    pub fn write_i32(&mut self, buffer: &Buffer, x: &[i32]) -> Result<()> {
        assert!(buffer.dtype == DType::I32 && buffer.numel() == x.len(), "{} takes {:?}", buffer.name, buffer.shape);
        self.write_bytes(buffer, bytemuck::cast_slice(x))
    }

    /// Writes f32 values, rounded to the buffer's floating dtype. Error: not a floating buffer, or another length.
    pub fn write_f32(&mut self, buffer: &Buffer, x: &[f32]) -> Result<()> {
        if x.len() != buffer.numel() {
            let (name, shape, n) = (&buffer.name, &buffer.shape, x.len());
            return Err(Error::input(format!("{name} has shape {shape:?}, {n} values were given")));
        }
        match buffer.dtype {
            DType::F32 => self.write_bytes(buffer, bytemuck::cast_slice(x)),
            DType::Bf16 => {
                let x: Vec<bf16> = x.iter().map(|&x| bf16::from_f32(x)).collect();
                self.write_bytes(buffer, bytemuck::cast_slice(&x))
            }
            DType::F16 => {
                let x: Vec<f16> = x.iter().map(|&x| f16::from_f32(x)).collect();
                self.write_bytes(buffer, bytemuck::cast_slice(&x))
            }
            DType::I32 => {
                let x: Vec<i32> = x.iter().map(|&x| x as i32).collect();
                self.write_bytes(buffer, bytemuck::cast_slice(&x))
            }
            DType::I8 | DType::Bool => Err(Error::input(format!("{} is not a floating buffer", buffer.name))),
        }
    }

    /// One f32 number into a scalar input.
    pub fn write_scalar(&mut self, buffer: &Buffer, x: f32) -> Result<()> {
        self.write_f32(buffer, &[x])
    }

    /// The elements as f32 (exact for every dtype but large I32).
    pub fn read_f32(&self, buffer: &Buffer) -> Result<Vec<f32>> {
        let bytes = self.read_bytes(buffer)?;
        // A copy from a device is a byte vector of any alignment.
        fn all<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> impl Iterator<Item = T> + '_ {
            bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned)
        }
        Ok(match buffer.dtype {
            DType::F32 => all::<f32>(&bytes).collect(),
            DType::Bf16 => all::<bf16>(&bytes).map(|x| x.to_f32()).collect(),
            DType::F16 => all::<f16>(&bytes).map(|x| x.to_f32()).collect(),
            DType::I32 => all::<i32>(&bytes).map(|x| x as f32).collect(),
            DType::I8 => bytes.iter().map(|&x| f32::from(x as i8)).collect(),
            DType::Bool => bytes.iter().map(|&x| f32::from(x)).collect(),
        })
    }

    /// The elements of an I8 buffer. Panics on another dtype.
    pub fn read_i8(&self, buffer: &Buffer) -> Result<Vec<i8>> {
        assert_eq!(buffer.dtype, DType::I8, "{}", buffer.name);
        Ok(bytemuck::cast_slice(&self.read_bytes(buffer)?).to_vec())
    }

    /// A buffer's bytes.
    pub fn read_bytes(&self, buffer: &Buffer) -> Result<Cow<'_, [u8]>> {
        match &self.backend {
            Backend::Cpu(l) => Ok(Cow::Borrowed(l.memory().bytes(buffer.place, buffer.bytes()))),
            Backend::Gpu(l) => Ok(Cow::Owned(l.read(buffer.place, buffer.bytes())?)),
        }
    }

    /// Replaces a buffer's bytes. Panics on another length.
    pub fn write_bytes(&mut self, buffer: &Buffer, bytes: &[u8]) -> Result<()> {
        assert_eq!(buffer.bytes(), bytes.len(), "{}", buffer.name);
        match &mut self.backend {
            Backend::Cpu(l) => l.memory_mut().bytes_mut(buffer.place, bytes.len()).copy_from_slice(bytes),
            Backend::Gpu(l) => return l.write(buffer.place, bytes),
        }
        Ok(())
    }

    /// The whole state segment: what a checkpoint is.
    pub fn state(&self) -> Result<Cow<'_, [u8]>> {
        match &self.backend {
            Backend::Cpu(l) => Ok(Cow::Borrowed(l.memory().segment(Segment::State))),
            Backend::Gpu(l) => Ok(Cow::Owned(l.read(STATE, self.variant().state_bytes as usize)?)),
        }
    }

    /// Replaces the whole state segment by what `fill` puts into the bytes it gets, unless that fails.
    pub fn fill_state<T>(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<T>) -> Result<T> {
        let bytes = self.variant().state_bytes as usize;
        match &mut self.backend {
            Backend::Cpu(l) => fill(l.memory_mut().segment_mut(Segment::State)),
            Backend::Gpu(l) => {
                let mut state = vec![0; bytes];
                let out = fill(&mut state)?;
                l.write(STATE, &state)?;
                Ok(out)
            }
        }
    }

    /// Zeroes every `grad.*`.
    pub fn zero_grads(&mut self) -> Result<()> {
        self.zero("grad.")
    }

    /// Zeroes every `total.*`.
    pub fn zero_totals(&mut self) -> Result<()> {
        self.zero("total.")
    }

    /// Zeroes every `tap.*`.
    pub fn zero_taps(&mut self) -> Result<()> {
        self.zero(TAP)
    }

    fn zero(&mut self, prefix: &str) -> Result<()> {
        let Some(ranges) = self.gradients.get(prefix) else { return Ok(()) };
        match &mut self.backend {
            Backend::Cpu(l) => l.zero(Segment::Grad, ranges),
            Backend::Gpu(l) => return l.zero(Segment::Grad, ranges),
        }
        Ok(())
    }

    /// Whether kernel times are taken where that changes how graphs run: on a GPU, calls are then launched one by one between events.
    /// On the CPU they are always taken. Gives whether such a mode exists.
    pub fn time_calls(&mut self, on: bool) -> bool {
        match &mut self.backend {
            Backend::Cpu(_) => false,
            Backend::Gpu(l) => {
                l.time_calls(on);
                true
            }
        }
    }

    fn timings(&self) -> &[Timing] {
        match &self.backend {
            Backend::Cpu(l) => l.timings(),
            Backend::Gpu(l) => l.timings(),
        }
    }

    /// Time and work since [`Session::reset_timings`], kernels of one `key` together.
    pub fn families(&self, key: impl Fn(&Kernel) -> String) -> BTreeMap<String, Family> {
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        for (kernel, t) in self.variant().kernels.iter().zip(self.timings()) {
            let f = families.entry(key(kernel)).or_default();
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
        match &mut self.backend {
            Backend::Cpu(l) => l.reset_timings(),
            Backend::Gpu(l) => l.reset_timings(),
        }
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
