"""Run the contenders round after round and print one JSON object last."""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import CannotMeasure
from benchmarks.train.contender import ROOT, Contender, Rates, interleave
from benchmarks.train.data import BAG_LENGTH, BATCH_SIZE, Size, multiply_adds
from watchnext.console import say

PROGRAM = "bench-train"
NEGATIVES = 4000
FURTHER_NEGATIVES = 2000
RECHUB_NEGATIVES = 3


def summarise(
    beside_tfrs: Rates,
    beside_rechub: Rates,
    beside_full: Rates,
    *,
    large: Size,
    small: Size,
    tower_inputs: int,
) -> dict[str, float]:
    """Ratios of medians, each of two rates that were measured in the same rounds."""
    median, rechub, full = (
        {name: statistics.median(values) for name, values in rates.items()}
        for rates in (beside_tfrs, beside_rechub, beside_full)
    )
    peak = max(value for name, value in median.items() if " peak-" in name)
    train = f"train-{NEGATIVES}"
    ours, ours_small = median[f"ours {train}"], median[f"ours-small {train}"]
    full_softmax = max(full["full float32"], full["full bfloat16"])

    def share(size: Size, examples_per_s: float) -> float:
        # The tower reads the pooled bag and what the model adds to it.
        inputs = size.embedding_dim + tower_inputs - large.embedding_dim
        return 6 * multiply_adds(size, inputs, BATCH_SIZE + NEGATIVES) * examples_per_s / peak

    return {
        "examples_per_s": ours,
        f"examples_per_s_{small}": ours_small,
        "ratio_to_tfrs_tutorial": median["ours train-0"] / median["tfrs train"],
        "ratio_to_tfrs_tutorial_with_negatives": median[f"ours train-{FURTHER_NEGATIVES}"]
        / median["tfrs train"],
        "ratio_to_torch_rechub": rechub[f"ours {train}"] / rechub["rechub train"],
        f"ratio_to_torch_rechub_{small}": rechub[f"ours-small {train}"] / rechub["rechub-small train"],
        "share_of_matmul_peak": share(large, ours),
        f"share_of_matmul_peak_{small}": share(small, ours_small),
        "matmul_peak_gflop_per_s": peak / 1e9,
        "input_pipeline_examples_per_s": median["ours pipeline"],
        "ratio_input_pipeline_to_step": median["ours pipeline"] / ours,
        "sampled_softmax_speedup": full[f"ours {train}"] / full_softmax,
        "step_time_ratio_vocabulary": median[f"ours-few {train}"] / ours,
        "tfrs_tutorial_examples_per_s": median["tfrs train"],
        "torch_rechub_examples_per_s": rechub["rechub train"],
        f"torch_rechub_examples_per_s_{small}": rechub["rechub-small train"],
        "full_softmax_examples_per_s": full_softmax,
    }


def main() -> int:
    """0 when everything was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train", description=__doc__)
    parser.add_argument("--peers-python", default=str(ROOT / "benchmarks/.venv/bin/python"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=Size.parse, default=Size(1_000_000, 256))
    parser.add_argument("--small", type=Size.parse, default=Size(100_000, 64))
    parser.add_argument(
        "--few", type=int, default=10_000, help="the vocabulary that step time is compared with"
    )
    args = parser.parse_args()
    large, small, train = args.large, args.small, f"train-{NEGATIVES}"
    contenders: list[Contender] = []

    def start(
        name: str, module: str, arguments: Sequence[object], tasks: Mapping[str, int], python: str
    ) -> Contender:
        command = [python, "-m", f"benchmarks.train.{module}", *map(str, arguments)]
        contender = Contender(name, command, tasks)
        contenders.append(contender)
        return contender

    here = sys.executable
    try:
        # Before ten minutes have passed.
        if not Path(args.peers_python).exists():
            raise CannotMeasure(
                f"the environment of the peers, {args.peers_python}, is not there: run `make bench-train`"
            )
        ours = start(
            "ours",
            "ours",
            [large, NEGATIVES, FURTHER_NEGATIVES, 0],
            {
                train: 6,
                f"train-{FURTHER_NEGATIVES}": 6,
                "train-0": 6,
                "pipeline": 100,
                "peak-2048x2048x2048": 10,
                "peak-4096x1024x1024": 10,
                "peak-4096x4096x4096": 3,
            },
            here,
        )
        ours_small = start("ours-small", "ours", [small, NEGATIVES], {train: 10}, here)
        # Three groups, so that no more than two large models are in memory at once.
        few = start("ours-few", "ours", [Size(args.few, large.embedding_dim), NEGATIVES], {train: 6}, here)
        tfrs = start("tfrs", "tfrs_tutorial", [large], {"train": 4}, here)
        beside_tfrs = interleave([ours, ours_small, few, tfrs], args.rounds, PROGRAM)
        few.end()
        tfrs.end()
        ours.tasks = {train: ours.tasks[train]}
        fewer_rounds = max(1, args.rounds - 2)
        rechub = start("rechub", "rechub", [large, RECHUB_NEGATIVES], {"train": 1}, args.peers_python)
        rechub_small = start(
            "rechub-small", "rechub", [small, RECHUB_NEGATIVES], {"train": 3}, args.peers_python
        )
        beside_rechub = interleave([ours, ours_small, rechub, rechub_small], fewer_rounds, PROGRAM)
        for contender in (ours_small, rechub, rechub_small):
            contender.end()
        full = start("full", "full_softmax", [large], {"float32": 1, "bfloat16": 1}, here)
        beside_full = interleave([ours, full], fewer_rounds, PROGRAM)
        result = summarise(
            beside_tfrs,
            beside_rechub,
            beside_full,
            large=large,
            small=small,
            tower_inputs=ours.facts["tower_inputs"],
        )
    except CannotMeasure as error:
        say(f"{PROGRAM}: {error}")
        return 1
    finally:
        for contender in contenders:
            contender.process.kill()
    settings = {
        "sizes": [str(large), str(small)],
        "batch_size": BATCH_SIZE,
        "bag_length": BAG_LENGTH,
        "tower": {str(size): size.widths for size in (large, small)},
        "negatives": NEGATIVES,
        "matmul_dtype": ours.facts["matmul_dtype"],
        "model_arithmetic": "6 x the multiply-adds of tower and logits (batch_size + negatives) per example",
        "torch_rechub": f"{RECHUB_NEGATIVES} negatives per example, dense Adam, the same batch",
        "full_softmax": "whole step at a batch of 256, the faster of float32 and bfloat16",
        "rounds": args.rounds,
    }
    rounded = {name: float(f"{value:.4g}") for name, value in result.items()}
    output = {**rounded, "peak_rss_gb": round(ours.peak_rss_gb, 2), "settings": settings}
    sys.stdout.write(json.dumps(output) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
