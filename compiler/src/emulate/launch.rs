//! Kernels compiled for this CPU, and their launches.
//!
//! *Takes* a kernel description, or a hand-made module and launches; *gives* the arguments as the GPU would leave them, or a [`Report`]; *promises*
//! what the runtime does (launches in order, blocks in any order), on poisoned temporaries and shared memory.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use golf_runtime::plan::Grid;
use melior::ExecutionEngine;
use melior::ir::Module;
use melior::ir::operation::{OperationLike, OperationPrintingFlags};

use super::block::{self, Block, Mode, Stacks};
use super::calls;
use super::copy::Map;
use super::lower::{Function, Lowered, lower};
use super::memory::{Memory, Region, Window};
use super::multiply::{Loops, Multiply, Unpack};
use crate::kernel::gpu::Arch;
use crate::kernel::{Kernel, Launch, LaunchArg};
use crate::mlir::emit::Unit;
use crate::mlir::sys::Aligned;
use crate::mlir::{gpu, passes, tier::Tier};

/// Lowers what [`lower`] gives to the LLVM dialect. bf16 conversions become integer arithmetic: not every CPU has them.
const PASSES: &str = "builtin.module(canonicalize,cse,arith-expand{include-bf16=true},convert-scf-to-cf,convert-vector-to-llvm,\
    convert-math-to-llvm,convert-arith-to-llvm,convert-cf-to-llvm,reconcile-unrealized-casts)";

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides in which order threads run; 0: by number.
    pub seed: u64,
    /// Copies and products run as late as their waits allow, not at once.
    pub lazy: bool,
    /// OS threads that blocks are spread over.
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { seed: 0, lazy: false, workers: std::thread::available_parallelism().map_or(1, |n| n.get()) }
    }
}

/// What a kernel did wrong, and where.
#[derive(Clone, Debug)]
pub struct Report {
    /// Symbol of the function; empty if the kernel could not be compiled.
    pub symbol: String,
    /// Block.
    pub block: u32,
    /// Thread, unless the block as a whole failed.
    pub thread: Option<usize>,
    /// The operation, as MLIR.
    pub operation: String,
    /// What it did.
    pub what: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.symbol.is_empty() {
            return f.write_str(&self.what);
        }
        write!(f, "{}, block {}", self.symbol, self.block)?;
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread}")?;
        }
        write!(f, ": {}", self.what)?;
        if !self.operation.is_empty() {
            write!(f, "\n  at {}", self.operation)?;
        }
        Ok(())
    }
}

impl Report {
    fn of(what: String) -> Report {
        Report { symbol: String::new(), block: 0, thread: None, operation: String::new(), what }
    }
}

impl From<Report> for String {
    fn from(report: Report) -> String {
        report.to_string()
    }
}

/// A kernel as the emitter writes it: MLIR in generic form.
pub fn text(kernel: &Kernel, arch: Arch) -> Result<String, String> {
    let context = passes::context();
    let unit = Unit::new(&context, Tier::Gpu(arch));
    gpu::emit(&unit, arch, &kernel.code())?;
    let module = unit.module();
    passes::verify(&context, &module)?;
    print(&module)
}

/// A module in generic form.
pub fn print(module: &Module) -> Result<String, String> {
    let flags = OperationPrintingFlags::new().print_generic_operation_form();
    module.as_operation().to_string_with_flags(flags).map_err(|e| e.to_string())
}

/// Code for this CPU.
pub struct Code {
    arch: Arch,
    functions: BTreeMap<String, Function>,
    sites: Vec<String>,
    lines: Vec<usize>,
    needed: Mutex<BTreeSet<usize>>,
    engine: ExecutionEngine,
}

impl Code {
    /// Compiles all functions of a kernel.
    pub fn of(kernel: &Kernel, arch: Arch) -> Result<Code, Report> {
        text(kernel, arch).and_then(|t| Code::of_text(&t, arch)).map_err(Report::of)
    }

    /// Compiles a module in generic form.
    pub fn of_text(generic: &str, arch: Arch) -> Result<Code, String> {
        let Lowered { text, functions, sites, lines } = lower(generic)?;
        let context = passes::context();
        let mut module = passes::parse(&context, &text)?;
        passes::run(&context, &mut module, PASSES)?;
        let engine = ExecutionEngine::new(&module, 2, &[], false, false);
        for (name, address) in calls::table() {
            // SAFETY: a function with the parameters that `lower` gives its calls.
            unsafe { engine.register_symbol(name, address) };
        }
        let functions = functions.into_iter().map(|f| (f.symbol.clone(), f)).collect();
        Ok(Code { arch, functions, sites, lines, needed: Mutex::default(), engine })
    }

    fn loops(&self) -> Loops {
        let (unpack, multiply) = (self.engine.lookup("emu_unpack"), self.engine.lookup("emu_multiply"));
        assert!(!unpack.is_null() && !multiply.is_null(), "the loops are in every module");
        // SAFETY: the functions of `multiply::text`, which is part of every module, have these types.
        unsafe {
            Loops {
                unpack: std::mem::transmute::<*mut (), Unpack>(unpack),
                multiply: std::mem::transmute::<*mut (), Multiply>(multiply),
            }
        }
    }

    /// Runs all launches of a kernel over its arguments, in place.
    pub fn run(&self, kernel: &Kernel, args: &mut [Vec<u8>], options: &Options) -> Result<(), Report> {
        self.run_launches(kernel, &crate::kernel::gpu::launches(self.arch, kernel), args, options)
    }

    /// Runs these launches instead of the kernel's own.
    pub(super) fn run_launches(
        &self,
        kernel: &Kernel,
        launches: &[Launch],
        args: &mut [Vec<u8>],
        options: &Options,
    ) -> Result<(), Report> {
        let mut buffers: Vec<Aligned> = args.iter().map(|a| Aligned::of(a)).collect();
        buffers.extend(
            crate::kernel::gpu::temps(self.arch, kernel).iter().map(|&bytes| Aligned::poisoned(bytes as usize)),
        );
        let code = kernel.code();
        for launch in launches {
            let symbol = gpu::symbol(&code, launch.entry);
            self.launch(&symbol, launch, args.len(), &mut buffers, options)?;
        }
        for (arg, buffer) in args.iter_mut().zip(&buffers) {
            arg.copy_from_slice(buffer.bytes());
        }
        Ok(())
    }

    /// Runs one function: `blocks` blocks over the arguments, in place.
    pub fn call(
        &self,
        symbol: &str,
        blocks: u32,
        grid: &Grid,
        args: &mut [Vec<u8>],
        options: &Options,
    ) -> Result<(), Report> {
        let mut buffers: Vec<Aligned> = args.iter().map(|a| Aligned::of(a)).collect();
        let launch = Launch {
            entry: "main",
            tasks: blocks,
            args: (0..args.len()).map(LaunchArg::Arg).collect(),
            scratch: 0,
            flops: 0,
            bytes: 0,
            gpu: Some(grid.clone()),
        };
        self.launch(symbol, &launch, args.len(), &mut buffers, options)?;
        for (arg, buffer) in args.iter_mut().zip(&buffers) {
            arg.copy_from_slice(buffer.bytes());
        }
        Ok(())
    }

    fn launch(
        &self,
        symbol: &str,
        launch: &Launch,
        args: usize,
        buffers: &mut [Aligned],
        options: &Options,
    ) -> Result<(), Report> {
        let refuse = |what: String| Report { symbol: symbol.into(), ..Report::of(format!("{symbol}: {what}")) };
        let function = self.functions.get(symbol).ok_or_else(|| refuse("is not in the module".into()))?;
        let grid = launch.gpu.as_ref().ok_or_else(|| refuse("has no grid".into()))?;
        check_grid(launch, grid, function, self.arch).map_err(refuse)?;
        let mut regions = vec![];
        let mut pointers: Vec<usize> = vec![];
        for arg in &launch.args {
            let (i, name) = match arg {
                LaunchArg::Arg(i) => (*i, format!("argument {i}")),
                LaunchArg::Temp(i) => (args + i, format!("temporary {i}")),
            };
            let bytes = buffers.get(i).map_or(0, |b| b.bytes().len());
            let buffer = buffers.get_mut(i).ok_or_else(|| refuse(format!("has no {name}")))?;
            let start = buffer.bytes_mut().as_mut_ptr() as usize;
            pointers.push(start);
            regions.push(Region::new(start, bytes, name));
        }
        let maps: Result<Vec<Map>, String> = grid
            .maps
            .iter()
            .enumerate()
            .map(|(i, map)| {
                let region = regions.get(map.arg as usize).ok_or_else(|| format!("tensor map {i} has no argument"))?;
                Map::new(i, map, region.start, region.bytes)
            })
            .collect();
        let maps = Arc::new(maps.map_err(refuse)?);
        pointers.extend(maps.iter().map(|m| std::ptr::from_ref(m) as usize));
        let found = self.engine.lookup(&format!("_mlir_{symbol}"));
        if found.is_null() {
            return Err(refuse("was not compiled".into()));
        }
        // SAFETY: the wrapper that the execution engine makes for every function: it takes the addresses of its arguments.
        let entry: block::Entry = unsafe { std::mem::transmute::<*mut (), block::Entry>(found) };
        let loops = self.loops();
        let mode = Mode { seed: options.seed, lazy: options.lazy };
        let (regions, next, failed) = (Arc::new(regions), AtomicU32::new(0), Mutex::new(None));
        let needed = &self.needed;
        std::thread::scope(|scope| {
            for _ in 0..options.workers.clamp(1, launch.tasks.max(1) as usize) {
                scope.spawn(|| {
                    let (mut window, mut stacks) = (Window::new(), Stacks::default());
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= launch.tasks || failed.lock().is_ok_and(|f| f.is_some()) {
                            break;
                        }
                        // No order is promised: half of the runs start at the end.
                        let index = if options.seed & 1 == 0 { n } else { launch.tasks - 1 - n };
                        let memory = Memory::new(&mut window, (index, grid.shared), regions.clone(), maps.clone());
                        let block = Block::new(index, grid.threads as usize, mode, memory, loops);
                        let values: Vec<usize> = pointers.clone();
                        let mut packed: Vec<*mut u8> =
                            values.iter().map(|v| std::ptr::from_ref(v).cast_mut().cast::<u8>()).collect();
                        // SAFETY: a kernel from `lower` with as many parameters as `check_grid` has found.
                        let (block, failure) = unsafe { block::run(block, &mut stacks, entry, packed.as_mut_ptr()) };
                        if let Ok(mut needed) = needed.lock() {
                            needed.extend(&block.needed);
                        }
                        if let (Some(failure), Ok(mut failed)) = (failure, failed.lock()) {
                            failed.get_or_insert((index, failure));
                        }
                    }
                });
            }
        });
        if let Ok(Some((block, failure))) = failed.into_inner() {
            let operation = failure.site.and_then(|s| self.sites.get(s)).map_or(String::new(), |s| shorten(s));
            let what = self.quote(&failure.what);
            return Err(Report { symbol: symbol.into(), block, thread: failure.thread, operation, what });
        }
        let guard = |i: usize| !buffers[i].guard_intact();
        match (0..buffers.len()).find(|&i| guard(i)) {
            Some(i) => Err(refuse(format!("wrote beyond buffer {i}"))),
            None => Ok(()),
        }
    }

    /// Lines of the module, from 0, with fences that products needed and waits for products that were under way, in any run so far.
    pub(super) fn needed(&self) -> BTreeSet<usize> {
        self.needed.lock().map(|all| all.iter().map(|&site| self.lines[site]).collect()).unwrap_or_default()
    }

    /// Adds the text of operations that a message names by number.
    fn quote(&self, what: &str) -> String {
        let mut out = what.to_string();
        let mut seen = vec![];
        for part in what.split("operation ").skip(1) {
            let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
            if let Some(site) = digits.parse::<usize>().ok().filter(|n| !seen.contains(n)) {
                seen.push(site);
                if let Some(text) = self.sites.get(site) {
                    out += &format!("\n  operation {site}: {}", shorten(text));
                }
            }
        }
        out
    }
}

fn shorten(operation: &str) -> String {
    let mut text: String = operation.chars().take(160).collect();
    if text.len() < operation.len() {
        text += " ..";
    }
    text
}

fn check_grid(launch: &Launch, grid: &Grid, function: &Function, arch: Arch) -> Result<(), String> {
    if function.threads != grid.threads {
        return Err(format!("is launched with {} threads but written for {}", grid.threads, function.threads));
    }
    if grid.threads == 0 || grid.threads % 32 != 0 || grid.threads > 1024 {
        return Err(format!("has {} threads", grid.threads));
    }
    if grid.shared > arch.shared_limit() {
        return Err(format!("has {} bytes of shared memory", grid.shared));
    }
    let given = launch.args.len() + grid.maps.len();
    if function.parameters != given {
        return Err(format!("takes {} parameters and is given {given}", function.parameters));
    }
    if launch.tasks == 0 {
        return Err("has no blocks".into());
    }
    Ok(())
}

/// Compiles a kernel and runs all its launches over `args`, in place.
pub fn run(kernel: &Kernel, arch: Arch, args: &mut [Vec<u8>], options: &Options) -> Result<(), Report> {
    Code::of(kernel, arch)?.run(kernel, args, options)
}
