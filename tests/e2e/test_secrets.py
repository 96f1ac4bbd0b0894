"""No secret shows: every kind of key and password, and every page, error, command and level of logging."""

from __future__ import annotations

import base64
import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import bcrypt
import pytest

from exporter import flags
from exporter.simulator.server import Body, Cut, Hang, Simulator, Status
from tests.support.certificates import make_certificates
from tests.support.exporters import COMMAND, Exporter, ask
from tests.support.servers import PATIENCE, eventually, running
from tests.support.system import broken_library

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from exporter.simulator.server import Fault
    from tests.support.certificates import Certificates
    from tests.support.servers import Program

pytestmark = pytest.mark.server

LENGTH = 8
"""Length from which a part of a secret counts as leaked."""

FILE_KEY, NEXT_KEY = "q7Zk2mXw9Pfj4vLtR8", "Hb3nVc8sYdKq5gWz1T"
VARIABLE_KEY, LIMITED_KEY = "x9Rt4uJm7EoSa2iDf6", "Nw6yQp1kCv3hBx8lGz"
UNREADABLE_KEY = "dLg5 jFü2oKs7 rMe9cTb"
INLINE_KEY, URL_PASSWORD = "Zs1wGv6tHq3yXn8pJk", "pUf4eOi9aRm2cWd7bY"
PROXY_PASSWORD, SIMULATED_KEY = "kTz8xVq5nBw2mLs6hD", "aCj3gEr7yUo1fIp9sK"
PASSWORD, WRONG_PASSWORD = "Bm2vXc7zLk4jHg9fDs", "tYr5uWq1iEo8pAs3dF"
CLEAR_PASSWORD, STRANGERS_PASSWORD = "gQx6wNz4bVj9mCk1lH", "eSd8rFt2yGu5hJi7kO"
VARIABLE = "BRAZE_KEY_OF_A_TEST"

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW")
PATHS = ("/metrics", "/", "/config", "/-/healthy", "/-/ready", "/-/reload", "/none", "/metrics/")
POLL = "interval: 1s, timeout: 1s, stale_after: 1h, concurrency: 100"


@dataclass(slots=True)
class Shown:
    """All that can be seen from outside, and the secrets that must not be in it."""

    secrets: dict[str, str]
    texts: list[tuple[str, str]] = field(default_factory=list)

    def add(self, where: str, text: str | bytes) -> None:
        """Take note of what could be seen."""
        self.texts.append((where, text if isinstance(text, str) else text.decode(errors="replace")))

    def leaks(self) -> list[tuple[str, str, str]]:
        """Return the secrets that are visible in part, where, and the text around them, in any letter case."""
        parts = {
            secret[start : start + LENGTH].lower(): name
            for name, secret in self.secrets.items()
            for start in range(len(secret) - LENGTH + 1)
        }
        found: dict[tuple[str, str], str] = {}
        for where, text in self.texts:
            lower = text.lower()
            for part, name in parts.items():
                if (place := lower.find(part)) >= 0:
                    found.setdefault((name, where), text[max(0, place - 40) : place + 40])
        return [(*leak, around) for leak, around in found.items()]


def faults(key: str) -> tuple[Fault, ...]:
    """Return responses of Braze, or of a proxy, that repeat the key."""
    text = key.encode()
    return (
        Status(403, b'{"message": "%s may not"}' % text),
        Status(400, b'{"message": "%s"}' % key.upper().encode()),
        Status(400, b'{"message": "Bearer %s"}' % text),
        Status(404, b'{"message": "%s"}' % text[3:14]),
        Status(302, headers={"Location": f"http://127.0.0.1:1/{key}"}),
        Status(418, text),
        Status(500, text),
        Body(text),
        Body(b'{"message": "success", "data": "%s"}' % text),
        Body(b'{"message": "success", "data": [{"time": "%s"}]}' % text),
        Body(b'{"message": "success", "data": [{"time": "2026-03-04", "messages": "%s"}]}' % text),
        Body(b"\x1f\x8b" + text),
        Cut(20),
        Hang(),
    )


@pytest.fixture(scope="module")
def certificates(openssl: Path, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, with certificates of two servers and of a client."""
    made = make_certificates(openssl, tmp_path_factory.mktemp("certificates"))
    for name in ("server", "later", "client"):
        made.sign(name, "IP:127.0.0.1")
    return made


class World:
    """A folder with configurations, and several Brazes, each with a key of its own."""

    def __init__(
        self, folder: Path, certificates: Certificates, brazes: tuple[Simulator, Simulator, Simulator]
    ) -> None:
        self.folder = folder
        self.certificates = certificates
        self.braze, self.refusing, self.limited = brazes
        self.file, self.web_file, self.key_file = folder / "config.yaml", folder / "web.yml", folder / "api-key"
        self.broken = folder / "broken"
        self.hash = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
        self.environment = {
            VARIABLE: VARIABLE_KEY,
            "HTTPS_PROXY": f"http://somebody:{PROXY_PASSWORD}@{urlsplit(self.limited.url).netloc}",
        }
        self.key_file.write_text(FILE_KEY, encoding="utf-8")
        (folder / "limited-key").write_text(LIMITED_KEY, encoding="utf-8")
        self.web_file.write_text(self.web_configuration(), encoding="utf-8")
        self.file.write_text(self.configuration(), encoding="utf-8")
        self.shown = Shown(
            {
                "the key of a file": FILE_KEY,
                "the key that replaces it": NEXT_KEY,
                "a key that is none": UNREADABLE_KEY,
                "the key of a variable": VARIABLE_KEY,
                "the key that is used too often": LIMITED_KEY,
                "a key in the configuration itself": INLINE_KEY,
                "a password in an endpoint": URL_PASSWORD,
                "the password of a proxy": PROXY_PASSWORD,
                "the password of a proxy as it is sent": encoded("somebody", PROXY_PASSWORD),
                "the key of simulate": SIMULATED_KEY,
                "a password": PASSWORD,
                "a password as it is sent": encoded("alice", PASSWORD),
                "a password that is wrong": WRONG_PASSWORD,
                "a password that is wrong as it is sent": encoded("alice", WRONG_PASSWORD),
                "a password in the place of its hash": CLEAR_PASSWORD,
                "a password in a request": STRANGERS_PASSWORD,
                "a hash": self.hash.removeprefix("$2b$04$"),
                **{f"the private key of {name}": self.private_key(name) for name in ("server", "later")},
            }
        )

    def private_key(self, name: str) -> str:
        """Return the secret part of a private key; the first characters only name its type."""
        return "".join(self.pem(name, "key").splitlines()[1:-1])[40:]

    def pem(self, name: str, kind: str) -> str:
        """Return a file in the PEM form."""
        return (self.certificates.folder / f"{name}.{kind}").read_text(encoding="ascii")

    def web_configuration(self, name: str = "server") -> str:
        """Return a web configuration that contains the private key itself."""
        folder = self.certificates.folder
        key = "".join(f"    {line}\n" for line in self.pem(name, "key").splitlines())
        return (
            f"tls_server_config:\n  cert_file: {folder / name}.pem\n  key: |\n{key}"
            f"  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: {folder / 'ca.pem'}\n"
            f"basic_auth_users:\n  alice: {self.hash}\n"
        )

    def bad_web_configurations(self) -> list[str]:
        """Return web configurations with an error at a secret."""
        good, certificate = self.web_configuration(), self.certificates.folder / "server.pem"
        return [
            good.replace(self.hash, CLEAR_PASSWORD),
            good.replace(self.hash, f"'{CLEAR_PASSWORD}\n bob: {self.hash}"),
            good.replace(self.hash, f"[{self.hash}, {CLEAR_PASSWORD}]"),
            good.replace("alice: ", ""),
            good.replace(f"{certificate}", f"{certificate.with_name('later.pem')}"),
            good.replace("key: |", "private_key: |"),
            good.replace("key: |", "key_file: |"),
            good.replace("key: |", "cert: |"),
            re.sub(r"(?m)^(    [A-Za-z0-9+/=]{20}).*$", r"\1", good),
        ]

    def configuration(self) -> str:
        """Return a configuration with a workspace for each kind of key and each kind of error."""
        workspaces = (
            ("file", self.braze.url, "api_key_file: api-key", self.braze),
            ("variable", self.refusing.url, f"api_key_env: {VARIABLE}", self.refusing),
            ("limited", self.limited.url, "api_key_file: limited-key", self.limited),
            ("proxied", "https://rest.iad-01.braze.com", f"api_key_env: {VARIABLE}", self.limited),
        )
        return f"poll: {{{POLL}}}\nworkspaces:\n" + "".join(
            f"  - name: {name}\n    endpoint: {endpoint}\n    {key}\n    campaigns:\n"
            + "".join(f"      - id: {campaign.id}\n" for campaign in braze.campaigns)
            for name, endpoint, key, braze in workspaces
        )

    def bad_configurations(self) -> list[str]:
        """Return configurations with an error at a secret."""
        good = self.configuration()
        return [
            good.replace("api_key_file: api-key", f"api_key: {INLINE_KEY}"),
            good.replace("api_key_file: api-key", f"api_key_file: {INLINE_KEY} {INLINE_KEY}"),
            good.replace(VARIABLE, INLINE_KEY),
            good.replace(self.braze.url, f"http://somebody:{URL_PASSWORD}@127.0.0.1:1"),
            good.replace(self.braze.url, f"https://rest.iad-01.braze.com?token={URL_PASSWORD}"),
            good.replace("api_key_file: api-key", f"api_key_file: 'api-key\n    password: {INLINE_KEY}"),
            good.replace("api_key_file: api-key", f"secret: &x {INLINE_KEY}\n    token: *x"),
            f"{INLINE_KEY}\n",
            f"- {INLINE_KEY}\n",
        ]

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; all that it says can be seen."""
        result = subprocess.run(
            [*COMMAND, *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        self.shown.add(f"the output of {' '.join(map(str, arguments))}", result.stdout + result.stderr)
        return result

    def look_at(self, program: Program, name: str) -> None:
        """Take note of what a list of processes shows, and of what was logged."""
        process = Path("/proc", str(program.process.pid))
        self.shown.add(f"the command line of {name}", (process / "cmdline").read_text(encoding="utf-8"))
        for thread in (process / "task").iterdir():
            self.shown.add(f"the threads of {name}", (thread / "comm").read_text(encoding="utf-8"))
        self.shown.add(f"the log of {name}", program.output())


@pytest.fixture
def world(certificates: Certificates, tmp_path: Path) -> Iterator[World]:
    """A Braze that repeats its key in every kind of error, one that rejects it, and one at its rate limit."""
    with (
        Simulator(api_key=FILE_KEY, campaigns=30) as braze,
        Simulator(api_key=VARIABLE_KEY, campaigns=2, seed=2) as refusing,
        Simulator(api_key=LIMITED_KEY, campaigns=2, seed=3) as limited,
    ):
        repeat_the_key(braze)
        refusing.misbehave(Status(401, b'{"message": "%s"}' % VARIABLE_KEY.encode()))
        limited.misbehave(Status(429, LIMITED_KEY.encode(), headers={"Retry-After": LIMITED_KEY}))
        yield World(tmp_path, certificates, (braze, refusing, limited))


def repeat_the_key(braze: Simulator) -> None:
    """Give each of the first campaigns another fault that contains the key."""
    for campaign, fault in zip(braze.campaigns, faults(braze.api_key), strict=False):
        braze.misbehave(fault, campaign_id=campaign.id)


@pytest.mark.parametrize(("level", "form"), [("debug", "logfmt"), ("info", "json")])
def test_serving(level: str, form: str, world: World) -> None:
    """No request, response, reload, new key or crash leaks a secret."""
    few = None if level == "debug" else 2  # less of the same is logged
    with serving(world, f"--log.level={level}", f"--log.format={form}") as exporter:
        ask_for_everything(world, exporter, METHODS[:few])
        send_nonsense(world, exporter)
        reload_bad_files(world, exporter, world.bad_web_configurations()[:few])
        replace_keys(world, exporter)
        ask_for_everything(world, exporter, METHODS[:1])
        world.look_at(exporter.program, "the exporter")
        status = end_by_an_exception(world, exporter)
        world.shown.add("the log of the exporter", exporter.program.output())

    assert status == 1
    assert "Traceback (most recent call last)" in exporter.program.output()
    assert world.shown.leaks() == []


def test_commands(world: World) -> None:
    """No command leaks a secret, with good files or bad ones."""
    web, output = f"--web.config.file={world.web_file}", f"--output={world.folder / 'braze.prom'}"
    config = f"--config.file={world.file}"
    statuses = [
        world.run("check", config).returncode,
        world.run("check", config, "--json").returncode,
        world.run("print", config, "--log.level=debug").returncode,
        world.run("print", config, "--log.level=debug", "--log.format=json", output).returncode,
        world.run("health", f"--url=http://somebody:{STRANGERS_PASSWORD}@127.0.0.1/").returncode,
        world.run("health", f"--url={world.refusing.url}").returncode,
    ]
    for path in world.folder.glob("*.prom"):
        world.shown.add("the file of print", path.read_bytes())
    for text, web_text in zip(world.bad_configurations(), world.bad_web_configurations(), strict=True):
        world.file.write_text(text, encoding="utf-8")
        world.web_file.write_text(web_text, encoding="utf-8")
        statuses += [
            world.run("check", "--json", config).returncode,
            world.run("--config.check", config, web).returncode,
        ]

    assert [status for status in statuses if status != 1] == [2]  # the URL with a password is wrong usage
    assert world.shown.leaks() == []


def test_simulated_keys(world: World) -> None:
    """Neither the key that simulate is given nor the one with which demo polls is shown."""
    key = world.folder / "simulated-key"
    key.write_text(SIMULATED_KEY, encoding="utf-8")
    listening = "--web.listen-address=127.0.0.1:0"
    with (
        running((*COMMAND, "demo", listening, "--log.level=debug"), log=world.folder / "demo.log") as demo,
        running((*COMMAND, "simulate", listening, f"--api-key-file={key}"), log=world.folder / "simulate.log") as braze,
    ):
        exporter = Exporter(demo, demo.logged(r"^ +overview +(http://127\.0\.0\.1:\d+)/$")[1])
        endpoint = braze.logged(r"endpoint: (\S+)\n")[1]
        eventually(exporter.ready, what="a demo that is ready")
        for method in METHODS:
            for path in PATHS:
                world.shown.add(f"{path} of demo", exporter.ask(path, method=method).content)
        answer = ask(f"{endpoint}/campaigns/list", Authorization=f"Bearer {SIMULATED_KEY}")
        world.shown.add("an answer of simulate", f"{answer.headers} {answer.text}")
        world.look_at(demo, "demo")
        world.look_at(braze, "simulate")

    assert world.shown.leaks() == []
    assert [where for where, text in world.shown.texts if flags.SIMULATED_KEY in text] == []


def test_this_test() -> None:
    """A part of a secret is found in any text, upper or lower case; a shorter part is not."""
    shown = Shown({"one": "abcdefghijkl", "other": "0123456789"})
    shown.add("here", b"xx CDEFGHIJ xx")
    shown.add("there", "abcdefg 1234567")

    assert shown.leaks() == [("one", "here", "xx CDEFGHIJ xx")]


@contextmanager
def serving(world: World, *flags: str) -> Iterator[Exporter]:
    """Run an exporter after its first round; where it listens is known at every level of logging."""
    ports = free_ports(2)
    environment = world.environment | broken_library(world.folder, breaks="body cache", file=world.broken)
    command = (
        *COMMAND,
        f"--config.file={world.file}",
        f"--web.config.file={world.web_file}",
        f"--web.listen-address=127.0.0.1:{ports[0]}",
        f"--web.health.listen-address=127.0.0.1:{ports[1]}",
        "--web.enable-lifecycle",
        *flags,
    )
    with running(command, log=world.folder / "exporter.log", environment=environment) as program:
        eventually(lambda: is_ready(ports[1]), what="an exporter that is ready")
        yield Exporter(program, f"https://127.0.0.1:{ports[0]}")


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def is_ready(port: int) -> bool:
    """Return whether the listener for probes is ready."""
    try:
        return ask(f"http://127.0.0.1:{port}/-/ready").ok
    except OSError:
        return False


def encoded(user: str, password: str) -> str:
    """Return the password as it is encoded in a header."""
    user_length = len(user) + 1
    return base64.b64encode(f"{user}:{password}".encode()).decode()[(user_length * 4 + 2) // 3 :]


def authorizations() -> Iterator[str]:
    """Yield headers with the right password, with wrong ones, and malformed ones."""
    for password in (PASSWORD, WRONG_PASSWORD, f"{PASSWORD}{80 * 'x'}", f"{PASSWORD}\0"):
        yield f"Basic {base64.b64encode(f'alice:{password}'.encode()).decode()}"
    yield f"Basic {base64.b64encode(PASSWORD.encode()).decode()}"
    yield f"Basic {PASSWORD}"
    yield f"Bearer {FILE_KEY}"


def connect(world: World, exporter: Exporter) -> http.client.HTTPSConnection:
    """Return a connection that is not open yet; it trusts the CA and no other."""
    context = ssl.create_default_context(cafile=world.certificates.ca)
    return http.client.HTTPSConnection(urlsplit(exporter.url).netloc, timeout=PATIENCE, context=context)


def ask_for_everything(world: World, exporter: Exporter, methods: Sequence[str]) -> None:
    """Request every page in every way, with and without a user, with secrets in the query."""
    query = f"?api_key={FILE_KEY}&user={quote(PASSWORD)}"
    with closing(connect(world, exporter)) as connection:
        for authorization in (*authorizations(), ""):
            for method in methods:
                for path in (*PATHS, f"/metrics{query}", f"/{FILE_KEY}"):
                    headers = {"Accept": "application/openmetrics-text"} if "?" in path else {}
                    headers |= {"Authorization": authorization} if authorization else {}
                    connection.request(method, path, headers=headers)
                    answer = connection.getresponse()
                    world.shown.add(f"{method} {path}", f"{answer.status} {answer.headers} ".encode() + answer.read())


def send_nonsense(world: World, exporter: Exporter) -> None:
    """Send what is no request, and what is no TLS, with secrets in it."""
    secret = f"alice:{STRANGERS_PASSWORD}"
    texts = [
        f"GET https://{secret}@127.0.0.1/metrics HTTP/1.1\r\nHost: {secret}@x\r\n\r\n",
        f"{secret}\r\n\r\n",
        f"GET /{secret} HTTP/{secret}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization {secret}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {secret}{70_000 * 'x'}\r\n\r\n",
        f"POST /-/reload HTTP/1.1\r\nHost: x\r\nContent-Length: {secret}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: {secret}\r\nAuthorization: {secret}\r\n\r\n",
    ]
    url = urlsplit(exporter.url)
    strangers = ssl.create_default_context()
    for text in texts:
        for context in (connect(world, exporter)._context, strangers, None):  # type: ignore[attr-defined]  # noqa: SLF001
            with closing(socket.create_connection((str(url.hostname), url.port or 0), timeout=PATIENCE)) as plain:
                plain.settimeout(2)
                try:
                    with closing(
                        context.wrap_socket(plain, server_hostname="127.0.0.1") if context else plain
                    ) as client:
                        client.sendall(text.encode())
                        world.shown.add("an answer to nonsense", client.recv(1 << 16))
                except OSError:
                    continue  # no TLS, or nothing more is said


def reload_bad_files(world: World, exporter: Exporter, web_configurations: Sequence[str]) -> None:
    """Bring bad files into both configurations, and good ones back."""
    for text in world.bad_configurations():
        world.file.write_text(text, encoding="utf-8")
        assert reload(world, exporter) == 500
    exporter.program.process.send_signal(signal.SIGHUP)
    world.file.write_text(world.configuration(), encoding="utf-8")
    assert reload(world, exporter) == 200
    for number, text in enumerate(web_configurations, 1):
        world.web_file.write_text(text, encoding="utf-8")
        eventually(
            lambda expected=number: refusals(exporter) == expected,  # type: ignore[misc]
            what=f"{number} web configurations that are refused",
        )
    world.web_file.write_text(world.web_configuration("later"), encoding="utf-8")
    later = ssl.PEM_cert_to_DER_cert(world.pem("later", "pem"))
    eventually(lambda: certificate(world, exporter) == later, what="the other certificate")


def refusals(exporter: Exporter) -> int:
    """Return how often a web configuration was rejected."""
    return exporter.program.output().count("the reload of the web configuration failed")


def certificate(world: World, exporter: Exporter) -> bytes | None:
    """Return the certificate of a new connection."""
    with closing(connect(world, exporter)) as connection:
        connection.connect()
        return connection.sock.getpeercert(binary_form=True)


def reload(world: World, exporter: Exporter) -> int:
    """Request a reload; return the status of the response."""
    with closing(connect(world, exporter)) as connection:
        connection.request("POST", "/-/reload", headers={"Authorization": next(authorizations())})
        answer = connection.getresponse()
        world.shown.add("the answer to a reload", answer.read())
        return answer.status


def replace_keys(world: World, exporter: Exporter) -> None:
    """Replace the key by one that is rejected, then by one that is not valid."""
    world.braze.api_key = NEXT_KEY
    world.key_file.write_text(f"{NEXT_KEY}\n", encoding="utf-8")
    refused = len(world.braze.requests)
    eventually(lambda: any(each.authorized for each in world.braze.requests[refused:]), what="the other key")
    repeat_the_key(world.braze)
    asked = len(world.braze.requests)
    eventually(lambda: len(world.braze.requests) > asked + 2 * len(world.braze.campaigns), what="two rounds")
    for text in (UNREADABLE_KEY, ""):
        world.key_file.write_text(text, encoding="utf-8")
        assert reload(world, exporter) == 500


def end_by_an_exception(world: World, exporter: Exporter) -> int:
    """Make a library fail in an essential thread; return the exit status."""
    with closing(connect(world, exporter)) as connection:
        for authorization in authorizations():
            connection.request("GET", "/metrics", headers={"Authorization": authorization, "Accept-Encoding": "gzip"})
            connection.getresponse().read()
    world.broken.touch()
    another = world.configuration().partition("workspaces:\n")[2].replace("name: ", "name: another-")
    world.key_file.write_text(NEXT_KEY, encoding="utf-8")
    world.file.write_text(world.configuration() + another, encoding="utf-8")
    exporter.program.process.send_signal(signal.SIGHUP)
    return exporter.program.process.wait(timeout=PATIENCE)
