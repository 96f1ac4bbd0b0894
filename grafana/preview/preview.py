"""Draw the dashboards into docs/pictures: a month of history, a Prometheus that answers from it, Grafana's panels."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from grafana.preview.history import CAMPAIGNS, EXPERIMENT, NOW, ZONE, samples
from tests.support.history import comparison_rules
from tests.support.servers import ROOT, Prometheus, find_program, running_prometheus, write_history

PICTURES = ROOT / "docs/pictures"
_DRAW = Path(__file__).with_name("draw.mjs")
_EXPERIMENT = {"var-workspace": "europe", "var-campaign": EXPERIMENT.id}
_ONE_CHANNEL = {"var-workspace": "europe", "var-campaign": CAMPAIGNS["europe"][1].id}
# Each picture's dashboard and what is chosen there; its parts, which README shows, from one row's title to another's.
_PICTURES: tuple[tuple[str, str, dict[str, str], list[dict[str, str]]], ...] = (
    ("braze-overview", "braze-overview", {}, [{"name": "overview-part", "to": "What changed"}]),
    (
        "braze-campaign",
        "braze-campaign",
        _EXPERIMENT,
        [
            {"name": "campaign-part", "to": "Variations"},
            {"name": "variations-part", "from": "Variations", "to": "History"},
        ],
    ),
    ("braze-campaign-one-channel", "braze-campaign", _ONE_CHANNEL, []),
    ("braze-deliverability", "braze-deliverability", {}, [{"name": "deliverability-part", "to": "SMS"}]),
    ("braze-exporter", "braze-exporter", {}, [{"name": "exporter-part", "to": "Braze's API"}]),
)


def main() -> None:
    """Make the history, serve it, draw every dashboard and stop what was started."""
    promtool, prometheus, chromium = (_program(name) for name in ("promtool", "prometheus", "chromium"))
    with tempfile.TemporaryDirectory(prefix="preview-") as name:
        folder = Path(name)
        write_history(promtool, samples(), folder)
        # What the rules would have recorded stands on the history: asked of it first, then added.
        with running_prometheus(prometheus, "global: {}", folder) as server:
            recorded = list(_recorded(server))
        write_history(promtool, recorded, folder)
        with running_prometheus(prometheus, "global: {}", folder) as server:
            _draw(chromium, server)


def _program(name: str) -> Path:
    program = find_program(name)
    if program is None:
        sys.exit(f"expected the program {name} on PATH or among the programs of `make programs`")
    return program


def _recorded(prometheus: Prometheus) -> Iterator[str]:
    """Yield the series that the comparison of variations has recorded by the end of the history."""
    rules = comparison_rules()

    def expanded(expression: str) -> str:
        return re.sub(r"\w+:\w+:\w+", lambda match: f"({expanded(rules[match[0]])})", expression)

    time = f"{NOW.timestamp():.0f}"
    for name, expression in rules.items():
        # The one value at the end of the history, which is long ago.
        for labels, value in prometheus.query(f"last_over_time(({expanded(expression)})[1ms:1s] @ {time})"):
            pairs = ",".join(f"{label}={json.dumps(text, ensure_ascii=False)}" for label, text in labels.items())
            yield f"{name}{{{pairs}}} {value} {time}\n"


def _draw(chromium: Path, prometheus: Prometheus) -> None:
    node = shutil.which("node")
    if node is None:
        sys.exit("expected the program node on PATH")
    PICTURES.mkdir(parents=True, exist_ok=True)
    shared = {"prometheus": prometheus.url, "now": f"{NOW.timestamp():.0f}", "zone": ZONE}
    pictures = [
        json.dumps({"name": name, "address": {"dashboard": uid, **shared, **choice}, "parts": parts})
        for name, uid, choice, parts in _PICTURES
    ]
    subprocess.run([node, _DRAW, chromium, PICTURES, *pictures], check=True)  # noqa: S603 - a program of ours


if __name__ == "__main__":
    main()
