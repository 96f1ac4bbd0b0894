"""Change the package in one place at a time and see whether a test fails: `make mutants`.

tools/mutate.py makes the mutants. Each is put into a copy of the checkout, in which the tests of its module run until
one fails. A mutant for which none fails survives and is printed: a test is missing, or the change makes no difference
and belongs into tests/data/equivalent_mutants.yml with its reason. Tests that measure time are left out.
"""

import argparse
import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from queue import SimpleQueue

import yaml

ROOT = Path(__file__).parents[1]
MUTATOR = ROOT / ".venvs/mutants/bin/python"
EQUIVALENTS = ROOT / "tests/data/equivalent_mutants.yml"
# Whose tests are not, or not only, those of its name.
TESTS = {
    "__init__": ["tests/test_release_notes.py"],
    "__main__": ["tests/test_cli.py"],
    "app": ["tests/test_cli.py", "tests/e2e/test_reload.py"],
    "commands/serve": ["tests/test_cli.py"],
    "system/command": ["tests/test_cli.py", "tests/commands/test_print.py"],
    "braze/api": ["tests/test_polled.py"],
    "braze/api_key": ["tests/braze/test_client.py"],
    "braze/client": ["tests/braze/test_client.py", "tests/braze/test_transport.py"],
    "braze/data_series": ["tests/braze/test_data_series.py", "tests/test_exposition.py"],
    "braze/errors": ["tests/braze/test_client.py"],
    "braze/transport": ["tests/braze/test_transport.py", "tests/braze/test_client.py"],
    "campaigns": ["tests/test_poller.py", "tests/test_polled.py", "tests/test_reload.py"],
    "metrics": ["tests/test_metrics.py", "tests/test_exposition.py", "tests/test_poller.py"],
    "schedule": ["tests/test_schedule.py", "tests/test_poller.py"],
    "series_limits": ["tests/test_series_limits.py", "tests/test_poller.py"],
    "workspace_poller": ["tests/test_poller.py", "tests/test_polled.py", "tests/test_reload.py"],
    "web/client_limits": ["tests/web/test_server.py", "tests/test_flags.py"],
    "web/connections": ["tests/web/test_connections.py", "tests/web/test_server.py"],
    "web/web_settings": ["tests/web/test_web_config.py"],
}
# What a mutant may take before it is killed: in multiples of the tests' own time, and in KiB of addresses.
_SLOWER, _SHORTEST = 4, 20
_ADDRESSES = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Change:
    """The lines of a module, without indentation, that a mutant replaces, and the function or class around them."""

    module: str
    scope: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change at a line, and the module with it."""

    change: Change
    line: int
    source: str

    def __str__(self) -> str:
        """Return it as text for people."""
        change = self.change
        lines = [
            *(f"- {line}" for line in change.before.split("\n")),
            *(f"+ {line}" for line in change.after.split("\n")),
        ]
        place = f"exporter/{change.module}.py:{self.line}" + f" in {change.scope}" * bool(change.scope)
        return "\n    ".join([place, *lines])


def change_of(module: str, original: str, source: str, line: int) -> Change:
    """Reduce two versions of a module to the lines that differ around that line."""
    before, after = original.splitlines(), source.splitlines()
    start = common(before, after)
    end = common(before[start:][::-1], after[start:][::-1])
    changed = ["\n".join(line.strip() for line in lines[start : len(lines) - end]) for lines in (before, after)]
    return Change(module, scope_of(ast.parse(original), line), *changed)


def common(some: Sequence[str], others: Sequence[str]) -> int:
    """Count how many lines both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))


def scope_of(tree: ast.AST, line: int) -> str:
    """Name the innermost function or class at a line, dotted, or nothing outside of all."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            inner = scope_of(node, line)
            name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else ""
            return ".".join(filter(None, [name, inner]))
    return ""


def read_equivalents(text: str) -> dict[Change, str]:
    """Read the list of changes that change nothing, with their reasons."""
    return {
        Change(entry["module"], entry["in"], entry["before"].rstrip("\n"), entry["after"].rstrip("\n")): entry["reason"]
        for entry in yaml.safe_load(text) or ()
    }


def tests_of(module: str) -> list[str]:
    """Name the files with a module's tests, those of its own first."""
    own = Path("tests", module).with_name(f"test_{Path(module).name}.py").as_posix()
    return [file for file in TESTS.get(module, [own]) if (ROOT / file).is_file()]


def modules() -> list[str]:
    """Name all modules of the package, those in packages of it as folder/module."""
    package = ROOT / "exporter"
    files = (path.relative_to(package).with_suffix("").as_posix() for path in package.rglob("*.py"))
    return sorted(file for file in files if not file.endswith("/__init__"))


@contextmanager
def mutants_of(module: str, seed: str) -> Iterator[tuple[int, Iterator[Mutant]]]:
    """Yield how many changes there are and, one after the other, the mutants."""
    file = ROOT / f"exporter/{module}.py"
    original = file.read_text(encoding="utf-8")
    command: list[str | Path] = [MUTATOR, "-m", "tools.mutate", file, seed]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - what subprocess says when it is a pipe
        first = process.stdout.readline()
        if not first:
            raise SystemExit(f"tools/mutate.py makes no mutants of {file}: its error is above")
        found = map(json.loads, process.stdout)
        yield (
            int(first),
            (
                Mutant(change_of(module, original, each["source"], each["line"]), each["line"], each["source"])
                for each in found
            ),
        )
        process.kill()


def copy_checkout(folder: Path) -> Path:
    """Copy the files that git tracks or would track, and link the folders that make has installed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 - the user's git
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = ROOT / name
        if source.is_file() and not source.is_symlink():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    for name in (".venv", ".venvs", ".cache"):
        if (ROOT / name).exists():
            (folder / name).symlink_to((ROOT / name).resolve())
    return folder


def run_tests(checkout: Path, files: Sequence[str], *, timeout: float | None) -> tuple[str, str]:
    """Run the tests of a checkout until one fails.

    Returns `passed`, `failed` or, after so many seconds, `timeout`, and what pytest printed.
    """
    command = [
        "sh",
        "-c",
        f'ulimit -v {_ADDRESSES}; exec "$@"',
        "sh",
        str(ROOT / ".venv/bin/python"),
        "-B",
        "-m",
        "pytest",
    ]
    flags = ["-x", "-q", "-m", "not alone", "-p", "no:cacheprovider", f"--basetemp={checkout.parent / 'tmp'}"]
    with subprocess.Popen(
        [*command, *flags, *files],
        cwd=checkout,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return "timeout", ""
        finally:
            _end_group(process)
    return ("passed" if process.returncode == 0 else "failed"), output


def try_module(
    module: str, checkouts: Sequence[Path], equivalents: dict[Change, str], *, sample: int, seed: str
) -> Counter[str]:
    """Test a sample of a module's mutants in the checkouts, print those that survive, and count the outcomes."""
    files = tests_of(module)
    if not files:
        print(f"exporter/{module}.py: no tests of its own; name some in TESTS of tools/mutants.py")
        return Counter()
    began = time.monotonic()
    outcome, output = run_tests(checkouts[0], files, timeout=None)
    if outcome != "passed":
        raise SystemExit(f"{' '.join(files)} fail without a mutant:\n{output}")
    allowed = max(_SHORTEST, _SLOWER * (time.monotonic() - began))
    free: SimpleQueue[Path] = SimpleQueue()
    for checkout in checkouts:
        free.put(checkout)
    counts: Counter[str] = Counter()

    def attempt(mutant: Mutant) -> tuple[Mutant, str]:
        checkout = free.get()
        file = checkout / f"exporter/{module}.py"
        original = file.read_bytes()
        try:
            file.write_text(mutant.source, encoding="utf-8")
            return mutant, run_tests(checkout, files, timeout=allowed)[0]
        finally:
            file.write_bytes(original)
            free.put(checkout)

    with mutants_of(module, seed) as (number, mutants), ThreadPoolExecutor(len(checkouts)) as threads:
        left_out: list[Mutant] = []
        chosen: list[Mutant] = []
        while len(chosen) < sample and (mutant := next(mutants, None)):
            (left_out if mutant.change in equivalents else chosen).append(mutant)
        print(
            f"exporter/{module}.py: {len(chosen)} of {number} changes against {' '.join(files)},"
            f" at most {allowed:.0f} s each",
            flush=True,
        )
        for mutant, outcome in threads.map(attempt, chosen):
            counts[outcome] += 1
            if outcome == "passed":
                print(f"  survived: {mutant}", flush=True)
    counts["equivalent"] = len(left_out)
    for mutant in left_out:
        print(f"  left out: {mutant}\n    equivalent: {equivalents[mutant.change]}")
    print(f"  {summary(counts)}", flush=True)
    return counts


def summary(counts: Counter[str]) -> str:
    """Return the number of killed mutants as text."""
    killed = counts["failed"] + counts["timeout"]
    tried = killed + counts["passed"]
    return (
        f"{killed} of {tried} killed ({100 * killed / max(1, tried):.0f} %), {counts['timeout']} of them by a timeout;"
        f" {counts['equivalent']} equivalent ones left out"
    )


def stale(equivalents: dict[Change, str], sources: dict[str, str]) -> list[Change]:
    """Return the entries of the list whose lines are no longer in their module."""
    lines = {
        module: "\n" + "\n".join(line.strip() for line in source.splitlines()) + "\n"
        for module, source in sources.items()
    }
    return [change for change in equivalents if f"\n{change.before}\n" not in lines.get(change.module, "")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Test mutants of the modules named, or of all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("modules", nargs="*", help="exporter/braze/client.py, or braze/client; all when none is named")
    parser.add_argument("--sample", type=int, default=5, help="how many mutants of each module (%(default)s)")
    parser.add_argument("--seed", default="1", help="which ones (%(default)s)")
    # Twice the number of cores, as many tests wait.
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="how many at once (%(default)s)")
    options = parser.parse_args(arguments)
    package = modules()
    chosen = [name.removeprefix("exporter/").removesuffix(".py") for name in options.modules] or package
    if unknown := set(chosen) - set(package):
        parser.error(f"expected modules of exporter, got {', '.join(sorted(unknown))}")
    equivalents = read_equivalents(EQUIVALENTS.read_text(encoding="utf-8"))
    began, total = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        checkouts = [copy_checkout(Path(folder) / str(job) / "checkout") for job in range(options.jobs)]
        for module in chosen:
            total += try_module(module, checkouts, equivalents, sample=options.sample, seed=options.seed)
    for change in stale(
        equivalents, {module: (ROOT / f"exporter/{module}.py").read_text("utf-8") for module in package}
    ):
        print(f"{EQUIVALENTS.relative_to(ROOT)} names lines that are gone: {change}")
    print(f"{len(chosen)} modules in {time.monotonic() - began:.0f} s: {summary(total)}")
    return 0


def _end_group(process: subprocess.Popen[str]) -> None:
    """Kill the tests and the processes that they have left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
