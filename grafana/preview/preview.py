"""Draw the dashboards into docs/pictures: a month of history, a Prometheus that answers from it, Grafana's panels."""

import json
import shutil
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from grafana.preview.history import CAMPAIGNS, EXPERIMENT, NOW, STEP, ZONE, samples
from tests.support.history import record_rules
from tests.support.servers import ROOT, Prometheus, find_program, running_prometheus, write_history

PICTURES = ROOT / "docs/pictures"
_DRAW = Path(__file__).with_name("draw.mjs")
_PHONE = 390  # pixels
_EXPERIMENT = {"var-workspace": "europe", "var-campaign": EXPERIMENT.id}
_ONE_CHANNEL = {"var-workspace": "europe", "var-campaign": CAMPAIGNS["europe"][1].id}
# Each picture's dashboard and what is chosen there; its parts, which README shows, from one row's title to another's.
_PICTURES: tuple[tuple[str, str, dict[str, str], list[dict[str, str]]], ...] = (
    ("braze-overview", "braze-overview", {}, [{"name": "overview-part", "to": "Today"}]),
    (
        "braze-campaign",
        "braze-campaign",
        _EXPERIMENT,
        [
            {"name": "campaign-part", "to": "History"},
            {"name": "variations-part", "from": "Variations"},
        ],
    ),
    ("braze-campaign-one-channel", "braze-campaign", _ONE_CHANNEL, []),
    ("braze-deliverability", "braze-deliverability", {}, [{"name": "deliverability-part", "to": "SMS"}]),
    ("braze-exporter", "braze-exporter", {}, [{"name": "exporter-part", "to": "Braze's API"}]),
)


def main() -> None:
    """Make the history, serve it, draw every dashboard and stop what was started."""
    promtool, prometheus = _program("promtool"), _program("prometheus")
    chromium = find_program("chromium") or _program("chromium-headless-shell")
    with tempfile.TemporaryDirectory(prefix="preview-") as name:
        folder = Path(name)
        write_history(promtool, samples(), folder)
        # Once a day what panels of days draw, closely what those of the last days do, and once what all others do.
        midnight = NOW.astimezone(ZoneInfo(ZONE)).replace(hour=0, minute=0)
        record_rules(promtool, folder, midnight - timedelta(days=30), midnight - timedelta(days=4), timedelta(days=1))
        for files in ("campaigns", "thresholds", "failures"):
            record_rules(promtool, folder, NOW - timedelta(hours=73), NOW, STEP, files)
        record_rules(promtool, folder, NOW, NOW, STEP)
        with running_prometheus(prometheus, "global: {}", folder) as server:
            _draw(chromium, server)


def _program(name: str) -> Path:
    program = find_program(name)
    if program is None:
        sys.exit(f"expected the program {name} on PATH or among the programs of `make programs`")
    return program


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
    phone = {"dashboard": "braze-overview", **shared}
    parts = [{"name": "overview-phone", "to": "Today"}]
    pictures.append(json.dumps({"name": "braze-overview-phone", "address": phone, "width": _PHONE, "parts": parts}))
    subprocess.run([node, _DRAW, chromium, PICTURES, *pictures], check=True)  # noqa: S603 - a program of ours


if __name__ == "__main__":
    main()
