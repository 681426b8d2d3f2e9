"""pandas writes and reads frames through our pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from sqlspec.pool import FairQueuePool
from tests.outside.packages import need

pandas = need("pandas")
sales = need("tests.outside.pandas_sales")


@pytest.fixture(params=["psycopg2", "psycopg"])
def engine(request: pytest.FixtureRequest, plugin_url: Callable[[str], str]) -> Iterator[sa.Engine]:
    """An engine on two connections, none of which stays checked out."""
    made = sa.create_engine(plugin_url(request.param), pool_size=2, max_overflow=0)
    assert type(made.pool) is FairQueuePool
    yield made
    left = made.pool.stats().checked_out
    made.dispose()
    assert left == 0


def test_a_frame_comes_back_as_it_was_stored(engine: sa.Engine) -> None:
    frame = sales.make_sales()
    sales.store(frame, engine)
    pandas.testing.assert_frame_equal(sales.load(engine), frame, check_dtype=False)
    pandas.testing.assert_frame_equal(pandas.read_sql_table("sales", engine), frame, check_dtype=False)


def test_a_connection_of_the_engine_serves_as_well(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        sales.store(sales.make_sales(4), connection)
        assert sales.revenue(connection, "2026-01-02") == {"north": 4.0, "south": 2.0}
    assert sales.revenue(engine, "2026-01-04") == {"north": 3.0}


def test_a_frame_that_cannot_be_stored_leaves_nothing_behind(engine: sa.Engine) -> None:
    frame = sales.make_sales(200)
    sales.store(frame, engine)
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE sales ADD UNIQUE (day)"))
    # the second of two pieces is refused
    twice = pandas.concat([sales.make_sales(300).tail(100), frame.tail(100)])
    for _ in range(3):
        with pytest.raises(pandas.errors.DatabaseError, match="UniqueViolation"):
            twice.to_sql("sales", engine, index=False, if_exists="append", chunksize=100)
    assert len(sales.load(engine)) == 200


def test_more_threads_than_connections_read_the_same(engine: sa.Engine) -> None:
    sales.store(sales.make_sales(100), engine)
    with ThreadPoolExecutor(8) as executor:
        answers = list(executor.map(lambda _: sales.revenue(engine, "2026-01-01"), range(40)))
    assert answers == [{"north": 2500.0, "south": 2450.0}] * 40


def test_pandas_makes_an_engine_of_the_url_itself(plugin_url: Callable[[str], str], pools: set[type[sa.Pool]]) -> None:
    url: Any = plugin_url("psycopg2")
    sales.store(sales.make_sales(10), url)
    assert sales.revenue(url, "2026-01-10") == {"north": 9.0}
    assert pools == {FairQueuePool}
