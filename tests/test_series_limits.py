"""Tests of exporter.series_limits: rows in, those that are admitted out."""

from hypothesis import given
from hypothesis import strategies as st

from exporter.config import Limits
from exporter.metrics import Row
from exporter.series_limits import SeriesLimits


def row(name: str, size: int = 1) -> Row:
    """Return a row with so many samples."""
    return Row((name,), (("row", name),), tuple((("family", None, ""), float(number)) for number in range(size)))


ROWS = st.lists(st.builds(row, st.sampled_from("abcdef"), st.integers(0, 4)), max_size=6)


def names(rows: list[Row]) -> str:
    """Return the names of rows in a word."""
    return "".join(row.key[0] for row in rows)


def test_all_rows_while_there_is_room() -> None:
    """Rows within both limits are all admitted, in their order."""
    assert (
        names(SeriesLimits(Limits(series=3, series_per_campaign=3)).admit(1, [row("b"), row("a"), row("c")])) == "bac"
    )


def test_one_campaign_has_its_own_limit() -> None:
    """A campaign never gets more than limits.series_per_campaign, however much room there is."""
    assert (
        names(SeriesLimits(Limits(series=100, series_per_campaign=2)).admit(1, [row("a"), row("b"), row("c")])) == "ab"
    )


def test_rows_are_admitted_whole() -> None:
    """A row that does not fit is dropped whole, a smaller one behind it may fit."""
    assert (
        names(SeriesLimits(Limits(series=3, series_per_campaign=3)).admit(1, [row("a", 2), row("b", 2), row("c")]))
        == "ac"
    )


def test_what_has_a_place_keeps_it() -> None:
    """A newcomer does not push a row out, even if it comes before it in the answer."""
    admission = SeriesLimits(Limits(series=2, series_per_campaign=2))
    admission.admit(1, [row("a"), row("b")])

    assert names(admission.admit(1, [row("new"), row("a"), row("b")])) == "ab"
    assert names(admission.admit(1, [row("new"), row("b")])) == "newb"


def test_campaigns_share_the_room() -> None:
    """What one campaign holds another cannot have, until it is released."""
    admission = SeriesLimits(Limits(series=3, series_per_campaign=3))
    admission.admit(1, [row("a", 2)])

    assert names(admission.admit(2, [row("a"), row("b")])) == "a"
    admission.drop(1)
    assert names(admission.admit(2, [row("a"), row("b")])) == "ab"


def test_releasing_twice_frees_nothing_twice() -> None:
    """A campaign that holds nothing has nothing to release."""
    admission = SeriesLimits(Limits(series=1, series_per_campaign=1))
    admission.admit(1, [row("a")])
    admission.drop(1)
    admission.drop(1)
    admission.admit(1, [row("a")])

    assert names(admission.admit(2, [row("a")])) == ""


@given(st.lists(st.tuples(st.integers(0, 3), ROWS), max_size=12), st.integers(1, 10), st.integers(1, 6))
def test_limits_hold(polls: list[tuple[int, list[Row]]], series: int, series_per_campaign: int) -> None:
    """After any polls in any order, no campaign and not all of them together have more samples than allowed."""
    admission = SeriesLimits(Limits(series=series, series_per_campaign=series_per_campaign))
    shown: dict[int, int] = {}
    for campaign, rows in polls:
        unique = list({row.key: row for row in rows}.values())
        shown[campaign] = sum(len(row.samples) for row in admission.admit(campaign, unique))

        assert shown[campaign] <= series_per_campaign
        assert sum(shown.values()) <= series
