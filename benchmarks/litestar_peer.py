"""Time one-row sessions of litestar-org's sqlspec, which has our name, in its own environment.

Reads numbers from the standard input, each of how many sessions to run, and prints the seconds that one takes.
Arguments: sqlite or postgresql, and what their config connects with, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from sqlspec import SQLSpec
from sqlspec.adapters.psycopg import PsycopgSyncConfig
from sqlspec.adapters.sqlite import SqliteConfig

# litestar-org's
CONFIGS: dict[str, Any] = {"sqlite": SqliteConfig, "postgresql": PsycopgSyncConfig}


def run(database: str, arguments: str) -> None:
    """Serve one number after the other."""
    spec = SQLSpec()
    config = spec.add_config(CONFIGS[database](connection_config=json.loads(arguments)))
    by_key = {"sqlite": "SELECT id, name, price FROM items WHERE id = ?"}.get(
        database, "SELECT id, name, price FROM items WHERE id = %s"
    )
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            with spec.provide_session(config) as session:
                session.select_one(by_key, (5,))
        print((time.perf_counter() - begin) / int(line), flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:])
