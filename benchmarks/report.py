"""Report of the measurements: tables for people, and everything with the machine's description as JSON."""

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from exporter import __version__


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio or a number beside its target."""

    name: str
    value: float
    wanted: str


@dataclass(frozen=True, slots=True)
class Part:
    """Measurements of one kind: as a table, compared with their targets, and one by one."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    targets: Sequence[Target]
    measurements: Sequence[Mapping[str, object]]


def machine() -> dict[str, object]:
    """Return the machine's description, on which the numbers depend."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    models = re.findall(r"^model name\s*: (.+)$", information, re.MULTILINE)
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "braze_exporter": __version__,
        "load_average": os.getloadavg(),
    }


def written(part: Part) -> str:
    """Return a part's table as text."""
    rows = [part.columns, *part.lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return f"\n{part.title}\n" + "".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        + "\n"
        for row in rows
    )


def targets(parts: Iterable[Part]) -> Part:
    """Return the table of targets."""
    found = [target for part in parts for target in part.targets]
    lines = [(target.name, number(target.value), target.wanted) for target in found]
    return Part("What should hold", ("", "measured", "wanted"), lines, found, ())


def save(file: Path, parts: Mapping[str, Part], about: Mapping[str, object]) -> None:
    """Write everything as JSON."""
    content = {
        "machine": about,
        "targets": [asdict(target) for part in parts.values() for target in part.targets],
        **{name: part.measurements for name, part in parts.items()},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def number(value: float) -> str:
    """Return a number with three significant digits, or without decimals."""
    digits = next((digits for digits, limit in ((3, 1), (2, 10), (1, 100)) if abs(value) < limit), 0)
    return f"{value:,.{digits}f}"


def times(value: float) -> str:
    """Return a ratio."""
    return f"{number(value)} ×"  # noqa: RUF001 - that sign
