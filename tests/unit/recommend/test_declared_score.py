"""A bundle that declares another score than expected watch time: whoever orders by it orders alike."""

import datetime as dt
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tiny_world import BEGIN, FIRST_VIDEO, make_bundle, video_at, watch_time_s

from watchnext.bundle import Bundle
from watchnext.config import RecommendParams, ScoreParams
from watchnext.decisions.measuring import measure
from watchnext.evaluation.metrics import weighted_pairwise_loss
from watchnext.features.batches import read_examples
from watchnext.features.history import UserHistory
from watchnext.features.ranking_features import RequestContext
from watchnext.recommend.recommender import Recommender
from watchnext.serving.pyfunc import BundleModel


def share(video_id: int) -> float:
    """What a ranker that is right says of a video, over how long it is."""
    return watch_time_s(video_id) / (100.0 + video_id - FIRST_VIDEO)


@pytest.fixture(scope="module")
def by_share(world_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    declared = RecommendParams(score=ScoreParams(duration_power=1.0)).model_dump()
    return make_bundle(tmp_path_factory.mktemp("share"), world_features, recommend=declared)


def test_slates_are_ordered_by_the_declared_score(by_share: Bundle, right_bundle: Bundle) -> None:
    """Seen to fail with the declaration not read."""
    history = UserHistory()
    for hour, place in enumerate((4, 5, 6)):
        history.add_watch(video_at(place), BEGIN + dt.timedelta(hours=hour), 60.0, True, place % 20)
    request = RequestContext(user_id=7, at=BEGIN + dt.timedelta(days=30), surface="home")
    slate = Recommender.open(by_share).recommend(history, request, how_many=100)
    scores = [video.score for video in slate.videos]
    assert scores == pytest.approx([share(int(video_id)) for video_id in slate.video_ids])
    assert scores == sorted(scores, reverse=True)
    expected = [video.expected_watch_time_s for video in slate.videos]
    assert expected == [watch_time_s(int(video_id)) for video_id in slate.video_ids], "told as it is"
    plain = Recommender.open(right_bundle).recommend(history, request, how_many=100)
    assert plain.video_ids != slate.video_ids
    assert [video.score for video in plain.videos] == [video.expected_watch_time_s for video in plain.videos]


def test_mlflow_answers_in_the_same_order(by_share: Bundle) -> None:
    model = BundleModel()
    model.load_context(
        SimpleNamespace(
            artifacts={"bundle": str(by_share.path)}, model_config={"bundle_digest": by_share.digest}
        )
    )
    asked = pd.DataFrame(
        {"user_id": ["u"], "watched_video_ids": [[video_at(4), video_at(5)]], "how_many": [50]}
    )
    (video_ids,) = model.predict(None, asked)["video_ids"]
    assert video_ids == sorted(video_ids, key=share, reverse=True)


def test_the_gate_judges_a_bundle_by_the_score_that_it_is_served_with(
    by_share: Bundle, right_bundle: Bundle, world_features: Path
) -> None:
    """Two bundles of the same models on the same day. Seen to fail with the declaration not read."""
    day = pa.concat_tables(read_examples(world_features / "ranking_examples" / "gate"))
    clicked = day["clicked"].to_numpy().astype(bool)
    time_s = np.where(clicked, np.nan_to_num(day["watch_time_s"].to_numpy()), 0.0)
    _, groups = np.unique(day["request_id"].to_numpy(), return_inverse=True)
    losses = []
    for bundle, score in ((by_share, share), (right_bundle, watch_time_s)):
        found = measure(bundle, world_features, "gate", exclude="watched").metrics["weighted_pairwise_loss"]
        scores = np.array([score(int(video_id)) for video_id in day["video_id"].to_pylist()])
        assert found == pytest.approx(weighted_pairwise_loss(scores, clicked, time_s, groups))
        losses.append(found)
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)
