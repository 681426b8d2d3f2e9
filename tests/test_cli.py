"""The sqlspec command."""

from __future__ import annotations

from typer.testing import CliRunner

from sqlspec.cli import app


def test_the_demo_runs_to_its_end_and_loses_no_money() -> None:
    result = CliRunner().invoke(app, ["demo", "--seconds", "0.5", "--threads", "8"])
    assert result.exit_code == 0, result.output
    assert "10000 (it was 10000), threads that failed: 0" in result.output
    assert "rollbacks" in result.output


def test_a_wrong_option_of_the_demo_is_explained() -> None:
    result = CliRunner().invoke(app, ["demo", "--threads", "0"])
    assert result.exit_code == 2
    assert "threads" in result.output
