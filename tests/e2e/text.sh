#!/usr/bin/env bash
# Real text as a data directory: OUT gets a SentencePiece BPE model of 1,024 pieces, shards and a manifest.
# usage: [TEXT=PATH] text.sh OUT
#
# TEXT is a file or directory (plain text, .html, or .jsonl with a field `text`). Without it: the HTML documentation that ships with the
# Rust toolchain, tags stripped: the books and the standard library's pages, each page once and in English (about 24 MB of text, 10 M
# tokens). The tokenizer is trained on at most 20 MB of the training side. Takes about ten seconds on two cores.
set -euo pipefail
out=${1:?usage: [TEXT=PATH] text.sh OUT}
golfc=${GOLFC:-$(dirname "$0")/../../target/release/golfc}
fail() { echo "text: $*" >&2; exit 1; }

except=()
if [ -n "${TEXT:-}" ]; then
  [ -e "$TEXT" ] || fail "TEXT=$TEXT: no such file or directory"
  texts=("$TEXT")
  said="TEXT=$TEXT"
else
  html=$(rustc --print sysroot 2>/dev/null || true)/share/doc/rust/html
  texts=()
  for part in book reference rust-by-example nomicon cargo rustc rustdoc edition-guide embedded-book error_codes style-guide \
    unstable-book std; do
    if [ -d "$html/$part" ]; then texts+=("$html/$part"); fi
  done
  [ ${#texts[@]} -gt 0 ] || fail "the Rust toolchain's documentation is not installed; say TEXT=PATH, a file or directory of text," \
    "or install it with: rustup component add rust-docs"
  # print.html repeats a whole book on one page; the rest are old editions and translations.
  for name in print.html first-edition second-edition 2018-edition es ja ko zh; do except+=(--except "$name"); done
  said="the documentation of $(rustc --version)"
fi

if [ -f "$out/manifest.json" ] && [ "$(cat "$out/source" 2>/dev/null)" = "$said" ]; then
  echo "text: $out is already made from $said; remove it to make it again"
  exit 0
fi
command -v spm_train >/dev/null || fail "spm_train is missing (Debian package sentencepiece; make deps installs it)"
mkdir -p "$out"
work=$(mktemp -d "$out/.tokenizer.XXXXXX")
trap 'rm -rf "$work"' EXIT

echo "== text: a sample of $said"
"$golfc" data --text-only "$work/sample.txt" --limit 20MB "${except[@]}" "${texts[@]}"
echo "== text: spm_train, 1024 pieces"
# Inside the folder, because the model file repeats the names it was given.
(cd "$work" && spm_train --input=sample.txt --model_prefix=bpe1024 --vocab_size=1024 --model_type=bpe --character_coverage=0.999 \
  --byte_fallback=true --split_digits=true --normalization_rule_name=nmt_nfkc --add_dummy_prefix=false --hard_vocab_limit=false \
  --pad_id=0 --bos_id=1 --eos_id=2 --unk_id=3 --num_threads=2 >log 2>&1) || { tail -3 "$work/log" >&2; fail "spm_train failed"; }
pieces=$(wc -l <"$work/bpe1024.vocab")
[ "$pieces" -eq 1024 ] || fail "too little text: spm_train found only $pieces pieces, models/vrl11.golf has a vocabulary of 1024"
echo "== text: shards"
rm -f "$out/source"
"$golfc" data --tokenizer "$work/bpe1024.model" --out "$out" --overwrite "${except[@]}" "${texts[@]}"
echo "$said" >"$out/source"
