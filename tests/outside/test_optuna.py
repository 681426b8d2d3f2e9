"""Optuna keeps the trials of many threads through our pool."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from sqlspec.pool import FairQueuePool
from tests.outside.packages import need

optuna = need("optuna")
searching = need("tests.outside.optuna_search")

TRIALS = 32


@pytest.mark.parametrize(
    "options", [{}, {"pool_size": 2, "max_overflow": 0}], ids=["its own pool size", "fewer connections than threads"]
)
def test_eight_threads_keep_every_trial(options: dict[str, Any], plugin_url: Callable[[str], str]) -> None:
    study, storage = searching.search(plugin_url("psycopg2"), TRIALS, threads=8, **options)
    pool = storage.engine.pool
    try:
        assert type(pool) is FairQueuePool
        finished = {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
        trials = study.get_trials()
        assert [trial.number for trial in trials] == list(range(TRIALS))
        assert {trial.state for trial in trials} <= finished
        assert all(trial.user_attrs["kind"] == trial.params["kind"] for trial in trials)
        stats = pool.stats()
        assert (stats.checked_out, stats.timeouts) == (0, 0)
        assert stats.total <= pool.size() + max(0, pool._max_overflow)
    finally:
        storage.engine.dispose()


def test_a_storage_that_another_process_unpickles_has_our_pool_as_well(plugin_url: Callable[[str], str]) -> None:
    _, storage = searching.search(plugin_url("psycopg2"), 2, threads=1)
    copy = pickle.loads(pickle.dumps(storage))  # noqa: S301  # our own
    try:
        assert type(copy.engine.pool) is FairQueuePool
        assert len(optuna.load_study(study_name="search", storage=copy).trials) == 2
    finally:
        storage.engine.dispose()
        copy.engine.dispose()
