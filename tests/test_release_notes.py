"""The notes of a release: the section of its version in the changelog, or a clear error."""

import re

import pytest

from exporter import __version__
from tools.release_notes import CHANGELOG, ReleaseError, main, release_notes

TWO_RELEASES = """\
# Changelog

What users notice.

## [Unreleased]

### Added

- Not yet.

## [1.1.0] - 2026-02-03

A paragraph that goes on
in the next line.

### Added

- `--flag`, which goes on
  `in` the next line
  - with an item of its own
    in two lines
- It is shown by
  *Dashboard*.

### Fixed
- Nothing comes between.

## [1.0.0] - 2026-01-02

### Added

- Everything.

[1.1.0]: https://example.com/1.1.0
[1.0.0]: https://example.com/1.0.0
"""


def test_the_notes_are_the_section_of_the_version() -> None:
    """They begin below the heading of the version and end above the next, each item and paragraph on one line."""
    expected = """\
A paragraph that goes on in the next line.

### Added

- `--flag`, which goes on `in` the next line
  - with an item of its own in two lines
- It is shown by *Dashboard*.

### Fixed
- Nothing comes between."""

    assert expected == release_notes(TWO_RELEASES, tag="v1.1.0", version="1.1.0")


def test_the_last_section_ends_before_the_links() -> None:
    """Where the headings' links lead, at the end of the file, is no part of the oldest version."""
    assert release_notes(TWO_RELEASES, tag="v1.0.0", version="1.0.0") == "### Added\n\n- Everything."


@pytest.mark.parametrize(
    ("changelog", "tag", "said"),
    [
        (TWO_RELEASES, "v1.0.0", r"expected the tag v1\.1\.0, as exporter\.__version__ is 1\.1\.0, got v1\.0\.0"),
        (TWO_RELEASES, "1.1.0", r"expected the tag v1\.1\.0, .*, got 1\.1\.0"),
        (
            TWO_RELEASES.replace("[1.1.0] -", "[1.10] -"),
            "v1.1.0",
            r"expected a section of 1\.1\.0 in CHANGELOG\.md, which has Unreleased, 1\.10, 1\.0\.0",
        ),
        ("# Changelog\n", "v1.1.0", r"expected a section of 1\.1\.0 in CHANGELOG\.md, which has none"),
        ("## [1.1.0]\n\n- All.\n", "v1.1.0", r"expected a date in CHANGELOG\.md: ## \[1\.1\.0\] - YYYY-MM-DD"),
        ("## [1.1.0] - soon\n\n- All.\n", "v1.1.0", r"expected a date in CHANGELOG\.md"),
        (
            "## [1.1.0] - 2026-02-03\n\n### Added\n\n## 1.0.0\n\n- All.\n",
            "v1.1.0",
            r"expected something about 1\.1\.0 in CHANGELOG\.md, its section is empty",
        ),
    ],
)
def test_what_makes_no_release_is_an_error(changelog: str, tag: str, said: str) -> None:
    """A tag of another version, and a section that is missing, undated or empty, are told with what is right."""
    with pytest.raises(ReleaseError, match=said):
        release_notes(changelog, tag=tag, version="1.1.0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["v0.0.0"], "the tag v"), ([], "one argument"), ([f"v{__version__}", "more"], "one argument")],
)
def test_the_command_ends_with_the_error(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints no notes and exits with the message, so that a release stops."""
    with pytest.raises(SystemExit, match=rf"^tools/release_notes\.py: expected {said}"):
        main(arguments)

    assert capsys.readouterr().out == ""


def test_the_changelog_has_the_form_that_notes_are_made_of() -> None:
    """Its sections are the unreleased one, and below it dated versions that each make notes."""
    changelog = CHANGELOG.read_text(encoding="utf-8")
    first, *others = re.findall(r"^## (.*)$", changelog, re.MULTILINE)

    assert first == "[Unreleased]"
    for heading in others:
        version = heading.partition("]")[0].removeprefix("[")
        assert release_notes(changelog, tag=f"v{version}", version=version)
