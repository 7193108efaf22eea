"""Choose a peer's settings on the validation day, fit it again up to the test day, and rank the test day's events.

    python -m benchmarks.quality.tuning ease --validation DIR --test DIR [DIR ...] --out DIR --seed 1

A peer is a module of `benchmarks/quality/peers/` with `CONFIGS` (what is tried), `PATIENCE` (passes without a gain
after which a configuration is given up) and `fit(fold, config, seed)`, which yields a scorer after each pass over
the training rows; what is solved in closed form yields one.
"""

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks import CannotMeasure
from benchmarks.quality import measure
from benchmarks.quality.folds import Fold

PEERS = {
    "most_popular": "popular",
    "popular_7_days": "popular",
    "popular_decayed": "popular",
    "item_knn": "neighbours",
    "ease": "neighbours",
    "als": "factors",
    "bpr": "factors",
    "rechub_youtube_dnn": "rechub",
    "tfrs_two_tower": "two_tower",
    "sasrec": "sasrec",
}
"""Peer -> module of `benchmarks/quality/peers/`."""

WITHOUT_LATER_HISTORY = ("most_popular", "popular_7_days", "popular_decayed", "bpr", "tfrs_two_tower")
"""Peers that cannot use what a user did after training: they know popularity or a row per trained user."""


def say(message: str) -> None:
    """One line of progress, on stderr: stdout belongs to the result."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def tune(name: str, validation: Fold, seed: int) -> tuple[dict, list[dict]]:
    """Try every configuration of peer `name` on the validation day.

    Returns:
        The configuration with the most recall_at_100 under the filter that is best for it, with the number of passes
        as `passes`; and what was tried.

    Raises:
        CannotMeasure: a peer yields no scorer.
    """
    peer = importlib.import_module(f"benchmarks.quality.peers.{PEERS[name]}")
    tried: list[dict] = []
    for config in peer.CONFIGS[name]:
        begun = time.monotonic()
        best: dict | None = None
        for passes, scorer in enumerate(peer.fit(validation, config, seed), start=1):
            by_filter = measure.metrics_by_filter(measure.ranks_by_filter(validation, scorer))
            filtered = measure.best_filter(by_filter, measure.OBJECTIVE)
            value = by_filter[filtered][measure.OBJECTIVE]
            if best is None or value > best["value"]:
                best = {
                    "config": config,
                    "passes": passes,
                    "filter": filtered,
                    "value": value,
                    "metrics": by_filter,
                }
            elif passes - best["passes"] >= peer.PATIENCE:
                break
        if best is None:
            raise CannotMeasure(f"{name} gave no model for {config}")
        best["seconds"] = round(time.monotonic() - begun, 1)
        tried.append(best)
        say(
            f"{name} {json.dumps(config)}, pass {best['passes']}: {measure.OBJECTIVE} {best['value']:.4f}, "
            f"map {best['metrics'][best['filter']]['map']:.4f} ({best['filter']}), {best['seconds']} s"
        )
    return max(tried, key=lambda one: one["value"]), tried


def refit(name: str, chosen: dict, fold: Fold, seed: int) -> np.ndarray:
    """Fit the chosen configuration, with the chosen number of passes, on all before a day; rank that day's events."""
    peer = importlib.import_module(f"benchmarks.quality.peers.{PEERS[name]}")
    for passes, scorer in enumerate(peer.fit(fold, chosen["config"], seed), start=1):
        if passes == chosen["passes"]:
            return measure.ranks_by_filter(fold, scorer)
    raise CannotMeasure(f"{name} ended before pass {chosen['passes']}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=sorted(PEERS))
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--test", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    chosen, tried = tune(arguments.peer, Fold.load(arguments.validation), arguments.seed)
    for place, directory in enumerate(arguments.test):
        ranks = refit(arguments.peer, chosen, Fold.load(directory), arguments.seed)
        np.save(arguments.out / f"ranks-{place}.npy", ranks)
    result = {"peer": arguments.peer, "chosen": chosen, "tried": tried}
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
