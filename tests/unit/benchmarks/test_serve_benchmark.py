"""The benchmarks of serving and of search: when requests come, what came back, and the world that is asked."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks import CannotMeasure
from benchmarks.index.worker import fastest, measure, recall
from benchmarks.programs import print_measured
from benchmarks.serve import __main__ as program
from benchmarks.serve import world
from benchmarks.serve.__main__ import highest_rate, steps_of, summarised
from benchmarks.serve.load import poisson_arrivals

from watchnext.features.history import UserHistory
from watchnext.features.ranking_features import RequestContext
from watchnext.recommend.recommender import Recommender
from watchnext.registry import Registry
from watchnext.serving.service import Service, load

SIZE = world.Size(videos=1_000, users=12, events=20, hidden_units=(32, 16), fixed_index=(10, 400))


def test_arrivals_are_those_of_a_poisson_process() -> None:
    """Gaps are exponential: their deviation is their mean. At an even pace it would be 0, and in bursts more."""
    arrivals = poisson_arrivals(50.0, 400.0, seed=1)
    assert 0.0 <= arrivals[0] <= arrivals[-1] < 400.0
    gaps = np.diff(arrivals)
    assert (gaps >= 0.0).all()
    assert 0.95 < gaps.mean() * 50.0 < 1.05
    assert 0.95 < gaps.std() / gaps.mean() < 1.05
    np.testing.assert_array_equal(arrivals, poisson_arrivals(50.0, 400.0, seed=1))
    assert len(poisson_arrivals(50.0, 400.0, seed=2)) != len(arrivals)
    counts = {len(poisson_arrivals(1.0, 4.0, seed)) for seed in range(50)}
    assert min(counts) < 4 < max(counts), "how many come is drawn as well"


def test_a_request_that_failed_has_waited_for_ever() -> None:
    latency_ms = [float(place) for place in range(1, 101)]
    late_ms = [0.0] * 100
    whole = summarised({"latency_ms": latency_ms, "late_ms": late_ms})
    assert (whole["p50_ms"], whole["p99_ms"], whole["failed"], whole["requests"]) == (50.0, 99.0, 0, 100)
    one_lost = summarised({"latency_ms": [math.nan, *latency_ms[1:]], "late_ms": late_ms})
    assert (one_lost["p50_ms"], one_lost["p99_ms"], one_lost["failed"]) == (51.0, 100.0, 1)
    two_lost = summarised({"latency_ms": [math.nan, math.nan, *latency_ms[2:]], "late_ms": late_ms})
    assert two_lost["p99_ms"] == math.inf
    with pytest.raises(CannotMeasure, match="too short"):
        summarised({"latency_ms": [], "late_ms": []})


def test_the_highest_rate_begins_above_what_was_answered_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server that answers up to 30 requests a second in time; one try may be bad luck, two are not."""
    asked = []

    def loaded(urls: list[str], rate: float, *given: object, seed: int) -> dict[str, float]:
        asked.append(rate)
        return {
            "p99_ms": 40.0 if rate < 25.0 or (rate == 30.0 and asked.count(30.0) == 2) else 60.0,
            "failed": 0,
        }

    monkeypatch.setattr(program, "loaded", loaded)
    few, many = {"p99_ms": 20.0, "failed": 0}, {"p99_ms": math.inf, "failed": 9}
    assert highest_rate([""], 1.0, tmp_path, {10.0: few, 50.0: many}) == 30.0
    assert asked == [20.0, 30.0, 30.0, 40.0, 40.0]
    asked.clear()
    assert highest_rate([""], 1.0, tmp_path, {10.0: few, 50.0: few}) == 50.0
    assert asked == [75.0, 75.0]


def test_steps_are_medians_over_slates_alone() -> None:
    lines = [
        {"message": "request", "path": "/v1/recommend", "state_ms": 1.0, "ranker_ms": 2.0},
        {"message": "request", "path": "/v1/recommend", "state_ms": 3.0, "ranker_ms": 2.5},
        {"message": "request", "path": "/v1/recommend", "state_ms": 90.0},
        {"message": "request", "path": "/v1/events", "state_ms": 1000.0},
    ]
    text = "\n".join(["no JSON", *map(json.dumps, lines)])
    assert steps_of(text) == {"state_ms": 3.0, "ranker_ms": 2.25}


def test_the_fastest_that_finds_enough_counts() -> None:
    settings = [{"recall": 0.9, "ms": 0.1}, {"recall": 0.98, "ms": 0.4}, {"recall": 1.0, "ms": 0.3}]
    assert fastest(settings) == settings[2]
    assert fastest(settings[:1]) is None
    assert recall(np.array([[1, 2, -1]]), np.array([[2, 3, 1]])) == 2 / 3


@pytest.mark.parametrize("way", ["brute_force", "scann"])
def test_a_way_to_search_is_measured_with_all_its_settings(way: str) -> None:
    draw = np.random.default_rng(3)
    size = dataclasses.replace(SIZE, videos=2_000)
    candidates = world.embeddings_of(size, draw)
    queries = world.queries_of(candidates, size, 5, draw)
    truth = np.argsort(-(queries @ candidates.T), axis=1)[:, :50]
    measured = measure(way, candidates, queries, truth)
    assert set(measured) == {"build_s", "memory_gb", "settings"}
    assert all({"recall", "ms"} <= set(setting) for setting in measured["settings"])
    best = max(setting["recall"] for setting in measured["settings"])
    assert best > (0.999 if way == "brute_force" else 0.9)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.make(tmp_path_factory.mktemp("serve") / "world", SIZE)


@pytest.fixture(scope="module")
def service(small_world: Path) -> Service:
    return load(f"models:/{world.NAME}@champion", small_world, str(small_world / "state" / "users.db"))


def test_a_world_that_is_there_is_not_made_again(small_world: Path) -> None:
    version = Registry.open(small_world).role(world.NAME, "champion")
    assert version is not None
    assert version.number == 1
    before = (small_world / "world.json").read_text(encoding="utf-8")
    assert world.make(small_world, SIZE) == small_world
    assert (small_world / "world.json").read_text(encoding="utf-8") == before


def test_every_request_of_the_world_costs_what_the_benchmark_says(service: Service) -> None:
    """200 candidates for everybody, of several sources, and so many operations of the ranker."""
    for user in range(1, SIZE.users + 1):
        answer = service.recommend(str(user), 20)
        assert answer.slate.personal
        assert answer.slate.ranked == world.CANDIDATES
        assert {"state", "tower", "index", "features", "ranker", "slate"} <= set(answer.step_ms)
    sources = {source for video in service.recommend("1", 200).slate.videos for source in video.sources}
    assert sources == {"tower", "co_watched", "popular", "channels", "fresh"}


def test_the_query_embedding_is_the_mean_of_what_was_watched(service: Service) -> None:
    assert service.champion is not None
    recommender: Recommender = service.champion.recommender
    history = UserHistory()
    for place, video_id in enumerate((5, 70, 333)):
        history.add_watch(video_id, place, 1.0, completed=True)
    embedding = recommender.embed(history, RequestContext("x", 1_000_000_000_000))
    embeddings = np.load(recommender.bundle.index / "candidate_embeddings.npy")
    np.testing.assert_allclose(embedding[0, :-1], embeddings[[4, 69, 332], :-1].mean(axis=0), atol=1e-5)
    assert embedding[0, -1] == 1.0


def test_operations_of_the_ranker_are_counted_once_per_request_and_once_per_video(small_world: Path) -> None:
    """Golden: 2 multiply-adds of both sides' first layer, and of the layers above it."""
    query, impression = json.loads((small_world / "ranker.json").read_text(encoding="utf-8"))["widths"]
    expected = 2 * (32 * (query + 200 * impression) + 200 * (32 * 16 + 16 * 1))
    assert world.ranker_operations(small_world) == expected


def test_what_json_cannot_say_is_null(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of requests of which some failed the 99th percentile is infinite; `Infinity` is no JSON."""
    measured = {"p99_ms": math.inf, "ratio": math.nan, "by_rate": [{"p50_ms": np.float64(1.5)}], "failed": 3}
    assert print_measured("bench", lambda _: measured, tmp_path) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == {
        "p99_ms": None,
        "ratio": None,
        "by_rate": [{"p50_ms": 1.5}],
        "failed": 3,
    }
