"""Days in the declared time zone, and which split they belong to."""

import datetime as dt
import zoneinfo
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchnext.data.split import (
    SplitDays,
    check_time_zone,
    day_begins_at,
    from_wall_clock,
    local_day,
    rows_per_day,
    split_days,
    whole_days,
)
from watchnext.engine import EngineParams, connect
from watchnext.errors import InputError


def day(number: int) -> dt.date:
    return dt.date(2026, 3, number)


def test_last_three_days_are_tuning_gate_and_shadow_in_that_order() -> None:
    days = split_days([day(n) for n in range(1, 22)])
    assert days == SplitDays(training=(day(1), day(18)), tuning=day(19), gate=day(20), shadow=day(21))
    assert days.not_judged() == ()
    assert days.to_manifest() == {
        "training": ["2026-03-01", "2026-03-18"],
        "tuning": "2026-03-19",
        "gate": "2026-03-20",
        "shadow": "2026-03-21",
    }


def test_order_and_repeats_of_days_do_not_matter() -> None:
    assert split_days([day(4), day(1), day(3), day(2), day(4)]) == split_days([day(n) for n in range(1, 5)])


@pytest.mark.parametrize(
    ("count", "expected", "not_judged"),
    [
        (4, SplitDays((day(1), day(1)), day(2), day(3), day(4)), ()),
        (3, SplitDays((day(1), day(1)), None, day(2), day(3)), ("tuning",)),
        (2, SplitDays((day(1), day(1)), None, day(2), None), ("tuning", "shadow")),
    ],
)
def test_fewer_days_give_up_tuning_first_and_the_gate_last(
    count: int, expected: SplitDays, not_judged: tuple[str, ...]
) -> None:
    days = split_days([day(n) for n in range(1, count + 1)])
    assert days == expected
    assert days.not_judged() == not_judged


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_days_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=rf"too few days of logs: {count} whole day\(s\), and it takes 2"):
        split_days([day(n) for n in range(1, count + 1)])


def test_stubs_at_the_edges_are_no_days() -> None:
    """KuaiRand's first local day holds 55 minutes. Seen to fail when the edge share was compared with the maximum."""
    counts = {day(1): 141, day(2): 14_650, day(3): 13_469, day(4): 20_600, day(5): 1_400}
    assert whole_days(counts) == [day(2), day(3), day(4), day(5)]
    # The median is 13,469; a tenth of it 1,346.9.
    assert whole_days({**counts, day(5): 1_346}) == [day(2), day(3), day(4)]
    assert whole_days({**counts, day(5): 1_347}) == [day(2), day(3), day(4), day(5)]


def test_a_quiet_day_between_busy_ones_stays() -> None:
    assert whole_days({day(1): 100, day(2): 1, day(3): 100}) == [day(1), day(2), day(3)]


def test_edge_share_of_zero_keeps_every_day_with_rows() -> None:
    assert whole_days({day(1): 1, day(2): 1_000, day(3): 0}, edge_share=0.0) == [day(1), day(2)]
    assert whole_days({}) == []


INSTANTS = [
    dt.datetime(2026, 3, 1, 15, 59, 59, 999_999, tzinfo=dt.UTC),  # 23:59:59.999999 in Shanghai
    dt.datetime(2026, 3, 1, 16, 0, tzinfo=dt.UTC),  # midnight in Shanghai
    dt.datetime(2026, 3, 8, 4, 59, 59, tzinfo=dt.UTC),  # 23:59:59 in New York, the night clocks go forward
    dt.datetime(2026, 3, 9, 3, 59, 59, tzinfo=dt.UTC),  # 23:59:59 in New York, in summer time
    None,
]
ZONES = ("UTC", "Asia/Shanghai", "America/New_York", "Asia/Kolkata")


@pytest.mark.parametrize(
    "kind", ["duckdb", pytest.param("spark", marks=[pytest.mark.spark, pytest.mark.slow])]
)
def test_local_day_is_the_calendar_day_that_python_gives(kind: str, tmp_path: Path) -> None:
    """Seen to fail on Ibis' own cast to a timestamp with the zone, which keeps the UTC day on DuckDB."""
    pq.write_table(
        pa.table({"at": pa.array(INSTANTS, pa.timestamp("us", "UTC"))}), tmp_path / "part-0.parquet"
    )
    with connect(EngineParams.model_validate({"kind": kind})) as engine:
        table = engine.read(tmp_path)
        for zone in ZONES:
            expected = [day_in(zone, instant) for instant in INSTANTS if instant is not None]
            counted = {date: expected.count(date) for date in sorted(set(expected))}
            assert rows_per_day(table, "at", zone) == counted
            computed = table.mutate(day=local_day(table["at"], zone)).to_pyarrow().to_pylist()
            # Spark hands instants over without their zone.
            found = {row["at"] and row["at"].replace(tzinfo=dt.UTC): row["day"] for row in computed}
            assert found == {
                instant: None if instant is None else day_in(zone, instant) for instant in INSTANTS
            }


@pytest.mark.parametrize(
    "kind", ["duckdb", pytest.param("spark", marks=[pytest.mark.spark, pytest.mark.slow])]
)
def test_a_date_is_its_midnight_on_the_wall_clock(kind: str, tmp_path: Path) -> None:
    dates = [dt.date(2022, 4, 10), dt.date(2026, 3, 8), dt.date(2026, 3, 9)]
    pq.write_table(pa.table({"date": dates}), tmp_path / "part-0.parquet")
    with connect(EngineParams.model_validate({"kind": kind})) as engine:
        table = engine.read(tmp_path)
        for zone in ZONES:
            found = table.mutate(at=from_wall_clock(table["date"], zone)).to_pyarrow().to_pylist()
            assert {row["date"]: row["at"] for row in found} == {
                date: day_begins_at(date, zone) for date in dates
            }


def day_in(zone: str, instant: dt.datetime) -> dt.date:
    return instant.astimezone(zoneinfo.ZoneInfo(zone)).date()


def test_a_day_begins_at_its_own_midnight() -> None:
    assert day_begins_at(dt.date(2022, 4, 25), "Asia/Shanghai") == dt.datetime(2022, 4, 24, 16, tzinfo=dt.UTC)
    assert day_begins_at(dt.date(2026, 3, 9), "America/New_York") == dt.datetime(2026, 3, 9, 4, tzinfo=dt.UTC)


def test_an_unknown_time_zone_is_refused() -> None:
    assert check_time_zone("Europe/Berlin", "here") == "Europe/Berlin"
    for name in ("Beijing", "../etc", ""):
        with pytest.raises(
            InputError, match=r"is not a time zone\n  where: here\n  what to do: use an IANA name"
        ):
            check_time_zone(name, "here")
