"""Several processes that train one model, each on its own share of the examples, their gradients added up in every step.

Every worker holds all weights (`tf.distribute.MultiWorkerMirroredStrategy`). Of a table only the rows in use are
exchanged: a sparse gradient is gathered from all workers, never made dense.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from watchnext.console import say
from watchnext.errors import InputError
from watchnext.tf_config import Cluster, WorkerLost

T = TypeVar("T")
Gradient = tuple[tf.Tensor | tf.IndexedSlices, tf.Variable]
"""With the variable that it is of."""

_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)
"""What TensorFlow raises where a collective operation loses a member."""


class Workers:
    """The workers of one training, this process among them.

    What is asked of the others is asked by all, in the same order: each of these methods waits for every worker.

    Args:
        cluster: None for this process alone, with which every method is free.

    Attributes:
        count: how many there are.
        index: which one this is, from 0; 0 is the chief.
    """

    def __init__(self, cluster: Cluster | None = None) -> None:
        self.count = 1 if cluster is None else len(cluster.addresses)
        self.index = 0 if cluster is None else cluster.index
        self._strategy: tf.distribute.Strategy | None = None
        if cluster is not None:
            say(
                f"worker {self.index} of {self.count}: waits for the others at {', '.join(cluster.addresses)}"
            )
            cluster.wait_for_all()
            self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=tf.distribute.experimental.CommunicationOptions(
                    implementation=tf.distribute.experimental.CommunicationImplementation.RING
                )
            )

    @classmethod
    def join(cls) -> "Workers":
        """Those of `TF_CONFIG`, or this process alone. To be called before anything else is asked of TensorFlow.

        Raises:
            InputError: see `Cluster.from_environment`.
        """
        global _joined
        _joined = cls(Cluster.from_environment())
        return _joined

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where a model and its optimizer are made, so that every worker begins with the same weights."""
        return contextlib.nullcontext() if self._strategy is None else self._strategy.scope()

    def seed(self, seed: int) -> int:
        """A seed of this worker's own; the chief's is `seed` itself."""
        return seed + 1_000_003 * self.index

    def sum(self, values: np.ndarray) -> np.ndarray:
        """[...] added up over the workers, as float64 or int64."""
        values = np.asarray(values)
        values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
        if self._strategy is None:
            return values
        with self.together():
            return _summed(self._strategy, tf.constant(values)).numpy()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What all workers do together; an error says so where another one is gone.

        Raises:
            WorkerLost: it is.
        """
        try:
            yield
        except _LOST as error:
            if self._strategy is None:
                raise
            raise WorkerLost(
                f"worker {self.index} of {self.count} lost another worker",
                offenders=[error.message.strip().splitlines()[0]],
                remedy="look at the log of the other one; started again, all go on from their checkpoints",
            ) from error

    def gathered(self, value: T) -> list[T]:
        """What each worker has, in their order; any JSON, a few kilobytes of it."""
        if self._strategy is None:
            return [value]
        own = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = np.zeros(self.count, np.int64)
        lengths[self.index] = len(own)
        lengths = self.sum(lengths)
        rows = np.zeros((self.count, lengths.max()), np.int64)
        rows[self.index, : len(own)] = own
        rows = self.sum(rows).astype(np.uint8)
        return [
            json.loads(row[:length].tobytes().decode()) for row, length in zip(rows, lengths, strict=True)
        ]

    def told_by_chief(self, make: Callable[[], T]) -> T:
        """What `make` gives on the chief, who alone calls it; as JSON where there are several workers."""
        if self._strategy is None:
            return make()
        return self.gathered(make() if self.is_chief else None)[0]  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether it is so for one of them."""
        return any(self.gathered(flag))

    def common(self, values: Iterable[int]) -> set[int]:
        """The values that every worker has."""
        return set.intersection(*(set(of_one) for of_one in self.gathered(list(values))))

    def require_equal(self, values: Mapping[str, str], where: str) -> None:
        """See that every worker has the same.

        Args:
            values: what it is -> a digest or a version; a few kilobytes of it.
            where: named in the error.

        Raises:
            InputError: a worker has another value, or none: which, of all.
        """
        found = self.gathered(dict(values))
        names = sorted({name for of_one in found for name in of_one})
        others = [name for name in names if len({of_one.get(name) for of_one in found}) > 1]
        if others:
            raise InputError(
                f"the workers do not have the same {', '.join(others)}",
                where=where,
                offenders=[
                    _who_has_what(name, [of_one.get(name, "none") for of_one in found]) for name in others
                ],
                remedy="give every worker the same code, settings, features and library versions, and train anew",
            )


ALONE = Workers()
"""This process and no other."""

_joined = ALONE


def part() -> None:
    """Wait until all that joined have come here: whoever left earlier would be taken for dead by those who still work.

    Raises:
        WorkerLost: one of them failed before.
    """
    _joined.gathered(None)


def _who_has_what(name: str, values: Sequence[str]) -> str:
    """One line of it, as short as there are different values.

    >>> _who_has_what("tensorflow", ["2.20.0", "2.20.1", "2.20.0"])
    'tensorflow 2.20.0 (worker 0, 2), 2.20.1 (worker 1)'
    """
    told = []
    for value in dict.fromkeys(values):
        who = ", ".join(str(index) for index, one in enumerate(values) if one == value)
        told.append(f"{value[:16]} (worker {who})")
    return f"{name} {', '.join(told)}"


@tf.function(reduce_retracing=True)
def _summed(strategy: tf.distribute.Strategy, values: tf.Tensor) -> tf.Tensor:
    def replica(values: tf.Tensor) -> tf.Tensor:
        # Of a tensor that is on no device yet TensorFlow does not know where the sum is to go.
        here = tf.identity(values)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

    return strategy.run(replica, args=(values,))


def num_workers() -> int:
    """How many workers take the step that is being traced."""
    replica = tf.distribute.get_replica_context()
    return 1 if replica is None else int(replica.num_replicas_in_sync)


def of_mean_loss(gradients: Iterable[Gradient]) -> list[Gradient]:
    """Gradients of a worker's mean loss as its part of the gradients of the mean over all workers' examples.

    TensorFlow adds the parts up. Without the division the step would grow with the number of workers. A row that
    occurs twice in a sparse gradient is added up here, so that it is sent once.
    """
    count = num_workers()
    if count == 1:
        return list(gradients)

    def part(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor | tf.IndexedSlices:
        if not isinstance(gradient, tf.IndexedSlices):
            return gradient / count
        rows, place = tf.unique(gradient.indices)
        values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
        return tf.IndexedSlices(values / count, rows, gradient.dense_shape)

    return [(part(gradient), variable) for gradient, variable in gradients]


def added_up(
    gradients: Iterable[Gradient], add_up: Callable[[Iterable[Gradient]], Iterable[Gradient]]
) -> list[Gradient]:
    """Gradients added up over the workers, the rows of tables sent in bfloat16: half the bytes that a step waits for.

    Eight bits of a number are kept, an error of 1 in 256 at most. Adagrad divides by what it has added up of the same
    numbers, so that it is the error of a step as well. Every worker takes its own rows, too, from what was sent, and so all
    end with the same weights. What is dense is sent as it is.

    Args:
        gradients: of this worker.
        add_up: over the workers; of sparse gradients it puts the rows of all one after the other.
    """
    if num_workers() == 1:
        return list(add_up(gradients))
    return _with_rows(add_up(_with_rows(gradients, _packed)), _unpacked)


def _packed(rows: tf.Tensor, width: int) -> tf.Tensor:
    """float32 [num_rows, width] -> int32 [num_rows, half as many], two numbers in each: TensorFlow gathers no bfloat16."""
    pairs = tf.pad(tf.cast(rows, tf.bfloat16), [[0, 0], [0, width % 2]])
    return tf.bitcast(tf.reshape(pairs, [-1, (width + 1) // 2, 2]), tf.int32)


def _unpacked(rows: tf.Tensor, width: int) -> tf.Tensor:
    """The inverse of `_packed`, but for its rounding."""
    pairs = tf.reshape(tf.bitcast(rows, tf.bfloat16), [-1, width + width % 2])
    return tf.cast(pairs[:, :width], tf.float32)


def _with_rows(
    gradients: Iterable[Gradient], change: Callable[[tf.Tensor, int], tf.Tensor]
) -> list[Gradient]:
    """Sparse gradients with their rows changed, by the width of the table."""
    return [
        (
            tf.IndexedSlices(change(gradient.values, variable.shape[1]), gradient.indices)
            if isinstance(gradient, tf.IndexedSlices)
            else gradient,
            variable,
        )
        for gradient, variable in gradients
    ]
