"""Several workers train one model: what one process with the batch of all of them would, and no worker another one."""

import json
import socket
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

from watchnext.errors import InputError
from watchnext.models.workers import Workers
from watchnext.stages._workers import free_ports, train_on_loopback
from watchnext.tf_config import Cluster, WorkerLost, tf_config

PROGRAM = Path(__file__).with_name("training_of_workers.py")
BATCH_SIZE = 128


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What two workers say after training, and their arrays."""
    folder = tmp_path_factory.mktemp("workers")
    command = [sys.executable, str(PROGRAM), str(folder), str(BATCH_SIZE)]
    train_on_loopback(command, workers=2, name="both", root=folder)
    return [
        json.loads((folder / f"worker-{index}.json").read_text())
        | {"arrays": dict(np.load(folder / f"worker-{index}.npz"))}
        for index in range(2)
    ]


@pytest.mark.slow
def test_workers_have_the_same_weights_and_draws_of_their_own(of_two):
    """Seen to fail where all draw by one seed."""
    first, second = of_two
    assert first["digests"] == second["digests"]
    assert first["first_negative"] != second["first_negative"]


@pytest.mark.slow
def test_a_worker_with_another_library_is_told_which(of_two):
    """Both stop, though each sees only its own: seen to fail where a worker compares with itself."""
    for one in of_two:
        assert one["refused"].startswith("the workers do not have the same tensorflow\n")
        assert "tensorflow 2.20.0 (worker 0), 2.20.1 (worker 1)" in one["refused"]


@pytest.mark.slow
def test_a_step_of_two_workers_is_a_step_of_one_with_both_batches(of_two):
    """Without anything drawn: weights, and sums of squared gradients, are equal but for the rounding of what is sent.

    Adagrad does not see the scale of a gradient, its sums do: seen to fail where the parts of the workers are added up and
    not averaged.
    """
    from training_of_workers import train_ranking

    one, losses = train_ranking(Workers())
    assert of_two[0]["ranking_losses"] == pytest.approx(losses, rel=1e-4)
    arrays = of_two[0]["arrays"]
    for kind, values in (("weight", one.get_weights()), ("state", one.optimizer.get_weights())):
        assert len(values) == sum(name.startswith(kind) for name in arrays)
        for place, value in enumerate(values):
            np.testing.assert_allclose(
                arrays[f"{kind}-{place}"], value, rtol=1e-2, atol=1e-3 * np.abs(value).max()
            )


@pytest.mark.slow
def test_two_workers_end_within_noise_of_one_with_the_doubled_batch(of_two):
    """Where negatives are drawn: as far from three trainings by one process as they are from one another.

    The share of what can be learned that is learned, in cross-entropy of the whole corpus.
    """
    from training_of_workers import VIDEOS, cross_entropy, train_retrieval

    ends = [cross_entropy(train_retrieval(Workers(), BATCH_SIZE, seed)) for seed in (4, 5, 6)]
    spread = max(ends) - min(ends)
    assert min(ends) < np.log(VIDEOS) - 1.5, "one process learns nothing that could be compared"
    assert min(ends) - 2 * spread - 0.02 < of_two[0]["cross_entropy"] < max(ends) + 2 * spread + 0.02, ends


@pytest.mark.slow
def test_workers_begin_with_the_weights_of_an_earlier_training(of_two):
    """Each has all of them, by ids; after steps that are next to nothing the model is that of before.

    Seen to fail where they begin at random.
    """
    first, second = of_two
    assert first["digests"] == second["digests"]
    for one in of_two:
        assert one["warm_cross_entropy"] == pytest.approx(one["cross_entropy"], abs=0.01)


@pytest.mark.parametrize("width", [1, 4, 7])
def test_rows_are_sent_in_half_the_bytes_and_dense_gradients_as_they_are(width, monkeypatch):
    """To within half of the last of eight bits; what is no number stays none, so that divergence is noticed."""
    import tensorflow as tf

    from watchnext.models import workers

    table, bias = tf.Variable(tf.zeros([9, width])), tf.Variable(tf.zeros([3]))
    rows = np.random.default_rng(1).normal(size=(4, width)).astype(np.float32) * 1e-6
    rows[1, 0], rows[2, 0] = np.nan, np.inf
    gradients = [
        (tf.IndexedSlices(tf.constant(rows), tf.constant([5, 1, 8, 0])), table),
        (tf.constant([0.1, 1e-9, 3.0]), bias),
    ]
    sent = []

    def add_up(of_one):
        """As for two workers that have the same gradients."""
        sent.extend(gradient for gradient, _ in of_one)
        sparse, dense = sent
        return [
            (
                tf.IndexedSlices(tf.concat([sparse.values] * 2, 0), tf.concat([sparse.indices] * 2, 0)),
                table,
            ),
            (2.0 * dense, bias),
        ]

    monkeypatch.setattr(workers, "num_workers", lambda: 2)
    (sparse, of_table), (dense, of_bias) = workers.added_up(gradients, add_up)
    assert of_table is table
    assert of_bias is bias
    assert sent[0].values.dtype == tf.int32
    assert sent[0].values.shape == (4, (width + 1) // 2)
    assert sent[1] is gradients[1][0]
    assert sparse.indices.numpy().tolist() == [5, 1, 8, 0] * 2
    np.testing.assert_allclose(sparse.values.numpy(), np.concatenate([rows, rows]), rtol=1 / 256)
    np.testing.assert_array_equal(dense.numpy(), np.float32(2.0) * np.float32([0.1, 1e-9, 3.0]))
    monkeypatch.setattr(workers, "num_workers", lambda: 1)
    alone = workers.added_up(gradients, list)
    assert [one for one, _ in alone] == [one for one, _ in gradients]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be read"),
        (json.dumps({"cluster": {"worker": ["a:1", "b:1"]}}), "cannot be read"),
        ("[]", "cannot be read"),
        (
            json.dumps({"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}),
            "cannot be read",
        ),
        (tf_config(["a:1", "b:1"], 2), "has no task worker 2"),
        (tf_config(["a:1", "b:1"], -1), "has no task worker -1"),
        (tf_config(["a:1", "b"], 0), "no host:port"),
        (tf_config(["a:1", "b:x"], 0), "no host:port"),
        (tf_config(["a:1", "b:70000"], 0), "no host:port"),
        (tf_config(["a:1", "a:1"], 0), "two workers one address"),
        (
            json.dumps({"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}),
            "tasks that nothing here is trained by",
        ),
    ],
)
def test_a_tf_config_that_cannot_be_used_is_an_error_that_says_so(text, match, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=match):
        Cluster.from_environment()


def test_the_chief_comes_first_and_a_worker_without_others_is_alone(monkeypatch):
    tasks = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": tasks, "task": {"type": "worker", "index": 1}}))
    assert Cluster.from_environment() == Cluster(("a:1", "b:1", "c:1"), 2)
    monkeypatch.setenv("TF_CONFIG", tf_config(["a:1"], 0))
    assert Cluster.from_environment() is None
    monkeypatch.delenv("TF_CONFIG")
    assert Cluster.from_environment() is None


def test_who_does_not_come_is_named(free_ports_of_two):
    """TensorFlow would wait for an hour without a word."""
    with pytest.raises(WorkerLost, match="worker 0 of 2 waited 0 s for the others") as caught:
        Cluster(free_ports_of_two, 0).wait_for_all(limit_s=0.1)
    assert caught.value.offenders == (f"nobody listens at {free_ports_of_two[1]}",)


def test_all_go_on_when_the_last_has_come(free_ports_of_two):
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(Cluster(free_ports_of_two, index).wait_for_all, 60.0) for index in range(2)]
        # Whoever sees all others closes its door; TensorFlow then opens one of its own there, which the others see.
        done, rest = wait(waiting, return_when=FIRST_COMPLETED)
        first = waiting.index(done.pop())
        host, port = free_ports_of_two[first].split(":")
        with socket.create_server((host, int(port))):
            assert [one.result() for one in rest] == [None] * len(rest)


def test_a_port_that_is_taken_is_said(free_ports_of_two):
    host, port = free_ports_of_two[0].split(":")
    with socket.create_server((host, int(port))), pytest.raises(InputError, match="cannot listen"):
        Cluster(free_ports_of_two, 0).wait_for_all(limit_s=0.1)


@pytest.fixture
def free_ports_of_two() -> tuple[str, ...]:
    return tuple(f"127.0.0.1:{port}" for port in free_ports(2))
