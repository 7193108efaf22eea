"""Days pass in the simulated world: a policy fills pages, people click, watch and search, and logs are written.

`world` holds the laws; what is computed here is their course. Users do not meet, so the n-th event of every user
of a day is computed at once.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from watchnext.data.slates import (
    Feedback,
    LoggingPolicy,
    Policy,
    Proposal,
    Requests,
    SlateSampler,
    hashed,
    uniform,
)
from watchnext.data.world import (
    COMPLETED,
    COUNT,
    DAY_US,
    DEVICES,
    ORIGINS,
    OUTSIDE,
    PAGE,
    SEARCH,
    STARTED,
    SURFACES,
    WORDS_PER_TOPIC,
    Arrivals,
    Sessions,
    Stream,
    World,
    instants,
    named,
)

Columns = dict[str, np.ndarray]

_SEARCH_ORIGIN, _EXTERNAL_ORIGIN, _UP_NEXT_ORIGIN = (
    ORIGINS.index(name) for name in ("search", "external", "up_next")
)
_RESULTS = 10
_LINKS = 6
_UP_NEXT_STEPS = 3


@dataclass
class State:
    """Where a world stands between two days. `run` works on a copy.

    Attributes:
        day: the next day to run; 0 is the first day of the logs, burn-in days are negative.
        seen: uint8 [num_users, num_videos]: impressions so far (6 bits, `COUNT`), whether it was `STARTED`, and
            `COMPLETED`.
        last_topic: int32 [num_users], of the last completed watch, -1 for none.
    """

    day: int
    seen: np.ndarray
    last_topic: np.ndarray

    @classmethod
    def initial(cls, world: World) -> "State":
        """Nobody has seen anything; the first burn-in day is next."""
        shape = (len(world.users.user_id), len(world.videos.video_id))
        return cls(
            -world.settings.burn_in_days,
            np.zeros(shape, dtype=np.uint8),
            np.full(shape[0], -1, dtype=np.int32),
        )

    def copy(self) -> "State":
        """An independent one."""
        return State(self.day, self.seen.copy(), self.last_topic.copy())


@dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
        tables: the logs, by name, in the columns of `watchnext.schema`.
        truth: what caused them, by name.
        state: where the world stands now.
    """

    tables: dict[str, pa.Table]
    truth: dict[str, pa.Table]
    state: State


def logging_policy(world: World) -> LoggingPolicy:
    """The policy of the logs, knowing nothing yet."""
    return LoggingPolicy(
        world.catalogue,
        len(world.users.user_id),
        world.settings.topics,
        candidates=world.settings.candidates,
        uniform_share=world.settings.uniform_share,
    )


def run(
    world: World,
    policy: Policy,
    days: int,
    state: State | None = None,
    common_random_numbers: int | None = None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Outcome:
    """Let `policy` fill the pages of some days, and log what happens.

    Two runs from the same state with the same `common_random_numbers` see the same arrivals, moods and searches,
    the same links from outside, and the same luck of a user with a video at its n-th impression, whatever their
    policies show.

    Args:
        world: where.
        policy: fills the pages and learns from what it observes. It is changed by that: pass a copy to keep it.
        days: how many.
        state: where to go on from; None: the first burn-in day. It is left as it is.
        common_random_numbers: seed of all that is chance; None: the world's own.
        progress: wraps the days, to show how far the work is.

    Returns:
        Logs, truth and the state to go on from.
    """
    course = _Course(
        world,
        policy,
        state.copy() if state is not None else State.initial(world),
        world.seed if common_random_numbers is None else common_random_numbers,
    )
    for day in progress(range(course.state.day, course.state.day + days)):
        course.run_day(day)
    course.state.day += days
    return Outcome(course.tables(), course.truth(), course.state)


@dataclass
class _Log:
    """Columns in the making."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, columns: Columns) -> None:
        for name, values in columns.items():
            self.parts.setdefault(name, []).append(values)

    def columns(self, *sort_by: str) -> Columns:
        joined = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        order = np.lexsort([joined[name] for name in sort_by[::-1]])
        return {name: values[order] for name, values in joined.items()}


@dataclass
class _Course:
    """A run while it lasts."""

    world: World
    policy: Policy
    state: State
    noise: int
    sampler: SlateSampler = field(default_factory=SlateSampler)
    impressions: _Log = field(default_factory=_Log)
    watches: _Log = field(default_factory=_Log)
    searches: _Log = field(default_factory=_Log)

    def __post_init__(self) -> None:
        # A round without events, so that logs of days on which nobody came have their columns.
        self._begin_day(self.state.day)
        self._run_round(np.zeros(0, dtype=np.int64))

    def run_day(self, day: int) -> None:
        self._begin_day(day)
        self.policy.begin_day(self.world.start_us + day * DAY_US)
        rank = self._arrivals.rank
        by_rank = np.argsort(rank, kind="stable")
        for rows in np.split(by_rank, np.cumsum(np.bincount(rank))[:-1]):
            self._run_round(rows)

    def _begin_day(self, day: int) -> None:
        world = self.world
        # Counted from the first burn-in day, since noise takes no negative numbers.
        self._day = day + world.settings.burn_in_days
        self._arrivals = world.arrivals(day, self.noise)
        spread = world.spread_weights(world.start_us + day * DAY_US)
        self._spread_sum = np.cumsum(spread)
        self._topic_sum = np.concatenate([[0.0], np.cumsum(np.sqrt(spread)[world.by_topic])])
        pages = np.flatnonzero(self._arrivals.kind == PAGE)
        pages = pages[np.lexsort((self._arrivals.user[pages], self._arrivals.at_us[pages]))]
        self._request_id = np.zeros(len(self._arrivals.user), dtype=np.int64)
        self._request_id[pages] = self._day * 10**8 + 1 + np.arange(len(pages))

    def _run_round(self, rows: np.ndarray) -> None:
        """At most one event of a user: `rows` of the arrivals, ascending."""
        kind = self._arrivals.kind[rows]
        shown, clicked = self._show_pages(rows[kind == PAGE])
        asked, found = self._search(rows[kind == SEARCH])
        watched = _in_order([clicked, found, self._follow_links(rows[kind == OUTSIDE])])
        self._remember(watched)
        watched = self._up_next(watched)
        self.watches.add({**watched, "watched_us": _watched_at(watched, self._arrivals)})
        self.policy.observe(
            Feedback(
                shown["user"],
                shown["video"],
                shown["clicked"],
                shown["watch_time_s"],
                watched["user"],
                watched["video"],
                watched["completed"],
                asked["user"],
                self.world.queries(asked["topic"], asked["words"], asked["length"]).to_pylist(),
            )
        )

    def _episodes(self, user: np.ndarray, video: np.ndarray) -> np.ndarray:
        """See `World.click_probability`: int8 of the shape of `video`; `user` broadcasts against it."""
        before = self.world.videos.previous_episode[video]
        ready = self.state.seen[user, np.maximum(before, 0)] & COMPLETED
        return np.where(before < 0, 0, np.where(ready, 1, -1)).astype(np.int8)

    def _judge(
        self, sessions: Sessions, video: np.ndarray, at_us: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Taste, probability of a click when looked at, and of commitment after it: each [n, m]."""
        world, state = self.world, self.state
        taste = world.taste(sessions, video)
        episodes = self._episodes(sessions.user[:, None], video)
        click = world.click_probability(
            sessions,
            video,
            at_us,
            taste,
            state.seen[sessions.user[:, None], video],
            state.last_topic[sessions.user],
            episodes,
        )
        return taste, click, world.commit_probability(video, taste, episodes)

    def _show_pages(self, rows: np.ndarray) -> tuple[Columns, Columns]:
        """Fill pages: the impressions, and the watches that followed."""
        world, noise = self.world, self.noise
        sessions, at_us = self._arrivals.sessions.take(rows), self._arrivals.at_us[rows]
        user = sessions.user
        key = hashed(0, Stream.REQUEST, user, self._day, self._arrivals.number[rows])
        if len(rows):
            proposal = self.policy.propose(Requests(user, at_us, key))
        else:
            proposal = Proposal(np.zeros((0, 1), dtype=np.int32), np.ones(1), 0.0)
        draw = self.sampler.draw(proposal, key, world.settings.page_size, noise)
        video, slots = draw.video, draw.video.shape[1]
        taste, click, commit = self._judge(sessions, video, at_us)
        looked = world.examination(sessions.surface)[:, :slots]
        seen = self.state.seen[user[:, None], video]
        count = seen & COUNT
        luck = uniform(noise, Stream.CLICK, user[:, None], video, count)
        if world.settings.preset == "linear_taste":
            odds = click / (1.0 - click) * looked
            probability = odds / (1.0 + odds)
            clicked = luck < probability
        else:
            # One look per page: who leaves at a position sees nothing below it.
            probability = click * looked
            clicked = (uniform(noise, Stream.LOOK, key)[:, None] < looked) & (luck < click)
        expected = world.expected_watch_time_s(video, commit, sessions.patience_s[:, None])
        page, position = np.nonzero(clicked)
        chosen = video[page, position]
        watch_time_s = np.zeros(video.shape)
        watch_time_s[page, position], completed = world.watch(
            noise,
            (user[page], chosen, count[page, position]),
            chosen,
            commit[page, position],
            sessions.patience_s[page],
        )
        self.state.seen[user[:, None], video] = np.where(count < COUNT, seen + np.uint8(1), seen)

        flat = np.repeat(np.arange(len(rows)), slots)
        shown = {
            "request": self._request_id[rows][flat],
            "video": video.ravel(),
            "user": user[flat],
            "shown_us": at_us[flat],
            "surface": sessions.surface[flat].astype(np.int8),
            "position": np.tile(np.arange(slots, dtype=np.int64), len(rows)),
            "device": sessions.device[flat].astype(np.int8),
            "logged_in": sessions.logged_in[flat],
            "clicked": clicked.ravel(),
            "watch_time_s": watch_time_s.ravel(),
            "propensity": draw.propensity.ravel(),
            "click_probability": probability.ravel(),
            "expected_watch_time_s": expected.ravel(),
            "taste": taste.ravel(),
            "member": sessions.member[flat].astype(np.int8),
            "salient": sessions.salient[flat].astype(np.int8),
            **_whence(proposal, video),
        }
        self.impressions.add(shown)
        return shown, {
            "row": rows[page],
            "place": position,
            "user": user[page],
            "video": chosen,
            "watch_time_s": watch_time_s[page, position],
            "completed": completed,
            "origin": sessions.surface[page],
        }

    def _search(self, rows: np.ndarray) -> tuple[Columns, Columns]:
        """Somebody types words of a topic that they are after, and mostly watches one of the results.

        Returns:
            The searches, and the watches that followed.
        """
        world, noise, day = self.world, self.noise, self._day
        sessions, number = self._arrivals.sessions.take(rows), self._arrivals.number[rows]
        user = sessions.user
        interests = world.users.interest_topic[user, sessions.member]
        interest = np.where(uniform(noise, Stream.TOPIC, user, day, number) < 0.8, sessions.salient, 0)
        topic = interests[np.arange(len(rows)), interest]
        luck = uniform(noise, Stream.WORDS, user[:, None], day, number[:, None], np.arange(4))
        asked = {
            "user": user,
            "searched_us": self._arrivals.at_us[rows],
            "topic": topic,
            "length": 1 + (luck[:, 0] * 2.6).astype(np.int64),
            "words": (luck[:, 1:] ** 2 * WORDS_PER_TOPIC).astype(np.int64),
        }
        self.searches.add(asked)
        low, high = self._topic_sum[world.topic_begin[topic]], self._topic_sum[world.topic_begin[topic + 1]]
        luck = uniform(noise, Stream.RESULT, user[:, None], day, number[:, None], np.arange(_RESULTS))
        place = (
            np.searchsorted(self._topic_sum, low[:, None] + luck * (high - low)[:, None], side="right") - 1
        )
        found = world.by_topic[np.clip(place, 0, len(world.by_topic) - 1)]
        kept = (high > low) & (uniform(noise, Stream.FOLLOW, user, day, number) < 0.85)
        return asked, self._pick(rows, found, kept, _SEARCH_ORIGIN)

    def _follow_links(self, rows: np.ndarray) -> Columns:
        """Links from elsewhere: a few videos are met by their reach, and one of them is watched."""
        user, number = self._arrivals.user[rows], self._arrivals.number[rows]
        luck = uniform(
            self.noise, Stream.OUTSIDE, user[:, None], self._day, number[:, None], np.arange(_LINKS)
        )
        found = np.searchsorted(self._spread_sum, luck * self._spread_sum[-1], side="right")
        found = np.minimum(found, len(self._spread_sum) - 1).astype(np.int32)
        return self._pick(rows, found, np.full(len(rows), self._spread_sum[-1] > 0), _EXTERNAL_ORIGIN)

    def _pick(self, rows: np.ndarray, found: np.ndarray, kept: np.ndarray, origin: int) -> Columns:
        """Watch what fits best, with some luck, of the videos found: int [n, m] -> at most n watches."""
        sessions, at_us = self._arrivals.sessions.take(rows), self._arrivals.at_us[rows]
        _, liking, commit = self._judge(sessions, found, at_us)
        liking = liking * (0.5 + uniform(self.noise, Stream.PICK, sessions.user[:, None], found, self._day))
        each, best = np.arange(len(rows)), np.argmax(liking, axis=1)
        kept = kept & (self.world.videos.uploaded_us[found[each, best]] < at_us)
        each, best = each[kept], best[kept]
        user, video = sessions.user[each], found[each, best]
        watch_time_s, completed = self.world.watch(
            self.noise,
            (user, video, np.full(len(each), self._day), np.full(len(each), origin)),
            video,
            commit[each, best],
            sessions.patience_s[each],
        )
        return {
            "row": rows[each],
            "place": np.zeros(len(each), dtype=np.int64),
            "user": user,
            "video": video,
            "watch_time_s": watch_time_s,
            "completed": completed,
            "origin": np.full(len(each), origin, dtype=np.int64),
        }

    def _remember(self, watched: Columns) -> None:
        """Mark what was watched; the watches of a user are in their order."""
        user, video, completed = watched["user"], watched["video"], watched["completed"]
        np.bitwise_or.at(self.state.seen, (user, video), np.where(completed, STARTED | COMPLETED, STARTED))
        # Of several assignments to one place numpy keeps the last.
        self.state.last_topic[user[completed]] = self.world.videos.topic[video[completed]]

    def _up_next(self, watched: Columns) -> Columns:
        """Who completed an episode may go on to the next ones by themselves."""
        world = self.world
        last = np.ones(len(watched["row"]), dtype=bool)
        last[:-1] = watched["row"][1:] != watched["row"][:-1]
        tail = {name: values[last] for name, values in watched.items()}
        parts = [watched]
        for step in range(1, 1 + _UP_NEXT_STEPS):
            user, video = tail["user"], world.videos.next_episode[tail["video"]]
            goes_on = tail["completed"] & (video >= 0)
            goes_on &= world.videos.uploaded_us[video] < self._arrivals.at_us[tail["row"]]
            goes_on &= (self.state.seen[user, video] & COMPLETED) == 0
            luck = uniform(self.noise, Stream.CONTINUE, user, video + 1, self._day)
            goes_on &= luck < 1.0 - np.exp(-0.6 * world.dials.series)
            tail = {name: values[goes_on] for name, values in tail.items()}
            user, video = tail["user"], video[goes_on]
            sessions = self._arrivals.sessions.take(tail["row"])
            commit = world.commit_probability(
                video, world.taste(sessions, video[:, None])[:, 0], np.ones(len(video), dtype=np.int8)
            )
            watch_time_s, completed = world.watch(
                self.noise,
                (user, video, np.full(len(user), self._day), np.full(len(user), _UP_NEXT_ORIGIN)),
                video,
                commit,
                sessions.patience_s,
            )
            tail = {
                **tail,
                "place": tail["place"] + 1000 * step,
                "video": video,
                "watch_time_s": watch_time_s,
                "completed": completed,
                "origin": np.full(len(user), _UP_NEXT_ORIGIN, dtype=np.int64),
            }
            self._remember(tail)
            parts.append(tail)
        return _in_order(parts)

    def tables(self) -> dict[str, pa.Table]:
        """The logs so far."""
        world, videos, users = self.world, self.world.videos, self.world.users
        end_us = world.start_us + self.state.day * DAY_US
        shown = self.impressions.columns("request", "position")
        nominated = shown["nominated"]
        offsets = np.concatenate([[0], np.cumsum(nominated.sum(axis=1))]).astype(np.int32)
        source = np.broadcast_to(np.arange(nominated.shape[1]), nominated.shape)[nominated]
        score = shown["nomination_score"][nominated].astype(np.float64)
        watched = self.watches.columns("watched_us", "user", "video")
        tables = {
            "videos": world.video_table(np.flatnonzero(videos.uploaded_us < end_us)),
            "users": world.user_table(np.flatnonzero(users.signed_up_us < end_us)),
            "impressions": pa.table(
                {
                    "request_id": shown["request"],
                    "video_id": videos.video_id[shown["video"]],
                    "user_id": users.user_id[shown["user"]],
                    "shown_at": instants(shown["shown_us"]),
                    "surface": named(shown["surface"], SURFACES),
                    "position": shown["position"],
                    "device": named(shown["device"], DEVICES),
                    "logged_in": shown["logged_in"],
                    "clicked": shown["clicked"],
                    "watch_time_s": shown["watch_time_s"],
                    "sources": pa.ListArray.from_arrays(offsets, named(source, LoggingPolicy.NAMES)),
                    "source_scores": pa.ListArray.from_arrays(offsets, pa.array(score)),
                    "seed_video_id": pa.array(
                        videos.video_id[np.maximum(shown["seed"], 0)], mask=shown["seed"] < 0
                    ),
                    "propensity": shown["propensity"],
                }
            ),
            "watches": pa.table(
                {
                    "user_id": users.user_id[watched["user"]],
                    "video_id": videos.video_id[watched["video"]],
                    "watched_at": instants(watched["watched_us"]),
                    "watch_time_s": watched["watch_time_s"],
                    "completed": watched["completed"],
                    "origin": named(watched["origin"], ORIGINS),
                }
            ),
        }
        if world.dials.search > 0:
            asked = self.searches.columns("searched_us", "user")
            tables["searches"] = pa.table(
                {
                    "user_id": users.user_id[asked["user"]],
                    "searched_at": instants(asked["searched_us"]),
                    "query": world.queries(asked["topic"], asked["words"], asked["length"]),
                }
            )
        return tables

    def truth(self) -> dict[str, pa.Table]:
        """What caused the logs so far."""
        world = self.world
        shown = self.impressions.columns("request", "position")
        return {
            **world.truth_tables(),
            "impressions": pa.table(
                {
                    "request_id": shown["request"],
                    "video_id": world.videos.video_id[shown["video"]],
                    "click_probability": shown["click_probability"],
                    "expected_watch_time_s_given_click": shown["expected_watch_time_s"],
                    "taste": shown["taste"],
                    "member": shown["member"],
                    "salient_interest": shown["salient"],
                }
            ),
        }


def _in_order(parts: list[Columns]) -> Columns:
    """Watches of several kinds together, by event and place in it."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((joined["place"], joined["row"]))
    return {name: values[order] for name, values in joined.items()}


def _watched_at(watches: Mapping[str, np.ndarray], arrivals: Arrivals) -> np.ndarray:
    """Instants: one watch after the other, all before the user's next event; int64 microseconds, [num_watches].

    When they do not fit in between they are moved together, as if the user had skipped ahead.
    """
    row = watches["row"]
    first = np.ones(len(row), dtype=bool)
    first[1:] = row[1:] != row[:-1]
    group = np.cumsum(first) - 1
    spent = (
        np.concatenate([[0.0], np.cumsum(watches["watch_time_s"] + 3.0)[:-1]]) if len(row) else np.zeros(0)
    )
    begins_s = spent - spent[first][group] + 2.0
    longest = np.zeros(int(first.sum()))
    np.maximum.at(longest, group, begins_s)
    room_s = 0.95 * (arrivals.until_us[row] - arrivals.at_us[row]) / 1e6
    begins_s *= np.minimum(1.0, room_s / longest[group])
    return arrivals.at_us[row] + (begins_s * 1e6).astype(np.int64)


def _whence(proposal: Proposal, video: np.ndarray) -> dict[str, np.ndarray]:
    """Which sources nominated what was shown, with which score and seed: columns of the impressions."""
    width = len(LoggingPolicy.NAMES)
    nominated = np.zeros((*video.shape, width), dtype=bool)
    score = np.zeros((*video.shape, width), dtype=np.float32)
    seed = np.full(video.shape, -1, dtype=np.int32)
    if proposal.nominations is not None:
        told = proposal.nominations
        for column in range(told.video.shape[1]):
            same = video == told.video[:, column, None]
            source = told.source[column]
            is_new = same & ~nominated[:, :, source]
            nominated[:, :, source] |= same
            score[:, :, source] = np.where(is_new, told.score[:, column, None], score[:, :, source])
            seed = np.where(same & (seed < 0), told.seed[:, column, None], seed)
    return {
        "nominated": nominated.reshape(-1, width),
        "nomination_score": score.reshape(-1, width),
        "seed": seed.ravel(),
    }


def write_tables(tables: Mapping[str, pa.Table], directory: Path) -> None:
    """Store each table as `<name>.parquet`; equal tables give equal bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, directory / f"{name}.parquet", compression="zstd", row_group_size=250_000)
