"""Undo and look up: who was champion when, and the way back, whatever happens on it."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_mlflow import Snapshot, killed_at
from test_registry import Project, roles

from watchnext import cli
from watchnext.errors import InputError
from watchnext.registry import DATABASE, ROLLBACK, Registry

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three versions, each crowned over the one before."""
    project = Project(tmp_path)
    registry = Registry.open(tmp_path)
    for number in (1, 2, 3):
        project.register(registry, number)
        project.crown(registry, number, over=number - 1 or None)
    assert roles(registry) == {"champion": 3, "previous": 2}
    return project


@pytest.fixture
def watchnext(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The command line in the project's folder; in this process, since each of its own takes seconds to start."""
    monkeypatch.chdir(project.root)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["watchnext", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


def test_back_and_forth(project: Project) -> None:
    registry = Registry.open(project.root)
    with_three = datetime.now(UTC)
    before, champion = registry.roll_back("watchnext", reason="slates of one channel")
    assert (before, champion.number) == (3, 2)
    assert roles(registry) == {"champion": 2, "previous": 1}, (
        "the way back from 2 is whom it was crowned over"
    )
    assert registry.version("watchnext", 3).rolled_back_because == "slates of one channel"
    event = registry.history("watchnext")[-1]
    assert (event.before, event.version, event.reason) == (3, 2, "slates of one channel")
    assert event.evidence == ROLLBACK
    for instant, expected in ((with_three, 3), (datetime.now(UTC), 2)):
        found = registry.champion_at("watchnext", instant)
        assert found is not None
        assert found.version == expected

    registry.roll_back("watchnext", reason="this one, too")
    assert roles(registry) == {"champion": 1}, "there was nobody before 1"
    registry.roll_back("watchnext", to=3, reason="3 was right after all")
    assert roles(registry) == {"champion": 3, "previous": 2}
    refused = [number for number in (1, 2, 3) if registry.version("watchnext", number).rolled_back_because]
    assert refused == [1, 2]


@pytest.mark.parametrize(
    ("to", "reason", "words"),
    [
        (None, "  ", "needs a reason"),
        (3, "why", "is the champion already"),
        (4, "why", "was never champion"),
        (9, "why", "was never champion"),
    ],
)
def test_what_cannot_be_gone_back_to(project: Project, to: int | None, reason: str, words: str) -> None:
    registry = Registry.open(project.root)
    project.register(registry, 4)
    with pytest.raises(InputError, match=words):
        registry.roll_back("watchnext", to=to, reason=reason)
    assert roles(registry) == {"champion": 3, "previous": 2}
    assert len(registry.history("watchnext")) == 3


def test_nobody_is_rolled_back_to_files_that_are_gone(project: Project) -> None:
    registry = Registry.open(project.root)
    (registry.bundle(registry.version("watchnext", 2)).ranker / "saved_model.pb").unlink()
    with pytest.raises(InputError, match="lacks files"):
        registry.roll_back("watchnext", reason="why")
    assert roles(registry) == {"champion": 3, "previous": 2}
    assert not registry.version("watchnext", 3).rolled_back_because


def test_without_a_previous_champion_it_says_so(tmp_path: Path) -> None:
    project, registry = Project(tmp_path), Registry.open(tmp_path)
    project.register(registry, 1)
    with pytest.raises(InputError, match="has no champion"):
        registry.roll_back("watchnext", reason="why")
    project.crown(registry, 1)
    with pytest.raises(InputError, match="no previous champion"):
        registry.roll_back("watchnext", reason="why")


def test_killed_at_any_write_a_pipeline_finishes_it(project: Project) -> None:
    """Meant to fail with `previous` moved before `champion`. That the same call does: see test_killed_decisions."""
    start = Snapshot(project.root / DATABASE)
    for at_write in range(1, 100):
        client = killed_at(
            at_write, start, project.root, lambda registry: registry.roll_back("watchnext", reason="why")
        )
        killed = Registry.open(project.root)
        champion = roles(killed)["champion"]
        assert champion in (2, 3), client.writes
        stood = killed.champion_at("watchnext", datetime.now(UTC))
        assert stood is not None
        assert stood.version == champion, "history and alias agree at every step"
        if client.left > 0:
            break
        killed.tidy("watchnext")
        assert roles(killed) == (
            {"champion": 2, "previous": 1} if champion == 2 else {"champion": 3, "previous": 2}
        )
    assert at_write > 4


def test_the_commands(project: Project, watchnext: Command) -> None:
    registry = Registry.open(project.root)
    third = registry.version("watchnext", 3)
    check = {
        "name": "recall_at_100",
        "value": "0.4",
        "bound": ">= 0.3",
        "outcome": "passed",
        "reason": "for users",
    }
    registry.keep(
        third, "gate", "by these rules", {"verdict": "challenger", "reason": "good", "checks": [check]}
    )
    nobody = watchnext("rollback")
    assert nobody.returncode != 0
    assert "--reason" in nobody.stderr
    done = watchnext("rollback", "--reason", "slates of one channel")
    assert done.returncode == 0, done.stderr
    assert "champion is version 2, no longer version 3" in done.stderr + done.stdout

    events = json.loads(watchnext("history", "--json").stdout)
    assert [(event["before"], event["version"]) for event in events] == [(None, 1), (1, 2), (2, 3), (3, 2)]
    for event in events:
        (then,) = json.loads(watchnext("history", "--json", "--at", event["at"]).stdout)
        assert then == event
    wrong = watchnext("history", "--at", "yesterday")
    assert wrong.returncode == 1
    assert "`yesterday` is no instant" in wrong.stderr
    early = watchnext("history", "--at", "2001-01-01")
    assert "had no champion" in early.stderr + early.stdout
    table = watchnext("history")
    assert "slates of one" in table.stdout + table.stderr

    told = json.loads(watchnext("explain", "3", "--json").stdout)
    assert told["bundle_digest"] == project.bundle(3).digest
    assert (told["roles"], told["rolled_back_because"]) == ([], "slates of one channel")
    assert [one["checks"] for one in told["decisions"]] == [[check]]
    assert told["run_id"] == project.run_id
    plain = watchnext("explain", "3")
    assert plain.returncode == 0, plain.stderr
    for word in ("recall_at_100", ">= 0.3", "for users", "rolled back because"):
        assert word in plain.stdout + plain.stderr

    missing = watchnext("explain", "12")
    assert missing.returncode == 1
    assert "there is no version 12" in missing.stderr
    other = watchnext("history", "--model", "another")
    assert other.returncode == 1
    assert "no registered model another" in other.stderr


def test_an_alias_set_by_hand_is_seen(project: Project, watchnext: Command) -> None:
    registry = Registry.open(project.root)
    assert registry.moved_by_hand("watchnext") is None
    registry._client().set_registered_model_alias("watchnext", "champion", "1")
    assert registry.moved_by_hand("watchnext") == 1
    shown = watchnext("history")
    assert "version 1 is champion now" in shown.stdout + shown.stderr
