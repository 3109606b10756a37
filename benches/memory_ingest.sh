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
python3 - "$rows" "$work/interactions.csv" <<'PY'
import random, sys
rows, path = int(sys.argv[1]), sys.argv[2]
rng = random.Random(1)
with open(path, "w") as out:
    out.write("user_id,item_id,timestamp\n")
    for start in range(0, rows, 100_000):
        lines = []
        for _ in range(min(100_000, rows - start)):
            bits = rng.getrandbits(64)
            lines.append(f"{bits % (rows // 10)},{(bits >> 32) % 200_000},{1_500_000_000 + (bits >> 20) % 100_000_000}\n")
        out.writelines(lines)
PY
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
