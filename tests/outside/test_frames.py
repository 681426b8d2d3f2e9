"""pandas and polars write and read frames through a registry's engine."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import sqlalchemy as sa

from sqlspec import LoadError, SQLSpec
from sqlspec.testing import assert_no_leaks
from tests.conftest import Database
from tests.outside.packages import need

pandas = need("pandas")
polars = need("polars")
need("pyarrow")

COLUMNS: dict[str, list[Any]] = {
    "number": list(range(500)),
    "name": [f"naïve {number} %" for number in range(500)],
    "share": [number / 4 for number in range(500)],
    "day": [datetime.date(2026, 1, 1) + datetime.timedelta(days=number) for number in range(500)],
}
QUERY = "SELECT number, name, share, day FROM frames ORDER BY number"


@pytest.fixture
def spec(database: Database) -> Any:
    with SQLSpec() as registry:
        registry.register_config(database.config(pool_size=2, max_overflow=0))
        yield registry
        # other tests look at the names of all tables
        with registry.get_session() as session:
            session.execute("DROP TABLE IF EXISTS frames")
        assert_no_leaks(registry)


def test_pandas_reads_what_it_wrote(spec: SQLSpec) -> None:
    engine, frame = spec.get_engine(), pandas.DataFrame(COLUMNS)
    frame.to_sql("frames", engine, index=False, method="multi", chunksize=100)
    # SQLite has no dates
    found = pandas.read_sql(sa.text(QUERY), engine, parse_dates=["day"])
    pandas.testing.assert_frame_equal(found, frame.assign(day=pandas.to_datetime(frame["day"])), check_dtype=False)
    chunks = list(pandas.read_sql_query(sa.text(QUERY), engine, chunksize=100))
    assert [len(chunk) for chunk in chunks] == [100] * 5


def test_polars_reads_what_it_wrote(spec: SQLSpec) -> None:
    engine, frame = spec.get_engine(), polars.DataFrame(COLUMNS)
    frame.write_database("frames", engine, if_table_exists="replace")
    found = polars.read_database(QUERY, engine)
    if engine.dialect.name == "sqlite":
        found = found.with_columns(polars.col("day").str.head(10).str.to_date())
    assert found.equals(frame)
    with engine.connect() as connection:
        batches = polars.read_database(QUERY, connection, iter_batches=True, batch_size=100)
        assert sum(len(batch) for batch in batches) == 500


def test_frames_go_where_load_rows_goes(spec: SQLSpec) -> None:
    frame = polars.DataFrame(COLUMNS)
    with spec.get_session() as session:
        session.execute("CREATE TABLE frames (number INTEGER, name VARCHAR(100), share FLOAT, day DATE)")
        assert session.load_rows("frames", frame.iter_rows(), frame.columns) == 500
    assert polars.read_database("SELECT number, name FROM frames", spec.get_engine()).equals(frame[["number", "name"]])
    with spec.get_session() as session:
        session.execute("DELETE FROM frames")
        rows = pandas.DataFrame(COLUMNS).itertuples(index=False, name=None)
        assert session.load_rows("frames", rows, list(COLUMNS)) == 500


def test_arrays_are_loaded_by_value_or_refused(spec: SQLSpec) -> None:
    with spec.get_session() as session:
        session.execute("CREATE TABLE frames (number INTEGER, share FLOAT)")
        session.load_rows("frames", pandas.DataFrame({"number": [1, 2], "share": [3, 4]}).to_numpy())
        assert session.execute("SELECT number, share FROM frames ORDER BY number").all() == [(1, 3.0), (2, 4.0)]
        # in nanoseconds, which Python has no type for
        times = pandas.DataFrame({"number": pandas.to_datetime(["2026-01-01"]).as_unit("ns")}).to_numpy()
        with pytest.raises(LoadError) as caught:
            session.load_rows("frames", times, columns=("number",))
        assert caught.value.position == 1
        session.rollback()
