#!/usr/bin/env bash
# What `make test` runs: formatting, lints, all Rust tests, then the built programs as a user would run them.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { printf '\n== %s\n' "$*"; }

say "format"; cargo fmt --all --check
say "language, graph and runtime tests"
cargo test --workspace --no-fail-fast
