#!/usr/bin/env bash
# Shows that memory stays bounded: ingests, deduplicates, orders and splits ROWS made-up interactions (default 20M)
# with --memory 512M, and prints the peak resident set and the seconds. Needs python3 for the made-up file only.
set -euo pipefail
cd "$(dirname "$0")/.."
rows=${ROWS:-20000000}
memory=${MEMORY:-512M}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --quiet
python3 benches/interactions.py "$rows" "$work/interactions.csv"
cat > "$work/p.yaml" <<'YAML'
pipeline: memory
stages:
  reviews: { op: ingest_interactions, path: interactions.csv }
  clean:   { op: dedup, input: reviews }
  split:   { op: split_leave_one_out, input: clean }
YAML
python3 - "$work" "$memory" <<'PY'
import os, resource, subprocess, sys, time
work, memory = sys.argv[1:]
start = time.time()
subprocess.run(["target/release/sluice", "run", f"{work}/p.yaml", "--data", work, "--store", f"{work}/store", "--memory", memory], check=True)
seconds = time.time() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
size = os.path.getsize(f"{work}/interactions.csv") / 1e6
print(f"{size:.0f} MB of CSV, --memory {memory}: peak {peak:.0f} MiB resident, {seconds:.1f} s")
PY
