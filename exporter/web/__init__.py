"""Serving over HTTP: connections, users, cached bodies and pages."""
