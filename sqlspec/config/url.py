"""Database URLs: written without ambiguity, read without leaking their password."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import quote

from pydantic import SecretStr
from sqlalchemy import URL, exc, make_url

from sqlspec.exceptions import ConfigError

_SCHEME = re.compile(r"[a-z][a-z0-9]*(\+[a-z][a-z0-9_]*)?", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_URL = re.compile(r"[a-zA-Z][\w+.-]*://", re.ASCII)
_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# SQLAlchemy 2.0 hands the database part over as it stands, libpq and SQLAlchemy 2.1 decode it: only a name
# that needs no encoding means the same to all of them.
_UNREPRESENTABLE = re.compile(r"[\x00-\x20\x7f?#%+&=\[\]@]")
SECRET_OPTIONS = frozenset({"password", "passwd", "sslpassword", "ssl_key_password"})


def build_secure_url(
    scheme: str,
    host: str | None = None,
    port: int | None = None,
    database: str | None = None,
    username: str | None = None,
    password: str | SecretStr | None = None,
    **params: object,
) -> str:
    """Build a database URL that SQLAlchemy and libpq read alike.

    The result contains the password as it is: hand it to a config, do not print it. A host that begins with
    ``/`` is a Unix socket: its folder for PostgreSQL, its file for MySQL. ``None`` leaves a part out.

    Raises:
        ConfigError: a part cannot be written so that SQLAlchemy 2.0 and libpq agree on it.
    """
    try:
        return _write(scheme, host, port, database, username, password, params)
    except ConfigError as error:
        problem = str(error)
    # A traceback that shows locals must not show the password.
    del scheme, host, database, username, password
    raise ConfigError(problem)


def _write(
    scheme: str,
    host: str | None,
    port: int | None,
    database: str | None,
    username: str | None,
    password: str | SecretStr | None,
    params: Mapping[str, object],
) -> str:
    secret = password.get_secret_value() if isinstance(password, SecretStr) else password
    texts = {"scheme": scheme, "host": host, "database": database, "username": username, "password": secret}
    for name, value in texts.items():
        check_text(name, value)
        if name != "password" and is_url(value):
            raise ConfigError(f"{name} is a URL: give build_secure_url() its parts")
    if not _SCHEME.fullmatch(scheme):
        raise ConfigError(f"scheme {scheme!r} is not one: write 'postgresql', 'mysql+mysqldb', 'sqlite' …")
    if password is not None and username is None:
        raise ConfigError("a password needs a username: pass username='…' as well")
    options = {key: value for key, value in params.items() if value is not None}
    if host is not None and host.startswith("/"):
        is_mysql = scheme.startswith(("mysql", "mariadb"))
        options["unix_socket" if is_mysql else "host"] = host
        if port is not None and not is_mysql:
            options["port"] = port
        host = port = None
    user_info = ""
    if username is not None:
        user_info = quote(username, safe="")
        if secret is not None:
            user_info += ":" + quote(secret, safe="")
        user_info += "@"
    return f"{scheme}://{user_info}{_location(host, port)}/{_database(database)}{_query(options)}"


def is_url(value: object) -> bool:
    """Tell whether a text is a URL, which may have a password in it: where none belongs it must not be repeated."""
    return isinstance(value, str) and _URL.match(value) is not None


def check_text(name: str, value: object) -> None:
    """Refuse what is no text, or has characters that no database takes; never repeat the value.

    Raises:
        ConfigError: naming the option.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {type(value).__name__}", name)
    if "\0" in value:
        raise ConfigError(f"{name} contains a NUL character, which no database accepts", name)
    try:
        value.encode()
    except UnicodeEncodeError:
        problem = f"{name} has a character that UTF-8 cannot write (a lone surrogate)"
    else:
        return
    raise ConfigError(problem, name)


def _location(host: str | None, port: int | None) -> str:
    if port is not None and not (type(port) is int and 0 < port < 65536):
        raise ConfigError(f"port {port!r} is not a number from 1 to 65535")
    if host is None:
        if port is not None:
            raise ConfigError("a port needs a host: pass host='localhost' as well")
        return ""
    if ":" in host:
        host = f"[{_ipv6(host)}]"
    elif not _HOST.fullmatch(host):
        raise ConfigError(f"host {host!r} has characters that no host name has")
    return host if port is None else f"{host}:{port}"


def _ipv6(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host.strip("[]"))
    except ValueError:
        raise ConfigError(f"host {host!r} is not an IPv6 address; the port is an argument of its own") from None
    if address.scope_id is not None:
        raise ConfigError(f"host {host!r} names a network interface, which libpq does not take: leave it out")
    return str(address)


def _database(database: str | None) -> str:
    if database is None:
        return ""
    found = _UNREPRESENTABLE.search(database)
    if found:
        raise ConfigError(
            f"database {database!r} cannot be written in a URL, because of {found[0]!r}: "
            "pass database='…' to the config instead"
        )
    return database


def _query(options: Mapping[str, object]) -> str:
    pairs = []
    for key, value in options.items():
        if key.lower() in SECRET_OPTIONS:
            raise ConfigError(f"{key} would be printed with the URL: use password='…' or a pass file")
        if not _OPTION.fullmatch(key) or type(value) not in {str, int, float}:
            raise ConfigError(f"query option {key!r} cannot be written in a URL: give a string or a number")
        check_text(f"query option {key!r}", str(value))
        pairs.append(f"{key}={quote(str(value), safe='')}")
    return "?" + "&".join(pairs) if pairs else ""


def parse_url(given: str | URL, example: str) -> tuple[URL, str | None]:
    """Return the URL without its password, and the password.

    Raises:
        ConfigError: the text is no URL, says something else when it is written again, or carries a secret
            where SQLAlchemy would print it. The message never repeats the text.
    """
    try:
        url = given if isinstance(given, URL) else make_url(given.strip())
    except (exc.ArgumentError, ValueError):
        url = None
    if url is None:
        raise ConfigError(f"url does not parse: write {example}", "url")
    password = None if url.password is None else str(url.password)
    if password == "***":  # noqa: S105  # what str(URL) shows
        raise ConfigError("url has the password ***: str(engine.url) hides it, take the URL object itself", "url")
    exposed = SECRET_OPTIONS.intersection(key.lower() for key in url.query)
    if exposed:
        raise ConfigError(
            f"url carries {', '.join(sorted(exposed))} behind the '?': move it to password='…' or a pass file", "url"
        )
    if url.port is not None and not 0 < url.port < 65536:
        raise ConfigError(f"url has the port {url.port}: ports are numbers from 1 to 65535", "url")
    url = url._replace(password=None)
    if make_url(url.render_as_string()) != url:
        raise ConfigError("url has a part that cannot be written in a URL: give host, database, … by themselves", "url")
    return url, password
