"""Tests of exporter.advice: people are told of each reason what it means and what to do."""

from exporter.advice import ADVICE
from exporter.braze.errors import Reason


def test_every_reason_has_advice() -> None:
    """Whatever a poll fails by, there is a cause and a remedy, a line each, without the full stop that pages add."""
    assert ADVICE.keys() == set(Reason)
    for advice in ADVICE.values():
        for text in advice:
            assert text.isprintable()
            assert text == text.strip(" .")
            assert text
