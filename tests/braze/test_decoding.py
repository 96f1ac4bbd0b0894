"""Tests of exporter.decoding: bodies in, JSON out, one at a time, with a bound."""

import json
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given

from exporter.braze.decoding import (
    KEYS_LIMIT,
    VALUES_LIMIT,
    DecodingError,
    DecodingLocks,
    FairLock,
    TooManyValues,
    Turn,
    decoded,
)
from exporter.braze.transport import TimedOut
from tests.support.servers import eventually
from tests.support.strategies import JSON

LONG = 30.0


@given(JSON)
def test_json_is_decoded(value: object) -> None:
    """What the standard library encodes and decodes is decoded the same."""
    body = json.dumps(value).encode()

    assert repr(decoded(body)) == repr(json.loads(body))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>Busy</html>", id="HTML"),
        pytest.param(b'{"data": [', id="half"),
        pytest.param(b'{"data": "\xff"}', id="not UTF-8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep objects"),
        pytest.param(b'{"data": [%s' % (b"9" * 5000), id="half after 5,000 digits"),
        pytest.param(b"[%s,%s" % (b"9" * 5000, b"[" * 100_000), id="deep after 5,000 digits"),
    ],
)
def test_bodies_that_are_not_json(body: bytes) -> None:
    """A body that cannot be decoded is named by its length alone, and the error refers to nothing of it."""
    with pytest.raises(DecodingError) as caught:
        decoded(body)

    assert str(caught.value) == "expected JSON, got something else"
    assert caught.value.__context__ is None


@pytest.mark.parametrize("digits", [4300, 4301, 5000, 1_000_000])
def test_integers_of_any_length(digits: int) -> None:
    """A number that no float can hold spoils nothing around it, and its digits are not all computed with."""
    value = decoded(b'{"sent": 5, "opens": -%s, "clicks": 7, "revenue": 1.5}' % (b"1" * digits))

    assert isinstance(value, dict)
    opens = value.pop("opens")
    assert value == {"sent": 5, "clicks": 7, "revenue": 1.5}
    assert math.isnan(opens) if digits > 4300 else opens < -(10**4000)


def test_short_integers_beside_long_ones() -> None:
    """Where one integer is too long the others are read as ever, up to those that are no floats."""
    assert decoded(b"[%s, %s, 12345678901234567890]" % (b"1" * 5000, b"9" * 400))[1:] == [  # type: ignore[index]
        10**400 - 1,
        12345678901234567890,
    ]


@pytest.mark.parametrize(
    ("part", "count"),
    [(b"{}", VALUES_LIMIT), (b"[]", VALUES_LIMIT), (b"1", VALUES_LIMIT), (b'{"a":[{}]}', VALUES_LIMIT // 3)],
)
def test_absurdly_many_values(part: bytes, count: int) -> None:
    """A body of more values than any answer has is refused before it is decoded; a third of them is fine."""
    with pytest.raises(TooManyValues):
        decoded(b"[" + b",".join([part] * (count + 1)) + b"]")

    assert len(decoded(b"[" + b",".join([part] * (count // 3)) + b"]")) == count // 3  # type: ignore[arg-type]


@pytest.mark.parametrize("pattern", ['"%x":1', '"%x" : 1', '"name of the statistic number %d":1'])
def test_absurdly_many_names(pattern: str) -> None:
    """Names of fields cost the decoder most where each is another one."""
    fields = [pattern % number for number in range(KEYS_LIMIT + 100)]
    with pytest.raises(TooManyValues):
        decoded(f"{{{','.join(fields)}}}".encode())

    assert decoded(f"[{','.join(f'{{{field}}}' for field in fields[:9] * (KEYS_LIMIT // 10))}]".encode())


def test_the_bounds_are_about_work_and_not_about_size() -> None:
    """A large body of few values is decoded."""
    assert decoded(b'["%s"]' % (b"x" * 2_000_000)) == ["x" * 2_000_000]


def in_thread(run: Callable[[], object]) -> threading.Thread:
    """Start something in a thread."""
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_large_responses_come_one_at_a_time_in_their_order() -> None:
    """The first has its turn at once, the others when those before them have ended theirs."""
    lock = FairLock()
    ended: list[int] = []

    def run(number: int) -> None:
        assert lock.acquire(LONG)
        ended.append(number)
        lock.release()

    assert lock.acquire(LONG)
    threads = []
    for number in range(5):
        threads.append(in_thread(lambda number=number: run(number)))  # type: ignore[misc]
        eventually(lambda number=number: len(lock) == number + 2, what="one more in the line")  # type: ignore[misc]
    assert ended == []
    lock.release()
    for thread in threads:
        thread.join(LONG)

    assert ended == [0, 1, 2, 3, 4]
    assert len(lock) == 0


def test_a_turn_that_does_not_come_in_time() -> None:
    """Who waits in vain is out of the line, wherever it stood, and the others move up."""
    locks = DecodingLocks()
    first, second, third = Turn(locks), Turn(locks), Turn(locks)
    first.wait(0)
    for seconds in (0, -1.0, 0.01):
        with pytest.raises(TimedOut, match="other large responses"):
            second.wait(seconds)
    waiting = in_thread(lambda: third.wait(LONG))
    eventually(lambda: len(locks.large) == 2, what="the third in the line")
    with pytest.raises(TimedOut):
        second.wait(0)
    second.end()
    first.end()
    waiting.join(LONG)

    assert not waiting.is_alive()
    third.end()
    third.end()
    assert len(locks.large) == 0


def test_small_responses_do_not_wait_for_large_ones() -> None:
    """While a large one has its turn, small ones are decoded, one at a time; and the other way round."""
    locks = DecodingLocks()
    large, small, other = Turn(locks), Turn(locks), Turn(locks)
    large.wait(LONG)
    with small:
        assert locks.small.locked()
        with large:
            assert len(locks.large) == 1
        assert len(locks.large) == 0
        waiting = in_thread(other.__enter__)
        assert locks.small.locked()
    waiting.join(LONG)

    assert not waiting.is_alive()
    assert locks.small.locked()
    other.__exit__(None, None, None)
    assert not locks.small.locked()


def test_a_turn_ends_with_an_exception() -> None:
    """A response that cannot be read holds up nobody."""
    locks = DecodingLocks()
    for large in (False, True):
        turn = Turn(locks)
        if large:
            turn.wait(LONG)
        with pytest.raises(KeyError), turn:
            raise KeyError

    assert not locks.small.locked()
    assert len(locks.large) == 0


def test_many_threads_at_one_lock() -> None:
    """Of many threads one at most has its turn, and in the end nobody is left."""
    lock = FairLock()
    inside: list[int] = []

    def run(number: int) -> int:
        came = 0
        for _ in range(50):
            if lock.acquire(0 if number % 3 == 0 else LONG):
                inside.append(number)
                assert inside == [number]
                inside.remove(number)
                lock.release()
                came += 1
        return came

    with ThreadPoolExecutor(8) as threads:
        came = list(threads.map(run, range(8)))

    assert all(count == 50 for number, count in enumerate(came) if number % 3)
    assert len(lock) == 0
