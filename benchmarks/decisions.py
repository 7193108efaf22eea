"""How often the gate is wrong, and how often it sees what is there: release rounds whose truth is known.

Each round is a gate day of simulated users. Two models are told apart by what they make of the same events: hits of
candidate generation and mispredicted watch time of the ranker, whose expectations differ by a known share. The gate's
own code judges them (`gate.against_the_champion`), as the first challenger of the day, by one configuration for all
kinds of rounds.

Every rate is given by the end of its Clopper-Pearson interval (95 %) that speaks against it: upper for errors, lower
for power. What these rounds cannot tell is left out: they perturb metrics and train no models, so that nothing is said
of models that are better by these metrics and worse for users.

    python -m benchmarks.decisions [--rounds 2000] [--users 4000] [--processes 2]
"""

import argparse
import functools
import json
import math
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest

from watchnext.decisions.gate import (
    Checks,
    Improvement,
    Margin,
    Measured,
    Slices,
    against_the_champion,
    better,
    sum_up,
)
from watchnext.decisions.ledger import spent_on
from watchnext.evaluation import intervals
from watchnext.evaluation.intervals import PerUser
from watchnext.evaluation.sequential import sequential_difference

CHECKS = Checks(
    recall_at_100=Margin(margin=0.02, reason=""),
    weighted_pairwise_loss=Margin(margin=0.02, reason=""),
    improvement=Improvement(any_of=["recall_at_100", "weighted_pairwise_loss"], reason=""),
    slices=Slices(margin=0.1, without_power="hold", reason=""),
)
"""What all rounds are judged by: the defaults of params.yaml ask for no improvement, and have margins of 5 %."""

NEW_USERS, TV_USERS = 0.1, 0.3
CHALLENGERS, LOOKS = 50, 50
KINDS: dict[str, tuple[float, float, float]] = {
    # change of recall, change of loss (a rise is worse), further change of both for the worse among new users
    "aa": (0.0, 0.0, 0.0),
    "worse_2pct": (-0.02, 0.02, 0.0),
    "worse_5pct": (-0.05, 0.05, 0.0),
    "better_1pct": (0.01, -0.01, 0.0),
    "better_3pct": (0.03, -0.03, 0.0),
    "better_5pct": (0.05, -0.05, 0.0),
    "harmful_slice": (0.03, -0.03, 0.13),  # new users lose 10 %, all together gain 1.7 %
    "clickbait": (0.05, 0.03, 0.0),
}
MEAN_HIT_RATE, KEPT = 1 / 2.7, 0.9


def model_pair(
    rng: np.random.Generator, users: int, recall: float, loss: float, harm: float
) -> tuple[Measured, Measured, dict[str, float]]:
    """Two models on the same events of a day, and the true change of each metric.

    Champion: a user's hit rate is Beta(1, 1.7), of 1 + Poisson(1.3) watches; the loss is Beta(2, 5) of a log-normal
    watch time. Challenger: it keeps nine hits in ten and finds others in place of the tenth, and mispredicts as much times
    log-normal noise of mean 1.
    """
    new = np.arange(users) < NEW_USERS * users
    counts = 1 + rng.poisson(1.3, users)
    rate = rng.beta(1.0, 1.7, users)
    theirs = rng.binomial(counts, rate)
    found = (1 - KEPT + recall - harm * new) * MEAN_HIT_RATE / (1 - MEAN_HIT_RATE)
    ours = rng.binomial(theirs, np.where(found < 0, KEPT + found, KEPT)) + rng.binomial(
        counts - theirs, np.clip(found, 0, 1)
    )
    watch_time_s = rng.lognormal(6.0, 1.0, users)
    wrong = watch_time_s * rng.beta(2.0, 5.0, users)
    noise = rng.lognormal(-0.5 * 0.3**2, 0.3, users)
    ours_wrong = wrong * (1 + loss + harm * new) * noise
    truth = {"recall_at_100": recall - harm * NEW_USERS, "weighted_pairwise_loss": loss + harm * NEW_USERS}

    def measured(hits: np.ndarray, mispredicted: np.ndarray) -> Measured:
        whole = {
            "recall_at_100": PerUser(hits.astype(float), counts.astype(float)),
            "weighted_pairwise_loss": PerUser(mispredicted, watch_time_s),
        }
        slices = {
            name: {metric: PerUser(one.totals[of], one.counts[of]) for metric, one in whole.items()}
            for name, of in (
                ("new_users", slice(0, int(NEW_USERS * users))),
                ("device_tv", slice(users - int(TV_USERS * users), users)),
            )
        }
        return Measured({name: one.mean for name, one in whole.items()}, whole, slices)

    return measured(ours, ours_wrong), measured(theirs, wrong), truth


def gate_round(kind: str, users: int, seed: int) -> Counter[str]:
    """One verdict, and how many of the two 95 % intervals hold the truth."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    ours, theirs, truth = model_pair(rng, users, *KINDS[kind])
    confidence = 1 - spent_on(1, 1 - CHECKS.confidence)
    changes = ours.changes(theirs, confidence)
    verdict, _ = sum_up(against_the_champion(ours, theirs, changes, CHECKS, confidence))
    held = Counter({f"{kind} {verdict}": 1})
    assert math.isclose(confidence, 0.975), "each end: the intervals are of 95 %"
    for name, change in changes.items():
        held["intervals"] += 1
        held["intervals that hold"] += change.low <= truth[name] <= change.high
        held[f"{name} error in 1e-9"] += round(1e9 * change.standard_error)
    return held


def ledger_round(users: int, seed: int) -> Counter[str]:
    """Whether any of fifty equal challengers of one day is called better than its champion."""
    rng = np.random.default_rng([seed, 100])
    counts = 1 + rng.poisson(1.3, users)
    theirs = rng.binomial(counts, rng.beta(1.0, 1.7, users))
    found = (1 - KEPT) * MEAN_HIT_RATE / (1 - MEAN_HIT_RATE)
    asked = Improvement(any_of=["recall_at_100"], reason="")
    champion = Measured({}, {"recall_at_100": PerUser(theirs.astype(float), counts.astype(float))})
    for place in range(1, CHALLENGERS + 1):
        ours = rng.binomial(theirs, KEPT) + rng.binomial(counts - theirs, found)
        gain = (ours - theirs).sum() / math.sqrt(((ours - theirs) ** 2).sum())
        if gain < 1.5:  # the first is crowned from about 1.96 errors on, later ones from more
            continue
        challenger = Measured({}, {"recall_at_100": PerUser(ours.astype(float), counts.astype(float))})
        (check,) = better(challenger, champion, asked, 1 - spent_on(place, 1 - CHECKS.confidence))
        if check.outcome == "passed":
            return Counter({"challengers crowned": 1})
    return Counter()


def peeking_round(users: int, seed: int) -> Counter[str]:
    """Whether the always-valid interval of equal arms ever excludes no difference for the better, in fifty looks."""
    rng = np.random.default_rng([seed, 200])
    arms = rng.exponential(300.0, (2, users // 2)) + rng.exponential(600.0, (2, users // 2))
    for seen in np.linspace(100, users // 2, LOOKS).astype(int):
        if sequential_difference(arms[0, :seen], arms[1, :seen], planned_users=users).low > 0:
            return Counter({"peeking crowned": 1})
    return Counter()


class KeptDraw:
    """How often each user is drawn, in single precision: halves what a round has to read.

    The sums of the last totals are kept as well: the gate looks at the same ones at several levels.
    """

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights.astype(np.float32)
        self.last: dict[bytes, np.ndarray] = {}

    def __matmul__(self, totals: np.ndarray) -> np.ndarray:
        key = totals.tobytes()
        if key not in self.last:
            while len(self.last) > 1:
                del self.last[next(iter(self.last))]
            self.last[key] = (self.weights @ totals.astype(np.float32)).astype(np.float64)
        return self.last[key]


def keep_draws() -> None:
    """Let this process draw users once for each number of them: the gate draws the same ones every time."""
    plain = intervals._weights
    kept: Callable[..., list[KeptDraw]] = functools.cache(
        lambda *draw: [KeptDraw(weights) for weights in plain(*draw)]
    )
    intervals._weights = kept  # type: ignore[assignment]


def play(rounds: range, users: int) -> Counter[str]:
    """All kinds of rounds, for some of the seeds."""
    total: Counter[str] = Counter()
    for seed in rounds:
        for kind in KINDS:
            total += gate_round(kind, users, seed)
        total["rounds"] += 1
        total += ledger_round(users, seed)
        total += peeking_round(users, seed)
    return total


def bound(count: int, rounds: int, *, upper: bool) -> float:
    """The end of the Clopper-Pearson interval of 95 %."""
    ends = binomtest(count, rounds).proportion_ci(0.95, method="exact")
    return float(ends.high if upper else ends.low)


def report(total: Counter[str], rounds: int, users: int, seconds: float) -> dict[str, object]:
    """The JSON object that the benchmark ends with."""
    crowned = {kind: total[f"{kind} challenger"] for kind in KINDS}
    held = sum(total[f"{kind} held"] for kind in KINDS)
    return {
        "false_crown_rate_aa": bound(crowned["aa"], rounds, upper=True),
        "crown_rate_worse_2pct": bound(crowned["worse_2pct"], rounds, upper=True),
        "crown_rate_worse_5pct": bound(crowned["worse_5pct"], rounds, upper=True),
        "crown_rate_better_1pct": bound(crowned["better_1pct"], rounds, upper=False),
        "crown_rate_better_3pct": bound(crowned["better_3pct"], rounds, upper=False),
        "crown_rate_better_5pct": bound(crowned["better_5pct"], rounds, upper=False),
        "stop_rate_harmful_slice": bound(rounds - crowned["harmful_slice"], rounds, upper=False),
        "stop_rate_clickbait": bound(rounds - crowned["clickbait"], rounds, upper=False),
        "coverage_of_95pct_intervals": total["intervals that hold"] / total["intervals"],
        "held_rate": held / (rounds * len(KINDS)),
        "false_crown_rate_peeking_50": bound(total["peeking crowned"], rounds, upper=True),
        "false_crown_rate_50_challengers": bound(total["challengers crowned"], rounds, upper=True),
        "standard_error_recall": total["recall_at_100 error in 1e-9"] / 1e9 / (rounds * len(KINDS)),
        "standard_error_loss": total["weighted_pairwise_loss error in 1e-9"] / 1e9 / (rounds * len(KINDS)),
        "user_days": users,
        "rounds": rounds,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2_000, help="of each kind")
    parser.add_argument("--users", type=int, default=4_000, help="of a gate day, and of a live experiment")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="stop after so long, with the rounds played"
    )
    options = parser.parse_args()
    began = time.monotonic()
    step = max(1, options.rounds // (100 * options.processes))
    parts = [range(begin, min(begin + step, options.rounds)) for begin in range(0, options.rounds, step)]
    total: Counter[str] = Counter()
    rounds = 0
    with multiprocessing.get_context("spawn").Pool(options.processes, keep_draws) as pool:
        for played in pool.imap_unordered(functools.partial(play, users=options.users), parts):
            total += played
            rounds += played["rounds"]
            print(f"{rounds} rounds of each kind, {time.monotonic() - began:.0f} s", file=sys.stderr)  # noqa: T201
            if time.monotonic() - began > 60 * options.minutes:
                break
    for kind in KINDS:
        verdicts = {verdict: total[f"{kind} {verdict}"] for verdict in ("challenger", "held", "rejected")}
        print(f"{kind}: {verdicts}", file=sys.stderr)  # noqa: T201
    print(json.dumps(report(total, rounds, options.users, time.monotonic() - began)))  # noqa: T201


if __name__ == "__main__":
    main()
