#!/usr/bin/env bash
# models/tiny.golf with calibrated quantisers, on standard output: three lines changed.
set -euo pipefail
cd "$(dirname "$0")/../.."
sed -e 's/^    int6 on matrices .*/    gptq6 on matrices/' \
  -e 's/^    int8 on embeddings/    gptq8 on embeddings where name == "tok_emb.weight"\n&/' \
  -e 's/^    cap  = .*/&\n    calibrate = stream("fineweb_train_*.bin") { tokens = 32_768 }/' models/tiny.golf
