"""What kustomize makes of deploy/kubernetes: valid, safe, able to run, and the same whatever is put together."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bcrypt
import pytest
import yaml

from exporter.simulator.server import Simulator
from tests.support import objects
from tests.support.certificates import make_certificates
from tests.support.exporters import COMMAND, KEY, configure
from tests.support.found import some
from tests.support.objects import KUBERNETES, Checker, Object, at, each, mapping, one, text, texts, workload
from tests.support.servers import ROOT, Prometheus, eventually, fetch, running

BASE = KUBERNETES / "base"
DASHBOARDS = ROOT / "grafana"
COMPONENTS = {path.parent.name: path.parent for path in KUBERNETES.glob("components/*/kustomization.yaml")}
OVERLAYS = {path.parent.name: path.parent for path in KUBERNETES.glob("overlays/*/kustomization.yaml")}
README = (KUBERNETES / "README.md").read_text(encoding="utf-8")
# What people may put together, each with its resource and its components.
CASES: dict[str, tuple[Path, list[Path]]] = {
    "base": (BASE, []),
    "dashboards": (BASE, [DASHBOARDS]),
    **{name: (BASE, [path]) for name, path in COMPONENTS.items()},
    **{f"overlay {name}": (path, []) for name, path in OVERLAYS.items()},
    "everything": (BASE, [*sorted(COMPONENTS.values()), DASHBOARDS]),
    "production with web-config": (OVERLAYS["production"], [COMPONENTS["web-config"]]),
    "sharded with web-config": (OVERLAYS["sharded"], [COMPONENTS["web-config"]]),
    "minimal with reload": (OVERLAYS["minimal"], [COMPONENTS["reload"]]),
}
# One ConfigMap and one annotation, which `kubectl apply` writes without --server-side.
LARGEST_OBJECT, LARGEST_ANNOTATION = 2**20, 2**18
SECRET = re.compile(r"\$2[aby]\$\d\d\$|-----BEGIN|(?i:bearer |authorization:)|api_key:|password: [^/\s]")

CONTAINER = ("spec", "template", "spec", "containers", 0)

Built = dict[str, list[Object]]


@pytest.fixture(scope="module")
def built(checker: Checker, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The objects of every case."""
    folder = tmp_path_factory.mktemp("kustomizations")
    return {
        name: objects.kustomize(
            checker, objects.write_kustomization(folder / name.replace(" ", "-"), [resource], components)
        )
        for name, (resource, components) in CASES.items()
    }


def test_production_has_every_component() -> None:
    """Production has every component but TLS, which needs certificates; sharded is production."""
    kustomizations = {
        name: yaml.safe_load((path / "kustomization.yaml").read_text()) for name, path in OVERLAYS.items()
    }
    used = {(OVERLAYS["production"] / path).resolve() for path in kustomizations["production"]["components"]}

    assert {*COMPONENTS.values(), DASHBOARDS} - used == {COMPONENTS["web-config"]}
    assert kustomizations["sharded"]["resources"] == ["../production"]


def test_every_kustomization_builds(built: Built) -> None:
    """Each builds without a warning, has one workload in the namespace, and no object twice."""
    for name, found in built.items():
        names = [(text(each_object, "kind"), text(each_object, "metadata", "name")) for each_object in found]

        assert len(names) == len(set(names)), name
        assert {at(each_object, "metadata", "namespace") for each_object in found} == {objects.NAMESPACE}, name
        assert workload(found), name


@pytest.mark.parametrize("name", ["minimal", "production"])
def test_components_in_comments_can_be_used(checker: Checker, tmp_path: Path, name: str) -> None:
    """An overlay builds with the components that stand in it as comments, and they add to it."""
    copy_of_everything(tmp_path)
    file = tmp_path / "deploy/kubernetes/overlays" / name / "kustomization.yaml"
    before = objects.kustomize(checker, file.parent)
    kustomization = file.read_text(encoding="utf-8")
    used = re.sub(r"^( *)# ( *- \.\.|components:)", r"\1\2", kustomization, flags=re.MULTILINE)
    file.write_text(used, encoding="utf-8")

    assert used != kustomization
    assert objects.kustomize(checker, file.parent) != before


def test_objects_are_valid(checker: Checker, built: Built) -> None:
    """Every object fits the strict schemas of each Kubernetes from 1.28 on, or the operator's models.

    So that this can fail, a misspelt key of Kubernetes or of the operator and an unknown kind are problems.
    """
    monitor = one(built["service-monitor"], "ServiceMonitor")
    wrong = [
        {**one(built["base"], "Service"), "specs": {}},
        {**monitor, "spec": {"selector": {}, "endpoints": at(monitor, "spec", "endpoints"), "joblabel": "job"}},
        {**one(built["base"], "ServiceAccount"), "kind": "Account"},
    ]

    said = objects.problems(checker, [*(found for case in built.values() for found in case), *wrong])

    of_kubernetes = {
        "Service": "Additional properties are not allowed ('specs' was unexpected)",
        "Account": "Couldn't find schema for kind Account with api version v1 for kubernetes version {0}",
    }
    assert sorted(said) == sorted(
        [
            "ServiceMonitor/braze-exporter: not as the operator reads it",
            *(
                f"{kind}/braze-exporter {version}: {problem.format(version)}"
                for kind, problem in of_kubernetes.items()
                for version in objects.VERSIONS
            ),
        ]
    )


def test_objects_have_no_weakness(checker: Checker, built: Built, tmp_path: Path) -> None:
    """Checkov finds nothing but what its configuration explains."""
    found = objects.findings(checker, (found for case in built.values() for found in case), tmp_path)

    assert re.search(r"Passed checks: \d{3,}, Failed checks: 0, Skipped checks: 0", found), found


def test_pods_are_restricted(built: Built) -> None:
    """Every pod fits Kubernetes' restricted profile, reads nothing but its volumes and has no token."""
    for name, found in built.items():
        pod = at(workload(found), "spec", "template", "spec")
        context = at(pod, "securityContext")

        assert (at(context, "runAsNonRoot"), at(context, "seccompProfile", "type")) == (True, "RuntimeDefault"), name
        assert at(context, "runAsUser") == at(context, "fsGroup") == 65532, name
        assert at(pod, "automountServiceAccountToken") is False, name
        assert isinstance(pod, dict)
        assert pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"} == set(), name
        assert {key for volume in each(pod, "volumes") for key in volume} <= {
            "name",
            "configMap",
            "secret",
            "projected",
        }
        for container in some(each(pod, "containers"), "containers"):
            assert at(container, "securityContext") == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "privileged": False,
                "readOnlyRootFilesystem": True,
            }, name
            assert all(mount["readOnly"] and "subPath" not in mount for mount in each(container, "volumeMounts")), name
        assert at(one(found, "ServiceAccount"), "automountServiceAccountToken") is False


def test_no_secret_is_written_down(built: Built) -> None:
    """No object is a Secret, none holds what looks like a key, a hash or a certificate, nor does a file in deploy."""
    for name, found in built.items():
        assert "Secret" not in {each_object["kind"] for each_object in found}, name
        assert SECRET.findall(json.dumps(found)) == [], name
    kinds = {".yaml", ".yml", ".json", ".tpl", ".txt"}
    for path in some((path for path in (ROOT / "deploy").rglob("*") if path.suffix in kinds), "files"):
        assert SECRET.findall(path.read_text(encoding="utf-8")) == [], path


def test_one_process_at_a_time_asks_for_a_campaign(built: Built) -> None:
    """A Deployment has one pod and ends it before the next starts; each shard is a pod of a StatefulSet."""
    for name, found in built.items():
        spec = at(workload(found), "spec")
        # The same for both, as this field of a Service cannot be changed.
        assert at(one(found, "Service"), "spec", "clusterIP") == "None", name
        if name.startswith(("sharded", "overlay sharded")):
            assert workload(found)["kind"] == "StatefulSet", name
        else:
            assert (at(spec, "replicas"), at(spec, "strategy")) == (1, {"type": "Recreate"}), name


@pytest.mark.parametrize("count", [3, 5])
def test_the_number_of_shards_stands_in_one_place(checker: Checker, tmp_path: Path, count: int) -> None:
    """With another count of replicas each shard hears of it."""
    copy_of_everything(tmp_path)
    overlay = tmp_path / "deploy/kubernetes/overlays/sharded"
    file = overlay / "kustomization.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("count: 3", f"count: {count}"), encoding="utf-8")

    found = workload(objects.kustomize(checker, overlay))

    (container,) = each(found, "spec", "template", "spec", "containers")
    (number, total) = each(container, "env")
    assert at(found, "spec", "replicas") == count
    assert total == {"name": "TOTAL_SHARDS", "value": str(count)}
    assert at(number, "valueFrom", "fieldRef", "fieldPath") == "metadata.labels['apps.kubernetes.io/pod-index']"
    assert {"--shard=$(SHARD)", "--total-shards=$(TOTAL_SHARDS)"} <= set(texts(container, "args"))


@pytest.mark.parametrize(("overlay", "starts_a_pod"), [("minimal", True), ("production", False), ("sharded", False)])
def test_a_changed_configuration_starts_a_pod_or_is_loaded(
    checker: Checker, tmp_path: Path, overlay: str, *, starts_a_pod: bool
) -> None:
    """Another configuration makes another pod, unless the component reload says that the running one loads it."""
    copy_of_everything(tmp_path)
    folder = tmp_path / "deploy/kubernetes"
    before = workload(objects.kustomize(checker, folder / "overlays" / overlay))
    with (folder / "base/config.yaml").open("a", encoding="utf-8") as file:
        file.write("# one more line\n")

    after = workload(objects.kustomize(checker, folder / "overlays" / overlay))

    reloads = [arg for arg in texts(after, *CONTAINER, "args") if arg.startswith("--config.auto-reload-interval=")]
    assert (before != after, reloads == []) == (starts_a_pod, starts_a_pod)


def test_configurations_and_flags_are_valid(built: Built, tmp_path: Path) -> None:
    """The exporter takes the pod's flags with the ConfigMap's configuration, given a key; those of each shard, too."""
    key = tmp_path / "keys/main"
    key.parent.mkdir()
    key.write_text(KEY, encoding="utf-8")
    (tmp_path / "web.yml").write_text("http_server_config: {headers: {X-Frame-Options: deny}}\n", encoding="utf-8")
    commands = set()
    for found in built.values():
        configuration = text(objects.config_map(found), "data", "config.yaml")
        (tmp_path / "config.yaml").write_text(
            configuration.replace("/run/secrets/braze/", f"{key.parent}/"), encoding="utf-8"
        )
        for shard in ("0", "2"):
            values = {"$(SHARD)": shard, "$(TOTAL_SHARDS)": "3"}
            commands.add(tuple(_on_this_machine(texts(workload(found), *CONTAINER, "args"), tmp_path, values)))

    assert len(commands) > 4
    for flags in commands:
        result = subprocess.run(
            [*COMMAND, *flags, "--config.check"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (result.returncode, result.stderr) == (0, ""), flags
        assert "warning" not in result.stdout


def test_dashboards_fit(built: Built) -> None:
    """Each dashboard fits into a ConfigMap, and what is too large for a plain apply is the README's --server-side."""
    maps = [found for found in built["dashboards"] if "grafana_dashboard" in mapping(found, "metadata", "labels")]
    sizes = [len(json.dumps(found)) for found in maps]

    assert [mapping(found, "metadata", "labels")["grafana_dashboard"] for found in maps] == ["1"] * 4
    assert max(sizes) < LARGEST_OBJECT
    assert max(sizes) > LARGEST_ANNOTATION // 2  # else the flag can go
    applies = re.findall(r"kubectl apply .*", README)
    assert applies
    assert all("--server-side" in command for command in applies)


def test_the_pod_runs_with_tls_users_and_reloads(
    built: Built, prometheus: Callable[[str], Prometheus], openssl: Path, tmp_path: Path
) -> None:
    """A pod's command line and the ServiceMonitor's settings: probes answer, Prometheus scrapes, a new file is loaded.

    Kubernetes' part is played as it plays it: mounted files are links to a folder that another takes the place of.
    """
    found = built["production with web-config"]
    container = at(workload(found), *CONTAINER)
    password = "scrape-password-of-this-test"
    certificates = make_certificates(openssl, tmp_path)
    endpoint = at(one(found, "ServiceMonitor"), "spec", "endpoints", 0)
    certificate = certificates.sign("tls", f"DNS:{text(endpoint, 'tlsConfig', 'serverName')}")
    certificate.rename(tmp_path / "tls.crt")
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    (web_config,) = re.findall(r"^```yaml\n(tls_server_config:.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "web.yml").write_text(web_config.replace("HASH", hashed), encoding="utf-8")
    with Simulator(api_key=KEY, campaigns=3) as braze:
        mounted = configure(tmp_path, braze)
        put_in_place(tmp_path, "first", mounted.read_text(encoding="utf-8"))
        flags = [
            flag.replace("health.listen-address=:10106", "health.listen-address=127.0.0.1:0").replace("=30s", "=1s")
            for flag in _on_this_machine(texts(container, "args"), tmp_path, {})
        ]
        command = [*COMMAND, *flags, "--web.listen-address=127.0.0.1:0"]
        with running(command, log=tmp_path / "exporter.log") as program:
            address = program.logged(r"msg=listening url=https://(\S+)")[1]
            probes = program.logged(r'msg="listening for probes" url=(http://\S+)')[1]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                path = text(container, probe, "httpGet", "path")
                eventually(partial(answers, probes + path), what=f"{path} on the listener for probes")
            assert fetch(f"{probes}/metrics").status_code == 404
            scraping = prometheus(scrape_configuration(endpoint, address, certificates.ca, password))
            eventually(lambda: values(scraping, "up") == [1], what="a scrape by TLS")

            lines = mounted.read_text(encoding="utf-8").splitlines(keepends=True)
            put_in_place(tmp_path, "second", "".join(lines[:-1]))

            program.logged('msg="the configuration was reloaded".*campaigns_removed=1')
            eventually(lambda: values(scraping, "braze_workspace_campaigns") == [2], what="two campaigns")


def put_in_place(folder: Path, name: str, configuration: str) -> None:
    """Let config.yaml be a link into a folder, as kubelet does, and change that for another in one step."""
    (folder / name).mkdir()
    (folder / name / "config.yaml").write_text(configuration, encoding="utf-8")
    (folder / "..new").symlink_to(name)
    (folder / "..new").rename(folder / "..data")
    if not (folder / "config.yaml").is_symlink():
        (folder / "config.yaml").unlink()
        (folder / "config.yaml").symlink_to("..data/config.yaml")


def copy_of_everything(folder: Path) -> None:
    """Copy what kustomizations are made of, so that a test can change it."""
    shutil.copytree(KUBERNETES, folder / "deploy/kubernetes")
    shutil.copytree(DASHBOARDS / "dashboards", folder / "grafana/dashboards")
    shutil.copy(DASHBOARDS / "kustomization.yaml", folder / "grafana")


def answers(url: str) -> bool:
    """Tell whether an address answers that all is well."""
    return fetch(url).ok


def values(scraping: Prometheus, query: str) -> list[float]:
    """Return the values of a query."""
    return [value for _, value in scraping.query(query)]


def scrape_configuration(endpoint: object, address: str, ca: Path, password: str) -> str:
    """Return what the operator makes of a ServiceMonitor's endpoint (JSON), with its Secrets' contents."""
    job = {
        "job_name": "braze-exporter",
        "scrape_interval": "1s",
        "metrics_path": at(endpoint, "path"),
        "scheme": at(endpoint, "scheme"),
        "tls_config": {"ca_file": str(ca), "server_name": at(endpoint, "tlsConfig", "serverName")},
        "basic_auth": {"username": "prometheus", "password": password},
        "static_configs": [{"targets": [address]}],
    }
    assert at(endpoint, "basicAuth", "username", "key") == "username"
    return json.dumps({"scrape_configs": [job]})


def _on_this_machine(flags: list[str], folder: Path, values: dict[str, str]) -> list[str]:
    """Return a container's flags with its folders replaced by one, and its variables by their values."""
    found = []
    for flag in flags:
        for name, value in {
            **values,
            "/etc/braze-exporter": str(folder),
            "/run/secrets/web-config": str(folder),
        }.items():
            flag = flag.replace(name, value)  # noqa: PLW2901
        found.append(flag)
    return found
