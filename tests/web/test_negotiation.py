"""Tests of exporter.web.negotiation: what headers choose, for those that exist and for any."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.exposition import Format
from exporter.web.negotiation import Representation, accepts_gzip, negotiate
from tests.support.accept import (
    BROWSER,
    OPENMETRICS,
    PROMETHEUS_2_42,
    PROMETHEUS_3,
    PROMETHEUS_3_TEXT,
    PROMETHEUS_3_TEXT_FIRST,
)

TEXT_0 = "text/plain; version=0.0.4; charset=utf-8"
TEXT_1 = "text/plain; version=1.0.0; charset=utf-8"
METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_2_42, METRICS),
        (PROMETHEUS_3, f"{METRICS}; escaping=allow-utf-8"),
        (PROMETHEUS_3_TEXT_FIRST, TEXT_0),
        (PROMETHEUS_3_TEXT, f"{TEXT_1}; escaping=allow-utf-8"),
        ("*/*", TEXT_0),
        (BROWSER, TEXT_0),
        ("", TEXT_0),
        ("text/plain", TEXT_0),
        ("text/plain;version=0.0.4", TEXT_0),
        ("text/plain;version=1.0.0", TEXT_1),
        ("application/openmetrics-text", METRICS),
        (OPENMETRICS, METRICS),
        ('Application/OpenMetrics-Text ; Version="1.0.0" ; charset=utf-8', METRICS),
        # Versions that are not spoken here.
        ("application/openmetrics-text;version=0.0.1", TEXT_0),
        ("application/openmetrics-text;version=2.0.0", TEXT_0),
        ("application/openmetrics-text;version=abc", TEXT_0),
        ("application/openmetrics-text;version=", TEXT_0),
        ("text/plain;version=0.0.5", TEXT_0),
        (f"application/openmetrics-text;version=2.0.0,{OPENMETRICS};q=0.1", METRICS),
        # Qualities: of what is named most exactly, whatever stands beside it.
        (f"{OPENMETRICS};q=0", TEXT_0),
        (f"{OPENMETRICS};q=0.5,text/plain;q=0.5", METRICS),
        (f"{OPENMETRICS};q=0.5,text/plain;q=0.6", TEXT_0),
        (f"{OPENMETRICS};q=0.5,text/plain;version=1.0.0;q=0.6", TEXT_1),
        (f"{OPENMETRICS};q=0.5,text/*;q=0.6", TEXT_0),
        (f"{OPENMETRICS};q=0.5,*/*", TEXT_0),
        (f"{OPENMETRICS};q=0.5,text/plain;q=0.4,*/*", METRICS),
        (f"{OPENMETRICS};q=0.3,application/openmetrics-text;q=0.9,text/plain;q=0.5", TEXT_0),
        ("text/plain;version=0.0.4;q=0.2,text/plain;version=1.0.0;q=0.3,text/plain;q=0.9", TEXT_1),
        (f"text/plain;q=0,*/*;q=0,{OPENMETRICS};q=0.001", METRICS),
        (f"{OPENMETRICS};q=2", TEXT_0),
        (f"{OPENMETRICS};q=-1", TEXT_0),
        (f"{OPENMETRICS};q=nan", TEXT_0),
        (f"{OPENMETRICS};q=1e0", TEXT_0),
        (f"{OPENMETRICS};q=high", TEXT_0),
        (f"{OPENMETRICS};Q=0.1,text/plain;q=0.2", TEXT_0),
        # The same one several times: the best quality counts.
        ("text/plain, text/plain;q=0.5", TEXT_0),
        ("text/plain;q=0.1, text/plain;q=0.9, application/openmetrics-text;q=0.5", TEXT_0),
        ("text/plain;q=0.9, text/plain;q=0.1, application/openmetrics-text;q=0.5", TEXT_0),
        ("application/openmetrics-text;q=0.1, application/openmetrics-text;q=0.9, text/plain;q=0.5", METRICS),
        ("application/openmetrics-text;q=0.9, application/openmetrics-text;q=0.1, text/plain;q=0.5", METRICS),
        ("text/plain;version=1.0.0;q=0.1, text/plain;version=1.0.0;q=0.9, text/plain;q=0.5", TEXT_1),
        ("text/plain;version=1.0.0;q=0.9, text/plain;version=1.0.0;q=0.1, */*;q=0.5", TEXT_1),
        (f"*/*;q=0.1, */*, {OPENMETRICS};q=0.5", TEXT_0),
        (f"text/*, text/*;q=0.1, {OPENMETRICS};q=0.5", TEXT_0),
        # A version of its own is more exact than none, whatever the qualities are.
        ("text/plain;version=0.0.4;q=0.2, text/plain;q=0.9", TEXT_0),
        ("text/plain;version=1.0.0;q=0.2, text/plain;q=0.9", TEXT_0),
        # A header of any length is looked at as far as 4,096 characters.
        (f"{OPENMETRICS:>4096}", METRICS),
        (f"{OPENMETRICS:>4097}", TEXT_0),
        # Escaping, of the element that was chosen.
        (f"{OPENMETRICS};escaping=underscores", f"{METRICS}; escaping=underscores"),
        (f"{OPENMETRICS};escaping=Allow-UTF-8", f"{METRICS}; escaping=allow-utf-8"),
        (f"{OPENMETRICS};escaping=values", f"{METRICS}; escaping=values"),
        (f"{OPENMETRICS};escaping=dots", f"{METRICS}; escaping=underscores"),
        (f"{OPENMETRICS};escaping=morse", METRICS),
        ("text/plain;version=0.0.4;escaping=underscores", f"{TEXT_0}; escaping=underscores"),
        (
            f"{OPENMETRICS};escaping=values;q=0.1,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.2",
            f"{TEXT_1}; escaping=allow-utf-8",
        ),
        # Quoted texts are texts.
        (f'text/html;title="a,{OPENMETRICS}"', TEXT_0),
        (f'text/html;title="a\\",{OPENMETRICS}"', TEXT_0),
        (f'{OPENMETRICS};title="a;q=0"', METRICS),
        (f'{OPENMETRICS};q="0.5",text/plain;q=0.6', TEXT_0),
        (f'text/html;title="a,{OPENMETRICS}', TEXT_0),
        ("application/openmetrics-text;version=\\1.0.0", TEXT_0),
        ('application/openmetrics-text;version="\\1.0.0"', METRICS),
        # What fits nothing, and nonsense.
        ("application/json", TEXT_0),
        ("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited", TEXT_0),
        ("application/*", TEXT_0),
        (";;;,,,=;q", TEXT_0),
        (f",, {OPENMETRICS} ;,", METRICS),
    ],
)
def test_format(accept: str, expected: str) -> None:
    """OpenMetrics goes to those who name 1.0.0 and want it as much as text, text to all others, in its oldest form."""
    assert negotiate(accept) == Representation(form(expected), expected)


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
        ("gzip;q=0, gzip", True),
        ("", False),
        ("identity", False),
        ("br", False),
        ("gzip;q=0", False),
        ("gzip ; Q=0.0", False),
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


@given(header=st.text() | st.text('textplain/*applicationopenmetrics;=,q"\\01.gzip '))
def test_any_header_has_an_answer(header: str) -> None:
    """No header raises, and whatever is chosen, the Content-Type names it in a form that Prometheus knows."""
    chosen = negotiate(header)

    assert re.fullmatch(
        r"(?:text/plain; version=(?:0\.0\.4|1\.0\.0)|application/openmetrics-text; version=1\.0\.0); charset=utf-8"
        r"(?:; escaping=(?:allow-utf-8|underscores|values))?",
        chosen.content_type,
    )
    assert chosen.form is form(chosen.content_type)
    assert accepts_gzip(header) in {True, False}


QUALITIES = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)
SPACES = st.sampled_from(["", " ", "\t", "  "])


@given(
    openmetrics=QUALITIES,
    text_0=QUALITIES,
    text_1=QUALITIES,
    others=st.lists(st.sampled_from(["image/png", "application/json;q=0.9", '"', 'a/b;c=","', "x/y;version=1.0.0"])),
    space=SPACES,
    order=st.permutations(range(3)),
)
def test_the_most_wanted_is_sent(
    openmetrics: float, text_0: float, text_1: float, others: list[str], space: str, order: Sequence[int]
) -> None:
    """Of all that is offered the one of the greatest quality is sent, whatever else is named and in whatever order."""
    wanted = [(METRICS, openmetrics), (TEXT_0, text_0), (TEXT_1, text_1)]
    elements = [f"{wanted[place][0]};{space}q{'='}{wanted[place][1]}" for place in order]
    usable = [other for other in others if other != '"']
    best = max(quality for _, quality in wanted)

    chosen = negotiate(f"{space},{space}".join([*usable, *elements]))

    assert chosen.content_type == (next(name for name, quality in wanted if quality == best) if best else TEXT_0)


@given(quality=QUALITIES, star=QUALITIES, others=st.lists(st.sampled_from(["br", "identity;q=0", "deflate;q=0.5"])))
def test_gzip_is_decided_by_its_own_quality(quality: float, star: float, others: list[str]) -> None:
    """What gzip's own element says counts, whatever a star says."""
    assert accepts_gzip(", ".join([f"*;q={star}", *others, f"gzip;q={quality}"])) is (quality > 0)


def form(content_type: str) -> Format:
    """Return what a Content-Type is rendered as."""
    return Format.OPENMETRICS if content_type.startswith("application/openmetrics-text") else Format.TEXT
