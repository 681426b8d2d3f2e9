"""The guest book of docs/examples/flask on SQLAlchemy's own pool, for `web_load.py`."""

from __future__ import annotations

import os

import sqlalchemy as sa
from flask import Flask, Response, abort, g

engine = sa.create_engine(
    # the driver of ours: by itself, SQLAlchemy 2.1 takes another one
    sa.make_url(os.environ["DB_URL"]).set(drivername="postgresql+psycopg2"),
    pool_size=int(os.environ["DB_POOL_SIZE"]),
    max_overflow=0,
    pool_pre_ping="DB_POOL_PRE_PING" in os.environ,
)
app = Flask(__name__)


def connection() -> sa.Connection:
    """Return the request's own, checked out when it is first needed."""
    if "connection" not in g:
        g.connection = engine.connect()
    own: sa.Connection = g.connection
    return own


@app.after_request
def commit(response: Response) -> Response:
    """Commit before the answer leaves, as the extension does."""
    if "connection" in g and response.status_code < 400:
        g.connection.commit()
    return response


@app.teardown_request
def close(_: BaseException | None) -> None:
    """Roll back what is not committed, and check in."""
    if "connection" in g:
        g.pop("connection").close()


with engine.begin() as first:
    first.execute(sa.text("CREATE TABLE IF NOT EXISTS guests (name VARCHAR(50) PRIMARY KEY)"))


@app.get("/")
def guests() -> list[str]:
    """Answer with all names."""
    return list(connection().execute(sa.text("SELECT name FROM guests ORDER BY name")).scalars())


@app.post("/<name>")
def enter(name: str) -> tuple[str, int]:
    """Welcome somebody."""
    if len(name) > 50:
        abort(400, "the name is too long")
    known = connection().execute(sa.text("SELECT name FROM guests WHERE name = :name"), {"name": name}).first()
    if known is None:
        connection().execute(sa.text("INSERT INTO guests VALUES (:name)"), {"name": name})
    return f"welcome{' back' if known else ''}, {name}\n", 200 if known else 201
