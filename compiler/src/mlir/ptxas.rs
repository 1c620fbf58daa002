//! NVIDIA's assembler as a check of generated PTX: what it takes, and what it says of a kernel.
//!
//! *Takes* PTX text; *gives* what `ptxas -v` reports per kernel; *promises* to use only the program that `GOLF_PTXAS` names or that is on the PATH. golfc
//! itself never needs it: where a program runs, the driver assembles.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What the assembler says of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers per thread at launch.
    pub registers: u32,
    /// Bytes of registers stored to and loaded from local memory.
    pub spills: u32,
    /// Bytes of local memory per thread.
    pub stack: u32,
    /// Static shared memory, bytes.
    pub shared: u32,
}

/// A whole module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// By entry.
    pub kernels: BTreeMap<String, Usage>,
    /// Warnings and notes (`C75xx`: products that had to be serialised).
    pub remarks: Vec<String>,
}

/// The assembler, if there is one.
pub fn find() -> Option<PathBuf> {
    let named = std::env::var_os("GOLF_PTXAS").filter(|p| !p.is_empty()).map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    named.or_else(|| std::env::split_paths(&paths).map(|d| d.join("ptxas")).find(|p| p.is_file()))
}

/// Assembles for the device that the text names. Error: what the assembler says.
pub fn assemble(ptxas: &Path, ptx: &str) -> Result<Report, String> {
    let target = ptx.lines().find_map(|l| l.trim().strip_prefix(".target")).map_or("", str::trim);
    assemble_for(ptxas, target, ptx)
}

/// Assembles for a device, `sm_100` for example: the text's own or a later one.
pub fn assemble_for(ptxas: &Path, device: &str, ptx: &str) -> Result<Report, String> {
    static COUNTER: AtomicUsize = AtomicUsize::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("golf-ptxas-{}-{n}.ptx", std::process::id()));
    std::fs::write(&file, ptx).map_err(|e| format!("{}: {e}", file.display()))?;
    let output = Command::new(ptxas).arg(format!("-arch={device}")).args(["-v", "-o", "/dev/null"]).arg(&file).output();
    let _ = std::fs::remove_file(&file);
    let output = output.map_err(|e| format!("{}: {e}", ptxas.display()))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(text);
    }
    Ok(parse(&text))
}

fn parse(text: &str) -> Report {
    let mut report = Report::default();
    let mut entry = String::new();
    for line in text.lines() {
        let number = |word: &str| -> u32 {
            let before = line.split(word).next().unwrap_or_default().trim_end();
            before.rsplit([' ', ',']).next().and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        if let Some(name) = line.split("Compiling entry function '").nth(1) {
            entry = name.split('\'').next().unwrap_or_default().to_string();
            report.kernels.insert(entry.clone(), Usage::default());
        } else if let Some(usage) = report.kernels.get_mut(&entry).filter(|_| line.contains("bytes stack frame")) {
            usage.stack = number("bytes stack frame");
            usage.spills = number("bytes spill stores") + number("bytes spill loads");
        } else if let Some(usage) = report.kernels.get_mut(&entry).filter(|_| line.contains("Used ")) {
            usage.registers = number("registers");
            usage.shared = if line.contains("bytes smem") { number("bytes smem") } else { 0 };
        } else if line.contains("warning") || line.contains("(C7") {
            report.remarks.push(line.to_string());
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ptxas_prints() {
        let text = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'row_1' for 'sm_90a'\n\
            ptxas info    : Function properties for row_1\n    \
            8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 32 registers, used 1 barriers, 640 bytes smem\n\
            ptxas info    : (C7519) Potential Performance Loss: something\n";
        let report = parse(text);
        assert_eq!(report.kernels["row_1"], Usage { registers: 32, spills: 16, stack: 8, shared: 640 });
        assert_eq!(report.remarks.len(), 1);
    }
}
