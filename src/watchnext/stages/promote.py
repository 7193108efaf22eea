"""Stage `promote`: the gate. Registers the bundle as a version and makes it challenger, or says why not.

It acts on the registry, outside DVC's cache: it runs every time, and does something once per bundle.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from watchnext.config import RecommendParams, Section
from watchnext.decisions.checks import Checks
from watchnext.decisions.gate import NotComparable


class Params(Section):
    """Section `promote` of params.yaml."""

    model_name: str = "auto"
    champion_not_comparable: NotComparable = "hold"
    champions_recipe: str | None = None
    checks: Checks = Checks()


def promote(
    params: Params,
    recommend: RecommendParams,
    bundle: Path,
    features: Path,
    tables: Path,
    validated: Path,
    pipeline_run: Callable[[], str],
    out_report: Path,
    previous_metrics: Mapping[str, Any] | None = None,
) -> dict[str, float | int | str] | None:
    """Judge the bundle and register it. `validated` are the metrics of the stage validate, about `tables`.

    Raises:
        InputError: the bundle cannot be read or measured, or the registry cannot be used.
    """
    import json

    from watchnext.decisions.gate import promote_bundle
    from watchnext.registry import Registry, model_name

    source = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["source"]
    return promote_bundle(
        Registry.open(Path.cwd()),
        name=model_name(params.model_name, source),
        bundle=bundle,
        features=features,
        tables=tables,
        validated=validated,
        checks=params.checks,
        exclude=recommend.exclude,
        champion_not_comparable=params.champion_not_comparable,
        champions_recipe=None if params.champions_recipe is None else Path(params.champions_recipe),
        pipeline_run=pipeline_run,
        previous_metrics=previous_metrics,
        out_report=out_report,
    )
