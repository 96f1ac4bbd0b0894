"""Write the copies of rules and dashboards in deploy/: for the Prometheus operator and the Helm chart.

Kustomize cannot wrap a file into another object, and Helm reads no file outside its chart.
"""

from collections.abc import Mapping
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/rules"
DASHBOARDS = ROOT / "grafana/dashboards"
PROMETHEUS_RULE = ROOT / "deploy/kubernetes/components/prometheus-rule/prometheus-rule.yaml"
ALERT_LABELS = ROOT / "deploy/kubernetes/components/alert-labels/kustomization.yaml"
CHART_FILES = ROOT / "deploy/helm/braze-exporter/files"

_HEAD = """\
# Written by `make generate` from deploy/prometheus/rules. Do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: braze-exporter
  labels:
    app.kubernetes.io/name: braze-exporter
    app.kubernetes.io/instance: braze-exporter
spec:
  groups:
"""

_LABELS_HEAD = """\
# Written by `make generate` from deploy/prometheus/rules. After prometheus-rule: every alert gets the label namespace,
# as an AlertmanagerConfig of that namespace gets no others. For another namespace than braze-exporter copy this
# component and replace the value.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component

patches:
  - target:
      kind: PrometheusRule
      name: braze-exporter
    patch: |-
"""


def main() -> None:
    """Write every file, and remove files without a source."""
    wanted = files()
    for path in set(CHART_FILES.glob("*/*")) - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def files() -> dict[Path, str]:
    """Return the text of each file, by its path."""
    rules = _texts(RULES, "*.yml")
    dashboards = _texts(DASHBOARDS, "*.json")
    return {
        PROMETHEUS_RULE: prometheus_rule(rules),
        ALERT_LABELS: alert_labels(rules),
        **{CHART_FILES / "rules" / name: text for name, text in rules.items()},
        **{CHART_FILES / "dashboards" / name: text for name, text in dashboards.items()},
    }


def prometheus_rule(rules: Mapping[str, str]) -> str:
    """Return a PrometheusRule (YAML) with the groups of all rule files, their comments left in place.

    `rules` are texts of rule files by name; each has the key `groups` alone. Pure.
    """
    return _HEAD + "".join(_indented(text.partition("groups:\n")[2]) for text in rules.values())


def alert_labels(rules: Mapping[str, str]) -> str:
    """Return a kustomize component (YAML) that adds the label namespace to every alert of the PrometheusRule. Pure."""
    groups = [group for text in rules.values() for group in yaml.safe_load(text)["groups"]]
    return _LABELS_HEAD + "".join(
        f"      - {{op: add, path: /spec/groups/{number}/rules/{place}/labels/namespace, value: braze-exporter}}\n"
        for number, group in enumerate(groups)
        for place, rule in enumerate(group["rules"])
        if "alert" in rule
    )


def _indented(text: str) -> str:
    return "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))


def _texts(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern))}


if __name__ == "__main__":
    main()
