"""An MLflow client that dies in the middle of its work, and a way back to before it began."""

import contextlib
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
