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
use golf_runtime::plan::FEEDBACK_ROWS;
use golf_runtime::quant::feedback;

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
            if builtin(&step.kernel, &mut memory, &args) {
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

/// Does what the runtime does for this kernel; false: it is generated code's.
fn builtin(kernel: &Kernel, memory: &mut Memory, args: &[(usize, u64)]) -> bool {
    let words = |arg: usize, n: usize| -> Vec<[u8; 4]> {
        let (segment, offset) = args[arg];
        memory.buffers[segment].bytes()[offset as usize..].as_chunks().0[..n].to_vec()
    };
    let floats = |arg, n| -> Vec<f32> { words(arg, n).into_iter().map(f32::from_le_bytes).collect() };
    let out = match kernel {
        Kernel::Quantile(k) => {
            let mut x = floats(0, k.rows * k.n);
            x.chunks_exact_mut(k.n).map(|row| golf_runtime::host::quantile(row, k.q)).collect()
        }
        Kernel::Feedback(k) => {
            let (w, scale, upper) = (floats(0, k.rows * k.n), floats(1, k.rows), floats(3, k.n * k.n));
            let order: Vec<i32> = words(2, k.n).into_iter().map(i32::from_le_bytes).collect();
            let (mut values, mut out) = (vec![Default::default(); k.n], vec![0.0; w.len()]);
            let (group, bounds) = (FEEDBACK_ROWS as usize, (k.low, k.high));
            let tasks = w.chunks(group * k.n).zip(scale.chunks(group)).zip(out.chunks_mut(group * k.n));
            tasks.for_each(|((w, scale), out)| feedback::round(w, scale, &order, &upper, bounds, &mut values, out));
            out
        }
        Kernel::Row(_) | Kernel::Gemm(_) | Kernel::Attend(_) | Kernel::Scatter(_) => return false,
    };
    let bytes = bytemuck::cast_slice(&out);
    let (segment, offset) = args[args.len() - 1];
    memory.buffers[segment].bytes_mut()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    true
}
