"""The container image: what the Dockerfile says, and the image built and run without a container engine."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.containers import Container, Image, build, running_container
from tests.support.servers import PATIENCE, ROOT, eventually

DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
CAMPAIGNS = 3
ETC = "/etc/braze-exporter"


def test_the_dockerfile_has_no_findings(checker: Callable[[str], Path]) -> None:
    """Hadolint finds nothing."""
    result = subprocess.run(
        [checker("hadolint"), ROOT / "deploy/docker/Dockerfile"], capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_all_stages_start_from_one_pinned_base() -> None:
    """The only image from elsewhere is named with its full version and a digest."""
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", DOCKERFILE, re.MULTILINE)

    (_, base), *others = stages
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+@sha256:[0-9a-f]{64}", stages[0][0])
    assert {origin for origin, _ in others} == {base}


def test_the_context_is_what_the_image_is_made_of() -> None:
    """Nothing is sent to the builder but what some COPY takes from the context."""
    first, *rest = (line for line in ignore_lines() if not line.startswith("#"))
    copied = {
        name.rstrip("/")
        for sources in re.findall(r"^COPY ((?:(?!--)\S+ )+)\S+$", DOCKERFILE, re.MULTILINE)
        for name in sources.split()
    }

    assert first == "*"
    assert {f"!{name}" for name in copied} | {"**/__pycache__"} == set(rest)


@pytest.fixture(scope="module")
def image() -> Image:
    """The image as it is now."""
    return build()


@pytest.fixture(scope="module")
def braze(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container with a simulated Braze."""
    folder = tmp_path_factory.mktemp("braze")
    folder.chmod(0o755)  # the container's user is not the owner
    (folder / "api-key").write_text("a-key-of-this-test\n", encoding="utf-8")
    with running_container(
        image,
        *("simulate", f"--campaigns={CAMPAIGNS}", f"--api-key-file={ETC}/api-key"),
        log=folder / "log",
        mounts={folder: ETC},
    ) as container:
        eventually(lambda: container.program.output().count("      - id:") == CAMPAIGNS, what="a configuration")
        yield container


@pytest.fixture
def configuration(braze: Container, tmp_path: Path) -> Path:
    """The folder that is mounted into the exporter's container: the configuration and the key."""
    folder = tmp_path / "etc"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "config.yaml").write_text(braze.program.output(), encoding="utf-8")
    (folder / "api-key").write_text("a-key-of-this-test\n", encoding="utf-8")
    return folder


@pytest.fixture
def exporter(image: Image, braze: Container, configuration: Path, tmp_path: Path) -> Iterator[Container]:
    """A container of the image as it is, in the network of the simulated Braze; its first round is over."""
    with running_container(image, log=tmp_path / "log", mounts={configuration: ETC}, network_of=braze) as container:
        eventually(lambda: "is ready" in page(container, "/-/ready"), what="a ready exporter")
        yield container


@pytest.mark.server
def test_it_serves_as_process_1_of_nobody_on_a_read_only_system(exporter: Container) -> None:
    """Started with its own command, it polls and serves as process 1 and no one, without rights or a place to write."""
    lines = (line.rpartition(" ") for line in page(exporter, "/metrics").splitlines())
    up = [value for series, _, value in lines if series.startswith("braze_campaign_up{")]

    status = exporter.status()
    assert status["NSpid"].split()[-1] == "1"
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
    assert (status["Groups"], status["CapEff"], status["NoNewPrivs"]) == ("", "0" * 16, "1")
    assert exporter.execute("touch", "/tmp/x").stderr.endswith("Read-only file system\n")  # noqa: S108 - not ours
    assert up == ["1.0"] * CAMPAIGNS


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_on_a_signal_to_process_1(exporter: Container, number: signal.Signals) -> None:
    """The signal ends it with status 0; without a handler process 1 would not heed it at all."""
    os.kill(exporter.pid, number)

    assert exporter.program.process.wait(timeout=PATIENCE) == 0


@pytest.mark.server
def test_its_health_check_tells_whether_it_answers(exporter: Container, braze: Container) -> None:
    """The command of the health check succeeds beside a running exporter and fails when that is gone."""
    health = exporter.image.settings["Healthcheck"]
    assert isinstance(health, dict)
    kind, *command = health["Test"]

    assert kind == "CMD"
    assert exporter.execute(*command).returncode == 0
    os.kill(exporter.pid, signal.SIGTERM)
    exporter.program.process.wait(timeout=PATIENCE)
    assert braze.execute(*command).returncode == 1


@pytest.mark.server
def test_nothing_is_compiled_at_a_start(exporter: Container) -> None:
    """Every module that is loaded is there as bytecode that Python takes without a look at its source."""
    result = exporter.execute("env", "PYTHONVERBOSE=1", "braze-exporter", "--config.check")

    assert result.returncode == 0, result.stderr[-2000:]
    assert f"campaigns: {CAMPAIGNS}" in result.stdout
    loaded = re.findall(r"^# code object from '(.+)'$", result.stderr, re.MULTILINE)
    assert len(loaded) > 100
    assert [name for name in loaded if not name.endswith(".pyc")] == []


@pytest.mark.server
def test_it_has_no_means_to_install_or_compile(image: Image) -> None:
    """Neither pip nor what brings it back nor a compiler is left, nor the packages and tools of the build."""
    name = re.compile(r"pip\d?[\d.]*|ensurepip|hatchling|make|g?cc|c\+\+|g\+\+|.+-gcc(-\d+)?|uv|apt-get|pip-.+")
    left = [path.relative_to(image.root).as_posix() for path in image.root.rglob("*") if name.fullmatch(path.name)]

    assert left == []


@pytest.mark.server
def test_its_settings(image: Image) -> None:
    """The port is the exporter's, the labels say what it is, and only root can change the program."""
    labels = image.settings["Labels"]
    assert isinstance(labels, dict)
    assert image.settings["ExposedPorts"] == {"10105/tcp": {}}
    assert (image.words("Entrypoint"), image.words("Cmd")) == (
        ["braze-exporter"],
        [f"--config.file={ETC}/config.yaml"],
    )
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    owned = {(path.lstat().st_uid, path.lstat().st_mode & 0o022) for path in image.root.glob("opt/**/*.py*")}
    assert owned == {(0, 0)}


def page(container: Container, path: str) -> str:
    """Ask the exporter for a page from its own network; nothing where it does not answer with 200."""
    asking = (
        "import sys, urllib.request; opener = urllib.request.build_opener(urllib.request.ProxyHandler({}));"
        " sys.stdout.write(opener.open(sys.argv[1], timeout=60).read().decode())"
    )
    return container.execute(sys.executable, "-c", asking, f"http://127.0.0.1:10105{path}", inside=False).stdout


def ignore_lines() -> list[str]:
    """Return the lines of .dockerignore."""
    return (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
