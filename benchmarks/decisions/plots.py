"""Plots of the rounds: a panel per kind, what the power needs, and the trained models' rounds."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

from benchmarks.decisions.rounds import KINDS, Row
from watchnext.decisions.ledger import spent_on

_COLOURS = {"crowned": "#0a6b2d", "kept or waiting": "#2b6cb0", "held": "#d69e2e", "rejected": "#a40000"}


def _outcome(one: dict[str, Any]) -> str:
    if one["gate"] != "challenger":
        return str(one["gate"])
    return "crowned" if one["causal"] == "crown" else "kept or waiting"


def plot_kinds(rows: list[Row], path: Path) -> None:
    """A panel per kind: the measured change of recall, by what became of the challenger."""
    figure, axes = plt.subplots(3, 3, figsize=(12, 8), layout="constrained", sharey=True)
    for kind, axis in zip(KINDS, axes.flat, strict=True):
        of = [row["kinds"][kind] for row in rows]
        values = {name: [one["recall"] for one in of if _outcome(one) == name] for name in _COLOURS}
        spread = [one["recall"] for one in of]
        bins = np.linspace(min(spread), max(spread), 31) if spread else 10
        axis.hist(list(values.values()), bins=bins, stacked=True, color=list(_COLOURS.values()))
        axis.axvline(KINDS[kind][0] - 0.1 * KINDS[kind][2], color="black", linewidth=1)
        shares = ", ".join(
            f"{name} {len(found) / max(1, len(of)):.1%}" for name, found in values.items() if found
        )
        axis.set_title(f"{kind}\n{shares}", fontsize=9)
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
        axis.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axes[2, 1].set_xlabel("measured change of recall_at_100; line: the true one")
    axes[1, 0].set_ylabel("rounds")
    handles = [mpl.patches.Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_power(found: dict[str, Any], path: Path) -> None:
    """What a gate day of so many users rules out and sees in four of five cases, of its first challenger."""
    error_rate = spent_on(1, 0.05)
    users = np.geomspace(1_000, 1_000_000, 50)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, colour in (("recall", "#2b6cb0"), ("loss", "#a40000")):
        error = found[f"standard_error_{name}"] * np.sqrt(found["users_of_a_day"] / users)
        for level, style, what in (
            (1 - error_rate, "-", "harm ruled out of equal models"),
            (1 - error_rate / 2, "--", "improvement of one of two metrics seen"),
        ):
            axis.plot(
                users,
                (norm.ppf(level) + norm.ppf(0.8)) * error,
                style,
                color=colour,
                label=f"{name}: {what}",
            )
    axis.set(xscale="log", yscale="log", xlabel="users of the gate day", ylabel="change")
    axis.set_yticks([0.001, 0.002, 0.005, 0.01, 0.02, 0.05], minor=False)
    axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axis.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axis.grid(visible=True, which="both", alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_trained(judged: list[dict[str, Any]], path: Path) -> None:
    """Rounds of trained models: measured recall against the true change of watch time, by outcome."""
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, colour in _COLOURS.items():
        of = [row for row in judged if _outcome(row) == name]
        axis.scatter(
            [row["truth"] for row in of],
            [row["recall"] for row in of],
            s=18,
            color=colour,
            label=f"{name} ({len(of)})",
        )
    axis.axhline(0, color="#888", linewidth=1)
    axis.axvline(0, color="#888", linewidth=1)
    axis.set(
        xlabel="true change of watch time per user-day", ylabel="change of recall_at_100 on the gate day"
    )
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
