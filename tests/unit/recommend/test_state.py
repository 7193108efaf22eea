"""Users' states read from the validated tables."""

import datetime as dt
from pathlib import Path

import pytest
from tiny_world import BEGIN, video_at

from watchnext.errors import InputError
from watchnext.recommend.state import UserFacts, UserStates


def test_a_state_is_what_the_tables_say_up_to_an_instant(world_tables: Path) -> None:
    states = UserStates.read(world_tables, [3, 5])
    history = states.history(3)
    third_day = BEGIN + dt.timedelta(days=2)
    assert history.last_completed(50, third_day) == [video_at(30 + step) for step in range(4)]
    assert history.watches(BEGIN) == 0
    assert history.impressions(third_day)[:2] == (12, 6)
    assert history.channel_watches(31 % 20, third_day)[0] == 1
    assert states.facts_of(3) == UserFacts(region="region 0")


def test_who_was_not_asked_for_or_is_unknown_has_an_empty_past(world_tables: Path) -> None:
    states = UserStates.read(world_tables, [3, 99_999])
    for user in (5, 99_999):
        assert states.history(user).watches(BEGIN + dt.timedelta(days=365)) == 0
        assert states.facts_of(user) == UserFacts()


def test_a_folder_without_tables_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no table here"):
        UserStates.read(tmp_path, [1])
