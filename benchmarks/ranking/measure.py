"""Losses, the choice of a configuration and the comparison: where every model of the benchmark is measured alike."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.stats import t as student

from benchmarks import CannotMeasure
from benchmarks.ranking.folds import Rows
from watchnext.evaluation.metrics import auc, pairwise_losses, weighted_log_loss, xauc

PARTS = 40
"""Of the users, for intervals; see `estimate`."""

Statistic = Callable[[np.ndarray], float]
"""bool [num_rows of all days], which rows to look at -> a number."""


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


def estimate(statistic: Statistic, users: np.ndarray) -> dict[str, float]:
    """A number with its 95 % interval over users, by the delete-a-group jackknife.

    Users fall into PARTS parts, which part by their code. With v_g the statistic without part g and v their mean, its
    standard error is sqrt((PARTS - 1) / PARTS * sum((v_g - v)^2)). A user's days are one unit, and the statistic may be any
    smooth one, also one of pairs of impressions of different users.

    Args:
        statistic: what to estimate.
        users: int64 [num_rows], codes that carry no order.

    Returns:
        value, low and high; NaN where they are not defined.

    Source: P. Kott, The delete-a-group jackknife, Journal of Official Statistics 17 (2001).
    """
    part = np.random.default_rng(1).permutation(int(users.max()) + 1)[users] % PARTS
    without = np.array([statistic(part != one) for one in range(PARTS)])
    value = statistic(np.ones(len(users), bool))
    error = np.sqrt((PARTS - 1) / PARTS * np.square(without - without.mean()).sum())
    reach = float(student.ppf(0.975, PARTS - 1) * error)
    return {"value": value, "low": value - reach, "high": value + reach}


class Judged:
    """Scores of one model on the test days, as statistics of any part of their rows.

    Args:
        scores: [num_rows] of each day.
        days: their rows.
    """

    def __init__(self, scores: Sequence[np.ndarray], days: Sequence[Rows]) -> None:
        self.scores = np.concatenate(scores)
        self.clicked = np.concatenate([one.clicked for one in days])
        self.watch_time_s = np.concatenate([one.watch_time_s for one in days]).astype(np.float64)
        self.days = np.repeat(np.arange(len(days)), [len(one) for one in days])
        parts = [seconds(one, rows) for one, rows in zip(scores, days, strict=True)]
        self.wrong_s, self.total_s = (np.concatenate(kind) for kind in zip(*parts, strict=True))

    def weighted_pairwise_loss(self, which: np.ndarray) -> float:
        """Of the watch time that was clicked in `which`, the share that is mispredicted; NaN without a pair."""
        total = float(self.total_s[which].sum())
        return float(self.wrong_s[which].sum()) / total if total > 0 else float("nan")

    def auc(self, which: np.ndarray) -> float:
        """Mean over days, weighted by their rows: models of different days need not have one scale."""
        return self._by_day(which, lambda of: auc(self.scores[of], self.clicked[of]))

    def xauc(self, which: np.ndarray) -> float:
        """Of two clicked impressions, whether the longer watch scores higher: mean over days, weighted by their clicks."""
        return self._by_day(which & self.clicked, lambda of: xauc(self.scores[of], self.watch_time_s[of]))

    def _by_day(self, which: np.ndarray, statistic: Statistic) -> float:
        of_days = [which & (self.days == day) for day in range(int(self.days.max()) + 1)]
        values = np.array([statistic(of) if of.any() else np.nan for of in of_days])
        rows = np.array([of.sum() for of in of_days], np.float64)
        known = ~np.isnan(values)
        return float(np.average(values[known], weights=rows[known])) if known.any() else float("nan")


def of_odds(judged: Judged, settings: Mapping[str, float | str]) -> dict[str, Statistic]:
    """What only a model of watch-time odds can be asked: its scores are the odds' logarithm.

    Args:
        judged: scores of that model.
        settings: unit_s, cap_s and odds that it was trained with.

    Returns:
        weighted_log_loss, the mean per impression of the loss that it was trained with, a clicked impression weighing its
        watch time in units, and not the log loss of clicks, of which such odds do not tell the probability;
        weighted_log_loss_of_constant, the least that one score for all these rows reaches; and watch_time_mae_s, of
        unit_s * exp(score) against the watch time of an impression, 0 where it was not clicked.
    """
    unit_s, cap_s, odds = float(settings["unit_s"]), float(settings["cap_s"]), settings["odds"]
    kinds = {"unit_s": unit_s, "cap_s": cap_s, "odds": odds}

    def loss(which: np.ndarray, scores: np.ndarray) -> float:
        outcomes = judged.clicked[which], judged.watch_time_s[which]
        return weighted_log_loss(scores[which], *outcomes, **kinds)  # type: ignore[arg-type]

    def loss_of_constant(which: np.ndarray) -> float:
        positive = np.minimum(judged.watch_time_s, cap_s)[which & judged.clicked].sum() / unit_s
        negative = which.sum() if odds == "impressions" else (which & ~judged.clicked).sum()
        return loss(which, np.full(len(which), np.log(positive / negative)))

    watched_s = np.where(judged.clicked, judged.watch_time_s, 0.0)
    error_s = np.abs(unit_s * np.exp(judged.scores.astype(np.float64)) - watched_s)
    return {
        "weighted_log_loss": lambda which: loss(which, judged.scores),
        "weighted_log_loss_of_constant": loss_of_constant,
        "watch_time_mae_s": lambda which: float(error_s[which].mean()),
    }
