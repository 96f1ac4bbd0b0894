"""Tests of exporter.commands.print: the real command against a simulated Braze."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.commands.print import replace_file
from exporter.polled import FAMILIES
from exporter.simulator.server import Hang, Simulator, Status
from tests.support.exporters import COMMAND, KEY, configure
from tests.support.servers import PATIENCE, eventually

server = pytest.mark.server


def printed(file: Path, *flags: str, **options: int) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    command = [*COMMAND, "print", f"--config.file={file}", *flags]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def values(text: bytes, name: str) -> dict[str, float]:
    """Return the values of a family by the campaign's name, or by the workspace's."""
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    return {
        sample.labels.get("campaign_name", sample.labels["workspace"]): sample.value
        for sample in families[name].samples
    }


@pytest.fixture
def braze() -> Iterator[Simulator]:
    """A simulated Braze."""
    with Simulator(api_key=KEY) as braze:
        yield braze


@server
def test_everything_is_polled_once_and_printed(braze: Simulator, tmp_path: Path, promtool: Path) -> None:
    """The text has what is known of workspaces and campaigns, nothing of the process, and promtool has no complaint."""
    result = printed(configure(tmp_path, braze))

    assert (result.returncode, result.stderr) == (0, b"")
    assert {campaign.id for campaign in braze.campaigns} == {request.campaign_id for request in braze.requests}
    assert len(braze.requests) == 12
    assert set(values(result.stdout, "braze_campaign_up").values()) == {1}
    assert values(result.stdout, "braze_workspace_up") == {"main": 1}
    names = {name.decode() for name in re.findall(rb"^# TYPE (\S+)", result.stdout, re.MULTILINE)}
    own = {name for name in names if name.startswith("braze_exporter_")}
    assert names <= {family.name for family in FAMILIES}
    assert own == {"braze_exporter_dropped_series"}
    checked = subprocess.run([promtool, "check", "metrics"], input=result.stdout, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")


@server
def test_one_campaign(tmp_path: Path) -> None:
    """A single campaign that succeeds makes its workspace up, too."""
    with Simulator(api_key=KEY, campaigns=1) as braze:
        assert values(printed(configure(tmp_path, braze)).stdout, "braze_workspace_up") == {"main": 1}


@server
def test_failures_are_named_and_the_rest_is_printed(braze: Simulator, tmp_path: Path) -> None:
    """When campaigns fail, the status is 1, stderr says which and why, and everything else is there."""
    failing = braze.campaigns[4]
    braze.misbehave(Status(400, b'{"message": "no such campaign"}'), campaign_id=failing.id)

    result = printed(configure(tmp_path, braze))

    assert result.returncode == 1
    expected = f"main: {failing.name} ({failing.id}): bad_request: Braze responded with 400: no such campaign\n"
    assert result.stderr.decode() == expected
    ups = values(result.stdout, "braze_campaign_up")
    assert (ups.pop(failing.name), set(ups.values()), len(ups)) == (0, {1}, 11)


@server
@pytest.mark.parametrize(("status", "reason"), [(401, "unauthorized"), (429, "rate_limited")])
def test_a_workspace_that_pauses(braze: Simulator, tmp_path: Path, status: int, reason: str) -> None:
    """A refusal of the whole workspace ends the round: the rest is not asked, which is told."""
    braze.misbehave(Status(status))

    result = printed(configure(tmp_path, braze, poll="concurrency: 1"))

    assert result.returncode == 1
    assert len(braze.requests) == 1
    assert f"main: 11 of 12 campaigns were not polled: {reason}\n" in result.stderr.decode()
    assert values(result.stdout, "braze_workspace_up") == {"main": 0}
    assert KEY.encode() not in result.stderr + result.stdout


@server
def test_a_file_is_replaced(braze: Simulator, tmp_path: Path) -> None:
    """With --output a file that everybody may read takes the place of the old one, even if some campaigns failed."""
    output = tmp_path / "collector/braze.prom"
    output.parent.mkdir()
    output.write_text("old", encoding="utf-8")
    output.chmod(0o600)
    braze.misbehave(Status(500), campaign_id=braze.campaigns[0].id)

    result = printed(configure(tmp_path, braze), f"--output={output}", umask=0o077)

    assert (result.returncode, result.stdout) == (1, b"")
    assert values(output.read_bytes(), "braze_workspace_campaigns") == {"main": 12}
    assert output.stat().st_mode & 0o777 == 0o644
    assert list(output.parent.iterdir()) == [output]


@server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_leaves_the_old_file(braze: Simulator, tmp_path: Path, number: int) -> None:
    """Who is stopped in between changes nothing, and says so by the status."""
    output = tmp_path / "collector/braze.prom"
    output.parent.mkdir()
    output.write_text("old", encoding="utf-8")
    braze.misbehave(Hang(), campaign_id=braze.campaigns[0].id)
    command = [*COMMAND, "print", f"--config.file={configure(tmp_path, braze)}", f"--output={output}"]

    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        eventually(lambda: len(braze.requests) == 12, what="a round that is nearly over")
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)

    assert (process.returncode, errors) == (1, b"interrupted before all was done\n")
    assert output.read_text(encoding="utf-8") == "old"
    assert list(output.parent.iterdir()) == [output]


@server
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("none/braze.prom", "No such file or directory"),
        (".", "expected a file, got something else"),
        ("pipe", "expected a file, got something else"),
    ],
)
def test_a_file_that_cannot_be_written(braze: Simulator, tmp_path: Path, output: str, reason: str) -> None:
    """What cannot be replaced is told; devices and pipes stay what they are."""
    os.mkfifo(tmp_path / "pipe")

    result = printed(configure(tmp_path, braze), f"--output={tmp_path / output}")

    assert (result.returncode, result.stderr.decode()) == (1, f"{tmp_path / output}: cannot be written: {reason}\n")
    assert (tmp_path / "pipe").is_fifo()


@server
def test_a_reader_that_has_enough(braze: Simulator, tmp_path: Path) -> None:
    """A closed pipe, as of `head`, is an error in one line, not a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [*COMMAND, "print", f"--config.file={configure(tmp_path, braze)}"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)

    assert (result.returncode, result.stderr) == (1, b"stdout: cannot be written: Broken pipe\n")


@server
def test_a_wrong_configuration(tmp_path: Path) -> None:
    """A configuration that cannot be used is explained, and nothing is written."""
    file = tmp_path / "config.yaml"
    file.write_text("workspaces: []\n", encoding="utf-8")

    result = printed(file, f"--output={tmp_path / 'braze.prom'}")

    assert result.returncode == 1
    assert result.stderr.decode().startswith(f"{file}:1: workspaces: expected at least one entry")
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_keeps_what_it_reads(tmp_path: Path) -> None:
    """The new text is another file: who has the old one open reads it to its end, and there is no moment between."""
    file = tmp_path / "braze.prom"
    replace_file(file, b"old" * 1000)
    with file.open("rb", buffering=0) as reader:
        begun = reader.read(3)
        replace_file(file, b"new")

        assert begun + reader.read() == b"old" * 1000
    assert file.read_bytes() == b"new"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What a link names is replaced, not the link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")

    replace_file(tmp_path / "link", b"1")
    replace_file(tmp_path / "link", b"2")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/file").read_bytes() == b"2"
    assert len(list(tmp_path.glob("**/*"))) == 3
