"""The video's past mean watch time: what anybody computes before a model."""

import numpy as np

from benchmarks.ranking.folds import Fold

MODELS = {"past_mean_watch_time": {"configs": [{}], "passes": 1}}


def scores_by_pass(name: str, fold: Fold, config: dict, passes: int, seed: int) -> list[np.ndarray]:
    """Watch time per impression over the 7 complete days before: click rate times watch time per click, 0 if unseen."""
    del name, config, passes, seed
    inputs = fold.held.inputs
    mean = np.nan_to_num(inputs["video_click_rate"]) * np.nan_to_num(inputs["video_mean_watch_time_s"])
    return [mean.astype(np.float64)]
