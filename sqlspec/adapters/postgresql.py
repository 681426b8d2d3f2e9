"""PostgreSQL: PostgreSQLConfig, whose drivers are psycopg2, psycopg and asyncpg."""

from __future__ import annotations

import warnings
from typing import ClassVar

from pydantic import Field, model_validator

from sqlspec.adapters.asyncpg import Asyncpg
from sqlspec.adapters.driver import Driver, TLSMode, check_tls_ca
from sqlspec.adapters.psycopg import Psycopg, Psycopg2, PsycopgAsync
from sqlspec.config.base import PoolConfig, SyncDatabaseConfig
from sqlspec.exceptions import ConfigError, SQLSpecWarning

__all__ = ["PostgreSQLConfig", "PostgreSQLPoolConfig"]


class PostgreSQLPoolConfig(PoolConfig):
    """Say what PostgreSQL has beyond the common pool options.

    Attributes:
        application_name: the name in ``pg_stat_activity``.
        client_encoding: the encoding of text on the wire.
        prepare_threshold: psycopg prepares a statement after this many uses; ``None``: never, nor does asyncpg (for
            transaction-pooling proxies). psycopg2 prepares nothing, and a warning says so.
        jit: ``False`` switches just-in-time compilation off; ``True``, given, on; left out, the server decides.
    """

    application_name: str = Field(
        default="sqlspec", pattern=r"^[\x20-\x7e]{0,63}$", description="up to 63 printable ASCII characters"
    )
    client_encoding: str = Field(
        default="utf8", pattern=r"^[A-Za-z0-9_-]+$", description="the name of an encoding, such as utf8"
    )
    prepare_threshold: int | None = Field(default=5, ge=0)
    jit: bool = True


class PostgreSQLConfig(PostgreSQLPoolConfig, SyncDatabaseConfig):
    """Describe a PostgreSQL database and how its connections are pooled.

    Without a URL or parts, libpq's own ``PG*`` variables and defaults apply.

    Attributes:
        tls: ``disable``, ``require`` (encrypted, nobody's identity checked), ``verify-ca``, ``verify-full``.
            Left out, libpq decides (``PGSSLMODE``, else ``prefer``).
        tls_ca: file of the trusted certificates, or ``system``.
    """

    adapter: ClassVar[str] = "postgresql"
    schemes: ClassVar[frozenset[str]] = frozenset({"postgresql", "postgres"})

    tls: TLSMode | None = None
    tls_ca: str | None = None

    @model_validator(mode="after")
    def _agree_with_the_driver(self) -> PostgreSQLConfig:
        named = self.parsed_url.drivername.partition("+")[2]
        if named and named not in {"psycopg2", "psycopg", "asyncpg"}:
            raise ConfigError(f"url names the driver {named}: there are psycopg2, psycopg and asyncpg")
        if self.tls is not None and "sslmode" in self.parsed_url.query:
            raise ConfigError("tls and the url's sslmode are both given: keep one")
        mode = self.tls or self.parsed_url.query.get("sslmode")
        if "ssl" in self.parsed_url.query:
            raise ConfigError("url carries ssl: use tls='verify-full', which every driver understands")
        check_tls_ca(self.tls_ca, mode)
        host = self.parsed_url.host or str(self.parsed_url.query.get("host", ""))
        if host.startswith("/") and self.tls not in {None, "disable"}:
            raise ConfigError(f"tls={self.tls!r} on a Unix socket: libpq does not encrypt those, leave it out")
        if named in {"", "psycopg2"} and "prepare_threshold" in self.model_fields_set and self.prepare_threshold:
            warnings.warn(
                "prepare_threshold has no effect: psycopg2 prepares no statements. A url that begins with "
                "postgresql+psycopg:// uses psycopg, which does.",
                SQLSpecWarning,
                stacklevel=4,
            )
        return self

    def driver(self) -> Driver:
        """Return the driver that the URL names, psycopg2 where it names none."""
        named = self.parsed_url.drivername.partition("+")[2]
        if named == "asyncpg":
            raise ConfigError(
                "asyncpg is asynchronous only: leave the driver out of the url, or write postgresql+psycopg2://"
            )
        return Psycopg(self) if named == "psycopg" else Psycopg2(self)

    def async_driver(self) -> Driver:
        """Return the asynchronous driver that the URL names, asyncpg where it names none."""
        named = self.parsed_url.drivername.partition("+")[2]
        if named == "psycopg2":
            raise ConfigError(
                "psycopg2 is synchronous only: leave the driver out of the url, or write postgresql+psycopg://"
            )
        return PsycopgAsync(self) if named == "psycopg" else Asyncpg(self)
