"""One project with three registered versions, and one server, for all tests of a session."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import NAME, LiveServer, assign

from watchnext.bundle import Bundle
from watchnext.decisions.gate import _register
from watchnext.registry import DATABASE, Registry
from watchnext.serving.pipeline_events import load_events
from watchnext.serving.user_store import SqliteUserStore
from watchnext.tracking import Tracker


@pytest.fixture(scope="session")
def serving_project(
    empty_mlflow_database: Path,
    right_bundle: Bundle,
    wrong_bundle: Bundle,
    world_tables: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A project whose version 1 is right about the tiny world and champion, and whose version 2 is wrong about it."""
    root = tmp_path_factory.mktemp("serving") / "my project"
    (root / DATABASE).parent.mkdir(parents=True)
    shutil.copy2(empty_mlflow_database, root / DATABASE)
    registry = Registry.open(root)
    run_id = Tracker.open(root).pipeline_run("1-1.00")
    for number, bundle in ((1, right_bundle), (2, wrong_bundle)):
        assert _register(registry, NAME, bundle, run_id).number == number
    assign(root, "champion", 1)
    store = SqliteUserStore(root / "state" / "users.db")
    load_events(world_tables, store)
    store.close()
    return root


@pytest.fixture(scope="session")
def server(serving_project: Path) -> Iterator[LiveServer]:
    """A server that is ready. Tests use users of their own, and leave version 1 champion."""
    running = LiveServer(serving_project).wait_until_ready()
    yield running
    assert running.end() == 0
