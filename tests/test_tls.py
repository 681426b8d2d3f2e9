"""TLS with real certificates: what is asked for is what there is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import exc

from sqlspec import ConnectionLost, ErrorKind, SQLSpec, classify
from sqlspec.adapters import MySQLConfig, PostgreSQLConfig
from sqlspec.resilience import is_safe_to_repeat
from sqlspec.testing import FaultProxy
from tests.servers import PASSWORD, MariaDBServer, PostgreSQLServer, Server


@dataclass
class Place:
    """A server with TLS, whose certificate is for localhost and not for 127.0.0.2."""

    kind: str
    server: Server
    right_ca: str
    wrong_ca: str

    def config(self, **options: Any) -> PostgreSQLConfig | MySQLConfig:
        place = {"host": "127.0.0.1", "port": self.server.port, "username": "app", "password": PASSWORD} | options
        if self.kind == "mariadb":
            return MySQLConfig(**{"database": "app", **place})
        return PostgreSQLConfig(
            url="postgresql+psycopg://" if self.kind == "psycopg" else None, database="postgres", **place
        )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sqlspec-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def authorities(folder: Path) -> tuple[trustme.CA, str, str]:
    right, wrong = trustme.CA(), trustme.CA()
    for name, authority in {"right": right, "wrong": wrong}.items():
        authority.cert_pem.write_to_path(str(folder / f"{name}.pem"))
    return right, str(folder / "right.pem"), str(folder / "wrong.pem")


def _served(kind: type[Server], folder: Path, authority: trustme.CA) -> Iterator[Server]:
    certificate = folder / f"{kind.__name__}.pem"
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
    server = kind(folder / kind.__name__, certificate)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def tls_postgresql(folder: Path, authorities: Any, postgresql_server: Server) -> Iterator[Server]:
    yield from _served(PostgreSQLServer, folder, authorities[0])


@pytest.fixture(scope="module")
def tls_mariadb(folder: Path, authorities: Any, mariadb_server: Server) -> Iterator[Server]:
    yield from _served(MariaDBServer, folder, authorities[0])


@pytest.fixture(params=["postgresql", "psycopg", "mariadb"])
def place(request: pytest.FixtureRequest, authorities: tuple[trustme.CA, str, str]) -> Place:
    server = request.getfixturevalue("tls_mariadb" if request.param == "mariadb" else "tls_postgresql")
    return Place(request.param, server, *authorities[1:])


def encrypted(config: PostgreSQLConfig | MySQLConfig) -> bool | None:
    with SQLSpec() as spec:
        spec.register_config(config)
        with spec.get_connection() as connection:
            return config.driver().uses_tls(connection.driver_connection)


def refused(config: PostgreSQLConfig | MySQLConfig) -> bool:
    with SQLSpec() as spec, pytest.raises(exc.OperationalError, match=r"(?i)127\.0\.0\.2|certificate"):
        spec.register_config(config)
        with spec.get_session() as session:
            session.execute("SELECT 1")
    return True


def test_each_mode_is_what_it_says(place: Place) -> None:
    assert encrypted(place.config(tls="disable")) is False
    assert encrypted(place.config(tls="require")) is True
    assert encrypted(place.config(tls="verify-ca", tls_ca=place.right_ca)) is True
    assert encrypted(place.config(tls="verify-full", tls_ca=place.right_ca)) is True


@pytest.mark.fault(26)
@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_a_certificate_of_somebody_else_is_refused(place: Place, mode: str) -> None:
    assert refused(place.config(tls=mode, tls_ca=place.wrong_ca))


@pytest.mark.fault(26)
def test_verify_full_checks_the_name_of_the_server(place: Place) -> None:
    assert refused(place.config(host="127.0.0.2", tls="verify-full", tls_ca=place.right_ca))


def test_verify_ca_checks_the_name_on_mysql_only_whose_client_knows_no_less(place: Place) -> None:
    config = place.config(host="127.0.0.2", tls="verify-ca", tls_ca=place.right_ca)
    assert refused(config) if place.kind == "mariadb" else encrypted(config)


@pytest.mark.fault(75)
def test_what_is_lost_under_tls_is_no_matter_of_the_config(place: Place) -> None:
    with FaultProxy(place.server.port) as proxy, SQLSpec() as spec:
        spec.register_config(place.config(port=proxy.port, tls="require", command_timeout=0.5))
        with pytest.raises(exc.OperationalError) as caught, spec.get_session() as session:
            session.execute("SELECT 1")
            proxy.cut()
            session.execute("SELECT 1")
        assert caught.value.connection_invalidated
        assert classify(caught.value) is classify(caught.value.orig) is ErrorKind.DISCONNECT
        with pytest.raises(ConnectionLost) as lost, spec.get_session() as session:
            session.execute("SELECT 1")
            proxy.swallow()
            session.commit()
        assert lost.value.ambiguous
        proxy.heal()
        with spec.get_session() as session:
            session.execute("SELECT 1")
    assert proxy.fired["cut"] == proxy.fired["swallow"] == 1


def test_a_server_that_goes_while_tls_comes_about_may_be_asked_again(place: Place) -> None:
    with FaultProxy(place.server.port) as proxy, SQLSpec() as spec:
        spec.register_config(place.config(port=proxy.port, tls="require"))
        # in the first words of it
        proxy.cut_after(lambda: 250)
        with pytest.raises(exc.OperationalError) as caught, spec.get_session() as session:
            session.execute("SELECT 1")
        assert is_safe_to_repeat(caught.value)
    assert proxy.fired["cut_after"] == 1
