"""Days in the declared time zone, and which of them train, tune, gate and shadow.

A split is by time: training days first, then the tuning day, the gate day and the shadow day. A day is a calendar
day where the users live, because activity has the shape of such days and a log cut at UTC midnight would put one
evening into two splits.
"""

import datetime as dt
import zoneinfo
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import ibis
import ibis.expr.datatypes as dtypes
import ibis.expr.types as ir

from watchnext.errors import InputError

MINIMUM_DAYS = 2
"""One whole day to train on and one to judge on: a model that no day can judge could pass no gate."""

EDGE_SHARE = 0.1
"""A first or last day with less than this share of the median daily volume is a stub, not a day of its own."""


@dataclass(frozen=True)
class SplitDays:
    """Which local days each split holds.

    Attributes:
        training: first and last day, both inclusive.
        tuning: the day on which hyper-parameters are chosen; None where there are too few days.
        gate: the day on which a candidate is held against the champion.
        shadow: the day whose requests champion and challenger both answer; None where there are too few days.
    """

    training: tuple[dt.date, dt.date]
    tuning: dt.date | None
    gate: dt.date
    shadow: dt.date | None

    def not_judged(self) -> tuple[str, ...]:
        """Names of the splits that no day is left for."""
        return tuple(name for name in ("tuning", "gate", "shadow") if getattr(self, name) is None)

    def to_manifest(self) -> dict[str, list[str] | str | None]:
        """The days as JSON holds them: ISO dates, null where there is no such day."""
        single = {name: getattr(self, name) for name in ("tuning", "gate", "shadow")}
        return {
            "training": [day.isoformat() for day in self.training],
            **{name: day.isoformat() if day else None for name, day in single.items()},
        }


def split_days(days: Iterable[dt.date]) -> SplitDays:
    """Give the last three days to tuning, gate and shadow, in that order, and the days before them to training.

    With fewer than four days the tuning day is given up first (nothing waits for it), then the shadow day; the gate
    day last of all, since nothing can be promoted without it.

    Args:
        days: local days that have logs, see `whole_days`; order and repeats do not matter.

    Raises:
        InputError: fewer than `MINIMUM_DAYS` days.
    """
    ordered = sorted(set(days))
    if len(ordered) < MINIMUM_DAYS:
        raise InputError(
            f"too few days of logs: {len(ordered)} whole day(s), and it takes {MINIMUM_DAYS} "
            "(one to train on, one to judge on)",
            where="impressions.shown_at, cut in the declared time zone",
            offenders=[day.isoformat() for day in ordered],
            remedy="add logs of further days; with 4 or more every split has its day",
        )
    held_out: dict[str, dt.date] = {}
    for name in {2: ("gate",), 3: ("gate", "shadow")}.get(len(ordered), ("tuning", "gate", "shadow"))[::-1]:
        held_out[name] = ordered.pop()
    return SplitDays(
        training=(ordered[0], ordered[-1]),
        tuning=held_out.get("tuning"),
        gate=held_out["gate"],
        shadow=held_out.get("shadow"),
    )


def whole_days(rows_per_day: Mapping[dt.date, int], edge_share: float = EDGE_SHARE) -> list[dt.date]:
    """The days without stubs at the two edges, ascending.

    Logs rarely begin and end at midnight of the declared time zone: a first day of 141 rows before days of 15,000
    would be a training day in name, and as a last day it would judge a model on noise. A stub is in no split. Its
    events are kept all the same, as what users had done before.

    Args:
        rows_per_day: rows of each local day, as `rows_per_day` counts them.
        edge_share: a first or last day below this share of the median is a stub; 0 keeps every day.

    Returns:
        The days from the first to the last that is no stub; a quiet day between busy ones stays.
    """
    days = sorted(day for day, rows in rows_per_day.items() if rows > 0)
    if not days:
        return []
    floor = edge_share * median(rows_per_day[day] for day in days)
    whole = [day for day in days if rows_per_day[day] >= floor]
    return [day for day in days if whole[0] <= day <= whole[-1]]


def days_between(first: dt.date, last: dt.date) -> list[dt.date]:
    """Every day from `first` to `last`, both inclusive."""
    return [first + dt.timedelta(days=later) for later in range((last - first).days + 1)]


def rows_per_day(table: ir.Table, instant: str, time_zone: str) -> dict[dt.date, int]:
    """How many rows of `table` fall on each local day of column `instant`; rows without an instant do not count."""
    counted = (
        table.select(instant=table[instant])
        .filter(lambda t: t.instant.notnull())
        .select(day=lambda t: local_day(t.instant, time_zone))
        .group_by("day")
        .aggregate(rows=lambda t: t.count())
        .to_pyarrow()
    )
    return dict(sorted(zip(counted["day"].to_pylist(), counted["rows"].to_pylist(), strict=True)))


def local_day(instant: ir.TimestampValue, time_zone: str) -> ir.DateValue:
    """The calendar day of `instant` in `time_zone` (an IANA name), on DuckDB and on Spark.

    Args:
        instant: column of a table of an engine, in UTC.
    """
    return _wall_clock(instant, time_zone).date()


def from_wall_clock(wall_clock: ir.TimestampValue | ir.DateValue, time_zone: str) -> ir.TimestampValue:
    """The instant (UTC) at which clocks in `time_zone` showed `wall_clock`; of a date, its midnight."""
    naive = wall_clock.cast(dtypes.Timestamp(scale=6))
    if _is_spark(wall_clock):
        return _to_utc_timestamp(naive, time_zone)
    return _timezone_of_wall_clock(time_zone, naive)


def day_begins_at(day: dt.date, time_zone: str) -> dt.datetime:
    """The instant (UTC) at which `day` begins in `time_zone`."""
    midnight = dt.datetime.combine(day, dt.time(), tzinfo=zoneinfo.ZoneInfo(time_zone))
    return midnight.astimezone(dt.UTC)


def check_time_zone(name: str, where: str) -> str:
    """`name`, when it is an IANA time zone.

    Raises:
        InputError: it is not; `where` says where the name came from.
    """
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise InputError(
            f"`{name}` is not a time zone",
            where=where,
            remedy="use an IANA name such as UTC, Asia/Shanghai or Europe/Berlin",
        ) from None
    return name


def _wall_clock(instant: ir.TimestampValue, time_zone: str) -> ir.TimestampValue:
    if _is_spark(instant):
        return _from_utc_timestamp(instant, time_zone)
    return _timezone_of_instant(time_zone, instant.cast(dtypes.Timestamp(timezone="UTC", scale=6)))


def _is_spark(expression: ir.Value) -> bool:
    # Ibis casts between time zones lose the zone on DuckDB and do nothing on Spark, so each engine's own function
    # is called by name; an expression knows which engine its table lives on.
    return expression.get_backend().name == "pyspark"


# The bodies are never run: these declare functions that the engines have.
@ibis.udf.scalar.builtin(
    name="timezone", signature=((dtypes.string, dtypes.Timestamp(timezone="UTC")), dtypes.Timestamp())
)
def _timezone_of_instant(zone, instant): ...  # type: ignore[no-untyped-def]


@ibis.udf.scalar.builtin(
    name="timezone", signature=((dtypes.string, dtypes.Timestamp()), dtypes.Timestamp(timezone="UTC"))
)
def _timezone_of_wall_clock(zone, wall_clock): ...  # type: ignore[no-untyped-def]


@ibis.udf.scalar.builtin(
    name="from_utc_timestamp",
    signature=((dtypes.Timestamp(timezone="UTC"), dtypes.string), dtypes.Timestamp()),
)
def _from_utc_timestamp(instant, zone): ...  # type: ignore[no-untyped-def]


@ibis.udf.scalar.builtin(
    name="to_utc_timestamp", signature=((dtypes.Timestamp(), dtypes.string), dtypes.Timestamp(timezone="UTC"))
)
def _to_utc_timestamp(wall_clock, zone): ...  # type: ignore[no-untyped-def]
