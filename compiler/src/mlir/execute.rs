//! Runs a scheduled graph in this process with generated code.
//!
//! *Takes* a [`Scheduled`] graph and the contents of its buffers; *gives* the contents afterwards; *promises* the memory of
//! [`reference::run`](crate::schedule::reference::run), which runs the same descriptions without generated code, so that the two can be compared.

use std::collections::BTreeMap;
use std::time::Duration;

use super::jit::{Loaded, Memory};
use super::object::{self, Options};
use super::tier::Tier;
use crate::graph::interpret::{Contents, Tensor};
use crate::graph::ir::{AxisId, BufferId, BufferKind};
use crate::kernel::Kernel;
use crate::kernel::quantile::Quantile;
use crate::schedule::reference::Heap;
use crate::schedule::{self, Scheduled};

/// Time of one step of a schedule, by entry.
pub type StepTimes = Vec<(&'static str, Duration)>;

/// A scheduled graph compiled for a tier.
pub struct Executable<'s> {
    scheduled: &'s Scheduled,
    tier: Tier,
    code: Loaded,
}

impl<'s> Executable<'s> {
    /// Compiles every kernel of the schedule but those that the runtime does.
    pub fn new(scheduled: &'s Scheduled, tier: Tier, options: &Options) -> Result<Self, String> {
        let kernels: Vec<Kernel> = scheduled.steps.iter().map(|s| s.kernel.clone()).collect();
        let (objects, _) = object::compile(&object::jobs(&kernels, &[tier]), options)?;
        Ok(Executable { scheduled, tier, code: Loaded::link(&objects)? })
    }

    /// Runs it. Gives every buffer afterwards, and the time of every step. Buffers not given: constants hold their values, gradients start at
    /// zero, all others are undefined.
    pub fn run(&self, inputs: &Contents) -> Result<(Contents, Vec<StepTimes>), String> {
        let s = self.scheduled;
        let g = &s.graph;
        let dims = |axes: &[AxisId]| -> Vec<usize> { axes.iter().map(|a| g.axes[a.0 as usize].size).collect() };
        let mut heap = Heap::default();
        let mut number = BTreeMap::new();
        for (i, buffer) in g.buffers.iter().enumerate() {
            let id = BufferId(i as u32);
            let numel: usize = dims(&buffer.ty.axes).iter().product();
            let p = heap.add(numel * buffer.ty.dtype.bytes());
            let given = inputs.get(&buffer.name).map(|t| &t.data).or(g.constants.get(&id));
            for element in 0..numel {
                match given {
                    Some(data) => heap.store(p, buffer.ty.dtype, element as i64, data[element])?,
                    None if buffer.kind == BufferKind::Grad => heap.store(p, buffer.ty.dtype, element as i64, 0.0)?,
                    None => {}
                }
            }
            number.insert(schedule::Memory::Buffer(id), p.segment);
        }
        for (i, value) in s.values.iter().enumerate() {
            let p = heap.add(value.numel * value.dtype.bytes());
            number.insert(schedule::Memory::Value(i as u32), p.segment);
        }
        let mut memory = Memory::of(&heap.segments);
        let mut times = Vec::with_capacity(s.steps.len());
        for (i, step) in s.steps.iter().enumerate() {
            let args: Vec<(usize, u64)> = step.args.iter().map(|a| (number[&a.memory], a.offset)).collect();
            let mut time = StepTimes::new();
            if let Kernel::Quantile(k) = &step.kernel {
                quantile(k, &mut memory, &args);
                times.push(time);
                continue;
            }
            let mut done = |entry, t| time.push((entry, t));
            self.code
                .step(&step.kernel, self.tier.of_kernel(&step.kernel), &mut memory, &args, &mut done)
                .map_err(|why| format!("step {i}: {why}\n{}", step.kernel.text()))?;
            times.push(time);
        }
        heap.segments = memory.buffers.iter().map(|b| b.bytes().to_vec()).collect();
        let mut out = Contents::new();
        for (i, buffer) in g.buffers.iter().enumerate() {
            let segment = number[&schedule::Memory::Buffer(BufferId(i as u32))];
            let p = crate::schedule::reference::Pointer { segment, offset: 0 };
            let dims = dims(&buffer.ty.axes);
            let numel: usize = dims.iter().product();
            let data = (0..numel as i64).map(|e| heap.load(p, buffer.ty.dtype, e)).collect::<Result<Vec<_>, _>>()?;
            out.insert(buffer.name.clone(), Tensor { dims, data });
        }
        Ok((out, times))
    }
}

/// What the runtime does for this kernel.
fn quantile(k: &Quantile, memory: &mut Memory, args: &[(usize, u64)]) {
    let (from, to) = (args[0], args[1]);
    let x = &memory.buffers[from.0].bytes()[from.1 as usize..];
    let mut x: Vec<f32> = x.chunks_exact(4).take(k.rows * k.n).map(bytemuck::pod_read_unaligned).collect();
    let out: Vec<f32> = x.chunks_exact_mut(k.n).map(|row| golf_runtime::host::quantile(row, k.q)).collect();
    let bytes = bytemuck::cast_slice(&out);
    memory.buffers[to.0].bytes_mut()[to.1 as usize..][..bytes.len()].copy_from_slice(bytes);
}
