#!/usr/bin/env bash
# From a CSV of ROWS made-up interactions (default 10M) to a leave-one-out split: exact duplicates dropped, every user's
# interactions in time order, train, valid and test as Parquet files. Sluice (its stages ingest_interactions, dedup and
# split_leave_one_out, every one of them kept in a store) beside Polars and DuckDB (three files at the end), all pinned to the same
# CORES (default 0,1), ROUNDS (default 3) by turns; medians. Checks that all three put the same users and items into the
# same parts. Makes a virtual environment with what it compares with; WORK keeps it and the data for another time.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-$(mktemp -d)}
[[ -n "${WORK:-}" ]] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
cargo build --release --quiet
[[ -x "$work/venv/bin/python" ]] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet duckdb polars pyarrow numpy
rows=${ROWS:-10000000}
[[ -f "$work/rows_$rows.csv" ]] || "$work/venv/bin/python" benches/interactions.py "$rows" "$work/rows_$rows.csv"
exec taskset -c "${CORES:-0,1}" "$work/venv/bin/python" benches/split.py "$work" "rows_$rows.csv" "${ROUNDS:-3}"
