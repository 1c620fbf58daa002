//! Kernels to objects: one module per kernel, compiled in parallel, cached by content.
//!
//! *Takes* kernels with their tiers; *gives* one object file (bytes) each, in the order asked for, or text of a stage; *promises* the same
//! bytes with any number of threads, with and without the cache.
//!
//! The cache lives in `$XDG_CACHE_HOME/golf` or `~/.cache/golf`. An entry is named by the hash of the kernel's MLIR, the tier, the
//! pipeline and LLVM's version, holds the hash of its content, and is ignored when that does not match. Failing to write it is not an error.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use melior::Context;

use super::emit::Unit;
use super::sys::{File, Llvm, Machine, llvm_version, thread_time};
use super::tier::Tier;
use super::{cpu, gpu, passes};
use crate::kernel::{Kernel, Target};

/// LLVM's pipeline.
const LLVM_PASSES: &str = "default<O2>";

/// First bytes of a cache entry; raised when its layout changes.
const CACHE_MAGIC: &[u8; 8] = b"golfobj1";

/// A kernel to compile for a tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// What.
    pub kernel: Kernel,
    /// For which CPU kind; must be the tier's own code, see [`Tier::of_kernel`].
    pub tier: Tier,
}

/// The jobs of a program: every distinct kernel once for every code it needs on `tiers` of the CPU.
pub fn jobs(kernels: &[Kernel], tiers: &[Tier]) -> Vec<Job> {
    let mut distinct = BTreeMap::new();
    for kernel in kernels.iter().filter(|k| Target::Cpu.builtin(k).is_none()) {
        distinct.entry(kernel.symbol()).or_insert(kernel);
    }
    let mut jobs = Vec::new();
    for kernel in distinct.into_values() {
        for &tier in tiers {
            let job = Job { kernel: kernel.clone(), tier: tier.of_kernel(kernel) };
            if jobs.last() != Some(&job) {
                jobs.push(job);
            }
        }
    }
    jobs
}

/// How to compile.
#[derive(Clone, Debug)]
pub struct Options {
    /// Worker threads, at least 1.
    pub threads: usize,
    /// Where objects are kept between runs; `None`: nowhere.
    pub cache: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Options { threads, cache: user_cache() }
    }
}

/// The user's cache directory for golf, if the environment names one.
pub fn user_cache() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".cache"))).map(|d| d.join("golf"))
}

/// CPU time by stage, summed over threads, and how the cache did.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// `emit`, `mlir`, `translate`, `llvm`, `codegen`, `cache`, and what the linker adds.
    pub stages: BTreeMap<&'static str, Duration>,
    /// Objects taken from the cache.
    pub cached: usize,
    /// Objects compiled.
    pub compiled: usize,
}

impl Timings {
    /// Runs `work` and books its time.
    pub fn stage<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = thread_time();
        let result = work();
        *self.stages.entry(name).or_default() += thread_time() - start;
        result
    }
    /// Adds another's figures.
    pub fn merge(&mut self, other: &Timings) {
        for (name, time) in &other.stages {
            *self.stages.entry(name).or_default() += *time;
        }
        self.cached += other.cached;
        self.compiled += other.compiled;
    }
}

/// A text form of a compiled kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// As emitted.
    Mlir,
    /// After the MLIR passes.
    LoweredMlir,
    /// LLVM IR after optimisation.
    Llvm,
    /// Assembly.
    Asm,
}

/// Where a worker leaves the object of one job.
type Slot = Mutex<Option<Result<Vec<u8>, String>>>;

/// Compiles every job. Objects come back in the order of `jobs`.
pub fn compile(jobs: &[Job], options: &Options) -> Result<(Vec<Vec<u8>>, Timings), String> {
    let next = AtomicUsize::new(0);
    let results: Vec<Slot> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let total = Mutex::new(Timings::default());
    std::thread::scope(|scope| {
        for _ in 0..options.threads.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                let mut timings = Timings::default();
                let mut worker = Worker::new();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(i) else { break };
                    let result = worker.object(job, options.cache.as_deref(), &mut timings);
                    *results[i].lock().expect("no worker panics while holding a result") = Some(result);
                }
                total.lock().expect("no worker panics while adding times").merge(&timings);
            });
        }
    });
    let objects = results
        .into_iter()
        .map(|r| r.into_inner().expect("not poisoned").expect("every job was taken"))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((objects, total.into_inner().expect("not poisoned")))
}

/// One stage of one kernel as text, for `--emit` and snapshots.
pub fn text(job: &Job, stage: Text) -> Result<String, String> {
    let context = passes::context();
    let mut module = emit(&context, job)?;
    if stage == Text::Mlir {
        return Ok(module.as_operation().to_string());
    }
    passes::lower(&context, &mut module, job.tier)?;
    if stage == Text::LoweredMlir {
        return Ok(module.as_operation().to_string());
    }
    let machine = job.tier.machine()?;
    let mut llvm = Llvm::translate(&module, &job.kernel.symbol(), &machine)?;
    llvm.optimize(&machine, LLVM_PASSES)?;
    if stage == Text::Llvm {
        return Ok(llvm.print());
    }
    let assembly = llvm.emit(&machine, File::Assembly)?;
    String::from_utf8(assembly).map_err(|_| "assembly is not utf-8".to_string())
}

fn emit<'c>(context: &'c Context, job: &Job) -> Result<melior::ir::Module<'c>, String> {
    let unit = Unit::new(context, job.tier);
    match job.tier {
        Tier::Gpu(arch) => gpu::emit(&unit, arch, &job.kernel)?,
        Tier::V3 | Tier::Avx512Bf16 => cpu::emit(&unit, &job.kernel, job.tier)?,
    }
    let module = unit.module();
    passes::verify(context, &module).map_err(|e| format!("internal error: {} {e}", job.kernel.symbol()))?;
    Ok(module)
}

/// Compiles an MLIR module made by hand (tests of the builder itself).
pub fn compile_unit(context: &Context, unit: Unit, name: &str, tier: Tier) -> Result<Vec<u8>, String> {
    let mut module = unit.module();
    passes::verify(context, &module)?;
    lower_and_emit(context, &mut module, name, tier, &tier.machine()?, &mut Timings::default())
}

fn lower_and_emit(
    context: &Context,
    module: &mut melior::ir::Module,
    name: &str,
    tier: Tier,
    machine: &Machine,
    timings: &mut Timings,
) -> Result<Vec<u8>, String> {
    timings.stage("mlir", || passes::lower(context, module, tier))?;
    let mut llvm = timings.stage("translate", || Llvm::translate(module, name, machine))?;
    timings.stage("llvm", || llvm.optimize(machine, LLVM_PASSES))?;
    // The GPU's code is PTX, a text.
    let file = if tier.is_gpu() { File::Assembly } else { File::Object };
    timings.stage("codegen", || llvm.emit(machine, file))
}

/// One thread's context and machines.
struct Worker {
    context: Context,
    machines: BTreeMap<Tier, Machine>,
}

impl Worker {
    fn new() -> Worker {
        Worker { context: passes::context(), machines: BTreeMap::new() }
    }

    fn object(&mut self, job: &Job, cache: Option<&Path>, timings: &mut Timings) -> Result<Vec<u8>, String> {
        let name = job.kernel.symbol();
        let mut module = timings.stage("emit", || emit(&self.context, job))?;
        let entry = cache.map(|dir| {
            timings.stage("cache", || {
                let key = key(&module.as_operation().to_string(), job.tier);
                dir.join(format!("{key}.o"))
            })
        });
        if let Some(bytes) = entry.as_deref().and_then(|path| timings.stage("cache", || read_entry(path))) {
            timings.cached += 1;
            return Ok(bytes);
        }
        let machine = match self.machines.entry(job.tier) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(free) => free.insert(job.tier.machine()?),
        };
        let bytes = lower_and_emit(&self.context, &mut module, &name, job.tier, machine, timings)?;
        timings.compiled += 1;
        if let Some(path) = entry {
            timings.stage("cache", || write_entry(&path, &bytes));
        }
        Ok(bytes)
    }
}

fn key(mlir: &str, tier: Tier) -> String {
    let mut hash = blake3::Hasher::new();
    for part in [mlir, tier.name(), tier.cpu().0, tier.cpu().1, LLVM_PASSES, passes::CPU, passes::GPU, &llvm_version()]
    {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().to_hex()[..40].to_string()
}

fn read_entry(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let rest = bytes.strip_prefix(CACHE_MAGIC.as_slice())?;
    let (hash, content) = rest.split_at_checked(32)?;
    (blake3::hash(content).as_bytes() == hash).then(|| content.to_vec())
}

fn write_entry(path: &Path, content: &[u8]) {
    let write = || -> std::io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir)?;
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = dir.join(format!(".{}.{n}.tmp", std::process::id()));
        let mut bytes = CACHE_MAGIC.to_vec();
        bytes.extend_from_slice(blake3::hash(content).as_bytes());
        bytes.extend_from_slice(content);
        let done = std::fs::write(&temporary, &bytes).and_then(|()| std::fs::rename(&temporary, path));
        if done.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        done
    };
    // Best effort: a read-only home or a full disk only costs the time to compile again.
    let _ = write();
}
