"""The limit on open files, raised as far as possible, and how clients and polls share what it allows."""

from __future__ import annotations

import resource
from dataclasses import dataclass

OTHERS = 24
"""Open files for all else: streams, listening sockets, the event loop, files while they are read."""

PER_REQUEST = 2
"""Open files of a request to Braze: its connection, and the copy of it by which the deadline ends it."""

FEWEST_CONNECTIONS = 16
"""Connections that each server has at least, however many polls there are."""


class TooFewOpenFilesError(Exception):
    """The limit on open files leaves too little for work, in words for a person."""


@dataclass(frozen=True, slots=True)
class Shares:
    """The largest number of connections of each server, and of requests at once for each workspace."""

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
    """Return what of the wanted `connections` and `concurrency` a limit on open files allows. Pure.

    Polls get what they want while each server keeps the `fewest` connections; connections get the rest.

    Raises:
        TooFewOpenFilesError: there is not one request at once for each workspace.

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
    """Return the limit on open files that allows all that is wanted. Pure."""
    return OTHERS + servers * connections + PER_REQUEST * workspaces * concurrency


def raised_limit(needed: int) -> int:
    """Raise the process's soft limit on open files to what is needed, as far as possible; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return needed
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
