"""Tests of exporter.braze.foreign_body: what is said of a body, and that no part of a key is."""

import pytest

from exporter.braze.foreign_body import described

KEY = "0f3bbc45-55hunter2"


def is_secret(text: str) -> bool:
    """Tell whether a text has a part of the key, as the client does."""
    return any(KEY[start : start + 8] in text for start in range(len(KEY) - 7))


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"<html>", "text/html; charset=utf-8", "6 bytes of text/html"),
        (b"", "application/json", "an empty body of application/json"),
        (b"x" * 1234, "", "1,234 bytes without a content type"),
        (b"x", "not one", "1 bytes"),
        (b"<title>Sign in &amp;\n go</title>", "text/html", "32 bytes of text/html with the title 'Sign in & go'"),
        ("<TITLE id=a>Zugriff über Proxy \x1b[0m</TITLE>".encode(), "", "'Zugriff über Proxy ?[0m'"),
        (b"<title>" + b"x" * 200 + b"</title>", "text/html", f"with the title '{'x' * 80}…'"),
        (b"<title>\xff</title>", "text/html", "with the title '\ufffd'"),
    ],
)
def test_what_came(body: bytes, content_type: str, expected: str) -> None:
    """A body is described by size, content type and the title of a page, on one line."""
    text = described(body, content_type, is_secret)

    assert text.endswith(expected)
    assert text.isprintable()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (f"<title>no access for {KEY}</title>".encode(), "text/html"),
        (f"<title>{'x' * 74}{KEY}</title>".encode(), "text/html"),
        (f"<title>{' '.join(KEY)}</title>".encode(), "text/html"),
        (f"<title>{''.join(f'&#{ord(character)};' for character in KEY)}</title>".encode(), "text/html"),
        (KEY.encode(), f"text/{KEY}"),
    ],
)
def test_no_part_of_a_key(body: bytes, content_type: str) -> None:
    """A title or content type that holds a part of the key is left out, however it is written and cut."""
    text = described(body, content_type, is_secret)

    assert "title" not in text
    assert not any(KEY[start : start + 4] in text for start in range(len(KEY) - 3))
