"""Tests of exporter.web.body_cache: a cached body is the exposition, as long as it is requested."""

import gzip
import threading
import zlib
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.config import Limits
from exporter.exposition import Format, Snapshot
from exporter.publisher import Publisher
from exporter.state import CampaignState
from exporter.system.threads import NoThreadError
from exporter.web.body_cache import REMEMBERED, BodyCache, CachedBody, Encoding, pause_after
from tests.support.servers import eventually
from tests.support.system import no_new_threads
from tests.test_exposition import LIMITS, STATE, STATES

ENCODINGS = [Encoding(form, gzip) for form in Format for gzip in (False, True)]
PLAIN, GZIP, OPENMETRICS, OPENMETRICS_GZIP = ENCODINGS


class World:
    """An exposition, a cache of its bodies, and the time."""

    def __init__(self, *states: CampaignState) -> None:
        self.now = 0.0
        self.publisher = Publisher(LIMITS)
        self.exposition = self.publisher.exposition
        self.bodies = BodyCache(
            self.exposition, monotonic=lambda: self.now, fatal=lambda error: pytest.fail(repr(error))
        )
        for state in states:
            self.publisher.publish(state)

    def shown(self, encoding: Encoding) -> bytes:
        """Return the current exposition."""
        return b"".join(self.exposition.snapshot().pieces(encoding.form))


def decoded(cached: CachedBody, rest: bytes = b"") -> bytes:
    """Return the whole body, decompressed as by a client that reads only one gzip member."""
    body = b"".join((*cached.pieces, cached.end(rest)))

    assert len(body) == cached.length + len(cached.end(rest))
    if cached.checksum is None:
        return body
    member = zlib.decompressobj(wbits=31)
    text = member.decompress(body)
    assert (member.eof, member.unused_data) == (True, b"")
    assert gzip.decompress(body) == text
    return text


@given(st.lists(STATES, max_size=3, unique_by=lambda state: state.key), st.binary(), st.sampled_from(ENCODINGS))
def test_a_body_is_the_cached_one_and_the_rest(states: list[CampaignState], rest: bytes, encoding: Encoding) -> None:
    """In each encoding a body is the exposition followed by the rest; a compressed one is one gzip member."""
    world = World(*states)

    assert decoded(world.bodies.make(encoding), rest) == world.shown(encoding) + rest


def test_one_cached_body_has_many_ends() -> None:
    """Every scrape appends its own rest to the cached body."""
    body = World(STATE).bodies.make(GZIP)

    assert decoded(body, b"one\n").endswith(b"one\n")
    assert decoded(body, b"another\n" * 10_000).endswith(b"\nanother\n")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_was_encoded_is_cached(encoding: Encoding) -> None:
    """A body that was encoded for one scrape is cached for the next; before that there is none."""
    world = World(STATE)
    before = world.bodies.get(encoding)
    made = world.bodies.make(encoding)

    assert before is None
    assert world.bodies.get(encoding) is made


def test_a_refresh_encodes_what_has_changed() -> None:
    """A refresh encodes a body again when the exposition has changed, and else leaves it alone."""
    world = World(STATE)
    world.bodies.get(GZIP)
    made = world.bodies.make(GZIP)
    world.bodies.refresh()
    unchanged = world.bodies.get(GZIP)
    world.publisher.publish(replace(STATE, polls=2))
    world.bodies.refresh()
    changed = world.bodies.get(GZIP)

    assert unchanged is made
    assert changed is not None
    assert changed is not made
    assert decoded(changed) == world.shown(GZIP)


def test_numbers_never_go_back() -> None:
    """A refresh whose snapshot is older than the body of a scrape does not replace that body."""
    world = World(STATE)
    world.bodies.get(GZIP)
    take = world.exposition.snapshot

    def slowly() -> Snapshot:
        world.exposition.snapshot = take  # type: ignore[method-assign]
        snapshot = take()
        world.publisher.publish(replace(STATE, polls=2))
        world.bodies.make(GZIP)
        return snapshot

    world.exposition.snapshot = slowly  # type: ignore[method-assign]
    world.bodies.refresh()
    body = world.bodies.get(GZIP)

    assert body is not None
    assert decoded(body) == world.shown(GZIP)


class Meddled(int):
    """The version of a body; at its first comparison another thread gets time to store its body."""

    meddler: threading.Thread | None = None

    def __le__(self, other: int) -> bool:
        """Compare, after the other thread has run: to its end, unless something blocks it."""
        meddler, self.meddler = self.meddler, None
        if meddler is not None:
            meddler.start()
            meddler.join(0.2)
        return int(self) <= int(other)


def test_no_other_thread_comes_in_between() -> None:
    """A body that another thread stores between the comparison and the replacement is kept."""
    world = World()
    versions = [Meddled(number) for number in (1, 2, 3)]
    world.exposition.snapshot = lambda: Snapshot(versions.pop(0), deque())  # type: ignore[method-assign]
    versions[0].meddler = meddler = threading.Thread(target=world.bodies.make, args=(PLAIN,))
    for _ in range(2):
        world.bodies.make(PLAIN)
    meddler.join()
    body = world.bodies.get(PLAIN)

    assert body is not None
    assert body.version == 3


def test_a_thread_refreshes_until_stopped() -> None:
    """Once started, changes are encoded without a scrape; after a stop no more."""
    world = World(STATE)
    world.bodies.get(PLAIN)
    world.bodies.start()
    eventually(lambda: world.bodies.get(PLAIN), what="a body that the thread encoded")
    world.bodies.stop()
    eventually(
        lambda: "body cache" not in {thread.name for thread in threading.enumerate()}, what="the end of the thread"
    )


def test_an_exception_of_the_thread_is_fatal() -> None:
    """An exception of the thread is reported, as scrapes would return old numbers from then on."""
    crashes: list[BaseException] = []
    world = World(STATE)
    bodies = BodyCache(world.exposition, monotonic=lambda: 1 // 0, fatal=crashes.append)
    bodies.start()
    eventually(lambda: crashes, what="a crash")

    assert [type(crash) for crash in crashes] == [ZeroDivisionError]


def test_no_thread_at_the_start() -> None:
    """A thread that cannot be started is an error at the start."""
    with no_new_threads(), pytest.raises(NoThreadError, match="body cache"):
        World(STATE).bodies.start()


def test_only_what_is_requested() -> None:
    """A refresh encodes the encodings requested within five minutes, and removes all others."""
    world = World(STATE)
    for encoding in (GZIP, OPENMETRICS):
        world.bodies.get(encoding)
        world.bodies.make(encoding)
    world.now = REMEMBERED
    world.bodies.get(GZIP)
    world.now += 1
    world.bodies.refresh()

    assert world.bodies.get(GZIP) is not None
    assert [world.bodies.get(encoding) for encoding in (PLAIN, OPENMETRICS, OPENMETRICS_GZIP)] == [None] * 3


def test_a_change_waits_for_the_next_refresh() -> None:
    """A poll delays no scrape: the cached body is sent."""
    world = World(STATE)
    made = world.bodies.make(PLAIN)
    world.publisher.publish(replace(STATE, polls=2))

    assert world.bodies.get(PLAIN) is made


@pytest.mark.parametrize("change", ["withdraw", "settle", "limit"])
def test_what_invalidates_a_body(change: str) -> None:
    """A removed campaign, the end of the first round and new limits invalidate the cached body."""
    world = World(STATE)
    world.bodies.make(PLAIN)
    state = replace(STATE, polls=2)
    world.publisher.publish(state)
    match change:
        case "withdraw":
            world.publisher.withdraw(STATE.key)
        case "settle":
            world.publisher.settle([state])
        case _:
            world.publisher.limit(Limits(series=1, series_per_campaign=1), [state])

    assert world.bodies.get(PLAIN) is None
    assert decoded(world.bodies.make(PLAIN)) == world.shown(PLAIN)


@given(st.floats(0, 1e6))
def test_a_twentieth_of_a_core(cpu: float) -> None:
    """Refreshes are a second apart, or more where they would take more than a twentieth of a core."""
    pause = pause_after(cpu)

    assert pause >= 1
    assert cpu <= 0.05 * (cpu + pause)
