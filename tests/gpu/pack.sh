#!/usr/bin/env bash
# What `make gpu-pack` runs: one folder with everything a GPU machine needs to check and measure golf, without golfc: executables that
# try kernels, programs, golden values, data, the PyTorch benchmark.
# usage: pack.sh OUT
set -euo pipefail
out=$(realpath -m "${1:?usage: pack.sh OUT}")
cd "$(dirname "$0")/../.."
golfc=${GOLFC:-target/release/golfc}
gpu=(--target cpu,sm_90a)
rm -rf "$out"; mkdir -p "$out/data"
say() { printf '== %s\n' "$*"; }
sets() { for s in "$@"; do printf -- '--set\n%s\n' "$s"; done; }

# Sizes of tests/golden/S1016h.
mapfile -t golden < <(sets vocab=128 dim=128 heads=2 kv_heads=1 mlp_hidden=384 seq=128 rope_dims=16 rope_base=22081.790273476247 \
  bigram_buckets=64 bigram_dim=64 ve_dim=64 train.batch=128 train.ranks=1 evaluate.window=128 evaluate.stride=64)
# Small contractions never take the cuts of large ones by themselves.
cuts=$(mktemp -d); trap 'rm -rf "$cuts"' EXIT
for cut in 128x256 128x128-turns 128x128-kept; do echo "* $cut" >"$cuts/$cut"; done
say "kernels of vrl11, small, contractions by warpgroups in turn where that suits"
"$golfc" models/vrl11.golf "${golden[@]}" "${gpu[@]}" --tuning "$cuts/128x128-turns" --emit-check -o "$out/check_small"
say "kernels of vrl11, wide: one row of 384 tokens, contractions with rows kept where that suits"
"$golfc" models/vrl11.golf --set seq=384 --set train.batch=384 --set train.ranks=1 --set evaluate.window=384 "${gpu[@]}" --tuning "$cuts/128x128-kept" --emit-check -o "$out/check_wide"
say "vrl11 at the sizes of the golden values"
"$golfc" models/vrl11.golf "${golden[@]}" "${gpu[@]}" -o "$out/golden_run"
cp -r tests/golden/S1016h "$out/golden"
say "vrl11, one logical shard of 98,304 tokens a step"
"$golfc" models/vrl11.golf --set train.ranks=1 --set train.batch=98304 "${gpu[@]}" -o "$out/vrl11"
say "the same with other cuts of contractions"
for cut in 128x256 128x128-turns; do
  "$golfc" models/vrl11.golf --set train.ranks=1 --set train.batch=98304 "${gpu[@]}" --tuning "$cuts/$cut" -o "$out/tune_$cut"
done
say "tiny"
"$golfc" models/tiny.golf "${gpu[@]}" -o "$out/tiny"
say "tiny with calibrated quantisers, and its kernels"
tests/e2e/calibrated.sh >"$cuts/gptq.golf"
"$golfc" "$cuts/gptq.golf" "${gpu[@]}" -o "$out/gptq"
"$golfc" "$cuts/gptq.golf" "${gpu[@]}" --emit-check -o "$out/check_tiny"
text=$cuts/text; mkdir "$text"
cp ./*.md LICENSE models/*.golf "$text/"
for f in grammar/src/*.rs runtime/src/*.rs runtime/src/*/*.rs; do cp "$f" "$text/$(echo "$f" | tr / _)"; done
"$golfc" data --tokenizer bytes --out "$out/data" "$text"/* >/dev/null
cp tests/gpu/check.sh tests/gpu/golden.py tests/gpu/tune.py tests/bench/torch_vrl11.py tests/bench/torch_kernels.py "$out/"
gzip -9 "$out"/{check_small,check_wide,check_tiny,golden_run,vrl11,tiny,gptq} "$out"/tune_*x* "$out"/golden/*.safetensors
du -sh "$out"
