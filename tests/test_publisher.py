"""Tests of exporter.publisher: states in, what a scrape would send of the campaigns out."""

from dataclasses import replace
from datetime import date

import pytest

from exporter.braze.data_series import Day, Variation
from exporter.config import Limits
from exporter.exposition import Exposition, Format
from exporter.publisher import Publisher
from tests.test_exposition import LIMITS, STATE

OTHER_DAY = Day(date(2026, 3, 3), {"revenue": 1.5}, (Variation("email", "1", "", {"sent": 6.0, "opens": 1.0}),))


def joined(exposition: Exposition, form: Format = Format.TEXT) -> str:
    """Return what a scrape would send of the campaigns."""
    return b"".join(exposition.snapshot().pieces(form)).decode()


def test_publishing_replaces_what_was() -> None:
    """A family that a response no longer has is removed, the others get their new values."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    publisher.publish(STATE)
    publisher.publish(replace(STATE, latest=Day(date(2026, 3, 3), {}, (Variation("email", "1", "", {"read": 6.0}),))))

    assert "braze_message_sent" not in joined(exposition)
    assert 'variation_name="",workspace="main"} 6.0\n' in joined(exposition)
    assert exposition.shown(STATE.key) == 2


def test_a_new_name_moves_the_series() -> None:
    """A renamed campaign has its series under the new name alone."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    publisher.publish(STATE)
    publisher.publish(replace(STATE, campaign_name="Hello"))

    assert "Welcome" not in joined(exposition)
    assert 'campaign_name="Hello"' in joined(exposition)


def test_withdrawing_leaves_nothing() -> None:
    """A campaign that is taken away leaves no sample."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    publisher.publish(STATE)
    publisher.withdraw(STATE.key)

    assert joined(exposition) == ""
    assert exposition.series == 0


def test_what_is_dropped_is_counted() -> None:
    """A row without a place is dropped whole, and its campaign says how many samples that is."""
    publisher = Publisher(Limits(series=1000, series_per_campaign=1))
    exposition = publisher.exposition
    publisher.publish(STATE)

    assert "braze_message_sent" not in joined(exposition)
    assert (
        'braze_exporter_dropped_series{campaign_id="3bbc4555-8fa0-4c9b-a5c0-4505edf3e064",workspace="main"} 1.0'
        in joined(exposition)
    )
    assert exposition.series == 1


def test_what_was_left_out_of_the_response_counts_as_dropped() -> None:
    """Samples that were so many that they are not even kept are counted with those that found no place."""
    publisher = Publisher(Limits(series=1000, series_per_campaign=1))
    exposition = publisher.exposition
    publisher.publish(replace(STATE, dropped=500))

    assert 'workspace="main"} 501.0\n' in joined(exposition)
    publisher.limit(LIMITS, [replace(STATE, dropped=500)])
    assert 'workspace="main"} 500.0\n' in joined(exposition)


def test_dropped_samples_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """It is said when samples are dropped, how many of which campaign, again when that changes, and when it is over."""
    caplog.set_level("INFO")
    publisher = Publisher(Limits(series=1000, series_per_campaign=1))
    for state in (STATE, replace(STATE, up=False), replace(STATE, latest=OTHER_DAY), STATE):
        publisher.publish(state)
    publisher.limit(LIMITS, [STATE])
    publisher.publish(STATE)

    told = [(record.levelname, vars(record).get("dropped")) for record in caplog.records]
    assert told == [("WARNING", 1), ("WARNING", 4), ("WARNING", 1), ("INFO", None)]
    assert caplog.messages[0].startswith(
        "samples are dropped: they are over limits.series or limits.series_per_campaign"
    )
    assert caplog.messages[-1] == "all samples are shown again"
    for record in caplog.records:
        assert (vars(record)["workspace"], vars(record)["campaign_id"]) == (STATE.workspace, STATE.campaign_id)


def test_settling_goes_by_the_order_of_the_states() -> None:
    """The order of the configuration decides what is shown after a start, not the order of the responses."""
    publisher = Publisher(Limits(series=5, series_per_campaign=5))
    exposition = publisher.exposition
    states = [replace(STATE, campaign_id=name) for name in "abc"]
    for state in reversed(states):
        publisher.publish(state)
    before = [exposition.shown(state.key) for state in states]
    publisher.settle(states)

    assert before == [1, 2, 2]
    assert [exposition.shown(state.key) for state in states] == [2, 2, 1]


def test_other_limits() -> None:
    """Lower limits take the places of the last campaigns, higher ones give the first ones what was dropped."""
    publisher = Publisher(Limits(series=6, series_per_campaign=2))
    exposition = publisher.exposition
    states = [replace(STATE, campaign_id=name) for name in "abc"]
    for state in states:
        publisher.publish(state)
    shown = []
    for series, series_per_campaign in ((3, 2), (4, 2), (6, 1), (6, 2)):
        publisher.limit(Limits(series=series, series_per_campaign=series_per_campaign), states)
        shown.append([exposition.shown(state.key) for state in states])

    assert shown == [[2, 1, 0], [2, 2, 0], [1, 1, 1], [2, 2, 2]]


def test_the_same_limits_give_away_what_became_free() -> None:
    """What a withdrawn campaign leaves goes to the first that had no place."""
    publisher = Publisher(Limits(series=2, series_per_campaign=2))
    exposition = publisher.exposition
    states = [replace(STATE, campaign_id=name) for name in "abc"]
    for state in states:
        publisher.publish(state)
    publisher.withdraw(states[0].key)
    publisher.limit(Limits(series=2, series_per_campaign=2), states[1:])

    assert [exposition.shown(state.key) for state in states] == [0, 2, 0]


def test_an_outage_costs_no_place() -> None:
    """A campaign whose numbers went stale has its places back afterwards; a newcomer does not get them."""
    publisher = Publisher(Limits(series=2, series_per_campaign=2))
    exposition = publisher.exposition
    publisher.publish(STATE)
    publisher.publish(replace(STATE, up=False, latest=None))
    newcomer = replace(STATE, campaign_id="newcomer")
    publisher.publish(newcomer)
    publisher.publish(STATE)

    assert (exposition.shown(STATE.key), exposition.shown(newcomer.key)) == (2, 0)


def test_a_campaign_that_cannot_be_rendered_keeps_what_it_had() -> None:
    """An exception while publishing leaves the pieces of before."""
    publisher = Publisher(LIMITS)
    exposition = publisher.exposition
    publisher.publish(STATE)
    before = joined(exposition)
    with pytest.raises(OverflowError):
        publisher.publish(replace(STATE, interval=10**400))

    assert before == joined(exposition)
