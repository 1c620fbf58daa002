#!/usr/bin/env bash
# Fetches NVIDIA's assembler, with which tests check GPU kernels: a Python wheel, pinned by hash, kept in target/ptxas and never part of golf. Prints its path.
# With CI set, failing to get it is an error; elsewhere the tests that need it say that they are skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=target/ptxas
tool=$dir/nvidia/cuda_nvcc/bin/ptxas
if [ ! -x "$tool" ]; then
  mkdir -p "$dir"
  echo "nvidia-cuda-nvcc-cu12==12.9.86 --hash=sha256:5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0" >"$dir/requirements.txt"
  if ! { python3 -m pip download -q --no-deps --only-binary=:all: --platform manylinux2010_x86_64 --require-hashes -r "$dir/requirements.txt" -d "$dir" \
    && python3 -m zipfile -e "$dir"/nvidia_cuda_nvcc_cu12-*.whl "$dir" && chmod +x "$tool" && rm -f "$dir"/*.whl; } >&2; then
    echo "ptxas: could not be fetched with pip" >&2
    [ -z "${CI:-}" ] || exit 1
    exit 0
  fi
fi
realpath "$tool"
