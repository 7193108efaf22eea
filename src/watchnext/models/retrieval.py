"""Candidate generation (paper, section 3): a user's past becomes a query embedding, every video has a candidate embedding.

The classifier over all videos is trained by sampled softmax: negatives drawn from a background distribution and
shared by the batch, and the labels of the batch, each corrected for how often it is expected to be drawn.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_recommenders as tfrs

from watchnext.console import say
from watchnext.errors import InputError
from watchnext.features.batches import UNWATCHED_LABEL, FeatureSpec
from watchnext.models import forward, training
from watchnext.models.checkpoints import Checkpoints
from watchnext.models.losses import Estimator, sampled_softmax_loss
from watchnext.models.samplers import Sampler, SamplerKind, expected_candidate_count, make_sampler
from watchnext.models.shards import Shards
from watchnext.models.towers import (
    EmbeddingTable,
    MatmulDtype,
    Pooling,
    adagrad,
    fastest_matmul_dtype,
    halving_widths,
    load_signature,
    log_dim,
    relu_tower,
    run_tower,
    save_signature,
    serving_specs,
)
from watchnext.models.warm_start import WarmStart
from watchnext.models.workers import ALONE, Workers

HISTORY = "history"
SHOWN_UNWATCHED = "shown_unwatched"
EXAMPLE_AGE = "example_age_s"
USER = "user"
_SAMPLE_ROWS = 16

Head = Literal["relu", "linear"]
"""What gives the query embedding. `relu`: the last ReLU layer, D wide, as in the paper (section 3.5), so that no component
is negative. `linear`: ReLU layers from 2 D down stand below a linear layer of D - 1 components; the last component is
1, against which the last one of a candidate is a bias of its own, so that how popular it is takes no other."""


class QueryTower(tf.keras.Model):
    """Pooled bags, categories, numbers and example age, concatenated, through a ReLU tower (paper, figure 3).

    Args:
        features: the inputs. Multivalent ones are pooled, categorical ones embedded, those of the kind `unit` are
            numbers in [0, 1] that go in as they are, each with whether it is known; the one continuous input is
            `example_age_s`.
        vocabulary_sizes: id space -> number of known ids, for the spaces of the inputs.
        embedding_dim: D, width of the last layer and of the embeddings that are pooled.
        depth: number of ReLU layers; each is half as wide as the one below and the last one D. 0 is the
            paper's linear factorisation.
        longest_example_age_s: the age that is scaled to 1.
        pooling: how a bag becomes one vector.
        watch_dropout: share of a training bag's watches that is left out at random.
        shown_dropout: the same of the videos that were shown and not watched.
        head: see `Head`; without ReLU layers (depth 0) both are linear, and `linear` has the bias alone beside.
        serving_example_age_s: added to every example age when served, in seconds; the paper serves at 0 or slightly
            below.
        unwatched_labels: whether training tells, as `unwatched_label`, which labels were shown and not watched. It is
            what example age is to time: one model of both, of which the part for watches is served.
        matmul_dtype: of the layers' products in training, and of those of the loss.
    """

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        *,
        vocabulary_sizes: Mapping[str, int],
        embedding_dim: int,
        depth: int,
        longest_example_age_s: float,
        pooling: Pooling = "mean",
        watch_dropout: float = 0.0,
        shown_dropout: float = 0.0,
        head: Head = "relu",
        serving_example_age_s: float = 0.0,
        unwatched_labels: bool = False,
        matmul_dtype: tf.DType = tf.float32,
    ) -> None:
        super().__init__(name="query_tower")
        strange = [spec.name for spec in features if spec.kind == "continuous" and spec.name != EXAMPLE_AGE]
        if strange or not features:
            raise ValueError(
                f"a query tower needs inputs, and knows no continuous ones but its age: {strange}"
            )
        self.features = tuple(features)
        self.vocabulary_sizes = dict(vocabulary_sizes)
        self.embedding_dim = embedding_dim
        self.pooling: Pooling = pooling
        self.dropout = {HISTORY: watch_dropout, SHOWN_UNWATCHED: shown_dropout}
        self.head: Head = head
        self.longest_example_age_s = max(longest_example_age_s, 1.0)
        self.serving_example_age_s = serving_example_age_s
        self.unwatched_labels = unwatched_labels
        self.matmul_dtype = matmul_dtype
        pooled = {spec.space for spec in features if spec.kind == "multivalent"}
        self.tables = {
            space: EmbeddingTable(
                vocabulary_sizes[space],
                embedding_dim if space in pooled else log_dim(vocabulary_sizes[space], 1.0),
                name=f"{space}_table",
            )
            for space in dict.fromkeys(
                spec.space for spec in features if spec.kind in ("multivalent", "categorical") and spec.space
            )
        }
        if head == "linear":
            self.tower = relu_tower(halving_widths(2 * embedding_dim, depth), name="tower")
            self.tower.add(tf.keras.layers.Dense(embedding_dim - 1, name="linear"))
        else:
            self.tower = (
                relu_tower(halving_widths(embedding_dim, depth), name="tower")
                if depth
                else tf.keras.Sequential([tf.keras.layers.Dense(embedding_dim, name="linear")], name="tower")
            )
        self.serve = tf.function(self._serve, input_signature=[serving_specs(self.features)])

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Query embeddings.

        Args:
            inputs: multivalent int32 [num_queries, any], categorical int32 [num_queries], unit and example_age_s
                float32 [num_queries]; unwatched_label float32 [num_queries], 0 for all where it is not given.
            training: whether `watch_dropout` applies.

        Returns:
            [num_queries, embedding_dim]; in training in `matmul_dtype`.
        """
        bags: dict[str, dict[str, tf.Tensor]] = {}
        for spec in self.features:
            if spec.kind == "multivalent":
                bag = inputs[spec.name]
                dropout = self.dropout.get(spec.name, 0.0)
                if training and dropout:
                    # Not `tf.random.uniform`: a training that goes on after a kill has to go on with its draws.
                    drawn = tf.random.get_global_generator().uniform(tf.shape(bag))
                    bag = tf.where(drawn < dropout, 0, bag)
                bags.setdefault(spec.space or spec.name, {})[spec.name] = bag
        pooled: dict[str, tf.Tensor] = {}
        for space, of_space in bags.items():
            values = self.tables[space].pool_all(list(of_space.values()), self.pooling)
            pooled.update(zip(of_space, values, strict=True))
        parts = []
        for spec in self.features:
            values = inputs[spec.name]
            if spec.kind == "multivalent":
                parts.append(pooled[spec.name])
                # How much is known: the mean hides whether it is over one or over fifty.
                known = tf.reduce_sum(tf.cast(values > 0, tf.float32), axis=1, keepdims=True)
                parts.append(tf.math.log1p(known) / 4.0)
            elif spec.kind == "categorical":
                parts.append(self.tables[spec.space or spec.name](values))
            elif spec.kind == "unit":
                known = tf.math.is_finite(values)
                parts.append(tf.stack([tf.where(known, values, 0.0), tf.cast(known, tf.float32)], axis=1))
            else:
                age = values[:, tf.newaxis] / self.longest_example_age_s
                parts += [age, tf.square(age), tf.sqrt(tf.maximum(age, 0.0))]
        if self.unwatched_labels:
            watched = tf.zeros([tf.shape(parts[0])[0]])
            parts.append(inputs.get(UNWATCHED_LABEL, watched)[:, tf.newaxis])
        # Queries that are served come from float32, whatever they were trained in: any machine has that.
        queries = run_tower(
            self.tower, tf.concat(parts, axis=1), self.matmul_dtype if training else tf.float32
        )
        return (
            tf.concat([queries, tf.ones_like(queries[:, :1])], axis=1) if self.head == "linear" else queries
        )

    def _serve(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        if EXAMPLE_AGE in inputs:
            inputs = {**inputs, EXAMPLE_AGE: inputs[EXAMPLE_AGE] + self.serving_example_age_s}
        return {"embedding": self(inputs)}

    def forward_plan(self) -> dict[str, Any]:
        """What `forward.Query` makes of the weights what this serves."""
        place = {id(weight): number for number, weight in enumerate(self.weights)}
        return {
            "kind": "query",
            "features": [dataclasses.asdict(spec) for spec in self.features],
            "tables": {space: place[id(table.table)] for space, table in self.tables.items()},
            "pooling": self.pooling,
            "layers": [
                (
                    place[id(layer.kernel)],
                    place[id(layer.bias)],
                    layer.activation is tf.keras.activations.relu,
                )
                for layer in self.tower.layers
            ],
            "head": self.head,
            "longest_example_age_s": self.longest_example_age_s,
            "serving_example_age_s": self.serving_example_age_s,
            "unwatched_labels": self.unwatched_labels,
        }


class RetrievalModel(tfrs.Model):
    """Query tower, separate candidate embeddings (paper, section 3.5), and the sampled softmax between them.

    Args:
        query_tower: makes the queries.
        sampler: of the shared negatives; its candidates are the videos of the vocabulary, row r is index r + 1.
        label_frequency: [num_candidates] how often each candidate is a label among the training examples as emitted.
        batch_size: examples per step.
        negatives: S, shared draws of a step.
        unique_negatives: whether a candidate that was drawn again is left out.
        in_batch_negatives: whether the labels of the other examples of the batch are negatives, too.
        estimator: see `losses.sampled_softmax_loss`.
    """

    def __init__(
        self,
        query_tower: QueryTower,
        sampler: Sampler,
        *,
        label_frequency: np.ndarray,
        batch_size: int,
        negatives: int,
        unique_negatives: bool = False,
        in_batch_negatives: bool = True,
        estimator: Estimator = "consistent",
    ) -> None:
        super().__init__()
        self.query_tower = query_tower
        self.sampler = sampler
        self.negatives = negatives
        self.unique_negatives = unique_negatives
        self.in_batch_negatives = in_batch_negatives
        self.estimator: Estimator = estimator
        self.candidate_embeddings = self.add_weight(
            name="candidate_embeddings",
            shape=(len(sampler.probability), query_tower.embedding_dim),
            initializer=tf.keras.initializers.RandomNormal(stddev=0.05),
        )
        if query_tower.head == "linear":
            # A bias begins where it alone would end: at the logarithm of how often the candidate is a label.
            bias = np.log(label_frequency + 1.0)
            embeddings = self.candidate_embeddings.numpy()
            embeddings[:, -1] = bias - bias.mean()
            self.candidate_embeddings.assign(embeddings)
        count = expected_candidate_count(
            sampler,
            label_frequency,
            num_negatives=negatives,
            unique=unique_negatives,
            batch_size=batch_size,
            in_batch=in_batch_negatives,
        )
        # A count of 0 has no logarithm, and is looked up for labels alone, where the batch gives no negatives and the
        # sampler never draws them.
        smallest = count[count > 0].min(initial=1.0)
        self.log_expected_count = tf.constant(np.log(np.maximum(count, smallest)).astype(np.float32))

    def compute_loss(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Mean sampled-softmax cross-entropy per example.

        Args:
            inputs: the query tower's inputs, `label` int32 [num_queries], vocabulary indices from 1, and, if known,
                `user` int64 [num_queries].
            training: passed to the query tower.
        """
        labels = inputs["label"] - 1
        drawn = self.sampler.draw(self.negatives, self.unique_negatives)
        # A mean, not a sum as in tfrs.tasks.Retrieval, with which the learning rate would scale with the batch size.
        return tf.reduce_mean(
            sampled_softmax_loss(
                self.query_tower(inputs, training=training),
                tf.gather(self.candidate_embeddings, labels),
                tf.gather(self.candidate_embeddings, drawn),
                positive_ids=labels,
                negative_ids=drawn,
                log_expected_count_of_positives=tf.gather(self.log_expected_count, labels),
                log_expected_count_of_negatives=tf.gather(self.log_expected_count, drawn),
                user_ids=inputs.get(USER),
                estimator=self.estimator,
                in_batch=self.in_batch_negatives,
                matmul_dtype=self.query_tower.matmul_dtype,
            )
        )


def train(
    examples: Mapping[str, np.ndarray] | Shards,
    features: Sequence[FeatureSpec],
    *,
    vocabulary_sizes: Mapping[str, int],
    embedding_dim: int,
    depth: int,
    watch_dropout: float,
    batch_size: int,
    negatives: int,
    learning_rate: float,
    epochs: int,
    patience: int,
    seed: int,
    evaluate: Callable[[RetrievalModel], Mapping[str, float]],
    pooling: Pooling = "mean",
    sampler: SamplerKind = "frequency",
    sampler_alpha: float = 0.5,
    unique_negatives: bool = False,
    in_batch_negatives: bool = True,
    estimator: Estimator = "consistent",
    serving_example_age_s: float = 0.0,
    shown_dropout: float = 0.0,
    head: Head = "relu",
    matmul_dtype: MatmulDtype = "auto",
    averaged_passes: float = 0.0,
    objective: str = "map",
    where: str = "train_retrieval",
    checkpoints: Checkpoints | None = None,
    workers: Workers = ALONE,
    start: WarmStart | None = None,
    ids: Mapping[str, pa.Array] | None = None,
) -> tuple[RetrievalModel, training.Training]:
    """Train candidate generation.

    Args:
        examples: what `Encoder.encode_retrieval` makes of the training examples, `label` included. With `user`,
            one watch of a user is no negative of another; with `unwatched_label` the tower is told, see `QueryTower`. Of
            several workers, those of this one.
        features: the inputs of the query tower.
        vocabulary_sizes: id space -> number of known ids.
        embedding_dim: D.
        depth: ReLU layers of the query tower.
        watch_dropout: share of a bag's watches left out at random in training.
        batch_size: examples per step of each worker.
        negatives: shared draws per step of each worker: its examples have these and its own labels as negatives, and no
            other worker's.
        learning_rate: of Adagrad, which updates only the embedding rows of the batch.
        epochs: at most this many passes over the examples.
        patience: passes without a better objective before training stops.
        seed: decides the order of examples; `training.start` decides the rest.
        evaluate: metrics of the model on the tuning day; empty where there is none.
        pooling: how a bag becomes one vector.
        sampler: background distribution of the shared draws, see `samplers.make_sampler`.
        sampler_alpha: exponent of the sampler `frequency`.
        unique_negatives: whether a candidate that was drawn again is left out.
        in_batch_negatives: whether labels of the batch are negatives, too.
        estimator: see `losses.sampled_softmax_loss`.
        serving_example_age_s: example age that is served, in seconds: 0 or slightly below.
        shown_dropout: share of a bag's shown and unwatched videos left out at random in training.
        head: what gives the query embedding, see `Head`.
        matmul_dtype: what matrices are multiplied in; weights and sums stay float32. `auto`: bfloat16 where that is
            fast, see `towers.fastest_matmul_dtype`.
        averaged_passes: what is measured and kept is the average of the weights over about so many passes last past,
            see `training.fit`; 0 for the weights themselves.
        objective: which of the metrics decides on the epoch; more is better.
        where: named in errors and progress.
        checkpoints: see `training.fit`.
        workers: who trains together, see `training.fit`.
        start: weights that training begins with in place of random ones.
        ids: id space -> [V] ids of its vocabulary, by which `start` finds its rows.

    Raises:
        InputError: there are no examples, an example's label is not in the vocabulary, the loss became NaN, or `start`
            is of another network.
    """
    shards = Shards.of(examples)
    num_candidates = vocabulary_sizes["video"]
    label_frequency = np.zeros(num_candidates, np.int64)
    longest_example_age_s = [1.0] if EXAMPLE_AGE not in shards.names else []
    for part in shards.parts():
        labels = part["label"]
        training.require_examples(labels, where)
        if labels.min() < 1 or labels.max() > num_candidates:
            raise InputError(
                f"labels of training examples must lie in 1..{num_candidates}, the vocabulary of videos",
                where=where,
                offenders=labels[(labels < 1) | (labels > num_candidates)][:5].tolist(),
                remedy="examples and vocabulary are not of the same run of featurize: run `dvc repro`",
            )
        label_frequency += np.bincount(labels - 1, minlength=num_candidates)
        if EXAMPLE_AGE in part:
            longest_example_age_s.append(float(part[EXAMPLE_AGE].max()))
    # What is counted is counted of everybody's examples: the workers train one model.
    label_frequency = workers.sum(label_frequency)
    batch_size = min(workers.gathered(min(batch_size, *shards.rows)))
    longest = max(workers.gathered(max(longest_example_age_s)))
    with workers.scope():
        tower = QueryTower(
            features,
            vocabulary_sizes=vocabulary_sizes,
            embedding_dim=embedding_dim,
            depth=depth,
            longest_example_age_s=longest,
            pooling=pooling,
            watch_dropout=watch_dropout,
            shown_dropout=shown_dropout,
            head=head,
            serving_example_age_s=serving_example_age_s,
            unwatched_labels=UNWATCHED_LABEL in shards.names,
            matmul_dtype=fastest_matmul_dtype() if matmul_dtype == "auto" else tf.as_dtype(matmul_dtype),
        )
        model = RetrievalModel(
            tower,
            make_sampler(
                sampler, num_candidates=num_candidates, label_frequency=label_frequency, alpha=sampler_alpha
            ),
            label_frequency=label_frequency,
            batch_size=batch_size,
            negatives=negatives,
            unique_negatives=unique_negatives,
            in_batch_negatives=in_batch_negatives,
            estimator=estimator,
        )
        model.compile(optimizer=adagrad(learning_rate))

    def begin() -> None:
        if start is not None:
            found = start.apply(model, ids or {}, where)
            say(
                f"{where}: begins with the weights of {start.origin}, which know {found:,} of {num_candidates:,} videos"
            )

    wanted = [spec.name for spec in features] + ["label"]
    wanted += [name for name in (USER, UNWATCHED_LABEL) if name in shards.names]
    outcome = training.fit(
        model,
        shards.through(lambda part: {name: part[name] for name in wanted}, wanted),
        batch_size=batch_size,
        epochs=epochs,
        patience=patience,
        seed=seed,
        evaluate=lambda: evaluate(model),
        objective=objective,
        maximise=True,
        where=where,
        checkpoints=checkpoints,
        averaged_passes=averaged_passes,
        workers=workers,
        begin=begin,
    )
    return model, outcome


def embed_queries(
    tower: QueryTower, examples: Mapping[str, np.ndarray], batch_size: int = 4096
) -> np.ndarray:
    """Query embeddings [num_queries, embedding_dim] float32 of encoded examples."""
    rows = len(examples[tower.features[0].name])
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


def save_query_tower(tower: QueryTower, directory: Path) -> None:
    """Write a SavedModel, with what `models.forward` makes of it."""
    save_signature(
        tower,
        tower.serve,
        str(directory),
        plan=tower.forward_plan(),
        sample=forward.sample_of(tower.features, tower.vocabulary_sizes, _SAMPLE_ROWS),
    )


def save(model: RetrievalModel, directory: Path) -> None:
    """Write `query_tower/` (SavedModel) and `candidate_embeddings.npy` (float32 [V, D]) into `directory`."""
    save_query_tower(model.query_tower, directory / "query_tower")
    np.save(directory / "candidate_embeddings.npy", model.candidate_embeddings.numpy())


def load_query_tower(directory: Path) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """The stored query tower as a function: encoded requests -> embeddings float32 [num_queries, D]."""
    signature = load_signature(str(directory))
    return lambda arrays: signature(arrays)["embedding"]
