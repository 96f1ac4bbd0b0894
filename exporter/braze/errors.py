"""Errors of requests to Braze.

BrazeError          a request failed; `reason` is one of Reason
└── RateLimited     429; `wait` is how long Braze asks to wait, if it does
PayloadError        a response is not of the documented form; the client makes a BrazeError of it
"""

from __future__ import annotations

import logging
import traceback
from enum import StrEnum

logger = logging.getLogger(__name__)

UNEXPECTED = "the response cannot be read or shown, see the traceback"

_FRAMES = 20


class Reason(StrEnum):
    """Reasons of failed requests and polls: the values of the label `reason`."""

    TIMEOUT = "timeout"
    CONNECTION = "connection"
    TLS = "tls"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    BAD_REQUEST = "bad_request"
    NOT_FOUND = "not_found"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    REDIRECT = "redirect"
    TOO_LARGE = "too_large"
    BAD_PAYLOAD = "bad_payload"


class BrazeError(Exception):
    """A request without a usable response; the text is safe to log."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class RateLimited(BrazeError):
    """Status code 429; `wait` is the seconds that Braze asks to wait, None where it names none."""

    def __init__(self, detail: str, wait: float | None) -> None:
        super().__init__(Reason.RATE_LIMITED, detail)
        self.wait = wait


class PayloadError(ValueError):
    """The response as a whole is not of the documented form; the text says what was expected and what came."""


def log_traceback(workspace: str, campaign_id: str, error: Exception) -> None:
    """Log where an unexpected exception was raised, without its text, which may hold parts of the response."""
    places = "".join(traceback.format_tb(error.__traceback__, -_FRAMES))
    where = {"workspace": workspace, "campaign_id": campaign_id}
    logger.error(
        "a response cannot be read or shown", extra={**where, "error": type(error).__name__, "traceback": places}
    )
