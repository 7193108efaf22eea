"""Rounds of small trained models: what users of the simulator then watch is the truth.

Models of candidate generation are trained on one world's logs, by recipes from better to worse and by several seeds of one.
Each fills the pages for some days, from one state and with common random numbers, several times with other luck: the
mean watch time per user-day of two models, paired, is the truth of the round in which one challenges the other. Every
ordered pair of models is such a round. The gate and the shadow comparison judge them on the held-out days of the logs
(the ranker is the same, and so is its loss), and a live experiment by users who are assigned to either by a coin.

The experiment's users are those of the world once per luck: twins in taste, independent in what happens to them.
"""

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decisions.rounds import CHECKS, first_place, looked_at, vetoed
from watchnext.decisions.checks import against_the_champion
from watchnext.decisions.gate import sum_up
from watchnext.decisions.measuring import Measured
from watchnext.evaluation.intervals import PerUser

USERS, VIDEOS, DAYS_OF_LOGS = 20_000, 600, 10
ONLINE_DAYS, LUCKS = 3, 20
EXAMPLES = 40_000
BASE: Mapping[str, Any] = {"epochs": 4, "embedding_dim": 16, "depth": 0, "negatives": 200}
RECIPES: dict[str, dict[str, Any]] = {
    "base 1": {"seed": 1},
    "base 2": {"seed": 2},
    "one pass": {"seed": 3, "epochs": 1},
    "last query given": {"seed": 4, "told": "last query given"},
    "eight passes": {"seed": 5, "epochs": 8},
    "four dimensions": {"seed": 6, "embedding_dim": 4},
    "recommended watches only": {"seed": 7, "told": "recommended watches only"},
    "base 3": {"seed": 8},
    "a tenth of the examples": {"seed": 9, "examples": EXAMPLES // 10},
    "no searches": {"seed": 10, "inputs": ("history", "region", "example_age_s")},
    "twenty negatives": {"seed": 11, "negatives": 20},
    "last watch given": {"seed": 12, "told": "last watch given"},
    "base 4": {"seed": 13},
    "no history": {"seed": 14, "inputs": ("search_tokens", "region", "example_age_s")},
    "two passes": {"seed": 15, "epochs": 2},
}
"""What differs from `BASE`: seeds, passes, inputs, labels, and what a home page had better not be told."""

SMALL: Mapping[str, int] = {"users": USERS, "videos": VIDEOS, "days": DAYS_OF_LOGS, "lucks": LUCKS}

_ground: dict[str, Any] = {}


def play_model(name: str, keep: Path, settings: Mapping[str, int]) -> str:
    """Train a model and let it fill the pages; what it made of the days goes into a file of its own."""
    from watchnext.evaluation.offline import evaluate_retrieval, event_slices
    from watchnext.studies.surrogate import changes

    began = time.process_time()
    lab, ground = _world(settings)
    recipe = dict(RECIPES[name])
    how: dict[str, Any] = {}
    if "told" in recipe:
        how = dict(changes(ground, recipe.pop("told")) or {})
    rows = how.pop("rows", np.arange(len(ground.examples)))
    few = min(recipe.pop("examples", EXAMPLES), len(rows))
    rows = np.sort(np.random.default_rng(recipe["seed"]).choice(rows, few, replace=False))
    model = lab.train(ground, name, rows=rows, **{**BASE, **recipe, **how})
    found: dict[str, np.ndarray] = {}
    for day in ("gate", "shadow"):
        examples = ground.features / "retrieval_examples" / day
        ranked = evaluate_retrieval(
            model.embed, model.candidate_embeddings, ground.encoder, examples, exclude="watched"
        )
        codes = ranked.user_ids.dictionary_encode().indices.to_numpy(zero_copy_only=False)
        found[f"{day}_hits"], found[f"{day}_users"] = ranked.ranks <= 100, codes
        for part, of in event_slices(examples, ground.features / "videos").items():
            found[f"{day}_slice_{part}"] = of
    found["watched_s"] = np.stack(
        [_watched_s(lab, ground, model, luck) for luck in range(settings["lucks"])]
    ).astype(np.float32)
    found["cpu_s"] = np.array(time.process_time() - began)
    path = keep / f"{name.replace(' ', '-')}.npz"
    with tempfile.NamedTemporaryFile(dir=keep, suffix=".staging", delete=False) as file:
        np.savez_compressed(file, **found)  # type: ignore[arg-type]
    Path(file.name).rename(path)
    return name


def _world(settings: Mapping[str, int]) -> tuple[Any, Any]:
    """The lab, and the world with the features of its logs: made once per process."""
    from watchnext.cli import make_features
    from watchnext.studies._lab import Lab, Settings

    key = json.dumps(settings, sort_keys=True)
    if key not in _ground:
        scratch = tempfile.TemporaryDirectory(prefix="bench-decisions-")
        lab = Lab(
            Settings(
                users=settings["users"],
                videos=settings["videos"],
                topics=12,
                days=settings["days"],
                seeds=1,
                online_days=ONLINE_DAYS,
            ),
            Path(scratch.name),
            make_features,
        )
        _ground[key] = (lab, lab.world(1.0, {}, 0), scratch)
    return _ground[key][0], _ground[key][1]


def _watched_s(lab: Any, ground: Any, model: Any, luck: int) -> np.ndarray:
    """float64 [num_users], seconds per day of every user while the model fills the pages."""
    from watchnext.index.search import ExactSearcher
    from watchnext.studies._online import RetrievalPolicy, WorldEncoder, watch_time

    moment = ground.moment
    policy = RetrievalPolicy(
        moment.world,
        moment.users.copy(),
        WorldEncoder(moment.world, ground.encoder, model.inputs),
        model.embed,
        ExactSearcher(model.candidate_embeddings),
    )
    outcome = watch_time(moment, policy, lab.settings.online_days, 7_000 + luck)["online_watch_time_s"]
    return outcome.totals / outcome.counts


class Model:
    """What `play_model` kept of a model."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.kept = {name: file[name] for name in file.files}
        self.watched_s: np.ndarray = self.kept["watched_s"].astype(np.float64)
        self.cpu_s = float(self.kept["cpu_s"])

    def measured(self, day: str) -> Measured:
        """Of a day of the logs; the loss is that of the ranker that all models share."""
        hits, users = self.kept[f"{day}_hits"].astype(float), self.kept[f"{day}_users"]

        def recall(of: np.ndarray) -> PerUser:
            _, codes = np.unique(users[of], return_inverse=True)
            return PerUser(np.bincount(codes, weights=hits[of]), np.bincount(codes).astype(float))

        whole = recall(np.ones(len(hits), bool))
        loss = PerUser(0.3 * whole.counts, whole.counts)
        prefix = f"{day}_slice_"
        slices = {
            name.removeprefix(prefix): {"recall_at_100": recall(of)}
            for name, of in self.kept.items()
            if name.startswith(prefix) and of.any()
        }
        return Measured(
            {"recall_at_100": whole.mean, "weighted_pairwise_loss": loss.mean},
            {"recall_at_100": whole, "weighted_pairwise_loss": loss},
            slices,
        )


def kept_models(keep: Path) -> dict[str, Model]:
    """The models that were played so far."""
    paths = {name: keep / f"{name.replace(' ', '-')}.npz" for name in RECIPES}
    return {name: Model(path) for name, path in paths.items() if path.exists()}


def judge_rounds(models: Mapping[str, Model], rounds: int) -> list[dict[str, Any]]:
    """Every model against every other, `rounds` at most, in an order that is the same at every run."""
    pairs = list(itertools.permutations(models, 2))
    np.random.default_rng(0).shuffle(pairs)
    days = {(name, day): model.measured(day) for name, model in models.items() for day in ("gate", "shadow")}
    return [_judged(models, days, *pair, number) for number, pair in enumerate(pairs[:rounds])]


def _judged(
    models: Mapping[str, Model],
    days: Mapping[tuple[str, str], Measured],
    champion: str,
    challenger: str,
    number: int,
) -> dict[str, Any]:
    ours, theirs = models[challenger].watched_s, models[champion].watched_s
    apart = (ours - theirs).ravel()
    mean = float(theirs.mean())
    confidence = first_place()
    one, other = days[challenger, "gate"], days[champion, "gate"]
    changes = one.changes(other, confidence)
    gate, _ = sum_up(against_the_champion(one, other, changes, CHECKS, confidence))
    users = len(other.per_user["recall_at_100"].counts)
    row: dict[str, Any] = {
        "champion": champion,
        "challenger": challenger,
        "truth": float(apart.mean()) / mean,
        "truth_error": float(apart.std() / np.sqrt(len(apart))) / mean,
        "recall": changes["recall_at_100"].value,
        "gate": gate,
        "offline": gate,
        "causal": gate,
        "user_days": users,
        "refused": False,
    }
    # Causal evidence is asked of every pair, whatever the gate says: how often it errs alone is worth knowing, too.
    rng = np.random.default_rng([7, number])
    order = rng.permutation(apart.size)
    coin = rng.random(apart.size) < 0.5
    check, figures, used = looked_at(
        ours.ravel()[order][coin], theirs.ravel()[order][~coin], float(ONLINE_DAYS)
    )
    row["experiment"] = check.outcome
    row["refused"] = not figures
    if gate == "challenger":
        one, other = days[challenger, "shadow"], days[champion, "shadow"]
        row["offline"] = vetoed(one, other, "offline")
        row["causal"] = vetoed(one, other, "causal", check)
        row["user_days"] = users + len(other.per_user["recall_at_100"].counts) + used
    return row


Bound = Callable[[int, int], float]


def figures(rows: list[dict[str, Any]], upper: Bound, lower: Bound) -> dict[str, Any]:
    """Rates by what the truth was; None where no round was of the kind."""

    def rate(name: str, of: list[dict[str, Any]], bound: Bound, hit: Callable[[dict[str, Any]], bool]) -> Any:
        return {name: bound(sum(hit(row) for row in of), len(of)) if of else None}

    def crowned(row: dict[str, Any]) -> bool:
        return bool(row["causal"] == "crown")

    def between(low: float, high: float) -> list[dict[str, Any]]:
        return [row for row in rows if low <= row["truth"] < high]

    worse_online = [row for row in rows if row["recall"] > 0 and row["truth"] < -0.005]
    return {
        "rounds": len(rows),
        "truth_standard_error": max((row["truth_error"] for row in rows), default=None),
        "equal_rounds": len(between(-0.005, 0.005)),
        **rate("false_crown_rate_equal", between(-0.005, 0.005), upper, crowned),
        "worse_rounds": len(between(-9, -0.005)),
        **rate("crown_rate_worse", between(-9, -0.005), upper, crowned),
        **rate("crown_rate_worse_offline_evidence", between(-9, -0.005), upper, _offline),
        "better_3pct_rounds": len(between(0.03, 9)),
        **rate("crown_rate_better_3pct", between(0.03, 9), lower, crowned),
        "better_offline_worse_online_rounds": len(worse_online),
        **rate(
            "stop_rate_better_offline_worse_online", worse_online, lower, lambda row: row["causal"] != "crown"
        ),
        "held_rate": float(np.mean([row["gate"] == "held" for row in rows])) if rows else None,
        "refusal_rate": float(np.mean([row["refused"] for row in rows])) if rows else None,
        "user_days": float(np.mean([row["user_days"] for row in rows])) if rows else None,
    }


def _offline(row: dict[str, Any]) -> bool:
    return bool(row["offline"] == "crown")
