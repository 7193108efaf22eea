"""Choose a model's settings on the validation days, fit it again up to each test day, and score the test day's rows.

    python -m benchmarks.ranking.tuning lightgbm_clicks --validation DIR [DIR ...] --test DIR [DIR ...] --out DIR --seed 1

A model is a module with `MODELS`, name -> `configs` (what is tried) and `passes` (at most), and
`scores_by_pass(name, fold, config, passes, seed)`: scores of the fold's held rows after each pass.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import CannotMeasure
from benchmarks.ranking import measure
from benchmarks.ranking.folds import Fold

OURS = "watchnext"
PEERS = {
    "past_mean_watch_time": "peers.past",
    "lightgbm_clicks": "peers.gbdt",
    "lightgbm_weighted": "peers.gbdt",
    "lightgbm_regression": "peers.gbdt",
    "lightgbm_lambdarank": "peers.gbdt",
    "logistic_regression": "peers.linear",
    "dcn_v2": "peers.dcn",
}
"""Peer -> its module."""
IN_PROJECT = {OURS: "ours"}
"""What runs in the project's environment -> its module."""


def say(message: str) -> None:
    """One line of progress, on stderr: stdout belongs to the result."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def scores_by_pass(name: str, fold: Fold, config: dict, passes: int, seed: int) -> list[np.ndarray]:
    """What the model's module gives, checked.

    Raises:
        CannotMeasure: a score is not a number, or not one per row and pass.
    """
    module = importlib.import_module(f"benchmarks.ranking.{(PEERS | IN_PROJECT)[name]}")
    scores = module.scores_by_pass(name, fold, config, passes, seed)
    if len(scores) != passes:
        raise CannotMeasure(f"{name} gave {len(scores)} scorings for {passes} passes")
    return [measure.checked(one, fold.held) for one in scores]


def tune(name: str, folds: list[Fold], seed: int, quick: bool = False) -> list[dict]:
    """Try every configuration on the validation days.

    Returns:
        Per configuration: `config`, `passes` (those with the least loss), `weighted_pairwise_loss` of the days
        together, `seconds`.
    """
    module = importlib.import_module(f"benchmarks.ranking.{(PEERS | IN_PROJECT)[name]}")
    configs, passes = module.MODELS[name]["configs"], module.MODELS[name]["passes"]
    if quick:
        configs, passes = configs[:1], min(passes, 2)
    tried = []
    for config in configs:
        begun = time.monotonic()
        by_day = [scores_by_pass(name, fold, config, passes, seed) for fold in folds]
        losses = [
            measure.pooled_loss(scores, [fold.held for fold in folds]) for scores in zip(*by_day, strict=True)
        ]
        best = int(np.argmin(losses))
        tried.append(
            {
                "config": config,
                "passes": best + 1,
                "weighted_pairwise_loss": losses[best],
                "seconds": round(time.monotonic() - begun, 1),
            }
        )
        say(
            f"{name} {json.dumps(config)}: weighted_pairwise_loss {losses[best]:.4f} after pass {best + 1} of "
            f"{passes}, {tried[-1]['seconds']} s; " + " ".join(f"{loss:.4f}" for loss in losses)
        )
    return tried


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(PEERS | IN_PROJECT))
    parser.add_argument("--validation", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--quick", action="store_true", help="the first configuration alone, two passes")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = arguments.model
    tried = tune(
        name, [Fold.load(directory) for directory in arguments.validation], arguments.seed, arguments.quick
    )
    chosen = min(tried, key=lambda one: one["weighted_pairwise_loss"])
    for place, directory in enumerate(arguments.test):
        fold = Fold.load(directory)
        scores = scores_by_pass(name, fold, chosen["config"], chosen["passes"], arguments.seed)[-1]
        np.save(arguments.out / f"scores-{place}.npy", scores)
        say(
            f"{name}, test day {place + 1} of {len(arguments.test)}: weighted_pairwise_loss "
            f"{measure.pooled_loss([scores], [fold.held]):.4f}"
        )
    result = {"model": name, "chosen": chosen, "tried": tried}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
