"""What a worker of test_workers runs: both models on its share of examples whose right answer is known.

    python training_of_workers.py FOLDER BATCH_SIZE

BATCH_SIZE examples are a step of all workers together. Writes FOLDER/worker-<index>.npz and .json.
"""

import json
import sys
from pathlib import Path

import watchnext  # noqa: F401  Before TensorFlow: it asks for Keras 2.

# isort: split
import numpy as np
import pyarrow as pa
import tensorflow as tf

from watchnext.errors import InputError
from watchnext.features.batches import FeatureSpec
from watchnext.models import ranking, retrieval, training
from watchnext.models.warm_start import WarmStart
from watchnext.models.workers import Workers

VIDEOS = 60
IMPRESSIONS = 512
WATCHES = 8_192
SEED = 4
IDS = pa.array(range(VIDEOS))


def impressions() -> dict[str, np.ndarray]:
    """Half of them clicked, longer for one region than the other."""
    draw = np.random.default_rng(1)
    region = draw.integers(0, 4, IMPRESSIONS).astype(np.int32)
    return {
        "region": region,
        "seed": draw.integers(0, VIDEOS + 1, IMPRESSIONS).astype(np.int32),
        "hour": draw.normal(size=IMPRESSIONS).astype(np.float32),
        "clicked": draw.integers(0, 2, IMPRESSIONS).astype(np.float32),
        "watch_time_s": (30.0 * (1 + region)).astype(np.float32),
    }


def watches() -> dict[str, np.ndarray]:
    """Three times in four the video after the last one, else any."""
    draw = np.random.default_rng(2)
    last = draw.integers(0, VIDEOS, WATCHES)
    following = np.where(draw.random(WATCHES) < 0.75, (last + 1) % VIDEOS, draw.integers(0, VIDEOS, WATCHES))
    return {
        "history": (1 + last[:, np.newaxis]).astype(np.int32),
        "label": (1 + following).astype(np.int32),
    }


def share(arrays: dict[str, np.ndarray], workers: Workers) -> dict[str, np.ndarray]:
    """This worker's."""
    return {name: array[workers.index :: workers.count] for name, array in arrays.items()}


def cross_entropy(model: retrieval.RetrievalModel) -> float:
    """[] of the full softmax over the videos, against what the next video really is: natural logarithms."""
    last = np.arange(VIDEOS)
    queries = retrieval.embed_queries(
        model.query_tower, {"history": (1 + last[:, np.newaxis]).astype(np.int32)}
    )
    logits = tf.constant(queries @ model.candidate_embeddings.numpy().T)
    truth = np.full((VIDEOS, VIDEOS), 0.25 / VIDEOS)
    truth[last, (last + 1) % VIDEOS] += 0.75
    return float(-(truth * tf.nn.log_softmax(logits).numpy()).sum(axis=1).mean())


def train_ranking(workers: Workers) -> tuple[ranking.RankingModel, list[float]]:
    """The model and its loss in each epoch.

    Every step is over all impressions, so that nothing is drawn: what differs is how they are added up.
    """
    training.start(SEED, deterministic=True, workers=workers)
    model, outcome = ranking.train(
        share(impressions(), workers),
        [
            FeatureSpec("region", "categorical", "region"),
            FeatureSpec("seed", "categorical", "video"),
            FeatureSpec("hour", "continuous"),
        ],
        vocabulary_sizes={"region": 3, "video": VIDEOS},
        boundaries={"hour": np.linspace(-3, 3, 50)},
        hidden_units=[8],
        dims_per_doubling=1.0,
        odds="unclicked",
        unit_s=10.0,
        cap_s=1_800.0,
        logit_bound=15.0,
        batch_size=IMPRESSIONS // workers.count,
        learning_rate=0.02,
        epochs=10,
        patience=10,
        seed=SEED,
        evaluate=lambda _: {},
        id_weights=True,
        l2=0.001,
        matmul_dtype="float32",
        workers=workers,
    )
    return model, [loss for _, loss in outcome.curves["loss"]]


def train_retrieval(
    workers: Workers, batch_size: int, seed: int = SEED, start: WarmStart | None = None
) -> retrieval.RetrievalModel:
    """Each worker draws negatives of its own. With a `start`, one pass of steps that are next to nothing."""
    training.start(seed, deterministic=True, workers=workers)
    model, _ = retrieval.train(
        share(watches(), workers),
        [FeatureSpec("history", "multivalent", "video", 1)],
        vocabulary_sizes={"video": VIDEOS},
        embedding_dim=16,
        depth=1,
        watch_dropout=0.0,
        batch_size=batch_size // workers.count,
        negatives=40,
        learning_rate=0.05 if start is None else 1e-6,
        epochs=6 if start is None else 1,
        patience=6,
        seed=seed,
        # Asked of the chief alone, whose answer all take.
        evaluate=lambda model: {"map": -cross_entropy(model)},
        matmul_dtype="float32",
        workers=workers,
        start=start,
        ids={"video": IDS},
    )
    return model


def main() -> None:
    """Train both, and store what came of it."""
    folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    workers = Workers.join()
    refused = ""
    try:
        workers.require_equal({"code": "alike", "tensorflow": f"2.20.{workers.index}"}, "a training")
    except InputError as error:
        refused = str(error)
    ranker, losses = train_ranking(workers)
    model = train_retrieval(workers, batch_size)
    warm = train_retrieval(
        workers, batch_size, SEED + 1, WarmStart.of(model, {"video": IDS}, "the one before")
    )
    arrays = {f"weight-{place}": weight for place, weight in enumerate(ranker.get_weights())}
    arrays |= {f"state-{place}": state for place, state in enumerate(ranker.optimizer.get_weights())}
    np.savez(folder / f"worker-{workers.index}.npz", **arrays)
    told = {
        "refused": refused,
        "digests": [training.weights_digest(one.weights) for one in (ranker, model, warm)],
        "ranking_losses": losses,
        "cross_entropy": cross_entropy(model),
        "warm_cross_entropy": cross_entropy(warm),
        "first_negative": int(tf.random.get_global_generator().uniform([], maxval=1 << 30, dtype=tf.int32)),
    }
    (folder / f"worker-{workers.index}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
