"""The challenger answers what the champion answered, in a process of its own, and nobody waits for it.

A sampled copy of each request goes into a bounded queue; what finds it full is dropped and counted. A thread takes
from the queue to the challenger's process, which may be slow, hang, die or talk nonsense: all that the champion's
requests ever do is to put a tuple into the queue.

Parent to child: one JSON object per line on standard input. Child to parent: the same on standard output.
"""

import contextlib
import json
import logging
import os
import queue
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from watchnext.features.history import Id
from watchnext.registry import Version
from watchnext.serving.deployment import Versions, same_version
from watchnext.serving.service import Answer
from watchnext.serving.stores import STORE_VARIABLE, is_redis

log = logging.getLogger("watchnext.serving")

STARTING = "is starting"
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class MirrorSettings:
    """How much of the traffic the challenger gets.

    Attributes:
        share: of the requests whose slate is shown, drawn at random.
        capacity: requests that may wait.
        hangs_after_s: a challenger that has work and gave no sign for so long is started anew.
        restart_s: how long after its end; doubled at every end up to `restart_at_most_s`.
    """

    share: float = 1.0
    capacity: int = 256
    hangs_after_s: float = 60.0
    restart_s: float = 1.0
    restart_at_most_s: float = 60.0


@dataclass
class Counts:
    """What became of the requests since the server started.

    Attributes:
        offered: put into the queue.
        dropped: found the queue full.
        answered: answered by a challenger.
        failed: a challenger could not answer.
        written: rows in the shadow log.
        lost: rows that could not be written.
        nonsense: lines from a challenger that say nothing.
        starts: processes that were started.
    """

    offered: int = 0
    dropped: int = 0
    answered: int = 0
    failed: int = 0
    written: int = 0
    lost: int = 0
    nonsense: int = 0
    starts: int = 0


class Mirror:
    """Keeps one process per challenger that the registry names, and gives it a copy of the traffic.

    Args:
        versions: the registry.
        name: registered model.
        command: from the number of a version to the command of the process that answers as that version.
        settings: how much it gets.
    """

    def __init__(self, versions: Versions, name: str, command: "Command", settings: MirrorSettings) -> None:
        self.counts = Counts()
        self._versions = versions
        self._name = name
        self._command = command
        self._settings = settings
        self._shadow: _Shadow | None = None
        self._draw = random.Random()
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._next_start = 0.0
        self._wait_s = settings.restart_s

    @property
    def version(self) -> int | None:
        """The challenger that answers, or is about to."""
        shadow = self._shadow
        return None if shadow is None else shadow.version.number

    def offer(
        self,
        answer: Answer,
        took_ms: float,
        how_many: int,
        exclude: Sequence[Id],
        context: Mapping[str, Any],
    ) -> None:
        """A copy of a request that the champion has answered. Returns at once, whatever the challenger does."""
        shadow = self._shadow
        if shadow is None or self._draw.random() >= self._settings.share:
            return
        champion = (
            answer.served.version.number,
            [(video.video_id, video.expected_watch_time_s) for video in answer.slate.videos],
            took_ms,
        )
        self._put(
            shadow, (answer.request_id, answer.user_id, answer.at, how_many, exclude, context, champion)
        )

    def ask(
        self, answer: Answer, how_many: int, context: Mapping[str, Any], timeout_s: float
    ) -> tuple[dict[str, Any] | None, str]:
        """What the challenger gives for the same request, for a person who waits.

        Returns:
            Its answer as `serving.messages.told` makes it, or None, and why there is none.
        """
        shadow = self._shadow
        if shadow is None:
            return None, f"{self._name} has no challenger"
        reply: queue.Queue[dict[str, Any]] = queue.Queue(1)
        shadow.replies[answer.request_id] = reply
        try:
            self._put(shadow, (answer.request_id, answer.user_id, answer.at, how_many, (), context, None))
            told = reply.get(timeout=timeout_s)
        except queue.Empty:
            state = STARTING if shadow.is_starting else f"did not answer within {timeout_s:g} s"
            return None, f"version {shadow.version.number} {state}"
        finally:
            shadow.replies.pop(answer.request_id, None)
        return told.get("told"), str(told.get("error", ""))

    def _put(self, shadow: "_Shadow", request: tuple[Any, ...]) -> None:
        try:
            shadow.waiting.put_nowait(request)
            self.counts.offered += 1
        except queue.Full:
            self.counts.dropped += 1

    def check(self) -> None:
        """Look once at the registry and at the process, and bring them together."""
        try:
            wanted = self._versions.role(self._name, "challenger")
        except Exception:  # noqa: BLE001 - the registry may fail in any way; who follows the champion reports it
            wanted = None if self._shadow is None else self._shadow.version
        shadow = self._shadow
        if shadow is not None:
            if wanted is None or not same_version(wanted, shadow.version):
                self._shadow = None
                shadow.stop()
                self._wait_s, self._next_start = self._settings.restart_s, 0.0
            elif shadow.has_ended or shadow.hangs(self._settings.hangs_after_s):
                log.error(
                    "the challenger ended" if shadow.has_ended else "the challenger hangs",
                    extra={"version": wanted.number, "status": shadow.process.poll()},
                )
                self._shadow = None
                shadow.stop(at_once=True)
                self._next_start = time.monotonic() + self._wait_s
                self._wait_s = min(2 * self._wait_s, self._settings.restart_at_most_s)
        if self._shadow is None and wanted is not None and time.monotonic() >= self._next_start:
            self._shadow = _Shadow(
                wanted,
                self._command(wanted.number),
                self._command.environment,
                self._settings.capacity,
                self.counts,
            )
            log.info("the challenger is started", extra={"version": wanted.number})

    def start(self, poll_s: float) -> None:
        """Follow the registry from a thread of its own until `stop`."""

        def follow() -> None:
            while not self._stopped.is_set():
                self._woken.clear()
                self.check()
                self._woken.wait(poll_s)

        self._thread = threading.Thread(target=follow, name="follow-challenger", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let the thread look at the registry now, and not at the next poll."""
        self._woken.set()

    def stop(self) -> None:
        """End the process, which writes what it still has."""
        self._stopped.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
        if self._shadow is not None:
            self._shadow.stop()
            self._shadow = None

    def told(self) -> dict[str, Any]:
        """Version and counts, for operators."""
        return {"version": self.version, **asdict(self.counts)}


class Command:
    """The command line of a challenger's process.

    Args:
        root: project whose registry it reads.
        name: registered model.
        store: place of the user state, see `stores.open_store`.
        directory: folder of the shadow log.
    """

    def __init__(self, root: Path, name: str, store: str, directory: Path) -> None:
        self._words = [sys.executable, "-m", "watchnext.serving.challenger", str(root.resolve()), name]
        self._directory = str(directory.resolve())
        self.environment = {STORE_VARIABLE: store if is_redis(store) else str(Path(store).resolve())}

    def __call__(self, version: int) -> list[str]:
        return [*self._words, str(version), self._directory]


class _Shadow:
    """A challenger's process, the queue before it, and the two threads between."""

    _END_S = 10.0

    def __init__(
        self,
        version: Version,
        command: list[str],
        environment: Mapping[str, str],
        capacity: int,
        counts: Counts,
    ) -> None:
        self.version = version
        self.waiting: queue.Queue[tuple[Any, ...] | None] = queue.Queue(capacity)
        self.replies: dict[str, queue.Queue[dict[str, Any]]] = {}
        self.is_starting = True
        self._counts = counts
        self._last_sign = self._owes_since = time.monotonic()
        self._fed = self._done = 0
        self._seen = {"written": 0, "lost": 0}
        counts.starts += 1
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C is for the server, which ends the process itself; and the champion comes first.
            start_new_session=True,
            env={**os.environ, **environment, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"},
        )
        self._threads = [
            threading.Thread(target=target, name=f"challenger-{target.__name__}", daemon=True)
            for target in (self._feed, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def hangs(self, after_s: float) -> bool:
        """Whether it has work and gave no sign for this long."""
        # To start takes longer than to answer, on a busy machine much longer.
        patience_s = after_s * (10.0 if self.is_starting else 1.0)
        since = max(self._last_sign, self._owes_since)
        return self._fed > self._done and time.monotonic() - since > patience_s

    def stop(self, at_once: bool = False) -> None:
        """End the process: it writes what it has answered, unless it is given no time to."""
        if at_once:
            self.process.kill()
        try:
            self.waiting.put_nowait(None)
        except queue.Full:
            self._empty()
        try:
            self.process.wait(timeout=self._END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            self._empty()
        for thread in self._threads:
            thread.join(timeout=self._END_S)

    def _empty(self) -> None:
        """Let go of what waits, so that the end comes next."""
        with contextlib.suppress(queue.Empty):
            while True:
                self.waiting.get_nowait()
        with contextlib.suppress(queue.Full):
            self.waiting.put_nowait(None)

    def _feed(self) -> None:
        into = self.process.stdin
        assert into is not None
        with contextlib.suppress(OSError, ValueError):
            while (request := self.waiting.get()) is not None:
                if self._fed == self._done:
                    self._owes_since = time.monotonic()
                self._fed += 1
                into.write(json.dumps(request).encode() + b"\n")
                into.flush()
        with contextlib.suppress(OSError):
            into.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as out:
            # A line that never ends is nonsense too, and comes in pieces.
            while line := out.readline(_LONGEST_LINE):
                self._last_sign = time.monotonic()
                try:
                    self._take(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                    self._counts.nonsense += 1

    def _take(self, told: Mapping[str, Any]) -> None:
        kind = told["kind"]
        if kind == "ready":
            self.is_starting = False
            log.info("the challenger is ready", extra={"version": self.version.number})
        elif kind == "reply":
            self._done += 1
            reply = self.replies.get(told["request_id"])
            if reply is not None:
                with contextlib.suppress(queue.Full):
                    reply.put_nowait(dict(told))
        elif kind == "counts":
            self._counts.answered += int(told["answered"])
            self._counts.failed += int(told["failed"])
            self._done += int(told["answered"]) + int(told["failed"])
            for name in ("written", "lost"):
                total = int(told[name])
                setattr(self._counts, name, getattr(self._counts, name) + total - self._seen[name])
                self._seen[name] = total
        else:
            raise ValueError(kind)
