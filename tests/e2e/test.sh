#!/usr/bin/env bash
# What `make test` runs: formatting, all Rust tests, then models/tiny.golf as a user would run it.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { printf '\n== %s\n' "$*"; }

say "format"; cargo fmt --all --check
say "assembler for GPU kernels"
GOLF_PTXAS=$(tests/e2e/ptxas.sh); export GOLF_PTXAS; echo "${GOLF_PTXAS:-none}"
say "grammar, compiler and runtime"
cargo test --workspace --no-fail-fast
say "models/tiny.golf end to end"
cargo build -p golf-compiler
cargo build -p golf-runtime --example forge
tests/e2e/tiny.sh target/debug/golfc target/debug/examples/forge
