"""The contracts about imports in pyproject.toml hold, and a wrong import breaks them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the package and the contracts."""
    shutil.copytree(ROOT / "exporter", tmp_path / "exporter", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_only_point_back(checkout: Path) -> None:
    """No module imports one that is above it in the layers."""
    status, output = lint_imports(checkout)

    assert status == 0, output
    assert "Analyzed" in output


@pytest.mark.parametrize(
    ("module", "line", "expected"),
    [
        ("metrics", "from exporter import exposition", "exporter.metrics is not allowed to import exporter.exposition"),
        ("metrics", "from exporter.web import pages", "exporter.metrics is not allowed to import exporter.web"),
        ("config", "from exporter import cli", "exporter.config is not allowed to import exporter.cli"),
        ("braze/errors", "from exporter import poller", "exporter.braze is not allowed to import exporter.poller"),
        ("web/negotiation", "from exporter import poller", "exporter.web.negotiation is not allowed to import"),
        ("simulator/world", "import socket", "exporter.simulator.world is not allowed to import socket"),
        ("newcomer", "import json", "newcomer"),
    ],
)
def test_a_wrong_import_breaks_a_contract(checkout: Path, module: str, line: str, expected: str) -> None:
    """An import of a module further on, of I/O in a pure module, and a module without a layer are found and named."""
    file = checkout / f"exporter/{module}.py"
    with file.open("a", encoding="utf-8") as text:
        text.write(f"\n{line}\n")
    status, output = lint_imports(checkout)

    assert status != 0
    assert expected in output


def lint_imports(folder: Path) -> tuple[int, str]:
    """Check the imports of a folder; return the exit status and the output on one line."""
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [command, "--no-cache", "--no-logo"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, " ".join(result.stdout.split())
