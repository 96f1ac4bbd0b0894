"""Tests of exporter.web.auth: who is allowed, what it costs, and that those who are known do not wait."""

import asyncio
import base64
import gc
import itertools
import threading
from asyncio import Task
from collections.abc import Awaitable, Callable
from types import FunctionType, ModuleType
from typing import TypeVar

import bcrypt
import pytest

from exporter.web.auth import Authentication, Verdict, address_of
from tests.support.system import no_new_threads

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


class Comparing:
    """Compares as bcrypt does, without its cost, each when it is let; remembers the passwords in their order."""

    def __init__(self, let: int = 0) -> None:
        self.passwords: list[str] = []
        self.inside = self.crowd = 0
        self.let = threading.Semaphore(let)

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        """Compare with the hash itself."""
        self.inside += 1
        self.crowd = max(self.crowd, self.inside)
        self.passwords.append(password.decode())
        assert self.let.acquire(timeout=30)
        self.inside -= 1
        return password == hashed


PLAIN = {"alice": b"secret", **{f"scraper {number}": b"secret" for number in range(40)}}


def asking(authentication: Authentication, host: str, *passwords: str, user: str = "alice") -> list[Task[Verdict]]:
    """Begin to ask with passwords from a host."""
    return [asyncio.ensure_future(authentication.check(PLAIN, header(user, password), host)) for password in passwords]


async def turn() -> None:
    """Let everything that can go on without a thread go on."""
    for _ in range(10):
        await asyncio.sleep(0)


def numbered(letter: str, count: int) -> list[str]:
    """Return different passwords."""
    return [f"{letter}{number}" for number in range(count)]


def test_a_known_password_is_not_compared_again() -> None:
    """What was found right is not compared again until the hash is another one, nor is it known for another user."""
    comparing = Comparing(100)

    async def ask() -> list[int]:
        authentication = Authentication(comparing)
        counts = []
        for users, user in [
            (PLAIN, "alice"),
            (PLAIN, "alice"),
            (PLAIN, "scraper 1"),
            (PLAIN, "alice"),
            ({"alice": b"changed"}, "alice"),
            ({"alice": b"changed"}, "alice"),
        ]:
            await authentication.check(users, header(user, "secret"))
            counts.append(len(comparing.passwords))
        return counts

    assert asyncio.run(ask()) == [1, 1, 2, 2, 3, 4]


def test_who_is_known_does_not_wait_for_who_is_not() -> None:
    """However many guess, a password that was found right is answered before any guess is."""
    comparing = Comparing(1)

    async def ask() -> tuple[Verdict, int]:
        authentication = Authentication(comparing)
        await asking(authentication, "192.0.2.1", "secret")[0]
        guesses = asking(authentication, "192.0.2.1", *numbered("a", 100))
        await turn()
        verdict = await asking(authentication, "192.0.2.1", "secret")[0]
        done = sum(guess.done() and guess.result() is Verdict.REFUSED for guess in guesses)
        comparing.let.release(100)
        await asyncio.gather(*guesses)
        return verdict, done

    assert asyncio.run(ask()) == (Verdict.ALLOWED, 0)


def test_the_same_question_is_compared_once() -> None:
    """Many who come at once with the same password share one comparison, so that none is turned away."""
    comparing = Comparing(100)

    async def ask() -> list[Verdict]:
        return await asyncio.gather(*asking(Authentication(comparing), "192.0.2.1", *["secret"] * 100))

    assert asyncio.run(ask()) == [Verdict.ALLOWED] * 100
    assert comparing.passwords == ["secret"]


def test_an_unknown_user_costs_the_same() -> None:
    """A name that is unknown is compared with a user's hash, always the same one, and not all with the same."""
    compared: list[bytes] = []

    def compare(_: bytes, hashed: bytes) -> bool:
        compared.append(hashed)
        return False

    async def ask() -> None:
        authentication = Authentication(compare)
        users = {"cheap": b"cheap", "dear": b"dear"}
        for name in ["dear", "cheap", *(f"nobody {number}" for number in range(30))] * 2:
            await authentication.check(users, header(name, "guess"))

    asyncio.run(ask())

    assert compared[:2] == [b"dear", b"cheap"]
    assert compared[:32] == compared[32:]
    assert set(compared[2:32]) == {b"dear", b"cheap"}


def test_addresses_take_turns() -> None:
    """Checks of several addresses are made in turns, those of one address in their order, one at a time."""
    comparing = Comparing(100)

    async def ask() -> None:
        authentication = Authentication(comparing)
        tasks = asking(authentication, "192.0.2.1", *numbered("a", 4))
        tasks += asking(authentication, "192.0.2.2", *numbered("b", 2))
        tasks += asking(authentication, "192.0.2.3", *numbered("c", 3))
        await asyncio.gather(*tasks)

    asyncio.run(ask())

    assert comparing.passwords == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "c2", "a3"]
    assert comparing.crowd == 1


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        (["192.0.2.1", "192.0.2.2"], 2),
        (["192.0.2.1", "::ffff:192.0.2.1", "::ffff:c000:201"], 1),
        (["2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::1", "2001:DB8::"], 1),
        (["2001:db8::1", "2001:db8:0:1::1", "2001:db9::1"], 3),
        (["fe80::1%eth0", "fe80::1%eth1", "fe80::1"], 1),
        (["::1", "::2", "127.0.0.1", "::ffff:127.0.0.2"], 3),
        (["", "a socket", "another"], 3),
    ],
)
def test_what_counts_as_one_address(hosts: list[str], addresses: int) -> None:
    """An IPv6 /64 counts as one address, and an IPv4 address is the same in IPv6's clothes."""
    assert len({address_of(host) for host in hosts}) == addresses


def test_one_address_has_a_queue_with_an_end() -> None:
    """Of many guesses of one address at once some are made and the others are turned away at once."""
    comparing = Comparing()

    async def ask() -> tuple[int, list[Verdict]]:
        tasks = asking(Authentication(comparing), "192.0.2.1", *numbered("a", 100))
        await turn()
        turned_away = sum(task.done() for task in tasks)
        comparing.let.release(100)
        return turned_away, await asyncio.gather(*tasks)

    turned_away, verdicts = asyncio.run(ask())

    assert turned_away == verdicts.count(Verdict.BUSY) == 100 - 16
    assert comparing.passwords == numbered("a", 16)
    assert set(verdicts) == {Verdict.BUSY, Verdict.REFUSED}


def test_all_queues_together_have_an_end() -> None:
    """A newcomer's check takes the place of the last one of the address that has most, and none that has few."""
    comparing = Comparing()

    async def ask() -> dict[str, list[Verdict]]:
        authentication = Authentication(comparing)
        tasks = {letter: asking(authentication, f"192.0.2.{letter}", *numbered(letter, 16)) for letter in "1234"}
        tasks["5"] = asking(authentication, "192.0.2.5", "5")
        tasks["6"] = asking(authentication, "192.0.2.6", "secret")
        await turn()
        comparing.let.release(100)
        return {letter: [await task for task in each] for letter, each in tasks.items()}

    verdicts = asyncio.run(ask())

    assert [each.count(Verdict.BUSY) for each in verdicts.values()] == [1, 1, 0, 0, 0, 0]
    assert [verdicts[letter][-1] for letter in "12"] == [Verdict.BUSY] * 2
    assert verdicts["6"] == [Verdict.ALLOWED]


def test_a_crowd_of_addresses_does_not_grow_without_an_end() -> None:
    """The number of waiting checks has a maximum for all addresses together; the newest address is among them."""
    comparing = Comparing()

    async def ask() -> list[Verdict]:
        authentication = Authentication(comparing)
        tasks = [task for number in range(1000) for task in asking(authentication, f"host {number}", "guess")]
        tasks += asking(authentication, "192.0.2.1", "secret")
        await turn()
        comparing.let.release(1000)
        return await asyncio.gather(*tasks)

    verdicts = asyncio.run(ask())

    assert verdicts.count(Verdict.BUSY) == 1001 - 64
    assert verdicts[-1] is Verdict.ALLOWED


@pytest.mark.parametrize("guessers", [1, 3])
def test_guessers_do_not_keep_a_scraper_out(guessers: int) -> None:
    """While 200 clients guess, whoever comes from another address is let in after a few checks, each time."""
    comparing = Comparing(1_000_000)

    async def guess(authentication: Authentication, number: int) -> None:
        for attempt in itertools.count():
            await asking(authentication, f"192.0.2.{number % guessers}", f"{number} {attempt}")[0]
            await asyncio.sleep(0)

    async def ask() -> list[tuple[Verdict, int]]:
        authentication = Authentication(comparing)
        guesses = [asyncio.create_task(guess(authentication, number)) for number in range(200)]
        results = []
        for number in range(40):
            await asyncio.sleep(0)
            before = len(comparing.passwords)
            (task,) = asking(authentication, "198.51.100.1", "secret", user=f"scraper {number}")
            results.append((await task, comparing.passwords.index("secret", before) - before))
        for each in guesses:
            each.cancel()
        return results

    results = asyncio.run(ask())

    assert [verdict for verdict, _ in results] == [Verdict.ALLOWED] * 40
    assert max(checks for _, checks in results) <= guessers + 1


def test_the_same_question_of_another_address_is_its_own() -> None:
    """A check is shared within one address: what happens to another's does not matter."""
    comparing = Comparing(100)

    async def ask() -> list[Verdict]:
        authentication = Authentication(comparing)
        hosts = ["192.0.2.1", "192.0.2.2", "192.0.2.1"]
        return await asyncio.gather(*(task for host in hosts for task in asking(authentication, host, "secret")))

    assert asyncio.run(ask()) == [Verdict.ALLOWED] * 3
    assert comparing.passwords == ["secret"] * 2


def test_a_client_that_is_gone() -> None:
    """A client that leaves takes no check along that others wait for."""
    comparing = Comparing()

    async def ask() -> list[Verdict]:
        authentication = Authentication(comparing)
        gone, other = asking(authentication, "192.0.2.1", "secret", "secret")
        await turn()
        gone.cancel()
        comparing.let.release(10)
        return [await other, *await asyncio.gather(*asking(authentication, "192.0.2.1", "next"))]

    assert asyncio.run(ask()) == [Verdict.ALLOWED, Verdict.REFUSED]


def test_wrong_guesses_are_forgotten() -> None:
    """However many guesses were made and turned away, nothing of them stays in memory."""

    async def ask() -> tuple[int, int]:
        authentication = Authentication(lambda *_: False)
        counts = []
        for letter in "ab":
            for number in range(30):
                await asyncio.gather(*asking(authentication, f"host {letter} {number}", *numbered(letter, 20)))
                await asyncio.gather(*asking(authentication, "one", f"{letter}{number}", user=f"nobody {number}"))
            await turn()
            counts.append(reachable(authentication))
        first, second = counts
        return first, second

    first, second = asyncio.run(ask())
    assert first == second


def reachable(thing: object) -> int:
    """Count the objects that a thing keeps in memory, but for what belongs to the interpreter."""
    seen: dict[int, object] = {}
    rest = [thing]
    while rest:
        one = rest.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen[id(one)] = one
            rest += gc.get_referents(one)
    return len(seen)


def test_no_thread_for_a_check() -> None:
    """Where no thread can be started a check is turned away, and made when there are threads again."""

    async def ask() -> list[Verdict]:
        authentication = Authentication(Comparing(100))
        with no_new_threads():
            without = await asyncio.gather(*asking(authentication, "192.0.2.1", "secret", "guess"))
        return [*without, *await asyncio.gather(*asking(authentication, "192.0.2.1", "secret"))]

    assert asyncio.run(ask()) == [Verdict.BUSY, Verdict.BUSY, Verdict.ALLOWED]


def test_a_comparison_that_fails() -> None:
    """A comparison that raises fails its request, and those that wait are checked."""
    hashes = iter([RuntimeError("x")])

    def compare(password: bytes, hashed: bytes) -> bool:
        for error in hashes:
            raise error
        return password == hashed

    async def ask() -> list[Verdict | BaseException]:
        tasks = asking(Authentication(compare), "192.0.2.1", "guess", "secret")
        return await asyncio.gather(*tasks, return_exceptions=True)

    failed, allowed = asyncio.run(ask())
    assert (type(failed), allowed) == (RuntimeError, Verdict.ALLOWED)


def run(ask: Callable[[Authentication], Awaitable[Result]]) -> Result:
    """Ask in an event loop."""

    async def main() -> Result:
        return await ask(Authentication())

    return asyncio.run(main())
