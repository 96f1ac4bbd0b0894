"""Tests of exporter.shards: ids in, whose they are out; and two exporters that share the campaigns of one Braze."""

import functools
from collections import Counter
from fractions import Fraction
from pathlib import Path
from uuid import UUID

import pytest

from exporter.config import Campaign, Config, Workspace
from exporter.schedule import slot
from exporter.shards import Shard, jump_hash, part, stable_hash
from exporter.simulator.server import Simulator
from tests.support.exporters import KEY, Exporter, config_check, configure, running_exporter
from tests.support.servers import eventually

CAMPAIGNS = tuple(Campaign(id=str(UUID(int=number, version=4))) for number in range(500))


@functools.cache
def split(total: int) -> list[set[str]]:
    """Return the ids of each of so many shards."""
    workspace = Workspace(name="main", endpoint="http://127.0.0.1", api_key_env="KEY", campaigns=CAMPAIGNS)
    parts = [part(Config(workspaces=(workspace,)), Shard(number, total)) for number in range(total)]
    return [{campaign.id for campaign in found.workspaces[0].campaigns} for found in parts]


def exact_jump_hash(key: int, buckets: int) -> int:
    """Walk all places where the paper's generator lets a key jump, with fractions instead of floating point."""
    place, jumps = 0, [0]
    while place < buckets:
        key = (2862933555777941757 * key + 1) & 0xFFFF_FFFF_FFFF_FFFF
        share = Fraction((key >> 33) + 1, 1 << 31)
        place = (jumps[-1] + 1) * share.denominator // share.numerator
        jumps.append(place)
    return max(jump for jump in jumps if jump < buckets)


@pytest.mark.parametrize(
    ("key", "buckets", "expected"), [(1, 1, 0), (42, 57, 43), (256, 1024, 520), (0xDEAD10CC, 666, 361)]
)
def test_jump_hash(key: int, buckets: int, expected: int) -> None:
    """The values are those that other programs compute with this algorithm."""
    assert jump_hash(key, buckets) == expected


def test_jump_hash_is_exact() -> None:
    """Floating point changes nothing: exact fractions lead to the same shards."""
    for number in range(3000):
        key, buckets = stable_hash(f"{number}"), 1 + number % 1024

        assert exact_jump_hash(key, buckets) == jump_hash(key, buckets)


@pytest.mark.parametrize(
    ("campaign_id", "expected"),
    [
        ("3bbc4555-8fa0-4c9b-a5c0-4505edf3e064", [1, 1, 1, 1]),
        ("00000000-0000-4000-8000-000000000001", [0, 0, 8, 45]),
        ("ffffffff-ffff-4fff-bfff-ffffffffffff", [1, 1, 1, 41]),
    ],
)
def test_places_are_fixed(campaign_id: str, expected: list[int]) -> None:
    """Where a campaign belongs is the same after every restart and in every version."""
    assert [jump_hash(stable_hash(campaign_id), total) for total in (2, 3, 10, 64)] == expected


def test_every_campaign_is_in_one_shard() -> None:
    """For every number of shards from 1 to 64 each campaign is in exactly one, and none has far more than others."""
    for total in range(1, 65):
        shards = split(total)

        assert Counter({campaign.id: 1 for campaign in CAMPAIGNS}) == Counter(
            campaign_id for shard in shards for campaign_id in shard
        )
        mean = len(CAMPAIGNS) / total
        assert max(map(len, shards)) < mean + 5 * mean**0.5


def test_few_campaigns_move() -> None:
    """With one shard more, about one campaign of N + 1 moves, and into the new shard only."""
    before = split(1)
    for total in range(2, 66):
        after = split(total)
        moved = after[-1]

        assert after[:-1] == [shard - moved for shard in before]
        mean = len(CAMPAIGNS) / total
        assert abs(len(moved) - mean) < 5 * mean**0.5
        before = after


def test_one_shard_is_the_whole() -> None:
    """Without shards the configuration is as it was loaded."""
    workspace = Workspace(name="main", endpoint="http://127.0.0.1", api_key_env="KEY", campaigns=CAMPAIGNS[:3])
    loaded = Config(workspaces=(workspace,))

    assert part(loaded, Shard(0, 1)) is loaded


def test_the_slot_does_not_depend_on_the_shard() -> None:
    """The campaigns of a shard are spread over the whole interval."""
    for shard in split(2):
        halves = Counter(int(slot(campaign_id, 2)) for campaign_id in shard)

        assert abs(halves[0] - halves[1]) < 5 * len(shard) ** 0.5


def check(file: Path, *flags: str) -> str:
    """Return what --config.check says of a file that is right."""
    result = config_check(file, *flags)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.server
def test_two_exporters_share_the_campaigns(tmp_path: Path) -> None:
    """Two shards poll and show disjoint campaigns, together all, each at half the pace; --config.check counts them."""
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        folder.mkdir()
    with Simulator(api_key=KEY, campaigns=40) as braze:
        files = [configure(folder, braze) for folder in folders]
        checked = [check(file, f"--shard={number}", "--total-shards=2") for number, file in enumerate(files)]
        with (
            running_exporter(files[0], "--shard=0", "--total-shards=2") as first,
            running_exporter(files[1], "--shard=1", "--total-shards=2") as second,
        ):
            shown = [shown_campaigns(exporter) for exporter in (first, second)]
            own = [exporter.samples("braze_exporter_") for exporter in (first, second)]
        asked = Counter(request.campaign_id for request in braze.requests)

    ids = {campaign.id for campaign in braze.campaigns}
    assert asked == Counter(ids)
    assert shown[0] | shown[1] == ids
    assert not shown[0] & shown[1]
    assert [samples["braze_exporter_shard"] for samples in own] == ["0.0", "1.0"]
    assert [samples["braze_exporter_total_shards"] for samples in own] == ["2.0", "2.0"]
    for number, output in enumerate(checked):
        assert f"campaigns: 40, of which shard {number} of 2 has {len(shown[number])}\n" in output


@pytest.mark.server
def test_a_shard_without_campaigns(tmp_path: Path) -> None:
    """It is ready at once, asks nothing, and does not say that the workspace is down."""
    with Simulator(api_key=KEY, campaigns=1) as braze:
        file = configure(tmp_path, braze)
        holder = jump_hash(stable_hash(braze.campaigns[0].id), 2)
        with running_exporter(file, f"--shard={1 - holder}", "--total-shards=2") as exporter:
            samples = exporter.samples("braze_")
            page = exporter.ask("/")
        asked = braze.requests

    assert not asked
    assert page.ok
    assert 'braze_workspace_campaigns{workspace="main"}' in samples
    assert samples['braze_workspace_campaigns{workspace="main"}'] == "0.0"
    assert not [series for series in samples if series.startswith(("braze_workspace_up", "braze_campaign_"))]


@pytest.mark.server
def test_the_pace_is_divided(tmp_path: Path) -> None:
    """A shard asks at its part of requests_per_minute, and the warning of --config.check reckons with it."""
    with Simulator(api_key=KEY, campaigns=40) as braze:
        file = configure(tmp_path, braze, poll="interval: 1s, timeout: 1s")
        file.write_text(file.read_text().replace("    api_key", "    requests_per_minute: 2400\n    api_key"))
        flags = ("--shard=1", "--total-shards=4")
        checked = check(file, *flags), check(file)
        with running_exporter(file, *flags):
            eventually(lambda: len(braze.requests) >= 30, what="some rounds")
        times = [request.time for request in braze.requests]

    assert times[-1] - times[0] >= 0.98 * (len(times) - 1) * 4 * 60 / 2400
    assert "warning" not in checked[1]
    assert ("warning" in checked[0]) == (len(shown_ids(braze, 1, 4)) > 10)


def shown_ids(braze: Simulator, number: int, total: int) -> list[str]:
    """Return the ids that belong to a shard."""
    return [campaign.id for campaign in braze.campaigns if jump_hash(stable_hash(campaign.id), total) == number]


def shown_campaigns(exporter: Exporter) -> set[str]:
    """Return the ids of the campaigns that have a state."""
    return {series.split('"')[1] for series in exporter.samples("braze_campaign_polls_total")}
