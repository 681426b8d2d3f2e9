"""Frames of sales, written to a database and read again. Nothing here knows of sqlspec."""

from __future__ import annotations

from typing import Any

import pandas as pd
import sqlalchemy as sa

_SUM = sa.text(
    "SELECT region, SUM(price)::float AS revenue FROM sales WHERE day >= :since GROUP BY region ORDER BY region"
)


def make_sales(count: int = 1000) -> pd.DataFrame:
    """Return sales of so many days."""
    numbers = range(count)
    return pd.DataFrame(
        {
            "day": pd.date_range("2026-01-01", periods=count),
            "region": ["north" if number % 2 else "south" for number in numbers],
            "price": [float(number) for number in numbers],
        }
    )


def store(sales: pd.DataFrame, con: Any) -> None:
    """Replace what is stored."""
    sales.to_sql("sales", con, index=False, if_exists="replace", method="multi", chunksize=100)


def revenue(con: Any, since: str) -> dict[str, float]:
    """Return the revenue of each region."""
    frame = pd.read_sql(_SUM, con, params={"since": since}, index_col="region")
    return dict(frame["revenue"])


def load(con: Any) -> pd.DataFrame:
    """Return what is stored, read in pieces."""
    return pd.concat(pd.read_sql("SELECT * FROM sales ORDER BY day", con, chunksize=300), ignore_index=True)
