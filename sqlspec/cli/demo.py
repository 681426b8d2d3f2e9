"""``sqlspec demo``: many threads share the pool of a SQLite file."""

from __future__ import annotations

import random
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sqlspec.adapters.sqlite import SQLiteConfig
from sqlspec.registry import SQLSpec

__all__ = ["demo"]


class _ChangeOfMind(Exception):
    """End a transfer without committing it."""


@dataclass
class _Tally:
    """Count what one thread did; only that thread writes."""

    sessions: int = 0
    commits: int = 0
    rollbacks: int = 0
    waits: list[float] = field(default_factory=list)
    error: BaseException | None = None


def demo(
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="How long to run.")] = 3.0,
    threads: Annotated[int, typer.Option(min=1, max=500, help="How many threads share the pool.")] = 32,
) -> None:
    """Run a mixed workload of many threads on a temporary SQLite file, and show what the pool did."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder, SQLSpec() as spec:
        # IMMEDIATE: transfers read before they write, and SQLite refuses that upgrade when another writer was faster
        config = SQLiteConfig(
            database=str(Path(folder) / "demo.db"), pool_size=5, max_overflow=5, isolation_level="IMMEDIATE"
        )
        spec.register_config(config, name="demo")
        with spec.get_session("demo") as session:
            session.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
            session.execute_many("INSERT INTO accounts VALUES (?, ?)", [(i, 100) for i in range(100)])
        tallies = [_Tally() for _ in range(threads)]
        _run(console, spec, tallies, seconds)
        with spec.get_session("demo") as session:
            total = session.execute("SELECT sum(balance) FROM accounts").scalar()
        console.print(_table(spec, tallies))
        failed = [tally.error for tally in tallies if tally.error is not None]
        console.print(f"money in all accounts: {total} (it was 10000), threads that failed: {len(failed)}")
    if failed or total != 10000:
        console.print(f"first failure: {failed[0]!r}" if failed else "money was lost")
        raise typer.Exit(1)


def _run(console: Console, spec: SQLSpec, tallies: list[_Tally], seconds: float) -> None:
    over = threading.Event()
    workers = [threading.Thread(target=_work, args=(spec, tally, over)) for tally in tallies]
    for worker in workers:
        worker.start()
    end = time.monotonic() + seconds
    try:
        with Live(_table(spec, tallies), console=console, transient=True, refresh_per_second=8) as live:
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(0.1, left))
                live.update(_table(spec, tallies))
    finally:
        over.set()
        for worker in workers:
            worker.join()


def _work(spec: SQLSpec, tally: _Tally, over: threading.Event) -> None:
    choice = random.Random()  # noqa: S311  # which accounts, not a secret
    try:
        while not over.is_set():
            _transfer(spec, tally, choice)
    except BaseException as error:  # noqa: BLE001  # told at the end, with the exit code
        tally.error = error


def _transfer(spec: SQLSpec, tally: _Tally, choice: random.Random) -> None:
    source, target = choice.sample(range(100), 2)
    tally.sessions += 1
    asked = time.monotonic()
    try:
        with spec.get_session("demo") as session:
            session.connection()
            tally.waits.append(time.monotonic() - asked)
            balance = session.execute("SELECT balance FROM accounts WHERE id = ?", (source,)).scalar_one()
            session.execute("UPDATE accounts SET balance = balance - 1 WHERE id = ?", (source,))
            session.execute("UPDATE accounts SET balance = balance + 1 WHERE id = ?", (target,))
            if balance < 1 or choice.random() < 0.05:
                raise _ChangeOfMind
        tally.commits += 1
    except _ChangeOfMind:
        tally.rollbacks += 1


def _table(spec: SQLSpec, tallies: list[_Tally]) -> Table:
    stats = spec.get_pool_stats("demo")
    waits = [wait for tally in tallies for wait in list(tally.waits)] or [0.0]
    table = Table("what", "figure", title="sqlspec demo: transfers between accounts on a SQLite file")
    for what, figure in (
        ("threads", len(tallies)),
        ("sessions", sum(tally.sessions for tally in tallies)),
        ("commits", sum(tally.commits for tally in tallies)),
        ("rollbacks", sum(tally.rollbacks for tally in tallies)),
        ("wait to begin, median", f"{statistics.median(waits) * 1000:.1f} ms"),
        ("wait to begin, longest", f"{max(waits) * 1000:.1f} ms"),
        ("pool size", stats.size),
        ("connections checked out", stats.checked_out),
        ("connections checked in", stats.checked_in),
        ("connections in overflow", stats.overflow),
    ):
        table.add_row(what, str(figure))
    return table
