"""PEP 249: what the bare driver passes of the compliance suite, our connections pass as well."""

from __future__ import annotations

import gc
import unittest
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

import dbapi20

from sqlspec import SQLSpec
from tests.conftest import Database


def passes(driver: Any, arguments: dict[str, Any]) -> tuple[set[str], dict[str, str]]:
    """Return the names of the tests that pass, and the others with what they raised."""

    class Compliance(dbapi20.DatabaseAPI20Test):  # type: ignore[misc]  # the suite is not typed
        connect_kw_args = arguments

        def tearDown(self) -> None:
            # The suite's own leaves connections open when a test fails in the middle.
            connection = self._connect()
            try:
                cursor = connection.cursor()
                for name in (f"{self.table_prefix}booze", f"{self.table_prefix}barflys"):
                    cursor.execute(f"DROP TABLE IF EXISTS {name}")
                connection.commit()
            finally:
                connection.close()

    Compliance.driver = driver
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Compliance)
    names = {test._testMethodName for test in suite}
    result = unittest.TestResult()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite does what drivers warn about
        suite.run(result)
        # connections that it left open go here, where Python may warn of them
        gc.collect()
    troubled = {test._testMethodName: text for test, text in [*result.failures, *result.errors]}
    return names - troubled.keys(), troubled


def wrapped(module: ModuleType, spec: SQLSpec) -> SimpleNamespace:
    """Return the driver's module with our connections."""
    return SimpleNamespace(**{**vars(module), "connect": lambda: spec.create_connection("primary", timeout=5)})


def test_our_connections_pass_what_the_driver_passes(spec: SQLSpec, database: Database, tmp_path: Any) -> None:
    module = spec.get_engine("primary").dialect.loaded_dbapi
    arguments = {"database": str(tmp_path / "bare.db")} if database.server is None else database.server.parameters()
    bare, _ = passes(module, arguments)
    ours, troubled = passes(wrapped(module, spec), {})
    assert len(bare) >= 20
    assert sorted(bare - ours) == [], "\n".join(troubled[name] for name in sorted(bare - ours))
