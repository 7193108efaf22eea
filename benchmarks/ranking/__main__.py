"""Ranking beside its alternatives, on the next days of the same logs: `make bench-ranking`.

Each model is trained on the impressions before a day and scores those of the day, with the same features of the same
rows. Everything is chosen on the validation days, which come before the test days. Progress goes to stderr; the last
line of stdout is one JSON object (docs/benchmarks.md). Exit code 1 says that something could not be measured.
"""

import argparse
import datetime as dt
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CannotMeasure
from benchmarks.programs import PEERS_PYTHON, print_measured, run, run_all, validated_tables
from benchmarks.ranking import data, measure, tuning
from benchmarks.ranking.folds import Rows
from watchnext import config
from watchnext.console import say
from watchnext.evaluation.intervals import PerUser
from watchnext.evaluation.paired import paired_change
from watchnext.stages import train_ranking

NAME = tuning.OURS
LEAST_USERS = 50
"""With a clicked impression in a slice, for its intervals to say something."""
SLOWEST_FIRST = (NAME, "dcn_v2", "logistic_regression", "lightgbm_lambdarank")


def benchmark(arguments: argparse.Namespace, work: Path) -> dict[str, object]:
    """Everything from the logs to the JSON object.

    Raises:
        InputError: the logs or settings are not what they should be.
        CannotMeasure: a model failed, a feature tells of outcomes, or there is too little to compare on.
    """
    if not arguments.peers_python.exists():
        raise CannotMeasure(f"no {arguments.peers_python}: `make bench-ranking` makes the peers' environment")
    seed = config.load_seed()
    examples = data.Examples(validated_tables(arguments.source, arguments.data, work), work, seed)
    judged = arguments.validation_days + arguments.test_days
    if len(examples.days) < judged + 1:
        raise CannotMeasure(
            f"{len(examples.days)} whole days of logs: too few to train, validate on "
            f"{arguments.validation_days} and test on {arguments.test_days}"
        )
    days = examples.days[-judged:]
    validation, tests = days[: arguments.validation_days], days[arguments.validation_days :]
    held: dict[dt.date, Rows] = {}
    for day in days:
        fold = examples.fold(day, arguments.training_features)
        fold.save(work / f"fold-{day}")
        held[day] = fold.held
        say(f"{day}: {len(fold.held):,} impressions after {len(fold.training):,}")
    of_tests = np.isin(examples.day, np.array(tests, "datetime64[D]"))
    leak = leak_check(
        examples.held[data.LEAK][of_tests],
        examples.live[data.LEAK][of_tests],
        [held[day] for day in tests],
    )

    def folds(of: Sequence[dt.date]) -> list[str]:
        return [str(work / f"fold-{day}") for day in of]

    commands = {
        name: [
            *(sys.executable if name in tuning.IN_PROJECT else str(arguments.peers_python),),
            *("-m", "benchmarks.ranking.tuning", name),
            *("--validation", *folds(validation), "--test", *folds(tests)),
            *("--out", str(work / name), "--seed", str(seed)),
            *(["--quick"] if arguments.quick else []),
        ]
        for name in (*arguments.peers, NAME)
    }
    run_all(commands, SLOWEST_FIRST, arguments.processes)
    speed: dict[str, float] = {}
    # After the models, when nothing else runs here: these are timings.
    for what, cores, times in (("score", 1, 1_000), ("train", 2, 3)):
        command = [sys.executable, "-m", "benchmarks.ranking.speed", what, *("--fold", folds(tests)[-1])]
        out = work / f"speed-{what}.json"
        command += ["--out", str(out), "--times", str(min(times, 30) if arguments.quick else times)]
        run(f"speed of {what}", command, cores)
        speed |= json.loads(out.read_text())

    rows = [held[day] for day in tests]
    scores = {
        name: [np.load(work / name / f"scores-{place}.npy") for place in range(len(tests))]
        for name in commands
    }
    results = {name: json.loads((work / name / "result.json").read_text()) for name in commands}
    measured = {name: measure.metrics(scores[name], rows) for name in commands}
    compared = compare(scores, rows)
    settings = config.load_section("train_ranking", train_ranking.Params).model_dump()
    settings |= results[NAME]["chosen"]["config"]
    slices = {
        name: np.concatenate([which[examples.day == np.datetime64(day)] for day in tests])
        for name, which in examples.slices.items()
    }
    return {
        "benchmark": "ranking",
        "source": examples.source,
        "validation_days": [str(day) for day in validation],
        "test_days": [str(day) for day in tests],
        "group_kind": examples.group_kind,
        "training_features": arguments.training_features,
        "impressions": sum(len(one) for one in rows),
        "users": len(np.unique(np.concatenate([one.users for one in rows]))),
        **leak,
        **compared,
        **speed,
        "slices": by_slice(scores, rows, slices, str(compared["best_peer"])),
        "models": {
            name: {
                **measured[name],
                "estimates": estimates(scores[name], rows, settings if name == NAME else None),
                "by_day": [
                    measure.pooled_loss([one], [day]) for one, day in zip(scores[name], rows, strict=True)
                ],
                "config": results[name]["chosen"]["config"],
                "passes": results[name]["chosen"]["passes"],
                "validation_weighted_pairwise_loss": results[name]["chosen"]["weighted_pairwise_loss"],
                "configurations_tried": len(results[name]["tried"]),
            }
            for name in sorted(commands, key=lambda name: measured[name]["weighted_pairwise_loss"])
        },
    }


def leak_check(held: np.ndarray, live: np.ndarray, rows: Sequence[Rows]) -> dict[str, float]:
    """A score that knows nothing of videos, and so has to tie within every group.

    Args:
        held: [rows of all days] the user's click rate so far, as the models are given it.
        live: the same as of each impression.
        rows: the days.

    Returns:
        leak_check_loss, of the negated rate as the models are given it, which is 0.5; and leak_check_live_loss.

    Raises:
        CannotMeasure: it is not 0.5.
    """
    ends = np.cumsum([len(one) for one in rows])[:-1]
    loss, live_loss = (
        measure.pooled_loss(np.split(-np.nan_to_num(rate.astype(np.float64)), ends), rows)
        for rate in (held, live)
    )
    say(
        f"leak check: the negated click rate of the user has a loss of {loss:.6f} on the rows that are judged, and "
        f"{live_loss:.4f} with features as of each impression"
    )
    if abs(loss - 0.5) > 1e-9:
        raise CannotMeasure(
            f"the negated click rate of the user has a loss of {loss:.6f}, not 0.5: features move with the "
            "outcomes of a group"
        )
    return {"leak_check_loss": loss, "leak_check_live_loss": live_loss}


def compare(scores: dict[str, list[np.ndarray]], rows: Sequence[Rows]) -> dict[str, object]:
    """Ours beside the peer with the least loss on the test days.

    Returns:
        best_peer, ratio_loss, and the ends of its paired 95 % interval over users, ratio_loss_low and _high.
    """
    users = np.unique(np.concatenate([one.users for one in rows]), return_inverse=True)[1]

    def per_user(name: str) -> PerUser:
        parts = [measure.seconds(one, day) for one, day in zip(scores[name], rows, strict=True)]
        wrong, total = (np.concatenate(kind) for kind in zip(*parts, strict=True))
        return PerUser(np.bincount(users, weights=wrong), np.bincount(users, weights=total))

    peers = [name for name in scores if name != NAME]
    best = min(peers, key=lambda name: per_user(name).mean)
    change = paired_change(per_user(NAME), per_user(best), level=0.95)
    return {
        "best_peer": best,
        "ratio_loss": 1.0 + change.value,
        "ratio_loss_low": 1.0 + change.low,
        "ratio_loss_high": 1.0 + change.high,
    }


def estimates(
    scores: Sequence[np.ndarray], rows: Sequence[Rows], settings: Mapping[str, Any] | None
) -> dict[str, dict[str, float]]:
    """A model's metrics on the test days, each with its 95 % interval over users.

    Args:
        scores: of each day.
        rows: of each day.
        settings: that a model of watch-time odds was trained with; None: a score is no more than a score.
    """
    judged = measure.Judged(scores, rows)
    users = np.concatenate([one.users for one in rows])
    statistics = {
        "weighted_pairwise_loss": judged.weighted_pairwise_loss,
        "auc": judged.auc,
        "xauc": judged.xauc,
        **(measure.of_odds(judged, settings) if settings is not None else {}),
    }
    return {name: measure.estimate(statistic, users) for name, statistic in statistics.items()}


def by_slice(
    scores: Mapping[str, Sequence[np.ndarray]],
    rows: Sequence[Rows],
    slices: Mapping[str, np.ndarray],
    best_peer: str,
) -> dict[str, dict[str, Any]]:
    """Ours and the best peer in parts of the test days.

    Args:
        scores: of each model on each day.
        rows: of each day.
        slices: name -> bool [rows of all days].
        best_peer: whom ours is compared with.

    Returns:
        For each slice its impressions, and with 95 % intervals over users `weighted_pairwise_loss` and `auc` of ours, and
        `ratio_loss`, ours over the peer's, paired. A slice of fewer than LEAST_USERS users with a click is left out.
    """
    ours, peer = (measure.Judged(scores[name], rows) for name in (NAME, best_peer))
    users = np.concatenate([one.users for one in rows])
    found: dict[str, dict[str, Any]] = {}
    for name, of in slices.items():
        if len(np.unique(users[of & (ours.total_s > 0)])) < LEAST_USERS:
            continue
        statistics = {
            "weighted_pairwise_loss": lambda which, of=of: ours.weighted_pairwise_loss(which & of),
            "auc": lambda which, of=of: ours.auc(which & of),
        }
        # The logarithm of a ratio has an even spread where the ratio of two small losses has not.
        log_ratio = measure.estimate(
            lambda which, of=of: float(
                np.log(ours.weighted_pairwise_loss(which & of) / peer.weighted_pairwise_loss(which & of))
            ),
            users,
        )
        found[name] = {
            "impressions": int(of.sum()),
            **{one: measure.estimate(statistic, users) for one, statistic in statistics.items()},
            "ratio_loss": {end: float(np.exp(value)) for end, value in log_ratio.items()},
        }
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ranking",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", default="simulated", help="simulated | kuairand | files, as ingest.source"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the logs; without it the default world is simulated"
    )
    parser.add_argument(
        "--test-days",
        type=int,
        default=5,
        help="last whole days, each predicted from all before it; default 5",
    )
    parser.add_argument(
        "--validation-days",
        type=int,
        default=2,
        help="days before the test days that everything is chosen on; default 2",
    )
    parser.add_argument(
        "--training-features",
        choices=["held", "live"],
        default="held",
        help="where the logs know no pages: training rows as of the first impression of the user, surface and day, "
        "as the rows that are judged (held, better on KuaiRand's validation days), or as of each impression (live)",
    )
    parser.add_argument("--processes", type=int, default=2, help="models run side by side; default 2")
    parser.add_argument("--peers", nargs="+", choices=list(tuning.PEERS), default=list(tuning.PEERS))
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="to see whether it runs: one configuration, two passes and 30 timings per model; no figures to keep",
    )
    parser.add_argument(
        "--work", type=Path, help="keep everything in this empty folder; default: a temporary one"
    )
    arguments = parser.parse_args()
    if arguments.data is None and arguments.source != "simulated":
        parser.error(f"--data is the folder of the logs of the source {arguments.source}")
    if min(arguments.test_days, arguments.validation_days) < 1:
        parser.error("--test-days and --validation-days are at least 1")
    return print_measured("bench-ranking", lambda work: benchmark(arguments, work), arguments.work)


if __name__ == "__main__":
    sys.exit(main())
