"""The candidates of all sources together, in a world with one right answer."""

from pathlib import Path

import pytest
from tiny_world import GATE_DAY

from watchnext.bundle import Bundle
from watchnext.config import Exclude
from watchnext.evaluation import offline
from watchnext.evaluation.candidates import evaluate_blend, stored_scorer
from watchnext.features.batches import Encoder
from watchnext.index.scann import ScannSearcher
from watchnext.models.candidate_sources import read_corpus
from watchnext.models.nominations import Scorer, statistics_of


def scorer_of(bundle: Bundle, **quotas: int) -> Scorer:
    encoder = Encoder.load(bundle.features)
    corpus = read_corpus(encoder, bundle.features)
    return stored_scorer(encoder, corpus, quotas, bundle.path, bundle.index, bundle.sources)


@pytest.mark.parametrize("exclude", ["none", "watched", "shown"])
def test_a_blend_of_the_tower_alone_is_the_tower(
    right_bundle: Bundle, wrong_bundle: Bundle, world_features: Path, exclude: Exclude
) -> None:
    """Recall by ranks, and by lists of candidates, on the same events under the same filter."""
    events = world_features / "retrieval_examples" / "gate"
    statistics = statistics_of(world_features / "video_statistics", GATE_DAY)
    for bundle in (right_bundle, wrong_bundle):
        scorer = scorer_of(bundle, tower=1)
        found = evaluate_blend(scorer, statistics, events, exclude=exclude, ks=(1, 2, 200))
        searcher = ScannSearcher.load(bundle.index / "scann")
        ranks = offline.evaluate_retrieval(
            scorer.query_tower, searcher, scorer.encoder, events, exclude=exclude, depth=200
        )
        for k in (1, 2, 200):
            assert found[f"blend_recall_at_{k}"] == found[f"tower_alone_recall_at_{k}"]
            assert found[f"blend_recall_at_{k}"] == pytest.approx(ranks.metrics((k,))[f"recall_at_{k}"])


def test_a_source_that_is_right_mends_a_tower_that_is_wrong(
    wrong_bundle: Bundle, world_features: Path
) -> None:
    """Of users in the ring ten places apart, those ahead have watched what comes next: co-watched knows it."""
    events = world_features / "retrieval_examples" / "gate"
    statistics = statistics_of(world_features / "video_statistics", GATE_DAY)
    found = evaluate_blend(
        scorer_of(wrong_bundle, tower=10, co_watched=10), statistics, events, exclude="watched", ks=(20,)
    )
    assert found["tower_alone_recall_at_20"] < 0.1
    assert found["co_watched_alone_recall_at_20"] > 0.3
    assert found["blend_recall_at_20"] > 0.8 * found["co_watched_alone_recall_at_20"]
