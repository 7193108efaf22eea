"""The fastest search that finds enough: settings of a ScaNN tree and exact search, measured on the same queries.

A tree is built once; how many leaves a query looks into and how many candidates are scored again exactly are
settings of the search. Exact search is one of the choices, so that a corpus gets a tree only where it pays.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from watchnext.evaluation.metrics import index_recall_at_k
from watchnext.index.scann import ScannSearcher, default_leaves
from watchnext.index.search import ExactSearcher, Searcher

Clock = Callable[[Searcher, np.ndarray, int], float]
"""Searcher, queries [num_queries, embedding_dim] and k -> median milliseconds that one query takes on its own."""

Search = Literal["auto", "exact", "tree"]
"""What may be chosen: whatever is fastest, or one kind alone."""

_ROUNDS = 3
_TIMED_QUERIES = 100
_LONGEST_TIMING_S = 1.0
_AS_FAST = 1.05
"""Latencies that differ by less are taken for equal: runs of one setting differ by as much."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One way to search, as measured.

    Attributes:
        leaves_to_search: None for exact search.
        reorder: None for exact search.
        recall: share of the exact first K that it finds.
        latency_ms: median of one query on its own, median over rounds.
    """

    leaves_to_search: int | None
    reorder: int | None
    recall: float
    latency_ms: float

    @property
    def is_exact(self) -> bool:
        return self.leaves_to_search is None


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What came of it.

    Attributes:
        searcher: searches as chosen.
        measured: every setting that was measured; none where the corpus is below `brute_force_below`.
        chosen: place of the chosen one in `measured`.
        reached: whether any tree reached the floor; True where none was measured.
    """

    searcher: ScannSearcher
    measured: tuple[Measurement, ...]
    chosen: int
    reached: bool


def tune_index(
    embeddings: np.ndarray,
    queries: np.ndarray,
    *,
    search: Search = "auto",
    brute_force_below: int,
    num_neighbors: int,
    recall_floor: float,
    leaf_shares: Sequence[float],
    reorder_factors: Sequence[float],
    num_leaves: int | None = None,
    soar_lambda: float | None = 1.5,
    clock: Clock | None = None,
) -> Tuning:
    """Build a tree and exact search, measure both, and choose.

    Args:
        embeddings: [num_candidates, embedding_dim] float32.
        queries: [num_queries, embedding_dim] float32, like those that will come.
        search: `exact` measures nothing; `tree` takes the fastest tree that finds enough, were exact search faster.
        brute_force_below: with `auto`, corpus size below which exact search is taken unmeasured.
        num_neighbors: K of the recall and of the timed searches.
        recall_floor: least recall at K. Where no tree reaches it, exact search is taken.
        leaf_shares: shares of the leaves to search that are tried.
        reorder_factors: multiples of K to score again exactly that are tried.
        num_leaves: default about sqrt(num_candidates).
        soar_lambda: see `ScannSearcher.build`.
        clock: default `median_latency_ms`.

    Raises:
        InputError: see `ScannSearcher.build`.
    """
    clock = clock or median_latency_ms
    exact = ScannSearcher.build(
        embeddings, brute_force_below=len(embeddings) + 1, num_neighbors=num_neighbors
    )
    small = search == "auto" and len(embeddings) < brute_force_below
    if small or search == "exact" or len(queries) == 0:
        return Tuning(exact, (), 0, True)
    tree = ScannSearcher.build(
        embeddings,
        brute_force_below=0,
        num_neighbors=num_neighbors,
        num_leaves=num_leaves,
        soar_lambda=soar_lambda,
    )
    if tree.is_exact():  # too few candidates for a tree
        return Tuning(exact, (), 0, True)
    leaves = num_leaves or default_leaves(len(embeddings))
    k = min(num_neighbors, len(embeddings))
    grid = sorted(
        {
            (max(1, round(share * leaves)), min(len(embeddings), round(factor * k)))
            for share in leaf_shares
            for factor in reorder_factors
        }
    )
    searchers = [
        exact,
        *(tree.tuned(leaves_to_search=searched, reorder=reorder) for searched, reorder in grid),
    ]
    # Rounds over all of them, so that a busy moment of the machine does not fall on one setting alone.
    rounds = [[clock(searcher, queries, k) for searcher in searchers] for _ in range(_ROUNDS)]
    latencies_ms = np.median(rounds, axis=0)
    truth, _ = ExactSearcher(embeddings).search(queries, k)
    measured = tuple(
        Measurement(
            searcher.leaves_to_search,
            searcher.reorder,
            index_recall_at_k(searcher.search(queries, k)[0], truth, k),
            float(latency_ms),
        )
        for searcher, latency_ms in zip(searchers, latencies_ms, strict=True)
    )
    reached = any(each.recall >= recall_floor for each in measured if not each.is_exact)
    chosen = choose(measured, recall_floor, trees_alone=search == "tree" and reached)
    return Tuning(searchers[chosen], measured, chosen, reached)


def choose(measured: Sequence[Measurement], recall_floor: float, *, trees_alone: bool = False) -> int:
    """Place of the fastest that finds enough. Exact search finds enough, whatever rounding does to ties.

    Of those that are as fast within the noise of timings, the one that finds the most.

    Args:
        measured: at least one of them finds enough.
        recall_floor: least recall of a tree.
        trees_alone: whether exact search is none of the choices.
    """
    enough = [
        place
        for place, each in enumerate(measured)
        if (not trees_alone if each.is_exact else each.recall >= recall_floor)
    ]
    fastest_ms = min(measured[place].latency_ms for place in enough)
    as_fast = [place for place in enough if measured[place].latency_ms <= _AS_FAST * fastest_ms]
    return max(as_fast, key=lambda place: (measured[place].recall, -measured[place].latency_ms))


def median_latency_ms(searcher: Searcher, queries: np.ndarray, k: int) -> float:
    """Median time of a query on its own, in milliseconds, over up to 100 queries or a second of them."""
    times_s: list[float] = []
    began = time.perf_counter()
    for query in queries[:_TIMED_QUERIES]:
        before = time.perf_counter()
        searcher.search(query[np.newaxis], k)
        times_s.append(time.perf_counter() - before)
        if times_s and before - began > _LONGEST_TIMING_S:
            break
    return 1000.0 * float(np.median(times_s))
