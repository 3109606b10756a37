#!/usr/bin/env bash
# Ten inspection queries in Sluice, DuckDB and Polars over the same Parquet files: group-bys, joins and windows over an artifact
# of ROWS made-up interactions (default 20M), and the nearest of 12,101 vectors of width 384. Every engine runs each query
# in a warm process pinned to the same CORES, in ROUNDS rounds by turns; the best of a round, the median over rounds. Prints the
# ratio to the faster of the others, and how long one-shot statements take from start to end. Makes a virtual environment
# with what it compares with. Needs python3 and about 3 GB of disk; WORK keeps the data for another time.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-$(mktemp -d)}
[[ -n "${WORK:-}" ]] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
cargo build --release --quiet
[[ -x "$work/venv/bin/python" ]] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet duckdb polars pyarrow numpy pytz
"$work/venv/bin/python" benches/sql.py data "$work" "${ROWS:-20000000}"
if [[ ! -d "$work/store" ]]; then
    cat > "$work/p.yaml" <<'YAML'
pipeline: sql
stages:
  interactions: { op: ingest_interactions, path: interactions.csv }
YAML
    target/release/sluice run "$work/p.yaml" --data "$work" --store "$work/store" --quiet
fi
exec "$work/venv/bin/python" benches/sql.py compare "$work" "${ROUNDS:-5}" "${CORES:-0,1}"
