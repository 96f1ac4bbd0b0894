"""Who may ask: basic authentication against bcrypt hashes, which costs the same whether a user is known or not.

bcrypt is slow by design. One thread of its own does it, so that nobody waits for it whose password was found right
before, and a queue with an end keeps those who guess from holding it for long.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import queue
import secrets
import threading
from enum import Enum
from typing import TYPE_CHECKING

import bcrypt

if TYPE_CHECKING:
    from collections.abc import Mapping

_LONGEST_PASSWORD = 72  # bytes; bcrypt knows no more of them
_WAITING = 16  # checks that wait at most: about a second at the usual cost


class Verdict(Enum):
    """What becomes of a request."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    BUSY = "busy"


class Authentication:
    """Checks the Authorization header of requests; for one event loop.

    What was found right is remembered as a digest with a key that only this process has, one for each user.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        self._under_way: dict[bytes, asyncio.Future[bool]] = {}
        self._checks: queue.Queue[tuple[asyncio.Future[bool], bytes, bytes]] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None

    async def check(self, users: Mapping[str, bytes], header: bytes) -> Verdict:
        """Check a header against the bcrypt hashes of users by name; there is at least one."""
        credentials = _credentials(header)
        if credentials is None:
            return Verdict.REFUSED
        name, password = credentials
        # A name that is unknown is checked against the hash of one that is known, always the same one: neither the
        # time of an answer nor its spread tells which names there are.
        stand_in = int.from_bytes(self._digest(name.encode())) % len(users)
        known = name in users
        hashed = users[name] if known else list(users.values())[stand_in]
        digest = self._digest(name.encode(), password, hashed)
        if hmac.compare_digest(self._right.get(name, b""), digest):
            return Verdict.ALLOWED
        try:
            right = await self._compare(digest, password, hashed)
        except queue.Full:
            return Verdict.BUSY
        if not (right and known):
            return Verdict.REFUSED
        self._right[name] = digest
        return Verdict.ALLOWED

    async def _compare(self, digest: bytes, password: bytes, hashed: bytes) -> bool:
        """Let the thread compare, once for all who ask the same at the same time; raises queue.Full."""
        if digest not in self._under_way:
            future = asyncio.get_running_loop().create_future()
            self._checks.put_nowait((future, password, hashed))
            self._under_way[digest] = future
            future.add_done_callback(lambda _: self._under_way.pop(digest))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bcrypt", daemon=True)
                self._thread.start()
        return await asyncio.shield(self._under_way[digest])

    def _run(self) -> None:
        while True:
            future, password, hashed = self._checks.get()
            try:
                right = bcrypt.checkpw(password, hashed)
            except ValueError:  # a hash that this version of bcrypt does not take
                right = False
            with contextlib.suppress(RuntimeError):  # the loop is closed
                future.get_loop().call_soon_threadsafe(_settle, future, right)

    def _digest(self, *parts: bytes) -> bytes:
        framed = b"".join(len(part).to_bytes(8) + part for part in parts)
        return hmac.digest(self._key, framed, hashlib.sha256)


def _settle(future: asyncio.Future[bool], right: bool) -> None:  # noqa: FBT001 - a callback
    if not future.done():
        future.set_result(right)


def _credentials(header: bytes) -> tuple[str, bytes] | None:
    """Return user and password of a header; None where there are none that bcrypt could compare."""
    scheme, _, encoded = header.partition(b" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
        name, colon, password = decoded.partition(b":")
        user = name.decode()
    except ValueError:
        return None
    if scheme.lower() != b"basic" or not colon or len(password) > _LONGEST_PASSWORD or b"\0" in password:
        return None
    return user, password
