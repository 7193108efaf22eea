"""Approximate search with ScaNN, stored so that the directory can be moved."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scann import scann_ops_pybind

from watchnext.console import quiet_native_logs
from watchnext.errors import InputError
from watchnext.index.search import as_queries

_SEARCHER = "searcher.json"
_ASSETS = "scann_assets.pbtxt"
_DOCIDS = "scann_docids.pkl"
_TRAINING_SAMPLE = 100_000
_CODEBOOK_SIZE = 16
"""Asymmetric hashing with 4 bits learns 16 centres, and cannot from fewer candidates."""


class ScannSearcher:
    """ScaNN over dot products. Make one with `build` or `load`.

    Attributes:
        kind: `scann_exact` for ScaNN's brute force, `scann` for a tree.
        num_candidates: size of the corpus.
        embedding_dim: of candidates and queries.
        leaves_to_search: leaves of the tree that a query looks into; None for brute force.
        reorder: candidates scored again exactly, at least as many as are asked for; None for brute force.
    """

    def __init__(
        self,
        native: Any,
        *,
        kind: str,
        num_candidates: int,
        embedding_dim: int,
        leaves_to_search: int | None = None,
        reorder: int | None = None,
    ) -> None:
        self._native = native
        self.kind = kind
        self.num_candidates = num_candidates
        self.embedding_dim = embedding_dim
        self.leaves_to_search = leaves_to_search
        self.reorder = reorder

    @classmethod
    def build(
        cls,
        embeddings: np.ndarray,
        *,
        brute_force_below: int,
        num_neighbors: int = 200,
        num_leaves: int | None = None,
        leaves_to_search: int | None = None,
        reorder: int | None = None,
        soar_lambda: float | None = 1.5,
        threads: int = 2,
    ) -> "ScannSearcher":
        """Build an index of `embeddings`.

        A corpus below `brute_force_below` gets ScaNN's exact search: scoring all of it is as fast as a tree.
        A larger one gets a partition into about sqrt(num_candidates) leaves, in which each candidate stands in
        two (SOAR), 4-bit asymmetric hashing within them, and exact re-scoring of the best `reorder`.

        Args:
            embeddings: [num_candidates, embedding_dim] float32, row r = vocabulary index r + 1.
            brute_force_below: corpus size from which on search is approximate.
            num_neighbors: the K that the default sizes below are made for.
            num_leaves: default about sqrt(num_candidates).
            leaves_to_search: default three tenths of the leaves, at least 10.
            reorder: default 5 * num_neighbors, candidates re-scored exactly.
            soar_lambda: None for no second leaf.
            threads: for building.

        Raises:
            InputError: the corpus is empty, or an embedding is not a number.
        """
        if embeddings.ndim != 2 or len(embeddings) == 0:
            raise InputError(
                "there are no candidates to index", where=f"embeddings of shape {list(embeddings.shape)}"
            )
        bad = ~np.isfinite(embeddings).all(axis=1)
        if bad.any():
            raise InputError(
                f"{int(bad.sum())} of {len(embeddings)} candidate embeddings are not finite",
                where="candidate_embeddings.npy",
                offenders=[f"row {row}" for row in np.flatnonzero(bad)[:5]],
                remedy="train_retrieval diverged: lower its learning_rate",
            )
        corpus_size, embedding_dim = embeddings.shape
        exact = corpus_size < max(brute_force_below, _CODEBOOK_SIZE)
        leaves = num_leaves or default_leaves(corpus_size)
        leaves_to_search = min(leaves, leaves_to_search or max(10, 3 * leaves // 10))
        reorder = min(corpus_size, reorder or 5 * num_neighbors)
        builder = scann_ops_pybind.builder(
            np.ascontiguousarray(embeddings, dtype=np.float32), min(num_neighbors, corpus_size), "dot_product"
        ).set_n_training_threads(threads)
        if exact:
            builder = builder.score_brute_force()
        else:
            builder = (
                builder.tree(
                    num_leaves=leaves,
                    num_leaves_to_search=leaves_to_search,
                    training_sample_size=min(corpus_size, _TRAINING_SAMPLE),
                    soar_lambda=soar_lambda if leaves > 1 else None,
                )
                .score_ah(2, anisotropic_quantization_threshold=0.2)
                .reorder(reorder)
            )
        with quiet_native_logs():
            native = builder.build()
        return cls(
            native,
            kind="scann_exact" if exact else "scann",
            num_candidates=corpus_size,
            embedding_dim=embedding_dim,
            leaves_to_search=None if exact else leaves_to_search,
            reorder=None if exact else reorder,
        )

    def tuned(self, *, leaves_to_search: int, reorder: int) -> "ScannSearcher":
        """The same tree, searched otherwise: both sizes are looked at when a query comes, not when a tree is built.

        Args:
            leaves_to_search: leaves that a query looks into.
            reorder: candidates scored again exactly.

        Raises:
            ValueError: this is brute force.
        """
        if self.is_exact():
            raise ValueError("brute force looks at everything: there is nothing to tune")
        return ScannSearcher(
            self._native,
            kind=self.kind,
            num_candidates=self.num_candidates,
            embedding_dim=self.embedding_dim,
            leaves_to_search=leaves_to_search,
            reorder=min(reorder, self.num_candidates),
        )

    def is_exact(self) -> bool:
        """Whether this is ScaNN's brute force."""
        return self.kind == "scann_exact"

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """See `watchnext.index.search.Searcher.search`.

        What a query is answered depends neither on the queries beside it nor, for the first `reorder`, on `k`: a source's
        first candidates are an input of the ranker, which the pipeline computes for a day of requests and a server for one,
        of which it asks more. So queries are searched one by one (a batch breaks ties of quantised scores otherwise, and
        takes as long), and what is asked beyond `reorder` comes from a wider search and stands behind.
        """
        checked = as_queries(queries, self.embedding_dim)
        k = min(k, self.num_candidates)
        rows = np.full((len(checked), k), -1, np.int32)
        scores = np.full((len(checked), k), -np.inf, np.float32)
        if k == 0:
            return rows, scores
        for number, query in enumerate(checked):
            found, values = self._nearest(query, k)
            rows[number, : len(found)], scores[number, : len(found)] = found, values
        return rows, scores

    def _nearest(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """[embedding_dim] -> rows and scores, at most [k] of each."""
        if self.leaves_to_search is None or self.reorder is None:
            return self._native.search(query, final_num_neighbors=k)
        sizes = {"leaves_to_search": self.leaves_to_search, "pre_reorder_num_neighbors": self.reorder}
        found, values = self._native.search(query, final_num_neighbors=min(k, self.reorder), **sizes)
        if k > self.reorder:
            sizes["pre_reorder_num_neighbors"] = k
            wider, their_values = self._native.search(query, final_num_neighbors=k, **sizes)
            behind = np.flatnonzero(~np.isin(wider, found))[: k - len(found)]
            found = np.concatenate([found, wider[behind]])
            values = np.concatenate([values, their_values[behind]])
        return found, values

    def save(self, directory: Path) -> None:
        """Write the index into `directory`, which may be moved and copied afterwards."""
        directory.mkdir(parents=True, exist_ok=True)
        with quiet_native_logs():
            self._native.serialize(str(directory), relative_path=True)
        content = {
            "kind": self.kind,
            "num_candidates": self.num_candidates,
            "embedding_dim": self.embedding_dim,
            "leaves_to_search": self.leaves_to_search,
            "reorder": self.reorder,
        }
        (directory / _SEARCHER).write_text(json.dumps(content) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "ScannSearcher":
        """Read what `save` wrote, wherever it stands now.

        Raises:
            InputError: there is no index; it holds a pickle, which ScaNN would execute; or it names files outside
                of it, so that a copy would silently read the original, or anything else.
        """
        for name in (_SEARCHER, _ASSETS):
            if not (directory / name).is_file():
                raise InputError(
                    f"there is no {name}", where=str(directory), remedy="run the stage build_index"
                )
        if (directory / _DOCIDS).exists():
            raise InputError(
                f"the index holds {_DOCIDS}, a pickle that would be executed when it is loaded",
                where=str(directory),
                remedy="build the index with the stage build_index, which writes none",
            )
        outside = [
            line.strip()
            for line in (directory / _ASSETS).read_text().splitlines()
            if "asset_path:" in line and not _lies_within(line.split('"')[1])
        ]
        if outside:
            raise InputError(
                "the index names its files by absolute paths, or by paths that lead out of it",
                where=str(directory / _ASSETS),
                offenders=outside,
                remedy="build the index anew with the stage build_index",
            )
        content = json.loads((directory / _SEARCHER).read_text())
        with quiet_native_logs():
            native = scann_ops_pybind.load_searcher(str(directory))
        return cls(native, **content)


def default_leaves(corpus_size: int) -> int:
    """Leaves of a tree over so many candidates: about the square root."""
    return max(1, round(corpus_size**0.5))


def _lies_within(asset: str) -> bool:
    path = PurePosixPath(asset)
    return not path.is_absolute() and ".." not in path.parts
