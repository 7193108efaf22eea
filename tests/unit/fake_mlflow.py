"""An MLflow client that dies in the middle of its work, and a way back to before it began."""

import contextlib
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from watchnext.registry import Registry


class Killed(BaseException):
    """What `kill -9` looks like from inside: nothing after it runs, nobody catches it."""


class KilledAtWrite:
    """An MLflow client that dies at its n-th write, counted from 1, before doing it."""

    def __init__(self, client: Any, at_write: int) -> None:
        self.client = client
        self.left = at_write
        self.writes: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        if not name.startswith(("set_", "create_", "delete_", "log_", "finalize_")):
            return method

        def write(*arguments: Any, **named: Any) -> Any:
            self.writes.append(name)
            self.left -= 1
            if self.left == 0:
                raise Killed(name)
            return method(*arguments, **named)

        return write


class KillsItself(KilledAtWrite):
    """The same, by `kill -9` of the process that it is in."""

    def __getattr__(self, name: str) -> Any:
        method = super().__getattr__(name)

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return method(*arguments, **named)
            except Killed:
                os.kill(os.getpid(), signal.SIGKILL)

        return call if callable(method) else method


def killed_for_real_at(at_write: int, root: Path, step: Callable[..., object], *arguments: object) -> bool:
    """Run `step(registry, *arguments)` in a process of its own that is killed before its n-th write.

    Processes are forked off one that has imported MLflow and touched no database.

    Returns:
        Whether it got so far; False where it had fewer writes to do, and ended well.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["mlflow", "watchnext.decisions.replay", __name__])
    process = forks.Process(target=_until_killed, args=(at_write, root, step, *arguments))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _until_killed(at_write: int, root: Path, step: Callable[..., object], *arguments: object) -> None:
    registry = Registry.open(root)
    registry._mlflow_client = KillsItself(registry._client(), at_write)
    step(registry, *arguments)


class Snapshot:
    """A database as it is now, to go back to while others have it open."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.copy = sqlite3.connect(":memory:")
        with contextlib.closing(sqlite3.connect(database)) as source:
            source.backup(self.copy)

    def restore(self) -> None:
        """Make the database what it was."""
        with contextlib.closing(sqlite3.connect(self.database)) as target:
            self.copy.backup(target)


def killed_at(
    at_write: int, start: Snapshot, root: Path, step: Callable[[Registry], object]
) -> KilledAtWrite:
    """Go back to `start`, then run `step` with a registry that dies at its n-th write. Returns the client."""
    start.restore()
    registry = Registry.open(root)
    client = KilledAtWrite(registry._client(), at_write)
    registry._mlflow_client = client
    with contextlib.suppress(Killed):
        step(registry)
    return client
