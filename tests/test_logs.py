"""Tests of exporter.logs: a record in, a line out, and the line read back."""

import io
import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exporter import logs

KEY = "9f1b-secret-c0ffee-4d5e-api-key"
FORMATS = pytest.mark.parametrize("form", logs.FORMATS)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, whose handlers and level are put back, and so are those of quiet loggers."""
    root = logging.getLogger()
    level, handlers, hook = root.level, root.handlers[:], sys.unraisablehook
    quiet = {name: logging.getLogger(name).level for name in ("urllib3", "uvicorn", "asyncio")}
    root.handlers[:] = []  # what pytest put there is not to be closed
    yield root
    logging.captureWarnings(capture=False)
    sys.unraisablehook = hook
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, its_level in quiet.items():
        logging.getLogger(name).setLevel(its_level)


@pytest.mark.parametrize(
    ("form", "line"),
    [
        (
            "logfmt",
            'time=2026-03-03T12:00:00.250Z level=warning msg="poll failed" workspace=main reason=timeout days=3',
        ),
        (
            "json",
            (
                '{"time": "2026-03-03T12:00:00.250Z", "level": "warning", "msg": "poll failed", "workspace": "main",'
                ' "reason": "timeout", "days": 3}'
            ),
        ),
    ],
)
def test_line(form: str, line: str) -> None:
    """Time in UTC, level and message come first, then the fields as they were given."""
    made = formatted(form, "poll failed", {"workspace": "main", "reason": "timeout", "days": 3})

    assert made == line


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("word", "word"),
        ("Grüße-🛒", "Grüße-🛒"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('"quoted"', r'"\"quoted\""'),
        ("back\\slash", r'"back\\slash"'),
        ("new\nline", r'"new\nline"'),
        ("\x1b[31mred", r'"\u001b[31mred"'),
        ("\x00\x7f\x85\u2028\u202e", r'"\u0000\u007f\u0085\u2028\u202e"'),
        ("\ud800", r'"\ud800"'),
    ],
)
def test_logfmt_quotes_what_is_not_one_word(text: str, written: str) -> None:
    """A value is bare where it is one printable word, else quoted, and what does not print is escaped."""
    assert formatted("logfmt", "event", {"value": text}).partition("value=")[2] == written


@FORMATS
@given(message=st.text(), value=st.text())
@example(message="a=b c=d", value='" x=y')
@example(message="level=error", value="\r\n\u2028\x1b")
def test_any_text_can_be_read_back(form: str, message: str, value: str) -> None:
    """Whatever is logged is one printable line, and reading the line gives the same texts."""
    line = formatted(form, message, {"value": value})

    assert line.isprintable()
    fields = read(form, line)
    assert list(fields) == ["time", "level", "msg", "value"]
    assert (fields["msg"], fields["value"]) == (message, value)


@FORMATS
def test_traceback(form: str) -> None:
    """An exception is a field with its traceback, on the same line."""
    line = formatted(form, "crash", error=ValueError("what\nfor"))

    traceback = read(form, line)["traceback"]
    assert traceback.startswith("Traceback (most recent call last):\n")
    assert traceback.endswith("\nValueError: what\nfor")
    assert "\n" not in line


@FORMATS
@given(before=st.text(), after=st.text(), key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8))
def test_secrets_are_replaced(form: str, before: str, after: str, key: str) -> None:
    """A key is in no line, be it part of the message, a field, an object or an exception's text."""
    text = f"{before}{key}{after}"

    line = formatted(form, text, {"field": text, "object": Shown(text)}, error=ValueError(text), secrets=(key,))

    assert not [name for name, value in read(form, line).items() if key in value]
    assert [name for name, value in read(form, line).items() if "<secret>" in value] == [
        "msg",
        "field",
        "object",
        "traceback",
    ]


def test_a_key_that_holds_another_goes_whole() -> None:
    """Of two keys of which one begins with the other, nothing of either remains."""
    line = formatted("logfmt", f"{KEY}-new {KEY}", secrets=(KEY, f"{KEY}-new"))

    assert read("logfmt", line)["msg"] == "<secret> <secret>"


def test_secrets_are_asked_for_with_each_line() -> None:
    """A key that came later is replaced as well."""
    keys = ["first-key"]
    formatter = logs.Formatter("logfmt", lambda: keys)

    keys.append(KEY)

    assert KEY not in formatter.format(record(f"it is {KEY}"))


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(level: str, shown: list[str], root: logging.Logger) -> None:
    """Records of the level and above are written."""
    stream = io.StringIO()
    logs.configure(level=level, form="logfmt", write=stream.write, secrets=lambda: ())

    for each in logs.LEVELS:
        root.log(logging.getLevelNamesMapping()[each.upper()], each)

    assert [read("logfmt", line)["level"] for line in stream.getvalue().splitlines()] == shown


@pytest.mark.parametrize(
    ("name", "level", "shown"),
    [
        ("urllib3.connectionpool", logging.DEBUG, False),
        ("urllib3.connectionpool", logging.WARNING, False),
        ("urllib3.connectionpool", logging.ERROR, False),
        ("uvicorn.error", logging.WARNING, False),
        ("uvicorn.error", logging.ERROR, True),
        ("asyncio", logging.DEBUG, False),
        ("asyncio", logging.ERROR, True),
        ("exporter.poller", logging.DEBUG, True),
    ],
)
@pytest.mark.usefixtures("root")
def test_libraries_are_quiet(name: str, level: int, shown: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Even when debugging, libraries say only what a person needs: URLs and headers are not among it."""
    stream = io.StringIO()
    logs.configure(level="debug", form="logfmt", write=stream.write, secrets=lambda: ())

    logging.getLogger(name).log(level, "words")

    assert bool(stream.getvalue()) == shown


@FORMATS
@pytest.mark.usefixtures("root")
def test_the_line_of_dropped_lines(form: str) -> None:
    """How many lines were dropped is said at every level, in a line like all others."""
    stream = io.StringIO()
    notice = logs.configure(level="error", form=form, write=stream.write, secrets=lambda: ("written",))

    fields = read(form, notice(1234).removesuffix("\n"))

    assert list(fields) == ["time", "level", "msg", "lines"]
    assert fields["level"] == "warning"
    assert fields["msg"] == "log lines were dropped because they could not be <secret>"
    assert fields["lines"] == "1234"


@FORMATS
def test_a_record_that_cannot_be_formatted(form: str, root: logging.Logger) -> None:
    """It is a line that says where it was logged, without its values, and no exception for who logged it."""
    stream = io.StringIO()
    logs.configure(level="info", form=form, write=stream.write, secrets=lambda: ())

    root.info("%d campaigns", "no number")
    root.info("event", extra={"value": Untold()})

    lines = [read(form, line) for line in stream.getvalue().splitlines()]
    assert [line["error"] for line in lines] == ["TypeError", "ZeroDivisionError"]
    assert {(line["level"], line["msg"]) for line in lines} == {("error", "a log line cannot be formatted")}
    assert all(re.fullmatch(r"root:\d+", line["logger"]) for line in lines)


@pytest.mark.usefixtures("root")
def test_warnings_are_lines() -> None:
    """A warning of Python's own is logged, and not written to stderr."""
    stream = io.StringIO()
    logs.configure(level="warning", form="logfmt", write=stream.write, secrets=lambda: (KEY,))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"it is {KEY}", RuntimeWarning, stacklevel=1)

    (line,) = stream.getvalue().splitlines()
    assert "RuntimeWarning: it is <secret>" in read("logfmt", line)["msg"]


@pytest.mark.usefixtures("root")
def test_exceptions_of_destructors_are_lines() -> None:
    """An exception that Python can raise nowhere is logged, and not written to stderr."""
    stream = io.StringIO()
    logs.configure(level="error", form="logfmt", write=stream.write, secrets=lambda: (KEY,))

    Dying()

    (line,) = stream.getvalue().splitlines()
    fields = read("logfmt", line)
    assert (fields["level"], fields["msg"]) == ("error", "an exception was ignored")
    assert fields["traceback"].endswith("\nValueError: <secret>")


def test_the_last_configuration_holds(root: logging.Logger) -> None:
    """Configured again, logging writes each line once, where and as it is told last."""
    first, second = io.StringIO(), io.StringIO()
    logs.configure(level="debug", form="logfmt", write=first.write, secrets=lambda: ())
    logs.configure(level="info", form="json", write=second.write, secrets=lambda: ())

    root.debug("one")
    root.info("two")

    assert first.getvalue() == ""
    assert [read("json", line)["msg"] for line in second.getvalue().splitlines()] == ["two"]


def test_no_lock_is_held_while_a_line_is_formatted(root: logging.Logger) -> None:
    """A thread whose line takes long to format holds up no other thread's line."""
    stream = io.StringIO()
    logs.configure(level="info", form="logfmt", write=stream.write, secrets=lambda: ())
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def __str__(self) -> str:
            begun.set()
            go_on.wait(20)
            return "slow"

    thread = threading.Thread(target=lambda: root.info("event", extra={"value": Slow()}))
    thread.start()
    assert begun.wait(20)
    root.info("another")
    assert "another" in stream.getvalue()
    go_on.set()
    thread.join()

    assert [read("logfmt", line)["msg"] for line in stream.getvalue().splitlines()] == ["another", "event"]


class Dying:
    """An object whose destructor fails."""

    def __del__(self) -> None:
        raise ValueError(KEY)


class Untold:
    """An object that has no text."""

    def __str__(self) -> str:
        return str(1 // 0)


class Shown:
    """An object that a text stands for."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


def formatted(
    form: str,
    message: str,
    fields: dict[str, object] | None = None,
    *,
    error: Exception | None = None,
    secrets: tuple[str, ...] = (),
) -> str:
    """Return the line of a warning; an error is raised and caught for its traceback."""
    return logs.Formatter(form, lambda: secrets).format(record(message, fields, error=error))


def record(
    message: str, fields: dict[str, object] | None = None, *, error: Exception | None = None
) -> logging.LogRecord:
    """Return a warning as logging makes it, of noon on 3 March 2026 and a quarter of a second."""
    info = None
    if error is not None:
        try:
            raise error
        except type(error):
            info = sys.exc_info()
    made = logging.getLogger("tests").makeRecord("tests", logging.WARNING, "file", 1, message, (), info, extra=fields)
    made.created = 1772539200.25
    return made


def read(form: str, line: str) -> dict[str, str]:
    """Read a line back; raises ValueError or AssertionError where it is not of the format."""
    if form == "json":
        return {name: str(value) for name, value in json.loads(line).items()}
    pair = re.compile(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)(?: |$)')
    fields, place = {}, 0
    while place < len(line):
        match = pair.match(line, place)
        assert match, f"expected name=value at character {place} of {line!r}"
        fields[match[1]] = json.loads(match[2]) if match[2].startswith('"') else match[2]
        place = match.end()
    return fields
