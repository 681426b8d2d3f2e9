"""What a pool tells of those who hold its connections: in errors, in the log, on request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import groupby

from sqlspec.pool.places import Mark, Place, shape
from sqlspec.pool.slots import Slots
from sqlspec.pool.stats import Holder, PoolStats

__all__ = ["explain_timeout", "holders", "place_of", "report_drop", "report_leaks", "report_slow_checkout"]

_logger = logging.getLogger("sqlspec.pool")

# Held for so many seconds, a connection was probably forgotten.
_LONG = 60.0
_PLACES_SHOWN = 5


def place_of(mark: Mark) -> Place:
    """Return where a connection was checked out."""
    return Place(mark[2], mark[3])


def holders(slots: Slots, quote: str) -> list[Holder]:
    """Return who has connections checked out, the longest first."""
    now = time.monotonic()
    found = []
    for slot in slots.all():
        mark, statement = slot.mark, slot.statement
        if mark is not None:
            shown = None if statement is None else shape(statement, quote)
            found.append(Holder(str(place_of(mark)), str(mark[1]), now - mark[0], shown))
    return sorted(found, key=lambda holder: -holder.seconds)


def report_drop(mark: Mark) -> None:
    """Log that the garbage collector had to give a connection back; not at the end of the process."""
    if not threading.main_thread().is_alive():
        return
    _logger.warning(
        "a connection was not closed: the garbage collector gave it back; it was checked out %.3g s ago by %s at %s. "
        "Close it, or use a with block",
        time.monotonic() - mark[0],
        mark[1],
        place_of(mark),
    )


def report_leaks(slots: Slots, leak_seconds: float) -> None:
    """Log each checkout that is older than this, once."""
    now = time.monotonic()
    for slot in slots.all():
        mark = slot.mark
        if mark is not None and mark is not slot.reported and now - mark[0] > leak_seconds:
            slot.reported = mark
            _logger.warning(
                "a connection has been checked out for %.3g s by %s at %s: is it closed on every path?",
                now - mark[0],
                mark[1],
                place_of(mark),
            )


def report_slow_checkout(name: str | None, slots: Slots, seconds: float, place: Place) -> None:
    """Log that a checkout took long, and how things are after it."""
    stats = slots.stats()
    _logger.warning(
        "%s: it took %.3g s to get a connection at %s; now %d of %s are checked out, %d callers wait",
        name or "pool",
        seconds,
        place,
        stats.checked_out,
        stats.capacity or "any number",
        stats.waiters,
    )


def explain_timeout(
    slots: Slots,
    holding: Sequence[Holder],
    own: Iterable[Mark],
    failure: tuple[float, BaseException] | None,
) -> str:
    """Return why a checkout timed out: who holds the connections, and what to do.

    ``own`` is what the caller itself has checked out, ``failure`` when and why connecting failed a moment ago.
    """
    stats = slots.stats()
    figures = {"idle": stats.checked_in, "connecting": stats.connecting, "others waiting": stats.waiters}
    told = [f"{stats.checked_out} checked out", *(f"{n} {what}" for what, n in figures.items() if n)]
    lines = [", ".join(told)]
    places = sorted(holding, key=lambda holder: holder.place)
    groups = [list(group) for _, group in groupby(places, key=lambda holder: holder.place)]
    groups.sort(key=len, reverse=True)
    lines += [_describe(group) for group in groups[:_PLACES_SHOWN]]
    if len(groups) > _PLACES_SHOWN:
        lines.append(f"  and {sum(map(len, groups[_PLACES_SHOWN:]))} held elsewhere")
    if failure is not None:
        ago, kind = time.monotonic() - failure[0], type(failure[1]).__name__
        lines.append(f"  The last attempt to connect failed {ago:.3g} s ago: {kind}, the cause of this error.")
    hint = _hint(slots, stats, holding, [place_of(mark) for mark in own], failure is not None)
    return "\n".join([*lines, f"  Hint: {hint}"])


def _describe(group: Sequence[Holder]) -> str:
    longest, shortest = group[0].seconds, group[-1].seconds
    seconds = (
        f"{longest:.3g} s" if len(group) == 1 else f"{min(shortest, longest):.3g} to {max(shortest, longest):.3g} s"
    )
    owners = ", ".join(holder.owner for holder in group[:3])
    others = f" and {len(group) - 3} more" if len(group) > 3 else ""
    statement = next((holder.statement for holder in group if holder.statement), None)
    last = f"; last statement: {statement}" if statement else ""
    return f"  {len(group)} held at {group[0].place} for {seconds} by {owners}{others}{last}"


def _hint(slots: Slots, stats: PoolStats, holding: Sequence[Holder], own: Sequence[Place], has_failed: bool) -> str:
    if own and not stats.connecting:
        return f"this caller holds a connection itself, checked out at {own[0]}: use that one, or close it first"
    owners = {slot.mark[1] for slot in slots.all() if slot.mark is not None}
    nested = sum(waiter.owner in owners for waiter in list(slots.waiters))
    if nested:
        return f"{nested} of the holders wait for a second connection: each should do with the one it has"
    if any(holder.owner.endswith("(ended)") for holder in holding):
        return "a holder has ended without closing its connection: use a with block"
    if stats.connecting or has_failed:
        return "the database cannot be reached, or answers late: see whether it is up"
    if holding and holding[0].seconds > _LONG:
        return "held for long: are they closed on every path? Use a with block, and hold none while waiting for others"
    return "all are busy: hold them for less time, or raise pool_size or max_overflow"
