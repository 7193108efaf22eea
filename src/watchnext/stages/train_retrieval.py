"""Stage `train_retrieval`: candidate generation, trained on the training days, its epoch chosen on the tuning day."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from watchnext.config import Section, TrainingParams
from watchnext.console import say


class Inputs(Section):
    """Section `train_retrieval.inputs`: what the query tower reads, of what the logs have."""

    history: bool = True
    shown_unwatched: bool = True
    search_tokens: bool = True
    region: bool = True
    device: bool = True
    user_columns: bool = True
    gender: bool = True
    logged_in: bool = True
    age: bool = True
    example_age_s: bool = True

    def wants(self, name: str) -> bool:
        """Whether the input of this name is switched on; `user_columns` stands for every `user_<column>`."""
        return bool(getattr(self, "user_columns" if name.startswith("user_") else name))


class Labels(Section):
    """Section `train_retrieval.labels`: what is learned from beside the completed watches of the logs."""

    history: bool = True
    shown_share: float = Field(default=1.0, ge=0, le=1)
    shown_marked: bool = True


class Params(Section):
    """Section `train_retrieval` of params.yaml."""

    warm_start: str = Field(default="none", min_length=1)
    inputs: Inputs = Inputs()
    labels: Labels = Labels()
    pooling: Literal["mean", "sum", "max"] = "mean"
    embedding_dim: int = Field(default=64, ge=2)
    depth: int = Field(default=1, ge=0, le=8)
    head: Literal["relu", "linear"] = "relu"
    watch_dropout: float = Field(default=0.3, ge=0, lt=1)
    shown_dropout: float = Field(default=0.0, ge=0, lt=1)
    serving_example_age_s: float = Field(default=0.0, le=0)
    batch_size: int = Field(default=512, ge=1)
    negatives: int = Field(default=2000, ge=1)
    sampler: Literal["uniform", "log_uniform", "frequency"] = "frequency"
    sampler_alpha: float = Field(default=0.5, ge=0, le=1)
    unique_negatives: bool = False
    in_batch_negatives: bool = True
    estimator: Literal["consistent", "tfrs"] = "consistent"
    matmul_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    learning_rate: float = Field(default=0.05, gt=0)
    averaged_passes: float = Field(default=0.0, ge=0)
    epochs: int = Field(default=5, ge=1)
    patience: int = Field(default=2, ge=1)
    tuning_events: int = Field(default=5_000, ge=1)

    def of_the_model(self) -> dict[str, Any]:
        """What `models.retrieval.train` takes; the rest is the stage's own."""
        return self.model_dump(exclude={"tuning_events", "inputs", "labels", "warm_start"})


def train_retrieval(
    params: Params,
    training: TrainingParams,
    seed: int,
    features: Path,
    start: Path,
    out_model: Path,
    out_report: Path,
    checkpoints: Path | None = None,
) -> dict[str, float | int | str]:
    """Train the query tower and the candidate embeddings.

    It begins with the weights in `start`, if there are any. A stage that is run again after it was killed goes on from
    what it finds in `checkpoints`.

    Raises:
        InputError: there are no training examples, every input is switched off, training diverged, or the weights in
            `start` are of another network.
    """
    import numpy as np

    from watchnext.errors import InputError
    from watchnext.evaluation import offline
    from watchnext.evaluation.plots import plot_curves
    from watchnext.features.batches import Encoder, Share
    from watchnext.models import retrieval
    from watchnext.models import training as fitting
    from watchnext.models.checkpoints import Checkpoints, made_by
    from watchnext.models.warm_start import WarmStart
    from watchnext.models.workers import Workers

    workers = Workers.join()
    out_model.mkdir(parents=True)
    out_report.mkdir(parents=True, exist_ok=True)
    encoder = Encoder.load(features)
    inputs = [spec for spec in encoder.retrieval_features if params.inputs.wants(spec.name)]
    if not inputs:
        raise InputError(
            "no input is left for the query tower",
            where="params.yaml, train_retrieval.inputs",
            offenders=[spec.name for spec in encoder.retrieval_features],
            remedy="switch on at least one input that the logs have",
        )
    off = [spec.name for spec in encoder.retrieval_features if spec not in inputs]
    if off:
        say(f"train_retrieval: switched off in params.yaml: {', '.join(off)}")
    share = Share(workers.index, workers.count)
    begin = WarmStart.load(start)
    settings = {
        "train_retrieval": params.model_dump(),
        "training": training.model_dump(exclude={"checkpoint_every_s"}),
        "seed": seed,
        "features": encoder.manifest,
        "workers": workers.count,
        "start": begin.digest if begin is not None else None,
    }
    workers.require_equal(made_by(settings), "train_retrieval")
    examples = fitting.retrieval_shards(
        features / "retrieval_examples",
        encoder.encode_retrieval,
        params.labels.model_dump(),
        at_once=training.examples_in_memory,
        folder=out_model.with_name(out_model.name + ".shards.staging"),
        seed=seed,
        share=share,
    )
    has_tuning_day = encoder.manifest["days"]["tuning"] is not None
    if not has_tuning_day:
        say("train_retrieval: there is no tuning day; the last epoch is kept")

    def evaluate(model: retrieval.RetrievalModel) -> dict[str, float]:
        if not has_tuning_day:
            return {}
        result = offline.evaluate_retrieval(
            lambda arrays: retrieval.embed_queries(model.query_tower, arrays),
            model.candidate_embeddings.numpy(),
            encoder,
            features / "retrieval_examples" / "tuning",
            max_events=params.tuning_events,
        ).metrics()
        return {f"tuning_{name}": result[name] for name in ("recall_at_100", "map")}

    fitting.start(seed, deterministic=training.deterministic, workers=workers)
    model, outcome = retrieval.train(
        examples,
        inputs,
        vocabulary_sizes=encoder.sizes,
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
        objective="tuning_map",
        workers=workers,
        start=begin,
        ids={space: vocabulary.tokens for space, vocabulary in encoder.vocabularies.items()},
        **params.of_the_model(),
    )
    examples.remove()
    retrieval.save(model, out_model)
    digest = fitting.weights_digest(model.weights)
    manifest = {
        "format": 1,
        "embedding_dim": params.embedding_dim,
        "inputs": [spec.name for spec in inputs],
        "trained_until_at": encoder.manifest["trained_until_at"],
        "best_epoch": outcome.best_epoch,
        "matmul_dtype": model.query_tower.matmul_dtype.name,
        "params": params.model_dump(),
        "weights_digest": digest,
    }
    (out_model / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (out_report / "curves.json").write_text(json.dumps(outcome.curves, indent=1) + "\n")
    plot_curves(outcome.curves, outcome.best_epoch, out_report / "curves.png")
    kept = {name: points[outcome.best_epoch - 1][1] for name, points in outcome.curves.items()}
    return {
        "training_examples": int(workers.sum(np.array(examples.num_rows))),
        "workers": workers.count,
        "candidates": encoder.sizes["video"],
        "best_epoch": outcome.best_epoch,
        "weights_digest": digest,
        "start": begin.origin if begin is not None else "random weights",
        **kept,
    }
