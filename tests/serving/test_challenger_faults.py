"""Processes that are no good challengers, and a shadow log without room: the champion's answers never wait for either."""

import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from live_server import NAME, START_S, LiveServer, assign

import watchnext
from watchnext.registry import DATABASE, Registry
from watchnext.serving.mirror import Command, Mirror, MirrorSettings
from watchnext.serving.service import Answer

OFFERS = 2_000

GARBAGE = [
    b"\xff\xfe\xfd",
    b"",
    b"null",
    b"[1, 2",
    b'"counts"',
    b'{"kind": "counts"}',
    b'{"kind": "counts", "answered": "many", "failed": 0, "written": 0, "lost": 0}',
    b'{"kind": "counts", "answered": Infinity, "failed": 0, "written": 0, "lost": 0}',
    b'{"kind": "reply", "request_id": [1]}',
    b'{"kind": "champion"}',
    b"[" * 100_000,
]

PROCESSES = {
    "talks garbage": f"""
        import sys
        out = sys.stdout.buffer
        for line in {GARBAGE!r}:
            out.write(line + b"\\n")
        out.write(b'{{"kind": "ready"}}\\n')
        out.flush()
        sys.stdin.read()
    """,
    "never ends its line": """
        import sys
        for _ in range(64):
            sys.stdout.buffer.write(b"z" * (1 << 20))
        sys.stdout.buffer.flush()
        sys.stdin.read()
    """,
    "ends at once": "raise SystemExit(3)",
    "hangs": """
        import sys, time
        print('{"kind": "ready"}', flush=True)
        time.sleep(3600)
    """,
}


@pytest.fixture(scope="module")
def answer(serving_project: Path) -> Answer:
    """What a champion has answered."""
    service = watchnext.load("models:/watchnext/1", root=serving_project)
    answered = service.recommend("3", 20)
    service.store.close()
    return answered


@pytest.fixture(scope="module")
def registry(serving_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A copy of the shared registry that names version 2 challenger: the shared server does not see it."""
    root = tmp_path_factory.mktemp("challenged")
    (root / DATABASE).parent.mkdir()
    shutil.copy2(serving_project / DATABASE, root / DATABASE)
    assign(root, "challenger", 2)
    return Registry.open(root)


class Script(Command):
    """Starts a script in place of a challenger."""

    def __init__(self, root: Path, script: str) -> None:
        super().__init__(root, NAME, str(root / "users.db"), root / "shadow")
        self._script = textwrap.dedent(script)

    def __call__(self, version: int) -> list[str]:
        return [sys.executable, "-c", self._script]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + START_S  # a challenger steps back for all else that the machine does
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("what", PROCESSES)
def test_a_process_that_is_no_challenger_is_counted_and_never_waited_for(
    registry: Registry, answer: Answer, what: str
) -> None:
    """Whatever it does, each offer is queued or dropped at once, and it is started anew where that may help."""
    settings = MirrorSettings(capacity=16, hangs_after_s=0.5, restart_s=0.1, restart_at_most_s=0.2)
    mirror = Mirror(registry, NAME, Script(registry.root, PROCESSES[what]), settings)
    memory = psutil.Process().memory_info
    mirror.check()
    before = memory().rss
    mirror.start(0.05)
    try:
        until(lambda: mirror.version == 2)
        sent, began = mirror.told(), time.monotonic()
        for _ in range(OFFERS):
            mirror.offer(answer, 1.0, 20, (), {})
        assert time.monotonic() - began < START_S
        counts = mirror.told()
        taken = counts["offered"] + counts["dropped"] - sent["offered"] - sent["dropped"]
        if what in ("ends at once", "hangs"):
            # Between two processes nothing is offered to anybody.
            until(lambda: mirror.told()["starts"] >= 2)
        elif what == "talks garbage":
            until(lambda: mirror.told()["nonsense"] == len(GARBAGE))
            assert (taken, mirror.told()["answered"], mirror.told()["starts"]) == (OFFERS, 0, 1)
        else:
            until(lambda: mirror.told()["nonsense"] == 64)
            assert memory().rss - before < 32 * 2**20, "the line is kept"
            assert taken == OFFERS
    finally:
        mirror.stop()
    assert mirror.version is None


@pytest.fixture
def full(serving_project: Path) -> Iterator[Callable[[int], None]]:
    """Leaves no room for the shadow log of a process: a file system of one page where one may be mounted, else a limit."""
    directory = serving_project / "state" / "shadow"
    directory.mkdir(parents=True, exist_ok=True)
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(directory)],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )

    def leave_no_room(process: int) -> None:
        if not mounted:
            resource.prlimit(process, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    yield leave_no_room
    if mounted:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_loses_shadow_rows_and_nothing_else(
    server: LiveServer, serving_project: Path, full: Callable[[int], None]
) -> None:
    def shadow() -> dict[str, Any]:
        return dict(server.get("/v1/models")[1]["shadow"])

    before = shadow()
    ready = sum(line["message"] == "the challenger is ready" for line in server.log)
    assign(serving_project, "challenger", 2)
    try:
        until(lambda: sum(line["message"] == "the challenger is ready" for line in server.log) > ready)
        (process,) = [
            one.pid
            for one in psutil.Process(server.process.pid).children()
            if "watchnext.serving.challenger" in one.cmdline()
        ]
        full(process)
        for user in range(30):
            assert len(server.recommend(f"full {user}", how_many=200)["videos"]) == 200
        until(lambda: shadow()["answered"] == before["answered"] + 30)
    finally:
        assign(serving_project, "challenger", None)  # it then writes what it has
    until(lambda: shadow()["version"] is None)
    until(lambda: shadow()["lost"] == before["lost"] + 30)  # told as it ends, which may be after that
    assert shadow()["written"] == before["written"]
    assert "shadow rows are lost" in json.dumps(server.log)
    assert len(server.recommend("full 1", record=False)["videos"]) == 20
