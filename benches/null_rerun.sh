#!/usr/bin/env bash
# A rerun with nothing to do: Sluice beside DVC over the same graph of 200 stages, both measured in turn on the same
# machine. Prints the median, least and most seconds of REPEATS (default 9) rounds, and the ratios of the medians.
# The graph: one ingest, a dedup, and 66 branches of three (k-core, and two stages that read it), all with configs and
# results of their own; for Sluice a sweep over one axis, for DVC 200 stages. For DVC every stage copies its dependency to its output.
# Installs DVC into a virtual environment (VENV, default sluice-bench/dvc in the user's cache folder).
set -euo pipefail
cd "$(dirname "$0")/.."
branches=${BRANCHES:-66}
repeats=${REPEATS:-9}
venv=${VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice-bench/dvc}
[ -x "$venv/bin/dvc" ] || { python3 -m venv "$venv"; "$venv/bin/pip" install -q dvc; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --quiet --workspace
"$venv/bin/python" - "$work" "$PWD/target/release/sluice" "$venv/bin/dvc" "$branches" "$repeats" <<'PY'
import json, os, pathlib, statistics, subprocess, sys, time

work, sluice, dvc, branches, repeats = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_CHECK_UPDATE": "0"}
ours, theirs = work / "sluice", work / "dvc"
ours.mkdir()
(theirs / "out").mkdir(parents=True)

# User u has u + 3 interactions, so that a k-core of every user_k is another table.
rows = [f"u{u},i{n % 50},{1_500_000_000 + 86_400 * n}" for u in range(branches + 20) for n in range(u + 3)]
data = "user_id,item_id,timestamp\n" + "\n".join(rows) + "\n"
(ours / "interactions.csv").write_text(data)
(theirs / "interactions.csv").write_text(data)

lines = ["pipeline: null_rerun", "stages:"]
lines += ["  reviews: { op: ingest_interactions, path: interactions.csv }", "  clean: { op: dedup, input: reviews }"]
stages = {"reviews": "interactions.csv", "clean": "out/reviews"}
lines.append("  core: { op: filter_kcore, input: clean, user_k: 3, item_k: 1 }")
lines.append("  order: { op: audit_order, input: core }")
lines.append("  split: { op: split_leave_one_out, input: core }")
lines.append(f"sweep: {{ axes: {{ core.user_k: {list(range(3, branches + 3))} }} }}")
for k in range(3, branches + 3):
    stages |= {f"core_{k}": "out/clean", f"order_{k}": f"out/core_{k}", f"split_{k}": f"out/core_{k}"}
(ours / "p.yaml").write_text("\n".join(lines) + "\n")
# JSON is YAML.
entry = lambda name, dep: {"cmd": f"(cat {dep}; echo {name}) > out/{name}", "deps": [dep], "outs": [f"out/{name}"]}
(theirs / "dvc.yaml").write_text(json.dumps({"stages": {name: entry(name, dep) for name, dep in stages.items()}}))


def call(command, folder):
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{command} failed\n{done.stdout}{done.stderr}")
    return seconds, done.stdout + done.stderr


flags = ["p.yaml", "--data", ".", "--store", "store"]
commands = {
    "sluice run": ([sluice, "run", *flags], ours, f"0 ran, {len(stages)} reused"),
    "dvc repro": ([dvc, "repro"], theirs, "up to date"),
    "sluice plan": ([sluice, "plan", *flags], ours, f"{len(stages)} to reuse, 0 to run"),
    "dvc status": ([dvc, "status"], theirs, "up to date"),
    "sluice --version": ([sluice, "--version"], ours, ""),
    "dvc --version": ([dvc, "--version"], theirs, ""),
}
call([dvc, "init", "--no-scm", "--quiet"], theirs)
first = {name: call(*commands[name][:2])[0] for name in ["sluice run", "dvc repro"]}
times = {name: [] for name in commands}
for _ in range(repeats):
    for name, (command, folder, wanted) in commands.items():
        seconds, told = call(command, folder)
        if wanted not in told:
            sys.exit(f"{name} did not say \"{wanted}\":\n{told[-500:]}")
        times[name].append(seconds)

version = lambda name: call(*commands[name][:2])[1].strip().split()[-1]
print(f"{len(stages)} stages, {repeats} rounds, {os.cpu_count()} cores; sluice {version('sluice --version')}, "
      f"DVC {version('dvc --version')}, Python {sys.version.split()[0]}")
print(f"first run: sluice {first['sluice run']:.1f} s (it computes), dvc {first['dvc repro']:.1f} s (it copies)")
print(f"{'':18}{'median':>9}{'least':>9}{'most':>9}")
for name, seconds in times.items():
    print(f"{name:18}{statistics.median(seconds):8.3f}s{min(seconds):8.3f}s{max(seconds):8.3f}s")
for one, other in [("dvc repro", "sluice run"), ("dvc status", "sluice plan")]:
    print(f"{one} / {other}: {statistics.median(times[one]) / statistics.median(times[other]):.1f}")
PY
