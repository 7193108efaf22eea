"""Linear logistic regression by scikit-learn: one weight per id, per member of a bag, and per form of a number."""

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from benchmarks.ranking.folds import Fold, Rows

MODELS = {
    "logistic_regression": {
        "configs": [
            {"weighted": False, "C": 0.01},
            {"weighted": True, "C": 0.001},
            {"weighted": True, "C": 0.01},
            {"weighted": True, "C": 0.1},
        ],
        "passes": 1,
    }
}
"""`weighted`: clicked impressions by watch time; C: inverse strength of the squared penalty."""


def scores_by_pass(name: str, fold: Fold, config: dict, passes: int, seed: int) -> list[np.ndarray]:
    """Decision function of the held rows, fitted to convergence."""
    del name, passes
    rows = fold.training
    time_s = rows.watch_time_s.astype(np.float64)
    weight = np.where(rows.clicked, time_s / time_s[rows.clicked].mean(), 1.0) if config["weighted"] else None
    model = LogisticRegression(C=config["C"], max_iter=300, random_state=seed % 2**31)
    model.fit(matrix(fold, rows), rows.clicked, sample_weight=weight)
    return [model.decision_function(matrix(fold, fold.held))]


def matrix(fold: Fold, rows: Rows) -> sparse.csr_matrix:
    """[num_rows, num_columns]: ids one-hot, bags as shares, numbers as x, x^2, sqrt(x) of their cumulative and missing."""
    blocks = []
    for one in fold.inputs:
        values = rows.inputs[one.name]
        if one.kind in ("categorical", "multivalent"):
            bags = values.reshape(len(values), -1)
            known = bags > 0
            row, place = np.nonzero(known)
            share = 1.0 / known.sum(axis=1)[row]
            blocks.append(
                sparse.csr_matrix(
                    (share, (row, bags[row, place] - 1)), shape=(len(bags), fold.sizes[one.space])
                )
            )
        else:
            missing = np.isnan(values)
            x = np.where(missing, 0.0, cumulative(values, fold.boundaries.get(one.name)))
            blocks.append(sparse.csr_matrix(np.stack([x, x * x, np.sqrt(x), missing], axis=1)))
    return sparse.hstack(blocks, format="csr")


def cumulative(values: np.ndarray, boundaries: np.ndarray | None) -> np.ndarray:
    """[N] -> the share of training rows below each value, by its quantiles; what has none is in [0, 1] already."""
    if boundaries is None:
        return values
    if not len(boundaries):
        return np.zeros(len(values))
    first = np.searchsorted(boundaries, values, side="left")
    last = np.searchsorted(boundaries, values, side="right")
    return (first + last) / (2.0 * len(boundaries))
