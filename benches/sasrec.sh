#!/usr/bin/env bash
# One epoch of SASRec with the softmax over all items on Amazon Beauty: Sluice beside PyTorch eager, both pinned to the same
# two CORES, f32, Adam, the same shape, samples and initial weights, ROUNDS rounds by turns. PyTorch twice: batches padded to
# 50 positions as RecBole does, and the best that eager mode gave (sorted by length, scores at known positions only).
# The time of a Sluice epoch is that of three epochs less that of one, so loading, storing and the evaluation drop out.
# Needs SLUICE_DATA and python3; makes a virtual environment (VENV, default .venv-bench). WIDTH is d_model (default 64).
set -euo pipefail
cd "$(dirname "$0")/.."
data=${SLUICE_DATA:-$(cd ../shared/data && pwd)}
venv=${VENV:-.venv-bench}
cores=${CORES:-0,1}
[[ -x "$venv/bin/python" ]] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import torch, safetensors, pyarrow' 2>/dev/null ||
    "$venv/bin/pip" install --quiet torch safetensors pyarrow numpy
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --quiet --workspace
pipeline() { # name, steps, epochs, learning rate
    cat <<YAML
pipeline: sasrec_bench
stages:
  reviews: { op: ingest_interactions, path: amazon2014-beauty/interactions.tsv.gz, format: tsv }
  split:   { op: split_leave_one_out, input: reviews }
YAML
    [[ $1 == split ]] || cat <<YAML
  model:
    op: train_sasrec
    inputs: { train: split.train, valid: split.valid, items: reviews }
    d_model: ${WIDTH:-64}
    max_steps: $2
    max_epochs: $3
    learning_rate: $4
    eval_every: 100000
    valid_users: 1
    device: cpu
YAML
}
pipeline split > "$work/split.yaml"
# A step of this size changes nothing: what it leaves are the initial weights.
pipeline start 1 1 1e-30 > "$work/start.yaml"
pipeline one 100000 1 1e-3 > "$work/one.yaml"
pipeline three 100000 3 1e-3 > "$work/three.yaml"
exec "$venv/bin/python" benches/sasrec.py "$work" "$data" "$cores" "${ROUNDS:-3}"
