"""Tests of exporter.commands.check: what outcomes mean, and the real command against a simulated Braze in trouble."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import pytest

from exporter.braze.counters import ApiStatistics
from exporter.braze.data_series import DataSeries, Day, Variation
from exporter.braze.errors import Reason
from exporter.commands.check import Checked, Outcome, as_json, diagnoses, lines, works
from exporter.config import INSTANCES, Campaign, Workspace
from exporter.simulator.server import Body, Fault, Hang, Simulator, Status
from exporter.state import Failure
from tests.support.exporters import COMMAND, KEY, configure
from tests.support.servers import PATIENCE, eventually

server = pytest.mark.server

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp()
CAMPAIGNS = tuple(
    Campaign(id=f"3bbc4555-8fa0-4c9b-a5c0-{number:012}", name=name) for number, name in enumerate(("Welcome", "Cart"))
)
WORKSPACE = Workspace(
    name="main", endpoint="https://rest.iad-01.braze.com", api_key_env="BRAZE_API_KEY", campaigns=CAMPAIGNS
)


def answer(day: str | None, *skipped: str) -> DataSeries:
    """Return an answer whose newest day is that one."""
    latest = None if day is None else Day(date.fromisoformat(day), {}, (Variation("email", "1", "", {}),))
    return DataSeries(latest, None, skipped)


def checked(
    *outcomes: DataSeries | Failure | None, zone: str = "UTC", now: float = NOON, began: float | None = None
) -> Checked:
    """Return what came of the campaigns."""
    campaigns = [
        Outcome(
            campaign,
            response=outcome if isinstance(outcome, DataSeries) else None,
            failure=outcome if isinstance(outcome, Failure) else None,
        )
        for campaign, outcome in zip(CAMPAIGNS, outcomes, strict=False)
    ]
    workspace = WORKSPACE.model_copy(update={"timezone": ZoneInfo(zone)})
    return Checked(workspace, tuple(campaigns), ApiStatistics(), began_at=began or now, ended_at=now)


def found(given: Checked, environ: Mapping[str, str] | None = None) -> str:
    """Return the findings as one text."""
    marks = {True: "ok", False: "FAILED", None: "note"}
    texts = [
        f"{marks[finding.ok]} {finding.text} {' '.join(finding.advice)}" for finding in diagnoses(given, environ or {})
    ]
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("day", "zone", "hour", "expected", "well"),
    [
        (
            "2026-03-04",
            "UTC",
            12,
            "ok the newest day is 2026-03-04, today in UTC, as now from UTC-12:00 to UTC+11:45",
            True,
        ),
        ("2026-03-04", "Asia/Tokyo", 3, "today in Asia/Tokyo, as now from UTC-03:00 to UTC+14:00", True),
        (
            "2026-03-04",
            "America/New_York",
            3,
            "FAILED the newest day is 2026-03-04, which has not begun in America/N",
            False,
        ),
        (
            "2026-03-04",
            "UTC",
            23,
            "ok the newest day is 2026-03-04, today in UTC, as now from UTC-12:00 to UTC+00:45",
            True,
        ),
        ("2026-03-04", "Asia/Tokyo", 16, "note the newest day is 2026-03-04, yesterday in Asia/Tokyo", True),
        ("2026-03-01", "UTC", 12, "note the newest day is 2026-03-01, 3 days before today in UTC", True),
        (None, "UTC", 12, "note no campaign has any day, so the time zone cannot be verified", True),
    ],
)
def test_what_the_newest_day_says(day: str | None, zone: str, hour: int, expected: str, well: bool) -> None:  # noqa: FBT001
    """Today fits, a day to come is a wrong zone, yesterday is either of two things, and what is older is odd."""
    now = datetime(2026, 3, 4, hour, tzinfo=UTC).timestamp()
    given = checked(answer(day), answer(None), zone=zone, now=now)

    assert expected in found(given)
    assert works(given, {}) == well


@pytest.mark.parametrize("day", ["2026-03-03", "2026-03-04"])
def test_the_proof_of_the_zone_is_named(day: str) -> None:
    """What a running exporter knows of the zone is named where one look at the days proves nothing."""
    noon = datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp()

    assert "braze_workspace_day_rollover_offset_seconds" in found(checked(answer(day), now=noon))


def test_zones_that_would_fit() -> None:
    """A wrong zone is answered by the offsets and by well-known zones in which it is that day now."""
    evening = datetime(2026, 3, 4, 20, tzinfo=UTC).timestamp()

    text = found(checked(answer("2026-03-05"), zone="Europe/Berlin", now=evening))

    assert "now it is that day from UTC+04:00 to UTC+14:00, for example in Asia/Dubai, Asia/Kolkata, " in text
    assert "Europe/London" not in text


@pytest.mark.parametrize("day", ["2026-03-03", "2026-03-04"])
def test_a_midnight_in_between(day: str) -> None:
    """A check that runs over midnight takes both days for today."""
    before, after = (datetime(2026, 3, *rest, tzinfo=UTC).timestamp() for rest in ((3, 23, 59), (4, 0, 1)))

    assert f"ok the newest day is {day}, today in UTC" in found(checked(answer(day), began=before, now=after))


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_explained(reason: Reason) -> None:
    """Whatever fails, there is what it usually means and what to do."""
    given = checked(Failure(reason, "the detail"), None)

    (failure, left) = diagnoses(given, {})
    assert failure.text == f"1 campaign: {reason.value.replace('_', ' ')}: the detail"
    assert "What to do: " in failure.advice[0]
    assert (left.ok, left.text) == (False, "1 campaign skipped: the same failure is expected")
    assert not works(given, {})


@pytest.mark.parametrize("reason", [Reason.UNAUTHORIZED, Reason.NOT_FOUND, Reason.CONNECTION])
def test_hosts_are_named_where_the_host_may_be_wrong(reason: Reason) -> None:
    """Whoever may have the wrong instance is told all of them."""
    text = found(checked(Failure(reason, "")))

    assert all(f"{name} {host}" in text for name, host in INSTANCES.items())


def test_a_key_of_another_workspace() -> None:
    """When no campaign is known to Braze, the key may be another workspace's."""
    unknown = Failure(Reason.BAD_REQUEST, "no")

    assert "the key is perhaps that of another workspace" in found(checked(unknown, unknown))
    assert "another workspace" not in found(checked(unknown, answer("2026-03-04")))


def test_proxies_are_named_without_their_values() -> None:
    """A proxy's address may hold a password, so only the variables are named."""
    environ = {"HTTPS_PROXY": "http://me:hunter2@proxy:1", "no_proxy": "a", "http_proxy": "", "PROXY": "b"}

    text = found(checked(Failure(Reason.CONNECTION, "the proxy answered 407")), environ)

    assert "In force for proxies: HTTPS_PROXY, no_proxy." in text
    assert "hunter2" not in text
    assert "No variable names a proxy." in found(checked(Failure(Reason.CONNECTION, "")))


def test_several_details_of_one_reason() -> None:
    """Failures are told by their reason; what each campaign got stands in the table."""
    given = checked(Failure(Reason.BAD_REQUEST, "one"), Failure(Reason.BAD_REQUEST, "two"))

    assert "FAILED 2 campaigns: bad request: 2 different responses, see above" in found(given)
    report = "\n".join(lines([given], {}))
    assert re.search(r"FAILED  Welcome  \S+  bad request: one\n  FAILED  Cart     \S+  bad request: two\n", report)


def test_many_equal_failures_are_one_line() -> None:
    """Campaigns that fail alike are counted in one line with examples; the findings and the summary are the end."""
    campaigns = [Campaign(id=f"3bbc4555-8fa0-4c9b-a5c0-{number:012}", name=f"Sale {number}") for number in range(500)]
    failed = [Outcome(campaign, failure=Failure(Reason.BAD_REQUEST, "no such campaign")) for campaign in campaigns]
    given = Checked(WORKSPACE, (Outcome(CAMPAIGNS[0], answer("2026-03-04")), *failed), ApiStatistics(), NOON, NOON)

    table, found, summary = "\n".join(lines([given], {})).split("\n\n")

    text = re.sub(r"\s+", " ", table)
    assert (
        f"FAILED 500 campaigns: bad request: no such campaign; for example Sale 0 ({campaigns[0].id}), Sale 1 (" in text
    )
    assert table.count("Sale ") == 3
    assert f"  ok  Welcome  {CAMPAIGNS[0].id}  newest day 2026-03-04, rows: 1" in table
    assert "  FAILED  500 campaigns: bad request: no such campaign\n" in found
    assert summary == "1 of 501 campaigns can be polled."


def test_instances_are_named_only_where_they_help() -> None:
    """Where a campaign was answered, or the endpoint is this machine, no other instance is proposed."""
    refused = Failure(Reason.UNAUTHORIZED, "")
    here = WORKSPACE.model_copy(update={"endpoint": "http://127.0.0.1:10106"})

    assert "US-02" in found(checked(refused))
    assert "US-02" not in found(checked(refused, answer("2026-03-04")))
    assert "US-02" not in found(replace(checked(refused), workspace=here))


def test_statistics_that_are_no_numbers_are_a_note() -> None:
    """Fields that came as text are named, each once and at most ten."""
    texts = [replace(answer("2026-03-03"), no_numbers=names) for names in (("sent", "opens"), ("opens", "clicks"))]
    many = replace(answer("2026-03-03"), no_numbers=tuple(f"field {number}" for number in range(99)))

    assert "note statistics that are no numbers and are skipped: sent, opens, clicks" in found(checked(*texts))
    assert "field 9" in found(checked(many))
    assert "field 10" not in found(checked(many))
    assert "no numbers" not in found(checked(answer("2026-03-03")))


def test_skipped_parts_are_a_note() -> None:
    """Parts of an undocumented form are told, and are no failure."""
    given = checked(answer("2026-03-04", "data[0].messages: odd"))

    assert "note 1 campaign with parts that are not of the documented form, such as data[0].messages: odd" in found(
        given
    )
    assert works(given, {})


def test_a_name_does_nothing_to_a_terminal() -> None:
    """What would move the cursor, colour the text or turn its direction is shown as question marks; JSON has it all."""
    name = "\x1b[31m\u202e\nred" + "x" * 100
    campaign = Campaign(id=CAMPAIGNS[0].id, name=name)
    given = Checked(WORKSPACE, (Outcome(campaign, answer("2026-03-04")),), ApiStatistics(), NOON, NOON)

    report = "\n".join(lines([given], {}))

    assert report.replace("\n", "").isprintable()
    assert f"ok  ?[31m??red{'x' * 29}…  {campaign.id}  newest day 2026-03-04, rows: 1" in report
    assert name in json.loads(json.dumps(as_json([given], {})))["workspaces"][0]["campaigns"][0]["name"]


# -- The command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def braze() -> Iterator[Simulator]:
    """A simulated Braze."""
    with Simulator(api_key=KEY) as braze:
        yield braze


def check(file: Path, *flags: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; the key is in nothing that it says."""
    command = [*COMMAND, "check", f"--config.file={file}", *flags]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **(environ or {})}
    )
    assert KEY not in result.stdout + result.stderr
    return result


@server
def test_all_is_well(braze: Simulator, tmp_path: Path) -> None:
    """Each campaign is asked once and listed, and the status is 0."""
    result = check(configure(tmp_path, braze))

    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(str(request.campaign_id) for request in braze.requests) == sorted(
        campaign.id for campaign in braze.campaigns
    )
    assert result.stdout.count("newest day 20") == 12
    assert "  ok      Braze accepts the key, and it may read campaigns.data_series\n" in result.stdout
    assert "  note    49,988 of 50,000 requests are left in this window\n" in result.stdout
    assert result.stdout.endswith("\n12 of 12 campaigns can be polled.\n")


@server
@pytest.mark.parametrize(
    ("braze_zone", "newest_day", "zone", "said"),
    [
        ("UTC", "today", "UTC", "  ok      the newest day is "),
        ("UTC", "yesterday", "UTC", "  note    the newest day is "),
        ("Pacific/Kiritimati", "today", "Etc/GMT+12", "  FAILED  the newest day is "),  # 26 hours apart
    ],
)
def test_the_newest_day(
    braze_zone: str, newest_day: Literal["today", "yesterday"], zone: str, said: str, tmp_path: Path
) -> None:
    """Which day is the newest is told, and one that has not begun in the configured time zone is a failure."""
    with Simulator(api_key=KEY, campaigns=2, newest_day=newest_day, timezone=ZoneInfo(braze_zone)) as braze:
        file = configure(tmp_path, braze)
        file.write_text(file.read_text().replace("    campaigns:", f"    timezone: {zone}\n    campaigns:"))
        result = check(file)

    assert said in result.stdout
    assert result.returncode == (1 if "FAILED" in said else 0)
    assert ("Set timezone to the time zone of the company" in result.stdout) == ("FAILED" in said)


@server
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            Status(401),
            "unauthorized: Braze responded with 401\n          The key is wrong, or belongs to another instance.",
        ),
        (Status(403), "forbidden: Braze responded with 403: The API key lacks the permission for this endpoint\n"),
        (
            Status(403, b'{"message": "Your IP address is not allowed"}'),
            (
                "forbidden: Braze responded with 403: Your IP address is not allowed\n"
                "          The key lacks campaigns.data_series, or does not allow this machine's address. What to do: "
            ),
        ),
        (
            Status(404),
            "not found: Braze responded with 404: No such URL\n          The address is not that of Braze's REST API.",
        ),
        (Status(429), "rate limited: Braze responded with 429: too many requests\n"),
        (Status(302, headers={"Location": "http://127.0.0.1:1/"}), "redirect: Braze responded with 302\n"),
        (Hang(), "timeout: no complete response within the timeout\n"),
    ],
)
def test_trouble_of_the_whole_workspace(braze: Simulator, tmp_path: Path, fault: Fault, said: str) -> None:
    """What would come of every campaign is asked once, and told with what to do."""
    braze.misbehave(fault)

    result = check(configure(tmp_path, braze, poll="timeout: 1s"))

    assert (result.returncode, result.stderr) == (1, "")
    assert f"  FAILED  1 campaign: {said}" in result.stdout
    assert "  FAILED  11 campaigns skipped: the same failure is expected\n" in result.stdout
    assert result.stdout.endswith("\n0 of 12 campaigns can be polled.\n")
    assert len(braze.requests) == 1


@server
def test_trouble_of_one_campaign(braze: Simulator, tmp_path: Path) -> None:
    """A campaign that Braze does not know, and one whose answer is none, leave the others alone and come first."""
    unknown, odd = braze.campaigns[0], braze.campaigns[5]
    braze.misbehave(Status(400), campaign_id=unknown.id)
    braze.misbehave(Body(b"<html>"), campaign_id=odd.id)

    result = check(configure(tmp_path, braze))

    assert result.returncode == 1
    assert len(braze.requests) == 12
    table = result.stdout.split("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in table] == ["FAILED"] * 2 + ["ok"] * 10
    assert (
        f"{unknown.id}  bad request: Braze responded with 400: campaign_id must be a string of the campaign" in table[0]
    )
    assert f"{odd.id}  bad payload: expected JSON, got 6 bytes of application/json" in table[1]


@server
def test_a_key_that_stops_being_good(braze: Simulator, tmp_path: Path) -> None:
    """A refusal in the middle ends the asking."""
    braze.misbehave(Status(401), campaign_id=braze.campaigns[3].id)

    result = check(configure(tmp_path, braze, poll="concurrency: 1"))

    assert result.returncode == 1
    assert len(braze.requests) == 4
    assert "8 campaigns skipped" in result.stdout


@server
def test_an_outage_in_the_middle(tmp_path: Path) -> None:
    """After ten failures of the whole workspace in a row the rest is not asked."""
    with Simulator(api_key=KEY, campaigns=40) as braze:
        for campaign in braze.campaigns[1:]:
            braze.misbehave(Status(403), campaign_id=campaign.id)
        result = check(configure(tmp_path, braze, poll="concurrency: 1"))

    assert "  FAILED  10 campaigns: forbidden" in result.stdout
    assert "29 campaigns skipped" in result.stdout


@server
def test_nobody_there(tmp_path: Path) -> None:
    """A refused connection and a name without an address are told as such."""
    names = {"3bbc4555-8fa0-4c9b-a5c0-4505edf3e064": "Welcome"}

    refused = check(configure(tmp_path, "http://127.0.0.1:1", names=names, poll="timeout: 1s"))
    nameless = check(configure(tmp_path, "https://rest.nowhere.invalid", names=names, poll="timeout: 1s"))

    assert "connection: Connection refused\n" in refused.stdout
    assert re.search("FAILED  1 campaign: (connection|timeout): ", nameless.stdout)
    assert "warning: workspace 'main': rest.nowhere.invalid is not a host of braze.com or braze.eu" in nameless.stdout
    assert (refused.returncode, nameless.returncode) == (1, 1)


@server
def test_json(braze: Simulator, tmp_path: Path) -> None:
    """With --json a script gets the same, with nothing cut."""
    braze.misbehave(Status(400), campaign_id=braze.campaigns[0].id)

    result = check(configure(tmp_path, braze), "--json")

    report = json.loads(result.stdout)
    (workspace,) = report["workspaces"]
    assert (result.returncode, report["ok"], workspace["ok"], report["problems"], report["warnings"]) == (
        1,
        False,
        False,
        [],
        [],
    )
    assert (workspace["workspace"], workspace["endpoint"], workspace["timezone"]) == ("main", braze.url, "UTC")
    assert (workspace["rate_limit"], workspace["rate_limit_remaining"]) == (50_000, 49_988)
    first, second, *_ = workspace["campaigns"]
    assert (first["asked"], first["ok"], first["reason"], first["newest_day"]) == (True, False, "bad_request", None)
    assert (second["asked"], second["ok"], second["reason"]) == (True, True, None)
    assert second["newest_day"] == workspace["newest_day"]
    assert len(workspace["campaigns"]) == 12


@server
def test_a_wrong_configuration(tmp_path: Path) -> None:
    """What is wrong with the file comes before any question to Braze, a dashboard's id in place of a UUID included."""
    file = configure(tmp_path, "http://127.0.0.1:1", names={"5f1c2b7e5f1c2b7e5f1c2b7e": "Welcome"})

    result, script = check(file), check(file, "--json")

    assert (result.returncode, result.stdout) == (1, "")
    assert "that is the id in the dashboard's address; the API identifier is on the" in result.stderr
    report = json.loads(script.stdout)
    assert (script.returncode, report["ok"], report["workspaces"]) == (1, False, [])
    assert "".join(f"{problem}\n" for problem in report["problems"]) == result.stderr


@server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption(braze: Simulator, tmp_path: Path, number: int) -> None:
    """Who is stopped in between has not found that all is well."""
    braze.misbehave(Hang())
    with subprocess.Popen(
        [*COMMAND, "check", f"--config.file={configure(tmp_path, braze)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        eventually(lambda: braze.requests, what="a request")
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE)

    assert (process.returncode, output, errors) == (1, b"", b"interrupted before all was done\n")
