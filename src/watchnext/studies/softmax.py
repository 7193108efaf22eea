"""Sampled, full and hierarchical softmax: what each costs at a million classes, and what each learns.

Section 3.1 of the paper: several thousand negatives are sampled, "corresponding to more than 100 times speedup over
traditional softmax. A popular alternative approach is hierarchical softmax, but we weren't able to achieve comparable
accuracy. In hierarchical softmax, traversing each node in the tree involves discriminating between sets of classes that
are often unrelated, making the classification problem much more difficult and degrading performance."

Cost: the time of a training step per example, with random bags and labels, at a thousand, about thirty thousand and a
million classes. Quality: the same tower, inputs, epochs and learning rates, the better of two rates by the tuning day,
at a size where the full softmax trains, too. Hierarchical softmax is a binary tree in which a class is as likely as all
turns on the way to it, with one logistic regression per node. There are three trees: Huffman's by frequency; a
balanced one in random order, whose nodes part unrelated classes; and a balanced one that parts the embeddings that the
sampled softmax has learned along their widest direction, again and again, so that what is under one node belongs
together. If the paper's reason is right the last one is the best.

For the cost the dial is the number of classes, at 0 a thousand, at which there is nothing to gain. For the quality it is
`taste`: at 0 all videos differ in popularity alone, and there is nothing that could be unrelated.
"""

import functools
import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from watchnext.evaluation.intervals import PerUser, per_user
from watchnext.studies._lab import TRAINING, Ground, Lab
from watchnext.studies._measures import Measures
from watchnext.studies._report import SIMULATED, Claim, Result, Row

if TYPE_CHECKING:
    import tensorflow as tf
    from matplotlib.figure import Figure

SAMPLED, FULL_SOFTMAX = "sampled softmax", "full softmax"
HUFFMAN, RANDOM, RELATED = (
    "hierarchical softmax, Huffman tree",
    "hierarchical softmax, random tree",
    "hierarchical softmax, tree of related classes",
)
INPUTS = ("history", "search_tokens", "region", "example_age_s")
LEARNING_RATES = (0.05, 0.2)
CLASSES = {0.0: 1_000, 0.5: 31_623, 1.0: 1_000_000}
STEP = {"embedding_dim": 64, "negatives": 4_000, "bag": 50}
BATCH = {SAMPLED: 1_024, HUFFMAN: 1_024, FULL_SOFTMAX: 128}
BUDGET_S = 12.0
"""So long one way of training is timed at one number of classes, or for three steps where these take longer."""

CLAIMS = (
    Claim(
        "a step with the full softmax takes more than 100 times as long per example at a million classes",
        FULL_SOFTMAX,
        "",
        "time_over_sampled",
        "same",
        within=(100.0, float("inf")),
        vanishes=False,
    ),
    Claim("sampling loses no MAP against the full softmax (5 %)", SAMPLED, FULL_SOFTMAX, "map", "same", 0.05),
    Claim("hierarchical softmax has a lower MAP (Huffman tree)", HUFFMAN, SAMPLED, "map", "less"),
    Claim("hierarchical softmax has a lower MAP (random tree)", RANDOM, SAMPLED, "map", "less"),
    Claim("a tree of related classes has a higher MAP than a random one", RELATED, RANDOM, "map", "more"),
)  # fmt: skip


@dataclass(frozen=True)
class Tree:
    """A binary tree with the classes as its leaves.

    Attributes:
        nodes: int32 [num_classes, longest_path], inner nodes from each class to the root; num_classes - 1 inner nodes are
            numbered from 0; padding is 0.
        turns: float32, same shape: +1 where the path goes left, -1 right, 0 padding.
    """

    nodes: np.ndarray
    turns: np.ndarray


def tree_of(children: Sequence[tuple[int, int]], num_classes: int) -> Tree:
    """The paths of a tree given by the two children of every inner node.

    Args:
        children: of inner node k; a number below num_classes is a class, any other is inner node number - num_classes.
            Children come before their parents; the last one is the root.
        num_classes: at least 2.
    """
    both = np.array(children, dtype=np.int32)
    parent = np.full(num_classes + len(both), -1, dtype=np.int32)
    turn = np.zeros(len(parent), dtype=np.float32)
    for side, sign in ((0, 1.0), (1, -1.0)):
        parent[both[:, side]], turn[both[:, side]] = np.arange(len(both)), sign
    nodes, turns = [], []
    at = np.arange(num_classes)
    while np.any(parent[at] >= 0):
        # The root has no parent and no turn: who has arrived stays there.
        nodes.append(np.maximum(parent[at], 0))
        turns.append(turn[at])
        at = np.where(parent[at] >= 0, num_classes + parent[at], at)
    return Tree(np.stack(nodes, axis=1), np.stack(turns, axis=1))


def huffman_tree(frequency: np.ndarray) -> Tree:
    """The tree with the shortest mean path for classes of these frequencies [num_classes].

    Source: D. A. Huffman, A method for the construction of minimum-redundancy codes (1952).
    """
    heap = [(float(value), number) for number, value in enumerate(frequency)]
    heapq.heapify(heap)
    children: list[tuple[int, int]] = []
    while len(heap) > 1:
        (first, left), (second, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (first + second, len(frequency) + len(children)))
        children.append((left, right))
    return tree_of(children, len(frequency))


def balanced_tree(num_classes: int, part: Callable[[np.ndarray], np.ndarray]) -> Tree:
    """A tree whose nodes halve their classes.

    Args:
        num_classes: at least 2.
        part: class numbers of a node -> the same in an order of which the first half goes left.
    """
    children: list[tuple[int, int]] = []

    def build(classes: np.ndarray) -> int:
        if len(classes) == 1:
            return int(classes[0])
        ordered = part(classes)
        half = (len(ordered) + 1) // 2
        children.append((build(ordered[:half]), build(ordered[half:])))
        return num_classes + len(children) - 1

    build(np.arange(num_classes))
    return tree_of(children, num_classes)


def random_tree(num_classes: int, seed: int) -> Tree:
    """A balanced tree over classes in random order."""
    order = np.random.default_rng(seed).permutation(num_classes)
    return balanced_tree(num_classes, lambda classes: order if len(classes) == num_classes else classes)


def related_tree(embeddings: np.ndarray) -> Tree:
    """A balanced tree that parts classes at the median along the widest direction of their embeddings [V, D]."""

    def part(classes: np.ndarray) -> np.ndarray:
        own = embeddings[classes] - embeddings[classes].mean(axis=0)
        widest = np.linalg.eigh(own.T @ own)[1][:, -1]
        return classes[np.argsort(own @ widest, kind="stable")]

    return balanced_tree(len(embeddings), part)


def hierarchical_loss(
    queries: "tf.Tensor", node_embeddings: "tf.Tensor", nodes: "tf.Tensor", turns: "tf.Tensor"
) -> "tf.Tensor":
    """Minus the logarithm of the probability of one class per query.

        P(c | u) = product over the nodes n on the way to c of  sigmoid(t_n theta_n u),  t_n = +1 left, -1 right

    Args:
        queries: [num_queries, D] u.
        node_embeddings: [num_nodes, D] theta.
        nodes: int32 [num_queries, longest_path], the way to each query's class.
        turns: float32 [num_queries, longest_path], 0 where the way has ended.

    Returns:
        [num_queries] nats.

    Source: F. Morin and Y. Bengio, Hierarchical probabilistic neural network language model (2005).
    """
    import tensorflow as tf

    on_the_way = tf.einsum("bd,bld->bl", queries, tf.gather(node_embeddings, nodes))
    return tf.reduce_sum(tf.math.softplus(-turns * on_the_way) * tf.abs(turns), axis=1)


def log_probabilities(queries: np.ndarray, node_embeddings: np.ndarray, tree: Tree) -> np.ndarray:
    """Logarithm of the probability of every class, float32 [num_queries, num_classes]; see `hierarchical_loss`."""
    scores = (queries @ node_embeddings.T).astype(np.float32)
    total = np.zeros((len(queries), len(tree.nodes)), dtype=np.float32)
    for place in range(tree.nodes.shape[1]):
        rows = np.flatnonzero(tree.turns[:, place])
        turned = -tree.turns[rows, place] * scores[:, tree.nodes[rows, place]]
        total[:, rows] -= np.logaddexp(0.0, turned).astype(np.float32)
    return total


def run(lab: Lab) -> Result:
    """Time the steps, then train all on every ground."""
    measures = Measures(
        [(FULL_SOFTMAX, SAMPLED), (SAMPLED, FULL_SOFTMAX)]
        + [(tree, SAMPLED) for tree in (HUFFMAN, RANDOM, RELATED)]
        + [(RELATED, RANDOM)]
    )
    rows: list[Row] = []
    for dial, classes in CLASSES.items():
        rows += timing_rows(dial, {name: time_steps(name, classes) for name in BATCH})
    for ground in lab.grounds(lambda strength: {"taste": strength}):
        size = ground.encoder.sizes["video"]
        frequency = np.bincount(ground.arrays["label"] - 1, minlength=size)
        best = _best(functools.partial(_sampled, lab, ground))
        measures.add(ground.source, ground.dial, SAMPLED, best[1])
        makes: dict[str, Tree | None] = {
            FULL_SOFTMAX: None,
            HUFFMAN: huffman_tree(frequency),
            RANDOM: random_tree(size, ground.seed),
            RELATED: related_tree(best[2]),
        }
        for name, tree in makes.items():
            found = _best(functools.partial(_other, ground, name, tree))
            measures.add(ground.source, ground.dial, name, found[1])
    return Result(
        [*rows, *measures.rows()],
        notes=[
            f"Timed: embedding of {STEP['embedding_dim']} numbers, tower of depth 1, bags of {STEP['bag']}, "
            f"{STEP['negatives']} shared negatives (with those of the batch), "
            + ", ".join(f"{name} batch {size}" for name, size in BATCH.items())
            + ". Forward, backward and the update by Adagrad, no input pipeline. The full softmax has the smaller"
            " batch because its logits have to fit into memory. Intervals resample the steps.",
            f"`log_loss` is minus the logarithm of the label's probability under each model's own distribution, over"
            f" labels in the vocabulary. Learning rates {LEARNING_RATES}, the better one by MAP on the tuning day.",
            "MAP and log loss are of the gate day, nothing left out.",
        ],
        draw=draw,
        dial="the number of classes for times (1,000; 31,623; 1,000,000), and `taste` for MAP and log loss",
    )  # fmt: skip


def timing_rows(dial: float, seconds: Mapping[str, np.ndarray], resamples: int = 1000) -> list[Row]:
    """Median times per example, and as a multiple of the sampled softmax's.

    Args:
        dial: of the number of classes.
        seconds: way of training -> seconds per example of each timed step; the sampled softmax among them.
        resamples: of the steps of both, for the intervals.
    """
    rng = np.random.default_rng(0)
    drawn = {
        name: np.median(rng.choice(times, size=(resamples, len(times))), axis=1)
        for name, times in seconds.items()
    }
    rows = []
    for name, times in seconds.items():
        of = float(np.median(times)), drawn[name]
        for metric, value, values in (
            ("time_per_example_ms", 1e3 * of[0], 1e3 * of[1]),
            ("time_over_sampled", of[0] / float(np.median(seconds[SAMPLED])), of[1] / drawn[SAMPLED]),
        ):
            low, high = np.quantile(values, [0.025, 0.975])
            rows.append(Row(SIMULATED, dial, name, metric, value, float(low), float(high)))
    return rows


def time_steps(name: str, classes: int) -> np.ndarray:
    """Seconds per example of whole training steps at this many classes, float64 [num_steps]."""
    import tensorflow as tf

    from watchnext.features.batches import FeatureSpec
    from watchnext.models import training

    tf.keras.backend.clear_session()
    training.start(0, deterministic=False)
    rng = np.random.default_rng(0)
    batch, bag = BATCH[name], STEP["bag"]
    label = (classes ** rng.random(batch)).astype(np.int32)
    arrays = {
        "history": (classes ** rng.random((batch, bag))).astype(np.int32),
        "label": label,
        "user": np.arange(batch, dtype=np.int64),
    }
    frequency = 1e6 / (1.0 + np.arange(classes))
    features = (FeatureSpec("history", "multivalent", "video", bag),)
    tree = huffman_tree(frequency) if name == HUFFMAN else None
    model = _model(
        name,
        features,
        {"video": classes},
        frequency,
        tree,
        embedding_dim=STEP["embedding_dim"],
        depth=1,
        watch_dropout=0.0,
        batch_size=batch,
        negatives=STEP["negatives"],
        learning_rate=0.05,
    )
    inputs = {key: tf.constant(array) for key, array in arrays.items()}
    step = tf.function(model.train_step)
    step(inputs)
    times: list[float] = []
    began = time.monotonic()
    while len(times) < 3 or (time.monotonic() - began < BUDGET_S and len(times) < 30):
        one = time.perf_counter()
        float(step(inputs)["total_loss"])
        times.append((time.perf_counter() - one) / batch)
    return np.array(times)


def _model(
    name: str,
    features: Sequence[Any],
    sizes: Mapping[str, int],
    frequency: np.ndarray,
    tree: Tree | None,
    *,
    embedding_dim: int,
    depth: int,
    watch_dropout: float,
    batch_size: int,
    negatives: int,
    learning_rate: float,
    longest_example_age_s: float = 1.0,
) -> Any:
    """A compiled model: the project's own for the sampled softmax, else the same tower under another loss."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    from watchnext.models.retrieval import QueryTower, RetrievalModel
    from watchnext.models.samplers import make_sampler
    from watchnext.models.towers import adagrad

    tower = QueryTower(
        features,
        vocabulary_sizes=sizes,
        embedding_dim=embedding_dim,
        depth=depth,
        watch_dropout=watch_dropout,
        longest_example_age_s=longest_example_age_s,
    )

    class OtherSoftmax(tfrs.Model):
        """The full softmax over all classes, or with a tree the hierarchical one."""

        def __init__(self) -> None:
            super().__init__()
            self.query_tower = tower
            self.class_embeddings = self.add_weight(
                name="class_embeddings",
                shape=(len(frequency) - (tree is not None), embedding_dim),
                initializer=tf.keras.initializers.RandomNormal(stddev=0.05),
            )
            if tree is not None:
                self.nodes, self.turns = tf.constant(tree.nodes), tf.constant(tree.turns)

        def compute_loss(self, inputs: Mapping[str, Any], training: bool = False) -> Any:
            queries, label = self.query_tower(inputs, training=training), inputs["label"] - 1
            if tree is None:
                logits = tf.matmul(queries, self.class_embeddings, transpose_b=True)
                return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
            way = tf.gather(self.nodes, label), tf.gather(self.turns, label)
            return tf.reduce_mean(hierarchical_loss(queries, self.class_embeddings, *way))

    if name == SAMPLED:
        sampler = make_sampler(
            "frequency", num_candidates=len(frequency), label_frequency=frequency, alpha=0.5
        )
        model: Any = RetrievalModel(
            tower, sampler, label_frequency=frequency, batch_size=batch_size, negatives=negatives
        )
    else:
        model = OtherSoftmax()
    model.compile(optimizer=adagrad(learning_rate))
    return model


Found = tuple[float, Mapping[str, PerUser], np.ndarray]
"""MAP on the tuning day, metrics of the gate day, and the embeddings of classes or nodes."""


def _best(train: Callable[[float], Found]) -> Found:
    return max((train(rate) for rate in LEARNING_RATES), key=lambda found: found[0])


def _sampled(lab: Lab, ground: Ground, rate: float) -> Found:
    trained = lab.train(ground, f"{SAMPLED}, rate {rate:g}", inputs=INPUTS, learning_rate=rate)
    embeddings = trained.candidate_embeddings

    def log_p(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return log_softmax(trained.embed(arrays) @ embeddings.T)

    return measure(ground, log_p, "tuning")["map"].mean, measure(ground, log_p, "gate"), embeddings


def _other(ground: Ground, name: str, tree: Tree | None, rate: float) -> Found:
    import tensorflow as tf

    from watchnext.models import retrieval, training

    tf.keras.backend.clear_session()
    training.start(ground.seed, deterministic=True)
    features = ground.inputs(INPUTS)
    size = ground.encoder.sizes["video"]
    age = ground.arrays.get("example_age_s")
    own = {key: TRAINING[key] for key in ("embedding_dim", "depth", "watch_dropout", "negatives")}
    batch_size = min(TRAINING["batch_size"], len(ground.arrays["label"]))
    model = _model(
        name,
        features,
        ground.encoder.sizes,
        np.ones(size),
        tree,
        **own,
        batch_size=batch_size,
        learning_rate=rate,
        longest_example_age_s=1.0 if age is None else float(age.max()),
    )

    def log_p(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        queries = retrieval.embed_queries(model.query_tower, arrays)
        embeddings = model.class_embeddings.numpy()
        if tree is None:
            return log_softmax(queries @ embeddings.T)
        return log_probabilities(queries, embeddings, tree)

    outcome = training.fit(
        model,
        {key: ground.arrays[key] for key in (*(spec.name for spec in features), "label")},
        batch_size=batch_size,
        epochs=TRAINING["epochs"],
        patience=TRAINING["patience"],
        seed=ground.seed,
        evaluate=lambda: {"tuning_map": measure(ground, log_p, "tuning")["map"].mean},
        objective="tuning_map",
        maximise=True,
        where=f"{name}, rate {rate:g} ({ground.place}, seed {ground.seed})",
    )
    best = dict(outcome.curves["tuning_map"])[outcome.best_epoch]
    return best, measure(ground, log_p, "gate"), model.class_embeddings.numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def measure(
    ground: Ground, log_p: Callable[[Mapping[str, np.ndarray]], np.ndarray], split: str
) -> dict[str, PerUser]:
    """MAP, recall and log loss of one held-out day, from log probabilities of all classes [num_events, V]."""
    from watchnext.evaluation.metrics import average_precisions, label_ranks

    table = ground.held_out(split)
    arrays = ground.encoder.encode_retrieval(table)
    ranks, losses = [], []
    for begin in range(0, table.num_rows, 1_000):
        part = {name: array[begin : begin + 1_000] for name, array in arrays.items()}
        scores, label = log_p(part), part["label"]
        ranks.append(label_ranks(scores, label))
        losses.append(-scores[np.arange(len(label)), np.maximum(label - 1, 0)])
    rank, loss = np.concatenate(ranks), np.concatenate(losses).astype(np.float64)
    users = table["user_id"].combine_chunks()
    known = np.flatnonzero(arrays["label"] > 0)
    return {
        "map": per_user(average_precisions(rank), users),
        "recall_at_100": per_user((rank <= 100).astype(np.float64), users),
        "log_loss": per_user(loss[known], users.take(known)),
    }


def draw(rows: Sequence[Row]) -> "Figure":
    """Time per example over the number of classes; MAP and log loss by place."""
    from matplotlib.figure import Figure

    names = (SAMPLED, FULL_SOFTMAX, HUFFMAN, RANDOM, RELATED)
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    first, *others = figure.subplots(1, 3)
    for number, name in enumerate(names):
        mine = [row for row in rows if row.variant == name and row.metric == "time_per_example_ms"]
        if mine:
            classes = [CLASSES[row.dial] for row in mine if row.dial is not None]
            first.plot(classes, [row.estimate for row in mine], marker="o", color=f"C{number}", label=name)
    first.set(xscale="log", yscale="log", xlabel="classes", title="training time per example, ms")
    first.grid(alpha=0.3)
    first.legend(fontsize="small")
    for axes, metric in zip(others, ("map", "log_loss"), strict=True):
        levels = [row for row in rows if row.metric == metric and not row.against]
        places = list(dict.fromkeys((row.source, row.dial) for row in levels))
        for number, name in enumerate(names):
            mine = [row for row in levels if row.variant == name]
            at = np.array([places.index((row.source, row.dial)) for row in mine]) + 0.1 * (number - 2)
            value = np.array([row.estimate for row in mine])
            ends = [[row.estimate - row.low for row in mine], [row.high - row.estimate for row in mine]]
            axes.errorbar(
                at, value, yerr=np.maximum(ends, 0.0), fmt="o", capsize=3, color=f"C{number}", label=name
            )
        axes.set_xticks(
            range(len(places)),
            [source if dial is None else f"simulated,\ntaste {dial:g}" for source, dial in places],
        )
        axes.set(title=f"{metric}, gate day" + (" (nats, less is better)" if metric == "log_loss" else ""))
        axes.grid(axis="y", alpha=0.3)
    return figure
