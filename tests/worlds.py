"""Weeks of campaigns as series of promtool's rule tests, sampled once an hour. Pure.

Time is counted in hours from 1970-01-01 00:00 UTC, where promtool's time begins: a Thursday.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

Totals = Mapping[str, float]
Course = Callable[[float], float]

# What Braze tells of a campaign as a whole rather than of its variations.
_OF_CAMPAIGN = {
    "conversions": 'campaign_conversions{conversion_event="A",',
    "revenue_dollars": "campaign_revenue_dollars{",
}


def hour(day: int, of_day: float = 0) -> int:
    """Count the hours until an hour of a day in UTC."""
    return day * 24 + int(of_day)


def at_nine(elapsed: float) -> float:
    """Send everything nine hours after midnight."""
    return float(elapsed >= 9)


def between(first: float, last: float) -> Course:
    """Send steadily between two hours after midnight."""
    return lambda elapsed: min(max((elapsed - first) / (last - first), 0), 1)


def utc(day: int) -> float:
    """Begin each day at midnight in UTC; like every such function, count hours from the start of the world."""
    return day * 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A campaign as an exporter shows it.

    `days` has the totals of each day by statistic. `course` is the share of a total that is reached so many hours after
    midnight, `courses` that of single statistics. `midnight` is the hour at which a day begins, `lag` the time in hours
    from then to the first poll that knows the new day. In the hours of `missing` there is no sample of Braze's numbers.
    `since` and `until` bound the hours in which this exporter, `instance`, runs. From `stopped_since` on Braze says
    that the campaign is stopped.
    """

    name: str
    days: Sequence[Totals]
    id: str = ""
    workspace: str = "shop"
    channel: str = "email"
    course: Course = at_nine
    courses: Mapping[str, Course] = field(default_factory=dict)
    midnight: Callable[[int], float] = utc
    lag: float = 0.1
    instance: str = "a"
    since: int = 0
    until: int = 10**6
    missing: Collection[int] = ()
    stopped_since: int = 10**6

    @property
    def identity(self) -> dict[str, str]:
        """The labels that name it."""
        return {"workspace": self.workspace, "campaign_id": self.id or self.name.lower(), "campaign_name": self.name}

    def series(self, sampled: Sequence[int]) -> Iterator[tuple[str, str]]:
        """Yield names and values of its series at these hours, in promtool's notation."""
        labels = ",".join(f'{name}="{value}"' for name, value in {**self.identity, "instance": self.instance}.items())
        row = f'{labels},channel="{self.channel}",variation_id="",variation_name=""'
        running = [at for at in sampled if self.since <= at < self.until]
        told = [at for at in running if at not in self.missing]
        yield f"braze_campaign_up{{{labels}}}", _values(dict.fromkeys(running, 1.0))
        if stopped := [at for at in running if at >= self.stopped_since]:
            yield f'braze_campaign_info{{{labels},enabled="false"}}', _values(dict.fromkeys(stopped, 1.0))

        midnights = [self.midnight(day) + self.lag for day in range(len(self.days) + 1)]
        today = {at: bisect_left(midnights, at) - 1 for at in told}
        today = {at: day for at, day in today.items() if 1 <= day < len(self.days)}
        for prefix, back in (("braze_", 0), ("braze_previous_day_", 1)):
            stamps = {at: self.midnight(day - back) * 3600 for at, day in today.items()}
            yield f"{prefix}campaign_day_timestamp_seconds{{{labels}}}", _values(stamps)
            for statistic in {statistic: None for day in self.days for statistic in day}:
                course = self.courses.get(statistic, self.course)
                counts = {
                    at: self.days[day - back].get(statistic, 0) * (1 if back else course(at - self.midnight(day)))
                    for at, day in today.items()
                }
                name = _OF_CAMPAIGN.get(statistic)
                series = f"{name}{labels}}}" if name else f"message_{statistic}{{{row}}}"
                yield prefix + series, _values(counts)


def series_of(campaigns: Sequence[Campaign], sampled: Sequence[int]) -> list[dict[str, str]]:
    """Build `input_series` of a world that is scraped at these hours; each workspace is up."""
    workspaces = {campaign.workspace for campaign in campaigns}
    up = _values(dict.fromkeys(sampled, 1.0))
    shown = [
        *((f'braze_workspace_up{{workspace="{name}"}}', up) for name in sorted(workspaces)),
        *(series for campaign in campaigns for series in campaign.series(sampled)),
    ]
    return [{"series": series, "values": values} for series, values in shown]


def _values(samples: Mapping[int, float]) -> str:
    """Write one value an hour, `_` where there is none, runs shortened: `5x2` is three fives, `_x3` three gaps."""
    hours = range(max(samples, default=0) + 1)
    runs = [(value, len(list(run))) for value, run in groupby(samples.get(at) for at in hours)]
    return " ".join(f"_x{count}" if value is None else f"{value:.0f}x{count - 1}" for value, count in runs)
