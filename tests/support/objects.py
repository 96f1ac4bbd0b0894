"""Kubernetes objects: built by kustomize and Helm, looked into, judged by what knows their schemas."""

import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml

from tests.support.found import some
from tests.support.servers import ROOT

Object = dict[str, object]
Checker = Callable[[str], Path]

KUBERNETES = ROOT / "deploy/kubernetes"
CHART = ROOT / "deploy/helm/braze-exporter"
NAMESPACE = "braze-exporter"
VERSIONS = [f"1.{minor}" for minor in range(28, 38)]

# Run by the Python that has the schemas and the models. Models accept unknown keys and leave them out when they write;
# schemas are files that are read again and again.
_CHECK = """\
import functools, json, sys
import kubernetes_validate
from kubernetes_validate import utils
from cloudcoil.models.prometheus_operator import v1

utils.schema_contents = functools.lru_cache(None)(utils.schema_contents)
versions, objects = json.load(sys.stdin)
for given in objects:
    name = f"{given['kind']}/{given['metadata']['name']}"
    if given["apiVersion"] == "monitoring.coreos.com/v1":
        model = getattr(v1, given["kind"]).model_validate(given)
        written = model.model_dump(mode="json", by_alias=True, exclude_unset=True)
        if written != given:
            print(f"{name}: not as the operator reads it")
        continue
    for version in versions:
        try:
            assert kubernetes_validate.validate(given, version, strict=True) == version
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            print(f"{name} {version}: {error.message}")
"""


def kustomize(checker: Checker, folder: Path) -> list[Object]:
    """Build a kustomization; raises AssertionError with what kustomize says where it cannot, warnings included."""
    return _read(checker("kubectl"), "kustomize", folder)


def helm(checker: Checker, *flags: str, chart: Path = CHART) -> list[Object]:
    """Render the chart as the release `braze-exporter` with Helm's flags."""
    return _read(checker("helm"), "template", "braze-exporter", chart, f"--namespace={NAMESPACE}", *flags)


def write_kustomization(folder: Path, resources: Sequence[Path], components: Sequence[Path], **others: object) -> Path:
    """Write a kustomization as a user would have, in a folder of its own; return that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "resources": [os.path.relpath(path, folder.resolve()) for path in resources],
        "components": [os.path.relpath(path, folder.resolve()) for path in components],
        **others,
    }
    (folder / "kustomization.yaml").write_text(json.dumps(text), encoding="utf-8")
    return folder


def at(value: object, *path: str | int) -> object:
    """Return what lies at a path of keys and positions; raises AssertionError with the rest of the path."""
    for number, step in enumerate(path):
        if isinstance(step, str):
            assert isinstance(value, dict), f"expected an object before {path[number:]}, got {value!r}"
            assert step in value, f"expected {path[number:]} in {sorted(value)}"
            value = value[step]
        else:
            assert isinstance(value, list), f"expected a list before {path[number:]}, got {value!r}"
            value = value[step]
    return value


def each(value: object, *path: str | int) -> list[Object]:
    """Return the objects of the list at a path, none where the last step is absent."""
    *way, last = path
    owner = at(value, *way)
    found = owner.get(last, []) if isinstance(owner, dict) else at(owner, last)
    assert isinstance(found, list)
    return found


def texts(value: object, *path: str | int) -> list[str]:
    """Return the texts of the list at a path."""
    found = at(value, *path)
    assert isinstance(found, list)
    return [str(text) for text in found]


def text(value: object, *path: str | int) -> str:
    """Return the text at a path."""
    return str(at(value, *path))


def mapping(value: object, *path: str | int) -> dict[str, str]:
    """Return the pairs of text at a path."""
    found = at(value, *path)
    assert isinstance(found, dict)
    return {str(key): str(item) for key, item in found.items()}


def one(objects: Iterable[Object], *kinds: str) -> Object:
    """Return the only object of some kinds."""
    found = [each_object for each_object in objects if each_object["kind"] in kinds]
    assert len(found) == 1, f"expected one of {kinds}, got {len(found)}"
    return found[0]


def workload(objects: Iterable[Object]) -> Object:
    """Return the Deployment or StatefulSet."""
    return one(objects, "Deployment", "StatefulSet")


def config_map(objects: Iterable[Object]) -> Object:
    """Return the ConfigMap with the exporter's configuration."""
    return one((found for found in objects if "config.yaml" in mapping(found.get("data", {}))), "ConfigMap")


def problems(checker: Checker, objects: Iterable[Object], *, versions: Sequence[str] = VERSIONS) -> list[str]:
    """Return what is wrong with objects by the strict schemas of each Kubernetes, or by the operator's models.

    A kind that is neither's is wrong, too. Contents of ConfigMaps are not looked at.
    """
    unlike = {json.dumps(_without_contents(found), sort_keys=True): found for found in some(objects, "objects")}
    python = checker("kubernetes-validate").parent / "python"
    return _run(python, "-c", _CHECK, text=json.dumps([list(versions), list(unlike.values())])).splitlines()


def findings(checker: Checker, objects: Iterable[Object], folder: Path) -> str:
    """Return what checkov finds in objects beside what deploy/checkov.yml explains, and how much it looked at."""
    unlike = {json.dumps(_without_contents(found), sort_keys=True) for found in objects}
    file = folder / "objects.yaml"
    file.write_text("\n---\n".join(sorted(unlike)), encoding="utf-8")
    return _run(checker("checkov"), f"--config-file={ROOT / 'deploy/checkov.yml'}", f"--file={file}")


def _without_contents(found: Object) -> Object:
    if found["kind"] != "ConfigMap":
        return found
    return {**found, "data": dict.fromkeys(mapping(found, "data"), "")}


def _read(*command: str | Path) -> list[Object]:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return some((found for found in yaml.load_all(result.stdout, yaml.CSafeLoader) if found), "objects")


def _run(*command: str | Path, text: str | None = None) -> str:
    """Return what a program says, whatever its status."""
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr
