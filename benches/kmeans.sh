#!/usr/bin/env bash
# Residual k-means in Sluice, faiss and scikit-learn on the same rows and the same CORES (default 0,1), one after the other:
# 3 x 256 on 12,101 x 384 with 25 iterations (rows of EMBEDDINGS, raw f32, if given, else made up) and 3 x 256 on
# 1M x 128 with 10 iterations (made up; scikit-learn only with SLOW=1). Prints time, error after every level and ratios.
# faiss starts from random rows and the others from k-means++, so errors differ at equal iterations: Sluice is also
# stopped at the fewest iterations that reach the error of faiss. Needs python3 and about 2 GB of memory; installs its
# peers into a virtual environment (WORK keeps it and the rows for another time).
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-$(mktemp -d)}
[[ -n "${WORK:-}" ]] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
[[ -x "$work/venv/bin/python" ]] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet faiss-cpu scikit-learn numpy
binary=$(cargo bench --workspace --bench numerics --no-run 2>&1 | sed -n 's/.*(\(target.*numerics-[0-9a-f]*\))$/\1/p')
exec taskset -c "${CORES:-0,1}" "$work/venv/bin/python" benches/kmeans.py "$work" "$binary" "${EMBEDDINGS:-}"
