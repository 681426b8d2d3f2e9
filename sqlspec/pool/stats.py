"""What a pool says about itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PoolStats"]


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Hold the figures of one pool.

    Attributes:
        size: the configured number of connections kept.
        checked_in: idle connections.
        checked_out: connections in use.
        overflow: open connections beyond ``size``, never negative.
        total: all open connections.
    """

    size: int
    checked_in: int
    checked_out: int
    overflow: int
    total: int

    def __post_init__(self) -> None:
        # SQLAlchemy counts overflow from -size upwards
        object.__setattr__(self, "overflow", max(0, self.overflow))

    @property
    def usage(self) -> float:
        """Return the share of ``size`` that is checked out; above 1 in overflow."""
        return self.checked_out / self.size if self.size else 0.0
