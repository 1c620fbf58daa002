//! What this golfc can generate code for.

/// Version line of `golfc --version`: the version and the targets.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (targets: cpu, sm_90a, sm_80)");

/// Targets accepted by `--target`.
pub const TARGETS: [&str; 3] = ["cpu", "sm_90a", "sm_80"];
