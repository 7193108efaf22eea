"""One answer: from a user's events and whatever model is served to a slate, without HTTP.

The server, `watchnext recommend` and `watchnext.load` all answer through `Service`, so they give the same slate.
"""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from watchnext.errors import InputError
from watchnext.features.history import Id
from watchnext.features.ranking_features import RequestContext, VideoFacts
from watchnext.recommend.recommender import Recommender, Slate, StopWatch, VideoTable
from watchnext.recommend.state import UserFacts
from watchnext.registry import ROLES, Registry, Role
from watchnext.serving.catalogue import Catalogue
from watchnext.serving.events import Event, history_of, id_of
from watchnext.serving.experiment import Arm, Experiment, Exposure, team_draft
from watchnext.serving.exploration import Draw, Exploration
from watchnext.serving.served import Served
from watchnext.serving.stores import is_redis, open_store
from watchnext.serving.user_store import StoreUnavailableError, UserStore

log = logging.getLogger("watchnext.serving")

HOW_MANY = 20
STATE_UNAVAILABLE = "user state unavailable: answered from the request alone"
CHALLENGER_FAILED = "the challenger failed: answered by the champion"


@dataclass(frozen=True)
class Answer:
    """A slate, and how it came about.

    Attributes:
        request_id: the page, as impressions name it.
        at: instant of the request, microseconds since 1970 UTC; what happened before it counted.
        served: who answered.
        slate: what to show.
        degraded: what the answer had to do without; empty if nothing.
        step_ms: step -> how long it took.
        is_drawn: whether the slate was drawn from the ranking (`serving.exploration`), and so is not the ranking.
        exposure: the experiment that the slate belongs to, if it does.
        teams: which model each place is from, where the slate was drafted from both.
    """

    request_id: str
    user_id: str
    at: int
    served: Served
    slate: Slate
    degraded: str
    step_ms: Mapping[str, float]
    is_drawn: bool = False
    exposure: Exposure | None = None
    teams: Sequence[Arm] | None = None

    @property
    def is_champions_choice(self) -> bool:
        """Whether the slate is what the champion ranks first."""
        return not self.is_drawn and (self.exposure is None or self.exposure.arm == "champion")

    @property
    def versions(self) -> list[int]:
        """Number of the version that each place is from."""
        own = self.served.version.number
        if self.teams is None or self.exposure is None:
            return [own] * len(self.slate.videos)
        other = self.exposure.challenger.version.number
        return [own if team == "champion" else other for team in self.teams]

    @property
    def arm(self) -> str | None:
        """The user's side of the experiment: champion, challenger, or interleaved."""
        return None if self.exposure is None else self.exposure.arm or "interleaved"


class NoChampionError(Exception):
    """No version is served yet."""


class Service:
    """Answers requests and takes events. Safe to be used by several threads at once.

    Args:
        store: what is known of users.
        exploration: how slates that are shown are drawn; None: none are.
        experiment: who sees the challenger's; None: nobody.

    Attributes:
        champion: the version that answers; replaced as a whole, between two requests.
        catalogue: what became of videos since.
    """

    def __init__(
        self,
        store: UserStore,
        champion: Served | None = None,
        exploration: Exploration | None = None,
        experiment: Experiment | None = None,
    ) -> None:
        self.store = store
        self.catalogue = Catalogue(store)
        self.experiment = experiment
        self._exploration = exploration or Exploration(0.0)
        self.champion = champion
        self._clock = threading.Lock()
        self._last_at = 0

    def now(self) -> int:
        """Microseconds since 1970 UTC, later than ever before.

        What was accepted before a request is then strictly before it, even where the clock is turned back a little.
        """
        with self._clock:
            self._last_at = max(time.time_ns() // 1000, self._last_at + 1)
            return self._last_at

    def add(self, events: list[Event]) -> list[bool]:
        """Keep events: once this returns they are in the features of every later request.

        Each row says `told_at`, when the server was told; what was loaded from the pipeline does not.

        Raises:
            StoreUnavailableError: they were not kept.
        """
        told_at = self.now()
        return self.store.add([replace(one, row={**one.row, "told_at": told_at}) for one in events])

    def recommend(
        self,
        user_id: str,
        how_many: int = HOW_MANY,
        *,
        exclude: Collection[Id] = (),
        context: Mapping[str, Any] | None = None,
        record: bool = False,
        at: int | None = None,
        request_id: str | None = None,
    ) -> Answer:
        """Answer one request by the champion, or as an experiment has it.

        Args:
            user_id: who asks; somebody unknown gets what is popular or new.
            how_many: length of the slate.
            exclude: further videos not to show.
            context: facts of the request, by the names of `RequestContext`; they come before what is known of the user.
            record: whether the slate is shown, and so becomes impressions.
            at: instant that is answered as of, microseconds since 1970 UTC; by default now.
            request_id: 32 hexadecimal digits; decides what is drawn or drafted. By default a new one.

        Raises:
            NoChampionError: nothing is served yet.
            InputError: `how_many` is out of bounds.
        """
        champion = self.champion
        if champion is None:
            raise NoChampionError
        watch = StopWatch()
        at = self.now() if at is None else at
        try:
            events, facts, degraded = self.store.events(user_id), self.store.facts(user_id), ""
        except StoreUnavailableError as error:
            log.error("the user state cannot be read", extra={"error": str(error)})
            events, facts, degraded = [], UserFacts(), STATE_UNAVAILABLE
        may_record = record and not degraded
        request = request_context(user_id, at, facts, context or {})
        request_id = request_id or uuid.uuid4().hex

        def ask(one: Served, draw: Draw | None = None) -> Slate:
            history = history_of(events, facts_among(events, one.recommender.videos))
            watch.lap("state")
            slate = one.recommender.recommend(history, request, how_many, exclude, draw=draw)
            watch.take(slate.step_ms)
            return slate

        # What is not shown is neither drawn nor part of an experiment: it would tell of a page that nobody saw.
        draw = self._exploration.of(request_id, how_many) if record else None
        exposure = self.experiment.exposure(user_id, champion) if record and self.experiment else None
        served, slate, teams = champion, None, None
        if exposure is not None and exposure.arm != "champion":
            try:
                if exposure.arm is None:
                    both = (ask(champion), ask(exposure.challenger))
                    (slate, teams), draw = _drafted(both, how_many, request_id), None
                else:
                    slate, served = ask(exposure.challenger, draw), exposure.challenger
            except Exception as error:  # noqa: BLE001 - whatever it is, the champion answers
                assert self.experiment is not None
                self.experiment.failed()
                log.error(
                    "the challenger failed",
                    extra={"version": exposure.challenger.version.number, "error": repr(error)},
                )
                degraded = degraded or CHALLENGER_FAILED
                # Whoever was to get the challenger stays in that arm; nothing was drafted.
                exposure = exposure if exposure.arm else None
        answer = Answer(
            request_id,
            user_id,
            at,
            served,
            slate or ask(champion, draw),
            degraded,
            watch.laps_ms,
            is_drawn=draw is not None and draw.is_drawn,
            exposure=exposure,
            teams=teams,
        )
        if may_record:
            try:
                self.store.add(impressions_of(answer, request))
            except StoreUnavailableError as error:
                log.error("impressions cannot be recorded", extra={"error": str(error)})
                answer = replace(answer, degraded="impressions not recorded")
        watch.lap("record")
        return answer


def facts_among(events: Sequence[Event], videos: VideoTable) -> Callable[[Id], VideoFacts]:
    """Facts of the videos that events are about, those that `history_of` asks for: looked up together, which takes a
    fraction."""
    about = {event.row["video_id"] for event in events if "video_id" in event.row}
    return videos.facts_of(about, ("channel_id", "topics")).__getitem__


def load(uri: str, root: Path, store: str) -> Service:
    """What answers in this process as a server would.

    Args:
        uri: `models:/NAME@ROLE` or `models:/NAME/VERSION`.
        root: project whose registry it is in.
        store: place of the user state, see `stores.open_store`.

    Raises:
        InputError: there is no such version, its files are not those that were registered, or there is no user state.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([a-z]+)|/([0-9]+))", uri)
    if match is None or not (match[3] or match[2] in ROLES):
        raise InputError(
            "this names no version",
            where=uri,
            remedy="models:/watchnext@champion, or models:/watchnext/3 for version 3",
        )
    if not is_redis(store) and not Path(store).exists():
        raise InputError(
            "there is no user state here",
            where=store,
            remedy="run `watchnext load-events` in the project's folder, or name the file",
        )
    registry = Registry.open(root)
    version = (
        registry.version(match[1], int(match[3]))
        if match[3]
        else registry.role(match[1], cast(Role, match[2]))
    )
    if version is None:
        raise InputError(f"{match[1]} has no {match[2]}", where=registry.where, remedy="`watchnext status`")
    served = Served(version, Recommender.open(registry.bundle(version)))
    service = Service(open_store(store))
    service.champion = service.catalogue.apply(served)
    return service


def request_context(user_id: str, at: int, facts: UserFacts, context: Mapping[str, Any]) -> RequestContext:
    """A request as features see it: what it says itself, and else what is known of the user."""
    known = {
        "region": facts.region,
        "age_years": facts.age_years,
        "gender": facts.gender,
        "user_columns": facts.columns,
    }
    given = {name: value for name, value in context.items() if value is not None}
    return RequestContext(user_id=user_id, at=at, **{**known, **given})


def impressions_of(answer: Answer, request: RequestContext) -> list[Event]:
    """The events that showing a slate is: one impression per video, unclicked until a watch names this page.

    Beside the columns of the table a row has what only this server knows: which version expected what, and in which
    experiment (`ExperimentId`) the slate was shown, in which arm, or of which team of an interleaved one the video is.
    """
    events = []
    for position, (video, version) in enumerate(zip(answer.slate.videos, answer.versions, strict=True)):
        arm = None
        if answer.exposure is not None:
            arm = answer.exposure.arm if answer.teams is None else answer.teams[position]
        row = {
            "request_id": answer.request_id,
            "video_id": video.video_id,
            "shown_at": request.at,
            "surface": request.surface,
            "position": position,
            "device": request.device,
            "logged_in": request.logged_in,
            "clicked": False,
            "watch_time_s": 0.0,
            "sources": list(video.sources),
            "source_scores": list(video.sources.values()),
            "propensity": video.propensity,
            "told_at": answer.at,
            "model_version": version,
            "expected_watch_time_s": video.expected_watch_time_s,
            **(
                {} if answer.exposure is None else {"experiment": str(answer.exposure.experiment), "arm": arm}
            ),
        }
        events.append(Event(str(request.user_id), id_of("impressions", row), "impressions", row))
    return events


def _drafted(slates: tuple[Slate, Slate], how_many: int, request_id: str) -> tuple[Slate, list[Arm]]:
    """The slate that both models pick in turns, and whose each place is."""
    drafted = team_draft((slates[0].video_ids, slates[1].video_ids), how_many, request_id)
    names: tuple[Arm, Arm] = ("champion", "challenger")
    videos = tuple(slates[team].videos[place] for team, place in drafted)
    slate = replace(slates[0], videos=videos, personal=any(one.personal for one in slates))
    return slate, [names[team] for team, _ in drafted]


def check_video_id(served: Served, given: Id) -> Id:
    """A video id in the type that the logs of the served model have.

    Raises:
        InputError: it is text where ids are numbers.
    """
    if not served.integer_video_ids:
        return str(given)
    try:
        number = int(given)
    except ValueError:
        number = 1 << 64
    if not -(1 << 63) <= number < 1 << 63:
        raise InputError("video ids of this model are integers", where="video_id", offenders=[given])
    return number
