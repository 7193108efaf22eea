"""Live logs as evidence: what they say, and what they are refused for."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_logs import experiment_rows, write_experiment, write_log, write_shadow_log

from watchnext.decisions.experiment import Experiment, experiment_check, read_experiment
from watchnext.decisions.live_log import digest_of_log, live_figures
from watchnext.errors import InputError


def test_watch_time_is_per_user_and_day_from_the_first_slate_on(tmp_path: Path) -> None:
    """A user who watches nothing counts 0, what was watched before the first slate not at all."""
    served, watched = experiment_rows(users=300, gain=1.0)
    watched = [row for row in watched if row["user_id"] != "7"]
    before = {**watched[0], "at": served[0]["at"] - dt.timedelta(hours=1), "request_id": None}
    found = read_experiment(
        write_log(tmp_path, served, [*watched, {**before, "watch_time_s": 1e6}]), champion=1, challenger=2
    )
    ends = max(row["at"] for row in watched)
    first = {row["user_id"]: row["at"] for row in reversed(served)}
    days = {user: (ends - at) / dt.timedelta(days=1) for user, at in first.items()}
    expected = {"challenger": [], "champion": []}
    for user in first:
        arm = next(row["arm"] for row in served if row["user_id"] == user)
        total = sum(row["watch_time_s"] for row in watched if row["user_id"] == user)
        expected[arm].append(total / days[user])
    np.testing.assert_allclose(np.sort(found.challenger), np.sort(expected["challenger"]), rtol=1e-6)
    np.testing.assert_allclose(np.sort(found.champion), np.sort(expected["champion"]), rtol=1e-6)
    assert 0.0 in expected["challenger"] + expected["champion"]
    assert found.arms == (len(expected["challenger"]), len(expected["champion"]))
    assert found.user_days == pytest.approx(sum(days.values()))


@pytest.mark.parametrize("mode", ["ab", "interleave"])
@pytest.mark.parametrize(("gain", "outcome"), [(1.6, "passed"), (0.6, "failed"), (1.0, "not judged")])
def test_who_is_watched_longer_is_found(tmp_path: Path, mode: str, gain: float, outcome: str) -> None:
    """Meant to fail with the arms exchanged."""
    log = write_experiment(tmp_path, users=800, gain=gain, mode=mode)
    check, figures = experiment_check(read_experiment(log, champion=1, challenger=2), planned_users=800)
    assert check.outcome == outcome, check.value
    assert figures["experiment_users"] == 800
    assert ("interleaved" in check.value) == (mode == "interleave")


def test_arms_that_lost_users_are_called_off(tmp_path: Path) -> None:
    served, watched = experiment_rows(users=1_000, gain=1.6)
    lost = {row["user_id"] for row in served if row["arm"] == "challenger" and int(row["user_id"]) % 3 == 0}
    log = write_log(
        tmp_path,
        [row for row in served if row["user_id"] not in lost],
        [row for row in watched if row["user_id"] not in lost],
    )
    check, figures = experiment_check(read_experiment(log, champion=1, challenger=2), planned_users=1_000)
    assert (check.outcome, figures) == ("not judged", {})
    assert "users are missing" in check.value


def test_few_users_and_values_that_are_no_numbers_say_nothing() -> None:
    few = Experiment("ab", np.ones(20), np.ones(20), 0.5, (20, 20), 40.0)
    check, _ = experiment_check(few, planned_users=1_000)
    assert (check.outcome, "too few" in check.value) == ("not judged", True)
    broken = Experiment("ab", np.full(200, np.nan), np.arange(200.0), 0.5, (200, 200), 400.0)
    check, _ = experiment_check(broken, planned_users=1_000)
    assert (check.outcome, "no numbers" in check.value) == ("not judged", True)


Rows = list[dict[str, Any]]


def both_arms(served: Rows, _: Rows) -> None:
    served[1]["arm"] = "champion" if served[0]["arm"] == "challenger" else "challenger"


def mixed_versions(served: Rows, _: Rows) -> None:
    served[1]["challenger_version"] = 3


def no_seconds(_: Rows, watched: Rows) -> None:
    watched[0]["watch_time_s"] = float("nan")
    watched[1]["watch_time_s"] = -1.0


def backwards(_: Rows, watched: Rows) -> None:
    watched[0]["at"] -= dt.timedelta(hours=1)


def nothing(served: Rows, _: Rows) -> None:
    served.clear()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (both_arms, "1 users were served by both arms"),
        (mixed_versions, "1 of 80 slates of the experiment one are of other versions"),
        (no_seconds, "2 of 160 watch times are no numbers of seconds"),
        (backwards, "a clock went backwards"),
        (nothing, "the log is empty"),
    ],
)
def test_a_broken_experiment_is_refused(
    tmp_path: Path, change: Callable[[Rows, Rows], None], words: str
) -> None:
    served, watched = experiment_rows(users=40, gain=1.0)
    change(served, watched)
    with pytest.raises(InputError, match=words):
        read_experiment(write_log(tmp_path, served, watched), champion=1, challenger=2)


def test_files_that_are_damaged_or_lack_columns_are_refused(tmp_path: Path) -> None:
    log = write_experiment(tmp_path / "log", users=40, gain=1.0)
    (log / "watched" / "part-00000.parquet").write_bytes(b"half of it")
    with pytest.raises(InputError, match="cannot be read"):
        read_experiment(log, champion=1, challenger=2)
    shadow = write_shadow_log(tmp_path / "shadow", versions=(1, 2))
    (part,) = shadow.glob("part-*.parquet")
    part.rename(log / "served" / "part-00001.parquet")
    with pytest.raises(InputError, match="lacks columns"):
        read_experiment(log, champion=1, challenger=2)


def test_the_shadow_log_tells_how_both_answer(tmp_path: Path) -> None:
    """Rows of another challenger are counted and left out."""
    write_shadow_log(tmp_path, versions=(1, 2), failed=10)
    before = digest_of_log(tmp_path)
    write_shadow_log(tmp_path, versions=(1, 5))
    found = live_figures(tmp_path, champion=1, challenger=2)
    assert (found["live_requests"], found["live_requests_of_other_versions"]) == (40, 40)
    assert found["challenger_live_errors"] == 10 / 40
    assert found["live_slate_overlap"] == pytest.approx(30 / 40 * 0.5)
    assert found["champion_live_latency_p50_ms"] == pytest.approx(10 + 19.5)
    assert found["challenger_live_latency_p99_ms"] == pytest.approx(20 + 39 * 0.99)
    assert before != digest_of_log(tmp_path)
    assert digest_of_log(tmp_path / "nothing") is None


def test_a_shadow_log_whose_clock_went_backwards_is_refused(tmp_path: Path) -> None:
    write_shadow_log(tmp_path, versions=(1, 2), changes={"challenger_took_ms": -3.0})
    with pytest.raises(InputError, match="a clock went backwards"):
        live_figures(tmp_path, champion=1, challenger=2)
