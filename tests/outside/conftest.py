"""A database for each test, and the pools of engines that an application makes out of our sight."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa

from tests.servers import PASSWORD


def _administrate(server: Any, statement: str) -> None:
    with closing(psycopg2.connect(**server.parameters())) as connection:
        connection.autocommit = True
        connection.cursor().execute(statement)


@pytest.fixture
def plugin_url(postgresql_server: Any) -> Iterator[Callable[[str], str]]:
    """Return the URL, with our plugin, that a driver takes to a database of the test's own."""
    name = f"outside_{uuid.uuid4().hex}"
    place = {"host": "127.0.0.1", "port": postgresql_server.port, "username": "app", "password": PASSWORD}
    _administrate(postgresql_server, f"CREATE DATABASE {name}")

    def url(driver: str) -> str:
        made = sa.URL.create(f"postgresql+{driver}", database=name, query={"plugin": "sqlspec"}, **place)
        return made.render_as_string(hide_password=False)

    yield url
    # it is refused while somebody is connected: the application has closed what it opened
    _administrate(postgresql_server, f"DROP DATABASE {name}")


@pytest.fixture
def pools() -> Iterator[set[type[sa.Pool]]]:
    """Return the classes of the pools from which any engine has connected."""
    seen: set[type[sa.Pool]] = set()

    def note(connection: sa.Connection) -> None:
        seen.add(type(connection.engine.pool))

    sa.event.listen(sa.Engine, "engine_connect", note)
    yield seen
    sa.event.remove(sa.Engine, "engine_connect", note)
    # SQLAlchemy leaves it set, and all sessions of tests that follow would go SQLAlchemy's own way
    sa.Engine._has_events = False
