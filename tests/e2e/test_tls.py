"""TLS, users and headers of a web configuration file: a real exporter, and a real Prometheus that scrapes it."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import socket
import ssl
import statistics
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import bcrypt
import pytest

from exporter.simulator.server import Simulator
from exporter.web.app import HEADERS
from tests.support.certificates import make_certificates
from tests.support.exporters import KEY, Exporter, ask, configure, running_exporter
from tests.support.hostile import attack, drip, handshake, hold
from tests.support.servers import PATIENCE, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message

    from tests.support.certificates import Certificates
    from tests.support.hostile import Attack, Behaviour
    from tests.support.servers import Prometheus

pytestmark = pytest.mark.server

CAMPAIGNS = 100  # of which the metrics have some megabytes
SUCCESSFUL = "braze_exporter_web_config_last_reload_successful"
PASSWORDS = {"prometheus": "correct horse", "jürgen": "schlüssel:mit:doppelpunkt", "slow": "x" * 72}
HASHES = {
    name: bcrypt.hashpw(password.encode(), bcrypt.gensalt(10 if name == "slow" else 4)).decode()
    for name, password in PASSWORDS.items()
}
USERS = "basic_auth_users:\n" + "".join(f"  {name}: {hashed}\n" for name, hashed in HASHES.items())
TLS = "tls_server_config:\n  cert_file: tls/server.pem\n  key_file: tls/server.key\n"
CLIENTS = f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: tls/ca.pem\n"


@pytest.fixture(scope="module")
def certificates(openssl: Path, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, with certificates of two servers and of two clients."""
    made = make_certificates(openssl, tmp_path_factory.mktemp("certificates"))
    made.sign("server", "IP:127.0.0.1")
    made.sign("later", "IP:127.0.0.1")
    made.sign("client", "DNS:prometheus")
    made.sign("another", "DNS:grafana")
    return made


@dataclass(frozen=True, slots=True)
class Answer:
    """Response."""

    status: int
    headers: Message
    text: str


class Start(Protocol):
    """Runs an exporter with a web configuration until the test ends."""

    def __call__(self, text: str, *flags: str) -> Secured:
        """Return it when it is ready."""


@dataclass(frozen=True, slots=True)
class Secured:
    """An exporter with a web configuration."""

    exporter: Exporter
    file: Path
    certificates: Certificates

    def context(self, client: str = "") -> ssl.SSLContext:
        """Return a client's TLS context: it trusts the CA, and has the certificate of that name."""
        context = ssl.create_default_context(cafile=self.certificates.ca)
        if client:
            context.load_cert_chain(
                self.certificates.folder / f"{client}.pem", self.certificates.folder / f"{client}.key"
            )
        return context

    def connect(self, client: str = "") -> HTTPConnection:
        """Return a connection that is not open yet."""
        url = urlsplit(self.exporter.url)
        if url.scheme == "http":
            return HTTPConnection(url.netloc, timeout=PATIENCE)
        return HTTPSConnection(url.netloc, timeout=10, context=self.context(client))

    def get(self, path: str = "/metrics", *, client: str = "", user: str = "", password: str = "") -> Answer:
        """Request a page over a new connection."""
        with closing(self.connect(client)) as connection:
            return request(connection, path, user, password)


def request(connection: HTTPConnection, path: str, user: str = "", password: str = "") -> Answer:
    """Request a page over a kept connection."""
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    connection.request("GET", path, headers={"Authorization": f"Basic {pair}"} if user else {})
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read().decode())


@pytest.fixture
def secured(certificates: Certificates, tmp_path: Path) -> Iterator[Start]:
    """Run an exporter with a web configuration until the test ends; it is ready."""
    with ExitStack() as stack:
        yield lambda text, *flags: stack.enter_context(_secured(certificates, tmp_path, text, *flags))


@contextmanager
def _secured(certificates: Certificates, folder: Path, text: str, *flags: str) -> Iterator[Secured]:
    file = folder / "web.yml"
    file.write_text(text, encoding="utf-8")
    (folder / "tls").mkdir()
    for source in certificates.folder.iterdir():
        (folder / "tls" / source.name).write_bytes(source.read_bytes())
    with Simulator(api_key=KEY, campaigns=CAMPAIGNS) as braze:
        web = (f"--web.config.file={file}", "--web.health.listen-address=127.0.0.1:0", "--log.level=debug", *flags)
        with running_exporter(configure(folder, braze), *web, ready=False) as exporter:
            probes = exporter.program.logged(r'"listening for probes" url=(http://\S+)')[1]
            eventually(lambda: ask(f"{probes}/-/ready").ok, what="an exporter that is ready")
            yield Secured(exporter, file, certificates)


def test_prometheus(secured: Start, prometheus: Callable[[str], Prometheus], certificates: Certificates) -> None:
    """Prometheus scrapes over TLS with a client certificate and a password, without HTTP/2, and not with less."""
    exporter = secured(f"{CLIENTS}  client_allowed_sans: [prometheus]\n{USERS}http_server_config:\n  http2: true\n")
    tls = {"ca_file": str(certificates.ca)}
    client, another = (
        {
            **tls,
            "cert_file": str(certificates.folder / f"{name}.pem"),
            "key_file": str(certificates.folder / f"{name}.key"),
        }
        for name in ("client", "another")
    )
    user = {"username": "jürgen", "password": PASSWORDS["jürgen"]}
    jobs: dict[str, dict[str, object]] = {
        "right": {"tls_config": client, "basic_auth": user},
        "no-user": {"tls_config": client},
        "wrong-password": {"tls_config": client, "basic_auth": {**user, "password": "wrong"}},
        "no-certificate": {"tls_config": tls, "basic_auth": user},
        "another-certificate": {"tls_config": another, "basic_auth": user},
        "unencrypted": {"scheme": "http", "basic_auth": user},
    }
    targets = [{"targets": [urlsplit(exporter.exporter.url).netloc]}]
    configuration = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
        "scrape_configs": [
            {"job_name": name, "scheme": "https", "static_configs": targets, **job} for name, job in jobs.items()
        ],
    }

    server = prometheus(json.dumps(configuration))

    eventually(lambda: len(server.query("up")) == len(jobs), what="scrapes of all kinds")
    assert {labels["job"]: value for labels, value in server.query("up")} == {
        name: float(name == "right") for name in jobs
    }
    assert len(server.query("braze_campaign_up == 1")) == CAMPAIGNS


@pytest.mark.parametrize("path", ["/metrics", "/", "/config", "/-/healthy", "/-/ready", "/-/reload", "/none"])
def test_everything_is_behind_users(path: str, shared: Secured) -> None:
    """Every page needs a user, and every response has its headers."""
    known = shared.get(path, user="prometheus", password=PASSWORDS["prometheus"])
    refused = [
        shared.get(path),
        shared.get(path, user="prometheus", password="wrong"),
        shared.get(path, user="nobody", password=PASSWORDS["prometheus"]),
        shared.get(path, user="prometheus", password=100 * "x"),
    ]

    assert known.status == {"/none": 404, "/-/reload": 405}.get(path, 200)
    for answer in refused:
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert answer.text == "401 Unauthorized\n"
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/reload", "/none"])
def test_every_method_is_behind_users(path: str, method: str, shared: Secured) -> None:
    """No method gets more than another without a user, not even a word on whether there is such a page."""
    with closing(shared.connect()) as connection:
        connection.request(method, path)

        assert connection.getresponse().status == 401


@pytest.fixture(scope="module")
def shared(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """An exporter with TLS and users."""
    with _secured(certificates, tmp_path_factory.mktemp("shared"), TLS + USERS, "--web.header-timeout=1s") as running:
        yield running


@pytest.mark.parametrize("user", PASSWORDS)
def test_users(user: str, shared: Secured) -> None:
    """Names and passwords may have any characters, and passwords 72 bytes."""
    assert shared.get(user=user, password=PASSWORDS[user]).status == 200
    assert shared.get(user=user, password=PASSWORDS[user] + "x").status == 401


@pytest.mark.alone
def test_who_is_known_does_not_wait_for_who_guesses(shared: Secured) -> None:
    """While many passwords are guessed, requests with verified ones succeed, and guesses are rejected."""
    assert shared.get(user="slow", password=PASSWORDS["slow"]).status == 200
    assert shared.get(user="slow", password="guess").status == 401
    with ExitStack() as stack:
        guesses = [stack.enter_context(closing(guess(shared, number))) for number in range(50)]
        for _ in range(10):
            assert shared.get(user="slow", password=PASSWORDS["slow"]).status == 200
        statuses = {each.recv(1 << 16)[:13] for each in guesses}
    assert b"HTTP/1.1 401 " in statuses
    assert statuses <= {b"HTTP/1.1 401 ", b"HTTP/1.1 503 "}


def test_guessers_do_not_keep_a_scraper_out(secured: Start) -> None:
    """While 200 clients of another address guess, a scraper that was never there before is let in, each time."""
    hashed = bcrypt.hashpw(b"horse", bcrypt.gensalt(8)).decode()
    names = [f"scraper-{number}" for number in range(40)]
    exporter = secured("basic_auth_users:\n" + "".join(f"  {name}: {hashed}\n" for name in names))
    numbers = itertools.count()

    async def guess_on(state: Attack, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pair = base64.b64encode(f"scraper-0:{next(numbers)}".encode()).decode()
            await loop.sock_sendall(
                client, f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {pair}\r\n\r\n".encode()
            )
            answer = b""
            while not answer.endswith((b"401 Unauthorized\n", b"503 Service Unavailable\n")):
                answer += await loop.sock_recv(client, 1 << 16)
            state.answers += answer[9:13]
            await asyncio.sleep(0.5)

    url = urlsplit(exporter.exporter.url)
    with attack((str(url.hostname), url.port or 0), 200, guess_on, source="127.0.0.2") as state:
        eventually(lambda: state.answers.count(b"503") > 200 and b"401" in state.answers, what="full queues")
        statuses = [exporter.get("/-/healthy", user=name, password="horse").status for name in names]

    assert statuses == [200] * 40
    assert set(state.answers.split()) == {b"401", b"503"}


@pytest.mark.alone
def test_a_known_password_does_not_wait_for_a_comparison(secured: Start) -> None:
    """While one password is compared, which takes a second here, many requests with a verified one succeed."""
    hashed = bcrypt.hashpw(b"horse", bcrypt.gensalt(14)).decode()
    exporter = secured(f"{TLS}basic_auth_users:\n  slow: {hashed}\n")
    with closing(exporter.connect()) as connection:
        assert request(connection, "/-/healthy", "slow", "horse").status == 200
        with closing(guess(exporter, 1)) as guessing:
            for _ in range(5):
                assert request(connection, "/metrics", "slow", "horse").status == 200
            guessing.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):  # no answer yet
                guessing.recv(1)
            guessing.settimeout(PATIENCE)
            assert guessing.recv(1 << 16).startswith(b"HTTP/1.1 401 ")


def test_a_large_answer(shared: Secured) -> None:
    """A response of megabytes arrives complete."""
    answer = shared.get(user="prometheus", password=PASSWORDS["prometheus"])

    assert len(answer.text.encode()) == int(answer.headers["Content-Length"]) > 1_000_000


def test_an_answer_must_be_taken(secured: Start) -> None:
    """A client that does not read its response is disconnected after the write timeout."""
    exporter = secured(TLS, "--web.write-timeout=1s")
    url = urlsplit(exporter.exporter.url)
    files = exporter.exporter.open_files()
    with closing(socket.socket()) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(PATIENCE)
        plain.connect((str(url.hostname), url.port or 0))
        with exporter.context().wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
            encrypted.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert encrypted.recv(16).startswith(b"HTTP/1.1 200 OK")
            eventually(lambda: exporter.exporter.open_files() == files, what="the end of the connection")


def test_the_log_says_https(shared: Secured) -> None:
    """The exporter listens on the address that it logs at the start."""
    assert shared.exporter.url.startswith("https://127.0.0.1:")


@pytest.mark.alone
@pytest.mark.parametrize("behaviour", [handshake, hold, drip])
def test_handshakes_without_an_end(behaviour: Behaviour, shared: Secured) -> None:
    """Hundreds of unfinished TLS handshakes delay no other client, and are closed after the header timeout."""
    url = urlsplit(shared.exporter.url)
    with attack((str(url.hostname), url.port or 0), 500, behaviour) as state:
        eventually(lambda: state.connected == 500, what="500 connections")
        meanwhile = seconds_of_a_scrape(shared)
        eventually(lambda: state.closed == 500, what="an end of all of them")
    # Who waits for a handshake waits for the header timeout, which is a hundred scrapes long.
    assert meanwhile < 20 * seconds_of_a_scrape(shared)
    assert not re.search("Traceback|level=(error|warning)", shared.exporter.program.output())


def seconds_of_a_scrape(shared: Secured) -> float:
    """Return the median of some scrapes, each with a connection of its own."""
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        assert shared.get(user="prometheus", password=PASSWORDS["prometheus"]).status == 200
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def test_kept_connections(shared: Secured) -> None:
    """Over TLS, too, one connection serves many requests."""
    with closing(shared.connect()) as connection:
        for _ in range(3):
            assert request(connection, "/metrics", "prometheus", PASSWORDS["prometheus"]).status == 200
            assert connection.sock is not None


@pytest.mark.parametrize(
    ("sans", "client", "expected"),
    [("[prometheus]", "client", True), ("[prometheus]", "another", False), ("[]", "another", True)],
)
def test_allowed_sans(
    sans: str,
    client: str,
    expected: bool,  # noqa: FBT001 - a parameter of the test
    secured: Start,
) -> None:
    """A certificate without an allowed name gets no response."""
    exporter = secured(f"{CLIENTS}  client_allowed_sans: {sans}\n")

    assert answers(partial(exporter.get, client=client)) is expected


def test_headers(secured: Start) -> None:
    """Headers of the web configuration replace the exporter's, in every response."""
    exporter = secured(
        "http_server_config:\n  http2: true\n  headers:\n    Content-Security-Policy: \"default-src 'self'\"\n"
        "    Strict-Transport-Security: max-age=1\n    X-Frame-Options: deny\n"
    )

    for path in ("/", "/metrics", "/none"):
        headers = exporter.get(path).headers
        assert headers.get_all("Content-Security-Policy") == ["default-src 'self'"]
        assert (headers["Strict-Transport-Security"], headers["X-Frame-Options"]) == ("max-age=1", "deny")
        assert headers["Referrer-Policy"] == HEADERS["Referrer-Policy"]
    assert exporter.exporter.program.output().count("HTTP/2 is not served") == 1


def test_changes_come_into_force(secured: Start) -> None:
    """Users, certificates and TLS itself change without a restart; what is wrong is logged, counted and left out."""
    exporter = secured(TLS + USERS)
    user = {"user": "prometheus", "password": PASSWORDS["prometheus"]}
    before, listeners = certificate(exporter), listening(exporter)
    with closing(exporter.connect()) as kept:
        assert request(kept, "/metrics", *user.values()).status == 200

        # Another certificate.
        (exporter.file.parent / "tls/server.pem").write_bytes((exporter.certificates.folder / "later.pem").read_bytes())
        exporter.exporter.program.logged("level=error msg=.the reload of the web configuration failed")
        assert f"{SUCCESSFUL} 0.0" in exporter.get(**user).text
        assert certificate(exporter) == before
        (exporter.file.parent / "tls/server.key").write_bytes((exporter.certificates.folder / "later.key").read_bytes())
        eventually(lambda: certificate(exporter) != before, what="another certificate")
        assert f"{SUCCESSFUL} 1.0" in exporter.get(**user).text

        # A connection that is open goes on, with the users of the moment.
        exporter.file.write_text(TLS + USERS.replace(HASHES["prometheus"], HASHES["slow"]), encoding="utf-8")
        eventually(lambda: request(kept, "/metrics", *user.values()).status == 401, what="another password")
        assert request(kept, "/metrics", "prometheus", PASSWORDS["slow"]).status == 200

    # A broken file.
    exporter.file.write_text(TLS + USERS + "x: y", encoding="utf-8")
    exporter.exporter.program.logged(r"level=error msg=.*expected one of the keys")
    assert exporter.get(user="prometheus", password=PASSWORDS["slow"]).status == 200

    # No TLS any more.
    exporter.file.write_text(USERS, encoding="utf-8")
    plain = Secured(
        Exporter(exporter.exporter.program, exporter.exporter.url.replace("https", "http")),
        exporter.file,
        exporter.certificates,
    )

    eventually(lambda: answers(partial(plain.get, **user)), what="an answer without TLS")
    assert listening(exporter) == listeners  # nobody was refused in between


def test_an_emptied_file(secured: Start) -> None:
    """A file that is emptied opens nothing until the exporter is started with it, which warns."""
    exporter = secured(TLS + USERS)
    user = {"user": "prometheus", "password": PASSWORDS["prometheus"]}
    exporter.file.write_text("# nothing\n", encoding="utf-8")
    exporter.exporter.program.logged("level=error .*expected TLS or users, as in the configuration in force")

    assert exporter.get().status == 401
    assert f"{SUCCESSFUL} 0.0" in exporter.get(**user).text


def test_an_empty_file(secured: Start) -> None:
    """An exporter that is started with an empty file serves everybody, and warns once."""
    exporter = secured("")

    assert f"{SUCCESSFUL} 1.0" in exporter.get().text
    assert exporter.exporter.program.output().count("everybody is served, without TLS") == 1


def test_the_metric_is_there_with_a_web_configuration_only(tmp_path: Path) -> None:
    """Without the flag nothing is said of a web configuration."""
    with Simulator(api_key=KEY, campaigns=1) as braze, running_exporter(configure(tmp_path, braze)) as exporter:
        assert SUCCESSFUL not in exporter.ask().text


def test_no_secret_is_shown(shared: Secured) -> None:
    """Neither a password nor a hash is in a page, a metric, the log or the list of processes."""
    for user, password in PASSWORDS.items():
        for path in ("/metrics", "/", "/config", "/-/reload", "/none"):
            shared.get(path, user=user, password=password)
            shared.get(path, user=user, password=f"{password}-wrong")
    pages = [shared.get(path, user="prometheus", password=PASSWORDS["prometheus"]).text
             for path in ("/metrics", "/", "/config", "/-/ready")]  # fmt: skip
    command = Path(f"/proc/{shared.exporter.program.process.pid}/cmdline").read_text(encoding="utf-8")

    shown = "\n".join([*pages, command, shared.exporter.program.output()])
    secrets = [
        *PASSWORDS.values(),
        *HASHES.values(),
        *(base64.b64encode(p.encode()).decode() for p in PASSWORDS.values()),
    ]
    assert not [secret for secret in secrets if secret in shown]


def answers(get: Callable[[], Answer]) -> bool:
    """Return whether there is a response."""
    try:
        return get().status == 200
    except OSError:
        return False


def listening(exporter: Secured) -> set[str]:
    """Return the sockets on which the process listens."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:])
    inodes = {f"socket:[{line[9]}]" for line in lines if line[3] == "0A"}
    files = Path(f"/proc/{exporter.exporter.program.process.pid}/fd").iterdir()
    return {str(file.readlink()) for file in files if file.is_symlink()} & inodes


def guess(exporter: Secured, number: int) -> socket.socket:
    """Send a request with a wrong password; return the connection before the response."""
    url = urlsplit(exporter.exporter.url)
    plain = socket.create_connection((str(url.hostname), url.port or 0), timeout=PATIENCE)
    encrypted = exporter.context().wrap_socket(plain, server_hostname="127.0.0.1")
    pair = base64.b64encode(f"slow:{number}".encode()).decode()
    encrypted.sendall(f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {pair}\r\n\r\n".encode())
    return encrypted


def certificate(exporter: Secured) -> str:
    """Return the certificate of a new connection."""
    url = urlsplit(exporter.exporter.url)
    return ssl.get_server_certificate(
        (str(url.hostname), url.port or 0), ca_certs=str(exporter.certificates.ca), timeout=10
    )
