"""The benchmarks run, and what they compare is not far from its bar."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("script", ["sessions.py", "imports.py"])
def test_a_benchmark_prints_its_ratios(script: str) -> None:
    command = [sys.executable, str(FOLDER / script), "--rounds", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, row in json.loads(done.stdout).items():
        # with a wide margin: machines are noisy, and the bars themselves are for `tox -e benchmarks`
        assert 0 < row["ratio"] < row["bar"] * 1.5, name
