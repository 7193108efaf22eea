"""What a server notices of its models: calibration by arithmetic, drift by known distributions, age by the clock."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_world import watch_time_s

from watchnext.serving.events import Event, id_of
from watchnext.serving.experiment import Experiment
from watchnext.serving.monitoring import InputDrift, Monitor, MonitorSettings
from watchnext.serving.service import Answer, Served, Service
from watchnext.serving.user_store import SqliteUserStore, StoreUnavailableError

AT = 1_768_000_000_000_000
NOW_S = AT / 1e6


def watch(answer: Answer, place: int, seconds: float) -> Event:
    row = {
        "video_id": answer.slate.video_ids[place],
        "watched_at": answer.at,
        "watch_time_s": seconds,
        "completed": True,
        "request_id": answer.request_id,
    }
    return Event(answer.user_id, id_of("watches", row), "watches", row)


def test_expected_and_observed_watch_time_of_settled_pages(
    tmp_path: Path, versions: tuple[Served, Served]
) -> None:
    """Of watches that another server was told of, which shares the users: it is not this monitor that hears of them."""
    service, other = (Service(SqliteUserStore(tmp_path / "users.db"), versions[0]) for _ in range(2))
    monitor = Monitor(service, MonitorSettings(settle_s=600.0))
    pages = [service.recommend("somebody", 3, record=True, at=AT + n) for n in range(2)]
    for page in pages:
        monitor.shown(page, {})
    first = watch(pages[0], 1, 40.0)
    other.add([first, watch(pages[0], 2, 5.0)])
    other.add([first])
    elsewhere = {"video_id": 1, "watched_at": AT, "watch_time_s": 9.0, "request_id": "z"}
    other.add([Event("somebody", "y", "watches", elsewhere)])
    monitor.settle(NOW_S + 599.0)
    assert monitor.calibration() == {}
    expected = sum(watch_time_s(int(video)) for page in pages for video in page.slate.video_ids)
    monitor.settle(NOW_S + 601.0)
    assert monitor.calibration() == {1: (pytest.approx(expected, rel=1e-5), 45.0)}
    other.add([watch(pages[1], 0, 7.0)])  # too late
    monitor.settle(NOW_S + 700.0)
    assert monitor.calibration()[1][1] == 45.0
    for one in (service, other):
        one.store.close()


def test_pages_wait_for_a_state_that_is_down_and_those_of_the_forgotten_count_no_more(
    tmp_path: Path, versions: tuple[Served, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(SqliteUserStore(tmp_path / "users.db"), versions[0])
    monitor = Monitor(service)
    stays, leaves = (service.recommend(user, 3, record=True, at=AT) for user in ("stays", "leaves"))
    for page in (stays, leaves):
        monitor.shown(page, {})
    service.store.forget("leaves")

    def down(user_id: str) -> list[Event]:
        raise StoreUnavailableError(user_id)

    with monkeypatch.context() as patched:
        patched.setattr(service.store, "events", down)
        monitor.settle(NOW_S + 7200.0)
        assert monitor.calibration() == {}
    monitor.settle(NOW_S + 7200.0)
    expected = sum(video.expected_watch_time_s for video in stays.slate.videos)
    assert monitor.calibration() == {1: (pytest.approx(expected), 0.0)}
    service.store.close()


def test_more_pages_than_are_followed_are_sampled(tmp_path: Path, versions: tuple[Served, Served]) -> None:
    service = Service(SqliteUserStore(tmp_path / "users.db"), versions[0])
    monitor = Monitor(service)
    page = service.recommend("somebody", 3, record=True, at=AT)
    began = time.monotonic()
    for _ in range(3000):
        monitor.shown(page, {})
    assert 1000 <= len(monitor._pages) <= 1001 + 5 * (time.monotonic() - began)
    service.store.close()


def test_drafted_pages_count_for_whose_each_video_is(tmp_path: Path, versions: tuple[Served, Served]) -> None:
    experiment = Experiment("watchnext", "interleave", 0.9999)
    experiment.challenger = versions[1]
    service = Service(SqliteUserStore(tmp_path / "users.db"), versions[0], experiment=experiment)
    monitor = Monitor(service)
    page = service.recommend("somebody", 4, record=True, at=AT)
    assert page.arm == "interleaved"
    monitor.shown(page, {})
    service.add([watch(page, place, 10.0 + place) for place in range(4)])
    monitor.settle(NOW_S + 7200.0)
    found = monitor.calibration()
    for version in (1, 2):
        places = [place for place in range(4) if page.versions[place] == version]
        assert len(places) == 2
        expected = sum(page.slate.videos[place].expected_watch_time_s for place in places)
        assert found[version] == (pytest.approx(expected), sum(10.0 + place for place in places))
    service.store.close()


def test_drift_is_none_for_the_trainings_own_values_and_seen_for_others() -> None:
    """The distance by hand: uniform on [0, 1] against uniform on [0.25, 1.25] is 0.25. Ties are no drift."""
    draw = np.random.default_rng(5)
    places = np.linspace(0.0, 1.0, 257)
    counts = np.quantile(draw.poisson(0.4, 100_000), places)  # mostly 0: many boundaries are one value
    quantiles = {"even": places, "count": counts, "missing": np.zeros(0)}

    def distances(even: np.ndarray, count: np.ndarray) -> dict[str, float]:
        drift = InputDrift(quantiles)
        for part in range(0, len(even), 20):
            rows = slice(part, part + 20)
            drift.add(
                {
                    "even": ("continuous", even[rows].astype(np.float32)),
                    "count": ("continuous", count[rows].astype(np.float32)),
                    "missing": ("continuous", np.full(20, np.nan, np.float32)),
                },
                20,
            )
        return drift.distances()

    same = distances(draw.random(20_000), draw.poisson(0.4, 20_000))
    assert set(same) == {"even", "count"}
    assert max(same.values()) < 0.025
    moved = distances(draw.random(20_000) + 0.25, draw.poisson(1.4, 20_000))
    assert moved["even"] == pytest.approx(0.25, abs=0.02)
    # P(X <= 0) falls from exp(-0.4) to exp(-1.4).
    assert moved["count"] == pytest.approx(np.exp(-0.4) - np.exp(-1.4), abs=0.02)


def test_one_row_of_the_request_counts_for_every_video_and_unknown_is_counted() -> None:
    drift = InputDrift({"user": np.array([0.0, 1.0, 2.0])})
    values = {"user": ("continuous", np.array([5.0])), "video": ("categorical", np.array([0, 3, 0, 7]))}
    drift.add(values, 4)
    assert drift.distances() == {"user": 1.0}
    assert drift.unknown_shares() == {"video": 0.5}


def test_inputs_of_what_is_shown_are_looked_at(tmp_path: Path, versions: tuple[Served, Served]) -> None:
    service = Service(SqliteUserStore(tmp_path / "users.db"), versions[0])
    monitor = Monitor(service, MonitorSettings(sample_every_s=0.0))
    for n in range(3):
        monitor.shown(service.recommend("somebody", 5, record=True, at=AT + n), {"surface": "home"})
        monitor.tick(0.0)
    drift = monitor.drift()[1]
    assert drift.slates == 3
    inputs = {spec.name for spec in versions[0].recommender.encoder.ranking_features}
    distances = drift.distances()
    assert distances
    assert set(distances) | set(drift.unknown_shares()) <= inputs
    assert all(0.0 <= one <= 1.0 for one in distances.values())
    assert drift.unknown_shares()["video_id"] == 0.0
    service.store.close()


def test_an_old_champion_says_so_once(
    tmp_path: Path, versions: tuple[Served, Served], caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteUserStore(tmp_path / "users.db")
    trained_until = versions[0].recommender.bundle.trained_until_at.timestamp()
    age_days = (time.time() - trained_until) / 86_400.0
    for limit, is_stale in ((age_days - 1.0, True), (age_days + 1.0, False)):
        monitor = Monitor(Service(store, versions[0]), MonitorSettings(stale_after_days=limit))
        assert monitor.is_stale(versions[0]) == is_stale
        assert monitor.age_days(versions[0]) == pytest.approx(age_days, abs=0.01)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "watchnext.serving"):
            monitor.tick(0.0)
            monitor.tick(0.0)
        assert [record.message for record in caplog.records] == ["the champion is old"] * is_stale
    store.close()
