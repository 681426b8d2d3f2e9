"""FlaskSQLSpec: the databases of an application, and the sessions of its requests."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flask import Blueprint, Flask, Request, Response, g, has_request_context, request
from werkzeug.exceptions import HTTPException

from sqlspec.config import NoPoolSyncConfig
from sqlspec.exceptions import ConfigError
from sqlspec.extensions.flask.command import commands
from sqlspec.extensions.flask.config import read_config
from sqlspec.extensions.flask.current import KEY, current_spec
from sqlspec.extensions.flask.views import build_blueprint
from sqlspec.extensions.pages import PageName
from sqlspec.pool import PoolStats
from sqlspec.registry import SQLSpec
from sqlspec.session import Session
from sqlspec.testing import isolated

__all__ = ["FlaskSQLSpec"]

_logger = logging.getLogger("sqlspec.flask")
# Where sessions are, in `flask.g`.
_IN_G = "_sqlspec_sessions"
_Sessions = dict[str, Session]


class FlaskSQLSpec:
    """Give an application's requests their sessions, and its operators health and metrics.

    One object serves several applications, each with a registry and pools of its own: ``app.extensions["sqlspec"]``.
    Its properties and methods are for use within an application's context, but for `init_app`, `register_config` and
    `blueprint`.

    Args:
        app: the application, if there is one already; otherwise call `init_app`.
        configs: what `register_config` takes, by name; or one, which is called "default".
    """

    def __init__(
        self, app: Flask | None = None, configs: Mapping[str, NoPoolSyncConfig] | NoPoolSyncConfig | None = None
    ) -> None:
        self._configs: dict[str, NoPoolSyncConfig] = {}
        # what is neither, such as a URL, is told so by the registry
        named = configs if isinstance(configs, Mapping) else {} if configs is None else {"default": configs}
        for name, config in named.items():
            self.register_config(config, name)
        if app is not None:
            self.init_app(app)

    def register_config(self, config: NoPoolSyncConfig, name: str = "default") -> str:
        """Give a config a name, for the applications that are initialised afterwards.

        Returns the name.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self._configs:
            raise ConfigError(f"{name!r} is registered already: use another name")
        self._configs[name] = config
        return name

    def init_app(self, app: Flask) -> None:
        """Register the application's databases: those of `register_config`, and those of its configuration.

        That is ``SQLSPEC_DATABASES``, a mapping of names to URLs, mappings of the options of a config, or configs; or
        one of them, which is called "default". Where it is not set and nothing is registered by `register_config`,
        Flask-SQLAlchemy's ``SQLALCHEMY_DATABASE_URI``, ``SQLALCHEMY_BINDS``, ``SQLALCHEMY_ENGINES`` and
        ``SQLALCHEMY_ENGINE_OPTIONS`` are read. Files of SQLite that they name are in the instance folder, unless their
        paths are absolute. Nothing connects yet.

        Call it before you add functions of your own by ``after_request``, so that the commit comes after them.

        Raises:
            ConfigError: a key or a value cannot be used; the message names it, and no secret.
            RuntimeError: the application has been initialised already.
        """
        if KEY in app.extensions:
            raise RuntimeError("this application has a FlaskSQLSpec already: call init_app() once for each application")
        spec = SQLSpec()
        for name, config in read_config(app, self._configs).items():
            spec.register_config(config, name)
        app.extensions[KEY] = spec
        app.after_request(self._answer)
        self._undo_what_fails(app)
        _finish_in(app, app.teardown_request, app.do_teardown_request, lambda: [_of_context().pop(_request(), {})])
        _finish_in(app, app.teardown_appcontext, app.do_teardown_appcontext, lambda: _of_context().values())
        app.shell_context_processor(lambda: {"db": self})
        app.cli.add_command(commands())

    # -- what an application uses

    @property
    def spec(self) -> SQLSpec:
        """Return the registry of the current application, for all that is not bound to a request."""
        return current_spec()

    @property
    def session(self) -> Session:
        """Return the request's session on the database "default", or on the only one there is; see `get_session`."""
        return self.get_session()

    def get_session(self, name: str | None = None) -> Session:
        """Return the session of the current request on a database: the same one each time.

        Its first statement checks a connection out. When the answer is known it ends, before anything is sent: it
        commits if the status is below 400, and rolls back otherwise; where the commit fails, the answer is a 500. An
        exception that leaves the view, as by ``abort(400)``, rolls back at once, also where an error handler makes a
        good answer of it.

        What runs later, in a stream that has the context, has a new session, which ends with the stream. Outside
        requests, in a context of its own within one, and in a copied request, it ends with that context. All of them
        commit unless there is an exception.

        Raises:
            ConfigError: there is no such name.
            RuntimeError: there is no application's context.
        """
        spec = self.spec
        sessions = _sessions()
        if name is None:
            names = spec.list_configs()
            name = names[0] if len(names) == 1 else "default"
        session = sessions.get(name)
        if session is None:
            session = sessions[name] = spec.get_session(name)
        return session

    def get_pool_stats(self, name: str = "default") -> PoolStats:
        """Return the figures of the pool behind a name. Opens no connection."""
        return self.spec.get_pool_stats(name)

    @contextlib.contextmanager
    def test_isolation(self) -> Iterator[None]:
        """Undo at the end of the ``with`` block what it has done to the databases, commits included.

        For tests: see `sqlspec.testing.isolated`. The sessions that the context has before the block commit at its
        beginning, and those that it gets within are rolled back at its end.
        """
        _finish(_sessions(), commit=True)
        with isolated(self.spec):
            try:
                yield
            finally:
                _finish(_sessions(), commit=False)

    # -- pages

    def blueprint(
        self,
        *pages: PageName,
        auth: Callable[[], bool] | None,
        needed: Iterable[str] | None = None,
        name: str = "sqlspec",
    ) -> Blueprint:
        """Return pages for operators; without it, an application has none.

        ``health`` tells of each database and its pool, with status 503 where one is down; ``ready`` whether those that
        are needed can be used; ``metrics`` is for Prometheus; ``holders`` tells who holds connections. No page names a
        host, a user or a statement.

        Args:
            pages: which ones; none: all.
            auth: is asked before each page, and returns True for who may see it; everybody else gets a 403, or what the
                function aborts with. None: they are open to everybody.
            needed: the names without which the application is not ready; None: all.
            name: of the blueprint, where an application has several.

        Raises:
            ConfigError: there is no such page, ``auth`` is neither a function nor None, or ``needed`` is no list; when
                they are registered, a name that is needed is not known.
        """
        return build_blueprint(name, pages, auth, needed)

    # -- the sessions of requests

    def _answer(self, response: Response) -> Response:
        _finish(_sessions(), commit=response.status_code < 400)
        return response

    def _undo_what_fails(self, app: Flask) -> None:
        """Roll back when an exception leaves a view: Flask tells nobody of those that an error handler answers."""
        handle = app.handle_user_exception

        def handle_user_exception(error: Exception) -> Any:
            # without a code, or with one below 400, it is an answer, whose status decides
            if not isinstance(error, HTTPException) or (error.code or 0) >= 400:
                _finish(_sessions(), commit=False)
            return handle(error)

        # mypy takes what is assigned for the method of the class
        setattr(app, handle.__name__, handle_user_exception)


def _finish_in(
    app: Flask, register: Callable[..., Any], usual: Callable[..., None], owned: Callable[[], Iterable[_Sessions]]
) -> None:
    """Finish sessions in a teardown, also where a function of the application's fails and those after it do not run."""
    register(lambda error: _finish(*owned(), commit=error is None))

    def do_teardown(*arguments: Any) -> None:
        try:
            usual(*arguments)
        except BaseException:
            _finish(*owned(), commit=False)
            raise

    # mypy takes what is assigned for the method of the class
    setattr(app, usual.__name__, do_teardown)


def _of_context() -> dict[Request | None, _Sessions]:
    """Return the sessions of an application's context: its own, and those of requests that it serves as well."""
    sessions: dict[Request | None, _Sessions] = g.setdefault(_IN_G, {})
    return sessions


def _request() -> Request | None:
    # one that is copied into a thread, or in which another context is entered, is the same in either
    return request._get_current_object() if has_request_context() else None  # type: ignore[attr-defined]  # of werkzeug's proxies


def _sessions() -> _Sessions:
    """Return the sessions of the request, or without one those of the context."""
    return _of_context().setdefault(_request(), {})


def _finish(*owned: _Sessions, commit: bool) -> None:
    """Commit or roll back, in the order of their making, and check all connections in.

    Where one cannot commit, those after it roll back.
    """
    with contextlib.ExitStack() as stack:
        for sessions in owned:
            while sessions:
                name, session = sessions.popitem()
                if commit:
                    stack.push(session)
                else:
                    stack.callback(_undo, name, session)


def _undo(name: str, session: Session) -> None:
    try:
        session.close()
    except Exception as error:  # noqa: BLE001  # the transaction has ended with its connection, and the answer is known
        _logger.warning("%s: the rollback failed (%s), and its connection is closed", name, type(error).__name__)
