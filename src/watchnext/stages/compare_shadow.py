"""Stage `compare_shadow`: champion and challenger on the shadow day's requests; the verdict moves the alias.

It acts on the registry, outside DVC's cache: it runs every time, and does something once per pair of bundles.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from watchnext.config import RecommendParams, Section
from watchnext.decisions.replay import Evidence, Live, Vetoes


class Params(Section):
    """Section `compare_shadow` of params.yaml."""

    evidence: Evidence = "offline"
    requests: int = Field(default=300, ge=1)
    slate_length: int = Field(default=20, ge=1, le=500)
    vetoes: Vetoes = Vetoes()
    live: Live = Live()


def compare_shadow(
    params: Params,
    recommend: RecommendParams,
    bundle: Path,
    features: Path,
    tables: Path,
    promoted: Path,
    pipeline_run: Callable[[], str],
    out_report: Path,
    previous_metrics: Mapping[str, Any] | None = None,
) -> dict[str, float | int | str] | None:
    """Compare whoever is champion with whoever is challenger.

    `promoted` are the metrics of the stage promote: they name the registered model that the bundle belongs to.

    Raises:
        InputError: a version's bundle is gone or damaged, or the registry cannot be used.
    """
    import json

    from watchnext.decisions.replay import compare_and_crown
    from watchnext.registry import Registry

    return compare_and_crown(
        Registry.open(Path.cwd()),
        name=json.loads(promoted.read_text(encoding="utf-8"))["model_name"],
        bundle=bundle,
        features=features,
        tables=tables,
        evidence=params.evidence,
        requests=params.requests,
        slate_length=params.slate_length,
        exclude=recommend.exclude,
        vetoes=params.vetoes,
        live=params.live,
        pipeline_run=pipeline_run,
        previous_metrics=previous_metrics,
        out_report=out_report,
    )
