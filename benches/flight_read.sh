#!/usr/bin/env bash
# Rows per second of a client that reads a whole artifact of ROWS rows (default 20M) from "sluice serve" with ADBC, beside
# DuckDB's Arrow export of the same Parquet files within the client's process. ROUNDS (default 5) alternate, and everything
# is pinned to the same cores, CORES (default 0,1). Makes a virtual environment with what it compares with, unless PYTHON
# names a Python that has adbc-driver-flightsql, pyarrow and duckdb.
set -euo pipefail
cd "$(dirname "$0")/.."
rows=${ROWS:-20000000}
cores=${CORES:-0,1}
work=$(mktemp -d)
server=
trap 'test -z "$server" || kill "$server" || true; rm -rf "$work"' EXIT
python=${PYTHON:-}
if [[ -z "$python" ]]; then
    python3 -m venv "$work/venv"
    python=$work/venv/bin/python
    "$work/venv/bin/pip" install --quiet adbc-driver-flightsql pyarrow duckdb pytz
fi
sluice=${SLUICE:-target/release/sluice}
test -x "$sluice" || cargo build --release --workspace --quiet
"$python" benches/interactions.py "$rows" "$work/interactions.csv"
cat > "$work/p.yaml" <<'YAML'
pipeline: read
stages:
  reviews: { op: ingest_interactions, path: interactions.csv }
YAML
"$sluice" run "$work/p.yaml" --data "$work" --store "$work/store" --quiet
largest=$(find "$work/store/objects" -name '*.parquet' -printf '%s %h\n' | awk '{bytes[$2] += $1} END {for (folder in bytes) print bytes[folder], folder}' | sort -n | tail -1 | cut -d' ' -f2)
taskset -c "$cores" "$sluice" serve --flight 127.0.0.1:0 --store "$work/store" > "$work/server.log" &
server=$!
until grep -q 'flight sql' "$work/server.log"; do sleep 0.1; done
url=$(sed -n 's/^flight sql: //p' "$work/server.log")
echo "cores $cores, load before: $(cut -d' ' -f1-3 /proc/loadavg)"
statement=${STATEMENT:-SELECT * FROM reviews}
taskset -c "$cores" "$python" benches/flight_read.py "$url" "$statement" "${ROUNDS:-5}" "$largest"/*.parquet
