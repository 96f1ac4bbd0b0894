"""Labels that the chart and kustomize add to every alert, so that an AlertmanagerConfig of the namespace gets them."""

from pathlib import Path

from tests.support.objects import KUBERNETES, Checker, each, helm, kustomize, mapping, one, write_kustomization
from tests.test_rules import ALERTS


def labels_by_alert(rule: dict[str, object]) -> dict[str, dict[str, str]]:
    """Return the labels of each alert of a PrometheusRule, and see that no recorded series has got one of them."""
    rules = [found for group in each(rule, "spec", "groups") for found in each(group, "rules")]

    assert not [found for found in rules if "record" in found and "namespace" in mapping(found.get("labels", {}))]
    return {str(found["alert"]): mapping(found, "labels") for found in rules if "alert" in found}


def test_the_chart_adds_labels_to_every_alert(checker: Checker) -> None:
    """What values say stands beside the alert's own labels, which stay as they are."""
    flags = ("--set=prometheusRule.enabled=true", "--set=prometheusRule.alertLabels.namespace=mine")
    found = labels_by_alert(one(helm(checker, *flags), "PrometheusRule"))

    assert found == {name: {**rule["labels"], "namespace": "mine"} for name, rule in ALERTS.items()}


def test_the_chart_adds_none_by_itself(checker: Checker) -> None:
    """Without values the alerts are those of the rules."""
    found = labels_by_alert(one(helm(checker, "--set=prometheusRule.enabled=true"), "PrometheusRule"))

    assert found == {name: rule["labels"] for name, rule in ALERTS.items()}


def test_the_component_adds_the_namespace_to_every_alert(checker: Checker, tmp_path: Path) -> None:
    """After the component of the rules, every alert has the namespace that the overlays have."""
    components = [KUBERNETES / "components" / name for name in ("prometheus-rule", "alert-labels")]
    folder = write_kustomization(tmp_path / "overlay", [], components)
    found = labels_by_alert(one(kustomize(checker, folder), "PrometheusRule"))

    assert found == {name: {**rule["labels"], "namespace": "braze-exporter"} for name, rule in ALERTS.items()}
