"""Candidate generation (paper, section 3): a user's past becomes a query embedding, every video has a candidate embedding.

The classifier over all videos is trained by sampled softmax: the labels of the batch and uniformly drawn
videos are the candidates of a step, corrected for how often each is drawn.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from watchnext.errors import InputError
from watchnext.features.batches import FeatureSpec
from watchnext.models import training
from watchnext.models.losses import candidate_sampling_probability
from watchnext.models.towers import (
    EmbeddingTable,
    adagrad,
    halving_widths,
    load_signature,
    relu_tower,
    save_signature,
    serving_specs,
)

HISTORY = "history"
EXAMPLE_AGE = "example_age_s"
REGION_DIM = 8


class QueryTower(tf.keras.Model):
    """Averaged bags, categories and example age, concatenated, through a ReLU tower (paper, figure 3).

    Args:
        features: the inputs: multivalent ones (`history` among them) are averaged, categorical ones embedded,
            and the one continuous input is `example_age_s`.
        vocabulary_sizes: id space -> number of known ids, for the spaces of the inputs.
        embedding_dim: D, width of the last layer and of the embeddings that are averaged.
        depth: number of ReLU layers; each is half as wide as the one below and the last one D. 0 is the
            paper's linear factorisation.
        longest_example_age_s: the age that is scaled to 1.
        watch_dropout: share of a training bag's watches that is left out at random.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        vocabulary_sizes: Mapping[str, int],
        embedding_dim: int,
        depth: int,
        longest_example_age_s: float,
        watch_dropout: float = 0.0,
    ) -> None:
        super().__init__(name="query_tower")
        strange = [spec.name for spec in features if spec.kind == "continuous" and spec.name != EXAMPLE_AGE]
        if strange or HISTORY not in {spec.name for spec in features}:
            raise ValueError(f"a query tower needs `{HISTORY}`, and knows no continuous inputs {strange}")
        self.features = tuple(features)
        self.embedding_dim = embedding_dim
        self.watch_dropout = watch_dropout
        self.longest_example_age_s = max(longest_example_age_s, 1.0)
        self.tables = {
            spec.space: EmbeddingTable(
                vocabulary_sizes[spec.space],
                embedding_dim if spec.kind == "multivalent" else REGION_DIM,
                name=f"{spec.space}_table",
            )
            for spec in features
            if spec.space is not None
        }
        self.tower = (
            relu_tower(halving_widths(embedding_dim, depth), name="tower")
            if depth
            else tf.keras.Sequential([tf.keras.layers.Dense(embedding_dim, name="linear")], name="tower")
        )
        self.serve = tf.function(
            lambda inputs: {"embedding": self(inputs)}, input_signature=[serving_specs(self.features)]
        )

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Query embeddings.

        Args:
            inputs: multivalent int32 [num_queries, any], categorical int32 [num_queries], example_age_s
                float32 [num_queries].
            training: whether `watch_dropout` applies.

        Returns:
            [num_queries, embedding_dim].
        """
        parts = []
        for spec in self.features:
            values = inputs[spec.name]
            if spec.kind == "multivalent":
                if training and spec.name == HISTORY and self.watch_dropout:
                    values = tf.where(tf.random.uniform(tf.shape(values)) < self.watch_dropout, 0, values)
                parts.append(self.tables[spec.space or spec.name].mean(values))
                # How much is known: the mean hides whether it is over one or over fifty.
                known = tf.reduce_sum(tf.cast(inputs[spec.name] > 0, tf.float32), axis=1, keepdims=True)
                parts.append(tf.math.log1p(known) / 4.0)
            elif spec.kind == "categorical":
                parts.append(self.tables[spec.space or spec.name](values))
            else:
                age = tf.maximum(values[:, tf.newaxis], 0.0) / self.longest_example_age_s
                parts += [age, tf.square(age), tf.sqrt(age)]
        return self.tower(tf.concat(parts, axis=1))


class RetrievalModel(tfrs.Model):
    """Query tower, separate candidate embeddings (paper, section 3.5), and the sampled softmax between them.

    Args:
        query_tower: makes the queries.
        num_candidates: V, the videos of the vocabulary; candidate row r is vocabulary index r + 1.
        label_frequency: [V] how often each candidate is a label among the training examples as emitted.
        batch_size: examples per step.
        uniform_negatives: candidates drawn from the whole corpus at each step, beside the labels of the batch.
    """

    def __init__(
        self,
        query_tower: QueryTower,
        *,
        num_candidates: int,
        label_frequency: np.ndarray,
        batch_size: int,
        uniform_negatives: int,
    ) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.num_candidates = num_candidates
        self.uniform_negatives = uniform_negatives
        self.candidate_embeddings = self.add_weight(
            name="candidate_embeddings",
            shape=(num_candidates, query_tower.embedding_dim),
            initializer=tf.keras.initializers.RandomNormal(stddev=0.05),
        )
        self.sampling_probability = tf.constant(
            candidate_sampling_probability(
                label_frequency, num_in_batch=batch_size, num_uniform=uniform_negatives
            )
        )
        self.task = tfrs.tasks.Retrieval(remove_accidental_hits=True)

    def compute_loss(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Mean sampled-softmax cross-entropy per example.

        Args:
            inputs: the query tower's inputs and `label` int32 [num_queries], vocabulary indices from 1.
            training: passed to the query tower.
        """
        queries = self.query_tower(inputs, training=training)
        labels = inputs["label"] - 1
        uniform = tf.random.uniform([self.uniform_negatives], maxval=self.num_candidates, dtype=labels.dtype)
        candidates = tf.concat([labels, uniform], axis=0)
        loss = self.task(
            queries,
            tf.gather(self.candidate_embeddings, candidates),
            candidate_sampling_probability=tf.gather(self.sampling_probability, candidates),
            candidate_ids=candidates,
            compute_metrics=False,
        )
        # tasks.Retrieval sums over the batch: without this the learning rate would scale with the batch size.
        return loss / tf.cast(tf.shape(labels)[0], loss.dtype)


def train(
    examples: Mapping[str, np.ndarray],
    features: Sequence[FeatureSpec],
    *,
    vocabulary_sizes: Mapping[str, int],
    embedding_dim: int,
    depth: int,
    watch_dropout: float,
    batch_size: int,
    uniform_negatives: int,
    learning_rate: float,
    epochs: int,
    patience: int,
    seed: int,
    evaluate: Callable[[RetrievalModel], Mapping[str, float]],
    objective: str = "map",
    where: str = "train_retrieval",
) -> tuple[RetrievalModel, training.Training]:
    """Train candidate generation.

    Args:
        examples: what `Encoder.encode_retrieval` makes of the training examples, `label` included.
        features: the inputs of the query tower.
        vocabulary_sizes: id space -> number of known ids.
        embedding_dim: D.
        depth: ReLU layers of the query tower.
        watch_dropout: share of a bag's watches left out at random in training.
        batch_size: examples per step.
        uniform_negatives: uniformly drawn candidates per step.
        learning_rate: of Adagrad, which updates only the embedding rows of the batch.
        epochs: at most this many passes over the examples.
        patience: passes without a better objective before training stops.
        seed: decides the order of examples; `training.start` decides the rest.
        evaluate: metrics of the model on the tuning day; empty where there is none.
        objective: which of them decides on the epoch; more is better.
        where: named in errors and progress.

    Raises:
        InputError: there are no examples, an example's label is not in the vocabulary, or the loss became NaN.
    """
    labels = examples["label"]
    training.require_examples(labels, where)
    num_candidates = vocabulary_sizes["video"]
    if labels.min() < 1 or labels.max() > num_candidates:
        raise InputError(
            f"labels of training examples must lie in 1..{num_candidates}, the vocabulary of videos",
            where=where,
            offenders=labels[(labels < 1) | (labels > num_candidates)][:5].tolist(),
            remedy="examples and vocabulary are not of the same run of featurize: run `dvc repro`",
        )
    batch_size = min(batch_size, len(labels))
    tower = QueryTower(
        features,
        vocabulary_sizes=vocabulary_sizes,
        embedding_dim=embedding_dim,
        depth=depth,
        longest_example_age_s=float(examples[EXAMPLE_AGE].max()) if EXAMPLE_AGE in examples else 1.0,
        watch_dropout=watch_dropout,
    )
    model = RetrievalModel(
        tower,
        num_candidates=num_candidates,
        label_frequency=np.bincount(labels - 1, minlength=num_candidates),
        batch_size=batch_size,
        uniform_negatives=uniform_negatives,
    )
    model.compile(optimizer=adagrad(learning_rate))
    outcome = training.fit(
        model,
        {name: examples[name] for name in (*(spec.name for spec in features), "label")},
        batch_size=batch_size,
        epochs=epochs,
        patience=patience,
        seed=seed,
        evaluate=lambda: evaluate(model),
        objective=objective,
        maximise=True,
        where=where,
    )
    return model, outcome


def embed_queries(
    tower: QueryTower, examples: Mapping[str, np.ndarray], batch_size: int = 4096
) -> np.ndarray:
    """Query embeddings [num_queries, embedding_dim] float32 of encoded examples."""
    rows = len(examples[HISTORY])
    parts = [
        tower.serve(
            {
                spec.name: tf.constant(examples[spec.name][begin : begin + batch_size])
                for spec in tower.features
            }
        )["embedding"].numpy()
        for begin in range(0, rows, batch_size)
    ]
    return np.concatenate(parts) if parts else np.empty((0, tower.embedding_dim), np.float32)


def save(model: RetrievalModel, directory: Path) -> None:
    """Write `query_tower/` (SavedModel) and `candidate_embeddings.npy` (float32 [V, D]) into `directory`."""
    save_signature(model.query_tower, model.query_tower.serve, str(directory / "query_tower"))
    np.save(directory / "candidate_embeddings.npy", model.candidate_embeddings.numpy())


def load_query_tower(directory: Path) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """The stored query tower as a function: encoded requests -> embeddings float32 [num_queries, D]."""
    signature = load_signature(str(directory))
    return lambda arrays: signature(arrays)["embedding"]
