"""Contender: candidate generation as `train_retrieval` trains it, with its input pipeline and deterministic operations."""

import argparse

import watchnext  # noqa: F401  Before TensorFlow: it asks for Keras 2.

# isort: split
import numpy as np
import tensorflow as tf

from benchmarks.train.data import BATCH_SIZE, SEED, Size, make_examples
from benchmarks.train.worker import measure, serve
from watchnext.features.batches import FeatureSpec
from watchnext.models import retrieval, towers, training
from watchnext.models.samplers import make_sampler

NUM_BATCHES = 16
HISTORY = FeatureSpec("history", "multivalent", "video", 50)
PEAK_SHAPES = [(2048, 2048, 2048), (4096, 1024, 1024), (4096, 4096, 4096)]


def make_tower(size: Size, matmul_dtype: tf.DType) -> retrieval.QueryTower:
    """The query tower of one size."""
    assert towers.halving_widths(size.embedding_dim, len(size.widths)) == size.widths
    return retrieval.QueryTower(
        [HISTORY],
        vocabulary_sizes={"video": size.vocabulary},
        embedding_dim=size.embedding_dim,
        depth=len(size.widths),
        longest_example_age_s=1.0,
        watch_dropout=0.0,
        matmul_dtype=matmul_dtype,
    )


def main() -> None:
    """One size, and for each count of negatives a train step on the same weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("size", type=Size.parse)
    parser.add_argument("negatives", type=int, nargs="+")
    parser.add_argument("--matmul-dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    args = parser.parse_args()
    size: Size = args.size
    examples = make_examples(size, NUM_BATCHES)
    training.start(SEED, deterministic=True)
    tower = make_tower(
        size,
        towers.fastest_matmul_dtype() if args.matmul_dtype == "auto" else tf.as_dtype(args.matmul_dtype),
    )
    label_frequency = np.bincount(examples["label"] - 1, minlength=size.vocabulary)
    sampler = make_sampler(
        "frequency", num_candidates=size.vocabulary, label_frequency=label_frequency, alpha=0.5
    )
    model = retrieval.RetrievalModel(
        tower, sampler, label_frequency=label_frequency, batch_size=BATCH_SIZE, negatives=args.negatives[0]
    )
    model.compile(optimizer=towers.adagrad(0.01))

    def batches() -> tf.data.Iterator:
        return iter(training.shuffled_batches(examples, batch_size=BATCH_SIZE, epochs=1_000_000, seed=SEED))

    tasks = {
        "pipeline": lambda steps: measure(lambda: next(pipeline), steps=steps, examples_per_step=BATCH_SIZE)
    }
    pipeline = batches()
    for negatives in args.negatives:
        # The count is read when the step is traced: each step keeps its own.
        model.negatives = negatives
        model.train_function = None
        train_step, own_batches = model.make_train_function(), batches()
        train_step(own_batches)

        def run(steps: int, train_step=train_step, own_batches=own_batches) -> dict[str, float]:
            return measure(
                lambda: float(train_step(own_batches)["total_loss"]),
                steps=steps,
                examples_per_step=BATCH_SIZE,
            )

        tasks[f"train-{negatives}"] = run
    for shape in PEAK_SHAPES:
        tasks[f"peak-{'x'.join(map(str, shape))}"] = _product(*shape)
    serve(
        tasks,
        {
            "matmul_dtype": tower.matmul_dtype.name,
            "tower_inputs": int(tower.tower.layers[0].kernel.shape[0]),
        },
    )


def _product(rows: int, inner: int, columns: int):  # type: ignore[no-untyped-def]
    """A float32 matrix product, whose `examples` are floating-point operations."""
    left, right = tf.random.normal([rows, inner]), tf.random.normal([inner, columns])
    product = tf.function(lambda: tf.matmul(left, right))
    product()
    return lambda steps: measure(product, steps=steps, examples_per_step=2 * rows * inner * columns)


if __name__ == "__main__":
    main()
