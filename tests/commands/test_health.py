"""Tests of exporter.health: the real command against real servers, good and bad."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from exporter.simulator.server import Drip, Hang, Simulator
from tests.support.exporters import COMMAND, KEY, configure, running_exporter
from tests.support.servers import eventually

pytestmark = pytest.mark.server


def health(*flags: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, "health", *flags],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def outcome(result: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    """Return what a caller sees."""
    return result.returncode, result.stdout, result.stderr


def test_healthy_and_not_ready(tmp_path: Path) -> None:
    """A running exporter is healthy at once, and ready after its first round; what is not 200 is named."""
    with Simulator(api_key=KEY) as braze:
        braze.misbehave(Hang(), campaign_id=braze.campaigns[0].id)
        with running_exporter(configure(tmp_path, braze), ready=False) as exporter:
            assert outcome(health(f"--url={exporter.url}/-/healthy")) == (0, "", "")

            ready = f"{exporter.url}/-/ready"
            assert outcome(health(f"--url={ready}")) == (1, "", f"{ready}: status 503\n")
            braze.close()
            eventually(exporter.ready, what="an exporter that is ready")
            assert outcome(health(f"--url={ready}")) == (0, "", "")

            none = f"{exporter.url}/none"
            assert outcome(health(f"--url={none}")) == (1, "", f"{none}: status 404\n")


def test_no_proxy_from_the_environment(tmp_path: Path) -> None:
    """The exporter is asked directly, whatever proxies the environment names."""
    proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    with Simulator(api_key=KEY, campaigns=1) as braze, running_exporter(configure(tmp_path, braze)) as exporter:
        result = health(f"--url={exporter.url}/-/healthy", environment={**proxies, "no_proxy": "", "NO_PROXY": ""})

    assert outcome(result) == (0, "", "")


def test_a_name_that_is_none() -> None:
    """A name that cannot even be looked up fails like one that nobody has."""
    result = health("--url=http://a..b/")

    assert outcome(result) == (1, "", "http://a..b/: no connection: the name cannot be looked up\n")


def test_nobody_listens() -> None:
    """A refused connection is named."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/-/healthy"

    assert outcome(health(f"--url={url}")) == (1, "", f"{url}: no connection: Connection refused\n")


@contextmanager
def answering(text: bytes) -> Iterator[str]:
    """Run a server that sends this to everybody who connects, and closes."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(text)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        (b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "status 301"),
        (b"HTTP/1.1 204 Nothing\r\n\r\n", "status 204"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the response is not HTTP: BadStatusLine"),
        (b"", "no connection: RemoteDisconnected"),
    ],
)
def test_other_answers(text: bytes, trouble: str) -> None:
    """Redirects are not followed, and whatever else comes is named in one line."""
    with answering(text) as url:
        result = health(f"--url={url}")

    assert outcome(result) == (1, "", f"{url}: {trouble}\n")


@pytest.mark.parametrize("fault", [Hang(), Drip(0.1, "headers")])
def test_slow_answers(fault: Hang | Drip) -> None:
    """Who does not answer within seconds is not healthy, even if a byte comes now and then."""
    with Simulator(api_key=KEY) as braze:
        braze.misbehave(fault)
        result = health(f"--url={braze.url}/campaigns/list")

    assert outcome(result) == (1, "", f"{braze_url(result)}: no response within 3 seconds\n")


def braze_url(result: subprocess.CompletedProcess[str]) -> str:
    """Return the URL that an error begins with."""
    return result.stderr.rpartition(": no response")[0]


def test_tls_where_there_is_none() -> None:
    """An https URL of a plain server fails by name."""
    with answering(b"HTTP/1.1 200 OK\r\n\r\n") as url:
        result = health(f"--url={url.replace('http', 'https', 1)}")

    assert result.returncode == 1
    assert "TLS failed" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_certificate_of_its_own(tmp_path: Path, openssl: Path) -> None:
    """On a loopback address any certificate will do: it is made out to the name that others use."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=exporter.example")
    command: list[str | Path] = [openssl, "req", "-x509", *kind, "-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    script = (
        "import ssl, sys, http.server as h\n"
        "class Handler(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "server = h.HTTPServer(('127.0.0.1', 0), Handler)\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(*sys.argv[1:])\n"
        "server.socket = context.wrap_socket(server.socket, server_side=True)\n"
        "print(server.server_port, flush=True); server.handle_request()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, certificate, key], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        result = health(f"--url=https://127.0.0.1:{server.stdout.readline().strip()}/-/healthy")
        server.kill()

    assert outcome(result) == (0, "", "")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:10105",
        "ftp://127.0.0.1/",
        "http://",
        "http://[::1",
        "http://a:0/",
        "http://a:99999/",
        "http://a/ b",
    ],
)
def test_wrong_urls(url: str) -> None:
    """What is no URL is wrong usage."""
    result = health(f"--url={url}")

    assert result.returncode == 2
    assert "expected a URL such as http://127.0.0.1:10105/-/healthy" in result.stderr


def test_a_password_in_the_url() -> None:
    """A URL with a password is refused, and the password not repeated."""
    result = health("--url=http://user:hunter2@127.0.0.1/")

    assert result.returncode == 2
    assert "without a user" in result.stderr
    assert "hunter2" not in result.stderr


def test_it_loads_little() -> None:
    """The command starts without what the exporter is made of: a container's check runs it all the time."""
    script = """if True:
        import sys
        from exporter.commands import health
        health.main(['--url=http://127.0.0.1:1/'])
        print(*sys.modules)
    """
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())

    assert {module for module in loaded if module.startswith("exporter")} == {
        "exporter",
        "exporter.commands",
        "exporter.commands.health",
    }
    assert not {"asyncio", "pydantic", "requests", "starlette", "uvicorn", "yaml", "logging"} & loaded
