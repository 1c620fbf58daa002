//! The golfc command line. Everything it does is a call into the library; here are only flags, files and exit codes.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Compiler for small language models under a hard budget.
#[derive(Parser, Debug)]
#[command(name = "golfc", version = golf_compiler::target::VERSION, about)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compile: Compile,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Turn text into shards to train on.
    Data(golf_compiler::data::DataArgs),
}

#[derive(Args, Debug)]
struct Compile {
    /// Program to compile (several only with --fmt).
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Executable to write.
    #[arg(short, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Diagnostics only.
    #[arg(long)]
    check: bool,
    /// The legality proof, and the perturbation test on random small weights.
    #[arg(long)]
    check_legality: bool,
    /// Emulate this program's GPU kernels and compare with the interpreter.
    #[arg(long)]
    check_kernels: bool,
    /// Write a stage: ast, graph, grad, plan, kernels, mlir, llvm, asm, ptx; comma list of STAGE[=PATH], - is stdout.
    #[arg(long, value_name = "STAGE[=PATH]", value_delimiter = ',')]
    emit: Vec<String>,
    /// Write an executable that tests every kernel where it runs.
    #[arg(long)]
    emit_check: bool,
    /// Targets, comma list (default: all that this golfc implements).
    #[arg(long, value_name = "TARGET", value_delimiter = ',')]
    target: Vec<String>,
    /// Table of kernels and how to cut them on sm_90a, from measurements; see CONTRIBUTING.md.
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// Override a constant or setting; EXPR is golf in that place's scope. Repeatable.
    #[arg(long = "set", value_name = "PATH=EXPR")]
    sets: Vec<String>,
    /// `f32` makes every parameter, state and operand f32.
    #[arg(long, value_name = "f32|bf16")]
    precision: Option<String>,
    /// Parameters, FLOPs, memory, kernels and fusion, byte counts, legality.
    #[arg(long)]
    explain: bool,
    /// Canonical formatting in place; with --check only report.
    #[arg(long)]
    fmt: bool,
    /// Time per stage, milliseconds.
    #[arg(long)]
    time: bool,
    /// How diagnostics are written.
    #[arg(long, value_name = "human|json", default_value = "human")]
    error_format: String,
    /// Worker threads (default: all).
    #[arg(short, value_name = "N")]
    jobs: Option<usize>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    if let Some(Command::Data(args)) = cli.command {
        return ExitCode::from(golf_compiler::driver::data(args));
    }
    let code = {
        let c = cli.compile;
        golf_compiler::driver::compile(golf_compiler::driver::Options {
            files: c.files,
            out: c.out,
            check: c.check,
            check_legality: c.check_legality,
            check_kernels: c.check_kernels,
            emit: c.emit,
            emit_check: c.emit_check,
            targets: c.target,
            tuning: c.tuning,
            sets: c.sets,
            precision: c.precision,
            explain: c.explain,
            fmt: c.fmt,
            time: c.time,
            json: c.error_format == "json",
            jobs: c.jobs,
        })
    };
    ExitCode::from(code)
}
