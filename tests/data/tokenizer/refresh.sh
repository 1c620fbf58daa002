#!/usr/bin/env bash
# Remakes the fixtures of this folder with SentencePiece's own tools (Debian package `sentencepiece`): the models from
# corpus.txt and the repository's LICENSE, and NAME.ids = spm_encode's ids of lines.txt, one line each. Run on purpose only.
set -euo pipefail
cd "$(dirname "$0")"
train() { # NAME OPTIONS...
  local name=$1; shift
  spm_train --input=corpus.txt,../../../LICENSE --model_prefix="$name" --model_type=bpe --hard_vocab_limit=false \
    --pad_id=0 --bos_id=1 --eos_id=2 --unk_id=3 --num_threads=1 "$@" 2>"$name.log" || { tail -3 "$name.log" >&2; exit 1; }; rm "$name.log"
  rm "$name.vocab"
  spm_encode --model="$name.model" --output_format=id <lines.txt >"$name.ids"
}
# The challenge's options, but for the coverage (small text).
train nfkc --vocab_size=400 --character_coverage=0.99 --byte_fallback=true --split_digits=true \
  --normalization_rule_name=nmt_nfkc --add_dummy_prefix=false
# Everything the other way: no rules, no fallback, spaces kept, pieces across spaces, symbols of the user.
train plain --vocab_size=300 --character_coverage=1.0 --normalization_rule_name=identity --remove_extra_whitespaces=false \
  --split_by_whitespace=false --user_defined_symbols='[SEP],[MASK],[MASK][MASK],<user one>,aaa,▁t'
# Spaces as suffix.
train suffix --vocab_size=300 --character_coverage=0.98 --normalization_rule_name=identity --treat_whitespace_as_suffix=true
# Normalised text, to count bytes.
spm_normalize --model=nfkc.model <lines.txt >nfkc.norm
