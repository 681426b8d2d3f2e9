"""What `pool_reset_on_return="discard"` cleans, and what it costs: `python benchmarks/discard.py`.

Each kind of session state is left behind on a connection, again and again, and the next borrower of the same connection
looks for it. With --pool stock, the same is asked of SQLAlchemy's pool with its own reset.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any

from databases import StockSessions, databases
from report import compare
from sqlalchemy import exc

from sqlspec import SQLSpec
from tests.session_state import KINDS, SETUP, Kind, look

BAR = 150e-6
_ONE = {"pool_size": 1, "max_overflow": 0}


def leaks(name: str, spec: Any, borrows: int) -> Counter[str]:
    """Return how often a borrower met each kind of state, or failed for what another one had left."""
    found: Counter[str] = Counter()
    clean = {}
    for kind in KINDS[name]:
        with spec.get_session() as session:
            clean[kind] = look(session, kind)
    said = time.monotonic()
    for number in range(borrows):
        for kind in KINDS[name]:
            found[kind.name] += _leaks(spec, kind, clean[kind])
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"  {name}: {number + 1} of {borrows} borrows of each kind", flush=True)
    return +found


def _leaks(spec: Any, kind: Kind, clean: object) -> bool:
    try:
        with spec.get_session() as session:
            for statement in kind.leave:
                session.execute(statement)
        with spec.get_session() as session:
            return look(session, kind) != clean
    except exc.DBAPIError:
        return True


def cost(config: Any, rounds: int) -> float:
    """Return the seconds by which a checkout and a checkin take longer than with a rollback."""
    with SQLSpec() as spec:
        for way in ("discard", "rollback"):
            spec.register_config(config.model_copy(update={**_ONE, "pool_reset_on_return": way}), name=way)
        pools = [spec._get_pool(way) for way in ("discard", "rollback")]
        found = compare(*(lambda pool=pool: pool.connect().close() for pool in pools), rounds, 300)
    print(f"  checkout and checkin: {found.ours * 1e6:.0f} µs with discard, {found.theirs * 1e6:.0f} µs with rollback")
    return found.ours - found.theirs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", choices=["ours", "stock"], default="ours")
    parser.add_argument("--borrows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    holds = True
    with databases("postgresql", "mariadb") as configs:
        for name, config in configs.items():
            with SQLSpec() as spec:
                spec.register_config(config.model_copy(update={**_ONE, "pool_reset_on_return": "discard"}))
                with spec.get_session() as session:
                    for statement in SETUP[name]:
                        session.execute(statement)
                asked = StockSessions(spec.get_engine(), **_ONE) if options.pool == "stock" else spec
                found = leaks(name, asked, options.borrows)
                total = spec.get_pool_stats().created
            print(f"{name}: {len(KINDS[name])} kinds of state, {options.borrows} borrows each: {found.total()} leaks")
            for kind, count in found.items():
                print(f"  {kind}: {count}")
            seconds = cost(config, options.rounds)
            print(f"  discarding costs {seconds * 1e6:.0f} µs; {total} connection opened")
            holds &= not found and (name != "postgresql" or seconds <= BAR)
    print("every bar holds" if holds else "a bar does not hold")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
