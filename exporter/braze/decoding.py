"""Decoder of response bodies, with bounded work for each and one at a time."""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from typing import TYPE_CHECKING

from exporter.braze.transport import LARGE, TimedOut

if TYPE_CHECKING:
    from types import TracebackType

VALUES_LIMIT = 1_000_000
"""Values of a body, about; 16 MiB of Braze's rows have fewer.

The decoder holds Python's interpreter lock from the first value to the last: a third of a second for so many.
"""

KEYS_LIMIT = 250_000
"""Different names of fields in a body, about; each takes the decoder as long as several values."""

_KEY = re.compile(rb'"[^"]{1,64}"\s*:')
_SLICE = 1 << 20
_INTEGER_DIGITS = 400
"""Digits of an integer that is larger than any float."""


class DecodingError(ValueError):
    """A body is not JSON; the text holds nothing of it."""


class TooManyValues(DecodingError):
    """A body has more values than VALUES_LIMIT, or more keys than KEYS_LIMIT."""


def decoded(body: bytes) -> object:
    """Return the content of a JSON body; an integer of more digits than Python reads is NaN.

    Raises:
        DecodingError: it is not JSON, is nested too deeply, or has too many values.

    """
    if len(body) > KEYS_LIMIT and _is_too_much(body):
        raise TooManyValues(f"expected at most about {VALUES_LIMIT:,} values with {KEYS_LIMIT:,} names, got more")
    try:
        return _loaded(body)
    except (ValueError, RecursionError):
        pass  # what is raised here would refer to the body
    raise DecodingError("expected JSON, got something else")


def _is_too_much(body: bytes) -> bool:
    """Return whether decoding would take too long, by a fast count during which other threads run."""
    values = sum(map(body.count, (b",", b"{", b"[")))
    if not KEYS_LIMIT < values <= VALUES_LIMIT:
        return values > VALUES_LIMIT
    keys: set[bytes] = set()
    for start in range(0, len(body), _SLICE):
        keys.update(_KEY.findall(body, start, start + _SLICE))
        if len(keys) > KEYS_LIMIT:
            return True
    return False


def _loaded(body: bytes) -> object:
    """Decode a body, with functions of Python if it is large or has an integer that is too long.

    They are slower and let other threads run in between.
    """
    if len(body) <= LARGE:
        try:
            return json.loads(body)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise
        except ValueError:
            pass
    return json.loads(body, parse_int=_integer, object_hook=_same)


def _same(fields: dict[str, object]) -> dict[str, object]:
    return fields


def _integer(digits: str) -> float:
    return int(digits) if len(digits) <= _INTEGER_DIGITS else float("nan")


class DecodingLocks:
    """Locks under which responses are decoded, shared by all workspaces.

    Small ones are decoded one at a time, as a crowd of threads slows the interpreter down. Large ones are read and
    decoded one at a time, in the order in which they came, so that one at most takes memory. Neither wait for others.
    """

    def __init__(self) -> None:
        self.small = threading.Lock()
        self.large = FairLock()


class FairLock:
    """Lock that waiting threads acquire in the order of their calls."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()

    def __len__(self) -> int:
        """Return the number of threads that hold it or wait for it."""
        return len(self._line)

    def acquire(self, timeout: float) -> bool:
        """Wait for the lock, `timeout` seconds at most; return whether it was acquired."""
        place = object()
        with self._changed:
            self._line.append(place)
            if self._changed.wait_for(lambda: self._line[0] is place, max(timeout, 0.0)):
                return True
            self._line.remove(place)
            return False

    def release(self) -> None:
        """Release the lock to the next thread."""
        with self._changed:
            self._line.popleft()
            self._changed.notify_all()


class Turn:
    """One response's turn: `wait` before it gets large; as a context it lasts while the response is decoded."""

    def __init__(self, locks: DecodingLocks) -> None:
        self._decoding_locks = locks
        self._large = False

    def wait(self, seconds: float) -> None:
        """Wait for the turn of a large response.

        Raises:
            TimedOut: it did not come within `seconds`.

        """
        if not self._decoding_locks.large.acquire(seconds):
            raise TimedOut("other large responses took all of the timeout")
        self._large = True

    def end(self) -> None:
        """End the turn of a large response, if it has begun."""
        if self._large:
            self._large = False
            self._decoding_locks.large.release()

    def __enter__(self) -> None:
        if not self._large:
            self._decoding_locks.small.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._large:
            self.end()
        else:
            self._decoding_locks.small.release()
