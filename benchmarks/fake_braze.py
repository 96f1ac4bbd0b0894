"""A Braze that serves data_series as fast as Python can, to measure its clients: any campaign, no history.

Each answer has other numbers on its last day than all those before it, and each campaign variations of its own, so that
nobody can keep an answer. Days that are over do not change. GET /answers says how many there were, and how many seconds
passed from the first to the last. The URL goes to stdout.
"""

import argparse
import asyncio
import json
import random
import re
import time
from collections.abc import Sequence
from email.utils import formatdate
from itertools import cycle
from pathlib import Path

PAYLOADS = Path(__file__).parents[1] / "tests/data/payloads"

_FORMS = 97  # of the answer, each with other numbers on the last day
_RECIPIENTS = b"77777777"  # stands for the number of unique recipients, which no two answers share
_FIRST = 10_000_000
_VARIATION = b"1f0e3dad"  # how the ids of the variations in the payloads begin
_CAMPAIGN = re.compile(rb"campaign_id=([0-9a-f]{8})")
_LIMIT = 50_000  # requests a minute, as Braze counts them


class Answers:
    """The responses, and the requests counted."""

    def __init__(self, payload: str, days: int) -> None:
        self._count = 0
        self._first = self._last = time.monotonic()
        given = json.loads((PAYLOADS / f"{payload}.json").read_text(encoding="utf-8"))
        data = [{**day, "time": f"2026-03-{date:02}"} for date, day in zip(range(1, days + 1), cycle(given["data"]))]
        numbers = random.Random(payload)  # noqa: S311 - numbers of a benchmark
        over = [_varied(day, numbers) for day in data[:-1]]
        self._bodies = [_body(given, over, data[-1], numbers) for _ in range(_FORMS)]

    def answer(self, head: bytes) -> bytes:
        """Return the response, head and body, to a request's head."""
        campaign = _CAMPAIGN.search(head)
        if campaign is None:
            about = b"%d %.3f" % (self._count, self._last - self._first)
            return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(about), about)
        self._last = time.monotonic()
        self._first = self._first if self._count else self._last
        self._count += 1
        body = self._bodies[self._count % _FORMS]
        body = body.replace(_VARIATION, campaign[1]).replace(_RECIPIENTS, b"%d" % (_FIRST + self._count))
        now = time.time()
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: %s\r\nX-RateLimit-Limit: %d\r\n"
            b"X-RateLimit-Remaining: %d\r\nX-RateLimit-Reset: %d\r\nContent-Length: %d\r\n\r\n%s"
        ) % (
            formatdate(now, usegmt=True).encode(),
            _LIMIT,
            _LIMIT - self._count % _LIMIT,
            now // 60 * 60 + 60,
            len(body),
            body,
        )


class Connection(asyncio.Protocol):
    """One connection, kept as long as the client wants; a request has no body."""

    def __init__(self, answers: Answers, latency: float) -> None:
        self._answers = answers
        self._latency = latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport for the responses."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Respond to every complete request, after the latency."""
        *heads, self._received = (self._received + data).split(b"\r\n\r\n")
        for head in heads:
            answer = self._answers.answer(head)
            if self._latency and b"campaign_id=" in head:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)


def _body(payload: dict[str, object], over: Sequence[object], last: object, numbers: random.Random) -> bytes:
    """Return the payload with the days that are over, and a last one with other numbers, as compact as Braze's."""
    data = [*over, _varied(last, numbers, recipients=int(_RECIPIENTS))]
    return json.dumps({**payload, "data": data}, separators=(",", ":")).encode()


def _varied(value: object, numbers: random.Random, *, recipients: int | None = None, name: str = "") -> object:
    """Return the same with other numbers; `recipients` are all numbers of unique ones."""
    if isinstance(value, dict):
        return {key: _varied(inner, numbers, recipients=recipients, name=key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_varied(inner, numbers, recipients=recipients) for inner in value]
    if name == "unique_recipients" and recipients is not None:
        return recipients
    if isinstance(value, float):
        return round(numbers.uniform(0, 10_000), 2)
    return numbers.randrange(100_000) if isinstance(value, int) else value


async def main() -> None:
    """Print the address, and serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--payload", required=True, help="the name of a file in tests/data/payloads, without .json")
    parser.add_argument("--days", type=int, required=True, help="so many days, its own over and over")
    parser.add_argument("--latency", type=float, default=0, help="seconds from a request to its answer")
    flags = parser.parse_args()
    answers = Answers(flags.payload, flags.days)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(answers, flags.latency), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
