//! The driver of tests: `fake.c`, compiled where the test runs.

use std::path::PathBuf;
use std::process::Command;

/// A driver library made with these options (see the file's head); gone when dropped.
pub struct Library {
    _dir: tempfile::TempDir,
    /// Where it is.
    pub path: PathBuf,
}

impl Library {
    /// Compiles it.
    pub fn new(options: &[&str]) -> Library {
        let dir = tempfile::tempdir().unwrap();
        let (source, path) = (dir.path().join("fake.c"), dir.path().join("libcuda.so"));
        std::fs::write(&source, include_str!("fake.c")).unwrap();
        let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let status = Command::new(cc)
            .args(["-O1", "-w", "-shared", "-fPIC", "-o"])
            .arg(&path)
            .args(options)
            .arg(&source)
            .status();
        assert!(status.unwrap().success());
        Library { _dir: dir, path }
    }

    /// As `GOLF_LIBCUDA` takes it.
    pub fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// A kernel in the fake's "PTX". `address` is a function (block, arguments, scratch) of this process.
pub fn kernel(name: &str, pointers: usize, maps: usize, address: &str) -> String {
    format!(".version 8.6\n.target sm_90a\n.visible .entry {name}()\n// kernel {name} {pointers} {maps} {address}\n")
}
