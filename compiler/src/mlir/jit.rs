//! Runs kernels in this process: how tests (and golfc's own checks) execute what was compiled.
//!
//! *Takes* a kernel description and the bytes of its arguments; *gives* the arguments after all launches ran; *promises* to do what the
//! runtime does (launches in order, any task order: here descending), on poisoned temporaries and scratch, and to notice writes beyond the end of any buffer.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::object::{self, Job};
use super::sys::{Aligned, Library, Place, thread_time};
use super::tier::Tier;
use crate::kernel::{Kernel, LaunchArg};

/// Compiled kernels, loaded.
pub struct Loaded {
    library: Library,
}

impl Loaded {
    /// Links objects into a shared library with `cc` and loads it.
    pub fn link(objects: &[Vec<u8>]) -> Result<Loaded, String> {
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("golf-jit-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        let result = Loaded::link_in(&dir, objects);
        // The loaded library stays mapped after its file is gone.
        let _ = std::fs::remove_dir_all(&dir);
        result
    }

    fn link_in(dir: &Path, objects: &[Vec<u8>]) -> Result<Loaded, String> {
        let library = dir.join("kernels.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-nostdlib", "-o"]).arg(&library);
        for (i, object) in objects.iter().enumerate() {
            let path = dir.join(format!("{i}.o"));
            std::fs::write(&path, object).map_err(|e| format!("{}: {e}", path.display()))?;
            cc.arg(path);
        }
        let output = cc.output().map_err(|e| format!("cc: {e}"))?;
        if !output.status.success() {
            return Err(format!("cc: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(Loaded { library: Library::open(&library)? })
    }

    /// Compiles kernels (no cache) and loads them.
    pub fn build(jobs: &[Job]) -> Result<Loaded, String> {
        let options = object::Options { threads: 1, cache: None };
        Loaded::link(&object::compile(jobs, &options)?.0)
    }

    /// Runs one symbol over hand-made arguments.
    pub fn call(&self, symbol: &str, tasks: u32, args: &mut [Vec<u8>], scratch: usize) -> Result<(), String> {
        let order: Vec<Place> = (0..args.len()).map(|buffer| Place { buffer, offset: 0 }).collect();
        let mut memory: Vec<Aligned> = args.iter().map(|a| Aligned::of(a)).collect();
        let mut scratch = Aligned::poisoned(scratch);
        self.library.run(symbol, (0..tasks as u64).rev(), &mut memory, &order, &mut scratch)?;
        check_guards(symbol, &memory, &scratch)?;
        copy_back(&memory, args);
        Ok(())
    }

    /// Runs all launches of a kernel that was built for `tier` (see [`Tier::of_kernel`]).
    pub fn run(&self, kernel: &Kernel, tier: Tier, args: &mut [Vec<u8>]) -> Result<(), String> {
        let mut memory = Memory::of(args);
        let all: Vec<(usize, u64)> = (0..args.len()).map(|i| (i, 0)).collect();
        self.step(kernel, tier, &mut memory, &all, &mut |_, _| ())?;
        copy_back(&memory.buffers, args);
        Ok(())
    }

    /// Runs a kernel `repeats` times on one thread and gives the shortest CPU time of each launch, by entry.
    pub fn measure(
        &self,
        kernel: &Kernel,
        tier: Tier,
        args: &[Vec<u8>],
        repeats: usize,
    ) -> Result<Vec<(&'static str, Duration)>, String> {
        let mut memory = Memory::of(args);
        let all: Vec<(usize, u64)> = (0..args.len()).map(|i| (i, 0)).collect();
        let mut best: BTreeMap<usize, (&'static str, Duration)> = BTreeMap::new();
        for _ in 0..repeats {
            let mut number = 0;
            self.step(kernel, tier, &mut memory, &all, &mut |entry, time| {
                let known = best.entry(number).or_insert((entry, time));
                known.1 = known.1.min(time);
                number += 1;
            })?;
        }
        Ok(best.into_values().collect())
    }

    /// Runs all launches of a kernel on buffers of `memory`: argument i starts `args[i].1` bytes into buffer `args[i].0`. `done` hears of
    /// every launch and its CPU time.
    pub(super) fn step(
        &self,
        kernel: &Kernel,
        tier: Tier,
        memory: &mut Memory,
        args: &[(usize, u64)],
        done: &mut dyn FnMut(&'static str, Duration),
    ) -> Result<(), String> {
        let fixed = memory.buffers.len();
        memory.buffers.extend(kernel.temps().iter().map(|&bytes| Aligned::poisoned(bytes as usize)));
        for launch in &kernel.launches() {
            let symbol = super::cpu::symbol(kernel, launch.entry, tier);
            let place = |a: &LaunchArg| match a {
                LaunchArg::Arg(i) => Place { buffer: args[*i].0, offset: args[*i].1 as usize },
                LaunchArg::Temp(i) => Place { buffer: fixed + i, offset: 0 },
            };
            let order: Vec<Place> = launch.args.iter().map(place).collect();
            memory.scratch.grow(launch.scratch as usize);
            let start = thread_time();
            let tasks = (0..launch.tasks as u64).rev();
            self.library.run(&symbol, tasks, &mut memory.buffers, &order, &mut memory.scratch)?;
            done(launch.entry, thread_time() - start);
            check_guards(&symbol, &memory.buffers, &memory.scratch)?;
        }
        memory.buffers.truncate(fixed);
        Ok(())
    }
}

/// Buffers that kernels work on, and one thread's scratch.
pub(super) struct Memory {
    pub(super) buffers: Vec<Aligned>,
    scratch: Aligned,
}

impl Memory {
    /// Copies of the given contents.
    pub(super) fn of(contents: &[Vec<u8>]) -> Memory {
        Memory { buffers: contents.iter().map(|a| Aligned::of(a)).collect(), scratch: Aligned::poisoned(0) }
    }
}

/// Compiles a kernel as `tier` would use it and runs it over `args`, in place.
pub fn run(kernel: &Kernel, tier: Tier, args: &mut [Vec<u8>]) -> Result<(), String> {
    let tier = tier.of_kernel(kernel);
    Loaded::build(&[Job { kernel: kernel.clone(), tier }])?.run(kernel, tier, args)
}

/// Whether the tier can run here; prints a notice when it cannot, for tests that then skip it.
pub fn available(tier: Tier) -> bool {
    let yes = tier.runs_here();
    if !yes {
        eprintln!("notice: this CPU lacks {}: its kernels are compiled but not run", tier.name());
    }
    yes
}

fn check_guards(symbol: &str, memory: &[Aligned], scratch: &Aligned) -> Result<(), String> {
    if !scratch.guard_intact() {
        return Err(format!("{symbol} wrote beyond its scratch"));
    }
    match memory.iter().position(|m| !m.guard_intact()) {
        Some(i) => Err(format!("{symbol} wrote beyond buffer {i}")),
        None => Ok(()),
    }
}

fn copy_back(memory: &[Aligned], args: &mut [Vec<u8>]) {
    for (arg, memory) in args.iter_mut().zip(memory) {
        arg.copy_from_slice(memory.bytes());
    }
}
