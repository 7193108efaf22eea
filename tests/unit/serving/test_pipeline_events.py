"""A store that was filled from the pipeline's tables knows what the pipeline knows."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_world import DAYS, USERS

from watchnext.errors import InputError
from watchnext.features.history import UserHistory
from watchnext.features.ranking_features import VideoFacts
from watchnext.recommend.recommender import VideoTable
from watchnext.recommend.state import UserStates
from watchnext.serving.events import Event, history_of
from watchnext.serving.pipeline_events import load_events
from watchnext.serving.user_store import SqliteUserStore


def known(history: UserHistory) -> dict[str, object]:
    """All that a history holds. Sums between events of one instant nobody can ask for: they go by the order of adding."""
    return {
        name: [value.before(at + 1) for at in value.instants] if hasattr(value, "before") else value
        for name, value in vars(history).items()
        if name != "_impressions_of_video"
    } | {
        "impressions_of": {
            video_id: [history.impressions_of(video_id, at + 1) for at in running.instants]
            for video_id, running in history._impressions_of_video.items()
        }
    }


def test_users_are_as_the_shadow_comparison_sees_them(world_tables: Path, tmp_path: Path) -> None:
    """Everything that a history holds, and the facts; and a second loading adds nothing."""
    import pyarrow.parquet as pq

    store = SqliteUserStore(tmp_path / "users.db")
    assert load_events(world_tables, store) == {"watches": 2 * DAYS * USERS, "impressions": 6 * DAYS * USERS}
    videos = VideoTable(pq.read_table(world_tables / "videos"))
    states = UserStates.read(world_tables, range(USERS))
    for user in range(USERS):
        loaded = history_of(store.events(str(user)), videos.facts)
        assert known(loaded) == known(states.history(user))
        assert store.facts(str(user)) == states.facts_of(user)
    assert states.facts_of(1).region == "region 1"
    assert load_events(world_tables, store) == {"watches": 0, "impressions": 0}
    store.close()


def test_what_a_client_told_before_counts_once(world_tables: Path, tmp_path: Path) -> None:
    """A watch with an id of its own is the row that the pipeline has of it."""
    store = SqliteUserStore(tmp_path / "users.db")
    load_events(world_tables, store)
    before = history_of(store.events("3"), VideoFacts)
    watch = next(event for event in store.events("3") if event.table == "watches")
    assert store.add([Event("3", "a client's own id", "watches", watch.row)]) == [True]
    assert known(history_of(store.events("3"), VideoFacts)) == known(before)
    store.close()


def test_without_tables_it_says_so(tmp_path: Path) -> None:
    store = SqliteUserStore(tmp_path / "users.db")
    with pytest.raises(InputError, match="no validated logs"):
        load_events(tmp_path, store)
    store.close()


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "users.db").write_text("not a database, and longer than the head of one " * 20)
    with pytest.raises(InputError, match="cannot be opened"):
        SqliteUserStore(tmp_path / "users.db")


def test_the_command(world_tables: Path, tmp_path: Path) -> None:
    """Where the pipeline leaves its tables, into where a server looks."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "validated").symlink_to(world_tables)
    command = [sys.executable, "-m", "watchnext.cli", "load-events"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"watches {2 * DAYS * USERS}, impressions {6 * DAYS * USERS}" in " ".join(done.stderr.split())
    store = SqliteUserStore(tmp_path / "state" / "users.db")
    assert len(store.user_ids(1000)) == USERS
    store.close()
