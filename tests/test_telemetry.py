"""What pools tell OpenTelemetry and Prometheus."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from sqlspec import InstrumentationConfig, PoolTimeout, SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.telemetry import OpenTelemetryMetrics, PrometheusMetrics
from tests.callers import Caller
from tests.conftest import Database
from tests.servers import wait_until
from tests.spans import recorded_spans

POOL = "db_client_connection_pool_name"
GAUGES = {
    "db_client_connection_count",
    "db_client_connection_idle_max",
    "db_client_connection_idle_min",
    "db_client_connection_max",
    "db_client_connection_pending_requests",
    "sqlspec_pool_oldest_checkout_seconds",
}
COUNTERS = {
    "db_client_connection_timeouts",
    "sqlspec_pool_refused",
    "sqlspec_pool_failed_connects",
    "sqlspec_pool_dropped",
    "sqlspec_pool_closed",
}
HISTOGRAMS = {
    "db_client_connection_create_time_seconds",
    "db_client_connection_wait_time_seconds",
    "db_client_connection_use_time_seconds",
}


@pytest.fixture
def spec(database: Database) -> Iterator[SQLSpec]:
    with SQLSpec() as spec:
        spec.register_config(database.config(pool_size=2, max_overflow=1, pool_timeout=0.05), name="primary")
        yield spec


def use(spec: SQLSpec, name: str = "primary") -> None:
    """Hold all three, ask in vain for a fourth, and give all back."""
    held = [spec.create_connection(name) for _ in range(3)]
    with pytest.raises(PoolTimeout):
        spec.create_connection(name)
    for connection in held:
        connection.close()


def read(page: bytes) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(page.decode())}


def run(code: str, *arguments: object, shared: Path | None = None, forks: bool = False, timeout: int = 60) -> str:
    """Run code in a process of its own, as a worker where workers share a folder; return what it prints."""
    environment = dict(os.environ)
    if shared is not None:
        shared.mkdir(exist_ok=True)
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
    # Python warns of forks beside threads; that these are safe is what the tests of forks are for
    flags = ["-W", "error", *(["-W", "ignore::DeprecationWarning"] if forks else [])]
    command = [sys.executable, *flags, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


def value(families: dict[str, Any], name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return float(found[0])


def test_a_page_for_prometheus_has_each_figure_by_its_name(spec: SQLSpec) -> None:
    metrics = PrometheusMetrics(spec, CollectorRegistry())
    use(spec)
    with spec.get_connection("primary"):
        page, content_type = metrics.render()
    families = read(page)
    assert content_type.startswith("text/plain")
    kinds = {name: family.type for name, family in families.items()}
    assert kinds == {
        **dict.fromkeys(GAUGES, "gauge"),
        **dict.fromkeys(COUNTERS, "counter"),
        **dict.fromkeys(HISTOGRAMS, "histogram"),
    }
    assert {sample.labels[POOL] for family in families.values() for sample in family.samples} == {"primary"}
    state = "db_client_connection_state"
    assert value(families, "db_client_connection_count", **{state: "used"}) == 1
    assert value(families, "db_client_connection_count", **{state: "idle"}) == 2
    assert value(families, "db_client_connection_max") == 3
    assert value(families, "db_client_connection_idle_max") == 2
    assert value(families, "db_client_connection_timeouts_total") == 1
    assert value(families, "db_client_connection_create_time_seconds_count") == 3
    assert value(families, "db_client_connection_use_time_seconds_bucket", le="+Inf") == 3
    assert value(families, "db_client_connection_wait_time_seconds_sum") >= 0.05


def test_a_registry_that_was_never_used_tells_of_nothing_and_connects_to_nothing(spec: SQLSpec) -> None:
    metrics = PrometheusMetrics(spec, CollectorRegistry())
    assert not [sample for family in read(metrics.render()[0]).values() for sample in family.samples]
    assert "not used yet" in repr(spec._managers["primary"])


def test_counts_outlive_the_pools_of_loops_that_have_ended(spec: SQLSpec) -> None:
    metrics = PrometheusMetrics(spec, CollectorRegistry())

    async def main() -> float:
        async with spec.get_async_session("primary") as session:
            await session.execute("SELECT 1")
        return value(read(metrics.render()[0]), "db_client_connection_create_time_seconds_count")

    assert [asyncio.run(main()) for _ in range(3)] == [1, 2, 3]


def test_figures_of_pools_of_one_name_add_up() -> None:
    named = InstrumentationConfig(pool_name="files")
    with SQLSpec() as spec:
        for name in ("one", "two"):
            spec.register_config(SQLiteConfig(database=":memory:", instrumentation=named), name=name)
            with spec.get_session(name) as session:
                session.execute("SELECT 1")
        families = read(PrometheusMetrics(spec, CollectorRegistry()).render()[0])
        assert value(families, "db_client_connection_create_time_seconds_count", **{POOL: "files"}) == 2


def test_a_config_may_keep_its_pool_to_itself() -> None:
    with SQLSpec() as spec:
        quiet = InstrumentationConfig(metrics=False)
        spec.register_config(SQLiteConfig(database=":memory:", instrumentation=quiet), name="primary")
        metrics = PrometheusMetrics(spec, CollectorRegistry())
        with spec.get_session("primary") as session:
            session.execute("SELECT 1")
        assert b"primary" not in metrics.render()[0]


def test_the_same_registry_of_prometheus_is_not_told_twice(spec: SQLSpec) -> None:
    registry = CollectorRegistry()
    PrometheusMetrics(spec, registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusMetrics(spec, registry)


WORKERS = """
import os, sys, time
from prometheus_client import CollectorRegistry
from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.telemetry import PrometheusMetrics

spec = SQLSpec()
spec.register_config(SQLiteConfig(database=sys.argv[1], pool_size=3), name="primary")
registry = CollectorRegistry()
metrics = PrometheusMetrics(spec, registry)

def use():
    held = [spec.create_connection("primary") for _ in range(2)]
    time.sleep(0.01)
    held.pop().close()
    return held

# as a server does that loads the application before it forks
begin = time.monotonic()
parents = use()
metrics.render()
children, go = [], os.pipe()
for _ in range(3):
    child = os.fork()
    if child == 0:
        held = use()
        time.sleep(0.3)
        metrics.render()
        os.write(go[1], b".")
        time.sleep(60)
    children.append(child)
for _ in children:
    os.read(go[0], 1)
print(metrics.render()[0].decode())
print("elapsed", time.monotonic() - begin)
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def test_figures_of_all_workers_add_up(tmp_path: Path) -> None:
    families = read(run(WORKERS, tmp_path / "app.db", shared=tmp_path / "shared", forks=True).encode())
    assert {family.type for name, family in families.items() if name in HISTOGRAMS} == {"histogram"}
    assert value(families, "db_client_connection_create_time_seconds_count") == 4 * 2
    assert value(families, "db_client_connection_use_time_seconds_count") == 4
    assert value(families, "db_client_connection_use_time_seconds_sum") >= 4 * 0.01
    assert value(families, "db_client_connection_count", db_client_connection_state="used") == 4
    assert value(families, "db_client_connection_idle_max") == 4 * 3
    # the longest of them all, which is the parent's
    assert 0.3 <= value(families, "sqlspec_pool_oldest_checkout_seconds") <= value(families, "elapsed")


GONE = """
import asyncio, sys
from prometheus_client import CollectorRegistry
from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.telemetry import PrometheusMetrics

spec = SQLSpec()
spec.register_config(SQLiteConfig(database=sys.argv[1]), name="primary")
metrics = PrometheusMetrics(spec, CollectorRegistry())

async def main():
    async with spec.get_async_connection("primary"):
        metrics.render()

asyncio.run(main())
print(metrics.render()[0].decode())
"""


def test_of_a_pool_that_has_ended_a_worker_shows_no_connections(tmp_path: Path) -> None:
    families = read(run(GONE, tmp_path / "app.db", shared=tmp_path / "shared").encode())
    assert value(families, "db_client_connection_count", db_client_connection_state="used") == 0
    assert value(families, "sqlspec_pool_oldest_checkout_seconds") == 0
    assert value(families, "db_client_connection_create_time_seconds_count") == 1


WRITING = """
import os, signal, sys, threading
from prometheus_client import CollectorRegistry
from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.telemetry import PrometheusMetrics

sys.setswitchinterval(1e-6)
spec = SQLSpec()
spec.register_config(SQLiteConfig(database=":memory:"), name="primary")
metrics = PrometheusMetrics(spec, CollectorRegistry())
spec.create_connection("primary").close()
done = threading.Event()

def tell():
    while not done.is_set():
        metrics._shared.write()

threading.Thread(target=tell).start()
hung = 0
for _ in range(30):
    if (child := os.fork()) == 0:
        signal.alarm(10)
        spec.create_connection("primary").close()
        metrics._shared.write()
        os._exit(0)
    hung += os.waitpid(child, 0)[1] != 0
done.set()
print(hung)
"""


def test_a_child_that_is_forked_while_figures_are_written_can_write_its_own(tmp_path: Path) -> None:
    assert run(WRITING, shared=tmp_path, forks=True, timeout=400).strip() == "0"


ENDED = """
import os, sys
from prometheus_client import CollectorRegistry
from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.telemetry import PrometheusMetrics

spec = SQLSpec()
spec.register_config(SQLiteConfig(database=":memory:"), name="primary")
metrics = PrometheusMetrics(spec, CollectorRegistry())
for _ in range(3):
    if os.fork() == 0:
        spec.create_connection("primary").close()
        metrics.render()
        sys.exit(0)
    assert os.wait()[1] == 0
print(metrics.render()[0].decode())
"""


def test_what_workers_have_counted_outlives_them_and_their_connections_do_not(tmp_path: Path) -> None:
    families = read(run(ENDED, shared=tmp_path, forks=True).encode())
    assert value(families, "db_client_connection_use_time_seconds_count") == 3
    # no connection is left, of whom nobody has told that they have ended
    assert {sample.value for name in GAUGES for sample in families[name].samples} == {0}


ASKED = """
import sys, threading
from prometheus_client import CollectorRegistry
from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.telemetry import PrometheusMetrics

sys.setswitchinterval(1e-6)
spec = SQLSpec()
spec.register_config(SQLiteConfig(database=sys.argv[1]), name="primary")
metrics = PrometheusMetrics(spec, CollectorRegistry())
done = threading.Event()

def ask():
    while not done.is_set():
        metrics.render()

threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(200):
    connection = spec.create_connection("primary")
    connection.invalidate()
    connection.close()
done.set()
for thread in threads:
    thread.join()
print(metrics.render()[0].decode())
"""


SAY_SO = """
import multiprocessing, sys
from prometheus_client import CollectorRegistry
from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.telemetry import PrometheusMetrics

spec = SQLSpec()
spec.register_config(SQLiteConfig(database=sys.argv[1]), name="primary")
metrics = PrometheusMetrics(spec, CollectorRegistry())

def work():
    with spec.get_session("primary") as session:
        session.execute("SELECT 1")
    spec.close()
    metrics.render()

for _ in range(2):
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
print(metrics.render()[0].decode())
"""


def test_children_that_python_tells_nobody_the_end_of_can_tell_their_last_figures(tmp_path: Path) -> None:
    families = read(run(SAY_SO, tmp_path / "app.db", shared=tmp_path / "shared", forks=True).encode())
    assert value(families, "db_client_connection_use_time_seconds_count") == 2
    assert value(families, "db_client_connection_count", db_client_connection_state="idle") == 0


def test_nothing_is_counted_twice_by_those_who_ask_at_the_same_time(tmp_path: Path) -> None:
    families = read(run(ASKED, tmp_path / "app.db", shared=tmp_path / "shared").encode())
    assert value(families, "sqlspec_pool_closed_total", reason="invalidated") == 200


def test_a_page_waits_for_a_file_that_a_worker_has_just_created(tmp_path: Path) -> None:
    code = """
        import pathlib, os, threading, time
        from prometheus_client import CollectorRegistry
        from sqlspec import SQLSpec
        from sqlspec.telemetry import PrometheusMetrics

        metrics = PrometheusMetrics(SQLSpec(), CollectorRegistry())
        file = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"], "counter_4711.db")
        file.touch()
        threading.Timer(0.1, lambda: file.write_bytes(bytes(1024))).start()
        metrics.render()
        assert file.stat().st_size == 1024
    """
    run(code, shared=tmp_path)


def test_a_worker_that_could_not_write_its_figures_goes_on_to_try(tmp_path: Path) -> None:
    code = """
        import os, pathlib, sys
        from prometheus_client import CollectorRegistry
        from sqlspec import SQLSpec
        from sqlspec.adapters import SQLiteConfig
        from sqlspec.telemetry import PrometheusMetrics
        from tests.servers import wait_until

        folder, told = pathlib.Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]), pathlib.Path(sys.argv[1])
        spec = SQLSpec()
        spec.register_config(SQLiteConfig(database=":memory:"), name="primary")
        metrics = PrometheusMetrics(spec, CollectorRegistry())
        spec.create_connection("primary").close()
        wait_until(lambda: "No such file or directory" in told.read_text())
        folder.mkdir()
        wait_until(lambda: list(folder.glob("gauge_livesum_*.db")))
    """
    told, environment = tmp_path / "told", {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared")}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(told)]
    with told.open("w") as log:
        done = subprocess.run(command, env=environment, stderr=log, check=False, timeout=60)
    assert done.returncode == 0, told.read_text()


# -- what is slow

# each takes a while, and has a value in its text
SLOW = {
    "postgresql": "SELECT pg_sleep(0.05), 'hush' /* secret */",
    "mariadb": "SELECT SLEEP(0.05), 'hush' /* secret */",
    "sqlite": "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 300000) "
    'SELECT max(i), "hush" /* secret */ FROM n',
}
WRONG = {
    "postgresql": "SELECT pg_sleep(0.05), 1 / (random() * 0)::int, 'hush'",
    "mariadb": "SET STATEMENT max_statement_time = 0.05 FOR SELECT SLEEP(10), 'hush'",
}


def slow(caplog: pytest.LogCaptureFixture, logger: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == logger]


def test_a_slow_statement_is_logged_with_its_place_and_without_values(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = InstrumentationConfig(slow_statement_seconds=0.01, pool_name="shop")
    with SQLSpec() as spec:
        spec.register_config(database.config(instrumentation=wanted), name="primary")
        with spec.get_session("primary") as session:
            session.execute("SELECT 1").all()
            session.execute(SLOW[database.name]).all()
        with spec.get_engine("primary").connect() as connection:
            connection.execute(sa.text(SLOW[database.name])).all()
    told = slow(caplog, "sqlspec.statements")
    assert len(told) == 2
    for line in told:
        assert line.startswith("shop: a statement took 0.")
        assert "test_telemetry.py:" in line
        assert "SELECT" in line
        assert "hush" not in line
        assert "secret" not in line


def test_a_slow_statement_that_fails_is_logged_as_well(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    if database.name == "sqlite":
        pytest.skip("SQLite finds what is wrong before it begins")
    wanted = InstrumentationConfig(slow_statement_seconds=0.01)
    with SQLSpec() as spec:
        spec.register_config(database.config(instrumentation=wanted), name="primary")
        with pytest.raises(sa.exc.DBAPIError), spec.get_session("primary") as session:
            session.execute(WRONG[database.name])
    (line,) = slow(caplog, "sqlspec.statements")
    assert line.startswith("primary: a statement failed after 0.")
    assert "hush" not in line


def test_a_slow_statement_of_a_task_is_logged(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    wanted = InstrumentationConfig(slow_statement_seconds=0.01)

    async def main(spec: SQLSpec) -> None:
        async with spec.get_async_session("primary") as session:
            await session.execute(SLOW[database.name])

    with SQLSpec() as spec:
        spec.register_config(database.config(instrumentation=wanted), name="primary")
        asyncio.run(main(spec))
    (line,) = slow(caplog, "sqlspec.statements")
    assert "test_telemetry.py:" in line


def test_a_slow_checkout_is_logged_with_its_place(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    wanted = InstrumentationConfig(slow_checkout_seconds=0.05)
    with SQLSpec() as spec:
        spec.register_config(database.config(instrumentation=wanted, pool_size=1, max_overflow=0), name="primary")
        with spec.get_connection("primary"):
            caplog.clear()
            waiter = Caller(spec.get_engine("primary").pool)
            wait_until(lambda: spec.get_pool_stats("primary").waiters == 1)
            time.sleep(0.06)
        waiter.give_back()
        with spec.get_connection("primary"):
            pass
    (line,) = slow(caplog, "sqlspec.pool")
    assert line.startswith("primary: it took 0.")
    assert "callers.py:" in line
    assert line.endswith("now 1 of 1 are checked out, 0 callers wait")


# -- OpenTelemetry


def collected(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    assert data is not None
    metrics = [
        metric for resource in data.resource_metrics for scope in resource.scope_metrics for metric in scope.metrics
    ]
    return {metric.name: metric for metric in metrics}


def points(metric: Any) -> dict[tuple[Any, ...], Any]:
    return {tuple(sorted(point.attributes.items())): point for point in metric.data.data_points}


def test_opentelemetry_is_told_by_its_conventions(spec: SQLSpec) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    OpenTelemetryMetrics(spec, provider)
    use(spec)
    with spec.get_connection("primary"):
        metrics = collected(reader)
    units = {name: metric.unit for name, metric in metrics.items()}
    assert units == {
        "db.client.connection.count": "{connection}",
        "db.client.connection.idle.max": "{connection}",
        "db.client.connection.idle.min": "{connection}",
        "db.client.connection.max": "{connection}",
        "db.client.connection.pending_requests": "{request}",
        "db.client.connection.timeouts": "{timeout}",
        "db.client.connection.create_time": "s",
        "db.client.connection.wait_time": "s",
        "db.client.connection.use_time": "s",
        "sqlspec.pool.oldest_checkout": "s",
        "sqlspec.pool.refused": "{request}",
        "sqlspec.pool.failed_connects": "{attempt}",
        "sqlspec.pool.dropped": "{connection}",
    }
    pool = ("db.client.connection.pool.name", "primary")
    state = "db.client.connection.state"
    assert points(metrics["db.client.connection.count"])[pool, (state, "used")].value == 1
    assert points(metrics["db.client.connection.timeouts"])[pool,].value == 1
    created = points(metrics["db.client.connection.create_time"])[pool,]
    assert created.count == 3
    assert created.explicit_bounds == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
    assert points(metrics["db.client.connection.use_time"])[pool,].count == 3
    # what was told once is not told again
    assert points(collected(reader)["db.client.connection.use_time"])[pool,].count == 4
    assert points(collected(reader)["db.client.connection.use_time"])[pool,].count == 4
    provider.shutdown()


def test_several_registries_are_told_to_one_provider_and_each_of_them_once() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with SQLSpec() as one, SQLSpec() as two:
        for spec in (one, two, two):
            OpenTelemetryMetrics(spec, provider)
        for spec, name in ((one, "one"), (two, "two")):
            spec.register_config(SQLiteConfig(database=":memory:"), name=name)
            spec.create_connection(name).close()
        metrics = collected(reader)
        names = {("db.client.connection.pool.name", name) for name in ("one", "two")}
        used = points(metrics["db.client.connection.use_time"])
        assert {pool: point.count for (pool,), point in used.items()} == dict.fromkeys(names, 1)
        assert {pool for (pool,) in points(metrics["db.client.connection.max"])} == names
    provider.shutdown()


def test_both_exporters_know_all_durations(spec: SQLSpec) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    OpenTelemetryMetrics(spec, provider)
    OpenTelemetryMetrics(spec, MeterProvider([other := InMemoryMetricReader()]))
    use(spec)
    for known in (reader, other):
        assert sum(point.count for point in points(collected(known)["db.client.connection.use_time"]).values()) == 3
    provider.shutdown()


FORKED = """
import os
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from sqlspec import SQLSpec
from sqlspec.adapters import SQLiteConfig
from sqlspec.telemetry import OpenTelemetryMetrics
from tests.test_telemetry import collected, points

def used():
    return [point.count for point in points(collected(reader)["db.client.connection.use_time"]).values()]

def use(times):
    for _ in range(times):
        spec.create_connection("primary").close()

spec, reader = SQLSpec(), InMemoryMetricReader()
spec.register_config(SQLiteConfig(database=":memory:"), name="primary")
OpenTelemetryMetrics(spec, MeterProvider([reader]))
use(3)
assert used() == [3]
if os.fork() == 0:
    use(1)
    # the SDK keeps what it was told before the fork
    assert used() == [4], used()
    use(1)
    assert used() == [5], used()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


def test_a_child_tells_its_durations_from_the_first_look_on() -> None:
    run(FORKED, forks=True)


def test_each_call_has_a_span_and_what_is_no_statement_of_sqlalchemys_has_none(spec: SQLSpec) -> None:
    """As the page of OpenTelemetry says in its table."""
    with recorded_spans() as spans:
        with spec.get_session("primary") as session:
            session.execute("CREATE TEMPORARY TABLE spans (n INTEGER)")
            session.execute(sa.text("SELECT 1 WHERE 1 = :one"), {"one": 1})
            with session.begin_nested():
                session.execute_many("INSERT INTO spans VALUES (?)", [(number,) for number in range(3000)])
            session.load_rows("spans", [(1,), (2,)])
            session.rollback()
        with spec.get_connection("primary") as connection:
            connection.cursor().execute("SELECT 2")
        with spec.get_engine("primary").connect() as opened:
            opened.execute(sa.text("SELECT 3"))
    names = [span.name.split()[0] for span in spans.get_finished_spans()]
    assert names == ["CREATE", "SELECT", "SAVEPOINT", "INSERT", "RELEASE", "connect", "SELECT"]
