"""Basic authentication against bcrypt hashes, at the same cost for known and unknown users.

bcrypt is slow by design, so checks run one at a time in threads, and wait in bounded queues, one for each remote
address. The queues are served round-robin: an address that guesses passwords delays another by one check. Credentials
that were accepted before are recognized without a check and without waiting.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import bcrypt

from exporter.system import threads
from exporter.system.threads import NoThreadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LONGEST_PASSWORD = 72  # bytes; bcrypt ignores further ones
_WAITING = 16  # maximum number of waiting checks per address: about a second at the usual cost
_WAITING_IN_ALL = 64  # maximum number of waiting checks of all addresses
_SUBNET = 64  # bits of the IPv6 prefix that a provider assigns to one customer


class Verdict(Enum):
    """Result of authentication; BUSY when too many checks are waiting."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    BUSY = "busy"


class Authentication:
    """Checks the Authorization header of requests; for one event loop.

    The last accepted credentials of each user are cached as a digest, keyed by a secret of this process. `compare`
    returns whether a password matches a hash, and may take long.
    """

    def __init__(self, compare: Callable[[bytes, bytes], bool] = bcrypt.checkpw) -> None:
        self._compare = compare
        self._key = secrets.token_bytes(32)
        self._accepted: dict[str, bytes] = {}
        self._in_progress: dict[tuple[str, bytes], _Check] = {}
        self._waiting = _Queues()
        self._working: asyncio.Task[None] | None = None

    async def check(self, users: Mapping[str, bytes], header: bytes, host: str = "") -> Verdict:
        """Check a header from a remote host against bcrypt hashes by user; `users` is not empty."""
        credentials = _credentials(header)
        if credentials is None:
            return Verdict.REFUSED
        name, password = credentials
        # An unknown name is checked against the hash of a known one, always the same: neither the time of a response
        # nor its variance reveals which names exist.
        stand_in = int.from_bytes(self._digest(name.encode())) % len(users)
        known = name in users
        hashed = users[name] if known else list(users.values())[stand_in]
        digest = self._digest(name.encode(), password, hashed)
        if hmac.compare_digest(self._accepted.get(name, b""), digest):
            return Verdict.ALLOWED
        right = await self._checked(address_of(host), digest, password, hashed)
        if right is None:
            return Verdict.BUSY
        if not (right and known):
            return Verdict.REFUSED
        self._accepted[name] = digest
        return Verdict.ALLOWED

    async def _checked(self, address: str, digest: bytes, password: bytes, hashed: bytes) -> bool | None:
        """Return whether a password is correct, None where too many checks are waiting.

        Concurrent calls with the same credentials from one address share a check.
        """
        key = address, digest
        check = self._in_progress.get(key)
        if check is None:
            check = _Check(asyncio.get_running_loop().create_future(), password, hashed)
            check.result.add_done_callback(lambda _: self._in_progress.pop(key))
            self._in_progress[key] = check
            self._waiting.put(address, check)
            if self._working is None:
                self._working = asyncio.create_task(self._work())
        return await asyncio.shield(check.result)

    async def _work(self) -> None:
        """Run the waiting checks."""
        while check := self._waiting.get():
            compare = partial(self._is_right, check.password, check.hashed)
            try:
                check.result.set_result(await asyncio.wrap_future(threads.call(compare, name="bcrypt")))
            except NoThreadError:
                check.result.set_result(None)
            except Exception as error:  # noqa: BLE001 - it fails this request, and not the waiting ones
                check.result.set_exception(error)
        self._working = None

    def _is_right(self, password: bytes, hashed: bytes) -> bool:
        try:
            return self._compare(password, hashed)
        except ValueError:  # this version of bcrypt does not support the hash
            return False

    def _digest(self, *parts: bytes) -> bytes:
        framed = b"".join(len(part).to_bytes(8) + part for part in parts)
        return hmac.digest(self._key, framed, hashlib.sha256)


@dataclass(frozen=True, slots=True)
class _Check:
    """A password to compare with a hash; the result is None where the check was dropped."""

    result: asyncio.Future[bool | None]
    password: bytes
    hashed: bytes


class _Queues:
    """Waiting checks by address, served round-robin."""

    def __init__(self) -> None:
        self._by_address: OrderedDict[str, deque[_Check]] = OrderedDict()

    def put(self, address: str, check: _Check) -> None:
        """Add a check; above a limit drop the newest of this address, or of the address with the most."""
        own = self._by_address.setdefault(address, deque())
        own.append(check)
        if len(own) > _WAITING:
            self._drop(address)
        elif sum(map(len, self._by_address.values())) > _WAITING_IN_ALL:
            self._drop(max(self._by_address, key=lambda each: len(self._by_address[each])))

    def get(self) -> _Check | None:
        """Return the next check of the next address, None when none is waiting."""
        if not self._by_address:
            return None
        address, own = self._by_address.popitem(last=False)
        check = own.popleft()
        if own:
            self._by_address[address] = own
        return check

    def _drop(self, address: str) -> None:
        own = self._by_address[address]
        own.pop().result.set_result(None)
        if not own:
            del self._by_address[address]


def address_of(host: str) -> str:
    """Return the network that counts as one address: the /64 of an IPv6 address, or an IPv4 address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> _SUBNET << _SUBNET, _SUBNET)))


def _credentials(header: bytes) -> tuple[str, bytes] | None:
    """Return user and password of a header, None where it has none that bcrypt can compare."""
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
