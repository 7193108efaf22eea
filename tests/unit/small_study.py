"""A study of the paper from end to end, in a world small enough for a test."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from watchnext.cli import make_features
from watchnext.studies._lab import Lab, Settings
from watchnext.studies._runner import run_study


def small_settings(days: int) -> Settings:
    """One world of 150 users and 240 videos."""
    return Settings(
        users=150, videos=240, topics=8, days=days, pages_per_user_day=2.0, seeds=1, online_days=1
    )


def rows_of_small_study(name: str, root: Path, strengths: Sequence[float]) -> list[dict[str, Any]]:
    """Run the study `name` in the project folder `root`. Returns the rows of its table, its verdicts checked.

    Its worlds are those of some strengths of its mechanism alone, since each costs half a minute.
    """
    with patch.dict(Lab.grounds.__kwdefaults__, strengths=strengths):
        judgements = run_study(name, small_settings(days=5), make_features, root=root)
    assert {one.verdict for one in judgements} <= {
        "mechanism check passed",
        "not shown",
        "does not hold",
        "another mechanism",
    }, "reproduced without real logs"
    content = json.loads((root / f"docs/studies/{name}.json").read_text(encoding="utf-8"))
    assert content["rows"]
    return content["rows"]
