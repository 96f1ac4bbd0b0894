"""braze-exporter: Braze's campaign analytics as Prometheus metrics."""

__version__ = "0.1.0"

PORT = 10105
"""The port that the exporter listens on by default."""
