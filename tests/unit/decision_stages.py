"""The stages `promote` and `compare_shadow` as the runner calls them, in a project of their own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watchnext.bundle import Bundle
from watchnext.config import RecommendParams
from watchnext.decisions.replay import Slower, Vetoes
from watchnext.registry import Event, Registry
from watchnext.stages.compare_shadow import Params as CompareParams
from watchnext.stages.compare_shadow import compare_shadow
from watchnext.stages.promote import Params as PromoteParams
from watchnext.stages.promote import promote
from watchnext.tracking import Tracker

UNHURRIED = Vetoes(latency_p50_ms=Slower(maximum_ratio=1e3, at_least_ms=6e4, reason="timings decide no test"))
RECOMMEND = RecommendParams(exclude="none")


@dataclass(frozen=True)
class Stages:
    """The two stages in a project whose version 1 is champion and whose version 2 challenges it.

    Attributes:
        root: the project's folder, and the working directory.
        champion: bundle of version 1.
        challenger: bundle of version 2, as good by what is measured.
        features: of the world.
        tables: of the world.
    """

    root: Path
    champion: Bundle
    challenger: Bundle
    features: Path
    tables: Path

    def promote(
        self, bundle: Bundle, features: Path | None = None, tables: Path | None = None
    ) -> Mapping[str, Any]:
        validated = self.root / "validate.json"
        validated.write_text(json.dumps({"expectations_failed": 0}), encoding="utf-8")
        found = promote(
            PromoteParams(),
            RECOMMEND,
            bundle.path,
            features or self.features,
            tables or self.tables,
            validated,
            lambda: Tracker.open(self.root).pipeline_run("1-1.00"),
            self.root / "reports" / "promote",
        )
        assert found is not None
        written = self.decision("promote")
        assert (written["verdict"], written["reason"]) == (found["verdict"], found["reason"])
        return found

    def compare(
        self, features: Path | None = None, tables: Path | None = None, **params: Any
    ) -> Mapping[str, Any]:
        promoted = self.root / "promote.json"
        promoted.write_text(json.dumps({"model_name": "watchnext"}), encoding="utf-8")
        found = compare_shadow(
            CompareParams(requests=30, vetoes=UNHURRIED, **params),
            RECOMMEND,
            self.challenger.path,
            features or self.features,
            tables or self.tables,
            promoted,
            lambda: Tracker.open(self.root).pipeline_run("1-1.00"),
            self.root / "reports" / "compare_shadow",
        )
        assert found is not None
        assert self.decision("compare_shadow")["verdict"] == found["verdict"]
        return found

    def decision(self, stage: str) -> Mapping[str, Any]:
        return json.loads((self.root / "reports" / stage / "decision.json").read_text(encoding="utf-8"))

    def standing(self) -> tuple[dict[str, int], list[Event]]:
        """Who has which role, and how that came about."""
        registry = Registry.open(self.root)
        return registry._aliases("watchnext"), registry.history("watchnext")
