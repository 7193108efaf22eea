"""What a server notices of its models while they answer: calibration, drift of their inputs, and age.

**Calibration.** A page that this server showed counts when it is as old as `settle_s`: what its version expected of all its
videos, and what was watched of it until then, by watches that named it. These are read from the user state, since whichever
server shares it may have been told of them. Both are sums over the same pages, so their ratio is 1 for a model that is right
on average. Pages that were drawn or drafted count too, each video for the version that ranked it. Where many are shown, some
of them are followed, chosen by the clock alone. What was forgotten since counts no more.

**Drift.** Of a slate a second at most, the ranker's inputs for the videos that were shown are made again, aside from the
requests. For each continuous one the distance of Kolmogorov and Smirnov, the largest difference of two cumulative
distributions, between what was shown lately and the training examples, whose quantiles the bundle holds; for each
categorical one the share of values that the training did not know, missing ones included.

**Age.** A champion whose training ended too long ago says so.
"""

import collections
import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from watchnext.serving.events import history_of, rows_of
from watchnext.serving.served import Served
from watchnext.serving.service import Answer, Service, facts_among, request_context
from watchnext.serving.user_store import StoreUnavailableError

log = logging.getLogger("watchnext.serving")

DAY_S = 86_400.0
_PAGES_PER_S = 5.0
_PAGES_AT_ONCE = 1_000.0
"""So many pages a second are followed, and so many that come at once: each is a reading of the user state later."""
_MEMORY_SLATES = 1_000
"""Slates of which drift remembers about so many: an older one counts less and less."""


@dataclass(frozen=True)
class MonitorSettings:
    """What is looked at.

    Attributes:
        stale_after_days: since the end of the training days of the champion.
        settle_s: after so long a page is taken to have been watched as far as it will be.
        sample_every_s: between two slates whose inputs are looked at, at least.
    """

    stale_after_days: float = 7.0
    settle_s: float = 3600.0
    sample_every_s: float = 1.0


@dataclass(frozen=True)
class _Page:
    """A page that will be settled: `expected_s` by version, and of which version each of its videos is."""

    request_id: str
    user_id: str
    shown_at: float
    expected_s: Mapping[int, float]
    version_of: Mapping[Any, int]


class Monitor:
    """Looks on while a service answers. Safe to be used by several threads; costs a request next to nothing.

    Args:
        service: answers.
        settings: what is looked at.
    """

    def __init__(self, service: Service, settings: MonitorSettings | None = None) -> None:
        self.settings = settings or MonitorSettings()
        self._service = service
        self._lock = threading.Lock()
        self._pages: collections.deque[_Page] = collections.deque()
        self._may_follow, self._followed_at = _PAGES_AT_ONCE, time.monotonic()
        self._settled: dict[int, list[float]] = {}
        self._drift: dict[int, InputDrift] = {}
        self._waiting: queue.Queue[tuple[Answer, Mapping[str, Any]]] = queue.Queue(4)
        self._sampled = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._said_stale: int | None = None

    def shown(self, answer: Answer, context: Mapping[str, Any]) -> None:
        """A slate was shown. Returns at once."""
        now = time.monotonic()
        with self._lock:
            self._may_follow += (now - self._followed_at) * _PAGES_PER_S
            self._may_follow, self._followed_at = min(self._may_follow, _PAGES_AT_ONCE), now
            if self._may_follow >= 1.0:
                self._may_follow -= 1.0
                self._pages.append(_page_of(answer))
            due, self._sampled = (
                (True, now) if now - self._sampled >= self.settings.sample_every_s else (False, self._sampled)
            )
        if due:
            try:
                self._waiting.put_nowait((answer, context))
            except queue.Full:
                return

    def settle(self, now_s: float | None = None) -> None:
        """Add up the pages that are old enough. While the user state cannot be read they wait.

        Args:
            now_s: since 1970; by default the clock.
        """
        settled_before = (time.time() if now_s is None else now_s) - self.settings.settle_s
        while self._pages and self._pages[0].shown_at <= settled_before:
            page = self._pages[0]
            try:
                rows = rows_of(self._service.store.events(page.user_id))
            except StoreUnavailableError:
                return
            self._pages.popleft()
            if not any(row.get("request_id") == page.request_id for row in rows.get("impressions", ())):
                continue
            with self._lock:
                for version, expected_s in page.expected_s.items():
                    self._settled.setdefault(version, [0.0, 0.0])[0] += expected_s
                for row in rows.get("watches", ()):
                    version_of = page.version_of.get(row["video_id"])
                    if row.get("request_id") == page.request_id and version_of is not None:
                        self._settled[version_of][1] += row.get("watch_time_s") or 0.0

    def calibration(self) -> dict[int, tuple[float, float]]:
        """Version -> seconds of watch time that were expected and that were observed, of settled pages."""
        with self._lock:
            return {version: (sums[0], sums[1]) for version, sums in self._settled.items()}

    def drift(self) -> dict[int, "InputDrift"]:
        """Version -> how far its inputs are from those of its training."""
        with self._lock:
            return dict(self._drift)

    def age_days(self, served: Served) -> float:
        """Since the end of a version's training days."""
        return (time.time() - served.recommender.bundle.trained_until_at.timestamp()) / DAY_S

    def is_stale(self, served: Served) -> bool:
        """Whether a version is older than it should get."""
        return self.age_days(served) > self.settings.stale_after_days

    def start(self) -> None:
        """Look from a thread of its own until `stop`."""

        def look() -> None:
            while not self._stopped.is_set():
                self.tick(1.0)

        self._thread = threading.Thread(target=look, name="monitor", daemon=True)
        self._thread.start()

    def tick(self, timeout_s: float) -> None:
        """Look at the next slate, if one comes in time, and at the champion's age."""
        self.settle()
        try:
            answer, context = self._waiting.get(timeout=timeout_s)
            self._look_at(answer, context)
        except queue.Empty:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, requests must not notice
            log.error("inputs of a slate cannot be looked at", extra={"error": repr(error)})
        champion = self._service.champion
        if champion is not None and self.is_stale(champion) and self._said_stale != champion.version.number:
            self._said_stale = champion.version.number
            log.warning(
                "the champion is old",
                extra={
                    "version": champion.version.number,
                    "age_days": round(self.age_days(champion), 1),
                    "stale_after_days": self.settings.stale_after_days,
                },
            )

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _look_at(self, answer: Answer, context: Mapping[str, Any]) -> None:
        served, store = answer.served, self._service.store
        if answer.teams is not None or not answer.slate.videos:
            return  # the inputs of a drafted slate are of two versions
        recommender = served.recommender
        events = store.events(answer.user_id)
        history = history_of(events, facts_among(events, recommender.videos))
        request = request_context(answer.user_id, answer.at, store.facts(answer.user_id), context)
        inputs = recommender.inputs(history, request, answer.slate.video_ids)
        version = served.version.number
        with self._lock:
            drift = self._drift.get(version)
            if drift is None:
                drift = self._drift[version] = InputDrift(recommender.encoder.quantiles)
            drift.add(
                {
                    spec.name: (spec.kind, inputs[spec.name])
                    for spec in recommender.encoder.ranking_features
                    if not spec.training_only
                },
                len(answer.slate.videos),
            )


def _page_of(answer: Answer) -> _Page:
    expected_s: dict[int, float] = collections.defaultdict(float)
    for video, version in zip(answer.slate.videos, answer.versions, strict=True):
        expected_s[version] += video.expected_watch_time_s
    version_of = dict(zip(answer.slate.video_ids, answer.versions, strict=True))
    return _Page(answer.request_id, answer.user_id, answer.at / 1e6, expected_s, version_of)


class InputDrift:
    """Distributions of inputs lately, beside those of the training.

    Args:
        quantiles: continuous input -> ascending boundaries, [count].
    """

    def __init__(self, quantiles: Mapping[str, npt.NDArray[np.float64]]) -> None:
        self.slates = 0
        self._edges: dict[str, npt.NDArray[np.float32]] = {}
        self._below: dict[str, npt.NDArray[np.float64]] = {}
        self._cells: dict[str, npt.NDArray[np.float64]] = {}
        self._unknown: dict[str, tuple[float, float]] = {}
        for name, boundaries in quantiles.items():
            if len(boundaries) < 2:
                continue
            # Values come as float32; boundaries that are one then are one value.
            edges, first = np.unique(boundaries.astype(np.float32), return_index=True)
            last = np.append(first[1:], len(boundaries)) - 1
            self._edges[name] = edges
            # P(x < edge) and P(x <= edge) of each edge, in turn.
            self._below[name] = np.stack([first, last], axis=1).ravel() / (len(boundaries) - 1)
            self._cells[name] = np.zeros(2 * len(edges) + 1)

    def add(self, inputs: Mapping[str, tuple[str, npt.NDArray[Any]]], rows: int) -> None:
        """The inputs of one slate: name -> kind, and an array of `rows` rows, or of one that is all of them's."""
        keep = 1.0 - 1.0 / _MEMORY_SLATES
        self.slates += 1
        for name, (kind, values) in inputs.items():
            each = rows / len(values)
            if kind == "categorical":
                unknown, all_of_them = self._unknown.get(name, (0.0, 0.0))
                self._unknown[name] = (
                    keep * unknown + each * float((values == 0).sum()),
                    keep * all_of_them + rows,
                )
            elif name in self._edges:
                known = values[~np.isnan(values)]
                edges = self._edges[name]
                # Cells take turns: below the first edge, at it, between it and the next, ...
                cell = np.searchsorted(edges, known, "left") + np.searchsorted(edges, known, "right")
                counts = np.bincount(cell, minlength=len(self._cells[name]))
                self._cells[name] = keep * self._cells[name] + each * counts

    def distances(self) -> dict[str, float]:
        """Continuous input -> distance in [0, 1]; those that had no value are left out."""
        found = {}
        for name, cells in self._cells.items():
            total = cells.sum()
            if total > 0:
                found[name] = float(np.abs(np.cumsum(cells)[:-1] / total - self._below[name]).max())
        return found

    def unknown_shares(self) -> dict[str, float]:
        """Categorical input -> share of values that the training did not know."""
        return {name: unknown / rows for name, (unknown, rows) in self._unknown.items() if rows > 0}
