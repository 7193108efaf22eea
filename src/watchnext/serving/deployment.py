"""Which version is served: whatever the registry names champion, once it has shown that it can answer.

A new champion is verified, loaded and warmed up beside the old one, which goes on answering. A version that fails any
of that is refused and the old one stays. A registry that cannot be reached changes nothing.
"""

import gc
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from watchnext.bundle import Bundle
from watchnext.errors import InputError
from watchnext.features.history import UserHistory
from watchnext.features.ranking_features import RequestContext
from watchnext.recommend.recommender import Recommender
from watchnext.registry import Role, Version
from watchnext.serving.service import HOW_MANY, Served

log = logging.getLogger("watchnext.serving")

POLL_S = 2.0
RETRY_S = 60.0

_WARM_UP_REQUESTS = 3
_TROUBLE_CHARACTERS = 500


class Versions(Protocol):
    """What is asked of a registry; `watchnext.registry.Registry` answers it."""

    def role(self, name: str, role: Role) -> Version | None:
        """The version that has `role` now."""

    def bundle(self, version: Version) -> Bundle:
        """Its bundle, verified."""


@dataclass(frozen=True)
class Refusal:
    """A version that was not taken."""

    version: Version
    reason: str
    at: float


class Deployment:
    """Keeps what is served in step with a role in the registry.

    Args:
        versions: the registry.
        name: registered model.
        role: the alias that is followed.
        retry_s: how long a refused version is left alone: its files may have been restored since.
        swap: takes a version that is ready to answer, in place of the one before; one that it fails for is refused.
        withdraw: called when no version has the role any more; None: the one before stays.

    Attributes:
        served: number and digest of what was handed to `swap` last.
        refusals: version number -> why it was refused, as long as it has the role.
        reachable: whether the registry answered when it was asked last; None before.
        trouble: what is wrong with the registry, or with what it says; empty if nothing.
        swaps: how often `swap` was called.
    """

    def __init__(
        self,
        versions: Versions,
        name: str,
        swap: Callable[[Served], None],
        role: Role = "champion",
        retry_s: float = RETRY_S,
        withdraw: Callable[[], None] | None = None,
    ) -> None:
        self.versions = versions
        self.name = name
        self.role: Role = role
        self.served: Version | None = None
        self.refusals: dict[int, Refusal] = {}
        self.reachable: bool | None = None
        self.trouble = ""
        self.swaps = 0
        self._retry_s = retry_s
        self._swap = swap
        self._withdraw = withdraw
        self._stopped = threading.Event()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self) -> bool:
        """Ask the registry once, and follow it. Whatever goes wrong is reported, and leaves what is served.

        Returns:
            Whether another version is served from now on.
        """
        try:
            wanted = self.versions.role(self.name, self.role)
        except Exception as error:  # noqa: BLE001 - a registry may fail in any way; requests must not notice
            if self.reachable is not False:
                log.error("the registry cannot be reached", extra={"error": str(error)})
            self.reachable = False
            self.trouble = f"the registry cannot be reached: {error}"[:_TROUBLE_CHARACTERS]
            return False
        if self.reachable is False:
            log.info("the registry can be reached again")
        self.reachable = True
        self.trouble = "" if wanted is not None else f"the registry names no {self.role} of {self.name}"
        if wanted is None and self.served is not None and self._withdraw is not None:
            self.served = None
            self._withdraw()
            log.info("no longer serving", extra={"role": self.role})
        if wanted is None or same_version(wanted, self.served):
            self.refusals.clear()
            return False
        refused = self.refusals.get(wanted.number)
        if (
            refused is not None
            and same_version(wanted, refused.version)
            and time.time() < refused.at + self._retry_s
        ):
            return False
        log.info("loading", extra={"version": wanted.number, "role": self.role})
        began = time.perf_counter()
        try:
            self._swap(Served(wanted, warmed_up(Recommender.open(self.versions.bundle(wanted)))))
        except Exception as error:  # noqa: BLE001 - whatever it is, this version cannot answer
            self.refusals[wanted.number] = Refusal(wanted, str(error) or repr(error), time.time())
            log.error("refused", extra={"version": wanted.number, "role": self.role, "error": str(error)})
            return False
        before, self.served = self.served, wanted
        self.swaps += 1
        self.refusals.clear()
        log.info(
            "serving",
            extra={
                "version": wanted.number,
                "role": self.role,
                "before": before.number if before else None,
                "loading_s": round(time.perf_counter() - began, 3),
            },
        )
        # The old one's models are part of reference cycles; what they hold is large. What is left stays: a collection that
        # walks it again while somebody waits finds nothing.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return True

    def start(self, poll_s: float = POLL_S) -> None:
        """Follow the registry from a thread of its own until `stop`."""

        def follow() -> None:
            while not self._stopped.is_set():
                self._woken.clear()
                self.check()
                self._woken.wait(poll_s)

        self._thread = threading.Thread(target=follow, name=f"follow-{self.role}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let the thread look at the registry now, and not at the next poll."""
        self._woken.set()

    def stop(self) -> None:
        """End the thread; a loading that is under way is waited for."""
        self._stopped.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()


def warmed_up(recommender: Recommender) -> Recommender:
    """A recommender whose models have been traced, by answering somebody unknown and somebody with a past.

    Raises:
        InputError: it gives no slate, or scores that are no numbers.
    """
    at = time.time_ns() // 1000
    past = UserHistory()
    for video_id in recommender.row_to_video[:3]:
        channel_id = recommender.videos.facts(video_id).channel_id
        past.add_watch(video_id, at - 3_600_000_000, 60.0, completed=True, channel_id=channel_id)
    for history in (UserHistory(), past) * _WARM_UP_REQUESTS:
        slate = recommender.recommend(history, RequestContext("somebody", at), HOW_MANY)
        scores = [video.expected_watch_time_s for video in slate.videos]
        if not scores or not all(math.isfinite(score) and score >= 0.0 for score in scores):
            raise InputError(
                "the model gives no usable slate",
                where=str(recommender.bundle.path),
                offenders=scores[:3],
                remedy="roll back (`watchnext rollback`), and look at what trained it",
            )
    return recommender


def same_version(one: Version, other: Version | None) -> bool:
    """Numbers can be given again after a registry was deleted; a bundle's digest cannot."""
    return other is not None and (one.number, one.bundle_digest) == (other.number, other.bundle_digest)
