"""`kill -9` at each write to the registry: whoever asks then is told one champion, and the next run finishes the job."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from decided_steps import Step, compare, promote, roll_back
from fake_mlflow import Snapshot, killed_for_real_at

from watchnext.bundle import Bundle
from watchnext.decisions import gate, replay
from watchnext.registry import DATABASE, Registry

STEPS: tuple[tuple[Step, dict[str, int]], ...] = (
    (promote, {"champion": 1, "challenger": 2}),
    (compare, {"champion": 2, "previous": 1}),
    (roll_back, {"champion": 1}),
)


@pytest.mark.parametrize("place", range(len(STEPS)), ids=[step.__name__ for step, _ in STEPS])
def test_history_and_alias_agree_after_every_kill(
    place: int,
    project_root: Path,
    world_features: Path,
    world_tables: Path,
    right_bundle: Bundle,
    wrong_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Meant to fail with the alias moved before its event, and with events that count before their alias is moved."""
    monkeypatch.setattr(gate, "judge", None)
    monkeypatch.setattr(replay, "_compare", None)
    folders = (wrong_bundle.path, world_features, world_tables)
    promote(Registry.open(project_root), right_bundle.path, *folders[1:])
    for step, _ in STEPS[:place]:
        step(Registry.open(project_root), *folders)
    step, after = STEPS[place]
    before = Registry.open(project_root)._aliases("watchnext")
    start = Snapshot(project_root / DATABASE)
    at_write, was_killed = 0, True
    while was_killed:
        start.restore()
        at_write += 1
        was_killed = killed_for_real_at(at_write, project_root, step, *folders)

        killed = Registry.open(project_root)
        champion = killed._aliases("watchnext")["champion"]
        assert champion in (before["champion"], after["champion"])
        assert last_crowned(killed) == champion, f"killed at write {at_write}"
        assert killed.moved_by_hand("watchnext") is None

        if was_killed:
            step(Registry.open(project_root), *folders)
        Registry.open(project_root).tidy("watchnext")
        finished = Registry.open(project_root)
        assert finished._aliases("watchnext") == after, f"killed at write {at_write}"
        assert last_crowned(finished) == after["champion"]
        events = finished.history("watchnext")
        assert len(events) == 2 + place, f"killed at write {at_write}: {events}"
        kept = finished.version("watchnext", 2).decisions
        assert [decided.kind for decided in kept] == ["gate", "shadow"][: place + 1], "decided once"
    assert at_write > 4


def last_crowned(registry: Registry) -> Any:
    """By both ways to ask."""
    now = registry.champion_at("watchnext", datetime.now(UTC))
    crownings = [event for event in registry.history("watchnext") if event.role == "champion"]
    assert now == crownings[-1]
    return crownings[-1].version
