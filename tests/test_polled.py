"""Tests of exporter.polled: a further API is one record and one parser, and everything else works for it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from exporter.braze.api import Api, RateLimit
from exporter.braze.data_series import DataSeries, Day, Variation
from exporter.braze.errors import PayloadError, Reason
from exporter.config import Campaign, Config, Limits, Poll, Workspace
from exporter.exposition import Format, written
from exporter.metrics import LATEST_DAY, Family, Row, status_families, workspace_rows
from exporter.polled import DATA_SERIES, FAMILIES, POLLED, Polled
from exporter.poller import Poller
from exporter.publisher import Publisher
from exporter.reload import CurrentConfig
from exporter.shards import WHOLE
from exporter.state import CampaignState, WorkspaceState, system_clock
from exporter.web.pages import landing_page
from tests.support.servers import eventually

# -- The record and the parser -----------------------------------------------------------------------------------------


def parse_links(response: object, samples: int) -> DataSeries:
    """Read clicks by link, which come as `{"day": …, "links": {…}}`."""
    match response:
        case {"day": str(day), "links": dict(links)}:
            rows = [Variation("", "", str(link), {"clicks": float(clicks)}) for link, clicks in links.items()]
            return DataSeries(Day(date.fromisoformat(day), {}, tuple(rows[:samples])), None)
    raise PayloadError("expected a day and links")


def link_rows(state: CampaignState) -> tuple[Row, ...]:
    """Return a row for each link."""
    day = state.latest
    return tuple(
        Row(
            (LATEST_DAY, link.name),
            (("campaign_id", state.campaign_id), ("link", link.name), ("workspace", state.workspace)),
            (((CLICKS.name, None, ""), link.statistics["clicks"]),),
        )
        for link in (day.variations if day is not None else ())
    )


CLICKS = Family(
    "braze_link_clicks", "Clicks on a link. Invented.", ("campaign_id", "link", "workspace"), day=LATEST_DAY
)
LINKS = Polled(
    Api(
        name="links",
        rate_limit=RateLimit("links", lambda _: 30_000),
        target=lambda campaign_id, poll: f"/links/clicks?campaign={campaign_id}&days={poll.days}",
        parse=parse_links,
    ),
    rows=link_rows,
    families=(CLICKS,),
    status=status_families("braze_link_", "braze_link_dropped_series"),
)

# -- Both APIs ---------------------------------------------------------------------------------------------------------

IDS = [f"3bbc4555-8fa0-4c9b-a5c0-4505edf3e06{number}" for number in range(3)]
DAYS = b'{"message": "success", "data": [{"time": "2026-03-03", "messages": {"email": [{"sent": 5}]}}]}'
CLICKED = b'{"day": "2026-03-03", "links": {"shop": 7, "blog": 2}}'
BODIES = {"/campaigns/data_series": DAYS, "/links/clicks": CLICKED}


class BrazeServer(ThreadingHTTPServer):
    """A Braze with both APIs, on loopback; `failing` are status codes and bodies by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Responder)
        self.failing: dict[str, tuple[int, bytes]] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.server_port}"


class Responder(BaseHTTPRequestHandler):
    """Responds with the body of a path."""

    server: BrazeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Respond."""
        self.server.requests.append(self.path)
        path = urlsplit(self.path).path
        status, body = self.server.failing.get(path, (200, BODIES[path]))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name in the standard library
        """Log nothing."""


@pytest.fixture
def braze() -> Iterator[BrazeServer]:
    """Run a Braze with both APIs."""
    with BrazeServer() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


class Run:
    """A poller of both APIs that runs."""

    def __init__(self, config: Config, poller: Poller, publisher: Publisher) -> None:
        self.config = config
        self.poller = poller
        self.exposition = publisher.exposition

    def text(self) -> str:
        """Return what a scrape would get of campaigns and workspaces."""
        own = written((row for workspace in self.poller.workspaces for row in workspace_rows(workspace)), Format.TEXT)
        return b"".join((*self.exposition.snapshot().pieces(Format.TEXT), own)).decode()

    def states(self, api: str) -> list[CampaignState]:
        """Return the states of one API."""
        return [state for state in self.poller.campaigns if state.api == api]

    def workspace(self) -> WorkspaceState:
        """Return the state of the only workspace."""
        (workspace,) = self.poller.workspaces
        return workspace


@contextmanager
def polling(braze: BrazeServer, *, series_per_campaign: int = 100) -> Iterator[Run]:
    """Poll both APIs."""
    config = Config(
        poll=Poll(interval=1.0, timeout=5.0, stale_after=60.0),
        limits=Limits(series=1000, series_per_campaign=series_per_campaign),
        workspaces=(
            Workspace(
                name="main",
                endpoint=braze.url,
                api_key_env="KEY",
                campaigns=tuple(Campaign(id=campaign_id) for campaign_id in IDS),
            ),
        ),
    )
    crashes: list[BaseException] = []
    publisher = Publisher(config.limits, (DATA_SERIES, LINKS))
    poller = Poller(config, environ={"KEY": "key"}, clock=system_clock(), publisher=publisher, fatal=crashes.append)
    poller.start()
    try:
        eventually(lambda: poller.ready, what="the end of the first round")
        yield Run(config, poller, publisher)
    finally:
        poller.stop()
    assert not crashes


def samples(text: str, pattern: str) -> dict[str, str]:
    """Return the samples whose series match a pattern."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {series: value for series, _, value in lines if re.match(pattern, series)}


@pytest.mark.server
def test_both_are_polled(braze: BrazeServer) -> None:
    """Each API is requested for every campaign with its own path and query, and its rows are served with their HELP."""
    with polling(braze) as run:
        text = run.text()
    requests = [(urlsplit(path).path, parse_qs(urlsplit(path).query)) for path in braze.requests]

    for campaign_id in IDS:
        assert ("/campaigns/data_series", {"campaign_id": [campaign_id], "length": ["3"]}) in requests
        assert ("/links/clicks", {"campaign": [campaign_id], "days": ["3"]}) in requests
        assert samples(text, f'braze_link_clicks{{campaign_id="{campaign_id}"') == {
            f'braze_link_clicks{{campaign_id="{campaign_id}",link="shop",workspace="main"}}': "7.0",
            f'braze_link_clicks{{campaign_id="{campaign_id}",link="blog",workspace="main"}}': "2.0",
        }
        assert [*samples(text, f'braze_message_sent{{campaign_id="{campaign_id}"').values()] == ["5.0"]
    assert "# HELP braze_link_clicks Clicks on a link. Invented.\n# TYPE braze_link_clicks gauge\n" in text


@pytest.mark.server
def test_each_has_its_own_status(braze: BrazeServer) -> None:
    """Families about polls and about requests exist for each API, and no series is there twice."""
    with polling(braze) as run:
        text = run.text()
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]

    assert len(series) == len(set(series))
    for prefix in ("braze_campaign_", "braze_link_"):
        assert [*samples(text, f"{prefix}up{{").values()] == ["1.0"] * len(IDS)
        assert len(samples(text, f"{prefix}polls_total{{")) == len(IDS)
    for api in ("data_series", "links"):
        (requests,) = samples(text, f'braze_api_requests_total{{api="{api}"').values()
        assert float(requests) >= len(IDS)


@pytest.mark.server
def test_limits_hold_for_it(braze: BrazeServer) -> None:
    """A campaign's series over the limit are dropped and counted for the API that has them."""
    with polling(braze, series_per_campaign=1) as run:
        text = run.text()

    assert len(samples(text, "braze_link_clicks")) == len(IDS)
    assert [*samples(text, "braze_link_dropped_series").values()] == ["1.0"] * len(IDS)


@pytest.mark.server
@pytest.mark.parametrize(
    ("failing", "reason"), [((404, b""), Reason.NOT_FOUND), ((200, b'{"day": 1}'), Reason.BAD_PAYLOAD)]
)
def test_its_failures_are_its_own(braze: BrazeServer, failing: tuple[int, bytes], reason: Reason) -> None:
    """A failure is counted for its API, keeps its numbers, and does not touch the other API."""
    with polling(braze) as run:
        braze.failing["/links/clicks"] = failing
        eventually(lambda: all(state.failure for state in run.states("links")), what="failures")
        text = run.text()

        assert all(state.up and not state.failures for state in run.states("data_series"))
        assert {reason for state in run.states("links") for reason in state.failures} == {reason}
        assert run.workspace().apis["links"].failures[reason] > 0
        assert sum(run.workspace().apis["data_series"].failures.values()) == 0
    assert [*samples(text, "braze_link_up").values()] == ["0.0"] * len(IDS)
    assert len(samples(text, "braze_link_clicks")) == 2 * len(IDS)


@pytest.mark.server
def test_its_rate_limit_is_its_own(braze: BrazeServer) -> None:
    """A 429 of one API pauses its requests only, and the workspace says so."""
    with polling(braze) as run:
        braze.failing["/links/clicks"] = (429, b"")
        eventually(lambda: run.workspace().paused is Reason.RATE_LIMITED, what="a pause")
        polls = [state.polls for state in run.states("data_series")]
        eventually(
            lambda: all(
                state.polls > before + 1 for state, before in zip(run.states("data_series"), polls, strict=True)
            ),
            what="polls of the other API",
        )

        assert all(state.up for state in run.states("data_series"))


@pytest.mark.server
def test_the_overview_has_it(braze: BrazeServer) -> None:
    """The overview lists the campaigns of each API, with their failures and their numbers of samples."""
    with polling(braze) as run:
        braze.failing["/links/clicks"] = (404, b"")
        eventually(lambda: all(state.failure for state in run.states("links")), what="failures")
        campaigns = run.poller.campaigns
        page = landing_page(
            run.poller.workspaces,
            campaigns,
            {state.key: run.exposition.shown(state.key) for state in campaigns},
            CurrentConfig(run.config, shard=WHOLE, read=lambda: run.config, apply=lambda *_: None, wall=lambda: 0.0),
            telemetry_path="/metrics",
            now=system_clock().wall(),
        )

    assert f"{len(IDS)} of {2 * len(IDS)} campaigns failing: {len(IDS)} not found." in page
    assert page.count("<tr class=bad>") >= len(IDS)


def test_names_are_unique() -> None:
    """No two APIs and no two families have the same name."""
    names = [family.name for family in FAMILIES]

    assert len(names) == len(set(names))
    assert len({polled.api.name for polled in POLLED}) == len(POLLED)
