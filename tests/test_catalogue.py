"""Tests of exporter.catalogue: Braze's names in, what they are out."""

import pytest

from exporter.catalogue import MESSAGE_STATISTICS, conversion, is_statistic


@pytest.mark.parametrize(
    ("number", "event"),
    [
        ("", "A"),
        ("1", "B"),
        ("3", "D"),
        ("4", "E"),
        ("9", "J"),
        ("10", "K"),
        ("25", "Z"),
        ("26", "other"),
        ("99", "other"),
        ("100", "other"),
        ("9" * 5000, "other"),
        ("0", None),
        ("00", None),
        ("01", None),
        ("026", None),
        ("-1", None),
        ("x", None),
        ("٢٦", None),
        ("_rate", None),
    ],
)
def test_conversion_events(number: str, event: str | None) -> None:
    """Conversion events are numbered from nothing on and lettered from A on; other forms are no conversions."""
    expected = None if event is None else ("conversions", event)
    by_send_time = None if event is None else ("conversions_by_send_time", event)

    assert conversion(f"conversions{number}") == expected
    assert conversion(f"conversions{number}_by_send_time") == by_send_time
    assert is_statistic(f"conversions{number}") == (event is not None)


def test_documented_statistics() -> None:
    """What Braze documents is known, anything else is not."""
    assert all(map(is_statistic, [*MESSAGE_STATISTICS, "unique_recipients", "revenue"]))
    assert not any(map(is_statistic, ["", "Sent", "sent ", "time", "messages", "variation_name", "carousel"]))
