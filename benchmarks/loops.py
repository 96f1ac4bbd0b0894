"""Loops that only send requests, one for each HTTP library, for comparison with an exporter that also decodes.

Prints the requests in the measured time, the seconds of CPU and the seconds that passed.
"""

import argparse
import http.client
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from itertools import cycle
from urllib.parse import urlsplit

import requests
import urllib3

_TIMEOUT = 30
_HEADERS = {"Authorization": "Bearer key-of-the-benchmark"}
_CAMPAIGNS = 100
_WARM_UP = 0.3  # seconds that do not count

PREPARED = "prepared requests"
"""The loop of a program that uses requests well."""

Ask = Callable[[str], object]
"""Requests one path with its query and reads the response."""


def main() -> None:
    """Send requests in a number of threads for a time, and print the rate and the CPU."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    flags = parser.parse_args()
    targets = [f"/campaigns/data_series?campaign_id={uuid.uuid4()}&length=3" for _ in range(_CAMPAIGNS)]
    counts = [0] * flags.threads

    def run(place: int) -> None:
        ask = LOOPS[flags.loop](flags.url, targets)
        for target in cycle(targets):
            ask(target)
            counts[place] += 1

    for place in range(flags.threads):
        threading.Thread(target=run, args=(place,), daemon=True).start()
    time.sleep(_WARM_UP + flags.threads / 200)
    answers, cpu, started = sum(counts), time.process_time(), time.monotonic()
    time.sleep(flags.seconds)
    print(sum(counts) - answers, time.process_time() - cpu, time.monotonic() - started, flush=True)


def _session_get(url: str, _: Sequence[str]) -> Ask:
    session = requests.Session()
    return lambda target: session.get(url + target, headers=_HEADERS, timeout=_TIMEOUT).content


def _prepared(url: str, targets: Sequence[str]) -> Ask:
    session = requests.Session()
    environment = session.merge_environment_settings(url, {}, None, None, None)
    adapter = session.get_adapter(url)
    prepared = {
        target: session.prepare_request(requests.Request("GET", url + target, headers=_HEADERS)) for target in targets
    }
    return lambda target: adapter.send(prepared[target], timeout=_TIMEOUT, **environment).content  # type: ignore[arg-type]


def _urllib3(url: str, _: Sequence[str]) -> Ask:
    pool = urllib3.connection_from_url(url)
    return lambda target: pool.request("GET", target, headers=_HEADERS, timeout=_TIMEOUT).data


def _http_client(url: str, _: Sequence[str]) -> Ask:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_TIMEOUT)

    def ask(target: str) -> bytes:
        connection.request("GET", target, headers=_HEADERS)
        return connection.getresponse().read()

    return ask


LOOPS: dict[str, Callable[[str, Sequence[str]], Ask]] = {
    "requests.Session().get": _session_get,
    PREPARED: _prepared,
    "urllib3": _urllib3,
    "http.client": _http_client,
}
"""For each loop the function that makes a thread's request function; all targets are known beforehand."""

if __name__ == "__main__":
    main()
