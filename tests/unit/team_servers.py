"""A team's servers, each a real one: PostgreSQL, MLflow in front of it, Redis; and two machines that share nothing else."""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import postgresql
import pytest
from postgresql import PostgreSQL
from redis_process import RedisProcess
from tracking_server import TrackingServer

from watchnext.errors import InputError
from watchnext.registry import LOCK_VARIABLE, Registry

PASSWORD = "pass-word/of?the:database"
QUOTED = "pass-word%2Fof%3Fthe%3Adatabase"
STATE_PASSWORD = "password-of-the-user-state"
CROWNED = "crowned"


@dataclass(frozen=True)
class Team:
    """What a team shares.

    Attributes:
        database: PostgreSQL, whose users show passwords.
        tracking: MLflow in front of the database `mlflow`; it alone sees the folder of artifacts.
        redis: for user state, with a password.
        lock_uri: what promotions lock: another database there, by a user who may connect to it and nothing else.
    """

    database: PostgreSQL
    tracking: TrackingServer
    redis: RedisProcess
    lock_uri: str

    def by_server(self) -> dict[str, str]:
        """Variables of a machine that reaches the registry by the tracking server."""
        return {"MLFLOW_TRACKING_URI": self.tracking.uri, LOCK_VARIABLE: self.lock_uri}

    def by_database(self) -> dict[str, str]:
        """Variables of a machine that reaches the registry in its database, and artifacts by the tracking server."""
        return {
            "MLFLOW_TRACKING_URI": self.tracking.uri,
            "MLFLOW_REGISTRY_URI": self.database.address("mlflow"),
        }

    def conceals_passwords(self, text: str) -> bool:
        """Whether no password of the team is in a text."""
        return not any(
            secret in text for secret in (PASSWORD, QUOTED, STATE_PASSWORD, "password-of-the-lock")
        )


@contextlib.contextmanager
def team_servers(programs: Path, folder: Path) -> Iterator[Team]:
    """Start them all, in a folder of their own, and end them."""
    redis = RedisProcess(folder, password=STATE_PASSWORD)
    with postgresql.server(programs, password=PASSWORD) as database:
        for statement in (
            "CREATE DATABASE mlflow",
            "CREATE DATABASE locks",
            "CREATE ROLE lock LOGIN PASSWORD 'password-of-the-lock'",
            "REVOKE ALL ON DATABASE locks FROM PUBLIC",
            "GRANT CONNECT ON DATABASE locks TO lock",
        ):
            database.execute(statement)
        lock_uri = f"postgresql://lock:password-of-the-lock@127.0.0.1:{database.port}/locks"
        tracking = TrackingServer(folder, database.address("mlflow"), artifacts=folder / "artifacts")
        try:
            yield Team(database, tracking, redis, lock_uri)
        finally:
            tracking.stop()
            redis.kill()


def machine(root: Path, variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, and this process as if it worked there."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", LOCK_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)
    return root


def crown_at_once(
    name: str, versions: Mapping[int, Path], variables: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Two or more processes crown a version each over version 1 at the same time, and one of them is told that it did.

    Args:
        name: of the model.
        versions: number -> the project folder of whoever crowns it.
        variables: environment variables of all.

    Returns:
        Which version was crowned, and what the others were told, line by line.
    """
    processes = multiprocessing.get_context("spawn")
    gate, answers = processes.Barrier(len(versions)), processes.SimpleQueue()
    crowning = [
        processes.Process(target=_crown, args=(root, variables or {}, name, number, gate, answers))
        for number, root in versions.items()
    ]
    for process in crowning:
        process.start()
    for process in crowning:
        process.join()
    said = dict(answers.get() for _ in crowning)
    (winner,) = (number for number, answer in said.items() if answer == CROWNED)
    return winner, "\n".join(answer for answer in said.values() if answer != CROWNED)


def _crown(root: Path, variables: Mapping[str, str], name: str, number: int, gate: Any, answers: Any) -> None:
    os.environ.update(variables)
    registry = Registry.open(root)
    version, champion = registry.version(name, number), registry.version(name, 1)
    gate.wait()
    try:
        registry.crown(version, over=champion, reason=f"version {number}", evidence="offline", run_id="")
    except InputError as error:
        answers.put((number, str(error)))
    else:
        answers.put((number, CROWNED))
