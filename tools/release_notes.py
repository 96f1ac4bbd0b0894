"""Print the notes of a release: what CHANGELOG.md says of the version that a tag names.

python3 -m tools.release_notes v1.2.3
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from exporter import __version__

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"

_SECTION = re.compile(r"## \[(?P<version>[^\]]+)\](?: - (?P<date>\d{4}-\d{2}-\d{2})$)?")
# Where a line of Markdown begins something; any other line goes on with what is above it.
_BEGINS = re.compile(r"\s*([-*+] |#)")


class ReleaseError(Exception):
    """Error: tag, version and changelog do not match."""


def main(arguments: Sequence[str]) -> None:
    """Print the notes of the tag in the arguments, or end with what is wrong."""
    if len(arguments) != 1:
        sys.exit("tools/release_notes.py: expected one argument, a tag such as v1.2.3")
    try:
        print(release_notes(CHANGELOG.read_text(encoding="utf-8"), tag=arguments[0], version=__version__))
    except ReleaseError as error:
        sys.exit(f"tools/release_notes.py: {error}")


def release_notes(changelog: str, *, tag: str, version: str) -> str:
    """Return the section (Markdown) of a version in a changelog, each of its items on one line.

    `changelog` has the form of Keep a Changelog. Raises ReleaseError when `tag` is not that of `version`, or the
    section is missing, undated or empty. Pure.
    """
    if tag != f"v{version}":
        raise ReleaseError(f"expected the tag v{version}, as exporter.__version__ is {version}, got {tag}")
    sections = _sections(changelog)
    if version not in sections:
        there = ", ".join(sections) or "none"
        raise ReleaseError(f"expected a section of {version} in CHANGELOG.md, which has {there}")
    date, lines = sections[version]
    if date is None:
        raise ReleaseError(f"expected a date in CHANGELOG.md: ## [{version}] - YYYY-MM-DD")
    if all(not line.strip() or line.startswith("#") for line in lines):
        raise ReleaseError(f"expected something about {version} in CHANGELOG.md, its section is empty")
    return _unwrapped(lines)


def _sections(changelog: str) -> dict[str, tuple[str | None, list[str]]]:
    """Return the date and the lines of each version, in the order of the changelog."""
    sections: dict[str, tuple[str | None, list[str]]] = {}
    lines: list[str] = []
    for line in changelog.splitlines():
        if line.startswith("## "):
            lines = []
            if found := _SECTION.match(line):
                sections[found["version"]] = found["date"], lines
        elif not re.match(r"\[[^\]]+\]: ", line):  # where the links of headings lead
            lines.append(line)
    return sections


def _unwrapped(lines: Sequence[str]) -> str:
    """Join what is wrapped: on the page of a release each end of a line is shown as one."""
    joined: list[str] = []
    for line in lines:
        if joined and joined[-1] and not joined[-1].startswith("#") and line.strip() and not _BEGINS.match(line):
            joined[-1] += f" {line.strip()}"
        else:
            joined.append(line.rstrip())
    return "\n".join(joined).strip()


if __name__ == "__main__":
    main(sys.argv[1:])
