"""Two promotions at once: one wins and the other says so, in SQLite and in PostgreSQL."""

import multiprocessing
import signal
from collections.abc import Iterator
from pathlib import Path

import postgresql
import pytest
from team_servers import crown_at_once
from test_registry import Project, roles

from watchnext.errors import InputError
from watchnext.registry import Registry

PROGRAMS = postgresql.binaries()

needs_postgresql = pytest.mark.skipif(
    PROGRAMS is None,
    reason="PostgreSQL is not installed: apt-get install postgresql, to see that the lock holds there",
)


@pytest.fixture(scope="module")
def postgresql_uri() -> Iterator[str]:
    assert PROGRAMS is not None
    with postgresql.server(PROGRAMS) as running:
        yield running.address()


def hold(root: Path, held: object) -> None:
    with Registry.open(root)._locked():
        held.set()  # type: ignore[attr-defined]
        signal.pause()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def project(request: pytest.FixtureRequest, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    if request.param == "postgresql":
        uri = request.getfixturevalue("postgresql_uri")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.chdir(project_root)  # MLflow puts the artifacts of such a store below the present folder
    return Project(project_root)


def test_of_two_promotions_at_once_one_wins(project: Project) -> None:
    """Seen to fail without the lock: both saw version 1 as champion, both moved the alias, and both were told so."""
    registry = Registry.open(project.root)
    for number in (1, 2, 3):
        project.register(registry, number)
    project.crown(registry, 1)
    winner, loser = crown_at_once("watchnext", {2: project.root, 3: project.root})
    assert "changed while this decision was being made" in loser
    assert f"champion is version {winner}" in loser
    assert roles(registry) == {"champion": winner, "previous": 1}
    assert [event.version for event in registry.history("watchnext")] == [1, winner]


def test_a_lock_that_is_held_is_waited_for_and_free_after_a_kill(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(project.root)
    project = Project(project.root, name="locked")  # both tests may share a database
    first, version = (project.register(registry, number) for number in (1, 2))
    project.crown(registry, 1)
    processes = multiprocessing.get_context("spawn")
    held = processes.Event()
    holder = processes.Process(target=hold, args=(project.root, held))
    holder.start()
    assert held.wait(120)
    monkeypatch.setattr("watchnext.registry._LOCK_WAIT_S", 0.2)
    before = registry._aliases("locked")
    with pytest.raises(InputError, match="another process is changing the registry"):
        registry.challenge(version, over=first, reason="", evidence="", run_id="")
    assert registry._aliases("locked") == before
    holder.kill()
    holder.join()
    monkeypatch.setattr("watchnext.registry._LOCK_WAIT_S", 30.0)
    registry.challenge(version, over=first, reason="", evidence="", run_id="")
    assert registry._aliases("locked") == {"champion": 1, "challenger": 2}
