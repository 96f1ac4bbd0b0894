"""Check that a test has found the things that it looks at: without any it would prove nothing."""

from collections.abc import Iterable
from typing import TypeVar

Found = TypeVar("Found")


def some(found: Iterable[Found], what: str) -> list[Found]:
    """Return the things found as a list; raises AssertionError if there are none."""
    listed = list(found)
    assert listed, f"expected {what}, found none"
    return listed
