"""How a slate is drawn and how likely it was: Plackett-Luce with a uniform share, and the policies of the simulator.

A policy proposes candidates with weights for each request; the world draws the slate and logs its propensities.
Policies learn from logs alone: nothing here knows the truth of the simulated world.
"""

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.polynomial.legendre import leggauss

_SMOOTHING = 4
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def hashed(seed: int, stream: int, *parts: np.ndarray | int) -> np.ndarray:
    """uint64 noise that is a function of its arguments alone (splitmix64), arrays broadcast against each other.

    What happens to a user with a video is then the same whatever else happened before, which is what lets two
    policies be compared under common random numbers.
    """
    state = np.asarray([(seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) & _MASK], dtype=np.uint64)
    for part in parts:
        state = state + np.asarray(part).astype(np.uint64) + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        state = state ^ (state >> np.uint64(31))
    return state


def uniform(seed: int, stream: int, *parts: np.ndarray | int) -> np.ndarray:
    """float64 noise in the open interval (0, 1), a function of its arguments alone."""
    return ((hashed(seed, stream, *parts) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


@functools.cache
def _legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    return leggauss(nodes)


def plackett_luce_marginals(weights: np.ndarray, positions: int, nodes: int = 256) -> np.ndarray:
    """The probability that item i stands at position k of a Plackett-Luce slate, over all that may stand before it.

    Seen as a race, item i arrives at an exponential time of rate w_i, and the slate is the order of arrival, so

        P(i at k) = integral over t of  w_i exp(-w_i t) P(exactly k of the others arrived before t)  dt

    where the number of others is Poisson-binomial with probabilities 1 - exp(-w_j t). Its distribution comes from
    the usual recursion, without a subtraction, and the integral from Gauss-Legendre quadrature in
    s = exp(-w_min t / 4), which makes the integrand smooth at both ends: with 256 nodes the error is below 1e-10
    for weights within a factor of 100 of each other (held by a test against enumeration).

    Args:
        weights: float [num_requests, num_items], all positive. Only their ratios matter.
        positions: how many positions from the first one, at most num_items.
        nodes: of the quadrature.

    Returns:
        float64 [num_requests, num_items, positions]; sums to 1 over items, and over all num_items positions.

    Source: R. L. Plackett, The analysis of permutations (1975); R. D. Luce, Individual choice behavior (1959).
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or not 1 <= positions <= weights.shape[1]:
        raise ValueError(f"weights {weights.shape} do not have {positions} positions")
    if not np.all(weights > 0):
        raise ValueError("weights must be positive")
    num_requests, num_items = weights.shape
    rates = weights / weights.min(axis=1, keepdims=True)
    points, quadrature = _legendre(nodes)
    s = (points + 1) / 2
    left = s[None, :, None] ** (_SMOOTHING * rates[:, None, :])  # not yet arrived, [requests, nodes, items]
    density = rates[:, None, :] * _SMOOTHING * left / s[None, :, None] * (quadrature / 2)[None, :, None]
    # How many arrived of the items before one, and of those after it: together all others, and nothing is divided out.
    after = np.zeros((num_items + 1, num_requests, nodes, positions))
    after[num_items, :, :, 0] = 1.0
    for item in range(num_items - 1, 0, -1):
        after[item] = _with_one_more(after[item + 1], left[:, :, item, None])
    before = after[num_items].copy()
    marginals = np.empty((num_requests, num_items, positions))
    for item in range(num_items):
        arrived = np.zeros_like(before)
        for count in range(positions):
            arrived[:, :, count:] += before[:, :, count, None] * after[item + 1, :, :, : positions - count]
        marginals[:, item] = np.einsum("rn,rnk->rk", density[:, :, item], arrived)
        before = _with_one_more(before, left[:, :, item, None])
    return marginals


def _with_one_more(arrived: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """How many have arrived, [num_requests, nodes, positions], where one more item has not with probability `stays`."""
    more = arrived * stays
    more[:, :, 1:] += arrived[:, :, :-1] * (1 - stays)
    return more


@dataclass(frozen=True)
class Catalogue:
    """The videos as logs show them, by index: what a policy may know of them.

    Attributes:
        video_id: int64 [num_videos].
        channel: int32 [num_videos], index of the channel.
        topic: int32 [num_videos], index of the first topic of the column `topics`.
        uploaded_us: int64 [num_videos], microseconds since 1970 UTC.
        duration_s: float64 [num_videos].
    """

    video_id: np.ndarray
    channel: np.ndarray
    topic: np.ndarray
    uploaded_us: np.ndarray
    duration_s: np.ndarray


@dataclass(frozen=True)
class Requests:
    """Pages to fill, at most one of a user.

    Attributes:
        user: int32 [num_requests], index of the user.
        at_us: int64 [num_requests], microseconds since 1970 UTC.
        key: uint64 [num_requests], says which request it is (user, day and number in the day) and nothing else.
    """

    user: np.ndarray
    at_us: np.ndarray
    key: np.ndarray


@dataclass(frozen=True)
class Nominations:
    """Who put forward what: several sources may nominate the same video.

    Attributes:
        video: int32 [num_requests, num_nominations].
        source: int [num_nominations], index into `names`; a column belongs to one source.
        score: float32 [num_requests, num_nominations].
        seed: int32 [num_requests, num_nominations], video that led to it, or -1.
        names: of the sources.
    """

    video: np.ndarray
    source: np.ndarray
    score: np.ndarray
    seed: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """Candidates of each request and how the slate is drawn from them.

    With probability `uniform_share` the slate is a uniform draw without replacement, else Plackett-Luce.

    Attributes:
        video: int32 [num_requests, num_candidates], distinct within a request and uploaded before it. A function
            of the request and the logs so far, not of chance: otherwise its propensities would not be exact.
        weights: float64 [num_candidates], the same for every request, or [num_requests, num_candidates].
        uniform_share: in [0, 1].
        nominations: where they came from, for the columns `sources`, `source_scores` and `seed_video_id`.
    """

    video: np.ndarray
    weights: np.ndarray
    uniform_share: float
    nominations: Nominations | None = None


@dataclass(frozen=True)
class Feedback:
    """What a policy sees of one round of events: at most one page of a user, and the watches of the round.

    Attributes:
        shown_user: int32 [num_impressions].
        shown_video: int32 [num_impressions].
        clicked: bool [num_impressions].
        shown_watch_time_s: float64 [num_impressions].
        watch_user: int32 [num_watches], in the order of watching within a user; clicks included.
        watch_video: int32 [num_watches].
        completed: bool [num_watches].
        search_user: int32 [num_searches], at most one search of a user; what it led to is among the watches.
        search_query: [num_searches], what was typed.
    """

    shown_user: np.ndarray
    shown_video: np.ndarray
    clicked: np.ndarray
    shown_watch_time_s: np.ndarray
    watch_user: np.ndarray
    watch_video: np.ndarray
    completed: np.ndarray
    search_user: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    search_query: Sequence[str] = ()


class Policy(Protocol):
    """Fills pages in the simulated world."""

    def begin_day(self, day_begins_us: int) -> None:
        """A day begins: the time to digest the days before."""

    def propose(self, requests: Requests) -> Proposal:
        """Candidates for these requests."""

    def observe(self, feedback: Feedback) -> None:
        """What came of a round. Rounds interleave users: what one did may lie after what the next round brings."""


@dataclass(frozen=True)
class Draw:
    """Slates and how likely they were.

    Attributes:
        video: int32 [num_requests, page_size].
        propensity: float64 [num_requests, page_size], probability, given the request, of this video at this
            position, over all slates that have it there.
    """

    video: np.ndarray
    propensity: np.ndarray


class SlateSampler:
    """Draws slates; the marginals of weights that it has seen are kept."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], np.ndarray] = {}

    def draw(self, proposal: Proposal, key: np.ndarray, page_size: int, seed: int) -> Draw:
        """Draw one slate per request.

        Args:
            proposal: candidates [num_requests, num_candidates] and weights.
            key: uint64 [num_requests]; with `seed` it decides the draw, so that two policies that propose a video
                for the same request draw it with the same luck.
            page_size: slots; fewer are filled when there are fewer candidates.
            seed: of the draw.
        """
        num_requests, num_candidates = proposal.video.shape
        slots = min(page_size, num_candidates)
        weights = np.broadcast_to(proposal.weights, proposal.video.shape)
        is_uniform = uniform(seed, 1, key) < proposal.uniform_share
        arrival = -np.log(uniform(seed, 2, key[:, None], proposal.video))
        arrival /= np.where(is_uniform[:, None], 1.0, weights)
        rank = np.argsort(arrival, axis=1, kind="stable")[:, :slots]
        if proposal.weights.ndim == 1:
            marginal = self._marginals(proposal.weights, slots)[rank, np.arange(slots)]
        else:
            marginal = np.empty(rank.shape)
            for begin in range(0, num_requests, 256):
                part = slice(begin, begin + 256)
                marginals = plackett_luce_marginals(weights[part], slots, nodes=128)
                marginal[part] = np.take_along_axis(marginals, rank[part, None, :], axis=1)[:, 0]
        propensity = (1 - proposal.uniform_share) * marginal + proposal.uniform_share / num_candidates
        return Draw(np.take_along_axis(proposal.video, rank, axis=1), np.clip(propensity, 0.0, 1.0))

    def _marginals(self, weights: np.ndarray, slots: int) -> np.ndarray:
        name = (weights.tobytes(), slots)
        if name not in self._known:
            self._known[name] = plackett_luce_marginals(weights[None], slots)[0]
        return self._known[name]


def first_distinct(nominated: np.ndarray, unwanted: np.ndarray, count: int) -> np.ndarray:
    """The first `count` distinct entries of each row, wanted ones first.

    Args:
        nominated: int32 [num_rows, num_nominations]; each row has at least `count` distinct entries.
        unwanted: bool, same shape; taken only where there is too little else. Equal entries are equally wanted.
        count: how many.

    Returns:
        int32 [num_rows, count].
    """
    width = nominated.shape[1]
    order = np.argsort(nominated, axis=1, kind="stable")
    in_order = np.take_along_axis(nominated, order, axis=1)
    repeats = np.zeros(nominated.shape, dtype=bool)
    np.put_along_axis(repeats, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
    priority = np.arange(width) + width * unwanted + 2 * width * repeats
    chosen = np.argsort(priority, axis=1, kind="stable")[:, :count]
    if np.take_along_axis(repeats, chosen, axis=1).any():
        raise ValueError(f"a request has fewer than {count} distinct candidates")
    return np.take_along_axis(nominated, chosen, axis=1)


class UniformPolicy:
    """Shows what it finds: uniform draws from all videos that are there. For tests and as a lower bound."""

    def __init__(self, catalogue: Catalogue, candidates: int = 24) -> None:
        self._by_upload = np.argsort(catalogue.uploaded_us, kind="stable").astype(np.int32)
        self._uploaded_us = catalogue.uploaded_us[self._by_upload]
        self._candidates = candidates

    def begin_day(self, day_begins_us: int) -> None:
        pass

    def propose(self, requests: Requests) -> Proposal:
        found = spread(requests, self._uploaded_us, 0, self._candidates)
        return Proposal(self._by_upload[found], np.ones(self._candidates), 1.0)

    def observe(self, feedback: Feedback) -> None:
        pass


def spread(requests: Requests, uploaded_us: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Places in the order of upload of `count` distinct videos, all there at the request, as its key has it.

    Args:
        requests: num_requests of them.
        uploaded_us: int64, ascending.
        stream: other streams give other places.
        count: at most the number of videos that are there.

    Returns:
        int64 [num_requests, count]
    """
    there = np.searchsorted(uploaded_us, requests.at_us)[:, None]
    if there.min(initial=count) < count:
        raise ValueError(f"fewer than {count} videos are there")
    # One place in each of `count` equal parts of the catalogue: distinct without looking.
    parts = np.arange(count)
    begin, end = there * parts // count, there * (parts + 1) // count
    luck = uniform(0, 100 + stream, requests.key[:, None], parts)
    return begin + (luck * (end - begin)).astype(np.int64)


class LoggingPolicy:
    """The policy that made the logs: six candidate sources, a score of counts, weights by rank.

    Sources: `popular` (decayed watch rate), `co_watched` (what followed the user's last watches), `topics`
    (popular in the user's topics), `channels` (newest of the user's channels), `fresh` (newest in the user's
    topics), `explore` (spread over all videos by the key of the request). Videos that the user completed are left
    out. The candidate with the r-th best score, r from 0, has weight (1 + r) ** -steepness: Plackett-Luce whose
    weights are ranks, so that the marginals of every request are one table.

    Everything is a function of the request and of what was observed.
    """

    NAMES = ("popular", "co_watched", "topics", "channels", "fresh", "explore")
    FOLLOWERS = 6
    MEMORY = 4

    def __init__(
        self,
        catalogue: Catalogue,
        num_users: int,
        num_topics: int,
        *,
        candidates: int = 24,
        uniform_share: float = 0.1,
        steepness: float = 0.9,
    ) -> None:
        """A policy that has seen nothing.

        Args:
            catalogue: the videos.
            num_users: how many users there are.
            num_topics: how many topics there are.
            candidates: per request; at most as many as there are videos at the first request.
            uniform_share: of slates drawn uniformly from the candidates.
            steepness: of the weights over ranks; 0 makes all equal.
        """
        self._catalogue = catalogue
        self._candidates = candidates
        self._uniform_share = uniform_share
        self._weights = (1.0 + np.arange(candidates)) ** -steepness
        num_videos = len(catalogue.video_id)
        num_channels = int(catalogue.channel.max()) + 1
        self._by_upload = np.argsort(catalogue.uploaded_us, kind="stable").astype(np.int32)
        self._uploaded_us = catalogue.uploaded_us[self._by_upload]
        self._newest_by_topic = _Newest(catalogue.topic, catalogue.uploaded_us, num_topics)
        self._newest_by_channel = _Newest(catalogue.channel, catalogue.uploaded_us, num_channels)
        self._impressions = np.zeros(num_videos)
        self._good = np.zeros(num_videos)
        self._topic_likes = np.zeros((num_users, num_topics), dtype=np.float32)
        self._last = np.full((num_users, self.MEMORY), -1, dtype=np.int32)
        self._completed = np.zeros((num_users, (num_videos + 7) // 8), dtype=np.uint8)
        self._pairs: np.ndarray = np.zeros(0, dtype=np.int64)
        self._pair_counts: np.ndarray = np.zeros(0)
        self._new_pairs: list[np.ndarray] = []
        self._followers: np.ndarray = np.full((num_videos, self.FOLLOWERS), -1, dtype=np.int32)
        self._follower_scores = np.zeros((num_videos, self.FOLLOWERS), dtype=np.float32)
        self._rate = np.full(num_videos, 0.1)
        self._top = self._by_upload[: min(60, num_videos)].copy()
        self._top_of_topic: np.ndarray = np.zeros((num_topics, 12), dtype=np.int32)

    def copy(self) -> "LoggingPolicy":
        """One that goes on from here on its own."""
        return copy.deepcopy(self)

    def begin_day(self, day_begins_us: int) -> None:
        """Digest the days before: they count 0.8 per day of age."""
        self._good *= 0.8
        self._impressions *= 0.8
        prior = self._good.sum() / max(self._impressions.sum(), 1.0) if self._impressions.any() else 0.1
        self._rate = (self._good + 10 * prior) / (self._impressions + 10)
        # A video counts for what it earned, not for its rate alone: a rate of 3 in 3 is luck.
        standing = self._good + 0.01 * self._rate
        standing[self._catalogue.uploaded_us >= day_begins_us] = -1.0
        by_standing = np.argsort(-standing, kind="stable").astype(np.int32)
        self._top = by_standing[: len(self._top)]
        topics = self._catalogue.topic[by_standing]
        order = np.argsort(topics, kind="stable")
        by_topic, starts = (
            by_standing[order],
            np.searchsorted(topics[order], np.arange(len(self._top_of_topic))),
        )
        ends = np.searchsorted(topics[order], np.arange(len(self._top_of_topic)), side="right")
        columns = np.arange(self._top_of_topic.shape[1])
        places = np.minimum(starts[:, None] + columns, np.maximum(ends - 1, starts)[:, None])
        found = by_topic[np.minimum(places, len(by_topic) - 1)]
        there = (ends > starts)[:, None] & (standing[found] >= 0)
        self._top_of_topic = np.where(there, found, self._top[columns % len(self._top)])
        self._digest_pairs()

    def _digest_pairs(self) -> None:
        if not self._new_pairs:
            return
        num_videos = len(self._catalogue.video_id)
        keys = np.concatenate([self._pairs, *self._new_pairs])
        counts = np.concatenate([0.8 * self._pair_counts, np.ones(len(keys) - len(self._pairs))])
        self._pairs, place = np.unique(keys, return_inverse=True)
        self._pair_counts = np.bincount(place, weights=counts, minlength=len(self._pairs))
        self._new_pairs = []
        kept = self._pair_counts > 0.2
        self._pairs, self._pair_counts = self._pairs[kept], self._pair_counts[kept]
        before, after = np.divmod(self._pairs, num_videos)
        # Counts over the follower's own square-rooted frequency, or everything would be followed by the popular.
        total = np.bincount(after, weights=self._pair_counts, minlength=num_videos)
        score = self._pair_counts / np.sqrt(total[after] + 1.0)
        order = np.lexsort((after, -score, before))
        before, after, score = before[order], after[order], score[order]
        place = np.arange(len(before)) - np.searchsorted(before, before)
        kept = place < self.FOLLOWERS
        self._followers.fill(-1)
        self._follower_scores.fill(0.0)
        self._followers[before[kept], place[kept]] = after[kept]
        self._follower_scores[before[kept], place[kept]] = score[kept]

    def propose(self, requests: Requests) -> Proposal:
        user, at_us, key = requests.user, requests.at_us, requests.key
        count = len(user)
        likes = self._topic_likes[user]
        # Ties and near-ties between topics are broken by the key of the request, so that pages vary.
        topics = np.argsort(
            -(likes + 0.8) * (0.5 + uniform(0, 3, key[:, None], np.arange(likes.shape[1]))), axis=1
        )[:, :4]
        blocks: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        none = np.full((count, 1), -1, dtype=np.int32)

        last = self._last[user]
        followers = np.where(last[:, :, None] >= 0, self._followers[last, : self.FOLLOWERS], -1)
        scores = self._follower_scores[last, : self.FOLLOWERS]
        # The nearest watch's followers come first, then the best of the ones before it.
        takes = (6, 4, 2, 2)
        for back, take in enumerate(takes[: self.MEMORY]):
            blocks.append(
                (
                    1,
                    followers[:, back, :take],
                    scores[:, back, :take],
                    np.repeat(last[:, back, None], take, axis=1),
                )
            )

        liked_channel = np.where(last >= 0, self._catalogue.channel[last], -1)
        newest = self._newest_by_channel.find(liked_channel, at_us, 2)
        blocks.append(
            (3, newest, np.ones(newest.shape, np.float32), np.repeat(none, newest.shape[1], axis=1))
        )

        luck = uniform(0, 4, key[:, None], np.arange(8))
        places = (luck**1.5 * self._top_of_topic.shape[1]).astype(np.int64)
        popular_in_topic = self._top_of_topic[np.repeat(topics, 2, axis=1), places]
        blocks.append((2, popular_in_topic, self._rate[popular_in_topic], np.repeat(none, 8, axis=1)))

        places = (uniform(0, 5, key[:, None], np.arange(4)) ** 1.5 * len(self._top)).astype(np.int64)
        popular = self._top[places]
        blocks.append((0, popular, self._rate[popular], np.repeat(none, 4, axis=1)))

        fresh = self._newest_by_topic.find(topics[:, :3], at_us, 1)
        blocks.append((4, fresh, np.ones(fresh.shape, np.float32), np.repeat(none, fresh.shape[1], axis=1)))

        explore = self._by_upload[spread(requests, self._uploaded_us, 6, self._candidates)]
        blocks.append(
            (5, explore, np.zeros(explore.shape, np.float32), np.repeat(none, explore.shape[1], axis=1))
        )

        video = np.concatenate([block[1] for block in blocks], axis=1).astype(np.int32)
        score = np.concatenate([block[2] for block in blocks], axis=1).astype(np.float32)
        seed = np.concatenate([block[3] for block in blocks], axis=1).astype(np.int32)
        source = np.concatenate([np.full(block[1].shape[1], block[0]) for block in blocks])
        # A source with nothing to say repeats the first video of `explore`: a duplicate falls out below.
        nothing = video < 0
        fallback = explore[:, :1]
        video = np.where(nothing, fallback, video)
        not_there = self._catalogue.uploaded_us[video] >= at_us[:, None]
        video = np.where(not_there, fallback, video)
        completed = (self._completed[user[:, None], video >> 3] >> (video & 7).astype(np.uint8)) & 1
        chosen = first_distinct(video, completed.astype(bool), self._candidates)
        video = np.where(nothing | not_there, -1, video)

        affinity = (np.take_along_axis(likes, self._catalogue.topic[chosen], axis=1) + 0.3) / (
            likes.sum(axis=1, keepdims=True) + 0.3 * likes.shape[1]
        )
        follows = np.zeros(chosen.shape, dtype=np.float64)
        for column in np.flatnonzero(source == 1):
            follows += np.where(chosen == video[:, column, None], score[:, column, None], 0.0)
        subscribed = (self._catalogue.channel[chosen][:, :, None] == liked_channel[:, None, :]).any(axis=2)
        value = (
            self._rate[chosen]
            * (0.3 + np.sqrt(affinity * likes.shape[1]))
            * (1.0 + np.minimum(follows, 2.0) + 0.5 * subscribed)
        )
        best_first = np.argsort(-value, axis=1, kind="stable")
        return Proposal(
            np.take_along_axis(chosen, best_first, axis=1),
            self._weights,
            self._uniform_share,
            Nominations(video, source, score, seed, self.NAMES),
        )

    def observe(self, feedback: Feedback) -> None:
        num_videos = len(self._catalogue.video_id)
        np.add.at(self._impressions, feedback.shown_video, 1.0)
        # A click that held nobody is half a success.
        np.add.at(
            self._good,
            feedback.shown_video[feedback.clicked],
            0.5 + np.minimum(feedback.shown_watch_time_s[feedback.clicked] / 60.0, 1.0),
        )
        user, video = feedback.watch_user, feedback.watch_video
        np.add.at(
            self._topic_likes,
            (user, self._catalogue.topic[video]),
            np.where(feedback.completed, 1.0, 0.3).astype(np.float32),
        )
        done_user, done_video = user[feedback.completed], video[feedback.completed]
        np.bitwise_or.at(
            self._completed, (done_user, done_video >> 3), np.uint8(1) << (done_video & 7).astype(np.uint8)
        )
        # One watch of each user at a time, in order.
        while len(user):
            order = np.argsort(user, kind="stable")
            user, video = user[order], video[order]
            first = np.ones(len(user), dtype=bool)
            first[1:] = user[1:] != user[:-1]
            now, seen = user[first], video[first]
            before = self._last[now, 0]
            follows = (before >= 0) & (before != seen)
            self._new_pairs.append(before[follows].astype(np.int64) * num_videos + seen[follows])
            self._last[now, 1:] = self._last[now, :-1]
            self._last[now, 0] = seen
            user, video = user[~first], video[~first]


class _Newest:
    """The newest videos of a group (a topic, a channel) at an instant."""

    def __init__(self, group: np.ndarray, uploaded_us: np.ndarray, num_groups: int) -> None:
        self._order = np.lexsort((uploaded_us, group)).astype(np.int32)
        grouped = group[self._order]
        self._begin = np.searchsorted(grouped, np.arange(num_groups + 1))
        # Groups of disjoint ranges of one sorted array, so that one search serves all.
        self._origin = int(uploaded_us.min())
        self._span = int(uploaded_us.max()) - self._origin + 2
        self._key = grouped.astype(np.int64) * self._span + (uploaded_us[self._order] - self._origin)

    def find(self, group: np.ndarray, at_us: np.ndarray, count: int) -> np.ndarray:
        """int32 [num_requests, num_groups * count], newest first; -1 where there is none.

        Args:
            group: int [num_requests, num_groups], -1 for no group.
            at_us: int64 [num_requests].
            count: how many of each group.
        """
        known = np.maximum(group, 0)
        since = np.clip(at_us - self._origin, 0, self._span - 1)[:, None]
        end = np.searchsorted(self._key, known.astype(np.int64) * self._span + since)
        places = end[:, :, None] - 1 - np.arange(count)
        there = (group >= 0)[:, :, None] & (places >= self._begin[known][:, :, None])
        found = np.where(there, self._order[np.maximum(places, 0)], -1)
        return found.reshape(len(group), -1)
