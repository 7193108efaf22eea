"""What training both models shares: batches, epochs chosen on the tuning day, determinism, and the stop at NaN."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from watchnext.console import say, track
from watchnext.errors import InputError
from watchnext.features.batches import read_examples

Curves = dict[str, list[tuple[int, float]]]
"""Metric name -> [(epoch from 1, value), ...]."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What came of a training.

    Attributes:
        best_epoch: the epoch, from 1, whose weights the model now has.
        curves: loss and tuning metrics by epoch.
    """

    best_epoch: int
    curves: Curves


def start(seed: int, *, deterministic: bool) -> None:
    """Seed Python, NumPy and TensorFlow, and ask for deterministic ops; call before a model is built.

    Determinism holds for the rest of the process: TensorFlow has no way back.
    """
    tf.keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def encode_all(examples: Path, encode: Callable[[pa.Table], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """All examples of a split as arrays.

    Args:
        examples: directory of the split.
        encode: a method of an Encoder.

    Raises:
        InputError: there are no examples.
    """
    parts = [encode(table) for table in read_examples(examples)]
    if not parts:
        raise no_examples(str(examples))
    if len(parts) == 1:
        return parts[0]
    # One input at a time, its parts let go, so that the peak is one copy and not two.
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def no_examples(where: str) -> InputError:
    """The error for a split without rows."""
    return InputError(
        "there are no training examples",
        where=where,
        remedy="look at the report of featurize: too few days of logs, or no clicks or completed watches in them",
    )


def require_examples(column: np.ndarray, where: str) -> None:
    """Raise InputError where a column of the training examples is empty."""
    if len(column) == 0:
        raise no_examples(where)


def shuffled_batches(
    arrays: Mapping[str, np.ndarray], *, batch_size: int, epochs: int, seed: int
) -> tf.data.Dataset:
    """Batches of all examples, in an order that the seed decides and that differs between epochs.

    Rows are gathered a batch at a time, which costs a hundredth of shuffling row by row. The rows that do not
    fill the last batch of an epoch are left out of that epoch, other ones each time.

    Args:
        arrays: name -> [num_examples, ...].
        batch_size: examples per batch; num_examples where there are fewer.
        epochs: how many passes the data set holds.
        seed: decides the order.

    Returns:
        A data set of name -> [batch_size, ...]; an epoch is `num_steps` elements.
    """
    rows = _num_rows(arrays)
    batch_size = min(batch_size, rows)
    steps = rows // batch_size
    tensors = {name: tf.constant(array) for name, array in arrays.items()}

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(
            tf.range(rows), seed=tf.stack([tf.constant(seed, tf.int64), number])
        )
        return tf.data.Dataset.from_tensor_slices(
            tf.reshape(order[: steps * batch_size], [steps, batch_size])
        )

    def gather(index: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(tensor, index) for name, tensor in tensors.items()}

    return tf.data.Dataset.range(epochs).flat_map(epoch).map(gather).prefetch(2)


def num_steps(arrays: Mapping[str, np.ndarray], batch_size: int) -> int:
    """Steps per epoch of `shuffled_batches`."""
    rows = _num_rows(arrays)
    return rows // min(batch_size, rows)


def fit(
    model: tf.keras.Model,
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    epochs: int,
    patience: int,
    seed: int,
    evaluate: Callable[[], Mapping[str, float]],
    objective: str,
    maximise: bool,
    where: str,
) -> Training:
    """Train a compiled model until the tuning day stops improving, and keep the best epoch's weights.

    Args:
        model: compiled; its `train_step` reports `total_loss`.
        arrays: name -> [num_examples, ...], the training examples.
        batch_size: examples per step.
        epochs: at most this many passes.
        patience: passes without a better `objective` after which training stops.
        seed: decides the order of examples.
        evaluate: measures the model on the tuning day after each epoch. An answer without `objective` (there is
            no tuning day), or with one that is not a finite number (nothing on the tuning day can be compared),
            makes the last epoch the best.
        objective: which of the metrics decides.
        maximise: whether more of it is better.
        where: named in errors and progress, e.g. the stage.

    Raises:
        InputError: the loss is no longer a number.
    """
    steps = num_steps(arrays, batch_size)
    callback = _TuningDay(
        steps=steps,
        epochs=epochs,
        patience=patience,
        evaluate=evaluate,
        objective=objective,
        maximise=maximise,
        where=where,
    )
    model.fit(
        shuffled_batches(arrays, batch_size=batch_size, epochs=epochs, seed=seed),
        epochs=epochs,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[callback],
    )
    model.set_weights(callback.best_weights)
    return Training(best_epoch=callback.best_epoch, curves=callback.curves)


def weights_digest(weights: Sequence[tf.Variable]) -> str:
    """sha256 over shapes, types and values of `weights` in their order; equal weights have equal digests."""
    digest = hashlib.sha256()
    for variable in weights:
        value = np.ascontiguousarray(variable.numpy())
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


class _TuningDay(tf.keras.callbacks.Callback):
    """Progress, the stop at NaN, and the choice of the epoch."""

    def __init__(
        self,
        *,
        steps: int,
        epochs: int,
        patience: int,
        evaluate: Callable[[], Mapping[str, float]],
        objective: str,
        maximise: bool,
        where: str,
    ) -> None:
        super().__init__()
        self.steps = steps
        self.epochs = epochs
        self.patience = patience
        self.evaluate = evaluate
        self.objective = objective
        self.sign = 1.0 if maximise else -1.0
        self.where = where
        self.curves: Curves = {}
        self.best_epoch = 0
        self.best_weights: list[np.ndarray] = []
        self._best = -math.inf
        self._said_absent = False
        self._losses: list[float] = []
        self._progress: Any = iter(())

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._losses = []
        self._progress = iter(track(range(self.steps), f"{self.where}, epoch {epoch + 1}/{self.epochs}"))
        next(self._progress, None)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        loss = float((logs or {})["total_loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"the training loss became {loss}",
                where=f"{self.where}, epoch {len(self.curves.get('loss', [])) + 1}, step {batch + 1}",
                remedy="lower learning_rate, or look for absurd values in the continuous features",
            )
        self._losses.append(loss)
        next(self._progress, None)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        number = epoch + 1
        metrics = {"loss": float(np.mean(self._losses)), **self.evaluate()}
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append((number, value))
        say(
            f"{self.where}, epoch {number}: "
            + ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
        )
        value = metrics.get(self.objective, math.nan)
        if math.isfinite(value):
            better = self.sign * value > self._best
            self._best = max(self._best, self.sign * value)
        else:
            better = True
            if self.objective in metrics and not self._said_absent:
                self._said_absent = True
                say(
                    f"{self.where}: {self.objective} of the tuning day is {value}, so no epoch can be chosen by it "
                    "and the last one is kept"
                )
        if better:
            self.best_epoch = number
            self.best_weights = self.model.get_weights()
        elif number - self.best_epoch >= self.patience:
            self.model.stop_training = True


def _num_rows(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))
