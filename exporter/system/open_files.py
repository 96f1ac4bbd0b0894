"""The limit on open files: raising it, and sharing it between clients and polls."""

from __future__ import annotations

import resource
from dataclasses import dataclass

OTHERS = 24
"""Open files for everything else: streams, listening sockets, the event loop, files that are read."""

PER_REQUEST = 2
"""Open files per request to Braze: its connection, and a duplicate by which the deadline closes it."""

FEWEST_CONNECTIONS = 16
"""Minimum number of connections per server, however many polls there are."""


class TooFewOpenFilesError(Exception):
    """The limit on open files is too low to work, in words for a person."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Maximum number of connections per server, and of requests in flight per workspace."""

    connections: int
    concurrency: int


def share(
    limit: int,
    *,
    servers: int,
    connections: int,
    workspaces: int,
    concurrency: int,
    fewest: int = FEWEST_CONNECTIONS,
) -> Shares:
    """Return how many of the wanted `connections` and `concurrency` a limit on open files allows. Pure.

    Each server has the `fewest` connections first, then polls get what they want, and connections the rest.

    Raises:
        TooFewOpenFilesError: it does not allow one request per workspace.

    """
    fewest = min(connections, fewest)
    each = PER_REQUEST * workspaces
    least = OTHERS + servers * fewest + each
    if limit < least:
        raise TooFewOpenFilesError(
            f"the limit on open files is {limit}, expected at least {least}: "
            "raise it, for example with `ulimit -n` or LimitNOFILE= of systemd"
        )
    concurrency = min(concurrency, (limit - OTHERS - servers * fewest) // each)
    return Shares(min(connections, (limit - OTHERS - each * concurrency) // servers), concurrency)


def wanted(*, servers: int, connections: int, workspaces: int, concurrency: int) -> int:
    """Return the limit on open files that allows everything wanted. Pure."""
    return OTHERS + servers * connections + PER_REQUEST * workspaces * concurrency


def raised_limit(needed: int) -> int:
    """Raise the process's soft limit on open files towards `needed`, as far as possible; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return needed
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
