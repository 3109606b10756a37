"""The queries of sql.sh: `data` makes what they ask, `compare` runs them by turns, ENGINE runs them in one process."""

import json
import os
import statistics
import subprocess
import sys
import time

import interactions

REPEATS = 3
ITEM = "777"

# Name and SQL; {I} are the interactions, {V} the vectors. What Polars does is in `polars`.
SIMILAR = """SELECT item_id, {similarity} AS s FROM {V} AS v ORDER BY s DESC, item_id LIMIT 10"""
QUERY = "(SELECT embedding FROM {V} WHERE item_id = 'i777')"
QUERIES = [
    ("span", "SELECT count(*), min(timestamp), max(timestamp), min(position), max(position) FROM {I}"),
    ("top_items", "SELECT item_id, count(*) AS n FROM {I} GROUP BY item_id ORDER BY n DESC, item_id LIMIT 20"),
    ("activity", """SELECT n, count(*) AS users FROM (SELECT user_id, count(*) AS n FROM {I} GROUP BY user_id) AS u
GROUP BY n ORDER BY n"""),
    ("months", "SELECT date_trunc('month', timestamp) AS month, count(*) AS n FROM {I} GROUP BY 1 ORDER BY 1"),
    ("one_item", "SELECT count(*), min(timestamp), max(timestamp) FROM {I} WHERE item_id = '777'"),
    ("audience", """SELECT item_id, count(DISTINCT user_id) AS users FROM {I} GROUP BY item_id
ORDER BY users DESC, item_id LIMIT 20"""),
    ("bought_together", """SELECT b.item_id, count(*) AS n FROM {I} AS a JOIN {I} AS b ON a.user_id = b.user_id
WHERE a.item_id = '777' AND b.item_id <> '777' GROUP BY b.item_id ORDER BY n DESC, b.item_id LIMIT 10"""),
    ("items_of_catalogue", """SELECT count(*) AS n, count(DISTINCT i.item_id) AS items FROM {I} AS i
JOIN (SELECT substr(item_id, 2) AS item_id FROM {V}) AS v ON v.item_id = i.item_id"""),
    ("last_items", """SELECT count(*) AS users, sum(CASE WHEN item_id = '777' THEN 1 ELSE 0 END) AS n FROM
(SELECT user_id, item_id, row_number() OVER (PARTITION BY user_id ORDER BY timestamp DESC, position DESC) AS place
FROM {I} WHERE user_id LIKE '1%') AS r WHERE place = 1"""),
    ("similar", SIMILAR),
]


def data(work, rows):
    """Interactions as CSV, vectors as Parquet. What is there stays."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = f"{work}/interactions.csv"
    if not os.path.isdir(f"{work}/store") and not os.path.exists(path):
        # Some items are far more popular than others.
        interactions.write(rows, path, popular=True)
    vectors = f"{work}/vectors.parquet"
    if not os.path.exists(vectors):
        values = np.random.default_rng(1).standard_normal((12_101, 384), dtype=np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 384)
        items = pa.array([f"i{number}" for number in range(12_101)])
        pq.write_table(pa.table({"item_id": items, "embedding": column}), vectors)


def parts(work):
    """The files of the artifact."""
    statement = "SELECT path FROM sys.artifacts WHERE stage = 'interactions' AND port = 'out'"
    command = ["target/release/sluice", "sql", statement, "--store", f"{work}/store", "--format", "json"]
    folder = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)[0]["path"]
    return sorted(f"{folder}/{name}" for name in os.listdir(folder) if name.endswith(".parquet"))


def sluice(work):
    """Milliseconds of each query, best of the repeats."""
    names = {"I": "interactions", "V": "read_parquet('vectors.parquet')"}
    path = f"{work}/queries.sql"
    with open(path, "w") as out:
        for _, query in QUERIES:
            query = query.replace("{similarity}", f"cosine_similarity(v.embedding, {QUERY})").format(**names)
            out.write(f"{query};\n" * REPEATS)
    command = ["target/release/sluice", "sql", "--file", path, "--store", f"{work}/store", "--data", work]
    run = subprocess.run([*command, "--timing", "--format", "csv"], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(run.stderr)
    times = [float(line.split(" in ")[1].split()[0]) for line in run.stderr.splitlines() if " rows in " in line]
    return [min(times[at : at + REPEATS]) for at in range(0, len(times), REPEATS)]


def timed(run):
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        best = min(best, (time.perf_counter() - start) * 1e3)
    return best


def duckdb(work):
    import duckdb as engine

    connection = engine.connect(config={"threads": 2})
    listed = ", ".join(f"'{path}'" for path in parts(work))
    connection.sql(f"CREATE VIEW I AS SELECT * FROM read_parquet([{listed}])")
    connection.sql(f"CREATE VIEW V AS SELECT item_id, embedding::FLOAT[384] AS embedding FROM '{work}/vectors.parquet'")
    times = []
    for _, query in QUERIES:
        query = query.replace("{similarity}", f"array_cosine_similarity(v.embedding, {QUERY})").format(I="I", V="V")
        times.append(timed(lambda query=query: connection.sql(query).fetchall()))
    return times


def polars(work):
    import numpy as np
    import polars as pl

    files = parts(work)
    scan = lambda: pl.scan_parquet(files)
    vectors = lambda: pl.scan_parquet(f"{work}/vectors.parquet")
    n = pl.len().alias("n")

    def similar():
        frame = vectors().collect()
        values = frame["embedding"].to_numpy()
        query = values[frame["item_id"].to_list().index("i777")]
        score = values @ query / (np.linalg.norm(values, axis=1) * np.linalg.norm(query))
        return frame["item_id"].to_numpy()[np.argsort(-score)[:10]]

    def last_items():
        chosen = scan().filter(pl.col("user_id").str.starts_with("1")).select("user_id", "item_id", "timestamp", "position")
        ordered = chosen.sort("user_id", "timestamp", "position", descending=[False, True, True])
        return ordered.unique("user_id", keep="first").select(pl.len(), (pl.col("item_id") == ITEM).sum())

    def together():
        users = scan().filter(pl.col("item_id") == ITEM).select("user_id")
        others = scan().filter(pl.col("item_id") != ITEM).select("user_id", "item_id")
        return users.join(others, on="user_id").group_by("item_id").agg(n).sort("n", "item_id", descending=[True, False]).head(10)

    def of_catalogue():
        items = vectors().select(pl.col("item_id").str.slice(1))
        return scan().select("item_id").join(items, on="item_id").select(pl.len(), pl.col("item_id").n_unique())

    time_, place = pl.col("timestamp"), pl.col("position")
    span = [pl.len(), time_.min().alias("a"), time_.max().alias("b"), place.min().alias("c"), place.max().alias("d")]
    queries = {
        "span": lambda: scan().select(span),
        "top_items": lambda: scan().group_by("item_id").agg(n).sort("n", "item_id", descending=[True, False]).head(20),
        "activity": lambda: scan().group_by("user_id").agg(n).group_by("n").agg(pl.len().alias("users")).sort("n"),
        "months": lambda: scan().group_by(time_.dt.truncate("1mo")).agg(n).sort("timestamp"),
        "one_item": lambda: scan().filter(pl.col("item_id") == ITEM).select(span[:3]),
        "audience": lambda: scan().group_by("item_id").agg(pl.col("user_id").n_unique().alias("users"))
        .sort("users", "item_id", descending=[True, False]).head(20),
        "bought_together": together,
        "items_of_catalogue": of_catalogue,
        "last_items": last_items,
        "similar": similar,
    }
    times = []
    for name, _ in QUERIES:
        run = queries[name]
        times.append(timed(run if name == "similar" else lambda run=run: run().collect()))
    return times


def compare(work, rounds, cores):
    engines = ["sluice", "duckdb", "polars"]
    times = {engine: [] for engine in engines}
    once = []
    for number in range(rounds):
        turn = engines[number % 3 :] + engines[: number % 3]
        for engine in turn:
            command = ["taskset", "-c", cores, sys.executable, __file__, engine, work]
            environment = {**os.environ, "POLARS_MAX_THREADS": str(len(cores.split(",")))}
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            times[engine].append(json.loads(run.stdout.splitlines()[-1]))
        for _ in range(5):
            start = time.perf_counter()
            statement = ["target/release/sluice", "sql", "SELECT count(*) FROM interactions", "--store", f"{work}/store"]
            subprocess.run(["taskset", "-c", cores, *statement], check=True, capture_output=True)
            once.append(time.perf_counter() - start)
    print(f"{'query':<20}{'sluice ms':>11}{'duckdb ms':>11}{'polars ms':>11}{'best other / sluice':>21}")
    ratios = []
    for at, (name, _) in enumerate(QUERIES):
        ours, duck, bears = (statistics.median(run[at] for run in times[engine]) for engine in engines)
        ratios.append(min(duck, bears) / ours)
        print(f"{name:<20}{ours:>11.1f}{duck:>11.1f}{bears:>11.1f}{ratios[-1]:>21.2f}")
    print(f"faster than both on {sum(ratio > 1 for ratio in ratios)} of {len(ratios)}; slowest ratio {min(ratios):.2f}")
    print(f"a one-shot count from start to end: {statistics.median(once) * 1e3:.0f} ms")


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "data":
        data(rest[0], int(rest[1]))
    elif what == "compare":
        compare(rest[0], int(rest[1]), rest[2])
    else:
        print(json.dumps({"sluice": sluice, "duckdb": duckdb, "polars": polars}[what](rest[0])))
