"""Whether health checks say the right word in time: `python benchmarks/health.py`.

On private servers, by threads and by tasks: a pool that nobody has used, one that is in use as a whole, a server that
is frozen, and one that was stopped; then how long a verdict takes that is told again. At last failovers: two PostgreSQL
servers behind one address, of which the second is promoted after the first was killed, or has been made read only;
measured is from the end of the promotion to the first write of a session with retry.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from databases import servers

from sqlspec import HealthReport, SQLSpec, check_health, health_check, with_retry
from sqlspec.adapters import PostgreSQLConfig
from sqlspec.testing import FaultProxy
from tests.servers import PASSWORD, PostgreSQLServer, PostgreSQLStandby, wait_until

DEADLINE, LATE = 1.0, 0.2
AGAIN = 0.01
FAILOVER = 1.0
Check = Callable[..., HealthReport]


class Trials:
    """Ask about a server, and print each answer; `missed` counts those that were wrong or late."""

    def __init__(self, name: str, rounds: int, check: Check) -> None:
        self.name = name
        self.missed = 0
        self.check = check
        self._rounds = rounds

    def expect(self, what: str, word: str) -> None:
        """Ask anew, some times."""
        answers = [self._timed() for _ in range(self._rounds)]
        self._tell(what, word, answers, "at most", max(seconds for seconds, _ in answers), DEADLINE + LATE)

    def expect_again(self, word: str) -> None:
        """Ask for the same verdict, many times; what the machine does beside it must not count."""
        self._timed(max_age=60.0)
        answers = [self._timed(max_age=60.0) for _ in range(100)]
        self._tell("told again", word, answers, "median", statistics.median(seconds for seconds, _ in answers), AGAIN)

    def _timed(self, **options: Any) -> tuple[float, str]:
        begin = time.perf_counter()
        report = self.check(timeout=DEADLINE, **options)
        return time.perf_counter() - begin, report.details["default"].state

    def _tell(
        self, what: str, word: str, answers: list[tuple[float, str]], which: str, seconds: float, bar: float
    ) -> None:
        words = sorted({word for _, word in answers})
        holds = words == [word] and seconds <= bar
        self.missed += not holds
        miss = "" if holds else f"  <- {word} within {bar:g} s"
        print(f"{self.name:20} {what:22} {'/'.join(words):9} {which} {seconds:.4f} s{miss}", flush=True)


def try_all(trials: Trials, server: Any, held: AbstractContextManager[Any]) -> int:
    """Go through the states of a pool and its server; return how many answers missed their bar."""
    # the driver is imported
    trials.check(timeout=10.0)
    trials.expect("not used yet", "up")
    with held:
        trials.expect("in use as a whole", "degraded")
    trials.expect("idle", "up")
    trials.expect_again("up")
    server.freeze()
    try:
        trials.expect("frozen", "down")
        trials.expect_again("down")
    finally:
        server.thaw()
    wait_until(lambda: trials.check(timeout=10.0)["default"])
    server.stop()
    try:
        trials.expect("stopped", "down")
    finally:
        server.start()
    trials.expect("after a restart", "up")
    # what was given up is closed; of the pool, two may be left
    wait_until(lambda: len(server.connections()) <= 2)
    return trials.missed


def by_threads(name: str, server: Any, config: Any, rounds: int) -> int:
    with SQLSpec() as spec:
        spec.register_config(config)
        held = contextlib.ExitStack()
        trials = Trials(f"{name}, threads", rounds, lambda **options: check_health(spec, **options))

        @contextmanager
        def hold() -> Iterator[None]:
            with held:
                for _ in range(2):
                    held.enter_context(spec.get_connection())
                yield

        return try_all(trials, server, hold())


def by_tasks(name: str, server: Any, config: Any, rounds: int) -> int:
    with SQLSpec() as spec, asyncio.Runner() as runner:
        spec.register_config(config)
        trials = Trials(f"{name}, tasks", rounds, lambda **options: runner.run(health_check(spec, **options)))

        async def check_out() -> Any:
            return await spec.get_async_connection().__aenter__()

        @contextmanager
        def hold() -> Iterator[None]:
            connections = [runner.run(check_out()) for _ in range(2)]
            yield
            for connection in connections:
                runner.run(connection.close())

        missed = try_all(trials, server, hold())
        runner.run(spec.aclose())
        return missed


def fail_over(how: str) -> int:
    """Lose a primary, and print how long after the promotion of its replica the first write is done."""
    with tempfile.TemporaryDirectory(prefix="sqlspec-") as folder, contextlib.ExitStack() as started:
        primary = PostgreSQLServer(Path(folder) / "primary")
        started.callback(primary.stop)
        primary.start()
        config = {"host": "127.0.0.1", "username": "app", "password": PASSWORD, "database": "postgres"}
        with SQLSpec() as spec:
            spec.register_config(PostgreSQLConfig(**config, port=primary.port))
            run(spec, "CREATE TABLE written (at TIMESTAMP DEFAULT now())")
        replica = PostgreSQLStandby(Path(folder) / "replica", primary)
        started.callback(replica.stop)
        replica.start()
        address = started.enter_context(FaultProxy(primary.port))
        spec = started.enter_context(SQLSpec())
        spec.register_config(PostgreSQLConfig(**config, port=address.port, pool_size=10))
        seconds, failed = time_writes(spec, lambda: lose(how, primary, replica, address))
    holds = seconds <= FAILOVER
    miss = "" if holds else f"  <- within {FAILOVER:g} s"
    print(
        f"failover, {how:10} first write {seconds:.3f} s after the promotion, {failed} writes failed{miss}", flush=True
    )
    return not holds


def lose(how: str, primary: PostgreSQLServer, replica: PostgreSQLStandby, address: FaultProxy) -> float:
    """Have the replica be the primary; return when it was."""
    if how == "killed":
        primary.kill()
    else:
        with SQLSpec() as spec:
            spec.register_config(
                PostgreSQLConfig(url=f"postgresql://app@127.0.0.1:{primary.port}/postgres", password=PASSWORD)
            )
            with spec.get_session(autocommit=True) as session:
                session.execute("ALTER SYSTEM SET default_transaction_read_only = on")
                session.execute("SELECT pg_reload_conf()")
    address.redirect(replica.port)
    replica.promote()
    return time.monotonic()


def run(spec: SQLSpec, statement: str) -> None:
    with spec.get_session(timeout=1.0) as session:
        session.execute(statement)


def time_writes(spec: SQLSpec, lose: Callable[[], float]) -> tuple[float, int]:
    """Have eight threads write while a primary is lost; return when the first write was done, and how many failed."""
    written: list[float] = []
    failed: list[str] = []
    is_over = threading.Event()

    def write() -> None:
        while not is_over.wait(0.005):
            try:
                with_retry(lambda: run(spec, "INSERT INTO written DEFAULT VALUES"), initial_delay=0.02, max_delay=0.2)
                written.append(time.monotonic())
            except Exception as error:  # noqa: BLE001  # counted
                failed.append(type(error).__name__)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(written) > 100)
    time.sleep(1.0)
    promoted = lose()
    wait_until(lambda: any(at > promoted for at in list(written)), seconds=30)
    is_over.set()
    for thread in threads:
        thread.join()
    return min(at for at in written if at > promoted) - promoted, len(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is asked")
    parser.add_argument("--only", choices=["postgresql", "mariadb", "failover"])
    options = parser.parse_args()
    # what it tells of is asked for
    logging.getLogger("sqlspec").setLevel(logging.ERROR)
    missed = 0
    wanted = [name for name in ("postgresql", "mariadb") if options.only in {None, name}]
    with servers(*wanted) as started:
        for name, (server, config) in started.items():
            small = config.model_copy(update={"pool_size": 2, "max_overflow": 0})
            missed += by_threads(name, server, small, options.rounds)
            missed += by_tasks(name, server, small, options.rounds)
    if options.only in {None, "failover"}:
        missed += sum(fail_over(how) for how in ("killed", "read only"))
    print("every bar holds" if not missed else f"{missed} bars do not hold")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
