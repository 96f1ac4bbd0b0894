"""Compare the exporter with its alternatives: scrapes, polls, starts and memory. Needs Linux and nginx.

Prints tables, last what should hold, and writes everything as JSON. Ratios are of one run: servers that are compared
are measured in turns. Nothing here fails for being slow.

Run it from the repository's folder: python -m benchmarks.bench
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import memory, polls, scrape, starts
from benchmarks.report import Part, machine, save, targets, written
from benchmarks.servers import EMAIL, PUSH

_WHOLE: dict[str, Callable[[], Part]] = {
    "scrapes": partial(scrape.measure, (1_000, 10_000, 100_000, 500_000), seconds=1.8),
    "polls": partial(polls.measure, polls.CASES, campaigns=2_000, rounds=3, seconds=1.2),
    "starts": partial(starts.measure, (10, 1_000, 10_000), rounds=3, seconds=2),
    "memory": partial(memory.measure, (EMAIL, PUSH), series=100_000, polls=10_000, looks=30),
}
_QUICK: dict[str, Callable[[], Part]] = {
    "scrapes": partial(scrape.measure, (100,), seconds=0.05),
    "polls": partial(polls.measure, polls.CASES[:1], campaigns=20, rounds=1, seconds=0.3),
    "starts": partial(starts.measure, (5, 20), rounds=1, seconds=0.3),
    "memory": partial(memory.measure, (PUSH,), series=2_000, polls=5, looks=5),
}


def main() -> None:
    """Measure one part after another, print each, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--part", action="append", choices=_WHOLE, help="only this one; may be given again")
    parser.add_argument("--quick", action="store_true", help="so little that only the benchmark itself is tried")
    parser.add_argument(
        "--output", type=Path, default=Path(".cache/bench.json"), help="the JSON file (default: %(default)s)"
    )
    flags = parser.parse_args()
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    measured: dict[str, Part] = {}
    started = time.monotonic()
    for name, measure in (_QUICK if flags.quick else _WHOLE).items():
        if not flags.part or name in flags.part:
            measured[name] = measure()
            print(written(measured[name]), end="", flush=True)
    print(written(targets(measured.values())), end="")
    save(flags.output, measured, about)
    print(f"\n{time.monotonic() - started:.0f} s; everything is in {flags.output}")


if __name__ == "__main__":
    main()
