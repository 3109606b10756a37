"""Reads all rows of one artifact: over Flight SQL with ADBC, and with DuckDB from the same Parquet files.

usage: flight_read.py URL "SELECT ..." ROUNDS PARQUET...

Rounds alternate. Every reader goes through all batches and counts rows; two of them also build one table.
Needs adbc-driver-flightsql, pyarrow and duckdb.
"""

import statistics
import sys
import time

import adbc_driver_flightsql.dbapi as flight
import duckdb


def adbc_batches(url, statement, _files):
    with flight.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return sum(batch.num_rows for batch in cursor.fetch_record_batch())


def adbc_table(url, statement, _files):
    with flight.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetch_arrow_table().num_rows


def relation(files):
    return duckdb.connect().sql(f"SELECT * FROM read_parquet({files})")


def duckdb_batches(_url, _statement, files):
    found = relation(files)
    reader = found.to_arrow_reader(1_000_000) if hasattr(found, "to_arrow_reader") else found.fetch_arrow_reader(1_000_000)
    return sum(batch.num_rows for batch in reader)


def duckdb_table(_url, _statement, files):
    found = relation(files)
    table = found.to_arrow_table() if hasattr(found, "to_arrow_table") else found.arrow()
    return table.num_rows


def main():
    url, statement, rounds, files = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
    readers = {
        "adbc, batches": adbc_batches,
        "duckdb, batches": duckdb_batches,
        "adbc, one table": adbc_table,
        "duckdb, one table": duckdb_table,
    }
    seconds = {name: [] for name in readers}
    rows = set()
    for _ in range(rounds):
        for name, reader in readers.items():
            start = time.perf_counter()
            rows.add(reader(url, statement, files))
            seconds[name].append(time.perf_counter() - start)
    assert len(rows) == 1, f"different numbers of rows: {rows}"
    count = rows.pop()
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name:18} {count / middle / 1e6:6.1f} M rows/s   {middle:.2f} s, from {min(times):.2f} to {max(times):.2f}")


main()
