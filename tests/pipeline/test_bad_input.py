"""Logs and settings that cannot be used, put before the stages: a clear error, and nothing lost.

For each stage that refuses, and for the settings, one case goes through the real `dvc repro`, which must stop there.
The others run the stages as dvc.yaml asks for them, up to the one that refuses, in this process.

Every case breaks its own copy of sound logs and points `ingest.path` at it, with `ingest.source: files` as somebody
with logs of their own would. The cases share one project and none cleans up after itself, since what a failure leaves
behind must not hurt what comes next.
"""

import contextlib
import datetime as dt
import functools
import json
import operator
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML
from test_repro import ran

from conftest import Project
from watchnext import config

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("pipeline")]

OUTPUTS: Mapping[str, tuple[str, ...]] = {
    "simulate": ("data/simulated",),
    "ingest": ("data/ingested",),
    "validate": ("data/validated", "data/quarantine"),
    "featurize": ("data/features",),
    "train_retrieval": ("data/retrieval",),
    "build_index": ("data/index",),
    "nominate": ("data/sources",),
    "train_ranking": ("data/ranking",),
    "package": ("data/bundle",),
}
"""What each stage leaves for the next ones."""

Settings = dict[str, Any]
Breaker = Callable[[Path], Settings]
"""Breaks the logs in a folder; returns the settings that go with them."""


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes:
        name: in words, as the issue of a user would have it.
        break_logs: what is done to a copy of sound logs.
        ran: the stages that must have run, and no other; the last one refuses.
        says: what must be said: what was wrong, where, and what to do.
        by_dvc: whether the whole `dvc repro` runs, rather than `ran` alone.
    """

    name: str
    break_logs: Breaker
    ran: tuple[str, ...]
    says: tuple[str, ...]
    by_dvc: bool = False


# What a user's logs may look like


def table_of(logs: Path, name: str) -> pa.Table:
    return pq.read_table(logs / f"{name}.parquet")


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """`table` with `values` where the column was."""
    return table.set_column(table.schema.get_field_index(name), name, values)


def replace(logs: Path, table: str, column: str, values: pa.Array | pa.ChunkedArray) -> None:
    pq.write_table(with_column(table_of(logs, table), column, values), logs / f"{table}.parquet")


def change_one_in(
    every: int, logs: Path, table: str, column: str, changed: Callable[[pa.ChunkedArray], pa.ChunkedArray]
) -> None:
    """Change the column in every so many-th row."""
    content = table_of(logs, table)
    here = pa.array(np.arange(content.num_rows) % every == every - 1)
    values = content[column]
    replace(logs, table, column, pc.if_else(here, changed(values).cast(values.type), values))


def a_column_is_missing(logs: Path) -> Settings:
    pq.write_table(table_of(logs, "impressions").drop_columns(["clicked"]), logs / "impressions.parquet")
    return {}


def text_where_numbers_belong(logs: Path) -> Settings:
    values = table_of(logs, "watches")["watch_time_s"].cast(pa.string()).to_pylist()
    replace(logs, "watches", "watch_time_s", pa.array(["a while", *values[1:]]))
    return {}


def instants_where_numbers_belong(logs: Path) -> Settings:
    replace(logs, "watches", "watch_time_s", table_of(logs, "watches")["watched_at"])
    return {}


def an_empty_parquet_file(logs: Path) -> Settings:
    (logs / "watches.parquet").write_bytes(b"")
    return {}


def an_empty_csv_file(logs: Path) -> Settings:
    (logs / "users.csv").write_bytes(b"")
    return mapping_of(users={"path": "users.csv"})


def a_table_without_rows(logs: Path) -> Settings:
    pq.write_table(table_of(logs, "watches").slice(0, 0), logs / "watches.parquet")
    return {}


def a_truncated_parquet_file(logs: Path) -> Settings:
    path = logs / "impressions.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return {}


def a_parquet_file_damaged_inside(logs: Path) -> Settings:
    path = logs / "impressions.parquet"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 50_000 : middle + 50_000] = b"\xff" * 100_000
    path.write_bytes(content)
    return {}


def a_csv_file_in_latin_1(logs: Path) -> Settings:
    users = table_of(logs, "users").to_pandas()
    users["region"] = "Curaçao"
    users.to_csv(logs / "users.csv", index=False, encoding="latin-1")
    return mapping_of(users={"path": "users.csv"})


def a_folder_of_something_else(logs: Path) -> Settings:
    for path in logs.glob("*.parquet"):
        path.unlink()
    (logs / "holiday.txt").write_text("sun\n", encoding="utf-8")
    return {}


def values_that_cannot_be(logs: Path) -> Settings:
    """Players that were left open for weeks, clocks of another age, and ids of nobody."""
    change_one_in(50, logs, "impressions", "watch_time_s", lambda values: pc.add(values, 2_000_000.0))
    change_one_in(
        47,
        logs,
        "impressions",
        "shown_at",
        lambda values: pc.add(values, pa.scalar(dt.timedelta(days=9_000))),
    )
    change_one_in(43, logs, "impressions", "video_id", lambda values: pc.add(values, 1_000_000_000))
    return {}


def instants_in_mixed_units(logs: Path) -> Settings:
    """Milliseconds since 1970, but for the rows of one exporter, which wrote seconds."""
    microseconds = table_of(logs, "watches")["watched_at"].cast(pa.int64())
    replace(logs, "watches", "watched_at", pc.divide(microseconds, 1_000))
    change_one_in(40, logs, "watches", "watched_at", lambda values: pc.divide(values, 1_000))
    return mapping_of(
        watches={
            "path": "watches.parquet",
            "columns": {"watched_at": {"column": "watched_at", "unit": "ms"}},
        }
    )


def no_click_at_all_and_counters_that_ran_over(logs: Path) -> Settings:
    rows = table_of(logs, "impressions").num_rows
    replace(logs, "impressions", "clicked", pa.array(np.zeros(rows, bool)))
    replace(logs, "impressions", "watch_time_s", pa.array(np.zeros(rows)))
    change_one_in(50, logs, "watches", "watch_time_s", lambda values: pc.subtract(-1.0, values))
    return {}


def one_day_of_logs(logs: Path) -> Settings:
    for name, instant in (
        ("impressions", "shown_at"),
        ("watches", "watched_at"),
        ("searches", "searched_at"),
    ):
        content = table_of(logs, name)
        days = pc.floor_temporal(content[instant], unit="day")
        pq.write_table(content.filter(pc.equal(days, pc.min(days))), logs / f"{name}.parquet")
    return {}


def mapping_of(**tables: Mapping[str, Any]) -> Settings:
    """The mapping of the sound logs, which have our names, with other entries for some tables."""
    names = ("videos", "users", "impressions", "watches", "searches")
    return {"ingest.files.tables": {**{name: {"path": f"{name}.parquet"} for name in names}, **tables}}


REFUSED = (
    Case(
        "missing column",
        a_column_is_missing,
        ran=("ingest",),
        says=("table impressions lacks column clicked", "impressions.parquet", "what to do", "the file has"),
        by_dvc=True,
    ),
    Case(
        "wrong type: text",
        text_where_numbers_belong,
        ran=("ingest",),
        says=(
            "`watch_time_s` should be a number",
            "1 of ",
            "watches.parquet, column watch_time_s",
            "a while",
            "mend the column",
        ),
    ),
    Case(
        "wrong type: instants",
        instants_where_numbers_belong,
        ran=("ingest",),
        says=("`watch_time_s` should be a number", "timestamp", "watches.parquet", "convert it"),
    ),
    Case(
        "empty file: Parquet",
        an_empty_parquet_file,
        ran=("ingest",),
        says=("the file is empty", "watches.parquet", "export it again"),
    ),
    Case(
        "empty file: CSV",
        an_empty_csv_file,
        ran=("ingest",),
        says=("the file is empty", "users.csv", "export it again"),
    ),
    Case(
        "empty file: no rows",
        a_table_without_rows,
        ran=("ingest",),
        says=("the table holds no row", "watches.parquet", "this table is needed"),
    ),
    Case(
        "truncated Parquet",
        a_truncated_parquet_file,
        ran=("ingest",),
        says=("not a readable Parquet file", "truncated", "impressions.parquet", "copy or export"),
    ),
    Case(
        "damaged Parquet",
        a_parquet_file_damaged_inside,
        ran=("ingest",),
        says=("cannot be read to its end", "damaged", "impressions.parquet", "copy or export"),
    ),
    Case(
        "CSV in another encoding",
        a_csv_file_in_latin_1,
        ran=("ingest",),
        says=(
            "the file is not utf-8 text",
            "users.csv, line 2",
            "`encoding: latin-1`",
            "ingest.files.tables",
        ),
    ),
    Case(
        "directory without the expected files",
        a_folder_of_something_else,
        ran=("ingest",),
        says=(
            "there is no such file",
            "videos.parquet",
            "ingest.files.tables.videos.path",
            "there: holiday.txt",
            "relative to ingest.path",
        ),
    ),
    Case(
        "absurd watch time, instants in the future, ids unknown to videos",
        values_that_cannot_be,
        ran=("ingest", "validate"),
        says=(
            "impressions.watch_time_s watch_time_s_absurd",
            "impressions.shown_at shown_at_in_the_future",
            "2050-",
            "impressions.video_id video_id_unknown",
            "video_id=1000",
            "allowed 0.1 %",
            "summary.html",
            "mend the logs",
        ),
        by_dvc=True,
    ),
    Case(
        "instants in mixed units",
        instants_in_mixed_units,
        ran=("ingest",),
        says=(
            "`watched_at` mixes units",
            "before 1990",
            "look like s",
            "watches.parquet, column watched_at",
            "bring the column to one unit",
        ),
    ),
    Case(
        "zero clicks, negative watch time",
        no_click_at_all_and_counters_that_ran_over,
        ran=("ingest", "validate"),
        says=(
            "impressions.clicked zero_clicked",
            "watches.watch_time_s watch_time_s_out_of_range",
            "summary.html",
            "mend the logs",
        ),
    ),
    Case(
        "too few days of logs",
        one_day_of_logs,
        ran=("ingest", "validate", "featurize"),
        says=(
            "too few days of logs: 1 whole day",
            "impressions.shown_at",
            "2026-03-0",
            "add logs of further days",
        ),
        by_dvc=True,
    ),
    Case(
        "unknown key in params",
        lambda logs: {"train_ranking.epoch": 2},
        ran=("ingest",),
        says=("`train_ranking.epoch` is not a setting", "params.yaml", "did you mean `epochs`?"),
        by_dvc=True,
    ),
    Case(
        "a string where a number belongs in params",
        lambda logs: {"train_ranking.learning_rate": "quick"},
        ran=("ingest",),
        says=("`train_ranking.learning_rate` is 'quick'", "params.yaml", "number", "what to do"),
    ),
)


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One copy of the finished project for all cases, about to read logs of its user's own."""
    copy = Project(tmp_path_factory.mktemp("bad_input") / "project")
    shutil.copytree(finished.root, copy.root, symlinks=True)
    copy.relocate()
    copy.set_params({"ingest.source": "files", **mapping_of()})
    copy.run("dvc", "repro", "simulate")  # which has nothing to simulate from now on
    return copy


@dataclass(frozen=True)
class Registered:
    """What is registered: as a user is told, and to the last row of the registry's tables."""

    status: list[dict[str, Any]]
    rows: dict[str, list[tuple[Any, ...]]]


def registry_rows(project: Project) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the registry."""
    tables = (
        "registered_models",
        "registered_model_tags",
        "registered_model_aliases",
        "model_versions",
        "model_version_tags",
    )
    with contextlib.closing(
        sqlite3.connect(f"{project.root.as_uri()}/mlruns/mlflow.db?mode=ro", uri=True)
    ) as db:
        return {table: sorted(db.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}


@pytest.fixture(scope="module")
def registered(project: Project) -> Registered:
    """What is registered before the first case."""
    rows = registry_rows(project)
    assert all(rows.values())
    return Registered(project.status(), rows)


@pytest.fixture
def break_logs(finished: Project, project: Project) -> Iterator[Callable[[str, Breaker], None]]:
    """Breaks a copy of sound logs and points the settings at it, until the case is over."""
    params = project.root / "params.yaml"
    as_it_was = params.read_text(encoding="utf-8")

    def apply(name: str, breaker: Breaker) -> None:
        logs = project.root / "logs" / re.sub(r"\W+", "_", name)
        shutil.copytree(finished.root / "data/simulated/logs", logs)
        yaml = YAML()
        content = yaml.load(as_it_was)
        settings = {"ingest.path": logs.relative_to(project.root).as_posix(), **breaker(logs)}
        # Not `Project.set_params`, which knows only settings that there are.
        for setting, value in settings.items():
            *sections, key = setting.split(".")
            functools.reduce(operator.getitem, sections, content)[key] = value
        with params.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)

    yield apply
    params.write_text(as_it_was, encoding="utf-8")


def outputs_after(stages: Sequence[str]) -> list[str]:
    """Outputs of every stage but these."""
    return [folder for stage, folders in OUTPUTS.items() if stage not in stages for folder in folders]


def tables_in(project: Project, folder: str) -> dict[str, str]:
    return {name: digest for name, digest in project.digests(folder).items() if name.endswith(".parquet")}


def run_stages(project: Project, stages: Sequence[str], refused_by: str | None = None) -> str:
    """Run `stages` in this process, each of which has to end well, but for the one that refuses. Returns what they said."""
    said = ""
    for stage in stages:
        status, printed = project.run_here(stage)
        assert status == (1 if stage == refused_by else 0), printed
        said += printed
    return said


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_bad_input_is_refused_with_a_clear_error_and_nothing_is_lost(
    case: Case,
    project: Project,
    registered: Registered,
    break_logs: Callable[[str, Breaker], None],
) -> None:
    break_logs(case.name, case.break_logs)
    kept = outputs_after(case.ran[:-1])
    before = project.digests(*kept)

    if case.by_dvc:
        said = project.run("dvc", "repro", succeeds=False)
        assert ran(said) == list(case.ran)
    else:
        said = run_stages(project, case.ran, refused_by=case.ran[-1])

    assert f"{case.ran[-1]} stopped: " in said
    assert "what to do: " in said
    for words in case.says:
        assert words in said, f"{words!r} is not in\n{said}"
    assert "Traceback" not in said
    assert project.digests(*kept) == before
    assert not list(project.root.rglob("*.staging"))
    assert registry_rows(project) == registered.rows


def test_rows_of_one_key_are_counted_and_the_same_one_stays(
    finished: Project,
    project: Project,
    registered: Registered,
    break_logs: Callable[[str, Breaker], None],
) -> None:
    """Rows written twice, and clicks also written as no clicks: what stays is what was there without them."""

    def break_(logs: Path) -> Settings:
        impressions = table_of(logs, "impressions")
        clicks = impressions.filter(impressions["clicked"]).slice(0, 50)
        conflicting = with_column(clicks, "clicked", pa.array(np.zeros(50, bool)))
        conflicting = with_column(conflicting, "watch_time_s", pa.array(np.zeros(50)))
        doubled = pa.concat_tables([conflicting, impressions, impressions.slice(1_000, 30)])
        pq.write_table(doubled, logs / "impressions.parquet")
        return {}

    break_logs("duplicate keys", break_)
    models = outputs_after(("ingest",))
    before = project.digests(*models)
    said = run_stages(project, ["ingest"])
    assert "same key dropped" in said
    metrics = project.metrics("ingest")
    assert metrics["impressions_exact_duplicates"] == 30
    assert metrics["impressions_key_duplicates"] == 50
    assert metrics["duplicates_dropped"] == 80
    assert tables_in(project, "data/ingested") == tables_in(finished, "data/ingested")
    assert project.digests(*models) == before
    assert registry_rows(project) == registered.rows


def test_a_column_without_values_is_done_without_and_one_user_with_a_third_of_all_events_is_bounded(
    project: Project, registered: Registered, break_logs: Callable[[str, Breaker], None]
) -> None:
    """An optional column of nulls, and a crawler: 9,000 impressions on pages of their own and 4,500 watches, at the
    hours of everybody else's.
    """
    crawler = 1

    def break_(logs: Path) -> Settings:
        drawn = np.random.default_rng(7)
        for name, instant, per_day in (("impressions", "shown_at", 1_000), ("watches", "watched_at", 500)):
            rows = table_of(logs, name)
            days = rows[instant].cast(pa.int64()).to_numpy() // 86_400_000_000
            like = np.concatenate(
                [drawn.choice(np.flatnonzero(days == day), per_day) for day in np.unique(days)]
            )
            # A little later than the rows that they are like, each at an instant of its own.
            later = pa.array(np.arange(1, len(like) + 1), pa.duration("us"))
            own = rows.take(pa.array(like))
            own = with_column(own, instant, pc.add(own[instant], later))
            own = with_column(own, "user_id", pa.array(np.full(len(like), crawler)))
            if name == "impressions":
                own = with_column(own, "request_id", pa.array(10**12 + np.arange(len(like))))
            pq.write_table(pa.concat_tables([rows, own]), logs / f"{name}.parquet")
        impressions = table_of(logs, "impressions")
        replace(logs, "impressions", "device", pa.nulls(impressions.num_rows, pa.string()))
        return {}

    break_logs("crawler", break_)
    models = outputs_after(("ingest", "validate", "featurize"))
    before = project.digests(*models)
    said = run_stages(project, ["ingest", "validate", "featurize"])
    assert "impressions: without a single value, so treated as absent: device" in said
    assert "absent from the models, the logs have no values for them: device" in said
    manifest = json.loads((project.root / "data/features/manifest.json").read_text(encoding="utf-8"))
    assert "device" in manifest["absent_inputs"]
    source = json.loads((project.root / "data/validated/source.json").read_text(encoding="utf-8"))
    assert source["tables"]["impressions"]["absent_columns"] == ["device"]
    for table in ("impressions", "watches"):
        assert f"warning: {table}: one_user_dominates" in said
    assert f"user_id={crawler}" in said
    examples = pq.read_table(project.root / "data/features/retrieval_examples/training")
    limit = config.read_params(project.root / "params.yaml")["featurize"]["examples_per_user"]
    assert pc.sum(pc.equal(examples["user_id"], crawler)).as_py() == limit
    assert examples.num_rows > 10 * limit
    assert project.digests(*models) == before
    assert registry_rows(project) == registered.rows


def test_after_all_of_it_users_are_told_the_same_of_the_registry(
    project: Project, registered: Registered
) -> None:
    assert project.status() == registered.status
