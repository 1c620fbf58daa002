//! The plan of one precision: kernels without duplicates, memory with every offset fixed.
//!
//! *Takes* the graphs of a program, its parameters and states; *gives* a [`Variant`] and the kernels to generate code for; *promises* one layout of the
//! state and gradient segments for all graphs, scratch blocks that overlap only when their uses do not, and the same plan for the same
//! program.

use super::depend::{self, Touch};
use super::memory::{self, ALIGN, Block};
use super::{Error, Memory, Options, Scheduled, Step, checked, lift};
use crate::graph::ir::{BufferId, BufferKind, DType, Graph};
use crate::kernel::gpu::Arch;
use crate::kernel::gpu::tuning::Tuning;
use crate::kernel::{Access, Kernel, Launch, LaunchArg, Target};
use golf_runtime::plan::{self, Buffer, Call, GraphPlan, Init, Param, Place, Rows, Segment, Variant};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Memory of a running executable besides segments and thread scratch: code, plan, heap and stacks of the runtime, bytes. An estimate: with it the
/// prediction for models/vrl11.golf at `train.batch=4096` is 890 MB where VmHWM said 901 MB (`run bench`, bf16, 2 threads).
pub const OVERHEAD: u64 = 16 << 20;

/// A parameter or a state of the program, in layout order.
#[derive(Clone, Debug, PartialEq)]
pub struct StateBuffer {
    /// Name.
    pub name: String,
    /// Storage dtype at this precision.
    pub dtype: DType,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Initial value.
    pub init: Init,
    /// For parameters: group tag, and whether it is declared unused.
    pub param: Option<(String, bool)>,
}

/// Scratch up to which a GPU graph's values never share memory, bytes, so that no step has to wait for memory to become free.
const APART: u64 = 4 << 30;

/// A plan with what code generation and `--explain` need.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What it is for.
    pub target: Target,
    /// The plan.
    pub variant: Variant,
    /// Distinct kernels to generate code for (all but host routines), as [`Kernel::code`] gives them.
    pub kernels: Vec<Kernel>,
    /// For each entry of [`Variant::kernels`]: the kernel whose code it is, and the entry point.
    pub entries: Vec<(usize, &'static str)>,
    /// Graphs as kernels, in plan order.
    pub graphs: Vec<Scheduled>,
    /// For each graph and step: the kernel whose code it runs.
    pub steps: Vec<Vec<usize>>,
}

impl Planned {
    /// Every distinct description that the graphs launch, in order of first use. Several may run the same code, see [`Planned::kernels`].
    pub fn launched(&self) -> Vec<&Kernel> {
        let mut seen = std::collections::BTreeSet::new();
        let all = self.graphs.iter().flat_map(|g| &g.steps).map(|s| &s.kernel);
        all.filter(|k| seen.insert(k.text())).collect()
    }
}

/// Makes the plan of a precision on a target, whose graphs take these rows at once. `states`: parameters first, then optimiser states and averages.
pub fn plan(
    (precision, target, rows): (&str, Target, Rows),
    graphs: &[Graph],
    states: &[StateBuffer],
    tuning: &Tuning,
) -> Result<Planned, Error> {
    let mut scheduled = schedule_all(graphs, target)?;
    if target == Target::Gpu(Arch::Sm90a) {
        for s in &mut scheduled {
            let kernels = s.steps.iter_mut().map(|s| &mut s.kernel);
            tuning.apply(kernels).map_err(|why| Error::new(&s.graph.name, format!("tuning table, {why}")))?;
        }
    }
    let mut steps: Vec<&mut Step> = scheduled.iter_mut().flat_map(|s| s.steps.iter_mut()).collect();
    lift::lift(&mut steps);
    let mut p = Planner::new(precision, target, rows, states);
    for s in &scheduled {
        p.buffers(s)?;
    }
    p.variant.grad_bytes = p.variant.grad_bytes.max(p.tap_bytes);
    let mut all = Vec::new();
    for s in &scheduled {
        all.push(p.graph(s)?);
    }
    let Planner { mut variant, kernels, entries, constants, .. } = p;
    variant.constants = constants.bytes;
    Ok(Planned { target, variant, kernels, entries, graphs: scheduled, steps: all })
}

/// Schedules graphs on all cores; the result does not depend on how many there are.
fn schedule_all(graphs: &[Graph], target: Target) -> Result<Vec<Scheduled>, Error> {
    let next = AtomicUsize::new(0);
    let taken = super::Taken::default();
    let options = Options { target, ..Options::default() };
    let done: Vec<OnceLock<Result<Scheduled, Error>>> = graphs.iter().map(|_| OnceLock::new()).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(graphs.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(graph) = graphs.get(i) else { break };
                    let _ = done[i].set(checked(graph, &options, &taken));
                }
            });
        }
    });
    done.into_iter()
        .zip(graphs)
        .map(|(r, g)| r.into_inner().unwrap_or_else(|| super::schedule_with(g, &options)))
        .collect()
}

/// Peak resident memory of a process that trains with this plan, bytes.
pub fn predicted_rss(v: &Variant, threads: u64) -> u64 {
    let scratch = v.graphs.iter().map(|g| g.scratch).max().unwrap_or(0);
    let private = v.kernels.iter().map(|k| k.scratch).max().unwrap_or(0);
    v.state_bytes + v.grad_bytes + scratch + 2 * v.constants.len() as u64 + threads * private + OVERHEAD
}

/// The constant segment under construction.
#[derive(Default)]
struct Constants {
    bytes: Vec<u8>,
    known: BTreeMap<Vec<u8>, u64>,
}

impl Constants {
    /// Offset of some content.
    fn add(&mut self, content: Vec<u8>) -> u64 {
        if let Some(at) = self.known.get(&content) {
            return *at;
        }
        let at = self.bytes.len().next_multiple_of(ALIGN as usize);
        self.bytes.resize(at, 0);
        self.bytes.extend_from_slice(&content);
        self.known.insert(content, at as u64);
        at as u64
    }
}

/// A kernel description in the plan.
struct Described {
    /// Its first entry.
    first: u32,
    /// The kernel whose code it runs.
    owner: usize,
    launches: Vec<Launch>,
    temps: Vec<u64>,
}

struct Planner {
    target: Target,
    variant: Variant,
    kernels: Vec<Kernel>,
    /// Code by text.
    codes: BTreeMap<String, usize>,
    entries: Vec<(usize, &'static str)>,
    /// Descriptions by text.
    known: BTreeMap<String, usize>,
    described: Vec<Described>,
    /// State and gradient buffers by name.
    shared: BTreeMap<String, Buffer>,
    /// End of what calibration fills. It lies where gradients lie: the two are never needed at the same time.
    tap_bytes: u64,
    constants: Constants,
}

impl Planner {
    fn new(precision: &str, target: Target, rows: Rows, states: &[StateBuffer]) -> Planner {
        let mut p = Planner {
            target,
            variant: Variant {
                precision: precision.to_string(),
                device: target.device().to_string(),
                rows,
                modules: Vec::new(),
                state: Vec::new(),
                state_init: Vec::new(),
                state_bytes: 0,
                grads: Vec::new(),
                grad_bytes: 0,
                constants: Vec::new(),
                params: Vec::new(),
                kernels: Vec::new(),
                graphs: Vec::new(),
            },
            kernels: Vec::new(),
            codes: BTreeMap::new(),
            entries: Vec::new(),
            known: BTreeMap::new(),
            described: Vec::new(),
            shared: BTreeMap::new(),
            tap_bytes: 0,
            constants: Constants::default(),
        };
        for s in states {
            let index = p.variant.state.len() as u32;
            let place = Place { segment: Segment::State, offset: p.variant.state_bytes };
            let buffer = Buffer { name: s.name.clone(), dtype: s.dtype, shape: s.shape.clone(), place };
            p.variant.state_bytes = (place.offset + buffer.bytes() as u64).next_multiple_of(ALIGN);
            p.shared.insert(s.name.clone(), buffer.clone());
            p.variant.state.push(buffer);
            match &s.param {
                Some((group, unused)) => p.variant.params.push(Param {
                    buffer: index,
                    init: s.init.clone(),
                    group: group.clone(),
                    unused: *unused,
                }),
                None => p.variant.state_init.push((index, s.init.clone())),
            }
        }
        p
    }

    /// Finds or places the buffers that graphs share.
    fn buffers(&mut self, s: &Scheduled) -> Result<(), Error> {
        let g = &s.graph;
        for b in &g.buffers {
            let shape: Vec<_> = b.ty.axes.iter().map(|a| g.axes[a.0 as usize].size).collect();
            let dtype = b.ty.dtype;
            match b.kind {
                BufferKind::Input | BufferKind::Output | BufferKind::Const => continue,
                BufferKind::Param | BufferKind::State | BufferKind::Grad => {}
            }
            if let Some(known) = self.shared.get(&b.name) {
                if known.dtype != dtype || known.shape != shape {
                    let why = format!(
                        "the buffer `{}` is {:?} {:?} here and {:?} {:?} elsewhere",
                        b.name, dtype, shape, known.dtype, known.shape
                    );
                    return Err(Error::new(&g.name, why));
                }
                continue;
            }
            if b.kind != BufferKind::Grad {
                return Err(Error::new(&g.name, format!("the buffer `{}` is no declared state", b.name)));
            }
            let end = if b.name.starts_with(plan::TAP) { &mut self.tap_bytes } else { &mut self.variant.grad_bytes };
            let place = Place { segment: Segment::Grad, offset: *end };
            let buffer = Buffer { name: b.name.clone(), dtype, shape, place };
            *end = (place.offset + buffer.bytes() as u64).next_multiple_of(ALIGN);
            self.shared.insert(b.name.clone(), buffer.clone());
            self.variant.grads.push(buffer);
        }
        Ok(())
    }

    /// Number of a description; new ones get entries in the plan, and code if they share none.
    fn describe(&mut self, k: &Kernel) -> usize {
        let text = k.text();
        if let Some(known) = self.known.get(&text) {
            return *known;
        }
        self.known.insert(text, self.described.len());
        let code = k.code();
        let next = self.kernels.len();
        let owner = *self.codes.entry(code.text()).or_insert(next);
        let symbol = code.symbol();
        if owner == next {
            self.kernels.push(code);
        }
        let launches = self.target.launches(k);
        let first = self.entries.len() as u32;
        for launch in &launches {
            self.entries.push((owner, launch.entry));
            let builtin = self.target.builtin(k);
            let name = if builtin.is_some() { symbol.clone() } else { format!("{symbol}_{}", launch.entry) };
            let family = if launch.entry.starts_with("pack") { "pack" } else { k.family() };
            self.variant.kernels.push(plan::Kernel {
                symbol: name,
                family: family.to_string(),
                flops: launch.flops,
                bytes: launch.bytes,
                scratch: launch.scratch.next_multiple_of(ALIGN),
                builtin,
                product: self.target.product(k),
                gpu: launch.gpu.clone().map(|g| plan::Grid { module: owner as u32, ..g }),
            });
        }
        self.described.push(Described { first, owner, launches, temps: self.target.temps(k) });
        self.described.len() - 1
    }

    /// Places the scratch of a graph and writes its calls. Gives the kernel of each step.
    fn graph(&mut self, s: &Scheduled) -> Result<Vec<usize>, Error> {
        let used: Vec<usize> = s.steps.iter().map(|step| self.describe(&step.kernel)).collect();
        let temps = |i: usize| &self.described[used[i]].temps[..];
        let spans = Spans::of(s, &temps);
        let (offsets, total) = match self.target {
            Target::Cpu => memory::place(&spans.blocks),
            Target::Gpu(_) => memory::place_apart(&spans.blocks, APART),
        };
        let scratch = |i: usize| Place { segment: Segment::Scratch, offset: offsets[i] };
        let mut calls = Vec::new();
        let (mut touches, mut bounds) = (Vec::new(), Vec::new());
        for (i, step) in s.steps.iter().enumerate() {
            let mut places = Vec::new();
            let mut touched = Vec::new();
            for (arg, access) in step.args.iter().zip(step.kernel.accesses()) {
                let base = match arg.memory {
                    Memory::Value(v) => scratch(spans.values[v as usize]),
                    Memory::Constant(bits) => self.constant(bits.to_le_bytes().to_vec()),
                    Memory::Buffer(b) => match spans.buffers.get(&b) {
                        Some(block) => scratch(*block),
                        None => self.buffer(&s.graph, b)?,
                    },
                };
                places.push(Place { offset: base.offset + arg.offset, ..base });
                touched.push((base, self.bytes_of(s, arg.memory), access != Access::Read));
            }
            let temporary = |t: &usize| (scratch(*t), spans.blocks[*t].bytes, true);
            touched.extend(spans.temps[i].iter().map(temporary));
            touches.push(
                touched
                    .into_iter()
                    .map(|(p, bytes, write)| Touch {
                        segment: p.segment,
                        start: p.offset,
                        end: p.offset + bytes,
                        write,
                    })
                    .collect(),
            );
            bounds.push(calls.len() as u32);
            for (j, launch) in self.described[used[i]].launches.iter().enumerate() {
                let args = launch
                    .args
                    .iter()
                    .map(|a| match a {
                        LaunchArg::Arg(n) => places[*n],
                        LaunchArg::Temp(n) => scratch(spans.temps[i][*n]),
                    })
                    .collect();
                let kernel = self.described[used[i]].first + j as u32;
                // The launches of a kernel run one after the other.
                let after = if j == 0 { Vec::new() } else { vec![calls.len() as u32 - 1] };
                calls.push(Call { kernel, tasks: launch.tasks, args, after });
            }
        }
        if self.target != Target::Cpu {
            bounds.push(calls.len() as u32);
            for (i, before) in depend::after(&touches).into_iter().enumerate() {
                // The last launch of each step that this one waits for.
                calls[bounds[i] as usize].after = before.into_iter().map(|j| bounds[j + 1] - 1).collect();
            }
        } else {
            calls.iter_mut().for_each(|c| c.after.clear());
        }
        let listed = |kind: BufferKind| -> Vec<Buffer> {
            let mine = s.graph.buffers.iter().enumerate().filter(|(_, b)| b.kind == kind);
            mine.map(|(i, b)| Buffer {
                name: b.name.clone(),
                dtype: b.ty.dtype,
                shape: b.ty.axes.iter().map(|a| s.graph.axes[a.0 as usize].size).collect(),
                place: scratch(spans.buffers[&BufferId(i as u32)]),
            })
            .collect()
        };
        let (inputs, outputs) = (listed(BufferKind::Input), listed(BufferKind::Output));
        self.variant.graphs.push(GraphPlan { name: s.graph.name.clone(), calls, inputs, outputs, scratch: total });
        Ok(used.iter().map(|i| self.described[*i].owner).collect())
    }

    /// Size of what an argument lies in.
    fn bytes_of(&self, s: &Scheduled, memory: Memory) -> u64 {
        match memory {
            Memory::Value(v) => (s.values[v as usize].numel * s.values[v as usize].dtype.bytes()) as u64,
            Memory::Constant(_) => 4,
            Memory::Buffer(b) => {
                let ty = &s.graph.buffers[b.0 as usize].ty;
                let numel: usize = ty.axes.iter().map(|a| s.graph.axes[a.0 as usize].size).product();
                (numel * ty.dtype.bytes()) as u64
            }
        }
    }

    fn constant(&mut self, content: Vec<u8>) -> Place {
        Place { segment: Segment::Const, offset: self.constants.add(content) }
    }

    /// A buffer that is not in scratch.
    fn buffer(&mut self, g: &Graph, id: BufferId) -> Result<Place, Error> {
        let b = &g.buffers[id.0 as usize];
        if let Some(shared) = self.shared.get(&b.name) {
            return Ok(shared.place);
        }
        match g.constants.get(&id) {
            Some(values) => Ok(self.constant(encode(b.ty.dtype, values))),
            None => Err(Error::new(&g.name, format!("the table `{}` has no content", b.name))),
        }
    }
}

/// Table content in memory.
fn encode(dtype: DType, values: &[f64]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * dtype.bytes());
    for x in values {
        let x = crate::graph::scalar::cast(*x, dtype);
        match dtype {
            DType::F32 => out.extend((x as f32).to_le_bytes()),
            DType::I32 => out.extend((x as i32).to_le_bytes()),
            DType::Bf16 => out.extend(half::bf16::from_f64(x).to_le_bytes()),
            DType::F16 => out.extend(half::f16::from_f64(x).to_le_bytes()),
            DType::I8 => out.extend((x as i8).to_le_bytes()),
            DType::Bool => out.push(u8::from(x != 0.0)),
        }
    }
    out
}

/// Scratch blocks of a graph and what they are for.
struct Spans {
    blocks: Vec<Block>,
    /// Block of each scratch value.
    values: Vec<usize>,
    /// Block of each input and output.
    buffers: BTreeMap<BufferId, usize>,
    /// Blocks of each step's temporaries.
    temps: Vec<Vec<usize>>,
}

impl Spans {
    fn of<'t>(s: &Scheduled, temps: &dyn Fn(usize) -> &'t [u64]) -> Spans {
        let last = s.steps.len().saturating_sub(1);
        let mut out = Spans { blocks: Vec::new(), values: Vec::new(), buffers: BTreeMap::new(), temps: Vec::new() };
        for v in &s.values {
            out.values.push(out.blocks.len());
            let bytes = (v.numel * v.dtype.bytes()) as u64;
            out.blocks.push(Block { bytes, first: usize::MAX, last: 0 });
        }
        for (i, b) in s.graph.buffers.iter().enumerate() {
            // The host writes inputs before the first launch and reads outputs after the last.
            let (first, last) = match b.kind {
                BufferKind::Input => (0, 0),
                BufferKind::Output => (usize::MAX, last),
                BufferKind::Param | BufferKind::Grad | BufferKind::State | BufferKind::Const => continue,
            };
            let numel: usize = b.ty.axes.iter().map(|a| s.graph.axes[a.0 as usize].size).product();
            out.buffers.insert(BufferId(i as u32), out.blocks.len());
            out.blocks.push(Block { bytes: (numel * b.ty.dtype.bytes()) as u64, first, last });
        }
        for (i, step) in s.steps.iter().enumerate() {
            for (arg, access) in step.args.iter().zip(step.kernel.accesses()) {
                let block = match arg.memory {
                    Memory::Value(v) => Some(out.values[v as usize]),
                    Memory::Buffer(b) => out.buffers.get(&b).copied(),
                    Memory::Constant(_) => None,
                };
                if let Some(block) = block.map(|b| &mut out.blocks[b]) {
                    debug_assert!(
                        block.first <= i || access != Access::Read,
                        "step {i} reads memory before it is written"
                    );
                    block.first = block.first.min(i);
                    block.last = block.last.max(i);
                }
            }
            let temps = temps(i);
            out.temps.push((0..temps.len()).map(|j| out.blocks.len() + j).collect());
            out.blocks.extend(temps.iter().map(|bytes| Block { bytes: *bytes, first: i, last: i }));
        }
        for block in &mut out.blocks {
            // Never used: an output nobody writes.
            block.first = block.first.min(block.last);
        }
        out
    }
}
