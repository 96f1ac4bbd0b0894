"""PromQL over gauges of days: what each panel asks, right over midnight, restarts, renames and replicas. Pure.

Every expression stands on `max by (ids)` of the raw series, so that a second replica or a new pod changes no sum. The
ids do not include the campaign's name, which two replicas may know differently for a while; `named` adds it at the end.
No range function reads a raw series: `instance` and `pod` change with a restart and would split it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

CAMPAIGN = ("workspace", "campaign_id")
VARIATION = (*CAMPAIGN, "channel", "variation_id", "variation_name")

EMAIL = 'channel="email"'
PUSH = 'channel=~".+push.*"'
SMS = 'channel="sms"'
WHATSAPP = 'channel="whats_app"'
WEBHOOK = 'channel="webhook"'
EVENT = 'conversion_event="$event"'

_OF_VARIATIONS = ("variation:", "braze_message_", "braze_previous_day_message_")
_ON_CAMPAIGN = "on (workspace, campaign_id)"
# The weekday of the day that begins at this midnight, of a viewer from -10 to below +14 hours.
_DRAWN = 'count_values("weekday", day_of_week(vector(time() + 50399)))'


@dataclass(frozen=True, slots=True)
class Selection:
    """The series that a dashboard's variables choose: matchers of campaigns, and beside them of variations.

    In all methods `matchers` are further label matchers, and one on the channel replaces the choice of the dashboard;
    `offset` is a duration.
    """

    variations: tuple[str, ...] = ()
    campaigns: str = 'workspace=~"$workspace",campaign_id=~"$campaign"'

    def message(self, statistic: str, *matchers: str, offset: str = "") -> str:
        """One value for each variation on the running day, however many replicas there are."""
        return self._of_variations(f"braze_message_{statistic}", matchers, offset)

    def yesterday(self, statistic: str, *matchers: str, offset: str = "") -> str:
        """Return the same for the previous, complete day."""
        return self._of_variations(f"braze_previous_day_message_{statistic}", matchers, offset)

    def yesterday_rate(self, numerator: str, denominator: str, matcher: str, by: tuple[str, ...] = ()) -> str:
        """Ratio of two statistics of the previous day, absent below a denominator of 100."""
        parts = (total(self.yesterday(statistic, matcher), by) for statistic in (numerator, denominator))
        return ratio(*parts, least=100)

    def campaign_yesterday(self, statistic: str, *matchers: str) -> str:
        """One value for each campaign: its own totals of the previous day."""
        selector = ",".join((self.campaigns, *matchers))
        return f"max by (workspace, campaign_id) (braze_previous_day_campaign_{statistic}{{{selector}}})"

    def volume(self, *, offset: str = "") -> str:
        """Messages of each variation on the running day: sends, or impressions where there are no sends."""
        return f"({self.message('sent', offset=offset)}\nor {self.message('impressions', offset=offset)})"

    def volume_yesterday(self, *, offset: str = "") -> str:
        """Return the same for the previous, complete day."""
        return f"({self.yesterday('sent', offset=offset)}\nor {self.yesterday('impressions', offset=offset)})"

    def recorded(self, name: str, *matchers: str, of: tuple[str, ...] = VARIATION) -> str:
        """A series of the chosen variations that is recorded less often than Prometheus looks back.

        `of` are the labels that tell its values apart; without the variation's the choice of variations is left out.
        """
        chosen = [matcher for matcher in self.variations if matcher.startswith(of)]
        series = f"{name}{{{','.join((self.campaigns, *chosen, *matchers))}}}"
        return f"max by ({', '.join(of)}) (last_over_time({series}[1h]))"

    def status(self, name: str) -> str:
        """One value for each campaign of what the exporter says about polling it."""
        return f"max by (workspace, campaign_id) (braze_campaign_{name}{{{self.campaigns}}})"

    def day(self, *, offset: str = "") -> str:
        """Start of each campaign's running day."""
        return f"max by (workspace, campaign_id) ({self._day_series(offset=offset)})"

    def today(self, expression: str) -> str:
        """Keep campaigns that are on their workspace's newest day, as not all are in the minutes after midnight."""
        newest = f"max by (workspace) ({self._day_series()})"
        return f"{expression}\nand {_ON_CAMPAIGN} ({self.day()} == on (workspace) group_left () {newest})"

    def of_last_day(self, expression: str, *, offset: str = "") -> str:
        """Keep campaigns on the day that they show at the end of the time range; both are looked at with the offset.

        So a line of today does not begin with yesterday's total, which is shown until the first poll after midnight.
        """
        last = f"max by (workspace, campaign_id) ({self._day_series(' @ end()', offset)})"
        return f"{expression}\nand {_ON_CAMPAIGN} ({self.day(offset=offset)} == {last})"

    def unbroken(self, expression: str, span: str) -> str:
        """Keep campaigns whose day has not changed within the span."""
        return f"{expression}\nand {_ON_CAMPAIGN} ({self.day()} == {self.day(offset=span)})"

    def statistics_yesterday(self, by: tuple[str, ...], named: Iterable[tuple[str, str, tuple[str, ...]]]) -> str:
        """Several statistics of the previous day in one answer, told apart by the label `statistic`.

        `named` has the text of that label, Braze's statistic and further matchers. Every variation has a name, as rows
        of a table are made by it.
        """
        statistics = "\nor ".join(
            f'label_replace({total(self.yesterday(statistic, *matchers), by)}, "statistic", "{word}", "", "")'
            for word, statistic, matchers in named
        )
        return f'label_replace({statistics}, "variation_name", "(no name)", "variation_name", "")'

    def hourly(self, by: tuple[str, ...], statistic: str, *matchers: str) -> str:
        """Increase of a message statistic over an hour, for a step of an hour.

        In the hour of the day change it is what yesterday still gained and what today has, so nothing is lost.
        """
        now, before = self.message(statistic, *matchers), self.message(statistic, *matchers, offset="1h")
        final = self.yesterday(statistic, *matchers)
        within = self.unbroken(f"({now}\n- {before})", "1h")
        across = f"({now}\n+ {final}\n- {before})\nand {_ON_CAMPAIGN} ({self.day()} != {self.day(offset='1h')})"
        either = f"({within})\nor ({across})"
        return f"clamp_min({total(either, by)}, 0)"

    def hour(self, statistic: str, by: tuple[str, ...], *matchers: str) -> str:
        """Increase of a message statistic over the last hour, as recorded: sent, bounces and errors."""
        return total(self._chosen(f"campaign_channel:braze_message_{statistic}:increase1h", matchers), by)

    def days(self, statistic: str, by: tuple[str, ...], *matchers: str) -> str:
        """Sum of a statistic of complete days, such as `message_sent`: one for each day at its midnight.

        A day is recorded on the day after or the one after that, with its weekday: a range of four days around that
        time holds one day of this weekday at most. Exact for workspaces from -10 to +14 hours and for dashboards from
        -10 to below +14 hours.
        """
        return _drawn(self._recorded(statistic, matchers), by)

    def days_ratio(self, by: tuple[str, ...], numerator: str, denominator: str, *matchers: str, least: int) -> str:
        """Ratio of two such statistics for each complete day."""
        return ratio(self.days(numerator, by, *matchers), self.days(denominator, by, *matchers), least=least)

    def days_volume(self, by: tuple[str, ...]) -> str:
        """Messages of each complete day: sends, and impressions of rows that have no sends."""
        sent, impressions = (self._recorded(f"message_{one}", ()) for one in ("sent", "impressions"))
        return _drawn(f"{sent}\nor {impressions}", by)

    def total_of_range(self, statistic: str, by: tuple[str, ...], *matchers: str) -> str:
        """Sum of such a statistic over the complete days of the time range shown, the same at all times in it."""
        return total(f"sum_over_time({self._of_days(statistic, matchers)}[$__range] @ end())", by)

    def usual(self, statistic: str, *matchers: str) -> str:
        """Median of such a statistic of yesterday's weekday in the four weeks before, all campaigns together."""
        weeks = [self._week_before(self._of_days(statistic, matchers), week) for week in range(1, 5)]
        return "quantile(0.5, " + "\nor ".join(weeks) + ")"

    def usual_of_campaigns(self, name: str) -> str:
        """Return the same out of what is recorded of each campaign's weeks before: messages or revenue."""
        return f"quantile(0.5, sum by (weeks) ({name}:weeks_ago{{{self.campaigns}}}))"

    def _week_before(self, series: str, week: int) -> str:
        """Total of a series of days on yesterday's weekday so many weeks ago, recorded within a day before or after."""
        weekdays = f"group by (workspace, weekday) (campaign:braze_previous_day:weekday{{{self.campaigns}}})"
        return (
            f"label_replace(sum(last_over_time({series}[2d] offset {7 * week - 1}d)"
            f' and on (workspace, weekday) {weekdays}), "week", "{week}", "", "")'
        )

    def rule(self, name: str, *matchers: str, by: tuple[str, ...] = CAMPAIGN) -> str:
        """One value for each campaign of what the rules have recorded in the last minutes."""
        selector = ",".join((self.campaigns, *matchers))
        return f"max by ({', '.join(by)}) ({name}{{{selector}}})"

    def sum_of_days(self, statistic: str, by: tuple[str, ...], days: int, *matchers: str) -> str:
        """Sum of such a statistic over so many complete days."""
        return total(f"sum_over_time({self._of_days(statistic, matchers)}[{days}d])", by)

    def four_weeks(self) -> str:
        """Volume of each campaign at this time of the same weekday in the last four weeks, with the label `week`."""
        weeks = [
            f'label_replace({total(self.weeks_ago(week), CAMPAIGN)}, "week", "{week}", "", "")' for week in range(1, 5)
        ]
        return "\nor ".join(weeks)

    def weeks_ago(self, weeks: int) -> str:
        """Volume at this time so many weeks ago, on the same weekday as at the end of the time range."""
        offset = f"{7 * weeks}d"
        return self.of_last_day(self.volume(offset=offset), offset=offset)

    def named(self, expression: str) -> str:
        """Add the campaign's present name to an expression about now, by workspace and campaign and perhaps others.

        Every campaign that the exporter exports has one, whether its polls succeed or not.
        """
        return f"({expression})\n* {_ON_CAMPAIGN} group_left (campaign_name) {self._present_names()}"

    def named_over_time(self, expression: str) -> str:
        """Add the campaign's name to an expression over a time range.

        It is the one at the end of the range, the last known one of a campaign that is gone since, and the id where
        there is none, as after an import: no value is lost. The names are computed once, not at each step.
        """
        recorded = f"last_over_time(campaign:braze_campaign_name:date{{{self.campaigns}}}[$__range] @ end())"
        known = f"last_over_time(campaign:braze_recorded_day:date{{{self.campaigns}}}[$__range] @ end())"
        return (
            f"({expression})\n* {_ON_CAMPAIGN} group_left (campaign_name)"
            f" group by (workspace, campaign_id, campaign_name) (\n{self._present_names()}\n"
            f"or {_ON_CAMPAIGN} topk by (workspace, campaign_id) (1, {recorded})\n"
            f'or {_ON_CAMPAIGN} label_join({known}, "campaign_name", "", "campaign_id"))'
        )

    def _present_names(self) -> str:
        names = f"group by (workspace, campaign_id, campaign_name) (braze_campaign_up{{{self.campaigns}}} @ end())"
        return f"topk by (workspace, campaign_id) (1, {names})"

    def _of_variations(self, metric: str, matchers: tuple[str, ...], offset: str) -> str:
        return f"max by ({', '.join(VARIATION)}) ({self._chosen(metric, matchers)}{_offset(offset)})"

    def _recorded(self, statistic: str, matchers: tuple[str, ...]) -> str:
        """Return what is recorded around the time of recording of the day that begins at each midnight."""
        return f"last_over_time({self._of_days(statistic, matchers)}[4d] offset -100h)"

    def _of_days(self, statistic: str, matchers: tuple[str, ...]) -> str:
        of_variations = statistic.startswith("message_") and statistic != "message_volume"
        level = "variation" if of_variations else "campaign"
        return self._chosen(f"{level}:braze_previous_day_{statistic}:day", matchers)

    def _chosen(self, name: str, matchers: tuple[str, ...]) -> str:
        """Return a selector; not all series have variations, or channels, to choose from."""
        chosen = self.variations if name.startswith(_OF_VARIATIONS) else ()
        if name.startswith("campaign_channel:"):
            chosen = tuple(matcher for matcher in self.variations if matcher.startswith("channel"))
        if any(matcher.startswith("channel") for matcher in matchers):
            chosen = tuple(matcher for matcher in chosen if not matcher.startswith("channel"))
        return f"{name}{{{','.join((self.campaigns, *chosen, *matchers))}}}"

    def _day_series(self, at: str = "", offset: str = "") -> str:
        return f"braze_campaign_day_timestamp_seconds{{{self.campaigns}}}{at}{_offset(offset)}"


def total(expression: str, by: tuple[str, ...] = ()) -> str:
    """Sum of an expression, by labels if there are any."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def _drawn(expression: str, by: tuple[str, ...]) -> str:
    """Sum of series of days by labels, of the day that begins at this midnight."""
    return total(f"{total(expression, (*by, 'weekday'))}\nand on (weekday) {_DRAWN}", by)


def ratio(numerator: str, denominator: str, *, least: int) -> str:
    """Ratio that is absent below the least denominator: a rate of a handful tells nothing."""
    return f"{numerator}\n/ ({denominator} >= {least})"


def highest(count: int, expression: str) -> str:
    """Return so many of the largest values."""
    return f"topk({count}, {expression})"


def lowest(count: int, expression: str) -> str:
    """Return so many of the smallest values."""
    return f"bottomk({count}, {expression})"


def wilson(successes: str, trials: str, sign: str) -> str:
    """Return the lower (sign -) or upper (+) end of the 95 % interval of a share, by Wilson's formula."""
    spread = f"1.96 * sqrt({successes} * (1 - {successes} / {trials}) + 0.96)"
    return f"({successes} + 1.92 {sign} {spread})\n/ ({trials} + 3.84)"


def _offset(duration: str) -> str:
    return f" offset {duration}" if duration else ""
