"""Tests of exporter.auth: who is allowed, what it costs, and that those who are known do not wait."""

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import bcrypt
import pytest

from exporter.auth import Authentication, Verdict

Result = TypeVar("Result")


def hashed(password: str, cost: int = 4) -> bytes:
    """Return a bcrypt hash."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost))


USERS = {
    "alice": hashed("secret"),
    "bob": hashed("with:colon"),
    "jürgen": hashed("schlüssel"),
    "longest": hashed("x" * 72),
}


def header(user: str, password: str) -> bytes:
    """Return the Authorization header of a user."""
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (header("alice", "secret"), Verdict.ALLOWED),
        (header("alice", "secret").replace(b"Basic", b"bAsIc"), Verdict.ALLOWED),
        (header("bob", "with:colon"), Verdict.ALLOWED),
        (header("jürgen", "schlüssel"), Verdict.ALLOWED),
        (header("longest", "x" * 72), Verdict.ALLOWED),
        (header("alice", "Secret"), Verdict.REFUSED),
        (header("alice", ""), Verdict.REFUSED),
        (header("alice", "secret\0"), Verdict.REFUSED),
        (header("bob", "secret"), Verdict.REFUSED),
        (header("nobody", "secret"), Verdict.REFUSED),
        (header("", ""), Verdict.REFUSED),
        (header("longest", "x" * 73), Verdict.REFUSED),
        (header("longest", "ü" * 37), Verdict.REFUSED),
        (b"", Verdict.REFUSED),
        (b"Basic", Verdict.REFUSED),
        (b"Basic !", Verdict.REFUSED),
        (b"Basic " + base64.b64encode(b"alice"), Verdict.REFUSED),
        (b"Basic " + base64.b64encode(b"\xff:secret"), Verdict.REFUSED),
        (b"Bearer " + base64.b64encode(b"alice:secret"), Verdict.REFUSED),
        (base64.b64encode(b"alice:secret"), Verdict.REFUSED),
    ],
)
def test_verdict(given: bytes, expected: Verdict) -> None:
    """A user with the right password is allowed, whoever else is refused, the second time too."""

    async def twice(authentication: Authentication) -> list[Verdict]:
        return [await authentication.check(USERS, given) for _ in range(2)]

    assert run(twice) == [expected, expected]


@pytest.mark.parametrize("name", [f"nobody {number}" for number in range(20)])
def test_an_unknown_user_never_borrows_a_password(name: str) -> None:
    """Whose hash a password is compared with for the sake of time is of no use."""

    async def guess(authentication: Authentication) -> set[Verdict]:
        return {await authentication.check(USERS, header(name, word)) for word in ("secret", "with:colon", "schlüssel")}

    assert run(guess) == {Verdict.REFUSED}


def test_a_known_password_is_not_compared_again() -> None:
    """What was found right costs next to nothing from then on, until the hash is another one."""
    users = {"alice": hashed("secret", 10)}

    async def ask(authentication: Authentication) -> list[float]:
        times = [await timed(authentication, users, "secret") for _ in range(3)]
        return [*times, await timed(authentication, {"alice": hashed("secret", 10)}, "secret")]

    first, second, third, changed = run(ask)
    assert max(second, third) < min(first, changed) / 5


def test_who_is_known_does_not_wait_for_who_is_not() -> None:
    """However many guess, a password that was found right is answered before any guess is."""
    users = {"alice": hashed("secret", 10)}

    async def ask(authentication: Authentication) -> tuple[Verdict, int, list[Verdict]]:
        await authentication.check(users, header("alice", "secret"))
        guesses = [asyncio.create_task(authentication.check(users, header("alice", f"{n}"))) for n in range(100)]
        await asyncio.sleep(0)
        verdict = await authentication.check(users, header("alice", "secret"))
        done = sum(guess.done() for guess in guesses if guess.done() and guess.result() is Verdict.REFUSED)
        return verdict, done, await asyncio.gather(*guesses)

    verdict, done, guesses = run(ask)
    assert (verdict, done) == (Verdict.ALLOWED, 0)
    assert 1 <= guesses.count(Verdict.REFUSED) <= 20
    assert set(guesses) == {Verdict.REFUSED, Verdict.BUSY}


def test_the_same_question_is_compared_once() -> None:
    """Many who come at once with the same password share one comparison, so that none is turned away."""

    async def ask(authentication: Authentication) -> list[Verdict]:
        users = {"alice": hashed("secret", 8)}
        return await asyncio.gather(*(authentication.check(users, header("alice", "secret")) for _ in range(100)))

    assert set(run(ask)) == {Verdict.ALLOWED}


def test_an_unknown_user_costs_the_same() -> None:
    """A name that is unknown takes as long as a wrong password, also where the costs of the hashes differ."""
    users = {"cheap": hashed("a", 4), "dear": hashed("b", 11)}

    async def ask(authentication: Authentication) -> list[float]:
        names = ["dear", *(f"nobody {number}" for number in range(30))]
        return [await timed(authentication, users, "c", name) for name in names]

    dear, *unknown = run(ask)
    assert 0 < sum(each > dear / 3 for each in unknown) < len(unknown)


def test_a_hash_that_bcrypt_refuses() -> None:
    """An odd hash refuses its user, and the next is checked."""
    users = {"odd": b"$2y$99$", "alice": hashed("secret")}

    async def ask(authentication: Authentication) -> list[Verdict]:
        return [await authentication.check(users, header(*pair)) for pair in (("odd", "x"), ("alice", "secret"))]

    assert run(ask) == [Verdict.REFUSED, Verdict.ALLOWED]


def test_no_password_is_kept() -> None:
    """After a check no part of it holds the password."""

    async def ask(authentication: Authentication) -> str:
        await authentication.check(USERS, header("longest", "x" * 72))
        return repr({name: getattr(authentication, name) for name in vars(authentication)})

    assert "x" * 8 not in run(ask)


async def timed(authentication: Authentication, users: dict[str, bytes], password: str, user: str = "alice") -> float:
    """Return the seconds that a check took."""
    started = time.perf_counter()
    await authentication.check(users, header(user, password))
    return time.perf_counter() - started


def run(ask: Callable[[Authentication], Awaitable[Result]]) -> Result:
    """Ask in an event loop."""

    async def main() -> Result:
        return await ask(Authentication())

    return asyncio.run(main())
