#!/usr/bin/env bash
# TIGER 13M (GRID's shape: 4 + 4 layers, width 128, 6 heads of 64, feed-forward 1024) on Amazon Beauty: Sluice beside
# PyTorch with transformers' T5, pinned to the same two CORES, f32, same samples, batches, initial weights and Adam.
#   Training, ms a step of 256 samples: Sluice's ragged batches; PyTorch eager with every batch padded to 20 items (as
#   GRID does), with batches sorted by length, the same compiled; and a step of full-length histories in each.
#   Generation, users a second, beam 10 inside the trie of the catalogue: Sluice; `generate` with
#   prefix_allowed_tokens_fn, 32 users at a time, with the same weights.
# The samples are all contiguous subsequences; their semantic ids are published ones, no quantizer is needed.
# FEED_FORWARD: "grid" (default), "t5" or "grid t5". STEPS: timed steps (12), USERS: users of `generate` (64); Sluice
# searches for 16 times as many. Needs SLUICE_DATA (else samples are made up) and python3: makes a virtual environment
# (VENV, default .venv-bench) unless PYTHON names one with torch, transformers and safetensors. Most of the
# time is PyTorch's: ten minutes and more on two cores; STEPS=4 USERS=32 is the short form.
# DEVICE=cuda PRECISION=bf16 FEATURES="--features cuda" times the steps of both on a GPU, see gpu.sh. BENCH names a built
# bench where there is no cargo.
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
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086
bench=${BENCH:-$(cargo bench --no-run -p sluice-gpu --bench tiger ${FEATURES:-} --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"tiger".*"executable":"\([^"]*\)".*/\1/p' | tail -1)}
settings=$(printf '{"bench":"%s","steps":%d,"users":%d,"feed_forward":"%s"}' \
    "$bench" "${STEPS:-12}" "${USERS:-64}" "${FEED_FORWARD:-grid}")
"$python" benches/tiger.py "$work" "$data" "${CORES:-0,1}" "$settings"
