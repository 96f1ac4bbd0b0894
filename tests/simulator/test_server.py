"""The server of the simulated Braze responds as Braze does, or with the faults that a test chooses."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, IncompleteRead
from urllib.parse import quote, urlencode, urlsplit
from zoneinfo import ZoneInfo

import pytest

from exporter.simulator.server import PAGE_SIZE, Body, Cut, Drip, Fault, Hang, Latency, Simulator, Status
from exporter.simulator.world import CampaignModel, campaign_models, data_series
from tests.support.servers import ROOT

PAYLOADS = ROOT / "tests/data/payloads"
THURSDAY = date(2026, 3, 5)
NOON = datetime(2026, 3, 5, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0
CAMPAIGNS = campaign_models(14)
EMAIL, PUSH, IN_APP, ARCHIVED, DRAFT = (CAMPAIGNS[number] for number in (0, 1, 7, 12, 13))

server = pytest.mark.server


@dataclass
class Clock:
    """A clock that is set by the test."""

    now: float = NOON

    def __call__(self) -> float:
        """Return Unix seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Noon of a Thursday."""
    return Clock()


@pytest.fixture
def braze(clock: Clock) -> Iterator[Simulator]:
    """A running simulator with the fourteen kinds of campaign."""
    with Simulator(campaigns=14, clock=clock) as simulator:
        yield simulator


@dataclass(frozen=True)
class Response:
    """A response as received."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def json(self) -> dict[str, object]:
        """The decoded body."""
        decoded = json.loads(self.body)
        assert isinstance(decoded, dict)
        return decoded

    @property
    def rate(self) -> tuple[str, ...]:
        """The rate headers: limit, remaining, reset."""
        return tuple(self.headers[f"X-RateLimit-{name}"] for name in ("Limit", "Remaining", "Reset"))


@server
def test_the_data_series_is_that_of_the_model(braze: Simulator) -> None:
    """A response has the days up to the running one, with the numbers that the model computes for the same moment."""
    response = get_series(braze, EMAIL.id, length=3)

    assert response.json == data_series(EMAIL, THURSDAY, 3, now=NOON, zone=UTC)
    assert days_of(response) == ["2026-03-03", "2026-03-04", "2026-03-05"]
    assert response.headers["Content-Type"] == "application/json"


@server
def test_responses_follow_the_clock(braze: Simulator, clock: Clock) -> None:
    """The Date header and the counts are those of the given clock."""
    earlier = get_series(braze, EMAIL.id)
    clock.now += HOUR
    later = get_series(braze, EMAIL.id)

    assert parsedate_to_datetime(later.headers["Date"]).timestamp() == clock.now
    assert [later.json == earlier.json, later.json == get_series(braze, EMAIL.id).json] == [False, True]


@server
def test_the_newest_day_can_be_yesterday(clock: Clock) -> None:
    """With `newest_day="yesterday"` the running day is left out, unless `ending_at` requests it."""
    with Simulator(newest_day="yesterday", clock=clock) as braze:
        assert days_of(get_series(braze, EMAIL.id, length=2)) == ["2026-03-03", "2026-03-04"]
        assert days_of(get_series(braze, EMAIL.id, ending_at="2026-03-05T12:00:00Z")) == ["2026-03-05"]


@server
def test_days_are_those_of_the_time_zone(clock: Clock) -> None:
    """Half past eleven in the evening in London is tomorrow in Berlin."""
    clock.now = datetime(2026, 3, 5, 23, 30, tzinfo=UTC).timestamp()
    with Simulator(timezone=ZoneInfo("Europe/Berlin"), clock=clock) as braze:
        assert days_of(get_series(braze, EMAIL.id)) == ["2026-03-06"]


@server
@pytest.mark.parametrize(
    ("ending_at", "newest"),
    [
        ("2026-03-03T00:00:00Z", "2026-03-02"),
        ("2026-03-03", "2026-03-02"),
        ("2026-03-03T00:00:01", "2026-03-03"),
        ("2026-03-03T23:59:59-5:00", "2026-03-04"),
        ("2027-01-01T00:00:00Z", "2026-03-05"),
    ],
    ids=["midnight", "date", "a second later", "offset", "future"],
)
def test_ending_at_names_the_last_day(braze: Simulator, ending_at: str, newest: str) -> None:
    """The last day is that of `ending_at`, the day before for an `ending_at` at midnight, and never after today."""
    assert days_of(get_series(braze, EMAIL.id, ending_at=ending_at)) == [newest]


@server
def test_ids_are_read_in_any_case(braze: Simulator) -> None:
    """An id in capitals is the same campaign."""
    assert get_series(braze, EMAIL.id.upper()).json == get_series(braze, EMAIL.id).json


@server
@pytest.mark.parametrize("key", [None, "", "wrong-key"])
def test_a_wrong_key_is_echoed_and_has_empty_rate_headers(braze: Simulator, key: str | None) -> None:
    """Without the right key the response is 401, repeats the key sent, and has empty rate headers."""
    response = get_series(braze, "not even an id", key=key)

    assert (response.status, response.json) == (401, {"message": f"Invalid API key: {key or ''}"})
    assert response.rate == ("", "", "")


@server
def test_the_key_can_be_rotated(braze: Simulator) -> None:
    """A new key is needed as soon as it is set."""
    braze.api_key = "rotated"

    assert get_series(braze, EMAIL.id, key="simulated-braze-key").status == 401
    assert get_series(braze, EMAIL.id, key="rotated").status == 200


CAMPAIGN_ID_MESSAGE = json.loads((PAYLOADS / "error_400.json").read_text())["message"]


@server
@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/campaigns/data_series?length=1", CAMPAIGN_ID_MESSAGE),
        ("/campaigns/data_series?length=1&campaign_id=5f1c2b7e90ab5f1c2b7e90ab", CAMPAIGN_ID_MESSAGE),
        ("/campaigns/data_series?length=1&campaign_id=00000000-0000-4000-8000-000000000000", CAMPAIGN_ID_MESSAGE),
        ("/campaigns/details", CAMPAIGN_ID_MESSAGE),
        (f"/campaigns/data_series?campaign_id={EMAIL.id}", "length must be an integer from 1 to 100"),
        (f"/campaigns/data_series?campaign_id={EMAIL.id}&length=0", "length must be an integer from 1 to 100"),
        (f"/campaigns/data_series?campaign_id={EMAIL.id}&length=101", "length must be an integer from 1 to 100"),
        (f"/campaigns/data_series?campaign_id={EMAIL.id}&length=x", "length must be an integer from 1 to 100"),
        (
            f"/campaigns/data_series?campaign_id={EMAIL.id}&length=1&ending_at=yesterday",
            "ending_at must be an ISO 8601 date and time from 1970 on",
        ),
        (
            f"/campaigns/data_series?campaign_id={EMAIL.id}&length=1&ending_at=0001-01-01",
            "ending_at must be an ISO 8601 date and time from 1970 on",
        ),
        ("/campaigns/list?page=-1", "page must be an integer from 0 on"),
        ("/campaigns/list?sort_direction=up", "sort_direction must be asc or desc"),
        ("/campaigns/list?include_archived=1", "include_archived must be false or true"),
    ],
)
def test_bad_parameters_are_refused(braze: Simulator, target: str, message: str) -> None:
    """A missing or wrong parameter gets status 400 and a message."""
    response = get(braze, target)

    assert (response.status, response.json) == (400, {"message": message})


@server
@pytest.mark.parametrize("length", [1, 100])
def test_a_response_has_as_many_days_as_requested(braze: Simulator, length: int) -> None:
    """One and a hundred days are both in the range of `length`."""
    assert len(days_of(get_series(braze, EMAIL.id, length=length))) == length


@server
def test_other_urls_and_methods_are_refused(braze: Simulator) -> None:
    """An unknown path is 404, and anything but GET is 405."""
    assert get(braze, "/campaigns/data_serie").status == 404
    assert [get(braze, "/campaigns/list", method=method).status for method in ("POST", "PUT", "HEAD")] == [405] * 3


@server
def test_data_series_has_a_limit_each_minute(clock: Clock) -> None:
    """In a clock minute the remaining requests fall to zero, then there is 429; the next minute starts again."""
    clock.now = NOON + 45
    with Simulator(data_series_per_minute=2, clock=clock) as braze:
        responses = [get_series(braze, EMAIL.id) for _ in range(3)]
        clock.now = NOON + 60
        fresh = get_series(braze, EMAIL.id)

    reset, next_reset = f"{NOON + 60:.0f}", f"{NOON + 120:.0f}"
    assert [response.status for response in responses] == [200, 200, 429]
    assert [response.rate for response in responses] == [("2", "1", reset), ("2", "0", reset), ("2", "0", reset)]
    assert (fresh.status, fresh.rate) == (200, ("2", "1", next_reset))


@server
def test_list_and_details_share_a_limit_each_hour(clock: Clock) -> None:
    """Requests to list and details count together for an hour; data_series and refused keys do not count there."""
    with Simulator(other_requests_per_hour=2, clock=clock) as braze:
        get(braze, "/campaigns/list", key="wrong")
        first = get(braze, "/campaigns/list")
        get_series(braze, EMAIL.id)
        second = get(braze, f"/campaigns/details?campaign_id={EMAIL.id}")
        third = get(braze, "/campaigns/list")

    reset = f"{NOON + HOUR:.0f}"
    assert [first.rate, second.rate, third.rate] == [("2", "1", reset), ("2", "0", reset), ("2", "0", reset)]
    assert third.status == 429


@server
def test_the_documented_limits_are_the_default(braze: Simulator) -> None:
    """By default the limits are 50,000 a minute and 250,000 an hour."""
    responses = get_series(braze, EMAIL.id), get(braze, "/campaigns/list")

    assert [response.rate[:2] for response in responses] == [("50000", "49999"), ("250000", "249999")]


@server
def test_the_list_has_the_recorded_shape(braze: Simulator) -> None:
    """A page of the list has the keys of the recorded one, and the names and tags of the campaigns."""
    recorded = json.loads((PAYLOADS / "campaigns_list.json").read_text())
    response = get(braze, "/campaigns/list").json
    entries = response["campaigns"]

    assert isinstance(entries, list)
    assert response.keys() == recorded.keys()
    assert {frozenset(entry) for entry in entries} == {frozenset(recorded["campaigns"][0])}
    assert [(entry["id"], entry["name"]) for entry in entries][:2] == [(EMAIL.id, EMAIL.name), (PUSH.id, PUSH.name)]


@server
def test_the_list_has_pages(clock: Clock) -> None:
    """A page holds a hundred campaigns, oldest first by default; past the end there are none."""
    with Simulator(campaigns=250, clock=clock) as braze:
        pages = [listed(braze, include_archived="true", page=str(page)) for page in range(4)]
        backwards = listed(braze, include_archived="true", sort_direction="desc")

        assert [len(page) for page in pages] == [PAGE_SIZE, PAGE_SIZE, 50, 0]
        assert [name for page in pages for name in page] == [campaign.id for campaign in braze.campaigns]
        assert backwards == [campaign.id for campaign in braze.campaigns[:-101:-1]]


@server
def test_the_list_can_be_narrowed(braze: Simulator) -> None:
    """Archived campaigns are left out by default, and on request those last edited before a time."""
    newest = max(campaign.edited for campaign in CAMPAIGNS if not campaign.archived)

    assert set(listed(braze, include_archived="true")) - set(listed(braze)) == {ARCHIVED.id}
    assert listed(braze, **{"last_edit.time[gt]": f"{newest:%Y-%m-%dT%H:%M:%S}"}) == []
    assert len(listed(braze, **{"last_edit.time[gt]": f"{newest - timedelta(seconds=1):%Y-%m-%dT%H:%M:%S}"})) == 1


@server
def test_details_have_the_recorded_shape(braze: Simulator) -> None:
    """Details have the keys of the recorded ones, name the variations, and leave the control group without a name."""
    recorded = json.loads((PAYLOADS / "campaign_details.json").read_text())
    response = get(braze, f"/campaigns/details?campaign_id={PUSH.id}").json
    messages = response["messages"]

    assert isinstance(messages, dict)
    assert response.keys() == recorded.keys()
    assert messages.keys() == {v.id for channel in PUSH.channels for v in channel.variations}
    assert {message.get("name") for message in messages.values()} == {"Variant 1", "Variant 2", None}
    assert [response[name] for name in ("name", "archived", "draft", "enabled", "last_sent")] == [
        PUSH.name,
        False,
        False,
        True,
        "2026-03-05T12:00:00+00:00",
    ]


@server
@pytest.mark.parametrize("campaign", [IN_APP, DRAFT, ARCHIVED], ids=["in-app", "draft", "archived"])
def test_what_sends_nothing_was_never_sent_last(braze: Simulator, campaign: CampaignModel) -> None:
    """Campaigns of in-app messages and those that send nothing have no time of the last message."""
    assert get(braze, f"/campaigns/details?campaign_id={campaign.id}").json["last_sent"] is None


@server
def test_details_hold_whole_mails(braze: Simulator) -> None:
    """The details of an e-mail campaign are large."""
    assert len(get(braze, f"/campaigns/details?campaign_id={EMAIL.id}").body) > 20_000


@server
def test_requests_are_on_record(braze: Simulator) -> None:
    """Each request is recorded with its target, whether its key was right, and its status."""
    before = time.monotonic()
    get_series(braze, EMAIL.id)
    get(braze, "/campaigns/list", key="wrong")
    first, second = braze.requests

    assert before <= first.time <= second.time <= time.monotonic()
    assert (first.path, first.query) == ("/campaigns/data_series", f"campaign_id={EMAIL.id}&length=1")
    assert (first.campaign_id, first.status, first.authorized) == (EMAIL.id, 200, True)
    assert (second.path, second.campaign_id, second.status, second.authorized) == ("/campaigns/list", None, 401, False)


@server
def test_connections_are_kept_and_counted(braze: Simulator) -> None:
    """One connection serves request after request, also after errors; a second client has a second connection."""
    with closing(connect(braze)) as connection:
        statuses = [
            exchange(connection, target).status for target in ("/campaigns/list", "/nowhere", "/campaigns/list")
        ]
    get(braze, "/campaigns/list")

    assert statuses == [200, 404, 200]
    assert braze.connections == 2


@server
def test_a_small_response_is_one_segment(braze: Simulator) -> None:
    """Headers and body are written at once, so that no client waits for an acknowledgement between them."""
    with closing(raw(braze, "/nowhere")) as client:
        assert client.recv(65_536).endswith(b'{"message":"No such URL"}')


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.com"])  # noqa: S104 - refused
def test_only_loopback_addresses_are_served(host: str) -> None:
    """Nothing but this machine can reach the simulator."""
    with pytest.raises(ValueError, match=f"expected a loopback address such as 127.0.0.1, got '{re.escape(host)}'"):
        Simulator(address=(host, 0))


def test_before_the_start_there_is_no_url() -> None:
    """A simulator that was not started says so."""
    with pytest.raises(RuntimeError, match="expected a started simulator"):
        _ = Simulator().url


# -- Faults ------------------------------------------------------------------------------------------------------------


@server
@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 502, 503, 504, 599])
def test_a_fault_can_be_any_status(braze: Simulator, status: int) -> None:
    """A status comes with a message, the rate headers, and a connection that goes on."""
    braze.misbehave(Status(status), times=1)
    with closing(connect(braze)) as connection:
        response = exchange(connection, f"/campaigns/data_series?campaign_id={EMAIL.id}&length=1")
        afterwards = exchange(connection, f"/campaigns/data_series?campaign_id={EMAIL.id}&length=1")

    assert (response.status, list(response.json)) == (status, ["message"])
    assert response.rate[0] == "50000"
    assert afterwards.status == 200
    assert [request.status for request in braze.requests] == [status, 200]


@server
def test_a_refusal_of_the_right_key_echoes_it(braze: Simulator) -> None:
    """A 401 as a fault is that of a wrong key."""
    braze.misbehave(Status(401))
    response = get_series(braze, EMAIL.id)

    assert response.json == {"message": "Invalid API key: simulated-braze-key"}
    assert response.rate == ("", "", "")


@server
def test_headers_and_body_of_a_status_can_be_given(braze: Simulator) -> None:
    """Given headers replace Braze's in whatever case, and a given body is sent as it is."""
    braze.misbehave(Status(429, b"slow down", {"Retry-After": "7", "x-ratelimit-reset": "never"}))
    limited = get_series(braze, EMAIL.id)
    braze.misbehave(Status(302, headers={"Location": "http://192.0.2.1/"}))
    moved = get_series(braze, EMAIL.id)

    assert (limited.status, limited.body, limited.headers["Retry-After"]) == (429, b"slow down", "7")
    assert {value for name, value in limited.headers.items() if name.lower() == "x-ratelimit-reset"} == {"never"}
    assert (moved.status, moved.headers["Location"]) == (302, "http://192.0.2.1/")


@server
@pytest.mark.parametrize(
    "fault",
    [Body(b"{"), Body(b"<html>", "text/html"), Body(b"[1]"), Body(bytes(20 << 20))],
    ids=["broken", "html", "array", "large"],
)
def test_a_fault_can_be_any_body(braze: Simulator, fault: Body) -> None:
    """Broken JSON, HTML and very large bodies arrive as given, with status 200."""
    braze.misbehave(fault)
    response = get_series(braze, EMAIL.id)

    assert response.status == 200
    assert response.body == fault.content
    assert response.headers["Content-Type"] == fault.content_type


@server
def test_a_fault_can_be_for_one_campaign(braze: Simulator) -> None:
    """Only the named campaign has the fault, until it is removed."""
    braze.misbehave(Status(500), campaign_id=EMAIL.id.upper())
    during = get_series(braze, EMAIL.id).status, get_series(braze, PUSH.id).status, get(braze, "/campaigns/list").status
    braze.behave(EMAIL.id)

    assert during == (500, 200, 200)
    assert get_series(braze, EMAIL.id).status == 200


@server
def test_the_newest_fault_holds_and_the_one_before_comes_back(braze: Simulator) -> None:
    """A fault for some requests replaces the previous one, which applies again afterwards, until all are removed."""
    braze.misbehave(Status(500))
    braze.misbehave(Status(429), times=2)
    braze.misbehave(Status(503), campaign_id=PUSH.id, times=1)
    statuses = [get_series(braze, campaign.id).status for campaign in (EMAIL, PUSH, EMAIL, EMAIL)]
    braze.behave()

    assert statuses == [429, 503, 429, 500]
    assert get_series(braze, EMAIL.id).status == 200


@server
def test_behaving_for_one_campaign_leaves_the_other_faults(braze: Simulator) -> None:
    """Removing one campaign's faults keeps those of other campaigns and of all requests."""
    braze.misbehave(Status(500), campaign_id=PUSH.id)
    braze.misbehave(Status(503), campaign_id=EMAIL.id)
    braze.behave(EMAIL.id)

    assert [get_series(braze, campaign.id).status for campaign in (EMAIL, PUSH)] == [200, 500]


@server
def test_latency_delays_responses_and_adds_to_other_faults(braze: Simulator) -> None:
    """A delayed response is the usual one, or that of another fault, after the given time."""
    braze.misbehave(Latency(0.15))
    start = time.monotonic()
    normal = get_series(braze, EMAIL.id)
    braze.misbehave(Status(500))
    failed = get_series(braze, EMAIL.id)

    assert time.monotonic() - start >= 0.3
    assert (normal.status, failed.status) == (200, 500)


@server
def test_a_hung_request_gets_no_response(braze: Simulator) -> None:
    """The request is recorded without a status, others get responses, and it ends when the client disconnects."""
    threads = threading.active_count()
    braze.misbehave(Hang(), campaign_id=EMAIL.id)
    with closing(raw(braze, f"/campaigns/data_series?campaign_id={EMAIL.id}&length=1")) as client:
        wait_until(lambda: len(braze.requests) == 1)
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert get_series(braze, PUSH.id).status == 200
    wait_until(lambda: threading.active_count() == threads)

    assert [request.status for request in braze.requests] == [None, 200]


@server
@pytest.mark.parametrize(("after", "received"), [(0, b""), (10, b"HTTP/1.1 2"), (17, b"HTTP/1.1 200 OK\r\n")])
def test_a_response_can_be_cut_anywhere(braze: Simulator, after: int, received: bytes) -> None:
    """A number of bytes of the response arrive, then the connection ends."""
    braze.misbehave(Cut(after))
    with closing(raw(braze, f"/campaigns/data_series?campaign_id={EMAIL.id}&length=1")) as client:
        assert read_all(client) == received
    assert braze.requests[0].status == (200 if after else None)


@server
def test_a_response_can_be_cut_in_its_body(braze: Simulator) -> None:
    """A client that knows the length sees that the body is not whole."""
    braze.misbehave(Cut(400))
    with pytest.raises(IncompleteRead):
        get_series(braze, EMAIL.id)


@server
def test_a_response_can_drip_from_its_first_byte(braze: Simulator) -> None:
    """The whole response arrives, one byte each interval."""
    braze.misbehave(Drip(0.002, "headers"), times=1)
    start = time.monotonic()
    with closing(connect(braze)) as connection:
        response = exchange(connection, "/nowhere")
        elapsed = time.monotonic() - start
        afterwards = exchange(connection, "/nowhere")

    assert elapsed >= 0.002 * (len(response.body) + 100)
    assert (response.status, response.json) == (afterwards.status, afterwards.json) == (404, {"message": "No such URL"})


@server
def test_a_response_can_drip_from_its_body(braze: Simulator) -> None:
    """The headers arrive at once, the body's bytes one by one."""
    braze.misbehave(Drip(0.1))
    with closing(raw(braze, "/nowhere")) as client:
        head, _, body = client.recv(65_536).partition(b"\r\n\r\n")
        while not body:
            body = client.recv(65_536)

        assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert body == b"{"


@server
@pytest.mark.parametrize(
    "fault",
    [None, Hang(), Latency(600), Drip(600, "headers"), Drip(600), Body(bytes(50 << 20))],
    ids=["idle", "hang", "latency", "drip headers", "drip body", "client that does not read"],
)
def test_closing_is_prompt_whatever_goes_on(clock: Clock, fault: Fault | None) -> None:
    """Closing ends connections and threads at once, those of hung, slow and idle clients too."""
    before = set(threading.enumerate())
    with Simulator(clock=clock) as braze:
        if fault is not None:
            braze.misbehave(fault)
        client = raw(braze, f"/campaigns/data_series?campaign_id={EMAIL.id}&length=1")
        wait_until(lambda: len(braze.requests) == 1)
        start = time.monotonic()
        braze.close()
        elapsed = time.monotonic() - start
        left = set(threading.enumerate()) - before
    with closing(client):
        read_all(client)  # comes to an end

    assert elapsed < 2
    assert not {thread for thread in left if thread.is_alive()}


@server
def test_a_closed_simulator_refuses_connections(clock: Clock) -> None:
    """After closing nothing listens, closing again is harmless, and the same port is free again."""
    with Simulator(clock=clock) as braze:
        url = urlsplit(braze.url)
        assert get(braze, "/campaigns/list").status == 200
    braze.close()
    address = url.hostname or "", url.port or 0

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with Simulator(clock=clock, address=address) as again:
        assert again.url == url.geturl()


@server
def test_clients_that_break_off_are_no_news(braze: Simulator, capfd: pytest.CaptureFixture[str]) -> None:
    """A client that resets its connection in the middle of a response causes no output."""
    threads = threading.active_count()
    braze.misbehave(Drip(0.001, "headers"))
    client = raw(braze, "/nowhere")
    client.recv(1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
    client.close()
    wait_until(lambda: threading.active_count() == threads)

    assert capfd.readouterr() == ("", "")


# -- Helpers -----------------------------------------------------------------------------------------------------------


def get_series(
    braze: Simulator, campaign_id: str, *, length: int = 1, ending_at: str = "", key: str | None = "simulated-braze-key"
) -> Response:
    """Request a campaign's data series."""
    target = f"/campaigns/data_series?campaign_id={quote(campaign_id)}&length={length}"
    return get(braze, target + (f"&ending_at={quote(ending_at)}" if ending_at else ""), key=key)


def listed(braze: Simulator, **parameters: str) -> list[str]:
    """Return the ids on a page of the list."""
    campaigns = get(braze, f"/campaigns/list?{urlencode(parameters)}").json["campaigns"]
    assert isinstance(campaigns, list)
    return [campaign["id"] for campaign in campaigns]


def days_of(response: Response) -> list[str]:
    """Return the days of a data series."""
    data = response.json["data"]
    assert isinstance(data, list)
    return [day["time"] for day in data]


def get(braze: Simulator, target: str, *, key: str | None = "simulated-braze-key", method: str = "GET") -> Response:
    """Send one request over a connection of its own."""
    with closing(connect(braze)) as connection:
        return exchange(connection, target, key=key, method=method)


def connect(braze: Simulator) -> HTTPConnection:
    """Return a connection with a timeout."""
    url = urlsplit(braze.url)
    return HTTPConnection(url.hostname or "", url.port, timeout=20)


def exchange(
    connection: HTTPConnection, target: str, *, key: str | None = "simulated-braze-key", method: str = "GET"
) -> Response:
    """Send a request and read the response."""
    connection.request(method, target, headers={} if key is None else {"Authorization": f"Bearer {key}"})
    received = connection.getresponse()
    return Response(received.status, dict(received.getheaders()), received.read())


def raw(braze: Simulator, target: str) -> socket.socket:
    """Send a request over a bare socket and leave reading to the test."""
    url = urlsplit(braze.url)
    client = socket.create_connection((url.hostname, url.port), timeout=20)
    client.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer simulated-braze-key\r\n\r\n".encode())
    return client


def read_all(client: socket.socket) -> bytes:
    """Read until the connection ends or is reset."""
    received = b""
    try:
        while part := client.recv(1 << 20):
            received += part
    except ConnectionResetError:
        pass
    return received


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
