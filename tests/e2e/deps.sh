#!/usr/bin/env bash
# Installs what a build needs and is missing: LLVM/MLIR 22 development files, a C linker, SentencePiece's trainer.
# Debian and Ubuntu: from the distribution's packages. Elsewhere: says what to install.
set -euo pipefail

prefix=${MLIR_SYS_220_PREFIX:-/usr/lib/llvm-22}
missing=()
[ -x "$prefix/bin/llvm-config" ] && [ -d "$prefix/include/mlir-c" ] || missing+=(llvm-22-dev libmlir-22-dev mlir-22-tools)
ls "$prefix"/lib/libPolly* >/dev/null 2>&1 || missing+=(libpolly-22-dev)
ls "$prefix"/lib/libclang*.so* >/dev/null 2>&1 || missing+=(libclang-22-dev clang-22)
command -v cc >/dev/null && command -v c++ >/dev/null || missing+=(build-essential)
ls /usr/include/zstd.h /usr/include/*/zstd.h >/dev/null 2>&1 || missing+=(libzstd-dev)
ls /usr/include/zlib.h /usr/include/*/zlib.h >/dev/null 2>&1 || missing+=(zlib1g-dev)
command -v spm_train >/dev/null || missing+=(sentencepiece)
python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)

command -v cargo >/dev/null || { echo "deps: Rust is missing; install it from https://rustup.rs and run make again" >&2; exit 1; }
[ ${#missing[@]} -eq 0 ] && { echo "deps: everything is here (LLVM $("$prefix/bin/llvm-config" --version))"; exit 0; }

if ! command -v apt-get >/dev/null; then
  echo "deps: this system has no apt-get. Install LLVM and MLIR 22 with their development files, SentencePiece's spm_train" >&2
  echo "      and a C++ compiler, then set MLIR_SYS_220_PREFIX and TABLEGEN_220_PREFIX to LLVM's prefix and" >&2
  echo "      LIBCLANG_PATH to the folder of libclang.so. Missing here: ${missing[*]}" >&2
  exit 1
fi
sudo=; [ "$(id -u)" -eq 0 ] || sudo=sudo
echo "deps: installing ${missing[*]}"
$sudo apt-get update -q
if ! apt-cache show libmlir-22-dev >/dev/null 2>&1; then
  echo "deps: this release has no LLVM 22 packages; add the repository described at https://apt.llvm.org and run make again" >&2
  exit 1
fi
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends "${missing[@]}"
