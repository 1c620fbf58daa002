#!/usr/bin/env bash
# The main job at a size that finishes in minutes on two cores: full-size models/vrl11.golf on real text.
# usage: main_job.sh OUT    (OUT/text holds the shards, see text.sh)
set -euo pipefail
out=$1
cd "$(dirname "$0")/../.."
golfc=${GOLFC:-target/release/golfc}
mkdir -p "$out"

# One published step is 786,432 tokens on eight GPUs; these overrides make steps of 4,096 and keep everything else.
sets=(
  --set train.batch=4096 --set train.ranks=1 --set "train.stop=${STOP:-240s}"
  --set "train.schedule=warmdown(fraction: 0.5)" --set train.average=none --set train.muon.momentum=0.95
  --set evaluate.limit=8192 --set evaluate.adapt.chunk=2048
)
echo "== golfc models/vrl11.golf ${sets[*]} -o $out/run"
"$golfc" models/vrl11.golf "${sets[@]}" --time -o "$out/run"
ls -l "$out/run"
echo "== $out/run all --data $out/text --out $out/job --seed 1"
"$out/run" all --data "$out/text" --out "$out/job" --seed 1 --overwrite
echo "== $out/run verify --out $out/job --data $out/text --replay"
"$out/run" verify --out "$out/job" --data "$out/text" --replay
echo
echo "done: report $out/job/README.md, curve $out/job/curve.svg, receipt $out/job/receipt.jsonl"
