"""Compare `import sqlspec` with the import of what it stands on, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

from report import Comparison, compare, run


def importing(statement: str) -> object:
    """Run a statement in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", statement], check=True)


def measure(rounds: int) -> dict[str, Comparison]:
    """Run the comparison."""
    return {
        "import": compare(
            lambda: importing("import sqlspec"),
            lambda: importing("import sqlalchemy, pydantic_settings"),
            rounds,
            1,
        )
    }


if __name__ == "__main__":
    run(measure, {"import": 1.4}, rounds=15)
