"""Corpora smaller than what the settings speak of, down to one video: each stage of candidate generation has a result."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_world
from model_stages import run_model_stages

from watchnext.bundle import write_bundle
from watchnext.config import RecommendParams
from watchnext.engine import EngineParams
from watchnext.features.batches import Encoder
from watchnext.features.history import UserHistory
from watchnext.features.ranking_features import RequestContext
from watchnext.recommend.recommender import Recommender
from watchnext.stages.featurize import Params as FeaturizeParams
from watchnext.stages.featurize import featurize


def through_all_stages(root, tables, cap):
    """Features with so many videos in the vocabulary, models, index, evaluation and a recommender.

    There are always fewer videos in the vocabulary than negatives of a step (2000) and neighbours of the index (200).
    """
    features = root / "features"
    sizes = FeaturizeParams().vocabulary_sizes.model_copy(update={"video": cap})
    featurize(
        FeaturizeParams(vocabulary_sizes=sizes),
        EngineParams(),
        1,
        tables,
        features,
        root / "reports" / "featurize",
    )
    metrics = run_model_stages(root, tables, features, epochs=1, block_epochs=1)
    bundle = write_bundle(
        root / "bundle",
        features=features,
        retrieval=root / "retrieval",
        index=root / "index",
        ranking=root / "ranking",
        sources=root / "sources",
        recommend=RecommendParams().model_dump(),
    )
    return metrics, Encoder.load(features), Recommender.open(bundle)


@pytest.mark.parametrize("cap", [1, 30])
def test_a_vocabulary_cut_below_the_corpus_leaves_every_video_a_candidate(cap, world_tables, tmp_path):
    """Of 400 videos. Labels beyond the cap teach nothing, and are found by their facts all the same.

    At 1 the sampled softmax has one class and nothing to tell apart: all candidates score alike, and so all labels are last.
    """
    metrics, encoder, recommender = through_all_stages(tmp_path, world_tables, cap)
    assert encoder.sizes["video"] == cap
    training = pq.read_table(tmp_path / "features" / "retrieval_examples" / "training", columns=["video_id"])
    assert set(encoder.vocabularies["video"].lookup(training["video_id"]).tolist()) <= set(range(1, cap + 1))
    assert metrics["train_retrieval"]["candidates"] == cap
    assert metrics["build_index"]["index_rows"] == tiny_world.VIDEOS
    assert metrics["build_index"]["new_videos"] == tiny_world.VIDEOS - cap
    judged = metrics["evaluate"]
    assert 0.0 <= judged["events_in_vocabulary"] < 0.5
    assert judged["events_ranked"] == 1.0, "nobody watches a video twice, so all can be recommended"
    assert (judged["recall_at_200"] > 0.2) == (cap > 1)
    everything = recommender.recommend(None, ask(), how_many=500)
    assert len(everything.videos) == tiny_world.VIDEOS, "K beyond the corpus gives the corpus"


def test_a_corpus_of_one_video(world_tables, tmp_path):
    """All that anybody ever did, with one video."""
    tables = tmp_path / "tables"
    for folder in world_tables.iterdir():
        if not folder.is_dir():
            (tables / folder.name).write_bytes(folder.read_bytes())
            continue
        table = pq.read_table(folder)
        if "video_id" in table.column_names:
            only = pa.array(np.full(table.num_rows, tiny_world.FIRST_VIDEO))
            place = table.column_names.index("video_id")
            table = table.set_column(place, "video_id", only)
        if folder.name == "videos":
            table = table.slice(0, 1)
        if folder.name == "impressions":
            table = table.filter(pa.compute.less(table["position"], 2))
        (tables / folder.name).mkdir(parents=True)
        pq.write_table(table, tables / folder.name / "part-00000.parquet")
    metrics, encoder, recommender = through_all_stages(tmp_path, tables, 1_000)
    assert encoder.sizes["video"] == 1
    assert metrics["build_index"]["index_rows"] == 1
    assert metrics["build_index"]["index_recall_at_200"] == 1.0
    assert metrics["evaluate"]["recall_at_100"] == 0.0, "everybody has watched it, and it is filtered"
    assert recommender.recommend(None, ask(), how_many=20).video_ids == (tiny_world.FIRST_VIDEO,)


def ask():
    return RequestContext(user_id=7, at=tiny_world.BEGIN.replace(year=2027), surface="home")


def test_a_history_of_unknown_videos_alone_is_as_none(right_bundle):
    """Fails where padding and unknown videos are told apart, or where an unknown video has an embedding."""
    recommender = Recommender.open(right_bundle)
    stranger = UserHistory()
    for hour in range(3):
        at = tiny_world.BEGIN.replace(hour=hour)
        stranger.add_watch(990_000 + hour, at, 60.0, True, None)
    found = recommender.recommend(stranger, ask(), how_many=20)
    nobody = recommender.recommend(None, ask(), how_many=20)
    assert found.video_ids == nobody.video_ids
    assert len(found.videos) == 20
    assert not found.personal
    inputs = recommender.embed(stranger, ask()), recommender.embed(UserHistory(), ask())
    assert np.array_equal(*inputs)
