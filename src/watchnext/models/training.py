"""What training both models shares: batches, epochs chosen on the tuning day, determinism, going on after a kill,
and the stop at NaN."""

import contextlib
import dataclasses
import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from watchnext.console import say, track
from watchnext.errors import InputError
from watchnext.features.batches import UNWATCHED_LABEL, WHOLE, Share, read_examples, stored_rows
from watchnext.models.checkpoints import Checkpoints
from watchnext.models.shards import Shards, write_shards
from watchnext.models.workers import ALONE, Workers

Curves = dict[str, list[tuple[int, float]]]
"""Metric name -> [(epoch from 1, value), ...]."""

_ENCODED_AT_ONCE = 65_536
"""Examples."""

_STEPS_BETWEEN_QUESTIONS = 10
"""Of several workers: whether it is time for a checkpoint. Their clocks differ, and to ask takes a millisecond."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What came of a training.

    Attributes:
        best_epoch: the epoch, from 1, whose weights the model now has.
        curves: loss and tuning metrics by epoch.
    """

    best_epoch: int
    curves: Curves


def start(seed: int, *, deterministic: bool, workers: Workers = ALONE) -> None:
    """Seed Python, NumPy and TensorFlow, and ask for deterministic ops; call before a model is built.

    What is drawn within a training step comes from `tf.random.get_global_generator()`: its state is a variable,
    which a checkpoint holds, while that of `tf.random.uniform` is hidden in the op. Determinism holds for the rest
    of the process: TensorFlow has no way back. Workers begin with the same weights, and draw numbers of their own.
    """
    tf.keras.utils.set_random_seed(seed)
    # Reset, not replaced: functions that were traced before hold on to the generator's variable.
    tf.random.get_global_generator().reset_from_seed(workers.seed(seed))
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def encode_all(
    examples: Path,
    encode: Callable[[pa.Table], dict[str, np.ndarray]],
    through: Callable[[Iterator[pa.Table]], Iterator[pa.Table]] = iter,
    share: Share = WHOLE,
) -> dict[str, np.ndarray]:
    """All examples of a split, or a worker's share of them, as arrays.

    Args:
        examples: directory of the split.
        encode: a method of an Encoder.
        through: what the tables go through before, e.g. to get further columns.
        share: which of the examples to read.

    Raises:
        InputError: there are no examples.
    """
    parts = [encode(table) for table in through(read_examples(examples, share=share))]
    if not parts:
        raise no_examples(str(examples))
    if len(parts) == 1:
        return parts[0]
    # One input at a time, its parts let go, so that the peak is one copy and not two.
    return {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}


def encode_shards(
    examples: Path,
    encode: Callable[[pa.Table], dict[str, np.ndarray]],
    through: Callable[[Iterator[pa.Table]], Iterator[pa.Table]] = iter,
    *,
    rows: int,
    at_once: int,
    folder: Path,
    seed: int,
    share: Share = WHOLE,
) -> Shards:
    """Examples of a split, one shard of them in memory at a time; all of them, where they are no more than a shard.

    Args:
        examples: directory of the split.
        encode: a method of an Encoder.
        through: what the tables go through before.
        rows: at most so many there will be.
        at_once: at most about so many are to be in memory.
        folder: gets the shards, where there are several; whoever is through with them removes it.
        seed: decides which example comes into which shard.
        share: which of the examples to read.

    Raises:
        InputError: there are no examples.
    """
    if rows <= at_once:
        return Shards.of(encode_all(examples, encode, through, share))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tables = through(read_examples(examples, share=share))
    parts = (encode(piece) for table in tables for piece in _pieces(table, at_once))
    shards = write_shards(parts, folder, num_shards=math.ceil(rows / at_once), seed=seed)
    if not shards.num_rows:
        raise no_examples(str(examples))
    return shards


def _pieces(table: pa.Table, at_once: int) -> Iterator[pa.Table]:
    """Arrays of ids take several times what a compressed row group does."""
    size = min(at_once, _ENCODED_AT_ONCE)
    return (table.slice(begin, size) for begin in range(0, table.num_rows, size))


def with_further_examples(
    tables: Iterator[pa.Table],
    *,
    stored: Path,
    history: bool,
    shown_share: float,
    seed: int,
    shown_marked: bool = False,
    share: Share = WHOLE,
) -> Iterator[pa.Table]:
    """The watches of the logs that candidate generation is trained on, and what else it learns from.

    Args:
        tables: the examples of the logs' watches.
        stored: directory of the retrieval examples, which has watches before the logs (`history`), and what was shown
            and not watched (`shown`).
        history: whether watches before the logs are labels.
        shown_share: share of what was shown and not watched that is a label.
        seed: decides which.
        shown_marked: whether a column `unwatched_label` says which labels were shown and not watched, where there are any.
        share: which of the further examples to read.
    """
    shares = {"history": float(history), "shown": shown_share}
    marked = shown_marked and shown_share > 0

    def mark(table: pa.Table, unwatched: bool) -> pa.Table:
        return (
            table.append_column(UNWATCHED_LABEL, pa.array(np.full(table.num_rows, unwatched)))
            if marked
            else table
        )

    for table in tables:
        yield mark(table, False)
    for name, part in shares.items():
        draw = np.random.default_rng(seed + share.index)
        for table in read_examples(stored / name, share=share) if part > 0 else ():
            chosen = table.filter(pa.array(draw.random(table.num_rows) < part))
            if chosen.num_rows:
                yield mark(chosen, name == "shown")


def retrieval_shards(
    stored: Path,
    encode: Callable[[pa.Table], dict[str, np.ndarray]],
    labels: Mapping[str, Any],
    *,
    at_once: int,
    folder: Path,
    seed: int,
    share: Share = WHOLE,
) -> Shards:
    """All that candidate generation is trained on, see `with_further_examples`, as `encode_shards` keeps it.

    Args:
        stored: directory of the retrieval examples.
        encode: what makes arrays of them.
        labels: what is learned from beside the watches of the logs: `history`, `shown_share`, `shown_marked`.
        at_once: at most about so many are to be in memory.
        folder: see `encode_shards`.
        seed: decides which of what was shown is a label, and which example comes into which shard.
        share: which of the examples to read.

    Raises:
        InputError: there are no examples.
    """
    read = {"training": True, "history": labels["history"], "shown": labels["shown_share"] > 0}
    most = sum(stored_rows(stored / name) for name, is_read in read.items() if is_read)
    return encode_shards(
        stored / "training",
        encode,
        partial(with_further_examples, stored=stored, seed=seed, share=share, **labels),
        rows=math.ceil(most / share.of),
        at_once=at_once,
        folder=folder,
        seed=seed,
        share=share,
    )


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
    arrays: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    first_epoch: int = 0,
    first_step: int = 0,
    steps: int | None = None,
) -> tf.data.Dataset:
    """Batches of all examples, in an order that the seed decides and that differs between epochs.

    Rows are gathered a batch at a time, which costs a hundredth of shuffling row by row. The rows that do not
    fill the last batch of an epoch are left out of that epoch, other ones each time.

    Args:
        arrays: name -> [num_examples, ...].
        batch_size: examples per batch; num_examples where there are fewer.
        epochs: how many passes there are.
        seed: decides the order.
        first_epoch: from 0, the pass that the data set begins with ...
        first_step: ... and the batch of it, from 0: what a training that goes on has not seen yet.
        steps: batches of a pass, at most `num_steps`; None: so many.

    Returns:
        A data set of name -> [batch_size, ...]; an epoch is `num_steps` elements.
    """
    rows = _num_rows(arrays)
    tensors = {name: tf.constant(array) for name, array in arrays.items()}

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(_batch_rows(rows, batch_size, seed, number)[:steps])

    def gather(index: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(tensor, index) for name, tensor in tensors.items()}

    epochs_left = tf.data.Dataset.range(first_epoch, epochs)
    return epochs_left.flat_map(epoch).skip(first_step).map(gather).prefetch(2)


def sharded_batches(
    shards: Shards,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    steps: int,
    first_epoch: int = 0,
    first_step: int = 0,
) -> tf.data.Dataset:
    """`shuffled_batches` of examples of which one shard at a time is in memory.

    In each epoch shards come in another order, and so do the examples of each. What does not fill the last batch of a shard
    is left out of that epoch.
    """

    def generate() -> Iterator[Mapping[str, np.ndarray]]:
        begin = first_step
        for epoch in range(first_epoch, epochs):
            current = -1
            arrays: Mapping[str, np.ndarray] = {}
            for shard, rows in _sharded_rows(shards.rows, batch_size, seed, epoch, begin, steps):
                if shard != current:
                    arrays = {}  # before the next one is read, or there would be two
                    current, arrays = shard, shards.load(shard)
                yield {name: array[rows] for name, array in arrays.items()}
            begin = 0

    signature = {
        name: tf.TensorSpec([batch_size, *array.shape[1:]], array.dtype)
        for name, array in shards.load(0).items()
    }
    return tf.data.Dataset.from_generator(generate, output_signature=signature).prefetch(2)


def _sharded_rows(
    rows: Sequence[int], batch_size: int, seed: int, epoch: int, first_step: int, steps: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The shard of each batch of an epoch, and the rows of it, [batch_size], from `first_step` on."""
    step = 0
    for shard in np.random.default_rng([seed, epoch]).permutation(len(rows)):
        num = rows[shard] // batch_size
        if step + num > first_step:
            order = np.random.default_rng([seed, epoch, shard + 1]).permutation(rows[shard])
            for place in range(max(0, first_step - step), min(num, steps - step)):
                yield int(shard), order[place * batch_size : (place + 1) * batch_size]
        step += num


def num_steps(examples: Mapping[str, np.ndarray] | Shards, batch_size: int) -> int:
    """Steps per epoch of `shuffled_batches` and `sharded_batches`."""
    return sum(rows // min(batch_size, rows) for rows in Shards.of(examples).rows)


def fit(
    model: tf.keras.Model,
    examples: Mapping[str, np.ndarray] | Shards,
    *,
    batch_size: int,
    epochs: int,
    patience: int,
    seed: int,
    evaluate: Callable[[], Mapping[str, float]],
    objective: str,
    maximise: bool,
    where: str,
    checkpoints: Checkpoints | None = None,
    averaged_passes: float = 0.0,
    workers: Workers = ALONE,
    begin: Callable[[], None] = lambda: None,
) -> Training:
    """Train a compiled model until the tuning day stops improving, and keep the best epoch's weights.

    Args:
        model: compiled; its `train_step` reports `total_loss`, and draws random numbers from TensorFlow's global
            generator (see `start`), whose state a checkpoint holds.
        examples: name -> [num_examples, ...], the training examples, in memory or in shards.
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
        checkpoints: where the state is kept while training goes on, and found again after a kill. They are
            left there: whoever has stored the outcome removes them. None for no checkpoints.
        averaged_passes: above 0, the tuning day measures, and the model ends with, the exponential average of the
            weights over about so many passes last past, see `WeightAverage`; training itself goes on from the weights.
        workers: who trains this model, made within their scope, together. `examples` are then those of this one, a
            step goes over `batch_size` of each, a pass ends where the first of them is through, and the chief alone
            evaluates.
        begin: called once before the first step, when every variable of model and optimizer exists, and not where a
            checkpoint is gone on from: gives them other values than their initial ones.

    Raises:
        InputError: the loss, or a weight, is no longer a number. The last checkpoint from before stays. Or the weights of
            the workers are not the same.
    """
    shards = Shards.of(examples)
    seed = workers.seed(seed)
    batch_size = min(workers.gathered(min(batch_size, *shards.rows, shards.rows[0])))
    steps = min(workers.gathered(num_steps(shards, batch_size)))
    progress, resumed_step = _Progress(), None
    if checkpoints is not None:
        resumed_step = max(workers.common(checkpoints.steps()), default=None)
        if resumed_step is None:
            checkpoints.clear()
        else:
            stored, best_weights = checkpoints.load(resumed_step)
            progress = _Progress(**stored, best_weights=best_weights)
    batches = iter(
        _batches(
            shards,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            steps=steps,
            first_epoch=progress.epochs_done,
            first_step=progress.step,
        )
    )
    if workers.count > 1:
        # Keras would add up what each step reports over the workers, one exchange for each number.
        model.distribute_reduction_method = "first"
    train_step = model.make_train_function()
    # Traced before anything is restored: that makes every variable.
    train_step.get_concrete_function(batches)
    if resumed_step is None:
        begin()
    state = {"model": model, "optimizer": model.optimizer, "generator": tf.random.get_global_generator()}
    average = WeightAverage(model.weights, passes=averaged_passes, steps=steps) if averaged_passes else None
    if average is not None:
        state["average"] = average
    if checkpoints is not None and resumed_step is not None:
        checkpoints.restore(state, resumed_step)
        say(
            f"{where}: goes on from its checkpoint, after step {progress.step} of {steps} of epoch "
            f"{progress.epochs_done + 1}"
            if progress.step
            else f"{where}: goes on from its checkpoint, after epoch {progress.epochs_done} of {epochs}"
        )

    def stop(what: str) -> InputError:
        shard, rows = _rows_of(shards, batch_size, seed, progress.epochs_done, progress.step - 1)
        return _diverged(
            what,
            shards.load(shard),
            rows=rows,
            where=f"{where}, epoch {progress.epochs_done + 1}, step {progress.step} of {steps}",
            checkpoint=checkpoints.latest() if checkpoints is not None else None,
        )

    def check_weights() -> None:
        # A gradient can be infinite where the loss is not: what is kept has to be good.
        if not all_finite(model.weights):
            raise stop("a weight is no longer a number")

    def save(checkpoints: Checkpoints) -> None:
        checkpoints.save(
            state,
            progress.stored(),
            step=progress.epochs_done * steps + progress.step,
            best_epoch=progress.best_epoch,
            best_weights=progress.best_weights,
        )

    while progress.epochs_done < epochs and not progress.has_lost_patience(patience):
        number = progress.epochs_done + 1
        for _ in track(range(progress.step, steps), f"{where}, epoch {number}/{epochs}"):
            with workers.together():
                loss = float(train_step(batches)["total_loss"])
            progress.step += 1
            if not math.isfinite(loss):
                raise stop(f"the training loss became {loss}")
            progress.loss_sum += loss
            if average is not None and progress.step % average.every == 0:
                average.update()
            if (
                checkpoints is not None
                and progress.step < steps
                and (workers.count == 1 or progress.step % _STEPS_BETWEEN_QUESTIONS == 0)
                and workers.any(checkpoints.due())
            ):
                check_weights()
                save(checkpoints)
        check_weights()
        with average.in_place() if average is not None else contextlib.nullcontext():
            loss = float(workers.sum(np.array(progress.loss_sum))) / steps / workers.count
            metrics = {"loss": loss, **workers.told_by_chief(lambda: dict(evaluate()))}
            say(
                f"{where}, epoch {number}: "
                + ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
            )
            if progress.end_epoch(metrics, objective, maximise=maximise, where=where):
                progress.best_weights = model.get_weights()
        if checkpoints is not None and workers.any(checkpoints.due_after_epoch()):
            save(checkpoints)
    model.set_weights(progress.best_weights)
    if workers.count > 1:
        digest = weights_digest(model.weights)
        say(f"{where}, worker {workers.index} of {workers.count}: weights {digest}")
        workers.require_equal({"weights": digest}, where)
    return Training(best_epoch=progress.best_epoch, curves=progress.curves)


class WeightAverage(tf.Module):
    """An exponential average of weights along their training (Polyak and Juditsky, 1992), a checkpoint's to keep.

        average_n = sum over i <= n of r^(n - i) w_i / sum over i <= n of r^(n - i),    r = exp(-every / (passes * steps))

    w_i are the weights at the i-th `update`. A weight of `passes` passes ago counts 1 / e of the present one; those
    from before the first update take no part. Where the step of an optimizer does not shrink, weights go around
    what they would settle at, most of all those of rare rows; their average lies closer to it than the last of them.

    Args:
        weights: the variables.
        passes: see above; above 0.
        steps: of a pass.
    """

    _PER_PASS = 20

    def __init__(self, weights: Sequence[tf.Variable], *, passes: float, steps: int) -> None:
        super().__init__()
        self.every = max(1, steps // self._PER_PASS)
        """Steps from one update to the next: an update goes over every weight, a step only over the rows of its batch."""
        self._retained = math.exp(-self.every / (passes * steps))
        self._weights = list(weights)
        self._averages = [tf.Variable(weight, trainable=False) for weight in self._weights]
        self._updates = tf.Variable(0, trainable=False, dtype=tf.int64)

    def update(self) -> None:
        """Take the weights as they are now in."""
        self._updates.assign_add(1)
        share = (1.0 - self._retained) / (1.0 - self._retained ** int(self._updates))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign_add(tf.cast(share, weight.dtype) * (weight - average))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages in place of the weights."""
        own = [weight.numpy() for weight in self._weights]
        for weight, average in zip(self._weights, self._averages, strict=True):
            weight.assign(average)
        try:
            yield
        finally:
            for weight, value in zip(self._weights, own, strict=True):
                weight.assign(value)


def all_finite(weights: Sequence[tf.Variable]) -> bool:
    """Whether every floating-point value of `weights` is a number."""
    return all(
        bool(tf.reduce_all(tf.math.is_finite(variable))) for variable in weights if variable.dtype.is_floating
    )


def weights_digest(weights: Sequence[tf.Variable]) -> str:
    """sha256 over shapes, types and values of `weights` in their order; equal weights have equal digests."""
    digest = hashlib.sha256()
    for variable in weights:
        value = np.ascontiguousarray(variable.numpy())
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass
class _Progress:
    """How far a training has come; with the variables, all that a checkpoint needs.

    Attributes:
        epochs_done: complete passes.
        step: steps done of the pass that follows.
        loss_sum: of those steps.
        curves: see Training.
        best_epoch: from 1; 0 before the first pass ended.
        best_value: the largest objective so far, negated where less is better; None before there was a finite one.
        best_weights: the model's weights after that epoch.
        said_absent: whether the reader was told that the objective is not a number.
    """

    epochs_done: int = 0
    step: int = 0
    loss_sum: float = 0.0
    curves: Curves = dataclasses.field(default_factory=dict)
    best_epoch: int = 0
    best_value: float | None = None
    best_weights: list[np.ndarray] = dataclasses.field(default_factory=list)
    said_absent: bool = False

    def __post_init__(self) -> None:
        self.curves = {
            name: [(epoch, value) for epoch, value in points] for name, points in self.curves.items()
        }

    def stored(self) -> dict[str, Any]:
        """All but the weights, as JSON."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "best_weights"]
        return {name: getattr(self, name) for name in names}

    def has_lost_patience(self, patience: int) -> bool:
        """Whether so many passes went by without a better one."""
        return self.epochs_done - self.best_epoch >= patience

    def end_epoch(self, metrics: Mapping[str, float], objective: str, *, maximise: bool, where: str) -> bool:
        """Take the metrics of a complete pass in. Returns whether it is the best so far."""
        self.epochs_done += 1
        self.step, self.loss_sum = 0, 0.0
        for name, value in metrics.items():
            self.curves.setdefault(name, []).append((self.epochs_done, value))
        value = metrics.get(objective, math.nan)
        if math.isfinite(value):
            signed = value if maximise else -value
            better = self.best_value is None or signed > self.best_value
            if better:
                self.best_value = signed
        else:
            better = True
            if objective in metrics and not self.said_absent:
                self.said_absent = True
                say(
                    f"{where}: {objective} of the tuning day is {value}, so no epoch can be chosen by it "
                    "and the last one is kept"
                )
        if better:
            self.best_epoch = self.epochs_done
        return better


def _diverged(
    what: str, arrays: Mapping[str, np.ndarray], *, rows: np.ndarray, where: str, checkpoint: Path | None
) -> InputError:
    """The error for a training that can not go on, with the batch that it stopped at."""
    batch = np.sort(rows)
    offenders = [
        "examples " + ", ".join(map(str, batch[:8])) + (f", ... ({len(batch)})" if len(batch) > 8 else "")
    ]
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            values = array[batch]
            finite = values[np.isfinite(values)]
            extremes = f"from {finite.min():.6g} to {finite.max():.6g}" if finite.size else "without a number"
            strange = values.size - finite.size
            offenders.append(f"{name} {extremes}" + (f", {strange} not finite" if strange else ""))
    kept = f"; the last good checkpoint is kept in {checkpoint}" if checkpoint is not None else ""
    return InputError(
        what,
        where=where,
        offenders=offenders,
        remedy="lower learning_rate, or look for absurd values in the continuous features" + kept,
    )


def _batch_rows(rows: int, batch_size: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """Which examples make up each batch of an epoch (from 0), int32 [num_steps, batch_size]."""
    batch_size = min(batch_size, rows)
    steps = rows // batch_size
    order = tf.random.experimental.stateless_shuffle(
        tf.range(rows), seed=tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    )
    return tf.reshape(order[: steps * batch_size], [steps, batch_size])


def _batches(shards: Shards, *, steps: int, **order: int) -> tf.data.Dataset:
    if shards.in_memory:
        return shuffled_batches(shards.load(0), steps=steps, **order)
    return sharded_batches(shards, steps=steps, **order)


def _rows_of(shards: Shards, batch_size: int, seed: int, epoch: int, step: int) -> tuple[int, np.ndarray]:
    """The shard of the batch of a step, and which rows of it."""
    if shards.in_memory:
        return 0, _batch_rows(shards.num_rows, batch_size, seed, epoch)[step].numpy()
    return next(_sharded_rows(shards.rows, batch_size, seed, epoch, step, step + 1))


def _num_rows(arrays: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(arrays.values())))
