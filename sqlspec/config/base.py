"""The configs that every database shares."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    SecretStr,
    ValidationError,
    model_validator,
)
from sqlalchemy import URL, make_url

from sqlspec.config.url import check_text, is_url, parse_url
from sqlspec.exceptions import ConfigError
from sqlspec.pool import NestedCheckout, RecyclingStrategy
from sqlspec.resilience import CircuitBreaker

__all__ = [
    "InstrumentationConfig",
    "NoPoolSyncConfig",
    "PoolConfig",
    "ResetOnReturn",
    "SyncDatabaseConfig",
]

# the upper bound, some 24 days, is that of PostgreSQL's and the drivers' milliseconds
Seconds = Annotated[float, Field(gt=0, le=2_147_483, allow_inf_nan=False)]
Password = Annotated[
    str | SecretStr | Callable[[], str | SecretStr],
    AfterValidator(lambda given: SecretStr(given) if isinstance(given, str) else given),
]


def _strategy(given: object) -> object:
    # files have tables
    if not isinstance(given, Mapping):
        return given
    try:
        return RecyclingStrategy(**given)
    except TypeError:
        raise ValueError("it has max_age, max_queries, max_errors and jitter") from None


def _breaker(given: object) -> object:
    if given is None or isinstance(given, CircuitBreaker):
        return given
    raise ValueError(
        "it is a CircuitBreaker(...), an object that no text describes: add it in the application, by "
        "config.model_copy(update={'breaker': ...})"
    )


def _no_url(part: str) -> str:
    # it may have a password, which a part would show
    if is_url(part):
        raise ValueError("it is a URL: give it as url")
    return part


def _no_port(host: str) -> str:
    if port := re.fullmatch(r"[\w.-]+:(\d+)", host):
        raise ValueError(f"it has the port in it: give port {port[1]} by itself")
    return host


Part = Annotated[str, AfterValidator(_no_url)]
Host = Annotated[Part, AfterValidator(_no_port)]
Breaker = Annotated[InstanceOf[CircuitBreaker], BeforeValidator(_breaker)]
Recycling = Annotated[InstanceOf[RecyclingStrategy], BeforeValidator(_strategy)]
ResetOnReturn = Literal["rollback", "commit", "none", "discard"]
_PARTS = ("host", "port", "database", "username")
# libpq's and mysqlclient's names for them
_PARTS_IN_QUERIES = {"host": "host", "port": "port", "user": "username", "dbname": "database", "db": "database"}


class Frozen(BaseModel):
    """Be options that cannot be changed; what is unknown or contradictory is refused with the field's name."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        # pydantic would repeat the value that it refuses, and that may be a URL with its password
        hide_input_in_errors=True,
        validate_default=False,
    )

    _example: ClassVar[str] = "name=value"

    # type checkers see the fields instead
    if not TYPE_CHECKING:

        def __init__(self, *arguments: Any, **values: Any) -> None:
            if arguments:
                arguments = None
                values.clear()
                raise ConfigError(f"the options of {type(self).__name__} have names: write {self._example}")
            problem = field = None
            try:
                super().__init__(**values)
            except ValidationError as error:
                problem = _explain(type(self), error)
                field = next((str(item["loc"][0]) for item in error.errors(include_input=False) if item["loc"]), None)
            if problem is not None:
                # A traceback that shows locals must not show a password, and raised here,
                # outside the handler, the error does not carry pydantic's as its context.
                values.clear()
                raise ConfigError(problem, field)

    @classmethod
    def model_validate(cls, obj: Any, **_: Any) -> Self:
        """Return a config from a mapping of its options.

        Raises:
            ConfigError: an option is unknown, out of range or contradicts another.
        """
        if isinstance(obj, cls):
            return obj
        made, problem, field = cls._make(obj)
        if made is None:
            del obj
            raise ConfigError(problem, field)
        return made

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **_: Any) -> Self:
        """Return a config from a JSON object of its options.

        Raises:
            ConfigError: the text is no JSON object, or an option is unknown, out of range or contradicts another.
        """
        made, problem, field = cls._make(json_data)
        if made is None:
            del json_data
            raise ConfigError(problem, field)
        return made

    @classmethod
    def _make(cls, values: Any) -> tuple[Self | None, str, str | None]:
        """Return a config, or what is wrong: raised by the caller, whose frame holds no password."""
        if isinstance(values, (str, bytes, bytearray)):
            try:
                values = json.loads(values)
            except ValueError as error:
                return None, f"{cls.__name__}: the text is not JSON: {error}", None
        if not isinstance(values, Mapping):
            return None, f"{cls.__name__} is made of a mapping of options", None
        try:
            return cls(**values), "", None
        except ConfigError as error:
            return None, str(error), error.field

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).model_fields:
            raise ConfigError(
                f"{type(self).__name__} cannot be changed: build another, and register it with replace=True", name
            )
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values for some options, which are checked as at the beginning.

        Raises:
            ConfigError: an option is unknown, out of range or contradicts another.
        """
        if not update:
            return super().model_copy(deep=deep)
        made, problem, field = self._make({name: getattr(self, name) for name in self.model_fields_set} | dict(update))
        if made is None:
            del update
            raise ConfigError(problem, field)
        return made


class InstrumentationConfig(Frozen):
    """Say what is logged and measured.

    Attributes:
        pool_name: the name of the pool in logs and metrics; default: the name of the config.
        metrics: tell the pool's figures to the exporters of `sqlspec.telemetry`.
        log_parameters: show bound values in statement logs and error messages. Off, since values are data.
        log_statements: write the statements of sessions and engines to the log of ``sqlalchemy.engine``, like ``echo``.
        slow_statement_seconds: log statements of sessions and engines that take longer, as far as their first literal,
            to ``sqlspec.statements``. Sessions then go SQLAlchemy's own way, which takes longer.
        slow_checkout_seconds: log checkouts that take longer to ``sqlspec.pool``.
    """

    pool_name: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_.:-]{1,64}$", description="up to 64 letters, digits and _ . : -"
    )
    metrics: bool = True
    log_parameters: bool = False
    log_statements: bool = False
    slow_statement_seconds: Seconds | None = None
    slow_checkout_seconds: Seconds | None = None


class NoPoolSyncConfig(Frozen):
    """Describe one database, without a pool.

    A database is named by ``url``, by parts (``host``, ``port``, ``database``, ``username``), or by neither
    where the driver has defaults of its own. The password of a URL moves to ``password``; ``url`` keeps the rest.

    Attributes:
        password: a string, or a callable that is asked at every connect (rotating credentials), and by MySQL's
            ``discard`` at every checkin.
        autocommit: every statement commits by itself; nothing can be rolled back.
        echo: log the statements of sessions and engines to ``sqlalchemy.engine``; values only with
            ``instrumentation.log_parameters``.
        connect_timeout: seconds to wait for a new connection, name resolution and all hosts included.
            On SQLite, how long a statement waits for another writer's lock.
        command_timeout: seconds that one statement may run on the server; ``None``: the server's own limit. A twentieth
            later, and a tenth of a second, whoever waits for a statement or COMMIT of a server that hangs gets the
            driver's error, and the connection is closed.
        breaker: guards the opening of connections: while it is open, whatever would connect raises `CircuitOpenError`
            at once, and the connections there are serve on. Configs may share one.

    Raises:
        ConfigError: an option is unknown, out of range or contradicts another.
    """

    adapter: ClassVar[str] = ""
    schemes: ClassVar[frozenset[str]] = frozenset()
    _example: ClassVar[str] = "host='…', database='…'"
    _url_example: ClassVar[str] = (
        "scheme://user:password@host:port/database, and escape the parts with build_secure_url()"
    )

    url: str | None = None
    host: Host | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    database: Part | None = None
    username: Part | None = None
    password: Password | None = Field(default=None, repr=False)

    autocommit: bool = False
    echo: bool = False

    connect_timeout: Seconds = 10.0
    command_timeout: Seconds | None = None

    breaker: Breaker | None = None
    instrumentation: InstrumentationConfig = Field(default_factory=InstrumentationConfig)

    @model_validator(mode="before")
    @classmethod
    def _take_the_url_apart(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("database"), os.PathLike):
            values = {**values, "database": os.fspath(values["database"])}
        if not isinstance(values, dict) or values.get("url") is None:
            return values
        if not isinstance(values["url"], (str, URL)):
            raise ConfigError(f"url must be a string, not {type(values['url']).__name__}")
        url, password = parse_url(values["url"], cls._url_example)
        scheme = url.drivername.split("+")[0]
        if cls.schemes and scheme not in cls.schemes:
            raise ConfigError(f"url is of a {scheme} database: {cls.__name__} takes {_alternatives(cls.schemes)}://")
        # options that are fields of the config, as in ?application_name=…
        options = {key: value for key, value in url.query.items() if key in cls.model_fields and key not in _PARTS}
        found = {**{part: getattr(url, part) for part in _PARTS}, **options, "password": password}
        found |= {part: url.query[key] for key, part in _PARTS_IN_QUERIES.items() if key in url.query}
        for name, value in found.items():
            if value is not None and values.get(name) is not None:
                raise ConfigError(f"{name} is given twice, in url and by itself: keep one")
        changed = {**values, **options, "url": url.difference_update_query(options).render_as_string()}
        return changed if password is None else {**changed, "password": password}

    @model_validator(mode="after")
    def _refuse_what_no_server_takes(self) -> NoPoolSyncConfig:
        for part in ("host", "database", "username"):
            value = getattr(self, part)
            check_text(part, value)
            if value is not None and not value.isprintable():
                raise ConfigError(f"{part} contains a line break or another control character")
        if isinstance(self.password, SecretStr):
            check_text("password", self.password.get_secret_value())
        return self

    @model_validator(mode="after")
    def _have_a_probe_end_before_it_is_given_up(self) -> Self:
        breaker = self.breaker
        if breaker is not None and breaker.probe_timeout <= self.connect_timeout:
            raise ConfigError(
                f"breaker: its probe_timeout={breaker.probe_timeout:g} is not above connect_timeout="
                f"{self.connect_timeout:g}: a connect that hangs would be given up as a probe before it has failed"
            )
        return self

    @property
    def parsed_url(self) -> URL:
        """Return the URL that the config means, from ``url`` and parts, without a password."""
        url = make_url(self.url) if self.url is not None else URL.create(self.adapter)
        parts = {part: getattr(self, part) for part in _PARTS if getattr(self, part) is not None}
        return url._replace(**parts) if parts else url

    @property
    def is_async_only(self) -> bool:
        """Tell whether the URL names a driver that serves event loops only."""
        return self.parsed_url.drivername.partition("+")[2] in {"asyncpg", "asyncmy", "aiosqlite"}

    def reveal_password(self) -> str | None:
        """Return the password as it is now; a callable is asked anew. For connecting only."""
        password = self.password
        if callable(password):
            password = password()
            if not isinstance(password, (str, SecretStr)):
                raise ConfigError(f"password() returned {type(password).__name__}: it must return a string", "password")
        secret = password.get_secret_value() if isinstance(password, SecretStr) else password
        check_text("password", secret)
        return secret

    def __getstate__(self) -> dict[Any, Any]:
        if isinstance(self.password, SecretStr):
            raise TypeError(
                f"{type(self).__name__} holds a password and cannot be pickled: build it in the other process, "
                "for example with EnvironmentConfig.from_env(), or give password as an importable function"
            )
        return super().__getstate__()


class PoolConfig(Frozen):
    """Say how connections are kept.

    Attributes:
        pool_size: connections kept open; of a pool that adapts itself, at the beginning.
        min_pool_size: keep at least so many connections open, from the first checkout on: they are opened in the
            background. A pool that adapts itself shrinks to this size, or to ``pool_size`` where this is not given.
        max_pool_size: the most connections that are kept: above ``pool_size`` the pool adapts its size to the load,
            between ``min_pool_size`` and this. ``None``: the size stays.
        max_overflow: connections opened beyond the size of the moment under load.
        pool_timeout: seconds that a checkout may wait for a connection.
        pool_recycle: connections older than this many seconds are replaced at checkout, each up to a quarter
            earlier, so that not all are replaced together; -1: never.
        pool_recycling: closes and replaces connections by age, statements and errors, between two checkouts: a
            `RecyclingStrategy`, or a mapping of its arguments.
        pool_pre_ping: make sure at checkout that the connection is alive.
        pool_use_lifo: hand out the connection used last, so that the others can age.
        pool_reset_on_return: what happens to an open transaction at checkin: ``rollback``; ``commit``;
            ``none`` (nothing, the next borrower inherits it); ``discard`` (rollback, then session state such
            as ``SET`` and temporary tables goes as well; a SQLite file is opened anew).
        pool_max_waiters: how many callers may wait for a connection; more are refused at once. ``None``: any number.
        pool_nested_checkout: what becomes of a thread or task that asks for another connection while it holds one,
            which can bring all to a halt: ``allow``; ``warn`` (in the log, once a place); ``refuse``.
        pool_leak_seconds: log a connection that is checked out for longer, once, with the place of its checkout.
        pool_idle_timeout: close connections beyond ``min_pool_size`` that were not used for so many seconds.
        pool_keepalive: ask the server for a sign of life on connections that were idle for so many seconds, so that
            no firewall forgets them; not on SQLite.
    """

    pool_size: int = Field(default=10, ge=1)
    min_pool_size: int | None = Field(default=None, ge=0)
    max_pool_size: int | None = Field(default=None, ge=1)
    max_overflow: int = Field(default=20, ge=0)
    pool_timeout: Seconds = 30.0
    pool_recycle: int = Field(default=3600, ge=-1)
    pool_pre_ping: bool = True
    pool_use_lifo: bool = False
    pool_reset_on_return: ResetOnReturn = "rollback"
    pool_max_waiters: int | None = Field(default=None, ge=0)
    pool_nested_checkout: NestedCheckout = "warn"
    pool_leak_seconds: Seconds | None = None
    pool_recycling: Recycling | None = None
    pool_idle_timeout: Seconds | None = None
    pool_keepalive: Seconds | None = None

    @model_validator(mode="after")
    def _refuse_upkeep_that_means_nothing(self) -> Self:
        idle, keepalive = self.pool_idle_timeout, self.pool_keepalive
        if idle is not None and keepalive is not None and keepalive >= idle and not self.min_pool_size:
            raise ConfigError(
                f"pool_keepalive={keepalive:g} is not below pool_idle_timeout={idle:g}: connections would be closed "
                "before they are asked",
                "pool_keepalive",
            )
        return self

    @model_validator(mode="after")
    def _keep_the_sizes_in_order(self) -> PoolConfig:
        if self.min_pool_size is not None and self.min_pool_size > self.pool_size:
            raise ConfigError(
                f"min_pool_size={self.min_pool_size} is above pool_size={self.pool_size}: raise pool_size, with which "
                "the pool begins, or lower min_pool_size"
            )
        if self.max_pool_size is not None and self.max_pool_size < self.pool_size:
            raise ConfigError(
                f"max_pool_size={self.max_pool_size} is below pool_size={self.pool_size}: raise max_pool_size, "
                "lower pool_size, or leave max_pool_size out for a size that stays"
            )
        return self


class SyncDatabaseConfig(PoolConfig, NoPoolSyncConfig):
    """Describe one database and how its connections are pooled."""


def _alternatives(names: frozenset[str]) -> str:
    return ":// or ".join(sorted(names))


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    """Name each field and what is wrong with it, without the values."""
    problems = []
    for item in error.errors(include_url=False, include_context=True, include_input=False):
        field = ".".join(str(part) for part in item["loc"][:1])
        if item["type"] == "extra_forbidden":
            problems.append(f"{field} is not an option{_near_miss(field, cls)}")
        elif item["type"] == "string_pattern_mismatch":
            problems.append(f"{field}: must be {cls.model_fields[field].description}")
        else:
            message = str(item["msg"]).removeprefix("Value error, ")
            problems.append(f"{field}: {message}" if field else message)
    return f"{cls.__name__}: " + "; ".join(dict.fromkeys(problems))


def _near_miss(name: str, cls: type[BaseModel]) -> str:
    near = difflib.get_close_matches(name, cls.model_fields, n=2)
    return f": did you mean {' or '.join(near)}?" if near else f"; options are {', '.join(sorted(cls.model_fields))}"
