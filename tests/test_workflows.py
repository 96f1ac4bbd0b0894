"""GitHub's workflows: nothing in them is loose, and what they run is what developers run."""

import re
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from exporter import __version__
from tests.support.found import some
from tests.support.objects import Object, each, mapping, text, texts
from tests.support.servers import ROOT

FILES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
WORKFLOWS: Mapping[str, Object] = {
    name: yaml.load(source, Loader=yaml.BaseLoader)  # noqa: S506 - texts alone: `on` is a key here
    for name, source in FILES.items()
}
JOBS: Mapping[str, Mapping[str, Object]] = {
    name: yaml.load(source, Loader=yaml.BaseLoader)["jobs"]  # noqa: S506
    for name, source in FILES.items()
}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_zizmor_finds_nothing(checker: Callable[[str], Path]) -> None:
    """No loose pin, permission, credential or script that takes in foreign text, to the strictest of zizmor's eyes."""
    result = subprocess.run(
        [
            *(checker("zizmor"), "--offline", "--no-config", "--persona=auditor", "--strict-collection"),
            *("--no-progress", "--quiet", ROOT / ".github"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", FILES)
def test_shellcheck_finds_nothing(checker: Callable[[str], Path], name: str) -> None:
    """Each script is clean to shellcheck, and takes values from its environment alone."""
    for script in scripts(name):
        result = subprocess.run(
            [checker("shellcheck"), "--shell=bash", "--norc", "-"],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )

        assert (result.stdout, result.stderr) == ("", "")
        assert "${{" not in script


def test_what_comes_from_elsewhere_is_pinned() -> None:
    """An action is named by a commit, with its version beside it, and an image by version and digest."""
    source = "\n".join(FILES.values())
    actions = re.findall(r"\buses: (?!\./)(.+)$", source, re.MULTILINE)
    images = re.findall(r"(?:^\s+image: |\bimage=|\bgenerator=)(\S+)", source, re.MULTILINE)

    assert actions
    assert images
    assert [use for use in actions if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", use)] == []
    assert [image for image in images if not re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)] == []


def test_an_action_has_one_version() -> None:
    """All workflows use an action in the same version."""
    used = {tuple(use.split("@")) for source in FILES.values() for use in re.findall(r"uses: (\S+@\S+)", source)}

    assert used
    assert len(used) == len({action for action, _ in used})


@pytest.mark.parametrize("name", FILES)
def test_no_job_has_more_than_it_needs(name: str) -> None:
    """A workflow gives no permission, its jobs those they name, and each job ends after its minutes."""
    assert WORKFLOWS[name]["permissions"] == {}
    for job in some(JOBS[name].values(), "jobs"):
        assert "permissions" in job
        assert ("timeout-minutes" in job) != ("uses" in job)


def test_who_may_write_what() -> None:
    """What can change something outside a run is in the hands of few jobs; only those that build check out the code."""
    granted = {
        (name, key, permission)
        for name, jobs in JOBS.items()
        for key, job in jobs.items()
        for permission, level in mapping(job, "permissions").items()
        if level != "read"
    }
    image = {"packages", "id-token", "attestations"}

    assert granted == {
        *(("image", "publish", permission) for permission in image),
        *(("release", "image", permission) for permission in image),
        ("release", "attest", "id-token"),
        ("release", "attest", "attestations"),
        ("release", "pypi", "id-token"),
        ("release", "release", "contents"),
    }
    for job in ("attest", "pypi", "release"):
        assert "checkout" not in str(JOBS["release"][job])


def test_the_checks_are_those_of_make_check() -> None:
    """The jobs together make what `make check` makes, target by target; other Pythons have a job each."""
    made = {target for script in scripts("checks") for target in re.findall(r"(?<= )[a-z-]+(?!\S)", script)}

    assert made == {*stages("CHECK"), *stages("TEST")} - {"others"}


def test_every_supported_python_is_checked() -> None:
    """The unit tests run from the oldest Python that is supported on, without a gap, on all that the project names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"])))
    versions = texts(WORKFLOWS["checks"], "jobs", "unit", "strategy", "matrix", "python")

    first = int(project["requires-python"].removeprefix(">=3."))
    assert versions == [f"3.{minor}" for minor in range(first, first + len(versions))]
    assert named <= set(versions)


def test_files_and_targets_exist() -> None:
    """Each file and each target of make that a workflow or the checklist of a release names is there."""
    checklist = (ROOT / "docs/releasing.md").read_text(encoding="utf-8")
    source = "\n".join([*FILES.values(), checklist.replace("](../", "](")])
    files = set(re.findall(r"(?<![\w/-])(?:deploy|docs|exporter|\.github)/[\w./-]+\w", source))
    modules = set(re.findall(r"python3? -m (tools\.\w+)", source))
    makes = re.findall(r"(?:run: |`|^ +)make ([\w= -]+)", source, re.MULTILINE)
    targets = {word for words in makes for word in words.split() if "=" not in word}

    assert {"deploy/docker/Dockerfile", "docs/releasing.md"} <= files
    assert "tools.release_notes" in modules
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").is_file()] == []
    assert {"dist", "upgrade"} <= targets
    assert [target for target in targets if not re.search(f"^{target}:", MAKEFILE, re.MULTILINE)] == []


def test_the_checklist_names_every_file_with_the_version() -> None:
    """Where this version stands in the package and in deploy, the checklist of a release says so."""
    checklist = (ROOT / "docs/releasing.md").read_text(encoding="utf-8")
    (step,) = re.findall(r"Write the version into (.+?)\. `make test`", checklist, re.DOTALL)
    word = re.compile(rf"(?<![\d.]){re.escape(__version__)}(?![\d.])")
    files = [path for folder in ("deploy", "exporter") for path in (ROOT / folder).rglob("*") if path.is_file()]

    having = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if "__pycache__" not in path.parts and word.search(path.read_text(encoding="utf-8"))
    }
    assert having
    assert set(re.findall(r"`(\w\S+/\S+)`", step)) == having


def test_a_release_publishes_what_is_checked_last() -> None:
    """Nothing is published before all checks, and what cannot be taken back comes after what can fail."""
    jobs = JOBS["release"]
    before: dict[str, set[str]] = {}
    for name, job in jobs.items():  # in the order of the file, which is that of the needs
        direct = set(texts(job, "needs")) if "needs" in job else set()
        before[name] = direct.union(*(before[need] for need in direct))

    assert before["image"] >= {"checks", "build"}
    assert before["pypi"] == {"checks", "build", "attest", "image"}
    assert before["release"] == jobs.keys() - {"release"}


def test_the_tag_of_this_version_is_a_release() -> None:
    """The pattern of the release takes the tag of this version, and no other form of it."""
    (pattern,) = texts(WORKFLOWS["release"], "on", "push", "tags")
    expression = pattern.replace(".", r"\.")

    assert re.fullmatch(expression, f"v{__version__}")
    assert not re.fullmatch(expression, __version__)
    assert not re.fullmatch(expression, f"v{__version__}rc1")


def test_dependabot_looks_where_something_is() -> None:
    """Actions, packages and every file that names images are looked after, in folders that have them."""
    configuration = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text(encoding="utf-8"))
    watched = {(text(entry, "package-ecosystem"), text(entry, "directory")) for entry in each(configuration, "updates")}
    images = {
        *(("docker", path) for path in (ROOT / "deploy").rglob("Dockerfile")),
        *(("docker-compose", path) for path in (ROOT / "deploy").rglob("compose.yaml")),
    }

    assert images
    assert watched == {
        ("github-actions", "/"),
        ("pip", "/"),
        *((ecosystem, f"/{path.parent.relative_to(ROOT).as_posix()}") for ecosystem, path in images),
    }


def scripts(name: str) -> list[str]:
    """Return what the steps of a workflow run, of which it has some."""
    steps = (step for job in JOBS[name].values() for step in each(job, "steps"))
    return some((text(step, "run") for step in steps if "run" in step), f"scripts in {name}")


def stages(variable: str) -> set[str]:
    """Return the targets that a variable of the Makefile lists."""
    (targets,) = re.findall(rf"^{variable} := (.+)$", MAKEFILE, re.MULTILINE)
    return set(re.findall(r"(?<!\S)[a-z-]+", targets))
