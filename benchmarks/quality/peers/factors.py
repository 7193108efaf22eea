"""Matrix factorisation by the library implicit: ALS, whose users are folded in at the event, and BPR, whose are not."""

from collections.abc import Iterator

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from scipy import sparse

from benchmarks.quality.folds import Fold
from benchmarks.quality.measure import Scorer
from benchmarks.quality.peers.neighbours import bags_of
from benchmarks.quality.peers.popular import with_popular_fallback

PATIENCE = 1
CONFIGS = {
    # Regularisation has to be far above the library's 0.01: implicit adds it as it stands, not per watch.
    "als": [
        {"model": "als", "factors": factors, "alpha": alpha, "regularization": regularization}
        for factors, alpha, regularization in (
            (64, 10.0, 10.0),
            (64, 40.0, 200.0),
            (128, 40.0, 200.0),
            (128, 40.0, 400.0),
            (256, 40.0, 400.0),
        )
    ],
    "bpr": [
        {
            "model": "bpr",
            "factors": factors,
            "learning_rate": rate,
            "regularization": 0.01,
            "iterations": passes,
        }
        for factors, rate, passes in ((16, 0.01, 50), (16, 0.01, 100), (64, 0.005, 100), (64, 0.02, 100))
    ],
}


def fit(fold: Fold, config: dict, seed: int) -> Iterator[Scorer]:
    """Fit; a video that nobody completed in training is unknown."""
    bags = bags_of(fold)
    unknown = np.asarray(bags.sum(axis=0)).ravel() == 0
    yield (
        _als(fold, bags, unknown, config, seed)
        if config["model"] == "als"
        else _bpr(fold, bags, unknown, config, seed)
    )


def _als(fold: Fold, bags: sparse.csr_matrix, unknown: np.ndarray, config: dict, seed: int) -> Scorer:
    model = AlternatingLeastSquares(
        factors=config["factors"],
        alpha=config["alpha"],
        regularization=config["regularization"],
        iterations=15,
        num_threads=1,
        random_state=seed,
    )
    model.fit(bags, show_progress=False)

    def score(begin: int, end: int) -> np.ndarray:
        event, item = fold.context.owners(begin, end)
        rows = sparse.csr_matrix(
            (np.ones(len(item), np.float32), (event, item)), (end - begin, fold.num_items)
        )
        rows.sum_duplicates()
        rows.data[:] = 1.0
        scores = model.recalculate_user(np.arange(end - begin), rows) @ model.item_factors.T
        scores[:, unknown] = -np.inf
        return scores

    return with_popular_fallback(fold, score)


def _bpr(fold: Fold, bags: sparse.csr_matrix, unknown: np.ndarray, config: dict, seed: int) -> Scorer:
    model = BayesianPersonalizedRanking(
        factors=config["factors"],
        learning_rate=config["learning_rate"],
        regularization=config["regularization"],
        iterations=config["iterations"],
        num_threads=1,
        random_state=seed,
    )
    model.fit(bags, show_progress=False)
    trained = np.asarray(bags.sum(axis=1)).ravel() > 0
    average = model.user_factors[trained].mean(axis=0)

    def score(begin: int, end: int) -> np.ndarray:
        users = fold.event_user[begin:end]
        # A user without training rows has random factors: the average user is the better guess.
        factors = np.where(trained[users][:, None], model.user_factors[users], average)
        scores = factors @ model.item_factors.T
        scores[:, unknown] = -np.inf
        return scores

    return score
