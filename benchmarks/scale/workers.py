"""What a second worker adds to the training of candidate generation, and what the two send each other.

    python -m benchmarks.scale.workers

One process on one core, two workers on a core each, and two processes that do not know each other take the same steps in
turns: batches of `--batch-size` examples of each with bags of fifty watches, `--negatives` shared draws, tables of
`--size`, one thread of TensorFlow each. Prints one JSON object last:

    two_worker_efficiency           examples/s of both workers over those of the one, halved; the median of all rounds
    two_strangers_efficiency        the same of two processes that have nothing to do with each other: what a core loses to
                                    the other one's use of memory, caches and clock
    bytes_per_step                  that a worker sends in a step, by the count of its sockets
    sparse_minimum_bytes_per_step   that it would have to: every row with a gradient once, 4 bytes for its index and 4 for
                                    each of its components, and 4 for each weight that is no table's; rows are sent in half
                                    of that (`watchnext.models.workers.added_up`)
    dense_bytes_per_step            that it would, were the gradients of tables dense
"""

import argparse
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import CannotMeasure
from benchmarks.train.contender import Contender
from benchmarks.train.data import SEED, Size, make_examples
from benchmarks.train.worker import measure, serve
from watchnext.console import say

NUM_BATCHES = 4  # of 4096 examples for each of --batch-size
WARM_UP = 2
_BYTES_ACKED = 120  # place of tcpi_bytes_acked in Linux's struct tcp_info


def main() -> int:
    """0 when everything was measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale.workers", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--size", type=Size.parse, default=Size(100_000, 256), help="vocabulary x width")
    parser.add_argument("--batch-size", type=int, default=8_192, help="examples of a worker per step")
    parser.add_argument("--negatives", type=int, default=4_000)
    parser.add_argument("--steps", type=int, default=4, help="of one round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tf-config", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.core is not None:
        work(options)
        return 0
    try:
        sys.stdout.write(json.dumps(measured(options)) + "\n")
    except CannotMeasure as error:
        say(f"bench-scale: {error}")
        return 1
    return 0


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What the module's text says.

    Raises:
        CannotMeasure: there is one core alone, or a process ended.
    """
    from watchnext.stages._workers import free_ports
    from watchnext.tf_config import tf_config

    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise CannotMeasure("two workers need two cores")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    settings = [
        f"--size={options.size}",
        f"--batch-size={options.batch_size}",
        f"--negatives={options.negatives}",
    ]
    tasks = {"train": options.steps, "bytes": 2, "minimum": 2, "dense": 1}

    def started(name: str, core: int, told: str) -> Contender:
        command = [sys.executable, "-m", "benchmarks.scale.workers", *settings, f"--core={core}"]
        return Contender(name, [*command, f"--tf-config={told}"], tasks)

    contenders: list[Contender] = []
    with ThreadPoolExecutor(2) as pool:

        def at_once(task: str, two: Sequence[Contender]) -> list[float]:
            return list(pool.map(lambda worker: worker.measure(task), two))

        try:
            for name, core in zip(("one", "stranger"), cores, strict=True):
                contenders.append(started(name, core, ""))
            told = [tf_config(addresses, index) for index in range(2)]
            # Each is ready when the other is.
            pair = [pool.submit(started, f"worker {i}", cores[i], told[i]) for i in range(2)]
            contenders += [future.result() for future in pair]
            strangers, workers = contenders[:2], contenders[2:]
            rounds = []
            for number in range(options.rounds):
                one = strangers[0].measure("train")
                # Workers wait for each other in every step: both are as fast as the slower.
                both = 2 * min(at_once("train", workers))
                apart = sum(at_once("train", strangers))
                rounds.append({"one": one, "both": both, "apart": apart})
                say(
                    f"round {number + 1} of {options.rounds}: one {one:.0f}, two workers {both:.0f}, "
                    f"two strangers {apart:.0f} examples/s"
                )
            exchanged = {task: max(at_once(task, workers)) for task in ("bytes", "minimum", "dense")}
        finally:
            for contender in contenders:
                contender.process.kill()
    ratios, of_strangers = (
        [one_round[two] / one_round["one"] / 2 for one_round in rounds] for two in ("both", "apart")
    )
    return {
        "two_worker_efficiency": median(ratios),
        "two_worker_efficiency_rounds": ratios,
        "two_strangers_efficiency": median(of_strangers),
        "two_strangers_efficiency_rounds": of_strangers,
        "one_worker_examples_per_s": median(one_round["one"] for one_round in rounds),
        "two_worker_examples_per_s": median(one_round["both"] for one_round in rounds),
        "bytes_per_step": exchanged["bytes"],
        "sparse_minimum_bytes_per_step": exchanged["minimum"],
        "dense_bytes_per_step": exchanged["dense"],
        "workers_batch_size": options.batch_size,
        "workers_size": str(options.size),
        "workers_negatives": options.negatives,
        "workers_matmul_dtype": contenders[0].facts["matmul_dtype"],
    }


def work(options: argparse.Namespace) -> None:
    """One of the processes: takes steps whenever it is asked to."""
    os.sched_setaffinity(0, {options.core})
    os.environ["TF_CONFIG"] = options.tf_config

    import numpy as np
    import tensorflow as tf

    from benchmarks.train.ours import make_tower
    from watchnext.models import retrieval, towers, training
    from watchnext.models.samplers import make_sampler
    from watchnext.models.workers import Workers

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    workers = Workers.join()
    training.start(SEED, deterministic=True, workers=workers)
    examples = make_examples(options.size, NUM_BATCHES * options.batch_size // 4096 + 1)
    frequency = np.bincount(examples["label"] - 1, minlength=options.size.vocabulary)
    with workers.scope():
        tower = make_tower(options.size, towers.fastest_matmul_dtype())
        model = retrieval.RetrievalModel(
            tower,
            make_sampler("frequency", num_candidates=len(frequency), label_frequency=frequency, alpha=0.5),
            label_frequency=frequency,
            batch_size=options.batch_size,
            negatives=options.negatives,
        )
        model.compile(optimizer=towers.adagrad(0.01))

    def batches() -> tf.data.Iterator:
        return iter(
            training.shuffled_batches(
                examples, batch_size=options.batch_size, epochs=1_000_000, seed=workers.seed(SEED)
            )
        )

    own, looked_at = batches(), batches()
    model.distribute_reduction_method = "first"  # as training.fit does
    train_step = model.make_train_function()
    for _ in range(WARM_UP):
        train_step(own)

    def step() -> float:
        return float(train_step(own)["total_loss"])

    def train(steps: int) -> dict[str, float]:
        return measure(step, steps=steps, examples_per_step=options.batch_size)

    # Of the others, `examples` are bytes and `seconds` are steps.
    def sent(steps: int) -> dict[str, float]:
        before = bytes_sent()
        for _ in range(steps):
            step()
        return {"examples": bytes_sent() - before, "seconds": steps}

    @tf.function
    def rows_in_use(inputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.compute_loss(inputs, training=True)
        return tf.stack(
            [
                tf.size(tf.unique(gradient.indices).y) * (4 + 4 * variable.shape[-1])
                if isinstance(gradient, tf.IndexedSlices)
                else 4 * tf.size(gradient)
                for gradient, variable in zip(
                    tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True
                )
            ]
        )

    def minimum(steps: int) -> dict[str, float]:
        return {
            "examples": sum(int(sum(rows_in_use(next(looked_at)))) for _ in range(steps)),
            "seconds": steps,
        }

    def dense(steps: int) -> dict[str, float]:
        return {
            "examples": steps * sum(4 * int(tf.size(one)) for one in model.trainable_variables),
            "seconds": steps,
        }

    tasks: dict[str, Callable[[int], Mapping[str, float]]] = {
        "train": train,
        "bytes": sent,
        "minimum": minimum,
        "dense": dense,
    }
    serve(tasks, {"matmul_dtype": tower.matmul_dtype.name})


def bytes_sent() -> int:
    """That the other ends of this process's TCP connections have acknowledged since these were opened."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            connection = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # Not a socket, or the listing's own.
            continue
        with connection:
            if (
                connection.family in (socket.AF_INET, socket.AF_INET6)
                and connection.type == socket.SOCK_STREAM
            ):
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
                if len(info) >= _BYTES_ACKED + 8:
                    total += int(struct.unpack_from("=Q", info, _BYTES_ACKED)[0])
    return total


if __name__ == "__main__":
    sys.exit(main())
