"""The same list for everybody: completed watches of a stretch of time, or weighted by how recent they are."""

from collections.abc import Iterator

import numpy as np

from benchmarks.quality.folds import Fold
from benchmarks.quality.measure import Scorer

PATIENCE = 1
CONFIGS = {
    "most_popular": [{"days": None}],
    "popular_7_days": [{"days": 7}],
    "popular_decayed": [{"half_life_days": days} for days in (0.5, 1.0, 2.0, 4.0)],
}


def fit(fold: Fold, config: dict, seed: int) -> Iterator[Scorer]:
    """Count; a video that nobody completed in training is unknown."""
    del seed
    place = places(fold, **config)
    yield lambda begin, end: np.broadcast_to(place, (end - begin, fold.num_items))


def places(fold: Fold, days: float | None = None, half_life_days: float | None = None) -> np.ndarray:
    """float32 [num_items]: 0 for the least popular of the known videos, -inf for unknown ones.

    Of videos as often watched in the stretch of time, the one more often watched over all time comes first, then the
    smaller code. A watch from before the logs has no instant: it counts over all time alone.
    """
    age = fold.train_age_days
    if half_life_days is not None:
        weight = np.where(np.isnan(age), 0.0, 0.5 ** (np.nan_to_num(age) / half_life_days))
    elif days is not None:
        weight = (age <= days).astype(float)
    else:
        weight = np.ones(len(age))
    recent = np.bincount(fold.train_item, weights=weight, minlength=fold.num_items)
    overall = np.bincount(fold.train_item, minlength=fold.num_items)
    order = np.lexsort((-np.arange(fold.num_items), overall, recent))
    place = np.empty(fold.num_items, np.float32)
    place[order] = np.arange(fold.num_items)
    place -= place[overall > 0].min()
    place[overall == 0] = -np.inf
    return place


def with_popular_fallback(fold: Fold, scorer: Scorer) -> Scorer:
    """`scorer`, but an event without a known watch before it gets the popular videos of the last 7 days.

    A bag without a watch scores every video 0, which recommends nothing; nobody would serve that.
    """
    place = places(fold, days=7)
    known = np.isfinite(place)
    event, item = fold.context.owners(0, fold.num_events)
    empty = np.bincount(event, weights=known[item], minlength=fold.num_events) == 0

    def score(begin: int, end: int) -> np.ndarray:
        scores = scorer(begin, end)
        scores[empty[begin:end]] = place
        return scores

    return score
