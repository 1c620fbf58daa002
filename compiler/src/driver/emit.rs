//! `--emit=STAGE[=PATH]`: what each stage looks like, as text.
//!
//! *Takes* the list of stages asked for; *gives* files (default `STEM.STAGE` in the working directory) or standard output (`-`);
//! *promises* that a closed standard output is the end, not an error.

use super::program::Built;
use crate::kernel::Kernel;
use crate::lang;
use crate::optim::Assembly;
use golf_grammar::{FileId, dump};
use golf_runtime::error::{Error, Result};
use golf_runtime::files::{Faults, atomic_bytes};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The stages in their order.
pub(super) const STAGES: [&str; 9] = ["ast", "graph", "grad", "plan", "kernels", "mlir", "llvm", "asm", "ptx"];

/// One request; `path` `None` is standard output.
pub(super) struct Emit {
    stage: &'static str,
    path: Option<PathBuf>,
}

/// Reads the flag's list. Errors are usage.
pub(super) fn parse(list: &[String], file: &Path) -> Result<Vec<Emit>> {
    let stem = file.file_stem().map_or("program".into(), |s| s.to_string_lossy().into_owned());
    list.iter()
        .map(|item| {
            let (name, path) = item.split_once('=').map_or((item.as_str(), None), |(n, p)| (n, Some(p)));
            let stage = STAGES
                .into_iter()
                .find(|s| *s == name)
                .ok_or_else(|| Error::usage(format!("--emit={name}: expected one of {}", STAGES.join(", "))))?;
            let path = match path {
                Some("-") => None,
                Some(p) => Some(PathBuf::from(p)),
                None => Some(PathBuf::from(format!("{stem}.{stage}"))),
            };
            Ok(Emit { stage, path })
        })
        .collect()
}

/// Whether any stage from the plan on was asked for.
pub(super) fn needs_plan(emits: &[Emit]) -> bool {
    emits.iter().any(|e| !["ast", "graph", "grad"].contains(&e.stage))
}

/// Whether any stage of code generation was asked for.
#[cfg_attr(feature = "mlir", allow(dead_code))]
pub(super) fn needs_code(emits: &[Emit]) -> bool {
    emits.iter().any(|e| ["mlir", "llvm", "asm", "ptx"].contains(&e.stage))
}

/// Writes to standard output; a closed one is [`Error::Closed`].
pub(super) fn stdout(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Error::Closed,
        _ => Error::io("standard output", e),
    })
}

fn write(emits: &[Emit], stage: &str, text: impl FnOnce() -> Result<String>) -> Result<()> {
    let wanted: Vec<&Emit> = emits.iter().filter(|e| e.stage == stage).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let text = text()?;
    for e in wanted {
        match &e.path {
            None => stdout(&text)?,
            Some(path) => atomic_bytes(path, "emit", &Faults::none(), text.as_bytes())?,
        }
    }
    Ok(())
}

/// The syntax tree of the program after `--set`.
pub(super) fn ast(emits: &[Emit], model: &lang::Model) -> Result<()> {
    write(emits, "ast", || Ok(dump::dump(&golf_grammar::parse_file(FileId(0), model.source.as_bytes()).file)))
}

/// The scoring graph, and the training graph with its derivative.
pub(super) fn graphs(emits: &[Emit], a: &Assembly) -> Result<()> {
    let print = |name: &str| {
        let graph = a.graphs.iter().find(|g| g.name == name);
        graph.map(crate::graph::text::print).ok_or_else(|| Error::input(format!("the program has no graph {name}")))
    };
    write(emits, "graph", || print("score"))?;
    write(emits, "grad", || print("train.micro"))
}

/// The plan as JSON, and every kernel's description: those of the CPU as their code is shared, those of a GPU as they are launched.
pub(super) fn plan(emits: &[Emit], b: &Built) -> Result<()> {
    write(emits, "plan", || {
        let mut p = b.program.clone();
        // Tables of numbers, of no use to a reader.
        p.variants.iter_mut().for_each(|v| v.constants.clear());
        serde_json::to_string_pretty(&p).map(|s| s + "\n").map_err(|e| Error::machine(e.to_string()))
    })?;
    write(emits, "kernels", || {
        let text = |k: &Kernel| format!("{}\n{}\n", k.symbol(), k.text());
        let mut all: String = b.kernels.iter().map(text).collect();
        for (planned, _) in b.gpus().into_iter().flatten() {
            all += &format!("# {}\n", planned.target.device());
            all.extend(planned.launched().into_iter().map(text));
        }
        Ok(all)
    })
}

/// Every kernel as MLIR, optimised LLVM IR or assembly, for the CPU's best tier and then the GPUs; PTX is the GPUs' assembly alone.
#[cfg(feature = "mlir")]
pub(super) fn code(emits: &[Emit], b: &Built) -> Result<()> {
    use crate::kernel::Target;
    use crate::mlir::object::{Job, Text, text};
    use crate::mlir::tier::Tier;
    let of = |tier: Tier| move |kernel: &Kernel| Job { kernel: kernel.clone(), tier: tier.of_kernel(kernel) };
    let generated = b.kernels.iter().filter(|k| Target::Cpu.builtin(k).is_none());
    let cpu: Vec<Job> = generated.map(of(Tier::Avx512Bf16)).collect();
    let plans = b.gpus().into_iter().flatten();
    let gpu: Vec<Job> = plans.flat_map(|(p, arch)| p.kernels.iter().map(of(Tier::Gpu(arch)))).collect();
    let all = || cpu.iter().chain(&gpu);
    let stages = [("mlir", Text::Mlir), ("llvm", Text::Llvm), ("asm", Text::Asm), ("ptx", Text::Asm)];
    for (stage, form) in stages {
        write(emits, stage, || {
            let jobs = all().skip(if stage == "ptx" { cpu.len() } else { 0 });
            let mut out = String::new();
            for job in jobs {
                out += &text(job, form).map_err(Error::machine)?;
                out.push('\n');
            }
            Ok(out)
        })?;
    }
    Ok(())
}
