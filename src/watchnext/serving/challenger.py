"""The process of a challenger: answers the requests that it is told of, and writes the shadow log.

Started by `serving.mirror`, which says on standard input what to answer; it ends when that is closed.
"""

import json
import logging
import os
import selectors
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from watchnext.errors import InputError
from watchnext.recommend.recommender import Recommender
from watchnext.registry import Registry
from watchnext.serving.deployment import warmed_up
from watchnext.serving.json_lines import log_as_json
from watchnext.serving.messages import told
from watchnext.serving.service import Answer, Served, Service
from watchnext.serving.shadow_log import ShadowLog
from watchnext.serving.stores import STORE_VARIABLE, open_store

log = logging.getLogger("watchnext.serving")

_NICENESS = 10
_TICK_S = 1.0
_CATALOGUE_POLL_S = 2.0
_UNUSABLE = 3
"""Exit status of a version that cannot be loaded."""


def main(root: Path, name: str, number: int, directory: Path) -> int:
    """Answer as version `number` until standard input ends."""
    _step_back()
    # Libraries write where they like: what the parent reads is kept apart from descriptor 1.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    log_as_json(sys.stderr)
    registry = Registry.open(root)
    try:
        version = registry.version(name, number)
        served = Served(version, warmed_up(Recommender.open(registry.bundle(version))))
    except Exception as error:  # noqa: BLE001 - whatever it is, this version cannot answer
        log.error("refused", extra={"version": number, "role": "challenger", "error": str(error)})
        return _UNUSABLE
    users = open_store(os.environ[STORE_VARIABLE])
    shadow_log = ShadowLog(directory, integer_video_ids=served.integer_video_ids)
    service = Service(users)

    def show(one: Served | None) -> None:
        service.champion = one

    service.catalogue.following(show)(served)
    service.catalogue.start(_CATALOGUE_POLL_S)
    _say(out, kind="ready")
    answer_all(sys.stdin.buffer, out, service, shadow_log)
    service.catalogue.stop()
    users.close()
    return 0


def _step_back() -> None:
    """Compute only when the server does not: a core that it wants is given up at once, which niceness alone does not do."""
    os.nice(_NICENESS)
    if hasattr(os, "SCHED_IDLE"):  # Linux
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def answer_all(requests: BinaryIO, out: BinaryIO, service: Service, shadow_log: ShadowLog) -> None:
    """Answer every line of `requests`, and tell `out` how it went."""
    reported = (0, 0)
    for line in _lines(requests):
        answered = failed = 0
        if line is None:
            shadow_log.tick()
        else:
            request_id, user_id, at, how_many, exclude, context, champion = json.loads(line)
            began = time.perf_counter()
            answer: Answer | None = None
            error = ""
            try:
                answer = service.recommend(user_id, how_many, exclude=exclude, context=context, at=at)
                error = answer.degraded
            except Exception as raised:  # noqa: BLE001 - whatever it is, it is counted and logged
                error = f"{type(raised).__name__}: {raised}"
            took_ms = (time.perf_counter() - began) * 1000.0
            if champion is None:
                _say(
                    out,
                    kind="reply",
                    request_id=request_id,
                    told=None if answer is None else told(answer),
                    error=error,
                )
                continue
            answered, failed = int(answer is not None), int(answer is None)
            assert service.champion is not None
            champion_version, champion_slate, champion_took_ms = champion
            row: dict[str, Any] = {
                "request_id": request_id,
                "at": at,
                "user_id": user_id,
                "surface": context.get("surface"),
                "how_many": how_many,
                "champion_version": champion_version,
                "champion_video_ids": [video_id for video_id, _ in champion_slate],
                "champion_expected_watch_time_s": [seconds for _, seconds in champion_slate],
                "champion_took_ms": champion_took_ms,
                "challenger_version": service.champion.version.number,
                "challenger_took_ms": took_ms,
                "error": error or None,
            }
            if answer is not None:
                row["challenger_video_ids"] = list(answer.slate.video_ids)
                row["challenger_expected_watch_time_s"] = [
                    video.expected_watch_time_s for video in answer.slate.videos
                ]
            shadow_log.add(row)
        state = (shadow_log.written, shadow_log.lost)
        if answered or failed or state != reported:
            _say(out, kind="counts", answered=answered, failed=failed, written=state[0], lost=state[1])
            reported = state
    shadow_log.flush()
    _say(out, kind="counts", answered=0, failed=0, written=shadow_log.written, lost=shadow_log.lost)


def _lines(requests: BinaryIO) -> Iterator[bytes | None]:
    """Lines as they come, and None where there has been none for a while."""
    descriptor = requests.fileno()
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(_TICK_S):
                yield None
                continue
            read = os.read(descriptor, 1 << 16)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            yield from lines


def _say(out: BinaryIO, **said: Any) -> None:
    out.write(json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
    except (InputError, BrokenPipeError) as error:
        log.error("ended", extra={"error": str(error)})
        sys.exit(1)
