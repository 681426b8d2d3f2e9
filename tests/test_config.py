"""Configs: what they refuse, and what they never show."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from sqlspec import ConfigError, EnvironmentConfig, InstrumentationConfig, SQLSpec, SQLSpecWarning, build_secure_url
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig, SQLiteConfig, SQLiteConnectionConfig
from sqlspec.config import SyncDatabaseConfig
from sqlspec.engine import build_engine

MISTAKES = [
    (lambda: PostgreSQLConfig(pool_size=-1), "pool_size: Input should be greater than or equal to 1"),
    (lambda: PostgreSQLConfig(max_overflow=-1), "max_overflow"),
    (lambda: PostgreSQLConfig(connect_timeout=0), "connect_timeout: Input should be greater than 0"),
    (lambda: PostgreSQLConfig(command_timeout=float("inf")), "command_timeout: Input should be a finite number"),
    (lambda: PostgreSQLConfig(pool_timeout="soon"), "pool_timeout: Input should be a valid number"),
    (lambda: PostgreSQLConfig(pool_sise=3), "pool_sise is not an option: did you mean pool_size"),
    (lambda: PostgreSQLConfig(url="mysql://h/d"), "url is of a mysql database: PostgreSQLConfig takes postgres"),
    (lambda: MySQLConfig(url="postgresql://h/d"), "MySQLConfig takes mariadb:// or mysql"),
    (lambda: SQLiteConfig(url="postgresql://h/d"), "SQLiteConfig takes sqlite"),
    (lambda: PostgreSQLConfig(url="nonsense"), "url does not parse: write scheme://"),
    (lambda: PostgreSQLConfig(url="postgresql://h:port/d"), "url does not parse"),
    (lambda: PostgreSQLConfig(url="postgresql://u:a@h/d", password="b"), "password is given twice"),
    (lambda: PostgreSQLConfig(url="postgresql://h/d", host="g"), "host is given twice"),
    (lambda: PostgreSQLConfig(url="postgresql://h/d?password=x"), "password behind the '\\?'"),
    (lambda: PostgreSQLConfig(url="postgresql+pg8000://h/d"), "driver pg8000: there are psycopg2"),
    (lambda: PostgreSQLConfig(port=70000), "port: Input should be less than or equal to 65535"),
    (lambda: PostgreSQLConfig(database="a\0b"), "database contains a NUL"),
    (lambda: PostgreSQLConfig(application_name="a\nb"), "application_name"),
    (lambda: PostgreSQLConfig(client_encoding="utf8'; --"), "client_encoding"),
    (lambda: PostgreSQLConfig(tls="yes"), "tls: Input should be 'disable', 'require'"),
    (lambda: PostgreSQLConfig(url="postgresql://h/d?sslmode=require", tls="require"), "keep one"),
    (lambda: MySQLConfig(sql_mode="TRADITIONAL'; DROP"), "sql_mode"),
    (lambda: MySQLConfig(url="mysql://h/d?ssl_mode=REQUIRED"), "use tls="),
    (lambda: MySQLConfig(ping_on_checkout=False, pool_pre_ping=True), "contradict each other"),
    (lambda: SQLiteConfig(database="x.db", journal_mode="FAST"), "journal_mode: Input should be 'WAL'"),
    (lambda: SQLiteConfig(database="x.db", cache_size="1; DROP"), "cache_size"),
    (lambda: SQLiteConfig(database="x.db", isolation_level="READ COMMITTED"), "isolation_level: Input should be 'DEF"),
    (lambda: SQLiteConfig(database="x.db", host="h"), "SQLite is a file"),
    (lambda: SQLiteConfig(database="x.db", check_same_thread=True), "does not go with a pool"),
    (lambda: SQLSpec().register_config(SQLiteConfig()), "names no file: give database="),
    (lambda: SQLSpec().register_config(SQLiteConnectionConfig(database=":memory:")), "use SQLiteConfig"),
    (lambda: SQLSpec().register_config(MySQLConfig()), "names no server"),
    (lambda: SQLSpec().register_config(SyncDatabaseConfig()), "SyncDatabaseConfig names no database: use"),
    (lambda: SQLSpec().register_config("postgresql://h/d"), "takes a config such as PostgreSQLConfig"),
    (lambda: SQLSpec().register_config(PostgreSQLConfig(), name=""), "not empty"),
    (lambda: SQLSpec().get_session("primary"), "register_config\\(\\) has not been called"),
    (lambda: build_engine(PostgreSQLConfig(url="postgresql+asyncpg://h/d")), "asyncpg is asynchronous only"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_a_mistake_is_refused_with_its_name_and_the_fix(mistake: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mistake()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SQLiteConfig("app.db"), "options of SQLiteConfig have names: write database='app.db'"),
        (lambda: SQLiteConfig(url="app.db"), "write sqlite:///app.db, or database="),
        (lambda: SQLSpec().register_config(SQLiteConfig), "not the class SQLiteConfig"),
        (lambda: MySQLConfig(url="mysql://h/d?client_flag=65536"), "client_flag, which would undo"),
        (lambda: MySQLConfig(url="mysql://h/d?local_infile=1"), "local_infile, which would let the server read"),
        (lambda: MySQLConfig(url="mysql://h/d?init_command=x"), "init_command"),
        (lambda: MySQLConfig(url="mysql://h/d?multi_statements=1"), "multi_statements"),
        (lambda: PostgreSQLConfig(url="postgresql://h/d?user=x", username="y"), "username is given twice"),
        (lambda: PostgreSQLConfig(url="postgresql://h/d?application_name=x", application_name="y"), "given twice"),
        (lambda: PostgreSQLConfig(url="postgresql://u:***@h/d"), "hides it"),
        (lambda: PostgreSQLConfig(url="postgresql://h:0/d"), "port 0"),
        (lambda: PostgreSQLConfig(url=5), "url must be a string"),
        (lambda: PostgreSQLConfig(host="h\n"), "line break"),
        (lambda: PostgreSQLConfig(host="h:5432"), "host: it has the port in it: give port 5432 by itself"),
        (lambda: PostgreSQLConfig(host="postgresql://h/d"), "host: it is a URL: give it as url"),
        (lambda: MySQLConfig(host="h", database="mysql+asyncmy://h/d"), "database: it is a URL: give it as url"),
        (lambda: SQLiteConfig(database="sqlite:///app.db"), "database: it is a URL: give it as url"),
        (lambda: PostgreSQLConfig(command_timeout=1e9), "command_timeout"),
        (lambda: build_secure_url("postgresql", "h", sslpassword="x"), "sslpassword would be printed"),
        (lambda: build_secure_url("postgresql", "h", ssl=True), "give a string or a number"),
        (lambda: build_secure_url("postgresql", "fe80::1%eth0"), "network interface"),
        (lambda: build_secure_url("postgresql", 5), "host must be a string"),
        (lambda: build_secure_url("postgresql", "h", username="\ud800"), "lone surrogate"),
        (lambda: SQLSpec().register_config(PostgreSQLConfig(), name="a\nb"), "printable"),
        (lambda: build_secure_url("postgresql://h/d"), r"scheme is a URL: give build_secure_url\(\) its parts"),
        (lambda: SQLSpec().get_session("postgresql://u:x@h/d"), "^there is no config of this name, which is a URL"),
        (lambda: SQLSpec.from_toml("postgresql://u:x@h/d"), r"^from_toml\(\) takes the name of a file, and .* url$"),
        (lambda: SQLSpec.from_env("postgresql://u:x@h/d"), r"^from_env\(\) takes the prefix of variables, .* url$"),
        (lambda: PostgreSQLConfig.model_validate([]), "made of a mapping"),
        (lambda: PostgreSQLConfig.model_validate_json("{"), "not JSON"),
    ],
)
def test_further_mistakes_are_told_as_well(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_is_none_is_left_out_of_a_url_and_sockets_go_behind_the_question_mark() -> None:
    assert build_secure_url("postgresql", "h", database="d", sslmode=None) == "postgresql://h/d"
    assert build_secure_url("postgresql", "/run/pg", 5433, "d") == "postgresql:///d?host=%2Frun%2Fpg&port=5433"
    assert build_secure_url("mysql", "/run/my.sock", database="d") == "mysql:///d?unix_socket=%2Frun%2Fmy.sock"
    url = build_engine(MySQLConfig(host="/run/my.sock")).url
    assert (url.host, url.query["unix_socket"]) == (None, "/run/my.sock")
    assert SQLiteConfig(database=Path("app.db")).database == "app.db"


@pytest.mark.skipif(sa.__version__ >= "2.1", reason="SQLAlchemy 2.1 writes such a name so that it reads it again")
def test_a_url_object_that_says_something_else_when_written_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be written in a URL"):
        PostgreSQLConfig(url=sa.URL.create("postgresql", host="h", database="a?sslmode=disable"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PostgreSQLConfig.model_validate({"password": "hidden", "x": 1}),
        lambda: PostgreSQLConfig.model_validate_json('{"password": "hidden", "x": 1}'),
        lambda: PostgreSQLConfig().model_copy(update={"password": "hidden", "port": "h"}),
        lambda: PostgreSQLConfig(url="postgresql://u:hidden@h/d", host="h"),
        lambda: PostgreSQLConfig(host="postgresql://u:hidden@h/d"),
        lambda: build_secure_url("postgresql", "h", 5, "a?b", "u", "hidden"),
        lambda: build_secure_url("postgresql://u:hidden@h/d"),
        lambda: build_secure_url("postgresql", "postgresql://u:hidden@h/d"),
        lambda: build_secure_url("postgresql", "h", database="postgresql://u:hidden@h/d?x"),
    ],
)
def test_no_frame_of_ours_shows_a_password(make: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    stack = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack
    own = [str(frame.locals) for frame in stack if "test_config" not in frame.filename]
    assert own
    assert "hidden" not in " ".join(own) + str(caught.value)


@pytest.mark.parametrize("host", ["::1", "fe80::1", "/cloudsql/project:region:1", "a,b", "db-1.example"])
def test_a_host_with_colons_or_commas_that_carries_no_port_is_taken(host: str) -> None:
    assert PostgreSQLConfig(host=host).host == host


def test_a_config_cannot_be_changed() -> None:
    config = PostgreSQLConfig()
    with pytest.raises(ConfigError, match="cannot be changed"):
        config.pool_size = 3
    assert config.pool_size == 10


def test_a_copy_of_a_config_is_checked_like_the_original() -> None:
    config = PostgreSQLConfig(url="postgresql://u:secret@h/d", pool_size=2)
    copied = config.model_copy(update={"pool_size": 3})
    assert (copied.pool_size, copied.url, copied.reveal_password()) == (3, "postgresql://u@h/d", "secret")
    with pytest.raises(ConfigError, match="pool_size"):
        config.model_copy(update={"pool_size": 0})
    assert config.model_copy() == config


def test_prepare_threshold_explains_itself_on_psycopg2() -> None:
    with pytest.warns(SQLSpecWarning, match="psycopg2 prepares no statements"):
        PostgreSQLConfig(prepare_threshold=3)
    PostgreSQLConfig(url="postgresql+psycopg://h/d", prepare_threshold=3)


def test_engine_urls_name_their_driver_and_have_no_password() -> None:
    assert str(build_engine(PostgreSQLConfig(url="postgres://u:secret@h/d")).url) == "postgresql+psycopg2://u@h/d"
    assert str(build_engine(MySQLConfig(url="mariadb://u:secret@h/d")).url) == "mysql+mysqldb://u@h/d"
    assert str(build_engine(SQLiteConfig(database="x.db")).url) == "sqlite+pysqlite:///x.db"


PASSWORDS = [
    "pl4in-secret", "with space!", "p@ss:w/rd", "100%sure%41", "a+b=c&d", "quote'quote", 'double"double', "back\\slash",
    "hash#tag", "quest?ion", "semi;colon", "[brackets]", "{braces}", "<angle>", "pipe|pipe", "tick`tick", "$dollar$",
    "new\nline", "tab\ttab", "ünïcödé-pw", "密码密码密码", "emoji🔑emoji", "%(password)s", "%s%s%s", "{0}{1}",
    "${HOME}/x", "<script>x", "--comment", "/*comment*/", "OR 1=1 --", "null-like", "True-ish", "0x1234567", "::cast::",
    ":name:name", "??double??", "a@b@c@d", "x:y:z:w", "/slash/slash/", "very" * 50,
]  # fmt: skip


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg", "mysql"])
@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_appears_in_no_sink(password: str, scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = build_secure_url(scheme, "127.0.0.1", 1, "d", "u", password)
    config = (MySQLConfig if scheme == "mysql" else PostgreSQLConfig)(url=url, echo=True)
    assert config.reveal_password() == password
    engine = build_engine(config)
    with SQLSpec() as spec, pytest.raises(exc.OperationalError) as caught:
        spec.register_config(config)
        with spec.get_session() as session:
            session.execute("SELECT 1")
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    inner = [line for line in frames.format() if "test_config" not in line]
    sinks = [repr(config), str(config), repr(config.model_dump()), str(engine), repr(engine.url), caplog.text, *inner]
    shown = [sink for sink in sinks for form in (password, url) if form in sink or repr(form) in sink]
    assert shown == []
    with pytest.raises(TypeError, match="from_env"):
        pickle.dumps(config)
    assert copy.deepcopy(config).reveal_password() == password
    assert config.model_copy(update={"pool_size": 2}).reveal_password() == password
    assert password not in config.model_dump_json() + repr(config.model_copy(update={"pool_size": 2}))


def test_a_refused_config_shows_no_password_in_its_traceback() -> None:
    with pytest.raises(ConfigError) as caught:
        PostgreSQLConfig(url="postgresql://u:hidden-secret@h/d", pool_size=-1)
    assert caught.value.__context__ is None
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    own = [str(frame.locals) for frame in frames.stack if "test_config" not in frame.filename]
    assert own
    assert "hidden-secret" not in " ".join(own) + str(caught.value)


def test_the_environment_describes_a_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for key, value in {"HOST": "h", "PORT": "3307", "NAME": "d", "USER": "u", "SCHEME": "mysql"}.items():
        monkeypatch.setenv(f"APP_{key}", value)
    monkeypatch.setenv("APP_POOL_SIZE", "7")
    (tmp_path / "pw").write_text("from a file\n")
    monkeypatch.setenv("APP_PASSWORD_FILE", str(tmp_path / "pw"))
    config = EnvironmentConfig.from_env("APP_")
    assert isinstance(config, MySQLConfig)
    assert (config.host, config.port, config.database, config.username) == ("h", 3307, "d", "u")
    assert config.pool_size == 7
    assert config.reveal_password() == "from a file"


def test_errors_of_the_environment_name_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="set NONE_URL"):
        EnvironmentConfig.from_env("NONE_")
    monkeypatch.setenv("BAD_PORT", "twelve-secret")
    with pytest.raises(ConfigError, match="BAD_PORT") as caught:
        EnvironmentConfig.from_env("BAD_")
    assert "twelve-secret" not in str(caught.value)
    monkeypatch.setenv("ODD_URL", "oracle://u:hidden@h/d")
    with pytest.raises(ConfigError, match="ODD_URL") as caught:
        EnvironmentConfig.from_env("ODD_")
    assert "hidden" not in str(caught.value)


def test_instrumentation_holds_values_only() -> None:
    assert InstrumentationConfig(pool_name="main").pool_name == "main"
    with pytest.raises(ConfigError, match="pool_name"):
        InstrumentationConfig(pool_name="a\nb")
