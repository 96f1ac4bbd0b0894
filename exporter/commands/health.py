"""`braze-exporter health`: queries a running exporter's health, for a container's health check.

It runs every few seconds, so it loads nothing of the exporter, only what it needs of the standard library.
"""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import platform
import ssl
import sys
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from exporter import PORT, __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from urllib.parse import SplitResult

_DEFAULT_URL = f"http://127.0.0.1:{PORT}/-/healthy"

TIMEOUT = 3.0
"""Seconds for the whole request, from name resolution to the status code."""


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status: 0 after a response with status 200, else 1."""
    url = urlsplit(_parser().parse_args(arguments).url)
    trouble = _trouble(url, TIMEOUT)
    if trouble is None:
        return 0
    print(f"{url.geturl()}: {trouble}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="braze-exporter health",
        description="Queries a running exporter's health. The exit status is 0 after status code 200, else 1.",
        allow_abbrev=False,
    )
    version = f"braze-exporter, version {__version__} (python {platform.python_version()})"
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    parser.add_argument(
        "--url",
        type=_url,
        default=_DEFAULT_URL,
        help="URL to request (default: %(default)s)",
    )
    return parser


def _url(text: str) -> str:
    try:
        url = urlsplit(text)
        usable = url.scheme in {"http", "https"} and url.hostname and url.port != 0 and text.isprintable()
    except ValueError:
        usable = False
    if not usable or not text.isascii() or " " in text:
        raise argparse.ArgumentTypeError(f"expected a URL such as {_DEFAULT_URL}")
    if url.username is not None:
        raise argparse.ArgumentTypeError(
            "expected a URL without a user; where pages need one, request the address of --web.health.listen-address"
        )
    return text


def _trouble(url: SplitResult, timeout: float) -> str | None:
    """Return why there is no response with status 200 within `timeout` seconds, or None.

    A thread sends the request: nothing else ends name resolution, or a response that arrives byte by byte.
    """
    troubles: list[str | None] = []
    requesting = threading.Thread(target=lambda: troubles.append(_request(url, timeout)), daemon=True)
    requesting.start()
    requesting.join(timeout)
    return troubles[0] if troubles else f"no response within {timeout:g} seconds"


def _request(url: SplitResult, timeout: float) -> str | None:
    """Send the request directly: no proxy, no netrc, no redirect followed."""
    connection = _connection(url, timeout)
    try:
        connection.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""))
        status = connection.getresponse().status
    except (OSError, UnicodeError, http.client.HTTPException) as error:
        return _words(error, timeout)
    finally:
        connection.close()
    return None if status == HTTPStatus.OK else f"status {status}"


def _words(error: Exception, timeout: float) -> str:
    match error:
        case TimeoutError():
            return f"no response within {timeout:g} seconds"
        case ssl.SSLCertVerificationError():
            return f"the certificate is not trusted: {error.verify_message}"
        case ssl.SSLError():
            return f"TLS failed: {error.reason or type(error).__name__}"
        case OSError():
            return f"no connection: {error.strerror or type(error).__name__}"
        case UnicodeError():
            return "no connection: the name cannot be looked up"
        case _:
            return f"the response is not HTTP: {type(error).__name__}"


def _connection(url: SplitResult, timeout: float) -> http.client.HTTPConnection:
    host = url.hostname or ""
    if url.scheme == "http":
        return http.client.HTTPConnection(host, url.port, timeout=timeout)
    context = ssl.create_default_context()
    if _is_loopback(host):  # a certificate is made out to the name that others use, and nobody stands between
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, url.port, timeout=timeout, context=context)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
