"""Reads from "sluice serve" as a notebook would: ADBC, into pandas, polars and Arrow, with values checked.

usage: flight_client.py URL [TOKEN]

The server's store must have a stage "counts" of 10,000 interactions: items "0" to "9999", each of the user "w" followed by
the item modulo 7. In a virtual environment: pip install adbc-driver-flightsql pyarrow pandas polars
The test the_usual_client_of_python_reads_it runs it if SLUICE_PYTHON names the Python of such an environment.
"""

import sys

import adbc_driver_flightsql.dbapi as flight
import adbc_driver_manager
import pandas
import polars

url, token = sys.argv[1], (sys.argv[2] if len(sys.argv) > 2 else None)
options = {"adbc.flight.sql.authorization_header": f"Bearer {token}"} if token else {}
rows = 10_000
counts = "(SELECT CAST(item_id AS BIGINT) AS n, user_id AS word FROM counts)"
expected = pandas.DataFrame({"n": range(rows), "word": [f"w{n % 7}" for n in range(rows)]})

if token:
    try:
        flight.connect(url, autocommit=True).cursor().execute("SELECT 1")
        raise AssertionError("a connection without the token was accepted")
    except adbc_driver_manager.Error as error:
        assert "no-token" in str(error), error
    # Any user with the token as the password: the driver logs in and gets a bearer token.
    login = {"username": "anyone", "password": token}
    with flight.connect(url, db_kwargs=login, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1 + 1")
        assert cursor.fetchone() == (2,)

with flight.connect(url, db_kwargs=options, autocommit=True) as connection, connection.cursor() as cursor:
    cursor.execute(f"SELECT n, word FROM {counts} ORDER BY n")
    frame = cursor.fetch_df()
    pandas.testing.assert_frame_equal(frame, expected, check_dtype=False)

    cursor.execute(f"SELECT n, word FROM {counts} ORDER BY n")
    table = cursor.fetch_arrow_table()
    assert polars.from_arrow(table).equals(polars.from_pandas(expected)), table.schema

    # Placeholders, by position.
    cursor.execute(f"SELECT count(*) AS n FROM {counts} WHERE word = ? AND n < ?", ("w3", 70))
    assert cursor.fetchone() == (10,)

    # Types that other systems have trouble with: lists, structs, nulls, text that is kept as views inside.
    cursor.execute("SELECT [1, 2] AS list, {'a': 1, 'b': 'x'} AS struct, CAST(NULL AS INT) AS none, arrow_cast('v', 'Utf8View') AS view")
    row = cursor.fetch_arrow_table().to_pylist()
    assert row == [{"list": [1, 2], "struct": {"a": 1, "b": "x"}, "none": None, "view": "v"}], row

    for statement, word in [
        ("INSERT INTO counts VALUES (1, 'x')", "read-only"),
        ("SELECT wort FROM counts", "missing-column"),
        ("SELECT * FROM nowhere", "unknown-table"),
    ]:
        try:
            cursor.execute(statement)
            raise AssertionError(f"{statement} was accepted")
        except adbc_driver_manager.Error as error:
            assert word in str(error), error

    info = connection.adbc_get_info()
    assert info["vendor_name"] == "sluice", info
    catalogs = connection.adbc_get_objects(depth="tables").read_all().to_pylist()
    tables = {
        table["table_name"]
        for catalog in catalogs
        for schema in catalog["catalog_db_schemas"]
        for table in schema["db_schema_tables"]
    }
    assert {"runs", "stages"} <= tables, tables

print(f"pandas {pandas.__version__}, polars {polars.__version__}: {rows} rows as expected")
