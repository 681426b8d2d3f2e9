"""What pools tell monitoring: metrics for OpenTelemetry and Prometheus."""

from sqlspec.telemetry.opentelemetry import OpenTelemetryMetrics
from sqlspec.telemetry.prometheus import PrometheusMetrics

__all__ = ["OpenTelemetryMetrics", "PrometheusMetrics"]
