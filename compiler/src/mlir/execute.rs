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
    /// Compiles every kernel of the schedule. Kernels that the runtime implements are refused.
    pub fn new(scheduled: &'s Scheduled, tier: Tier, options: &Options) -> Result<Self, String> {
        let kernels: Vec<Kernel> = scheduled.steps.iter().map(|s| s.kernel.clone()).collect();
        if let Some(Kernel::Host(builtin)) = kernels.iter().find(|k| matches!(k, Kernel::Host(_))) {
            return Err(format!("{builtin:?} is implemented by the runtime"));
        }
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
