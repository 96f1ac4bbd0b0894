"""What tests look for in files and pages must be found, or they prove nothing."""

from collections.abc import Iterable
from typing import TypeVar

Found = TypeVar("Found")


def some(found: Iterable[Found], what: str) -> list[Found]:
    """Return what was found; raises AssertionError with the thing expected where that is nothing."""
    listed = list(found)
    assert listed, f"expected {what}, found none"
    return listed
