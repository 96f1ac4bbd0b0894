"""Tests of exporter.config: `data/config/*.bad.yaml` hold the messages they lead to, `*.good.yaml` the warnings."""

import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exporter import config, shards
from exporter.config import Campaign, Config, ConfigError, Poll, Workspace
from exporter.shards import Shard
from exporter.system.files import Budget, Files
from tests.support.system import Volume

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "config"
UUID = "3bbc4555-8fa0-4c9b-a5c0-4505edf3e064"
ENVIRON = {"BRAZE_API_KEY": "0123-4567", "BLANK_KEY": "0123 4567", "EMPTY_KEY": " \n"}
KEY_FILES = {"good.key": "0123-4567\n", "empty.key": "\n", "umlaut.key": "schlüssel\n"}
MARKER = "hunter2"


def load(folder: Path, text: str | bytes, environ: Mapping[str, str] = ENVIRON) -> Config:
    """Load `text` as a file in `folder`, which gets the key files that it may name."""
    for name, key in KEY_FILES.items():
        (folder / name).write_text(key, encoding="utf-8")
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return config.load(path, environ)


def problems(folder: Path, text: str | bytes) -> list[str]:
    """Return what is wrong with `text` as the configuration file `config.yaml`; raise where nothing is."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return [problem.replace(f"{folder}/", "").replace(str(folder), ".") for problem in caught.value.problems]


def workspace(*, api_key_file: Path | None = None, api_key_env: str | None = None, campaigns: int = 1) -> Workspace:
    """Return a workspace as code builds it."""
    return Workspace(
        name="main",
        endpoint="http://127.0.0.1:8080",
        api_key_file=api_key_file,
        api_key_env=api_key_env,
        campaigns=tuple(Campaign(id=f"00000000-0000-4000-8000-{number:012}") for number in range(campaigns)),
    )


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.bad.yaml")))
def test_bad_file(name: str, tmp_path: Path) -> None:
    """Every bad file leads to exactly the messages that stand in it, sorted by line."""
    content = (DATA / name).read_bytes()
    expected = re.findall(r"^# expect: (.*)$", content.decode(errors="replace"), re.MULTILINE)

    assert expected
    assert expected == [problem.replace("config.yaml", name, 1) for problem in problems(tmp_path, content)]
    assert MARKER not in "".join(expected)


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.good.yaml")))
def test_good_file(name: str, tmp_path: Path) -> None:
    """Every good file loads with exactly the warnings that stand in it."""
    content = (DATA / name).read_text(encoding="utf-8")
    loaded = load(tmp_path, content)

    assert re.findall(r"^# warns: (.*)$", content, re.MULTILINE) == list(config.warnings(loaded))


def test_warnings_about_the_text_stay_with_a_part(tmp_path: Path) -> None:
    """What is said of the file's text is said of a shard's part of it, too."""
    loaded = load(tmp_path, (DATA / "name_cut_at_a_comment.good.yaml").read_bytes())

    assert config.warnings(shards.part(loaded, Shard(0, 2))) == config.warnings(loaded) != ()


def test_defaults(tmp_path: Path) -> None:
    """What the file leaves out has its default, and ids and instances are read in any case."""
    loaded = load(tmp_path, (DATA / "minimal.good.yaml").read_bytes())
    (main,) = loaded.workspaces

    assert loaded.poll == Poll(
        interval=300.0, timeout=30.0, stale_after=1200.0, days=3, previous_day=True, concurrency=32
    )
    assert (loaded.limits.series, loaded.limits.series_per_campaign) == (2_000_000, 10_000)
    assert main.endpoint == "https://rest.iad-01.braze.com"
    assert (main.api_key_file, main.api_key_env) == (None, "BRAZE_API_KEY")
    assert (main.timezone, main.requests_per_minute) == (ZoneInfo("UTC"), 10_000)
    assert main.campaigns == (Campaign(id=UUID, name=UUID),)


def test_merge_keys(tmp_path: Path) -> None:
    """A merged mapping fills in what is not there, the first of several first, and paths start at the file's folder."""
    loaded = load(tmp_path, (DATA / "merge_keys.good.yaml").read_bytes())

    assert [(found.name, found.timezone.key, found.endpoint) for found in loaded.workspaces] == [
        ("first", "America/New_York", "https://rest.iad-01.braze.com"),
        ("second", "Asia/Tokyo", "https://rest.iad-01.braze.com"),
        ("third", "Europe/Berlin", "https://rest.fra-01.braze.eu"),
    ]
    assert {(found.api_key_file, found.campaigns) for found in loaded.workspaces} == {
        (tmp_path / "good.key", (Campaign(id=UUID, name="Welcome"),))
    }


def test_plain_text(tmp_path: Path) -> None:
    """Plain `no`, `1:30`, `2024-01-01` and `1_000` are the text that a person sees."""
    (found,) = load(tmp_path, (DATA / "text_that_yaml_1_1_misreads.good.yaml").read_bytes()).workspaces

    assert [found.name, *(campaign.name for campaign in found.campaigns)] == ["no", "1:30", "2024-01-01", "1_000"]


def test_loopback_endpoints(tmp_path: Path) -> None:
    """Plain HTTP is allowed on this machine, and an endpoint is kept in lower case without its slash."""
    loaded = load(tmp_path, (DATA / "loopback.good.yaml").read_bytes())

    assert [found.endpoint for found in loaded.workspaces] == [
        "http://localhost:8080",
        "http://127.5.0.1",
        "http://[::1]:8080",
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("1d", 86400), ("1500ms", 1.5), ("1h1m1s1ms", 3661.001)],
)
def test_duration(text: str, seconds: float, tmp_path: Path) -> None:
    """A duration is Prometheus': units from large to small, each once."""
    minimal = (DATA / "minimal.good.yaml").read_text(encoding="utf-8")

    assert load(tmp_path, f"poll: {{interval: {text}, stale_after: 1w}}\n{minimal}").poll.interval == seconds


@pytest.mark.parametrize("text", ["", "0", "5", "m", "1m1h", "1m1m", "5 m", "+5m", "5M", "1.5h", "\u0665m", "5m\\n"])
def test_no_duration(text: str, tmp_path: Path) -> None:
    """Anything else is none."""
    (problem,) = problems(tmp_path, f'poll:\n  interval: "{text}"\n{(DATA / "minimal.good.yaml").read_text()}')

    assert problem.startswith("config.yaml:2: poll.interval: expected a duration from 1s to 24h ")


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there, and one that is a folder, are told with the path and without a line."""
    messages = []
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            config.load(path, {})
        messages.append(str(caught.value))

    assert messages == [
        f"{tmp_path}/missing.yaml: expected a file that can be read, got 'No such file or directory'",
        f"{tmp_path}: expected a file that can be read, got 'Is a directory'",
    ]


def test_a_hung_file(tmp_path: Path, volume: Volume) -> None:
    """A file on a volume that does not answer is told after the timeout."""
    volume.hung = {tmp_path / "config.yaml"}

    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path / "config.yaml", {}, budget=Budget(0.05, files=Files(volume.open)))

    assert str(caught.value) == (
        f"{tmp_path}/config.yaml: expected a file that can be read, "
        "got 'the file system does not respond within 0.05 s'"
    )


def test_hung_keys(tmp_path: Path, volume: Volume) -> None:
    """Any number of key files on a volume that does not answer take one timeout together, and each is told."""
    workspaces = [
        f"  - {{name: {number}x, instance: US-01, api_key_file: key-{number}, campaigns: [{{id: {UUID}}}]}}\n"
        for number in range(20)
    ]
    file = tmp_path / "config.yaml"
    file.write_text(f"workspaces:\n{''.join(workspaces)}", encoding="utf-8")
    volume.hung = {tmp_path / f"key-{number}" for number in range(20)}

    with pytest.raises(ConfigError) as caught:
        config.load(file, {}, budget=Budget(3, files=Files(volume.open)))

    assert [problem.partition(": ")[2] for problem in caught.value.problems] == [
        f"workspaces[{number}].api_key_file: expected a file with an API key, got one that cannot be read "
        "(the file system does not respond within 3 s)"
        for number in range(20)
    ]
    assert volume.opened == [file, tmp_path / "key-0"]


def test_a_hung_key_in_use(tmp_path: Path, volume: Volume) -> None:
    """A key that cannot be read again in time is an error, which does not say where it is."""
    volume.hung = {tmp_path / MARKER}
    budget = Budget(0.05, files=Files(volume.open))

    with pytest.raises(ConfigError, match=r"does not respond within 0\.05 s") as caught:
        config.read_api_key(workspace(api_key_file=tmp_path / MARKER), {}, read=budget.read)

    assert MARKER not in str(caught.value)


URL_PLACES = [
    *(f"poll: {{{name}: URL}}" for name in config.Poll.model_fields),
    *(f"limits: {{{name}: URL}}" for name in config.Limits.model_fields),
    *(f"workspaces: [{{{name}: URL}}]" for name in config.Workspace.model_fields if name != "name"),
    *(f"workspaces: [{{campaigns: [{{{name}: URL}}]}}]" for name in config.Campaign.model_fields),
    *(f"{name}: URL" for name in config.Config.model_fields),
    "workspaces: [{name: URL}, {name: URL}]",
    "poll: [URL]",
    "poll: {URL: 1}",
    "poll: {interval: {URL: 1}}",
    "poll: {URL: 1, URL: 2}",
    "URL: [1]",
    "? [URL]\n: 1",
    "proxy: URL",
    "poll: {interval: !<URL> 1m}",
    "poll: {<<: URL}",
    "- URL",
    "URL",
    "poll: {interval: 'URL",
]


@pytest.mark.parametrize("place", URL_PLACES)
@pytest.mark.parametrize(
    "url", [f"https://user:{MARKER}@rest.iad-01.braze.com", f"postgres://{MARKER}@x/", f"{'x' * 60}://u:{MARKER}@h"]
)
def test_a_password_in_a_url_is_not_shown(place: str, url: str, tmp_path: Path) -> None:
    """Whatever the key is called under which a URL with a user or password stands, no error repeats that part."""
    text = place.replace("URL", url if "<URL" in place or "'URL" in place else f'"{url}"')

    assert MARKER not in "\n".join(problems(tmp_path, text))


def test_aliases_cost_nothing(tmp_path: Path) -> None:
    """A document whose aliases multiply to 10 ** 18 values is an error at once."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 18)]

    assert len(problems(tmp_path, "\n".join(levels))) == len(levels) + 1


def test_example_has_every_setting() -> None:
    """The example names every key once, with its default and the explanation that the models give."""
    settings = {setting.path: setting for setting in config.settings()}
    parents: list[tuple[int, str]] = []
    found = []
    for line in (ROOT / "config.example.yaml").read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"(#? *)(- )?(\w+):(?: (.+?)  # (.+))?", line)
        if match is None:
            continue
        lead, item, name, value, description = match.groups()
        indent = len(lead) + len(item or "")
        parents = [(depth, path) for depth, path in parents if depth < indent]
        prefix = parents[-1][1] if parents else ""
        if value is None:
            parents.append((indent, f"{prefix}{name}{'[]' if name in {'workspaces', 'campaigns'} else ''}."))
        else:
            path = f"{prefix}{name}"
            default = settings[path].default
            found.append((path, default if default in {"required", ""} else value, description))

    assert found == [(setting.path, setting.default, setting.description) for setting in config.settings()]


def test_example_loads(tmp_path: Path) -> None:
    """The example is valid as it stands once its key file exists, and asks for nothing unusual."""
    text = (ROOT / "config.example.yaml").read_text(encoding="utf-8")
    loaded = load(tmp_path, text.replace("/run/secrets/braze-api-key", "good.key"))

    assert config.warnings(loaded) == ()
    assert (loaded.poll, loaded.limits) == (Poll(), config.Limits())


EXAMPLES = (
    "config.example.yaml",
    "README.md",
    "deploy/systemd/config.yaml",
    "deploy/compose/config.yaml",
    "deploy/kubernetes/base/config.yaml",
    "deploy/helm/braze-exporter/README.md",
    "deploy/helm/braze-exporter/values.yaml",
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_quote_names(name: str) -> None:
    """Who copies an example and writes another name into it cannot lose what comes after a colon or ` #`."""
    names = re.findall(r"\bid: \S+.*\n +name: (.)", (ROOT / name).read_text(encoding="utf-8"))

    assert {*names} == {'"'}


def test_read_api_key(tmp_path: Path) -> None:
    """A key is read as it stands at the time, without white space around it."""
    path = tmp_path / "key"
    path.write_text(" \n0123-4567\r\n")
    before = config.read_api_key(workspace(api_key_file=path), {})
    path.write_text("89ab-cdef")

    assert before == "0123-4567"
    assert config.read_api_key(workspace(api_key_file=path), {}) == "89ab-cdef"
    assert config.read_api_key(workspace(api_key_env="KEY"), {"KEY": "0123-4567 "}) == "0123-4567"


@pytest.mark.parametrize(
    ("key", "got"),
    [
        (None, "one that is not set"),
        ("  ", "an empty one"),
        (f"{MARKER} {MARKER}", "another content, which is not shown"),
        (MARKER * 1000, "another content, which is not shown"),
    ],
)
def test_unusable_api_key(key: str | None, got: str) -> None:
    """A key that cannot be used is an error that shows neither it nor where it was looked for."""
    with pytest.raises(ConfigError) as caught:
        config.read_api_key(workspace(api_key_env=f"{MARKER}_KEY"), {} if key is None else {f"{MARKER}_KEY": key})

    assert str(caught.value).startswith("workspace 'main': expected an environment variable with an API key")
    assert str(caught.value).endswith(f", got {got}")
    assert MARKER not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (f'"{MARKER}"', "got one in quotes; leave the quotes out"),
        (f"'{MARKER}'", "got one in quotes; leave the quotes out"),
        (f"BRAZE_API_KEY={MARKER}", "got one that begins with `NAME=`; write the key alone"),
        (f'export KEY="{MARKER}"', "got one that begins with `NAME=`; write the key alone"),
        (f"Bearer {MARKER}", "got one that begins with `Bearer `; write the key alone"),
        (f"\ufeff{MARKER}", "got a byte order mark; save it as ASCII, without the mark"),
        (f"{MARKER}\n{MARKER}\n", "got several lines; write the key alone, in one line"),
    ],
)
def test_a_key_with_more_than_itself(key: str, said: str, tmp_path: Path) -> None:
    """What was stored beside a key is said, in a file and in a variable, and nothing of the key."""
    for setting in ("api_key_file: key.txt", "api_key_env: KEY"):
        (tmp_path / "key.txt").write_text(key, encoding="utf-8")
        text = f"workspaces: [{{name: a, instance: US-01, {setting}, campaigns: [{{id: {UUID}}}]}}]"
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, text, {"KEY": key})

        (problem,) = caught.value.problems
        assert problem.endswith(f" with an API key and nothing else, {said}")
        assert MARKER not in problem


def test_a_key_that_ends_with_an_equals_sign() -> None:
    """Keys of an alphabet with `=` at the end are keys."""
    assert config.read_api_key(workspace(api_key_env="KEY"), {"KEY": "MDEyMw=="}) == "MDEyMw=="


def test_many_bare_ids_are_one_problem(tmp_path: Path) -> None:
    """A list of ids without `id:` is one error, however long it is."""
    ids = "".join(f"      - 00000000-0000-4000-8000-{number:012}\n" for number in range(500))
    text = f"workspaces:\n  - name: a\n    instance: US-01\n    api_key_env: BRAZE_API_KEY\n    campaigns:\n{ids}"

    (problem,) = problems(tmp_path, text)
    assert problem.endswith(
        "got '00000000-0000-4000-8000-000000000000', and 499 more like it; write - id: before each id"
    )


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("::1", True),
        ("[::1]", True),
        ("128.0.0.1", False),
        ("::2", False),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
        ("", False),
    ],
)
def test_is_loopback(host: str, *, expected: bool) -> None:
    """Only localhost, 127.0.0.0/8 and ::1 are this machine."""
    assert expected == config.is_loopback(host)


def test_campaigns_that_just_fit() -> None:
    """As many campaigns as the requests of an interval are no reason to warn; one more is."""
    fitting, over = (
        Config(poll=Poll(interval=1.2), workspaces=(workspace(api_key_env="KEY", campaigns=number),))
        for number in (200, 201)
    )

    assert config.warnings(fitting) == ()
    assert len(config.warnings(over)) == 1


def test_models_are_strict() -> None:
    """Code cannot change a model, nor build one with a value of another type."""
    with pytest.raises(ValidationError):
        Poll.model_validate({"interval": "5m"})
    with pytest.raises(ValidationError, match="frozen"):
        Poll().days = 4  # type: ignore[misc]


secret_names = st.sampled_from(
    ["api_key_file", "api_key_env", "api_key", "API-Key", "passwd", "token", "Secret", "credentials", "Authorization"]
)
plain_names = st.sampled_from(
    ["poll", "limits", "workspaces", "campaigns", "interval", "days", "series", "name", "id", "endpoint", "other"]
)
scalars = st.sampled_from([None, True, 3, 1.5, "5m", "", "UTC", UUID, "https://rest.iad-01.braze.com"])
markers = st.sampled_from([MARKER, f"https://{MARKER}@x", f"{MARKER} {MARKER}", f"5m{MARKER}", f"{MARKER}\n"])
secrets = st.recursive(
    markers, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(markers | secret_names, inner, max_size=3)
)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(plain_names, inner, max_size=4)
        | st.builds(
            lambda plain, secret: plain | secret,
            st.dictionaries(plain_names, inner, max_size=4),
            st.dictionaries(secret_names, secrets, min_size=1, max_size=2),
        )
    ),
    max_leaves=20,
)


@st.composite
def broken_files(draw: st.DrawFn) -> str:
    """Draw a file with the marker below keys named like secrets, perhaps repeated by aliases, perhaps damaged."""
    workspace_mapping = draw(st.dictionaries(plain_names, documents, max_size=4)) | {
        draw(secret_names): draw(secrets) for _ in range(draw(st.integers(0, 2)))
    }
    value = draw(documents | st.just({"workspaces": [workspace_mapping], "poll": draw(documents)}))
    text = yaml.safe_dump(value, default_flow_style=draw(st.booleans()))
    if draw(st.booleans()):
        text = f"{text}\npassword: &a {MARKER}\ninterval: *a\npoll: {{interval: *a, days: *a}}\n"
    ends = [match.start() for match in re.finditer(r"$", text, re.MULTILINE)]  # elsewhere it may rename a key
    at = draw(st.sampled_from(ends))
    damage = draw(st.sampled_from(["", " '", ' "', " ]", "\t", " !x", " &a", " *b", " |", ": ", "\x00", "\n---"]))
    return text[:at] + damage + text[at:]


@given(text=broken_files())
def test_secrets_are_never_shown(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever else is wrong, no value below a key named like a secret is in the error or in what it brings along."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path_factory.getbasetemp(), text)

    assert caught.value.problems
    assert MARKER not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert caught.value.__context__ is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A key file that is a named pipe without a writer counts as empty, and holds nothing up."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ConfigError, match="an empty one"):
        config.read_api_key(workspace(api_key_file=tmp_path / "pipe"), {})
