"""Candidate generation beside its alternatives, on the next day of the same logs: `make bench-quality`.

Progress goes to stderr; the last line of stdout is one JSON object (docs/benchmarks.md).
"""

import argparse
import datetime as dt
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks import CannotMeasure
from benchmarks.programs import PEERS_PYTHON, print_measured, run_all, validated_tables
from benchmarks.quality import data, measure, tuning
from benchmarks.quality.ours import NAME
from watchnext import config
from watchnext.console import say

SLOWEST_FIRST = ("sasrec", NAME, "rechub_youtube_dnn", "tfrs_two_tower", "ease", "bpr", "als")


def benchmark(arguments: argparse.Namespace, work: Path) -> dict[str, object]:
    """Everything from the logs to the JSON object.

    Raises:
        InputError: the logs or settings are not what they should be.
        CannotMeasure: a model failed, or there is too little to compare on.
    """
    if not arguments.peers_python.exists():
        raise CannotMeasure(f"no {arguments.peers_python}: `make bench-quality` makes the peers' environment")
    tables = validated_tables(arguments.source, arguments.data, work)
    logs = data.Logs(tables)
    if len(logs.days) < arguments.test_days + 2:
        raise CannotMeasure(f"{len(logs.days)} whole days of logs: too few to train, validate and test on")
    validation, *tests = logs.days[-arguments.test_days - 1 :]
    folds = {}
    for day in (validation, *tests):
        folds[day] = logs.fold(day, arguments.max_events)
        folds[day].save(work / f"fold-{day}")
        say(f"{day}: {folds[day].num_events:,} events after {len(folds[day].train_user):,} completed watches")

    seed = str(config.load_seed())
    fold = {day: str(work / f"fold-{day}") for day in folds}
    of_tests = [flag for day in tests for flag in ("--test", str(day), fold[day])]
    commands = {
        name: [
            str(arguments.peers_python),
            *("-m", "benchmarks.quality.tuning", name, "--validation", fold[validation], "--test"),
            *(fold[day] for day in tests),
            *("--out", str(work / name), "--seed", seed),
        ]
        for name in arguments.peers
    }
    commands[NAME] = [
        sys.executable,
        *("-m", "benchmarks.quality.ours", "--tables", str(tables)),
        *("--validation", str(validation), fold[validation], *of_tests),
        *("--work", str(work), "--out", str(work / NAME), "--seed", seed),
    ]
    run_all(commands, SLOWEST_FIRST, arguments.processes)
    return summary(logs, validation, {day: folds[day].event_user for day in tests}, list(commands), work)


def summary(
    logs: data.Logs,
    validation: dt.date,
    users_by_day: dict[dt.date, np.ndarray],
    models: list[str],
    work: Path,
) -> dict[str, object]:
    """The JSON object, from what each model left in `work`.

    Args:
        logs: the logs.
        validation: the day that everything was chosen on.
        users_by_day: test day -> [num_events] user codes.
        models: names, ours among them.
        work: has `<model>/result.json` and, per test day in its order, `<model>/ranks-<place>.npy`.

    Raises:
        CannotMeasure: there is too little to compare on.
    """
    ranks = {
        name: np.concatenate(
            [np.load(work / name / f"ranks-{place}.npy") for place in range(len(users_by_day))], axis=1
        )
        for name in models
    }
    users = np.concatenate(list(users_by_day.values()))
    results = {name: json.loads((work / name / "result.json").read_text()) for name in models}
    return {
        "benchmark": "quality",
        "source": logs.source,
        "validation_day": str(validation),
        "test_days": [str(day) for day in users_by_day],
        "events": len(users),
        "users": len(np.unique(users)),
        "corpus": len(logs.video_ids),
        "our_filter": results[NAME]["chosen"]["filter"],
        **measure.compare(
            ranks, users, ours=NAME, our_filter=results[NAME]["chosen"]["filter"], seed=config.load_seed()
        ),
        "models": {
            name: {
                "history_up_to_the_event": name not in tuning.WITHOUT_LATER_HISTORY,
                "config": results[name]["chosen"]["config"],
                "passes": results[name]["chosen"]["passes"],
                "configurations_tried": len(results[name]["tried"]),
                "validation": {
                    "filter": results[name]["chosen"]["filter"],
                    **results[name]["chosen"]["metrics"][results[name]["chosen"]["filter"]],
                },
                "test": measure.metrics_by_filter(ranks[name]),
            }
            for name in models
        },
    }


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "--source", default="simulated", help="simulated | kuairand | files, as ingest.source"
    )
    parser.add_argument(
        "--data", type=Path, help="folder of the logs; without it the default world is simulated"
    )
    parser.add_argument(
        "--test-days", type=int, default=1, help="last whole days that are predicted; default 1"
    )
    parser.add_argument("--max-events", type=int, default=20_000, help="of a day, at most; default 20000")
    parser.add_argument("--processes", type=int, default=2, help="models run side by side; default 2")
    parser.add_argument("--peers", nargs="+", choices=list(tuning.PEERS), default=list(tuning.PEERS))
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON)
    parser.add_argument(
        "--work", type=Path, help="keep everything in this empty folder; default: a temporary one"
    )
    arguments = parser.parse_args()
    if arguments.data is None and arguments.source != "simulated":
        parser.error(f"--data is the folder of the logs of the source {arguments.source}")
    if arguments.test_days < 1:
        parser.error("--test-days is at least 1")
    return print_measured("bench-quality", lambda work: benchmark(arguments, work), arguments.work)


if __name__ == "__main__":
    sys.exit(main())
