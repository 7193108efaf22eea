"""Videos that came and went since the models were made: they reach whatever is served without a retraining.

What became of a video is kept in the user state, so that it survives a restart and every server that shares the state
follows. Whoever serves looks for changes now and then, makes the candidates anew beside the ones in use, and exchanges
them between two requests.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from watchnext.errors import InputError
from watchnext.features.history import Id
from watchnext.serving.served import Served
from watchnext.serving.user_store import StoreUnavailableError, UserStore

log = logging.getLogger("watchnext.serving")

Show = Callable[[Served | None], None]


class Catalogue:
    """Keeps versions that are served in step with what became of videos. Safe to be used by several threads.

    Args:
        store: where it is kept.

    Attributes:
        revision: of what is served.
    """

    def __init__(self, store: UserStore) -> None:
        self.revision = 0
        self._pulled = 0
        self._readable = True
        self._store = store
        self._videos: dict[str, Mapping[str, Any] | None] = {}
        self._lock = threading.Lock()
        self._shown: dict[int, tuple[Served, Show]] = {}
        self._followers = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def following(self, show: Show) -> Show:
        """A `show` that gives versions on with the catalogue of now, and again when it has changed."""
        number = self._followers
        self._followers += 1

        def put(served: Served | None) -> None:
            with self._lock:
                if served is None:
                    self._shown.pop(number, None)
                    show(None)
                else:
                    shown = {number: (served, show)}
                    # What is new to this version may be so to the others.
                    for one, (served, show_it) in {**(self._shown if self._pull() else {}), **shown}.items():
                        self._shown[one] = (self._applied(served), show_it)
                        show_it(self._shown[one][0])
                    self.revision = self._pulled

        return put

    def apply(self, served: Served) -> Served:
        """A version with the catalogue of now."""
        with self._lock:
            self._pull()
            return self._applied(served)

    def check(self) -> bool:
        """Look for changes, and bring them to what is served; whether there were any. What fails is logged."""
        with self._lock:
            try:
                if not self._pull() and self.revision == self._pulled:
                    return False
                for number, (served, show) in list(self._shown.items()):
                    self._shown[number] = (self._applied(served), show)
                    show(self._shown[number][0])
                self.revision = self._pulled
            except Exception as error:  # noqa: BLE001 - whatever it is, what is served goes on
                log.error("the catalogue cannot be followed", extra={"error": str(error)})
                return False
            log.info(
                "the catalogue has changed", extra={"revision": self.revision, "videos": len(self._videos)}
            )
            return True

    def start(self, poll_s: float) -> None:
        """Look for changes from a thread of its own until `stop`."""

        def follow() -> None:
            while not self._stopped.wait(poll_s):
                self.check()

        self._thread = threading.Thread(target=follow, name="follow-catalogue", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def told(self) -> dict[str, int]:
        """For operators: the revision that is served, and how many videos came and went."""
        videos = list(self._videos.values())
        gone = sum(video is None for video in videos)
        return {"revision": self.revision, "added": len(videos) - gone, "taken_down": gone}

    def _pull(self) -> bool:
        try:
            self._pulled, changed = self._store.videos_since(self._pulled)
        except StoreUnavailableError as error:
            if self._readable:
                log.error("the catalogue cannot be read", extra={"error": str(error)})
            self._readable = False
            return False
        self._readable = True
        self._videos |= {video_id: json.loads(text) for video_id, text in changed.items()}
        return bool(changed)

    def _applied(self, served: Served) -> Served:
        if not self._videos:
            return served
        kind = int if served.integer_video_ids else str
        added: list[Mapping[str, Any]] = []
        gone: list[Id] = []
        for text, video in self._videos.items():
            try:
                video_id = kind(text)
            except ValueError:
                continue  # no video of this model's catalogue
            if video is None:
                gone.append(video_id)
            else:
                added.append({**video, "video_id": video_id})
        return replace(served, recommender=served.recommender.with_catalogue(added, gone))


def to_keep(added: Sequence[Mapping[str, Any]], taken_down: Sequence[Id], served: Served) -> dict[str, str]:
    """What a store keeps of videos that came and went.

    Args:
        added: facts by column of `videos`, instants in microseconds.
        taken_down: ids.
        served: what they have to fit.

    Raises:
        InputError: a fact is not of the type that the model's videos have, or a video is in both.
    """
    schema = served.recommender.video_schema
    kept: dict[str, str] = {}
    for place, row in enumerate(added):
        for name, value in row.items():
            if name in schema.names and not name.endswith("_at") and value is not None:
                try:
                    pa.array([value], schema.field(name).type)
                except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                    raise InputError(
                        f"it is {schema.field(name).type} in this model", where=f"added.{place}.{name}"
                    ) from None
        facts = {name: value for name, value in row.items() if name != "video_id" and value is not None}
        kept[str(row["video_id"])] = json.dumps(facts, ensure_ascii=False)
    both = [one for one in map(str, taken_down) if one in kept]
    if both:
        raise InputError("a video cannot come and go at once", where="taken_down", offenders=both[:3])
    return kept | {str(one): "null" for one in taken_down}
