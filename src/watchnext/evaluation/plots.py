"""The pictures of the reports: curves of a training, recall by K, an index's frontier, reliability of watch time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure


def plot_curves(curves: Mapping[str, Sequence[tuple[int, float]]], best_epoch: int, path: Path) -> None:
    """One panel per metric over epochs, the epoch whose weights were kept marked.

    Args:
        curves: metric name -> [(epoch, value), ...].
        best_epoch: the epoch that was kept.
        path: PNG to write.
    """
    figure = Figure(figsize=(4 * len(curves), 3.2), layout="constrained")
    for axes, (name, points) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, marker="o")
        axes.axvline(best_epoch, color="grey", linestyle=":", label="kept")
        axes.set(title=name, xlabel="epoch")
        axes.set_xticks(epochs)
        axes.legend()
    figure.savefig(path, dpi=110)


def plot_recall_by_k(ranks: Mapping[str, np.ndarray], largest_k: int, path: Path) -> None:
    """Recall over K, one line per source of candidates.

    Args:
        ranks: name -> int64 [num_events] ranks of the labels.
        largest_k: right end of the axis.
        path: PNG to write.
    """
    ks = np.unique(np.geomspace(1, max(largest_k, 2), 60).astype(int))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for (name, values), style in zip(ranks.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(
            ks, np.searchsorted(np.sort(values), ks, side="right") / max(len(values), 1), style, label=name
        )
    axes.set(
        xscale="log", xlabel="K", ylabel="recall_at_K", title="Completed watches found among the first K"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def plot_index_frontier(
    points: Sequence[tuple[float, float, bool]], chosen: int, recall_floor: float, path: Path
) -> None:
    """Recall against latency of the settings of an index, the chosen one marked.

    Args:
        points: (recall, latency in milliseconds, whether it is exact search) per setting.
        chosen: which of them.
        recall_floor: the least recall that was wanted.
        path: PNG to write.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for is_exact, marker, label in ((False, "o", "tree"), (True, "s", "exact search")):
        shown = [(ms, recall) for recall, ms, exact in points if exact == is_exact]
        if shown:
            axes.plot(*zip(*shown, strict=True), marker, alpha=0.6, label=label)
    recall, latency_ms, _ = points[chosen]
    axes.plot([latency_ms], [recall], "o", markersize=14, fillstyle="none", color="black", label="chosen")
    axes.axhline(recall_floor, color="grey", linestyle=":", label="floor")
    axes.set(
        xscale="log",
        xlabel="median latency of one query, ms",
        ylabel="index_recall",
        title="What a setting of the index finds, and how long it takes",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def plot_reliability(bins: Mapping[str, np.ndarray], path: Path) -> None:
    """Predicted against observed watch time by decile of the prediction.

    Args:
        bins: what `metrics.calibration` returns.
        path: PNG to write.
    """
    predicted = bins["predicted_s"]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(
        predicted,
        bins["observed_odds_s"],
        marker="o",
        label="observed odds, sum(T) / (N - k)",
    )
    axes.plot(
        predicted, bins["observed_s"], marker="s", label="observed watch time per impression, sum(T) / N"
    )
    values = np.concatenate([array[np.isfinite(array)] for array in (predicted, bins["observed_odds_s"])])
    ends = [float(values.min()), float(values.max())]
    axes.plot(ends, ends, color="grey", linestyle=":", label="prediction = observation")
    axes.set(
        xlabel="expected_watch_time_s, mean of decile",
        ylabel="observed, s",
        title="Reliability on the gate day",
    )
    if ends[0] > 0:
        axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
