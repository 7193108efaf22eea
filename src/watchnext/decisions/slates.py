"""Requests of a day asked again: the slates that bundles would have given, and what users then watched of them."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from watchnext.console import track
from watchnext.data.split import day_begins_at
from watchnext.decisions.overlap import rank_biased_overlap, slate_overlap
from watchnext.errors import InputError
from watchnext.features.history import Id
from watchnext.recommend.recommender import Recommender

if TYPE_CHECKING:
    import pyarrow as pa

    from watchnext.features.ranking_features import VideoStatistics

RANDOM_SOURCE = "random"
"""The only source of an impression that was drawn uniformly, whoever asked (see `data.sources`)."""

_WARM_UP = 5
_ROUNDING = 1e-12
"""Of the sum that rank-biased overlap is."""


@dataclass(frozen=True)
class Shown:
    """An impression of a logged page.

    Attributes:
        video_id: what was shown.
        position: where, from 0.
        propensity: probability, given the request, that the logging policy put it there; None where the log has none.
        watch_time_s: 0 where it was not clicked.
    """

    video_id: Id
    position: int
    propensity: float | None
    watch_time_s: float


@dataclass(frozen=True)
class Paired:
    """Both answers to one request.

    Attributes:
        overlap: share of the slate's places filled by videos that are in both slates, 0 to 1.
        rank_biased_overlap: the same with the first places weighing most, 0 to 1.
        hits: champion's and challenger's share of the user's later completed watches of the day that are in the
            first slate_length places; NaN where there were none.
        captured: champion's and challenger's share of the seconds of these watches; NaN where there were none.
        latency_ms: champion's and challenger's.
        errors: what champion and challenger failed with; "" for an answer.
        slates: champion's and challenger's, best first; empty for an error.
        own_expected_s: what each one's own ranker expects of a place of its slate, in seconds of watch time; NaN for none.
    """

    overlap: float
    rank_biased_overlap: float
    hits: tuple[float, float]
    captured: tuple[float, float]
    latency_ms: tuple[float, float]
    errors: tuple[str, str]
    slates: tuple[Sequence[Id], Sequence[Id]] = ((), ())
    own_expected_s: tuple[float, float] = (math.nan, math.nan)


@dataclass(frozen=True)
class Answered:
    """One answer to a request.

    Attributes:
        slate: best first; empty for an error.
        latency_ms: how long it took.
        error: what it failed with; "" for an answer.
        own_expected_s: mean over the slate of the watch time that its own ranker expects, in seconds; NaN without any.
    """

    slate: Sequence[Id]
    latency_ms: float
    error: str
    own_expected_s: float = math.nan


@dataclass(frozen=True)
class Request:
    """A logged request, what its user completed later that day for how many seconds, and the page that it got."""

    user_id: Id
    at: datetime
    surface: str | None
    device: str | None
    logged_in: bool | None
    watched_later: Mapping[Id, float]
    shown: tuple[Shown, ...] = ()


def read_requests(
    tables: Path, day: date, time_zone: str, how_many: int, *, only_random: bool = False
) -> list[Request]:
    """Requests of a local day, spread evenly over it, with what followed.

    Args:
        tables: validated tables.
        day: which.
        time_zone: in which it is cut.
        how_many: at most so many.
        only_random: of those impressions alone that were uniformly random exposures, see `random_exposures`, which count
            wherever they stood on the page.

    Raises:
        InputError: the day has no requests.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    begins, ends = (day_begins_at(day + timedelta(days=more), time_zone) for more in (0, 1))

    def rows(name: str, instant: str, columns: Sequence[str]) -> pa.Table:
        dataset = ds.dataset([str(part) for part in sorted((tables / name).glob("part-*.parquet"))])
        kind = dataset.schema.field(instant).type
        inside = (ds.field(instant) >= pa.scalar(begins, kind)) & (ds.field(instant) < pa.scalar(ends, kind))
        present = [column for column in columns if column in dataset.schema.names]
        return dataset.to_table(columns=present, filter=inside)

    of_request = ("user_id", "shown_at", "surface", "device", "logged_in")
    of_page = ("video_id", "position", "propensity", "watch_time_s", *(("sources",) if only_random else ()))
    impressions = rows("impressions", "shown_at", ("request_id", *of_request, *of_page))
    if impressions.num_rows == 0:
        raise InputError(f"no requests on {day}", where=str(tables / "impressions"))
    if only_random:
        impressions = impressions.filter(_is_random(impressions))
    others = [name for name in impressions.column_names if name in of_request]
    firsts = impressions.group_by("request_id", use_threads=False).aggregate(
        [(name, "min") for name in others]
    )
    firsts = firsts.rename_columns([name.removesuffix("_min") for name in firsts.column_names])
    firsts = firsts.sort_by([("shown_at", "ascending"), ("request_id", "ascending")])
    places = np.unique(np.linspace(0, firsts.num_rows - 1, min(how_many, firsts.num_rows)).astype(int))
    chosen = firsts.take(pa.array(places)).to_pylist()
    pages: dict[Id, list[Shown]] = {row["request_id"]: [] for row in chosen}
    for row in impressions.filter(
        pc.is_in(
            impressions["request_id"], value_set=firsts["request_id"].take(pa.array(places)).combine_chunks()
        )
    ).to_pylist():
        position = 0 if only_random else row.get("position")
        if position is not None:
            pages[row["request_id"]].append(
                Shown(row["video_id"], position, row.get("propensity"), row.get("watch_time_s") or 0.0)
            )

    watches = rows(
        "watches", "watched_at", ("user_id", "video_id", "watched_at", "completed", "watch_time_s")
    )
    users = pa.array(sorted({row["user_id"] for row in chosen}), watches.schema.field("user_id").type)
    watches = watches.filter(pc.and_(watches["completed"], pc.is_in(watches["user_id"], value_set=users)))
    by_user: dict[Id, list[tuple[datetime, Id, float]]] = {}
    for row in watches.to_pylist():
        by_user.setdefault(row["user_id"], []).append(
            (row["watched_at"], row["video_id"], row.get("watch_time_s") or 0.0)
        )
    return [
        Request(
            user_id=row["user_id"],
            at=row["shown_at"],
            surface=row.get("surface"),
            device=row.get("device"),
            logged_in=row.get("logged_in"),
            watched_later={
                video: seconds
                for watched_at, video, seconds in by_user.get(row["user_id"], ())
                if watched_at >= row["shown_at"]
            },
            shown=tuple(pages[row["request_id"]]),
        )
        for row in chosen
    ]


def random_exposures(tables: Path, day: date, time_zone: str) -> list[Id]:
    """Videos of the impressions of a local day that were uniformly random exposures: their only source is `random`."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    begins, ends = (day_begins_at(day + timedelta(days=more), time_zone) for more in (0, 1))
    impressions = ds.dataset(sorted(str(part) for part in (tables / "impressions").glob("part-*.parquet")))
    if "sources" not in impressions.schema.names:
        return []
    kind = impressions.schema.field("shown_at").type
    inside = (ds.field("shown_at") >= pa.scalar(begins, kind)) & (
        ds.field("shown_at") < pa.scalar(ends, kind)
    )
    found = impressions.to_table(columns=["video_id", "sources"], filter=inside)
    return list(found.filter(_is_random(found))["video_id"].to_pylist())


def _is_random(impressions: "pa.Table") -> "pa.ChunkedArray":
    import pyarrow.compute as pc

    sources = pc.binary_join(impressions["sources"], ",")
    return pc.fill_null(pc.equal(sources, RANDOM_SOURCE), fill_value=False)


def answer_all(
    recommenders: Sequence[Recommender],
    requests: Sequence[Request],
    tables: Path,
    features: Path,
    day: date,
    length: int,
    what: str,
) -> list[list[Answered]]:
    """Answer every request with each recommender, taking turns in going first.

    Args:
        recommenders: bundles, loaded.
        requests: see `read_requests`.
        tables: validated tables, for what users had done by then.
        features: outputs of featurize, for the statistics of videos as of `day`.
        day: of the requests.
        length: of the slates.
        what: is done, for people.

    Returns:
        The answers to each request, in the order of the recommenders.
    """
    from watchnext.features.ranking_features import RequestContext
    from watchnext.recommend.state import UserStates

    states = UserStates.read(tables, {request.user_id for request in requests})
    statistics = statistics_of(features, day)

    def answer(recommender: Recommender, request: Request) -> Answered:
        facts = states.facts_of(request.user_id)
        context = RequestContext(
            user_id=request.user_id,
            at=request.at,
            surface=request.surface,
            device=request.device,
            logged_in=request.logged_in,
            region=facts.region,
            age_years=facts.age_years,
            gender=facts.gender,
            user_columns=facts.columns,
        )
        began = time.perf_counter()
        try:
            slate = recommender.recommend(
                states.history(request.user_id), context, length, statistics=statistics
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted, shown and can veto
            return Answered((), 1000 * (time.perf_counter() - began), f"{type(error).__name__}: {error}")
        took_ms = 1000 * (time.perf_counter() - began)
        expected_s = [video.expected_watch_time_s for video in slate.videos]
        own = math.fsum(expected_s) / len(expected_s) if expected_s else math.nan
        return Answered(tuple(slate.video_ids), took_ms, "", own)

    for request in requests[:_WARM_UP]:
        for recommender in recommenders:
            answer(recommender, request)
    found = []
    places = range(len(recommenders))
    for number, request in enumerate(track(requests, what)):
        order = [*places][number % len(places) :] + [*places][: number % len(places)]
        answers = {which: answer(recommenders[which], request) for which in order}
        found.append([answers[which] for which in places])
    return found


def replay(
    champion: Recommender,
    challenger: Recommender,
    requests: Sequence[Request],
    tables: Path,
    features: Path,
    day: date,
    length: int,
) -> list[Paired]:
    """Answer every request with both; see `answer_all`."""
    both = answer_all(
        (champion, challenger), requests, tables, features, day, length, "replaying the shadow day"
    )
    return [
        Paired(
            overlap=slate_overlap(first.slate, second.slate),
            rank_biased_overlap=rank_biased_overlap(first.slate, second.slate),
            hits=(hits(first.slate, request), hits(second.slate, request)),
            captured=(captured(first.slate, request), captured(second.slate, request)),
            latency_ms=(first.latency_ms, second.latency_ms),
            errors=(first.error, second.error),
            slates=(list(first.slate), list(second.slate)),
            own_expected_s=(first.own_expected_s, second.own_expected_s),
        )
        for request, (first, second) in zip(requests, both, strict=True)
    ]


def summarize(paired: Sequence[Paired], length: int) -> dict[str, float]:
    """Figures of a replay: means over requests, latency percentiles, shares of errors.

    `own_expected_watch_time_s` of each is what its own ranker expects: shown, and no evidence: each grades itself.
    `same_slates` is the share of the requests that both answered by the same videos in the same order.
    """
    import numpy as np

    metrics: dict[str, float] = {
        "requests": len(paired),
        f"slate_overlap_at_{length}": float(np.mean([pair.overlap for pair in paired])),
        "rank_biased_overlap": float(np.mean([pair.rank_biased_overlap for pair in paired])),
        "same_slates": float(np.mean([pair.rank_biased_overlap > 1 - _ROUNDING for pair in paired])),
    }
    found = np.array([pair.hits for pair in paired])
    seconds = np.array([pair.captured for pair in paired])
    judged = np.isfinite(found).all(axis=1)
    timed = np.isfinite(seconds).all(axis=1)
    for place, who in enumerate(("champion", "challenger")):
        latency = [pair.latency_ms[place] for pair in paired]
        metrics[f"{who}_latency_p50_ms"] = float(np.percentile(latency, 50))
        metrics[f"{who}_latency_p99_ms"] = float(np.percentile(latency, 99))
        metrics[f"{who}_errors"] = float(np.mean([bool(pair.errors[place]) for pair in paired]))
        # Recall of the whole slate service, not of candidate generation: hence the word slate.
        metrics[f"{who}_slate_recall_at_{length}"] = (
            float(found[judged, place].mean()) if judged.any() else math.nan
        )
        metrics[f"{who}_slate_watch_time_share_at_{length}"] = (
            float(seconds[timed, place].mean()) if timed.any() else math.nan
        )
        expected = [
            pair.own_expected_s[place] for pair in paired if math.isfinite(pair.own_expected_s[place])
        ]
        metrics[f"{who}_own_expected_watch_time_s"] = float(np.mean(expected)) if expected else math.nan
    metrics["requests_with_later_watches"] = int(judged.sum())
    return metrics


def statistics_of(features: Path, day: date) -> "VideoStatistics":
    """Of every video, as of a day."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from watchnext.features.ranking_features import VideoStatistics

    parts = sorted((features / "video_statistics").glob("part-*.parquet"))
    return VideoStatistics.from_table(
        pa.concat_tables([pq.read_table(part, filters=[("day", "=", day)]) for part in parts])
    )


def hits(shown: Sequence[Id], request: Request) -> float:
    """Share of the user's later completed watches that a slate has; NaN without any."""
    if not request.watched_later:
        return math.nan
    return len(request.watched_later.keys() & set(shown)) / len(request.watched_later)


def captured(shown: Sequence[Id], request: Request) -> float:
    """Share of the seconds of the user's later completed watches that a slate has; NaN without any."""
    total = sum(request.watched_later.values())
    if total <= 0:
        return math.nan
    return sum(request.watched_later.get(video, 0.0) for video in set(shown)) / total
