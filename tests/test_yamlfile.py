"""Tests of exporter.yamlfile beyond those of the configuration: files in, plain values and problems out."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yaml import safe_dump

from exporter.yamlfile import Document, Finding, SyntaxProblemError, names_secret, read_document


def read(folder: Path, text: str) -> Document:
    """Return the document that a file with this text holds."""
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8")
    return read_document(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1\nb: [true, null, x, '1']", {"a": 1, "b": (True, None, "x", "1")}),
        (
            "zone: no\ntime: 1:30\nday: 2026-03-03\nnumber: 1_000",
            {"zone": "no", "time": "1:30", "day": "2026-03-03", "number": "1_000"},
        ),
        ("base: &base {a: 1, b: 2}\nmine: {<<: *base, b: 3}", {"base": {"a": 1, "b": 2}, "mine": {"a": 1, "b": 3}}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: !!int x\nb: !!bool y", {"a": "x", "b": "y"}),
        (f"a: {'1' * 5000}", {"a": "1" * 5000}),
    ],
)
def test_values(text: str, value: object, tmp_path: Path) -> None:
    """Plain scalars are what they look like, as in YAML 1.2; merge keys and a byte order mark are understood."""
    document = read(tmp_path, text)

    assert document.value == value
    assert document.problems == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_written_is_read(value: object) -> None:
    """Whatever PyYAML writes is read as the same value, lists as tuples."""
    with TemporaryDirectory() as folder:
        document = read(Path(folder), safe_dump(value, default_style='"'))

    assert as_tuples(value) == document.value


def as_tuples(value: object) -> object:
    """Return a value with its lists as tuples."""
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    if isinstance(value, dict):
        return {name: as_tuples(item) for name, item in value.items()}
    return value


def test_a_finding_has_its_line_and_path(tmp_path: Path) -> None:
    """A problem names the line of the value and the path to it, and describes what came."""
    document = read(tmp_path, "a:\n  - b: 1\n  -\n    c: text\n")

    assert document.problem(Finding(("a", 1, "c"), "a number")) == (4, "a[1].c: expected a number, got 'text'")
    assert document.problem(Finding(("a", 1, "d"), "a value")) == (4, "a[1].d: expected a value, got none")


@pytest.mark.parametrize(
    "text", ["password: hunter2", "a: {Token: [hunter2]}", "x: &x hunter2\nsecret: *x", "a: 'key=hunter2'"]
)
def test_secrets_are_not_described(text: str, tmp_path: Path) -> None:
    """What stands below a key named like a secret, or looks like one, is never repeated."""
    document = read(tmp_path, text)
    locations = [("password",), ("a",), ("a", "Token"), ("a", "Token", 0), ("x",), ("secret",)]

    assert not any("hunter2" in document.problem(Finding(location, "x", hint="h"))[1] for location in locations)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: ]", ":2: expected YAML, got a syntax error"),
        ("a: 1\n---\nb: 2\n", ":2: expected one YAML document, got another one"),
        ("a: \x07", ":1: expected printable text, got a control character"),
    ],
)
def test_no_yaml(text: str, problem: str, tmp_path: Path) -> None:
    """What is no YAML is refused with the line."""
    with pytest.raises(SyntaxProblemError) as caught:
        read(tmp_path, text)

    assert str(caught.value).startswith(problem)


def test_no_file(tmp_path: Path) -> None:
    """A file that cannot be read is refused with the system's reason."""
    with pytest.raises(
        SyntaxProblemError, match=r"^: expected a file that can be read, got 'No such file or directory'$"
    ):
        read_document(tmp_path / "missing.yaml")


@pytest.mark.parametrize(("name", "secret"), [("api_key", True), ("Password", True), ("name", False), (5, False)])
def test_names_of_secrets(name: object, secret: bool) -> None:  # noqa: FBT001 - a parameter
    """A name that holds a word for secrets in any case is one of them."""
    assert names_secret(name) == secret
