"""A day of logs is added and `dvc repro` typed again: that day is judged and its examples are made, not the month's."""

import datetime as dt
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from test_repro import ran

from conftest import Project

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("pipeline")]

INSTANTS = {"impressions": "shown_at", "watches": "watched_at", "searches": "searched_at"}
TABLES = ("data/validated", "data/features")


def write_by_day(logs: Path, into: Path) -> dict[dt.date, dict[str, int]]:
    """Logs as a team has them, `into`/table/day.parquet; rows per day and table of events."""
    rows: dict[dt.date, dict[str, int]] = {}
    for table, instant in INSTANTS.items():
        content = pq.read_table(logs / f"{table}.parquet")
        days = pc.cast(content[instant], pa.timestamp("us")).cast(pa.date32())
        (into / table).mkdir(parents=True)
        for day in sorted(set(days.to_pylist())):
            own = content.filter(pc.equal(days, day))
            pq.write_table(own, into / table / f"{day}.parquet")
            rows.setdefault(day, {})[table] = own.num_rows
    for table in ("videos", "users"):
        (into / table).mkdir()
        shutil.copy(logs / f"{table}.parquet", into / table)
    return rows


def test_after_one_more_day_a_repro_judges_and_makes_that_day_alone(
    finished: Project, copy_of_finished: Project, tmp_path: Path
) -> None:
    project = copy_of_finished
    logs = project.root / "logs"
    rows = write_by_day(finished.root / "data/simulated/logs", logs)
    last, held_back = max(rows), tmp_path / "the last day"
    for table in INSTANTS:
        (held_back / table).mkdir(parents=True)
        shutil.move(logs / table / f"{last}.parquet", held_back / table)
    project.set_params(
        {
            "ingest.source": "files",
            "ingest.path": "logs",
            "ingest.files.tables": {name: {"path": name} for name in (*INSTANTS, "videos", "users")},
        }
    )
    project.run("dvc", "repro", "featurize")
    assert project.metrics("validate")["impressions_rows"] < sum(day["impressions"] for day in rows.values())

    for table in INSTANTS:
        shutil.copy(held_back / table / f"{last}.parquet", logs / table)
    said = project.run("dvc", "repro", "featurize")

    assert ran(said) == ["ingest", "validate", "featurize"]
    judged = project.metrics("validate")
    assert {name: judged[f"{name}_rows_judged"] for name in INSTANTS} == rows[last]
    assert judged["impressions_rows"] == sum(day["impressions"] for day in rows.values())
    assert f"days are as they were, and so are their examples; made are those of {last} to {last}" in said

    grown = project.digests(*TABLES)
    for folder in (*TABLES, "reports/validate"):
        shutil.rmtree(project.root / folder)
    project.run("dvc", "repro", "--force", "--single-item", "validate")
    project.run("dvc", "repro", "--force", "--single-item", "featurize")
    assert project.metrics("validate")["impressions_rows_judged"] == judged["impressions_rows"]
    assert project.digests(*TABLES) == grown
