#!/usr/bin/env bash
# What `make gpu-check` runs, inside the folder of pack.sh on a machine with a Hopper GPU, its driver, and a python3 with PyTorch: kernels against the
# f64 reference, golden values in bf16, training of tiny against the CPU, bits of two runs, benchmark against PyTorch. Writes report.md.
# usage: check.sh [OUT]      (each part runs even if an earlier one failed; exit 1 if any did)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "${1:-$here/out}")
mkdir -p "$out"; cd "$here"
gunzip -f ./*.gz golden/*.gz 2>/dev/null
report=$out/report.md; : >"$report"
failed=0
line() { echo "$*" | tee -a "$report"; }
part() { printf '\n## %s\n\n' "$*" | tee -a "$report"; }
# run NAME COMMAND...: output to OUT/NAME.log, its last lines to the report.
run() {
  local name=$1 start=$SECONDS code=0; shift
  timeout "${LIMIT:-150}" "$@" >"$out/$name.log" 2>&1 || code=$?
  line '```'; tail -n "${LINES_SHOWN:-12}" "$out/$name.log" | cut -c1-${WIDTH:-200} | tee -a "$report"; line '```'
  line "\`$name\`: exit $code, $((SECONDS - start)) s"; [ "$code" -eq 0 ] || failed=1
}
# kernels CHECK: all of its kernels; one that breaks or blocks the device costs no other its trial.
kernels() {
  local log=$out/$1.log
  timeout "${LIMIT:-150}" "./$1" >"$log" 2>&1 || failed=1
  line '```'; grep -E '^(FAILED|error)' "$log" | cut -c1-220 | sort -u | head -40 | tee -a "$report"; tail -n 12 "$log" | grep -E 'right' | tee -a "$report"; line '```'
}
line "# GPU report"
line ""
line "$(date -u +%F) · $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader) · $(python3 -c 'import torch; print("torch", torch.__version__)')"
for p in ${PARTS:-kernels golden tiny bench tune torch}; do
  case $p in
    kernels)
      part "Kernels against the f64 reference"
      for c in check_small check_wide check_tiny; do kernels "$c"; done ;;
    golden)
      part "vrl11 at reduced sizes against the published bf16 program"
      run probe ./golden_run probe --weights golden/weights.safetensors --tokens golden/tokens.safetensors --out "$out/probe.safetensors" --device cuda:0
      run golden python3 golden.py golden "$out/probe.safetensors" ;;
    tiny)
      part "Training models/tiny.golf: GPU twice, CPU once"
      for r in gpu1 gpu2; do run "tiny_$r" ./tiny train --data data --out "$out/tiny_$r" --seed 7 --steps 60 --device cuda:0 --overwrite; done
      run tiny_cpu ./tiny train --data data --out "$out/tiny_cpu" --seed 7 --steps 60 --device cpu --overwrite
      if cmp "$out/tiny_gpu1/weights.safetensors" "$out/tiny_gpu2/weights.safetensors"; then line "two GPU runs: the same bits"; else line "FAILED: two GPU runs differ"; failed=1; fi
      run tiny_pack ./tiny pack --out "$out/tiny_gpu1"
      run tiny_score ./tiny score --data data --out "$out/tiny_gpu1" --device cuda:0
      part "Calibrated quantisers: the same weights packed on the GPU and on the CPU"
      for d in cuda:0 cpu; do
        run "gptq_${d%:0}" ./gptq pack --data data --out "$out/gptq_${d%:0}" --weights "$out/tiny_gpu1/weights.safetensors" --codes "$out/codes_${d%:0}.safetensors" --device "$d"
      done
      run gptq_codes python3 golden.py --codes "$out/codes_cuda.safetensors" "$out/codes_cpu.safetensors"
      run gptq_score ./gptq score --data data --out "$out/gptq_cuda" --device cuda:0 ;;
    bench)
      part "vrl11, T=2048, 98,304 tokens a step, bf16: golf"
      LINES_SHOWN=60 run bench ./vrl11 bench --steps 10 --kernels 40 --evaluate --device cuda:0 ;;
    tune)
      part "Cuts of contractions"
      run tune_default ./vrl11 bench --steps 3 --kernels 1000 --device cuda:0
      for c in tune_*x*; do run "$c" "./$c" bench --steps 3 --kernels 1000 --device cuda:0; done
      LINES_SHOWN=60 run tuning python3 tune.py "$out/tune_default.log" "$out"/tune_*x*.log ;;
    torch)
      part "The same step, attention and ceilings in PyTorch"
      WIDTH=900
      LINES_SHOWN=2 run torch_kernels python3 torch_kernels.py
      LINES_SHOWN=2 run torch_compile python3 torch_vrl11.py --mode compile --steps 10 ;;
  esac
done
line ""
[ "$failed" -eq 0 ] && line "all parts passed" || line "some parts FAILED"
exit "$failed"
