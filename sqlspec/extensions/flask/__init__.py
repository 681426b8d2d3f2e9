"""Sessions of requests, pages for operators, and one command, for Flask."""

try:
    from sqlspec.extensions.flask.extension import FlaskSQLSpec
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise ModuleNotFoundError("flask is not installed: pip install 'sqlspec-pool[flask]'", name="flask") from None

__all__ = ["FlaskSQLSpec"]
