"""Programs under test: started on loopback, waited for by a condition, stopped by process id."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple, TypeVar

import requests

Result = TypeVar("Result")

ROOT = Path(__file__).parents[2]
# Where tools/programs.sh unpacks Debian's packages.
UNPACKED = ROOT / ".cache/debian/usr/bin"
# Where make installs what checks the files in deploy/.
DEPLOY = ROOT / ".venvs/deploy/bin"
# Where make installs what changes the package.
MUTANTS = ROOT / ".venvs/mutants/bin"
# Seconds after which a test fails. A busy machine is slow, and a long timeout costs nothing when the test passes.
PATIENCE = 60.0
# Seconds between two checks of a condition.
_PAUSE = 0.02


def find_program(name: str) -> Path | None:
    """Find a program among Debian's unpacked packages, the tools for deploy/ or on PATH, in this order."""
    found = shutil.which(name, path=os.pathsep.join(map(str, (UNPACKED, DEPLOY, MUTANTS)))) or shutil.which(name)
    return Path(found) if found else None


def eventually(condition: Callable[[], Result], *, what: str, timeout: float = PATIENCE) -> Result:
    """Evaluate a condition until it is true, and return its value.

    After `timeout` seconds it raises AssertionError with `what`, the thing expected, and the last value.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"expected {what} within {timeout} s, the last value was {value!r}")
        time.sleep(_PAUSE)
    return value


@dataclass(frozen=True, slots=True)
class Program:
    """A running program and the file that its output goes to."""

    process: subprocess.Popen[bytes]
    log: Path

    def logged(self, pattern: str, *, timeout: float = PATIENCE) -> re.Match[str]:
        """Wait until the output matches a regular expression, `timeout` seconds at most.

        Raises AssertionError with the output when it does not, or when the program ends without having matched.
        """
        deadline = time.monotonic() + timeout
        while True:
            status = self.process.poll()  # before reading, so that the last output of an ended program counts
            if match := re.search(pattern, self.output(), re.MULTILINE):
                return match
            if status is not None or time.monotonic() > deadline:
                state = "is still running" if status is None else f"ended with status {status}"
                raise AssertionError(
                    f"expected output that matches {pattern!r} within {timeout} s, the program {state}; "
                    f"its output:\n{self.output()}"
                )
            time.sleep(_PAUSE)

    def output(self) -> str:
        """The output on stdout and stderr until now."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextmanager
def running(
    command: Sequence[str | Path], *, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """Run a program in the repository's folder while the context lasts, then terminate it, or kill it after a timeout.

    `environment` is added to this process's own.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield Program(process, log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A Prometheus that listens on `url`."""

    program: Program
    url: str

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate a PromQL expression now; return the instant vector as pairs of labels and value, in no order.

        Raises AssertionError with the response if Prometheus rejects the expression or its type is another.
        """
        data = self.ask("query", query=promql)
        assert isinstance(data, dict), data
        assert data["resultType"] == "vector", f"expected an instant vector, got {data}"
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def ask(self, path: str, **parameters: str) -> object:
        """Return the `data` of a response of the query API; `path` is relative to /api/v1/.

        Raises AssertionError with the response if its status is not success.
        """
        answer: object = json.loads(fetch(f"{self.url}/api/v1/{path}", parameters).content)
        assert isinstance(answer, dict), answer
        assert answer["status"] == "success", f"expected success for {path} with {parameters}, got {answer}"
        data: object = answer["data"]
        return data


@contextmanager
def running_prometheus(executable: Path, configuration: str, folder: Path, *flags: str) -> Iterator[Prometheus]:
    """Run a Prometheus with that configuration (YAML) on a free loopback port; it is ready when the context starts.

    `folder` gets its configuration, data and log; data may be there already. The first scrape comes about 5 s after
    the start, however short the interval, because Prometheus discovers its targets at that interval.
    """
    file = folder / "prometheus.yml"
    file.write_text(configuration, encoding="utf-8")
    command: list[str | Path] = [
        executable,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        *flags,
    ]
    with running(command, log=folder / "prometheus.log") as program:
        address = program.logged(r" address=(127\.0\.0\.1:[1-9]\d*)")[1]
        program.logged("Server is ready to receive web requests")
        eventually(lambda: fetch(f"http://{address}/-/ready").ok, what="a Prometheus that is ready")
        yield Prometheus(program, f"http://{address}")


def write_history(promtool: Path, lines: Iterable[str], folder: Path, *, longest: str = "1500h") -> None:
    """Add samples, as lines of OpenMetrics with timestamps, to the data of a Prometheus that does not run.

    `folder` is that of `running_prometheus`, `longest` the duration of the largest block.
    """
    samples = folder / "history.om"
    with samples.open("w", encoding="utf-8") as file:
        file.writelines(lines)
        file.write("# EOF\n")
    command: list[str | Path] = [
        promtool,
        "tsdb",
        "create-blocks-from",
        f"--max-block-duration={longest}",
        "openmetrics",
    ]
    subprocess.run([*command, samples, folder / "data"], check=True, capture_output=True)
    samples.unlink()


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """An Alertmanager that listens on `url`."""

    program: Program
    url: str

    def alerts(self, *, inhibited: bool) -> set[str]:
        """Return the names of the alerts in force that are inhibited, or of those that are not."""
        states = {"inhibited": str(inhibited).lower(), "active": str(not inhibited).lower()}
        answer: object = json.loads(fetch(f"{self.url}/api/v2/alerts", states).content)
        assert isinstance(answer, list), answer
        return {alert["labels"]["alertname"] for alert in answer}


@contextmanager
def running_alertmanager(executable: Path, configuration: str, folder: Path) -> Iterator[Alertmanager]:
    """Run an Alertmanager alone with that configuration (YAML) on a free loopback port; it is ready, too.

    `folder` gets its configuration, data and log, and a copy of the program where Debian's is unpacked and not
    installed: it reads its templates from a folder of the system, which is the current one for the copy.
    """
    file = folder / "alertmanager.yml"
    file.write_text(configuration, encoding="utf-8")
    command: list[str | Path] = [
        executable,
        f"--config.file={file}",
        f"--storage.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--cluster.listen-address=",
        "--log.level=debug",
    ]
    if executable.parent == UNPACKED:
        copy = folder / executable.name
        looked_into = b"/usr/share/prometheus/alertmanager"
        copy.write_bytes(executable.read_bytes().replace(looked_into, b"/proc/self/cwd".ljust(len(looked_into), b"/")))
        copy.chmod(0o755)
        command[:1] = ["env", f"--chdir={UNPACKED.parent / 'share/prometheus/alertmanager'}", copy]
    with running(command, log=folder / "alertmanager.log") as program:
        address = program.logged(r" address=(127\.0\.0\.1:[1-9]\d*)")[1]
        eventually(lambda: fetch(f"http://{address}/-/ready").ok, what="an Alertmanager that is ready")
        yield Alertmanager(program, f"http://{address}")


class Answer(NamedTuple):
    """A server's response."""

    body: bytes = b""
    content_type: str = "text/plain"
    status: int = 200


@contextmanager
def serving(answer: Callable[[str, bytes], Answer]) -> Iterator[str]:
    """Respond to each request by its path and body, on a free loopback port; yield the address without a scheme."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body, content_type, status = answer(self.path, asked)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the name of the standard library

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def fetch(url: str, parameters: Mapping[str, str] | None = None) -> requests.Response:
    """GET a loopback address without a proxy; raises after a timeout."""
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, params=parameters, timeout=PATIENCE)
