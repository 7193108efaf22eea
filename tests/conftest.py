"""What several folders of tests share: a tiny world, bundles that know it or do not, and a server of one of them."""

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
from watchnext.tracking import Tracker, open_client


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs. Copied, because making one takes MLflow more than a second."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_client(f"sqlite:///{database}", f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture(scope="session")
def world_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Validated tables of the tiny world (see tiny_world)."""
    import tiny_world

    return tiny_world.write_tables(tmp_path_factory.mktemp("world") / "validated")


@pytest.fixture(scope="session")
def world_features(world_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the tiny world."""
    import tiny_world

    return tiny_world.write_features(world_tables, tmp_path_factory.mktemp("world") / "features")


@pytest.fixture(scope="session")
def right_bundle(world_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Both models are right about the tiny world."""
    import tiny_world

    return tiny_world.make_bundle(tmp_path_factory.mktemp("right"), world_features)


@pytest.fixture(scope="session")
def wrong_bundle(world_features: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Candidates are from elsewhere on the ring, and the ranking is upside down."""
    import tiny_world

    return tiny_world.make_bundle(
        tmp_path_factory.mktemp("wrong"), world_features, steps=150, watch_time_sign=-1.0
    )


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--in-full",
        action="store_true",
        help="tests/serving: 100 swaps instead of 10, 10,000 malformed requests instead of some hundred; also bench-serve",
    )


@pytest.fixture(scope="session")
def in_full(request: pytest.FixtureRequest) -> bool:
    """Whether faults are put in as often as docs/serving.md gives figures for."""
    return bool(request.config.getoption("--in-full"))
