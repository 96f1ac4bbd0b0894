"""Advice for each reason of a failure: its usual cause and its remedy, in words for people. Pure."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from exporter.braze.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping


class Advice(NamedTuple):
    """Usual cause of a failure, and its remedy."""

    cause: str
    remedy: str


ADVICE: Mapping[Reason, Advice] = MappingProxyType(
    {
        Reason.UNAUTHORIZED: Advice(
            "the key is wrong, or belongs to another instance",
            "compare instance with the address of your dashboard, make a new key",
        ),
        Reason.FORBIDDEN: Advice(
            "the key lacks campaigns.data_series, or does not allow this machine's address",
            "make a new key: its permissions cannot be changed; look at its list of addresses",
        ),
        Reason.BAD_REQUEST: Advice(
            "Braze does not know the campaign by this id",
            "use the API identifier, of a campaign in this workspace",
        ),
        Reason.NOT_FOUND: Advice("the address is not that of Braze's REST API", "look at endpoint"),
        Reason.RATE_LIMITED: Advice(
            "other users of the workspace's limit, or too many requests a minute",
            "lower requests_per_minute or raise interval; braze_api_rate_limit_remaining shows what is left",
        ),
        Reason.SERVER_ERROR: Advice("Braze has a problem", "wait; the exporter retries"),
        Reason.TIMEOUT: Advice(
            "no complete response within poll.timeout",
            "look at braze_api_request_duration_seconds and the network; raise poll.timeout",
        ),
        Reason.CONNECTION: Advice(
            "no connection: name, route, firewall or proxy",
            "try curl from the same machine; HTTPS_PROXY and NO_PROXY are respected",
        ),
        Reason.TLS: Advice(
            "the certificate is not trusted, often that of a company's proxy",
            "name the company's CA bundle in REQUESTS_CA_BUNDLE",
        ),
        Reason.REDIRECT: Advice(
            "something in between, or a wrong address; redirects are not followed", "look at endpoint and proxies"
        ),
        Reason.TOO_LARGE: Advice("a response of more than 16 MiB, or of a million values", "lower poll.days"),
        Reason.BAD_PAYLOAD: Advice(
            "the response is not what Braze documents, for instance a proxy's page",
            "look at the log, which describes the response",
        ),
    }
)
"""Also in docs/troubleshooting.md."""
