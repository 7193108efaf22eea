"""The steps by which a bundle becomes champion, and is champion no more, without the measuring.

What was decided is not the point where these are used, and every bundle may be equal to every other. What stands in for
measuring stands here, for processes that are killed while they take such a step import this module.
"""

import math
from collections.abc import Callable
from pathlib import Path

from watchnext.decisions import gate, replay
from watchnext.decisions.checks import Checks
from watchnext.decisions.gate import Decision, promote_bundle
from watchnext.decisions.replay import Comparison, Live, Vetoes, compare_and_crown
from watchnext.decisions.slates import Paired
from watchnext.registry import Registry
from watchnext.tracking import Tracker

Step = Callable[[Registry, Path, Path, Path], object]

PASSED = Decision("challenger", "passed", (), {"recall_at_100": 0.5}, "")
CROWN = Comparison("crown", "no veto", "offline", (), {})
PAIR = Paired(1.0, 1.0, (math.nan, math.nan), (math.nan, math.nan), (1.0, 2.0), ("", ""))


def promote(registry: Registry, bundle: Path, features: Path, tables: Path) -> object:
    gate.judge = lambda *_, **__: PASSED
    return promote_bundle(
        registry,
        name="watchnext",
        bundle=bundle,
        features=features,
        checks=Checks(),
        exclude="none",
        pipeline_run=lambda: Tracker.open(registry.root).pipeline_run("1-1.00"),
        previous_metrics=None,
        out_report=registry.root / "report",
    )


def compare(registry: Registry, bundle: Path, features: Path, tables: Path) -> object:
    replay._compare = lambda *_: (CROWN, [PAIR])
    return compare_and_crown(
        registry,
        name="watchnext",
        bundle=bundle,
        features=features,
        tables=tables,
        evidence="offline",
        requests=1,
        slate_length=20,
        exclude="none",
        vetoes=Vetoes(),
        live=Live(),
        pipeline_run=lambda: Tracker.open(registry.root).pipeline_run("1-1.00"),
        previous_metrics=None,
        out_report=registry.root / "report",
    )


def roll_back(registry: Registry, bundle: Path, features: Path, tables: Path) -> object:
    return registry.roll_back("watchnext", reason="slates of one channel")
