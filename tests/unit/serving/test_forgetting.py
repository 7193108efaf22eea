"""`watchnext forget`: the id is looked for in every file of the project, Parquet decoded, before and after."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from watchnext import cli
from watchnext.serving.event_logs import export_events
from watchnext.serving.events import Event, id_of
from watchnext.serving.experiment import Experiment
from watchnext.serving.pipeline_events import load_events
from watchnext.serving.service import Served, Service
from watchnext.serving.shadow_log import ShadowLog
from watchnext.serving.user_store import SqliteUserStore

AT = 1_768_000_000_000_000
LEAVES, STAYS = "person-17-x", "person-18-x"
"""Neither begins another id, nor does another id with what stands behind it in a file."""


def copy_with_text_ids(source: Path, target: Path) -> None:
    """A folder of tables in which user 17 is "person-17-x"."""
    for path in sorted(one for one in source.rglob("*") if one.is_file()):
        into = target / path.relative_to(source)
        into.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".parquet":
            shutil.copy(path, into)
            continue
        table = pq.read_table(path)
        if "user_id" in table.column_names:
            names = pc.binary_join_element_wise("person", table["user_id"].cast(pa.string()), "x", "-")
            table = table.set_column(table.schema.get_field_index("user_id"), "user_id", names)
        pq.write_table(table, into)


def holders(root: Path, user_id: str) -> dict[str, int]:
    """Files of a project that hold an id, and how often: rows of Parquet files, any other file as bytes."""

    def values(cell: Any) -> list[Any]:
        return [one for part in cell for one in values(part)] if isinstance(cell, list) else [cell]

    found = {}
    for path in sorted(one for one in root.rglob("*") if one.is_file()):
        content = path.read_bytes()
        if content[:4] == b"PAR1":
            rows = pq.read_table(path).to_pylist()
            count = sum(any(user_id in map(str, values(cell)) for cell in row.values()) for row in rows)
        else:
            count = content.count(user_id.encode())
        if count:
            found[str(path.relative_to(root))] = count
    return found


@pytest.fixture
def project(
    tmp_path: Path, world_tables: Path, world_features: Path, versions: tuple[Served, Served]
) -> Path:
    """Somebody who watched, was shown slates and searched, in all that a project writes."""
    root = tmp_path / "project"
    copy_with_text_ids(world_tables, root / "data" / "validated")
    copy_with_text_ids(world_features, root / "data" / "features")
    cached = root / ".dvc" / "cache" / "files" / "md5" / "ab"
    cached.mkdir(parents=True)
    shutil.copy(root / "data" / "validated" / "watches" / "part-00000.parquet", cached / "cdef")
    shutil.copy(root / "data" / "validated" / "videos" / "part-00000.parquet", cached / "0123")
    store = SqliteUserStore(root / "state" / "users.db")
    load_events(root / "data" / "validated", store)
    experiment = Experiment("watchnext", "ab", 0.5)
    experiment.challenger = versions[1]
    service = Service(store, versions[0], experiment=experiment)
    shadow = ShadowLog(root / "state" / "shadow", integer_video_ids=True)
    for user in (LEAVES, STAYS):
        page = service.recommend(user, 5, record=True, at=AT)
        watch = {
            "video_id": page.slate.video_ids[0],
            "watched_at": AT + 1,
            "watch_time_s": 1.0,
            "completed": False,
        }
        service.add([Event(user, id_of("watches", watch), "watches", watch)])
        shadow.add({"request_id": page.request_id, "at": AT, "user_id": user, "champion_video_ids": [1000]})
    shadow.flush()
    export_events(store, root / "state" / "logs", root / "state" / "experiment", root / "data" / "validated")
    store.close()
    (root / "their logs").mkdir()
    (root / "their logs" / "plays.csv").write_text(f"who,what\n{STAYS},3\n{LEAVES},4\n")
    (root / "their logs" / "other.csv").write_text(f"who,what\n{STAYS},3\n")
    (root / "params.yaml").write_text(
        "ingest:\n  source: files\n  path: their logs\n  files:\n    tables:\n"
        "      watches: {path: plays.csv, columns: {user_id: who}}\n"
    )
    return root


def test_no_file_of_the_project_holds_somebody_who_was_forgotten(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    before, others = holders(project, LEAVES), holders(project, STAYS)
    assert {Path(name).parts[0] for name in before} == {"state", "data", ".dvc", "their logs"}
    for name in ("logs/impressions", "logs/watches", "logs/users", "experiment/served", "experiment/watched"):
        assert f"state/{name}/part-00000.parquet" in before
    assert any(name.startswith("state/shadow/") for name in before)
    assert any(name.startswith("data/features/ranking_examples/") for name in before)
    assert "state/users.db" in before or "state/users.db-wal" in before

    cli.forget(LEAVES, "state/users.db")

    assert holders(project, LEAVES) == {"their logs/plays.csv": 1}
    left = holders(project, STAYS)
    assert not (project / ".dvc" / "cache" / "files" / "md5" / "ab" / "cdef").exists()
    assert (project / ".dvc" / "cache" / "files" / "md5" / "ab" / "0123").exists()
    for name, count in others.items():
        if name.endswith(".parquet"):
            assert left[name] == count, name
    said = capsys.readouterr()
    told = said.out + said.err
    assert "plays.csv" in told
    assert "other.csv" not in told
    assert "keep what they learned" in told
    store = SqliteUserStore(project / "state" / "users.db")
    assert store.events(LEAVES) == []
    assert store.events(STAYS)
    store.close()
    assert not list(project.rglob("*.staging"))

    cli.forget(LEAVES, "state/users.db")
    assert "0 events deleted" in (lambda one: one.out + one.err)(capsys.readouterr())
