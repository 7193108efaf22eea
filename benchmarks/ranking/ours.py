"""This project's ranker: the stage's own training, judged like the peers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.ranking.folds import Fold
from watchnext import config
from watchnext.stages import train_ranking

NAME = "watchnext"
_BY_WATCH = {"unit_s": 60.0}
"""A click of mean watch time then weighs about as much as an unclicked impression, so that `l2` means the same for both."""
_SEVERAL = {"nets": 4}
_LINEAR = {"hidden_units": [], "learning_rate": 0.05, "batch_size": 256}
"""Numbers and a weight per id: with small batches, or it is not at its minimum after so few passes."""
MODELS: dict[str, dict[str, Any]] = {
    NAME: {
        "configs": [
            _SEVERAL,
            {**_BY_WATCH, **_SEVERAL},
            {**_BY_WATCH, **_SEVERAL, "batch_size": 512},
            {**_BY_WATCH, **_LINEAR},
            {**_BY_WATCH, **_LINEAR, "l2": 0.002},
        ],
        "passes": 8,
    }
}
"""What is tried, as changes to params.yaml's `train_ranking`; as many as for LightGBM's regression."""


def train(fold: Fold, changed: Mapping[str, Any], passes: int, seed: int, evaluate: Any) -> Any:
    """Train the ranker for exactly `passes` passes over the fold's training rows.

    Args:
        fold: the days.
        changed: settings that differ from params.yaml.
        passes: over the training rows.
        seed: of the run.
        evaluate: called with the model after each pass.

    Returns:
        The model after the last pass.
    """
    from watchnext.features.batches import FeatureSpec
    from watchnext.models import ranking
    from watchnext.models import training as fitting

    params = config.load_section("train_ranking", train_ranking.Params).model_copy(update=dict(changed))
    settings = params.of_the_model() | {
        "epochs": passes,
        "patience": passes,
    }
    inputs = [one for one in fold.inputs if one.name not in params.inputs_left_out]

    def after_pass(model: ranking.RankingModel) -> dict[str, float]:
        evaluate(model)
        return {}

    fitting.start(seed, deterministic=True)
    rows = fold.training
    outcomes = {"clicked": rows.clicked.astype(np.float32), "watch_time_s": rows.watch_time_s}
    model, _ = ranking.train(
        {one.name: rows.inputs[one.name] for one in inputs} | outcomes,
        [FeatureSpec(one.name, one.kind, one.space, one.length, one.side) for one in inputs],  # type: ignore[arg-type]
        vocabulary_sizes=fold.sizes,
        boundaries=fold.boundaries,
        seed=seed,
        evaluate=after_pass,
        where=NAME,
        **settings,
    )
    return model


def scores_by_pass(name: str, fold: Fold, config: dict, passes: int, seed: int) -> list[np.ndarray]:
    """Logits of the held rows after every pass."""
    from watchnext.models import ranking

    del name
    scores: list[np.ndarray] = []
    train(
        fold,
        config,
        passes,
        seed,
        lambda model: scores.append(
            ranking.predict(model.tower, fold.held.inputs)["logit"].astype(np.float64)
        ),
    )
    return scores
