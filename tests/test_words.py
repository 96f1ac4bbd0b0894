"""Texts that users see use the words of Prometheus, HTTP and Braze, those of the glossary in CONTRIBUTING.md."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.found import some
from tests.support.servers import ROOT

WORDS = {
    r"ask(s|ed|ing)?": "poll, request",
    r"answer(s|ed|ing)?": "response, respond",
    r"what came": "what was received, the response",
    r"tries|(last|each|every|one|first|next|another) try": "attempt, retry",
    r"(its|whose|their) turn": "slot, due",
    r"hurry|hurries": "expedite, at once",
    r"(waits?|stands?) in line": "wait, queue",
    r"leave to \w+": "permit",
    r"make way|makes way|full house": "evict",
    r"room|crowded|(no|found|free) places?": "over the limit",
    r"so (many|much|often)": "at most N, at this interval",
    r"stands?(?! for)": "is, is in",
    r"holds?": "contains, applies",
    r"(that|it) is none": "is not set, there is none",
    r"the (old|former) (one )?(stays|goes)": "keeping the previous one",
}
"""Regular expressions of everyday words, and the terms to use instead."""

ALLOWED = {
    ("deploy/prometheus/rules/braze-failures.yml", "answered"): "as in docs/runbooks.md",
    ("docs/metrics.md", "asked"): "recipients ask for help by SMS, as the statistic says",
    ("docs/runbooks.md", "ask"): "recipients ask for messages",
    ("docs/runbooks.md", "answered"): "recipients answer a text message",
    ("exporter/catalogue.py", "asked"): "as in docs/metrics.md",
    ("exporter/commands/check.py", "asked"): "a key of the JSON that scripts read",
}
"""Files in which a word is right, with the reason."""

DOCUMENTS = ("*.md", "docs/*.md", "deploy/**/README.md", "grafana/**/README.md")
FILES = some(
    sorted(
        path.relative_to(ROOT).as_posix()
        for pattern in (
            *DOCUMENTS,
            "config.example.yaml",
            "exporter/**/*.py",
            "exporter/**/*.html",
            "exporter/**/*.js",
            "deploy/prometheus/rules/*.yml",
            "grafana/dashboards/*.json",
        )
        for path in ROOT.glob(pattern)
        if path.name != "CHANGELOG.md" and "node_modules" not in path.parts
    ),
    "files with texts for users",
)


@pytest.mark.parametrize("name", FILES)
def test_texts_use_the_words_of_the_field(name: str) -> None:
    """No text that users see has an everyday word in place of a term, but where it is allowed."""
    assert list(riddles(name)) == []


@pytest.mark.parametrize(("name", "word"), ALLOWED)
def test_exceptions_are_needed(name: str, word: str) -> None:
    """Each word that is allowed in a file is there."""
    assert re.search(rf"\b{word}\b", "\n".join(texts(name)))


def test_texts_are_found(tmp_path: Path) -> None:
    """The strings of a module without its docstrings, titles of dashboards, annotations of rules and lines are read."""
    module = tmp_path / "module.py"
    module.write_text('"""One."""\nlog("two %s", f"three {4} five")\n"""Six."""\n', encoding="utf-8")

    assert {"two %s", "three … five"} == set(strings(module))
    assert "--config.file" in texts("exporter/flags.py")
    assert any("Deliverability" in text for text in texts("grafana/dashboards/braze-deliverability.json"))
    assert any("{{ $labels.workspace }}" in text for text in texts("deploy/prometheus/rules/braze-failures.yml"))
    assert any("Two commands in" in text for text in texts("README.md"))


def riddles(name: str) -> Iterator[str]:
    """Yield each text of a file that has a wrong word, after that word and the right ones.

    What a table repeats from the code is found in the code.
    """
    code = "" if name.startswith("exporter/") else CODE
    for text in texts(name):
        for pattern, right in WORDS.items():
            for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE):
                cells = [part for part in re.split(r"[|#]", text.replace("`", "")) if match[0] in part]
                if (name, match[0]) not in ALLOWED and not (code and any(cell.strip() in code for cell in cells)):
                    yield f"{match[0]!r}, better {right}: {text}"


def texts(name: str) -> list[str]:
    """Return what users see of a file: strings of code, titles and descriptions, annotations, or else its lines."""
    path = ROOT / name
    if path.suffix == ".py":
        return list(strings(path))
    if path.suffix == ".json":
        return list(under(json.loads(path.read_text(encoding="utf-8")), {"title", "description", "label", "content"}))
    if path.suffix == ".yml":
        return list(under(yaml.safe_load(path.read_text(encoding="utf-8")), {"summary", "description"}))
    return path.read_text(encoding="utf-8").splitlines()


def strings(module: Path) -> Iterator[str]:
    """Yield the strings of a module, those with values inside as one; docstrings are for those who read the code."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    joined = [node.values for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    for parts in joined:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
    others = docstrings.union(*joined)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in others:
            yield node.value


def under(value: object, keys: set[str]) -> Iterator[str]:
    """Yield the texts below these keys, however deep."""
    if isinstance(value, list):
        for item in value:
            yield from under(item, keys)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in keys and isinstance(item, str):
                yield item
            yield from under(item, keys)


CODE = "\n".join(text for name in FILES if name.endswith(".py") for text in texts(name))
