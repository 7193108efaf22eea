"""Stage `train_ranking`: expected watch time, trained on the training days, its epoch chosen on the tuning day."""

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from watchnext.config import Section, TrainingParams
from watchnext.console import say
from watchnext.errors import InputError


class Params(Section):
    """Section `train_ranking` of params.yaml."""

    inputs_left_out: list[str] = Field(default=[])
    hidden_units: list[int] = Field(default=[128, 64])
    nets: int = Field(default=1, ge=1)
    dims_per_doubling: float = Field(default=1.0, gt=0)
    id_weights: bool = Field(default=True)
    rows_per_embedded_id: float = Field(default=50.0, ge=0)
    l2: float = Field(default=0.001, ge=0)
    odds: Literal["unclicked", "impressions"] = Field(default="unclicked")
    calibrated: bool = Field(default=True)
    unit_s: float = Field(default=10.0, gt=0)
    cap_s: float = Field(default=1_800.0, gt=0)
    logit_bound: float = Field(default=15.0, gt=0, le=80)
    batch_size: int = Field(default=2_048, ge=1)
    learning_rate: float = Field(default=0.02, gt=0)
    epochs: int = Field(default=6, ge=1)
    patience: int = Field(default=2, ge=1)
    matmul_dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto")

    def of_the_model(self) -> dict[str, Any]:
        """What `models.ranking.train` takes; the rest is the stage's own."""
        return self.model_dump(exclude={"inputs_left_out", "calibrated"})


def train_ranking(
    params: Params,
    training: TrainingParams,
    seed: int,
    features: Path,
    sources: Path,
    out_model: Path,
    out_report: Path,
    checkpoints: Path | None = None,
) -> dict[str, float | int | str]:
    """Train the ranker.

    A stage that is run again after it was killed goes on from what it finds in `checkpoints`.

    Raises:
        InputError: there are no training examples, nothing was clicked, or training diverged.
    """
    import dataclasses
    from collections.abc import Iterator, Mapping
    from functools import partial

    import numpy as np
    import pyarrow as pa

    from watchnext.evaluation import metrics, offline
    from watchnext.evaluation.plots import plot_curves
    from watchnext.features.batches import ADDED_INPUTS, Encoder, Share, shared_ranges, stored_rows
    from watchnext.models import nominations, ranking
    from watchnext.models import training as fitting
    from watchnext.models.calibration import WatchTimeCurve
    from watchnext.models.checkpoints import Checkpoints, made_by
    from watchnext.models.workers import Workers

    workers = Workers.join()
    out_model.mkdir(parents=True)
    out_report.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.load(features).with_inputs(sources / ADDED_INPUTS)

    stored = features / "ranking_examples" / "training"
    share = Share(workers.index, workers.count)

    def scored(
        split: str, tables: Iterator[pa.Table], ranges: list[tuple[int, int]] | None = None
    ) -> Iterator[pa.Table]:
        nominated = nominations.nominated_inputs(encoder)
        return nominations.joined(sources / "scores" / split, tables, ranges) if nominated else tables

    known = [spec.name for spec in encoder.ranking_features]
    odd = sorted(set(params.inputs_left_out) - set(known))
    if odd:
        raise InputError(
            "what is to be left out is no input of the ranker",
            where="train_ranking.inputs_left_out",
            offenders=odd,
            remedy=f"the inputs are {', '.join(known)}",
        )
    chosen = [spec for spec in encoder.ranking_features if spec.name not in params.inputs_left_out]

    settings = {
        "train_ranking": params.model_dump(),
        "training": training.model_dump(exclude={"checkpoint_every_s"}),
        "seed": seed,
        "features": encoder.manifest,
        "sources": json.loads((sources / "manifest.json").read_text(encoding="utf-8")),
        "workers": workers.count,
    }
    workers.require_equal(made_by(settings), "train_ranking")
    examples = fitting.encode_shards(
        stored,
        encoder.encode_ranking,
        partial(scored, "training", ranges=shared_ranges(stored, share) if workers.count > 1 else None),
        rows=math.ceil(stored_rows(stored) / workers.count),
        at_once=training.examples_in_memory,
        folder=out_model.with_name(out_model.name + ".shards.staging"),
        seed=seed,
        share=share,
    )
    has_tuning_day = encoder.manifest["days"]["tuning"] is not None
    if not has_tuning_day:
        say("train_ranking: there is no tuning day; the last epoch is kept")

    def judged(model: ranking.RankingModel) -> tuple[offline.RankingResult, Mapping[str, np.ndarray]]:
        # By expected watch time, whatever slates are ordered by: that is what the ranker is there to know.
        return offline.evaluate_ranking(
            lambda arrays: ranking.predict(model.tower, arrays),
            encoder,
            features / "ranking_examples" / "tuning",
            lambda day: next(scored("tuning", iter([day]))),
        )

    def evaluate(model: ranking.RankingModel) -> dict[str, float]:
        if not has_tuning_day:
            return {}
        result, predicted = judged(model)
        loss = metrics.weighted_log_loss(
            predicted["logit"],
            result.clicked,
            result.watch_time_s,
            unit_s=params.unit_s,
            cap_s=params.cap_s,
            odds=params.odds,
        )
        return {
            "tuning_weighted_log_loss": loss,
            **{f"tuning_{name}": value for name, value in result.metrics().items()},
        }

    fitting.start(seed, deterministic=training.deterministic, workers=workers)
    model, outcome = ranking.train(
        examples,
        chosen,
        vocabulary_sizes=encoder.sizes,
        boundaries=encoder.quantiles,
        seed=seed,
        checkpoints=Checkpoints.of(
            checkpoints,
            settings=settings,
            examples=examples,
            every_s=training.checkpoint_every_s,
            kept=min(2, workers.count),
        )
        if checkpoints is not None
        else None,
        evaluate=evaluate,
        objective="tuning_weighted_pairwise_loss",
        workers=workers,
        **params.of_the_model(),
    )
    clicked = float(sum(part["clicked"].sum(dtype=np.float64) for part in examples.parts()))
    rows, clicks = workers.sum(np.array([examples.num_rows, clicked]))
    examples.remove()
    curve = None
    if params.calibrated and has_tuning_day:
        result, predicted = judged(model)
        curve = WatchTimeCurve.fitted(predicted["logit"], result.clicked * result.watch_time_s)
    if params.calibrated and curve is None:
        say(
            "train_ranking: no tuning day, or one with too little watch time, to calibrate on; served are the odds"
        )
    model.tower.calibrate(curve)
    ranking.save(model, out_model)
    digest = fitting.weights_digest(model.weights)
    manifest = {
        "format": 1,
        "inputs": [spec.name for spec in chosen],
        "trained_until_at": encoder.manifest["trained_until_at"],
        "best_epoch": outcome.best_epoch,
        "params": params.model_dump(),
        "weights_digest": digest,
        "calibration": None if curve is None else dataclasses.asdict(curve),
    }
    (out_model / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (out_report / "curves.json").write_text(json.dumps(outcome.curves, indent=1) + "\n")
    plot_curves(outcome.curves, outcome.best_epoch, out_report / "curves.png")
    kept = {name: points[outcome.best_epoch - 1][1] for name, points in outcome.curves.items()}
    return {
        "training_examples": int(rows),
        "click_rate": float(clicks / rows),
        "workers": workers.count,
        "best_epoch": outcome.best_epoch,
        "weights_digest": digest,
        **kept,
    }
