"""Approximate nearest neighbours: how much do slates suffer from what an index misses?

Section 3.1 of the paper: scoring is a nearest neighbour search in dot product space, and "A/B results were not
particularly sensitive to the choice of nearest neighbor search algorithm".

One model per ground, searched exactly and by ScaNN indices (partition, SOAR, 4-bit hashing, exact re-scoring) that
search fewer and fewer leaves, chosen on the tuning day so that they find all, nine tenths, three quarters and half of
the exact first 200. Measured with each: the next day's watches within the 200 found, and in the simulated world the
watch time while the model fills the pages from those 200.

The dial of this mechanism is the index itself. At 0 everything is searched and nothing may change; full is half of
the exact answer lost, far beyond what anybody would serve. The world is the default one. "Not particularly sensitive" is
taken as: at most 5 % less.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from watchnext.evaluation.intervals import PerUser, per_user
from watchnext.studies._lab import Ground, Lab, Trained, next_day
from watchnext.studies._measures import Measures
from watchnext.studies._report import Claim, Result, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from watchnext.index.search import Searcher

DEPTH = 200
EXACT = "exact search"
TARGETS = (1.0, 0.9, 0.75, 0.5)
TOLERANCE = 0.05
FOUND = f"index_recall_at_{DEPTH}"
METRICS = ("map", "recall_at_100", "online_watch_time_s")


def variant_of(target: float) -> str:
    """The name of an index that finds this share."""
    return "ScaNN, everything searched" if target == 1.0 else f"ScaNN, {target:.0%} found"


CLAIMS = (
    Claim(
        "an index that searches everything changes nothing",
        variant_of(1.0),
        EXACT,
        "online_watch_time_s",
        "same",
    ),
    *(
        Claim(
            f"{metric} is the same with an index that finds {target:.0%} (within {TOLERANCE:.0%})",
            variant_of(target),
            EXACT,
            metric,
            "same",
            TOLERANCE,
        )
        for target in TARGETS[1:]
        for metric in METRICS
    ),
)


def run(lab: Lab) -> Result:
    """Train one model per ground and search it in each way."""
    from watchnext.index.search import ExactSearcher

    measures = Measures([(variant_of(target), EXACT) for target in TARGETS])
    notes = []
    for ground in lab.grounds(lambda strength: {}, strengths=(1.0,)):
        trained = lab.train(ground, "model")
        exact = ExactSearcher(trained.candidate_embeddings)
        measures.add(ground.source, ground.dial, EXACT, _measure(lab, ground, trained, exact))
        searchers = indices(ground, trained)
        for target, (searcher, leaves, of) in zip(TARGETS, searchers, strict=True):
            measures.add(
                ground.source, ground.dial, variant_of(target), _measure(lab, ground, trained, searcher)
            )
            notes.append(
                f"{ground.place}, seed {ground.seed}: {variant_of(target)}: {leaves} of {of} leaves, corpus of"
                f" {len(trained.candidate_embeddings)}."
            )
    return Result(measures.rows(), notes=notes, draw=draw, dial="how many leaves of the index are left out")


def indices(ground: Ground, trained: Trained) -> "list[tuple[Searcher, int, int]]":
    """For every target the index whose recall on the tuning day comes nearest to it, its leaves searched, and all."""
    from watchnext.index.scann import ScannSearcher

    queries = queries_of(ground, trained, "tuning")[:1000]
    corpus = len(trained.candidate_embeddings)
    leaves = max(2, round(2 * corpus**0.5))
    found = []
    for searched in sorted({*range(1, min(leaves, 12)), *np.linspace(12, leaves, 8).astype(int).tolist()}):
        searcher = ScannSearcher.build(
            trained.candidate_embeddings,
            brute_force_below=0,
            num_neighbors=DEPTH,
            num_leaves=leaves,
            leaves_to_search=min(searched, leaves),
            reorder=corpus if searched >= leaves else 2 * DEPTH,
        )
        found.append((shares_found(searcher, trained, queries).mean(), searcher, min(searched, leaves)))
    best = [min(found, key=lambda one: abs(one[0] - target)) for target in TARGETS]
    best[0] = found[-1]
    return [(searcher, searched, leaves) for _, searcher, searched in best]


def queries_of(ground: Ground, trained: Trained, split: str) -> np.ndarray:
    """Query embeddings [num_events, embedding_dim] of a held-out day."""
    return trained.embed(ground.encoder.encode_retrieval(ground.held_out(split)))


def shares_found(searcher: "Searcher", trained: Trained, queries: np.ndarray) -> np.ndarray:
    """Share of the exact first DEPTH that an index finds, float64 [num_queries]."""
    from watchnext.index.search import ExactSearcher

    depth = min(DEPTH, len(trained.candidate_embeddings))
    exact, _ = ExactSearcher(trained.candidate_embeddings).search(queries, depth)
    rows, _ = searcher.search(queries, depth)
    both = [len(np.intersect1d(one, two)) for one, two in zip(rows, exact, strict=True)]
    return np.array(both) / depth


def _measure(lab: Lab, ground: Ground, trained: Trained, searcher: "Searcher") -> dict[str, PerUser]:
    share = shares_found(searcher, trained, queries_of(ground, trained, "gate"))
    users = ground.held_out("gate")["user_id"].combine_chunks()
    measured = {FOUND: per_user(share, users), **next_day(ground, trained.embed, searcher)}
    if ground.moment is not None:
        measured |= lab.online(ground, trained, searcher)
    return measured


def draw(rows: Sequence[Row]) -> "Figure":
    """Each metric as a share of what exact search gives, over the share that the index finds."""
    from matplotlib.figure import Figure

    found = {
        (row.source, row.variant): row.estimate for row in rows if row.metric == FOUND and not row.against
    }
    figure = Figure(figsize=(4.2 * len(METRICS), 4.0), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(METRICS), squeeze=False)[0], METRICS, strict=True):
        for number, source in enumerate(dict.fromkeys(row.source for row in rows)):
            mine = [row for row in rows if row.source == source and row.metric == metric]
            level = next((row.estimate for row in mine if row.variant == EXACT), float("nan"))
            mine = [row for row in mine if row.against]
            if not mine:
                continue
            ends = [
                [(row.estimate - row.low) / level for row in mine],
                [(row.high - row.estimate) / level for row in mine],
            ]
            axes.errorbar(
                [found[source, row.variant] for row in mine],
                [1.0 + row.estimate / level for row in mine],
                yerr=np.maximum(ends, 0.0),
                marker="o",
                capsize=3,
                label=source,
                color=f"C{number}",
            )
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.axhline(1.0 - TOLERANCE, color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=metric, xlabel=FOUND, ylabel="share of exact search's")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
