"""A search for the best parameters, whose trials Optuna keeps in a database. It knows nothing of sqlspec."""

from __future__ import annotations

from typing import Any

import optuna


def distance(trial: optuna.Trial) -> float:
    """Return how far a trial is from the best that could be."""
    x = trial.suggest_float("x", -10, 10)
    step = trial.suggest_int("step", 1, 5)
    kind = trial.suggest_categorical("kind", ["near", "far"])
    trial.set_user_attr("kind", kind)
    found = abs(x - 2) * step + (5 if kind == "far" else 0)
    trial.report(found, step=0)
    if trial.should_prune():
        raise optuna.TrialPruned
    return found


def search(url: str, trials: int, threads: int, **engine_options: Any) -> tuple[optuna.Study, Any]:
    """Try so many parameters in so many threads; return what was found, and where it is kept."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(url, engine_kwargs=engine_options)
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        sampler=optuna.samplers.RandomSampler(seed=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=8),
    )
    study.optimize(distance, n_trials=trials, n_jobs=threads)
    return study, storage
