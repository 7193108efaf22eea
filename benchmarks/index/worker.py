"""One way to search, built on one set of embeddings and measured: how much it finds, how fast, at which cost.

python -m benchmarks.index.worker brute_force|scann|faiss|hnswlib --set DIR --out FILE

DIR holds `candidates.npy` [num_candidates, D], `queries.npy` [num_queries, D] and `truth.npy` [num_queries, K], the exact
first K of each query. Queries are asked one by one, by one thread, as requests ask. Every library gets settings to choose
from; what counts is the fastest that finds FLOOR of the exact first K.
"""

import argparse
import functools
import gc
import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FLOOR = 0.98
ROUNDS = 3
TIMED_QUERIES = 100

Array = np.ndarray
Ask = Callable[[Array, int], Array]
"""One query [D], k -> rows [k]."""


def brute_force(candidates: Array, k: int) -> Iterator[tuple[dict[str, Any], Ask]]:
    """ScaNN's exact search: the one that serving uses for small corpora."""
    from watchnext.index.scann import ScannSearcher

    searcher = ScannSearcher.build(candidates, brute_force_below=len(candidates) + 1, num_neighbors=k)
    yield {}, functools.partial(_ask_ours, searcher)


def _ask_ours(searcher: Any, query: Array, k: int) -> Array:
    rows: Array = searcher.search(query[np.newaxis], k)[0][0]
    return rows


def scann(candidates: Array, k: int) -> Iterator[tuple[dict[str, Any], Ask]]:
    """The tree that the stage build_index builds."""
    from watchnext.index.scann import ScannSearcher, default_leaves

    tree = ScannSearcher.build(candidates, brute_force_below=0, num_neighbors=k)
    leaves = default_leaves(len(candidates))
    shares = (0.004, 0.008, 0.015, 0.03, 0.05, 0.06, 0.07, 0.08, 0.1, 0.2, 0.4)
    for searched in sorted({max(1, round(share * leaves)) for share in shares}):
        for factor in (1, 2, 3, 4):
            searcher = tree.tuned(leaves_to_search=searched, reorder=factor * k)
            yield (
                {"leaves_to_search": searched, "reorder": factor * k},
                functools.partial(_ask_ours, searcher),
            )


def faiss(candidates: Array, k: int) -> Iterator[tuple[dict[str, Any], Ask]]:
    """Inverted lists: of the vectors themselves, and of 4-bit codes whose best are scored again, as ScaNN does."""
    import faiss as library

    library.omp_set_num_threads(2)
    dim = candidates.shape[1]
    lists = max(1, round(len(candidates) ** 0.5))
    for factory in (f"IVF{lists},Flat", f"IVF{lists},PQ{dim // 2}x4fs,RFlat"):
        library.omp_set_num_threads(2)
        index = library.index_factory(dim, factory, library.METRIC_INNER_PRODUCT)
        index.train(candidates[np.random.default_rng(1).permutation(len(candidates))[: 100 * lists]])
        index.add(candidates)
        library.omp_set_num_threads(1)
        refined = factory.endswith("RFlat")
        for probes in (2, 4, 8, 16, 32, 64, 80, 96, 112, 128):
            for factor in (2, 3, 4) if refined else (1,):
                inner = library.downcast_index(index.base_index) if refined else index
                inner.nprobe = min(probes, lists)
                if refined:
                    index.k_factor = factor
                yield (
                    {"index": factory, "nprobe": probes, "k_factor": factor},
                    functools.partial(_ask_faiss, index),
                )


def _ask_faiss(index: Any, query: Array, k: int) -> Array:
    rows: Array = index.search(query[np.newaxis], k)[1][0]
    return rows


def hnswlib(candidates: Array, k: int) -> Iterator[tuple[dict[str, Any], Ask]]:
    """A hierarchical graph.

    Its links want distances. One more component makes all candidates equally long, so that the nearest one is the one with
    the largest product (Bachrach et al., 2014); of products alone it finds far fewer.
    """
    import hnswlib as library

    length2 = np.einsum("nd,nd->n", candidates, candidates)
    rest = np.sqrt(np.maximum(length2.max() - length2, 0.0))
    index = library.Index(space="l2", dim=candidates.shape[1] + 1)
    index.init_index(max_elements=len(candidates), M=16, ef_construction=100, random_seed=1)
    index.add_items(np.concatenate([candidates, rest[:, np.newaxis]], axis=1), num_threads=2)
    for wider in (1, 1.5, 2, 2.5, 2.75, 3, 5, 10, 20):
        index.set_ef(round(wider * k))
        yield {"M": 16, "ef": round(wider * k)}, functools.partial(_ask_hnswlib, index)


def _ask_hnswlib(index: Any, query: Array, k: int) -> Array:
    rows: Array = index.knn_query(np.append(query, np.float32(0.0))[np.newaxis], k, num_threads=1)[0][0]
    return rows


WAYS: dict[str, Callable[[Array, int], Iterator[tuple[dict[str, Any], Ask]]]] = {
    "brute_force": brute_force,
    "scann": scann,
    "faiss": faiss,
    "hnswlib": hnswlib,
}

_LIBRARIES = {
    "brute_force": "watchnext.index.scann",
    "scann": "watchnext.index.scann",
    "faiss": "faiss",
    "hnswlib": "hnswlib",
}


def measure(way: str, candidates: Array, queries: Array, truth: Array) -> dict[str, Any]:
    """Build it, and measure every setting.

    Returns:
        build_s and memory_gb (what the process has grown by) once the first setting can be asked, and `settings`: each with
        `recall` and `ms`, the median of one query, of several rounds.
    """
    k = truth.shape[1]
    importlib.import_module(_LIBRARIES[way])  # neither its time nor its memory is the index's
    gc.collect()
    before, began = _rss_gb(), time.perf_counter()
    settings: list[dict[str, Any]] = []
    built: dict[str, float] = {}
    for setting, ask in WAYS[way](candidates, k):
        if not built:
            built = {"build_s": time.perf_counter() - began, "memory_gb": _rss_gb() - before}
        found = np.stack([ask(query, k) for query in queries])
        medians_ms = [_median_ms(ask, queries, k) for _ in range(ROUNDS)]
        settings.append({**setting, "recall": recall(found, truth), "ms": float(np.median(medians_ms))})
    return {**built, "settings": settings}


def recall(found: Array, truth: Array) -> float:
    """Share of the exact first K that was found, mean over queries."""
    hits = [len(np.intersect1d(rows, exact)) for rows, exact in zip(found, truth, strict=True)]
    return float(np.mean(hits)) / truth.shape[1]


def fastest(settings: list[dict[str, Any]], floor: float = FLOOR) -> dict[str, Any] | None:
    """The fastest setting that finds enough; None where none does."""
    return min((one for one in settings if one["recall"] >= floor), key=lambda one: one["ms"], default=None)


def _median_ms(ask: Ask, queries: Array, k: int) -> float:
    times_ms = []
    for query in queries[:TIMED_QUERIES]:
        began = time.perf_counter()
        ask(query, k)
        times_ms.append(1000.0 * (time.perf_counter() - began))
    return float(np.median(times_ms))


def _rss_gb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arrays = (np.load(arguments.set / f"{name}.npy") for name in ("candidates", "queries", "truth"))
    arguments.out.write_text(json.dumps(measure(arguments.way, *arrays)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
