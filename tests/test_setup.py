"""The set-up: make and its scripts, the lock files, the wheel; in folders of their own and without the network."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.found import some
from tests.support.servers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = {path.name: path.read_text(encoding="utf-8") for path in some(sorted(ROOT.glob("requirements*.lock")), "locks")}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile, its scripts and lock files that pin nothing, so that installing needs no network."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / "tools", folder / "tools")
    for lock in LOCKS:
        (folder / lock).write_text("# nothing\n", encoding="utf-8")
    return folder


@pytest.mark.server
def test_make_names_the_package_that_brings_ensurepip(checkout: Path) -> None:
    """Where python3 has no ensurepip, as on a fresh Debian, make stops and says what to install."""
    write_python(checkout / "bin/python3", module="ensurepip", text="raise ModuleNotFoundError")

    result = run("make", "demo", folder=checkout)

    assert result.returncode != 0
    version = "{}.{}".format(*sys.version_info[:2])
    assert f"apt-get install python3-venv (or python{version}-venv" in result.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.server
def test_make_refuses_an_old_python(checkout: Path) -> None:
    """Where python3 is older than 3.11, make stops and says so, and how to name another."""
    write_python(checkout / "bin/python3", module="sitecustomize", text="import sys; sys.version_info = (3, 10, 13)")

    result = run("make", "test", folder=checkout)

    assert result.returncode != 0
    assert (
        "Expected Python 3.11 or newer, but 'python3' is Python 3.10.\nName a newer one: make PYTHON=" in result.stderr
    )


@pytest.mark.server
def test_make_says_that_there_is_no_python(checkout: Path) -> None:
    """Where PYTHON names no program, make stops and says how to name one."""
    result = run("make", "PYTHON=python-of-nowhere", "demo", folder=checkout)

    assert result.returncode != 0
    assert "but 'python-of-nowhere' does not run.\n" in result.stderr
    assert "make PYTHON=/path/to/python3" in result.stderr


@pytest.mark.server
def test_make_installs_with_the_python_named_and_only_once(checkout: Path) -> None:
    """PYTHON= chooses the Python; make installs again only when a lock file changed, and what demo needs only once."""
    write_python(checkout / "bin/python3", module="ensurepip", text="raise ModuleNotFoundError")
    install = ("make", f"PYTHON={sys.executable}", ".venv/.dev", ".venv/.run")

    first, second = run(*install, folder=checkout), run(*install, folder=checkout)
    lock, stamp = checkout / "requirements-dev.lock", checkout / ".venv/.dev"
    os.utime(lock, (stamp.stat().st_mtime + 1,) * 2)
    third = run(*install, folder=checkout)

    installing = [result.stdout.count("Installing 0 packages into .venv") for result in (first, second, third)]
    assert installing == [1, 0, 1], (first, second, third)
    python = run(str(checkout / ".venv/bin/python"), "-c", "import sys; print(sys.version)", folder=checkout)
    assert sys.version == python.stdout.strip()


def test_scripts_are_clean(checker: Callable[[str], Path]) -> None:
    """Shellcheck finds nothing in any script of the repository."""
    scripts = [*some(sorted((ROOT / "tools").glob("*.sh")), "scripts"), ROOT / ".ci/run"]

    result = subprocess.run([checker("shellcheck"), "--norc", *scripts], capture_output=True, text=True, check=False)

    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.server
def test_stages_say_which_of_how_many_they_are(checkout: Path) -> None:
    """Each stage begins with a line that says which it is, of how many, and what it does; the first that fails ends."""
    write_program(checkout / "bin/make", '[ "$3" != types ] || exit 3; echo "made: $*"')

    result = run("sh", "tools/stages.sh", "lint", "types", "unit", folder=checkout)

    assert result.returncode == 3, result
    assert result.stdout.splitlines() == [
        "[1/3] lint: run the linters of code and imports",
        "made: --no-print-directory --silent lint",
        "[2/3] types: check the types",
    ]


def test_every_stage_is_a_target_that_says_what_it_does() -> None:
    """What `make test` and `make check` are made of are targets with a text; a test is in both."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    stages = {name: re.findall(rf"^{name} := (.+)$", makefile, re.MULTILINE)[0].split() for name in ("TEST", "CHECK")}

    assert stages["TEST"]
    assert "$(TEST)" in stages["CHECK"]
    targets = {*stages["TEST"], *stages["CHECK"]} - {"$(TEST)"}
    assert [target for target in targets if not re.search(rf"^{target}:.*## \w", makefile, re.MULTILINE)] == []


@pytest.mark.server
def test_other_pythons_are_found_behind_stand_ins_that_fail(checkout: Path) -> None:
    """A python3.12 on PATH that does not run is passed over for one that a version manager keeps."""
    write_program(checkout / "bin/python3.12", "exit 127")
    write_program(checkout / "manager/versions/3.12.4/bin/python", f'exec "{sys.executable}" "$@"')

    result = run(
        "sh", "tools/python.sh", "3.12", folder=checkout, environment={"PYENV_ROOT": str(checkout / "manager")}
    )

    assert (0, sys.executable) == (result.returncode, result.stdout.strip())


@pytest.mark.server
def test_programs_that_cannot_be_had_stop_nothing(checkout: Path) -> None:
    """Where apt-get fails, the script that fetches programs names the package, succeeds and leaves no rest."""
    write_program(checkout / "bin/apt-get", "exit 100")

    result = run("make", "programs", folder=checkout)

    assert result.returncode == 0, result
    assert "Fetching Debian's package prometheus into .cache/debian" in result.stdout
    assert "Debian's package prometheus cannot be had here" in result.stderr
    assert list((checkout / ".cache/debian").iterdir()) == []


@pytest.mark.server
def test_programs_that_are_there_are_not_fetched_again(checkout: Path) -> None:
    """What has been unpacked once is left alone: apt-get is not even asked."""
    write_program(checkout / "bin/apt-get", "exit 100")
    unpacked = checkout / ".cache/debian"
    unpacked.mkdir(parents=True)
    for package in ("prometheus", "prometheus-alertmanager", "nginx", "chromium-headless-shell"):
        (unpacked / f"{package}.unpacked").touch()

    result = run("make", "programs", folder=checkout)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.server
@pytest.mark.parametrize(
    ("ci", "status", "said"),
    [
        (
            "",
            0,
            "Tests left out because a program is not installed: 2 (prometheus, promtool); `make servers checkers` ",
        ),
        ("true", 1, "Failed: program not installed: promtool"),
    ],
)
def test_missing_programs_are_told_and_fatal_on_ci(checkout: Path, ci: str, status: int, said: str) -> None:
    """Without the programs from outside their tests are skipped and the run ends by saying so; on CI they fail."""
    tests = checkout / "tests"
    (tests / "support").mkdir(parents=True)
    for module in ("conftest.py", "support/servers.py", "support/system.py"):
        shutil.copy(ROOT / "tests" / module, tests / module)
    (tests / "test_programs.py").write_text(
        "def test_rules(promtool): pass\ndef test_scrape(prometheus): pass\n", encoding="utf-8"
    )

    result = run(sys.executable, "-m", "pytest", folder=checkout, environment={"CI": ci, "PATH": str(checkout / "bin")})

    assert (status, True) == (result.returncode, said in result.stdout), result.stdout


@pytest.mark.server
def test_ci_runs_make_check_in_the_repository(checkout: Path) -> None:
    """The CI script runs what developers run, wherever it is started, and passes the outcome on."""
    shutil.copytree(ROOT / ".ci", checkout / ".ci")
    write_program(checkout / "bin/make", 'echo "$PWD: make $*"; exit 2')

    result = run("sh", "-c", "cd .. && bash checkout/.ci/run", folder=checkout)

    assert (2, f"{checkout}: make check\n") == (result.returncode, result.stdout)


@pytest.mark.server
def test_the_wheel_holds_the_package_and_its_command(tmp_path: Path) -> None:
    """A wheel is built without the network from the pinned hatchling; it has modules, pages, types and the command."""
    result = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), folder=ROOT)

    assert result.returncode == 0, result
    (wheel,) = tmp_path.glob("braze_exporter-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (commands,) = (archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    package = {
        path.relative_to(ROOT).as_posix()
        for kind in ("*.py", "*.html", "*.css", "*.js")
        for path in some((ROOT / "exporter").rglob(kind), kind)
    }
    assert package | {"exporter/py.typed"} == {name for name in names if name.startswith("exporter/")}
    assert commands == "[console_scripts]\nbraze-exporter = exporter.__main__:main\n"
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@pytest.mark.parametrize("name", LOCKS)
def test_locks_pin_each_package_with_hashes_and_name_no_index(name: str) -> None:
    """Every line of a lock is a comment or a pin with its hashes; no address, no option that names an index."""
    entries = LOCKS[name].replace("\\\n", "").splitlines()
    pinned = [entry for entry in entries if not entry.lstrip().startswith("#")]

    pin = re.compile(r"[\w.-]+==[\w.]+( ; [^-]+)?(\s+--hash=sha256:[0-9a-f]{64})+")
    assert pinned
    assert [entry for entry in pinned if not pin.fullmatch(entry)] == []
    assert "://" not in LOCKS[name]


def test_locks_satisfy_the_project() -> None:
    """Each dependency that pyproject.toml names is pinned in a version that it allows."""
    wanted = {
        "requirements.lock": PROJECT["project"]["dependencies"],
        "requirements-dev.lock": PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"],
        "requirements-build.lock": PROJECT["dependency-groups"]["build"],
        "requirements-deploy.lock": PROJECT["dependency-groups"]["deploy"],
        "requirements-mutants.lock": PROJECT["dependency-groups"]["mutants"],
    }
    assert wanted.keys() == LOCKS.keys()
    assert all(wanted.values())

    unmet = [
        (name, requirement)
        for name, requirements in wanted.items()
        for requirement in map(Requirement, requirements)
        if not any(requirement.specifier.contains(version) for version in pins(name, requirement.name))
    ]
    assert unmet == []


def test_tests_run_with_the_versions_that_users_get() -> None:
    """The development lock pins everything that the run-time lock pins, in the same version."""
    run_time, development = (
        set(re.findall(r"^\S+==\S+", LOCKS[name], re.MULTILINE))
        for name in ("requirements.lock", "requirements-dev.lock")
    )

    assert run_time - development == set()


def test_unit_tests_run_on_each_python_that_is_promised() -> None:
    """The Pythons that make tests with are those that the project's classifiers name."""
    (versions,) = re.findall(r"^VERSIONS := (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    assert named == versions.split()


def pins(lock: str, package: str) -> list[str]:
    """Read in which versions a lock file pins a package: one, several with markers, or none."""
    return re.findall(rf"^{re.escape(canonicalize_name(package))}==(\S+)", LOCKS[lock], re.MULTILINE)


def write_program(file: Path, script: str) -> None:
    """Make a program of lines of sh."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)


def write_python(file: Path, *, module: str, text: str) -> None:
    """Make a program that is this Python, except that one module of its standard library reads differently."""
    shadow = file.parent / "shadow"
    shadow.mkdir(parents=True)
    (shadow / f"{module}.py").write_text(text, encoding="utf-8")
    write_program(file, f'PYTHONPATH="{shadow}" exec "{sys.executable}" "$@"')


def run(*command: str, folder: Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder to its end, with its bin first on PATH and without the variables of this run."""
    own = {name: value for name, value in os.environ.items() if not re.match("MAKE|MFLAGS|PYTEST|PYTHON|CI$", name)}
    own["PATH"] = f"{folder / 'bin'}{os.pathsep}{own['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        env={**own, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
