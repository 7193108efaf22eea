"""What models are judged by, each beside its equation. Plain NumPy on ranks, scores and labels."""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from watchnext.errors import InputError

Odds = Literal["unclicked", "impressions"]
"""As of `models.losses.weighted_logistic_loss`."""

UNRANKED = np.iinfo(np.int64).max
"""The rank of a label that a model cannot recommend, e.g. because it is not in its vocabulary."""


def label_ranks(scores: np.ndarray, labels: np.ndarray, excluded: np.ndarray | None = None) -> np.ndarray:
    """The place of each event's label among all candidates, from 1.

    Of candidates that score as high as the label, all count as before it: a model that scores everything alike
    ranks every label last, not first.

    Args:
        scores: [num_events, num_candidates].
        labels: [num_events] vocabulary index from 1; 0 = not in the vocabulary.
        excluded: [num_events, any] vocabulary indices that may not be recommended to that event, 0 = padding.

    Returns:
        [num_events] int64 ranks; UNRANKED for labels that are unknown, excluded, or scored NaN.
    """
    if scores.shape[0] != labels.shape[0]:
        raise ValueError(f"{scores.shape[0]} rows of scores for {labels.shape[0]} labels")
    known = labels > 0
    own = scores[np.arange(len(labels)), np.maximum(labels - 1, 0)]
    ranks = (scores >= own[:, None]).sum(axis=1).astype(np.int64)
    if excluded is not None and excluded.size:
        bags = np.sort(excluded, axis=1)
        first = np.ones(bags.shape, dtype=bool)
        first[:, 1:] = bags[:, 1:] != bags[:, :-1]
        their = np.take_along_axis(scores, np.maximum(bags - 1, 0).astype(np.int64), axis=1)
        ranks -= (first & (bags > 0) & (their >= own[:, None])).sum(axis=1)
        known &= ~(excluded == labels[:, None]).any(axis=1)
    return np.where(known & ~np.isnan(own), ranks, UNRANKED)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two scores of the same items, ties at their mean rank; NaN where one is constant."""
    ranks = [_mean_ranks(values) for values in (first, second)]
    if len(first) < 2 or min(float(np.ptp(values)) for values in ranks) == 0.0:
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _mean_ranks(values: np.ndarray) -> npt.NDArray[np.float64]:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count - 1) / 2.0)[place.reshape(-1)]


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share of events whose label is among the first `k`. One relevant candidate per event.

    Args:
        ranks: [num_events] ranks from 1.
        k: at least 1.
    """
    _require_k(k)
    return float(np.mean(ranks <= k))


def precision_at_k(ranks: np.ndarray, k: int) -> float:
    """Share of the first `k` that is relevant, mean over events: recall_at_k / k, one relevant candidate each."""
    return recall_at_k(ranks, k) / k


def average_precisions(ranks: np.ndarray) -> npt.NDArray[np.float64]:
    """[num_events] of 1 / rank: average precision where each event has one relevant candidate. UNRANKED is 0.

    Args:
        ranks: [num_events] ranks from 1.
    """
    return np.where(ranks == UNRANKED, 0.0, 1.0 / ranks)


def mean_average_precision(ranks: np.ndarray) -> float:
    """Mean over events of `average_precisions`.

    Args:
        ranks: [num_events] ranks from 1.
    """
    return float(np.mean(average_precisions(ranks)))


def ndcg_at_k(ranks: np.ndarray, k: int) -> float:
    """Mean over events of 1 / log2(1 + rank) where rank <= k, else 0; the ideal gain of one relevant candidate is 1.

    Args:
        ranks: [num_events] ranks from 1.
        k: at least 1.
    """
    _require_k(k)
    gain = 1.0 / np.log2(1.0 + ranks.astype(np.float64))
    return float(np.mean(np.where(ranks <= k, gain, 0.0)))


def index_recall_at_k(rows: np.ndarray, exact_rows: np.ndarray, k: int) -> float:
    """Share of the exact first `k` that an index also finds, mean over queries; order within the `k` is ignored.

    Args:
        rows: [num_queries, >= k] candidates the index found; -1 = none.
        exact_rows: [num_queries, >= k] those of exact search.
        k: at least 1.
    """
    _require_k(k)
    if min(rows.shape[1], exact_rows.shape[1]) < k:
        raise ValueError(
            f"recall at {k} needs {k} columns, there are {rows.shape[1]} and {exact_rows.shape[1]}"
        )
    found = [len(np.intersect1d(a, b)) for a, b in zip(rows[:, :k], exact_rows[:, :k], strict=True)]
    return float(np.mean(found) / k)


def pairwise_losses(
    scores: np.ndarray, clicked: np.ndarray, watch_time_s: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mispredicted and total watch time of each impression's pairs (paper, section 4.3).

    A pair is a clicked and an unclicked impression of one group. If the unclicked one scores higher, the watch
    time of the clicked one is mispredicted; if both score alike, half of it. Sorting once, O(n log n).

    Args:
        scores: [num_impressions].
        clicked: [num_impressions] bool.
        watch_time_s: [num_impressions] in seconds; that of unclicked impressions is ignored.
        groups: [num_impressions] integers; impressions shown to one user together.

    Returns:
        mispredicted_s [num_impressions] and total_s [num_impressions], 0 for unclicked impressions.
    """
    lengths = {len(scores), len(clicked), len(watch_time_s), len(groups)}
    if len(lengths) != 1:
        raise ValueError(f"arrays of different lengths {sorted(lengths)}")
    if np.isnan(scores).any():
        raise InputError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not a number", where="pairwise loss"
        )
    mispredicted, total = np.zeros(len(scores)), np.zeros(len(scores))
    if len(scores) == 0:
        return mispredicted, total
    clicked = clicked.astype(bool)
    order = np.lexsort((scores, groups))
    group, score, negative = groups[order], scores[order], ~clicked[order]
    through = np.cumsum(negative)
    before = through - negative

    new_group = np.r_[True, group[1:] != group[:-1]]
    new_tie = new_group | np.r_[True, score[1:] != score[:-1]]
    group_begin, group_end = _runs(new_group)
    tie_begin, tie_end = _runs(new_tie)
    negatives = through[group_end] - before[group_begin]
    above = through[group_end] - through[tie_end]
    alike = through[tie_end] - before[tie_begin]

    time = np.where(clicked, watch_time_s, 0.0)[order]
    mispredicted[order] = time * (above + 0.5 * alike)
    total[order] = time * negatives
    return mispredicted, total


def weighted_pairwise_loss(
    scores: np.ndarray, clicked: np.ndarray, watch_time_s: np.ndarray, groups: np.ndarray
) -> float:
    """The paper's "weighted, per-user loss": mispredicted over total watch time of all pairs (section 4.3).

    0 is perfect, 0.5 is what constant scores get, NaN says that there is no pair. See `pairwise_losses`.
    """
    mispredicted, total = pairwise_losses(scores, clicked, watch_time_s, groups)
    return float(mispredicted.sum() / total.sum()) if total.sum() > 0 else float("nan")


def auc(scores: np.ndarray, clicked: np.ndarray) -> float:
    """Probability that a clicked impression scores above an unclicked one, ties half; NaN without one of them.

    Args:
        scores: [num_impressions].
        clicked: [num_impressions] bool.
    """
    one_group = np.zeros(len(scores), np.int64)
    return 1.0 - weighted_pairwise_loss(scores, clicked, np.ones(len(scores)), one_group)


def xauc(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Share of pairs with different observed values that are predicted in their order, ties half; NaN without a pair.

    AUC for a continuous outcome: over clicked impressions, how well watch time is ordered. It is (d + 1) / 2 with
    Somers' d, which Kendall's tau-b gives in O(n log n).

    Args:
        predicted: [num_impressions].
        observed: [num_impressions], e.g. watch time in seconds.
    """
    pairs, differ = (_different_pairs(values) for values in (observed, predicted))
    if pairs == 0:
        return float("nan")
    if differ == 0:
        return 0.5
    concordant_less_discordant = stats.kendalltau(predicted, observed).statistic * math.sqrt(pairs * differ)
    return float((concordant_less_discordant / pairs + 1.0) / 2.0)


def _different_pairs(values: np.ndarray) -> float:
    """How many pairs of `values` are not equal."""
    _, count = np.unique(values, return_counts=True)
    return (len(values) * (len(values) - 1) - float((count * (count - 1.0)).sum())) / 2.0


def weighted_log_loss(
    logits: np.ndarray,
    clicked: np.ndarray,
    watch_time_s: np.ndarray,
    *,
    unit_s: float,
    cap_s: float,
    odds: Odds = "unclicked",
) -> float:
    """The objective of weighted logistic regression, mean per impression: `models.losses.weighted_logistic_loss`.

    It compares models of the same `unit_s`, `cap_s` and `odds` only. The logits are those of watch-time odds, not of
    a click, so that the plain log loss of clicks would say nothing.
    """
    z = logits.astype(np.float64)
    weight = np.where(clicked.astype(bool), np.minimum(watch_time_s, cap_s) / unit_s, 0.0)
    negative = np.ones(len(z)) if odds == "impressions" else 1.0 - clicked
    return float(np.mean(weight * np.logaddexp(0.0, -z) + negative * np.logaddexp(0.0, z)))


def calibration(
    predicted_s: np.ndarray, clicked: np.ndarray, watch_time_s: np.ndarray, bins: int = 10
) -> dict[str, np.ndarray]:
    """Predicted against observed watch time, in bins of equal count by predicted value.

    Weighted logistic regression learns odds, sum(T) / (N - k); these exceed the mean watch time of an
    impression, sum(T) / N, by 1 / (1 - click rate). Both are given, so that the approximation shows.

    Args:
        predicted_s: [num_impressions] seconds.
        clicked: [num_impressions] bool.
        watch_time_s: [num_impressions] seconds; ignored where unclicked.
        bins: how many.

    Returns:
        Arrays of at most `bins` values: impressions, predicted_s, observed_s = sum(T) / N, and
        observed_odds_s = sum(T) / (N - k) (NaN where all were clicked).
    """
    clicked = clicked.astype(bool)
    order = np.argsort(predicted_s, kind="stable")
    time = np.where(clicked, watch_time_s, 0.0)
    parts = [part for part in np.array_split(order, bins) if len(part)]
    unclicked = np.array([(~clicked[part]).sum() for part in parts], dtype=float)
    watched = np.array([time[part].sum() for part in parts])
    return {
        "impressions": np.array([len(part) for part in parts]),
        "predicted_s": np.array([predicted_s[part].mean(dtype=np.float64) for part in parts]),
        "observed_s": np.array([time[part].mean() for part in parts]),
        "observed_odds_s": np.divide(
            watched, unclicked, out=np.full(len(parts), np.nan), where=unclicked > 0
        ),
    }


def calibration_ratios(
    predicted_s: np.ndarray, clicked: np.ndarray, watch_time_s: np.ndarray, *, odds: Odds = "unclicked"
) -> Mapping[str, float]:
    """Predicted over observed watch time: of all impressions, and the least and the largest of its deciles.

    Returns:
        calibration: mean prediction over the observed mean watch time of an impression; odds_calibration: over the
        observed odds (see `calibration`); decile_calibration_least and _largest: of the ratios of the deciles by
        prediction, each against what a model of these `odds` is to predict. NaN where nothing was watched.
    """
    whole = calibration(predicted_s, clicked, watch_time_s, bins=1)
    names = ("calibration", "odds_calibration", "decile_calibration_least", "decile_calibration_largest")
    if not len(whole["predicted_s"]):
        return dict.fromkeys(names, float("nan"))
    deciles = calibration(predicted_s, clicked, watch_time_s)
    learned = "observed_odds_s" if odds == "unclicked" else "observed_s"
    by_decile = _ratio(deciles["predicted_s"], deciles[learned])
    known = by_decile[np.isfinite(by_decile)]
    return {
        "calibration": float(_ratio(whole["predicted_s"], whole["observed_s"])[0]),
        "odds_calibration": float(_ratio(whole["predicted_s"], whole["observed_odds_s"])[0]),
        "decile_calibration_least": float(known.min()) if len(known) else float("nan"),
        "decile_calibration_largest": float(known.max()) if len(known) else float("nan"),
    }


def _ratio(predicted: np.ndarray, observed: np.ndarray) -> npt.NDArray[np.float64]:
    return np.divide(predicted, observed, out=np.full(len(predicted), np.nan), where=observed > 0)


def _runs(new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each place the first and the last place of its run; `new` is True where a run begins."""
    begins = np.flatnonzero(new)
    ends = np.r_[begins[1:], len(new)] - 1
    run = np.cumsum(new) - 1
    return begins[run], ends[run]


def _require_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"K must be at least 1, it is {k}")
