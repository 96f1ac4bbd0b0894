"""Tests of tools.mutants: what a mutant changes, which are left out, and whether the tests see them."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from tests.support.servers import ROOT
from tools import mutants
from tools.mutants import Change

SOURCE = dedent("""\
    LIMIT = 5


    class SeriesLimits:
        def admit(self, row):
            with self.lock:
                if row:
                    return row
    """)


@pytest.mark.parametrize(
    ("line", "replaced", "by", "expected"),
    [
        (1, "5", "6", Change("series_limits", "", "LIMIT = 5", "LIMIT = 6")),
        (7, "if row", "if not row", Change("series_limits", "SeriesLimits.admit", "if row:", "if not row:")),
        (6, "with self.lock", "if True", Change("series_limits", "SeriesLimits.admit", "with self.lock:", "if True:")),
    ],
)
def test_a_change_is_what_differs(line: int, replaced: str, by: str, expected: Change) -> None:
    """A change is named by its lines without indentation and by the function around them, whatever line that is."""
    for above in ("", "import os\n\n"):
        source = above + SOURCE
        mutant = source.replace(replaced, by)

        assert mutants.change_of("series_limits", source, mutant, line + above.count("\n")) == expected


def test_equivalents_are_read_with_their_reasons() -> None:
    """An entry of the list stands for the change with the same lines in the same function."""
    entry = """\
        - module: series_limits
          in: SeriesLimits.admit
          before: "if row:"
          after: "if not row:"
          reason: nobody asks
    """

    change = mutants.change_of("series_limits", SOURCE, SOURCE.replace("if row", "if not row"), 7)
    assert mutants.read_equivalents(dedent(entry)) == {change: "nobody asks"}


def test_entries_whose_lines_are_gone_are_told() -> None:
    """An entry of the list is stale when its module no longer has the lines; whole lines count."""
    there, gone = (Change("series_limits", "", before, "") for before in ("if row:\nreturn row", "if ro"))

    assert mutants.stale({there: "", gone: ""}, {"series_limits": SOURCE}) == [gone]


def test_no_entry_of_the_list_is_stale() -> None:
    """Each entry of the project's own list has lines that are there, a function that has them, and a reason."""
    equivalents = mutants.read_equivalents(mutants.EQUIVALENTS.read_text(encoding="utf-8"))
    sources = {module: (ROOT / f"exporter/{module}.py").read_text(encoding="utf-8") for module in mutants.modules()}

    assert sources
    assert mutants.stale(equivalents, sources) == []
    assert all(equivalents.values())


def test_every_module_has_tests() -> None:
    """Each module of the package has a file of tests, its own or one that is named, and each file named is there."""
    modules = mutants.modules()

    assert "braze/client" in modules
    assert [module for module in modules if not mutants.tests_of(module)] == []
    assert [file for files in mutants.TESTS.values() for file in files if not (ROOT / file).is_file()] == []


def test_what_a_timeout_ends_counts_as_killed() -> None:
    """The percentage is that of the mutants tried, equivalent ones not among them; without any it is no error."""
    counts = Counter(failed=2, timeout=1, passed=1, equivalent=7)

    assert mutants.summary(counts) == "3 of 4 killed (75 %), 1 of them by a timeout; 7 equivalent ones left out"
    assert mutants.summary(Counter()).startswith("0 of 0 killed")


def test_mutants_of_a_module_are_tried(checker: Callable[[str], Path]) -> None:
    """Some mutants of a small module with good tests are killed, and the checkout is as it was."""
    checker("mutmut")
    file = ROOT / "exporter/advice.py"
    before = file.read_bytes()

    result = subprocess.run(
        [*(sys.executable, "-m", "tools.mutants"), "exporter/advice.py", "--sample=4", "--jobs=2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result
    first, *_, last = result.stdout.splitlines()
    assert first.startswith("exporter/advice.py: 4 of ")
    assert re.search(r"[1-4] of 4 killed", last), result.stdout
    assert file.read_bytes() == before


@pytest.mark.server
def test_tests_that_fail_kill_and_tests_that_hang_are_ended(tmp_path: Path) -> None:
    """A run of tests is over with the first failure or after its time, and nothing that it started remains."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "pyproject.toml").write_text('[tool.pytest.ini_options]\nmarkers = ["alone"]\n', encoding="utf-8")
    outcomes = {}
    for name, line in {"passed": "pass", "failed": "assert False", "timeout": "import time; time.sleep(600)"}.items():
        (checkout / f"test_{name}.py").write_text(f"def test_it():\n    {line}\n", encoding="utf-8")
        limit = 3 if name == "timeout" else None
        outcomes[name], _ = mutants.run_tests(checkout, [f"test_{name}.py"], timeout=limit)

    assert {name: name for name in outcomes} == outcomes
