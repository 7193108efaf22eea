"""Take logs through the stages that compute tables, in a process of its own: what Spark is started with, it keeps.

    python on_cluster.py WORK NAME ENGINE STAGE...

reads WORK/logs (or what an earlier call left), writes to WORK/NAME. ENGINE is the section `engine` as JSON. An
InputError is printed, and makes the exit status 1, as the stages themselves do it. How many rows each of Spark's answers
brought to this process, the driver, is listed in WORK/NAME/rows_at_the_driver.json.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watchnext.engine import EngineParams
from watchnext.errors import InputError


def run(work: Path, name: str, engine: EngineParams, stages: list[str]) -> None:
    """The `stages`, each in a folder of its own under `work`/`name`, with their metrics in `metrics.json`."""
    out = work / name
    metrics = {}
    if "ingest" in stages:
        from watchnext.stages.ingest import Params as IngestParams
        from watchnext.stages.ingest import ingest

        metrics["ingest"] = ingest(
            IngestParams(), engine, work / "logs", out / "ingested", out / "ingest-report"
        )
    if "validate" in stages:
        from watchnext.stages.validate import Params as ValidateParams
        from watchnext.stages.validate import validate

        metrics["validate"] = validate(
            ValidateParams(max_bad_share=0.02, max_cascaded_share=0.1, batch_rows=1000),
            engine,
            *(out / folder for folder in ("ingested", "validated", "quarantine", "validate-report")),
        )
    if "featurize" in stages:
        from watchnext.stages.featurize import Params as FeaturizeParams
        from watchnext.stages.featurize import featurize

        metrics["featurize"] = featurize(
            FeaturizeParams(), engine, 7, out / "validated", out / "features", out / "featurize-report"
        )
    (out / f"{'-'.join(stages)}.json").write_text(json.dumps(metrics), encoding="utf-8")


def record_rows(numbers: list[int]) -> None:
    """Let every data frame of Spark write down how many rows it hands over, whoever asks: Ibis, or Great Expectations."""
    from pyspark.sql.classic.dataframe import DataFrame

    def recorded(ask: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*given: Any, **named: Any) -> Any:
            rows = ask(*given, **named)
            numbers.append(len(rows))
            return rows

        return answer

    for name in ("collect", "take", "tail", "toPandas", "toArrow"):
        setattr(DataFrame, name, recorded(getattr(DataFrame, name)))


if __name__ == "__main__":
    folder, called, section, *wanted = sys.argv[1:]
    handed_over: list[int] = []
    record_rows(handed_over)
    try:
        run(Path(folder), called, EngineParams.model_validate_json(section), wanted)
        (Path(folder) / called / "rows_at_the_driver.json").write_text(json.dumps(handed_over))
    except InputError as error:
        sys.exit(str(error))
