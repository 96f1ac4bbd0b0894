"""Limits on what a client of the web server may use."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Maximum number of connections, and the timeouts of a request and of its response in seconds."""

    connections: int = 1000
    header_timeout: float = 10
    write_timeout: float = 60
