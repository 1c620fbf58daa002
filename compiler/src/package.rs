//! From a plan and its kernels to one executable file.
//!
//! *Takes* a [`Program`], the [`Kernel`]s it calls, a path; *gives* an executable that needs libc, libm and libgcc_s; *promises* the same bytes
//! for the same program (whatever the directory, the number of threads, the state of the cache), and that the path either holds the finished file or what it
//! held before.
//!
//! The executable is the runtime's static library (carried inside golfc), the kernels' objects, and one generated object with `main` and the
//! [`golf_runtime::plan::ProgramTable`]; the system's C compiler driver links them.

pub mod checks;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use golf_runtime::error::{Error, Result};
use golf_runtime::plan::{PLAN_VERSION, Program};

use crate::kernel::{Kernel, Target};
use crate::mlir::object::{self, Options, Timings};
use crate::mlir::sys::{File, Llvm};
use crate::mlir::tier::Tier;
use crate::schedule::plan::Planned;

/// golf-runtime as a static library, zstd; empty if golfc was built without it.
const RUNTIME: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/runtime.a.zst"));

/// Compression level of the plan: a GPU's code lies in it, and higher levels cost more time than they save bytes.
const PLAN_LEVEL: i32 = 12;

/// The C library golfc runs on; executables need it or a newer one.
pub fn glibc() -> String {
    crate::mlir::sys::glibc_version()
}

/// Compiles `kernels` for every tier of the program, links, and moves the executable to `out`.
///
/// Errors: the machine (no linker, disk full, no permission), with what to do; anything else is a bug of golfc and says so.
pub fn link(
    program: &Program,
    planned: &[Planned],
    kernels: &[Kernel],
    out: &Path,
    options: &Options,
) -> Result<Timings> {
    let (program, gpu) = with_modules(program, planned, options)?;
    let program = &program;
    let tiers = program.tiers.iter().map(|t| tier(&t.name)).collect::<Result<Vec<_>>>()?;
    let jobs = object::jobs(kernels, &tiers);
    let (mut objects, mut timings) = object::compile(&jobs, options).map_err(internal)?;
    timings.merge(&gpu);
    objects.insert(0, timings.stage("table", || table_object(program, kernels, &tiers))?);
    let runtime = timings.stage("runtime", unpack_runtime)?;
    timings.stage("link", || link_objects(&objects, &runtime, out))?;
    Ok(timings)
}

/// The program with the GPU's code in its variants.
fn with_modules(program: &Program, planned: &[Planned], options: &Options) -> Result<(Program, Timings)> {
    let (mut program, mut timings) = (program.clone(), Timings::default());
    for (variant, planned) in program.variants.iter_mut().zip(planned) {
        let Target::Gpu(arch) = planned.target else { continue };
        let job = |k: &Kernel| object::Job { kernel: k.clone(), tier: Tier::Gpu(arch) };
        let jobs: Vec<_> = planned.kernels.iter().map(job).collect();
        let (modules, more) = object::compile(&jobs, options).map_err(internal)?;
        timings.merge(&more);
        let text = |m: Vec<u8>| String::from_utf8(m).map_err(|_| internal("ptx is not text"));
        variant.modules = modules.into_iter().map(text).collect::<Result<_>>()?;
    }
    Ok((program, timings))
}

fn internal(message: impl std::fmt::Display) -> Error {
    Error::machine(format!("internal error of golfc: {message}"))
}

fn tier(name: &str) -> Result<Tier> {
    Tier::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| internal(format!("no tier named {name}")))
}

fn unpack_runtime() -> Result<Vec<u8>> {
    if RUNTIME.is_empty() {
        return Err(Error::machine(
            "this golfc was built without its runtime (GOLF_NO_RUNTIME was set) and cannot link executables",
        ));
    }
    let size = zstd::bulk::Decompressor::upper_bound(RUNTIME).ok_or_else(|| internal("the runtime has no size"))?;
    zstd::bulk::decompress(RUNTIME, size).map_err(internal)
}

/// The object with `main`, the packed plan and the tables of kernel entry points.
fn table_object(program: &Program, kernels: &[Kernel], tiers: &[Tier]) -> Result<Vec<u8>> {
    let plan = golf_runtime::device::pack(program, PLAN_LEVEL)?;
    let text = table_text(program, &plan, kernels, tiers)?;
    let machine = Tier::V3.machine().map_err(internal)?;
    let mut llvm = Llvm::parse(&text, "table", &machine).map_err(internal)?;
    llvm.emit(&machine, File::Object).map_err(internal)
}

/// LLVM IR of the table, see [`golf_runtime::plan::ProgramTable`].
fn table_text(program: &Program, plan: &[u8], kernels: &[Kernel], tiers: &[Tier]) -> Result<String> {
    let mut by_stem = BTreeMap::new();
    for kernel in kernels {
        for launch in kernel.launches() {
            by_stem.insert(format!("{}_{}", kernel.symbol(), launch.entry), kernel);
        }
    }
    let mut symbols = BTreeSet::new();
    let mut text = String::new();
    let mut out = |line: String| {
        text.push_str(&line);
        text.push('\n');
    };
    out(format!("@plan = private constant [{} x i8] c\"{}\", align 64", plan.len(), escaped(plan)));
    for (v, variant) in program.variants.iter().enumerate() {
        let mut entries = Vec::new();
        if variant.device != Target::Cpu.device() {
            out(format!("@entries{v} = private constant [0 x ptr] []"));
            continue;
        }
        for tier in tiers {
            for kernel in &variant.kernels {
                if kernel.builtin.is_some() {
                    entries.push("ptr null".to_string());
                    continue;
                }
                let known = by_stem.get(&kernel.symbol);
                let known = known
                    .ok_or_else(|| internal(format!("the plan calls {}, which no kernel defines", kernel.symbol)))?;
                let symbol = format!("{}_{}", kernel.symbol, tier.of_kernel(known).suffix());
                entries.push(format!("ptr @{symbol}"));
                symbols.insert(symbol);
            }
        }
        out(format!("@entries{v} = private constant [{} x ptr] [{}]", entries.len(), entries.join(", ")));
    }
    let variants: Vec<String> = (0..program.variants.len()).map(|v| format!("ptr @entries{v}")).collect();
    out(format!("@variants = private constant [{} x ptr] [{}]", variants.len(), variants.join(", ")));
    out(format!(
        "@table = private constant {{ i64, ptr, i64, ptr }} {{ i64 {PLAN_VERSION}, ptr @plan, i64 {}, ptr @variants }}",
        plan.len()
    ));
    for symbol in symbols {
        out(format!("declare void @{symbol}(i64, ptr, ptr)"));
    }
    out("declare i32 @golf_main(i32, ptr, ptr)".into());
    out("define i32 @main(i32 %argc, ptr %argv) {".into());
    out("  %code = call i32 @golf_main(i32 %argc, ptr %argv, ptr @table)".into());
    out("  ret i32 %code".into());
    out("}".into());
    Ok(text)
}

/// Bytes inside a quoted LLVM string.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(3 * bytes.len());
    for &b in bytes {
        if b.is_ascii_alphanumeric() {
            text.push(b as char);
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "\\{b:02X}");
        }
    }
    text
}

/// A directory or file that is removed when the work on it ends, however it ends.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = match self.0.is_dir() {
            true => std::fs::remove_dir_all(&self.0),
            false => std::fs::remove_file(&self.0),
        };
    }
}

fn unique(stem: &str) -> String {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    format!("{stem}-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

fn machine(path: &Path, error: std::io::Error) -> Error {
    Error::Machine { file: Some(path.to_path_buf()), message: format!("cannot write: {error}") }
}

fn link_objects(objects: &[Vec<u8>], runtime: &[u8], out: &Path) -> Result<()> {
    let work = Temporary(std::env::temp_dir().join(unique("golfc")));
    let write = |name: &str, bytes: &[u8]| {
        let path = work.0.join(name);
        std::fs::write(&path, bytes).map_err(|e| machine(&path, e))
    };
    std::fs::create_dir_all(&work.0).map_err(|e| machine(&work.0, e))?;
    // Names relative to the working directory: no path of this machine can reach the linker's output.
    let mut inputs = String::new();
    for (i, object) in objects.iter().enumerate() {
        let name = format!("{i}.o");
        write(&name, object)?;
        inputs.push_str(&name);
        inputs.push('\n');
    }
    write("runtime.a", runtime)?;
    write("inputs", inputs.as_bytes())?;
    let driver = std::env::var_os("CC").filter(|c| !c.is_empty()).unwrap_or_else(|| "cc".into());
    run_linker(&work.0, &driver)?;
    // Beside `out`, so that the final rename stays on one file system and is atomic.
    let name = out.file_name().ok_or_else(|| Error::usage(format!("{} is not a file name", out.display())))?;
    let beside = Temporary(out.with_file_name(format!(".{}", unique(&name.to_string_lossy()))));
    std::fs::copy(work.0.join("executable"), &beside.0).map_err(|e| Error::io(out, e))?;
    std::fs::rename(&beside.0, out).map_err(|e| Error::io(out, e))
}

fn run_linker(directory: &Path, driver: &OsStr) -> Result<()> {
    let shown = driver.to_string_lossy();
    let mut command = Command::new(driver);
    command
        .current_dir(directory)
        .args([
            "-o",
            "executable",
            "@inputs",
            "runtime.a",
            "-pie",
            "-s",
            "-Wl,--gc-sections,--build-id=none,--as-needed",
        ])
        .args(["-lgcc_s", "-lm", "-lc"]);
    let output = command.output().map_err(|e| {
        Error::machine(format!("cannot run the linker driver `{shown}`: {e}; install a C compiler (Debian, Ubuntu: apt install gcc) or set CC"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = words.lines().filter(|l| !l.trim().is_empty()).take(8).collect();
    Err(Error::machine(format!("`{shown}` failed to link ({}): {}", output.status, lines.join("; "))))
}

#[cfg(test)]
mod tests;
