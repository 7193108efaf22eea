"""LightGBM: boosted trees on clicks, on clicks weighted by watch time, on watch time, and lambdarank."""

import lightgbm
import numpy as np

from benchmarks.ranking.folds import Fold, Rows

TREES_PER_PASS = 25
MOST_COLUMNS_OF_A_BAG = 100

_TREES: list[dict] = [
    {"num_leaves": 15, "min_data_in_leaf": 100, "ids": True},
    {"num_leaves": 15, "min_data_in_leaf": 100, "ids": False},
    {"num_leaves": 63, "min_data_in_leaf": 200, "ids": False},
]
MODELS = {
    "lightgbm_clicks": {"configs": _TREES, "passes": 8},
    "lightgbm_weighted": {"configs": _TREES, "passes": 8},
    "lightgbm_regression": {
        "configs": [
            {**trees, "target": target}
            for trees, target in zip(
                [*_TREES, *_TREES[1:]], ["raw", "raw", "raw", "log", "tweedie"], strict=True
            )
        ],
        "passes": 8,
    },
    "lightgbm_lambdarank": {
        "configs": [
            {**_TREES[0], "grades": 1},
            {**_TREES[1], "grades": 1},
            {**_TREES[1], "grades": 4},
        ],
        "passes": 8,
    },
}
"""`ids`: whether ids are categories for the trees; `grades`: how many levels of relevance a clicked impression has."""


def scores_by_pass(name: str, fold: Fold, config: dict, passes: int, seed: int) -> list[np.ndarray]:
    """Raw scores of the held rows after every TREES_PER_PASS trees."""
    rows = fold.training
    order = np.arange(len(rows))
    extra: dict = {}
    weight, group = None, None
    time_s = rows.watch_time_s.astype(np.float64)
    label = rows.clicked.astype(np.float64)
    if name == "lightgbm_clicks":
        extra["objective"] = "binary"
    elif name == "lightgbm_weighted":
        extra["objective"] = "binary"
        # In means of a click, so that the regularisation of a leaf means the same for both classes.
        weight = np.where(rows.clicked, time_s / time_s[rows.clicked].mean(), 1.0)
    elif name == "lightgbm_regression":
        label = np.log1p(time_s) if config["target"] == "log" else time_s
        extra["objective"] = "tweedie" if config["target"] == "tweedie" else "l2"
    else:
        extra["objective"] = "lambdarank"
        extra["lambdarank_truncation_level"] = 100
        order = np.argsort(rows.groups, kind="stable")
        group = np.unique(rows.groups, return_counts=True)[1]
        steps = np.quantile(time_s[rows.clicked], np.arange(1, config["grades"]) / config["grades"])
        label = np.where(rows.clicked, 1 + np.searchsorted(steps, time_s, side="right"), 0)
    columns, categorical = table(fold, rows, ids=config["ids"])
    data = lightgbm.Dataset(
        columns[order],
        label[order],
        weight=weight,
        group=group,
        categorical_feature=categorical,
        free_raw_data=True,
    )
    booster = lightgbm.train(
        {
            "num_leaves": config["num_leaves"],
            "min_data_in_leaf": config["min_data_in_leaf"],
            "learning_rate": 0.05,
            "feature_fraction": 0.8,
            "bagging_fraction": 0.8,
            "bagging_freq": 1,
            "cat_smooth": 50,
            "min_data_per_group": 100,
            "num_threads": 1,
            "deterministic": True,
            "seed": seed % 2**31,
            "verbosity": -1,
            **extra,
        },
        data,
        num_boost_round=TREES_PER_PASS * passes,
    )
    held, _ = table(fold, fold.held, ids=config["ids"])
    scores, total = [], np.zeros(len(held))
    for number in range(passes):
        total = total + booster.predict(
            held,
            raw_score=True,
            start_iteration=number * TREES_PER_PASS,
            num_iteration=TREES_PER_PASS,
        )
        scores.append(total)
    return scores


def table(fold: Fold, rows: Rows, *, ids: bool) -> tuple[np.ndarray, list[int]]:
    """What trees take: numbers, codes, and a column per value of a bag with few values.

    A bag of videos is nothing that a tree can split on; it stays out.

    Returns:
        float64 [num_rows, num_columns], and which columns are categories.
    """
    columns: list[np.ndarray] = []
    categorical: list[int] = []
    for one in fold.inputs:
        values = rows.inputs[one.name]
        if one.kind == "multivalent":
            size = fold.sizes[one.space]
            if size <= MOST_COLUMNS_OF_A_BAG:
                columns += [(values == code).any(axis=1) for code in range(1, size + 1)]
            continue
        if one.kind == "categorical":
            if one.space in ("video", "channel") and not ids:
                continue
            categorical.append(len(columns))
        columns.append(values)
    return np.stack([column.astype(np.float64) for column in columns], axis=1), categorical
