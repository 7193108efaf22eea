"""How often the decisions are wrong, and how often they see what is there: release rounds whose truth is known.

Cheap rounds (`rounds`) and rounds of trained models (`trained`), judged by one configuration. Rates are given by the end
of their Clopper-Pearson interval (95 %) that speaks against them: upper for errors, lower for power. What was played is kept
below `--keep` as it comes, and the next run goes on from there.

    python -m benchmarks.decisions [--rounds 2000] [--trained 200] [--minutes 60] [--processes 2]
"""

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from benchmarks.decisions import trained
from benchmarks.decisions.plots import plot_kinds, plot_power, plot_trained
from benchmarks.decisions.rounds import DAYS, KINDS, Row, playing

VERDICTS = ("challenger", "held", "rejected")


def bound(count: int, rounds: int, *, upper: bool) -> float:
    """The end of the Clopper-Pearson interval of 95 %."""
    ends = binomtest(count, rounds).proportion_ci(0.95, method="exact")
    return float(ends.high if upper else ends.low)


def report(rows: list[Row], users: int, experiment_users: int) -> dict[str, Any]:
    """Figures of the cheap rounds."""
    rounds = len(rows)
    of = {kind: [row["kinds"][kind] for row in rows] for kind in KINDS}
    everything = [one for played in of.values() for one in played]

    def crowned(kind: str, evidence: str = "causal") -> int:
        return sum(one[evidence] == "crown" for one in of[kind])

    def rates(evidence: str) -> dict[str, float]:
        return {
            "false_crown_rate_aa": bound(crowned("aa", evidence), rounds, upper=True),
            "crown_rate_worse_2pct": bound(crowned("worse_2pct", evidence), rounds, upper=True),
            "crown_rate_worse_5pct": bound(crowned("worse_5pct", evidence), rounds, upper=True),
            "crown_rate_better_1pct": bound(crowned("better_1pct", evidence), rounds, upper=False),
            "crown_rate_better_3pct": bound(crowned("better_3pct", evidence), rounds, upper=False),
            "crown_rate_better_5pct": bound(crowned("better_5pct", evidence), rounds, upper=False),
            **{
                f"stop_rate_{kind}": bound(rounds - crowned(kind, evidence), rounds, upper=False)
                for kind in ("harmful_slice", "clickbait", "worse_online")
            },
        }

    judged = [one for one in everything if one["gate"] == "challenger"]
    return {
        **rates("causal"),
        "offline_evidence_alone": rates("offline"),
        "coverage_of_95pct_intervals": sum(one["hold"] for one in everything) / (2 * len(everything)),
        "refusal_rate": sum(one["refused"] for one in judged) / max(1, len(judged)),
        "held_rate": sum(one["gate"] == "held" for one in everything) / len(everything),
        "false_crown_rate_peeking_50": bound(sum(row["peeking"] for row in rows), rounds, upper=True),
        "false_crown_rate_50_challengers": bound(sum(row["challengers"] for row in rows), rounds, upper=True),
        "standard_error_recall": sum(one["errors"][0] for one in everything) / len(everything),
        "standard_error_loss": sum(one["errors"][1] for one in everything) / len(everything),
        "user_days": {kind: round(sum(one["user_days"] for one in of[kind]) / rounds) for kind in KINDS},
        "users_of_a_day": users,
        "users_of_an_experiment": experiment_users,
        "days_of_an_experiment": DAYS,
        "rounds": rounds,
    }


def kept_rows(path: Path) -> list[Row]:
    """Cheap rounds that were played so far; a line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return list({row["seed"]: row for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2_000, help="cheap ones of each kind")
    parser.add_argument("--trained", type=int, default=200, help="rounds of trained models; 0: none")
    parser.add_argument("--users", type=int, default=10_000, help="of a gate day, and of a shadow day")
    parser.add_argument("--experiment-users", type=int, default=200_000, help="of both arms of an experiment")
    parser.add_argument("--world-users", type=int, default=trained.USERS, help="of the trained models' world")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="stop after so long, with what was played"
    )
    parser.add_argument(
        "--keep", type=Path, default=Path("reports/bench-decisions"), help="where what was played is kept"
    )
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")
    began = time.monotonic()
    settings = {"users": options.users, "experiment_users": options.experiment_users}
    keep = options.keep / "-".join(str(number) for number in (*settings.values(), options.world_users))
    keep.mkdir(parents=True, exist_ok=True)

    def time_is_up() -> bool:
        return time.monotonic() - began > 60 * options.minutes

    path = keep / "rounds.jsonl"
    rows = kept_rows(path)
    todo = sorted(set(range(options.rounds)) - {row["seed"] for row in rows})
    step = max(1, min(20, len(todo) // (4 * options.processes) or 1))
    parts = [todo[begin : begin + step] for begin in range(0, len(todo), step)]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool, path.open("a") as file:
        for played in pool.imap_unordered(playing(settings), parts):
            rows += played
            file.writelines(json.dumps(row) + "\n" for row in played)
            file.flush()
            if time_is_up():
                break
    _say(f"{len(rows)} cheap rounds of each kind after {time.monotonic() - began:.0f} s")
    if options.trained:
        sizes = {**trained.SMALL, "users": options.world_users}
        todo_models = [name for name in trained.RECIPES if name not in trained.kept_models(keep)]
        # A process has TensorFlow and a world of its own, so it takes several models.
        with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
            play = functools.partial(trained.play_model, keep=keep, settings=sizes)
            for name in pool.imap_unordered(play, todo_models):
                _say(f"trained and played: {name}, {time.monotonic() - began:.0f} s")
                if time_is_up():
                    break
    models = trained.kept_models(keep)
    judged = trained.judge_rounds(models, options.trained)
    for kind in KINDS:
        counts = Counter(row["kinds"][kind]["gate"] for row in rows)
        ends = Counter(row["kinds"][kind]["causal"] for row in rows)
        _say(f"{kind}: gate {dict(counts)}, in the end {dict(ends)}")
    found = report(rows, options.users, options.experiment_users)
    upper, lower = functools.partial(bound, upper=True), functools.partial(bound, upper=False)
    found["trained"] = {
        **trained.figures(judged, upper, lower),
        "models": len(models),
        "cpu_seconds": round(sum(model.cpu_s for model in models.values())),
    }
    found["cpu_seconds"] = round(sum(row["cpu_s"] for row in rows) + found["trained"]["cpu_seconds"])
    found["seconds"] = round(time.monotonic() - began, 1)
    (keep / "trained.json").write_text(json.dumps(judged, indent=1) + "\n", encoding="utf-8")
    (keep / "result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot_kinds(rows, keep / "kinds.png")
    plot_power(found, keep / "power.png")
    if judged:
        plot_trained(judged, keep / "trained.png")
    print(json.dumps(found))  # noqa: T201


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
