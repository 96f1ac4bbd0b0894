"""Tests of exporter.web.pages: states in, a page for people out, and the configuration as it could be loaded again."""

import base64
import hashlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import __version__, config
from exporter.braze.counters import ApiStatistics
from exporter.braze.data_series import Day, Variation
from exporter.braze.errors import Reason
from exporter.config import Campaign, Config, Workspace
from exporter.reload import CurrentConfig
from exporter.shards import WHOLE, Shard
from exporter.state import CampaignKey, CampaignState, Failure, WorkspaceState
from exporter.web.pages import CONTENT_SECURITY_POLICY, config_page, landing_page

NOW = 1_772_600_000.0  # 2026-03-04 04:53:20 UTC
ZONE = ZoneInfo("Europe/Berlin")
KEY = "0123-secret-4567"
ID = "3bbc4555-8fa0-4c9b-a5c0-4505edf3e064"
CONFIG = Config(
    workspaces=(
        Workspace(
            name="main",
            endpoint="https://rest.iad-01.braze.com",
            api_key_env="BRAZE_API_KEY",
            campaigns=(Campaign(id=ID, name="Welcome"),),
        ),
    )
)
WORKSPACE = WorkspaceState("main", ZONE.key, 1, up=True, paused=None, apis={"data_series": ApiStatistics()})
POLLED = CampaignState(
    "main",
    "data_series",
    ZONE,
    ID,
    "Welcome",
    300,
    up=True,
    last_success=NOW - 200,
    polls=3,
    latest=Day(date(2026, 3, 4), {}, ()),
)
UNPOLLED = CampaignState("main", "data_series", ZONE, ID, "Welcome", 300)


def failed(reason: Reason, detail: str = "no") -> CampaignState:
    """Return a campaign that fails after it succeeded."""
    return replace(POLLED, up=False, failure=Failure(reason, detail))


def configuration(shard: Shard = WHOLE) -> CurrentConfig:
    """Return what is in force."""
    return CurrentConfig(CONFIG, shard=shard, read=lambda: CONFIG, apply=lambda *_: None, wall=lambda: NOW)


def page(
    *campaigns: CampaignState,
    workspaces: Sequence[WorkspaceState] = (WORKSPACE,),
    shown: Mapping[CampaignKey, int] | None = None,
    configured: CurrentConfig | None = None,
    path: str = "/metrics",
    reload_interval: int | None = None,
) -> "Reader":
    """Return the overview, read."""
    text = landing_page(
        workspaces,
        campaigns,
        shown or {},
        configured or configuration(),
        telemetry_path=path,
        now=NOW,
        reload_interval=reload_interval,
    )
    return Reader(text)


class Reader(HTMLParser):
    """Reads a page as browsers do: its tags, links, paragraphs and the texts of its rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.paragraphs: list[str] = []
        self._into: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open what begins here."""
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [str(value) for name, value in attrs if name in {"href", "src", "action", "formaction"}]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self._into = self.rows[-1]
            self._into.append("")
        if tag in {"p", "li"}:
            self._into = self.paragraphs
            self._into.append("")
        if tag in {"div", "code", "i", "br"} and self._into and self._into[-1]:
            self._into[-1] += "|"

    def handle_endtag(self, tag: str) -> None:
        """Close what ends here."""
        if tag in {"p", "li", "tbody", "thead"}:
            self._into = []

    def handle_data(self, data: str) -> None:
        """Add to what is open."""
        if self._into:
            self._into[-1] += data

    @property
    def campaigns(self) -> list[list[str]]:
        """The rows of campaigns."""
        heads = [place for place, row in enumerate(self.rows) if row[0].strip() in {"Workspace", "Polling"}]
        return [[cell.strip() for cell in row] for row in self.rows[heads[1] + 1 :]]

    @property
    def workspaces(self) -> list[list[str]]:
        """The rows of workspaces."""
        heads = [place for place, row in enumerate(self.rows) if row[0].strip() in {"Workspace", "Polling"}]
        return [[cell.strip() for cell in row] for row in self.rows[heads[0] + 1 : heads[1]]]


def test_what_it_is() -> None:
    """The page says what this is and which version, and links to the other pages and to nothing else."""
    shown = page(POLLED, path="/braze/metrics")

    pages = ["braze/metrics", "config", "-/healthy", "-/ready"]
    assert shown.links == ["data:,", *pages, "?", "?refresh=10", "?refresh=60", "?refresh=300"]
    assert f"braze-exporter <small>{__version__}</small>" in shown.text
    assert (
        "As of 2026-03-04 04:53:20 UTC. Reload this page: never, every 10 s, every minute, every 5 minutes."
        in shown.paragraphs
    )


@pytest.mark.parametrize("path", ["/metrics", "/a/b-1/c.txt"])
@pytest.mark.parametrize("address", ["https://example.com/", "https://example.com/tools/exporter/"])
def test_links_work_below_any_path(path: str, address: str) -> None:
    """Wherever a proxy serves the overview, its links lead to pages below the same path."""
    _, *links = page(POLLED, path=path).links

    assert [urljoin(address, link) for link in links] == [
        f"{address}{target}"
        for target in (path[1:], "config", "-/healthy", "-/ready", "", "?refresh=10", "?refresh=60", "?refresh=300")
    ]
    assert "/" not in {link[0] for link in links}


@pytest.mark.parametrize(
    ("campaign", "expected"),
    [
        (POLLED, ["up", f"Welcome |{ID}", "main", "", "2026-03-04 04:50:00 |3m ago", "2026-03-04", "", "", "42"]),
        (UNPOLLED, ["not polled yet", f"Welcome |{ID}", "main", "", "never", "none", "", "", "42"]),
        (
            failed(Reason.BAD_REQUEST, "Braze responded with 400: <b>no</b>"),
            [
                "failing",
                f"Welcome |{ID}",
                "main",
                "bad request Braze responded with 400: <b>no</b>",
                "2026-03-04 04:50:00 |3m ago",
                "2026-03-04",
                "",
                "",
                "42",
            ],
        ),
        (
            replace(POLLED, up=False, latest=None, last_success=NOW - 90_000),
            ["stale", f"Welcome |{ID}", "main", "", "2026-03-03 03:53:20 |25h ago", "none", "", "", "42"],
        ),
        (
            replace(POLLED, failures={Reason.TIMEOUT: 1200, Reason.TLS: 1}, last_success=NOW - 3 * 86_400),
            [
                "up",
                f"Welcome |{ID}",
                "main",
                "earlier polls: 1,200 timeout, 1 tls",
                "2026-03-01 04:53:20 |3d ago",
                "2026-03-04",
                "",
                "",
                "42",
            ],
        ),
        (
            replace(POLLED, latest=None),
            ["no days", f"Welcome |{ID}", "main", "", "2026-03-04 04:50:00 |3m ago", "none", "", "", "42"],
        ),
        (
            replace(POLLED, campaign_name=ID, last_success=NOW + 1),
            ["up", ID, "main", "", "2026-03-04 04:53:21 |0s ago", "2026-03-04", "", "", "42"],
        ),
    ],
)
def test_a_campaign(campaign: CampaignState, expected: list[str]) -> None:
    """A row has the state in words, name and id, how the last poll failed, the last success and its age, the day."""
    assert page(campaign, shown={campaign.key: 42}).campaigns == [expected]


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [
        (({"sent": 12_000.0, "impressions": 9.0}, {"sent": 345.0}), "12,345"),
        (({"sent": 0.0, "impressions": 9.0}, {"enrolled": 5.0}), "0"),
        (({"impressions": 1000.0}, {"impressions": 1.0}), "1,001 impressions"),
        (({"enrolled": 5.0}, {}), ""),
        ((), ""),
    ],
)
def test_the_volume_of_both_days(statistics: tuple[dict[str, float], ...], expected: str) -> None:
    """A row has the messages sent on both days, in-app messages shown, and nothing where Braze says nothing."""
    day = Day(date(2026, 3, 4), {}, tuple(Variation("email", "", "", numbers) for numbers in statistics))

    assert page(replace(POLLED, latest=day)).campaigns[0][6:8] == [expected, ""]
    assert page(replace(POLLED, previous=day)).campaigns[0][6:8] == ["", expected]


@pytest.mark.parametrize("seconds", [None, 10, 60, 300])
def test_the_page_reloads_itself_if_asked(seconds: int | None) -> None:
    """It does so without scripts as well."""
    text = page(POLLED, reload_interval=seconds).text

    refresh = "" if seconds is None else f'<meta http-equiv="refresh" content="{seconds}">'
    assert f"<noscript>{refresh}</noscript>" in text


def test_failing_campaigns_come_first() -> None:
    """Failing, no days, not polled, stale, up: in this order, and in each of them in that of the configuration."""
    states = [
        POLLED,
        replace(POLLED, up=False),
        UNPOLLED,
        failed(Reason.TIMEOUT),
        POLLED,
        failed(Reason.TLS),
        UNPOLLED,
        replace(POLLED, latest=None),
    ]
    campaigns = [replace(state, campaign_name=f"{number}") for number, state in enumerate(states)]

    assert [row[1][0] for row in page(*campaigns).campaigns] == ["3", "5", "7", "2", "6", "1", "0", "4"]


def test_the_summary_counts_and_advises() -> None:
    """Above everything else stands how many campaigns fail and why, with what to do, and it is the title, too."""
    campaigns = [POLLED] * 1234 + [failed(Reason.UNAUTHORIZED)] * 2 + [failed(Reason.NOT_FOUND)] + [UNPOLLED] * 3

    shown = page(*campaigns, replace(POLLED, up=False))

    assert shown.paragraphs[1:5] == [
        "3 of 1,241 campaigns failing: 2 unauthorized, 1 not found.",
        (
            "unauthorized: the key is wrong, or belongs to another instance. |"
            "What to do: compare instance with the address of your dashboard, make a new key."
        ),
        "not found: the address is not that of Braze's REST API. |What to do: look at endpoint.",
        "3 not polled yet, 1 stale.",
    ]
    assert "<title>3 failing - braze-exporter</title>" in shown.text


@pytest.mark.parametrize(
    ("campaigns", "kind"),
    [
        ([POLLED, POLLED], "good"),
        ([POLLED, UNPOLLED], None),
        ([POLLED, replace(POLLED, latest=None)], None),
        ([UNPOLLED, UNPOLLED], None),
    ],
)
def test_the_summary_when_nothing_fails(campaigns: list[CampaignState], kind: str | None) -> None:
    """Nothing fails, which is good news only when every campaign was polled and has days."""
    shown = page(*campaigns)

    assert shown.paragraphs[1] == "None of 2 campaigns failing."
    assert ('<p class="good">' in shown.text) == (kind == "good")
    assert "<title>braze-exporter</title>" in shown.text


def test_the_summary_names_campaigns_without_days() -> None:
    """Campaigns that are up but have no numbers are counted."""
    assert page(POLLED, replace(POLLED, latest=None)).paragraphs[2] == (
        "No days from Braze for 1 of 2 campaigns: polling works, but there are no numbers."
    )


@pytest.mark.parametrize(
    ("workspace", "state", "bad"),
    [
        (WORKSPACE, "up", False),
        (replace(WORKSPACE, up=None), "no campaigns in this shard", False),
        (replace(WORKSPACE, up=False), "down: no poll of any campaign succeeded within two intervals", True),
        (
            replace(WORKSPACE, up=False, paused=Reason.UNAUTHORIZED),
            "down: Braze rejects the API key. One request per interval checks whether it is accepted again",
            True,
        ),
        (
            replace(WORKSPACE, paused=Reason.RATE_LIMITED),
            "paused: the rate limit is used up. When the pause is over, one request checks whether Braze accepts more",
            True,
        ),
    ],
)
def test_a_workspace(workspace: WorkspaceState, state: str, bad: bool) -> None:  # noqa: FBT001 - a parameter
    """A row has the state in words; what pauses a whole workspace stands in the summary as well."""
    shown = page(POLLED, failed(Reason.TIMEOUT), workspaces=[workspace])

    assert shown.workspaces == [["main", state, "1", "1", "not known", "Europe/Berlin"]]
    assert (f"Workspace main is {state}." in shown.paragraphs) == (workspace.paused is not None)
    assert ("<tr class=bad><td>main" in shown.text) == bad


@pytest.mark.parametrize(
    ("offset", "expected", "bad"),
    [
        (None, "Europe/Berlin", False),
        (120, "Europe/Berlin||The last new day came 2 min after midnight: timezone is right.", False),
        (
            86_520,
            (
                "Europe/Berlin||The last new day came 1,442 min after midnight: "
                "timezone is right; Braze's responses end with yesterday."
            ),
            False,
        ),
        (
            -3480,
            "Europe/Berlin||The last new day came 58 min before midnight: timezone is too far west by 1 hour.",
            True,
        ),
    ],
)
def test_the_time_zone(offset: float | None, expected: str, bad: bool) -> None:  # noqa: FBT001 - a parameter
    """The row of a workspace says what the start of the last day proves of its zone, and is red where that is wrong."""
    shown = page(POLLED, workspaces=[replace(WORKSPACE, rollover_offset=offset)])

    assert shown.workspaces[0][-1] == expected
    assert ("<tr class=bad><td>main" in shown.text) == bad


@pytest.mark.parametrize(
    ("reset", "expected"),
    [
        (NOW + 40, "data_series: 49,321 of 50,000, reset at 04:54:00 UTC"),
        (NOW - 20, "data_series: 49,321 of 50,000 before the reset at 04:53:00 UTC"),
        (2.0**53, "data_series: 49,321 of 50,000, reset at an invalid time"),
        (None, "data_series: 49,321 of 50,000"),
    ],
)
def test_the_rate_limit(reset: float | None, expected: str) -> None:
    """The page shows what is left of the rate limit and when it is reset, whatever a header says of it."""
    api = ApiStatistics(rate_limit=50_000, rate_limit_remaining=49_321, rate_limit_reset=reset)

    assert page(POLLED, workspaces=[replace(WORKSPACE, apis={"data_series": api})]).workspaces[0][4] == expected


def test_a_failed_reload() -> None:
    """A configuration that was refused is told, with the time of the one in force."""
    configured = configuration()
    configured.successful = False

    assert page(POLLED, configured=configured).paragraphs[1] == (
        "The last reload of the configuration failed; the log has the reason. "
        "The configuration loaded at 2026-03-04 04:53:20 UTC is still in use."
    )


def test_a_shard() -> None:
    """One of several exporters says which it is."""
    assert page(POLLED, configured=configuration(Shard(1, 3))).paragraphs[0].endswith(" This is shard 1 of 3.")
    assert "shard" not in page(POLLED).paragraphs[0]


@pytest.mark.parametrize("table", ["workspaces", "campaigns"])
def test_a_card_names_what_a_table_does(table: str) -> None:
    """On narrow screens, where each row is a card, the style names each cell as the head of its column does."""
    (head,) = re.findall(f'<table id="{table}">\n<thead><tr>(.*?)</tr></thead>', PLAIN.text, re.DOTALL)
    labels = re.findall(rf'#{table} td:nth-child\((\d+)\)::before {{ content: "(.*)"; }}', PLAIN.text)

    heads = re.findall('<th scope="col">(.*)</th>', head)
    assert labels == [(str(place), text) for place, text in enumerate(heads, 1)]
    assert heads


PLAIN = page(POLLED, failed(Reason.TIMEOUT))


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
MARKUP = st.sampled_from(
    ["<b>", "</td>", "<img src=x>", "<!--", "<", ">", '"', "'", "&lt;", "&", " ", "\n", "{", "}", "%"]
)


@given(text=st.lists(MARKUP | TEXTS, min_size=1).map("".join))
def test_any_text_is_only_text(text: str) -> None:
    """Names, ids, details and zones of any characters add no tag and no attribute, and are there as they are."""
    state = replace(
        failed(Reason.TIMEOUT, text), workspace=text, campaign_name=text, campaign_id=f"{text}!", last_success=None
    )
    workspace = WorkspaceState(text, text, 1, up=True, paused=Reason.RATE_LIMITED, apis={})

    shown = page(state, workspaces=[workspace])

    assert shown.tags <= PLAIN.tags | {"bdi"}
    assert shown.attributes <= PLAIN.attributes
    assert len(shown.campaigns) == len(shown.workspaces) == 1
    assert shown.links == PLAIN.links
    assert squeezed(f"{text} |{text}!") == squeezed(shown.campaigns[0][1])


def squeezed(text: str) -> str:
    """Return a text without what HTML does not keep: white space, and characters that no page can hold."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f\ufffd]|[\ufdd0-\ufdef]|[^\u0000-\uffff]", "", text).replace("||", "|")


def test_the_policy_allows_this_page_and_nothing_else() -> None:
    """The Content-Security-Policy names the page's one script and one style by their hashes, and nothing unsafe."""
    (script,) = re.findall("<script>(.*?)</script>", PLAIN.text, re.DOTALL)
    (style,) = re.findall("<style>(.*?)</style>", PLAIN.text, re.DOTALL)
    policy = dict(rule.split(" ", 1) for rule in CONTENT_SECURITY_POLICY.split("; "))

    assert policy == {
        "default-src": "'none'",
        "script-src": sha256(script),
        "style-src": sha256(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert not {name for name in PLAIN.attributes if name.startswith("on") or name in {"style", "src"}}


def sha256(text: str) -> str:
    """Return how a policy names a text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_thousands_of_campaigns_stay_small() -> None:
    """A campaign takes less than 300 bytes of the page."""
    long = landing_page([WORKSPACE], [POLLED] * 5000, {}, configuration(), telemetry_path="/metrics", now=NOW)

    assert len(long) - len(page(POLLED).text) < 300 * 5000


def test_the_configuration_in_force(tmp_path: Path) -> None:
    """The page has every setting with its default, and where the key is, but no key."""
    (tmp_path / "api-key").write_text(KEY, encoding="utf-8")
    file = tmp_path / "config.yaml"
    file.write_text(
        "workspaces:\n"
        "  - {name: 'no', instance: eu-01, api_key_file: api-key, timezone: Europe/Berlin,\n"
        f"     campaigns: [{{id: {ID.upper()}, name: 1e5 💌}}]}}\n"
        "  - {name: second, endpoint: 'http://localhost:1', api_key_env: BRAZE, requests_per_minute: 60,\n"
        f"     campaigns: [{{id: {ID}}}]}}\n",
        encoding="utf-8",
    )

    assert config_page(config.load(file, {"BRAZE": KEY})) == (
        "poll:\n"
        "  interval: 5m\n"
        "  timeout: 30s\n"
        "  stale_after: 20m\n"
        "  days: 3\n"
        "  previous_day: true\n"
        "  concurrency: 32\n"
        "limits:\n"
        "  series: 2000000\n"
        "  series_per_campaign: 10000\n"
        "workspaces:\n"
        "- name: 'no'\n"
        "  endpoint: https://rest.fra-01.braze.eu\n"
        f"  api_key_file: {tmp_path}/api-key\n"
        "  timezone: Europe/Berlin\n"
        "  requests_per_minute: 10000\n"
        "  campaigns:\n"
        f"  - id: {ID}\n"
        "    name: 1e5 💌\n"
        "- name: second\n"
        "  endpoint: http://localhost:1\n"
        "  api_key_env: BRAZE\n"
        "  timezone: UTC\n"
        "  requests_per_minute: 60\n"
        "  campaigns:\n"
        f"  - id: {ID}\n"
        f"    name: {ID}\n"
    )


@given(
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
    | st.sampled_from(["1e5", "0\x85"])
)
def test_the_configuration_can_be_loaded_again(name: str) -> None:
    """What the page shows is the configuration itself, whatever a campaign is called."""
    (workspace,) = CONFIG.workspaces
    named = workspace.model_copy(update={"campaigns": (Campaign(id=ID, name=name),)})
    shown = CONFIG.model_copy(update={"workspaces": (named,)})

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        file.write_bytes(config_page(shown).encode())

        assert config.load(file, {"BRAZE_API_KEY": KEY}) == shown
