"""What a server showed and was told, as tables: for `ingest`, and for the comparison of an experiment's arms."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from watchnext import schema
from watchnext.data.sources import Files
from watchnext.engine import EngineParams
from watchnext.errors import InputError
from watchnext.serving.event_logs import LOGS, export_events
from watchnext.serving.events import Event, id_of
from watchnext.serving.experiment import Experiment
from watchnext.serving.exploration import Exploration
from watchnext.serving.pipeline_events import load_events
from watchnext.serving.service import Answer, Served, Service
from watchnext.serving.user_store import SqliteUserStore
from watchnext.stages.ingest import Params, ingest

AT = 1_768_000_000_000_000
MINUTE = 60_000_000


def read(directory: Path) -> list[dict[str, Any]]:
    return [
        row for part in sorted(directory.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()
    ]


def watch(answer: Answer, place: int) -> Event:
    row = {
        "video_id": answer.slate.video_ids[place],
        "watched_at": answer.at + MINUTE,
        "watch_time_s": 33.5,
        "completed": True,
        "origin": "home",
        "request_id": answer.request_id,
    }
    return Event(answer.user_id, id_of("watches", row), "watches", row)


@pytest.fixture
def service(tmp_path: Path, versions: tuple[Served, Served], world_tables: Path) -> Service:
    """Two users of the pipeline asked, clicked and searched; what the pipeline knew is in the state as well."""
    store = SqliteUserStore(tmp_path / "users.db")
    load_events(world_tables, store)
    experiment = Experiment("watchnext", "interleave", 0.999)
    service = Service(store, versions[0], Exploration(0.5), experiment)
    for user in ("3", "5"):
        service.recommend(user, 4, record=True, at=AT, context={"surface": "home"})
    experiment.challenger = versions[1]
    for user in ("3", "5"):
        page = service.recommend(user, 4, record=True, at=AT + 2 * MINUTE, context={"surface": "home"})
        assert page.arm == "interleaved"
        search = {"searched_at": AT + 5 * MINUTE, "query": "piano"}
        service.add([watch(page, 1), Event(user, "a search", "searches", search)])
    return service


def test_ingest_reads_what_was_served(service: Service, world_tables: Path, tmp_path: Path) -> None:
    """With the earlier tables beside: nothing is lost, nothing counts twice."""
    logs, experiment = tmp_path / "logs", tmp_path / "experiment"
    rows = export_events(service.store, logs, experiment, earlier=world_tables)
    assert rows == {"impressions": 16, "watches": 2, "searches": 2, "served": 2, "watched": 2}
    again = export_events(service.store, logs, experiment, earlier=world_tables)
    assert again == rows
    files = Files.model_validate({"tables": {name: {"path": name} for name in (*LOGS, "videos", "users")}})
    ingest(
        Params(source="files", files=files), EngineParams(), logs, tmp_path / "tables", tmp_path / "report"
    )
    earlier = {name: pq.read_table(world_tables / name) for name in ("impressions", "watches")}
    ingested = {name: pa.Table.from_pylist(read(tmp_path / "tables" / name)) for name in (*LOGS, "users")}
    assert ingested["impressions"].num_rows == earlier["impressions"].num_rows + 16
    assert ingested["watches"].num_rows == earlier["watches"].num_rows + 2
    assert ingested["searches"].num_rows == 2
    assert pa.types.is_integer(ingested["users"]["user_id"].type)
    served = {
        (row["request_id"], row["video_id"]): row
        for event in [one for user in ("3", "5") for one in service.store.events(user)]
        if event.table == "impressions" and "told_at" in (row := event.row)
    }
    found = [
        row for row in ingested["impressions"].to_pylist() if (row["request_id"], row["video_id"]) in served
    ]
    assert len(found) == 16
    for row in found:
        told = served[row["request_id"], row["video_id"]]
        for name in ("position", "sources", "source_scores", "propensity", "surface"):
            assert row[name] == told[name], name
        assert int(row["shown_at"].timestamp() * 1e6) == told["shown_at"]
    clicked = [row for row in found if row["clicked"]]
    assert [(row["position"], row["watch_time_s"]) for row in clicked] == [(1, 33.5), (1, 33.5)]
    assert sum(row["propensity"] is not None for row in found) == 8  # those that are not interleaved


def test_an_experiments_log(service: Service, tmp_path: Path) -> None:
    export_events(service.store, tmp_path / "logs", tmp_path / "experiment")
    served = read(tmp_path / "experiment" / "served")
    assert [row["user_id"] for row in served] == ["3", "5"]
    for row in served:
        assert row["experiment_id"] == "watchnext:interleave:0.999:1:2"
        assert (row["mode"], row["arm"], row["champion_version"], row["challenger_version"]) == (
            "interleave",
            None,
            1,
            2,
        )
        assert sorted(row["teams"]) == ["challenger"] * 2 + ["champion"] * 2
        assert len(set(row["video_ids"])) == 4
    watched = read(tmp_path / "experiment" / "watched")
    assert [(row["user_id"], row["watch_time_s"], row["completed"]) for row in watched] == [
        ("3", 33.5, True),
        ("5", 33.5, True),
    ]
    assert [row["request_id"] for row in watched] == [row["request_id"] for row in served]
    assert [row["video_id"] for row in watched] == [row["video_ids"][1] for row in served]
    columns = pq.read_schema(tmp_path / "logs" / "impressions" / "part-00000.parquet").names
    assert set(schema.IMPRESSIONS.column_names) < set(columns)


def test_a_failed_export_leaves_the_last_one(service: Service, tmp_path: Path) -> None:
    export_events(service.store, tmp_path / "logs", tmp_path / "experiment")
    before = read(tmp_path / "logs" / "impressions")
    row = {"video_id": "text", "watched_at": AT, "watch_time_s": 1.0, "completed": True}
    service.add([Event("7", "another catalogue", "watches", row)])
    with pytest.raises(InputError, match="numbers in one place"):
        export_events(service.store, tmp_path / "logs", tmp_path / "experiment")
    assert read(tmp_path / "logs" / "impressions") == before
    assert not list(tmp_path.glob("*/*.staging"))
