"""Tests of exporter.web.app: what a running exporter answers over real HTTP."""

import asyncio
import gzip
import re
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import requests
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.simulator.server import Hang, Simulator
from exporter.web.app import HEADERS, SingleFlight
from tests.support.accept import BROWSER, OPENMETRICS, PROMETHEUS_2_42, PROMETHEUS_3, PROMETHEUS_3_TEXT
from tests.support.exporters import KEY, Exporter, ask, configure, running_exporter
from tests.support.servers import eventually, running
from tests.support.system import no_new_threads


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """An exporter after its first and, for an hour, only round."""
    folder = tmp_path_factory.mktemp("exporter")
    with Simulator(api_key=KEY) as braze, running_exporter(configure(folder, braze)) as exporter:
        yield exporter


@pytest.mark.server
@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", parse_text),
        (BROWSER, "text/plain; version=0.0.4; charset=utf-8", parse_text),
        (PROMETHEUS_2_42, "application/openmetrics-text; version=1.0.0; charset=utf-8", parse_openmetrics),
        (
            PROMETHEUS_3,
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
            parse_openmetrics,
        ),
        (PROMETHEUS_3_TEXT, "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8", parse_text),
    ],
)
def test_metrics(accept: str, content_type: str, parse: object, exporter: Exporter) -> None:
    """The metrics come in the format that the Accept header chooses, named in Content-Type, and can be parsed."""
    answer = exporter.ask(Accept=accept)

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == content_type
    assert answer.headers["Vary"] == "Accept, Accept-Encoding"
    assert "Content-Encoding" not in answer.headers
    assert callable(parse)
    names = {family.name for family in parse(answer.content.decode())}
    assert {"braze_message_sent", "braze_campaign_up", "braze_workspace_up", "python_info"} <= names


@pytest.mark.server
@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
def test_compressed_metrics(accept: str, exporter: Exporter) -> None:
    """With gzip the same is sent, as one member of which no client loses a part."""
    plain = exporter.ask(Accept=accept)
    answer = exporter.ask(Accept=accept, Accept_Encoding="gzip, deflate")

    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Content-Type"] == plain.headers["Content-Type"]
    assert answer.headers["Vary"] == plain.headers["Vary"]
    member = zlib.decompressobj(wbits=31)
    unpacked = member.decompress(answer.content)
    assert (member.eof, member.unused_data) == (True, b"")
    assert own_apart(unpacked) == own_apart(plain.content)
    assert len(answer.content) * 5 < len(plain.content)


@pytest.mark.server
@pytest.mark.parametrize("path", ["/metrics", "/", "/config"])
@pytest.mark.parametrize("coding", ["", "identity", "gzip;q=0", "*;q=0", "gzip;q=0, *", "br"])
def test_no_gzip_for_those_who_do_not_want_it(path: str, coding: str, exporter: Exporter) -> None:
    """An answer is compressed only for those who say so."""
    answer = exporter.ask(path, Accept_Encoding=coding)

    assert "Content-Encoding" not in answer.headers
    assert "Accept-Encoding" in answer.headers["Vary"]
    assert b"workspace" in answer.content


@pytest.mark.server
@pytest.mark.parametrize("accept", [OPENMETRICS, "text/plain;version=0.0.4", "text/plain;version=1.0.0"])
@pytest.mark.parametrize("escaping", ["allow-utf-8", "underscores", "values"])
def test_escaping_changes_the_content_type_only(accept: str, escaping: str, exporter: Exporter) -> None:
    """Names are plain, so whichever way they are to be escaped is answered, and what is sent stays the same."""
    plain, escaped = exporter.ask(Accept=accept), exporter.ask(Accept=f"{accept};escaping={escaping}")

    assert escaped.headers["Content-Type"] == f"{plain.headers['Content-Type']}; escaping={escaping}"
    assert own_apart(escaped.content) == own_apart(plain.content)


@pytest.mark.server
def test_a_body_of_a_scrape_is_ignored(exporter: Exporter) -> None:
    """A scrape with a body is a scrape."""
    answer = converse(
        exporter, "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    )

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert own_apart(answer.partition(b"\r\n\r\n")[2]) == own_apart(exporter.ask().content)


@pytest.mark.server
def test_accept_header_in_several_lines(exporter: Exporter) -> None:
    """A header that is sent in several lines counts as one."""
    answer = converse(
        exporter,
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain;q=0.1\r\nAccept: application/openmetrics-text\r\n"
        "Accept-Encoding: identity\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n",
    )

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/openmetrics-text;" in head.lower()
    assert gzip.decompress(body).endswith(b"# EOF\n")


@pytest.mark.server
@pytest.mark.parametrize("path", ["/metrics", "/", "/config", "/-/healthy", "/-/ready"])
def test_head(path: str, exporter: Exporter) -> None:
    """HEAD gets the headers of GET, the length too, and no body."""
    got, head = exporter.ask(path), exporter.ask(path, method="HEAD")

    assert head.status_code == 200
    assert head.content == b""
    assert int(head.headers["Content-Length"]) > 0
    changing = {"date", "content-length"} if path in {"/metrics", "/"} else {"date"}
    headers, expected = ({name: each.headers[name] for name in {*each.headers} - changing} for each in (head, got))
    assert headers == expected


@pytest.mark.server
@pytest.mark.parametrize("path", ["/metrics", "/", "/config", "/-/healthy", "/-/ready"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_wrong_method(path: str, method: str, exporter: Exporter) -> None:
    """Any other method is answered by 405 and by what is allowed."""
    answer = exporter.ask(path, method=method)

    assert answer.status_code == 405
    assert {*answer.headers["Allow"].split(", ")} == {"GET", "HEAD"}


@pytest.mark.server
@pytest.mark.parametrize(
    "path",
    [
        "/metric",
        "/metrics/",
        "/metrics/x",
        "/Metrics",
        "//metrics",
        "//evil.example/metrics",
        "/%2fmetrics",
        "/-/",
        "/-/healthy/",
        "/favicon.ico",
        "/%00",
        "/%ff",
        "/../../etc/passwd",
    ],
)
def test_unknown_path(path: str, exporter: Exporter) -> None:
    """Nothing else exists, and nothing redirects."""
    target = converse(exporter, f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")

    assert target.startswith(b"HTTP/1.1 404 ")
    assert b"evil.example" not in target


@pytest.mark.server
@pytest.mark.parametrize("query", ["?", "?a=b", "?name[]=braze_campaign_up", "?%ff=&&=#", "?/../"])
def test_query_strings_change_nothing(query: str, exporter: Exporter) -> None:
    """What stands behind a question mark is ignored."""
    assert own_apart(exporter.ask(f"/metrics{query}").content) == own_apart(exporter.ask().content)


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "status"), [("/metrics", 200), ("/", 200), ("/config", 200), ("/-/ready", 200), ("/none", 404)]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_headers_of_every_answer(path: str, status: int, method: str, exporter: Exporter) -> None:
    """Every page and every error carries the headers that keep browsers from doing harm, once, and names no server."""
    answer = exporter.ask(path, method=method)

    assert answer.status_code == (405 if method == "POST" and status == 200 else status)
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "Server" not in answer.headers


@pytest.mark.server
def test_healthy(exporter: Exporter) -> None:
    """The exporter is healthy while it answers."""
    answer = exporter.ask("/-/healthy")

    assert (answer.status_code, answer.text) == (200, "braze-exporter is healthy.\n")


@pytest.mark.server
def test_ready_after_the_first_round_and_for_good(tmp_path: Path) -> None:
    """An exporter is ready once every campaign was polled, however that went, and whatever comes later."""
    with Simulator(api_key=KEY) as braze:
        slow = braze.campaigns[3].id
        braze.misbehave(Hang(), campaign_id=slow)
        file = configure(tmp_path, braze, poll="interval: 1s, timeout: 30s, stale_after: 1m")
        with running_exporter(file, ready=False) as exporter:
            eventually(lambda: polled(exporter) == 11, what="all campaigns but one polled")
            before = exporter.ask("/-/ready")

            braze.close()  # cuts what hangs

            eventually(exporter.ready, what="an exporter that is ready")
            assert polled(exporter) == 12
            eventually(lambda: "1" not in ups(exporter), what="campaigns that are all down")
            assert exporter.ready()
    assert (before.status_code, before.text) == (503, "Not every campaign has been polled yet.\n")


@pytest.mark.server
def test_another_telemetry_path(tmp_path: Path) -> None:
    """The metrics are where the flag says and nowhere else, and the page links to them there."""
    with (
        Simulator(api_key=KEY, campaigns=1) as braze,
        running_exporter(configure(tmp_path, braze), "--web.telemetry-path=/braze/metrics-1.txt") as exporter,
    ):
        assert '<a href="braze/metrics-1.txt">' in exporter.ask("/").text
        assert "braze_campaign_up" in exporter.ask("/braze/metrics-1.txt").text
        assert exporter.ask("/metrics").status_code == 404


PROXY = """
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; location /tools/exporter/ {{ proxy_pass {url}/; }} }}
}}
"""


def test_behind_a_path_prefix(tmp_path: Path, nginx: Path) -> None:
    """Behind a proxy that serves the exporter below a path, each link of the overview leads to its page."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    proxied = f"http://127.0.0.1:{port}/tools/exporter/"
    with (
        Simulator(api_key=KEY, campaigns=1) as braze,
        running_exporter(configure(tmp_path, braze), "--web.telemetry-path=/braze/metrics") as exporter,
    ):
        (tmp_path / "nginx.conf").write_text(PROXY.format(folder=tmp_path, port=port, url=exporter.url))
        command = (nginx, "-p", tmp_path, "-e", "stderr", "-c", tmp_path / "nginx.conf")
        with running(command, log=tmp_path / "nginx.log"):
            overview = eventually(lambda: _text(proxied), what="an nginx that listens")
            links = re.findall(r'<a href="([^"]*)">', overview)
            answers = [ask(urljoin(proxied, link)) for link in links]

    assert [answer.status_code for answer in answers] == [200] * 8
    assert "braze_campaign_up" in answers[0].text
    assert "workspaces:" in answers[1].text


def _text(url: str) -> str:
    """Return what an address answers, nothing where nobody listens yet."""
    try:
        return ask(url).text
    except requests.ConnectionError:
        return ""


@pytest.mark.server
@pytest.mark.parametrize(
    ("query", "interval"), [("", ""), ("?refresh=60", "60"), ("?refresh=7", ""), ("?refresh=", ""), ("?refresh=x", "")]
)
def test_reloading_overview(query: str, interval: str, exporter: Exporter) -> None:
    """The overview reloads itself at the interval that the query names, if that is one of those offered."""
    text = exporter.ask(f"/{query}").text

    assert re.findall('<meta http-equiv="refresh" content="([0-9]+)">', text) == ([interval] if interval else [])


@pytest.mark.server
def test_metrics_in_the_place_of_the_landing_page(tmp_path: Path) -> None:
    """With the metrics at / there is no page for people, and the probes stay."""
    with (
        Simulator(api_key=KEY, campaigns=1) as braze,
        running_exporter(configure(tmp_path, braze), "--web.telemetry-path=/") as exporter,
    ):
        assert "braze_campaign_up" in exporter.ask("/").text
        assert exporter.ask("/metrics").status_code == 404
        assert exporter.ask("/-/healthy").ok


class Making:
    """Makes numbers, each when it is let; counts how many are made at once."""

    def __init__(self) -> None:
        self.let = threading.Semaphore(0)
        self.begun = self.inside = self.crowd = 0

    def __call__(self) -> int:
        """Make the next number."""
        self.begun += 1
        self.inside += 1
        self.crowd = max(self.crowd, self.inside)
        number = self.begun
        assert self.let.acquire(timeout=30)
        self.inside -= 1
        return number


def test_a_crowd_shares_what_is_made() -> None:
    """Callers that arrive before a run begins share it, those that arrive while it runs share the next."""
    making = Making()

    async def call() -> list[int]:
        flight = SingleFlight(making)
        first = [asyncio.ensure_future(flight()) for _ in range(5)]
        while not making.begun:  # noqa: ASYNC110 - the other side is a thread
            await asyncio.sleep(0)
        second = [asyncio.ensure_future(flight()) for _ in range(5)]
        await asyncio.sleep(0)
        making.let.release(2)
        return await asyncio.gather(*first, *second)

    assert asyncio.run(call()) == [1] * 5 + [2] * 5
    assert (making.begun, making.crowd) == (2, 1)


def test_a_caller_that_is_gone_takes_nothing_along() -> None:
    """A client that leaves while something is made does not cancel it for the others."""
    making = Making()

    async def call() -> int:
        flight = SingleFlight(making)
        gone, other = (asyncio.ensure_future(flight()) for _ in range(2))
        while not making.begun:  # noqa: ASYNC110 - the other side is a thread
            await asyncio.sleep(0)
        gone.cancel()
        making.let.release()
        return await other

    assert asyncio.run(call()) == 1


def test_what_cannot_be_made() -> None:
    """An exception is every caller's who shares the run, and the next run is another one."""
    numbers = iter([0, 1])

    async def call() -> list[object]:
        flight = SingleFlight(lambda: 1 / next(numbers))
        failed = await asyncio.gather(flight(), flight(), return_exceptions=True)
        return [*map(type, failed), await flight()]

    assert asyncio.run(call()) == [ZeroDivisionError, ZeroDivisionError, 1]


def test_no_thread_to_make_it() -> None:
    """Where no thread can be started it is made all the same."""

    async def call() -> list[int]:
        flight = SingleFlight(threading.get_ident)
        with no_new_threads():
            without = await flight()
        return [without, await flight()]

    without, with_thread = asyncio.run(call())
    assert without == threading.get_ident() != with_thread


def own_apart(content: bytes) -> list[bytes]:
    """Return the lines but for the samples that change with every scrape: those of the process and of Python."""
    return [line for line in content.splitlines() if not line.startswith((b"process_", b"python_"))]


def converse(exporter: Exporter, text: str) -> bytes:
    """Send a request as it stands, and return all that comes until the other side closes."""
    address = urlsplit(exporter.url)
    answer = b""
    with closing(socket.create_connection((str(address.hostname), address.port or 0), timeout=10)) as connection:
        try:
            connection.sendall(text.encode())
            while part := connection.recv(65_536):
                answer += part
        except ConnectionError:
            pass  # closed before all was read: what came before counts
    return answer


def polled(exporter: Exporter) -> int:
    """Return how many campaigns have been polled."""
    return sum(value != "0.0" for value in exporter.samples("braze_campaign_polls_total").values())


def ups(exporter: Exporter) -> str:
    """Return the values of braze_campaign_up, one beside the other."""
    return " ".join(value.removesuffix(".0") for value in exporter.samples("braze_campaign_up").values())
