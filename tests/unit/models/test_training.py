import math
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from watchnext.errors import InputError
from watchnext.models import training


class Slope(tf.keras.Model):
    """y = w x by gradient descent, with the `total_loss` that fit expects."""

    def __init__(self):
        super().__init__()
        self.w = self.add_weight(name="w", shape=(), initializer="zeros")

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.w * data["x"] - data["y"]))
        self.optimizer.apply_gradients([(tape.gradient(loss, self.w), self.w)])
        return {"total_loss": loss}


def fit(evaluate, *, y=2.0, learning_rate=0.3, epochs=6, patience=2, maximise=True, **settings):
    model = Slope()
    model.compile(optimizer=tf.keras.optimizers.SGD(learning_rate))
    arrays = {"x": np.ones(8, np.float32), "y": np.full(8, y, np.float32)}
    outcome = training.fit(
        model,
        arrays,
        batch_size=8,
        epochs=epochs,
        patience=patience,
        seed=1,
        evaluate=lambda: evaluate(float(model.w)),
        objective="score",
        maximise=maximise,
        where="test",
        **settings,
    )
    return float(model.w), outcome


def test_the_best_epoch_of_the_tuning_day_is_kept_and_training_stops_after_patience():
    """w goes 1.2, 1.68, 1.87, ... ; the tuning day likes 1.68 best. Fails if the last weights are kept."""
    w, outcome = fit(lambda w: {"score": -abs(w - 1.68)})
    assert w == pytest.approx(1.68, abs=1e-5)
    assert outcome.best_epoch == 2
    assert [epoch for epoch, _ in outcome.curves["score"]] == [1, 2, 3, 4]


def test_less_can_be_better():
    _, outcome = fit(lambda w: {"score": abs(w - 1.68)}, maximise=False)
    assert outcome.best_epoch == 2


def test_without_a_tuning_day_the_last_epoch_is_kept():
    _, outcome = fit(lambda w: {}, epochs=3)
    assert outcome.best_epoch == 3
    assert list(outcome.curves) == ["loss"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("maximise", [True, False])
def test_an_objective_that_is_not_a_number_keeps_the_last_epoch_and_says_so_once(value, maximise, capsys):
    """A tuning day without a click or a pair. Fails where NaN is compared: no epoch is ever the best."""
    w, outcome = fit(lambda w: {"score": value}, epochs=3, patience=1, maximise=maximise)
    assert w == pytest.approx(2 * (1 - 0.4**3), abs=1e-5)
    assert outcome.best_epoch == 3
    assert [epoch for epoch, _ in outcome.curves["score"]] == [1, 2, 3]
    assert capsys.readouterr().err.count("no epoch can be chosen by it") == 1


def test_a_loss_that_is_not_a_number_stops_with_the_place():
    with pytest.raises(InputError, match="the training loss became nan") as caught:
        fit(lambda w: {"score": 0.0}, y=float("nan"))
    assert "epoch 1, step 1" in str(caught.value)
    assert "learning_rate" in str(caught.value)


def test_with_averages_the_tuning_day_measures_them_and_the_best_one_is_kept():
    """w goes 1.2, 1.68, 1.872, ...; each pass counts half of the next: (1.2 / 2 + 1.68) / 1.5 = 1.52 after two.

    Seen to fail where training goes on from the average, where the weights at the start count as one more, and where
    the last weights are kept.
    """
    measured = []

    def evaluate(w):
        measured.append(w)
        return {"score": -abs(w - 1.52)}

    w, outcome = fit(evaluate, averaged_passes=1 / math.log(2), epochs=3)
    third = (1.2 / 4 + 1.68 / 2 + 1.872) / 1.75
    assert measured == pytest.approx([1.2, 1.52, third], abs=1e-5)
    assert w == pytest.approx(1.52, abs=1e-5)
    assert outcome.best_epoch == 2


def test_averages_are_taken_twenty_times_a_pass_and_forget_by_passes():
    """100 steps a pass: every fifth; weights of a pass ago count 1 / e of those now, however long the passes are."""
    weight = tf.Variable(0.0)
    average = training.WeightAverage([weight], passes=1.0, steps=100)
    assert average.every == 5
    for value in [1.0] + 20 * [0.0]:
        weight.assign(value)
        average.update()
    r = math.exp(-1 / 20)
    with average.in_place():
        assert float(weight) == pytest.approx(math.exp(-1) * (1 - r) / (1 - r**21), rel=1e-4)
    assert float(weight) == 0.0
    assert training.WeightAverage([weight], passes=1.0, steps=3).every == 1


def batches(seed, epochs=2):
    arrays = {"row": np.arange(10), "twice": 2 * np.arange(10)}
    return [
        (batch["row"].numpy().tolist(), batch["twice"].numpy().tolist())
        for batch in training.shuffled_batches(arrays, batch_size=3, epochs=epochs, seed=seed)
    ]


def test_an_epoch_shows_each_row_at_most_once_and_the_seed_decides_the_order():
    first = batches(5)
    assert len(first) == 2 * 3 == 2 * training.num_steps({"row": np.arange(10)}, 3)
    for epoch in (first[:3], first[3:]):
        rows = [row for batch, _ in epoch for row in batch]
        assert len(set(rows)) == 9
    assert first[:3] != first[3:]
    assert all(twice == [2 * row for row in rows] for rows, twice in first)
    assert batches(5) == first != batches(6)


def test_fewer_rows_than_a_batch_make_one_batch():
    assert [len(rows) for rows, _ in batches(1)] == [3] * 6
    assert training.num_steps({"row": np.arange(2)}, 100) == 1


def test_digest_sees_every_value_shape_and_type():
    one = [tf.Variable([1.0, 2.0]), tf.Variable([[3.0]])]
    same = [tf.Variable([1.0, 2.0]), tf.Variable([[3.0]])]
    assert training.weights_digest(one) == training.weights_digest(same)
    same[1].assign([[np.nextafter(np.float32(3), np.float32(4))]])
    assert training.weights_digest(one) != training.weights_digest(same)
    assert training.weights_digest([tf.Variable([1.0])]) != training.weights_digest([tf.Variable([[1.0]])])


def encode_labels(table):
    return {"label": table["label"].to_numpy()}


@pytest.fixture
def stored(tmp_path):
    for name, first in (("training", 0), ("history", 10_000), ("shown", 20_000)):
        (tmp_path / name).mkdir()
        table = pa.table({"label": np.arange(first, first + 4_000)})
        pq.write_table(table, tmp_path / name / "part-00000.parquet", row_group_size=1_500)
    return tmp_path


@pytest.mark.parametrize(("history", "share"), [(True, 0.3), (False, 0.3), (True, 0.0), (False, 1.0)])
def test_labels_are_the_watches_and_what_is_asked_for_beside_them(stored, history, share):
    """Seen to fail where the share is of all labels, and where it is taken of `history`, too."""
    further = partial(
        training.with_further_examples, stored=stored, history=history, shown_share=share, seed=3
    )
    found = training.encode_all(stored / "training", encode_labels, further)["label"]
    assert found[found < 10_000].tolist() == list(range(4_000))
    of_history = found[(found >= 10_000) & (found < 20_000)]
    assert of_history.tolist() == (list(range(10_000, 14_000)) if history else [])
    shown = found[found >= 20_000]
    assert abs(len(shown) - 4_000 * share) <= 4 * (4_000 * share * (1 - share)) ** 0.5
    assert len(np.unique(found)) == len(found)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_labels_that_were_not_watched_are_marked_where_there_are_any(stored, share):
    further = partial(
        training.with_further_examples,
        stored=stored, history=True, shown_share=share, seed=3, shown_marked=True,
    )  # fmt: skip
    tables = list(further(training.read_examples(stored / "training")))
    assert {"unwatched_label" in table.column_names for table in tables} == {share > 0}
    if share:
        marks = pa.concat_tables(tables)
        assert marks["unwatched_label"].to_pylist() == [
            label >= 20_000 for label in marks["label"].to_pylist()
        ]
        assert sum(marks["unwatched_label"].to_pylist()) > 1_000


def test_the_seed_decides_what_was_shown_is_a_label(stored):
    def shown(seed):
        read = partial(
            training.with_further_examples, stored=stored, history=False, shown_share=0.5, seed=seed
        )
        return set(training.encode_all(stored / "training", encode_labels, read)["label"].tolist())

    assert shown(1) == shown(1)
    assert 500 < len(shown(1) - shown(2)) < 1_500
