"""What is chosen follows from recall and from times that the tests make up; no clock decides a test."""

import numpy as np
import pytest

from watchnext.evaluation.index_tuning import Measurement, choose, median_latency_ms, tune_index

RNG = np.random.default_rng(11)
EMBEDDINGS = RNG.normal(size=(2000, 8)).astype(np.float32)
QUERIES = RNG.normal(size=(40, 8)).astype(np.float32)
EXACT = Measurement(None, None, 1.0, 10.0)


def cost(searcher, queries, k):
    """As if a query took as long as it looks at leaves and scores again; exact search takes 10 ms."""
    assert k == 50
    if searcher.is_exact():
        return 10.0
    return 0.01 * searcher.leaves_to_search + 0.0001 * searcher.reorder


def tune(**overrides):
    settings = {
        "brute_force_below": 100,
        "num_neighbors": 50,
        "recall_floor": 0.95,
        "num_leaves": 40,
        "leaf_shares": [0.025, 0.25, 0.5, 1.0],
        "reorder_factors": [1.0, 4.0, 40.0],
        "clock": cost,
    } | overrides
    return tune_index(EMBEDDINGS, QUERIES, **settings)


def test_the_cheapest_setting_that_finds_enough_is_taken():
    """Against every measured setting, and a lower floor never costs more."""
    costs = []
    for floor in (0.5, 0.8, 0.95):
        tuning = tune(recall_floor=floor)
        chosen = tuning.measured[tuning.chosen]
        assert tuning.reached
        assert floor <= chosen.recall <= 1.0
        assert not chosen.is_exact
        assert (tuning.searcher.leaves_to_search, tuning.searcher.reorder) == (
            chosen.leaves_to_search,
            chosen.reorder,
        )
        cheaper = [each for each in tuning.measured if each.latency_ms < chosen.latency_ms / 1.05]
        assert all(each.recall < floor for each in cheaper)
        assert cheaper or floor == 0.5
        costs.append(chosen.latency_ms)
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_exact_search_is_measured_too_and_taken_where_it_is_faster():
    tuning = tune(clock=lambda searcher, queries, k: 1.0 if searcher.is_exact() else 2.0)
    assert tuning.measured[tuning.chosen].is_exact
    assert tuning.searcher.is_exact()
    assert tuning.reached
    tree = tune(clock=lambda searcher, queries, k: 1.0 if searcher.is_exact() else 2.0, search="tree")
    assert not tree.searcher.is_exact()


@pytest.mark.parametrize("search", ["auto", "tree"])
def test_where_no_tree_finds_enough_search_is_exact(search):
    """However fast the trees are. Fails where the best of them is taken."""
    tuning = tune(recall_floor=1.0, leaf_shares=[0.025, 0.05], search=search)
    assert not tuning.reached
    assert tuning.searcher.is_exact()
    assert all(each.recall < 1.0 for each in tuning.measured if not each.is_exact)


@pytest.mark.parametrize(
    ("overrides", "corpus"),
    [({"search": "exact"}, 2000), ({"brute_force_below": 2001}, 2000), ({"brute_force_below": 0}, 10)],
    ids=["by setting", "a small corpus", "too few for a tree"],
)
def test_nothing_is_measured_where_there_is_nothing_to_choose(overrides, corpus):
    def never(searcher, queries, k):
        raise AssertionError("measured")

    settings = {
        "num_neighbors": 50,
        "recall_floor": 0.95,
        "leaf_shares": [0.5],
        "reorder_factors": [4.0],
        "brute_force_below": 100,
        "clock": never,
    } | overrides
    tuning = tune_index(EMBEDDINGS[:corpus], QUERIES, **settings)
    assert tuning.searcher.is_exact()
    assert tuning.measured == ()
    assert tuning.reached


def test_of_settings_as_fast_within_noise_the_one_that_finds_most_is_taken():
    """Two-sided: 4 % slower counts as equal, 6 % slower does not."""
    fast, close, slow = (
        Measurement(5, 100, 0.97, 1.00),
        Measurement(6, 100, 0.99, 1.04),
        Measurement(9, 100, 0.999, 1.06),
    )
    assert choose([EXACT, fast, close, slow], 0.95) == 2
    assert choose([EXACT, fast, slow], 0.95) == 1


def test_exact_search_finds_enough_even_where_ties_make_its_recall_less_than_one():
    assert choose([Measurement(None, None, 0.999, 1.0), Measurement(3, 10, 1.0, 2.0)], 1.0) == 0


def test_a_slow_round_does_not_decide():
    """A busy machine in one round of three: the median is over rounds. Fails with a mean or a single round."""
    calls = []

    def clock(searcher, queries, k):
        calls.append(searcher)
        settings_per_round = 1 + 4 * 3
        busy = len(calls) <= settings_per_round and not searcher.is_exact()
        return 1000.0 if busy else cost(searcher, queries, k)

    assert not tune(clock=clock).searcher.is_exact()


def test_the_clock_takes_one_query_at_a_time():
    shapes = []

    class Counting:
        def is_exact(self):
            return True

        def search(self, queries, k):
            shapes.append(queries.shape)
            return np.zeros((1, k), np.int32), np.zeros((1, k), np.float32)

    assert 0.0 <= median_latency_ms(Counting(), QUERIES, 5) < 1000.0
    assert set(shapes) == {(1, 8)}
    assert 1 <= len(shapes) <= 40
