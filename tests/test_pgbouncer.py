"""Behind PgBouncer, where the transactions of all clients take turns on the same server connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import exc

from sqlspec import ConfigError, SQLSpec, check_health
from sqlspec.adapters import PostgreSQLConfig
from tests.conftest import PASSWORD, Database
from tests.faults import LONG, ask, assert_nothing_is_lost, running, tell
from tests.servers import wait_until
from tests.tasks import Loop, RegistryInTasks

CLIENTS = ["psycopg2", "psycopg", "psycopg in tasks", "asyncpg in tasks"]
# the values that all transactions begin with, as the server has them
AS_EVER = {"transaction_isolation": "read committed", "transaction_read_only": "off", "work_mem": "4MB"}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, pgbouncer: Any) -> Iterator[Callable[..., Any]]:
    """Return what makes registries of a driver, whose "primary" is behind PgBouncer."""
    driver, _, tasks = request.param.partition(" ")
    loop = Loop() if tasks else None
    registries: list[Any] = []

    def make(pooling: str, query: str = "", **options: Any) -> Any:
        registry = SQLSpec()
        place = {"host": "127.0.0.1", "port": pgbouncer.port, "username": "app", "password": PASSWORD}
        url = f"postgresql+{driver}://{query}"
        config = PostgreSQLConfig(**place, url=url, database=pooling, pool_size=2, max_overflow=0, **options)
        registry.register_config(config, name="primary")
        registries.append(registry if loop is None else RegistryInTasks(loop, registry))
        return registries[-1]

    make.driver = driver  # type: ignore[attr-defined]  # which tests ask for
    try:
        yield make
        for registry in registries:
            assert_nothing_is_lost(registry)
    finally:
        for registry in registries:
            registry.close()
        if loop is not None:
            loop.end()


def settings(spec: Any, **options: Any) -> dict[str, str]:
    return {name: ask(spec, f"SHOW {name}", **options) for name in AS_EVER}


@pytest.mark.fault(66)
def test_prepared_statements_meet_those_of_others_unless_the_config_knows_of_the_proxy(
    client: Any, pgbouncer: Any
) -> None:
    if client.driver != "psycopg2":
        careless = client("transaction", prepare_threshold=0)
        ask(careless, "SELECT 'prepared'")
        # as if the next transaction came to another of several server connections
        pgbouncer.tell("RECONNECT")
        with pytest.raises(exc.DBAPIError, match=r"prepared statement .* does not exist"):
            ask(careless, "SELECT 'prepared'")
    first, second = (client("transaction", prepare_threshold=None) for _ in range(2))
    for turn in range(10):
        for autocommit in (False, True):
            for spec, name in ((first, "first"), (second, "second")):
                assert ask(spec, f"SELECT '{name}' WHERE 1 = 1", autocommit=autocommit) == name
                with spec.get_session("primary", autocommit=autocommit) as session:
                    row = session.execute("SELECT CAST(? AS integer), CAST(? AS text)", (turn, name)).one()
                    assert tuple(row) == (turn, name)


def test_a_statement_is_prepared_for_nobody_where_a_proxy_is_in_between(client: Any) -> None:
    spec = client("transaction", prepare_threshold=None)
    for _ in range(7):
        ask(spec, "SELECT 1")
    assert ask(spec, "SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0


def test_under_statement_pooling_everything_is_autocommitted(client: Any) -> None:
    if client.driver == "psycopg":
        # which asks for types in a transaction, whatever the config says
        with pytest.raises(exc.DBAPIError, match="statement pooling"):
            ask(client("statement", prepare_threshold=None, autocommit=True))
        return
    first, second = (client("statement", prepare_threshold=None, autocommit=True) for _ in range(2))
    for turn in range(10):
        assert ask(first, f"SELECT {turn}") == turn
        assert ask(second, f"SELECT 'second {turn}'") == f"second {turn}"
    with pytest.raises(exc.DBAPIError, match=r"statement pooling|closed the connection"):
        ask(first, autocommit=False)


@pytest.mark.fault(67)
@pytest.mark.parametrize("what", ["command_timeout", "options"])
def test_a_config_whose_options_a_proxy_drops_does_not_serve(client: Any, what: str) -> None:
    with client("transaction").get_session("primary") as session:
        assert session.execute("SHOW statement_timeout").scalar() == "30s"
    given: dict[str, Any] = {"command_timeout": 7} if what == "command_timeout" else {}
    spec = client("transaction", "" if given else "?options=-c%20statement_timeout%3D7s%20-c%20app.tenant%3D5", **given)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"statement_timeout.* did not arrive at the server: a proxy"):
            ask(spec)
    stats = spec.get_pool_stats("primary")
    assert (stats.checked_out, stats.checked_in) == (0, 0)


@pytest.mark.fault(67)
@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
@pytest.mark.parametrize("value", ["east--rack=5", r"east\ --rack=5", r"east\ -crack=5"])
def test_what_looks_like_an_option_within_a_value_is_not_missed(database: Database, value: str) -> None:
    with SQLSpec() as spec:
        options = quote(f"-c app.place={value} --statement-timeout=7s")
        spec.register_config(database.config(url=f"postgresql://?options={options}"), "primary")
        assert ask(spec, "SHOW app.place") == value.replace("\\", "")
        assert ask(spec, "SHOW statement_timeout") == "7s"


@pytest.mark.fault(67)
def test_what_is_said_of_the_role_holds_behind_a_proxy(client: Any, postgresql_server: Any, pgbouncer: Any) -> None:
    tell(postgresql_server, "ALTER ROLE app SET statement_timeout = '7s'")
    try:
        pgbouncer.tell("RECONNECT")
        spec = client("transaction", command_timeout=7.0)
        assert ask(spec, "SHOW statement_timeout") == "7s"
    finally:
        tell(postgresql_server, "ALTER ROLE app RESET statement_timeout")
        pgbouncer.tell("RECONNECT")


def test_a_proxy_that_does_not_know_the_options_says_so(client: Any, pgbouncer: Any) -> None:
    pgbouncer.tell("SET ignore_startup_parameters = 'extra_float_digits'")
    try:
        with pytest.raises(exc.DBAPIError, match="unsupported startup parameter"):
            ask(client("transaction", command_timeout=7.0))
    finally:
        pgbouncer.tell("SET ignore_startup_parameters = 'options,extra_float_digits'")


@pytest.mark.fault(68)
def test_what_a_session_asks_for_does_not_leak_to_others_and_what_is_set_by_hand_does(client: Any) -> None:
    first, second = (client("transaction", prepare_threshold=None) for _ in range(2))
    for spec in (first, second):
        assert settings(spec) == AS_EVER
    with first.get_session("primary", read_only=True, isolation_level="SERIALIZABLE") as session:
        assert session.execute("SHOW transaction_isolation").scalar() == "serializable"
        assert session.execute("SHOW transaction_read_only").scalar() == "on"
        session.execute("SET LOCAL work_mem = '9MB'")
        assert session.execute("SHOW work_mem").scalar() == "9MB"
        session.execute("SELECT set_config('app.tenant', ?, true)", ("5",))
    with first.get_session("primary", autocommit=True) as session:
        session.execute("SELECT 1")
    for spec in (second, first):
        assert settings(spec) == settings(spec, autocommit=True) == AS_EVER
    assert ask(second, "SELECT current_setting('app.tenant', true)") in {None, ""}
    ask(first, "SELECT set_config('work_mem', '9MB', false)")
    assert ask(second, "SHOW work_mem") == "9MB"
    ask(first, "SELECT set_config('work_mem', '4MB', false)")


def test_under_session_pooling_the_state_is_ones_own_and_can_be_discarded(client: Any) -> None:
    first, second = client("session", pool_reset_on_return="discard"), client("session")
    with first.get_session("primary") as session:
        session.execute("SELECT set_config('work_mem', '9MB', false)")
        session.commit()
        assert ask(second, "SHOW work_mem") == "4MB"
        assert session.execute("SHOW work_mem").scalar() == "9MB"
    assert ask(first, "SHOW work_mem") == "4MB"


@pytest.mark.parametrize("client", ["psycopg2", "psycopg"], indirect=True)
def test_a_proxy_that_holds_its_clients_is_a_database_that_is_down(client: Any, pgbouncer: Any) -> None:
    spec = client("transaction", prepare_threshold=None)
    assert check_health(spec)["primary"]
    pgbouncer.tell("PAUSE transaction")
    try:
        assert not check_health(spec, timeout=0.3)["primary"]
    finally:
        pgbouncer.tell("RESUME transaction")
    assert check_health(spec)["primary"]


def test_under_transaction_pooling_a_transaction_may_be_what_it_is_elsewhere(client: Any, pgbouncer: Any) -> None:
    spec = client("transaction", prepare_threshold=None)
    with spec.get_session("primary") as session:
        session.execute("DROP TABLE IF EXISTS pooled")
        session.execute("CREATE TABLE pooled (id INTEGER)")
        assert session.load_rows("pooled", [(1,), (2,), (3,)], ["id"]) == 3
        with session.begin_nested() as savepoint:
            session.execute("DELETE FROM pooled")
            savepoint.rollback()
    with spec.get_session("primary") as session:
        session.execute_many("INSERT INTO pooled VALUES (?)", [(4,), (5,)])
    assert spec.run_transaction("primary", lambda s: s.execute("SELECT sum(id) FROM pooled").scalar()) == 15


def test_a_proxy_that_is_restarted_costs_a_connect(client: Any, pgbouncer: Any) -> None:
    spec = client("transaction", prepare_threshold=None)
    ask(spec)
    pgbouncer.restart()
    assert ask(spec) == 1
    assert spec.get_pool_stats("primary").created == 2


@pytest.mark.parametrize("client", ["psycopg in tasks", "asyncpg in tasks"], indirect=True)
def test_a_statement_that_is_cancelled_ends_behind_the_proxy_as_well(client: Any, postgresql_server: Any) -> None:
    spec = client("transaction", prepare_threshold=None)

    async def give_up() -> None:
        async with spec._registry.get_async_session("primary") as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await session.execute(LONG["postgresql"])
            await session.rollback()
            assert await session.execute("SELECT 1").scalar() == 1

    spec._loop.run(give_up())
    wait_until(lambda: not running(postgresql_server))
    assert spec.get_pool_stats("primary").created == 1
