"""The policy of a trained model: it knows what logs show, no sooner than they show it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from watchnext.cli import make_features
from watchnext.data.simulate import run
from watchnext.data.slates import Feedback, Proposal, Requests
from watchnext.errors import InputError
from watchnext.evaluation.intervals import bootstrap
from watchnext.features.batches import FeatureSpec
from watchnext.index.search import ExactSearcher
from watchnext.studies._lab import Ground, Lab, Settings, at_most
from watchnext.studies._online import Moment, RetrievalPolicy, UserStates, WorldEncoder, watch_time

SETTINGS = Settings(users=200, videos=240, topics=8, days=5, pages_per_user_day=2.0, seeds=1, online_days=2)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Lab(SETTINGS, tmp_path_factory.mktemp("lab"), make_features).world(1.0, {"taste": 1.0}, 0)


@pytest.fixture
def moment(ground: Ground) -> Moment:
    assert ground.moment is not None
    return Moment(ground.moment.world, ground.moment.state, ground.moment.users.copy())


def bag_of(size: int) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """A query tower that counts what is in the history: [num_queries, size]."""

    def embed(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        counts = np.zeros((len(arrays["history"]), size), dtype=np.float32)
        row, column = np.nonzero(arrays["history"])
        np.add.at(counts, (row, arrays["history"][row, column] - 1), 1.0)
        return counts

    return embed


def policy_of(ground: Ground, moment: Moment, embeddings: np.ndarray | None = None) -> RetrievalPolicy:
    """Nearest by history under `embeddings` [V, V]; random ones by default."""
    size = ground.encoder.sizes["video"]
    if embeddings is None:
        embeddings = np.random.default_rng(5).normal(size=(size, size))
    encode = WorldEncoder(moment.world, ground.encoder, ground.inputs(["history", "search_tokens", "region"]))
    searcher = ExactSearcher(embeddings.astype(np.float32))
    return RetrievalPolicy(moment.world, moment.users, encode, bag_of(size), searcher)


def requests_at(moment: Moment, users: list[int]) -> Requests:
    at_us = moment.world.start_us + moment.state.day * 86_400_000_000
    user = np.array(users, dtype=np.int32)
    return Requests(user, np.full(len(user), at_us), user.astype(np.uint64))


def test_users_are_known_as_the_logs_know_them(ground: Ground) -> None:
    """Bags of the recorder against the logs of the same days."""
    assert ground.moment is not None
    world, users = ground.moment.world, ground.moment.users
    logs = ground.features.parent / "logs"
    end = pd.Timestamp(world.start_us, unit="us", tz="UTC") + pd.Timedelta(days=ground.moment.state.day)
    watches = pd.read_parquet(logs / "watches.parquet")
    watches = watches[watches.watched_at < end]
    searches = pd.read_parquet(logs / "searches.parquet")
    searches = searches[searches.searched_at < end]
    completed = watches[watches.completed].groupby("user_id").video_id.apply(list)
    compared = 0
    for user, user_id in enumerate(world.users.user_id):
        bag = users.history[user]
        seen = world.videos.video_id[bag[bag > 0] - 1].tolist()
        if len(seen) < 50:
            assert sorted(seen) == sorted(completed.get(user_id, []))
        assert len(seen) == min(50, len(completed.get(user_id, [])))
        compared += len(seen)
        own = watches[watches.user_id == user_id].video_id
        assert set(world.videos.video_id[users.watched[user]]) == set(own)
    assert compared > 500
    typed = {word for query in searches["query"] for word in query.split(" ")}
    assert {word for word in users.words if " " not in word} == typed
    newest = searches.sort_values("searched_at").groupby("user_id")["query"].last()
    numbered = {number: word for word, number in users.words.items()}
    for user, user_id in enumerate(world.users.user_id):
        if user_id in newest:
            assert numbered[users.tokens[user, -1]] == newest[user_id].split(" ")[-1]
        else:
            assert not users.tokens[user].any()


def test_inputs_of_a_request_are_those_of_an_example(ground: Ground) -> None:
    """The first example of the tuning day of a user who did nothing since midnight, against the bags at midnight."""
    assert ground.moment is not None
    world, users = ground.moment.world, ground.moment.users
    features = ground.inputs(["history", "shown_unwatched", "region", "gender", "age", "example_age_s"])
    encode = WorldEncoder(world, ground.encoder, features)
    examples = ground.held_out("tuning")
    arrays = ground.encoder.encode_retrieval(examples)
    place = {user_id: number for number, user_id in enumerate(world.users.user_id.tolist())}
    first: dict[int, int] = {}
    for row, user_id in enumerate(examples["user_id"].to_pylist()):
        first.setdefault(user_id, row)
    rows = np.array(list(first.values()))
    own = encode.encode(users, np.array([place[user_id] for user_id in first]))
    for name in ("region", "gender", "age", "example_age_s"):
        assert np.array_equal(own[name], arrays[name][rows], equal_nan=True), name
    assert len(rows) > 20
    # A completed watch of that day is an example, the first of which this is: what can differ is a watch over midnight.
    # Pages without a completed watch may lie before it, and were shown after midnight.
    for name, least in (("history", 0.95), ("shown_unwatched", 0.3)):
        same = [
            sorted(one[one > 0]) == sorted(two[two > 0])
            for one, two in zip(own[name], arrays[name][rows], strict=True)
        ]
        assert least < np.mean(same) <= 1.0, name


def test_nothing_of_a_round_is_known_before_it_is_over(ground: Ground, moment: Moment) -> None:
    """Every proposal is what the state after the rounds before it says, recomputed from a copy of that state."""
    policy = policy_of(ground, moment)

    class Spied:
        def __init__(self) -> None:
            self.before = moment.users.copy()
            self.seen: list[tuple[Requests, np.ndarray, UserStates]] = []

        def begin_day(self, day_begins_us: int) -> None:
            policy.begin_day(day_begins_us)

        def propose(self, requests: Requests) -> Proposal:
            proposal = policy.propose(requests)
            self.seen.append((requests, proposal.video, self.before.copy()))
            return proposal

        def observe(self, feedback: Feedback) -> None:
            policy.observe(feedback)
            self.before.observe(feedback)

    spied = Spied()
    run(moment.world, spied, 1, moment.state, common_random_numbers=3)
    assert len(spied.seen) > 3
    for requests, video, users in spied.seen:
        again = policy_of(ground, Moment(moment.world, moment.state, users)).propose(requests)
        assert np.array_equal(again.video, video)


def test_equal_requests_get_equal_candidates_and_what_was_watched_is_left_out(
    ground: Ground, moment: Moment
) -> None:
    users = moment.users
    one, two = 3, 4
    for bags in (users.history, users.shown, users.tokens, users.watched):
        bags[two] = bags[one]
    policy = policy_of(ground, moment)
    proposal = policy.propose(requests_at(moment, [one, two]))
    assert np.array_equal(proposal.video[0], proposal.video[1])
    assert len(set(proposal.video[0].tolist())) == proposal.video.shape[1] == 24
    assert not users.watched[one, proposal.video[0]].any()

    best = int(proposal.video[0, 0])
    nothing = np.zeros(0, dtype=np.int32)
    none = np.zeros(0, dtype=bool)
    watched = np.array([one], dtype=np.int32), np.array([best], dtype=np.int32), np.array([True])
    policy.observe(Feedback(nothing, nothing, none, np.zeros(0), *watched))
    after = policy.propose(requests_at(moment, [one, two]))
    assert best not in after.video[0]
    assert np.array_equal(after.video[1], proposal.video[1])


def test_where_all_that_is_found_was_watched_the_most_frequent_follow(ground: Ground, moment: Moment) -> None:
    policy = policy_of(ground, moment)
    moment.users.watched[3] = True
    unwatched = policy._video_of_row[:30]
    moment.users.watched[3, unwatched] = False
    proposal = policy.propose(requests_at(moment, [3]))
    assert set(proposal.video[0].tolist()) <= set(unwatched.tolist())


def test_a_policy_that_knows_what_people_like_gains_watch_time(ground: Ground, moment: Moment) -> None:
    """Videos that people commit to against the same list upside down, under the same luck."""
    videos = moment.world.videos
    rows = WorldEncoder(moment.world, ground.encoder, ground.inputs(["history"])).index_of_video[1:]
    size = ground.encoder.sizes["video"]
    worth = np.zeros(size)
    worth[rows[rows > 0] - 1] = (videos.quality * np.minimum(videos.duration_s, 300.0))[rows > 0]
    outcomes = []
    for sign in (1.0, -1.0):
        own = Moment(moment.world, moment.state, moment.users.copy())
        embeddings = np.repeat(sign * worth[:, None], size, axis=1)
        outcomes.append(watch_time(own, policy_of(ground, own, embeddings), 2, noise=7))
    for metric in ("online_watch_time_s", "online_page_watch_time_s"):
        gain = bootstrap([outcomes[0][metric].minus(outcomes[1][metric])], same_users=False)
        assert 10.0 < gain.low < gain.value < 400.0
    total, pages = (outcomes[0][metric].mean for metric in outcomes[0])
    assert pages < total < 5 * pages


def test_an_input_that_no_page_request_shows_is_refused(ground: Ground) -> None:
    assert ground.moment is not None
    with pytest.raises(InputError, match="shows a policy nothing"):
        WorldEncoder(ground.moment.world, ground.encoder, [FeatureSpec("weather", "categorical", "region")])


def test_at_most_so_many_examples_of_a_user() -> None:
    users = np.array([5, 1, 5, 5, 1, 2])
    rows = at_most(users, 2, seed=1)
    assert rows.tolist() == sorted(rows.tolist())
    assert np.bincount(users[rows]).tolist() == [0, 2, 1, 0, 0, 2]
    kept = {tuple(at_most(users, 2, seed)[:1]) for seed in range(20)}
    assert len(kept) > 1, "always the same ones"


def test_logs_without_kuairand_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs real logs"):
        Lab(SETTINGS, tmp_path, make_features).kuairand()
