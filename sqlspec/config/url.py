"""Database URLs: written without ambiguity, read without leaking their password."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote

from pydantic import SecretStr
from sqlalchemy import URL, exc, make_url

from sqlspec.exceptions import ConfigError

_SCHEME = re.compile(r"[a-z][a-z0-9]*(\+[a-z][a-z0-9_]*)?", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
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
    ``/`` is the folder of a Unix socket. ``None`` leaves a part out.

    Raises:
        ConfigError: a part cannot be written so that SQLAlchemy 2.0 and libpq agree on it.
    """
    if not _SCHEME.fullmatch(scheme):
        raise ConfigError(f"scheme {scheme!r} is not one: write 'postgresql', 'mysql+mysqldb', 'sqlite' …")
    if password is not None and username is None:
        raise ConfigError("a password needs a username: pass username='…' as well")
    secret = password.get_secret_value() if isinstance(password, SecretStr) else password
    for name, value in (("username", username), ("password", secret)):
        if value is not None and "\0" in value:
            raise ConfigError(f"{name} contains a NUL character, which no database accepts")
    options = dict(params)
    if host is not None and host.startswith("/"):
        options["host"], host = host, None
    user_info = ""
    if username is not None:
        user_info = quote(username, safe="")
        if secret is not None:
            user_info += ":" + quote(secret, safe="")
        user_info += "@"
    url = f"{scheme}://{user_info}{_location(host, port)}/{_database(database)}"
    return url + _query(options)


def _location(host: str | None, port: int | None) -> str:
    if port is not None and not (isinstance(port, int) and 0 < port < 65536):
        raise ConfigError(f"port {port!r} is not a number from 1 to 65535")
    if host is None:
        if port is not None:
            raise ConfigError("a port needs a host: pass host='localhost' as well")
        return ""
    if ":" in host:
        try:
            host = f"[{ipaddress.IPv6Address(host.strip('[]'))}]"
        except ValueError:
            raise ConfigError(f"host {host!r} is not an IPv6 address; the port is an argument of its own") from None
    elif not _HOST.fullmatch(host):
        raise ConfigError(f"host {host!r} has characters that no host name has")
    return host if port is None else f"{host}:{port}"


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


def _query(options: dict[str, object]) -> str:
    pairs = []
    for key, value in options.items():
        text = str(value)
        if not _OPTION.fullmatch(key) or "\0" in text:
            raise ConfigError(f"query option {key!r} cannot be written in a URL")
        pairs.append(f"{key}={quote(text, safe='')}")
    return "?" + "&".join(pairs) if pairs else ""


def parse_url(text: str) -> tuple[URL, SecretStr | None]:
    """Return the URL without its password, and the password.

    Raises:
        ConfigError: the text is no URL, or carries a secret where SQLAlchemy would print it. The message
            never repeats the text.
    """
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        raise ConfigError(
            "url does not parse: write scheme://user:password@host:port/database, and escape the parts with "
            "build_secure_url()"
        ) from None
    exposed = SECRET_OPTIONS.intersection(key.lower() for key in url.query)
    if exposed:
        raise ConfigError(
            f"url carries {', '.join(sorted(exposed))} behind the '?': move it to password='…' or a pass file"
        )
    password = None if url.password is None else SecretStr(str(url.password))
    return url._replace(password=None), password
