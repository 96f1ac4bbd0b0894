"""Tests of exporter.model: answers in, days and numbers out."""

import json
import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.braze.data_series import DataSeries, Day, Variation, clean, parse_data_series
from exporter.braze.errors import PayloadError
from tests.support.servers import ROOT
from tests.support.strategies import ANSWERS

PAYLOADS = ROOT / "tests/data/payloads"


def payload(name: str) -> DataSeries:
    """Return what an example answer says."""
    return parse_data_series(json.loads((PAYLOADS / name).read_text(encoding="utf-8")))


def answer(**messages: object) -> object:
    """Return an answer of one day with these channels."""
    return {"data": [{"time": "2026-03-03", "messages": messages}]}


def latest(parsed: DataSeries) -> Day:
    """Return the latest day, which there is."""
    assert parsed.latest is not None
    return parsed.latest


def names(parsed: DataSeries) -> list[str]:
    """Return the names of the latest day's variations."""
    return [variation.name for variation in latest(parsed).variations]


def statistics(*rows: object) -> list[dict[str, float]]:
    """Return the statistics of the variations that rows of one channel make."""
    return [variation.statistics for variation in latest(parse_data_series(answer(email=list(rows)))).variations]


def test_latest_is_the_greatest_date_in_any_order() -> None:
    """The days of an answer may come in any order, with or without a time of day."""
    parsed = payload("unordered_days.json")

    assert parsed.latest is not None
    assert parsed.previous is not None
    assert (parsed.latest.date, parsed.previous.date) == (date(2026, 3, 3), date(2026, 3, 2))
    assert parsed.previous.variations[0].statistics == {"sent": 7, "errors": 1}


def test_only_two_days_are_read() -> None:
    """What is older is not looked into, whatever is in it and wherever it stands."""
    odd = {"time": "2026-03-01", "messages": {"email": [5, {"sent": "7"}, {"opens": 1}, {"clicks": 1}]}}
    newer = [{"time": "2026-03-02", "revenue": 1}, {"time": "2026-03-03", "revenue": 2}]
    expected = DataSeries(Day(date(2026, 3, 3), {"revenue": 2}, ()), Day(date(2026, 3, 2), {"revenue": 1}, ()))

    for entries in ([odd, *newer], [*newer, odd], [newer[1], odd, newer[0]]):
        assert parse_data_series({"data": entries}, samples=2) == expected


def test_no_days() -> None:
    """An answer without days has neither a latest nor a previous day, and nothing is wrong with it."""
    assert payload("no_days.json") == DataSeries(None, None)


def test_later_entry_of_a_date_counts() -> None:
    """Of two entries of one date the later in the array counts."""
    entries = [{"time": "2026-03-03", "revenue": 1}, {"time": "2026-03-03T12:00:00+02:00", "revenue": 2}]

    assert parse_data_series({"data": entries}) == DataSeries(Day(date(2026, 3, 3), {"revenue": 2}, ()), None)


def test_a_day_is_the_date_as_written() -> None:
    """The zone of a date-time moves nothing to another day."""
    parsed = parse_data_series({"data": [{"time": "2026-03-03T23:59:59-11:00"}]})

    assert latest(parsed).date == date(2026, 3, 3)


def test_absent_is_not_zero() -> None:
    """What is missing, null or no number has no statistic; the rest of the row is kept."""
    row = '{"sent": 5, "opens": null, "clicks": "7", "read": true, "failed": NaN, "help": -Infinity, "bounces": [1]}'

    assert statistics(json.loads(row)) == [{"sent": 5}]


def test_numbers_beyond_floats() -> None:
    """An integer that no float can hold is no number, and neither is a sum that none can hold."""
    same = {"variation_name": "A"}

    assert statistics({"sent": 10**400, "opens": 1}) == [{"opens": 1}]
    assert statistics({**same, "sent": 1e308, "opens": 1}, {**same, "sent": 1e308}, {**same, "sent": 5}) == [
        {"opens": 1}
    ]


def test_same_variation_twice_is_summed() -> None:
    """Rows of one channel with the same id and name are one variation, statistic by statistic."""
    assert [variation.statistics for variation in latest(payload("duplicate_variation.json")).variations] == [
        {"sent": 123, "total_opens": 14, "bounces": 1}
    ]


def test_same_variation_in_two_channels_is_not_summed() -> None:
    """The control group of a multichannel campaign stands in every channel."""
    row = {"variation_name": "Control Group", "variation_api_id": "1", "enrolled": 2}
    parsed = parse_data_series(answer(ios_push=[row], android_push=[row]))

    assert [(variation.channel, variation.statistics) for variation in latest(parsed).variations] == [
        ("ios_push", {"enrolled": 2}),
        ("android_push", {"enrolled": 2}),
    ]


def test_rows_without_id_and_name() -> None:
    """They are told apart by numbers in their order, channel by channel, and never take a real name."""
    rows = [{"sent": 1}, {"variation_name": "unnamed 1"}, {"variation_api_id": None, "sent": 2}, {"variation_name": ""}]
    parsed = parse_data_series(answer(email=rows, sms=[{"sent": 3}]))

    assert names(parsed) == ["unnamed 2", "unnamed 1", "unnamed 3", "unnamed 4", "unnamed 1"]


def test_many_rows_without_id_and_name() -> None:
    """Ten thousand of them are numbered in one go."""
    parsed = parse_data_series(answer(email=[{"sent": 1}] * 10_000))

    assert names(parsed)[-1] == "unnamed 10000"


def test_control_group() -> None:
    """The control group has users enrolled and no sends."""
    control = latest(payload("push_with_control_group.json")).variations[2]

    assert control.name == "Control Group"
    assert control.statistics["enrolled"] == 1150
    assert "sent" not in control.statistics


def test_undocumented_parts() -> None:
    """Unknown channels and statistics are kept under Braze's names."""
    parsed = payload("undocumented.json")
    rcs, ios_push = latest(parsed).variations

    assert (rcs.channel, rcs.statistics["suggestion_clicks"]) == ("rcs", 4)
    assert ios_push.statistics['carousel_slide_1_Summer "Sale"_click'] == 7
    assert latest(parsed).statistics["new_total"] == 12


@pytest.mark.parametrize(
    ("broken", "skipped"),
    [
        ({"email": 5}, "data[0].messages['email']: expected an array, got a number"),
        ({"email": {}}, "data[0].messages['email']: expected an array, got an object"),
        ({"email": ["row"]}, "data[0].messages['email'][0]: expected an object, got text"),
        (
            {"email": [{"variation_api_id": 5}]},
            "data[0].messages['email'][0]: expected `variation_api_id` to be text, got a number",
        ),
        (
            {"email": [{"variation_name": ["A"]}]},
            "data[0].messages['email'][0]: expected `variation_name` to be text, got an array",
        ),
    ],
)
def test_a_broken_part_spoils_itself_only(broken: dict[str, object], skipped: str) -> None:
    """A channel or row of another form is named and skipped, the rest of the day is there."""
    parsed = parse_data_series(answer(**broken, sms=[{"variation_api_id": "1", "sent": 3}]))

    assert latest(parsed).variations == (Variation("sms", "1", "", {"sent": 3}),)
    assert parsed.skipped == (skipped,)


def test_broken_messages_leave_the_day() -> None:
    """Messages of another form are skipped, the campaign's own statistics of that day are not."""
    parsed = parse_data_series({"data": [{"time": "2026-03-03", "messages": [], "revenue": 2.5}]})

    assert latest(parsed) == Day(date(2026, 3, 3), {"revenue": 2.5}, ())
    assert parsed.skipped == ("data[0].messages: expected an object, got an array",)


@pytest.mark.parametrize("entry", [None, "2026-03-03", {}, {"time": 5}, {"time": "3 March"}, {"time": "2026-02-30"}])
def test_a_broken_day_is_skipped(entry: object) -> None:
    """An entry that is no day is named, the others are read."""
    parsed = parse_data_series({"data": [entry, {"time": "2026-03-01"}]})

    assert latest(parsed).date == date(2026, 3, 1)
    assert [text.partition(":")[0] for text in parsed.skipped] == ["data[0]"]


@pytest.mark.parametrize("time", ["2026-W10-2", "20260303xx", "٢٠٢٦-٠٣-٠٣", "0000-01-01"])
def test_only_dates_of_the_documented_form_are_days(time: str) -> None:
    """Other ISO 8601 forms, other digits and years that are none are not guessed at."""
    with pytest.raises(PayloadError, match="none of the 1 entries of `data` is a day"):
        parse_data_series({"data": [{"time": time}]})


@pytest.mark.parametrize("value", [None, [], 5, "text", {}, {"data": None}, {"data": {}}, {"message": "success"}])
def test_no_data_array(value: object) -> None:
    """An answer without an array `data` is no data series."""
    with pytest.raises(PayloadError, match="expected an object with an array `data`"):
        parse_data_series(value)


@pytest.mark.parametrize("message", ["success", "Success", " SUCCESS\n", None, 5, ["error"], {"text": "error"}])
def test_a_success_says_so_or_nothing(message: object) -> None:
    """The message of a success is that word in any case; one that is missing or no text says nothing."""
    assert parse_data_series({"message": message, "data": []}) == DataSeries(None, None)


@pytest.mark.parametrize("message", ["", " ", "an internal error", "successful", "partial success", "unsuccessful"])
@pytest.mark.parametrize("data", [[], [{"time": "2026-03-03", "revenue": 1}], None])
def test_an_error_inside_a_success(message: str, data: object) -> None:
    """A response whose message is another text is none, whatever else is in it; the text is not repeated."""
    with pytest.raises(PayloadError) as caught:
        parse_data_series({"message": message, "data": data})

    assert str(caught.value) == "expected the `message` success, got another text"


@pytest.mark.parametrize(
    "broken",
    [
        {"data": [*[{}] * 999, {"time": "2026-03-03"}]},
        {"data": [*["entry"] * 999, {"time": "2026-03-03"}]},
        {"data": [*[{"time": "2026-99-99"}] * 999, {"time": "2026-03-03"}]},
        answer(**{f"channel {number}": 5 for number in range(999)}),
        answer(email=[5] * 999),
        answer(email=[{"variation_api_id": 5}] * 999),
        answer(email=[{"variation_name": {}}] * 999),
    ],
)
def test_skipped_parts_are_counted(broken: object) -> None:
    """However many parts cannot be read, ten of them are named and all are counted."""
    parsed = parse_data_series(broken)

    assert latest(parsed).date == date(2026, 3, 3)
    assert (len(parsed.skipped), parsed.skipped_parts) == (10, 999)
    assert len(set(parsed.skipped)) == 10
    assert max(map(len, parsed.skipped)) < 100


def test_the_text_of_an_error_has_an_end() -> None:
    """A response of a million entries that are none is refused with one example."""
    with pytest.raises(PayloadError) as caught:
        parse_data_series({"data": ["x" * 1000] * 100_000})

    assert str(caught.value) == ("none of the 100000 entries of `data` is a day; data[0]: expected an object, got text")


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("sent", "123", True),
        ("sent", "many", True),
        ("sent", "", True),
        ("sent", True, True),
        ("sent", {"email": 5}, True),
        ("sent", [1], True),
        ("sent", float("nan"), True),
        ("sent", None, False),
        ("revenue", "12.50", True),
        ("conversions7_by_send_time", "1", True),
        ("new_statistic", "123", True),
        ("new_statistic", " -1,234.5e+6 ", True),
        ("new_statistic", "many", False),
        ("new_statistic", "12 March", False),
        ("new_statistic", "٣", False),
        ("new_statistic", "1" * 41, False),
        ("new_statistic", True, False),
        ("new_statistic", {}, False),
    ],
)
def test_statistics_that_are_no_numbers(field: str, value: object, named: bool) -> None:  # noqa: FBT001 - a parameter
    """A known statistic of another type, or a number in quotes anywhere, is absent and named; null says nothing."""
    row = {"variation_name": "7", "variation_api_id": "12", "clicks": 1, field: value}
    of_a_row = parse_data_series(answer(email=[row, row]))
    of_a_day = parse_data_series({"data": [{"time": "2026-03-03", field: value}]})

    for parsed in (of_a_row, of_a_day):
        assert parsed.no_numbers == ((field,) if named else ())
        assert parsed.skipped == ()
    assert statistics(row) == [{"clicks": 1}]
    assert latest(of_a_day).statistics == {}


def test_names_of_statistics_that_are_no_numbers_are_bounded() -> None:
    """Ten of them are named, each once and cut, whatever their names are."""
    parsed = parse_data_series(answer(email=[{f"{number:0>50}": "1" for number in range(10**9, 10**9 + 99)}] * 2))

    assert parsed.no_numbers == ("0" * 40,)
    assert len(parse_data_series(answer(email=[{f"{number}": "1" for number in range(99)}])).no_numbers) == 10
    assert parse_data_series(answer(email=[{"\ud800": "1"}])).no_numbers == ("\N{REPLACEMENT CHARACTER}",)


SOME_ROWS = st.lists(
    st.fixed_dictionaries(
        {"variation_name": st.sampled_from("abcd")},
        optional=dict.fromkeys(["sent", "opens", "clicks", "read"], st.integers(1, 9)),
    ),
    max_size=12,
)


@given(st.lists(st.tuples(SOME_ROWS, st.integers(0, 3)), min_size=1, max_size=2), st.integers(0, 20))
def test_a_response_over_the_limit(days: list[tuple[list[dict[str, object]], int]], limit: int) -> None:
    """No more is kept than the limit; what is kept is what it would be without one, and the rest is counted."""
    entries = [
        {"time": f"2026-03-0{number}", "messages": {"email": rows}, **{f"new_{place}": 1 for place in range(own)}}
        for number, (rows, own) in enumerate(days, 1)
    ]
    whole, cut = parse_data_series({"data": entries}), parse_data_series({"data": entries}, samples=limit)
    kept = missing = 0
    for day, cut_day in zip((whole.latest, whole.previous), (cut.latest, cut.previous), strict=True):
        if day is None or cut_day is None:
            assert day is cut_day
            continue
        assert set(map(repr, cut_day.variations)) <= set(map(repr, day.variations))
        assert cut_day.statistics in ({}, day.statistics)
        for statistics, cut_statistics in (
            (day.statistics, cut_day.statistics),
            ([row.statistics for row in day.variations], [row.statistics for row in cut_day.variations]),
        ):
            count, cut_count = samples_of(statistics), samples_of(cut_statistics)
            kept += cut_count
            missing += count - cut_count

    assert kept <= limit
    assert (cut.dropped > 0) == (missing > 0)
    assert missing <= cut.dropped
    if limit == 20 and not missing:
        assert cut == whole


def samples_of(statistics: dict[str, float] | list[dict[str, float]]) -> int:
    """Return how many numbers there are."""
    return sum(map(len, statistics)) if isinstance(statistics, list) else len(statistics)


@pytest.mark.parametrize(
    ("limit", "kept", "dropped"), [(5, 2, 0), (4, 1, 2), (3, 1, 2), (2, 0, 4), (1, 0, 4), (0, 0, 4)]
)
def test_the_limit_is_exact(limit: int, kept: int, dropped: int) -> None:
    """A row that just fits is kept, one that grows too large is dropped whole; the day itself takes one."""
    rows = [{"variation_name": "A", "sent": 1}, {"variation_name": "A", "opens": 1}]
    others = [{"variation_name": "B", "sent": 1}, {"variation_name": "B", "opens": 1}]
    parsed = parse_data_series(answer(email=[*rows, *others]), samples=limit)

    assert len(names(parsed)) == kept
    assert parsed.dropped == dropped


def test_no_row_is_begun_after_one_without_room() -> None:
    """A later row of a variation that was dropped would be a part of its sum, so it is dropped, however small it is."""
    rows: list[dict[str, object]] = [
        {"variation_name": "A", "sent": 1},
        {"variation_name": "B", "sent": 1, "opens": 1, "clicks": 1},
        {"variation_name": "B", "bounces": 1},
    ]
    parsed = parse_data_series(answer(email=rows), samples=4)

    assert names(parsed) == ["A"]
    assert parsed.dropped == 4


def test_a_row_that_grew_too_large_gives_its_room_back() -> None:
    """What a dropped row had taken is free for the previous day."""
    grown = [{"variation_name": "A", **dict.fromkeys(some, 1)} for some in ("abcde", "fghi")]
    entries = [
        {"time": "2026-03-04", "messages": {"email": grown}},
        {"time": "2026-03-03", "messages": {"email": [{"variation_name": "B", **dict.fromkeys("abcdef", 1)}]}},
    ]
    parsed = parse_data_series({"data": entries}, samples=8)

    assert parsed.previous is not None
    assert [variation.name for variation in parsed.previous.variations] == ["B"]


def test_rows_without_numbers_have_a_limit_too() -> None:
    """A row without a number takes a place, as it takes memory."""
    parsed = parse_data_series(answer(email=[{"variation_name": f"{number}"} for number in range(99)]), samples=10)

    assert len(names(parsed)) == 9
    assert parsed.dropped == 0


def test_any_text_becomes_a_label_value() -> None:
    """Lone surrogates are replaced, long text is cut and says so, everything else stays."""
    assert clean("a\ud800b") == "a\N{REPLACEMENT CHARACTER}b"
    assert clean('"\\\n\0 ü 🛒') == '"\\\n\0 ü 🛒'
    assert clean("x" * 1000) == "x" * 1000
    assert clean("x" * 1001) == "x" * 997 + "…"
    assert clean("ü" * 500) == "ü" * 500
    assert clean("ü" * 501) == "ü" * 498 + "…"
    assert clean("🛒" * 251) == "🛒" * 249 + "…"
    assert clean("\ud800" * 334) == "\N{REPLACEMENT CHARACTER}" * 332 + "…"


@given(st.text(st.characters(), max_size=1200) | st.text("aü€🛒\ud800", min_size=240, max_size=1200))
def test_label_values_fit(text: str) -> None:
    """A label value has at most 1,000 bytes of UTF-8, ends with a whole character, and is as long as that allows."""
    cleaned = clean(text)
    whole = re.sub("[\ud800-\udfff]", "\ufffd", text)

    assert len(cleaned.encode()) <= 1000
    assert clean(cleaned) == cleaned
    if cleaned != whole:
        assert whole.startswith(cleaned.removesuffix("…"))
        assert len(whole.encode()) > 1000
        assert len(cleaned.encode()) > 1000 - 4


def test_names_are_cleaned_before_rows_are_grouped() -> None:
    """Two names that differ only in what is cut or replaced are one variation."""
    rows = [{"variation_name": "x" * 2000 + end, "sent": 1} for end in "ab"]

    assert statistics(*rows) == [{"sent": 2}]
    assert statistics(json.loads(r'{"variation_name": "A", "\ud800": 1, "\ud801": 2}')) == [
        {"\N{REPLACEMENT CHARACTER}": 3}
    ]


@given(ANSWERS)
def test_any_answer_is_read_or_refused(value: object) -> None:
    """Whatever comes, labels are legal, label sets are unique and numbers are finite, or it is a PayloadError."""
    try:
        parsed = parse_data_series(value)
    except PayloadError:
        return
    for day in (parsed.latest, parsed.previous):
        for variation in day.variations if day else ():
            for text in (variation.channel, variation.id, variation.name, *variation.statistics):
                assert len(text.encode()) <= 1000
            assert variation.id or variation.name
            assert all(abs(number) < float("inf") for number in variation.statistics.values())
        keys = [(variation.channel, variation.id, variation.name) for variation in day.variations] if day else []
        assert len(keys) == len(set(keys))
