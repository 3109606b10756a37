#!/usr/bin/env bash
# Beam search inside the trie of all 12,101 titles of Amazon Beauty with a language model: Sluice beside transformers'
# `generate` with prefix_allowed_tokens_fn, pinned to the same two CORES, f32, the same random Qwen3-shaped checkpoint of
# about 10M parameters, the same prompts of test users, 10 beams; the beams must be the same. Users a second.
#   Two shapes: the vocabulary of Qwen3's own tokenizer (151,936 tokens of width 64, 4 blocks), and one of 4,096 byte
#   pairs (7 blocks of width 320).
#   Each with sums of log-probabilities (LENGTH_PENALTY 0: a random model ends with the shortest titles) and with means
#   (1: the search goes deep, as one with a trained model does).
# DEVICE, PRECISION, FEATURES, BENCH: as in tiger.sh; with DEVICE Sluice runs on candle's tensors there, not on its kernels.
# SHAPES=0.6b takes the shape of Qwen3-0.6B.
# USERS: users of `generate`, AT_ONCE of which go through it together (4, 4); Sluice searches for 16 times as many. SHAPES:
# "qwen pairs". PENALTIES: "0 1". Needs SLUICE_DATA and python3: makes a virtual environment (VENV, default .venv-bench) unless
# PYTHON names one with torch, transformers and safetensors.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${SLUICE_DATA:-../shared/data}
python=${PYTHON:-}
if [[ -z "$python" ]]; then
    venv=${VENV:-.venv-bench}
    python=$venv/bin/python
    [[ -x "$python" ]] || python3 -m venv "$venv"
    "$python" -c 'import torch, transformers, safetensors' 2>/dev/null ||
        "$venv/bin/pip" install --quiet torch transformers safetensors numpy
fi
work=${WORK:-$(mktemp -d)}
[[ -n "${WORK:-}" ]] || trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086
bench=${BENCH:-$(cargo bench --no-run -p sluice-gpu --bench llm_generate ${FEATURES:-} --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"llm_generate".*"executable":"\([^"]*\)".*/\1/p' | tail -1)}
settings=$(printf '{"bench":"%s","users":%d,"at_once":%d,"shapes":"%s","penalties":"%s"}' \
    "$bench" "${USERS:-4}" "${AT_ONCE:-4}" "${SHAPES:-qwen pairs}" "${PENALTIES:-0 1}")
"$python" benches/llm_generate.py "$work" "$data" "${CORES:-0,1}" "$settings"
