"""What borrowers leave behind on a connection: how they do, and the query that shows it."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import exc

__all__ = ["KINDS", "SETUP", "Kind", "look"]


class Kind(NamedTuple):
    """One kind of session state; as long as it is there, the query shows something else, or fails where it did not."""

    name: str
    leave: tuple[str, ...]
    show: str


def _setting(name: str, value: str) -> Kind:
    return Kind(name, (f"SET {name} = {value}",), f"SELECT current_setting('{name}', true)")


def _variable(name: str, value: str) -> Kind:
    return Kind(name, (f"SET SESSION {name} = {value}",), f"SELECT @@{name}")


# run once, so that there is something to leave state about
SETUP = {
    "postgresql": (
        "DROP ROLE IF EXISTS other",
        "CREATE ROLE other",
        "DROP TABLE IF EXISTS watched",
        "CREATE TABLE watched (id INTEGER)",
        "DROP SEQUENCE IF EXISTS numbers",
        "CREATE SEQUENCE numbers",
    ),
    "mariadb": (
        "DROP TABLE IF EXISTS watched",
        "CREATE TABLE watched (id INTEGER PRIMARY KEY AUTO_INCREMENT)",
        "CREATE TABLE IF NOT EXISTS unlocked (id INTEGER)",
        "CREATE DATABASE IF NOT EXISTS other",
    ),
}

_POSTGRESQL = (
    _setting("search_path", "'other'"),
    _setting("statement_timeout", "12345"),
    _setting("lock_timeout", "12345"),
    _setting("TimeZone", "'Asia/Tokyo'"),
    # once set, it is empty for ever
    Kind("app.tenant", ("SET app.tenant = '7'",), "SELECT nullif(current_setting('app.tenant', true), '')"),
    _setting("work_mem", "'1MB'"),
    _setting("application_name", "'other'"),
    _setting("client_encoding", "'LATIN1'"),
    _setting("session_replication_role", "'replica'"),
    _setting("row_security", "off"),
    Kind("role", ("SET ROLE other",), "SELECT current_user"),
    Kind("session authorization", ("SET SESSION AUTHORIZATION other",), "SELECT session_user"),
    Kind(
        "read only",
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",),
        "SELECT current_setting('default_transaction_read_only')",
    ),
    Kind(
        "isolation level",
        ("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",),
        "SELECT current_setting('default_transaction_isolation')",
    ),
    Kind("temporary table", ("CREATE TEMPORARY TABLE kept (id INTEGER)",), "SELECT to_regclass('pg_temp.kept')::text"),
    Kind("temporary view", ("CREATE TEMPORARY VIEW seen AS SELECT 1",), "SELECT to_regclass('pg_temp.seen')::text"),
    Kind(
        "temporary function",
        ("CREATE FUNCTION pg_temp.one() RETURNS int LANGUAGE sql AS 'SELECT 1'",),
        "SELECT to_regprocedure('pg_temp.one()')::text",
    ),
    Kind("sequence", ("SELECT nextval('public.numbers')",), "SELECT currval('public.numbers') > 0"),
    Kind(
        "advisory lock",
        ("SELECT pg_advisory_lock(4711)",),
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    Kind(
        "shared advisory lock",
        ("SELECT pg_advisory_lock_shared(4712)",),
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    Kind("channel", ("LISTEN news",), "SELECT count(*) FROM pg_listening_channels()"),
    Kind(
        "prepared statement", ("PREPARE one AS SELECT 1",), "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"
    ),
    Kind(
        "cursor", ("DECLARE rest CURSOR WITH HOLD FOR SELECT 1",), "SELECT count(*) FROM pg_cursors WHERE is_holdable"
    ),
)

_MARIADB = (
    _variable("sql_mode", "''"),
    _variable("time_zone", "'+09:00'"),
    _variable("max_statement_time", "1234"),
    _variable("wait_timeout", "1234"),
    _variable("lock_wait_timeout", "1234"),
    _variable("innodb_lock_wait_timeout", "12"),
    _variable("collation_connection", "'latin1_swedish_ci'"),
    _variable("foreign_key_checks", "0"),
    _variable("unique_checks", "0"),
    _variable("sql_log_bin", "0"),
    _variable("sql_select_limit", "1"),
    _variable("sql_safe_updates", "1"),
    _variable("group_concat_max_len", "12"),
    _variable("default_storage_engine", "'MyISAM'"),
    _variable("autocommit", "1"),
    Kind("names", ("SET NAMES latin1",), "SELECT @@character_set_client, @@character_set_results"),
    Kind("read only", ("SET SESSION TRANSACTION READ ONLY",), "SELECT @@tx_read_only"),
    Kind("isolation level", ("SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",), "SELECT @@tx_isolation"),
    Kind("variable", ("SET @tenant = 7",), "SELECT @tenant"),
    Kind("lock", ("DO GET_LOCK('app', 0)",), "SELECT IS_USED_LOCK('app') IS NOT NULL"),
    Kind("database", ("USE other",), "SELECT DATABASE()"),
    Kind("last insert id", ("INSERT INTO app.watched VALUES ()",), "SELECT LAST_INSERT_ID()"),
    Kind("temporary table", ("CREATE TEMPORARY TABLE app.left_behind (id INTEGER)",), "SELECT * FROM app.left_behind"),
    Kind("locked tables", ("LOCK TABLES app.watched WRITE",), "SELECT * FROM app.unlocked"),
    Kind("prepared statement", ("PREPARE one FROM 'SELECT 1'",), "EXECUTE one"),
    Kind("handler", ("HANDLER app.watched OPEN",), "HANDLER watched READ FIRST"),
)
KINDS = {"postgresql": _POSTGRESQL, "mariadb": _MARIADB}


def look(session: Any, kind: Kind) -> object:
    """Return what there is to see of it; the session is rolled back where the query fails."""
    try:
        return session.execute(kind.show).all()
    except exc.DBAPIError as error:
        session.rollback()
        return str(error.orig)
