"""Take logs through the stages that compute tables on DuckDB and on Spark, and compare every row.

    watchnext cluster up && python -m benchmarks.scale.same_rows --source kuairand --data path/to/KuaiRand-Pure/data

Prints one JSON object last: per table its rows and how many of them the other engine does not have, to the last bit of
every float; of the stages of Spark that have the longest tasks, how many tasks, their median and their longest; and the
stage whose tasks sent most to the driver. Run it in the folder of the cluster.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import duckdb

from benchmarks.programs import print_measured
from benchmarks.scale.stages import run_stages
from benchmarks.scale.task_times import most_sent, read_times, recorded_in
from watchnext.engine import EngineParams
from watchnext.stages import ingest


def compare(one: Path, other: Path) -> dict[str, dict[str, int]]:
    """Per table: its rows, and those of either side that the other has not as often."""
    folders = sorted(
        {path.parent.relative_to(side) for side in (one, other) for path in side.rglob("part-*.parquet")}
    )
    found = {}
    with duckdb.connect() as connection:
        for folder in folders:
            ours, theirs = (f"'{side / folder}/part-*.parquet'" for side in (one, other))
            named = f"SELECT * FROM read_parquet({ours})"
            # By name: the order of columns is compared by what reads them.
            against = f"SELECT {_columns(connection, ours)} FROM read_parquet({theirs})"
            found[str(folder)] = {
                "rows": _count(connection, named),
                "only_duckdb": _count(connection, f"{named} EXCEPT ALL {against}"),
                "only_spark": _count(connection, f"{against} EXCEPT ALL {named}"),
            }
    return found


def _columns(connection: duckdb.DuckDBPyConnection, files: str) -> str:
    described = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({files})").fetchall()
    return ", ".join(f'"{row[0]}"' for row in described)


def _count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    counted = connection.execute(f"SELECT count(*) FROM ({query})").fetchone()
    assert counted is not None
    return int(counted[0])


def main() -> int:
    """0 when both engines gave the same rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.same_rows", description=__doc__)
    parser.add_argument("--source", choices=("simulated", "kuairand"), default="simulated")
    parser.add_argument("--data", type=Path, default=Path("data/simulated/logs"), help="folder of its logs")
    parser.add_argument("--master", default="spark://127.0.0.1:7077")
    parser.add_argument("--work", type=Path, help="where tables go; default: a temporary folder")
    options = parser.parse_args()
    verdict = 1

    def measure(work: Path) -> dict[str, Any]:
        nonlocal verdict
        events = work / "events"
        events.mkdir()
        engines = {
            "duckdb": EngineParams(),
            "spark": EngineParams(
                kind="spark",
                master=options.master,
                memory_limit_gb=1.0,
                spark_conf={"spark.sql.shuffle.partitions": 8, **recorded_in(events)},
            ),
        }
        source = ingest.Params(source=options.source)
        seconds = {
            name: run_stages(source, options.data, engine, work / name) for name, engine in engines.items()
        }
        tables = compare(work / "duckdb", work / "spark")
        quantiles = [
            json.loads((work / name / "features" / "quantiles.json").read_text()) for name in engines
        ]
        differing = sum(table["only_duckdb"] + table["only_spark"] for table in tables.values())
        stages = read_times(events)
        verdict = 0 if not differing and quantiles[0] == quantiles[1] else 1
        return {
            "rows": sum(table["rows"] for table in tables.values()),
            "differing_rows": differing,
            "equal_quantiles": quantiles[0] == quantiles[1],
            "seconds": seconds,
            "longest_stages_of_spark": [vars(stage) for stage in stages[:10]],
            "most_sent_to_the_driver": vars(most_sent(stages)),
            "tables": tables,
        }

    return print_measured("same-rows", measure, options.work) or verdict


if __name__ == "__main__":
    sys.exit(main())
