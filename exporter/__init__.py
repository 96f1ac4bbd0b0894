"""braze-exporter: Braze's campaign analytics as Prometheus metrics."""

__version__ = "0.1.0"
