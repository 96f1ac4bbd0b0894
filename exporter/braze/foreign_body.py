"""Description of a response body that is not Braze's, such as a proxy's page: type, size and title. Pure."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SEARCHED = 1 << 14  # bytes of a body in which a title is looked for
_LONGEST_TITLE = 80
_CONTENT_TYPE = re.compile(r"[a-z0-9.+-]{1,40}/[a-z0-9.+-]{1,40}")
_TITLE = re.compile(r"<title[^>]{0,100}>([^<]{1,1000})</title", re.IGNORECASE)


def described(body: bytes, content_type: str, is_secret: Callable[[str], bool]) -> str:
    """Return what a body is, for a log line or a page: `1,234 bytes of text/html with the title 'Access denied'`.

    A content type or title for which `is_secret` is true is left out.
    """
    size = f"{len(body):,} bytes" if body else "an empty body"
    kind = content_type.partition(";")[0].strip().lower()
    known = _CONTENT_TYPE.fullmatch(kind) is not None and not is_secret(kind)
    text = f"{size} of {kind}" if known else f"{size} without a content type" if not kind else size
    found = _TITLE.search(body[:_SEARCHED].decode("utf-8", errors="replace"))
    title = " ".join(html.unescape(found[1]).split()) if found else ""
    if not title or is_secret(title) or is_secret(title.replace(" ", "")):
        return text
    shown = "".join(character if character.isprintable() else "?" for character in title)
    return f"{text} with the title {shown[:_LONGEST_TITLE] + '…' * (len(shown) > _LONGEST_TITLE)!r}"
