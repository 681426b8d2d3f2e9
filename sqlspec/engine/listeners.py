"""What an engine listens to."""

from __future__ import annotations

import ipaddress
import logging
from contextlib import closing
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Engine, event, exc

from sqlspec.adapters import Driver
from sqlspec.config import NoPoolSyncConfig, PoolConfig
from sqlspec.pool import seconds_left, within

__all__ = ["SESSION_STATE", "listen", "wanted_autocommit"]

_logger = logging.getLogger("sqlspec")

# The autocommit that who checks a connection out of this engine is about to set; where there is none, the config's.
wanted_autocommit: ContextVar[tuple[Engine, bool] | None] = ContextVar("wanted_autocommit", default=None)
# In the info of a connection: what is known of the server's session, until that is reset.
SESSION_STATE = "sqlspec_session_state"
# Seconds, where only the checkout under way has a limit.
_LONGEST = 3600.0


def listen(engine: Engine, config: NoPoolSyncConfig, driver: Driver) -> None:
    """Listen to the events of an engine on which the promises of its config hang."""
    if getattr(config, "tls", "") is None:
        event.listen(engine, "first_connect", _warning_of_plain_text(driver))
    event.listen(engine, "first_connect", _checking_settings(config, driver))
    if not isinstance(config, PoolConfig):
        return
    if config.pool_reset_on_return == "discard":
        event.listen(engine, "reset", _discarding(driver))
    if driver.autocommit_stays:
        event.listen(engine, "checkout", _switching_autocommit(engine, driver))
    if driver.syntax == "mysql":
        event.listen(engine, "first_connect", _compare_wait_timeout(config))


def _switching_autocommit(engine: Engine, driver: Driver) -> Any:
    def switch(connection: Any, record: object, proxy: object) -> None:
        wanted = wanted_autocommit.get()
        try:
            # of another engine: this one is asked for a password, say, while that one connects
            is_meant = wanted is not None and wanted[0] is engine
            enabled = wanted[1] if wanted is not None and is_meant else driver.autocommit
            within(connection, seconds_left(_LONGEST), driver.set_autocommit, connection, enabled)
        except engine.dialect.loaded_dbapi.Error as error:
            # as after a ping that failed: the pool connects anew within the same checkout
            raise exc.DisconnectionError("the connection does not take a switch of autocommit") from error

    return switch


def _discarding(driver: Driver) -> Any:
    def discard(connection: Any, record: Any, state: Any) -> None:
        record.info.pop(SESSION_STATE, None)
        if state.terminate_only or connection is None:
            return
        if not driver.within(connection, driver.discard, connection):
            record.invalidate()

    return discard


def _warning_of_plain_text(driver: Driver) -> Any:
    def warn(connection: Any, record: object) -> None:
        host = driver.host(connection)
        if host is not None and not _is_loopback(host) and driver.uses_tls(connection) is False:
            _logger.warning(
                "the connection to %s is in plain text: choose tls='verify-full', or tls='disable' where that is meant",
                host,
            )

    return warn


def _checking_settings(config: NoPoolSyncConfig, driver: Driver) -> Any:
    def check(connection: Any, record: object) -> None:
        within(connection, seconds_left(config.connect_timeout), driver.check_settings, connection)

    return check


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _compare_wait_timeout(config: PoolConfig) -> Any:
    def compare(connection: Any, record: object) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute("SELECT @@wait_timeout")
            (seconds,) = cursor.fetchone()
        if not 0 <= config.pool_recycle < seconds:
            _logger.warning(
                "pool_recycle=%s is not below the server's wait_timeout of %s s: idle connections will be "
                "ended by the server",
                config.pool_recycle,
                seconds,
            )

    return compare
