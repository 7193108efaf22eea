"""Ranks, filters, metrics and intervals: the one place where any model of the benchmark is measured.

NumPy alone, so that the environment of the peers and that of the project run the same lines.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks import CannotMeasure
from benchmarks.quality.folds import FILTERS, Fold

KS = (10, 50, 100)
UNRANKED = np.iinfo(np.int64).max
"""The rank of a label that a model cannot recommend or that the filter takes out: a miss in every metric."""

Scorer = Callable[[int, int], np.ndarray]
"""(begin, end) -> scores [end - begin, num_items] of these events; -inf: a video that the model does not know."""

OBJECTIVE = "recall_at_100"
_SCORES_AT_ONCE = 8_000_000


def ranks_by_filter(fold: Fold, scorer: Scorer) -> np.ndarray:
    """The place of each event's label among all videos that the filter leaves, from 1.

    Of videos that score as high as the label, all count as before it.

    Args:
        fold: the day.
        scorer: the model judged.

    Returns:
        int64 [len(FILTERS), num_events].

    Raises:
        CannotMeasure: a score is NaN or positive infinity, or scores have the wrong shape.
    """
    ranks = np.empty((len(FILTERS), fold.num_events), np.int64)
    step = max(1, _SCORES_AT_ONCE // fold.num_items)
    for begin in range(0, fold.num_events, step):
        end = min(begin + step, fold.num_events)
        scores = scorer(begin, end)
        if scores.shape != (end - begin, fold.num_items):
            raise CannotMeasure(f"scores of shape {scores.shape}, not {(end - begin, fold.num_items)}")
        if not (scores < np.inf).all():
            raise CannotMeasure("a score is not a number")
        label = fold.event_item[begin:end]
        own = scores[np.arange(end - begin), label]
        everywhere = (scores >= own[:, None]).sum(axis=1)
        for place, name in enumerate(FILTERS):
            before = everywhere.astype(np.int64)
            known = own > -np.inf
            filtered = fold.filtered(name)
            if filtered is not None:
                event, item = filtered.owners(begin, end)
                before -= np.bincount(
                    event, weights=scores[event, item] >= own[event], minlength=end - begin
                ).astype(np.int64)
                known = known & ~np.isin(np.arange(end - begin), event[item == label[event]])
            ranks[place, begin:end] = np.where(known, before, UNRANKED)
    return ranks


def gains(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """What each event adds to each metric: recall_at_K 0 or 1, map 1 / rank (one positive: MRR); [num_events]."""
    values = {f"recall_at_{k}": (ranks <= k).astype(np.float64) for k in KS}
    values["map"] = np.where(ranks == UNRANKED, 0.0, 1.0 / ranks)
    return values


def metrics(ranks: np.ndarray) -> dict[str, float]:
    """Means over events of `gains`."""
    return {name: float(values.mean()) for name, values in gains(ranks).items()}


def metrics_by_filter(ranks: np.ndarray) -> dict[str, dict[str, float]]:
    """`metrics` of each row of `ranks_by_filter`."""
    return {name: metrics(row) for name, row in zip(FILTERS, ranks, strict=True)}


def best_filter(by_filter: Mapping[str, Mapping[str, float]], metric: str) -> str:
    """The filter with the most of `metric`; the first one of FILTERS among equals."""
    return max(FILTERS, key=lambda name: by_filter[name][metric])


def ratio_low(
    ours: np.ndarray,
    theirs: np.ndarray,
    users: np.ndarray,
    *,
    seed: int,
    draws: int = 4000,
    level: float = 0.95,
) -> float:
    """Lower bound of the paired interval of mean(ours) / mean(theirs), by a percentile bootstrap over users.

    A draw takes as many users as there are, with replacement, and all events of each: events of one user are not
    independent. Both models are measured on the same draw.

    Args:
        ours: [num_events] gains.
        theirs: [num_events] gains of the peer on the same events.
        users: [num_events] int codes.
        seed: of the draws.
        draws: how many.
        level: of the two-sided interval.

    Raises:
        CannotMeasure: the peer gains nothing in some draw, so there is no ratio.
    """
    _, user = np.unique(users, return_inverse=True)
    sums = np.stack([np.bincount(user, weights=gain) for gain in (ours, theirs)], axis=1)
    random = np.random.default_rng(seed)
    ratios = []
    for begin in range(0, draws, 200):
        times = random.multinomial(
            len(sums), np.full(len(sums), 1.0 / len(sums)), size=min(200, draws - begin)
        )
        total = times @ sums
        if (total[:, 1] <= 0).any():
            raise CannotMeasure("the peer gains nothing in a bootstrap draw: too few events to compare on")
        ratios.append(total[:, 0] / total[:, 1])
    return float(np.quantile(np.concatenate(ratios), (1.0 - level) / 2.0))


def compare(
    ranks: Mapping[str, np.ndarray], users: np.ndarray, *, ours: str, our_filter: str, seed: int
) -> dict[str, object]:
    """Ours under its filter against the best peer under the filter that is best for it, by each of two metrics.

    Args:
        ranks: model -> [len(FILTERS), num_events] as `ranks_by_filter` gives them.
        users: [num_events].
        ours: which model is ours.
        our_filter: the filter that ours was chosen with; the peers have the one that is best on this day.
        seed: of the bootstrap.

    Returns:
        best_peer, best_peer_filter, best_peer_by_map, best_peer_by_map_filter, ratio_recall_at_100,
        ratio_recall_at_100_low, ratio_map, ratio_map_low.

    Raises:
        CannotMeasure: there is no peer, or the best one gains nothing.
    """
    peers = [name for name in ranks if name != ours]
    if not peers:
        raise CannotMeasure("there is no peer to compare with")
    result: dict[str, object] = {}
    for metric, key in ((OBJECTIVE, "best_peer"), ("map", "best_peer_by_map")):
        best, by = max(
            ((peer, best_filter(metrics_by_filter(ranks[peer]), metric)) for peer in peers),
            key=lambda pair: gains(ranks[pair[0]][FILTERS.index(pair[1])])[metric].mean(),
        )
        mine = gains(ranks[ours][FILTERS.index(our_filter)])[metric]
        theirs = gains(ranks[best][FILTERS.index(by)])[metric]
        if theirs.sum() <= 0:
            raise CannotMeasure(f"no peer has any {metric}")
        result |= {
            key: best,
            f"{key}_filter": by,
            f"ratio_{metric}": float(mine.mean() / theirs.mean()),
            f"ratio_{metric}_low": ratio_low(mine, theirs, users, seed=seed),
        }
    return result


def concatenate(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Ranks of several days side by side: [len(FILTERS), events of all days]."""
    return np.concatenate(list(parts), axis=1)
