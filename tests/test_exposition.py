"""Tests of exporter.exposition: samples in, the bytes that prometheus_client would write out."""

import math
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_latest_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample as ReferenceSample

from exporter.braze.counters import ApiStatistics
from exporter.braze.data_series import Day, Variation, clean, parse_data_series
from exporter.braze.errors import PayloadError, Reason
from exporter.config import Limits
from exporter.exposition import Exposition, Format, value_text, written, written_metrics
from exporter.metrics import CAMPAIGN_STATUS, Row, day_rows, exporter_rows, status_rows, workspace_rows
from exporter.polled import DATA_SERIES, FAMILIES
from exporter.publisher import Publisher
from exporter.state import CampaignState, WorkspaceState
from tests.support.strategies import ANSWERS

TEXT = st.text() | st.text(alphabet='\\"\n,={} \r\0\x1f\x85ü🛒')
LABEL_VALUES = TEXT.map(clean)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 10**9).map(float)
STATISTICS = st.dictionaries(
    st.sampled_from(["sent", "revenue", "conversions", "conversions3", "conversions1_by_send_time", "enrolled"])
    | LABEL_VALUES,
    NUMBERS,
    max_size=8,
)
VARIATIONS = st.builds(Variation, LABEL_VALUES, LABEL_VALUES, LABEL_VALUES, STATISTICS)
SOME_DAYS = st.builds(
    Day,
    st.dates(),
    STATISTICS,
    st.lists(VARIATIONS, max_size=4, unique_by=lambda row: (row.channel, row.id, row.name)).map(tuple),
)
STATES = st.builds(
    CampaignState,
    LABEL_VALUES,
    st.just("data_series"),
    st.sampled_from(["UTC", "Asia/Kolkata", "America/New_York"]).map(ZoneInfo),
    LABEL_VALUES,
    LABEL_VALUES,
    NUMBERS,
    st.none() | st.booleans(),
    st.none() | NUMBERS,
    st.none(),
    st.integers(0, 10**12),
    st.dictionaries(st.sampled_from(Reason), st.integers(1, 10**7)),
    st.none() | SOME_DAYS,
    st.none() | SOME_DAYS,
)
LIMITS = Limits(series=1_000_000, series_per_campaign=10_000)
STATE = CampaignState(
    workspace="main",
    api="data_series",
    timezone=ZoneInfo("UTC"),
    campaign_id="3bbc4555-8fa0-4c9b-a5c0-4505edf3e064",
    campaign_name="Welcome",
    interval=300.0,
    up=True,
    last_success=1772600000.0,
    polls=1,
    latest=Day(date(2026, 3, 3), {}, (Variation("email", "1", "", {"sent": 5.0}),)),
)
EVERY = [f"statistic {number}" for number in range(50)]
OTHER_DAY = Day(date(2026, 3, 3), {"revenue": 1.5}, (Variation("email", "1", "", {"sent": 6.0, "opens": 1.0}),))


class Reference(Collector):
    """Metrics for prometheus_client."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics, in their order."""
        return self._metrics


def reference(metrics: Iterable[Metric], form: Format) -> bytes:
    """Return what prometheus_client makes of metrics, without OpenMetrics' last line."""
    registry = CollectorRegistry()
    registry.register(Reference(metrics))
    if form is Format.TEXT:
        return generate_latest(registry)
    openmetrics: bytes = generate_latest_openmetrics(registry)  # type: ignore[no-untyped-call]
    return openmetrics.removesuffix(b"# EOF\n")


def rendered(rows: Iterable[Row], form: Format) -> bytes:
    """Return what prometheus_client makes of rows."""
    return reference(metrics_of(list(rows)), form)


def metrics_of(rows: list[Row]) -> Iterator[Metric]:
    """Yield the families that have samples, in the catalogue's order."""
    for family in FAMILIES:
        name = family.name
        if family.type in {"counter", "info"}:
            name = name.removesuffix("_total").removesuffix("_info")
        metric = Metric(name, family.help, family.type)
        metric.samples = [
            ReferenceSample(family.name + suffix, dict([*row.labels, *filter(None, [label])]), value)
            for row in rows
            for (family_name, label, suffix), value in row.samples
            if family_name == family.name
        ]
        if metric.samples:
            yield metric


def joined(exposition: Exposition, form: Format = Format.TEXT) -> str:
    """Return what a scrape would send of the campaigns."""
    return b"".join(exposition.snapshot().pieces(form)).decode()


@pytest.mark.parametrize("form", Format)
@given(state=STATES, dropped=st.integers(0, 10**7))
def test_equals_prometheus_client(form: Format, state: CampaignState, dropped: int) -> None:
    """Any campaign is rendered byte for byte as prometheus_client renders the same samples."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    publisher.publish(state)

    expected = rendered([*day_rows(state), *status_rows(state, 0, CAMPAIGN_STATUS)], form)

    assert expected == b"".join(exposition.snapshot().pieces(form))
    assert rendered(status_rows(state, dropped, CAMPAIGN_STATUS), form) == written(
        status_rows(state, dropped, CAMPAIGN_STATUS), form, FAMILIES
    )


@pytest.mark.parametrize("form", Format)
@given(data=st.data())
def test_own_metrics_equal_prometheus_client(form: Format, data: st.DataObject) -> None:
    """Workspaces, their APIs with a histogram, and the exporter itself are rendered so too."""
    statistics = ApiStatistics(rate_limit=50_000.0, rate_limit_reset=data.draw(NUMBERS))
    for seconds in data.draw(st.lists(st.floats(0, 100))):
        statistics.observe(seconds)
    workspace = WorkspaceState(
        data.draw(LABEL_VALUES), data.draw(LABEL_VALUES), 3, up=True, paused=None, apis={"data_series": statistics}
    )
    own = exporter_rows(version="1", python_version="3", reload_successful=True, reload_time=1.5e9, series=7)
    rows = [*workspace_rows(workspace), *own]

    assert rendered(rows, form) == written(rows, form)


@pytest.mark.parametrize("form", Format)
def test_metrics_of_prometheus_client(form: Format) -> None:
    """What its collectors say of the process is written as prometheus_client does, all of one moment."""
    registry = CollectorRegistry()
    collectors = ProcessCollector(registry=None), PlatformCollector(registry=None), GCCollector(registry=registry)
    metrics = [metric for collector in collectors for metric in collector.collect()]

    assert {metric.type for metric in metrics} == {"counter", "gauge"}
    assert written_metrics(metrics, form) == reference(metrics, form)


@given(NUMBERS)
def test_value_text_can_be_read_back(value: float) -> None:
    """Nothing of a number is lost in its text."""
    assert float(value_text(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (7.0, "7.0"),
        (999_999.0, "999999.0"),
        (1_000_000.0, "1e+06"),
        (1772323200.5, "1.7723232005e+09"),
        (1e22, "1e+22"),
        (-5e6, "-5000000.0"),
    ],
)
def test_value_text(value: float, text: str) -> None:
    """Numbers from a million on have an exponent, as Go's have."""
    assert value_text(value) == text


@given(st.lists(STATES, max_size=4, unique_by=lambda state: state.key))
def test_parsers_read_it_back(states: list[CampaignState]) -> None:
    """prometheus_client's parsers read both formats, and find every sample with its labels and value."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    for state in states:
        publisher.publish(state)
    expected = sorted(
        (family, sorted([*row.labels, *filter(None, [label])]), value)
        for state in states
        for row in (*day_rows(state), *status_rows(state, 0, CAMPAIGN_STATUS))
        for (family, label, _), value in row.samples
    )

    for families in (
        parse_text(joined(exposition)),
        parse_openmetrics(joined(exposition, Format.OPENMETRICS) + "# EOF\n"),  # type: ignore[no-untyped-call]
    ):
        read = sorted(
            (sample.name, sorted(sample.labels.items()), sample.value)
            for family in families
            for sample in family.samples
        )
        assert expected == read


@given(st.lists(STATES, max_size=6))
def test_label_sets_never_collide(states: list[CampaignState]) -> None:
    """Whatever the names are, no two sample lines have the same labels."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    for state in states:
        publisher.publish(state)
    series = [line.rpartition(" ")[0] for line in joined(exposition).split("\n") if line and not line.startswith("#")]

    assert len(series) == len(set(series))


@settings(max_examples=1000)
@given(value=ANSWERS, name=LABEL_VALUES)
def test_hostile_answers_never_break_the_page(value: object, name: str) -> None:
    """Whatever Braze answers is refused as a whole or served so that parsers read it, one sample a label set."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    publisher.publish(STATE)
    try:
        parsed = parse_data_series(value)
    except PayloadError:
        return
    publisher.publish(
        replace(STATE, campaign_id="hostile", campaign_name=name, latest=parsed.latest, previous=parsed.previous)
    )
    samples = [
        (sample.name, *sorted(sample.labels.items()))
        for family in parse_text(joined(exposition))
        for sample in family.samples
    ]

    assert len(samples) == len(set(samples))
    assert len(samples) == sum(not line.startswith("#") for line in joined(exposition).split("\n")[:-1])


def test_heads_need_no_escaping() -> None:
    """HELP texts are one line of plain text without quotes and backslashes."""
    for family in FAMILIES:
        assert family.help.isascii()
        assert family.help.isprintable()
        assert not set(family.help) & set('\\"')


@settings(max_examples=500)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([LIMITS, Limits(series=1, series_per_campaign=1)]),
            st.builds(
                partial(replace, STATE),
                campaign_name=st.sampled_from(["Welcome", "Hello"]),
                timezone=st.sampled_from([ZoneInfo("UTC"), ZoneInfo("Asia/Kolkata")]),
                latest=st.sampled_from([STATE.latest, OTHER_DAY, None]),
                previous=st.sampled_from([STATE.latest, OTHER_DAY, None]),
            ),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_only_the_last_state_counts(states: list[tuple[Limits, CampaignState]]) -> None:
    """However a campaign came to be what it is, it is shown as if it had never been anything else."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    names = "|".join(family.name for family in DATA_SERIES.families)
    for limits, state in states:
        publisher.limit(limits, [])
        publisher.publish(state)
        assert len(re.findall(f"^(?:{names}){{", joined(exposition), re.MULTILINE)) == exposition.series
    publisher.limit(LIMITS, [state])
    new = Publisher(LIMITS)
    new.publish(state)

    assert joined(exposition) == joined(new.exposition)
    assert exposition.series == new.exposition.series


def test_a_snapshot_is_of_one_moment() -> None:
    """Whoever takes a snapshot while a campaign is published has all of one state and nothing of another."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    states = [
        replace(STATE, polls=number, latest=Day(date(2026, 3, number), dict.fromkeys(EVERY, float(number)), ()))
        for number in (1, 2)
    ]
    publisher.publish(states[0])
    stopped = threading.Event()

    def publish() -> None:
        while not stopped.is_set():
            for state in states:
                publisher.publish(state)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    publishing = threading.Thread(target=publish)
    publishing.start()
    try:
        seen = [set(re.findall(r"_campaign_(?:other|polls_total){.*} (.*)", joined(exposition))) for _ in range(500)]
    finally:
        stopped.set()
        publishing.join()
        sys.setswitchinterval(interval)

    assert {frozenset(values) for values in seen} <= {frozenset({"1.0"}), frozenset({"2.0"})}


def test_latest_and_previous_do_not_share_names() -> None:
    """A query for one day never finds the other."""
    state = replace(STATE, previous=STATE.latest)
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    publisher.publish(state)

    assert joined(exposition).count("\nbraze_message_sent{") == 1
    assert joined(exposition).count("\nbraze_previous_day_message_sent{") == 1


def test_numbers_are_finite() -> None:
    """The model lets nothing through that would not be a number to Prometheus."""
    parsed = parse_data_series({"data": [{"time": "2026-03-03", "revenue": math.inf, "conversions": math.nan}]})

    assert parsed.latest is not None
    assert parsed.latest.statistics == {}
