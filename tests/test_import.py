"""What ``import sqlspec`` costs."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("psycopg2", "psycopg", "MySQLdb", "asyncpg", "aiosqlite", "flask", "fastapi", "typer", "rich")


def test_importing_sqlspec_imports_no_driver_and_no_framework() -> None:
    code = "import sys, sqlspec; print(*[m for m in sys.argv[1:] if m in sys.modules])"
    command = [sys.executable, "-c", code, *HEAVY, "sqlalchemy.ext.asyncio"]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() == ""
