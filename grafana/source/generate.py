"""Write the dashboards into grafana/dashboards: `python -m grafana.source.generate`."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.source.campaign import campaign
from grafana.source.deliverability import deliverability
from grafana.source.health import health
from grafana.source.overview import overview

FOLDER = Path(__file__).parents[1] / "dashboards"


def files() -> dict[str, str]:
    """Return the text of each dashboard by the name of its file, which is its uid."""
    made = (overview(), campaign(), deliverability(), health())
    return {
        f"{dashboard.uid}.json": json.dumps(dashboard, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"
        for dashboard in made
    }


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
