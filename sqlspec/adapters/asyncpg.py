"""The driver of PostgreSQL that is asynchronous only: asyncpg."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Literal, cast

from sqlalchemy import URL
from sqlalchemy.util import await_only, greenlet_spawn

from sqlspec.adapters.driver import TransactionOptions
from sqlspec.adapters.loading import Target
from sqlspec.adapters.psycopg import ALL_BUT_STATEMENTS, PREPARED_BY_HAND, PostgreSQLDriver, awaiting, deallocate
from sqlspec.adapters.shield import PAUSES

__all__ = ["Asyncpg"]

_HOSTS = ("host", "port")


class Asyncpg(PostgreSQLDriver):
    """Do it on asyncpg, as SQLAlchemy adapts its connections."""

    name = "asyncpg"
    extra = "asyncpg"
    language = "postgresql $1"
    is_async = True
    sends_ahead = True

    def url(self) -> URL:
        # its query is libpq's, which asyncpg understands in a DSN only; SQLAlchemy finds several hosts there
        url = super().url()
        return url.set(query={key: value for key, value in url.query.items() if key in _HOSTS})

    def connect_error(self, dbapi: Any, error: BaseException) -> BaseException:
        # SQLAlchemy 2.0 lets through what asyncpg raises when it connects
        if isinstance(error, socket.gaierror) and (host := self._config.parsed_url.host):
            # the system says which address it could not reach, but not which name it does not know
            error.add_note(f"the host is {host}")
        kinds = dbapi._asyncpg_error_translate
        kind = next((kinds[known] for known in type(error).__mro__ if known in kinds), None)
        if kind is None:
            return error
        translated = kind(f"{type(error)}: {error}")
        translated.pgcode = translated.sqlstate = getattr(error, "sqlstate", None)
        return cast("BaseException", translated)

    def connect_args(self) -> dict[str, Any]:
        from sqlspec.adapters.committed import CommittedConnection

        config = self._config
        settings = {"application_name": config.application_name, "client_encoding": config.client_encoding}
        if options := self._options():
            settings["options"] = options
        query = {key: value for key, value in config.parsed_url.query.items() if key not in {"options", *_HOSTS}}
        if config.tls is not None:
            query["sslmode"] = config.tls
        if config.tls_ca is not None:
            query["sslrootcert"] = config.tls_ca
        arguments: dict[str, Any] = {
            "timeout": config.connect_timeout,
            "server_settings": settings,
            "connection_class": CommittedConnection,
        }
        if config.prepare_threshold is None:
            # a proxy hands each transaction to another server connection, which knows no statement prepared before
            arguments |= {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        if config.tls_ca == "system":
            # libpq's word, which asyncpg would take for a file
            del query["sslrootcert"]
            arguments["ssl"] = ssl.create_default_context()
            arguments["ssl"].check_hostname = query["sslmode"] == "verify-full"
        return {**arguments, "dsn": URL.create("postgresql", query=query).render_as_string()}

    def limit_connect(self, arguments: dict[str, Any], seconds: float) -> None:
        arguments["timeout"] = min(arguments["timeout"], seconds)

    def _end(self, connection: Any, how: Literal["commit", "rollback"]) -> None:
        super()._end(connection, how)
        # what was begun in a string, SQLAlchemy's adapter does not know of
        if connection.driver_connection.is_in_transaction():
            finish = how.upper()
            self.within(connection, _run, connection, lambda driver_connection: driver_connection.execute(finish))

    def uses_tls(self, connection: Any) -> bool:
        return bool(self._value(connection, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))

    def host(self, connection: Any) -> str | None:
        host = self._value(connection, "SELECT host(inet_server_addr())")
        return None if host is None else str(host)

    def server_version(self, connection: Any) -> str:
        return f"PostgreSQL {self._value(connection, 'SHOW server_version')}"

    def _copy(self, connection: Any, target: Target, chunks: Iterator[bytes]) -> None:
        async def copy_in(driver_connection: Any) -> None:
            await driver_connection.copy_to_table(
                target.table,
                schema_name=target.schema,
                columns=target.columns or None,
                source=awaiting(chunks),
                format="text",
                encoding="UTF8",
            )

        _run(connection, copy_in)

    def recover(self, connection: Any, cursor: Any) -> bool:
        # Asyncpg has asked the server to cancel, and waits for the answer before anything else. Without a transaction
        # it was BEGIN or COMMIT that was cancelled, or, under autocommit, one may have been begun in a string.
        # (SQLAlchemy 2.0 knows by _started, 2.1 by _transaction)
        undo = connection.rollback
        if not getattr(connection, "_started", connection._transaction is not None):
            connection._transaction = None
            undo = partial(connection.run_async, _roll_back_any)
        await_only(_insist(connection.driver_connection, greenlet_spawn(undo)))
        return True

    def follow_schema(self, cursor: Any, dialect: Any) -> None:
        # as SQLAlchemy's own execution does it
        cursor._invalidate_schema_cache_asof = dialect._invalidate_schema_cache_asof

    def schema_changes(self, dialect: Any) -> None:
        # as SQLAlchemy does for its own DDL
        dialect._invalidate_schema_cache()

    def note(self, error: BaseException, dialect: Any, connection: Any) -> None:
        if isinstance(error, (dialect.dbapi.InvalidCachedStatementError, dialect.dbapi.InternalServerError)):
            dialect._invalidate_schema_cache()
        elif isinstance(error.__cause__, dialect.dbapi.asyncpg.DataError) and connection._prepared_statement_cache:
            # A value does not fit the type that the parameter had when the statement was prepared. Others may have
            # changed it since then; the server is asked anew, on this connection.
            connection._prepared_statement_cache.clear()

    def discard(self, connection: Any) -> bool:
        connection.rollback()
        self.restore(connection, TransactionOptions())
        self.set_autocommit(connection, self.autocommit)
        connection.run_async(_discard_all)
        return True

    def _value(self, connection: Any, statement: str) -> Any:
        # past the adapter, which would begin a transaction
        return connection.run_async(lambda driver_connection: driver_connection.fetchval(statement))

    def _set_isolation_level(self, connection: Any, level: str | None) -> None:
        # the level of an autocommit connection is that it has no transactions
        if connection.isolation_level != "autocommit":
            connection.isolation_level = None if level is None else level.lower().replace(" ", "_")

    def _set_read_only(self, connection: Any, read_only: bool | None) -> None:
        connection.readonly = bool(read_only)

    def _is_read_only(self, connection: Any) -> bool:
        return bool(connection.readonly)

    def _parameter(self, connection: Any, name: str) -> str | None:
        return getattr(connection.driver_connection.get_settings(), name, None)

    def set_autocommit(self, connection: Any, enabled: bool) -> None:
        # the adapter's own autocommit=False goes back to what the engine began with, which may be autocommit
        if connection.autocommit != enabled:
            connection.isolation_level = "autocommit" if enabled else None


def _run(connection: Any, work: Callable[[Any], Awaitable[object]]) -> None:
    try:
        connection.run_async(work)
    except connection.dbapi.asyncpg.PostgresError as error:
        # into PEP 249's, as the adapter does with those of its own calls
        connection._handle_exception(error)


async def _insist(connection: Any, work: Awaitable[object]) -> None:
    """Do what waits until the cancelled statement has ended, and ask the server again to end it."""
    working = asyncio.ensure_future(work)
    asking: asyncio.Future[object] = working
    try:
        for pause in PAUSES:
            done, _ = await asyncio.wait({working}, timeout=pause)
            if done:
                break
            # waited for: one that is late would end what comes next on this connection. And in a task, since asyncpg
            # does not let through that it is cancelled.
            asking = asyncio.ensure_future(connection._cancel(asyncio.get_running_loop().create_future()))
            await asyncio.wait({asking})
        await working
    finally:
        asking.cancel()
        working.cancel()


async def _roll_back_any(connection: Any) -> None:
    # asyncpg takes a transaction for begun whose BEGIN was cancelled
    connection._top_xact = None
    await connection.execute("ROLLBACK")


async def _discard_all(connection: Any) -> None:
    # before the rest, which outdates it
    names = await connection.fetch(PREPARED_BY_HAND)
    await connection.execute("; ".join([*(deallocate(name) for (name,) in names), ALL_BUT_STATEMENTS]))
