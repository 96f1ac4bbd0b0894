"""The documents for people against the code: tables, commands, names, links and examples."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import config
from exporter.advice import ADVICE
from exporter.braze.errors import Reason
from exporter.metrics import LATEST, PREVIOUS, Family
from exporter.polled import FAMILIES
from tests.support.servers import ROOT

DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
}
README = DOCUMENTS["README.md"]
ARCHITECTURE, METRICS, CONFIGURATION, TROUBLESHOOTING = (
    DOCUMENTS[f"docs/{name}.md"] for name in ("architecture", "metrics", "configuration", "troubleshooting")
)


def test_readme_is_short() -> None:
    """README has what a newcomer needs, in at most 200 lines."""
    assert len(README.splitlines()) <= 200


def test_the_index_has_every_document() -> None:
    """The index of docs/ links to each document there."""
    documents = {Path(name).name for name in DOCUMENTS if name.startswith("docs/")} - {"README.md"}

    assert documents
    assert documents - set(re.findall(r"\]\(([^)#]+)", DOCUMENTS["docs/README.md"])) == set()


def test_metrics() -> None:
    """Every family stands in a table with its type, its labels and what its HELP says, and no other metric does."""
    of_a_day = [*documented(METRICS, "Of each variation"), *documented(METRICS, "Of each campaign")]
    of_the_previous_day = [(row[0].replace(LATEST, PREVIOUS, 1), *row[1:]) for row in of_a_day]
    others = [*documented(METRICS, "Of polling a campaign"), *documented(METRICS, "Of the exporter and its workspaces")]

    assert f"with the same labels and `{PREVIOUS}` in place of `{LATEST}`" in section(METRICS, "Of the previous day")
    assert sorted(map(described, FAMILIES)) == sorted([*of_a_day, *of_the_previous_day, *others])


def test_settings() -> None:
    """The table of settings has every key of the configuration file with its default and meaning, in their order."""
    settings = [[setting.path, setting.default, setting.description] for setting in config.settings()]

    assert settings == [
        [path.strip("`"), default.strip("`"), text] for path, default, text in rows(CONFIGURATION, "Settings")
    ]


@pytest.mark.server
def test_flags() -> None:
    """The table of the exporter's flags has those of its help, with the same words and defaults."""
    table = [row for row in rows(CONFIGURATION, "Command line") if row[0].startswith("`--")]

    assert flags_by_help("") == {flag.strip("`"): (default.replace("`", ""), text) for flag, default, text in table}


@pytest.mark.server
@pytest.mark.parametrize("command", ["demo", "simulate", "check", "print", "health"])
def test_flags_of_commands(command: str) -> None:
    """The table of commands has exactly the flags that their help has."""
    (flags,) = (row[2] for row in rows(CONFIGURATION, "Command line") if row[0] == f"`braze-exporter {command}`")

    assert set(flags_by_help(command)) == set(re.findall(r"`(\S+)`", flags))


def test_reasons() -> None:
    """Every reason for which a poll can fail is explained under Troubleshooting, in the words of the pages."""
    table = {
        match[1]: row for row in rows(TROUBLESHOOTING, "Troubleshooting") if (match := re.match(r"`(\w+)`", row[0]))
    }

    assert table.keys() >= set(Reason)
    for reason, advice in ADVICE.items():
        assert [text.replace("`", "") for text in table[reason][1:]] == [*advice]


def test_the_architecture_names_every_module() -> None:
    """Each module of the package is in the table of its folder."""
    modules = {path.relative_to(ROOT) for path in ROOT.glob("exporter/**/*.py") if path.name != "__init__.py"}
    named: dict[str, set[str]] = {}
    folder = ""
    for package, _, names in rows(ARCHITECTURE, "Modules"):
        folder = package.strip("`/") or folder
        named.setdefault(folder, set()).update(re.findall(r"`(\w+)`", names))

    assert modules
    assert [module for module in modules if module.stem not in named[module.parent.as_posix()]] == []


def test_recipes_touch_few_files_that_are_there() -> None:
    """A statistic and an HTTP path touch four files, an API five, of which two are new; each file named exists."""
    recipes = {row[0]: re.findall(r"`([\w/<>]+(?:/|\.\w+))`", row[1]) for row in rows(ARCHITECTURE, "Recipes")}
    new = {recipe: [file for file in files if "<" in file] for recipe, files in recipes.items()}

    assert {recipe: len(recipes[recipe]) for recipe in ("a statistic", "an HTTP path", "an API")} == {
        "a statistic": 4,
        "an HTTP path": 4,
        "an API": 5,
    }
    assert len(new["an API"]) == 2
    named = {file for name, files in recipes.items() for file in files if file not in new[name]}
    assert {file for file in named if not (ROOT / file).exists()} == set()


@pytest.mark.parametrize("name", sorted(DOCUMENTS.keys() - {"docs/runbooks.md"}))  # which names recorded series, too
def test_names(name: str) -> None:
    """Every metric, setting and make target that a document names exists."""
    text = DOCUMENTS[name]
    metrics = {metric for metric in re.findall(r"\bbraze_[a-z_]++(?![*-])", text) if not metric.endswith("_")}
    settings = set(re.findall(r"\b(?:poll|limits)\.[a-z_]+\b", text))
    targets = set(re.findall(r"(?:`|^    )make ([a-z]+)", text, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert metrics - {family.name for family in FAMILIES} == set()
    assert settings - {setting.path for setting in config.settings()} == set()
    assert targets - set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) == set()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name: str) -> None:
    """Every link within the repository leads to a file that is there, and to a heading that this file has."""
    links = {link for link in re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name]) if "://" not in link}

    assert {link for link in links if not leads_somewhere(ROOT / name, link)} == set()


def test_configuration_example(tmp_path: Path) -> None:
    """The configuration of the README is valid beside a file with a key, and leads to no warning."""
    (example,) = (block for block in blocks(README, "yaml") if "workspaces:" in block)
    (tmp_path / "api-key").write_text("0123-4567\n", encoding="utf-8")
    file = tmp_path / "config.yaml"
    file.write_text(example, encoding="utf-8")

    assert config.warnings(config.load(file, {})) == ()


def test_scrape_example(promtool: Path, tmp_path: Path) -> None:
    """Prometheus takes the scrape configuration of the README."""
    (example,) = (block for block in blocks(README, "yaml") if "scrape_configs:" in block)
    file = tmp_path / "prometheus.yml"
    file.write_text(example, encoding="utf-8")

    check(promtool, "config", file)


def test_query_examples(promtool: Path, tmp_path: Path) -> None:
    """Prometheus takes the queries of the documents."""
    rules = [{"alert": f"Query{number}", "expr": query} for number, query in enumerate(blocks(METRICS, "promql"))]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}), encoding="utf-8")

    assert rules
    check(promtool, "rules", file)


def section(document: str, heading: str) -> str:
    """Return the text under a heading, up to the next heading, as one line for each paragraph."""
    (text,) = re.findall(rf"^#+ {re.escape(heading)}\n(.+?)(?=^#|\Z)", document, re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<=[^|\n])\n(?=[^|\n])", " ", text)


def rows(document: str, heading: str) -> list[list[str]]:
    """Return the cells of the tables under a heading, without their heads."""
    lines = re.findall(r"^\|(.+)\|$", section(document, heading), re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row, below in zip(cells, [*cells[1:], [""]], strict=True) if not {*row, *below} & {"---"}]


def documented(document: str, heading: str) -> list[tuple[str, str, tuple[str, ...], str]]:
    """Return name, type, labels and meaning of the metrics under a heading: gauges where the table has no types."""
    shared = re.findall(r"`(\w+)`", section(document, heading).partition("|")[0])
    found = []
    for metric, *types, meaning in rows(document, heading):
        name, _, own = metric.strip("`}").partition("{")
        labels = (*shared, *filter(None, own.split(",")))
        found.append((name, "".join(types) or "gauge", tuple(sorted(labels)), meaning))
    return found


def described(family: Family) -> tuple[str, str, tuple[str, ...], str]:
    """Return name, type, labels and the part of HELP that says what is counted."""
    meaning = re.split(r"; (?:latest|previous) day|\. Counted by the exporter\.", family.help)[0]
    return family.name, family.type, tuple(sorted(family.labels)), meaning


def leads_somewhere(document: Path, link: str) -> bool:
    """Tell whether a relative link of a document leads to a file or folder, and its anchor to a heading."""
    path, _, anchor = link.partition("#")
    target = document.parent / path if path else document
    return target.exists() and (not anchor or anchor in anchors(target.read_text(encoding="utf-8")))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub("[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def flags_by_help(command: str) -> dict[str, tuple[str, str]]:
    """Return default and explanation of each flag that the help of a command shows."""
    shown = subprocess.run(
        [sys.executable, "-m", "exporter", *command.split(), "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "500"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    flags = re.findall(r"^  (?:-h, )?(--\S+)(?: \S+)?\s{2,}(\S.+)$", shown, re.MULTILINE)
    pairs = {flag: re.fullmatch(r"(.+?)(?: \(default: (.+)\))?", text) for flag, text in flags}
    return {flag: (match[2] or "", match[1]) for flag, match in pairs.items() if match}


def blocks(document: str, language: str) -> list[str]:
    """Return the code blocks in a language."""
    return re.findall(rf"^```{language}\n(.+?)^```$", document, re.MULTILINE | re.DOTALL)


def check(promtool: Path, what: str, file: Path) -> None:
    """Let promtool check a file; raise AssertionError with what it says where it is wrong."""
    result = subprocess.run([promtool, "check", what, file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
