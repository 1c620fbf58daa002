//! Launch order, and which effects may be written in place.
//!
//! *Takes* lowered kernels; *gives* an order in which every value is written before it is read and every buffer is read before it is
//! written, or the effects that have to wait; *promises* to keep the order of the graph's nodes where data allow.

use super::lower::{Lowered, Memory};
use super::outputs::Output;
use crate::graph::ir::{BufferId, Op};
use crate::kernel::{Access, Kernel};
use std::collections::{BTreeMap, BTreeSet};

/// The order, or effects whose buffer is still read while or after their kernel runs.
pub(super) enum Ordered {
    /// Positions into the list of kernels.
    Order(Vec<usize>),
    /// Effects by number.
    Wait(BTreeSet<usize>),
}

/// Orders kernels. `waiting` effects are applied by kernels of their own already.
pub(super) fn order(kernels: &[Lowered], effects: &[Output], waiting: &BTreeSet<usize>) -> Result<Ordered, String> {
    let uses: Vec<_> = kernels.iter().map(|k| k.kernel.accesses()).collect();
    let mut wait = BTreeSet::new();
    for kernel in kernels {
        for e in kernel.effects.iter().filter(|e| !waiting.contains(e)) {
            if !in_place(kernel, effects[*e].buffer) {
                wait.insert(*e);
            }
        }
    }
    if !wait.is_empty() {
        return Ok(Ordered::Wait(wait));
    }
    let edges = edges(kernels, &uses, effects);
    let n = kernels.len();
    let mut left: Vec<usize> = vec![0; n];
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); n];
    for (before, after) in &edges {
        left[*after] += 1;
        next[*before].push(*after);
    }
    let mut ready: BTreeSet<(u32, usize)> = (0..n).filter(|i| left[*i] == 0).map(|i| (kernels[i].key, i)).collect();
    let mut out = Vec::with_capacity(n);
    while let Some((_, i)) = ready.pop_first() {
        out.push(i);
        for j in &next[i] {
            left[*j] -= 1;
            if left[*j] == 0 {
                ready.insert((kernels[*j].key, *j));
            }
        }
    }
    if out.len() == n {
        return Ok(Ordered::Order(out));
    }
    // A cycle: some kernel writes a buffer that another, later one still has to read. Let one such effect wait.
    let stuck = |i: usize| left[i] > 0;
    for (i, kernel) in kernels.iter().enumerate().filter(|(i, _)| stuck(*i)) {
        for e in kernel.effects.iter().filter(|e| !waiting.contains(e)) {
            let buffer = effects[*e].buffer;
            let read = |(j, _): &(usize, &Lowered)| *j != i && stuck(*j) && reads(kernels, &uses, *j, buffer);
            if kernels.iter().enumerate().any(|k| read(&k)) {
                return Ok(Ordered::Wait(BTreeSet::from([*e])));
            }
        }
    }
    let list: Vec<_> = (0..n).filter(|i| stuck(*i)).map(|i| i.to_string()).collect();
    Err(format!("kernels {} wait for each other", list.join(", ")))
}

/// (before, after) pairs.
fn edges(kernels: &[Lowered], uses: &[Vec<Access>], effects: &[Output]) -> BTreeSet<(usize, usize)> {
    let mut out = BTreeSet::new();
    let mut writer: BTreeMap<Memory, usize> = BTreeMap::new();
    for (i, kernel) in kernels.iter().enumerate() {
        for (slot, access) in kernel.args.iter().zip(&uses[i]) {
            if *access != Access::Read && !matches!(slot.memory, Memory::Buffer(_)) {
                writer.insert(slot.memory, i);
            }
        }
    }
    for (i, kernel) in kernels.iter().enumerate() {
        for (slot, access) in kernel.args.iter().zip(&uses[i]) {
            if let (Access::Read, Some(w)) = (access, writer.get(&slot.memory)) {
                out.insert((*w, i));
            }
        }
    }
    // Buffers: readers before writers. Several writers of one buffer add to it, in whatever order the rest allows.
    let accesses = |i: usize, buffer: BufferId| -> Vec<Access> {
        let here = |(s, a): (&super::lower::Slot, &Access)| (s.memory == Memory::Buffer(buffer)).then_some(*a);
        kernels[i].args.iter().zip(&uses[i]).filter_map(here).collect()
    };
    let buffers: BTreeSet<_> = effects.iter().map(|e| e.buffer).collect();
    for buffer in buffers {
        let all: Vec<_> = (0..kernels.len()).map(|i| accesses(i, buffer)).collect();
        let writers: Vec<_> = (0..all.len()).filter(|i| all[*i].iter().any(|a| *a != Access::Read)).collect();
        for (j, mine) in all.iter().enumerate().filter(|(_, a)| !a.is_empty()) {
            // Adding to it is no reading of it; being its only writer, neither.
            let reads = mine.contains(&Access::Read) || writers == [j] && mine.contains(&Access::Update);
            if reads {
                out.extend(writers.iter().filter(|w| **w != j).map(|w| (j, *w)));
            }
        }
    }
    out
}

fn reads(kernels: &[Lowered], uses: &[Vec<Access>], i: usize, buffer: BufferId) -> bool {
    let here = |(s, a): (&super::lower::Slot, &Access)| s.memory == Memory::Buffer(buffer) && *a != Access::Write;
    kernels[i].args.iter().zip(&uses[i]).any(here)
}

/// Whether a kernel that writes a buffer reads it, if at all, only at the place it writes.
fn in_place(kernel: &Lowered, buffer: BufferId) -> bool {
    let mine: Vec<_> =
        kernel.args.iter().enumerate().filter(|(_, s)| s.memory == Memory::Buffer(buffer)).map(|(i, _)| i).collect();
    if mine.len() > 1 {
        // Several regions of it are written, which do not overlap, and nothing is read.
        let Kernel::Row(row) = &kernel.kernel else { return false };
        let read = |arg: &usize| row.graph.nodes.iter().any(|n| n.op == Op::Read(BufferId(*arg as u32)));
        return !mine.iter().any(read);
    }
    match (&kernel.kernel, mine.first()) {
        (Kernel::Row(row), Some(arg)) => !row.graph.nodes.iter().any(|n| {
            // Other rows of it are read.
            let source = n.args.first().map(|a| &row.graph.nodes[a.0 as usize].op);
            matches!(n.op, Op::Shift(..) | Op::Gather(_)) && source == Some(&Op::Read(BufferId(*arg as u32)))
        }),
        (Kernel::Gemm(_), Some(arg)) => *arg >= 2,
        // Other rows of it are read.
        (Kernel::Attend(k), Some(arg)) => k.accesses()[*arg] == Access::Write,
        _ => true,
    }
}
