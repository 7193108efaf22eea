"""Linear models of a user's bag of watches: item-kNN and EASE. Both fold any history in: scores = bag @ weights."""

from collections.abc import Iterator

import numpy as np
from scipy import linalg, sparse

from benchmarks.quality.folds import Fold
from benchmarks.quality.measure import Scorer
from benchmarks.quality.peers.popular import with_popular_fallback

PATIENCE = 1
CONFIGS = {
    "item_knn": [
        {"model": "item_knn", "neighbours": neighbours, "shrink": shrink, "weighting": weighting}
        for neighbours, shrink, weighting in (
            (100, 20.0, "cosine"),
            (400, 20.0, "cosine"),
            (1500, 20.0, "cosine"),
            (400, 100.0, "tfidf"),
            (1500, 50.0, "tfidf"),
        )
    ],
    "ease": [{"model": "ease", "regularization": value} for value in (200.0, 400.0, 800.0)],
}


def fit(fold: Fold, config: dict, seed: int) -> Iterator[Scorer]:
    """Solve for the weights; a video that nobody completed in training is unknown."""
    del seed
    bags = bags_of(fold)
    known = np.asarray(bags.sum(axis=0)).ravel() > 0
    weights = (
        _ease(bags[:, known], config) if config["model"] == "ease" else _item_knn(bags[:, known], config)
    )

    def score(begin: int, end: int) -> np.ndarray:
        event, item = fold.context.owners(begin, end)
        rows = sparse.csr_matrix(
            (np.ones(len(item), np.float32), (event, item)), (end - begin, fold.num_items)
        )
        rows.data[:] = 1.0
        scores = np.full((end - begin, fold.num_items), -np.inf, np.float32)
        scores[:, known] = rows[:, known] @ weights
        return scores

    yield with_popular_fallback(fold, score)


def bags_of(fold: Fold) -> sparse.csr_matrix:
    """float32 [num_users, num_items]: 1 where a user completed a video in training."""
    ones = np.ones(len(fold.train_user), np.float32)
    bags = sparse.csr_matrix((ones, (fold.train_user, fold.train_item)), (fold.num_users, fold.num_items))
    bags.sum_duplicates()
    bags.data[:] = 1.0
    return bags


def _ease(bags: sparse.csr_matrix, config: dict) -> np.ndarray:
    """B = I - P diag(1 / diag P), P = (X'X + lambda I)^-1 (Steck 2019, arXiv 1905.03375, equation 8)."""
    gram = (bags.T @ bags).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += config["regularization"]
    factor = linalg.cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
    inverse = linalg.cho_solve(factor, np.eye(len(gram)), overwrite_b=True, check_finite=False)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights.astype(np.float32)


def _item_knn(bags: sparse.csr_matrix, config: dict) -> np.ndarray:
    """Cosine with shrinkage, s_ij = x_i . x_j / (|x_i| |x_j| + shrink), the nearest of each video kept."""
    if config["weighting"] == "tfidf":
        users = bags.shape[0]
        frequency = np.asarray(bags.sum(axis=0)).ravel()
        bags = bags @ sparse.diags(np.log(users / frequency).astype(np.float32))
    gram = (bags.T @ bags).toarray()
    norm = np.sqrt(np.diag(gram))
    weights = gram / (np.outer(norm, norm) + config["shrink"])
    np.fill_diagonal(weights, 0.0)
    keep = min(config["neighbours"], len(weights) - 1)
    floor = np.partition(weights, -keep, axis=1)[:, [-keep]]
    return np.where(weights >= floor, weights, 0.0).astype(np.float32).T
