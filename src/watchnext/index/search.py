"""Finding the candidates with the largest dot product: what every index answers, and the exact answer."""

from typing import Protocol

import numpy as np


class Searcher(Protocol):
    """Something that finds the candidates with the largest dot product. Searching is thread-safe."""

    def is_exact(self) -> bool:
        """Whether the answer is that of brute force."""
        ...

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best candidates of each query, best first.

        Args:
            queries: [num_queries, embedding_dim] float32.
            k: how many; a corpus of fewer candidates gives all it has.

        Returns:
            rows int32 [num_queries, min(k, num_candidates)] (row r of the candidate embeddings; -1 where an
            approximate index found fewer) and scores float32 of the same shape (-inf there). What an approximate index
            found only because many were asked for stands behind the others, whatever it scores.
        """
        ...


class ExactSearcher:
    """Brute force over all candidates; candidates that score alike come in order of their rows.

    Args:
        embeddings: [num_candidates, embedding_dim] float32.
    """

    def __init__(self, embeddings: np.ndarray) -> None:
        if embeddings.ndim != 2:
            raise ValueError(f"candidate embeddings have two axes, not {embeddings.ndim}")
        self._embeddings = np.ascontiguousarray(embeddings, dtype=np.float32)

    def is_exact(self) -> bool:
        return True

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Searcher.search`."""
        checked = as_queries(queries, self._embeddings.shape[1])
        k = min(k, len(self._embeddings))
        rows = np.empty((len(checked), k), np.int32)
        scores = np.empty((len(checked), k), np.float32)
        step = max(1, 50_000_000 // max(1, len(self._embeddings)))
        for begin in range(0, len(checked), step):
            block = checked[begin : begin + step] @ self._embeddings.T
            # argpartition alone would leave ties at the border to chance; there are few rows past it to sort.
            border = -np.partition(-block, k - 1, axis=1)[:, k - 1] if k else np.empty(len(block))
            for offset, (row_scores, least) in enumerate(zip(block, border, strict=True)):
                near = np.flatnonzero(row_scores >= least)
                best = near[np.argsort(-row_scores[near], kind="stable")[:k]]
                rows[begin + offset], scores[begin + offset] = best, row_scores[best]
        return rows, scores


def as_queries(queries: np.ndarray, embedding_dim: int) -> np.ndarray:
    """`queries` as contiguous float32 [num_queries, embedding_dim]; ValueError for any other shape."""
    if queries.ndim != 2 or queries.shape[1] != embedding_dim:
        raise ValueError(f"queries must have shape [num_queries, {embedding_dim}], not {list(queries.shape)}")
    return np.ascontiguousarray(queries, dtype=np.float32)
