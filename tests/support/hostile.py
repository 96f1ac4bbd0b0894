"""Hostile clients: hundreds of connections at once, in one thread, until the context ends."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

Address = tuple[str, int]
Behaviour = Callable[["Attack", socket.socket], Awaitable[None]]

NEVER = 3600.0
_HELLO = bytes.fromhex("16030100fa010000f60303")  # the first bytes of a ClientHello
_KEPT = 1 << 14  # bytes of responses that are kept


@dataclass(slots=True)
class Attack:
    """Counts of an attack, as its clients see it."""

    address: Address
    source: str = ""
    connected: int = 0
    closed: int = 0
    received: int = 0
    answers: bytes = b""
    trouble: set[str] = field(default_factory=set)


@contextmanager
def attack(
    address: Address, clients: int, behaviour: Behaviour, *, again: bool = False, source: str = ""
) -> Iterator[Attack]:
    """Run this number of clients while the context lasts; with `again` they reconnect when their connection ends.

    They connect from the address `source`, if one is given.
    """
    state = Attack(address, source)
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(_attack(state, clients, behaviour, stopped, again=again)), daemon=True
    )
    thread.start()
    try:
        yield state
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


async def drip(_: Attack, client: socket.socket, *, text: bytes = b"GET /", pause: float = 1) -> None:
    """Send a header that never ends, one byte at a time."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, text)
    while True:
        await asyncio.sleep(pause)
        await loop.sock_sendall(client, b"x")


async def hold(state: Attack, client: socket.socket, *, text: bytes = b"") -> None:
    """Send something, or nothing, and wait until the other side closes."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, text)
    while part := await loop.sock_recv(client, 1 << 16):
        _receive(state, part)


handshake = partial(hold, text=_HELLO)
"""Begin a TLS handshake and do not continue it."""


async def crawl(state: Attack, client: socket.socket, *, text: bytes, pause: float = 1) -> None:
    """Send a request and read the response one kilobyte at a time."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, text)
    while part := await loop.sock_recv(client, 1024):
        _receive(state, part)
        await asyncio.sleep(pause)


async def _attack(state: Attack, clients: int, behaviour: Behaviour, stopped: asyncio.Event, *, again: bool) -> None:
    tasks = [asyncio.create_task(_client(state, behaviour, again=again)) for _ in range(clients)]
    await stopped.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _client(state: Attack, behaviour: Behaviour, *, again: bool) -> None:
    while True:
        with contextlib.closing(socket.socket()) as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            try:
                if state.source:
                    client.bind((state.source, 0))
                await asyncio.get_running_loop().sock_connect(client, state.address)
                state.connected += 1
                await behaviour(state, client)
            except OSError as error:
                state.trouble.add(type(error).__name__)
            state.closed += 1
        if not again:
            return
        await asyncio.sleep(0.01)


def _receive(state: Attack, part: bytes) -> None:
    state.received += len(part)
    if len(state.answers) < _KEPT:
        state.answers += part
