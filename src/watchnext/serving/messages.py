"""What clients send and are sent. Everything that comes in is bounded, and unknown fields are refused."""

import datetime
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictInt, StringConstraints
from pydantic_core import to_json

from watchnext.features.history import end_of_watch, to_microseconds
from watchnext.recommend.recommender import MAX_SLATE
from watchnext.serving.events import Event, rows_of
from watchnext.serving.service import Answer

MAX_BODY_BYTES = 1 << 20
MAX_EVENTS = 1_000
MAX_EXCLUDED = 2_000
MAX_WATCH_TIME_S = 864_000.0
CLOCK_SKEW_S = 300.0
"""How far ahead of the server's clock an event may be; it is then taken to have happened now."""

_MICROSECOND = datetime.timedelta(microseconds=1)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

Text = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=128)]
AtMost = Annotated[int, Field(ge=1, le=1000)]
_Label = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=64)]
_Integer = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)]
GivenId = _Integer | Text
"""An id: an integer or text. A user whose id is 7 is the user "7"."""


class _Incoming(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Context(_Incoming):
    """Facts of a request; those that are given come before what is known of the user."""

    surface: _Label | None = Field(default=None, description="where in the product the slate is shown")
    device: _Label | None = Field(default=None, description="class of the device")
    logged_in: Annotated[bool, Field(strict=True)] | None = None
    region: _Label | None = None
    gender: _Label | None = None
    age_years: Annotated[float, Field(ge=0.0, le=130.0)] | None = None


class RecommendRequest(_Incoming):
    """A request for a slate."""

    user_id: GivenId
    how_many: Annotated[int, Field(strict=True, ge=1, le=MAX_SLATE)] = Field(
        20, description="length of the slate; fewer come back only where fewer videos exist"
    )
    exclude: Annotated[list[GivenId], Field(max_length=MAX_EXCLUDED)] = Field(
        [], description="further videos not to show"
    )
    context: Context = Context()
    record: Annotated[bool, Field(strict=True)] = Field(
        True, description="whether the slate will be shown: its videos then become impressions"
    )


class CompareRequest(_Incoming):
    """A request for what both models would show."""

    user_id: GivenId
    how_many: Annotated[int, Field(strict=True, ge=1, le=100)] = 20
    context: Context = Context()


class _Event(_Incoming):
    id: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=200)] = Field(
        description="unique among the user's events; an event that is sent again has the same id"
    )
    user_id: GivenId


class WatchEvent(_Event):
    """A watch. It counts from its end on."""

    type: Literal["watch"]
    video_id: GivenId
    watched_at: AwareDatetime | None = Field(
        None, description="when the watch began; without it, the watch ended now"
    )
    watch_time_s: Annotated[float, Field(ge=0.0, le=MAX_WATCH_TIME_S)]
    completed: Annotated[bool, Field(strict=True)] = Field(description="whether the video was completed")
    origin: _Label | None = Field(None, description="what led to it: home, search, external, ...")
    request_id: Text | None = Field(
        None, description="the slate that it came from: its impression is clicked"
    )


class SearchEvent(_Event):
    """A search."""

    type: Literal["search"]
    searched_at: AwareDatetime | None = Field(None, description="without it, now")
    query: Annotated[str, StringConstraints(strict=True, min_length=1, max_length=1000)]


class ImpressionEvent(_Event):
    """A video that something else than this server put before the user."""

    type: Literal["impression"]
    request_id: Text = Field(description="the page that it was on")
    video_id: GivenId
    shown_at: AwareDatetime | None = Field(None, description="without it, now")
    position: Annotated[int, Field(strict=True, ge=0, lt=1 << 31)] | None = None
    surface: _Label | None = None
    device: _Label | None = None
    logged_in: Annotated[bool, Field(strict=True)] | None = None
    clicked: Annotated[bool, Field(strict=True)] = False
    watch_time_s: Annotated[float, Field(ge=0.0, le=MAX_WATCH_TIME_S)] = 0.0


AnyEvent = Annotated[WatchEvent | SearchEvent | ImpressionEvent, Field(discriminator="type")]


class EventsRequest(_Incoming):
    """A batch of events: all of them are kept, or none."""

    events: Annotated[list[AnyEvent], Field(min_length=1, max_length=MAX_EVENTS)]


class EventsResponse(BaseModel):
    """The events are kept, and in the features of every request from now on."""

    accepted: int = Field(description="events that were new")
    duplicates: int = Field(description="events whose id the user already had; nothing changed")


class NewVideo(_Incoming):
    """A video that was uploaded. Facts of videos that a model was trained with stay as they are there."""

    video_id: GivenId
    channel_id: GivenId | None = None
    topics: Annotated[list[_Label], Field(max_length=100)] | None = None
    duration_s: Annotated[float, Field(ge=0.0, le=MAX_WATCH_TIME_S)] | None = None
    uploaded_at: AwareDatetime | None = Field(None, description="without it, now")
    language: _Label | None = None


class VideosRequest(_Incoming):
    """Videos that came and went. What is told last of a video counts."""

    added: Annotated[list[NewVideo], Field(max_length=MAX_EVENTS)] = []
    taken_down: Annotated[list[GivenId], Field(max_length=MAX_EVENTS)] = []


class VideosResponse(BaseModel):
    """It is kept, and reaches slates when the server has next looked."""

    added: int
    taken_down: int


class Model(BaseModel):
    """A version of the registered model."""

    name: str
    version: int


class Video(BaseModel):
    """A video of a slate."""

    video_id: int | str
    position: int
    expected_watch_time_s: float
    score: float = Field(description="what the slate is ordered by, a function of the one before")
    sources: Mapping[str, float] = Field(
        description="every source that named it, with its score on a scale of its own"
    )
    uploaded_at: datetime.datetime | None


class RecommendResponse(BaseModel):
    """A slate, to be shown in this order: by falling score, unless it was drawn."""

    request_id: str = Field(description="names this slate; a watch that came from it says so")
    user_id: str
    model: Model
    videos: list[Video]
    personal: bool = Field(description="whether candidates came from the user's own past")
    drawn: bool = Field(description="whether the slate was drawn from the ranking, to explore")
    arm: str | None = Field(
        description="side of the experiment: champion, challenger, interleaved; null outside of one"
    )
    degraded: str = Field(description="what the answer had to do without; empty if nothing")


class CompareResponse(BaseModel):
    """Two slates for one request."""

    champion: RecommendResponse
    challenger: RecommendResponse | None
    why_not: str = Field(description="why there is no slate of the challenger; empty if there is")


class UsersResponse(BaseModel):
    """Some users that have events."""

    user_ids: list[str]


class PastEvent(BaseModel):
    """A watch (`video_id`) or a search (`query`)."""

    at: datetime.datetime = Field(description="when it was known: a watch when it ended")
    video_id: int | str | None
    watch_time_s: float | None
    completed: bool | None
    query: str | None


class HistoryResponse(BaseModel):
    """What is known of a user: how many events, and the last watches and searches, latest first."""

    user_id: str
    watches: int
    impressions: int
    searches: int
    before_logs: int = Field(description="videos of before the logs began")
    last: list[PastEvent]


class ServedModel(Model):
    """A version that answers."""

    bundle_digest: str
    source: str
    trained_until_at: datetime.datetime
    since_at: datetime.datetime = Field(description="since when this server serves it")
    age_days: float = Field(description="since the end of its training days")
    is_stale: bool = Field(description="older than the server was told that it should get")


class Refused(BaseModel):
    """A version that has the role and cannot be served."""

    version: int
    reason: str
    at: datetime.datetime


class Shadow(BaseModel):
    """The challenger, and what became of the copies of requests since this server started."""

    version: int | None = Field(description="the challenger that answers, or is about to")
    offered: int
    dropped: int = Field(description="found the queue full")
    answered: int
    failed: int = Field(description="the challenger could not answer")
    written: int = Field(description="rows in the shadow log")
    lost: int = Field(description="rows that could not be written")
    nonsense: int = Field(description="lines from the challenger's process that say nothing")
    starts: int = Field(description="processes that were started")


class Catalogue(BaseModel):
    """What became of videos since models were made, as it is served."""

    revision: int = Field(description="grows with every change that was told")
    added: int
    taken_down: int


class Experiment(BaseModel):
    """The live experiment; users and failures since this server started."""

    id: str | None = Field(description="model, mode, share, champion, challenger; null until it has a user")
    mode: str
    share: float = Field(description="of users who see the challenger")
    challenger_loaded: int | None = Field(description="null: there is none, or it cannot be served")
    why_not: str = Field(description="why no challenger is loaded; empty where one is, or while it loads")
    users_with_challenger: int
    users_without: int
    sample_ratio_is_off: bool = Field(description="users are missing from one side: believe no difference")
    challenger_failures: int = Field(description="requests that the champion answered in its place")


class ModelsResponse(BaseModel):
    """What is served, and what the registry last said."""

    champion: ServedModel | None
    refused: list[Refused]
    registry_reachable: bool | None = Field(description="null before it was first asked")
    registry_trouble: str = Field(description="what is wrong with it, or with what it says; empty if nothing")
    swaps: int
    shadow: Shadow
    catalogue: Catalogue
    experiment: Experiment | None = Field(description="null where the server was started without one")


class Problem(BaseModel):
    """Why a request was not answered."""

    message: str
    where: str = Field("", description="field of the request")
    request_id: str


def told(answer: Answer) -> dict[str, Any]:
    """A `RecommendResponse` as JSON has it."""
    facts = answer.served.recommender.videos.facts_of(answer.slate.video_ids, ("uploaded_at",))
    return {
        "request_id": answer.request_id,
        "user_id": answer.user_id,
        "model": {"name": answer.served.version.name, "version": answer.served.version.number},
        "videos": [
            {
                "video_id": video.video_id,
                "position": position,
                "expected_watch_time_s": video.expected_watch_time_s,
                "score": video.score,
                "sources": dict(video.sources),
                "uploaded_at": _iso(facts[video.video_id].uploaded_at),
            }
            for position, video in enumerate(answer.slate.videos)
        ],
        "personal": answer.slate.personal,
        "drawn": answer.is_drawn,
        "arm": answer.arm,
        "degraded": answer.degraded,
    }


def told_as_json(answer: Answer) -> bytes:
    """A `RecommendResponse`: by what takes a seventh of the time of `json`, which counts at each request."""
    return to_json(told(answer), inf_nan_mode="null")


def _iso(instant: int | datetime.datetime | None) -> str | None:
    if instant is None:
        return None
    return (_EPOCH + to_microseconds(instant) * _MICROSECOND).isoformat()


def past(user_id: str, events: Iterable[Event], at_most: int) -> dict[str, Any]:
    """A `HistoryResponse` as JSON has it."""
    rows = rows_of(events)
    watches, searches = rows.get("watches", []), rows.get("searches", [])
    last: list[dict[str, Any]] = [
        {
            "at": end_of_watch(row["watched_at"], row["watch_time_s"])
            if "watched_at" in row
            else row["searched_at"],
            **{name: row.get(name) for name in ("video_id", "watch_time_s", "completed", "query")},
        }
        for row in [*watches, *searches]
    ]
    last.sort(key=lambda event: event["at"], reverse=True)
    return {
        "user_id": user_id,
        "watches": len(watches),
        "impressions": len(rows.get("impressions", [])),
        "searches": len(searches),
        "before_logs": len(rows.get("history", [])),
        "last": [{**event, "at": _iso(event["at"])} for event in last[:at_most]],
    }
