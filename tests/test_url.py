"""build_secure_url: what it writes, SQLAlchemy and libpq read alike."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg2.extensions import parse_dsn
from pydantic import SecretStr
from sqlalchemy import make_url

from sqlspec import ConfigError, build_secure_url
from sqlspec.config.url import is_url

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(max_examples=10_000, deadline=None)
# a user whose name is a URL is refused, whoever it is
@given(username=text.filter(lambda name: not is_url(name)), password=text, value=text)
def test_any_user_password_and_query_value_round_trips(username: str, password: str, value: str) -> None:
    url = build_secure_url("postgresql", "127.0.0.1", 5432, "app", username, password, application_name=value)
    read, libpq = make_url(url), parse_dsn(url)
    assert (read.username, read.password, read.query["application_name"]) == (username, password, value)
    assert (libpq["user"], libpq["password"], libpq["application_name"]) == (username, password, value)
    assert (read.host, read.port, read.database) == ("127.0.0.1", 5432, "app")


def test_an_ipv6_host_keeps_its_port_apart() -> None:
    url = build_secure_url("postgresql", "::1", 5433, "app", "u", SecretStr("p"))
    assert url == "postgresql://u:p@[::1]:5433/app"
    assert make_url(url).host == "::1"
    assert parse_dsn(url)["host"] == "::1"


def test_a_socket_folder_goes_behind_the_question_mark() -> None:
    url = build_secure_url("postgresql", "/run/postgresql", None, "app")
    assert parse_dsn(url)["host"] == "/run/postgresql"
    assert make_url(url).query["host"] == "/run/postgresql"


def test_sqlite_needs_no_host() -> None:
    assert make_url(build_secure_url("sqlite", database="app.db")).database == "app.db"


@pytest.mark.parametrize("database", ["x?sslmode=disable", "a b", "100%", "a#b", "a+b", "a\nb", "a&b"])
def test_a_database_name_that_a_url_cannot_carry_is_refused(database: str) -> None:
    with pytest.raises(ConfigError, match="pass database="):
        build_secure_url("postgresql", "h", 1, database)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("post gres", "h", 1, "d"), "scheme"),
        (("postgresql", "h/evil", 1, "d"), "host"),
        (("postgresql", "h:5432", None, "d"), "the port is an argument of its own"),
        (("postgresql", "h", 0, "d"), "port"),
        (("postgresql", None, 5432, "d"), "a port needs a host"),
        (("postgresql", "h", 1, "d", None, "pw"), "a password needs a username"),
        (("postgresql", "h", 1, "d", "u", "p\0w"), "NUL"),
    ],
)
def test_what_cannot_be_written_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_secure_url(*arguments)
