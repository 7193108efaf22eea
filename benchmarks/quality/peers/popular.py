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
    """Count; of videos as often watched in the stretch of time, the one more often watched over all time comes first.

    A watch from before the logs has no instant: it counts over all time alone.
    """
    del seed
    age = fold.train_age_days
    if "half_life_days" in config:
        weight = np.where(np.isnan(age), 0.0, 0.5 ** (np.nan_to_num(age) / config["half_life_days"]))
    elif config["days"] is None:
        weight = np.ones(len(age))
    else:
        weight = (age <= config["days"]).astype(float)
    recent = np.bincount(fold.train_item, weights=weight, minlength=fold.num_items)
    overall = np.bincount(fold.train_item, minlength=fold.num_items)
    # Places, not counts: ties are broken here, by all time and then by code.
    order = np.lexsort((-np.arange(fold.num_items), overall, recent))
    place = np.empty(fold.num_items)
    place[order] = np.arange(fold.num_items)
    place[overall == 0] = -np.inf
    yield lambda begin, end: np.broadcast_to(place, (end - begin, fold.num_items))
