"""Metrics for Prometheus: of one process, or of all workers of a server."""

from __future__ import annotations

import atexit
import itertools
import os
import struct
import threading
import time
import weakref
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from sqlspec.exceptions import ConfigError
from sqlspec.pool import FairQueuePool, apart_from_forks, look_after, tell_of_forks
from sqlspec.pool.stats import BUCKETS
from sqlspec.registry import SQLSpec
from sqlspec.telemetry.figures import COUNTS, GAUGES, POOL, TIMINGS, Figure, Figures, Readings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

__all__ = ["PrometheusMetrics"]

# Seconds between two times that a worker tells the others.
_INTERVAL = 1.0
# Seconds until a file that another worker creates has its size.
_MOMENT = 0.01


class PrometheusMetrics:
    """Tell Prometheus the figures of a registry's pools.

    They come with all that is in the registry of prometheus_client, or by `render`. Where
    ``PROMETHEUS_MULTIPROC_DIR`` is set, each worker writes its figures there every second and at its end, and they add
    up.
    Pools that come later are told as well. Nothing is measured on the way of a checkout.

    Args:
        spec: the registry of configs; those whose ``instrumentation.metrics`` is off are left out.
        registry: that of prometheus_client; default: its global one.

    Raises:
        ConfigError: prometheus-client is not installed.
    """

    def __init__(self, spec: SQLSpec, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY
        except ModuleNotFoundError:
            raise ConfigError("prometheus_client is not installed: pip install 'sqlspec-pool[prometheus]'") from None
        self._registry = REGISTRY if registry is None else registry
        readings = Readings(spec)
        self._shared = _Shared(readings, self._registry) if "PROMETHEUS_MULTIPROC_DIR" in os.environ else None
        if self._shared is None:
            self._registry.register(_Collector(readings))

    def render(self) -> tuple[bytes, str]:
        """Return a page with all metrics of the registry, or of all workers, and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        if self._shared is None:
            return generate_latest(self._registry), CONTENT_TYPE_LATEST
        self._shared.keep_house()
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]  # it has no types
        return _read_whole(partial(generate_latest, together)), CONTENT_TYPE_LATEST


def _read_whole(read: Callable[[], bytes]) -> bytes:
    # A file that a worker has just created is empty for a moment, which prometheus_client's reader takes for an error.
    reading = Retrying(
        retry=retry_if_exception_type(struct.error),
        wait=wait_fixed(_MOMENT),
        stop=stop_after_delay(_INTERVAL),
        reraise=True,
    )
    return reading(read)


def _name(figure: Figure) -> str:
    return _translated(figure.name) + ("_seconds" if figure.unit == "s" else "")


def _translated(name: str) -> str:
    return name.replace(".", "_")


def _labels(figure: Figure) -> list[str]:
    return [_translated(label) for label in (POOL, figure.label) if label is not None]


def _values(figure: Figure, figures: Figures) -> Iterator[tuple[list[str], float]]:
    for value, number in figure.read(figures).items():
        yield [figures.pool, *([] if figure.label is None else [str(value)])], number


def _write_last(shared: weakref.ref[_Shared]) -> None:
    known = shared()
    if known is not None:
        known.write(is_last=True)


class _Collector:
    """Read the figures when Prometheus asks."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    def describe(self) -> list[Metric]:
        """Return what there may be, without figures, so that a registry refuses it twice."""
        return self._metrics([])

    def collect(self) -> list[Metric]:
        """Return all figures of this moment."""
        return self._metrics(list(self._readings))

    def _metrics(self, all_figures: list[Figures]) -> list[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        metrics: list[Any] = []
        for kind, described in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTS)):
            for figure in described:
                metric = kind(_name(figure), figure.description, labels=_labels(figure))
                for figures in all_figures:
                    for labels, number in _values(figure, figures):
                        metric.add_metric(labels, number)
                metrics.append(metric)
        for timing, (name, description) in TIMINGS.items():
            histogram = HistogramMetricFamily(f"{_translated(name)}_seconds", description, labels=[_translated(POOL)])
            for figures in all_figures:
                counts = itertools.accumulate(figures.counts.get(f"{timing} {bound}", 0) for bound in BUCKETS)
                bounds = ["+Inf" if bound == float("inf") else str(bound) for bound in BUCKETS]
                histogram.add_metric(
                    [figures.pool], list(zip(bounds, counts, strict=True)), figures.counts.get(f"{timing} sum", 0)
                )
            metrics.append(histogram)
        return metrics


class _Shared:
    """Write the figures of this worker where the others, and who asks any of them, find them."""

    def __init__(self, readings: Readings, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._readings = readings
        self._written: Counts[tuple[str, ...]] = Counts()
        # the gauges and their labels, with what they were set to
        self._shown: dict[tuple[Any, ...], float] = {}
        self._gauges = {
            figure: Gauge(
                _name(figure),
                figure.description,
                _labels(figure),
                registry=registry,
                # of workers' numbers the sum, of their durations the longest
                multiprocess_mode="livemax" if figure.unit == "s" else "livesum",
            )
            for figure in GAUGES
        }
        self._counters = {
            figure: Counter(_name(figure), figure.description, _labels(figure), registry=registry) for figure in COUNTS
        }
        self._histograms = {
            timing: Histogram(
                f"{_translated(name)}_seconds",
                description,
                [_translated(POOL)],
                registry=registry,
                buckets=BUCKETS,
            )
            for timing, (name, description) in TIMINGS.items()
        }
        FairQueuePool.keep_durations()
        self.start_over()
        tell_of_forks(self)
        # a worker that ends has not told its last second, or anything, where it was short
        atexit.register(_write_last, weakref.ref(self))

    def start_over(self) -> None:
        """Begin to write, in this process; what a parent has written is its own."""
        # Guards _written and _shown, so that nothing is counted twice by the housekeeping thread and who asks for a
        # page. Figures are read under it, for which pools take their own locks, and mapped memory is written.
        self._lock = threading.Lock()
        self._written.clear()
        self._shown.clear()
        look_after(self, _INTERVAL)

    def keep_house(self) -> float:
        """Write the figures of this moment; return the seconds to the next time."""
        # before that: a disk that is full, or a folder that is not there yet, must not end it for good
        look_after(self, _INTERVAL)
        self.write()
        return _INTERVAL

    def write(self, *, is_last: bool = False) -> None:
        """Write the figures of this moment; the last ones of a process without its connections, which end with it."""
        # prometheus_client has locks that are the process's, and a child forked meanwhile could never take them
        apart_from_forks(time.sleep, partial(self._write, is_last))

    def _write(self, is_last: bool) -> None:
        with self._lock:
            self._write_locked(is_last)

    def _write_locked(self, is_last: bool) -> None:
        # of a pool that has ended, nothing is told any more: what its gauges showed would stay
        self._shown = dict.fromkeys(self._shown, 0)
        for figures in self._readings:
            for figure, gauge in self._gauges.items():
                self._shown |= {(gauge, *labels): number for labels, number in _values(figure, figures)}
            for figure, counter in self._counters.items():
                for labels, number in _values(figure, figures):
                    key = (figure.name, *labels)
                    counter.labels(*labels).inc(max(0, number - self._written[key]))
                    self._written[key] = int(number)
        if is_last:
            # few servers tell prometheus_client which process has ended
            self._shown = dict.fromkeys(self._shown, 0)
        for (gauge, *labels), number in self._shown.items():
            gauge.labels(*labels).set(number)
        for pool, durations in self._readings.durations():
            for timing, seconds in durations.items():
                for one in seconds:
                    self._histograms[timing].labels(pool).observe(one)
