"""What holds over all of deploy/: copies are copies, names and ports agree, the documents' commands run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from exporter import __version__
from grafana.source.generate import FOLDER, files
from tests.support import objects
from tests.support.found import some
from tests.support.objects import CHART, KUBERNETES, Checker, Object, at, each, mapping, one, text, texts, workload
from tests.support.servers import ROOT
from tools import manifests

RULES = {
    path.name: path.read_text(encoding="utf-8")
    for path in some(sorted((ROOT / "deploy/prometheus/rules").glob("*.yml")), "files of rules")
}
IMAGE = "ghcr.io/braze-exporter/braze-exporter"
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (KUBERNETES / "README.md", CHART / "README.md")
}
# What the code says of itself and no manifest should say otherwise.
CODE = "".join(path.read_text(encoding="utf-8") for path in some(sorted((ROOT / "exporter").rglob("*.py")), "modules"))
# kubectl for a README without a cluster: what needs none is done, what would be applied is built.
KUBECTL = """\
#!/bin/sh
case "$*" in
create*) exec {kubectl} "$@" --dry-run=client ;;
apply*--kustomize*) for folder; do :; done; exec {kubectl} kustomize "$folder" ;;
apply*--filename\\ -) exec cat ;;
get\\ secret*) printf password | base64 ;;
*) echo "$@" ;;
esac
"""
# The same for Helm: charts from elsewhere are not fetched, but the files of values for them must be there.
HELM = """\
#!/bin/sh
[ "$1 $2" = "upgrade --install" ] || exit 1
shift 2
case "$*" in
*oci://*--values*) for file; do :; done; exec cat "$file" ;;
*oci://*) echo "$@" ;;
*) exec {helm} template "$@" ;;
esac
"""


def test_copies_are_copies() -> None:
    """The copies of rules and dashboards in deploy are up to date: `make generate` writes them."""
    written = {*manifests.CHART_FILES.rglob("*.*"), manifests.PROMETHEUS_RULE, manifests.ALERT_LABELS}

    assert {path: path.read_text(encoding="utf-8") for path in written if path.is_file()} == manifests.files()


@pytest.mark.server
def test_generated_files_are_marked() -> None:
    """Every file that `make generate` writes is marked as generated, and no other is but the locks."""
    generated = {*manifests.files(), *(FOLDER / name for name in files())}
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", ":(attr:linguist-generated)"],  # noqa: S607 - the user's git
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    marked = {path for path in listed.stdout.split() if not path.endswith(".lock")}
    assert marked == {path.relative_to(ROOT).as_posix() for path in generated}


def test_the_prometheus_rule_is_the_rule_files() -> None:
    """The PrometheusRule has the groups of all rule files in their order, each name once."""
    rule = yaml.safe_load(manifests.PROMETHEUS_RULE.read_text(encoding="utf-8"))
    groups = [group for rules in RULES.values() for group in yaml.safe_load(rules)["groups"]]
    names = [group["name"] for group in groups]

    assert rule["spec"] == {"groups": groups}
    assert len(names) == len(set(names))


def test_the_version_is_everywhere(checker: Checker) -> None:
    """Manifests and chart name the image of this version."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    found = workload(objects.kustomize(checker, KUBERNETES / "base"))

    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    for built in (found, workload(objects.helm(checker))):
        assert text(built, "spec", "template", "spec", "containers", 0, "image") == f"{IMAGE}:{__version__}"
        assert mapping(built, "metadata", "labels")["app.kubernetes.io/version"] == __version__


def test_yaml_is_tidy(checker: Checker) -> None:
    """Yamllint finds nothing in any YAML file of the repository."""
    result = subprocess.run(
        [checker("yamllint"), "--strict", "."], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("by", ["kustomize", "helm"])
@pytest.mark.parametrize("web", [False, True])
def test_names_ports_and_paths_agree(checker: Checker, tmp_path: Path, by: str, *, web: bool) -> None:
    """What one file names is there in another: in manifests, ServiceMonitor, policy, rules, documents and code."""
    found = built_by(by, checker, tmp_path, web=web)
    service, monitor, policy = (one(found, kind) for kind in ("Service", "ServiceMonitor", "NetworkPolicy"))
    pod = at(workload(found), "spec", "template")
    container = at(pod, "spec", "containers", 0)
    ports = {text(port, "name"): at(port, "containerPort") for port in each(container, "ports")}
    flags = dict(flag.split("=", 1) for flag in texts(container, "args"))
    listens, telemetry_path = defaults_of_code()

    # Ports: of the code, the container, the Service, and whatever names them.
    (served,) = each(service, "spec", "ports")
    assert {str(ports["metrics"]), str(served["port"])} == {listens}
    assert served["targetPort"] == served["name"] == "metrics"
    for peer in some(each(policy, "spec", "ingress"), "peers"):
        assert [port["port"] for port in each(peer, "ports")] == [served["targetPort"]]
    (endpoint,) = each(monitor, "spec", "endpoints")
    assert (endpoint["port"], endpoint["path"]) == (served["name"], telemetry_path)
    # Probes: known paths, on the port of the listener that answers without a user.
    for probe, paths in {"startupProbe": "healthy", "livenessProbe": "healthy", "readinessProbe": "ready"}.items():
        assert at(container, probe, "httpGet", "path") == f"/-/{paths}"
        assert at(container, probe, "httpGet", "port") == ("health" if web else "metrics")
    assert flags.get("--web.health.listen-address") == (f":{ports['health']}" if web else None)
    # Selectors: the pod's labels.
    labels = mapping(pod, "metadata", "labels").items()
    assert mapping(service, "spec", "selector").items() <= labels
    for selecting in (workload(found), policy, one(found, "PodDisruptionBudget")):
        selector = "podSelector" if selecting is policy else "selector"
        assert mapping(selecting, "spec", selector, "matchLabels").items() <= labels
    assert mapping(monitor, "spec", "selector", "matchLabels").items() <= mapping(service, "metadata", "labels").items()
    # Files: each flag's and each key's lies in a mounted volume that has it.
    configuration = yaml.safe_load(text(objects.config_map(found), "data", "config.yaml"))
    keys = {workspace["api_key_file"] for workspace in configuration["workspaces"]}
    files = {flags["--config.file"], *keys, *filter(None, [flags.get("--web.config.file")])}
    mounts = each(container, "volumeMounts")
    assert {Path(file).name for file in files} <= {"config.yaml", "main", "web.yml"}
    assert {str(Path(file).parent) for file in files} == {mount["mountPath"] for mount in mounts}
    assert {mount["name"] for mount in mounts} == {volume["name"] for volume in each(pod, "spec", "volumes")}


def test_all_files_name_the_same(checker: Checker) -> None:
    """Every file in deploy, whatever it is for, names the ports, paths, image and user that code and manifests have."""
    listens, telemetry_path = defaults_of_code()
    pod = at(workload(objects.kustomize(checker, KUBERNETES / "overlays/production")), "spec", "template", "spec")
    health = re.findall(r"containerPort: (\d+)", text_of(KUBERNETES / "components/web-config/workload.yaml"))
    files = [path for path in sorted((ROOT / "deploy").rglob("*")) if path.is_file()]

    assert len(files) > 40
    for path in files:
        content = text_of(path)
        assert set(re.findall(r"\b101\d\d\b", content)) <= {listens, *health}, path
        assert set(re.findall(r"/-/[a-z]+", content)) <= {*re.findall(r'"(/-/[a-z]+)"', CODE)}, path
        assert set(re.findall(rf"{IMAGE}:([\w.]+)", content)) <= {__version__}, path
    for job in some(scrape_jobs(), "jobs"):
        assert job.get("metrics_path", telemetry_path) == telemetry_path
        assert {*re.findall(r"localhost:(\d+)", json.dumps(job))} <= {listens}
    dockerfile = text_of(ROOT / "deploy/docker/Dockerfile")
    context = at(pod, "securityContext")
    user, group = re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[0]
    assert (at(context, "runAsUser"), at(context, "runAsGroup")) == (int(user), int(group))
    assert re.findall(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE) == [listens]
    (default,) = re.findall(r"^CMD (.*)$", dockerfile, re.MULTILINE)
    assert json.loads(default)[0] in texts(pod, "containers", 0, "args")


def test_secrets_are_made(checker: Checker, tmp_path: Path) -> None:
    """Every Secret and key of it that an object names is one that the README's commands make."""
    readme = DOCUMENTS["deploy/kubernetes/README.md"]
    made = {
        name: set(re.findall(r"--from-(?:file|literal)=([^=\s]+)", command))
        for name, command in re.findall(r"kubectl create secret generic (\S+)(.*)", readme)
    }
    found = built_by("kustomize", checker, tmp_path, web=True)
    configuration = yaml.safe_load(text(objects.config_map(found), "data", "config.yaml"))
    keys = {Path(workspace["api_key_file"]).name for workspace in configuration["workspaces"]}
    (endpoint,) = each(one(found, "ServiceMonitor"), "spec", "endpoints")
    named = {"braze-exporter-api-keys": keys}
    for one_key in (
        at(endpoint, "basicAuth", "username"),
        at(endpoint, "basicAuth", "password"),
        at(endpoint, "tlsConfig", "ca", "secret"),
    ):
        named.setdefault(text(one_key, "name"), set()).add(text(one_key, "key"))
    for volume in each(workload(found), "spec", "template", "spec", "volumes"):
        if "secret" in volume:
            named.setdefault(text(volume, "secret", "secretName"), set())
        for source in each(volume, "projected", "sources") if "projected" in volume else ():
            items = {text(item, "key") for item in each(source, "secret", "items")}
            named.setdefault(text(source, "secret", "name"), set()).update(items)

    assert named == made


def test_the_job_is_what_rules_look_for(checker: Checker) -> None:
    """The job of a ServiceMonitor or of an example is one that each alert finds, and dashboards name none."""
    looked_for = {pattern for rules in RULES.values() for pattern in re.findall(r'job=~"([^"]+)"', rules)}
    found = objects.kustomize(checker, KUBERNETES / "overlays/production")
    label = text(one(found, "ServiceMonitor"), "spec", "jobLabel")
    jobs = {
        mapping(one(found, "Service"), "metadata", "labels")[label],
        *(text(job, "job_name") for job in scrape_jobs()),
    }

    assert len(looked_for) == 1
    assert len(jobs) == 1
    assert [job for job in jobs for pattern in looked_for if not re.fullmatch(pattern, job)] == []
    for dashboard in some(manifests.DASHBOARDS.glob("*.json"), "dashboards"):
        assert set(re.findall(r'job=~?\\"([^"\\]+)', text_of(dashboard))) <= {"$job"}, dashboard


@pytest.mark.parametrize("overlay", ["production", "minimal", "sharded"])
def test_commands_for_kustomize(checker: Checker, openssl: Path, tmp_path: Path, overlay: str) -> None:
    """The README's commands run one after the other in a checkout, and make the user's configuration of an overlay."""
    checkout = tmp_path / "checkout"
    copy_of_the_repository(checkout)
    (checkout / "password").write_text("a-password-of-this-test", encoding="utf-8")
    *_, web_config = blocks("deploy/kubernetes/README.md", "yaml")
    (checkout / "web.yml").write_text(web_config, encoding="utf-8")
    commands = "\n".join(blocks("deploy/kubernetes/README.md", "sh"))
    # The exporter on this machine misses the key file that is in the pod.
    commands = re.sub(r"^\.venv/bin/python (.+)", rf"{sys.executable} \1 || test $? = 1", commands, flags=re.MULTILINE)

    said = run_commands(checkout, commands.replace("overlays/production", f"overlays/{overlay}"), checker, openssl)

    kind = "StatefulSet" if overlay == "sharded" else "Deployment"
    assert f"kind: {kind}" in said
    mine = checkout / "deploy/kubernetes/overlays/mine"
    with (mine / "config.yaml").open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    configuration = objects.config_map(objects.kustomize(checker, mine))
    assert text(configuration, "data", "config.yaml").endswith("# mine\n")
    # A name with a hash starts a new pod, one without is what the component reload needs.
    assert (text(configuration, "metadata", "name") == "braze-exporter-config") == (overlay != "minimal")


def test_commands_for_helm(checker: Checker, openssl: Path, tmp_path: Path) -> None:
    """The commands of the chart's README run one after the other, and make the user's configuration part of it."""
    checkout = tmp_path / "checkout"
    copy_of_the_repository(checkout)
    values = "".join(blocks("deploy/helm/braze-exporter/README.md", "yaml"))
    (checkout / "my-values.yaml").write_text(values.replace("Welcome", "Mine"), encoding="utf-8")
    commands = "\n".join(blocks("deploy/helm/braze-exporter/README.md", "sh"))

    said = run_commands(checkout, commands, checker, openssl)

    assert said.count("name: Mine") == commands.count("helm upgrade") == 3
    assert re.findall(r"kind: (Deployment|StatefulSet)", said) == ["Deployment", "Deployment", "StatefulSet"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_of_documents(name: str) -> None:
    """Links within the repository lead to a file, and components, overlays and settings that are named are there."""
    folder = (ROOT / name).parent
    addresses = some(re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name]), "links")
    links = {address.partition("#")[0] for address in addresses if "://" not in address}
    named = set(re.findall(r"`((?:components|overlays)/[a-z-]+|\.\./\.\./grafana)`", DOCUMENTS[name]))

    assert {path for path in links | named - {"overlays/mine"} if not (folder / path).exists()} == set()
    if folder == KUBERNETES:
        there = {f"{path.parent.parent.name}/{path.parent.name}" for path in folder.glob("*/*/kustomization.yaml")}
        assert there | {"../../grafana"} <= named


def test_discovery_without_the_operator(checker: Checker, promtool: Path, tmp_path: Path) -> None:
    """Prometheus keeps each pod's port of metrics and nothing else, with the labels that the operator would give."""
    (job,) = yaml.safe_load(text(without_operator("prometheus"), "extraScrapeConfigs"))
    service = one(objects.kustomize(checker, KUBERNETES / "overlays/sharded"), "Service")
    name, port = text(service, "metadata", "name"), text(service, "spec", "ports", 0, "name")
    ports = [("pod-0", name, port), ("pod-1", name, port), ("pod-2", "another", port), ("pod-3", name, "another")]
    # What is discovered in a cluster is written down here.
    (discovery,) = job.pop("kubernetes_sd_configs")
    job["static_configs"] = [
        {
            "targets": [f"{pod}:10105"],
            "labels": {
                "__meta_kubernetes_namespace": text(service, "metadata", "namespace"),
                "__meta_kubernetes_pod_name": pod,
                "__meta_kubernetes_service_name": of_service,
                "__meta_kubernetes_endpointslice_port_name": of_port,
            },
        }
        for pod, of_service, of_port in ports
    ]
    file = tmp_path / "prometheus.yml"
    file.write_text(json.dumps({"scrape_configs": [job]}), encoding="utf-8")

    targets = json.loads(run(promtool, "check", "service-discovery", "--timeout=1s", file, job["job_name"]))

    assert discovery == {"role": "endpointslice", "namespaces": {"names": [objects.NAMESPACE]}}
    kept = [target["labels"] for target in targets if target["labels"]]
    assert {(labels["instance"], labels["job"], labels["namespace"], labels["pod"]) for labels in kept} == {
        (f"{pod}:10105", "braze-exporter", objects.NAMESPACE, pod) for pod in ("pod-0", "pod-1")
    }


def test_prometheus_and_grafana_without_the_operator() -> None:
    """The rules' ConfigMap is the one that the README makes, and Grafana finds the dashboards and that Prometheus."""
    readme = DOCUMENTS["deploy/kubernetes/README.md"]
    server, grafana = without_operator("prometheus")["server"], without_operator("grafana")
    (mount,) = each(server, "extraConfigmapMounts")
    files = texts(without_operator("prometheus"), "serverFiles", "prometheus.yml", "rule_files")
    labels = yaml.safe_load(text_of(ROOT / "grafana/kustomization.yaml"))["generatorOptions"]["labels"]
    sidecar = mapping(grafana, "sidecar", "dashboards")

    assert (
        f"kubectl create configmap {mount['configMap']} --namespace monitoring --from-file=deploy/prometheus/rules"
        in readme
    )
    assert f"{mount['mountPath']}/*.yml" in files
    assert at(server, "retention") == "35d"
    assert labels[sidecar["label"]] == sidecar["labelValue"]
    (source,) = each(grafana, "datasources", "datasources.yaml", "datasources")
    assert source["url"] == "http://prometheus-server"
    assert "helm upgrade --install prometheus oci://" in readme


def built_by(tool: str, checker: Checker, folder: Path, *, web: bool) -> list[Object]:
    """Return what production is, with TLS and users or without."""
    if tool == "helm":
        flags = [f"--values={CHART / 'values-production.yaml'}"]
        return objects.helm(checker, *flags, *(["--set=web.enabled=true"] if web else []))
    components = [KUBERNETES / "components/web-config"] if web else []
    return objects.kustomize(
        checker, objects.write_kustomization(folder / "production", [KUBERNETES / "overlays/production"], components)
    )


def scrape_jobs() -> list[Object]:
    """Return the scrape configurations of this exporter in documents and examples."""
    (readme,) = re.findall(
        r"^```yaml\n(scrape_configs:\n.*?)^```", text_of(ROOT / "README.md"), re.MULTILINE | re.DOTALL
    )
    return [
        *yaml.safe_load(readme)["scrape_configs"],
        *yaml.safe_load(text_of(ROOT / "deploy/prometheus/prometheus.yml"))["scrape_configs"],
        *yaml.safe_load(text(without_operator("prometheus"), "extraScrapeConfigs")),
    ]


def without_operator(chart: str) -> dict[str, object]:
    """Return the values for another project's chart."""
    found: dict[str, object] = yaml.safe_load(text_of(KUBERNETES / f"without-operator/{chart}.yaml"))
    return found


def defaults_of_code() -> tuple[str, str]:
    """Return the port and the path of metrics that the exporter has by default."""
    said = run(sys.executable, "-m", "exporter", "--help")
    (port,) = re.findall(r"default:\s+:(\d+),\s+all", said)
    (path,) = re.findall(r"path\s+of\s+the\s+metrics \(default: (\S+)\)", said)
    return port, path


def blocks(document: str, language: str) -> list[str]:
    """Return the code blocks of a document in a language, of which it has some."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENTS[document], re.MULTILINE | re.DOTALL)
    return some(found, f"code blocks in {document}")


def copy_of_the_repository(folder: Path) -> None:
    """Copy what the documents' commands read and write."""
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    shutil.copytree(ROOT / "grafana/dashboards", folder / "grafana/dashboards")
    shutil.copy(ROOT / "grafana/kustomization.yaml", folder / "grafana")
    (folder / "exporter").symlink_to(ROOT / "exporter")


def run_commands(checkout: Path, commands: str, checker: Checker, openssl: Path) -> str:
    """Run a document's commands one after the other, as far as they need no cluster, and return what they say.

    The user has an API key in the place that README names. Raises AssertionError with the errors where one fails.
    """
    home, programs = checkout.with_name("home"), checkout.with_name("bin")
    (home / "braze").mkdir(parents=True)
    (home / "braze/api-key").write_text("a-key-of-this-test\n", encoding="utf-8")
    programs.mkdir()
    for program, script in {"kubectl": KUBECTL, "helm": HELM}.items():
        (programs / program).write_text(script.format(**{program: checker(program)}), encoding="utf-8")
        (programs / program).chmod(0o755)
    (programs / "openssl").symlink_to(openssl)
    result = subprocess.run(
        ["/bin/sh", "-eu", "-c", commands],
        cwd=checkout,
        env={**os.environ, "HOME": str(home), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    # What openssl says of its progress, and the one complaint that a configuration for a pod gets on this machine.
    errors = [line for line in result.stderr.splitlines() if not set(line) <= {*".+*-"}]
    assert [line for line in errors if "/run/secrets/braze/main" not in line and "api_key_file" not in line] == []
    return result.stdout


def text_of(path: Path) -> str:
    """Return what a file says."""
    return path.read_text(encoding="utf-8")


def run(*command: str | Path) -> str:
    """Run a command in the repository and return what it says; raises where it fails."""
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "COLUMNS": "500"}, capture_output=True, text=True, check=True
    )
    return result.stdout
