"""What a server computes with NumPy is what the saved graph says of the same inputs, for every way to build a tower."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from watchnext.features.batches import FeatureSpec
from watchnext.models import forward, ranking, towers
from watchnext.models.calibration import WatchTimeCurve
from watchnext.models.retrieval import QueryTower, save_query_tower

SIZES = {"video": 40, "word": 7, "language": 3}
ASKED = (
    FeatureSpec("history", "multivalent", "video", 5),
    FeatureSpec("words", "multivalent", "word", 4),
    FeatureSpec("shown", "multivalent", "video", 3),
    FeatureSpec("language", "categorical", "language"),
    FeatureSpec("age", "unit"),
    FeatureSpec("rarity", "unit", "word"),
    FeatureSpec("example_age_s", "continuous"),
)
RANKED = (
    FeatureSpec("video_id", "categorical", "video", None, "impression"),
    FeatureSpec("last_video", "categorical", "video"),
    FeatureSpec("last_words", "multivalent", "word", 4),
    FeatureSpec("words", "multivalent", "word", 3, "impression"),
    FeatureSpec("duration_s", "continuous", None, None, "impression"),
    FeatureSpec("never_known", "continuous", None, None, "impression"),
    FeatureSpec("since_s", "continuous"),
    FeatureSpec("position", "categorical", "language", None, "impression", True, within="last_video"),
    FeatureSpec("depth", "categorical", "word", None, "impression", True),
)
BOUNDARIES = {
    "duration_s": np.array([-np.inf, 1.0, 1.0, 1.0, 4.0, 9.0]),
    "never_known": np.array([]),
    "since_s": np.array([3.0]),
}
CURVE = WatchTimeCurve((-1.0, -0.1, 0.2, 1.0), (0.5, 2.0, 7.0, 30.0))


def with_weights(tower: tf.keras.Model) -> Any:
    """Random ones everywhere, biases and the rows of unknown ids included."""
    draw = np.random.default_rng(5)
    for weight in tower.weights:
        weight.assign(draw.normal(size=weight.shape) / 3.0)
    return tower


def query_tower(**settings: Any) -> QueryTower:
    tower = QueryTower(
        ASKED,
        vocabulary_sizes=SIZES,
        **{"embedding_dim": 8, "depth": 2, "longest_example_age_s": 50.0, **settings},
    )
    tower({name: tf.constant(values) for name, values in forward.sample_of(ASKED, SIZES, 2).items()})
    return with_weights(tower)


def ranking_tower(features: tuple[FeatureSpec, ...] = RANKED, **settings: Any) -> ranking.RankingTower:
    fixed = {"dims_per_doubling": 1.0, "initial_logit": 0.0, "logit_bound": 4.0, "unit_s": 10.0}
    tower = ranking.RankingTower(
        features,
        vocabulary_sizes=SIZES,
        boundaries=BOUNDARIES,
        **{"hidden_units": [16, 8], **fixed, **settings},
    )
    with_weights(tower)
    if tower.shallow is not None:  # as far as the other weights move the logit, which is bounded
        tower.shallow.table.assign(tower.shallow.table / 4.0)
    return tower


def inputs(features: tuple[FeatureSpec, ...], rows: int) -> dict[str, npt.NDArray[Any]]:
    """Others than those that are looked at when a tower is saved."""
    served = [spec for spec in features if not spec.training_only]
    sample = forward.sample_of(served, SIZES, 3 * rows, boundaries=BOUNDARIES)
    return {name: values[2 * rows :] for name, values in sample.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "linear", "pooling": "sum"},
        {"pooling": "max", "serving_example_age_s": -7.0, "unwatched_labels": True},
        {"depth": 0},
    ],
)
def test_a_query_tower_gives_the_embeddings_of_its_graph(settings: dict[str, Any], tmp_path: Path) -> None:
    save_query_tower(query_tower(**settings), tmp_path)
    asked = inputs(ASKED, 30)
    nobody = {name: np.zeros_like(values) for name, values in asked.items()}
    made, graph = towers.load_forward(str(tmp_path)), towers.load_signature(str(tmp_path))
    assert isinstance(made, forward.Query)
    # Ages that are missing are no input of a request.
    asked["example_age_s"] = np.linspace(0.0, 60.0, 30, dtype=np.float32)
    for arrays in (asked, nobody, {name: values[:1] for name, values in asked.items()}):
        assert made(arrays)["embedding"] == pytest.approx(graph(arrays)["embedding"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nets": 2, "id_weights": True, "powers": False},
        {"hidden_units": [], "id_weights": True, "embedded": ["video"]},
        {"curve": CURVE},
        {"features": tuple(spec for spec in RANKED if spec.side == "impression")},
        {"features": tuple(spec for spec in RANKED if not spec.training_only)},
    ],
)
def test_a_ranker_gives_the_scores_of_its_graph(settings: dict[str, Any], tmp_path: Path) -> None:
    curve = settings.get("curve")
    tower = ranking_tower(**{name: value for name, value in settings.items() if name != "curve"})
    tower.calibrate(curve)
    ranking.save(ranking.RankingModel(tower, lambda logits, clicked, watch_time_s: logits), tmp_path)
    made, graph = (load(str(tmp_path / "ranker")) for load in (towers.load_forward, towers.load_signature))
    assert isinstance(made, forward.Ranker)
    both = inputs(RANKED, 30)
    one_query = both | {
        name: values[:1] for name, values in both.items() if name in ("last_video", "last_words", "since_s")
    }
    for arrays in (both, one_query):
        answer, wanted = made(arrays), graph(arrays)
        assert set(answer) == set(wanted)
        assert answer["logit"] == pytest.approx(wanted["logit"], rel=1e-4, abs=1e-5)
        assert answer["expected_watch_time_s"] == pytest.approx(wanted["expected_watch_time_s"], rel=1e-4)
        assert len(np.unique(answer["logit"])) > 5


def test_a_query_side_that_fits_no_impressions_is_refused(tmp_path: Path) -> None:
    ranking.save(ranking.RankingModel(ranking_tower(), lambda logits, clicked, watched: logits), tmp_path)
    arrays = inputs(RANKED, 6)
    odd = arrays | {name: arrays[name][:2] for name in ("last_video", "last_words", "since_s")}
    with pytest.raises(ValueError, match="2 rows of the query side for 6 impressions"):
        towers.load_forward(str(tmp_path / "ranker"))(odd)


@pytest.mark.parametrize("change", [{"powers": False}, {"logit_bound": 0.5}, {"unit_s": 11.0}])
def test_a_plan_that_says_something_else_than_the_graph_is_not_saved(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = ranking_tower()
    plan = tower.forward_plan() | change
    monkeypatch.setattr(tower, "forward_plan", lambda: plan)
    with pytest.raises(ValueError, match=r"off what the graph says|size"):
        ranking.save(ranking.RankingModel(tower, lambda logits, clicked, watched: logits), tmp_path)
    assert not (tmp_path / "ranker").exists()


def test_a_saved_model_of_before_is_asked_through_its_graph(tmp_path: Path) -> None:
    tower = ranking_tower()
    towers.save_signature(tower, tower.serve, str(tmp_path))
    arrays = inputs(RANKED, 4)
    made = towers.load_forward(str(tmp_path))
    assert not isinstance(made, forward.Ranker)
    assert made(arrays)["logit"] == pytest.approx(towers.load_signature(str(tmp_path))(arrays)["logit"])
