"""A guest book. Start it with ``flask --app docs/examples/flask/app.py run``."""

import hmac
import os

from flask import Flask, abort, request

from sqlspec.extensions.flask import FlaskSQLSpec

app = Flask(__name__)
# a file in the instance folder, unless FLASK_SQLSPEC_DATABASES names a server
app.config["SQLSPEC_DATABASES"] = "sqlite:///guests.db"
app.config.from_prefixed_env()
db = FlaskSQLSpec(app)


def is_operator() -> bool:
    token = os.environ.get("OPERATOR_TOKEN", "")
    given = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return token != "" and hmac.compare_digest(given.encode(), token.encode())


app.register_blueprint(db.blueprint(auth=is_operator), url_prefix="/db")
app.register_blueprint(db.blueprint("ready", auth=None, name="probe"))

with app.app_context():
    db.session.execute("CREATE TABLE IF NOT EXISTS guests (name VARCHAR(50) PRIMARY KEY)")


@app.get("/")
def guests() -> list[str]:
    return list(db.session.execute("SELECT name FROM guests ORDER BY name").scalars())


@app.post("/<name>")
def enter(name: str) -> tuple[str, int]:
    if len(name) > 50:
        abort(400, "the name is too long")
    known = db.session.execute("SELECT name FROM guests WHERE name = ?", (name,)).first()
    if known is None:
        db.session.execute("INSERT INTO guests VALUES (?)", (name,))
    return f"welcome{' back' if known else ''}, {name}\n", 200 if known else 201
