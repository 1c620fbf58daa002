//! `--emit-check`: an executable that tries every kernel of a GPU plan where it runs.
//!
//! *Takes* a [`Planned`] for a kind of GPU; *gives* the executable; *promises* that it holds each distinct kernel that is small enough for the f64 reference,
//! and says how many were not. Use it on a program made small with `--set`: kernels are the same code at smaller extents.

use super::{escaped, internal, link_objects, unpack_runtime};
use crate::kernel::Kernel;
use crate::kernel::gpu::Arch;
use crate::mlir::object::{self, Job, Options, Timings};
use crate::mlir::sys::{File, Llvm};
use crate::mlir::tier::Tier;
use crate::schedule::plan::Planned;
use crate::schedule::trial::{self, Trial};
use golf_runtime::error::{Error, Result};
use golf_runtime::plan::PLAN_VERSION;
use golf_runtime::trial::Trials;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Seed of the random contents.
const SEED: u64 = 1;

/// Makes trials of the distinct kernels of `planned` and links them to `out`. Gives how many kernels are tried and how many were too large.
pub fn link(
    (planned, arch): (&Planned, Arch),
    program: &str,
    out: &Path,
    options: &Options,
) -> Result<((usize, usize), Timings)> {
    let distinct = planned.launched();
    let all = distinct.len();
    let small = |k: &&Kernel| {
        let flops: u64 = planned.target.launches(k).iter().map(|l| l.flops).sum();
        flops > 0 && flops <= trial::limit(k) && planned.target.product(k).is_none()
    };
    let kept: Vec<&Kernel> = distinct.into_iter().filter(small).collect();
    let trials = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernel) = kept.get(i) else { break };
                    let made = Trial::new(kernel, SEED).map(|t| t.pack(kernel, planned.target, (SEED, 0)));
                    trials.lock().expect("no thread panics while adding a trial").push((i, made));
                }
            });
        }
    });
    let mut trials = trials.into_inner().expect("not poisoned");
    trials.sort_by_key(|t| t.0);
    let (mut jobs, mut list) = (Vec::new(), Vec::new());
    for (i, made) in trials {
        // What the reference does not take (too large, or a body without meaning outside of its graph) is left out and counted.
        let Ok(mut trial) = made else { continue };
        let code = kept[i].code();
        let module = jobs.iter().position(|j: &Job| j.kernel == code).unwrap_or_else(|| {
            jobs.push(Job { kernel: code, tier: Tier::Gpu(arch) });
            jobs.len() - 1
        });
        trial.calls.iter_mut().for_each(|c| c.grid.module = module as u32);
        list.push(trial);
    }
    let (modules, mut timings) = object::compile(&jobs, options).map_err(internal)?;
    let text = |m: Vec<u8>| String::from_utf8(m).map_err(|_| internal("ptx is not text"));
    let count = list.len();
    let trials = Trials {
        version: PLAN_VERSION,
        program: program.to_string(),
        device: arch.name().to_string(),
        modules: modules.into_iter().map(text).collect::<Result<_>>()?,
        trials: list,
    };
    let object = timings.stage("table", || object_of(&trials))?;
    let runtime = timings.stage("runtime", unpack_runtime)?;
    timings.stage("link", || link_objects(&[object], &runtime, out))?;
    Ok(((count, all - count), timings))
}

/// The object with `main` and the packed trials.
fn object_of(trials: &Trials) -> Result<Vec<u8>> {
    let plain = postcard::to_stdvec(trials).map_err(internal)?;
    let packed = zstd::bulk::compress(&plain, super::PLAN_LEVEL).map_err(|e| Error::machine(e.to_string()))?;
    let n = packed.len();
    let text = format!(
        "@trials = private constant [{n} x i8] c\"{}\", align 64\n\
         declare i32 @golf_check_main(i32, ptr, ptr, i64)\n\
         define i32 @main(i32 %argc, ptr %argv) {{\n  \
         %code = call i32 @golf_check_main(i32 %argc, ptr %argv, ptr @trials, i64 {n})\n  ret i32 %code\n}}\n",
        escaped(&packed)
    );
    let machine = Tier::V3.machine().map_err(internal)?;
    let mut llvm = Llvm::parse(&text, "trials", &machine).map_err(internal)?;
    llvm.emit(&machine, File::Object).map_err(internal)
}
