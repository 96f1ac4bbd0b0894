"""Tests of exporter.web: what headers choose, and what a running exporter answers over real HTTP."""

import gzip
import re
import socket
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter import __version__
from exporter.exposition import Format
from exporter.simulator import Hang, Simulator, Status
from exporter.web import HEADERS, accepts_gzip, negotiate
from tests.exporters import KEY, Exporter, configure, running_exporter
from tests.servers import eventually

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
PROMETHEUS_2_42 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3_TEXT_FIRST = (
    "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,*/*;q=0.4"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_2_42, Format.OPENMETRICS),
        (PROMETHEUS_3, Format.OPENMETRICS),
        (PROMETHEUS_3_TEXT_FIRST, Format.TEXT),
        ("*/*", Format.TEXT),
        (BROWSER, Format.TEXT),
        ("", Format.TEXT),
        ("text/plain", Format.TEXT),
        ("text/plain;version=0.0.4", Format.TEXT),
        ("application/openmetrics-text", Format.OPENMETRICS),
        (OPENMETRICS, Format.OPENMETRICS),
        ('Application/OpenMetrics-Text ; Version="1.0.0" ; charset=utf-8', Format.OPENMETRICS),
        # Versions that are not spoken here.
        ("application/openmetrics-text;version=0.0.1", Format.TEXT),
        ("application/openmetrics-text;version=2.0.0", Format.TEXT),
        ("application/openmetrics-text;version=abc", Format.TEXT),
        ("application/openmetrics-text;version=", Format.TEXT),
        (f"application/openmetrics-text;version=2.0.0,{OPENMETRICS};q=0.1", Format.OPENMETRICS),
        # Qualities.
        (f"{OPENMETRICS};q=0", Format.TEXT),
        (f"{OPENMETRICS};q=0.5,text/plain;q=0.5", Format.OPENMETRICS),
        (f"{OPENMETRICS};q=0.5,text/plain;q=0.6", Format.TEXT),
        (f"{OPENMETRICS};q=0.5,text/plain;version=1.0.0;q=0.6", Format.OPENMETRICS),
        (f"{OPENMETRICS};q=0.5,text/*;q=0.6", Format.TEXT),
        (f"{OPENMETRICS};q=0.5,*/*", Format.TEXT),
        (f"{OPENMETRICS};q=0.5,text/plain;q=0.4,*/*", Format.OPENMETRICS),
        (f"text/plain;q=0,*/*;q=0,{OPENMETRICS};q=0.001", Format.OPENMETRICS),
        (f"{OPENMETRICS};q=2", Format.TEXT),
        (f"{OPENMETRICS};q=-1", Format.TEXT),
        (f"{OPENMETRICS};q=nan", Format.TEXT),
        (f"{OPENMETRICS};q=high", Format.TEXT),
        (f"{OPENMETRICS};Q=0.1,text/plain;q=0.2", Format.TEXT),
        # What fits nothing, and nonsense.
        ("application/json", Format.TEXT),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited", Format.TEXT),
        ("application/*", Format.TEXT),
        (";;;,,,=;q", Format.TEXT),
        (f",, {OPENMETRICS} ;,", Format.OPENMETRICS),
    ],
)
def test_format(accept: str, expected: Format) -> None:
    """OpenMetrics goes to those who name 1.0.0 and want it as much as text, text to all others."""
    assert negotiate(accept) is expected


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("gzip", True),
        ("gzip, deflate, br, zstd", True),
        ("deflate, GZIP;q=1.0", True),
        ("x-gzip", True),
        ("*", True),
        ("gzip;q=0.001", True),
        ("*;q=0, gzip", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
        ("gzip;q=no", False),
        ("gzipped", False),
        (";;,=", False),
    ],
)
def test_gzip(accept_encoding: str, expected: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Only who names gzip, or everything, gets it, and not who refuses it."""
    assert accepts_gzip(accept_encoding) is expected


@given(header=st.text())
def test_any_header_has_an_answer(header: str) -> None:
    """No header raises."""
    assert negotiate(header) in Format
    assert accepts_gzip(header) in {True, False}


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
        (PROMETHEUS_3, "application/openmetrics-text; version=1.0.0; charset=utf-8", parse_openmetrics),
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
@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy", "/-/ready"])
def test_head(path: str, exporter: Exporter) -> None:
    """HEAD gets the headers of GET, the length too, and no body."""
    got, head = exporter.ask(path), exporter.ask(path, method="HEAD")

    assert head.status_code == 200
    assert head.content == b""
    assert int(head.headers["Content-Length"]) > 0
    changing = {"date", "content-length"} if path == "/metrics" else {"date"}
    headers, expected = ({name: each.headers[name] for name in {*each.headers} - changing} for each in (head, got))
    assert headers == expected


@pytest.mark.server
@pytest.mark.parametrize("path", ["/metrics", "/", "/-/healthy", "/-/ready"])
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
        "/-/reload",
        "/-/healthy/",
        "/favicon.ico",
        "/config",
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
    "request_text",
    [
        "GET /metrics HTTP/1.1\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nX-Large: {}\r\n\r\n".format("x" * 1_000_000),
    ],
)
def test_what_is_no_http(request_text: str, exporter: Exporter) -> None:
    """A request without a host, that is none, or without an end to its headers gets 400, and others are served."""
    assert converse(exporter, request_text).startswith(b"HTTP/1.1 400 ")
    assert exporter.ask("/-/healthy").ok


@pytest.mark.server
@pytest.mark.parametrize(("path", "status"), [("/metrics", 200), ("/", 200), ("/-/ready", 200), ("/none", 404)])
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
def test_landing_page(exporter: Exporter) -> None:
    """The page for people says what this is, links to the others, and shows every workspace and campaign."""
    answer = exporter.ask("/")

    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert links(answer.text) == ["/metrics", "/-/healthy", "/-/ready"]
    assert f"version {__version__}" in answer.text
    assert rows(answer.text)[0] == ["main", "up", "polling", "12", "UTC"]
    campaign = rows(answer.text)[1]
    assert campaign[1:4] == ["Welcome e-mail", "828175f3-41a4-418c-9cf5-a2796dfff617", "succeeded"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", campaign[4])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", campaign[5])
    assert int(campaign[6]) > 10
    assert len(rows(answer.text)) == 1 + 12


@pytest.mark.server
def test_landing_page_of_failures(tmp_path: Path) -> None:
    """A campaign that fails says why, in Braze's words where there are any."""
    with Simulator(api_key=KEY, campaigns=3) as braze:
        unknown, forbidden, ok = (campaign.id for campaign in braze.campaigns)
        braze.misbehave(Status(400, b'{"message": "<b>no</b> \\ud800 such id"}'), campaign_id=unknown)
        braze.misbehave(Status(403), campaign_id=forbidden)
        with running_exporter(configure(tmp_path, braze)) as exporter:
            shown = {row[2]: row[3:] for row in rows(exporter.ask("/").text)[1:]}

    assert shown[unknown] == [
        "bad_request: Braze answered 400: &lt;b&gt;no&lt;/b&gt;   such id",
        "never",
        "none",
        "0",
    ]
    assert shown[forbidden][0].startswith("forbidden: Braze answered 403")
    assert shown[ok][0] == "succeeded"


@pytest.mark.server
@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "</td></table><!--",
        "{version} {0} %s &amp; &lt;",
    ],
)
def test_landing_page_escapes(name: str, tmp_path: Path) -> None:
    """No name is more than text on the page."""
    with Simulator(api_key=KEY, campaigns=1) as braze:
        file = configure(tmp_path, braze, workspace=name, names={braze.campaigns[0].id: name})
        with running_exporter(file) as exporter:
            page = exporter.ask("/").text

    assert not re.search("<(?:script|img|!--)", page)
    escaped = rows(page)[0][0]
    assert escaped == rows(page)[1][0] == rows(page)[1][1]
    assert not set("<>\"'") & set(escaped)
    assert {"&#x27;": "'", "&quot;": '"'}.get(escaped[:6], escaped[0])[0] in {name[0], "&"}


@pytest.mark.server
def test_another_telemetry_path(tmp_path: Path) -> None:
    """The metrics are where the flag says and nowhere else, and the page links to them there."""
    with (
        Simulator(api_key=KEY, campaigns=1) as braze,
        running_exporter(configure(tmp_path, braze), "--web.telemetry-path=/braze/metrics-1.txt") as exporter,
    ):
        assert links(exporter.ask("/").text)[0] == "/braze/metrics-1.txt"
        assert "braze_campaign_up" in exporter.ask("/braze/metrics-1.txt").text
        assert exporter.ask("/metrics").status_code == 404


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


def links(page: str) -> list[str]:
    """Return what a page links to."""
    return re.findall(r'href="([^"]*)"', page)


def rows(page: str) -> list[list[str]]:
    """Return the cells of the page's table rows, as HTML."""
    return [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr>(<td.*?)</tr>", page, re.DOTALL)]
