"""A month of a simulated shop as text that promtool makes into Prometheus' blocks. Pure."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from exporter import __version__
from exporter.braze.counters import ApiStatistics
from exporter.braze.errors import Reason
from exporter.exposition import render
from exporter.metrics import CAMPAIGN_STATUS, day_rows, exporter_rows, status_rows, workspace_rows
from exporter.simulator.world import CONTROL_GROUP, CampaignModel, ChannelModel, VariationModel, campaign_models
from exporter.state import CampaignState, WorkspaceState
from tests.support.history import polled, recorded_day

NOW = datetime(2025, 11, 6, 19, 40, tzinfo=UTC)
"""When the history ends, a Thursday evening."""

ZONE = "Europe/Berlin"
STEP = timedelta(minutes=5)
"""Between two samples where panels look closely; elsewhere there is one an hour."""

_CLOSE_DAYS = 3
_FIRST = NOW.replace(hour=0, minute=0) - timedelta(days=30)
_FAILING_SINCE = NOW - timedelta(hours=1, minutes=35)
_REFUSED_SINCE = NOW - timedelta(minutes=50)
_STALE_AFTER = timedelta(minutes=20)
_OUTAGE = (NOW - timedelta(hours=4), NOW - timedelta(hours=3, minutes=30))


def _experiment() -> CampaignModel:
    """Return a campaign over two channels with two variations and a control group."""
    variations = (
        VariationModel("11111111-1111-4111-8111-111111111111", "A: reminder", 0.4, 1.0),
        VariationModel("22222222-2222-4222-8222-222222222222", "B: free shipping", 0.4, 1.25),
        VariationModel("33333333-3333-4333-8333-333333333333", CONTROL_GROUP, 0.2, 0.9),
    )
    channels = (ChannelModel("email", variations), ChannelModel("ios_push", variations[:2]))
    usual = campaign_models(2)[1]
    return replace(usual, id="cart-reminder", name="Cart reminder", base=26_000.0, channels=channels)


def _named(campaigns: tuple[CampaignModel, ...], suffix: str) -> tuple[CampaignModel, ...]:
    """Return the campaigns with names that every font can show."""
    names = (model.name.encode("ascii", "ignore").decode().split("  ")[0].strip() for model in campaigns)
    return tuple(replace(model, name=name + suffix) for model, name in zip(campaigns, names, strict=True))


EXPERIMENT = _experiment()
CAMPAIGNS: Mapping[str, tuple[CampaignModel, ...]] = {
    "europe": (EXPERIMENT, *_named(campaign_models(12), "")),
    "benelux": _named(campaign_models(5, seed=2), " NL"),
    "outlet": _named(campaign_models(5, seed=3)[3:], " outlet"),
}
_FAILING = CAMPAIGNS["benelux"][-1]
_REFUSED = "outlet"
"""Of this workspace Braze refuses the key at the end."""


def samples() -> Iterator[str]:
    """Yield the lines of OpenMetrics that every scrape would have shown, without the end and the recorded series."""
    moment = _FIRST
    while moment <= NOW:
        if moment.minute == 0 or _is_looked_at_closely(moment):
            time = f" {moment.timestamp():.0f}\n"
            for line in _exposition(moment):
                series, _, value = line.rpartition(" ")
                yield f"{_with_target(series)} {value}{time}"
        moment += STEP
    yield from _recorded_days()
    yield from (f"{line} {NOW.timestamp():.0f}\n" for line in _ALERTS.splitlines())


def _recorded_days() -> Iterator[str]:
    """Yield what is recorded of each complete day, in the morning of the next."""
    midnight = _FIRST.astimezone(ZoneInfo(ZONE)).replace(hour=0) + timedelta(days=1)
    while (six := midnight.astimezone(UTC) + timedelta(hours=6)) <= NOW:
        for workspace, campaigns in CAMPAIGNS.items():
            for campaign in campaigns:
                state = polled(workspace, ZoneInfo(ZONE), campaign, six.timestamp())
                yield from recorded_day(state, six.timestamp())
        midnight += timedelta(days=1)


def _is_looked_at_closely(moment: datetime) -> bool:
    """Say whether the time is within the last days or on the same weekday of the weeks before."""
    zone = ZoneInfo(ZONE)
    days = (NOW.astimezone(zone).date() - moment.astimezone(zone).date()).days
    return days <= _CLOSE_DAYS or days % 7 == 0


def _exposition(moment: datetime) -> Iterator[str]:
    """Yield the sample lines of one scrape, and what Prometheus and the process add to it."""
    now = moment.timestamp()
    for workspace, campaigns in CAMPAIGNS.items():
        for campaign in campaigns:
            state = _state(workspace, campaign, moment)
            yield from _lines(render([*day_rows(state), *status_rows(state, 0, CAMPAIGN_STATUS)]))
        refused = workspace == _REFUSED and moment >= _REFUSED_SINCE
        shown = WorkspaceState(
            workspace,
            ZONE,
            len(campaigns),
            up=not refused,
            paused=Reason.UNAUTHORIZED if refused else None,
            apis={"data_series": _api(campaigns, moment, _REFUSED_SINCE if refused else None)},
        )
        yield from _lines(render(workspace_rows(shown)))
    own = exporter_rows(
        version=__version__, python_version="3.13", reload_successful=True, reload_time=_FIRST.timestamp(), series=2400
    )
    yield from _lines(render(own))
    uptime = now - _FIRST.timestamp()
    yield f"process_resident_memory_bytes {6.1e7 + 2e6 * math.sin(now / 9000):.0f}"
    yield f"process_cpu_seconds_total {uptime * 0.012 + 20 * math.sin(now / 9000):.3f}"
    yield f"process_start_time_seconds {_FIRST.timestamp():.0f}"
    yield f"scrape_duration_seconds {0.006 + 0.002 * math.sin(now / 700):.4f}"
    yield "scrape_samples_scraped 2400"
    yield "up 1"


def _state(workspace: str, campaign: CampaignModel, moment: datetime) -> CampaignState:
    """Return what polling knows of a campaign; some have been failing for a while at the end, until they are stale."""
    zone = ZoneInfo(ZONE)
    newest = moment - timedelta(seconds=(moment.timestamp() * 7 + len(campaign.name) * 41) % 300)
    since = {_REFUSED: _REFUSED_SINCE}.get(workspace, _FAILING_SINCE if campaign is _FAILING else NOW)
    known = min(newest, since)
    stale = moment - known > _STALE_AFTER
    failing = campaign is _FAILING and moment >= since
    state = polled(workspace, zone, campaign, known.timestamp())
    return replace(
        state,
        up=not (failing or stale),
        last_success=known.timestamp(),
        polls=int((moment - _FIRST) / STEP),
        failures={Reason.TIMEOUT: 1 + int((moment - _FAILING_SINCE) / STEP)} if failing else {},
        latest=None if stale else state.latest,
        previous=None if stale else state.previous,
    )


def _api(campaigns: tuple[CampaignModel, ...], moment: datetime, refused_since: datetime | None) -> ApiStatistics:
    """Return what calling the API has counted: a poll of each campaign every five minutes, and a short outage.

    From the time on at which the key is refused, only probes.
    """
    probes = 0 if refused_since is None else 1 + int((moment - refused_since) / STEP)
    requests = len(campaigns) * int(((refused_since or moment) - _FIRST) / STEP) + probes
    begin, end = _OUTAGE
    failed = len(campaigns) * int((min(max(moment, begin), end) - begin) / STEP) // 4
    api = ApiStatistics(
        rate_limit=50_000,
        rate_limit_remaining=50_000 - len(campaigns) * moment.minute // 5,
        rate_limit_reset=(moment + timedelta(hours=1)).timestamp(),
    )
    api.requests = requests
    api.failures[Reason.TIMEOUT] = failed
    api.failures[Reason.UNAUTHORIZED] = probes
    fast, usual = requests * 3 // 4, requests // 5
    api.durations[1], api.durations[2], api.durations[3] = fast, usual, requests - fast - usual
    api.duration_sum = requests * 0.2
    return api


def _lines(pieces: Mapping[str, bytes]) -> Iterator[str]:
    return (line for text in pieces.values() for line in text.decode().splitlines())


def _with_target(series: str) -> str:
    """Add the labels of the scraped target."""
    name, _, labels = series.partition("{")
    return f'{name}{{job="braze",instance="exporter:10105"{"," + labels if labels else "}"}'


_CAMPAIGN = f'workspace="benelux",campaign_id="{_FAILING.id}",campaign_name="{_FAILING.name}"'
_FIRING = {
    f'alertname="BrazeCampaignFailing",severity="warning",{_CAMPAIGN}': _FAILING_SINCE,
    f'alertname="BrazeWorkspaceUnauthorized",severity="critical",workspace="{_REFUSED}"': _REFUSED_SINCE,
}
_ALERTS = "".join(
    f'ALERTS{{{labels},alertstate="firing"}} 1\nALERTS_FOR_STATE{{{labels}}} {since.timestamp():.0f}\n'
    for labels, since in _FIRING.items()
)
