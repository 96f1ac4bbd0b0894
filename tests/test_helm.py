"""The Helm chart: what kustomize makes is what it makes, and values that do not fit are told."""

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from exporter import config
from exporter.shards import MOST_SHARDS
from tests.support import objects
from tests.support.exporters import KEY, config_check
from tests.support.objects import CHART, KUBERNETES, Checker, Object, at, mapping, text, workload
from tools import manifests

SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = (CHART / "values.yaml").read_text(encoding="utf-8")
PRODUCTION = f"--values={CHART / 'values-production.yaml'}"
SHARDED = f"--values={CHART / 'values-sharded.yaml'}"
WEB = "--set=web.enabled=true"
WEB_CONFIG = KUBERNETES / "components/web-config"
# An overlay and the components added to it, and the flags of Helm that make the same.
SAME: dict[str, tuple[str, list[Path], list[str]]] = {
    "minimal": ("minimal", [], []),
    "production": ("production", [], [PRODUCTION]),
    "sharded": ("sharded", [], [PRODUCTION, SHARDED]),
    "production with web-config": ("production", [WEB_CONFIG], [PRODUCTION, WEB]),
    "sharded with web-config": ("sharded", [WEB_CONFIG], [PRODUCTION, SHARDED, WEB]),
}
VOLUMES = ("spec", "template", "spec", "volumes")
LARGEST_SECRET = 2**20  # bytes, and Helm keeps a release in one


@pytest.mark.parametrize("name", SAME)
def test_helm_and_kustomize_make_the_same(checker: Checker, tmp_path: Path, name: str) -> None:
    """Object by object and key by key the chart and the overlay agree, but for what `alike` leaves out."""
    overlay, components, flags = SAME[name]
    folder = objects.write_kustomization(tmp_path / "overlay", [KUBERNETES / "overlays" / overlay], components)

    by_kustomize = alike(objects.kustomize(checker, folder))
    by_helm = alike(objects.helm(checker, *flags))

    assert by_helm.keys() == by_kustomize.keys()
    for key, expected in by_kustomize.items():
        assert by_helm[key] == expected, key


def alike(found: list[Object]) -> dict[str, object]:
    """Return objects by kind and name, without what may differ between Helm and kustomize.

    That is: labels that say which tool and which version made an object (kustomize has the version on the base only);
    how a changed configuration makes another pod, a hash in a name or an annotation; the pull policy that Kubernetes
    has for such tags anyway; the configuration's comments and the order of its keys; the order of a container's flags.
    """
    text_of_all = re.sub(r"(braze-exporter-config)-[a-z0-9]{10}\b", r"\1", json.dumps(found))
    result: dict[str, object] = {}
    for each in json.loads(text_of_all):
        labels = each["metadata"]["labels"]
        for label in ("helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"):
            labels.pop(label, None)
        if "config.yaml" in each.get("data", {}):
            each["data"]["config.yaml"] = yaml.safe_load(each["data"]["config.yaml"])
        if each["kind"] in {"Deployment", "StatefulSet"}:
            template = each["spec"]["template"]
            template["metadata"]["annotations"].pop("checksum/config", None)
            (container,) = template["spec"]["containers"]
            assert container.pop("imagePullPolicy", "IfNotPresent") == "IfNotPresent"
            container["args"].sort()
        result[f"{each['kind']}/{each['metadata']['name']}"] = each
    return result


def test_lint(checker: Checker) -> None:
    """Helm's strict linter has nothing against the chart, with any of its files of values."""
    for flags in ([], [PRODUCTION], [PRODUCTION, SHARDED], [PRODUCTION, WEB]):
        result = subprocess.run(
            [checker("helm"), "lint", "--strict", CHART, *flags], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout
        assert not re.search(r"\[(WARNING|ERROR)\]", result.stdout), result.stdout


EVERYTHING = {
    "fullnameOverride": "campaigns",
    "extraArgs": ["--log.format=json"],
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
    "podAnnotations": {"one": "annotation"},
    "podLabels": {"one": "label"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
    "dashboards": {"annotations": {"grafana_folder": "Braze"}},
    "networkPolicy": {"extraEgress": [{"ports": [{"port": 3128}]}]},
    "global": {"of": "a chart that has this one in it"},
}


def test_objects_are_valid(checker: Checker, tmp_path: Path) -> None:
    """What the chart makes fits the strict schemas of each Kubernetes, also with every value set."""
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(EVERYTHING), encoding="utf-8")
    cases = [[], [PRODUCTION, SHARDED, WEB, f"--values={file}"], [PRODUCTION, f"--values={file}"]]
    found = [each for flags in cases for each in objects.helm(checker, *flags)]

    assert objects.problems(checker, found) == []


def test_every_value_has_an_effect(checker: Checker, tmp_path: Path) -> None:
    """Each value of the chart, set alone to something else, changes what it makes with everything switched on."""
    usual = [PRODUCTION, SHARDED, WEB]
    others = {
        **EVERYTHING,
        "apiKeysSecret": "keys",
        "shards": 5,
        "reload": {"enabled": False},
        "web": {"configSecret": "a", "tlsSecret": "b", "scrapeSecret": "c", "serverName": "d"},
        "serviceMonitor": {"interval": "5m"},
        "prometheusRule": {"labels": {"release": "other"}},
        "podDisruptionBudget": {"enabled": False},
        "resources": {"requests": {"cpu": "1"}},
        "config": {"poll": {"interval": "10m"}},
    }
    before = objects.helm(checker, *usual)

    assert {*others} == {*SCHEMA["properties"]}
    for name in others.keys() - {"global"}:
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps({name: others[name]}), encoding="utf-8")
        assert objects.helm(checker, *usual, f"--values={file}") != before, name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("shards=0", "- shards: Must be greater than or equal to 1"),
        ("shards=two", "- shards: Invalid type. Expected: integer, given: string"),
        ("serviceMonitor.enable=true", "- serviceMonitor: Additional property enable is not allowed"),
        ("replicas=2", "- (root): Additional property replicas is not allowed"),
        ("config.interval=5m", "- config: Additional property interval is not allowed"),
        ("config.workspaces=null", "- config: workspaces is required"),
        ("image.digest=latest", "- image.digest: Does not match pattern"),
        ("extraArgs={log.level=debug}", "- extraArgs.0: Does not match pattern"),
        ("serviceMonitor.interval=often", "- serviceMonitor.interval: Does not match pattern"),
        ("dashboards.labels.grafana_dashboard=1", "- dashboards.labels.grafana_dashboard: Invalid type."),
    ],
)
def test_wrong_values(checker: Checker, values: str, said: str) -> None:
    """A value that does not exist or does not fit is an error that names it."""
    result = subprocess.run(
        [checker("helm"), "template", CHART, "--set", values], capture_output=True, text=True, check=False
    )

    assert result.returncode == 1
    assert said in result.stderr


def test_values_are_explained() -> None:
    """Values and schema have the same keys, the schema knows no others, and each group of values has its comment."""
    values = yaml.safe_load(VALUES)

    assert set(SCHEMA["properties"]) == {*values, "global"}
    for name, schema in SCHEMA["properties"].items():
        if "properties" in schema:
            assert schema["additionalProperties"] is False, name
            if name != "config":
                assert set(schema["properties"]) == set(values[name]), name
    blocks = [block for block in VALUES.split("\n\n") if not block.startswith("image:")]
    assert [block for block in blocks if not block.startswith("#")] == []
    assert SCHEMA["properties"]["shards"]["maximum"] == MOST_SHARDS
    top = {setting.path.partition(".")[0].removesuffix("[]") for setting in config.settings()}
    assert set(SCHEMA["properties"]["config"]["properties"]) == top


def test_the_configuration_is_the_example_of_kustomize(checker: Checker, tmp_path: Path) -> None:
    """The chart's configuration is the one of the base, also for the exporter, and large numbers stay numbers."""
    found = objects.config_map(objects.helm(checker, "--set=config.limits.series=2000000"))
    configuration = text(found, "data", "config.yaml")
    base = yaml.safe_load((KUBERNETES / "base/config.yaml").read_text(encoding="utf-8"))
    (tmp_path / "main").write_text(KEY, encoding="utf-8")
    file = tmp_path / "config.yaml"
    file.write_text(configuration.replace("/run/secrets/braze", str(tmp_path)), encoding="utf-8")

    result = config_check(file)

    assert yaml.safe_load(configuration) == {**base, "limits": {"series": 2_000_000}}
    assert (result.returncode, result.stderr) == (0, "")


def test_another_name_is_another_installation(checker: Checker) -> None:
    """Objects and selectors follow the release's name; the job in Prometheus stays what the alerts look for."""
    result = subprocess.run(
        [checker("helm"), "template", "second", CHART, PRODUCTION], capture_output=True, text=True, check=True
    )
    found = [each for each in yaml.load_all(result.stdout, yaml.CSafeLoader) if each]

    assert {text(each, "metadata", "name").partition("-dashboard-")[0] for each in found} == {
        "second-braze-exporter",
        "second-braze-exporter-config",
    }
    selector = mapping(workload(found), "spec", "selector", "matchLabels")
    assert selector == {"app.kubernetes.io/name": "braze-exporter", "app.kubernetes.io/instance": "second"}
    monitor = objects.one(found, "ServiceMonitor")
    assert mapping(monitor, "spec", "selector", "matchLabels") == selector
    assert at(monitor, "spec", "jobLabel") == "app.kubernetes.io/name"


@pytest.mark.parametrize(
    ("flags", "address", "owner"),
    [([], "http://localhost:10105/", "deployment/"), ([SHARDED, WEB], "https://localhost:10105/", "pod/")],
)
def test_notes(checker: Checker, tmp_path: Path, flags: list[str], address: str, owner: str) -> None:
    """What Helm says after an installation names objects that are there, and the address as it is served."""
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates/NOTES.txt").rename(chart / "notes.txt")
    # Only an installation shows notes, so they are made part of an object.
    (chart / "templates/notes.yaml").write_text('{kind: Notes, text: {{ tpl (.Files.Get "notes.txt") . | toJson }}}')

    found = objects.helm(checker, *flags, chart=chart)

    notes = text(objects.one(found, "Notes"), "text")
    name = text(workload(found), "metadata", "name")
    assert address in notes
    assert f" {owner}{name}" in notes
    assert f"create secret generic {text(workload(found), *VOLUMES, 1, 'secret', 'secretName')} " in notes
    assert notes.count(f"--namespace {objects.NAMESPACE}") == 2


def test_the_package_is_small(checker: Checker, tmp_path: Path) -> None:
    """A packed chart has its files, no others, and a release with all of it fits into Helm's Secret."""
    subprocess.run([checker("helm"), "package", CHART, "--destination", tmp_path], check=True, capture_output=True)
    (package,) = tmp_path.glob("*.tgz")
    rendered = json.dumps(objects.helm(checker, PRODUCTION)).encode()
    copies = b"".join(path.read_bytes() for path in sorted(manifests.CHART_FILES.glob("*/*")))

    assert package.stat().st_size < 200_000
    # Compressed and in base64 twice: the copies and what was rendered of them.
    assert len(gzip.compress(rendered + copies)) * 4 / 3 < LARGEST_SECRET / 2
