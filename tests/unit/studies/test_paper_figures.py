"""What the studies of the paper's figures 4 and 6 and of new users compute on the way, and two from end to end."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_study import rows_of_small_study, small_settings

from watchnext.cli import make_features
from watchnext.studies import figure4, figure6, newusers, table1
from watchnext.studies._lab import Lab
from watchnext.studies._report import Row

BEFORE = figure4.BEFORE_UPLOAD
DAYS = figure4.MOST_DAYS


def test_shares_of_a_day_sum_to_one_and_a_day_without_watches_has_none() -> None:
    shares = figure4.daily_shares(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 2]), 3, 3)
    np.testing.assert_allclose(shares, [[2 / 3, 0.0, 0.0], [1 / 3, 0.0, 1.0], [0.0, 0.0, 0.0]])


def test_days_count_from_upload_and_those_outside_the_window_are_unknown() -> None:
    """Video 0 came on day 0, video 1 on day 5 of a window of 7."""
    shares = np.arange(14.0).reshape(2, 7)
    aligned = figure4.by_days_since_upload(shares, np.array([0, 5]))
    assert np.isnan(aligned[0, :BEFORE]).all()
    assert aligned[0, BEFORE : BEFORE + 7].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert aligned[1, : BEFORE + 2].tolist() == [8, 9, 10, 11, 12, 13]
    assert np.isnan(aligned[1, BEFORE + 2 :]).all()
    curve = figure4.mean_curve(aligned)
    assert curve[BEFORE] == (0 + 12) / 2
    assert curve[BEFORE + 2] == 2.0
    assert curve[0] == 8.0


def test_the_slope_is_that_of_least_squares() -> None:
    """A line, a line with an offset, no relation; and against numpy's own fit."""
    truth = np.array([0.0, 1.0, 4.0, 2.0, np.nan])
    assert figure4.slope(truth, 0.8 * truth + 3.0) == pytest.approx(0.8)
    assert figure4.slope(truth, np.full(5, 2.0)) == 0.0
    assert np.isnan(figure4.slope(np.ones(3), np.arange(3.0)))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(size=50)
    assert figure4.slope(x, y) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert figure4.slope(x, y) != pytest.approx(figure4.slope(y, x))


def test_the_error_of_shares_is_relative_and_counts_days_from_upload() -> None:
    truth = np.full((2, BEFORE + DAYS), 0.02)
    predicted = truth + 0.01
    assert figure4.share_error(truth, predicted) == pytest.approx(0.5)
    predicted[:, :BEFORE] = 9.0
    assert figure4.share_error(truth, predicted) == pytest.approx(0.5)
    predicted[0] = 0.02
    assert figure4.share_error(truth, predicted) == pytest.approx(0.5 / np.sqrt(2))
    assert figure4.share_error(truth, predicted, np.array([1.0, 0.0])) == 0.0


def test_rows_of_curves_follow_a_model_that_knows_and_one_that_does_not() -> None:
    rng = np.random.default_rng(1)
    worlds = []
    for _ in range(2):
        height = rng.uniform(0.5, 1.5, size=(30, 1))
        truth = height * np.r_[np.zeros(BEFORE), np.exp(-np.arange(DAYS) / 3.0)]
        flat = np.broadcast_to(truth.mean(axis=1, keepdims=True), truth.shape)
        logs = truth * rng.uniform(0.9, 1.1, size=truth.shape)
        worlds.append({"truth": truth, figure4.LOGS: logs, figure4.WITH: 0.9 * truth, figure4.WITHOUT: flat})
    found = {(r.metric, r.variant, r.against): r for r in figure4.curve_rows(1.0, worlds, resamples=50)}
    assert found["slope", figure4.WITH, ""].estimate == pytest.approx(0.9)
    assert found["slope", figure4.WITHOUT, ""].estimate == pytest.approx(0.0, abs=1e-9)
    difference = found["slope", figure4.WITH, figure4.WITHOUT]
    assert 0.85 < difference.low <= difference.estimate <= difference.high < 0.95
    ceiling = found["share_error", figure4.LOGS, ""].estimate
    assert 0.0 < ceiling < found["share_error", figure4.WITHOUT, ""].estimate


@pytest.fixture(scope="module")
def small_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(small_settings(days=12), tmp_path_factory.mktemp("study"), make_features)


@pytest.mark.slow
def test_the_truth_knows_nothing_of_the_logs(small_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cohort and its truth stay what they are when the labels of the logs are replaced; shares before upload are 0.

    A truth made of the logs' own watches fails, and so does a cohort chosen by them.
    """
    import dataclasses

    monkeypatch.setattr(figure4, "FEWEST_WATCHES", 5)
    ground = small_lab.world(1.0, {"freshness": 1.0}, 0)
    cohort = figure4.find_cohort(ground, runs=2)
    swapped = {**ground.arrays, "label": np.ones_like(ground.arrays["label"])}
    other = dataclasses.replace(ground, arrays=swapped, examples=ground.examples.slice(0, 1))
    same = figure4.find_cohort(other, runs=2)
    np.testing.assert_array_equal(cohort.rows, same.rows)
    np.testing.assert_array_equal(cohort.truth, same.truth)
    assert len(cohort.rows) > 5
    aligned = cohort.aligned(cohort.truth)
    assert np.nansum(aligned[:, :BEFORE]) == 0.0
    assert np.nansum(aligned[:, BEFORE:]) > 0.0
    # Other luck, same laws: near the logs' own shares, and not equal to them.
    logs = figure4.logged_shares(ground)[cohort.rows].mean(axis=1)
    truth = cohort.truth[cohort.rows].mean(axis=1)
    assert 0.5 < np.corrcoef(logs, truth)[0, 1] < 0.9999


def test_users_without_past_have_it_withheld_and_nothing_else() -> None:
    arrays = {
        "history": np.array([[3, 0]]),
        "shown_unwatched": np.array([[3]]),
        "search_tokens": np.array([[1]]),
        "region": np.array([2]),
        "age": np.array([0.3]),
    }
    bare = newusers.without_past(arrays)
    assert [bare[name].any() for name in newusers.PAST] == [False] * 3
    assert bare["region"].tolist() == [2]
    assert bare["age"].tolist() == [0.3]


def test_events_of_new_users_are_measured_alone() -> None:
    users = pa.chunked_array([pa.array([7, 7, 8]), pa.array([9])])
    found = newusers.summarise(np.array([1, 2, 4, 200]), np.array([False, False, True, True]), users)
    assert found["map_new_users"].mean == pytest.approx((1 / 4 + 1 / 200) / 2)
    assert found["recall_at_100_new_users"].mean == 0.5
    assert found["map_as_if_new"].mean == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 200) / 4)
    assert found["recall_at_100_as_if_new"].counts.tolist() == [2.0, 1.0, 1.0]


def test_every_claim_of_figure_6_has_a_row_that_decides() -> None:
    made = {*figure6.AGAINST}
    assert {(claim.variant, claim.against) for claim in figure6.CLAIMS} <= made


def test_figure_6_draws_only_places_where_all_depths_are_known() -> None:
    rows = [
        Row("simulated", dial, figure6.variant_of(name, depth), "map", 0.1 + 0.01 * depth, 0.09, 0.2)
        for dial, depths in ((1.0, figure6.DEPTHS), (0.0, figure6.FEW_DEPTHS))
        for name in figure6.INPUTS
        for depth in depths
    ]
    axes = figure6.draw(rows).axes
    assert [one.get_title() for one in axes] == ["simulated, dial 1"]
    assert len(axes[0].get_legend().get_texts()) == len(figure6.INPUTS)


def test_every_claim_of_table_1_has_a_row_that_decides() -> None:
    assert {(claim.variant, claim.against) for claim in table1.CLAIMS} <= {*table1.AGAINST}
    assert {name for pair in table1.AGAINST for name in pair} == {
        *table1.CONFIGURATIONS,
        table1.PLAIN,
        table1.ALIKE,
    }


@pytest.mark.slow
def test_table_1_runs_from_end_to_end(project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two ends of the table, with few units."""
    monkeypatch.setattr(table1, "CONFIGURATIONS", {"none": (), table1.WIDEST: (16, 8, 4)})
    judged = []
    monkeypatch.setattr(
        table1, "judge", lambda *given, own=table1.judge: judged.append(own(*given)) or judged[-1]
    )
    rows = rows_of_small_study("table1", project_root, [1.0])
    levels = {(row["variant"], row["dial"]): row["estimate"] for row in rows if not row["against"]}
    assert len(levels) == len(set(levels.values())) == 4
    assert all(0.2 < loss < 0.7 for loss in levels.values())
    assert all(((one.totals >= 0) & (one.totals <= one.counts)).all() for one in judged)
    page = (project_root / "docs/studies/table1.md").read_text(encoding="utf-8")
    assert "CPU time of one request of 200 candidates" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["newusers", "figure6"])
def test_a_study_runs_from_end_to_end(name: str, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure6, "DEPTHS", (0, 2))
    rows = rows_of_small_study(name, project_root, [0.0, 1.0])
    assert {row["dial"] for row in rows} == {0.0, 1.0}
    for row in rows:
        assert row["low"] <= row["estimate"] <= row["high"] or np.isnan(row["estimate"]), row
    if name == "figure6":
        searches = [
            row
            for row in rows
            if row["dial"] == 0.0
            and row["against"] == figure6.variant_of("watches", 2)
            and row["variant"] == figure6.variant_of("and searches", 2)
        ]
        assert searches
        assert all(row["estimate"] == 0.0 for row in searches), "nobody searches there"
