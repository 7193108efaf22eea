"""What both models are built of: embedding tables whose index 0 is the zero vector, and ReLU towers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from watchnext.features.batches import FeatureSpec

Pooling = Literal["mean", "sum", "max"]


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

    def pool(self, bags: tf.Tensor, how: Pooling) -> tf.Tensor:
        """[batch, bag_length] indices -> [batch, dim]: mean, sum or component-wise maximum over the known ids of each bag.

        Zeros take no part; a bag of zeros alone gives the zero vector. The order within a bag has no influence.
        """
        where = tf.where(bags > 0)
        ids = tf.gather_nd(bags, where)
        rows = tf.cast(where[:, 0], tf.int32)
        if how == "max":
            highest = tf.math.unsorted_segment_max(tf.gather(self.table, ids), rows, tf.shape(bags)[0])
            known = tf.reduce_any(bags > 0, axis=1, keepdims=True)
            return tf.where(known, highest, 0.0)
        segment = tf.sparse.segment_mean if how == "mean" else tf.sparse.segment_sum
        # Half the time of gather, mask and sum, because the padding is never gathered.
        return segment(self.table, ids, rows, num_segments=tf.shape(bags)[0], sparse_gradient=True)


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


def adagrad(learning_rate: float) -> tf.keras.optimizers.Optimizer:
    """Adagrad, which touches only the embedding rows of a batch, for losses that are means over the batch.

    A row's gradient is then of the order of 1 / batch_size, its square far below Keras's initial accumulator of
    0.1: with that, Adagrad is plain gradient descent with a tiny step, and the model stops at popularity.
    """
    return tf.keras.optimizers.Adagrad(learning_rate, initial_accumulator_value=1e-7)


def serving_specs(features: Sequence[FeatureSpec]) -> dict[str, tf.TensorSpec]:
    """Names, shapes and types of a served tower's inputs: what `Encoder` makes of each feature."""
    shapes = {
        "multivalent": ([None, None], tf.int32),
        "categorical": ([None], tf.int32),
        "continuous": ([None], tf.float32),
        "unit": ([None], tf.float32),
    }
    return {spec.name: tf.TensorSpec(*shapes[spec.kind], name=spec.name) for spec in features}


def save_signature(tower: tf.keras.Model, serve: tf.types.experimental.GenericFunction, path: str) -> None:
    """Save `serve` (a tf.function of named inputs, with its input signature) as the SavedModel at `path`.

    Only the traced function and the tower's weights are stored, no Keras objects: what loads it needs
    TensorFlow alone, and one row is answered in a fraction of a millisecond.
    """
    module = tf.Module()
    module.tower_weights = tower.weights
    module.serve = serve
    tf.saved_model.save(module, path, signatures={"serving_default": serve})


def load_signature(path: str) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Load a SavedModel and return its `serving_default` as a function from named arrays to named arrays.

    Arrays that the signature does not name are ignored, so that whatever an Encoder makes can be passed.
    """
    module = tf.saved_model.load(path)
    signature = module.signatures["serving_default"]
    specs = signature.structured_input_signature[1]

    def call(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = signature(**{name: tf.constant(arrays[name], spec.dtype) for name, spec in specs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    # The signature holds only weak references to its variables.
    call.module = module  # type: ignore[attr-defined]
    return call
