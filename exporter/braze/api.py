"""One kind of request to Braze as a value: what the client, the counters and the rate limiters need to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from exporter.config import Poll, Workspace

Parsed_co = TypeVar("Parsed_co", covariant=True)


@dataclass(frozen=True, slots=True)
class RateLimit:
    """One of Braze's rate limits; APIs with the same one share a rate limiter."""

    name: str
    requests_per_minute: Callable[[Workspace], float]


@dataclass(frozen=True, slots=True)
class Api(Generic[Parsed_co]):
    """One of Braze's APIs; `name` is the value of the label `api`.

    `target` returns path and query of the request for an id. `parse` reads a decoded response, of which it keeps at
    most a number of samples, and raises PayloadError.
    """

    name: str
    rate_limit: RateLimit
    target: Callable[[str, Poll], str]
    parse: Callable[[object, int], Parsed_co]
