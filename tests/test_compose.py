"""The composition: what its file says, and its services run with their own commands and files in one network."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml

from exporter import __version__
from exporter.flags import SIMULATED_KEY
from tests.support.containers import Container, Image, build, running_container
from tests.support.exporters import config_check
from tests.support.objects import at, each
from tests.support.objects import text as text_at
from tests.support.servers import ROOT, UNPACKED, eventually, running

FOLDER = ROOT / "deploy/compose"
COMPOSITION = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSITION["services"]
README = (FOLDER / "README.md").read_text(encoding="utf-8")
OURS = {"braze", "braze-exporter"}


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_hardened_and_watched(name: str) -> None:
    """It writes to its volumes only, has no rights and gets none, starts again, and says whether it is healthy."""
    service = SERVICES[name]

    assert (service["read_only"], service["cap_drop"], service["security_opt"], service["restart"]) == (
        True,
        ["ALL"],
        ["no-new-privileges:true"],
        "unless-stopped",
    )
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(":ro" in mount for mount in service.get("volumes", []) if mount.startswith("."))


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    """An image from elsewhere has its full version and a digest; the exporter's is that of this version, built here."""
    service = SERVICES[name]

    if name in OURS:
        assert service["image"] == f"ghcr.io/braze-exporter/braze-exporter:{__version__}"
        assert service["pull_policy"] == "build"
        assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    else:
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", service["image"])


def test_ports_are_on_loopback_only() -> None:
    """Every published port is one of 127.0.0.1, and the README names exactly these."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert [port for port in ports if not re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port)] == []
    assert {port.rpartition(":")[0] for port in ports} == set(re.findall(r"<http://([^>]+)>", README))


def test_every_file_is_there() -> None:
    """What is mounted or handed over as a secret exists, and all that names a service names one."""
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    sources = [source for source, *_ in mounts if source.startswith(".")]
    files = [*sources, *(secret["file"] for secret in COMPOSITION["secrets"].values())]
    volumes = {source for source, *_ in mounts if not source.startswith(".")}
    names = {*SERVICES, *SERVICES["braze"]["networks"]["default"]["aliases"]}
    named = re.findall(r'(?:"|http://)([a-z-]+):\d+', "".join(text("prometheus.yml", "datasource.yaml")))

    assert [file for file in files if not (FOLDER / file).exists()] == []
    assert volumes == set(COMPOSITION["volumes"])
    assert {dependency for service in SERVICES.values() for dependency in service.get("depends_on", {})} <= set(
        SERVICES
    )
    assert set(named) == {"braze-exporter", "alertmanager", "prometheus"} <= names
    assert (
        "".join(text("compose.yaml", "README.md")).count("docker compose --file deploy/compose/compose.yaml up --wait")
        == 2
    )


def test_grafana_shows_and_asks_for_nothing() -> None:
    """Whoever comes is a viewer, there is no user to log in as, and the home dashboard is one that is mounted."""
    settings = SERVICES["grafana"]["environment"]
    mounted = dict(mount.split(":")[1::-1] for mount in SERVICES["grafana"]["volumes"])
    home = Path(settings["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    (provider,) = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/braze.yaml").read_text("utf-8"))["providers"]

    assert settings["GF_AUTH_ANONYMOUS_ENABLED"] == settings["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert settings["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert settings["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert provider["options"]["path"] == str(home.parent)
    assert (FOLDER / mounted[str(home.parent)] / home.name).is_file()


def test_files_differ_from_the_shipped_ones_in_addresses_only() -> None:
    """Prometheus and Grafana's data source are set as in the files to copy, but for names and the interval."""
    shipped_text = (ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8")
    shipped = yaml.safe_load(shipped_text)
    shipped["global"]["scrape_interval"] = "15s"
    shipped["rule_files"].remove("overrides/*.yml")
    addresses = {"localhost:10105": "braze-exporter:10105", "localhost:9093": "alertmanager:9093"}
    for address, name in addresses.items():
        shipped = json.loads(json.dumps(shipped).replace(address, name))
    source = yaml.safe_load((ROOT / "grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8"))
    source["datasources"][0]["url"] = "http://prometheus:9090"
    source["datasources"][0]["jsonData"]["timeInterval"] = "15s"

    assert [shipped, source] == list(map(yaml.safe_load, text("prometheus.yml", "datasource.yaml")))
    (retention,) = re.findall(r"--storage\.tsdb\.retention\.time=\S+", shipped_text)
    assert retention in SERVICES["prometheus"]["command"]


def test_the_only_key_is_the_simulated_one() -> None:
    """No file has another key, and the configuration passes the check with it."""
    (secret,) = COMPOSITION["secrets"].values()

    assert text(secret["file"]) == [f"{SIMULATED_KEY}\n"]
    assert re.findall("(?i)password|token|bearer", "".join(text("compose.yaml", "config.yaml", "prometheus.yml"))) == []


@pytest.mark.server
def test_the_configuration_is_right(tmp_path: Path) -> None:
    """It passes the check, when the key's path is that of a file that is there."""
    file = tmp_path / "config.yaml"
    (configuration,) = text("config.yaml")
    (target,) = {secret["target"] for name in OURS for secret in SERVICES[name]["secrets"]}
    assert f"api_key_file: {target}\n" in configuration
    file.write_text(configuration.replace(target, str(FOLDER / "simulated-api-key")), encoding="utf-8")

    result = config_check(file)

    assert (result.returncode, result.stderr) == (0, "")


@dataclass(frozen=True, slots=True)
class Composition:
    """The running services in one network of their own; Prometheus and Alertmanager are those of this machine."""

    containers: Mapping[str, Container]
    checker: Callable[[str], Path]

    def healthy(self, name: str) -> bool:
        """Run the health check of a service, in its place."""
        _, program, *arguments = SERVICES[name]["healthcheck"]["test"]
        if name in self.containers:
            return self.containers[name].execute(program, *arguments).returncode == 0
        return self.containers["braze"].execute(self.checker(program), *arguments, inside=False).returncode == 0

    def ask(self, url: str) -> object:
        """Get the `data` of an answer of Prometheus' or Alertmanager's API; nothing where there is no answer."""
        asking = (
            "import sys, urllib.request; opener = urllib.request.build_opener(urllib.request.ProxyHandler({}));"
            " sys.stdout.write(opener.open(sys.argv[1], timeout=60).read().decode())"
        )
        answer = self.containers["braze"].execute(sys.executable, "-c", asking, url, inside=False)
        return json.loads(answer.stdout)["data"] if answer.returncode == 0 else {}


@pytest.fixture
def composition(tmp_path: Path, checker: Callable[[str], Path]) -> Iterator[Composition]:
    """All services but Grafana, started with their commands and files, under their names and on their ports."""
    image = build()
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {' '.join(SERVICES)}\n", encoding="utf-8")
    with ExitStack() as stack:
        braze = stack.enter_context(container(image, "braze", tmp_path))
        eventually(lambda: "      - id:" in braze.program.output(), what="a simulated Braze")
        exporter = stack.enter_context(container(image, "braze-exporter", tmp_path, network_of=braze))
        for name, program in {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}.items():
            joining = ["nsenter", f"--target={braze.pid}", "--net", "unshare", "--mount"]
            naming: list[str | Path] = ["sh", "-euc", _NAMING, "sh", hosts, UNPACKED.parent / "share"]
            command = [*joining, *naming, checker(program), *mapped(name, tmp_path)]
            stack.enter_context(running(command, log=tmp_path / f"{name}.log"))
        yield Composition({"braze": braze, "braze-exporter": exporter}, checker)


@pytest.mark.server
def test_it_comes_up(composition: Composition) -> None:
    """Each health check succeeds; Prometheus has the exporter as its target, the rules and the Alertmanager."""
    for name in SERVICES.keys() - {"grafana"}:
        eventually(partial(composition.healthy, name), what=f"{name}, healthy")

    targets = eventually(lambda: scraped(composition), what="a scraped exporter")
    assert targets == [("http://braze-exporter:10105/metrics", "up")]
    sent = composition.ask("http://127.0.0.1:9090/api/v1/query?query=count(braze_campaign_up==1)")
    assert at(sent, "result", 0, "value", 1) == str(text("config.yaml")[0].count("- id:"))
    groups = each(composition.ask("http://127.0.0.1:9090/api/v1/rules"), "groups")
    files = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    names = [group["name"] for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    assert sorted(text_at(group, "name") for group in groups) == sorted(names)
    alertmanagers = composition.ask("http://127.0.0.1:9090/api/v1/alertmanagers")
    assert at(alertmanagers, "activeAlertmanagers", 0, "url") == "http://alertmanager:9093/api/v2/alerts"


# Runs what follows $2 under the names in the file $1, with the templates in $2, where Debian's packages are unpacked.
_NAMING = """
mount --bind "$1" /etc/hosts
[ ! -d "$2" ] || mount -t overlay overlay -o "lowerdir=$2:/usr/share" /usr/share
shift 2
exec "$@"
"""


def container(
    image: Image, name: str, folder: Path, network_of: Container | None = None
) -> AbstractContextManager[Container]:
    """Start a service of ours as the file says."""
    service = SERVICES[name]
    mounts = {
        FOLDER / source: target for source, target, _ in (mount.split(":") for mount in service.get("volumes", []))
    }
    for secret in service["secrets"]:
        mounts[FOLDER / COMPOSITION["secrets"][secret["source"]]["file"]] = secret["target"]
    return running_container(
        image, *service["command"], log=folder / f"{name}.log", mounts=mounts, network_of=network_of
    )


def mapped(name: str, folder: Path) -> list[str]:
    """Return the arguments of a service with its mounts in a folder of this machine, where they are copied to."""
    arguments = " ".join(SERVICES[name]["command"])
    for source, target in (mount.split(":")[:2] for mount in SERVICES[name]["volumes"]):
        here = folder / name / target.lstrip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        if (FOLDER / source).is_dir():
            shutil.copytree(FOLDER / source, here)
        elif source.startswith("."):
            shutil.copy(FOLDER / source, here)
    return re.sub(r"=(?=/)", f"={folder / name}", arguments).split()


def scraped(composition: Composition) -> list[tuple[object, object]]:
    """Return Prometheus' targets by their URL and health, once all have been scraped."""
    data = composition.ask("http://127.0.0.1:9090/api/v1/targets")
    targets = each(data, "activeTargets") if data else []
    found = [(target["scrapeUrl"], target["health"]) for target in targets]
    return [] if any(health == "unknown" for _, health in found) else found


def text(*names: str) -> list[str]:
    """Return what files of the folder say."""
    return [(FOLDER / name).read_text(encoding="utf-8") for name in names]
