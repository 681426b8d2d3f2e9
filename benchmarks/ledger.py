"""Money that is moved by `run_transaction` while everything fails: `python benchmarks/ledger.py cuts`, or `deadlocks`.

Each call writes a row with its own number and moves money between two accounts. What callers were told is compared with
what is in the database: nothing that was told done may be missing, nothing that was told failed may be there, nothing
may be there twice, and the balances must be those that the rows make.

cuts: a proxy ends the connections after random numbers of bytes, and now and then swallows exactly the answer to a
COMMIT. Of a COMMIT without an answer callers on PostgreSQL are told what became of it; on MariaDB that nobody knows.

deadlocks: eight threads lock the accounts in random orders.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from databases import servers
from sqlalchemy import exc

from sqlspec import ConnectionLost, ErrorKind, Session, SQLSpec, classify
from sqlspec.testing import FaultProxy

CALLERS, ACCOUNTS, BALANCE = 8, 10, 1000
# so that hardly a call gives up
RETRY: dict[str, Any] = {"max_attempts": 50, "initial_delay": 0.002, "max_delay": 0.2, "timeout": 60.0}
# bytes after which a connection ends: opening one takes a thousand or two, a call about as many; asyncpg's are more
BYTES = {"threads": (500, 10_000), "tasks": (500, 40_000)}
# of a run so short that hardly any connection would get that far
FEW, FEW_BYTES = 1000, (500, 5_000)
# of how many calls one has the answer to a COMMIT swallowed
SWALLOW = 40


class Book:
    """Hold what callers were told, and what was seen of losses. Thread-safe: counting is one step."""

    def __init__(self, calls: int, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # not for secrets
        self.told: dict[int, str] = {}
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        # number, from, to, amount
        self._moves = iter(
            [(i, *self.random.sample(range(ACCOUNTS), 2), self.random.randint(1, 9)) for i in range(calls)]
        )

    def next(self) -> tuple[int, int, int, int] | None:
        """Return the next move, None where there are no more."""
        with self._lock:
            return next(self._moves, None)

    def see(self, what: str) -> None:
        """Count something."""
        with self._lock:
            self.seen[what] += 1

    def tell(self, number: int, error: Exception | None) -> None:
        """Note what a caller was told."""
        if error is None:
            self.told[number] = "done"
        elif isinstance(error, ConnectionLost) and error.ambiguous:
            self.told[number] = "flagged"
        elif isinstance(error, exc.SQLAlchemyError):
            self.told[number] = "failed"
        else:
            raise error


def statements(move: tuple[int, int, int, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Return what a call runs."""
    number, source, target, amount = move
    yield "INSERT INTO moves VALUES (?, ?, ?, ?)", (number, source, target, amount)
    yield "UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, source)
    yield "UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target)


def prepare(spec: SQLSpec) -> None:
    """Open the accounts. The rows of moves have no key: one that is there twice must be seen."""
    with spec.get_session("near") as session:
        if spec.get_engine("near").dialect.name == "postgresql":
            # a second otherwise
            session.execute("ALTER ROLE app SET deadlock_timeout = '10ms'")
        session.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)")
        session.execute("CREATE TABLE moves (id INTEGER, source INTEGER, target INTEGER, amount INTEGER)")
        session.execute_many("INSERT INTO accounts VALUES (?, ?)", [(number, BALANCE) for number in range(ACCOUNTS)])


def audit(spec: SQLSpec, book: Book) -> tuple[Counter[str], bool]:
    """Return what is wrong between what was told and what is there, and whether the balances are right."""
    with spec.get_session("near") as session:
        rows = session.execute("SELECT id, source, target, amount FROM moves").all()
        balances = dict(session.execute("SELECT id, balance FROM accounts").all())
    there = Counter(row[0] for row in rows)
    wrong = Counter(
        lost=sum(told == "done" and not there[number] for number, told in book.told.items()),
        duplicated=sum(count > 1 for count in there.values()),
        undead=sum(told == "failed" and there[number] > 0 for number, told in book.told.items()),
    )
    right = dict.fromkeys(range(ACCOUNTS), BALANCE)
    for _, source, target, amount in rows:
        right[source] -= amount
        right[target] += amount
    return wrong, balances == right and sum(balances.values()) == ACCOUNTS * BALANCE


def run_threads(spec: SQLSpec, book: Book, pause: float = 0.0) -> None:
    """Make the moves from eight threads; with a pause between the two accounts, in which others take the second."""

    def write(session: Session, move: tuple[int, int, int, int]) -> None:
        try:
            for position, (sql, values) in enumerate(statements(move)):
                if position == 2 and pause:
                    time.sleep(pause)
                session.execute(sql, values)
        except exc.DBAPIError as error:
            book.see(classify(error))
            raise

    def call() -> None:
        while move := book.next():
            failure = None
            try:
                spec.run_transaction("far", lambda session, move=move: write(session, move), **RETRY)
            except Exception as error:  # noqa: BLE001  # it is what the caller was told
                failure = error
            book.tell(move[0], failure)

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def run_tasks(spec: SQLSpec, book: Book) -> None:
    """Make the moves from eight tasks."""

    async def call() -> None:
        while move := book.next():

            async def write(session: Any, move: tuple[int, int, int, int] = move) -> None:
                for sql, values in statements(move):
                    await session.execute(sql, values)

            failure = None
            try:
                await spec.arun_transaction("far", write, **RETRY)
            except Exception as error:  # noqa: BLE001  # it is what the caller was told
                failure = error
            book.tell(move[0], failure)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    await spec.aclose()


class Watch(logging.Handler):
    """Count losses in COMMIT where they happen, and what the log says was found out about them."""

    def __init__(self, book: Book) -> None:
        super().__init__()
        self._book = book
        self._commit = Session.commit
        self._logger = logging.getLogger("sqlspec.retry")

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("COMMIT had no answer"):
            self._book.see(str(record.args[0] if record.args else ""))

    def __enter__(self) -> None:
        commit, book = self._commit, self._book

        def watched(session: Session) -> None:
            try:
                commit(session)
            except ConnectionLost as error:
                book.see("ambiguous" if error.ambiguous else "lost otherwise")
                raise

        Session.commit = watched  # type: ignore[method-assign]  # what it is there for
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)

    def __exit__(self, *_: object) -> None:
        Session.commit = self._commit  # type: ignore[method-assign]  # as it was
        self._logger.removeHandler(self)


def cuts(name: str, server: Any, config: Any, calls: int, seed: int, in_tasks: bool) -> bool:
    """Move money through a proxy that cuts; tell whether everything is right."""
    book, callers = Book(calls, seed), "tasks" if in_tasks else "threads"
    with FaultProxy(server.port) as proxy, SQLSpec() as spec, SQLSpec() as own, Watch(book):
        spec.register_config(config, "near")
        prepare(spec)
        own.register_config(config.model_copy(update={"port": proxy.port}), "far")
        budget = FEW_BYTES if calls < FEW else BYTES[callers]
        proxy.cut_after(lambda: book.random.randint(*budget))
        is_over = threading.Event()
        swallower = threading.Thread(target=swallow, args=(proxy, book, calls // SWALLOW, is_over))
        swallower.start()
        begin = time.monotonic()
        if in_tasks:
            asyncio.run(run_tasks(own, book))
        else:
            run_threads(own, book)
        seconds = time.monotonic() - begin
        is_over.set()
        swallower.join()
        wrong, is_balanced = audit(spec, book)
        held = 0 if in_tasks else own.get_pool_stats("far").checked_out
    told, seen, fired = Counter(book.told.values()), book.seen, proxy.fired
    resolved = seen["taken place"] + seen["not taken place"]
    print(f"{name}, {CALLERS} {callers}: {calls} calls in {seconds:.0f} s, told {dict(told)}")
    print(f"  cuts: {fired['cut_after']} at random bytes, {fired['swallow_answer']} of the answer to COMMIT")
    print(
        f"  in COMMIT: {seen['ambiguous']} ambiguous: {resolved} resolved ({seen['taken place']} had taken place), "
        f"{told['flagged']} flagged"
    )
    print(f"  {wrong['lost']} lost, {wrong['duplicated']} duplicated, {wrong['undead']} there that were told failed")
    print(f"  balances {'right' if is_balanced else 'WRONG'}; {held} connections held")
    is_complete = len(book.told) == calls and seen["ambiguous"] == resolved + told["flagged"]
    has_fired = bool(fired["cut_after"] and fired["swallow_answer"] and seen["ambiguous"])
    return is_complete and has_fired and is_balanced and not wrong.total() and not held


def swallow(proxy: FaultProxy, book: Book, times: int, is_over: threading.Event) -> None:
    """Have the answer to a COMMIT swallowed, at most so many times: its connection may be cut before."""
    for number in range(times):
        while len(book.told) < number * SWALLOW:
            if is_over.wait(0.001):
                return
        proxy.swallow_answer("COMMIT")


def deadlocks(name: str, config: Any, calls: int, seed: int) -> bool:
    """Move money in random orders; tell whether every call landed once, after deadlocks."""
    book = Book(calls, seed)
    with SQLSpec() as spec:
        for own in ("near", "far"):
            spec.register_config(config, own)
        prepare(spec)
        begin = time.monotonic()
        run_threads(spec, book, pause=0.001)
        seconds = time.monotonic() - begin
        wrong, is_balanced = audit(spec, book)
    told, met = Counter(book.told.values()), book.seen[ErrorKind.CONFLICT]
    print(f"{name}, {CALLERS} writers: {calls} calls in {seconds:.0f} s, told {dict(told)}; {met} deadlocks")
    print(f"  {wrong['lost']} lost, {wrong['duplicated']} duplicated; balances {'right' if is_balanced else 'WRONG'}")
    return told == {"done": calls} and met > 0 and is_balanced and not wrong.total()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["cuts", "deadlocks"])
    parser.add_argument("--calls", type=int, default=5000, help="on each database")
    parser.add_argument("--database", choices=["postgresql", "mariadb"], nargs="+", default=["postgresql", "mariadb"])
    parser.add_argument("--tasks", action="store_true", help="cuts: callers are tasks, not threads")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    holds = True
    with servers(*options.database) as started:
        for name, (server, config) in started.items():
            if options.section == "cuts":
                holds &= cuts(name, server, config, options.calls, options.seed, options.tasks)
            else:
                holds &= deadlocks(name, config, options.calls, options.seed)
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
