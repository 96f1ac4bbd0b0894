"""What panels promise beyond valid queries: names that lose no value, the alerts' thresholds, links, rows."""

import json
import re
from pathlib import Path

import pytest
import yaml

from grafana.source import deliverability
from grafana.source.promql import CAMPAIGN, Selection
from tests.support.dashboards import (
    UIDS,
    as_list,
    everything,
    object_at,
    objects_in,
    panel_queries,
    panels,
    read_dashboard,
)
from tests.support.servers import ROOT
from tests.support.worlds import Campaign, at
from tests.test_days import FILES
from tests.test_rules import RULES, judge, run

CHOSEN = Selection(campaigns='workspace=~".+"')
DOCUMENTED = (ROOT / "docs/dashboards-and-alerts.md").read_text(encoding="utf-8")


def test_no_value_is_lost_by_its_name(promtool: Path, tmp_path: Path) -> None:
    """A one-off of $ 5,000, a campaign that is gone and one without any known name are in the revenue with the rest."""

    def earning(*days: float) -> list[dict[str, float]]:
        return [{"sent": 10.0, "revenue_dollars": day} for day in days]

    shapes = [
        Campaign(name="Daily", days=earning(*[100] * 6), runs=range(at(2), at(6))),
        Campaign(name="One-off", days=earning(0, 0, 5_000, 0, 0, 0), runs=range(at(3, 1), at(6))),
        Campaign(name="Gone", days=earning(0, 70, 0, 0, 0, 0), runs=range(at(3))),
        *(
            Campaign(name=name, id="renamed", days=earning(*[30] * 6), runs=runs)
            for name, runs in (("Before", range(at(4))), ("After", range(at(4), at(6))))
        ),
    ]
    revenue = CHOSEN.named_over_time(CHOSEN.days("campaign_revenue_dollars", CAMPAIGN)).replace("$__range", "5d")
    total = f"sum by (campaign_name) (sum_over_time(({revenue})[5d:1d] offset 12h))"
    # promtool knows nothing of what follows, so the days are looked at from the end of the fifth.
    expected = {"Daily": 500, "One-off": 5_000, "Gone": 70, "After": 150}
    asked = [
        {
            "expr": total.replace("@ end()", f"@ {at(5, 11) * 60}"),
            "eval_time": f"{at(5, 12)}m",
            "exp_samples": [
                {"labels": f'{{campaign_name="{name}"}}', "value": value} for name, value in expected.items()
            ],
        }
    ]

    assert judge(promtool, tmp_path, FILES, shapes, range(0, at(5, 13), 15), 15, promql_expr_test=asked) == ""


def test_a_campaign_without_a_name_is_shown_by_its_id(promtool: Path, tmp_path: Path) -> None:
    """Where neither the exporter nor a record has a name, as after an import, the id stands for it."""
    series = 'campaign:braze_previous_day_campaign_revenue_dollars:day{workspace="w",campaign_id="c1",weekday="4"}'
    document = {
        "evaluation_interval": "1h",
        "tests": [
            {
                "interval": "1h",
                "input_series": [
                    {"series": series, "values": "_x29 7 _x5"},
                    {
                        "series": 'campaign:braze_recorded_day:date{workspace="w",campaign_id="c1"}',
                        "values": "_x29 0 _x5",
                    },
                ],
                "promql_expr_test": [
                    {
                        "expr": CHOSEN.named_over_time(
                            "sum by (workspace, campaign_id) (last_over_time(" + series + "[9h]))"
                        )
                        .replace("$__range", "5d")
                        .replace("@ end()", ""),
                        "eval_time": "34h",
                        "exp_samples": [{"labels": '{workspace="w",campaign_id="c1",campaign_name="c1"}', "value": 7}],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "names.test.yml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")

    assert run(promtool, "test", "rules", path) == ""


@pytest.mark.parametrize("uid", UIDS)
def test_every_join_of_a_name_keeps_what_has_none(uid: str) -> None:
    """Names are those at the end; over time the last known one and the id stand in, as campaigns may be gone since."""
    for panel, query in panel_queries(uid):
        if "group_left (campaign_name)" in query:
            assert "} @ end()))" in query, panel["title"]
            over_time = '"campaign_name", "", "campaign_id"))' in query
            constant = "braze_threshold:override" in query
            assert over_time == (panel["type"] == "timeseries" and not constant), panel["title"]


def test_thresholds_of_panels_are_those_of_the_alerts() -> None:
    """Where a panel of deliverability changes its colour the alert begins, by the defaults of the rules."""
    (group,) = yaml.safe_load((RULES / "braze-thresholds.yml").read_text(encoding="utf-8"))["groups"]
    default = {
        rule["labels"]["threshold"]: float(rule["expr"].rpartition("* ")[2])
        for rule in group["rules"]
        if rule["record"] == "workspace:braze_threshold:default"
    }
    drawn = {
        "email_bounce_ratio": deliverability.BOUNCES,
        "email_bounce_ratio_1h": deliverability.BOUNCES_OF_HOUR,
        "email_spam_ratio": deliverability.SPAM,
        "email_unsubscribe_ratio": deliverability.UNSUBSCRIBES,
        "sms_failure_ratio": deliverability.SMS_FAILURES,
        "sms_opt_out_ratio": deliverability.OPT_OUTS,
        "whats_app_failure_ratio": deliverability.WHATSAPP_FAILURES,
        "webhook_error_ratio_1h": deliverability.WEBHOOK_ERRORS_OF_HOUR,
        "push_bounce_ratio": deliverability.PUSH_BOUNCES,
    }

    assert {name: steps[0][0] for name, steps in drawn.items()} == {name: default[name] for name in drawn}
    assert deliverability.SPAM[1][0] == default["email_spam_ratio_critical"]


def test_panels_of_the_last_hour_draw_what_the_alert_judges() -> None:
    """Rate, least number of messages and threshold come from the rules, overrides included."""
    for title, threshold in (
        ("Emails bouncing now", "email_bounce_ratio_1h"),
        ("Webhook error rate, last hour", "webhook_error_ratio_1h"),
    ):
        queries = [query for panel, query in panel_queries("braze-deliverability") if panel["title"] == title]
        assert len(queries) == 3
        assert all(f'threshold="{threshold}"' in query for query in queries)
        assert "campaign_channel:braze_rate:ratio" in queries[0]
        assert "workspace:braze_threshold:effective" in queries[1]
        assert "campaign:braze_threshold:override" in queries[2]


@pytest.mark.parametrize("uid", UIDS)
def test_every_panel_that_lists_campaigns_leads_to_them(uid: str) -> None:
    """Tables, bars and lines of campaigns have the link to the detail."""
    listing = [panel for panel in panels(uid) if "group_left (campaign_name)" in json.dumps(panel)]
    without = [panel["title"] for panel in listing if "/d/braze-campaign?" not in json.dumps(panel)]

    assert listing or uid == "braze-campaign"
    assert without == []


def test_dashboards_of_days_are_not_asked_every_five_minutes() -> None:
    """Numbers of days do not change so often; only the health of the exporter does."""
    assert {uid: read_dashboard(uid)["refresh"] for uid in UIDS} == {
        "braze-campaign": "30m",
        "braze-deliverability": "30m",
        "braze-exporter": "5m",
        "braze-overview": "30m",
    }


def test_variations_are_the_last_row_and_collapsed() -> None:
    """A campaign of one variation does not begin with panels that have nothing to compare."""
    rows = [panel for panel in everything("braze-campaign") if panel["type"] == "row"]

    assert [row["collapsed"] for row in rows] == [*[False] * (len(rows) - 1), True]
    assert "Variations compared" in str(rows[-1]["title"])
    assert {panel["title"] for panel in as_list(rows[-1]["panels"])} >= {"Variations compared"}


def test_the_overview_opens_with_health_and_yesterday() -> None:
    """Health of each campaign is the first panel and sorted by it; yesterday's numbers stand against the usual ones."""
    first, *others = panels("braze-overview")
    sorting = [one["options"] for one in objects_in(first) if one.get("id") == "sortBy"]
    against = [
        panel["title"]
        for panel in others
        if [str(target["legendFormat"]) for target in as_list(panel["targets"])] == ["yesterday", "against usual"]
    ]

    assert first["title"] == "Health of each campaign"
    assert sorting == [{"sort": [{"field": "Health", "desc": True}]}]
    assert against == ["Volume yesterday", "Delivered yesterday", "Converted yesterday", "Revenue yesterday"]


@pytest.mark.parametrize("uid", UIDS)
def test_one_word_for_messages(uid: str) -> None:
    """Sends and views together are the volume: no title of a panel or column calls them sent."""
    texts = [panel["title"] for panel in panels(uid)]
    texts += [one["options"] for panel in panels(uid) for one in objects_in(panel) if one.get("id") == "byName"]

    assert not [
        text for text in texts if re.search(r"\b[Ss]ent (today|yesterday)|Most (risen|fallen)|by now", str(text))
    ]


def test_the_oldest_grafana_is_named() -> None:
    """The guide names the oldest Grafana; the models that dashboards are read with are no build for an older one."""
    pinned = re.search(r'"grafana-foundation-sdk==([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert pinned is not None
    assert "!" not in pinned[1]
    assert "Grafana 12 or newer" in DOCUMENTED


def test_weeks_of_history_are_shown() -> None:
    """Exporter health is red where the rules see fewer than two weeks, as eight alerts are silent then."""
    (panel,) = (panel for panel in panels("braze-exporter") if panel["title"] == "Weeks of history")
    steps = as_list(object_at(panel, "fieldConfig", "defaults", "thresholds")["steps"])
    (query,) = (query for one, query in panel_queries("braze-exporter") if one == panel)

    assert [(step["value"], step["color"]) for step in steps[1:]] == [(0, "red"), (2, "orange"), (4, "green")]
    assert "weeks_ago" in query
