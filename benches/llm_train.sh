#!/usr/bin/env bash
# LoRA (rank 8 on all seven maps) on a Qwen3 of about 10M random parameters, over prompts of Amazon Beauty: Sluice beside
# transformers with peft, pinned to the same two CORES, f32, same prompts, batches, start and AdamW; real prompts a second.
#   Peers: batches padded to their longest prompt, prompts shuffled (the usual collator); the same with batches sorted by
#   length; the same compiled; each with logits of all tokens, as transformers' own loss has them, and of the scored
#   tokens alone (which is ours).
# Histories of at most 20 titles, target title and end of text scored; a byte-pair vocabulary of 4,096 from the titles.
# DEVICE, PRECISION, FEATURES, BENCH: as in tiger.sh; SHAPE=0.6b takes the shape of Qwen3-0.6B.
# STEPS: timed steps (6), BATCH: prompts of a step (16), COMPILED=1 also times torch.compile. Needs SLUICE_DATA and
# python3: makes a virtual environment (VENV, default .venv-bench) unless PYTHON names one with torch, transformers, peft.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${SLUICE_DATA:-../shared/data}
python=${PYTHON:-}
if [[ -z "$python" ]]; then
    venv=${VENV:-.venv-bench}
    python=$venv/bin/python
    [[ -x "$python" ]] || python3 -m venv "$venv"
    "$python" -c 'import torch, transformers, peft' 2>/dev/null ||
        "$venv/bin/pip" install --quiet torch transformers peft numpy
fi
work=${WORK:-$(mktemp -d)}
[[ -n "${WORK:-}" ]] || trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086
bench=${BENCH:-$(cargo bench --no-run -p sluice-gpu --bench llm_train ${FEATURES:-} --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"llm_train".*"executable":"\([^"]*\)".*/\1/p' | tail -1)}
settings=$(printf '{"bench":"%s","steps":%d,"batch":%d,"compiled":%d}' \
    "$bench" "${STEPS:-6}" "${BATCH:-16}" "${COMPILED:-0}")
"$python" benches/llm_train.py "$work" "$data" "${CORES:-0,1}" "$settings"
