//! Builds golf-runtime as a static library, so that golfc can carry it: what golfc links into every executable is the runtime of
//! the same source, never a stale one, and golfc stays one file.
//!
//! The library is built by the same cargo in a target directory of its own (the outer build holds the lock of the usual one), offline (its
//! dependencies are golfc's own, so they are there) and always in release mode.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Set: golfc is built without a runtime and cannot link executables. For lints and documentation.
const SKIP: &str = "GOLF_NO_RUNTIME";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={SKIP}");
    if std::env::var_os("CARGO_FEATURE_MLIR").is_none() {
        return Ok(());
    }
    let out = PathBuf::from(variable("OUT_DIR")?).join("runtime.a.zst");
    if std::env::var_os(SKIP).is_some() {
        std::fs::write(out, [])?;
        return Ok(());
    }
    let runtime = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../runtime");
    for part in ["src", "Cargo.toml", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", runtime.join(part).display());
    }
    let library = std::fs::read(build(&runtime)?)?;
    std::fs::write(out, zstd::bulk::compress(&library, 3)?)?;
    Ok(())
}

fn variable(name: &str) -> Result<OsString, String> {
    std::env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

/// Builds the library; gives its path.
fn build(runtime: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // OUT_DIR is TARGET/PROFILE/build/golf-compiler-HASH/out; the library is the same for every profile.
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target = out.ancestors().nth(4).ok_or("OUT_DIR is not inside a target directory")?.join("golf-runtime");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["rustc", "--lib", "--crate-type", "staticlib", "--release", "--frozen", "--quiet", "--target-dir"])
        .arg(&target)
        .arg("--manifest-path")
        .arg(runtime.join("Cargo.toml"));
    // `cargo clippy` and `cargo check` would otherwise turn the inner build into theirs.
    for name in ["RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().map_err(|e| format!("cannot run cargo for golf-runtime: {e}"))?;
    if !status.success() {
        return Err(format!("golf-runtime does not build as a static library ({status})").into());
    }
    Ok(target.join("release/libgolf_runtime.a"))
}
