"""Tests of exporter.web.connections: how a body is cut into slices. tests/web/test_server.py has whole connections."""

from hypothesis import given
from hypothesis import strategies as st

from exporter.web.connections import slices

SLICE = 1 << 17


@given(st.lists(st.one_of(st.integers(0, 100), st.integers(SLICE - 1, SLICE + 1), st.integers(0, 5 * SLICE))))
def test_slices_are_the_body(sizes: list[int]) -> None:
    """Slices joined are the pieces joined, none is larger than 128 KiB, and small pieces share a slice."""
    pieces = [bytes([number % 256]) * size for number, size in enumerate(sizes)]

    cut = list(slices(pieces))

    assert b"".join(cut) == b"".join(pieces)
    assert all(len(part) <= SLICE for part in cut)
    assert all(len(one) + len(two) > SLICE for one, two, _ in zip(cut, cut[1:], cut[2:], strict=False)) or any(
        size > SLICE for size in sizes
    )


def test_large_pieces_are_not_copied() -> None:
    """The slices of a large piece refer to it, so that all clients share its memory."""
    piece = bytes(3 * SLICE)

    assert [part.obj is piece for part in slices([piece]) if isinstance(part, memoryview)] == [True] * 3
