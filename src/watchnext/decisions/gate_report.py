"""What the gate decided, for people: a page, the same as JSON, and tables in the terminal."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from watchnext.console import print_table, say
from watchnext.decisions.checks import readable
from watchnext.decisions.forest import forest_plot
from watchnext.decisions.kept import finite
from watchnext.decisions.page import Table, html_page

if TYPE_CHECKING:
    from watchnext.decisions.gate import Decision


SEED_METRICS = ("recall_at_100", "weighted_pairwise_loss")
"""Whose variation by seed is shown."""


def write_report(decision: "Decision", out_report: Path, *, title: str, role: str) -> None:
    """Write decision.json and decision.html, and print the checks."""
    out_report.mkdir(parents=True, exist_ok=True)
    content = {**asdict(decision), "role": role}
    (out_report / "decision.json").write_text(json.dumps(finite(content), indent=1) + "\n", encoding="utf-8")
    rows = [(check.name, check.value, check.bound, check.outcome, check.reason) for check in decision.checks]
    header = ("check", "value", "bound", "outcome", "why")
    further = [*recipe_tables(decision.metrics), *seed_tables(decision.over_seeds)]
    page = html_page(
        title,
        f"{decision.verdict}: {decision.reason}",
        [
            ("Checks", header, rows),
            *further,
            (
                "Metrics, and the change from champion to candidate",
                ("metric", "champion", "candidate", "change", "over users by videos"),
                metric_rows(decision.metrics),
            ),
        ],
        before=forest_plot(decision.checks),
    )
    (out_report / "decision.html").write_text(page, encoding="utf-8")
    print_table(title, header[:4], [row[:4] for row in rows])
    for table in further:
        print_table(*table)
    say(f"verdict: {decision.verdict} ({decision.reason})")


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str, str, str, str]]:
    """Every metric of a decision in one row: of champion and candidate, and the change with its intervals."""

    def of(name: str) -> str:
        return readable(metrics[name]) if name in metrics else ""

    def ends(name: str) -> str:
        low, high = (metrics.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        return f"[{low:+.1%}, {high:+.1%}]" if math.isfinite(low) and math.isfinite(high) else ""

    rows = []
    # The champion's recipe, which is neither, stands in a table of its own.
    for name in sorted(
        {
            name.removeprefix("champion_")
            for name in metrics
            if not name.startswith(("change_", "champions_recipe_"))
        }
    ):
        change = metrics.get(f"change_{name}", math.nan)
        rows.append(
            (
                name,
                of(f"champion_{name}"),
                of(name),
                f"{change:+.1%} {ends(f'change_{name}')}" if math.isfinite(change) else "",
                ends(f"change_{name}_users_by_videos"),
            )
        )
    return rows


def recipe_tables(metrics: Mapping[str, float]) -> list[Table]:
    """What fresher data did and what another recipe did, as a table, where the champion's recipe was measured; else none."""

    def change(name: str) -> str:
        value, low, high = (metrics[f"change_{name}{end}"] for end in ("", "_low", "_high"))
        return f"{value:+.1%} [{low:+.1%}, {high:+.1%}]"

    rows = [
        (
            name,
            readable(metrics[f"champion_{name}"]),
            change(f"by_data_{name}"),
            readable(metrics[f"champions_recipe_{name}"]),
            change(f"by_recipe_{name}"),
            readable(metrics[name]),
        )
        for name in SEED_METRICS
        if f"champions_recipe_{name}" in metrics
    ]
    header = (
        "metric",
        "champion",
        "fresher data",
        "its recipe on this window",
        "another recipe",
        "candidate",
    )
    return [("Recipe or data, judging nothing", header, rows)] if rows else []


def seed_tables(over_seeds: Sequence[Mapping[str, float]]) -> list[Table]:
    """How much a metric varies by seed, as a table, where more than one seed was run; else none."""
    rows = []
    for name in SEED_METRICS:
        values = [found[name] for found in over_seeds if math.isfinite(found.get(name, math.nan))]
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            deviation = statistics.stdev(values)
            share = f"{deviation / mean:.1%} of the mean" if mean else ""
            rows.append((name, str(len(values)), readable(min(values)), readable(max(values)), share))
    caption = "By seed: the same settings on the same data, judging nothing"
    return [(caption, ("metric", "seeds", "lowest", "highest", "standard deviation"), rows)] if rows else []
