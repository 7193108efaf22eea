"""Verdicts follow from figures, and a page keeps what was written by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from watchnext.evaluation.intervals import PerUser
from watchnext.studies._measures import Measures
from watchnext.studies._report import HAND_WRITTEN, Claim, Result, Row, judge, write_page

CLAIM = Claim("b is better", "b", "a", "map")


def difference(source: str, dial: float | None, low: float, high: float) -> Row:
    return Row(source, dial, "b", "map", (low + high) / 2, low, high, "a")


def level(source: str, dial: float | None, value: float) -> Row:
    return Row(source, dial, "a", "map", value, value - 0.01, value + 0.01)


GAIN, LOSS, OPEN = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.2)


@pytest.mark.parametrize(
    ("logs", "full", "off", "verdict"),
    [
        (GAIN, GAIN, OPEN, "reproduced"),
        (GAIN, OPEN, OPEN, "reproduced"),
        (LOSS, GAIN, OPEN, "does not hold"),
        (None, GAIN, OPEN, "mechanism check passed"),
        (OPEN, GAIN, OPEN, "mechanism check passed"),
        (None, GAIN, GAIN, "another mechanism"),
        (None, LOSS, OPEN, "does not hold"),
        (None, OPEN, OPEN, "not shown"),
        (OPEN, OPEN, OPEN, "not shown"),
    ],
)
def test_only_real_logs_reproduce_and_an_effect_has_to_go_with_its_mechanism(
    logs: tuple[float, float] | None,
    full: tuple[float, float],
    off: tuple[float, float],
    verdict: str,
) -> None:
    rows = [difference("simulated", 1.0, *full), difference("simulated", 0.0, *off)]
    rows += [difference("kuairand", None, *logs)] if logs else []
    assert judge(CLAIM, rows).verdict == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((-0.01, 0.015), "reproduced"), ((-0.01, 0.03), "not shown"), ((0.03, 0.05), "does not hold")],
)
def test_no_difference_is_shown_by_an_interval_within_the_bound(
    interval: tuple[float, float], verdict: str
) -> None:
    """The bound is 10 % of a level of 0.2: 0.02."""
    claim = Claim("all the same", "b", "a", "map", expects="same", within=0.1)
    rows = [level("kuairand", None, 0.2), difference("kuairand", None, *interval)]
    assert judge(claim, rows).verdict == verdict


def test_a_level_is_held_against_two_ends() -> None:
    claim = Claim("the slope is near 1", "b", "", "slope", expects="same", within=(0.8, 1.2))
    for ends, verdict in (((0.9, 1.1), "mechanism check passed"), ((0.5, 0.7), "does not hold")):
        assert judge(claim, [Row("simulated", 1.0, "b", "slope", sum(ends) / 2, *ends)]).verdict == verdict


def test_less_is_more_upside_down() -> None:
    claim = Claim("b is worse", "b", "a", "map", expects="less")
    assert judge(claim, [difference("kuairand", None, *LOSS)]).verdict == "reproduced"
    assert judge(claim, [difference("kuairand", None, *GAIN)]).verdict == "does not hold"


def test_rows_are_paired_by_training() -> None:
    measures = Measures({"b": "a"})
    for shift in (0.0, 10.0):
        for variant, gain in (("a", 0.0), ("b", 0.5)):
            totals = np.array([1.0, 2.0, 3.0]) + shift + gain
            measures.add("simulated", 1.0, variant, {"map": PerUser(totals, np.ones(3))})
    rows = {(row.variant, row.against): row for row in measures.rows()}
    assert rows["a", ""].estimate == pytest.approx((2.0 + 12.0) / 2)
    assert rows["b", "a"].estimate == pytest.approx(0.5)
    # Each pair differs by the same, however far the trainings lie apart.
    assert rows["b", "a"].low == pytest.approx(0.5)
    assert rows["b", "a"].high == pytest.approx(0.5)


@pytest.fixture
def world_rows() -> list[Row]:
    return [level("simulated", 1.0, 0.2), difference("simulated", 1.0, *GAIN)]


def test_a_page_holds_verdict_figures_and_what_was_written_by_hand(
    tmp_path: Path, world_rows: list[Row]
) -> None:
    def write() -> list[Path]:
        result = Result(world_rows, notes=["a note"], dial="the wind")
        return write_page(tmp_path, "wind", "Wind", "About.", [CLAIM], result, {"seeds": 2}, "run me")

    page, picture, figures = write()
    text = page.read_text(encoding="utf-8")
    for part in ("# Wind", "About.", "run me", "mechanism check passed", "(wind.png)", "a note", "seeds 2"):
        assert part in text
    # 0.2 more than a level of 0.2 is a gain of 100 %.
    assert "| simulated, dial 1 | map | b minus a | +0.2 [+0.1, +0.3] (+100.0%) |" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert content["claims"][0]["verdict"] == "mechanism check passed"
    assert content["rows"][1]["low"] == GAIN[0]

    page.write_text(text + "\nBecause the wind blows.\n", encoding="utf-8")
    write()
    again = page.read_text(encoding="utf-8")
    assert again.endswith("\nBecause the wind blows.\n")
    assert again.count(HAND_WRITTEN) == 1
