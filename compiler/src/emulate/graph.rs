//! A whole graph on the emulator.
//!
//! *Takes* a graph scheduled for a GPU and the contents of its buffers; *gives* the contents afterwards; *promises* the memory of
//! [`reference::run`], with every kernel run as emitted.

use std::collections::BTreeMap;

use super::{Code, Options};
use crate::graph::interpret::Contents;
use crate::kernel::gpu::Arch;
use crate::kernel::{Access, Kernel};
use crate::schedule::Scheduled;
use crate::schedule::reference::{self, Heap, Pointer};

/// Runs a schedule. Buffers not given: constants hold their values, gradients start at zero, all others are undefined.
pub fn graph(s: &Scheduled, arch: Arch, inputs: &Contents, options: &Options) -> Result<Contents, String> {
    let mut known: BTreeMap<String, Code> = BTreeMap::new();
    reference::run_with(s, inputs, &mut |kernel, pointers, heap| {
        let code = match known.entry(kernel.code().text()) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => {
                e.insert(Code::of(&kernel.code(), arch).map_err(|report| report.to_string())?)
            }
        };
        step(code, kernel, pointers, heap, options)
    })
}

/// Runs one kernel on copies of its arguments, and takes over what it changed: arguments may lie in one buffer.
fn step(code: &Code, kernel: &Kernel, args: &[Pointer], heap: &mut Heap, options: &Options) -> Result<(), String> {
    let mut memory: Vec<Vec<u8>> =
        args.iter().map(|p| heap.segments[p.segment][p.offset as usize..].to_vec()).collect();
    let before = memory.clone();
    code.run(kernel, &mut memory, options).map_err(|report| report.to_string())?;
    for (((p, access), old), new) in args.iter().zip(kernel.accesses()).zip(&before).zip(&memory) {
        if access == Access::Read {
            continue;
        }
        let target = &mut heap.segments[p.segment][p.offset as usize..];
        for ((t, _), n) in target.iter_mut().zip(old).zip(new).filter(|((_, o), n)| o != n) {
            *t = *n;
        }
    }
    Ok(())
}
