"""What both models are built of: embedding tables whose index 0 is the zero vector, and ReLU towers."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from watchnext.features.batches import FeatureSpec
from watchnext.models import forward
from watchnext.models.workers import added_up, of_mean_loss

Pooling = Literal["mean", "sum", "max"]
MatmulDtype = Literal["auto", "float32", "bfloat16"]


class EmbeddingTable(tf.keras.layers.Layer):
    """One table per id space, shared by every feature of that space (paper, sections 3.2 and 4.1).

    Index 0 is padding and out-of-vocabulary: it embeds to the zero vector, whatever the row holds, and
    receives no gradient. Gradients are sparse, so an optimizer with sparse updates touches only rows in use.

    Args:
        vocabulary_size: number of known ids; indices run from 1 to this.
        dim: length of an embedding.
    """

    def __init__(self, vocabulary_size: int, dim: int, name: str | None = None) -> None:
        super().__init__(name=name)
        self.vocabulary_size = vocabulary_size
        self.dim = dim
        self.table = self.add_weight(
            name="table",
            shape=(vocabulary_size + 1, dim),
            initializer=tf.keras.initializers.RandomNormal(stddev=dim**-0.5),
            trainable=True,
        )

    def call(self, indices: tf.Tensor) -> tf.Tensor:
        """[batch] indices -> [batch, dim] embeddings."""
        known = tf.cast(indices > 0, tf.float32)
        return tf.gather(self.table, indices) * known[:, tf.newaxis]

    def mean(self, bags: tf.Tensor) -> tf.Tensor:
        """`pool(bags, "mean")` without its sparse gradient: for few bags, a fraction of the time."""
        known = tf.cast(bags > 0, tf.float32)
        total = tf.einsum("bl,bld->bd", known, tf.gather(self.table, bags))
        return tf.math.divide_no_nan(total, tf.reduce_sum(known, axis=1, keepdims=True))

    def pool(self, bags: tf.Tensor, how: Pooling) -> tf.Tensor:
        """[batch, bag_length] indices -> [batch, dim]: mean, sum or component-wise maximum over the known ids of each bag.

        Zeros take no part; a bag of zeros alone gives the zero vector. The order within a bag has no influence.
        """
        return self.pool_all([bags], how)[0]

    def pool_all(self, bags: Sequence[tf.Tensor], how: Pooling) -> list[tf.Tensor]:
        """`pool` of several inputs over this table.

        Every row in use is gathered once, so that the table's gradient has one value per row: an optimizer need not
        add up a value per watch, most of a step's time at a million rows. Only rows are read: a table that an
        optimizer updates in place would be copied as a whole if it were read as a whole.
        """
        where = [tf.where(bag > 0) for bag in bags]
        ids, place = tf.unique(
            tf.concat([tf.gather_nd(bag, known) for bag, known in zip(bags, where, strict=True)], axis=0)
        )
        # In the order of the table, rows are read and updated in half the time.
        order = tf.argsort(ids)
        rows = tf.gather(self.table, tf.gather(ids, order))
        place = tf.gather(tf.math.invert_permutation(order), place)
        places = tf.split(place, [tf.shape(known)[0] for known in where], num=len(bags))
        return [
            _pool(rows, known[:, 0], own, num_bags=tf.shape(bag)[0], how=how)
            for bag, known, own in zip(bags, where, places, strict=True)
        ]


def _pool(
    rows: tf.Tensor, bag_of: tf.Tensor, row_of: tf.Tensor, *, num_bags: tf.Tensor, how: Pooling
) -> tf.Tensor:
    """Pool rows into bags.

    Args:
        rows: [num_rows, dim] embeddings.
        bag_of: int64 [num_members], ascending: the bag of each member ...
        row_of: int32 [num_members]: ... and its row.
        num_bags: [].
        how: see `EmbeddingTable.pool`.

    Returns:
        [num_bags, dim].
    """
    if how == "max":
        highest = tf.math.unsorted_segment_max(tf.gather(rows, row_of), bag_of, num_bags)
        # Of an empty segment TensorFlow gives the lowest number there is.
        return tf.where(highest == highest.dtype.min, 0.0, highest)
    share = tf.ones_like(bag_of, dtype=tf.float32)
    if how == "mean":
        share /= tf.gather(tf.math.unsorted_segment_sum(share, bag_of, num_bags), bag_of)
    members = tf.stack([bag_of, tf.cast(row_of, tf.int64)], axis=1)
    shape = tf.cast(tf.stack([num_bags, tf.shape(rows)[0]]), tf.int64)
    return _sparse_product(members, share, shape, rows)


def _sparse_product(indices: tf.Tensor, values: tf.Tensor, shape: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """A @ rows, with gradient A^T @ upstream, of the sparse A [num_bags, num_rows] with `values` at `indices`.

    In compressed rows both products take a third to a tenth of the time of `tf.sparse.segment_mean` and its
    gradient, and the order in which they add is always the same.
    """

    @tf.custom_gradient
    def product(rows: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(indices=indices, values=values, dense_shape=shape)

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            def transposed() -> tf.Tensor:
                across = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float32)
                return tf.raw_ops.SparseMatrixMatMul(a=across, b=upstream)

            # Of a batch in which nobody has a history there are no rows, and dividing by their number ends the process.
            return tf.cond(tf.size(values) > 0, transposed, lambda: tf.zeros_like(rows))

        return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=rows), gradient

    return product(rows)


def relu_tower(widths: Sequence[int], name: str) -> tf.keras.Sequential:
    """Fully connected ReLU layers, `widths` units each, bottom first. [batch, any] -> [batch, widths[-1]]."""
    return tf.keras.Sequential(
        [
            tf.keras.layers.Dense(
                width, activation="relu", kernel_initializer="he_normal", name=f"relu_{number}"
            )
            for number, width in enumerate(widths)
        ],
        name=name,
    )


def run_tower(tower: tf.keras.Sequential, inputs: tf.Tensor, matmul_dtype: tf.DType) -> tf.Tensor:
    """`tower(inputs)`, with weights in float32 and everything between them in `matmul_dtype`.

    Returns:
        [batch, width of the last layer] in `matmul_dtype`.
    """
    if matmul_dtype == tf.float32:
        return tower(inputs)
    if not tower.built:
        tower.build(inputs.shape)
    values = tf.cast(inputs, matmul_dtype)
    for layer in tower.layers:
        values = run_dense(layer, values)
    return values


def run_dense(layer: tf.keras.layers.Dense, values: tf.Tensor) -> tf.Tensor:
    """`layer(values)` of a built layer, its float32 weights cast to the type of `values`, which the result has, too."""
    product = tf.matmul(values, tf.cast(layer.kernel, values.dtype))
    return layer.activation(tf.nn.bias_add(product, tf.cast(layer.bias, values.dtype)))


def fastest_matmul_dtype() -> tf.DType:
    """bfloat16 where the processor multiplies matrices of it (AMX), several times as fast as float32; else float32.

    By what the processor says it can, not by the clock: a training is to be the same each time it runs on a machine.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # Not Linux.
        return tf.float32
    return tf.bfloat16 if "amx_bf16" in flags else tf.float32


def halving_widths(top: int, depth: int) -> list[int]:
    """Widths of the paper's tower (section 3.5): each layer halves the one below, the last one is `top` wide.

    >>> halving_widths(256, 2)
    [512, 256]
    """
    return [top * 2**level for level in reversed(range(depth))]


def log_dim(vocabulary_size: int, per_doubling: float) -> int:
    """Embedding dimension that grows with the logarithm of the vocabulary (paper, section 4.1); at least 2.

    Args:
        vocabulary_size: number of known ids.
        per_doubling: dimensions added with each doubling of the vocabulary.
    """
    return max(2, round(per_doubling * (vocabulary_size + 1).bit_length()))


class _Adagrad(tf.keras.optimizers.legacy.Adagrad):
    """Adagrad whose sparse update is one fused operation, and which adds up only rows that occur twice.

    Of several workers it takes the gradient of the mean over all their examples.
    """

    def _transform_unaggregated_gradients(self, grads_and_vars: Any) -> Any:
        return of_mean_loss(grads_and_vars)

    def _aggregate_gradients(self, grads_and_vars: Any) -> Any:
        return added_up(grads_and_vars, super()._aggregate_gradients)

    def _resource_apply_sparse_duplicate_indices(
        self, grad: tf.Tensor, handle: tf.Variable, indices: tf.Tensor, **kwargs: Any
    ) -> tf.Operation:
        unique, place = tf.unique(indices)
        num = tf.size(unique)
        grad = tf.cond(
            num == tf.size(indices), lambda: grad, lambda: tf.math.unsorted_segment_sum(grad, place, num)
        )
        return self._resource_apply_sparse(grad, handle, unique, **kwargs)


INITIAL_ACCUMULATOR = 2e-7
"""What Adagrad's accumulators begin with, see `adagrad`."""


def adagrad(learning_rate: float) -> tf.keras.optimizers.Optimizer:
    """Adagrad, which touches only the embedding rows of a batch, for losses that are means over the batch.

        accumulator += g^2,    weight -= learning_rate * g / sqrt(accumulator)

    A row's gradient is then of the order of 1 / batch_size, its square far below Keras's initial accumulator of
    0.1: with that, Adagrad is plain gradient descent with a tiny step, and the model stops at popularity.
    """
    return _Adagrad(learning_rate, initial_accumulator_value=INITIAL_ACCUMULATOR, epsilon=0.0)


def serving_specs(features: Sequence[FeatureSpec]) -> dict[str, tf.TensorSpec]:
    """Names, shapes and types of a served tower's inputs: what `Encoder` makes of each feature."""
    shapes = {
        "multivalent": ([None, None], tf.int32),
        "categorical": ([None], tf.int32),
        "continuous": ([None], tf.float32),
        "unit": ([None], tf.float32),
    }
    return {spec.name: tf.TensorSpec(*shapes[spec.kind], name=spec.name) for spec in features}


def save_signature(
    tower: tf.keras.Model,
    serve: tf.types.experimental.GenericFunction,
    path: str,
    *,
    packed: tf.types.experimental.GenericFunction | None = None,
    layout: Mapping[str, Sequence[str]] | None = None,
    plan: Mapping[str, Any] | None = None,
    sample: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Save `serve` (a tf.function of named inputs, with its input signature) as the SavedModel at `path`.

    Only the traced function and the tower's weights are stored, no Keras objects: what loads it needs
    TensorFlow alone, and one row is answered in a fraction of a millisecond.

    `packed` computes the same from fewer inputs, of which those in `layout` hold several of `serve`'s as columns, in the
    order of the names there. It is stored as a second signature, with `layout` as JSON in a variable of that name.

    `plan` says what `models.forward` needs to compute the same (`load_forward`); it is stored as JSON in a variable of that
    name, once it has given for `sample`, encoded inputs, what `serve` gives.

    Raises:
        ValueError: it has not.
    """
    module = tf.Module()
    module.tower_weights = tower.weights
    if plan is not None and sample is not None:
        computed = forward.KINDS[plan["kind"]](plan, [weight.numpy() for weight in tower.weights])(sample)
        wanted = serve({name: tf.constant(values) for name, values in sample.items()})
        forward.held_to(computed, {name: values.numpy() for name, values in wanted.items()})
        module.plan = tf.Variable(json.dumps(plan), trainable=False)
    module.serve = serve
    signatures = {"serving_default": serve}
    if packed is not None:
        signatures["packed"] = packed
        module.layout = tf.Variable(json.dumps(layout), trainable=False)
    # Gradients are not served.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, path, signatures=signatures, options=options)


def load_signature(path: str) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Load a SavedModel and return what it serves as a function from named arrays to named arrays.

    It is asked through its signature `packed` where it has one, else through `serving_default`. Arrays that are no input
    of it are ignored, so that whatever an Encoder makes can be passed.
    """
    module = tf.saved_model.load(path)
    packed = module.signatures.get("packed")
    signature = module.signatures["serving_default"] if packed is None else packed
    layout = {} if packed is None else json.loads(module.layout.numpy())
    specs = signature.structured_input_signature[1]
    captured = signature.captured_inputs
    # Called by name, a signature checks and sorts what it is given, which for a single request takes longer than the tower.
    names = [tensor.name.partition(":")[0] for tensor in signature.inputs[: len(specs)]]
    by_place = len(signature.inputs) == len(specs) + len(captured) and set(names) == set(specs)

    def call(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {
            name: tf.constant(
                np.stack([arrays[member] for member in layout[name]], axis=1)
                if name in layout
                else arrays[name],
                specs[name].dtype,
            )
            for name in (names if by_place else specs)
        }
        outputs = signature._call_flat(list(given.values()), captured) if by_place else signature(**given)
        return {name: value.numpy() for name, value in outputs.items()}

    # The signature holds only weak references to its variables.
    call.module = module  # type: ignore[attr-defined]
    return call


def load_forward(path: str) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """What a SavedModel serves, as `load_signature` gives it, computed by NumPy where the model has a plan of it.

    For one request at a time: the graph is asked for many rows, and by whatever compares models.
    """
    stored = tf.train.load_checkpoint(f"{path}/variables/variables")
    if not stored.has_tensor(_stored_as("plan")):
        return load_signature(path)
    plan = json.loads(stored.get_tensor(_stored_as("plan")))
    names = (_stored_as(f"tower_weights/{place}") for place in itertools.count())
    weights = [stored.get_tensor(name) for name in itertools.takewhile(stored.has_tensor, names)]
    return forward.KINDS[plan["kind"]](plan, weights)


def _stored_as(attribute: str) -> str:
    """Where a checkpoint keeps an attribute of the saved module."""
    return f"{attribute}/.ATTRIBUTES/VARIABLE_VALUE"
