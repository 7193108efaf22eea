"""The stages that compute tables, one after another in this process."""

import time
from pathlib import Path

from watchnext.console import say
from watchnext.engine import EngineParams
from watchnext.stages import featurize, ingest, validate


def run_stages(source: ingest.Params, logs: Path, engine: EngineParams, out: Path) -> dict[str, float]:
    """The three stages, all but `ingest` with their default settings. Returns seconds of each."""
    seconds = {}

    def timed(name: str, began: float) -> None:
        seconds[name] = round(time.monotonic() - began, 1)
        say(f"{engine.kind}: {name} took {seconds[name]} s")

    began = time.monotonic()
    ingest.ingest(source, engine, logs, out / "ingested", out / "ingest-report")
    timed("ingest", began)
    began = time.monotonic()
    validate.validate(
        validate.Params(),
        engine,
        *(out / name for name in ("ingested", "validated", "quarantine", "validate-report")),
    )
    timed("validate", began)
    began = time.monotonic()
    featurize.featurize(
        featurize.Params(), engine, 1, out / "validated", out / "features", out / "featurize-report"
    )
    timed("featurize", began)
    return seconds
