//! From flags to files: runs the stages in order, prints diagnostics, decides the exit code.
//!
//! *Takes* [`Options`]; *gives* an exit code (0 done, 1 an input is wrong, 2 usage, 3 the machine); *promises* that diagnostics go to stderr, what was asked
//! for to stdout or its file, and that no half-written file is left.

mod emit;
mod explain;
mod program;

use crate::graph::ir::DType;
use crate::kernel::Target;
use crate::kernel::gpu::Arch;
use crate::kernel::gpu::tuning::Tuning;
use crate::lang;
use crate::schedule::plan::Planned;
use crate::{optim, schedule, target};
use golf_grammar::{Diagnostic, FileId, SourceMap, Span, print, render_all, to_json};
use golf_runtime::error::{Error, Result};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The command line of a compilation.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Options {
    pub files: Vec<PathBuf>,
    pub out: Option<PathBuf>,
    pub check: bool,
    pub check_legality: bool,
    pub check_kernels: bool,
    pub emit: Vec<String>,
    pub emit_check: bool,
    pub targets: Vec<String>,
    pub tuning: Option<PathBuf>,
    pub sets: Vec<String>,
    pub precision: Option<String>,
    pub explain: bool,
    pub fmt: bool,
    pub time: bool,
    pub json: bool,
    pub jobs: Option<usize>,
}

/// What ends a compilation early.
pub(crate) enum Stop {
    /// Messages about the program.
    Diagnostics(Box<SourceMap>, Vec<Diagnostic>),
    /// Anything else.
    Error(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        Stop::Error(e)
    }
}

type Outcome<T> = std::result::Result<T, Stop>;

/// A program's plan for a target in a precision, as an executable holds it. For tests and surveys of kernels.
pub fn planned(model: &lang::Model, target: Target, precision: DType) -> std::result::Result<Planned, String> {
    let part = program::Part::new(model, target, precision).map_err(|e| e.message)?;
    part.plan(model, &Tuning::default()).map_err(|e| e.to_string())
}

/// Wall time by stage, in order.
#[derive(Default)]
pub(crate) struct Times(Vec<(String, Duration)>);

impl Times {
    fn stage<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.0.push((name.into(), start.elapsed()));
        result
    }

    fn print(&self) {
        let total: Duration = self.0.iter().map(|t| t.1).sum();
        for (name, time) in self.0.iter().chain([&("total".to_string(), total)]) {
            eprintln!("{name:>12} {:>9.1} ms", time.as_secs_f64() * 1e3);
        }
    }
}

/// Runs `golfc data`; gives the exit code.
pub fn data(args: crate::data::DataArgs) -> u8 {
    match crate::data::run(args) {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("error: {e}");
            e.exit_code() as u8
        }
    }
}

/// Compiles; gives the exit code.
pub fn compile(o: Options) -> u8 {
    let stop = match work(&o) {
        Ok(()) => return 0,
        Err(stop) => stop,
    };
    match stop {
        Stop::Error(e) => {
            // Nobody reads our output any more: a quiet end.
            if matches!(e, Error::Closed) {
                return 0;
            }
            eprintln!("error: {e}");
            e.exit_code() as u8
        }
        Stop::Diagnostics(map, diagnostics) => {
            show(&map, &diagnostics, o.json);
            u8::from(diagnostics.iter().any(Diagnostic::is_error))
        }
    }
}

/// Prints diagnostics to stderr.
fn show(map: &SourceMap, diagnostics: &[Diagnostic], json: bool) {
    if json {
        for d in diagnostics {
            eprintln!("{}", to_json(map, d));
        }
    } else if !diagnostics.is_empty() {
        eprint!("{}", render_all(map, diagnostics, std::io::stderr().is_terminal()));
    }
}

fn work(o: &Options) -> Outcome<()> {
    if o.fmt {
        return format(&o.files, o.check);
    }
    let [file] = &o.files[..] else {
        return Err(Error::usage("expected one program; only --fmt takes several").into());
    };
    let emits = emit::parse(&o.emit, file)?;
    check_options(o)?;
    let mut times = Times::default();
    let done = one(o, file, &emits, &mut times);
    if o.time {
        times.print();
    }
    done
}

fn check_options(o: &Options) -> Result<()> {
    for t in &o.targets {
        if !target::TARGETS.contains(&t.as_str()) {
            let known = target::TARGETS.join(", ");
            return Err(Error::usage(format!("--target {t}: this golfc generates code for {known}")));
        }
    }
    if let Some(p) = o.precision.as_deref().filter(|p| !["f32", "bf16"].contains(p)) {
        return Err(Error::usage(format!("--precision {p}: expected f32 or bf16")));
    }
    if o.emit_check && (o.out.is_none() || named(o).count() != 1) {
        let known = Arch::ALL.map(Arch::name).join(" or ");
        return Err(Error::usage(format!(
            "--emit-check makes an executable for one kind of GPU: it needs -o PATH and --target {known}"
        )));
    }
    Ok(())
}

/// Longest file that is read at all, bytes; the language's own limit is below.
const SOURCE_LIMIT: u64 = 1 << 26;

fn one(o: &Options, file: &Path, emits: &[emit::Emit], times: &mut Times) -> Outcome<()> {
    let text = golf_runtime::files::read_bounded(file, SOURCE_LIMIT)?;
    let name = file.to_string_lossy().into_owned();
    let mut map = SourceMap::new();
    let input = lang::Input { path: &name, bytes: &text, sets: &o.sets };
    let loaded = times.stage("language", || lang::load(&mut map, &input));
    let model = loaded.map_err(|d| Stop::Diagnostics(Box::new(map.clone()), d))?;
    show(&map, &model.warnings, o.json);
    emit::ast(emits, &model)?;
    let source = Checked { map: &map };

    let mut parts = times.stage("graphs", || {
        kinds(&model, o)
            .into_iter()
            .map(|(target, p)| program::Part::new(&model, target, p).map_err(|e| source.stop(e)))
            .collect::<Outcome<Vec<_>>>()
    })?;
    let legal = times.stage("legality", || program::check_legality(&parts[0].assembly));
    legal.map_err(|d| Stop::Diagnostics(Box::new(map.clone()), d))?;
    emit::graphs(emits, &parts[0].assembly)?;
    if o.check_legality {
        program::perturbation(&model, &parts[0].sizes).map_err(|e| source.stop(e))?;
    }
    let wanted = o.out.is_some() || o.explain || o.check_kernels || emit::needs_plan(emits);
    if !wanted {
        return Ok(());
    }
    let tuning = tuning(o)?;
    let planned = times.stage("schedule", || program::plan(&model, &mut parts, gpu_by_name(o), &tuning))?;
    let chosen = planned.iter().filter(|p| p.target == Target::Gpu(Arch::Sm90a)).flat_map(|p| &p.kernels);
    tuning.check_used(chosen).map_err(|why| in_table(o, why))?;
    let built = program::build(&model, &parts, planned);
    emit::plan(emits, &built)?;
    if o.explain {
        let text = explain::text(&model, &built);
        emit::stdout(&text)?;
    }
    if o.check_kernels {
        emulated(&built, times)?;
    }
    code(o, emits, &built, times)
}

/// `--check-kernels`: every kernel of the GPU plan on the emulator.
#[cfg(feature = "mlir")]
fn emulated(built: &program::Built, times: &mut Times) -> Outcome<()> {
    let kernels: Vec<_> =
        built.gpus()?.into_iter().flat_map(|(p, arch)| p.launched().into_iter().map(move |k| (k, arch))).collect();
    let mut closed = Ok(());
    let mut say = |line: &str| {
        if closed.is_ok() {
            closed = emit::stdout(&format!("{line}\n"));
        }
    };
    let done = times.stage("emulator", || crate::emulate::check_program(&kernels, &mut say));
    closed?;
    done.map_err(|e| Error::machine(format!("{e}; this is a bug of golfc")).into())
}

#[cfg(not(feature = "mlir"))]
fn emulated(_: &program::Built, _: &mut Times) -> Outcome<()> {
    Err(Error::input("this golfc was built without code generation (cargo feature `mlir`)").into())
}

#[cfg(feature = "mlir")]
fn code(o: &Options, emits: &[emit::Emit], built: &program::Built, times: &mut Times) -> Outcome<()> {
    use crate::mlir::object;
    emit::code(emits, built)?;
    let Some(out) = &o.out else { return Ok(()) };
    let mut options = object::Options::default();
    if let Some(jobs) = o.jobs {
        options.threads = jobs.max(1);
    }
    if o.emit_check {
        return checks(built, out, &options, times);
    }
    let timings =
        times.stage("code", || crate::package::link(&built.program, &built.planned, &built.kernels, out, &options))?;
    if o.time {
        eprintln!(
            "code: {} kernels compiled, {} from the cache; time summed over threads:",
            timings.compiled, timings.cached
        );
        for (name, time) in &timings.stages {
            eprintln!("{:>12} {:>9.1} ms", name, time.as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

/// `--emit-check`.
#[cfg(feature = "mlir")]
fn checks(
    built: &program::Built,
    out: &Path,
    options: &crate::mlir::object::Options,
    times: &mut Times,
) -> Outcome<()> {
    let gpu = built.gpus()?[0];
    let ((tried, left), _) =
        times.stage("checks", || crate::package::checks::link(gpu, &built.program.name, out, options))?;
    eprintln!("{tried} kernels to try; {left} too large for the reference (make the program smaller with --set)");
    Ok(())
}

#[cfg(not(feature = "mlir"))]
fn code(o: &Options, emits: &[emit::Emit], _: &program::Built, _: &mut Times) -> Outcome<()> {
    if o.out.is_some() || emit::needs_code(emits) {
        return Err(Error::input("this golfc was built without code generation (cargo feature `mlir`)").into());
    }
    Ok(())
}

/// The kinds of GPU that `--target` names.
fn named(o: &Options) -> impl Iterator<Item = Arch> {
    Arch::ALL.into_iter().filter(|a| o.targets.iter().any(|t| t == a.name()))
}

/// The table that `--tuning` names.
fn tuning(o: &Options) -> Result<Tuning> {
    let Some(path) = &o.tuning else { return Ok(Tuning::default()) };
    let text = String::from_utf8(golf_runtime::files::read_bounded(path, SOURCE_LIMIT)?);
    text.map_err(|e| e.to_string()).and_then(|text| Tuning::parse(&text)).map_err(|why| in_table(o, why))
}

/// An error of the tuning table.
fn in_table(o: &Options, why: String) -> Error {
    Error::input(format!("{}: {why}", o.tuning.as_deref().unwrap_or(Path::new("")).display()))
}

/// Whether the user asked for GPU code. If not it is made all the same where it can be (without `--target`: everything this golfc implements).
fn gpu_by_name(o: &Options) -> bool {
    o.check_kernels || named(o).next().is_some()
}

/// The variants an executable holds: the CPU's in every precision, then the GPUs' (bf16 only: their matrix units know no f32).
fn kinds(model: &lang::Model, o: &Options) -> Vec<(Target, DType)> {
    let precisions = precisions(model, o.precision.as_deref());
    let archs: Vec<Arch> = match named(o).collect::<Vec<_>>() {
        _ if precisions[0] != DType::Bf16 => vec![],
        none if none.is_empty() && (o.targets.is_empty() || o.check_kernels) => Arch::ALL.to_vec(),
        some => some,
    };
    let cpu = precisions.into_iter().map(|p| (Target::Cpu, p));
    cpu.chain(archs.into_iter().map(|a| (Target::Gpu(a), DType::Bf16))).collect()
}

/// The precisions an executable holds: what the program computes in first, f32 always.
fn precisions(model: &lang::Model, asked: Option<&str>) -> Vec<DType> {
    match asked {
        Some("f32") => vec![DType::F32],
        Some(_) => vec![DType::Bf16, DType::F32],
        None if model.train.compute == DType::Bf16 => vec![DType::Bf16, DType::F32],
        None => vec![DType::F32],
    }
}

/// Turns assembly errors into diagnostics of the source.
struct Checked<'a> {
    map: &'a SourceMap,
}

impl Checked<'_> {
    fn stop(&self, e: optim::Error) -> Stop {
        let d = Diagnostic::error(lang::codes::TENSOR, e.message);
        let d = match e.span {
            Some((file, start, end)) => d.at(Span::new(FileId(file), start as usize, end as usize), ""),
            None => d.in_file(FileId(0)),
        };
        Stop::Diagnostics(Box::new(self.map.clone()), vec![d])
    }
}

impl From<schedule::Error> for Stop {
    fn from(e: schedule::Error) -> Stop {
        Stop::Error(Error::input(e.to_string()))
    }
}

/// `--fmt`: rewrites files in canonical form, or with `--check` says which are not.
fn format(files: &[PathBuf], check: bool) -> Outcome<()> {
    let mut changed = Vec::new();
    for path in files {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let mut map = SourceMap::new();
        let file = map.add_bytes(path.to_string_lossy(), &bytes);
        let text = print::format_bytes(file, &bytes).map_err(|d| Stop::Diagnostics(Box::new(map), d))?;
        if text.as_bytes() == bytes {
            continue;
        }
        if check {
            changed.push(path.display().to_string());
        } else {
            golf_runtime::files::atomic_bytes(path, "source", &golf_runtime::files::Faults::none(), text.as_bytes())?;
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    std::io::stdout().flush().ok();
    Err(Error::input(format!("not formatted: {}", changed.join(", "))).into())
}
