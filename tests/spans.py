"""What SQLAlchemy's own instrumentation tells of statements."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy.ext.asyncio  # noqa: F401  # before it is instrumented
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@contextlib.contextmanager
def recorded_spans() -> Iterator[InMemorySpanExporter]:
    """Record the spans of all engines that are built in the ``with`` block."""
    exporter, tracers, instrumentor = InMemorySpanExporter(), TracerProvider(), SQLAlchemyInstrumentor()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor.instrument(skip_dep_check=True, tracer_provider=tracers)
    try:
        yield exporter
    finally:
        instrumentor.uninstrument()
