"""Ranks, filters, metrics and the paired interval, as arithmetic."""

import dataclasses

import numpy as np
import pytest
from benchmarks import CannotMeasure
from benchmarks.quality import measure
from benchmarks.quality.folds import FILTERS, Fold, Lists


def lists(*rows: list[int]) -> Lists:
    return Lists.of([np.array(row, np.int32) for row in rows])


def fold_of(labels: list[int], users: list[int], *, num_items: int, watched: Lists, shown: Lists) -> Fold:
    events = len(labels)
    return Fold(
        num_users=max(users) + 1,
        num_items=num_items,
        train_user=np.empty(0, np.int32),
        train_item=np.empty(0, np.int32),
        train_age_days=np.empty(0, np.float32),
        event_user=np.array(users, np.int32),
        event_item=np.array(labels, np.int32),
        event_at_us=np.arange(events),
        event_asked_at_us=np.arange(events),
        context=lists(*[[]] * events),
        watched=watched,
        shown=shown,
        user_features=np.zeros((max(users) + 1, 0), np.int32),
    )


SCORES = np.array(
    [
        # Video 0 to 4. Label 2 is third, behind 0 and 1.
        [5.0, 4.0, 3.0, 2.0, 1.0],
        # All alike: the label is last of those that are left, not first.
        [1.0, 1.0, 1.0, 1.0, 1.0],
        # The model does not know the label.
        [5.0, 4.0, -np.inf, -np.inf, 1.0],
    ],
    np.float32,
)
FOLD = fold_of(
    [2, 2, 2],
    [0, 0, 1],
    num_items=5,
    watched=lists([0, 4], [0], []),
    shown=lists([0, 1, 4], [0, 2], []),
)


def scorer(begin: int, end: int) -> np.ndarray:
    return SCORES[begin:end]


def test_a_filter_takes_out_what_stood_before_the_label_and_makes_a_filtered_label_a_miss() -> None:
    ranks = dict(zip(FILTERS, measure.ranks_by_filter(FOLD, scorer).tolist(), strict=True))

    assert ranks == {
        "none": [3, 5, measure.UNRANKED],
        # Event 0: 0 stood before, 4 after. Event 1: four are left, all alike.
        "watched": [2, 4, measure.UNRANKED],
        # Event 0: 0 and 1 stood before. Event 1: the label itself had been shown.
        "shown": [1, measure.UNRANKED, measure.UNRANKED],
    }


def test_ranks_do_not_depend_on_how_many_events_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure.ranks_by_filter(FOLD, scorer)
    monkeypatch.setattr(measure, "_SCORES_AT_ONCE", 5)

    assert np.array_equal(measure.ranks_by_filter(FOLD, scorer), whole)


def test_removing_candidates_equals_scoring_them_below_everything() -> None:
    random = np.random.default_rng(3)
    events, items = 200, 30
    scores = random.integers(0, 12, (events, items)).astype(np.float32)
    taken = [np.unique(random.integers(0, items, random.integers(0, 8))) for _ in range(events)]
    labels = [int(random.choice(np.setdiff1d(np.arange(items), own))) for own in taken]
    fold = fold_of(labels, [0] * events, num_items=items, watched=Lists.of(taken), shown=Lists.of(taken))
    lowered = scores.copy()
    for event, own in enumerate(taken):
        lowered[event, own] = -1.0

    filtered = measure.ranks_by_filter(fold, lambda begin, end: scores[begin:end])
    masked = measure.ranks_by_filter(fold, lambda begin, end: lowered[begin:end])

    assert np.array_equal(filtered[FILTERS.index("shown")], masked[FILTERS.index("none")])
    assert not np.array_equal(filtered[FILTERS.index("none")], masked[FILTERS.index("none")])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    broken = SCORES.copy()
    broken[1, 3] = value

    with pytest.raises(CannotMeasure, match="not a number"):
        measure.ranks_by_filter(FOLD, lambda begin, end: broken[begin:end])


def test_scores_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(CannotMeasure, match="shape"):
        measure.ranks_by_filter(FOLD, lambda begin, end: SCORES[begin:end, :4])


def test_metrics_are_means_over_events_and_a_miss_counts_nothing() -> None:
    ranks = np.array([1, 10, 11, 100, measure.UNRANKED])

    assert measure.metrics(ranks) == pytest.approx(
        {
            "recall_at_10": 2 / 5,
            "recall_at_50": 3 / 5,
            "recall_at_100": 4 / 5,
            "map": (1 + 1 / 10 + 1 / 11 + 1 / 100) / 5,
        }
    )


def test_the_interval_of_a_model_with_itself_is_the_point_one() -> None:
    gains = np.random.default_rng(1).random(300)

    assert measure.ratio_low(gains, gains, np.arange(300), seed=1) == 1.0


def test_twice_the_gain_of_every_event_is_a_ratio_of_two_in_every_draw() -> None:
    gains = np.random.default_rng(1).random(300)

    assert measure.ratio_low(2 * gains, gains, np.arange(300) // 3, seed=1) == pytest.approx(2.0)


def test_the_lower_bound_is_that_of_the_ratio_of_means() -> None:
    # Independent gains, one event per user. Delta method: the ratio of two means has a variance of
    # (cv_ours^2 + cv_theirs^2) / n times its square, cv the coefficient of variation.
    random = np.random.default_rng(7)
    users = 4000
    ours, theirs = (random.random(users) < 0.5).astype(float), (random.random(users) < 0.4).astype(float)
    ratio = ours.mean() / theirs.mean()
    deviation = ratio * np.sqrt((ours.var() / ours.mean() ** 2 + theirs.var() / theirs.mean() ** 2) / users)

    low = measure.ratio_low(ours, theirs, np.arange(users), seed=1)

    assert low == pytest.approx(ratio - 1.96 * deviation, abs=0.1 * deviation)


def test_pairing_narrows_the_interval_and_events_of_one_user_widen_it() -> None:
    random = np.random.default_rng(7)
    theirs = random.random(2000)
    ours = 1.2 * theirs + 0.02 * random.random(2000)
    one_each = np.arange(2000)

    paired = measure.ratio_low(ours, theirs, one_each, seed=1)
    unpaired = measure.ratio_low(ours, random.permutation(theirs), one_each, seed=1)
    repeated = np.repeat(random.random(200), 10)
    alone = measure.ratio_low(repeated, random.permutation(repeated), one_each, seed=1)
    by_user = measure.ratio_low(repeated, random.permutation(repeated), one_each // 10, seed=1)

    assert 1.19 < paired < 1.24
    assert unpaired < paired - 0.02
    assert by_user < alone


def test_a_peer_that_gains_nothing_gives_no_ratio() -> None:
    with pytest.raises(CannotMeasure, match="too few"):
        measure.ratio_low(np.ones(5), np.zeros(5), np.arange(5), seed=1)


def ranks_of(none: list[int], watched: list[int], shown: list[int]) -> np.ndarray:
    return np.array([none, watched, shown], np.int64)


def test_ours_is_held_against_the_best_peer_under_its_best_filter_by_each_metric() -> None:
    far = measure.UNRANKED
    result = measure.compare(
        {
            "ours": ranks_of([far] * 4, [1, 2, 101, 101], [1, 1, 1, 1]),
            # Best by recall at 100, without a filter; its other filters are worse.
            "broad": ranks_of([100, 100, 100, 101], [far] * 4, [100, far, far, far]),
            # Best by map.
            "sharp": ranks_of([far] * 4, [1, far, far, far], [far] * 4),
        },
        np.array([0, 0, 0, 0]),
        ours="ours",
        our_filter="watched",
        seed=1,
    )

    assert (result["best_peer"], result["best_peer_filter"]) == ("broad", "none")
    assert (result["best_peer_by_map"], result["best_peer_by_map_filter"]) == ("sharp", "watched")
    assert result["ratio_recall_at_100"] == pytest.approx(2 / 3)
    assert result["ratio_map"] == pytest.approx((1 + 1 / 2 + 2 / 101) / 1)
    # One user: every draw is the same.
    assert result["ratio_recall_at_100_low"] == pytest.approx(2 / 3)


def test_without_a_peer_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(CannotMeasure, match="no peer"):
        measure.compare(
            {"ours": ranks_of([1], [1], [1])}, np.array([0]), ours="ours", our_filter="none", seed=1
        )


def test_a_fold_comes_back_from_disk_as_it_was(tmp_path) -> None:  # type: ignore[no-untyped-def]
    FOLD.save(tmp_path)
    again = Fold.load(tmp_path)

    for field in dataclasses.fields(Fold):
        ours, theirs = getattr(FOLD, field.name), getattr(again, field.name)
        if isinstance(ours, Lists):
            assert np.array_equal(ours.offsets, theirs.offsets)
            assert np.array_equal(ours.items, theirs.items)
        else:
            assert np.array_equal(ours, theirs)


def test_padded_lists_keep_the_last_codes_and_shift_them_off_zero() -> None:
    assert lists([7, 8, 9], [], [0]).padded(2).tolist() == [[9, 10], [0, 0], [0, 1]]
