//! Kernels that differ only in float constants become one kernel that reads them.
//!
//! *Takes* the kernels of all graphs of a program; *gives* the same with some constants turned into scalar arguments; *promises* the same
//! values (a constant of a body is an f32 either way) and never more distinct kernels than before.
//!
//! A factor `1/sqrt(layer + 1)` would otherwise make a kernel per layer.

use super::{Arg, Memory, Step};
use crate::graph::ir::{Bits, Buffer, BufferId, BufferKind, DType, Graph, Op, Type};
use crate::kernel::{Kernel, epilogue::EpilogueArg, row::RowArg};
use std::collections::BTreeMap;

/// Lifts constants in place.
pub(super) fn lift(steps: &mut [&mut Step]) {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, step) in steps.iter().enumerate() {
        if let Some(text) = masked(&step.kernel) {
            groups.entry(text).or_default().push(i);
        }
    }
    for members in groups.values() {
        let values: Vec<_> = members.iter().map(|i| constants(&steps[*i].kernel)).collect();
        let differs = |at: usize| values.iter().any(|v| v[at] != values[0][at]);
        let places: Vec<_> = (0..values[0].len()).filter(|at| differs(*at)).collect();
        if places.is_empty() {
            continue;
        }
        for i in members {
            read_constants(steps[*i], &places);
        }
    }
}

fn body(k: &Kernel) -> Option<&Graph> {
    match k {
        Kernel::Row(k) => Some(&k.graph),
        Kernel::Gemm(k) => Some(&k.epilogue),
        Kernel::Attend(k) => k.epilogue.as_ref().map(|p| &p.body),
        Kernel::Scatter(_) | Kernel::Quantile(_) | Kernel::Feedback(_) => None,
    }
}

fn body_mut(k: &mut Kernel) -> Option<&mut Graph> {
    match k {
        Kernel::Row(k) => Some(&mut k.graph),
        Kernel::Gemm(k) => Some(&mut k.epilogue),
        Kernel::Attend(k) => k.epilogue.as_mut().map(|p| &mut p.body),
        Kernel::Scatter(_) | Kernel::Quantile(_) | Kernel::Feedback(_) => None,
    }
}

fn is_float_constant(node: &crate::graph::ir::Node) -> bool {
    matches!(node.op, Op::Const(_)) && node.ty.dtype == DType::F32
}

/// The kernel's text with every float constant alike.
fn masked(k: &Kernel) -> Option<String> {
    let mut k = k.clone();
    let body = body_mut(&mut k)?;
    body.nodes.iter_mut().filter(|n| is_float_constant(n)).for_each(|n| n.op = Op::Const(Bits::new(0.0)));
    Some(k.text())
}

/// All float constants, in node order.
fn constants(k: &Kernel) -> Vec<Bits> {
    let nodes = body(k).map(|g| &g.nodes[..]).unwrap_or_default();
    let value = |n: &crate::graph::ir::Node| match n.op {
        Op::Const(x) if n.ty.dtype == DType::F32 => Some(x),
        _ => None,
    };
    nodes.iter().filter_map(value).collect()
}

/// Turns the constants at these places into arguments.
fn read_constants(step: &mut Step, places: &[usize]) {
    let values = constants(&step.kernel);
    let Some(g) = body_mut(&mut step.kernel) else { return };
    let nodes: Vec<_> = (0..g.nodes.len()).filter(|i| is_float_constant(&g.nodes[*i])).collect();
    let mut added = Vec::new();
    // One argument per place, not per value: equal values in one layer may differ in another.
    for (number, at) in places.iter().enumerate() {
        let id = BufferId(g.buffers.len() as u32);
        let ty = Type { dtype: DType::F32, axes: Vec::new() };
        g.buffers.push(Buffer { name: format!("c{number}"), ty, kind: BufferKind::State });
        g.nodes[nodes[*at]].op = Op::Read(id);
        added.push(values[*at]);
    }
    for value in added {
        let bits = (value.get() as f32).to_bits();
        step.args.push(Arg { memory: Memory::Constant(bits), offset: 0 });
        match &mut step.kernel {
            Kernel::Row(k) => k.args.push(RowArg { offset: 0, strides: Vec::new(), per_task: false }),
            Kernel::Gemm(k) => k.args.push(scalar(k.batch.len())),
            Kernel::Attend(k) => k.epilogue.iter_mut().for_each(|p| p.args.push(scalar(3))),
            Kernel::Scatter(_) | Kernel::Quantile(_) | Kernel::Feedback(_) => {}
        }
    }
}

/// One number for the whole of an epilogue.
fn scalar(batch: usize) -> EpilogueArg {
    EpilogueArg { offset: 0, batch: vec![0; batch], m: 0, n: 0 }
}
