"""Tests of exporter.metrics: the catalogue as the field writes metrics, and states in, samples out."""

import re
import subprocess
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.braze.counters import ApiStatistics
from exporter.braze.data_series import Day, Variation
from exporter.braze.errors import Reason
from exporter.catalogue import MESSAGE_STATISTICS
from exporter.metrics import (
    CAMPAIGN_STATUS,
    DAY_FAMILIES,
    OWN_FAMILIES,
    Row,
    day_rows,
    day_timestamp,
    exporter_rows,
    status_rows,
    workspace_rows,
)
from exporter.polled import FAMILIES
from exporter.state import CampaignState, WorkspaceState

GOLDENS = Path(__file__).parent / "data" / "goldens"
EVERY_STATISTIC = {
    **dict.fromkeys(MESSAGE_STATISTICS, 1.0),
    **{f"conversions{number}{ending}": 2.0 for number in ("", *range(1, 26)) for ending in ("", "_by_send_time")},
    "revenue": 3.5,
    "carousel_slide_1_click": 4.0,
}
STATE = CampaignState(
    workspace="main",
    api="data_series",
    timezone=ZoneInfo("UTC"),
    campaign_id="3bbc4555-8fa0-4c9b-a5c0-4505edf3e064",
    campaign_name="Welcome",
    interval=300.0,
    up=True,
    last_success=1772600000.0,
    polls=2,
    failures={Reason.TIMEOUT: 1},
    latest=Day(date(2026, 3, 3), EVERY_STATISTIC, (Variation("email", "1", "", EVERY_STATISTIC),)),
    previous=Day(date(2026, 3, 2), EVERY_STATISTIC, (Variation("email", "1", "", EVERY_STATISTIC),)),
)
WORKSPACE = WorkspaceState(
    "main",
    "UTC",
    1,
    up=True,
    paused=None,
    apis={"data_series": ApiStatistics(1, rate_limit=1, rate_limit_remaining=1, rate_limit_reset=1)},
    rollover_offset=90.0,
)


def every_row() -> list[Row]:
    """Return rows that hold a sample of every family."""
    own = exporter_rows(
        version="1",
        python_version="3",
        reload_successful=True,
        reload_time=1.5e9,
        series=7,
        web_config_successful=False,
    )
    return [*day_rows(STATE), *status_rows(STATE, 0, CAMPAIGN_STATUS), *workspace_rows(WORKSPACE), *own]


def test_names_are_prometheus_names() -> None:
    """Only counters end in _total, only infos in _info, nothing ends in what belongs to histograms and summaries."""
    for family in FAMILIES:
        assert re.fullmatch("braze_[a-z0-9_]+", family.name)
        assert family.name.endswith("_total") == (family.type == "counter")
        assert family.name.endswith("_info") == (family.type == "info")
        assert not family.name.endswith(("_count", "_sum", "_bucket", "_created"))


def test_names_are_unique() -> None:
    """No family is there twice, and none is another's name with a suffix that formats add."""
    names = [family.name for family in FAMILIES]

    assert len(names) == len(set(names))


def test_help_says_where_a_number_comes_from() -> None:
    """Every HELP is there; those of Braze's numbers end with the field and that it was polled."""
    for family in DAY_FAMILIES:
        assert re.search(r"Braze's data\[\]\.\S+, polled, not read at scrape time\.$", family.help)
    for family in (*CAMPAIGN_STATUS, *OWN_FAMILIES):
        assert family.help.endswith(". Counted by the exporter.")


def test_both_days_have_the_same_families() -> None:
    """The previous day's families are the latest day's with another prefix, labels included."""
    previous = {family.name: family.labels for family in DAY_FAMILIES if family.name.startswith("braze_previous_day_")}
    latest = {family.name: family.labels for family in DAY_FAMILIES if family.name not in previous}

    assert {name.replace("braze_", "braze_previous_day_", 1): labels for name, labels in latest.items()} == previous


def test_samples_have_the_labels_of_the_catalogue() -> None:
    """Every family has samples, and each sample has exactly the labels that the catalogue names."""
    labels = {family.name: set(family.labels) for family in FAMILIES}
    seen = set()
    for row in every_row():
        for (family, label, _), _ in row.samples:
            seen.add(family)
            names = {name for name, _ in row.labels} | ({label[0]} if label else set())

            assert labels[family] == names - {"le"}
    assert labels.keys() == seen


def test_rows_name_their_labels_in_order() -> None:
    """Rendering relies on it: the labels of a row are sorted by name."""
    for row in every_row():
        assert sorted(row.labels) == list(row.labels)


def test_every_statistic_has_a_sample_on_both_days() -> None:
    """What a day holds is what is shown, one sample a statistic, beside the day's own time stamp."""
    latest_day, latest_row, previous_day, previous_row = day_rows(STATE)

    assert len(latest_row.samples) == len(previous_row.samples) == len(EVERY_STATISTIC)
    assert len(latest_day.samples) == len(previous_day.samples) == len(EVERY_STATISTIC) + 1


def test_conversions_beyond_the_letters_are_summed() -> None:
    """They are one sample for a label set, of both kinds, on both days, of campaigns and variations alike."""
    numbers = {"conversions26": 1.0, "conversions": 5.0, "conversions300": 2.0, "conversions26_by_send_time": 4.0}
    statistics = {**numbers, "conversions0": 7.0, "conversions01_by_send_time": 8.0}
    day = Day(date(2026, 3, 3), statistics, (Variation("email", "1", "", statistics),))
    rows = day_rows(replace(STATE, latest=day, previous=day))
    samples = {series: value for row in rows for series, value in row.samples}

    assert sum(len(row.samples) for row in rows) == len(samples) == 4 * 5 + 2
    for prefix in ("braze_message_", "braze_campaign_", "braze_previous_day_message_", "braze_previous_day_campaign_"):
        assert {name: value for name, value in samples.items() if name[0].startswith(prefix) and name[1]} == {
            (f"{prefix}conversions", ("conversion_event", "A"), ""): 5.0,
            (f"{prefix}conversions", ("conversion_event", "other"), ""): 3.0,
            (f"{prefix}conversions_by_send_time", ("conversion_event", "other"), ""): 4.0,
            (f"{prefix}other", ("stat", "conversions0"), ""): 7.0,
            (f"{prefix}other", ("stat", "conversions01_by_send_time"), ""): 8.0,
        }


def test_a_sum_of_conversions_that_no_float_holds_is_absent() -> None:
    """Two numbers that are fine each are no sample when their sum is not."""
    day = Day(date(2026, 3, 3), {"conversions26": 1e308, "conversions27": 1e308}, ())
    (row,) = day_rows(replace(STATE, latest=day, previous=None))

    assert [family for (family, *_), _ in row.samples] == ["braze_campaign_day_timestamp_seconds"]


def test_a_campaign_without_days_has_no_numbers() -> None:
    """Absent is not zero."""
    assert day_rows(replace(STATE, latest=None, previous=None)) == ()


def test_up_is_absent_before_the_first_poll() -> None:
    """A campaign that was not polled yet is neither up nor down, and has no last success; its counter is born at 0."""
    status, _ = status_rows(replace(STATE, up=None, last_success=None, polls=0, failures={}), 0, CAMPAIGN_STATUS)

    assert {(family, value) for (family, *_), value in status.samples} == {
        ("braze_campaign_polls_total", 0),
        ("braze_campaign_poll_interval_seconds", 300),
    }


def test_places_do_not_depend_on_names() -> None:
    """A renamed campaign's rows keep their places."""
    renamed = replace(STATE, campaign_name="Hello")

    assert [row.key for row in day_rows(STATE)] == [row.key for row in day_rows(renamed)]
    assert len({row.key for row in day_rows(STATE)}) == 4


def test_durations_are_cumulated() -> None:
    """Each bucket counts all requests that took no longer than its bound says, the last one all of them."""
    statistics = ApiStatistics()
    for seconds in (0.01, 0.05, 0.07, 0.4, 2.0, 29.0, 30.5, 99.0):
        statistics.observe(seconds)
    *_, row = workspace_rows(replace(WORKSPACE, apis={"data_series": statistics}))
    samples = {series[1:]: value for series, value in row.samples if series[0] == "braze_api_request_duration_seconds"}
    buckets = {
        label[1]: value for (label, suffix), value in samples.items() if label is not None and suffix == "_bucket"
    }

    assert buckets == {
        "0.05": 2,
        "0.1": 3,
        "0.2": 3,
        "0.3": 3,
        "0.5": 4,
        "1.0": 4,
        "2.0": 5,
        "5.0": 5,
        "10.0": 5,
        "30.0": 6,
        "+Inf": 8,
    }
    assert samples[None, "_count"] == 8
    assert samples[None, "_sum"] == pytest.approx(161.03)


def test_what_a_workspace_says() -> None:
    """Each number of a workspace and of its endpoint is where it belongs."""
    statistics = ApiStatistics(5, rate_limit=50.0, rate_limit_remaining=7.0, rate_limit_reset=1.5e9)
    statistics.failures[Reason.TIMEOUT] = 2
    state = replace(WORKSPACE, campaigns=3, up=False, apis={"data_series": statistics})
    samples = {(name, label): value for row in workspace_rows(state) for (name, label, _), value in row.samples}

    assert samples["braze_workspace_campaigns", None] == 3
    assert samples["braze_workspace_up", None] == 0
    assert samples["braze_workspace_info", None] == 1
    assert samples["braze_workspace_day_rollover_offset_seconds", None] == 90
    assert samples["braze_api_requests_total", None] == 5
    assert samples["braze_api_request_failures_total", ("reason", "timeout")] == 2
    assert samples["braze_api_request_failures_total", ("reason", "connection")] == 0
    assert samples["braze_api_rate_limit", None] == 50
    assert samples["braze_api_rate_limit_remaining", None] == 7
    assert samples["braze_api_rate_limit_reset_timestamp_seconds", None] == 1.5e9
    unknown = replace(state, up=None, rollover_offset=None)
    names = {name for row in workspace_rows(unknown) for (name, *_), _ in row.samples}
    assert not names & {"braze_workspace_up", "braze_workspace_day_rollover_offset_seconds"}


def test_what_the_polls_of_a_campaign_say() -> None:
    """Each number is where it belongs, a failure by its reason."""
    samples = {
        (name, label): value
        for row in status_rows(STATE, 7, CAMPAIGN_STATUS)
        for (name, label, _), value in row.samples
    }

    assert samples == {
        ("braze_campaign_polls_total", None): 2,
        ("braze_campaign_poll_interval_seconds", None): 300,
        ("braze_campaign_up", None): 1,
        ("braze_campaign_last_success_timestamp_seconds", None): 1772600000,
        ("braze_campaign_poll_failures_total", ("reason", "timeout")): 1,
        ("braze_exporter_dropped_series", None): 7,
    }


def test_failures_of_an_api_are_born_at_zero() -> None:
    """Every reason is there from the start, so that the first failure is an increase."""
    reasons = [
        label
        for row in workspace_rows(WORKSPACE)
        for (family, label, _), _ in row.samples
        if family == "braze_api_request_failures_total"
    ]

    assert reasons == [("reason", reason) for reason in Reason]


def test_rate_limit_is_absent_until_braze_names_it() -> None:
    """Before an answer with the headers there is no rate limit to show."""
    unknown = replace(WORKSPACE, apis={"data_series": ApiStatistics()})
    families = {family for row in workspace_rows(unknown) for (family, *_), _ in row.samples}

    assert not any("rate_limit" in family for family in families)


@pytest.mark.parametrize(
    ("zone", "day", "begins"),
    [
        ("UTC", date(2026, 3, 3), "2026-03-03T00:00:00+00:00"),
        ("Asia/Kolkata", date(2026, 3, 3), "2026-03-02T18:30:00+00:00"),
        ("America/New_York", date(2026, 3, 9), "2026-03-09T04:00:00+00:00"),  # the day after clocks went forward
        ("America/Santiago", date(2026, 9, 6), "2026-09-06T04:00:00+00:00"),  # a day that begins at 01:00
        ("America/Havana", date(2026, 11, 1), "2026-11-01T04:00:00+00:00"),  # a day with two midnights
    ],
)
def test_a_day_begins_at_its_midnight(zone: str, day: date, begins: str) -> None:
    """The time stamp is the first moment of the date in the workspace's zone."""
    assert day_timestamp(Day(day, {}, ()), ZoneInfo(zone)) == datetime.fromisoformat(begins).timestamp()


@given(
    st.dates(date(1900, 1, 1), date(2200, 1, 1)), st.sampled_from(["America/Havana", "Asia/Kathmandu", "Pacific/Apia"])
)
def test_the_first_moment_of_a_day_is_on_that_day(day: date, zone: str) -> None:
    """At the time stamp the date is the day, and a moment before it was not yet; unless the zone left the day out."""
    begins = datetime.fromtimestamp(0, UTC) + timedelta(seconds=day_timestamp(Day(day, {}, ()), ZoneInfo(zone)))
    if day == date(2011, 12, 30) and zone == "Pacific/Apia":  # the day that Samoa skipped
        return

    assert begins.astimezone(ZoneInfo(zone)).date() == day
    assert (begins - timedelta(seconds=1)).astimezone(ZoneInfo(zone)).date() < day


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDENS.glob("*.txt") if "openmetrics" not in path.name))
def test_goldens_are_clean(name: str, promtool: Path) -> None:
    """Promtool has nothing to say against any golden."""
    with (GOLDENS / name).open("rb") as golden:
        check = subprocess.run(
            [promtool, "check", "metrics"], stdin=golden, capture_output=True, text=True, check=False
        )

    assert (check.returncode, check.stdout + check.stderr) == (0, "")
