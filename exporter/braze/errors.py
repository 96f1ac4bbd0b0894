"""Why a request to Braze failed. Pure but for the log.

BrazeError          a request failed; `reason` says how, one of Reason
├── RateLimited     429; `wait` is how long Braze asks to wait, where it says so
└── PayloadError    the response is not of the documented form
"""

from __future__ import annotations

import logging
import traceback
from enum import StrEnum

logger = logging.getLogger(__name__)

UNEXPECTED = "the response cannot be read or shown, see the traceback"

_FRAMES = 20


class Reason(StrEnum):
    """Why a request or a poll failed: the closed list of the label `reason`."""

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
    """A request that brought nothing usable; the text is safe to log."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class RateLimited(BrazeError):
    """Braze refuses requests for a while; `wait` in seconds, None where it does not say how long."""

    def __init__(self, detail: str, wait: float | None) -> None:
        super().__init__(Reason.RATE_LIMITED, detail)
        self.wait = wait


def log_traceback(campaign: tuple[str, str], error: Exception) -> None:
    """Log where an unexpected exception was raised, without its text, which may hold parts of the response."""
    places = "".join(traceback.format_tb(error.__traceback__, -_FRAMES))
    logger.error(
        "a response cannot be read or shown",
        extra={
            "workspace": campaign[0],
            "campaign_id": campaign[1],
            "error": type(error).__name__,
            "traceback": places,
        },
    )
