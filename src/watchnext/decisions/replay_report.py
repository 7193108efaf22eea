"""What a shadow comparison leaves to read: decision.json, one page with plots, and tables in the terminal."""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from watchnext.console import print_table, say
from watchnext.decisions.assortment import SMALL_CHANNELS_SHARE
from watchnext.decisions.forest import forest_plot
from watchnext.decisions.kept import finite
from watchnext.decisions.overlap import RBO_PERSISTENCE
from watchnext.decisions.page import Table, html_page
from watchnext.decisions.slates import Paired

if TYPE_CHECKING:
    from watchnext.decisions.replay import Comparison

ANSWERS: Mapping[str, str] = {
    "slate_recall_at_{length}": "of what users completed later that day, share that the slate held",
    "slate_watch_time_share_at_{length}": "of the seconds that they watched it for, share that the slate held",
    "catalogue_coverage": "share of all videos that stand in any slate",
    "video_age_p50_days": "median age of what was recommended",
    "new_videos_share": "of the places, share of videos uploaded within 7 days",
    "small_channels_share": "of the places, share of the small channels, which together had"
    f" {SMALL_CHANNELS_SHARE:.0%} of past impressions",
    "own_expected_watch_time_s": "what its own ranker expects of a place, which is no evidence: each grades itself",
    "latency_p50_ms": "median answer",
    "latency_p99_ms": "99 of 100 answers took no longer",
    "errors": "share of requests without an answer",
    "live_latency_p50_ms": "of the server's live shadow",
    "live_latency_p99_ms": "of the server's live shadow",
    "live_errors": "of the server's live shadow",
}
"""Figure of each one's answers -> what it says."""

PAIRS: Mapping[str, str] = {
    "requests": "replayed",
    "requests_with_later_watches": "after which the user completed something that day",
    "slate_overlap_at_{length}": "share of places with a video of both",
    "rank_biased_overlap": f"the same, first places weighing most (p = {RBO_PERSISTENCE})",
    "live_requests": "that both answered in the server's live shadow",
    "live_slate_overlap": "of the server's live shadow",
    "live_rank_biased_overlap": "of the server's live shadow",
}
"""Figure of the pair -> what it says."""


def write_report(
    comparison: "Comparison", paired: Sequence[Paired], length: int, out_report: Path, title: str
) -> None:
    """Write decision.json, decision.html and the plots, and print the tables.

    Args:
        comparison: what was decided, and by what.
        paired: the answers of both; empty where nothing was replayed.
        length: of the slates.
        out_report: where to.
        title: of the page and the tables.
    """
    out_report.mkdir(parents=True, exist_ok=True)
    content = asdict(comparison)
    content["first_errors"] = [error for pair in paired for error in pair.errors if error][:5]
    (out_report / "decision.json").write_text(json.dumps(finite(content), indent=1) + "\n", encoding="utf-8")
    answers = (
        "Answers",
        ("figure", "champion", "challenger", "what it is"),
        _answers(comparison.metrics, length),
    )
    pairs = ("Both", ("figure", "value", "what it is"), _pairs(comparison.metrics, length))
    examples = (
        "On the day's examples",
        ("metric", "champion", "challenger", "change"),
        _examples(comparison.metrics, length),
    )
    vetoes = (
        "Vetoes",
        ("veto", "value", "bound", "outcome", "why"),
        [(check.name, check.value, check.bound, check.outcome, check.reason) for check in comparison.checks],
    )
    slices = (
        "Slices, which veto nothing: the gate has judged them",
        ("slice", "users", "champion", "challenger", "change"),
        [
            (
                f"{one.metric}.{one.name}",
                str(one.users),
                f"{one.champion:.4g}",
                f"{one.challenger:.4g}",
                _change(one.value, one.low, one.high),
            )
            for one in comparison.slices
        ],
    )
    pictures = ""
    if paired:
        _plot(paired, length, out_report)
        pictures = "".join(
            f'<h2>{caption}</h2><img src="data:image/png;base64,{_inline(out_report / file)}" alt="{caption}">'
            for file, caption in (("overlap.png", "Overlap of the slates"), ("latency.png", "Latency"))
        )
    tables: list[Table] = [table for table in (vetoes, answers, pairs, examples, slices) if table[2]]
    before = _link(comparison.compare_url) + forest_plot(comparison.checks)
    verdict = f"{comparison.verdict}: {comparison.reason}"
    page = html_page(title, verdict, tables, pictures, before=before)
    (out_report / "decision.html").write_text(page, encoding="utf-8")
    say(title)
    for caption, header, rows in tables:
        if caption == vetoes[0]:
            header, rows = header[:4], [row[:4] for row in rows]
        print_table(caption, header, rows)
    say(f"verdict: {comparison.verdict} ({comparison.reason})")
    if comparison.compare_url:
        say(f"both runs side by side (`watchnext ui`): {comparison.compare_url}")


def _answers(metrics: Mapping[str, float], length: int) -> list[tuple[str, str, str, str]]:
    rows = []
    for pattern, meaning in ANSWERS.items():
        name = pattern.format(length=length)
        both = [metrics.get(f"{who}_{name}") for who in ("champion", "challenger")]
        if any(value is not None for value in both):
            rows.append((name, _shown(both[0]), _shown(both[1]), meaning))
    return rows


def _pairs(metrics: Mapping[str, float], length: int) -> list[tuple[str, str, str]]:
    """What belongs to the pair, in order; then what causal evidence found, which has names of its own."""
    told = {pattern.format(length=length): meaning for pattern, meaning in PAIRS.items()}
    others = [
        name for name in sorted(metrics) if name not in told and name.startswith(("causal_", "experiment_"))
    ]
    return [
        (name, _shown(metrics[name]), told.get(name, "causal evidence"))
        for name in (*told, *others)
        if name in metrics
    ]


def _examples(metrics: Mapping[str, float], length: int) -> list[tuple[str, str, str, str]]:
    told = {pattern.format(length=length) for pattern in ANSWERS}
    rows = []
    for name in sorted(name.removeprefix("champion_") for name in metrics if name.startswith("champion_")):
        if name in told:
            continue
        change = ""
        if f"change_{name}" in metrics:
            change = _change(*(metrics[f"change_{name}{end}"] for end in ("", "_low", "_high")))
        theirs, ours = (_shown(metrics.get(f"{who}_{name}")) for who in ("champion", "challenger"))
        rows.append((name, theirs, ours, change))
    return rows


def _change(value: float, low: float, high: float) -> str:
    return f"{value:+.1%} [{low:+.1%}, {high:+.1%}]" if math.isfinite(value) else "none"


def _shown(value: float | None) -> str:
    return "none" if value is None or not math.isfinite(value) else f"{value:.4g}"


def _link(url: str) -> str:
    if not url:
        return ""
    return (
        f'<p><a href="{html.escape(url)}">The runs of both, side by side in the MLflow UI</a>, while'
        " <code>watchnext ui</code> runs.</p>"
    )


def _inline(picture: Path) -> str:
    """A page that is one file can be sent on, and shown where MLflow shows it."""
    return base64.b64encode(picture.read_bytes()).decode()


def _plot(paired: Sequence[Paired], length: int, out_report: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    bins = [place / length for place in range(length + 1)]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.hist([pair.overlap for pair in paired], bins=bins, label=f"overlap at {length}")
    axes.hist(
        [pair.rank_biased_overlap for pair in paired],
        bins=bins,
        histtype="step",
        label=f"rank-biased overlap, p = {RBO_PERSISTENCE}",
    )
    axes.set(xlabel="share in common", ylabel="requests")
    axes.legend()
    figure.savefig(out_report / "overlap.png", dpi=120)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for place, who in enumerate(("champion", "challenger")):
        latency = np.sort([pair.latency_ms[place] for pair in paired])
        axes.step(latency, np.arange(1, len(latency) + 1) / len(latency), where="post", label=who)
    axes.set(xlabel="latency, ms", ylabel="share of requests answered", xscale="log")
    axes.legend()
    figure.savefig(out_report / "latency.png", dpi=120)
    plt.close(figure)
