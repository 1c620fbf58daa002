//! From flags to files: runs the stages in order, prints diagnostics, decides the exit code.
//!
//! *Takes* [`Options`]; *gives* an exit code (0 done, 1 an input is wrong, 2 usage, 3 the machine); *promises* that diagnostics go to stderr, what was asked
//! for to stdout or its file, and that no half-written file is left.

use std::path::PathBuf;

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
    pub sets: Vec<String>,
    pub precision: Option<String>,
    pub explain: bool,
    pub fmt: bool,
    pub time: bool,
    pub json: bool,
    pub jobs: Option<usize>,
}

/// Compiles; gives the exit code.
pub fn compile(o: Options) -> u8 {
    eprintln!("error: this golfc has no stage behind the graph yet; {} file(s) not compiled", o.files.len());
    1
}
