"""A day is added to logs: its rows are judged, and what comes of it is what comes of judging all of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from test_validate import (
    DAY_US,
    DAYS,
    LENIENT,
    REQUESTS_A_DAY,
    SLATE,
    SMALL,
    START_US,
    Tables,
    injected,
    instants,
    sound_logs,
    store,
)

from watchnext.data import judged_days
from watchnext.data.judged_days import JudgedDays
from watchnext.data.validate import Batch, Judge
from watchnext.data.validation_rules import Rule, Thresholds, Within
from watchnext.engine import EngineParams
from watchnext.stages.validate import Params, validate

NEW_IMPRESSIONS = REQUESTS_A_DAY * SLATE
NEW_WATCHES = 120
# By the clock the sentence of a rule would name the minute.
SETTINGS = {**SMALL, **LENIENT, "latest_at": "2026-03-20T00:00:00Z", "batch_rows": 1_300}
Change = Callable[[Tables], Tables]
Metrics = dict[str, float | int | str]


def without_last_day(tables: Tables) -> Tables:
    """What was there a day earlier; rows without a plausible instant were, too."""
    cut = dict(tables)
    for name, instant in (("impressions", "shown_at"), ("watches", "watched_at")):
        at = tables[name][instant].cast(pa.int64())
        day = pc.divide(pc.subtract(at, START_US), DAY_US)
        cut[name] = tables[name].filter(pc.fill_null(pc.not_equal(day, DAYS - 1), True))
    return cut


def judge(tables: Tables, folder: Path, earlier_report: Path | None, **settings: object) -> Metrics:
    return validate(
        Params(**{**SETTINGS, **settings}),
        EngineParams(),
        store(tables, folder / "ingested"),
        *(folder / name for name in ("validated", "quarantine", "report")),
        earlier_report=earlier_report,
    )


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything that the stage wrote but Data Docs, whose pages hold the time of day."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.relative_to(folder).parts[0] != "ingested" and "data_docs" not in path.parts
    }


def but_what_was_judged(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if "rows_judged" not in name}


def with_row(table: str, row: int, **values: object) -> Change:
    """A copy of a row, changed."""

    def add(tables: Tables) -> Tables:
        one = tables[table].slice(row, 1)
        for column, value in values.items():
            cell = instants(np.array([value])) if column.endswith("_at") else pa.array([value])
            one = one.set_column(one.column_names.index(column), column, cell.cast(one[column].type))
        return {**tables, table: pa.concat_tables([tables[table], one])}

    return add


def test_days_that_are_added_or_not_as_they_were_are_judged_and_no_others(tmp_path: Path) -> None:
    """A day is added, and of watches nothing else has changed. Of impressions a late one came on day 1, and one on day 5
    that is of a page of day 2, which is so of two instants: the rows of day 2 are wrong, though none of them has changed.

    Five impressions of the year 58000 and a watch without an instant are of no day, and so judged each time.
    """
    tables = injected(sound_logs())
    judge(without_last_day(tables), tmp_path / "before", None)
    late = with_row("impressions", NEW_IMPRESSIONS, request_id=10**6, shown_at=START_US + DAY_US + 5)
    mixed = with_row("impressions", 2 * NEW_IMPRESSIONS, shown_at=START_US + 5 * DAY_US + 5)
    tables = mixed(late(tables))
    added = judge(tables, tmp_path / "added", tmp_path / "before" / "report")
    assert added["watches_rows_judged"] == NEW_WATCHES + 1
    assert added["impressions_rows_judged"] == 4 * NEW_IMPRESSIONS + 2 + 5
    whole = judge(tables, tmp_path / "whole", None)
    assert whole["watches_rows_judged"] == whole["watches_rows"]
    assert whole["impressions_rows_judged"] == whole["impressions_rows"]
    assert outcome(tmp_path / "added") == outcome(tmp_path / "whole")
    assert but_what_was_judged(added) == but_what_was_judged(whole)


def test_a_batch_fails_by_all_of_its_days_whichever_were_judged_now() -> None:
    """The judge's own word is of the rows that it was given, a batch's is of all its days."""
    rule = Rule("small", "watches", "value", Within(maximum=1), "it is small", max_bad_share=0.25)
    frame = pd.DataFrame({"value": [0.0, 2.0, np.nan, 1.0]})  # one of three
    batches = [
        Batch("failed and fails", frame, {"small": (3, 1)}),
        Batch("failed and passes", frame, {"small": (1, 0)}),
        Batch("passed and fails", None, {"small": (3, 1)}),
        Batch("alone", frame),
    ]
    (verdict,) = Judge().judge([rule], batches)
    assert verdict.failed_in == ["failed and fails", "passed and fails", "alone"]
    assert (verdict.judged, verdict.broken_by) == (3 + 3 + 3 + 1 + 3 + 3, 1 + 1 + 1 + 0 + 1 + 1)


RULES = (
    Rule("in_the_future", "watches", "at", Within(minimum=0), "", by_clock=True),
    Rule("small", "watches", "value", Within(maximum=1), ""),
)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    judged = JudgedDays.open(None, Thresholds(), latest_at_s=100.0)
    judged.keep("watches", "2026-03-01", "digest", {"in_the_future": (9, 0), "small": (8, 2)})
    judged.keep("watches", "2026-03-02", "digest", {"in_the_future": (9, 1), "small": (8, 0)})
    judged.write(tmp_path)
    return tmp_path


def test_what_was_in_the_future_is_judged_again_and_what_was_not_is_not(report: Path) -> None:
    """And everything by a clock that was set back."""
    later = JudgedDays.open(report, Thresholds(), latest_at_s=101.0)
    assert later.earlier(RULES, "2026-03-01", "digest") == {"in_the_future": (9, 0), "small": (8, 2)}
    assert later.earlier(RULES, "2026-03-02", "digest") is None
    set_back = JudgedDays.open(report, Thresholds(), latest_at_s=99.0)
    assert set_back.earlier(RULES, "2026-03-01", "digest") is None


def test_another_day_suite_or_library_judges_again(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = JudgedDays.open(report, Thresholds(), latest_at_s=100.0)
    assert same.earlier(RULES, "2026-03-01", "digest") is not None
    assert same.earlier(RULES, "2026-03-01", "another digest") is None
    assert same.earlier(RULES, "2026-03-03", "digest") is None
    assert same.earlier(RULES[1:], "2026-03-01", "digest") is None
    other = JudgedDays.open(report, Thresholds(watch_time_max_durations=40.0), latest_at_s=100.0)
    assert other.earlier(RULES, "2026-03-01", "digest") is None
    monkeypatch.setattr(judged_days.importlib.metadata, "version", lambda name: f"another {name}")
    newer = JudgedDays.open(report, Thresholds(), latest_at_s=100.0)
    assert newer.earlier(RULES, "2026-03-01", "digest") is None


def test_a_report_that_is_not_there_keeps_nothing(tmp_path: Path) -> None:
    judged = JudgedDays.open(tmp_path, Thresholds(), latest_at_s=100.0)
    assert judged.earlier(RULES, "2026-03-01", "digest") is None


@pytest.mark.parametrize("damage", ["", '{"made_by": "cut o', "[]", "rules", "\udcff"])
def test_a_damaged_file_is_said_and_judges_all_days_anew(
    report: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Empty, cut off, another thing, a day without a key, and no UTF-8."""
    path = report / judged_days.JUDGED_DAYS
    text = path.read_text().replace('"rules"', '"rulez"') if damage == "rules" else damage
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    judged = JudgedDays.open(report, Thresholds(), latest_at_s=100.0)
    assert judged.earlier(RULES, "2026-03-01", "digest") is None
    assert f"{path} is damaged, so all days are judged anew" in " ".join(capsys.readouterr().err.split())
