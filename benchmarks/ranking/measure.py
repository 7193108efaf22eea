"""Losses, the choice of a configuration and the comparison: where every model of the benchmark is measured alike."""

from collections.abc import Sequence

import numpy as np

from benchmarks import CannotMeasure
from benchmarks.ranking.folds import Rows
from watchnext.evaluation.metrics import auc, pairwise_losses


def checked(scores: np.ndarray, rows: Rows) -> np.ndarray:
    """The scores, if there is a finite one per row.

    Raises:
        CannotMeasure: there is not.
    """
    if scores.shape != rows.clicked.shape or not np.isfinite(scores).all():
        raise CannotMeasure(f"scores of shape {scores.shape} for {len(rows)} rows, or not finite")
    return scores


def seconds(scores: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mispredicted and total watch time of each row's pairs, s: `watchnext.evaluation.metrics.pairwise_losses`."""
    return pairwise_losses(scores, rows.clicked, rows.watch_time_s, rows.groups)


def pooled_loss(scores: Sequence[np.ndarray], days: Sequence[Rows]) -> float:
    """The weighted pairwise loss of several days: their mispredicted over their total watch time.

    Raises:
        CannotMeasure: no day has a pair.
    """
    parts = [seconds(one, rows) for one, rows in zip(scores, days, strict=True)]
    total = sum(float(of_all.sum()) for _, of_all in parts)
    if total <= 0:
        raise CannotMeasure("no clicked and unclicked impression can be compared: no request has both")
    return sum(float(wrong.sum()) for wrong, _ in parts) / total


def metrics(scores: Sequence[np.ndarray], days: Sequence[Rows]) -> dict[str, float]:
    """weighted_pairwise_loss of all days together, and auc, the mean over days weighted by their rows."""
    rows = np.array([len(one) for one in days], np.float64)
    areas = np.array([auc(one, day.clicked) for one, day in zip(scores, days, strict=True)])
    return {
        "weighted_pairwise_loss": pooled_loss(scores, days),
        "auc": float(np.average(areas, weights=rows)),
    }
