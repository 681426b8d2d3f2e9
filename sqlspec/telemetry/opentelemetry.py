"""Metrics for OpenTelemetry, by its conventions for database clients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlspec.exceptions import ConfigError
from sqlspec.pool import FairQueuePool
from sqlspec.pool.stats import BUCKETS
from sqlspec.registry import SQLSpec
from sqlspec.telemetry.figures import COUNTS, GAUGES, POOL, TIMINGS, Figure, Readings

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

__all__ = ["OpenTelemetryMetrics"]

# Provider to what is told it, the class standing for the global one: a provider that is asked for an instrument twice
# gives the first one again, which knows nothing of what the second one would have told.
_told: WeakKeyDictionary[Any, list[Readings]] = WeakKeyDictionary()


class OpenTelemetryMetrics:
    """Tell OpenTelemetry the figures of a registry's pools, whenever it collects them.

    Pools that come later are told as well. Several registries may be told to one provider; let their pools have names
    of their own. Nothing is measured on the way of a checkout. Spans of statements are made by SQLAlchemy's own
    instrumentation, which takes the engines of `SQLSpec.get_engine`.

    Args:
        spec: the registry; configs whose ``instrumentation.metrics`` is off are left out.
        meter_provider: default: the global one.

    Raises:
        ConfigError: opentelemetry-api is not installed.
    """

    def __init__(self, spec: SQLSpec, meter_provider: MeterProvider | None = None) -> None:
        try:
            from opentelemetry.metrics import get_meter
        except ModuleNotFoundError:
            raise ConfigError("OpenTelemetry is not installed: pip install 'sqlspec-pool[opentelemetry]'") from None
        readings = Readings(spec)
        self._readings = _told.setdefault(OpenTelemetryMetrics if meter_provider is None else meter_provider, [])
        if all(known._spec is not spec for known in self._readings):
            self._readings.append(readings)
        if self._readings[0] is readings:
            self._create_instruments(get_meter("sqlspec", version("sqlspec-pool"), meter_provider))

    def _create_instruments(self, meter: Meter) -> None:
        self._histograms = {
            name: meter.create_histogram(told, "s", description, explicit_bucket_boundaries_advisory=list(BUCKETS[:-1]))
            for name, (told, description) in TIMINGS.items()
        }
        FairQueuePool.keep_durations()
        for figure in GAUGES:
            meter.create_observable_up_down_counter(
                figure.name, [self._observing(figure)], figure.unit, figure.description
            )
        for figure in COUNTS:
            meter.create_observable_counter(figure.name, [self._observing(figure)], figure.unit, figure.description)

    def _observing(self, figure: Figure) -> Callable[[CallbackOptions], Iterator[Observation]]:
        def observe(options: CallbackOptions) -> Iterator[Observation]:
            from opentelemetry.metrics import Observation

            if figure is GAUGES[0]:
                # no instrument is a histogram that is asked: they are told in time for the same collection
                self._tell_durations()
            for figures in itertools.chain(*self._readings):
                for value, number in figure.read(figures).items():
                    label = {} if figure.label is None else {figure.label: str(value)}
                    yield Observation(number, {POOL: figures.pool, **label})

        return observe

    def _tell_durations(self) -> None:
        for pool, durations in itertools.chain(*(readings.durations() for readings in self._readings)):
            for name, seconds in durations.items():
                for one in seconds:
                    self._histograms[name].record(one, {POOL: pool})
