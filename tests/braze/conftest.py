"""Fixtures of the tests of exporter.braze."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture
def hectic() -> Iterator[None]:
    """Let threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
