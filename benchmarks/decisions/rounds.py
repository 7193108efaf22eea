"""Cheap rounds: two models told apart by what they make of the same events, and users who watch accordingly.

A round is a gate day, a shadow day and a live experiment of simulated users. Of the two days models are known by hits of
candidate generation and mispredicted watch time of the ranker, whose expectations differ by a known share; of the
experiment by the watch time per user-day of two arms, whose means do. The project's own code judges: the gate
(`checks.against_the_champion`, as the first challenger of the day), the vetoes (`replay.decide`) and the experiment
(`experiment.experiment_check`), looked at as its users come.
"""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm

from watchnext.decisions.checks import Checks, Improvement, Margin, Slices, against_the_champion
from watchnext.decisions.experiment import Experiment, experiment_check
from watchnext.decisions.gate import sum_up
from watchnext.decisions.ledger import spent_on
from watchnext.decisions.measuring import Measured
from watchnext.decisions.replay import Vetoes, decide
from watchnext.evaluation.intervals import PerUser
from watchnext.evaluation.sequential import sequential_difference

CHECKS = Checks(
    recall_at_100=Margin(margin=0.02, reason=""),
    weighted_pairwise_loss=Margin(margin=0.02, reason=""),
    improvement=Improvement(any_of=["recall_at_100", "weighted_pairwise_loss"], reason=""),
    slices=Slices(margin=0.1, at_least_users=1_000, without_power="hold", reason=""),
)
"""What all rounds are judged by: the defaults of params.yaml ask for no improvement, and have margins of 5 %."""

VETOES = Vetoes()

NEW_USERS, TV_USERS = 0.1, 0.3
CHALLENGERS, LOOKS, PEEKS = 50, 5, 50
KINDS: dict[str, tuple[float, float, float, float]] = {
    # change of recall, of loss (a rise is worse), further change of all three for the worse among new users, and change
    # of watch time per user-day
    "aa": (0.0, 0.0, 0.0, 0.0),
    "worse_2pct": (-0.02, 0.02, 0.0, -0.02),
    "worse_5pct": (-0.05, 0.05, 0.0, -0.05),
    "better_1pct": (0.01, -0.01, 0.0, 0.01),
    "better_3pct": (0.03, -0.03, 0.0, 0.03),
    "better_5pct": (0.05, -0.05, 0.0, 0.05),
    "harmful_slice": (0.03, -0.03, 0.13, 0.03),  # new users lose 10 %, all together gain 1.7 %
    "clickbait": (0.05, 0.03, 0.0, -0.03),
    "worse_online": (0.05, -0.05, 0.0, -0.03),  # better offline, as a model is that was told the last query
}
MEAN_HIT_RATE, KEPT = 1 / 2.7, 0.9
MEAN_WATCH_TIME_S, SHAPE = 120.0, 0.75
"""Of a user's days: a Gamma distribution whose standard deviation is 1.15 of its mean, as measured in the simulator."""
DAYS = 7

Row = dict[str, Any]


class Champion:
    """A day of users, and what the champion makes of it.

    A user's hit rate is Beta(1, 1.7), of 1 + Poisson(1.3) watches; the loss is Beta(2, 5) of a log-normal watch time.
    """

    def __init__(self, rng: np.random.Generator, users: int) -> None:
        self.new = np.arange(users) < NEW_USERS * users
        self.counts = 1 + rng.poisson(1.3, users)
        self.hits = rng.binomial(self.counts, rng.beta(1.0, 1.7, users))
        self.watch_time_s = rng.lognormal(6.0, 1.0, users)
        self.wrong_s = self.watch_time_s * rng.beta(2.0, 5.0, users)

    def challenged(
        self, rng: np.random.Generator, recall: float, loss: float, harm: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hits and mispredicted seconds of a challenger.

        It keeps nine hits in ten and finds others in place of the tenth, and mispredicts as much times log-normal noise
        of mean 1.
        """
        found = (1 - KEPT + recall - harm * self.new) * MEAN_HIT_RATE / (1 - MEAN_HIT_RATE)
        hits = rng.binomial(self.hits, np.where(found < 0, KEPT + found, KEPT)) + rng.binomial(
            self.counts - self.hits, np.clip(found, 0, 1)
        )
        noise = rng.lognormal(-0.5 * 0.3**2, 0.3, len(self.new))
        return hits, self.wrong_s * (1 + loss + harm * self.new) * noise

    def measured(self, hits: np.ndarray, wrong_s: np.ndarray) -> Measured:
        """As the gate measures bundles, with two slices."""
        users = len(self.new)
        whole = {
            "recall_at_100": PerUser(hits.astype(float), self.counts.astype(float)),
            "weighted_pairwise_loss": PerUser(wrong_s, self.watch_time_s),
        }
        slices = {
            name: {metric: PerUser(one.totals[of], one.counts[of]) for metric, one in whole.items()}
            for name, of in (
                ("new_users", slice(0, int(NEW_USERS * users))),
                ("device_tv", slice(users - int(TV_USERS * users), users)),
            )
        }
        return Measured({name: one.mean for name, one in whole.items()}, whole, slices)


def first_place() -> float:
    """The confidence that the first challenger of a day is judged at."""
    return 1 - spent_on(1, 1 - CHECKS.confidence)


def vetoed(ours: Measured, theirs: Measured, evidence: str, causal: Any = None) -> str:
    """The verdict of the shadow comparison on a day of these measurements; slates, errors and latency are alike."""
    metrics = {f"champion_{name}": value for name, value in theirs.metrics.items()}
    metrics |= {f"challenger_{name}": value for name, value in ours.metrics.items()}
    for who in ("champion", "challenger"):
        metrics |= {f"{who}_errors": 0.0, f"{who}_latency_p50_ms": 20.0}
    metrics |= {"slate_overlap_at_20": 0.5, "same_slates": 0.0}
    changes = ours.changes(theirs, VETOES.confidence)
    decided = decide(metrics, changes, VETOES, length=20, evidence=evidence, causal=causal)  # type: ignore[arg-type]
    return decided.verdict


def looked_at(ours: np.ndarray, theirs: np.ndarray, days: float) -> tuple[Any, dict[str, float], int]:
    """An experiment that is looked at as its users come, until it tells.

    Args:
        ours: [num_users of the arm] seconds per user-day, in the order in which they come.
        theirs: of the other arm.
        days: that each user is watched for.

    Returns:
        The last check, its figures, and how many user-days it took.
    """
    planned = len(ours) + len(theirs)
    check: Any = None
    figures: dict[str, float] = {}
    used = 0
    for share in np.linspace(1 / LOOKS, 1, LOOKS):
        one, other = ours[: int(share * len(ours))], theirs[: int(share * len(theirs))]
        used = round((len(one) + len(other)) * days)
        seen = Experiment("ab", one, other, 0.5, (len(one), len(other)), float(used))
        check, figures = experiment_check(seen, planned_users=planned)
        if check.outcome != "not judged" or not figures:
            break
    return check, figures, used


def arms(rng: np.random.Generator, users: int, change: float, harm: float) -> tuple[np.ndarray, np.ndarray]:
    """Seconds per user-day of the challenger's and the champion's users, assigned by a fair coin."""
    theirs_too = rng.random(users) < 0.5
    seconds = rng.standard_gamma(SHAPE, users, dtype=np.float32) * (MEAN_WATCH_TIME_S / SHAPE)
    effect = 1 + change - harm * (rng.random(users) < NEW_USERS) if harm else 1 + change
    return (seconds * effect)[theirs_too].astype(float), seconds[~theirs_too].astype(float)


def release_round(kind: str, users: int, experiment_users: int, seed: int) -> Row:
    """One verdict of each step, what it took, and how many of the gate's two 95 % intervals hold the truth."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    recall, loss, harm, watched = KINDS[kind]
    day, shadow_day = Champion(rng, users), Champion(rng, users)
    ours, theirs = day.measured(*day.challenged(rng, recall, loss, harm)), day.measured(day.hits, day.wrong_s)
    confidence = first_place()
    changes = ours.changes(theirs, confidence)
    gate, _ = sum_up(against_the_champion(ours, theirs, changes, CHECKS, confidence))
    of_95pct = ours.changes(theirs, 0.975)
    truth = {
        "recall_at_100": recall - harm * NEW_USERS,
        "weighted_pairwise_loss": loss + harm * NEW_USERS,
    }
    row: Row = {
        "gate": gate,
        "offline": gate,
        "causal": gate,
        "user_days": users,
        "hold": sum(change.low <= truth[name] <= change.high for name, change in of_95pct.items()),
        "recall": round(changes["recall_at_100"].value, 5),
        "errors": [round(change.standard_error, 6) for change in changes.values()],
    }
    if gate == "challenger":
        ours = shadow_day.measured(*shadow_day.challenged(rng, recall, loss, harm))
        theirs = shadow_day.measured(shadow_day.hits, shadow_day.wrong_s)
        row["offline"] = vetoed(ours, theirs, "offline")
        check, figures, used = looked_at(*arms(rng, experiment_users, watched, harm), DAYS)
        row["causal"] = vetoed(ours, theirs, "causal", check)
        row["refused"] = not figures
        row["user_days"] = 2 * users + used
        if figures:
            row["watched"] = round(figures["experiment_s"] / figures["experiment_champion_s"], 5)
    return row


def ledger_round(users: int, seed: int) -> bool:
    """Whether the gate lets any of fifty equal challengers of one day through, as better than the champion."""
    rng = np.random.default_rng([seed, 100])
    day = Champion(rng, users)
    theirs = day.measured(day.hits, day.wrong_s)
    for place in range(1, CHALLENGERS + 1):
        hits, wrong_s = day.challenged(rng, 0.0, 0.0, 0.0)
        confidence = 1 - spent_on(place, 1 - CHECKS.confidence)
        # What is far from better, by either metric, is not looked at: the gate would say no.
        gains = [
            float(gain.sum()) / math.sqrt(float((gain**2).sum()))
            for gain in (hits - day.hits, day.wrong_s - wrong_s)
        ]
        if max(gains) < norm.isf((1 - confidence) / 2) - 0.6:
            continue
        ours = day.measured(hits, wrong_s)
        changes = ours.changes(theirs, confidence)
        if sum_up(against_the_champion(ours, theirs, changes, CHECKS, confidence))[0] == "challenger":
            return True
    return False


def peeking_round(users: int, seed: int) -> bool:
    """Whether the always-valid interval of equal arms ever excludes no difference for the better, in fifty looks."""
    rng = np.random.default_rng([seed, 200])
    one, other = rng.standard_gamma(SHAPE, (2, users // 2))
    return any(
        sequential_difference(one[:seen], other[:seen], planned_users=users).low > 0
        for seen in np.linspace(100, users // 2, PEEKS).astype(int)
    )


def play(seeds: Sequence[int], users: int, experiment_users: int) -> list[Row]:
    """All kinds of rounds, for some seeds, with the CPU seconds that each seed took."""
    rows = []
    for seed in seeds:
        began = time.process_time()
        kinds = {kind: release_round(kind, users, experiment_users, seed) for kind in KINDS}
        rows.append(
            {
                "seed": seed,
                "kinds": kinds,
                "challengers": ledger_round(users, seed),
                "peeking": peeking_round(users, seed),
                "cpu_s": round(time.process_time() - began, 3),
            }
        )
    return rows


def playing(settings: Mapping[str, int]) -> Any:
    """`play` with these numbers of users, for a pool."""
    return functools.partial(play, users=settings["users"], experiment_users=settings["experiment_users"])
