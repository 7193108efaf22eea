"""How a peer is tuned and fitted again, with a peer whose quality is known."""

import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
from benchmarks import CannotMeasure
from benchmarks.quality import measure, tuning
from benchmarks.quality.folds import Fold
from test_measure import fold_of, lists

EVENTS = 200
FOLD = fold_of(
    [0] * EVENTS,
    list(range(EVENTS)),
    num_items=150,
    watched=lists(*[[]] * EVENTS),
    shown=lists(*[[]] * EVENTS),
)


def scorer_with_hits(hits: int) -> measure.Scorer:
    """The label is first for the first `hits` events and last for the others."""

    def score(begin: int, end: int) -> np.ndarray:
        scores = np.ones((end - begin, FOLD.num_items))
        scores[:, 0] = np.where(np.arange(begin, end) < hits, 2.0, 0.0)
        return scores

    return score


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Configuration -> hits after each pass; and how many passes were asked for, under `asked`."""
    curves = {"rises": [10, 30, 20, 40], "falls": [35, 30, 20, 100], "asked": []}

    def fit(fold: Fold, config: dict, seed: int) -> Iterator[measure.Scorer]:
        del fold, seed
        for passes, hits in enumerate(curves[config["curve"]], start=1):
            curves["asked"].append(passes)
            yield scorer_with_hits(hits)

    module = types.ModuleType("benchmarks.quality.peers.fake")
    module.fit, module.PATIENCE = fit, 2  # type: ignore[attr-defined]
    module.CONFIGS = {"fake": [{"curve": "falls"}, {"curve": "rises"}]}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(tuning.PEERS, "fake", "fake")
    return curves


def test_the_best_pass_of_the_best_configuration_is_chosen_and_patience_ends_a_search(
    peer: dict[str, list[int]],
) -> None:
    chosen, tried = tuning.tune("fake", FOLD, seed=1)

    assert [(one["config"]["curve"], one["passes"], one["value"]) for one in tried] == [
        ("falls", 1, 35 / EVENTS),
        ("rises", 4, 40 / EVENTS),
    ]
    # `falls` is given up after two passes without a gain: its fourth is never seen.
    assert peer["asked"] == [1, 2, 3, 1, 2, 3, 4]
    assert chosen is tried[1]


def test_a_refit_stops_at_the_chosen_pass(peer: dict[str, list[int]]) -> None:
    ranks = tuning.refit("fake", {"config": {"curve": "rises"}, "passes": 2}, FOLD, seed=1)

    assert measure.metrics(ranks[0])["recall_at_100"] == 30 / EVENTS


def test_a_refit_that_ends_early_is_an_error(peer: dict[str, list[int]]) -> None:
    with pytest.raises(CannotMeasure, match="before pass 9"):
        tuning.refit("fake", {"config": {"curve": "rises"}, "passes": 9}, FOLD, seed=1)


def test_every_peer_of_the_issue_is_there() -> None:
    assert len(tuning.PEERS) == 10
    assert set(tuning.WITHOUT_LATER_HISTORY) < set(tuning.PEERS)
