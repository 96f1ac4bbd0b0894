"""Weeks of campaigns as series of promtool's rule tests. Pure.

Time is counted in minutes from 1970-01-01 00:00 UTC, where promtool's time begins: a Thursday.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

DAY = 24 * 60
EVER = range(10**6)
NEVER = range(0)

Totals = Mapping[str, float]
Course = Callable[[float, int], float]
"""The share of a day's total that is reached at an hour of that day by the clock."""

# What Braze tells of a campaign as a whole rather than of its variations.
_OF_CAMPAIGN = {
    "conversions": ("campaign_conversions", 'conversion_event="A",'),
    "revenue_dollars": ("campaign_revenue_dollars", ""),
}


def at(day: int, hour: float = 0) -> int:
    """Count the minutes until an hour of a day in UTC."""
    return day * DAY + round(hour * 60)


def clock(hour: float, **others: float) -> Course:
    """Send everything at one hour; `day_5=7` is the hour of day 5."""
    return lambda now, day: float(now >= others.get(f"day_{day}", hour))


def between(first: float, last: float) -> Course:
    """Send steadily between two hours."""
    return lambda now, _: min(max((now - first) / (last - first), 0), 1)


def through(points: Mapping[float, float]) -> Course:
    """Reach a share at each of these hours and keep it until the next."""
    return lambda now, _: points[max(hour for hour in points if hour <= now)]


@dataclass(frozen=True, slots=True)
class Zone:
    """A time zone ahead of UTC by a number of hours; on one day its clocks are moved, by 1 hour in spring."""

    ahead: float = 0
    changes_on: int = 10**6
    by: int = 0

    def midnight(self, day: int) -> int:
        """Return the minute at which a day begins."""
        return at(day, -self.ahead - (self.by if day > self.changes_on else 0))

    def hour(self, now: int, day: int) -> float:
        """Return the hour on the clocks of a day: 9.5 at half past nine."""
        elapsed = (now - self.midnight(day)) / 60
        return elapsed + (self.by if day == self.changes_on and elapsed >= 2 else 0)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A series whose value changes at each of these minutes; it is absent while the value is None."""

    series: str
    steps: Mapping[int, float | None]

    def at(self, now: int) -> float | None:
        """Return the value at a minute."""
        since = max((minute for minute in self.steps if minute <= now), default=None)
        return None if since is None else self.steps[since]


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A campaign as exported by one exporter, `instance`.

    `days` has the totals of each day by statistic, shared equally by `variations`. Their `course` over the day can be
    another for single statistics (`courses`). What Braze tells of a day when it is over can change once more at noon of
    the next (`restated`). Braze leaves out the days in `skipped`. A new day is known `lag` minutes after midnight in
    `zone`; an exporter with a wrong `timezone` puts stamps on days as if they began in `stamped`.

    The exporter runs in the minutes of `runs`, of which the test looks at those of `seen` only. Numbers before the
    minute `live` are backfilled: nothing is known of polls. In the minutes of `failing` polls fail, in those of
    `missing` numbers are gone, in those of `late` no poll comes, though `interval` seconds are the usual time between
    two.
    """

    name: str
    days: Sequence[Totals]
    id: str = ""
    workspace: str = "shop"
    channel: str = "email"
    variations: Sequence[str] = ("",)
    course: Course = field(default_factory=lambda: clock(9))
    courses: Mapping[str, Course] = field(default_factory=dict)
    restated: Mapping[int, Totals] = field(default_factory=dict)
    skipped: Collection[int] = ()
    zone: Zone = Zone()
    stamped: Zone | None = None
    lag: int = 6
    instance: str = "a"
    runs: range = EVER
    seen: Collection[int] = EVER
    live: int = 0
    failing: range = NEVER
    missing: Collection[int] = ()
    late: range = NEVER
    interval: int = 300

    @property
    def identity(self) -> dict[str, str]:
        """The labels that name it."""
        return {"workspace": self.workspace, "campaign_id": self.id or self.name.lower(), "campaign_name": self.name}

    def series(self, sampled: Sequence[int]) -> Iterator[tuple[str, Mapping[int, float]]]:
        """Yield its series and their values at these minutes."""
        labels = ",".join(f'{name}="{value}"' for name, value in {**self.identity, "instance": self.instance}.items())
        running = [now for now in sampled if now in self.runs and now in self.seen]
        yield from self._polling(labels, [now for now in running if now >= self.live])

        stamped = self.stamped or self.zone
        told = [day for day in range(len(self.days)) if day not in self.skipped]
        known_from = [self.zone.midnight(day) + self.lag for day in told]
        shown = {now: bisect_right(known_from, now) - 1 for now in running if now not in self.missing}
        shown = {now: index for now, index in shown.items() if index >= 1}
        for prefix, back in (("braze_", 0), ("braze_previous_day_", 1)):
            days = {now: told[index - back] for now, index in shown.items()}
            stamps = {now: stamped.midnight(day) * 60 for now, day in days.items()}
            yield f"{prefix}campaign_day_timestamp_seconds{{{labels}}}", stamps
            for statistic in {statistic: None for day in self.days for statistic in day}:
                counts = {now: self._count(statistic, day, now) for now, day in days.items()}
                if statistic in _OF_CAMPAIGN:
                    name, more = _OF_CAMPAIGN[statistic]
                    yield f"{prefix}{name}{{{more}{labels}}}", counts
                    continue
                for variation in self.variations:
                    row = f'{labels},channel="{self.channel}",variation_id="{variation}",variation_name="{variation}"'
                    part = {now: count / len(self.variations) for now, count in counts.items()}
                    yield f"{prefix}message_{statistic}{{{row}}}", part

    def _polling(self, labels: str, live: Sequence[int]) -> Iterator[tuple[str, Mapping[int, float]]]:
        """Yield the series about polling."""
        yield f"braze_campaign_up{{{labels}}}", {now: float(now not in self.failing) for now in live}
        yield f"braze_campaign_poll_interval_seconds{{{labels}}}", dict.fromkeys(live, float(self.interval))
        # At the worst time, right before the next poll.
        polled = {now: min(now, self.late.start if now in self.late else now) * 60 - self.interval for now in live}
        yield f"braze_campaign_last_success_timestamp_seconds{{{labels}}}", polled

    def _count(self, statistic: str, day: int, now: int) -> float:
        """Return the total of a day by now."""
        total = self.days[day].get(statistic, 0)
        if now >= self.zone.midnight(day + 1) + DAY // 2:
            return self.restated.get(day, {}).get(statistic, total)
        hour = 24 if now >= self.zone.midnight(day + 1) else self.zone.hour(now, day)
        return total * self.courses.get(statistic, self.course)(hour, day)


def input_series(
    shapes: Sequence[Campaign | Gauge], sampled: Sequence[int], step: int, read: Collection[str]
) -> list[dict[str, str]]:
    """Build promtool's input of a world scraped at these minutes, multiples of `step`, of the metrics that are read.

    Each workspace is up unless a gauge says otherwise.
    """
    shown: dict[str, Mapping[int, float]] = {
        shape.series: _present(shape, sampled) for shape in shapes if isinstance(shape, Gauge)
    }
    for campaign in shapes:
        if isinstance(campaign, Campaign):
            up = f'braze_workspace_up{{workspace="{campaign.workspace}"}}'
            shown.setdefault(up, dict.fromkeys(sampled, 1.0))
            for series, samples in campaign.series(sampled):
                # Replicas and restarts are series of their own; a name that changes is, too.
                assert series not in shown, series
                shown[series] = samples
    return [
        {"series": series, "values": _values(samples, step)}
        for series, samples in shown.items()
        if samples and series.split("{")[0] in read
    ]


def _present(gauge: Gauge, sampled: Sequence[int]) -> dict[int, float]:
    return {now: value for now in sampled if (value := gauge.at(now)) is not None}


def _values(samples: Mapping[int, float], step: int) -> str:
    """Write one value a step, runs shortened: `5x2` is three fives, `_x3` three gaps.

    Prometheus marks a series that is there no longer as stale.
    """
    runs = [
        (value, len(list(run))) for value, run in groupby(samples.get(now) for now in range(0, max(samples) + 1, step))
    ]
    written = [
        f"{value:.10g}x{count - 1}" if value is not None else f"_x{count}" if first else f"stale _x{count - 1}"
        for first, (value, count) in zip((True, *[False] * len(runs)), runs, strict=False)
    ]
    return " ".join((*written, "stale")).replace(" _x0", "")
