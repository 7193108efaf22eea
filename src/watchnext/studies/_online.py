"""The experiment that logs cannot replace: a trained retrieval model fills the pages of the simulated world.

Two models are compared under common random numbers, user by user, in the time that people then spend watching. The
policy knows what logs show and nothing of the world's truth.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from watchnext.data.simulate import State, run
from watchnext.data.slates import Feedback, Policy, Proposal, Requests, first_distinct
from watchnext.data.world import DAY_US, World
from watchnext.errors import InputError
from watchnext.evaluation.intervals import PerUser
from watchnext.features.batches import Encoder, FeatureSpec
from watchnext.features.history import tokenize
from watchnext.features.retrieval_examples import OLDEST_AGE_YEARS
from watchnext.index.search import Searcher

BAG = 50

HISTORY, SHOWN, TOKENS = "history", "shown_unwatched", "search_tokens"
EXAMPLE_AGE = "example_age_s"

Embed = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Encoded requests -> query embeddings float32 [num_queries, embedding_dim]."""


class UserStates:
    """What every user of a world did so far, as logs show it: the state that a recommender keeps, for all at once.

    Bags hold places in the world's catalogue, from 1, and their newest value stands last; 0 is nothing.

    Attributes:
        history: int32 [num_users, BAG], completed watches.
        shown: int32 [num_users, BAG], impressions that were not clicked.
        tokens: int32 [num_users, BAG], search tokens, numbers from 1 into `words`.
        watched: bool [num_users, num_videos], whether a watch was begun.
        words: the tokens that were typed.
    """

    def __init__(self, num_users: int, num_videos: int) -> None:
        self.history = np.zeros((num_users, BAG), dtype=np.int32)
        self.shown = np.zeros((num_users, BAG), dtype=np.int32)
        self.tokens = np.zeros((num_users, BAG), dtype=np.int32)
        self.watched = np.zeros((num_users, num_videos), dtype=bool)
        self.words: dict[str, int] = {}

    def copy(self) -> "UserStates":
        """One that goes on from here on its own."""
        return copy.deepcopy(self)

    def observe(self, feedback: Feedback) -> None:
        """Take in one round of events."""
        for user, query in zip(feedback.search_user, feedback.search_query, strict=True):
            numbers = [self.words.setdefault(token, len(self.words) + 1) for token in tokenize(query)]
            if numbers:
                self.tokens[user] = np.concatenate([self.tokens[user], numbers])[-BAG:]
        self.watched[feedback.watch_user, feedback.watch_video] = True
        done = feedback.completed
        _append(self.history, feedback.watch_user[done], feedback.watch_video[done] + 1)
        missed = ~feedback.clicked
        _append(self.shown, feedback.shown_user[missed], feedback.shown_video[missed] + 1)


def _append(bags: np.ndarray, user: np.ndarray, value: np.ndarray) -> None:
    """Push values into the bags of their users, in order."""
    while len(user):
        now, first = np.unique(user, return_index=True)
        bags[now, :-1] = bags[now, 1:]
        bags[now, -1] = value[first]
        later = np.ones(len(user), dtype=bool)
        later[first] = False
        user, value = user[later], value[later]


class Recorded:
    """A policy whose users' states are recorded while it runs."""

    def __init__(self, policy: Policy, users: UserStates) -> None:
        self._policy = policy
        self._users = users

    def begin_day(self, day_begins_us: int) -> None:
        self._policy.begin_day(day_begins_us)

    def propose(self, requests: Requests) -> Proposal:
        return self._policy.propose(requests)

    def observe(self, feedback: Feedback) -> None:
        self._policy.observe(feedback)
        self._users.observe(feedback)


class WorldEncoder:
    """Brings the states of a world's users into the form that a query tower takes.

    Args:
        world: where the users live.
        encoder: vocabularies of the training.
        features: inputs of the query tower.

    Raises:
        InputError: an input is nothing that a page request of the world shows.
    """

    def __init__(self, world: World, encoder: Encoder, features: Sequence[FeatureSpec]) -> None:
        self._features = tuple(features)
        self.index_of_video = np.concatenate(
            [[0], encoder.vocabularies["video"].lookup(pa.array(world.videos.video_id))]
        ).astype(np.int32)
        self._encoder = encoder
        self._index_of_word = np.zeros(1, dtype=np.int32)
        moving = {HISTORY, SHOWN, TOKENS, EXAMPLE_AGE}
        self._fixed = _user_columns(world, encoder)
        unknown = [spec.name for spec in features if spec.name not in moving | set(self._fixed)]
        if unknown:
            raise InputError(
                "the simulated world shows a policy nothing that these inputs could be made of",
                offenders=unknown,
                remedy="train the model of this study without them",
            )

    def encode(self, users: UserStates, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of the users `rows`, as of now; the example age is 0, as it is when serving."""
        return {spec.name: self._column(spec, users, rows) for spec in self._features}

    def _column(self, spec: FeatureSpec, users: UserStates, rows: np.ndarray) -> np.ndarray:
        if spec.name == HISTORY:
            return self.index_of_video[users.history[rows]]
        if spec.name == SHOWN:
            return self.index_of_video[users.shown[rows]]
        if spec.name == TOKENS:
            return self._words(users)[users.tokens[rows]]
        if spec.name == EXAMPLE_AGE:
            return np.zeros(len(rows), dtype=np.float32)
        return self._fixed[spec.name][rows]

    def _words(self, users: UserStates) -> np.ndarray:
        """Number of a typed token -> index in the vocabulary; grows with what is typed."""
        known = len(self._index_of_word) - 1
        if known < len(users.words):
            new = list(users.words)[known:]
            found = self._encoder.vocabularies["search_token"].lookup(pa.array(new, pa.string()))
            self._index_of_word = np.concatenate([self._index_of_word, found])
        return self._index_of_word


def _user_columns(world: World, encoder: Encoder) -> dict[str, np.ndarray]:
    """Inputs that are made of columns of the users, encoded, in the world's order of users."""
    people = world.user_table(np.arange(len(world.users.user_id)))
    place = pa.array(np.argsort(np.argsort(world.users.user_id)))
    known = {name: people[name].combine_chunks().take(place) for name in ("region", "gender")}
    known["age"] = pa.array(np.minimum(world.users.age_years / OLDEST_AGE_YEARS, 1.0))
    columns: dict[str, pa.Array] = {}
    for spec in encoder.retrieval_features:
        if spec.name in known:
            columns[spec.name] = known[spec.name]
        elif spec.kind == "multivalent":
            columns[spec.name] = pa.array([None], pa.list_(encoder.vocabularies[str(spec.space)].tokens.type))
        else:
            columns[spec.name] = pa.nulls(1, pa.float64() if spec.space is None else pa.string())
    arrays = encoder.encode_retrieval(columns)
    return {name: arrays[name] for name in known if name in arrays}


class RetrievalPolicy:
    """Fills pages with what a trained retrieval model finds, from what each user did before the request.

    Candidates are the best by dot product, without what the user has watched and what is not uploaded yet; the page is
    a Plackett-Luce draw from them, whose weight falls with the rank as in the policy of the logs. A round that the
    world computes at once holds one event of each user, and nothing of a round is known before it is over.

    Args:
        world: where it fills pages; only its catalogue and its users' own columns are looked at.
        users: what they did so far; changed by what is observed.
        encode: makes inputs of it.
        embed: the query tower.
        searcher: finds candidates; row r is vocabulary index r + 1.
        depth: how many it is asked for: what is watched already is taken out of these.
        candidates: how many a page is drawn from.
        steepness: of the weights over ranks.
    """

    def __init__(
        self,
        world: World,
        users: UserStates,
        encode: WorldEncoder,
        embed: Embed,
        searcher: Searcher,
        *,
        depth: int = 200,
        candidates: int = 24,
        steepness: float = 0.9,
    ) -> None:
        self._users = users
        self._encode = encode
        self._embed = embed
        self._searcher = searcher
        self._depth = depth
        self._candidates = candidates
        self._weights = (1.0 + np.arange(candidates)) ** -steepness
        self._uploaded_us = world.catalogue.uploaded_us
        in_vocabulary = np.flatnonzero(encode.index_of_video[1:])
        self._video_of_row = np.empty(len(in_vocabulary), dtype=np.int32)
        self._video_of_row[encode.index_of_video[1:][in_vocabulary] - 1] = in_vocabulary
        if len(self._video_of_row) < candidates:
            raise InputError(
                f"a vocabulary of {len(self._video_of_row)} videos cannot fill {candidates} candidates",
                remedy="a larger world, or more days",
            )

    def begin_day(self, day_begins_us: int) -> None:
        pass

    def propose(self, requests: Requests) -> Proposal:
        queries = self._embed(self._encode.encode(self._users, requests.user))
        rows, _ = self._searcher.search(queries, self._depth)
        # Where an index finds too little, and where everything found is watched, the most frequent videos follow.
        fallback = np.broadcast_to(
            np.arange(min(len(self._video_of_row), self._depth + self._candidates), dtype=rows.dtype),
            (len(rows), min(len(self._video_of_row), self._depth + self._candidates)),
        )
        found = self._video_of_row[np.concatenate([np.where(rows < 0, 0, rows), fallback], axis=1)]
        unwanted = self._users.watched[requests.user[:, None], found]
        unwanted |= self._uploaded_us[found] >= requests.at_us[:, None]
        chosen = first_distinct(found, unwanted, self._candidates)
        return Proposal(chosen, self._weights, 0.0)

    def observe(self, feedback: Feedback) -> None:
        self._users.observe(feedback)


@dataclass(frozen=True)
class Moment:
    """A world at the end of the training days: where experiments begin.

    Attributes:
        world: the world.
        state: where it stands.
        users: what its users did so far.
    """

    world: World
    state: State
    users: UserStates


def watch_time(
    moment: Moment, policy: Policy, days: int, noise: int, videos: Mapping[str, np.ndarray] | None = None
) -> dict[str, PerUser]:
    """Let `policy` fill the pages of some days.

    Args:
        moment: from when on.
        policy: fills the pages, and is changed by what it learns.
        days: how many.
        noise: seed of the luck; policies with the same luck are compared pairwise.
        videos: name -> bool [num_videos], some of the world's videos whose watch time is wanted beside that of all.

    Returns:
        `online_watch_time_s`: seconds per user and day, whatever led to the watch; `online_page_watch_time_s`: of
        watches that the pages led to; `online_watch_time_s_of_NAME`: the first, of the videos of that name. Over users
        who had signed up by then, in the world's order.
    """
    world = moment.world
    outcome = run(world, policy, days, moment.state, common_random_numbers=noise)
    there = world.users.signed_up_us < world.start_us + moment.state.day * DAY_US
    counts = np.full(int(there.sum()), float(days))
    by_id = np.argsort(world.videos.video_id)

    def summed(table: pa.Table, of: np.ndarray | None = None) -> PerUser:
        if of is not None:
            video = np.searchsorted(world.videos.video_id[by_id], table["video_id"].to_numpy())
            table = table.filter(pa.array(of[by_id][video]))
        order = np.argsort(world.users.user_id)
        place = order[np.searchsorted(world.users.user_id[order], table["user_id"].to_numpy())]
        seconds = pc.fill_null(table["watch_time_s"], 0.0).to_numpy()
        return PerUser(np.bincount(place, weights=seconds, minlength=len(order))[there], counts)

    return {
        "online_watch_time_s": summed(outcome.tables["watches"]),
        "online_page_watch_time_s": summed(outcome.tables["impressions"]),
        **{
            f"online_watch_time_s_of_{name}": summed(outcome.tables["watches"], of)
            for name, of in (videos or {}).items()
        },
    }
