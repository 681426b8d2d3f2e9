"""The benchmarks run, and what they compare is not far from its bar."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("script", ["sessions.py", "imports.py"])
def test_a_benchmark_prints_its_ratios(script: str) -> None:
    command = [sys.executable, str(FOLDER / script), "--rounds", "9", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, row in json.loads(done.stdout).items():
        # with a wide margin: machines are noisy, and the bars themselves are for `tox -e benchmarks`
        assert 0 < row["ratio"] < row["bar"] * 1.5, name


def test_what_the_benchmark_copies_is_all_there() -> None:
    command = [sys.executable, str(FOLDER / "bulk.py"), "--rows", "2000", "2000", "2000", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [result["what"].split()[0] for result in results] == ["load"] * 3 + ["stream"] * 3 + ["copy"] * 2
    assert all(result["holds"] for result in results if result["what"].startswith("copy"))


def test_the_benchmark_of_pools_shows_the_stock_pool_failing_where_ours_holds() -> None:
    command = [sys.executable, str(FOLDER / "pool.py"), "--quick", "--scenario", "failed connect", "--check"]
    ours = subprocess.run([*command, "--pool", "ours"], capture_output=True, text=True, check=False)
    assert ours.returncode == 0, ours.stdout + ours.stderr
    stock = subprocess.run([*command, "--pool", "stock"], capture_output=True, text=True, check=False)
    assert stock.returncode == 1, stock.stdout + stock.stderr


def test_the_benchmark_of_discarding_finds_what_the_stock_pool_leaks_and_ours_does_not() -> None:
    command = [sys.executable, str(FOLDER / "discard.py"), "--borrows", "1", "--rounds", "1", "--pool"]
    ours = subprocess.run([*command, "ours"], capture_output=True, text=True, check=False)
    assert ours.stdout.count(", 1 borrows each: 0 leaks") == 2, ours.stdout + ours.stderr
    stock = subprocess.run([*command, "stock"], capture_output=True, text=True, check=False)
    assert "  advisory lock: 1" in stock.stdout, stock.stdout + stock.stderr
    assert stock.returncode == 1


def test_ended_connections_are_replaced_one_for_one_where_the_stock_pool_fails() -> None:
    command = [sys.executable, str(FOLDER / "liveness.py"), "--quick", "--rounds", "1", "--pool"]
    ours = subprocess.run([*command, "ours"], capture_output=True, text=True, check=False)
    assert ours.stdout.count(" 0 errors, ") == 12, ours.stdout + ours.stderr
    assert "<-" not in ours.stdout
    stock = subprocess.run([*command, "stock"], capture_output=True, text=True, check=False)
    assert stock.stdout.count("<-") == 6, stock.stdout + stock.stderr


@pytest.mark.parametrize("trial", ["postgresql os.fork, eight threads", "mariadb checked out, child ends normally"])
def test_a_benchmark_of_forks_finds_no_backend_shared(trial: str) -> None:
    command = [sys.executable, str(FOLDER / "forks.py"), "--forks", "4", "--only", trial]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # how long a first query takes is for `tox -e forks`
    assert " 0 backends shared, 0 errors, 0 hang" in done.stdout, done.stdout + done.stderr


def test_the_benchmark_of_breakers_lets_one_probe_through_each_time() -> None:
    command = [sys.executable, str(FOLDER / "breaker.py"), "--threads", "100", "--repeats", "5", "--calls", "500"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # what a refusal costs is for `tox -e benchmarks`
    assert "100 threads, 5 of 5 times exactly 1 probe, at most 1" in done.stdout, done.stdout + done.stderr


def test_no_read_fails_in_a_restart() -> None:
    command = [sys.executable, str(FOLDER / "outage.py"), "--only", "postgresql", "--restarts", "2", "--outage", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # how soon they read again is for `tox -e benchmarks`
    assert "postgresql 2 restarts" in done.stdout, done.stdout + done.stderr
    assert " s: 0 of " in done.stdout, done.stdout + done.stderr


def test_no_request_fails_in_a_restart_beneath_preloaded_workers() -> None:
    command = [sys.executable, str(FOLDER / "workers.py"), "--restarts", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "every bar holds" in done.stdout, done.stdout + done.stderr


def test_a_server_that_is_away_is_left_alone_where_the_stock_pool_keeps_asking() -> None:
    command = [sys.executable, str(FOLDER / "outage.py"), "--only", "postgresql", "--restarts", "0", "--outage", "2"]
    ours = subprocess.run([*command, "--pool", "ours"], capture_output=True, text=True, check=False)
    assert ours.returncode == 0, ours.stdout + ours.stderr
    stock = subprocess.run([*command, "--pool", "stock"], capture_output=True, text=True, check=False)
    assert stock.returncode == 1, stock.stdout + stock.stderr


def test_the_benchmark_of_health_hears_the_right_words() -> None:
    command = [sys.executable, str(FOLDER / "health.py"), "--rounds", "1", "--only", "postgresql"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # how long it takes is for `tox -e benchmarks`
    words = re.findall(r" (up|degraded|down|\S+/\S+) +(?:at most|median) ", done.stdout)
    assert words == ["up", "degraded", "up", "up", "down", "down", "down", "up"] * 2, done.stdout + done.stderr


@pytest.mark.parametrize("how", [["cuts"], ["cuts", "--tasks"], ["deadlocks"]])
def test_money_that_is_moved_while_everything_fails_is_all_there(how: list[str]) -> None:
    command = [sys.executable, str(FOLDER / "ledger.py"), *how, "--calls", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 lost, 0 duplicated") == 2, done.stdout


def test_a_commit_that_fails_is_a_500_where_fastapis_own_dependencies_say_that_all_is_well() -> None:
    command = [sys.executable, str(FOLDER / "fastapi_requests.py"), "--only", "commits", "--scope"]
    ours = subprocess.run([*command, "function"], capture_output=True, text=True, check=False)
    assert "commits: 100 of 100 that failed are a 500, 0 stored" in ours.stdout, ours.stdout + ours.stderr
    theirs = subprocess.run([*command, "request"], capture_output=True, text=True, check=False)
    assert "commits: 0 of 100 that failed are a 500, 0 stored" in theirs.stdout, theirs.stdout + theirs.stderr
    assert (ours.returncode, theirs.returncode) == (0, 1)


def test_no_connection_is_missing_when_clients_have_gone_away() -> None:
    command = [sys.executable, str(FOLDER / "fastapi_requests.py"), "--only", "disconnects", "--requests", "160"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "160 requests" in done.stdout, done.stdout + done.stderr
    assert "0 checked out, 0 dropped" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("framework", ["flask", "fastapi"])
def test_saturated_applications_answer_without_an_error(framework: str) -> None:
    if shutil.which("wrk") is None and not os.environ.get("CI"):
        pytest.skip(reason="wrk is not installed")
    command = [sys.executable, str(FOLDER / "web_load.py"), "--only", framework, "--rounds", "1", "--seconds", "1"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {(row["page"], row["figure"]): row for row in json.loads(done.stdout)}
    # how many they answer, and how soon, is for `tox -e benchmarks`
    for page in (f"{framework} reads", f"{framework} writes", f"{framework} slow reads"):
        assert rows[page, "errors"]["ours"] == 0
        assert rows[page, "requests"]["ours"] > 0
        assert rows[page, "requests"]["plain"] > 0


def test_applications_that_are_compared_tell_their_server_the_same() -> None:
    command = [sys.executable, str(FOLDER / "web_load.py"), "--statements"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # six pages, each of which begins and commits once
    assert (done.stdout.count(": BEGIN"), done.stdout.count(": COMMIT")) == (6, 6), done.stdout
