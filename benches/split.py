"""The measurements of benches/split.sh, see there: `split.py FOLDER CSV ROUNDS`."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time

WORK, CSV, ROUNDS = sys.argv[1], sys.argv[2], int(sys.argv[3])
CORES = len(os.sched_getaffinity(0))
os.environ["POLARS_MAX_THREADS"] = str(CORES)

import duckdb
import polars as pl

PARTS = ["train", "valid", "test"]
PIPELINE = f"""pipeline: split
stages:
  reviews: {{ op: ingest_interactions, path: {CSV} }}
  clean: {{ op: dedup, input: reviews }}
  split: {{ op: split_leave_one_out, input: clean, ties: item_asc }}
"""


def sluice(out):
    with open(f"{WORK}/split.yaml", "w") as file:
        file.write(PIPELINE)
    shutil.rmtree(f"{WORK}/store", ignore_errors=True)
    command = ["target/release/sluice", "run", f"{WORK}/split.yaml", "--data", WORK, "--store", f"{WORK}/store", "--quiet"]
    subprocess.run(command, check=True)


def polars(out):
    rows = pl.scan_csv(f"{WORK}/{CSV}", schema_overrides={"user_id": pl.String, "item_id": pl.String})
    rows = rows.unique().sort("user_id", "timestamp", "item_id")
    users = rows.group_by("user_id", maintain_order=True).agg("item_id", "timestamp").collect(engine="streaming")
    length = pl.col("item_id").list.len()
    few, enough = users.filter(length < 3), users.filter(length >= 3)

    def part(frame, upto, target):
        columns = [pl.col(name).list.head(length - upto).alias(name) for name in ["item_id", "timestamp"]]
        targets = [pl.col(name).list.get(-target).alias(f"target_{name}") for name in ["item_id", "timestamp"]]
        return frame.select("user_id", *columns, *(targets if target else []))

    pl.concat([part(enough, 2, 0), part(few, 0, 0)]).write_parquet(f"{out}/train.parquet")
    part(enough, 2, 2).write_parquet(f"{out}/valid.parquet")
    part(enough, 1, 1).write_parquet(f"{out}/test.parquet")


def duck(out):
    connection = duckdb.connect(config={"threads": CORES})
    connection.execute(f"""CREATE TABLE users AS SELECT user_id, list(item_id ORDER BY timestamp, item_id) AS items,
        list(timestamp ORDER BY timestamp, item_id) AS times, count(*) AS n FROM (SELECT DISTINCT * FROM
        read_csv('{WORK}/{CSV}', types = {{'user_id': 'VARCHAR', 'item_id': 'VARCHAR'}})) GROUP BY user_id""")
    selects = {
        "train": "SELECT user_id, items[:CASE WHEN n < 3 THEN n ELSE n - 2 END] AS item_id, times[:CASE WHEN n < 3 THEN n ELSE n - 2 END] AS timestamp FROM users",
        "valid": "SELECT user_id, items[:n - 2] AS item_id, times[:n - 2] AS timestamp, items[n - 1] AS target_item_id, times[n - 1] AS target_timestamp FROM users WHERE n >= 3",
        "test": "SELECT user_id, items[:n - 1] AS item_id, times[:n - 1] AS timestamp, items[n] AS target_item_id, times[n] AS target_timestamp FROM users WHERE n >= 3",
    }
    for name, select in selects.items():
        connection.execute(f"COPY ({select}) TO '{out}/{name}.parquet'")


def told(paths):
    """Of every part: users, items in histories, and a sum over (user, target) that no order changes."""
    facts = []
    for name, (files, sequence, target) in paths.items():
        hashed = f"sum(CAST(hash(user_id || ' ' || {target}) % 1000003 AS BIGINT))" if name != "train" else "0"
        query = f"SELECT count(*), sum(len({sequence})), {hashed} FROM read_parquet({files})"
        facts.append(duckdb.sql(query).fetchall()[0])
    return facts


def in_store():
    query = "SELECT port, path FROM sys.artifacts WHERE stage = 'split'"
    command = ["target/release/sluice", "sql", query, "--store", f"{WORK}/store", "--format", "json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {row["port"]: ([f"{row['path']}/*.parquet"], "sequence", "target") for row in found}


def main():
    systems = {"sluice": sluice, "polars": polars, "duckdb": duck}
    seconds = {name: [] for name in systems}
    for _ in range(ROUNDS):
        for name, system in systems.items():
            out = f"{WORK}/{name}"
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)
            start = time.perf_counter()
            system(out)
            seconds[name].append(time.perf_counter() - start)
    facts = {name: told({part: ([f"{WORK}/{name}/{part}.parquet"], "item_id", "target_item_id") for part in PARTS}) for name in ["polars", "duckdb"]}
    ours = in_store()
    facts["sluice"] = told({part: ours[part] for part in PARTS})
    if len({str(found) for found in facts.values()}) != 1:
        sys.exit(f"the parts differ: {facts}")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name:<7} {medians[name]:6.2f} s, from {min(times):.2f} to {max(times):.2f}")
    best = min(medians["polars"], medians["duckdb"])
    print(f"the best of the others / sluice: {best / medians['sluice']:.2f}; same users, items and targets in every part")


main()
