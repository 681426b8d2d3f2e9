"""What holds on every database."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import ConfigError, ConnectionTimeout, PoolClosed, PoolStats, SQLSpec, SQLSpecWarning
from tests.conftest import Database
from tests.servers import wait_until


def names(any_spec: Any) -> list[str]:
    with any_spec.get_session("primary") as session:
        return list(session.execute("SELECT name FROM users ORDER BY id").scalars())


def test_a_session_commits_at_the_end(any_spec: Any) -> None:
    with any_spec.get_session("primary") as session:
        result = session.execute("INSERT INTO users (name) VALUES (?)", ("Bob",))
        assert result.rowcount == 1
        session.execute("INSERT INTO users (name) VALUES (:name)", {"name": "Eve"})
    assert names(any_spec) == ["Bob", "Eve"]


@pytest.mark.fault(35)
def test_a_session_rolls_back_and_lets_the_same_exception_through(any_spec: Any) -> None:
    error = RuntimeError("mine")
    with pytest.raises(RuntimeError) as caught, any_spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES (?)", ("Bob",))
        raise error
    assert caught.value is error
    assert names(any_spec) == []


def test_an_error_in_a_later_statement_keeps_the_earlier_ones_in_the_transaction(any_spec: Any) -> None:
    with any_spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES (?)", ("Bob",))
        with pytest.raises(exc.IntegrityError):
            session.execute("INSERT INTO users (name) VALUES (?)", ("Bob",))
        session.rollback()
        session.execute("INSERT INTO users (name) VALUES (?)", ("Eve",))
    assert names(any_spec) == ["Eve"]


def test_a_savepoint_undoes_its_own_part_only(any_spec: Any) -> None:
    with any_spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES (?)", ("Alice",))
        with session.begin_nested() as savepoint:
            session.execute("INSERT INTO users (name) VALUES (?)", ("Bob",))
            try:
                session.execute("INSERT INTO users (name) VALUES (?)", ("Alice",))
            except exc.IntegrityError:
                savepoint.rollback()
        session.execute("INSERT INTO users (name) VALUES (?)", ("Eve",))
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.execute("INSERT INTO users (name) VALUES (?)", ("Mallory",))
            _ = 1 / 0
    assert names(any_spec) == ["Alice", "Eve"]


def test_strings_and_executables_share_one_transaction(any_spec: Any) -> None:
    users = sa.table("users", sa.column("id"), sa.column("name"))
    with pytest.raises(RuntimeError), any_spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES (?)", ("Bob",))
        session.execute(sa.insert(users).values(name="Eve"))
        assert session.execute("SELECT count(*) FROM users").scalar() == 2
        assert session.execute(sa.select(sa.func.count()).select_from(users)).scalar() == 2
        raise RuntimeError
    assert names(any_spec) == []


def test_a_result_is_a_result_of_sqlalchemy(any_spec: Any) -> None:
    with any_spec.get_session("primary") as session:
        session.execute_many("INSERT INTO users (name) VALUES (?)", [(f"u{i}",) for i in range(5)])
        query = "SELECT id, name FROM users ORDER BY id"
        assert isinstance(session.execute(query), sa.Result)
        rows = session.execute(query).all()
        assert len(rows) == 5
        assert isinstance(rows[0], sa.Row)
        assert rows[1].name == "u1"
        assert session.execute(query).first()[1] == "u0"
        assert session.execute(query).mappings().first()["name"] == "u0"
        assert [row.name for row in session.execute(query)] == ["u0", "u1", "u2", "u3", "u4"]
        assert list(session.execute(query).keys()) == ["id", "name"]
        assert session.execute(query + " LIMIT 1").one().name == "u0"
        assert [r.name for part in session.execute(query).partitions(2) for r in part] == [f"u{i}" for i in range(5)]
        with pytest.raises(exc.ResourceClosedError):
            session.execute("UPDATE users SET name = name").all()


def test_a_result_cannot_be_read_after_its_session(any_spec: Any) -> None:
    with any_spec.get_session("primary") as session:
        result = session.execute("SELECT 1")
    with pytest.raises(exc.ResourceClosedError, match="fetch the rows inside"):
        result.all()


def test_percent_signs_and_question_marks_in_literals_are_left_alone(any_spec: Any) -> None:
    with any_spec.get_session("primary") as session:
        row = session.execute("SELECT '50%', '?', ':x', ? -- is it ?", ("%s",)).one()
        assert tuple(row) == ("50%", "?", ":x", "%s")
        assert session.execute("SELECT '50%'").scalar() == "50%"


def test_a_wrong_number_of_values_is_refused_with_both_numbers(any_spec: Any) -> None:
    with any_spec.get_session("primary") as session:
        with pytest.raises(exc.ProgrammingError, match=r"2 placeholders and 1 values"):
            session.execute("SELECT ?, ?", (1,))
        with pytest.raises(exc.ProgrammingError, match="execute_many"):
            session.execute("INSERT INTO users (name) VALUES (?)", [("a",), ("b",)])


def test_a_connection_is_managed_by_hand_or_by_its_block(any_spec: Any) -> None:
    connection = any_spec.create_connection("primary")
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)
    finally:
        connection.close()
    with any_spec.get_connection("primary") as conn:
        conn.begin()
        conn.cursor().execute("INSERT INTO users (name) VALUES (?)", ("Alice",))
        conn.commit()
        assert conn.query_count >= 1
        assert conn.error_count == 0
        assert conn.age >= 0
    assert names(any_spec) == ["Alice"]


def test_uncommitted_work_is_rolled_back_with_a_warning(any_spec: Any) -> None:
    with pytest.warns(SQLSpecWarning, match="without commit"), any_spec.get_connection("primary") as conn:
        conn.cursor().execute("INSERT INTO users (name) VALUES (?)", ("Alice",))
    assert names(any_spec) == []


def test_begin_inside_a_transaction_is_the_drivers_programming_error(any_spec: Any) -> None:
    driver = any_spec.get_engine("primary").dialect.loaded_dbapi
    with any_spec.get_connection("primary") as conn:
        conn.cursor().execute("SELECT 1")
        with pytest.raises(driver.ProgrammingError, match="inside an open transaction"):
            conn.begin()


def test_use_after_close_is_the_drivers_interface_error(any_spec: Any) -> None:
    driver = any_spec.get_engine("primary").dialect.loaded_dbapi
    driver = getattr(driver, "sqlite", driver)
    with any_spec.get_connection("primary") as conn:
        cursor = conn.cursor()
        cursor.execute("SELECT 1")
    for use in (
        conn.cursor,
        conn.commit,
        conn.rollback,
        conn.begin,
        cursor.fetchone,
        lambda: cursor.execute("SELECT 1"),
    ):
        with pytest.raises(driver.InterfaceError, match="closed"):
            use()


def test_under_autocommit_begin_opens_one_transaction(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(autocommit=True), name="auto")
    with any_spec.get_connection("auto") as conn:
        conn.cursor().execute("INSERT INTO users (name) VALUES (?)", ("kept",))
        conn.begin()
        conn.cursor().execute("INSERT INTO users (name) VALUES (?)", ("undone",))
        conn.rollback()
        conn.cursor().execute("INSERT INTO users (name) VALUES (?)", ("kept too",))
    with pytest.raises(RuntimeError), any_spec.get_session("primary", autocommit=True) as session:
        session.execute("INSERT INTO users (name) VALUES (?)", ("also kept",))
        raise RuntimeError
    assert names(any_spec) == ["kept", "kept too", "also kept"]
    with pytest.raises(RuntimeError), any_spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES (?)", ("undone",))
        raise RuntimeError
    assert "undone" not in names(any_spec)


def test_a_read_only_session_refuses_to_write(any_spec: Any) -> None:
    with pytest.raises(exc.DBAPIError), any_spec.get_session("primary", read_only=True) as session:
        session.execute("INSERT INTO users (name) VALUES ('x')")
    with any_spec.get_session("primary") as session:
        session.execute("INSERT INTO users (name) VALUES ('y')")
    assert names(any_spec) == ["y"]


def test_an_unknown_isolation_level_is_refused_with_the_known_ones(any_spec: Any) -> None:
    with pytest.raises(ConfigError, match="SERIALIZABLE"):
        any_spec.get_session("primary", isolation_level="STRICT")
    with any_spec.get_session("primary", isolation_level="SERIALIZABLE") as session:
        assert session.execute("SELECT 1").scalar() == 1


def test_an_empty_session_checks_nothing_out(any_spec: Any) -> None:
    with any_spec.get_session("primary"):
        assert any_spec.get_pool_stats("primary").checked_out == 0


def gauges(stats: PoolStats) -> tuple[int, ...]:
    return stats.size, stats.checked_in, stats.checked_out, stats.overflow, stats.total


def test_the_documents_own_statistics_function_works(any_spec: Any) -> None:
    def get_pool_stats(config_name: str) -> PoolStats:
        pool = any_spec._get_pool(config_name)
        return PoolStats(
            size=pool.size(),
            checked_in=pool.checkedin(),
            checked_out=pool.checkedout(),
            overflow=pool.overflow(),
            total=pool.total(),
        )

    with any_spec.get_connection("primary"):
        stats = get_pool_stats("primary")
        assert gauges(stats) == gauges(any_spec.get_pool_stats("primary"))
        assert (stats.size, stats.checked_out, stats.overflow) == (10, 1, 0)


def test_an_exhausted_pool_times_out_in_the_wait_phase(any_spec: Any, database: Database) -> None:
    any_spec.register_config(database.config(pool_size=1, max_overflow=0), name="small")
    with any_spec.get_connection("small"):
        with pytest.raises(ConnectionTimeout, match="1 checked out") as caught:
            any_spec.get_connection("small", timeout=0.05)
        assert caught.value.phase == "wait"
        with pytest.raises(ConnectionTimeout), any_spec.get_session("small", timeout=0.05) as session:
            session.execute("SELECT 1")
    assert any_spec.get_pool_stats("small").checked_out == 0


def test_an_unknown_name_lists_near_misses(any_spec: Any) -> None:
    with pytest.raises(ConfigError, match="did you mean 'primary'"):
        any_spec.get_session("primry")
    with pytest.raises(ConfigError, match="replace=True"):
        any_spec.register_config(any_spec.get_config("primary"), name="primary")


def test_a_replaced_config_lets_its_connections_finish_and_closes_them(any_spec: Any, database: Database) -> None:
    with any_spec.get_connection("primary") as conn:
        old = any_spec._get_pool("primary")
        any_spec.register_config(database.config(pool_size=3), name="primary", replace=True)
        conn.cursor().execute("SELECT 1")
    assert old.total() == 0
    assert any_spec.get_pool_stats("primary").size == 3


@pytest.mark.fault(50)
def test_close_waits_for_what_is_checked_out(any_spec: Any, database: Database) -> None:
    registry = SQLSpec()
    registry.register_config(database.config())
    conn, pool = registry.create_connection(), registry._get_pool()
    closing = threading.Thread(target=registry.close, kwargs={"timeout": 30})
    closing.start()
    wait_until(lambda: registry._closed)
    with pytest.raises(PoolClosed):
        registry.get_session()
    conn.close()
    closing.join(10)
    assert not closing.is_alive()
    assert pool.total() == 0


def test_a_pool_used_by_many_threads_loses_nothing(any_spec: Any) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(10):
                with any_spec.get_session("primary") as session:
                    assert session.execute("SELECT CAST(? AS INTEGER)", (number,)).scalar() == number
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    stats = any_spec.get_pool_stats("primary")
    assert stats.checked_out == 0
    assert stats.total == stats.checked_in


@pytest.mark.fault(37)
def test_closing_twice_checks_in_once(any_spec: Any, database: Database) -> None:
    driver = any_spec.get_engine("primary").dialect.loaded_dbapi
    with any_spec.get_connection("primary") as connection:
        connection.close()
        if getattr(driver, "__name__", "") == "MySQLdb":
            with pytest.raises(driver.InterfaceError):
                connection.close()
        else:
            connection.close()
    stats = any_spec.get_pool_stats("primary")
    assert (stats.checked_in, stats.checked_out) == (1, 0)
    with any_spec.get_connection("primary") as connection:
        connection.invalidate()
        connection.close()
    assert any_spec.get_pool_stats("primary").checked_out == 0
