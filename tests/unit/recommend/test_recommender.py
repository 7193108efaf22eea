"""From a bundle to a slate, in a world with one right answer."""

import dataclasses
import datetime as dt
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_world import BEGIN, VIDEOS, as_format_1, make_bundle, video_at, watch_time_s

from watchnext.bundle import Bundle
from watchnext.config import Exclude, RecommendParams
from watchnext.errors import InputError
from watchnext.evaluation.offline import excluded_lists
from watchnext.features.batches import read_examples
from watchnext.features.history import UserHistory
from watchnext.features.ranking_features import (
    RequestContext,
    VideoStatistics,
    evaluate_request,
    features_named,
)
from watchnext.recommend.recommender import Recommender, excluded_videos
from watchnext.recommend.state import UserStates

NOW = BEGIN + dt.timedelta(days=30)
REQUEST = RequestContext(user_id=7, at=NOW, surface="home")


@pytest.fixture(scope="module")
def recommender(right_bundle: Bundle) -> Recommender:
    return Recommender.open(right_bundle)


def history_of(*places: int) -> UserHistory:
    """Somebody who completed the videos at these places of the ring, an hour apart."""
    history = UserHistory()
    for hour, place in enumerate(places):
        history.add_watch(video_at(place), BEGIN + dt.timedelta(hours=hour), 60.0, True, place % 20)
    return history


def test_the_candidates_are_what_comes_next(recommender: Recommender) -> None:
    slate = recommender.recommend(history_of(4, 5, 6), REQUEST, how_many=recommender_size(recommender))
    best = sorted(slate.videos, key=lambda video: -(video.retrieval_score or 0.0))[:2]
    assert [(video.video_id, video.retrieval_score) for video in best] == [
        (video_at(7), 1.0),
        (video_at(8), 0.5),
    ]
    assert slate.personal


def recommender_size(recommender: Recommender) -> int:
    """As many as the ranker sees, so that the whole ranking shows."""
    return recommender.recommend(None, REQUEST, how_many=1).ranked


def test_the_slate_is_sorted_by_expected_watch_time(recommender: Recommender) -> None:
    """Seen to fail when the slate was left in the order of retrieval."""
    slate = recommender.recommend(history_of(4, 5, 6), REQUEST, how_many=20)
    assert len(slate.videos) == len(set(slate.video_ids)) == 20
    scores = [video.expected_watch_time_s for video in slate.videos]
    assert scores == [watch_time_s(video_id) for video_id in slate.video_ids]
    assert scores == sorted(scores, reverse=True)
    ranked = recommender.recommend(history_of(4, 5, 6), REQUEST, how_many=slate.ranked)
    assert min(scores) >= max(video.expected_watch_time_s for video in ranked.videos[20:])


def test_what_was_watched_or_excluded_is_not_shown(recommender: Recommender) -> None:
    """Seen to fail with the exclusion of popular videos taken out."""
    for watched in ([], [4, 5, 6]):
        before = recommender.recommend(history_of(*watched), REQUEST, how_many=10)
        after = recommender.recommend(history_of(*watched), REQUEST, how_many=10, exclude=before.video_ids)
        assert not set(before.video_ids) & set(after.video_ids)
    everything_but_three = history_of(*range(VIDEOS - 3))
    slate = recommender.recommend(everything_but_three, REQUEST, how_many=10)
    left = {video_at(place) for place in range(VIDEOS - 3, VIDEOS)}
    assert set(slate.video_ids) <= left


def test_somebody_unknown_gets_what_is_popular(recommender: Recommender) -> None:
    popular = VideoStatistics.from_table(
        pa.table(
            {
                "video_id": [video_at(3), video_at(1), video_at(2), video_at(9)],
                "covered_days": [7, 7, 7, 7],
                "impressions": [0, 20, 10, 0],
                "clicks": [0, 1, 4, 0],
                "watch_time_ms": [0, 0, 0, 0],
                "completed_watches": [9, 5, 5, 0],
            }
        )
    )
    for nobody in (None, UserHistory()):
        slate = recommender.recommend(nobody, REQUEST, how_many=3, statistics=popular)
        assert set(slate.video_ids) == {video_at(1), video_at(2), video_at(3)}
        assert all(set(video.sources) == {"popular"} for video in slate.videos)
        assert max(slate.videos, key=lambda video: video.sources["popular"]).video_id == video_at(3)
        assert not slate.personal
    nothing_known = recommender.recommend(None, REQUEST, how_many=5, statistics=VideoStatistics())
    assert len(nothing_known.videos) == 5, "a corpus that nobody watched still has something to show"


def test_only_what_lies_before_the_request_counts(recommender: Recommender) -> None:
    """Metamorphic: events after the request change nothing. Seen to fail with `before` left out of watched_videos."""
    history = history_of(4, 5, 6)
    before = recommender.recommend(history, REQUEST, how_many=20)
    for place in (7, 8, 200):
        history.add_watch(video_at(place), NOW + dt.timedelta(hours=1), 60.0, True, place % 20)
    assert recommender.recommend(history, REQUEST, how_many=20) == before


def test_a_video_that_is_still_playing_is_not_shown_and_counts_for_nothing_else(
    recommender: Recommender,
) -> None:
    """Seen to fail with videos excluded only once their watch has ended."""
    history = history_of(4, 5, 6)
    before = recommender.recommend(history, REQUEST, how_many=20)
    playing = before.video_ids[0]
    history.add_watch(playing, NOW - dt.timedelta(seconds=5), 60.0, True, 7)
    after = recommender.recommend(history, REQUEST, how_many=20)
    assert playing not in after.video_ids
    assert set(before.video_ids) - {playing} <= set(after.video_ids)
    np.testing.assert_array_equal(
        recommender.embed(history, REQUEST), recommender.embed(history_of(4, 5, 6), REQUEST)
    )


def test_ranking_is_that_of_one_video_at_a_time(recommender: Recommender) -> None:
    history = history_of(4, 5, 6)
    videos = [video_at(place) for place in (30, 2, 77)]
    together = recommender.rank(history, REQUEST, videos)
    alone = [recommender.rank(history, REQUEST, [video])[0] for video in videos]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert together.tolist() == [watch_time_s(video) for video in videos]


def test_a_video_that_the_bundle_does_not_know_can_be_ranked(recommender: Recommender) -> None:
    assert np.isfinite(recommender.rank(UserHistory(), REQUEST, [999_999, video_at(1)])).all()


def test_answers_do_not_depend_on_who_else_is_asking(recommender: Recommender) -> None:
    histories = [history_of(*range(place, place + 5)) for place in range(0, 60, 3)]
    alone = [recommender.recommend(history, REQUEST, how_many=5) for history in histories]
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda history: recommender.recommend(history, REQUEST, how_many=5), histories)
        )
    assert together == alone


@pytest.mark.parametrize("how_many", [0, -1, 501])
def test_a_slate_of_an_absurd_length_is_refused(recommender: Recommender, how_many: int) -> None:
    with pytest.raises(InputError, match="a slate has 1 to 500 videos"):
        recommender.recommend(None, REQUEST, how_many=how_many)


def test_a_slate_says_which_sources_named_each_video(recommender: Recommender) -> None:
    """Everybody watches the ring in order: what follows is named by the tower, and by who was there before."""
    slate = recommender.recommend(history_of(4, 5, 6), REQUEST, how_many=200)
    by_id = {video.video_id: video for video in slate.videos}
    following = by_id[video_at(7)]
    assert {"tower", "co_watched"} <= set(following.sources)
    assert following.sources["tower"] == following.retrieval_score == 1.0
    assert following.sources["co_watched"] > 0
    named = [name for video in slate.videos for name in video.sources]
    assert set(named) == {"tower", "co_watched", "popular", "channels"}, "nothing was uploaded of late"
    assert named.count("tower") >= RecommendParams().sources.tower


def test_a_bundle_is_served_with_the_sources_and_the_filter_that_it_was_packaged_with(
    world_features: Path, tmp_path: Path
) -> None:
    """Seen to fail with the filter of the recommender fixed to `watched`."""
    quotas = {"tower": 30, "co_watched": 5, "popular": 0, "channels": 0, "fresh": 0}
    history = history_of(4, 5, 6)
    shown = video_at(7)
    history.add_impression(shown, shown_at=BEGIN + dt.timedelta(days=1), clicked=False, watch_time_s=0.0)
    for exclude, left_out in (
        ("none", set()),
        ("watched", {video_at(4), video_at(5), video_at(6)}),
        ("shown", {video_at(4), video_at(5), video_at(6), shown}),
    ):
        settings = {"exclude": exclude, "sources": quotas}
        opened = Recommender.open(make_bundle(tmp_path / exclude, world_features, recommend=settings))
        slate = opened.recommend(history, REQUEST, how_many=35)
        assert slate.ranked == 35
        assert excluded_videos(history, REQUEST, exclude) == left_out
        assert not left_out & set(slate.video_ids)
        if exclude != "shown":
            assert shown in slate.video_ids
        assert {name for video in slate.videos for name in video.sources} == {"tower", "co_watched"}


def test_a_bundle_of_format_1_is_served_as_it_was(right_bundle: Bundle, tmp_path: Path) -> None:
    """The tower, what is popular where that names too few, and nothing that was watched."""
    older = as_format_1(right_bundle, tmp_path / "older")
    slate = Recommender.open(older).recommend(history_of(4, 5, 6), REQUEST, how_many=200)
    assert {name for video in slate.videos for name in video.sources} == {"tower", "popular"}
    assert not {video_at(4), video_at(5), video_at(6)} & set(slate.video_ids)
    assert sum(video.retrieval_score is not None for video in slate.videos) >= 199


@pytest.mark.parametrize("exclude", ["none", "watched", "shown"])
def test_evaluation_and_serving_leave_out_the_same_videos(
    world_features: Path, world_tables: Path, exclude: Exclude
) -> None:
    """For every event of the gate day, as of the instant at which somebody had to decide what to recommend.

    Seen to fail with `shown` that leaves what was watched without a page, and with filters as of the watch itself.
    """
    examples = world_features / "retrieval_examples" / "gate"
    table = pa.concat_tables(read_examples(examples))
    states = UserStates.read(world_tables, set(table["user_id"].to_pylist()))
    columns = [column.to_pylist() for column in excluded_lists(table, exclude, examples)]
    measured = [{video for column in columns for video in column[event]} for event in range(table.num_rows)]
    for event, row in enumerate(table.select(["user_id", "asked_at"]).to_pylist()):
        request = RequestContext(row["user_id"], row["asked_at"])
        assert excluded_videos(states.history(row["user_id"]), request, exclude) == measured[event]
    sizes = [len(videos) for videos in measured]
    assert (max(sizes) == 0) == (exclude == "none")
    if exclude == "shown":
        assert min(sizes) > 12, "a page a day was shown, and watches besides"


def test_inputs_that_are_made_once_for_all_requests_are_those_of_one_request(
    recommender: Recommender,
) -> None:
    """Seen to fail with rows of the corpus looked up in the table of videos as if they were its places."""
    shown = [video_at(place) for place in (3, 170, 42)]
    request = dataclasses.replace(REQUEST, device="tv")
    features = features_named([spec.name for spec in recommender.encoder.ranking_features])
    facts = [recommender.videos.facts(video_id) for video_id in shown]
    columns = evaluate_request(features, history_of(4, 5, 6), request, facts, recommender.statistics)
    expected = recommender.encoder.encode_ranking(columns)
    asked: dict[str, Any] = {}

    def ranker(arrays: Mapping[str, Any]) -> dict[str, Any]:
        asked.update(arrays)
        return {"expected_watch_time_s": np.zeros(len(shown))}

    dataclasses.replace(recommender, ranker=ranker).rank(history_of(4, 5, 6), request, shown)
    assert set(asked) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(asked[name], array, err_msg=name)
