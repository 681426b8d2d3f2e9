"""``?plugin=sqlspec``: the pool under engines that SQLAlchemy makes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool

from sqlspec import ConfigError, PoolTimeout
from sqlspec.pool import BEYOND_QUEUEPOOL, AsyncFairQueuePool, FairQueuePool
from tests.conftest import PASSWORD
from tests.servers import Server


def url(tmp_path: Path, **options: str) -> str:
    words = "".join(f"&{name}={value}" for name, value in options.items())
    return f"sqlite:///{tmp_path / 'app.db'}?plugin=sqlspec{words}"


def test_one_word_in_the_url_changes_the_pool_and_nothing_else(tmp_path: Path) -> None:
    engine = sa.create_engine(url(tmp_path), pool_size=3, max_overflow=1, pool_timeout=7, pool_recycle=60)
    pool: Any = engine.pool
    assert type(pool) is FairQueuePool
    assert str(engine.url) == f"sqlite:///{tmp_path / 'app.db'}"
    arguments = pool._arguments()
    found = [arguments[name] for name in ("pool_size", "max_overflow", "timeout", "recycle")]
    assert found == [3, 1, 7, 60]
    assert {name: arguments[name] for name in BEYOND_QUEUEPOOL} == BEYOND_QUEUEPOOL
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1
    engine.dispose()
    assert type(engine.pool) is FairQueuePool


def test_the_word_may_be_an_argument(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}", plugins=["sqlspec"])
    assert type(engine.pool) is FairQueuePool


def test_options_of_ours_are_keys_of_the_query(tmp_path: Path) -> None:
    options = {
        "sqlspec_max_waiters": "3",
        "sqlspec_nested_checkout": "refuse",
        "sqlspec_leak_seconds": "30",
        "sqlspec_linger_seconds": "0",
        "sqlspec_open_aside": "false",
    }
    engine = sa.create_engine(url(tmp_path, **options))
    pool: Any = engine.pool
    arguments = pool._arguments()
    found = {name: arguments[name.removeprefix("sqlspec_")] for name in options}
    assert list(found.values()) == [3, "refuse", 30.0, 0.0, False]
    assert "sqlspec" not in str(engine.url)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sqlspec_leak_secnds": "5"}, "sqlspec_leak_secnds is not an option: did you mean sqlspec_leak_seconds"),
        ({"sqlspec_leak_seconds": "-5"}, "sqlspec_leak_seconds: Input should be greater than 0"),
        ({"sqlspec_max_waiters": "many"}, "sqlspec_max_waiters: Input should be a valid integer"),
        ({"sqlspec_nested_checkout": "no"}, "sqlspec_nested_checkout: Input should be 'allow', 'warn' or 'refuse'"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_its_name(
    tmp_path: Path, options: dict[str, str], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        sa.create_engine(url(tmp_path, **options))
    assert told in str(caught.value)


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool, QueuePool, SingletonThreadPool])
def test_a_pool_that_is_asked_for_is_respected(tmp_path: Path, poolclass: type[sa.Pool]) -> None:
    engine = sa.create_engine(url(tmp_path), poolclass=poolclass)
    assert type(engine.pool) is poolclass
    pool = poolclass(lambda: None)
    assert sa.create_engine(url(tmp_path), pool=pool).pool is pool


def test_no_pool_is_asked_for_by_none(tmp_path: Path) -> None:
    assert type(sa.create_engine(url(tmp_path), poolclass=None).pool) is FairQueuePool


def test_a_pool_that_a_dialect_has_a_reason_for_is_respected() -> None:
    engine = sa.create_engine("sqlite://?plugin=sqlspec")
    assert type(engine.pool) is SingletonThreadPool
    assert type(create_async_engine("sqlite+aiosqlite://?plugin=sqlspec").pool) is StaticPool


def test_engines_from_a_file_of_settings_take_it(tmp_path: Path) -> None:
    settings = {"sqlalchemy.url": url(tmp_path), "sqlalchemy.pool_size": "2", "sqlalchemy.max_overflow": "0"}
    engine = sa.engine_from_config(settings)
    assert isinstance(engine.pool, FairQueuePool)
    assert (engine.pool.size(), engine.pool.stats().capacity) == (2, 2)
    assert type(sa.engine_from_config({"sqlalchemy.url": url(tmp_path)}, poolclass=NullPool).pool) is NullPool


def test_asynchronous_engines_take_it(tmp_path: Path) -> None:
    engine = create_async_engine(url(tmp_path).replace("sqlite:", "sqlite+aiosqlite:"))
    assert type(engine.pool) is AsyncFairQueuePool


def test_an_exhausted_engine_names_the_statement_of_the_orm_session_that_holds_it(tmp_path: Path) -> None:
    engine = sa.create_engine(url(tmp_path), pool_size=1, max_overflow=0, pool_timeout=0.05)
    with orm.Session(engine) as session:
        session.execute(sa.select(sa.literal("s3cret").label("word"), sa.literal_column("'s3cret'")))
        with pytest.raises(PoolTimeout) as caught:
            engine.connect()
    told = str(caught.value)
    assert f"1 held at {__file__}:" in told
    assert "last statement: SELECT ? AS word, …" in told
    assert "s3cret" not in told


def test_engines_with_other_options_share_the_pool(tmp_path: Path) -> None:
    engine = sa.create_engine(url(tmp_path))
    assert engine.execution_options(isolation_level="AUTOCOMMIT").pool is engine.pool


def test_loggers_keep_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "sqlalchemy.pool")
    engine = sa.create_engine(url(tmp_path), pool_logging_name="main")
    engine.connect().close()
    names = {record.name for record in caplog.records}
    assert names == {"sqlalchemy.pool.impl.QueuePool.main"}


def test_events_fire_in_the_order_of_queuepool(tmp_path: Path) -> None:
    seen: dict[type, list[str]] = {}
    for poolclass in (QueuePool, FairQueuePool):
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}", poolclass=poolclass, pool_size=1, max_overflow=1)
        events = seen.setdefault(poolclass, [])
        for name in (
            "connect", "first_connect", "checkout", "checkin", "reset",
            "invalidate", "soft_invalidate", "close", "detach", "close_detached",
        ):  # fmt: skip
            sa.event.listen(engine, name, lambda *_, name=name, events=events: events.append(name), named=False)
        with engine.connect() as connection:
            connection.invalidate()
        with engine.connect(), engine.connect():
            pass
        with engine.connect() as connection:
            connection.connection.invalidate(soft=True)
        with engine.connect() as connection:
            connection.detach()
        engine.dispose()
    assert seen[FairQueuePool] == seen[QueuePool]
    assert {"invalidate", "soft_invalidate", "detach", "close_detached"} <= set(seen[QueuePool])


def test_two_phases_and_savepoints_work_on_postgresql(postgresql_server: Server) -> None:
    place = sa.URL.create(
        "postgresql+psycopg2", "app", PASSWORD, "127.0.0.1", postgresql_server.port, "postgres", {"plugin": "sqlspec"}
    )
    engine = sa.create_engine(place)
    assert type(engine.pool) is FairQueuePool
    with engine.begin() as connection, connection.begin_nested():
        assert connection.scalar(sa.text("SELECT 1")) == 1
    assert PASSWORD not in repr(engine.pool) + repr(engine)
    engine.dispose()
