"""The loop closes: people of the simulated world answer what is served, the next model learns from it, and is served.

Three times: a day is served by the champion, some slates drawn, what happened is exported, ingested, learned from and
judged, and the next day is served by whoever is champion then. The last time the logs are validated, too.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from model_stages import run_model_stages

from watchnext.config import RecommendParams
from watchnext.data.simulate import logging_policy, run, write_tables
from watchnext.data.slates import Feedback, Proposal, Requests
from watchnext.data.sources import Files
from watchnext.data.world import DAY_US, DEVICES, SURFACES, Dials, World, WorldSettings
from watchnext.decisions.checks import Checks, Margin
from watchnext.decisions.gate import promote_bundle
from watchnext.decisions.replay import Live, Vetoes, compare_and_crown
from watchnext.engine import EngineParams
from watchnext.recommend.recommender import Recommender
from watchnext.registry import DATABASE, Registry
from watchnext.serving.event_logs import LOGS, export_events
from watchnext.serving.events import Event, id_of
from watchnext.serving.exploration import Exploration
from watchnext.serving.pipeline_events import load_events
from watchnext.serving.service import Answer, Served, Service
from watchnext.serving.user_store import SqliteUserStore
from watchnext.stages.featurize import Params as FeaturizeParams
from watchnext.stages.featurize import featurize
from watchnext.stages.ingest import Params as IngestParams
from watchnext.stages.ingest import ingest
from watchnext.stages.package import Params as PackageParams
from watchnext.stages.package import package
from watchnext.stages.validate import Params as ValidateParams
from watchnext.stages.validate import validate
from watchnext.tracking import Tracker

NAME = "watchnext-files"
DAYS = 3
SETTINGS = WorldSettings(
    days=6, burn_in_days=1, further_days=DAYS, users=150, videos=240, topics=8, pages_per_user_day=1.0,
    page_size=5, candidates=16, dials=Dials(popularity=0.0),
)  # fmt: skip
CONTEXT = ("surface", "device", "logged_in")
LENIENT = Margin(margin=0.99, reason="the loop is looked at, not the models")


class ServedPages:
    """A policy that shows what a service answers, and keeps the answers."""

    def __init__(self, world: World, service: Service) -> None:
        self._world = world
        self._service = service
        self._index = {int(video): place for place, video in enumerate(world.videos.video_id)}
        self.answers: dict[tuple[int, int], Answer] = {}

    def begin_day(self, day_begins_us: int) -> None:
        """What the clients of the day say of their requests."""
        world = self._world
        come = world.arrivals((day_begins_us - world.start_us) // DAY_US, world.seed)
        self._contexts = {
            (int(user), int(at)): {
                "surface": SURFACES[come.sessions.surface[place]],
                "device": DEVICES[come.sessions.device[place]],
                "logged_in": bool(come.sessions.logged_in[place]),
            }
            for place, (user, at) in enumerate(zip(come.user, come.at_us, strict=True))
        }

    def propose(self, requests: Requests) -> Proposal:
        size = self._world.settings.page_size
        videos = np.empty((len(requests.user), size), np.int32)
        for row, (user, at) in enumerate(zip(requests.user, requests.at_us, strict=True)):
            user_id = int(self._world.users.user_id[user])
            answer = self._service.recommend(
                str(user_id), size, record=True, at=int(at), context=self._contexts[int(user), int(at)],
                request_id=f"{int(requests.key[row]):032x}",
            )  # fmt: skip
            assert not answer.degraded
            videos[row] = [self._index[int(str(video))] for video in answer.slate.video_ids]
            self.answers[user_id, int(at)] = answer
        # So steep that the world shows the slate as it is.
        return Proposal(videos, 1e-9 ** np.arange(size), 0.0)

    def observe(self, feedback: Feedback) -> None:
        pass


def told(tables: dict[str, pa.Table], answers: dict[tuple[int, int], Answer]) -> list[Event]:
    """What clients tell of a day: watches, with the page that they came from, and searches."""
    events = []
    pages: dict[tuple[int, int, float], Answer] = {}
    for row in _rows(tables["impressions"]):
        if row["clicked"]:
            page = answers[row["user_id"], row["shown_at"]]
            pages[row["user_id"], row["video_id"], row["watch_time_s"]] = page
    for row in _rows(tables["watches"]):
        user_id = row.pop("user_id")
        page = pages.get((user_id, row["video_id"], row["watch_time_s"]))
        if row["origin"] in SURFACES:
            assert page is not None
            row["request_id"] = page.request_id
        events.append(Event(str(user_id), id_of("watches", row), "watches", row))
    for row in _rows(tables["searches"]):
        events.append(Event(str(row.pop("user_id")), id_of("searches", row), "searches", row))
    return events


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    for name in ("shown_at", "watched_at", "searched_at"):
        if name in table.column_names:
            place = table.schema.get_field_index(name)
            micros = table[name].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
            table = table.set_column(place, name, micros)
    return list(table.to_pylist())


def learn_and_decide(root: Path, logs: Path, day: int, *, validated: bool) -> tuple[Path, dict[str, Any]]:
    """From logs to a verdict, by the stages themselves; the ingested tables, and what was decided."""
    work = root / f"day {day}"
    files = {"tables": {name: {"path": name} for name in (*LOGS, "videos", "users")}}
    params = IngestParams(source="files", files=Files.model_validate(files))
    engine = EngineParams()
    ingest(params, engine, logs, work / "ingested", work / "reports" / "ingest")
    tables = work / "ingested"
    if validated:
        validate(
            ValidateParams(),
            engine,
            tables,
            work / "validated",
            work / "quarantine",
            work / "reports" / "validate",
        )
        tables = work / "validated"
    featurize(FeaturizeParams(), engine, 1, tables, work / "features", work / "reports" / "featurize")
    run_model_stages(work, tables, work / "features", epochs=12, block_epochs=2)
    models = [work / name for name in ("features", "retrieval", "index", "sources", "ranking")]
    package(PackageParams(), RecommendParams(), *models, work / "bundle", work / "reports" / "package")
    registry = Registry.open(root)
    common: dict[str, Any] = {
        "name": NAME, "bundle": work / "bundle", "features": work / "features", "exclude": "watched",
        "pipeline_run": lambda: Tracker.open(root).pipeline_run(f"{day}-1.00"), "previous_metrics": None,
    }  # fmt: skip
    checks = Checks(recall_at_100=LENIENT, weighted_pairwise_loss=LENIENT)
    promoted = promote_bundle(
        registry,
        **common,
        checks=checks,
        champion_not_comparable="hold",
        out_report=work / "reports" / "promote",
    )
    compared = compare_and_crown(
        registry, **common, tables=tables, evidence="offline", requests=20, slate_length=5,
        live=Live(), vetoes=Vetoes(recall_at_100=LENIENT, weighted_pairwise_loss=LENIENT),
        out_report=work / "reports" / "compare",
    )  # fmt: skip
    return tables, {"promote": promoted, "compare": compared}


@pytest.mark.slow
def test_three_days(empty_mlflow_database: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    (root / DATABASE).parent.mkdir(parents=True)
    shutil.copy2(empty_mlflow_database, root / DATABASE)
    world = World(SETTINGS, 5)
    past = run(world, logging_policy(world), SETTINGS.burn_in_days + SETTINGS.days)
    until_us = world.start_us + (SETTINGS.days + DAYS) * DAY_US
    tables = past.tables | {
        "videos": world.video_table(np.flatnonzero(world.videos.uploaded_us < until_us)),
        "users": world.user_table(np.flatnonzero(world.users.signed_up_us < until_us)),
    }
    write_tables(tables, root / "simulated")
    ingest(IngestParams(), EngineParams(), root / "simulated", root / "earlier", root / "report")
    store = SqliteUserStore(root / "state" / "users.db")
    load_events(root / "earlier", store)
    logs, experiment = root / "state" / "logs", root / "state" / "experiment"
    export_events(store, logs, experiment, earlier=root / "earlier")
    learned, decided = learn_and_decide(root, logs, 0, validated=False)
    registry = Registry.open(root)
    assert registry.role(NAME, "champion") is not None, decided

    state, shown, watched = past.state, 0, 0
    crowned = 1
    for day in range(1, DAYS + 1):
        champion = registry.role(NAME, "champion")
        assert champion is not None
        assert champion.number == crowned
        service = Service(
            store,
            Served(champion, Recommender.open(registry.bundle(champion))),
            Exploration(0.3),
        )
        policy = ServedPages(world, service)
        outcome = run(world, policy, 1, state)
        state = outcome.state
        new = told(outcome.tables, policy.answers)
        assert all(service.add(new))
        shown += outcome.tables["impressions"].num_rows
        watched += outcome.tables["watches"].num_rows
        # What is in the store has survived a process that ended here; the next one exports it.
        store.close()
        store = SqliteUserStore(root / "state" / "users.db")
        rows = export_events(store, logs, experiment, earlier=root / "earlier")
        assert (rows["impressions"], rows["watches"]) == (shown, watched)

        learned, decided = learn_and_decide(root, logs, day, validated=day == DAYS)
        ingested = ds.dataset(sorted(map(str, (learned / "impressions").glob("part-*.parquet")))).to_table()
        before = pq.read_metadata(root / "earlier" / "impressions" / "part-00000.parquet").num_rows
        assert ingested.num_rows == before + shown
        of_day = outcome.tables["impressions"]
        by_page = {(row["request_id"], row["video_id"]): row for row in ingested.to_pylist()}
        for row in of_day.to_pylist():
            answer = policy.answers[row["user_id"], int(row["shown_at"].timestamp() * 1e6 + 0.5)]
            found = by_page[answer.request_id, row["video_id"]]
            for name in ("user_id", "clicked", "watch_time_s", "position", "shown_at", *CONTEXT):
                assert found[name] == row[name], name
            assert 0 < found["propensity"] <= 1
            assert set(found["sources"]) == set(answer.slate.videos[row["position"]].sources)
        manifest = json.loads((root / f"day {day}" / "bundle" / "manifest.json").read_text())
        assert manifest["trained_until_at"] == f"2026-03-{SETTINGS.days - 2 + day:02d}T00:00:00+00:00"
        # Whoever passes the gate and the comparison serves the next day; else the one before goes on.
        if decided["compare"]["verdict"] == "crown":
            assert decided["promote"]["verdict"] == "challenger"
            crowned = day + 1
    store.close()
    # Every model of the loop has been judged, and is in the registry with what it was judged by.
    assert [registry.version(NAME, number).number for number in range(1, DAYS + 2)] == [1, 2, 3, 4]
    last = registry.role(NAME, "champion")
    assert last is not None
    assert last.number == crowned
