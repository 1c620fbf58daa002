//! `--emit=STAGE[=PATH]`: what each stage looks like, as text.
//!
//! *Takes* the list of stages asked for; *gives* files (default `STEM.STAGE` in the working directory) or standard output (`-`);
//! *promises* that a closed standard output is the end, not an error.

use super::program::Built;
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
            if stage == "ptx" {
                return Err(Error::usage("--emit=ptx: this golfc generates no GPU code"));
            }
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
    emits.iter().any(|e| ["mlir", "llvm", "asm"].contains(&e.stage))
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

/// The plan as JSON, and every kernel's description.
pub(super) fn plan(emits: &[Emit], b: &Built) -> Result<()> {
    write(emits, "plan", || {
        let mut p = b.program.clone();
        // Tables of numbers, of no use to a reader.
        p.variants.iter_mut().for_each(|v| v.constants.clear());
        serde_json::to_string_pretty(&p).map(|s| s + "\n").map_err(|e| Error::machine(e.to_string()))
    })?;
    write(emits, "kernels", || Ok(b.kernels.iter().map(|k| format!("{}\n{}\n", k.symbol(), k.text())).collect()))
}

/// Every kernel as MLIR, optimised LLVM IR or assembly, for the best tier.
#[cfg(feature = "mlir")]
pub(super) fn code(emits: &[Emit], b: &Built) -> Result<()> {
    use crate::mlir::object::{Job, Text, text};
    use crate::mlir::tier::Tier;
    for (stage, form) in [("mlir", Text::Mlir), ("llvm", Text::Llvm), ("asm", Text::Asm)] {
        write(emits, stage, || {
            let mut all = String::new();
            for kernel in b.kernels.iter().filter(|k| !matches!(k, crate::kernel::Kernel::Host(_))) {
                let tier = Tier::Avx512Bf16.of_kernel(kernel);
                all += &text(&Job { kernel: kernel.clone(), tier }, form).map_err(Error::machine)?;
                all.push('\n');
            }
            Ok(all)
        })?;
    }
    Ok(())
}
