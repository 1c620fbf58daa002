#!/usr/bin/env bash
# models/tiny.golf as a user would run it: the whole job, bits over thread counts, kills and resumes, receipts, bad input.
# usage: tiny.sh GOLFC FORGE   (prints one line per check; exits 1 at the first that fails; FORGE is the runtime's example of that name)
set -euo pipefail
golfc=$(realpath "$1")
forge=$(realpath "$2")
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
passed=0
ok() { passed=$((passed + 1)); echo "ok $passed - $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
# expect CODE TEXT COMMAND...: the command exits with CODE, says TEXT (a grep -E pattern) and does not panic.
expect() {
  local code=$1 text=$2 got=0; shift 2
  "$@" >out.txt 2>&1 || got=$?
  [ "$got" -eq "$code" ] || { cat out.txt >&2; fail "exit code $got instead of $code: $*"; }
  grep -qE "$text" out.txt || { cat out.txt >&2; fail "does not say '$text': $*"; }
  ! grep -qE "panicked|RUST_BACKTRACE" out.txt || { cat out.txt >&2; fail "panic: $*"; }
  ok "$(basename "$1") ${*:2} -> $code"
}

# Text: this repository's own pages and sources.
mkdir text
cp "$root"/*.md "$root"/LICENSE "$root"/models/*.golf text/
for f in "$root"/grammar/src/*.rs "$root"/runtime/src/*.rs "$root"/runtime/src/*/*.rs; do cp "$f" "text/$(echo "${f#"$root"/}" | tr / _)"; done
"$golfc" data --tokenizer bytes --out data text/* >/dev/null
"$golfc" "$root/models/tiny.golf" -o tiny
ok "compiles ($(stat -c %s tiny) bytes)"
[ "$(stat -c %s tiny)" -lt 30000000 ] || fail "executable of 30 MB or more"
ldd tiny | awk '{print $1}' | grep -vE '^(linux-vdso|libc|libm|libgcc_s|/lib64/ld-linux)' && fail "links more than libc, libm, libgcc_s" || ok "links libc, libm, libgcc_s only"
mkdir empty && (cd empty && env -i ../tiny info >/dev/null) || fail "runs in an empty directory with an empty environment"; ok "runs in an empty directory with an empty environment"

steps=${STEPS:-60}
for t in 1 2 3; do
  ./tiny train --data data --out "run$t" --seed 7 --steps "$steps" --threads "$t" >/dev/null
  ./tiny pack --out "run$t" --threads "$t" >/dev/null
  ./tiny score --data data --out "run$t" --threads "$t" >/dev/null
done
for f in weights.safetensors artifact.golfa nll.f32 receipt.jsonl; do
  cmp "run1/$f" "run2/$f" && cmp "run1/$f" "run3/$f" || fail "$f differs over --threads 1, 2, 3"
done
ok "same bits with 1, 2 and 3 threads"
grep -q '"val_bpb"' run1/submission.json && [ -s run1/README.md ] && [ -s run1/curve.svg ] || fail "report written"; ok "report written"

# Calibrated quantisers, three lines of the program: codes that know what their weights are multiplied with lose less than half as much.
"$root/tests/e2e/calibrated.sh" >gptq.golf
"$golfc" gptq.golf -o gptq
weights=(--weights run1/weights.safetensors)
expect 2 "calibrates its quantisers.*--data DIR.*fineweb_train" ./gptq pack --out new0 "${weights[@]}"
for t in 1 2 3; do ./gptq pack --data data --out "gptq$t" "${weights[@]}" --threads "$t" >calibrated.txt; done
grep -q "^calibrate:32768 tokens, 13 matrices" calibrated.txt || fail "calibration is reported"
cmp gptq1/artifact.golfa gptq2/artifact.golfa && cmp gptq1/artifact.golfa gptq3/artifact.golfa || fail "calibrated artifact differs over --threads 1, 2, 3"
ok "the same calibrated artifact with 1, 2 and 3 threads"
loss() { "./$1" score --data data --out "$2" --no-adapt "${@:3}" | sed -n 's/^sliding val_loss:\([0-9.]*\).*/\1/p'; }
losses=$(echo "$(loss tiny whole "${weights[@]}") $(loss tiny run2) $(loss gptq gptq1)")
awk '{ exit !($2 > $1 && $3 - $1 < ($2 - $1) / 2) }' <<<"$losses" || fail "calibrated codes lose less than half as much: $losses"
ok "losses of the weights, with int6 and with gptq6: $losses"

# Twenty kills, at steps and at byte offsets of checkpoint writes, then the same bits as undisturbed.
seed=${KILL_SEED:-$RANDOM}
echo "kill seed $seed"
RANDOM=$seed
mode= killed=0 tries=0
while [ "$killed" -lt 20 ]; do
  tries=$((tries + 1)); [ "$tries" -lt 100 ] || fail "only $killed of 100 faults killed"
  if [ $((tries % 2)) -eq 0 ]; then point="kill:step:$((1 + RANDOM % steps))"; else point="kill:checkpoint:$((RANDOM * 64))"; fi
  got=0
  GOLF_FAILPOINT=$point ./tiny train --data data --out killed --seed 7 --steps "$steps" --checkpoint-every 0 $mode >/dev/null 2>&1 || got=$?
  case $got in
    137) killed=$((killed + 1)); if ls killed/checkpoint/* >/dev/null 2>&1; then mode=--resume; else mode=--overwrite; fi ;;
    0) mode=--overwrite ;;   # the fault lay beyond the end: start over
    *) fail "$point ended with $got" ;;
  esac
done 2>/dev/null
./tiny train --data data --out killed --seed 7 --steps "$steps" $mode >/dev/null
cmp run1/weights.safetensors killed/weights.safetensors || fail "twenty kills, then resumed to the same bits"; ok "twenty kills, then resumed to the same bits"

# Receipts.
expect 0 "level c passed" ./tiny verify --out run1 --data data --replay
cp run1/receipt.jsonl receipt.good
damage() { cp receipt.good run1/receipt.jsonl; "$@" run1/receipt.jsonl; expect 1 "receipt.jsonl" ./tiny verify --out run1; }
damage sed -i '3s/"bytes":[0-9]/"bytes":9/'
damage sed -i '3d'
damage sed -i '3p'
damage sed -i '2{h;d};3{G}'
damage sed -i '$d'
cp receipt.good run1/receipt.jsonl
# A forgery that recomputes every sum and hash passes what needs no re-execution, and nothing else.
cp -r run1 forged && "$forge" forged
! cmp -s run1/receipt.jsonl forged/receipt.jsonl || fail "nothing was forged"
expect 0 "level a passed.*proves nothing against" ./tiny verify --out forged
expect 0 "level b passed.*does not prove the losses" ./tiny verify --out forged --data data
expect 1 "re-executed losses differ" ./tiny verify --out forged --data data --replay

# Bad input: one clear message, the right exit code.
expect 2 "holds a run" ./tiny train --data data --out run1 --steps 1
expect 1 "no such file" ./tiny train --data nowhere --out new1 --steps 1
expect 2 "unexpected argument" ./tiny train --nonsense
cp -r data truncated; for f in truncated/fineweb_train_*.bin; do truncate -s -3 "$f"; done
expect 1 "fineweb_train_" ./tiny train --data truncated --out new2 --steps 1
cp -r data large; for f in large/fineweb_train_*.bin; do printf '\xff\xff' | dd of="$f" bs=1 seek=2048 conv=notrunc status=none; done
expect 1 "vocab" ./tiny train --data large --out new3 --steps 1
cp -r data model; rm model/tokenizer.bytes; cp "$root/tests/data/tokenizer/nfkc.model" model/
expect 1 "nfkc.model: a tokenizer of 400 ids, the program's vocabulary is 260" ./tiny score --data model --out new5 --artifact run1/artifact.golfa
cp run1/artifact.golfa flipped.golfa; printf '\xaa' | dd of=flipped.golfa bs=1 seek=5000 conv=notrunc status=none
expect 1 "damaged|checksum" ./tiny score --data data --out new4 --artifact flipped.golfa
expect 1 "new6/artifact.golfa: no such file" ./tiny score --data data --out new6
! ls -d new? 2>/dev/null || fail "a refused command left a directory"

: > empty.golf; head -c 10000000 /dev/urandom > noise.golf; printf '%0.s(' $(seq 100000) > brackets.golf
expect 1 "empty" "$golfc" empty.golf -o x
expect 1 "UTF-8|are allowed" "$golfc" noise.golf -o x
expect 1 "nest" "$golfc" brackets.golf -o x
expect 1 "no such file|cannot read" "$golfc" nowhere.golf -o x
sed 's/rms_norm(/rms_nrom(/' "$root/models/tiny.golf" > typo.golf
expect 1 "rms_norm" "$golfc" typo.golf -o x

# Tuning tables: by name, for all, wrong, stale.
kernels() { "$golfc" "$root/models/tiny.golf" --target cpu,sm_90a --tuning "$1" --emit=kernels=-; }
: >none.txt
kernels none.txt >kernels.txt; gemm=$(awk '/^# sm_90a/ { gpu = 1 } gpu && /^gemm_/ && !name { name = $1 } END { print name }' kernels.txt)
echo "$gemm 64x64 # by name" >named.txt
kernels named.txt >kernels.txt; [ "$(grep -c ' cut=64x64$' kernels.txt)" -eq 1 ] && grep -q "^${gemm}_64x64$" kernels.txt || fail "a tuning table names one contraction"; ok "a tuning table names one contraction"
echo "* 128x128-turns" >every.txt
kernels every.txt >kernels.txt; [ "$(grep -c ' cut=128x128-turns$' kernels.txt)" -gt 10 ] || fail "a tuning table names every contraction"; ok "a tuning table names every contraction"
echo "* 96x96" >wrong.txt; expect 1 "wrong.txt: line 1: no cut is named 96x96" kernels wrong.txt
echo "gemm_0123456789abcdef 64x64" >stale.txt; expect 1 "stale.txt: .*line 1: gemm_0123456789abcdef" kernels stale.txt
expect 1 "absent.txt: no such file|cannot read" kernels absent.txt
[ ! -e x ] || fail "a failed compilation left an executable"
"$golfc" "$root/models/tiny.golf" --emit=graph=- | head -1 >/dev/null || fail "closed stdout ends quietly"; ok "closed stdout ends quietly"

# Reproducible: another directory, one thread.
mkdir other && cp "$root/models/tiny.golf" other/ && (cd other && "$golfc" tiny.golf -j 1 -o ../tiny2)
cmp tiny tiny2 || fail "byte-identical from another directory with one thread"; ok "byte-identical from another directory with one thread"
echo
echo "$passed passed, 0 failed"
