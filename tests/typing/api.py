"""What type checkers know of the public API; mypy reads this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, assert_type

import fastapi
import sqlalchemy as sa
import sqlalchemy.ext.asyncio as sa_asyncio
from flask import Blueprint, Flask
from pydantic import SecretStr
from sqlalchemy import CursorResult, Engine, Result, Row
from sqlalchemy.pool import PoolProxiedConnection, QueuePool
from starlette.applications import Starlette

from sqlspec import (
    AdaptivePool,
    AsyncConnection,
    AsyncCursor,
    AsyncSavepoint,
    AsyncSession,
    CircuitBreaker,
    ConfigError,
    Connection,
    ConnectionLost,
    ConnectionTimeout,
    Cursor,
    DatabaseHealth,
    EnvironmentConfig,
    FallbackError,
    HealthReport,
    Holder,
    LoadError,
    PendingResult,
    PoolMetrics,
    PoolStats,
    PoolTimeout,
    PreparedStatement,
    PreparedStatementCache,
    Savepoint,
    Session,
    SQLSpec,
    awith_connection_fallback,
    build_secure_url,
    check_health,
    copy_rows,
    health_check,
    with_connection_fallback,
)
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig, SQLiteConnectionConfig
from sqlspec.config import NoPoolSyncConfig, SyncDatabaseConfig
from sqlspec.extensions.fastapi import FastAPISQLSpec
from sqlspec.extensions.flask import FlaskSQLSpec
from sqlspec.extensions.starlette import database_lifespan
from sqlspec.pool import AsyncFairQueuePool, FairQueuePool, Timing
from sqlspec.session.result import DriverResult
from sqlspec.telemetry import OpenTelemetryMetrics, PrometheusMetrics
from sqlspec.testing import ScriptedDriver, aisolated, assert_no_leaks, isolated


def registry() -> None:
    with SQLSpec() as spec:
        assert_type(spec, SQLSpec)
        assert_type(spec.register_config(SQLiteConfig(database="app.db"), name="primary", replace=True), str)
        assert_type(spec.list_configs(), list[str])
        assert_type(spec.get_config("primary"), NoPoolSyncConfig)
        assert_type(spec.get_engine("primary"), Engine)
        assert_type(spec.get_pool_stats("primary"), PoolStats)
        assert_type(spec.get_pool_stats("primary").overflow, int)
        assert_type(spec.get_pool_stats("primary").wait, Timing)
        assert_type(spec.get_pool_stats("primary").closed, Mapping[str, int])
        assert_type(spec.get_holders("primary"), list[Holder])
        spec.resize_pool("primary", pool_size=5, max_overflow=0)
        assert_type(spec.get_pool_stats("primary").grown, int)
        assert_type(AdaptivePool(PostgreSQLConfig(max_pool_size=30)).metrics, PoolMetrics)
        spec.resize_pool("primary", 5)  # type: ignore[call-arg]  # sizes are named
        assert_type(SQLSpec.from_env({"primary": "DB_"}), SQLSpec)
        assert_type(SQLSpec.from_toml("sqlspec.toml"), SQLSpec)
        assert_type(EnvironmentConfig.from_env(), SyncDatabaseConfig)
        spec.register_config("postgresql://localhost")  # type: ignore[arg-type]  # not a config
        spec.get_session("primary", 2.0)  # type: ignore[call-arg]  # options are named


def sessions(spec: SQLSpec) -> None:
    with spec.get_session("primary", timeout=2.0, read_only=True, isolation_level="SERIALIZABLE") as session:
        assert_type(session, Session)
        assert_type(session.execute("SELECT ?", (1,)), DriverResult)
        result: Result[Any] = session.execute("SELECT ?", (1,))
        assert_type(result.all(), Sequence[Row[Any]])
        assert_type(session.execute("SELECT 1").rowcount, int)
        assert_type(session.execute("SELECT 1").lastrowid, Any)
        assert_type(session.execute(sa.text("SELECT 1")), CursorResult[Any])
        assert_type(session.execute("SELECT 1").scalar(), Any | None)
        assert_type(session.execute_many("INSERT INTO users VALUES (?)", [(1,)]), DriverResult)
        assert_type(session.connection(), sa.Connection)
        with session.begin_nested() as savepoint:
            assert_type(savepoint, Savepoint)
            savepoint.rollback()
        session.execute(42)  # type: ignore[call-overload]  # neither a string nor an executable


async def tasks(spec: SQLSpec) -> None:
    async with SQLSpec() as own, own.get_async_session("primary", timeout=1.0, read_only=True) as session:
        assert_type(session, AsyncSession)
        assert_type(session.execute("SELECT 1"), PendingResult[DriverResult])
        assert_type(await session.execute("SELECT 1"), DriverResult)
        assert_type(await session.execute(sa.text("SELECT 1")), CursorResult[Any])
        assert_type(await session.execute("SELECT 1").all(), Sequence[Row[Any]])
        assert_type(await session.load_rows("users", [(1,)], ["id"]), int)
        async for row in session.stream("SELECT 1", chunk_size=10):
            assert_type(row, Row[Any])
        async with session.begin_nested() as savepoint:
            assert_type(savepoint, AsyncSavepoint)
        assert_type(await session.connection(), sa_asyncio.AsyncConnection)
        assert_type(await copy_rows(session, "SELECT 1", session, "users"), int)
    async with spec.get_async_connection("primary") as connection:
        assert_type(connection, AsyncConnection)
        assert_type(await connection.cursor().execute("SELECT 1"), AsyncCursor)
    assert_type(spec.get_async_engine("primary"), sa_asyncio.AsyncEngine)
    assert_type(await spec.aclose(timeout=1.0), None)


def many_rows(one: Session, other: Session, connection: Connection) -> None:
    assert_type(one.load_rows("users", [{"id": 1}]), int)
    assert_type(one.stream("SELECT 1"), CursorResult[Any])
    assert_type(copy_rows(one, "SELECT 1", other, "users", progress=print), int)
    statement = PreparedStatementCache(max_size=5).get_or_prepare(connection, "SELECT 1")
    assert_type(statement, PreparedStatement)
    assert_type(statement.execute((1,)), Cursor)
    assert_type(LoadError("users", ValueError(), 5).position, int | None)


def transactions(spec: SQLSpec) -> None:
    def count(session: Session) -> int:
        return len(session.execute("SELECT 1").all())

    assert_type(spec.run_transaction("primary", count), int)
    spec.run_transaction("primary", count, read_only=True, isolation_level="SERIALIZABLE", max_attempts=5, timeout=1.0)
    spec.run_transaction("primary", count, max_attempt=5)  # type: ignore[call-arg]  # misspelt
    spec.run_transaction("primary", len)  # type: ignore[arg-type]  # a session has no length
    lost: sa.exc.OperationalError = ConnectionLost("x", ambiguous=True)
    assert_type(ConnectionLost("x").ambiguous, bool)
    raise lost


async def transactions_in_tasks(spec: SQLSpec) -> None:
    async def count(session: AsyncSession) -> int:
        return len(await session.execute("SELECT 1").all())

    assert_type(await spec.arun_transaction("primary", count, max_attempts=5), int)
    await spec.arun_transaction("primary", len)  # type: ignore[arg-type]  # not asynchronous


def rows(session: Session) -> None:
    for row in session.execute("SELECT name FROM users"):
        assert_type(row, Row[Any])


def connections(spec: SQLSpec) -> None:
    with spec.get_connection("primary") as connection:
        assert_type(connection, Connection)
        assert_type(connection.cursor(), Cursor)
        assert_type(connection.cursor().execute("SELECT 1"), Cursor)
        assert_type(connection.age, float)
        assert_type(connection.query_count, int)
    assert_type(spec.create_connection("primary"), Connection)


async def isolated_tasks(spec: SQLSpec) -> None:
    async with aisolated(spec) as nothing:
        assert_type(nothing, None)
    with aisolated(spec):  # type: ignore[attr-defined]  # that is isolated()
        pass


async def health(spec: SQLSpec) -> None:
    assert_type(check_health(spec, ["primary"], timeout=1.0, max_age=5.0), HealthReport)
    report = await health_check(spec)
    assert_type(report, HealthReport)
    bools: dict[str, bool] = report
    assert_type(bools["primary"], bool)
    assert_type(report.details["primary"], DatabaseHealth)
    assert_type(report.details["primary"].latency_seconds, float)
    check_health(spec, ["primary"], 1.0)  # type: ignore[call-arg]  # times are named


async def fallbacks(spec: SQLSpec, error: FallbackError) -> None:
    with with_connection_fallback(spec, "primary", "replica", 2.0) as connection:
        assert_type(connection, Connection)
    async with awith_connection_fallback(spec, primary="primary", replica="replica", timeout=2.0) as other:
        assert_type(other, AsyncConnection)
    assert_type(error.replica, BaseException | None)
    assert_type(spec.get_pool_stats().fallbacks, int)


def pools(pool: FairQueuePool) -> None:
    assert_type(pool.connect(timeout=1.0), PoolProxiedConnection)
    assert_type(pool.stats(), PoolStats)
    assert_type(pool.get_holders()[0].statement, str | None)
    assert_type(pool.close(timeout=1.0), int)
    assert_type(pool.total(), int)
    queue_pool: QueuePool = pool
    sa.create_engine("sqlite:///app.db", poolclass=AsyncFairQueuePool, pool_size=queue_pool.size())


def drivers(driver: ScriptedDriver) -> None:
    assert_type(driver.engine(pool_size=1), Engine)
    driver.fail("connect", times=1)
    driver.fail("conect")  # type: ignore[arg-type]  # no such phase
    assert_no_leaks(driver.engine(), timeout=1.0)


def configs() -> None:
    PostgreSQLConfig(url="postgresql://h/d", password=SecretStr("x"), tls="verify-full", jit=False)
    PostgreSQLConfig(host="h", password=lambda: "x", pool_reset_on_return="discard")
    MySQLConfig(host="h", charset="utf8mb4", ping_on_checkout=False)
    SQLiteConnectionConfig(database="app.db", journal_mode="WAL", isolation_level=None)
    assert_type(PostgreSQLConfig(breaker=CircuitBreaker()).breaker, CircuitBreaker | None)
    PostgreSQLConfig(breaker="on")  # type: ignore[arg-type]  # an object, no text
    PostgreSQLConfig(pool_sise=1)  # type: ignore[call-arg]  # misspelt
    SQLiteConfig(database="app.db", journal_mode="FAST")  # type: ignore[arg-type]  # no such mode
    assert_type(build_secure_url("postgresql", "h", 5432, "d", "u", "p", sslmode="require"), str)


def errors(error: ConnectionTimeout) -> None:
    timeout: PoolTimeout = error
    alchemy: sa.exc.TimeoutError = timeout
    assert_type(error.phase, str) if alchemy is None else None
    value: ValueError = ConfigError("x", "field")
    assert_type(ConfigError("x").field, str | None)
    raise value


def metrics(spec: SQLSpec) -> None:
    assert_type(PrometheusMetrics(spec).render(), tuple[bytes, str])
    OpenTelemetryMetrics(spec)


def flask(app: Flask) -> None:
    db = FlaskSQLSpec(app, {"primary": SQLiteConfig(database="app.db")})
    assert_type(FlaskSQLSpec(configs=SQLiteConfig(database="app.db")).init_app(app), None)
    assert_type(db.register_config(SQLiteConfig(database="app.db"), "reports"), str)
    assert_type(db.spec, SQLSpec)
    assert_type(db.session, Session)
    assert_type(db.get_session("reports"), Session)
    assert_type(db.get_pool_stats("primary"), PoolStats)
    assert_type(db.blueprint("health", "ready", auth=lambda: True, name="operators"), Blueprint)
    db.blueprint("ready", auth=None, needed=["primary"])
    db.blueprint("healthz", auth=None)  # type: ignore[arg-type]  # no such page
    db.blueprint()  # type: ignore[call-arg]  # who may see the pages is always said
    with db.test_isolation(), isolated(db.spec):
        pass


def fastapi_application(spec: SQLSpec) -> None:
    db = FastAPISQLSpec(spec, warm={"primary": 5}, close_timeout=5.0)
    assert_type(db.spec, SQLSpec)
    assert_type(db.lifespan(fastapi.FastAPI(lifespan=db.lifespan)), AbstractAsyncContextManager[None])
    assert_type(db.session("primary", timeout=1.0, read_only=True), fastapi.params.Depends)
    assert_type(db.async_session(), fastapi.params.Depends)
    assert_type(db.router("health", "ready", auth=None, needed=["primary"]), fastapi.APIRouter)
    db.router("healthz", auth=None)  # type: ignore[arg-type]  # there is no such page
    db.router()  # type: ignore[call-arg]  # who may see the pages must be said

    async def is_operator(token: str) -> bool:
        return bool(token)

    db.router(auth=is_operator)
    Starlette(lifespan=lambda app: database_lifespan(spec, warm={"primary": 5}, in_threads=["primary"]))

    def endpoint(session: Annotated[Session, db.session("primary")]) -> None:
        assert_type(session, Session)

    async def asynchronous_endpoint(session: Annotated[AsyncSession, db.async_session("primary")]) -> None:
        assert_type(session, AsyncSession)
