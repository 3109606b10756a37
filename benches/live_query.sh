#!/usr/bin/env bash
# A training while another process asks for its live loss twice a second, and the same training left alone, by turns,
# ROUNDS times: prints the rows that the queries saw and the seconds that the training took with and without them.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${ROUNDS:-3}
steps=${STEPS:-400}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --release --quiet
sluice=target/release/sluice
ask="SELECT done, value FROM sys.metrics WHERE kind = 'progress' AND name = 'loss' AND run = (SELECT max(run) FROM sys.runs)"
train() { # train STORE: runs the training alone; what it needs is there
    "$sluice" run pipelines/quickstart.yaml --set "tiger.max_steps=$steps" --set tiger.eval_every=100 --until tiger \
        --force tiger --store "$1" --quiet
}
"$sluice" run pipelines/quickstart.yaml --until tokens --store "$work/store" --quiet
for round in $(seq "$rounds"); do
    for with in no yes; do
        asked=0
        most=0
        train "$work/store" &
        run=$!
        while [[ "$with" == yes ]] && kill -0 "$run" 2>/dev/null; do
            rows=$("$sluice" sql "$ask" --store "$work/store" --format csv | tail -n +2 | wc -l)
            asked=$((asked + 1))
            ((rows > most)) && most=$rows
            sleep 0.5
        done
        wait "$run"
        seconds=$("$sluice" sql --store "$work/store" --format csv \
            "SELECT round(seconds, 2) FROM sys.stages WHERE stage = 'tiger' AND outcome = 'ran' ORDER BY run DESC LIMIT 1" | tail -1)
        echo "round $round, queries: $with, asked $asked times, rows of the loss seen while it ran: $most," \
            "training $seconds s, $(python3 -c "print(f'{1000 * $seconds / $steps:.1f}')") ms a step"
    done
done
